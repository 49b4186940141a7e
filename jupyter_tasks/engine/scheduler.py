"""The rules: which task runs next, what an end means for others, how a cancel climbs.

`Scheduler.handle(event, now)` is the only door: one event in, instructions out, carried out in their order. There
is no lock, no clock and no I/O; `now` is seconds on any clock that does not jump. It knows tasks, objects and leases
(places at the backend), never processes, sockets or bytes of payloads.

Dispatch. Ready tasks stand in queues, one for each priority and demand. A lease holds the demand's resources and runs
tasks of that demand one after another, so a hot loop of small tasks takes and gives back nothing. Tiny plain tasks
travel in packets, whose size shrinks with the function's last duration and with the backlog; packets are given
ahead of time up to the backend's depth, and taken back when another lease has nothing to do. The oldest task that
does not fit reserves what it lacks, so a big one cannot starve.

GPUs are given out as devices: whole ones, or a share of one. What a process has put on a device stays there until the
process ends. So a lease with devices keeps them while it is idle (for GPU_IDLE seconds, and only until somebody needs
them) and while its task waits, and they are free when its place is gone, not before.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from jupyter_tasks.engine.actors import HOST_GONE, Actor, ActorRules, Call
from jupyter_tasks.engine.cancel import TIMEOUT_GRACE, Cancel, Rung
from jupyter_tasks.engine.events import (
    CPU_UNITS,
    EVERYTHING,
    FALSE_STARTS,
    GPU,
    MOST_DEPTH,
    ONE_PACKET,
    PACKET_BYTES,
    PACKET_US,
    UNKNOWN_DURATION,
    ActorClosed,
    ActorExits,
    ActorKilled,
    Announce,
    Answer,
    CancelAsked,
    Capabilities,
    Chapter,
    ClientGone,
    CloseLease,
    Contains,
    Deliver,
    DeliverValue,
    Demand,
    Died,
    Drop,
    End,
    Entry,
    Event,
    Fetched,
    Finished,
    Gone,
    GroupClosed,
    GroupKept,
    GroupMade,
    GroupTold,
    Held,
    IdleAgain,
    Instruction,
    Interrupt,
    ItemContains,
    Kill,
    Lease,
    Promise,
    Put,
    Recall,
    Recalled,
    Released,
    Retire,
    RoomAsked,
    Run,
    Started,
    Stream,
    Submitted,
    Taken,
    Task,
    Terminate,
    ThreadsOffered,
    Tick,
    TooMuchMemory,
    UnBlocked,
    Uploaded,
    WaitBegan,
    Yielded,
    thread_slots,
)
from jupyter_tasks.engine.groups import MOST_FAILED, Group
from jupyter_tasks.engine.states import FINAL, State, Step, next_state
from jupyter_tasks.wire.frames import (
    ALL_TAKEN,
    DURATION_SHIFT,
    HEADER_SIZE,
    ITEM_OF,
    ITEMS,
    Flag,
    Kind,
    frame,
    from_json,
    readdressed,
    show_id,
    to_json,
)

__all__ = ["GPU_IDLE", "HISTORY", "LEND_AFTER", "Scheduler"]

HISTORY = 1000  # finished tasks that `%tasks` can still show; a record holds no value
MOST_QUEUES = 32  # kept while they are empty
# What keeps a worker with its finished task: threads or children of it, or its frames for a debugger.
_PLAIN_ENDS = frozenset({Step.RETURNED, Step.RAISED})  # the state says it all
_STAYS = {Kind.RESULT: Flag.LINGERS, Kind.ERROR: Flag.LINGERS | Flag.KEPT}
RETRY_MOST = 300.0  # seconds: a delay between attempts does not grow beyond this
STORY_FIRST, STORY_MOST = 10, 50  # chapters of a task's story: of a long one the first ones and the last are kept
# Seconds that a worker with devices may be idle: its imports (torch: seconds) are worth keeping for the next cell, the
# memory it has on the device is missed by others, perhaps by the kernel itself. An honest guess.
GPU_IDLE = 30.0
# Seconds that nothing must run before a task that waits lends its devices: it goes on a moment after what it waited for
# has ended, and would find them taken.
LEND_AFTER = 1.0


class _Queue:
    """Ready tasks of one priority and demand, oldest first."""

    __slots__ = ("actors", "ahead", "demand", "priority", "tasks")

    def __init__(self, priority: int, demand: Demand, actors: bool) -> None:
        self.priority = priority
        self.demand = demand
        self.actors = actors  # each gets a place of its own
        # Tasks may be given before their lease is free. Not threads: they cannot be taken back to run elsewhere.
        self.ahead = not any(name.startswith("thread:") for name, _ in demand)
        self.tasks: deque[Task] = deque()


class Scheduler:
    """All tasks, objects and leases of one supervisor. See the module's text."""

    def __init__(self, total: dict[str, int], capabilities: Capabilities) -> None:
        self.total = dict(total)  # resource -> amount in CPU_UNITS
        self.available = dict(total)  # Invariant: total minus what the leases hold, and keep
        # What is left of each device. Invariant: all of it minus the shares of the leases that keep it; below 0 only
        # while a task whose devices were lent goes on (see _lend).
        self._devices = _pieces(total.get(GPU, 0))
        self.capabilities = capabilities
        self.objects: dict[int, Entry] = {}  # every entry that is held or not final
        self.live: dict[int, Task] = {}  # every task that is not final
        self.history: deque[Task] = deque(maxlen=HISTORY)  # final tasks, oldest first, without values
        # Calls of actors, which may be many: what else there was must not be forgotten for them.
        self.past_calls: deque[Task] = deque(maxlen=HISTORY)
        self.groups: dict[int, Group] = {}  # those that are not final
        self.leases: dict[int, Lease] = {}
        self.queued = 0  # tasks in the queues, counting those cancelled meanwhile
        self._queues: dict[tuple[int, Demand, bool], _Queue] = {}
        self._by_demand: dict[Demand, list[Lease]] = {}  # leases that may be given tasks
        self._durations: dict[int, int] = {}  # function -> log2 us of its last run
        self._timers: list[tuple[float, int, Task, int, Step | None]] = []
        self._idle: deque[tuple[float, Lease]] = deque()  # with devices: when to give them up, soonest first
        self._lend_at: float | None = None  # when devices of a task that waits are lent, if nothing runs until then
        self._holds: dict[int, dict[int, int]] = {}  # client -> object -> refs, beside the owner's first one
        self._inside: dict[int, list[int]] = {}  # object -> what its value has refs to, and holds
        self._owned: dict[int, set[int]] = {}  # client other than the kernel -> entries whose first ref it has
        self.actors = ActorRules(self)
        self._ended_members: list[Task] = []  # during this event: their groups hear of it when their owners do
        self._freed = False  # a lease has given its resources back during this event
        self._overdrawn = False  # some of `available` may be below 0; see _unblocked
        self._ids = 0
        self._last_item = ITEMS  # id of the last item of a generator
        self._out: list[Instruction] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Submitted: self._submitted,
            Put: self._put,
            Started: self._started,
            Finished: self._finished,
            Recalled: self._recalled,
            Died: self._died,
            Gone: self._gone,
            IdleAgain: self._idle_again,
            CancelAsked: self.cancel_asked,
            ActorKilled: self._actor_killed,
            ActorClosed: self._actor_closed,
            ActorExits: self._actor_exits,
            GroupMade: self._group_made,
            GroupClosed: self._group_closed,
            GroupKept: self._group_kept,
            ThreadsOffered: self._threads_offered,
            Uploaded: self._uploaded,
            TooMuchMemory: self._too_much_memory,
            Held: self._held,
            Contains: self._contains,
            Released: self._released,
            Fetched: self._fetched,
            ClientGone: self._client_gone,
            WaitBegan: self._wait_began,
            UnBlocked: self._unblocked,
            Tick: self._tick,
            Yielded: self._yielded,
            ItemContains: self._item_contains,
            Taken: self._taken,
            RoomAsked: self._room_asked,
        }

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes in one event; returns what is to be done, in this order."""
        self._handlers[type(event)](event, now)
        actors = self.actors
        while self._ended_members or actors.due:
            self._members_ended(now)
            actors.serve_all(now)
        if self.queued:
            self._dispatch(now)
        elif self._freed:
            self._steal()
        self._freed = False
        out, self._out = self._out, []
        return out

    def next_timer(self) -> float | None:
        """When the next Tick is needed, on the scheduler's clock; None: no need."""
        while self._timers and not self._timer_valid(self._timers[0]):
            heapq.heappop(self._timers)
        timer = self._timers[0][0] if self._timers else None
        if self._lend_at is not None:
            timer = self._lend_at if timer is None else min(timer, self._lend_at)
        while self._idle:
            when, lease = self._idle[0]
            if _is_idle_since(when, lease):
                return when if timer is None else min(when, timer)
            self._idle.popleft()
        return timer

    def check(self) -> None:
        """Asserts the invariants that can be checked. For tests and `statistics`; O(everything)."""
        held: dict[str, int] = dict.fromkeys(self.total, 0)
        devices = _pieces(self.total.get(GPU, 0))
        for lease in self.leases.values():
            share = _share(lease.demand)
            assert bool(share) == bool(lease.devices), f"{lease.devices} for a demand of {share} on a device"
            if lease.holds:
                for name, amount in lease.demand:
                    held[name] += amount if name != GPU else 0
            if lease.keeps:
                held[GPU] += share * len(lease.devices)
                for device in lease.devices:
                    devices[device] -= share
            for packet in lease.packets:
                assert packet, "an empty packet is still counted"
        assert self._devices == devices, "shares of devices lost or made"
        assert self._overdrawn or min(devices, default=0) >= 0, "a device was given out twice"
        for name, amount in self.total.items():
            assert self.available[name] == amount - held[name], f"{name}: resources lost or made"
        for task in self.live.values():
            assert task.state not in FINAL, f"{show_id(task.id)} is final and live"
            assert task.kind == 0, f"{show_id(task.id)} has an outcome and is live"
            stream = task.stream
            if stream is not None:
                assert task.spec.streams, f"{show_id(task.id)} is no generator, and has made items"
                assert stream.asked is None or not self._has_room(task, stream, stream.asked.made), "room is not told"
                assert stream.taken == ALL_TAKEN or stream.taken <= stream.made, "taken before it was made"
        for group in self.groups.values():
            assert group.kind == 0, f"group {group.name} has its outcome and is live"
            assert not group.is_over, f"group {group.name} is over and not final"
            for id in group.live:
                member = self.live.get(id) or self.groups.get(id)
                assert member is not None, f"{show_id(id)} is final and a live member of {group.name}"
                of = member.group if isinstance(member, Task) else member.outer
                assert of is group, f"{show_id(id)} is a member of another group"
        for task in self.live.values():
            assert task.group is None or task.id in task.group.live, f"{show_id(task.id)} is in no group"
        assert self._inside.keys() <= self.objects.keys(), "a value that is gone still holds others"
        self.actors.check()
        for entry in self.objects.values():
            assert entry.holders > 0 or entry.kind == 0, f"{show_id(entry.id)} is held by nobody"

    # -- tasks come in ----------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted, now: float) -> None:
        objects, live = self.objects, self.live
        for task in event.tasks:
            self._ids += 1
            task.seq = self._ids
            task.submitted_at = now
            objects[task.id] = task
            live[task.id] = task
            if task.owner > 1:
                self._owned.setdefault(task.owner, set()).add(task.id)
            if task.spec.num_returns > 1:
                for i in range(1, task.spec.num_returns):
                    self._add_return(task, i)
            for id in task.pins:
                if id in objects:
                    objects[id].holders += 1
            if (task.parent or task.group_id) and self._join(task, now):
                continue
            ready = not task.deps or self._wait_for(task, now)
            if task.actor is not None:
                if task.state is State.PENDING:
                    assert isinstance(task, Call)
                    self.actors.submitted(task, now)
            elif ready:
                self._enqueue(task)

    def _add_return(self, task: Task, index: int) -> None:
        entry = Entry(task.id + index, task.owner)
        self.objects[entry.id] = entry
        if task.owner > 1:
            self._owned[task.owner].add(entry.id)

    def _join(self, task: Task, now: float) -> bool:
        """To its parent's children and into a group. True if it ends here: a cancel reaches also those that come late,
        and nothing starts in a group that was cancelled."""
        group = self.objects.get(task.group_id)
        parent: Task | None = None
        if task.parent:
            parent = self.live.get(task.parent)
            if isinstance(parent, Actor):
                task.by_actor = parent.id  # from its constructor, or a thread of its own
            elif parent is not None:
                if parent.children is None:
                    parent.children = []
                parent.children.append(task.id)
                if parent.actor is not None:
                    task.by_actor = parent.actor.id
            else:
                parent = self.find(task.parent)
            if parent is not None:
                task.depth = min(parent.depth + 1, MOST_DEPTH - 1)
                if not task.group_id:
                    group = parent.group
        if isinstance(task, Actor):
            group = None  # it lives as long as its handles
        if isinstance(group, Group) and (not group.kind or group.cancel is not None):  # otherwise it is over
            task.group = group
            group.live[task.id] = None
            for each in group.chain():
                each.submitted += 1
                self._out.append(GroupTold(each, False))
            if group.cancel is not None:
                task.cancel = Cancel("group", group.why, now, None)
        cancel = parent.cancel if parent is not None else None
        if task.cancel is None and cancel is not None and cancel.rung is Rung.KILL and cancel.recursive:
            # On its way when the parent was killed.
            task.cancel = Cancel("parent", cancel.reason, now, None)
        if task.cancel is None:
            return False
        task.deps = ()
        self.conclude(task, Step.ASKED, {"rung": "pending"}, now)
        return True

    def _wait_for(self, task: Task, now: float) -> bool:
        """Pins what the task needs. True if all of it is there; if one has failed the task ends here."""
        failed: Entry | None = None
        lost = next((id for id in task.deps if id not in self.objects), None)
        if lost is not None:
            task.deps = ()
            self.conclude(task, Step.UPSTREAM_FAILED, _lost_object(task, lost), now)
            return False
        for id in task.deps:
            entry = self.objects[id]
            entry.holders += 1
            if entry.kind == 0:
                task.waiting += 1
                if entry.dependents is None:
                    entry.dependents = []
                entry.dependents.append(task)
            elif entry.kind != Kind.RESULT:
                failed = entry
        if failed is not None:
            self._fail_dependent(task, failed, now)
            return False
        return task.waiting == 0

    def _enqueue(self, task: Task, *, front: bool = False) -> None:
        if task.actor is not None:
            assert isinstance(task, Call)
            self.actors.enqueue(task, front=front)
            return
        key = (task.spec.priority - task.depth, task.spec.demand, type(task) is Actor)
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) > MOST_QUEUES:  # of other depths, as a rule
                self._queues = {key: queue for key, queue in self._queues.items() if queue.tasks}
            queue = self._queues[key] = _Queue(*key)
        if front:
            queue.tasks.appendleft(task)
        else:
            queue.tasks.append(task)
        self.queued += 1

    def _put(self, event: Put, now: float) -> None:
        entry = event.entry
        known = self.objects.get(entry.id)
        if known is not None:
            self._bring(known, entry, now)
            return
        self.objects[entry.id] = entry
        if entry.owner > 1:
            self._owned.setdefault(entry.owner, set()).add(entry.id)

    def _bring(self, promise: Entry, outcome: Entry, now: float) -> None:
        """The first outcome of a promised object counts. Its owner, which has brought it, is not told."""
        if isinstance(promise, Promise) and not promise.kind and outcome.kind:
            promise.frame, promise.fds = outcome.frame, outcome.fds
            self._outcome(promise, outcome.kind, {}, now)
        elif outcome.fds:
            self._out.append(Drop(outcome.fds))

    # -- dispatch ---------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        queues = [queue for queue in self._queues.values() if queue.tasks]
        if self._overdrawn:
            self._repay()
        while True:
            short: set[str] = set()  # resources that an older task lacks
            if len(queues) == 1:
                self._serve(queues[0], short)
            else:
                self._serve_in_turn(queues, short)
            if GPU not in short:
                self._lend_at = None
                break
            if not self._lend(now):
                break
        if not self.queued:
            self._steal()

    def _serve_in_turn(self, queues: list[_Queue], short: set[str]) -> None:
        """Several queues: each as far as its next task is the oldest one, so that first come is first served."""
        while queues := [queue for queue in queues if self._head(queue.tasks) is not None]:
            queues.sort(key=lambda queue: (queue.priority, queue.tasks[0].seq))
            queue = queues[0]
            rival = next((other for other in queues[1:] if other.priority == queue.priority), None)
            until = rival.tasks[0].seq if rival is not None else None
            short_of = any(name in short for name, _ in queue.demand)
            if short_of or not self._serve(queue, short, until):
                queues.remove(queue)

    def _serve(self, queue: _Queue, short: set[str], until: int | None = None) -> bool:
        """Gives the queue's tasks to its leases: idle ones first, then new ones, then ahead of time.

        True if it stopped before a task that came later than `until`, the oldest one of another queue.
        """
        if queue.actors:
            return self._house(queue, short, until)
        leases = self._by_demand.setdefault(queue.demand, [])
        if self._overdrawn and any(self.available.get(name, 0) < 0 for name, _ in queue.demand if name != GPU):
            self._lacks(queue.demand, short)
            return False
        tasks = queue.tasks
        for lease in leases:
            if lease.packets or (lease.devices and not self._go_on(lease, short)):
                continue
            if not self._give(queue, lease, until):
                return bool(tasks)
        while self._head(tasks) is not None:
            if not self._take(queue.demand, short):
                break
            lease = self._open(queue.demand)
            leases.append(lease)
            if not self._give(queue, lease, until):
                return bool(tasks)
        for level in range(1, self.capabilities.depth if queue.ahead else 1):
            for lease in leases:
                if len(lease.packets) != level or lease.ghosts:
                    continue  # with ghosts: what it is in takes long
                head = self._head(tasks)
                if head is None:
                    return False
                if head.spec.watched:
                    # A cell is given only to a lease that can begin it: its board must not say "given".
                    self._lacks(queue.demand, short)
                    return False
                if not self._give(queue, lease, until):
                    return bool(tasks)
        if self._head(tasks) is not None:
            self._lacks(queue.demand, short)
        return False

    def _house(self, queue: _Queue, short: set[str], until: int | None) -> bool:
        """As `_serve`. Each actor gets a lease of its own, and keeps it."""
        tasks = queue.tasks
        while (head := self._head(tasks)) is not None:
            if until is not None and head.seq > until:
                return True
            if self._overdrawn and any(self.available.get(name, 0) < 0 for name, _ in queue.demand if name != GPU):
                self._lacks(queue.demand, short)
                return False
            if not self._take(queue.demand, short, shares=False):
                self._lacks(queue.demand, short)
                return False
            tasks.popleft()
            self.queued -= 1
            assert isinstance(head, Actor)
            lease = head.lease = self._open(queue.demand)
            lease.actor = head
            lease.packets.append([head.id])
            self._out.append(Run(lease, [head]))
        return False

    def _head(self, tasks: deque[Task]) -> Task | None:
        """The queue's next task that is still wanted."""
        while tasks:
            if tasks[0].state is State.PENDING:
                return tasks[0]
            tasks.popleft()
            self.queued -= 1
        return None

    def _give(self, queue: _Queue, lease: Lease, until: int | None = None) -> bool:
        """One packet to the lease. False if the queue is empty now, or its next task came later than `until`."""
        tasks = queue.tasks
        head = self._head(tasks)
        if head is None or (until is not None and head.seq > until):
            return False
        most = self._packet_size(head, queue)
        packet: list[Task] = []
        size = 0
        while tasks and most > 0:
            task = tasks[0]
            if task.state is not State.PENDING:
                tasks.popleft()
                self.queued -= 1
                continue
            if packet and (not task.plain or size + len(task.call) > PACKET_BYTES):
                break
            if task.fn != head.fn and self._is_slower(task.fn, head.fn):
                break  # nobody behind it could be taken back
            if until is not None and task.seq > until:
                break
            tasks.popleft()
            self.queued -= 1
            task.lease = lease
            packet.append(task)
            size += len(task.call)
            most -= 1
            if not task.plain:
                break
        lease.packets.append([task.id for task in packet])
        self._out.append(Run(lease, packet))
        return bool(tasks) and (until is None or tasks[0].seq <= until)

    def _is_slower(self, fn: int, than: int) -> bool:
        durations = self._durations
        return durations.get(fn, UNKNOWN_DURATION) > durations.get(than, UNKNOWN_DURATION)

    def _packet_size(self, head: Task, queue: _Queue) -> int:
        if not head.plain or self.capabilities.packet == 1:
            return 1
        by_time = PACKET_US >> self._durations.get(head.fn, UNKNOWN_DURATION)
        by_backlog = len(queue.tasks) // (2 * max(1, len(self._by_demand[queue.demand])))
        return max(1, min(self.capabilities.packet, by_time, by_backlog))

    def _take(self, demand: Demand, short: set[str], *, has_devices: bool = False, shares: bool = True) -> bool:
        """Takes the demand's resources, from idle leases of other demands if need be (or, if it `shares` with none, of
        all). Devices are only looked for: `_open` takes them."""
        available = self.available
        own = demand if shares else None
        for name, amount in demand:
            if name == GPU:
                if not has_devices and not _chosen(self._devices, amount):
                    self._reclaim_devices(amount, own)
                    short.add(name)
                    return False
            elif available.get(name, 0) < amount and (
                (shares and len(self._by_demand) == 1) or not self._reclaim(name, amount, own)
            ):
                short.add(name)
                return False
        for name, amount in demand:
            if name != GPU:
                available[name] -= amount
        return True

    def _repay(self) -> None:
        """Tasks that went on after a wait took more than there was: idle leases are given up until the sum fits."""
        for name, amount in self.available.items():
            if amount < 0 and name != GPU:
                self._reclaim(name, 0, None)
        self._end_idle_beside()
        self._overdrawn = any(amount < 0 for amount in (*self.available.values(), *self._devices))

    def _reclaim(self, name: str, amount: int, wanted_by: Demand | None) -> bool:
        """Closes idle leases of other demands until `amount` is there. Those with devices only go without it."""
        for demand, leases in self._by_demand.items():
            if demand == wanted_by:
                continue
            for lease in [lease for lease in leases if not lease.packets and lease.holds]:
                if any(held == name for held, _ in demand):
                    if lease.devices:
                        self._give_back(lease)
                    else:
                        self._close_idle(lease)
                    if self.available.get(name, 0) >= amount:
                        return True
        return False

    def _lacks(self, demand: Demand, short: set[str]) -> None:
        """The queue's next task must wait: keep what it needs from younger ones."""
        for name, amount in demand:
            if not self._has(name, amount):
                short.add(name)

    def _has(self, name: str, amount: int) -> bool:
        return bool(_chosen(self._devices, amount)) if name == GPU else self.available.get(name, 0) >= amount

    def _open(self, demand: Demand) -> Lease:
        self._ids += 1
        wanted = dict(demand).get(GPU, 0)
        lease = Lease(self._ids, demand, _chosen(self._devices, wanted) if wanted else ())
        if lease.devices:
            self._count_devices(lease, -_share(demand))
        self.leases[lease.id] = lease
        return lease

    def _close(self, lease: Lease) -> None:
        """The lease gets no more tasks and holds nothing any more."""
        lease.retired = True
        self.leases.pop(lease.id, None)
        leases = self._by_demand.get(lease.demand, [])
        if lease in leases:
            leases.remove(lease)
        self._give_back(lease)
        self._give_back_devices(lease)

    def _close_idle(self, lease: Lease) -> None:
        if lease.devices:
            # What its process has put on them goes only with it: they are free when it is Gone.
            self._stop_giving(lease)
            self._give_back(lease)
            self._out.append(Retire(lease))
            return
        self._close(lease)
        self._out.append(CloseLease(lease))

    def _give_back(self, lease: Lease) -> None:
        """All but its devices."""
        if lease.holds:
            lease.holds = False
            self._freed = True
            for name, amount in lease.demand:
                if name != GPU:
                    self.available[name] += amount

    def _steal(self) -> None:
        """A lease with nothing to do, or a new one, gets what another was given ahead of time."""
        for demand, leases in self._by_demand.items():
            for lease in leases:
                if len(lease.packets) > 1 and not lease.recalling and self._room_beside(demand, leases):
                    lease.recalling = True
                    self._out.append(Recall(lease, ONE_PACKET))
                    return

    def _room_beside(self, demand: Demand, leases: list[Lease]) -> bool:
        return any(not lease.packets and (not lease.devices or self._could_go_on(lease)) for lease in leases) or all(
            self._has(name, amount) for name, amount in demand
        )

    # -- devices ----------------------------------------------------------------------------------------------

    def _count_devices(self, lease: Lease, change: int) -> None:
        for device in lease.devices:
            self._devices[device] += change
        self.available[GPU] += change * len(lease.devices)

    def _give_back_devices(self, lease: Lease) -> None:
        if lease.keeps:
            lease.keeps = False
            self._freed = True
            self._count_devices(lease, _share(lease.demand))

    def _is_overdrawn(self, lease: Lease) -> bool:
        return any(self._devices[device] < 0 for device in lease.devices)

    @staticmethod
    def _is_idle(lease: Lease) -> bool:
        return not (lease.packets or lease.retired or lease.blocked or lease.actor is not None)

    def _could_go_on(self, lease: Lease) -> bool:
        """An idle lease with devices may have lost the rest of what it needs to others."""
        if self._is_overdrawn(lease):
            return False
        return lease.holds or all(self._has(name, amount) for name, amount in lease.demand if name != GPU)

    def _go_on(self, lease: Lease, short: set[str]) -> bool:
        """The same, and takes it."""
        if self._is_overdrawn(lease):
            return False
        if not lease.holds:
            lease.holds = self._take(lease.demand, short, has_devices=True)
        return lease.holds

    def _reclaim_devices(self, amount: int, wanted_by: Demand | None) -> None:
        """Ends idle places of other demands, as few as it takes, for devices that are free once these are gone."""
        coming = list(self._devices)  # what is left when those are gone that are on their way
        idle: list[Lease] = []
        for lease in self.leases.values():
            if lease.keeps and lease.retired:
                _add(coming, lease)
            elif lease.keeps and self._is_idle(lease) and lease.demand != wanted_by:
                idle.append(lease)
        if _chosen(coming, amount):
            return
        possible = list(coming)
        for lease in idle:
            _add(possible, lease)
        target = _chosen(possible, amount, sorted(range(len(coming)), key=lambda device: -coming[device]))
        for lease in idle:
            if any(device in target and coming[device] < min(amount, CPU_UNITS) for device in lease.devices):
                self._close_idle(lease)
                _add(coming, lease)

    def _lend(self, now: float) -> bool:
        """A task that waits keeps its devices, unless nothing has run for a while, and tasks wait for devices.

        Then it may be for one of these that it waits: nesting must not deadlock. True if there are new ones to give.
        """
        lease = self._innermost_waiting()
        if lease is None:
            self._lend_at = None
            return False
        if self._lend_at is None:
            self._lend_at = now + LEND_AFTER
        if now < self._lend_at:
            return False
        self._lend_at = None
        self._give_back_devices(lease)
        return True

    def _innermost_waiting(self) -> Lease | None:
        """The last lease that keeps devices while its task waits; None if something else runs, or is ending."""
        waiting: Lease | None = None
        for lease in self.leases.values():
            if lease.blocked:
                waiting = lease if lease.keeps else waiting
            elif lease.packets or (lease.retired and lease.keeps):
                return None
        return waiting

    def _end_idle_beside(self) -> None:
        """Ends idle places on devices that were lent and are in use again by those that had lent them."""
        for lease in list(self.leases.values()):
            if lease.devices and self._is_idle(lease) and self._is_overdrawn(lease):
                self._close_idle(lease)

    def _note_idle(self, lease: Lease, now: float) -> None:
        lease.idle_until = now + GPU_IDLE
        self._idle.append((lease.idle_until, lease))

    # -- tasks run and end ------------------------------------------------------------------------------------

    def _started(self, event: Started, now: float) -> None:
        task = self.live.get(event.id)
        if task is None or task.state is not State.PENDING:
            return
        task.state = next_state(task.state, Step.STARTED)
        task.started_at = event.at
        if task.spec.timeout is not None:
            self.at(event.at + task.spec.timeout, task, Step.TIMED_OUT)
        if task.spec.watched:
            self._out.append(Announce(task))
        if task.cancel is not None:  # asked while it was on its way to the worker
            self._ask(task, now)

    def _finished(self, event: Finished, now: float) -> None:
        lease = event.lease
        live, objects, durations = self.live, self.objects, self._durations
        told: dict[int, list[bytes]] = {}
        for end in event.ends:
            task = live.get(end.id)
            if task is None:
                entry = objects.get(end.id)
                if entry is not None and entry.kind == 0 and type(entry) is Entry:
                    of = self.task_of(end.id)
                    if of is None or not (_ends_cancelled(of) or _is_refused(of, lease)):
                        self._settle_return(entry, end, told, now)  # a further return value of a task that goes on
                    elif end.fds:
                        self._out.append(Drop(end.fds))
                    continue
                # Final already: the answer to its cancel overtook this word (the worker skipped it), or it was
                # killed with this on its way. Either way the lease is rid of it.
                self._out_of_packet(lease, end.id)
                lease.ghosts.discard(end.id)
                if end.fds:
                    self._out.append(Drop(end.fds))
                continue
            self._out_of_packet(lease, end.id)
            if isinstance(task, Actor):
                self.actors.constructed(task, end, now)
                continue
            if task.actor is not None and _is_refused(task, lease):
                if end.fds:
                    self._out.append(Drop(end.fds))
                assert isinstance(task, Call)
                self.actors.refuse(task, end, now)
                continue
            if end.kind == Kind.INTERRUPTED or (task.cancel is not None and _ends_cancelled(task)):
                if end.fds:
                    self._out.append(Drop(end.fds))
                if end.id in lease.ghosts:
                    lease.ghosts.discard(end.id)  # passed over, as it should be: it runs elsewhere
                else:
                    self._tell(told)  # in order: what an interrupted cell gives back comes before its end
                    told = {}
                    # The flags of another kind mean something else.
                    plain = end if end.kind == Kind.INTERRUPTED else end._replace(flags=0)
                    self._interrupted(lease, task, plain, now)
                continue
            if task.actor is None:
                durations[task.fn] = end.flags >> DURATION_SHIFT
            else:
                assert isinstance(task, Call)
                task.actor.durations[task.method] = end.flags >> DURATION_SHIFT
            step = Step.RETURNED if end.kind == Kind.RESULT else Step.RAISED
            if step is Step.RAISED and end.flags & Flag.RETRYABLE and self.may_retry(task):
                self.retry(task, "it raised", now)
                continue
            if end.flags & _STAYS[end.kind]:
                self._linger(lease, task)
            task.frame, task.fds = end.frame, end.fds
            self._settle(task, step, end.kind, told, now)
        self._tell(told)
        if lease.actor is not None:
            self.actors.note(lease.actor)
        if not lease.packets:
            if lease.blocked and lease.lingering is None:
                # An interrupt has cut off the word that the wait is over.
                self._unblocked(UnBlocked(lease), now)
            if lease.actor is not None:
                return
            if not self.queued:
                self._steal()
            # A lease of nothing holds nothing that somebody else could want: nobody would ever reclaim it.
            if lease.closing or (not lease.demand and not lease.retired and not lease.blocked):
                self._close_idle(lease)
            elif lease.devices:
                self._note_idle(lease, now)

    def _out_of_packet(self, lease: Lease, id: int) -> bool:
        """Crosses the task off the lease's list. False if it is not on it."""
        packets = lease.packets
        for packet in packets:
            if id in packet:
                packet.remove(id)
                if not packet:
                    packets.remove(packet)
                return True
        return False

    def _interrupted(self, lease: Lease, task: Task, end: End, now: float) -> None:
        """A KeyboardInterrupt ended the task, or its worker gave it back unbegun."""
        if end.flags & Flag.SKIPPED and task.cancel is None:
            self.give_again(task)
            return
        facts: dict[str, Any] = {"rung": "pending" if end.flags & Flag.SKIPPED else "interrupt"}
        if _is_only_asked(task) and task.cancel is not None and not end.flags & Flag.SKIPPED:
            facts["rung"] = task.cancel.rung.name.lower()
        if end.flags & Flag.TAINTED:
            # Children or threads remain, or an import was cut in two: the worker goes first, then the word.
            lease.ending = (task, Step.STOPPED, facts)
            self._retire(lease)
            return
        self.conclude(task, Step.STOPPED, facts, now)

    def _retire(self, lease: Lease) -> None:
        unread = bool(lease.packets)
        self._stop_giving(lease)
        if unread:
            self._out.append(Recall(lease, EVERYTHING))
        self._out.append(Retire(lease))

    def _stop_giving(self, lease: Lease) -> None:
        leases = self._by_demand.get(lease.demand, [])
        if lease in leases:
            leases.remove(lease)
        lease.retired = True
        lease.closing = False

    def _linger(self, lease: Lease, task: Task) -> None:
        """The task is done but has left threads or children: the lease is theirs, its resources are not."""
        lease.lingering = task
        self._stop_giving(lease)
        self._give_back(lease)
        self._give_back_devices(lease)  # what is left may stay for ever: nobody could say when they are free
        if lease.packets:
            self._out.append(Recall(lease, EVERYTHING))

    def _idle_again(self, event: IdleAgain, now: float) -> None:
        lease = event.lease
        if lease.lingering is None:
            return
        task, lease.lingering = lease.lingering, None
        task.lease = None
        if lease.packets:
            # Given before we heard that something lingers, read after it had ended: they are running now.
            lease.closing = True
        else:
            self._close_idle(lease)
        if task.spec.watched:
            self._out.append(Announce(task))

    def conclude(self, task: Task, step: Step, facts: dict[str, Any], now: float) -> None:
        """The task's end without a value: builds the record that says why."""
        cancel = task.cancel
        if step in (Step.STOPPED, Step.KILLED) and cancel is not None and cancel.source == "timeout":
            step = Step.TIMED_OUT
        if step is Step.ASKED and cancel is not None:
            cancel.rung = Rung.ASK  # also of a forced cancel: it never ran, so nothing was killed
        told: dict[int, list[bytes]] = {}
        task.frame = frame(Kind.FAILURE, task.id, to_json(_failure(task, step, facts, now)))
        self._settle(task, step, Kind.FAILURE, told, now)
        self._tell(told)

    def settle(self, task: Task, step: Step, kind: int, now: float) -> None:
        """The task becomes final, with its frame as its outcome, and all who wait for it hear of it."""
        told: dict[int, list[bytes]] = {}
        self._settle(task, step, kind, told, now)
        self._tell(told)

    def _settle(self, task: Task, step: Step, kind: int, told: dict[int, list[bytes]], now: float) -> None:
        """The task becomes final; its frame is its outcome."""
        task.state = next_state(task.state, step)
        task.ended_at = now
        if step not in _PLAIN_ENDS:
            cancel = task.cancel
            self._note(task, now, step, *((cancel.source, cancel.reason) if cancel is not None else ()))
        del self.live[task.id]
        if task.lease is not None and task.lease.lingering is not task:
            task.lease = None
        if task.spec.num_returns > 1 and kind != Kind.RESULT:
            for i in range(1, task.spec.num_returns):
                entry = self.objects.get(task.id + i)
                if entry is not None and entry.kind == 0:
                    entry.frame = readdressed(task.frame, entry.id)
                    self._outcome(entry, kind, told, now)
        if isinstance(task, Actor):
            self.actors.ended(task, now)
        self._outcome(task, kind, told, now)
        if task.deps or task.pins:
            self._unpin(task, now)
        if task.stream is not None:
            self._end_stream(task.stream, now)
            task.stream = None
        if task.call_fds:
            self._out.append(Drop(task.call_fds))
            task.call_fds = ()
        task.call = b""
        (self.history if task.actor is None else self.past_calls).append(task)
        if task.group is not None:
            self._ended_members.append(task)
        if task.actor is not None:
            task.actor.calls.pop(task.id, None)
            self.actors.note(task.actor)  # it may have stood before others, in its box
        if task.spec.watched:
            self._out.append(Announce(task))

    def forget_call(self, task: Task, now: float) -> None:
        """It will not be begun again: what it was called with is not needed any more."""
        self._unpin(task, now)
        if task.call_fds:
            self._out.append(Drop(task.call_fds))
            task.call_fds = ()
        task.call = b""

    def _note(self, task: Task, now: float, step: str, source: str = "", reason: str = "") -> None:
        """A chapter of the task's story. Of a long story the middle is left out."""
        if task.story is None:
            task.story = []
        task.story.append(Chapter(now, getattr(step, "value", step), task.state.value, source, reason))
        if len(task.story) > STORY_MOST:
            del task.story[STORY_FIRST]

    def _tell(self, told: dict[int, list[bytes]]) -> None:
        for client, frames in told.items():
            self._out.append(Deliver(client, frames))

    def _settle_return(self, entry: Entry, end: End, told: dict[int, list[bytes]], now: float) -> None:
        entry.frame, entry.fds = end.frame, end.fds
        self._outcome(entry, end.kind, told, now)

    def _outcome(self, entry: Entry, kind: int, told: dict[int, list[bytes]], now: float) -> None:
        """The entry's outcome is there: tell its owner, who asked, and who waits for it."""
        entry.kind = kind
        owner = entry.owner
        notice = entry.frame if not entry.fds else _notice(entry)
        if owner in told:
            told[owner].append(notice)
        else:
            told[owner] = [notice]
        if entry.readers is not None:
            for reader in entry.readers:
                self._out.append(DeliverValue(reader.client, entry.frame, entry.fds, reader.serial))
            entry.readers = None
        if entry.dependents is not None:
            dependents, entry.dependents = entry.dependents, None
            for task in dependents:
                if task.state is not State.PENDING:
                    continue  # cancelled meanwhile
                if kind == Kind.RESULT:
                    task.waiting -= 1
                    if task.waiting == 0:
                        self._enqueue(task)
                else:
                    self._fail_dependent(task, entry, now)
        if entry.holders <= 0:
            self._forget(entry)  # nobody holds it; its owner is told all the same

    def _fail_dependent(self, task: Task, entry: Entry, now: float) -> None:
        """The task's dependency has failed or was cancelled: it never runs and raises the root cause."""
        if isinstance(entry, Task):
            cancelled = entry.state is State.CANCELLED
        else:  # a further return value has no state of its own; its outcome tells
            cancelled = entry.kind == Kind.FAILURE and from_json(entry.frame[HEADER_SIZE:])["type"] == "cancelled"
        told: dict[int, list[bytes]] = {}
        task.frame = readdressed(entry.frame, task.id)
        step = Step.UPSTREAM_CANCELLED if cancelled else Step.UPSTREAM_FAILED
        self._settle(task, step, entry.kind, told, now)
        self._tell(told)

    def may_retry(self, task: Task) -> bool:
        """One more attempt is allowed."""
        most = task.spec.max_retries
        return task.cancel is None and (task.attempt < most or most < 0)

    def retry(self, task: Task, why: str, now: float) -> None:
        """An attempt has failed, and there is another."""
        self.begin_again(task, why, now)
        if task.retry_at is None:
            self.give_again(task)
        elif task.spec.watched:
            self._out.append(Announce(task))

    def begin_again(self, task: Task, why: str, now: float) -> None:
        """The same, without giving it to anybody: at its `retry_at` that is done; without one it is the caller's."""
        if task.started_at is not None:
            self._note_start(task)
        task.attempt += 1
        task.state = next_state(task.state, Step.RETRIED)
        self._note(task, now, Step.RETRIED, reason=why)
        task.lease = None
        task.started_at = None
        spec = task.spec
        if spec.retry_delay:
            pause = min(spec.retry_delay * spec.retry_backoff ** min(task.attempt - 1, 64), RETRY_MOST)
            task.retry_at = now + pause
            self.at(task.retry_at, task, Step.RETRIED)

    def _note_start(self, task: Task) -> None:
        """Of an attempt that is over: that of the last one stands in the task."""
        assert task.started_at is not None
        if task.story is None:
            task.story = []
        chapter = Chapter(task.started_at, Step.STARTED.value, State.RUNNING.value)
        place = len(task.story)
        while place and task.story[place - 1].at > chapter.at:
            place -= 1
        task.story.insert(place, chapter)

    def give_again(self, task: Task) -> None:
        """Back in its queue, as the first."""
        task.lease = None
        task.started_at = None
        self._enqueue(task, front=True)
        if task.spec.watched:
            self._out.append(Announce(task))

    # -- items of generators ----------------------------------------------------------------------------------

    def _stream_of(self, id: int) -> tuple[Task, Stream] | None:
        """A generator task that is not final, and how far it is."""
        task = self.live.get(id)
        if task is None or not task.spec.streams:
            return None
        if task.stream is None:
            task.stream = Stream()
            if task.owner > 1 and task.owner not in self._owned:
                task.stream.taken = ALL_TAKEN  # its owner has gone
        return task, task.stream

    def _yielded(self, event: Yielded, now: float) -> None:
        found = self._stream_of(event.id)
        inside = found[1].inside.pop(event.place, None) if found is not None else None
        if found is None or event.place < found[1].made or found[1].taken == ALL_TAKEN:
            # Nobody wants it, or it was made by an attempt before this one.
            if event.fds:
                self._out.append(Drop(event.fds))
            self._let_go(inside or (), now)
            return
        task, stream = found
        stream.made = event.place + 1
        self._last_item += 1
        entry = Entry(self._last_item, task.owner)
        entry.kind = Kind.RESULT
        entry.frame = frame(Kind.RESULT, entry.id, event.value, fds=len(event.fds))
        entry.fds = event.fds
        self._put(Put(entry), now)
        if inside:
            self._inside[entry.id] = inside
        where = ITEM_OF.pack(task.id, event.place)
        if event.fds:
            notice = frame(Kind.ITEM, entry.id, where, flags=Flag.BIG)
        else:
            notice = frame(Kind.ITEM, entry.id, where + event.value)
        self._out.append(Deliver(task.owner, [notice]))

    def _item_contains(self, event: ItemContains, now: float) -> None:
        found = self._stream_of(event.id)
        if found is None:
            return
        inside = [id for id in event.inside if id in self.objects]
        for id in inside:
            self.objects[id].holders += 1
        self._let_go(found[1].inside.pop(event.place, ()), now)  # of an attempt that died before it told the item
        found[1].inside[event.place] = inside

    def _let_go(self, ids: Iterable[int], now: float) -> None:
        for id in ids:
            entry = self.objects.get(id)
            if entry is not None:
                self._drop_holder(entry, now)

    def _taken(self, event: Taken, now: float) -> None:
        found = self._stream_of(event.id)
        if found is not None and found[0].owner == event.client:
            self._take_items(*found, event.taken)

    def _take_items(self, task: Task, stream: Stream, count: int) -> None:
        stream.taken = max(stream.taken, count)
        asked = stream.asked
        if asked is not None and self._has_room(task, stream, asked.made):
            stream.asked = None
            self._out.append(Answer(asked.client, asked.serial, stream.taken))

    def _room_asked(self, event: RoomAsked, now: float) -> None:
        found = self._stream_of(event.id)
        if found is None:  # it was ended from here, and will hear of it
            self._out.append(Answer(event.client, event.serial, ALL_TAKEN))
        else:
            found[1].asked = event
            self._take_items(*found, 0)

    @staticmethod
    def _has_room(task: Task, stream: Stream, made: int) -> bool:
        return not task.spec.backpressure or made - stream.taken < task.spec.backpressure

    def _end_stream(self, stream: Stream, now: float) -> None:
        for inside in stream.inside.values():
            self._let_go(inside, now)
        if stream.asked is not None:
            self._out.append(Answer(stream.asked.client, stream.asked.serial, ALL_TAKEN))

    # -- leases -----------------------------------------------------------------------------------------------

    def _recalled(self, event: Recalled, now: float) -> None:
        lease = event.lease
        lease.recalling = False
        for id in reversed(event.ids):
            task = self.live.get(id)
            if event.read:
                if task is None or task.lease is not lease or id in lease.ghosts:
                    continue
                lease.ghosts.add(id)
            elif not self._out_of_packet(lease, id) or task is None:
                # Not of this lease any more: its process died, the task was given again, and only then was it found
                # in the dead socket. It must not be given a third time.
                continue
            if task.cancel is not None:
                self.conclude(task, Step.ASKED, {"rung": "pending"}, now)
            else:
                task.state = next_state(task.state, Step.RECALLED)
                self.give_again(task)
        if lease.actor is not None:
            self.actors.note(lease.actor)
        elif lease.closing and not lease.packets:
            self._close_idle(lease)
        elif lease.devices and not lease.packets:
            self._note_idle(lease, now)

    def _died(self, event: Died, now: float) -> None:
        lease = event.lease
        if lease.actor is not None:
            self.actors.process_died(lease.actor, event)
            return
        self._stop_giving(lease)
        given = [id for packet in lease.packets for id in packet if id not in lease.ghosts]
        unbegun = [id for id in given if id != event.running]
        if len(unbegun) == len(given) and not lease.ghosts:
            self._false_start(unbegun, event, now)
        for id in reversed(unbegun):
            task = self.live.get(id)
            if task is None:
                continue
            if task.cancel is not None:
                self.conclude(task, Step.ASKED, {"rung": "pending"}, now)
            else:
                self.give_again(task)
        lease.packets.clear()
        lease.ghosts.clear()
        running = self.live.get(event.running)
        if running is None or running.lease is not lease:
            return  # it had ended; or it ended badly, and waits for its next attempt elsewhere
        facts: dict[str, Any] = {"exit_code": event.exit_code, "signal_name": event.signal_name}
        if lease.ending is not None:
            if lease.ending[0] is not running:
                # A tainted place must not begin another task. If one does, that task must not be forgotten.
                self._crashed(running, facts, now)
            return
        cancel = running.cancel
        if cancel is not None and cancel.rung >= Rung.TERMINATE and event.ours:
            if cancel.source == "memory":
                lease.ending = (running, Step.DIED, {"memory": True})
            else:
                lease.ending = (running, Step.KILLED, {"rung": cancel.rung.name.lower()})
        else:
            lease.ending = (running, Step.DIED, facts)

    def _crashed(self, task: Task, facts: dict[str, Any], now: float) -> None:
        if self.may_retry(task) and not task.spec.thread:  # of a thread the process has gone that it belongs to
            self.retry(task, facts.get("signal_name") or f"exit code {facts.get('exit_code')}", now)
        else:
            self.conclude(task, Step.DIED, facts, now)

    def _false_start(self, unbegun: Sequence[int], event: Died, now: float) -> None:
        """The worker died before it began anything. Once is an accident; FALSE_STARTS times is the task."""
        first = next((self.live[id] for id in unbegun if id in self.live), None)
        if first is None or event.ours:
            return
        first.false_starts += 1
        if first.false_starts >= FALSE_STARTS and first.cancel is None:
            why = f"It died {FALSE_STARTS} times before the task could begin."
            facts = {"exit_code": event.exit_code, "signal_name": event.signal_name, "why": why}
            self.conclude(first, Step.DIED, facts, now)

    def _gone(self, event: Gone, now: float) -> None:
        lease = event.lease
        self._close(lease)
        if lease.actor is not None:
            self.actors.gone(lease.actor, lease, now)
            return
        if lease.lingering is not None:
            task, lease.lingering = lease.lingering, None
            task.lease = None
            if task.spec.watched:
                self._out.append(Announce(task))
        if lease.ending is None:
            return
        (task, step, facts), lease.ending = lease.ending, None
        if task.state in FINAL:
            return
        if step is Step.DIED and "memory" not in facts:
            self._crashed(task, facts, now)
        else:
            self.conclude(task, step, facts, now)

    def _wait_began(self, event: WaitBegan, now: float) -> None:
        lease = event.lease
        if lease.blocked or lease.retired:
            return
        lease.blocked = True
        leases = self._by_demand.get(lease.demand, [])
        if lease in leases:
            leases.remove(lease)
        self._give_back(lease)
        if lease.packets and lease.actor is None:
            self._out.append(Recall(lease, EVERYTHING))

    def _unblocked(self, event: UnBlocked, now: float) -> None:
        lease = event.lease
        if not lease.blocked or lease.id not in self.leases:
            return
        lease.blocked = False
        if lease.lingering is not None:
            return  # a thread that the finished task has left: it holds no slot
        # It takes its resources back at once, even when that is more than there are: as Ray does. What was
        # started meanwhile runs on, and nothing new starts until the sum fits again.
        lease.holds = True
        for name, amount in lease.demand:
            if name != GPU:
                self.available[name] -= amount
                if self.available[name] < 0:
                    self._overdrawn = True
        if lease.devices and not lease.keeps:  # they were lent
            lease.keeps = True
            self._count_devices(lease, -_share(lease.demand))
            if self._is_overdrawn(lease):
                self._overdrawn = True
                self._end_idle_beside()
        # It may be on its way out: an interrupt that ended the wait has tainted it.
        if not lease.retired and lease.actor is None:
            self._by_demand.setdefault(lease.demand, []).append(lease)

    # -- stopping ---------------------------------------------------------------------------------------------

    def cancel_asked(self, event: CancelAsked, now: float) -> None:
        """Somebody wants a task, or a group, stopped."""
        group = self.groups.get(event.id)
        if group is not None:
            self._cancel_group(group, event, now)
            return
        task = self.task_of(event.id)
        if task is None:
            return  # finished long ago, or not a task: nothing happens
        if task.state in FINAL:
            if task.lease is not None and task.lease.lingering is task:
                self._out.append(Retire(task.lease))  # what it left running
            return
        if isinstance(task, Actor):
            if event.force:  # a soft one says nothing: whose calls should it be about?
                self.actors.kill(task, ActorKilled(task.id, reason=event.reason), now)
            return
        children = task.children
        self._cancel(task, event, now)
        if event.recursive and children:
            self._cancel_children(task, event, now)

    def _cancel_children(self, task: Task, event: CancelAsked, now: float) -> None:
        for id in task.children or ():
            self.cancel_asked(event._replace(id=id, source="parent"), now)

    def task_of(self, id: int) -> Task | None:
        """The task with this id, or the one of whose return values this is one; of the final ones at least those
        that have left something running."""
        task = self.live.get(id)
        if task is not None:
            return task
        entry = self.objects.get(id)
        if isinstance(entry, Task):
            return entry
        if type(entry) is Entry and entry.kind == 0:  # a further return value: its task is live, a few ids below
            while task is None:
                id -= 1
                task = self.live.get(id)
            return task
        return next((old for old in self.history if old.lease is not None and _is_value_of(id, old)), None)

    def _cancel(self, task: Task, event: CancelAsked, now: float) -> None:
        cancel = task.cancel
        if cancel is None:
            grace = event.grace if event.grace is not None else task.spec.grace
            cancel = task.cancel = Cancel(event.source, event.reason, now, grace)
        elif event.grace is not None:
            cancel.grace = event.grace
        cancel.recursive = event.recursive
        if task.state is State.PENDING:
            if task.lease is None:
                self.conclude(task, Step.ASKED, {"rung": "pending"}, now)
                return
            # It may have begun without our knowing. The backend finds out: Recalled or Started comes back.
            if event.force and not _is_only_asked(task):
                cancel.rung = Rung.KILL
            self._out.append(Recall(task.lease, task.id))
            return
        self._ask(task, now, force=event.force)

    def _ask(self, task: Task, now: float, *, force: bool = False) -> None:
        """On the ladder with a running task."""
        cancel = task.cancel
        assert cancel is not None
        first = task.state is not State.CANCELLING
        task.state = next_state(task.state, Step.ASKED)
        if _is_only_asked(task):
            # There is no rung above: no deadline, no force. It is told again each time.
            awaits = task.actor is not None and task.actor.asynchronous
            cancel.rung = Rung.INTERRUPT if task.spec.interruptible or awaits else Rung.ASK
            self._out.append(Interrupt(task))
        elif cancel.rung >= Rung.TERMINATE and not force and not first:
            return  # already above the interrupt
        else:
            self._stand_on(task, cancel.start(now, force=force or cancel.rung is Rung.KILL))
        self._note(task, now, Step.ASKED, cancel.source, cancel.reason)
        if cancel.climb_at is not None:
            self.at(cancel.climb_at, task, None)
        if first and task.spec.watched:
            self._out.append(Announce(task))

    def _stand_on(self, task: Task, rung: Rung) -> None:
        if rung.name.lower() not in self.capabilities.rungs:
            return
        if rung is Rung.KILL:
            self._out.append(Kill(task))
        elif rung is Rung.TERMINATE:
            self._out.append(Terminate(task))
        else:
            self._out.append(Interrupt(task))

    def _too_much_memory(self, event: TooMuchMemory, now: float) -> None:
        task = self.live.get(event.id)
        if task is None or task.state is State.PENDING:
            return
        if isinstance(task, Actor):
            self.actors.too_much_memory(task, event.used, now)
            return
        task.used_memory = event.used
        if task.cancel is None or task.cancel.rung < Rung.KILL:
            task.cancel = Cancel("memory", "", now, None, recursive=True)
            self._ask(task, now, force=True)
            wish = CancelAsked(0, force=True, reason="its parent used too much memory")
            self._cancel_children(task, wish, now)

    def at(self, when: float, task: Task, step: Step | None) -> None:
        """Has `_tick` look at this task then; for what, says `step`."""
        self._ids += 1
        heapq.heappush(self._timers, (when, self._ids, task, task.attempt, step))

    def _timer_valid(self, timer: tuple[float, int, Task, int, Step | None]) -> bool:
        when, _, task, attempt, step = timer
        if task.state in FINAL or task.attempt != attempt:
            return False
        if step is Step.RETRIED:
            return task.retry_at == when
        if step is Step.KILLED:
            return isinstance(task, Actor) and task.exit_by == when
        if step is Step.TIMED_OUT:
            # Also when the task has caught a cancel and goes on: a timeout is a deadline.
            return task.started_at is not None and (task.cancel is None or task.cancel.rung < Rung.TERMINATE)
        return task.cancel is not None and task.cancel.climb_at == when

    def _tick(self, event: Tick, now: float) -> None:
        while self._idle and self._idle[0][0] <= now:
            when, lease = self._idle.popleft()
            if _is_idle_since(when, lease):
                self._close_idle(lease)
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            if not self._timer_valid(timer):
                continue
            task = timer[2]
            if timer[4] is Step.RETRIED:
                task.retry_at = None
                self.give_again(task)
            elif timer[4] is Step.KILLED:
                assert isinstance(task, Actor)
                self.actors.overdue(task)
            elif timer[4] is Step.TIMED_OUT:
                grace = task.spec.grace if task.spec.grace is not None else TIMEOUT_GRACE
                if task.cancel is None:
                    task.cancel = Cancel("timeout", "", now, grace, recursive=True)
                elif task.cancel.climb_at is None:
                    task.cancel.grace = grace
                self._ask(task, now)
                self._cancel_children(task, CancelAsked(0, reason="its parent ran out of time", grace=grace), now)
            else:
                assert task.cancel is not None
                self._stand_on(task, task.cancel.climb(now))
                self._note(task, now, task.cancel.rung.name.lower(), task.cancel.source, task.cancel.reason)
                if task.cancel.climb_at is not None:
                    self.at(task.cancel.climb_at, task, None)
                if task.spec.watched:
                    self._out.append(Announce(task))

    # -- actors -----------------------------------------------------------------------------------------------

    def tell(self, instruction: Instruction) -> None:
        """To be carried out after those before it."""
        self._out.append(instruction)

    def _actor_killed(self, event: ActorKilled, now: float) -> None:
        actor = self.objects.get(event.id) or self.live.get(event.id)
        if isinstance(actor, Actor):
            self.actors.kill(actor, event, now)
        elif event.client:
            self._out.append(Answer(event.client, event.serial, True))  # it was over long ago

    def _actor_closed(self, event: ActorClosed, now: float) -> None:
        actor = self.live.get(event.id)
        if isinstance(actor, Actor):
            self.actors.closed(actor, now)

    def _actor_exits(self, event: ActorExits, now: float) -> None:
        if event.lease.actor is not None:
            self.actors.exits(event.lease.actor, event.leaves, event.how, now)

    # -- threads ----------------------------------------------------------------------------------------------

    def _threads_offered(self, event: ThreadsOffered, now: float) -> None:
        name = thread_slots(event.client)
        if name not in self.total:
            self.total[name] = self.available[name] = event.slots * CPU_UNITS

    def _host_gone(self, client: int, now: float) -> None:
        """Its threads are gone with it (Died has told of those that ran); what was to run there never will."""
        for task in list(self.live.values()):
            if not task.spec.thread or task.owner != client or task.actor is not None:
                continue  # calls are told by their actor
            if not isinstance(task, Actor):
                self.conclude(task, Step.DIED, {"exit_code": None, "signal_name": HOST_GONE}, now)
            elif task.lease is None:
                self.actors.host_gone(task, now)
        name = thread_slots(client)
        if name not in self.total:
            return
        for demand in [demand for demand in self._by_demand if any(held == name for held, _ in demand)]:
            for lease in list(self._by_demand.pop(demand)):
                self._close_idle(lease)
        for key in [key for key in self._queues if any(held == name for held, _ in key[1])]:
            self.queued -= len(self._queues.pop(key).tasks)
        del self.total[name], self.available[name]

    # -- groups -----------------------------------------------------------------------------------------------

    def _group_made(self, event: GroupMade, now: float) -> None:
        group = event.group
        group.created_at = now
        self.objects[group.id] = self.groups[group.id] = group
        if group.owner > 1:
            self._owned.setdefault(group.owner, set()).add(group.id)
        task = self.find(event.task) if event.task else None
        outer = task.group if task is not None else None
        if event.parent:
            entry = self.objects.get(event.parent)  # also one that is over by now: its block may be open
            outer = entry if isinstance(entry, Group) else None
        if outer is None or (outer.kind and outer.cancel is None):
            return
        group.outer = outer
        outer.live[group.id] = None
        if outer.cancel is not None:
            wish = CancelAsked(group.id, source="group", reason=outer.cancel.reason, grace=outer.cancel.grace)
            self._cancel_group(group, wish, now)

    def _group_closed(self, event: GroupClosed, now: float) -> None:
        group = self.groups.get(event.id)
        if group is not None:
            group.closed = True
            self._end_if_over(group, now)

    def _group_kept(self, event: GroupKept, now: float) -> None:
        group = self.groups.get(event.id)
        if group is not None:
            group.auto = not event.kept
            self._end_if_over(group, now)

    def _members_ended(self, now: float) -> None:
        """After their own outcomes are told: who hears that a group is over finds its members final."""
        while self._ended_members:
            ended, self._ended_members = self._ended_members, []
            for task in ended:
                assert task.group is not None
                task.group.live.pop(task.id, None)
                failed = task.state in (State.FAILED, State.CRASHED)
                for group in task.group.chain():
                    group.counts[task.state] = group.counts.get(task.state, 0) + 1
                    if failed:
                        self._note_failure(group, task, now)
                    self._out.append(GroupTold(group, False))
                self._end_if_over(task.group, now)

    def _note_failure(self, group: Group, task: Task, now: float) -> None:
        if group.kind:
            return
        if not (task.story and task.story[-1].step == Step.UPSTREAM_FAILED.value) and len(group.failed) < MOST_FAILED:
            group.failed.append(task.id)
            task.holders += 1
            self._inside.setdefault(group.id, []).append(task.id)
        if group.fail_fast and group.cancel is None:
            self._cancel_group(group, CancelAsked(group.id, source="failure", reason=f"{task.spec.name} failed"), now)

    def _cancel_group(self, group: Group, event: CancelAsked, now: float) -> None:
        if group.kind:
            return
        if group.cancel is None:
            group.cancel = Cancel(event.source, event.reason, now, group.grace_of(event.grace))
            self._out.append(GroupTold(group, True))
        elif group.cancel.source == "failure" and event.source != "failure":
            group.cancel.source, group.cancel.reason = event.source, event.reason  # now somebody wants it
        elif not event.force:
            return  # it is on its way
        # Not recursive: what members have submitted are members, and one interrupt for each is enough.
        why = group.why
        wish = CancelAsked(0, "group", why, force=event.force, recursive=False, grace=group.cancel.grace)
        for id in list(group.live):
            inner = self.groups.get(id)
            if inner is not None:
                grace = inner.grace if inner.grace is not None else group.cancel.grace
                self._cancel_group(inner, wish._replace(id=id, grace=grace), now)
            elif id in self.live and (event.force or self.live[id].cancel is None):
                self.cancel_asked(wish._replace(id=id), now)
            elif id in self.live:
                self._set_deadline(self.live[id], group.cancel.grace, now)
        self._end_if_over(group, now)

    def _set_deadline(self, task: Task, grace: float | None, now: float) -> None:
        """A member that was cancelled before, by itself: it gets no second interrupt, but the group's deadline."""
        cancel = task.cancel
        if cancel is None or cancel.climb_at is not None or cancel.rung >= Rung.TERMINATE or _is_only_asked(task):
            return
        cancel.grace = grace
        if task.state is State.CANCELLING:
            cancel.start(now, force=False)
            if cancel.climb_at is not None:
                self.at(cancel.climb_at, task, None)

    def _end_if_over(self, group: Group | None, now: float) -> None:
        while group is not None and group.is_over:
            group.ended_at = now
            group.kind = Kind.RESULT
            del self.groups[group.id]
            group.frame = frame(Kind.RESULT, group.id, to_json(group.record()))
            told: dict[int, list[bytes]] = {}
            self._out.append(GroupTold(group, True))
            self._outcome(group, Kind.RESULT, told, now)
            self._tell(told)
            if group.outer is not None:
                group.outer.live.pop(group.id, None)
            group = group.outer

    # -- who holds what ---------------------------------------------------------------------------------------

    def _held(self, event: Held, now: float) -> None:
        counts = self._holds.setdefault(event.client, {})
        for id in event.ids:
            entry = self.objects.get(id)
            if entry is not None:
                entry.holders += 1
                counts[id] = counts.get(id, 0) + 1

    def _released(self, event: Released, now: float) -> None:
        counts = self._holds.get(event.client)
        for id in event.ids:
            entry = self.objects.get(id)
            if entry is None:
                continue
            if counts and counts.get(id):
                counts[id] -= 1
                if not counts[id]:
                    del counts[id]
            elif entry.owner != event.client:
                continue  # it has none
            elif entry.owner > 1:
                self._owned.get(entry.owner, set()).discard(id)
            self._drop_holder(entry, now)

    def _contains(self, event: Contains, now: float) -> None:
        if event.id not in self.objects:
            return  # nobody holds it any more
        inside = [id for id in event.inside if id in self.objects and id != event.id]
        for id in inside:
            self.objects[id].holders += 1
        if inside:
            self._inside.setdefault(event.id, []).extend(inside)

    def _drop_holder(self, entry: Entry, now: float) -> None:
        entry.holders -= 1
        if entry.holders > 0:
            return
        if entry.kind:
            self._forget(entry)
        elif isinstance(entry, Group):
            entry.closed = True  # nobody can submit to it any more
            self._end_if_over(entry, now)
        elif isinstance(entry, Actor):
            self.actors.note(entry)

    def _forget(self, entry: Entry) -> None:
        self.objects.pop(entry.id, None)
        if entry.fds:
            self._out.append(Drop(entry.fds))
            entry.fds = ()
        entry.frame = b""  # a Task may stay in the history, its value may not
        if entry.id in self._inside:
            self._let_go_inside(entry.id)

    def _let_go_inside(self, id: int) -> None:
        """Values inside values may be a long chain: no recursion."""
        todo = self._inside.pop(id)
        while todo:
            entry = self.objects.get(todo.pop())
            if entry is not None:
                entry.holders -= 1
                if entry.holders <= 0 and entry.kind:
                    todo += self._inside.pop(entry.id, ())
                    self._forget(entry)
                elif entry.holders <= 0 and isinstance(entry, Actor):
                    self.actors.note(entry)

    def _unpin(self, task: Task, now: float) -> None:
        for id in (*task.deps, *task.pins):
            entry = self.objects.get(id)
            if entry is not None:
                self._drop_holder(entry, now)
        task.deps = task.pins = ()

    def _uploaded(self, event: Uploaded, now: float) -> None:
        entry = self.objects.get(event.id)
        if entry is None or entry.kind != Kind.RESULT or entry.owner != event.client or entry.fds:
            if event.fds:
                self._out.append(Drop(event.fds))
            return
        entry.frame, entry.fds = event.frame, event.fds

    def _fetched(self, event: Fetched, now: float) -> None:
        entry = self.objects.get(event.id)
        if entry is None:
            lost = frame(Kind.FAILURE, event.id, to_json(_lost_object(None, event.id)))
            self._out.append(DeliverValue(event.client, lost, (), event.serial))
        elif entry.kind:
            self._out.append(DeliverValue(event.client, entry.frame, entry.fds, event.serial))
        else:
            if entry.readers is None:
                entry.readers = []
            entry.readers.append(event)

    def _client_gone(self, event: ClientGone, now: float) -> None:
        self._host_gone(event.client, now)
        for id, count in self._holds.pop(event.client, {}).items():
            entry = self.objects.get(id)
            for _ in range(count if entry is not None else 0):
                assert entry is not None
                self._drop_holder(entry, now)
        for id in self._owned.pop(event.client, set()):
            entry = self.objects.get(id)
            if isinstance(entry, Promise) and not entry.kind:
                entry.frame = frame(Kind.FAILURE, id, to_json({"type": "unkept", "name": entry.name}))
                self._outcome(entry, Kind.FAILURE, {}, now)
            if entry is not None:
                self._drop_holder(entry, now)
        for task in self.live.values():
            if task.stream is not None and task.owner == event.client:
                self._take_items(task, task.stream, ALL_TAKEN)
        for entry in self.objects.values():
            if entry.readers:
                entry.readers = [reader for reader in entry.readers if reader.client != event.client]

    def forget_function(self, fn: int) -> None:
        """No task of it comes any more."""
        self._durations.pop(fn, None)

    # -- looking ----------------------------------------------------------------------------------------------

    def find(self, id: int) -> Task | None:
        """The task with this id, live or among the last finished ones."""
        task = self.live.get(id)
        if task is not None:
            return task
        past = itertools.chain(reversed(self.history), reversed(self.past_calls))
        return next((task for task in past if task.id == id), None)

    def story(self, id: int) -> list[Chapter] | None:
        """What happened to a task, from its submission on; None for one that nobody remembers."""
        task = self.find(id) or self.task_of(id)
        if task is None:
            return None
        chapters = [Chapter(task.submitted_at, "submitted", State.PENDING.value), *(task.story or ())]
        if task.started_at is not None:
            chapters.append(Chapter(task.started_at, Step.STARTED.value, State.RUNNING.value))
        chapters.sort(key=lambda chapter: chapter.at)
        if task.ended_at is not None and chapters[-1].state != task.state.value:
            step = Step.RETURNED if task.state is State.COMPLETED else Step.RAISED
            chapters.append(Chapter(task.ended_at, step.value, task.state.value))
        return chapters

    def tasks(self, limit: int = HISTORY) -> Sequence[Task]:
        """Live tasks (at most `limit`, oldest first), then finished ones."""
        live: list[Task] = []
        for task in self.live.values():
            if len(live) >= limit:
                break
            live.append(task)
        return [*live, *self.history, *self.past_calls]

    def clear(self, ids: Iterable[int] | None = None, lingering: Container[int] = ()) -> int:
        """Forgets finished tasks (their values stay with their refs), of those that linger only these. Returns how
        many."""
        before = len(self.history) + len(self.past_calls)
        wanted = None if ids is None else set(ids)
        for past in (self.history, self.past_calls):
            kept = [
                t
                for t in past
                if (t.lease is not None and t.id not in lingering) or (wanted is not None and t.id not in wanted)
            ]
            past.clear()
            past.extend(kept)
        return before - len(self.history) - len(self.past_calls)


