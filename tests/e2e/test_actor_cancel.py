"""End to end: what `cancel` does to calls of actors (SEMANTICS 2, the table; B3, B4, B7), in each kind of actor.

Role: each test names the promise it proves. A call says "I am in" by leaving a file, and only then the test acts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import words
from actors import ASYNC, IN_PROCESSES, KINDS, SYNC, THREADED, WITH_FLAG, Kind
from conftest import is_open, raised, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ForceCancelledError,
    TaskCancelledError,
    TaskError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0  # seconds; what is waited for here takes milliseconds, and 30 s or for ever where the promise is broken

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_process_kind = pytest.mark.parametrize("kind", IN_PROCESSES, ids=lambda kind: kind.name)
each_flag_kind = pytest.mark.parametrize("kind", WITH_FLAG, ids=lambda kind: kind.name)


def state_of(ref: jt.ObjectRef) -> str:
    return str(next(task["state"] for task in jt.tasks() if task["task_id"] == ref.task_id))


# -- queued calls (B3, B4) ----------------------------------------------------------------------------------------------


@each_kind
def test_a_queued_call_never_executes_and_its_get_raises_at_once(kind: Kind, tmp_path: Path) -> None:
    """B3. "At once": while the actor is still occupied. The others run, in the order in which they were submitted."""
    actor = kind.start(tmp_path)
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(40)]
    for ref in queued[::2]:
        jt.cancel(ref, reason="changed my mind")
    for ref in queued[::2]:
        error = raised(ref)
        assert type(error) is TaskCancelledError
        assert (error.rung, error.source, error.reason) == ("pending", "user", "changed my mind")
        assert error.task_id == ref.task_id
        assert state_of(ref) == "cancelled"
    assert all(is_open(ref) for ref in (*running, *queued[1::2]))
    kind.let_go(tmp_path)
    assert jt.get(running, timeout=NET) == kind.holders()
    assert jt.get(queued[1::2], timeout=NET) == list(range(1, 40, 2))
    log = jt.get(actor.log.remote(), timeout=NET)
    notes = [item for item in log if isinstance(item, int)]
    assert sorted(notes) == list(range(1, 40, 2))
    if kind.at_once == 1:
        assert log == [*kind.holders(), *range(1, 40, 2)]


@each_kind
def test_all_queued_calls_may_be_cancelled_in_any_order(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_async_actor_server_side_cancel, in each kind."""
    actor = kind.start(tmp_path)
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(100)]
    for ref in reversed(queued):
        jt.cancel(ref)
    for ref in queued:
        assert isinstance(raised(ref), TaskCancelledError)
    kind.let_go(tmp_path)
    assert jt.get(running, timeout=NET) == kind.holders()
    assert sorted(jt.get(actor.log.remote(), timeout=NET)) == kind.holders()


