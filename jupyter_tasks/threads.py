"""Thread tasks: `@jt.remote(executor="thread")` runs in this process, and shares its objects.

Arguments and results are the objects themselves; nothing is pickled, unless a task elsewhere needs it. When such a task
starts, and what became of it, is the supervisor's word like everybody's (`backends/threads.py`); here are the threads.

A thread cannot be killed. A cancel sets the flag that `is_canceled()` reads, and `get` raises when the function ends,
whatever it returns. With `interruptible=True` its code also gets a KeyboardInterrupt, by CPython's
PyThreadState_SetAsyncExc: between two lines of Python code, so not while a system call or C code lasts, and perhaps in
the midst of a `finally`. In an import, a finalizer or an event loop's own code, where it would break things, it waits.
One that comes late is caught where the task ends: it hits this task or nothing.

Threads: `submit` and `share` any; `begin` and `stop` the client's event thread; each task has a thread of its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jupyter_tasks.exceptions import ObjectLostError, UnserializableError
from jupyter_tasks.refs import THREAD_PREFIX, ObjectRef, process
from jupyter_tasks.streams import ObjectRefGenerator
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import Flag, Kind, frame, to_json
from jupyter_tasks.worker import context, execution, interrupt, items  # now: an import must not be interrupted

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["THREADS", "ThreadHost"]

CHECKS = 10  # turns of a loop, each of which looks for an interrupt; one would do
THREADS = min(32, (os.cpu_count() or 1) + 4)  # at a time; as concurrent.futures.ThreadPoolExecutor has it


class _Call:
    """One thread task, all its attempts. `get_runtime_context()` asks it what it otherwise asks a worker."""

    config = {"gpus": ()}  # it has no devices of its own
    replaced: frozenset[int] = frozenset()

    def __init__(
        self,
        host: ThreadHost,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.host = host
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.task_id = 0
        self.attempt = 0
        self.wanted: set[int] = set()  # of its refs those whose bytes are needed elsewhere
        self.items: dict[int, Any] = {}  # made by a generator, and on their way to their refs
        self.context = contextvars.copy_context()  # so that what it prints appears in the cell that has called it
        self.thread = 0  # ident, while its code may be interrupted
        self._lock = threading.Lock()
        self._asked = False

    @property
    def guard(self) -> _Call:
        """Who knows whether the task is to stop."""
        return self

    def is_canceled(self) -> bool:
        """It was asked to stop."""
        return self._asked

    def task_facts(self) -> context.TaskFacts:
        """What the task may know of itself."""
        return context.task_facts(self.options, self.function, self.attempt)

    def begin(self) -> bool:
        """Its thread is there. False: it was asked to stop before."""
        with self._lock:
            if not self._asked:
                self.thread = threading.get_ident()
            return not self._asked

    def ask(self) -> None:
        """Sets the flag; raises KeyboardInterrupt in its code if it wants that. May be called again."""
        self._asked = True
        if self.options.get("interruptible") and not self._interrupt():
            threading.Thread(target=self._insist, name=f"{THREAD_PREFIX}interrupt", daemon=True).start()

    def _interrupt(self) -> bool:
        """False: now it would vanish, or do harm. A thread cannot be replaced, so no import is cut in two, either."""
        with self._lock:
            frame = sys._current_frames().get(self.thread) if self.thread else None
            if frame is not None:
                if any(interrupt.look_at(frame)):
                    return False
                _raise_in(self.thread, KeyboardInterrupt)
            return True

    def _insist(self) -> None:
        delay = interrupt.AGAIN_FIRST
        while not self._interrupt():
            time.sleep(delay)
            delay = min(2 * delay, interrupt.AGAIN_MOST)

    def end(self) -> None:
        """Its code is over. When this returns, nothing is raised in this thread any more."""
        with self._lock:
            self.thread = 0
        for _ in range(CHECKS):  # one that was on its way is raised here
            pass


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """What the thread raises at its next byte code. Only CPython can; elsewhere nothing happens.

    It is never taken back: CPython 3.11 would look for it before every further byte code of every thread, and hang in
    a function that is profiled (measured).
    """
    with contextlib.suppress(AttributeError):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


class ThreadHost:
    """The thread tasks of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: dict[int, _Call] = {}  # those that are not final
        client.parent = functools.partial(self._parent, client.parent)
        if getattr(process.on_wait, "func", None) is not _waiting:
            process.on_wait = functools.partial(_waiting, process.on_wait)

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
        *,
        retry_exceptions: Any = False,
    ) -> ObjectRef | list[ObjectRef] | ObjectRefGenerator:
        """A task of this function in a thread of this process. Returns what `RemoteFunction.remote` does.

        Args:
            options: as they are on the wire.
        """
        client = self._client
        num_returns = max(1, options.get("num_returns", 1))
        call = _Call(self, function, args, kwargs, {**options, "retry_exceptions": retry_exceptions})
        deps = [self._id_of(arg) for arg in (*args, *kwargs.values()) if type(arg) is ObjectRef]
        wire = client.belonging({**options, "threads": THREADS, **({"deps": deps} if deps else {})})
        call.task_id = client.new_ids(num_returns)
        self._calls[call.task_id] = call
        if options.get("generator") == "streaming":
            generator = client.new_stream(call.task_id, label, backpressure=bool(options.get("backpressure")))
            client.when_final(generator.completed(), self._forget)
            client.submit_packed(Kind.TASK, 0, _NOTHING, label, wire, ref=generator.completed())
            return generator
        submitted = client.submit_packed(Kind.TASK, 0, _NOTHING, label, wire, num_returns, call.task_id)
        client.when_final(submitted[0] if isinstance(submitted, list) else submitted, self._forget)
        return submitted

    def _id_of(self, ref: ObjectRef) -> int:
        """What the task waits for; the value it gets from the ref."""
        client = self._client
        return ref.id if ref._client is client else client.adopted(ref, only_wait=True).id

    def share(self, ref: ObjectRef) -> None:
        """The value of this ref, perhaps that of a thread task, is about to be needed in another process.

        Raises:
            UnserializableError: it is there, and cannot be sent.
        """
        if hasattr(ref, "_local"):
            if ref._kind == Kind.RESULT:
                self._send_value(ref.id, 0, ref._local, ref.label)
            return
        for call in list(self._calls.values()):
            if 0 <= ref.id - call.task_id < max(1, call.options.get("num_returns", 1)):
                call.wanted.add(ref.id)

    def item_made(self, task: int, place: int, ref: ObjectRef) -> None:
        """Event thread: the ref of an item that a generator of ours has made."""
        call = self._calls.get(task)
        if call is not None and place in call.items:
            ref._body, ref._local = None, call.items.pop(place)

    # -- what the supervisor says (event thread) ------------------------------------------------------------------

    def begin(self, id: int) -> None:
        """The task's turn has come."""
        call = self._calls.get(id)
        if call is None or call.is_canceled():
            self._say(Kind.INTERRUPTED, id, flags=Flag.SKIPPED)
            return
        # Its name does not begin as those of the client's own threads do: it belongs to a task.
        threading.Thread(target=self._run, args=(call,), name=f"task {call.options['name']}", daemon=True).start()

    def stop(self, id: int) -> None:
        """The task is to stop."""
        call = self._calls.get(id)
        if call is not None:
            call.ask()

    def lost(self) -> None:
        """The supervisor has gone. Threads cannot be ended, but they can be told."""
        for call in list(self._calls.values()):
            call.ask()

    def _forget(self, ref: ObjectRef) -> None:
        self._calls.pop(ref.id, None)

    # -- a task's thread ----------------------------------------------------------------------------------------

    def _run(self, call: _Call) -> None:
        begun = False
        values: list[Any] = []
        error: BaseException | None = None
        # An interrupt may come behind the code's end, until `end` has returned. Three in these microseconds cannot.
        try:
            try:
                try:
                    begun = call.begin()
                    if begun:
                        self._say(Kind.STARTED, call.task_id, to_json({"started_ns": time.monotonic_ns()}))
                        values = call.context.copy().run(self._call, call)
                except BaseException as raised:
                    error = raised
                call.end()
            except KeyboardInterrupt:
                call.end()
        except KeyboardInterrupt:
            call.end()
        if begun:
            self._tell(call, values, error)
        else:
            self._say(Kind.INTERRUPTED, call.task_id, flags=Flag.SKIPPED)

    def _call(self, call: _Call) -> list[Any]:
        """The user's code, in its own context. Returns the values of the task's refs."""
        context.thread_call.set(call)
        args = tuple(self._resolved(arg) for arg in call.args)
        kwargs = {name: self._resolved(arg) for name, arg in call.kwargs.items()}
        value = call.function(*args, **kwargs)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        options = call.options
        if options.get("generator") == "streaming":
            items.drive(items.checked(value, options), _Sender(self, call).take)
            return [None]
        if "generator" in options:
            return [items.dynamic(items.checked(value, options), self._client.put)]
        num_returns = options.get("num_returns")
        if num_returns is not None and items.is_generator(value):
            value = items.collect(value, num_returns)
        return items.results(value, num_returns)

    def _resolved(self, arg: Any) -> Any:
        return arg._client.value(arg) if type(arg) is ObjectRef else arg

    def _tell(self, call: _Call, values: list[Any], error: BaseException | None) -> None:
        """How it ended. A task that was asked to stop is cancelled, whatever it returns."""
        id = call.task_id
        if call.is_canceled() or isinstance(error, KeyboardInterrupt):
            self._say(Kind.INTERRUPTED, id)
        elif error is None:
            for i in reversed(range(len(values))):
                self._tell_value(call, id + i, values[i])
        else:
            call.attempt += 1
            retryable = execution._wants_retry(call.options["retry_exceptions"], error)
            self._keep(id, error)
            body = execution._error_body((type(error), error, error.__traceback__))
            self._say(Kind.ERROR, id, body, flags=Flag.RETRYABLE if retryable else 0)

    def _tell_value(self, call: _Call, place: int, value: Any) -> None:
        self._keep(place, value)
        if place not in call.wanted:
            self._say(Kind.RESULT, call.task_id, flags=Flag.BIG, place=place)
            return
        try:
            self._send_value(place, call.task_id, value, call.options["name"])
        except Exception as error:
            # It is there for this process. Who else needs it meets this error when it unpacks the value.
            self._send_value(place, call.task_id, _Unsendable(str(error)), "")

    def _keep(self, place: int, value: Any) -> None:
        """For `get` in this process: before the word that it is there."""
        ref = self._client.pending(place)
        if ref is not None:
            ref._local = value

    def _send_value(self, place: int, id: int, value: Any, name: str) -> None:
        refs: list[ObjectRef] = []
        note = functools.partial(items.note_ref, self._client, refs)
        data, buffers = serialize.dumps(value, root=name or "value", reducers=note)
        payload = shared.pack(data, buffers)
        if refs:
            self._client.contains(place, [ref.id for ref in refs])
        self._client.send_payload(Kind.RESULT, place, payload.head, payload, fn=id, flags=Flag.BIG)

    def _say(self, kind: int, id: int, body: bytes = b"", *, flags: int = 0, place: int = 0) -> None:
        """A word about a task; about one of its refs with a `place`. Nothing once the supervisor has gone."""
        with contextlib.suppress(ObjectLostError):
            self._client.say(frame(kind, place or id, body, flags=flags, fn=id))

    def _parent(self, before: Callable[[], int] | None) -> int:
        """Which task of this session submits here."""
        call = context.thread_call.get()
        if call is not None:
            return int(call.task_id) if call.host is self else 0
        return before() if before is not None else 0


