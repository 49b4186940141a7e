"""End to end: `jt.Executor` behind the interface of concurrent.futures, and what its futures can do that others cannot.

Promises: docs/semantics.md, Executor. The cases of the standard library are those of CPython's own tests of executors.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import NET, Screen, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ForceCancelledError,
    ObjectLostError,
    TaskCancelledError,
    UnserializableError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.usefixtures("session")

LONG = 30.0
STATUS = "not initialized"


@pytest.fixture
def executor() -> Iterator[jt.Executor]:
    with jt.Executor() as executor:
        yield executor


def until(path: Path, value: Any = None) -> Any:
    """Returns the value, or raises it, when the word has been said."""
    words.hear(path, 60)
    if isinstance(value, Exception):
        raise value
    return value


def sleep(path: Path, seconds: float = LONG) -> None:
    words.say(path, os.getpid())
    time.sleep(seconds)


def stubborn(path: Path) -> str:
    """Catches one interrupt and returns."""
    words.say(path)
    try:
        time.sleep(LONG)
    except KeyboardInterrupt:
        pass
    return "won"


def capture(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def fail(text: str) -> None:
    raise ValueError(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- what the standard library promises ----------------------------------------------------------------------------------


def test_submit_takes_every_argument_that_a_function_takes(executor: jt.Executor) -> None:
    assert executor.submit(pow, 2, 8).result(NET) == 256
    assert executor.submit(capture, 1, self=2, fn=3).result(NET) == ((1,), {"self": 2, "fn": 3})
    assert executor.submit(int, "12").result(NET) == 12  # a class is a callable, too
    with pytest.raises(TypeError):
        executor.submit(fn=capture)  # type: ignore[call-arg]


def test_map_is_the_builtin_map(executor: jt.Executor) -> None:
    expected = list(map(pow, range(10), range(12)))
    assert list(executor.map(pow, range(10), range(12))) == expected
    assert list(executor.map(pow, range(10), range(12), chunksize=3)) == expected
    assert list(executor.map(lambda x, y: x + y, range(5), range(5), chunksize=2)) == [0, 2, 4, 6, 8]
    assert list(executor.map(functools.partial(pow, 2), range(4), chunksize=3)) == [1, 2, 4, 8]
    assert list(executor.map(pow)) == []


def test_map_raises_at_the_place_of_the_error(executor: jt.Executor) -> None:
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_runs_without_being_iterated(executor: jt.Executor, tmp_path: Path) -> None:
    executor.map(words.say, [tmp_path / "a", tmp_path / "b"])
    words.hear(tmp_path / "a")
    words.hear(tmp_path / "b")


def test_maps_timeout_counts_from_the_call_and_stops_the_rest(executor: jt.Executor, tmp_path: Path) -> None:
    """And the call that was waited for is interrupted: `with` does not wait for its 30 seconds."""
    results = executor.map(sleep, [tmp_path / "a", tmp_path / "b"], [0.0, LONG], timeout=1)
    assert next(results) is None
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_a_map_that_is_closed_cancels_what_runs(executor: jt.Executor, tmp_path: Path) -> None:
    results = executor.map(sleep, [tmp_path / "a", tmp_path / "b"], [0.0, LONG])
    next(results)
    words.hear(tmp_path / "b")
    results.close()
    wait_until(lambda: not executor._open, "the end of the call that slept")


def test_maps_buffersize_reads_no_further(executor: jt.Executor) -> None:
    numbers = itertools.count()
    results = executor.map(str, numbers, buffersize=3)
    assert next(numbers) == 3
    assert [next(results) for _ in range(4)] == ["0", "1", "2", "4"]
    results.close()
    for wrong, error in ((0, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="buffersize"):
            executor.map(str, [1], buffersize=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(str, [1], chunksize=0)


def test_arguments_and_results_are_not_kept(executor: jt.Executor) -> None:
    class Thing:
        def method(self) -> None: ...

    thing = Thing()
    gone = weakref.ref(thing)
    executor.submit(thing.method).result(NET)
    del thing
    wait_until(lambda: gc.collect() or gone() is None, "nobody holds the argument")
    for value in executor.map(set, [[1], [2], [3]]):
        result = weakref.ref(value)
        del value
        gc.collect()
        assert result() is None


def test_wait_and_as_completed(executor: jt.Executor, tmp_path: Path) -> None:
    """First completed, first exception, all; a cancelled future wakes them, too."""
    never = executor.submit(sleep, tmp_path / "in")
    words.hear(tmp_path / "in")
    good = executor.submit(abs, -1)
    done, _ = concurrent.futures.wait([never, good], NET, concurrent.futures.FIRST_COMPLETED)
    assert done == {good}
    bad = executor.submit(fail, "x")
    done, _ = concurrent.futures.wait([never, bad], NET, concurrent.futures.FIRST_EXCEPTION)
    assert done == {bad}
    assert isinstance(bad.exception(), ValueError)
    never.cancel()
    assert not concurrent.futures.wait([never, good, bad], NET).not_done
    assert set(concurrent.futures.as_completed([never, good, bad], NET)) == {never, good, bad}


def test_submit_after_shutdown_is_refused_as_in_the_standard_library() -> None:
    executor = jt.Executor()
    future = executor.submit(abs, -1)
    executor.shutdown()
    assert future.done()
    executor.shutdown()
    for call in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()


def test_shutdown_without_wait_lets_all_calls_end(tmp_path: Path) -> None:
    """Also those that wait in the line behind `max_workers`."""
    executor = jt.Executor(1)
    futures = [executor.submit(until, tmp_path / "go", i) for i in range(3)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    del executor
    words.say(tmp_path / "go")
    assert [future.result(NET) for future in futures] == [0, 1, 2]


@pytest.mark.parametrize("max_workers", [None, 2])
def test_cancel_futures_cancels_what_has_not_begun(max_workers: int | None, tmp_path: Path) -> None:
    """What runs goes on to its end."""
    executor = jt.Executor(max_workers)
    running = [executor.submit(_hear_and_say, tmp_path / f"in{i}", tmp_path / "go") for i in range(2)]
    for i in range(2):
        words.hear(tmp_path / f"in{i}")
    waiting = [executor.submit(abs, i) for i in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert not concurrent.futures.wait(waiting, NET).not_done
    assert all(future.cancelled() for future in waiting)
    assert not any(future.done() for future in running)
    words.say(tmp_path / "go")
    executor.shutdown()
    assert [future.result(0) for future in running] == ["end", "end"]


def _hear_and_say(path: Path, go: Path) -> str:
    words.say(path)
    words.hear(go, 60)
    return "end"


def test_bad_arguments() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            jt.Executor(wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        jt.Executor(initializer=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        jt.Executor(timeout=-1)


# -- cancel -----------------------------------------------------------------------------------------------------------------


def test_cancel_stops_a_running_call(executor: jt.Executor, tmp_path: Path) -> None:
    """`cancelled()` is true when it has stopped, and not before; the error is ours and the standard library's."""
    called: list[Any] = []
    future = executor.submit(sleep, tmp_path / "in")
    future.add_done_callback(called.append)
    words.hear(tmp_path / "in")
    assert future.running()
    assert future.cancel() is True
    for ask in (future.result, future.exception):
        with pytest.raises(TaskCancelledError) as caught:
            ask(NET)
        assert isinstance(caught.value, concurrent.futures.CancelledError)
        assert (caught.value.rung, caught.value.source) == ("interrupt", "user")
        assert caught.value.task_id
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert future.cancel() is True  # as in the standard library: it is cancelled
    wait_until(lambda: called == [future], "the callback")


