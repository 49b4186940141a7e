"""End to end, many at once: cancels at random moments of calls of actors in each kind, and the state afterwards.

Role: what only shows in numbers. The actor's own list of what began is the witness: a call that was said never to have
begun is not in it, a call with a value is in it exactly once, and a sync actor's stands in the order of submission.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("session")

NET = 30.0


class Ledger:
    """Notes the number of each call when it begins and when it comes to its last line."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[int] = []
        self.flagged: list[int] = []

    def call(self, i: int, seconds: float) -> int:
        self.began.append(i)
        if seconds:
            time.sleep(seconds)
        if jt.get_runtime_context().is_canceled():
            self.flagged.append(i)
        self.ended.append(i)
        return i

    def ledger(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.began), list(self.ended), list(self.flagged)

    def pid(self) -> int:
        return os.getpid()


class AsyncLedger(Ledger):
    async def call(self, i: int, seconds: float) -> int:  # type: ignore[override]
        self.began.append(i)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.flagged.append(i)
            raise
        self.ended.append(i)
        return i


@dataclass(frozen=True)
class Kind:
    name: str
    cls: type
    options: dict[str, Any]

    def start(self, **options: Any) -> Any:
        return jt.remote(self.cls).options(**self.options, **options).remote()


SYNC = Kind("sync", Ledger, {})
THREADED = Kind("threaded", Ledger, {"max_concurrency": 4})
ASYNC = Kind("async", AsyncLedger, {})
ASYNC_FEW = Kind("async, few", AsyncLedger, {"max_concurrency": 4})
IN_KERNEL = Kind("in-kernel", Ledger, {"executor": "thread"})
KINDS = (SYNC, THREADED, ASYNC, ASYNC_FEW, IN_KERNEL)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


class Witness:
    """What was asked of an actor, and what `get` said; compared at last with what the actor says."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind = kind
        self.rnd = random.Random(seed)
        self.actor = kind.start()
        self.next = 0
        self.asked: set[int] = set()
        self.values: list[int] = []
        self.never_begun: list[int] = []
        self.cancelled: list[int] = []
        self.count: collections.Counter[str] = collections.Counter()

    def round(self, size: int, share: float) -> None:
        """Submits so many calls, cancels a share of them at random moments, and takes in how they ended."""
        rnd = self.rnd
        refs: dict[int, jt.ObjectRef] = {}
        for _ in range(size):
            i = self.next
            self.next += 1
            refs[i] = self.actor.call.remote(i, rnd.choice((0, 0, 0, rnd.random() * 0.003)))
            if rnd.random() < share:
                victim = rnd.choice(list(refs)[-20:])
                jt.cancel(refs[victim])
                self.asked.add(victim)
            if rnd.random() < 0.1:
                time.sleep(rnd.random() * 0.002)
        for i, ref in refs.items():
            try:
                assert jt.get(ref, timeout=NET) == i
                self.values.append(i)
            except TaskCancelledError as error:
                self.count[f"cancelled ({error.rung})"] += 1
                assert i in self.asked, f"call {i} was cancelled, but nobody has asked for that"
                (self.never_begun if error.rung == "pending" else self.cancelled).append(i)

    def check(self) -> None:
        """The actor answers, and its list agrees with what was said."""
        began, ended, flagged = jt.get(self.actor.ledger.remote(), timeout=NET)
        print(self.kind.name, {**self.count, "values": len(self.values), "asked": len(self.asked)})
        times = collections.Counter(began)
        assert not [i for i in self.never_begun if times[i]], "ran, though it was said never to have begun"
        assert not [i for i in self.values if times[i] != 1], "has a value, but did not run exactly once"
        assert not [i for i in self.cancelled if times[i] != 1], "was cancelled while it ran, but did not run once"
        assert sorted(began) == sorted([*self.values, *self.cancelled]), "what began is what has a value or was stopped"
        assert set(self.values) <= set(ended)
        assert set(flagged) <= self.asked, "the flag of a call that nobody has cancelled"
        if self.kind is SYNC or self.kind is IN_KERNEL:
            assert began == sorted(began), "not in the order of submission"
            assert ended == began


@each_kind
def test_a_thousand_cancels_at_random_moments(kind: Kind) -> None:
    """B3 and the table, at any moment of a call's life: on its way, queued, beginning, running, ending, over."""
    witness = Witness(kind, seed=7)
    pid = jt.get(witness.actor.pid.remote(), timeout=NET)
    while len(witness.asked) < 1000:
        witness.round(witness.rnd.choice((1, 5, 60, 200)), share=0.5)
    witness.check()
    assert witness.values
    assert witness.cancelled or witness.never_begun
    if kind is not ASYNC:  # there each begins as soon as it arrives
        assert witness.count["cancelled (pending)"] > 0
    assert jt.get(witness.actor.pid.remote(), timeout=NET) == pid
    assert status()["queued"] == 0


