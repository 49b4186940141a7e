"""GPUs are given out as devices; BLAS and OpenMP use the threads that a task has processors. Role: end to end.

Promises: docs/semantics.md, GPUs and Threads. There is no GPU here: tasks look at CUDA_VISIBLE_DEVICES and at who runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import status, wait_until
from kernels import Kernel

import jupyter_tasks as jt
from jupyter_tasks import launch
from jupyter_tasks.engine.scheduler import GPU_IDLE

UNSET = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"


@pytest.fixture(scope="module", autouse=True)
def nothing_set() -> Iterator[None]:
    """As in a notebook that nobody has told anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def two_gpus(module_session: None) -> Iterator[None]:
    """A session with two GPUs and nothing done in it yet."""
    jt.shutdown()
    jt.init(num_cpus=4, num_gpus=2)
    yield
    available = wait_until(lambda: (now := status()) and not now["live"] and now["available"], "no task is left")
    assert available["CPU"] <= 4
    jt.shutdown()


@pytest.fixture
def own_session(module_session: None) -> Iterator[None]:
    """None at the beginning, none at the end."""
    jt.shutdown()
    yield
    jt.shutdown()


def seen() -> tuple[str | None, int]:
    """What CUDA would look at, and who runs this."""
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def seen_until(place: str, name: str) -> tuple[str | None, int]:
    words.say(f"{place}/{name}.in", os.getpid())
    words.hear(f"{place}/{name}.go")
    return seen()


def state(ref: Any) -> str:
    return next(str(task["state"]) for task in jt.tasks() if task["task_id"] == ref.task_id)


# -- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_gpus")
def test_tasks_at_the_same_time_have_different_devices(tmp_path: Path) -> None:
    """Of two GPUs each gets one, and the third task waits for one of them."""
    busy = jt.remote(num_gpus=1)(seen_until)
    first, second = (busy.remote(str(tmp_path), name) for name in "ab")
    for name in "ab":
        words.hear(tmp_path / f"{name}.in")
    third = jt.remote(num_gpus=1)(seen).remote()
    assert state(third) == "pending"
    words.say(tmp_path / "a.go")
    device, pid = jt.get(first)
    assert jt.get(third) == (device, pid)  # the same process: it has these devices
    words.say(tmp_path / "b.go")
    assert {device, jt.get(second)[0]} == {"0", "1"}


@pytest.mark.usefixtures("two_gpus")
def test_halves_share_one_device_and_leave_the_other_whole(tmp_path: Path) -> None:
    half = jt.remote(num_gpus=0.5)(seen_until)
    halves = [half.remote(str(tmp_path), name) for name in "ab"]
    for name in "ab":
        words.hear(tmp_path / f"{name}.in")
    assert jt.get(jt.remote(num_gpus=1)(seen).remote())[0] == "1"
    words.say(tmp_path / "a.go")
    words.say(tmp_path / "b.go")
    (one, its), (other, others) = jt.get(halves)
    assert (one, other) == ("0", "0")
    assert its != others


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_is_replaced_when_another_set_is_asked_for() -> None:
    """Used again for the same; before a task with two devices begins, what had one of them is gone."""
    single = jt.remote(num_gpus=1)(seen)
    device, pid = jt.get(single.remote())
    assert jt.get(single.remote()) == (device, pid)

    @jt.remote(num_gpus=2)
    def both() -> tuple[Any, bool]:
        return seen(), words.alive(pid)

    (devices, other), still_there = jt.get(both.remote())
    assert devices == "0,1"
    assert other != pid
    assert not still_there


@pytest.mark.usefixtures("two_gpus")
def test_without_gpus_the_variable_is_untouched() -> None:
    """Not by num_gpus=0 either, and never in a worker that has devices."""
    plain = jt.remote(seen)
    device, before = jt.get(plain.remote())
    assert device is None
    _, pid = jt.get(jt.remote(num_gpus=1)(seen).remote())
    assert pid != before
    after = jt.get([plain.remote() for _ in range(8)] + [plain.options(num_gpus=0).remote() for _ in range(8)])
    assert {device for device, _ in after} == {None}
    assert pid not in {worker for _, worker in after}


@pytest.mark.usefixtures("two_gpus")
def test_a_task_knows_its_devices() -> None:
    ids = jt.remote(lambda: jt.get_runtime_context().get_accelerator_ids())
    assert jt.get(ids.options(num_gpus=2).remote()) == {"GPU": ["0", "1"]}
    assert jt.get(ids.remote()) == {"GPU": []}
    assert jt.get_runtime_context().get_accelerator_ids() == {"GPU": []}


