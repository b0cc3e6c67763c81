"""An agent whose results storage goes away for a while, for root too: a file is where its folder was."""

import os
import threading
import time
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Stormy(PerpetualAgent):
    """Square the numbers below n, and lose the storage where it hurts."""

    notes: Path
    n: int = 6
    nap: float = 0.0
    breaks: str = ""
    away: float = 2.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"tokens": 10})

    def work_unit(self, unit):
        if self.breaks == unit.id:
            lose_storage(self.away)
        time.sleep(self.nap)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id}\n")
        unit.spend(tokens=10)
        return {"square": unit.payload["number"] ** 2}

    def finish_unit(self):
        if self.breaks == "save":
            lose_storage(self.away)


def lose_storage(seconds: float) -> None:
    """Lets the folder be a file for so long."""
    folder = Path(os.environ["PREFECT_LOCAL_STORAGE_PATH"])
    aside = folder.with_name(folder.name + "-aside")
    folder.rename(aside)
    folder.write_text("not a folder")

    def bring_back() -> None:
        folder.unlink()
        aside.rename(folder)

    threading.Timer(seconds, bring_back).start()


# Three units a session: the fourth would not fit.
stormy = Stormy.as_flow(name="stormy", budget=Budget(tokens=35))

if __name__ == "__main__":
    stormy.serve(name="served")
