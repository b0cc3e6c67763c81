"""The `perpetual` command as a shell sees it: a child process, its exit code, and what is on its two outputs."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prefect.blocks.system import Secret
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer
from shell import AGENTS, Said, Shell, make_shell
from support import item_in, open_session

from perpetual_blocks import Budget, WorkItem
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.blocks import LimitSettings, ResourceBudget, StatePersistence
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.cli.output import (
    NOT_FINISHED,
    OK,
    SUPERSEDED,
    UNUSABLE,
    WRAP_NOW,
)
from perpetual_blocks.session.manual import TASK, encode_token
from perpetual_blocks.work import ItemStatus

COMMANDS = (
    "demo",
    "results",
    "init",
    "run",
    "orchestrate",
    "plan",
    "status",
    "watch",
    "handoff",
    "report",
    "pause",
    "resume",
    "approve",
    "cancel",
    "stop-all",
    "supervise",
    "check",
    "verify",
    "restore",
    "prune",
    "automations install",
    "automations list",
    "automations remove",
    "items list",
    "items show",
    "items add",
    "items retry",
    "items discard",
    "checkpoints list",
    "checkpoints pin",
    "checkpoints unpin",
    "session start",
    "session checkpoint",
    "session wrap",
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell for one test."""
    return make_shell(tmp_path)


@pytest.fixture
def ledger(shell: Shell) -> Iterator[SqlLedger]:
    """The shell's ledger, as another process has it open."""
    opened = SqlLedger(shell.environment["PERPETUAL_LEDGER"])
    yield opened
    opened.close()


# Plans --------------------------------------------------------------------------------------------------------------


def test_a_plan_of_a_chain_and_of_a_flow(shell: Shell, ledger: SqlLedger) -> None:
    """What is left of a chain, with another budget too, and a flow that was never run: in JSON, and for people."""
    (shell.folder / "agents.py").write_text(AGENTS)
    settings = {"kinds": ["default"], "budget": Budget(tokens=1000).to_json()}
    work = [WorkItem(id=str(n), estimate={"tokens": 100, "seconds": 2}) for n in range(50)]
    ledger.add_items("mine", work, planned_by=open_session(ledger, settings=settings).fence)

    plan = shell.here("plan", "mine", "--json").json()
    assert (plan["units"], plan["sessions"]["p50"], plan["finishes"], plan["unknown"]) == (50, 6, 1.0, [])
    assert plan["usage"]["tokens"] == {"p50": 5000.0, "p90": 5000.0}
    assert plan["finish"]["p50"] <= plan["finish"]["p90"]
    larger = shell.here("plan", "mine", "--what-if", "tokens=100000", "--json").json()
    assert larger["sessions"]["p90"] == 1
    waits = shell.here("plan", "mine", "--what-if", "tokens/hour=500", "--json").json()
    # Five units fill an hour: of the first, what remains of it now is waited for; of the eight next, all but the work.
    assert 8 * (3600 - 60) <= waits["waiting_seconds"]["p50"] <= 9 * 3600
    of_flow = shell.here("plan", "agents.py:count", "--param", "upto=7", "--json").json()
    assert (of_flow["units"], of_flow["unknown"]) == (7, ["seconds"])
    shown = shell.here("plan", "mine", "--what-if", "cost/total=1").out
    assert "50 units left" in shown
    assert "█" in shown
    assert "Nothing is known of cost yet" in shown


# Help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(shell: Shell, command: str) -> None:
    """`--help` has a line to copy, which begins with the command itself."""
    said = shell.here(*command.split(), "--help")

    assert said.code == OK, said
    assert f"perpetual {command}" in said.out.partition("Example: ")[2].partition("\n\n")[0]


def test_help_names_every_command(shell: Shell) -> None:
    """The list above is complete: a new command must be added to it."""
    groups = ("automations", "items", "checkpoints", "session")
    said = {"": shell("--help"), **{group: shell.here(group, "--help") for group in groups}}

    shown = set()
    for group, help_text in said.items():
        for line in help_text.out.splitlines():
            words = line.strip("│ ").split()
            if line.startswith("│ ") and line[2] not in " -" and words[0] not in groups:
                shown.add(f"{group} {words[0]}".strip())
    assert shown == set(COMMANDS)


# Status and items ---------------------------------------------------------------------------------------------------


def test_an_empty_ledger_says_how_to_begin(shell: Shell) -> None:
    """For people a hint, for programs an empty list; neither is an error."""
    plain, for_programs = shell("status"), shell.here("status", "--json")

    assert (plain.code, for_programs.code) == (OK, OK)
    assert "perpetual demo" in plain.out
    assert for_programs.json() == []