@pytest.mark.usefixtures("two_gpus")
def test_the_devices_of_a_killed_worker_come_back(tmp_path: Path) -> None:
    ref = jt.remote(num_gpus=2)(seen_until).remote(str(tmp_path), "a")
    pid = int(words.hear(tmp_path / "a.in"))
    jt.cancel(ref, force=True)
    assert jt.get(jt.remote(num_gpus=2)(seen).remote())[0] == "0,1"
    assert not words.alive(pid)
    with pytest.raises(jt.exceptions.TaskCancelledError):
        jt.get(ref)


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_that_died_gives_its_devices_to_the_next_attempt(tmp_path: Path) -> None:
    @jt.remote(num_gpus=2)
    def dies_once() -> str | None:
        words.mark(tmp_path / "attempts")
        if words.marks(tmp_path / "attempts") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return seen()[0]

    assert jt.get(dies_once.remote()) == "0,1"
    assert words.marks(tmp_path / "attempts") == 2


@pytest.mark.usefixtures("two_gpus")
def test_a_task_that_waits_keeps_its_devices(tmp_path: Path) -> None:
    """Only its processor is free: what it has put on the device is still there."""
    place = str(tmp_path)

    @jt.remote
    def helper() -> None:
        words.say(f"{place}/helper.in")
        words.hear(f"{place}/helper.go")

    @jt.remote(num_gpus=2)
    def waits() -> None:
        jt.get(helper.remote())
        words.say(f"{place}/over")

    @jt.remote(num_gpus=1)
    def later() -> bool:
        return words.said(f"{place}/over")

    ref = waits.remote()
    words.hear(tmp_path / "helper.in")
    other = later.remote()
    assert state(other) == "pending"
    words.say(tmp_path / "helper.go")
    assert jt.get([ref, other]) == [None, True]


@pytest.mark.usefixtures("two_gpus")
def test_nested_tasks_with_gpus_do_not_deadlock() -> None:
    inner = jt.remote(num_gpus=2)(seen)

    @jt.remote(num_gpus=2)
    def outer() -> Any:
        return jt.get(inner.remote()), seen()

    (theirs, one), (ours, other) = jt.get(outer.remote(), timeout=words.NET)
    assert theirs == ours == "0,1"
    assert one != other


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_an_idle_worker_gives_its_devices_up() -> None:
    """GPU memory that nobody uses does not stay taken."""
    _, pid = jt.get(jt.remote(num_gpus=1)(seen).remote())
    assert status()["available"]["GPU"] == 1
    wait_until(lambda: status()["available"]["GPU"] == 2, "the device is free", GPU_IDLE + words.NET)
    assert not words.alive(pid)


@pytest.mark.usefixtures("own_session")
def test_devices_have_the_names_that_the_kernel_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are no numbers; tasks without GPUs see what the kernel sees."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f0a")
    assert jt.init(num_cpus=2)["total"]["GPU"] == 2
    assert jt.get(jt.remote(num_gpus=2)(seen).remote())[0] == "3,GPU-8f0a"
    assert jt.get(jt.remote(num_gpus=1)(seen).remote())[0] == "3"
    assert jt.get(jt.remote(seen).remote())[0] == "3,GPU-8f0a"


@pytest.mark.usefixtures("own_session")
def test_more_gpus_than_the_kernel_sees_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES='0,1' shows 2"):
        jt.init(num_gpus=3)
    assert not jt.is_initialized()


@pytest.mark.usefixtures("two_gpus")
def test_more_than_one_gpu_must_be_whole() -> None:
    with pytest.raises(ValueError, match=r"seen needs 1.5 GPUs; ask for whole ones"):
        jt.remote(num_gpus=1.5)(seen).remote()


