"""`perpetual session`: sessions by hand, for agents in other languages."""

import json as jsonlib
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.checkpoint import to_json
from perpetual_blocks.cli.items import parse_json
from perpetual_blocks.cli.output import OK, WRAP_NOW, Json, Where, err, out, print_json
from perpetual_blocks.errors import GitError, InvalidInput
from perpetual_blocks.session.chain import SessionRequest, check_chain_name
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.session.manual import ManualSession, NoUnits, Progress, decode_token, encode_token
from perpetual_blocks.session.world import World
from perpetual_blocks.usage import validated_usage

app = App(name="session", help="Sessions for agents in other languages, and for shell scripts.")

HERE = Where()

LEASE_SECONDS = 3600.0
"""No process is alive between two commands that could send a heartbeat; each command renews the lease."""

Token = Annotated[str | None, Parameter(name="--session", env_var="PERPETUAL_SESSION")]


@app.command
def start(
    chain: str,
    *,
    task: str = "",
    tokens: float | None = None,
    cost: float | None = None,
    calls: float | None = None,
    seconds: float | None = None,
    threshold: float = 0.85,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Start a chain's next session; prints a word that the other commands need.

    Example: export PERPETUAL_SESSION=$(perpetual session start research --task "Read the papers" --tokens 200000)

    Args:
        chain: The chain's name; it is made if there is none.
        task: What the chain is for; kept from its first session on.
        tokens: How many tokens the session may use.
        cost: How many US dollars.
        calls: How many calls.
        seconds: How many seconds.
        threshold: The share of a limit from which on a checkpoint says wrap.
        json: Print a JSON object.
    """
    from perpetual_blocks.adapters import process

    named = {"tokens": tokens, "cost": cost, "calls": calls, "seconds": seconds}
    budget = Budget(*(Limit(name, value, threshold=threshold) for name, value in named.items() if value is not None))
    request = SessionRequest(
        chain=check_chain_name(chain),
        agent="session by hand",
        holder=process.holder_id(),
        host=process.host_name(),
        pid=os.getppid(),
        process_started=0.0,
        settings={"budget": budget.to_json()},
    )
    session = ManualSession.start(_world(where), request, task)
    token = encode_token(session.fence)
    if json:
        print_json({"session": token, "chain": chain, "ordinal": session.fence.ordinal, **session.left_off()})
    else:
        err.print(f"session {session.fence.ordinal} of {chain}: {session.task()}", highlight=False, markup=False)
        print(token)


@app.command
def checkpoint(
    *,
    session: Token = None,
    progress: str | None = None,
    tokens: float | None = None,
    cost: float | None = None,
    calls: float | None = None,
    next_action: str | None = None,
    cursor: str | None = None,
    context: str | None = None,
    done: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Save how far the work is; prints healthy, warning or wrap_now (exit code 10).

    Example: perpetual session checkpoint --progress 10/20 --tokens 85000 --next-action "read paper 11"

    Args:
        session: The word that `session start` printed.
        progress: Done and total, as 10/20.
        tokens: Tokens that this session has used so far, in all.
        cost: US dollars that this session has spent so far, in all.
        calls: Calls that this session has made so far, in all.
        next_action: What comes next.
        cursor: Any JSON, for whoever goes on.
        context: A JSON object: the agent's memory.
        done: The task is done.
        json: Print a JSON object.
    """
    named = {"tokens": tokens, "cost": cost, "calls": calls}
    usage = validated_usage({name: value for name, value in named.items() if value is not None}, "checkpoint")
    said = Progress(
        usage=usage,
        done=done,
        progress=_progress(progress),
        cursor=_json_value(cursor),
        next_action=next_action,
        context=parse_json("--context", context) if context else None,
    )
    verdict = ManualSession(_world(where), _fence(session)).checkpoint(said)
    if json:
        print_json({"verdict": verdict.status.value, "reason": verdict.reason})
    else:
        print(verdict.status.value)
        err.print(verdict.reason, highlight=False)
    return WRAP_NOW if verdict.status.value == "wrap_now" else OK


@app.command
def wrap(
    *,
    session: Token = None,
    commit: Annotated[Iterable[Path], Parameter(negative="")] = (),
    push: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """End the session: saves state, commits the named paths to git, writes the handoff.

    Example: perpetual session wrap --commit notes/

    Args:
        session: The word that `session start` printed.
        commit: A file or folder whose changes are to be committed; may be given several times.
        push: Push that commit, as `git push` would.
        json: Print a JSON object.
    """
    paths = _to_commit(commit)
    manual = ManualSession(_world(where), _fence(session))
    end = manual.wrap(manual.task(), paths, push=push)
    if json:
        print_json({"chain": manual.fence.chain, "state": end.session.value, "reason": end.reason.message})
    else:
        out.print(f"{end.session.value}: {end.reason.message}", highlight=False, markup=False)


def _world(where: Where) -> World:
    from perpetual_blocks.adapters.masking import redactor_for
    from perpetual_blocks.adapters.process import MemoryMeter
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
    from perpetual_blocks.adapters.saved_work import LocalSavedWork
    from perpetual_blocks.adapters.signing import load_signer
    from perpetual_blocks.clock import SystemClock

    store = where.get_store()
    redactor = redactor_for(ledger=store.get_address())
    backup = StoredDocuments(load_storage(store.backup_storage, "backup_storage")) if store.backup_storage else None
    return World(
        ledger=store.get_ledger(lease_seconds=LEASE_SECONDS),
        documents=StoredDocuments(load_storage(store.result_storage)),
        runner=NoUnits(),
        saved_work=LocalSavedWork(backup),
        backup=backup,
        clock=SystemClock(),
        meters={"memory": MemoryMeter()},
        keep_checkpoints=store.keep_checkpoints,
        redactor=redactor,
        signer=load_signer(store.signing_secret),
    )


def _to_commit(paths: Iterable[Path]) -> list[Path]:
    """The paths, each of them there or deleted since the last commit: with another one, nothing would be committed."""
    from perpetual_blocks.adapters.git import was_deleted

    wanted = list(paths)
    for path in wanted:
        deleted = False
        with suppress(GitError):  # what git has against the repository is for the handoff; this path is not there
            deleted = was_deleted(path)
        if not (deleted or path.exists() or path.is_symlink()):
            raise InvalidInput.of(
                "--commit", str(path), "a file or folder that is there, or whose deletion git can see"
            )
    return wanted


def _fence(token: str | None) -> Fence:
    if not token:
        raise InvalidInput.of("--session", token, "the word that `session start` printed, or it in $PERPETUAL_SESSION")
    return decode_token(token)


def _progress(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    done, _, total = text.partition("/")
    try:
        pair = (float(done), float(total))
    except ValueError:
        pair = (1.0, 0.0)
    if not 0 <= pair[0] <= pair[1] < math.inf:
        raise InvalidInput.of("--progress", text, "done/total, as 10/20")
    return pair


def _json_value(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = jsonlib.loads(text)
    except ValueError:
        raise InvalidInput.of("--cursor", text, "JSON") from None
    to_json(value, "--cursor")
    return value
