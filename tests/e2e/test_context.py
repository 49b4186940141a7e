"""`jt.get_runtime_context()`: in functions, cells, threads, retries, local mode and outside of tasks. Role: end to end.

Promises: docs/semantics.md, What a task knows of itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from kernels import Kernel

import jupyter_tasks as jt

NET = 10.0


def told() -> dict[str, Any]:
    """Everything that the context says here, of the calling thread."""
    context = jt.get_runtime_context()
    return {
        "task_id": context.get_task_id(),
        "name": context.get_task_name(),
        "function": context.get_task_function_name(),
        "attempt": context.get_attempt_number(),
        "resources": context.get_assigned_resources(),
        "accelerators": context.get_accelerator_ids(),
        "actor": context.get_actor_id(),
        "worker": context.get_worker_id(),
        "node": context.get_node_id(),
        "job": context.get_job_id(),
        "cancelled": context.is_canceled(),
    }


NO_TASK = {
    "task_id": None,
    "name": None,
    "function": None,
    "attempt": 0,
    "resources": {},
    "accelerators": {"GPU": []},
    "actor": None,
    "cancelled": False,
    "node": socket.gethostname(),
}


def without(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if name not in names}


def test_a_function_knows_its_task(session: None) -> None:
    ref = jt.remote(told).remote()
    facts = jt.get(ref)
    assert facts["worker"] != str(os.getpid())
    assert without(facts, "worker") == {
        **NO_TASK,
        "task_id": ref.task_id,
        "name": "told",
        "function": f"{__name__}.told",
        "resources": {"CPU": 1.0},
        "job": jt.get_runtime_context().get_job_id(),
    }


def test_its_options_are_seen(session: None) -> None:
    """The name that was given, and what it takes; nothing that it does not take."""
    facts = jt.get(jt.remote(told).options(name="other", num_cpus=0.5).remote())
    assert (facts["name"], facts["function"], facts["resources"]) == ("other", f"{__name__}.told", {"CPU": 0.5})
    assert jt.get(jt.remote(told).options(num_cpus=0).remote())["resources"] == {}


def test_resources_by_name_and_devices(module_session: None) -> None:
    jt.shutdown()
    jt.init(num_cpus=2, num_gpus=1, resources={"license": 3})
    try:
        facts = jt.get(jt.remote(told).options(num_gpus=1, resources={"license": 2}).remote())
        assert facts["resources"] == {"CPU": 1.0, "GPU": 1.0, "license": 2.0}
        assert facts["accelerators"] == {"GPU": ["0"]}
    finally:
        jt.shutdown()


def test_methods_partials_and_callables_have_a_function_name(session: None) -> None:
    class Teller:
        def __call__(self) -> Any:
            return jt.get_runtime_context().get_task_function_name()

    def outer() -> Any:
        return jt.get_runtime_context().get_task_function_name()

    here = "test_methods_partials_and_callables_have_a_function_name.<locals>"
    assert jt.get(jt.remote(outer).remote()) == f"{__name__}.{here}.outer"
    assert jt.get(jt.remote(Teller()).remote()) == f"{__name__}.{here}.Teller"


def test_threads_of_a_task_and_coroutines_know_it_too(session: None) -> None:
    def task() -> Any:
        found: list[Any] = []

        async def ask() -> None:
            found.append(told())

        thread = threading.Thread(target=lambda: found.append(told()))
        thread.start()
        thread.join()
        asyncio.run(ask())
        return [*found, told()]

    first, second, own = jt.get(jt.remote(task).remote())
    assert first == second == own
    assert own["name"] == "task"


def test_a_nested_task_has_its_own(session: None) -> None:
    def parent() -> Any:
        return told(), jt.get(jt.remote(told).options(num_cpus=2).remote()), told()

    before, child, after = jt.get(jt.remote(parent).remote(), timeout=NET)
    assert before == after
    assert (before["name"], child["name"]) == ("parent", "told")
    assert before["task_id"] != child["task_id"]
    assert child["resources"] == {"CPU": 2.0}
    assert child["job"] == before["job"]


def test_outside_of_tasks_it_says_so_and_starts_nothing(module_session: None) -> None:
    jt.shutdown()
    assert told() == {**NO_TASK, "worker": str(os.getpid()), "job": None}
    assert not jt.is_initialized()
    jt.init(num_cpus=2)
    first = jt.get_runtime_context().get_job_id()
    assert first is not None
    jt.shutdown()
    jt.init(num_cpus=2)
    assert jt.get_runtime_context().get_job_id() not in (None, first)


@pytest.mark.parametrize("how", ["crash", "error"])
@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
def test_the_attempt_counts_from_zero(session: None, how: str, big: bool, tmp_path: Path) -> None:
    """For crashes and for errors, with plain arguments and with shared memory, keywords and several values."""

    def task(path: str, data: bytes, *, how: str) -> Any:
        attempt = jt.get_runtime_context().get_attempt_number()
        words.say(f"{path}/{attempt}")
        if attempt < 2:
            if how == "crash":
                os._exit(1)
            raise ValueError(attempt)
        return attempt, len(data)

    flaky = jt.remote(task).options(max_retries=2, retry_exceptions=True, num_returns=2)
    attempt, size = jt.get(flaky.remote(str(tmp_path), b"x" * (200_000 if big else 1), how=how), timeout=NET)
    assert (attempt, size) == (2, 200_000 if big else 1)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
    assert jt.get(jt.remote(told).remote())["attempt"] == 0  # in the same worker


def test_a_plain_tiny_task_is_told_its_attempt_too(session: None, tmp_path: Path) -> None:
    """Tasks that share a packet: only the one that was retried is in another attempt."""

    def task(path: str, i: int) -> int:
        attempt = jt.get_runtime_context().get_attempt_number()
        if i == 20 and not attempt:
            os._exit(1)
        return attempt

    refs = [jt.remote(task).remote(str(tmp_path), i) for i in range(40)]
    assert jt.get(refs, timeout=NET) == [0] * 20 + [1] + [0] * 19


def test_a_job_is_known_in_a_task_that_has_emptied_its_environment(session: None) -> None:
    def task() -> Any:
        os.environ.clear()
        return jt.get_runtime_context().get_job_id()

    assert jt.get(jt.remote(task).remote()) == jt.get_runtime_context().get_job_id()


# -- local mode -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(module_session: None) -> Iterator[None]:
    jt.shutdown()
    jt.init(local_mode=True, num_cpus=2)
    yield
    jt.shutdown()


def test_in_local_mode_it_is_the_same(local: None, tmp_path: Path) -> None:
    """But for the process, which is this one, and devices, of which none are given out."""
    ref = jt.remote(told).options(name="other", num_cpus=2).remote()
    job = jt.get_runtime_context().get_job_id()
    assert jt.get(ref) == {
        **NO_TASK,
        "task_id": ref.task_id,
        "name": "other",
        "function": f"{__name__}.told",
        "resources": {"CPU": 2.0},
        "worker": str(os.getpid()),
        "job": job,
    }
    assert job is not None
    assert told() == {**NO_TASK, "worker": str(os.getpid()), "job": job}

    def flaky() -> int:
        attempt = jt.get_runtime_context().get_attempt_number()
        if attempt < 5:
            raise ValueError(attempt)
        return attempt

    assert jt.get(jt.remote(flaky).options(max_retries=-1, retry_exceptions=[ValueError]).remote()) == 5


# -- cells ----------------------------------------------------------------------------------------------------------------


ASK = (
    "c = jt.get_runtime_context()\n"
    "print(c.get_task_id(), c.get_task_name(), c.get_task_function_name(), c.get_assigned_resources(), "
    "c.get_attempt_number(), c.get_job_id() == job)"
)


@pytest.mark.slow
def test_a_cell_knows_its_task(kernel: Kernel) -> None:
    """Its NAME, or the label that the board shows; no function; what `--cpus` says."""
    cell = kernel.run("jt.init(); job = jt.get_runtime_context().get_job_id(); print(job)")
    assert cell.text() != "None\n"
    cell = kernel.run(f"%%remote train --wait --cpus 2\n{ASK}")
    assert cell.ok, cell.error
    assert cell.text() == "1 train None {'CPU': 2.0} 0 True\n"
    cell = kernel.run(f"%%remote --wait\n{ASK}")
    assert cell.text().split()[1:4] == ["cell", str(cell.reply["execution_count"]), "None"]
    assert "{'CPU': 1.0} 0 True" in cell.text()


@pytest.mark.slow
def test_a_cell_in_local_mode_knows_its_task(kernel: Kernel) -> None:
    kernel.run("jt.shutdown(); jt.init(local_mode=True); job = jt.get_runtime_context().get_job_id()")
    cell = kernel.run(f"%%remote train --wait\n{ASK}")
    assert cell.text() == "1 train None {'CPU': 1.0} 0 True\n"
    kernel.run("jt.shutdown()")
