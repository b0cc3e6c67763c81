"""The secret that checkpoints are signed with, from a Prefect Secret block."""

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectException

from perpetual_blocks.checkpoint import Signer
from perpetual_blocks.errors import InvalidInput, StorageError


def load_signer(name: str) -> Signer | None:
    """What signs with the secret in the Secret block of this name; None for no name.

    Raises:
        InvalidInput: there is no such block, or its value is no text.
        StorageError: Prefect's API cannot be asked.
    """
    if not name:
        return None
    try:
        secret = Secret.load(name, _sync=True).get()  # type: ignore[call-arg, union-attr]
    except ValueError as error:
        raise InvalidInput.of("signing_secret", name, f"the name of a secret block ({error})") from error
    except (PrefectException, httpx.HTTPError) as error:
        raise StorageError(f"signing_secret: cannot load the secret block {name}: {error}") from error
    if not isinstance(secret, str) or not secret:
        raise InvalidInput.of("signing_secret", name, "a secret block whose value is text")
    return Signer(secret.encode())
