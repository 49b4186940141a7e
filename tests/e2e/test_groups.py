"""End to end: TaskGroup (docs/semantics.md, Groups). Role: SEMANTICS 4 as a user meets it; the rules stand in engine/."""

# ruff: noqa: PT012, SIM117  # the block of a group is what is to raise

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import Screen, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ForceCancelledError, ObjectLostError, TaskCancelledError, TaskError

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0  # seconds; what is measured here takes milliseconds


@jt.remote
def double(x: int) -> int:
    return 2 * x


@jt.remote
def fails(text: str) -> None:
    raise ValueError(text)


@jt.remote
def sleeps(place: str, name: str) -> None:
    words.say(f"{place}/{name}", os.getpid())
    time.sleep(60)


@jt.remote
def deaf(place: str, name: str) -> None:
    words.say(f"{place}/{name}", os.getpid())
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            words.mark(f"{place}/{name}.heard")


@jt.remote
def until(place: str, name: str) -> str:
    words.say(f"{place}/{name}.in", os.getpid())
    return words.hear(f"{place}/{name}")


def later(what: Callable[[], Any], *said: str | Path) -> threading.Thread:
    """Does it in another thread, as soon as these words were said."""

    def act() -> None:
        for word in said:
            words.hear(word)
        what()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def states(group: jt.TaskGroup) -> list[str]:
    return sorted(task["state"] for task in group.tasks)


# -- how a block ends ---------------------------------------------------------------------------------------------


def test_leaving_the_block_waits_for_all_members() -> None:
    """And the group is completed; its members' values are there."""
    with jt.TaskGroup("sweep") as group:
        refs = [double.remote(i) for i in range(20)]
        assert group.state == "running"
    assert all(ref.is_final for ref in refs)
    assert (group.state, states(group)) == ("completed", ["completed"] * 20)
    assert jt.get(refs) == [2 * i for i in range(20)]
    assert {task["group"] for task in group.tasks} == {"sweep"}


def test_an_empty_block_is_completed() -> None:
    with jt.TaskGroup() as group:
        pass
    assert group.state == "completed"


def test_a_failed_member_s_error_is_raised_as_jt_get_raises_it() -> None:
    """The others go on to their end."""
    with pytest.raises(ValueError, match="boom") as caught, jt.TaskGroup() as group:
        fails.remote("boom")
        ref = double.remote(1)
    assert isinstance(caught.value, TaskError)
    assert "in fails" in str(caught.value.__cause__)
    assert group.state == "failed"
    assert jt.get(ref) == 2


def test_several_failed_members_are_an_exception_group() -> None:
    with pytest.raises(ExceptionGroup, match="2 tasks of the group 'sweep' have failed") as caught:
        with jt.TaskGroup("sweep"):
            fails.remote("one")
            fails.remote("two")
    assert sorted(str(error) for error in caught.value.exceptions) == ["one", "two"]
    assert all(isinstance(error, ValueError) for error in caught.value.exceptions)


def test_a_root_cause_is_raised_once() -> None:
    """Not again for those that needed it, nor for a task that passes on what its own get has raised."""

    @jt.remote
    def passes_on() -> Any:
        return jt.get(fails.remote("root"))

    with pytest.raises(ValueError, match="root"), jt.TaskGroup():
        double.remote(double.remote(passes_on.remote()))


def test_a_crashed_member_fails_the_group() -> None:
    @jt.remote(max_retries=0)
    def crashes() -> None:
        os._exit(3)

    with pytest.raises(jt.exceptions.WorkerCrashedError, match="exit code 3"), jt.TaskGroup() as group:
        crashes.remote()
    assert group.state == "failed"


def test_a_member_cancelled_alone_does_not_fail_the_group(tmp_path: Path) -> None:
    with jt.TaskGroup() as group:
        ref = sleeps.remote(str(tmp_path), "in")
        double.remote(1)
        words.hear(tmp_path / "in")
        jt.cancel(ref)
    assert (group.state, states(group)) == ("completed", ["cancelled", "completed"])


# -- cancel -------------------------------------------------------------------------------------------------------


