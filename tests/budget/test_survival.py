"""The survival function that is learned from costs: its shape, and what follows from it."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget.survival import Survival

WINDOW, TAIL = 40, 3.0

COSTS = st.lists(st.one_of(st.floats(1e-3, 1e3), st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=WINDOW)


def made(samples: list[float]) -> Survival:
    return Survival(WINDOW, TAIL, samples)


def slow_above(samples: list[float], x: float) -> float:
    """S(x) by its definition: points (cost, share above) that straight lines join, then the tail."""
    ordered = [0.0, *sorted(samples)]
    count, largest = len(samples), ordered[-1]
    if x <= 0:
        return 1.0
    if x >= largest:
        return (largest / x) ** TAIL / (count + 1)
    # From one point to the next S falls by one sample, from 1 at 0 to 1 / (n + 1) at the largest.
    for index, (low, high) in enumerate(pairwise(ordered)):
        if low <= x < high:
            return (count + 1 - index - (x - low) / (high - low)) / (count + 1)
    raise AssertionError("no interval has x")


@given(COSTS, st.floats(0, 5e3))
def test_the_share_above(samples: list[float], x: float) -> None:
    """S falls linearly from sample to sample, and like a power behind the largest."""
    assert made(samples).above(x) == pytest.approx(slow_above(samples, x), rel=1e-9, abs=1e-12)


@given(COSTS, st.floats(-1, 5e3), st.floats(-1, 5e3))
def test_it_falls_from_1_to_0(samples: list[float], one: float, other: float) -> None:
    """S is 1 up to 0, never rises, and ends near 0."""
    law = made(samples)
    near, far = sorted((one, other))

    assert law.above(-1.0) == law.above(0.0) == 1.0
    assert 1.0 >= law.above(near) >= law.above(far) >= 0.0
    assert law.above(1e9) < 1e-12


@given(COSTS)
def test_samples_have_their_ranks(samples: list[float]) -> None:
    """Of n + 1 samples, as many are above the k-th largest of the others as chance says: k of n + 1."""
    law = made(samples)
    ordered = sorted(samples)

    for index, sample in enumerate(ordered):
        larger = len(ordered) - index
        if sample > 0 and ordered[index + 1 : index + 2] != [sample]:
            assert law.above(sample) == pytest.approx(larger / (len(ordered) + 1))


def integral(law: Survival, samples: list[float], x: float) -> float:
    """The integral of S from x on: trapezoids, which are exact between samples, and the tail in small steps."""
    knots = sorted({x, *(sample for sample in samples if sample > x)})
    pieces = ((low, high, law.above(low) + law.above(math.nextafter(high, 0))) for low, high in pairwise(knots))
    area = sum((high - low) * both / 2 for low, high, both in pieces)
    step, at = 1.02, max(knots[-1], 1e-9)
    while law.above(at) * at > 1e-12:
        middle = law.above(at * math.sqrt(step))
        area += (law.above(at) + 4 * middle + law.above(at * step)) / 6 * at * (step - 1)
        at *= step
    return area


@given(COSTS.filter(lambda samples: max(samples) > 0), st.floats(0, 5e3))
def test_the_excess_is_the_integral(samples: list[float], x: float) -> None:
    """E[(sample - x)⁺] is the integral of S from x on, the tail included."""
    law = made(samples)

    assert law.excess(x) == pytest.approx(integral(law, samples, x), rel=2e-3, abs=1e-9 * max(samples))


@given(COSTS)
def test_the_mean_is_all_of_the_excess(samples: list[float]) -> None:
    """E[sample] is the excess above 0, also for those who ask below 0."""
    law = made(samples)

    assert law.mean() == law.excess(0.0) == law.excess(-5.0)


@given(
    st.lists(st.integers(1, 10**6), max_size=WINDOW, unique=True),
    st.floats(1e-6, 1, exclude_min=True, exclude_max=True),
)
def test_the_quantile_is_the_inverse(thousandths: list[int], probability: float) -> None:
    """The quantile of a probability is what is exceeded with it, in the tail and without samples too. The samples are
    far enough apart that there are floats between them."""
    law = made([one / 1000 for one in thousandths])

    assert law.above(law.quantile(probability)) == pytest.approx(probability, rel=1e-6)


@given(COSTS, st.floats(1e-6, 1, exclude_min=True, exclude_max=True))
def test_the_quantile_where_samples_are_equal(samples: list[float], probability: float) -> None:
    """Where S jumps, the quantile is the jump: before it more is above, and from it on not more."""
    law = made(samples)
    found = law.quantile(probability)

    assert law.above(found * (1 + 1e-9) + 1e-12) <= probability * (1 + 1e-6)
    assert law.above(found * (1 - 1e-9)) >= probability * (1 - 1e-6)


def test_without_samples() -> None:
    """Before anything is known, a score is at least what was expected, with a heavy tail behind it."""
    law = made([])

    assert [law.above(x) for x in (0.0, 0.5, 1.0, 2.0)] == [1.0, 1.0, 1.0, 1 / 8]
    assert (law.mean(), law.excess(0.5), law.excess(1.0), law.excess(2.0)) == (1.5, 1.0, 0.5, 0.125)
    assert law.quantile(1 / 8) == pytest.approx(2.0)


def test_few_samples_are_trusted_less_than_many() -> None:
    """What nothing has exceeded yet becomes the less probable, the more often it was not."""
    assert [made([1.0] * count).above(1.0) for count in (1, 3, 9)] == [1 / 2, 1 / 4, 1 / 10]


def test_zeros() -> None:
    """Costs of nothing are samples like others."""
    nothing, some = made([0.0] * 3), made([0.0, 0.0, 0.0, 4.0])

    assert (nothing.above(0.0), nothing.above(1e-9), nothing.mean(), nothing.quantile(0.01)) == (1.0, 0.0, 0.0, 0.0)
    assert (some.above(2.0), some.quantile(0.5)) == (pytest.approx(0.3), 0.0)


def test_equal_samples() -> None:
    """Where all samples are equal, nearly everything is below a little more than that."""
    law = made([5.0] * 9)

    assert (law.above(4.999), law.above(5.0), law.above(10.0)) == (pytest.approx(0.9, rel=1e-3), 0.1, 0.0125)
    assert law.quantile(0.5) == 5.0


@given(st.lists(st.integers(0, 9).map(float), max_size=30), st.integers(1, 8))
def test_the_oldest_are_forgotten(samples: list[float], window: int) -> None:
    """A law that learned one by one is the law of the latest samples alone, in their order."""
    learned = Survival(window, TAIL)
    for sample in samples:
        learned.add(sample)
        learned.excess(0.5)  # what it sums up it does not keep for too long
    latest = Survival(window, TAIL, samples[-window:])

    assert learned.samples() == Survival(window, TAIL, samples).samples() == samples[-window:]
    assert len(learned) == min(window, len(samples))
    for x in (0.0, 0.5, 3.0, 9.5):
        assert (learned.above(x), learned.excess(x)) == (latest.above(x), latest.excess(x))
