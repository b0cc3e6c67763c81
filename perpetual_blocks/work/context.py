"""What a unit changed of the agent's context, so that it can be applied to a context that others have changed since."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perpetual_blocks.checkpoint.codec import to_json

Merge = Callable[[str, Any, Any, Any], Any]
"""Given a key, its value now, and its values before and after the unit (None for none): what it is to be."""


@dataclass(frozen=True, slots=True)
class ContextChange:
    """A change of the context's keys; keys that stayed as they were are in neither part.

    Attributes:
        before: The values of the changed keys, of those that were there.
        after: Their values now, of those that are there.
        whole: Whether `after` is the whole new context, as outcomes of schema 1 and 2 have it.
    """

    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> "ContextChange":
        """What makes the one of the other. Both are JSON objects."""
        changed = [key for key in {**before, **after} if not _same(before, after, key)]
        return cls(
            {key: before[key] for key in changed if key in before}, {key: after[key] for key in changed if key in after}
        )

    def apply(self, context: Mapping[str, Any], merge: Merge) -> dict[str, Any]:
        """The context with the change.

        Args:
            merge: Asked about each key that somebody else has changed since the unit began.
        """
        if self.whole:
            return dict(self.after)
        changed = dict(context)
        for key in {**self.before, **self.after}:
            if not _same(context, self.before, key):
                changed[key] = merge(key, context.get(key), self.before.get(key), self.after.get(key))
            elif key in self.after:
                changed[key] = self.after[key]
            else:
                changed.pop(key, None)
        return changed

    def to_json(self) -> dict[str, Any]:
        return {"before": dict(self.before), "after": dict(self.after)}


def _same(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    if (key in one) != (key in other):
        return False
    # As JSON: in Python, True equals 1.
    return key not in one or to_json(one[key], key) == to_json(other[key], key)
