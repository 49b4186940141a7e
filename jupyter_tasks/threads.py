"""Thread tasks: `@jt.remote(executor="thread")` runs in this process, and shares its objects.

Arguments and results are the objects themselves; nothing is pickled, unless a task elsewhere needs it. When such a task
starts, and what became of it, is the supervisor's word like everybody's (`backends/threads.py`); here are the threads.

A thread cannot be killed. A cancel sets the flag that `is_canceled()` reads, and `get` raises when the function ends,
whatever it returns. With `interruptible=True` its code also gets a KeyboardInterrupt, by CPython's
PyThreadState_SetAsyncExc: between two lines of Python code, so not while a system call or C code lasts, and perhaps in
the midst of a `finally`. In an import, a finalizer or an event loop's own code, where it would break things, it waits.
One that comes late is caught where the task ends: it hits this task or nothing.

Threads: `submit` and `share` any; `hear` the client's event thread; each task has a thread of its own. Actors of this
process stand here, too, and are in `thread_actors`.
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
import weakref
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
    from jupyter_tasks.thread_actors import OwnCall, ThreadActor

__all__ = ["THREADS", "Sender", "ThreadHost"]

CHECKS = 10  # turns of a loop, each of which looks for an interrupt; one would do
THREADS = min(32, (os.cpu_count() or 1) + 4)  # at a time; as concurrent.futures.ThreadPoolExecutor has it


class _Call:
    """One thread task, all its attempts. `get_runtime_context()` asks it what it otherwise asks a worker."""

    config = {"gpus": ()}  # it has no devices of its own
    replaced: frozenset[int] = frozenset()

    def __init__(
        self,
        threads: ThreadHost,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.threads = threads
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

    @property
    def width(self) -> int:
        """How many values it has."""
        num_returns: int = self.options.get("num_returns", 1)
        return max(1, num_returns)

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
    """The thread tasks of one client, and the actors that live in threads here."""

    config = _Call.config  # actors ask it what others ask a worker

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: dict[int, _Call | OwnCall] = {}  # those that are not final
        self.actors: dict[int, ThreadActor] = {}  # by their ids; of those that have ended some
        # What the supervisor knows of their classes, and by which id.
        self._classes: weakref.WeakKeyDictionary[type, tuple[bytes, int]] = weakref.WeakKeyDictionary()
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
        wire = client.belonging({**options, "threads": THREADS, **self._deps_of(args, kwargs)})
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

    def _deps_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """As an option on the wire; none if there are none."""
        deps = [self._id_of(arg) for arg in (*args, *kwargs.values()) if type(arg) is ObjectRef]
        return {"deps": deps} if deps else {}

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
            if 0 <= ref.id - call.task_id < call.width:
                call.wanted.add(ref.id)

    def item_made(self, task: int, place: int, ref: ObjectRef) -> None:
        """Event thread: the ref of an item that a generator of ours has made."""
        call = self._calls.get(task)
        if call is not None and place in call.items:
            ref._body, ref._local = None, call.items.pop(place)

    # -- actors -------------------------------------------------------------------------------------------------

    def make_actor(
        self,
        cls: type,
        retries: dict[str, Any],
        record: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
    ) -> ObjectRef:
        """An actor in threads of this process. As Client.make_actor.

        Args:
            retries: exceptions for which calls are run again, by their methods.
            record: what others are told of the class.
            options: as they are on the wire.
        """
        from jupyter_tasks import thread_actors

        client = self._client
        for actor in list(self.actors.values()):
            if actor.is_gone and not client.holds_actor(actor.id):
                self.actors.pop(actor.id, None)
        text = to_json(record)
        known, fn = self._classes.get(cls, (b"", 0))
        if known != text:
            fn = client.new_function(_NOTHING, {"name": cls.__name__, "class": record}, cls)
            self._classes[cls] = text, fn
        id = client.new_ids(1)
        self.actors[id] = thread_actors.make(self, client, id, cls, record, retries, options, args, kwargs)
        wire = client.belonging({**options, "threads": THREADS, **self._deps_of(args, kwargs)})
        ref = client.submit_actor(id, fn, _NOTHING, label, wire)
        client.when_final(ref, self._actor_over)
        return ref

    def submit_call(
        self,
        actor: int,
        head: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any] | None,
        num_returns: int,
        retry: Any,
        *,
        backpressure: bool = False,
        streams: bool = False,
    ) -> ObjectRef | list[ObjectRef] | ObjectRefGenerator:
        """A call of one of our actors. As Client.submit_call, or, if it `streams`, submit_call_stream."""
        from jupyter_tasks.thread_actors import OwnCall

        client = self._client
        id = client.new_ids(num_returns)
        self._calls[id] = OwnCall(self.actors[actor], id, head, args, kwargs, options or {}, retry)
        wire = client.belonging({**(options or {}), **self._deps_of(args, kwargs)} or None)
        if streams:
            generator = client.new_stream(id, label, backpressure=backpressure)
            completed = generator.completed()
            completed._actor = actor
            client.when_final(completed, self._forget)
            client.submit_packed(Kind.CALL, actor, _NOTHING, label, wire or {}, ref=completed, prefix=head)
            return generator
        submitted = client.submit_packed(Kind.CALL, actor, _NOTHING, label, wire, num_returns, id, prefix=head)
        refs = submitted if isinstance(submitted, list) else [submitted]
        for ref in refs:
            ref._actor = actor
        client.when_final(refs[0], self._forget)
        return submitted

    def forget_actor(self, id: int) -> None:
        """It was not made: its name is taken."""
        self.actors.pop(id, None)

    def _actor_over(self, ref: ObjectRef) -> None:
        actor = self.actors.get(ref.id)
        if actor is not None:
            actor.drop_if_unmade()

    # -- what the supervisor says (event thread) ------------------------------------------------------------------

    def hear(self, kind: int, flags: int, fn: int, id: int, body: bytes, fd: int | None) -> None:
        """A frame that is for us; see backends.threads."""
        actor = self.actors.get(fn or id)
        if kind == Kind.CALL:
            self._take_call(actor, flags, id, body, fd)
        elif actor is None:
            (self._begin if kind == Kind.TASK else self._stop)(id)
        elif kind == Kind.TASK:
            actor.begin()
        elif kind == Kind.EXIT:
            actor.end()
        elif fn:
            actor.stop_call(id, only_look=bool(flags & Flag.ASKS))
        else:
            actor.retire()

    def _begin(self, id: int) -> None:
        call = self._calls.get(id)
        if not isinstance(call, _Call) or call.is_canceled():
            self.say(Kind.INTERRUPTED, id, flags=Flag.SKIPPED)
            return
        # Its name does not begin as those of the client's own threads do: it belongs to a task.
        threading.Thread(target=self._run, args=(call,), name=f"task {call.options['name']}", daemon=True).start()

    def _stop(self, id: int) -> None:
        call = self._calls.get(id)
        if isinstance(call, _Call):
            call.ask()

    def _take_call(self, actor: ThreadActor | None, flags: int, id: int, body: bytes, fd: int | None) -> None:
        from jupyter_tasks.thread_actors import ForeignCall, OwnCall

        call = self._calls.get(id)
        if actor is not None and body:
            actor.take(ForeignCall(actor, id, flags, body, fd))
        elif actor is not None and isinstance(call, OwnCall):
            actor.take(call)
        else:
            self.say(Kind.INTERRUPTED, id, flags=Flag.SKIPPED)
            if fd is not None:
                os.close(fd)

    def lost(self) -> None:
        """The supervisor has gone. Threads cannot be ended, but they can be told."""
        for actor in list(self.actors.values()):
            actor.retire()
        for call in list(self._calls.values()):
            if isinstance(call, _Call):
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
                        self.say(Kind.STARTED, call.task_id, to_json({"started_ns": time.monotonic_ns()}))
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
            self.say(Kind.INTERRUPTED, call.task_id, flags=Flag.SKIPPED)

    def _call(self, call: _Call) -> list[Any]:
        """The user's code, in its own context. Returns the values of the task's refs."""
        context.thread_call.set(call)
        args, kwargs = self.resolved(call.args, call.kwargs)
        value = call.function(*args, **kwargs)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        options = call.options
        if options.get("generator") == "streaming":
            sender = Sender(self._client, call, options.get("backpressure", 0))
            items.drive(items.checked(value, options), sender.take)
            return [None]
        if "generator" in options:
            return [items.dynamic(items.checked(value, options), self._client.put)]
        num_returns = options.get("num_returns")
        if num_returns is not None and items.is_generator(value):
            value = items.collect(value, num_returns)
        return items.results(value, num_returns)

    def resolved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with values in the place of refs, which are final."""
        return (
            tuple(arg._client.value(arg) if type(arg) is ObjectRef else arg for arg in args),
            {name: arg._client.value(arg) if type(arg) is ObjectRef else arg for name, arg in kwargs.items()},
        )

    def _tell(self, call: _Call, values: list[Any], error: BaseException | None) -> None:
        """How it ended. A task that was asked to stop is cancelled, whatever it returns."""
        id = call.task_id
        if call.is_canceled() or isinstance(error, KeyboardInterrupt):
            self.say(Kind.INTERRUPTED, id)
        elif error is None:
            for i in reversed(range(len(values))):
                self._tell_value(call, id + i, values[i])
        else:
            call.attempt += 1
            retryable = execution._wants_retry(call.options["retry_exceptions"], error)
            self.keep(id, error)
            body = execution._error_body((type(error), error, error.__traceback__))
            self.say(Kind.ERROR, id, body, flags=Flag.RETRYABLE if retryable else 0)

    def _tell_value(self, call: _Call, place: int, value: Any) -> None:
        payload = self.packed_return(place, call, value)
        if payload is None:
            self.say(Kind.RESULT, call.task_id, flags=Flag.BIG, place=place)
        else:
            head = payload.head
            self._client.send_payload(Kind.RESULT, place, head, payload, fn=call.task_id, flags=Flag.BIG)

    def keep(self, place: int, value: Any) -> None:
        """For `get` in this process: before the word that it is there."""
        ref = self._client.pending(place)
        if ref is not None:
            ref._local = value

    def _send_value(self, place: int, id: int, value: Any, name: str) -> None:
        payload = self.packed(place, value, name or "value")
        self._client.send_payload(Kind.RESULT, place, payload.head, payload, fn=id, flags=Flag.BIG)

    def packed(self, place: int, value: Any, root: str) -> shared.Payload:
        """A value, ready for the wire; what it has refs to lives as long as the object `place`."""
        payload, inside = self.pack(value, root)
        if inside:
            self._client.contains(place, inside)
        return payload

    def pack(self, value: Any, root: str) -> tuple[shared.Payload, list[int]]:
        """The same, and what it has refs to."""
        refs: list[ObjectRef] = []

        def note(each: object) -> Any:
            if type(each) is ObjectRef:
                self._client.leaves(each)
                refs.append(each)
            return NotImplemented

        data, buffers = serialize.dumps(value, root=root, reducers=note)
        return shared.pack(data, buffers), [ref.id for ref in refs]

    def packed_return(self, place: int, call: _Call | OwnCall, value: Any) -> shared.Payload | None:
        """A value that stays here, as it goes to those elsewhere who need it; None if nobody does."""
        self.keep(place, value)
        if place not in call.wanted:
            return None
        try:
            return self.packed(place, value, call.options.get("name") or "value")
        except Exception as error:
            # It is there for this process. Who else needs it meets this error when it unpacks the value.
            return self.packed(place, _Unsendable(str(error)), "value")

    def say(self, kind: int, id: int, body: bytes = b"", *, flags: int = 0, place: int = 0) -> None:
        """A word about a task; about one of its refs with a `place`. Nothing once the supervisor has gone."""
        with contextlib.suppress(ObjectLostError):
            self._client.say(frame(kind, place or id, body, flags=flags, fn=id))

    def _parent(self, before: Callable[[], int] | None) -> int:
        """Which task of this session submits here."""
        call = context.thread_call.get()
        if call is not None and call.threads is not None:
            return int(call.task_id) if call.threads is self else 0
        return before() if before is not None else 0


