"""End to end: how actors end (SEMANTICS 2, below the table; B5, B6): kill, exit_actor, terminate, the last handle, errors
of the constructor, crashes and restarts; and whose name is free when.

Role: each test names the promise it proves. Where nothing may be left when a verb returns, the test looks at that very
moment; elsewhere it waits for a word.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actors
import pytest
import words
from actors import ASYNC, IN_KERNEL, IN_PROCESSES, KINDS, SYNC, THREADED, Keeper, Kind
from conftest import is_open, raised, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorError,
    ActorUnavailableError,
    TaskCancelledError,
    UnserializableError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_process_kind = pytest.mark.parametrize("kind", IN_PROCESSES, ids=lambda kind: kind.name)


def gone(*pids: int) -> None:
    wait_until(lambda: not any(words.alive(pid) for pid in pids), "the processes have ended")


def state_of(actor_id: str) -> str:
    return str(next(actor["state"] for actor in jt.list_actors() if actor["actor_id"] == actor_id))


class WithTree(Keeper):
    """An actor with subprocesses."""

    def plant(self) -> list[int]:
        return actors.plant_tree(self.place)

    def plant_and_wait(self) -> None:
        actors.plant_tree(self.place)
        time.sleep(60)


class AsyncWithTree(actors.AsyncKeeper, WithTree):
    async def plant_and_wait(self) -> None:  # type: ignore[override]
        actors.plant_tree(self.place)
        await asyncio.sleep(60)


def with_tree(kind: Kind, place: Path, **options: Any) -> Any:
    cls = AsyncWithTree if kind is ASYNC else WithTree
    return jt.remote(cls).options(**{**kind.options, **options}).remote(str(place))


# -- kill ---------------------------------------------------------------------------------------------------------------


@each_kind
def test_when_kill_returns_no_later_call_succeeds(kind: Kind, tmp_path: Path) -> None:
    """B5: also no call that is made at that very moment, of an actor that is quick to answer."""
    for i in range(20):
        actor = kind.start(tmp_path)
        if i % 2:
            assert jt.get(actor.note.remote(0), timeout=NET) == 0
        jt.kill(actor)
        for ref in [actor.note.remote(j) for j in range(3)]:
            assert isinstance(raised(ref), ActorDiedError)


@each_kind
def test_after_kill_current_pending_and_future_calls_raise(kind: Kind, tmp_path: Path) -> None:
    """ActorDiedError that says who was killed; what was returned before stays."""
    actor = kind.start(tmp_path)
    before = actor.note.remote("before")
    assert jt.get(before, timeout=NET) == "before"
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    jt.kill(actor)
    later = actor.note.remote("later")
    for ref in (*queued, later):
        error = raised(ref)
        assert type(error) is ActorDiedError
        assert isinstance(error, ActorError)
        assert "kill" in str(error)
        assert "Keeper" in str(error)
    if kind is IN_KERNEL:  # a thread cannot be killed: it comes to its end
        kind.let_go(tmp_path)
    for ref in running:
        assert isinstance(raised(ref), ActorDiedError)
    assert jt.get(before) == "before"


@each_process_kind
def test_kill_runs_no_finally_and_no_atexit(kind: Kind, tmp_path: Path) -> None:
    """Immediate: the process is gone when kill() returns."""

    class Handlers(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            atexit.register(words.say, f"{place}/atexit")

    actor = jt.remote(Handlers).options(**kind.options).remote(str(tmp_path))
    ref = actor.exit.remote("call")
    pid = int(words.hear(tmp_path / "call"))
    jt.kill(actor)
    assert not words.alive(pid)
    assert isinstance(raised(ref), ActorDiedError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call"]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a call"])
@each_process_kind
def test_kill_takes_the_process_tree_along(kind: Kind, busy: bool, tmp_path: Path) -> None:
    """When it returns, nothing is left: children, deaf ones, those in sessions of their own, daemons."""
    actor = with_tree(kind, tmp_path)
    pids = [jt.get(actor.pid.remote(), timeout=NET)]
    if busy:
        running = actor.plant_and_wait.remote()
        pids += [int(words.hear(tmp_path / name)) for name in actors.TREE]
    else:
        pids += jt.get(actor.plant.remote(), timeout=NET)
    assert all(words.alive(pid) for pid in pids)
    jt.kill(actor)
    assert [pid for pid in pids if words.alive(pid)] == []
    if busy:
        assert isinstance(raised(running), ActorDiedError)


@pytest.mark.parametrize("kind", [SYNC, THREADED], ids=lambda kind: kind.name)
def test_kill_ends_c_code_that_holds_the_gil(kind: Kind, tmp_path: Path) -> None:
    class Computes(Keeper):
        def computes(self) -> int:
            words.say(f"{self.place}/in", os.getpid())
            return sum(range(10**12))

    actor = jt.remote(Computes).options(**kind.options).remote(str(tmp_path))
    ref = actor.computes.remote()
    pid = int(words.hear(tmp_path / "in"))
    words.computes(pid)
    jt.kill(actor)
    assert not words.alive(pid)
    assert isinstance(raised(ref), ActorDiedError)


@pytest.mark.parametrize("moment", ["before it is there", "constructing"])
@each_process_kind
def test_kill_of_an_actor_that_is_not_ready(kind: Kind, moment: str, tmp_path: Path) -> None:
    """Its constructor runs, or waits for what it needs: calls raise at once, and the constructor never comes to its end."""

    class Slow(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str, *_: Any) -> None:
            words.say(f"{place}/constructing", os.getpid())
            words.hear(f"{place}/construct", 60)
            words.say(f"{place}/constructed")

    def late(place: str) -> None:
        words.hear(f"{place}/construct", 60)

    needed = [jt.remote(late).remote(str(tmp_path))] if moment != "constructing" else []
    actor = jt.remote(Slow).options(**kind.options).remote(str(tmp_path), *needed)
    ref = actor.note.remote(1)
    pid = int(words.hear(tmp_path / "constructing")) if not needed else 0
    jt.kill(actor)
    assert not pid or not words.alive(pid)
    assert isinstance(raised(ref), ActorDiedError)
    words.say(tmp_path / "construct")
    jt.get(needed, timeout=NET)
    jt.get([jt.remote(abs).remote(-1) for _ in range(10)], timeout=NET)
    assert not words.said(tmp_path / "constructed")


@each_kind
def test_kill_may_be_called_again(kind: Kind, tmp_path: Path) -> None:
    """Also of an actor that has ended otherwise, and from several threads at once."""
    actor = kind.start(tmp_path)
    threads = [threading.Thread(target=jt.kill, args=(actor,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jt.kill(actor)
    other = kind.start(tmp_path)
    jt.wait([other.terminate()], timeout=NET)
    jt.kill(other)
    assert isinstance(raised(other.note.remote(1)), ActorDiedError)


def test_kill_from_a_task_and_from_another_actor(tmp_path: Path) -> None:
    """B5 holds there, too."""

    def kills(actor: Any) -> bool:
        jt.kill(actor)
        try:
            jt.get(actor.note.remote(1), timeout=NET)
        except ActorDiedError:
            return True
        return False

    class Killer:
        def kills(self, actor: Any) -> bool:
            return kills(actor)

    assert jt.get(jt.remote(kills).remote(SYNC.start(tmp_path)), timeout=NET)
    assert jt.get(jt.remote(Killer).remote().kills.remote(SYNC.start(tmp_path)), timeout=NET)


@each_process_kind
def test_kill_ends_what_the_actor_has_started(kind: Kind, tmp_path: Path) -> None:
    """The task that its running call has submitted, and the actor to which only it has a handle."""

    class Starts(kind.cls):  # type: ignore[name-defined,misc]
        def start(self) -> None:
            self.child = SYNC.start(Path(self.place))
            self.ref = self.child.hold.remote("child actor")
            self.task = jt.remote(task).options(num_cpus=0).remote(self.place)

    def task(place: str) -> None:
        words.say(f"{place}/child task", os.getpid())
        time.sleep(60)

    actor = jt.remote(Starts).options(**kind.options).remote(str(tmp_path))
    jt.get(actor.start.remote(), timeout=NET)
    pids = [int(words.hear(tmp_path / name)) for name in ("child actor", "child task")]
    jt.kill(actor)
    gone(*pids)


# -- kill(no_restart=False) -------------------------------------------------------------------------------------------------


@each_process_kind
def test_kill_with_restart_gives_a_new_process_and_a_fresh_state(kind: Kind, tmp_path: Path) -> None:
    """Current and pending calls raise ActorUnavailableError; later ones wait for the new instance."""
    actor = with_tree(kind, tmp_path, max_restarts=1)
    jt.get(actor.note.remote("before"), timeout=NET)
    pids = [jt.get(actor.pid.remote(), timeout=NET), *jt.get(actor.plant.remote(), timeout=NET)]
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    jt.kill(actor, no_restart=False)
    assert [pid for pid in pids if words.alive(pid)] == []
    later = actor.note.remote("later")
    for ref in (*running, *queued):
        assert type(raised(ref)) is ActorUnavailableError
    assert jt.get(later, timeout=NET) == "later"
    assert jt.get(actor.log.remote(), timeout=NET) == ["later"]
    assert jt.get(actor.pid.remote(), timeout=NET) != pids[0]


@each_process_kind
def test_kill_with_restart_runs_calls_again_that_may_be(kind: Kind, tmp_path: Path) -> None:
    """With max_task_retries: the one that ran, and those behind it, in their order."""
    actor = kind.start(tmp_path, max_restarts=1, max_task_retries=1, max_concurrency=1)
    running = actor.hold.remote("call")
    queued = [actor.note.remote(i) for i in range(5)]
    words.hear(tmp_path / "call")
    (tmp_path / "call").unlink()
    jt.kill(actor, no_restart=False)
    words.hear(tmp_path / "call")
    words.say(tmp_path / "call.go")
    assert jt.get([running, *queued], timeout=NET) == ["call", *range(5)]
    assert jt.get(actor.log.remote(), timeout=NET) == ["call", *range(5)]


@each_kind
def test_kill_with_restart_of_one_that_must_not_restart_is_its_end(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    jt.get(actor.note.remote(1), timeout=NET)
    jt.kill(actor, no_restart=False)
    assert isinstance(raised(actor.note.remote(2)), ActorDiedError)


def test_kill_without_restart_ends_one_that_may_restart(tmp_path: Path) -> None:
    """The default: no_restart=True; nothing is run again, whatever max_task_retries says."""
    actor = SYNC.start(tmp_path, max_restarts=-1, max_task_retries=-1)
    running = SYNC.fill(actor, tmp_path)
    queued = actor.note.remote(1)
    jt.kill(actor)
    for ref in (*running, queued, actor.note.remote(2)):
        assert isinstance(raised(ref), ActorDiedError)


# -- exit_actor -------------------------------------------------------------------------------------------------------------


@each_kind
def test_exit_actor_ends_the_actor_in_good_order(kind: Kind, tmp_path: Path) -> None:
    """`finally` and atexit run, code behind it does not; its own ref, queued and later calls raise; never restarted."""

    class Handlers(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            words.mark(f"{place}/constructed")
            if kind.own_process:
                atexit.register(words.say, f"{place}/atexit")

    options = {**kind.options, "max_concurrency": 1}
    if kind.own_process:
        options |= {"max_restarts": -1, "max_task_retries": -1}
    actor = jt.remote(Handlers).options(**options).remote(str(tmp_path))
    earlier = [actor.note.remote(i) for i in range(3)]
    ref = actor.exit.remote("call")
    queued = [actor.note.remote(i) for i in range(3, 6)]
    words.hear(tmp_path / "call")
    assert jt.get(earlier, timeout=NET) == [0, 1, 2]
    words.say(tmp_path / "call.go")
    error = raised(ref)
    assert isinstance(error, ActorDiedError)
    assert "exit_actor" in str(error)
    for late in (*queued, actor.note.remote("later")):
        assert isinstance(raised(late), ActorDiedError)
    assert words.said(tmp_path / "finally")
    if kind.own_process:
        words.hear(tmp_path / "atexit")
    assert not words.said(tmp_path / "after exit_actor")
    assert words.marks(tmp_path / "constructed") == 1
    assert jt.get(earlier) == [0, 1, 2]


@pytest.mark.parametrize("kind", [THREADED, ASYNC], ids=lambda kind: kind.name)
def test_calls_that_run_beside_exit_actor_finish_first(kind: Kind, tmp_path: Path) -> None:
    """They keep their values; none begins after it."""
    actor = kind.start(tmp_path)
    beside = [actor.hold.remote(name) for name in ("one", "two")]
    for name in ("one", "two"):
        words.hear(tmp_path / name)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    ref = actor.exit.remote("call")
    words.hear(tmp_path / "call")
    words.say(tmp_path / "call.go")
    words.hear(tmp_path / "finally")
    late = actor.note.remote("late")
    for name in ("one", "two"):
        assert words.alive(pid)
        words.say(tmp_path / f"{name}.go")
    assert jt.get(beside, timeout=NET) == ["one", "two"]
    assert isinstance(raised(ref), ActorDiedError)
    assert isinstance(raised(late), ActorDiedError)
    gone(pid)


@each_kind
def test_exit_actor_cannot_be_caught(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_exit_actor_*_user_catch_err_should_still_exit."""

    class Catches(kind.cls):  # type: ignore[name-defined,misc]
        def exits(self) -> str:
            try:
                jt.exit_actor()
            except BaseException:
                pass
            return "still here"

        async def exits_async(self) -> str:
            return self.exits()

    cls = Catches
    if kind is not ASYNC:
        del cls.exits_async
    actor = jt.remote(cls).options(**kind.options).remote(str(tmp_path))
    ref = actor.exits_async.remote() if kind is ASYNC else actor.exits.remote()
    assert isinstance(raised(ref), ActorDiedError)
    assert isinstance(raised(actor.note.remote(1)), ActorDiedError)


