"""Actors in the rules: whose call begins when, what a cancel may do, and what an end means for calls.

Role: the promises of docs/semantics.md, Actors, as far as they are decided without any process. The end to end tests of
tests/e2e/test_actor_*.py show the same with real ones.
"""

from __future__ import annotations

from typing import Any

import pytest
from engine_rig import KERNEL, Rig, cpus, error_frame, kinds, only

from jupyter_tasks.engine.actors import EXIT_GRACE, Actor, Call
from jupyter_tasks.engine.events import (
    FALSE_STARTS,
    ActorClosed,
    ActorExits,
    ActorKilled,
    Answer,
    CancelAsked,
    ClientGone,
    Contains,
    Died,
    EndActor,
    Finished,
    Gone,
    GroupClosed,
    GroupMade,
    Held,
    Interrupt,
    Kill,
    Put,
    Recall,
    Released,
    Retire,
    Run,
    Submitted,
    TaskSpec,
    Terminate,
    Tick,
    TooMuchMemory,
    WaitBegan,
)
from jupyter_tasks.engine.events import Entry as Object
from jupyter_tasks.engine.groups import Group, GroupState
from jupyter_tasks.engine.scheduler import HISTORY
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind, frame, from_json

OTHER = 5  # another client
METHODS = ("quick", "slow", "stream")


class House(Rig):
    """A rig that has actors."""

    def actor(
        self,
        *,
        concurrency: int = 1,
        asynchronous: bool = False,
        retries: int = 0,
        name: str = "",
        owner: int = KERNEL,
        deps: tuple[int, ...] = (),
        **spec: Any,
    ) -> Actor:
        """One that is submitted."""
        spec.setdefault("demand", ())
        spec.setdefault("max_retries", 0)
        methods = [
            TaskSpec(name=m, kind="call", demand=(), max_retries=retries, streams=m == "stream") for m in METHODS
        ]
        actor = Actor(
            *(next(self._ids), owner, 1, TaskSpec(name="A", kind="actor", **spec), b"call"),
            class_name="A",
            methods=methods,
            concurrency=concurrency,
            asynchronous=asynchronous,
            name=name,
        )
        actor.deps = deps
        assert self.scheduler.actors.take_name(actor)
        self.event(Submitted([actor]))
        return actor

    def born(self, actor: Actor) -> Actor:
        """Its constructor has ended well."""
        self.start(actor)
        assert not actor.ready
        self.finish(actor)
        assert actor.ready
        return actor

    def alive(self, **options: Any) -> Actor:
        """One that takes calls."""
        return self.born(self.actor(**options))

    def call(
        self, actor: Actor, method: str = "slow", *, owner: int = KERNEL, deps: tuple[int, ...] = (), plain: bool = True
    ) -> Call:
        """A call that is submitted."""
        call = Call(next(self._ids), owner, actor, METHODS.index(method), b"call", plain and not deps)
        call.deps = deps
        self.event(Submitted([call]))
        return call

    def calls(self, actor: Actor, count: int, method: str = "slow", owner: int = KERNEL) -> list[Call]:
        return [self.call(actor, method, owner=owner) for _ in range(count)]

    def given(self, actor: Actor) -> list[int]:
        """Calls that its process has, in the order given."""
        assert actor.lease is not None
        return [id for packet in actor.lease.packets for id in packet]

    def lose(self, actor: Actor, running: Call | None = None, *, ours: bool = False) -> None:
        """Its process has ended, and all below it."""
        assert actor.lease is not None
        self.die(actor.lease, running, ours=ours)

    def died(self, call: Call) -> dict[str, Any]:
        """What a call says of its actor's death."""
        record = self.failure(call)
        assert record["type"] == "actor_died"
        return record


@pytest.fixture
def house() -> House:
    return House()


# -- dispatch -----------------------------------------------------------------------------------------------------


def test_an_actor_has_a_place_of_its_own_and_takes_no_cpu(house: House) -> None:
    first, second = house.alive(), house.alive()
    assert first.lease is not second.lease
    assert house.scheduler.available == house.scheduler.total
    task = house.running()
    assert task.lease not in (first.lease, second.lease)


