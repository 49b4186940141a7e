"""Frames: what kernel, supervisor, workers and command line say to each other.

A frame is a header of 24 bytes and a body that the supervisor does not read on the hot path. Every connection
is a unix socket; big values travel beside a frame as file descriptors (`fds` in the header says how many).

    size u32   bytes of the body
    kind u8    one of Kind
    flags u8   bits of Flag, log2 of a duration in the upper four
    fds  u16   file descriptors that travel with this frame
    fn   u64   id of the function, 0 for a cell; client id << 32 | count. FETCH and its answer: a serial number.
               YIELD: the item's place, from 0. TAKEN: a count. PUT: the kind of the outcome, 0 for a value
    id   u64   id of the task or object; client id << 40 | count. Items of generators, which the supervisor
               counts, are beyond those of all clients

Who says what, and when, is written next to each Kind. No thread, no socket and no clock in here.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = [
    "ALL_TAKEN",
    "CALL_OF",
    "CLIENT_SHIFT",
    "FUNCTION_SHIFT",
    "HEADER",
    "HEADER_SIZE",
    "ITEMS",
    "ITEM_OF",
    "MAX_FDS",
    "PACKED_NONE",
    "PROTOCOL",
    "SESSION_MARK",
    "Flag",
    "Kind",
    "frame",
    "from_json",
    "readdressed",
    "show_id",
    "to_json",
    "with_option",
]

SESSION_MARK = "JUPYTER_TASKS_SESSION"  # environment variable that the supervisor and all below it inherit
PROTOCOL = 1  # goes up when an older peer could misunderstand us; the handshake refuses a difference
HEADER = struct.Struct("=IBBHQQ")
HEADER_SIZE = HEADER.size
CLIENT_SHIFT = 40  # 2**24 clients, 2**40 (a million million) tasks each
ITEMS = (1 << 24) - 1 << CLIENT_SHIFT  # ids of items of generators come after this one
FUNCTION_SHIFT = 32
CALL_OF = struct.Struct("=H")  # which of the actor's methods
ITEM_OF = struct.Struct("=QQ")  # id of the task, the item's place from 0
ALL_TAKEN = (1 << 63) - 1
PACKED_NONE = b"\0\x80\x05N."  # the body of a RESULT that is None
MAX_FDS = 200  # per message; the kernel's own limit is 253 (SCM_MAX_FD)


class Kind:
    """What a frame says. C: a client, S: the supervisor, W: a worker.

    Plain numbers: the operators of enum.IntFlag took a fifth of a worker's time for tiny tasks.
    """

    # fmt: off
    HELLO = 1        # C->S first frame: versions, key, role. S->C: client id and settings, or a refusal
    FUNCTION = 2     # C->S, S->W: `fn` is this code (body: options length, options as JSON, code)
    TASK = 3         # C->S, S->W: run `fn` with these arguments as task `id`
    RESULT = 4       # W->S->C: the value of object `id`. S->W: a value that the next TASK needs
    ERROR = 5        # W->S->C: the task's own code raised (body: serialized error)
    FAILURE = 6      # S->C: no value will come (body: JSON, why: cancelled, crashed, memory, timeout, lost)
    INTERRUPTED = 7  # W->S: a KeyboardInterrupt ended the task's code, or it was skipped as cancelled
    STARTED = 8      # W->S: the task's code begins now (only asked for with Flag.ANNOUNCE)
    CANCEL = 9       # C->S: cancel task `id` (body: JSON). S->W, of actors that do several calls at a time, and S->C,
                     # of threads: it is to stop; with Flag.ASKS: only if it has not begun, otherwise say STARTED
    RELEASE = 10     # C->S: these objects (body: array of u64) have one holder less
    HOLD = 11        # C->S: these objects have one holder more; with an `id`, for as long as that object lives
    FETCH = 12       # C->S: send me object `id` when it is there, with its bytes
    PUT = 13         # C->S: object `id` has this value, or error; Flag.LATER: it will have one (body: a name)
    REQUEST = 14     # C->S: JSON question; `id` is echoed in the answer
    REPLY = 15       # S->C: JSON answer
    EVENT = 16       # S->C: task `id` changed (body: JSON), for those who watch it
    OUTPUT = 17      # S->C: bytes that task `id` wrote; Flag.STDERR tells the stream. W->S: of one of several calls
    DISPLAY = 18     # W->S->C: rich output of task `id` (body: JSON, a Jupyter message content)
    PROGRESS = 19    # W->S->C: a progress bar of task `id` moved (body: JSON)
    IDLE = 20        # W->S: what a finished task had left is gone; with an `id`: all but the frames kept of that task
    BLOCKED = 21     # W->S: task `id` waits in `get`; its slot is free for others
    UNBLOCKED = 22   # W->S: it goes on
    PRELOAD = 23     # S->W: import these modules while idle (body: JSON)
    FORGET = 24      # S->W: the frames of the failed task `id` are not wanted any more; answered by IDLE
    DEBUG = 25       # S->W: open them in a debugger
    YIELD = 26       # W->S: the generator task `id` has made an item (body: a value as in RESULT)
    ITEM = 27        # S->C: which is now object `id` (body: ITEM_OF, then the value; Flag.BIG as for RESULT)
    TAKEN = 28       # C->S: of the items of task `id`, `fn` were taken; ALL_TAKEN: nobody will take any more
    GROUP_COMPLETE = 29  # C->S: a group without a block, kept open for a member that was to come, has it
    GROUP = 30       # C->S: object `id` is a group of tasks (body: JSON); with no body: its block was left
    CALL = 31        # C->S, S->W: run a method of the actor `fn` as task `id` (body: as in TASK, but CALL_OF before the
                     # arguments)
    EXIT = 32        # S->W: the actor is to leave. W->S: it begins no further call; with Flag.LEAVES: no call runs.
                     # The same with S and C of an actor in a thread, `id`; with Flag.LEAVES: nothing of it is left
    FORGET_CODE = 34  # C->S: nobody can make tasks of function `fn` any more. S->W: it is not needed any more
    ACTOR_CLOSED = 33  # C->S: the actor `id` is to end when it has done the calls that it has
    # fmt: on


class Flag:
    """Bits of the header's flags; the upper four bits are log2 of the task's duration in microseconds."""

    BIG = 1  # RESULT to a client: the value waits at the supervisor; FETCH brings it
    OPTIONS = 1  # TASK: the body begins with u32 length and JSON options
    STDERR = 1  # OUTPUT
    LATER = 1  # PUT: another one brings the outcome
    ANNOUNCE = 2  # TASK: say STARTED
    ASKS = 1  # CANCEL
    LEAVES = 1  # EXIT: it is about to run its atexit functions
    LINGERS = 2  # RESULT, ERROR, INTERRUPTED: threads or children of the task still run
    TAINTED = 4  # INTERRUPTED: the worker must not be used again
    RETRYABLE = 4  # ERROR: an exception that the task wants to be run again for
    SKIPPED = 8  # INTERRUPTED: the task's code never began
    KEPT = 8  # ERROR: the worker stays with the frames of the task, for `%tasks debug`


DURATION_SHIFT = 4


def frame(kind: int, id: int = 0, body: bytes = b"", *, flags: int = 0, fn: int = 0, fds: int = 0) -> bytes:
    """One whole frame."""
    return HEADER.pack(len(body), kind, flags, fds, fn, id) + body


def with_option(call: bytes, name: str, value: Any) -> bytes:
    """A TASK frame with one option more, or with another value of it."""
    _, kind, flags, fds, fn, id = HEADER.unpack_from(call)
    body = call[HEADER_SIZE:]
    options: dict[str, Any] = {}
    if flags & Flag.OPTIONS:
        length = int.from_bytes(body[:4], "little")
        options, body = from_json(body[4 : 4 + length]), body[4 + length :]
    text = to_json({**options, name: value})
    return frame(kind, id, len(text).to_bytes(4, "little") + text + body, flags=flags | Flag.OPTIONS, fn=fn, fds=fds)


def readdressed(outcome: bytes, id: int) -> bytes:
    """The same outcome for another object."""
    return frame(outcome[4], id, outcome[HEADER_SIZE:])


def to_json(value: Any) -> bytes:
    """The body of a control frame. Control frames are JSON so that nobody ever unpickles for us."""
    return json.dumps(value, separators=(",", ":")).encode()


def from_json(body: bytes | memoryview) -> Any:
    """The opposite of to_json."""
    return json.loads(bytes(body))


def show_id(id: int) -> str:
    """How people see an id: tasks of the kernel are 1, 2, 3; those of client 4 are 4-1, 4-2; items are item-1."""
    client, count = id >> CLIENT_SHIFT, id & ((1 << CLIENT_SHIFT) - 1)
    if client == ITEMS >> CLIENT_SHIFT:
        return f"item-{count}"
    return str(count) if client <= 1 else f"{client}-{count}"
