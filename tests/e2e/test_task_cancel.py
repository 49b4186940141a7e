"""End to end: what `cancel` does to one running or waiting task (docs/semantics.md, Cancel; B1, B2, B8).

Role: each test names the promise it proves. A task says "I am in" by leaving a file, and only then the test acts.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ForceCancelledError,
    TaskCancelledError,
    TaskError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 5.0  # seconds; what is measured here takes milliseconds, and 30 s where the promise is broken
LONG = 30.0  # seconds that a blocked task would sleep


def pids_of_both_workers(tmp_path: Path) -> set[int]:
    """The process ids of the two workers: two tasks that are in at the same time."""

    def both(i: int, place: str) -> int:
        words.say(f"{place}/both{i}")
        words.hear(f"{place}/both{1 - i}")
        return os.getpid()

    pids = jt.get([jt.remote(both).remote(i, str(tmp_path)) for i in (0, 1)], timeout=NET * 4)
    for i in (0, 1):
        (tmp_path / f"both{i}").unlink()
    return set(pids)


def cancel_and_get(ref: jt.ObjectRef, **how: Any) -> tuple[BaseException, float]:
    """Cancels; returns what `get` raised and how long that took."""
    began = time.perf_counter()
    jt.cancel(ref, **how)
    with pytest.raises(jt.exceptions.JupyterTasksError) as caught:
        jt.get(ref, timeout=NET)
    return caught.value, time.perf_counter() - began


# -- B1: a soft cancel wakes whatever blocks -----------------------------------------------------------------------------


def in_time_sleep() -> None:
    time.sleep(LONG)


def in_lock_acquire() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def in_event_wait() -> None:
    threading.Event().wait()


def in_queue_get() -> None:
    queue.Queue().get()


def in_condition_wait() -> None:
    with (condition := threading.Condition()):
        condition.wait()


def in_popen_wait() -> None:
    subprocess.Popen(["sleep", str(LONG)]).wait()


def in_subprocess_run() -> None:
    subprocess.run(["sleep", str(LONG)], check=False)


def in_subprocess_communicate() -> None:
    subprocess.run(["sleep", str(LONG)], check=False, capture_output=True)


def in_asyncio_run() -> None:
    asyncio.run(asyncio.sleep(LONG))


def in_socket_recv() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.recv(1)


def in_select() -> None:
    one, other = socket.socketpair()
    with one, other:
        select.select([one], [], [])


def in_python_loop() -> None:
    while True:
        pass


BLOCKING = (
    *(in_time_sleep, in_lock_acquire, in_event_wait, in_queue_get, in_condition_wait, in_popen_wait),
    *(in_subprocess_run, in_subprocess_communicate, in_asyncio_run, in_socket_recv, in_select, in_python_loop),
)


@pytest.mark.parametrize("block", BLOCKING, ids=lambda block: block.__name__)
def test_a_soft_cancel_wakes_a_blocking_call_and_the_worker_is_used_again(
    block: Callable[[], None], tmp_path: Path
) -> None:
    def task(word: str) -> None:
        words.say(word, os.getpid())
        block()

    workers = pids_of_both_workers(tmp_path)
    ref = jt.remote(task).remote(str(tmp_path / "in"))
    pid = int(words.hear(tmp_path / "in"))
    if block is not in_python_loop:
        words.blocked_in_system(pid)
    error, took = cancel_and_get(ref)
    print(f"{block.__name__}: {took * 1000:.1f} ms")
    assert type(error) is TaskCancelledError
    assert took < NET
    assert pid in workers
    assert pids_of_both_workers(tmp_path) == workers


# -- before it runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both_workers_busy(tmp_path: Path) -> Any:
    """Two tasks that occupy both workers until the test says "go"."""

    def busy(i: int, place: str) -> int:
        words.say(f"{place}/busy{i}")
        words.hear(f"{place}/go")
        return i

    refs = [jt.remote(busy).remote(i, str(tmp_path)) for i in (0, 1)]
    for i in (0, 1):
        words.hear(tmp_path / f"busy{i}")
    yield refs
    words.say(tmp_path / "go")
    assert jt.get(refs) == [0, 1]  # upstream and neighbours are not touched
    refs.clear()


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
def test_a_pending_task_never_runs_and_get_raises_at_once(
    force: bool, both_workers_busy: list[jt.ObjectRef], tmp_path: Path
) -> None:
    queued = [jt.remote(words.mark).remote(str(tmp_path / "ran")) for _ in range(12)]
    for ref in queued:  # some of them were given to a worker ahead of time
        error, took = cancel_and_get(ref, force=force, reason="changed my mind")
        assert type(error) is TaskCancelledError
        assert (error.rung, error.source, error.reason) == ("pending", "user", "changed my mind")
        record = next(task for task in jt.tasks() if task["task_id"] == ref.task_id)
        assert (record["state"], record["rung"]) == ("cancelled", "ask")  # nothing was killed
        assert took < NET
    words.say(tmp_path / "go")
    jt.get(both_workers_busy)
    assert jt.get([jt.remote(abs).remote(-i) for i in range(20)]) == list(range(20))
    assert words.marks(tmp_path / "ran") == 0


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
def test_a_task_that_waits_for_a_dependency_never_runs(
    force: bool, both_workers_busy: list[jt.ObjectRef], tmp_path: Path
) -> None:
    def mark(path: str, _: int) -> None:
        words.mark(path)

    waiting = jt.remote(mark).remote(str(tmp_path / "ran"), both_workers_busy[0])
    error, _ = cancel_and_get(waiting, force=force)
    assert type(error) is TaskCancelledError
    words.say(tmp_path / "go")
    assert jt.get(both_workers_busy) == [0, 1]
    assert words.marks(tmp_path / "ran") == 0


# -- what the task can do about it ------------------------------------------------------------------------------------------


def test_finally_runs_and_is_canceled_is_true_in_the_handler(tmp_path: Path) -> None:
    def task(place: str) -> None:
        before = jt.get_runtime_context().is_canceled()
        try:
            words.say(f"{place}/in")
            time.sleep(LONG)
        except KeyboardInterrupt:
            words.say(f"{place}/handler", [before, jt.get_runtime_context().is_canceled()])
            raise
        finally:
            words.say(f"{place}/finally", jt.get_runtime_context().is_canceled())

    ref = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    error, _ = cancel_and_get(ref)
    assert type(error) is TaskCancelledError
    assert words.hear(tmp_path / "handler", 0) == "[False, True]"
    assert words.hear(tmp_path / "finally", 0) == "True"
    assert jt.get(jt.remote(lambda: jt.get_runtime_context().is_canceled()).remote()) is False


def test_the_error_says_who_why_by_which_rung_and_how_long(tmp_path: Path) -> None:
    def slow_end(place: str) -> None:
        try:
            words.say(f"{place}/in")
            time.sleep(LONG)
        finally:
            time.sleep(0.05)

    ref = jt.remote(slow_end).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    error, took = cancel_and_get(ref, reason="wrong data")
    assert isinstance(error, TaskCancelledError)
    assert (error.name, error.source, error.reason, error.rung) == ("slow_end", "user", "wrong data", "interrupt")
    assert error.task_id == ref.task_id
    assert 0.05 <= error.seconds <= took
    assert "slow_end" in str(error)
    assert "wrong data" in str(error)


def test_a_task_that_catches_it_and_returns_wins(tmp_path: Path) -> None:
    def task(place: str) -> str:
        try:
            words.say(f"{place}/in")
            time.sleep(LONG)
        except KeyboardInterrupt:
            pass
        return "half done"

    ref = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(ref)
    assert jt.get(ref, timeout=NET) == "half done"
    assert [task["state"] for task in jt.tasks() if task["task_id"] == ref.task_id] == ["completed"]


def test_a_task_that_raises_another_error_in_the_handler_raises_that(tmp_path: Path) -> None:
    def task(place: str) -> None:
        try:
            words.say(f"{place}/in")
            time.sleep(LONG)
        except KeyboardInterrupt:
            raise ValueError("not now") from None

    ref = jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    error, _ = cancel_and_get(ref)
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)
    assert not isinstance(error, TaskCancelledError)


def stubborn(place: str, times: int) -> str:
    """Catches so many interrupts, from its first word on, and goes on."""
    for i in range(times):
        try:
            if i == 0:
                words.say(f"{place}/in", os.getpid())
            time.sleep(LONG)
        except KeyboardInterrupt:
            words.say(f"{place}/caught{i}", jt.get_runtime_context().is_canceled())
    time.sleep(LONG)
    return "never"


def state_of(ref: jt.ObjectRef) -> str:
    return next(task["state"] for task in jt.tasks() if task["task_id"] == ref.task_id)


def test_a_task_that_goes_on_stays_cancelling_and_each_further_cancel_is_delivered(tmp_path: Path) -> None:
    ref = jt.remote(stubborn).remote(str(tmp_path), 3)
    pid = int(words.hear(tmp_path / "in"))
    for i in range(3):
        words.blocked_in_system(pid)
        jt.cancel(ref)
        assert words.hear(tmp_path / f"caught{i}") == "True"
        assert state_of(ref) == "cancelling"
    error, took = cancel_and_get(ref)
    assert type(error) is TaskCancelledError
    assert took < NET


def test_a_single_cancel_does_not_climb_by_itself(tmp_path: Path) -> None:
    ref = jt.remote(stubborn).remote(str(tmp_path), 1)
    pid = int(words.hear(tmp_path / "in"))
    jt.cancel(ref)
    words.hear(tmp_path / "caught0")
    record = next(task for task in jt.tasks() if task["task_id"] == ref.task_id)
    assert (record["state"], record["rung"], record["source"]) == ("cancelling", "interrupt", "user")
    with pytest.raises(jt.exceptions.GetTimeoutError):
        jt.get(ref, timeout=0.2)
    assert words.alive(pid)
    error, _ = cancel_and_get(ref, force=True)
    assert isinstance(error, ForceCancelledError)


def test_with_grace_it_climbs_to_terminate(tmp_path: Path) -> None:
    ref = jt.remote(stubborn).remote(str(tmp_path), 100)
    pid = int(words.hear(tmp_path / "in"))
    error, took = cancel_and_get(ref, grace=0.1)
    assert words.said(tmp_path / "caught0")
    assert isinstance(error, ForceCancelledError)
    assert error.rung == "terminate"
    assert 0.1 <= took < NET
    assert not words.alive(pid)


def test_with_grace_it_climbs_to_kill_where_sigterm_is_ignored(tmp_path: Path) -> None:
    def deaf(place: str) -> str:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return stubborn(place, 100)

    ref = jt.remote(deaf).remote(str(tmp_path))
    pid = int(words.hear(tmp_path / "in"))
    error, took = cancel_and_get(ref, grace=0.05)
    assert isinstance(error, ForceCancelledError)
    assert error.rung == "kill"
    assert 1.05 <= took < NET
    assert not words.alive(pid)


@pytest.mark.parametrize("grace", [float("inf"), 1e9], ids=["infinite", "thirty years"])
def test_a_very_long_grace_is_no_deadline_soon(grace: float, tmp_path: Path) -> None:
    ref = jt.remote(stubborn).options(grace=0.05).remote(str(tmp_path), 1)
    words.hear(tmp_path / "in")
    jt.cancel(ref, grace=grace)
    words.hear(tmp_path / "caught0")
    with pytest.raises(jt.exceptions.GetTimeoutError):
        jt.get(ref, timeout=0.2)
    cancel_and_get(ref)


def test_a_keyboard_interrupt_of_the_tasks_own_is_a_cancel_by_the_task() -> None:
    def task() -> None:
        raise KeyboardInterrupt

    with pytest.raises(
        TaskCancelledError, match="raised a KeyboardInterrupt, or a CancelledError, of its own"
    ) as caught:
        jt.get(jt.remote(task).remote())
    assert caught.value.source == "task"


# -- force ---------------------------------------------------------------------------------------------------------------------


def test_force_runs_no_except_finally_or_atexit(tmp_path: Path) -> None:
    def task(place: str) -> None:
        atexit.register(words.say, f"{place}/atexit")
        try:
            words.say(f"{place}/in", os.getpid())
            time.sleep(LONG)
        except BaseException:
            words.say(f"{place}/except")
            raise
        finally:
            words.say(f"{place}/finally")

    ref = jt.remote(task).remote(str(tmp_path))
    pid = int(words.hear(tmp_path / "in"))
    error, took = cancel_and_get(ref, force=True)
    assert not words.alive(pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert isinstance(error, ForceCancelledError)
    assert isinstance(error, TaskCancelledError)
    assert isinstance(error, WorkerCrashedError)
    assert (error.rung, error.source) == ("kill", "user")
    assert took < NET
    print(f"force: {took * 1000:.1f} ms")


def test_force_ends_c_code_that_holds_the_gil(tmp_path: Path) -> None:
    def task(word: str) -> int:
        words.say(word, os.getpid())
        return sum(range(10**11))  # an hour, and no signal handler runs meanwhile

    ref = jt.remote(task).remote(str(tmp_path / "in"))
    pid = int(words.hear(tmp_path / "in"))
    words.computes(pid)
    jt.cancel(ref)  # asked politely, it cannot answer
    with pytest.raises(jt.exceptions.GetTimeoutError):
        jt.get(ref, timeout=0.1)
    error, took = cancel_and_get(ref, force=True)
    print(f"force in C code: {took * 1000:.1f} ms")
    assert isinstance(error, ForceCancelledError)
    assert not words.alive(pid)
    assert took < NET


def test_the_other_tasks_go_on_when_one_is_killed(tmp_path: Path) -> None:
    def task(place: str, name: str) -> str:
        words.say(f"{place}/{name}")
        words.hear(f"{place}/go")
        return name

    refs = [jt.remote(task).remote(str(tmp_path), name) for name in ("one", "two")]
    for name in ("one", "two"):
        words.hear(tmp_path / name)
    queued = [jt.remote(abs).remote(-i) for i in range(50)]
    cancel_and_get(refs[0], force=True)
    words.say(tmp_path / "go")
    assert jt.get(refs[1], timeout=NET) == "two"
    assert jt.get(queued, timeout=NET) == list(range(50))


# -- what a cancel leaves alone ---------------------------------------------------------------------------------------------------


def test_cancelling_a_finished_task_keeps_its_value() -> None:
    ref = jt.remote(abs).remote(-3)
    assert jt.get(ref) == 3
    for force in (False, True):
        assert jt.cancel(ref, force=force) is None
    assert jt.get(ref) == 3
    assert state_of(ref) == "completed"


def test_cancelling_a_put_object_is_a_no_op() -> None:
    ref = jt.put([1, 2])
    jt.cancel(ref)
    jt.cancel(ref, force=True)
    assert jt.get(ref) == [1, 2]


def test_cancel_takes_flags_by_name_only_and_refs_only() -> None:
    ref = jt.put(1)
    with pytest.raises(TypeError):
        jt.cancel(ref, True)  # type: ignore[misc]
    with pytest.raises(TypeError, match="kill"):
        jt.cancel("train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grace must not be negative"):
        jt.cancel(ref, grace=-1)


def test_cancel_is_idempotent(tmp_path: Path) -> None:
    def task(word: str) -> None:
        words.say(word)
        time.sleep(LONG)

    ref = jt.remote(task).remote(str(tmp_path / "in"))
    words.hear(tmp_path / "in")
    for _ in range(50):
        jt.cancel(ref)
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)
    jt.cancel(ref)
    assert jt.get([jt.remote(abs).remote(-i) for i in range(20)]) == list(range(20))


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_return_values_cancelled_cancels_both(index: int, tmp_path: Path) -> None:
    def task(word: str) -> tuple[int, int]:
        words.say(word)
        time.sleep(LONG)
        return 1, 2

    refs = jt.remote(task).options(num_returns=2).remote(str(tmp_path / "in"))
    words.hear(tmp_path / "in")
    jt.cancel(refs[index])
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            jt.get(ref, timeout=NET)


@pytest.mark.parametrize("retry", [True, [KeyboardInterrupt, ValueError]], ids=["all", "types"])
@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
def test_a_cancelled_task_is_never_retried(retry: Any, force: bool, tmp_path: Path) -> None:
    def task(place: str) -> None:
        words.mark(f"{place}/ran")
        words.say(f"{place}/in")
        time.sleep(LONG)

    ref = jt.remote(task).options(max_retries=5, retry_exceptions=retry).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    cancel_and_get(ref, force=force)
    jt.get([jt.remote(abs).remote(-1) for _ in range(20)])
    assert words.marks(tmp_path / "ran") == 1


# -- where an interrupt could be lost, or do harm -------------------------------------------------------------------------------------


def is_not_lost(task: Callable[[str], None], place: Path) -> None:
    """The task says that it is in a place where an exception is printed and dropped, and stays there until the
    interrupt has been sent; then it sleeps."""
    ref = jt.remote(task).remote(str(place))
    words.hear(place / "in")
    jt.cancel(ref)
    wait_until(lambda: state_of(ref) == "cancelling", "the supervisor has sent the signal")
    words.say(place / "sent")
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)


def be_interrupted(place: str) -> None:
    words.say(f"{place}/in")
    words.hear(f"{place}/sent")
    time.sleep(0.05)  # the signal is here by now; raised here it would be lost


def test_an_interrupt_inside_del_is_not_lost(tmp_path: Path) -> None:
    class Slow:
        def __init__(self, place: str) -> None:
            self.place = place

        def __del__(self) -> None:
            be_interrupted(self.place)

    def task(place: str) -> None:
        thing = Slow(place)
        del thing
        time.sleep(LONG)

    is_not_lost(task, tmp_path)


def test_an_interrupt_inside_a_weakref_callback_is_not_lost(tmp_path: Path) -> None:
    class Thing:
        pass

    def task(place: str) -> None:
        thing = Thing()
        keep = weakref.ref(thing, lambda _: be_interrupted(place))
        del thing
        assert keep() is None
        time.sleep(LONG)

    is_not_lost(task, tmp_path)


def test_an_interrupt_inside_a_gc_callback_is_not_lost(tmp_path: Path) -> None:
    def task(place: str) -> None:
        def callback(phase: str, info: object) -> None:
            if phase == "start" and not words.said(f"{place}/in"):
                be_interrupted(place)

        gc.callbacks.append(callback)
        try:
            gc.collect()
            time.sleep(LONG)
        finally:
            gc.callbacks.remove(callback)

    is_not_lost(task, tmp_path)


def test_an_interrupt_inside_an_import_replaces_the_worker(tmp_path: Path) -> None:
    """A module that was imported by half stays broken in its process; nobody else may meet it there."""
    (tmp_path / "slow_to_import.py").write_text(
        "import time, words, os\n"
        "half = True\n"
        "words.say(os.path.join(os.path.dirname(__file__), 'in'), os.getpid())\n"
        "time.sleep(30)\n"
    )

    def task(place: str) -> None:
        import sys

        sys.path.insert(0, place)
        import slow_to_import  # type: ignore[import-not-found]  # noqa: F401

    ref = jt.remote(task).remote(str(tmp_path))
    pid = int(words.hear(tmp_path / "in"))
    words.blocked_in_system(pid)
    error, _ = cancel_and_get(ref)
    assert type(error) is TaskCancelledError
    assert not words.alive(pid)
    assert pid not in status()["workers"]


def test_user_code_that_replaces_the_signal_handler_harms_only_itself(tmp_path: Path) -> None:
    def vandal() -> None:
        import sys

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = print

    def task(word: str) -> None:
        words.say(word, os.getpid())
        time.sleep(LONG)

    jt.get([jt.remote(vandal).remote() for _ in range(8)])
    for i in range(2):
        ref = jt.remote(task).remote(str(tmp_path / f"in{i}"))
        words.blocked_in_system(int(words.hear(tmp_path / f"in{i}")))
        error, took = cancel_and_get(ref)
        assert type(error) is TaskCancelledError
        assert took < NET


def test_an_interrupt_for_one_task_never_hits_the_next(tmp_path: Path) -> None:
    """B1's other side: the signal that comes too late is for nobody."""

    def quick(word: str) -> int:
        words.say(word)
        return os.getpid()

    workers = pids_of_both_workers(tmp_path)
    for i in range(50):
        ref = jt.remote(quick).remote(str(tmp_path / f"in{i}"))
        words.hear(tmp_path / f"in{i}")
        jt.cancel(ref)  # it is ending, or has ended, at this moment
        after = jt.remote(abs).remote(-i)
        assert jt.get(after, timeout=NET) == i
        try:
            assert jt.get(ref, timeout=NET) in workers
        except TaskCancelledError:
            pass
    assert pids_of_both_workers(tmp_path) == workers


