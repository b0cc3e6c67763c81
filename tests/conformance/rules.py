"""What others demand of a durable execution, and where it is proven here.

Two lists of rules have been read: the ten that dhp-conform checks (`dhp`; package dhp-protocol 1.3.0), and the
requirements of AWS's durable executions (`aws`; package aws-durable-execution-conformance-tests 1.0.0). A row has a
rule's own id, what it demands in our words, and one of

* `proof`: the tests that prove it,
* `not_ours`: why it does not apply.

How their words are read: an execution is a chain, an invocation a session, a step a unit; a child context is an item of
several units, a map or parallel a queue of items, a wait one for a window; a condition is waited for by a unit that
advances; a plugin is an observer. An execution that "fails" is for us an item that is discarded: the chain goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LEDGER = "tests/contract/test_ledger.py"
LOOP = "tests/session/test_loop.py"
RUN = "tests/integration/test_run.py"
STALLED = f"{LOOP}::test_a_chain_whose_items_wait_for_a_dead_letter_is_stalled"
BACKUP = "tests/contract/test_backup.py"
DHP = "tests/conformance/test_dhp.py"
AWS = "tests/conformance/test_aws.py"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of somebody else's.

    Attributes:
        demand: What it demands, in our words.
        proof: The tests that prove it, as `path::name`.
        not_ours: Why it does not apply.
    """

    source: Literal["dhp", "aws"]
    id: str
    demand: str
    proof: tuple[str, ...] = ()
    not_ours: str | None = None


def dhp(id: str, demand: str, *proof: str) -> Rule:
    return Rule("dhp", id, demand, proof)


def aws(id: str, demand: str, *proof: str) -> Rule:
    return Rule("aws", id, demand, proof)


def not_ours(ids: str | Iterable[str], demand: str, why: str) -> list[Rule]:
    """Rules that do not apply for the same reason."""
    return [Rule("aws", id, demand, not_ours=why) for id in ([ids] if isinstance(ids, str) else ids)]


def suite(number: int, count: int) -> list[str]:
    """All ids of one of AWS's suites."""
    return [f"{number}-{n}" for n in range(1, count + 1)]


NO_NAMELESS = "every item has an id; there are no operations without a name"
JSON_ONLY = "state is JSON that pydantic checks; there are no other serializers, and no pickle"
ONE_AT_A_TIME = "a session runs one unit at a time"
ONE_BAD_ITEM = "one bad item never stops the others; there is no vote among them"
NO_CONTEXTS = "items are not nested; an item has no code of its own beside its units"