@each_kind
def test_exit_actor_in_the_constructor(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_exit_actor_*_in_constructor_should_exit: every call raises, what is behind it does not run."""

    class Leaves(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            words.mark(f"{place}/constructed")
            if kind.own_process:
                atexit.register(words.say, f"{place}/atexit")
            jt.exit_actor()
            words.say(f"{place}/after exit_actor")

    restarts = {"max_restarts": 3} if kind.own_process else {}
    actor = jt.remote(Leaves).options(**kind.options, **restarts).remote(str(tmp_path))
    for _ in range(2):
        assert isinstance(raised(actor.note.remote(1)), ActorDiedError)
    if kind.own_process:
        words.hear(tmp_path / "atexit")
    assert not words.said(tmp_path / "after exit_actor")
    assert words.marks(tmp_path / "constructed") == 1


def test_exit_actor_in_a_coroutine_that_a_call_has_started(tmp_path: Path) -> None:
    """Ray's test_exit_actor_async_actor_nested_task: the call itself has returned before."""

    class Nested(actors.AsyncKeeper):
        async def begin(self) -> str:
            self.task = asyncio.create_task(self.exit("nested"))
            return "begun"

    actor = jt.remote(Nested).remote(str(tmp_path))
    assert jt.get(actor.begin.remote(), timeout=NET) == "begun"
    pid = jt.get(actor.pid.remote(), timeout=NET)
    words.hear(tmp_path / "nested")
    words.say(tmp_path / "nested.go")
    gone(pid)
    assert not words.said(tmp_path / "after exit_actor")
    assert isinstance(raised(actor.note.remote(1)), ActorDiedError)


@each_kind
def test_thousands_of_calls_queued_behind_exit_actor_never_run(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_exit_actor_queued."""

    class Counts(kind.cls):  # type: ignore[name-defined,misc]
        def count(self) -> None:
            words.mark(f"{self.place}/ran")

    actor = jt.remote(Counts).options(**{**kind.options, "max_concurrency": 1}).remote(str(tmp_path))
    ref = actor.exit.remote("call")
    words.hear(tmp_path / "call")
    queued = [actor.count.remote() for _ in range(3000)]
    words.say(tmp_path / "call.go")
    for late in (ref, *queued):
        error = raised(late)
        assert isinstance(error, ActorDiedError)
        assert "exit_actor" in str(error)
    assert words.marks(tmp_path / "ran") == 0


def test_exit_actor_outside_of_actors_is_a_type_error() -> None:
    """In the program, and in a task. `jt.actor.exit_actor` is the same."""
    assert jt.actor.exit_actor is jt.exit_actor
    with pytest.raises(TypeError, match="exit_actor"):
        jt.exit_actor()
    with pytest.raises(TypeError, match="exit_actor"):
        jt.get(jt.remote(lambda: jt.exit_actor()).remote(), timeout=NET)
    assert jt.get(jt.remote(abs).remote(-1)) == 1


@each_process_kind
def test_what_an_actor_leaves_running_goes_with_it(kind: Kind, tmp_path: Path) -> None:
    """B9 for a graceful end: a daemon thread, and all processes that it has started."""
    actor = with_tree(kind, tmp_path)
    pids = [jt.get(actor.pid.remote(), timeout=NET), *jt.get(actor.plant.remote(), timeout=NET)]
    words.say(tmp_path / "call.go")
    assert isinstance(raised(actor.exit.remote("call")), ActorDiedError)
    gone(*pids)


# -- terminate --------------------------------------------------------------------------------------------------------------


@each_kind
def test_terminate_lets_submitted_calls_finish_and_ends_the_actor(kind: Kind, tmp_path: Path) -> None:
    """Returns at once a ref that is final when the actor has ended; atexit has run then. Never restarted."""

    class Handlers(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            words.mark(f"{place}/constructed")
            if kind.own_process:
                atexit.register(words.say, f"{place}/atexit")

    restarts = {"max_restarts": -1} if kind.own_process else {}
    actor = jt.remote(Handlers).options(**kind.options, **restarts).remote(str(tmp_path))
    pid = jt.get(actor.pid.remote(), timeout=NET)
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    end = actor.terminate()
    later = actor.note.remote("later")
    assert is_open(end, 0.1)
    kind.let_go(tmp_path)
    assert jt.wait([end], timeout=NET)[0] == [end]
    if kind.own_process:
        assert words.said(tmp_path / "atexit")
        assert not words.alive(pid)
    assert jt.get([*running, *queued], timeout=NET) == [*kind.holders(), *range(5)]
    assert isinstance(raised(later), ActorDiedError)
    assert isinstance(raised(actor.note.remote("much later")), ActorDiedError)
    assert words.marks(tmp_path / "constructed") == 1


@each_kind
def test_terminate_of_an_actor_that_has_ended_is_final_at_once(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    jt.kill(actor)
    end = actor.terminate()
    assert jt.wait([end], timeout=NET)[0] == [end]


@each_process_kind
def test_terminate_of_an_actor_that_never_ends_can_be_cut_short_by_kill(kind: Kind, tmp_path: Path) -> None:
    actor = kind.start(tmp_path)
    running = kind.fill(actor, tmp_path)
    end = actor.terminate()
    jt.kill(actor)
    assert jt.wait([end], timeout=NET)[0] == [end]
    for ref in running:
        assert isinstance(raised(ref), ActorDiedError)


# -- the last handle ------------------------------------------------------------------------------------------------------


@each_kind
def test_when_the_last_handle_is_gone_submitted_calls_finish(kind: Kind, tmp_path: Path) -> None:
    """Then it ends in good order, with atexit, and all that it has started."""

    class Handlers(AsyncWithTree if kind is ASYNC else WithTree):  # type: ignore[misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            if kind.own_process:
                atexit.register(words.say, f"{place}/atexit")

    actor = jt.remote(Handlers).options(**kind.options, name="dropped").remote(str(tmp_path))
    pids = [jt.get(actor.pid.remote(), timeout=NET)]
    pids = [*pids, *jt.get(actor.plant.remote(), timeout=NET)] if kind.own_process else []
    (actor_id,) = [
        found["actor_id"] for found in jt.list_actors() if (found["name"], found["state"]) == ("dropped", "alive")
    ]
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    del actor
    gc.collect()
    assert is_open(queued[-1], 0.1)
    kind.let_go(tmp_path)
    assert jt.get([*running, *queued], timeout=NET) == [*kind.holders(), *range(5)]
    if kind.own_process:
        words.hear(tmp_path / "atexit")
    gone(*pids)
    wait_until(lambda: state_of(actor_id) == "dead", "the record says so")


@each_kind
def test_a_call_of_a_handle_that_is_gone_at_once(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_actor_method_deletion."""
    assert jt.get(kind.start(tmp_path).note.remote(1), timeout=NET) == 1


def test_ten_actors_end_with_their_handles(tmp_path: Path) -> None:
    """Ray's test_actor_deletion."""
    handles = [SYNC.start(tmp_path) for _ in range(10)]
    pids = jt.get([handle.pid.remote() for handle in handles], timeout=NET)
    assert len(set(pids)) == 10
    del handles
    gc.collect()
    gone(*pids)


def in_a_list(actor: Any) -> Any:
    return [actor]


def in_a_put(actor: Any) -> Any:
    return jt.put({"here": actor})


def in_a_pickle(actor: Any) -> Any:
    return pickle.loads(pickle.dumps(actor))


def in_a_copy(actor: Any) -> Any:
    return copy.deepcopy(copy.copy(actor))


def in_a_method(actor: Any) -> Any:
    return actor.note


def in_another_actor(actor: Any) -> Any:
    class Holder:
        def __init__(self, held: Any) -> None:
            self.held = held

        def ready(self) -> None:
            pass

    holder = jt.remote(Holder).remote(actor)
    jt.get(holder.ready.remote(), timeout=NET)
    return holder


def in_a_result(actor: Any) -> Any:
    ref = jt.remote(lambda held: [held]).remote(actor)
    jt.wait([ref], timeout=NET)
    return ref


PLACES = (in_a_list, in_a_put, in_a_pickle, in_a_copy, in_a_method, in_another_actor, in_a_result)


@pytest.mark.parametrize("keep", PLACES, ids=lambda keep: keep.__name__)
def test_a_handle_counts_wherever_it_is(keep: Callable[[Any], Any], tmp_path: Path) -> None:
    """And when this place is gone, so is the actor."""
    actor = SYNC.start(tmp_path)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    kept = keep(actor)
    del actor
    gc.collect()
    status()  # the supervisor has heard of it
    jt.get([jt.remote(abs).remote(-1) for _ in range(4)], timeout=NET)
    assert words.alive(pid)
    del kept
    gc.collect()
    gone(pid)


def test_a_handle_in_the_arguments_of_a_waiting_task_counts(tmp_path: Path) -> None:
    """Ray's test_distributed_actor_handle_deletion, test_deleted_actor_no_restart."""

    def uses(actor: Any, place: str) -> Any:
        words.hear(f"{place}/go", 60)
        return jt.get(actor.note.remote("used"))

    actor = SYNC.start(tmp_path, max_restarts=3)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    ref = jt.remote(uses).remote(actor, str(tmp_path))
    del actor
    gc.collect()
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == "used"
    gone(pid)


def test_an_actor_made_in_a_task_lives_as_long_as_its_handles(tmp_path: Path) -> None:
    """Not as long as the task; also when the worker of the task is gone."""

    def makes(place: str) -> Any:
        actor = jt.remote(Keeper).remote(place)
        return actor, actor.note.remote("first"), os.getpid()

    actor, first, worker = jt.get(jt.remote(makes).remote(str(tmp_path)), timeout=NET)
    os.kill(worker, signal.SIGKILL)
    gone(worker)
    assert jt.get(first, timeout=NET) == "first"
    assert jt.get(actor.note.remote("second"), timeout=NET) == "second"
    assert jt.get(actor.log.remote(), timeout=NET) == ["first", "second"]
    pid = jt.get(actor.pid.remote(), timeout=NET)
    del actor
    gc.collect()
    gone(pid)


def test_an_actor_made_in_a_task_that_gives_no_handle_away_ends(tmp_path: Path) -> None:
    """Ray's test_actor_exit_from_task: its submitted call finishes, and its value is there."""

    def makes(place: str) -> Any:
        actor = jt.remote(Keeper).remote(place)
        return [actor.pid.remote()]

    (ref,) = jt.get(jt.remote(makes).remote(str(tmp_path)), timeout=NET)
    gone(jt.get(ref, timeout=NET))


@pytest.mark.parametrize("how", ["cancel", "crash"])
def test_the_handles_of_a_process_that_dies_count_as_dropped(how: str, tmp_path: Path) -> None:
    def makes(place: str) -> None:
        actor = jt.remote(Keeper).remote(place)
        words.say(f"{place}/pid", jt.get(actor.pid.remote()))
        words.hear(f"{place}/crash", 60)
        os._exit(1)

    ref = jt.remote(makes).options(max_retries=0).remote(str(tmp_path))
    pid = int(words.hear(tmp_path / "pid"))
    if how == "cancel":
        jt.cancel(ref, force=True)
    else:
        words.say(tmp_path / "crash")
    raised(ref)
    gone(pid)


def test_a_value_outlives_the_actor_that_made_it(tmp_path: Path) -> None:
    """Small and large, and what it has put."""

    class Makes:
        def make(self, size: int) -> bytes:
            return bytes(size)

        def put(self) -> Any:
            return [jt.put(b"x" * 200_000)]

    actor = jt.remote(Makes).remote()
    refs = [actor.make.remote(10), actor.make.remote(10**6)]
    (put,) = jt.get(actor.put.remote(), timeout=NET)
    jt.wait(refs, num_returns=2, timeout=NET)
    jt.kill(actor)
    assert [len(value) for value in jt.get(refs, timeout=NET)] == [10, 10**6]
    assert len(jt.get(put, timeout=NET)) == 200_000


# -- the constructor ----------------------------------------------------------------------------------------------------------


@each_kind
def test_an_error_in_the_constructor_is_raised_by_every_call(kind: Kind, tmp_path: Path) -> None:
    """ActorDiedError with the constructor's traceback: calls that were submitted before, and later ones. It is not
    constructed again: the next time would raise, too."""

    class Bad(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            words.mark(f"{place}/constructed")
            words.hear(f"{place}/go", 60)
            raise RuntimeError("祝你有个好心情")

    restarts = {"max_restarts": 3, "max_task_retries": 3} if kind.own_process else {}
    actor = jt.remote(Bad).options(**kind.options, **restarts).remote(str(tmp_path))
    early = [actor.note.remote(i) for i in range(3)]
    words.say(tmp_path / "go")
    for ref in (*early, actor.note.remote("late")):
        error = raised(ref)
        assert type(error) is ActorDiedError
        text = f"{error}{error.__cause__}"
        assert "祝你有个好心情" in text
        assert "RuntimeError" in text
        assert "in __init__" in text
    assert words.marks(tmp_path / "constructed") == 1


def test_a_constructor_called_wrongly_is_a_type_error_at_once(tmp_path: Path) -> None:
    remote = jt.remote(Keeper)
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"place": 2}), ((), {"other": 1})):
        with pytest.raises(TypeError):
            remote.remote(*args, **kwargs)
    with pytest.raises(UnserializableError, match="lock"):
        remote.remote({"a": [threading.Lock()]})
    assert status()["live"] == 0


