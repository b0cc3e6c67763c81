"""What errors say of services, and sessions whose service is away."""

from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest
from anthropic import APIConnectionError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from pydantic import PrivateAttr
from pydantic_ai.exceptions import ModelHTTPError
from session_rig import Rig
from support import FakeClock, LedgerFactory

from perpetual_blocks import PerpetualAgent, Unavailable, Unit, WorkItem
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.service_errors import is_of_service, is_throttled
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.continuation import BACK_OFF_SECONDS
from perpetual_blocks.work import ItemStatus

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1/messages")


class RateLimitError(Exception):
    """As the clients of several services call it."""


class Refused(Exception):
    """An HTTP client's error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


class Answered(Exception):
    """An error that has the response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = Refused(status)


def of_aws(status: int, code: str) -> BaseException:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def caused_by(cause: BaseException) -> BaseException:
    try:
        raise ValueError("the page could not be had") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "throttled"),
    [
        (RateLimitError(), True),
        (Refused(429), True),
        (Answered(429), True),
        (caused_by(Refused(429)), True),
        (of_aws(503, "SlowDown"), True),
        (of_aws(400, "ThrottlingException"), True),
        (of_aws(404, "NoSuchKey"), False),
        (Refused(500), False),
        (Answered(404), False),
        (ValueError("429"), False),
    ],
    ids=repr,
)
def test_what_says_that_there_were_too_many_calls(error: BaseException, throttled: bool) -> None:
    assert is_throttled(error) is throttled


class FromGoogle(Exception):
    """As google-genai's errors, which say the status in `code`."""

    __module__ = "google.genai.errors"

    def __init__(self, code: int, text: str = "UNAVAILABLE") -> None:
        super().__init__(f"{code} {text}")
        self.code = code


def of_openai(status: int) -> BaseException:
    return openai.APIStatusError(str(status), response=httpx.Response(status, request=REQUEST), body=None)


@pytest.mark.parametrize(
    ("error", "of_service"),
    [
        (Unavailable("the warehouse"), True),
        (caused_by(Unavailable("the warehouse")), True),
        (of_openai(503), True),
        (of_openai(429), True),
        (of_openai(401), True),
        (of_openai(400), False),
        (of_openai(404), False),
        (openai.APITimeoutError(REQUEST), True),
        (APIConnectionError(request=REQUEST), True),
        (ModelHTTPError(529, "claude"), True),
        (FromGoogle(503), True),
        (FromGoogle(400), False),
        (ModelHTTPError(413, "claude"), False),
        (of_aws(503, "SlowDown"), True),
        (of_aws(500, "InternalError"), True),
        (of_aws(400, "ExpiredToken"), True),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), True),
        (ReadTimeoutError(endpoint_url="http://127.0.0.1:9"), True),
        (NoCredentialsError(), True),
        (of_aws(404, "NoSuchKey"), False),
        (of_aws(403, "AccessDenied"), False),
        # A page that cannot be had says nothing of the others.
        (httpx.ConnectError("no route"), False),
        (Refused(503), False),
        (TimeoutError(), False),
    ],
    ids=repr,
)
def test_what_speaks_of_a_service_and_not_of_an_item(error: BaseException, of_service: bool) -> None:
    assert is_of_service(error) is of_service


def test_an_error_whose_secret_is_masked_says_it_all_the_same() -> None:
    """Some providers quote the key that they refuse."""
    masked = Redactor(["sk-0123456789"]).clean(FromGoogle(401, "API key sk-0123456789 not valid"))

    assert "sk-0123456789" not in str(masked)
    assert is_of_service(masked)


class Asks(PerpetualAgent):
    """Asks a service for each item."""

    count: int = 6
    _down: bool = PrivateAttr(default=False)
    _refused: set[str] = PrivateAttr(default_factory=set)
    _calls: list[str] = PrivateAttr(default_factory=list)

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"q-{number}") for number in range(self.count)]

    def work_unit(self, unit: Unit) -> str:
        self._calls.append(unit.id)
        unit.spend(tokens=10)
        if self._down or unit.id in self._refused:
            raise of_openai(503)
        return "answered"


@pytest.fixture
def rig(make_ledger: LedgerFactory, clock: FakeClock) -> Rig:
    return Rig(make_ledger(), clock, Asks())


def agent(rig: Rig) -> Any:
    return rig.agent


def next_session(rig: Rig) -> SessionState:
    """The next one, when its time has come."""
    resume_at = rig.ledger.chain("mine").resume_at
    assert resume_at is not None
    rig.clock.advance(max(0.0, resume_at - rig.clock.now()))
    return rig.run(invited=list(rig.runs.created)[-1]).state


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_outage_costs_no_item_its_attempts(rig: Rig, concurrency: int) -> None:
    """The session wraps with its handoff, the chain asks again later and later, once each time, and then goes on."""
    agent(rig)._down = True
    end = rig.run(concurrency=concurrency)
    first, now = rig.ledger.chain("mine"), rig.clock.now()
    calls = len(agent(rig)._calls)

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "outage")
    assert (first.status, first.resume_at) == (ChainStatus.WAITING, pytest.approx(now + 30, abs=15))
    assert "APIStatusError: 503" in first.reason
    assert calls <= 3 + 2 * (concurrency - 1)
    assert len(rig.ledger.documents("mine", "handoff")) == 1

    for _ in range(4):
        assert next_session(rig) is SessionState.WRAPPED
    assert len(agent(rig)._calls) == calls + 4
    assert sum(item.attempts for item in rig.ledger.items("mine")) == 1
    spent = sum(session.usage["tokens"] for session in rig.ledger.sessions("mine"))
    assert spent == 10 * len(agent(rig)._calls), "what it has cost is counted"

    agent(rig)._down = False
    assert next_session(rig) is SessionState.FINISHED
    assert {item.status for item in rig.ledger.items("mine")} == {ItemStatus.COMPLETED}


def test_an_item_that_alone_is_refused_is_given_up(rig: Rig) -> None:
    """While the others are answered, it is not the service's fault."""
    agent(rig)._refused = {"q-0"}

    assert rig.run().state is SessionState.FINISHED

    assert agent(rig)._calls.count("q-0") == 3
    statuses = {item.id: item.status for item in rig.ledger.items("mine")}
    assert statuses.pop("q-0") is ItemStatus.DISCARDED
    assert set(statuses.values()) == {ItemStatus.COMPLETED}


def test_an_outage_that_lasts_asks_a_person(rig: Rig) -> None:
    """After a night the chain is stalled, with all of its items; a person's word lets it go on."""
    agent(rig)._down = True
    rig.run()
    for _ in BACK_OFF_SECONDS[1:]:
        next_session(rig)

    assert next_session(rig) is SessionState.STALLED

    chain = rig.ledger.chain("mine")
    assert (chain.status, chain.resume_at) == (ChainStatus.STALLED, None)
    assert chain.reason.endswith(f"{len(BACK_OFF_SECONDS)} sessions before ended in the same way")
    agent(rig)._down = False
    assert rig.run().state is SessionState.FINISHED
