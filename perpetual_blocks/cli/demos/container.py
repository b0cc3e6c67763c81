"""A container of Linux, as far as memory goes: a control group, in which the kernel kills what needs too much."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perpetual_blocks.cli.demos.application import DemoFailed

GROUPS = Path("/sys/fs/cgroup")


class Container:
    """A control group of version 2 or 1.

    Args:
        folder: The group.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def inside(self, command: list[str]) -> list[str]:
        """The command that runs this one in the container."""
        return ["sh", "-c", f'echo $$ > {self._folder / "cgroup.procs"} && exec "$@"', "sh", *command]

    def killed(self) -> int:
        """How many processes the kernel has killed in it, for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            if (file := self._folder / name).exists():
                return next(
                    int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill ")
                )
        raise DemoFailed(f"demo memory: {self._folder} does not tell what was killed in it")


@contextmanager
def container(memory: int) -> Iterator[Container]:
    """A container whose processes may use so many bytes of memory together, as long as the `with` block runs.

    Raises:
        DemoFailed: this system has no control groups, or lets this user make none.
    """
    version_1 = GROUPS / "memory"
    parent, limit = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (GROUPS, "memory.max")
    folder = parent / f"perpetual-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(memory))
        if (swap := folder / "memory.swap.max").exists():
            swap.write_text("0")
    except OSError as error:
        raise DemoFailed(
            f"demo memory: a control group cannot be made here ({error}); it needs Linux, and the right to make one, as"
            " root has it"
        ) from error
    try:
        yield Container(folder)
    finally:
        folder.rmdir()
