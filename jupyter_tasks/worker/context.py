"""Where this code runs: in a task of a worker, or not. The worker tells; the public API asks. Any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jupyter_tasks import refs

if TYPE_CHECKING:
    from jupyter_tasks.client import Client
    from jupyter_tasks.worker.execution import _Worker

__all__ = [
    "TaskFacts",
    "client_of_worker",
    "current_worker",
    "enter_worker",
    "forget_client",
    "task_facts",
    "thread_call",
]

# The thread task that this code belongs to (a `threads._Call`).
thread_call: ContextVar[Any] = ContextVar("jupyter_tasks_thread_task", default=None)

_worker: _Worker | None = None
_client: Client | None = None
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a task may know of itself."""

    name: str
    function_name: str | None  # None for a cell
    resources: dict[str, float]
    attempt: int


def task_facts(
    options: Mapping[str, Any], call: Callable[..., Any] | None, attempt: int, name: str | None = None
) -> TaskFacts:
    """From a task's options as they are on the wire, and its function; None for a cell."""
    amounts = {"CPU": options.get("cpus", 1), "GPU": options.get("gpus"), **(options.get("resources") or {})}
    function_name = None
    if call is not None:
        own = getattr(call, "__qualname__", type(call).__qualname__)
        function_name = f"{getattr(call, '__module__', None)}.{own}"
    return TaskFacts(
        name=name or options.get("name", "task"),
        function_name=function_name,
        resources={resource: float(amount) for resource, amount in amounts.items() if amount},
        attempt=attempt,
    )


def enter_worker(worker: _Worker) -> None:
    """This process is a worker from now on."""
    global _worker
    _worker = worker
    refs.process.on_wait = worker.waiting
    refs.set_client_source(client_of_worker)


def current_worker() -> Any:
    """The worker this process is, or None."""
    return _worker


def client_of_worker() -> Client:
    """This worker's own connection to its supervisor, made when it is first needed: for tasks that start tasks."""
    global _client
    from jupyter_tasks.client import connect

    with _lock:
        if _client is None or _client.closed:
            worker = _worker
            assert worker is not None
            _client = connect(worker.config["socket"], worker.config["key"], worker.config["number"])
            _client.parent = _submitter
        return _client


def _submitter() -> int:
    """The id of the task that this code belongs to; in an actor, outside of its calls, that of the actor; or 0."""
    call = thread_call.get()
    if call is not None:
        return int(call.task_id)
    worker = current_worker()
    return worker.task_id or (worker.actor.id if worker.actor is not None else 0)


def has_client() -> bool:
    """Tasks of this worker have used its connection."""
    return _client is not None


def forget_client() -> None:
    """In a forked child: the connection is the parent's."""
    global _client
    _client = None
