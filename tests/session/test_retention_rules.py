"""Which chains may be forgotten, and how a chain goes: decided without a database."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from perpetual_blocks.budget import parse_length
from perpetual_blocks.errors import InvalidInput, StorageError
from perpetual_blocks.session.chain import Chain, ChainStatus
from perpetual_blocks.session.documents import document_folders
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.session.retention import judge, prune
from perpetual_blocks.work import ItemStatus

BEFORE = 1000.0
OLD, NEW = BEFORE - 1, BEFORE


def chain(name: str, status: ChainStatus = ChainStatus.FINISHED, updated_at: float = OLD, **changes: Any) -> Chain:
    made = Chain(
        name=name,
        uid=f"uid-{name}",
        agent="Tester",
        status=status,
        reason="",
        ordinal=2,
        epoch=2,
        holder=None,
        lease_until=0.0,
        planned=True,
        context={},
        settings={},
        created_at=0.0,
        updated_at=updated_at,
    )
    return replace(made, **changes)


def names(queues: list[list[Chain]]) -> list[list[str]]:
    return [[one.name for one in of_queue] for of_queue in queues]


# Which may go ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ChainStatus)
def test_only_what_is_over_for_good_may_go(status: ChainStatus) -> None:
    """Finished and cancelled chains; all others may go on, however old they are."""
    judged = judge([chain("mine", status)], set(), BEFORE)

    over = status in (ChainStatus.FINISHED, ChainStatus.CANCELLED)
    assert names(judged.queues) == ([["mine"]] if over else [])
    assert judged.kept == {}


def test_what_was_touched_since_is_kept_and_not_even_named() -> None:
    """At the very moment counts as since."""
    judged = judge([chain("new", updated_at=NEW), chain("old")], set(), BEFORE)

    assert (names(judged.queues), judged.kept) == ([["old"]], {})


def test_a_pinned_checkpoint_keeps_its_chain() -> None:
    """And the report says so."""
    judged = judge([chain("mine"), chain("other")], {"mine"}, BEFORE)

    assert names(judged.queues) == [["other"]]
    assert judged.kept == {"mine": "a checkpoint of mine is pinned"}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (chain("b", ChainStatus.PAUSED, queue="q"), "b, which works on its queue, is paused"),
        (chain("b", updated_at=NEW, queue="q"), "b, which works on its queue, is finished since"),
        (chain("b", queue="q"), "a checkpoint of b is pinned"),
    ],
)
def test_the_chains_of_a_queue_go_together(other: Chain, why: str) -> None:
    """One that has to stay keeps the owner and all others, which are named with the reason."""
    owner, third = chain("q"), chain("a", ChainStatus.CANCELLED, queue="q")
    pinned = {"b"} if "pinned" in why else set()

    judged = judge([third, other, owner], pinned, BEFORE)

    assert judged.queues == []
    assert set(judged.kept) == {"q", "a"} | pinned
    assert all(reason.startswith(why) for reason in judged.kept.values())
    assert names(judge([third, owner], set(), BEFORE).queues) == [["q", "a"]], "the owner is the first"


def test_the_oldest_goes_first() -> None:
    """A queue is as old as the last of its chains that was touched."""
    chains = [chain("a", updated_at=7.0), chain("b", updated_at=5.0), chain("c", updated_at=8.0, queue="b")]

    assert names(judge(chains, set(), BEFORE).queues) == [["a"], ["b", "c"]]


# How they go ----------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """A ledger whose chains are in a dictionary; it and the storage write down what is done, in order."""

    rows: dict[str, Chain]
    done: list[str] = field(default_factory=list)
    pinned: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()

    def chains(self, queue: str | None = None) -> list[Chain]:
        return list(self.rows.values())

    def counts(self, chain: str) -> dict[ItemStatus, int]:
        return {ItemStatus.COMPLETED: 3}

    def documents(self, chain: str, kind: str) -> list[Document]:
        key = f"{chain}.{kind}"
        return [Document("checkpoint", 1, key, "", 1, pinned=chain in self.pinned)] if kind != "handoff" else []

    def retire(self, queue: str, before: float) -> bool:
        self.done.append(f"retire {queue}")
        return queue not in self.touched

    def forget(self, queue: str, before: float) -> bool:
        self.done.append(f"forget {queue}")
        return f"late {queue}" not in self.touched

    def tidy_pools(self, before: float, *, dry_run: bool = False) -> int:
        self.done.append("look at pools" if dry_run else "tidy pools")
        return 4


@dataclass
class Folders:
    """A storage that has two documents of five bytes in each folder."""

    done: list[str]
    away: str = "no such chain"
    can_delete: bool = True

    def measure(self, folder: str) -> tuple[int, int] | None:
        if f"/{self.away}-" in folder:
            raise StorageError("results storage: it is away")
        return (2, 10) if self.can_delete else None

    def delete_folder(self, folder: str) -> None:
        self.done.append(folder)


def ledger(*chains: Chain, **options: Any) -> Rows:
    return Rows({one.name: one for one in chains}, **options)


def test_documents_go_before_the_rows() -> None:
    """Nobody may open it any more, then all of its folders go, then the rows; the pools come last."""
    rows = ledger(chain("q"), chain("a", queue="q"))

    pruned = prune(rows, Folders(rows.done), BEFORE)

    folders = [*document_folders("q", "uid-q"), *document_folders("a", "uid-a")]
    assert rows.done == ["retire q", *folders, "forget q", "tidy pools"]
    assert [(one.chain.name, one.items, one.documents, one.size, one.backup) for one in pruned.forgotten] == [
        ("q", 3, 8, 40, "q.backup"),
        ("a", 0, 8, 40, "a.backup"),
    ]
    assert pruned.pool_rows == 4


def test_a_look_changes_nothing() -> None:
    """And comes to the same."""
    rows, real = ledger(chain("q"), chain("a")), ledger(chain("q"), chain("a"))

    assert prune(rows, Folders(rows.done), BEFORE, dry_run=True) == prune(real, Folders(real.done), BEFORE)
    assert rows.done == ["look at pools"]


def test_a_storage_that_is_away_keeps_the_chain_as_it_is() -> None:
    """Nothing of it is begun; others go."""
    rows = ledger(chain("mine"), chain("other"))

    pruned = prune(rows, Folders(rows.done, away="mine"), BEFORE)

    assert pruned.failed == {"mine": "results storage: it is away"}
    assert [one.chain.name for one in pruned.forgotten] == ["other"]
    assert "retire mine" not in rows.done


@pytest.mark.parametrize("when", ["mine", "late mine"])
def test_what_is_touched_meanwhile_is_kept(when: str) -> None:
    """Before its documents are deleted, and after."""
    rows = ledger(chain("mine"), touched=frozenset({when}))

    pruned = prune(rows, Folders(rows.done), BEFORE)

    assert (pruned.forgotten, list(pruned.kept)) == ([], ["mine"])
    assert ("forget mine" in rows.done) == (when == "late mine")


def test_a_storage_that_cannot_delete_is_said_to_keep_its_documents() -> None:
    """The chain goes all the same: a lifecycle of the bucket does the rest."""
    rows = ledger(chain("mine"))

    [gone] = prune(rows, Folders(rows.done, can_delete=False), BEFORE).forgotten

    assert (gone.documents, gone.size) == (None, 0)


def test_a_chain_without_a_session_has_no_documents() -> None:
    """So no storage is asked for them; an owner's are its queue's, whoever has worked on that."""
    rows = ledger(chain("idle", ordinal=0), chain("q", ordinal=0), chain("a", queue="q"))

    pruned = prune(rows, Folders(rows.done, away="idle"), BEFORE)

    assert {one.chain.name: one.documents for one in pruned.forgotten} == {"idle": 0, "q": 8, "a": 8}


# Lengths --------------------------------------------------------------------------------------------------------------


def test_lengths_of_time() -> None:
    """In seconds."""
    assert [parse_length(text, "--older-than") for text in ("90d", "12h", "5m", "1s")] == [7776000, 43200, 300, 1]


@pytest.mark.parametrize("text", ["", "90", "0d", "-1d", "1.5h", "90 d", "month", "3w", " 1d", "１d"])
def test_what_is_no_length_is_refused(text: str) -> None:
    """With the field, the value and what was expected."""
    with pytest.raises(InvalidInput, match=f"--older-than: got {text!r}; expected a length of time") as refused:
        parse_length(text, "--older-than")
    assert "90d" in str(refused.value)