@each_kind
def test_everything_is_cancelled_as_soon_as_it_is_submitted(kind: Kind) -> None:
    """The packets to the actor and the cancels cross each other."""
    witness = Witness(kind, seed=11)
    for _ in range(20):
        refs = {i: witness.actor.call.remote(i, 0) for i in range(witness.next, witness.next + 50)}
        witness.next += 50
        witness.asked.update(refs)
        for ref in refs.values():
            jt.cancel(ref)
        for i, ref in refs.items():
            try:
                assert jt.get(ref, timeout=NET) == i
                witness.values.append(i)
            except TaskCancelledError as error:
                (witness.never_begun if error.rung == "pending" else witness.cancelled).append(i)
    witness.check()


@each_kind
def test_cancels_from_several_threads_while_others_submit(kind: Kind) -> None:
    """Calls of each thread begin in the order in which this thread has submitted them, on a sync actor."""
    actor = kind.start()
    refs: dict[int, Any] = {}
    outcome: dict[int, str] = {}
    asked: set[int] = set()

    def work(me: int) -> None:
        rnd = random.Random(me)
        mine = range(me * 1000, me * 1000 + 150)
        for i in mine:
            refs[i] = actor.call.remote(i, 0)
            if rnd.random() < 0.3:
                victim = rnd.choice(list(refs))  # anybody's
                asked.add(victim)
                jt.cancel(refs[victim])
        for i in mine:
            try:
                outcome[i] = "value" if jt.get(refs[i], timeout=NET) == i else "BAD"
            except TaskCancelledError as error:
                outcome[i] = error.rung

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began, _, flagged = jt.get(actor.ledger.remote(), timeout=NET)
    times = collections.Counter(began)
    assert len(outcome) == 6 * 150
    for i, how in outcome.items():
        assert how != "BAD"
        assert times[i] == (0 if how == "pending" else 1), (i, how)
        assert how == "value" or i in asked
    assert set(flagged) <= asked
    if kind is SYNC or kind is IN_KERNEL:
        for me in range(6):
            of_one = [i for i in began if i // 1000 == me]
            assert of_one == sorted(of_one)


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Any]:
    """A byte for each call, which survives the actor's process: how often it began."""
    yield words.shared_marks(tmp_path / "marks", 100_000)
    words.forget_marks(tmp_path / "marks")


class Marked:
    """Notes in a file that outlives it."""

    def call(self, path: str, i: int, crash: bool) -> int:
        words.shared_marks(path)[i] += 1
        if crash:
            os._exit(1)
        return i


class AsyncMarked(Marked):
    async def call(self, path: str, i: int, crash: bool) -> int:  # type: ignore[override]
        return super().call(path, i, crash)


