"""Cells in a worker: between the task protocol and the shell. Main thread, except that a cell may display from any.

Knows the shell and the serializer; how packets come and go is `execution`'s business. Imports IPython at the first
cell of a process that did not get it from the zygote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jupyter_tasks.exceptions import UnserializableError
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import Kind, to_json
from jupyter_tasks.worker import progress
from jupyter_tasks.worker.shell import CellOutcome, worker_shell

__all__ = ["changes", "forget", "namespace", "pack", "run"]

_UNCHANGING = (int, float, complex, bool, str, bytes, type(None), range, type, type(len), type(serialize))


def namespace() -> dict[str, Any]:
    """The dict that the next cell will run in: functions that come with it are bound to it."""
    return worker_shell().fresh_namespace()


def run(worker: Any, id: int, options: Mapping[str, Any], content: Mapping[str, Any]) -> CellOutcome:
    """Runs one cell. What it displays leaves at once; its end is returned.

    Raises:
        KeyboardInterrupt: it was interrupted, and did not turn that into something else.
    """

    def emit(kind: str, message: dict[str, Any]) -> None:
        worker.send(Kind.DISPLAY, id, to_json({"type": kind, "content": message}))

    progress.show_tqdm_text(bool(options.get("wait")))
    outcome = worker_shell().run_cell(
        content["source"],
        content["names"],
        emit=emit,
        execution_count=options.get("execution_count", 1),
        first_line=options.get("first_line", ""),
        show_interrupt=bool(options.get("wait")),
    )
    if isinstance(outcome.error, KeyboardInterrupt):
        # How it looked when it stopped, for the cell that waits; the end itself is told as for every task.
        emit("stopped", {"traceback": outcome.traceback})
        raise KeyboardInterrupt
    return outcome


def forget() -> None:
    """Nothing of the last cell stays alive."""
    worker_shell().reset()


def changes(outcome: CellOutcome, content: Mapping[str, Any]) -> dict[str, Any]:
    """For `-o '*'`: what the cell assigned, deleted or changed, and what cannot be sent, with the reason."""
    before = content["names"]
    missing = object()
    assigned = {
        name: value
        for name, value in outcome.namespace.items()
        if before.get(name, missing) is not value
        or (name in content.get("mutates", ()) and not isinstance(value, _UNCHANGING))
    }
    deleted = [name for name in before if name not in outcome.namespace]
    left_out: dict[str, str] = {}
    try:
        serialize.dumps(assigned, namespace=_own())
    except UnserializableError:
        # Some of it cannot go: find out which, one by one, and send the rest in one pickle all the same.
        for name, value in list(assigned.items()):
            try:
                serialize.dumps(value, namespace=_own(), root=name, to="the notebook")
            except UnserializableError as error:
                left_out[name] = str(error)
                del assigned[name]
    return {"assigned": assigned, "deleted": deleted, "left_out": left_out}


def pack(value: Any) -> shared.Payload:
    """A value for the notebook. One that cannot be sent is an error for who gets it, not for the cell."""
    try:
        data, buffers = serialize.dumps(value, namespace=_own(), root="the cell's value", to="the notebook")
    except UnserializableError as error:
        data, buffers = serialize.dumps(_Unsendable(error))
    return shared.pack(data, buffers)


class _Unsendable:
    """Stands for a value that could not be sent: raises the reason where it is unpacked."""

    def __init__(self, error: UnserializableError) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        return _raise_unsendable, (str(error), error.path, error.type_name)


def _raise_unsendable(message: str, path: str, type_name: str) -> None:
    raise UnserializableError(message, path=path, type_name=type_name)


def _own() -> dict[str, Any]:
    own: dict[str, Any] = worker_shell().ip.user_ns
    return own
