"""`f.map` and `f.starmap`: many calls at once, as one group. Role: end to end, with real workers.

Promises: docs/semantics.md, Map.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks import mapping
from jupyter_tasks.exceptions import TaskCancelledError, TaskError, UnserializableError
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")


@jt.remote
def add(x: Any, y: Any = 0) -> Any:
    return x + y


@jt.remote
def hold(path: str, i: int = 0) -> int:
    """Ends when the test says so."""
    words.mark(f"{path}.in")
    words.hear(path, 60)
    return i


def live_groups() -> list[dict[str, Any]]:
    return list(current_client().request("groups"))


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_one_ref_for_each_item_in_their_order() -> None:
    refs = add.map(range(2000))
    assert all(isinstance(ref, jt.ObjectRef) for ref in refs)
    assert jt.get(refs) == list(range(2000))


def test_several_iterables_end_with_the_shortest() -> None:
    """As `zip`, and so as Executor.map; one of them may be endless."""
    assert jt.get(add.map([1, 2, 3], (10, 20))) == [11, 22]
    assert jt.get(add.map(itertools.count(), [5, 5, 5])) == [5, 6, 7]
    assert add.map([], itertools.count()) == []


def test_starmap_takes_tuples() -> None:
    """Of different lengths, too; any iterable is one."""
    assert jt.get(add.starmap([(1,), (1, 2), [3, 4]])) == [1, 3, 7]
    assert jt.get(add.starmap(((i,) for i in range(3)), y=1)) == [1, 2, 3]


def test_refs_among_the_items_are_awaited(tmp_path: Path) -> None:
    """Also those of a map before, that is not over."""
    first = hold.map([str(tmp_path / "go")] * 3, range(3))
    second = add.map(first, first)
    words.say(tmp_path / "go")
    assert jt.get(second) == [0, 2, 4]


def test_refs_that_only_the_iterable_had_live_until_their_call_is_submitted() -> None:
    """A ref is taken, packed and forgotten; the supervisor hears of it before the burst is written."""

    def items() -> Iterator[Any]:
        ref = jt.put("value")
        yield "first"  # zip keeps this one
        yield ref
        del ref
        yield "next"
        marker = jt.put("marker")
        before = status()["objects"]
        del marker
        wait_until(lambda: status()["objects"] < before, "what was dropped until now is told")

    assert jt.get(jt.remote(lambda x: x).map(items())) == ["first", "value", "next"]


def test_common_arguments_are_sent_once() -> None:
    """A big one is one object at the supervisor for all calls; a ref is replaced by its value."""
    big = np.ones(200_000)
    before = status()["objects"]
    path_refs = add.map(range(3), y=big)
    # The three tasks, their group for a while, and one value: not three.
    assert status()["objects"] <= before + 5
    assert [float(value.sum()) for value in jt.get(path_refs)] == [200_000.0, 400_000.0, 600_000.0]
    assert jt.get(add.map([1, 2], y=jt.put(5))) == [6, 7]


def test_big_items_travel_beside_the_frames() -> None:
    """Descriptors and small frames in one burst keep their order."""
    items = [np.full(50_000, i) if i % 3 == 0 else i for i in range(30)]
    values = jt.get(add.map(items))
    assert [int(np.max(value)) for value in values] == list(range(30))


def test_options_of_the_function_hold() -> None:
    """num_returns gives lists of refs, and 0 gives None, as `.remote()` does."""
    pairs = jt.remote(num_returns=2)(divmod).map([7, 9], [2, 4])
    assert jt.get(pairs[0]) == [3, 1]
    assert jt.get(pairs[1]) == [2, 1]
    assert jt.remote(num_returns=0)(lambda x: []).map([1, 2]) == [None, None]


def test_generators_and_threads_can_be_mapped() -> None:
    """What does not travel in bursts is submitted one by one, as a group all the same."""

    @jt.remote
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    with jt.TaskGroup("outer") as outer:
        streams = count.map([1, 3])
        assert [[jt.get(ref) for ref in stream] for stream in streams] == [[0], [0, 1, 2]]
        here = jt.remote(executor="thread")(lambda x, y: (x + y, os.getpid())).map([1, 2], y=5)
        assert jt.get(here) == [(6, os.getpid()), (7, os.getpid())]
    assert len(outer.tasks) == 4
    with pytest.raises(TypeError, match=r"^item 1: count"):
        count.starmap([(1,), ()])


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_a_bad_item_says_which_it_is_and_nothing_runs(tmp_path: Path) -> None:
    """In the first burst nothing was submitted yet: no task, no group."""
    count = len(jt.tasks())
    items = [str(tmp_path / "ran")] * 17 + [threading.Lock()]
    with pytest.raises(UnserializableError, match=r"^item 17: .*Lock|^item 17: .*lock"):
        jt.remote(words.mark).map(items)
    assert len(jt.tasks()) == count
    assert live_groups() == []
    assert not (tmp_path / "ran").exists()


def test_arguments_that_do_not_fit_are_told_before_anything_runs() -> None:
    """For map they fit all or none, without looking at an item; for starmap the item is named."""
    with pytest.raises(TypeError, match=r"^add\(\): too many positional"):
        add.map(iter(lambda: pytest.fail("an item was read"), None), [1], [1])
    with pytest.raises(TypeError, match=r"^item 2: add\(\): too many"):
        add.starmap([(1,), (1, 2), (1, 2, 3)])
    with pytest.raises(TypeError, match="item 1: int is not a tuple"):
        add.starmap([(1,), 2])
    with pytest.raises(TypeError, match="argument 2 has none: it is an int"):
        add.map([1], 5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        add.map([1], z=1)
    with pytest.raises(UnserializableError, match="'y'"):
        add.map([1], y=[threading.Lock()])


def test_an_iterable_that_raises_cancels_what_was_submitted(tmp_path: Path) -> None:
    """1. a first burst runs; 2. the iterable raises; 3. the error is the caller's, and what runs is interrupted."""
    go = str(tmp_path / "go")

    def items() -> Iterator[str]:
        yield from [go] * (mapping.BURST + 1)
        wait_until(lambda: words.marks(f"{go}.in") == 2, "both workers have begun")
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        hold.map(items())
    wait_until(lambda: not live_groups(), "all of it has stopped")
    assert {task["state"] for task in jt.tasks() if task["name"] == "hold" and task["group"] == "hold"} <= {
        "cancelled",
        "completed",
    }
    assert words.marks(f"{go}.in") == 2
    assert not (tmp_path / "go").exists()


