"""What the rules know and say: tasks, events (past participles) and instructions (imperatives).

Frozen where they travel, plain slots where the scheduler keeps them. Nothing in here acts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from jupyter_tasks.engine.cancel import Cancel
from jupyter_tasks.engine.states import State, Step

if TYPE_CHECKING:
    from jupyter_tasks.engine.actors import Actor
    from jupyter_tasks.engine.groups import Group

__all__ = [
    "CPU_UNITS",
    "EVERYTHING",
    "FALSE_STARTS",
    "GPU",
    "ONE_CPU",
    "ONE_PACKET",
    "PACKET_BYTES",
    "PACKET_US",
    "UNKNOWN_DURATION",
    "ActorClosed",
    "ActorExits",
    "ActorKilled",
    "Announce",
    "Answer",
    "CancelAsked",
    "Capabilities",
    "Chapter",
    "ClientGone",
    "CloseLease",
    "Contains",
    "Deliver",
    "DeliverValue",
    "Demand",
    "Died",
    "Drop",
    "End",
    "EndActor",
    "Entry",
    "Event",
    "Fetched",
    "Finished",
    "Gone",
    "GroupClosed",
    "GroupKept",
    "GroupMade",
    "GroupTold",
    "Held",
    "IdleAgain",
    "Instruction",
    "Interrupt",
    "ItemContains",
    "Kill",
    "Lease",
    "Promise",
    "Put",
    "Recall",
    "Recalled",
    "Released",
    "Retire",
    "RoomAsked",
    "Run",
    "Started",
    "Stream",
    "Submitted",
    "Taken",
    "Task",
    "TaskSpec",
    "Terminate",
    "ThreadsOffered",
    "Tick",
    "TooMuchMemory",
    "UnBlocked",
    "Uploaded",
    "WaitBegan",
    "Yielded",
    "thread_slots",
]

# What running tasks have submitted comes before what was submitted outside, and deeper before that: a task that waits
# for its children gives its slot back, and would otherwise let all others begin, and wait, first (measured: 40 tasks
# three deep had 82 workers, 150 did not end in a minute).
MOST_DEPTH = 1 << 20
FALSE_STARTS = 3  # workers that may die before they begin what they were given first; an honest guess
PACKET_US = 1024  # a packet is at most about a millisecond of work: its tail, also a cancelled one, waits for its head
PACKET_BYTES = 60_000  # keeps a packet well below a socket buffer
UNKNOWN_DURATION = 15  # log2 us: what never ended yet goes alone
CPU_UNITS = 10_000  # resources are counted in ten-thousandths, as Ray does, so that fractions add up exactly

Demand: TypeAlias = tuple[tuple[str, int], ...]  # (("CPU", 10000),): sorted by name, amounts in CPU_UNITS
GPU = "GPU"  # the resource that is not only counted: which devices a lease has stands in `Lease.devices`
ONE_PACKET = 0  # see Recall
EVERYTHING = -1
ONE_CPU: Demand = (("CPU", CPU_UNITS),)


def thread_slots(client: int) -> str:
    """The resource that thread tasks of a client take one of."""
    return f"thread:{client}"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """How a task is to be run. Shared by all tasks of a function that were called with the same options."""

    name: str = "task"
    kind: str = "function"  # or "cell", "actor", "call" (of an actor's method)
    demand: Demand = ONE_CPU
    timeout: float | None = None  # seconds, of each attempt
    grace: float | None = None  # seconds from interrupt to terminate
    memory: int | None = None  # bytes of private memory of the whole tree
    max_retries: int = 3  # for crashes; application errors say themselves whether they may be retried; -1: no end
    retry_delay: float = 0.0  # seconds before the first further attempt
    retry_backoff: float = 2.0  # ... and before each one after it so many times as long
    num_returns: int = 1
    watched: bool = False  # its owner wants every change of state
    thread: bool = False  # runs in the process that submitted it: it can be asked to stop, and nothing more
    interruptible: bool = False  # ... and wants a KeyboardInterrupt all the same
    streams: bool = False  # a generator, whose items are objects of their own
    backpressure: int = 0  # so many items may be made and not yet taken; 0: any number

    @property
    def priority(self) -> int:
        """Lower runs first: cells come before queued function tasks, and see MOST_DEPTH."""
        return 0 if self.kind == "cell" else MOST_DEPTH


class Chapter(NamedTuple):
    """Something that happened to a task."""

    at: float  # seconds on the scheduler's clock
    step: str  # one of Step's words, or a rung that was climbed
    state: str  # what it led to
    source: str = ""  # who wanted it
    reason: str = ""


class Entry:
    """A value that is or will be there: an object. A Task is the Entry of its own first return value.

    Invariant: `kind` is 0 until the outcome is there and never changes after.
    Invariant: an entry with no holders whose outcome is there is in no table.
    """

    __slots__ = ("dependents", "fds", "frame", "holders", "id", "kind", "owner", "readers")

    def __init__(self, id: int, owner: int) -> None:
        self.id = id
        self.owner = owner  # client that made it, and gets its outcome without asking
        self.holders = 1  # refs, tasks that use it as an argument, values that contain it
        self.kind = 0  # Kind.RESULT, ERROR or FAILURE once it is there
        self.frame: bytes = b""  # the whole outcome frame
        self.fds: tuple[int, ...] = ()  # its shared memory, owned by this entry
        self.dependents: list[Task] | None = None  # wait for it
        self.readers: list[Fetched] | None = None  # who asked for it, bytes included


class Promise(Entry):
    """A value that its owner will bring: it waits for it in another session. Tasks can be submitted that need it."""

    __slots__ = ("name",)

    def __init__(self, id: int, owner: int, name: str) -> None:
        super().__init__(id, owner)
        self.name = name  # of the task that makes it there


class Task(Entry):
    """One submitted task. Changed by the scheduler alone."""

    __slots__ = (
        "attempt",
        "by_actor",
        "call",
        "call_fds",
        "cancel",
        "children",
        "deps",
        "depth",
        "ended_at",
        "false_starts",
        "fn",
        "group",
        "group_id",
        "lease",
        "parent",
        "pins",
        "plain",
        "retry_at",
        "seq",
        "spec",
        "started_at",
        "state",
        "story",
        "stream",
        "submitted_at",
        "used_memory",
        "waiting",
    )

    actor: Actor | None = None  # a Call has one

    def __init__(self, id: int, owner: int, fn: int, spec: TaskSpec, call: bytes, plain: bool) -> None:
        # Entry.__init__ written out: this is the hot path.
        self.id = id
        self.owner = owner
        self.holders = 1
        self.kind = 0
        self.frame = b""
        self.fds = ()
        self.dependents = None
        self.readers = None
        self.fn = fn
        self.spec = spec
        self.call = call  # the whole TASK frame
        self.plain = plain  # no options, dependencies or shared memory: may share a packet
        self.call_fds: tuple[int, ...] = ()
        self.state = State.PENDING
        self.lease: Lease | None = None  # where it was given to, while not final
        self.deps: tuple[int, ...] = ()  # objects whose values it gets
        self.pins: tuple[int, ...] = ()  # objects inside its arguments, which must live until it ends
        self.waiting = 0  # how many of them are not there yet
        self.attempt = 0
        self.false_starts = 0  # workers that died between taking it and beginning it
        self.cancel: Cancel | None = None
        self.parent = 0  # id of the task that submitted it
        self.by_actor = 0  # id of the actor that submitted it
        self.depth = 0  # how many tasks it is inside of
        self.children: list[int] | None = None
        self.group_id = 0  # the group that its submitter has named
        self.group: Group | None = None  # the one that it is a member of: that, or its parent's
        self.story: list[Chapter] | None = None  # what happened to it, beside its submission, start and plain end
        self.retry_at: float | None = None  # its next attempt is given to nobody before
        self.seq = 0  # order of submission
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.used_memory = 0  # bytes, set when over its limit
        self.stream: Stream | None = None  # of a generator that has begun to make items, while not final


class Stream:
    """How far a generator task has come with its items, over all its attempts. Changed by the scheduler alone."""

    __slots__ = ("asked", "inside", "made", "taken")

    def __init__(self) -> None:
        self.made = 0  # items that are objects; a further attempt makes them once more, and they are dropped
        self.taken = 0  # of these the owner has taken so many; ALL_TAKEN: nobody takes any more, none is kept
        self.asked: RoomAsked | None = None  # its worker waits for room
        self.inside: dict[int, list[int]] = {}  # place of an item on its way -> what its value has refs to, and holds


class Lease:
    """A place at the backend where tasks of one demand run one after another (a worker, for the local one).

    Invariant: its resources, GPUs apart, are taken from the scheduler's `available` exactly while `holds` is true.
    Invariant: `devices` never changes; its share of them is taken exactly while `keeps` is true.
    Invariant: a place with devices was made for its lease and ends with it: it is retired, never closed.
    """

    __slots__ = (
        "actor",
        "blocked",
        "closing",
        "demand",
        "devices",
        "ending",
        "ghosts",
        "holds",
        "id",
        "idle_until",
        "keeps",
        "lingering",
        "packets",
        "place",
        "recalling",
        "retired",
    )

    def __init__(self, id: int, demand: Demand, devices: tuple[int, ...] = ()) -> None:
        self.id = id
        self.demand = demand
        self.devices = devices  # indices of its GPUs; the backend knows their names
        self.holds = True
        self.keeps = bool(devices)
        self.idle_until: float | None = None  # with devices: when it is given up, unless it has a task then
        self.packets: deque[list[int]] = deque()  # ids given and not finished, in the order given
        self.blocked = False  # its task waits in `get`
        self.recalling = False  # a Recall is under way, do not ask again
        self.lingering: Task | None = None  # finished, but threads or children of it still run
        self.ending: tuple[Task, Step, dict[str, Any]] | None = None  # becomes final when its tree is gone
        self.retired = False  # no more tasks: its place is being closed
        self.ghosts: set[int] = set()  # in `packets`, but taken back from there: will be skipped, run elsewhere
        self.closing = False  # no more tasks: it is closed after its last packet
        self.actor: Actor | None = None  # who lives here: it ends with the actor, and is given nothing but its calls
        self.place: object = None  # the backend's own


# Events ------------------------------------------------------------------------------------------------------


class Submitted(NamedTuple):
    """Clients want these tasks run."""

    tasks: Sequence[Task]


class Put(NamedTuple):
    """A client made an object, or promises one; or it brings the outcome of one that it has promised."""

    entry: Entry


class Started(NamedTuple):
    """A task's code began, `at` on the scheduler's clock."""

    id: int
    at: float


class End(NamedTuple):
    """One task's end, as its worker told it."""

    id: int
    kind: int  # Kind.RESULT, ERROR, INTERRUPTED
    flags: int
    frame: bytes
    fds: tuple[int, ...] = ()


