"""End to end: actors in threads (docs/semantics.md, Actors in threads). Role: SEMANTICS 2, the row of in-kernel actors."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import Gate, Screen, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    TaskCancelledError,
    TaskError,
    TaskTimeoutError,
    UnserializableError,
)
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0


@jt.remote
def double(x: Any) -> Any:
    return 2 * x


def state_of(what: Any) -> str:
    id = what._jt_ref.id if isinstance(what, jt.ActorHandle) else what.id
    (record,) = [task for task in jt.tasks() if task["id"] == id]
    return str(record["state"])


@jt.remote(executor="thread")
class Held:
    """Keeps what it is given, and says who it is."""

    def __init__(self, *kept: Any) -> None:
        self.kept = list(kept)

    def add(self, x: Any) -> Any:
        self.kept.append(x)
        return x

    def all(self) -> list[Any]:
        return self.kept

    def pid(self) -> int:
        return os.getpid()

    def call(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def makes(self, n: int) -> Iterator[Any]:
        for i in range(n):
            self.kept.append(i)
            yield self.kept if i == 0 else i
        if n > 5:
            raise ValueError("enough")

    @jt.method(num_returns=2)
    def pair(self, *values: Any) -> Any:
        return values

    def leaves(self) -> None:
        jt.exit_actor()


@jt.remote(executor="thread")
class Loop:
    """Coroutines."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.arrived = 0

    async def meets(self, n: int) -> int:
        self.arrived += 1
        while self.arrived < n:
            await asyncio.sleep(0.001)
        return threading.get_ident()

    async def sleeps(self, entered: threading.Event, most: int = 1) -> str:
        for _ in range(most):
            try:
                entered.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.said.append("cancelled")
                if most == 1:
                    raise
        return "went on"

    async def flag(self) -> bool:
        return jt.get_runtime_context().is_canceled()

    async def heard(self) -> list[str]:
        return self.said

    async def makes(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def starts(self, entered: threading.Event, ended: threading.Event) -> None:
        async def goes_on() -> None:
            entered.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        self.task = asyncio.ensure_future(goes_on())
        await asyncio.sleep(0)

    async def leaves(self) -> None:
        jt.exit_actor()


# -- it shares the objects of its process --------------------------------------------------------------------------


def test_arguments_results_and_the_instance_are_of_this_process() -> None:
    """Also what cannot be pickled; nothing is copied, by the constructor, by calls, by keyword."""
    lock, rows = threading.Lock(), [1]
    held = Held.remote(rows, lock)
    kept = jt.get(held.all.remote())
    assert kept[0] is rows
    assert kept[1] is lock
    assert jt.get(held.add.remote(x=lock)) is lock
    assert jt.get(held.pid.remote()) == os.getpid()
    assert kept == [rows, lock, lock], "the same list as before"


def test_an_error_is_the_object_itself_and_the_actor_goes_on() -> None:
    error = ValueError("mine", threading.Lock())

    def fails() -> None:
        raise error

    held = Held.remote()
    with pytest.raises(ValueError, match="mine") as caught:
        jt.get(held.call.remote(fails))
    assert isinstance(caught.value, TaskError)
    assert caught.value.cause is error
    assert jt.get(held.add.remote(1)) == 1


def test_refs_are_awaited_and_a_result_is_sent_when_it_is_needed_elsewhere() -> None:
    """As arguments of constructor and calls; of what is there and of what is on its way."""
    held = Held.remote(double.remote(2))
    assert jt.get(held.all.remote()) == [4]
    ref = held.add.remote(double.remote(3))
    assert jt.get(double.remote(ref)) == 12
    jt.get(ref)
    assert jt.get(double.remote(ref)) == 12
    gate = Gate()
    waiting = held.call.remote(gate)
    needs = double.remote(waiting)
    gate.opened.set()
    assert jt.get(needs) == "throughthrough"
    lock = held.add.remote(threading.Lock())
    jt.get(lock)
    with pytest.raises(UnserializableError, match=r"_thread\.lock"):
        double.remote(lock)


def test_calls_from_another_process_are_pickled_and_run_here(tmp_path: Path) -> None:
    """A collector in the notebook: tasks tell it what they do. Big values, refs, items and errors cross."""
    numpy = pytest.importorskip("numpy")
    held = Held.remote()

    @jt.remote
    def works(to: Any, i: int) -> Any:
        to.add.remote(i)  # and does not wait for it
        pid = jt.get(to.pid.remote())
        array = jt.get(to.add.remote(numpy.arange(100_000)))
        value = jt.get(to.add.remote(double.remote(i)))
        inside = jt.get(jt.get(to.add.remote([double.remote(i)]))[0])
        items = [jt.get(ref) for ref in to.makes.options(generator_backpressure=1).remote(3)][1:]
        pair = jt.get(to.pair.remote(1, "b"))
        try:
            jt.get(to.call.remote(divmod, 1, 0))
        except ZeroDivisionError as error:
            return pid, int(array.sum()), value, inside, items, pair, isinstance(error, TaskError)

    assert jt.get(works.remote(held, 7)) == (os.getpid(), 4999950000, 14, 14, [1, 2], [1, "b"], True)
    kept = jt.get(held.all.remote())
    assert kept[0] == 7
    assert type(kept[1]) is numpy.ndarray

    @jt.remote
    def sends_back(to: Any) -> str:
        with pytest.raises(UnserializableError, match=r"_thread\.lock"):
            jt.get(to.call.remote(threading.Lock))
        return "told"

    assert jt.get(sends_back.remote(held)) == "told"


def test_what_a_task_has_got_from_it_lives_as_long_as_a_ref() -> None:
    """Refs inside a value that it has returned to another process, of its own results, too."""

    @jt.remote(executor="thread")
    class Nests:
        def __init__(self) -> None:
            self.held = Held.remote()

        def gives(self) -> Any:
            return [self.held.add.remote({"a": 1}), jt.put(2)]

    @jt.remote
    def opens(to: Any) -> Any:
        refs = jt.get(to.gives.remote())
        return jt.get(refs)

    assert jt.get(opens.remote(Nests.remote())) == [{"a": 1}, 2]


def test_num_returns_generators_and_backpressure() -> None:
    lock = threading.Lock()
    held = Held.remote(lock)
    first, second = held.pair.remote(lock, 2)
    assert jt.get(first) is lock
    assert jt.get(double.remote(second)) == 4
    for ref in held.pair.remote(1):
        with pytest.raises(ValueError, match="Task returned 1 objects, but num_returns=2"):
            jt.get(ref)
    assert held.add.options(num_returns=0).remote(1) is None
    items = [jt.get(ref) for ref in held.makes.remote(3)]
    assert items[0] is jt.get(held.all.remote())
    assert items[1:] == [1, 2]
    refs = list(held.makes.remote(6))
    with pytest.raises(ValueError, match="enough"):
        jt.get(refs[-1])
    kept = jt.get(held.all.remote())
    kept.clear()
    slow = held.makes.options(generator_backpressure=2).remote(4)
    wait_until(lambda: kept == [0, 1], "two items")
    assert len(list(slow)) == 4
    dynamic = jt.get(held.makes.options(num_returns="dynamic").remote(2))
    assert jt.get(dynamic[1]) == 1


def test_it_takes_no_cpu_unless_it_says_so_and_frees_it_while_it_waits() -> None:
    """A call that waits for tasks must not keep them from running."""
    idle = Held.remote()
    jt.get(idle.pid.remote())
    held = Held.options(num_cpus=2).remote()
    jt.get(held.pid.remote())
    assert status()["available"]["CPU"] == 0.0
    assert jt.get(held.call.remote(lambda: jt.get([double.remote(i) for i in range(3)])), timeout=NET) == [0, 2, 4]
    assert status()["available"]["CPU"] <= 0.0


# -- who runs when ------------------------------------------------------------------------------------------------


def test_calls_of_one_caller_are_in_order_and_in_one_thread() -> None:
    """Also when one has to wait for its argument, and of two callers each."""
    held = Held.remote()
    gate = Gate()
    late = jt.remote(executor="thread")(gate).remote()

    @jt.remote
    def tells(to: Any) -> None:
        jt.get([to.add.remote(("task", i)) for i in range(50)])

    jt.get(tells.remote(held))
    refs = [held.add.remote(late), *(held.add.remote(i) for i in range(50))]
    gate.opened.set()
    jt.get(refs)
    kept = jt.get(held.all.remote())
    assert kept == [*(("task", i) for i in range(50)), "through", *range(50)]
    idents = jt.get([held.call.remote(threading.get_ident) for _ in range(5)])
    assert len(set(idents)) == 1 != threading.get_ident()


def test_max_concurrency_is_so_many_threads_and_no_more() -> None:
    held = Held.options(max_concurrency=3).remote()
    gates = [Gate() for _ in range(4)]
    refs = [held.call.remote(gate) for gate in gates]
    for gate in gates[:3]:
        assert gate.entered.wait(NET)
    assert not gates[3].entered.is_set()
    assert [state_of(ref) for ref in refs] == ["running"] * 3 + ["pending"]
    for gate in gates:
        gate.opened.set()
    assert jt.get(refs) == ["through"] * 4


def test_coroutines_run_at_once_in_a_loop_of_their_own() -> None:
    loop = Loop.remote()
    idents = jt.get([loop.meets.remote(20) for _ in range(20)], timeout=NET)
    assert len(set(idents)) == 1 != threading.get_ident()
    assert [jt.get(ref) for ref in loop.makes.remote(3)] == [0, 1, 2]
    assert [jt.get(ref) for ref in loop.makes.options(generator_backpressure=1).remote(3)] == [0, 1, 2]


def test_a_call_knows_where_it_is_and_what_it_submits_is_its_own() -> None:
    @jt.remote(executor="thread")
    class Knows:
        def __init__(self) -> None:
            self.made = jt.get_runtime_context().get_actor_id(), jt.get_runtime_context().get_task_name()

        def tells(self) -> Any:
            context = jt.get_runtime_context()
            return context.get_actor_id(), context.get_actor_name(), context.get_task_name(), context.get_task_id()

        def itself(self) -> Any:
            return jt.get_runtime_context().current_actor

        def made_by(self) -> Any:
            return self.made

    knows = Knows.options(name="known").remote()
    id = knows._jt_ref.task_id
    ref = knows.tells.remote()
    assert jt.get(ref) == (id, "known", "known.tells", ref.task_id)
    assert jt.get(knows.made_by.remote()) == (id, "known.__init__")
    assert jt.get(knows.itself.remote()) == knows
    assert jt.get_runtime_context().get_actor_id() is None
    (record,) = [actor for actor in jt.list_actors() if actor["name"] == "known"]
    assert (record["executor"], record["state"], record["class_name"]) == ("thread", "alive", "Knows")


def test_names_reach_into_other_processes() -> None:
    """get_actor in a worker gives a handle of the notebook's; a name is taken once, and free when it has ended."""
    held = Held.options(name="shared").remote(0)
    assert Held.options(name="shared", get_if_exists=True).remote() == held
    with pytest.raises(ActorAlreadyExistsError, match="There is an actor named 'shared' already"):
        Held.options(name="shared").remote(threading.Lock())

    @jt.remote
    def finds() -> None:
        jt.get(jt.get_actor("shared").add.remote("found"))

    jt.get(finds.remote())
    assert jt.get(held.all.remote()) == [0, "found"]
    jt.kill(held)
    with pytest.raises(ValueError, match="no actor named 'shared'"):
        jt.get_actor("shared")
    again = Held.options(name="shared").remote()
    assert jt.get(again.all.remote()) == []


def test_one_made_in_a_block_does_not_belong_to_it() -> None:
    """Nor what its later calls submit; calls of the block do, with what they submit."""
    with jt.TaskGroup() as group:
        held = Held.remote()
        inner = held.call.remote(lambda: jt.get(double.remote(1)))
    assert jt.get(inner) == 2
    assert group.state == "completed"

    @jt.remote
    def calls(to: Any) -> Any:
        return jt.get(to.call.remote(lambda: jt.get(double.remote(2))))

    assert jt.get(calls.remote(held)) == 4


def test_retries() -> None:
    """For errors as asked, of calls from here and from elsewhere; the arguments are the same objects."""

    @jt.remote(executor="thread", max_task_retries=2)
    class Flaky:
        @jt.method(retry_exceptions=[ValueError])
        def tries(self, held: list[int]) -> list[int]:
            held.append(jt.get_runtime_context().get_attempt_number())
            if len(held) < 3:
                raise ValueError("again")
            return held

        def attempt(self) -> int:
            attempt = jt.get_runtime_context().get_attempt_number()
            if attempt < 2:
                raise OSError("again")
            return attempt

    flaky = Flaky.remote()
    tries: list[int] = []
    assert jt.get(flaky.tries.remote(tries)) is tries
    assert tries == [0, 1, 2]

    @jt.remote
    def calls(to: Any) -> Any:
        return jt.get(to.attempt.options(retry_exceptions=[OSError]).remote())

    assert jt.get(calls.remote(flaky)) == 2
    with pytest.raises(OSError, match="again"):
        jt.get(flaky.attempt.remote())


def test_what_a_call_prints_goes_where_it_was_called_from() -> None:
    """In a program: to its streams at that moment."""
    held = Held.remote()
    with Screen() as screen:
        jt.get(held.call.remote(print, "said here"))
    assert screen.out.getvalue() == "said here\n"


def test_a_process_actor_may_use_threads() -> None:
    """Its calls' own waits are told by the process, not by its thread tasks."""

    @jt.remote
    class Process:
        def works(self) -> Any:
            held = Held.remote(1)
            thread = jt.remote(executor="thread")(lambda: 2).remote()
            return jt.get([held.all.remote(), thread]), jt.get(held.pid.remote()) == os.getpid()

    process = Process.remote()
    assert jt.get(process.works.remote()) == ([[1], 2], True)


# -- stopping a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_cancel_sets_the_flag_of_that_call_and_get_raises_when_it_ends(concurrency: int) -> None:
    """Whatever it returns; the state is kept, the next call has no flag."""
    held = Held.options(max_concurrency=concurrency).remote()
    gate, seen = Gate(), []

    def works() -> str:
        gate()
        seen.append(jt.get_runtime_context().is_canceled())
        return "a value"

    ref = held.call.remote(works)
    assert gate.entered.wait(NET)
    jt.cancel(ref, reason="enough")
    wait_until(lambda: state_of(ref) == "cancelling", "it was asked")
    if concurrency == 2:
        assert jt.get(held.call.remote(lambda: jt.get_runtime_context().is_canceled())) is False
    with pytest.raises(GetTimeoutError):
        jt.get(ref, timeout=0)
    current_client().drain_events()
    gate.opened.set()
    with pytest.raises(TaskCancelledError, match=r"by user: enough\): its function ended after it was asked") as caught:
        jt.get(ref, timeout=NET)
    assert caught.value.rung == "ask"
    assert seen == [True]
    assert jt.get(held.call.remote(lambda: jt.get_runtime_context().is_canceled())) is False
    with pytest.raises(ValueError, match="cancel\\(force=True\\) is for tasks"):
        jt.cancel(ref, force=True)
    with pytest.raises(TypeError, match=r"jt\.kill"):
        jt.cancel(held)  # type: ignore[arg-type]


def test_a_queued_call_never_executes_and_get_raises_at_once() -> None:
    """Those that wait in the rules, and those that were given in one packet."""
    held = Held.remote()
    jt.get([held.add.remote(-1) for _ in range(50)])  # now its calls are known to be short, and go in packets
    gate = Gate()
    running = held.call.remote(gate)
    refs = [held.add.remote(i) for i in range(100)]
    assert gate.entered.wait(NET)
    for ref in refs[::2]:
        jt.cancel(ref)
    for ref in refs[::2]:
        with pytest.raises(TaskCancelledError, match="before it started"):
            jt.get(ref, timeout=NET)
    gate.opened.set()
    assert jt.get(refs[1::2]) == list(range(1, 100, 2))
    assert jt.get(running) == "through"
    assert jt.get(held.all.remote())[50:] == list(range(1, 100, 2))


def test_cancels_at_any_moment_leave_the_actor_whole() -> None:
    """A call is cancelled, or has run; those behind it go on."""
    for options in ({}, {"max_concurrency": 4}):
        held = Held.options(**options).remote()
        for i in range(300):
            ref = held.add.remote(i)
            if i % 3:
                time.sleep(i % 7 / 5000)
            jt.cancel(ref)
            try:
                assert jt.get(ref, timeout=NET) == i
            except TaskCancelledError:
                pass
        assert jt.get(held.add.remote("well"), timeout=NET) == "well"


def test_a_coroutine_gets_a_cancelled_error_for_each_cancel() -> None:
    """B7: also when it has swallowed one before. What it returns all the same counts; its flag is no flag."""
    loop = Loop.remote()
    entered = threading.Event()
    ref = loop.sleeps.remote(entered)
    assert entered.wait(NET)
    jt.cancel(ref)
    with pytest.raises(TaskCancelledError) as caught:
        jt.get(ref, timeout=NET)
    assert caught.value.rung == "interrupt"
    entered.clear()
    ref = loop.sleeps.remote(entered, 3)
    for i in range(3):
        assert entered.wait(NET)
        entered.clear()
        jt.cancel(ref)
        wait_until(lambda i=i: len(jt.get(loop.heard.remote())) == 2 + i, "it has heard of it")
    assert jt.get(ref, timeout=NET) == "went on"
    assert jt.get(loop.heard.remote()) == ["cancelled"] * 4
    with pytest.raises(RuntimeError, match=r"asyncio\.CancelledError at the await"):
        jt.get(loop.flag.remote())


def test_a_timeout_of_a_method() -> None:
    held, gate = Held.remote(), Gate()
    ref = held.call.options(timeout=0.01).remote(gate)
    wait_until(lambda: state_of(ref) == "cancelling", "its time is over")
    gate.opened.set()
    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.01 s"):
        jt.get(ref)
    loop, entered = Loop.remote(), threading.Event()
    with pytest.raises(TaskTimeoutError):
        jt.get(loop.sleeps.options(timeout=0.01).remote(entered), timeout=NET)


def test_a_cancel_reaches_what_the_call_has_submitted(tmp_path: Path) -> None:
    @jt.remote
    def sleeps(place: str) -> None:
        words.say(f"{place}/in")
        time.sleep(60)

    held = Held.remote()
    ref = held.call.remote(lambda: jt.get(sleeps.remote(str(tmp_path))))
    words.hear(tmp_path / "in")
    jt.cancel(ref)
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)


