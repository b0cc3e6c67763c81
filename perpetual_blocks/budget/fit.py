"""Does the next unit, and then the shutdown, still fit into what is left of one limit? Pure functions of a forecast."""

from collections.abc import Sequence

from perpetual_blocks.budget.forecast import Forecast, Hint, Node

COLD_START = 0.3
"""With nothing known at all, units are started while this share of the budget is left."""

SESSIONS_WEIGHT = 0.35
"""How much the risk of all sessions that stop at a level counts beside the risk of one decision there."""

CUT_OFF_AVERSION = 0.3
"""How much of the decision on a unit that can be cut off its possible waste weighs; the rest is its expected work."""


SKIPPED_SHUTDOWNS = 0.25
"""The share of full shutdowns that need not fit behind a unit that was cut off; a minimal save always fits."""


def overrun_risk(forecast: Forecast, hint: Hint, remaining: float, amount: float, shutdown: Sequence[Node]) -> float:
    """How probable it is that the unit and the shutdown after it need more than what remains.

    The larger of two risks, each over the shutdown's law (costs c with weights w):

    * of this decision: Σ w · P(unit > remaining - c)
    * of all sessions that stop at this level, in part: 0.35 Σ w · ∫ P(unit > x) dx / E[unit], for x from remaining - c
      to the amount. By renewal theory that many of the units that start above the level overrun it; many small
      decisions in a row add up, and where a unit is as large as a session there are few of them.

    Args:
        remaining: What is left of the limit, in the resource's unit.
        amount: The limit's amount.
    """
    law, bound = forecast.law(hint), forecast.bound(hint)
    if law is None and bound is None:
        return 0.0 if remaining > COLD_START * amount else 1.0
    scale, scores = (forecast.caution * law.scale, law.scores) if law is not None else (1.0, None)
    mean = scores.mean() if scores is not None else 0.0
    never = scores.excess(amount / scale) if scores is not None else 0.0
    here = ever = 0.0
    for cost, weight in shutdown:
        room = remaining - cost
        if room <= 0:
            here += weight
            ever += weight
        elif bound is not None and bound <= room:
            continue
        elif scores is None:
            here += weight
        else:
            here += weight * scores.above(room / scale)
            ever += weight * (scores.excess(room / scale) - never) / mean if mean else 0.0
    return max(here, SESSIONS_WEIGHT * ever)


def worth_trying(forecast: Forecast, hint: Hint, room: float, amount: float) -> bool:
    """Whether to start a unit that is cut off, and lost, when it has used up the room.

    It is when (1 - w) · E[unit; unit ≤ room] ≥ w · room · P(unit > room).
    """
    if room <= 0:
        return False
    law, bound = forecast.law(hint), forecast.bound(hint)
    if bound is not None and bound <= room:
        return True
    if law is None:
        return room > COLD_START * amount
    return (1 - CUT_OFF_AVERSION) * law.within(room) >= CUT_OFF_AVERSION * room * law.above(room)


def reserve(forecast: Forecast, minimal_save: float) -> float:
    """What a unit that can be cut off must leave: the minimal save, and what three shutdowns in four need.

    The fourth is done by the next session; keeping more would cost every session what helps one in four.
    """
    return minimal_save + forecast.shutdown_cost(SKIPPED_SHUTDOWNS)
