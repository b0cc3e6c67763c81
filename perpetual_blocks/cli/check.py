"""`perpetual check`: is everything there that a chain needs, and if not, what to do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from perpetual_blocks.cli.output import NOT_FINISHED, OK, Json, Where, out, print_json
from perpetual_blocks.errors import PerpetualError

HERE = Where()

KNOWN_SERVER = "3.8."


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check.

    Attributes:
        ok: None for what cannot be checked because an earlier check failed.
        what: What was found, or what is wrong and what to do.
    """

    name: str
    ok: bool | None
    what: str


def check(*, json: Json = False, where: Where = HERE) -> int:
    """Check the ledger, the results storage, the Prefect server and the saved blocks.

    Example: perpetual check --store production

    Args:
        json: Print a JSON array.
    """
    findings = list(_findings(where))
    if json:
        print_json([{"check": finding.name, "ok": finding.ok, "what": finding.what} for finding in findings])
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]?[/]"}[finding.ok]
            table.add_row(mark, finding.name, escape(finding.what))
        out.print(table)
    return OK if all(finding.ok is not False for finding in findings) else NOT_FINISHED


def _findings(where: Where) -> Iterator[Finding]:
    from perpetual_blocks.adapters.local_server import configured_server

    server = _try("server", _server)
    yield server
    if where.store and not server.ok:
        yield Finding("store", None, f"the block {where.store} is on the server")
        return
    yield _try("ledger", lambda: _ledger(where))
    yield _try("results storage", lambda: _storage(where))
    yield from _signing(where)
    if not server.ok or configured_server() is None:
        yield Finding("blocks", None, "saved blocks are on the server")
        return
    yield from _blocks()


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except PerpetualError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what a check is to tell
        return Finding(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _server() -> str:
    import prefect
    from prefect.client.orchestration import get_client

    from perpetual_blocks.adapters.local_server import configured_server

    address = configured_server()
    if address is None:
        return "none configured (PREFECT_API_URL); `perpetual demo` and `perpetual run` start one of their own"
    with get_client(sync_client=True) as client:
        version = str(client.request("GET", "/admin/version").json())
    if not version.startswith(KNOWN_SERVER):
        raise PerpetualError(
            f"{address}: got version {version}; expected {KNOWN_SERVER}x (this is {prefect.__version__})"
        )
    return f"{address}, version {version}"


def _ledger(where: Where) -> str:
    from perpetual_blocks.adapters.database.engine import HEAD

    ledger = where.open_ledger()
    chains = ledger.chains()
    ledger.close()
    return f"{ledger.shown}, schema {HEAD}, {len(chains)} chains"


def _storage(where: Where) -> str:
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    store = where.get_store()
    for slug, field in ((store.result_storage, "result_storage"), (store.backup_storage, "backup_storage")):
        if slug or field == "result_storage":
            StoredDocuments(load_storage(slug, field)).probe()
    backup = f", backup to {store.backup_storage}" if store.backup_storage else ""
    return f"{store.result_storage or 'Prefect default'}: written and read back{backup}"


def _signing(where: Where) -> Iterator[Finding]:
    from perpetual_blocks.adapters.signing import load_signer

    try:
        name = where.get_store().signing_secret
    except PerpetualError:  # which the ledger's finding has said
        return
    if name:
        yield _try("signing secret", lambda: f"{name}: loaded" if load_signer(name) else "")


def _blocks() -> Iterator[Finding]:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from perpetual_blocks.blocks import ResourceBudget, StatePersistence

    kinds: tuple[Any, ...] = (ResourceBudget, StatePersistence)
    with get_client(sync_client=True) as client:
        for kind in kinds:
            try:
                documents = client.read_block_documents_by_type(kind._block_type_slug)
            except ObjectNotFound:
                yield Finding(kind._block_type_slug, None, "not registered: prefect block register -m perpetual_blocks")
                continue
            if not documents:
                yield Finding(kind._block_type_slug, True, "registered, none saved")
            for document in documents:
                name = f"{kind._block_type_slug}/{document.name}"
                yield _try(name, lambda kind=kind, name=document.name: _block(kind, name))  # type: ignore[misc]


def _block(kind: Any, name: str) -> str:
    from perpetual_blocks.adapters.signing import load_signer
    from perpetual_blocks.blocks.forms import explained

    try:
        block = kind.load(name, _sync=True)
    except RuntimeError as error:
        raise PerpetualError(f"{explained(error)}. Edit it in the UI, under Blocks") from error
    if hasattr(block, "get_budget"):
        return "; ".join(str(limit) for limit in block.get_budget()) or "no limits"
    load_signer(block.signing_secret)
    return "valid"
