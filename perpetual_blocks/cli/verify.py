"""`perpetual verify`: whether a chain is whole, and what can be done where it is not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from perpetual_blocks.cli.output import NOT_FINISHED, OK, Json, Where, err, out, print_json
from perpetual_blocks.session.consistency import REPAIRS, Problem
from perpetual_blocks.session.verification import Progress as Reporter
from perpetual_blocks.session.verification import Verification

HERE = Where()


def verify(
    chain: str,
    *,
    repair: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Check all rows of a chain against each other, and against every document and result.

    It may be run while the chain is at work. The exit code is 1 where something is wrong and was not repaired.

    Example: perpetual verify demo --repair

    Args:
        chain: The chain's name.
        repair: Repair what can be repaired; the chain must not be at work.
        json: Print one JSON object.
    """
    from perpetual_blocks.adapters.outcome_records import StoredOutcomes
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    store = where.get_store()
    storage = load_storage(store.result_storage)
    backup = StoredDocuments(load_storage(store.backup_storage, "backup_storage")) if store.backup_storage else None
    verification = Verification(
        ledger=store.get_ledger(),
        documents=StoredDocuments(storage),
        outcomes=StoredOutcomes(StoredDocuments(storage)),
        backup=backup,
        chain=chain,
    )
    with _progress() as report:
        problems = list(verification.problems(report))
    working = verification.working
    repaired = verification.repair(problems) if repair and not working else []
    notes = list(verification.checked.notes)
    if repair and working and any(problem.repair for problem in problems):
        notes.append("a session is at work: nothing was repaired; wait for its end, or pause the chain")
    whole = len(repaired) == len(problems)
    if json:
        print_json(_as_json(chain, verification, problems, repaired, notes))
    else:
        _show(chain, verification, problems, repaired, notes)
    return OK if whole else NOT_FINISHED


@contextmanager
def _progress() -> Iterator[Reporter]:
    """A bar on standard error, where that is a terminal."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("reading results", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _remedy(problem: Problem, repaired: bool) -> str:
    if problem.repair is None:
        return problem.advice or "nothing that a program can do"
    return f"repaired: {REPAIRS[problem.repair]}" if repaired else f"--repair: {REPAIRS[problem.repair]}"


def _as_json(
    chain: str, verification: Verification, problems: Sequence[Problem], repaired: Sequence[Problem], notes: list[str]
) -> dict[str, Any]:
    checked = verification.checked
    return {
        "chain": chain,
        "whole": not problems,
        "checked": {"rows": checked.rows, "documents": checked.documents, "results": checked.results},
        "problems": [
            {
                "what": problem.what,
                "where": problem.where,
                "found": problem.found,
                "repair": problem.repair,
                "repaired": problem in repaired,
                "advice": problem.advice or None,
            }
            for problem in problems
        ],
        "notes": notes,
    }


def _show(
    chain: str, verification: Verification, problems: Sequence[Problem], repaired: Sequence[Problem], notes: list[str]
) -> None:
    checked = verification.checked
    looked_at = f"{checked.rows:,} rows, {checked.documents:,} documents, {checked.results:,} results"
    if problems:
        table = Table("what", "where", "found", "repair", box=None, header_style="dim", padding=(0, 2, 0, 0))
        for problem in problems:
            cells = (problem.what, problem.where, problem.found, _remedy(problem, problem in repaired))
            table.add_row(*map(escape, cells))
        out.print(table)
    wrong = f"{len(problems)} wrong" + (f", {len(repaired)} repaired" if repaired else "")
    out.print(f"{chain}: {wrong if problems else 'whole'} ({looked_at})", highlight=False, markup=False)
    for note in notes:
        out.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
