"""How much a total is too small by for the next unit: what a person would have to add."""

from dataclasses import replace

from perpetual_blocks.budget.stopping import Expectation, Reading, refuse

HALVINGS = 40


def shortfall(reading: Reading, unit: Expectation, *, risk: float) -> float | None:
    """How much more the reading's limit must have for this unit to be started.

    0 where it has enough; None where even twice its amount would be too little.

    Args:
        risk: How probable it may be that the unit overruns it.
    """

    def fits(more: float) -> bool:
        return refuse([replace(reading, amount=reading.amount + more)], unit, risk=risk) is None

    low, high = 0.0, reading.amount
    if fits(low):
        return low
    if not fits(high):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
