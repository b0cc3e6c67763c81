"""What a chain's rows must be among themselves: decided from facts alone."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.usage import RESOURCES
from perpetual_blocks.work import ItemStatus

TOLERANCE = 1e-6  # of an amount: sums of floating-point numbers depend on their order


# What is known --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """A session's row, and what the account says of it.

    Attributes:
        usage: As JSON text.
        spent: The sum of its usage rows, by resource.
        finished: How many units its usage rows say that it finished.
    """

    ordinal: int
    state: str
    holder: str
    usage: str
    units: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    finished: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """An item's row, as far as others must agree with it.

    Attributes:
        waits_for: How many of its dependencies are not completed.
    """

    id: str
    kind: str
    status: str
    blockers: int
    waits_for: int
    claimant: str | None
    claimed_by: int | None
    units: int
    result_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFacts:
    """A chain's rows, as they were at one moment.

    Attributes:
        working: Whether a session is at work, its lease running.
        context: As JSON text.
        items: They are read while they are asked for.
        outbox: The ordinals of the follow-ons, each as often as it is there.
        lost_dependencies: Items that depend on one that is not there, with its id.
        not_json: Where a column of JSON holds something else: table, row, column.
        others_at_work: Sessions of other chains that work on its queue: their chains and ordinals.
        tallies: By kind, how many items are said to have been added, and how many of them to be completed.
    """

    name: str
    uid: str
    status: str
    ordinal: int
    holder: str | None
    context: str
    working: bool
    sessions: Sequence[SessionFacts]
    items: Iterable[ItemFacts]
    outbox: Sequence[int] = ()
    lost_dependencies: Sequence[tuple[str, str]] = ()
    not_json: Sequence[tuple[str, str, str]] = ()
    others_at_work: Set[tuple[str, int]] = frozenset()
    tallies: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFacts:
    """Where an item's latest outcome lies."""

    item: str
    unit: int
    key: str
    completed: bool


# What is wrong --------------------------------------------------------------------------------------------------------

Repair = Literal["recount", "tally", "give back", "copy", "forget"]

