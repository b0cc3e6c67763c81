"""One session in a process of its own: `python -m perpetual_blocks.cli.one_session ENTRYPOINT ORDINAL [STORE]`.

`perpetual run` starts this once for each session, so that each begins with fresh memory. The parameters are read from
standard input, as JSON: everybody on the machine sees the arguments of a process.

The process of an isolated unit imports this module too, and needs nothing of what a session does: Prefect alone would
take it seconds.
"""

import json
import sys
from typing import Any


def main(entrypoint: str, ordinal: str, store: str | None = None) -> int:
    """Runs the flow once; 0 when its run ended in a Completed state, whatever that state's name.

    Args:
        ordinal: Which session of its chain it is to be: the run is called so from the beginning.
    """
    from prefect import tags

    from perpetual_blocks.blocks.loading import load_store
    from perpetual_blocks.cli.entrypoint import load_perpetual_flow
    from perpetual_blocks.session.follow_on import chain_tag, run_name

    parameters = json.loads(sys.stdin.read())
    flow, chain = load_perpetual_flow(entrypoint), parameters["chain"]
    own = {"store": load_store(store)} if store else {}
    flow.flow_run_name = run_name(chain, int(ordinal))
    with tags(chain_tag(chain)):
        state: Any = flow(**parameters, **own, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
