"""Who runs next, where, and in which packet: the scheduler as a list of events in and a list of instructions out.

Role: contract of the dispatch half of engine/scheduler.
"""

from __future__ import annotations

import pytest
from engine_rig import Rig, cpus, kinds, only

from jupyter_tasks.engine.events import (
    EVERYTHING,
    ONE_PACKET,
    CloseLease,
    Finished,
    IdleAgain,
    Recall,
    Recalled,
    Run,
    Started,
    Submitted,
    Task,
    UnBlocked,
    WaitBegan,
)
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind

TINY = 4  # log2 us: a task of 16 us


def known(rig: Rig, fn: int = 1, log2: int = TINY) -> None:
    """Lets the rules know how long the function takes."""
    rig.finish(rig.submit(fn=fn), log2=log2)


# -- order --------------------------------------------------------------------------------------------------------


def test_tasks_begin_in_the_order_they_were_submitted() -> None:
    rig = Rig(1, depth=1)
    tasks = rig.submit(5)
    for task in tasks:
        rig.finish(task, log2=15)
    assert rig.ran() == [[task.id] for task in tasks]


def test_order_holds_between_queues_of_different_demands() -> None:
    rig = Rig(2, depth=1)
    first = rig.submit(demand=cpus(2))
    second = rig.submit(demand=cpus(1))
    third = rig.submit(demand=cpus(2))
    rig.finish(first)
    rig.finish(second)
    rig.finish(third)
    assert rig.ran() == [[first.id], [second.id], [third.id]]


def test_order_holds_within_one_burst() -> None:
    """A burst of submissions is one event; what it gives ahead of time must not pass an older task by."""
    rig = Rig(2)
    small = [rig.task() for _ in range(2)]
    big = rig.task(demand=cpus(2))
    younger = [rig.task() for _ in range(4)]
    rig.event(Submitted([*small, big, *younger]))
    for task in small:
        rig.finish(task)
    assert rig.ran() == [[small[0].id], [small[1].id], [big.id]]
    rig.finish(big)
    assert rig.ran()[3][0] == younger[0].id


def test_cells_begin_before_queued_functions() -> None:
    rig = Rig(1, depth=1)
    running = rig.submit()
    function = rig.submit()
    cell = rig.submit(kind="cell", fn=0, watched=True, plain=False)
    rig.finish(running)
    assert rig.ran() == [[running.id], [cell.id]]
    rig.finish(cell)
    assert rig.ran()[-1] == [function.id]


def test_cells_keep_their_own_order() -> None:
    rig = Rig(1, depth=1)
    running = rig.submit()
    cells = rig.submit(3, kind="cell", fn=0, watched=True, plain=False)
    rig.finish(running)
    for cell in cells:
        rig.finish(cell)
    assert rig.ran()[1:] == [[cell.id] for cell in cells]


def test_a_retry_goes_before_what_was_submitted_later() -> None:
    rig = Rig(1, depth=1)
    first = rig.submit()
    rig.submit()
    rig.die(first.lease, first)
    assert rig.ran() == [[first.id], [first.id]]


# -- leases, prefetch and packets -----------------------------------------------------------------------------------


def test_each_processor_gets_a_lease_before_any_gets_work_ahead_of_time() -> None:
    rig = Rig(2)
    a, b, c = rig.submit(3)
    assert rig.ran() == [[a.id], [b.id], [c.id]]
    assert a.lease is not b.lease
    assert c.lease is a.lease


def test_a_lease_is_given_no_more_ahead_than_the_backend_can_take() -> None:
    rig = Rig(2, depth=2)
    rig.submit(10)
    assert [len(lease.packets) for lease in rig.scheduler.leases.values()] == [2, 2]
    assert rig.scheduler.queued == 6


def test_a_backend_without_prefetch_gets_one_at_a_time() -> None:
    rig = Rig(2, depth=1)
    rig.submit(10)
    assert [len(lease.packets) for lease in rig.scheduler.leases.values()] == [1, 1]


