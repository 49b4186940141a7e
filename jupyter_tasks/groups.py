"""TaskGroup: tasks that belong together, end together and are cancelled together.

    with jt.TaskGroup("sweep") as group:
        refs = [train.remote(rate) for rate in rates]
    # here every member is final

The supervisor holds the group's state, so `cancel` works from any thread, from another cell and from `%tasks cancel`.
What is here: the block, its end, and the hooks. Members are found by a context variable: what the code of the block
submits, also in coroutines that it starts, but not in threads that it starts by itself.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jupyter_tasks import exceptions, session
from jupyter_tasks.refs import ObjectRef, current_group
from jupyter_tasks.stopbutton import StopButton
from jupyter_tasks.wire.frames import Kind, frame, from_json
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["TaskGroup", "on_made"]

LINE_EVERY = 0.5  # seconds between two looks while a terminal shows how far a group is

Hook = Callable[["TaskGroup"], Any]

_on_made: list[Callable[[TaskGroup], None]] = []


def on_made(hook: Callable[[TaskGroup], None]) -> None:
    """Has `hook(group)` called for each new group, in the thread that makes it. For the notebook's layer."""
    _on_made.append(hook)


class TaskGroup:
    """A set of tasks. What is submitted inside its `with` block belongs to it, and what these tasks submit.

    Leaving the block waits for all members. An error or the stop button inside the block cancels the members, waits for
    their end, and is raised again. `async with` does the same without blocking the event loop. A block inside of
    another is a group inside of a group.

    Args:
        name: what the screen shows, and `%tasks cancel` takes.
        grace: seconds between the interrupt of a cancelled member and the end of its process. Default 10;
            `math.inf`: never.
        on_cancellation: called as `hook(group)` after a cancel, when every member has stopped: in their order, once,
            before the block is left. One that raises is reported, and the others are called. In an `async with`
            they may be async.
        fail_fast: the first member that fails cancels the others.

    Raises (when the block is left):
        the error of a member that failed, an ExceptionGroup if there are several. Nothing for a cancel that was asked
        for by `cancel`, `%tasks` or a click.
        ObjectLostError: the supervisor has ended.

    A group is used for one block. It may be cancelled from any thread. It cannot be sent to a task.
    """

    def __init__(
        self,
        name: str = "group",
        *,
        grace: float | None = None,
        on_cancellation: Iterable[Hook] = (),
        fail_fast: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"A TaskGroup's name is a text that is not empty, not {name!r}.")
        if grace is not None and (isinstance(grace, bool) or not isinstance(grace, (int, float)) or not grace >= 0):
            raise ValueError(f"grace is seconds, not negative, but is {grace!r}.")
        self.name = name
        self.grace = grace
        self.fail_fast = bool(fail_fast)
        self.on_cancellation = [on_cancellation] if callable(on_cancellation) else list(on_cancellation)
        for hook in self.on_cancellation:
            if not callable(hook):
                raise TypeError(f"on_cancellation takes functions that are called with the group, not {hook!r}.")
        self._ref: ObjectRef | None = None  # final when the group is
        self._outer: TaskGroup | None = None
        self._entered = False
        self._left = False  # the block is over
        self.auto = False  # it has no block, and is over when its members are
        self._cancel_at_once: dict[str, Any] | None = None  # asked for before there was something to cancel
        self._told: set[int] = set()  # failed members whose error an inner block has raised

    # -- for everybody ----------------------------------------------------------------------------------------

    def cancel(self, force: bool = False, *, grace: float | None = None, reason: str = "") -> None:
        """Asks all members to stop, and lets none begin. Returns at once.

        Those that run get a KeyboardInterrupt, and after the grace period the end of their process; with `force` at
        once. A member that ends by itself keeps its value or error. Again, or for a group that is over: nothing.
        Inside its block, `jt.get` of a member then raises TaskCancelledError, which ends the block.

        Args:
            grace: seconds, instead of the group's.
            reason: shown on the screen, and in the members' errors.
        """
        if grace is not None and not grace >= 0:
            raise ValueError(f"grace must not be negative, but is {grace!r}.")
        self._cancel(force=force, grace=grace, reason=reason, source="user")

    @property
    def state(self) -> str:
        """ "pending" (not entered yet), "running", "cancelling", "completed", "failed" (a member failed or crashed) or
        "cancelled". The last three are final, and said only when every member is."""
        if self._ref is None:
            return "pending"
        return str(self._record()["state"])

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The members, as `jt.tasks()` tells of them; those of inner groups included. The oldest may be forgotten."""
        if self._ref is None or self._ref._client.closed:
            return []
        record = self._ref._client.request("groups", id=self._ref.id)
        return list(record["tasks"]) if record is not None else []

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until every member is final, or `timeout` seconds have passed. Returns whether they are.

        Raises nothing for members that failed. Inside the group's own block it would wait for itself: RuntimeError.
        """
        if self._ref is None or (self._entered and not self._left):
            raise RuntimeError(f"TaskGroup {self.name!r}: its block has not been left; wait for its members instead.")
        return self._ref._client.wait([self._ref], None, timeout)

    def __repr__(self) -> str:
        state = "not entered" if self._ref is None else "?" if self._ref._client.closed else self.state
        return f"<TaskGroup {self.name!r}, {state}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"TaskGroup {self.name!r} stays where it was made: tasks that its block submits belong to it anyway, "
            "and so do theirs"
        )

    # -- for the client and the notebook ------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """What the supervisor calls it; 0 before it is entered."""
        return self._ref.id if self._ref is not None else 0

    @property
    def ref(self) -> ObjectRef:
        """Final when the group is. Only once it is made."""
        return self._end

    @property
    def is_outermost(self) -> bool:
        """Not made inside of another one's block."""
        return self._outer is None

    @property
    def is_left(self) -> bool:
        """Its block was left, or its map has submitted all."""
        return self._left

    def id_for(self, client: Client) -> int:
        """The id, for a task that this client submits; 0 for one of another session, which cannot be a member.

        Raises:
            RuntimeError: the group is over, or belongs to a session that has ended.
        """
        if self._ref is not None and self._ref._client is not client and not self._ref._client.closed:
            return 0
        if self._ref is None or self._ref._client is not client:
            raise RuntimeError(f"TaskGroup {self.name!r} belongs to a session that has ended; leave its block first.")
        if self._left or (self._ref._kind and self._record()["state"] != "cancelled"):
            raise RuntimeError(f"TaskGroup {self.name!r} is over; make another one for further tasks.")
        return self._ref.id

    def make(self, *, auto: bool = False) -> None:
        """Has the supervisor make it. `auto`: it has no block, and is over when its members are."""
        self.auto = auto
        client = session.current_client()
        outer: TaskGroup | None = current_group.get()
        if outer is not None:
            self._outer = outer
        options = {
            "name": self.name,
            "grace": self.grace,
            "fail_fast": self.fail_fast,
            "auto": auto,
            "parent": outer.id_for(client) if outer is not None else 0,
        }
        self._ref = client.make_group(options)
        if self._cancel_at_once is not None:
            self._cancel(**self._cancel_at_once)
        if auto and self.on_cancellation:
            client.when_final(self._ref, self._ended)
        for hook in _on_made:
            hook(self)

    @contextlib.contextmanager
    def open_for_more(self) -> Iterator[bool]:
        """In this `with`, a group that `make(auto=True)` has made is not over. False: it is over already."""
        ref = self._end
        client = ref._client
        if client.closed or ref._kind or client.settings.get("local_mode"):  # here its members are over at once
            yield False
            return
        kept = bool(client.request("groups", id=ref.id, keep=True))
        try:
            yield kept
        finally:
            if kept and not client.closed:
                client.say(frame(Kind.GROUP_COMPLETE, ref.id))

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more is submitted to what `make` has made. Does not wait; with an error the members are cancelled."""
        self._leave(error)

    # -- the block --------------------------------------------------------------------------------------------

    def __enter__(self) -> TaskGroup:
        if self._ref is not None:
            raise RuntimeError(f"TaskGroup {self.name!r} was used before; make another one for another block.")
        self.make()
        current_group.set(self)
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if context.current_worker() is not None:
            stopped = self._wait_in_worker(error)
        else:
            with StopButton(lambda: None) as button:
                self._wait_with(button, error)
                self._call_hooks(button)
            stopped = KeyboardInterrupt if button.presses else None
        return self._outcome(error, stopped)

    def _wait_with(self, button: StopButton, error: BaseException | None) -> None:
        """Until all members are final. The stop button cancels them, pressed again it ends their processes."""
        self._leave(error)
        line = _Line(self)
        heard = 0
        while not self._end.is_final:
            if button.presses > heard:
                self._cancel(force=heard > 0, source="interrupt")
                heard += 1
                continue
            line.show()
            try:
                try:
                    button.raises = True
                    self._end._client.wait([self._end], None, LINE_EVERY if line.is_shown else None)
                finally:
                    button.raises = False
            except KeyboardInterrupt:
                button.presses += 1
        line.end()

    def _wait_in_worker(self, error: BaseException | None) -> type[BaseException] | None:
        """The same in a task, whose signal is the supervisor's: it means that the task is to stop."""
        # The type only: an exception that its own frames hold is a cycle, and would keep the group for a while.
        stopped: type[BaseException] | None = None
        while not self._is_final():
            try:
                self._leave(error)
                self._end._client.wait([self._end])
            except KeyboardInterrupt:
                self._cancel(source="interrupt")
                stopped = KeyboardInterrupt
        self._call_hooks()
        return stopped

    async def __aenter__(self) -> TaskGroup:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        import asyncio

        stopped: type[BaseException] | None = None
        while not self._is_final():
            try:
                self._leave(error)
                await self._end._until_final()
            except (asyncio.CancelledError, KeyboardInterrupt) as stop:
                self._cancel(force=stopped is not None, source="interrupt", reason="the code around it was cancelled")
                stopped = type(stop)
        for result in self._call_hooks():
            if inspect.isawaitable(result):
                try:
                    await result
                except Exception:
                    traceback.print_exc()
        return self._outcome(error, stopped)

    @property
    def _end(self) -> ObjectRef:
        assert self._ref is not None
        return self._ref

    def _is_final(self) -> bool:
        return self._left and self._end.is_final

    def _leave(self, error: BaseException | None) -> None:
        """Out of the block; may be interrupted anywhere, and called again."""
        if self._left:
            return
        if current_group.get() is self:
            current_group.set(self._outer)  # no token: an async block may be left in another context
        if error is not None and not self._end.is_final:
            is_stop = isinstance(error, KeyboardInterrupt)
            what = "" if is_stop else f"{type(error).__name__} in its block"
            self._cancel(source="interrupt" if is_stop else "group", reason=what)
        if not self._end._client.closed:
            self._end._client.close_group(self._end)
        self._left = True

    def _cancel(self, *, source: str, force: bool = False, grace: float | None = None, reason: str = "") -> None:
        if self._ref is None:
            self._cancel_at_once = {"source": source, "force": force, "grace": grace, "reason": reason}
        elif not self._ref._client.closed:
            self._ref._client.cancel(self._ref.id, force=force, source=source, reason=reason, grace=grace)

    def _record(self) -> dict[str, Any]:
        ref = self._end
        if not ref._kind:
            try:
                record = ref._client.request("groups", id=ref.id)
                if record is not None:
                    return dict(record)
            except exceptions.ObjectLostError:
                pass
        if ref._kind == Kind.RESULT:
            return dict(from_json(ref._body or b"{}"))
        return {"state": "cancelled", "failed": [], "counts": {}, "source": "shutdown"}  # all of its tasks were ended

    def _ended(self, _: ObjectRef) -> None:
        self._call_hooks()

    def _call_hooks(self, button: StopButton | None = None) -> list[Any]:
        """After a cancel. Returns what they returned, for those who can await it.

        The stop button ends the hook that runs, and the rest go on.
        """
        hooks, self.on_cancellation = self.on_cancellation, []
        if not hooks or "source" not in self._record():
            return []
        results = []
        for hook in hooks:
            try:
                try:
                    if button is not None:
                        button.raises = True
                    results.append(hook(self))
                finally:
                    if button is not None:
                        button.raises = False
            except KeyboardInterrupt:
                if button is None:
                    raise
                button.presses += 1
            except Exception:
                print(f"TaskGroup {self.name!r}: a hook for its cancellation has failed:", file=sys.stderr)
                traceback.print_exc()
        return results

    # -- what comes out of it -----------------------------------------------------------------------------------

    def _outcome(self, error: BaseException | None, stopped: type[BaseException] | None) -> bool:
        """For `__exit__`: raises, or says whether the block's own error is to be dropped."""
        if stopped is not None:
            raise stopped
        ref = self._end
        record = self._record()
        if error is not None and not _is_cancel_of_ours(error, record):
            self._tell_outer(record["failed"])
            return False
        if ref._kind != Kind.RESULT:
            ref._client.value(ref)  # raises: the supervisor is gone
        if record["state"] == "failed":
            self._raise_failures(record)
        return True

    def _tell_outer(self, failed: Iterable[int]) -> None:
        if self._outer is not None:
            self._outer._told.update(failed, self._told)

    def _raise_failures(self, record: dict[str, Any]) -> None:
        ids = [id for id in record["failed"] if id not in self._told]
        self._tell_outer(record["failed"])
        errors: dict[tuple[str, str], BaseException] = {}
        for id in ids:
            error = self._error_of(id)
            # A task that passes on what its own `get` has raised is not a second failure.
            errors.setdefault((getattr(error, "task_id", str(id)), type(error).__name__), error)
        if not errors:
            return
        if len(errors) == 1:
            (error,) = errors.values()
            # As `jt.get`: without our own frames, but with those of an error that was raised in place.
            frames = error.__cause__.__traceback__ if error.__cause__ is not None else None
            try:
                raise error.with_traceback(frames) from error.__cause__
            finally:
                del error, errors, frames
        if sys.version_info < (3, 11):
            from exceptiongroup import ExceptionGroup
        else:
            from builtins import ExceptionGroup
        counts = record["counts"]
        count = max(len(errors), counts.get("failed", 0) + counts.get("crashed", 0))
        shown = f", the first {len(errors)} of them" if count > len(errors) else ""
        message = f"{count} tasks of the group {self.name!r} have failed{shown}"
        raise ExceptionGroup(message, [error for error in errors.values() if isinstance(error, Exception)])

    def _error_of(self, id: int) -> BaseException:
        client = self._end._client
        ref = client.hold(id)
        client.wait([ref])
        try:
            client.value(ref)
        except BaseException as error:
            return error
        raise AssertionError("a task that failed has a value")


