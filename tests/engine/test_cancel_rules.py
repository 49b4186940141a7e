"""The ladder, as a list of events in and a list of instructions out; time is a number that the test moves.

Role: contract of engine/cancel and of the stopping half of engine/scheduler (docs/semantics.md, Cancel, States).
"""

from __future__ import annotations

import math

import pytest
from engine_rig import Rig, kinds, only

from jupyter_tasks.engine.cancel import TERMINATE_GRACE, TIMEOUT_GRACE, Cancel, Rung
from jupyter_tasks.engine.events import (
    Capabilities,
    Died,
    Finished,
    Gone,
    IdleAgain,
    Interrupt,
    Kill,
    Recall,
    Recalled,
    Retire,
    Started,
    Task,
    Terminate,
    Tick,
    TooMuchMemory,
)
from jupyter_tasks.engine.scheduler import Scheduler
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind


def at(rig: Rig, seconds: float) -> list[str]:
    """Time goes on by so much, and the loop ticks if the rules want it to. What they then want done."""
    rig.now += seconds
    timer = rig.scheduler.next_timer()
    return kinds(rig.event(Tick())) if timer is not None and timer <= rig.now else []


def steps(rig: Rig) -> list[str]:
    """The instructions so far that stop something."""
    return [kind for kind in kinds(rig.story) if kind in ("Interrupt", "Terminate", "Kill", "Retire")]


# -- before it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_queued_task_is_cancelled_at_once_and_never_runs(force: bool) -> None:
    rig = Rig(1, depth=1)
    running, queued, other = rig.submit(3)
    assert kinds(rig.cancel(queued, force=force)) == ["Deliver"]
    assert queued.state is State.CANCELLED
    assert rig.failure(queued)["rung"] == "pending"
    rig.finish(running)
    assert rig.ran() == [[running.id], [other.id]]


@pytest.mark.parametrize("force", [False, True])
def test_a_task_that_waits_for_a_dependency_is_cancelled_and_its_dependency_is_not(force: bool) -> None:
    rig = Rig(1)
    upstream = rig.running()
    waiting = rig.submit(deps=[upstream.id])
    rig.cancel(waiting, force=force)
    assert waiting.state is State.CANCELLED
    assert upstream.state is State.RUNNING
    rig.finish(upstream)
    assert rig.ran() == [[upstream.id]]


def test_a_task_given_to_a_worker_is_asked_back_first() -> None:
    """Only the backend can know whether it has begun; both answers are good."""
    rig = Rig(1)
    first, second = rig.submit(2)
    out = rig.cancel(second)
    assert only(out, Recall) == Recall(second.lease, second.id)
    assert second.state is State.PENDING
    rig.recalled(second.lease, second)
    assert second.state is State.CANCELLED
    assert rig.failure(second)["rung"] == "pending"
    rig.finish(first)
    assert len(rig.ran()) == 2


def test_what_came_back_beside_it_is_given_again() -> None:
    rig = Rig(1)
    rig.finish(rig.submit())
    tasks = rig.submit(40)
    lease = tasks[0].lease
    packet = [task for task in tasks if task.id in lease.packets[-1]]
    rig.cancel(packet[1])
    rig.recalled(lease, *packet)
    assert packet[1].state is State.CANCELLED
    assert packet[0].lease is lease
    assert packet[1].id not in rig.ran()[-1]


def test_a_task_that_had_begun_goes_on_the_ladder() -> None:
    rig = Rig(1)
    task = rig.submit()
    rig.cancel(task)
    assert kinds(rig.start(task)) == ["Interrupt"]
    assert task.state is State.CANCELLING


def test_a_task_that_had_begun_and_was_to_be_killed_is_killed() -> None:
    rig = Rig(1)
    task = rig.submit()
    rig.cancel(task, force=True)
    assert kinds(rig.start(task)) == ["Kill"]


def test_a_task_whose_end_was_on_the_way_keeps_it() -> None:
    rig = Rig(1)
    task = rig.submit()
    rig.cancel(task)
    rig.finish(task)
    assert task.state is State.COMPLETED


def test_a_skip_that_overtakes_the_answer_is_the_answer() -> None:
    """1. Recall is out   2. the worker reaches the task and skips it   3. that word is read first."""
    rig = Rig(1)
    task = rig.submit()
    rig.cancel(task)
    rig.stop(task, skipped=True)
    assert task.state is State.CANCELLED
    assert rig.failure(task)["rung"] == "pending"
    assert rig.ran() == [[task.id]]


