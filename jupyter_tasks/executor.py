"""`jt.Executor`: calls as tasks, behind the interface of concurrent.futures. Its futures also cancel what runs.

    submit -> _Call (a RefFuture) -> sent at once, or in `_line` until fewer than `max_workers` run
    the client's event thread fills a _Call in -> `_over` -> the next of the line is sent

A function is sent once, when it is met for the second time; what comes once travels with its call, and no copy of it
stays. Whether it is the same one says its pickle: a function of a notebook reads globals, and these may have changed.

Thread: any may use an executor, also several at once. `_lock` guards its fields; nothing is sent, waited for or called
back while it is held.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeVar

from jupyter_tasks import session
from jupyter_tasks.client import _note_refs
from jupyter_tasks.exceptions import JupyterTasksError, TaskCancelledError
from jupyter_tasks.functions import RemoteFunction, remote
from jupyter_tasks.futures import RefFuture, refuse_event_thread, slot_given_up
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.wire import serialize
from jupyter_tasks.worker import calls, context

__all__ = ["BrokenTaskExecutor", "Executor"]

T = TypeVar("T")

MOST_FUNCTIONS = 128  # whose pickles an executor remembers; those of one are sent anew when they come again


class BrokenTaskExecutor(JupyterTasksError, concurrent.futures.BrokenExecutor):
    """The initializer of an executor has raised; `__cause__` has its traceback. All of its calls end with this."""


class _Way(NamedTuple):
    """How a function reaches its worker."""

    code: RemoteFunction[Any]
    first: tuple[Any, ...] = ()  # arguments in front of the user's


class _Call(RefFuture):
    """The future of a call, and what it takes to send it."""

    def __init__(self, executor: Executor, way: _Way, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.executor = executor
        self.counted = False  # among those that `max_workers` limits
        self.broken: BrokenTaskExecutor | None = None  # raised instead of the cancel
        self._way, self._args, self._kwargs = way, args, kwargs
        self._client = session.current_client()  # not a later one: who sends the line must not start a session
        self._task = _current_task()

    def send(self) -> None:
        """Becomes a task. What is wrong with it, its future tells."""
        try:
            if self._task != _current_task():
                raise TaskCancelledError(
                    "The task that made this call has ended before the call was sent; leave a `with`, or wait for it."
                )
            code, first = self._way
            fn = code._register(self._client).fn
            named = functools.partial(_named, len(first))
            ref = self._client.submit(fn, first + self._args, self._kwargs, code._name, code._extra, 1, named)
            assert isinstance(ref, ObjectRef)
            self.follow(ref)
        except Exception as error:
            self.fail(error)
        finally:
            self.forget()

    def give_up(self, error: BaseException) -> None:
        """Its sending was interrupted, and whoever wanted it does not have it."""
        self.take()
        if self._ref is not None:
            self.cancel()
        self.fail(error)

    def forget(self) -> None:
        """Arguments live no longer than they must."""
        self._args, self._kwargs = (), {}

    def is_pending(self) -> bool:
        """Not known to have begun."""
        return not self.done() and (self._ref is None or not self._ref.is_final)

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, calls.InitializerFailed) and error.key == self.executor._key:
            return self.executor._break(error)
        return error

    def _set_cancelled(self, error: TaskCancelledError) -> None:
        if self.broken is not None:
            self.set_exception(self.broken)
        else:
            super()._set_cancelled(error)


class Executor(concurrent.futures.Executor):
    """A concurrent.futures.Executor whose calls are tasks in worker processes.

    `submit`, `map`, `shutdown`, `with`, `loop.run_in_executor`, and `wait` and `as_completed` of concurrent.futures
    work as with a ProcessPoolExecutor. Other than there:

    - `future.cancel()` also stops a call that runs, with a KeyboardInterrupt in it; its `cancelled()` is true as soon
      as it has really stopped. So does a `map` whose iterator is closed, or raises. Cancelled results raise an error
      that is a TaskCancelledError and a concurrent.futures.CancelledError.
    - A call whose process crashes fails alone, with WorkerCrashedError. Nothing else breaks.
    - Functions and arguments may be of the notebook; an ObjectRef among the arguments becomes its value, large arrays
      arrive as read-only views without a copy.
    - The workers are the session's, and its CPUs are shared with all other tasks. They stay when the executor ends.
    - When the interpreter ends, calls that are not over are stopped, and not waited for. Leave a `with`, or wait.
    - A KeyboardInterrupt (the stop button) in a `with` cancels its calls before it waits for them.

    Works inside tasks, too; while a task waits for its futures its slot is free. May be used from any thread.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        name: str | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        num_cpus: float = 1,
        num_gpus: float = 0,
        memory: float | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        max_retries: int = 0,
    ) -> None:
        """Starts nothing; the first call starts a session if there is none.

        Args:
            max_workers: how many of its calls run at a time; the others wait here, and their arguments are taken as
                they are when their turn comes. Default: no limit but the session's CPUs.
            name: what the screen shows. Default: the function's name.
            initializer: called with `initargs` in each worker before the first call of this executor there. If it
                raises, all calls that are not over are cancelled, and these and later ones raise a BrokenExecutor. What
                it changes around it (environment, directory, module path) holds for the calls of this executor alone.
            num_cpus, num_gpus, memory, timeout, grace: for each call, as for `jt.remote`.
            max_retries: how often a call is run again when its worker crashes. Default 0: as in the standard library,
                a call begins once.

        Raises:
            TypeError, ValueError: an argument that makes no sense.
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        options: dict[str, Any] = {"max_retries": max_retries, "num_cpus": num_cpus, "num_gpus": num_gpus or None}
        options |= {"memory": memory, "timeout": timeout, "grace": grace}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._name = name
        self._max_workers = max_workers
        self._key = os.urandom(8).hex()
        self._setup = calls.Setup(self._key, initializer, tuple(initargs)) if initializer is not None else None
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)  # told when the last call is over
        self._open: set[_Call] = set()  # not over; those in `_line`, too
        self._line: deque[_Call] = deque()  # not sent, first come first served
        self._sent = 0  # of the open calls; with `max_workers` never more than that
        self._shut = False
        self._broken: BrokenTaskExecutor | None = None
        self._carriers: dict[str, RemoteFunction[Any]] = {}  # by what the screen shows
        # Functions by their pickles; None for one that was met once. The oldest go first.
        self._known: OrderedDict[bytes, RemoteFunction[Any] | None] = OrderedDict()
        remote(**self._options)  # looks at them now, and not at the first call

    # -- the interface of concurrent.futures --------------------------------------------------------------------------

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Submits `fn(*args, **kwargs)`; returns its future at once.

        What is wrong with the call (an argument that cannot be sent, more CPUs than there are) its future raises.

        Raises:
            BrokenExecutor: the initializer has failed.
            RuntimeError: after `shutdown`.
        """
        return self._submit(fn, args, kwargs, self._name or _name_of(fn))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Generator[T, None, None]:
        """Calls `fn` with the items of `iterables`, as the built-in map does; yields the results in order.

        The function is taken as it is now. When the iterator is closed, or raises, the calls that are left are
        cancelled, also those that run.

        Args:
            timeout: seconds from now until the last result; then the iterator raises TimeoutError.
            chunksize: so many calls are one task.
            buffersize: at most so many results (chunks) are under way or wait to be taken; the iterables are read
                accordingly. Default: all are submitted at once.

        Raises:
            TypeError, ValueError: a number that makes no sense.
            BrokenExecutor, RuntimeError: as `submit`.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else time.monotonic() + timeout
        self._refuse()
        way = self._way(fn, self._name or _name_of(fn), len(iterables) if chunksize > 1 else 0, often=True)
        arguments = _in_chunks(zip(*iterables), chunksize)  # noqa: B905  # as the built-in map
        futures: deque[_Call] = deque()
        try:
            for args in itertools.islice(arguments, buffersize):
                futures.append(self._call(way, args, {}))
        except BaseException:
            _cancel(futures)
            raise
        return self._results(way, futures, arguments, chunksize, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls are taken. May be called again.

        Args:
            wait: return when all calls are over.
            cancel_futures: cancel the calls that have not begun. Those that run go on; `future.cancel()` stops them.
        """
        with self._lock:
            self._shut = True
        if cancel_futures:
            for call in self._unbegun():
                call.cancel()
        if wait:
            self._join()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._cancel_all()
        self.shutdown(wait=True)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], label: str
    ) -> concurrent.futures.Future[Any]:
        self._refuse()
        try:
            way = self._way(fn, label)
        except Exception as error:
            failed = RefFuture()
            failed.take()
            failed.fail(error)
            return failed
        return self._call(way, args, kwargs)

    def _call(self, way: _Way, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        call = _Call(self, way, args, kwargs)
        call.add_done_callback(self._over)
        with self._lock:
            self._refuse()  # nothing may come behind a `shutdown` that waits
            self._open.add(call)
            self._line.append(call)
        try:
            self._send()
        except BaseException as error:
            call.give_up(error)
            raise
        return call

    def _cancel_all(self) -> None:
        """Cancels all calls that are not over, also those that run. Returns at once."""
        with self._lock:
            open_calls = _latest_first(self._open)
        _cancel(open_calls)

    def _refuse(self) -> None:
        if self._broken is not None:
            raise BrokenTaskExecutor(*self._broken.args) from self._broken.__cause__
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _send(self) -> None:
        """Sends what may be sent. Who submits, and the event thread when a call is over."""
        call: _Call | None = None
        try:
            while True:
                with self._lock:
                    if not self._line or (self._max_workers is not None and self._sent >= self._max_workers):
                        return
                    call = self._line[0]  # known before it is taken out: an interrupt must not lose it
                    self._line.popleft()
                    if not call.take():
                        continue  # it was cancelled
                    call.counted = True
                    self._sent += 1
                call.send()
        except BaseException as error:  # the stop button
            if call is not None:
                call.give_up(error)
            raise

    def _over(self, call: concurrent.futures.Future[Any]) -> None:
        """The first callback of each call."""
        assert isinstance(call, _Call)
        call.forget()
        with self._lock:
            self._open.discard(call)
            self._sent -= call.counted
            if not self._open:
                self._idle.notify_all()
        self._send()

    def _results(
        self,
        way: _Way,
        futures: deque[_Call],
        arguments: Iterator[tuple[Any, ...]],
        chunksize: int,
        end: float | None,
    ) -> Generator[Any, None, None]:
        """What `map` gives. Keeps no result that was taken, and no future of one."""
        try:
            while futures:
                for args in itertools.islice(arguments, 1):  # what `buffersize` has held back
                    futures.append(self._call(way, args, {}))
                results = [_result_or_cancel(futures.popleft(), end)]
                if chunksize > 1:
                    results = results[0][::-1]
                while results:
                    yield results.pop()
        finally:
            _cancel(futures)

    def _unbegun(self) -> list[_Call]:
        """The calls whose code has not begun."""
        with self._lock:
            pending = [call for call in _latest_first(self._open) if call.is_pending()]
        ids = [ref.id for call in pending if (ref := call._ref) is not None]
        begun: set[int] = set()
        if ids:
            with contextlib.suppress(JupyterTasksError):  # the session has ended, and they have with it
                records = pending[-1]._client.request("tasks", ids=ids)["tasks"]
                begun = {record["id"] for record in records if record["state"] != "pending"}
        return [call for call in pending if (ref := call._ref) is None or ref.id not in begun]

    def _break(self, failed: calls.InitializerFailed) -> BrokenTaskExecutor:
        """The initializer has raised. Returns what its call raises."""
        with self._lock:
            first = self._broken is None
            if self._broken is None:
                self._broken = BrokenTaskExecutor(f"{failed}. This executor takes no calls any more; make a new one.")
                self._broken.__cause__ = failed.__cause__
            broken = self._broken
            open_calls = _latest_first(self._open)
        if first:  # those that run, too, as in a ProcessPoolExecutor: some have begun since
            for call in open_calls:
                call.broken = broken
                call.cancel()
        return broken

    def _join(self) -> None:
        """Returns when no call is open."""
        with self._lock:
            if not self._open:
                return
        refuse_event_thread("shutdown() with calls that are not over")
        with slot_given_up(), self._idle:
            self._idle.wait_for(lambda: not self._open)

    # -- functions ----------------------------------------------------------------------------------------------------

    def _way(self, fn: Callable[..., Any], label: str, width: int = 0, *, often: bool = False) -> _Way:
        """How `fn` is sent; `width`: in chunks, of so many arguments each; `often`: it will be called many times."""
        client = session.current_client()
        often = often or "local_mode" in client.settings  # where a debugger wants the function itself
        if _is_plain(fn):
            refs: list[int] = []
            data, buffers = serialize.dumps(fn, root=label, reducers=_note_refs(client, refs))
            if not refs:  # those must live as long as the call
                code = self._known_code(fn, label, width, [data, *(buffer.raw() for buffer in buffers)], often)
                return _Way(code) if code is not None else _Way(self._carrier(label), (fn, width))
        # Each call shall find it as it is here, and none what an earlier one has made of it.
        return _Way(self._carrier(label), (client.put(fn) if often else fn, width))

    def _known_code(
        self, fn: Callable[..., Any], label: str, width: int, pickled: Iterable[bytes | memoryview], often: bool
    ) -> RemoteFunction[Any] | None:
        """What is sent once; None for a function that is met for the first time."""
        digest = hashlib.blake2b(f"{label} {width} ".encode(), digest_size=16)
        for data in pickled:
            digest.update(data)
        key = digest.digest()
        with self._lock:
            often = often or key in self._known
            code = self._known.pop(key, None)
            if code is None and often:
                code = RemoteFunction(calls.Fixed(fn, width, self._setup), {**self._options, "name": label})
            self._known[key] = code
            if len(self._known) > MOST_FUNCTIONS:
                self._known.popitem(last=False)
        return code

    def _carrier(self, label: str) -> RemoteFunction[Any]:
        """What runs functions that travel with their calls."""
        with self._lock:
            if label not in self._carriers:
                options = {**self._options, "name": label}
                self._carriers[label] = RemoteFunction(calls.Carried(self._setup), options)
            return self._carriers[label]


def _is_plain(fn: Callable[..., Any]) -> bool:
    """A function: no bound method, partial or other object, which has a state."""
    if isinstance(fn, BuiltinFunctionType):
        return fn.__self__ is None or isinstance(fn.__self__, ModuleType)
    return isinstance(fn, FunctionType)


def _name_of(fn: Callable[..., Any]) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))