def test_the_ledger_is_the_one_that_is_named(shell: Shell) -> None:
    """`--ledger` goes before $PERPETUAL_LEDGER."""
    there = SqlLedger(str(shell.folder / "there.db"))
    open_session(there, "elsewhere")
    there.close()

    assert [row["chain"] for row in shell.here("status", "--json", "--ledger", "there.db").json()] == ["elsewhere"]


def test_the_queue_in_a_persons_hands(shell: Shell, ledger: SqlLedger) -> None:
    """Items are added, listed in the order of claiming, discarded with a reason, and tried again."""
    open_session(ledger)
    lines = [{"id": "one", "payload": {"path": "a.txt"}}, {"id": "a:x:b", "priority": 5, "depends_on": ["one"]}]

    added = shell("items", "add", "mine", "--file", "-", "--json", stdin="\n".join(map(json.dumps, lines)) + "\n\n")
    listed = shell("items", "list", "mine", "--json")
    table = shell.here("items", "list", "mine")
    discarded = shell.here("items", "discard", "mine", "one", "--reason", "not [wanted]")
    dead = item_in(ledger, "one")
    retried = shell.here("items", "retry", "mine", "--json")

    assert added.json() == {"chain": "mine", "added": 2, "given": 2}
    assert [(row["id"], row["status"]) for row in listed.json()] == [("a:x:b", "blocked"), ("one", "available")]
    assert listed.json()[1]["payload"] == {"path": "a.txt"}
    assert "a:x:b" in table.out, "an id is shown as it is"
    assert (discarded.code, discarded.out.strip()) == (OK, "1 of 1 discarded in mine")
    assert (dead.status, dead.error) == (ItemStatus.DISCARDED, "not [wanted]")
    assert retried.json() == {"chain": "mine", "retried": 1}
    assert item_in(ledger, "one").status == ItemStatus.AVAILABLE


def test_the_story_of_an_item(shell: Shell, ledger: SqlLedger) -> None:
    """An item with its attempts that came to nothing, for people and for programs."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="a:x:b", max_attempts=1), WorkItem(id="quiet")])
    item = ledger.claim(fence, lambda _item: None).item
    assert item is not None
    spent = {"tokens": 1200.0, "seconds": 2.5}
    ledger.cut_off(fence, item, "no room", spent, spent, fresh=False)
    item = ledger.claim(fence, lambda _item: None).item
    assert item is not None
    ledger.fail_unit(fence, item, "ValueError: not [this]", {"tokens": 50.0}, spent)

    told = shell("items", "show", "mine", "a:x:b", "--json").json()
    seen = shell.here("items", "show", "mine", "a:x:b")
    quiet = shell.here("items", "show", "mine", "quiet")

    assert (told["id"], told["status"], told["attempts"]) == ("a:x:b", "discarded", 1)
    assert told["retry_at"] is None
    assert told["wasted"] == {"seconds": 2.5, "tokens": 1250}
    assert [(one["number"], one["session"], one["error"], one["cut_off"]) for one in told["story"]] == [
        (1, 1, "no room", True),
        (2, 1, "ValueError: not [this]", False),
    ]
    assert told["story"][0]["usage"] == spent
    assert all(one["at"].endswith("Z") for one in told["story"])
    lines = [" ".join(line.split()) for line in seen.out.splitlines()]
    assert "failed once, cut off once (session 1), 2.5 s, 1,250 tokens spent in vain" in lines
    assert lines[0] == "a:x:b discarded 0 units finished"
    assert any(line.startswith("2 1 1 ") and line.endswith("50 tokens ValueError: not [this]") for line in lines)
    assert "no attempt of it has failed" in quiet.out


def test_an_item_is_added_once(shell: Shell, ledger: SqlLedger) -> None:
    """The same item again changes nothing and is no error; another one under its id is."""
    open_session(ledger)
    add = ("items", "add", "mine", "one", "--payload")

    first, again, other = (shell.here(*add, payload) for payload in ('{"n": 1}', '{"n": 1}', '{"n": 2}'))

    assert (first.code, first.out) == (OK, "1 of 1 added to mine\n")
    assert (again.code, again.out) == (OK, "0 of 1 added to mine: there already\n")
    other.is_refusal("WorkItem('one').payload", "{'n': 2}")
    assert item_in(ledger, "one").payload == {"n": 1}


def test_what_belongs_to_an_item_is_added_with_it(shell: Shell, ledger: SqlLedger) -> None:
    """Kind, priority, dependencies, estimate and attempts, all from the command line."""
    open_session(ledger)
    shell.here("items", "add", "mine", "one")
    options = ("--kind", "other", "--priority", "7", "--depends-on", "one", "--max-attempts", "2")

    said = shell.here("items", "add", "mine", "two", *options, "--estimate", "tokens=50", "--estimate", "cost=0.5")

    item = item_in(ledger, "two")
    assert said.code == OK, said
    assert (item.kind, item.priority, item.max_attempts, item.status) == ("other", 7, 2, ItemStatus.BLOCKED)
    assert item.estimate == {"tokens": 50, "cost": 0.5}


@pytest.mark.parametrize(("command", "verb"), [("retry", "retried"), ("discard", "discarded")])
def test_items_that_are_past_it_count_for_nothing(shell: Shell, ledger: SqlLedger, command: str, verb: str) -> None:
    """A retry and a discard say how many items they changed."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="one")])
    ledger.claim(fence, lambda estimate: None)

    assert shell.here("items", command, "mine", "one", "--json").json() == {"chain": "mine", verb: 0}


