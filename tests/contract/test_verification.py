"""Verifying a chain on every database: each thing that can be wrong is named, and repaired where it can be."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from postgres_server import address_of
from sqlalchemy import text
from support import FakeClock, LedgerFactory, claim, close, commit_unit, item_in, one_line, open_session

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.errors import StorageError, Superseded, UnknownChain
from perpetual_blocks.session.backup import Indexes, back_up
from perpetual_blocks.session.consistency import ChainFacts, ItemFacts, Problem, SessionFacts, find_wrong_rows
from perpetual_blocks.session.documents import checkpoint_now, unit_key
from perpetual_blocks.session.ledger import Document, Fence
from perpetual_blocks.session.verification import Verification
from perpetual_blocks.testing import MemoryDocuments
from perpetual_blocks.work import ItemStatus, Outcome, WorkItem

DATABASES = ("sqlite-file", "postgres")


class MemoryOutcomes:
    """Outcomes in a dictionary."""

    def __init__(self) -> None:
        self.content: dict[str, Outcome] = {}

    def read(self, key: str) -> Outcome:
        if key not in self.content:
            raise StorageError(f"results storage: cannot read {key}: it is not there")
        return self.content[key]


@dataclass
class House:
    """A chain with two sessions behind it, and everything that its rows point at."""

    ledger: SqlLedger
    clock: FakeClock
    documents: MemoryDocuments = field(default_factory=MemoryDocuments)
    backup: MemoryDocuments = field(default_factory=MemoryDocuments)
    outcomes: MemoryOutcomes = field(default_factory=MemoryOutcomes)

    def build(self) -> None:
        """Five items: one completed, one half done, one available, two blocked."""
        fence = open_session(self.ledger).fence
        work = [WorkItem(id="done"), WorkItem(id="half"), WorkItem(id="open")]
        waits = [WorkItem(id="waits", depends_on=("done", "half")), WorkItem(id="last", depends_on=("waits",))]
        self.ledger.add_items("mine", [*work, *waits])
        self.unit(fence, done=True)
        self.end(fence)
        fence = open_session(self.ledger, holder="second").fence
        self.unit(fence, done=False)
        self.end(fence)

    def unit(self, fence: Fence, *, done: bool) -> None:
        item = claim(self.ledger, fence)
        key = unit_key("mine", self.ledger.chain("mine").uid, item)
        outcome = Outcome(done=done, usage={"tokens": 0.1, "seconds": 1.0, "memory": 5.0})
        self.outcomes.content[key] = outcome
        commit_unit(self.ledger, fence, item, outcome, key, {"tokens": 0.1, "seconds": 1.0})

    def end(self, fence: Fence) -> None:
        checkpoint = checkpoint_now(self.ledger, fence.chain, fence.ordinal, "Test.", self.clock.now()).text()
        for kind, words in (("checkpoint", checkpoint), ("handoff", "# Handoff\n")):
            key = f"{kind}s/{fence.ordinal}"
            self.documents.write(key, words)
            self.backup.write(key, words)
            self.ledger.record_document(fence, Document(kind, fence.ordinal, key, digest(words), len(words)))  # type: ignore[arg-type]
        back_up(self.ledger, self.backup, fence)
        close(self.ledger, fence)

    def verification(self, **parts: Any) -> Verification:
        given = {
            "ledger": self.ledger,
            "documents": self.documents,
            "outcomes": self.outcomes,
            "backup": self.backup,
            "chain": "mine",
        }
        return Verification(**{**given, **parts})

    def problems(self) -> list[Problem]:
        return list(self.verification().problems())

    def execute(self, statement: str, **values: Any) -> None:
        """Raw SQL, past everything that keeps the ledger whole."""
        with self.ledger._writing() as connection:
            connection.execute(text(statement), values)


@pytest.fixture(params=DATABASES)
def house(request: pytest.FixtureRequest, make_ledger: LedgerFactory, clock: FakeClock) -> House:
    """A chain that is whole."""
    built = House(make_ledger(address_of(request.param, request)), clock)
    built.build()
    return built


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_whole_chain(house: House) -> None:
    """Nothing is wrong with a chain that nobody has harmed, and all of it was looked at."""
    verification = house.verification()

    assert list(verification.problems()) == []
    checked = verification.checked
    # The chain, two sessions, five items; two checkpoints, two handoffs, an index and two segments; two results.
    assert (checked.rows, checked.documents, checked.results, checked.notes) == (8, 7, 2, [])


def test_an_unknown_chain(house: House) -> None:
    """A name that the ledger does not have is refused."""
    with pytest.raises(UnknownChain):
        list(house.verification(chain="ghost").problems())


BROKEN: dict[str, tuple[str, str, str, bool]] = {
    # name: the SQL; what is broken, and where; whether it can be repaired
    "blockers": ("UPDATE items SET blockers = 7 WHERE id = 'waits'", "blockers", "item waits", True),
    "free": ("UPDATE items SET blockers = 0, status = 'available' WHERE id = 'waits'", "blockers", "item waits", True),
    "too free": ("UPDATE items SET status = 'available' WHERE id = 'waits'", "blockers", "item waits", True),
    "stuck": ("UPDATE items SET status = 'blocked' WHERE id = 'open'", "blockers", "item open", True),
    "claim": (
        "UPDATE items SET status = 'claimed', claimed_by = 1 WHERE id = 'open'",
        "claim",
        "item open",
        True,
    ),
    "nobody's": ("UPDATE items SET status = 'claimed' WHERE id = 'open'", "claim", "item open", True),
    "left over": ("UPDATE items SET claimed_by = 2 WHERE id = 'open'", "claim", "item open", True),
    "status": ("UPDATE items SET status = 'lost' WHERE id = 'open'", "item status", "item open", False),
    "no result": ("UPDATE items SET result_key = NULL WHERE id = 'done'", "result", "item done", False),
    "chain": ("UPDATE chains SET status = 'lost'", "chain status", "chain mine", False),
    "owner": ("UPDATE chains SET status = 'running', holder = 'x'", "owner", "chain mine", False),
    "holder": ("UPDATE chains SET holder = 'x'", "owner", "chain mine", False),
    "running": ("UPDATE sessions SET state = 'Running' WHERE ordinal = 1", "owner", "chain mine", False),
    "two running": ("UPDATE sessions SET state = 'Running'", "running sessions", "chain mine", False),
    "gap": ("DELETE FROM sessions WHERE ordinal = 1", "ordinals", "chain mine", False),
    "beyond": ("UPDATE sessions SET ordinal = 5 WHERE ordinal = 2", "ordinals", "chain mine", False),
    "state": ("UPDATE sessions SET state = 'Lost' WHERE ordinal = 2", "session state", "session 2", False),
    "units": ("UPDATE sessions SET units = 0 WHERE ordinal = 1", "session units", "session 1", False),
    "amount": (
        "UPDATE usage SET amount = 5 WHERE resource = 'tokens' AND session = 1",
        "session usage",
        "session 1",
        False,
    ),
    "context": ("UPDATE chains SET context = '[1]'", "context", "chain mine", False),
    "tally": ("UPDATE tallies SET completed = 4", "tally", "items of kind default", True),
    "no tally": ("DELETE FROM tallies", "tally", "items of kind default", True),
    "more kinds": ("UPDATE items SET kind = 'other' WHERE id = 'open'", "tally", "items of kind other", True),
    "dependency": ("UPDATE dependencies SET depends_on = 'ghost'", "dependency", "item waits", False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_rule_is_named(house: House, name: str) -> None:
    """Whatever is changed behind the ledger's back is found, with its place; repaired, the chain is whole again."""
    statement, what, where, repairable = BROKEN[name]
    if name == "dependency":
        statement += " WHERE depends_on = 'half'"
    house.execute(statement)

    problems = house.problems()

    assert (what, where) in [(problem.what, problem.where) for problem in problems]
    assert all("\n" not in problem.found for problem in problems)
    repaired = house.verification().repair(problems)
    assert bool(repaired) is repairable
    if repairable:
        assert repaired == problems
        assert house.problems() == []


