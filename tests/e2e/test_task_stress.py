"""End to end, many at once: no cancel hits the wrong task or is lost, nothing runs twice, no worker dies of it.

Role: what only shows in numbers (the long ones are marked `slow`), and the packet cases that numbers do not show: there
the order of steps is built, and written above the test.
"""

from __future__ import annotations

import collections
import os
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import GetTimeoutError, TaskCancelledError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("session")

NET = 30.0


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Any]:
    """Two bytes for each task: how often it began, how often it came to its last line."""
    yield words.shared_marks(tmp_path / "marks", 200_000)
    words.forget_marks(tmp_path / "marks")


def marked(path: str, i: int, seconds: float) -> int:
    """A task that leaves a mark at its begin and one at its end."""
    m = words.shared_marks(path)
    m[2 * i] += 1
    if seconds:
        time.sleep(seconds)
    m[2 * i + 1] += 1
    return i


# -- cancels at random moments ----------------------------------------------------------------------------------------


def cancel_at_random(marks: Any, path: str, rounds: int, seed: int) -> collections.Counter[str]:
    rnd = random.Random(seed)
    quick, slow = jt.remote(marked), jt.remote(marked)  # two functions: their durations are learned apart
    count: collections.Counter[str] = collections.Counter()
    never_begun: list[int] = []
    i = 0
    for _ in range(rounds):
        refs: dict[int, jt.ObjectRef] = {}
        asked: set[int] = set()
        for _ in range(rnd.choice((1, 5, 60, 200))):
            is_slow = rnd.random() < 0.15
            refs[i] = slow.remote(path, i, rnd.random() * 0.003) if is_slow else quick.remote(path, i, 0)
            i += 1
            if rnd.random() < 0.05:
                time.sleep(rnd.random() * 0.002)
            if rnd.random() < 0.25:
                victim = rnd.choice(list(refs)[-30:])
                jt.cancel(refs[victim])
                asked.add(victim)
        count["asked"] += len(asked)
        for k, ref in refs.items():
            began, ended = 2 * k, 2 * k + 1
            try:
                assert jt.get(ref, timeout=NET) == k
                count["value"] += 1
                count["BAD: a value, but it did not run once"] += (marks[began], marks[ended]) != (1, 1)
            except TaskCancelledError as error:
                count[f"cancelled ({error.rung})"] += 1
                count["BAD: cancelled, never asked"] += k not in asked
                if error.rung == "pending":
                    never_begun.append(began)
                # Its last line may be behind it when the interrupt comes.
                count["ended in its last line"] += marks[ended]
                count["BAD: ran twice"] += marks[began] > 1
    # Whatever was claimed and cancelled has been passed by when later tasks have run; nothing of it may have, even then.
    jt.get([quick.remote(path, i + j, 0) for j in range(50)], timeout=NET)
    count["BAD: ran, but it was said never to have begun"] = sum(marks[began] for began in never_begun)
    return count


@pytest.mark.parametrize(
    "rounds", [8, pytest.param(150, marks=pytest.mark.slow)], ids=["few hundred cancels", "thousands of cancels"]
)
def test_cancels_at_random_moments_hit_the_right_task_or_nobody(rounds: int, marks: Any, tmp_path: Path) -> None:
    jt.get([jt.remote(time.sleep).remote(0.02) for _ in range(4)], timeout=NET)
    workers = status()["workers"]
    assert len(workers) == 2
    count = cancel_at_random(marks, str(tmp_path / "marks"), rounds, seed=rounds)
    print(dict(count))
    assert not any(number for what, number in count.items() if what.startswith("BAD")), count
    if rounds > 100:
        assert count["asked"] > 2000
        assert count["cancelled (interrupt)"] > 0
        assert count["cancelled (pending)"] > 0
        assert count["ended in its last line"] < count["asked"] / 10
    assert status()["workers"] == workers  # no KeyboardInterrupt outside of tasks, no dead worker


