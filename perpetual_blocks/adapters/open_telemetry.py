"""OpenTelemetry: sessions, units and shutdown steps as spans, and what they used as metrics.

As OpenTelemetry asks of a library, only its API is used here. Who wants the data sets up the SDK: `pip install
perpetual-blocks[otel]` and an exporter, then `opentelemetry-instrument` and the usual `OTEL_…` variables, or a provider
that the flow's own module sets. Where nobody has, there is no observer, and nothing is measured.

| span | of | attributes |
| --- | --- | --- |
| `invoke_agent <agent>` | a session | `gen_ai.operation.name`, `gen_ai.agent.name`, `gen_ai.conversation.id`: the \
chain, `gen_ai.usage.input_tokens`, `.output_tokens`, `perpetual.chain`, `perpetual.session.ordinal`, `.took_over`, \
`.state`, `.stop`, `.units`, `perpetual.usage.<resource>` |
| `work_unit <kind>` | a unit, as long as it runs: spans of what it calls are within it | `perpetual.unit.item`, \
`.number`, `.attempt`, `perpetual.usage.<resource>`, `error.type` |
| `shutdown <step>` | a step of the shutdown | |

Sessions of a chain are traces of their own, as a chain may last for weeks; `gen_ai.conversation.id` joins them. Where a
session runs, Prefect makes spans of the flow run, which is the root, and of task runs, which are beside ours.

| metric | kind, unit | attributes besides `gen_ai.agent.name` and `perpetual.chain` |
| --- | --- | --- |
| `perpetual.units` | counter, {unit} | `perpetual.outcome`: completed, advanced, failed or cut-off |
| `perpetual.usage` | counter, in the resource's unit | `perpetual.resource` |
| `perpetual.session.duration` | histogram, s | `perpetual.session.state` |
| `perpetual.handoff.gap` | histogram, s: from when the chain could go on until its next session began | |
| `perpetual.budget.used`, `.limit` | gauges, in the resource's unit | `perpetual.resource`, `.limit`, `.scope` |
| `perpetual.items` | gauge, {item}: at the end of each session | `perpetual.status` |
| `gen_ai.client.token.usage` | histogram, {token}: what `unit.spend(response)` has read, of units that run in the \
session's process | `gen_ai.token.type`: input or output, `gen_ai.operation.name`, `gen_ai.response.model` |

The operation is `invoke_agent` there, so that nothing is counted twice where the provider's own library is measured as
well, whose operations are `chat` and the like.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from perpetual_blocks import __version__
from perpetual_blocks.telemetry import (
    BudgetRead,
    BudgetWarned,
    ItemDiscarded,
    Level,
    ModelUsed,
    Moment,
    SessionEnded,
    SessionStarted,
    StepEnded,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)
from perpetual_blocks.work import CutOff, Unit

NAME = "perpetual_blocks"
SESSION = context.create_key("perpetual session")
AGENT, OPERATION, INVOKE = "gen_ai.agent.name", "gen_ai.operation.name", "invoke_agent"
TOKENS = tuple(4**power for power in range(14))
GAPS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
DURATIONS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400)

Attributes = dict[str, str | int | float | bool]


def is_tracing() -> bool:
    """Whether somebody wants spans."""
    return _is_real(trace.get_tracer_provider())


def open_telemetry(agent: str) -> "tuple[OpenTelemetry, ...]":
    """The observer of a session of this agent; nothing where nobody wants its data."""
    return (OpenTelemetry(agent),) if is_tracing() or _is_real(metrics.get_meter_provider()) else ()


def _is_real(provider: object) -> bool:
    # The API's own providers do nothing, or stand in for one that is still to be set.
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


@contextmanager
def unit_span(unit: Unit) -> Iterator[None]:
    """The span of a unit, while the `with` block runs; what is raised within is masked already."""
    tracer = trace.get_tracer(NAME, __version__)
    about: Attributes = {"perpetual.unit.item": unit.id, "perpetual.unit.number": unit.number}
    about["perpetual.unit.attempt"] = unit.attempt
    # The current span is Prefect's, of the task run, which is a child of the flow run's.
    session = context.get_value(SESSION)
    parent = trace.set_span_in_context(session) if isinstance(session, Span) else None
    with tracer.start_as_current_span(
        f"work_unit {unit.kind}", parent, attributes=about, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except CutOff as cut_off:
            span.add_event("cut off", {"perpetual.resource": cut_off.resource})
            raise
        except Exception as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.set_attributes(_usage(unit.usage))


class OpenTelemetry:
    """Makes spans and measures of one session: an observer, to be closed when the session is over.

    It is told of the session in the thread that the session runs in: what that thread and those that it starts do
    meanwhile is within the session's span.

    Args:
        tracers: Whose spans they are; the application's if not given.
        meters: The same of the metrics.
    """

    def __init__(self, agent: str, tracers: TracerProvider | None = None, meters: MeterProvider | None = None) -> None:
        self._agent = agent
        self._tracer = trace.get_tracer(NAME, __version__, tracers)
        meter = metrics.get_meter(NAME, __version__, meters)
        self._units = meter.create_counter("perpetual.units", "{unit}", "Units that came to an end")
        self._used = meter.create_counter("perpetual.usage", "1", "What units have used, of each resource")
        self._items = meter.create_gauge("perpetual.items", "{item}", "Items of the chain, by status")
        self._level = meter.create_gauge("perpetual.budget.used", "1", "What is used of a limit")
        self._limit = meter.create_gauge("perpetual.budget.limit", "1", "What a limit allows")
        self._duration = meter.create_histogram(
            "perpetual.session.duration",
            "s",
            "How long sessions took",
            explicit_bucket_boundaries_advisory=DURATIONS,
        )
        self._gap = meter.create_histogram(
            "perpetual.handoff.gap",
            "s",
            "From when the chain could go on until its next session began",
            explicit_bucket_boundaries_advisory=GAPS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        self._span: Span | None = None
        self._token: object = None
        self._lock = Lock()
        self._model_tokens = {"input": 0, "output": 0}

    def __call__(self, moment: Moment) -> None:
        common: Attributes = {AGENT: self._agent, "perpetual.chain": moment.chain}
        match moment:
            case SessionStarted():
                self._begin(moment, common)
            case UnitCompleted(_, _, _, done, _, usage):
                self._count("completed" if done else "advanced", usage, common)
            case UnitFailed():
                self._count("failed", moment.usage, common)
            case UnitCutOff():
                self._count("cut-off", moment.usage, common)
            case ModelUsed():
                self._count_tokens(moment, common)
            case BudgetRead(_, levels):
                for level in levels:
                    self._measure(level, common)
            case BudgetWarned(_, resource, reason):
                self._note("budget warning", {"perpetual.resource": resource, "perpetual.reason": reason})
            case ItemDiscarded(_, item, reason):
                self._note("item discarded", {"perpetual.item": item, "perpetual.reason": reason})
            case StepEnded(_, step, seconds, error):
                self._step(step, seconds, error)
            case SessionEnded():
                self._end(moment, common)

    def close(self, seconds: float) -> None:
        """Ends the span of a session that was not closed, as it was fenced off."""
        self._leave()

    def _leave(self) -> None:
        if self._span is not None:
            self._span.end()
            context.detach(self._token)  # type: ignore[arg-type]
            self._span = None

    def _begin(self, started: SessionStarted, common: Attributes) -> None:
        if started.gap is not None:
            self._gap.record(started.gap, common)
        about = {**common, OPERATION: INVOKE, "gen_ai.conversation.id": started.chain}
        about |= {"perpetual.session.ordinal": started.ordinal, "perpetual.session.took_over": started.took_over}
        self._span = self._tracer.start_span(f"{INVOKE} {self._agent}", attributes=about)
        within = context.set_value(SESSION, self._span, trace.set_span_in_context(self._span))
        self._token = context.attach(within)

    def _end(self, ended: SessionEnded, common: Attributes) -> None:
        self._duration.record(ended.seconds, {**common, "perpetual.session.state": str(ended.state)})
        for status, count in ended.items.items():
            self._items.set(count, {**common, "perpetual.status": status})
        if self._span is None:
            return
        about = {"perpetual.session.state": str(ended.state), "perpetual.session.stop": ended.code}
        self._span.set_attributes({**about, "perpetual.session.units": ended.units, **_usage(ended.usage)})
        if any(self._model_tokens.values()):
            self._span.set_attributes({f"gen_ai.usage.{kind}_tokens": n for kind, n in self._model_tokens.items()})
        if ended.state == "Failed":
            self._span.set_status(Status(StatusCode.ERROR, ended.reason))
        self._leave()

    def _count(self, outcome: str, usage: Mapping[str, float], common: Attributes) -> None:
        self._units.add(1, {**common, "perpetual.outcome": outcome})
        for name, amount in usage.items():
            self._used.add(amount, {**common, "perpetual.resource": name})

    def _step(self, step: str, seconds: float, error: str | None) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(f"shutdown {step}", start_time=now - round(seconds * 1e9))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(now)

    def _count_tokens(self, used: ModelUsed, common: Attributes) -> None:
        model: Attributes = {"gen_ai.response.model": used.model} if used.model else {}
        for kind, tokens in (("input", used.input_tokens), ("output", used.output_tokens)):
            self._tokens.record(tokens, {**common, **model, OPERATION: INVOKE, "gen_ai.token.type": kind})
            with self._lock:
                self._model_tokens[kind] += tokens

    def _measure(self, level: Level, common: Attributes) -> None:
        about = {**common, "perpetual.resource": level.resource, "perpetual.limit": level.limit}
        about["perpetual.scope"] = level.scope
        self._level.set(level.used, about)
        self._limit.set(level.amount, about)

    def _note(self, what: str, about: Attributes) -> None:
        if self._span is not None:
            self._span.add_event(what, about)


def _usage(usage: Mapping[str, float]) -> Attributes:
    return {f"perpetual.usage.{name}": amount for name, amount in usage.items()}