class Finished(NamedTuple):
    """A worker told these ends, in this order."""

    lease: Lease
    ends: Sequence[End]


class Yielded(NamedTuple):
    """A generator task made an item; `place` counts from 0 in each attempt."""

    id: int
    place: int
    value: bytes  # as in the body of a RESULT
    fds: tuple[int, ...] = ()


class ItemContains(NamedTuple):
    """Inside an item that the worker is about to tell are refs to others: they live as long as it does."""

    id: int
    place: int
    inside: Sequence[int]


class Taken(NamedTuple):
    """The client has taken so many items of its generator task; ALL_TAKEN: it takes no more."""

    client: int
    id: int
    taken: int


class RoomAsked(NamedTuple):
    """The worker of a generator task, which has made so many items, waits until another may be made."""

    client: int
    serial: int
    id: int
    made: int


class Recalled(NamedTuple):
    """These tasks of the lease were not begun and never will be there."""

    lease: Lease
    ids: Sequence[int]
    read: bool = False  # its process has read them, and will say INTERRUPTED, SKIPPED of each when it gets there


class Died(NamedTuple):
    """The lease's process ended: `running` was in it, the rest of what it was given was not begun."""

    lease: Lease
    running: int  # 0: none
    exit_code: int | None
    signal_name: str | None
    ours: bool  # we ended it