# -- its end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
def test_kill_returns_at_once_and_nothing_begins_after_it(concurrency: int) -> None:
    """B5. Pending calls fail at once, those that run when they end; until then the actor is cancelling."""
    held = Held.options(max_concurrency=concurrency).remote()
    gates, ran = [Gate() for _ in range(concurrency)], []
    flags: list[bool] = []

    def works(gate: Gate) -> str:
        gate()
        flags.append(jt.get_runtime_context().is_canceled())
        return "a value"

    running = [held.call.remote(works, gate) for gate in gates]
    for gate in gates:
        assert gate.entered.wait(NET)
    pending = [held.call.remote(ran.append, i) for i in range(5)]
    jt.kill(held)
    for ref in (*pending, held.add.remote(1)):
        with pytest.raises(ActorDiedError, match=r"\(Held\) has ended: it was killed"):
            jt.get(ref, timeout=NET)
    assert state_of(held) == "cancelling"
    jt.kill(held)
    with pytest.raises(GetTimeoutError):
        jt.get(running[0], timeout=0)
    for gate in gates:
        gate.opened.set()
    for ref in running:
        with pytest.raises(ActorDiedError, match="it was killed"):
            jt.get(ref, timeout=NET)
    assert flags == [True] * concurrency
    wait_until(lambda: state_of(held) == "cancelled", "it has ended")
    assert ran == []


