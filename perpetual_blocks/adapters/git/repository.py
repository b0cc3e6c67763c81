"""What a repository says of itself: where it is, what has changed in it, and who commits."""

import os
from collections.abc import Mapping
from pathlib import Path

from perpetual_blocks.adapters.git.command import git, path_of
from perpetual_blocks.errors import GitError

_IDENTITY = ("Perpetual Blocks", "perpetual-blocks@localhost")


def find_repository(path: Path) -> Path | None:
    """The top level of the work tree that holds `path`, which need not exist yet; None if there is none.

    Raises:
        GitError: there is a repository, but git does not open it (for example because somebody else owns it).
    """
    path = path.absolute()
    folder = next(candidate for candidate in (path, *path.parents) if candidate.is_dir())
    try:
        return path_of(git(folder, "rev-parse", "--show-toplevel").stdout)
    except GitError:
        if any((candidate / ".git").exists() for candidate in (folder, *folder.parents)):
            raise
        return None


def current_commit(repository: Path) -> str | None:
    """The full id of the commit that HEAD is at; None before the first commit."""
    head = git(repository, "rev-parse", "--verify", "--quiet", "HEAD", accept=(0, 1))
    return head.stdout.decode().strip() or None


def was_deleted(path: Path) -> bool:
    """Whether what was at `path` in the last commit is gone, so that there is a deletion to commit.

    Raises:
        GitError: git does not open the repository.
    """
    root = find_repository(path)
    if root is None or path.exists() or path.is_symlink():
        return False
    return bool(git(root, "status", "--porcelain=v1", "--no-renames", "--", inside(root, path.absolute())).stdout)


def inside(root: Path, path: Path) -> str:
    """The path relative to the repository's top level; a link in the repository stands for itself."""
    full = root / path
    try:
        if full.is_symlink():
            itself = full.parent.resolve() / full.name
            if itself.is_relative_to(root):
                return str(itself.relative_to(root))
        return str(full.resolve().relative_to(root))
    except (ValueError, RuntimeError):  # Not below the top level; a link that leads to itself (RuntimeError).
        raise GitError(f"{path}: outside of the repository {root}") from None


def holds(path: str, name: str) -> bool:
    """Whether the file `name` is at `path` or below it."""
    return path in (".", name) or name.startswith(f"{path}/")


def is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def changes_at(root: Path, paths: list[str], index: Mapping[str, str], deadline: float) -> dict[str, str]:
    """The files at `paths` that are changed, staged or new, with git's two-letter code of what they are."""
    listing = ("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", *paths)
    entries = git(root, *listing, variables=index, deadline=deadline).stdout.split(b"\0")
    changes = {os.fsdecode(entry[3:]): entry[:2].decode() for entry in entries if entry}
    for name, code in changes.items():
        if "U" in code or code in ("AA", "DD"):
            raise GitError(f"{name}: in conflict; resolve it and stage it with `git add`")
    # Git lists a repository inside of this one as a folder.
    return {name: code for name, code in changes.items() if not name.endswith("/")}


def identity(root: Path) -> dict[str, str]:
    """The variables that give a commit an author and a committer where git is not configured with one."""
    variables: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        try:
            # `useConfigOnly` keeps git from guessing a name and an address from the machine's.
            git(root, "-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT")
        except GitError:
            variables[f"GIT_{role}_NAME"], variables[f"GIT_{role}_EMAIL"] = _IDENTITY
    return variables
