"""What the rules make of the items of generator tasks (docs/semantics.md, Generators). Role: unit; events in, instructions
out.
"""

from __future__ import annotations

import pytest
from engine_rig import KERNEL, Rig, kinds, only

from jupyter_tasks.engine.events import (
    Answer,
    ClientGone,
    Contains,
    Deliver,
    DeliverValue,
    Drop,
    Entry,
    Fetched,
    Finished,
    ItemContains,
    Put,
    Released,
    RoomAsked,
    Run,
    Taken,
    Task,
    Yielded,
)
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import ALL_TAKEN, HEADER, HEADER_SIZE, ITEM_OF, Flag, Kind, frame

WORKER = 5  # the client of a worker


@pytest.fixture
def rig() -> Rig:
    return Rig()


def generator(rig: Rig, **options: object) -> Task:
    """A generator task that has begun."""
    task = rig.running(streams=True, plain=False, **options)  # type: ignore[arg-type]
    assert task.lease is not None
    return task


def items(rig: Rig, client: int = KERNEL) -> list[tuple[int, int, int, bytes]]:
    """What the client was told: object, task, place, value."""
    found = []
    for deliver in rig.told(Deliver):
        for told in deliver.frames:
            _, kind, _, _, _, id = HEADER.unpack_from(told)
            if kind == Kind.ITEM and deliver.client == client:
                task, place = ITEM_OF.unpack_from(told, HEADER_SIZE)
                found.append((id, task, place, told[HEADER_SIZE + ITEM_OF.size :]))
    return found


def put(rig: Rig, id: int, owner: int = WORKER) -> Entry:
    entry = Entry(id, owner)
    entry.kind, entry.frame = Kind.RESULT, frame(Kind.RESULT, id, b"put")
    rig.event(Put(entry))
    return entry


def test_each_item_is_an_object_of_the_tasks_owner_at_once(rig: Rig) -> None:
    task = generator(rig)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.event(Yielded(task.id, 1, b"b"))
    (first, of, place, value), (second, *_) = items(rig)
    assert (of, place, value) == (task.id, 0, b"a")
    assert first != second
    assert {first, second} <= rig.scheduler.objects.keys()
    assert task.state is State.RUNNING
    assert task.kind == 0
    rig.event(Released(KERNEL, [first]))
    assert first not in rig.scheduler.objects


def test_a_big_item_is_announced_and_its_memory_waits(rig: Rig) -> None:
    task = generator(rig)
    fd = rig.fd()
    (deliver,) = rig.event(Yielded(task.id, 0, b"head", (fd,)))
    assert isinstance(deliver, Deliver)
    size, kind, flags, fds, _, id = HEADER.unpack_from(deliver.frames[0])
    assert (kind, flags, fds, size) == (Kind.ITEM, Flag.BIG, 0, ITEM_OF.size)
    rig.event(Fetched(KERNEL, id, 7))
    (value,) = rig.told(DeliverValue)
    assert value.fds == (fd,)
    assert value.frame[HEADER_SIZE:] == b"head"
    rig.event(Released(KERNEL, [id]))
    assert rig.dropped() == [fd]


def test_items_come_before_the_end(rig: Rig) -> None:
    task = generator(rig)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.finish(task)
    told = [HEADER.unpack_from(each)[1] for deliver in rig.told(Deliver) for each in deliver.frames]
    assert told == [Kind.ITEM, Kind.RESULT]
    assert task.state is State.COMPLETED
    assert task.stream is None


def test_after_the_end_an_item_is_dropped(rig: Rig) -> None:
    """It was on its way when the task was ended from here."""
    task = generator(rig)
    rig.finish(task)
    fd = rig.fd()
    assert kinds(rig.event(Yielded(task.id, 0, b"a", (fd,)))) == ["Drop"]
    assert items(rig) == []


def test_of_a_task_that_is_no_generator_nothing_is_taken(rig: Rig) -> None:
    task = rig.running()
    assert rig.event(Yielded(task.id, 0, b"a")) == []


@pytest.mark.parametrize("how", ["crash", "retryable error"])
def test_a_further_attempt_keeps_what_was_made_and_drops_it_when_it_is_made_anew(rig: Rig, how: str) -> None:
    task = generator(rig, max_retries=1)
    for place in range(3):
        rig.event(Yielded(task.id, place, b"first"))
    if how == "crash":
        rig.die(task.lease, task)  # type: ignore[arg-type]
    else:
        rig.fail(task, retryable=True)
    assert task.attempt == 1
    rig.start(task)
    fd = rig.fd()
    assert kinds(rig.event(Yielded(task.id, 0, b"again", (fd,)))) == ["Drop"]
    for place in range(1, 5):
        rig.event(Yielded(task.id, place, b"again"))
    assert [(place, value) for _, _, place, value in items(rig)] == [
        *((0, b"first"), (1, b"first"), (2, b"first"), (3, b"again"), (4, b"again")),
    ]
    assert rig.dropped() == [fd]


def test_an_item_is_used_by_a_task_as_any_object(rig: Rig) -> None:
    task = generator(rig)
    rig.event(Yielded(task.id, 0, b"a"))
    ((item, *_),) = items(rig)
    user = rig.submit(deps=[item])
    assert only(rig.story[-1:], Run).tasks == [user]
    rig.event(Released(KERNEL, [item]))
    assert item in rig.scheduler.objects
    rig.finish(user)
    assert item not in rig.scheduler.objects


# -- refs inside ---------------------------------------------------------------------------------------------------------