def test_the_lease_is_used_again_so_a_hot_loop_takes_and_gives_nothing() -> None:
    rig = Rig(2)
    first = rig.submit()
    lease = first.lease
    rig.finish(first)
    again = rig.submit()
    assert again.lease is lease
    assert kinds(rig.story) == ["Run", "Deliver", "Run"]


def test_a_cell_is_never_given_ahead_of_time() -> None:
    """Its board must not say "given" while it waits behind somebody."""
    rig = Rig(1)
    rig.submit()
    cell = rig.submit(kind="cell", fn=0, watched=True, plain=False)
    assert cell.lease is None


def test_a_function_of_unknown_duration_travels_alone() -> None:
    rig = Rig(1)
    rig.submit(40)
    assert [len(packet) for packet in rig.ran()] == [1, 1]


@pytest.mark.parametrize(
    ("log2", "backlog", "size"),
    [
        (0, 1000, 32),  # below a microsecond: the most a packet holds
        (5, 1000, 32),  # 32 us: 1024 / 32
        (6, 1000, 16),  # 64 us
        (7, 1000, 8),
        (9, 1000, 2),
        (10, 1000, 1),  # a millisecond fills a packet
        (15, 1000, 1),
        (0, 40, 20),  # the backlog, shared among twice the leases (here one lease)
        (0, 4, 2),
        (0, 1, 1),
    ],
)
def test_a_packet_holds_about_a_millisecond_and_a_fair_share_of_the_backlog(log2: int, backlog: int, size: int) -> None:
    rig = Rig(1)
    known(rig, log2=log2)
    before = len(rig.ran())
    rig.submit(backlog)
    assert len(rig.ran()[before]) == size


def test_a_packet_ends_before_its_bytes_fill_the_socket() -> None:
    rig = Rig(1)
    known(rig)
    before = len(rig.ran())
    rig.submit(100, call=b"x" * 25_000)
    assert len(rig.ran()[before]) == 2  # 60,000 bytes at most


def test_a_task_with_options_or_descriptors_travels_alone() -> None:
    rig = Rig(1, depth=1)
    known(rig)
    plain = [rig.task() for _ in range(2)]
    special = rig.task(plain=False)
    rest = [rig.task() for _ in range(40)]
    holder = rig.submit()
    rig.event(Submitted([*plain, special, *rest]))
    rig.finish(holder)
    packets = rig.ran()[2:]
    assert packets[0] == [task.id for task in plain]  # it ends where the special one begins
    rig.event(Finished(plain[0].lease, [rig.end(task) for task in plain]))
    assert rig.ran()[-1] == [special.id]


def test_one_duration_for_each_function() -> None:
    rig = Rig(1)
    known(rig, fn=1, log2=TINY)
    known(rig, fn=2, log2=12)
    before = len(rig.ran())
    slow = rig.submit(50, fn=2)
    assert len(rig.ran()[before]) == 1
    for task in slow:
        if task.lease is not None:
            rig.cancel(task)
    tiny = [rig.task(fn=1) for _ in range(500)]
    fresh = Rig(1)
    known(fresh, fn=1, log2=TINY)
    fresh.event(Submitted(tiny))
    assert len(fresh.ran()[-1]) == 32


@pytest.mark.parametrize("slow", [2, 3], ids=["slow", "unknown"])
def test_a_slow_function_never_travels_behind_tiny_ones(slow: int) -> None:
    """Or whoever is behind it in the packet would wait for it, whatever else is free."""
    rig = Rig(1, depth=1)
    known(rig, fn=1, log2=TINY)
    known(rig, fn=2, log2=14)
    holder = rig.submit(fn=2)
    tasks = [rig.task(fn=slow if i == 5 else 1) for i in range(200)]
    rig.event(Submitted(tasks))
    before = len(rig.ran())
    rig.finish(holder, log2=14)
    assert rig.ran()[before:] == [[task.id for task in tasks[:5]]]
    rig.event(Finished(tasks[0].lease, [rig.end(task) for task in tasks[:5]]))
    assert rig.ran()[before + 1] == [tasks[5].id]


