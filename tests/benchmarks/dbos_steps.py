"""A DBOS workflow of trivial steps, its system database an SQLite file, as DBOS sets it up.

python dbos_steps.py STEPS   # prints the seconds that the workflow took as JSON
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dbos import DBOS


@DBOS.step()
def step(number: int) -> dict[str, Any]:
    return {"number": number, "text": "done"}


@DBOS.workflow()
def work(steps: int) -> None:
    for number in range(steps):
        step(number)


def main(steps: int) -> None:
    """Runs the workflow, and prints how long it took."""
    with TemporaryDirectory(prefix="perpetual-bench-") as folder:
        address = f"sqlite:///{Path(folder) / 'dbos.db'}"
        DBOS(config={"name": "bench", "system_database_url": address, "run_admin_server": False})
        DBOS.launch()
        started = time.perf_counter()
        work(steps)
        seconds = time.perf_counter() - started
        DBOS.destroy()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]))
