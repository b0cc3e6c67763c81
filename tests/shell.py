"""The `perpetual` command for tests: in a process of its own, or in this one."""

import json
import os
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect_server import PrefectServer

from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.cli import main
from perpetual_blocks.cli.output import OK, WRONG_INPUT

PERPETUAL = Path(sys.executable).with_name("perpetual")

AGENTS = '''
from prefect import flow
from pydantic import Field

from perpetual_blocks import PerpetualAgent, WorkItem

class Counter(PerpetualAgent):
    """Count."""

    upto: int = Field(default=3, ge=1, description="How far.")

    def plan(self):
        return [WorkItem(id=str(number)) for number in range(self.upto)]

    def work_unit(self, unit):
        return unit.id

count = Counter.as_flow()

@flow
def plain():
    pass

number = 5
'''


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def is_refusal(self, *parts: str, code: int = WRONG_INPUT) -> None:
        """One line on standard error that holds all parts, nothing on standard output, and the exit code."""
        assert self.code == code, self
        assert self.out == "", self
        [line] = self.err.splitlines()
        missing = [part for part in parts if part not in line]
        assert not missing, f"{missing} not in {line!r}"


@dataclass(frozen=True)
class Shell:
    """Runs the command in a folder of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> Said:
        """Runs the command to its end."""
        done = subprocess.run(
            [PERPETUAL, *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def here(self, *arguments: str, **environment: str) -> Said:
        """The same in this process: a hundredth of the time, for what has many cases."""
        out, err, code = StringIO(), StringIO(), 1
        given = {**self.environment, **environment}
        settings: dict[Any, Any] = {
            PREFECT_HOME: Path(given["PREFECT_HOME"]),
            PREFECT_API_URL: given.get("PREFECT_API_URL"),
        }
        if "PREFECT_LOCAL_STORAGE_PATH" in given:
            settings[PREFECT_LOCAL_STORAGE_PATH] = Path(given["PREFECT_LOCAL_STORAGE_PATH"])
        with pytest.MonkeyPatch.context() as patch, temporary_settings(settings):
            patch.chdir(self.folder)
            for name, value in given.items():
                patch.setenv(name, value)
            before = signal.getsignal(signal.SIGTERM)
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    main(arguments)
                except SystemExit as end:
                    code = int(end.code or OK)
                except Exception:  # noqa: BLE001 - what a shell would see of it
                    traceback.print_exc()
                finally:
                    signal.signal(signal.SIGTERM, before)
        return Said(code, out.getvalue(), err.getvalue())

    def all(self, commands: dict[str, list[str]], **environment: str) -> dict[str, Said]:
        """Runs commands that do not depend on each other, side by side."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = pool.map(lambda arguments: self(*arguments, **environment), commands.values())
            return dict(zip(commands, said, strict=True))


def make_shell(folder: Path, **environment: str) -> Shell:
    """A shell whose ledger, Prefect home and results are in the folder, and that knows no server unless told of it."""
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PERPETUAL_"))}
    ours = {
        "PREFECT_HOME": str(folder / "home"),
        "PERPETUAL_LEDGER": str(folder / "ledger.db"),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    return Shell(folder, {**kept, **ours, **environment})


def make_keeping_shell(folder: Path, server: PrefectServer, agents: str) -> Shell:
    """A shell with a server, these agents, and a store `kept` whose results and backups are in folders beside it."""
    shell = make_shell(folder, PREFECT_API_URL=server.api)
    (shell.folder / "agents.py").write_text(agents)
    with server.here():
        for name in ("results", "backup"):
            LocalFileSystem(basepath=str(shell.folder / name)).save(name, overwrite=True, _sync=True)
        StatePersistence(
            ledger=str(shell.folder / "ledger.db"),
            result_storage="local-file-system/results",
            backup_storage="local-file-system/backup",
        ).save("kept", overwrite=True, _sync=True)
    return shell