def test_functions_that_are_as_quick_share_a_packet() -> None:
    rig = Rig(1, depth=1)
    known(rig, fn=1, log2=TINY)
    known(rig, fn=2, log2=TINY)
    holder = rig.submit()
    rig.event(Submitted([rig.task(fn=1 + i % 2) for i in range(200)]))
    rig.finish(holder)
    assert len(rig.ran()[-1]) == 32


def test_the_last_duration_decides() -> None:
    rig = Rig(1)
    known(rig, log2=TINY)
    known(rig, log2=12)
    before = len(rig.ran())
    rig.submit(500)
    assert len(rig.ran()[before]) == 1


# -- taking back ------------------------------------------------------------------------------------------------------


def test_an_idle_lease_gets_what_another_was_given_ahead_of_time() -> None:
    rig = Rig(2)
    a, b, c = rig.submit(3)  # c waits behind a
    recall = only(rig.finish(b), Recall)
    assert recall == Recall(a.lease, ONE_PACKET)
    rig.recalled(a.lease, c)
    assert c.lease is b.lease or c.lease is not a.lease
    assert rig.ran()[-1] == [c.id]


def test_a_task_behind_another_is_taken_back_when_a_slot_becomes_free() -> None:
    """1. b's process dies before it begins   2. b is given to the only lease left, behind a   3. the dead one is gone,
    its slot is free: b must not wait for a."""
    rig = Rig(2)
    a, b = rig.submit(2)
    dead = b.lease
    rig.die(dead, gone=False)
    assert b.lease is a.lease
    out = rig.die(dead, gone=True)
    assert Recall(a.lease, ONE_PACKET) in out
    rig.recalled(a.lease, b)
    assert b.lease is not a.lease


def test_nothing_is_recalled_twice_while_the_answer_is_out() -> None:
    rig = Rig(3)
    a, b, c, d = rig.submit(4)  # d waits behind a
    rig.finish(b)
    rig.finish(c)
    assert len(rig.told(Recall)) == 1
    rig.recalled(a.lease)  # too late: the worker had it
    assert d.lease is a.lease


def test_what_comes_back_is_first_in_line() -> None:
    rig = Rig(2)
    known(rig)
    tasks = rig.submit(200)
    lease = tasks[0].lease
    back = [task for task in tasks if task.lease is lease and task.id in lease.packets[-1]]
    rig.recalled(lease, *back)
    assert rig.ran()[-1][0] == back[0].id


def test_what_was_recalled_but_is_not_of_the_lease_any_more_is_left_alone() -> None:
    """A take-back from the socket of a dead worker finds tasks that were given again when it died.

    1. a runs, b waits behind it in the same socket   2. the process dies: b is given to another lease
    3. somebody cancels a, so what is in the dead socket is taken back: b, which runs elsewhere by now
    """
    rig = Rig(1)
    a, b = rig.submit(2)
    dead = a.lease
    rig.die(dead, a, gone=False)
    rig.cancel(a)
    rig.event(Recalled(dead, [b.id]))
    rig.die(dead, gone=True)
    rig.finish(b)
    assert b.state is State.COMPLETED
    assert sum(packet.count(b.id) for packet in rig.ran()) == 2  # once before, once after; not three times