def test_a_call_that_returns_all_the_same_has_won(executor: jt.Executor, tmp_path: Path) -> None:
    future = executor.submit(stubborn, tmp_path / "in")
    words.hear(tmp_path / "in")
    assert future.cancel() is True
    assert future.result(NET) == "won"
    assert not future.cancelled()
    assert future.cancel() is False


def _twice(path: Path, times: int) -> None:
    words.say(path)
    for _ in range(times):
        try:
            time.sleep(LONG)
        except KeyboardInterrupt:
            words.say(f"{path}-caught")
    time.sleep(LONG)


def test_each_cancel_is_delivered(executor: jt.Executor, tmp_path: Path) -> None:
    """While it has not stopped it is not cancelled, and is running; another cancel is another interrupt."""
    future = executor.submit(_twice, tmp_path / "in", 1)
    words.hear(tmp_path / "in")
    assert future.cancel() is True
    words.hear(tmp_path / "in-caught")
    assert not future.cancelled()
    assert not future.done()
    assert future.running()
    assert future.cancel() is True
    with pytest.raises(TaskCancelledError):
        future.result(NET)


def test_grace_ends_the_process_of_a_call_that_does_not_stop(tmp_path: Path) -> None:
    with jt.Executor(grace=0.05) as executor:
        future = executor.submit(_twice, tmp_path / "in", 100)
        words.hear(tmp_path / "in")
        future.cancel()
        with pytest.raises(ForceCancelledError) as caught:
            future.result(NET)
    assert isinstance(caught.value, concurrent.futures.CancelledError)
    assert future.cancelled()


