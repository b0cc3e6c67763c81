"""The way of a commit to where others see it."""

import time
from pathlib import Path

from perpetual_blocks.adapters.git.command import git


def push(repository: Path, *, timeout_seconds: float = 50) -> None:
    """Pushes the current branch, as `git push` would; one that is nowhere yet goes to the remote `origin`.

    Args:
        timeout_seconds: for the whole call, hooks included.

    Raises:
        GitError: the remote is away, refuses the commits or asks for a password, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    git(repository, "-c", "push.autoSetupRemote=true", "push", deadline=deadline)