def test_the_stop_button_cancels_what_was_submitted(tmp_path: Path) -> None:
    """An endless iterable: KeyboardInterrupt ends the call at once, and its tasks."""
    go = str(tmp_path / "go")

    def items() -> Iterator[str]:
        for i in itertools.count():
            if i == 2 * mapping.BURST:
                wait_until(lambda: words.marks(f"{go}.in") == 2, "both workers have begun")
                os.kill(os.getpid(), signal.SIGINT)
            yield go

    with pytest.raises(KeyboardInterrupt):
        hold.map(items())
    wait_until(lambda: not live_groups(), "all of it has stopped")
    assert words.marks(f"{go}.in") == 2


def test_a_slow_iterable_does_not_delay_the_first_calls(tmp_path: Path) -> None:
    """Its first items' calls run while it thinks about the next: it ends only if the first one has run."""

    def items() -> Iterator[Any]:
        yield str(tmp_path / "first")
        time.sleep(2 * mapping.BURST_SECONDS)
        yield str(tmp_path / "second")
        words.hear(tmp_path / "first")

    jt.get(jt.remote(words.mark).map(items()))


# -- as a group --------------------------------------------------------------------------------------------------------


def test_a_map_is_one_group_of_the_functions_name(tmp_path: Path) -> None:
    """Cancelled as one: those that run are interrupted, and the others never begin."""
    refs = hold.map([str(tmp_path / "go")] * 10)
    (group,) = live_groups()
    assert (group["name"], group["submitted"], group["state"]) == ("hold", 10, "running")
    wait_until(lambda: words.marks(tmp_path / "go.in") == 2, "both workers have begun")
    current_client().cancel(group["id"])
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            jt.get(ref)
    assert live_groups() == []
    assert words.marks(tmp_path / "go.in") == 2


def test_it_stays_open_while_items_come(tmp_path: Path) -> None:
    """Not over when all members so far are: 1. the first burst ends; 2. more comes; 3. it is the same group."""

    def items() -> Iterator[int]:
        yield from range(mapping.BURST)
        wait_until(lambda: sum(live_groups()[0]["counts"].values()) == mapping.BURST, "the first burst is over")
        assert live_groups()[0]["state"] == "running"
        yield 0

    with jt.TaskGroup("outer") as outer:
        jt.get(add.map(items()))
        assert outer._record()["submitted"] == mapping.BURST + 1
        (map_,) = [group for group in live_groups() if group["name"] == "add"] or [None]
        assert map_ is None or map_["submitted"] == mapping.BURST + 1


def test_inside_a_block_it_is_an_inner_group() -> None:
    """The block waits for it, and raises its failure."""
    with pytest.raises(TaskError, match="unsupported operand"), jt.TaskGroup("outer") as outer:
        add.map([1, None, 2], [1, 1, 1])
    assert outer.state == "failed"
    assert len(outer.tasks) == 3


def test_in_a_cancelled_block_none_of_it_runs(tmp_path: Path) -> None:
    """Also when the block's group is final already: nothing was in it."""
    with jt.TaskGroup("outer") as outer:
        outer.cancel()
        wait_until(lambda: outer.state == "cancelled", "it is over, though its block is open")
        refs = jt.remote(words.mark).map([str(tmp_path / "ran")] * 3)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            jt.get(ref)
    assert not (tmp_path / "ran").exists()


def test_inside_a_task_it_works_too() -> None:
    """And needs no slot more: the task's own is free while it waits."""

    def outer() -> list[int]:
        return list(jt.get(jt.remote(lambda x: x * x).map(range(5))))

    assert jt.get([jt.remote(outer).remote() for _ in range(3)]) == [[0, 1, 4, 9, 16]] * 3


def test_a_burst_costs_less_than_its_calls() -> None:
    """Few writes: what ten thousand calls send in ten thousand, a map sends in some dozens."""
    client = current_client()
    writes = 0
    send = client._send

    def counted(data: bytes, fds: Any = ()) -> None:
        nonlocal writes
        writes += 1
        send(data, fds)

    client._send = counted  # type: ignore[method-assign]
    try:
        refs = add.map(range(10_000))
    finally:
        del client._send
    assert writes < 500
    assert jt.get(refs[-1]) == 9999
    jt.wait(refs, num_returns=len(refs))
