"""Which GPUs a task gets, how long its place keeps them, and when others get them.

Role: contract of the devices in engine/scheduler (docs/semantics.md, GPUs). No GPU, no process, no clock.
"""

from __future__ import annotations

import pytest
from engine_rig import Rig, cpus, kinds, only

from jupyter_tasks.engine.events import (
    CPU_UNITS,
    CloseLease,
    Demand,
    Gone,
    IdleAgain,
    Lease,
    Retire,
    Run,
    Submitted,
    Task,
    Tick,
    UnBlocked,
    WaitBegan,
)
from jupyter_tasks.engine.scheduler import GPU_IDLE, LEND_AFTER
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind


def gpus(amount: float, cpu: float = 1) -> Demand:
    return (*cpus(cpu), ("GPU", round(amount * CPU_UNITS)))


def on(task: Task) -> tuple[int, ...]:
    """The devices of the task's place."""
    assert task.lease is not None
    return task.lease.devices


def idle(rig: Rig, amount: float, cpu: float = 1) -> Lease:
    """A lease with devices whose task is over."""
    task = rig.running(demand=gpus(amount, cpu))
    lease = task.lease
    assert lease is not None
    rig.finish(task)
    return lease


# -- which ----------------------------------------------------------------------------------------------------------


def test_each_task_gets_a_device_of_its_own() -> None:
    rig = Rig(4, depth=1, GPU=2)
    first, second, third = rig.submit(3, demand=gpus(1))
    assert (on(first), on(second), third.lease) == ((0,), (1,), None)


def test_several_devices_for_one_task() -> None:
    rig = Rig(4, depth=1, GPU=3)
    assert on(rig.submit(demand=gpus(2))) == (0, 1)
    assert on(rig.submit(demand=gpus(1))) == (2,)


def test_a_task_without_gpus_has_no_devices() -> None:
    rig = Rig(2, GPU=1)
    assert on(rig.submit()) == ()


def test_parts_share_the_fullest_device_that_has_room() -> None:
    """So that whole ones stay whole."""
    rig = Rig(8, depth=1, GPU=2)
    parts = [rig.submit(demand=gpus(part)) for part in (0.5, 0.3, 0.25, 0.2)]
    assert [on(task) for task in parts] == [(0,), (0,), (1,), (0,)]
    assert rig.submit(demand=gpus(1)).lease is None


def test_parts_that_add_up_are_no_whole_device() -> None:
    """0.6 and 0.6 leave 0.8 of a GPU, but none with room for 0.5."""
    rig = Rig(8, depth=1, GPU=2)
    first, second = rig.submit(2, demand=gpus(0.6))
    third = rig.submit(demand=gpus(0.5))
    assert (on(first), on(second), third.lease) == ((0,), (1,), None)


def test_a_part_of_a_gpu_is_all_there_is() -> None:
    """`num_gpus=1.5`: the last device has room for a half."""
    rig = Rig(8, depth=1, GPU=1.5)
    half, whole = rig.submit(demand=gpus(0.5)), rig.submit(demand=gpus(1))
    assert (on(half), on(whole)) == ((1,), (0,))


# -- how long -------------------------------------------------------------------------------------------------------


def test_the_next_task_of_the_kind_finds_the_place_warm() -> None:
    rig = Rig(2, GPU=2)
    lease = idle(rig, 1)
    assert rig.submit(demand=gpus(1)).lease is lease


def test_a_place_with_devices_is_ended_and_its_devices_are_free_when_it_is_gone() -> None:
    """A dying process still has its memory on the device."""
    rig = Rig(2, GPU=1)
    lease = idle(rig, 1)
    other = rig.task(demand=gpus(0.6))
    out = rig.event(Submitted([other]))
    assert only(out, Retire).lease is lease
    assert other.lease is None
    assert kinds(rig.event(Submitted([rig.task(demand=gpus(0.7))]))) == []  # nothing is ended twice
    assert only(rig.event(Gone(lease)), Run).tasks == [other]
    assert on(other) == (0,)