# Checkpoints --------------------------------------------------------------------------------------------------------


def work_by_hand(shell: Shell, *sessions: str) -> None:
    """A chain `mine` with so many sessions by hand, each of which says what comes next."""
    for said in sessions:
        word = shell.here("session", "start", "mine", "--task", "Read").out.strip()
        shell.here("session", "checkpoint", "--progress", "1/9", "--next-action", said, PERPETUAL_SESSION=word)
        assert shell.here("session", "wrap", PERPETUAL_SESSION=word).code == OK


def test_checkpoints_are_listed_and_read(shell: Shell, ledger: SqlLedger) -> None:
    """The latest first: when, how large, its digest, and that it is whole; an empty list before there is one."""
    open_session(ledger, "other")
    work_by_hand(shell, "read 2", "read 3")

    listed, table = shell.here("checkpoints", "list", "mine", "--json"), shell.here("checkpoints", "list", "mine")

    assert (listed.code, table.code) == (OK, OK)
    latest, first = listed.json()
    assert (latest["session"], latest["pinned"], latest["whole"], latest["damage"]) == (2, False, True, None)
    assert first["session"] == 1
    assert first["at"] < latest["at"]
    text = StoredDocuments(LocalFileSystem(basepath=shell.folder / "home" / "storage")).read(latest["key"])
    assert (latest["digest"], latest["size"]) == (digest(text), len(text.encode()))
    assert latest["digest"][:12] in table.out
    assert table.out.count("whole") == 2
    assert shell.here("checkpoints", "list", "other", "--json").json() == []


def test_a_damaged_checkpoint_is_listed_as_one(shell: Shell) -> None:
    """With what is wrong; exit code 1."""
    work_by_hand(shell, "read 2", "read 3")
    keys = [row["key"] for row in shell.here("checkpoints", "list", "mine", "--json").json()]
    latest, first = (shell.folder / "home" / "storage" / key for key in keys)
    latest.write_text(latest.read_text().replace("read 3", "read 4"))
    first.unlink()

    listed, table = shell.here("checkpoints", "list", "mine", "--json"), shell.here("checkpoints", "list", "mine")

    assert (listed.code, table.code) == (NOT_FINISHED, NOT_FINISHED)
    assert [row["whole"] for row in listed.json()] == [False, False]
    assert "got SHA-256" in listed.json()[0]["damage"]
    assert "cannot read" in listed.json()[1]["damage"]
    assert "got SHA-256" in table.out


def test_checkpoints_are_pinned_and_unpinned(shell: Shell) -> None:
    """That of a session, or the latest; doing it twice changes nothing."""
    work_by_hand(shell, "read 2", "read 3")

    def pinned() -> list[int]:
        rows = shell.here("checkpoints", "list", "mine", "--json").json()
        return [row["session"] for row in rows if row["pinned"]]

    first = shell.here("checkpoints", "pin", "mine", "1", "--json")
    assert first.json() == {"chain": "mine", "session": 1, "pinned": True}
    assert shell.here("checkpoints", "pin", "mine", "1").code == OK
    assert pinned() == [1]
    assert shell.here("checkpoints", "pin", "mine").out == "checkpoint of session 2 of mine: pinned\n"
    assert pinned() == [2, 1]
    assert "pinned" in shell.here("checkpoints", "list", "mine").out
    assert shell.here("checkpoints", "unpin", "mine", "1").out == "checkpoint of session 1 of mine: unpinned\n"
    assert pinned() == [2]


# Wrong input --------------------------------------------------------------------------------------------------------