def test_a_call_that_has_not_begun_never_begins(tmp_path: Path) -> None:
    """One that waits at the supervisor, and one that waits in the line."""
    with jt.Executor(3) as executor:
        blocking = [executor.submit(until, tmp_path / "go") for _ in range(2)]
        wait_until(lambda: all(future.running() for future in blocking), "both slots taken")
        pending = [executor.submit(words.mark, tmp_path / "ran") for _ in range(2)]
        assert not any(future.running() for future in pending)
        for future in pending:
            assert future.cancel() is True
            with pytest.raises(TaskCancelledError) as caught:
                future.result(NET)
            assert caught.value.rung == "pending"
        words.say(tmp_path / "go")
    assert words.marks(tmp_path / "ran") == 0


def test_a_task_that_has_met_anothers_cancel_was_not_cancelled(executor: jt.Executor, tmp_path: Path) -> None:
    """Its own code has raised that error; but a call whose argument was cancelled never runs, and is cancelled."""

    def gets(refs: list[jt.ObjectRef]) -> None:
        jt.get(refs[0])

    ref = jt.remote(sleep).remote(tmp_path / "in")
    words.hear(tmp_path / "in")
    meets, needs = executor.submit(gets, [ref]), executor.submit(abs, ref)
    jt.cancel(ref)
    assert isinstance(meets.exception(NET), TaskCancelledError)
    assert not meets.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        needs.result(NET)
    assert needs.cancelled()


def test_the_stop_button_in_a_with_cancels_before_it_waits(tmp_path: Path) -> None:
    futures: list[Any] = []

    def block() -> None:
        with jt.Executor() as executor:
            futures.append(executor.submit(sleep, tmp_path / "in"))
            words.hear(tmp_path / "in")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert futures[0].cancelled()


def test_callbacks_that_raise_are_logged_and_harm_nobody(
    executor: jt.Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also SystemExit, which must not end the thread that brings results."""
    future = executor.submit(until, tmp_path / "go", 1)
    called: list[Any] = []

    def raises(error: BaseException, _: Any) -> None:
        raise error

    future.add_done_callback(functools.partial(raises, ValueError("one")))
    future.add_done_callback(called.append)
    future.add_done_callback(functools.partial(raises, SystemExit(3)))
    words.say(tmp_path / "go")
    wait_until(lambda: "SystemExit" in caplog.text, "the log")
    assert "ValueError: one" in caplog.text
    caplog.clear()  # it holds the future
    assert called == [future]
    assert executor.submit(abs, -2).result(NET) == 2


def test_waiting_in_a_callback_is_an_error_and_no_deadlock(executor: jt.Executor, tmp_path: Path) -> None:
    errors: list[Any] = []
    future, other = executor.submit(until, tmp_path / "go"), executor.submit(until, tmp_path / "end")

    def waits(_: Any) -> None:
        for wait in (other.result, executor.shutdown):
            try:
                wait()
            except RuntimeError as error:
                errors.append(str(error))

    future.add_done_callback(waits)
    words.say(tmp_path / "go")
    wait_until(lambda: len(errors) == 2, "two errors")
    assert all("callback" in error for error in errors)
    words.say(tmp_path / "end")
    other.result(NET)


# -- asyncio ------------------------------------------------------------------------------------------------------------------


def test_run_in_executor_and_the_cancel_of_asyncio(executor: jt.Executor, tmp_path: Path) -> None:
    """A cancelled await stops the call; a cancel by somebody else is asyncio's CancelledError."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 3) == 8
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, sleep, tmp_path / "in"), 0.3)
        future = executor.submit(sleep, tmp_path / "again")
        awaited = asyncio.wrap_future(future)
        while not words.said(tmp_path / "again"):
            await asyncio.sleep(0.001)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited

    asyncio.run(main())
    wait_until(lambda: not executor._open, "no call is left")