@pytest.mark.slow
def test_cancels_of_every_kind_at_random_moments_lose_no_task(marks: Any, tmp_path: Path) -> None:
    """Soft, forced, with grace, twice, together with crashes: everything comes to an end, and to a true one."""
    rnd = random.Random(3)
    path = str(tmp_path / "marks")

    def task(path: str, i: int, seconds: float, crash: bool) -> int:
        m = words.shared_marks(path)
        m[2 * i] += 1
        time.sleep(seconds)
        if crash:
            os._exit(1)
        m[2 * i + 1] += 1
        return i

    remote = jt.remote(task).options(max_retries=0)
    count: collections.Counter[str] = collections.Counter()
    for round in range(60):
        ids = range(round * 25, round * 25 + 25)
        refs = {i: remote.remote(path, i, rnd.choice((0, 0, 0.001, 0.01)), rnd.random() < 0.05) for i in ids}
        asked = set()
        for i in rnd.sample(ids, 8):
            if rnd.random() < 0.5:
                time.sleep(rnd.random() * 0.005)
            how = rnd.choice(({}, {"force": True}, {"grace": 0.01}, {"grace": 0.0}))
            jt.cancel(refs[i], **how)
            if rnd.random() < 0.3:
                jt.cancel(refs[i], force=rnd.random() < 0.5)
            asked.add(i)
        for i, ref in refs.items():
            try:
                jt.get(ref, timeout=NET)
                assert (marks[2 * i], marks[2 * i + 1]) == (1, 1)
                count["value"] += 1
            except TaskCancelledError as error:
                count[f"cancelled ({error.rung})"] += 1
                count["BAD"] += i not in asked or (error.rung == "pending" and bool(marks[2 * i]))
            except WorkerCrashedError:
                assert marks[2 * i] == 1
                count["crashed"] += 1
    print(dict(count))
    assert count["BAD"] == 0
    assert count["cancelled (kill)"] > 0
    assert count["value"] > 0


# -- packets --------------------------------------------------------------------------------------------------------------


class Packet:
    """One worker has read a packet: its first task is in and waits, all others are behind it and not begun."""

    def __init__(self, place: Path, count: int = 32) -> None:
        self.place = place

        def hold(place: str) -> None:
            words.say(f"{place}/held")
            words.hear(f"{place}/hold")

        def first_task(place: str, i: int, first: bool) -> int:
            m = words.shared_marks(f"{place}/marks")
            m[2 * i] += 1
            while first:
                try:
                    words.say(f"{place}/first", os.getpid())
                    words.hear(f"{place}/packet", 60)
                    break
                except KeyboardInterrupt:
                    pass
            m[2 * i + 1] += 1
            return i

        remote = jt.remote(first_task)
        for _ in range(3):  # the function is known as a quick one
            jt.get(remote.remote(str(place), 0, False), timeout=NET)
        words.shared_marks(place / "marks")[0:2] = b"\0\0"
        holder = jt.remote(hold).remote(str(place))
        words.hear(place / "held")
        ahead = jt.remote(abs).remote(-1)  # takes the place of what is given ahead of time, one by one
        self.refs = [remote.remote(str(place), i, i == 0) for i in range(2 * count)]
        words.say(place / "hold")
        jt.get([holder, ahead], timeout=NET)
        self.worker = int(words.hear(place / "first"))

    def go_on(self) -> None:
        words.say(self.place / "packet")


@pytest.fixture
def one_worker(module_session: None) -> Iterator[None]:
    """A session of one CPU, so that it is known who gets the packet."""
    jt.shutdown()
    jt.init(num_cpus=1)
    yield
    jt.shutdown()


def test_several_cancels_of_tasks_behind_a_slow_one_in_a_packet(one_worker: None, marks: Any, tmp_path: Path) -> None:
    """1. a worker has read [slow, t1 .. t31]   2. five of them are cancelled: their `get` raises now, not later
    3. slow ends: none of the five runs, all others do."""
    packet = Packet(tmp_path)
    victims = packet.refs[3:13:2]
    began = time.monotonic()
    for ref in victims:
        jt.cancel(ref)
    for ref in victims:
        with pytest.raises(TaskCancelledError) as caught:
            jt.get(ref, timeout=NET)
        assert caught.value.rung == "pending"
    print(f"answered after {(time.monotonic() - began) * 1000:.1f} ms")
    assert marks[1] == 0  # slow is still in
    packet.go_on()
    rest = [ref for ref in packet.refs if ref not in victims]
    jt.get(rest, timeout=NET)
    ran = [i for i in range(len(packet.refs)) if marks[2 * i]]
    assert ran == [i for i, ref in enumerate(packet.refs) if ref not in victims]
    assert max(marks[2 * i] for i in ran) == 1


