"""The pace: how many units at once, and how many in a batch."""

from perpetual_blocks.session.pace import MOST_IN_BATCH, BatchSize, Pace


class Refused(Exception):
    """An HTTP client's error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


def test_one_refusal_halves_the_pace_once() -> None:
    """Of eight units that are refused at the same time the first one halves it; what was begun before says no more."""
    pace = Pace(8)
    phase = pace.phase

    for _ in range(8):
        pace.failed(Refused(429), phase)

    assert pace.limit == 4


def test_it_grows_by_one_when_as_many_as_run_at_once_have_succeeded() -> None:
    pace = Pace(8)
    pace.failed(Refused(429), pace.phase)
    limits = []
    for _ in range(4 + 5 + 6):
        pace.succeeded()
        limits.append(pace.limit)

    assert limits == [4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7]


def test_it_stays_within_its_bounds() -> None:
    pace = Pace(3)
    for _ in range(10):
        pace.succeeded()
    assert pace.limit == 3
    for _ in range(5):
        pace.failed(Refused(429), pace.phase)
    assert pace.limit == 1


def test_errors_slow_it_down_when_most_units_fail() -> None:
    """One bad unit in four changes nothing; a service that is down does."""
    pace = Pace(4)
    for _ in range(10):
        pace.failed(ValueError("bad unit"), pace.phase)
        for _ in range(3):
            pace.succeeded()
    assert pace.limit == 4

    for _ in range(5):
        pace.failed(ValueError("the service is down"), pace.phase)
    assert pace.limit == 2


def test_batches_double() -> None:
    size = BatchSize()
    seen = []
    for _ in range(14):
        seen.append(size.most)
        size.ran(size.most)
    assert seen == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 2500, 2500]
    assert max(seen) == MOST_IN_BATCH


def test_a_batch_that_ended_early_is_followed_by_a_smaller_one() -> None:
    size = BatchSize()
    size.ran(500)
    size.ran(3)
    assert size.most == 6
    size.ran(0)
    assert size.most == 1