@pytest.mark.parametrize(
    ("visible", "devices", "count"),
    [
        (None, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"], 2),
        (None, ["null"], 0),
        ("0,2", ["nvidia0"], 2),
        ("", ["nvidia0"], 0),
        ("-1", ["nvidia0"], 0),
        ("1,-1,2", [], 1),
        (" GPU-a , MIG-b", [], 2),
    ],
)
def test_gpus_are_found(visible: str | None, devices: list[str], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA_VISIBLE_DEVICES names, as CUDA reads it; without it, what the driver offers."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with monkeypatch.context() as patch:
        patch.setattr(launch.os, "listdir", lambda path: devices)
        found = launch.detect_gpus()
    assert found == count


# -- threads ----------------------------------------------------------------------------------------------------------


def pools() -> tuple[set[int], int]:
    """How many threads BLAS would use, and who runs this."""
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return {pool["num_threads"] for pool in threadpool_info()}, os.getpid()


@pytest.fixture
def one_worker(own_session: None) -> None:
    """Of four processors: two tasks with three or four of them, one after the other, have the same worker."""
    jt.init(num_cpus=4)


@pytest.mark.usefixtures("one_worker")
def test_a_function_has_as_many_threads_as_processors() -> None:
    """In a fresh worker, where its own import reads the environment, and in one where all is loaded already.

    (At its import, OpenBLAS takes no more than there are processors, whatever the environment says.)
    """
    count = jt.remote(pools)
    processors = len(os.sched_getaffinity(0))
    told = [jt.get(count.options(num_cpus=cpus).remote()) for cpus in (3, 4, 3)]
    assert [found for found, _ in told] == [{min(3, processors)}, {4}, {3}]
    assert len({pid for _, pid in told}) == 1
    other = [jt.get(count.options(num_cpus=cpus).remote()) for cpus in (1, 0.5)]
    assert [found for found, _ in other] == [{1}, {1}]
    assert other[0][1] != told[0][1]


@pytest.mark.usefixtures("one_worker")
def test_programs_that_a_function_starts_are_limited_too() -> None:
    """And what it imports later, or in other processes: the environment says it."""
    names = jt.remote(lambda: {name: value for name, value in os.environ.items() if name.endswith("_THREADS")})
    assert jt.get(names.options(num_cpus=3).remote()) == {"OMP_NUM_THREADS": "3", "VECLIB_MAXIMUM_THREADS": "3"}


@pytest.mark.usefixtures("one_worker")
def test_a_function_whose_globals_import_numpy_is_limited_before_that() -> None:
    """The import happens when the code arrives, before the task begins."""
    import numpy

    @jt.remote(num_cpus=1)
    def count() -> Any:
        return numpy.ones(1).sum(), "threadpoolctl" in sys.modules

    assert jt.get(count.remote()) == (1.0, False)  # nobody had to correct anything
    assert jt.get(jt.remote(pools).remote())[0] == {1}


@pytest.mark.usefixtures("own_session")
def test_the_users_number_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jt.init(num_cpus=4)
    count = jt.remote(pools)
    assert [jt.get(count.options(num_cpus=cpus).remote())[0] for cpus in (2, 4)] == [{1}, {1}]


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_the_number_that_a_task_sets_wins(name: str) -> None:
    """Before its import, as people write it; not for what runs in that worker later, where it is undone."""

    @jt.remote(num_cpus=3)
    def own() -> tuple[set[int], int]:
        os.environ[name] = "1"
        return pools()

    found, pid = jt.get(own.remote())
    assert found == {1}
    assert jt.get(jt.remote(num_cpus=4)(pools).remote()) == ({4}, pid)


@pytest.mark.slow
def test_a_cell_has_what_the_kernel_has(tmp_path: Path) -> None:
    """Also in a worker that a function has used before; `--cpus N` means N."""
    kernel = Kernel(tmp_path / "kernel")
    try:
        look = "import numpy, os; from threadpoolctl import threadpool_info\n"
        look += "set(pool['num_threads'] for pool in threadpool_info()), os.environ.get('OMP_NUM_THREADS'), os.getpid()"
        assert kernel.run("%load_ext jupyter_tasks\nimport jupyter_tasks as jt; jt.init(num_cpus=3, num_gpus=1)").ok
        own = kernel.run(look).result
        plain = kernel.run(f"%%remote --wait\n{look}").result
        assert own is not None
        assert plain is not None
        assert plain.rpartition(",")[0] == own.rpartition(",")[0]
        single = kernel.run(
            "@jt.remote\ndef pools():\n    import numpy, os; from threadpoolctl import threadpool_info\n"
            "    return set(pool['num_threads'] for pool in threadpool_info()), os.environ.get('OMP_NUM_THREADS'), "
            "os.getpid()\njt.get(pools.remote())"
        ).result
        pid = plain.rpartition(",")[2]
        assert single == f"({{1}}, '1',{pid}"
        assert kernel.run(f"%%remote --wait\n{look}").result == plain
        assert kernel.run(f"%%remote --wait --cpus 3\n{look}").result == f"({{3}}, '3',{pid}"
        gpu = kernel.run("%%remote --wait --gpus 1\nimport os; os.environ['CUDA_VISIBLE_DEVICES'], os.getpid()").result
        assert gpu is not None
        assert gpu.startswith("('0',")
        assert gpu.rpartition(",")[2] != pid
        assert kernel.run(f"%%remote --wait\n{look}").result == plain
    finally:
        kernel.close()
    wait_until(lambda: not kernel.processes(), "nothing of the kernel is left after its shutdown")