def test_a_cancel_from_another_thread_ends_the_block_without_an_error(tmp_path: Path) -> None:
    """Those that run are interrupted, those that wait never run; CANCELLING while members clean up."""
    place = str(tmp_path)

    @jt.remote
    def cleans_up() -> None:
        words.say(f"{place}/in")
        try:
            time.sleep(60)
        finally:
            words.say(f"{place}/cleaning")
            words.hear(f"{place}/clean")

    @jt.remote
    def never() -> None:
        words.mark(f"{place}/ran")

    with jt.TaskGroup() as group:
        cleans_up.remote()
        words.hear(f"{place}/in")
        waiting = [never.options(num_cpus=2).remote() for _ in range(5)]

        def look() -> None:
            words.hear(f"{place}/cleaning")
            wait_until(lambda: all(ref.is_final for ref in waiting), "those that wait are cancelled at once")
            assert group.state == "cancelling"
            words.say(f"{place}/clean")

        group.cancel(reason="enough")
        thread = threading.Thread(target=look)
        thread.start()
    thread.join()
    assert (group.state, states(group)) == ("cancelled", ["cancelled"] * 6)
    assert words.marks(f"{place}/ran") == 0
    with pytest.raises(TaskCancelledError, match=r"by group: group group: enough") as caught:
        jt.get(waiting[0])
    assert caught.value.source == "group"


def test_a_get_in_the_block_raises_and_the_block_swallows_it(tmp_path: Path) -> None:
    """The user asked for the cancel: nothing is raised after the block."""
    with jt.TaskGroup() as group:
        ref = sleeps.remote(str(tmp_path), "in")
        later(group.cancel, tmp_path / "in").join()
        jt.get(ref)
        raise AssertionError("get has returned")
    assert group.state == "cancelled"


def test_another_error_than_the_cancel_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(TaskCancelledError), jt.TaskGroup() as group:
        other = sleeps.remote(str(tmp_path), "in")
        words.hear(tmp_path / "in")
        jt.cancel(other)
        jt.get(other)  # its own cancel, not the group's
    assert group.state == "cancelled"


def test_a_member_that_ends_anyway_keeps_its_value(tmp_path: Path) -> None:
    @jt.remote
    def wins(place: str) -> str:
        words.say(f"{place}/in")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
        return "won"

    with jt.TaskGroup() as group:
        ref = wins.remote(str(tmp_path))
        words.hear(tmp_path / "in")
        group.cancel()
    assert jt.get(ref) == "won"
    assert (group.state, states(group)) == ("cancelled", ["completed"])


def test_a_deadline_ends_a_member_that_does_not_listen(tmp_path: Path) -> None:
    """Never stuck in CANCELLING: after the grace period its process goes."""
    with jt.TaskGroup(grace=0.0) as group:
        ref = deaf.remote(str(tmp_path), "in")
        pid = int(words.hear(tmp_path / "in"))
        group.cancel()
    assert group.state == "cancelled"
    assert not words.alive(pid)
    with pytest.raises(ForceCancelledError):
        jt.get(ref)


def test_force_ends_the_processes_at_once(tmp_path: Path) -> None:
    with jt.TaskGroup(grace=math.inf) as group:
        deaf.remote(str(tmp_path), "in")
        pid = int(words.hear(tmp_path / "in"))
        group.cancel()
        words_heard = tmp_path / "in.heard"
        wait_until(lambda: words.marks(words_heard) == 1, "the interrupt was delivered")
        group.cancel()  # again: nothing
        group.cancel(force=True)
    assert group.state == "cancelled"
    assert not words.alive(pid)
    assert words.marks(words_heard) == 1


def test_a_cancel_of_a_group_that_is_over_is_a_no_op() -> None:
    with jt.TaskGroup() as group:
        ref = double.remote(4)
    group.cancel(force=True)
    assert group.state == "completed"
    assert jt.get(ref) == 8


def test_a_group_that_was_cancelled_before_its_block_runs_nothing(tmp_path: Path) -> None:
    @jt.remote
    def runs() -> None:
        words.mark(tmp_path / "ran")

    group = jt.TaskGroup()
    group.cancel()
    assert group.state == "pending"
    with group:
        runs.remote()
    assert group.state == "cancelled"
    assert words.marks(tmp_path / "ran") == 0


def test_fail_fast_cancels_the_others_and_raises_what_failed(tmp_path: Path) -> None:
    """Also if the block is in a get of one that was cancelled for it."""
    with pytest.raises(ValueError, match="first"), jt.TaskGroup(fail_fast=True) as group:
        ref = sleeps.remote(str(tmp_path), "in")
        words.hear(tmp_path / "in")
        fails.remote("first")
        jt.get(ref)
    assert (group.state, states(group)) == ("failed", ["cancelled", "failed"])


# -- who is a member ----------------------------------------------------------------------------------------------