REPAIRS: dict[Repair, str] = {
    "recount": "its blockers are counted again",
    "tally": "they are counted again",
    "give back": "it is available again",
    "copy": "it is copied from the backup storage, if that has it",
    "forget": "its row is forgotten: the checkpoint before it serves, or a new backup is begun",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        what: For programs: the rule that is broken.
        where: The row or the document.
        found: One sentence: what is there, and what was expected.
        repair: What `--repair` does; None where nothing can be done by a program.
        advice: What a person may do, where a program cannot.
        target: What the repair is of: an item's id, or a document.
    """

    what: str
    where: str
    found: str
    repair: Repair | None = None
    advice: str = ""
    target: str | Document | None = None


def find_wrong_rows(facts: ChainFacts) -> Iterator[Problem]:
    """Everything in which a chain's rows contradict each other."""
    yield from _wrong_json(facts)
    yield from _wrong_chain(facts)
    for session in facts.sessions:
        yield from _wrong_session(session)
    running = {(facts.name, session.ordinal) for session in facts.sessions if session.state == SessionState.RUNNING}
    added, completed = Counter[str](), Counter[str]()
    for item in facts.items:
        added[item.kind] += 1
        completed[item.kind] += item.status == ItemStatus.COMPLETED
        yield from _wrong_item(item, running | facts.others_at_work)
    for kind in sorted({*added, *facts.tallies}):
        said, counted = facts.tallies.get(kind, (0, 0)), (added[kind], completed[kind])
        if said != counted:
            found = f"{said[0]} are said to be there, {said[1]} of them completed; there are {counted[0]}, {counted[1]}"
            yield Problem(what="tally", where=f"items of kind {kind}", found=found, repair="tally")
    for item_id, other in facts.lost_dependencies:
        yield Problem(
            what="dependency", where=f"item {item_id}", found=f"depends on {other!r}; expected an item of the chain"
        )
    for ordinal in sorted({ordinal for ordinal in facts.outbox if facts.outbox.count(ordinal) > 1}):
        yield Problem(
            what="outbox",
            where=f"follow-on {ordinal}",
            found=f"is there {facts.outbox.count(ordinal)} times; expected once",
        )


def _wrong_json(facts: ChainFacts) -> Iterator[Problem]:
    for table, row, column in facts.not_json:
        yield Problem(what="json", where=f"{table} {row}", found=f"{column} is no JSON")
    if ("chains", facts.name, "context") not in facts.not_json and _object(facts.context) is None:
        found = f"got {facts.context[:60]}; expected a JSON object"
        yield Problem(what="context", where=f"chain {facts.name}", found=found)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _wrong_chain(facts: ChainFacts) -> Iterator[Problem]:
    where = f"chain {facts.name}"
    if facts.status not in set(ChainStatus):
        expected = ", ".join(ChainStatus)
        yield Problem(what="chain status", where=where, found=f"got {facts.status!r}; expected one of {expected}")
    ordinals = [session.ordinal for session in facts.sessions]
    missing = sorted(set(range(1, facts.ordinal + 1)) - set(ordinals))
    beyond = [ordinal for ordinal in ordinals if not 1 <= ordinal <= facts.ordinal]
    if missing or beyond:
        wrong = [*(f"{n} is missing" for n in missing), *(f"{n} is beyond" for n in beyond)]
        found = f"session {', session '.join(wrong)}; expected 1 to {facts.ordinal}"
        yield Problem(what="ordinals", where=where, found=found)
    running = [session for session in facts.sessions if session.state == SessionState.RUNNING]
    if len(running) > 1:
        found = f"sessions {', '.join(str(session.ordinal) for session in running)} are running; expected one at most"
        yield Problem(what="running sessions", where=where, found=found)
    elif running and (running[0].ordinal, running[0].holder, ChainStatus.RUNNING) != (
        facts.ordinal,
        facts.holder,
        facts.status,
    ):
        found = f"session {running[0].ordinal} is running; the chain is {facts.status} at session {facts.ordinal}"
        found += "" if running[0].holder == facts.holder else ", with another owner"
        yield Problem(what="owner", where=where, found=found)
    elif not running and (facts.status == ChainStatus.RUNNING or facts.holder is not None):
        found = f"the chain is {facts.status}{', and has an owner' if facts.holder else ''}; no session is running"
        yield Problem(what="owner", where=where, found=found)


def _wrong_session(session: SessionFacts) -> Iterator[Problem]:
    where = f"session {session.ordinal}"
    if session.state not in set(SessionState):
        found = f"got {session.state!r}; expected one of {', '.join(SessionState)}"
        yield Problem(what="session state", where=where, found=found)
    if session.units < session.finished:
        found = f"counts {session.units} units; its usage is of {session.finished}"
        yield Problem(what="session units", where=where, found=found)
    usage = _object(session.usage)
    if usage is None:
        return  # it is reported as no JSON
    # A gauge has a level, and levels do not add up.
    for name in sorted({*usage, *session.spent}):
        said, counted = usage.get(name, 0.0), session.spent.get(name, 0.0)
        gauge = name in RESOURCES and RESOURCES[name].kind == "gauge"
        if not gauge and abs(said - counted) > TOLERANCE * max(1.0, abs(said), abs(counted)):
            found = f"says {said:g} {name}; its usage rows add up to {counted:g}"
            yield Problem(what="session usage", where=where, found=found)


def _wrong_item(item: ItemFacts, at_work: Set[tuple[str | None, int | None]]) -> Iterator[Problem]:
    where = f"item {item.id}"
    if item.status not in set(ItemStatus):
        expected = ", ".join(ItemStatus)
        yield Problem(what="item status", where=where, found=f"got {item.status!r}; expected one of {expected}")
        return
    waits = item.status == ItemStatus.BLOCKED
    if item.blockers != item.waits_for:
        found = f"counts {item.blockers} blockers; {item.waits_for} of its dependencies are not completed"
        yield Problem(what="blockers", where=where, found=found, repair="recount", target=item.id)
    elif item.status in (ItemStatus.BLOCKED, ItemStatus.AVAILABLE) and waits != (item.waits_for > 0):
        found = f"is {item.status}; {item.waits_for} of its dependencies are not completed"
        yield Problem(what="blockers", where=where, found=found, repair="recount", target=item.id)
    if item.status == ItemStatus.CLAIMED and (item.claimant, item.claimed_by) not in at_work:
        by = "nobody" if item.claimed_by is None else f"session {item.claimed_by} of {item.claimant}, which is over"
        found = f"is claimed by {by}"
        yield Problem(what="claim", where=where, found=found, repair="give back", target=item.id)
    elif item.status != ItemStatus.CLAIMED and item.claimed_by is not None:
        found = f"is {item.status}; session {item.claimed_by} of {item.claimant} has claimed it"
        yield Problem(what="claim", where=where, found=found, repair="give back", target=item.id)
    if item.units > 0 and item.result_key is None:
        yield Problem(what="result", where=where, found=f"has finished {item.units} units; it names no result")
