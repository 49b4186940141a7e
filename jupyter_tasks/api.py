"""The user's verbs. Thin: each looks at its arguments, and asks the client.

May be used from any thread, from the notebook, from a plain program and from inside tasks. The first use starts a
supervisor for this process (0.05 to 0.1 s); inside a worker it connects to the one that is there.
"""

from __future__ import annotations

import math
import numbers
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

from jupyter_tasks import exceptions, session, several
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.streams import ObjectRefGenerator
from jupyter_tasks.waiting import AsCompleted
from jupyter_tasks.wire.frames import Kind, show_id

__all__ = [
    "as_completed",
    "cancel",
    "get",
    "get_runtime_context",
    "put",
    "tasks",
    "wait",
]


Waitable = TypeVar("Waitable", ObjectRef, ObjectRefGenerator, ObjectRef | ObjectRefGenerator)


# -- values -------------------------------------------------------------------------------------------------------


@overload
def get(refs: ObjectRef, *, timeout: float | None = ..., cancel_on_interrupt: bool = ...) -> Any: ...


@overload
def get(refs: Sequence[ObjectRef], *, timeout: float | None = ..., cancel_on_interrupt: bool = ...) -> list[Any]: ...


def get(refs: Any, *, timeout: float | None = None, cancel_on_interrupt: bool = False) -> Any:
    """Waits for a ref, or a list of refs, and returns the value or the list of values.

    Args:
        timeout: seconds; 0 looks once.
        cancel_on_interrupt: a KeyboardInterrupt (the stop button) while waiting also cancels the tasks waited for.
            Otherwise they go on.

    Raises:
        GetTimeoutError: not there within `timeout`. The task goes on.
        TaskCancelledError, TaskError (also an instance of what the task raised), WorkerCrashedError,
        TaskTimeoutError, OutOfMemoryError, ObjectLostError: what became of the task. A list raises for its first ref
        that failed, without waiting for the others.
        ValueError: something else than a ref, list or tuple was given, or `timeout` makes no sense. (In a cell, a name
            that holds a ref in the notebook holds its value already; such a value is returned as it is.)
        TypeError: something in the list is no ref.
    """
    try:
        if isinstance(refs, ObjectRef):
            return _get_list([refs], timeout, cancel_on_interrupt)[0]
        worker = session.here()
        if worker is not None and worker.replaced:
            return _get_replaced(refs, worker.replaced, timeout, cancel_on_interrupt)
        if not isinstance(refs, (list, tuple)):
            if isinstance(refs, ObjectRefGenerator):
                raise TypeError(f"get() takes an ObjectRef or a list of them, not {_kind_of(refs)}.")
            raise ValueError(f"get() takes an ObjectRef or a list of them, not {type(refs).__name__}.")
        for i, ref in enumerate(refs):
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"get() takes an ObjectRef or a list of them; item {i} is {_kind_of(ref)}.")
        return _get_list(list(refs), timeout, cancel_on_interrupt)
    except exceptions.JupyterTasksError as error:
        # Our own frames say nothing about the task. Those of an error that was raised in place do.
        frames = error.__cause__.__traceback__ if error.__cause__ is not None else None
        raise error.with_traceback(frames) from error.__cause__


def _kind_of(value: object) -> str:
    """What somebody takes for a ref; if it has refs, how to come by them."""
    if not isinstance(value, ObjectRefGenerator):
        return type(value).__name__
    return (
        "ObjectRefGenerator. It hands out refs: [jt.get(ref) for ref in generator]; jt.get(generator.completed()) "
        "waits for the end of its task"
    )


def _get_replaced(refs: Any, replaced: frozenset[int], timeout: float | None, cancel_on_interrupt: bool) -> Any:
    """In a cell, whose names hold values where the notebook's hold refs: `get` of such a value is the value."""
    if id(refs) in replaced:
        return refs
    if not isinstance(refs, (list, tuple)):
        raise ValueError(f"get() takes an ObjectRef or a list of them, not {type(refs).__name__}.")
    for i, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef) and id(ref) not in replaced:
            raise TypeError(f"get() takes an ObjectRef or a list of them; item {i} is {_kind_of(ref)}.")
    got = iter(_get_list([ref for ref in refs if isinstance(ref, ObjectRef)], timeout, cancel_on_interrupt))
    return [next(got) if isinstance(ref, ObjectRef) else ref for ref in refs]


def _get_list(refs: list[ObjectRef], timeout: float | None, cancel_on_interrupt: bool) -> list[Any]:
    timeout = _checked_timeout(timeout)
    if not refs:
        return []
    try:
        _wait_for_all(refs, timeout)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            for ref in refs:
                if not ref.is_final:
                    ref._client.cancel(ref.id, source="interrupt")
        raise
    return [ref._client.value(ref) for ref in refs]


