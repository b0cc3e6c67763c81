"""`perpetual prune`: chains that are over for good are forgotten."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from perpetual_blocks.budget import parse_length
from perpetual_blocks.cli.output import OK, UNUSABLE, Json, Where, err, out, print_json
from perpetual_blocks.clock import isoformat
from perpetual_blocks.session.retention import Forgotten, Pruned
from perpetual_blocks.session.retention import prune as forget_chains
from perpetual_blocks.usage import show_bytes

HERE = Where()


def prune(
    *,
    older_than: str,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Forget chains that are finished or cancelled and that nobody has touched for long, with all that they have saved.

    The chains of one queue go together. One that waits, is paused, stalled or exhausted is never forgotten, nor is one
    with a pinned checkpoint. Backups stay. What pools do not count any more goes, too; what a forgotten chain has spent
    of a pool's total stays counted.

    An SQLite file does not become smaller: the room is used again, or given back by `VACUUM`. Storages other than local
    ones cannot delete: give their bucket a lifecycle. Exit code 3 if the storage could not delete a chain's documents:
    that chain is kept.

    Example: perpetual prune --older-than 90d --dry-run

    Args:
        older_than: For how long nobody has touched them: a number of s, m, h or d, as 90d.
        dry_run: Say what would go, and change nothing.
        json: Print one JSON object.
    """
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    seconds = parse_length(older_than, "--older-than")
    store = where.get_store()
    ledger = store.get_ledger()
    before = ledger.now() - seconds
    pruned = forget_chains(ledger, StoredDocuments(load_storage(store.result_storage)), before, dry_run=dry_run)
    if json:
        print_json(_as_json(pruned, before, dry_run=dry_run))
    else:
        _show(pruned, dry_run=dry_run)
    return UNUSABLE if pruned.failed else OK


def _as_json(pruned: Pruned, before: float, *, dry_run: bool) -> dict[str, Any]:
    return {
        "before": isoformat(before),
        "dry_run": dry_run,
        "forgotten": [
            {
                "chain": one.chain.name,
                "queue": one.chain.queue,
                "status": one.chain.status.value,
                "ended": isoformat(one.chain.updated_at),
                "sessions": one.chain.ordinal,
                "items": one.items,
                "documents": one.documents,
                "bytes": one.size,
                "backup": one.backup,
            }
            for one in pruned.forgotten
        ],
        "kept": [{"chain": chain, "why": why} for chain, why in pruned.kept.items()],
        "failed": [{"chain": chain, "why": why} for chain, why in pruned.failed.items()],
        "pool_rows": pruned.pool_rows,
    }


def _show(pruned: Pruned, *, dry_run: bool) -> None:
    if pruned.forgotten:
        out.print(_table(pruned.forgotten))
    chains = len(pruned.forgotten)
    done = ("would be" if dry_run else "are" if chains != 1 else "is") + " forgotten"
    rows = f", and {pruned.pool_rows:,} rows of pools that count no more" if pruned.pool_rows else ""
    _line(f"{chains:,} chain{'s' if chains != 1 else ''} {done}{rows}")
    if any(one.documents is None for one in pruned.forgotten):
        _line("note: this results storage cannot delete; a lifecycle of its bucket can")
    for one in pruned.forgotten:
        if one.backup is not None:
            _line(f"note: {one.chain.name} has a backup, which stays: {one.backup}")
    for chain, why in pruned.kept.items():
        _line(f"kept: {chain}: {why}")
    for chain, why in pruned.failed.items():
        err.print(f"kept: {chain}: {why}", highlight=False, markup=False, soft_wrap=True)


def _table(forgotten: list[Forgotten]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("chain", "ended", "sessions", "items", "documents", "freed"):
        table.add_column(name, justify="left" if name in ("chain", "ended") else "right", no_wrap=True)
    for one in forgotten:
        table.add_row(
            one.chain.name,
            isoformat(one.chain.updated_at),
            f"{one.chain.ordinal:,}",
            f"{one.items:,}",
            "stay" if one.documents is None else f"{one.documents:,}",
            show_bytes(one.size),
        )
    return table


def _line(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
