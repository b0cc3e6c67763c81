"""The program of a chain: whether a session's agent, context and code are those that the chain was made with."""

from dataclasses import dataclass

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import Chain, SessionRequest


@dataclass(frozen=True, slots=True)
class CodeChange:
    """The code is another than the session before had.

    Attributes:
        refused: Whether the agent does not want to go on with it by itself.
        what: What happened, and what to do.
    """

    refused: bool
    what: str


def check_program(chain: Chain, request: SessionRequest) -> None:
    """Refuses a session of another agent, and one of an agent that is older than the chain's context.

    Raises:
        InvalidInput: it is one.
    """
    if chain.ordinal and chain.agent != request.agent:
        raise InvalidInput.of("chain", chain.name, f"a chain of {request.agent}; this is {chain.agent}'s")
    if chain.context_version > request.context_version:
        raise InvalidInput.of(
            f"{request.agent}.context_version",
            request.context_version,
            f"at least {chain.context_version}: a newer version of the agent wrote the context of {chain.name}",
        )


def check_kinds(chain: Chain, queue: Chain, request: SessionRequest) -> None:
    """Refuses a session that would take items of a shared queue whose kinds its agent does not know.

    Args:
        queue: The chain whose items the session works on.

    Raises:
        InvalidInput: it is one.
    """
    known = request.settings.get("kinds", [])
    strange = set(chain.selector.kinds or queue.settings.get("kinds", [])) - set(known)
    if not chain.owns_queue and strange:
        raise InvalidInput.of(
            f"{request.agent}.kinds",
            known,
            f"all kinds that {chain.name} takes of the queue of {queue.name}, {', '.join(sorted(strange))} too; or a "
            "selector of kinds for it",
        )


def code_change(chain: Chain, request: SessionRequest) -> CodeChange | None:
    """What is to be said, or done, about the code of a session; None where there is nothing."""
    if request.on_code_change == "go-on" or not is_other_code(chain.code, request.code):
        return None
    changed = f"its code changed since session {chain.ordinal}"
    if request.on_code_change == "refuse":
        return CodeChange(True, f"{changed}: `perpetual resume {chain.name}` goes on with the new code")
    return CodeChange(False, f"{changed} ({chain.code} before, {request.code} now)")


def is_other_code(before: str | None, now: str | None) -> bool:
    """Whether two codes, each `digest` or `digest version`, differ in what both of them say."""
    if before is None or now is None:
        return False
    (digest, _, version), (digest_now, _, version_now) = before.partition(" "), now.partition(" ")
    return digest != digest_now or bool(version and version_now and version != version_now)