# -- initializer ----------------------------------------------------------------------------------------------------------------


def _init(status: str, path: Path) -> None:
    global STATUS
    STATUS = status
    os.environ["STATUS"] = status
    words.mark(path)


def _status() -> tuple[str, str | None]:
    return STATUS, os.environ.get("STATUS")


def _status_again(_: int = 0) -> tuple[int, str, str | None]:
    return os.getpid(), *_status()


def test_the_initializer_runs_once_in_each_worker(tmp_path: Path) -> None:
    """Its globals and its environment are there in every call, whichever pickle a function came in."""
    with jt.Executor(initializer=_init, initargs=("there", tmp_path / "ran")) as executor:
        assert executor.submit(_status).result(NET) == ("there", "there")
        assert executor.submit(_status).result(NET) == ("there", "there")
        seen = list(executor.map(_status_again, range(20)))
        assert {each[1:] for each in seen} == {("there", "there")}
        assert executor.submit(functools.partial(_status)).result(NET) == ("there", "there")
        pids = {each[0] for each in seen}
    assert words.marks(tmp_path / "ran") <= 2
    assert len(pids) <= words.marks(tmp_path / "ran")
    with jt.Executor() as executor:  # others see nothing of it
        assert executor.submit(_status).result(NET) == ("not initialized", None)


def test_a_failing_initializer_breaks_the_executor(tmp_path: Path) -> None:
    """Every call that is not over, and every later one, says which initializer raised what."""

    def broken_init() -> None:
        words.hear(tmp_path / "go", 60)
        raise ValueError("no database")

    executor = jt.Executor(2, initializer=broken_init)
    futures = [executor.submit(words.mark, tmp_path / "ran") for _ in range(6)]
    words.say(tmp_path / "go")
    for future in futures:
        with pytest.raises(
            concurrent.futures.BrokenExecutor, match=r"broken_init\(\).*ValueError: no database"
        ) as caught:
            future.result(NET)
    assert "in broken_init" in str(caught.value.__cause__)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="make a new one"):
        executor.submit(abs, 1)
    executor.shutdown()
    assert words.marks(tmp_path / "ran") == 0


