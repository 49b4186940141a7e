"""End to end: one process with refs of two sessions, waits for both, and values that go from one into the other.

Promises: docs/semantics.md, Several sessions. The second session is a second supervisor of this process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words
from conftest import NET, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks import launch, several
from jupyter_tasks.client import Client
from jupyter_tasks.exceptions import (
    GetTimeoutError,
    JupyterTasksError,
    ObjectLostError,
    TaskCancelledError,
    UnserializableError,
    WorkerCrashedError,
)
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")

LONG = 30.0
TWO_CPUS = {"CPU": 2.0, "GPU": 0.0}


class Other:
    """The second session."""

    def __init__(self) -> None:
        self.session = launch.start(TWO_CPUS, {})
        self.client: Client = self.session.client

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Submits a call there."""
        return jt.remote(**options)(function).submit_to(self.client, args, {})

    def status(self) -> dict[str, Any]:
        return dict(self.client.request("status", check=True))


@pytest.fixture
def other(session: None, request: pytest.FixtureRequest) -> Iterator[Other]:
    """Found empty and whole after the test, unless that has ended it."""
    other = Other()
    yield other

    def is_empty() -> bool:
        gc.collect()
        now = other.status()
        return not (now["live"] or now["objects"])

    try:
        if not other.client.closed:
            wait_until(is_empty, "nothing is left in the second session")
    finally:
        other.session.end()


def until(path: str, value: Any = None) -> Any:
    """Returns the value, or raises it, when the word has been said."""
    words.hear(path, 60)
    if isinstance(value, Exception):
        raise value
    return value


def same(value: Any) -> Any:
    return value


def both(here: Any, other: Other) -> tuple[Any, Any]:
    """The same call in both sessions."""
    function, *args = here
    return jt.remote(function).remote(*args), other.run(function, *args)


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_get_of_refs_of_both_keeps_the_order_and_takes_a_ref_twice(other: Other, tmp_path: Path) -> None:
    """Also of refs with the same number, which are not the same ref."""
    refs = [jt.remote(until).remote(str(tmp_path / "go"), 0), other.run(until, str(tmp_path / "go"), 1)]
    refs += [other.run(same, 2), jt.remote(same).remote(3), other.client.put(4)]
    threading.Timer(0.05, words.say, [tmp_path / "go"]).start()
    assert jt.get([*refs, refs[1]], timeout=NET) == [0, 1, 2, 3, 4, 1]
    numbered = [(ref.id, ref._client is other.client) for ref in refs]
    assert len({id for id, _ in numbered}) < len(numbered)
    assert jt.wait(refs, num_returns=5) == (refs, [])


@pytest.mark.parametrize("failing", ["here", "there"])
def test_a_list_raises_on_its_first_failure_without_waiting_for_the_other_session(
    failing: str, other: Other, tmp_path: Path
) -> None:
    go, fail = str(tmp_path / "go"), str(tmp_path / "fail")
    open_one, failed = both((until, go), other), both((until, fail, ValueError("v")), other)
    place = failing == "there"
    threading.Timer(0.05, words.say, [fail]).start()
    with pytest.raises(ValueError, match=r"^v$"):
        jt.get([open_one[not place], failed[place]], timeout=NET)
    assert not open_one[not place].is_final
    words.say(go)
    jt.wait([*open_one, *failed], num_returns=4)


def test_timeouts(other: Other, tmp_path: Path) -> None:
    """0 looks once, and sees what has arrived; GetTimeoutError names what is open, and the tasks go on."""
    refs = both((until, str(tmp_path / "go"), 1), other)
    with pytest.raises(GetTimeoutError, match="and 1 more did not finish"):
        jt.get(list(refs), timeout=0)
    with pytest.raises(GetTimeoutError):
        jt.get(list(refs), timeout=0.05)
    assert jt.wait(list(refs), timeout=0) == ([], list(refs))
    with pytest.raises(GetTimeoutError, match="2 of 2"):
        next(jt.as_completed(refs, timeout=0.05))
    words.say(tmp_path / "go")
    wait_until(lambda: jt.wait(list(refs), num_returns=2, timeout=0)[1] == [], "both are seen by looking")
    assert jt.get(list(refs)) == [1, 1]


