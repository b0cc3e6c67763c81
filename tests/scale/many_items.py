"""Many items through one queue, by a chain on SQLite or by four agents on PostgreSQL, and whether each was done once.

    python tests/scale/many_items.py --items 1000000 --database postgres --json

It counts what the ledger says, and what the units themselves have noted:

* open: items that are not completed
* twice: units that were done, or counted, more than once
* missing: items of which no unit has noted that it ran
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from postgres_server import running_server
from prefect_server import PrefectServer, running_prefect
from workbench import PERPETUAL, site_on

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.work import ItemStatus

COUNTER = Path(__file__).with_name("counter.py")
AGENTS = 4
CHAIN = "many"


def run(items: int, database: str, seconds: int, folder: Path, server: PrefectServer) -> dict[str, Any]:
    """Does them all; what came of it.

    Args:
        seconds: How long a session may take.
    """
    command = ["run"] if database == "sqlite" else ["orchestrate", f"--agents={AGENTS}"]
    with site_on(server.api, server.home, folder) as site, ledger_address(database, folder) as address:
        given = {"notes": folder / "notes", "n": items, "chain": CHAIN}
        parameters = [f"--param={name}={value}" for name, value in given.items()]
        site.environment["PERPETUAL_LEDGER"] = address
        began = time.monotonic()
        done = subprocess.run(
            [*PERPETUAL, *command, f"{COUNTER}:counter", *parameters],
            env={**site.environment, "COUNTER_SECONDS": str(seconds), "PREFECT_LOGGING_LEVEL": "WARNING"},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        took = time.monotonic() - began
        ledger = SqlLedger(address)
        try:
            found = count(ledger, folder / "notes", items)
        finally:
            ledger.close()
    return {"items": items, "database": database, "exit_code": done.returncode, "seconds": round(took), **found}


@contextmanager
def ledger_address(database: str, folder: Path) -> Iterator[str]:
    """A ledger of its own."""
    if database == "sqlite":
        yield str(folder / "many.db")
    else:
        with running_server() as server:
            yield server.make_database()


def count(ledger: SqlLedger, notes: Path, items: int) -> dict[str, Any]:
    """What became of the items."""
    chains = ledger.chains(queue=CHAIN)
    sessions = [session for chain in chains for session in ledger.sessions(chain.name)]
    counts = ledger.counts(CHAIN)
    noted = Counter(line for path in notes.iterdir() for line in path.read_text().split())
    units = sum(session.units for session in sessions)
    return {
        "agents": len(chains),
        "sessions": len(sessions),
        "planned": sum(counts.values()),
        "open": items - counts[ItemStatus.COMPLETED],
        "twice": max(units - items, noted.total() - len(noted)),
        "missing": items - len(noted),
    }


def main() -> int:
    """Runs from the command line; exit code 1 if an item was done twice, or is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seconds", type=int, default=60, help="of each session")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        own = Path(folder) / "site"
        own.mkdir()
        with running_prefect(Path(folder) / "prefect") as server:
            found = run(asked.items, asked.database, asked.seconds, own, server)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:>10}  {value}")
    return int(any(found[name] for name in ("exit_code", "open", "twice", "missing")))


if __name__ == "__main__":
    sys.exit(main())
