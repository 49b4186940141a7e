"""The stop button (a SIGINT) as a word instead of an exception, where an exception would do harm.

Main thread, except that `StopButton.wake` may be called from any; in other threads there is no stop button.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["StopButton"]


class StopButton:
    """While this is open, a SIGINT calls `press` and raises nothing.

    A KeyboardInterrupt may hit any line: between the submission and the wait it would leave a task that runs on with
    nobody to cancel it, between the lines that bring names home it would leave half of them, and at the end of a
    group's block it would leave the group.
    """

    def __init__(self, press: Callable[[], None]) -> None:
        self.presses = 0
        self._press = press
        self._before: Any = None
        self.raises = False  # set while somebody is asked, who may press it to say no: there it is a KeyboardInterrupt

    def __enter__(self) -> StopButton:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _pressed(self, *_: object) -> None:
        if self.raises:
            self.raises = False  # once: where this lands the next press must not follow
            raise KeyboardInterrupt
        self.presses += 1
        self._press()

    def wake(self) -> None:
        """Ends a wait for the user, from another thread: what was asked for is not wanted any more."""
        main = threading.main_thread().ident
        if not self.raises or self._before is None or main is None:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, signal.SIGINT)
        else:
            _thread.interrupt_main()