@contextlib.contextmanager
def _waiting(before: Callable[[], contextlib.AbstractContextManager[None]] | None) -> Iterator[None]:
    """Around a wait for other tasks: meanwhile the slot of the thread task that waits is free."""
    call = context.thread_call.get()
    if call is None or call.thread != threading.get_ident():
        with before() if before is not None else contextlib.nullcontext():
            yield
        return
    call.host._say(Kind.BLOCKED, call.task_id)
    try:
        yield
    finally:
        call.host._say(Kind.UNBLOCKED, call.task_id)


class _Sender:
    """Tells the items of one attempt at a generator task, and waits while too many of them are not taken."""

    def __init__(self, host: ThreadHost, call: _Call) -> None:
        self._host = host
        self._call = call
        self._backpressure = call.options.get("backpressure", 0)
        self._made = 0
        self._taken = 0

    def take(self, item: Any) -> None:
        """For `items.drive`."""
        call, client = self._call, self._host._client
        call.items[self._made] = item
        client.say(frame(Kind.YIELD, call.task_id, fn=self._made))
        self._made += 1
        if self._backpressure and self._made - self._taken >= self._backpressure:
            self._taken = client.request("room", timeout=None, task=call.task_id, made=self._made)


_NOTHING = shared.Payload(b"", None, 0)  # a thread task's arguments stay where they are


class _Unsendable:
    """In the place of a value that stays in the process that made it."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, (self._why,)


def _refuse(why: str) -> Any:
    raise UnserializableError(f"The result of a thread task stays in the process that made it: {why}")
