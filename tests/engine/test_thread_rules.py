"""Thread tasks, as lists of events. Role: what the rules make of what a thread cannot do; see e2e/test_thread_tasks.py."""

from __future__ import annotations

import math

import pytest
from engine_rig import KERNEL, Rig, only

from jupyter_tasks.engine.events import (
    ONE_CPU,
    CancelAsked,
    ClientGone,
    Interrupt,
    Kill,
    Recall,
    Recalled,
    Started,
    Submitted,
    Task,
    Terminate,
    ThreadsOffered,
    Tick,
    Uploaded,
    thread_slots,
)
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind, frame

SLOT = (thread_slots(KERNEL), 10_000)


class ThreadRig(Rig):
    """A rig whose kernel runs two thread tasks at a time."""

    def __init__(self) -> None:
        super().__init__(cpu=1, depth=3)
        self.event(ThreadsOffered(KERNEL, 2))

    def thread(self, *, cpus: bool = False, **options: object) -> Task:
        demand = (*ONE_CPU, SLOT) if cpus else (SLOT,)
        task = self.task(plain=False, demand=demand, thread=True, **options)
        self.event(Submitted([task]))
        return task

    def running_thread(self, **options: object) -> Task:
        task = self.thread(**options)
        self.start(task)
        assert task.state is State.RUNNING
        return task


@pytest.fixture
def rig() -> ThreadRig:
    return ThreadRig()


def test_only_as_many_run_as_the_process_offers_and_none_is_given_ahead(rig: ThreadRig) -> None:
    """What a host was given cannot run elsewhere."""
    first, second, third = (rig.thread() for _ in range(3))
    assert (first.lease is None, second.lease is None, third.lease is None) == (False, False, True)
    rig.start(first)
    rig.finish(first)
    assert third.lease is not None


def test_it_takes_no_cpu_unless_it_says_so(rig: ThreadRig) -> None:
    busy = rig.running()
    assert rig.thread().lease is not None
    counted = rig.thread(cpus=True)
    assert counted.lease is None
    rig.finish(busy)
    assert counted.lease is not None


@pytest.mark.parametrize("how", [{}, {"force": True}, {"grace": 0.0}], ids=["soft", "force", "grace"])
def test_a_cancel_asks_and_nothing_more(rig: ThreadRig, how: dict[str, object]) -> None:
    """No rung above, no deadline; it is told each time."""
    task = rig.running_thread()
    for _ in range(2):
        out = rig.event(CancelAsked(task.id, **how))
        assert only(out, Interrupt).task is task
    rig.now += 1000
    out = rig.event(Tick())
    assert not [i for i in rig.story if isinstance(i, (Terminate, Kill))]
    assert task.state is State.CANCELLING
    assert rig.scheduler.next_timer() is None


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ERROR, Kind.INTERRUPTED])
def test_whatever_it_returns_after_a_cancel_it_is_cancelled(rig: ThreadRig, kind: int) -> None:
    """Also if it had ended before it could hear of the cancel."""
    task = rig.running_thread(num_returns=2)
    rig.cancel(task)
    fd = rig.fd()
    rig.finish(task, kind, fds=(fd,) if kind == Kind.RESULT else ())
    assert task.state is State.CANCELLED
    assert rig.failure(task)["rung"] == "ask"
    assert rig.failure(task.id + 1)["type"] == "cancelled"
    assert rig.dropped() == ([fd] if kind == Kind.RESULT else [])


def test_an_interruptible_one_says_so(rig: ThreadRig) -> None:
    task = rig.running_thread(interruptible=True)
    rig.cancel(task)
    rig.stop(task)
    assert rig.failure(task)["rung"] == "interrupt"


def test_a_timeout_asks_and_the_end_is_a_timeout(rig: ThreadRig) -> None:
    task = rig.running_thread(timeout=5.0)
    rig.now += 5
    assert only(rig.event(Tick()), Interrupt).task is task
    rig.finish(task)
    assert task.state is State.FAILED
    assert rig.failure(task)["type"] == "timeout"


def test_one_that_was_given_and_not_begun_is_asked_for(rig: ThreadRig) -> None:
    """The host passes it over, or says that it has begun."""
    skipped, begun = rig.thread(), rig.thread()
    for task in (skipped, begun):
        lease = only(rig.cancel(task), Recall).lease
        rig.event(Recalled(lease, ()))
        assert task.state is State.PENDING
    rig.stop(skipped, skipped=True)
    assert rig.failure(skipped)["rung"] == "pending"
    assert only(rig.event(Started(begun.id, rig.now)), Interrupt).task is begun
    assert begun.state is State.CANCELLING


def test_a_group_s_deadline_does_not_reach_it(rig: ThreadRig) -> None:
    task = rig.running_thread()
    rig.cancel(task)
    rig.event(CancelAsked(task.id, grace=math.inf))
    assert rig.scheduler.next_timer() is None


def test_when_its_process_has_gone_all_of_its_tasks_are_over(rig: ThreadRig) -> None:
    """Those that ran, those that were given, those that waited; nothing of what it had offered stays."""
    running, given, waiting = rig.running_thread(max_retries=3), rig.thread(), rig.thread()
    idle = rig.running()
    for task in (running, given):
        assert task.lease is not None
        rig.die(task.lease, task if task is running else None)
    rig.event(ClientGone(KERNEL))
    assert {task.state for task in (running, given, waiting)} == {State.CRASHED}
    assert idle.state is State.RUNNING
    assert SLOT[0] not in rig.scheduler.total
    assert rig.scheduler.queued == 0


def test_bytes_of_a_value_that_was_in_its_process_alone_come_later(rig: ThreadRig) -> None:
    """From its owner, once; what comes from others, or too late, is closed."""
    task = rig.running_thread()
    rig.finish(task, flags=Flag.BIG)
    first, second, third = rig.fd(), rig.fd(), rig.fd()
    value = frame(Kind.RESULT, task.id, b"bytes", fds=1)
    rig.event(Uploaded(2, task.id, value, (first,)))
    rig.event(Uploaded(KERNEL, task.id, value, (second,)))
    rig.event(Uploaded(KERNEL, task.id, value, (third,)))
    assert rig.dropped() == [first, third]
    assert rig.scheduler.objects[task.id].fds == (second,)
