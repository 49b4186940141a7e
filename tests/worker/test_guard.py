"""When an interrupt is raised, and when it waits. Role: unit; the handler is called as the signal would call it.

Promise: docs/semantics.md, Cancel: an interrupt hits its task, and leaves the worker whole.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

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


def test_held_back_for_nothing_it_does_not_come(guard: Guard) -> None:
    """Asked for another task: nothing is raised, during or after."""
    guard.end()
    guard.begin(8)
    with guard.held():
        press(guard)