def test_what_members_submit_are_members(tmp_path: Path) -> None:
    """They are waited for, also if their parent has not, and was over before they began: 50 times, it is a race."""

    @jt.remote
    def child(word: str) -> None:
        words.mark(word)

    @jt.remote(num_cpus=0)
    def parent(word: str) -> None:
        for _ in range(2):
            child.remote(word)

    for i in range(50):
        word = str(tmp_path / f"ran{i}")
        with jt.TaskGroup() as group:
            parent.remote(word)
        assert words.marks(word) == 2, "the block was left before the children had run"
        assert group._record()["submitted"] == 3


def test_a_cancel_reaches_what_members_have_submitted(tmp_path: Path) -> None:
    @jt.remote
    def parent(place: str) -> None:
        jt.get([sleeps.remote(place, "child"), sleeps.remote(place, "other")])

    with jt.TaskGroup() as group:
        parent.remote(str(tmp_path))
        pids = [int(words.hear(tmp_path / name)) for name in ("child", "other")]
        group.cancel()
    assert (group.state, states(group)) == ("cancelled", ["cancelled"] * 3)
    assert len(set(pids)) == 2


def test_groups_nest_and_a_cancel_is_recursive(tmp_path: Path) -> None:
    with jt.TaskGroup("outer") as outer:
        double.remote(1)
        with jt.TaskGroup("inner") as inner:
            sleeps.remote(str(tmp_path), "in")
            later(outer.cancel, tmp_path / "in").join()
    assert (outer.state, inner.state) == ("cancelled", "cancelled")
    assert {task["group"] for task in outer.tasks} == {"outer", "inner"}


def test_an_inner_group_s_error_that_was_handled_is_not_raised_again() -> None:
    """The outer group has a failed member all the same, and says so."""
    with jt.TaskGroup() as outer:
        try:
            with jt.TaskGroup():
                fails.remote("handled")
        except ValueError:
            pass
    assert outer.state == "failed"


def test_a_group_inside_a_task_is_inside_the_task_s_group(tmp_path: Path) -> None:
    @jt.remote
    def works(place: str) -> str:
        with jt.TaskGroup("inner") as inner:
            sleeps.remote(place, "in")
        return inner.state

    with jt.TaskGroup("outer") as outer:
        works.remote(str(tmp_path))
        words.hear(tmp_path / "in")
        outer.cancel()
    assert outer.state == "cancelled"
    assert states(outer) in (["cancelled", "cancelled"], ["cancelled", "completed"])
    assert {task["group"] for task in outer.tasks} == {"outer", "inner"}


def test_a_killed_task_s_inner_group_ends_with_its_members(tmp_path: Path) -> None:
    """Nobody is left to leave its block."""

    @jt.remote
    def works(place: str) -> None:
        with jt.TaskGroup("inner"):
            until.remote(place, "go")

    ref = works.remote(str(tmp_path))
    words.hear(tmp_path / "go.in")
    jt.cancel(ref, force=True, recursive=False)
    with pytest.raises(ForceCancelledError):
        jt.get(ref, timeout=NET)
    from jupyter_tasks.session import current_client

    assert [group["name"] for group in current_client().request("groups")] == ["inner"]
    words.say(tmp_path / "go")
    wait_until(lambda: not current_client().request("groups"), "the group is over")


# -- errors and the stop button in the block ------------------------------------------------------------------------


def test_an_error_in_the_block_cancels_the_group_waits_and_is_raised_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), jt.TaskGroup() as group:
        ref = sleeps.remote(str(tmp_path), "in")
        words.hear(tmp_path / "in")
        1 / 0  # noqa: B018
    assert ref.is_final
    assert (group.state, states(group)) == ("cancelled", ["cancelled"])
    with pytest.raises(TaskCancelledError, match="ZeroDivisionError in its block"):
        jt.get(ref)


@pytest.mark.parametrize("where", ["in the block", "while it waits"])
def test_the_stop_button_cancels_the_group_waits_and_is_raised_again(where: str, tmp_path: Path) -> None:
    group = jt.TaskGroup()

    def press() -> None:
        wait_until(lambda: words.said(tmp_path / "sleeps") if where == "in the block" else group._left, "it is there")
        os.kill(os.getpid(), signal.SIGINT)

    stop = later(press, tmp_path / "in")
    with pytest.raises(KeyboardInterrupt), group:
        ref = sleeps.remote(str(tmp_path), "in")
        if where == "in the block":
            words.say(tmp_path / "sleeps")
            time.sleep(60)
    stop.join()
    assert ref.is_final
    assert group.state == "cancelled"


