"""An application's work in a plain loop, in a process of its own: `python -m … NAME PARAMETERS`.

It says `done` after each result.
"""

import json
import sys

from perpetual_blocks.cli.demos import application

DONE = "done"

if __name__ == "__main__":
    for _ in application(sys.argv[1]).plain(json.loads(sys.argv[2])):
        print(DONE, flush=True)