def _is_cancel_of_ours(error: BaseException, record: dict[str, Any]) -> bool:
    """The group was cancelled, and what ended the block is a member that says so."""
    return isinstance(error, exceptions.TaskCancelledError) and error.source == "group" and "source" in record


class _Line:
    """In a terminal: one line that says how far the group is. A notebook has a board for that."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self.is_shown = not _on_made and sys.stderr is not None and sys.stderr.isatty()
        self._length = 0

    def show(self) -> None:
        if not self.is_shown or self._group._end._client.closed:
            return
        text = show_counts(self._group._record())
        padding = " " * (self._length - len(text))
        sys.stderr.write(f"\r{self._group.name}: {text}{padding}")
        sys.stderr.flush()
        self._length = len(text)

    def end(self) -> None:
        """The group is over: the line says how, and stays."""
        if self._length:
            self.show()
            sys.stderr.write("\n")
            sys.stderr.flush()


def show_counts(record: dict[str, Any]) -> str:
    """ "12 of 40 done, 2 failed, 3 running" of a group's record."""
    counts = record["counts"]
    done = sum(counts.values())
    parts = [f"{done:,} of {record['submitted']:,} done"]
    parts += [f"{counts[state]:,} {state}" for state in ("failed", "crashed", "cancelled") if counts.get(state)]
    if record.get("running"):
        parts.append(f"{record['running']:,} running")
    return ", ".join(parts)
