"""A scheduler with its surroundings in the test's hand: events in, instructions out, time as a number.

Role: helper of the tests beside this file. `Rig` does nothing by itself; a test says what happens and looks at what the
rules want done. Nothing in here has a clock, a process or a socket.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

from jupyter_tasks.engine.events import (
    CPU_UNITS,
    ONE_CPU,
    CancelAsked,
    Capabilities,
    Deliver,
    DeliverValue,
    Demand,
    Died,
    Drop,
    End,
    Event,
    Finished,
    Gone,
    Instruction,
    Lease,
    Recalled,
    Run,
    Started,
    Submitted,
    Task,
    TaskSpec,
)
from jupyter_tasks.engine.scheduler import Scheduler
from jupyter_tasks.engine.states import State
from jupyter_tasks.wire.frames import DURATION_SHIFT, HEADER, HEADER_SIZE, Flag, Kind, frame, from_json, to_json

KERNEL = 1
T = TypeVar("T")


def cpus(amount: float) -> Demand:
    """The demand for so many processors."""
    return (("CPU", round(amount * CPU_UNITS)),) if amount else ()


def error_frame(id: int) -> bytes:
    return frame(Kind.ERROR, id, b"boom")


class Rig:
    """See the module's text. Checks the scheduler's invariants after every event."""

    def __init__(self, cpu: float = 2, *, depth: int = 2, packet: int = 32, **resources: float) -> None:
        total = {"CPU": round(cpu * CPU_UNITS), **{k: round(v * CPU_UNITS) for k, v in resources.items()}}
        self.capabilities = Capabilities(depth=depth, packet=packet)
        self.scheduler = Scheduler(total, self.capabilities)
        self.now = 100.0
        self.story: list[Instruction] = []  # every instruction so far
        self._ids = itertools.count(1)
        self._fds = itertools.count(1000)

    # -- events -----------------------------------------------------------------------------------------------

    def event(self, event: Event) -> list[Instruction]:
        """One event; returns what the rules want done."""
        instructions = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        self.story += instructions
        return instructions

    def task(
        self,
        *,
        fn: int = 1,
        plain: bool = True,
        owner: int = KERNEL,
        deps: Sequence[int] = (),
        pins: Sequence[int] = (),
        call: bytes = b"call",
        call_fds: Sequence[int] = (),
        parent: int = 0,
        id: int | None = None,
        **spec: Any,
    ) -> Task:
        """A task that is not submitted yet."""
        id = next(self._ids) if id is None else id
        for _ in range(spec.get("num_returns", 1) - 1):
            next(self._ids)
        spec.setdefault("demand", ONE_CPU)
        task = Task(id, owner, fn, TaskSpec(**spec), call, plain and not (deps or call_fds))
        task.deps, task.pins, task.call_fds, task.parent = tuple(deps), tuple(pins), tuple(call_fds), parent
        return task

    def submit(self, count: int | None = None, **options: Any) -> Any:
        """Submits one task, or a list of them; returns it or them."""
        tasks = [self.task(**options) for _ in range(1 if count is None else count)]
        self.event(Submitted(tasks))
        return tasks[0] if count is None else tasks

    def start(self, task: Task) -> list[Instruction]:
        """The task's worker says that its code began."""
        return self.event(Started(task.id, self.now))

    def running(self, **options: Any) -> Task:
        """A task that was submitted, given to a lease and begun."""
        task: Task = self.submit(**options)
        assert task.lease is not None
        self.start(task)
        assert task.state is State.RUNNING
        return task

    def end(self, task: Task, kind: int = Kind.RESULT, *, flags: int = 0, log2: int = 4, **how: Any) -> End:
        """The word of a worker that the task ended."""
        fds = how.get("fds", ())
        body = frame(kind, task.id, b"value" if kind == Kind.RESULT else b"boom", fds=len(fds))
        return End(task.id, kind, flags | log2 << DURATION_SHIFT, body, tuple(fds))

    def finish(self, task: Task, kind: int = Kind.RESULT, **how: Any) -> list[Instruction]:
        """The task ended; says so through the lease that it was given to."""
        lease = how.pop("lease", task.lease)
        assert lease is not None
        return self.event(Finished(lease, [self.end(task, kind, **how)]))

    def fail(self, task: Task, *, retryable: bool = False) -> list[Instruction]:
        """The task's code raised."""
        return self.finish(task, Kind.ERROR, flags=Flag.RETRYABLE if retryable else 0)

    def stop(self, task: Task, *, skipped: bool = False, tainted: bool = False) -> list[Instruction]:
        """A KeyboardInterrupt ended the task's code, or it was skipped."""
        flags = (Flag.SKIPPED if skipped else 0) | (Flag.TAINTED if tainted else 0)
        return self.finish(task, Kind.INTERRUPTED, flags=flags, log2=0)

    def cancel(self, task: Task | int, **how: Any) -> list[Instruction]:
        """Somebody wants the task stopped."""
        return self.event(CancelAsked(task if isinstance(task, int) else task.id, **how))

    def die(
        self, lease: Lease, running: Task | None = None, *, ours: bool = False, gone: bool = True
    ) -> list[Instruction]:
        """The lease's process ended, and (unless told otherwise) nothing of its tree is left."""
        signal = "SIGKILL" if ours else "SIGSEGV"
        out = self.event(Died(lease, running.id if running else 0, None, signal, ours))
        return [*out, *self.event(Gone(lease))] if gone else out

    def recalled(self, lease: Lease, *tasks: Task) -> list[Instruction]:
        """These were taken back."""
        return self.event(Recalled(lease, [task.id for task in tasks]))

    def fd(self) -> int:
        """A number that stands for a descriptor."""
        return next(self._fds)

    # -- looking ----------------------------------------------------------------------------------------------

    def told(self, kind: type[T]) -> list[T]:
        """All instructions of this kind so far, oldest first."""
        return [instruction for instruction in self.story if isinstance(instruction, kind)]

    def ran(self) -> list[list[int]]:
        """The packets given so far: ids."""
        return [[task.id for task in run.tasks] for run in self.told(Run)]

    def outcomes(self, client: int = KERNEL) -> dict[int, list[tuple[int, bytes]]]:
        """What the client was told: id -> (kind, body), once for each telling."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        for deliver in self.told(Deliver):
            if deliver.client == client:
                for outcome in deliver.frames:
                    _, kind, _, _, _, id = HEADER.unpack_from(outcome)
                    found.setdefault(id, []).append((kind, outcome[HEADER_SIZE:]))
        return found

    def failure(self, task: Task | int, client: int = KERNEL) -> dict[str, Any]:
        """The record behind the task's failure, told exactly once."""
        ((kind, body),) = self.outcomes(client)[task if isinstance(task, int) else task.id]
        assert kind == Kind.FAILURE
        return dict(from_json(body))

    def values(self, client: int = KERNEL) -> list[DeliverValue]:
        """Values sent because the client asked for them."""
        return [value for value in self.told(DeliverValue) if value.client == client]

    def dropped(self) -> list[int]:
        """Descriptors that were to be closed."""
        return [fd for drop in self.told(Drop) for fd in drop.fds]


def only(instructions: Sequence[Instruction], kind: type[T]) -> T:
    """The one instruction of this kind."""
    (found,) = [instruction for instruction in instructions if isinstance(instruction, kind)]
    return found


def kinds(instructions: Sequence[Instruction]) -> list[str]:
    """What is to be done, in order, as words."""
    return [type(instruction).__name__ for instruction in instructions]


__all__ = [
    "KERNEL",
    "Rig",
    "cpus",
    "error_frame",
    "kinds",
    "only",
    "to_json",
]