def test_no_more_places_are_ended_than_are_needed() -> None:
    rig = Rig(8, GPU=3)
    first, second = rig.submit(2, demand=gpus(1))
    part = rig.submit(demand=gpus(0.5))
    for task in (first, second, part):
        rig.finish(task)
    out = rig.event(Submitted([rig.task(demand=gpus(0.7))]))
    assert len([one for one in out if isinstance(one, Retire)]) == 1


def test_places_are_not_ended_as_long_as_that_does_not_suffice() -> None:
    """Two GPUs are wanted, on one of them runs another task: the idle place on the other may still be used."""
    rig = Rig(8, GPU=2)
    rig.running(demand=gpus(0.7))
    idle(rig, 1)
    assert rig.event(Submitted([rig.task(demand=gpus(2))])) == []


def test_an_idle_place_is_given_up_after_a_while() -> None:
    """GPU memory that nobody uses is missed by others, perhaps by the kernel itself."""
    rig = Rig(2, GPU=1)
    lease = idle(rig, 1)
    assert rig.scheduler.next_timer() == rig.now + GPU_IDLE
    rig.now += GPU_IDLE
    assert only(rig.event(Tick()), Retire).lease is lease
    rig.event(Gone(lease))
    assert rig.scheduler.available == rig.scheduler.total
    assert rig.scheduler.next_timer() is None


def test_a_place_that_got_work_in_time_is_not_given_up() -> None:
    rig = Rig(2, GPU=1)
    idle(rig, 1)
    rig.now += GPU_IDLE - 1
    again = rig.running(demand=gpus(1))
    rig.now += 2
    assert rig.event(Tick()) == []
    rig.finish(again)
    assert rig.scheduler.next_timer() == rig.now + GPU_IDLE


def test_an_idle_place_lends_its_processor_and_stays() -> None:
    """A task that needs a CPU and no GPU is no reason to throw a warm process away."""
    rig = Rig(1, depth=1, GPU=1)
    lease = idle(rig, 1)
    plain = rig.task()
    out = rig.event(Submitted([plain]))
    assert kinds(out) == ["Run"]
    assert plain.lease is not lease
    waiting = rig.submit(demand=gpus(1))
    assert waiting.lease is None  # it has its device, and no processor
    rig.finish(plain)
    assert waiting.lease is lease


def test_a_plain_place_is_closed_and_used_again_as_ever() -> None:
    rig = Rig(1, GPU=1)
    rig.finish(rig.submit())
    out = rig.event(Submitted([rig.task(demand=gpus(1))]))
    assert kinds(out) == ["CloseLease", "Run"]


def test_a_place_that_died_gives_its_devices_back_when_all_of_it_is_gone() -> None:
    rig = Rig(4, depth=1, GPU=1)
    task = rig.running(demand=gpus(1), max_retries=0)
    other = rig.submit(demand=gpus(1))
    lease = task.lease
    assert lease is not None
    rig.die(lease, task, gone=False)
    assert other.lease is None
    rig.event(Gone(lease))
    assert on(other) == (0,)


def test_what_a_task_has_left_behind_keeps_no_device() -> None:
    """It may stay for ever. Its place is never used again."""
    rig = Rig(4, depth=1, GPU=1)
    task = rig.running(demand=gpus(1))
    lease = task.lease
    assert lease is not None
    rig.finish(task, flags=Flag.LINGERS)
    other = rig.submit(demand=gpus(1))
    assert on(other) == (0,)
    assert other.lease is not lease
    assert only(rig.event(IdleAgain(lease)), Retire).lease is lease
    assert rig.told(CloseLease) == []


# -- tasks that wait ------------------------------------------------------------------------------------------------


def waits(rig: Rig, task: Task) -> Lease:
    lease = task.lease
    assert lease is not None
    rig.event(WaitBegan(lease))
    return lease


def nothing_happens(rig: Rig) -> None:
    assert rig.scheduler.next_timer() == rig.now + LEND_AFTER
    rig.now += LEND_AFTER
    rig.event(Tick())


