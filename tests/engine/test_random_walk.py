"""Thousands of random events in legal order: the rules stay whole, and at the end nothing is left.

Role: property test. `Fake` is a backend that obeys the contract of `backends.abc` and `events` with everything that is
slow in the real one drawn from a hat: when a packet is read, when a task begins, ends, dies, how long a dead tree takes to
go, in which order words arrive. It knows the truth about what ran, so it can tell a lie of the rules: a task that is
CANCELLED without having been asked, that ran although it was never to run, that ran twice, that was told twice. Of groups
it knows who is in them and who has cancelled them, and sees every state that is told.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from engine_rig import cpus

from jupyter_tasks.engine.events import (
    CPU_UNITS,
    EVERYTHING,
    ONE_PACKET,
    Announce,
    Answer,
    CancelAsked,
    Capabilities,
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
    GroupMade,
    GroupTold,
    Held,
    IdleAgain,
    Instruction,
    Interrupt,
    ItemContains,
    Kill,
    Lease,
    Put,
    Recall,
    Recalled,
    Released,
    Retire,
    RoomAsked,
    Run,
    Started,
    Submitted,
    Taken,
    Task,
    TaskSpec,
    Terminate,
    Tick,
    TooMuchMemory,
    UnBlocked,
    WaitBegan,
    Yielded,
)
from jupyter_tasks.engine.groups import Group, GroupState
from jupyter_tasks.engine.scheduler import Scheduler
from jupyter_tasks.engine.states import FINAL, State
from jupyter_tasks.wire.frames import (
    ALL_TAKEN,
    DURATION_SHIFT,
    HEADER,
    HEADER_SIZE,
    ITEM_OF,
    Flag,
    Kind,
    frame,
    from_json,
)

KERNEL, OTHERS = 1, (5, 6, 7)
WORKERS = 8  # stands for the connections of all workers
DEAD = object()  # the place of a lease that has died
STEPS = 6000


class Place:
    """A worker of the fake: what it was given, what it has read, what it is in."""

    def __init__(self) -> None:
        self.unread: deque[list[Task]] = deque()
        self.read: deque[Task] = deque()
        self.current: Task | None = None
        self.current_is_slow = False
        self.asked: set[int] = set()  # the ring
        self.moved: set[int] = set()  # read, but handed back: to be passed over
        self.words: deque[Event] = deque()  # said, not heard yet
        self.blocked = False
        self.lingering = False
        self.has_lingered = False
        self.tainted = False
        self.dying = False  # killed or crashed; Died is not posted yet
        self.dead = False
        self.ours = False
        self.last = 0  # CURRENT
        self.made = 0  # items of the generator it is in
        self.asked_for_room = 0  # serial of the question that it waits with


class Fake:
    """See the module's text."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.capabilities = Capabilities(depth=self.rnd.choice((1, 2, 2, 3)), packet=self.rnd.choice((1, 8, 32)))
        total = {"CPU": 3 * CPU_UNITS, "GPU": GPUS * CPU_UNITS}
        self.scheduler = Scheduler(total, self.capabilities)
        self.now = 0.0
        self.events: deque[Event] = deque()
        self.places: dict[int, tuple[Lease, Place]] = {}
        self.ids = itertools.count(1)
        self.fds = itertools.count(10_000)
        self.open_fds: set[int] = set()
        self.tasks: dict[int, Task] = {}
        self.asked: set[int] = set()
        self.groups: dict[int, Group] = {}
        self.open_groups: set[int] = set()  # whose block is not left yet
        self.group_states: dict[int, list[GroupState]] = {}
        self.begun: Counter[int] = Counter()  # how often its code began
        self.returned: Counter[int] = Counter()  # how often it returned
        self.crashes: Counter[int] = Counter()  # how often the process died in it
        self.errors: Counter[int] = Counter()
        self.told: dict[int, list[int]] = {}
        self.refs: Counter[tuple[int, int]] = Counter()  # (client, object) -> refs
        self.made_by: dict[int, int] = {}
        self.gone_clients: set[int] = set()
        self.items: dict[int, list[int]] = {}  # generator task -> places of the items that its owner was told of
        self.taken: Counter[int] = Counter()  # of these so many were taken
        self.serials = itertools.count(1)
        self.steps: Counter[str] = Counter()

    # -- the loop -------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        self.events.append(event)

    def pump(self, check: bool = False) -> None:
        while self.events:
            event = self.events.popleft()
            self.steps[type(event).__name__] += 1
            for instruction in self.scheduler.handle(event, self.now):
                self.do(instruction)
            if check:
                self.scheduler.check()

    def do(self, instruction: Instruction) -> None:
        self.steps[type(instruction).__name__] += 1
        kind = type(instruction)
        if kind is Run:
            self.run(instruction.lease, list(instruction.tasks))
        elif kind is CloseLease:
            self.close(instruction.lease)
        elif kind is Recall:
            self.recall(instruction.lease, instruction.id)
        elif kind is Interrupt:
            place = self.place_of(instruction.task)
            if place is not None:
                place.asked.add(instruction.task.id)
        elif kind in (Terminate, Kill):
            place = self.place_of(instruction.task)
            if place is not None and place.current is instruction.task and not place.dying:
                if kind is Kill or self.rnd.random() < 0.7:
                    place.dying = place.ours = True
        elif kind is Retire:
            self.retire(instruction.lease)
        elif kind is Deliver:
            for outcome in instruction.frames:
                if outcome[4] == Kind.ITEM:
                    self.item_told(instruction.client, outcome)
                    continue
                self.told.setdefault(HEADER.unpack_from(outcome)[5], []).append(instruction.client)
        elif kind is DeliverValue:
            assert set(instruction.fds) <= self.open_fds, "a value was sent whose memory is closed"
        elif kind is Drop:
            for fd in instruction.fds:
                assert fd in self.open_fds, "a descriptor was closed twice"
                self.open_fds.remove(fd)
        elif kind is GroupTold:
            self.look_at_group(instruction.group)
        elif kind is Answer:
            for _, place in self.places.values():
                if place.asked_for_room == instruction.serial:
                    place.asked_for_room = 0
        else:
            assert kind is Announce

    def item_told(self, client: int, told: bytes) -> None:
        id = HEADER.unpack_from(told)[5]
        task, place = ITEM_OF.unpack_from(told, HEADER_SIZE)
        assert self.tasks[task].owner == client
        assert client not in self.gone_clients, "an item was made for nobody"
        self.items.setdefault(task, []).append(place)
        self.refs[client, id] += 1
        self.made_by[id] = client

    def look_at_group(self, group: Group) -> None:
        """What is told of a group is true at this moment."""
        states = self.group_states.setdefault(group.id, [GroupState.RUNNING])
        if group.state is not states[-1]:
            states.append(group.state)
        if group.kind:
            assert not self.living_members(group.id), f"group {group.id} is {group.state}, and members are not final"

    def living_members(self, id: int) -> list[int]:
        """Tasks that are not final, of the group and of those inside it."""
        return [
            t.id
            for t in self.tasks.values()
            if t.group is not None and t.state not in FINAL and any(each.id == id for each in t.group.chain())
        ]

    # -- the backend ----------------------------------------------------------------------------------------

    def place_of(self, task: Task) -> Place | None:
        if task.lease is None or not isinstance(task.lease.place, Place):
            return None
        return task.lease.place

    def run(self, lease: Lease, tasks: list[Task]) -> None:
        assert tasks, "an empty packet"
        assert all(task.plain for task in tasks) or len(tasks) == 1, "a special task in a packet"
        assert len(tasks) <= self.capabilities.packet
        if lease.place is DEAD:
            return  # Died is on its way, and takes these along
        if not isinstance(lease.place, Place):
            self.look_at_devices(lease)
            lease.place = Place()
            self.places[lease.id] = (lease, lease.place)
        for task in tasks:
            assert task.spec.demand == lease.demand, "a task was given to a place that was made for others"
        for task in tasks:
            assert task.state is State.PENDING, f"a task that is {task.state} was given"
            for id in task.deps:
                entry = self.scheduler.objects[id]  # what it needs must be there
                assert entry.kind == Kind.RESULT
                assert set(entry.fds) <= self.open_fds
            assert set(task.call_fds) <= self.open_fds
        lease.place.unread.append(tasks)
        assert len(lease.packets) <= self.capabilities.depth

    def look_at_devices(self, lease: Lease) -> None:
        """What still lives has what it has put on its devices: nobody else gets them, unless it waits or lingers."""
        left = [CPU_UNITS] * GPUS
        for other, place in [*self.places.values(), (lease, None)]:
            amount = dict(other.demand).get("GPU", 0)
            assert len(other.devices) == -(-amount // CPU_UNITS)
            if place is None or other.keeps or not (other.blocked or place.has_lingered):
                for device in other.devices:
                    left[device] -= min(amount, CPU_UNITS)
            self.steps["lent"] += other.blocked and not other.keeps
        assert all(left[device] >= 0 for device in lease.devices), "a device was given to more than it has room for"

    def close(self, lease: Lease) -> None:
        assert not lease.devices, "a place with devices was closed, to be used again"
        place = lease.place
        lease.place = None
        self.places.pop(lease.id, None)
        if isinstance(place, Place) and not (place.dying or place.dead):
            assert not place.unread, "a lease was closed with work in it"
            assert not [task for task in place.read if task.id not in place.asked]
            assert not place.moved, "a lease was closed whose worker has yet to pass tasks over"
            assert place.current is None

    def recall(self, lease: Lease, id: int) -> None:
        place = lease.place
        if not isinstance(place, Place):
            self.post(Recalled(lease, ()))
            return
        back: list[Task] = []
        most = 1 if id == ONE_PACKET else len(place.unread)
        for _ in range(min(most, len(place.unread))):
            back += place.unread.popleft()
        ids = [task.id for task in back]
        if id in (ONE_PACKET, EVERYTHING) or id in ids:
            self.post(Recalled(lease, ids))
            return
        place.asked.add(id)
        if place.current is not None and place.current.id == id:
            if ids:
                self.post(Recalled(lease, ids))
            self.post(Started(id, self.now))
        else:
            if ids:
                self.post(Recalled(lease, ids))
            if id in [task.id for task in place.read]:
                self.post(Recalled(lease, [id], True))

    def retire(self, lease: Lease) -> None:
        place = lease.place
        if isinstance(place, Place):
            place.dying = place.ours = True
        else:
            self.post(Gone(lease))

    # -- what workers do --------------------------------------------------------------------------------------

    def work(self, lease: Lease, place: Place) -> None:
        """One thing happens in this worker."""
        rnd = self.rnd
        if place.dead:
            if rnd.random() < 0.5:
                self.bury(lease, place)
        elif place.dying:
            self.die(lease, place)
        elif place.words and rnd.random() < 0.6:
            self.post(place.words.popleft())
        elif place.tainted:
            if place.unread:
                place.read.extend(place.unread.popleft())
                self.give_back(lease, place)
        elif place.lingering:
            if rnd.random() < 0.3:
                place.lingering = False
                place.words.append(IdleAgain(lease))
            elif place.unread and rnd.random() < 0.5:
                place.read.extend(place.unread.popleft())
                self.give_back(lease, place)
        elif place.current is not None and place.read and rnd.random() < 0.03:
            self.hand_back(lease, place)
        elif place.current is not None:
            self.go_on(lease, place, place.current)
        elif place.read:
            self.begin(lease, place, place.read.popleft())
        elif place.unread:
            place.read.extend(place.unread.popleft())
        elif rnd.random() < 0.002:
            place.dying = True  # an idle worker is killed by somebody

    def hand_back(self, lease: Lease, place: Place) -> None:
        """The packet turned out slow: what is behind the running task is to be passed over, and goes to others."""
        ids = [task.id for task in place.read if task.id not in place.asked | place.moved]
        place.moved.update(ids)
        self.post(Recalled(lease, ids, True))

    def begin(self, lease: Lease, place: Place, task: Task) -> None:
        if task.id in place.moved or task.id in place.asked or self.rnd.random() < 0.01:
            place.moved.discard(task.id)
            flags = Flag.SKIPPED
            place.words.append(Finished(lease, [End(task.id, Kind.INTERRUPTED, flags, b"")]))
            place.asked.discard(task.id)
            place.last = task.id
            return
        place.current = task
        place.current_is_slow = self.rnd.random() < 0.2
        place.last = task.id
        place.made = place.asked_for_room = 0
        self.begun[task.id] += 1
        if task.spec.watched or task.spec.timeout is not None:
            place.words.append(Started(task.id, self.now))

    def go_on(self, lease: Lease, place: Place, task: Task) -> None:
        rnd = self.rnd
        chance = rnd.random()
        if place.blocked:
            if task.id in place.asked and chance < 0.1:  # the word that the wait is over is cut off
                place.blocked = False
                self.end(lease, place, task, Kind.INTERRUPTED)
            elif chance < 0.4:
                place.blocked = False
                place.words.append(UnBlocked(lease))
            return
        if place.current_is_slow and rnd.random() < 0.95:
            return  # in a long call; an interrupt ends it only if it is not deaf
        if place.asked_for_room and task.id not in place.asked:
            return
        if task.spec.streams and rnd.random() < 0.8:
            self.make_item(lease, place, task)
            return
        if task.id in place.asked:
            if chance < 0.3:
                self.end(lease, place, task, Kind.INTERRUPTED, flags=Flag.TAINTED if chance < 0.1 else 0)
            elif chance < 0.4:
                self.end(lease, place, task, Kind.RESULT)  # it caught it and returned
            elif chance < 0.45:
                self.end(lease, place, task, Kind.ERROR)
            elif chance < 0.47:
                place.dying = True  # it crashed in its handler
            elif chance < 0.6:
                place.asked.discard(task.id)  # it caught it and goes on
                place.current_is_slow = True
        elif chance < 0.4:
            self.end(lease, place, task, Kind.RESULT)
        elif chance < 0.45:
            self.end(lease, place, task, Kind.ERROR)
        elif chance < 0.48:
            self.end(lease, place, task, Kind.ERROR, flags=Flag.RETRYABLE)
        elif chance < 0.5:
            place.dying = True
        elif chance < 0.54:
            self.end(lease, place, task, Kind.RESULT, flags=Flag.LINGERS)
        elif chance < 0.58:
            place.blocked = True
            place.words.append(WaitBegan(lease))
        elif chance < 0.6 and task.spec.memory is not None:
            self.post(TooMuchMemory(task.id, task.spec.memory + 1))

    def make_item(self, lease: Lease, place: Place, task: Task) -> None:
        rnd = self.rnd
        if rnd.random() < 0.3:  # with refs of the worker inside
            held = self.values_of(KERNEL)
            self.post(ItemContains(task.id, place.made, rnd.sample(held, min(len(held), 2))))
            self.pump()  # the worker waits until this is taken in
            if rnd.random() < 0.1:
                return  # and is interrupted before it tells the item
        place.words.append(Yielded(task.id, place.made, b"v", self.new_fds() if rnd.random() < 0.2 else ()))
        place.made += 1
        if task.spec.backpressure and rnd.random() < 0.8:
            place.asked_for_room = next(self.serials)
            self.post(RoomAsked(WORKERS, place.asked_for_room, task.id, place.made))

    def end(self, lease: Lease, place: Place, task: Task, kind: int, *, flags: int = 0) -> None:
        rnd = self.rnd
        ends = []
        if kind == Kind.RESULT:
            self.returned[task.id] += 1
            for i in reversed(range(task.spec.num_returns)):
                fds = self.new_fds() if rnd.random() < 0.2 else ()
                body = frame(kind, task.id + i, b"v")
                mine = flags | rnd.randrange(16) << DURATION_SHIFT if i == 0 else 0
                ends.append(End(task.id + i, kind, mine, body, fds))
        else:
            self.errors[task.id] += kind == Kind.ERROR
            ends.append(End(task.id, kind, flags, frame(kind, task.id, b"boom")))
        last = place.words[-1] if place.words else None
        if isinstance(last, Finished) and rnd.random() < 0.5:
            place.words[-1] = Finished(lease, [*last.ends, *ends])  # in one message
        else:
            place.words.append(Finished(lease, ends))
        place.current = None
        place.asked.discard(task.id)
        if flags & Flag.LINGERS and kind == Kind.RESULT:
            place.lingering = place.has_lingered = True
            self.give_back(lease, place)
        if flags & Flag.TAINTED and kind == Kind.INTERRUPTED:
            place.tainted = True
            self.give_back(lease, place)

    def give_back(self, lease: Lease, place: Place) -> None:
        """What was read is not begun: something lingers here."""
        for rest in place.read:
            place.moved.discard(rest.id)
            place.words.append(Finished(lease, [End(rest.id, Kind.INTERRUPTED, Flag.SKIPPED, b"")]))
        place.read.clear()

    def die(self, lease: Lease, place: Place) -> None:
        """Reaped: what it said last is read first, then it is dead."""
        while place.words:
            self.post(place.words.popleft())
        place.dead = True
        if place.current is not None:
            self.crashes[place.current.id] += 1
        self.post(Died(lease, place.last, None, "SIGKILL" if place.ours else "SIGSEGV", place.ours))
        if self.rnd.random() < 0.5:
            self.bury(lease, place)  # gone before the rules have heard of any of it

    def bury(self, lease: Lease, place: Place) -> None:
        self.places.pop(lease.id, None)
        lease.place = DEAD
        self.post(Gone(lease))

    # -- what clients do ----------------------------------------------------------------------------------------

    def new_fds(self) -> tuple[int, ...]:
        fd = next(self.fds)
        self.open_fds.add(fd)
        return (fd,)

    def client(self) -> int:
        living = [client for client in OTHERS if client not in self.gone_clients]
        return KERNEL if not living or self.rnd.random() < 0.7 else self.rnd.choice(living)

    def held_by(self, client: int) -> list[int]:
        return [id for (who, id), count in self.refs.items() if who == client and count]

    def values_of(self, client: int) -> list[int]:
        """Nobody has a group as an argument, or inside a value."""
        return [id for id in self.held_by(client) if id not in self.groups]

    def submit(self) -> None:
        rnd = self.rnd
        if len(self.scheduler.live) > 150:
            return
        client = self.client()
        known = self.values_of(client)
        batch = []
        fn = rnd.randrange(1, 5)
        alike = rnd.random() < 0.5
        for _ in range(rnd.choice((1, 1, 2, 5, 16))):
            returns = 1 if alike or rnd.random() < 0.9 else rnd.choice((2, 3))
            id = next(self.ids)
            for _ in range(returns - 1):
                next(self.ids)
            cell = not alike and rnd.random() < 0.05
            spec = TaskSpec(
                kind="cell" if cell else "function",
                demand=cpus(1) if alike else rnd.choice((*(cpus(1), cpus(1), cpus(0.5), cpus(3), ()), *GPU)),
                timeout=rnd.choice((None, None, None, 3.0)) if not alike else None,
                grace=rnd.choice((None, None, 1.0)) if not alike else None,
                memory=1000 if not alike and rnd.random() < 0.3 else None,
                max_retries=0 if cell else rnd.randrange(3),
                retry_delay=rnd.choice((0.0, 0.0, 0.5)) if not alike else 0.0,
                num_returns=returns,
                streams=(streams := not alike and returns == 1 and not cell and rnd.random() < 0.3),
                backpressure=rnd.randrange(4) if streams else 0,
                watched=cell or (not alike and rnd.random() < 0.3),
            )
            deps = rnd.sample(known, min(len(known), rnd.choice((0, 0, 1, 2)))) if not alike else []
            task = Task(id, client, fn, spec, b"call", alike)
            task.deps = tuple(deps)
            task.pins = tuple(rnd.sample(known, 1)) if known and not alike and rnd.random() < 0.1 else ()
            task.call_fds = self.new_fds() if not alike and rnd.random() < 0.1 else ()
            live = [t for t in self.scheduler.live.values() if t.state is State.RUNNING]
            task.parent = rnd.choice(live).id if live and rnd.random() < 0.2 else 0
            mine = [g for g in self.open_groups if self.groups[g].owner == client]
            task.group_id = rnd.choice(mine) if mine and rnd.random() < 0.4 else 0
            for i in range(returns):
                self.refs[client, id + i] += 1
                self.made_by[id + i] = client
            self.tasks[id] = task
            batch.append(task)
        self.post(Submitted(batch))

    def make_group(self) -> None:
        rnd = self.rnd
        client = self.client()
        group = Group(
            *(next(self.ids), client, "g"),
            grace=rnd.choice((None, 0.0, 2.0)),
            fail_fast=rnd.random() < 0.3,
            auto=rnd.random() < 0.2,
        )
        outer = [g for g in self.open_groups if self.groups[g].owner == client]
        running = [t.id for t in self.scheduler.live.values() if t.state is State.RUNNING]
        self.groups[group.id] = group
        self.open_groups.add(group.id)
        self.refs[client, group.id] += 1
        self.made_by[group.id] = client
        parent = rnd.choice(outer) if outer and rnd.random() < 0.5 else 0
        self.post(GroupMade(group, rnd.choice(running) if running and rnd.random() < 0.3 else 0, parent))

    def close_group(self) -> None:
        if self.open_groups:
            id = self.rnd.choice(sorted(self.open_groups))
            self.open_groups.discard(id)
            self.post(GroupClosed(id))

    def cancel_group(self) -> None:
        if self.groups:
            id = self.rnd.choice(list(self.groups))
            grace = self.rnd.choice((None, None, 0.0))
            self.post(CancelAsked(id, force=self.rnd.random() < 0.2, grace=grace))

    def put(self) -> None:
        client = self.client()
        entry = Entry(next(self.ids), client)
        entry.kind = Kind.RESULT
        entry.frame = frame(Kind.RESULT, entry.id, b"put")
        entry.fds = self.new_fds() if self.rnd.random() < 0.5 else ()
        self.refs[client, entry.id] += 1
        self.made_by[entry.id] = client
        self.post(Put(entry))

    def cancel(self) -> None:
        rnd = self.rnd
        if not self.tasks:
            return
        live = list(self.scheduler.live)
        running = [place.current.id for _, place in self.places.values() if place.current is not None]
        left = [t.id for t in self.scheduler.history if t.lease is not None]
        choice = rnd.choice([ids for ids in (live, running, left, list(self.tasks)) if ids])
        task = self.tasks[rnd.choice(choice)]
        id = task.id + rnd.randrange(task.spec.num_returns)
        recursive = rnd.random() < 0.7
        todo = [task]
        while todo:
            one = todo.pop()
            self.asked.add(one.id)
            todo += [self.tasks[child] for child in one.children or () if recursive]
        grace = rnd.choice((None, None, 0.0, 1.0))
        self.post(CancelAsked(id, force=rnd.random() < 0.25, recursive=recursive, grace=grace))

    def hold(self) -> None:
        held = self.values_of(KERNEL)
        living = [client for client in OTHERS if client not in self.gone_clients]
        if held and living:
            client, id = self.rnd.choice(living), self.rnd.choice(held)
            self.refs[client, id] += 1
            self.post(Held(client, [id]))
            self.post(Fetched(client, id))

    def release(self) -> None:
        held = [key for key, count in self.refs.items() if count]
        if held:
            client, id = self.rnd.choice(held)
            if client not in self.gone_clients:
                self.refs[client, id] -= 1
                self.open_groups.discard(id)
                self.post(Released(client, [id]))

    def contain(self) -> None:
        """A value, there or on its way, has others inside that were made before it."""
        held = self.values_of(KERNEL)
        if len(held) > 1:
            *inside, outer = sorted(self.rnd.sample(held, min(len(held), 3)))
            self.post(Contains(outer, inside))

    def take(self) -> None:
        """An owner takes items of a generator, or drops it."""
        if self.items:
            id = self.rnd.choice(list(self.items))
            if self.tasks[id].owner not in self.gone_clients and self.taken[id] < ALL_TAKEN:
                self.taken[id] = min(self.taken[id] + self.rnd.randrange(3), len(self.items[id]))
                if self.rnd.random() < 0.05:
                    self.taken[id] = ALL_TAKEN
                self.post(Taken(self.tasks[id].owner, id, self.taken[id]))

    def fetch(self) -> None:
        held = self.held_by(KERNEL)
        if held:
            self.post(Fetched(KERNEL, self.rnd.choice(held)))

    def client_gone(self) -> None:
        living = [client for client in OTHERS if client not in self.gone_clients]
        if living and self.rnd.random() < 0.05:
            client = self.rnd.choice(living)
            self.gone_clients.add(client)
            for key in [key for key in self.refs if key[0] == client]:
                del self.refs[key]
                self.open_groups.discard(key[1])
            self.post(ClientGone(client))

    def time_goes_on(self) -> None:
        self.now += self.rnd.random()
        timer = self.scheduler.next_timer()
        if timer is not None and timer <= self.now:
            self.post(Tick())

    def something_happens(self) -> None:
        actions: list[tuple[Callable[[], None], float]] = [
            (self.submit, 2),
            (self.put, 0.3),
            (self.make_group, 0.15),
            (self.close_group, 0.15),
            (self.cancel_group, 0.1),
            (self.cancel, 0.8),
            (self.hold, 0.2),
            (self.release, 3),
            (self.fetch, 0.5),
            (self.contain, 0.3),
            (self.take, 1),
            (self.client_gone, 0.1),
            (self.time_goes_on, 1),
        ]
        places = list(self.places.values())
        if places and self.rnd.random() < 0.75:
            self.work(*self.rnd.choice(places))
        else:
            functions, weights = zip(*actions, strict=True)
            self.rnd.choices(functions, weights)[0]()

    def let_all_end(self) -> None:
        """Nobody asks for anything more; what is there comes to its end, with time and force if need be."""
        while self.open_groups:
            self.close_group()
        for round in range(20_000):
            self.pump()
            if not self.scheduler.live and not any(
                p.words or p.read or p.dying or p.dead for _, p in self.places.values()
            ):
                return
            for lease, place in list(self.places.values()):
                self.work(lease, place)
            self.time_goes_on()
            if round % 50 == 0:  # some have caught their cancel and go on for ever
                for id, task in list(self.scheduler.live.items()):
                    if task.state is State.CANCELLING:
                        self.post(CancelAsked(id, force=True))
                    self.post(Taken(task.owner, id, ALL_TAKEN))
        pytest.fail(f"{len(self.scheduler.live)} tasks never ended: {list(self.scheduler.live.values())[:3]}")


def gpus(amount: float, cpu: float = 1) -> Demand:
    return (*cpus(cpu), ("GPU", round(amount * CPU_UNITS)))


GPUS = 2
GPU = gpus(1), gpus(0.5), gpus(0.3, 0), gpus(2)


def outcome(task: Task) -> dict[str, Any]:
    kind = task.frame[4] if task.frame else 0
    return dict(from_json(task.frame[HEADER_SIZE:])) if kind == Kind.FAILURE else {}


def for_another(fake: Fake, task: Task) -> bool:
    """It was cancelled because its parent or its group was, and that is true."""
    if task.cancel is None:
        return False
    if task.cancel.source == "parent":
        return fake.tasks[task.parent].cancel is not None
    return task.cancel.source == "group" and task.group is not None and task.group.cancel is not None


LEGAL = {
    GroupState.RUNNING: {GroupState.CANCELLING, GroupState.COMPLETED, GroupState.FAILED, GroupState.CANCELLED},
    GroupState.CANCELLING: {GroupState.FAILED, GroupState.CANCELLED},
}


def judge_groups(fake: Fake) -> None:
    """Every group came to its end by a legal way, and its state is what its members make of it."""
    for id, group in fake.groups.items():
        states = fake.group_states[id]
        assert group.kind, f"group {id} never ended: {states}"
        assert all(after in LEGAL[before] for before, after in itertools.pairwise(states)), states
        members = [t for t in fake.tasks.values() if t.group is group]
        failed = any(t.state in (State.FAILED, State.CRASHED) for t in members)
        if group.state is GroupState.COMPLETED:
            assert not failed
            assert group.cancel is None
        if failed and group.cancel is None:
            assert group.state is GroupState.FAILED
        if group.cancel is not None and group.cancel.source in ("user", "group"):
            assert group.state is GroupState.CANCELLED


def judge(fake: Fake) -> None:
    """Every task came to a true end, told once."""
    for id, task in fake.tasks.items():
        assert task.state in FINAL, f"{id} is {task.state}"
        for i in range(task.spec.num_returns):
            assert fake.told.get(id + i) == [task.owner], f"{id + i} was told {fake.told.get(id + i)}"
        if task.state is State.COMPLETED:
            assert fake.returned[id] >= 1
        if task.state is State.CANCELLED and id not in fake.asked and not for_another(fake, task):
            # Only because a dependency was, in whose place it stands.
            assert fake.begun[id] == 0, f"{id} was cancelled unasked"
        places = fake.items.get(id, [])
        assert places == list(range(len(places))), f"{id} made {places}"
        attempts = fake.begun[id]
        assert attempts <= task.spec.max_retries + 1, f"{id} began {attempts} times"
        assert attempts <= 1 + fake.crashes[id] + fake.errors[id], f"{id} ran again without a reason"


@pytest.mark.parametrize("seed", range(12))
def test_a_random_walk_leaves_the_rules_whole_and_nothing_behind(seed: int) -> None:
    fake = Fake(seed)
    for _ in range(STEPS):
        fake.something_happens()
        fake.pump(check=True)
    fake.let_all_end()
    fake.scheduler.check()
    judge(fake)
    judge_groups(fake)
    # Everything dropped: nothing is held any more.
    for (client, id), count in fake.refs.items():
        if count and client not in fake.gone_clients:
            fake.post(Released(client, [id] * count))
    fake.pump()
    scheduler = fake.scheduler
    assert scheduler.objects == {}
    assert scheduler.live == {}
    while (timer := scheduler.next_timer()) is not None:  # idle places with devices are given up
        fake.now = timer
        fake.post(Tick())
        fake.let_all_end()
    assert not [lease for lease in scheduler.leases.values() if lease.keeps]
    assert scheduler.available["GPU"] == GPUS * CPU_UNITS
    assert fake.open_fds == set(), f"{len(fake.open_fds)} descriptors were never closed"
    for lease in scheduler.leases.values():
        assert not lease.packets
        assert not lease.blocked
        assert lease.ending is None
    # One task that wants everything must get it: nothing is held by what is idle.
    everything = Task(next(fake.ids), KERNEL, 1, TaskSpec(demand=gpus(GPUS, 3)), b"", True)
    fake.tasks[everything.id] = everything
    fake.post(Submitted([everything]))
    fake.let_all_end()
    assert everything.state in FINAL
    print(dict(fake.steps.most_common(8)))


ALL_EVENTS = (
    *(
        Submitted,
        Put,
        Started,
        Finished,
        Recalled,
        Died,
        Gone,
        IdleAgain,
        CancelAsked,
        TooMuchMemory,
        Held,
        Contains,
        Released,
    ),
    *(Fetched, ClientGone, WaitBegan, UnBlocked, Tick, Yielded, ItemContains, Taken, RoomAsked, Answer),
    *(GroupMade, GroupClosed, GroupTold),
    *(Run, CloseLease, Recall, Interrupt, Terminate, Kill, Retire, Deliver, DeliverValue, Announce, Drop),
)


def test_such_walks_meet_every_event_and_instruction() -> None:
    """Or they would prove less than they say."""
    met: Counter[str] = Counter()
    for seed in range(100, 104):
        fake = Fake(seed)
        for _ in range(STEPS):
            fake.something_happens()
            fake.pump()
        met += fake.steps
    assert {e.__name__ for e in ALL_EVENTS} <= set(met)
