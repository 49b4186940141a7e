"""End to end: thread tasks (docs/semantics.md, Thread tasks). Role: SEMANTICS 1 and 2, the rows of threads in the kernel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import Gate, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ObjectLostError,
    TaskCancelledError,
    TaskError,
    TaskTimeoutError,
    UnserializableError,
    WorkerCrashedError,
)
from jupyter_tasks.session import current_client
from jupyter_tasks.threads import THREADS

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0


@jt.remote
def double(x: Any) -> Any:
    return 2 * x


@jt.remote(executor="thread")
def same(x: Any) -> Any:
    return x


def state_of(ref: jt.ObjectRef) -> str:
    (record,) = [task for task in jt.tasks() if task["id"] == ref.id]
    return str(record["state"])


# -- it shares the kernel's objects --------------------------------------------------------------------------------


def test_arguments_globals_and_results_are_the_objects_themselves() -> None:
    """Also what cannot be pickled; nothing is copied."""
    lock, rows = threading.Lock(), [1]

    @jt.remote(executor="thread")
    def appends(held: Any, to: list[int]) -> Any:
        to.append(os.getpid())
        rows.append(2)
        return held

    assert jt.get(appends.remote(lock, rows)) is lock
    assert rows == [1, os.getpid(), 2]
    ref = same.remote(rows)
    assert jt.get(ref) is jt.get(ref) is rows


def test_an_error_is_the_object_itself_and_a_task_error() -> None:
    class OwnError(Exception):
        pass

    error = OwnError("mine", threading.Lock())

    @jt.remote(executor="thread")
    def fails() -> None:
        raise error

    with pytest.raises(OwnError) as caught:
        jt.get(fails.remote())
    assert isinstance(caught.value, TaskError)
    assert caught.value.cause is error
    assert "in fails" in str(caught.value.__cause__)


def test_refs_are_exchanged_with_process_tasks() -> None:
    """In both directions, of what is there and of what is on its way; a value is packed when it is needed elsewhere."""
    assert jt.get(same.remote(double.remote(2))) == 4
    assert jt.get(double.remote(same.remote(3))) == 6
    ready = same.remote([4])
    jt.get(ready)
    assert jt.get(double.remote(ready)) == [4, 4]

    @jt.remote
    def opens(box: list[jt.ObjectRef]) -> Any:
        return jt.get(box[0])

    assert jt.get(opens.remote([ready])) == [4]
    gate = Gate()
    waiting = jt.remote(executor="thread")(gate).remote()
    needs = opens.remote([waiting])
    gate.opened.set()
    assert jt.get(needs) == "through"


def test_a_big_value_goes_by_shared_memory() -> None:
    numpy = pytest.importorskip("numpy")
    ref = same.remote(numpy.arange(1_000_000))
    jt.get(ref)

    @jt.remote
    def total(array: Any) -> Any:
        return int(array.sum())

    assert jt.get(total.remote(ref)) == 499999500000


def test_a_result_that_cannot_be_sent_is_an_error_for_who_needs_it_elsewhere() -> None:
    """It is there for this process. When it is there already, `.remote()` says so."""
    gate = Gate()
    lock = threading.Lock()

    @jt.remote(executor="thread")
    def locks() -> Any:
        gate()
        return lock

    ref = locks.remote()
    elsewhere = double.remote(ref)
    gate.opened.set()
    with pytest.raises(UnserializableError, match="stays in the process that made it"):
        jt.get(elsewhere)
    assert jt.get(ref) is lock
    with pytest.raises(UnserializableError, match=r"_thread\.lock"):
        double.remote(ref)


def test_a_value_lives_as_long_as_its_ref() -> None:
    import weakref

    class Big:
        pass

    big = Big()
    watch = weakref.ref(big)
    ref = same.remote(big)
    jt.get(ref)
    del big
    assert watch() is not None
    del ref
    wait_until(lambda: watch() is None, "the value is freed")


@pytest.mark.parametrize("returns", [0, 2, 3])
def test_num_returns(returns: int) -> None:
    @jt.remote(executor="thread", num_returns=returns)
    def pair() -> Any:
        return ["a", "b"]

    refs = pair.remote()
    if returns == 0:
        assert refs is None
    elif returns == 2:
        assert jt.get(refs) == ["a", "b"]
    else:
        for ref in refs:
            with pytest.raises(ValueError, match="Task returned 2 objects, but num_returns=3"):
                jt.get(ref)


def test_generators_stream_and_their_items_are_shared() -> None:
    lock = threading.Lock()

    @jt.remote(executor="thread")
    def makes() -> Any:
        yield lock
        yield 21
        raise ValueError("enough")

    generator = makes.remote()
    first, second, last = generator
    assert jt.get(first) is lock
    assert jt.get(double.remote(second)) == 42
    with pytest.raises(ValueError, match="enough"):
        jt.get(last)


def test_backpressure() -> None:
    made: list[int] = []

    @jt.remote(executor="thread", generator_backpressure=2)
    def makes() -> Any:
        for i in range(5):
            made.append(i)
            yield i

    generator = makes.remote()
    wait_until(lambda: len(made) == 2, "two items")
    values = [jt.get(ref) for ref in generator]
    assert values == made == list(range(5))


def test_async_functions_have_a_loop_of_their_own() -> None:
    @jt.remote(executor="thread")
    async def sums() -> int:
        return sum(await asyncio.gather(*(double.remote(i) for i in range(4))))

    assert jt.get(sums.remote()) == 12


# -- where it runs ------------------------------------------------------------------------------------------------


def test_it_takes_no_cpu_and_a_cpu_if_it_says_so(tmp_path: Path) -> None:
    """Threads wait for the network, as a rule."""
    gates = [Gate() for _ in range(3)]
    refs = [jt.remote(executor="thread")(gate).remote() for gate in gates]
    for gate in gates:
        assert gate.entered.wait(NET)

    @jt.remote
    def meets(me: int, place: str) -> None:
        words.say(f"{place}/{me}")
        words.hear(f"{place}/{1 - me}")

    jt.get([meets.remote(i, str(tmp_path)) for i in (0, 1)])  # both CPUs are free
    counted = Gate()
    ref = jt.remote(executor="thread", num_cpus=2)(counted).remote()
    assert counted.entered.wait(NET)
    assert status()["available"]["CPU"] == 0.0
    for gate in (*gates, counted):
        gate.opened.set()
    assert jt.get([*refs, ref]) == ["through"] * 4


def test_only_so_many_run_at_a_time() -> None:
    gates = [Gate() for _ in range(THREADS + 1)]
    refs = [jt.remote(executor="thread")(gate).remote() for gate in gates]
    for gate in gates[:-1]:
        assert gate.entered.wait(NET)
    assert not gates[-1].entered.is_set()
    assert state_of(refs[-1]) == "pending"
    for gate in gates:
        gate.opened.set()
    assert jt.get(refs) == ["through"] * len(gates)


def test_one_that_waits_for_others_gives_its_slot_back() -> None:
    """As deep as there are slots, and deeper."""

    @jt.remote(executor="thread")
    def nests(depth: int) -> int:
        return 1 + jt.get(nests.remote(depth - 1)) if depth else 0

    assert jt.get(nests.remote(THREADS + 5), timeout=NET) == THREADS + 5


def test_it_knows_where_it_is() -> None:
    @jt.remote(executor="thread", name="looks")
    def looks() -> tuple[Any, ...]:
        context = jt.get_runtime_context()
        return context.get_task_id(), context.get_task_name(), context.is_canceled(), context.get_attempt_number()

    ref = looks.remote()
    assert jt.get(ref) == (ref.task_id, "looks", False, 0)
    assert jt.get(jt.remote(executor="thread")(lambda: jt.get_runtime_context().get_actor_id()).remote()) is None
    assert jt.get_runtime_context().get_task_id() is None


def test_in_a_task_it_runs_in_the_task_s_process() -> None:
    """And belongs to the task: the worker stays with it."""

    @jt.remote
    def works() -> tuple[int, int]:
        held: list[int] = []
        jt.get(jt.remote(executor="thread")(lambda: held.append(os.getpid())).remote())
        return os.getpid(), held[0]

    worker, thread = jt.get(works.remote())
    assert worker == thread != os.getpid()


def test_its_process_may_die(tmp_path: Path) -> None:
    """Those that ran there are crashed; those that were to run there never do."""

    @jt.remote(max_retries=0)
    def works(place: str) -> None:
        def in_thread() -> None:
            words.mark(f"{place}/in")
            time.sleep(60)

        refs = [jt.remote(executor="thread", name="thread")(in_thread).remote() for _ in range(THREADS + 3)]
        while words.marks(f"{place}/in") < THREADS:
            time.sleep(0.001)
        assert refs
        os._exit(7)

    with pytest.raises(WorkerCrashedError):
        jt.get(works.remote(str(tmp_path)))
    wait_until(lambda: not status()["live"], "all are over")
    states = [task["state"] for task in jt.tasks() if task["name"] == "thread"]
    assert states == ["crashed"] * (THREADS + 3)
    assert set(status()["total"]) == {"CPU", "GPU"}, "what the process had offered is forgotten"


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_cancel_sets_the_flag_and_get_raises_when_the_function_ends() -> None:
    """Whatever it returns. CANCELLING until then: a state is shown only when it is true."""
    gate = Gate()
    context: list[Any] = []

    @jt.remote(executor="thread")
    def works() -> str:
        context.append(jt.get_runtime_context())
        gate()
        return "a value"

    ref = works.remote()
    assert gate.entered.wait(NET)
    jt.cancel(ref, force=True, grace=0, reason="enough")
    wait_until(lambda: state_of(ref) == "cancelling", "it was asked")
    wait_until(context[0].is_canceled, "it hears of it")
    with pytest.raises(jt.exceptions.GetTimeoutError):
        jt.get(ref, timeout=0)
    gate.opened.set()
    with pytest.raises(TaskCancelledError, match=r"by user: enough\): its function ended after it was asked") as caught:
        jt.get(ref, timeout=NET)
    assert caught.value.rung == "ask"
    assert not isinstance(caught.value, WorkerCrashedError)
    assert state_of(ref) == "cancelled"


def test_one_that_waits_for_a_slot_never_runs() -> None:
    gates = [Gate() for _ in range(THREADS)]
    refs = [jt.remote(executor="thread")(gate).remote() for gate in gates]
    ran: list[int] = []
    waiting = jt.remote(executor="thread")(lambda: ran.append(1)).remote()
    needs = same.remote(double.remote(waiting))
    jt.cancel(waiting)
    for ref in (waiting, needs):
        with pytest.raises(TaskCancelledError, match="before it started"):
            jt.get(ref, timeout=NET)
    for gate in gates:
        gate.opened.set()
    jt.get(refs)
    assert ran == []


def test_an_interruptible_one_gets_a_keyboard_interrupt() -> None:
    """In its Python code, with its finally; the next tasks are not hit."""
    ends: list[str] = []
    entered = threading.Event()

    @jt.remote(executor="thread", interruptible=True)
    def spins() -> None:
        try:
            entered.set()
            while True:
                pass
        finally:
            ends.append("finally")

    for _ in range(20):
        entered.clear()
        ref = spins.remote()
        assert entered.wait(NET)
        jt.cancel(ref)
        with pytest.raises(TaskCancelledError, match="interrupted") as caught:
            jt.get(ref, timeout=NET)
        assert caught.value.rung == "interrupt"
        assert jt.get(same.remote(1)) == 1
    assert ends == ["finally"] * 20


def test_cancels_at_any_moment_hit_their_task_or_nothing() -> None:
    """An interrupt that comes when the function has ended must not hit our own code, or leave the state stuck."""

    @jt.remote(executor="thread", interruptible=True)
    def short(n: int) -> int:
        return sum(range(n))

    for i in range(300):
        ref = short.remote(i * 20)
        if i % 3:
            time.sleep(i % 7 / 5000)
        jt.cancel(ref)
        try:
            assert jt.get(ref, timeout=NET) == sum(range(i * 20))
        except TaskCancelledError:
            pass
    assert jt.get(same.remote("well")) == "well"


def test_interrupts_leave_the_interpreter_as_it_was() -> None:
    """Taken back, one makes CPython 3.11 look for it for ever, and a profiled function hang; so none is taken back."""
    program = (
        "import jupyter_tasks as jt, sys, time\n"
        "@jt.remote(executor='thread', interruptible=True)\ndef short(n):\n    return sum(range(n))\n"
        "for i in range(200):\n"
        "    ref = short.remote(i); time.sleep(i % 7 / 5000); jt.cancel(ref); jt.wait([ref])\n"
        "jt.shutdown()\n"
        "called = []\nsys.setprofile(lambda *_: called.append(1))\n(lambda: None)()\nsys.setprofile(None)\n"
        "print(len(called) > 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_a_timeout_is_a_deadline_for_what_it_returns(tmp_path: Path) -> None:
    gate = Gate()
    ref = jt.remote(executor="thread", timeout=0.01)(gate).remote()
    wait_until(lambda: state_of(ref) == "cancelling", "its time is over")
    gate.opened.set()
    with pytest.raises(TaskTimeoutError, match=r"timeout of 0\.01 s"):
        jt.get(ref)
    assert state_of(ref) == "failed"


def test_a_cancel_reaches_what_it_has_submitted(tmp_path: Path) -> None:
    @jt.remote
    def sleeps(place: str) -> None:
        words.say(f"{place}/in")
        time.sleep(60)

    @jt.remote(executor="thread")
    def parent(place: str) -> Any:
        return jt.get(sleeps.remote(place))

    ref = parent.remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.cancel(ref)
    with pytest.raises(TaskCancelledError):
        jt.get(ref, timeout=NET)
    wait_until(lambda: not status()["live"], "its child is over, too")


def test_a_group_waits_for_its_threads() -> None:
    """CANCELLING as long as one goes on: a thread cannot be killed."""
    gate = Gate()
    with jt.TaskGroup(grace=0.0) as group:
        jt.remote(executor="thread")(gate).remote()
        assert gate.entered.wait(NET)
        group.cancel()
        wait_until(lambda: [task["state"] for task in group.tasks] == ["cancelling"], "it was asked")
        assert group.state == "cancelling"
        gate.opened.set()
    assert group.state == "cancelled"


def test_retries() -> None:
    """For errors as asked; the arguments are the same objects."""
    tries: list[int] = []

    @jt.remote(executor="thread", retry_exceptions=[ValueError], max_retries=2)
    def flaky(held: list[int]) -> int:
        held.append(jt.get_runtime_context().get_attempt_number())
        if len(held) < 3:
            raise ValueError("again")
        return len(held)

    assert jt.get(flaky.remote(tries)) == 3
    assert tries == [0, 1, 2]


def test_sys_exit_in_a_thread_is_an_error_of_the_task() -> None:
    """It must not end the kernel."""

    @jt.remote(executor="thread")
    def leaves() -> None:
        sys.exit(3)

    with pytest.raises(TaskError) as caught:
        jt.get(leaves.remote())
    assert caught.value.type_name == "SystemExit"


def test_shutdown_tells_the_threads_that_go_on() -> None:
    """Nobody can end them, but the flag is set; their refs are lost."""
    stopped = threading.Event()
    entered = threading.Event()

    @jt.remote(executor="thread")
    def works() -> None:
        entered.set()
        while not jt.get_runtime_context().is_canceled():
            time.sleep(0.001)
        stopped.set()

    ref = works.remote()
    assert entered.wait(NET)
    jt.shutdown()
    assert stopped.wait(NET)
    with pytest.raises(ObjectLostError):
        jt.get(ref)


def test_a_program_ends_while_a_thread_task_runs() -> None:
    """It is a daemon thread: it does not keep the program."""
    program = (
        "import jupyter_tasks as jt, threading, time\n"
        "entered = threading.Event()\n"
        "@jt.remote(executor='thread')\n"
        "def hangs():\n    entered.set()\n    time.sleep(600)\n"
        "ref = hangs.remote(); entered.wait(); print('in')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "in\n"


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"executor": "greenlet"}, "executor must be 'process' or 'thread', but is 'greenlet'"),
        ({"executor": "thread", "memory": 1000}, "memory is for executor='process'"),
        ({"executor": "thread", "num_gpus": 1}, "num_gpus is for executor='process'"),
        ({"interruptible": True}, "interruptible is for executor='thread'"),
        ({"executor": "thread", "interruptible": 3}, "interruptible must be True or False"),
    ],
)
def test_what_a_thread_cannot_do_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        jt.remote(**options)(lambda: None)


def test_a_demand_that_can_never_be_met_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="needs 5 CPU, but there are only 2"):
        jt.remote(executor="thread", num_cpus=5)(lambda: None).remote()


def test_records_say_that_it_is_a_thread() -> None:
    """So that the screen can say that it cannot be killed."""
    ref = same.remote(1)
    jt.get(ref)
    records = {task["id"]: task for task in current_client().request("tasks")["tasks"]}
    assert records[ref.id]["executor"] == "thread"