@each_kind
def test_a_cancel_before_the_actor_is_there_neither_runs_nor_stalls(kind: Kind, tmp_path: Path) -> None:
    """B4: the call was not sent yet, since the constructor still runs."""

    class Slow(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            words.say(f"{place}/constructing")
            words.hear(f"{place}/construct", 60)
            super().__init__(place)

    actor = jt.remote(Slow).options(**kind.options).remote(str(tmp_path))
    first, second = actor.note.remote(1), actor.note.remote(2)
    words.hear(tmp_path / "constructing")
    third = actor.note.remote(3)
    for ref in (first, third):
        jt.cancel(ref)
        assert raised(ref).rung == "pending"  # type: ignore[attr-defined]
    words.say(tmp_path / "construct")
    assert jt.get(second, timeout=NET) == 2
    assert jt.get(actor.log.remote(), timeout=NET) == [2]


@each_kind
def test_a_cancel_of_a_call_that_waits_for_a_dependency(kind: Kind, tmp_path: Path) -> None:
    """B4: it never runs, the calls behind it do, at once, and the task that it waited for is not touched."""

    def late(place: str) -> str:
        words.say(f"{place}/late")
        words.hear(f"{place}/late.go", 60)
        return "late"

    actor = kind.start(tmp_path)
    dependency = jt.remote(late).remote(str(tmp_path))
    words.hear(tmp_path / "late")
    waiting = actor.note.remote(dependency)
    behind = actor.note.remote("behind")
    jt.cancel(waiting)
    assert raised(waiting).rung == "pending"  # type: ignore[attr-defined]
    assert jt.get(behind, timeout=NET) == "behind"
    assert is_open(dependency)
    words.say(tmp_path / "late.go")
    assert jt.get(dependency, timeout=NET) == "late"
    assert jt.get(actor.note.remote(dependency), timeout=NET) == "late"
    assert jt.get(actor.log.remote(), timeout=NET) == ["behind", "late"]


@each_kind
def test_a_call_whose_dependency_is_cancelled_never_runs(kind: Kind, tmp_path: Path) -> None:
    """And raises the root cause, as a task does; the actor goes on."""

    def waits(place: str) -> None:
        words.say(f"{place}/waits")
        time.sleep(60)

    actor = kind.start(tmp_path)
    dependency = jt.remote(waits).remote(str(tmp_path))
    words.hear(tmp_path / "waits")
    waiting = actor.note.remote(dependency)
    jt.cancel(dependency)
    assert isinstance(raised(waiting), TaskCancelledError)
    assert jt.get(actor.log.remote(), timeout=NET) == []


# -- running calls: the flag -----------------------------------------------------------------------------------------------


@each_kind
def test_a_running_call_is_asked_and_the_state_is_kept(kind: Kind, tmp_path: Path) -> None:
    """By the flag, or a CancelledError at its await. `get` raises, and the actor goes on as it was."""
    actor = kind.start(tmp_path)
    jt.get(actor.note.remote("before"), timeout=NET)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    ref = actor.until_asked.remote("call")
    words.hear(tmp_path / "call")
    jt.cancel(ref, reason="enough")
    error = raised(ref)
    assert type(error) is TaskCancelledError
    assert (error.source, error.reason, error.task_id) == ("user", "enough", ref.task_id)
    assert error.rung in (("ask", "interrupt") if kind is ASYNC else ("ask",))
    assert error.seconds >= 0
    assert "until_asked" in str(error)
    assert state_of(ref) == "cancelled"
    assert jt.get(actor.were_asked.remote(), timeout=NET) == {"call": True}
    assert jt.get(actor.log.remote(), timeout=NET) == ["before", "call"]
    assert jt.get(actor.pid.remote(), timeout=NET) == pid


@each_flag_kind
def test_get_raises_when_the_method_ends_whatever_it_returns(kind: Kind, tmp_path: Path) -> None:
    """Not before: the state is `cancelling` as long as its code runs, and a blocking call is not woken."""
    actor = kind.start(tmp_path)
    ref = actor.hold.remote("call")
    words.hear(tmp_path / "call")
    jt.cancel(ref)
    wait_until(lambda: state_of(ref) == "cancelling", "it was asked")
    assert is_open(ref, 0.2)
    assert state_of(ref) == "cancelling"
    words.say(tmp_path / "call.go", "asked")
    assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get(actor.were_asked.remote(), timeout=NET) == {"call": True}


@each_flag_kind
def test_the_flag_is_false_in_the_next_call(kind: Kind, tmp_path: Path) -> None:
    """The next one was queued when the first was cancelled."""
    actor = kind.start(tmp_path, max_concurrency=1)
    first, second = actor.until_asked.remote("first"), actor.hold.remote("second")
    words.hear(tmp_path / "first")
    words.say(tmp_path / "second.go")
    jt.cancel(first)
    assert isinstance(raised(first), TaskCancelledError)
    assert jt.get(second, timeout=NET) == "second"
    assert jt.get(actor.were_asked.remote(), timeout=NET) == {"first": True, "second": False}


@pytest.mark.parametrize("kind", [THREADED, ASYNC], ids=lambda kind: kind.name)
def test_only_the_call_that_was_cancelled_is_asked(kind: Kind, tmp_path: Path) -> None:
    """Of three that run at the same time. Ray's test_is_canceled_concurrent_actor_task."""
    actor = kind.start(tmp_path)
    refs = kind.fill(actor, tmp_path)
    jt.cancel(refs[1])
    if kind is ASYNC:
        assert isinstance(raised(refs[1]), TaskCancelledError)  # while the others are still in
    else:
        wait_until(lambda: state_of(refs[1]) == "cancelling", "it was asked")
    assert is_open(refs[0])
    assert is_open(refs[2])
    kind.let_go(tmp_path, asked="hold1")
    assert isinstance(raised(refs[1]), TaskCancelledError)
    assert jt.get([refs[0], refs[2]], timeout=NET) == ["hold0", "hold2"]
    expected = {"hold0": False, "hold1": True, "hold2": False}
    assert jt.get(actor.were_asked.remote(), timeout=NET) == expected


@each_flag_kind
def test_a_cancel_raises_nothing_in_an_actor(kind: Kind, tmp_path: Path) -> None:
    """No KeyboardInterrupt, also in a blocking call in its main thread, however often it is asked: state is kept whole."""

    class Sleeper(kind.cls):  # type: ignore[name-defined,misc]
        def sleeps(self) -> str:
            words.say(f"{self.place}/sleeps", os.getpid())
            try:
                words.hear(f"{self.place}/wake", 60)
            except BaseException as error:
                words.say(f"{self.place}/hit", repr(error))
                raise
            return "slept"

    actor = jt.remote(Sleeper).options(**kind.options).remote(str(tmp_path))
    ref = actor.sleeps.remote()
    words.hear(tmp_path / "sleeps")
    for _ in range(20):
        jt.cancel(ref)
    wait_until(lambda: state_of(ref) == "cancelling", "it was asked")
    assert is_open(ref, 0.2)
    words.say(tmp_path / "wake")
    assert isinstance(raised(ref), TaskCancelledError)
    assert not words.said(tmp_path / "hit")
    assert jt.get(actor.note.remote("after"), timeout=NET) == "after"


@each_flag_kind
def test_a_call_that_ends_on_the_flag_with_an_error(kind: Kind, tmp_path: Path) -> None:
    """It has ended after it was asked: that is a cancel, as of thread tasks, whatever it returns or raises."""

    class Fails(kind.cls):  # type: ignore[name-defined,misc]
        def fails(self) -> None:
            try:
                self.until_asked("call")
            finally:
                self.began.append("finally")
            raise ValueError("not now")

    actor = jt.remote(Fails).options(**kind.options).remote(str(tmp_path))
    ref = actor.fails.remote()
    words.hear(tmp_path / "call")
    jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get(actor.log.remote(), timeout=NET) == ["call", "finally"]


# -- async actors -------------------------------------------------------------------------------------------------------


class Stubborn:
    """Catches so many cancels, then goes on awaiting."""

    def __init__(self, place: str) -> None:
        self.place = place

    async def catches(self, times: int, then: str) -> str:
        for i in range(times):
            try:
                words.say(f"{self.place}/in{i}")
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                words.say(f"{self.place}/caught{i}")
        if then == "return":
            return "mine"
        if then == "raise":
            raise ValueError("not now")
        words.say(f"{self.place}/last")
        await asyncio.sleep(60)
        return "never"

    async def cleans_up(self) -> None:
        try:
            words.say(f"{self.place}/in")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # may still await
            words.say(f"{self.place}/finally")

    async def inner(self) -> None:
        """Awaits what awaits: the CancelledError is thrown at the innermost await and comes up."""

        async def deepest() -> None:
            words.say(f"{self.place}/in")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                words.say(f"{self.place}/deepest")
                raise

        await asyncio.gather(deepest(), asyncio.sleep(60))

    async def flag(self) -> bool:
        return jt.get_runtime_context().is_canceled()

    def flag_of_sync(self) -> bool:
        return jt.get_runtime_context().is_canceled()

    async def cancels_itself(self) -> None:
        raise asyncio.CancelledError

    async def ping(self) -> str:
        return "pong"


def start_stubborn(tmp_path: Path) -> Any:
    return jt.remote(Stubborn).remote(str(tmp_path))


def test_every_cancel_is_delivered(tmp_path: Path) -> None:
    """B7: also the second and third of a call that has swallowed the first; in between it is `cancelling`."""
    stubborn = start_stubborn(tmp_path)
    ref = stubborn.catches.remote(3, "await")
    for i in range(3):
        words.hear(tmp_path / f"in{i}")
        jt.cancel(ref)
        words.hear(tmp_path / f"caught{i}")
        assert state_of(ref) == "cancelling"
    words.hear(tmp_path / "last")
    assert is_open(ref)
    jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get(stubborn.ping.remote(), timeout=NET) == "pong"


def test_an_async_call_that_catches_it_and_returns_wins(tmp_path: Path) -> None:
    """It was told by an exception, and has answered: as a task that catches KeyboardInterrupt."""
    stubborn = start_stubborn(tmp_path)
    ref = stubborn.catches.remote(1, "return")
    words.hear(tmp_path / "in0")
    jt.cancel(ref)
    assert jt.get(ref, timeout=NET) == "mine"
    assert state_of(ref) == "completed"


def test_an_async_call_that_raises_another_error_in_its_handler_raises_that(tmp_path: Path) -> None:
    stubborn = start_stubborn(tmp_path)
    ref = stubborn.catches.remote(1, "raise")
    words.hear(tmp_path / "in0")
    jt.cancel(ref)
    error = raised(ref)
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)
    assert not isinstance(error, TaskCancelledError)


