"""End to end: the joblib backend "jupyter_tasks", by itself and under scikit-learn, in programs, cells and kernels.

Promises: docs/semantics.md, joblib.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import words
from conftest import NET, wait_until
from kernels import Kernel

import jupyter_tasks as jt
from jupyter_tasks.exceptions import TaskCancelledError, TaskError

joblib = pytest.importorskip("joblib")
delayed, Parallel = joblib.delayed, joblib.Parallel

LONG = 30.0


@pytest.fixture
def backend(session: None) -> Iterator[None]:
    jt.register_joblib()
    jt.register_joblib()  # twice is once
    with joblib.parallel_config(backend="jupyter_tasks"):
        yield


def sleep(path: Path, seconds: float = LONG) -> None:
    words.say(path, os.getpid())
    time.sleep(seconds)


def fail_when(path: Path) -> None:
    words.hear(path, 60)
    raise ValueError("one of them")


def live() -> list[str]:
    return [task["name"] for task in jt.tasks() if task["state"] in ("pending", "running", "cancelling")]


# -- calls -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
def test_calls_run_in_our_workers() -> None:
    """In order, in all batch sizes; the default is all CPUs."""
    for options in ({}, {"n_jobs": 2}, {"n_jobs": -1}, {"batch_size": 3}, {"pre_dispatch": "all"}):
        assert Parallel(**options)(delayed(pow)(i, 2) for i in range(20)) == [i * i for i in range(20)]
    pids = set(Parallel()(delayed(os.getpid)() for _ in range(4)))
    assert os.getpid() not in pids
    with Parallel() as parallel:
        for _ in range(2):
            assert parallel(delayed(abs)(-i) for i in range(5)) == list(range(5))


@pytest.mark.usefixtures("backend")
def test_effective_n_jobs_are_the_sessions_cpus() -> None:
    """More than there are CPUs never run; tasks with several CPUs are fewer."""
    asked = {n: joblib.effective_n_jobs(n) for n in (1, 2, 3, -1, -2, -9)}
    assert asked == {1: 1, 2: 2, 3: 2, -1: 2, -2: 1, -9: 1}
    with pytest.raises(ValueError, match="no meaning"):
        joblib.effective_n_jobs(0)
    with joblib.parallel_config(backend="jupyter_tasks", num_cpus=2):
        assert joblib.effective_n_jobs(-1) == 1


def test_effective_n_jobs_starts_no_session(module_session: None) -> None:
    jt.shutdown()
    jt.register_joblib()
    with joblib.parallel_config(backend="jupyter_tasks"):
        assert joblib.effective_n_jobs(-1) >= 2
    assert not jt.is_initialized()


@pytest.mark.usefixtures("session")
def test_n_jobs_bounds_what_runs() -> None:
    """One job of two CPUs' worth is no task at all; options of the backend are those of an executor."""
    jt.register_joblib()
    with joblib.parallel_config(backend="jupyter_tasks"):
        assert Parallel(n_jobs=1)(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
    with pytest.raises(ValueError, match="timeout"), joblib.parallel_config(backend="jupyter_tasks", timeout=-1):
        pass


@pytest.mark.usefixtures("backend")
def test_a_generator_that_feeds_another(tmp_path: Path) -> None:
    """It is read where a wait for its results does not keep them from coming, and has an executor of its own.

    1. The outer call has taken what it wants ahead; 2. one of its calls is over, and the next item is read;
    3. only then may the inner call for that item end.
    """
    ahead = 4

    def items(results: Iterator[int]) -> Iterator[Any]:
        for i in range(10):
            if i >= ahead:
                words.say(tmp_path / "reading")
            yield delayed(pow)(next(results), 2)

    def number(i: int) -> int:
        if i >= ahead:
            words.hear(tmp_path / "reading", 60)
        return i

    with joblib.parallel_config(backend="jupyter_tasks", num_cpus=0):  # those that wait take no slot
        inner = Parallel(return_as="generator", batch_size=1, pre_dispatch="all")(delayed(number)(i) for i in range(10))
    outer = Parallel(return_as="generator", batch_size=1, pre_dispatch=ahead)(items(inner))
    assert list(outer) == [i * i for i in range(10)]
    inner = Parallel(return_as="generator")(delayed(abs)(-i) for i in range(20))
    assert list(Parallel(return_as="generator")(delayed(pow)(x, 2) for x in inner)) == [i * i for i in range(20)]


@pytest.mark.skipif(joblib.__version__ < "1.4", reason="this joblib has no unordered generators")
@pytest.mark.usefixtures("backend")
def test_unordered_generators_yield_as_results_come(tmp_path: Path) -> None:
    calls = [delayed(words.hear)(tmp_path / "go"), delayed(abs)(-1)]
    results = Parallel(return_as="generator_unordered", batch_size=1)(calls)
    assert next(results) == 1
    words.say(tmp_path / "go", "gone")
    assert next(results) == "gone"


@pytest.mark.usefixtures("backend")
def test_a_closed_generator_stops_what_runs(tmp_path: Path) -> None:
    results = Parallel(return_as="generator", batch_size=1)(
        delayed(sleep)(tmp_path / f"in{i}", 0 if i == 0 else LONG) for i in range(5)
    )
    next(results)
    words.hear(tmp_path / "in1")
    with pytest.warns(UserWarning, match="cancelled"):
        results.close()
    wait_until(lambda: not live(), "nothing of it runs")
    assert not words.said(tmp_path / "in4")


@pytest.mark.usefixtures("backend")
def test_an_error_arrives_as_itself_and_stops_the_others(tmp_path: Path) -> None:
    """Its type, its text, the worker's traceback; what runs is interrupted, and no more is dispatched."""

    def run() -> None:
        Parallel(batch_size=1)(
            [delayed(sleep)(tmp_path / "in"), delayed(fail_when)(tmp_path / "in")]
            + [delayed(words.mark)(tmp_path / "ran") for _ in range(20)]
        )

    with pytest.raises(ValueError, match="one of them") as caught:
        run()
    assert isinstance(caught.value, TaskError)
    assert "in fail_when" in str(caught.value.__cause__)
    wait_until(lambda: not live(), "nothing of it runs")
    assert words.marks(tmp_path / "ran") <= 2  # those that joblib had dispatched ahead
    assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def stubborn(path: Path) -> None:
    words.say(path, os.getpid())
    while True:
        try:
            time.sleep(LONG)
        except KeyboardInterrupt:
            pass


@pytest.mark.usefixtures("session")
def test_what_does_not_stop_by_an_interrupt_is_ended(tmp_path: Path) -> None:
    jt.register_joblib()
    with joblib.parallel_config(backend="jupyter_tasks", grace=0.05), pytest.raises(ValueError, match="one of them"):
        Parallel(batch_size=1)([delayed(stubborn)(tmp_path / "in"), delayed(fail_when)(tmp_path / "in")])
    pid = int(words.hear(tmp_path / "in"))
    wait_until(lambda: not words.alive(pid), "its process is gone")
    wait_until(lambda: not live(), "nothing of it runs")


@pytest.mark.usefixtures("backend")
def test_parallels_timeout(tmp_path: Path) -> None:
    with pytest.raises(joblib.parallel.TimeoutError):
        Parallel(timeout=0.2)(delayed(sleep)(tmp_path / f"in{i}") for i in range(2))
    wait_until(lambda: not live(), "nothing of it runs")


@pytest.mark.usefixtures("backend")
def test_a_call_that_is_cancelled_from_outside(tmp_path: Path) -> None:
    """`%tasks cancel`, say: Parallel raises the cancel and stops the rest."""
    results = Parallel(return_as="generator", batch_size=1)(delayed(sleep)(tmp_path / f"in{i}") for i in range(2))
    words.hear(tmp_path / "in0")
    words.hear(tmp_path / "in1")
    from jupyter_tasks.session import current_client

    current_client().cancel(jt.tasks()[0]["id"])
    with pytest.raises(TaskCancelledError):
        next(results)
    del results
    wait_until(lambda: not live(), "nothing of it runs")


# -- nesting ----------------------------------------------------------------------------------------------------------------


def inner(n: int, **options: Any) -> tuple[list[int], str]:
    """A call of Parallel in a call of Parallel."""
    parallel = Parallel(n_jobs=2, **options)
    pids = parallel(delayed(os.getpid)() for _ in range(n))
    return [pid for pid in pids if pid != os.getpid()], type(parallel._backend).__name__


@pytest.mark.usefixtures("backend")
def test_parallel_inside_of_parallel_is_sequential() -> None:
    """Each task has one CPU: no process and no thread beside it."""
    assert Parallel()(delayed(inner)(3) for _ in range(4)) == [([], "SequentialBackend")] * 4


@pytest.mark.usefixtures("session")
def test_with_several_cpus_the_inner_one_has_threads() -> None:
    jt.shutdown()
    jt.init(num_cpus=4)
    jt.register_joblib()
    with joblib.parallel_config(backend="jupyter_tasks", num_cpus=2):
        assert Parallel()(delayed(inner)(3) for _ in range(2)) == [([], "ThreadingBackend")] * 2
    jt.shutdown()


@pytest.mark.usefixtures("backend")
def test_the_same_backend_inside_of_a_call_does_not_deadlock() -> None:
    """Asked for by name, it makes tasks; while the outer ones wait, their slots are free for them."""

    def outer() -> int:
        jt.register_joblib()
        others, name = inner(3, backend="jupyter_tasks")
        assert name == "TasksBackend"
        return len(others)

    assert Parallel()(delayed(outer)() for _ in range(4)) == [3] * 4


# -- large arguments ------------------------------------------------------------------------------------------------------------


def total(array: Any, place: int) -> tuple[float, bool]:
    return float(array[place]), array.flags.writeable


@pytest.mark.usefixtures("backend")
def test_a_large_array_is_sent_once_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By shared memory, read-only; and anew for the next call."""
    from jupyter_tasks.client import Client

    puts: list[int] = []
    real = Client.put

    def put(self: Client, value: Any) -> jt.ObjectRef:
        puts.append(value.nbytes)
        return real(self, value)

    monkeypatch.setattr(Client, "put", put)
    array = numpy.arange(1_000_000.0)
    for _ in range(2):
        results = Parallel(batch_size=2)(delayed(total)(array, place=i) for i in range(10))
        assert results == [(float(i), False) for i in range(10)]
        array += 0
    assert puts == [array.nbytes] * 2
    with joblib.parallel_config(backend="jupyter_tasks", max_nbytes=None):
        Parallel()(delayed(total)(array, 0) for _ in range(2))
    assert len(puts) == 2


@pytest.mark.usefixtures("backend")
def test_scikit_learn() -> None:
    """A grid search with its estimators, tables and errors."""
    pandas = pytest.importorskip("pandas")
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    random = numpy.random.default_rng(0)
    x = pandas.DataFrame(random.normal(size=(20_000, 10)))
    y = (x[0] > 0).astype(int)
    search = GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2]}, cv=2, n_jobs=4)
    search.fit(x, y)
    assert search.best_score_ > 0.9
    names = {task["name"] for task in jt.tasks()}
    assert any("DecisionTreeClassifier" in name for name in names), names
    with pytest.raises(ValueError, match="max_depth"):
        cross_val_score(DecisionTreeClassifier(max_depth=-1), x[:100], y[:100], n_jobs=2, error_score="raise")


# -- kernels --------------------------------------------------------------------------------------------------------------------


FIRST_CELL = """
import joblib
from joblib import Parallel, delayed
jt.init(num_cpus=2)
jt.register_joblib()

def sleep(path, seconds=100):
    pathlib.Path(path).write_text('in')
    time.sleep(seconds)
"""


@pytest.mark.slow
def test_the_stop_button_leaves_nothing_of_a_parallel(kernel: Kernel) -> None:
    """The kernel is free at once; what ran is stopped, what waited never runs, also in a `with Parallel()`."""
    for i, code in enumerate(
        (
            "Parallel()(delayed(sleep)(f'{i}-{{j}}') for j in range(50))",
            "with Parallel() as parallel: parallel(delayed(sleep)(f'{i}-{{j}}') for j in range(50))",
        )
    ):
        cell = kernel.start(f"with joblib.parallel_config(backend='jupyter_tasks'):\n    {code.format(i=i)}")
        for j in range(2):
            words.hear(kernel.directory / f"{i}-{j}")
        kernel.interrupt()
        kernel.finish(cell)
        assert cell.reply["ename"] == "KeyboardInterrupt"
        look = "wanted = ('pending', 'running', 'cancelling')\n[t['name'] for t in jt.tasks() if t['state'] in wanted]"
        wait_until(lambda look=look: kernel.run(look).result == "[]", "nothing runs", NET)
        assert not (kernel.directory / f"{i}-2").exists()
    assert kernel.run("with joblib.parallel_config(backend='jupyter_tasks'): print(Parallel()(delayed(abs)(-i) for i in range(3)))").text() == "[0, 1, 2]\n"  # fmt: skip


@pytest.mark.slow
def test_load_ext_registers_it_if_joblib_is_there(tmp_path: Path) -> None:
    """And imports no joblib where there is none."""
    kernel = Kernel(tmp_path / "kernel")
    try:
        assert kernel.run("import sys\n%load_ext jupyter_tasks\n'joblib' in sys.modules").result == "False"
        code = "%unload_ext jupyter_tasks\nimport joblib\n%load_ext jupyter_tasks\n'jupyter_tasks' in joblib.parallel.BACKENDS"
        assert kernel.run(code).result == "True"
    finally:
        kernel.close()


@pytest.mark.slow
def test_a_cell_in_a_worker_shows_a_bar(kernel: Kernel) -> None:
    """With the function's name, and the number of calls as soon as it is known; its tasks are its children."""
    cell = kernel.run(
        "%%remote fits\n"
        "import joblib, time\n"
        "jt.register_joblib()\n"
        "with joblib.parallel_config(backend='jupyter_tasks'):\n"
        "    total = sum(joblib.Parallel(batch_size=1)(joblib.delayed(pow)(i, 2) for i in range(30)))\n"
        "total"
    )
    kernel.read_state(cell, "completed")
    assert kernel.run("jt.get(fits)").result == str(sum(i * i for i in range(30)))
    bars = [bar for board in cell.boards for bar in board.get("progress", board.get("bars", []))]
    assert any(bar["label"] == "pow" for bar in bars), cell.boards[-1]
    assert (bars[-1]["n"], bars[-1]["total"], bars[-1]["done"]) == (30, 30, True)
