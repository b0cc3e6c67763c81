"""The form of a run whose chain's total is gone: the run is suspended with it, and reads the answer when it is resumed.

A suspended run has no process. Resumed, it starts from its top: it records what was decided, and ends; the session that
follows is a flow run of its own, as any other.
"""

from contextlib import suppress
from typing import Any, Literal

from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field, create_model

from perpetual_blocks.adapters.prefect_runs import OwnRun, PrefectRuns
from perpetual_blocks.clock import isoformat, show_time
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.handoff.markup import bar
from perpetual_blocks.session.approval import Approval, Decision
from perpetual_blocks.session.asking import Question, Total, question, rounded_up
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.follow_on import create_follow_ons
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.telemetry import Moment, SessionStarted
from perpetual_blocks.usage import OURS, RESOURCES, show, show_duration

MORE, FINISH_UNIT, STOP = "more", "finish this unit", "stop"
DECISIONS = {MORE: Decision.MORE, FINISH_UNIT: Decision.FINISH_UNIT, STOP: Decision.STOP}

MOST_TOTALS = 2
"""For so many totals that are gone at once the form has a field; the page shows no more beside the decision."""

BAR = 12


def ask(
    ledger: Ledger, runs: PrefectRuns, own: OwnRun, chain: str, ordinal: int, manners: Manners
) -> State[Any] | None:
    """Suspends the run of a session that has ended as Exhausted, with the form; None where nobody is to be asked."""
    asked, now = question(ledger, ledger.chain(chain), ledger.now()), ledger.now()
    if not manners.ask_hours or asked is None:
        return None
    until = now + 3600 * manners.ask_hours
    if not ledger.ask(chain, ordinal, until):
        return None
    names = " and ".join(total.resource for total in asked.totals)
    why = f"the total of {names} is used up: Resume asks what is to become of {chain}"
    return runs.ask(own.id, _key(ordinal), form(asked).model_json_schema(), text(asked, until), why)


def answered(ledger: Ledger, runs: PrefectRuns, own: OwnRun, chain: str) -> State[Any] | None:
    """Records what somebody has decided in this run's form; the state that the run then ends in.

    None for a run without an answer, and for one whose recorded answer has left the chain as it was: a person who
    starts that again wants a session.
    """
    sessions = []
    with suppress(UnknownChain):
        sessions = ledger.sessions(ledger.chain(chain).name)
    asked = [one.ordinal for one in sessions if one.flow_run_id == own.id and one.state is SessionState.EXHAUSTED]
    answer = runs.answer(own.id, _key(asked[-1])) if asked else None
    if answer is None:
        return None
    session, key = asked[-1], f"{own.id}/{asked[-1]}"
    if any(one.key == key and not one.goes_on for one in ledger.chain(chain).approvals):
        return None
    try:
        approval = _approval(ledger, answer, chain, session, key)
        stands = ledger.approve(chain, approval)
    except InvalidInput as refused:
        row = ledger.chain(chain)
        is_gone = (row.status, row.ordinal) == (ChainStatus.EXHAUSTED, session)
        how = f"; `perpetual approve {chain}` lets it go on" if is_gone else ""
        return Completed(name="Exhausted" if is_gone else "Superseded", message=f"{refused}{how}")
    if not approval.goes_on:
        return Completed(name="Exhausted", message=stands.reason)
    with suppress(Exception):  # it stays in the outbox for whoever comes by next
        create_follow_ons(ledger, runs, chain)
    return Completed(name="Wrapped", message=f"{approval}; session {session + 1} goes on")


class Withdrawal:
    """Ends the run that waits for a decision when another run goes on with its chain: an observer."""

    def __init__(self, ledger: Ledger, runs: PrefectRuns, own: OwnRun) -> None:
        self._ledger = ledger
        self._runs = runs
        self._own = own

    def __call__(self, moment: Moment) -> None:
        if not isinstance(moment, SessionStarted) or moment.ordinal < 2:
            return
        before = self._ledger.sessions(moment.chain)[moment.ordinal - 2]
        if before.state is SessionState.EXHAUSTED and before.flow_run_id not in (None, self._own.id):
            why = f"session {moment.ordinal} of {moment.chain} goes on in another run"
            self._runs.end_suspended(before.flow_run_id or "", "Superseded", why)