@each_process_kind
def test_a_crash_in_the_constructor_counts_as_a_restart(kind: Kind, tmp_path: Path) -> None:
    """Ray's test_actor_creation_task_crash."""

    class Crashes(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            words.mark(f"{place}/constructed")
            if words.marks(f"{place}/constructed") < 3:
                os._exit(3)

    remote = jt.remote(Crashes)
    actor = remote.options(**kind.options, max_restarts=2).remote(str(tmp_path))
    assert jt.get(actor.note.remote(1), timeout=NET) == 1
    assert words.marks(tmp_path / "constructed") == 3
    (tmp_path / "constructed").unlink()
    actor = remote.options(**kind.options, max_restarts=1).remote(str(tmp_path))
    error = raised(actor.note.remote(1))
    assert isinstance(error, ActorDiedError)
    assert "3" in str(error)
    assert words.marks(tmp_path / "constructed") == 2


@each_kind
def test_a_failed_argument_of_the_constructor_is_the_end_of_the_actor(kind: Kind, tmp_path: Path) -> None:
    """It is never constructed, and its calls say why."""

    def fails() -> str:
        raise KeyError("the root")

    class Never(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str, argument: Any) -> None:
            words.mark(f"{place}/constructed")

    actor = jt.remote(Never).options(**kind.options).remote(str(tmp_path), jt.remote(fails).remote())
    error = raised(actor.note.remote(1))
    assert isinstance(error, ActorDiedError | KeyError)
    assert "the root" in f"{error}{error.__cause__}"
    assert words.marks(tmp_path / "constructed") == 0


def test_actors_that_need_each_other_s_results_are_constructed_in_order(tmp_path: Path) -> None:
    """A ref of another actor's call among the arguments of the constructor is replaced by its value."""
    first = SYNC.start(tmp_path)
    second = jt.remote(Keeper).remote(first.note.remote("a place"))

    class Reads(Keeper):
        def where(self) -> str:
            return self.place

    third = jt.remote(Reads).remote(second.note.remote("another"))
    assert jt.get(third.where.remote(), timeout=NET) == "another"


# -- crashes ----------------------------------------------------------------------------------------------------------------

WAYS = {
    "sys.exit(4)": "4",
    "sys.exit(0)": "0",
    "os._exit(7)": "7",
    "os.kill(os.getpid(), signal.SIGKILL)": "SIGKILL",
    "os.kill(os.getpid(), signal.SIGSEGV)": "SIGSEGV",
}


class Dies(Keeper):
    def die(self, way: str) -> None:
        exec(way, {"os": os, "sys": sys, "signal": signal})


class AsyncDies(actors.AsyncKeeper, Dies):
    async def die(self, way: str) -> None:  # type: ignore[override]
        exec(way, {"os": os, "sys": sys, "signal": signal})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [Dies, AsyncDies], ids=["sync", "async"])
