"""The agent's files in git: what a commit of them says, and what becomes of those that a killed session has left."""

from perpetual_blocks.errors import described
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import SessionRecord
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.session.ports import Refuse
from perpetual_blocks.session.steps import STEP_SECONDS, within
from perpetual_blocks.session.world import Agent, World


def commit_message(this: SessionRecord, fence: Fence, end: Ending, checkpoint: str | None) -> str:
    """What the commit of a session's work says.

    Args:
        this: The session, with what it has done so far.
        checkpoint: The digest of the checkpoint that the files belong to; None where there was no time for one.
    """
    trailers = {
        "Chain": fence.chain,
        "Session": fence.ordinal,
        "Stop": end.reason.code,
        "Checkpoint": checkpoint,
        "Units": this.units,
        "Cost": f"{this.usage['cost']:.6g}" if "cost" in this.usage else None,
    }
    lines = [f"Perpetual-{name}: {value}" for name, value in trailers.items() if value is not None]
    return "\n".join([f"{fence.chain}: work of session {fence.ordinal}", "", *lines, ""])


def refusal(redactor: Redactor) -> Refuse | None:
    """What keeps the agent's own secrets out of a commit; None where it has none, and no file needs to be read."""
    return redactor.refuse if redactor.refuses else None


def set_aside(agent: Agent, world: World, fence: Fence, killed: SessionRecord) -> str | None:
    """Sets aside what a killed session had not committed of the paths that the agent names.

    It goes to a branch of its own, and the files stay as they are. Some are half done; others are of finished units,
    which are not run again, and nobody can tell the two apart. A unit that was interrupted is tried again, and writes
    its files whole; what it then writes over is on the branch.

    Returns:
        What is to be said of it; nothing can go wrong here that would keep the chain from going on.
    """
    what = f"the uncommitted work of session {killed.ordinal}"

    def put() -> str | None:
        paths = list(agent.commit_changes())
        if not paths:
            return None
        branch = f"perpetual/{fence.chain}/{killed.ordinal}"
        lines = (f"Perpetual-Chain: {fence.chain}", f"Perpetual-Session: {killed.ordinal}")
        message = "\n".join([f"{fence.chain}: left by session {killed.ordinal}, which was killed", "", *lines, ""])
        commit = world.saved_work.set_aside(paths, branch, message, refusal(world.redactor))
        return commit and f"{what} is set aside on the branch {branch}; the files are left as they were found"

    try:
        return within(STEP_SECONDS, put)
    except Exception as error:  # noqa: BLE001 - user code may raise anything
        return world.redactor(f"{what} was not set aside: {described(error)}")
