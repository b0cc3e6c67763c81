"""`perpetual report`: what became of a chain, as a page that can be sent to somebody."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.report import chain_report
from perpetual_blocks.usage import show_bytes

HERE = Where()


def report(
    chain: str,
    *,
    html: Annotated[Path | None, Parameter(negative="")] = None,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Write a chain's report: one HTML page with its sessions in time, budgets, forecasts, metrics and dead letters.

    The page needs no network and no script; it may be mailed, printed, or put on any web server.

    Example: perpetual report demo --html demo.html

    Args:
        chain: The chain's name.
        html: The file that is written; CHAIN.html by default.
        json: Print the data as one JSON object, and write no page unless --html is given.
    """
    from perpetual_blocks.adapters.masking import redactor_for
    from perpetual_blocks.cli.report_page import report_page

    store = where.get_store()
    redactor = redactor_for(ledger=store.get_address())
    found = redactor.shown(chain_report(store.get_ledger(), chain, time.time()))
    if json:
        print_json(found)
        if html is None:
            return
    path = html or Path(f"{chain}.html")
    page = report_page(found)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InvalidInput.of("--html", str(path), f"a file that can be written ({error.strerror})") from error
    if not json:
        out.print(f"{path} has the report ({show_bytes(len(page.encode()))})", markup=False, highlight=False)