def _named(ours: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Names for the arguments, in error messages; `ours` of them stand in front of the user's."""
    named = {"function": args[0]} if ours else {}
    return {**named, **{f"argument {i}": arg for i, arg in enumerate(args[ours:])}, **kwargs}


def _in_chunks(arguments: Iterable[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    """The arguments of `size` calls in one tuple each, flat: refs among them are refs of the task."""
    arguments = iter(arguments)
    while chunk := tuple(itertools.islice(arguments, size)):
        yield tuple(itertools.chain.from_iterable(chunk))


def _result_or_cancel(call: _Call, end: float | None) -> Any:
    try:
        return call.result(None if end is None else end - time.monotonic())
    finally:
        call.cancel()


def _cancel(open_calls: Iterable[_Call]) -> None:
    """Each once; who was asked already is left to clean up."""
    for call in list(open_calls):
        if not call.was_asked:
            call.cancel()


def _latest_first(open_calls: Iterable[_Call]) -> list[_Call]:
    """The order to cancel in: otherwise those that wait would begin in the place of those that are stopped."""
    return sorted(open_calls, key=lambda call: float("inf") if (ref := call._ref) is None else ref.id, reverse=True)


def _current_task() -> int:
    """The task in which this code runs; 0 for none."""
    worker = context.current_worker()
    return int(worker.task_id) if worker is not None else 0