def test_an_actor_with_a_demand_holds_it_for_its_life_and_waits_for_it(house: House) -> None:
    """Also when idle places of tasks have it: they are given up."""
    house.finish(house.running())
    actor = house.alive(demand=cpus(2))
    task = house.submit()
    assert task.lease is None, "the actor has both CPUs"
    house.finish(house.call(actor))
    assert task.lease is None, "... also while it does nothing"
    house.event(ActorKilled(actor.id))
    house.lose(actor, ours=True)
    assert task.lease is not None


def test_calls_wait_for_the_constructor(house: House) -> None:
    actor = house.actor()
    call = house.call(actor)
    assert call.lease is None
    house.born(actor)
    assert call.lease is actor.lease


def test_calls_of_one_caller_begin_in_the_order_of_their_submission(house: House) -> None:
    """Also when the first has to wait for its arguments; another caller's do not wait for that."""
    actor = house.alive()
    dependency = house.running()
    first = house.call(actor, deps=(dependency.id,))
    second = house.call(actor)
    other = house.call(actor, owner=OTHER)
    assert house.given(actor) == [other.id]
    house.finish(dependency)
    house.finish(other)
    assert house.given(actor)[0] == first.id
    house.finish(first)
    assert second.id in house.given(actor)


def test_calls_are_given_in_packets_once_the_method_is_known_to_be_quick(house: House) -> None:
    actor = house.alive()
    house.finish(house.call(actor, "quick"))  # 16 us
    first, _ = house.calls(actor, 2)  # one runs, one was given ahead of time
    quick = house.calls(actor, 40, "quick")
    slow = house.call(actor)
    house.finish(first)
    assert house.ran()[-1] == [call.id for call in quick[:32]]
    assert slow.lease is None


def test_a_packet_holds_calls_of_one_caller_up_to_an_older_call_of_another(house: House) -> None:
    actor = house.actor()
    house.start(actor)
    actor.durations[0] = 4
    mine = house.calls(actor, 3, "quick")
    theirs = house.calls(actor, 2, "quick", owner=OTHER)
    later = house.calls(actor, 3, "quick")
    house.finish(actor)
    packets = [[task.id for task in run.tasks] for run in house.told(Run)][1:]
    assert packets == [[call.id for call in mine], [call.id for call in theirs]]
    assert all(call.lease is None for call in later)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_as_many_calls_run_as_the_actor_allows(house: House, asynchronous: bool) -> None:
    actor = house.alive(concurrency=3, asynchronous=asynchronous)
    calls = house.calls(actor, 5)
    assert house.given(actor) == [call.id for call in calls[:3]]
    house.finish(calls[1])
    assert house.given(actor) == [calls[0].id, calls[2].id, calls[3].id]


def test_with_several_at_a_time_a_call_that_waits_for_its_arguments_holds_up_no_other(house: House) -> None:
    actor = house.alive(concurrency=2)
    dependency = house.running()
    first, second = house.call(actor, deps=(dependency.id,)), house.call(actor)
    assert house.given(actor) == [second.id]
    house.finish(dependency)
    assert house.given(actor) == [second.id, first.id]


def test_a_call_whose_argument_failed_never_runs_and_others_go_on(house: House) -> None:
    actor = house.alive()
    dependency = house.running()
    first, second = house.call(actor, deps=(dependency.id,)), house.call(actor)
    house.fail(dependency)
    assert first.state is State.FAILED
    assert house.given(actor) == [second.id]


def test_a_call_that_blocks_keeps_the_others_waiting_and_gives_back_what_the_actor_holds(house: House) -> None:
    actor = house.alive(demand=cpus(2))
    first, second = house.calls(actor, 2)
    task = house.submit()
    assert task.lease is None
    house.event(WaitBegan(actor.lease))  # type: ignore[arg-type]
    assert task.lease is not None, "nested tasks must not deadlock"
    assert house.given(actor) == [first.id, second.id]


# -- cancel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_running_call_is_asked_and_nothing_more(house: House, force: bool) -> None:
    """The state of the actor must not be cut in two: no interrupt by force, no kill, no deadline."""
    actor = house.alive()
    call = house.call(actor)
    house.start(call)
    out = house.cancel(call, force=force, grace=0.0)
    assert only(out, Interrupt).task is call  # the backend of an actor takes it as a flag
    house.now += 100
    house.event(Tick())
    assert not house.told(Kill)
    assert not house.told(Terminate)
    assert call.state is State.CANCELLING
    house.finish(call)
    assert call.state is State.CANCELLED, "whatever it returns"
    record = house.failure(call)
    assert (record["type"], record["rung"], record["force"]) == ("cancelled", "ask", False)
    assert actor.state is State.RUNNING