def test_a_hundred_cancels_of_the_running_task_push_no_other_cancel_out(
    one_worker: None, marks: Any, tmp_path: Path
) -> None:
    """The page remembers 256 wishes.

    1. a worker has read [slow, t1, ...]   2. t1 is cancelled   3. slow, which catches it, is cancelled 400 times
    4. slow ends: t1 must not run."""
    packet = Packet(tmp_path)
    os.kill(packet.worker, 19)  # stopped: it learns of nothing in between
    jt.cancel(packet.refs[1])
    for _ in range(400):
        jt.cancel(packet.refs[0])
    with pytest.raises(TaskCancelledError):
        jt.get(packet.refs[1], timeout=NET)
    status()  # an answer to this means that all before it was taken in
    os.kill(packet.worker, 18)
    packet.go_on()
    jt.wait(packet.refs, num_returns=len(packet.refs), timeout=NET)
    assert marks[0] == 1
    assert marks[2] == 0
    assert [marks[2 * i] for i in range(2, 64)] == [1] * 62


def test_tasks_behind_a_slow_one_run_elsewhere_when_there_is_room(marks: Any, tmp_path: Path) -> None:
    """Nobody can know that the first task of a packet takes an hour this time; the others must not wait for it."""

    def task(place: str, i: int, first: bool) -> int:
        m = words.shared_marks(f"{place}/marks")
        m[2 * i] += 1
        if first:
            words.hear(f"{place}/go", 60)
        m[2 * i + 1] += 1
        return i

    def hold(place: str, i: int) -> None:
        words.say(f"{place}/held{i}")
        words.hear(f"{place}/hold")

    remote = jt.remote(task)
    for i in range(1000, 1003):
        jt.get(remote.remote(str(tmp_path), i, False), timeout=NET)
    holders = [jt.remote(hold).remote(str(tmp_path), i) for i in (0, 1)]
    for i in (0, 1):
        words.hear(tmp_path / f"held{i}")
    ahead = [jt.remote(abs).remote(-1) for _ in range(2)]
    refs = [remote.remote(str(tmp_path), i, i == 0) for i in range(200)]
    words.say(tmp_path / "hold")
    jt.get([*holders, *ahead], timeout=NET)
    assert jt.get(refs[1:], timeout=5) == list(range(1, 200))
    with pytest.raises(GetTimeoutError):
        jt.get(refs[0], timeout=0)
    words.say(tmp_path / "go")
    assert jt.get(refs[0], timeout=NET) == 0
    assert [marks[2 * i] for i in range(200)] == [1] * 200


def test_a_task_that_waits_for_one_behind_it_in_its_own_packet(one_worker: None, tmp_path: Path) -> None:
    """1. the only worker has read [first, t1 .. t31]   2. first gets a ref to t31 and waits for it: t31 and all between
    are handed back and run in a worker that takes the free slot, instead of waiting for who waits for them."""

    def hold(place: str) -> None:
        words.say(f"{place}/held")
        words.hear(f"{place}/hold")

    def task(place: str, i: int) -> int:
        if i:
            return i
        words.say(f"{place}/first")
        (ref,) = pickle.loads(bytes.fromhex(words.hear(f"{place}/wanted")))
        return 1000 + int(jt.get(ref))

    remote = jt.remote(task)
    for i in range(1, 4):  # the function is known as a quick one
        jt.get(remote.remote(str(tmp_path), i), timeout=NET)
    holder = jt.remote(hold).remote(str(tmp_path))
    words.hear(tmp_path / "held")
    ahead = jt.remote(abs).remote(-1)
    refs = [remote.remote(str(tmp_path), i) for i in range(64)]
    words.say(tmp_path / "hold")
    jt.get([holder, ahead], timeout=NET)
    words.hear(tmp_path / "first")
    words.say(tmp_path / "wanted", pickle.dumps([refs[31]]).hex())
    assert jt.get(refs, timeout=NET) == [1031, *range(1, 64)]