def test_what_is_no_json_is_found(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """SQLite takes any text for JSON; the rows that would stop a session are named, and do not stop the check."""
    house = House(make_ledger(), clock)
    house.build()
    house.execute("UPDATE chains SET context = '{half'")
    house.execute("UPDATE items SET payload = 'nonsense' WHERE id = 'open'")
    house.execute("UPDATE sessions SET usage = '{\"tokens\": ' WHERE ordinal = 1")
    house.execute("UPDATE items SET blockers = 7 WHERE id = 'waits'")

    problems = house.problems()

    assert [(one.what, one.where, one.found) for one in problems if one.what == "json"] == [
        ("json", "chains mine", "context is no JSON"),
        ("json", "sessions 1", "usage is no JSON"),
        ("json", "items open", "payload is no JSON"),
    ]
    assert [one.where for one in house.verification().repair(problems)] == ["item waits"]


def test_a_chain_at_work_is_left_alone(house: House) -> None:
    """A claim of the session that is at work is as it should be, and nothing of its chain is repaired meanwhile."""
    fence = open_session(house.ledger, holder="third").fence
    claim(house.ledger, fence)
    house.execute("UPDATE items SET blockers = 7 WHERE id = 'waits'")
    document = house.ledger.documents("mine", "handoff")[0]
    verification = house.verification()

    problems = list(verification.problems())

    assert ([problem.what for problem in problems], verification.working) == (["blockers"], True)
    with pytest.raises(Superseded) as refused:
        verification.repair(problems)
    one_line(refused.value, "a session of mine is at work")
    with pytest.raises(Superseded):
        house.ledger.forget_document("mine", document)
    assert house.ledger.documents("mine", "handoff")[0] == document


def test_a_dead_sessions_claim_is_its_own_until_it_is_buried(house: House) -> None:
    """A session whose process died is still the chain's owner: whoever comes next takes over, and nothing is wrong."""
    claim(house.ledger, open_session(house.ledger, holder="third").fence)
    house.clock.advance(1000)

    verification = house.verification()
    assert list(verification.problems()) == []
    assert not verification.working


def whole(**changes: Any) -> ChainFacts:
    """Facts of a chain with one session, of which nothing is wrong."""
    facts = ChainFacts(
        name="mine",
        uid="0",
        status="waiting",
        ordinal=1,
        holder=None,
        context="{}",
        working=False,
        sessions=[SessionFacts(ordinal=1, state="Wrapped", holder="x", usage="{}")],
        items=[],
    )
    return replace(facts, **changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"outbox": [1, 2, 2]}, [("outbox", "is there 2 times; expected once")]),
        ({"context": "null"}, [("context", "got null; expected a JSON object")]),
        ({"sessions": [], "ordinal": 0}, []),
        ({"sessions": []}, [("ordinals", "session 1 is missing; expected 1 to 1")]),
    ],
)
def test_facts_alone_decide(changes: dict[str, Any], found: list[tuple[str, str]]) -> None:
    """What no database lets in is found too, should one ever let it in."""
    assert [(problem.what, problem.found) for problem in find_wrong_rows(whole(**changes))] == found


