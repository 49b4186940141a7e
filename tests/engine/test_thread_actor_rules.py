"""Actors in threads, as lists of events. Role: what the rules make of an actor that cannot be ended by force.

The end to end tests of tests/e2e/test_thread_actors.py show the same with real threads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from engine_rig import KERNEL, kinds, only
from test_actor_rules import OTHER, House

from jupyter_tasks.engine.actors import HOST_GONE, Actor
from jupyter_tasks.engine.events import ActorExits, ActorKilled, Answer, ClientGone, Gone, Kill, Retire, Terminate
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import Flag, Kind


class ThreadHouse(House):
    """A rig whose actors live in threads."""

    def actor(self, **options: Any) -> Actor:
        actor = super().actor(thread=True, **options)
        actor.methods = [dataclasses.replace(spec, thread=True) for spec in actor.methods]
        return actor

    def kill(self, actor: Actor, **how: Any) -> list[Any]:
        return self.event(ActorKilled(actor.id, client=KERNEL, serial=7, **how))

    def gone(self, actor: Actor) -> None:
        """Its host says that nothing of it is left."""
        assert actor.lease is not None
        self.event(Gone(actor.lease))


@pytest.fixture
def rig() -> ThreadHouse:
    return ThreadHouse()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_kill_is_answered_at_once_and_ends_what_waits(rig: ThreadHouse, concurrency: int) -> None:
    """What runs goes on, and the actor with it: cancelling until its host says that nothing is left."""
    actor = rig.alive(concurrency=concurrency)
    running, *waiting = rig.calls(actor, 4)
    rig.start(running)
    out = rig.kill(actor)
    assert only(out, Retire).lease is actor.lease
    assert only(out, Answer).serial == 7
    assert kinds(out).index("Retire") < kinds(out).index("Answer"), "its host hears of it first"
    assert [i for i in rig.story if isinstance(i, (Kill, Terminate))] == []
    for call in waiting:
        if call.lease is not None:  # it was given: its host passes it over
            rig.stop(call, skipped=True)
        assert rig.died(call)["why"] == "it was killed"
    assert (actor.state, running.state) == (State.CANCELLING, State.RUNNING)
    assert actor.life == "ending"
    rig.stop(running)
    assert rig.died(running)["why"] == "it was killed"
    assert running.state is State.CRASHED, "it had begun"
    rig.gone(actor)
    assert actor.state is State.CANCELLED
    assert rig.failure(actor)["rung"] == "ask"


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ERROR, Kind.INTERRUPTED])
def test_whatever_a_call_of_a_killed_one_returns_it_is_refused(rig: ThreadHouse, kind: int) -> None:
    """Also a further value of it, also if it was cancelled before; descriptors are closed."""
    actor = rig.alive(concurrency=2)
    first, second = rig.calls(actor, 2)
    for call in (first, second):
        rig.start(call)
    rig.cancel(second)
    rig.kill(actor)
    for call in (first, second):
        fd = rig.fd()
        rig.finish(call, kind, fds=(fd,) if kind == Kind.RESULT else ())
        assert rig.died(call)["why"] == "it was killed"
        assert rig.dropped()[-1:] == ([fd] if kind == Kind.RESULT else [])


def test_a_call_that_was_cancelled_before_it_began_stays_so(rig: ThreadHouse) -> None:
    actor = rig.alive()
    call = rig.call(actor)
    rig.cancel(call)
    rig.kill(actor)
    rig.stop(call, skipped=True)
    assert rig.failure(call)["rung"] == "pending"


def test_one_that_is_killed_while_it_is_made(rig: ThreadHouse) -> None:
    """Its host begins the constructor, or does not; its calls have ended anyway."""
    for begins in (True, False):
        actor = rig.actor()
        call = rig.call(actor)
        rig.kill(actor)
        assert rig.died(call)["why"] == "it was killed"
        if begins:
            rig.start(actor)
            assert actor.state is State.CANCELLING
        rig.gone(actor)
        assert actor.state is State.CANCELLED


def test_no_restart_means_nothing_to_a_thread(rig: ThreadHouse) -> None:
    actor = rig.alive()
    rig.kill(actor, no_restart=False)
    rig.gone(actor)
    assert actor.state is State.CANCELLED


def test_when_its_host_ends_it_has_died(rig: ThreadHouse) -> None:
    """With calls of all clients; also one that was not begun, and one that was given to nobody. Of others' nothing."""
    alive = rig.alive(owner=OTHER)
    mine, theirs = rig.call(alive), rig.call(alive, owner=OTHER)
    rig.start(mine)
    unbegun = rig.actor(owner=OTHER)
    needs = rig.submit()
    waits = rig.actor(owner=OTHER, deps=(needs.id,))
    calls = [rig.call(unbegun), rig.call(waits)]
    stays = rig.alive()
    for actor in (alive, unbegun):
        assert actor.lease is not None
        rig.die(actor.lease)
    rig.event(ClientGone(OTHER))
    for call in (mine, *calls):
        assert rig.died(call)["why"] == HOST_GONE
    assert theirs.state is State.FAILED
    assert {actor.state for actor in (alive, unbegun, waits)} == {State.CRASHED}
    assert stays.ready
    assert rig.scheduler.queued == 0


def test_one_that_leaves_fails_what_was_given_and_not_begun(rig: ThreadHouse) -> None:
    """What runs beside it ends first, and well."""
    actor = rig.alive(concurrency=3)
    leaves, runs, unbegun, waits = rig.calls(actor, 4)
    rig.start(leaves)
    rig.start(runs)
    assert actor.lease is not None
    rig.event(ActorExits(actor.lease, False, "exit_actor()"))
    rig.stop(unbegun, skipped=True)
    for call in (unbegun, waits):
        assert rig.died(call)["why"] == "it has left, by exit_actor()"
        assert call.state is State.FAILED, "it never began"
    rig.finish(runs)
    assert runs.state is State.COMPLETED
    rig.gone(actor)
    assert rig.died(leaves)["why"] == "it has left, by exit_actor()"
    assert actor.state is State.COMPLETED


def test_a_call_is_given_again_only_to_its_own_actor(rig: ThreadHouse) -> None:
    """A further attempt for an error; the actor is the same."""
    actor = rig.alive(retries=1)
    call = rig.call(actor)
    rig.start(call)
    rig.finish(call, Kind.ERROR, flags=Flag.RETRYABLE)
    assert call.attempt == 1
    assert rig.given(actor) == [call.id]