def _wait_for_all(refs: list[ObjectRef], timeout: float | None) -> None:
    """Until all are there, or one has failed (then its error is raised)."""
    open_refs = [ref for ref in refs if not ref._kind]
    if len(refs) > 1:
        open_refs = list(dict.fromkeys(open_refs))
        _raise_failed(refs)
    if open_refs and not several.wait(open_refs, None, timeout, or_failed=len(open_refs) > 1):
        raise _timed_out([ref for ref in open_refs if not ref._kind], timeout)
    _raise_failed(open_refs)


def _raise_failed(refs: Iterable[ObjectRef]) -> None:
    for ref in refs:
        if ref._kind and ref._kind != Kind.RESULT:
            ref._client.value(ref)


def _timed_out(refs: list[ObjectRef], timeout: float | None) -> exceptions.GetTimeoutError:
    which = refs[0].task_id if refs else "?"
    more = f" and {len(refs) - 1} more" if len(refs) > 1 else ""
    return exceptions.GetTimeoutError(
        f"Task {which}{more} did not finish within {timeout:g} s. It goes on; call get again, or cancel it."
    )


def wait(
    refs: Sequence[Waitable], *, num_returns: int = 1, timeout: float | None = None
) -> tuple[list[Waitable], list[Waitable]]:
    """Waits until `num_returns` of the refs are final, or `timeout` seconds have passed.

    Args:
        refs: also generators: one is ready when `next` does not block, since an item is there or the task is over.

    Returns:
        (ready, not_ready): at most `num_returns` ready ones, both in the order given. Failed and cancelled tasks
        count as ready.

    Raises:
        TypeError: not a list of refs, or `timeout` is no number.
        ValueError: duplicates, `num_returns` out of range, a negative timeout.
    """
    refs = _checked_refs(refs, "wait", (ObjectRef, ObjectRefGenerator))
    timeout = _checked_timeout(timeout)
    if not refs:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int) or not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns must be between 1 and {len(refs)}, but is {num_returns!r}.")
    open_refs = [ref for ref in refs if not ref._kind]
    wanted = num_returns - (len(refs) - len(open_refs))
    if wanted > 0:
        several.wait(open_refs, wanted, timeout)
    ready = [ref for ref in refs if ref._kind][:num_returns]
    taken = set(ready)
    return ready, [ref for ref in refs if ref not in taken]


def as_completed(refs: Iterable[ObjectRef], *, timeout: float | None = None) -> AsCompleted:
    """An iterator over the refs in the order in which they become final, for `for` and for `async for`.

    Those that are final already come first, in the order given; failed and cancelled ones come, too. The iterator
    forgets each ref that it has given out. It may be left at any time, and gone on with after a KeyboardInterrupt; it
    is for one thread at a time. The tasks go on in any case.

    Args:
        timeout: seconds from this call until the last ref.

    Raises:
        GetTimeoutError: from the iterator; says how many are open. What is final is given out before.
        TypeError: not a list of refs, or `timeout` is no number.
        ValueError: duplicates, a negative timeout.
    """
    return AsCompleted(_checked_refs(refs, "as_completed"), _checked_timeout(timeout))


def _checked_refs(refs: Iterable[Waitable], verb: str, allowed: type | tuple[type, ...] = ObjectRef) -> list[Waitable]:
    if isinstance(refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"{verb}() takes a list of ObjectRefs; put the ref in a list.")
    found = list(refs)
    for i, ref in enumerate(found):
        if not isinstance(ref, allowed):
            raise TypeError(f"{verb}() takes a list of ObjectRefs; item {i} is {_kind_of(ref)}.")
    if len(set(found)) != len(found):
        raise ValueError(f"{verb}() was given a ref twice.")
    return found


def _checked_timeout(timeout: float | None) -> float | None:
    """Seconds, or None for no limit."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"timeout must be a number of seconds or None, but is {timeout!r}.")
    if not timeout >= 0:  # not a number is neither
        raise ValueError(f"timeout must not be negative, but is {timeout}.")
    return None if timeout == math.inf else float(timeout)


def put(value: Any) -> ObjectRef:
    """Stores a value once, for any number of tasks. Returns its ref.

    Raises:
        TypeError: the value is a ref already.
        UnserializableError: it cannot be sent; names the part that cannot.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put() was given an ObjectRef; it stands for a stored value already.")
    return session.current_client().put(value)