def test_the_worker_that_reaches_a_cancelled_task_later_is_not_heard() -> None:
    """It was in the middle of a packet: the cancel is answered at once, the skip comes when the worker gets there."""
    rig = Rig(1)
    rig.finish(rig.submit())
    tasks = rig.submit(40)
    lease = tasks[0].lease
    packet = [task for task in tasks if task.id in lease.packets[0]]
    first, second = packet[:2]
    rig.cancel(second)
    rig.event(Recalled(lease, [second.id], True))  # unbegun, though read
    assert second.state is State.CANCELLED
    assert second.id in lease.packets[0]  # its place in the order says what has ended when the worker gets there
    skip = rig.end(second, Kind.INTERRUPTED, flags=Flag.SKIPPED)
    rig.event(Finished(lease, [rig.end(first), skip]))
    assert len(rig.outcomes()[second.id]) == 1


# -- the ladder ---------------------------------------------------------------------------------------------------------


def test_a_soft_cancel_asks_and_interrupts_and_then_waits() -> None:
    rig = Rig(1)
    task = rig.running()
    assert kinds(rig.cancel(task)) == ["Interrupt"]
    assert task.state is State.CANCELLING
    assert rig.scheduler.next_timer() is None  # for ever: no grace was given
    assert at(rig, 1e9) == []
    rig.stop(task)
    assert task.state is State.CANCELLED
    record = rig.failure(task)
    assert (record["type"], record["rung"], record["source"]) == ("cancelled", "interrupt", "user")
    assert record["seconds"] == 1e9
    assert record["force"] is False


def test_the_record_says_who_and_why() -> None:
    rig = Rig(1)
    task = rig.running(name="train")
    rig.cancel(task, source="group", reason="one of us failed")
    rig.stop(task)
    record = rig.failure(task)
    assert (record["name"], record["source"], record["reason"]) == ("train", "group", "one of us failed")


def test_with_grace_it_climbs_by_itself() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=2.0)
    assert rig.scheduler.next_timer() == rig.now + 2.0
    assert at(rig, 1.999) == []
    assert at(rig, 0.001) == ["Terminate"]
    assert rig.scheduler.next_timer() == rig.now + TERMINATE_GRACE
    assert at(rig, TERMINATE_GRACE - 0.001) == []
    assert at(rig, 0.002) == ["Kill"]
    assert rig.scheduler.next_timer() is None
    rig.die(task.lease, task, ours=True)
    assert task.state is State.CANCELLED
    assert rig.failure(task)["rung"] == "kill"
    assert rig.failure(task)["force"] is True


def test_the_functions_own_grace_is_the_default() -> None:
    rig = Rig(1)
    task = rig.running(grace=3.0)
    rig.cancel(task)
    assert rig.scheduler.next_timer() == rig.now + 3.0
    other = rig.running(grace=3.0)
    rig.cancel(other, grace=0.5)
    assert rig.scheduler.next_timer() == rig.now + 0.5


def test_a_task_that_ended_by_sigterm_says_so() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=1.0)
    at(rig, 1.0)
    rig.die(task.lease, task, ours=True)
    assert task.state is State.CANCELLED
    assert rig.failure(task)["rung"] == "terminate"


def test_grace_zero_does_not_wait_at_all() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=0)
    assert at(rig, 0) == ["Terminate"]


def test_infinite_grace_never_climbs() -> None:
    rig = Rig(1)
    task = rig.running(grace=1.0)
    rig.cancel(task, grace=math.inf)
    assert at(rig, 1e12) == []


def test_force_goes_straight_to_kill() -> None:
    rig = Rig(1)
    task = rig.running()
    assert kinds(rig.cancel(task, force=True)) == ["Kill"]
    rig.die(task.lease, task, ours=True)
    record = rig.failure(task)
    assert (record["rung"], record["force"]) == ("kill", True)


def test_force_after_a_soft_cancel_kills_once() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=2.0)
    assert kinds(rig.cancel(task, force=True)) == ["Kill"]
    assert at(rig, 2.0) == []
    assert at(rig, 100.0) == []


def test_every_cancel_is_delivered() -> None:
    """It caught the first and went on: the second is a KeyboardInterrupt of its own."""
    rig = Rig(1)
    task = rig.running()
    for _ in range(3):
        assert kinds(rig.cancel(task)) == ["Interrupt"]
    assert task.state is State.CANCELLING


