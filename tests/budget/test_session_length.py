"""How long a session should be: the line through its units' costs, and the length at which a unit costs least."""

import json
from math import sqrt
from random import Random

import pytest

from perpetual_blocks.budget.session_length import Course


def course(
    restart: float, base: float, growth: float, noise: float = 0.1, sessions: int = 8, units: int = 30
) -> Course:
    """Of sessions whose n-th unit costs base + growth·n, the first also the restart."""
    random, learned = Random(1), Course()
    for _ in range(sessions):
        for position in range(1, units + 1):
            cost = base + growth * position + (restart if position == 1 else 0.0)
            learned.learn(position, cost * (1 + noise * random.uniform(-1, 1)))
    return learned


def test_the_line_is_found() -> None:
    """The growth and the base are those that the units were made with."""
    line = course(restart=400, base=50, growth=8).line()

    assert line is not None
    assert line == (pytest.approx(50, rel=0.2), pytest.approx(8, rel=0.1))


def test_the_best_length_costs_least() -> None:
    """N* = √(2R/G), and no other length has a lower cost per unit."""
    best = course(restart=400, base=50, growth=8, noise=0.0).best_length(30)

    assert best == pytest.approx(sqrt(2 * 400 / 8))
    each = {n: (400 + sum(50 + 8 * k for k in range(n))) / n for n in range(2, 40)}
    assert min(each, key=each.__getitem__) == pytest.approx(best, abs=1)


@pytest.mark.parametrize(
    ("learned", "otherwise"),
    [
        (course(restart=400, base=50, growth=0.0), 30),  # no growth
        (course(restart=0, base=50, growth=8), 30),  # a start costs nothing beyond its unit
        (course(restart=400, base=50, growth=8, sessions=2), 30),  # too few sessions
        (course(restart=400, base=50, growth=8, units=5), 5),  # the budget ends sessions before
        (course(restart=400, base=5000, growth=8), 12),  # it would not matter
        (Course(), 30),
    ],
)
def test_where_nothing_is_gained_nothing_is_said(learned: Course, otherwise: float) -> None:
    """A session is as long as its budget unless ending it earlier clearly saves something."""
    assert learned.best_length(otherwise) is None


def test_the_state_is_kept() -> None:
    """Restored, it says the same, bit for bit."""
    learned = course(restart=400, base=50, growth=8)

    assert Course(*json.loads(json.dumps(learned.to_json()))) == learned
