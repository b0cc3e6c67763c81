"""The same work twice under the same limit: with the pattern, and in a plain loop."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.panel import Panel
from rich.table import Table

from perpetual_blocks.adapters.local_server import configured_server, local_server
from perpetual_blocks.cli.demos import application
from perpetual_blocks.cli.demos.application import PERPETUAL, Application, DemoFailed, flow_file
from perpetual_blocks.cli.demos.plain import DONE
from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.output import NOT_FINISHED, OK, Where, err, out, print_json
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.status import chain_status

LOOK_SECONDS = 0.25
LEAST_TIMES = 2
"""So often the limit has to be reached, or it was none."""

PLAIN = [sys.executable, "-m", "perpetual_blocks.cli.demos.plain"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one of the two has come to.

    Attributes:
        ended: How, in words.
        done: How many results it had at the end.
        kept: How many of them are left, now that its processes are gone.
        reached: How often the limit was reached.
        overruns: How often it was overrun.
        results: What is left, by name: the digest of each.
    """

    ended: str
    done: int
    kept: int
    of: int
    reached: int
    overruns: int
    seconds: float
    results: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all is done, and there."""
        return self.kept == self.of

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "results"}
        return shown | {"finished": self.finished}


def compare(name: str, chain: str, folder: Path, where: Where, *, json: bool) -> int:
    """Shows one of the applications; 0 where the pattern has finished it within the limit, and the loop has not."""
    kind = application(name)
    for module in kind.needs:
        if find_spec(module) is None:
            raise InvalidInput.of(
                "demo", name, f"{module}, which is not installed: pip install 'perpetual-blocks[demo]'"
            )
    ledger = where.get_store().get_ledger()
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(ledger, chain, err, quiet=json))
        if configured_server() is None:
            follower.note("starting a local Prefect server (the first time takes a little longer)")
            os.environ["PREFECT_API_URL"] = stack.enter_context(local_server())
        alone = kind(folder / "without")
        follower.note(f"the same work in a plain loop, with a limit of {alone.limit}")
        without = _in_a_loop(alone)
        follower.note(f"the plain loop ended: {without.ended}")
        with_us = in_a_chain(kind(folder / "with"), chain, ledger, where, follower)
    within = with_us.finished and with_us.reached >= LEAST_TIMES and with_us.overruns == 0
    as_meant = within and not without.finished
    status = chain_status(ledger, chain)
    if json:
        both = {"with": with_us.to_json(), "without": without.to_json()}
        print_json({"demo": name, "limit": alone.limit, **both, "as_meant": as_meant, "chain": status})
    else:
        out.print(chain_view(status))
        out.print(_side_by_side(alone, with_us, without, chain, folder))
    return OK if as_meant else NOT_FINISHED


def _in_a_loop(alone: Application) -> Trial:
    """The plain loop, in a process of its own."""
    began, log = time.monotonic(), alone.folder / "plain.log"
    with alone.parts():
        parameters = json.dumps(alone.parameters())
        command = [*PLAIN, alone.name, parameters]
        code = alone.on_machine(command, {**os.environ, **alone.environment()}, log)
        lines = log.read_text(errors="replace").splitlines()
        ended = _ended(code, [line for line in lines if line != DONE and line.strip()])
        return Trial(
            ended,
            done=lines.count(DONE),
            # What was in its memory is gone with it.
            kept=alone.expected() if code == 0 else len(alone.results()),
            of=alone.expected(),
            reached=1,
            overruns=alone.overruns(),
            seconds=round(time.monotonic() - began, 1),
        )


def _ended(code: int, said: list[str]) -> str:
    if code < 0 or code > 128:
        return f"killed by signal {-code if code < 0 else code - 128}"
    if code == 0:
        return "finished"
    errors = [line for line in said if "Error: " in line or "Exception: " in line] or said
    return errors[-1].strip() if errors else f"exit code {code}"


def in_a_chain(used: Application, chain: str, ledger: Ledger, where: Where, follower: Follower) -> Trial:
    """What the flow comes to, in a chain of sessions, each in a process of its own."""
    began = time.monotonic()
    with used.parts():
        parameters = {**used.parameters(), "chain": chain}
        command = [*PERPETUAL, "run", _entrypoint(used), "--json"]
        command += [f"--param={name}={_text(value)}" for name, value in parameters.items()]
        command += ["--once"] * used.one_session + (["--store", where.store] if where.store else [])
        while True:
            with _followed(follower):
                code = used.on_machine(command, {**os.environ, **used.environment()}, used.folder / "sessions.log")
            status = _status(ledger, chain, code, used.folder / "sessions.log")
            if status["status"] == "finished" or not used.goes_on(status):
                break
        results = used.results()
        stops = [session["stop_reason"] or "" for session in status["sessions"]]
        return Trial(
            ended=status["status"],
            done=status["items"]["completed"],
            kept=len(results),
            of=used.expected(),
            reached=sum(stop.startswith(("budget:", "exhausted:", "nothing-fits")) for stop in stops),
            overruns=used.overruns(),
            seconds=round(time.monotonic() - began, 1),
            results=results,
        )


def _entrypoint(used: Application) -> str:
    file, _, name = used.flow.partition(":")
    return f"{flow_file(file)}:{name}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _status(ledger: Ledger, chain: str, code: int, log: Path) -> dict[str, Any]:
    try:
        return chain_status(ledger, chain)
    except UnknownChain:
        last = log.read_text(errors="replace").strip().splitlines()[-3:] or ["no output"]
        raise DemoFailed(f"demo: its first session did not begin (exit code {code}): {' | '.join(last)}") from None


@contextmanager
def _followed(follower: Follower) -> Iterator[None]:
    """Shows what happens meanwhile."""
    over = Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            follower.look()

    looking = Thread(target=look, name="follower", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _side_by_side(alone: Application, with_us: Trial, without: Trial, chain: str, folder: Path) -> Panel:
    table = Table("", "in a plain loop", "as a perpetual flow", box=None, header_style="bold")
    rows: Mapping[str, tuple[object, object]] = {
        "ended": (without.ended, with_us.ended),
        "done": (f"{without.done} of {without.of}", f"{with_us.kept} of {with_us.of}"),
        "left of it": (without.kept, with_us.kept),
        "limit reached": (_times(without.reached), _times(with_us.reached)),
        "limit overrun": (_times(without.overruns), _times(with_us.overruns)),
        "took": (f"{without.seconds:g} s", f"{with_us.seconds:g} s"),
    }
    for name, (one, other) in rows.items():
        table.add_row(f"[dim]{name}", str(one), str(other))
    again = f"{os.path.relpath(folder)}; `perpetual report {chain}`, `perpetual handoff {chain}`"
    return Panel(table, title=f"a limit of {alone.limit}", title_align="left", subtitle=again, expand=False)


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
