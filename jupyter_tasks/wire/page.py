"""The page that a worker shares with the supervisor: what runs there now, and which tasks are to stop.

Each word has one writer. Words are 8 bytes and written in one store, so a reader never sees half of one. The
supervisor must write a ring entry before it reads CURRENT, with a fence in between, and the worker must write CURRENT
before it reads the ring: then at least one of the two sees the other, and a cancel is never lost between them.

The ledger holds the frames of finished tasks that the worker has not sent yet: when the worker dies in the middle of
a packet, what it had finished is still known, and nothing runs twice.

Where an actor runs several calls at a time, `calls` says which have begun and not ended, in no order.
"""

from __future__ import annotations

import mmap
import os

__all__ = ["CALLS", "LEDGER_AT", "LEDGER_SIZE", "PAGE_SIZE", "RING", "Page"]

RING = 256  # more ids than a worker can ever have been given (2 packets of 32)
LEDGER_AT = 4096
LEDGER_SIZE = 1 << 17  # bytes; what does not fit is sent at once
CALLS_AT = LEDGER_AT + LEDGER_SIZE
CALLS = 1024  # places for calls that run at the same time: as many as an async actor has, unless told otherwise
PAGE_SIZE = CALLS_AT + 8 * CALLS

# Words, by index. Written by the worker:
CURRENT = 0  # id of the task it began last
BUSY = 1  # 1 while that task is not finished (its end is not in the ledger)
STARTED_NS = 2  # time.monotonic_ns() of its start
LEDGER = 3  # count of messages sent << 32 | bytes in the ledger: one store, so both are always right together
PID = 4
HANDLED = 5  # value of COUNT when its SIGINT handler ran last

# Written by the supervisor:
COUNT = 16  # cancels written to the ring so far
KEEP = 17  # 1: should a function task fail, its frames may be kept for a debugger
RING_AT = 32  # RING words: the ring; each an id, perhaps with
MOVED = 1 << 63  # ... given to another worker meanwhile: nobody wants it to stop, it is only not to begin here


class Page:
    """A view of the shared page. Both sides make one from the same descriptor."""

    __slots__ = ("_map", "calls", "ledger", "words")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_SIZE)
        view = memoryview(self._map)
        self.words = view[:LEDGER_AT].cast("Q")
        self.ledger = view[LEDGER_AT:CALLS_AT]
        self.calls = view[CALLS_AT:].cast("Q")  # the worker's; 0: none

    @staticmethod
    def create() -> int:
        """A new page's descriptor."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("jupyter-tasks-page", os.MFD_CLOEXEC)
        else:
            from jupyter_tasks.wire import shared  # only here: it takes milliseconds of a cold start

            if shared.HAS_MEMFD:  # Linux, with a Python that was built without it
                fd = shared.memfd_create()
            else:  # macOS
                import tempfile

                with tempfile.TemporaryFile() as file:
                    fd = os.dup(file.fileno())
        os.truncate(fd, PAGE_SIZE)
        return fd

    def ask_to_stop(self, id: int) -> None:
        """Supervisor: the task is to stop. Followed by a signal if it is running."""
        words = self.words
        count = words[COUNT]
        words[RING_AT + count % RING] = id
        words[COUNT] = count + 1

    def close(self) -> None:
        """Gives the memory back."""
        self.words.release()
        self.ledger.release()
        self.calls.release()
        try:
            self._map.close()
        except BufferError:
            pass
