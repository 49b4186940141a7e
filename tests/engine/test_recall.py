"""What the local backend says of a task that its worker has read: begun or not. Role: unit, white box.

Promise: docs/semantics.md, Cancel: "not started: it never runs". So "cancelled before it started" must never be said of
a task that has run. The race is built: the worker's shared page is set to each moment at which a cancel may look.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from engine_rig import Rig

from jupyter_tasks.backends.local import LocalBackend, _Worker
from jupyter_tasks.engine.events import Event, Recalled, Started
from jupyter_tasks.engine.states import State
from jupyter_tasks.supervisor import platform
from jupyter_tasks.wire import page as layout
from jupyter_tasks.wire.frames import Kind, frame
from jupyter_tasks.wire.page import Page
from jupyter_tasks.worker.interrupt import Guard


class Ear:
    """Hears what the backend posts, and passes it on to the rules."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.heard: list[Event] = []

    def post(self, event: Event) -> None:
        self.heard.append(event)
        self.rig.event(event)


@pytest.fixture
def place() -> Iterator[Any]:
    """A worker that has read a packet of four tasks, as backend, rules and page know it."""
    rig = Rig(1)
    rig.finish(rig.submit())
    tasks = rig.submit(40)
    lease = tasks[0].lease
    backend = LocalBackend()
    backend._seq = True
    backend._host = Ear(rig)  # type: ignore[assignment]
    fd = Page.create()
    sockets = platform.worker_socketpair()
    worker = _Worker(1, *sockets, Page(fd))
    os.close(fd)
    lease.place = worker
    yield rig, backend, lease, worker, [task for task in tasks if task.id in lease.packets[0]]
    worker.page.close()
    for sock in sockets:
        sock.close()


def at(worker: _Worker, task: Any, *, busy: bool) -> None:
    worker.page.words[layout.CURRENT] = task.id
    worker.page.words[layout.BUSY] = busy


def test_what_stands_before_a_passed_over_task_has_ended(place: Any) -> None:
    """1. c is cancelled while a runs   2. a and b end, their ends are not told yet   3. c is being passed over
    4. a cancel of b looks: b must not be taken for one that has not begun."""
    rig, backend, lease, worker, (a, b, c, *_) = place
    at(worker, a, busy=True)
    rig.cancel(c)
    backend.recall(lease, c.id)
    assert c.state is State.CANCELLED
    at(worker, c, busy=True)
    rig.cancel(b)
    backend.recall(lease, b.id)
    assert b.state is State.PENDING
    assert backend._host.heard[1:] == []


def test_a_task_that_comes_back_is_passed_over_again(place: Any) -> None:
    """1. what is behind a slow task goes elsewhere   2. the worker passes it over   3. it comes back to this worker, behind
    another slow task   4. it goes elsewhere once more: this worker must not run it, too."""
    _, backend, lease, worker, (a, b, *_) = place
    guard = Guard(worker.page, set())
    for _ in range(2):
        at(worker, a, busy=True)
        worker.page.words[layout.STARTED_NS] = 0  # long ago
        backend._hand_back(worker, lease)
        assert guard.begin(b.id), "it runs here, and elsewhere"
        guard.end()


def test_what_is_not_of_tasks_is_not_taken_back(place: Any) -> None:
    """A worker that was told to import something, or to let frames go, hears it also if a task behind it is recalled."""
    _, backend, _, worker, (a, *_) = place
    worker.sock.setblocking(False)
    backend._send(worker, frame(Kind.PRELOAD, 0, b"[]"), ())
    backend._send(worker, frame(Kind.TASK, a.id, fn=1), ())
    assert backend._take_back(worker, None) == [a.id]
    worker.theirs.setblocking(False)
    assert worker.theirs.recv(1000) == frame(Kind.PRELOAD, 0, b"[]")


@pytest.mark.parametrize(
    ("moment", "busy", "said"), [(0, True, Recalled), (1, True, Started), (1, False, None), (2, True, None)]
)
def test_each_moment_of_a_packet(place: Any, moment: int, busy: bool, said: type | None) -> None:
    """Before its turn it is taken back; in it, it runs; after it, its end is on the way."""
    rig, backend, lease, worker, tasks = place
    at(worker, tasks[moment], busy=busy)
    rig.cancel(tasks[1])
    backend.recall(lease, tasks[1].id)
    assert [type(event) for event in backend._host.heard] == ([said] if said else [])
