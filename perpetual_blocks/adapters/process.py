"""Processes: what this one and its children use and may use, and whether another one still runs."""

import gc
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from perpetual_blocks.adapters.deadlines import cpu_seconds_left
from perpetual_blocks.session.chain import SessionRecord

_START_TOLERANCE_SECONDS = 1.0


@contextmanager
def garbage_of_its_own() -> Iterator[None]:
    """Within it, garbage is looked for among what was made within it only.

    Prefect and what it imports are half a million objects, and a batch of units makes so many new ones that Python
    would look through all of them again and again: a sixth of a session's time, measured with units that do nothing.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tree_memory() -> int:
    """Bytes of resident memory of this process and all of its descendants.

    Memory that they share counts once for each of them. Measured cost of a call: about 20 microseconds for
    each process of the machine, and 80 more for each descendant; so 1 ms in a container with 60 processes.
    """
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:  # It ended meanwhile.
            continue
    return total


def container_memory_limit(root: Path = Path("/")) -> int | None:
    """The limit in bytes that control groups put on this process's memory; None where they put none.

    A group's limit holds for all the groups below it, so the smallest from the process's own group upwards
    counts.

    Args:
        root: where `/proc` and `/sys` are.
    """
    found = _narrowest_group(root)
    return found[0] if found else None


def container_memory_used(root: Path = Path("/")) -> int | None:
    """The bytes of memory that are in use in the control group that limits this process, by all of its processes; None
    where there is no such limit.

    What the kernel would give up rather than kill, files that nobody uses at the moment, does not count, as Kubernetes
    has it in its working set.
    """
    found = _narrowest_group(root)
    return None if found is None else _used(found[1])


def _used(folder: Path) -> int | None:
    used = _limit(folder / "memory.current") or _limit(folder / "memory.usage_in_bytes")
    return None if used is None else max(0, used - _inactive_files(folder / "memory.stat"))


def _narrowest_group(root: Path) -> tuple[int, Path] | None:
    """The limit and the folder of the group whose limit is reached first."""
    limits = [
        (limit, folder)
        for mount, group, file in _memory_groups(root)
        for folder in (mount / group, *(mount / group).parents)
        if folder.is_relative_to(mount) and (limit := _limit(folder / file)) is not None
    ]
    # Version 1 says "no limit" with a number near 2**63: more than a machine has, so it needs no case of its own.
    smallest = min(limits, default=None)
    return smallest if smallest is not None and smallest[0] < psutil.virtual_memory().total else None


def _inactive_files(stat: Path) -> int:
    """Of a group's statistics: version 1 says `total_inactive_file` of the group and those below it."""
    try:
        numbers = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(numbers.get("total_inactive_file") or numbers.get("inactive_file") or 0)


def _memory_groups(root: Path) -> list[tuple[Path, str, str]]:
    """Where this process's limits are: a hierarchy's folder, the group's path in it, the file's name."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount = root / "sys/fs/cgroup"
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = path.lstrip("/")
        if not controllers:
            groups.append((mount, group, "memory.max"))
        elif "memory" in controllers.split(","):
            groups.append((mount / "memory", group, "memory.limit_in_bytes"))
    return groups


def _limit(file: Path) -> int | None:
    """The number in the file; None if it says "max" or is not there, as in the top group."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


class MemoryMeter:
    """The level and the capacity of this process's memory."""

    def __init__(self, root: Path = Path("/")) -> None:
        # Once: what an administrator changes while a session works is for the next one.
        self._group = _narrowest_group(root)

    def level(self) -> float:
        """Bytes in use now."""
        return float(tree_memory())

    def capacity(self) -> float | None:
        """Bytes that may be in use: the container's limit, less what others in it use now; None if only the machine
        limits them."""
        if self._group is None:
            return None
        limit, folder = self._group
        used = _used(folder)
        others = 0 if used is None else max(0, used - tree_memory())
        return float(max(1, limit - others))


def cpu_seconds() -> float:
    """CPU seconds, user's and system's, that this process and all of its descendants have used until now.

    One that has ended counts if its parent waits for it, as `subprocess` does; what nobody waits for is lost.
    Windows does not tell what ended ones used.
    """
    # The ended ones first: a child that ends meanwhile is then missing from this reading, and not in it twice.
    total = _ended_children_cpu_seconds() + time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # It ended meanwhile.
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _ended_children_cpu_seconds() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class CpuMeter:
    """CPU seconds since the meter was made, which never go down, also where `cpu_seconds` misses or loses a child."""

    def __init__(self) -> None:
        self._before = cpu_seconds()
        self._level = 0.0
        # Once: a budget must not move while a session works within it.
        self._capacity = cpu_seconds_left()

    def level(self) -> float:
        """CPU seconds of this process and its descendants; a call takes as long as one of `tree_memory`."""
        self._level = max(self._level, cpu_seconds() - self._before)
        return self._level

    def capacity(self) -> float | None:
        """CPU seconds after which the system ends this process; None if nothing limits them."""
        return None if self._capacity is None else max(1e-3, self._capacity)  # none left is no capacity of 0


def host_name() -> str:
    """This machine's name, by which other machines tell its processes from their own."""
    return socket.gethostname()


def holder_id() -> str:
    """A new name for a holder of something: unique, and telling where its process runs."""
    return f"{host_name()}:{os.getpid()}:{secrets.token_hex(8)}"


def process_started() -> float:
    """When this process started, in seconds since the Unix epoch, to be compared by `is_alive`."""
    return psutil.Process().create_time()


def machine() -> str:
    """Where process numbers mean what they mean here: this boot of this machine, and its name space of processes.

    A host's name does not tell it: containers may share one, and each has a process 1 of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{host_name()}/{psutil.boot_time():.0f}"


def is_alive(where: str | None, pid: int, started: float) -> bool | None:
    """Whether the process with that number and start time is running; None if it is another machine's.

    The start time tells it from a later process that was given the same number.
    """
    if where != machine():
        return None
    try:
        process = psutil.Process(pid)
        # A zombie has ended; only its parent has not asked for its exit code yet.
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and abs(process.create_time() - started) <= _START_TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return False


def session_alive(session: SessionRecord) -> bool | None:
    """Whether a session's process is running; None if that cannot be seen from here."""
    return is_alive(session.machine, session.pid, session.process_started)