def test_wait_counts_across_sessions_and_keeps_the_order(other: Other, tmp_path: Path) -> None:
    one, two = both((until, str(tmp_path / "1"), 1), other)
    three, four = both((until, str(tmp_path / "2"), 2), other)
    threading.Timer(0.05, words.say, [tmp_path / "2"]).start()
    assert jt.wait([one, two, three, four], num_returns=2, timeout=NET) == ([three, four], [one, two])
    words.say(tmp_path / "1")
    assert jt.wait([two, one], num_returns=2, timeout=NET) == ([two, one], [])


def test_wait_takes_generators_of_both(other: Other, tmp_path: Path) -> None:
    def items(path: str) -> Iterator[int]:
        words.hear(path)
        yield 1

    here, there = both((items, str(tmp_path / "go")), other)
    assert jt.wait([here, there], timeout=0.05)[0] == []
    words.say(tmp_path / "go")
    assert jt.wait([here, there], num_returns=2, timeout=NET) == ([here, there], [])
    assert [[jt.get(ref) for ref in generator] for generator in (here, there)] == [[1], [1]]


def test_as_completed_gives_refs_of_both_as_they_come(other: Other, tmp_path: Path) -> None:
    """Those that are final first; one after the other as the test says; and one that waits at once with the others."""
    done = [jt.put(0), other.client.put(1)]
    refs = [*both((until, str(tmp_path / "b"), 2), other), *both((until, str(tmp_path / "a"), 3), other)]
    coming = jt.as_completed([*refs, *done])
    assert [next(coming), next(coming)] == done
    threading.Timer(0.05, words.say, [tmp_path / "a"]).start()
    assert {next(coming), next(coming)} == set(refs[2:])
    words.say(tmp_path / "b")
    assert set(coming) == set(refs[:2])


def test_async_waits(other: Other, tmp_path: Path) -> None:
    """`await`, `gather` and `async for` over both; the loop runs on."""

    async def main() -> None:
        refs = [*both((until, str(tmp_path / "go"), 1), other)]
        waiting = asyncio.gather(*refs)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        words.say(tmp_path / "go")
        assert await waiting == [1, 1]
        more = [*both((until, str(tmp_path / "more"), 2), other)]
        asyncio.get_running_loop().call_later(0.05, words.say, tmp_path / "more")
        assert {ref async for ref in jt.as_completed(more)} == set(more)

    asyncio.run(main())


def test_futures_of_both(other: Other, tmp_path: Path) -> None:
    refs = both((until, str(tmp_path / "go"), 1), other)
    futures = [ref.future() for ref in refs]
    threading.Timer(0.05, words.say, [tmp_path / "go"]).start()
    assert concurrent.futures.wait(futures, timeout=NET).not_done == set()
    assert [future.result() for future in futures] == [1, 1]


def test_a_wait_for_both_sleeps(other: Other, tmp_path: Path) -> None:
    """No busy waiting: what reads sleeps on its socket, who waits on a lock."""
    refs = both((until, str(tmp_path / "go")), other)
    before = time.process_time()
    assert jt.wait(list(refs), timeout=1.0)[0] == []
    assert time.process_time() - before < 0.3
    words.say(tmp_path / "go")
    jt.get(list(refs))