@pytest.mark.parametrize("flags", [0, Flag.RETRYABLE])
def test_a_call_that_was_asked_and_raises_is_cancelled_and_the_actor_goes_on(house: House, flags: int) -> None:
    """Also when it raises what it would be run again for."""
    actor = house.alive(retries=3)
    call = house.call(actor)
    house.start(call)
    house.cancel(call)
    assert not [i for i in house.finish(call, Kind.ERROR, flags=flags) if isinstance(i, Retire)]
    assert call.state is State.CANCELLED
    assert house.given(actor) == []
    house.finish(house.call(actor))


def test_a_coroutine_that_returns_a_value_all_the_same_wins(house: House) -> None:
    actor = house.alive(concurrency=10, asynchronous=True)
    first, second = house.calls(actor, 2)
    house.start(first)
    house.start(second)
    house.cancel(first)
    house.cancel(second)
    house.finish(first)
    house.stop(second)
    assert (first.state, second.state) == (State.COMPLETED, State.CANCELLED)
    assert house.failure(second)["rung"] == "interrupt"


def test_every_cancel_of_a_coroutine_is_delivered(house: House) -> None:
    """B7."""
    actor = house.alive(concurrency=10, asynchronous=True)
    call = house.call(actor)
    house.start(call)
    for _ in range(3):
        assert only(house.cancel(call), Interrupt).task is call


def test_a_call_in_the_box_never_begins_and_its_end_is_told_at_once(house: House) -> None:
    """B3, B4."""
    actor = house.actor()
    first, second = house.calls(actor, 2)
    house.cancel(first)
    assert house.failure(first)["rung"] == "pending"
    house.born(actor)
    assert house.given(actor) == [second.id]


def test_a_call_that_was_given_is_taken_back_and_the_order_of_the_others_stays(house: House) -> None:
    actor = house.alive()
    house.finish(house.call(actor, "quick"))
    slow = house.call(actor, "slow")
    a, b, c = house.calls(actor, 3, "quick")
    assert house.given(actor)[0] == slow.id
    out = house.cancel(b) if b.lease is not None else []
    if b.lease is not None:
        assert only(out, Recall).id == b.id
        taken = [call for call in (a, b, c) if call.lease is not None]
        house.recalled(actor.lease, *taken)  # type: ignore[arg-type]
    else:
        house.cancel(b)
    assert b.state is State.CANCELLED
    house.finish(slow)
    order = house.given(actor)
    house.finish(a)
    assert [*order, *house.given(actor)][:1] == [a.id]
    assert c.id in [*order, *house.given(actor)]
    assert b.id not in [*order, *house.given(actor)]


def test_a_cancel_of_the_parent_reaches_calls_as_a_flag(house: House) -> None:
    """docs/semantics.md, Cancel: `force` is passed to child tasks, and is a flag for calls of actors."""
    actor = house.alive()
    parent = house.running()
    call = Call(next(house._ids), OTHER, actor, 1, b"call", False)
    call.parent = parent.id
    house.event(Submitted([call]))
    house.start(call)
    out = house.cancel(parent, force=True)
    assert [i.task for i in out if isinstance(i, Interrupt)] == [call]
    assert [i.task for i in out if isinstance(i, Kill)] == [parent]
    assert actor.state is State.RUNNING


def test_an_actor_is_not_cancelled(house: House) -> None:
    actor = house.alive()
    assert house.event(CancelAsked(actor.id)) == []
    assert actor.state is State.RUNNING


def test_a_call_that_runs_out_of_time_is_asked_and_fails_when_it_ends(house: House) -> None:
    actor = house.alive()
    spec = TaskSpec(name="A.slow", kind="call", demand=(), timeout=1.0)
    call = Call(next(house._ids), KERNEL, actor, 1, b"call", False, spec)
    house.event(Submitted([call]))
    house.start(call)
    house.now += 1
    assert only(house.event(Tick()), Interrupt).task is call
    house.finish(call)
    assert call.state is State.FAILED
    assert house.failure(call)["type"] == "timeout"


