"""End to end: `get`, `wait`, `await` and futures, and the stop button while one of them waits.

Promises: docs/semantics.md, Waiting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fractions
import functools
import gc
import itertools
import math
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks import client as client_module
from jupyter_tasks.exceptions import GetTimeoutError, JupyterTasksError, ObjectLostError, TaskCancelledError
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0
LONG = 30.0


def until(path: str, value: Any = None) -> Any:
    """Returns the value, or raises it, when the word has been said."""
    words.hear(path, 60)
    if isinstance(value, Exception):
        raise value
    return value


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[jt.ObjectRef]]:
    """Two tasks that end when the test says "go", or when it is over."""
    refs = [jt.remote(until).remote(str(tmp_path / "go"), i) for i in (0, 1)]
    yield refs
    words.say(tmp_path / "go")
    with contextlib.suppress(JupyterTasksError):
        jt.get(refs)
    refs.clear()


# -- get ------------------------------------------------------------------------------------------------------------


def test_get_of_a_list_keeps_the_order_and_takes_a_ref_twice() -> None:
    refs = [jt.remote(abs).remote(-i) for i in range(10)]
    assert jt.get(refs[::-1]) == list(range(10))[::-1]
    assert jt.get([refs[3], refs[3], refs[1]]) == [3, 3, 1]
    assert jt.get((refs[0], refs[1])) == [0, 1]
    assert jt.get([]) == []


def test_get_again_gives_the_same_value_or_the_same_kind_of_error() -> None:
    def fail() -> None:
        raise ValueError("v")

    ref = jt.remote(fail).remote()
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^v$"):
            jt.get(ref)


@pytest.mark.parametrize("bad", [5, "x", None, {1: 2}, {jt}, iter([])], ids=lambda bad: type(bad).__name__)
def test_get_of_something_else_is_a_value_error_as_in_ray(bad: Any) -> None:
    with pytest.raises(ValueError, match="an ObjectRef or a list of them"):
        jt.get(bad)


def test_get_of_a_list_with_something_else_names_its_place() -> None:
    ref = jt.put(1)
    with pytest.raises(TypeError, match="item 1 is list"):
        jt.get([ref, [ref]])
    with pytest.raises(TypeError):
        jt.get(ref, 5)  # type: ignore[call-overload]


def test_get_takes_a_tuple_and_an_empty_list() -> None:
    assert jt.get((jt.put(1), jt.put(2))) == [1, 2]
    assert jt.get([]) == jt.get(()) == []


@pytest.mark.parametrize("verb", [jt.get, jt.wait, jt.as_completed], ids=lambda verb: str(verb.__name__))
def test_a_timeout_is_a_number_of_seconds(verb: Any) -> None:
    """Docs: a negative timeout is a ValueError; 0 and an endless one are fine, of any type of number."""
    refs = [jt.put(1)]
    for bad in (-1, -0.1, float("nan"), -math.inf):
        with pytest.raises(ValueError, match="must not be negative"):
            verb(refs, timeout=bad)
    for strange in (True, "1", [1]):
        with pytest.raises(TypeError, match="number of seconds"):
            verb(refs, timeout=strange)
    for good in (0, 0.5, 10**9, math.inf, fractions.Fraction(1, 2), np.float32(1), np.int64(1)):
        verb(refs, timeout=good)


@pytest.mark.parametrize("endless", [math.inf, 1e12])
def test_a_very_long_timeout_waits(endless: float, two: list[jt.ObjectRef], tmp_path: Path) -> None:
    """A month in milliseconds does not fit into what poll takes."""
    threading.Timer(0.05, words.say, [tmp_path / "go"]).start()
    assert jt.get(two, timeout=endless) == [0, 1]


def test_get_gives_up_after_its_timeout_and_the_task_goes_on(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    for what in (two[0], two):
        began = time.monotonic()
        with pytest.raises(GetTimeoutError) as caught:
            jt.get(what, timeout=0.1)
        assert 0.1 <= time.monotonic() - began < NET
        assert isinstance(caught.value, TimeoutError)
    words.say(tmp_path / "go")
    assert jt.get(two, timeout=NET) == [0, 1]


def test_get_with_timeout_zero_looks_once(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    for what in (two[0], two):
        began = time.monotonic()
        with pytest.raises(GetTimeoutError):
            jt.get(what, timeout=0)
        assert time.monotonic() - began < 0.1 + NET / 10
    words.say(tmp_path / "go")
    jt.wait(two, num_returns=2, timeout=NET)
    assert jt.get(two, timeout=0) == [0, 1]


@pytest.mark.parametrize("others", [1, 3, 20])
@pytest.mark.parametrize("position", [0, -1], ids=["first", "last"])
def test_get_of_a_list_raises_on_a_failure_without_waiting_for_the_others(
    others: int, position: int, tmp_path: Path
) -> None:
    def fail() -> None:
        raise ValueError("early")

    waiting = [jt.remote(until).options(num_cpus=0).remote(str(tmp_path / "go"), i) for i in range(others)]
    failed = jt.remote(fail).remote()
    refs = [failed, *waiting] if position == 0 else [*waiting, failed]
    began = time.monotonic()
    with pytest.raises(ValueError, match="early"):
        jt.get(refs, timeout=NET / 2)
    took = time.monotonic() - began
    words.say(tmp_path / "go")
    jt.get(waiting, timeout=NET)
    assert took < NET / 2


def test_get_of_a_list_with_a_cancelled_task_raises_the_cancel(two: list[jt.ObjectRef]) -> None:
    jt.cancel(two[1])
    with pytest.raises(TaskCancelledError):
        jt.get(two, timeout=LONG)


def test_several_threads_get_at_the_same_time() -> None:
    slow = [jt.remote(time.sleep).remote(0.001 * (i % 5)) for i in range(60)]
    values: dict[int, Any] = {}

    def getter(i: int) -> None:
        values[i] = jt.get(slow[i::6], timeout=NET)

    threads = [threading.Thread(target=getter, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert values == {i: [None] * 10 for i in range(6)}


def test_several_threads_get_the_same_big_value() -> None:
    ref = jt.remote(os.urandom).remote(500_000)
    values: list[bytes] = []
    threads = [threading.Thread(target=lambda: values.append(jt.get(ref, timeout=NET))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert len(values) == 8
    assert len(set(values)) == 1


# -- wait -----------------------------------------------------------------------------------------------------------


def test_wait_returns_what_is_ready_in_the_order_given(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    quick = [jt.put(i) for i in range(3)]
    refs = [two[0], quick[2], two[1], quick[0], quick[1]]
    assert jt.wait(refs, num_returns=3) == ([quick[2], quick[0], quick[1]], two)
    assert jt.wait(refs, num_returns=2) == ([quick[2], quick[0]], [two[0], two[1], quick[1]])
    assert jt.wait(refs, num_returns=5, timeout=0) == ([quick[2], quick[0], quick[1]], two)
    began = time.monotonic()
    assert jt.wait(refs, num_returns=4, timeout=0.1)[1] == two
    assert time.monotonic() - began >= 0.1
    words.say(tmp_path / "go")
    assert jt.wait(refs, num_returns=5, timeout=NET) == (refs, [])


def test_failed_and_cancelled_count_as_ready(two: list[jt.ObjectRef]) -> None:
    def fail() -> None:
        raise ValueError("v")

    jt.cancel(two[0])
    failed = jt.remote(fail).remote()
    ready, rest = jt.wait([two[1], failed, two[0]], num_returns=2, timeout=NET)
    assert (ready, rest) == ([failed, two[0]], [two[1]])


@pytest.mark.parametrize("bad", [0, -1, 3, 1.5, True, "1"])
def test_wait_wants_a_sensible_number(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_returns must be between 1 and 2"):
        jt.wait([jt.put(1), jt.put(2)], num_returns=bad)


def test_wait_refuses_what_makes_no_sense() -> None:
    ref = jt.put(1)
    with pytest.raises(TypeError, match="put the ref in a list"):
        jt.wait(ref)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item 1 is int"):
        jt.wait([ref, 5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="twice"):
        jt.wait([ref, ref], num_returns=2)
    assert jt.wait([]) == ([], [])


def test_a_get_that_has_waited_for_long_is_not_robbed_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader thread takes over from a leader that an interrupt threw out, never from one that is slow to wake.

    1. The main thread waits in `get` for longer than STALE_LEADER. 2. The answer comes. 3. Before the main thread has
    taken it, the reader thread looks, several times. 4. The main thread must find the answer: no other would come.
    """
    monkeypatch.setattr(client_module, "STALE_LEADER", 0.5)
    client = current_client()
    receive = client._recvmsg

    def late(*arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            select.select([client._sock], [], [])
            time.sleep(5 * client_module.READER_NAP)
        return receive(*arguments)

    monkeypatch.setattr(client, "_recvmsg", late)
    got: list[Any] = []
    thread = threading.Timer(NET, os.kill, [os.getpid(), signal.SIGINT])  # a net: it would hang
    thread.start()
    try:
        got.append(jt.get(jt.remote(time.sleep).remote(0.7)))
    except KeyboardInterrupt:
        pytest.fail("the answer was taken by the reader thread, and get waits for ever")
    finally:
        thread.cancel()
    assert got == [None]


# -- as_completed ------------------------------------------------------------------------------------------------------


def gated(place: str, count: int) -> list[jt.ObjectRef]:
    """Tasks that end when the test says so: `words.say(f"{place}/{i}")`. All run at once."""
    task = jt.remote(until).options(num_cpus=0)
    return [task.remote(f"{place}/{i}", i) for i in range(count)]


def test_refs_come_as_they_become_final(tmp_path: Path) -> None:
    """Those that are final first, in the order given; then each at once, in the order of their ends."""
    refs = [*gated(str(tmp_path), 4), jt.put("a"), jt.put("b")]
    coming = jt.as_completed(refs)
    assert [next(coming), next(coming)] == refs[4:]
    for i in (2, 0, 3, 1):
        words.say(tmp_path / str(i))
        assert next(coming) is refs[i]
    assert list(coming) == []


def test_failed_and_cancelled_ones_come_too(two: list[jt.ObjectRef]) -> None:
    def fail() -> None:
        raise ValueError("v")

    crash = jt.remote(os._exit).options(num_cpus=0, max_retries=0).remote(1)
    failed = jt.remote(fail).options(num_cpus=0).remote()
    jt.cancel(two[0])
    assert set(itertools.islice(jt.as_completed([*two, failed, crash], timeout=NET), 3)) == {two[0], failed, crash}


def test_as_completed_refuses_what_wait_refuses() -> None:
    ref = jt.put(1)
    with pytest.raises(TypeError, match="put the ref in a list"):
        jt.as_completed(ref)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item 1 is int"):
        jt.as_completed([ref, 5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="twice"):
        jt.as_completed([ref, ref])
    assert list(jt.as_completed([])) == []
    assert list(jt.as_completed(iter([ref]))) == [ref]


def test_its_timeout_counts_from_the_call_and_says_how_many_are_open(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    done = jt.remote(abs).options(num_cpus=0).remote(-1)
    jt.get(done)
    coming = jt.as_completed([*two, done], timeout=0.05)
    wait_until(lambda: coming._rest() == 0, "its time is over")
    assert next(coming) is done  # what is there comes all the same
    for _ in range(2):
        with pytest.raises(GetTimeoutError, match=r"2 of 3 refs were not final within 0\.05 s"):
            next(coming)
    words.say(tmp_path / "go")
    assert jt.get(two, timeout=NET) == [0, 1]  # the tasks have gone on
    assert set(coming) == set(two)


def test_timeout_zero_gives_what_is_there() -> None:
    refs = [jt.remote(abs).remote(-i) for i in range(50)]
    jt.wait(refs, num_returns=50)
    assert list(jt.as_completed(refs, timeout=0)) == refs


def test_what_was_given_out_is_let_go(tmp_path: Path) -> None:
    """Values are freed as the loop goes, not at its end."""
    refs = [jt.put(i) for i in range(3)]
    coming = jt.as_completed(refs)
    refs.clear()
    assert status()["objects"] == 3
    for left in (2, 1, 0):
        next(coming)
        wait_until(lambda left=left: status()["objects"] == left, "the value is freed")


def test_who_leaves_the_loop_leaves_nothing_behind(two: list[jt.ObjectRef]) -> None:
    """However often: a poll over slow tasks must not fill the memory."""
    done = jt.put(1)
    for _ in range(100):
        for _ in jt.as_completed([*two, done]):
            break
        with pytest.raises(GetTimeoutError):
            list(jt.as_completed(two, timeout=0))

        async def poll() -> None:
            for ref in two:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ref, 0.0001)
            with pytest.raises(GetTimeoutError):
                async for _ in jt.as_completed(two, timeout=0.0001):
                    pass

        asyncio.run(poll())
    gc.collect()
    assert all(len(ref._waiters or ()) <= 1 and not ref._callbacks for ref in two)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["for", "async for"])
def test_many_thousand_refs_cost_as_much_as_get(asynchronous: bool) -> None:
    """O(n): every ref is looked at twice, however they come. The bound is loose; n times n looks take a minute."""
    count = 40_000
    task = jt.remote(abs)
    coming = jt.as_completed([task.remote(-i) for i in range(count)], timeout=60)

    async def main() -> int:
        return len({ref.id async for ref in coming})

    began = time.perf_counter()
    found = asyncio.run(main()) if asynchronous else len({ref.id for ref in coming})
    assert found == count
    assert time.perf_counter() - began < 20  # it takes 1.4


def test_every_thread_may_have_its_own(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    got: list[set[jt.ObjectRef]] = []
    threads = [threading.Thread(target=lambda: got.append(set(jt.as_completed(two)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    words.say(tmp_path / "go")
    for thread in threads:
        thread.join(NET)
    assert got == [set(two)] * 4


def test_async_for_lets_the_loop_run(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    async def main() -> list[Any]:
        async def act() -> None:
            await asyncio.sleep(0.001)
            words.say(tmp_path / "go")

        action = asyncio.ensure_future(act())
        values = [await ref async for ref in jt.as_completed(two)]
        await action
        return sorted(values)

    assert asyncio.run(main()) == [0, 1]


def test_as_completed_in_a_task_gives_the_slot_back() -> None:
    """As `get` does: with two CPUs, four tasks that wait for children do not deadlock."""

    def parent(asynchronous: bool) -> list[int]:
        refs = [jt.remote(abs).remote(-i) for i in range(3)]
        if not asynchronous:
            return sorted(jt.get(ref) for ref in jt.as_completed(refs))

        async def main() -> list[int]:
            return sorted([await ref async for ref in jt.as_completed(refs)])

        return asyncio.run(main())

    refs = [jt.remote(parent).remote(i % 2 == 0) for i in range(4)]
    assert jt.get(refs, timeout=NET * 2) == [[0, 1, 2]] * 4


def test_when_the_session_ends_all_refs_come_at_once(tmp_path: Path) -> None:
    refs = gated(str(tmp_path), 3)
    coming = jt.as_completed(refs)
    words.say(tmp_path / "1")
    assert next(coming) is refs[1]
    ending = threading.Timer(0.05, jt.shutdown)
    ending.start()
    assert set(coming) == {refs[0], refs[2]}
    with pytest.raises(ObjectLostError):
        jt.get(refs[0])
    ending.join()


# -- await and futures --------------------------------------------------------------------------------------------------


def test_a_ref_can_be_awaited() -> None:
    async def main() -> Any:
        values = await asyncio.gather(*(jt.remote(abs).remote(-i) for i in range(20)))
        return values, await jt.put("stored")

    assert asyncio.run(main()) == (list(range(20)), "stored")


def test_awaiting_raises_the_tasks_error() -> None:
    def fail() -> None:
        raise KeyError("k")

    async def main() -> None:
        await jt.remote(fail).remote()

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_cancelling_the_awaiting_code_leaves_the_task_alone(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(two[0], 0.05)

    asyncio.run(main())
    words.say(tmp_path / "go")
    assert jt.get(two, timeout=NET) == [0, 1]


def test_the_loop_runs_on_while_a_ref_is_awaited(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    async def main() -> Any:
        async def act() -> None:
            for _ in range(5):
                await asyncio.sleep(0.001)
            words.say(tmp_path / "go")

        return await asyncio.gather(two[0], act(), two[1])

    assert asyncio.run(main()) == [0, None, 1]


def test_a_ref_is_awaitable_wherever_asyncio_takes_awaitables() -> None:
    """gather (also of one ref twice), ensure_future, shield, as_completed; in several loops at the same time."""
    refs = [jt.remote(abs).remote(-i) for i in range(5)]

    async def main() -> Any:
        twice = await asyncio.gather(refs[1], refs[1], *refs)
        both = await asyncio.ensure_future(refs[2]), await asyncio.shield(refs[3])
        return twice, both, sorted([await each for each in asyncio.as_completed(refs)])

    expected = ([1, 1, 0, 1, 2, 3, 4], (2, 3), [0, 1, 2, 3, 4])
    assert asyncio.run(main()) == expected
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(asyncio.run(main()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert got == [expected] * 3


def test_gather_raises_the_first_failure_and_the_other_tasks_go_on(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("k")

    async def main() -> Any:
        with pytest.raises(KeyError):
            await asyncio.gather(*two, jt.remote(fail).options(num_cpus=0).remote())
        words.say(tmp_path / "go")
        return await asyncio.gather(*two, jt.remote(fail).remote(), return_exceptions=True)

    *values, error = asyncio.run(main())
    assert values == [0, 1]
    assert isinstance(error, KeyError)


def test_async_tasks_that_await_their_children_do_not_deadlock() -> None:
    """While a task awaits, its slot is free, however many of its coroutines wait; and it has it again afterwards."""

    async def parent() -> int:
        children = [jt.remote(abs).remote(-i) for i in range(5)]
        first = await asyncio.gather(*children)
        second = jt.get([jt.remote(abs).remote(-1) for _ in range(2)])
        return sum(first) + sum(second) + await jt.remote(abs).remote(-5)

    assert jt.get([jt.remote(parent).remote() for _ in range(6)], timeout=NET * 2) == [17] * 6
    wait_until(lambda: status()["available"]["CPU"] == 2 or status()["idle"], "both slots are free")


def test_a_ref_as_a_concurrent_future(two: list[jt.ObjectRef], tmp_path: Path) -> None:
    futures = [ref.future() for ref in two]
    assert not any(future.done() for future in futures)
    called: list[Any] = []
    futures[0].add_done_callback(called.append)
    words.say(tmp_path / "go")
    assert [future.result(NET) for future in futures] == [0, 1]
    wait_until(lambda: called == [futures[0]], "the callback")
    assert {f.result() for f in concurrent.futures.as_completed(futures, NET)} == {0, 1}


def test_a_futures_cancel_cancels_the_task(two: list[jt.ObjectRef]) -> None:
    future = two[0].future()
    assert future.cancel() is True
    with pytest.raises((TaskCancelledError, concurrent.futures.CancelledError)):
        future.result(NET)
    with pytest.raises(TaskCancelledError):
        jt.get(two[0], timeout=NET)


def test_the_future_of_a_final_ref_is_done_at_once_and_cannot_be_cancelled() -> None:
    def fail() -> None:
        raise ValueError("v")

    good, bad = jt.remote(abs).remote(-1), jt.remote(fail).remote()
    jt.wait([good, bad], num_returns=2, timeout=NET)
    assert good.future().result(NET) == 1
    assert isinstance(bad.future().exception(NET), ValueError)
    future = good.future()
    future.result(NET)
    assert future.cancel() is False


# -- the stop button ---------------------------------------------------------------------------------------------------------


def interrupt_when_blocked(path: Path) -> threading.Thread:
    """Sends this process a real SIGINT once a task is in and the main thread sleeps in `get`."""

    def send() -> None:
        words.hear(path)
        words.blocked_in_system(os.getpid())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def slow(place: str) -> str:
    words.say(f"{place}/in")
    words.hear(f"{place}/go", 60)
    return "done"


def test_the_stop_button_ends_get_at_once_and_the_task_goes_on(tmp_path: Path) -> None:
    ref = jt.remote(slow).remote(str(tmp_path))
    thread = interrupt_when_blocked(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        jt.get(ref, timeout=LONG)
    thread.join()
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == "done"


@pytest.mark.parametrize("many", [False, True], ids=["one", "list"])
def test_with_cancel_on_interrupt_what_it_waits_for_is_cancelled(many: bool, tmp_path: Path) -> None:
    ref = jt.remote(slow).remote(str(tmp_path))
    ready = jt.put("stays")
    thread = interrupt_when_blocked(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        jt.get([ready, ref] if many else ref, timeout=LONG, cancel_on_interrupt=True)
    thread.join()
    with pytest.raises(TaskCancelledError) as caught:
        jt.get(ref, timeout=NET)
    assert caught.value.source == "interrupt"
    assert jt.get(ready) == "stays"


def test_the_stop_button_ends_wait_at_once(tmp_path: Path) -> None:
    ref = jt.remote(slow).remote(str(tmp_path))
    thread = interrupt_when_blocked(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        jt.wait([ref], timeout=LONG)
    thread.join()
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == "done"


def test_the_stop_button_ends_as_completed_at_once_and_it_can_be_gone_on_with(tmp_path: Path) -> None:
    refs = [jt.put(1), jt.remote(slow).remote(str(tmp_path))]
    coming = jt.as_completed(refs)
    assert next(coming) is refs[0]
    thread = interrupt_when_blocked(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        next(coming)
    thread.join()
    words.say(tmp_path / "go")
    assert list(coming) == refs[1:]


class Alarms:
    """`with Alarms() as alarms`: KeyboardInterrupts at random moments of what `strike` is given."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.raised = 0
        self._armed = False

    def __enter__(self) -> Alarms:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        signal.signal(signal.SIGALRM, self._before)

    def _ring(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def strike(self, action: Callable[[], object], within_s: float) -> None:
        """Does it, perhaps not to its end."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, self.random.random() * within_s + 1e-6)
            action()
            self._armed = False
        except KeyboardInterrupt:
            self.raised += 1

    def rest(self) -> None:
        """None any more until the next strike."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def storm(seconds: float, big: bool) -> tuple[int, int]:
    """KeyboardInterrupts at random moments inside `get`. Returns how many tasks ran and how many were raised."""
    task = jt.remote(lambda i: (i, b"x" * 150_000 if big else b""))
    tasks = 0
    end = time.monotonic() + seconds
    with Alarms(seed=7) as alarms:
        while time.monotonic() < end:
            refs = [task.remote(i) for i in range(alarms.random.choice((1, 1, 3, 40)))]
            tasks += len(refs)
            for ref in refs:
                alarms.strike(functools.partial(jt.get, ref, timeout=NET), 0.001 if big else 0.00025)
            alarms.rest()
            # No frame was lost, and none is stuck behind a lock that nobody holds any more.
            for i, ref in enumerate(refs):
                assert jt.get(ref, timeout=NET)[0] == i
    return tasks, alarms.raised


def mappings() -> int:
    """Parts of this process's memory that are values of tasks."""
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line and "jupyter" in line for line in file)


def others_can_still_wait() -> None:
    """The reading goes on in the other threads, too: nobody has left a lock held."""
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(jt.get(jt.remote(abs).remote(-5), timeout=NET)))
    thread.start()
    thread.join(NET)
    assert values == [5]
    future = jt.remote(abs).remote(-6).future()
    assert future.result(NET) == 6


@pytest.mark.slow
@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
def test_a_storm_of_interrupts_in_get_loses_no_frame_and_no_ref(big: bool) -> None:
    mapped = mappings()
    tasks, raised = storm(6.0, big)
    print(f"{tasks} tasks, {raised} interrupts raised in get")
    assert raised > 20
    others_can_still_wait()
    wait_until(lambda: mappings() == mapped, "every value that came is unmapped again")


@pytest.mark.slow
def test_a_storm_of_interrupts_while_other_threads_wait_too() -> None:
    stop = threading.Event()
    problems: list[BaseException] = []

    def neighbour() -> None:
        try:
            while not stop.is_set():
                assert jt.get([jt.remote(abs).remote(-i) for i in range(5)], timeout=NET) == list(range(5))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=neighbour) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        tasks, raised = storm(4.0, big=False)
    finally:
        stop.set()
        for thread in threads:
            thread.join(NET * 2)
    print(f"{tasks} tasks, {raised} interrupts raised in get")
    assert problems == []
    assert raised > 5
    others_can_still_wait()


@pytest.mark.slow
def test_a_storm_of_interrupts_in_as_completed_loses_no_ref() -> None:
    """Each comes exactly once, however often the iterator was interrupted in between."""
    task = jt.remote(lambda i: i)
    end = time.monotonic() + 5.0
    with Alarms(seed=9) as alarms:
        while time.monotonic() < end:
            refs = [task.remote(i) for i in range(30)]
            coming = jt.as_completed(refs, timeout=NET)
            got: list[jt.ObjectRef] = []
            for _ in range(40):
                # No byte code of this test between the iterator's return and the list.
                alarms.strike(functools.partial(got.extend, map(next, (coming,))), 0.0002)
            alarms.rest()
            got.extend(coming)
            assert len(got) == len(refs)
            assert set(got) == set(refs)
    print(f"{alarms.raised} interrupts raised")
    assert alarms.raised > 20
    others_can_still_wait()


@pytest.mark.slow
def test_a_storm_of_interrupts_while_submitting_loses_nothing_that_was_returned() -> None:
    """Interrupts in `remote()`, `cancel()` and `put()`: a frame that was sent in part is finished by the next one."""
    identity = jt.remote(lambda i: i)
    end = time.monotonic() + 5.0

    def submit(i: int, refs: list[tuple[jt.ObjectRef, int]]) -> None:
        refs.append((identity.remote(i), i))
        stored = jt.put(i)
        jt.cancel(stored)
        refs.append((identity.remote(stored), i))

    with Alarms(seed=8) as alarms:
        while time.monotonic() < end:
            refs: list[tuple[jt.ObjectRef, int]] = []
            for i in range(30):
                alarms.strike(functools.partial(submit, i, refs), 0.0002)
            alarms.rest()
            for ref, value in refs:
                assert jt.get(ref, timeout=NET) == value
            refs.clear()
    print(f"{alarms.raised} interrupts raised")
    assert alarms.raised > 10
    others_can_still_wait()


def test_a_sigint_to_the_whole_process_group_does_not_hurt_workers(tmp_path: Path) -> None:
    """The stop button of a terminal or of Jupyter: workers and supervisor are in sessions of their own."""
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
import words
import jupyter_tasks as jt

def task(place):
    words.say(place + "/in")
    words.hear(place + "/go")
    return "unharmed"

jt.init(num_cpus=1)
ref = jt.remote(task).remote({str(tmp_path)!r})
words.hear({str(tmp_path)!r} + "/in")
try:
    os.killpg(0, signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    pass
words.say({str(tmp_path)!r} + "/go")
print(jt.get(ref, timeout=10))
"""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert done.stdout == "unharmed\n", done.stderr
