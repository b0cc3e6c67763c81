"""Git, as far as a session needs it: its agent's work is committed when the session ends."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from perpetual_blocks.errors import GitError

_IDENTITY = ("Perpetual Blocks", "perpetual-blocks@localhost")

_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
}

# A session that was itself started by a git hook inherits these. They would point our commands at another
# repository or index, and git refuses to combine the pathspec ones with literal pathspecs.
_NOT_INHERITED = {
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_PREFIX",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
}

_LOCK_POLL_SECONDS = 0.05
_TERMINATION_SECONDS = 5.0


def find_repository(path: Path) -> Path | None:
    """The top level of the work tree that holds `path`, which need not exist yet; None if there is none.

    Raises:
        GitError: there is a repository, but git does not open it (for example because somebody else owns it).
    """
    path = path.absolute()
    folder = next(candidate for candidate in (path, *path.parents) if candidate.is_dir())
    try:
        return _path(_git(folder, "rev-parse", "--show-toplevel").stdout)
    except GitError:
        if any((candidate / ".git").exists() for candidate in (folder, *folder.parents)):
            raise
        return None


def current_commit(repository: Path) -> str | None:
    """The full id of the commit that HEAD is at; None before the first commit."""
    head = _git(repository, "rev-parse", "--verify", "--quiet", "HEAD", accept=(0, 1))
    return head.stdout.decode().strip() or None


def was_deleted(path: Path) -> bool:
    """Whether what was at `path` in the last commit is gone, so that there is a deletion to commit.

    Raises:
        GitError: git does not open the repository.
    """
    root = find_repository(path)
    if root is None or path.exists() or path.is_symlink():
        return False
    return bool(_git(root, "status", "--porcelain=v1", "--no-renames", "--", _inside(root, path.absolute())).stdout)


def commit_paths(repository: Path, paths: Iterable[Path], message: str, *, timeout_seconds: float = 30) -> str | None:
    """Commits what is new, changed or deleted at `paths`, and nothing else.

    Whatever else is staged or changed stays as it is. Ignored files and repositories inside of this one are
    left out, and the commit is not signed: signing may ask for a passphrase that nobody is there to type.

    Args:
        paths: files or folders; relative ones are relative to the repository's top level.
        timeout_seconds: for the whole call: waiting for other git processes, and the repository's hooks.

    Returns:
        The full id of the commit, or None if nothing at `paths` differs from the last one.

    Raises:
        GitError: a path is outside of the repository or in conflict, a merge is under way, a hook failed, or
            the time is over. The index is then as it was.
    """
    deadline = time.monotonic() + timeout_seconds
    root = find_repository(repository)
    if root is None:
        raise GitError(f"{repository}: not in a git work tree")
    wanted = [_inside(root, path) for path in paths]
    if not wanted:  # To git, no path means every path.
        return None

    with _private_index(root, deadline) as index:
        changes = _changes(root, wanted, index, deadline)
        changed = [path for path in wanted if any(_holds(path, name) for name in changes)]
        if folders := [name for name, code in changes.items() if "D" in code and _is_folder(root / name)]:
            # `git commit` fails on the name of the old file; for the new folder's files it drops that file.
            changed = [name for name in changes if name not in folders]
        if not changed:
            return None
        untracked = b"".join(os.fsencode(name) + b"\0" for name, code in changes.items() if code == "??")
        if untracked:  # `git commit` takes tracked files only.
            register = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
            _git(root, *register, data=untracked, variables=index, deadline=deadline)

        identity = _identity(root)

        def commit(*options: str, accept: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[bytes]:
            return _git(
                root,
                *("commit", "--only", "--no-gpg-sign", "--cleanup=whitespace", "--untracked-files=no"),
                *("--file=-", *options, "--", *changed),
                data=message.encode(errors="replace"),
                variables=index | identity,
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


def _inside(root: Path, path: Path) -> str:
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


def _holds(path: str, name: str) -> bool:
    """Whether the file `name` is at `path` or below it."""
    return path in (".", name) or name.startswith(f"{path}/")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _changes(root: Path, paths: list[str], index: Mapping[str, str], deadline: float) -> dict[str, str]:
    """The files at `paths` that are changed, staged or new, with git's two-letter code of what they are."""
    listing = ("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", *paths)
    entries = _git(root, *listing, variables=index, deadline=deadline).stdout.split(b"\0")
    changes = {os.fsdecode(entry[3:]): entry[:2].decode() for entry in entries if entry}
    for name, code in changes.items():
        if "U" in code or code in ("AA", "DD"):
            raise GitError(f"{name}: in conflict; resolve it and stage it with `git add`")
    # Git lists a repository inside of this one as a folder.
    return {name: code for name, code in changes.items() if not name.endswith("/")}


