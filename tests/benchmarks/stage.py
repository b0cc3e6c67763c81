"""Where the scripts of benchmarks run: each in a process of its own, with a Prefect server, a ledger and a storage."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_script(name: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Any:
    """What a script next to this file prints as JSON.

    Raises:
        RuntimeError: it failed; the text holds the end of what it said.
    """
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def prefect_server(home: str) -> Iterator[dict[str, str]]:
    """The environment with a Prefect home of its own and a server: the configured one, or one started for this.

    All other settings of Prefect are its defaults.
    """
    configured = os.environ.get("PREFECT_API_URL")
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = home
    from perpetual_blocks.adapters.local_server import local_server

    if configured:
        os.environ["PREFECT_API_URL"] = configured
        yield dict(os.environ)
    else:
        with local_server() as address:
            yield {**os.environ, "PREFECT_API_URL": address}


def site_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment with a ledger and a results storage in this folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **environment,
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PERPETUAL_LEDGER": str(folder / "ledger.db"),
    }
