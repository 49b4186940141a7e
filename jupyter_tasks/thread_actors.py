"""Actors in threads: `@jt.remote(executor="thread")` on a class. The instance lives in the process that made it, as a
rule the kernel, and shares its objects.

    ThreadActor   its calls run in threads of their own, as many at a time as the actor wants; with one: in order
    LoopActor     coroutines, in an event loop that has a thread of its own
    OwnCall       a call from this process: arguments and results are the objects themselves
    ForeignCall   one from another process: they are pickled

When a call begins, and what became of it, is the supervisor's word (`engine.actors`, `backends.threads`). A thread
cannot be killed: of an actor that is killed no further call begins, and those that run are asked to stop. The last of
its threads drops the instance, and says that nothing is left; nobody waits for that.

Threads: what the supervisor says comes in the client's event thread, which must never wait for a call; the rest is the
actor's own threads'.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Coroutine
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from jupyter_tasks.exceptions import ObjectLostError
from jupyter_tasks.refs import Dependency, arriving, current_group
from jupyter_tasks.threads import Sender
from jupyter_tasks.wire.frames import DURATION_SHIFT, HEADER, Flag, Kind, frame, to_json
from jupyter_tasks.worker import actors, context, execution, items

if TYPE_CHECKING:
    import asyncio

    from jupyter_tasks.client import Client
    from jupyter_tasks.threads import ThreadHost

__all__ = ["ForeignCall", "LoopActor", "OwnCall", "ThreadActor", "make"]


class _InThread(actors.ActorCall):
    """What both kinds of calls have."""

    host: ThreadActor

    def is_canceled(self) -> bool:
        """As in an actor that has a process."""
        if isinstance(self.host, LoopActor):
            raise RuntimeError(actors.NO_FLAG)
        return self.asked


class OwnCall(_InThread):
    """A call from this process; all its attempts."""

    def __init__(
        self,
        host: ThreadActor,
        id: int,
        head: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        retry: Any,
    ) -> None:
        super().__init__(host, id, 0, head, None, {})
        self.threads = host.threads
        self.options = dict(options)
        self.context = _context()  # so that what it prints appears in the cell that has called it
        self.wanted: set[int] = set()  # of its refs those whose bytes are needed elsewhere
        self.items: dict[int, Any] = {}  # made by a generator, and on their way to their refs
        self._args, self._kwargs, self._retry = args, kwargs, retry

    @property
    def width(self) -> int:
        """How many values it has."""
        return max(1, self.option("num_returns") or 1)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        args, kwargs = self.threads.resolved(self._args, self._kwargs)
        return args, kwargs, self._retry if self._retry is not None else self.host.retries.get(self.of["name"], False)

    def sender(self) -> Sender:
        """Of its items."""
        return Sender(self.host.client, self, self.option("backpressure") or 0)

    def failed(self, error: BaseException, *, retryable: bool) -> None:
        """It has raised this."""
        self.threads.keep(self.task_id, error)
        if retryable:
            self.options["attempt"] = self.options.get("attempt", 0) + 1

    def results(self, values: list[Any]) -> tuple[list[bytes], list[int]]:
        """The frames that tell its values, its own last, and their descriptors."""
        ends, fds = [], []
        for i in reversed(range(len(values))):
            payload = self.threads.packed_return(self.task_id + i, self, values[i])
            head, fd = (b"", None) if payload is None else (payload.head, payload.fd)
            ends.append(_result(self.task_id, i, head, fd, flags=Flag.BIG))
            fds += [] if fd is None else [fd]
        return ends, fds


class ForeignCall(_InThread):
    """A call from another process; one attempt."""

    def __init__(self, host: ThreadActor, id: int, flags: int, body: bytes, fd: int | None) -> None:
        super().__init__(host, id, flags, body, fd, {})
        self.threads = host.threads
        self.context = host.context
        self.namespace = host.client.namespace

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        outer, arriving.client = arriving.client, self.host.client  # refs inside of them are that session's
        try:
            return super().arguments()
        finally:
            arriving.client = outer

    def _resolve(self, arg: Any) -> Any:
        """A value is there as long as the call that needs it."""
        if type(arg) is not Dependency:
            return arg
        client = self.host.client
        ref = client.hold(arg.id)
        client.wait([ref])
        return client.value(ref)

    def sender(self) -> Sender:
        """Of its items."""
        return _PackedSender(self.host.client, cast("Any", self), self.option("backpressure") or 0)

    def failed(self, error: BaseException, *, retryable: bool) -> None:
        """It has raised this."""

    def results(self, values: list[Any]) -> tuple[list[bytes], list[int]]:
        """As OwnCall."""
        ends, fds = [], []
        try:
            for i in reversed(range(len(values))):
                payload = self.threads.packed(self.task_id + i, values[i], "result")
                ends.append(_result(self.task_id, i, payload.head, payload.fd))
                fds += [] if payload.fd is None else [payload.fd]
        except BaseException:
            _close_all(fds)
            raise
        return ends, fds


_Call = OwnCall | ForeignCall


class _Making(actors.ActorCall):
    """The constructor, which is asked what calls are asked."""

    def __init__(self, host: ThreadActor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Not ActorCall's own: that reads a frame.
        self.host = host
        self.threads = host.threads
        self.task_id = host.id
        self.options = {}
        self.of = {"name": "__init__", "options": {}}
        self.lock = threading.Lock()
        self.began_ns = 0
        self.over = self.asked = self.leaves = False
        self.task = None
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = (args, kwargs)

    def is_canceled(self) -> bool:
        """The actor was killed."""
        return self.asked

    def take_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Once."""
        arguments, self._arguments = self._arguments, None
        return arguments or ((), {})

    def drop(self) -> None:
        self._arguments = None


