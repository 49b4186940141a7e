"""The board of a group as a pure thing, and when the feed shows one. Role: contract of the notebook layer.

Promises: docs/semantics.md, Groups: one board says how far all of it is, names the first errors, and holds no value.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import wait_until

from jupyter_tasks.notebook.board import BOARD_MIME
from jupyter_tasks.notebook.feed import Feed
from jupyter_tasks.notebook.groupboard import MOST_ERRORS, GroupBoard
from jupyter_tasks.notebook.output import Place


def record(state: str = "running", submitted: int = 40, elapsed: float = 1.0, **more: Any) -> dict[str, Any]:
    counts = more.pop("counts", {})
    return {"state": state, "submitted": submitted, "elapsed_s": elapsed, "counts": counts, "failed": [], **more}


def test_one_line_says_how_far_it_is() -> None:
    """Counts of all members by how they ended; time goes on while it runs, and stands still afterwards."""
    board = GroupBoard("7", "sweep")
    board.take_event(record(counts={"completed": 10, "failed": 2}, running=3), now=100.0)
    assert board.headline(102.0) == "[sweep] running for 3.00 s: 12 of 40 done, 2 failed, 3 running"
    board.take_event(record("completed", elapsed=9.0, counts={"completed": 40}), now=200.0)
    assert board.headline(999.0) == "[sweep] completed after 9.00 s: 40 of 40 done"


def test_it_says_who_cancelled_it() -> None:
    board = GroupBoard("7", "sweep")
    board.take_event(record("cancelling", source="user", reason="enough"), now=0.0)
    assert "(by user: enough)" in board.headline(0.0)


def test_the_first_errors_are_named_in_the_order_of_their_tasks() -> None:
    """However they come in; the rest is counted."""
    board = GroupBoard("7", "sweep")
    board.take_event(record(counts={"failed": 4, "crashed": 1}), now=0.0)
    for id in (9, 3, 5):
        board.take_error(id, f"task {id}: ValueError: bad")
    assert len(board.errors) == MOST_ERRORS
    line = "task 3: ValueError: bad; task 5: ValueError: bad; task 9: ValueError: bad; and 2 more"
    assert board.text(0.0).splitlines()[1] == f"  {line}"
    assert board.json(0.0)["error"] == line


def test_nothing_of_the_users_breaks_the_html() -> None:
    board = GroupBoard("7", "<b>&")
    board.take_event(record(counts={"failed": 1}, source="user", reason="<i>"), now=0.0)
    board.take_error(1, "task 1: <script>")
    html = board.html(0.0)
    assert "<script>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert '<progress value="1" max="40"' in html
    assert "var(--jp-ui-font-color1" in html  # as the boards of tasks: light and dark


def test_before_the_first_word_it_says_only_that_it_runs() -> None:
    board = GroupBoard("7", "sweep")
    assert board.text(50.0) == "[sweep] running"
    assert board.json(50.0)["elapsed_s"] == 0.0


# -- when it is shown -------------------------------------------------------------------------------------------------


class _Screen:
    """Keeps what is shown: (is an update, state)."""

    redraws = True

    def __init__(self) -> None:
        self.shown: list[tuple[bool, str]] = []

    def show(self, place: Place, bundle: dict[str, Any], *, update: bool) -> None:
        self.shown.append((update, bundle[BOARD_MIME]["state"]))


@pytest.fixture
def screen() -> _Screen:
    return _Screen()


@pytest.fixture
def feed(screen: _Screen) -> Any:
    feed = Feed(screen)  # type: ignore[arg-type]  # of a Screen it uses `show`
    yield feed
    feed.stop()


def test_a_group_that_is_over_before_it_is_due_is_never_shown(feed: Feed, screen: _Screen) -> None:
    board = GroupBoard("7", "sweep")
    feed.add(7, board, Place(None), after=60.0)
    board.take_event(record("completed"), 0.0)
    board.settled = True
    feed.changed(7)
    wait_until(lambda: not feed.busy(), "the feed has forgotten it")
    feed.flush()
    assert screen.shown == []


def test_one_that_is_not_over_is_shown_when_it_is_due(feed: Feed, screen: _Screen) -> None:
    """Once, and then updated; by the feed's own thread, though nothing has changed."""
    board = GroupBoard("7", "sweep")
    feed.add(7, board, Place(None), after=0.01)
    wait_until(lambda: screen.shown, "the board")
    board.take_event(record("completed"), 0.0)
    feed.changed(7)
    wait_until(lambda: (True, "completed") in screen.shown, "its end")
    assert screen.shown[0] == (False, "running")
    assert all(update for update, _ in screen.shown[1:])


def test_the_end_of_its_cell_shows_it_earlier(feed: Feed, screen: _Screen) -> None:
    """Who executes a notebook without a screen hears only the cell that runs."""
    feed.add(7, GroupBoard("7", "sweep"), Place(None), after=60.0)
    feed.flush()
    assert screen.shown == [(False, "running")]


def test_a_final_board_stays_until_its_errors_are_there(feed: Feed, screen: _Screen) -> None:
    board = GroupBoard("7", "sweep")
    feed.add(7, board, Place(None))
    board.take_event(record("failed"), 0.0)
    feed.changed(7)
    feed.flush()
    assert feed.busy()
    board.settled = True
    feed.changed(7)
    feed.flush()
    assert not feed.busy()
