"""A browser, and the server with what the browser tests look at."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import launched, need

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from prefect_server import PrefectServer
from workbench import HERE, REPOSITORY, Site, site_on

if TYPE_CHECKING:
    from prefect_ui import PrefectUi


@pytest.fixture(scope="module")
def shared_site(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A ledger and results storage on the server."""
    need()
    with site_on(prefect_server.api, prefect_server.home, tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture(scope="module")
def printing(prefect_server: PrefectServer, shared_site: Site) -> Iterator[Site]:
    """The site where leaflets are served, with our block types."""
    register = [sys.executable, "-m", "prefect", "block", "register", "-m", "perpetual_blocks"]
    subprocess.run(register, env=shared_site.environment, check=True, capture_output=True, timeout=120)
    prefect_server.forget_blocks()
    shared_site.serve(Path(__file__).parent / "leaflets.py")
    with prefect_server.here():
        yield shared_site


@pytest.fixture(scope="module")
def spending(shared_site: Site) -> Site:
    """The site where ten tokens a unit are spent of forty-five in all."""
    shared_site.serve(HERE / "spender.py")
    return shared_site


@pytest.fixture(scope="module")
def deployed(shared_site: Site) -> Iterator[Site]:
    """The site where the doc-miner of deployments/prefect.yaml is deployed, and a worker waits for its runs."""
    prefect = [sys.executable, "-m", "prefect"]
    pool = ["work-pool", "create", "perpetual", "--type", "process", "--overwrite"]
    deploy = ["--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--name", "doc-miner"]
    for command in (pool, deploy):
        assert shared_site.start(*prefect, *command, cwd=REPOSITORY).wait(120) == 0, command
    shared_site.start(*prefect, "worker", "start", "--pool", "perpetual", cwd=REPOSITORY)
    yield shared_site
    made = shared_site.call("GET", "/deployments/name/mine-docs/doc-miner")
    for schedule in made["schedules"]:
        shared_site.call("DELETE", f"/deployments/{made['id']}/schedules/{schedule['id']}")


@pytest.fixture(params=["v2", "v1"])
def ui(request: pytest.FixtureRequest, prefect_server: PrefectServer) -> Iterator["PrefectUi"]:
    """Each of the UIs. Whatever a test does there, nothing of ours is complained of in the console."""
    need()
    from prefect_ui import V1, V2

    kind = {"v1": V1, "v2": V2}[request.param]
    with launched() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        used = kind(context, prefect_server.api.removesuffix("/api"))
        try:
            yield used
        finally:
            if folder := os.environ.get("BROWSER_TEST_PICTURES"):
                used.page.screenshot(path=f"{folder}/{request.node.name}.png")
    assert used.complaints == []