class _PackedSender(Sender):
    """Of a call from another process."""

    def tell(self, item: Any) -> None:
        client, id = self.client, self._call.task_id
        payload, inside = client.threads.pack(item, f"item {self.made}")
        if inside:
            client.request("item_contains", task=id, place=self.made, inside=inside)
        client.send_payload(Kind.YIELD, id, payload.head, payload, fn=self.made)
        self.made += 1


class ThreadActor(actors.Host):
    """One actor of this process, in threads.

    Invariant: once `_ending` is set no call begins; `_open` counts what was given and has not been answered.
    """

    def __init__(
        self,
        threads: ThreadHost,
        client: Client,
        id: int,
        options: dict[str, Any],
        function: execution._Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(cast("Any", threads), id, options, function)  # who has what is asked of a worker here
        self.threads = threads
        self.context = _context()  # of the constructor, and of calls from elsewhere
        self.is_gone = False
        self._client = client
        self._making = _Making(self, args, kwargs)
        self._lock = threading.Lock()
        self._given: dict[int, actors.ActorCall] = {}  # that have not ended
        self._open = 0
        self._ending = False
        self._retired = False
        self._left = False  # its threads are to end
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._living = 0  # threads
        self._free = 0  # of these wait, less calls that wait for one

    @property
    def client(self) -> Client:
        return self._client

    @property
    def _in_order(self) -> bool:
        return bool(self.settings["concurrency"] == 1)

    # -- what the supervisor says (event thread) ------------------------------------------------------------------

    def begin(self) -> None:
        """Its constructor may run."""
        if self._ending:
            return  # the supervisor has gone meanwhile
        self._given[self.id] = self._making
        self._open = self._living = 1
        self._start(self._live)

    def take(self, call: _Call) -> None:
        """A call may run."""
        call.over, call.began_ns = False, 0  # of an attempt before this one
        with self._lock:
            self._open += 1
            self._given[call.task_id] = call
            refused = self._ending
        if refused:
            self._skip(call)
        else:
            self._give(call)

    def stop_call(self, id: int, *, only_look: bool) -> None:
        """A call is to stop; with `only_look` just if it has not begun."""
        call = self._given.get(id)
        if call is not None and not self._skip(call) and not only_look:
            self._ask(call)

    def retire(self) -> None:
        """No further call begins, those that run are asked to stop, and then it ends. Any thread, when all is lost."""
        if self._retired:
            return
        self._retired = True
        self.end()
        for call in list(self._given.values()):
            self._ask(call)

    def end(self) -> None:
        """It begins nothing any more, and ends with what it has begun."""
        with self._lock:
            self._ending = True
            given = list(self._given.values())
        for call in given:
            self._skip(call)
        self._leave_if_over()

    def drop_if_unmade(self) -> None:
        """The supervisor has done with it: what it was to be made of is not needed, if it was not begun."""
        if not self._living:
            self._making.drop()
            self.is_gone = True

    # -- calls ----------------------------------------------------------------------------------------------------

    def sender(self, call: actors.ActorCall) -> items.Sender:
        assert isinstance(call, _Call)
        return cast("items.Sender", call.sender())  # of the same shape

    def failed(self, call: actors.ActorCall, error: BaseException, retry: Any) -> tuple[list[bytes], list[int]]:
        assert isinstance(call, _Call)
        if not isinstance(error, KeyboardInterrupt):
            call.failed(error, retryable=execution._wants_retry(retry, error))
        return super().failed(call, error, retry)

    def ended(self, call: actors.ActorCall, value: Any) -> tuple[list[bytes], list[int]]:
        assert isinstance(call, _Call)
        try:
            return call.results(items.results(value, call.option("num_returns")))
        except Exception as error:
            return self.failed(call, error, False)

    def _give(self, call: _Call) -> None:
        with self._lock:
            self._free -= 1
            new = self._free < 0 and self._living < self.settings["concurrency"]
            self._living += new
            self._free += new
        self._queue.put(call)
        if new:
            self._start(self._work)

    def _start(self, target: Any) -> None:
        # Its name does not begin as those of the client's own threads do: it belongs to who has made the actor.
        threading.Thread(target=target, name=f"actor {self.label}", daemon=True).start()

    def _live(self) -> None:
        self.context.copy().run(self._construct)
        with self._lock:
            self._free += 1
        self._work()

    def _construct(self) -> None:
        making = self._making
        if not making.begin():
            return
        context.thread_call.set(making)
        self._tell_started(making)
        try:
            self.construct(*self.threads.resolved(*making.take_arguments()))
            end = frame(Kind.RESULT, self.id)
            if making.leaves:
                raise actors.ActorExit
        except actors.ActorExit:
            self._exits(making)
            return
        except BaseException as error:
            end = actors.constructor_failed(self.id, self.label, error)
        self._told_end(making, [end], [])

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if call.begin():
                call.context.copy().run(self._run_one, call)
            del call  # or its value would stay until the next one
            with self._lock:
                self._free += 1
        self._queue.put(None)  # for the other threads
        with self._lock:
            self._living -= 1
            last = not self._living
        if last:
            self._say_gone()

    def _run_one(self, call: _Call) -> None:
        self._enter(call)
        call.thread = threading.get_ident() if self._in_order else 0
        began = time.perf_counter()
        try:
            ends, fds = self.run(call)
            if call.asked:  # whatever it has returned
                _close_all(fds)
                ends, fds = [frame(Kind.INTERRUPTED, call.task_id)], []
        except actors.ActorExit:
            self._exits(call)
            return
        except BaseException as error:  # also sys.exit: the process is not the actor's to end
            ends, fds = self.failed(call, error, False)
        call.thread = 0
        self._told_end(call, ends, fds, time.perf_counter() - began)

    def _enter(self, call: _Call) -> None:
        """In the context, and on the thread, that the call runs in."""
        context.thread_call.set(call)
        self._tell_started(call)

    # -- what is said ---------------------------------------------------------------------------------------------

    def _tell_started(self, call: actors.ActorCall) -> None:
        self.threads.say(Kind.STARTED, call.task_id, to_json({"started_ns": call.began_ns}))

    def _told_end(self, call: actors.ActorCall, ends: list[bytes], fds: list[int], took: float = 0.0) -> None:
        """It is over. Forgotten first: when this is told, the supervisor may give it once more."""
        call.over = True
        self._given.pop(call.task_id, None)
        duration = min(int(took * 1e6).bit_length(), execution.MOST_DURATION)
        ends[-1] = execution._with_flags(ends[-1], duration << DURATION_SHIFT)
        rest = list(fds)
        try:
            with contextlib.suppress(ObjectLostError):
                for end in ends:
                    count = HEADER.unpack_from(end)[3]
                    self._client.say(end, rest[:count])
                    del rest[:count]
        finally:
            _close_all(fds)
            self._answered()

    def _skip(self, call: actors.ActorCall) -> bool:
        """It is not begun. False if it has begun, or is over."""
        with call.lock:
            if call.began_ns or call.over:
                return False
            call.over = True
        self._given.pop(call.task_id, None)
        call.drop()
        self.threads.say(Kind.INTERRUPTED, call.task_id, flags=Flag.SKIPPED)
        self._answered()
        return True

    def _answered(self) -> None:
        with self._lock:
            self._open -= 1
        self._leave_if_over()

    def _ask(self, call: actors.ActorCall) -> None:
        call.asked = True

    # -- the end --------------------------------------------------------------------------------------------------

    def _exits(self, call: actors.ActorCall) -> None:
        """It was the actor's last: those that run go on to their ends, and then it leaves. It is never told an end."""
        # Before others are given back: they would be given again.
        self.threads.say(Kind.EXIT, self.id, actors.how(actors.ActorExit()).encode())
        call.over = True
        self._given.pop(call.task_id, None)
        self.end()
        self._answered()

    def _leave_if_over(self) -> None:
        with self._lock:
            if not self._ending or self._open or self._left or not self._living:
                return
            self._left = True
        self._leave()

    def _leave(self) -> None:
        """Its threads are to end."""
        self._queue.put(None)

    def _say_gone(self) -> None:
        self.instance = None
        self.context = contextvars.Context()
        self.is_gone = True
        self.threads.say(Kind.EXIT, self.id, flags=Flag.LEAVES)


class LoopActor(ThreadActor):
    """One that has coroutines."""

    _loop: asyncio.AbstractEventLoop

    def begin(self) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        self._cancelled = asyncio.CancelledError
        super().begin()

    def _live(self) -> None:
        import asyncio

        async def make() -> None:
            self._construct()

        asyncio.set_event_loop(self._loop)
        self.context.copy().run(self._loop.run_until_complete, make())
        while not self._left:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # of a task that the user's code has made; asyncio says so when nobody looks at it
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            self._close()
        self._living = 0
        self._say_gone()

    def _close(self) -> None:
        """Tasks that the user's code has left are cancelled, as by asyncio.run."""
        import asyncio

        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        try:
            if left:
                self._loop.run_until_complete(asyncio.wait(left))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _give(self, call: _Call) -> None:
        self._loop.call_soon_threadsafe(self._begin_in_loop, call)

    def _begin_in_loop(self, call: _Call) -> None:
        if not call.over:
            call.task = call.context.copy().run(self._loop.create_task, self._run_in_loop(call))

    async def _run_in_loop(self, call: _Call) -> None:
        if not call.begin():
            return
        self._enter(call)
        began = time.perf_counter()
        retry: Any = False
        try:
            args, kwargs, retry = call.arguments()
            value = self.bound(call)(*args, **kwargs)
            if isinstance(value, Coroutine) or hasattr(value, "__await__"):
                value = await value
            ends, fds = self.ended(call, await self._items_in_loop(call, value))
            if call.leaves:
                raise actors.ActorExit
        except BaseException as error:
            if call.leaves:
                self._exits(call)
                return
            if isinstance(error, self._cancelled):
                ends, fds = [frame(Kind.INTERRUPTED, call.task_id)], []
            else:
                ends, fds = self.failed(call, error, retry)
        self._told_end(call, ends, fds, time.perf_counter() - began)

    def _ask(self, call: actors.ActorCall) -> None:
        """CancelledError at its await, once for each cancel."""
        super()._ask(call)

        def cancel() -> None:
            if call.task is not None:
                call.task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed: it was over
            self._loop.call_soon_threadsafe(cancel)

    def _leave(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def make(
    threads: ThreadHost,
    client: Client,
    id: int,
    cls: type,
    record: dict[str, Any],
    retries: dict[str, Any],
    options: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ThreadActor:
    """One that has not begun. Of the kind that its class asks for."""
    kind = LoopActor if record["asynchronous"] else ThreadActor
    function = execution._Function(cls, {"class": record}, retries)
    return kind(threads, client, id, options, function, args, kwargs)


def _context() -> contextvars.Context:
    """That of who calls, but for the block that this is in: what a call submits belongs to the call."""
    found = contextvars.copy_context()
    found.run(current_group.set, None)
    return found


def _result(id: int, place: int, head: bytes, fd: int | None, *, flags: int = 0) -> bytes:
    fds = 0 if fd is None else 1
    return frame(Kind.RESULT, id + place, head, flags=flags, fn=id if place else 0, fds=fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
