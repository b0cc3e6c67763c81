"""The program of a chain: its agent, the version of its context, and its code from session to session."""

import re
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from sqlalchemy import update
from support import LEASE, one_line, open_session, session_request, status_of
from test_admission import chain
from test_loop import MakeRig, Reader, Rig, make_rig, tokens

from perpetual_blocks.adapters.database import schema
from perpetual_blocks.adapters.database.engine import writing
from perpetual_blocks.errors import InvalidInput, Superseded
from perpetual_blocks.session.chain import ChainStatus, CodePolicy, SessionState
from perpetual_blocks.session.program import check_program, code_change, is_other_code
from perpetual_blocks.telemetry import CodeChanged
from perpetual_blocks.work import ItemStatus, Unit

__all__ = ["make_rig"]


# The decisions --------------------------------------------------------------------------------------------------------


def test_a_chain_is_its_agents() -> None:
    """A session of another agent is refused in one line that names both."""
    check_program(chain(), session_request())

    with pytest.raises(InvalidInput) as refused:
        check_program(chain(), session_request(agent="Miner"))

    one_line(refused.value, "chain: got 'mine'", "Miner", "this is Tester's")


def test_an_agent_that_is_older_than_the_context_is_refused() -> None:
    """What a newer version wrote is not touched; the same version and a newer one may."""
    for version in (2, 3):
        check_program(chain(context_version=2), session_request(context_version=version))

    with pytest.raises(InvalidInput) as refused:
        check_program(chain(context_version=2), session_request())

    one_line(refused.value, "Tester.context_version: got 1; expected at least 2", "mine", "newer version")


@pytest.mark.parametrize(
    ("before", "now", "other"),
    [
        (None, None, False),
        (None, "a1", False),
        ("a1", None, False),
        ("a1", "a1", False),
        ("a1", "b2", True),
        ("a1 v1", "a1 v1", False),
        ("a1 v1", "a1 v2", True),
        ("a1 v1", "b2 v1", True),
        ("a1 v 1", "a1 v 2", True),
        ("a1", "a1 v1", False),
        ("a1 v1", "a1", False),
        ("a1 v1", "b2", True),
    ],
)
def test_what_counts_as_other_code(before: str | None, now: str | None, other: bool) -> None:
    """The source or the deployment's version differ; what one side does not know is no difference."""
    assert is_other_code(before, now) is other


@pytest.mark.parametrize(
    ("policy", "refused", "said"),
    [
        ("warn", False, "its code changed since session 3 (a1 before, b2 now)"),
        ("refuse", True, "its code changed since session 3: `perpetual resume mine` goes on with the new code"),
    ],
)
def test_what_is_done_about_other_code(policy: CodePolicy, refused: bool, said: str) -> None:
    """It is said, or the session is refused with what to do; where nothing changed there is nothing to do."""
    request = session_request(code="b2", on_code_change=policy)

    change = code_change(chain(code="a1"), request)

    assert change is not None
    assert (change.refused, change.what) == (refused, said)
    assert code_change(chain(code="b2"), request) is None
    assert code_change(chain(code=None), request) is None


def test_an_agent_may_not_care() -> None:
    """With `go-on` other code is nothing to speak of."""
    assert code_change(chain(code="a1"), session_request(code="b2", on_code_change="go-on")) is None


# In sessions ----------------------------------------------------------------------------------------------------------


class Careful(Reader):
    """Reads documents, and wants a person to see each change of its code."""

    on_code_change: ClassVar[CodePolicy] = "refuse"


class Careless(Reader):
    """Reads documents, whatever its code."""

    on_code_change: ClassVar[CodePolicy] = "go-on"


def accept_any_code(rig: Rig) -> None:
    """What a person's resume does."""
    with writing(rig.ledger._engine) as connection:
        connection.execute(update(schema.chains).values(code=None, status=ChainStatus.WAITING))


def test_a_change_of_code_is_told(make_rig: MakeRig) -> None:
    """By default the session says so in its log and in its handoff, and goes on; once for each change."""
    rig = make_rig(Reader())
    for code in ("a1", "b2", "b2"):
        rig.run(tokens(100), code=code)

    said = "its code changed since session 1 (a1 before, b2 now)"
    assert rig.told(CodeChanged) == [CodeChanged("mine", 2, said)]
    assert f"- {said}" in rig.document("handoff", 2)
    assert "code changed" not in rig.document("handoff", 1) + rig.document("handoff", 3)
    assert rig.ledger.chain("mine").code == "b2"
    assert [session.units for session in rig.ledger.sessions("mine")] == [1, 1, 1]