# -- kill ---------------------------------------------------------------------------------------------------------


def test_kill_fails_what_waits_at_once_and_the_rest_when_the_tree_is_gone(house: House) -> None:
    """B5: nothing that comes later succeeds. Whoever killed hears when nothing is left."""
    actor = house.alive()
    running, *waiting = house.calls(actor, 4)
    house.start(running)
    out = house.event(ActorKilled(actor.id, client=KERNEL, serial=7))
    assert only(out, Retire).lease is actor.lease
    assert not house.told(Answer)
    in_the_box = [call for call in waiting if call.lease is None]
    assert in_the_box
    assert all(call.state is State.FAILED for call in in_the_box)
    late = house.call(actor)
    assert house.died(late)["why"] == "it was killed"
    house.lose(actor, running, ours=True)
    assert running.state is State.CRASHED
    assert all(call.state is State.FAILED for call in waiting)
    assert all(house.died(call) for call in (running, *waiting))
    assert house.told(Answer) == [Answer(KERNEL, 7, True)]
    assert actor.state is State.CANCELLED
    assert house.died(house.call(actor))


def test_a_result_that_was_on_its_way_counts(house: House) -> None:
    actor = house.alive()
    call = house.call(actor)
    house.start(call)
    house.event(ActorKilled(actor.id))
    house.finish(call)
    house.lose(actor, ours=True)
    assert call.state is State.COMPLETED


def test_kill_before_it_is_made(house: House) -> None:
    """It waits for a CPU, or for an argument."""
    house.running(demand=cpus(2))
    actor = house.actor(demand=cpus(1))
    call = house.call(actor)
    out = house.event(ActorKilled(actor.id, client=KERNEL, serial=1))
    assert Answer(KERNEL, 1, True) in out
    assert actor.state is State.CANCELLED
    assert house.died(call)


def test_kill_twice_and_of_one_that_is_over_answers(house: House) -> None:
    actor = house.alive()
    house.event(ActorKilled(actor.id, client=KERNEL, serial=1))
    house.event(ActorKilled(actor.id, client=OTHER, serial=2))
    assert len(house.told(Retire)) == 1
    house.lose(actor, ours=True)
    assert house.event(ActorKilled(actor.id, client=KERNEL, serial=3)) == [Answer(KERNEL, 3, True)]
    assert {answer.serial for answer in house.told(Answer)} == {1, 2, 3}


def test_kill_takes_what_the_actor_has_submitted(house: House) -> None:
    """Also tasks of calls that are over, and of a thread of the actor's own; not those of others."""
    actor = house.alive()
    call = house.call(actor)
    child = house.running(parent=call.id, owner=OTHER)
    house.finish(call)
    own = house.submit(parent=actor.id, owner=OTHER, demand=())
    house.start(own)
    stranger = house.running(demand=())
    out = house.event(ActorKilled(actor.id))
    assert {i.task for i in out if isinstance(i, Kill)} == {child, own}
    assert stranger.state is State.RUNNING


# -- restarts -----------------------------------------------------------------------------------------------------


def test_a_crash_makes_the_actor_anew_as_often_as_it_says(house: House) -> None:
    actor = house.alive(max_retries=1)
    call = house.call(actor)
    house.start(call)
    house.lose(actor, call)
    assert (actor.state, actor.attempt) == (State.PENDING, 1)
    assert house.failure(call)["type"] == "actor_unavailable"
    later = house.call(actor)
    assert later.state is State.PENDING, "it waits for the new instance"
    house.born(actor)
    assert later.lease is actor.lease
    house.lose(actor, later)
    assert actor.state is State.CRASHED
    assert "max_restarts" in house.died(later)["why"]


def test_the_call_that_ran_and_those_that_waited_are_unavailable_or_run_again(house: House) -> None:
    once = house.alive(max_retries=5)
    running, *waiting = house.calls(once, 4)
    house.start(running)
    house.lose(once, running)
    records = [house.failure(call) for call in (running, *waiting)]
    assert [record["began"] for record in records] == [True, False, False, False]
    assert running.state is State.CRASHED
    assert {call.state for call in waiting} == {State.FAILED}

    again = house.alive(max_retries=5, retries=1)
    running, *waiting = house.calls(again, 4)
    house.start(running)
    house.lose(again, running)
    house.born(again)
    assert house.given(again)[:1] == [running.id], "in the order of before"
    assert (running.attempt, waiting[0].attempt) == (1, 0)
    house.start(running)
    house.lose(again, running)
    assert house.failure(running)["type"] == "actor_unavailable", "that was its second attempt"
    assert waiting[0].state is State.PENDING


