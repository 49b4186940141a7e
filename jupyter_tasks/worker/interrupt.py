"""The guarded interrupt: a SIGINT stops the task it was meant for, and nothing else.

The supervisor writes the id of the task to stop into the shared page and sends SIGINT. The handler runs in the main
thread between two byte codes, and raises KeyboardInterrupt only if user code is running, the id that runs is among
those to stop, and the frame is not the worker's own loop. Everything else about a signal is ignored, so it may come
late, twice, or for a task that has ended.

Where an exception would vanish (inside `__del__` or a weakref callback) the handler raises nothing and comes back a
moment later; where it vanished all the same, `sys.unraisablehook` tells, and it comes back too. Otherwise the task
would stay "cancelling" for ever. An interrupt inside an import is raised, but marks the worker as tainted: a
half-imported module stays broken in this process. One that hits the bookkeeping of an event loop waits, too.

The handler and `begin`/`end` belong to the main thread; `is_canceled` may be called from any thread.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Set
from types import CodeType, FrameType
from typing import Any

from jupyter_tasks.wire import page as layout
from jupyter_tasks.wire.page import Page

__all__ = ["AGAIN_FIRST", "AGAIN_MOST", "Guard", "look_at"]

AGAIN_FIRST = 0.001  # seconds until a deferred interrupt is tried again; doubles up to
AGAIN_MOST = 0.05
FRAMES_LOOKED_AT = 400  # deeper stacks are recursion of user code, where raising is right
# Python frames under which an exception is printed and dropped instead of raised.
_SWALLOWING_FILES = ("/weakref.py", "/_weakrefset.py", "<frozen _weakrefset>")
_LIBRARY = os.path.dirname(os.__file__)
_ASYNCIO = os.path.join(_LIBRARY, "asyncio", "")
_SELECTORS = os.path.join(_LIBRARY, "selectors.py")


class Guard:
    """Decides for each SIGINT whether the running task gets a KeyboardInterrupt."""

    def __init__(self, page: Page, own_code: set[CodeType]) -> None:
        self._words = page.words
        # The worker's loop, and the edges of what is held back: nothing is ever raised there.
        self._own_code = own_code | {Guard.hold.__code__, Guard.go_on.__code__}
        self._asked: set[int] = set()
        self._moved: set[int] = set()  # of those read but not begun: others run them
        self._seen = 0  # ring entries read so far
        self._delay = AGAIN_FIRST
        self.current = 0  # id of the task in this worker, 0 for none
        self.in_user_code = False
        self._late = False  # an interrupt came while it was held back
        self.tainted = False  # an interrupt landed inside an import
        self.only_asks = False  # an actor: its calls are asked to stop, and nothing is raised
        self._handler = self._handle_signal  # one object each: a bound method is a new one at every look
        self._hook = self._unraisable

    def install(self) -> None:
        """Takes the signal and the unraisable hook; again before each task, since user code may replace both."""
        if signal.getsignal(signal.SIGINT) is not self._handler:
            signal.signal(signal.SIGINT, self._handler)
        if sys.unraisablehook is not self._hook:
            sys.unraisablehook = self._hook

    def begin(self, id: int) -> bool:
        """The worker is about to run this task. True if it is to be skipped: it was asked to stop, or has moved."""
        words = self._words
        self.current = id
        words[layout.STARTED_NS] = time.monotonic_ns()
        words[layout.BUSY] = 1
        words[layout.CURRENT] = id
        if words[layout.COUNT] != self._seen:
            self._learn()
        return id in self._asked or id in self._moved

    def end(self) -> None:
        """The task has ended and its end is told, or kept in the ledger."""
        self._words[layout.BUSY] = 0
        self._asked.discard(self.current)
        if self._moved:
            self._moved.discard(self.current)
        self.current = 0

    def check(self) -> None:
        """Raises the interrupt that came between `begin` and the first line of user code."""
        if self.current in self._asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around work of ours in the midst of the user's, which must not be cut in two: an interrupt comes after it."""
        self.hold()
        try:
            yield
        finally:
            late = self.go_on()
        if late:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """The same in two calls, for who must know what comes between them and an interrupt."""
        self._late = False
        self.in_user_code = False

    def go_on(self) -> bool:
        """True if an interrupt came meanwhile."""
        self.in_user_code = True
        return self._late

    def is_canceled(self) -> bool:
        """The running task was asked to stop. Any thread; about 0.1 us."""
        if self._words[layout.COUNT] != self._seen:
            self._learn()
        return self.current in self._asked

    def _learn(self) -> None:
        """Reads what the supervisor has written to the ring since the last time."""
        words = self._words
        count = words[layout.COUNT]
        for i in range(max(self._seen, count - layout.RING), count):
            word = words[layout.RING_AT + i % layout.RING]
            if word & layout.MOVED:
                self._moved.add(word ^ layout.MOVED)
            else:
                self._asked.add(word)
        self._seen = count

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self._words[layout.COUNT] != self._seen:
            self._learn()
        self._words[layout.HANDLED] = self._seen  # until then the supervisor sends it again
        if self.only_asks:
            return
        if not self.in_user_code or self.current not in self._asked or frame is None:
            self._late = self.current in self._asked
            return  # for a task that has ended, or one that has not begun and will be skipped
        if frame.f_code in self._own_code:
            self._come_back()
            return
        does_harm, importing = look_at(frame, self._own_code)
        if does_harm:
            self._come_back()
            return
        self.tainted = self.tainted or importing
        self._delay = AGAIN_FIRST
        raise KeyboardInterrupt

    def _come_back(self) -> None:
        """Sends the signal once more, a moment later, from a thread that lives just for that."""
        delay, self._delay = self._delay, min(self._delay * 2, AGAIN_MOST)
        _thread.start_new_thread(_signal_main_thread, (delay,))

    def _unraisable(self, unraisable: Any) -> None:
        ours = self.in_user_code and self.current in self._asked
        if ours and isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._come_back()
            return
        sys.__unraisablehook__(unraisable)


def look_at(frame: FrameType, own_code: Set[CodeType] = frozenset()) -> tuple[bool, bool]:
    """What an interrupt would do in this frame: whether it would vanish or do harm; whether it cuts an import in two.

    It vanishes in a finalizer or weakref callback; see `_is_event_loop` for the harm. Any thread's frame.

    Args:
        own_code: what has called the user's code: not looked at, nor what is above it.
    """
    if _is_event_loop(frame.f_code):
        return True, False
    importing = False
    looking: FrameType | None = frame
    for _ in range(FRAMES_LOOKED_AT):
        if looking is None or looking.f_code in own_code:
            break
        code = looking.f_code
        if code.co_name == "__del__" or code.co_filename.endswith(_SWALLOWING_FILES):
            return True, importing
        if code.co_filename.startswith("<frozen importlib"):
            if code.co_name == "cb":  # the weakref callback of a module lock
                return True, importing
            importing = True
        looking = looking.f_back
    return False, importing


def _is_event_loop(code: CodeType) -> bool:
    """The loop's own bookkeeping. An exception there loses what it has just taken from its queue: the coroutine whose
    turn it was never goes on, and its end is awaited for ever (one cancel in 200 of a busy loop). The loop sleeps in
    `select`, where an exception does no harm."""
    file = code.co_filename
    return file.startswith(_ASYNCIO) or (file == _SELECTORS and code.co_name != "select")


def _signal_main_thread(delay: float) -> None:
    time.sleep(delay)
    # To the thread, not to the process: a signal to the process may be taken by any of its threads and would then
    # not wake the main thread out of a system call.
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