# -- tasks that start tasks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> None:
    """No tasks of earlier tests in the history."""
    jt.shutdown()
    jt.init(num_cpus=2)


def states() -> dict[str, str]:
    return {task["name"]: task["state"] for task in jt.tasks()}


def parent_of(place: str, waits: bool) -> Any:
    def grandchild(place: str) -> str:
        words.say(f"{place}/grandchild", os.getpid())
        words.hear(f"{place}/go", 60)
        return "grandchild"

    def child(place: str) -> str:
        ref = jt.remote(grandchild).remote(place)
        words.say(f"{place}/child", os.getpid())
        return str(jt.get(ref))

    ref = jt.remote(child).remote(place)
    if not waits:
        words.hear(f"{place}/grandchild")
        return [ref]
    words.say(f"{place}/parent", os.getpid())
    return jt.get(ref)


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
def test_a_recursive_cancel_reaches_children_and_grandchildren(fresh: None, force: bool, tmp_path: Path) -> None:
    ref = jt.remote(parent_of).remote(str(tmp_path), True)
    words.hear(tmp_path / "grandchild")
    jt.cancel(ref, force=force)
    with pytest.raises(ForceCancelledError if force else TaskCancelledError):
        jt.get(ref, timeout=NET)
    wait_until(lambda: status()["live"] == 0, "children and grandchildren have ended, too", net=2.0)
    assert states() == dict.fromkeys(("parent_of", "child", "grandchild"), "cancelled")
    sources = {task["name"]: task["source"] for task in jt.tasks() if task["name"] in ("child", "grandchild")}
    assert set(sources.values()) == {"parent"}


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
def test_without_recursion_children_go_on(fresh: None, force: bool, tmp_path: Path) -> None:
    ref = jt.remote(parent_of).remote(str(tmp_path), True)
    words.hear(tmp_path / "grandchild")
    jt.cancel(ref, force=force, recursive=False)
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)
    assert states() == {"parent_of": "cancelled", "child": "running", "grandchild": "running"}
    words.say(tmp_path / "go")
    wait_until(lambda: status()["live"] == 0, "they come to their end")
    assert states() == {"parent_of": "cancelled", "child": "completed", "grandchild": "completed"}


def test_cancelling_a_finished_parent_touches_nobody(tmp_path: Path) -> None:
    ref = jt.remote(parent_of).remote(str(tmp_path), False)
    (child,) = jt.get(ref, timeout=NET * 2)
    jt.cancel(ref)
    jt.cancel(ref, force=True)
    words.say(tmp_path / "go")
    assert jt.get(child, timeout=NET) == "grandchild"


def test_a_task_that_waits_for_another_is_interrupted_in_its_get(tmp_path: Path) -> None:
    ref = jt.remote(parent_of).remote(str(tmp_path), True)
    words.hear(tmp_path / "grandchild")
    began = time.perf_counter()
    jt.cancel(ref, recursive=False)
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)
    assert time.perf_counter() - began < NET
    words.say(tmp_path / "go")
    wait_until(lambda: status()["live"] == 0, "the others come to their end")
    assert status()["available"]["CPU"] + len(status()["workers"]) >= 2  # no slot is lost
    assert jt.get([jt.remote(abs).remote(-i) for i in range(10)], timeout=NET) == list(range(10))