def test_asking_again_does_not_postpone_the_climb() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=5.0)
    deadline = rig.now + 5.0
    for _ in range(4):
        assert at(rig, 1.0) == []
        rig.cancel(task)
        assert rig.scheduler.next_timer() == deadline
    rig.cancel(task, grace=100.0)
    assert rig.scheduler.next_timer() == deadline
    assert at(rig, 1.0) == ["Terminate"]


def test_asking_again_with_less_grace_hastens_it() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=50.0)
    rig.cancel(task, grace=1.0)
    assert at(rig, 1.0) == ["Terminate"]
    assert at(rig, 60.0) == ["Kill"]
    assert steps(rig) == ["Interrupt", "Interrupt", "Terminate", "Kill"]


def test_a_soft_cancel_above_the_interrupt_does_nothing() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=1.0)
    at(rig, 1.0)
    assert rig.cancel(task) == []
    assert at(rig, TERMINATE_GRACE) == ["Kill"]
    assert rig.cancel(task) == []


def test_each_rung_is_stood_on_once() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task, grace=1.0)
    for _ in range(100):
        at(rig, 0.5)
    assert steps(rig) == ["Interrupt", "Terminate", "Kill"]


def test_a_backend_without_a_rung_skips_it() -> None:
    rig = Rig(1)
    rig.scheduler = Scheduler(rig.scheduler.total, Capabilities(rungs=frozenset({"ask", "kill"})))
    task = rig.running()
    assert rig.cancel(task, grace=1.0) == []
    assert task.state is State.CANCELLING
    assert at(rig, 1.0) == []
    assert at(rig, TERMINATE_GRACE) == ["Kill"]


def test_a_rung_never_goes_down() -> None:
    cancel = Cancel("user", "", 0.0, 1.0)
    seen = [cancel.start(0.0, force=False), cancel.climb(1.0), cancel.climb(2.0), cancel.climb(3.0)]
    assert seen == [Rung.INTERRUPT, Rung.TERMINATE, Rung.KILL, Rung.KILL]
    assert cancel.start(4.0, force=False) is Rung.KILL
    assert cancel.climb_at is None


# -- how it ends ------------------------------------------------------------------------------------------------------------


def test_a_result_that_comes_first_wins_over_the_cancel() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task)
    rig.finish(task)
    assert task.state is State.COMPLETED
    assert rig.outcomes()[task.id] == [(Kind.RESULT, b"value")]


def test_a_result_on_its_way_wins_over_a_kill() -> None:
    """1. Kill is out   2. the result, sent before, comes in   3. the process is gone."""
    rig = Rig(1)
    task = rig.running()
    lease = task.lease
    rig.cancel(task, force=True)
    rig.finish(task)
    rig.die(lease, task, ours=True)
    assert task.state is State.COMPLETED
    assert len(rig.outcomes()[task.id]) == 1


def test_a_result_that_comes_after_its_process_died_still_wins() -> None:
    """Between Died and Gone the outcome is not written yet; what was read late from the socket counts."""
    rig = Rig(1)
    task = rig.running()
    lease = task.lease
    rig.cancel(task, force=True)
    rig.event(Died(lease, task.id, None, "SIGKILL", True))
    rig.finish(task, lease=lease)
    rig.event(Gone(lease))
    assert task.state is State.COMPLETED
    assert len(rig.outcomes()[task.id]) == 1


def test_another_error_in_the_handler_wins_over_the_cancel() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task)
    rig.fail(task)
    assert task.state is State.FAILED
    assert rig.outcomes()[task.id] == [(Kind.ERROR, b"boom")]


def test_a_keyboard_interrupt_of_its_own_is_a_cancel_by_the_task() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.stop(task)
    assert task.state is State.CANCELLED
    assert rig.failure(task)["source"] == "task"
    assert rig.failure(task)["reason"] == ""


def test_cancelled_is_written_only_when_the_whole_tree_is_gone() -> None:
    rig = Rig(1)
    task = rig.running()
    lease = task.lease
    rig.cancel(task, force=True)
    rig.event(Died(lease, task.id, None, "SIGKILL", True))
    assert task.state is State.CANCELLING
    assert task.id not in rig.outcomes()
    rig.event(Gone(lease))
    assert task.state is State.CANCELLED


