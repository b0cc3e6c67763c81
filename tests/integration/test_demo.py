"""The README's first command, as a stranger runs it."""

import ast
import json
import sys
from pathlib import Path

from workbench import REPOSITORY, Site

sys.path.insert(0, str(REPOSITORY / "flows"))


def public_functions(source: Path) -> set[str]:
    """The names of a module's public top-level functions, read straight from its syntax tree."""
    tree = ast.parse(source.read_bytes())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in found if not name.startswith("_")}


def test_the_demo_mines_the_standard_library_in_a_chain_of_flow_runs(site: Site) -> None:
    """At least three sessions, each a flow run and a process of its own; every module once, and said truly."""
    from doc_mining import modules, standard_library

    done = site.perpetual("demo", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    expected = {module.name: module for module in modules(standard_library())}
    assert status["status"] == "finished"
    assert status["items"]["completed"] == status["items"]["total"] == len(expected)
    assert len(status["sessions"]) >= 3
    for name in ("flow_run_id", "pid"):
        assert len({session[name] for session in status["sessions"]}) == len(status["sessions"])
    wrapped = [session for session in status["sessions"] if session["state"] == "Wrapped"]
    for session in wrapped:
        (limit,) = session["limits"]
        assert 0.9 <= limit["used"] / limit["amount"] <= 1

    folder = site.folder / "perpetual-demo" / status["chain"]
    records = {path.stem: path for path in (folder / "knowledge" / "modules").glob("*.json")}
    assert set(records) == set(expected)
    for name, module in expected.items():
        facts = json.loads(records[name].read_text())["facts"]
        assert public_functions(standard_library() / module.path) <= {f["name"] for f in facts["functions"]}, name
    index = (folder / "knowledge" / "index.md").read_text()
    assert all(f"(modules/{name}.md)" in index for name in expected)
    assert len(list((folder / "handoffs").glob("session-*.md"))) == len(status["sessions"])