def test_kill_of_coroutines_cancels_them() -> None:
    loop, entered = Loop.remote(), threading.Event()
    ref = loop.sleeps.remote(entered)
    assert entered.wait(NET)
    jt.kill(loop)
    with pytest.raises(ActorDiedError, match="it was killed"):
        jt.get(ref, timeout=NET)
    wait_until(lambda: state_of(loop) == "cancelled", "it has ended")


def test_kill_while_calls_are_given_lets_none_of_them_begin_later() -> None:
    """B5, raced: what ran when kill returned is all that ever runs."""
    for concurrency in (1, 4):
        for i in range(20):
            held = Held.options(max_concurrency=concurrency).remote()
            ran: list[int] = []
            refs = [held.call.remote(ran.append, n) for n in range(60)]
            if i % 2:
                jt.get(refs[0])
            jt.kill(held)
            begun = len(ran)
            assert jt.wait(refs, num_returns=len(refs), timeout=NET)[1] == []
            assert len(ran) <= begun + concurrency, "at most those that ran were still on their way"


def test_kill_before_and_in_the_constructor() -> None:
    gate = Gate()

    @jt.remote(executor="thread")
    class Slow:
        def __init__(self, gate: Any) -> None:
            gate()
            self.flag = jt.get_runtime_context().is_canceled()

        def call(self) -> bool:
            return self.flag

    slow = Slow.remote(gate)
    assert gate.entered.wait(NET)
    ref = slow.call.remote()
    jt.kill(slow)
    with pytest.raises(ActorDiedError, match="it was killed"):
        jt.get(ref, timeout=NET)
    gate.opened.set()
    wait_until(lambda: state_of(slow) == "cancelled", "it has ended")
    waits = Gate()
    never = Slow.remote(jt.remote(executor="thread")(waits).remote())
    ref = never.call.remote()
    jt.kill(never)
    with pytest.raises(ActorDiedError, match="it was killed"):
        jt.get(ref, timeout=NET)
    waits.opened.set()


