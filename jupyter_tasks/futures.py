"""Refs as concurrent.futures.Future objects. Imported when the first is asked for. Any thread."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from jupyter_tasks.refs import ObjectRef

__all__ = ["RefFuture"]


class RefFuture(Future[Any]):
    """A Future that cancels its task."""

    def __init__(self, ref: ObjectRef) -> None:
        super().__init__()
        self._ref = ref
        self.set_running_or_notify_cancel()
        ref._client.when_final(ref, self._fill)

    def _fill(self, ref: ObjectRef) -> None:
        try:
            value = ref._client.value(ref)
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(value)

    def cancel(self) -> bool:
        """Cancels the task softly. False if it is over; True means asked: `result()` tells how it ended."""
        if self.done():
            return False
        self._ref._client.cancel(self._ref.id)
        return True