RULES: tuple[Rule, ...] = (
    # dhp-conform ------------------------------------------------------------------------------------------------------
    dhp(
        "no-lost-results",
        "When a worker dies half way, another goes on from what it had saved and completes the work.",
        f"{DHP}::test_a_dead_workers_progress_is_taken_up",
        f"{LOOP}::test_interrupted_at_every_point",
    ),
    dhp(
        "no-crossed-inputs",
        "Work cannot be handed in under an id whose input is another.",
        f"{DHP}::test_an_id_keeps_its_input",
        f"{LEDGER}::test_wrong_items_are_refused_all_or_nothing",
    ),
    dhp(
        "no-untyped-results",
        "A result that is not what a result may be is refused when it is handed in, and nothing of it is kept.",
        f"{DHP}::test_what_is_no_result_completes_nothing",
        "tests/work/test_outcome.py::test_a_field_of_another_type_is_refused",
    ),
    dhp(
        "no-silent-budget-overrun",
        "A worker that goes over its budget is told, and cannot hide it.",
        f"{DHP}::test_an_overrun_is_told_recorded_and_final",
    ),
    dhp(
        "no-runner-lock-in",
        "Work that one machine has put down is taken up and completed by another.",
        f"{DHP}::test_another_machine_goes_on",
        f"{BACKUP}::test_a_chain_moves_from_one_ledger_to_another",
    ),
    dhp(
        "exactly-one-wins",
        "Of any number that take over from a dead worker at the same moment, one does.",
        f"{DHP}::test_one_of_many_takes_over",
        f"{LEDGER}::test_sixteen_processes_that_start_a_chain_at_once",
    ),
    dhp(
        "fencing",
        "Who was taken for dead and replaced can save nothing any more.",
        f"{LEDGER}::test_old_fence_is_refused",
        f"{LOOP}::test_a_session_whose_chain_was_taken_over_commits_nothing_more",
    ),
    dhp(
        "leader-election",
        "What one supervisor does is done once, whether several are at work or one dies at it. "
        "(They need no leader: each of their steps may be repeated.)",
        f"{DHP}::test_supervisors_need_no_leader",
        "tests/session/test_supervisor.py::test_several_supervisors_make_one_follow_on",
        "tests/contract/test_control.py::test_many_rescuers_at_once",
    ),
    dhp(
        "transport",
        "What was shipped elsewhere is rebuilt there as it was; shipping it again changes nothing.",
        f"{BACKUP}::test_what_was_saved_comes_back_on_every_database",
        f"{BACKUP}::test_a_chain_that_is_there_is_not_replaced",
    ),
    dhp(
        "dead-letter-queue",
        "Work whose attempts are used up is kept as failed, and is not silently dropped.",
        f"{LEDGER}::test_failing_until_discarded",
        f"{LOOP}::test_failing_units_are_discarded_and_the_others_go_on",
        "tests/session/test_supervisor.py::test_an_item_that_kills_its_processes_is_quarantined",
    ),
    # AWS 1: steps -----------------------------------------------------------------------------------------------------
    aws("1-1", "A unit runs once, and its result is there.", f"{AWS}::test_a_result_comes_back"),
    aws("1-2", "A unit goes by the name that it was given.", f"{AWS}::test_work_goes_by_its_name"),
    aws("1-3", "An item works with what the one before it found.", f"{AWS}::test_items_build_on_each_other"),
    aws("1-4", "A nested result comes back as it was.", f"{AWS}::test_a_result_comes_back"),
    aws("1-5", "A result of nothing is a result.", f"{AWS}::test_a_result_comes_back"),
    *not_ours("1-6", "A unit's result goes through its own serializer.", JSON_ONLY),
    *not_ours("1-7", "What a unit logs is in the log.", "a unit logs with Prefect's run logger, which is Prefect's"),
    aws("1-8", "After a wait, finished units are passed over.", f"{AWS}::test_what_is_finished_is_not_done_again"),
    aws(
        "1-9",
        "A finished unit's result is used again, not made again.",
        f"{AWS}::test_what_is_finished_is_not_done_again",
    ),
    aws(
        "1-10",
        "A unit that failed for good stays failed, and is not run again.",
        f"{AWS}::test_a_failure_is_remembered",
    ),
    aws("1-11", "A unit that fails is tried again and may succeed.", f"{AWS}::test_attempts"),
    aws("1-12", "A unit is tried as often as was said, and then given up.", f"{AWS}::test_attempts"),
    aws(
        "1-13",
        "Without being told, a failed unit is tried again after waits that grow.",
        f"{AWS}::test_attempts",
        "tests/session/test_attempts.py::test_each_wait_is_four_times_as_long_up_to_five_minutes",
    ),
    *not_ours(
        "1-14",
        "The waits between attempts are those that the user has set.",
        "the number of attempts can be set; the waits are ours",
    ),
    *not_ours(
        ["1-15", "1-16"],
        "The kind of error decides whether there is another attempt.",
        "attempts are counted whatever the error was",
    ),
    *not_ours(
        "1-17",
        "A unit that was interrupted is not run again, where the user wants that.",
        "an interrupted unit is always tried again (DESIGN.md, guarantee 2)",
    ),
    aws(
        "1-18",
        "A unit whose process died is run again, and may succeed.",
        f"{AWS}::test_an_interrupted_unit_is_run_again",
        f"{RUN}::test_a_unit_that_was_running_when_its_process_was_killed_is_tried_again",
    ),
    aws("1-19", "Without attempts left, the first failure is the last.", f"{AWS}::test_attempts"),
    aws(
        "1-20", "Other work goes on after a unit that failed for good.", f"{AWS}::test_bad_items_do_not_stop_the_others"
    ),
    # AWS 2: waits -----------------------------------------------------------------------------------------------------
    aws(
        "2-1",
        "A wait takes no process: the session ends, and the next one starts when the wait is over.",
        f"{AWS}::test_waits",
        f"{LOOP}::test_a_window_is_waited_for",
    ),
    *not_ours("2-2", "A wait goes by its name.", "waits are for windows, which have no other name"),
    aws("2-3", "A chain may wait several times.", f"{AWS}::test_what_is_finished_is_not_done_again"),
    aws("2-4", "A minute is a minute.", f"{AWS}::test_waits"),
    aws("2-5", "An hour is an hour.", f"{AWS}::test_waits"),
    # AWS 3: child contexts --------------------------------------------------------------------------------------------
    aws("3-1", "An item of one unit has that unit's result.", f"{AWS}::test_a_result_comes_back"),
    aws("3-2", "An item goes by the name that it was given.", f"{AWS}::test_work_goes_by_its_name"),
    aws(
        "3-3",
        "An item's second unit works with what its first one found.",
        f"{AWS}::test_units_of_an_item_build_on_each_other",
    ),
    aws(
        "3-4",
        "A failure reaches whoever needs the result.",
        STALLED,
    ),
    aws(
        "3-5",
        "A failed item does not stop others that do not need it.",
        f"{AWS}::test_bad_items_do_not_stop_the_others",
    ),
    *not_ours("3-6", "Child contexts can be nested.", NO_CONTEXTS),
    aws(
        "3-7",
        "A later unit of an item that fails is tried again, and the ones before it are not.",
        f"{AWS}::test_attempts",
    ),
    aws(
        "3-8",
        "A later unit of an item is tried as often as was said; then the item is given up.",
        f"{AWS}::test_attempts",
    ),
    aws(
        "3-9",
        "An item of several units is not done again in a later session.",
        f"{AWS}::test_what_is_finished_is_not_done_again",
    ),
    aws("3-10", "A chain may wait between two units of an item.", f"{AWS}::test_what_is_finished_is_not_done_again"),
    aws("3-11", "A result may be large: it is kept whole, and not made again.", f"{AWS}::test_large_results"),
    aws(
        "3-12",
        "When a process dies within an item, the item goes on with the unit that it died in.",
        f"{AWS}::test_an_interrupted_unit_is_run_again",
    ),
    aws("3-13", "Other work comes after an item that waited.", f"{AWS}::test_what_is_finished_is_not_done_again"),
    *not_ours("3-14", "A child context's result goes through its own serializer.", JSON_ONLY),
    *not_ours("3-15", "A child context may fail outside of its steps.", NO_CONTEXTS),
    aws("3-16", "An item may come to nothing and be done.", f"{AWS}::test_a_result_comes_back"),
    *not_ours("3-17", "What a child context does outside of its steps is not done again.", NO_CONTEXTS),
    aws(
        "3-18",
        "Items of several units, with waits in and after them, each run once.",
        f"{AWS}::test_what_is_finished_is_not_done_again",
    ),
    # AWS 4, 5 and 7: callbacks and invocations ------------------------------------------------------------------------
    *not_ours(
        [*suite(4, 19), *suite(7, 15)],
        "A chain waits for a message from outside, until a timeout.",
        "no callbacks: whoever has news adds an item, which a chain that is over waits for",
    ),
    *not_ours(
        suite(5, 16),
        "A unit invokes another function, waits for it without a process, and keeps what it returned.",
        "no invocations: a unit calls what it likes; what it gets is kept with its outcome",
    ),
    # AWS 6: waiting for a condition -----------------------------------------------------------------------------------
    aws("6-1", "A unit that advances is run again with where it stopped, until it is done.", f"{AWS}::test_polling"),
    aws("6-2", "A condition that holds at once takes one unit.", f"{AWS}::test_polling"),
    aws("6-3", "Each look at a condition goes by the item's name.", f"{AWS}::test_work_goes_by_its_name"),
    aws("6-4", "The first unit begins with what the item says.", f"{AWS}::test_polling"),
    *not_ours(
        "6-5",
        "There is a fixed wait between two looks at a condition.",
        "a unit that advanced may go on at once; waits are for windows",
    ),
    aws(
        "6-6",
        "A condition that never holds is not looked at for ever.",
        "tests/session/test_manners.py::test_max_sessions",
    ),
    aws("6-7", "A look at a condition that raises is a failed unit.", f"{AWS}::test_attempts"),
    aws(
        "6-8",
        "Other work goes on after a look at a condition that raised.",
        f"{AWS}::test_bad_items_do_not_stop_the_others",
    ),
    aws("6-9", "Where a unit stopped may be a structure.", f"{AWS}::test_polling"),
    aws("6-10", "A condition that holds may come to nothing.", f"{AWS}::test_polling"),
    *not_ours("6-11", "Where a unit stopped goes through its own serializer.", JSON_ONLY),
    aws(
        "6-12",
        "What a condition came to is used by later work, and is not looked at again.",
        f"{AWS}::test_items_build_on_each_other",
    ),
    aws("6-13", "Two conditions are waited for, one after the other.", f"{AWS}::test_polling"),
    # AWS 8: branches --------------------------------------------------------------------------------------------------
    aws("8-1", "Each of several items has its result.", f"{AWS}::test_work_goes_by_its_name"),
    *not_ours("8-2", "Branches need no name.", NO_NAMELESS),
    aws("8-3", "Each of several items goes by its own name.", f"{AWS}::test_work_goes_by_its_name"),
    aws("8-4", "Items may have results of different types.", f"{AWS}::test_a_result_comes_back"),
    aws("8-5", "Nothing to do is done at once.", f"{LOOP}::test_nothing_to_do"),
    *not_ours("8-6", "The first failure stops the rest, where the user wants that.", ONE_BAD_ITEM),
    aws("8-7", "A branch's failure reaches whoever needs its result.", STALLED),
    *not_ours("8-8", "Enough successes stop the rest, where the user wants that.", ONE_BAD_ITEM),
    aws("8-9", "Every item runs though one fails.", f"{AWS}::test_bad_items_do_not_stop_the_others"),
    *not_ours("8-10", "Too many failures stop the rest, where the user wants that.", ONE_BAD_ITEM),
    *not_ours("8-11", "Branches that run at once have their results in their own order.", ONE_AT_A_TIME),
    *not_ours("8-12", "Branches may be recorded without contexts of their own.", NO_CONTEXTS),
    *not_ours("8-13", "Too large a share of failures stops the rest, where the user wants that.", ONE_BAD_ITEM),
    aws(
        "8-14",
        "When the chain waits, items that are done stay done.",
        f"{AWS}::test_what_is_finished_is_not_done_again",
    ),
    *not_ours("8-15", "Each branch's result goes through its own serializer.", JSON_ONLY),
    aws(
        "8-16",
        "Every item runs though all of them fail, and the end says so.",
        f"{AWS}::test_bad_items_do_not_stop_the_others",
    ),
    *not_ours(["8-17", "8-18"], "Successes and failures are counted against what the user wants.", ONE_BAD_ITEM),
    *not_ours("8-19", "A concurrency of 0 is refused.", ONE_AT_A_TIME),
    aws(
        "8-20",
        "What succeeded and what failed can be told apart, with the errors.",
        f"{AWS}::test_bad_items_do_not_stop_the_others",
    ),
    aws("8-21", "Work may make more work.", f"{LEDGER}::test_items_that_a_unit_adds_come_with_its_commit"),
    *not_ours("8-22", "A share of failures that is just tolerated stops nothing.", ONE_BAD_ITEM),
    # AWS 9: the same work for each ------------------------------------------------------------------------------------
    aws("9-1", "The same work is done for each item, and all succeed.", f"{AWS}::test_work_goes_by_its_name"),
    *not_ours("9-2", "A map needs no name.", NO_NAMELESS),
    *not_ours("9-3", "The work is told each item's place in the list.", "an item's payload says what its unit needs"),
    aws("9-4", "Nothing to do is done at once.", f"{LOOP}::test_nothing_to_do"),
    *not_ours("9-5", "The first failure stops the rest, where the user wants that.", ONE_BAD_ITEM),
    aws("9-6", "An item's failure reaches whoever needs its result.", STALLED),
    *not_ours("9-7", "Enough successes stop the rest, where the user wants that.", ONE_BAD_ITEM),
    aws("9-8", "Every item runs though one fails.", f"{AWS}::test_bad_items_do_not_stop_the_others"),
    *not_ours(["9-9", "9-10"], "Too many failures stop the rest, where the user wants that.", ONE_BAD_ITEM),
    *not_ours("9-11", "Items that run at once have their results in their own order.", ONE_AT_A_TIME),
    *not_ours("9-12", "Items may be recorded without contexts of their own.", NO_CONTEXTS),
    aws("9-13", "The user names the items.", f"{AWS}::test_work_goes_by_its_name"),
    *not_ours("9-14", "Each item's result goes through its own serializer.", JSON_ONLY),
    aws(
        "9-15",
        "When the chain waits within an item, those before it stay done.",
        f"{AWS}::test_what_is_finished_is_not_done_again",
    ),
    aws("9-16", "Results may be large together: each is kept whole.", f"{AWS}::test_large_results"),
    aws("9-17", "After a wait, items that are done stay done.", f"{AWS}::test_what_is_finished_is_not_done_again"),
    aws("9-18", "After a wait, an item that failed stays failed.", f"{AWS}::test_a_failure_is_remembered"),
    *not_ours(["9-19", "9-20"], "All results together go through a serializer.", JSON_ONLY),
    # AWS 10: observers ------------------------------------------------------------------------------------------------
    aws(
        "10-1",
        "An observer is told of a session's start and of its end, once.",
        f"{LOOP}::test_moments_are_told_in_order",
    ),
    aws(
        "10-2",
        "An observer is told of a unit's end, once, with its item's id. (Not of its start: nothing has happened then.)",
        f"{LOOP}::test_moments_are_told_in_order",
    ),
    aws(
        "10-3",
        "An observer is told of each attempt, with its number and what came of it.",
        f"{AWS}::test_observers_are_told_of_each_attempt",
    ),
    aws("10-4", "What an observer raises changes nothing.", f"{AWS}::test_what_an_observer_raises_changes_nothing"),
    aws("10-5", "Several observers are all told.", f"{AWS}::test_observers_are_told_of_each_attempt"),
    aws(
        "10-6",
        "An observer can tell a chain's first session from later ones.",
        f"{AWS}::test_observers_know_the_first_session",
    ),
    aws(
        "10-7", "An observer is told that a session has failed.", f"{AWS}::test_observers_are_told_of_a_failed_session"
    ),
)
