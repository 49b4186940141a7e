"""The rules may cost 8 us a task, no more. Time on a shared machine says nothing, so calls are counted.

Role: a guard for the hot path. A call of a Python function costs about 0.05 us, so a few dozen calls more a task are what
turns 160,000 tasks a second into 80,000. Each bound stands a little above what was measured; when one is crossed, look
at what was added, and move the bound only if it is worth it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from engine_rig import KERNEL

from jupyter_tasks.engine.events import (
    CPU_UNITS,
    Capabilities,
    End,
    Entry,
    Finished,
    Lease,
    Put,
    Released,
    Run,
    Submitted,
    Task,
    TaskSpec,
)
from jupyter_tasks.engine.scheduler import Scheduler
from jupyter_tasks.wire.frames import DURATION_SHIFT, Kind, frame

COUNT = 1000
BURST = 16  # tasks that the loop takes in at once
SPEC = TaskSpec()


def calls(play: Callable[[], Any]) -> int:
    """How many Python functions, and functions in C, are called while `play` runs."""
    counted = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal counted
        if event in ("call", "c_call"):
            counted += 1

    sys.setprofile(count)
    try:
        play()
    finally:
        sys.setprofile(None)
    return counted


def hot_loop(scheduler: Scheduler, tasks: list[Task], *, burst: int = BURST) -> None:
    """Submits all, finishes packet by packet whatever was given, drops the refs. The cheapest backend there is."""
    given: deque[tuple[Lease, list[Task]]] = deque()

    def do(instructions: list[Any]) -> None:
        for instruction in instructions:
            if type(instruction) is Run:
                given.append((instruction.lease, instruction.tasks))

    for i in range(0, len(tasks), burst):
        do(scheduler.handle(Submitted(tasks[i : i + burst]), 0.0))
    while given:
        lease, packet = given.popleft()
        ends = [End(task.id, Kind.RESULT, 4 << DURATION_SHIFT, OUTCOME) for task in packet]
        do(scheduler.handle(Finished(lease, ends), 0.0))
    for i in range(0, len(tasks), 64):
        do(scheduler.handle(Released(KERNEL, [task.id for task in tasks[i : i + 64]]), 0.0))


OUTCOME = frame(Kind.RESULT, 1, b"value")


def new_scheduler(*, depth: int = 2, packet: int = 32) -> Scheduler:
    return Scheduler({"CPU": 2 * CPU_UNITS}, Capabilities(depth=depth, packet=packet))


def cost(count: int = COUNT, *, burst: int = BURST, warm: bool = True, **capabilities: int) -> float:
    """Calls for each of `count` tasks; the test's own loop adds about two of those."""
    scheduler = new_scheduler(**capabilities)
    if warm:
        hot_loop(scheduler, [Task(10**6 + i, KERNEL, 1, SPEC, b"call", True) for i in range(100)])
    tasks = [Task(i, KERNEL, 1, SPEC, b"call", True) for i in range(1, count + 1)]
    total = calls(lambda: hot_loop(scheduler, tasks, burst=burst))
    assert not scheduler.live
    assert not scheduler.objects
    return total / count


def test_tiny_tasks_in_packets_cost_few_calls() -> None:
    measured = cost()
    print(f"{measured:.1f} calls a task in packets")
    assert measured < 30  # measured: 25.6


def test_tasks_one_by_one_cost_few_calls() -> None:
    """The slow way: one event for each submission, no packets, nothing ahead of time."""
    measured = cost(burst=1, depth=1, packet=1)
    print(f"{measured:.1f} calls a task one by one")
    assert measured < 88  # measured: 77.1


def lines(play: Callable[[], Any]) -> int:
    """How many lines of the engine run during `play`: unlike calls, these also show a loop over everything."""
    counted = 0

    def within(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal counted
        counted += event == "line"
        return within

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        return within if "/engine/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        play()
    finally:
        sys.settrace(before)
    return counted


def test_the_cost_does_not_grow_with_the_backlog() -> None:
    """Once in a while something may look at all; with each task it may not."""
    measured = []
    for backlog in (500, 4000):
        scheduler = new_scheduler()
        tasks = [Task(i, KERNEL, 1, SPEC, b"call", True) for i in range(1, backlog + 1)]
        measured.append(lines(lambda s=scheduler, t=tasks: hot_loop(s, t)) / backlog)
    assert measured[1] < measured[0] * 1.1 + 2, measured


def test_the_cost_does_not_grow_with_what_is_stored() -> None:
    measured = []
    for stored in (0, 3000):
        scheduler = new_scheduler()
        for i in range(stored):
            entry = Entry(10**6 + i, KERNEL)
            entry.kind = Kind.RESULT
            scheduler.handle(Put(entry), 0.0)
        tasks = [Task(i, KERNEL, 1, SPEC, b"call", True) for i in range(1, COUNT + 1)]
        hot_loop(scheduler, tasks[: COUNT // 2])
        measured.append(lines(lambda s=scheduler, t=tasks: hot_loop(s, t[COUNT // 2 :])))
    assert measured[1] < measured[0] * 1.1 + 2, measured


def test_many_dependents_of_one_value_cost_no_more_each() -> None:
    measured = []
    for count in (100, 1600):
        scheduler = new_scheduler()
        root = Task(10**6, KERNEL, 1, SPEC, b"call", True)
        (run,) = scheduler.handle(Submitted([root]), 0.0)
        dependents = [Task(i, KERNEL, 1, SPEC, b"call", False) for i in range(1, count + 1)]
        for task in dependents:
            task.deps = (root.id,)

        def play(scheduler: Scheduler = scheduler, run: Any = run, root: Task = root, new: Any = dependents) -> None:
            scheduler.handle(Submitted(new), 0.0)
            scheduler.handle(Finished(run.lease, [End(root.id, Kind.RESULT, 0, OUTCOME)]), 0.0)

        measured.append(lines(play) / count)
    assert measured[1] < measured[0] * 1.1 + 2, measured
