"""Thread tasks, and actors in threads: they run in the process that made them, and share its objects.

The supervisor decides when one starts and what became of it, as for every task; the process (the *host*: a client, as a
rule the kernel) runs it in a thread. A place is one of the host's slots; an actor's is the actor. A thread can be asked
to stop, and nothing more; INTERRUPT reaches a task only if it wants that. What runs in one is final when the host says
so, or is gone.

What is said: S->C TASK (begin; of an actor its constructor), CANCEL (it is to stop; an actor: all of its calls, and it
leaves). C->S STARTED, YIELD, RESULT, ERROR, INTERRUPTED, BLOCKED and UNBLOCKED, with the task's id in `fn`, but for
YIELD; where `fn` is 0, the id is the task's. Of actors also S->C CALL (of another client whole, of the host itself its
head alone: the rest is there), EXIT (it has nothing more to do, and leaves), and C->S EXIT (it begins no further call;
with Flag.LEAVES: nothing of it is left). In CALL, and CANCEL of a call, `fn` is the actor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from jupyter_tasks.backends.abc import Host
from jupyter_tasks.engine.actors import Actor
from jupyter_tasks.engine.events import (
    ActorExits,
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
from jupyter_tasks.wire.frames import HEADER_SIZE, Flag, Kind, frame, from_json, with_option

__all__ = ["ThreadBackend"]

_HOST_ENDED = "the process that it ran in has ended"


class ThreadBackend:
    """See the module's text. Called by the supervisor's loop, from its one thread."""

    def __init__(self, host: Host, say: Callable[[int, bytes, tuple[int, ...]], None]) -> None:
        """`say` sends a frame, and descriptors, to a client."""
        self._host = host
        self._say = say
        self._given: dict[int, tuple[Task, Lease]] = {}  # to a host, and not ended
        self._actors: dict[int, Lease] = {}  # those that live in hosts, by their ids
        self._running: set[int] = set()

    def run(self, lease: Lease, tasks: Sequence[Task]) -> None:
        """The host begins them when it reads this."""
        lease.place = self
        for task in tasks:
            self._given[task.id] = (task, lease)
            if isinstance(task, Actor):
                self._actors[task.id] = lease
            call = frame(Kind.TASK, task.id)
            fds: tuple[int, ...] = ()
            if task.actor is not None and task.owner == task.actor.owner:
                call = frame(Kind.CALL, task.id, fn=task.actor.id)
            elif task.actor is not None:
                call = with_option(task.call, "attempt", task.attempt) if task.attempt else task.call
                fds = task.call_fds
            self._say(_host_of(task), call, fds)

    def recall(self, lease: Lease, id: int) -> None:
        """It is on its way to the host, or there: the host passes it over, or says that it has begun."""
        task, _ = self._given.get(id, (None, None))
        if task is not None and task.actor is not None:
            self._say(_host_of(task), frame(Kind.CANCEL, id, fn=task.actor.id, flags=Flag.ASKS), ())
        elif task is not None:
            self.interrupt(task)
        self._host.post(Recalled(lease, ()))

    def interrupt(self, task: Task) -> None:
        """Sets the flag, and raises KeyboardInterrupt in a task that wants that, CancelledError in a coroutine."""
        actor = task.actor.id if task.actor is not None else 0
        self._say(_host_of(task), frame(Kind.CANCEL, task.id, fn=actor), ())

    def retire(self, lease: Lease) -> None:
        """Of an actor: it begins nothing any more, and what it has begun is told to stop; Gone when that is over."""
        assert lease.actor is not None
        self._say(lease.actor.owner, frame(Kind.CANCEL, lease.actor.id), ())

    def end_actor(self, lease: Lease) -> None:
        """As Backend.end_actor."""
        assert lease.actor is not None
        self._say(lease.actor.owner, frame(Kind.EXIT, lease.actor.id), ())

    def running(self, lease: Lease) -> Collection[int]:
        """As Backend.running."""
        return [id for packet in lease.packets for id in packet if id in self._running]

    def heard(self, client: int, kind: int, flags: int, fn: int, id: int, whole: bytes, fds: tuple[int, ...]) -> bool:
        """What a host says of a task, or of one of its refs. False: the task is over, or was never given to it."""
        of, place = (id, fn) if kind == Kind.YIELD else (fn or id, 0)
        task, lease = self._given.get(of, (None, None))
        if task is None or lease is None or _host_of(task) != client:
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
                self._forget([id])
            self._host.post(Finished(lease, [End(id, kind, flags, whole, fds)]))
        return True

    def actor_exits(self, client: int, id: int, flags: int, how: str) -> None:
        """What a host says of an actor."""
        lease = self._actors.get(id)
        if lease is None or lease.actor is None or lease.actor.owner != client:
            return
        if flags & Flag.LEAVES:
            self._forget_actor(id, lease)
            self._host.post(Gone(lease))
        else:
            self._host.post(ActorExits(lease, False, how))

    def client_gone(self, client: int) -> None:
        """A host has ended, and all of its threads with it."""
        for id, lease in list(self._actors.items()):
            if lease.actor is not None and lease.actor.owner == client:
                self._forget_actor(id, lease)
                self._died(lease, 0)
        for id, (task, lease) in list(self._given.items()):
            if _host_of(task) == client:
                began = id in self._running
                self._forget([id])
                self._died(lease, id if began else 0)

    def _died(self, lease: Lease, running: int) -> None:
        self._host.post(Died(lease, running, None, _HOST_ENDED, False))
        self._host.post(Gone(lease))

    def _forget_actor(self, id: int, lease: Lease) -> None:
        del self._actors[id]
        self._forget(id for packet in lease.packets for id in packet)

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            self._given.pop(id, None)
            self._running.discard(id)


def _host_of(task: Task) -> int:
    return task.owner if task.actor is None else task.actor.owner
