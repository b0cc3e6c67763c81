"""The form of a run whose total is gone: its fields, and what is said above them."""

import pytest
from pydantic import ValidationError

from perpetual_blocks.budget import Limit
from perpetual_blocks.form import form, text
from perpetual_blocks.session.asking import Question, Total


def asked(*totals: Total) -> Question:
    """About a chain with three sessions."""
    return Question(
        chain="mine", session=3, totals=totals, done=40, items=100, item="doc|7", rest_sessions=4.0, rest_seconds=125.0
    )


def total(resource: str = "tokens", amount: float = 1000, **changes: object) -> Total:
    """One that is used up; a unit lacks a tenth of it, and the rest takes half of it again."""
    figures = {"granted": 0.0, "used": amount, "lacking": amount / 10, "rest": (amount / 2, amount * 0.6), **changes}
    return Total(limit=Limit(resource, amount, scope="total"), **figures)  # type: ignore[arg-type]


def test_the_fields() -> None:
    """The decision, and how much more of each total that is gone, bounded: whole numbers of what is counted."""
    made = form(asked(total(), total("cost", 2.5)))
    fields = made.model_json_schema()["properties"]
    assert list(fields) == ["decision", "more_tokens", "more_cost"]
    assert fields["decision"]["enum"] == ["more", "finish this unit", "stop"]
    assert fields["more_tokens"]["type"] == "integer"
    assert [fields["more_tokens"][name] for name in ("default", "minimum", "maximum")] == [600, 1, 1000]
    assert [fields["more_cost"][name] for name in ("default", "maximum")] == [1.5, 2.5]
    assert made(decision="more").model_dump() == {"decision": "more", "more_tokens": 600, "more_cost": 1.5}
    for wrong in ({"more_tokens": 1001}, {"more_tokens": 0}, {"more_cost": -1}, {"decision": "wait"}, {"else": 1}):
        with pytest.raises(ValidationError):
            made(**{"decision": "more", **wrong})
    with pytest.raises(ValidationError):
        made()  # nothing is approved without a word


def test_a_unit_that_cannot_be_finished_is_not_offered() -> None:
    """Nor are fields for more totals than the page shows."""
    made = form(asked(total(lacking=None), total("cost"), total("calls")))
    fields = made.model_json_schema()["properties"]
    assert (fields["decision"]["enum"], len(fields)) == (["more", "stop"], 3)


def test_the_text() -> None:
    """What a person needs for the decision, in a few lines."""
    said = text(asked(total(granted=250.0, used=1240.0)), until=1_700_000_000.0)
    for part in (
        "## mine has used up its total of tokens",
        "**40 of 100 items are done**, in 3 sessions",
        "| tokens | `████████████` 99% | 1,240 tokens of 1,250 tokens, 250 tokens of it approved |",
        "- **more**: all that is left probably takes 500 tokens more (in 9 of 10 futures at most 600 tokens), in about "
        "2 min 5 s",
        "- **finish this unit**: the next, of `doc|7`, needs about 100 tokens more",
        "by 2023-11-14 22:14 UTC it stays exhausted; `perpetual approve mine` lets it go on at any time.",
        "[handoff](../../artifacts/key/handoff-mine)",
    ):
        assert part in said
    unknown = text(asked(total(lacking=None, rest=None)), until=0.0)
    assert "what all that is left takes is not known" in unknown
    assert "needs more than may be approved at once" in unknown
