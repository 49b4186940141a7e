"""What lands in which cell.

A Screen shows things in a given cell, also after that cell has ended: in a Jupyter kernel by sending iopub
messages with the launching cell's request as their parent, in a terminal by printing. A Place is such a cell.

The Router gets everything tasks say (in the client's event thread) and passes it on: to the board of a cell, to a cell
that waits, or for tasks of `.remote()` to the cell that called it.
"""

from __future__ import annotations

import codecs
import contextlib
import sys
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Protocol

from jupyter_tasks.notebook.board import BOARD_MIME, strip_ansi
from jupyter_tasks.wire.frames import Flag, Kind, from_json

__all__ = ["NO_OUTPUT", "KernelScreen", "Place", "Router", "Screen", "Sink", "TerminalScreen"]


class Place:
    """A cell that was launched: what messages for it need."""

    __slots__ = ("cell_id", "display_id", "parent")

    def __init__(self, parent: Any) -> None:
        self.parent = parent  # the execute_request, in a kernel
        # JupyterLab and VS Code say which cell it is; others do not.
        metadata = parent.get("metadata") if isinstance(parent, dict) else None
        self.cell_id: str = metadata.get("cellId") or "" if isinstance(metadata, dict) else ""
        self.display_id = f"jupyter-tasks-{uuid.uuid4().hex}"


class Screen(Protocol):
    """Where cells are. May be called from any thread, but for one place from one at a time."""

    redraws: bool  # a board can be shown again in its place; otherwise what a task says is printed as it comes

    def here(self) -> Place:
        """The cell that runs now. Main thread."""

    def show(self, place: Place, bundle: dict[str, Any], *, update: bool) -> None:
        """A board: shown once, then updated in place."""

    def stream(self, place: Place, name: str, text: str) -> None:
        """Text on "stdout" or "stderr"."""

    def display(self, place: Place, kind: str, content: dict[str, Any]) -> None:
        """Rich output: a Jupyter message type and its content."""

    def flush(self) -> None:
        """Returns when what was shown is on its way."""


