"""When an interrupt is raised, and when it waits. Role: unit; the handler is called as the signal would call it.

Promise: docs/semantics.md, Cancel: an interrupt hits its task, and leaves the worker whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_tasks.wire.page import Page
from jupyter_tasks.worker.interrupt import Guard


@pytest.fixture
def guard() -> Iterator[Guard]:
    """In the middle of task 7, which has just been asked to stop."""
    fd = Page.create()
    page = Page(fd)
    os.close(fd)
    guard = Guard(page, set())
    guard.begin(7)
    guard.in_user_code = True
    page.ask_to_stop(7)
    yield guard
    del guard._words
    page.close()


def press(guard: Guard) -> bool:
    """The signal comes now. True if nothing was raised."""
    guard._handle_signal(signal.SIGINT, sys._getframe())
    return True


def test_it_is_raised_in_the_tasks_code(guard: Guard) -> None:
    with pytest.raises(KeyboardInterrupt):
        press(guard)


def test_held_back_it_comes_after(guard: Guard) -> None:
    """What must not be cut in two (making the shell, moving to another directory) is done first."""
    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt), guard.held():
        done.append(press(guard))
    assert done
    assert guard.in_user_code


def test_held_back_one_that_came_before_does_not_come_again(guard: Guard) -> None:
    """The task's code has caught it, and goes on."""
    with pytest.raises(KeyboardInterrupt):
        press(guard)
    with guard.held():
        pass


@pytest.mark.parametrize(
    ("file", "name", "waits"),
    [
        (asyncio.base_events.__file__, "_run_once", True),
        (asyncio.runners.__file__, "run", True),
        (selectors.__file__, "register", True),
        (selectors.__file__, "select", False),  # where the loop sleeps
        (__file__, "run", False),
    ],
)
def test_in_the_bookkeeping_of_an_event_loop_it_waits(guard: Guard, file: str, name: str, waits: bool) -> None:
    """Raised there, the step that was just taken from the queue is lost, and the loop waits for it for ever."""
    came_back: list[bool] = []
    guard._come_back = lambda: came_back.append(True)  # type: ignore[method-assign]  # no signals in the tests' process
    names: dict[str, Any] = {"sys": sys}
    exec(compile(f"def {name}(): return sys._getframe()", file, "exec"), names)
    frame = names[name]()
    with contextlib.nullcontext() if waits else pytest.raises(KeyboardInterrupt):
        guard._handle_signal(signal.SIGINT, frame)
    assert came_back == ([True] if waits else [])


def test_held_back_for_nothing_it_does_not_come(guard: Guard) -> None:
    """Asked for another task: nothing is raised, during or after."""
    guard.end()
    guard.begin(8)
    with guard.held():
        press(guard)
