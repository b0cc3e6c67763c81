"""The agent in another language: a real shell script, in two sessions that hand over."""

import os
import subprocess
from pathlib import Path

from shell import PERPETUAL, make_shell

SCRIPT = Path(__file__).parents[2] / "flows" / "shell_agent.sh"


def test_it_hands_over(tmp_path: Path) -> None:
    """A session ends where its budget does; the next one goes on behind the last file, and finishes."""
    shell, texts = make_shell(tmp_path / "shell"), tmp_path / "texts"
    texts.mkdir()
    for name, words in {"a": 30, "b": 60, "c": 20}.items():
        (texts / f"{name}.txt").write_text("word " * words)
    path = f"{PERPETUAL.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**shell.environment, "PATH": path, "TOKENS": "100"}

    def session() -> int:
        command = ["bash", SCRIPT, texts, "words"]
        return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode

    assert session() == 10
    (texts / "out" / "a.txt").unlink()  # it is not counted again
    assert session() == 0

    status = shell.here("status", "words", "--json").json()
    assert [(one["state"], one["units"], one["usage"]["tokens"]) for one in status["sessions"]] == [
        ("Wrapped", 2, 90),
        ("Finished", 1, 20),
    ]
    counts = {file.name: int(file.read_text()) for file in (texts / "out").iterdir()}
    assert counts == {"b.txt": 60, "c.txt": 20}
    assert f"count {texts / 'c.txt'}" in shell.here("handoff", "words", "--session", "1").out
