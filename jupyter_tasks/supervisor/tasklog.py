"""Where a task's output goes: all of it to a file, as much as a screen can take to the owner.

A task that prints a gigabyte must harm neither kernel nor browser. So each task may send a first BURST and then RATE
bytes a second; what is more is kept in the log file only, said in one line, and its last lines are shown at the
end. Used by the supervisor's loop only.
"""

from __future__ import annotations

import os
from typing import IO

__all__ = ["BURST", "RATE", "TAIL", "TaskLog"]

BURST = 1 << 20  # bytes; about 10,000 lines, which a notebook can still show and save
RATE = 1 << 17  # bytes a second after that
TAIL = 1 << 12  # bytes of the end that are always shown; less than a board shows


class TaskLog:
    """The output of one task."""

    def __init__(self, path: str, task_id: str) -> None:
        self.path = path
        self._task_id = task_id
        self.size = 0  # bytes written by the task
        self._file: IO[bytes] | None = None
        self._failed = ""
        self._budget = float(BURST)
        self._filled_at: float | None = None
        self._skipped = 0  # bytes that the owner was not sent since the last it was
        self._tail = b""  # the end of those
        self._tail_stderr = False

    @property
    def is_open(self) -> bool:
        """It has a descriptor at the moment."""
        return self._file is not None

    def write(self, data: bytes, now: float, *, stderr: bool) -> list[tuple[bytes, bool]]:
        """Takes in what the task wrote. Returns what the owner is to see now: pieces, and whether of stderr."""
        self.size += len(data)
        self._keep(data)
        if self._filled_at is not None:
            self._budget = min(BURST, self._budget + (now - self._filled_at) * RATE)
        self._filled_at = now
        if len(data) > self._budget or (self._skipped and self._budget < BURST / 4):
            self._skipped += len(data)
            self._tail = (self._tail + data)[-TAIL:]
            self._tail_stderr = stderr
            return []
        self._budget -= len(data)
        return [*self.rest(), (data, stderr)]

    def rest(self) -> list[tuple[bytes, bool]]:
        """What was held back: a line that says so, and the end of it. Called once more when the task has ended."""
        if not self._skipped:
            return []
        hidden, tail = self._skipped - len(self._tail), self._tail
        self._skipped, self._tail = 0, b""
        if hidden <= 0:
            return [(tail, self._tail_stderr)]
        start = tail.find(b"\n") + 1  # not half a line
        hidden += start
        where = f"%tasks logs {self._task_id}" if not self._failed else self._failed
        note = f"\n[... {hidden:,} bytes not shown here; all of it: {where}]\n".encode()
        return [(note, True), (tail[start:], self._tail_stderr)]

    def _keep(self, data: bytes) -> None:
        if self._failed:
            return
        try:
            if self._file is None:
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._file = os.fdopen(fd, "ab", buffering=0)
            self._file.write(data)
        except OSError as error:
            self._failed = f"the log ends after {self.size - len(data):,} bytes ({error.strerror})"
            self.close()

    def close(self) -> None:
        """Closes the file; a later write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """The task is forgotten, its log too."""
        self.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass
