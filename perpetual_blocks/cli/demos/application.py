"""One of the five applications on a stage: the real parts that it needs, started here, and a limit that bites."""

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar

from perpetual_blocks.adapters.local_server import stop
from perpetual_blocks.errors import PerpetualError

PERPETUAL = [sys.executable, "-c", "from perpetual_blocks.cli import main; main()"]
"""The command, of this very installation."""


class DemoFailed(PerpetualError):
    """A part of the demo did not start, or its chain did not end."""


def flow_file(name: str) -> Path:
    """A flow that comes with the package: in the checkout's `flows/`, or inside the installed package."""
    package = Path(__file__).parents[2]
    for folder in (package.parent / "flows", package / "_flows"):
        if (folder / name).is_file():
            return folder / name
    raise DemoFailed(f"demo: {name} is neither in {package.parent / 'flows'} nor in {package / '_flows'}")


def flow_module(name: str) -> Any:
    """The module of a flow's file, for what the plain loop has in common with it."""
    spec = spec_from_file_location(Path(name).stem, flow_file(name))
    if spec is None or spec.loader is None:
        raise DemoFailed(f"demo: {name} cannot be imported")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Application(ABC):
    """A flow of `flows/`, and the same work in a plain loop, under the same limit.

    Args:
        folder: What this run of it writes goes here.
    """

    name: ClassVar[str]
    flow: ClassVar[str]
    """Where it is in `flows/`: `quota_worker.py:fetch_pages`."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The modules that it imports and not everybody has; the extra `demo` brings them."""

    one_session: ClassVar[bool] = False
    """Whether each session has a machine of its own, which is started anew for the next one."""

    limit: str
    """What it must not overrun, in words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def parts(self) -> AbstractContextManager[None]:
        """The real parts, as long as the `with` block runs."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The flow's, as JSON, once the parts are there."""

    @abstractmethod
    def expected(self) -> int:
        """How many results the whole work has."""

    @abstractmethod
    def results(self) -> dict[str, str]:
        """What it has brought so far: the digest of each result, by name. It is the same in any two complete runs."""

    @abstractmethod
    def overruns(self) -> int:
        """How often the limit was overrun, as those count who enforce it."""

    @staticmethod
    @abstractmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        """The same work, in a loop that knows of no limit: yields after each result that it has."""

    def environment(self) -> dict[str, str]:
        """What the flow's processes find in their environment besides."""
        return {}

    def goes_on(self, status: Mapping[str, Any]) -> bool:
        """Whether to run it again, now that it has ended without finishing."""
        return self.one_session

    def on_machine(self, command: list[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs a command on the machine that the limit is one of, to its end; its exit code, or the signal below 0."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                return self.wait(process)
            finally:
                stop(process)

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Waits for the end of the machine's command, or ends it: its exit code."""
        return process.wait()
