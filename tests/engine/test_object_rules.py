"""Who holds what, and when a value is freed: at once after its last holder has gone, and never before.

Role: contract of the objects half of engine/scheduler (docs/semantics.md, Values: "a value's life").
"""

from __future__ import annotations

from engine_rig import KERNEL, Rig, only

from jupyter_tasks.engine.events import (
    ClientGone,
    Contains,
    DeliverValue,
    Drop,
    Entry,
    Fetched,
    Finished,
    Held,
    Instruction,
    Promise,
    Put,
    Released,
)
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import HEADER, HEADER_SIZE, Kind, frame, from_json

WORKER = 7  # a client that is not the kernel


def stored(rig: Rig, *, owner: int = KERNEL, id: int = 900) -> Entry:
    """An object made by `put`, with shared memory."""
    entry = Entry(id, owner)
    entry.kind = Kind.RESULT
    entry.frame = b"frame"
    entry.fds = (rig.fd(),)
    rig.event(Put(entry))
    return entry


def test_a_value_is_freed_at_once_when_its_ref_is_dropped() -> None:
    rig = Rig()
    task = rig.submit()
    fd = rig.fd()
    rig.finish(task, fds=(fd,))
    assert task.id in rig.scheduler.objects
    out = rig.event(Released(KERNEL, [task.id]))
    assert only(out, Drop).fds == (fd,)
    assert task.id not in rig.scheduler.objects
    assert task.frame == b""  # the history keeps the record, never the value


def test_the_record_stays_in_the_history_without_the_value() -> None:
    rig = Rig()
    task = rig.submit()
    rig.finish(task)
    rig.event(Released(KERNEL, [task.id]))
    assert rig.scheduler.find(task.id) is task
    assert (task.frame, task.call, task.fds) == (b"", b"", ())


def test_a_ref_dropped_while_the_task_runs_lets_it_run_to_its_end() -> None:
    rig = Rig()
    task = rig.running()
    rig.event(Released(KERNEL, [task.id]))
    assert task.state is State.RUNNING
    fd = rig.fd()
    rig.finish(task, fds=(fd,))
    assert task.state is State.COMPLETED
    assert rig.dropped() == [fd]
    assert rig.scheduler.objects == {}


def test_an_argument_lives_until_the_task_that_uses_it_has_ended() -> None:
    rig = Rig()
    entry = stored(rig)
    fds = entry.fds
    task = rig.submit(deps=[entry.id])
    rig.event(Released(KERNEL, [entry.id]))
    assert rig.dropped() == []
    rig.finish(task)
    assert rig.dropped() == list(fds)


def test_a_ref_inside_the_arguments_lives_as_long() -> None:
    rig = Rig()
    entry = stored(rig)
    fds = entry.fds
    task = rig.submit(pins=[entry.id], plain=False)
    rig.event(Released(KERNEL, [entry.id]))
    assert rig.dropped() == []
    rig.fail(task)
    assert rig.dropped() == list(fds)


def test_a_retried_task_keeps_its_arguments() -> None:
    rig = Rig()
    entry = stored(rig)
    task = rig.submit(deps=[entry.id])
    rig.event(Released(KERNEL, [entry.id]))
    rig.die(task.lease, task)
    assert entry.id in rig.scheduler.objects
    rig.finish(task)
    assert entry.id not in rig.scheduler.objects


def test_a_cancelled_task_lets_go_of_its_arguments() -> None:
    rig = Rig(1)
    running = rig.running()
    entry = stored(rig)
    call_fd = rig.fd()
    waiting = rig.submit(deps=[running.id, entry.id], call_fds=(call_fd,))
    rig.event(Released(KERNEL, [entry.id]))
    rig.cancel(waiting)
    assert entry.id not in rig.scheduler.objects
    assert call_fd in rig.dropped()
    rig.finish(running)


def test_a_failed_dependent_lets_go_of_its_other_arguments() -> None:
    rig = Rig()
    root = rig.submit()
    entry = stored(rig)
    rig.submit(deps=[entry.id, root.id])
    rig.event(Released(KERNEL, [entry.id]))
    rig.fail(root)
    assert entry.id not in rig.scheduler.objects


def test_the_descriptors_of_a_call_are_closed_when_it_has_ended() -> None:
    rig = Rig()
    fd = rig.fd()
    task = rig.submit(call_fds=(fd,))
    assert rig.dropped() == []
    rig.finish(task)
    assert rig.dropped() == [fd]


