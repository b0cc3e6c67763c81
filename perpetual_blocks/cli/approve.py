"""`perpetual approve`: what becomes of a chain whose total is gone."""

import secrets
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.cli.steer import create, prefect_runs
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.approval import Approval, Decision
from perpetual_blocks.session.asking import Question, question, rounded_up
from perpetual_blocks.session.chain import Chain
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.usage import show

HERE = Where()


def approve(
    chain: str,
    *,
    more: Annotated[list[str] | None, Parameter(negative="")] = None,
    finish_unit: Annotated[bool, Parameter(negative="")] = False,
    stop: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Let a chain go on whose total is gone, with more of it; or say stop. Without a decision, show what is asked.

    The limit stays what it is, and what is approved is added to it, for good. A run that waits suspended for the
    decision ends; a chain with a deployment goes on by itself, any other is to be run again.

    Example: perpetual approve research --more tokens=50000

    Args:
        chain: The chain's name.
        more: How much more there is in total, as tokens=50000; at most as much again as the limit. May be given several
            times, for several resources.
        finish_unit: So much more as the next unit will hardly exceed.
        stop: It stays as it is; a suspended run ends.
        json: Print a JSON object.
    """
    ledger = where.open_ledger()
    row = ledger.chain(chain)
    if not (more or finish_unit or stop):
        _show(ledger, row, json=json)
        return
    approval = _approval(ledger, row, more or [], finish_unit=finish_unit, stop=stop)
    waiting = ledger.sessions(chain)[-1].flow_run_id if row.ordinal else None
    stands, created = ledger.approve(chain, approval), {}
    if approval.goes_on:
        created = create(ledger, chain)
    if waiting is not None and (runs := prefect_runs()) is not None:
        name, why = ("Wrapped", str(approval)) if approval.goes_on else ("Exhausted", stands.reason)
        with suppress(Exception):  # the run would find out by itself
            runs.end_suspended(waiting, name, why)
    if json:
        print_json({"chain": chain, "status": stands.status.value, "approved": approval.amounts, "runs": created})
    else:
        out.print(f"{chain} is {stands.status.value}: {stands.reason}", highlight=False, soft_wrap=True)


def _approval(ledger: Ledger, row: Chain, more: list[str], *, finish_unit: bool, stop: bool) -> Approval:
    if bool(more) + finish_unit + stop > 1:
        raise InvalidInput.of("approve", row.name, "one of --more, --finish-unit and --stop")
    decision, amounts = Decision.STOP, {}
    if more:
        decision, amounts = Decision.MORE, _amounts(more)
    elif finish_unit:
        decision, asked = Decision.FINISH_UNIT, question(ledger, row, ledger.now())
        amounts = asked.for_one_unit() if asked is not None else {}
    return Approval(decision=decision, session=row.ordinal, by="command", key=secrets.token_hex(8), amounts=amounts)


def _amounts(more: list[str]) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for given in more:
        resource, _, text = given.partition("=")
        try:
            amounts[resource] = float(text.replace("_", ""))
        except ValueError:
            raise InvalidInput.of("--more", given, "a resource and a number, as tokens=50000 or cost=2.5") from None
    return amounts


def _show(ledger: Ledger, row: Chain, *, json: bool) -> None:
    asked = question(ledger, row, ledger.now())
    if json:
        print_json(_as_json(row, asked))
    else:
        out.print(_view(asked) if asked is not None else f"{row.name} is {row.status.value}, and asks for nothing")


def _as_json(row: Chain, asked: Question | None) -> dict[str, Any]:
    return {
        "chain": row.name,
        "status": row.status.value,
        "totals": [
            {
                "resource": total.resource,
                "used": total.used,
                "limit": total.limit.amount,
                "approved": total.granted,
                "next_unit_needs": total.lacking,
                "rest_needs": None if total.rest is None else dict(zip(("p50", "p90"), total.rest, strict=True)),
                "at_most": total.most,
            }
            for total in (asked.totals if asked is not None else ())
        ],
    }


def _view(asked: Question) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("in all", "used", "of", "next unit needs", "the rest, 9 of 10 times"):
        table.add_column(name, justify="left" if name == "in all" else "right")
    for total in asked.totals:
        resource, rest = total.resource, total.rest
        lacking = "too much" if total.lacking is None else show(resource, rounded_up(resource, total.lacking))
        nine = "not known" if rest is None else show(resource, rounded_up(resource, rest[1]))
        table.add_row(resource, show(resource, total.used), show(resource, total.amount), lacking, nine)
    more = " ".join(f"--more {total.resource}={total.suggested:.15g}" for total in asked.totals)
    command = f"perpetual approve {asked.chain}"
    done = f"{asked.chain} has used up its total; {asked.done:,} of {asked.items:,} items are done"
    return Group(Text(done), table, Text(f"{command} {more}\n{command} --finish-unit\n{command} --stop", "dim"))
