"""Thread tasks: they run in the process that submitted them, and share its objects.

The supervisor decides when one starts and what became of it, as for every task; the process (the *host*: a client, as a
rule the kernel) runs it in a thread of its own. A place is one of the host's slots. What a thread cannot do stands in
`THREADS`: it can be asked to stop, and nothing more; INTERRUPT reaches it only if it wants that. What a thread has
ended is final when the host says so, or is gone.

What is said: S->C TASK (begin), CANCEL (it is to stop). C->S STARTED, YIELD, RESULT, ERROR, INTERRUPTED, BLOCKED and
UNBLOCKED, with the task's id in `fn`, but for YIELD.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from jupyter_tasks.backends.abc import Host
from jupyter_tasks.engine.events import (
    Died,
    End,
    Finished,
    Gone,
    Lease,
    Recalled,
    Started,
    Task,
    UnBlocked,
    WaitBegan,
    Yielded,
)
from jupyter_tasks.wire.frames import HEADER_SIZE, Kind, frame, from_json

__all__ = ["ThreadBackend"]


class ThreadBackend:
    """See the module's text. Called by the supervisor's loop, from its one thread."""

    def __init__(self, host: Host, say: Callable[[int, bytes], None]) -> None:
        """`say` sends a frame to a client."""
        self._host = host
        self._say = say
        self._given: dict[int, tuple[Task, Lease]] = {}  # to a host, and not ended
        self._running: set[int] = set()

    def run(self, lease: Lease, task: Task) -> None:
        """The host begins it when it reads this."""
        self._given[task.id] = (task, lease)
        lease.place = self
        self._say(task.owner, frame(Kind.TASK, task.id))

    def recall(self, lease: Lease, id: int) -> None:
        """It is on its way to the host, or there: the host passes it over, or says that it has begun."""
        if id in self._given:
            self.interrupt(self._given[id][0])
        self._host.post(Recalled(lease, ()))

    def interrupt(self, task: Task) -> None:
        """Sets the flag, and raises KeyboardInterrupt in it if it wants that."""
        self._say(task.owner, frame(Kind.CANCEL, task.id))

    def retire(self, lease: Lease) -> None:
        """Of an actor: it begins nothing any more, and what it has begun is told to stop; Gone when that is over."""
        raise NotImplementedError

    def end_actor(self, lease: Lease) -> None:
        """As Backend.end_actor."""
        raise NotImplementedError

    def running(self, lease: Lease) -> Collection[int]:
        """As Backend.running."""
        return [id for packet in lease.packets for id in packet if id in self._running]

    def heard(self, client: int, kind: int, flags: int, fn: int, id: int, whole: bytes, fds: tuple[int, ...]) -> bool:
        """What a host says of a task, or of one of its refs. False: the task is over, or was never given to it."""
        of, place = (id, fn) if kind == Kind.YIELD else (fn, 0)
        task, lease = self._given.get(of, (None, None))
        if task is None or lease is None or task.owner != client:
            return False
        if kind == Kind.YIELD:
            self._host.post(Yielded(id, place, whole[HEADER_SIZE:], fds))
        elif kind == Kind.STARTED:
            self._running.add(id)
            self._host.post(Started(id, from_json(whole[HEADER_SIZE:])["started_ns"] / 1e9))
        elif kind == Kind.BLOCKED:
            self._host.post(WaitBegan(lease))
        elif kind == Kind.UNBLOCKED:
            self._host.post(UnBlocked(lease))
        else:  # RESULT, ERROR, INTERRUPTED; the task's own comes last
            if id == of:
                self._running.discard(id)
                del self._given[id]
            self._host.post(Finished(lease, [End(id, kind, flags, whole, fds)]))
        return True

    def client_gone(self, client: int) -> None:
        """A host has ended, and all of its threads with it."""
        for id, (task, lease) in list(self._given.items()):
            if task.owner == client:
                del self._given[id]
                began = id in self._running
                self._running.discard(id)
                self._host.post(Died(lease, id if began else 0, None, "the process that it ran in has ended", False))
                self._host.post(Gone(lease))
