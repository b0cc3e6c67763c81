"""The `perpetual` command.

Its modules import each other and the libraries of a command line only when a command is given: the processes of
sessions and of isolated units are started from this package, too, and need none of them.
"""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; see `perpetual_blocks.cli.output` for the exit codes."""
    # As an exception, so that servers and children that a command has started are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    from cyclopts import CycloptsError

    from perpetual_blocks.cli.app import app
    from perpetual_blocks.cli.output import fail
    from perpetual_blocks.errors import InvalidInput, PerpetualError

    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(InvalidInput(str(error)))
    except PerpetualError as error:
        fail(error)
    sys.exit(code if isinstance(code, int) else 0)