def test_what_runs_and_what_waits_at_the_supervisor_breaks_too(tmp_path: Path) -> None:
    """Without `max_workers` all calls are sent; the one in the other worker is stopped, those behind never begin."""

    def first_works_second_fails() -> None:
        for name in ("first", "second"):
            try:
                os.close(os.open(tmp_path / name, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            if name == "second":
                words.hear(tmp_path / "fail", 60)
                raise ValueError("second")
            return
        time.sleep(LONG)

    executor = jt.Executor(initializer=first_works_second_fails)
    futures = [executor.submit(sleep, tmp_path / "in")]
    words.hear(tmp_path / "in")
    futures += [executor.submit(words.mark, tmp_path / "ran") for _ in range(10)]
    words.say(tmp_path / "fail")
    for future in futures:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            future.result(NET)
    executor.shutdown()
    assert words.marks(tmp_path / "ran") == 0


def test_a_cancelled_initializer_runs_again(tmp_path: Path) -> None:
    def slow_once() -> None:
        words.mark(tmp_path / "ran")
        if words.marks(tmp_path / "ran") == 1:
            sleep(tmp_path / "in")

    with jt.Executor(1, initializer=slow_once) as executor:
        first, second = executor.submit(abs, -1), executor.submit(abs, -2)
        words.hear(tmp_path / "in")
        first.cancel()
        assert second.result(NET) == 2
        assert first.cancelled()


# -- ours: limits, refs, functions, ends ----------------------------------------------------------------------------------------


def _count(path: Path) -> int:
    """How many calls run at this moment, as far as this one can see; and it stays a while in their company."""
    words.say(path / str(os.getpid()))
    others = len(list(path.iterdir()))
    time.sleep(0.01)
    os.unlink(path / str(os.getpid()))
    return others


def test_max_workers_bounds_what_is_sent(tmp_path: Path) -> None:
    with jt.Executor(1) as executor:
        assert list(executor.map(_count, [tmp_path] * 6)) == [1] * 6


def test_refs_among_the_arguments_are_their_values(executor: jt.Executor) -> None:
    ref = jt.put([1, 2, 3])
    assert executor.submit(len, ref).result(NET) == 3
    assert executor.submit(sorted, ref, reverse=True).result(NET) == [3, 2, 1]
    assert list(executor.map(lambda values, i: values[i], [ref] * 3, range(3), chunksize=2)) == [1, 2, 3]
    del ref


def test_refs_inside_of_a_function_live_as_long_as_its_calls(executor: jt.Executor, tmp_path: Path) -> None:
    def submit() -> list[Any]:
        ref = jt.put("kept")

        def late() -> Any:
            words.hear(tmp_path / "go", 60)
            return jt.get(ref)

        return [executor.submit(late), executor.submit(late), next(iter([executor.map(lambda _: late(), [0])]))]

    first, second, mapped = submit()
    gc.collect()
    words.say(tmp_path / "go")
    assert [first.result(NET), second.result(NET), *mapped] == ["kept"] * 3


def test_a_function_is_taken_as_it_is_at_each_call(executor: jt.Executor) -> None:
    """Also the names that it reads, and the state of a method's object; no copy of a worker's own goes on."""
    shared = {"factor": 2}

    def scaled(x: int) -> int:
        return x * shared["factor"]

    for factor in (2, 2, 2, 5):
        shared["factor"] = factor
        assert executor.submit(scaled, 10).result(NET) == 10 * factor
        assert list(executor.map(scaled, [10])) == [10 * factor]

    class Counter:
        n = 0

        def step(self) -> int:
            self.n += 1
            return self.n

    counter = Counter()
    assert [executor.submit(counter.step).result(NET) for _ in range(4)] == [1] * 4
    assert [*executor.map(lambda _, step=counter.step: step(), range(1))] == [1]
    counter.step()
    assert executor.submit(counter.step).result(NET) == 2


def test_a_function_is_sent_once(executor: jt.Executor) -> None:
    """The second call sends its code, and no call after that."""
    big = os.urandom(50_000)

    def f(x: int) -> int:
        return len(big) + x

    sent: list[int] = []
    client = executor.submit(f, 0)._client  # type: ignore[attr-defined]
    executor.submit(f, 0).result(NET)
    real = client._send
    client._send = lambda data, fds=(): (sent.append(len(data)), real(data, fds))[1]
    try:
        assert [executor.submit(f, i).result(NET) for i in range(5)] == [50_000 + i for i in range(5)]
    finally:
        del client._send
    assert max(sent) < 1000


def test_what_is_wrong_with_a_call_its_future_tells(executor: jt.Executor) -> None:
    unsendable = executor.submit(len, 1, [threading.Lock()]).exception(NET)
    assert isinstance(unsendable, UnserializableError)
    assert "'argument 1'[0]" in str(unsendable) or "argument 1[0]" in str(unsendable)
    assert isinstance(executor.submit(threading.Lock().acquire).exception(NET), UnserializableError)
    with pytest.raises(TypeError):
        executor.submit(abs).result(NET)
    with jt.Executor(num_cpus=100) as greedy, pytest.raises(ValueError, match="100 CPU"):
        greedy.submit(abs, 1).result(NET)


def test_a_crash_is_the_calls_own_and_it_begins_once(executor: jt.Executor, tmp_path: Path) -> None:
    def dies() -> None:
        words.mark(tmp_path / "ran")
        die()

    future = executor.submit(dies)
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        future.result(NET)
    assert words.marks(tmp_path / "ran") == 1
    assert executor.submit(abs, -1).result(NET) == 1
    with jt.Executor(max_retries=1) as retrying, pytest.raises(WorkerCrashedError):
        retrying.submit(dies).result(NET)
    assert words.marks(tmp_path / "ran") == 3


def test_options_hold_for_each_call(tmp_path: Path) -> None:
    with jt.Executor(name="mine", timeout=0.2, num_cpus=2) as executor:
        future = executor.submit(sleep, tmp_path / "in")
        words.hear(tmp_path / "in")
        assert [(task["name"], task["timeout"]) for task in jt.tasks() if task["state"] == "running"] == [("mine", 0.2)]
        with pytest.raises(TimeoutError, match="its timeout"):
            future.result(NET)


def test_several_threads_use_one_executor() -> None:
    results: list[Any] = []
    with jt.Executor(2) as executor:

        def use(start: int) -> None:
            results.append(sum(executor.map(abs, range(start, start + 50))))

        threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [sum(range(i, i + 50)) for i in range(4)]


@pytest.mark.parametrize("how", ["result", "wait", "as_completed", "with"])
def test_an_executor_in_a_task_does_not_deadlock(executor: jt.Executor, how: str) -> None:
    """More tasks than slots wait for calls of their own: while they wait their slots are free."""

    def outer(n: int) -> int:
        with jt.Executor(2) as inner:
            futures = [inner.submit(abs, -i) for i in range(n)]
            if how == "wait":
                assert not concurrent.futures.wait(futures, 60).not_done
            elif how == "as_completed":
                return sum(future.result() for future in concurrent.futures.as_completed(futures, 60))
            elif how == "result":
                return sum(future.result() for future in futures)
        return sum(future.result(0) for future in futures)

    assert list(executor.map(outer, [4] * 4)) == [6] * 4


def test_a_cancelled_task_takes_the_calls_of_its_executor_along(executor: jt.Executor, tmp_path: Path) -> None:
    def outer() -> None:
        with jt.Executor() as inner:
            inner.submit(sleep, tmp_path / "in").result()

    future = executor.submit(outer)
    pid = int(words.hear(tmp_path / "in"))
    future.cancel()
    with pytest.raises(TaskCancelledError):
        future.result(NET)
    wait_until(lambda: not any(task["state"] in ("running", "cancelling") for task in jt.tasks()), "no task runs")
    assert pid


def test_futures_of_a_session_that_has_ended(tmp_path: Path) -> None:
    """They end with it: what runs, what waits in the line, one that is made afterwards. A new call begins anew."""
    executor = jt.Executor(1)
    futures = [executor.submit(sleep, tmp_path / "in"), executor.submit(abs, 1)]
    ref = jt.remote(until).remote(tmp_path / "go")
    words.hear(tmp_path / "in")
    jt.shutdown()
    late = ref.future()
    assert late.done()  # nobody could tell it later
    for future in (*futures, late):
        assert isinstance(future.exception(NET), ObjectLostError)
        assert not future.cancelled()
        assert future.cancel() is False
        assert not future.running()
    assert not jt.is_initialized()  # the line was not sent to a session of its own
    assert executor.submit(abs, -3).result(NET) == 3
    executor.shutdown()
    jt.shutdown()


@pytest.mark.parametrize("code", ["", "executor.shutdown(wait=False)", "futures[-1].cancel()"])
def test_the_interpreter_ends_with_calls_pending(code: str, tmp_path: Path) -> None:
    """They are stopped, and not waited for."""
    program = (
        "import time, jupyter_tasks as jt\n"
        "executor = jt.Executor(2)\n"
        f"futures = [executor.submit(time.sleep, {LONG * 10}) for _ in range(6)]\n"
        "while not futures[0].running(): pass\n"
        f"{code}\n"
        "print('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_what_calls_print_appears(executor: jt.Executor) -> None:
    with Screen() as screen:
        executor.submit(print, "from a call").result(NET)
        wait_until(lambda: "from a call" in screen.out.getvalue(), "the text")


def test_local_mode() -> None:
    """Everything in place: futures are done at once, the initializer runs here."""
    jt.shutdown()
    jt.init(local_mode=True)
    try:
        seen: list[int] = []
        with jt.Executor(2, initializer=seen.append, initargs=(1,)) as executor:
            assert list(executor.map(abs, [-1, -2, -3], chunksize=2)) == [1, 2, 3]
            assert executor.submit(abs, -4).done()
            assert isinstance(executor.submit(fail, "x").exception(), ValueError)
        assert seen == [1]
    finally:
        jt.shutdown()