def test_what_stands_behind_a_slow_task_goes_elsewhere_and_is_passed_over() -> None:
    """1. a packet of many is read, its first task takes long   2. the rest is handed back   3. it runs elsewhere, and
    only when the slow one ends the first worker says that it has passed the rest over."""
    rig = Rig(2)
    known(rig)
    first, *rest = tasks = rig.submit(100)
    lease = first.lease
    packet = [task for task in tasks if task.id in lease.packets[0]]
    assert len(packet) > 10
    before = len(rig.ran())
    rig.event(Recalled(lease, [task.id for task in packet[1:]], True))
    other = next(one for one in rig.scheduler.leases.values() if one is not lease)
    for task in [task for task in rest if task.lease is other and task not in packet]:
        rig.finish(task)
    assert all(task.lease is other for task in packet[1:3])
    assert len(rig.ran()) > before
    rig.finish(packet[1])
    assert packet[1].state is State.COMPLETED
    rig.finish(first)
    assert not any(run.lease is lease for run in rig.told(Run)[before:]), "given to a lease with ghosts"
    skipped = [rig.end(task, Kind.INTERRUPTED, flags=Flag.SKIPPED) for task in packet[1:]]
    ran = len(rig.ran())
    rig.event(Finished(lease, skipped))
    assert packet[2].lease is other  # nobody was given a second time
    assert not lease.ghosts
    assert all(run.lease is lease for run in rig.told(Run)[ran:])  # it is of use again


def test_a_worker_that_dies_before_it_has_passed_its_ghosts_over_runs_none_twice() -> None:
    rig = Rig(2)
    known(rig)
    tasks = rig.submit(100, max_retries=0)
    first = tasks[0]
    lease = first.lease
    packet = [task for task in tasks if task.id in lease.packets[0]]
    rig.event(Recalled(lease, [task.id for task in packet[1:]], True))
    rig.die(lease, first)
    ran = [id for given in rig.ran() for id in given]
    assert all(ran.count(task.id) <= 2 for task in packet[1:])
    assert first.state is State.CRASHED
    for _ in range(200):
        for task in tasks:
            if task.lease is not None and task.lease.packets and task.id in task.lease.packets[0]:
                rig.finish(task)
    assert all(task.state is State.COMPLETED for task in tasks[1:])


def test_a_task_that_was_handed_back_can_be_cancelled_wherever_it_is() -> None:
    rig = Rig(1)
    known(rig)
    tasks = rig.submit(100)
    lease = tasks[0].lease
    packet = [task for task in tasks if task.id in lease.packets[0]]
    rig.event(Recalled(lease, [task.id for task in packet[1:]], True))
    rig.cancel(packet[1])
    assert packet[1].state is State.CANCELLED
    skipped = [rig.end(task, Kind.INTERRUPTED, flags=Flag.SKIPPED) for task in packet[1:]]
    rig.event(Finished(lease, [rig.end(tasks[0]), *skipped]))
    assert packet[1].id not in rig.ran()[-1]
    assert packet[2].lease is not None


# -- resources ----------------------------------------------------------------------------------------------------------


def test_fractions_add_up_exactly() -> None:
    rig = Rig(1, depth=1)
    tenths = rig.submit(11, demand=cpus(0.1))
    assert [task.lease is not None for task in tenths] == [True] * 10 + [False]
    assert rig.scheduler.available["CPU"] == 0


def test_different_demands_share_what_there_is() -> None:
    rig = Rig(2, depth=1)
    rig.submit(demand=cpus(1.5))
    rig.submit(demand=cpus(0.5))
    rig.submit(demand=cpus(0.5))
    assert len(rig.ran()) == 2
    assert rig.scheduler.available["CPU"] == 0


def test_named_resources_are_counted_too() -> None:
    rig = Rig(4, depth=1, GPU=1, license=2)
    gpu = rig.submit(2, demand=(("CPU", 10_000), ("GPU", 10_000)))
    licensed = rig.submit(3, demand=(("license", 10_000),))
    assert [task.lease is not None for task in gpu] == [True, False]
    assert [task.lease is not None for task in licensed] == [True, True, False]


def test_no_processors_wanted_runs_at_once() -> None:
    """`--cpus 0` does not wait for a slot."""
    rig = Rig(1, depth=1)
    rig.submit()
    free = rig.submit(3, demand=())
    assert all(task.lease is not None for task in free)
    assert len({id(task.lease) for task in free}) == 3