def test_the_stop_button_pressed_again_kills(tmp_path: Path) -> None:
    """A member that does not listen must not keep the notebook."""

    group = jt.TaskGroup(grace=math.inf)

    def press() -> None:
        wait_until(lambda: group._left, "the block is left")
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: words.marks(tmp_path / "in.heard"), "the first one has reached the member")
        os.kill(os.getpid(), signal.SIGINT)

    stop = later(press, tmp_path / "in")
    with pytest.raises(KeyboardInterrupt), group:
        ref = deaf.remote(str(tmp_path), "in")
    stop.join()
    assert group.state == "cancelled"
    with pytest.raises(ForceCancelledError):
        jt.get(ref)


# -- hooks --------------------------------------------------------------------------------------------------------


def test_hooks_are_called_once_in_order_when_all_has_stopped_before_the_block_is_left() -> None:
    """A hook that fails is reported, and the rest go on."""
    seen: list[Any] = []

    def breaks(group: jt.TaskGroup) -> None:
        seen.append("breaks")
        raise RuntimeError("this hook is broken")

    hooks = [lambda group: seen.append((group.name, group.state)), breaks, lambda group: seen.append("last")]
    with Screen() as screen, jt.TaskGroup("sweep", on_cancellation=hooks) as group:
        double.remote(1)
        group.cancel()
    assert seen == [("sweep", "cancelled"), "breaks", "last"]
    assert "this hook is broken" in screen.err.getvalue()
    group.cancel()
    assert len(seen) == 3


def test_the_stop_button_ends_the_hook_that_runs_and_the_rest_go_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def hangs(group: jt.TaskGroup) -> None:
        words.say(tmp_path / "hook")
        time.sleep(60)

    stop = later(lambda: os.kill(os.getpid(), signal.SIGINT), tmp_path / "hook")
    with (
        pytest.raises(KeyboardInterrupt),
        jt.TaskGroup(on_cancellation=[hangs, lambda group: seen.append("last")]) as g,
    ):
        g.cancel()
    stop.join()
    assert seen == ["last"]


def test_hooks_are_called_for_an_error_in_the_block_and_not_without_a_cancel() -> None:
    seen: list[str] = []
    with jt.TaskGroup(on_cancellation=[lambda group: seen.append("well")]):
        double.remote(1)
    with pytest.raises(KeyError), jt.TaskGroup(on_cancellation=[lambda group: seen.append("error")]):
        raise KeyError
    assert seen == ["error"]


# -- async --------------------------------------------------------------------------------------------------------


def test_async_with_waits_without_blocking_the_loop(tmp_path: Path) -> None:
    async def main() -> list[Any]:
        async with jt.TaskGroup() as group:
            refs = [double.remote(i) for i in range(3)]
            held = until.remote(str(tmp_path), "go")
            asyncio.get_running_loop().call_later(0.01, words.say, tmp_path / "go", "gone")
        assert group.state == "completed"
        return await asyncio.gather(*refs, held)

    assert asyncio.run(main()) == [0, 2, 4, "gone"]


def test_coroutines_started_in_the_block_submit_to_its_group() -> None:
    async def submits() -> None:
        await double.remote(1)

    async def main() -> jt.TaskGroup:
        async with jt.TaskGroup() as group:
            await asyncio.gather(submits(), submits())
        return group

    assert len(asyncio.run(main()).tasks) == 2


def test_cancelling_the_code_around_an_async_block_cancels_the_group(tmp_path: Path) -> None:
    """And waits for its end; async hooks are awaited."""
    seen: list[str] = []

    async def hook(group: jt.TaskGroup) -> None:
        await asyncio.sleep(0)
        seen.append(group.state)

    async def block() -> None:
        async with jt.TaskGroup(on_cancellation=[hook]):
            sleeps.remote(str(tmp_path), "in")

    async def main() -> None:
        task = asyncio.create_task(block())
        while not words.said(tmp_path / "in"):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["cancelled"]
    assert not status()["live"]


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_group_is_for_one_block() -> None:
    with jt.TaskGroup("once") as group:
        pass
    with pytest.raises(RuntimeError, match=r"'once' was used before; make another one"), group:
        pass