def test_kill_reaches_its_children(tmp_path: Path) -> None:
    @jt.remote
    def sleeps(place: str) -> None:
        words.say(f"{place}/in")
        time.sleep(60)

    held = Held.remote()
    child = jt.get(held.call.remote(lambda: [sleeps.remote(str(tmp_path))]))[0]
    words.hear(tmp_path / "in")
    jt.kill(held)
    with pytest.raises(TaskCancelledError):
        jt.get(child, timeout=NET)


def test_exit_actor_ends_it_after_what_came_before() -> None:
    """Its own ref, queued and later calls raise."""
    held = Held.remote()
    before, own, behind = held.add.remote(1), held.leaves.remote(), held.add.remote(2)
    assert jt.get(before) == 1
    for ref in (own, behind, held.add.remote(3)):
        with pytest.raises(ActorDiedError, match=r"it has left, by exit_actor\(\)"):
            jt.get(ref, timeout=NET)
    wait_until(lambda: state_of(held) == "completed", "it has ended")
    with pytest.raises(TypeError, match="exit_actor"):
        jt.exit_actor()


def test_sys_exit_is_an_error_of_the_call() -> None:
    """The process is not the actor's to end. In calls, coroutines, what they leave in the loop, and the constructor."""
    held = Held.remote()
    with pytest.raises(TaskError) as caught:
        jt.get(held.call.remote(sys.exit, 3))
    assert caught.value.type_name == "SystemExit"
    assert jt.get(held.add.remote(1)) == 1

    @jt.remote(executor="thread")
    class Exits:
        def __init__(self, now: bool) -> None:
            if now:
                sys.exit(3)

        async def exits(self) -> None:
            sys.exit(3)

        async def leaves_one(self, ended: threading.Event) -> None:
            async def exits() -> None:
                ended.set()
                sys.exit(3)

            self.task = asyncio.ensure_future(exits())

        async def forgets(self) -> str:
            with pytest.raises(SystemExit):
                self.task.result()
            return "goes on"

    exits, ended = Exits.remote(False), threading.Event()
    with pytest.raises(TaskError) as caught:
        jt.get(exits.exits.remote())
    assert caught.value.type_name == "SystemExit"
    jt.get(exits.leaves_one.remote(ended))
    assert ended.wait(NET)
    assert jt.get(exits.forgets.remote(), timeout=NET) == "goes on"
    with pytest.raises(ActorDiedError, match="its constructor raised SystemExit: 3"):
        jt.get(Exits.remote(True).exits.remote(), timeout=NET)


