"""Completing: the documents that a session had no time for, or no process any more, are written by whoever comes next.

A session that was killed, or had only time for the minimal save, has left all that matters in the ledger, and nothing
that a person could read. So the next session, or the supervisor where none is to come, writes its handoff, and its
checkpoint, from the ledger as it stands.
"""

import secrets
from collections.abc import Iterator, Sequence
from typing import Literal

from perpetual_blocks.checkpoint import Signer, digest
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import Chain, SessionRecord, SessionState
from perpetual_blocks.session.documents import checkpoint_now, document_key, handoff_now, next_run
from perpetual_blocks.session.ledger import Document, Ledger
from perpetual_blocks.session.pages import masked_markdown
from perpetual_blocks.session.ports import Documents

RECENT = 5
"""How many of a chain's latest sessions are looked at: who was to complete one may have been killed as well."""


def complete(
    ledger: Ledger,
    documents: Documents,
    chain: Chain,
    now: float,
    *,
    signer: Signer | None = None,
    redactor: Redactor | None = None,
) -> dict[int, Handoff]:
    """Writes the documents that the chain's latest sessions should have left, and have not.

    May be called by several at once: the first one's documents stay.

    Returns:
        The handoffs that were missing, by the sessions' ordinals.

    Raises:
        StorageError: a document could not be written.
    """
    sessions = ledger.sessions(chain.name)[-RECENT:]
    ended = [session for session in sessions if session.state is not SessionState.RUNNING]
    handoffs: dict[int, Handoff] = {}
    for kind, session in _missing(ledger, chain, ended):
        if kind == "checkpoint":
            text = checkpoint_now(ledger, chain.name, session.ordinal, _task(chain), now).text(signer)
        else:
            resumed = [f"written by whoever came next: session {session.ordinal} ended without a handoff of its own"]
            following = next((one for one in sessions if one.ordinal == session.ordinal + 1), None)
            said = handoffs[session.ordinal] = handoff_now(
                ledger,
                session,
                chain.name,
                _task(chain),
                chain_status=chain.status,
                resume_at=chain.resume_at,
                resumed=resumed,
                failed_steps=[f"{step['step']}: {step['error']}" for step in session.steps if "error" in step],
                next_run_id=following.flow_run_id if following else next_run(ledger, chain.name, session.ordinal),
            )
            text = masked_markdown(said, redactor or Redactor())
        key = document_key(chain.name, chain.uid, kind, session.ordinal, secrets.token_hex(3))
        documents.write(key, text)
        document = Document(kind, session.ordinal, key, digest(text), len(text.encode()))
        ledger.add_document(chain.name, document)
    return handoffs


def _missing(
    ledger: Ledger, chain: Chain, ended: Sequence[SessionRecord]
) -> Iterator[tuple[Literal["checkpoint", "handoff"], SessionRecord]]:
    there = {document.ordinal for document in ledger.documents(chain.name, "handoff")}
    yield from (("handoff", session) for session in ended if session.ordinal not in there)
    # What the ledger says now is what the latest session left, and no other.
    there = {document.ordinal for document in ledger.documents(chain.name, "checkpoint")}
    yield from (("checkpoint", session) for session in ended[-1:] if session.ordinal not in there)


def _task(chain: Chain) -> str:
    return str(chain.settings.get("task") or chain.agent)
