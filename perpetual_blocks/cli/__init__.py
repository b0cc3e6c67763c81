"""The `perpetual` command."""

import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from perpetual_blocks import __version__
from perpetual_blocks.cli import automations, checkpoints, items, session
from perpetual_blocks.cli.chains import handoff, status
from perpetual_blocks.cli.check import check
from perpetual_blocks.cli.demo import demo
from perpetual_blocks.cli.orchestrate import orchestrate
from perpetual_blocks.cli.output import fail
from perpetual_blocks.cli.plan import plan
from perpetual_blocks.cli.prune import prune
from perpetual_blocks.cli.restore import restore
from perpetual_blocks.cli.run import run
from perpetual_blocks.cli.steer import cancel, pause, resume, stop_all, supervise
from perpetual_blocks.cli.verify import verify
from perpetual_blocks.errors import InvalidInput, PerpetualError

app = App(
    name="perpetual",
    help="Prefect flows that stop just before a limit, save where they are, and continue in a fresh run.",
    version=__version__,
)
for command in (
    demo,
    run,
    orchestrate,
    plan,
    status,
    handoff,
    pause,
    resume,
    cancel,
    stop_all,
    supervise,
    verify,
    restore,
    prune,
    check,
):
    app.command(command)
app.command(automations.app)
app.command(items.app)
app.command(checkpoints.app)
app.command(session.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; see `perpetual_blocks.cli.output` for the exit codes."""
    # As an exception, so that servers and children that a command has started are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(InvalidInput(str(error)))
    except PerpetualError as error:
        fail(error)
    sys.exit(code if isinstance(code, int) else 0)