def test_a_lease_of_nothing_is_given_up_when_it_is_idle() -> None:
    """It holds no resource that anybody could reclaim, so nothing else would ever end it."""
    rig = Rig(1, depth=1)
    free = rig.submit(20, demand=())
    for task in free:
        rig.finish(task)
    assert len(rig.scheduler.leases) <= 1


def test_an_idle_lease_is_reclaimed_for_another_demand() -> None:
    rig = Rig(2)
    a, b = rig.submit(2)
    rig.finish(a)
    rig.finish(b)
    out = rig.event(Submitted([rig.task(demand=cpus(2))]))
    assert kinds(out) == ["CloseLease", "CloseLease", "Run"]


def test_a_busy_lease_is_not_reclaimed() -> None:
    rig = Rig(2)
    rig.submit(2)
    out = rig.event(Submitted([rig.task(demand=cpus(2))]))
    assert out == []


def test_a_big_task_is_not_starved_by_a_stream_of_small_ones() -> None:
    rig = Rig(2)
    small = rig.submit(6)
    big = rig.submit(demand=cpus(2))
    younger = rig.submit(50)
    done: list[Task] = []
    while big.lease is None:
        running = next(task for task in small + younger if task.lease is not None and task not in done)
        done.append(running)
        rig.finish(running)
        assert len(done) <= len(small), "a younger task was run before the big one"
    assert not any(task.lease is not None or task in done for task in younger)


def test_a_small_task_of_another_kind_goes_past_a_waiting_big_one() -> None:
    """Only what the big one lacks is kept for it."""
    rig = Rig(2, depth=1, license=1)
    rig.submit()
    rig.submit(demand=cpus(2))
    other = rig.submit(demand=(("license", 10_000),))
    assert other.lease is not None


# -- dependencies -----------------------------------------------------------------------------------------------------------


def test_a_task_waits_for_its_dependencies() -> None:
    rig = Rig(2)
    a, b = rig.submit(2)
    both = rig.submit(deps=[a.id, b.id])
    rig.finish(a)
    assert both.lease is None
    rig.finish(b)
    assert rig.ran()[-1] == [both.id]


def test_a_dependency_that_is_there_does_not_hold_it_up() -> None:
    rig = Rig(2)
    a = rig.submit()
    rig.finish(a)
    assert rig.submit(deps=[a.id]).lease is not None


def test_the_same_dependency_twice_counts_twice() -> None:
    rig = Rig(2)
    a = rig.submit()
    twice = rig.submit(deps=[a.id, a.id])
    rig.finish(a)
    assert twice.lease is not None
    rig.finish(twice)
    assert twice.state is State.COMPLETED


def test_a_failed_dependency_fails_all_that_follow_with_the_root_cause() -> None:
    rig = Rig(2)
    root = rig.submit()
    child = rig.submit(deps=[root.id])
    grandchild = rig.submit(deps=[child.id])
    rig.fail(root)
    assert (child.state, grandchild.state) == (State.FAILED, State.FAILED)
    assert rig.outcomes()[grandchild.id] == [(Kind.ERROR, b"boom")]
    assert rig.ran() == [[root.id]]


def test_a_cancelled_dependency_cancels_all_that_follow() -> None:
    rig = Rig(2)
    root = rig.running()
    child = rig.submit(deps=[root.id])
    grandchild = rig.submit(deps=[child.id])
    rig.cancel(root, reason="no need")
    rig.stop(root)
    assert (child.state, grandchild.state) == (State.CANCELLED, State.CANCELLED)
    assert rig.failure(grandchild)["type"] == "cancelled"
    assert rig.failure(grandchild)["reason"] == "no need"


def test_a_further_return_value_of_a_cancelled_task_cancels_its_dependents_too() -> None:
    rig = Rig(2)
    root = rig.running(num_returns=2, plain=False)
    dependent = rig.submit(deps=[root.id + 1])
    rig.cancel(root)
    rig.stop(root)
    assert dependent.state is State.CANCELLED


