"""The `perpetual` command with all of its subcommands."""

from cyclopts import App

from perpetual_blocks import __version__
from perpetual_blocks.cli import automations, checkpoints, items, session
from perpetual_blocks.cli.approve import approve
from perpetual_blocks.cli.chains import handoff, status
from perpetual_blocks.cli.check import check
from perpetual_blocks.cli.demo import demo
from perpetual_blocks.cli.init import init
from perpetual_blocks.cli.orchestrate import orchestrate
from perpetual_blocks.cli.plan import plan
from perpetual_blocks.cli.prune import prune
from perpetual_blocks.cli.report import report
from perpetual_blocks.cli.restore import restore
from perpetual_blocks.cli.results import results
from perpetual_blocks.cli.run import run
from perpetual_blocks.cli.steer import cancel, pause, resume, stop_all, supervise
from perpetual_blocks.cli.verify import verify
from perpetual_blocks.cli.watch import watch

app = App(
    name="perpetual",
    help="Prefect flows that stop just before a limit, save where they are, and continue in a fresh run.",
    version=__version__,
)
for command in (
    demo,
    init,
    run,
    orchestrate,
    plan,
    status,
    watch,
    handoff,
    results,
    report,
    pause,
    resume,
    approve,
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
