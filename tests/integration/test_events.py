"""Events and automations on a real server: what sessions emit, what it sets going, and who is told."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Thread
from typing import Any

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect_server import PrefectServer
from workbench import REPOSITORY, SQUARES, Site, wait_until

from perpetual_blocks.cli import main

EXAMPLES = REPOSITORY / "deployments" / "automations.yaml"


@pytest.fixture
def messages() -> Iterator[tuple[str, "Queue[dict[str, Any]]"]]:
    """A service that takes messages: its address, and what it was told."""
    told: Queue[dict[str, Any]] = Queue()

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Not into the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", told
        server.shutdown()


def perpetual(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    return said.err if ended.value.code else said.out


def new_deployment(site: Site, name: str) -> str:
    """A deployment of no flow in particular, that nobody serves; its id."""
    flow = site.call("POST", "/flows/", {"name": "supervisor"})
    return str(site.call("POST", "/deployments/", {"name": name, "flow_id": flow["id"]})["id"])


def test_events_start_chains_whose_events_start_others(site: Site, tmp_path: Any) -> None:
    """Both examples in deployments/: an event from outside starts a chain, and its end the next one. All that sessions
    emit has arrived, with the run and the deployment that it came from."""
    site.serve(SQUARES)
    served = site.call("GET", "/deployments/name/squares/served")["id"]
    text = EXAMPLES.read_text().replace("00000000-0000-0000-0000-000000000000", served)
    examples = yaml.safe_load(text.replace("docs-2026", "sets"))
    for example, n in zip(examples["automations"], (6, 1), strict=True):
        example["actions"][0]["parameters"] |= {"notes": str(tmp_path / "notes"), "n": n}
    (tmp_path / "automations.yaml").write_text(yaml.safe_dump(examples))
    prefect = site.start(
        sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(tmp_path / "automations.yaml")
    )
    assert prefect.wait(60) == 0

    _emit(site, "docs.arrived", {"chain": "sets"})
    first, second = site.chain_over("sets"), site.chain_over("sets-index")

    assert (first["status"], len(first["sessions"])) == ("finished", 2)
    assert second["status"] == "finished"
    wait_until(lambda: "perpetual.session.finished" in [one["event"] for one in site.events("sets")], "the end")
    # Whether a warning comes, or the follow-on ahead of the end, is a matter of the machine's pace.
    events = [one for one in site.events("sets") if one["event"].split(".")[1] in ("session", "items")]
    assert [(event["event"].removeprefix("perpetual."), event["payload"]["session"]) for event in events] == [
        ("session.started", 1),
        ("items.added", 1),
        ("session.wrapped", 1),
        ("session.started", 2),
        ("session.finished", 2),
    ]
    runs = {session["ordinal"]: session["flow_run_id"] for session in first["sessions"]}
    for event in events:
        related = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in event["related"]}
        assert related["flow-run"] == f"prefect.flow-run.{runs[event['payload']['session']]}"
        assert related["deployment"] == f"prefect.deployment.{served}"
    wrapped = events[2]
    assert wrapped["payload"]["usage"]["tokens"] == 40
    assert wrapped["resource"]["perpetual.status"] == "waiting"
    assert wrapped["resource"]["perpetual.stop"] == "budget:tokens"


def _emit(site: Site, name: str, payload: dict[str, Any], resource: str = "docs", **labels: str) -> None:
    with PrefectServer(site.api, site.folder, frozenset()).here():
        emit_event(name, {"prefect.resource.id": resource, **labels}, payload=payload)


def test_automations_are_installed_changed_and_removed(
    site: Site,
    prefect_server: PrefectServer,
    messages: tuple[str, "Queue[dict[str, Any]]"],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each does what it is for, is changed in place, and stays off where a person has switched it off."""
    new_deployment(site, "by-events")
    address, told = messages
    install = ("automations", "install")
    watched = ("--supervisor", "supervisor/by-events", "--silence", "10")
    with prefect_server.here():
        assert "--supervisor: got 'supervisor/none'" in perpetual(capsys, *install, "--supervisor", "supervisor/none")
        assert "--block: got None" in perpetual(capsys, *install, "notify")
        assert "there is none of this name" in perpetual(capsys, *install, "notify", "--block", "webhook/nobody")
        body = {"subject": "{{subject}}", "body": "{{body}}"}
        CustomWebhookNotificationBlock(name="told", url=address, json_data=body).save("told")
        Webhook(url=address, allow_private_urls=True).save("called")

        said = perpetual(capsys, *install, "rescue", "supervisor", "notify", *watched, "--block", "custom-webhook/told")
        assert said.split("\n")[:3] == [f"perpetual: {name}: installed" for name in ("rescue", "supervisor", "notify")]
        again = perpetual(capsys, *install, "supervisor", "notify", *watched, "--block", "custom-webhook/told")
        assert again.count("there already") == 2

        _emit(site, "perpetual.session.started", {"chain": "silent"}, "perpetual.chain.silent")
        lost = {"chain": "lost", "reason": "no progress"}
        _emit(site, "perpetual.session.stalled", lost, "perpetual.chain.lost", **{"perpetual.status": "stalled"})
        assert told.get(timeout=60) == {"subject": "lost: perpetual.session.stalled", "body": "no progress"}

        notify = [*install, "notify", "--block", "webhook/called"]
        assert "updated" in perpetual(capsys, *notify)
        outage = {"chain": "lost", "reason": "outage"}
        _emit(site, "perpetual.session.failed", outage, "perpetual.chain.lost", **{"perpetual.status": "waiting"})
        given_up = {"chain": "lost", "item": 'a "b"', "reason": "too large"}
        _emit(site, "perpetual.item.discarded", given_up, "perpetual.chain.lost", **{"perpetual.status": "running"})
        called = {"chain": "lost", "event": "perpetual.item.discarded", "reason": "too large", "item": 'a "b"'}
        assert told.get(timeout=60) == called

        there = json.loads(perpetual(capsys, "automations", "list", "--json"))
        assert [(one["name"], one["enabled"]) for one in there] == [
            ("rescue", True),
            ("supervisor", True),
            ("notify", True),
        ]
        asyncio.run(_switch_off(there[-1]["id"]))
        assert "there already" in perpetual(capsys, *notify)
        listed = perpetual(capsys, "automations", "list")
        assert "supervisor  on" in listed
        assert "notify      off" in listed
        wait_until(lambda: site.runs_of_flow("supervisor"), "the supervisor runs for the silent chain", 60)
        assert "1 removed" in perpetual(capsys, "automations", "remove", "notify")
        assert "2 removed" in perpetual(capsys, "automations", "remove")
        assert "rescue      not installed" in perpetual(capsys, "automations", "list")


async def _switch_off(automation: str) -> None:
    async with get_client() as client:
        await client.pause_automation(automation)  # type: ignore[arg-type]