class KernelScreen:
    """Cells of a notebook: messages on the kernel's iopub channel."""

    redraws = True

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._kernel = ip.kernel
        self._lock = threading.Lock()
        self._newest: Any = None  # the request of the cell that runs, or ran last

    def here(self) -> Place:
        """See Screen."""
        try:
            parent = self._kernel.get_parent("shell")
        except (AttributeError, TypeError):  # ipykernel before 6
            parent = self._ip.parent_header
        self._newest = parent
        return Place(parent)

    def _send(self, place: Place, kind: str, content: dict[str, Any]) -> None:
        kernel = self._kernel
        with self._lock:
            kernel.session.send(kernel.iopub_socket, kind, content, parent=place.parent, ident=kernel._topic(kind))

    def show(self, place: Place, bundle: dict[str, Any], *, update: bool) -> None:
        """See Screen."""
        content = {"data": bundle, "metadata": {}, "transient": {"display_id": place.display_id}}
        if update:
            # An update finds its output by display_id, whatever cell it comes from. nbclient (papermill,
            # nbconvert --execute) hears only the cell that runs: so that is the parent, as in DisplayHandle.
            place = Place(self._newest or place.parent)
        self._send(place, "update_display_data" if update else "display_data", content)

    def stream(self, place: Place, name: str, text: str) -> None:
        """See Screen."""
        self._send(place, "stream", {"name": name, "text": text})

    def display(self, place: Place, kind: str, content: dict[str, Any]) -> None:
        """See Screen."""
        self._send(place, kind, content)

    def flush(self) -> None:
        """See Screen."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


class TerminalScreen:
    """A terminal: what comes is printed where the cursor is."""

    redraws = False

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}  # display id -> state printed last

    def here(self) -> Place:
        """See Screen."""
        return Place(None)

    def show(self, place: Place, bundle: dict[str, Any], *, update: bool) -> None:
        """Prints a line for each change of state; a terminal cannot redraw what has scrolled away."""
        board = bundle[BOARD_MIME]
        state = board["state"]
        if self._shown.get(place.display_id) != state:
            self._shown[place.display_id] = state
            text = bundle["text/plain"].partition("\n")[0]
            if board["error"]:
                text = f"{text}\n{board['error']}"
            print(text, flush=True)

    def stream(self, place: Place, name: str, text: str) -> None:
        """See Screen."""
        stream = sys.stderr if name == "stderr" else sys.stdout
        stream.write(text)
        stream.flush()

    def display(self, place: Place, kind: str, content: dict[str, Any]) -> None:
        """The plain text of it."""
        if kind == "error":
            print("\n".join(content.get("traceback", [])), flush=True)
            return
        text = content.get("data", {}).get("text/plain")
        if text and kind != "update_display_data":
            prompt = f"Out[{content['execution_count']}]: " if kind == "execute_result" else ""
            print(prompt + strip_ansi(str(text)), flush=True)

    def flush(self) -> None:
        """See Screen."""
        sys.stdout.flush()


# DISPLAY words that say something to us, and show nothing.
NO_OUTPUT = frozenset({"stopped", "ended", "over", "input_request", "debugged"})

# Gets what a task says: kind of frame, text or JSON content, whether of stderr.
Sink = Callable[[int, Any, bool], None]


class Router:
    """Sends each word to whom it concerns."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._sinks: dict[int, Sink] = {}
        self._decoders: dict[tuple[int, bool], codecs.IncrementalDecoder] = {}
        self._marks: list[int] = []  # id of the last task before the cell of the same index in _places
        self._places: list[Place] = []

    def reset(self) -> None:
        """A new supervisor: ids begin anew."""
        self._sinks.clear()
        self._decoders.clear()
        self._marks.clear()
        self._places.clear()

    def add(self, id: int, sink: Sink) -> Sink | None:
        """From now on, what this task says goes to `sink`. Returns where it went before."""
        before = self._sinks.get(id)
        self._sinks[id] = sink
        return before

    def remove(self, id: int) -> None:
        """The task says nothing more that matters."""
        self._sinks.pop(id, None)
        for stderr in (False, True):
            self._decoders.pop((id, stderr), None)

    def cell_begins(self, last_id: int) -> None:
        """A cell begins to run; tasks submitted from now on are its own. Main thread."""
        if self._marks and self._marks[-1] == last_id:
            self._places[-1] = self._screen.here()  # the cell before has submitted none
            return
        self._marks.append(last_id)
        self._places.append(self._screen.here())

    def listen(self, kind: int, flags: int, id: int, body: bytes) -> None:
        """The client's listener: event thread."""
        stderr = bool(kind == Kind.OUTPUT and flags & Flag.STDERR)
        content: Any
        if kind == Kind.OUTPUT:
            content = self._decode(id, stderr, body)
            if not content:
                return
        else:
            content = from_json(body)
        sink = self._sinks.get(id)
        if sink is not None:
            sink(kind, content, stderr)
            return
        place = self.place_of(id)
        if place is None:
            return
        if kind == Kind.OUTPUT:
            self._screen.stream(place, "stderr" if stderr else "stdout", content)
        elif kind == Kind.DISPLAY and content["type"] not in NO_OUTPUT:
            self._screen.display(place, content["type"], content["content"])

    def _decode(self, id: int, stderr: bool, body: bytes) -> str:
        """Text of what may be half a character at either end."""
        decoder = self._decoders.get((id, stderr))
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._decoders[id, stderr] = decoder
        return decoder.decode(body)

    def place_of(self, id: int) -> Place | None:
        """The cell that ran when something got this id. Any thread."""
        index = bisect_right(self._marks, id - 1) - 1
        return self._places[index] if index >= 0 else None
