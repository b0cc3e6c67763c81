"""Outcomes as Prefect persists them: with a real server, and the real results storage in a folder."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect_server import PrefectServer
from pydantic import PrivateAttr
from support import Raised, one_line, run_unit, some_item

from perpetual_blocks import PerpetualAgent, Unit
from perpetual_blocks.adapters.outcome_records import read_record
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.result_storage import load_storage
from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.work import ContextChange, Outcome

KEY = "perpetual/mine-0123/units/a/1"


class Answering(PerpetualAgent):
    """Answers each unit with what the test wants, and counts how often it was asked."""

    answer: Any = 1
    _asked: int = PrivateAttr(default=0)

    def work_unit(self, unit: Unit) -> Any:
        self._asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        unit.spend(tokens=7)
        unit.context["asked"] = self._asked
        return self.answer


def run(agent: Answering) -> Outcome:
    """The outcome of the one unit, as a new session asks for it."""
    units = PrefectUnits(agent, load_storage(None), None)
    try:
        return run_unit(units, some_item())
    finally:
        units.close()


def read_outcome(record: str) -> Outcome:
    """The outcome in a record."""
    return Outcome.from_document(read_record(record))


@pytest.fixture(scope="module")
def good_record(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What Prefect writes of a unit."""
    from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    folder = tmp_path_factory.mktemp("results")
    with temporary_settings({PREFECT_API_URL: prefect_server.api, PREFECT_LOCAL_STORAGE_PATH: str(folder)}):
        run(Answering(answer={"a": [1, "ü"]}))
    return (folder / KEY).read_bytes()


def test_a_persisted_outcome_is_applied_and_not_made_again(results: Path) -> None:
    """The agent is asked once, however many sessions come to that unit."""
    agent = Answering()

    first, second = run(agent), run(agent)

    assert first == second
    assert (first.result, first.usage["tokens"], first.context) == (1, 7, ContextChange({}, {"asked": 1}))
    assert agent._asked == 1


def test_a_unit_that_raises_leaves_no_outcome(results: Path) -> None:
    """The cause is what it raised; the next attempt asks again."""
    agent = Answering(answer=LookupError("no such page"))

    for _ in range(2):
        with pytest.raises(Raised) as raised:
            run(agent)
        assert raised.value.__cause__ is agent.answer

    assert agent._asked == 2
    assert not (results / KEY).exists()


@pytest.mark.parametrize("answer", [{"__class__": "builtins.print", "data": [1]}, {"__exc_type__": "x"}, {"result": 1}])
def test_a_result_comes_back_as_it_was(results: Path, answer: Any) -> None:
    """Also one with the keys by which Prefect's JSON names classes."""
    agent = Answering(answer=answer)

    assert (run(agent).result, run(agent).result) == (answer, answer)
    assert agent._asked == 1


# Damage ---------------------------------------------------------------------------------------------------------------


def flipped(record: bytes, place: int) -> bytes:
    """The record with one bit turned over."""
    damaged = bytearray(record)
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def at(part: bytes) -> Callable[[bytes], bytes]:
    """Turns a bit over where this part of the record begins."""
    return lambda record: flipped(record, 8 * record.index(part))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda record: b"",
    "cut": lambda record: record[: len(record) // 2],
    "cut by a byte": lambda record: record[:-1],
    "zeros": lambda record: bytes(len(record)),
    "not text": lambda record: b"\xff" + record,
    "no record": lambda record: b"[]",
    "no result": at(b'result"'),
    "the record's end": at(b'"}'),
    "the outcome's schema": at(b'\\"schema'),
    "the outcome's tokens": at(b"7.0"),
    "the outcome's digest": at(b'digest\\": \\"'),
    "another outcome": lambda record: record.replace(b"7.0", b"8.0"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_replaced(results: Path, good_record: bytes, damage: Callable[[bytes], bytes]) -> None:
    """Where what was persisted is damaged, the unit runs again, and a whole outcome lies there afterwards."""
    (results / KEY).parent.mkdir(parents=True)
    (results / KEY).write_bytes(damage(good_record))
    agent = Answering(answer="again")

    assert run(agent).result == "again"
    assert read_outcome((results / KEY).read_text()).result == "again"
    assert agent._asked == 1


def test_every_flipped_bit_of_an_outcome_is_found(good_record: bytes) -> None:
    """Whichever bit of a record is turned over: it is damaged, or the outcome in it is untouched."""
    good = read_outcome(good_record.decode())
    untouched = 0

    for place in range(8 * len(good_record)):
        try:
            text = flipped(good_record, place).decode()
        except UnicodeDecodeError:
            continue  # the storage's to find
        try:
            assert read_outcome(text) == good, text
            untouched += 1
        except DamagedDocument as found:
            one_line(found)

    of_the_outcome = 8 * len(json.loads(good_record)["result"])
    assert untouched < 8 * len(good_record) - of_the_outcome, "only what Prefect says of the record may differ"


def test_a_cut_outcome_is_found(good_record: bytes) -> None:
    """Wherever it was cut."""
    for cut in range(len(good_record)):
        with pytest.raises(DamagedDocument):
            read_outcome(good_record[:cut].decode(errors="replace"))


def test_a_record_runs_no_code(results: Path, good_record: bytes) -> None:
    """A record that says it is a pickle, or names a function that makes its value, is damaged; nothing of it runs."""
    touched = results / "touched"
    program = f"cos\nsystem\n(S'touch {touched}'\ntR.".encode()
    record = json.loads(good_record)
    record["metadata"]["serializer"] = {"type": "pickle", "picklelib": "cloudpickle"}
    record["result"] = base64.encodebytes(program).decode()
    (results / KEY).parent.mkdir(parents=True)
    (results / KEY).write_text(json.dumps(record))
    agent = Answering()

    assert run(agent).result == 1
    assert agent._asked == 1
    assert not touched.exists()


def test_an_outcome_that_cannot_be_written_fails_the_session(results: Path) -> None:
    """Prefect logs it and goes on; a row would point at what is not there."""
    (results / KEY).parent.parent.mkdir(parents=True)
    (results / KEY).parent.write_text("a file in the folder's place")

    with pytest.raises(StorageError) as failed:
        run(Answering())

    one_line(failed.value, "results storage", KEY)