def test_a_second_holder_keeps_the_value() -> None:
    rig = Rig()
    entry = stored(rig)
    rig.event(Held(WORKER, [entry.id]))
    rig.event(Released(KERNEL, [entry.id]))
    assert entry.id in rig.scheduler.objects
    rig.event(Released(WORKER, [entry.id]))
    assert entry.id not in rig.scheduler.objects


def test_several_refs_of_one_client_are_counted() -> None:
    rig = Rig()
    entry = stored(rig)
    rig.event(Held(WORKER, [entry.id, entry.id]))
    rig.event(Released(KERNEL, [entry.id]))
    rig.event(Released(WORKER, [entry.id]))
    assert entry.id in rig.scheduler.objects
    rig.event(Released(WORKER, [entry.id]))
    assert entry.id not in rig.scheduler.objects


def test_the_refs_of_a_dead_client_count_as_dropped() -> None:
    rig = Rig()
    entry = stored(rig)
    rig.event(Held(WORKER, [entry.id, entry.id]))
    rig.event(Released(KERNEL, [entry.id]))
    rig.event(ClientGone(WORKER))
    assert rig.scheduler.objects == {}


def test_what_a_dead_client_made_is_freed_too() -> None:
    rig = Rig()
    entry = stored(rig, owner=WORKER)
    fds = entry.fds
    task = rig.submit(owner=WORKER, num_returns=2, plain=False)
    rig.event(ClientGone(WORKER))
    assert rig.dropped() == list(fds)
    assert task.state is State.PENDING  # it runs on: it may have side effects
    second = rig.end(task)._replace(id=task.id + 1)
    rig.event(Finished(task.lease, [second, rig.end(task)]))
    assert rig.scheduler.objects == {}


def test_what_a_dead_client_had_let_go_before_is_not_counted_twice() -> None:
    rig = Rig()
    entry = stored(rig, owner=WORKER)
    rig.event(Held(KERNEL, [entry.id]))
    rig.event(Released(WORKER, [entry.id]))
    rig.event(ClientGone(WORKER))
    assert entry.id in rig.scheduler.objects
    rig.event(Released(KERNEL, [entry.id]))
    assert rig.scheduler.objects == {}


def test_a_release_too_many_is_ignored() -> None:
    rig = Rig()
    entry = stored(rig)
    rig.event(Released(KERNEL, [entry.id]))
    rig.event(Released(KERNEL, [entry.id]))
    rig.event(Released(KERNEL, [12345]))
    assert rig.scheduler.objects == {}


# -- asking for a value --------------------------------------------------------------------------------------------------


def test_a_small_value_goes_to_its_owner_unasked_and_a_big_one_only_as_a_notice() -> None:
    rig = Rig()
    small, big = rig.submit(2)
    rig.finish(small)
    rig.finish(big, fds=(rig.fd(),))
    told = rig.outcomes()
    assert told[small.id] == [(Kind.RESULT, b"value")]
    ((kind, body),) = told[big.id]
    assert kind == Kind.RESULT
    assert body == b""


def test_a_value_that_is_there_is_sent_at_once() -> None:
    rig = Rig()
    entry = stored(rig)
    out = rig.event(Fetched(KERNEL, entry.id))
    assert only(out, DeliverValue) == DeliverValue(KERNEL, b"frame", entry.fds)


def test_a_value_that_arrives_late_is_sent_to_all_who_asked() -> None:
    rig = Rig()
    task = rig.submit()
    rig.event(Fetched(WORKER, task.id))
    rig.event(Fetched(KERNEL, task.id))
    assert rig.values(WORKER) == []
    rig.finish(task)
    assert [value.frame for value in rig.values(WORKER) + rig.values(KERNEL)] == [task.frame] * 2


def test_a_failure_is_sent_to_who_asked_as_well() -> None:
    rig = Rig(1)
    task = rig.running()
    rig.event(Fetched(WORKER, task.id))
    rig.cancel(task)
    rig.stop(task)
    (value,) = rig.values(WORKER)
    assert HEADER.unpack_from(value.frame)[1] == Kind.FAILURE
    assert from_json(value.frame[HEADER_SIZE:])["type"] == "cancelled"


def test_who_asked_and_died_is_not_sent_anything() -> None:
    rig = Rig()
    task = rig.submit()
    rig.event(Fetched(WORKER, task.id))
    rig.event(ClientGone(WORKER))
    rig.finish(task)
    assert rig.values(WORKER) == []


def test_a_value_that_is_gone_says_so() -> None:
    rig = Rig()
    rig.event(Fetched(KERNEL, 4711))
    (value,) = rig.values()
    assert from_json(value.frame[HEADER_SIZE:]) == {"type": "lost", "task_id": "4711", "object_id": "4711"}


