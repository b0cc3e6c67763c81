"""The room of one unit: what it may use, and what it may ask for."""

from support import FakeClock

from perpetual_blocks.budget.room import Room


def test_time_runs_and_the_rest_is_spent(clock: FakeClock) -> None:
    """Seconds run by themselves; what is used up is 0 and not less."""
    room = Room({"seconds": 10, "tokens": 100}, clock)
    clock.advance(4)

    assert room.left({"tokens": 30}) == {"seconds": 6, "tokens": 70}
    assert room.left({"tokens": 130})["tokens"] == 0


def test_what_is_reserved_is_all_there_is_until_more_is_granted() -> None:
    """A unit has what was reserved for it of a shared resource; more when the pool grants it, and never more than its
    other limits leave."""
    asked = []

    def extend(resource: str, amount: float) -> str | None:
        asked.append((resource, amount))
        return None if amount <= 8 else "the pool is empty"

    room = Room({"cost": 9, "tokens": 100}, reserved={"cost": 2}, extend=extend)

    assert room.left({})["cost"] == 2
    assert room.extend("cost", 5) is None
    assert room.left({"cost": 1}) == {"cost": 4, "tokens": 100}
    assert room.extend("cost", 8.5) == "the pool is empty"
    assert room.extend("cost", 10) == "another limit has no more"
    assert room.extend("tokens", 5) == "it is not shared"
    assert asked == [("cost", 5), ("cost", 8.5)]
    assert Room({"cost": 1}, reserved={"cost": 2}).left({}) == {"cost": 1}
