"""Random walks with actors: no call runs twice, none that was cancelled before it began, none out of order; all end.

Role: property test, beside test_random_walk.py, whose fake this one extends: places that are the homes of actors of all
three kinds, crash, leave, are killed and made anew, while tasks run beside them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from engine_rig import cpus
from test_random_walk import DEAD, STEPS, Fake, Place, judge

from jupyter_tasks.engine.actors import Actor, Call
from jupyter_tasks.engine.events import (
    ActorClosed,
    ActorExits,
    ActorKilled,
    Answer,
    CancelAsked,
    End,
    EndActor,
    Finished,
    Held,
    Instruction,
    Interrupt,
    Lease,
    Recall,
    Recalled,
    Released,
    Started,
    Submitted,
    Task,
    TaskSpec,
    TooMuchMemory,
)
from jupyter_tasks.engine.states import FINAL, State
from jupyter_tasks.wire.frames import DURATION_SHIFT, Flag, Kind, frame, from_json, show_id

METHODS = 3


class Home(Place):
    """The process of an actor."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor
        self.made = False  # type: ignore[assignment]  # its constructor has ended
        self.running: list[Call] = []
        self.to_leave = False
        self.leaves = False


class ActorFake(Fake):
    """See the module's text."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.actors: dict[int, Actor] = {}
        self.lives: Counter[int] = Counter()  # how often the constructor of an actor began
        self.exits: set[int] = set()
        self.order: dict[tuple[int, int, int], list[Call]] = {}  # by actor, life and caller: first attempts, as begun
        self.questions: dict[int, int] = {}  # kill: serial -> actor
        self.late: list[Call] = []  # submitted when their actor was dead
        self.killed: set[int] = set()  # answered
        self.wanted_dead: set[int] = set()  # somebody wanted it to end, by kill or terminate

    # -- the backend ----------------------------------------------------------------------------------------

    def do(self, instruction: Instruction) -> None:
        if isinstance(instruction, EndActor):
            self.steps["EndActor"] += 1
            home = instruction.lease.place
            if isinstance(home, Home):
                assert not home.running
                home.to_leave = True
        elif isinstance(instruction, Answer) and instruction.serial in self.questions:
            self.steps["Answer"] += 1
            self.answered(self.questions.pop(instruction.serial))
        elif isinstance(instruction, Interrupt) and isinstance(instruction.task, Call):
            self.steps["Interrupt"] += 1
            home = self.place_of(instruction.task)
            if home is not None:
                home.asked.add(instruction.task.id)
        else:
            super().do(instruction)

    def answered(self, id: int) -> None:
        """Whoever killed it hears of it: no process of that life is left."""
        actor = self.actors[id]
        assert actor.lease is None or not actor.lease.retired
        if actor.state in FINAL:
            self.killed.add(id)

    def run(self, lease: Lease, tasks: list[Task]) -> None:
        actor = lease.actor
        if actor is None:
            assert not any(isinstance(task, (Actor, Call)) for task in tasks)
            super().run(lease, tasks)
            return
        if lease.place is DEAD:
            return
        if lease.place is None:
            assert tasks == [actor]
            lease.place = Home(actor)
            self.places[lease.id] = (lease, lease.place)
        else:
            assert actor.ready
            assert all(isinstance(task, Call) and task.actor is actor for task in tasks)
            assert not actor.in_order or all(task.plain for task in tasks) or len(tasks) == 1
            if actor.in_order:
                assert len(lease.packets) <= self.capabilities.depth
            else:
                assert len(lease.packets) == 1
                assert len(lease.packets[0]) <= actor.concurrency, "more calls than may run at a time"
        assert isinstance(lease.place, Home)
        for task in tasks:
            assert task.state is State.PENDING
            for dep in task.deps:
                assert self.scheduler.objects[dep].kind == Kind.RESULT
        lease.place.unread.append(tasks)

    def recall(self, lease: Lease, id: int) -> None:
        home = lease.place
        if lease.actor is None or not isinstance(home, Home):
            super().recall(lease, id)
            return
        given = [task.id for packet in (*home.unread, home.read) for task in packet]
        if lease.actor.in_order:
            home.asked.add(id)
            if id in given:
                self.post(Recalled(lease, [id], True))
            elif id in [call.id for call in home.running]:
                self.post(Started(id, self.now))
            return
        self.post(Recalled(lease, ()))
        for packet in home.unread:
            for task in packet:
                if task.id == id:
                    home.asked.add(id)
        for call in home.running:
            if call.id == id:
                self.post(Started(id, self.now))

    def close(self, lease: Lease) -> None:
        assert lease.actor is None, "the home of an actor was closed, to be used by others"
        super().close(lease)

    # -- what actors do ---------------------------------------------------------------------------------------

    def work(self, lease: Lease, place: Place) -> None:
        if not isinstance(place, Home):
            super().work(lease, place)
            return
        rnd = self.rnd
        if place.dead:
            if rnd.random() < 0.5:
                self.bury(lease, place)
        elif place.dying:
            place.current = place.running[0] if len(place.running) == 1 else None
            for call in place.running:
                self.crashes[call.id] += 1
            crashes = self.crashes.copy()
            self.die(lease, place)
            self.crashes = crashes
        elif place.words and rnd.random() < 0.6:
            self.post(place.words.popleft())
        elif not place.made:
            self.construct(lease, place)
        elif place.to_leave or (place.leaves and not place.running):
            place.words.append(ActorExits(lease, True))
            place.dying = True
        elif place.leaves or (place.running and (place.actor.in_order or rnd.random() < 0.6)):
            self.go_on_with(lease, place, rnd.choice(place.running))
        elif place.read:
            self.begin_call(lease, place, place.read.popleft())
        elif place.unread:
            place.read.extend(place.unread.popleft())
        elif rnd.random() < 0.005:
            place.dying = True

    def construct(self, lease: Lease, home: Home) -> None:
        rnd, actor = self.rnd, home.actor
        if home.unread:
            home.read.extend(home.unread.popleft())
        elif home.read:
            assert home.read.popleft() is actor
            home.last = actor.id
            self.lives[actor.id] += 1
            home.words.append(Started(actor.id, self.now))
        elif rnd.random() < 0.05:
            home.dying = True
        elif rnd.random() < 0.1:
            home.made = True  # type: ignore[assignment]  # it raises; nothing more happens here
            home.words.append(Finished(lease, [End(actor.id, Kind.ERROR, 0, frame(Kind.ERROR, actor.id, b"no"))]))
        elif rnd.random() < 0.5:
            home.made = True  # type: ignore[assignment]
            home.words.append(Finished(lease, [End(actor.id, Kind.RESULT, 0, frame(Kind.RESULT, actor.id, b"v"))]))

    def begin_call(self, lease: Lease, home: Home, call: Any) -> None:
        assert isinstance(call, Call)
        if call.id in home.asked:
            home.words.append(Finished(lease, [End(call.id, Kind.INTERRUPTED, Flag.SKIPPED, b"")]))
            home.asked.discard(call.id)
            if home.actor.in_order:
                home.last = call.id
            return
        assert call.id not in [task.id for task in home.running]
        home.running.append(call)
        self.begun[call.id] += 1
        if home.actor.in_order:
            assert len(home.running) == 1
            home.last = call.id
            if not call.attempt:
                key = (home.actor.id, self.lives[home.actor.id], call.owner)
                self.order.setdefault(key, []).append(call)
        elif self.rnd.random() < 0.5:
            home.words.append(Started(call.id, self.now))

    def go_on_with(self, lease: Lease, home: Home, call: Call) -> None:
        chance = self.rnd.random()
        actor = home.actor
        if chance < 0.3:
            return
        if chance < 0.33:
            home.dying = True
            return
        if chance < 0.35 and not home.leaves:  # exit_actor()
            home.leaves = True
            self.exits.add(actor.id)
            home.running.remove(call)
            home.words.append(ActorExits(lease, False))
            return
        if chance < 0.37 and actor.spec.memory is not None:
            self.post(TooMuchMemory(actor.id, actor.spec.memory + 1))
            return
        home.running.remove(call)
        home.asked.discard(call.id)
        if chance < 0.45:
            flags = Flag.RETRYABLE if chance < 0.41 else 0
            self.errors[call.id] += 1
            ends = [End(call.id, Kind.ERROR, flags, frame(Kind.ERROR, call.id, b"boom"))]
        elif chance < 0.55 and actor.asynchronous and call.id in self.asked:
            ends = [End(call.id, Kind.INTERRUPTED, 0, b"")]
        else:
            self.returned[call.id] += 1
            fds = self.new_fds() if self.rnd.random() < 0.1 else ()
            log2 = self.rnd.choice((2, 2, 12))
            ends = [End(call.id, Kind.RESULT, log2 << DURATION_SHIFT, frame(Kind.RESULT, call.id, b"v"), fds)]
        home.words.append(Finished(lease, ends))

    # -- what clients do --------------------------------------------------------------------------------------

    def make_actor(self) -> None:
        rnd = self.rnd
        if sum(actor.state not in FINAL for actor in self.actors.values()) > 8:
            return
        client = self.client()
        asynchronous = rnd.random() < 0.3
        restarts, retries = rnd.choice((0, 0, 1, 3)), rnd.choice((0, 0, 1, -1))
        actor = Actor(
            *(next(self.ids), client, 1),
            TaskSpec(
                name="A",
                kind="actor",
                demand=rnd.choice(((), (), cpus(1))),
                max_retries=restarts,
                memory=rnd.choice((None, None, 1000)),
                watched=rnd.random() < 0.3,
            ),
            b"call",
            class_name="A",
            methods=[TaskSpec(name=f"m{i}", kind="call", demand=(), max_retries=retries) for i in range(METHODS)],
            concurrency=4 if asynchronous else rnd.choice((1, 1, 3)),
            asynchronous=asynchronous,
            name=rnd.choice(("", "", "n")),
        )
        known = [id for id in self.values_of(client) if id not in self.actors]
        actor.deps = tuple(self.rnd.sample(known, min(len(known), rnd.choice((0, 0, 1)))))
        if not self.scheduler.actors.take_name(actor):
            return
        self.actors[actor.id] = self.tasks[actor.id] = actor  # type: ignore[assignment]
        self.refs[client, actor.id] += 1
        self.made_by[actor.id] = client
        self.post(Submitted([actor]))

    def values_of(self, client: int) -> list[int]:
        return [id for id in super().values_of(client) if id not in self.actors]

    def call(self) -> None:
        rnd = self.rnd
        held = [
            (client, id)
            for (client, id), count in self.refs.items()
            if count and id in self.actors and client not in self.gone_clients
        ]
        if not held or len(self.scheduler.live) > 200:
            return
        client, id = rnd.choice(held)
        actor = self.actors[id]
        batch: list[Task] = []
        for _ in range(rnd.choice((1, 2, 8))):
            plain = rnd.random() < 0.8
            call = Call(next(self.ids), client, actor, rnd.randrange(METHODS), b"call", plain)
            if not plain:
                known = self.values_of(client)
                call.deps = tuple(rnd.sample(known, min(len(known), rnd.choice((0, 1)))))
                live = [t for t in self.scheduler.live.values() if t.state is State.RUNNING]
                call.parent = rnd.choice(live).id if live and rnd.random() < 0.3 else 0
                call.pins = (id,)
            if id in self.killed:
                self.late.append(call)
            self.tasks[call.id] = call
            self.refs[client, call.id] += 1
            self.made_by[call.id] = client
            batch.append(call)
        self.post(Submitted(batch))

    def share_handle(self) -> None:
        held = [id for id in self.held_by(1) if id in self.actors]
        if held:
            living = [client for client in (5, 6, 7) if client not in self.gone_clients]
            if living:
                client, id = self.rnd.choice(living), self.rnd.choice(held)
                self.refs[client, id] += 1
                self.post(Held(client, [id]))

    def kill(self) -> None:
        if self.actors:
            serial = next(self.serials)
            id = self.rnd.choice(list(self.actors))
            self.wanted_dead.add(id)
            self.questions[serial] = id
            restart = self.rnd.random() < 0.4
            self.post(ActorKilled(id, no_restart=not restart, client=1, serial=serial))

    def terminate(self) -> None:
        if self.actors:
            id = self.rnd.choice(list(self.actors))
            self.wanted_dead.add(id)
            self.post(ActorClosed(id))

    def something_happens(self) -> None:
        chance = self.rnd.random()
        if chance < 0.12:
            self.call()
        elif chance < 0.14:
            self.make_actor()
        elif chance < 0.145:
            self.share_handle()
        elif chance < 0.15:
            self.kill()
        elif chance < 0.153:
            self.terminate()
        else:
            super().something_happens()

    def let_all_end(self) -> None:
        for (client, id), count in list(self.refs.items()):
            if id in self.actors and count and client not in self.gone_clients:
                self.refs[client, id] = 0
                self.post(Released(client, [id] * count))
        super().let_all_end()


def judge_calls(fake: ActorFake) -> None:
    for task in fake.tasks.values():
        if not isinstance(task, Call):
            continue
        record = dict(from_json(task.frame[24:])) if task.frame and task.frame[4] == Kind.FAILURE else {}
        if record.get("type") == "cancelled" and record["rung"] == "pending":
            assert fake.begun[task.id] <= task.attempt, f"{task.id} was cancelled before it started, and ran"
        actor = task.actor
        if actor.state is State.COMPLETED and actor.id not in fake.exits | fake.wanted_dead:
            lost = record.get("type") == "actor_died" and record["actor_id"] == show_id(actor.id)
            assert not lost, "the last handle was dropped, and a call with it"
        again = fake.begun[task.id] - 1
        assert again <= fake.crashes[task.id] + fake.errors[task.id], f"{task.id} ran again without a reason"
    for call in fake.late:
        assert fake.begun[call.id] == 0, "a call that was made after kill() had returned ran"
    for calls in fake.order.values():
        order = [call.seq for call in calls]
        assert order == sorted(order), "calls of one caller began in another order than they were submitted"
    for actor in fake.actors.values():
        most = actor.spec.max_retries
        assert fake.lives[actor.id] <= most + 1, f"{actor.id} lived {fake.lives[actor.id]} times"


@pytest.mark.parametrize("seed", range(10))
def test_a_random_walk_with_actors(seed: int) -> None:
    fake = ActorFake(seed)
    for _ in range(STEPS):
        fake.something_happens()
        fake.pump(check=True)
    fake.let_all_end()
    fake.scheduler.check()
    calls = [task for task in fake.tasks.values() if isinstance(task, Call)]
    judge_calls(fake)
    fake.tasks = {id: task for id, task in fake.tasks.items() if not isinstance(task, (Actor, Call))}
    fake.asked |= {task.id for task in fake.tasks.values() if task.parent}
    judge(fake)
    for call in calls:
        assert call.state in FINAL
        assert fake.told.get(call.id) == [call.owner], f"{call.id} was told {fake.told.get(call.id)}"
    for actor in fake.actors.values():
        assert actor.state in FINAL
    assert not fake.questions, "somebody still waits for the end of a kill"
    for (client, id), count in fake.refs.items():
        if count and client not in fake.gone_clients:
            fake.post(Released(client, [id] * count))
    fake.pump()
    assert fake.scheduler.objects == {}
    assert fake.scheduler.live == {}
    assert fake.open_fds == set()
    assert all(lease.actor is None for lease in fake.scheduler.leases.values()), "an actor's place outlived it"
    states = Counter(actor.state for actor in fake.actors.values())
    print(len(calls), dict(states), dict(fake.steps.most_common(6)))


def test_such_walks_meet_what_they_are_about() -> None:
    """Or they would prove less than they say."""
    met: Counter[str] = Counter()
    states: Counter[tuple[str, str]] = Counter()
    for seed in range(200, 204):
        fake = ActorFake(seed)
        for _ in range(STEPS):
            fake.something_happens()
            fake.pump()
        met += fake.steps
        states += Counter((task.spec.kind, task.state.value) for task in fake.tasks.values())
    for event in (ActorKilled, ActorClosed, ActorExits, EndActor, Answer, Recall, CancelAsked):
        assert met[event.__name__], event
    for state in ("completed", "cancelled", "failed", "crashed"):
        assert states["call", state], state
        assert states["actor", state], state