def test_a_task_that_waits_keeps_its_device() -> None:
    """What it has put there is still there. That its wait is over is heard a moment after the other's end."""
    rig = Rig(1, depth=1, GPU=1)
    task = rig.running(demand=gpus(1))
    lease = waits(rig, task)
    child = rig.running(parent=task.id)  # its processor is free
    other = rig.submit(demand=gpus(1))
    assert other.lease is None
    rig.finish(child)
    rig.event(UnBlocked(lease))
    assert other.lease is None
    assert rig.scheduler.next_timer() is None
    rig.finish(task)
    assert other.lease is lease


def test_nested_tasks_with_gpus_do_not_deadlock() -> None:
    """Nothing else runs that could end: then the device of the one that waits is lent."""
    rig = Rig(2, depth=1, GPU=1)
    task = rig.running(demand=gpus(1))
    lease = waits(rig, task)
    child = rig.submit(demand=gpus(1), parent=task.id)
    assert child.lease is None
    nothing_happens(rig)
    assert on(child) == (0,)
    assert child.lease is not lease
    borrower = child.lease
    rig.finish(child)
    out = rig.event(UnBlocked(lease))
    assert only(out, Retire).lease is borrower  # idle, with memory on a device that is in use again
    assert borrower is not None
    rig.event(Gone(borrower))
    rig.finish(task)
    assert rig.submit(demand=gpus(1)).lease is lease


def test_a_device_that_is_used_twice_gets_no_third_task() -> None:
    """The one that lent it goes on before the other is done."""
    rig = Rig(4, depth=1, GPU=1)
    task = rig.running(demand=gpus(1))
    lease = waits(rig, task)
    child = rig.submit(demand=gpus(1), parent=task.id)
    nothing_happens(rig)
    rig.start(child)
    borrower = child.lease
    assert borrower is not None
    rig.event(UnBlocked(lease))
    more = rig.submit(demand=gpus(1))
    out = rig.finish(child)
    assert more.lease is None
    assert only(out, Retire).lease is borrower
    rig.event(Gone(borrower))
    assert more.lease is None
    rig.finish(task)
    assert more.lease is lease


@pytest.mark.parametrize("depth", [1, 2])
def test_a_chain_of_waiting_tasks_comes_to_its_end(depth: int) -> None:
    rig = Rig(2, depth=depth, GPU=1)
    chain = [rig.running(demand=gpus(1))]
    leases = []
    for _ in range(4):
        leases.append(waits(rig, chain[-1]))
        chain.append(rig.submit(demand=gpus(1), parent=chain[-1].id))
        nothing_happens(rig)
        rig.start(chain[-1])
    for task in reversed(chain):
        rig.finish(task)
        for retire in rig.told(Retire):
            rig.event(Gone(retire.lease))
        if leases:
            rig.event(UnBlocked(leases.pop()))
    assert [task.state for task in chain] == [State.COMPLETED] * 5


# -- order ----------------------------------------------------------------------------------------------------------


def test_a_big_demand_is_not_starved_by_small_ones() -> None:
    rig = Rig(8, depth=1, GPU=2)
    small = rig.running(demand=gpus(1))
    big = rig.submit(demand=gpus(2))
    younger = rig.submit(demand=gpus(1, 0.5))
    assert younger.lease is None
    lease = small.lease
    assert lease is not None
    rig.finish(small)
    rig.event(Gone(lease))
    assert on(big) == (0, 1)
    assert younger.lease is None


def test_a_cancel_before_the_device_is_free_leaves_nothing_taken() -> None:
    rig = Rig(4, depth=1, GPU=1)
    lease = idle(rig, 1)
    wanted = rig.submit(demand=gpus(0.5))
    rig.cancel(wanted)
    rig.event(Gone(lease))
    assert rig.failure(wanted)["type"] == "cancelled"
    assert rig.scheduler.available == rig.scheduler.total
    assert rig.told(Run)[-1].lease is lease


def test_an_error_frees_the_place_like_a_value() -> None:
    rig = Rig(4, depth=1, GPU=1)
    task = rig.running(demand=gpus(1))
    lease = task.lease
    rig.finish(task, Kind.ERROR)
    assert rig.submit(demand=gpus(1)).lease is lease
