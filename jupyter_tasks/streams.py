"""What users hold of a generator task: the refs of its items, handed out as they arrive.

Threads. The client's parser, in whichever thread reads, only notes how many items have arrived and wakes who waits
(it may come by a frame twice). The ref of each item is made in the event thread, once, and put into a queue; any
thread takes from it. So a generator may be read by several threads, which share the items among them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from jupyter_tasks.refs import ObjectRef, process
from jupyter_tasks.wire.frames import Kind

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["DynamicRefs", "EndWaiter", "GeneratorNote", "ObjectRefGenerator"]


class GeneratorNote(weakref.ref["ObjectRefGenerator"]):
    """Leads to a generator while somebody holds it. Outlives it, and knows which task it was of."""

    __slots__ = ("id",)

    id: int


class EndWaiter:
    """Stands among those who wait for a generator task's end: wakes those who wait for its next item."""

    __slots__ = ("_note",)

    def __init__(self, note: GeneratorNote) -> None:
        self._note = note

    def release(self) -> None:
        generator = self._note()
        if generator is not None:
            generator._client._wake(generator)


class ObjectRefGenerator:
    """The items of a generator task: `for ref in generator: jt.get(ref)`, or `async for ref in generator: await ref`.

    The next ref is handed out as soon as its item is there, while the task goes on: `get(ref)` returns at once. If the
    task fails, or is cancelled, the items made so far come first, then one ref whose `get` raises the error, then it
    is over. The stop button in `next` loses nothing; the task goes on.

    `jt.wait` takes generators beside refs (ready: `next` does not block), `jt.cancel(generator)` cancels the task. It
    cannot be sent to another process. Dropped, it frees the items that were not taken; the task runs to its end. Made
    by `remote()`, never by calling this class.
    """

    __slots__ = (
        *("__weakref__", "_arrived", "_backpressure", "_callbacks", "_client", "_completed", "_failure_given"),
        *("_made", "_refs", "_waiters"),
    )

    def __init__(self, client: Client, completed: ObjectRef, *, backpressure: bool = False) -> None:
        self._client = client
        self._completed = completed
        self._backpressure = backpressure  # the task waits until items are taken
        self._arrived = 0  # items that the parser has seen; all of them once `_completed` is final
        self._made = 0  # of these have refs; written by the event thread alone, after `_refs`
        self._refs: deque[tuple[int, ObjectRef]] = deque()  # not taken; with their places, from 0
        self._failure_given = False
        self._waiters: list[Any] | None = None  # who waits for the next item, or the end; see Client.add_waiter
        self._callbacks: list[Callable[[ObjectRefGenerator], None]] | None = None

    # -- what the client's waiting needs ----------------------------------------------------------------------

    @property
    def _kind(self) -> int:
        """Not 0 once `next` does not block."""
        return Kind.RESULT if self._refs or self._arrived > self._made else self._completed._kind

    # -- for users --------------------------------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """The id as `%tasks` shows it."""
        return self._completed.task_id

    @property
    def label(self) -> str:
        """The task's name."""
        return self._completed.label

    def completed(self) -> ObjectRef:
        """A ref that is final when the task is over: its value is None, or `get` raises the task's error."""
        return self._completed

    def next_ready(self) -> bool:
        """`next` would return a ref at once."""
        return self._kind != 0 and not self.is_finished()

    def is_finished(self) -> bool:
        """The task is over and all of it was handed out: `next` raises StopIteration."""
        over = self._completed._kind != 0 and self._made >= self._arrived and not self._refs
        return over and (self._failure_given or self._completed._kind == Kind.RESULT)

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        """Blocks until the next item is there. Raises StopIteration when there is none, and the task is over."""
        client = self._client
        while True:
            try:
                ref = self._take()
            except StopAsyncIteration:
                raise StopIteration from None
            if ref is not None:
                return ref
            client.wait([self])
            if not client.until_told():
                self._arrived = self._made  # the session has ended, and nobody makes refs any more

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        """The same without blocking the event loop. Cancelling the awaiting code leaves the task alone."""
        import asyncio

        loop, client = asyncio.get_running_loop(), self._client
        while (ref := self._take()) is None:
            arrived = asyncio.Event()

            def tell(_: Any, arrived: asyncio.Event = arrived) -> None:
                try:
                    loop.call_soon_threadsafe(arrived.set)
                except RuntimeError:
                    pass  # the loop was closed: nobody waits any more

            if not client.when_final(self, tell):
                self._arrived = self._made
                continue
            around = process.on_wait if not self._kind else None  # otherwise only its ref is being made
            with around() if around is not None else contextlib.nullcontext():
                await arrived.wait()
        return ref

    def _take(self) -> ObjectRef | None:
        """The next ref; None if it is not there yet.

        Raises:
            StopAsyncIteration: there will be none. (A StopIteration does not get out of a coroutine.)
        """
        try:
            place = self._refs[0][0]
            self._tell_taken(place)  # before it is taken: so a KeyboardInterrupt in between loses nothing
            taken, ref = self._refs.popleft()
        except IndexError:
            # In this order: when the end is seen, all items were.
            kind = self._completed._kind
            if not kind or self._made < self._arrived or self._refs:
                return None
            if kind == Kind.RESULT or self._failure_given:
                raise StopAsyncIteration from None
            self._failure_given = True
            return self._completed
        if taken != place:
            self._tell_taken(taken)  # another thread has taken that one
        return ref

    def _tell_taken(self, place: int) -> None:
        if self._backpressure and not self._completed._kind:
            self._client.taken(self._completed.id, place + 1)

    def __repr__(self) -> str:
        label = f" {self.label}" if self.label else ""
        return f"<ObjectRefGenerator {self.task_id}{label}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "cannot pickle 'ObjectRefGenerator' object, nor copy it: pass the refs that it hands out, as in "
            "[f.remote(ref) for ref in generator]"
        )


class DynamicRefs(Sequence[ObjectRef]):
    """The value of a task with num_returns="dynamic": a ref for each item that it has made, in their order."""

    def __init__(self, refs: Sequence[ObjectRef]) -> None:
        self._refs = list(refs)

    def __len__(self) -> int:
        return len(self._refs)

    @overload
    def __getitem__(self, index: int) -> ObjectRef: ...

    @overload
    def __getitem__(self, index: slice) -> list[ObjectRef]: ...

    def __getitem__(self, index: int | slice) -> ObjectRef | list[ObjectRef]:
        return self._refs[index]

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter(self._refs)

    def __repr__(self) -> str:
        return f"<DynamicRefs of {len(self)} items>"
