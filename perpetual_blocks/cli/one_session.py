"""One session in a process of its own: `python -m perpetual_blocks.cli.one_session ENTRYPOINT [STORE] < PARAMETERS`.

`perpetual run` starts this once for each session, so that each begins with fresh memory. The parameters are read from
standard input: everybody on the machine sees the arguments of a process.
"""

import json
import sys
from typing import Any

from perpetual_blocks.blocks.loading import load_store
from perpetual_blocks.cli.entrypoint import load_perpetual_flow


def main(entrypoint: str, store: str | None = None) -> int:
    """Runs the flow once; 0 when its run ended in a Completed state, whatever that state's name."""
    parameters = json.loads(sys.stdin.read())
    flow = load_perpetual_flow(entrypoint)
    own = {"store": load_store(store)} if store else {}
    state: Any = flow(**parameters, **own, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