FILES = {
    "cycle.jsonl": '{"id": "a", "depends_on": ["b"]}\n{"id": "b", "depends_on": ["a"]}\n',
    "field.jsonl": '{"id": "a"}\n{"idd": "b"}\n',
    "half.jsonl": '{"id": "good"}\n{"id": "bad", "kind": "nope"}\n',
    "no-json.jsonl": '{"id": "a"}\nnonsense\n',
}
ADD = ["items", "add", "mine"]
SAVE = ["session", "checkpoint"]
REFUSALS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # name: the command, and what its line on standard error must hold
    "status-unknown": (["status", "nope"], ("chain", "nope", "mine")),
    "plan-unknown": (["plan", "nope"], ("chain", "nope", "mine")),
    "items-show": (["items", "show", "mine", "nope"], ("item", "nope", "mine", "perpetual items list mine")),
    "items-show-unknown": (["items", "show", "nope", "a"], ("chain", "nope", "mine")),
    "plan-what-if": (["plan", "mine", "--what-if", "calls/fortnight=5"], ("window", "fortnight", "day")),
    "plan-amount": (["plan", "mine", "--what-if", "tokens=many"], ("--what-if", "tokens=many", "calls/day=1000")),
    "plan-param": (["plan", "mine", "--param", "upto=5"], ("--param", "upto=5")),
    "plan-no-flow": (["plan", "agents.py:plain"], ("entrypoint", "as_flow()")),
    "handoff-unknown": (["handoff", "nope"], ("chain", "nope")),
    "checkpoints-unknown": (["checkpoints", "list", "nope"], ("chain", "nope", "mine")),
    "checkpoints-pin-unknown": (["checkpoints", "pin", "nope"], ("chain", "nope", "mine")),
    "checkpoints-pin-none": (["checkpoints", "pin", "mine"], ("session", "checkpoint", "none")),
    "checkpoints-pin-other": (["checkpoints", "pin", "mine", "7"], ("session: got 7", "mine", "none")),
    "checkpoints-unpin-none": (["checkpoints", "unpin", "mine"], ("session", "none")),
    "handoff-none": (["handoff", "mine"], ("session", "mine", "none has written one yet")),
    "list-unknown": (["items", "list", "nope"], ("chain", "nope")),
    "list-status": (["items", "list", "mine", "--status", "lost"], ("--status", "lost", "available")),
    "two-places": (["status", "--ledger", "a.db", "--store", "b"], ("--ledger", "--store")),
    "no-ledger": (["status", "--ledger", "mysql://me:hunter2@db/x"], ("ledger", "mysql", "SQLite")),
    "add-unknown": (["items", "add", "nope", "x"], ("chain", "nope")),
    "add-payload": ([*ADD, "x", "--payload", "{bad"], ("--payload", "{bad", "JSON object")),
    "add-payload-list": ([*ADD, "x", "--payload", "[1]"], ("--payload", "JSON object")),
    "add-payload-nan": ([*ADD, "x", "--payload", '{"a": NaN}'], ("payload.a", "nan")),
    "add-kind": ([*ADD, "x", "--kind", "nope"], ("WorkItem('x').kind", "nope", "default, other")),
    "add-missing": ([*ADD, "x", "--depends-on", "ghost"], ("WorkItem('x').depends_on", "ghost")),
    "add-too-much": ([*ADD, "x", "--estimate", "tokens=5000"], ("WorkItem('x').estimate.tokens", "5000", "1,000")),
    "add-resource": ([*ADD, "x", "--estimate", "gold=5"], ("estimate.gold", "tokens")),
    "add-estimate": ([*ADD, "x", "--estimate", "tokens"], ("--estimate", "tokens=1000")),
    "add-attempts": ([*ADD, "x", "--max-attempts", "0"], ("max_attempts", "at least 1")),
    "add-priority": ([*ADD, "x", "--priority", "high"], ("--priority", "high")),
    "add-nothing": (ADD, ("--file",)),
    "add-both": ([*ADD, "x", "--file", "half.jsonl"], ("--file",)),
    "add-cycle": ([*ADD, "--file", "cycle.jsonl"], ("depends_on", "a -> b -> a")),
    "add-field": ([*ADD, "--file", "field.jsonl"], ("--file line 2", "idd")),
    "add-half": ([*ADD, "--file", "half.jsonl"], ("WorkItem('bad').kind", "nope")),
    "add-no-json": ([*ADD, "--file", "no-json.jsonl"], ("--file line 2", "nonsense")),
    "add-no-file": ([*ADD, "--file", "ghost.jsonl"], ("--file", "ghost.jsonl")),
    "add-bytes": ([*ADD, "--file", "bytes.jsonl"], ("--file", "bytes.jsonl")),
    "retry-unknown": (["items", "retry", "mine", "there", "ghost"], ("item", "ghost", "mine")),
    "discard-unknown": (["items", "discard", "mine", "there", "ghost"], ("item", "ghost", "mine")),
    "discard-nothing": (["items", "discard", "mine"], ("items discard", "id")),
    "start-name": (["session", "start", "Bad Name"], ("chain", "Bad Name", "a-z")),
    "start-zero": (["session", "start", "new", "--tokens", "0"], ("tokens", "0", "above 0")),
    "start-nan": (["session", "start", "new", "--cost", "nan"], ("cost", "nan")),
    "start-threshold": (["session", "start", "new", "--calls", "5", "--threshold", "2"], ("threshold", "2")),
    "start-foreign": (["session", "start", "over"], ("over", "Tester")),
    "save-token": ([*SAVE, "--session", "nonsense"], ("--session", "nonsense")),
    "save-no-token": ([*SAVE, "--session", ""], ("--session", "PERPETUAL_SESSION")),
    "save-number": ([*SAVE, "--tokens", "many"], ("--tokens", "many")),
    "save-nan": ([*SAVE, "--tokens", "nan"], ("tokens", "nan")),
    "save-negative": ([*SAVE, "--tokens", "-5"], ("tokens", "-5")),
    "save-progress": ([*SAVE, "--progress", "20/10"], ("--progress", "20/10", "10/20")),
    "save-endless": ([*SAVE, "--progress", "1/inf"], ("--progress", "1/inf")),
    "save-cursor": ([*SAVE, "--cursor", "{bad"], ("--cursor", "{bad", "JSON")),
    "save-cursor-nan": ([*SAVE, "--cursor", "[NaN]"], ("--cursor", "nan")),
    "save-context": ([*SAVE, "--context", "[1]"], ("--context", "JSON object")),
    "wrap-missing": (["session", "wrap", "--commit", "agents.py", "--commit", "ghost/"], ("--commit", "ghost")),
    "run-plain": (["run", "agents.py:plain"], ("entrypoint", "agents.py:plain", "as_flow()")),
    "run-number": (["run", "agents.py:number"], ("entrypoint", "agents.py:number")),
    "run-no-name": (["run", "agents.py:nothing"], ("entrypoint", "agents.py:nothing")),
    "run-no-file": (["run", "ghost.py:x"], ("ghost.py:x", "FileNotFoundError")),
    "run-colons": (["run", "ghost.py:x:y"], ("ghost.py:x:y",)),
    "run-no-module": (["run", "ghost.module:x"], ("entrypoint", "ghost.module:x")),
    "run-no-colon": (["run", "agents.py"], ("entrypoint", "agents.py", "file.py:name")),
    "run-broken": (["run", "broken.py:x"], ("broken.py:x", "RuntimeError", "at import")),
    "run-value": (["run", "agents.py:count", "--param", "upto=0"], ("--param upto", "0", "greater than or equal to 1")),
    "run-type": (["run", "agents.py:count", "--param", "upto=far"], ("--param upto", "far", "integer")),
    "run-unknown": (["run", "agents.py:count", "--param", "down=1"], ("--param", "down=1", "upto, chain")),
    "run-no-value": (["run", "agents.py:count", "--param", "upto"], ("--param", "upto", "name=value")),
    "run-chain": (["run", "agents.py:count", "--param", "chain=Bad"], ("chain", "Bad", "a-z")),
}


