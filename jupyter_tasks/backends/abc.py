"""What a backend must do. Backends speak tasks and leases, never workers, so those that hide theirs fit too.

The supervisor's loop calls every method, from its one thread; none may block for more than a few milliseconds. What
happened is told through `post(event)`, which may be called from within any method. What a backend cannot do stands in
its `capabilities`: the rules skip that rung, and the screen says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from jupyter_tasks.engine.events import Capabilities, Event, Lease, Task

__all__ = ["Backend", "Host"]


class Host(Protocol):
    """What the supervisor's loop offers a backend."""

    def post(self, event: Event) -> None:
        """Tells the rules what happened; taken in after the current instruction."""

    def watch(self, fd: int, callback: Callable[[int], object]) -> None:
        """Calls `callback(events)` when the descriptor is readable, until `unwatch`."""

    def watch_writable(self, fd: int, wanted: bool) -> None:
        """Also when it is writable, or not any more."""

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed."""

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Calls back at this time of the loop's clock (`now`)."""

    def now(self) -> float:
        """Seconds on the loop's clock."""

    def function_frame(self, fn: int) -> tuple[bytes, tuple[int, ...]]:
        """The FUNCTION frame of this id, and its shared memory."""

    def object_frame(self, id: int) -> tuple[bytes, tuple[int, ...]]:
        """The outcome of an object that a task depends on."""

    def hear_out(self, worker: int) -> None:
        """Takes in what this worker has said as a client: before the end of a task comes what it has submitted."""

    def told(self, kind: int, flags: int, id: int, body: bytes, fds: Sequence[int]) -> None:
        """A worker said something that goes to the task's owner: DISPLAY, PROGRESS."""

    def wrote(self, id: int, data: bytes, *, stderr: bool) -> None:
        """The task wrote this."""

    def changed(self, id: int) -> None:
        """What there is to say of a finished task has changed."""


class Backend(ABC):
    """Runs tasks somewhere."""

    capabilities: Capabilities

    @abstractmethod
    def start(self, host: Host, config: dict[str, Any]) -> None:
        """Called once, before anything else."""

    @abstractmethod
    def run(self, lease: Lease, tasks: Sequence[Task]) -> None:
        """Gives the lease these tasks; makes its place if it has none, and a new one if the lease has devices."""

    @abstractmethod
    def close(self, lease: Lease) -> None:
        """The lease is over; its place may serve another. Never of a lease with devices: that is retired."""

    @abstractmethod
    def recall(self, lease: Lease, id: int) -> None:
        """Takes back what has not begun; see events.Recall for the answers."""

    @abstractmethod
    def interrupt(self, task: Task) -> None:
        """KeyboardInterrupt in this task and in no other."""

    @abstractmethod
    def terminate(self, task: Task) -> None:
        """Asks this task's processes to end."""

    @abstractmethod
    def kill(self, task: Task) -> None:
        """Ends this task's whole process tree; Died and Gone follow, unless the task was over."""

    @abstractmethod
    def end_actor(self, lease: Lease) -> None:
        """Asks the actor that lives there to leave by itself; Died and Gone follow."""

    @abstractmethod
    def retire(self, lease: Lease) -> None:
        """Ends the lease's place with its whole tree; Gone follows."""

    @abstractmethod
    def forget_function(self, fn: int) -> None:
        """No task of this function comes any more; places that know its code may let it go."""

    @abstractmethod
    def processes(self, task: Task) -> list[int]:
        """The process ids that this task uses now, for usage and limits; empty where they are not known."""

    @abstractmethod
    def running(self, lease: Lease) -> Collection[int]:
        """The ids of the tasks that run in the lease at this moment; only an actor's lease has more than one."""

    @abstractmethod
    def left_running(self, task: Task) -> bool:
        """Threads or children of this finished task still run."""

    @abstractmethod
    def keeps_frames(self, task: Task) -> bool:
        """The frames of this failed task can be opened in a debugger."""

    @abstractmethod
    def debug(self, task: Task) -> bool:
        """Opens them; a DISPLAY of type "debugged" tells the owner when that is over. False if they are not there."""

    @abstractmethod
    def forget_frames(self, task: Task) -> bool:
        """They are not wanted any more. True if nothing else is left of the task."""

    @abstractmethod
    def write_stacks(self, task: Task) -> str | None:
        """Has the task's worker write what it is doing to a file, a moment later; None if the task runs in none."""

    @abstractmethod
    def shutdown(self) -> None:
        """Ends everything it ever started, at once, and returns when it is gone."""
