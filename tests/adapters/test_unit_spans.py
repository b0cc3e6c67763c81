"""Units as spans: what a unit calls is within its span, wherever it runs, and what it raises is masked."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prefect import flow
from support import Raised, run_unit, some_item

from perpetual_blocks import PerpetualAgent, Unit
from perpetual_blocks.adapters.open_telemetry import OpenTelemetry
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.result_storage import load_storage
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.telemetry import SessionStarted
from perpetual_blocks.work import CutOff

SECRET = "hunter2-hunter2"


class Caller(PerpetualAgent):
    """Calls something that makes a span of its own, as the id says: in a coroutine, or to no avail."""

    def plan(self) -> list[Any]:
        return []

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=5)
        if unit.id == "in a coroutine":
            return self._call()
        with trace.get_tracer("library").start_as_current_span("call"):
            if unit.id == "in vain":
                raise ValueError(f"refused: {SECRET}")
        if unit.id == "no room":
            raise CutOff("no room", "tokens")
        return {}

    async def _call(self) -> dict[str, Any]:
        with trace.get_tracer("library").start_as_current_span("call"):
            return {}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What an application gets that has set OpenTelemetry up."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_a_unit_is_a_span_and_what_it_calls_is_within(results: Path, spans: InMemorySpanExporter) -> None:
    """In a thread, in a coroutine, where it raises and where it is cut off; all within the session's."""
    kinds = ("in a thread", "in a coroutine", "in vain", "no room")

    @flow
    def run() -> None:
        observer = OpenTelemetry("Caller")
        observer(SessionStarted("mine", 1, took_over=False, notes=()))
        with closing(PrefectUnits(Caller(), load_storage(""), None, Redactor([SECRET]))) as units:
            for kind in kinds:
                try:
                    run_unit(units, some_item(kind))
                except Raised:
                    assert kind in ("in vain", "no room")
        observer.close(1.0)

    run()

    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    units, (session,) = found["work_unit default"], found["invoke_agent Caller"]
    assert [span.parent for span in units] == [session.context] * len(kinds)
    roots = [span for name, same in found.items() for span in same if span.parent is None]
    assert [root.context for root in roots] == [session.parent]  # Prefect's, of the flow run
    assert [span.parent for span in found["call"]] == [span.context for span in units]
    first, _, failed, cut_off = units
    assert first.attributes == {
        "perpetual.unit.item": "in a thread",
        "perpetual.unit.number": 1,
        "perpetual.unit.attempt": 1,
        "perpetual.usage.tokens": 5.0,
    }
    assert (failed.status.description, (failed.attributes or {})["error.type"]) == ("refused: ***", "ValueError")
    assert SECRET not in failed.to_json()
    assert cut_off.status.is_unset
    assert [event.name for event in cut_off.events] == ["cut off"]