@pytest.mark.parametrize("status", ItemStatus)
def test_blockers_hold_for_every_status(status: ItemStatus) -> None:
    """Only what waits for something is blocked, and whatever waits for nothing may be taken."""
    by = 1 if status is ItemStatus.CLAIMED else None
    running = [SessionFacts(ordinal=1, state="Running", holder="x", usage="{}")]
    at_work = {"sessions": running, "status": "running", "holder": "x"} if by else {}

    completed = int(status is ItemStatus.COMPLETED)

    def wrong(waits_for: int) -> bool:
        item = ItemFacts(
            id="a",
            kind="default",
            status=status,
            blockers=waits_for,
            waits_for=waits_for,
            claimant="mine" if by else None,
            claimed_by=by,
            units=0,
            result_key=None,
        )
        return bool(list(find_wrong_rows(whole(items=[item], tallies={"default": (1, completed)}, **at_work))))

    assert (wrong(0), wrong(1)) == (status is ItemStatus.BLOCKED, status is ItemStatus.AVAILABLE)


# Documents and results ------------------------------------------------------------------------------------------------


def lose(storage: MemoryDocuments, key: str) -> None:
    storage.delete(key)


def change(storage: MemoryDocuments, key: str) -> None:
    storage.content[key] = storage.content[key][:-1] + b"?"


@pytest.mark.parametrize("harm", [lose, change])
@pytest.mark.parametrize("kind", ["checkpoint", "handoff"])
def test_a_damaged_document_is_copied_back(
    house: House, harm: Callable[[MemoryDocuments, str], None], kind: str
) -> None:
    """A missing or changed document is named, and comes back from the backup storage with every byte."""
    before = dict(house.documents.content)
    harm(house.documents, f"{kind}s/1")

    [problem] = house.problems()
    assert (problem.what, problem.where, problem.repair) == (kind, f"{kind} of session 1", "copy")
    assert house.verification().repair([problem]) == [problem]

    assert house.documents.content == before
    assert house.problems() == []