def test_code_that_outlives_the_block_cannot_submit_to_it() -> None:
    """It says so instead of running a task that nobody waits for."""

    async def main() -> None:
        async def late() -> None:
            await left.wait()
            double.remote(1)

        left = asyncio.Event()
        async with jt.TaskGroup("early"):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        left.set()
        with pytest.raises(RuntimeError, match="'early' is over; make another one"):
            await task

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": ""}, TypeError, "not empty"),
        ({"name": 3}, TypeError, "not 3"),
        ({"grace": -1}, ValueError, "negative"),
        ({"grace": math.nan}, ValueError, "nan"),
        ({"on_cancellation": [3]}, TypeError, "called with the group"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        jt.TaskGroup(**arguments)


def test_a_group_cannot_be_sent() -> None:
    group = jt.TaskGroup("here")
    with pytest.raises(TypeError, match="'here' stays where it was made"):
        pickle.dumps(group)


def test_waiting_for_a_group_inside_its_own_block_is_refused() -> None:
    with jt.TaskGroup("sweep") as group, pytest.raises(RuntimeError, match="its block has not been left"):
        group.wait()
    assert group.wait(0)


def test_a_group_whose_session_ends_raises_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(ObjectLostError, match="shut down"), jt.TaskGroup() as group:
        sleeps.remote(str(tmp_path), "in")
        words.hear(tmp_path / "in")
        jt.shutdown()
    assert group.state == "cancelled"
    assert group.tasks == []


# -- what it shows ------------------------------------------------------------------------------------------------


def test_in_a_terminal_one_line_tells_how_far_it_is() -> None:
    """In a program; a notebook has a board for that, and a file is not written full."""
    program = (
        "import jupyter_tasks as jt, time\n"
        "@jt.remote\ndef f(i):\n    time.sleep(1.2 * i)\n    return i\n"
        "with jt.TaskGroup('sweep'):\n    [f.remote(i) for i in (0, 1)]\n"
    )
    for is_terminal in (True, False):
        ours, theirs = os.openpty() if is_terminal else os.pipe()
        with subprocess.Popen([sys.executable, "-c", program], stderr=theirs) as running:
            os.close(theirs)
            text = b""
            try:
                while piece := os.read(ours, 1000):
                    text += piece
            except OSError:
                pass  # so a pseudo terminal ends
            running.wait(NET * 6)
        os.close(ours)
        shown = [line.strip() for line in text.decode().replace("\n", "\r").split("\r") if line.strip()]
        assert not is_terminal or "sweep: 1 of 2 done, 1 running" in shown, shown
        assert not is_terminal or shown[-1] == "sweep: 2 of 2 done", shown
        assert is_terminal or not shown


# -- stories ------------------------------------------------------------------------------------------------------


def test_a_ref_tells_its_story() -> None:
    """Each transition with time, source and reason."""

    @jt.remote(retry_exceptions=True, max_retries=1, timeout=60)
    def fails_twice() -> None:
        raise ValueError("no")

    before = time.time()
    ref = fails_twice.remote()
    with pytest.raises(ValueError, match="no"):
        jt.get(ref)
    story = ref.story()
    assert [(each["step"], each["state"]) for each in story] == [
        ("submitted", "pending"),
        ("started", "running"),
        ("retried", "pending"),
        ("started", "running"),
        ("raised", "failed"),
    ]
    times = [each["at"] for each in story]
    assert times == sorted(times)
    assert before - 1 < times[0] <= time.time() + 1


def test_a_delay_between_attempts_is_shown_and_ends_with_a_cancel() -> None:
    @jt.remote(retry_exceptions=[ValueError], retry_delay=60)
    def fails_once() -> None:
        raise ValueError("no")

    ref = fails_once.remote()

    def pause() -> float:
        (record,) = [task for task in jt.tasks() if task["id"] == ref.id]
        return float(record.get("retry_in_s", 0))

    assert 0 < wait_until(pause, "it waits for its next attempt") <= 60
    jt.cancel(ref)
    with pytest.raises(TaskCancelledError, match="before it started"):
        jt.get(ref, timeout=NET)


def test_attempts_go_on_after_their_delay(tmp_path: Path) -> None:
    @jt.remote(retry_exceptions=True, retry_delay=0.01, retry_backoff=1)
    def fails_twice() -> str:
        words.mark(tmp_path / "ran")
        if words.marks(tmp_path / "ran") < 3:
            raise ValueError("no")
        return "well"

    assert jt.get(fails_twice.remote(), timeout=NET) == "well"
    assert words.marks(tmp_path / "ran") == 3