def test_the_cancelled_error_is_raised_at_the_innermost_await(tmp_path: Path) -> None:
    stubborn = start_stubborn(tmp_path)
    ref = stubborn.inner.remote()
    words.hear(tmp_path / "in")
    jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError)
    assert words.said(tmp_path / "deepest")


def test_finally_of_an_async_call_runs_and_may_await(tmp_path: Path) -> None:
    stubborn = start_stubborn(tmp_path)
    ref = stubborn.cleans_up.remote()
    words.hear(tmp_path / "in")
    jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError)
    assert words.said(tmp_path / "finally")  # the evidence: its code had ended when `get` raised


def test_fifty_cancels_one_after_the_other(tmp_path: Path) -> None:
    """Ray's test_async_actor_cancel."""
    stubborn = start_stubborn(tmp_path)
    for _ in range(50):
        ref = stubborn.cleans_up.remote()
        words.hear(tmp_path / "in")
        jt.cancel(ref)
        assert isinstance(raised(ref), TaskCancelledError)
        for word in ("in", "finally"):
            (tmp_path / word).unlink()


@pytest.mark.parametrize("method", ["flag", "flag_of_sync"])
def test_is_canceled_is_an_error_in_an_async_actor(method: str, tmp_path: Path) -> None:
    """There is no flag to look at: the call is told by a CancelledError."""
    stubborn = start_stubborn(tmp_path)
    with pytest.raises(RuntimeError, match="async actor"):
        jt.get(getattr(stubborn, method).remote(), timeout=NET)