def test_a_tainted_end_is_told_when_the_worker_is_gone() -> None:
    """Children or threads remain, or an import was cut in two: the worker goes first, then the word."""
    rig = Rig(1)
    task, behind = rig.submit(2)
    lease = task.lease
    rig.start(task)
    rig.cancel(task)
    out = rig.stop(task, tainted=True)
    assert only(out, Retire) == Retire(lease)
    assert task.state is State.CANCELLING
    rig.recalled(lease, behind)
    rig.event(Died(lease, task.id, None, "SIGKILL", True))
    rig.event(Gone(lease))
    assert task.state is State.CANCELLED
    assert rig.failure(task)["rung"] == "interrupt"
    assert behind.lease is not lease
    assert behind.state is State.PENDING


def test_a_task_begun_in_a_tainted_worker_is_not_forgotten() -> None:
    """A worker must not begin anything after a tainted end; if one does, that task crashed with it."""
    rig = Rig(1)
    task, behind = rig.submit(2, max_retries=0)
    lease = task.lease
    rig.start(task)
    rig.cancel(task)
    rig.stop(task, tainted=True)
    rig.recalled(lease)
    rig.die(lease, behind, ours=True)
    assert (task.state, behind.state) == (State.CANCELLED, State.CRASHED)


def test_a_process_that_died_by_itself_under_a_soft_cancel_is_a_crash() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.cancel(task)
    rig.die(task.lease, task)
    assert task.state is State.CRASHED
    assert rig.failure(task)["signal_name"] == "SIGSEGV"


def test_a_cancel_between_the_crash_and_the_retry_stops_the_retry() -> None:
    rig = Rig(1)
    task = rig.running(max_retries=3)
    lease = task.lease
    rig.die(lease, task, gone=False)
    rig.cancel(task)
    rig.event(Gone(lease))
    assert task.state in (State.CRASHED, State.CANCELLED)
    assert rig.ran() == [[task.id]]


def test_a_cancel_while_it_waits_for_its_retry_is_a_cancel_of_a_queued_task() -> None:
    rig = Rig(1, depth=1)
    first = rig.running(max_retries=3)
    second = rig.submit(max_retries=3)
    rig.die(first.lease, first)  # first goes to the front again and runs; second waits
    assert first.lease is not None
    rig.fail(first, retryable=True)
    rig.cancel(second)
    assert second.state is State.CANCELLED


def test_cancelling_a_finished_task_changes_nothing() -> None:
    rig = Rig(1)
    task = rig.submit()
    rig.finish(task)
    assert rig.cancel(task) == []
    assert rig.cancel(task, force=True) == []
    assert task.state is State.COMPLETED


def test_cancelling_something_unknown_or_a_put_object_is_a_no_op() -> None:
    from jupyter_tasks.engine.events import Entry, Put

    rig = Rig(1)
    entry = Entry(500, 1)
    entry.kind = Kind.RESULT
    rig.event(Put(entry))
    assert rig.cancel(500) == []
    assert rig.cancel(12345, force=True) == []


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_of_several_return_values_stands_for_the_task(index: int) -> None:
    rig = Rig(1)
    task = rig.running(num_returns=3, plain=False)
    assert kinds(rig.cancel(task.id + index)) == ["Interrupt"]
    rig.stop(task)
    for i in range(3):
        assert rig.failure(task.id + i)["type"] == "cancelled"


def test_the_id_after_a_tasks_last_return_value_is_somebody_else() -> None:
    rig = Rig(2)
    task = rig.running(num_returns=2, plain=False)
    rig.cancel(task.id + 2)
    assert task.state is State.RUNNING


# -- children ------------------------------------------------------------------------------------------------------------------


def family(rig: Rig) -> tuple[Task, Task, Task]:
    parent = rig.running()
    child = rig.running(parent=parent.id)
    grandchild = rig.submit(parent=child.id, deps=[child.id])
    return parent, child, grandchild


def test_a_recursive_cancel_reaches_children_and_grandchildren() -> None:
    rig = Rig(2)
    parent, child, grandchild = family(rig)
    assert kinds(rig.cancel(parent)) == ["Interrupt", "Interrupt", "Deliver"]
    assert (parent.state, child.state) == (State.CANCELLING, State.CANCELLING)
    assert grandchild.state is State.CANCELLED
    assert rig.failure(grandchild)["source"] == "parent"


def test_force_is_passed_on_to_children() -> None:
    rig = Rig(2)
    parent, _child, _ = family(rig)
    assert kinds(rig.cancel(parent, force=True)).count("Kill") == 2


