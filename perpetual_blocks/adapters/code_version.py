"""Which code an agent is: a digest of its source, so that a chain notices when it changes between two sessions."""

import hashlib
import inspect
from pathlib import Path

from perpetual_blocks.agent import PerpetualAgent

OURS = __name__.partition(".")[0]
DIGITS = 12


def code_version(agent: type[PerpetualAgent], deployment_version: str | None = None) -> str | None:
    """`digest`, or `digest version` where the deployment has one; None where the source is in no file.

    The digest is of the files, whole, in which the agent's class and its bases outside this package are; what they
    import is not looked at. Where the files lie does not matter.
    """
    read = hashlib.sha256()
    try:
        for file in dict.fromkeys(map(_source_file, _written_by_others(agent))):
            read.update(file.read_bytes())
    except (OSError, TypeError):
        return None
    digest = read.hexdigest()[:DIGITS]
    return f"{digest} {deployment_version}" if deployment_version else digest


def _written_by_others(agent: type[PerpetualAgent]) -> list[type[PerpetualAgent]]:
    bases = [base for base in agent.__mro__ if issubclass(base, PerpetualAgent)]
    return [base for base in bases if base.__module__.partition(".")[0] != OURS]


def _source_file(agent: type[PerpetualAgent]) -> Path:
    return Path(inspect.getfile(agent))