def _identity(root: Path) -> dict[str, str]:
    """The variables that give a commit an author and a committer where git is not configured with one."""
    variables: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        try:
            # `useConfigOnly` keeps git from guessing a name and an address from the machine's.
            _git(root, "-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT")
        except GitError:
            variables[f"GIT_{role}_NAME"], variables[f"GIT_{role}_EMAIL"] = _IDENTITY
    return variables


@contextmanager
def _private_index(root: Path, deadline: float) -> Iterator[dict[str, str]]:
    """The variables that make git work on a copy of the index, which becomes the index if a commit is made.

    The copy is `index.lock`, as in git's own protocol: while it exists no other git process writes the index.
    """
    index = root / _path(_git(root, "rev-parse", "--git-path", "index").stdout)
    lock = index.with_name("index.lock")
    _take(lock, deadline)
    ours = True
    try:
        before = current_commit(root)
        variables = {"GIT_INDEX_FILE": str(lock)}
        # Only the holder of `index.lock` makes this one: if it is there, a process that was killed left it.
        lock.with_name("index.lock.lock").unlink(missing_ok=True)
        try:
            # With its time stamp: by that git knows which files it has to compare.
            shutil.copy2(index, lock)
        except FileNotFoundError:
            _git(root, "read-tree", "--empty", variables=variables, deadline=deadline)
        try:
            yield variables
        finally:
            # Not by success: when a post-commit hook runs out of time, the commit has been made.
            if current_commit(root) != before:
                lock.replace(index)
                ours = False
    except OSError as error:
        raise GitError(f"{lock}: {error.strerror}") from error
    finally:
        if ours:
            lock.unlink(missing_ok=True)


def _take(lock: Path, deadline: float) -> None:
    """Makes the lock file, as soon as nobody else has one."""
    while True:
        try:
            lock.touch(exist_ok=False)
            return
        except FileExistsError:
            if time.monotonic() >= deadline:
                text = f"{lock}: still held by another git process; if none is running, delete it"
                raise GitError(text) from None
            time.sleep(_LOCK_POLL_SECONDS)
        except OSError as error:
            raise GitError(f"{lock}: {error.strerror}") from error


def _git(
    folder: Path,
    *arguments: str,
    data: bytes = b"",
    variables: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (0,),
    deadline: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs git to its end, or to the deadline, without a terminal."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # Files, not pipes: what a hook leaves running in the background would keep a pipe open.
    with TemporaryFile() as source, TemporaryFile() as output, TemporaryFile() as errors:
        source.write(data)
        source.seek(0)
        try:
            process = subprocess.Popen(
                ["git", *arguments],
                cwd=folder,
                env={**environment, **_ENVIRONMENT, **(variables or {})},
                stdin=source if data else subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,  # Without a terminal, neither git nor a hook can ask something there.
            )
        except (OSError, ValueError) as error:  # No git, no such folder, too many paths; a NUL character.
            raise GitError(f"git {arguments[0]}: {error}") from error
        try:
            code = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise GitError(f"git {arguments[0]}: not finished in time, so it was stopped") from None
        finally:
            if process.returncode is None:
                _stop(process)
        output.seek(0)
        errors.seek(0)
        result = subprocess.CompletedProcess(process.args, code, output.read(), errors.read())
    if code not in accept:
        said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
        raise GitError(f"git {arguments[0]}: {said.splitlines()[-1] if said else f'exit code {code}'}")
    return result


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends git and its hooks: politely first, so that git removes its lock files."""
    # The second time for hooks that outlive git. Where all have ended, macOS says PermissionError.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATION_SECONDS)


def _path(output: bytes) -> Path:
    """The path that git printed."""
    return Path(os.fsdecode(output.removesuffix(b"\n")))
