"""A pool: one limit that several holders share. Who may reserve how much of it is decided here.

What is spent is reserved before: `used + reserved` never goes above the amount as long as nobody spends more than was
reserved. A member may be guaranteed a share of the amount: what it has neither used nor reserved of that share is kept
free for it. Members with a higher priority than its own may borrow it; everybody else finds it taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from perpetual_blocks.usage import show


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A holder as the pool sees it. All amounts are in the resource's unit.

    Attributes:
        share: The share of the amount that is kept for it, 0 to 1.
        priority: It may borrow what is kept for members of a lower one.
        used: What it has spent within the window.
        reserved: Its reservations that have not run out.
    """

    holder: str
    share: float = 0.0
    priority: int = 0
    used: float = 0.0
    reserved: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reservation was not granted.

    Attributes:
        reason: One sentence for people, with the figures.
        contended: Whether it would be granted if what is reserved now were given back: waiting may help.
    """

    reason: str
    contended: bool


def refusal(
    pool: str, resource: str, amount: float, members: Iterable[Member], holder: str, wanted: float
) -> Refusal | None:
    """Why `holder` may not reserve `wanted` more; None when it may.

    Args:
        pool: The pool's name, for the reason.
        amount: The limit that all members share.
        members: Everybody who has used or reserved something, or is guaranteed a share. A holder that is not among
            them has no guarantee and the priority 0.
    """
    everybody = list(members)
    priority = next((member.priority for member in everybody if member.holder == holder), 0)
    others = [member for member in everybody if member.holder != holder and member.priority >= priority]
    used = sum(member.used for member in everybody)
    reserved = sum(member.reserved for member in everybody)
    kept = sum(max(0.0, member.share * amount - member.used - member.reserved) for member in others)
    if _fits(used + reserved + kept + wanted, amount):
        return None
    kept_without_reservations = sum(max(0.0, member.share * amount - member.used) for member in others)
    free = max(0.0, amount - used - reserved - kept)
    figures = [f"{show(resource, used)} used", f"{show(resource, reserved)} reserved"]
    if kept:
        figures.append(f"{show(resource, kept)} kept for other members")
    return Refusal(
        f"pool {pool}: needs {show(resource, wanted)}, {show(resource, free)} of {show(resource, amount)} is free "
        f"({', '.join(figures)})",
        contended=_fits(used + kept_without_reservations + wanted, amount),
    )


def _fits(total: float, amount: float) -> bool:
    # Sums of floats are off by less than a billionth: 0.1 + 0.2 fits into 0.3.
    return round(total, 9) <= round(amount, 9)
