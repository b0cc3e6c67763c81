"""How a chain gets on, on a real ledger with a clock of ours; and how it is told in words."""

from typing import Any

import pytest
from support import KINDS, FakeClock, LedgerFactory, claim, close, commit_unit, finish_next, open_session

from perpetual_blocks import Budget, Limit, WorkItem
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Expectation
from perpetual_blocks.budget.plan import Pace, Work, simulate
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.session.progress import (
    FORESEEN_SECONDS,
    Eta,
    Level,
    Onlooker,
    Progress,
    foreseen,
)
from perpetual_blocks.session.progress_words import end_in_words, in_words, next_in_words
from perpetual_blocks.work import Outcome

BUDGET = Budget(
    Limit("calls", 20, scope="window", window="1h"),
    Limit("cost", 80, scope="total"),
    tokens=100,
    seconds=900,
    memory="2GiB",
)
UNIT = {"tokens": 20.0, "calls": 1.0, "cost": 0.5, "seconds": 10.0}


def session(ledger: SqlLedger, chain: str = "mine", holder: str = "first", budget: Budget = BUDGET) -> Fence:
    """A session at work with this budget."""
    return open_session(ledger, chain, holder, settings={"kinds": list(KINDS), "budget": budget.to_json()}).fence


def work(ledger: SqlLedger, clock: FakeClock, fence: Fence, units: int) -> None:
    """Finishes so many units, ten seconds each."""
    spent: dict[str, float] = {}
    for number in range(units):
        clock.advance(10)
        item = claim(ledger, fence)
        spent = {name: amount * (number + 1) for name, amount in UNIT.items()}
        commit_unit(ledger, fence, item, Outcome(done=True, usage=UNIT), f"key/{item.id}", spent)


@pytest.fixture
def ledger(make_ledger: LedgerFactory) -> SqlLedger:
    """With leases that outlast the tests."""
    return make_ledger(lease_seconds=10_000)


def test_levels_are_those_of_now(ledger: SqlLedger, clock: FakeClock) -> None:
    """A session's limits count its own, its time from its start; windows and totals what sessions before spent, too.
    Memory is not known outside of the process."""
    first = session(ledger)
    ledger.add_items("mine", [WorkItem(id=f"n-{n:02}") for n in range(40)], planned_by=first)
    work(ledger, clock, first, 4)
    close(ledger, first)
    second, onlooker = session(ledger, holder="second"), Onlooker(ledger, "mine", clock)
    before = {level.limit.name: level.used for level in onlooker.look().levels}
    work(ledger, clock, second, 2)

    progress = onlooker.look()

    assert before == {"calls/1h": 4, "cost/total": 2.0, "tokens": 0, "seconds": 0}
    assert {level.limit.name: level.used for level in progress.levels} == {
        "calls/1h": 6,
        "cost/total": 3.0,
        "tokens": 40,
        "seconds": 20,
    }
    assert [str(level) for level in progress.levels][:2] == [
        "6 calls of 20 calls in 1h (30%)",
        "$3.00 of $80.00 in all (4%)",
    ]
    assert progress.per_minute == 6.0
    assert (progress.session or {})["ordinal"] == 2


def test_the_end_is_foreseen_with_all_waits(ledger: SqlLedger, clock: FakeClock) -> None:
    """Of 40 units 4 are done, 20 fit into an hour, and 4 or 5 into a session: the rest takes more than an hour, and the
    session at work ends when its tokens do."""
    fence = session(ledger)
    ledger.add_items("mine", [WorkItem(id=f"n-{n:02}") for n in range(40)], planned_by=fence)
    onlooker = Onlooker(ledger, "mine", clock)
    assert onlooker.look().eta is None, "nothing is known of how long units take"
    work(ledger, clock, fence, 4)

    eta = onlooker.look().eta

    assert eta is not None
    assert 3600 < eta.p50 - clock.now() <= eta.p90 - clock.now() < 2 * 3600
    assert eta.waiting > 2000
    assert eta.sessions >= 8
    assert eta.session_ends is not None
    assert 0 < eta.session_ends - clock.now() < 20
    assert eta.next_begins is not None
    assert eta.next_begins > eta.session_ends


