"""Cells in a worker: between the task protocol and the shell. Main thread, except that a cell may display from any.

Knows the shell and the serializer; how packets come and go is `execution`'s business. Imports IPython at the first
cell of a process that did not get it from the zygote.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from jupyter_tasks.exceptions import UnserializableError
from jupyter_tasks.wire import ambient, identity, serialize, shared
from jupyter_tasks.wire.frames import Kind, to_json
from jupyter_tasks.worker import progress
from jupyter_tasks.worker.shell import CellOutcome, worker_shell

__all__ = ["ask", "forget", "namespace", "namespace_of_cell", "pack", "pack_changes", "run"]


_before: ambient.State = {}  # what this process was like before the cell came


def namespace(worker: Any) -> dict[str, Any]:
    """The dict that the next cell will run in: functions that come with it are bound to it."""
    global _before
    if worker.config["gpus"]:
        ambient.keep("CUDA_VISIBLE_DEVICES")  # given out by the supervisor
    shell = worker_shell()
    _before = ambient.take(shell.ip)
    return shell.fresh_namespace()


def run(worker: Any, id: int, options: Mapping[str, Any], content: dict[str, Any]) -> CellOutcome:
    """Runs one cell. What it displays leaves at once; its end is returned, also that it was interrupted."""

    def emit(kind: str, message: dict[str, Any]) -> None:
        worker.send(Kind.DISPLAY, id, to_json({"type": kind, "content": message}))

    shell = worker_shell()
    shell.join_matplotlib()  # before the log level follows the kernel's: a kernel has joined it long ago
    with worker.guard.held():
        for note in ambient.apply(content.get("ambient", {}), shell.ip):
            print(note, file=sys.stderr)
        if "random" in content:
            ambient.set_random_state(content["random"])
        else:
            ambient.reseed()
        if options.get("star"):
            content["started"] = ambient.take(shell.ip)
            ambient.leave_events_to_the_kernel(shell.ip)
    waited_for = bool(options.get("wait"))
    progress.show_tqdm_text(waited_for)
    shell.learn_sources(content.get("sources", {}))
    outcome = shell.run_cell(
        content["source"],
        content["names"],
        emit=emit,
        execution_count=options.get("execution_count", 1),
        first_line=options.get("first_line", ""),
        show_interrupt=waited_for,
        stdin=functools.partial(ask, worker, id) if waited_for else None,
        file_name=content.get("file", ""),
        waited=waited_for,
        nested_loops=content.get("nested_loops", ""),
    )
    if waited_for:
        over = {name: getattr(outcome, name) for name in ("has_result", "display_failed", "payloads")}
        if options.get("star"):
            over["modules"] = _modules_of(outcome.namespace.values())
        emit("over", over)
    if isinstance(outcome.error, KeyboardInterrupt):
        # How it looked when it stopped, for the cell that waits; the end itself is told as for every task.
        emit("stopped", {"traceback": outcome.traceback})
    return outcome


def _modules_of(values: Iterable[object]) -> list[str]:
    """The modules that are imported where these values arrive. There what they print has been seen already."""
    names = set()
    for value in values:
        kind = type(value)
        if kind is ModuleType:
            names.add(value.__name__)  # type: ignore[attr-defined]
        else:
            is_named = kind is FunctionType or issubclass(kind, type)
            names.add(value.__module__ if is_named else kind.__module__)
    return sorted(name for name in names if isinstance(name, str) and name != "__main__")


def ask(worker: Any, id: int, prompt: str, is_password: bool) -> str:
    """A line from whoever sits before the notebook. Blocks; an interrupt of the task ends it."""
    from IPython.core.error import StdinNotImplementedError

    from jupyter_tasks.worker import context

    worker.streams.switch_to(None)  # what was printed before stands above the prompt
    answer = context.client_of_worker().request("input", timeout=None, task=id, prompt=prompt, password=is_password)
    if "refused" in answer:
        raise StdinNotImplementedError(answer["refused"])
    if "interrupted" in answer:
        raise KeyboardInterrupt
    if "text" not in answer:
        raise EOFError
    return str(answer["text"])


def forget() -> None:
    """Nothing of the last cell stays alive, and what it has changed around it is as it was."""
    shell = worker_shell()
    ambient.restore(_before, shell.ip)
    shell.reset()


def pack_changes(outcome: CellOutcome, content: Mapping[str, Any]) -> shared.Payload:
    """For `-o '*'`: what the cell assigned, deleted and changed in place, its value, and what cannot be sent (with the
    reason): all in one pickle, in which the notebook's own objects travel as their places."""
    before, received = content["names"], content["received"]
    missing = object()
    changed = received.changes()
    assigned = {
        name: value
        for name, value in outcome.namespace.items()
        if before.get(name, missing) is not value
        or received.is_renewed(value)
        # A name that was a ref: its value is no object of the notebook's, so the analysis must say what is changed.
        or (name in content["mutates"] and name in content["resolved"])
    }
    first, moved = ambient.those_first(ambient.difference(content["started"], ambient.take(worker_shell().ip)))
    home: dict[str, Any] = {
        "first": first,
        "assigned": assigned,
        "deleted": [name for name in before if name not in outcome.namespace],
        "changed": changed,
        "value": outcome.value,
        "left_out": received.unseen,
        "ambient": moved,
        "random": ambient.random_state(),
    }
    views = identity.Views([*received.arrays(), *assigned.values(), outcome.value])

    def pickled(value: Any, root: str = "value") -> Any:
        return serialize.dumps(
            value, namespace=namespace_of_cell(), known=received.places, reducers=views, root=root, to="the notebook"
        )

    try:
        data, buffers = pickled(home)
    except UnserializableError:
        _leave_out(home, pickled)
        data, buffers = pickled(home)
    return shared.pack(data, buffers)


def _leave_out(home: dict[str, Any], pickled: Callable[..., Any]) -> None:
    """Some of it cannot go: finds out which, one by one. The rest goes in one pickle all the same."""

    def goes(value: Any, name: str) -> bool:
        try:
            pickled(value, name)
        except UnserializableError as error:
            home["left_out"].append(f"{name} stays in the worker: {error}")
            return False
        return True

    home["assigned"] = {name: value for name, value in home["assigned"].items() if goes(value, name)}
    home["changed"] = [
        change for change in home["changed"] if goes(change, f"a {type(change.original).__name__} that was changed")
    ]
    home["ambient"] = ambient.leave_out(home["ambient"], goes)
    if not goes(home["value"], "the cell's value"):
        home["value"] = None


def pack(value: Any) -> shared.Payload:
    """A value for the notebook. One that cannot be sent is an error for who gets it, not for the cell."""
    try:
        data, buffers = serialize.dumps(
            value, namespace=namespace_of_cell(), root="the cell's value", to="the notebook"
        )
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


def namespace_of_cell() -> dict[str, Any]:
    """The dict that the cell has run in."""
    own: dict[str, Any] = worker_shell().ip.user_ns
    return own
