"""Actors: which call runs next, and what the end of an actor means for its calls.

An actor is a task whose code is its constructor, and which goes on until the actor has ended: so it waits for its
arguments and resources, is listed, limited and run again (`max_restarts`) as any task. Its lease is its own, for its
whole life. Its calls are tasks, too; they run in that lease, and in no other. They wait in the actor's boxes:

    concurrency 1   one box for each client that calls: its calls begin in the order in which they were submitted, also
                    when one has to wait for its arguments. They are given in packets, ahead of time
    more            one box for all; a call that has to wait for its arguments holds up no other. As many are given
                    as may run at once, so what was given begins at once

A cancel of a call that has begun is a wish (ASK; of async actors a CancelledError in the coroutine), since its code
shares the actor's state with all others. Only the end of the actor is an end by force.

Pure, as all of `engine`: a part of the scheduler, which is the only one to call it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jupyter_tasks.engine.cancel import Cancel, Rung
from jupyter_tasks.engine.events import (
    FALSE_STARTS,
    PACKET_BYTES,
    PACKET_US,
    UNKNOWN_DURATION,
    ActorKilled,
    Answer,
    CancelAsked,
    Died,
    Drop,
    End,
    EndActor,
    Lease,
    Retire,
    Run,
    Task,
    TaskSpec,
)
from jupyter_tasks.engine.states import FINAL, State, Step, next_state
from jupyter_tasks.wire.frames import PACKED_NONE, Flag, Kind, frame, readdressed, show_id, to_json

if TYPE_CHECKING:
    from jupyter_tasks.engine.scheduler import Scheduler

__all__ = ["EXIT_GRACE", "HOST_GONE", "Actor", "ActorRules", "Call"]

# Seconds that an actor may take to leave once its last call has ended: its atexit functions and threads. An honest
# guess; what takes longer is ended by force.
EXIT_GRACE = 10.0
HOST_GONE = "the process that it was to run in has ended"  # of what runs in threads of a client
MOST_AT_ONCE = 32  # calls in one message to an actor that runs them beside each other
_ALL = 0  # the box of an actor whose calls have no order
_TERMINATED = "terminate() was called"


class Actor(Task):
    """One actor. Changed by the rules alone.

    Invariant: `death` is empty exactly as long as calls are taken in; once it is set, no call waits to be given.
    Invariant: a call in `calls` stands in a box, or in a packet of the lease, or waits for its arguments or next try.
    """

    __slots__ = (
        "asynchronous",
        "boxes",
        "calls",
        "class_name",
        "concurrency",
        "death",
        "died",
        "durations",
        "exit_by",
        "exiting",
        "killers",
        "lived",
        "methods",
        "name",
        "namespace",
        "ready",
        "restart_asked",
        "terminated",
    )

    def __init__(
        self,
        id: int,
        owner: int,
        fn: int,
        spec: TaskSpec,
        call: bytes,
        *,
        class_name: str,
        methods: Sequence[TaskSpec],
        concurrency: int = 1,
        asynchronous: bool = False,
        name: str = "",
        namespace: str = "",
    ) -> None:
        super().__init__(id, owner, fn, spec, call, False)
        self.class_name = class_name
        self.name = name  # that others find it by; "": none
        self.namespace = namespace
        self.methods = list(methods)
        self.concurrency = concurrency
        self.asynchronous = asynchronous
        self.calls: dict[int, Call] = {}  # those that are not final, in the order they came
        self.boxes: dict[int, deque[Call]] = {}  # of these those that may be given; see the module's text
        self.durations = [UNKNOWN_DURATION] * len(methods)  # log2 us of each method's last run
        self.ready = False  # its constructor has ended, and its process lives
        self.lived = False  # its constructor has ended, in the life that is, or that was last
        self.terminated = False  # somebody wants it to end when it has done what it has
        self.exiting = False  # it was told to leave, or leaves by itself
        self.exit_by: float | None = None
        self.restart_asked = False  # jt.kill(no_restart=False)
        self.killers: list[tuple[int, int]] = []  # clients, and their questions, that wait until its process is gone
        self.death: bytes = b""  # the outcome of calls that it cannot do any more
        self.died: Died | None = None  # how its process ended; it is not gone yet

    @property
    def in_order(self) -> bool:
        """One call at a time."""
        return self.concurrency == 1 and not self.asynchronous

    @property
    def is_findable(self) -> bool:
        """By its name."""
        return not self.kind and not self.death and not self.exiting

    @property
    def life(self) -> str:
        """Where in its life it is; the words are Ray's."""
        if self.kind:
            return "dead"
        if self.death:
            return "ending"
        if self.ready:
            return "alive"
        return "restarting" if self.attempt else "pending"

    def record(self) -> dict[str, Any]:
        """What people are told of it beside what they are told of any task."""
        return {
            "class_name": self.class_name,
            "registered_name": self.name,
            "namespace": self.namespace,
            "life": self.life,
            "restarts": self.attempt,
            "max_restarts": self.spec.max_retries,
            "concurrency": self.concurrency,
            "asynchronous": self.asynchronous,
            "waiting_calls": sum(call.lease is None for call in self.calls.values()),
        }