def test_kill_with_a_restart(house: House) -> None:
    actor = house.alive(max_retries=1)
    call = house.call(actor)
    house.start(call)
    house.event(ActorKilled(actor.id, no_restart=False, client=KERNEL, serial=1))
    house.lose(actor, call, ours=True)
    assert house.told(Answer) == [Answer(KERNEL, 1, True)]
    assert house.failure(call)["type"] == "actor_unavailable"
    house.born(actor)
    assert actor.attempt == 1
    house.event(ActorKilled(actor.id, no_restart=False))
    house.lose(actor, ours=True)
    assert actor.state is State.CANCELLED, "none is left"


def test_processes_that_die_before_the_constructor_begins_are_not_counted_but_not_endless(house: House) -> None:
    actor = house.actor()
    call = house.call(actor)
    for _ in range(FALSE_STARTS - 1):
        house.lose(actor)
        assert (actor.state, actor.attempt) == (State.PENDING, 0)
    house.lose(actor)
    assert actor.state is State.CRASHED
    assert house.died(call)


def test_what_its_constructor_was_called_with_lives_as_long_as_it_may_be_needed(house: House) -> None:
    for restarts in (0, 1):
        value = Object(next(house._ids), KERNEL)
        value.kind, value.frame = Kind.RESULT, frame(Kind.RESULT, value.id, b"v")
        house.event(Put(value))
        actor = house.alive(max_retries=restarts, deps=(value.id,))
        house.event(Released(KERNEL, [value.id]))
        assert (value.id in house.scheduler.objects) is bool(restarts)
        house.event(ActorKilled(actor.id))
        house.lose(actor, ours=True)
        assert value.id not in house.scheduler.objects


# -- ends ---------------------------------------------------------------------------------------------------------


def test_a_constructor_that_fails_is_what_every_call_raises(house: House) -> None:
    actor = house.actor(max_retries=3)
    call = house.call(actor)
    house.start(actor)
    out = house.fail(actor)
    assert only(out, Retire).lease is actor.lease
    house.lose(actor, ours=True)
    assert (actor.state, call.state) == (State.FAILED, State.FAILED), "and it is not made anew"
    late = house.call(actor)
    for each in (call, late):
        assert house.outcomes()[each.id] == [(Kind.ERROR, error_frame(actor.id)[-4:])]


def test_an_actor_whose_argument_failed(house: House) -> None:
    dependency = house.running()
    actor = house.actor(deps=(dependency.id,))
    call = house.call(actor)
    house.fail(dependency)
    assert actor.state is State.FAILED
    for each in (call, house.call(actor)):
        assert house.outcomes()[each.id] == [(Kind.ERROR, b"boom")], "the root cause"


def test_the_last_handle_gone_ends_it_when_its_calls_are_done(house: House) -> None:
    actor = house.alive()
    first, second, third = house.calls(actor, 3)
    house.event(Released(KERNEL, [actor.id]))
    for call in (first, second):
        house.finish(call)
        assert not house.told(EndActor)
    assert only(house.finish(third), EndActor).lease is actor.lease
    house.event(ActorExits(actor.lease, True))  # type: ignore[arg-type]
    house.lose(actor)
    assert actor.state is State.COMPLETED
    assert actor.id not in house.scheduler.objects


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_call_that_waits_for_its_arguments_is_done_before_the_actor_ends(house: House, concurrency: int) -> None:
    actor = house.alive(concurrency=concurrency)
    dependency = house.running()
    call = house.call(actor, deps=(dependency.id,))
    house.event(Released(KERNEL, [actor.id]))
    assert not house.told(EndActor)
    house.finish(dependency)
    assert not house.told(EndActor)
    house.finish(call)
    assert call.state is State.COMPLETED
    assert only(house.told(EndActor), EndActor).lease is actor.lease


