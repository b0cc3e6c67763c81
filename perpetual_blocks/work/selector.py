"""The selector of a chain: which items of a shared queue it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpetual_blocks.checkpoint.codec import is_plain_text
from perpetual_blocks.errors import InvalidInput

MOST_NAMED = 200
"""How many kinds and ids a selector may name; a subset that is larger has a kind, or a beginning of its ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which items a chain takes; one that names nothing takes all.

    Attributes:
        kinds: Items of these kinds; of all kinds if it is empty.
        ids: Items with these ids, or, where one ends in `*`, with ids that begin so; all items if it is empty.

    Raises:
        InvalidInput: kinds or ids are no texts, or too many.
    """

    kinds: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("kinds", "ids"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(
                isinstance(one, str) and one and is_plain_text(one) for one in values
            ):
                raise InvalidInput.of(f"Selector.{name}", values, "a sequence of texts that are not empty")
            if len(values) > MOST_NAMED:
                expected = f"at most {MOST_NAMED}: give the items a kind, or ids that begin alike ('part-1/*')"
                raise InvalidInput.of(f"Selector.{name}", f"{len(values)} of them", expected)
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))

    @property
    def exact_ids(self) -> tuple[str, ...]:
        """Ids that are named as they are."""
        return tuple(one for one in self.ids if not one.endswith("*"))

    @property
    def beginnings(self) -> tuple[str, ...]:
        """What ids that are taken may begin with."""
        return tuple(one[:-1] for one in self.ids if one.endswith("*"))

    @property
    def takes_all(self) -> bool:
        """Whether it leaves nothing to others."""
        return not self.kinds and not self.ids

    def takes(self, item_id: str, kind: str) -> bool:
        """Whether an item of this id and kind is taken."""
        named = item_id in self.exact_ids or item_id.startswith(self.beginnings)
        return (not self.kinds or kind in self.kinds) and (not self.ids or named)

    def __str__(self) -> str:
        said = [f"{name} {', '.join(values)}" for name, values in (("kinds", self.kinds), ("ids", self.ids)) if values]
        return "; ".join(said) or "everything"

    def to_json(self) -> dict[str, Any] | None:
        """As the chain's row keeps it; None for everything."""
        found = {"kinds": list(self.kinds), "ids": list(self.ids)}
        return {name: values for name, values in found.items() if values} or None

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Selector":
        """From ids, beginnings of ids as `part/*`, and kinds as `kind:NAME`.

        Raises:
            InvalidInput: one of them is empty.
        """
        kinds = tuple(text.removeprefix("kind:") for text in texts if text.startswith("kind:"))
        return cls(kinds=kinds, ids=tuple(text for text in texts if not text.startswith("kind:")))

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "Selector":
        """From a chain's row, or from what a person wrote.

        Raises:
            InvalidInput: it is no object with kinds and ids.
        """
        if not isinstance(value or {}, Mapping) or set(value or {}) - {"kinds", "ids"}:
            raise InvalidInput.of("selector", value, 'an object with "kinds" and "ids", each a list of texts')
        return cls(**{name: tuple(values) for name, values in (value or {}).items()})


EVERYTHING = Selector()