CHILDREN = (
    "status-unknown",
    "add-payload",
    "add-priority",
    "add-half",
    "save-nan",
    "run-no-file",
)
"""Those that a process of its own is asked as well, so that exit code and outputs are known to leave it."""


@dataclass(frozen=True)
class Refused:
    """What was said, and what was in the ledger before and after all of the refused commands.

    Attributes:
        said: What was said in this process; `children` is what processes of their own said.
    """

    said: dict[str, Said]
    children: dict[str, Said]
    before: str
    after: str


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """All of the wrong commands, given to a ledger with an agent's chain, one that is over, and one worked by hand."""
    shell = make_shell(tmp_path_factory.mktemp("refused"))
    for name, text in {**FILES, "agents.py": AGENTS, "broken.py": "raise RuntimeError('at import\\nand more')"}.items():
        (shell.folder / name).write_text(text)
    (shell.folder / "bytes.jsonl").write_bytes(b"\xff\xfe")
    ledger = SqlLedger(shell.environment["PERPETUAL_LEDGER"])
    settings = {"kinds": ["default", "other"], "budget": Budget(tokens=1000).to_json()}
    ledger.add_items("mine", [WorkItem(id="there")], planned_by=open_session(ledger, settings=settings).fence)
    over = SqlLedger(shell.environment["PERPETUAL_LEDGER"], lease_seconds=0)
    over.add_items("over", [WorkItem(id="there")], planned_by=open_session(over, "over", settings=settings).fence)
    by_hand = open_session(ledger, "hand", settings={"kinds": [TASK], "budget": []}).fence
    ledger.add_items("hand", [WorkItem(id=TASK, kind=TASK)], planned_by=by_hand)

    def everything() -> str:
        chains = [(chain.name, ledger.items(chain.name), ledger.sessions(chain.name)) for chain in ledger.chains()]
        return repr(sorted(chains, key=lambda chain: chain[0]))

    before = everything()
    token = {"PERPETUAL_SESSION": encode_token(by_hand)}
    said = {name: shell.here(*arguments, **token) for name, (arguments, _) in REFUSALS.items()}
    children = shell.all({name: REFUSALS[name][0] for name in CHILDREN}, **token)
    after = everything()
    ledger.close()
    over.close()
    return Refused(said, children, before, after)


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_input_is_refused_in_one_line(refused: Refused, name: str) -> None:
    """Exit code 2, one line on standard error that names the field, the value and what was expected."""
    refused.said[name].is_refusal(*REFUSALS[name][1])


