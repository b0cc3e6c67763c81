"""A flow whose store signs its checkpoints: with a real server, a Secret block and a results folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from support import one_line

from perpetual_blocks import PerpetualAgent, Unit, WorkItem
from perpetual_blocks.adapters.code_version import code_version
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.checkpoint import Checkpoint, Signer
from perpetual_blocks.errors import InvalidInput


class Noter(PerpetualAgent):
    """Note things."""

    def plan(self) -> list[WorkItem]:
        return [WorkItem(id="a"), WorkItem(id="b")]

    def work_unit(self, unit: Unit) -> Any:
        unit.context["last"] = unit.id


note = Noter.as_flow()


def test_a_flow_signs_its_checkpoints_and_records_its_code(results: Path, tmp_path: Path) -> None:
    """With the value of the Secret block that its store names; the value is in no document."""
    Secret(value="open sesame").save("signs-flow", overwrite=True, _sync=True)
    store = StatePersistence(ledger=str(tmp_path / "ledger.db"), signing_secret="signs-flow")

    for _ in range(2):
        assert note(chain="notes", store=store, return_state=True).name == "Finished"

    ledger = SqlLedger(str(tmp_path / "ledger.db"))
    try:
        for document in ledger.documents("notes", "checkpoint"):
            text = (results / document.key).read_text()
            assert Checkpoint.read(text, document.digest, Signer(b"open sesame")).context == {"last": "b"}
            assert "signature" in json.loads(text)
        assert ledger.sessions("notes")[1].verified == (6, 6)
        assert ledger.chain("notes").code == code_version(Noter)
        assert ledger.chain("notes").code is not None
    finally:
        ledger.close()
    written = [path.read_bytes() for path in (results / "perpetual").rglob("*") if path.is_file()]
    assert not [content for content in written if b"sesame" in content]


def test_a_flow_does_not_start_without_its_secret(results: Path, tmp_path: Path) -> None:
    """It fails in one line that names the block; there is no chain afterwards."""
    store = StatePersistence(ledger=str(tmp_path / "ledger.db"), signing_secret="nowhere")

    with pytest.raises(InvalidInput) as refused:
        note(chain="notes", store=store)

    one_line(refused.value, "signing_secret: got 'nowhere'; expected the name of a secret block")
    assert not (tmp_path / "ledger.db").exists()