def test_who_catches_its_own_exit_does_not_hold_it_up() -> None:
    """In a call, in a coroutine, in the constructor."""

    def stays() -> str:
        try:
            jt.exit_actor()
        except SystemExit:
            return "stays"

    held = Held.remote()
    with pytest.raises(ActorDiedError, match=r"it has left, by exit_actor\(\)"):
        jt.get(held.call.remote(stays), timeout=NET)

    @jt.remote(executor="thread")
    class Catches:
        def __init__(self, now: bool) -> None:
            if now:
                stays()

        async def stays(self) -> str:
            return stays()

    for now in (True, False):
        with pytest.raises(ActorDiedError, match=r"it has left, by exit_actor\(\)"):
            jt.get(Catches.remote(now).stays.remote(), timeout=NET)


def test_exit_actor_lets_those_that_run_at_the_same_time_end_first() -> None:
    held, gate = Held.options(max_concurrency=2).remote(), Gate()
    running = held.call.remote(gate)
    assert gate.entered.wait(NET)
    own = held.leaves.remote()
    behind = held.add.remote(2)
    with pytest.raises(ActorDiedError, match="it has left"):
        jt.get(behind, timeout=NET)
    assert state_of(held) == "running"
    gate.opened.set()
    assert jt.get(running) == "through"
    with pytest.raises(ActorDiedError, match="it has left"):
        jt.get(own, timeout=NET)
    loop = Loop.remote()
    with pytest.raises(ActorDiedError, match="it has left"):
        jt.get(loop.leaves.remote(), timeout=NET)


