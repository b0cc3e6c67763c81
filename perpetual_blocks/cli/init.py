"""`perpetual init`: a new agent, with tests that pass and a deployment."""

import re
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Annotated

from cyclopts import Parameter

from perpetual_blocks.cli.output import Json, out, print_json
from perpetual_blocks.errors import InvalidInput

TEMPLATES = Path(__file__).with_name("new_agent")


def init(
    name: str,
    *,
    directory: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Json = False,
) -> None:
    """Write a new agent, its tests and its deployment into a folder; nothing that is there is overwritten.

    Example: perpetual init paper-reader

    Args:
        name: The agent's name: lower-case letters, digits and hyphens.
        directory: The folder, which is made if it is not there; ./NAME by default.
        json: Print a JSON object.
    """
    module = _module(name)
    folder = directory or Path(name)
    files = _files(name, module)
    _write(folder, files)
    if json:
        print_json({"name": name, "directory": str(folder), "files": sorted(files), "entrypoint": f"{module}.py:flow"})
        return
    out.print(f"{folder}/ has {', '.join(files)}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"next: cd {folder} && python -m pytest", highlight=False, markup=False, soft_wrap=True)


def _module(name: str) -> str:
    """The name of the agent's module, which must not stand in the way of another one."""
    expected = "1 to 30 of a-z, 0-9 and single hyphens between them, with a letter first, as paper-reader"
    if len(name) > 30 or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InvalidInput.of("NAME", name, expected)
    module = name.replace("-", "_")
    if iskeyword(module) or find_spec(module) is not None:
        raise InvalidInput.of("NAME", name, f"another name: Python has a module or a word {module!r} already")
    return module


def _files(name: str, module: str) -> dict[str, str]:
    """The texts of all files, by their names."""
    # Never one of the names that the module imports.
    class_name = "".join(part.capitalize() for part in name.split("-")) + "Agent"
    words = {"name": name, "module": module, "class_name": class_name}
    named = {
        f"{module}.py": "agent.py",
        f"test_{module}.py": "test_agent.py",
        "prefect.yaml": "prefect.yaml",
        "README.md": "README.md",
    }
    return {
        file: Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(words)
        for file, template in named.items()
    }


def _write(folder: Path, files: dict[str, str]) -> None:
    """Writes all files, or none where one of them is there."""
    if there := [name for name in files if (folder / name).exists() or (folder / name).is_symlink()]:
        raise InvalidInput.of("--directory", str(folder), f"a folder without {there[0]}, which is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise InvalidInput.of("--directory", str(folder), f"a folder that can be written ({error.strerror})") from error