@pytest.mark.parametrize("name", CHILDREN)
def test_a_process_of_its_own_refuses_it_too(refused: Refused, name: str) -> None:
    """With the same line and exit code."""
    assert refused.children[name] == refused.said[name]


def test_wrong_input_changes_nothing(refused: Refused) -> None:
    """Not one item of a file that has one wrong line, no chain, no usage, no claim that was given back."""
    assert refused.after == refused.before


def test_a_password_in_an_address_is_not_printed(refused: Refused) -> None:
    """The line that refuses a ledger names its scheme at most."""
    assert "hunter2" not in refused.said["no-ledger"].err


# Sessions by hand ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """A task worked on by a shell script in two sessions, command by command."""
    shell = make_shell(tmp_path_factory.mktemp("story"))
    said: dict[str, Said] = {}

    start = ("session", "start", "research", "--tokens", "1000")
    details = ("--next-action", "read paper 16", "--cursor", '{"page": 3}', "--context", '{"notes": ["x"]}')
    said["start"] = shell(*start, "--task", "Read the [papers]")
    word = {"PERPETUAL_SESSION": said["start"].out.strip()}
    said["second starter"] = shell(*start)
    said["healthy"] = shell.here(*SAVE, "--progress", "10/20", "--tokens", "400", **word)
    said["less"] = shell.here(*SAVE, "--progress", "11/20", "--tokens", "300", **word)
    said["wrap now"] = shell(*SAVE, "--progress", "15/20", "--tokens", "900", "--json", *details, **word)
    said["wrap"] = shell("session", "wrap", "--json", **word)
    said["handoff"] = shell.here("handoff", "research")
    said["handoff json"] = shell.here("handoff", "research", "--session", "1", "--json")
    said["start again"] = shell(*start, "--json")
    token = said["start again"].json()["session"]
    said["items"] = shell.here("items", "list", "research", "--json")
    said["done"] = shell.here(*SAVE, "--done", "--tokens", "100", "--session", token)
    said["twice done"] = shell.here(*SAVE, "--tokens", "150", "--session", token)
    said["finish"] = shell.here("session", "wrap", "--session", token)
    said["status"] = shell.here("status", "research", "--json")
    said["start a finished one"] = shell.here(*start)
    return said


def test_starting_prints_a_word_and_nothing_else(story: dict[str, Said]) -> None:
    """`$(perpetual session start …)` is the word; what a person wants to know is on standard error, one line."""
    assert story["start"].code == OK
    assert len(story["start"].out.split()) == 1
    assert story["start"].err.splitlines() == ["session 1 of research: Read the [papers]"]


def test_a_second_starter_is_told_who_is_at_work(story: dict[str, Said]) -> None:
    """Exit code 4 while the lease of the first runs."""
    story["second starter"].is_refusal("session 1 of research is at work", "lease", code=SUPERSEDED)


def test_a_checkpoint_prints_its_verdict(story: dict[str, Said]) -> None:
    """One word on standard output, its reason on standard error; 400 of 1,000 tokens are healthy."""
    said = story["healthy"]

    assert (said.code, said.out, len(said.err.splitlines())) == (OK, "healthy\n", 1)
    assert "400" in said.err


def test_tokens_are_the_sessions_total(story: dict[str, Said]) -> None:
    """Less than was said before cannot be, and is not recorded: the next one is measured against 400."""
    story["less"].is_refusal("--tokens", "300", "400")
    assert story["status"].json()["sessions"][0]["units"] == 2


def test_a_limit_that_is_near_says_wrap_now(story: dict[str, Said]) -> None:
    """900 of 1,000 tokens: exit code 10, for `|| break` in a script's loop."""
    said = story["wrap now"]

    assert said.code == WRAP_NOW
    assert said.json()["verdict"] == "wrap_now"
    assert "900" in said.json()["reason"]


def test_wrapping_ends_the_session_in_order(story: dict[str, Said]) -> None:
    """The chain waits for its next session, and names the limit."""
    said = story["wrap"]

    assert said.code == OK
    assert said.json()["state"] == "Wrapped"
    assert said.json()["chain"] == "research"
    assert "tokens" in said.json()["reason"]