def test_every_way_to_die_is_named(cls: type, way: str, tmp_path: Path) -> None:
    """The call that did it, those behind it, and later ones: ActorDiedError with the exit code or the signal's name.
    Ray's test_exit_observability."""
    actor = jt.remote(cls).remote(str(tmp_path))
    jt.get(actor.note.remote(0), timeout=NET)
    refs = [actor.die.remote(way), actor.note.remote(1)]
    assert isinstance(raised(refs[0]), ActorDiedError)
    assert WAYS[way] in str(raised(refs[0]))
    if cls is Dies:  # in a loop the second may have run beside it
        assert isinstance(raised(refs[1]), ActorDiedError)
    later = raised(actor.note.remote(2))
    assert isinstance(later, ActorDiedError)
    assert WAYS[way] in str(later)
    assert jt.get(jt.remote(abs).remote(-1), timeout=NET) == 1  # nobody else is touched


def test_sys_exit_in_an_in_kernel_actor_is_an_error_of_the_call(tmp_path: Path) -> None:
    """The kernel must not end; as in a thread task."""
    actor = jt.remote(Dies).options(executor="thread").remote(str(tmp_path))
    error = raised(actor.die.remote("sys.exit(3)"))
    assert not isinstance(error, ActorError)
    assert error.type_name == "SystemExit"  # type: ignore[attr-defined]
    assert jt.get(actor.note.remote(1), timeout=NET) == 1


