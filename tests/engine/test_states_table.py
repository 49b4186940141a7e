"""The table of states, as data: every row is reached by a walk over the rules, and a missing row raises.

Role: contract of engine/states. `test_every_row_is_reached_by_the_rules` plays each row with the real scheduler, so a
row that nothing needs any more, or a rule that needs a new one, shows here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import KERNEL, Rig

from jupyter_tasks.engine import scheduler
from jupyter_tasks.engine.actors import Actor, Call
from jupyter_tasks.engine.events import ActorKilled, IdleAgain, Submitted, TaskSpec, Tick, TooMuchMemory
from jupyter_tasks.engine.states import FINAL, TRANSITIONS, State, Step, next_state
from jupyter_tasks.wire.frames import Flag, Kind


def started(rig: Rig) -> None:
    rig.running()


def pending_asked(rig: Rig) -> None:
    rig.submit(4)  # two leases, each with one task and one ahead of time
    rig.cancel(rig.submit())


def upstream_failed(rig: Rig) -> None:
    first = rig.submit()
    rig.submit(deps=[first.id])
    rig.fail(first)


def upstream_cancelled(rig: Rig) -> None:
    first = rig.running()
    rig.submit(deps=[first.id])
    rig.cancel(first)
    rig.stop(first)


def recalled(rig: Rig) -> None:
    tasks = rig.submit(4, fn=9)
    rig.recalled(tasks[3].lease, tasks[3])


def pending_returned(rig: Rig) -> None:
    rig.finish(rig.submit())


def pending_raised(rig: Rig) -> None:
    rig.fail(rig.submit())


def pending_stopped(rig: Rig) -> None:
    rig.stop(rig.submit())


def pending_died(rig: Rig) -> None:
    task = rig.submit(max_retries=0)
    rig.die(task.lease, task)


def pending_retried(rig: Rig) -> None:
    task = rig.submit(max_retries=1)
    rig.die(task.lease, task)


def running_returned(rig: Rig) -> None:
    rig.finish(rig.running())


def running_raised(rig: Rig) -> None:
    rig.fail(rig.running())


def running_stopped(rig: Rig) -> None:
    rig.stop(rig.running())


def running_died(rig: Rig) -> None:
    task = rig.running(max_retries=0)
    rig.die(task.lease, task)


def running_retried(rig: Rig) -> None:
    task = rig.running(max_retries=1)
    rig.die(task.lease, task)


def asked_twice(rig: Rig) -> None:
    task = rig.running()
    rig.cancel(task)
    rig.cancel(task)


def cancelling_returned(rig: Rig) -> None:
    task = rig.running()
    rig.cancel(task)
    rig.finish(task)


def cancelling_raised(rig: Rig) -> None:
    task = rig.running()
    rig.cancel(task)
    rig.fail(task)


def cancelling_killed(rig: Rig) -> None:
    task = rig.running()
    rig.cancel(task, force=True)
    rig.die(task.lease, task, ours=True)


def timed_out(rig: Rig) -> None:
    task = rig.running(timeout=1.0)
    rig.now += 1.0
    rig.event(Tick())
    rig.stop(task)


def cancelling_died(rig: Rig) -> None:
    task = rig.running(memory=10)
    rig.event(TooMuchMemory(task.id, 11))
    rig.die(task.lease, task, ours=True)


def _an_actor_and_its_call() -> tuple[Rig, Actor, Call]:
    rig = Rig()
    methods = [TaskSpec(kind="call", demand=(), max_retries=0)]
    actor = Actor(
        901, KERNEL, 1, TaskSpec(kind="actor", demand=(), max_retries=0), b"", class_name="A", methods=methods
    )
    rig.event(Submitted([actor]))
    rig.start(actor)
    rig.finish(actor)
    call = Call(902, KERNEL, actor, 0, b"", True)
    rig.event(Submitted([call]))
    return rig, actor, call


def pending_without_actor(_: Rig) -> None:
    rig, actor, _call = _an_actor_and_its_call()
    waiting = Call(903, KERNEL, actor, 0, b"", True)
    waiting.deps = (rig.submit().id,)
    rig.event(Submitted([waiting]))
    rig.event(ActorKilled(actor.id))


def running_without_actor(_: Rig) -> None:
    rig, actor, call = _an_actor_and_its_call()
    assert actor.lease is not None
    rig.start(call)
    rig.die(actor.lease, call)


def cancelling_without_actor(_: Rig) -> None:
    rig, actor, call = _an_actor_and_its_call()
    assert actor.lease is not None
    rig.start(call)
    rig.cancel(call)
    rig.die(actor.lease, call)


WALKS: dict[tuple[State, Step], Callable[[Rig], None]] = {
    (State.PENDING, Step.STARTED): started,
    (State.PENDING, Step.ASKED): pending_asked,
    (State.PENDING, Step.UPSTREAM_FAILED): upstream_failed,
    (State.PENDING, Step.UPSTREAM_CANCELLED): upstream_cancelled,
    (State.PENDING, Step.RECALLED): recalled,
    (State.PENDING, Step.ACTOR_GONE): pending_without_actor,
    (State.RUNNING, Step.ACTOR_GONE): running_without_actor,
    (State.CANCELLING, Step.ACTOR_GONE): cancelling_without_actor,
    (State.PENDING, Step.RETURNED): pending_returned,
    (State.PENDING, Step.RAISED): pending_raised,
    (State.PENDING, Step.STOPPED): pending_stopped,
    (State.PENDING, Step.DIED): pending_died,
    (State.PENDING, Step.RETRIED): pending_retried,
    (State.RUNNING, Step.RETURNED): running_returned,
    (State.RUNNING, Step.RAISED): running_raised,
    (State.RUNNING, Step.STOPPED): running_stopped,
    (State.RUNNING, Step.DIED): running_died,
    (State.RUNNING, Step.RETRIED): running_retried,
    (State.RUNNING, Step.ASKED): asked_twice,
    (State.CANCELLING, Step.ASKED): asked_twice,
    (State.CANCELLING, Step.RETURNED): cancelling_returned,
    (State.CANCELLING, Step.RAISED): cancelling_raised,
    (State.CANCELLING, Step.STOPPED): upstream_cancelled,
    (State.CANCELLING, Step.KILLED): cancelling_killed,
    (State.CANCELLING, Step.TIMED_OUT): timed_out,
    (State.CANCELLING, Step.DIED): cancelling_died,
}


def test_each_row_has_a_walk() -> None:
    assert WALKS.keys() == TRANSITIONS.keys()


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row[0].value}-{row[1].value}")
def test_every_row_is_reached_by_the_rules(row: tuple[State, Step], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[tuple[State, Step], State] = {}

    def watched(state: State, step: Step) -> State:
        taken[state, step] = next_state(state, step)
        return taken[state, step]

    monkeypatch.setattr(scheduler, "next_state", watched)
    WALKS[row](Rig())
    assert taken.get(row) is TRANSITIONS[row]


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("step", Step)
def test_nothing_leads_out_of_a_final_state(state: State, step: Step) -> None:
    with pytest.raises(LookupError, match=f"A task that is {state.value} cannot be {step.value}"):
        next_state(state, step)


def test_a_missing_row_says_what_was_tried() -> None:
    with pytest.raises(LookupError, match="A task that is pending cannot be killed"):
        next_state(State.PENDING, Step.KILLED)


def test_only_evidence_leads_to_cancelled() -> None:
    """CANCELLED is entered when the code has stopped, or never began; never by the request alone while it runs."""
    ways = {row for row, after in TRANSITIONS.items() if after is State.CANCELLED}
    assert all(state is State.PENDING or step in (Step.STOPPED, Step.KILLED) for state, step in ways)


def test_a_final_task_stays_what_it_is_whatever_comes_late() -> None:
    rig = Rig()
    task = rig.running()
    lease = task.lease
    rig.finish(task)
    rig.cancel(task)
    rig.cancel(task, force=True)
    rig.start(task)
    rig.event(TooMuchMemory(task.id, 1))
    rig.finish(task, Kind.ERROR, lease=lease)
    rig.finish(task, Kind.INTERRUPTED, lease=lease, flags=Flag.TAINTED)
    rig.event(IdleAgain(lease))
    rig.die(lease)
    assert task.state is State.COMPLETED
    assert [kind for kind, _ in rig.outcomes()[task.id]] == [Kind.RESULT]
