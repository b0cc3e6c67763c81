"""The commit of an agent's work, when its session ends."""

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from perpetual_blocks.adapters.git.command import git
from perpetual_blocks.adapters.git.contents import look_through
from perpetual_blocks.adapters.git.index import private_index, register
from perpetual_blocks.adapters.git.repository import (
    changes_at,
    current_commit,
    find_repository,
    holds,
    identity,
    inside,
    is_folder,
)
from perpetual_blocks.errors import GitError
from perpetual_blocks.session.ports import Refuse


def commit_paths(
    repository: Path,
    paths: Iterable[Path],
    message: str,
    *,
    refuse: Refuse | None = None,
    timeout_seconds: float = 30,
) -> str | None:
    """Commits what is new, changed or deleted at `paths`, and nothing else.

    Whatever else is staged or changed stays as it is. Ignored files and repositories inside of this one are
    left out, and the commit is not signed: signing may ask for a passphrase that nobody is there to type.

    Args:
        paths: files or folders; relative ones are relative to the repository's top level.
        refuse: looks at what is about to be committed, and raises where that must not be.
        timeout_seconds: for the whole call: waiting for other git processes, and the repository's hooks.

    Returns:
        The full id of the commit, or None if nothing at `paths` differs from the last one.

    Raises:
        GitError: a path is outside of the repository or in conflict, a merge is under way, a hook failed, or
            the time is over. The index is then as it was; so it is after what `refuse` raises.
    """
    deadline = time.monotonic() + timeout_seconds
    root = find_repository(repository)
    if root is None:
        raise GitError(f"{repository}: not in a git work tree")
    wanted = [inside(root, path) for path in paths]
    if not wanted:  # To git, no path means every path.
        return None

    with private_index(root, deadline) as index:
        changes = changes_at(root, wanted, index, deadline)
        changed = [path for path in wanted if any(holds(path, name) for name in changes)]
        if folders := [name for name, code in changes.items() if "D" in code and is_folder(root / name)]:
            # `git commit` fails on the name of the old file; for the new folder's files it drops that file.
            changed = [name for name in changes if name not in folders]
        if not changed:
            return None
        if refuse is not None:
            look_through(root, changes, refuse)
        # `git commit` takes tracked files only.
        register(root, [name for name, code in changes.items() if code == "??"], index, deadline)
        who = identity(root)

        def commit(*options: str, accept: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[bytes]:
            return git(
                root,
                *("commit", "--only", "--no-gpg-sign", "--cleanup=whitespace", "--untracked-files=no"),
                *("--file=-", *options, "--", *changed),
                data=message.encode(errors="replace"),
                variables=index | who,
                deadline=deadline,
                accept=accept,
            )

        # A file that differs from what is staged may yet be as in the last commit. Then git exits with 1 and
        # says so on its output; if it says nothing there, it failed, and the commit will tell why.
        trial = commit("--dry-run", accept=(0, 1))
        if trial.returncode == 1 and trial.stdout:
            return None
        commit("--quiet")
        return current_commit(root)
