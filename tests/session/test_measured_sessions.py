"""Sessions as OpenTelemetry's spans and metrics, kept in memory by its own SDK."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from session_rig import Rig, tokens
from support import FakeClock, LedgerFactory

from perpetual_blocks.adapters.open_telemetry import OpenTelemetry, is_tracing, open_telemetry
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.telemetry import SessionStarted, UnitFailed
from perpetual_blocks.work import Unit, WorkItem

CHAIN = {"gen_ai.agent.name": "Writer", "perpetual.chain": "mine"}


class Writer(PerpetualAgent):
    """Asks a model for one text after the other; the last one fails."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"text-{n}", max_attempts=1) for n in range(5)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend({"usage": {"input_tokens": 80, "output_tokens": 20}, "model": "small-1"})
        if unit.id == "text-4":
            raise ValueError("no text")
        return {}

    def cleanup(self) -> None:
        raise OSError("nothing to clean")


class Measured:
    """An observer with providers of its own, and what they have got."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def observer(self) -> OpenTelemetry:
        return OpenTelemetry("Writer", self.tracers, self.meters)

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Each point of a metric: its attributes, and its value, or the sum of its histogram."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [
            (dict(point.attributes), getattr(point, "value", None) if hasattr(point, "value") else point.sum)
            for metric in found
            for point in metric.data.data_points
        ]


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def make_rig(make_ledger: LedgerFactory, clock: FakeClock) -> Callable[..., Rig]:
    return lambda **parts: Rig(make_ledger(), clock, Writer(), **parts)


def test_sessions_are_spans_and_their_steps_are_within(make_rig: Callable[..., Rig], measured: Measured) -> None:
    """One trace for each session, by the conventions of generative AI; what failed says so."""
    rig = make_rig()
    rig.observers = [measured.observer()]

    rig.run_chain(tokens(350))

    spans = measured.exporter.get_finished_spans()
    first, second = (span for span in spans if span.name == "invoke_agent Writer")
    expected = {
        **CHAIN,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "mine",
        "perpetual.session.ordinal": 1,
        "perpetual.session.took_over": False,
        "perpetual.session.state": "Wrapped",
        "perpetual.session.stop": "budget:tokens",
        "perpetual.session.units": 3,
        "perpetual.usage.tokens": 300.0,
        "perpetual.usage.calls": 3.0,
        "perpetual.usage.seconds": 3.0,
        "gen_ai.usage.input_tokens": 240,
        "gen_ai.usage.output_tokens": 60,
    }
    assert first.attributes == expected
    assert (second.attributes or {})["perpetual.session.ordinal"] == 2
    assert first.context.trace_id != second.context.trace_id
    steps = {span.name: span for span in spans if span.parent == first.context}
    assert {"shutdown save_state", "shutdown handoff", "shutdown cleanup"} <= set(steps)
    assert steps["shutdown save_state"].status.is_unset
    assert steps["shutdown cleanup"].status.description == "OSError: nothing to clean"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_what_sessions_use_is_measured(make_rig: Callable[..., Rig], measured: Measured) -> None:
    """Units, usage, budget, items, durations and gaps; a model's tokens by their type."""
    rig = make_rig()
    rig.observers = [measured.observer()]

    rig.run(tokens(350))
    rig.clock.advance(4)
    rig.run(tokens(350), invited=list(rig.runs.created)[-1])

    units = {point["perpetual.outcome"]: value for point, value in measured.points("perpetual.units")}
    assert units == {"completed": 4, "failed": 1}
    usage = {point["perpetual.resource"]: value for point, value in measured.points("perpetual.usage")}
    assert usage == {"tokens": 500, "calls": 5, "seconds": 4}
    limit = {**CHAIN, "perpetual.resource": "tokens", "perpetual.limit": "tokens", "perpetual.scope": "session"}
    assert measured.points("perpetual.budget.used") == [(limit, 200)]
    assert measured.points("perpetual.budget.limit") == [(limit, 350)]
    items = {point["perpetual.status"]: value for point, value in measured.points("perpetual.items")}
    assert {status: count for status, count in items.items() if count} == {"completed": 4, "discarded": 1}
    assert measured.points("perpetual.handoff.gap") == [(CHAIN, 4)]
    assert measured.points("perpetual.session.duration") == [
        ({**CHAIN, "perpetual.session.state": "Wrapped"}, 3),
        ({**CHAIN, "perpetual.session.state": "Finished"}, 2),
    ]
    model = {**CHAIN, "gen_ai.response.model": "small-1", "gen_ai.operation.name": "invoke_agent"}
    assert measured.points("gen_ai.client.token.usage") == [
        ({**model, "gen_ai.token.type": "input"}, 400),
        ({**model, "gen_ai.token.type": "output"}, 100),
    ]


def test_a_session_that_was_fenced_off_leaves_no_open_span(measured: Measured) -> None:
    """It is told of no end; closing its observer ends the span, and what follows is not within it."""
    observer = measured.observer()
    observer(SessionStarted("mine", 3, took_over=True, notes=()))
    assert trace.get_current_span().is_recording()

    observer.close(1.0)
    observer.close(1.0)
    observer(UnitFailed("mine", "text-1", 1, 3, "late"))

    (span,) = measured.exporter.get_finished_spans()
    assert (span.attributes or {})["perpetual.session.ordinal"] == 3
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_nothing_is_measured_where_nobody_has_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers of OpenTelemetry's API alone do nothing; one of either kind is enough to be heard."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(metrics, "get_meter_provider", metrics.NoOpMeterProvider)
    assert not is_tracing()
    assert open_telemetry("Writer") == ()

    monkeypatch.setattr(metrics, "get_meter_provider", lambda: MeterProvider(shutdown_on_exit=False))
    assert not is_tracing()
    assert len(open_telemetry("Writer")) == 1
