"""The end of a session: six steps in order, each with a record, and a deadline where it is not essential.

1. finish the running units (the loop has; the agent may flush what they left in memory)
2. save state: the checkpoint is written, read back, compared, and then pointed at
3. back up: the checkpoint and what changed of the ledger's rows go to a second storage; the oldest checkpoints are let
   go
4. commit the agent's work to git, and push it where that is wanted
5. the handoff document
6. close the session and record the follow-on, in one transaction; then create it, and show the handoff to people

1, 3, 4 and 5 are best effort: what fails is written into the handoff and the session's record. 2 and 6 are essential:
where they fail, the session fails and the last good state stands.

When the process is about to be killed, 1 to 5 have the time that is left without what 6 needs. What there was no time
for is recorded as `skipped`. 6 is the minimal save: all that the next session needs is in the ledger.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from perpetual_blocks.budget import BudgetMonitor
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.errors import DamagedDocument, InvalidInput
from perpetual_blocks.faults import reached
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.advice import CHECKPOINT_BUDGET
from perpetual_blocks.session.agents_files import commit_message, refusal
from perpetual_blocks.session.backup import back_up
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.continuation import Ending, ending
from perpetual_blocks.session.documents import (
    calibration_of,
    checkpoint_now,
    document_key,
    handoff_now,
    limits_now,
    next_run,
)
from perpetual_blocks.session.follow_on import FollowOnMaker, create_follow_ons, jitter
from perpetual_blocks.session.ledger import Closing, Document, Fence
from perpetual_blocks.session.manners import restrain
from perpetual_blocks.session.pages import masked_markdown, publish
from perpetual_blocks.session.planning import outlook
from perpetual_blocks.session.steps import Steps
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import CheckpointLarge, StepEnded, StepFailed

FOLLOW_ON_SECONDS = 45.0
"""For how long the creation of a follow-on is tried again; less than a step may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Ends one session in order.

    Attributes:
        resumed: What was found when the session started, for the handoff.
        follow_on: None where the run has no deployment that could go on.
        stop: Says when the process will be killed.
        mark: A part of its documents' names; random, because a chain that was restored from a backup may come to this
            session a second time, and no name is used twice.
    """

    agent: Agent
    world: World
    fence: Fence
    uid: str
    task: str
    monitor: BudgetMonitor
    resumed: tuple[str, ...]
    follow_on: FollowOnMaker | None
    passed_over: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest)
    mark: str = field(default_factory=lambda: secrets.token_hex(3))

    def run(self, reason: StopReason) -> Ending:
        """Runs the steps.

        Raises:
            Fenced: another session has taken over.
            StorageError: the checkpoint could not be saved.
            LedgerError: the session could not be closed.
        """
        world, fence = self.world, self.fence
        steps = Steps(
            world.clock,
            lambda step, error: world.tell(StepFailed(fence.chain, step, error)),
            world.redactor,
            killed_at=lambda: self.stop.by,
            on_end=lambda step, seconds, error: world.tell(StepEnded(fence.chain, step, seconds, error)),
        )
        reason = replace(reason, message=world.redactor(reason.message))
        steps.best_effort("finish_unit", self.agent.finish_unit)
        if reason.resume_at is not None:
            wait = max(0.0, reason.resume_at - world.clock.now())
            reason = replace(reason, resume_at=reason.resume_at + jitter(self.uid, wait))
        end = self._ending(reason)
        checkpoint = checkpoint_now(world.ledger, fence.chain, fence.ordinal, self.task, world.clock.now()).text(
            world.signer
        )
        saved = steps.essential("save_state", lambda: self._save("checkpoint", checkpoint))
        size = len(checkpoint.encode())
        if size > CHECKPOINT_BUDGET:
            world.tell(CheckpointLarge(fence.chain, fence.ordinal, size, CHECKPOINT_BUDGET))
        steps.best_effort("backup", lambda: self._back_up(checkpoint))
        steps.best_effort("prune", self._prune)
        backup = world.backup
        if backup is not None:
            # After the pruning: a restored ledger must not point at a checkpoint that is gone.
            steps.best_effort("back_up_ledger", lambda: back_up(world.ledger, backup, fence))
        named: list[Path] = []
        commit = steps.best_effort("commit_changes", lambda: self._commit(end, saved, named))
        if commit is not None and self.agent.push_commits:
            steps.best_effort("push", lambda: world.saved_work.push(named))
        handoff = self._handoff(end, steps, commit, saved)
        said = steps.best_effort("create_handoff", lambda: self._said(self._ask_agent(handoff)))
        if said is None:
            # Whatever the agent's hook does, there is a handoff, and it says what the hook did.
            said = self._said(handoff.model_copy(update={"steps": steps.failures()}))
        handoff, markdown = said
        steps.best_effort("handoff", lambda: self._save_handoff(markdown))
        end = self._heard_last(end)
        self._close(end, steps)
        # A successor may be waiting for the closing, and nothing depends on where people look.
        steps.best_effort("publish", lambda: self._publish(handoff, end))
        steps.best_effort("cleanup", self.agent.cleanup)
        return end

    def _ending(self, reason: StopReason) -> Ending:
        ledger, now = self.world.ledger, self.world.clock.now()
        chain = self.fence.chain
        counts = ledger.counts(chain, taken=True)
        end = replace(ending(reason, counts, elsewhere=ledger.is_elsewhere(chain)), items=counts)
        *before, this = ledger.sessions(chain)
        this = replace(this, state=end.session, stop_reason=end.reason.code, ended_at=now)
        return restrain(end, ledger.chain(chain), [*before, this], now)

    def _key(self, kind: Literal["checkpoint", "handoff"]) -> str:
        return document_key(self.fence.chain, self.uid, kind, self.fence.ordinal, self.mark)

    def _save(self, kind: Literal["checkpoint", "handoff"], text: str) -> str:
        """Writes a document, then points at it: a crash in between costs a rewrite and never a lie. Its digest."""
        documents, key, written = self.world.documents, self._key(kind), digest(text)
        documents.write(key, text)
        reached(f"{kind}.written")
        if digest(documents.read(key)) != written:
            raise DamagedDocument(f"results storage: {key} was read back with other bytes than were written")
        document = Document(kind, self.fence.ordinal, key, written, len(text.encode()))
        self.world.ledger.record_document(self.fence, document)
        return written

    def _save_handoff(self, markdown: str) -> None:
        self._save("handoff", markdown)
        self.world.saved_work.backup(self._key("handoff"), markdown)

    def _back_up(self, checkpoint: str) -> None:
        self.world.saved_work.backup(self._key("checkpoint"), checkpoint)
        self.agent.backup(checkpoint)

    def _prune(self) -> None:
        # Rows first: a document that no row points at does not exist, but a row must never point at nothing.
        for key in self.world.ledger.forget_checkpoints(self.fence, self.world.keep_checkpoints):
            self.world.documents.delete(key)

    def _commit(self, end: Ending, checkpoint: str | None, named: list[Path]) -> str | None:
        named += self.agent.commit_changes()
        if not named:
            return None
        message = commit_message(self.world.ledger.sessions(self.fence.chain)[-1], self.fence, end, checkpoint)
        return self.world.saved_work.commit(named, message, refusal(self.world.redactor))

    def _handoff(self, end: Ending, steps: Steps, commit: str | None, checkpoint: str | None) -> Handoff:
        ledger, now = self.world.ledger, self.world.clock.now()
        foreseen = None
        with suppress(Exception):  # no handoff is to be lost for an outlook
            chain = ledger.chain(self.fence.chain)
            foreseen = outlook(ledger, chain, self.monitor.budget, now, self.monitor.forecasts)
        this = replace(
            ledger.sessions(self.fence.chain)[-1],
            state=end.session,
            stop_reason=end.reason.code,
            stop_message=end.reason.message,
            ended_at=now,
            graceful=True,
            limits=limits_now(self.monitor.readings()),
            passed_over=self.passed_over,
            choices=self.choices,
        )
        return handoff_now(
            ledger,
            this,
            self.fence.chain,
            self.task,
            chain_status=end.chain,
            resume_at=end.reason.resume_at,
            calibration=calibration_of(self.monitor.forecasts),
            resumed=self.resumed,
            failed_steps=steps.failures(),
            commit=commit,
            checkpoint=checkpoint,
            outlook=foreseen,
            # One that was announced for this moment is not the one that begins later.
            next_run_id=self._next_run() if end.goes_on and end.reason.resume_at is None else None,
        )

    def _said(self, handoff: Handoff) -> tuple[Handoff, str]:
        return handoff, masked_markdown(handoff, self.world.redactor)

    def _ask_agent(self, handoff: Handoff) -> Handoff:
        changed = self.agent.create_handoff(handoff.model_copy(deep=True))
        if not isinstance(changed, Handoff):
            raise InvalidInput.of("create_handoff", changed, "the Handoff, changed or not")
        return changed

    def _publish(self, handoff: Handoff, end: Ending) -> None:
        # By now the follow-on has a run, and a person may have wanted another end.
        known: dict[str, object] = {"next_run_id": self._next_run() if end.goes_on else None}
        if end.session != handoff.state:
            known |= {
                "state": end.session,
                "stop_reason": end.reason.code,
                "stop_message": end.reason.message,
                "chain_status": end.chain,
                "resume_at": None,
            }
        publish(handoff.model_copy(update=known), self.world.saved_work, self.world.redactor)

    def _next_run(self) -> str | None:
        return next_run(self.world.ledger, self.fence.chain, self.fence.ordinal)

    def _heard_last(self, end: Ending) -> Ending:
        """The end, unless a person has wanted another one while the session was ending."""
        reason = self.stop.reason
        if end.goes_on and reason is not None and reason.code in ("cancelled", "paused"):
            return self._ending(reason)
        return end

    def _close(self, end: Ending, steps: Steps) -> None:
        world, fence = self.world, self.fence
        if steps.complete:  # one that was cut short says nothing of the next
            self.monitor.shut_down(self.agent.drain_spent(), sum(step["seconds"] for step in steps.record))
        follow_on = self.follow_on(self.uid, fence, end.reason.resume_at) if end.goes_on and self.follow_on else None
        closing = Closing(
            state=end.session,
            stop=end.reason,
            graceful=True,
            chain_status=end.chain,
            limits=limits_now(self.monitor.readings()),
            steps=steps.record,
            follow_on=follow_on,
            forecasts=self.monitor.state(),
            passed_over=self.passed_over,
            choices=self.choices,
        )
        world.ledger.close_session(fence, closing)
        runs = world.runs
        if self.follow_on is not None and runs is not None:
            # What cannot be created now stays in the outbox for whoever comes by next.
            patience = Patience(FOLLOW_ON_SECONDS, world.clock)
            steps.last("follow_on", lambda: create_follow_ons(world.ledger, runs, fence.chain, patience))
