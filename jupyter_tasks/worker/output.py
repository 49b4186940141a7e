"""What a task writes: file descriptors 1 and 2 of the worker are pipes that the supervisor reads.

So C libraries and subprocesses are captured like Python, nothing is lost when the process is killed, and a task that
prints a gigabyte costs the kernel nothing. Python's own streams write straight through, without a buffer of their own.

Two pipes and a socket (for rich output) are three queues, and would lose the order between them. So a writer that
changes from one to another waits until what it wrote before has been read. That takes some 0.1 ms, only at a
change, and never more than PATIENCE. The main thread and the task's threads use this.
"""

from __future__ import annotations

import array
import fcntl
import io
import os
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from jupyter_tasks.worker import context

__all__ = ["Streams"]

PATIENCE = 0.25  # seconds; a supervisor that is that slow costs the order, never the output
_PIPE_SIZE = 1 << 20  # bytes; the default of 64 kB makes a chatty task wait for the reader (F_SETPIPE_SZ: Linux)


class Streams:
    """The worker's stdin, stdout and stderr."""

    def __init__(self, out_fd: int, err_fd: int) -> None:
        # Kept beside 1 and 2, so that user code that closes or redirects those harms only itself.
        self._kept = [_move_up(out_fd), _move_up(err_fd)]
        # Where several calls of an actor run at once, what each prints is told as its own: task id, descriptor, bytes.
        self.tell: Callable[[int, int, bytes], None] | None = None
        self._last: int | None = None  # descriptor that was written to last, None: none, or the socket
        self._unread = array.array("i", [0])
        for fd in self._kept:
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                try:
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
                except OSError:
                    pass
        self._pipes = [os.fstat(fd).st_ino for fd in self._kept]
        self._restore_fds()
        self.stdout = self._stream(1)
        self.stderr = self._stream(2)

    def _stream(self, fd: int) -> io.TextIOWrapper:
        raw = _Raw(self, fd)
        # As `python -u` does: text straight to the descriptor. A buffer would lose its rest on os._exit or a kill.
        stream = io.TextIOWrapper(
            raw,
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        stream.mode = "w"  # type: ignore[misc]
        return stream

    def _restore_fds(self) -> None:
        """Makes 0, 1 and 2 what they should be."""
        null = os.open(os.devnull, os.O_RDONLY)
        if null != 0:
            os.dup2(null, 0)
            os.close(null)
        for fd, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, fd)

    def install(self) -> None:
        """Before a task: its streams and descriptors are ours, whatever the last task has done to them."""
        try:
            if os.fstat(1).st_ino != self._pipes[0] or os.fstat(2).st_ino != self._pipes[1]:
                self._restore_fds()
        except OSError:  # closed
            self._restore_fds()
        if sys.stdout is not self.stdout or sys.stderr is not self.stderr or self.stdout.closed or self.stderr.closed:
            if self.stdout.closed or self.stderr.closed:
                self.stdout, self.stderr = self._stream(1), self._stream(2)
            sys.stdout, sys.stderr = self.stdout, self.stderr

    def switch_to(self, fd: int | None) -> None:
        """Something else is about to be written to: wait until what came before has been read."""
        last, self._last = self._last, fd
        if last is not None and last != fd:
            self._wait_until_read((last,))

    def wait_until_read(self) -> None:
        """The task has ended: what it wrote must be read before the next one writes, or it would be mixed up."""
        self._last = None
        if self._unread_bytes(self._kept[0]) or self._unread_bytes(self._kept[1]):
            self._wait_until_read(self._kept)

    def _wait_until_read(self, fds: tuple[int, ...] | list[int]) -> None:
        end = time.monotonic() + PATIENCE
        pause = 0.00002
        while any(self._unread_bytes(fd) for fd in fds):
            if time.monotonic() > end:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.001)

    def _unread_bytes(self, fd: int) -> int:
        try:
            fcntl.ioctl(fd, termios.FIONREAD, self._unread, True)
        except OSError:
            return 0
        return self._unread[0]


class _Raw(io.RawIOBase):
    """Descriptor 1 or 2 as a raw file. Writes everything or raises."""

    def __init__(self, streams: Streams, fd: int) -> None:
        self._streams = streams
        self._fd = fd
        self.name = "<stdout>" if fd == 1 else "<stderr>"

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self._streams.tell is not None and (call := context.thread_call.get()) is not None:
            self._streams.tell(call.task_id, self._fd, bytes(view))
            return len(view)
        if self._streams._last != self._fd:
            self._streams.switch_to(self._fd)
        total = len(view)
        while view:
            view = view[os.write(self._fd, view) :]
        return total

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False


def _move_up(fd: int) -> int:
    """The same pipe at a number that nobody uses by accident; not inherited by programs the task starts."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(fd)
    return moved
