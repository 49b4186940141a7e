"""`jt.init(local_mode=True)`: everything runs in place, for a debugger. Role: end to end, without a supervisor.

Promises: docs/semantics.md, Local mode; and those of Values, Ends, Waiting and Errors that hold there as well. Cells have
a kernel of their own (the second half).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import pdb
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import marked_processes, wait_until
from kernels import Cell, Kernel

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ObjectLostError,
    TaskError,
    UnserializableError,
    WorkerCrashedError,
)
from jupyter_tasks.session import current_client

NET = 20.0


@pytest.fixture
def local() -> Iterator[None]:
    """Local mode with two CPUs, and nothing of it afterwards."""
    jt.init(local_mode=True, num_cpus=2)
    yield
    jt.shutdown()
    assert not jt.is_initialized()


def double(x: Any) -> Any:
    return x * 2


def divide(x: float) -> float:
    below = x
    return 1 / below


def names_of(error: BaseException) -> list[str]:
    """The functions in its traceback, outermost first."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# -- where it runs ----------------------------------------------------------------------------------------------------


def test_it_runs_at_once_in_this_thread_and_starts_nothing(local: None) -> None:
    """No process and no thread: what `remote` has been called for is done when it returns."""
    processes, threads = marked_processes(), threading.active_count()
    ran: list[Any] = []
    ref = jt.remote(lambda: ran.append((os.getpid(), threading.get_ident()))).remote()
    assert ran == [(os.getpid(), threading.get_ident())]
    assert ref.is_final
    assert (marked_processes(), threading.active_count()) == (processes, threads)


def test_the_users_own_code_runs_in_the_callers_stack(local: None) -> None:
    """A breakpoint set in the function is hit, and `up` leads to who has called `remote`."""
    stack: list[Any] = []

    def task() -> None:
        stack.extend(frame.f_code for frame, _ in traceback.walk_stack(sys._getframe()))

    jt.remote(task).remote()
    assert stack[0] is task.__code__
    assert test_the_users_own_code_runs_in_the_callers_stack.__code__ in stack


