"""Refs as concurrent.futures.Future objects. Imported when the first is asked for.

A RefFuture is pending until its task is over, and then finished or cancelled: CPython knows no state for "asked to
stop", and "cancelled" is said only when the code has really stopped, or never began. So `cancel()` is a wish here, also
for a task that runs, and a task that returns a value all the same has won.

Thread: any. Outcomes are filled in by the client's event thread, which calls the callbacks, too.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from jupyter_tasks.exceptions import ForceCancelledError, JupyterTasksError, ObjectLostError, TaskCancelledError
from jupyter_tasks.refs import THREAD_PREFIX, ObjectRef
from jupyter_tasks.wire.frames import Kind
from jupyter_tasks.worker import context

__all__ = ["FutureCancelledError", "FutureForceCancelledError", "RefFuture", "refuse_event_thread", "slot_given_up"]

T = TypeVar("T")

LOGGER = logging.getLogger("concurrent.futures")  # where the standard library tells of callbacks that raise


class FutureCancelledError(TaskCancelledError, CancelledError):
    """The task was cancelled, for those who expect our error and for those who expect concurrent.futures'."""


class FutureForceCancelledError(ForceCancelledError, CancelledError):
    """The same for a task whose process had to be ended."""


class RefFuture(Future[Any]):
    """A Future of a task's value, whose `cancel()` also stops what runs. Made by `ref.future()` and `Executor`."""

    def __init__(self, ref: ObjectRef | None = None) -> None:
        """Without a ref it is one of a call that is not sent yet; `follow` then says which ref it is."""
        super().__init__()
        self._ref: ObjectRef | None = None
        self._taken = False  # its call was sent, or will never be: see `take`
        self._asked = False  # to stop
        self._filled = False
        self._why: TaskCancelledError | None = None  # once it is cancelled
        if context.current_worker() is not None:
            self._waiters: list[Any] = _Waiters()
        if ref is not None:
            self._taken = True
            self.follow(ref)

    # -- for the user -----------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Asks the task to stop, softly, also if it runs. Returns at once.

        True: asked, now or earlier, and `result()` tells how it ends; or it has been cancelled. False: it is over. Each
        call is passed on, as each `jt.cancel`: a task that has caught one interrupt gets another.
        """
        if self.take():
            self._settle(
                self._set_cancelled, TaskCancelledError("The call was cancelled before it was sent.", rung="pending")
            )
            return True
        with self._condition:
            if self.done():
                return self.cancelled()
            self._asked = True
            ref = self._ref
        return ref is None or _post_cancel(ref)  # without a ref yet: `follow` posts it

    def running(self) -> bool:
        """The task's code has begun and is not over; also while it is asked to stop. Asks the supervisor."""
        ref = self._ref
        if ref is None or self.done() or ref.is_final:
            return False
        try:
            records = ref._client.request("tasks", ids=[ref.id])["tasks"]
        except ObjectLostError:
            return False
        return any(record["state"] in ("running", "cancelling") for record in records)

    def result(self, timeout: float | None = None) -> Any:
        """The task's value, or its error raised; what `jt.get` gives.

        Raises:
            TaskCancelledError: it was cancelled; this one is a concurrent.futures.CancelledError, too.
            TimeoutError: not there within `timeout` seconds. The task goes on.
            RuntimeError: called in a callback of another future, for a task that is not over: that would wait for ever.
        """
        try:
            self._wait(timeout)
            if self._why is not None:
                raise self._why
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642  # a traceback shall not keep it alive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None for a value. Raises as `result` does for a cancel and a timeout."""
        try:
            self._wait(timeout)
            if self._why is not None:
                raise self._why
            return super().exception(0)
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642

    def __repr__(self) -> str:
        if self.done():
            return super().__repr__()
        ref = self._ref
        what = f"task {ref.task_id} {ref.label}" if ref is not None else "a call that is not sent yet"
        return f"<Future of {what.rstrip()}, {'asked to stop' if self._asked else 'not done'}>"

    # -- for who makes them -----------------------------------------------------------------------------------

    @property
    def was_asked(self) -> bool:
        """`cancel` was called while it was under way."""
        return self._asked

    def take(self) -> bool:
        """True once: for who sends the call, or for a cancel that comes first."""
        with self._condition:
            taken, self._taken = self._taken, True
        return not taken

    def follow(self, ref: ObjectRef) -> None:
        """From now on this is the future of `ref`."""
        with self._condition:
            self._ref = ref
            asked = self._asked
        if asked:
            _post_cancel(ref)
        client = ref._client
        client.when_final(ref, self._fill)
        if client.closed:
            # Its event thread may have ended before it heard of us.
            client.wait([ref])
            self._fill(ref)

    def fail(self, error: BaseException) -> None:
        """The call was taken, and there will be no ref."""
        if self._fills():
            self._settle(self.set_exception, error)

    def _translated(self, error: BaseException) -> BaseException:
        """What the user gets for an error of the task."""
        return error

    # -- the outcome ------------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None) -> None:
        """Returns when it is done. Inside a task the slot is free meanwhile."""
        if self.done():
            return
        refuse_event_thread("result() of a task that is not over")
        ref = self._ref
        if ref is not None:
            end = None if timeout is None else time.monotonic() + timeout
            ref._client.wait([ref], None, timeout)  # it reads the socket itself: a thread less on the way
            if ref._client.closed:
                self._fill(ref)  # in a forked child nobody else does
            timeout = None if end is None else max(0.0, end - time.monotonic())
        with slot_given_up(), contextlib.suppress(CancelledError):
            super().exception(timeout)

    def _fill(self, ref: ObjectRef) -> None:
        """The ref is final. Event thread, unless that has ended."""
        if not self._fills():
            return
        try:
            value = ref._client.value(ref)
        except BaseException as error:
            # Our own frames say nothing about the task, and would keep this object alive.
            error = error.with_traceback(error.__cause__.__traceback__ if error.__cause__ is not None else None)
            # An ERROR was raised by the task's own code: a task that has met another's cancel has not been cancelled.
            if isinstance(error, TaskCancelledError) and ref._kind == Kind.FAILURE:
                self._settle(self._set_cancelled, error)
            else:
                self._settle(self.set_exception, self._translated(error))
        else:
            self._settle(self.set_result, value)

    def _fills(self) -> bool:
        """True once."""
        with self._condition:
            filled, self._filled = self._filled, True
        return not filled

    def _settle(self, settle: Callable[[T], None], outcome: T) -> None:
        """Nothing that a callback raises may end the event thread (the base class lets SystemExit through)."""
        try:
            settle(outcome)
        except BaseException:
            LOGGER.exception("exception calling callback for %r", self)
        self._ref = None  # the outcome is here, and shall not be kept at the supervisor, too

    def _set_cancelled(self, error: TaskCancelledError) -> None:
        cls = FutureForceCancelledError if isinstance(error, ForceCancelledError) else FutureCancelledError
        self._why = cls(str(error), **error.__dict__)
        super().cancel()  # tells who waits for this one, and the callbacks
        self.set_running_or_notify_cancel()  # tells who waits for several


