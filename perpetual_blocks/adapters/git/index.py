"""The index, of which one git process at a time makes a new one."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpetual_blocks.adapters.git.command import git, path_of
from perpetual_blocks.adapters.git.locks import held, wait
from perpetual_blocks.adapters.git.repository import current_commit
from perpetual_blocks.errors import GitError


@contextmanager
def private_index(root: Path, deadline: float) -> Iterator[dict[str, str]]:
    """The variables that make git work on a copy of the index, which becomes the index if a commit is made.

    The copy is `index.lock`, as in git's own protocol: while it exists no other git process writes the index. One that
    a session left which was killed is found by the record beside it, and done away with.
    """
    index = root / path_of(git(root, "rev-parse", "--git-path", "index").stdout)
    lock = index.with_name("index.lock")
    with held(index.with_name("index.perpetual"), deadline) as file:
        record = _Record(file)
        try:
            _finish(root, lock, record.read(), deadline)
            record.write({})
            _take(lock, deadline)
            ours = True
            try:
                taken = {"until": time.time() + max(0.0, deadline - time.monotonic())}
                record.write(taken)
                before = current_commit(root)
                record.write({**taken, "before": before})
                variables = {"GIT_INDEX_FILE": str(lock)}
                # Only the holder of `index.lock` makes these: if they are there, a process that was killed left them.
                for name in ("index.lock.lock", *(left.name for left in lock.parent.glob("next-index-*.lock"))):
                    lock.with_name(name).unlink(missing_ok=True)
                try:
                    # With its time stamp: by that git knows which files it has to compare.
                    shutil.copy2(index, lock)
                except FileNotFoundError:
                    git(root, "read-tree", "--empty", variables=variables, deadline=deadline)
                try:
                    yield variables
                finally:
                    # Not by success: when a post-commit hook runs out of time, the commit has been made.
                    if current_commit(root) != before:
                        lock.replace(index)
                        ours = False
            finally:
                if ours:
                    lock.unlink(missing_ok=True)
                record.write({})
        except OSError as error:
            raise GitError(f"{lock}: {error.strerror}") from error


def register(root: Path, names: Iterable[str], index: Mapping[str, str], deadline: float) -> None:
    """Takes these files into an index as they are on the disk, or out of it where they are not there."""
    data = b"".join(os.fsencode(name) + b"\0" for name in names)
    if data:
        options = ("--add", "--remove", "--replace", "-z", "--stdin")
        git(root, "update-index", *options, data=data, variables=index, deadline=deadline)


class _Record:
    """What `index.lock` is there for, as long as it is ours.

    Whoever has it holds it by `flock`, which ends with its process: what it says then is of one that was killed.
    """

    def __init__(self, file: int) -> None:
        self._file = file

    def read(self) -> dict[str, Any]:
        try:
            found = json.loads(os.pread(self._file, 1000, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, what: dict[str, Any]) -> None:
        data = json.dumps(what).encode() if what else b""
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))


def _finish(root: Path, lock: Path, left: Mapping[str, Any], deadline: float) -> None:
    """Does away with the lock of a session that was killed, as that session would have at its end."""
    if not left:
        return
    # The git process that it had started may have outlived it. It was to be over by then.
    while lock.exists() and time.time() < left["until"]:
        wait(deadline, f"{lock}: a session was killed while it committed, and its git process may still be at work")
    if not lock.exists() or lock.stat().st_ctime > left["until"]:
        return  # a person has deleted it; one that is there is somebody else's
    if "before" in left and current_commit(root) != left["before"]:
        lock.replace(lock.with_name("index"))  # the commit was made
    else:
        lock.unlink(missing_ok=True)


def _take(lock: Path, deadline: float) -> None:
    """Makes the lock file, as soon as nobody else has one."""
    while True:
        try:
            lock.touch(exist_ok=False)
            return
        except FileExistsError:
            wait(deadline, f"{lock}: still held by another git process; if none is running, delete it")
