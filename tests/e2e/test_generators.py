"""End to end: generator tasks (docs/semantics.md, Generators).

Role: each test names the promise it proves. The cases are those of Ray's test_generators.py and
test_streaming_generator*.py, as far as they apply, and what a cancel, a crash and a stop button make of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import functools
import gc
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ForceCancelledError,
    GetTimeoutError,
    ObjectLostError,
    TaskCancelledError,
    TaskError,
    TaskTimeoutError,
    UnserializableError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 20.0  # seconds; a net against hanging, never a measure
LONG = 30.0  # seconds that a blocked task would sleep


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


def arrays(n: int) -> Iterator[Any]:
    for i in range(n):
        yield np.full(200_000, i, dtype=np.int8)


def values(generator: Any) -> list[Any]:
    return [jt.get(ref, timeout=NET) for ref in generator]


def objects() -> int:
    gc.collect()
    return int(status()["objects"])


def error_of(ref: jt.ObjectRef) -> BaseException:
    with pytest.raises(jt.exceptions.JupyterTasksError) as caught:
        jt.get(ref, timeout=NET)
    return caught.value


# -- items ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [count, count_async])
def test_a_generator_function_gives_a_generator_of_refs(function: Callable[[int], Any]) -> None:
    """Ray: test_generator_basic. The end comes again and again."""
    generator = jt.remote(function).remote(5)
    assert isinstance(generator, jt.ObjectRefGenerator)
    assert values(generator) == [0, 1, 2, 3, 4]
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(generator)


def test_partials_and_callable_objects_are_generator_functions_too() -> None:
    class Counter:
        def __call__(self, n: int) -> Iterator[int]:
            yield from range(n)

    assert values(jt.remote(functools.partial(count, 2)).remote()) == [0, 1]
    assert values(jt.remote(Counter()).remote(2)) == [0, 1]


def test_no_items() -> None:
    generator = jt.remote(count).remote(0)
    assert list(generator) == []
    assert jt.get(generator.completed()) is None


def test_a_return_ends_it() -> None:
    """Ray: test_return_yield_mix."""

    def once() -> Iterator[int]:
        for i in range(3):
            yield i
            return

    assert values(jt.remote(once).remote()) == [0]


def test_an_item_is_there_while_the_task_goes_on(tmp_path: Path) -> None:
    """Its ref is final when it is handed out."""

    def task(place: str) -> Iterator[int]:
        yield 1
        words.hear(f"{place}/go on")
        yield 2

    generator = jt.remote(task).remote(str(tmp_path))
    ref = next(generator)
    assert ref.is_final
    assert jt.get(ref, timeout=0) == 1
    assert not generator.completed().is_final
    words.say(tmp_path / "go on")
    assert values(generator) == [2]


def test_big_items_are_mapped_and_may_be_written_to() -> None:
    """Ray: test_generator_streaming, store_in_plasma."""
    for i, ref in enumerate(jt.remote(arrays).remote(3)):
        array = jt.get(ref, timeout=NET)
        assert array.shape == (200_000,)
        assert (array == i).all()
        array[0] = 7


@pytest.mark.parametrize("function", [count, arrays])
def test_an_item_is_freed_when_its_ref_is_dropped(function: Callable[[int], Any]) -> None:
    """Ray: test_generator_streaming, test_no_memory_store_obj_leak."""
    generator = jt.remote(function).remote(5)
    jt.get(generator.completed(), timeout=NET)
    assert objects() == 6
    for left in (5, 4, 3, 2, 1):
        ref = next(generator)
        del ref
        wait_until(lambda left=left: objects() == left, "the item is freed")


def test_thousands_of_items_come_in_order() -> None:
    assert values(jt.remote(count).remote(5000)) == list(range(5000))


def test_items_are_arguments_of_tasks() -> None:
    """Also after the generator and the ref are gone."""
    add = jt.remote(lambda x: x + 1)
    assert jt.get([add.remote(ref) for ref in jt.remote(count).remote(4)], timeout=NET) == [1, 2, 3, 4]


def test_refs_inside_an_item_live_as_long_as_it() -> None:
    def task() -> Iterator[Any]:
        for i in range(20):
            yield {"ref": jt.put(np.full(50_000, i))}

    refs = list(jt.remote(task).remote())
    for i, ref in enumerate(refs):
        assert jt.get(jt.get(ref, timeout=NET)["ref"], timeout=NET)[-1] == i
    del refs, ref
    wait_until(lambda: objects() == 0, "items and what was in them are freed")


def test_what_an_item_and_its_ref_are_called() -> None:
    generator = jt.remote(count).options(name="numbers").remote(2)
    task_id = generator.task_id
    first, second = generator
    assert (first.label, second.label) == ("numbers[0]", "numbers[1]")
    assert first.task_id == second.task_id == task_id
    assert repr(generator) == f"<ObjectRefGenerator {task_id} numbers>"
    assert first != second
    assert [task["name"] for task in jt.tasks() if task["task_id"] == task_id] == ["numbers"]


# -- ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_after_an_error_what_was_made_stays_then_one_ref_raises(is_async: bool) -> None:
    """Ray: test_generator_basic, test_streaming_generator_exception."""

    def task() -> Iterator[int]:
        yield from (0, 1)
        raise ValueError("broken")

    async def task_async() -> AsyncIterator[int]:
        yield 0
        yield 1
        raise ValueError("broken")

    generator = jt.remote(task_async if is_async else task).remote()
    zero, one, broken = generator
    assert jt.get([zero, one]) == [0, 1]
    with pytest.raises(ValueError, match="broken") as caught:
        jt.get(broken)
    assert isinstance(caught.value, TaskError)
    assert list(generator) == []
    assert isinstance(error_of(generator.completed()), ValueError)


def test_an_error_before_the_first_item() -> None:
    def task() -> Iterator[int]:
        raise ValueError
        yield 1

    (ref,) = jt.remote(task).remote()
    assert isinstance(error_of(ref), ValueError)


def test_an_item_that_cannot_be_sent_is_the_tasks_error_and_closes_it(tmp_path: Path) -> None:
    def task(word: str) -> Iterator[Any]:
        try:
            yield 0
            yield threading.Lock()
            yield 2
        finally:
            words.say(word)

    zero, broken = jt.remote(task).remote(str(tmp_path / "closed"))
    assert jt.get(zero) == 0
    error = error_of(broken)
    assert isinstance(error, UnserializableError)
    assert "item 1" in str(error)
    words.hear(tmp_path / "closed")


def test_a_function_that_makes_no_items_says_so() -> None:
    """Ray: normal functions do not work with num_returns="dynamic"."""
    for how in ("streaming", "dynamic"):
        answer = jt.remote(num_returns=how)(lambda: [1, 2]).remote()
        (ref,) = answer if how == "streaming" else [answer]
        with pytest.raises(TypeError, match=f"returned list, but num_returns='{how}' needs a generator: use yield"):
            jt.get(ref, timeout=NET)


def test_an_iterator_will_do() -> None:
    assert values(jt.remote(num_returns="streaming")(lambda: map(str, [1, 2])).remote()) == ["1", "2"]


def test_completed_is_a_ref_of_the_whole_task(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        yield 1
        words.hear(f"{place}/end")

    generator = jt.remote(task).remote(str(tmp_path))
    with pytest.raises(GetTimeoutError):
        jt.get(generator.completed(), timeout=0)
    words.say(tmp_path / "end")
    assert jt.get(generator.completed(), timeout=NET) is None
    assert values(generator) == [1]


def test_next_ready_and_is_finished(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        words.hear(f"{place}/0")
        yield 0
        words.hear(f"{place}/1")

    generator = jt.remote(task).remote(str(tmp_path))
    assert (generator.next_ready(), generator.is_finished()) == (False, False)
    words.say(tmp_path / "0")
    wait_until(generator.next_ready, "the item is there")
    assert not generator.is_finished()
    next(generator)
    assert (generator.next_ready(), generator.is_finished()) == (False, False)
    words.say(tmp_path / "1")
    wait_until(generator.is_finished, "it is over")
    assert not generator.next_ready()


def test_is_finished_only_after_the_error_was_handed_out() -> None:
    def task() -> Iterator[int]:
        raise ValueError
        yield

    generator = jt.remote(task).remote()
    jt.wait([generator.completed()])
    assert (generator.next_ready(), generator.is_finished()) == (True, False)
    next(generator)
    assert (generator.next_ready(), generator.is_finished()) == (False, True)


def test_a_timeout_ends_it_like_any_task() -> None:
    def task() -> Iterator[int]:
        yield 0
        time.sleep(LONG)

    zero, late = jt.remote(timeout=0.3)(task).remote()
    assert jt.get(zero) == 0
    assert isinstance(error_of(late), TaskTimeoutError)


def test_a_dependency_that_failed_is_its_error() -> None:
    def fails() -> None:
        raise ValueError("root")

    (ref,) = jt.remote(count).remote(jt.remote(fails).remote())
    with pytest.raises(ValueError, match="root"):
        jt.get(ref, timeout=NET)


# -- attempts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["crash", "exit", "exception"])
def test_a_further_attempt_goes_on_where_the_last_one_ended(how: str, tmp_path: Path) -> None:
    """What was made is kept, and not handed out twice. (Ray: test_generator_basic, retry exceptions.)"""

    def task(mark: str) -> Iterator[tuple[int, int]]:
        words.mark(mark)
        attempt = words.marks(mark)
        for i in range(5):
            if i == 3 and attempt == 1:
                if how == "crash":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "exit":
                    raise SystemExit(3)
                raise ValueError
            yield attempt, i

    function = jt.remote(retry_exceptions=[ValueError])(task)
    found = values(function.remote(str(tmp_path / "attempts")))
    assert found == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    assert words.marks(tmp_path / "attempts") == 2


def test_a_crash_in_the_middle_without_retries() -> None:
    def task() -> Iterator[int]:
        yield 0
        os._exit(9)

    generator = jt.remote(max_retries=0)(task).remote()
    zero, crashed = generator
    assert jt.get(zero) == 0
    error = error_of(crashed)
    assert isinstance(error, WorkerCrashedError)
    assert error.exit_code == 9
    assert list(generator) == []


# -- cancel --------------------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_generators_code_and_what_was_made_stays(tmp_path: Path) -> None:
    """Ray: test_generator_basic, cancel. Its except and finally run, and what it yields there is an item, too."""

    def task(place: str) -> Iterator[str]:
        try:
            yield "made"
            words.say(f"{place}/in")
            time.sleep(LONG)
        except KeyboardInterrupt:
            yield "last"
            raise
        finally:
            words.say(f"{place}/finally")

    generator = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(generator, reason="enough")
    made, last, cancelled = generator
    assert jt.get([made, last]) == ["made", "last"]
    error = error_of(cancelled)
    assert isinstance(error, TaskCancelledError)
    assert (error.source, error.rung, error.reason) == ("user", "interrupt", "enough")
    words.hear(tmp_path / "finally")
    assert list(generator) == []


def test_a_cancel_in_a_generator_of_c_code_ends_it() -> None:
    """No line of Python runs in which an interrupt could be raised."""
    generator = jt.remote(num_returns="streaming")(lambda: itertools.count()).remote()
    assert jt.get(next(generator)) == 0
    jt.cancel(generator)
    *_, cancelled = generator
    assert isinstance(error_of(cancelled), TaskCancelledError)


def test_a_cancel_of_an_async_generator(tmp_path: Path) -> None:
    async def task(place: str) -> AsyncIterator[int]:
        try:
            yield 0
            words.say(f"{place}/in")
            await asyncio.sleep(LONG)
        finally:
            words.say(f"{place}/finally")

    generator = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(generator)
    zero, cancelled = generator
    assert jt.get(zero) == 0
    assert isinstance(error_of(cancelled), TaskCancelledError)
    words.hear(tmp_path / "finally")


def test_one_that_returns_all_the_same_has_won(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        try:
            words.say(f"{place}/in")
            time.sleep(LONG)
        except KeyboardInterrupt:
            yield from range(3)

    generator = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(generator)
    assert values(generator) == [0, 1, 2]
    assert jt.get(generator.completed()) is None


def test_a_forced_cancel(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        yield 0
        words.say(f"{place}/in")
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(LONG)
        time.sleep(LONG)

    generator = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(generator, force=True)
    zero, killed = generator
    assert jt.get(zero) == 0
    assert isinstance(error_of(killed), ForceCancelledError)


def test_one_that_has_not_begun_never_does(tmp_path: Path) -> None:
    holders = [jt.remote(words.hear).remote(str(tmp_path / "go")) for _ in range(2)]
    generator = jt.remote(count).remote(3)
    jt.cancel(generator)
    (ref,) = generator
    error = error_of(ref)
    assert isinstance(error, TaskCancelledError)
    assert error.rung == "pending"
    words.say(tmp_path / "go")
    jt.get(holders, timeout=NET)


def test_cancels_at_random_moments_leave_whole_streams() -> None:
    """Items come without gaps, whenever the interrupt comes; and then exactly one ref raises."""

    def task() -> Iterator[int]:
        yield from itertools.count()

    function = jt.remote(task)
    for i in range(150):
        generator = function.remote()
        if i % 3:
            next(generator)
        time.sleep(i % 7 * 0.0003)  # not a measure: another moment each time
        jt.cancel(generator)
        *made, cancelled = generator
        assert isinstance(error_of(cancelled), TaskCancelledError)
        assert jt.get(made) == list(range(1 if i % 3 else 0, len(made) + (1 if i % 3 else 0)))


# -- backpressure --------------------------------------------------------------------------------------------------------


@pytest.fixture
def paced(tmp_path: Path) -> Callable[..., Any]:
    """A generator task that marks each item before it yields it."""

    def task(mark: str, n: int) -> Iterator[int]:
        words.say(f"{mark} pid", os.getpid())
        for i in range(n):
            words.mark(mark)
            yield i
        words.say(f"{mark} end")

    return lambda n, **options: jt.remote(**options)(task).remote(str(tmp_path / "made"), n)


def waits(tmp_path: Path, made: int) -> None:
    """Returns when the task has made so many items and sleeps, past its last line of Python."""
    wait_until(lambda: words.marks(tmp_path / "made") == made, "it makes what there is room for")
    words.blocked_in_system(int(words.hear(tmp_path / "made pid")))
    assert words.marks(tmp_path / "made") == made


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("option", ["generator_backpressure", "_generator_backpressure_num_objects"])
def test_backpressure_so_many_are_made_ahead(paced: Any, most: int, option: str, tmp_path: Path) -> None:
    """Ray: test_streaming_generator_backpressure_multiple_objects."""
    generator = paced(10, **{option: most})
    for taken in range(10 - most):
        waits(tmp_path, taken + most)
        assert jt.get(next(generator)) == taken
    assert values(generator) == list(range(10 - most, 10))


def test_while_it_waits_its_slots_are_free(paced: Any) -> None:
    generators = [paced(3, generator_backpressure=1) for _ in range(2)]
    for generator in generators:
        jt.wait([generator], timeout=NET)
    assert jt.get(jt.remote(lambda: 1).remote(), timeout=NET) == 1
    assert [values(generator) for generator in generators] == [[0, 1, 2]] * 2


def test_a_dropped_generator_lifts_it_and_the_task_runs_to_its_end(paced: Any, tmp_path: Path) -> None:
    """Ray: test_streaming_generator_backpressure_basic."""
    generator = paced(10, generator_backpressure=1)
    next(generator)
    waits(tmp_path, 2)
    del generator
    words.hear(tmp_path / "made end")
    assert words.marks(tmp_path / "made") == 10
    wait_until(lambda: objects() == 0, "items that nobody can take are freed")


@pytest.mark.parametrize("force", [False, True])
def test_a_cancel_of_one_that_waits_for_room(force: bool, tmp_path: Path) -> None:
    """The interrupt comes out of its `yield`."""

    def task(place: str) -> Iterator[int]:
        try:
            words.say(f"{place}/in", os.getpid())
            yield from range(10)
        except KeyboardInterrupt:
            words.say(f"{place}/interrupted")
            raise

    generator = jt.remote(task).options(generator_backpressure=2).remote(str(tmp_path))
    wait_until(lambda: generator._arrived == 2, "both have come")
    words.blocked_in_system(int(words.hear(tmp_path / "in")))
    jt.cancel(generator, force=force)
    *made, cancelled = generator
    assert jt.get(made) == list(range(len(made)))  # perhaps more than two: taking them gives room
    assert isinstance(error_of(cancelled), ForceCancelledError if force else TaskCancelledError)
    assert words.said(tmp_path / "interrupted") != force


def test_one_that_catches_its_cancel_waits_again(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[str]:
        try:
            words.say(f"{place}/in", os.getpid())
            while True:
                yield "made"
        except KeyboardInterrupt:
            yield "caught"
            yield "end"

    generator = jt.remote(task).options(generator_backpressure=1).remote(str(tmp_path))
    wait_until(generator.next_ready, "it has made one")
    words.blocked_in_system(int(words.hear(tmp_path / "in")))
    jt.cancel(generator)
    wait_until(lambda: generator._arrived == 2, "it has caught it")  # taking the first before would give room
    assert values(generator) == ["made", "caught", "end"]


@pytest.mark.parametrize("how", ["returns", "raises", "crashes"])
def test_when_its_owner_is_gone_it_goes_on(how: str, tmp_path: Path) -> None:
    """Ray: test_caller_failure_doesnt_hang."""

    def inner(word: str) -> Iterator[int]:
        yield from range(5)
        words.say(word)

    def outer(word: str) -> None:
        generator = jt.remote(inner).options(generator_backpressure=1).remote(word)
        jt.get(next(generator))
        if how == "raises":
            raise ValueError
        if how == "crashes":
            os._exit(1)

    ref = jt.remote(max_retries=0)(outer).remote(str(tmp_path / "end"))
    jt.wait([ref], timeout=NET)
    words.hear(tmp_path / "end")


def test_a_further_attempt_counts_what_was_taken_before(tmp_path: Path) -> None:
    def task(mark: str) -> Iterator[int]:
        words.mark(mark)
        for i in range(6):
            if i == 3 and words.marks(mark) == 1:
                os._exit(1)
            yield i

    generator = jt.remote(task).options(generator_backpressure=2).remote(str(tmp_path / "mark"))
    assert values(generator) == list(range(6))
    assert words.marks(tmp_path / "mark") == 2


def test_backpressure_of_async_generators(tmp_path: Path) -> None:
    """Ray refuses it; here the task's event loop stands still meanwhile."""

    async def task(mark: str) -> AsyncIterator[int]:
        words.say(f"{mark} pid", os.getpid())
        for i in range(4):
            words.mark(mark)
            yield i

    generator = jt.remote(task).options(generator_backpressure=1).remote(str(tmp_path / "made"))
    for i in range(4):
        waits(tmp_path, i + 1)
        assert jt.get(next(generator)) == i
    assert list(generator) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"generator_backpressure": 0}, "must be more than 0"),
        ({"generator_backpressure": -1}, "not negative"),
        ({"generator_backpressure": 1.5}, "whole number"),
        ({"generator_backpressure": 1, "num_returns": 2}, "has num_returns=2"),
        ({"generator_backpressure": 1, "num_returns": "dynamic"}, "has num_returns='dynamic'"),
        ({"num_returns": "stream"}, "'streaming' or 'dynamic', but is 'stream'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    """Ray: test_backpressure_invalid."""
    with pytest.raises(ValueError, match=match):
        jt.remote(**options)(count)


def test_backpressure_is_for_generator_functions() -> None:
    with pytest.raises(ValueError, match="is none: use yield"):
        jt.remote(generator_backpressure=1)(lambda: 1)


# -- waiting -------------------------------------------------------------------------------------------------------------


def test_wait_takes_generators_beside_refs(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        for i in range(2):
            words.hear(f"{place}/{i}")
            yield i

    generator = jt.remote(task).remote(str(tmp_path))
    ref = jt.remote(words.hear).remote(str(tmp_path / "ref"))
    assert jt.wait([generator, ref], timeout=0) == ([], [generator, ref])
    words.say(tmp_path / "0")
    assert jt.wait([ref, generator], timeout=NET) == ([generator], [ref])
    assert jt.wait([ref, generator], timeout=0) == ([generator], [ref])  # as long as the item is not taken
    assert jt.get(next(generator)) == 0
    assert jt.wait([ref, generator], timeout=0) == ([], [ref, generator])
    words.say(tmp_path / "ref")
    assert jt.wait([generator, ref], timeout=NET) == ([ref], [generator])
    words.say(tmp_path / "1")
    assert values(generator) == [1]
    assert jt.wait([generator], timeout=0) == ([generator], [])  # it is over
    with pytest.raises(TypeError, match="takes a list"):
        jt.wait(generator)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="twice"):
        jt.wait([generator, generator])


def test_next_in_a_thread_while_another_reads(tmp_path: Path) -> None:
    """The follower is woken by the leader's parsing."""
    ref = jt.remote(words.hear).remote(str(tmp_path / "ref"))
    reader = threading.Thread(target=jt.get, args=[ref])
    reader.start()
    try:
        assert values(jt.remote(count).remote(200)) == list(range(200))
    finally:
        words.say(tmp_path / "ref")
        reader.join()


def test_several_threads_share_the_items() -> None:
    generator = jt.remote(count).options(generator_backpressure=5).remote(400)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(values(generator))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert sorted(found) == list(range(400))


def test_in_a_callback() -> None:
    """It runs in the thread that makes the refs."""
    generator = jt.remote(count).remote(50)
    done: Future[list[int]] = Future()
    jt.remote(lambda: None).remote().future().add_done_callback(lambda _: done.set_result(values(generator)))
    assert done.result(NET) == list(range(50))


@pytest.mark.parametrize("function", [count, count_async])
def test_async_iteration(function: Callable[[int], Any]) -> None:
    """Ray: test_actor_streaming_generator."""

    async def main() -> list[int]:
        generator = jt.remote(function).remote(3)
        assert await (await generator.__anext__()) == 0
        found = [await ref async for ref in generator]
        with pytest.raises(StopAsyncIteration):
            await generator.__anext__()
        return found

    assert asyncio.run(main()) == [1, 2]


def test_async_iteration_does_not_block_the_loop(tmp_path: Path) -> None:
    """Others go on; cancelling who waits leaves the task alone."""

    def task(place: str) -> Iterator[int]:
        words.hear(f"{place}/0")
        yield 0

    async def main() -> list[int]:
        generator = jt.remote(task).remote(str(tmp_path))
        waiting = asyncio.create_task(generator.__anext__())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.05)
        words.say(tmp_path / "0")
        return [await ref async for ref in generator]

    assert asyncio.run(main()) == [0]


