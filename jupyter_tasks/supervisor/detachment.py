"""What makes a supervisor detached: its entry in the registry, what it is for, and what that has shown so far.

Until it is told what to keep (`keep`) it belongs to the process that has started it and ends with it; from then on it
ends when it is told to. Used by the supervisor's loop only; knows no sockets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from jupyter_tasks.supervisor import reaper, registry
from jupyter_tasks.wire import shared
from jupyter_tasks.wire.frames import PROTOCOL, Flag, Kind, frame, from_json, to_json

__all__ = ["MOST_OUTPUTS", "MOST_RICH", "MOST_TEXT", "Detachment", "Journal"]

MOST_TEXT = 1 << 16  # bytes of the end of the text; the log file has all of it, and a board shows less
MOST_OUTPUTS = 50  # rich outputs, as many as a board keeps
MOST_RICH = 32_000_000  # bytes of all of them together
MOST_BARS = 32

_RICH = frozenset({"display_data", "execute_result"})


class Journal:
    """What a screen that comes later is shown: the end of the text and the last rich outputs, in their order."""

    def __init__(self) -> None:
        self._words: list[tuple[int, int, bytes, str]] = []  # kind, flags, body, display id
        self._bars: dict[Any, bytes] = {}
        self._text = 0  # bytes of text in `_words`
        self._rich = 0
        self.outputs = 0  # rich outputs in `_words`
        self._clear_next = False

    def take_text(self, data: bytes, *, stderr: bool) -> None:
        """What the task wrote."""
        self._clear_if_due()
        self._text += len(data)
        self._words.append((Kind.OUTPUT, Flag.STDERR if stderr else 0, data, ""))
        while self._text > MOST_TEXT and self._drop_first(Kind.OUTPUT):
            pass

    def take(self, kind: int, body: bytes) -> None:
        """A DISPLAY or PROGRESS of it."""
        if kind == Kind.PROGRESS:
            self._take_progress(body)
            return
        word = from_json(body)
        content = word["content"]
        display_id = (content.get("transient") or {}).get("display_id") or ""
        if word["type"] == "clear_output":
            self._clear_next = True
            if not content.get("wait"):
                self._clear_if_due()
        elif word["type"] == "update_display_data":
            # Where it was shown first it is shown anew: a plot that is drawn ten times a second is one output.
            anew = to_json({"type": "display_data", "content": content})
            for i, (_, _, old, shown_as) in enumerate(self._words):
                if shown_as and shown_as == display_id:
                    self._words[i] = (Kind.DISPLAY, 0, anew, display_id)
                    self._rich += len(anew) - len(old)
        elif word["type"] in _RICH:
            self._clear_if_due()
            self._add_rich(body, display_id)
        elif word["type"] == "error":
            self.take_text(("\n".join(content.get("traceback", [])) + "\n").encode(), stderr=True)

    def _add_rich(self, body: bytes, display_id: str) -> None:
        self._words.append((Kind.DISPLAY, 0, body, display_id))
        self._rich += len(body)
        self.outputs += 1
        while (self.outputs > MOST_OUTPUTS or self._rich > MOST_RICH) and self._drop_first(Kind.DISPLAY):
            pass

    def _take_progress(self, body: bytes) -> None:
        bar = from_json(body)
        if bar.get("done") and bar.get("parent") is not None:
            self._bars.pop(bar["id"], None)
        elif bar["id"] in self._bars or len(self._bars) < MOST_BARS:
            self._bars[bar["id"]] = body

    def _clear_if_due(self) -> None:
        if self._clear_next:
            self._words.clear()
            self._text = self._rich = self.outputs = 0
            self._clear_next = False

    def _drop_first(self, kind: int) -> bool:
        """Of a single text that is too long itself, the end stays."""
        for i, (each, flags, body, _) in enumerate(self._words):
            if each != kind:
                continue
            if kind == Kind.DISPLAY:
                self._rich -= len(body)
                self.outputs -= 1
            else:
                rest = body[max(0, self._text - MOST_TEXT) :]
                self._text -= len(body) - len(rest)
                if rest:
                    self._words[i] = (kind, flags, rest, "")
                    return True
            del self._words[i]
            return True
        return False

    def frames(self, id: int) -> Iterator[bytes]:
        """The same again, for one that has come."""
        for kind, flags, body, _ in self._words:
            yield frame(kind, id, body, flags=flags)
        for body in self._bars.values():
            yield frame(Kind.PROGRESS, id, body)


class Detachment:
    """See the module's text."""

    def __init__(self, config: dict[str, Any]) -> None:
        about = config["detached"]
        self._registry: str = about["registry"]
        self.entry = registry.Entry(
            name=about["name"],
            namespace=about["namespace"],
            kind=about["kind"],
            label=about["label"],
            outs=about["outs"],
            version=about["version"],
            socket=config["socket"],
            key=config["key"],
            mark=config["mark"],
            directory=config["directory"],
            pid=os.getpid(),
            started=reaper.started(os.getpid()),
            hostname=socket.gethostname(),
            boot_id=registry.boot_id(),
            protocol=PROTOCOL,
            python=sys.version.split()[0],
            created=time.time(),
        )
        self.journal = Journal()
        self.kept: tuple[int, int] | None = None  # the first of the objects that this is for, and how many
        self.listeners: set[int] = set()  # clients that have attached
        self._guard = _guard(config["directory"])

    def claim(self) -> str:
        """Writes the entry. Returns why that was not possible, or ""."""
        try:
            held = registry.claim(self._registry, self.entry)
        except OSError as error:
            return f"The registry {self._registry!r} cannot be written: {error.strerror}."
        return "" if held is None else f"The name {held.shown} is taken by process {held.pid}."

    def is_for(self, id: int) -> bool:
        """This object is why we are here."""
        return self.kept is not None and self.kept[0] == id

    def leave(self) -> None:
        """Nobody can find us any more."""
        registry.leave(self._registry, self.entry)

    def note(self, kind: int, body: bytes, fds: Any) -> None:
        """What the task says beside its text."""
        if kind in (Kind.DISPLAY, Kind.PROGRESS):
            if fds:
                data, _ = shared.unpack(body, fds[0], writable=False)
                body = bytes(data)
            self.journal.take(kind, body)


def _guard(directory: str) -> int:
    """A descriptor with a lock on the directory: systemd-tmpfiles, which empties /tmp of what is days old, leaves it
    alone then."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
