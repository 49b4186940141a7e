"""Every error that a user of jupyter_tasks can meet.

    JupyterTasksError
      TaskCancelledError            the task was cancelled; says by whom, why, by which rung, after how long
        ForceCancelledError         ... and its process had to be ended (also a WorkerCrashedError)
      TaskError                     the task's own code raised X; the instance is also an X
      WorkerCrashedError            the process that ran the task ended: exit code or signal
      OutOfMemoryError              the task used more memory than its limit
      TaskTimeoutError              the task ran longer than its `timeout=` (also a TimeoutError)
      GetTimeoutError               `get(timeout=)` gave up waiting; the task goes on (also a TimeoutError)
      ObjectLostError               the value is gone: the supervisor that held it has ended
      UnserializableError           a value cannot be sent; names the culprit (also a TypeError)
      ActorError
        ActorDiedError              the actor will never answer again
        ActorUnavailableError       the actor is restarting; a later call may succeed
      ActorAlreadyExistsError       the name is taken (also a ValueError)

One rule holds wherever `get` raises because of a cancel: `isinstance(e, TaskCancelledError)`.

This module imports nothing of the package, starts nothing, and may be used from any thread.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorUnavailableError",
    "ForceCancelledError",
    "GetTimeoutError",
    "JupyterTasksError",
    "ObjectLostError",
    "OutOfMemoryError",
    "RemoteTraceback",
    "TaskCancelledError",
    "TaskError",
    "TaskTimeoutError",
    "UnserializableError",
    "WorkerCrashedError",
]


class JupyterTasksError(Exception):
    """The root of the tree."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Our errors cross processes (a failed dependency raises in its dependents). Rebuild without
        # calling __init__, whose keyword arguments `args` does not hold.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class TaskCancelledError(JupyterTasksError):
    """The task was cancelled, and its code has really stopped (or never started).

    Attributes:
        task_id: the task's id, as `%tasks` shows it.
        name: the task's name.
        source: who asked: "user", "timeout", "group", "interrupt", "shutdown", "parent" or "task"
            (the task's own code raised KeyboardInterrupt).
        reason: free text given with the cancel, or "".
        rung: what ended it: "pending" (it had not started), "interrupt", "terminate" or "kill"; of a thread task, which
            ends by itself, "ask" or "interrupt".
        seconds: from the request to the end.
    """

    task_id: str = ""
    name: str = ""
    source: str = "user"
    reason: str = ""
    rung: str = ""
    seconds: float = 0.0

    def __init__(self, message: str = "The task was cancelled.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class WorkerCrashedError(JupyterTasksError):
    """The process that ran the task ended before the task did.

    Attributes:
        exit_code: what it passed to exit, or None if a signal ended it.
        signal_name: such as "SIGSEGV", or None.
    """

    task_id: str = ""
    name: str = ""
    exit_code: int | None = None
    signal_name: str | None = None

    def __init__(self, message: str = "The worker process ended.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class ForceCancelledError(TaskCancelledError, WorkerCrashedError):
    """The task was cancelled by ending its process: no except, finally or atexit of it ran."""


class TaskError(JupyterTasksError):
    """The task's own code raised an exception.

    What `get` raises is an instance of this class *and* of the exception's own class, so that
    `except ValueError` works across processes. `str()` is the original text; `__cause__` prints the
    traceback from the worker. An exception that cannot cross keeps its type name, text and traceback:
    then the instance is a plain TaskError.

    Attributes:
        task_id, name: which task.
        cause: the original exception, or None if it could not be sent.
        type_name: the name of the original class, such as "ValueError".
        traceback_text: the traceback from the worker, as Python prints it.
    """

    task_id: str = ""
    name: str = ""
    cause: BaseException | None = None
    type_name: str = ""
    traceback_text: str = ""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the traceback of the task's own code, with the lines of its cell."""
        lines = self.__dict__.get("lines") or self.traceback_text.rstrip().splitlines()
        return [*lines, "", f"(raised in task {self.task_id}, {self.name})"]

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {k: v for k, v in self.__dict__.items() if k in _TASK_ERROR_FACTS}
        return task_error, (facts.pop("cause", None), str(self.args[0]) if self.args else ""), facts


_TASK_ERROR_FACTS = frozenset({"task_id", "name", "cause", "type_name", "traceback_text"})


class RemoteTraceback(Exception):
    """Carries a traceback from a worker, so that Python prints it above the error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


_dual_types: dict[type[BaseException], type[TaskError]] = {}


def _dual_type(cause_type: type[BaseException]) -> type[TaskError]:
    """A class that is both a TaskError and `cause_type` (plain TaskError where Python forbids that)."""
    if issubclass(TaskError, cause_type):
        return TaskError
    dual = _dual_types.get(cause_type)
    if dual is None:
        try:
            dual = type(
                f"TaskError({cause_type.__name__})",
                (TaskError, cause_type),
                {
                    "__module__": __name__,
                    # KeyError prints the repr of its argument, OSError its errno: keep each one's own text.
                    "__str__": lambda self: str(self.cause),
                    "__init__": lambda self, *args, **kwargs: None,
                },
            )
        except TypeError:  # a class that cannot be subclassed, or a conflict of layouts
            dual = TaskError
        _dual_types[cause_type] = dual
    return dual


def task_error(cause: BaseException | None, message: str = "", **facts: Any) -> TaskError:
    """Builds what `get` raises for an exception of the task's own code.

    Returns an instance of both TaskError and type(cause); a plain TaskError when there is no cause.
    """
    if cause is None:
        return TaskError(message, **facts)
    if isinstance(cause, TaskError):
        return cause  # a task that re-raised what its own `get` gave it: keep the root cause
    cls = _dual_type(type(cause))
    try:
        args = _constructor_args(cause)
        error = cls.__new__(cls, *args)
        # Fills what built-in exceptions keep outside __dict__ (OSError.errno, UnicodeError.object ...).
        if type(cause).__module__ == "builtins" and cls is not TaskError:
            type(cause).__init__(error, *args)
    except Exception:
        error = TaskError.__new__(TaskError)
    error.args = cause.args
    for key, value in getattr(cause, "__dict__", {}).items():
        error.__dict__.setdefault(key, value)
    error.__dict__.update(facts, cause=cause, type_name=facts.get("type_name") or type(cause).__name__)
    if type(error) is TaskError:
        error.args = (message or str(cause),)
    return error


def _constructor_args(cause: BaseException) -> tuple[Any, ...]:
    """What `cause` was built with: its `args`, and what an OSError takes out of them."""
    if isinstance(cause, OSError) and len(cause.args) == 2 and cause.filename is not None:
        return (*cause.args, cause.filename, None, cause.filename2)
    return cause.args


class OutOfMemoryError(JupyterTasksError):
    """The task's process tree used more private memory than `memory=` allows, and was killed.

    Attributes:
        used, limit: bytes.
    """

    task_id: str = ""
    name: str = ""
    used: int = 0
    limit: int = 0

    def __init__(self, message: str = "The task used more memory than its limit.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class TaskTimeoutError(JupyterTasksError, TimeoutError):
    """The task ran longer than its `timeout=` seconds and was stopped.

    Attributes:
        timeout: the limit in seconds.
        rung: what ended it: "interrupt", "terminate" or "kill".
    """

    task_id: str = ""
    name: str = ""
    timeout: float = 0.0
    rung: str = ""

    def __init__(self, message: str = "The task ran longer than its timeout.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class GetTimeoutError(JupyterTasksError, TimeoutError):
    """`get(timeout=)` waited that long. The task itself goes on; call `get` again or `cancel` it."""


class ObjectLostError(JupyterTasksError):
    """The supervisor that held this value has ended. Values already in the kernel are not affected."""


class UnserializableError(JupyterTasksError, TypeError):
    """A value cannot be sent to another process.

    Attributes:
        path: where the culprit sits, as "x['a'][0]".
        type_name: the culprit's type, as "_thread.lock".
    """

    path: str = ""
    type_name: str = ""

    def __init__(self, message: str = "The value cannot be sent to a worker.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class ActorError(JupyterTasksError):
    """A call to an actor failed because of the actor, not because of the method's code.

    Attributes:
        actor_id: as `jt.list_actors()` shows it.
        name: the actor's name, or its class's.
    """

    actor_id: str = ""
    name: str = ""

    def __init__(self, message: str = "The call failed because of its actor.", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class ActorDiedError(ActorError):
    """The actor has ended and will not come back.

    Attributes:
        cause: what its constructor raised, if that is why and it could be sent; otherwise None.
    """

    cause: BaseException | None = None


class ActorUnavailableError(ActorError):
    """The actor's process has ended, and a new one takes its place. A later call may succeed.

    Attributes:
        began: the call had begun: it may have had an effect.
    """

    began: bool = False


class ActorAlreadyExistsError(JupyterTasksError, ValueError):
    """An actor with this name exists in this namespace; use `get_if_exists=True` to take that one."""