@pytest.mark.parametrize("concurrency", [1, 3])
def test_kill_fails_at_once_what_waits_for_its_arguments(house: House, concurrency: int) -> None:
    actor = house.alive(concurrency=concurrency)
    dependency = house.running()
    call = house.call(actor, deps=(dependency.id,))
    house.event(ActorKilled(actor.id))
    assert house.died(call)
    assert dependency.state is State.RUNNING


def test_an_actor_nobody_ever_held_is_made_and_ends(house: House) -> None:
    actor = house.actor()
    house.event(Released(KERNEL, [actor.id]))
    house.start(actor)
    assert only(house.finish(actor), EndActor).lease is actor.lease


def test_handles_elsewhere_keep_it(house: House) -> None:
    """Of another client, in the arguments of a task, and inside a value that lives."""
    actor = house.alive()
    house.event(Held(OTHER, [actor.id]))
    task = house.running(pins=(actor.id,))
    value = Object(next(house._ids), KERNEL)
    value.kind, value.frame = Kind.RESULT, frame(Kind.RESULT, value.id, b"v")
    house.event(Put(value))
    house.event(Contains(value.id, [actor.id]))
    house.event(Released(KERNEL, [actor.id]))
    house.event(Released(OTHER, [actor.id]))
    house.finish(task)
    assert not house.told(EndActor)
    house.event(Released(KERNEL, [value.id]))
    assert only(house.told(EndActor), EndActor).lease is actor.lease


def test_one_that_does_not_leave_is_ended(house: House) -> None:
    actor = house.alive()
    house.event(Released(KERNEL, [actor.id]))
    assert house.scheduler.next_timer() == house.now + EXIT_GRACE
    house.now += EXIT_GRACE
    assert only(house.event(Tick()), Retire).lease is actor.lease
    house.lose(actor, ours=True)
    assert actor.state is State.COMPLETED
    assert house.scheduler.next_timer() is None


def test_terminate_lets_it_do_what_it_has_and_refuses_what_comes(house: House) -> None:
    actor = house.alive()
    first, second = house.calls(actor, 2)
    house.event(ActorClosed(actor.id))
    assert "terminate" in house.died(house.call(actor))["why"]
    house.finish(first)
    assert only(house.finish(second), EndActor).lease is actor.lease
    house.lose(actor)
    assert (first.state, second.state, actor.state) == (State.COMPLETED, State.COMPLETED, State.COMPLETED)


def test_one_that_leaves_by_itself_is_not_made_anew(house: House) -> None:
    """What was given behind that call never began; what ran beside it ends first."""
    actor = house.alive(max_retries=-1, retries=-1, concurrency=2)
    leaving, beside, waiting = house.calls(actor, 3)
    house.event(ActorExits(actor.lease, False))  # type: ignore[arg-type]
    assert house.died(waiting)
    assert house.died(house.call(actor))
    assert house.scheduler.next_timer() is None, "no deadline for calls that run"
    house.finish(beside)
    house.event(ActorExits(actor.lease, True))  # type: ignore[arg-type]
    assert house.scheduler.next_timer() is not None
    house.lose(actor, leaving)
    assert house.died(leaving)
    assert (actor.state, beside.state) == (State.COMPLETED, State.COMPLETED)


def test_over_its_memory_limit_it_ends_and_is_not_made_anew(house: House) -> None:
    actor = house.alive(max_retries=3, memory=10)
    call = house.call(actor)
    house.start(call)
    out = house.event(TooMuchMemory(actor.id, 11))
    assert only(out, Retire).lease is actor.lease
    house.lose(actor, call, ours=True)
    assert actor.state is State.CRASHED
    assert from_json(actor.frame[24:])["type"] == "memory" if actor.frame else True
    assert "limit" in house.died(call)["why"]


def test_its_client_gone_its_handles_are_dropped(house: House) -> None:
    house.alive(owner=OTHER)
    house.event(ClientGone(OTHER))
    assert house.told(EndActor)