def test_a_cancelled_error_of_the_calls_own_is_a_cancel_by_the_task(tmp_path: Path) -> None:
    """As a KeyboardInterrupt that a task raises itself."""
    stubborn = start_stubborn(tmp_path)
    error = raised(stubborn.cancels_itself.remote())
    assert isinstance(error, TaskCancelledError)
    assert error.source == "task"
    assert jt.get(stubborn.ping.remote(), timeout=NET) == "pong"


def test_a_cancel_is_not_for_the_coroutines_of_other_calls(tmp_path: Path) -> None:
    """A hundred calls await in one loop; every third is cancelled."""
    actor = ASYNC.start(tmp_path, max_concurrency=200)
    refs = [actor.hold.remote(f"call{i}") for i in range(100)]
    for i in range(100):
        words.hear(tmp_path / f"call{i}")
    for ref in refs[::3]:
        jt.cancel(ref)
    for ref in refs[::3]:
        assert isinstance(raised(ref), TaskCancelledError)
    for i in range(100):
        words.say(tmp_path / f"call{i}.go")
    rest = [(i, ref) for i, ref in enumerate(refs) if i % 3]
    assert jt.get([ref for _, ref in rest], timeout=NET) == [f"call{i}" for i, _ in rest]
    were_asked = jt.get(actor.were_asked.remote(), timeout=NET)
    assert were_asked == {f"call{i}": i % 3 == 0 for i in range(100)}


