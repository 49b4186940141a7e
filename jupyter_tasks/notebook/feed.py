"""The feed: keeps the boards of all cells up to date, with at most ten messages a second for each.

One thread wakes when something changed, waits a moment for more, and shows what changed. While a task runs its board is
shown again each second (time goes on), which also keeps the kernel from looking idle to those who cull idle kernels.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from jupyter_tasks.notebook.output import Place, Screen

__all__ = ["Feed"]

PAUSE = 0.1  # seconds between two updates of a board (jupyter_server drops what is above 1000 messages a second)
BIG_PAUSE = 1.0  # the same for a board with pictures in it
BIG = 100_000  # characters of HTML
HEARTBEAT = 1.0  # seconds


class Drawing(Protocol):
    """A board, as the feed sees it."""

    @property
    def is_final(self) -> bool:
        """Time does not go on any more."""

    @property
    def is_settled(self) -> bool:
        """Nothing more will change."""

    def bundle(self, now: float) -> dict[str, Any]:
        """What is shown, at `now` on the monotonic clock."""


class _Entry:
    __slots__ = ("board", "changed", "due", "heard", "is_shown", "place", "shown_at", "size")

    def __init__(self, board: Drawing, place: Place, due: float) -> None:
        self.board = board
        self.place = place
        self.due = due  # not shown before, and not at all if it is final by then
        self.is_shown = False
        self.changed = False
        self.heard = False  # shown as it is now while a cell ran: nbclient drops what comes between cells
        self.shown_at = 0.0
        self.size = 0

    @property
    def came_to_nothing(self) -> bool:
        """It was over before it was due."""
        return not self.is_shown and self.board.is_final


class Feed:
    """Shows boards. `add` and `flush` in the main thread, `changed` in the event thread, the rest in its own."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, id: int, board: Drawing, place: Place, *, after: float = 0.0) -> None:
        """A new board: shown at once, or if it is not final `after` so many seconds; any thread then."""
        entry = _Entry(board, place, time.monotonic() + after)
        with self._lock:
            self._entries[id] = entry
            if not after:
                self._show(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jupyter-tasks-feed", daemon=True)
                self._thread.start()
        self._wake.set()

    def changed(self, id: int) -> None:
        """The board has something new to show."""
        entry = self._entries.get(id)
        if entry is not None:
            entry.changed = True
            self._wake.set()

    def busy(self) -> bool:
        """There are boards that may still change, or whose end is not shown yet."""
        return bool(self._entries)

    def flush(self) -> None:
        """Shows all that changed, now: when a cell ends, and before somebody saves the notebook.

        Also what was not due yet: an output that comes when its cell is over, some front-ends do not show.
        """
        with self._lock:
            for entry in list(self._entries.values()):
                if (entry.changed or not entry.heard) and not entry.came_to_nothing:
                    self._show(entry)
                    entry.heard = True
            self._drop_final()

    def stop(self) -> None:
        """Ends the thread; what changed is shown before."""
        self.flush()
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2)
            self._thread = None

    def _show(self, entry: _Entry) -> None:
        update, entry.is_shown = entry.is_shown, True
        entry.changed = entry.heard = False
        now = entry.shown_at = time.monotonic()
        bundle: dict[str, Any] = entry.board.bundle(now)
        entry.size = len(bundle["text/html"])
        self._screen.show(entry.place, bundle, update=update)

    def _run(self) -> None:
        while not self._stopped:
            # With no task running there is nothing to wait for but news.
            self._wake.wait(self._patience())
            self._wake.clear()
            if self._stopped:
                return
            with self._lock:
                for id, entry in list(self._entries.items()):
                    if entry.came_to_nothing:
                        del self._entries[id]
                    else:
                        self._show_if_due(entry)
            time.sleep(PAUSE)
            if any(entry.changed for entry in list(self._entries.values())):
                self._wake.set()

    def _patience(self) -> float | None:
        running = [entry for entry in list(self._entries.values()) if not entry.board.is_final]
        if not running:
            return None
        now = time.monotonic()
        return min([HEARTBEAT, *(max(0.0, entry.due - now) for entry in running if not entry.is_shown)])

    def _show_if_due(self, entry: _Entry) -> None:
        if time.monotonic() < entry.due:
            return
        since = time.monotonic() - entry.shown_at
        pause = BIG_PAUSE if entry.size > BIG and not entry.board.is_final else 0.0
        beat = not entry.board.is_final and since >= HEARTBEAT
        if (entry.changed and since >= pause) or beat:
            self._show(entry)

    def _drop_final(self) -> None:
        """Finished boards are in the notebook; here they are kept only while something may still change."""
        for id, entry in list(self._entries.items()):
            if (entry.board.is_settled and entry.heard and not entry.changed) or entry.came_to_nothing:
                del self._entries[id]