def test_its_process_dies_between_two_calls(house: House) -> None:
    actor = house.alive()
    assert actor.lease is not None
    lease = actor.lease
    house.event(Died(lease, 0, None, "SIGSEGV", False))
    call = house.call(actor)
    assert call.lease is None, "not to a dead place"
    house.event(Gone(lease))
    assert "SIGSEGV" in house.died(call)["why"]


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "crash", "leaves", "constructor", "pending"])
def test_a_name_is_free_as_soon_as_the_actor_is_dead_however_it_died(house: House, how: str) -> None:
    """B6: while handles live on."""
    find = house.scheduler.actors.find
    if how == "pending":
        house.running(demand=cpus(2))
        actor = house.actor(name="n", demand=cpus(1))
        house.event(ActorKilled(actor.id))
    elif how == "constructor":
        actor = house.actor(name="n")
        house.start(actor)
        house.fail(actor)
        house.lose(actor, ours=True)
    else:
        actor = house.alive(name="n")
        assert find("n", "") is actor
        if how == "kill":
            house.event(ActorKilled(actor.id))
        elif how == "leaves":
            house.event(ActorExits(actor.lease, True))  # type: ignore[arg-type]
        house.lose(actor)
    assert actor.id in house.scheduler.objects
    assert find("n", "") is None
    new = house.actor(name="n")
    assert find("n", "") is new


def test_a_name_is_taken_while_the_actor_lives_and_while_it_is_made_anew(house: House) -> None:
    actor = house.alive(name="n", max_retries=1)
    house.lose(actor)
    second = Actor(999, KERNEL, 1, TaskSpec(), b"", class_name="A", methods=(), name="n")
    assert not house.scheduler.actors.take_name(second)
    other = Actor(999, KERNEL, 1, TaskSpec(), b"", class_name="A", methods=(), name="n", namespace="elsewhere")
    assert house.scheduler.actors.take_name(other)


# -- groups and generators ----------------------------------------------------------------------------------------


def test_calls_are_members_of_groups_and_actors_are_not(house: House) -> None:
    group = Group(next(house._ids), KERNEL, "g")
    house.event(GroupMade(group))
    actor = Actor(
        *(next(house._ids), KERNEL, 1, TaskSpec(name="A", kind="actor", demand=()), b"call"),
        class_name="A",
        methods=[TaskSpec(name="m", kind="call", demand=())],
    )
    actor.group_id = group.id
    house.event(Submitted([actor]))
    house.born(actor)
    call = Call(next(house._ids), KERNEL, actor, 0, b"call", False)
    call.group_id = group.id
    house.event(Submitted([call]))
    house.event(GroupClosed(group.id))
    assert list(group.live) == [call.id]
    house.start(call)
    out = house.cancel(group.id)
    assert only(out, Interrupt).task is call
    house.now += 1000
    assert "Kill" not in kinds(house.event(Tick())), "a group's deadline does not reach an actor"
    house.finish(call)
    assert group.state is GroupState.CANCELLED
    assert actor.state is State.RUNNING


def test_a_call_that_is_run_again_after_an_error_comes_first(house: House) -> None:
    actor = house.alive(retries=2)
    first, second = house.calls(actor, 2)
    third = house.call(actor)
    house.finish(first, Kind.ERROR, flags=Flag.RETRYABLE)
    assert first.attempt == 1
    house.finish(second)
    assert house.given(actor)[0] == first.id
    assert actor.attempt == 0
    assert third.state is State.PENDING


def test_many_calls_do_not_push_tasks_out_of_the_history(house: House) -> None:
    actor = house.alive()
    task = house.running()
    house.finish(task)
    for _ in range(HISTORY + 1):
        house.finish(house.call(actor))
    assert house.scheduler.find(task.id) is task
    assert len(house.scheduler.tasks()) == HISTORY + 2
    assert house.scheduler.clear() == HISTORY + 1
    assert house.scheduler.tasks() == [actor]


def test_ends_of_further_values_of_a_call(house: House) -> None:
    actor = house.alive()
    spec = TaskSpec(name="A.slow", kind="call", demand=(), num_returns=2)
    call = Call(next(house._ids), KERNEL, actor, 1, b"call", False, spec)
    next(house._ids)
    house.event(Submitted([call]))
    house.start(call)
    house.cancel(call)
    assert call.lease is not None
    ends = [house.end(call)._replace(id=call.id + 1, frame=frame(Kind.RESULT, call.id + 1, b"v")), house.end(call)]
    house.event(Finished(call.lease, ends))
    assert call.state is State.CANCELLED
    assert house.failure(call.id + 1)["type"] == "cancelled"
