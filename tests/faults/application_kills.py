"""The five applications, whose sessions are killed at random moments: what they bring must be what it is without.

    python tests/faults/application_kills.py --kills 20 --seed 1 --json [tokens memory time quota cost]

Each application runs twice on the stage of its demo: once in peace, and once while SIGKILL ends its sessions, each some
random time after its first unit: an item during whose units five processes die in a row would be given up, as one that
kills them, and a session's first unit, which imports its libraries, is the longest by far. A stage is set again and
again, with a chain of its own, until enough were killed. Counted are results that are missing, and results that differ.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.local_server import local_server
from perpetual_blocks.adapters.process import session_alive
from perpetual_blocks.cli.demos import NAMES, application
from perpetual_blocks.cli.demos.comparison import in_a_chain
from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.output import Where
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.chain import SessionState

MOST_SECONDS = 3.0
"""So long a session works at most before it is killed."""

LOOK_SECONDS = 0.05


class Killer:
    """Kills sessions of chains, each at a random moment of its work.

    Args:
        most: How many at most.
    """

    def __init__(self, ledger: SqlLedger, most: int, dice: random.Random) -> None:
        self._ledger, self._most, self._dice = ledger, most, dice
        self.killed: list[tuple[str, int]] = []

    @contextmanager
    def at_work_on(self, chain: str) -> Iterator[None]:
        """Kills sessions of a chain as long as the `with` block runs."""
        over = Event()
        thread = Thread(target=self._kill, args=(chain, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kill(self, chain: str, over: Event) -> None:
        while len(self.killed) < self._most and not over.wait(LOOK_SECONDS):
            with suppress(UnknownChain):
                latest = self._ledger.sessions(chain)[-1:]
                at_work = [one for one in latest if one.state is SessionState.RUNNING and session_alive(one)]
                if not at_work or not at_work[0].units or (chain, at_work[0].ordinal) in self.killed:
                    continue
                if over.wait(self._dice.uniform(0, MOST_SECONDS)) or not session_alive(at_work[0]):
                    continue
                os.kill(at_work[0].pid, signal.SIGKILL)
                self.killed.append((chain, at_work[0].ordinal))


def survive(name: str, kills: int, seed: int, folder: Path, where: Where) -> dict[str, Any]:
    """What became of an application that was killed so often."""
    ledger = where.open_ledger()
    killer, lost, differ, chains = Killer(ledger, kills, random.Random(seed)), 0, 0, 0
    in_peace, states = _results(name, f"{name}-in-peace", folder, ledger, where, None), set()
    while len(killer.killed) < kills:
        chains += 1
        chain = f"{name}-killed-{chains}"
        found = _results(name, chain, folder, ledger, where, killer)
        lost += len(in_peace.keys() - found.keys())
        differ += sum(found[result] != in_peace.get(result) for result in found)
        states.add(ledger.chain(chain).status.value)
    ledger.close()
    return {
        "application": name,
        "kills": len(killer.killed),
        "chains": chains,
        "results": len(in_peace),
        "lost": lost,
        "differ": differ,
        "ended": sorted(states),
    }


def _results(
    name: str, chain: str, folder: Path, ledger: SqlLedger, where: Where, killer: Killer | None
) -> dict[str, str]:
    used = application(name)(folder / chain)
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(ledger, chain, Console(stderr=True), quiet=True))
        if killer is not None:
            stack.enter_context(killer.at_work_on(chain))
        return dict(in_a_chain(used, chain, ledger, where, follower).results)


def main() -> int:
    """Prints what became of each, and says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NAMES), help="which; all if not given")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON list, and nothing else")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perpetual-kills-")))
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        os.environ["PREFECT_API_URL"] = stack.enter_context(local_server())
        where = Where(ledger=str(folder / "ledger.db"))
        found = []
        for name in options.names:
            found.append(survive(name, options.kills, options.seed, folder, where))
            if not options.json:
                print(found[-1], flush=True)
    if options.json:
        print(json.dumps(found, indent=2))
    return 0 if all(one["lost"] == one["differ"] == 0 and one["ended"] == ["finished"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