# -- refs inside values --------------------------------------------------------------------------------------------------


def test_what_is_inside_a_value_lives_as_long_as_the_value() -> None:
    rig = Rig()
    inner, outer = stored(rig, id=900), stored(rig, id=901)
    rig.event(Contains(outer.id, [inner.id]))
    rig.event(Released(KERNEL, [inner.id]))
    assert inner.id in rig.scheduler.objects
    rig.event(Released(KERNEL, [outer.id]))
    assert rig.scheduler.objects == {}


def test_what_will_be_inside_the_value_of_a_task_lives_from_now_on() -> None:
    """The worker says so before it sends the value, and before it says that its own ref is gone."""
    rig = Rig()
    task = rig.running()
    inner = stored(rig, owner=WORKER)
    rig.event(Contains(task.id, [inner.id, inner.id]))
    rig.event(Released(WORKER, [inner.id]))
    rig.event(ClientGone(WORKER))
    rig.finish(task)
    assert inner.id in rig.scheduler.objects
    rig.event(Released(KERNEL, [task.id]))
    assert rig.scheduler.objects == {}


def test_what_would_have_been_inside_is_let_go_when_no_value_comes() -> None:
    rig = Rig()
    task = rig.running()
    inner = stored(rig, owner=WORKER)
    rig.event(Contains(task.id, [inner.id]))
    rig.event(Released(WORKER, [inner.id]))
    rig.fail(task)
    rig.event(Released(KERNEL, [task.id]))
    assert rig.scheduler.objects == {}


def test_a_long_chain_of_values_inside_values_is_freed() -> None:
    rig = Rig()
    scheduler = rig.scheduler
    for id in range(1, 5001):
        entry = Entry(id, KERNEL)
        entry.kind = Kind.RESULT
        scheduler.handle(Put(entry), 0.0)
        if id > 1:
            scheduler.handle(Contains(id, [id - 1]), 0.0)
            scheduler.handle(Released(KERNEL, [id - 1]), 0.0)
    assert len(scheduler.objects) == 5000
    rig.event(Released(KERNEL, [5000]))
    assert scheduler.objects == {}


def test_a_word_about_a_value_that_is_gone_holds_nothing() -> None:
    rig = Rig()
    inner = stored(rig)
    rig.event(Contains(4711, [inner.id]))
    rig.event(Released(KERNEL, [inner.id]))
    assert rig.scheduler.objects == {}


def test_who_has_no_ref_cannot_drop_one() -> None:
    rig = Rig()
    entry = stored(rig)
    rig.event(Released(WORKER, [entry.id]))
    assert entry.id in rig.scheduler.objects


# -- several return values --------------------------------------------------------------------------------------------------


def test_each_return_value_lives_by_itself() -> None:
    rig = Rig()
    task = rig.submit(num_returns=2, plain=False)
    fds = (rig.fd(), rig.fd())
    second = rig.end(task, fds=fds[1:])._replace(id=task.id + 1)
    rig.event(Finished(task.lease, [second, rig.end(task, fds=fds[:1])]))
    rig.event(Released(KERNEL, [task.id]))
    assert rig.dropped() == [fds[0]]
    assert task.id + 1 in rig.scheduler.objects
    rig.event(Released(KERNEL, [task.id + 1]))
    assert rig.dropped() == list(fds)


def test_an_error_is_the_error_of_every_return_value() -> None:
    rig = Rig()
    task = rig.submit(num_returns=3, plain=False)
    rig.fail(task)
    assert [rig.outcomes()[task.id + i] for i in range(3)] == [[(Kind.ERROR, b"boom")]] * 3


def test_what_an_interrupted_cell_gives_back_is_told_before_its_end() -> None:
    """Who waits for the end looks for the rest at once."""
    rig = Rig()
    task = rig.running(num_returns=2, plain=False)
    rig.cancel(task)
    back = rig.end(task)._replace(id=task.id + 1)
    back = back._replace(frame=frame(Kind.RESULT, task.id + 1, b"changes"))
    rig.event(Finished(task.lease, [back, rig.end(task, Kind.INTERRUPTED, log2=0)]))
    assert list(rig.outcomes()) == [task.id + 1, task.id]
    assert rig.outcomes()[task.id + 1] == [(Kind.RESULT, b"changes")]
    assert rig.failure(task)["type"] == "cancelled"


