"""`perpetual init` as a shell sees it: what it refuses, and that nothing is written then."""

from pathlib import Path

import pytest
from shell import Shell, make_shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell for one test."""
    return make_shell(tmp_path / "here")


def test_it_says_what_it_wrote(shell: Shell) -> None:
    said = shell.here("init", "paper-reader")

    assert said.code == 0
    assert "paper-reader/ has paper_reader.py, test_paper_reader.py, prefect.yaml, README.md" in said.out
    assert "class PaperReaderAgent(" in (shell.folder / "paper-reader" / "paper_reader.py").read_text()
    assert "$" not in "".join(file.read_text() for file in (shell.folder / "paper-reader").iterdir())


@pytest.mark.parametrize(
    "name", ["Paper", "paper_reader", "1paper", "paper--reader", "paper-", "../paper", "p" * 31, ""]
)
def test_a_name_that_is_none_is_refused(shell: Shell, name: str) -> None:
    before = sorted(shell.folder.iterdir())
    shell.here("init", name).is_refusal("NAME", repr(name), "1 to 30 of a-z")
    assert sorted(shell.folder.iterdir()) == before


@pytest.mark.parametrize("name", ["class", "json", "prefect", "perpetual-blocks"])
def test_a_name_that_python_has_is_refused(shell: Shell, name: str) -> None:
    shell.here("init", name).is_refusal("NAME", repr(name), "another name")


def test_nothing_is_overwritten(shell: Shell) -> None:
    """Where one file is there already, none is written, and a second time neither."""
    there = shell.folder / "mine" / "prefect.yaml"
    there.parent.mkdir()
    there.write_text("mine")

    shell.here("init", "reader", "--directory", "mine").is_refusal("--directory", "'mine'", "prefect.yaml")

    assert [(file.name, file.read_text()) for file in there.parent.iterdir()] == [("prefect.yaml", "mine")]
    assert shell.here("init", "reader").code == 0
    shell.here("init", "reader").is_refusal("--directory", "'reader'", "reader.py", "not overwritten")


def test_a_folder_that_is_a_file_is_refused(shell: Shell) -> None:
    (shell.folder / "file").write_text("")
    shell.here("init", "reader", "--directory", "file").is_refusal("--directory", "'file'", "can be written")
