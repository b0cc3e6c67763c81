"""Files that are there whole, or not at all."""

from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that whoever reads it, now or after a crash, finds what it was before or all of what it is now.

    Its folder is made where there is none. Text is written in UTF-8, with line ends as they are. A process that is
    killed while it writes leaves a hidden draft behind, and nothing else.

    Raises:
        OSError: it cannot be written; it is then as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
