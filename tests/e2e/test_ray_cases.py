"""What Ray's own tests ask of tasks, asked of us. Role: end to end.

Each test names the one of Ray's (below python/ray/tests) whose case it takes up; where other files here prove the case
already, it is not repeated. What we do differently on purpose stands in docs/coming-from-ray.md.
"""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ForceCancelledError,
    GetTimeoutError,
    TaskCancelledError,
    TaskError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 20.0
both = pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])


def wait_for(place: str) -> str:
    """A task that ends when the test says "go" there; says "in" before."""
    words.say(f"{place}/in")
    words.hear(f"{place}/go", 60)
    return "gone"


def text(value: Any) -> str:
    return str(value)


def get_first(refs: list[jt.ObjectRef]) -> Any:
    """Waits inside of a task for what it was given in a list."""
    return jt.get(refs[0])


def raised(ref: jt.ObjectRef) -> BaseException:
    with pytest.raises(jt.exceptions.JupyterTasksError) as caught:
        jt.get(ref, timeout=NET)
    return caught.value


@pytest.fixture
def one_cpu() -> Iterator[None]:
    jt.shutdown()
    jt.init(num_cpus=1)
    yield
    jt.shutdown()


@pytest.fixture
def ended_afterwards() -> Iterator[None]:
    """Workers keep the code that they have learned, and so what it reads."""
    yield
    jt.shutdown()


# -- cancel ---------------------------------------------------------------------------------------------------------------


def chain(place: str) -> list[jt.ObjectRef]:
    """Four tasks that wait in `get`, each for the one before, and the first for a fifth."""
    refs = [jt.remote(wait_for).options(num_cpus=0).remote(place)]
    for _ in range(4):
        refs.append(jt.remote(get_first).remote([refs[-1]]))
    words.hear(f"{place}/in")
    return refs