def _is_only_asked(task: Task) -> bool:
    """It shares its process with others: it can be asked to stop, and nothing more."""
    return task.spec.thread or task.actor is not None


def _ends_cancelled(task: Task) -> bool:
    """It was asked to stop, and cannot be made to: whatever it returns, it is cancelled when it ends. (A coroutine can
    be made to: what it returns all the same counts.)"""
    return (
        task.state is State.CANCELLING
        and _is_only_asked(task)
        and not (task.actor is not None and task.actor.asynchronous)
    )


def _is_refused(task: Task, lease: Lease) -> bool:
    """A call that goes on in a thread of an actor that was killed: what it returns is nothing to anybody."""
    return task.actor is not None and task.spec.thread and lease.retired


def _pieces(total: int) -> list[int]:
    """So many GPUs as single devices; of a fraction the last one is the rest."""
    return [min(CPU_UNITS, total - begun) for begun in range(0, total, CPU_UNITS)]


def _share(demand: Demand) -> int:
    """What the demand takes of each of its devices."""
    return next((min(amount, CPU_UNITS) for name, amount in demand if name == GPU), 0)


def _chosen(left: Sequence[int], amount: int, order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Devices for so much, if there are: the first ones in `order` with room. Whole ones, or for a fraction a part of
    one: the fullest unless told otherwise, so that whole ones stay whole."""
    if order is None:
        order = sorted(range(len(left)), key=left.__getitem__)
    found = [device for device in order if left[device] >= min(amount, CPU_UNITS)]
    count = -(-amount // CPU_UNITS)
    return tuple(sorted(found[:count])) if len(found) >= count else ()


def _add(left: list[int], lease: Lease) -> None:
    for device in lease.devices:
        left[device] += _share(lease.demand)


def _is_idle_since(when: float, lease: Lease) -> bool:
    return lease.idle_until == when and not (lease.packets or lease.retired or lease.blocked)


def _is_value_of(id: int, task: Task) -> bool:
    return 0 <= id - task.id < max(1, task.spec.num_returns)


def _notice(entry: Entry) -> bytes:
    """Says that a big value is there, without its bytes."""
    return frame(Kind.RESULT, entry.id, flags=Flag.BIG)


def _lost_object(task: Task | None, id: int) -> dict[str, Any]:
    return {"type": "lost", "task_id": show_id(task.id if task else id), "object_id": show_id(id)}


def _failure(task: Task, step: Step, facts: dict[str, Any], now: float) -> dict[str, Any]:
    """The record behind a FAILURE frame; the client turns it into an exception."""
    record: dict[str, Any] = {"task_id": show_id(task.id), "name": task.spec.name}
    if facts.get("type") == "lost":
        return {**record, **facts}
    if isinstance(task, Actor):
        record["actor_id"] = show_id(task.id)
    cancel = task.cancel
    if cancel is not None:
        record |= {"source": cancel.source, "reason": cancel.reason, "seconds": now - cancel.asked_at}
    if step is Step.TIMED_OUT:
        rung = facts.get("rung", "interrupt")
        return {**record, "type": "timeout", "timeout": task.spec.timeout, "rung": rung}
    if step is Step.DIED and facts.get("memory"):
        return {**record, "type": "memory", "used": task.used_memory, "limit": task.spec.memory}
    if step is Step.DIED:
        return {**record, "type": "crashed", **facts}
    record.setdefault("source", "task")
    record.setdefault("seconds", 0.0)
    return {"reason": "", **record, "type": "cancelled", **facts, "force": step is Step.KILLED}
