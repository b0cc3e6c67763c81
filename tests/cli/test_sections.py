"""Errors name the section of the README that says more."""

import re
from pathlib import Path

import pytest

from perpetual_blocks.cli.sections import _SECTIONS, section_of
from perpetual_blocks.errors import InvalidInput, LedgerUnavailable, PerpetualError, StorageError, Superseded


@pytest.mark.parametrize(
    ("error", "section"),
    [
        (InvalidInput.of("Budget.tokens", -1, "more than 0"), "budgets"),
        (InvalidInput.of("Limit.resource", "x", "a resource"), "budgets"),
        (InvalidInput.of("WorkItem.id", "", "a text"), "write-an-agent"),
        (InvalidInput.of("unit.advance(progress)", 3, "a pair"), "write-an-agent"),
        (InvalidInput.of("unit.spend(model)", "x", "a price"), "budgets"),
        (InvalidInput.of("agents", "8-1", "1-8"), "many-units"),
        (InvalidInput.of("Manners.max_sessions", 0, "more than 0"), "when-something-goes-wrong"),
        (InvalidInput.of("--json", 0, "nothing"), None),
        (LedgerUnavailable("ledger: locked"), "when-something-goes-wrong"),
        (StorageError("results storage: gone"), "when-something-goes-wrong"),
        (Superseded("chain: another session works on it"), None),
    ],
)
def test_the_section_of_an_error(error: PerpetualError, section: str | None) -> None:
    """What a person has written wrong is explained where it is written about; outages where they are."""
    assert section_of(error) == section


def test_the_sections_are_there() -> None:
    """Each anchor is that of a heading."""
    headings = re.findall(r"^## (.+)$", (Path(__file__).parents[2] / "README.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert {section for _, section in _SECTIONS} | {section_of(StorageError(""))} <= anchors
