"""`perpetual checkpoints`: what a chain has saved, whether it is whole, and what is kept of it."""

from typing import Any

from cyclopts import App
from rich.markup import escape
from rich.table import Table

from perpetual_blocks.checkpoint import Checkpoint, Signer
from perpetual_blocks.cli.output import NOT_FINISHED, OK, Json, Where, out, print_json
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import InvalidInput, StorageError
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.session.ports import Documents
from perpetual_blocks.usage import show_bytes

app = App(name="checkpoints", help="List checkpoints, and pin those that are to be kept.")

HERE = Where()


@app.command(name="list")
def list_checkpoints(chain: str, *, json: Json = False, where: Where = HERE) -> int:
    """List a chain's checkpoints, the latest first; reads each, and exits with 1 if one is damaged.

    Example: perpetual checkpoints list demo

    Args:
        chain: The chain's name.
        json: Print a JSON array.
    """
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
    from perpetual_blocks.adapters.signing import load_signer

    store = where.get_store()
    ledger = store.get_ledger()
    ledger.chain(chain)
    found = ledger.documents(chain, "checkpoint")
    documents, signer = StoredDocuments(load_storage(store.result_storage)), load_signer(store.signing_secret)
    rows = [_as_json(document, documents, signer) for document in found]
    print_json(rows) if json else out.print(_table(rows))
    return OK if all(row["whole"] for row in rows) else NOT_FINISHED


def _add_command(name: str, what: str, *, pinned: bool) -> None:
    """Adds `pin` or `unpin`, which differ in this only."""

    def set_pinned(chain: str, session: int | None = None, *, json: Json = False, where: Where = HERE) -> None:
        """Pin a session's checkpoint, or let it go.

        Args:
            chain: The chain's name.
            session: The session that wrote it.
            json: Print a JSON object.
        """
        ledger = where.open_ledger()
        ledger.chain(chain)
        known = [document.ordinal for document in ledger.documents(chain, "checkpoint")]
        ordinal = known[0] if session is None and known else session
        if ordinal is None or not ledger.pin_checkpoint(chain, ordinal, pinned=pinned):
            has = ", ".join(map(str, known)) or "none"
            raise InvalidInput.of("session", session, f"a session of {chain} whose checkpoint is there: {has}")
        if json:
            print_json({"chain": chain, "session": ordinal, "pinned": pinned})
        else:
            out.print(
                f"checkpoint of session {ordinal} of {chain}: {'pinned' if pinned else 'unpinned'}", highlight=False
            )

    example = f"Example: perpetual checkpoints {name} demo 3"
    app.command(set_pinned, name=name, help=f"{what}; the latest without a session.\n\n{example}")


_add_command("pin", "Keep a session's checkpoint however many newer ones there are", pinned=True)
_add_command("unpin", "Let a pinned checkpoint go when it is old", pinned=False)


def _as_json(document: Document, documents: Documents, signer: Signer | None) -> dict[str, Any]:
    damage = None
    try:
        Checkpoint.read(documents.read(document.key), document.digest, signer)
    except StorageError as error:
        damage = str(error)
    return {
        "session": document.ordinal,
        "at": isoformat(document.at),
        "size": document.size,
        "digest": document.digest,
        "pinned": document.pinned,
        "whole": damage is None,
        "damage": damage,
        "key": document.key,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("session", "written", "size", "SHA-256", "", ""):
        table.add_column(name, justify="right" if name in ("session", "size") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["session"]),
            row["at"],
            show_bytes(row["size"]),
            row["digest"][:12],
            "pinned" if row["pinned"] else "",
            "[green]whole[/]" if row["whole"] else f"[red]{escape(row['damage'])}[/]",
        )
    return table