def test_breakpoint_opens_pdb_in_the_task(local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands come from this program's stdin; locals are the task's."""
    said = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("p x + 100\nc\n"), stdout=said, nosigint=True)
    monkeypatch.setattr(sys, "breakpointhook", lambda: debugger.set_trace(sys._getframe(1)))

    def task(x: int) -> int:
        breakpoint()
        return x + 1

    trace = sys.gettrace()
    try:
        assert jt.get(jt.remote(task).remote(5)) == 6
    finally:
        sys.settrace(trace)
    assert "105" in said.getvalue()


def test_leaving_the_debugger_stops_all_of_it(local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`q` at its prompt ends the task as cancelled, and who has called it."""
    debugger = pdb.Pdb(stdin=io.StringIO("q\n"), stdout=io.StringIO(), nosigint=True)
    monkeypatch.setattr(sys, "breakpointhook", lambda: debugger.set_trace(sys._getframe(1)))

    def task() -> str:
        breakpoint()
        return "went on"

    trace = sys.gettrace()
    try:
        with pytest.raises(pdb.bdb.BdbQuit):  # type: ignore[attr-defined]
            jt.remote(task).remote()
    finally:
        sys.settrace(trace)
    assert jt.tasks()[0]["state"] == "cancelled"


def test_the_context_of_a_task_is_its_own_also_nested_and_in_coroutines(local: None) -> None:
    """get_task_id() is the id that its ref and `%tasks` show; is_canceled() is false."""

    async def inner() -> str | None:
        return jt.get_runtime_context().get_task_id()

    def outer() -> Any:
        ref = jt.remote(inner).remote()
        context = jt.get_runtime_context()
        assert context.get_accelerator_ids() == {"GPU": []}  # no device is chosen
        return context.get_task_id(), ref.task_id, jt.get(ref), context.is_canceled()

    ref = jt.remote(outer).remote()
    own, nested, told, cancelled = jt.get(ref)
    assert own == ref.task_id
    assert nested == told != own
    assert cancelled is False
    assert jt.get_runtime_context().get_task_id() is None


def test_many_threads_may_submit_at_once(local: None) -> None:
    """Each task has an id of its own, and runs in the thread that has called it."""

    def task(i: int) -> Any:
        return i, jt.get_runtime_context().get_task_id(), threading.get_ident()

    function = jt.remote(task)
    found: list[Any] = []

    def submit(first: int) -> None:
        for i in range(first, first + 50):
            ref, pair = function.remote(i), function.options(num_returns=3).remote(i)
            found.append((jt.get(ref) == (i, ref.task_id, threading.get_ident()), jt.get(pair)[0] == i))

    threads = [threading.Thread(target=submit, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert found == [(True, True)] * 200
    assert len({task["id"] for task in jt.tasks()}) == len(jt.tasks()) == 400


# -- values -----------------------------------------------------------------------------------------------------------


def test_values_are_copies_both_ways(local: None) -> None:
    """As over the wire: neither side sees what the other does to its copy, nor does a second `get`."""
    kept: list[Any] = []

    def task(rows: list[int]) -> list[int]:
        rows.append(99)
        kept.append(rows)
        return rows

    mine = [1]
    ref = jt.remote(task).remote(mine)
    assert mine == [1]
    jt.get(ref).append(100)
    kept[0].append(101)
    assert jt.get(ref) == [1, 99]


def test_what_put_has_stored_does_not_change_any_more(local: None) -> None:
    rows = [1]
    ref = jt.put(rows)
    rows.append(2)
    assert jt.get(ref) == [1]
    assert jt.get(jt.remote(double).remote(ref)) == [1, 1]
    with pytest.raises(TypeError):
        jt.put(ref)


@pytest.mark.parametrize("size", [3, 100_000])
def test_arrays_arrive_read_only_and_results_are_writeable(local: None, size: int) -> None:
    """As in a worker; a program that writes to its argument fails here already."""
    np = pytest.importorskip("numpy")

    def task(array: Any) -> Any:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
        return array + 1

    for array in (np.zeros(size), jt.put(np.zeros(size))):
        ref = jt.remote(task).remote(array)
        one, other = jt.get(ref), jt.get(ref)
        one[:] = 5
        assert other.sum() == size


def test_a_big_argument_leaves_no_descriptor(local: None) -> None:
    before = len(os.listdir("/proc/self/fd"))
    refs = [jt.remote(lambda data: data).remote(bytes(300_000)) for _ in range(20)]
    assert [len(data) for data in jt.get(refs)] == [300_000] * 20
    assert len(os.listdir("/proc/self/fd")) == before


def test_refs_at_the_top_become_values_and_refs_inside_stay_refs(local: None) -> None:
    def task(value: int, nested: list[Any], *, key: int) -> Any:
        return value, type(nested[0]).__name__, jt.get(nested[0]), key

    one, two, three = (jt.remote(double).remote(i) for i in (1, 2, 3))
    assert jt.get(jt.remote(task).remote(one, [two], key=three)) == (2, "ObjectRef", 4, 6)


def test_a_value_keeps_the_refs_in_it_alive_also_after_shutdown(local: None) -> None:
    """The refs that a task has made and given back are in no other hand."""
    ref = jt.remote(lambda: [jt.put("inner"), jt.remote(double).remote(4)]).remote()
    gc.collect()
    assert [jt.get(inner) for inner in jt.get(ref)] == ["inner", 8]
    jt.shutdown()
    gc.collect()
    assert [jt.get(inner) for inner in jt.get(ref)] == ["inner", 8]
    assert not jt.is_initialized()


def test_dropped_refs_are_forgotten(local: None) -> None:
    function = jt.remote(double)
    for i in range(50):
        function.remote(i)
    gc.collect()
    assert current_client().request("status")["objects"] <= 1


def test_what_cannot_be_sent_is_refused_here_too(local: None) -> None:
    """An argument, a function and a result, each named by its path."""
    lock = threading.Lock()
    with pytest.raises(UnserializableError, match=r"x\['a'\]\[0\]"):
        jt.remote(double).remote({"a": [lock]})
    with pytest.raises(UnserializableError):
        jt.remote(lambda: lock.locked()).remote()
    with pytest.raises(UnserializableError, match=r"\['model'\]"):
        jt.get(jt.remote(lambda: {"model": threading.Lock()}).remote())


def test_several_values_and_none(local: None) -> None:
    ran: list[int] = []
    assert jt.get(jt.remote(lambda: "ab").options(num_returns=2).remote()) == ["a", "b"]
    assert jt.remote(lambda: ran.append(1)).options(num_returns=0).remote() is None
    assert ran == [1]
    for ref in jt.remote(lambda: (1, 2, 3)).options(num_returns=2).remote():
        with pytest.raises(ValueError, match=r"^Task returned 3 objects, but num_returns=2\.$"):
            jt.get(ref)
    for ref in jt.remote(lambda: 5).options(num_returns=2).remote():
        with pytest.raises(TypeError, match="Task returned int"):
            jt.get(ref)


def test_generators_run_to_their_end_and_keep_their_items(local: None) -> None:
    """The same interface, errors and copies as otherwise; backpressure means nothing."""
    made: list[int] = []

    def task(n: int) -> Iterator[Any]:
        for i in range(n):
            made.append(i)
            yield {"item": i, "ref": jt.put(i)}
        raise ValueError("broken")

    generator = jt.remote(task).options(generator_backpressure=1).remote(2)
    assert isinstance(generator, jt.ObjectRefGenerator)
    assert made == [0, 1]
    assert generator.next_ready()
    assert jt.wait([generator]) == ([generator], [])
    first, second, broken = generator
    assert [jt.get(jt.get(ref)["ref"]) for ref in (first, second)] == [0, 1]
    assert (second.label, second.task_id) == ("task[1]", generator.task_id)
    with pytest.raises(ValueError, match="broken") as caught:
        jt.get(broken)
    assert names_of(caught.value)[-1] == "task"
    assert generator.is_finished()
    assert list(generator) == []


def test_generators_of_all_kinds(local: None) -> None:
    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def main() -> list[int]:
        return [await ref async for ref in jt.remote(numbers).remote(3)]

    assert asyncio.run(main()) == [0, 1, 2]
    assert jt.get(list(jt.get(jt.remote(numbers).options(num_returns="dynamic").remote(2)))) == [0, 1]
    assert jt.get(jt.remote(numbers).options(num_returns=2).remote(2)) == [0, 1]
    for ref in jt.remote(numbers).options(num_returns=2).remote(3):
        with pytest.raises(ValueError, match="yielded more than 2 objects"):
            jt.get(ref)
    (ref,) = jt.remote(num_returns="streaming")(lambda: 1).remote()
    with pytest.raises(TypeError, match="needs a generator"):
        jt.get(ref)


def test_a_generators_further_attempt_keeps_what_was_made(local: None) -> None:
    attempts: list[int] = []

    def task() -> Iterator[tuple[int, int]]:
        attempts.append(1)
        for i in range(4):
            if i == 2 and len(attempts) == 1:
                raise ValueError
            yield len(attempts), i

    generator = jt.remote(retry_exceptions=True)(task).remote()
    assert [jt.get(ref) for ref in generator] == [(1, 0), (1, 1), (2, 2), (2, 3)]


def test_what_a_generator_cannot_send_is_refused_here_too(local: None) -> None:
    def task() -> Iterator[Any]:
        yield threading.Lock()

    (ref,) = jt.remote(task).remote()
    with pytest.raises(UnserializableError, match="item 0"):
        jt.get(ref)


def test_wrong_calls_are_the_same_errors_as_otherwise(local: None) -> None:
    with pytest.raises(TypeError, match=r"double\(\): "):
        jt.remote(double).remote()
    with pytest.raises(ValueError, match="needs 3 CPU, but there are only 2"):
        jt.remote(double).options(num_cpus=3).remote(1)
    refs = [jt.put(i) for i in range(5001)]
    with pytest.raises(ValueError, match="Put them in a list"):
        jt.remote(lambda *values: 0).remote(*refs)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_what_it_was_and_leads_the_debugger_to_its_place(local: None) -> None:
    """`except ZeroDivisionError` works, and post mortem begins in the frame of the task that has raised."""
    ref = jt.remote(divide).remote(0)
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        jt.get(ref)
    error = caught.value
    assert isinstance(error, TaskError)
    assert (error.task_id, error.name, error.type_name) == (ref.task_id, "divide", "ZeroDivisionError")
    assert "return 1 / below" in error.traceback_text
    assert names_of(error)[-1] == "divide"
    assert names_of(error)[-2] == "get"  # and nothing of ours in between
    cause = error.__cause__
    assert type(cause) is ZeroDivisionError
    assert names_of(cause) == ["divide"]
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    assert trace.tb_frame.f_locals == {"x": 0, "below": 0}


def test_an_error_can_be_got_again_and_goes_to_dependents_without_running_them(local: None) -> None:
    ran: list[int] = []
    ref = jt.remote(divide).remote(0)
    dependent = jt.remote(lambda value, other: ran.append(1)).remote(1, other=ref)
    for each in (ref, ref, dependent, jt.remote(double).remote(dependent)):
        with pytest.raises(ZeroDivisionError) as caught:
            jt.get(each)
        assert names_of(caught.value)[-2:] == ["get", "divide"]
    assert ran == []
    assert {task["state"] for task in jt.tasks()} == {"failed"}


def test_an_error_of_a_nested_task_keeps_its_root_cause(local: None) -> None:
    def outer() -> Any:
        return jt.get(jt.remote(divide).remote(0))

    with pytest.raises(ZeroDivisionError) as caught:
        jt.get(jt.remote(outer).remote())
    assert isinstance(caught.value, TaskError)
    assert names_of(caught.value)[-3:] == ["outer", "get", "divide"]


def test_an_error_that_could_not_be_sent_arrives_as_a_plain_task_error(local: None) -> None:
    """As from a worker; its `__cause__` is the error itself all the same, for the debugger."""

    class Broken(Exception):
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    def task() -> None:
        raise Broken("text")

    with pytest.raises(TaskError, match="Broken: text") as caught:
        jt.get(jt.remote(task).remote())
    assert not isinstance(caught.value, Broken)
    assert isinstance(caught.value.__cause__, Broken)


def test_exit_is_a_crash_with_its_exit_code(local: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the task, not of this program."""
    for code, told in ((3, 3), (None, 0), ("bye", 1)):
        with pytest.raises(WorkerCrashedError) as caught:
            jt.get(jt.remote(sys.exit).remote(code))
        assert caught.value.exit_code == told
    assert capsys.readouterr().err == "bye\n"
    assert {task["state"] for task in jt.tasks()} == {"crashed"}


def test_the_stop_button_stops_the_task_and_who_has_called_it(local: None) -> None:
    """A SIGINT wakes the task in the midst of a sleep; nested, both tasks are cancelled."""

    def inner() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(NET)

    def outer() -> None:
        jt.remote(inner).remote()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            jt.remote(outer).remote()
    finally:
        signal.signal(signal.SIGINT, before)
    records = jt.tasks()
    assert [(task["name"], task["state"], task["source"]) for task in records] == [
        ("inner", "cancelled", "interrupt"),
        ("outer", "cancelled", "interrupt"),
    ]
    assert jt.get_runtime_context().get_task_id() is None
    assert jt.get(jt.remote(double).remote(2)) == 4


def test_retry_exceptions_are_retried_and_others_are_not(local: None) -> None:
    """Each attempt gets arguments of its own."""
    seen: list[list[int]] = []

    def task(rows: list[int], fails: int) -> int:
        rows.append(len(seen))
        seen.append(rows)
        if len(seen) <= fails:
            raise ValueError("again")
        return len(rows)

    assert jt.get(jt.remote(task).options(retry_exceptions=[ValueError]).remote([], 2)) == 1
    assert len(seen) == 3
    seen.clear()
    with pytest.raises(ValueError, match="again"):
        jt.get(jt.remote(task).options(retry_exceptions=True, max_retries=1).remote([], 9))
    assert len(seen) == 2
    seen.clear()
    with pytest.raises(ValueError, match="again"):
        jt.get(jt.remote(task).options(retry_exceptions=[KeyError]).remote([], 9))
    assert len(seen) == 1


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_wait_and_get_find_everything_there(local: None) -> None:
    refs = [jt.remote(double).remote(i) for i in range(3)] + [jt.remote(divide).remote(0)]
    assert jt.wait(refs, num_returns=2) == (refs[:2], refs[2:])
    assert jt.wait(refs, num_returns=4, timeout=0) == (refs, [])
    assert jt.get(refs[:3], timeout=0) == [0, 2, 4]
    assert list(jt.as_completed(refs, timeout=0)) == refs
    with pytest.raises(ZeroDivisionError):
        jt.get(refs)

    async def main() -> list[jt.ObjectRef]:
        return [ref async for ref in jt.as_completed(refs)]

    assert asyncio.run(main()) == refs


def test_futures_are_done_and_call_back(local: None) -> None:
    called: list[Any] = []
    future = jt.remote(double).remote(4).future()
    future.add_done_callback(called.append)
    assert future.result(0) == 8
    assert called == [future]
    assert future.cancel() is False
    assert isinstance(jt.remote(divide).remote(0).future().exception(0), ZeroDivisionError)


def test_async_functions_run_below_a_running_loop_and_without_one(local: None) -> None:
    """In a notebook a loop runs always; it stands still meanwhile, and goes on afterwards as if nothing had been."""

    async def task(x: int) -> Any:
        await asyncio.sleep(0.001)
        return x + 1, threading.get_ident()

    function = jt.remote(task)
    assert jt.get(function.remote(1)) == (2, threading.get_ident())

    async def notebook() -> None:
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        assert await function.remote(2) == (3, threading.get_ident())
        assert (asyncio.get_running_loop(), asyncio.current_task()) == (loop, own)
        await asyncio.wait_for(asyncio.sleep(0.001), NET)
        with pytest.raises(ZeroDivisionError) as caught:
            await jt.remote(divide).remote(0)
        assert names_of(caught.value)[-1] == "divide"

    asyncio.run(notebook())


def test_the_stop_button_reaches_an_async_function(local: None) -> None:
    """In its own loop, below one that stands still."""

    async def task() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(NET)

    async def notebook() -> str:
        try:
            jt.remote(task).remote()
        except KeyboardInterrupt:
            return "stopped"
        return "went on"

    loop = asyncio.new_event_loop()  # not asyncio.run, which takes SIGINT for itself
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert loop.run_until_complete(notebook()) == "stopped"
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
        asyncio.set_event_loop(None)


def test_cancel_of_what_is_over_changes_nothing(local: None) -> None:
    ref = jt.remote(double).remote(2)
    jt.cancel(ref)
    jt.cancel(ref, force=True)
    assert jt.get(ref) == 4


def test_tasks_are_listed_with_the_same_facts_as_otherwise(local: None) -> None:
    """Running ones first, then what has ended, oldest first."""

    def outer() -> list[Any]:
        jt.remote(divide).remote(0)
        return jt.tasks()

    seen = jt.get(jt.remote(outer).remote())
    assert [(task["name"], task["state"]) for task in seen] == [("outer", "running"), ("divide", "failed")]
    records = jt.tasks()
    assert [(task["name"], task["state"]) for task in records] == [("divide", "failed"), ("outer", "completed")]
    jt.shutdown()
    jt.init(num_cpus=2)
    jt.get(jt.remote(double).remote(1), timeout=NET)
    assert records[1].keys() == jt.tasks()[0].keys()
    jt.shutdown()


def test_finished_tasks_can_be_forgotten(local: None) -> None:
    jt.remote(double).remote(1)
    assert current_client().request("clear") == 1
    assert jt.tasks() == []


# -- in and out -------------------------------------------------------------------------------------------------------


def test_init_again_is_a_no_op_that_says_local_mode(local: None) -> None:
    assert jt.init()["local_mode"] is True
    assert jt.init(local_mode=True)["total"]["CPU"] == 2
    assert jt.init(num_cpus=2)["local_mode"] is True
    with pytest.raises(RuntimeError, match="runs already"):
        jt.init(num_cpus=3)


def test_local_mode_beside_a_supervisor_is_refused_with_what_to_do(module_session: None) -> None:
    jt.init(num_cpus=2)
    try:
        with pytest.raises(RuntimeError, match=r"call jt\.shutdown\(\) first.*jt\.init\(local_mode=True\)"):
            jt.init(local_mode=True)
        assert "local_mode" not in jt.init()
    finally:
        jt.shutdown()


def test_a_worker_is_a_worker_whatever_a_task_asks_for(module_session: None) -> None:
    """A function that calls init(local_mode=True) runs its own tasks in workers all the same."""

    def task() -> Any:
        settings = jt.init(local_mode=True)
        return settings.get("local_mode"), os.getpid() != jt.get(jt.remote(os.getpid).remote())

    jt.init(num_cpus=2)
    try:
        assert jt.get(jt.remote(task).remote(), timeout=NET) == (None, True)
    finally:
        jt.shutdown()


def test_after_shutdown_values_stay_and_functions_run_in_workers(local: None, module_session: None) -> None:
    """The same RemoteFunction goes from one mode to the other; a ref of before is refused as an argument."""
    function = jt.remote(os.getpid)
    ref = function.remote()
    failed = jt.remote(divide).remote(0)
    jt.shutdown()
    assert jt.get(ref) == os.getpid()
    with pytest.raises(ZeroDivisionError):
        jt.get(failed)
    jt.cancel(ref)
    jt.init(num_cpus=2)
    assert jt.get(function.remote(), timeout=NET) != os.getpid()
    with pytest.raises(ObjectLostError, match="belongs to a session that has ended"):
        jt.remote(double).remote(ref)
    jt.shutdown()
    jt.init(local_mode=True)
    assert jt.get(function.remote()) == os.getpid()


def test_who_does_not_ask_for_it_does_not_import_it() -> None:
    """A cold start pays nothing for local mode."""
    program = "import jupyter_tasks as jt, sys; jt.init(num_cpus=1); sys.exit('jupyter_tasks.inplace' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_a_forked_child_goes_on_in_place(local: None) -> None:
    ref = jt.remote(double).remote(2)
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if jt.get(jt.remote(os.getpid).remote()) == os.getpid() and jt.get(ref) == 4 else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_post_mortem_of_a_program_shows_the_tasks_frames(tmp_path: Path) -> None:
    """As `python -m pdb` users and `pdb.pm()` find it: the innermost frame is the task's own."""
    program = tmp_path / "program.py"
    program.write_text(
        "import jupyter_tasks as jt, pdb, sys, io\njt.init(local_mode=True)\n"
        "@jt.remote\ndef task(x):\n    below = x\n    return 1 / below\n"
        "try:\n    jt.get(task.remote(0))\nexcept ZeroDivisionError:\n    trace = sys.exc_info()[2]\n"
        "p = pdb.Pdb(stdin=io.StringIO('p below + 41\\nup\\nq\\n'), stdout=sys.stdout)\np.reset()\n"
        "p.interaction(None, trace)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=True)
    assert "(5)task()" in done.stdout.replace("(6)task()", "(5)task()")
    assert "41" in done.stdout


# -- actors -----------------------------------------------------------------------------------------------------------


class Counter:
    """Made remote where it is used."""

    def __init__(self, start: Any = 0) -> None:
        self.value = start

    def add(self, n: Any) -> Any:
        self.value += n
        return self.value

    def divides(self, by: int) -> float:
        below = by
        return self.value / below

    def makes(self, n: int) -> Iterator[int]:
        yield from range(n)

    @jt.method(num_returns=2)
    def pair(self) -> Any:
        return [1, 2]

    def leaves(self) -> None:
        jt.exit_actor()

    def exits(self) -> None:
        sys.exit(3)


def test_an_actor_is_made_and_called_in_place(local: None) -> None:
    """In the caller's stack, by its own code; the state stays. Nothing is started."""
    processes, threads = marked_processes(), threading.active_count()
    counter = jt.remote(Counter).remote(5)
    assert jt.get([counter.add.remote(1), counter.add.remote(2)]) == [6, 8]
    seen: list[Any] = []

    class Looks:
        def __init__(self) -> None:
            seen.append(jt.get_runtime_context().get_actor_id())

        def stack(self) -> None:
            seen.extend(frame.f_code for frame, _ in traceback.walk_stack(sys._getframe()))

    looks = jt.remote(Looks).remote()
    looks.stack.remote()
    assert seen[0] == looks._jt_ref.task_id
    assert test_an_actor_is_made_and_called_in_place.__code__ in seen
    assert Looks.stack.__code__ in seen
    assert (marked_processes(), threading.active_count()) == (processes, threads)


def test_an_actor_knows_where_it_is(local: None) -> None:
    class Knows:
        def tells(self) -> Any:
            context = jt.get_runtime_context()
            return context.get_actor_id(), context.get_actor_name(), context.get_task_name(), context.get_task_id()

        def itself(self) -> Any:
            return jt.get_runtime_context().current_actor

    knows = jt.remote(Knows).options(name="known").remote()
    ref = knows.tells.remote()
    assert jt.get(ref) == (knows._jt_ref.task_id, "known", "known.tells", ref.task_id)
    assert jt.get(knows.itself.remote()) == knows
    assert jt.get_runtime_context().get_actor_id() is None
    (record,) = jt.list_actors()
    assert (record["name"], record["class_name"], record["state"]) == ("known", "Knows", "alive")
    assert {task["kind"] for task in jt.tasks()} == {"actor", "call"}


def test_values_of_actors_are_copied_and_handles_pass(local: None) -> None:
    """Arguments and results; what cannot be sent is an error. A handle in a value is the same actor."""
    rows = [1]
    counter = jt.remote(Counter).remote(rows)
    result = jt.get(counter.add.remote([2]))
    assert (result, rows) == ([1, 2], [1])
    result.append(3)
    assert jt.get(counter.add.remote([])) == [1, 2]
    with pytest.raises(UnserializableError, match=r"_thread\.lock"):
        counter.add.remote([threading.Lock()])

    def calls(box: list[Any]) -> Any:
        return jt.get(box[0].add.remote([4]))

    assert jt.get(jt.remote(calls).remote([counter])) == [1, 2, 4]
    kept = jt.put({"actor": counter})
    del counter
    assert jt.get(jt.get(kept)["actor"].add.remote([])) == [1, 2, 4]
    numbers = jt.remote(Counter).remote(jt.remote(double).remote(2))
    assert jt.get(numbers.add.remote(jt.remote(double).remote(3))) == 10


def test_a_thread_actor_shares_its_objects_in_place(local: None) -> None:
    rows = [1]
    counter = jt.remote(Counter).options(executor="thread").remote(rows)
    with pytest.raises(TaskError) as caught:
        jt.get(counter.exits.remote())
    assert caught.value.type_name == "SystemExit"
    assert jt.get(counter.add.remote([threading.get_ident()])) is rows
    assert rows == [1, threading.get_ident()]


def test_methods_with_options_generators_and_coroutines(local: None) -> None:
    counter = jt.remote(Counter).remote()
    assert [jt.get(ref) for ref in counter.makes.remote(3)] == [0, 1, 2]
    assert jt.get(list(jt.get(counter.makes.options(num_returns="dynamic").remote(2)))) == [0, 1]
    assert jt.get(counter.pair.remote()) == [1, 2]
    assert counter.add.options(num_returns=0).remote(1) is None
    with pytest.raises(TypeError, match=r"Counter\.add\(\): "):
        counter.add.remote()

    class Async:
        async def sleeps(self) -> str:
            await asyncio.sleep(0)
            return "slept"

        async def makes(self) -> AsyncIterator[int]:
            yield 1

    made = jt.remote(Async).remote()
    assert jt.get(made.sleeps.remote()) == "slept"
    assert [jt.get(ref) for ref in made.makes.remote()] == [1]


def test_an_actors_errors_and_retries(local: None) -> None:
    """With the frames of the method; the actor goes on."""
    counter = jt.remote(Counter).remote(1)
    with pytest.raises(ZeroDivisionError) as caught:
        jt.get(counter.divides.remote(0))
    assert isinstance(caught.value, TaskError)
    assert names_of(caught.value)[-1] == "divides"
    tries: list[int] = []

    class Flaky:
        @jt.method(retry_exceptions=[ValueError], max_task_retries=1)
        def tries(self) -> int:
            tries.append(1)
            if len(tries) < 2:
                raise ValueError("again")
            return len(tries)

    assert jt.get(jt.remote(Flaky).remote().tries.remote()) == 2
    tries.clear()
    with pytest.raises(ValueError, match="again"):
        jt.get(jt.remote(Flaky).remote().tries.options(max_task_retries=0).remote())
    assert jt.get(counter.add.remote(1)) == 2


def test_a_constructor_that_raises_in_place(local: None) -> None:
    """Each call raises, and ends in the constructor's frames. Or its argument has failed."""

    class Broken:
        def __init__(self, by: Any) -> None:
            self.x = 1 / by

        def call(self) -> None: ...

    broken = jt.remote(Broken).remote(0)
    for _ in range(2):
        with pytest.raises(
            ActorDiedError, match="its constructor raised ZeroDivisionError: division by zero"
        ) as caught:
            jt.get(broken.call.remote())
    assert names_of(caught.value)[-1] == "__init__"
    assert jt.list_actors()[0]["state"] == "dead"
    needs = jt.remote(Broken).remote(jt.remote(divide).remote(0))
    with pytest.raises(ZeroDivisionError):
        jt.get(needs.call.remote())


def test_the_ends_of_an_actor_in_place(local: None) -> None:
    """By itself, by kill, by terminate, with its last handle: later calls raise what they raise otherwise."""
    counter = jt.remote(Counter).remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match=r"\(Counter\) has ended: it has left"):
            jt.get(counter.leaves.remote())
    with pytest.raises(ActorDiedError, match=r"it has left, by sys\.exit\(3\)"):
        jt.get(jt.remote(Counter).remote().exits.remote())
    with pytest.raises(TypeError, match="exit_actor"):
        jt.exit_actor()

    class Catches:
        def __init__(self, now: bool) -> None:
            if now:
                self.stays()

        def stays(self) -> str:
            try:
                jt.exit_actor()
            except SystemExit:
                return "stays"

    for now in (True, False):
        with pytest.raises(ActorDiedError, match="it has left"):
            jt.get(jt.remote(Catches).remote(now).stays.remote())
    counter = jt.remote(Counter).remote()
    jt.kill(counter)
    jt.kill(counter)
    with pytest.raises(ActorDiedError, match="it was killed"):
        jt.get(counter.add.remote(1))
    counter = jt.remote(Counter).remote()
    end = counter.terminate()
    assert jt.get(end) is None
    with pytest.raises(ActorDiedError, match=r"terminate\(\) was called"):
        jt.get(counter.add.remote(1))
    assert [task["state"] for task in jt.tasks() if task["kind"] == "actor"][-2:] == ["cancelled", "completed"]
    assert {actor["state"] for actor in jt.list_actors()} == {"dead"}

    class Ends:
        def kills(self) -> str:
            jt.kill(jt.get_runtime_context().current_actor)
            return "went on"

        def terminates(self) -> str:
            jt.get_runtime_context().current_actor.terminate()
            return "went on"

    with pytest.raises(ActorDiedError, match="it was killed"):
        jt.get(jt.remote(Ends).remote().kills.remote())
    assert jt.get(jt.remote(Ends).remote().terminates.remote()) == "went on"


def test_with_its_last_handle_an_instance_in_place_is_gone(local: None) -> None:
    """At once; a handle that it has of itself does not keep it, one in a value does."""
    gone: list[str] = []

    class Watched:
        def __init__(self, name: str) -> None:
            weakref.finalize(self, gone.append, name)

        def keeps_itself(self) -> Any:
            self.me = jt.get_runtime_context().current_actor
            return [self.me]

    watched = jt.remote(Watched).options(name="watched").remote("first")
    kept = watched.keeps_itself.remote()
    del watched
    gc.collect()
    assert gone == []
    assert jt.get_actor("watched") == jt.get(kept)[0]
    del kept
    gc.collect()
    assert gone == ["first"]
    with pytest.raises(ValueError, match="no actor named 'watched'"):
        jt.get_actor("watched")
    assert jt.list_actors()[0]["state"] == "dead"


def test_names_of_actors_in_place(local: None) -> None:
    remote = jt.remote(Counter).options(name="one")
    counter = remote.remote(1)
    assert jt.get_actor("one") == counter
    assert remote.options(get_if_exists=True).remote(7) == counter
    with pytest.raises(ActorAlreadyExistsError, match="There is an actor named 'one' already"):
        remote.remote(7)
    assert jt.get(counter.add.remote(1)) == 2
    jt.kill(counter)
    assert jt.get(remote.remote(7).add.remote(1)) == 8


def test_calls_of_actors_are_members_of_groups(local: None) -> None:
    counter = jt.remote(Counter).remote()
    with jt.TaskGroup() as group:
        counter.add.remote(1)
    assert [task["kind"] for task in group.tasks] == ["call"]
    assert group.state == "completed"


def test_handles_of_a_local_session_that_has_ended(local: None) -> None:
    counter = jt.remote(Counter).remote()
    jt.shutdown()
    with pytest.raises(ObjectLostError, match="session of this actor has ended"):
        counter.add.remote(1)


# -- cells, in a kernel -----------------------------------------------------------------------------------------------

# What the launcher does with a cell in local mode, as a magic: %%place names -> outs
PLACE = """
import jupyter_tasks as jt
jt.init(local_mode=True)
from IPython.core.magic import register_cell_magic
from jupyter_tasks.session import current_client
from jupyter_tasks.notebook.inplace import launch_in_place
current_client().namespace = get_ipython().user_ns

@register_cell_magic
def place(line, cell, refs_only=(), at_home=None):
    ip = get_ipython()
    names, _, outs = line.partition('->')
    ip.user_ns['refs'], outcome = launch_in_place(
        ip, current_client(), cell, {name: ip.user_ns[name] for name in names.split()}, f'%%place {line}'.rstrip(),
        ip.displayhook.prompt_count, label='placed', outs=outs.split(), refs_only=refs_only, at_home=at_home)
    ip.user_ns['left'] = sorted(outcome.namespace)
    if outcome.error is not None:
        outcome.error._render_traceback_ = lambda: outcome.traceback
        raise outcome.error
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all: what a cell in place does to it, the next one would see."""
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    made = kernel.run(PLACE)
    assert made.ok, made.error
    yield kernel
    kernel.close()
    wait_until(lambda: not kernel.processes(), "nothing of the kernel is left after its shutdown")


def start(kernel: Kernel, code: str) -> Cell:
    """A cell whose front-end answers questions."""
    cell = Cell(kernel.client.execute(code, allow_stdin=True))
    kernel.cells[cell.id] = cell
    return cell


def answer(kernel: Kernel, text: str) -> str:
    """Waits for the kernel's question and answers it; returns the prompt."""
    prompt = kernel.client.get_stdin_msg(timeout=NET)["content"]["prompt"]
    kernel.client.input(text)
    return str(prompt)


@pytest.mark.slow
def test_a_cell_in_place_shows_its_output_as_a_plain_cell(kernel: Kernel) -> None:
    """Text, rich output and the last expression, with this cell's number; in this very process."""
    cell = kernel.run(
        "%%place\nimport os\nprint('text', os.getpid())\nfrom IPython.display import display\ndisplay('rich')\n6 * 7"
    )
    assert cell.ok, cell.error
    assert cell.text() == f"text {kernel.pid}\n"
    assert [m["msg_type"] for m in cell.own] == ["stream", "display_data", "execute_result"]
    (result,) = cell.of("execute_result")
    assert (result["data"]["text/plain"], result["execution_count"]) == ("42", cell.reply["execution_count"])
    assert kernel.run("jt.get(refs[0])").result == "42"
    assert kernel.run("%%place\n6 * 8;").own == []
    assert kernel.run("jt.get(refs[0])").result == "48"


@pytest.mark.slow
def test_names_are_copies_and_functions_read_the_cells_names(kernel: Kernel) -> None:
    """What the cell does to its names, the notebook does not see; a function comes home and reads the notebook's."""
    kernel.run("rows, scale = [1], 10\nalias = rows\ndef scaled(x): return x * scale")
    cell = kernel.run(
        "%%place rows scale scaled alias -> out again gone\nrows.append(2); scale = 100\n"
        "out = scaled(len(rows)), rows is alias, __name__, scaled.__globals__ is globals()\nagain = scaled"
    )
    assert cell.ok, cell.error
    assert kernel.run("rows, scale, scaled(1), 'out' in globals()").result == "([1], 10, 10, False)"
    assert kernel.run("jt.get(refs[1])").result == "(200, True, '__main__', True)"
    assert kernel.run("jt.get(refs[2])(3), jt.get(refs[2]) is scaled").result == "(30, False)"
    assert "did not assign 'gone'" in kernel.run("jt.get(refs[3])").error
    assert kernel.run("left").result == "['again', 'alias', 'out', 'rows', 'scale', 'scaled']"
    missing = kernel.run("%%place rows\nscale")
    assert "NameError" in missing.error


@pytest.mark.slow
def test_afterwards_the_kernel_is_what_it_was(kernel: Kernel) -> None:
    """Namespace, `__main__`, execution count, `_`, Out and In, hidden names, future flags; after errors, too."""
    kernel.run("'kept'")
    look = (
        "(_, sorted(Out), len(In), sorted(n for n in get_ipython().user_ns_hidden if n[:2] != '_i'), __main__.__dict__ is globals(), "
        "get_ipython().compile.flags, [n for n in globals() if n in ('new', 'annotations')])"
    )
    kernel.run("import __main__, sys")
    kernel.run(f"before = {look}; n = get_ipython().execution_count")
    for body in (
        "'one'\n",
        "from __future__ import annotations\nnew = 1\n'two'",
        "new = 2\n1 / 0",
        "exit",
        "_ == '', len(Out)",
    ):
        kernel.run(f"%%place\n{body}")
    changed = kernel.run(f"after = {look}\nafter[:2] == before[:2], after[2] - before[2], after[3:] == before[3:]")
    assert changed.result == "(True, 6, True)", (kernel.run("before").result, kernel.run("after").result)
    assert kernel.run("get_ipython().execution_count - n").result == "7"
    assert kernel.run("sys.modules['__main__'] is __main__, jt.get(refs[0])").result == "(True, (True, 0))"


@pytest.mark.slow
def test_a_name_that_holds_a_ref_is_its_value_in_the_cell(kernel: Kernel) -> None:
    """`get` of it is the value itself; what is only passed on stays a ref; a failed one fails the cell unrun."""
    kernel.run("a, b = jt.put([1]), jt.put(2)\nboth = [a, b]")
    cell = kernel.run("%%place a both jt\na, jt.get(a) is a, jt.get(both), both[0]")
    assert cell.result is not None, cell.error
    assert cell.result.startswith("([1], True, [[1], 2], <ObjectRef")
    kernel.run("place('a', 'type(a).__name__', refs_only=['a'])")
    assert kernel.run("jt.get(refs[0])").result == "'ObjectRef'"
    kernel.run("bad = jt.remote(lambda: 1 / 0).remote()")
    cell = kernel.run("%%place bad\nprint('ran')")
    assert "ZeroDivisionError" in cell.error
    assert cell.text() == ""
    assert kernel.run("jt.tasks()[-1]['name'], jt.tasks()[-1]['kind'], jt.tasks()[-1]['state']").result == (
        "('placed', 'cell', 'failed')"
    )


@pytest.mark.slow
def test_a_name_that_cannot_be_sent_is_refused_and_nothing_runs(kernel: Kernel) -> None:
    kernel.run("import threading; held = {'lock': threading.Lock()}")
    cell = kernel.run("%%place held\nprint('ran')")
    assert "UnserializableError" in cell.error
    assert "held['lock']" in cell.error
    assert cell.text() == ""


@pytest.mark.slow
def test_an_error_is_shown_once_with_the_cells_own_lines(kernel: Kernel) -> None:
    """Numbered as in the notebook; none of our frames. A ref of the cell raises it, too."""
    cell = kernel.run("\n%%place\ndef inner():\n    return 1 / 0\n\ninner()")
    assert len(cell.of("error")) == 1
    number = cell.reply["execution_count"]
    assert f"Cell In[{number}], line 6" in cell.error
    assert f"Cell In[{number}], line 4, in inner()" in cell.error
    assert "----> 4     return 1 / 0" in cell.error
    assert "jupyter_tasks" not in cell.error
    assert "run_cell_magic" not in cell.error
    again = kernel.run(
        "try: jt.get(refs[0])\nexcept ZeroDivisionError as e: error = e\nimport traceback\n"
        "[f.name for f in traceback.extract_tb(error.__traceback__)]"
    )
    assert again.result == "['<module>', 'get', '<module>', 'inner']", again.error


@pytest.mark.slow
def test_the_debugger_and_input_ask_in_the_notebook(kernel: Kernel) -> None:
    """Its prompt sees the cell's names. (In a kernel, breakpoint() is for the IDE's debugger, also in plain cells.)"""
    cell = start(kernel, "%%place\nimport pdb; local_name = 41\npdb.set_trace()\nprint(input('who? '))")
    assert "ipdb" in answer(kernel, "p local_name + 1")
    answer(kernel, "c")
    assert answer(kernel, "Ada") == "who? "
    kernel.finish(cell)
    assert cell.ok, cell.error
    assert "42" in cell.text()
    assert "Ada" in cell.text()


@pytest.mark.slow
def test_a_debugger_that_is_left_ends_the_cell_without_noise(kernel: Kernel) -> None:
    cell = start(kernel, "%%place\nimport pdb; pdb.set_trace()\nprint('went', 'on')")
    answer(kernel, "q")
    kernel.finish(cell)
    assert "went on" not in cell.text()
    assert kernel.run("jt.tasks()[-1]['state'], 'left' in globals()").result == "('cancelled', True)"


@pytest.mark.slow
def test_debug_after_an_error_begins_in_the_cell_and_after_get_in_the_task(kernel: Kernel) -> None:
    """%debug shows the frame that has raised, with its names."""
    kernel.run("%%place\ndef inner(x):\n    return 1 / x\ninner(0)")
    kernel.run("@jt.remote\ndef task(below):\n    return 2 / below\nref = task.remote(0)")
    for raising, name in ((None, "x"), ("jt.get(ref)", "below")):
        if raising:
            assert "ZeroDivisionError" in kernel.run(raising).error
        cell = start(kernel, "%debug")
        answer(kernel, f"p {name} + 77")
        answer(kernel, "q")
        kernel.finish(cell)
        assert "77" in cell.text(), cell.text()


@pytest.mark.slow
def test_a_breakpoint_of_an_ide_is_hit_by_the_cells_own_file_name(kernel: Kernel) -> None:
    """JupyterLab finds a cell by a hash of its whole text, and counts lines in it."""
    source = "%%place\n\nimport sys\nsys._getframe().f_code.co_filename, sys._getframe().f_lineno"
    cell = kernel.run(source)
    expected = kernel.run(f"from ipykernel.compiler import get_file_name\nget_file_name({source!r}), 4")
    assert cell.result == expected.result


@pytest.mark.slow
def test_top_level_await_and_magics_work(kernel: Kernel) -> None:
    """A task of one statement goes on in the next: they share a loop."""
    cell = kernel.run(
        "%%place\nimport asyncio\nasync def f():\n    await asyncio.sleep(0.001)\n    return 5\n"
        "t = asyncio.create_task(f())\nx = 1\nawait t"
    )
    assert cell.result == "5", cell.error
    cell = kernel.run("%%place rows\nkeep = 3\n%who_ls")
    assert cell.result == "['keep', 'rows']", cell.error
    assert kernel.run("import asyncio; await asyncio.sleep(0.001, 8)").result == "8"


@pytest.mark.slow
def test_the_stop_button_ends_the_cell_with_a_keyboard_interrupt(kernel: Kernel) -> None:
    cell = kernel.start("%%place\nimport time\nprint('in', flush=True)\ntime.sleep(60)")
    kernel.read_until(lambda: cell.text() == "in\n", "the cell is in")
    kernel.interrupt()
    kernel.finish(cell)
    assert "KeyboardInterrupt" in cell.error
    assert "jupyter_tasks" not in cell.error
    assert kernel.run("rows, jt.tasks()[-1]['state']").result == "([1], 'cancelled')"
    assert "TaskCancelledError" in kernel.run("jt.get(refs[0])").error
    assert "TaskCancelledError" in kernel.run("jt.get(jt.remote(len).remote(refs[0]))").error
    assert kernel.run("jt.tasks()[-1]['name'], jt.tasks()[-1]['state']").result == "('len', 'cancelled')"


@pytest.mark.slow
def test_exit_ends_the_cell_and_not_the_kernel(kernel: Kernel) -> None:
    cell = kernel.run("%%place\nexit()\nprint('went on')")
    assert cell.text() == ""
    assert cell.reply["status"] == "error"
    assert cell.reply["ename"] == "SystemExit"
    assert not cell.reply.get("payload")
    assert kernel.run("1 + 1").result == "2"


@pytest.mark.slow
def test_at_home_a_cell_is_a_plain_cell_but_for_refs(kernel: Kernel) -> None:
    """For `--wait -o '*'`: names are assigned, deleted and changed in the notebook; what it only reads stays a ref."""
    kernel.run("rows, gone = [1], 0\nalias, read, changed = rows, jt.put(5), jt.put([6])")
    cell = kernel.run(
        "place('rows read changed', 'rows.append(read); new = changed; changed.append(7)\\ndel gone\\n1 / 0',"
        " at_home=['changed', 'rows'])"
    )
    assert "ZeroDivisionError" in cell.error
    look = kernel.run("alias, new is changed, changed, type(read).__name__, 'gone' in globals()")
    assert look.result == "([1, 5], True, [6, 7], 'ObjectRef', False)"


# -- groups and maps --------------------------------------------------------------------------------------------------


def test_a_block_counts_its_members_and_raises_their_failure(local: None) -> None:
    """States and raising as with workers; the frames in the error are those of the task."""
    refs: list[jt.ObjectRef] = []
    with pytest.raises(ZeroDivisionError) as caught, jt.TaskGroup("sweep") as group:
        refs += jt.remote(divide).map([1, 0, 2])
    assert group.state == "failed"
    assert [task["state"] for task in group.tasks] == ["completed", "failed", "completed"]
    assert {task["group"] for task in group.tasks} == {"divide"}
    assert names_of(caught.value)[-1] == "divide"
    assert jt.get([refs[0], refs[2]]) == [1.0, 0.5]


def test_several_failures_are_one_exception_group(local: None) -> None:
    """What needs a failed member is not run, and is no failure of its own."""
    with pytest.raises(Exception, match="4 tasks of the group 'sweep' have failed") as caught, jt.TaskGroup("sweep"):
        jt.remote(double).map(jt.remote(divide).map([0, 0]))
    assert [type(error).__name__ for error in caught.value.exceptions] == ["TaskError(ZeroDivisionError)"] * 2  # type: ignore[attr-defined]


def test_a_cancelled_group_runs_no_further_members(local: None) -> None:
    """Nor do inner groups; hooks are called before the block is left, and nothing is raised."""
    ran: list[Any] = []
    with jt.TaskGroup("sweep", on_cancellation=[lambda group: ran.append(group.state)]) as group:
        first = jt.remote(ran.append).remote(1)
        group.cancel(reason="enough")
        rest = jt.remote(ran.append).map([2, 3])
    assert ran == [1, "cancelled"]
    assert jt.get(first) is None
    for ref in rest:
        with pytest.raises(jt.exceptions.TaskCancelledError, match="before it started") as caught:
            jt.get(ref)
        assert caught.value.source == "group"
    assert [task["state"] for task in group.tasks] == ["completed"]


def test_fail_fast_stops_at_the_first_failure(local: None) -> None:
    ran: list[Any] = []

    def note(x: Any) -> None:
        ran.append(x)
        1 / x

    with pytest.raises(ZeroDivisionError), jt.TaskGroup("sweep", fail_fast=True) as group:
        jt.remote(note).map([1, 0, 2])
    assert ran == [1, 0]
    assert group.state == "failed"


def test_a_member_that_cancels_its_own_group_still_ends_first(local: None) -> None:
    """The group is not final while a member runs, also in an `async with`."""
    seen: list[Any] = []

    def last() -> None:
        client = current_client()
        (record,) = client.request("groups")
        client.cancel(record["id"])
        seen.extend(each["state"] for each in client.request("groups"))

    async def block() -> None:
        async with group:
            jt.remote(last).remote()
            jt.remote(last).remote()

    group = jt.TaskGroup("sweep")
    asyncio.run(block())
    assert seen == ["cancelling"]
    assert group.state == "cancelled"


def test_the_stop_button_cancels_the_block_and_the_map(local: None) -> None:
    """1. the second call is interrupted; 2. KeyboardInterrupt comes out; 3. the third never begins."""
    ran: list[Any] = []

    def stop(x: int) -> None:
        ran.append(x)
        if x == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), jt.TaskGroup("sweep") as group:
        jt.remote(stop).map([1, 2, 3])
    assert ran == [1, 2]
    assert group.state == "cancelled"
    assert [task["state"] for task in group.tasks] == ["completed", "cancelled"]
    assert current_client().request("groups") == []


def test_map_and_starmap_as_with_workers(local: None) -> None:
    """Shared arguments, copies of items, the position of a bad one, before anything has run."""
    rows = [[1], [2]]
    assert jt.get(jt.remote(lambda x, y: x.append(y) or x).map(rows, y=5)) == [[1, 5], [2, 5]]
    assert rows == [[1], [2]]
    assert jt.get(jt.remote(divmod).starmap([(7, 2), (9, 4)])) == [(3, 1), (2, 1)]
    ran: list[Any] = []
    with pytest.raises(UnserializableError, match="item 1: "):
        jt.remote(ran.append).map([1, threading.Lock()])
    assert ran == []


def test_a_story_is_told(local: None) -> None:
    good, bad = jt.remote(double).remote(1), jt.remote(divide).remote(0)
    assert [chapter["step"] for chapter in good.story()] == ["submitted", "started", "returned"]
    assert [chapter["state"] for chapter in bad.story()] == ["pending", "running", "failed"]
    assert [chapter["step"] for chapter in jt.remote(double).remote(bad).story()] == ["submitted", "upstream failed"]


# -- %%remote ---------------------------------------------------------------------------------------------------------


def test_remote_cells_run_in_the_kernel(tmp_path: Path) -> None:
    """Same names, same refs, same errors as with workers; no process."""
    kernel = Kernel(tmp_path / "kernel")
    try:
        kernel.run(
            "%load_ext jupyter_tasks\nimport os, jupyter_tasks as jt\njt.init(local_mode=True)\nhere = os.getpid()"
        )
        cell = kernel.run("%%remote named -o out\nout = [os.getpid() == here]\nprint('shown')\nout * 2")
        assert cell.ok, cell.error
        assert cell.text() == "shown\n"
        assert kernel.run("jt.get([named, out])").result == "[[True, True], [True]]"
        kernel.run("data = [1]; alias = data")
        assert kernel.run("%%remote --wait\ndata.append(2); data").result == "[1, 2]"
        assert kernel.run("alias").result == "[1]"
        assert kernel.run("%%remote --wait -o '*'\ndata.append(2); new = len(data)").ok
        assert kernel.run("alias, new").result == "([1, 2], 2)"
        bad = kernel.run("%%remote bad -o data\ndata = None\n1 / 0")
        assert bad.reply["ename"] == "ZeroDivisionError"
        assert "----> 3 1 / 0" in bad.error
        assert "jupyter_tasks" not in bad.error
        assert kernel.run("data").result == "[1, 2]"
        assert "local mode" in kernel.run("%tasks debug bad").text("stderr")
        assert "bad" in kernel.run("%tasks").text()
        wrong = kernel.run("%%remote --cpus 1000\n1")
        assert "1000 CPU" in wrong.text("stderr")
        assert kernel.processes() == {kernel.pid}
    finally:
        kernel.close()


# -- thread tasks -------------------------------------------------------------------------------------------------


def test_thread_tasks_share_objects_here_too(local: None) -> None:
    """Nothing is copied; process tasks get copies of their values."""
    held: list[int] = []

    @jt.remote(executor="thread")
    def appends(to: list[int]) -> list[int]:
        to.append(1)
        return to

    @jt.remote
    def changes(to: list[int]) -> list[int]:
        to.append(2)
        return to

    ref = appends.remote(held)
    assert jt.get(ref) is held
    assert jt.get(changes.remote(ref)) == [1, 2]
    assert held == [1]
    assert jt.get(appends.remote(ref)) is held
    assert held == [1, 1]


def test_generators_and_errors_of_thread_tasks(local: None) -> None:
    lock = threading.Lock()

    @jt.remote(executor="thread")
    def makes() -> Any:
        yield lock

    @jt.remote(executor="thread", retry_exceptions=True, max_retries=1)
    def fails(tries: list[int]) -> None:
        tries.append(1)
        raise KeyError("x")

    (item,) = makes.remote()
    assert jt.get(item) is lock
    tries: list[int] = []
    with pytest.raises(KeyError):
        jt.get(fails.remote(tries))
    assert tries == [1, 1]


def test_a_thread_task_whose_need_has_failed_is_not_run(local: None) -> None:
    ran: list[int] = []

    @jt.remote
    def fails() -> None:
        raise ValueError("root")

    with pytest.raises(ValueError, match="root"):
        jt.get(jt.remote(executor="thread")(ran.append).remote(fails.remote()))
    assert ran == []
