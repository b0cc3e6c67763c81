"""The agent of the tests of secrets: does with them all that it should not."""

import base64
import json
import logging
import os
import sys
from pathlib import Path
from urllib.parse import quote

from prefect import get_run_logger
from prefect.blocks.system import Secret

from perpetual_blocks import Budget, PerpetualAgent, WorkItem

KEY = 'canary of the "block" / 4711'
ENVIRONMENT = "canary-of-the-environment"
LEDGER = "canary-of-the-ledger"
CONTEXT = "canary-of-the-context"
GIT = "canary-of-the-remote"
URL = "canary-of-an-address"
LEAKS = ("raises", "chained", "environment", "ledger", "url", "returns", "advances", "remembers", "adds", "prints")


class Secretive(PerpetualAgent):
    """Tell everybody."""

    api_key: Secret
    notes: Path
    repository: Path

    def plan(self):
        yield WorkItem(id="keeps", priority=1, bound={"calls": 1})
        yield from (WorkItem(id=name, max_attempts=1, bound={"calls": 1}) for name in LEAKS)

    def work_unit(self, unit):
        unit.spend(calls=1)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {' '.join(sys.orig_argv)}\n")
        return getattr(self, unit.id)(unit)

    @property
    def key(self):
        return self.api_key.get()

    def keeps(self, unit):
        unit.context["remote"] = {"password": CONTEXT}
        unit.context["seen"] = "in clear"

    def raises(self, unit):
        raise RuntimeError(f"refused: {self.key}, as JSON {json.dumps([self.key])}, quoted {quote(self.key)}")

    def chained(self, unit):
        try:
            raise ValueError(base64.b64encode(b"me:" + self.key.encode()).decode())
        except ValueError as error:
            raise LookupError("no such page") from error

    def environment(self, unit):
        raise RuntimeError(f"cannot log in with {os.environ['CANARY_TOKEN']}")

    def ledger(self, unit):
        raise RuntimeError(f"cannot connect with {LEDGER}")

    def url(self, unit):
        raise RuntimeError(f"cannot reach https://me:{URL}@example.org/")

    def returns(self, unit):
        return {"deep": [{"down": f"the key is {self.key}"}]}

    def advances(self, unit):
        return unit.advance(next_action=f"try {quote(self.key)}")

    def remembers(self, unit):
        unit.context["key"] = self.key

    def adds(self, unit):
        unit.add(WorkItem(id="more", payload={"key": self.key}))

    def prints(self, unit):
        get_run_logger().warning("the key is %s", self.key)
        logging.getLogger("somebody.else").error("the key is %r", {"key": self.key})
        try:
            raise ValueError(self.key)
        except ValueError:
            get_run_logger().exception("it went wrong")

    def backup(self, checkpoint):
        raise RuntimeError(f"no backup with {self.key}")

    def commit_changes(self):
        (self.repository / "work.txt").write_text("work\n")
        return [self.repository / "work.txt"]

    def create_handoff(self, handoff):
        handoff.notes.append(f"- the key is {self.key}, seen **in clear**")
        return handoff


secretive = Secretive.as_flow(name="secretive", budget=Budget(calls=6))

if __name__ == "__main__":
    secretive.serve(name="served")
