"""The demo's agent on other machines' processors, as it were: its units run on a Dask cluster of two workers.

python spread_miner.py    # serves it, as `mine-on-dask/served`
"""

import os
import sys
from pathlib import Path

from prefect_dask import DaskTaskRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "flows"))

from doc_miner import DocMiner

from perpetual_blocks import Budget, Unit

# One thread each: CPython 3.11 cannot parse in two threads at once.
WORKERS = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}


class SpreadMiner(DocMiner):
    """Mines modules, and says which process did."""

    def work_unit(self, unit: Unit) -> dict[str, object]:
        return {**super().work_unit(unit), "pid": os.getpid()}


mine_on_dask = SpreadMiner.as_flow(
    name="mine-on-dask",
    budget=Budget(tokens=50_000),
    concurrency=4,
    task_runner=DaskTaskRunner(cluster_kwargs=WORKERS),
)

if __name__ == "__main__":
    mine_on_dask.serve(name="served")
