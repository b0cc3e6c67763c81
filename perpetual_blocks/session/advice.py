"""When the pattern does not pay: what the figures of a chain say against how it is run, one sentence each."""

from collections.abc import Sequence
from itertools import pairwise

from perpetual_blocks.session.chain import SessionRecord
from perpetual_blocks.session.metrics import resume_overhead, useful_share
from perpetual_blocks.usage import show_bytes

LEAST_USEFUL = 0.10
MOST_OVERHEAD = 0.05
FEWEST_SESSIONS = 3
GROWING = 5
LARGE_CHECKPOINT = 16 * 2**10
CHECKPOINT_BUDGET = 256 * 2**10
"""A checkpoint may be larger, but should not be: it is written, read back and copied at each session's end."""


def advice(sessions: Sequence[SessionRecord], checkpoints: Sequence[int]) -> list[str]:
    """What should be changed, with the figures that say so.

    * work is below 10 % of the limits that ended sessions (`useful_share`)
    * of at least 3 sessions, resuming takes more than 5 % of the time (`resume_overhead`)
    * each of the last 5 checkpoints is larger than the one before, the last is more than twice the first of them and
      above 16 KiB
    * the last checkpoint is larger than 256 KiB

    Args:
        checkpoints: The sizes of the chain's checkpoints in bytes, the oldest first.
    """
    said = []
    useful = useful_share(sessions)
    if useful is not None and useful < LEAST_USEFUL:
        said.append(
            f"Units used {useful:.1%} of the limits that ended their sessions: "
            "raise these limits, or split the items that do not fit."
        )
    overhead = resume_overhead(sessions)
    if len(sessions) >= FEWEST_SESSIONS and overhead is not None and overhead > MOST_OVERHEAD:
        said.append(
            f"Resuming takes {overhead:.1%} of the sessions' time: let sessions be longer, or start with less to load."
        )
    latest = checkpoints[-GROWING:]
    grows = len(latest) == GROWING and all(size < later for size, later in pairwise(latest))
    if grows and latest[-1] > max(LARGE_CHECKPOINT, 2 * latest[0]):
        said.append(
            f"The checkpoint grew from {show_bytes(latest[0])} to {show_bytes(latest[-1])} in {GROWING} sessions: "
            "keep in the context only what the next unit needs."
        )
    if checkpoints and checkpoints[-1] > CHECKPOINT_BUDGET:
        said.append(
            f"The checkpoint has {show_bytes(checkpoints[-1])}, more than {show_bytes(CHECKPOINT_BUDGET)}: "
            "keep large data in files, and their names in the context."
        )
    return said
