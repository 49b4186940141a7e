"""An actor, as its own process sees it: the instance, and who runs its methods.

    InOrder    one call at a time, in the main thread; the worker's loop hands them over, in packets, like tasks
    Threaded   several at a time, each in a thread; the main thread reads the socket
    Async      coroutines in an event loop, which has the main thread; a thread of ours reads the socket

No interrupt is ever raised here: calls share the actor's state, and half a change of it would be everybody's. A cancel
is a flag, and for a coroutine asyncio's cancel. What several calls print at once is told apart by their context.

An actor leaves by itself when the supervisor says so (nobody wants it any more), or when a method calls `exit_actor`:
then the calls that run end first, and its atexit functions run.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jupyter_tasks.exceptions import ActorDiedError
from jupyter_tasks.refs import Dependency
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import (
    CALL_OF,
    DURATION_SHIFT,
    HEADER,
    HEADER_SIZE,
    Flag,
    Kind,
    frame,
    from_json,
    show_id,
    to_json,
)
from jupyter_tasks.wire.sockets import MESSAGE_LIMIT, receive
from jupyter_tasks.worker import context, execution, items

if TYPE_CHECKING:
    import asyncio

    from jupyter_tasks.client import Client
    from jupyter_tasks.worker.execution import _Function, _Worker

__all__ = ["ActorCall", "ActorExit", "Async", "Host", "InOrder", "Threaded", "make_host"]

NO_FLAG = (
    "is_canceled() is for methods that are no coroutines: in an async actor a cancel raises asyncio.CancelledError at "
    "the await."
)
MOST_OUTPUT = 1 << 16  # bytes in one message
_Values = dict[int, tuple[bytes, int | None]]


class ActorExit(SystemExit):
    """Raised by `exit_actor()`. Who catches it does not hold up the actor's end."""


def how(error: SystemExit) -> str:
    """In the words of its messages."""
    return "exit_actor()" if isinstance(error, ActorExit) else f"sys.exit({error.code or 0})"


class ActorCall:
    """One call, as it arrived. `get_runtime_context()` asks it what it otherwise asks a worker."""

    replaced: frozenset[int] = frozenset()
    namespace: dict[str, Any] | None = None  # that functions among its arguments are bound to
    threads: Any = None  # of an actor in threads: the threads.ThreadHost
    thread = 0  # ... ident, while its waits free what the actor takes

    def __init__(self, host: Host, id: int, flags: int, body: bytes, fd: int | None, values: _Values) -> None:
        self.host = host
        self.task_id = id
        self.options: dict[str, Any] = {}
        self._values = values
        self._fd = fd
        at = 0
        if flags & Flag.OPTIONS:
            at = 4 + int.from_bytes(body[:4], "little")
            self.options = from_json(body[4:at])
        (self.method,) = CALL_OF.unpack_from(body, at)
        self._body = body[at + CALL_OF.size :]
        self.announce = bool(flags & Flag.ANNOUNCE)
        self.of = host.methods[self.method]
        self.lock = threading.Lock()
        self.began_ns = 0
        self.over = False  # ended, or never to be begun
        self.slot = -1  # in the shared page
        self.asked = False  # to stop
        self.leaves = False  # it has called exit_actor()
        self.task: asyncio.Task[None] | None = None  # in an event loop

    @property
    def config(self) -> dict[str, Any]:
        """The worker's."""
        return self.host.worker.config

    @property
    def guard(self) -> Any:
        """Who knows whether it is to stop."""
        return self

    def is_canceled(self) -> bool:
        """It was asked to stop."""
        return self.asked

    def option(self, name: str) -> Any:
        """Of this call, or else of its method."""
        return self.options.get(name, self.of["options"].get(name))

    def task_facts(self) -> context.TaskFacts:
        """What it may know of itself."""
        return self.host.facts(self)

    def begin(self) -> bool:
        """Its code is about to begin. False: nobody wants that any more."""
        with self.lock:
            if not self.over:
                self.began_ns = time.monotonic_ns()
            return not self.over

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """They, and for which errors it is to be run again."""
        fd, self._fd = self._fd, None
        try:
            data, buffers = shared.unpack(self._body, fd, writable=False)
            args, kwargs, *more = serialize.loads(data, buffers, namespace=self.namespace)
            if self.options.get("deps"):
                args = tuple(self._resolve(arg) for arg in args)
                kwargs = {name: self._resolve(arg) for name, arg in kwargs.items()}
        finally:
            if fd is not None:
                os.close(fd)
            self.drop()
        return args, kwargs, more[0] if more else self.host.retries.get(self.of["name"], False)

    def _resolve(self, arg: Any) -> Any:
        if type(arg) is not Dependency:
            return arg
        head, fd = self._values[arg.id]
        data, buffers = shared.unpack(head, fd, writable=False)
        return serialize.loads(data, buffers)

    def drop(self) -> None:
        """Closes what came with it."""
        for fd in (self._fd, *(fd for _, fd in self._values.values())):
            if fd is not None:
                os.close(fd)
        self._fd, self._values = None, {}


