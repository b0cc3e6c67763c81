"""What one session of several does at a time in a repository."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perpetual_blocks.errors import GitError

_POLL_SECONDS = 0.05


@contextmanager
def held(path: Path, deadline: float) -> Iterator[int]:
    """The file at `path`, open and ours, as soon as no other session has it.

    It is held by `flock`, which ends with its process.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise GitError(f"{path}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait(deadline, f"{path}: still held by another session")
            except OSError as error:
                raise GitError(f"{path}: {error.strerror}") from error
        yield file
    finally:
        os.close(file)


def wait(deadline: float, otherwise: str) -> None:
    """Waits a moment, unless the time is over."""
    if time.monotonic() >= deadline:
        raise GitError(otherwise) from None
    time.sleep(_POLL_SECONDS)