def test_refs_inside_an_item_live_as_long_as_it(rig: Rig) -> None:
    """The worker's own ref may be gone before the item is told."""
    task = generator(rig)
    inner = put(rig, 900)
    rig.event(ItemContains(task.id, 0, [inner.id]))
    rig.event(Released(WORKER, [inner.id]))
    assert inner.id in rig.scheduler.objects
    rig.event(Yielded(task.id, 0, b"a"))
    rig.finish(task)
    ((item, *_),) = items(rig)
    assert inner.id in rig.scheduler.objects
    rig.event(Released(KERNEL, [item]))
    assert inner.id not in rig.scheduler.objects


@pytest.mark.parametrize("how", ["ended", "made again", "asked again", "dropped"])
def test_of_an_item_that_is_never_told_they_are_let_go(rig: Rig, how: str) -> None:
    task = generator(rig, max_retries=1)
    inner = put(rig, 900)
    if how == "made again":
        rig.event(Yielded(task.id, 0, b"a"))
    if how == "dropped":
        rig.event(Taken(KERNEL, task.id, ALL_TAKEN))
    rig.event(ItemContains(task.id, 0, [inner.id]))
    rig.event(Released(WORKER, [inner.id]))
    assert inner.id in rig.scheduler.objects
    if how == "ended":
        rig.finish(task)
    elif how == "asked again":
        rig.event(ItemContains(task.id, 0, []))
    else:
        rig.event(Yielded(task.id, 0, b"a"))
    assert inner.id not in rig.scheduler.objects


# -- room ----------------------------------------------------------------------------------------------------------------


def test_without_backpressure_there_is_always_room(rig: Rig) -> None:
    task = generator(rig)
    assert rig.event(RoomAsked(WORKER, 1, task.id, 1000)) == [Answer(WORKER, 1, 0)]


def test_room_is_given_when_enough_were_taken(rig: Rig) -> None:
    task = generator(rig, backpressure=2)
    for place in range(2):
        rig.event(Yielded(task.id, place, b"a"))
    assert rig.event(RoomAsked(WORKER, 1, task.id, 2)) == []
    assert rig.event(Taken(KERNEL, task.id, 0)) == []
    assert rig.event(Taken(KERNEL, task.id, 1)) == [Answer(WORKER, 1, 1)]
    assert rig.event(Taken(KERNEL, task.id, 2)) == []  # nobody asks any more
    assert rig.event(RoomAsked(WORKER, 2, task.id, 3)) == [Answer(WORKER, 2, 2)]


def test_only_the_owner_takes(rig: Rig) -> None:
    task = generator(rig, backpressure=1)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.event(RoomAsked(WORKER, 1, task.id, 1))
    assert rig.event(Taken(WORKER, task.id, ALL_TAKEN)) == []


def test_when_the_generator_is_dropped_there_is_room_and_items_are_not_kept(rig: Rig) -> None:
    task = generator(rig, backpressure=1)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.event(RoomAsked(WORKER, 1, task.id, 1))
    assert rig.event(Taken(KERNEL, task.id, ALL_TAKEN)) == [Answer(WORKER, 1, ALL_TAKEN)]
    fd = rig.fd()
    assert rig.event(Yielded(task.id, 1, b"b", (fd,))) == [Drop((fd,))]
    assert len(items(rig)) == 1


@pytest.mark.parametrize("begun", [True, False], ids=["has made items", "has made none"])
def test_when_its_owner_has_gone_the_same(rig: Rig, begun: bool) -> None:
    task = generator(rig, backpressure=1, owner=WORKER)
    if begun:
        rig.event(Yielded(task.id, 0, b"a"))
        assert rig.event(RoomAsked(6, 1, task.id, 1)) == []
    out = rig.event(ClientGone(WORKER))
    if begun:
        assert out == [Answer(6, 1, ALL_TAKEN)]
    assert rig.event(Yielded(task.id, 1, b"b")) == []
    assert rig.event(RoomAsked(6, 2, task.id, 2)) == [Answer(6, 2, ALL_TAKEN)]
    rig.finish(task)
    assert rig.scheduler.objects == {}


def test_a_question_of_a_task_that_has_ended_is_answered(rig: Rig) -> None:
    """It was killed, or its timeout has come, while the question was on its way."""
    task = generator(rig, backpressure=1)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.event(RoomAsked(WORKER, 1, task.id, 1))
    out = rig.event(Finished(task.lease, [rig.end(task)]))  # type: ignore[arg-type]
    assert Answer(WORKER, 1, ALL_TAKEN) in out
    assert rig.event(RoomAsked(WORKER, 2, task.id, 1)) == [Answer(WORKER, 2, ALL_TAKEN)]


def test_a_further_attempt_asks_in_the_place_of_the_one_before(rig: Rig) -> None:
    """What was taken of its items counts."""
    task = generator(rig, backpressure=1, max_retries=1)
    rig.event(Yielded(task.id, 0, b"a"))
    rig.event(RoomAsked(WORKER, 1, task.id, 1))
    rig.die(task.lease, task)  # type: ignore[arg-type]
    rig.start(task)
    assert rig.event(RoomAsked(6, 9, task.id, 1)) == []
    assert rig.event(Taken(KERNEL, task.id, 1)) == [Answer(6, 9, 1)]


def test_an_item_inside_a_value_lives_as_long_as_that(rig: Rig) -> None:
    task = generator(rig)
    rig.event(Yielded(task.id, 0, b"a"))
    ((item, *_),) = items(rig)
    outer = put(rig, 900, KERNEL)
    rig.event(Contains(outer.id, [item]))
    rig.event(Released(KERNEL, [item]))
    assert item in rig.scheduler.objects
    rig.event(Released(KERNEL, [outer.id]))
    assert item not in rig.scheduler.objects
