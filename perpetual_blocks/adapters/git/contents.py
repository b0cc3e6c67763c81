"""A look at what is about to be committed."""

from collections.abc import Iterable
from pathlib import Path

from perpetual_blocks.errors import GitError
from perpetual_blocks.session.ports import Refuse

_CHUNK_BYTES = 1 << 20
_OVERLAP_BYTES = 1 << 16
"""What is longer may lie across the border of two chunks, and be overlooked."""


def look_through(root: Path, names: Iterable[str], refuse: Refuse) -> None:
    """Shows each file to `refuse`: its name and its text; of a link, which is committed as a link, where it leads.

    Raises:
        GitError: a file cannot be read. Whatever `refuse` raises is raised as it is.
    """
    for name in names:
        path = root / name
        refuse(name, "the name of a file to commit")
        try:
            if path.is_symlink():
                refuse(str(path.readlink()), name)
            elif path.is_file():
                _look_through(path, name, refuse)
        except FileNotFoundError:  # deleted in the meantime
            continue
        except OSError as error:
            raise GitError(f"{name}: {error.strerror}") from error


def _look_through(path: Path, name: str, refuse: Refuse) -> None:
    with path.open("rb") as file:
        before = b""
        while chunk := file.read(_CHUNK_BYTES):
            data = before + chunk
            refuse(data.decode(errors="replace"), name)
            before = data[-_OVERLAP_BYTES:]