def test_a_dependency_that_failed_before_the_submission_counts_the_same() -> None:
    rig = Rig(2)
    root = rig.submit()
    rig.fail(root)
    late = rig.submit(deps=[root.id])
    assert late.state is State.FAILED
    assert rig.outcomes()[late.id] == [(Kind.ERROR, b"boom")]


def test_a_dependency_nobody_knows_is_an_error_not_a_wait() -> None:
    rig = Rig(2)
    task = rig.submit(deps=[777])
    assert task.state is State.FAILED
    assert rig.failure(task)["type"] == "lost"


def test_a_crashed_dependency_fails_the_dependent() -> None:
    rig = Rig(2)
    root = rig.submit(max_retries=0)
    child = rig.submit(deps=[root.id])
    rig.die(root.lease, root)
    assert child.state is State.FAILED
    assert rig.failure(child)["type"] == "crashed"
    assert rig.failure(child)["task_id"] == "1"  # the root's


def test_a_dependent_of_a_retried_task_goes_on_waiting() -> None:
    rig = Rig(1)
    root = rig.submit()
    child = rig.submit(deps=[root.id])
    rig.die(root.lease, root)
    assert child.state is State.PENDING
    rig.finish(root)
    assert child.lease is not None


# -- crashes and retries --------------------------------------------------------------------------------------------------------


def test_a_crash_is_retried_as_often_as_allowed() -> None:
    rig = Rig(1)
    task = rig.submit(max_retries=2)
    for _ in range(3):
        rig.die(task.lease, task)
    assert rig.ran() == [[task.id]] * 3
    assert task.state is State.CRASHED
    assert rig.failure(task) == {
        "task_id": "1",
        "name": "task",
        "type": "crashed",
        "exit_code": None,
        "signal_name": "SIGSEGV",
    }


def test_a_retry_waits_until_nothing_of_the_first_attempt_is_left() -> None:
    rig = Rig(1)
    task = rig.submit(max_retries=1)
    lease = task.lease
    rig.die(lease, task, gone=False)
    assert rig.ran() == [[task.id]]
    rig.die(lease, gone=True)
    assert rig.ran() == [[task.id]] * 2


def test_tasks_behind_a_crash_run_elsewhere_and_it_costs_them_no_retry() -> None:
    rig = Rig(1)
    first, second = rig.submit(2, max_retries=0)
    rig.die(first.lease, first)
    assert first.state is State.CRASHED
    rig.finish(second)
    assert (second.state, second.attempt) == (State.COMPLETED, 0)


def test_tasks_behind_a_crash_keep_their_order() -> None:
    rig = Rig(1, depth=2)
    known(rig)
    tasks = rig.submit(60, max_retries=0)
    lease = tasks[0].lease
    behind = [task.id for task in tasks if task.lease is lease][1:]
    assert len(behind) > 20
    rig.die(lease, tasks[0])
    again = [id for packet in rig.ran()[3:] for id in packet]
    assert again == behind[: len(again)]


def test_what_ended_before_the_crash_is_not_run_again() -> None:
    rig = Rig(1)
    known(rig)
    tasks = rig.submit(100, max_retries=3)
    lease = tasks[0].lease
    packet = [task for task in tasks if task.id in lease.packets[0]]
    assert len(packet) > 10
    done, crashed, rest = packet[:4], packet[4], packet[5:]
    rig.event(Finished(lease, [rig.end(task) for task in done]))
    rig.die(lease, crashed)
    ran = [id for given in rig.ran() for id in given]
    assert [ran.count(task.id) for task in done] == [1] * 4
    assert ran.count(crashed.id) == 2
    assert all(ran.count(task.id) >= 1 for task in rest)
    assert [task.attempt for task in rest] == [0] * len(rest)


