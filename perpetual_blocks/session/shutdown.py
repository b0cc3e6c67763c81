"""The end of a session: six steps in order, each with a record, and a deadline where it is not essential.

1. finish the running units (the loop has; the agent may flush what they left in memory)
2. save state: the checkpoint is written, read back, compared, and then pointed at
3. back up: the checkpoint is copied to a second storage; the oldest checkpoints are let go
4. commit the agent's work to git
5. the handoff document
6. close the session and record the follow-on, in one transaction; then create it

1, 3, 4 and 5 are best effort: what fails is written into the handoff and the session's record. 2 and 6 are essential:
where they fail, the session fails and the last good state stands.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from perpetual_blocks.budget import BudgetMonitor
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.errors import DamagedDocument, InvalidInput
from perpetual_blocks.faults import reached
from perpetual_blocks.handoff import Handoff, to_markdown
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.continuation import Ending, ending
from perpetual_blocks.session.documents import chain_folder, checkpoint_now, handoff_now, limits_now
from perpetual_blocks.session.follow_on import create_follow_ons, jitter
from perpetual_blocks.session.planning import outlook
from perpetual_blocks.session.ports import Closing, Document, Fence, FollowOn
from perpetual_blocks.session.steps import Steps
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import StepFailed

FOLLOW_ON_SECONDS = 45.0
"""For how long the creation of a follow-on is tried again; less than a step may take."""

FollowOnMaker = Callable[[str, Fence, float | None], FollowOn]
"""Makes the follow-on of a session, given the chain's uid, the fence, and when it is to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Ends one session in order.

    Attributes:
        resumed: What was found when the session started, for the handoff.
        follow_on: None where the run has no deployment that could go on.
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

    def run(self, reason: StopReason) -> Ending:
        """Runs the steps.

        Raises:
            Fenced: another session has taken over.
            StorageError: the checkpoint could not be saved.
            LedgerError: the session could not be closed.
        """
        world, fence = self.world, self.fence
        steps = Steps(world.clock, lambda step, error: world.tell(StepFailed(fence.chain, step, error)))
        steps.best_effort("finish_unit", self.agent.finish_unit)
        if reason.resume_at is not None:
            wait = max(0.0, reason.resume_at - world.clock.now())
            reason = replace(reason, resume_at=reason.resume_at + jitter(self.uid, wait))
        end = ending(reason, world.ledger.counts(fence.chain))
        checkpoint = checkpoint_now(world.ledger, fence, self.task, world.clock.now()).text()
        key = steps.essential("save_state", lambda: self._save("checkpoint", checkpoint))
        steps.best_effort("backup", lambda: self._back_up(key, checkpoint))
        steps.best_effort("prune", self._prune)
        commit = steps.best_effort("commit_changes", lambda: self._commit(end))
        handoff = self._handoff(end, steps, commit)
        markdown = steps.best_effort("create_handoff", lambda: to_markdown(self._ask_agent(handoff)))
        if markdown is None:
            # Whatever the agent's hook does, there is a handoff, and it says what the hook did.
            markdown = to_markdown(handoff.model_copy(update={"steps": steps.failures()}))
        steps.best_effort("handoff", lambda: self._save("handoff", markdown))
        steps.best_effort("publish", lambda: self._publish(markdown, end))
        self._close(end, steps)
        steps.best_effort("cleanup", self.agent.cleanup)
        return end

    def _save(self, kind: Literal["checkpoint", "handoff"], text: str) -> str:
        """Writes a document, then points at it: a crash in between costs a rewrite and never a lie."""
        suffix = "json" if kind == "checkpoint" else "md"
        key = f"{chain_folder(self.fence.chain, self.uid)}/{kind}s/{self.fence.ordinal:06d}.{suffix}"
        documents, written = self.world.documents, digest(text)
        documents.write(key, text)
        reached(f"{kind}.written")
        if digest(documents.read(key)) != written:
            raise DamagedDocument(f"results storage: {key} was read back with other bytes than were written")
        document = Document(kind, self.fence.ordinal, key, written, len(text.encode()))
        self.world.ledger.record_document(self.fence, document)
        return key

    def _back_up(self, key: str, checkpoint: str) -> None:
        self.world.saved_work.backup(key, checkpoint)
        self.agent.backup(checkpoint)

    def _prune(self) -> None:
        # Rows first: a document that no row points at does not exist, but a row must never point at nothing.
        for key in self.world.ledger.forget_checkpoints(self.fence, self.world.keep_checkpoints):
            self.world.documents.delete(key)

    def _commit(self, end: Ending) -> str | None:
        paths = list(self.agent.commit_changes())
        if not paths:
            return None
        chain, ordinal = self.fence.chain, self.fence.ordinal
        trailers = f"Perpetual-Chain: {chain}\nPerpetual-Session: {ordinal}\nPerpetual-Stop: {end.reason.code}"
        return self.world.saved_work.commit(paths, f"{chain}: work of session {ordinal}\n\n{trailers}\n")

    def _handoff(self, end: Ending, steps: Steps, commit: str | None) -> Handoff:
        ledger, now = self.world.ledger, self.world.clock.now()
        foreseen = None
        with suppress(Exception):  # no handoff is to be lost for an outlook
            foreseen = outlook(ledger, ledger.chain(self.fence.chain), self.monitor.budget, now)
        return handoff_now(
            ledger,
            self.fence,
            self.task,
            now,
            end,
            self.monitor,
            passed_over=self.passed_over,
            choices=self.choices,
            resumed=self.resumed,
            failed_steps=steps.failures(),
            commit=commit,
            outlook=foreseen,
        )

    def _ask_agent(self, handoff: Handoff) -> Handoff:
        changed = self.agent.create_handoff(handoff.model_copy(deep=True))
        if not isinstance(changed, Handoff):
            raise InvalidInput.of("create_handoff", changed, "the Handoff, changed or not")
        return changed

    def _publish(self, markdown: str, end: Ending) -> None:
        self.world.saved_work.publish(self.fence.chain, self.fence.ordinal, markdown, end.reason.message)

    def _close(self, end: Ending, steps: Steps) -> None:
        world, fence = self.world, self.fence
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
        if follow_on is not None and runs is not None:
            # What cannot be created now stays in the outbox for whoever comes by next.
            patience = Patience(FOLLOW_ON_SECONDS, world.clock)
            steps.best_effort("follow_on", lambda: create_follow_ons(world.ledger, runs, fence.chain, patience))
