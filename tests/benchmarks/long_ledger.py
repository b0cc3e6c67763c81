"""What a session pays for a long history and a long queue: a claim and a commit, resuming, and the status."""

import os
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import Comparison, Result, side_by_side, timed
from ledger import finish_next
from multiplied_rows import multiply_rows

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unit, WorkItem
from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.session.chain import SessionRequest
from perpetual_blocks.session.loop import Session
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.session.world import World
from perpetual_blocks.testing.local import LocalDocuments, LocalUnits, ManualClock, NoSavedWork

CHAIN = "bench"
FEW = 1_000
BUDGET = Budget(Limit("calls", 1))


class OneCall(PerpetualAgent):
    """One unit a session."""

    _began: float = 0.0

    def plan(self) -> Iterable[WorkItem]:
        for number in range(4):
            yield WorkItem(id=f"first-{number}", payload={"number": number}, bound={"calls": 1})

    def work_unit(self, unit: Unit) -> dict[str, Any]:
        self._began = time.perf_counter()
        unit.spend(calls=1)
        return {"number": unit.payload["number"], "text": "done"}


class Site:
    """A folder with a ledger and documents, and a chain in it.

    Args:
        items: So many items has its queue: one half is completed, the other available.
    """

    def __init__(self, folder: Path, items: int) -> None:
        folder.mkdir()
        address = folder / "ledger.db"
        self.documents = LocalDocuments(folder / "documents")
        self.ledger = SqlLedger(str(address))
        for _ in range(2):
            self.resume()
        self.ledger.close()
        multiply_rows(address, CHAIN, items)
        self.ledger = SqlLedger(str(address))

    def resume(self) -> float:
        """The seconds from a session's first line to its first unit, which is its only one."""
        agent, clock = OneCall(), SystemClock()
        units = LocalUnits(agent, self.documents, ManualClock())
        world = World(ledger=self.ledger, documents=self.documents, runner=units, saved_work=NoSavedWork(), clock=clock)
        session = Session(agent, self.request(), BUDGET, world, task="bench")
        started = time.perf_counter()
        with closing(units):
            session.run()
        return agent._began - started

    def request(self) -> SessionRequest:
        return SessionRequest(
            chain=CHAIN,
            agent=OneCall.__name__,
            holder=process.holder_id(),
            host=process.host_name(),
            pid=os.getpid(),
            process_started=process.process_started(),
            settings={"kinds": list(OneCall.kinds), "budget": BUDGET.to_json(), "task": "bench"},
            attended=True,
        )


def measure(quick: bool) -> list[Result]:
    """Each with a million items in the ledger, against the same with a thousand."""
    many, rounds = (100_000, 3) if quick else (1_000_000, 7)
    with TemporaryDirectory(prefix="perpetual-bench-") as folder:
        long, short = Site(Path(folder) / "long", many), Site(Path(folder) / "short", FEW)
        with closing(long.ledger), closing(short.ledger):
            resume = side_by_side(lambda: [long.resume()], lambda: [short.resume()], 2 * rounds)
            status = side_by_side(lambda: _read_status(long), lambda: _read_status(short), rounds)
            fences = {site: site.ledger.open_session(site.request()).fence for site in (long, short)}
            claim = side_by_side(
                lambda: timed(lambda: finish_next(long.ledger, fences[long]), 50),
                lambda: timed(lambda: finish_next(short.ledger, fences[short]), 50),
                rounds,
            )
    return [
        _result("claim_ratio_1m_1k", claim, many),
        _result("resume_ratio_1m_1k", resume, many),
        _result("status_ratio_1m_1k", status, many),
    ]


def _read_status(site: Site) -> list[float]:
    return timed(lambda: chain_status(site.ledger, CHAIN), 3)


def _result(name: str, compared: Comparison, many: int) -> Result:
    detail = {"items": many, "ours_ms": compared.ours_ms, "compared_ms": compared.other_ms, **compared.spread()}
    return Result(name, compared.ratio, "ratio", f"a ledger with {FEW:,} items", detail)
