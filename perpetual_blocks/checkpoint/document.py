"""The checkpoint: what a session knew when it ended, as a document of its own.

The ledger has all of it too. The document is there for whoever has no ledger at hand, and so that the next session can
*check* that nothing was lost in between instead of trusting it.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from perpetual_blocks.checkpoint.codec import digest, to_json
from perpetual_blocks.checkpoint.signature import Signer
from perpetual_blocks.checkpoint.upgrades import SCHEMA, upgraded
from perpetual_blocks.errors import DamagedDocument, InvalidInput


class Checkpoint(BaseModel):
    """A session's state at its end.

    Attributes:
        uid: The chain's random id.
        ordinal: The session that wrote it.
        checkpoints: Its sequence number: how many the chain has written, with this one.
        items: How many items have each status.
        units: Units finished in the chain so far.
        context: The agent's memory.
        context_version: The version of the agent's memory, as the agent counts it.
        next_action: What the most advanced open item says comes next.
        usage: The chain's usage so far, by resource.
        at: When it was written, ISO 8601.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = 2
    chain: str
    uid: str
    ordinal: int
    checkpoints: int
    agent: str
    task: str
    items: dict[str, int]
    units: int
    context: dict[str, Any]
    context_version: int = 1
    next_action: str | None
    usage: dict[str, float]
    at: str

    def text(self, signer: Signer | None = None) -> str:
        """The document, signed where there is a signer."""
        document = self.model_dump(mode="json")
        if signer is not None:
            document["signature"] = signer.sign(to_json(document, "checkpoint"))
        return to_json(document, "checkpoint")

    @classmethod
    def read(cls, text: str, expected_digest: str, signer: Signer | None = None) -> "Checkpoint":
        """Reads a document after checking that it is the one that was written.

        Args:
            signer: Checks its signature; without one, a signature is not looked at.

        Raises:
            DamagedDocument: its digest is another, its signature is missing or wrong, or it is not a checkpoint of a
                schema that this version knows.
        """
        if digest(text) != expected_digest:
            raise DamagedDocument(f"checkpoint: got SHA-256 {digest(text)[:12]}…; expected {expected_digest[:12]}…")
        document = _parsed(text)
        signature = document.pop("signature", None)
        if signer is not None:
            _check_signature(document, signature, signer)
        try:
            return cls.model_validate(upgraded(document))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DamagedDocument(f"checkpoint.{where}: {first['msg']}; expected schema {SCHEMA}") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DamagedDocument(f"checkpoint: got no JSON ({error}); expected schema {SCHEMA}") from error
    if not isinstance(document, dict):
        raise DamagedDocument(f"checkpoint: got {type(document).__name__}; expected a JSON object of schema {SCHEMA}")
    return document


def _check_signature(document: dict[str, Any], signature: object, signer: Signer) -> None:
    if not isinstance(signature, str):
        raise DamagedDocument("checkpoint.signature: got none; expected one by the store's signing secret")
    try:
        text = to_json(document, "checkpoint")
    except InvalidInput as error:
        raise DamagedDocument(str(error)) from error
    if not signer.is_signed(text, signature):
        raise DamagedDocument("checkpoint.signature: got another; expected one by the store's signing secret")


def compare(checkpoint: Checkpoint, now: Checkpoint, *, exact: bool, shared: bool = False) -> dict[str, bool]:
    """Whether each field of a checkpoint agrees with what the ledger says now.

    Args:
        exact: Nothing was done since (the session ended gracefully), so counts must be equal. After a crash the ledger
            is ahead of the last checkpoint: then counts may only have grown, and the context may have moved on.
        shared: Other chains work on the queue, too: the items that are done may have become more in any case.
    """
    completed, completed_now = checkpoint.items.get("completed", 0), now.items.get("completed", 0)
    agreed = {"chain": checkpoint.chain == now.chain, "uid": checkpoint.uid == now.uid}
    agreed["units"] = checkpoint.units == now.units if exact else checkpoint.units <= now.units
    agreed["completed"] = completed == completed_now if exact and not shared else completed <= completed_now
    agreed["usage"] = all(
        amount == now.usage.get(name, 0.0) if exact else amount <= now.usage.get(name, 0.0)
        for name, amount in checkpoint.usage.items()
    )
    if exact:
        agreed["context"] = checkpoint.context == now.context
    return agreed