def test_a_return_value_told_twice_is_kept_once() -> None:
    """The first attempt told one of two values and crashed; the second attempt tells both."""
    rig = Rig()
    task = rig.submit(num_returns=2, plain=False)
    fds = [rig.fd() for _ in range(3)]
    rig.event(Finished(task.lease, [rig.end(task, fds=fds[:1])._replace(id=task.id + 1)]))
    rig.die(task.lease, task)
    again = rig.end(task, fds=fds[1:2])._replace(id=task.id + 1)
    rig.event(Finished(task.lease, [again, rig.end(task, fds=fds[2:])]))
    assert rig.dropped() == [fds[1]]
    assert len(rig.outcomes()[task.id + 1]) == 1


def test_the_descriptors_of_a_late_word_are_closed() -> None:
    rig = Rig(1)
    task = rig.running()
    lease = task.lease
    rig.cancel(task, force=True)
    rig.die(lease, task, ours=True)
    fd = rig.fd()
    rig.finish(task, lease=lease, fds=(fd,))
    assert rig.dropped() == [fd]


def test_the_history_is_bounded() -> None:
    from jupyter_tasks.engine.scheduler import HISTORY

    rig = Rig()
    for _ in range(3):
        for task in rig.submit(500):
            rig.finish(task)
            rig.event(Released(KERNEL, [task.id]))
    assert len(rig.scheduler.history) == HISTORY
    assert rig.scheduler.clear() == HISTORY
    assert rig.scheduler.objects == {}


# -- promises -----------------------------------------------------------------------------------------------------------


def promised(rig: Rig, *, owner: int = KERNEL, id: int = 900) -> Promise:
    """An object whose value is still to come."""
    promise = Promise(id, owner, "elsewhere")
    rig.event(Put(promise))
    return promise


def bring(rig: Rig, id: int = 900, *, kind: int = Kind.RESULT, owner: int = KERNEL) -> list[Instruction]:
    """Its owner brings the outcome; a value has shared memory."""
    entry = Entry(id, owner)
    entry.kind = kind
    entry.frame = frame(kind, id, b"value" if kind == Kind.RESULT else b"boom")
    entry.fds = (rig.fd(),) if kind == Kind.RESULT else ()
    return rig.event(Put(entry))


def test_a_task_waits_for_a_promised_value() -> None:
    """It runs when the value was brought, which is then an object like any other. The owner is not told what it knows."""
    rig = Rig()
    promise = promised(rig)
    task = rig.submit(deps=[promise.id])
    assert rig.ran() == []
    bring(rig)
    (fd,) = promise.fds
    assert rig.ran() == [[task.id]]
    assert promise.id not in rig.outcomes()
    rig.event(Released(KERNEL, [promise.id]))
    assert promise.id in rig.scheduler.objects
    rig.finish(task)
    assert promise.id not in rig.scheduler.objects
    assert rig.dropped() == [fd]


def test_a_promise_that_fails_fails_what_waits() -> None:
    rig = Rig()
    promise = promised(rig)
    task = rig.submit(deps=[promise.id])
    bring(rig, kind=Kind.ERROR)
    assert task.state is State.FAILED
    assert rig.outcomes()[task.id] == [(Kind.ERROR, b"boom")]


def test_a_promise_is_kept_once() -> None:
    """Also when the promise itself comes late: the first outcome counts, and no descriptor is left open."""
    rig = Rig()
    promise = promised(rig)
    bring(rig)
    first = promise.fds
    bring(rig)
    promised(rig)
    assert promise.fds == first
    assert promise.kind == Kind.RESULT
    assert len(rig.dropped()) == 1
    assert rig.dropped() != list(first)


def test_a_promise_ends_with_its_owner() -> None:
    """Nobody can bring it any more: who waits fails; one that was kept before is a value like any other."""
    rig = Rig()
    promised(rig, owner=WORKER)
    promised(rig, owner=WORKER, id=901)
    bring(rig, 901, owner=WORKER)
    task = rig.submit(deps=[900])
    kept = rig.submit(deps=[901])
    rig.event(ClientGone(WORKER))
    assert task.state is State.FAILED
    assert rig.failure(task)["type"] == "unkept"
    assert [kept.id] in rig.ran()
    assert 900 not in rig.scheduler.objects


def test_a_promise_is_no_task() -> None:
    """A cancel of it does nothing, and whoever looks for its task finds none."""
    rig = Rig()
    rig.submit(id=899)
    promise = promised(rig)
    assert rig.scheduler.task_of(promise.id) is None
    assert rig.cancel(promise.id) == []