@pytest.mark.parametrize("harm", [lose, change])
def test_a_document_that_is_nowhere_whole_is_forgotten(
    house: House, harm: Callable[[MemoryDocuments, str], None]
) -> None:
    """Where the backup storage has it no better, the row goes, and the checkpoint before it serves."""
    for storage in (house.documents, house.backup):
        harm(storage, "checkpoints/2")

    [problem] = house.problems()
    assert problem.repair == "forget"
    house.verification().repair([problem])

    assert [document.ordinal for document in house.ledger.documents("mine", "checkpoint")] == [1]
    assert house.problems() == []


@pytest.mark.parametrize("what", ["index", "part"])
def test_a_damaged_backup_is_begun_anew(house: House, what: str) -> None:
    """A backup of which something is lost is named; repaired, the next session begins a new one."""
    index = Indexes.of(house.backup, "mine")
    assert index.newest is not None
    key = next(iter(index.found)) if what == "index" else next(index.newest.parts()).key
    house.backup.delete(key)

    [problem] = house.problems()
    assert (problem.what, problem.where, problem.repair) == ("backup", "backup of session 2", "forget")
    assert key in problem.found
    house.verification().repair([problem])
    assert house.problems() == []

    fence = open_session(house.ledger, holder="third").fence
    assert len(back_up(house.ledger, house.backup, fence).segments) == 1
    close(house.ledger, fence)
    assert house.problems() == []


def test_a_backup_that_cannot_be_seen_is_said(house: House) -> None:
    """Without the backup storage the rest is checked all the same, and a note says what was not."""
    verification = house.verification(backup=None)

    assert list(verification.problems()) == []
    assert verification.checked.notes == ["the backup of session 2 was not looked at: this store has no backup storage"]


def test_a_lost_result_is_told_with_who_made_it(house: House) -> None:
    """A result that is gone cannot be made again: its unit, session and flow run are named, and the item stays."""
    house.outcomes.content.pop(item_in(house.ledger, "done").result_key or "")

    [problem] = house.problems()

    assert (problem.what, problem.where, problem.repair) == ("result", "item done, unit 1", None)
    assert "session 1 of mine made it in flow run run-of-first" in problem.found
    assert "the result is lost" in problem.advice
    assert house.verification().repair([problem]) == []
    assert item_in(house.ledger, "done").status is ItemStatus.COMPLETED


def test_a_result_of_another_unit_is_told(house: House) -> None:
    """A completed item's result must say that it is done, and an open one's that it goes on."""
    keys = [item_in(house.ledger, item).result_key or "" for item in ("done", "half")]
    first, second = (house.outcomes.content[key] for key in keys)
    house.outcomes.content = {keys[0]: second, keys[1]: first}

    assert [(problem.where, "is of another unit" in problem.found) for problem in house.problems()] == [
        ("item done, unit 1", True),
        ("item half, unit 1", True),
    ]


def test_progress_is_told(house: House) -> None:
    """Whoever waits for a long check hears how many results have been read, and of how many."""
    told: list[tuple[int, int]] = []

    list(house.verification().problems(lambda done, total: told.append((done, total))))

    assert told == [(1, 2), (2, 2)]


def test_results_are_read_page_by_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many items there are, each result is read once."""
    monkeypatch.setattr("perpetual_blocks.session.verification.RESULTS_PAGE", 1)
    verification = house.verification()

    list(verification.problems())

    assert verification.checked.results == 2


def test_a_document_that_a_session_lets_go_of_meanwhile_is_no_problem(house: House) -> None:
    """A running session forgets old checkpoints and deletes them: what is gone with its row was not damaged."""

    class Pruned(MemoryDocuments):
        """Loses a checkpoint, and its row, when it is read."""

        def read(self, key: str) -> str:
            if key == "checkpoints/1":
                house.execute("DELETE FROM documents WHERE key = 'checkpoints/1'")
                self.delete(key)
            return super().read(key)

    documents = Pruned()
    documents.content = house.documents.content

    assert list(house.verification(documents=documents).problems()) == []