# -- exactly once -----------------------------------------------------------------------------------------------------------


def crash_at_random(marks: Any, path: str, count: int, chance: float, big: bool) -> tuple[int, int]:
    def task(path: str, i: int, crash: int, big: bool) -> Any:
        m = words.shared_marks(path)
        m[2 * i] += 1
        if crash == 1:
            os._exit(1)
        m[2 * i + 1] += 1
        if crash == 2:
            os.kill(os.getpid(), 9)
        return b"x" * 150_000 if big and i % 7 == 0 else i

    rnd = random.Random(5)
    remote = jt.remote(task).options(max_retries=0)
    plan = [rnd.choice((1, 2)) if rnd.random() < chance else 0 for _ in range(count)]
    refs = [remote.remote(path, i, crash, big) for i, crash in enumerate(plan)]
    crashed = 0
    for i, (ref, crash) in enumerate(zip(refs, plan, strict=True)):
        try:
            value = jt.get(ref, timeout=60)
            assert crash == 0
            assert (value if isinstance(value, int) else len(value)) == (150_000 if big and i % 7 == 0 else i)
        except WorkerCrashedError:
            crashed += 1
            assert crash, f"task {i} did not crash, but is said to have"
    began = [marks[2 * i] for i in range(count)]
    assert max(began) == 1, "a task ran twice"
    assert min(began) == 1, "a task never ran"
    return count, crashed


@pytest.mark.parametrize("big", [False, True], ids=["tiny", "some big results"])
def test_each_task_runs_exactly_once_though_workers_crash(big: bool, marks: Any, tmp_path: Path) -> None:
    count, crashed = crash_at_random(marks, str(tmp_path / "marks"), 1500, 0.02, big)
    print(f"{count} tasks, {crashed} crashes")
    assert crashed > 0


def test_the_ledger_is_believed_after_values_that_went_out_one_by_one(marks: Any, tmp_path: Path) -> None:
    """Several big values of one task are a message each. Worker and supervisor count messages, to know what of the
    ledger was heard; counted apart, ends of finished tasks would be lost in the next crash, and run again."""
    pair = jt.remote(lambda: (b"x" * 150_000, b"y" * 150_000)).options(num_returns=2)
    refs = [ref for _ in range(10) for ref in pair.remote()]
    assert {len(value) for value in jt.get(refs, timeout=NET)} == {150_000}
    crash_at_random(marks, str(tmp_path / "marks"), 400, 0.02, False)


@pytest.mark.slow
def test_many_thousand_tasks_run_exactly_once_though_workers_crash(marks: Any, tmp_path: Path) -> None:
    count, crashed = crash_at_random(marks, str(tmp_path / "marks"), 30_000, 0.01, False)
    print(f"{count} tasks, {crashed} crashes")
    assert crashed > 0


def test_twenty_thousand_tiny_tasks_in_order() -> None:
    remote = jt.remote(abs)
    began = time.monotonic()
    refs = [remote.remote(-i) for i in range(20_000)]
    assert jt.get(refs, timeout=60) == list(range(20_000))
    print(f"{20_000 / (time.monotonic() - began) / 1000:.0f}k tasks a second")


@pytest.mark.slow
def test_the_supervisor_keeps_nothing_of_what_is_over() -> None:
    def memory_kb() -> int:
        text = Path(f"/proc/{status()['pid']}/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0])

    remote = jt.remote(abs)
    jt.get([remote.remote(-i) for i in range(20_000)], timeout=60)
    wait_until(lambda: status()["objects"] == 0, "all is freed")
    before = memory_kb()
    for _ in range(4):
        jt.get([remote.remote(-i) for i in range(20_000)], timeout=60)
    wait_until(lambda: status()["objects"] == 0, "all is freed")
    grown = memory_kb() - before
    print(f"grown by {grown} kB")
    assert grown < 10_000
