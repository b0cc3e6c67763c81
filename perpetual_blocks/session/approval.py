"""Approvals: what a person has decided about a chain whose total is gone."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from perpetual_blocks.usage import add, show


class Decision(StrEnum):
    """What is to become of a chain whose total is gone."""

    MORE = "more"
    FINISH_UNIT = "finish-unit"  # so much more as the next unit may need
    STOP = "stop"
    NO_ANSWER = "no-answer"  # nobody has decided in time: it stays as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One decision.

    Attributes:
        session: The session that had ended when it was made, and whose end it is about.
        by: Where it was made: in the form of a suspended run, by `perpetual approve`, or by the form's deadline.
        key: Random, or made of what was answered; tells a decision that is told twice from a second one.
        amounts: How much more there is in total, by resource.
        at: When, in seconds since the Unix epoch.
    """

    decision: Decision
    session: int
    by: Literal["form", "command", "deadline"]
    key: str
    amounts: dict[str, float] = field(default_factory=dict)
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As the chain's row keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Approval":
        """From a chain's row."""
        return cls(**{**value, "decision": Decision(value["decision"])})

    @property
    def goes_on(self) -> bool:
        """Whether the chain goes on."""
        return self.decision in (Decision.MORE, Decision.FINISH_UNIT)

    def __str__(self) -> str:
        match self.decision:
            case Decision.STOP:
                return "a person says stop"
            case Decision.NO_ANSWER:
                return "nobody has answered in time"
        what = ", ".join(show(name, amount) for name, amount in self.amounts.items() if amount) or "nothing"
        unit = " for one unit" if self.decision is Decision.FINISH_UNIT else ""
        return f"a person has approved {what} more{unit}"


def granted(approvals: Iterable[Approval]) -> dict[str, float]:
    """How much more there is in total than the budget says, by resource."""
    total: dict[str, float] = {}
    for approval in approvals:
        total = add(total, approval.amounts)
    return total