def test_the_handoff_is_markdown_for_whoever_comes_next(story: dict[str, Said]) -> None:
    """Task, progress and next action; `--json` holds the same text."""
    text = story["handoff"].out

    assert (story["handoff"].code, story["handoff"].err) == (OK, "")
    assert text.startswith("# research · session 1 · Wrapped")
    assert all(part in text for part in ("Read the [papers]", "15 of 20", "read paper 16", '"notes"'))
    assert story["handoff json"].json()["markdown"] == text
    assert story["handoff json"].json()["session"] == 1


def test_the_next_session_goes_on_with_the_task_and_its_progress(story: dict[str, Said]) -> None:
    """The task need not be said again; progress, cursor and next action are there, and the context with them."""
    said = story["start again"].json()
    [item] = story["items"].json()

    assert (said["ordinal"], said["task"], said["chain"]) == (2, "Read the [papers]", "research")
    assert (item["status"], item["progress"], item["units"]) == ("available", [15, 20], 2)
    assert (item["cursor"], item["next_action"]) == ({"page": 3}, "read paper 16")


def test_done_finishes_the_chain(story: dict[str, Said]) -> None:
    """The last wrap says so, further checkpoints are refused, and the usage is that of both sessions."""
    status = story["status"].json()

    assert (story["done"].code, story["done"].out) == (OK, "healthy\n")
    story["twice done"].is_refusal("research", "done")
    assert story["finish"].out.startswith("Finished")
    assert (status["status"], status["items"]["completed"], status["usage"]) == ("finished", 1, {"tokens": 1000})
    assert [session["state"] for session in status["sessions"]] == ["Wrapped", "Finished"]
    assert all(session["graceful"] for session in status["sessions"])


def test_a_task_that_is_done_is_not_started_again(story: dict[str, Said]) -> None:
    """Nobody could do anything in such a session, and its lease would keep the chain for an hour."""
    story["start a finished one"].is_refusal("research", "done")


def test_what_was_deleted_is_committed_too(shell: Shell) -> None:
    """A path that git knows need not be there any more; the session ends and its commit has the deletion."""
    (shell.folder / "notes").mkdir()
    (shell.folder / "notes" / "a.txt").write_text("a")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=shell.folder, check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "--quiet")
    git("add", "notes")
    git("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "--quiet", "--message=first")
    (shell.folder / "notes" / "a.txt").unlink()
    (shell.folder / "notes").rmdir()
    word = shell.here("session", "start", "research").out.strip()

    said = shell.here("session", "wrap", "--commit", "notes/", "--session", word)

    assert said.code == OK, said
    assert "notes/a.txt" in git("show", "--format=", "--name-status", "HEAD")


def test_sessions_by_hand_need_no_server(story: dict[str, Said]) -> None:
    """None is started behind the user's back, which would take longer than the work."""
    talkative = {name: said.err for name, said in story.items() if "server" in said.err or len(said.err) > 400}
    assert talkative == {}


def test_a_session_that_was_taken_over_can_save_nothing(shell: Shell) -> None:
    """Its lease ran out and another one owns the chain: exit code 4, and the work of the other is untouched."""
    ledger = SqlLedger(shell.environment["PERPETUAL_LEDGER"], lease_seconds=0)
    by_hand = {"kinds": [TASK], "budget": []}
    old = open_session(ledger, settings=by_hand).fence
    ledger.add_items("mine", [WorkItem(id=TASK, kind=TASK)], planned_by=old)
    open_session(ledger, holder="second", settings=by_hand)

    for command in ([*SAVE, "--tokens", "5"], ["session", "wrap"]):
        shell.here(*command, "--session", encode_token(old)).is_refusal("session 1 of mine", code=SUPERSEDED)
    assert item_in(ledger, TASK).units == 0
    ledger.close()


# Check and run, with and without a server ---------------------------------------------------------------------------


def findings(said: Said) -> dict[str, tuple[bool | None, str]]:
    """What was found by each check."""
    return {row["check"]: (row["ok"], row["what"]) for row in said.json()}


def test_check_needs_no_server(shell: Shell) -> None:
    """Without one, ledger and results storage are checked and blocks are not; nothing is started."""
    said = shell("check", "--json")

    found = findings(said)
    assert (said.code, said.err) == (OK, "")
    assert {name: ok for name, (ok, _) in found.items()} == {
        "server": True,
        "ledger": True,
        "results storage": True,
        "blocks": None,
    }
    assert "PREFECT_API_URL" in found["server"][1]
    assert str(shell.folder / "ledger.db") in found["ledger"][1]


def test_check_says_what_is_wrong(shell: Shell) -> None:
    """A ledger that is no database, and a server that is not there: exit code 1, and the other checks are made."""
    (shell.folder / "broken.db").write_text("This is no database, and was never meant to be one.")

    said = shell.here("check", "--json", "--ledger", "broken.db", PREFECT_API_URL="http://127.0.0.1:9/api")

    found = findings(said)
    assert said.code == NOT_FINISHED
    assert {name: ok for name, (ok, _) in found.items()} == {
        "server": False,
        "ledger": False,
        "results storage": True,
        "blocks": None,
    }
    assert "not a database" in found["ledger"][1]
    assert "broken.db" in found["ledger"][1]


def test_a_ledger_that_cannot_be_used_has_an_exit_code_of_its_own(shell: Shell) -> None:
    """Exit code 3, for a file that is no database and for a store that is on a server that does not answer."""
    (shell.folder / "broken.db").write_text("This is no database, and was never meant to be one.")
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}

    ledger = shell.here("status", "--ledger", "broken.db", **nobody)
    store = shell.here("status", "--store", "production", **nobody)

    ledger.is_refusal("ledger", "broken.db", "not a database", code=UNUSABLE)
    store.is_refusal("store", "production", code=UNUSABLE)