def form(asked: Question) -> type[BaseModel]:
    """The form's fields: the decision, and how much more of each total."""
    can_finish = all(total.lacking is not None for total in asked.totals)
    choices = tuple(DECISIONS) if can_finish else (MORE, STOP)
    fields: dict[str, Any] = {
        "decision": (
            Literal[choices],
            # Without a default: nothing is spent by a click on Resume, and Prefect does not keep an empty answer.
            Field(title="Decision"),
        )
    }
    for total in asked.totals[:MOST_TOTALS]:
        unit = RESOURCES[total.resource].unit
        whole = total.resource in OURS and total.resource != "cost"
        least = 1 if whole else rounded_up(total.resource, total.most / 1e6)
        fields[_field(total.resource)] = (
            int if whole else float,
            Field(
                default=int(total.suggested) if whole else total.suggested,
                ge=least,
                le=int(total.most) if whole else total.most,
                title=f"How much more: {total.resource}",
                description=f"With the decision {MORE}: {unit}, at most {show(total.resource, total.most)}.",
            ),
        )
    return create_model("Approval", __config__=ConfigDict(extra="forbid"), **fields)


def text(asked: Question, until: float) -> str:
    """What is to be known for the decision, as Markdown for a narrow page; links are relative to the run's page."""
    chain, tag = asked.chain, f"chain:{asked.chain}"
    parts = [
        f"## {chain} has used up its total of {' and '.join(total.resource for total in asked.totals)}",
        f"**{asked.done:,} of {asked.items:,} items are done**, in {asked.session:,} "
        f"session{'s' if asked.session > 1 else ''}; everything is saved.",
        _table(asked.totals),
        "\n".join(_choices(asked)),
        f"Without a decision by {show_time(isoformat(until) or '')} it stays exhausted; `perpetual approve {chain}` "
        "lets it go on at any time.",
        f"[handoff](../../artifacts/key/handoff-{chain}) · [all runs of this chain](../../runs?tags={tag}&tag={tag})",
    ]
    return "\n\n".join(parts)


def _table(totals: tuple[Total, ...]) -> str:
    rows = ["| in all | | used |", "| --- | --- | ---: |"]
    for total in totals:
        share = total.used / total.amount
        used, amount = show(total.resource, total.used), show(total.resource, total.amount)
        before = f", {show(total.resource, total.granted)} of it approved" if total.granted else ""
        rows.append(f"| {total.resource} | `{bar(share, BAR)}` {share:.0%} | {used} of {amount}{before} |")
    return "\n".join(rows)


def _choices(asked: Question) -> list[str]:
    more = [_rest(total) for total in asked.totals if total.rest is not None]
    takes = f"all that is left probably takes {', '.join(more)}" if more else "what all that is left takes is not known"
    time = f", in about {show_duration(asked.rest_seconds)}" if more and asked.rest_seconds else ""
    lines = [f"- **{MORE}**: {takes}{time}"]
    try:
        needs = ", ".join(show(name, amount) for name, amount in asked.for_one_unit().items())
        lines.append(f"- **{FINISH_UNIT}**: the next, of `{asked.item}`, needs about {needs} more")
    except InvalidInput:
        lines.append(f"- the next unit, of `{asked.item}`, needs more than may be approved at once")
    return [*lines, f"- **{STOP}**: it stays as it is"]


def _rest(total: Total) -> str:
    half, nine = (rounded_up(total.resource, amount) for amount in total.rest or (0.0, 0.0))
    longer = f" (in 9 of 10 futures at most {show(total.resource, nine)})" if nine > 1.05 * half else ""
    return f"{show(total.resource, half)} more{longer}"


def _approval(ledger: Ledger, answer: dict[str, Any], chain: str, session: int, key: str) -> Approval:
    """What was answered.

    Raises:
        InvalidInput: it is no answer to what was asked.
    """
    decision = DECISIONS.get(answer["decision"])
    if decision is None:
        raise InvalidInput.of("decision", answer["decision"], f"one of {', '.join(DECISIONS)}")
    amounts: dict[str, float] = {}
    if decision is not Decision.STOP:
        asked = question(ledger, ledger.chain(chain), ledger.now())
        totals = asked.totals[:MOST_TOTALS] if asked is not None else ()
        amounts = {
            total.resource: answer[_field(total.resource)] for total in totals if _field(total.resource) in answer
        }
        if decision is Decision.FINISH_UNIT and asked is not None:
            amounts = asked.for_one_unit()
    return Approval(decision=decision, session=session, by="form", key=key, amounts=amounts)


def _field(resource: str) -> str:
    return f"more_{resource}"


def _key(ordinal: int) -> str:
    return f"session-{ordinal}"