def test_a_worker_that_dies_with_nothing_to_do_harms_nobody() -> None:
    rig = Rig(1)
    task = rig.submit()
    lease = task.lease
    rig.finish(task)
    rig.die(lease, task)
    assert task.state is State.COMPLETED
    assert rig.submit().lease is not lease


def test_a_retryable_error_is_retried_and_others_are_not() -> None:
    rig = Rig(1)
    task = rig.submit(max_retries=1)
    rig.fail(task, retryable=True)
    assert rig.ran() == [[task.id]] * 2
    rig.fail(task, retryable=True)
    assert task.state is State.FAILED
    other = rig.submit(max_retries=1)
    rig.fail(other)
    assert other.state is State.FAILED


def test_an_error_and_a_crash_share_the_count() -> None:
    rig = Rig(1)
    task = rig.submit(max_retries=2)
    rig.fail(task, retryable=True)
    rig.die(task.lease, task)
    assert task.attempt == 2
    rig.fail(task, retryable=True)
    assert task.state is State.FAILED


def test_no_retry_after_a_cancel() -> None:
    rig = Rig(1)
    raised = rig.running(max_retries=5)
    rig.cancel(raised)
    rig.fail(raised, retryable=True)
    assert raised.state is State.FAILED
    crashed = rig.running(max_retries=5)
    rig.cancel(crashed)
    rig.die(crashed.lease, crashed)
    assert crashed.state is State.CRASHED
    assert rig.ran() == [[raised.id], [crashed.id]]


def test_an_attempt_given_back_unbegun_is_given_again_and_costs_no_retry() -> None:
    rig = Rig(1)
    task = rig.submit(max_retries=0)
    rig.stop(task, skipped=True)
    assert rig.ran() == [[task.id]] * 2
    rig.finish(task)
    assert (task.state, task.attempt) == (State.COMPLETED, 0)


# -- waiting inside a task -----------------------------------------------------------------------------------------------------------


def test_a_task_that_waits_gives_its_slot_to_others() -> None:
    rig = Rig(1)
    parent = rig.running()
    child = rig.submit()
    assert rig.told(Run)[-1].lease is parent.lease  # ahead of time, behind its parent: that would never run
    out = rig.event(WaitBegan(parent.lease))
    assert only(out, Recall) == Recall(parent.lease, EVERYTHING)
    rig.recalled(parent.lease, child)
    assert child.lease is not parent.lease
    assert rig.ran()[-1] == [child.id]


def test_it_takes_its_slot_back_at_once_and_nothing_new_starts_until_the_sum_fits() -> None:
    rig = Rig(1, depth=1)
    parent = rig.running()
    rig.event(WaitBegan(parent.lease))
    child, other = rig.submit(2)
    assert child.lease is not None
    rig.event(UnBlocked(parent.lease))
    assert rig.scheduler.available["CPU"] == -10_000
    assert kinds(rig.finish(child)) == ["Deliver", "CloseLease"]
    assert other.lease is None
    rig.finish(parent)
    assert other.lease is not None


def test_waiting_in_several_threads_is_one_wait() -> None:
    rig = Rig(1, depth=1)
    parent = rig.running()
    rig.event(WaitBegan(parent.lease))
    rig.event(WaitBegan(parent.lease))
    rig.event(UnBlocked(parent.lease))
    assert rig.scheduler.available["CPU"] == 0
    rig.event(UnBlocked(parent.lease))
    assert rig.scheduler.available["CPU"] == 0


def test_a_wait_whose_end_was_never_told_ends_with_the_task() -> None:
    """An interrupt may hit the worker between "I wait" and the place where it would say "I go on"."""
    rig = Rig(1, depth=1)
    parent = rig.running()
    lease = parent.lease
    rig.event(WaitBegan(lease))
    rig.cancel(parent)
    rig.stop(parent)
    assert rig.submit().lease is lease


def test_a_thread_that_still_waits_when_its_task_is_over_holds_no_slot() -> None:
    rig = Rig(1, depth=1)
    task = rig.running()
    lease = task.lease
    rig.event(WaitBegan(lease))
    rig.finish(task, flags=Flag.LINGERS)
    rig.event(UnBlocked(lease))
    assert rig.scheduler.available["CPU"] == 10_000
    assert rig.submit().lease is not lease