class Call(Task):
    """One call of an actor's method."""

    __slots__ = ("actor", "method")

    actor: Actor

    def __init__(
        self, id: int, owner: int, actor: Actor, method: int, call: bytes, plain: bool, spec: TaskSpec | None = None
    ) -> None:
        super().__init__(id, owner, 0, actor.methods[method] if spec is None else spec, call, plain)
        self.actor = actor
        self.method = method


class ActorRules:
    """See the module's text."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.due: dict[int, Actor] = {}  # to be looked at when this event is taken in
        self._names: dict[tuple[str, str], int] = {}  # namespace and name -> actor

    # -- names ------------------------------------------------------------------------------------------------

    def find(self, name: str, namespace: str) -> Actor | None:
        """The living actor of this name."""
        actor = self._scheduler.live.get(self._names.get((namespace, name), 0))
        return actor if isinstance(actor, Actor) and actor.is_findable else None

    def take_name(self, actor: Actor) -> bool:
        """For an actor that is about to be submitted. False: a living one has it."""
        if not actor.name:
            return True
        if self.find(actor.name, actor.namespace) is not None:
            return False
        self._names[actor.namespace, actor.name] = actor.id
        return True

    # -- calls come in ----------------------------------------------------------------------------------------

    def submitted(self, call: Call, now: float) -> None:
        """A call, which may have to wait for its arguments."""
        actor = call.actor
        if actor.death or actor.terminated:
            self._fail(call, now)
            return
        actor.calls[call.id] = call
        if not actor.in_order:
            if not call.waiting:
                self.enqueue(call)
            return
        box = actor.boxes.get(call.owner)
        if box is None:
            box = actor.boxes[call.owner] = deque()
        box.append(call)
        self.due[actor.id] = actor

    def enqueue(self, call: Call, *, front: bool = False) -> None:
        """Its arguments are there; or (`front`) it was given and is back, or is to be run once more."""
        actor = call.actor
        self.due[actor.id] = actor
        if front or not actor.in_order:  # in order: it stands there already
            box = actor.boxes.setdefault(call.owner if actor.in_order else _ALL, deque())
            if front:
                box.appendleft(call)
            else:
                box.append(call)

    # -- dispatch ---------------------------------------------------------------------------------------------

    def serve_all(self, now: float) -> None:
        """Gives calls to the actors for whom something has changed."""
        while self.due:
            due, self.due = self.due, {}
            for actor in due.values():
                self._serve(actor, now)

    def note(self, actor: Actor) -> None:
        """Something has changed for it."""
        self.due[actor.id] = actor

    def _serve(self, actor: Actor, now: float) -> None:
        lease = actor.lease
        if actor.death:
            self._fail_waiting(actor, now)
        if lease is None or not actor.ready or lease.retired:
            return
        if actor.exiting:
            return
        if actor.in_order:
            depth = 1 if actor.spec.thread else self._scheduler.capabilities.depth
            while len(lease.packets) < depth and (packet := self._next_packet(actor)):
                self._give(lease, packet)
        else:
            room = actor.concurrency - (len(lease.packets[0]) if lease.packets else 0)
            calls: list[Call] = []
            while len(calls) < room and (heads := list(self._heads(actor))):
                calls.append(heads[0].popleft())
            for at in range(0, len(calls), MOST_AT_ONCE):
                self._give(lease, calls[at : at + MOST_AT_ONCE])
        if not actor.calls and (actor.terminated or actor.holders <= 0):
            self._end_gracefully(actor, now)

    def _heads(self, actor: Actor) -> Iterator[deque[Call]]:
        """The boxes whose first call may begin."""
        for client in list(actor.boxes):
            box = actor.boxes[client]
            while box and box[0].state is not State.PENDING:
                box.popleft()  # cancelled
            if not box:
                del actor.boxes[client]
            elif not box[0].waiting:
                yield box

    def _next_packet(self, actor: Actor) -> list[Call]:
        """Of one client, as it has submitted them, and no further than to a call of another that came before."""
        heads = sorted(self._heads(actor), key=lambda box: box[0].seq)
        if not heads:
            return []
        box = heads[0]
        until = heads[1][0].seq if len(heads) > 1 else None
        head = box[0]
        took = actor.durations[head.method]
        most = max(1, min(self._scheduler.capabilities.packet, PACKET_US >> took)) if head.plain else 1
        packet: list[Call] = []
        size = 0
        while box and len(packet) < most:
            call = box[0]
            if call.state is not State.PENDING:
                box.popleft()
                continue
            if packet and (not call.plain or size + len(call.call) > PACKET_BYTES):
                break
            if actor.durations[call.method] > took or (until is not None and call.seq > until):
                break
            packet.append(box.popleft())
            size += len(call.call)
        return packet

    def _give(self, lease: Lease, calls: list[Call]) -> None:
        for call in calls:
            call.lease = lease
        ids = [call.id for call in calls]
        if lease.actor is not None and not lease.actor.in_order and lease.packets:
            lease.packets[0] += ids  # one list for all: who ends first is not known
        else:
            lease.packets.append(ids)
        self._scheduler.tell(Run(lease, calls))

    # -- a life -----------------------------------------------------------------------------------------------

    def constructed(self, actor: Actor, end: End, now: float) -> None:
        """Its constructor has ended."""
        scheduler = self._scheduler
        lease = actor.lease
        if end.fds:
            scheduler.tell(Drop(end.fds))
        if lease is None or lease.retired:
            return
        if end.kind == Kind.RESULT:
            actor.ready = actor.lived = True
            actor.false_starts = 0
            if not actor.spec.max_retries:
                scheduler.forget_call(actor, now)  # it is never made again
            self.due[actor.id] = actor
            return
        if end.kind == Kind.ERROR:
            actor.death = readdressed(end.frame, actor.id)
        else:
            self._doom(actor, "its constructor was interrupted", now)
        self.due[actor.id] = actor
        self._retire(lease)

    def exits(self, actor: Actor, leaves: bool, how: str, now: float) -> None:
        """It ends by itself: now begins no further call, or (`leaves`) does nothing any more but leave."""
        if not actor.exiting:
            actor.exiting = True
            self._doom(actor, f"it has left, by {how}", now)
        if leaves and actor.exit_by is None:
            self._set_deadline(actor, now)

    def closed(self, actor: Actor, now: float) -> None:
        """It is to end when it has done what it has."""
        if not actor.kind and not actor.death:
            actor.terminated = True
            self.due[actor.id] = actor

    def kill(self, actor: Actor, event: ActorKilled, now: float) -> None:
        """At once. Answered when its process is gone, or, in a thread, when nothing can begin any more."""
        scheduler = self._scheduler
        if event.client:
            actor.killers.append((event.client, event.serial))
        if actor.kind:
            self._answer_killers(actor)
            return
        actor.restart_asked = not event.no_restart and scheduler.may_retry(actor)
        if not actor.restart_asked and actor.cancel is None:
            actor.cancel = Cancel("user", event.reason, now, None, rung=Rung.KILL, recursive=True)
            self._doom(actor, f"it was killed{f': {event.reason}' if event.reason else ''}", now)
        self._end_place(actor, now)

    def too_much_memory(self, actor: Actor, used: int, now: float) -> None:
        """Over its limit: it ends, and is not made again."""
        actor.used_memory = used
        if actor.cancel is None and actor.lease is not None:
            actor.cancel = Cancel("memory", "", now, None, rung=Rung.KILL, recursive=True)
            self._doom(actor, f"it used {used:,} bytes of private memory, and its limit is {actor.spec.memory:,}", now)
            self._end_place(actor, now)

    def _end_place(self, actor: Actor, now: float) -> None:
        lease = actor.lease
        if actor.cancel is not None:
            self._kill_children(actor, now)
            if actor.state is State.RUNNING:
                actor.state = next_state(actor.state, Step.ASKED)
        if lease is None:
            if actor.cancel is not None:
                self._scheduler.conclude(actor, Step.ASKED, {"rung": "pending"}, now)
            self._answer_killers(actor)
        elif not lease.retired:
            self._retire(lease)
        if actor.spec.thread:
            self._answer_killers(actor)

    def _retire(self, lease: Lease) -> None:
        lease.retired = True
        if lease.actor is not None:
            lease.actor.ready = False
        self._scheduler.tell(Retire(lease))

    def _kill_children(self, actor: Actor, now: float) -> None:
        """What its calls have submitted goes with it; of actors that it has made, its handles."""
        wish = CancelAsked(0, "parent", "its parent, an actor, was killed", force=True)
        for task in list(self._scheduler.live.values()):
            if task.by_actor == actor.id and task.state not in FINAL:
                self._scheduler.cancel_asked(wish._replace(id=task.id), now)

    def _end_gracefully(self, actor: Actor, now: float) -> None:
        actor.exiting = True
        self._doom(actor, _TERMINATED if actor.terminated else "the last handle to it was dropped", now)
        assert actor.lease is not None
        self._set_deadline(actor, now)
        self._scheduler.tell(EndActor(actor.lease))

    def _set_deadline(self, actor: Actor, now: float) -> None:
        actor.exit_by = now + EXIT_GRACE
        self._scheduler.at(actor.exit_by, actor, Step.KILLED)

    def refuse(self, call: Call, end: End, now: float) -> None:
        """It has gone on in a thread of an actor that was killed: however it has ended, that is how."""
        if end.kind == Kind.INTERRUPTED and end.flags & Flag.SKIPPED and call.cancel is not None:
            self._scheduler.conclude(call, Step.STOPPED, {"rung": "pending"}, now)
        else:
            self._fail(call, now)

    def overdue(self, actor: Actor) -> None:
        """It was to leave, and does not."""
        if actor.lease is not None and not actor.lease.retired:
            self._retire(actor.lease)

    def _doom(self, actor: Actor, why: str, now: float) -> None:
        """It will do nothing any more. What it has begun goes on; the rest fails now."""
        if not actor.death:
            actor.death = _death(actor, why)
        self._fail_waiting(actor, now)

    def _fail_waiting(self, actor: Actor, now: float) -> None:
        actor.boxes.clear()
        for call in [call for call in actor.calls.values() if call.lease is None]:
            self._fail(call, now)

    def _fail(self, call: Call, now: float) -> None:
        """With what the actor's death says."""
        if call.state in FINAL:
            return
        death = self.death_of(call.actor)
        call.frame = readdressed(death, call.id)
        self._scheduler.settle(call, Step.ACTOR_GONE, death[4], now)

    def _fail_unavailable(self, call: Call, why: str, now: float) -> None:
        actor = call.actor
        began = call.state is not State.PENDING
        record = {"type": "actor_unavailable", "actor_id": show_id(actor.id), "actor": actor.spec.name, "why": why}
        call.frame = frame(Kind.FAILURE, call.id, to_json({**record, "began": began}))
        self._scheduler.settle(call, Step.ACTOR_GONE, Kind.FAILURE, now)

    # -- an end -----------------------------------------------------------------------------------------------

    def process_died(self, actor: Actor, event: Died) -> None:
        """Its process has ended. What that means is decided when all below it is gone, too."""
        actor.ready = False
        actor.died = event
        event.lease.retired = True

    def gone(self, actor: Actor, lease: Lease, now: float) -> None:
        """Nothing of its process tree exists any more."""
        if actor.lease is not lease:
            return  # told twice: it was retired when it was gone already
        scheduler = self._scheduler
        died, actor.died = actor.died, None
        ids = [id for packet in lease.packets for id in packet]
        lease.packets.clear()
        lease.ghosts.clear()
        actor.lease = None
        actor.ready = False
        calls = [call for id in ids if isinstance(call := scheduler.live.get(id), Call)]
        for call in calls:
            call.lease = None
            # Of threads each call says that it begins.
            began = not (actor.in_order or actor.spec.thread) or (died is not None and call.id == died.running)
            if began and call.state is State.PENDING:
                call.state = next_state(call.state, Step.STARTED)
        why = _how(died)
        if actor.death or actor.exiting or not self._is_made_again(actor, died):
            if not actor.death:
                more = " (and it had been made again as often as max_restarts allows)" if actor.attempt else ""
                self._doom(actor, HOST_GONE if actor.spec.thread else f"its process ended: {why}{more}", now)
            for call in calls:
                self._fail(call, now)
            self._fail_waiting(actor, now)
            self._finish(actor, died, now)
        else:
            self._restart(actor, calls, why, died, now)
        self._answer_killers(actor)

    def host_gone(self, actor: Actor, now: float) -> None:
        """It was to live in a thread of a process that has ended, and no thread was given it yet."""
        self._doom(actor, HOST_GONE, now)
        self._scheduler.conclude(actor, Step.DIED, {"exit_code": None, "signal_name": HOST_GONE}, now)

    def _is_made_again(self, actor: Actor, died: Died | None) -> bool:
        if actor.spec.thread:
            return False  # it has gone with its process, or as it was told
        if actor.state is State.PENDING and not actor.restart_asked:  # its constructor had not begun
            actor.false_starts += 1
            return actor.false_starts < FALSE_STARTS
        return self._scheduler.may_retry(actor)

    def _restart(self, actor: Actor, calls: list[Call], why: str, died: Died | None, now: float) -> None:
        scheduler = self._scheduler
        if actor.state is State.PENDING and not actor.restart_asked:
            scheduler.give_again(actor)  # its constructor had not begun: nobody needs to hear of it
            return
        if actor.restart_asked:
            why = "jt.kill(no_restart=False)"
        if actor.lived:  # of one that was never there nobody knows anything: what waits, waits for the next one
            given = {call.id for call in calls}
            calls = [*calls, *(call for call in actor.calls.values() if call.lease is None and call.id not in given)]
            actor.boxes.clear()
        actor.lived = False
        for call in calls:
            if call.state is State.PENDING and call.spec.max_retries:
                self._put_back(call)
            elif call.state is State.RUNNING and scheduler.may_retry(call):
                scheduler.begin_again(call, why, now)
                self._put_back(call)
            elif call.state is State.CANCELLING:  # what it was asked has come to pass
                scheduler.conclude(call, Step.STOPPED, {"rung": "kill"}, now)
            elif call.state not in FINAL:
                self._fail_unavailable(call, why, now)
        actor.restart_asked = False
        scheduler.retry(actor, why, now)

    @staticmethod
    def _put_back(call: Call) -> None:
        """For the next life; one that waits for its arguments, or its time, comes by itself."""
        actor = call.actor
        if call.retry_at is None and (actor.in_order or not call.waiting):
            actor.boxes.setdefault(call.owner if actor.in_order else _ALL, deque()).append(call)

    def _finish(self, actor: Actor, died: Died | None, now: float) -> None:
        """The actor itself becomes final."""
        scheduler = self._scheduler
        cancel = actor.cancel
        if cancel is not None and cancel.source == "memory":
            scheduler.conclude(actor, Step.DIED, {"memory": True}, now)
        elif cancel is not None:
            ended = Step.STOPPED if actor.spec.thread else Step.KILLED
            step = ended if actor.state is State.CANCELLING else Step.ASKED
            scheduler.conclude(actor, step, {"rung": "ask" if actor.spec.thread else "kill"}, now)
        elif actor.exiting:
            actor.frame = frame(Kind.RESULT, actor.id, PACKED_NONE)
            scheduler.settle(actor, Step.RETURNED, Kind.RESULT, now)
        elif actor.death[4] == Kind.ERROR:
            actor.frame = actor.death
            scheduler.settle(actor, Step.RAISED, Kind.ERROR, now)
        else:
            facts: dict[str, Any] = {"exit_code": None, "signal_name": None}
            if died is not None:
                facts = {"exit_code": died.exit_code, "signal_name": died.signal_name}
            scheduler.conclude(actor, Step.DIED, facts, now)

    def ended(self, actor: Actor, now: float) -> None:
        """The actor is final, in whatever way."""
        if not actor.death and actor.cancel is not None:
            self._doom(actor, "it was cancelled before it began", now)
        elif not actor.death:  # an argument of its constructor could not be had: that is what calls raise, too
            actor.death = actor.frame
            self._fail_waiting(actor, now)
        if self._names.get((actor.namespace, actor.name)) == actor.id:
            del self._names[actor.namespace, actor.name]

    def death_of(self, actor: Actor) -> bytes:
        """The outcome of calls of one that will do nothing any more."""
        return actor.death or _death(actor, _TERMINATED)

    def _answer_killers(self, actor: Actor) -> None:
        killers, actor.killers = actor.killers, []
        for client, serial in killers:
            self._scheduler.tell(Answer(client, serial, True))

    # -- looking ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Asserts the invariants."""
        assert not self.due, "actors were not looked at"
        for task in self._scheduler.live.values():
            if not isinstance(task, Actor):
                continue
            waiting = [call for call in task.calls.values() if call.lease is None]
            assert not (task.death and waiting), f"{task.spec.name} is dead, and calls wait for it"
            assert all(call.state not in FINAL for call in task.calls.values()), "a call is final, and open"
            assert task.lease is None or task.lease.actor is task, f"{task.spec.name} lives in another's place"
            for box in task.boxes.values():
                for call in box:
                    assert call.lease is None, f"{show_id(call.id)} waits, and was given"
                    assert call.state in FINAL or call.id in task.calls, f"{show_id(call.id)} waits, and is unknown"
            idle = task.ready and task.lease is not None and not task.lease.packets and not task.lease.retired
            if idle and not task.exiting:
                assert not list(self._heads(task)), f"{task.spec.name} has nothing to do, and calls wait"
                assert task.holders > 0 or task.calls, f"{task.spec.name} has nothing to do, and nobody wants it"


def _death(actor: Actor, why: str) -> bytes:
    record = {"type": "actor_died", "actor_id": show_id(actor.id), "actor": actor.spec.name, "why": why}
    return frame(Kind.FAILURE, actor.id, to_json(record))


def _how(died: Died | None) -> str:
    if died is None:
        return "it was stopped"
    return died.signal_name or f"exit code {died.exit_code}"