def test_an_agent_may_refuse_other_code(make_rig: MakeRig) -> None:
    """Then no session begins, and the chain is paused with what to do, until any code is welcome again."""
    rig = make_rig(Careful())
    rig.run(tokens(100), code="a1")
    before = rig.ledger.sessions("mine")

    for _ in range(2):
        with pytest.raises(Superseded) as refused:
            rig.run(tokens(100), code="b2")
        one_line(refused.value, "mine is paused", "its code changed since session 1", "`perpetual resume mine`")

    paused = rig.ledger.chain("mine")
    assert (paused.status, paused.code, paused.ordinal) == (ChainStatus.PAUSED, "a1", 1)
    assert paused.reason == "its code changed since session 1: `perpetual resume mine` goes on with the new code"
    assert rig.ledger.sessions("mine") == before
    assert len(rig.runner.ran) == 1

    accept_any_code(rig)
    assert rig.run(tokens(100), code="b2").state is SessionState.WRAPPED
    assert (rig.ledger.chain("mine").code, len(rig.runner.ran)) == ("b2", 2)


def test_refusing_frees_what_a_dead_session_held(make_rig: MakeRig) -> None:
    """A session that died before the code changed is buried; the paused chain has no owner and no claims."""
    rig = make_rig(Careful())
    rig.run(tokens(100), code="a1")
    fence = open_session(rig.ledger, "mine", "dead", agent="Careful", code="a1").fence
    rig.ledger.claim(fence, lambda item: None)
    rig.clock.advance(LEASE + 1)

    with pytest.raises(Superseded):
        rig.run(tokens(100), code="b2")

    assert [session.state for session in rig.ledger.sessions("mine")] == [SessionState.WRAPPED, SessionState.CRASHED]
    assert ItemStatus.CLAIMED not in status_of(rig.ledger).values()
    assert rig.ledger.chain("mine").status is ChainStatus.PAUSED
    with pytest.raises(Superseded):
        rig.run(tokens(100), code="a1")


def test_other_code_does_not_pause_a_session_at_work(make_rig: MakeRig) -> None:
    """Who comes while another session works is refused for that, and changes nothing."""
    rig = make_rig(Careful())
    open_session(rig.ledger, "mine", "at work", agent="Careful", code="a1")

    with pytest.raises(Superseded) as refused:
        rig.run(code="b2")

    one_line(refused.value, "session 1 of mine is at work")
    assert rig.ledger.chain("mine").status is ChainStatus.RUNNING


@pytest.mark.parametrize(("agent", "code"), [(Careless(), "b2"), (Careful(), None), (Reader(), None)])
def test_nothing_is_said_of_code(make_rig: MakeRig, agent: Reader, code: str | None) -> None:
    """Where the agent does not care, or its code is not known."""
    rig = make_rig(agent)
    rig.run(tokens(100), code="a1")

    assert rig.run(tokens(100), code=code).state is SessionState.WRAPPED
    assert rig.told(CodeChanged) == []
    assert "code changed" not in rig.document("handoff", 2)


def test_a_chain_is_not_started_by_another_agents_run(make_rig: MakeRig) -> None:
    """Its session does not begin, and the chain stays as it was."""
    rig = make_rig(Reader())
    rig.run(tokens(100))
    before = rig.ledger.chain("mine"), rig.ledger.sessions("mine")
    other = Rig(rig.ledger, rig.clock, Careless())

    with pytest.raises(InvalidInput) as refused:
        other.run(tokens(100))

    one_line(refused.value, "mine", "Careless", "Reader")
    assert (rig.ledger.chain("mine"), rig.ledger.sessions("mine")) == before
    assert rig.run(tokens(100)).state is SessionState.WRAPPED


# The context ----------------------------------------------------------------------------------------------------------


class Grown(Reader):
    """Keeps what it has read under another name since version 3."""

    context_version: ClassVar[int] = 3

    def on_context_upgrade(self, context: dict[str, Any], from_version: int) -> dict[str, Any]:
        assert from_version == 1
        return {"pages": context["read"]}

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=self.tokens)
        unit.context["pages"] = [*unit.context.get("pages", []), f"{unit.id} p{unit.number}"]


