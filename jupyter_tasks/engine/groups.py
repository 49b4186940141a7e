"""Groups of tasks: their states, and what a member's end means for them. Pure data; the scheduler acts.

    RUNNING      its block is open, or members are not final
    CANCELLING   it was cancelled, and members have not stopped yet
    COMPLETED    all members are final, and none has failed
    FAILED       all members are final, and one has failed or crashed
    CANCELLED    it was cancelled, and all members are final

A group is an object like others: its outcome is its record, which comes when it is final. Members are tasks and groups;
what a member submits is a member, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

from jupyter_tasks.engine.cancel import Cancel
from jupyter_tasks.engine.events import Entry
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import show_id

__all__ = ["GROUP_GRACE", "MOST_FAILED", "Group", "GroupState"]

GROUP_GRACE = 10.0  # seconds between a cancel's interrupt and the end of a member's process: longer than a timeout's 5,
# since a group is cancelled to be left behind; an honest guess
MOST_FAILED = 20  # failed members whose errors are kept until the group is dropped; the rest are counted


class GroupState(str, Enum):
    """What is true of a group now."""

    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Group(Entry):
    """One group. Changed by the scheduler alone.

    Invariant: `kind` is set exactly when `state` is a final one, and then `live` is empty.
    Invariant: a member that is not final stands in `live` of exactly one group.
    """

    __slots__ = (
        "auto",
        "cancel",
        "closed",
        "counts",
        "created_at",
        "ended_at",
        "fail_fast",
        "failed",
        "grace",
        "live",
        "name",
        "outer",
        "submitted",
    )

    def __init__(
        self,
        id: int,
        owner: int,
        name: str,
        *,
        grace: float | None = None,
        fail_fast: bool = False,
        auto: bool = False,
    ) -> None:
        super().__init__(id, owner)
        self.name = name
        self.grace = grace  # seconds; None: GROUP_GRACE, or that of the group whose cancel reaches it
        self.fail_fast = fail_fast
        self.auto = auto  # has no block: it is over when its members are
        self.outer: Group | None = None  # the one that it is a member of
        self.closed = False  # nobody submits to it from outside any more
        self.cancel: Cancel | None = None
        self.live: dict[int, None] = {}  # members that are not final: tasks and groups, in the order they came
        self.failed: list[int] = []  # the first members that failed by themselves; their outcomes are held
        self.submitted = 0  # tasks that ever were members, those of inner groups included
        self.counts: dict[State, int] = {}  # of those that are final, by their states
        self.created_at = 0.0
        self.ended_at: float | None = None

    @property
    def state(self) -> GroupState:
        """See the module's text. Never stored, so it cannot be out of step with what it is about."""
        if not self.kind:
            return GroupState.CANCELLING if self.cancel is not None else GroupState.RUNNING
        if self.cancel is not None and self.cancel.source != "failure":
            return GroupState.CANCELLED
        if self.counts.get(State.FAILED) or self.counts.get(State.CRASHED):
            return GroupState.FAILED
        return GroupState.CANCELLED if self.cancel is not None else GroupState.COMPLETED

    def chain(self) -> Iterator[Group]:
        """This group and those that it is in, from the inside out."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.outer

    @property
    def is_over(self) -> bool:
        """Nothing can happen to it any more: it may become final."""
        done = self.closed or self.cancel is not None or (self.auto and self.submitted > 0)
        return done and not self.live and not self.kind

    @property
    def why(self) -> str:
        """What its members are told."""
        reason = self.cancel.reason if self.cancel is not None else ""
        return f"group {self.name}: {reason}" if reason else f"group {self.name}"

    def grace_of(self, asked: float | None) -> float:
        """Seconds from the interrupt of a member to the end of its process; infinity: never by itself."""
        if asked is not None:
            return asked
        return GROUP_GRACE if self.grace is None else self.grace

    def record(self) -> dict[str, Any]:
        """What people are told of it; times are the scheduler's."""
        record: dict[str, Any] = {
            "group_id": show_id(self.id),
            "name": self.name,
            "state": self.state.value,
            "submitted": self.submitted,
            "counts": {state.value: count for state, count in self.counts.items()},
            "failed": list(self.failed),
        }
        if self.cancel is not None:
            record |= {"source": self.cancel.source, "reason": self.cancel.reason}
            grace = self.cancel.grace
            record["grace"] = None if grace is None or math.isinf(grace) else grace
        return record
