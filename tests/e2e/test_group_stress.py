"""Groups at random, with everything that can be in one. Role: property test, end to end (docs/semantics.md, Groups).

Members return, fail, crash, do not listen, submit others, open groups of their own, run in threads, stream, and are
mapped; half of the groups are cancelled at some moment. What is said of each afterwards must be true, and nothing left.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

import jupyter_tasks as jt
from jupyter_tasks.exceptions import JupyterTasksError

pytestmark = [pytest.mark.usefixtures("session"), pytest.mark.slow]

FINAL = {"completed", "failed", "crashed", "cancelled"}
HOW = ("well", "well", "well", "fails", "crashes", "deaf")


@jt.remote(max_retries=1)
def leaf(seconds: float, how: str) -> int:
    if how == "deaf":
        end = time.monotonic() + seconds + 0.05
        while time.monotonic() < end:
            try:
                time.sleep(0.005)
            except KeyboardInterrupt:
                pass
        return 1
    time.sleep(seconds)
    if how == "fails":
        raise ValueError("x")
    if how == "crashes":
        os._exit(3)
    return 1


@jt.remote
def parent(seconds: float, hows: list[str], waits: bool) -> int:
    refs = [leaf.remote(seconds, how) for how in hows]
    for ref in refs if waits else ():
        try:
            jt.get(ref)
        except JupyterTasksError:
            pass
    return 2


@jt.remote
def opens_a_group(seconds: float, hows: list[str]) -> None:
    try:
        with jt.TaskGroup("inner"):
            for how in hows:
                leaf.remote(seconds, how)
    except Exception:
        pass


@jt.remote(executor="thread")
def in_a_thread(seconds: float) -> int:
    context = jt.get_runtime_context()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not context.is_canceled():
        time.sleep(0.001)
    return 3


@jt.remote
def streams(seconds: float) -> Iterator[int]:
    for i in range(3):
        time.sleep(seconds / 3)
        yield i


def submit_something(rnd: random.Random) -> list[jt.ObjectRef]:
    seconds = rnd.choice((0, 0.001, 0.01, 0.03))
    hows = [rnd.choice(HOW) for _ in range(rnd.randrange(4))]
    kind = rnd.random()
    if kind < 0.4:
        return [leaf.remote(seconds, rnd.choice(HOW))]
    if kind < 0.6:
        return [parent.remote(seconds, hows, rnd.random() < 0.5)]
    if kind < 0.7:
        return [opens_a_group.remote(seconds, hows)]
    if kind < 0.8:
        return [in_a_thread.remote(seconds)]
    if kind < 0.9:
        return [streams.remote(seconds).completed()]
    return leaf.map([0, 0.01], ["well", rnd.choice(("well", "fails"))])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_of_a_group_is_true(seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(25):
        refs: list[jt.ObjectRef] = []
        is_cancelled = rnd.random() < 0.5
        group = jt.TaskGroup("g", grace=rnd.choice((0.0, 0.02, 0.2)), fail_fast=rnd.random() < 0.2)
        timer = threading.Timer(rnd.random() * 0.05, group.cancel, kwargs={"force": rnd.random() < 0.2})
        try:
            with group:
                for _ in range(rnd.randrange(1, 8)):
                    refs += submit_something(rnd)
                if is_cancelled:
                    timer.start()
        except Exception:
            has_raised = True
        else:
            has_raised = False
        if is_cancelled:
            timer.join()
        del timer  # it has the group
        assert all(ref.is_final for ref in refs), "the block was left before its members were final"
        state, tasks = group.state, group.tasks
        assert {task["state"] for task in tasks} <= FINAL
        has_failed = any(task["state"] in ("failed", "crashed") for task in tasks)
        assert not has_raised or state == "failed"
        assert state in (("failed",) if has_failed else ("completed",)) or (state == "cancelled" and is_cancelled), (
            state
        )
        record = group._record()
        assert record["submitted"] == len(tasks) == sum(record["counts"].values())