def test_who_waits_for_both_is_woken(other: Other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each result, and by the end of a session: not by looking now and then, which is a net for interrupts."""
    monkeypatch.setattr(several, "LOOK_EVERY", LONG)
    began = time.monotonic()
    for word in ("1", "2"):
        refs = both((until, str(tmp_path / word), 1), other)
        threading.Timer(0.05, words.say, [tmp_path / word]).start()
        found = jt.get(list(refs)) if word == "1" else [jt.get(ref) for ref in jt.as_completed(refs)]
        assert found == [1, 1]
    refs = both((until, str(tmp_path / "3"), 1), other)
    threading.Timer(0.05, os.kill, [other.session.process.pid, signal.SIGKILL]).start()
    with pytest.raises(ObjectLostError):
        jt.get(list(refs))
    words.say(tmp_path / "3")
    jt.get(refs[0])
    assert time.monotonic() - began < LONG


def test_the_end_of_one_session_is_heard_by_who_waits_for_both(other: Other, tmp_path: Path) -> None:
    """The refs of the one raise, at once; those of the other go on, also in an iterator that is under way."""
    here, there = both((until, str(tmp_path / "go"), 1), other)
    coming = jt.as_completed([here, there])
    threading.Timer(0.05, os.kill, [other.session.process.pid, signal.SIGKILL]).start()
    with pytest.raises(ObjectLostError):
        jt.get([here, there], timeout=NET)
    assert next(coming) is there
    threading.Timer(0.05, words.say, [tmp_path / "go"]).start()
    assert next(coming) is here
    assert jt.get(here) == 1
    with pytest.raises(StopIteration):
        next(coming)


def interrupt_when_blocked(word: Path) -> threading.Thread:
    """A KeyboardInterrupt for the main thread, once a task is in and this thread sleeps."""

    def strike() -> None:
        words.hear(word)
        words.blocked_in_system(os.getpid())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def busy(place: str, value: int) -> int:
    words.say(f"{place}/in{value}")
    words.hear(f"{place}/go", 60)
    return value


@pytest.mark.parametrize("verb", ["get", "wait", "as_completed"])
def test_the_stop_button_ends_a_wait_for_both_at_once(verb: str, other: Other, tmp_path: Path) -> None:
    """The tasks go on, and nothing of the wait is left behind."""
    refs = [jt.remote(busy).remote(str(tmp_path), 0), other.run(busy, str(tmp_path), 1)]
    words.hear(tmp_path / "in0")
    verbs: dict[str, Callable[[], object]] = {
        "get": lambda: jt.get(refs, timeout=LONG),
        "wait": lambda: jt.wait(refs, timeout=LONG),
        "as_completed": lambda: next(jt.as_completed(refs, timeout=LONG)),
    }
    thread = interrupt_when_blocked(tmp_path / "in1")
    with pytest.raises(KeyboardInterrupt):
        verbs[verb]()
    thread.join()
    if verb != "as_completed":
        assert [ref._waiters for ref in refs] == [[], []]
    words.say(tmp_path / "go")
    assert jt.get(refs, timeout=NET) == [0, 1]


def test_cancel_on_interrupt_reaches_both(other: Other, tmp_path: Path) -> None:
    refs = [jt.remote(busy).remote(str(tmp_path), 0), other.run(busy, str(tmp_path), 1)]
    words.hear(tmp_path / "in0")
    thread = interrupt_when_blocked(tmp_path / "in1")
    with pytest.raises(KeyboardInterrupt):
        jt.get(refs, timeout=LONG, cancel_on_interrupt=True)
    thread.join()
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            jt.get(ref, timeout=NET)


def test_interrupts_at_random_moments_lose_nothing(other: Other) -> None:
    """Waits for both are thrown out anywhere; afterwards every value comes, also in other threads."""
    chance = random.Random(11)
    armed = False
    raised = 0

    def ring(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    task, end = jt.remote(same), time.monotonic() + 2.0
    try:
        while time.monotonic() < end:
            refs = [task.submit_to(client, (i,), {}) for i in range(5) for client in (current_client(), other.client)]
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.001 + 1e-6)
                jt.get(refs, timeout=NET)
                armed = False
            except KeyboardInterrupt:
                raised += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert jt.get(refs, timeout=NET) == [i for i in range(5) for _ in range(2)]
            # A bell that an interrupt has left at a ref goes with that.
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(f"{raised} interrupts raised")
    assert raised > 20
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(jt.get([*both((same, 5), other)], timeout=NET)))
    thread.start()
    thread.join(NET)
    assert values == [[5, 5]]


def waits_for_another_session(place: str, name: str, mixed: bool) -> int:
    """A task that has a session of its own beside that of its worker."""
    own = launch.start(TWO_CPUS, {})
    try:
        refs = [jt.remote(until).submit_to(own.client, (f"{place}/go", 1), {})]
        if mixed:
            refs.append(jt.remote(num_cpus=0)(until).remote(f"{place}/go", 1))
        words.say(f"{place}/{name}")
        return sum(jt.get(refs, timeout=LONG))
    finally:
        own.end()


@pytest.mark.parametrize("mixed", [False, True], ids=["other", "both"])
def test_the_slot_of_a_task_that_waits_for_another_session_is_free(mixed: bool, tmp_path: Path) -> None:
    """Two such tasks on two CPUs, and what they wait for is said by a third."""
    refs = [jt.remote(waits_for_another_session).remote(str(tmp_path), str(i), mixed) for i in range(2)]
    for i in range(2):
        words.hear(tmp_path / str(i))
    jt.get(jt.remote(words.say).remote(str(tmp_path / "go")), timeout=NET)
    assert jt.get(refs, timeout=NET) == [1 + mixed] * 2


def test_the_slot_of_a_thread_task_that_waits_for_another_session_is_free(other: Other, tmp_path: Path) -> None:
    waits = jt.remote(executor="thread", num_cpus=1)(lambda ref: jt.get(ref[0], timeout=LONG))
    ref = other.run(until, str(tmp_path / "go"), 1)
    refs = [waits.remote([ref]) for _ in range(2)]
    jt.get(jt.remote(words.say).remote(str(tmp_path / "go")), timeout=NET)
    assert jt.get(refs, timeout=NET) == [1, 1]


# -- refs inside values ---------------------------------------------------------------------------------------------------


def test_refs_inside_a_value_are_of_its_session(other: Other) -> None:
    """By `get`, by a future, which the event thread fills, and as items of a generator."""
    taken = [jt.put("wrong") for _ in range(20)]  # objects here with the numbers of those there

    def makes() -> list[jt.ObjectRef]:
        return [jt.put("right")]

    def yields() -> Iterator[list[jt.ObjectRef]]:
        yield [jt.put("right")]

    found = [
        jt.get(other.client.put([other.client.put("right")])),
        jt.get(other.run(makes)),
        other.run(makes).future().result(NET),
        *(jt.get(ref) for ref in other.run(yields)),
    ]
    assert [refs[0]._client for refs in found] == [other.client] * 4
    assert [jt.get(refs[0]) for refs in found] == ["right"] * 4
    assert jt.get(jt.get(jt.put([taken[0]])))[0] == "wrong"


def test_refs_inside_a_value_of_a_session_that_has_ended_are_lost(other: Other) -> None:
    """They name nothing, instead of somebody else's value."""
    outer = other.run(lambda: [jt.put("right")])
    jt.wait([outer])
    taken = [jt.put("wrong") for _ in range(20)]
    other.session.end()
    (inner,) = jt.get(outer)
    with pytest.raises(ObjectLostError):
        jt.get(inner)
    del taken


# -- a ref as an argument ---------------------------------------------------------------------------------------------------


class Where:
    """Says in which processes it was unpickled."""

    def __init__(self, path: str, array: Any = None) -> None:
        self.path = path
        self.array = array

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        words.say(f"{self.path}/{os.getpid()}")


def total(held: Where) -> float:
    return float(held.array.sum())


@pytest.mark.parametrize("size", [3, 10**6], ids=["small", "big"])
@pytest.mark.parametrize("final", [True, False], ids=["there", "not yet"])
def test_a_value_travels_without_being_unpickled_on_the_way(
    size: int, final: bool, other: Other, tmp_path: Path
) -> None:
    """Its bytes, or its shared memory, are passed on; a task that waits for it is submitted at once."""

    def make(path: str) -> Where:
        words.hear(f"{path}/go")
        return Where(path, np.ones(size))

    ref = other.run(make, str(tmp_path))
    if final:
        words.say(tmp_path / "go")
        jt.wait([ref])
    refs = [jt.remote(total).remote(ref), jt.remote(total).remote(held=ref)]
    assert ref.is_final == final
    words.say(tmp_path / "go")
    assert jt.get(refs, timeout=NET) == [size, size]
    assert not (tmp_path / str(os.getpid())).exists()


def test_both_ways(other: Other, tmp_path: Path) -> None:
    """A chain through both sessions, submitted before its first task ends."""
    add = jt.remote(lambda x, y: x + y)
    ref = jt.remote(until).remote(str(tmp_path / "go"), 1)
    for _ in range(5):
        ref = add.submit_to(other.client, (ref, 1), {})
        ref = add.remote(1, ref)
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == 11


def test_a_ref_travels_once_for_many_tasks_and_is_freed_with_it(other: Other, tmp_path: Path) -> None:
    ref = other.run(until, str(tmp_path / "go"), 7)
    refs = jt.remote(lambda x, y: (x, y)).map(range(50), y=ref)
    assert status()["objects"] == 52  # with their group
    words.say(tmp_path / "go")
    assert jt.get(refs, timeout=NET) == [(i, 7) for i in range(50)]
    del refs
    wait_until(lambda: status()["objects"] == 1, "only what stands for it is left")
    del ref
    wait_until(lambda: status()["objects"] == 0, "and that goes with it")


def test_map_starmap_and_an_executor_take_refs_of_another_session(other: Other, tmp_path: Path) -> None:
    items = [other.run(until, str(tmp_path / "go"), i) for i in range(3)]
    double = jt.remote(lambda x: 2 * x)
    refs = [*double.map(items), *double.starmap([(item,) for item in items])]
    with jt.Executor() as executor:
        futures = [executor.submit(abs, item) for item in items]
        words.say(tmp_path / "go")
        assert [future.result(NET) for future in futures] == [0, 1, 2]
    assert jt.get(refs, timeout=NET) == [0, 2, 4, 0, 2, 4]


def test_calls_of_an_actor_take_refs_of_another_session(other: Other, tmp_path: Path) -> None:
    """Its constructor, too. A handle inside of an argument is refused, as a ref is."""

    class Adds:
        def __init__(self, start: int) -> None:
            self.start = start

        def add(self, x: int) -> int:
            return self.start + x

    actor = jt.remote(Adds).remote(other.run(until, str(tmp_path / "go"), 10))
    refs = [actor.add.remote(other.run(until, str(tmp_path / "go"), 1)), actor.add.remote(2)]
    words.say(tmp_path / "go")
    assert jt.get(refs, timeout=NET) == [11, 12]
    with pytest.raises(UnserializableError, match="belongs to another session"):
        other.run(same, actor)


def test_a_task_that_waits_says_for_whom(other: Other, tmp_path: Path) -> None:
    ref = other.run(until, str(tmp_path / "go"), name="training")
    waiting = jt.remote(name="needs it")(same).remote(ref)
    (record,) = [record for record in jt.tasks() if record["name"] == "needs it"]
    assert (record["state"], record["waiting_for"]) == ("pending", ["training"])
    words.say(tmp_path / "go")
    jt.get(waiting, timeout=NET)


def test_thread_tasks_get_the_object_itself(other: Other, tmp_path: Path) -> None:
    """A thread here waits for a task there, and gets its value as `get` does; nothing travels."""
    ref = other.run(lambda path: [until(path, jt.put("inner"))], str(tmp_path / "go"))
    waiting = jt.remote(executor="thread")(lambda refs: (refs[0]._client is other.client, jt.get(refs[0]))).remote(ref)
    failed = jt.remote(executor="thread")(same).remote(other.run(until, str(tmp_path / "go"), ValueError("v")))
    words.say(tmp_path / "go")
    assert jt.get(waiting, timeout=NET) == (True, "inner")
    with pytest.raises(ValueError, match=r"^v$"):
        jt.get(failed, timeout=NET)


@pytest.mark.parametrize("final", [True, False], ids=["there", "not yet"])
def test_the_value_of_a_thread_task_is_pickled_for_another_session(final: bool, other: Other, tmp_path: Path) -> None:
    here = jt.remote(executor="thread")(until)
    ref, unsendable = here.remote(str(tmp_path / "go"), [1]), here.remote(str(tmp_path / "go"), threading.Lock())
    if final:
        words.say(tmp_path / "go")
        jt.wait([ref, unsendable], num_returns=2)
        with pytest.raises(UnserializableError):
            other.run(same, unsendable)
    else:
        failed = other.run(same, unsendable)
        words.say(tmp_path / "go")
        with pytest.raises(UnserializableError, match="lock"):
            jt.get(failed, timeout=NET)
    assert jt.get(other.run(same, ref), timeout=NET) == [1]


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def crash(path: str) -> None:
    words.hear(path)
    os._exit(3)


@pytest.mark.parametrize("final", [True, False], ids=["there", "not yet"])
def test_an_error_there_is_the_error_of_who_needs_it_here(final: bool, other: Other, tmp_path: Path) -> None:
    """The root cause: an error of its code, a crash, a cancel. Who needs it never runs."""
    go = str(tmp_path / "go")
    refs = [
        other.run(until, go, ValueError("v")),
        other.run(crash, go, max_retries=0),
        other.run(until, str(tmp_path / "never")),
    ]
    needs = jt.remote(lambda _, path: words.say(path))
    if final:
        words.say(go)
        jt.cancel(refs[2])
        jt.wait(refs, num_returns=3)
    waiting = [needs.remote(ref, str(tmp_path / "ran")) for ref in refs]
    words.say(go)
    jt.cancel(refs[2])
    for ref, error in zip(waiting, (ValueError, WorkerCrashedError, TaskCancelledError), strict=True):
        with pytest.raises(error):
            jt.get(ref, timeout=NET)
    states = [record["state"] for record in jt.tasks() if record["name"] == "<lambda>"][-3:]
    assert sorted(states) == ["cancelled", "failed", "failed"]
    assert not (tmp_path / "ran").exists()


def test_what_waits_here_can_be_cancelled_and_what_it_waits_for_goes_on(other: Other, tmp_path: Path) -> None:
    ref = other.run(until, str(tmp_path / "go"), 1)
    waiting, kept = jt.remote(same).remote(ref), jt.remote(same).remote(ref)
    jt.cancel(waiting)
    with pytest.raises(TaskCancelledError) as caught:
        jt.get(waiting, timeout=NET)
    assert caught.value.rung == "pending"
    words.say(tmp_path / "go")
    assert jt.get([ref, kept], timeout=NET) == [1, 1]


def test_all_refs_to_what_is_awaited_may_be_dropped(other: Other, tmp_path: Path) -> None:
    waiting = jt.remote(same).remote(other.run(until, str(tmp_path / "go"), 1))
    gc.collect()
    words.say(tmp_path / "go")
    assert jt.get(waiting, timeout=NET) == 1


def once(path: str, value: Any, how: str) -> Any:
    """Fails in its first attempt."""
    words.mark(path)
    if words.marks(path) > 1:
        return value
    if how == "raise":
        raise OSError(how)
    os._exit(3)


@pytest.mark.parametrize("how", ["raise", "crash"])
def test_further_attempts_in_both_sessions(how: str, other: Other, tmp_path: Path) -> None:
    """Only the last attempt there counts; a further one here gets the value again."""
    ref = other.run(once, str(tmp_path / "there"), 1, how, retry_exceptions=True)
    again = jt.remote(retry_exceptions=True)(once).remote(str(tmp_path / "here"), ref, how)
    assert jt.get(again, timeout=NET) == 1
    assert (words.marks(tmp_path / "there"), words.marks(tmp_path / "here")) == (2, 2)


def test_the_death_of_the_other_session_is_an_error_of_who_waits(other: Other, tmp_path: Path) -> None:
    """What has its value goes on; later uses say that the session has ended."""
    go = str(tmp_path / "go")
    there = other.run(same, 1)
    jt.wait([there])
    has_it = jt.remote(lambda x, path: until(path, x)).remote(there, go)
    ref = other.run(until, go, 1)
    waiting = jt.remote(same).remote(ref)
    os.kill(other.session.process.pid, signal.SIGKILL)
    with pytest.raises(ObjectLostError, match="supervisor"):
        jt.get(waiting, timeout=NET)
    words.say(go)
    assert jt.get(has_it, timeout=NET) == 1
    for gone in (ref, there):
        with pytest.raises(ObjectLostError, match="session that has ended"):
            jt.remote(same).remote(gone)


def test_the_end_of_the_own_session_is_no_harm_to_the_other(other: Other, tmp_path: Path) -> None:
    """What was promised there is brought to nobody; the ref and its task stay what they are."""
    ref = other.run(until, str(tmp_path / "go"), 1)
    waiting = jt.remote(same).remote(ref)
    jt.shutdown()
    with pytest.raises(ObjectLostError):
        jt.get(waiting)
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == 1
    jt.init(num_cpus=2)
    assert jt.get(jt.remote(same).remote(ref), timeout=NET) == 1


def promises_and_dies(place: str) -> None:
    own = launch.start(TWO_CPUS, {})
    words.say(f"{place}/directory", own.directory)
    ref = jt.remote(until).submit_to(own.client, (f"{place}/never",), {})
    jt.remote(name="orphan")(same).remote(ref)
    current_client().request("status")  # it is there
    os._exit(3)


def test_a_promise_ends_with_the_process_that_has_made_it(tmp_path: Path) -> None:
    """What waits for a value that nobody can bring any more fails."""
    with pytest.raises(WorkerCrashedError):
        jt.get(jt.remote(max_retries=0)(promises_and_dies).remote(str(tmp_path)), timeout=NET)

    def orphan() -> dict[str, Any]:
        (record,) = [record for record in jt.tasks() if record["name"] == "orphan"]
        return record

    wait_until(lambda: orphan()["state"] == "failed", "who needs it has failed")
    shutil.rmtree(words.hear(tmp_path / "directory"), ignore_errors=True)  # its session was killed with it


# -- what cannot be -------------------------------------------------------------------------------------------------------


def test_a_ref_inside_an_argument_is_refused(other: Other) -> None:
    """In a list, in what is put, and among the names that a function reads. It names the ref, and says what to do."""
    ref = other.run(same, 1)

    def reads() -> Any:
        return jt.get(ref)

    for attempt in (lambda: jt.remote(same).remote([ref]), lambda: jt.put([ref]), jt.remote(reads).remote):
        with pytest.raises(UnserializableError, match=r"<ObjectRef 1 same> belongs to another session.*jt\.get\(ref\)"):
            attempt()
    with pytest.raises(UnserializableError, match="belongs to another session"):
        other.run(same, {"a": jt.put(1)})
    jt.get(ref)


@pytest.mark.parametrize("final", [True, False], ids=["there", "not yet"])
def test_a_value_with_refs_in_it_is_refused(final: bool, other: Other, tmp_path: Path) -> None:
    """At once if it is there, and otherwise as the error of what waits for it."""

    def nested(path: str) -> list[Any]:
        return [until(path, jt.put(1)), "x" * 200_000]

    ref = other.run(nested, str(tmp_path / "go"))
    if final:
        words.say(tmp_path / "go")
        jt.wait([ref])
        with pytest.raises(UnserializableError, match="has references in it"):
            jt.remote(same).remote(ref)
    else:
        waiting = jt.remote(same).remote(ref)
        words.say(tmp_path / "go")
        with pytest.raises(UnserializableError, match="has references in it"):
            jt.get(waiting, timeout=NET)


def test_an_error_with_refs_in_it_keeps_its_text(other: Other) -> None:
    def fails() -> None:
        raise ValueError("v", jt.put(1))

    ref = other.run(fails)
    jt.wait([ref])
    with pytest.raises(jt.exceptions.TaskError, match=r"ValueError: .*'v'"):
        jt.get(jt.remote(same).remote(ref), timeout=NET)


def ends_when_told(session: launch.Session, path: str) -> None:
    words.hear(path)
    session.end()


def returns_foreign_refs(path: str) -> list[jt.ObjectRef]:
    own = launch.start(TWO_CPUS, {})
    threading.Thread(target=ends_when_told, args=(own, path)).start()
    return [own.client.put(1)]


def test_a_task_cannot_return_refs_of_another_session(tmp_path: Path) -> None:
    with pytest.raises(UnserializableError, match="belongs to another session"):
        jt.get(jt.remote(returns_foreign_refs).remote(str(tmp_path / "go")), timeout=NET)
    words.say(tmp_path / "go")
    wait_until(lambda: not any(record["lingers"] for record in jt.tasks()), "what it has left has ended")


def test_a_task_of_another_session_is_no_member_of_a_group(other: Other, tmp_path: Path) -> None:
    """The block does not wait for it; what waits for it here is a member."""
    with jt.TaskGroup("g") as group:
        ref = other.run(until, str(tmp_path / "go"), 1)
    assert not ref.is_final
    assert group.state == "completed"
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == 1


def test_a_forked_child_has_none_of_the_connections(other: Other, tmp_path: Path) -> None:
    """Its refs say so at once, instead of taking the parent's bytes."""
    ref = other.run(until, str(tmp_path / "go"), 1)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            try:
                jt.get(ref, timeout=NET)
            except ObjectLostError as error:
                words.say(tmp_path / "child", error)
        os._exit(0)
    os.waitpid(pid, 0)
    assert words.said(tmp_path / "child")
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == 1


def test_local_mode_takes_refs_of_a_session_and_gives_it_its_own(other: Other, tmp_path: Path) -> None:
    """`remote()` waits for them, since nothing else happens here."""
    jt.shutdown()
    jt.init(local_mode=True)
    try:
        threading.Timer(0.05, words.say, [tmp_path / "go"]).start()
        ref = jt.remote(same).remote(other.run(until, str(tmp_path / "go"), [1]))
        assert ref.is_final
        assert jt.get(ref) == [1]
        assert jt.get(other.run(same, ref), timeout=NET) == [1]
        failed = jt.remote(same).remote(other.run(until, str(tmp_path / "go"), ValueError("v")))
        with pytest.raises(ValueError, match="v"):
            jt.get(failed)
        assert jt.get([ref, other.run(same, 2)], timeout=NET) == [[1], 2]
        with pytest.raises(JupyterTasksError):
            jt.remote(same).remote([other.client.put(1)])
    finally:
        del ref
        jt.shutdown()
