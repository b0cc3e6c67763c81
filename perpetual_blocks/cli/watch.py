"""`perpetual watch`: a chain while it works, wherever its sessions run."""

import os
import time

from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.live import local_time
from perpetual_blocks.cli.output import INTERRUPTED, Json, Where, exit_code_of, out, print_json
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.errors import LedgerUnavailable
from perpetual_blocks.redaction import Redactor, environment_secrets
from perpetual_blocks.session.chain import ChainStatus
from perpetual_blocks.session.status import chain_status

HERE = Where()

LOOK_SECONDS = 0.5
SHARE_OF_TIME = 0.1
"""How much of the time is spent looking, at most: where that takes long, it is done less often."""


def watch(chain: str, *, json: Json = False, where: Where = HERE) -> int:
    """Watch a chain until it is over: how far it is, when it ends, what it spends, what comes next.

    Reads the ledger only: it does not matter where the sessions run, nor whether the Prefect server is up. Where the
    output is no terminal, it is a line for each thing that happens. Ctrl-C ends the watching, and nothing else.

    Example: perpetual watch docs

    Args:
        chain: The chain's name.
        json: Print nothing but the chain's status, once it is over, as one JSON object.
    """
    ledger = where.open_ledger()
    ledger.chain(chain)
    try:
        with Follower(ledger, chain, out, quiet=json) as follower:
            _follow(follower)
        status = chain_status(ledger, chain)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        ledger.close()
    print_json(status) if json else out.print(chain_view(status))
    return exit_code_of(status)


def _follow(follower: Follower) -> None:
    """Looks until the chain is over, and waits while the ledger is away."""
    away_since: float | None = None
    mask = Redactor(others=environment_secrets(os.environ))
    while True:
        began = time.monotonic()
        try:
            status = follower.look()
        except LedgerUnavailable as error:
            away_since = time.time() if away_since is None else away_since
            follower.note(f"the ledger is away since {local_time(away_since)}, waiting for it: {mask(str(error))}")
        else:
            if away_since is not None:
                follower.note(f"the ledger is back, after it was away from {local_time(away_since)}")
                away_since = None
            if status is not None and status["status"] not in (ChainStatus.RUNNING, ChainStatus.WAITING):
                return
        seconds = time.monotonic() - began
        time.sleep(max(LOOK_SECONDS, seconds / SHARE_OF_TIME))
