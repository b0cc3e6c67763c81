"""What a session that was killed had not committed, set aside on a branch."""

import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from perpetual_blocks.adapters.git.command import git
from perpetual_blocks.adapters.git.contents import look_through
from perpetual_blocks.adapters.git.index import register
from perpetual_blocks.adapters.git.repository import (
    changes_at,
    current_commit,
    find_repository,
    identity,
    inside,
    is_folder,
)
from perpetual_blocks.errors import GitError
from perpetual_blocks.session.ports import Refuse


def set_aside(
    repository: Path,
    paths: Iterable[Path],
    branch: str,
    message: str,
    *,
    refuse: Refuse | None = None,
    timeout_seconds: float = 30,
) -> str | None:
    """Commits what is new, changed or deleted at `paths` to a branch of its own, and changes nothing else.

    HEAD, the index and the files stay as they are: no lock is taken, and no hook of a commit runs. The commit comes
    after HEAD's, and after what the branch has held before, should there be such a branch.

    Args:
        paths: as for `commit_paths`.
        refuse: as for `commit_paths`.
        timeout_seconds: for the whole call.

    Returns:
        The full id of the commit, or None if nothing at `paths` differs from HEAD's.

    Raises:
        GitError: a path is outside of the repository or in conflict, git refuses the branch, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    root = find_repository(repository)
    if root is None:
        raise GitError(f"{repository}: not in a git work tree")
    wanted = [inside(root, path) for path in paths]
    if not wanted:
        return None
    changes = changes_at(root, wanted, {}, deadline)
    # The old file of a path that is a folder now goes when the folder's files come.
    names = [name for name in changes if not is_folder(root / name)]
    if not names:
        return None
    if refuse is not None:
        look_through(root, names, refuse)

    head, ref = current_commit(root), f"refs/heads/{branch}"
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", head or "--empty", variables=index, deadline=deadline)
        register(root, names, index, deadline)
        tree = git(root, "write-tree", variables=index, deadline=deadline).stdout.decode().strip()
    if head and tree == git(root, "rev-parse", f"{head}^{{tree}}").stdout.decode().strip():
        return None
    before = git(root, "rev-parse", "--verify", "--quiet", ref, accept=(0, 1)).stdout.decode().strip()
    parents = [word for parent in (head, before) if parent for word in ("-p", parent)]
    made = git(
        root,
        *("commit-tree", tree, *parents),
        data=message.encode(errors="replace"),
        variables=identity(root),
        deadline=deadline,
    )
    commit = made.stdout.decode().strip()
    git(root, "update-ref", "-m", "set aside", ref, commit, before or "0" * len(commit), deadline=deadline)
    return commit
