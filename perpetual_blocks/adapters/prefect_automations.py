"""Automations: what Prefect's server does by itself for chains, as soon as an event, or its absence, asks for it."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import ActionTypes, CallWebhook, RunDeployment, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from perpetual_blocks.errors import InvalidInput

PREFIX = "perpetual: "
CHAINS = "perpetual.chain.*"
STORE = "state-persistence"
"""The slug of the block whose chains a supervisor looks after."""

LEAST_SILENCE_SECONDS = 10.0
"""Prefect's server takes no less for the absence of events."""

What = Literal["installed", "updated", "there already"]


class Name(StrEnum):
    """The automations that there are."""

    RESCUE = "rescue"
    SUPERVISOR = "supervisor"
    NOTIFY = "notify"


DESCRIPTIONS = {
    Name.RESCUE: "Runs the supervisor as soon as a run has crashed, so that its chain goes on.",
    Name.SUPERVISOR: "Runs the supervisor when nothing has been heard of a chain that is at work, or about to go on.",
    Name.NOTIFY: "Tells people of chains that cannot go on by themselves, and of items that were given up.",
}

SUBJECT = "{{ event.payload.chain }}: {{ event.event }}"
BODY = (
    "{{ event.payload.reason or event.payload.why }}"
    "{% if event.payload.item %} (item {{ event.payload.item }}){% endif %}"
    "{% if flow_run %} {{ flow_run|ui_url }}{% endif %}"
)
WEBHOOK = (
    '{"chain": {{ event.payload.chain|tojson }}, "event": {{ event.event|tojson }}, '
    '"reason": {{ (event.payload.reason or event.payload.why)|tojson }}, '
    '"item": {{ (event.payload.item or none)|tojson }}}'
)


class Wish(NamedTuple):
    """What automations are to be like.

    Attributes:
        supervisor: The supervisor's deployment, as flow/deployment.
        store: The State Persistence block whose chains the supervisor looks after; the default store if None.
        block: Through which block people are told, as type/name.
        silence: After how many seconds without an event the supervisor looks.
    """

    supervisor: str
    store: str | None = None
    block: str | None = None
    silence: float = 900.0


class Done(NamedTuple):
    """What was done about an automation."""

    name: Name
    id: UUID
    what: What


async def installed() -> dict[Name, Automation]:
    """Our automations that the server has."""
    async with get_client() as client:
        return await _there(client)


async def install(names: Sequence[Name], wish: Wish) -> list[Done]:
    """Makes these automations what they are to be. One that a person has switched off stays off.

    Raises:
        InvalidInput: a deployment or a block is missing, or is none for this; nothing is installed then.
    """
    async with get_client() as client:
        wanted = {name: await _wanted(client, name, wish) for name in names}
        there = await _there(client)
        return [await _put(client, name, automation, there.get(name)) for name, automation in wanted.items()]


async def remove(names: Sequence[Name]) -> list[Name]:
    """Removes these automations; those that were there."""
    async with get_client() as client:
        there = {name: found for name, found in (await _there(client)).items() if name in names}
        for automation in there.values():
            await client.delete_automation(automation.id)
    return list(there)


async def _there(client: PrefectClient) -> dict[Name, Automation]:
    found = {name: await client.read_automations_by_name(PREFIX + name) for name in Name}
    return {name: automations[0] for name, automations in found.items() if automations}


async def _put(client: PrefectClient, name: Name, wanted: AutomationCore, there: Automation | None) -> Done:
    if there is None:
        return Done(name, await client.create_automation(wanted), "installed")
    wanted.enabled = there.enabled
    if _shown(wanted) == _shown(there):
        return Done(name, there.id, "there already")
    await client.update_automation(there.id, wanted)
    return Done(name, there.id, "updated")


def _shown(automation: AutomationCore) -> dict[str, Any]:
    """What an automation is, without what the server adds."""
    return AutomationCore.model_validate(automation.model_dump()).model_dump(exclude={"trigger": {"id"}})


async def _wanted(client: PrefectClient, name: Name, wish: Wish) -> AutomationCore:
    build: dict[Name, Callable[[], EventTrigger]] = {
        Name.RESCUE: _crashed,
        Name.SUPERVISOR: lambda: _silent(wish.silence),
        Name.NOTIFY: _in_need,
    }
    action = await (_notify(client, wish.block) if name is Name.NOTIFY else _supervise(client, wish))
    return AutomationCore(name=PREFIX + name, description=DESCRIPTIONS[name], trigger=build[name](), actions=[action])


def _crashed() -> EventTrigger:
    # Of any run: the event of a run's crash has the tags with which it was created, and a chain's first run has been
    # given the chain's tag later.
    return EventTrigger(
        posture=Posture.Reactive,
        expect={"prefect.flow-run.Crashed"},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        threshold=1,
    )


def _silent(seconds: float) -> EventTrigger:
    """Nothing is heard of a chain for so long, after it was heard of and has not come to its end."""
    if seconds < LEAST_SILENCE_SECONDS:
        raise InvalidInput.of("--silence", seconds, f"at least {LEAST_SILENCE_SECONDS:g} seconds")
    goes_on = ("session.started", "session.progress", "session.wrapped", "chain.rescued", "chain.renewed")
    return EventTrigger(
        posture=Posture.Proactive,
        after={f"perpetual.{event}" for event in goes_on},
        expect={"perpetual.*"},
        for_each={"prefect.resource.id"},
        match=ResourceSpecification({"prefect.resource.id": CHAINS}),
        threshold=1,
        within=timedelta(seconds=seconds),
    )


def _in_need() -> EventTrigger:
    ends = ("exhausted", "stalled", "failed")
    return EventTrigger(
        posture=Posture.Reactive,
        expect={*(f"perpetual.session.{end}" for end in ends), "perpetual.chain.rescued", "perpetual.item.discarded"},
        # A session that failed, or was rescued, is worth a message only if its chain does not go on by itself.
        match=ResourceSpecification(
            {"prefect.resource.id": CHAINS, "perpetual.status": ["running", "exhausted", "stalled"]}
        ),
        threshold=1,
    )


async def _supervise(client: PrefectClient, wish: Wish) -> ActionTypes:
    try:
        deployment = await client.read_deployment_by_name(wish.supervisor)
    except ObjectNotFound:
        expected = "a deployment of flows/supervisor.py: deploy it first, with deployments/prefect.yaml"
        raise InvalidInput.of("--supervisor", wish.supervisor, expected) from None
    parameters: dict[str, Any] | None = None
    if wish.store is not None:
        try:
            block = await client.read_block_document_by_name(wish.store, STORE)
        except ObjectNotFound:
            raise InvalidInput.of("--store", wish.store, "the name of a state-persistence block") from None
        parameters = {"store": {"$ref": {"block_document_id": str(block.id)}}}
    return RunDeployment(source="selected", deployment_id=deployment.id, parameters=parameters)


async def _notify(client: PrefectClient, named: str | None) -> ActionTypes:
    expected = "the type and name of a block that sends notifications, as slack-webhook/team, or of a webhook/…"
    slug, slash, name = (named or "").partition("/")
    if not (slug and slash and name):
        raise InvalidInput.of("--block", named, expected)
    try:
        block = await client.read_block_document_by_name(name, slug)
    except ObjectNotFound:
        raise InvalidInput.of("--block", named, f"{expected}; there is none of this name") from None
    if slug == "webhook":
        return CallWebhook(block_document_id=block.id, payload=WEBHOOK)
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise InvalidInput.of("--block", named, f"{expected}; this one sends none")
    return SendNotification(block_document_id=block.id, subject=SUBJECT, body=BODY)