class Gone(NamedTuple):
    """Nothing of the lease's process tree exists any more (follows Retire, and Kill)."""

    lease: Lease


class IdleAgain(NamedTuple):
    """What a finished task had left running in this lease has ended."""

    lease: Lease


class CancelAsked(NamedTuple):
    """Somebody wants the task stopped."""

    id: int
    source: str = "user"
    reason: str = ""
    force: bool = False
    recursive: bool = True
    grace: float | None = None


class ActorKilled(NamedTuple):
    """Somebody wants the actor's process ended; answered when that is gone."""

    id: int
    no_restart: bool = True
    reason: str = ""
    client: int = 0  # 0: nobody waits for the answer
    serial: int = 0


class ActorClosed(NamedTuple):
    """Somebody wants the actor to end when it has done the calls that it has."""

    id: int


class ActorExits(NamedTuple):
    """The actor of this lease ends by itself: it begins no further call."""

    lease: Lease
    leaves: bool  # those that it had begun are over, too: now it runs its atexit functions
    how: str = "exit_actor()"


class GroupMade(NamedTuple):
    """A client made a group; inside of this task of its, or of that group, or of neither (0)."""

    group: Group
    task: int = 0
    parent: int = 0


class GroupClosed(NamedTuple):
    """The group's block was left."""

    id: int


class GroupKept(NamedTuple):
    """Of a group without a block: a member is about to come, so it is not over; or that has come."""

    id: int
    kept: bool


class ThreadsOffered(NamedTuple):
    """A client runs so many thread tasks at a time."""

    client: int
    slots: int