@pytest.mark.parametrize("force", [False, True])
def test_without_recursion_children_go_on(force: bool) -> None:
    rig = Rig(2)
    parent, child, grandchild = family(rig)
    rig.cancel(parent, recursive=False, force=force)
    assert (child.state, grandchild.state) == (State.RUNNING, State.PENDING)


@pytest.mark.parametrize("over", [False, True], ids=["while it is killed", "after"])
@pytest.mark.parametrize("recursive", [True, False])
def test_a_child_that_was_on_its_way_when_its_parent_was_killed(over: bool, recursive: bool) -> None:
    """Nothing of a killed family begins later."""
    rig = Rig(2)
    parent = rig.running()
    rig.cancel(parent, force=True, recursive=recursive)
    if over:
        rig.die(parent.lease, parent, ours=True)
        assert parent.state is State.CANCELLED
    child = rig.submit(parent=parent.id)
    if not recursive:
        assert child.state is State.PENDING
        assert child.cancel is None
    elif child.state is State.CANCELLED:
        assert rig.failure(child)["source"] == "parent"
    else:  # it was given to a worker in the same moment, and is taken back
        assert child.cancel is not None
        assert child.cancel.source == "parent"


def test_cancelling_a_finished_parent_touches_nobody() -> None:
    rig = Rig(2)
    parent, child, _ = family(rig)
    rig.finish(parent)
    rig.cancel(parent)
    assert child.state is State.RUNNING


# -- timeouts -------------------------------------------------------------------------------------------------------------------


def test_a_timeout_counts_from_the_start_of_the_code() -> None:
    rig = Rig(1, depth=1)
    blocker = rig.running()
    task = rig.submit(timeout=10.0)
    rig.now += 100.0  # waiting for a slot does not count
    assert rig.scheduler.next_timer() is None
    rig.finish(blocker)
    began = rig.now
    rig.event(Started(task.id, began))
    assert rig.scheduler.next_timer() == began + 10.0


def test_a_timeout_interrupts_then_climbs_and_is_a_failure() -> None:
    rig = Rig(1)
    task = rig.running(timeout=10.0)
    assert at(rig, 10.0) == ["Interrupt"]
    assert at(rig, TIMEOUT_GRACE) == ["Terminate"]
    assert at(rig, TERMINATE_GRACE) == ["Kill"]
    rig.die(task.lease, task, ours=True)
    assert task.state is State.FAILED
    record = rig.failure(task)
    assert (record["type"], record["timeout"], record["rung"]) == ("timeout", 10.0, "kill")


def test_a_timeout_takes_the_grace_it_was_given() -> None:
    rig = Rig(1)
    rig.running(timeout=10.0, grace=0.25)
    assert at(rig, 10.0) == ["Interrupt"]
    assert at(rig, 0.25) == ["Terminate"]


def test_a_task_that_gives_in_to_its_timeout_has_failed() -> None:
    rig = Rig(1)
    task = rig.running(timeout=1.0, max_retries=5)
    at(rig, 1.0)
    rig.stop(task)
    assert task.state is State.FAILED
    assert rig.failure(task)["type"] == "timeout"
    assert rig.ran() == [[task.id]]  # not retried


def test_a_value_in_the_last_moment_wins_over_the_timeout() -> None:
    rig = Rig(1)
    task = rig.running(timeout=1.0)
    at(rig, 1.0)
    rig.finish(task)
    assert task.state is State.COMPLETED
    assert rig.scheduler.next_timer() is None


def test_each_attempt_has_the_whole_time() -> None:
    rig = Rig(1)
    task = rig.running(timeout=10.0, max_retries=1)
    rig.now += 9.0
    rig.die(task.lease, task)
    assert rig.scheduler.next_timer() is None
    rig.start(task)
    assert rig.scheduler.next_timer() == rig.now + 10.0
    assert at(rig, 9.0) == []
    assert at(rig, 1.0) == ["Interrupt"]


def test_the_timer_of_an_earlier_attempt_rings_for_nobody() -> None:
    rig = Rig(2)
    other = rig.running(timeout=1.0, plain=False)
    task = rig.running(timeout=10.0, max_retries=1)
    rig.now += 0.5
    rig.die(task.lease, task)  # its first timer stays where it is, behind the other's
    rig.now += 9.0
    rig.start(task)
    rig.finish(other)
    assert at(rig, 1.0) == []