@each_process_kind
def test_a_crash_takes_running_and_queued_calls_and_the_tree_along(kind: Kind, tmp_path: Path) -> None:
    actor = with_tree(kind, tmp_path)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    pids = [pid, *jt.get(actor.plant.remote(), timeout=NET)]
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    os.kill(pid, signal.SIGKILL)
    for ref in (*running, *queued, actor.note.remote("later")):
        error = raised(ref)
        assert isinstance(error, ActorDiedError)
        assert "SIGKILL" in str(error)
    gone(*pids)


def test_retries_of_a_call_without_restarts_of_the_actor_are_none(tmp_path: Path) -> None:
    """max_task_retries alone does not bring an actor back."""
    actor = jt.remote(Dies).options(max_task_retries=-1).remote(str(tmp_path))
    assert isinstance(raised(actor.die.remote("os._exit(1)")), ActorDiedError)


def test_thousands_of_calls_while_the_actor_dies(tmp_path: Path) -> None:
    """Ray's test_actor_failure_async: no deadlock, each call has an end, those with values ran in order."""
    actor = SYNC.start(tmp_path)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    refs: list[Any] = []
    done: list[Any] = []

    def submit() -> None:
        for i in range(4000):
            ref = actor.note.remote(i)
            ref.future().add_done_callback(done.append)
            refs.append(ref)

    thread = threading.Thread(target=submit)
    thread.start()
    wait_until(lambda: len(refs) > 500, "some are submitted")
    os.kill(pid, signal.SIGKILL)
    thread.join()
    values = []
    for i, ref in enumerate(refs):
        try:
            assert jt.get(ref, timeout=NET) == i
            values.append(i)
        except ActorDiedError:
            pass
    assert values == list(range(len(values)))
    assert len(values) < len(refs)
    wait_until(lambda: len(done) == len(refs), "all callbacks have run")


def test_a_callback_may_call_the_actor_that_died(tmp_path: Path) -> None:
    """Ray's test_actor_failure_async_3: no deadlock."""
    actor = SYNC.start(tmp_path)
    again: list[Any] = []
    ref = actor.hold.remote("call")
    ref.future().add_done_callback(lambda _: again.append(actor.note.remote(1)))
    words.hear(tmp_path / "call")
    jt.kill(actor)
    assert isinstance(raised(ref), ActorDiedError)
    wait_until(lambda: again, "the callback has run")
    assert isinstance(raised(again.pop()), ActorDiedError)


@pytest.mark.parametrize("verb", ["wait", "as_completed", "await"])
def test_who_waits_for_a_call_hears_of_the_actor_s_end(verb: str, tmp_path: Path) -> None:
    """Ray's test_ray_wait_dead_actor: what an end has made final is ready."""
    actor = SYNC.start(tmp_path)
    running = actor.hold.remote("call")
    threading.Timer(0.05, os.kill, (int(words.hear(tmp_path / "call")), signal.SIGKILL)).start()
    if verb == "wait":
        assert jt.wait([running], timeout=NET)[0] == [running]
    elif verb == "as_completed":
        assert list(jt.as_completed([running], timeout=NET)) == [running]
    else:

        async def awaits() -> None:
            await running

        with pytest.raises(ActorDiedError):
            asyncio.run(awaits())
    assert isinstance(raised(running), ActorDiedError)


