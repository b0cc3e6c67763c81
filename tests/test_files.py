"""Files that are written whole: what was there stays until what is new is there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perpetual_blocks import write_whole

DIES_BEFORE_ITS_END = """
import os, pathlib, signal, sys
from perpetual_blocks import write_whole
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_whole(pathlib.Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("content", ["line\r\nÄ\n", b"\x00\xff"])
def test_what_is_written_is_read(tmp_path: Path, content: str | bytes) -> None:
    """Text and bytes come back as they were, in a folder that was not there."""
    write_whole(tmp_path / "a" / "b.txt", content)

    assert (tmp_path / "a" / "b.txt").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b.txt"]


def test_a_process_that_dies_leaves_what_was_there(tmp_path: Path) -> None:
    """A file is the old one until it is the new one."""
    file = tmp_path / "page.json"
    write_whole(file, "old")

    died = subprocess.run([sys.executable, "-c", DIES_BEFORE_ITS_END, str(file)], check=False)

    assert died.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert list(tmp_path.glob("*.json")) == [file]


def test_what_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that is full there is an error, the old file, and no draft."""
    file = tmp_path / "page.json"
    write_whole(file, "old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")

    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