def test_terminate_does_what_it_has_and_ends() -> None:
    held = Held.remote()
    refs = [held.add.remote(i) for i in range(20)]
    end = held.terminate()
    assert jt.get(refs) == list(range(20))
    assert jt.get(end, timeout=NET) is None
    with pytest.raises(ActorDiedError, match=r"terminate\(\) was called"):
        jt.get(held.add.remote(threading.Lock()))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_with_its_last_handle_the_instance_is_gone(concurrency: int) -> None:
    """Calls that were submitted end first. Its threads end, too; other handles keep it."""
    names = {thread.name for thread in threading.enumerate()}
    held = Held.options(name="dropped", max_concurrency=concurrency).remote()
    kept = weakref.ref(jt.get(held.call.remote(_instance_of_this_call)))
    other = jt.get_actor("dropped")
    last = held.add.remote(1)
    del held
    assert jt.get(last) == 1
    assert jt.get(other.add.remote(2)) == 2
    del other
    wait_until(lambda: kept() is None, "the instance is gone")
    wait_until(lambda: {thread.name for thread in threading.enumerate()} <= names | {"jupyter-tasks-events"}, "threads")


def _instance_of_this_call() -> Any:
    from jupyter_tasks.worker import context

    return context.thread_call.get().host.instance


def test_the_last_handle_of_coroutines() -> None:
    """Tasks that it has left in its loop are cancelled, as by asyncio.run."""
    loop, entered, ended = Loop.remote(), threading.Event(), threading.Event()
    jt.get(loop.starts.remote(entered, ended))
    assert entered.wait(NET)
    del loop
    assert ended.wait(NET)
    wait_until(lambda: jt.list_actors()[-1]["state"] == "dead", "it has ended")