class _Waiters(list[Any]):
    """Those that wait for the future in `concurrent.futures.wait` and `as_completed`, in a worker.

    They block on an event of their own, where nobody could tell that the task's slot is free: tasks that wait for their
    children would fill all slots. So the slot is given up from the first waiter to the last.
    """

    _count = (0, 0)  # the task, and how many wait; of all futures together. Main thread only.

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        self._change(1)

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        self._change(-1)

    @staticmethod
    def _change(by: int) -> None:
        worker = context.current_worker()
        if threading.current_thread() is not threading.main_thread() or not worker.task_id:
            return
        task, count = _Waiters._count
        before = count if task == worker.task_id else 0
        after = max(0, before + by)
        _Waiters._count = (worker.task_id, after)
        if bool(before) != bool(after):
            worker.send(Kind.BLOCKED if after else Kind.UNBLOCKED, worker.task_id, b"")


def _post_cancel(ref: ObjectRef) -> bool:
    """True: the wish is posted; False: the task is over."""
    if ref.is_final:
        return False  # what it has left running is not asked for
    try:
        ref._client.cancel(ref.id)
    except JupyterTasksError:  # the session has ended, and the task with it
        return False
    return True


def slot_given_up() -> contextlib.AbstractContextManager[None]:
    """Around a wait for other tasks: inside a task its slot is free meanwhile, so nesting does not deadlock."""
    worker = context.current_worker()
    return worker.waiting() if worker is not None else contextlib.nullcontext()


def refuse_event_thread(what: str) -> None:
    """Raises RuntimeError in the thread that fills futures in: a wait there would be one for itself."""
    if threading.current_thread().name == f"{THREAD_PREFIX}events":
        raise RuntimeError(f"{what} cannot be waited for in a callback: it would block the thread that brings results.")
