"""Running git: without a terminal, without the settings of another repository, and not for ever."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from perpetual_blocks.errors import GitError

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

_TERMINATION_SECONDS = 5.0


def git(
    folder: Path,
    *arguments: str,
    data: bytes = b"",
    variables: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (0,),
    deadline: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs git to its end, or to the deadline, without a terminal."""
    command = arguments[2 if arguments[0] == "-c" else 0]
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
            raise GitError(f"git {command}: {error}") from error
        try:
            code = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise GitError(f"git {command}: not finished in time, so it was stopped") from None
        finally:
            if process.returncode is None:
                _stop(process)
        output.seek(0)
        errors.seek(0)
        result = subprocess.CompletedProcess(process.args, code, output.read(), errors.read())
    if code not in accept:
        said = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace")
        raise GitError(f"git {command}: {_gist(said) if said else f'exit code {code}'}")
    return result


def _gist(said: str) -> str:
    """The line that says what went wrong; git's advice comes after it."""
    lines = said.splitlines()
    return next((line for line in reversed(lines) if line.startswith(("fatal:", "error:"))), lines[-1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends git and its hooks: politely first, so that git removes its lock files."""
    # The second time for hooks that outlive git. Where all have ended, macOS says PermissionError.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATION_SECONDS)


def path_of(output: bytes) -> Path:
    """The path that git printed."""
    return Path(os.fsdecode(output.removesuffix(b"\n")))