Grown.__name__ = "Reader"  # as the same agent is called after its file was changed


def grown(rig: Rig, agent: Reader) -> Rig:
    """The chain in the hands of the agent's next version."""
    agent_rig = replace(rig, agent=agent)
    agent_rig.started = rig.started
    return agent_rig


def test_the_context_is_upgraded_before_the_first_unit(make_rig: MakeRig) -> None:
    """The hook makes the new form once; units and documents have it, and the checkpoint before is still verified."""
    rig = make_rig(Reader())
    rig.run(tokens(100))
    newer = grown(rig, Grown())

    newer.run(tokens(100))
    newer.run(tokens(100))

    now = rig.ledger.chain("mine")
    assert (now.context, now.context_version) == ({"pages": ["doc-0 p1", "doc-1 p1", "doc-2 p1"]}, 3)
    assert [session.verified for session in rig.ledger.sessions("mine")] == [None, (6, 6), (6, 6)]
    said = "- the context was upgraded from version 1 to 3"
    assert [said in rig.document("handoff", ordinal) for ordinal in (1, 2, 3)] == [False, True, False]
    assert [re.findall(r'"context_version":(\d)', rig.document("checkpoint", n)) for n in (1, 2)] == [["1"], ["3"]]


def test_what_a_newer_version_wrote_is_not_touched(make_rig: MakeRig) -> None:
    """The older agent's session does not begin and says why; the newer one goes on as if nothing had been."""
    rig = make_rig(Grown())
    rig.run(tokens(100))
    before = rig.ledger.chain("mine"), rig.ledger.sessions("mine")

    with pytest.raises(InvalidInput) as refused:
        grown(rig, Reader()).run(tokens(100))

    one_line(refused.value, "Reader.context_version: got 1; expected at least 3")
    assert (rig.ledger.chain("mine"), rig.ledger.sessions("mine")) == before
    assert before[0].context_version == 3, "a new chain has its agent's version"
    rig.started += 1
    assert rig.run(tokens(100)).state is SessionState.WRAPPED


class Forgetful(Grown):
    """Has a new version, and forgot to say how to come to it."""

    on_context_upgrade = Reader.on_context_upgrade


class Returning(Grown):
    """Makes of the context what the test wants."""

    made: Any = None

    def on_context_upgrade(self, context: dict[str, Any], from_version: int) -> dict[str, Any]:
        context.clear()
        return self.made


Forgetful.__name__ = Returning.__name__ = "Reader"


@pytest.mark.parametrize(
    ("agent", "parts"),
    [
        (Forgetful(), ("Reader.on_context_upgrade", "makes context_version 3 of a context of version 1")),
        (Returning(made=None), ("on_context_upgrade: got None", "JSON object")),
        (Returning(made=["read"]), ("on_context_upgrade: got ['read']", "JSON object")),
        (Returning(made={"read": {1, 2}}), ("on_context_upgrade.read: got {1, 2}",)),
        (Returning(made={"read": "x" * 2**20}), ("on_context_upgrade: got 1,048,", "at most 1,048,576")),
    ],
    ids=["forgotten", "nothing", "a list", "no JSON", "too large"],
)
def test_a_context_that_is_not_upgraded_stays_as_it_was(
    make_rig: MakeRig, agent: Reader, parts: tuple[str, ...]
) -> None:
    """The session fails before its plan and its units, the chain says why, and the context is what it was."""
    rig = make_rig(Reader())
    rig.run(tokens(100))

    with pytest.raises(InvalidInput) as failed:
        grown(rig, agent).run(tokens(100))

    one_line(failed.value, *parts)
    now = rig.ledger.chain("mine")
    assert (now.context, now.context_version, now.status) == ({"read": ["doc-0 p1"]}, 1, ChainStatus.STALLED)
    assert parts[0] in now.reason
    assert len(rig.runner.ran) == 1
    rig.started += 1
    assert rig.run(tokens(100)).state is SessionState.WRAPPED, "the version before can go on"


def test_an_empty_context_is_of_every_version(make_rig: MakeRig) -> None:
    """A chain whose agent has kept nothing yet needs no upgrade."""
    rig = make_rig(Reader())
    open_session(rig.ledger, "mine", "dead", agent="Reader")
    rig.clock.advance(LEASE + 1)

    grown(rig, Forgetful()).run(tokens(100))

    assert rig.ledger.chain("mine").context_version == 3
