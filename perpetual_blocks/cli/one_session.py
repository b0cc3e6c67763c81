"""One session in a process of its own: `python -m perpetual_blocks.cli.one_session ENTRYPOINT PARAMETERS [STORE]`.

`perpetual run` starts this once for each session, so that each begins with fresh memory.
"""

import json
import sys
from typing import Any

from perpetual_blocks.cli.entrypoint import load_perpetual_flow
from perpetual_blocks.flow import load_store


def main(entrypoint: str, parameters: str, store: str | None = None) -> int:
    """Runs the flow once; 0 when its run ended in a Completed state, whatever that state's name."""
    flow = load_perpetual_flow(entrypoint)
    own = {"store": load_store(store)} if store else {}
    state: Any = flow(**json.loads(parameters), **own, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
