"""The states of a task and every way from one to another, in one table.

Pure data: no clock, no thread, no I/O. Only the scheduler changes a task's state, and only through `next_state`.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["FINAL", "TRANSITIONS", "State", "Step", "next_state"]


class State(str, Enum):
    """What is true of a task now. The words are those on the screen, in lower case."""

    PENDING = "pending"  # not started: waits for its dependencies, for a slot, or for a retry
    RUNNING = "running"  # its code has begun
    CANCELLING = "cancelling"  # asked to stop, its code has not ended yet
    CANCELLED = "cancelled"  # cancelled, and its code has ended or never began
    COMPLETED = "completed"  # its value is there
    FAILED = "failed"  # its own code raised, it ran out of time, or its dependency failed
    CRASHED = "crashed"  # its process ended under it, or it used too much memory

    __hash__ = str.__hash__  # Enum's own is written in Python; the table is looked up several times a task


FINAL = frozenset({State.CANCELLED, State.COMPLETED, State.FAILED, State.CRASHED})


class Step(str, Enum):
    """What happened to a task."""

    STARTED = "started"  # its code began
    RETURNED = "returned"  # its code returned a value
    RAISED = "raised"  # its code raised something that is no KeyboardInterrupt
    STOPPED = "stopped"  # a KeyboardInterrupt ended its code, or a cancelled task was never started
    KILLED = "killed"  # we ended its process, because of a cancel
    TIMED_OUT = "timed out"  # we ended it because of its timeout
    DIED = "died"  # its process ended by itself, or for its memory
    ASKED = "asked"  # somebody wants it to stop
    UPSTREAM_FAILED = "upstream failed"  # a dependency failed or crashed
    UPSTREAM_CANCELLED = "upstream cancelled"
    RETRIED = "retried"  # an attempt failed and another one is allowed
    ACTOR_GONE = "actor gone"  # its actor has ended, or restarts: it was under way, or waited
    RECALLED = "recalled"  # given to a worker, but not begun, and back in the queue

    __hash__ = str.__hash__


_S, _T = State, Step

TRANSITIONS: dict[tuple[State, Step], State] = {
    (_S.PENDING, _T.STARTED): _S.RUNNING,
    (_S.PENDING, _T.ASKED): _S.CANCELLED,  # never runs
    (_S.PENDING, _T.UPSTREAM_FAILED): _S.FAILED,  # never runs
    (_S.PENDING, _T.UPSTREAM_CANCELLED): _S.CANCELLED,  # never runs
    (_S.PENDING, _T.ACTOR_GONE): _S.FAILED,  # never runs
    (_S.PENDING, _T.RECALLED): _S.PENDING,
    # Tasks that nobody watches say nothing at their start: their end is the first we hear.
    (_S.PENDING, _T.RETURNED): _S.COMPLETED,
    (_S.PENDING, _T.RAISED): _S.FAILED,
    (_S.PENDING, _T.STOPPED): _S.CANCELLED,
    (_S.PENDING, _T.DIED): _S.CRASHED,
    (_S.PENDING, _T.RETRIED): _S.PENDING,
    (_S.RUNNING, _T.RETURNED): _S.COMPLETED,
    (_S.RUNNING, _T.RAISED): _S.FAILED,
    (_S.RUNNING, _T.STOPPED): _S.CANCELLED,  # its own code raised KeyboardInterrupt
    (_S.RUNNING, _T.DIED): _S.CRASHED,
    (_S.RUNNING, _T.ACTOR_GONE): _S.CRASHED,
    (_S.RUNNING, _T.RETRIED): _S.PENDING,
    (_S.RUNNING, _T.ASKED): _S.CANCELLING,
    (_S.CANCELLING, _T.ASKED): _S.CANCELLING,  # asked again: another interrupt, or a higher rung
    (_S.CANCELLING, _T.RETURNED): _S.COMPLETED,  # a value that comes first wins over the cancel
    (_S.CANCELLING, _T.RAISED): _S.FAILED,  # it raised another error in its handler
    (_S.CANCELLING, _T.STOPPED): _S.CANCELLED,
    (_S.CANCELLING, _T.KILLED): _S.CANCELLED,
    (_S.CANCELLING, _T.TIMED_OUT): _S.FAILED,
    (_S.CANCELLING, _T.ACTOR_GONE): _S.CRASHED,
    (_S.CANCELLING, _T.DIED): _S.CRASHED,  # its process ended before we did anything to it
}


def next_state(state: State, step: Step) -> State:
    """The state after `step`.

    Raises:
        LookupError: the table has no such row, which is a bug of ours.
    """
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        raise LookupError(f"A task that is {state.value} cannot be {step.value}.") from None
