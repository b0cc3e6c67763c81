"""Find the modules of a tree of Python source, in an order that never changes."""

import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests, vendored wheels and caches: code that is there, but that nobody reads to learn what a library offers.
_SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "test", "tests", "idle_test", "_bundled"})


@dataclass(frozen=True, slots=True)
class SourceModule:
    """One module of a corpus: its dotted name, its path relative to the corpus, and its size in bytes."""

    name: str
    path: Path
    size: int


def standard_library() -> Path:
    """The folder of the running interpreter's own standard library."""
    return Path(sysconfig.get_path("stdlib"))


def modules(root: Path) -> Iterator[SourceModule]:
    """Every importable module under `root`, sorted by name, each name once.

    A package's `__init__.py` carries the package's name. Where a folder has both `x.py` and `x/__init__.py`,
    `x` is the package, as it is for `import`. A `root` that is a package itself starts every name.
    """
    prefix = (root.resolve().name,) if (root / "__init__.py").is_file() else ()
    found: dict[str, Path] = {}
    for path in _python_files(root):
        parts = (*prefix, *path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        if is_package or name not in found:
            found[name] = path
    for name in sorted(found):
        yield SourceModule(name, found[name].relative_to(root), found[name].stat().st_size)


def read_source(path: Path) -> str:
    """The text of a source file, decoded as its encoding cookie or byte order mark says."""
    with tokenize.open(path) as file:
        return file.read()


def _python_files(folder: Path) -> Iterator[Path]:
    """The source files under `folder` whose path can be written as a dotted name."""
    for entry in folder.iterdir():
        if entry.is_dir():
            # A link to a folder is left out: it would repeat modules, or never end.
            wanted = entry.name.isidentifier() and entry.name not in _SKIPPED_FOLDERS
            if wanted and not entry.is_symlink():
                yield from _python_files(entry)
        elif entry.suffix == ".py" and entry.stem.isidentifier() and entry.is_file():
            yield entry
