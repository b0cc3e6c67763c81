"""Which code an agent is: the files of its class and of its bases."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from perpetual_blocks import PerpetualAgent
from perpetual_blocks.adapters.code_version import code_version

BASE = "from perpetual_blocks import PerpetualAgent\n\nclass Base(PerpetualAgent):\n    pass\n"
MINE = "from my_base import Base\n\nclass Mine(Base):\n    pages: int = 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an agent whose base is in another file."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_base.py").write_text(BASE)
    (tmp_path / "my_agent.py").write_text(MINE)
    yield tmp_path
    for name in ("my_base", "my_agent"):
        sys.modules.pop(name, None)


def mine() -> type[PerpetualAgent]:
    agent: type[PerpetualAgent] = import_module("my_agent").Mine
    return agent


def test_the_same_source_is_the_same_code(folder: Path) -> None:
    """Twelve hexadecimal digits, and the deployment's version where it has one."""
    code = code_version(mine())

    assert code is not None
    assert len(code) == 12
    assert int(code, 16) >= 0
    assert code_version(mine()) == code
    assert code_version(mine(), "v2") == f"{code} v2"


@pytest.mark.parametrize("file", ["my_agent.py", "my_base.py"])
def test_a_change_of_its_file_or_its_bases_file_is_noticed(folder: Path, file: str) -> None:
    """Whatever it is: the file is taken as it is."""
    before = code_version(mine())

    (folder / file).write_text((folder / file).read_text() + "# one more line\n")

    assert code_version(mine()) != before


def test_where_the_files_lie_does_not_matter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A worker that fetches the code into a new folder each time runs the same code."""
    before = code_version(mine())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("my_base.py", "my_agent.py"):
        (folder / name).rename(elsewhere / name)
        sys.modules.pop(name.removesuffix(".py"))
    sys.path.insert(0, str(elsewhere))
    try:
        assert code_version(mine()) == before
    finally:
        sys.path.remove(str(elsewhere))


def test_an_agent_without_a_file_has_no_code() -> None:
    """Typed into a notebook, or made by a program that is gone: nothing is known, and nothing is compared."""
    made = type("Made", (PerpetualAgent,), {"__module__": "nowhere_at_all"})

    assert code_version(made) is None
    assert code_version(made, "v2") is None