def cancel(
    ref: ObjectRef | ObjectRefGenerator,
    *,
    force: bool = False,
    recursive: bool = True,
    grace: float | None = None,
    reason: str = "",
) -> None:
    """Asks a task to stop. Returns at once; `get(ref)` says how it ended.

    A task that has not started never does. One that runs gets a KeyboardInterrupt in its main thread; with `grace`, its
    process is ended after that many seconds. With `force` the process and all it started are killed at once: no
    except, finally or atexit of it runs. A task that is over is left alone. May be called again. A generator task gets
    its KeyboardInterrupt where it is, also at its `yield`; items that it has made stay.

    A call of an actor that runs is asked, and no more (`is_canceled()`, in coroutines a CancelledError): the actor's
    state is not cut in two. `get` raises when it has ended, whatever it returns; of a coroutine a value counts.

    Args:
        recursive: also the tasks, and the calls of actors, that it has submitted.
        reason: shown on the screen and in the error.

    Raises:
        TypeError: not a ref.
        ValueError: a negative `grace`; `force` for a call of an actor.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(
            f"cancel() takes an ObjectRef, not {type(ref).__name__}. For groups there is group.cancel(), for actors "
            "jt.kill(actor)."
        )
    if force and hasattr(ref, "_actor"):
        raise ValueError(
            "cancel(force=True) is for tasks: a call of an actor shares its process with the actor's state. "
            "jt.cancel(ref) asks it to stop; jt.kill(actor) ends the actor."
        )
    if grace is not None and grace < 0:
        raise ValueError(f"grace must not be negative, but is {grace}.")
    # Also for a final ref: threads or children of its task may still run. Of a session that has ended nothing does.
    if not ref._client.closed:
        ref._client.cancel(ref.id, force=force, recursive=recursive, grace=grace, reason=reason)


def tasks() -> list[dict[str, Any]]:
    """The tasks of this session, live ones first, and the detached tasks of this user on this host.

    Returns:
        Dicts with "task_id", "name", "state", "elapsed_s" and more; of detached tasks also "detached": True.
    """
    from jupyter_tasks import detached

    records: list[dict[str, Any]] = []
    if session.is_initialized():
        records = session.current_client().request("tasks")["tasks"]
    return [*records, *detached.records()]


# -- inside a task ------------------------------------------------------------------------------------------------


class RuntimeContext:
    """Where this code runs. Got by `get_runtime_context()`, which may be kept. Any thread; starts nothing.

    What is said of a task is None, or empty, where none runs: in the notebook, in a program, and in a thread that
    goes on after its task.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def _facts(self) -> Any:
        return self._worker.task_facts() if self._worker is not None else None

    def get_task_id(self) -> str | None:
        """The running task's id as `%tasks` shows it."""
        return show_id(self._worker.task_id) if self._worker is not None and self._worker.task_id else None

    def get_task_name(self) -> str | None:
        """The task's name: the option `name`, or the function's; of a cell its NAME or label."""
        facts = self._facts()
        return facts.name if facts is not None else None

    def get_task_function_name(self) -> str | None:
        """Module and qualified name of the task's function; None in a cell."""
        facts = self._facts()
        return facts.function_name if facts is not None else None

    def get_attempt_number(self) -> int:
        """How often the task was begun before: 0 in its first attempt, and outside a task."""
        facts = self._facts()
        return facts.attempt if facts is not None else 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What the task takes while it runs, by resource: {"CPU": 1.0}. Without those that it takes nothing of."""
        facts = self._facts()
        return facts.resources if facts is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The devices given to this task, as they stand in its CUDA_VISIBLE_DEVICES: {"GPU": ["0"]}."""
        return {"GPU": list(self._worker.config["gpus"]) if self._worker is not None else []}

    @property
    def _host(self) -> Any:
        """Of the actor that this code runs in; None: in none."""
        if self._worker is None:
            return None
        return getattr(self._worker, "host", None) or getattr(self._worker, "actor", None)

    def get_actor_id(self) -> str | None:
        """The actor's id, as `jt.list_actors()` shows it; None: this is no actor."""
        host = self._host
        return show_id(host.id) if host is not None else None

    def get_actor_name(self) -> str | None:
        """The name that others find the actor by; "" if it has none, None if this is no actor."""
        host = self._host
        return str(host.settings["name"]) if host is not None else None

    @property
    def current_actor(self) -> Any:
        """A handle of the actor that this code runs in. It does not keep that alive; a copy that is sent away does.

        Raises:
            RuntimeError: this is no actor.
        """
        host = self._host
        if host is None:
            raise RuntimeError("current_actor is for methods of actors, and this code runs in none.")
        from jupyter_tasks.actor import current_handle

        return current_handle(host)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """The actor has been made anew after its process had ended; False if this is no actor."""
        host = self._host
        return host is not None and host.attempt > 0

    def get_worker_id(self) -> str:
        """The process that runs this code: its pid, as text."""
        return str(os.getpid())

    def get_node_id(self) -> str:
        """The name of this machine."""
        return socket.gethostname()

    def get_job_id(self) -> str | None:
        """The session, for the notebook and all its tasks the same; None before it has begun."""
        return session.session_id()

    def is_canceled(self) -> bool:
        """The running task was asked to stop. For loops that want to stop at a good place; about 0.2 us."""
        return self._worker is not None and self._worker.guard.is_canceled()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs: the task's id and name, what it was given, and whether it was asked to stop."""
    return RuntimeContext(session.here())