# -- restarts ---------------------------------------------------------------------------------------------------------------


def reborn(kind: Kind) -> type:
    """A class whose second and later instances wait in their constructor until the test says so."""

    class Reborn(kind.cls):  # type: ignore[name-defined,misc]
        def __init__(self, place: str) -> None:
            super().__init__(place)
            words.mark(f"{place}/constructed")
            self.number = words.marks(f"{place}/constructed")
            words.say(f"{place}/constructing{self.number}", os.getpid())
            if self.number > 1:
                words.hear(f"{place}/construct{self.number}", 60)
            self.reconstructed = jt.get_runtime_context().was_current_actor_reconstructed

        def facts(self) -> tuple[int, bool, bool]:
            return self.number, self.reconstructed, jt.get_runtime_context().was_current_actor_reconstructed

    return Reborn


@each_process_kind
def test_a_crash_with_restarts(kind: Kind, tmp_path: Path) -> None:
    """What was begun or queued at the crash raises ActorUnavailableError; what is submitted while it restarts waits for
    the new instance, and finds a fresh state; the next crash is the end."""
    actor = jt.remote(reborn(kind)).options(**kind.options, max_restarts=1).remote(str(tmp_path))
    jt.get(actor.note.remote("before"), timeout=NET)
    assert jt.get(actor.facts.remote(), timeout=NET) == (1, False, False)
    pid = jt.get(actor.pid.remote(), timeout=NET)
    running = kind.fill(actor, tmp_path)
    queued = [actor.note.remote(i) for i in range(5)]
    os.kill(pid, signal.SIGKILL)
    for ref in (*running, *queued):  # at once, not when the new instance is there
        assert type(raised(ref)) is ActorUnavailableError
    words.hear(tmp_path / "constructing2")
    waiting = [actor.note.remote(i) for i in range(5, 8)]
    assert is_open(waiting[0], 0.1)
    words.say(tmp_path / "construct2")
    assert jt.get(waiting, timeout=NET) == [5, 6, 7]
    assert sorted(jt.get(actor.log.remote(), timeout=NET)) == [5, 6, 7]
    assert jt.get(actor.facts.remote(), timeout=NET) == (2, True, True)
    again = jt.get(actor.pid.remote(), timeout=NET)
    assert again != pid
    os.kill(again, signal.SIGKILL)
    for _ in range(20):
        assert isinstance(raised(actor.note.remote(1)), ActorError)
    gone(again)
    assert isinstance(raised(actor.note.remote(1)), ActorDiedError)
    assert words.marks(tmp_path / "constructed") == 2


@each_process_kind
def test_a_crash_with_restarts_and_retries(kind: Kind, tmp_path: Path) -> None:
    """Nobody sees it: what was begun or queued is run again, in the order of submission, before what came later; what
    had returned is not. Ray's test_actor_restart_and_partial_task_not_completed."""
    options = {**kind.options, "max_concurrency": 1, "max_restarts": 1, "max_task_retries": 1}
    actor = jt.remote(reborn(kind)).options(**options).remote(str(tmp_path))
    assert jt.get([actor.note.remote(i) for i in range(3)], timeout=NET) == [0, 1, 2]
    running = actor.hold.remote("call")
    queued = [actor.note.remote(i) for i in range(3, 6)]
    os.kill(int(words.hear(tmp_path / "call")), signal.SIGKILL)
    words.hear(tmp_path / "constructing2")
    later = [actor.note.remote(i) for i in range(6, 9)]
    words.say(tmp_path / "call.go")
    assert is_open(running, 0.1)
    words.say(tmp_path / "construct2")
    assert jt.get([running, *queued, *later], timeout=NET) == ["call", *range(3, 9)]
    assert jt.get(actor.log.remote(), timeout=NET) == ["call", *range(3, 9)]


def test_calls_of_an_async_actor_are_run_again_though_later_ones_had_returned(tmp_path: Path) -> None:
    """Ray's test_async_actor_task_retries."""

    class Dying(actors.AsyncKeeper):
        doomed = False

        async def doom(self) -> None:
            self.doomed = True

        async def get(self, i: int) -> int:
            words.mark(f"{self.place}/{i}.ran")
            if self.doomed:
                os._exit(0)
            return i

    actor = jt.remote(Dying).options(max_restarts=-1, max_task_retries=-1).remote(str(tmp_path))
    assert jt.get(actor.get.remote(0), timeout=NET) == 0
    first = actor.hold.remote("first")
    words.hear(tmp_path / "first")
    (tmp_path / "first").unlink()
    assert jt.get(actor.doom.remote(), timeout=NET) is None
    third = actor.get.remote(3)
    assert jt.get(third, timeout=NET) == 3
    words.hear(tmp_path / "first")
    words.say(tmp_path / "first.go")
    assert jt.get(first, timeout=NET) == "first"
    assert [words.marks(tmp_path / f"{i}.ran") for i in (0, 3)] == [1, 2]


def test_retries_of_one_call_alone(tmp_path: Path) -> None:
    """`.options(max_task_retries=)` of a call goes before the actor's."""
    actor = SYNC.start(tmp_path, max_restarts=1)
    running = actor.hold.options(max_task_retries=1).remote("call")
    queued = actor.note.remote("not again")
    pid = int(words.hear(tmp_path / "call"))
    (tmp_path / "call").unlink()
    os.kill(pid, signal.SIGKILL)
    assert isinstance(raised(queued), ActorUnavailableError)
    words.hear(tmp_path / "call")
    words.say(tmp_path / "call.go")
    assert jt.get(running, timeout=NET) == "call"


def test_a_hundred_crashes(tmp_path: Path) -> None:
    """max_restarts=-1, max_task_retries=-1: a call that crashes its actor until it works."""

    class Flaky:
        def flaky(self, place: str, times: int) -> int:
            words.mark(f"{place}/ran")
            if words.marks(f"{place}/ran") <= times:
                os._exit(1)
            return words.marks(f"{place}/ran")

    actor = jt.remote(Flaky).options(max_restarts=-1, max_task_retries=-1).remote()
    assert jt.get(actor.flaky.remote(str(tmp_path), 100), timeout=60) == 101


def test_endless_restarts_end_with_a_cancel_of_the_call(tmp_path: Path) -> None:
    """As endless retries of tasks do; the actor goes on."""

    class Flaky(Keeper):
        def crashes(self) -> None:
            words.mark(f"{self.place}/ran")
            os._exit(1)

    actor = jt.remote(Flaky).options(max_restarts=-1, max_task_retries=-1).remote(str(tmp_path))
    ref = actor.crashes.remote()
    wait_until(lambda: words.marks(tmp_path / "ran") > 3, "some attempts")
    jt.cancel(ref)
    assert isinstance(raised(ref), TaskCancelledError | ActorUnavailableError)
    assert jt.get(actor.note.remote(1), timeout=NET) == 1


