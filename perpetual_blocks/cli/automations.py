"""`perpetual automations`: what Prefect's server does by itself for chains."""

import asyncio
from typing import Literal

from cyclopts import App

from perpetual_blocks.cli.output import Json, out, print_json

app = App(name="automations", help="Install, list and remove what Prefect's server does by itself for chains.")

DEPLOYMENT = "supervisor/supervisor"

Choice = Literal["rescue", "supervisor", "notify"]


@app.command
def install(
    *names: Choice,
    supervisor: str = DEPLOYMENT,
    store: str | None = None,
    silence: float = 900.0,
    block: str | None = None,
    json: Json = False,
) -> None:
    """Let the server act by itself. Doing it again changes nothing, or what is asked for otherwise.

    rescue runs the supervisor as soon as a run has crashed. supervisor runs it when nothing has been heard of a chain
    for a while, in place of a schedule or beside it. notify tells people of chains that cannot go on by themselves, and
    of items that were given up.

    Automations of your own may start a chain when something has happened: see deployments/automations.yaml.

    Example: perpetual automations install rescue notify --block slack-webhook/team

    Args:
        names: rescue, supervisor, notify; rescue if none is given.
        supervisor: The supervisor's deployment, as flow/deployment.
        store: The State Persistence block whose chains it looks after; the default store if not given.
        silence: After how many seconds without an event of a chain the supervisor looks. A session that finishes units
            emits one every 300 s.
        block: Through which block people are told, as type/name: one that sends notifications, or a webhook.
        json: Print a JSON array.
    """
    from perpetual_blocks.adapters import prefect_automations as automations

    wish = automations.Wish(supervisor, store, block, silence)
    wanted = [automations.Name(name) for name in dict.fromkeys(names or ("rescue",))]
    done = asyncio.run(automations.install(wanted, wish))
    if json:
        print_json([{"name": one.name.value, "id": str(one.id), "what": one.what} for one in done])
        return
    for one in done:
        out.print(f"{automations.PREFIX}{one.name}: {one.what}", highlight=False)


@app.command(name="list")
def list_automations(*, json: Json = False) -> None:
    """List the automations of perpetual flows: those that are installed, and those that may be.

    Example: perpetual automations list --json

    Args:
        json: Print a JSON array.
    """
    from rich.table import Table

    from perpetual_blocks.adapters import prefect_automations as automations

    there = asyncio.run(automations.installed())
    if json:
        found = [(name, there.get(name)) for name in automations.Name]
        print_json(
            [
                {"name": name.value, "id": str(one.id) if one else None, "enabled": one.enabled if one else None}
                for name, one in found
            ]
        )
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in automations.Name:
        stands = ("on" if there[name].enabled else "off") if name in there else "not installed"
        table.add_row(name.value, stands, automations.DESCRIPTIONS[name])
    out.print(table, highlight=False)


@app.command
def remove(*names: Choice, json: Json = False) -> None:
    """Remove automations of perpetual flows.

    Example: perpetual automations remove notify

    Args:
        names: rescue, supervisor, notify; all if none is given.
        json: Print a JSON object.
    """
    from perpetual_blocks.adapters import prefect_automations as automations

    removed = asyncio.run(automations.remove([automations.Name(name) for name in names or automations.Name]))
    print_json({"removed": [name.value for name in removed]}) if json else out.print(
        f"{len(removed)} removed", highlight=False
    )