def test_a_waiting_task_that_dies_gives_back_nothing_twice() -> None:
    rig = Rig(1)
    parent = rig.running(max_retries=0)
    rig.event(WaitBegan(parent.lease))
    rig.die(parent.lease, parent)
    rig.event(UnBlocked(parent.lease) if parent.lease else Started(parent.id, 0))
    assert rig.scheduler.available["CPU"] == 10_000


def test_a_lease_that_is_to_go_gets_no_tasks_after_its_wait() -> None:
    rig = Rig(1, depth=1)
    task = rig.running()
    lease = task.lease
    rig.event(WaitBegan(lease))
    rig.cancel(task)
    rig.stop(task, tainted=True)  # Retire is out; Gone is not here yet
    rig.event(UnBlocked(lease))
    later = rig.submit()
    assert later.lease is not lease


# -- what a finished task leaves running -------------------------------------------------------------------------------------------------


def test_a_task_that_leaves_something_keeps_its_lease_but_not_its_slot() -> None:
    rig = Rig(1)
    task, behind = rig.submit(2)
    lease = task.lease
    out = rig.finish(task, flags=Flag.LINGERS)
    assert task.state is State.COMPLETED
    assert task.lease is lease
    assert lease.lingering is task
    assert only(out, Recall) == Recall(lease, EVERYTHING)
    rig.recalled(lease, behind)
    assert behind.lease is not lease


def test_when_it_has_ended_the_place_may_serve_another() -> None:
    rig = Rig(1)
    task = rig.submit()
    lease = task.lease
    rig.finish(task, flags=Flag.LINGERS)
    assert kinds(rig.event(IdleAgain(lease))) == ["CloseLease"]
    assert task.lease is None
    assert rig.scheduler.leases == {}


def test_a_lingering_process_that_dies_changes_no_outcome() -> None:
    rig = Rig(1)
    task = rig.submit()
    lease = task.lease
    rig.finish(task, flags=Flag.LINGERS)
    rig.die(lease, task)
    assert task.state is State.COMPLETED
    assert task.lease is None
    assert rig.scheduler.leases == {}


def test_close_is_never_asked_for_a_lease_with_work() -> None:
    rig = Rig(2)
    known(rig)
    tasks = rig.submit(300)
    big = rig.submit(demand=cpus(2))
    for task in tasks:
        if task.lease is not None:
            for close in [i for i in rig.finish(task) if isinstance(i, CloseLease)]:
                assert not close.lease.packets
    assert big.lease is not None


def test_what_running_tasks_have_submitted_comes_first_and_deeper_before_that() -> None:
    """Or all roots would begin, and wait for their children, before the first child runs: a process for each."""
    rig = Rig(cpu=1, depth=1)
    roots = rig.submit(3)
    rig.start(roots[0])
    child = rig.submit(parent=roots[0].id, owner=2)
    rig.event(WaitBegan(roots[0].lease))
    assert child.lease is not None
    assert roots[1].lease is None
    rig.start(child)
    grandchild = rig.submit(parent=child.id, owner=3)
    sibling = rig.submit(parent=roots[0].id, owner=2)
    rig.event(WaitBegan(child.lease))
    assert grandchild.lease is not None
    rig.start(grandchild)
    rig.finish(grandchild)
    assert (sibling.lease is not None, roots[1].lease) == (True, None)


def test_queues_of_many_depths_are_not_kept() -> None:
    """A long chain of tasks leaves nothing that each dispatch would look at."""
    rig = Rig(cpu=1)
    task = rig.running()
    for _ in range(200):
        rig.event(WaitBegan(task.lease))
        task = rig.submit(parent=task.id, owner=2)
        rig.start(task)
    assert len(rig.scheduler._queues) < 50
