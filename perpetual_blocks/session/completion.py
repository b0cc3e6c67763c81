"""Completing: the documents that a session had no time for, or no process any more, are written by whoever comes next.

A session that was killed, or had only time for the minimal save, has left all that matters in the ledger, and nothing
that a person could read. So the next session, or the supervisor where none is to come, writes its handoff, and its
checkpoint, from the ledger as it stands.
"""

import secrets
from collections.abc import Iterator
from typing import Literal

from perpetual_blocks.checkpoint import Signer, digest
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import Chain, SessionRecord, SessionState
from perpetual_blocks.session.documents import checkpoint_now, document_key, handoff_now, masked_markdown
from perpetual_blocks.session.ports import Document, Documents, Ledger


def complete(
    ledger: Ledger,
    documents: Documents,
    chain: Chain,
    session: SessionRecord,
    now: float,
    *,
    signer: Signer | None = None,
    redactor: Redactor | None = None,
) -> str | None:
    """Writes the documents that the chain's latest ended session lacks.

    May be called by several at once: the first one's documents stay.

    Returns:
        The handoff, if it was missing.

    Raises:
        StorageError: a document could not be written.
    """
    handoff = None
    for kind in missing(ledger, chain, session):
        if kind == "checkpoint":
            text = checkpoint_now(ledger, chain.name, session.ordinal, _task(chain), now).text(signer)
        else:
            resumed = [f"written by whoever came next: session {session.ordinal} ended without a handoff of its own"]
            said = handoff_now(
                ledger,
                session,
                chain.name,
                _task(chain),
                chain_status=chain.status,
                resume_at=chain.resume_at,
                resumed=resumed,
                failed_steps=[f"{step['step']}: {step['error']}" for step in session.steps if "error" in step],
            )
            text = handoff = masked_markdown(said, redactor or Redactor())
        key = document_key(chain.name, chain.uid, kind, session.ordinal, secrets.token_hex(3))
        documents.write(key, text)
        document = Document(kind, session.ordinal, key, digest(text), len(text.encode()))
        ledger.add_document(chain.name, document)
    return handoff


def missing(ledger: Ledger, chain: Chain, session: SessionRecord) -> Iterator[Literal["checkpoint", "handoff"]]:
    """Which documents a session that has ended should have left, and has not."""
    if session.state is SessionState.RUNNING:
        return
    kinds: tuple[Literal["checkpoint", "handoff"], ...] = ("checkpoint", "handoff")
    for kind in kinds:
        if session.ordinal not in [document.ordinal for document in ledger.documents(chain.name, kind)]:
            yield kind


def _task(chain: Chain) -> str:
    return str(chain.settings.get("task") or chain.agent)