def test_it_is_foreseen_seldom(ledger: SqlLedger, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often somebody looks: after a while every 30 s, and at once where the chain goes another way."""
    fence = session(ledger)
    ledger.add_items("mine", [WorkItem(id=f"n-{n:02}") for n in range(40)], planned_by=fence)
    work(ledger, clock, fence, 2)
    asked: list[float] = []
    unit_costs = ledger.unit_costs
    monkeypatch.setattr(ledger, "unit_costs", lambda *given: asked.append(clock.now()) or unit_costs(*given))
    onlooker = Onlooker(ledger, "mine", clock)

    for _ in range(100):
        onlooker.look()
        clock.advance(10)
    assert 1000 / FORESEEN_SECONDS <= len(asked) <= 70
    assert asked[-1] - asked[-2] == FORESEEN_SECONDS

    close(ledger, fence, stop=StopReason("budget:calls", "no calls are left", clock.now() + 600))
    seen = len(asked)
    waiting = onlooker.look()
    assert len(asked) == seen + 1
    assert waiting.eta is not None
    assert waiting.eta.p50 > clock.now() + 600
    assert next_in_words(waiting, clock_time).startswith("session 2 at ")

    ledger.want("mine", "cancel", "enough")  # type: ignore[arg-type]
    assert onlooker.look().eta is None


def test_company_share_and_silence(ledger: SqlLedger, clock: FakeClock) -> None:
    """Whoever else works on the queue is shown, and takes its share of what is left; a session that is not heard of any
    more is told."""
    fence = session(ledger)
    ledger.add_items("mine", [WorkItem(id=f"n-{n:02}") for n in range(10)], planned_by=fence)
    work(ledger, clock, fence, 2)
    alone = Onlooker(ledger, "mine", clock).look()
    ledger.add_chain("mine-2", queue="mine")
    session(ledger, "mine-2")

    both = Onlooker(ledger, "mine", clock).look()

    assert (alone.agents, [agent.chain for agent in both.agents]) == ((), ["mine", "mine-2"])
    assert alone.eta is not None
    assert both.eta is not None
    assert both.eta.p50 - clock.now() < 0.7 * (alone.eta.p50 - clock.now())
    assert both.silent == 0
    clock.advance(10_050)
    silent = Onlooker(ledger, "mine", clock).look()
    assert silent.silent == pytest.approx(50, abs=21)
    assert "Session 1 has not been heard of for " in in_words(silent, clock_time)


def test_of_many_items_the_first_are_looked_at(ledger: SqlLedger, clock: FakeClock) -> None:
    """Those beyond are taken to be like them."""
    fence = session(ledger, budget=Budget(seconds=900))
    ledger.add_items("mine", [WorkItem(id=f"n-{n}") for n in range(3002)], planned_by=fence)
    work(ledger, clock, fence, 2)

    eta = Onlooker(ledger, "mine", clock).look().eta

    assert eta is not None
    assert eta.p50 - clock.now() == pytest.approx(3000 * 10, rel=0.05)


# In words -------------------------------------------------------------------------------------------------------------


def clock_time(at: float) -> str:
    return f"{int(at) // 3600:02}:{int(at) % 3600 // 60:02}"


def told(status: str = "running", *, sessions: list[dict[str, Any]] | None = None, **changes: Any) -> Progress:
    """A chain in the middle of its seventh session."""
    items = {"total": 100, "completed": 42, "available": 54, "claimed": 1, "blocked": 0, "discarded": 3, "cancelled": 0}
    seventh = {"ordinal": 7, "state": SessionState.RUNNING, "stop_reason": None}
    latest = [seventh] if sessions is None else sessions
    given = {
        "at": 0.0,
        "levels": [Level(Limit("tokens", 50_000), 36_000.0)],
        "per_minute": 12.34,
        "status": {"chain": "docs", "status": status, "reason": "", "items": items, "sessions": latest},
        **changes,
    }
    return Progress(**given)


ETA = Eta(p50=7200.0, p90=9000.0, sessions=3, waiting=720.0, session_ends=3600.0, next_begins=4320.0)


def test_the_end_in_words() -> None:
    """Both quantiles where they differ; what of it is waiting; and whether a total will do."""
    assert end_in_words(ETA, clock_time) == (
        "over by 02:00 (half of the time), by 02:30 (9 of 10 times); 3 sessions with this one, 12 min 0 s of it "
        "waiting for quotas"
    )
    assert end_in_words(Eta(p50=7200.0, p90=7210.0, sessions=1), clock_time) == "over by 02:00"
    short = end_in_words(Eta(p50=7200.0, p90=7200.0, sessions=1, gone=0.25), clock_time)
    assert short == "over by 02:00; in 25% of the futures a total is gone before that"


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (told(eta=ETA), "session 7 ends at about 01:00, session 8 goes on at about 01:12"),
        (told(eta=Eta(p50=7200.0, p90=7200.0, sessions=1)), "session 7 is the last one"),
        (told(ends_at=1800.0), "session 7 ends at 00:30, session 8 is up ahead of that"),
        (told(), ""),
        (told("waiting", resume_at=3600.0), "session 8 at 01:00, when there is room"),
        (told("waiting"), "session 8 begins"),
        (told("paused"), ""),
        (told("waiting", sessions=[]), "the first session begins"),
    ],
)
def test_what_comes_next(progress: Progress, words: str) -> None:
    """As far as it is known."""
    assert next_in_words(progress, clock_time) == words


def test_all_in_words() -> None:
    """What matters most comes first, as a card shows the beginning; it is plain text, and one line."""
    running = in_words(told(eta=ETA), clock_time)

    assert running[:45].startswith("42 of 100 items, over by 02:00. ")
    assert "1 claimed, 3 discarded. " in running
    assert "Used 36,000 tokens of 50,000 tokens a session (72%). 12.3 units a minute. " in running
    assert running.endswith("Session 7 ends at about 01:00, session 8 goes on at about 01:12.")
    over = told("finished")
    over.status["reason"] = "every item\nis done."
    assert in_words(over, clock_time).startswith("42 of 100 items, finished. Every item is done. ")


def test_a_plan_whose_time_is_not_known_foresees_nothing() -> None:
    """And one that is over in this session has no next one."""
    pace = Pace(resume=1, shutdown=2, gap=10, fullness=1.0)
    unknown = simulate([Work(Expectation(estimate={"tokens": 1}), 5)], BUDGET, {}, 0.0, pace=pace)
    one = simulate([Work(Expectation(estimate={"seconds": 1}), 5)], Budget(), {}, 0.0, pace=pace, begun={})

    assert foreseen(unknown, 0.0, at_work=True) is None
    assert foreseen(one, 100.0, at_work=True) == Eta(p50=107.0, p90=107.0, sessions=1)


def test_a_waiting_chain_is_not_over() -> None:
    """What is called over is what does not go on by itself."""
    assert {status for status in ChainStatus if told(status).goes_on} == {ChainStatus.RUNNING, ChainStatus.WAITING}


def test_discarded_and_running_items_are_shown(ledger: SqlLedger, clock: FakeClock) -> None:
    """The first of them, with what they do and why they were given up."""
    fence = session(ledger)
    ledger.add_items("mine", [WorkItem(id=f"n-{n}", max_attempts=1) for n in range(3)], planned_by=fence)
    ledger.fail_unit(fence, claim(ledger, fence), "RuntimeError: no", {}, {})
    claim(ledger, fence)

    progress = Onlooker(ledger, "mine", clock).look()

    assert [(item.id, item.error) for item in progress.discarded] == [("n-0", "RuntimeError: no")]
    assert [item.id for item in progress.running] == ["n-1"]
    finish_next(ledger, fence)
