"""Waiting for refs as they come: `as_completed`, and `await`.

Whoever takes in an outcome releases the locks of those who wait for its ref (`Client._final`). What is added here in
the place of such a lock tells an iterator, or an event loop, instead. So an iterator looks at each ref twice, however
many there are, and waits for one bell, in `Client.wait` as for any ref.

Threads: `release` is called by whoever reads the socket. An iterator is for one thread at a time.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jupyter_tasks import several
from jupyter_tasks.exceptions import GetTimeoutError
from jupyter_tasks.refs import process
from jupyter_tasks.wire.frames import Kind

if TYPE_CHECKING:
    import asyncio

    from jupyter_tasks.client import Client
    from jupyter_tasks.refs import ObjectRef

__all__ = ["AsCompleted", "until_final"]


class _Bell:
    """Has the fields of a ref that waiting needs; "final" means: something has arrived."""

    __slots__ = ("_body", "_kind", "_waiters")

    def __init__(self) -> None:
        self._kind = 0
        self._body = b""
        self._waiters: list[Any] | None = None


class _Watcher:
    """Stands among those who wait for one open ref. Its iterator may be gone: then it does nothing."""

    __slots__ = ("_index", "_iterator")

    def __init__(self, iterator: weakref.ref[AsCompleted], index: int) -> None:
        self._iterator = iterator
        self._index = index

    def is_alive(self) -> bool:
        return self._iterator() is not None

    def release(self) -> None:
        iterator = self._iterator()
        if iterator is not None:
            iterator._arrives(self._index)


class AsCompleted(Iterator["ObjectRef"], AsyncIterator["ObjectRef"]):
    """Refs in the order in which they become final. Made by `as_completed`; for `for` and `async for`."""

    def __init__(self, refs: Sequence[ObjectRef], timeout: float | None) -> None:
        self._refs: list[ObjectRef | None] = list(refs)  # None in the place of those that were given out
        self._left = len(refs)
        self._arrived: list[int] = []  # places in `_refs`; one may stand here twice, see `Client._parse`
        self._at = 0  # how many of `_arrived` were looked at
        self._bell = _Bell()
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._clients: list[Client] = list(dict.fromkeys(ref._client for ref in refs if not ref._kind))
        this = weakref.ref(self)
        for i, ref in enumerate(refs):
            if not ref._kind:
                _drop_dead_watchers(ref)
                ref._client.add_waiter(ref, _Watcher(this, i))
            if ref._kind:  # also if it has become so in between
                self._arrived.append(i)

    def __iter__(self) -> AsCompleted:
        return self

    def __aiter__(self) -> AsCompleted:
        return self

    def __next__(self) -> ObjectRef:
        while self._left:
            ref = self._take()
            if ref is not None:
                return ref
            if self._must_wait() and not self._wait():
                raise self._timed_out()
        raise StopIteration

    def _wait(self) -> bool:
        """For the bell. False: the time is over."""
        bell, clients = self._bell, self._clients
        if len(clients) == 1:
            return clients[0].wait([bell], timeout=self._rest())
        with process.on_wait() if process.on_wait is not None else contextlib.nullcontext():
            return several.sleep(clients, [bell], lambda: bell._kind != 0, self._end)

    async def __anext__(self) -> ObjectRef:
        while self._left:
            ref = self._take()
            if ref is not None:
                return ref
            if self._must_wait():
                import asyncio

                try:
                    await asyncio.wait_for(until_final(self._clients[0], self._bell), self._rest())
                except asyncio.TimeoutError:
                    if not self._bell._kind:
                        raise self._timed_out() from None
        raise StopAsyncIteration

    def _arrives(self, index: int) -> None:
        self._arrived.append(index)
        self._clients[0]._final(self._bell, Kind.RESULT)  # afterwards: who hears it finds the ref

    def _take(self) -> ObjectRef | None:
        """The next one that has arrived, if any."""
        arrived, refs = self._arrived, self._refs
        while self._at < len(arrived):
            # Nothing is called from here to the return, so a KeyboardInterrupt comes before all of it or after.
            index = arrived[self._at]
            self._at += 1
            ref = refs[index]
            if ref is not None:
                refs[index] = None
                self._left -= 1
                return ref
        return None

    def _must_wait(self) -> bool:
        """Readies the bell. False if something has arrived meanwhile."""
        self._bell._kind = 0
        for client in [client for client in self._clients if client.closed]:
            # Whoever noticed the end may not have told all yet.
            client._say_lost([ref for ref in self._refs if ref is not None and not ref._kind and ref._client is client])
            if len(self._clients) > 1:
                self._clients.remove(client)
        return self._at == len(self._arrived)

    def _rest(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _timed_out(self) -> GetTimeoutError:
        return GetTimeoutError(
            f"{self._left} of {len(self._refs)} refs were not final within {self._timeout:g} s. Their tasks go on; "
            "wait for them with another call, or cancel them."
        )


def _drop_dead_watchers(ref: ObjectRef) -> None:
    """Those of iterators that are gone. Done here and not in a `__del__`, which would swallow a KeyboardInterrupt."""
    for waiter in list(ref._waiters or ()):
        if type(waiter) is _Watcher and not waiter.is_alive():
            with contextlib.suppress(ValueError):
                ref._waiters.remove(waiter)  # type: ignore[union-attr]


class _LoopWaiter:
    """Stands among those who wait, for code that awaits in an event loop."""

    __slots__ = ("_arrived", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, arrived: asyncio.Event) -> None:
        self._loop = loop
        self._arrived = arrived

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._arrived.set)  # a loop that was closed is a RuntimeError, as of a lock


async def until_final(client: Client, ref: Any) -> None:
    """Returns when the ref is final; the loop runs on. Cancelled, it leaves nothing behind."""
    import asyncio  # 40 ms of a cold start

    arrived = asyncio.Event()
    waiter = _LoopWaiter(asyncio.get_running_loop(), arrived)
    client.add_waiter(ref, waiter)
    try:
        if not ref._kind:
            with process.on_wait() if process.on_wait is not None else contextlib.nullcontext():
                await arrived.wait()
    finally:
        ref._waiters.remove(waiter)