def test_a_cancel_that_meets_a_busy_loop_is_delivered_at_the_next_await(tmp_path: Path) -> None:
    """1. a sync method holds the loop   2. a call that awaits is cancelled   3. the method ends: now it is told."""

    class Busy(Stubborn):
        def blocks(self) -> str:
            words.say(f"{self.place}/blocks")
            words.hear(f"{self.place}/blocks.go", 60)
            return "done"

    actor = jt.remote(Busy).remote(str(tmp_path))
    awaits = actor.catches.remote(0, "await")
    words.hear(tmp_path / "last")
    blocks = actor.blocks.remote()
    words.hear(tmp_path / "blocks")
    jt.cancel(awaits)
    wait_until(lambda: state_of(awaits) == "cancelling", "it was asked")
    assert is_open(awaits, 0.1)
    words.say(tmp_path / "blocks.go")
    assert jt.get(blocks, timeout=NET) == "done"
    assert isinstance(raised(awaits), TaskCancelledError)


# -- force, and what is refused --------------------------------------------------------------------------------------------


@each_kind
def test_force_is_refused_for_calls_of_actors_and_nothing_happens_to_them(kind: Kind, tmp_path: Path) -> None:
    """Running, queued or over: ValueError that names `kill`."""
    actor = kind.start(tmp_path)
    over = actor.note.remote("over")
    jt.get(over, timeout=NET)
    running = kind.fill(actor, tmp_path)
    queued = actor.note.remote("queued")
    for ref in (over, running[0], queued):
        with pytest.raises(ValueError, match="kill"):
            jt.cancel(ref, force=True)
    kind.let_go(tmp_path)
    assert jt.get([over, *running, queued], timeout=NET) == ["over", *kind.holders(), "queued"]
    if kind is not ASYNC:
        assert not any(jt.get(actor.were_asked.remote(), timeout=NET).values())