def test_kill_ends_an_actor_that_restarts(tmp_path: Path) -> None:
    """While its new instance is constructed: calls that wait for it raise, and the constructor's process is gone."""
    actor = jt.remote(reborn(SYNC)).options(max_restarts=-1).remote(str(tmp_path))
    os.kill(jt.get(actor.pid.remote(), timeout=NET), signal.SIGKILL)
    pid = int(words.hear(tmp_path / "constructing2"))
    waiting = actor.note.remote(1)
    jt.kill(actor)
    assert not words.alive(pid)
    assert isinstance(raised(waiting), ActorDiedError)


def test_the_last_handle_ends_an_actor_that_restarts(tmp_path: Path) -> None:
    """What waits for the new instance is done first."""
    actor = jt.remote(reborn(SYNC)).options(max_restarts=-1).remote(str(tmp_path))
    os.kill(jt.get(actor.pid.remote(), timeout=NET), signal.SIGKILL)
    pid = int(words.hear(tmp_path / "constructing2"))
    waiting = actor.note.remote(1)
    del actor
    gc.collect()
    words.say(tmp_path / "construct2")
    assert jt.get(waiting, timeout=NET) == 1
    gone(pid)


def test_a_caller_that_restarts_goes_on_calling(tmp_path: Path) -> None:
    """Ray's test_caller_actor_restart: the other actor has kept its state, and its handle was sent again."""

    class Caller:
        def __init__(self, other: Any) -> None:
            self.other = other

        def call(self, item: int) -> Any:
            return jt.get(self.other.note.remote(item))

        def pid(self) -> int:
            return os.getpid()

    other = SYNC.start(tmp_path)
    caller = jt.remote(Caller).options(max_restarts=1, max_task_retries=-1).remote(other)
    for i in range(3):
        assert jt.get(caller.call.remote(i), timeout=NET) == i
    os.kill(jt.get(caller.pid.remote(), timeout=NET), signal.SIGKILL)
    assert jt.get(caller.call.remote(3), timeout=NET) == 3
    assert jt.get(other.log.remote(), timeout=NET) == [0, 1, 2, 3]


def test_a_task_that_is_run_again_goes_on_calling(tmp_path: Path) -> None:
    """Ray's test_caller_task_reconstruction."""

    class Counter:
        value = 0

        def increase(self) -> int:
            self.value += 1
            return self.value

    def task(counter: Any) -> Any:
        value = jt.get(counter.increase.remote())
        if value <= 2:
            os._exit(0)
        return value

    counter = jt.remote(Counter).remote()
    assert jt.get(jt.remote(task).options(max_retries=5).remote(counter), timeout=NET) == 3


def test_a_restarted_actor_makes_its_children_anew(tmp_path: Path) -> None:
    """Ray's test_recreate_child_actor; the child of the dead instance, to which nobody has a handle, has ended."""

    class Owner:
        def __init__(self, place: str) -> None:
            self.child = jt.remote(Keeper).remote(place)

        def pids(self) -> list[int]:
            return [os.getpid(), jt.get(self.child.pid.remote())]

    actor = jt.remote(Owner).options(max_restarts=-1, max_task_retries=-1).remote(str(tmp_path))
    first = jt.get(actor.pids.remote(), timeout=NET)
    os.kill(first[0], signal.SIGKILL)
    second = jt.get(actor.pids.remote(), timeout=NET)
    assert not set(first) & set(second)
    gone(*first)


def test_many_actors_crash_and_all_calls_come_to_their_values(tmp_path: Path) -> None:
    """Ray's test_multiple_actor_restart."""

    class Echo:
        def echo(self, i: int) -> int:
            return i

        def pid(self) -> int:
            return os.getpid()

    handles = [jt.remote(Echo).options(max_restarts=-1, max_task_retries=-1).remote() for _ in range(6)]
    pids = jt.get([handle.pid.remote() for handle in handles], timeout=NET)
    refs = [[handle.echo.remote(i) for i in range(50)] for handle in handles]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for of_one, handle in zip(refs, handles, strict=True):
        of_one += [handle.echo.remote(i) for i in range(50, 100)]
    for of_one in refs:
        assert jt.get(of_one, timeout=30) == list(range(100))


def test_resources_of_a_restarting_actor_stay_its_own(tmp_path: Path) -> None:
    """Nobody takes its CPU in between; afterwards it is free."""
    actor = jt.remote(reborn(SYNC)).options(max_restarts=1, num_cpus=2).remote(str(tmp_path))
    os.kill(jt.get(actor.pid.remote(), timeout=NET), signal.SIGKILL)
    words.hear(tmp_path / "constructing2")
    task = jt.remote(abs).remote(-1)
    assert is_open(task, 0.1)
    words.say(tmp_path / "construct2")
    assert jt.get(actor.note.remote(1), timeout=NET) == 1
    assert is_open(task, 0.1)
    jt.kill(actor)
    assert jt.get(task, timeout=NET) == 1


# -- names (B6) ---------------------------------------------------------------------------------------------------------------


def by_kill(actor: Any, place: Path) -> None:
    jt.kill(actor)


def by_exit_actor(actor: Any, place: Path) -> None:
    words.say(place / "call.go")
    assert isinstance(raised(actor.exit.remote("call")), ActorDiedError)


def by_terminate(actor: Any, place: Path) -> None:
    jt.wait([actor.terminate()], timeout=NET)


def by_a_crash(actor: Any, place: Path) -> None:
    running = actor.until_asked.remote("crash")
    os.kill(int(words.hear(place / "crash")), signal.SIGKILL)
    assert isinstance(raised(running), ActorDiedError)


