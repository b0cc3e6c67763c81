"""`perpetual automations`: what Prefect's server does by itself when a run of a chain has crashed."""

import asyncio
from typing import TYPE_CHECKING, Any

from cyclopts import App

from perpetual_blocks.cli.output import Json, out, print_json
from perpetual_blocks.errors import InvalidInput

if TYPE_CHECKING:
    from prefect.events.schemas.automations import Automation

app = App(name="automations", help="Install, list and remove the automations that rescue chains.")

RESCUE = "perpetual: rescue"
DEPLOYMENT = "supervisor/supervisor"


@app.command
def install(*, supervisor: str = DEPLOYMENT, store: str | None = None, json: Json = False) -> None:
    """Let the server run the supervisor as soon as a run has crashed. Doing it again changes nothing.

    Example: perpetual automations install

    Args:
        supervisor: The supervisor's deployment, as flow/deployment.
        store: The State Persistence block whose chains it looks after; the default store if not given.
        json: Print a JSON object.
    """
    found, made = asyncio.run(_install(supervisor, store))
    if json:
        print_json({"automation": RESCUE, "id": str(found), "installed": made})
    else:
        out.print(f"{RESCUE}: {'installed' if made else 'there already'}", highlight=False)


@app.command(name="list")
def list_automations(*, json: Json = False) -> None:
    """List the automations of perpetual flows.

    Example: perpetual automations list --json

    Args:
        json: Print a JSON array.
    """
    found = [{"name": one.name, "id": str(one.id), "enabled": one.enabled} for one in asyncio.run(_ours())]
    if json:
        print_json(found)
        return
    for one in found:
        out.print(f"{one['name']}  {'on' if one['enabled'] else 'off'}", highlight=False)
    if not found:
        out.print("none; `perpetual automations install`", highlight=False)


@app.command
def remove(*, json: Json = False) -> None:
    """Remove the automations of perpetual flows.

    Example: perpetual automations remove

    Args:
        json: Print a JSON object.
    """
    removed = asyncio.run(_remove())
    print_json({"removed": removed}) if json else out.print(f"{len(removed)} removed", highlight=False)


async def _ours() -> "list[Automation]":
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return await client.read_automations_by_name(RESCUE)


async def _install(supervisor: str, store: str | None) -> tuple[Any, bool]:
    from prefect.client.orchestration import get_client
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.exceptions import ObjectNotFound

    from perpetual_blocks.blocks import StatePersistence

    there = await _ours()
    if there:
        return there[0].id, False
    async with get_client() as client:
        try:
            deployment = await client.read_deployment_by_name(supervisor)
        except ObjectNotFound:
            expected = "a deployment of flows/supervisor.py: deploy it first, with deployments/prefect.yaml"
            raise InvalidInput.of("--supervisor", supervisor, expected) from None
        parameters: dict[str, Any] = {}
        if store is not None:
            try:
                block = await client.read_block_document_by_name(store, StatePersistence._block_type_slug or "")
            except ObjectNotFound:
                raise InvalidInput.of("--store", store, "the name of a state-persistence block") from None
            parameters = {"store": {"$ref": {"block_document_id": str(block.id)}}}
        trigger = EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Crashed"},
            # Of any run: the event of a run's crash has the tags with which it was created, and a chain's first run
            # has been given the chain's tag later.
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            threshold=1,
        )
        action = RunDeployment(source="selected", deployment_id=deployment.id, parameters=parameters or None)
        automation = AutomationCore(
            name=RESCUE,
            description="Runs the supervisor as soon as a run has crashed, so that its chain goes on.",
            trigger=trigger,
            actions=[action],
        )
        return await client.create_automation(automation), True


async def _remove() -> list[str]:
    from prefect.client.orchestration import get_client

    found = await _ours()
    async with get_client() as client:
        for one in found:
            await client.delete_automation(one.id)
    return [one.name for one in found]
