"""Tests for your own agents, without a Prefect server: `run_session` runs one session in memory, `run_chain` all of
them, and `assert_resumable` interrupts an agent at every point.

```python
from perpetual_blocks.testing import assert_resumable, run_session


def test_my_agent_goes_on():
    first = run_session(DocMiner(corpus="docs"), stop_after=2)
    assert len(first.results) == 2
    assert first.go_on().state == "Finished"


def test_my_agent_is_resumable():
    print(assert_resumable(lambda folder: DocMiner(corpus="docs", knowledge=folder), budget=Budget(tokens=5_000)))
```
"""

from perpetual_blocks.testing.local import (
    LocalDocuments,
    LocalRuns,
    LocalUnits,
    ManualClock,
    MemoryDocuments,
    NoSavedWork,
    ScriptedMeter,
    file_contents,
)
from perpetual_blocks.testing.prover import Report, assert_resumable
from perpetual_blocks.testing.sessions import SessionRun, run_chain, run_session

__all__ = [
    "LocalDocuments",
    "LocalRuns",
    "LocalUnits",
    "ManualClock",
    "MemoryDocuments",
    "NoSavedWork",
    "Report",
    "ScriptedMeter",
    "SessionRun",
    "assert_resumable",
    "file_contents",
    "run_chain",
    "run_session",
]