@contextlib.contextmanager
def _waiting(before: Callable[[], contextlib.AbstractContextManager[None]] | None) -> Iterator[None]:
    """Around a wait for other tasks: meanwhile the slot of the thread task that waits is free."""
    call = context.thread_call.get()
    if call is None or call.thread != threading.get_ident():
        with before() if before is not None else contextlib.nullcontext():
            yield
        return
    call.threads.say(Kind.BLOCKED, call.task_id)
    try:
        yield
    finally:
        call.threads.say(Kind.UNBLOCKED, call.task_id)


class Sender:
    """Tells the items of one attempt at a generator task, and waits while too many of them are not taken."""

    def __init__(self, client: Client, call: _Call | OwnCall, backpressure: int) -> None:
        self.client = client
        self.made = 0
        self._call = call
        self._backpressure = backpressure
        self._taken = 0

    def take(self, item: Any) -> None:
        """For `items.drive`."""
        self.tell(item)
        if self.is_full:
            self.wait_for_room()

    def tell(self, item: Any) -> None:
        """The first half of it."""
        self._call.items[self.made] = item
        self.client.say(frame(Kind.YIELD, self._call.task_id, fn=self.made))
        self.made += 1

    @property
    def is_full(self) -> bool:
        """So many items are not taken that no further one is to be made."""
        return bool(self._backpressure) and self.made - self._taken >= self._backpressure

    def wait_for_room(self) -> None:
        """Until one more may be made."""
        self._taken = self.client.request("room", timeout=None, task=self._call.task_id, made=self.made)


_NOTHING = shared.Payload(b"", None, 0)  # a thread task's arguments stay where they are


class _Unsendable:
    """In the place of a value that stays in the process that made it."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, (self._why,)


def _refuse(why: str) -> Any:
    raise UnserializableError(f"The result of a thread task stays in the process that made it: {why}")