def test_a_handle_in_a_process_keeps_it() -> None:
    """And it ends when that is gone."""

    @jt.remote
    class Keeps:
        def keep(self, handle: Any) -> None:
            self.handle = handle

        def call(self) -> Any:
            return jt.get(self.handle.all.remote())

        def drop(self) -> None:
            del self.handle

    held = Held.options(name="kept").remote(1)
    keeps = Keeps.remote()
    jt.get(keeps.keep.remote(held))
    del held
    gc.collect()
    assert jt.get(keeps.call.remote()) == [1]
    jt.get(keeps.drop.remote())
    wait_until(lambda: [a["state"] for a in jt.list_actors() if a["name"] == "kept"][-1] == "dead", "it ends")


def test_a_constructor_that_raises() -> None:
    """Every call raises, from here and from elsewhere, with its traceback."""

    @jt.remote(executor="thread")
    class Broken:
        def __init__(self) -> None:
            raise ValueError("not today")

        def call(self) -> None: ...

    broken = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="its constructor raised ValueError: not today") as caught:
            jt.get(broken.call.remote(), timeout=NET)
    assert isinstance(caught.value.cause, ValueError)
    assert "in __init__" in str(caught.value.__cause__)

    @jt.remote
    def calls(to: Any) -> str:
        with pytest.raises(ActorDiedError, match="not today"):
            jt.get(to.call.remote())
        return "told"

    assert jt.get(calls.remote(broken)) == "told"


