"""Agents whose units run in processes of their own; a module without tests, which such a process imports quickly."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from perpetual_blocks import PerpetualAgent, Unavailable, Unit, WorkItem


class Lone(PerpetualAgent):
    """Does what a payload says."""

    isolated: ClassVar[bool] = True

    factor: int = 2
    folder: Path = Path()
    key: SecretStr = SecretStr("")
    keys: dict[str, list[SecretStr]] = Field(default_factory=dict)

    def work_unit(self, unit: Unit) -> Any:
        return getattr(self, str(unit.payload["do"]))(unit)

    def multiply(self, unit: Unit) -> Any:
        unit.spend(tokens=7)
        unit.spend(tokens=3, calls=1)
        unit.context["seen"] = [*unit.context.get("seen", []), unit.id]
        unit.add(WorkItem(id="more"))
        secrets = [self.key.get_secret_value(), *(key.get_secret_value() for key in self.keys["more"])]
        return [unit.payload["number"] * self.factor, os.getpid(), *secrets]

    def advance(self, unit: Unit) -> Any:
        return unit.advance(cursor={"after": unit.cursor}, progress=(1, 2), next_action="the rest")

    def fail(self, unit: Unit) -> Any:
        unit.spend(tokens=7)
        raise LookupError("no such\npage")

    def find_nobody(self, unit: Unit) -> Any:
        try:
            raise Unavailable("the warehouse is closed")
        except Unavailable as error:
            raise LookupError("no such page") from error

    def leave(self, unit: Unit) -> Any:
        sys.exit(3)

    def want(self, unit: Unit) -> Any:
        unit.spend(tokens=7)
        unit.reserve(tokens=1000)

    def sleep(self, unit: Unit) -> Any:
        unit.spend(tokens=7)
        time.sleep(60)

    def defy(self, unit: Unit) -> Any:
        """Takes no notice of SIGTERM, and has a child of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (self.folder / "pids").write_text(f"{os.getpid()} {own.pid}")
        time.sleep(60)

    def be_killed(self, unit: Unit) -> Any:
        unit.spend(tokens=7)
        os.kill(os.getpid(), signal.SIGKILL)

    def crash(self, unit: Unit) -> Any:
        ctypes.string_at(0)

    def vanish(self, unit: Unit) -> Any:
        os._exit(4)

    def wait_for_wrap(self, unit: Unit) -> Any:
        (self.folder / "began").touch()
        while not unit.should_wrap():
            time.sleep(0.01)
        return "wrapped"

    def look(self, unit: Unit) -> Any:
        return {"remaining": unit.remaining, "rung": unit.rung, "attempt": unit.attempt, "number": unit.number}

    async def wait(self, unit: Unit) -> Any:
        await asyncio.sleep(0.01)
        return "awaited"
