"""A queue's page: counts, who works on it, what was given up and why."""

from support import FakeClock, LedgerFactory, claim, finish_next, open_session

from perpetual_blocks import WorkItem
from perpetual_blocks.session.agents import AgentLine, Agents
from perpetual_blocks.session.queue_page import LISTED, agents_to_markdown, summarise, to_markdown


def test_a_queue_of_two_chains(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """Each has a row with links to its runs; items that run say what they do, and those that were given up why."""
    ledger = make_ledger()
    owner = open_session(ledger).fence
    ledger.add_chain("mine-2", queue="mine")
    other = open_session(ledger, "mine-2").fence
    items = [WorkItem(id=f"n-{n}", kind="other" if n % 2 else "default", max_attempts=1) for n in range(5)]
    ledger.add_items("mine", items, planned_by=owner)
    finish_next(ledger, owner)
    ledger.fail_unit(owner, claim(ledger, owner), "RuntimeError: a|b\nin two lines", {}, {"tokens": 10.0})
    claim(ledger, other)

    page = to_markdown(summarise(ledger, "mine", clock.now(), Agents()))

    lines = page.splitlines()
    assert lines[0] == "**mine**: 1 of 5 items done, 1 discarded"
    assert lines[2:7] == [
        "| kind | available | claimed | completed | discarded | total |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| all | 2 | 1 | 1 | 1 | 5 |",
        "| default | 1 | 1 | 1 | 0 | 3 |",
        "| other | 1 | 0 | 0 | 1 | 2 |",
    ]
    rows = [line for line in lines if line.startswith("| [")]
    assert rows[0].startswith(
        "| [mine](../../runs?tags=chain:mine&tag=chain:mine) | at work | 1 | 1 | 0.0 | 10 tokens |"
    )
    assert rows[1].startswith("| [mine-2](../../runs?tags=chain:mine-2&tag=chain:mine-2) | at work | 1 | 0 |")
    assert "| **together** | | | 1 | 0.0 | 10 tokens | |  |" in lines
    assert "- `n-2`: unit 1, of mine-2" in lines
    assert "- `n-1`: RuntimeError: a|b in two lines" in lines
    assert "`perpetual items retry mine` tries them again" in lines


def test_a_large_queue(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """The first of those that were given up are listed, however many they are; an empty one has no counts."""
    ledger = make_ledger()
    fence = open_session(ledger).fence
    empty = to_markdown(summarise(ledger, "mine", clock.now(), Agents()))
    ledger.add_items("mine", [WorkItem(id=f"n`{n}") for n in range(LISTED + 3)], planned_by=fence)
    ledger.discard_items("mine", [f"n`{n}" for n in range(LISTED + 2)], "not wanted")

    lines = to_markdown(summarise(ledger, "mine", clock.now(), Agents())).splitlines()

    assert (empty.splitlines()[0], "| kind |" in empty) == ("**mine**: 0 of 0 items done", False)
    assert "- `n'0`: not wanted" in lines
    assert sum(line.startswith("- `n'") for line in lines) == LISTED
    assert "- and 2 more" in lines


def test_the_orchestrators_decision() -> None:
    """It is told with what all agents come to together, be it one."""
    line = AgentLine(
        chain="a", state="at work", reason="", takes="kinds x|y", sessions=1, units=5, per_minute=2.0, usage={}
    )

    table = agents_to_markdown([line], "1 agents: it begins").splitlines()

    assert "kinds x\\|y" in table[2]
    assert table[3] == "| **together** | | | 5 | 2.0 |  | | 1 agents: it begins |"
    assert len(agents_to_markdown([line]).splitlines()) == 3