@each_kind
def test_cancel_is_for_refs_and_kill_for_actors(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    ref = actor.note.remote(1)
    with pytest.raises(TypeError, match="kill"):
        jt.cancel(actor)
    with pytest.raises(ValueError, match="cancel"):
        jt.kill(ref)
    with pytest.raises(ValueError, match="actor"):
        jt.kill("a name")  # type: ignore[arg-type]
    assert jt.get(ref, timeout=NET) == 1
    assert jt.get(actor.log.remote(), timeout=NET) == [1]


@each_kind
def test_cancelling_a_finished_call_keeps_its_value(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    value, error = actor.note.remote(5), actor.fail.remote("bad")
    assert jt.get(value, timeout=NET) == 5
    assert isinstance(raised(error), ValueError)
    for ref in (value, error):
        jt.cancel(ref)
    assert jt.get(value) == 5
    assert isinstance(raised(error), ValueError)
    assert jt.get(actor.log.remote(), timeout=NET) == [5, "bad"]


@each_kind
def test_cancel_is_idempotent(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    ref = actor.until_asked.remote("call")
    words.hear(tmp_path / "call")
    for _ in range(50):
        jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError)
    jt.cancel(ref)
    assert jt.get([actor.note.remote(i) for i in range(20)], timeout=NET) == list(range(20))


def test_one_of_two_return_values_cancelled_cancels_both(tmp_path: Path) -> None:
    actor = SYNC.start(tmp_path)
    refs = actor.until_asked.options(num_returns=2).remote("call")
    words.hear(tmp_path / "call")
    jt.cancel(refs[1])
    for ref in refs:
        assert isinstance(raised(ref), TaskCancelledError)


@each_kind
def test_a_cancelled_call_is_never_retried(kind: Kind, tmp_path: Path) -> None:
    """Whatever max_task_retries and retry_exceptions say: not that running one, and not the queued one."""
    actor = kind.start(tmp_path, max_concurrency=1)
    running = actor.until_asked.options(max_task_retries=5, retry_exceptions=True).remote("call")
    queued = actor.note.options(max_task_retries=-1, retry_exceptions=True).remote("queued")
    words.hear(tmp_path / "call")
    jt.cancel(queued)
    jt.cancel(running)
    for ref in (queued, running):
        assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get(actor.log.remote(), timeout=NET) == ["call"]


@each_process_kind
def test_a_cancelled_call_is_not_run_again_after_a_restart(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_async_actor_cancel_restart: it was asked, and then the process died. The others are run again."""

    class Deaf(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            words.mark(f"{place}/constructed")

        def blocks(self, name: str) -> str:  # on the loop, in an async actor: it is not told
            words.mark(f"{self.place}/{name}.ran")
            words.say(f"{self.place}/{name}", os.getpid())
            words.hear(f"{self.place}/{name}.go", 60)
            return name

    options = {**kind.options, "max_concurrency": 1, "max_restarts": -1, "max_task_retries": -1}
    actor = jt.remote(Deaf).options(**options).remote(str(tmp_path))
    ref = actor.blocks.remote("call")
    queued, other = actor.note.remote("queued"), actor.note.remote("other")
    pid = int(words.hear(tmp_path / "call"))
    jt.cancel(ref)
    jt.cancel(queued)
    wait_until(lambda: state_of(ref) == "cancelling", "it was asked")
    os.kill(pid, signal.SIGKILL)
    for cancelled in (ref, queued):
        assert isinstance(raised(cancelled), TaskCancelledError)
    assert jt.get(other, timeout=NET) == "other"
    assert jt.get(actor.log.remote(), timeout=NET) == ["other"]
    assert words.marks(tmp_path / "constructed") == 2
    assert words.marks(tmp_path / "call.ran") == 1


# -- trees of calls -----------------------------------------------------------------------------------------------------


def calls(actor: Any, name: str, place: str) -> Any:
    """A task whose child is a call of an actor."""
    ref = actor.hold.remote(name)
    words.say(f"{place}/parent", os.getpid())
    return jt.get(ref)


def record(name: str) -> dict[str, Any]:
    """The newest record of a task or call whose name ends so."""
    return next(task for task in reversed(jt.tasks()) if task["name"].endswith(name))


@pytest.fixture
def fresh() -> None:
    """No tasks of earlier tests in the history."""
    jt.shutdown()
    jt.init(num_cpus=2)


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
@each_process_kind
def test_a_recursive_cancel_reaches_calls_of_actors_as_a_flag(
    kind: Kind, force: bool, fresh: None, tmp_path: Path
) -> None:
    """Also with force, which kills the parent: the actor survives, with its state."""
    actor = kind.start(tmp_path)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    ref = jt.remote(calls).remote(actor, "call", str(tmp_path))
    words.hear(tmp_path / "call")
    jt.cancel(ref, force=force)
    assert isinstance(raised(ref), ForceCancelledError if force else TaskCancelledError)
    if kind is not ASYNC:
        wait_until(lambda: record("hold")["state"] == "cancelling", "the call was asked")
        words.say(tmp_path / "call.go", "asked")
    wait_until(lambda: record("hold")["state"] == "cancelled", "the call has ended")
    assert record("hold")["source"] == "parent"
    assert jt.get(actor.were_asked.remote(), timeout=NET) == {"call": True}
    assert jt.get(actor.log.remote(), timeout=NET) == ["call"]
    assert jt.get(actor.pid.remote(), timeout=NET) == pid


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
@each_process_kind
def test_a_recursive_cancel_removes_queued_calls(kind: Kind, force: bool, fresh: None, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    running = kind.fill(actor, tmp_path)
    ref = jt.remote(calls).remote(actor, "child", str(tmp_path))
    words.hear(tmp_path / "parent")
    jt.cancel(ref, force=force)
    assert isinstance(raised(ref), TaskCancelledError)
    wait_until(lambda: record("hold")["state"] == "cancelled", "the call is removed while the actor is occupied")
    kind.let_go(tmp_path)
    assert jt.get(running, timeout=NET) == kind.holders()
    assert sorted(jt.get(actor.log.remote(), timeout=NET)) == kind.holders()


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
@each_process_kind
def test_without_recursion_calls_of_actors_go_on(kind: Kind, force: bool, fresh: None, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    ref = jt.remote(calls).remote(actor, "call", str(tmp_path))
    words.hear(tmp_path / "call")
    jt.cancel(ref, force=force, recursive=False)
    assert isinstance(raised(ref), TaskCancelledError)
    assert record("hold")["state"] == "running"
    words.say(tmp_path / "call.go")
    wait_until(lambda: record("hold")["state"] == "completed", "it comes to its end")
    assert jt.get(actor.were_asked.remote(), timeout=NET) == {"call": False}


class Parent:
    """Its calls submit tasks and calls of another actor, and wait for them."""

    def __init__(self, place: str, other: Any) -> None:
        self.place = place
        self.other = other

    def run(self, name: str) -> Any:
        refs = [jt.remote(sleeps).options(num_cpus=0).remote(self.place, name), self.other.hold.remote(f"{name}.call")]
        return jt.get(refs)


class AsyncParent(Parent):
    async def run(self, name: str) -> Any:  # type: ignore[override]
        refs = [jt.remote(sleeps).options(num_cpus=0).remote(self.place, name), self.other.hold.remote(f"{name}.call")]
        return [await ref for ref in refs]


def sleeps(place: str, name: str) -> str:
    words.say(f"{place}/{name}.task")
    words.hear(f"{place}/{name}.task.go", 60)
    return "slept"


@pytest.mark.parametrize("cls", [Parent, AsyncParent], ids=["threaded", "async"])
def test_a_cancelled_call_takes_its_own_children_along_and_no_others(cls: type, fresh: None, tmp_path: Path) -> None:
    """Ray's test_cancel_recursive_tree: of two calls that run in one process at the same time."""
    other = ASYNC.start(tmp_path, max_concurrency=10)
    actor = jt.remote(cls).options(max_concurrency=4).remote(str(tmp_path), other)
    names = ("one", "two", "three")
    one, two, three = (actor.run.remote(name) for name in names)
    for name in names:
        for word in ("task", "call"):
            words.hear(tmp_path / f"{name}.{word}")
    jt.cancel(two)
    assert isinstance(raised(two), TaskCancelledError)
    jt.cancel(three, recursive=False)
    wait_until(lambda: jt.get(other.were_asked.remote())["two.call"], "the other actor's call was asked, too")
    states = sorted(task["state"] for task in jt.tasks() if task["name"] == "sleeps")
    assert states == ["cancelled", "running", "running"]
    for name in ("one", "three"):
        words.say(tmp_path / f"{name}.task.go")
        words.say(tmp_path / f"{name}.call.go")
    assert jt.get(one, timeout=NET) == ["slept", "one.call"]
    assert isinstance(raised(three), TaskCancelledError)
    wait_until(lambda: status()["live"] == 0, "all are over")
    assert jt.get(other.were_asked.remote(), timeout=NET) == {"one.call": False, "two.call": True, "three.call": False}


@pytest.mark.parametrize("recursive", [True, False], ids=["recursive", "not"])
def test_a_chain_of_four_actors(recursive: bool, fresh: None, tmp_path: Path) -> None:
    """Ray's test_cancel_recursive_chain."""

    class Link:
        def __init__(self, child: Any = None) -> None:
            self.child = child
            self.refs: list[Any] = []

        async def run(self, place: str) -> str:
            if self.child is None:
                words.say(f"{place}/in")
                while not words.said(f"{place}/go"):
                    await asyncio.sleep(0.001)
                return "end"
            self.refs.append(self.child.run.remote(place))
            return str(await self.refs[-1])

        def ref_of_child(self) -> Any:
            return self.refs

    remote = jt.remote(Link)
    chain = [remote.remote()]
    for _ in range(3):
        chain.append(remote.remote(chain[-1]))
    ref = chain[-1].run.remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(ref, recursive=recursive)
    assert isinstance(raised(ref), TaskCancelledError)
    if not recursive:
        words.say(tmp_path / "go")
    for link in chain[1:]:
        (child,) = jt.get(link.ref_of_child.remote(), timeout=NET)
        if recursive:
            assert isinstance(raised(child), TaskCancelledError)
        else:
            assert jt.get(child, timeout=NET) == "end"


def test_a_task_may_cancel_a_call_by_a_ref_that_it_was_given(tmp_path: Path) -> None:
    """Ray's test_remote_cancel."""
    actor = ASYNC.start(tmp_path)
    ref = actor.until_asked.remote("call")
    words.hear(tmp_path / "call")
    jt.get(jt.remote(lambda refs: jt.cancel(refs[0])).remote([ref]), timeout=NET)
    assert isinstance(raised(ref), TaskCancelledError)


@each_kind
def test_submitting_and_cancelling_from_many_threads(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_concurrent_submission_and_cancellation: nothing hangs, nothing runs that was said not to have begun."""
    actor = kind.start(tmp_path)
    running = kind.fill(actor, tmp_path)
    refs: list[Any] = []

    def submit(first: int) -> None:
        refs.extend(actor.note.remote(first + i) for i in range(25))

    threads = [threading.Thread(target=submit, args=(100 * i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 500
    for ref in reversed(refs):
        jt.cancel(ref)
    for ref in refs:
        assert isinstance(raised(ref), TaskCancelledError)
    kind.let_go(tmp_path)
    assert jt.get(running, timeout=NET) == kind.holders()
    assert sorted(jt.get(actor.log.remote(), timeout=NET)) == kind.holders()


# -- generators, and the stop button ----------------------------------------------------------------------------------------


def test_a_cancelled_generator_call_keeps_what_it_made(tmp_path: Path) -> None:
    """As of tasks: the items made so far, one ref that raises, then the end. A sync actor's is told by its flag."""

    class Makes:
        def items(self, place: str) -> Any:
            yield from range(3)
            words.say(f"{place}/made")
            while not jt.get_runtime_context().is_canceled():
                time.sleep(0.001)

        def ping(self) -> str:
            return "pong"

    actor = jt.remote(Makes).remote()
    items = actor.items.remote(str(tmp_path))
    words.hear(tmp_path / "made")
    jt.cancel(items)
    assert [jt.get(next(items), timeout=NET) for _ in range(3)] == [0, 1, 2]
    assert isinstance(raised(next(items)), TaskCancelledError)
    with pytest.raises(StopIteration):
        next(items)
    assert jt.get(actor.ping.remote(), timeout=NET) == "pong"


@each_kind
def test_a_future_of_a_call_cancels_it(kind: Kind, tmp_path: Path) -> None:
    """`ref.future().cancel()` is a cancel of the call."""
    actor = kind.start(tmp_path)
    ref = actor.until_asked.remote("call")
    future = ref.future()
    words.hear(tmp_path / "call")
    future.cancel()
    assert isinstance(raised(ref), TaskCancelledError)
