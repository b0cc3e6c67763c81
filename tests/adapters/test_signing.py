"""The secret that checkpoints are signed with, on a real server."""

from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings
from support import one_line

from perpetual_blocks.adapters.signing import load_signer
from perpetual_blocks.checkpoint import Signer
from perpetual_blocks.errors import InvalidInput, StorageError


def test_the_secret_block_signs(results: Path) -> None:
    """What is signed is signed with the block's value."""
    Secret(value="open sesame").save("signs", overwrite=True, _sync=True)

    assert load_signer("signs") == Signer(b"open sesame")


def test_no_name_is_no_signature() -> None:
    """And no server is asked."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert load_signer("") is None


def test_a_missing_block_is_wrong_input(results: Path) -> None:
    """The field, the name, and what was expected, in one line."""
    with pytest.raises(InvalidInput) as refused:
        load_signer("nowhere")

    one_line(refused.value, "signing_secret: got 'nowhere'; expected the name of a secret block")


@pytest.mark.parametrize("value", [{"key": "sesame"}, "", 5])
def test_a_block_whose_value_is_no_text_is_wrong_input(results: Path, value: object) -> None:
    """Its value is not shown."""
    Secret(value=value).save("no-text", overwrite=True, _sync=True)

    with pytest.raises(InvalidInput) as refused:
        load_signer("no-text")

    one_line(refused.value, "signing_secret: got 'no-text'", "text")
    assert "sesame" not in str(refused.value)


def test_a_server_that_does_not_answer_is_no_wrong_input() -> None:
    """It may answer later."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(StorageError) as failed:
        load_signer("signs")

    one_line(failed.value, "signing_secret", "signs")
