"""The layers: imports point to the right only, and the core knows nothing of the world outside.

cli ─► flow flow_run form ─► blocks ─► adapters ─► agent session ─► work budget checkpoint handoff ─► errors …
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "perpetual_blocks"
LAYERS = (
    ("cli", "testing"),
    ("flow", "flow_run", "form"),
    ("blocks",),
    ("adapters",),
    ("agent", "session"),
    ("work", "budget", "checkpoint", "handoff"),
    ("telemetry",),
    ("patience",),
    ("errors", "clock", "usage", "faults", "files", "redaction", "service_errors"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
CORE = {name for names in LAYERS[LAYER["session"] :] for name in names}
WORLD = {"prefect", "sqlalchemy", "psutil", "subprocess"}
ALLOWED_IN_CORE = {*sys.stdlib_module_names, "pydantic"} - WORLD


@dataclass(frozen=True)
class Import:
    """One imported module, and where.

    Attributes:
        late: Whether it is imported for type checking only, or not before a function runs.
    """

    where: str
    line: int
    target: str
    late: bool

    @property
    def root(self) -> str:
        return self.target.partition(".")[0]

    @property
    def part(self) -> str:
        """The part of our package that it is from: `session`, `errors`."""
        return self.target.split(".")[1] if "." in self.target else ""

    def __str__(self) -> str:
        return f"{self.where}:{self.line} imports {self.target}"


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def part_of(path: Path) -> str:
    """The part of our package that a file belongs to; "" for the package's own `__init__`."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


@cache
def imports(path: Path) -> list[Import]:
    """Everything that a file imports, wherever it does."""
    tree = ast.parse(path.read_text(), str(path))
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    where = str(path.relative_to(REPOSITORY))
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module or "")))
            # `from perpetual_blocks import work` is an import of `perpetual_blocks.work`.
            targets = [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE.name else [base]
        else:
            continue
        found += [Import(where, node.lineno, target, id(node) in late) for target in targets]
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def counted(path: Path) -> list[Import]:
    """A file's imports, without those that its layer may make late: an agent makes its flow, and the package has all
    public names."""
    may_be_late = part_of(path) in ("agent", "")
    return [one for one in imports(path) if not (one.late and may_be_late)]


def test_every_part_has_its_place() -> None:
    """Each module of the package is in a layer: a new one is given its place here."""
    assert {part_of(path) for path in sources("perpetual_blocks")} - {""} <= set(LAYER)


def test_imports_point_to_the_right() -> None:
    """No part imports one to the left of it."""
    wrong = [
        str(one)
        for path in sources("perpetual_blocks")
        if part_of(path)
        for one in counted(path)
        if one.root == PACKAGE.name and one.part != "__version__" and LAYER.get(one.part, -1) < LAYER[part_of(path)]
    ]

    assert wrong == []


def test_parts_of_one_layer_do_not_need_each_other_in_turn() -> None:
    """Within a layer a part may use another one that does not use it back, directly or through others."""
    uses: dict[str, set[str]] = {name: set() for name in LAYER}
    for path in sources("perpetual_blocks"):
        if part_of(path):
            ours = {one.part for one in counted(path) if one.root == PACKAGE.name}
            uses[part_of(path)] |= (ours & set(LAYER)) - {part_of(path)}

    while free := [name for name, others in uses.items() if not others & set(uses)]:
        for name in free:
            del uses[name]

    assert uses == {}


def test_the_core_needs_the_standard_library_and_pydantic_only() -> None:
    """The core imports no Prefect, no SQL, no psutil, no subprocess, nor anything else from outside."""
    wrong = [
        str(one)
        for path in sources("perpetual_blocks")
        if part_of(path) in CORE
        for one in counted(path)
        if one.root != PACKAGE.name and one.root not in ALLOWED_IN_CORE
    ]

    assert wrong == []


def test_the_package_itself_loads_nothing() -> None:
    """Public names are loaded when they are used: `import perpetual_blocks` needs the standard library only."""
    wrong = [str(one) for one in counted(PACKAGE / "__init__.py") if one.root not in sys.stdlib_module_names]

    assert wrong == []


def test_loading_the_core_loads_nothing_of_the_world() -> None:
    """A process that runs sessions without our adapters has neither Prefect nor SQLAlchemy in it."""
    code = (
        "import sys, perpetual_blocks.agent, perpetual_blocks.session.loop, perpetual_blocks.session.status; "
        f"print(*sorted({WORLD - {'subprocess'}!r} & set(sys.modules)))"
    )

    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert said.stdout.split() == []


def test_nothing_imports_the_flows() -> None:
    """The flows that are shipped use the package, never the other way round."""
    wrong = [str(one) for path in sources("perpetual_blocks") for one in imports(path) if one.root == "flows"]

    assert wrong == []


def test_what_is_used_nowhere() -> None:
    """Nothing that turns saved bytes into code, and nothing of Prefect's that is not public."""
    forbidden = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "prefect._internal")

    wrong = [
        str(one)
        for path in sources("perpetual_blocks", "flows", "deployments", "tests")
        for one in imports(path)
        if any(f"{one.target}.".startswith(f"{name}.") for name in forbidden)
    ]

    assert wrong == []


def test_no_shell_reads_what_we_call() -> None:
    """Programs are started with a list of arguments, so that no text is taken for a command."""
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in sources("perpetual_blocks", "flows")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in ("os.system", "os.popen", "subprocess.getoutput", "eval", "exec")
            or any(keyword.arg == "shell" for keyword in node.keywords)
        )
    ]

    assert wrong == []


def test_no_module_has_a_name_of_the_standard_library() -> None:
    """A module that is named like one of Python's own is mistaken for it when its folder is on the path."""
    files = [path for path in sources("perpetual_blocks", "flows", "tests") if not path.stem.startswith("__")]
    folders = {path.parent for path in files} - {REPOSITORY / "tests"}

    named = [str(path.relative_to(REPOSITORY)) for path in (*files, *folders)]
    assert [name for name in named if Path(name).stem in sys.stdlib_module_names] == []