class CallInOrder(ActorCall):
    """One that runs alone: the shared page says whether it is to stop."""

    @property
    def guard(self) -> Any:
        """The worker's."""
        return self.host.worker.guard


class CallInLoop(ActorCall):
    """A coroutine's."""

    def is_canceled(self) -> bool:
        """Raises RuntimeError: it need not ask."""
        raise RuntimeError(NO_FLAG)


class Host:
    """What all kinds of actors have."""

    def __init__(self, worker: _Worker, id: int, options: dict[str, Any], function: _Function) -> None:
        self.worker = worker
        self.id = id
        self.label: str = options["name"]
        self.settings: dict[str, Any] = options["actor"]
        self.attempt: int = options.get("attempt", 0)
        self.class_meta: dict[str, Any] = function.options["class"]
        self.methods: list[dict[str, Any]] = self.class_meta["methods"]
        self.retries: dict[str, Any] = function.retry_exceptions or {}  # by the method's name
        self.instance: Any = None
        self.leaving = ""  # how, if by itself
        self._options = options
        self._class = function.call

    # -- its life ---------------------------------------------------------------------------------------------

    def construct(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Makes the instance. Raises what its constructor raises."""
        self.instance = execution._call(self._class, args, kwargs)

    def serve(self) -> None:
        """Runs calls until the actor leaves; for those whom the worker's loop does not serve."""

    def leave(self) -> None:
        """Ends this process as a program ends. Main thread; no call runs. Never returns."""
        self.worker._flush()
        self.worker.streams.tell = None
        self.worker.send(Kind.EXIT, 0, self.leaving.encode(), flags=Flag.LEAVES)
        code = 0
        try:
            self.instance = None
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as at any exit
            atexit._run_exitfuncs()
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    # -- calls ------------------------------------------------------------------------------------------------

    def facts(self, call: ActorCall | None) -> context.TaskFacts:
        """What a call, or the constructor, may know of itself."""
        name = call.of["name"] if call is not None else "__init__"
        return context.TaskFacts(
            name=(call is not None and call.options.get("name")) or f"{self.label}.{name}",
            function_name=f"{self._class.__module__}.{self._class.__qualname__}.{name}",
            resources=context.task_facts({"cpus": 0, **self._options}, None, 0).resources,
            attempt=call.options.get("attempt", 0) if call is not None else self.attempt,
        )

    def bound(self, call: ActorCall) -> Callable[..., Any]:
        """The method."""
        method: Callable[..., Any] = getattr(self.instance, call.of["name"])
        return method

    def run(self, call: ActorCall) -> tuple[list[bytes], list[int]]:
        """Runs it here and now. Returns the frames that say how it ended, its own last, and their descriptors.

        Raises:
            SystemExit: the actor is to end.
        """
        retry: Any = False
        try:
            args, kwargs, retry = call.arguments()
            value = execution._call(self.bound(call), args, kwargs)
            if inspect.iscoroutine(value):  # a method that returns one, without being `async def`
                import asyncio

                value = asyncio.run(value)
            value = self._items_of(call, value)
        except SystemExit:
            raise
        except BaseException as error:
            if call.leaves:
                raise ActorExit from None
            return self.failed(call, error, retry)
        if call.leaves:
            raise ActorExit
        return self.ended(call, value)

    def _items_of(self, call: ActorCall, value: Any) -> Any:
        generator, num_returns = call.option("generator"), call.option("num_returns")
        if generator == "streaming":
            items.drive(items.checked(value, self._named(call)), self.sender(call).take)
            return None
        if generator is not None:
            return items.dynamic(items.checked(value, self._named(call)), self.client.put)
        if num_returns is not None and items.is_generator(value):
            return items.collect(value, num_returns)
        return value

    async def _items_in_loop(self, call: ActorCall, value: Any) -> Any:
        if not hasattr(value, "__anext__"):
            return self._items_of(call, value)
        import asyncio

        generator, num_returns = call.option("generator"), call.option("num_returns")
        if generator == "streaming":
            sender = self.sender(call)
            async for item in value:
                sender.tell(item)
                if sender.is_full:
                    await asyncio.get_running_loop().run_in_executor(None, sender.wait_for_room)
            return None
        if generator is None and num_returns is None:
            return value
        collected: list[Any] = []
        async for item in value:
            collected.append(item)
            if generator is None and len(collected) > num_returns:
                break
        return self._items_of(call, iter(collected))

    def sender(self, call: ActorCall) -> items.Sender:
        """Of the items of a call that streams."""
        return items.Sender(self.worker, call.task_id, call.option("backpressure") or 0)

    @property
    def client(self) -> Client:
        """What it talks to the supervisor by, as a task does."""
        return context.client_of_worker()

    def _named(self, call: ActorCall) -> dict[str, Any]:
        return {"name": f"{self.label}.{call.of['name']}", "generator": call.option("generator")}

    def failed(self, call: ActorCall, error: BaseException, retry: Any) -> tuple[list[bytes], list[int]]:
        """It has raised this."""
        if isinstance(error, KeyboardInterrupt):
            return [frame(Kind.INTERRUPTED, call.task_id)], []
        flags = Flag.RETRYABLE if execution._wants_retry(retry, error) else 0
        return [execution._error_frame(call.task_id, (type(error), error, error.__traceback__), flags=flags)], []

    def ended(self, call: ActorCall, value: Any) -> tuple[list[bytes], list[int]]:
        """It has returned this."""
        try:
            values = items.results(value, call.option("num_returns"))
        except (ValueError, TypeError) as error:
            return self.failed(call, error, False)
        return self.worker._values_out(call.task_id, values)


class InOrder(Host):
    """One call at a time, in the main thread."""


class Threaded(Host):
    """Several calls at a time, each in a thread. The main thread reads the socket."""

    call_type = ActorCall

    def __init__(self, worker: _Worker, id: int, options: dict[str, Any], function: _Function) -> None:
        super().__init__(worker, id, options, function)
        self._calls: dict[int, ActorCall] = {}  # that have not ended
        self._page = worker.page.calls
        self._slots = list(range(len(self._page)))  # places in it that are free
        self._lock = threading.Lock()
        self._exits = False  # no further call begins
        self._woken, self._wake = os.pipe()
        self._queue: queue.SimpleQueue[ActorCall] = queue.SimpleQueue()
        self._threads = 0
        self._free = 0  # threads that wait, less calls that wait for one

    def serve(self) -> None:
        """Main thread."""
        self.worker.streams.tell = self._tell_output
        self._read_on()
        self.leave()

    def _read_on(self) -> None:
        """Takes in what the supervisor says, until the actor is to leave."""
        sock = self.worker.sock
        fd = sock.fileno()
        while True:
            readable = select.select([fd, self._woken], [], [])[0]
            if self._woken in readable:
                return
            if fd not in readable:
                continue
            try:
                data, fds = receive(sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                data, fds = b"", []
            if not data:
                os._exit(0)
            self._take_in(data, fds)

    def _take_in(self, data: bytes, fds: list[int]) -> None:
        at, end = 0, len(data)
        values = self.worker._values
        begun: list[ActorCall] = []
        while end - at >= HEADER_SIZE:
            size, kind, flags, nfds, _, id = HEADER.unpack_from(data, at)
            body = data[at + HEADER_SIZE : at + HEADER_SIZE + size]
            at += HEADER_SIZE + size
            fd = fds.pop(0) if nfds else None
            if kind == Kind.RESULT:
                values[id] = (body, fd)
            elif kind == Kind.CALL:
                call = self.call_type(self, id, flags, body, fd, values)
                values = self.worker._values = {}
                if self._exits:
                    call.drop()
                    continue
                self._calls[id] = call
                begun.append(call)
            elif kind == Kind.CANCEL:
                if begun:
                    self.begin_all(begun)
                    begun = []
                self._asked(id, only_look=bool(flags & Flag.ASKS))
            elif kind == Kind.EXIT:
                self.wake()
            elif kind == Kind.PRELOAD:
                execution._preload(from_json(body))
        if begun:
            self.begin_all(begun)

    def wake(self) -> None:
        """The reader is to end. Any thread."""
        os.write(self._wake, b"\0")

    def begin_all(self, calls: list[ActorCall]) -> None:
        """Each in a thread."""
        for call in calls:
            with self._lock:
                self._free -= 1
                new = self._free < 0 and self._threads < self.settings["concurrency"]
                self._threads += new
                self._free += new
            if new:
                threading.Thread(target=self._work, name=f"actor-{self._threads}", daemon=True).start()
            self._queue.put(call)

    def _work(self) -> None:
        while True:
            self._run_one(self._queue.get())
            with self._lock:
                self._free += 1

    def _run_one(self, call: ActorCall) -> None:
        if not self.begins(call):
            return
        began = time.perf_counter()
        token = context.thread_call.set(call)
        try:
            ends, fds = self.run(call)
        except SystemExit as error:
            self.exits(call, error)
        except BaseException as error:
            self.told_end(call, *self.failed(call, error, False), began)
        else:
            self.told_end(call, ends, fds, began)
        finally:
            context.thread_call.reset(token)

    # -- what is said -----------------------------------------------------------------------------------------

    def _asked(self, id: int, *, only_look: bool) -> None:
        """Reader. The call is to stop; with `only_look` just if it has not begun."""
        call = self._calls.get(id)
        if call is None:
            return  # its end is on the way
        with call.lock:
            begun = bool(call.began_ns)
            if not begun:
                call.over = True
        if not begun:
            call.drop()
            self._say(frame(Kind.INTERRUPTED, id, flags=Flag.SKIPPED))
            self._forget(call)
        elif only_look:
            self._tell_started(call)
        else:
            call.asked = True
            self.stop(call)

    def stop(self, call: ActorCall) -> None:
        """Its flag is set. Reader."""

    def begins(self, call: ActorCall) -> bool:
        """Its code is about to begin, and who looks at the shared page sees that. False: nobody wants it any more."""
        if not call.begin():
            return False
        if self._slots:
            call.slot = self._slots.pop()
            self._page[call.slot] = call.task_id
        if call.announce or call.slot < 0:
            self._tell_started(call)
        return True

    def _over(self, call: ActorCall) -> None:
        call.over = True
        if call.slot >= 0:
            self._page[call.slot] = 0
            self._slots.append(call.slot)

    def _forget(self, call: ActorCall) -> None:
        """Only when its end is said: whoever is the last of an actor that leaves ends this process. (And not what has
        its id by now: it may have been given once more.)"""
        with self._lock:
            if self._calls.get(call.task_id) is call:
                del self._calls[call.task_id]
        self._leave_if_over()

    def _tell_started(self, call: ActorCall) -> None:
        if not call.over:
            self._say(frame(Kind.STARTED, call.task_id, to_json({"started_ns": call.began_ns})))

    def told_end(self, call: ActorCall, ends: list[bytes], fds: list[int], began: float) -> None:
        """It is over. Any thread."""
        took = int((time.perf_counter() - began) * 1e6).bit_length()
        ends[-1] = execution._with_flags(ends[-1], min(took, execution.MOST_DURATION) << DURATION_SHIFT)
        self._over(call)
        if not fds and sum(map(len, ends)) <= MESSAGE_LIMIT // 2:
            self.say_soon(b"".join(ends))
        else:
            with self.worker._send_lock:
                self.worker.send_frames_with_fds(ends, fds)
            for fd in fds:
                os.close(fd)
        self._forget(call)

    def _tell_output(self, id: int, fd: int, data: bytes) -> None:
        """A call has printed this. Its own thread, or its coroutine's."""
        flags = Flag.STDERR if fd == 2 else 0
        for at in range(0, len(data), MOST_OUTPUT):
            self._say(frame(Kind.OUTPUT, id, data[at : at + MOST_OUTPUT], flags=flags))

    def say_soon(self, data: bytes) -> None:
        """The same, perhaps with what comes next."""
        self._say(data)

    def _say(self, data: bytes) -> None:
        with self.worker._send_lock:
            self.worker.sock.sendall(data)

    # -- the end ----------------------------------------------------------------------------------------------

    def exits(self, call: ActorCall, error: SystemExit) -> None:
        """It was the actor's last: those that run go on to their ends, and then it leaves. Any thread."""
        code = execution._exit_code(error)
        if code:
            os._exit(code)  # as a program that ends with an error: the actor may be made again
        first = not self._exits
        self._exits = True
        if first:
            self.leaving = how(error)
            self.worker.send(Kind.EXIT, 0, self.leaving.encode())
        self._over(call)
        self._forget(call)

    def _leave_if_over(self) -> None:
        if self._exits and not self._calls:
            self.wake()


class Async(Threaded):
    """Coroutines, in an event loop that has the main thread. A thread of ours reads the socket."""

    call_type = CallInLoop

    def __init__(self, worker: _Worker, id: int, options: dict[str, Any], function: _Function) -> None:
        super().__init__(worker, id, options, function)
        import asyncio

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._cancelled = asyncio.CancelledError
        self._unsaid: list[bytes] = []  # ends

    def construct(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In the loop, so that it may make tasks there."""

        async def make() -> None:
            try:
                super(Async, self).construct(args, kwargs)
            except BaseException as error:  # not through the loop: it would end it
                failed.append(error)

        failed: list[BaseException] = []
        self._loop.run_until_complete(make())
        if failed:
            raise failed[0]

    def serve(self) -> None:
        """Main thread."""
        self.worker.streams.tell = self._tell_output
        reader = threading.Thread(target=self._read_for_loop, name="jupyter-tasks-actor", daemon=True)
        reader.start()
        try:
            self._loop.run_forever()
        except SystemExit as error:  # of a task that the user's code has made
            code = execution._exit_code(error)
            if code:
                os._exit(code)
        self._say_all()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self.leave()

    def _read_for_loop(self) -> None:
        self._read_on()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def begin_all(self, calls: list[ActorCall]) -> None:
        """Each as a task of the loop."""
        self._loop.call_soon_threadsafe(self._begin_in_loop, calls)

    def _begin_in_loop(self, calls: list[ActorCall]) -> None:
        for call in calls:
            if not call.over:
                call.task = self._loop.create_task(self._run_in_loop(call))

    async def _run_in_loop(self, call: ActorCall) -> None:
        if not self.begins(call):
            return
        began = time.perf_counter()
        context.thread_call.set(call)
        retry: Any = False
        try:
            args, kwargs, retry = call.arguments()
            value = self.bound(call)(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            value = await self._items_in_loop(call, value)
            ends, fds = self.ended(call, value)
            if call.leaves:
                raise ActorExit
        except SystemExit as error:
            self.exits(call, error)
            return
        except BaseException as error:
            if call.leaves:
                self.exits(call, ActorExit())
                return
            if isinstance(error, self._cancelled):
                ends, fds = [frame(Kind.INTERRUPTED, call.task_id)], []
            else:
                ends, fds = self.failed(call, error, retry)
        self.told_end(call, ends, fds, began)

    def say_soon(self, data: bytes) -> None:
        """What ends in one turn of the loop is told in one message."""
        if not self._unsaid:
            self._loop.call_soon(self._say_all)
        self._unsaid.append(data)

    def _say_all(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        size = 0
        message: list[bytes] = []
        for data in unsaid:
            if size + len(data) > MOST_OUTPUT and message:
                self._say(b"".join(message))
                message, size = [], 0
            message.append(data)
            size += len(data)
        if message:
            self._say(b"".join(message))

    def stop(self, call: ActorCall) -> None:
        """CancelledError at its await, once for each cancel. Reader."""

        def cancel() -> None:
            if call.task is not None:
                call.task.cancel()

        self._loop.call_soon_threadsafe(cancel)


def make_host(worker: _Worker, id: int, options: dict[str, Any], function: _Function) -> Host:
    """Of the kind that the actor's class and options ask for."""
    kind: type[Host] = InOrder
    if function.options["class"]["asynchronous"]:
        kind = Async
    elif options["actor"]["concurrency"] > 1:
        kind = Threaded
    return kind(worker, id, options, function)


def constructor_failed(id: int, label: str, error: BaseException) -> bytes:
    """What every call of an actor raises whose constructor has raised this."""
    trace = execution._own_frames_dropped(error.__traceback__)
    what = f"{type(error).__name__}: {execution._text_of(error)}"
    died = ActorDiedError(
        f"Actor {show_id(id)} ({label}) could not be made: its constructor raised {what}",
        actor_id=show_id(id),
        name=label,
        cause=error,
    )
    died.__cause__ = error.with_traceback(trace)
    try:
        data, _ = serialize.dumps(died, root=label)
        serialize.loads(data)
    except Exception:
        died.__dict__["cause"] = None  # its text is in the message, its traceback beside it
    return execution._error_frame(id, (ActorDiedError, died, None), flags=0)