def test_an_argument_of_the_constructor_that_cannot_be_had() -> None:
    @jt.remote
    def fails() -> None:
        raise OSError("no")

    held = Held.remote(fails.remote())
    with pytest.raises(OSError, match="no"):
        jt.get(held.all.remote(), timeout=NET)


def test_one_that_a_task_has_made_lives_in_the_task_s_process(tmp_path: Path) -> None:
    """As long as its handles, not as long as the task; it dies with that process."""

    @jt.remote
    def makes() -> Any:
        held = Held.options(name="theirs").remote(1)
        return held, os.getpid()

    held, pid = jt.get(makes.remote())
    assert jt.get(held.pid.remote()) == pid != os.getpid()
    assert jt.get(held.add.remote([2])) == [2]
    assert jt.get(held.all.remote()) == [1, [2]]
    running = held.call.remote(time.sleep, 60)
    wait_until(lambda: state_of(running) == "running", "it runs")
    behind = held.pid.remote()
    os.kill(pid, 9)
    for ref in (running, behind, held.pid.remote()):
        with pytest.raises(ActorDiedError, match="the process that it was to run in has ended"):
            jt.get(ref, timeout=NET)
    wait_until(lambda: state_of(held) == "crashed", "it is gone")
    assert set(status()["total"]) == {"CPU", "GPU"}


def test_a_process_that_ends_takes_one_along_that_was_not_made_yet(tmp_path: Path) -> None:
    @jt.remote(max_retries=0)
    def makes(place: str) -> None:
        @jt.remote
        def sleeps() -> None:
            time.sleep(60)

        held = Held.options(name="never").remote(sleeps.remote())
        held.pid.remote()
        jt.get_actor("never")
        os._exit(7)

    with pytest.raises(jt.exceptions.WorkerCrashedError):
        jt.get(makes.remote(str(tmp_path)))
    wait_until(lambda: [a["state"] for a in jt.list_actors() if a["name"] == "never"] == ["dead"], "it is over")
    for task in jt.tasks():
        if task["name"] == "sleeps":
            current_client().cancel(task["id"], force=True)


def test_shutdown_tells_the_threads_that_go_on() -> None:
    """Refs are lost; the threads that wait end, and so does the one that looks at its flag."""
    stopped, entered = threading.Event(), threading.Event()

    def works() -> None:
        entered.set()
        while not jt.get_runtime_context().is_canceled():
            time.sleep(0.001)
        stopped.set()

    held, idle, loop = Held.remote(), Held.options(max_concurrency=2).remote(), Loop.remote()
    jt.get([idle.pid.remote(), loop.heard.remote()])
    ref, behind = held.call.remote(works), held.add.remote(1)
    assert entered.wait(NET)
    jt.shutdown()
    assert stopped.wait(NET)
    for lost in (ref, behind):
        with pytest.raises(ObjectLostError):
            jt.get(lost)
    with pytest.raises(ObjectLostError):
        held.add.remote(1)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("actor ")], "its threads end")


def test_a_program_ends_while_a_call_runs() -> None:
    """Daemon threads: they do not keep the program."""
    program = (
        "import jupyter_tasks as jt, threading, time\n"
        "entered = threading.Event()\n"
        "@jt.remote(executor='thread')\n"
        "class Hangs:\n    def hangs(self):\n        entered.set()\n        time.sleep(600)\n"
        "actor = Hangs.remote(); ref = actor.hangs.remote(); entered.wait(); print('in')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "in\n"


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_restarts": 1}, "max_restarts is for executor='process'"),
        ({"memory": 1000}, "memory is for executor='process'"),
        ({"num_gpus": 1}, "num_gpus is for executor='process'"),
    ],
)
def test_what_a_thread_cannot_do_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Held.options(**options)