class Uploaded(NamedTuple):
    """The bytes of a value that was in its process alone: somebody else needs it."""

    client: int
    id: int
    frame: bytes
    fds: tuple[int, ...] = ()


class TooMuchMemory(NamedTuple):
    """The task's tree uses `used` bytes of private memory."""

    id: int
    used: int


class Held(NamedTuple):
    """There is one ref more to each of these."""

    client: int
    ids: Sequence[int]


class Contains(NamedTuple):
    """Inside the value of this object, there or on its way, are refs to others: they live as long as it does."""

    id: int
    inside: Sequence[int]


class Released(NamedTuple):
    """There is one ref less to each of these."""

    client: int
    ids: Sequence[int]


class Fetched(NamedTuple):
    """The client wants the outcome of an object, with its bytes, as soon as it is there; `serial` marks the answer."""

    client: int
    id: int
    serial: int = 0


class ClientGone(NamedTuple):
    """A client's connection ended; its refs count as dropped."""

    client: int


class WaitBegan(NamedTuple):
    """The running task of the lease waits in `get`: its slot is free for others."""

    lease: Lease


class UnBlocked(NamedTuple):
    """It goes on."""

    lease: Lease


class Tick(NamedTuple):
    """Time has passed."""


Event: TypeAlias = (
    Submitted
    | Put
    | Started
    | Finished
    | Recalled
    | Died
    | Gone
    | IdleAgain
    | CancelAsked
    | ActorKilled
    | ActorClosed
    | ActorExits
    | GroupMade
    | GroupClosed
    | GroupKept
    | ThreadsOffered
    | Uploaded
    | TooMuchMemory
    | Held
    | Contains
    | Released
    | Fetched
    | ClientGone
    | WaitBegan
    | UnBlocked
    | Tick
    | Yielded
    | ItemContains
    | Taken
    | RoomAsked
)


# Instructions ------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Give these tasks, in one packet, to the lease's place (made at its first Run)."""

    lease: Lease
    tasks: Sequence[Task]


class CloseLease(NamedTuple):
    """The lease has no tasks, and no devices; its place may be used for another."""

    lease: Lease


class Recall(NamedTuple):
    """Take back what the lease has not begun: for ONE_PACKET its last packet, for EVERYTHING all it can,
    for a task's id that task (and what else comes along).

    Answered by Recalled (perhaps of nothing); for an `id` that has begun also by Started; if its end is on the
    way, by that.
    """

    lease: Lease
    id: int


class Interrupt(NamedTuple):
    """KeyboardInterrupt in this task, and in no other."""

    task: Task


class Terminate(NamedTuple):
    """SIGTERM to this task's processes."""

    task: Task


class Kill(NamedTuple):
    """End this task's whole process tree. Answered by Died and Gone, if the task is still in it."""

    task: Task


class Retire(NamedTuple):
    """End the lease's place with its whole tree, whatever runs in it. Answered by Gone."""

    lease: Lease


class Deliver(NamedTuple):
    """Tell the client these outcomes (of big values only that they are there)."""

    client: int
    frames: Sequence[bytes]


class DeliverValue(NamedTuple):
    """Send the client this outcome, with its shared memory. The descriptors stay the entry's."""

    client: int
    frame: bytes
    fds: tuple[int, ...]
    serial: int = 0  # of the fetch that it answers


class Announce(NamedTuple):
    """The task's record changed: tell who watches."""

    task: Task


class GroupTold(NamedTuple):
    """The group's record changed: tell its owner, at once if its state has."""

    group: Group
    at_once: bool


class Drop(NamedTuple):
    """Close these descriptors."""

    fds: Sequence[int]


class Answer(NamedTuple):
    """To a client's question; of RoomAsked: so many items were taken."""

    client: int
    serial: int
    value: Any


class EndActor(NamedTuple):
    """The actor of this lease has nothing more to do, and is to leave by itself: Died and Gone follow."""

    lease: Lease


Instruction: TypeAlias = (
    Run
    | CloseLease
    | Recall
    | Interrupt
    | Terminate
    | Kill
    | Retire
    | Deliver
    | DeliverValue
    | Announce
    | GroupTold
    | Drop
    | Answer
    | EndActor
)


@dataclass(slots=True)
class Capabilities:
    """What a backend can do; what it cannot is skipped by the rules and told on the screen."""

    depth: int = 1  # packets given to one lease ahead of time
    packet: int = 1  # tiny tasks in one packet
    rungs: frozenset[str] = field(default_factory=lambda: frozenset({"ask", "interrupt", "terminate", "kill"}))