@both
def test_a_cancel_in_a_chain_is_raised_by_all_that_wait_for_it(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_cancel_chain, first half. The task it waited for itself, nobody's child, goes on."""
    root, *refs = chain(str(tmp_path))
    jt.cancel(refs[0], force=force)
    for ref in refs:
        assert isinstance(raised(ref), TaskCancelledError)
    with pytest.raises(GetTimeoutError):
        jt.get(root, timeout=0)
    words.say(tmp_path / "go")
    assert jt.get(root, timeout=NET) == "gone"


@both
def test_a_cancel_in_a_chain_leaves_those_before_it_alone(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_cancel_chain, second half."""
    root, *refs = chain(str(tmp_path))
    jt.cancel(refs[2], force=force)
    for ref in refs[2:]:
        assert isinstance(raised(ref), TaskCancelledError)
    for ref in (root, *refs[:2]):
        with pytest.raises(GetTimeoutError):
            jt.get(ref, timeout=0)
    words.say(tmp_path / "go")
    assert jt.get(refs[:2], timeout=NET) == ["gone", "gone"]


@both
def test_a_cancel_while_arguments_are_unpickled_keeps_the_task_from_running(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_cancel_during_arg_deser: the interrupt reaches that code, too."""

    def slowly(place: str) -> int:
        words.say(f"{place}/unpickling")
        words.hear(f"{place}/never", 60)
        return 5

    class Slow:
        def __reduce__(self) -> Any:
            return slowly, (str(tmp_path),)

    def task(argument: Any) -> None:
        words.mark(tmp_path / "ran")

    ref = jt.remote(task).remote(Slow())
    words.hear(tmp_path / "unpickling")
    jt.cancel(ref, force=force)
    assert isinstance(raised(ref), ForceCancelledError if force else TaskCancelledError)
    assert not words.said(tmp_path / "ran")
    assert jt.get([jt.remote(abs).remote(-i) for i in range(4)], timeout=NET) == [0, 1, 2, 3]


@both
def test_cancelling_dependents_leaves_what_they_wait_for_alone(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_cancel_multiple_dependents: of the head, all; of the dependents, only they."""
    head = jt.remote(wait_for).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    waiting = [jt.remote(get_first).remote([head]) for _ in range(3)]
    arguments = [jt.remote(text).remote(head) for _ in range(3)]
    for ref in (*waiting, *arguments):
        jt.cancel(ref, force=force)
    for ref in (*waiting, *arguments):
        assert isinstance(raised(ref), TaskCancelledError)
    others = [jt.remote(get_first).remote([head]), jt.remote(text).remote(head)]
    words.say(tmp_path / "go")
    assert jt.get([head, *others], timeout=NET) == ["gone"] * 3

    place = tmp_path / "again"
    place.mkdir()
    head = jt.remote(wait_for).remote(str(place))
    words.hear(place / "in")
    others = [jt.remote(get_first).remote([head]), jt.remote(text).remote(head)]
    jt.cancel(head, force=force)
    for ref in (head, *others):
        assert isinstance(raised(ref), TaskCancelledError)


@both
def test_one_cpu_is_enough_for_chains_and_cancels(one_cpu: None, force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_single_cpu_cancel."""
    refs = chain(str(tmp_path))
    independent = jt.remote(get_first).remote([refs[0]])
    jt.cancel(refs[3], force=force)
    assert isinstance(raised(refs[3]), TaskCancelledError)
    jt.cancel(refs[1], force=force)
    for ref in refs[1:]:
        assert isinstance(raised(ref), TaskCancelledError)
    words.say(tmp_path / "go")
    assert jt.get([refs[0], independent], timeout=NET) == ["gone", "gone"]


@both
def test_a_task_with_one_cancelled_argument_raises_though_the_other_comes(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_comprehensive."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    a, b = (jt.remote(wait_for).remote(str(place)) for place in places)
    both_of_them = jt.remote(lambda a, b: a + b).remote(a, b)
    for place in places:
        words.hear(place / "in")
    jt.cancel(a, force=force)
    assert isinstance(raised(both_of_them), TaskCancelledError)
    words.say(places[1] / "go")
    assert jt.get(b, timeout=NET) == "gone"


@both
def test_a_hundred_queued_tasks_of_which_many_are_cancelled(one_cpu: None, force: bool) -> None:
    """test_cancel.py::test_stress, which Ray runs with force only, since without it is flaky there."""
    rnd = random.Random(5)

    def endless(endlessly: bool) -> str:
        while endlessly:
            time.sleep(0.01)
        return "done"

    task = jt.remote(endless)
    first = task.remote(True)
    kinds = [rnd.random() < 0.5 for _ in range(100)]
    refs = [task.remote(kind) for kind in kinds]
    cancelled = {ref for ref in refs if rnd.random() < 0.5} | {first}
    for ref in cancelled:
        jt.cancel(ref, force=force)
    for ref, kind in zip(refs, kinds, strict=True):
        if kind and ref not in cancelled:
            jt.cancel(ref, force=force)
            cancelled.add(ref)
    for ref in (first, *refs):
        if ref in cancelled:
            assert isinstance(raised(ref), TaskCancelledError)
        else:
            assert jt.get(ref, timeout=NET) == "done"


@both
def test_cancels_among_five_thousand_that_wait_for_one(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_fast: each raises the cancel or has its value; whoever was not cancelled has its value."""
    rnd = random.Random(6)
    quick = [jt.remote(abs).remote(-1) for _ in range(100)]
    for ref in quick:
        jt.cancel(ref, force=force)
    head = jt.remote(wait_for).remote(str(tmp_path))
    task = jt.remote(len)
    refs = [task.remote(head) for _ in range(5000)]
    cancelled = {ref for ref in refs if rnd.random() < 0.05}
    for ref in cancelled:
        jt.cancel(ref, force=force)
    words.say(tmp_path / "go")
    for ref in refs:
        if ref in cancelled:
            assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get([ref for ref in refs if ref not in cancelled], timeout=NET) == [4] * (5000 - len(cancelled))
    for ref in quick:
        try:
            assert jt.get(ref, timeout=NET) == 1
        except TaskCancelledError:
            pass


@both
def test_a_ref_that_came_out_of_a_task_can_be_cancelled(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_remote_cancel: who submitted it is over; the kernel, which did not, cancels it."""

    def outer(place: str) -> list[jt.ObjectRef]:
        return [jt.remote(wait_for).remote(place)]

    (inner,) = jt.get(jt.remote(outer).remote(str(tmp_path)), timeout=NET)
    words.hear(tmp_path / "in")
    jt.cancel(inner, force=force)
    assert isinstance(raised(inner), ForceCancelledError if force else TaskCancelledError)


def test_a_task_can_cancel_another(tmp_path: Path) -> None:
    """test_cancel.py::test_recursive_cancel_actor_task, with a task in the actor's place."""

    def cancels(refs: list[jt.ObjectRef]) -> None:
        jt.cancel(refs[0])

    ref = jt.remote(wait_for).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    jt.get(jt.remote(cancels).remote([ref]), timeout=NET)
    assert isinstance(raised(ref), TaskCancelledError)


@both
def test_the_slots_of_children_are_free_after_a_recursive_cancel(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_recursive_cancel: a task that wants all CPUs then runs."""

    def outer(place: str) -> None:
        kept = [jt.remote(wait_for).remote(place)]
        time.sleep(60)
        del kept

    ref = jt.remote(outer).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    everything = jt.remote(abs).options(num_cpus=2).remote(-300)
    with pytest.raises(GetTimeoutError):
        jt.get(everything, timeout=0)
    jt.cancel(ref, force=force)
    assert isinstance(raised(ref), TaskCancelledError)
    assert jt.get(everything, timeout=NET) == 300


# -- retries and ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("how", ["exit", "sys.exit", "segfault", "kill"])
def test_every_way_to_die_is_named_and_counts_as_a_crash(how: str, max_retries: int, tmp_path: Path) -> None:
    """test_failure.py::test_worker_dying, test_failure_4.py::test_retry_system_level_error."""

    def dies(how: str) -> None:
        words.mark(tmp_path / "ran")
        if how == "exit":
            os._exit(7)
        if how == "sys.exit":
            sys.exit(7)
        os.kill(os.getpid(), signal.SIGSEGV if how == "segfault" else signal.SIGKILL)

    error = raised(jt.remote(dies).options(max_retries=max_retries).remote(how))
    assert isinstance(error, WorkerCrashedError)
    name = {"segfault": "SIGSEGV", "kill": "SIGKILL"}.get(how)
    assert (error.signal_name, error.exit_code) == (name, None if name else 7)
    assert (name or "exit code 7") in str(error)
    assert words.marks(tmp_path / "ran") == 1 + max_retries


@pytest.mark.parametrize("how", ["crash", "error"])
def test_minus_one_retries_without_end(how: str, tmp_path: Path) -> None:
    """test_failure_4.py: max_retries=-1 goes on until it works."""

    def task() -> int:
        words.mark(tmp_path / "ran")
        if words.marks(tmp_path / "ran") < 9:
            if how == "crash":
                os._exit(1)
            raise ValueError("not yet")
        return 9

    assert jt.get(jt.remote(task).options(max_retries=-1, retry_exceptions=True).remote(), timeout=NET) == 9
    for bad in (-2, -1.0, True):
        with pytest.raises(ValueError, match="max_retries"):
            jt.remote(max_retries=bad)


@both
def test_endless_retries_end_with_a_cancel(force: bool, tmp_path: Path) -> None:
    """test_cancel.py::test_cancel_during_pending_arg with max_retries=-1: no retry after a cancel, at any moment."""

    def task() -> NoReturn:
        words.mark(tmp_path / "ran")
        os._exit(1)

    refs = [jt.remote(task).options(max_retries=-1).remote() for _ in range(3)]
    wait_until(lambda: words.marks(tmp_path / "ran") >= 5, "some attempts")
    for ref in refs:
        jt.cancel(ref, force=force)
    for ref in refs:  # what dies by itself at that moment has crashed, and is not run again either
        assert isinstance(raised(ref), TaskCancelledError | WorkerCrashedError)
    ran = words.marks(tmp_path / "ran")
    jt.get([jt.remote(abs).remote(-1) for _ in range(20)], timeout=NET)
    assert words.marks(tmp_path / "ran") == ran


class Flaky(ValueError):
    """An error of the notebook's own, below one that is retried."""


class Other(Exception):
    pass


def test_only_the_types_that_were_named_are_retried_with_those_below_them(tmp_path: Path) -> None:
    """test_failure_4.py::test_retry_application_level_error*: subclasses, own types, and an error that changes."""

    def task() -> NoReturn:
        words.mark(tmp_path / "ran")
        raise Flaky("once more") if words.marks(tmp_path / "ran") < 3 else Other("enough")

    error = raised(jt.remote(task).options(max_retries=-1, retry_exceptions=[ValueError]).remote())
    assert isinstance(error, Other)
    assert words.marks(tmp_path / "ran") == 3


def test_a_retried_error_that_is_raised_to_the_end_is_the_last_one(tmp_path: Path) -> None:
    """test_failure_4.py::test_retry_application_level_error: after max_retries the error itself is raised."""

    def task() -> NoReturn:
        words.mark(tmp_path / "ran")
        raise Flaky(words.marks(tmp_path / "ran"))

    error = raised(jt.remote(task).options(max_retries=2, retry_exceptions=[Flaky]).remote())
    assert isinstance(error, Flaky)
    assert error.args == (3,)


@pytest.mark.parametrize("bad", [[5], ValueError, "ValueError", ["ValueError"], [Flaky, None], 1], ids=str)
def test_retry_exceptions_wants_types(bad: Any) -> None:
    """test_basic.py::test_invalid_arguments."""
    with pytest.raises(TypeError, match="retry_exceptions must be True, False or a list of exception types"):
        jt.remote(retry_exceptions=bad)


def test_an_error_of_any_kind_of_exception_arrives() -> None:
    """test_failure.py::test_baseexception_task: what is no Exception, too, and the worker goes on."""

    class Own(BaseException):
        pass

    def fail(kind: Any) -> NoReturn:
        raise kind("b")

    for kind in (Own, GeneratorExit, StopIteration, StopAsyncIteration):
        error = raised(jt.remote(fail).remote(kind))
        assert isinstance(error, TaskError)
        assert kind.__name__ in f"{type(error).__name__} {error}"


def test_an_argument_or_result_that_fails_to_load_is_an_error_of_the_task_or_of_get() -> None:
    """test_failure.py::test_failed_unpickle: nobody hangs, and the worker goes on."""

    def fails() -> NoReturn:
        raise RuntimeError("cannot be loaded")

    class Bad:
        def __reduce__(self) -> Any:
            return fails, ()

    with pytest.raises(RuntimeError, match="cannot be loaded"):
        jt.get(jt.remote(text).remote(Bad()), timeout=NET)
    bad = jt.remote(lambda: Bad()).remote()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot be loaded"):
            jt.get(bad, timeout=NET)
    assert jt.get(jt.remote(abs).remote(-1), timeout=NET) == 1


def test_a_diamond_keeps_the_root_cause() -> None:
    """test_failure.py::test_exception_chain and test_basic_2.py: by both ways it is the first error, with its lines."""

    def root() -> NoReturn:
        raise Flaky("the root")

    def join(*values: Any) -> Any:
        return values

    top = jt.remote(root).remote()
    sides = [jt.remote(join).remote(top), jt.remote(join).remote(2, top)]
    bottom = jt.remote(join).remote(*sides)
    nested = jt.remote(get_first).remote([bottom])
    for ref in (*sides, bottom, nested):
        error = raised(ref)
        assert isinstance(error, Flaky)
        assert str(error) == "the root"
        assert "in root" in "".join(str(error.__cause__))


# -- nesting and dependencies --------------------------------------------------------------------------------------------------


def test_tasks_nest_thirty_deep_with_two_cpus() -> None:
    """test_nested_task.py::test_task_spawn_task, deeper."""

    @jt.remote
    def down(depth: int) -> int:
        return 0 if depth == 0 else 1 + jt.get(down.remote(depth - 1))

    assert jt.get(down.remote(30), timeout=60) == 30


def test_every_kind_of_waiting_gives_its_slot_back(one_cpu: None) -> None:
    """test_basic.py::test_multiple_waits_and_gets: get, wait, as_completed and await, nested, on one CPU."""

    @jt.remote
    def child(i: int) -> int:
        return i

    def by_wait() -> Any:
        refs = [child.remote(i) for i in range(3)]
        return jt.get(jt.wait(refs, num_returns=3)[0])

    def by_as_completed() -> Any:
        return sorted(jt.get(ref) for ref in jt.as_completed([child.remote(i) for i in range(3)]))

    async def by_await() -> Any:
        return [await child.remote(i) for i in range(3)]

    refs = [jt.remote(by).remote() for by in (by_wait, by_as_completed, by_await)]
    assert jt.get(refs, timeout=NET) == [[0, 1, 2]] * 3


def test_a_chain_of_a_hundred_dependencies() -> None:
    """test_basic_2.py::test_call_chain."""
    add = jt.remote(lambda x: x + 1)
    x: Any = 0
    for _ in range(100):
        x = add.remote(x)
    assert jt.get(x, timeout=NET) == 100


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("inside", [False, True], ids=["argument", "inside"])
def test_values_go_from_task_to_task(large: bool, inside: bool) -> None:
    """test_basic_2.py::test_call_matrix: small and large, as an argument and inside of one."""

    def echo(x: Any) -> Any:
        return jt.get(x[0]) if isinstance(x, list) else x

    made = jt.remote(lambda size: bytes(size)).remote(10**6 if large else 10)
    assert len(jt.get(jt.remote(echo).remote([made] if inside else made), timeout=NET)) == (10**6 if large else 10)


def test_threads_of_the_program_submit_and_wait_at_once() -> None:
    """test_basic.py::test_multithreading: in the program, and in a task."""

    def many() -> int:
        task, problems = jt.remote(abs), []

        def work() -> None:
            for i in range(20):
                ref = task.remote(-i)
                if jt.wait([ref], timeout=NET)[0] != [ref] or jt.get(ref, timeout=NET) != i:
                    problems.append(i)

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(problems)

    assert many() == 0
    assert jt.get(jt.remote(many).options(num_cpus=0).remote(), timeout=NET) == 0


# -- functions -----------------------------------------------------------------------------------------------------------------


def test_a_function_may_use_what_is_defined_after_it_and_a_new_definition_holds() -> None:
    """test_basic.py::test_nested_functions, test_basic_2.py::test_redefining_remote_functions."""
    space: dict[str, Any] = {"jt": jt}
    exec("@jt.remote\ndef f(x): return g(x), jt.get(h.remote())", space)
    exec("def g(x): return x + 1\n@jt.remote\ndef h(): return 2", space)
    assert jt.get(space["f"].remote(1)) == (2, 2)
    exec("@jt.remote\ndef f(x): return missing(x)", space)
    with pytest.raises(NameError, match="missing"):
        jt.get(space["f"].remote(1))
    exec("def missing(x): return x\n@jt.remote\ndef f(x): return missing(x)", space)
    assert jt.get(space["f"].remote(1)) == 1


def test_any_kind_of_arguments() -> None:
    """test_basic.py::test_keyword_args, ::test_variable_number_of_args; refs among them by any way."""

    def task(a: Any, /, b: Any, *rest: Any, c: Any = 3, **more: Any) -> Any:
        return a, b, rest, c, more

    ref = jt.put("ref")
    task_ = jt.remote(task)
    assert jt.get(task_.remote(1, 2)) == (1, 2, (), 3, {})
    assert jt.get(task_.remote(1, ref, ref, 5, c=ref, d=ref, a=6)) == (
        1,
        "ref",
        ("ref", 5),
        "ref",
        {"d": "ref", "a": 6},
    )
    for args, kwargs in (((), {}), ((1,), {}), ((1, 2), {"b": 2})):
        with pytest.raises(TypeError, match="task"):
            task_.remote(*args, **kwargs)


@pytest.mark.parametrize(
    "option",
    ["runtime_env", "scheduling_strategy", "max_calls", "label_selector", "accelerator_type", "object_store_memory",
     "concurrency_groups", "placement_group", "max_restarts", "num_return_vals"],
)  # fmt: skip
def test_options_of_rays_are_refused_with_what_to_do(option: str) -> None:
    """test_basic.py::test_invalid_arguments: in the decorator and in options(); an option of nobody's is refused, too."""
    with pytest.raises(TypeError, match=rf"no option '{option}'. (Leave it out|It is|All)") as caught:
        jt.remote(**{option: 1})(abs)
    assert re.search(r"Options are: .*grace, .*max_retries", str(caught.value))
    with pytest.raises(TypeError, match=f"no option '{option}'"):
        jt.remote(abs).options(**{option: None})
    with pytest.raises(TypeError, match="Unknown option 'nobodys'"):
        jt.remote(abs).options(nobodys=1)


# -- references ----------------------------------------------------------------------------------------------------------------


def test_copies_of_a_ref_are_the_ref() -> None:
    """test_reference_counting.py::test_local_refcounts."""
    ref = jt.put(5)
    assert copy.copy(ref) is copy.deepcopy(ref) is ref
    twice = [copy.deepcopy(ref)]
    del ref
    assert jt.get(twice[0]) == 5
    assert jt.get(cloudpickle.loads(cloudpickle.dumps(twice[0]))) == 5


def test_a_ref_in_a_functions_code_lives_as_long_as_its_tasks(ended_afterwards: None, tmp_path: Path) -> None:
    """test_reference_counting.py::test_captured_object_ref: dropped by all others, also for workers that come later."""
    captured = jt.put("kept")
    blocker = jt.remote(wait_for).options(num_cpus=2).remote(str(tmp_path))

    def make(captured: jt.ObjectRef) -> Any:
        return jt.remote(lambda: jt.get(captured))

    task = make(captured)
    del captured
    waiting = [task.remote() for _ in range(3)]  # no worker has seen the code yet
    del task
    words.say(tmp_path / "go")
    assert jt.get([blocker, *waiting], timeout=NET) == ["gone", "kept", "kept", "kept"]


def test_a_new_worker_finds_what_a_function_reads_though_its_name_was_bound_anew(ended_afterwards: None) -> None:
    """The same for a global that is bound anew after the first call, as cells do that are run again."""
    space: dict[str, Any] = {"jt": jt, "data": jt.put("first")}
    exec("@jt.remote\ndef f(): return jt.get(data)", space)
    assert jt.get(space["f"].remote()) == "first"
    space["data"] = jt.put("second")
    for pid in status()["workers"]:
        os.kill(pid, signal.SIGKILL)
    assert jt.get([space["f"].remote() for _ in range(4)], timeout=NET) == ["first"] * 4


def test_a_function_that_reads_a_ref_of_a_session_that_ended_says_so() -> None:
    """Ids begin anew in each session: it must never read somebody else's value."""
    old = jt.put("old")
    task = jt.remote(lambda: jt.get(old))
    jt.shutdown()
    jt.init(num_cpus=2)
    other = jt.put("other")
    with pytest.raises(jt.exceptions.ObjectLostError, match="session that has ended"):
        task.remote()
    del other


def test_refs_in_refs_are_kept_to_any_depth() -> None:
    """test_reference_counting_2.py::test_recursively_nest_ids."""

    @jt.remote
    def unwrap(refs: list[jt.ObjectRef], depth: int) -> Any:
        inner = jt.get(refs[0])
        return inner if depth == 0 else jt.get(unwrap.remote(inner, depth - 1))

    ref = jt.put("core")
    for _ in range(5):
        ref = jt.put([ref])
    assert jt.get(unwrap.remote([ref], 5), timeout=NET) == "core"


def test_many_trees_of_tasks_need_few_processes() -> None:
    """Children go before further roots (Ray's test_fair_queueing, in test_basic_5): otherwise a process for each root."""

    @jt.remote
    def leaf() -> int:
        return 1

    @jt.remote
    def middle() -> int:
        return int(jt.get(leaf.remote()))

    @jt.remote
    def root() -> int:
        return int(jt.get(middle.remote()))

    assert sum(jt.get([root.remote() for _ in range(60)])) == 60
    assert len(status()["workers"]) <= 12