def test_async_iteration_of_many_and_of_an_error() -> None:
    def task(n: int) -> Iterator[int]:
        yield from range(n)
        raise ValueError(n)

    async def read(n: int) -> int:
        found = []
        with contextlib.suppress(ValueError):
            async for ref in jt.remote(task).remote(n):
                found.append(await ref)
        assert found == list(range(n))
        return n

    async def main() -> list[int]:
        return await asyncio.gather(*(read(n) for n in range(20)))

    assert asyncio.run(main()) == list(range(20))


def test_who_waits_for_the_end_is_not_woken_by_items(tmp_path: Path) -> None:
    """`get`, `await` and `as_completed` of the ref of the whole task."""

    def task(place: str) -> Iterator[int]:
        for i in range(3):
            words.hear(f"{place}/{i}")
            yield i

    async def main() -> None:
        await generator.completed()
        assert generator.completed().is_final

    generator = jt.remote(task).remote(str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ends = [
            pool.submit(lambda: [ref.is_final for ref in jt.as_completed([generator.completed()])]),
            pool.submit(lambda: [jt.get(generator.completed())]),
            pool.submit(lambda: asyncio.run(main())),
        ]
        for i in range(3):
            words.say(tmp_path / f"{i}")
            assert jt.get(next(generator)) == i
            assert i == 2 or not any(end.done() for end in ends)
        assert [end.result(NET) for end in ends] == [[True], [None], None]


def test_async_iteration_in_a_task_frees_its_slot() -> None:
    """Two tasks in two slots, each of which waits for another."""

    async def total(n: int) -> int:
        return sum([await ref async for ref in jt.remote(count).remote(n)])

    assert jt.get([jt.remote(total).remote(4) for _ in range(2)], timeout=NET) == [6, 6]


def test_refs_that_the_functions_code_reads_live_as_long_as_its_tasks() -> None:
    def make(held: jt.ObjectRef) -> Any:
        def task() -> Iterator[int]:
            yield jt.get(held) + 1

        return jt.remote(task)

    assert values(make(jt.put(41)).remote()) == [42]
    jt.shutdown()  # the worker knows the function, and so holds what it reads


def test_a_group_cancels_generators_and_waits_for_them(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        yield 0
        words.say(f"{place}/in")
        time.sleep(LONG)

    with jt.TaskGroup("streams") as group:
        generator = jt.remote(task).remote(str(tmp_path))
        words.hear(tmp_path / "in")
        group.cancel()
    assert generator.completed().is_final
    zero, cancelled = generator
    assert jt.get(zero) == 0
    assert isinstance(error_of(cancelled), TaskCancelledError)
    assert [step["step"] for step in zero.story()] == [step["step"] for step in generator.completed().story()] != []


def test_the_stop_button_in_next_loses_nothing(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[int]:
        for i in range(2):
            words.hear(f"{place}/{i}")
            yield i

    generator = jt.remote(task).remote(str(tmp_path))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(generator)
    timer.join()
    for i in range(2):
        words.say(tmp_path / f"{i}")
    assert values(generator) == [0, 1]


def test_a_task_reads_the_items_of_its_own_generators() -> None:
    """Nesting does not deadlock: while it waits in `next`, its slot is free."""

    def total(depth: int) -> int:
        if not depth:
            return 1

        def parts() -> Iterator[Any]:
            for _ in range(2):
                yield jt.remote(total).remote(depth - 1)

        return sum(jt.get(jt.get(ref)) for ref in jt.remote(parts).remote())

    assert jt.get(jt.remote(total).remote(2), timeout=2 * NET) == 4


def test_a_chain_of_generators() -> None:
    """Ray: test_generator_dist_chain."""

    def chain(length: int) -> Iterator[Any]:
        if length == 0:
            for i in range(5):
                yield np.full(200_000, i, dtype=np.int8)
        else:
            for ref in jt.remote(chain).remote(length - 1):
                yield jt.get(ref)

    assert [int(array[0]) for array in values(jt.remote(chain).remote(3))] == [0, 1, 2, 3, 4]


# -- dropping ------------------------------------------------------------------------------------------------------------


def test_a_dropped_generator_lets_its_task_run_to_its_end_and_frees_the_items(tmp_path: Path) -> None:
    def task(place: str) -> Iterator[Any]:
        for i in range(5):
            yield np.full(200_000, i)
        words.hear(f"{place}/go on")
        for i in range(5):
            yield np.full(200_000, i)
        words.say(f"{place}/end")

    generator = jt.remote(task).remote(str(tmp_path))
    jt.wait([generator], timeout=NET)
    del generator
    wait_until(lambda: objects() == 1, "the items are freed, the task goes on")
    words.say(tmp_path / "go on")
    words.hear(tmp_path / "end")
    wait_until(lambda: objects() == 0, "those that came later, too")


def test_a_generator_is_no_part_of_a_cycle() -> None:
    """It is freed when it is dropped, and not when the garbage collector comes by."""
    import weakref

    generator = jt.remote(count).remote(3)
    next(generator)
    gone = weakref.ref(generator)
    gc.disable()
    try:
        del generator
        wait_until(lambda: gone() is None, "nobody holds it")
    finally:
        gc.enable()


# -- what it is not ------------------------------------------------------------------------------------------------------


def test_get_and_put_of_a_generator_say_what_to_do() -> None:
    generator = jt.remote(count).remote(1)
    for wrong in (generator, [generator]):
        with pytest.raises(TypeError, match=r"ObjectRefGenerator\. It hands out refs: \[jt.get\(ref\) for ref in"):
            jt.get(wrong)
    with pytest.raises(TypeError, match="Pass the refs that it hands out"):
        jt.put(generator)


def test_it_cannot_be_sent() -> None:
    """Ray: test_streaming_object_ref_generator_basic_unit."""
    generator = jt.remote(count).remote(1)
    with pytest.raises(TypeError, match=r"Cannot send 'n' to a worker: .* Pass the refs that it hands out"):
        jt.remote(count).remote(generator)
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pass the refs that it hands out"):
            send(generator)  # type: ignore[operator]


def test_a_plain_function_that_returns_a_generator_says_what_to_do() -> None:
    with pytest.raises(UnserializableError, match="num_returns='streaming'"):
        jt.get(jt.remote(lambda: (i for i in range(3))).remote(), timeout=NET)


# -- a fixed number of items ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [count, count_async, arrays])
def test_a_fixed_number_of_items(function: Callable[[int], Any]) -> None:
    """Ray: test_generator_returns."""
    refs = jt.remote(function).options(num_returns=3).remote(3)
    assert isinstance(refs, list)
    assert [np.ravel(value)[0] for value in jt.get(refs, timeout=NET)] == [0, 1, 2]
    assert np.ravel(jt.get(jt.remote(function).options(num_returns=1).remote(1), timeout=NET))[0] == 0


@pytest.mark.parametrize(("made", "match"), [(2, "Task returned 2 objects"), (4, "Task yielded more than 3 objects")])
def test_another_number_of_items_is_an_error_in_every_ref(made: int, match: str) -> None:
    for ref in jt.remote(count).options(num_returns=3).remote(made):
        with pytest.raises(ValueError, match=f"{match}, but num_returns=3"):
            jt.get(ref, timeout=NET)


def test_more_than_were_asked_for_are_not_made(tmp_path: Path) -> None:
    """It may be endless. Its finally runs."""

    def task(word: str) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            words.say(word)

    (ref, _) = jt.remote(task).options(num_returns=2).remote(str(tmp_path / "closed"))
    assert isinstance(error_of(ref), ValueError)
    words.hear(tmp_path / "closed")


def test_num_returns_0_runs_it_to_its_end(tmp_path: Path) -> None:
    def task(word: str) -> Iterator[int]:
        yield from range(3)
        words.say(word)

    assert jt.remote(task).options(num_returns=0).remote(str(tmp_path / "end")) is None
    words.hear(tmp_path / "end")


def test_an_error_in_the_middle_of_a_fixed_number_is_in_every_ref() -> None:
    def task() -> Iterator[int]:
        yield 0
        raise ValueError("broken")

    for ref in jt.remote(task).options(num_returns=2).remote():
        with pytest.raises(ValueError, match="broken"):
            jt.get(ref, timeout=NET)


# -- dynamic -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [count, count_async, arrays])
def test_dynamic_gives_one_ref_to_refs_of_all_items(function: Callable[[int], Any]) -> None:
    """Ray: test_dynamic_generator."""
    ref = jt.remote(function).options(num_returns="dynamic").remote(4)
    assert isinstance(ref, jt.ObjectRef)
    refs = jt.get(ref, timeout=NET)
    assert len(refs) == 4
    for _ in range(2):
        assert [np.ravel(jt.get(each, timeout=NET))[0] for each in refs] == [0, 1, 2, 3]
    assert refs[1:3] == [refs[1], refs[2]]
    assert len(jt.get(jt.remote(function).options(num_returns="dynamic").remote(0), timeout=NET)) == 0


def test_dynamic_refs_go_to_tasks() -> None:
    """As their ref and as themselves."""
    ref = jt.remote(arrays).options(num_returns="dynamic").remote(4)
    total = jt.remote(lambda refs: sum(int(jt.get(each)[0]) for each in refs))
    assert jt.get(total.remote(ref), timeout=NET) == 6
    assert jt.get(total.remote(jt.get(ref)), timeout=NET) == 6


def test_dynamic_an_error_in_the_middle_is_the_tasks() -> None:
    def task() -> Iterator[Any]:
        yield 0
        yield threading.Lock()

    with pytest.raises(UnserializableError, match="item 1"):
        jt.get(jt.remote(task).options(num_returns="dynamic").remote(), timeout=NET)


# -- the end of a session ------------------------------------------------------------------------------------------------


def test_when_the_supervisor_is_lost_next_raises_once_and_then_it_is_over() -> None:
    def task() -> Iterator[int]:
        yield 0
        time.sleep(LONG)

    generator = jt.remote(task).remote()
    assert jt.get(next(generator)) == 0
    os.kill(status()["pid"], signal.SIGKILL)
    (lost,) = generator
    assert isinstance(error_of(lost), ObjectLostError)
    assert generator.is_finished()
    jt.shutdown()


def test_after_a_shutdown_async_iteration_ends_too() -> None:
    async def main() -> list[jt.ObjectRef]:
        generator = jt.remote(count).options(generator_backpressure=1).remote(10)
        next(generator)
        jt.shutdown()
        return [ref async for ref in generator]

    *_, lost = asyncio.run(main())
    assert isinstance(error_of(lost), ObjectLostError)


def test_in_a_forked_child_it_has_ended() -> None:
    generator = jt.remote(count).remote(3)
    jt.get(generator.completed(), timeout=NET)
    pid = os.fork()
    if not pid:
        try:
            list(generator)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert values(generator) == [0, 1, 2]
