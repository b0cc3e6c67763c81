"""Tests for your own agents: `assert_resumable` interrupts an agent at every point, and needs no Prefect server.

```python
from perpetual_blocks.testing import assert_resumable


def test_my_agent_is_resumable():
    print(assert_resumable(lambda folder: DocMiner(corpus="docs", knowledge=folder), budget=Budget(tokens=5_000)))
```
"""

from perpetual_blocks.testing.local import (
    LocalDocuments,
    LocalRuns,
    LocalUnits,
    ManualClock,
    NoSavedWork,
    file_contents,
)
from perpetual_blocks.testing.prover import Report, assert_resumable

__all__ = [
    "LocalDocuments",
    "LocalRuns",
    "LocalUnits",
    "ManualClock",
    "NoSavedWork",
    "Report",
    "assert_resumable",
    "file_contents",
]
