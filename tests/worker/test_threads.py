"""How many threads BLAS and OpenMP use in a worker. Role: contract of worker/threads (docs/semantics.md, Threads).

Pools are stand-ins, except in the last tests, where a process of its own loads the real ones.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_tasks.worker import threads
from jupyter_tasks.worker.threads import KERNELS, Threads, wanted

NAMES = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA")


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has set anything; what a test sets goes with it."""
    copy = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name and "VECLIB" not in name}
    monkeypatch.setattr(os, "environ", copy)


class Pool:
    """Stands for a library's threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.told: list[int] = []

    def set(self, count: int) -> None:
        self.count = count
        self.told.append(count)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> dict[str, Pool]:
    """Libraries that are loaded, by threadpoolctl's names."""
    found: dict[str, Pool] = {}

    def find() -> list[Any]:
        return [threads._Pool(kind, kind, lambda pool=pool: pool.count, pool.set) for kind, pool in found.items()]

    monkeypatch.setattr(threads, "_find_pools", find)
    monkeypatch.setattr(threads, "USERS", ("os",))
    return found


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 1), ({"cpus": 2}, 2), ({"cpus": 2.5}, 2), ({"cpus": 0.5}, 1), ({"cpus": 0}, 1), ({"cpus": 8.0}, 8)],
)
def test_a_task_has_a_thread_for_each_processor_and_at_least_one(options: dict[str, Any], count: int) -> None:
    assert wanted(options, 1) == count


def test_a_cell_has_what_the_kernel_has_unless_it_says_otherwise() -> None:
    assert wanted({"gpus": 1}, KERNELS) == KERNELS
    assert wanted({"cpus": 1}, KERNELS) == 1


def test_what_is_loaded_later_reads_the_environment() -> None:
    limits = Threads()
    limits.limit(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    limits.limit(KERNELS)
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_users_variable_wins_over_everything(pools: dict[str, Pool]) -> None:
    """OMP_NUM_THREADS=4 when the session begins: all is left alone."""
    os.environ["OMP_NUM_THREADS"] = "4"
    pools["openblas"] = Pool(4)
    limits = Threads()
    limits.limit(1)
    limits.limit(KERNELS)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert pools["openblas"].told == []


def test_what_a_task_sets_wins_from_then_on(pools: dict[str, Pool]) -> None:
    pools["openblas"] = Pool(4)
    limits = Threads()
    limits.limit(1)
    os.environ["OMP_NUM_THREADS"] = "2"
    limits.limit(KERNELS)
    limits.limit(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert pools["openblas"].told == [1]


def test_a_variable_of_one_library_wins_for_that_library(pools: dict[str, Pool]) -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "4"
    pools.update(openblas=Pool(4), openmp=Pool(8), mkl=Pool(8))
    Threads().limit(2)
    assert {kind: pool.count for kind, pool in pools.items()} == {"openblas": 4, "openmp": 2, "mkl": 2}


def test_nothing_is_set_that_would_outdo_the_users_word_in_a_task() -> None:
    """OpenBLAS prefers OPENBLAS_NUM_THREADS to OMP_NUM_THREADS: set by us, it would beat what the task's code says."""
    Threads().limit(1)
    assert [name for name in NAMES if f"{name}_NUM_THREADS" in os.environ] == ["OMP"]


def test_pools_get_back_what_they_had(pools: dict[str, Pool]) -> None:
    pools.update(openblas=Pool(7), openmp=Pool(5))
    limits = Threads()
    for count in (1, 2, KERNELS):
        limits.limit(count)
    assert (pools["openblas"].told, pools["openmp"].told) == ([1, 2, 7], [1, 2, 5])


def test_a_pool_that_was_loaded_under_a_limit_gets_all_processors(
    pools: dict[str, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has never had the kernel's number; without a limit it would have taken this one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    limits = Threads()
    limits.limit(1)
    pools.update(openblas=Pool(1), blis=Pool(1))
    monkeypatch.setitem(sys.modules, "a_new_module", SimpleNamespace())  # what has loaded it
    limits.limit(KERNELS)
    assert (pools["openblas"].count, pools["blis"].count) == (6, 1)  # BLIS takes one unless told otherwise


def test_the_same_again_is_only_a_comparison(pools: dict[str, Pool]) -> None:
    pools["openblas"] = Pool(4)
    limits = Threads()
    limits.limit(2)
    limits.limit(2)
    assert pools["openblas"].told == [2]


def test_a_library_that_cannot_be_told_costs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Any]:
        raise OSError("no such library")

    monkeypatch.setattr(threads, "_find_pools", fail)
    monkeypatch.setattr(threads, "USERS", ("os",))
    limits = Threads()
    limits.limit(2)
    assert (limits.count, os.environ["OMP_NUM_THREADS"]) == (2, "2")


@pytest.mark.parametrize("name", ["torch", "numexpr"])
def test_libraries_that_threadpoolctl_does_not_know(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(8)
    module = SimpleNamespace(get_num_threads=lambda: pool.count, set_num_threads=pool.set)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(threads, "USERS", (name,))
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: SimpleNamespace(lib_controllers=[]))
    limits = Threads()
    limits.limit(2)
    assert pool.count == 2
    limits.limit(KERNELS)
    assert pool.count == 8


# -- the real ones ----------------------------------------------------------------------------------------------------


def run(program: Callable[[], None]) -> list[str]:
    """Runs the function's lines in a fresh interpreter; returns what it prints."""
    text = textwrap.dedent(inspect.getsource(program)) + "\nprogram()\n"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_helper_is_imported_only_for_what_is_loaded() -> None:
    """A worker in which nobody uses numpy pays nothing."""

    def program() -> None:
        import sys

        from jupyter_tasks.worker.threads import Threads

        limits = Threads()
        limits.limit(1)
        print("threadpoolctl" in sys.modules)
        import numpy  # noqa: F401

        print("threadpoolctl" in sys.modules)
        limits.limit(2)
        print("threadpoolctl" in sys.modules)

    assert run(program) == ["False", "False", "True"]


def test_real_pools_follow() -> None:
    """Loaded under a limit of one, raised to three, set back to the default, and limited again."""

    def program() -> None:
        import os

        from jupyter_tasks.worker.threads import KERNELS, Threads

        limits = Threads()
        limits.limit(1)
        import numpy  # noqa: F401
        from threadpoolctl import threadpool_info

        for count in (1, 3, KERNELS, 1):
            limits.limit(count)
            (found,) = {pool["num_threads"] for pool in threadpool_info()}
            print(found)
        print(len(os.sched_getaffinity(0)))

    *found, processors = run(program)
    assert found == ["1", "3", processors, "1"]