def test_a_timeout_still_counts_when_the_task_has_swallowed_a_cancel() -> None:
    """A timeout is a deadline: the task that caught the user's cancel and went on must not escape it."""
    rig = Rig(1)
    task = rig.running(timeout=10.0)
    rig.cancel(task)
    rig.now += 5.0
    assert at(rig, 5.0) == ["Interrupt"]
    assert at(rig, TIMEOUT_GRACE) == ["Terminate"]
    assert at(rig, TERMINATE_GRACE) == ["Kill"]
    rig.die(task.lease, task, ours=True)
    assert task.state is State.CANCELLED  # the user asked first
    assert rig.failure(task)["source"] == "user"


def test_a_timeout_does_not_slow_a_climb_that_is_under_way() -> None:
    rig = Rig(1)
    task = rig.running(timeout=10.0)
    rig.now += 9.0
    rig.cancel(task, grace=2.0)
    assert "Terminate" not in at(rig, 1.0)
    assert at(rig, 1.0) == ["Terminate"]
    rig.die(task.lease, task, ours=True)


def test_timers_of_ended_tasks_are_forgotten() -> None:
    rig = Rig(1)
    for _ in range(50):
        rig.finish(rig.running(timeout=1000.0))
    assert rig.scheduler.next_timer() is None


# -- memory ---------------------------------------------------------------------------------------------------------------------


def test_too_much_memory_kills_and_is_a_crash_that_says_how_much() -> None:
    rig = Rig(1)
    task = rig.running(memory=1000, max_retries=3)
    assert kinds(rig.event(TooMuchMemory(task.id, 1500))) == ["Kill"]
    assert kinds(rig.event(TooMuchMemory(task.id, 1600))) == []  # once is enough
    rig.die(task.lease, task, ours=True)
    assert task.state is State.CRASHED
    record = rig.failure(task)
    assert (record["type"], record["limit"]) == ("memory", 1000)
    assert record["used"] in (1500, 1600)
    assert rig.ran() == [[task.id]]  # not retried


def test_memory_beats_a_soft_cancel() -> None:
    rig = Rig(1)
    task = rig.running(memory=1000)
    rig.cancel(task)
    assert kinds(rig.event(TooMuchMemory(task.id, 1500))) == ["Kill"]
    rig.die(task.lease, task, ours=True)
    assert task.state is State.CRASHED


def test_a_value_that_comes_before_the_kill_wins_over_memory() -> None:
    rig = Rig(1)
    task = rig.running(memory=1000)
    rig.event(TooMuchMemory(task.id, 1500))
    rig.finish(task)
    assert task.state is State.COMPLETED


# -- what it left running ------------------------------------------------------------------------------------------------------


def test_cancel_reaches_what_a_finished_task_left_running() -> None:
    rig = Rig(1)
    task = rig.submit()
    lease = task.lease
    rig.finish(task, flags=Flag.LINGERS)
    out = rig.cancel(task)
    assert only(out, Retire) == Retire(lease)
    rig.die(lease, task, ours=True)
    assert task.state is State.COMPLETED
    assert rig.cancel(task) == []


def test_it_is_reached_even_when_its_value_is_not_held_any_more() -> None:
    from jupyter_tasks.engine.events import Released

    rig = Rig(1)
    task = rig.submit()
    rig.finish(task, flags=Flag.LINGERS)
    rig.event(Released(1, [task.id]))
    assert task.id not in rig.scheduler.objects
    assert kinds(rig.cancel(task)) == ["Retire"]


def test_a_cancel_that_crosses_its_end_retires_nobody() -> None:
    rig = Rig(1)
    task = rig.submit()
    lease = task.lease
    rig.finish(task, flags=Flag.LINGERS)
    rig.event(IdleAgain(lease))
    assert rig.cancel(task) == []


# -- who is told --------------------------------------------------------------------------------------------------------------------


def test_who_watches_sees_each_step() -> None:
    rig = Rig(1)
    task = rig.submit(watched=True)
    seen = [state(rig) for state in (lambda r: kinds(r.start(task)), lambda r: kinds(r.cancel(task, grace=1.0)))]
    assert seen == [["Announce"], ["Interrupt", "Announce"]]
    assert at(rig, 1.0) == ["Terminate", "Announce"]
    out = rig.die(task.lease, task, ours=True)
    assert kinds(out) == ["Announce", "Deliver"]


@pytest.mark.parametrize("instruction", [Interrupt, Terminate, Kill])
def test_a_stopping_instruction_names_the_task_not_the_place(instruction: type) -> None:
    """So that whoever carries it out hits this task or nobody."""
    assert instruction._fields == ("task",)
