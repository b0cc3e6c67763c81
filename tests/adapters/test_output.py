"""A process whose output nobody reads any more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

TALKING = """
import os
import sys
import time
from pathlib import Path
from rich.console import Console
from perpetual_blocks.adapters import output

how = sys.argv[2]
if how == "not noticed":
    output._guard = lambda: None
if how != "as it is":
    output.guard_output()
    output.guard_output()  # a second time does nothing
console = Console()
console.print("began")
sys.stdin.readline()
nowhere = os.stat(os.devnull).st_rdev
while how == "noticed" and {os.fstat(number).st_rdev for number in (1, 2)} != {nowhere}:
    time.sleep(0.01)
try:
    console.print("is there anybody?")
    print("no", file=sys.stderr, flush=True)
    print("there is not", flush=True)
except BaseException as error:
    Path(sys.argv[1]).write_text(type(error).__name__)
else:
    Path(sys.argv[1]).write_text("went on")
"""


@pytest.mark.parametrize(
    ("how", "expected"), [("noticed", "went on"), ("not noticed", "went on"), ("as it is", "SystemExit")]
)
def test_it_goes_on_without_it(tmp_path: Path, how: str, expected: str) -> None:
    """Where rich would end the program at its next line, which is why this is there at all; also when that line comes
    before it is noticed that nobody reads it."""
    said = tmp_path / "said"
    with subprocess.Popen(
        [sys.executable, "-c", TALKING, str(said), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"began\n"
        child.stdout.close()
        child.stderr.close()
        child.stdin.write(b"\n")
        child.stdin.close()
        child.wait(60)

    assert said.read_text() == expected
