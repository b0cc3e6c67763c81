"""Units as Prefect tasks: what is decided before Prefect is asked. How they run is seen in the integration tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem
from support import run_unit, some_item

from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.errors import StorageError
from perpetual_blocks.work import Unit


class Once(PerpetualAgent):
    """Must not be asked."""

    def work_unit(self, unit: Unit) -> Any:
        raise AssertionError("it ran")


def test_a_unit_whose_outcome_cannot_be_looked_for_does_not_run(tmp_path: Path) -> None:
    """A unit that was given back may have been finished: while the storage is away nobody knows, so it waits."""
    folder = tmp_path / "results"
    folder.write_text("not a folder")
    units = PrefectUnits(Once(), LocalFileSystem(basepath=str(folder)), None)

    with pytest.raises(StorageError) as away:
        run_unit(units, replace(some_item(), interruptions=1))

    assert "results storage" in str(away.value)
