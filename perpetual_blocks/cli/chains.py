"""`perpetual status` and `perpetual handoff`: how a chain stands, and what it hands over."""

from rich.markdown import Markdown
from rich.table import Table

from perpetual_blocks.checkpoint import digest
from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import DamagedDocument, InvalidInput
from perpetual_blocks.session.status import chain_status

HERE = Where()


def status(chain: str | None = None, *, json: Json = False, where: Where = HERE) -> None:
    """Show a chain: items, sessions, usage, metrics. Without a name, all chains.

    Example: perpetual status demo --json

    Args:
        chain: The chain's name.
        json: Print one JSON object.
    """
    ledger = where.open_ledger()
    if chain is not None:
        found = chain_status(ledger, chain)
        print_json(found) if json else out.print(chain_view(found))
        return
    chains = ledger.chains()
    if json:
        print_json(
            [
                {
                    "chain": row.name,
                    "status": row.status.value,
                    "reason": row.reason,
                    "sessions": row.ordinal,
                    "updated_at": isoformat(row.updated_at),
                }
                for row in chains
            ]
        )
        return
    if not chains:
        out.print(f"No chains yet in {ledger.shown}. `perpetual demo` makes one.", highlight=False)
        return
    table = Table("chain", "status", "sessions", "updated", "reason", box=None, header_style="dim")
    for row in chains:
        table.add_row(row.name, row.status.value, str(row.ordinal), isoformat(row.updated_at), row.reason)
    out.print(table)


def handoff(chain: str, *, session: int | None = None, json: Json = False, where: Where = HERE) -> None:
    """Print a chain's handoff, the latest unless a session is named.

    Example: perpetual handoff demo > handoff.md

    Args:
        chain: The chain's name.
        session: The session that wrote it.
        json: Print one JSON object.
    """
    from prefect.settings import get_current_settings

    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
    from perpetual_blocks.handoff.markdown import linked

    store = where.get_store()
    ledger = store.get_ledger()
    ledger.chain(chain)
    written = ledger.documents(chain, "handoff")
    chosen = [document for document in written if session in (None, document.ordinal)]
    if not chosen:
        known = ", ".join(str(document.ordinal) for document in written) or "none has written one yet"
        raise InvalidInput.of("--session", session, f"a session of {chain} that wrote a handoff: {known}")
    text = StoredDocuments(load_storage(store.result_storage)).read(chosen[0].key)
    if digest(text) != chosen[0].digest:
        raise DamagedDocument(f"handoff: {chosen[0].key} is not what session {chosen[0].ordinal} wrote")
    if json:
        print_json({"chain": chain, "session": chosen[0].ordinal, "key": chosen[0].key, "markdown": text})
    elif out.is_terminal:
        ui = get_current_settings().ui_url
        out.print(Markdown(linked(text, ui) if ui else text))
    else:
        print(text, end="")