@pytest.mark.parametrize("cls", [Marked, AsyncMarked], ids=["sync", "async"])
def test_crashes_and_cancels_at_random_moments(cls: type, marks: Any, tmp_path: Path) -> None:
    """An actor that restarts: without max_task_retries each call begins at most once, a call with a value exactly once,
    one that was cancelled before it began never; every call comes to an end."""
    rnd = random.Random(3)
    path = str(tmp_path / "marks")
    actor = jt.remote(cls).options(max_restarts=-1).remote()
    count: collections.Counter[str] = collections.Counter()
    asked: set[int] = set()
    for first in range(0, 1500, 50):
        refs = {i: actor.call.remote(path, i, rnd.random() < 0.02) for i in range(first, first + 50)}
        for i in rnd.sample(list(refs), 10):
            asked.add(i)
            jt.cancel(refs[i])
        for i, ref in refs.items():
            try:
                assert jt.get(ref, timeout=NET) == i
                assert marks[i] == 1
                count["value"] += 1
            except TaskCancelledError as error:
                count["BAD: cancelled, never asked"] += i not in asked
                count["BAD: ran, but it was said never to have begun"] += error.rung == "pending" and marks[i] > 0
                count[f"cancelled ({error.rung})"] += 1
            except ActorUnavailableError:
                count["unavailable"] += 1
    print(dict(count))
    assert not any(number for what, number in count.items() if what.startswith("BAD")), count
    assert count["value"] > 0
    assert count["unavailable"] > 0
    assert jt.get(actor.call.remote(path, 9_999, False), timeout=NET) == 9_999
    assert max(marks[:1500]) == 1


@pytest.mark.parametrize("cls", [Marked, AsyncMarked], ids=["sync", "async"])
def test_killed_from_outside_at_random_moments_every_call_that_may_be_retried_has_its_value(
    cls: type, marks: Any, tmp_path: Path
) -> None:
    """max_restarts=-1, max_task_retries=-1: at least once, and in the end all of them."""
    rnd = random.Random(9)
    path = str(tmp_path / "marks")

    class WithPid(cls):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            words.say(f"{path}.pid", os.getpid())

    actor = jt.remote(WithPid).options(max_restarts=-1, max_task_retries=-1).remote()
    for round in range(10):
        refs = [actor.call.remote(path, round * 200 + i, False) for i in range(200)]
        jt.get(refs[rnd.randrange(200)], timeout=NET)
        pid = int(words.hear(f"{path}.pid"))
        if words.alive(pid):
            os.kill(pid, signal.SIGKILL)
        assert jt.get(refs, timeout=NET) == list(range(round * 200, round * 200 + 200))
    assert min(marks[:2000]) >= 1


@pytest.mark.slow
def test_actors_begin_and_end_in_all_ways_and_leave_nothing(tmp_path: Path) -> None:
    """A hundred of them: killed, left, terminated, dropped, crashed, each with calls under way."""
    rnd = random.Random(1)
    ends: collections.Counter[str] = collections.Counter()
    for round in range(100):
        kind = rnd.choice(KINDS)
        actor = kind.start()
        refs = [actor.call.remote(i, 0.001) for i in range(rnd.choice((0, 1, 30)))]
        if refs and rnd.random() < 0.5:
            jt.get(refs[0], timeout=NET)
        how = rnd.choice(("kill", "terminate", "drop", "crash"))
        if how == "crash" and kind is IN_KERNEL:
            how = "kill"
        if how == "kill":
            jt.kill(actor)
        elif how == "terminate":
            actor.terminate()
        elif how == "crash":
            os.kill(jt.get(actor.pid.remote(), timeout=NET), signal.SIGKILL)
        del actor
        for i, ref in enumerate(refs):
            try:
                assert jt.get(ref, timeout=NET) == i
                ends[f"{how}: value"] += 1
            except ActorDiedError:
                assert how in ("kill", "crash"), f"round {round}: a graceful end has lost a call"
                ends[f"{how}: died"] += 1
    print(dict(ends))
    wait_until(lambda: all(actor["state"] == "dead" for actor in jt.list_actors()), "all actors have ended")
