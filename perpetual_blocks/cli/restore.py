"""`perpetual restore`: a lost ledger from a backup."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.backup import Rebuilt, rebuild
from perpetual_blocks.session.chain import check_chain_name
from perpetual_blocks.session.ports import Documents
from perpetual_blocks.usage import show

HERE = Where()


def restore(
    chain: str,
    *,
    source: Annotated[str, Parameter(name="--from")],
    until: int | None = None,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Bring a chain back into a ledger that does not have it. It is paused; `perpetual resume` goes on with it.

    Example: perpetual restore demo --from local-file-system/backup

    Args:
        chain: The chain's name.
        source: The backup storage: a folder, or a storage block's name.
        until: The last session whose backup is used; all of them by default.
        json: Print one JSON object.
    """
    from perpetual_blocks.clock import SystemClock

    ledger = where.open_ledger()
    rebuilt = rebuild(ledger, backup_storage(source), check_chain_name(chain), until)
    report = _report(rebuilt, SystemClock().now())
    if json:
        print_json({**report, "ledger": ledger.shown})
        return
    counts = ", ".join(f"{count:,} {status}" for status, count in report["items"].items() if count) or "no items"
    segments = report["segments"]
    out.print(
        f"{chain} is back in {ledger.shown}: {counts}; {segments} segment{'s' if segments != 1 else ''}, "
        f"up to session {report['session']}, {show('seconds', report['age_seconds'])} old",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for note in rebuilt.notes:
        out.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"It is paused: `perpetual resume {chain}` goes on.", highlight=False, markup=False)


def backup_storage(source: str) -> Documents:
    """The storage of a folder that is there, or of a block.

    Raises:
        InvalidInput: it is neither.
    """
    from prefect.filesystems import LocalFileSystem

    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    folder = Path(source).expanduser()
    if folder.is_dir():
        return StoredDocuments(LocalFileSystem(basepath=str(folder.absolute())))
    if source.count("/") != 1 or source.startswith(("/", ".", "~")) or source.endswith("/"):
        raise InvalidInput.of("--from", source, "a folder, or a storage block's name, as local-file-system/backup")
    return StoredDocuments(load_storage(source, "--from"))


def _report(rebuilt: Rebuilt, now: float) -> dict[str, Any]:
    index = rebuilt.index
    return {
        "chain": index.chain,
        "segments": len(index.segments),
        "rows": sum(part.rows for part in index.parts()),
        "items": {status.value: count for status, count in rebuilt.items.items()},
        "session": index.last.ordinal,
        "made_at": isoformat(index.last.at),
        "age_seconds": round(max(0.0, now - index.last.at), 1),
        "notes": list(rebuilt.notes),
    }