@pytest.mark.parametrize("end", [by_kill, by_exit_actor, by_terminate, by_a_crash], ids=lambda end: end.__name__)
@each_kind
def test_a_name_is_free_as_soon_as_the_actor_is_dead(
    kind: Kind, end: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    """B6: though handles to it live on; and these go on to mean the dead one."""
    if kind is IN_KERNEL and end is by_a_crash:
        pytest.skip("an in-kernel actor crashes with the kernel only")
    actor = kind.start(tmp_path, name="phoenix")
    other_handle = jt.get_actor("phoenix")
    assert jt.get(other_handle.note.remote("first"), timeout=NET) == "first"
    end(actor, tmp_path)
    with pytest.raises(ValueError, match="phoenix"):
        jt.get_actor("phoenix")
    successor = kind.start(tmp_path, name="phoenix")
    assert jt.get(successor.log.remote(), timeout=NET) == []
    assert jt.get(jt.get_actor("phoenix").note.remote("second"), timeout=NET) == "second"
    for dead in (actor, other_handle):
        assert isinstance(raised(dead.note.remote(1)), ActorDiedError)
    assert jt.get(successor.log.remote(), timeout=NET) == ["second"]


def test_a_failed_constructor_frees_the_name(tmp_path: Path) -> None:
    """B6, with a handle to the failed one."""

    class Bad:
        def __init__(self) -> None:
            raise ValueError("no")

        def ping(self) -> None:
            pass

    bad = jt.remote(Bad).options(name="taken").remote()
    assert isinstance(raised(bad.ping.remote()), ActorDiedError)
    good = SYNC.start(tmp_path, name="taken")
    assert jt.get(good.note.remote(1), timeout=NET) == 1


@each_kind
def test_a_named_actor_dies_with_its_last_handle(kind: Kind, tmp_path: Path) -> None:
    """It is not detached: the name alone keeps nothing. Ray's test_named_but_not_detached."""
    actor = kind.start(tmp_path, name="mortal")
    jt.get(actor.note.remote(1), timeout=NET)
    found = jt.get_actor("mortal")
    del actor
    gc.collect()
    assert jt.get(found.log.remote(), timeout=NET) == [1]
    del found
    gc.collect()
    wait_until(lambda: not named("mortal"), "the name is free")


def named(name: str) -> bool:
    try:
        jt.get_actor(name)
    except ValueError:
        return False
    return True


@each_kind
def test_a_name_is_given_once(kind: Kind, tmp_path: Path) -> None:
    """ActorAlreadyExistsError at `.remote()`, which is a ValueError, too; with get_if_exists it is the same actor."""
    actor = kind.start(tmp_path, name="one")
    with pytest.raises(ActorAlreadyExistsError, match="one") as caught:
        kind.start(tmp_path, name="one")
    assert isinstance(caught.value, ValueError)
    same = kind.start(tmp_path, name="one", get_if_exists=True)
    jt.get(same.note.remote("same"), timeout=NET)
    assert jt.get(actor.log.remote(), timeout=NET) == ["same"]
    other = kind.start(tmp_path, name="two", get_if_exists=True)
    assert jt.get(other.log.remote(), timeout=NET) == []


def test_a_restarting_actor_keeps_its_name(tmp_path: Path) -> None:
    """It is not dead. Ray's test_get_actor_after_killed."""
    actor = jt.remote(reborn(SYNC)).options(max_restarts=1, name="again").remote(str(tmp_path))
    jt.get(actor.note.remote(1), timeout=NET)
    jt.kill(actor, no_restart=False)
    words.hear(tmp_path / "constructing2")
    with pytest.raises(ActorAlreadyExistsError):
        SYNC.start(tmp_path, name="again")
    waiting = jt.get_actor("again").note.remote(2)
    words.say(tmp_path / "construct2")
    assert jt.get(waiting, timeout=NET) == 2


def test_names_are_of_a_namespace(tmp_path: Path) -> None:
    """Ray's test_actor_namespace, test_actor_namespace_access."""
    plain = SYNC.start(tmp_path, name="foo")
    other = SYNC.start(tmp_path, name="foo", namespace="other")
    jt.get([plain.note.remote("plain"), other.note.remote("other")], timeout=NET)
    assert jt.get(jt.get_actor("foo").log.remote(), timeout=NET) == ["plain"]
    assert jt.get(jt.get_actor("foo", namespace="other").log.remote(), timeout=NET) == ["other"]
    with pytest.raises(ValueError, match="foo"):
        jt.get_actor("foo", namespace="third")
    with pytest.raises(ActorAlreadyExistsError):
        SYNC.start(tmp_path, name="foo", namespace="other")


@pytest.mark.parametrize("bad", [None, "", "   "], ids=repr)
def test_get_actor_wants_a_name(bad: Any) -> None:
    """Ray's test_get_actor_no_input."""
    with pytest.raises(ValueError, match="name"):
        jt.get_actor(bad)


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    """Ray's test_detached_actor, test_get_or_create_actor.py::test_simple."""
    with pytest.raises(ValueError, match="nobody"):
        jt.get_actor("nobody")
    for options in ({"name": 1}, {"name": object()}, {"name": "x", "namespace": 2}):
        with pytest.raises(TypeError, match="name"):
            SYNC.start(tmp_path, **options)
    for options in ({"name": ""}, {"name": "x", "namespace": ""}):
        with pytest.raises(ValueError, match="name"):
            SYNC.start(tmp_path, **options)
    with pytest.raises(ValueError, match="name"):
        SYNC.start(tmp_path, get_if_exists=True)


def test_actors_are_found_by_name_from_tasks_and_actors(tmp_path: Path) -> None:
    """Ray's test_named_actor_cache_via_another_actor: also when another one has taken the name."""

    class Finder:
        def note(self, name: str, item: Any) -> Any:
            return jt.get(jt.get_actor(name).note.remote(item))

    finder = jt.remote(Finder).remote()
    actor = SYNC.start(tmp_path, name="findable")
    assert jt.get(finder.note.remote("findable", 1), timeout=NET) == 1
    assert jt.get(jt.remote(lambda: jt.get(jt.get_actor("findable").note.remote(2))).remote(), timeout=NET) == 2
    assert jt.get(actor.log.remote(), timeout=NET) == [1, 2]
    jt.kill(actor)
    with pytest.raises(ValueError, match="findable"):
        jt.get(finder.note.remote("findable", 3), timeout=NET)
    actor = SYNC.start(tmp_path, name="findable")
    assert jt.get(finder.note.remote("findable", 4), timeout=NET) == 4
    assert jt.get(actor.log.remote(), timeout=NET) == [4]


def test_eight_tasks_get_or_make_one_actor(tmp_path: Path) -> None:
    """Ray's test_get_actor_race_condition: all mean the same one."""

    def get_or_make(name: str, place: str, i: int) -> Any:
        actor = jt.remote(Keeper).options(name=name, get_if_exists=True).remote(place)
        jt.get(actor.note.remote(i))
        return actor

    for round in range(10):
        refs = [jt.remote(get_or_make).options(num_cpus=0).remote(f"a{round}", str(tmp_path), i) for i in range(8)]
        handles = jt.get(refs, timeout=NET)
        assert len(set(jt.get([handle.pid.remote() for handle in handles], timeout=NET))) == 1
        assert sorted(jt.get(handles[0].log.remote(), timeout=NET)) == list(range(8))
        jt.kill(jt.get_actor(f"a{round}"))


def test_a_name_gotten_or_made_a_hundred_times_and_dropped_at_once(tmp_path: Path) -> None:
    """Ray's test_get_or_create_named_actor: the end of one meets the beginning of the next, and no call is lost."""
    for i in range(100):
        actor = SYNC.start(tmp_path, name="short", get_if_exists=True, max_restarts=-1)
        if i % 10 == 0:
            assert jt.get(actor.note.remote(i), timeout=NET) == i
        del actor


def test_actors_are_listed(tmp_path: Path) -> None:
    """`jt.list_actors()`: who, which class, which state, where."""
    actor = SYNC.start(tmp_path, name="listed", namespace="here")
    pid = jt.get(actor.pid.remote(), timeout=NET)
    (record,) = [found for found in jt.list_actors() if found["name"] == "listed"]
    assert (record["class_name"], record["state"], record["namespace"]) == ("Keeper", "alive", "here")
    assert record["pid"] == pid
    jt.kill(actor)
    assert state_of(record["actor_id"]) == "dead"
