"""The ladder: how a task is stopped, rung by rung. Pure data and arithmetic.

    ASK        the flag that `is_canceled()` reads
    INTERRUPT  KeyboardInterrupt in the task's main thread
    TERMINATE  SIGTERM to the task's processes
    KILL       the whole tree is stopped, swept and killed

One road for `cancel(ref)`, a click, a timeout, a group, a memory limit and the kernel's end; only `source` differs.
A soft cancel asks and interrupts at once and then waits: for ever, unless a grace period was given. `force`
goes straight to KILL. A backend that lacks a rung says so in its capabilities, and the ladder skips it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["TERMINATE_GRACE", "TIMEOUT_GRACE", "Cancel", "Rung"]

TERMINATE_GRACE = 1.0  # seconds between SIGTERM and SIGKILL; an honest guess, what init systems give is 5 to 90
TIMEOUT_GRACE = 5.0  # seconds a task that ran out of time gets to clean up (docs/semantics.md, Ends)


class Rung(IntEnum):
    """Higher is harder."""

    ASK = 0
    INTERRUPT = 1
    TERMINATE = 2
    KILL = 3


@dataclass(slots=True)
class Cancel:
    """One task's way up the ladder. Only the scheduler changes it.

    Invariant: `rung` never goes down; `climb_at` is None when nothing climbs by itself.
    """

    source: str  # "user", "timeout", "memory", "group", "failure" (fail_fast), "interrupt", "parent"
    reason: str
    asked_at: float  # seconds, the scheduler's clock
    grace: float | None  # seconds from the interrupt to TERMINATE; None or infinity: never by itself
    rung: Rung = Rung.ASK
    climb_at: float | None = None
    recursive: bool = False  # it goes for the task's children, too

    def start(self, now: float, *, force: bool) -> Rung:
        """The first rung to stand on, and when to climb from it."""
        if force:
            self.rung, self.climb_at = Rung.KILL, None
        else:
            self.rung = max(self.rung, Rung.INTERRUPT)
            if self.rung is Rung.INTERRUPT and self.grace is not None and self.grace != math.inf:
                # Asking again never postpones the next rung.
                climb_at = now + self.grace
                self.climb_at = climb_at if self.climb_at is None else min(self.climb_at, climb_at)
        return self.rung

    def climb(self, now: float) -> Rung:
        """One rung up."""
        self.rung = Rung(min(self.rung + 1, Rung.KILL))
        self.climb_at = now + TERMINATE_GRACE if self.rung is Rung.TERMINATE else None
        return self.rung
