"""Work trees: several agents of one repository each have their own branch, files and index."""

import time
from dataclasses import dataclass
from pathlib import Path

from perpetual_blocks.adapters.git.command import git, path_of
from perpetual_blocks.adapters.git.locks import held
from perpetual_blocks.errors import GitError

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Tree:
    path: Path
    branch: str | None
    locked: bool

    def is_complete(self) -> bool:
        """Whether git has checked it out to the end: it is locked until then, and has its index last."""
        if not self.locked or not self.path.exists():
            return self.path.exists()
        try:
            index = self.path / path_of(git(self.path, "rev-parse", "--git-path", "index").stdout)
        except GitError:
            return False
        return index.exists()


def worktree(repository: str | Path, branch: str, *, timeout_seconds: float = 30) -> Path:
    """The folder in which `branch` is checked out; it is made where there is none.

    For agents that share a repository: each works, and commits, in a work tree of its own, on a branch of its own, and
    none waits for another. The folder is `<repository>.worktrees/<branch>`; a new branch begins at HEAD.

    Args:
        timeout_seconds: how long another process that is making the same one is waited for.

    Raises:
        GitError: there is no repository or no commit in it, or git refuses the branch or the folder.
    """
    deadline = time.monotonic() + timeout_seconds
    repository = Path(repository).absolute()
    git_folder = repository / path_of(git(repository, "rev-parse", "--git-common-dir").stdout)
    # git makes the branch first and then the work tree: between the two, another session's git would be refused.
    with held(git_folder / "worktrees.perpetual", deadline):
        return _find_or_make(repository, branch, deadline)


def _find_or_make(repository: Path, branch: str, deadline: float) -> Path:
    while True:
        main, *others = _trees(repository)
        if main.branch == branch:
            return main.path
        folder = main.path.with_name(f"{main.path.name}.worktrees") / branch
        found = next((tree for tree in others if branch == tree.branch or folder == tree.path), None)
        if found is None:
            break
        if found.is_complete():
            if found.branch != branch:
                raise GitError(f"{folder}: has {found.branch or 'no branch'} checked out; expected {branch}")
            return found.path
        if found.path.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # somebody is making it: the git of a session that was killed, or a person
        else:
            # Its folder was deleted, or whoever made it was killed: nobody has worked in it.
            git(repository, "worktree", "remove", "--force", "--force", "--", str(found.path))
    known = git(repository, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", accept=(0, 1))
    which = ("-b", branch, "--", str(folder)) if known.returncode else ("--", str(folder), branch)
    git(repository, "worktree", "add", "--quiet", *which)
    return folder


def _trees(repository: Path) -> list[_Tree]:
    """The repository's work trees, the main one first."""
    trees = []
    for entry in git(repository, "worktree", "list", "--porcelain", "-z").stdout.split(b"\0\0"):
        said = dict(line.partition(b" ")[::2] for line in entry.split(b"\0") if line)
        if b"worktree" in said:
            branch = said.get(b"branch", b"").removeprefix(b"refs/heads/").decode(errors="replace") or None
            trees.append(_Tree(path_of(said[b"worktree"]), branch, b"locked" in said))
    return trees
