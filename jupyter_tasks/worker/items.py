"""Generator tasks: the user's code makes items, and each goes its way before the next one is made.

`drive` runs a generator to its end and gives its items to `take`; `Sender` is the `take` of a task that streams: one
YIELD frame an item. An interrupt is raised in the user's code alone: one that comes in between is thrown into the
generator at its `yield`, so that its except and finally clauses run as for any other, and no item is cut in two.

Main thread of a worker; in local mode, which has no worker and no guard, the thread that submits (`drive` alone).
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.streams import DynamicRefs
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import Kind, frame
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks.client import Client
    from jupyter_tasks.worker.execution import _Worker

__all__ = ["OWN_CODE", "Sender", "checked", "collect", "drive", "dynamic", "is_generator", "note_ref", "results"]

Take = Callable[[Any], None]
Run = Callable[[Coroutine[Any, Any, None]], Any]  # as asyncio.run


def is_generator(value: object) -> bool:
    """Makes items, at once or in an event loop."""
    return hasattr(value, "__next__") or hasattr(value, "__anext__")


def drive(made: Any, take: Take, run: Run | None = None) -> None:
    """Runs a generator, or another iterator, to its end; each item goes to `take`.

    Args:
        take: what it raises ends the generator, except for a KeyboardInterrupt: that is raised at the `yield`.
        run: how an event loop is run, one for all items of an async generator. Default: asyncio.run.
    """
    if not hasattr(made, "__anext__"):
        _drive(made, take)
    elif run is not None:
        run(_drive_async(made, take))
    else:
        import asyncio  # 40 ms that few tasks need

        asyncio.run(_drive_async(made, take))


def _drive(made: Iterator[Any], take: Take) -> None:
    stop: KeyboardInterrupt | None = None
    try:
        while True:
            try:
                item = _step(next, made) if stop is None else _step(_throw, made, stop)
            except StopIteration:
                return
            except KeyboardInterrupt as error:
                if stop is not None or getattr(made, "gi_frame", None) is None:
                    raise
                stop = error  # it came beside the generator's own code, which has not seen it
                continue
            stop = _given(take, item)
    finally:
        if hasattr(made, "close"):
            _step(made.close)


async def _drive_async(made: AsyncIterator[Any], take: Take) -> None:
    stop: KeyboardInterrupt | None = None
    try:
        while True:
            try:
                item = await (made.__anext__() if stop is None else _throw_async(made, stop))
            except StopAsyncIteration:
                return
            stop = _given(take, item)
    finally:
        if hasattr(made, "aclose"):
            await made.aclose()


def _given(take: Take, item: Any) -> KeyboardInterrupt | None:
    """Gives the item away. Returns the interrupt that came meanwhile."""
    try:
        take(item)
    except KeyboardInterrupt as stop:
        return stop
    return None


def _step(function: Callable[..., Any], *arguments: Any) -> Any:
    """A frame of its own, for interrupts: nothing is raised in the frames above it (see execution._call)."""
    return function(*arguments)


def _throw(made: Any, stop: KeyboardInterrupt) -> Any:
    if not hasattr(made, "throw"):
        raise stop
    return made.throw(stop)


async def _throw_async(made: Any, stop: KeyboardInterrupt) -> Any:
    if not hasattr(made, "athrow"):
        raise stop
    return await made.athrow(stop)


def checked(value: Any, options: Mapping[str, Any]) -> Any:
    """What the function of a generator task has returned.

    Raises:
        TypeError: that makes no items.
    """
    if is_generator(value):
        return value
    raise TypeError(
        f"{options['name']} returned {type(value).__name__}, but num_returns={options['generator']!r} needs a "
        "generator: use yield, or return an iterator, as iter(x)."
    )


def dynamic(made: Any, put: Callable[..., ObjectRef], run: Run | None = None) -> DynamicRefs:
    """A ref for each item of a generator; `put` makes them."""
    refs: list[ObjectRef] = []
    try:
        drive(made, lambda item: refs.append(put(item, root=f"item {len(refs)}")), run)
    except BaseException:
        refs.clear()  # these frames may be kept, for a debugger
        raise
    return DynamicRefs(refs)


class _Collected(list[Any]):
    """Items of a generator: all of them, or one more than are wanted."""


class _EnoughError(Exception):
    """The generator need not go on."""


def collect(made: Any, num_returns: int, run: Run | None = None) -> list[Any]:
    """The items that a generator makes in the place of several values. With num_returns=0 it only runs to its end."""
    collected = _Collected()

    def take(item: Any) -> None:
        if num_returns:
            collected.append(item)
        if len(collected) > num_returns:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        drive(made, take, run)
    return collected


def results(value: Any, num_returns: int | None) -> list[Any]:
    """The values of a task, one for each of its refs. None: nobody has said how many there are, so it is one.

    Raises:
        ValueError, TypeError: they are not as many as its refs.
    """
    if num_returns is None or (num_returns == 1 and not isinstance(value, _Collected)):
        return [value]
    if num_returns == 0:
        return [None]
    if isinstance(value, _Collected) and len(value) > num_returns:
        raise ValueError(f"Task yielded more than {num_returns} objects, but num_returns={num_returns}.")
    if not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        raise TypeError(f"Task returned {type(value).__name__}, which has no length, but num_returns={num_returns}.")
    values = list(value)
    if len(values) != num_returns:
        raise ValueError(f"Task returned {len(values)} objects, but num_returns={num_returns}.")
    return values


class Sender:
    """Tells the supervisor the items of one attempt at a task, and waits while too many of them are not taken."""

    def __init__(self, worker: _Worker, id: int, backpressure: int) -> None:
        self._worker = worker
        self._id = id
        self._backpressure = backpressure  # 0: none
        self._made = 0
        self._taken = 0  # as far as we have heard

    def take(self, item: Any) -> None:
        """Sends it, and waits for room. Raises a KeyboardInterrupt when it is sent, or not at all.

        Raises:
            UnserializableError: it cannot be sent.
        """
        self.tell(item)
        if self.is_full:
            self.wait_for_room()

    def tell(self, item: Any) -> None:
        """The first half of it."""
        refs: list[ObjectRef] = []
        note = functools.partial(note_ref, None, refs)
        data, buffers = serialize.dumps(item, root=f"item {self._made}", to="the kernel", reducers=note)
        payload = shared.pack(data, buffers)
        guard = self._worker.guard
        guard.hold()
        try:
            self._send(payload, refs)
        finally:
            payload.close()
            late = guard.go_on()
        if late:
            raise KeyboardInterrupt

    @property
    def is_full(self) -> bool:
        """So many items are not taken that no further one is to be made."""
        return bool(self._backpressure) and self._made - self._taken >= self._backpressure

    def wait_for_room(self) -> None:
        """Until one more may be made."""
        # Through the client: so the task's slot is free meanwhile, and an interrupt wakes it.
        client = context.client_of_worker()
        self._taken = client.request("room", timeout=None, task=self._id, made=self._made)

    def _send(self, payload: shared.Payload, refs: list[ObjectRef]) -> None:
        if refs:
            # The answer is awaited: the item, on another socket, must not overtake this word.
            inside = [ref.id for ref in refs]
            refs[0]._client.request("item_contains", task=self._id, place=self._made, inside=inside)
        fds = [payload.fd] if payload.fd is not None else []
        data = frame(Kind.YIELD, self._id, payload.head, fn=self._made, fds=len(fds))
        worker = self._worker
        with worker._send_lock:
            if fds:
                socket.send_fds(worker.sock, [data], fds)
            else:
                worker.sock.sendall(data)
        self._made += 1


def note_ref(client: Client | None, refs: list[ObjectRef], value: object) -> Any:
    """A hook for the pickler that notes the refs inside a value that this client's session keeps; default: a worker's.

    Raises:
        UnserializableError, ObjectLostError: one belongs to another session.
    """
    if type(value) is ObjectRef:
        client = client or context.client_of_worker()
        if value._client is not client:
            client.leaves(value)  # raises
        refs.append(value)
    return NotImplemented


# Where an interrupt waits until the user's code goes on.
OWN_CODE = frozenset(function.__code__ for function in (drive, _drive, _drive_async, _given, Sender.take, Sender.tell))