@pytest.fixture(scope="module")
def with_server(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell that knows a server, on which a good budget is saved and no other block of ours."""
    shell = make_shell(tmp_path_factory.mktemp("server"), PREFECT_API_URL=prefect_server.api)
    (shell.folder / "agents.py").write_text(AGENTS)
    prefect_server.forget_blocks()
    with prefect_server.here():
        ResourceBudget(limits=[LimitSettings(resource="calls", amount=5)]).save("good", _sync=True)
    return shell


def test_check_looks_at_the_server_and_its_blocks(with_server: Shell) -> None:
    """All is well: exit code 0, and the budget is shown in words."""
    said = with_server("check")

    assert said.code == OK, said
    assert [line.split()[0] for line in said.out.splitlines()] == ["ok"] * 5
    assert with_server.environment["PREFECT_API_URL"] in said.out
    assert "resource-budget/good" in said.out
    assert "5 calls" in said.out


def test_check_finds_a_block_that_no_run_could_load(with_server: Shell) -> None:
    """The server saves any value; the check names the block and what is wrong with it."""
    api = with_server.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: api}):
        identifier = ResourceBudget(limits=[LimitSettings()]).save("broken", _sync=True)
    wrong = {"data": {"limits": [{"resource": "tokens"}, {"resource": "tokens"}]}, "merge_existing_data": False}
    document = f"{api}/block_documents/{identifier}"
    httpx.patch(document, json=wrong, timeout=30).raise_for_status()
    try:
        said = with_server.here("check", "--json")
    finally:
        httpx.delete(document, timeout=30).raise_for_status()

    found = findings(said)
    assert said.code == NOT_FINISHED
    assert found["resource-budget/good"][0] is True
    assert found["resource-budget/broken"][0] is False
    assert "there are two" in found["resource-budget/broken"][1]


def test_check_finds_the_secret_that_signs(with_server: Shell) -> None:
    """A store whose Secret block is there is valid, one whose block is missing is not; the secret is not shown."""
    api = with_server.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: api}):
        Secret(value="open sesame").save("signs", _sync=True)
        for name, secret in (("signed", "signs"), ("unsigned", "nowhere")):
            StatePersistence(ledger=str(with_server.folder / "s.db"), signing_secret=secret).save(name, _sync=True)
    try:
        good = with_server.here("check", "--json", "--store", "signed")
        bad = with_server.here("check", "--json", "--store", "unsigned")
    finally:
        with temporary_settings({PREFECT_API_URL: api}):
            for name in ("signed", "unsigned"):
                StatePersistence.delete(name, _sync=True)

    assert findings(good)["signing secret"] == (True, "signs: loaded")
    assert findings(good)["state-persistence/signed"] == (True, "valid")
    assert "sesame" not in good.out + bad.out
    assert bad.code == NOT_FINISHED
    for name in ("signing secret", "state-persistence/unsigned"):
        ok, what = findings(bad)[name]
        assert not ok
        assert what.startswith("signing_secret: got 'nowhere'; expected the name of a secret block")


def test_run_prints_the_chains_status(with_server: Shell) -> None:
    """`--json`: one object on standard output, whatever the sessions log; the same as `status --json` prints later."""
    said = with_server("run", "agents.py:count", "--param", "upto=4", "--param", "chain=counted", "--json")

    assert said.code == OK, said
    status = said.json()
    assert (status["chain"], status["status"], status["items"]["completed"]) == ("counted", "finished", 4)
    assert with_server.here("status", "counted", "--json").json() == status
