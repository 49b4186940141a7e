"""What users hold: references to values that are, or will be, there.

An ObjectRef belongs to the client (the connection to the supervisor) that made or received it. Its fields are filled
in by whichever thread reads the socket; `is_final` is set last, so who sees it set sees the rest. Refs may be used
from any thread. When the last one to a value is gone, the supervisor is told and the value is freed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from jupyter_tasks.wire.frames import show_id

if TYPE_CHECKING:
    from concurrent.futures import Future

    from jupyter_tasks.client import Client

__all__ = [
    "THREAD_PREFIX",
    "CodeNote",
    "Dependency",
    "ObjectRef",
    "RefNote",
    "arriving",
    "current_group",
    "process",
    "set_client_source",
]

THREAD_PREFIX = "jupyter-tasks-"  # names of a client's threads: they belong to the process, not to a task

# The group whose block this code is in: what is submitted here belongs to it.
current_group: ContextVar[Any] = ContextVar("jupyter_tasks_group", default=None)


class _Process:
    """What all clients of this process share."""

    # Around each real wait, whichever clients' refs are awaited: the slot of the task that waits is free meanwhile.
    on_wait: Callable[[], AbstractContextManager[None]] | None = None


process = _Process()


class _Arriving(threading.local):
    """Whose value this thread is unpickling; None: nobody's, or what this process's own session has sent."""

    client: Client | None = None


arriving = _Arriving()

_client_source: Callable[[], Client] | None = None


def set_client_source(source: Callable[[], Client]) -> None:
    """Tells where a ref that arrives finds the client of this process's own session (set by the API module)."""
    global _client_source
    _client_source = source


def _arrived(id: int, actor: int = 0) -> ObjectRef:
    """A ref that was inside a value from another process: of the session that the value came from.

    Args:
        actor: of a call of this one; of an actor itself.
    """
    if arriving.client is not None:
        return arriving.client.hold(id, actor=actor)
    if _client_source is None:
        raise RuntimeError(
            "A reference arrived before jupyter_tasks was used here; import jupyter_tasks and call init."
        )
    return _client_source().hold(id, actor=actor)


builtins_id = id  # `id` is what refs call theirs


class RefNote(weakref.ref["ObjectRef"]):
    """Outlives a ref, and knows which it was."""

    __slots__ = ("id",)

    id: int


class CodeNote(weakref.ref[Any]):
    """Outlives a remote function, or class, and knows what the supervisor calls its code."""

    __slots__ = ("fn",)

    fn: int


class Dependency:
    """Stands for a ref at the top level of a call's arguments: the worker puts the value in its place."""

    __slots__ = ("id",)

    def __init__(self, id: int) -> None:
        self.id = id

    def __reduce__(self) -> tuple[Any, ...]:
        return Dependency, (self.id,)


class ObjectRef:
    """A value that is, or will be, there: the result of a task, or of `put`.

    `get(ref)` waits for it and returns it, `await ref` does so in asyncio code, `ref.future()` gives a
    concurrent.futures.Future. Passed to a task as an argument, a ref is replaced by its value; inside a list, dict
    or object it stays a ref. Made by `remote()` and `put()`, never by calling this class.
    """

    __slots__ = (
        "__weakref__",
        "_actor",
        "_body",
        "_callbacks",
        "_client",
        "_elsewhere",
        "_kind",
        "_local",
        "_task",
        "_waiters",
        "id",
        "label",
    )

    _actor: int  # of an actor's call: the actor; of an actor: itself
    _elsewhere: dict[tuple[Client, bool], ObjectRef]  # what stands for it in other sessions, whose tasks need it
    _task: int  # of an item
    _local: Any  # of a thread task, in its process: the value itself

    def __init__(self, client: Client, id: int, label: str = "") -> None:
        self.id = id
        self.label = label  # the task's name
        self._client = client
        self._kind = 0  # Kind.RESULT, ERROR or FAILURE once it is final
        self._body: bytes | None = b""  # the outcome; None: a big value that waits at the supervisor
        self._waiters: list[Any] | None = None  # locks that threads wait on
        self._callbacks: list[Callable[[ObjectRef], None]] | None = None
        # Tells when this ref is gone. The callback is C code: in a `__del__` of Python's, a KeyboardInterrupt (the
        # stop button) that comes at that moment would be printed and dropped.
        note = RefNote(self, client.dropped)
        note.id = id
        client.notes[builtins_id(note)] = note

    @classmethod
    def unheld(cls, client: Client, id: int, label: str = "") -> ObjectRef:
        """One that keeps nothing alive, and is never told how it ends. What it is sent to holds what it stands for."""
        ref = cls.__new__(cls)
        ref.id, ref.label, ref._client = id, label, client
        ref._kind, ref._body, ref._waiters, ref._callbacks = 0, b"", None, None
        return ref

    @property
    def is_final(self) -> bool:
        """The value or an error is there; `get` returns or raises at once."""
        return self._kind != 0

    @property
    def task_id(self) -> str:
        """The id as `%tasks` shows it; for an item of a generator that of its task."""
        return show_id(self._id_of_task())

    def _id_of_task(self) -> int:
        try:
            return self._task  # only items have one
        except AttributeError:
            return self.id

    def story(self) -> list[dict[str, Any]]:
        """What has happened to the task so far, oldest first; of a long story the middle is left out.

        Returns:
            Dicts with "at" (seconds since the epoch), "step" ("submitted", "started", "retried", "asked", "terminate",
            "kill", "returned", "stopped", ...), "state" (what it led to), and of cancels "source" and "reason".
            Empty for `put`, and for a task that is long over. The start stands there for cells and for tasks with
            `timeout` or `memory`; others tell only their end.
        """
        if self._client.closed:
            return []
        return self._client.request("story", id=self._id_of_task()) or []

    def future(self) -> Future[Any]:
        """A concurrent.futures.Future of this ref, whose `cancel()` cancels the task.

        Callbacks added to it run in the client's event thread.
        """
        from jupyter_tasks.futures import RefFuture  # asyncio and concurrent.futures take 25 ms of a cold start

        return RefFuture(self)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait_in_loop().__await__()

    async def _wait_in_loop(self) -> Any:
        await self._until_final()
        return self._client.value(self)

    async def _until_final(self) -> None:
        """Waits without blocking the event loop. Cancelling the awaiting code leaves the task alone."""
        if not self.is_final:
            from jupyter_tasks.waiting import until_final

            await until_final(self._client, self)

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other.id == self.id and other._client is self._client

    def __repr__(self) -> str:
        label = f" {self.label}" if self.label else ""
        return f"<ObjectRef {self.task_id}{label}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if hasattr(self, "_actor"):
            return _arrived, (self.id, self._actor)
        return _arrived, (self.id,)

    def __copy__(self) -> ObjectRef:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"This is a reference to a value, not the value: it has no attribute {name!r}. "
            "Use jt.get(ref) to wait for the value, or pass the ref to a task."
        )
