"""Detached tasks, from the side of those who start, find and end them. Any thread.

Each has a supervisor of its own, which no kernel owns (`supervisor.detachment`), and an entry in the registry
(`supervisor.registry`) by which every process of this user finds it by name. Here are the connections to them: one for
each detached task that this process has started or got a ref of, kept until its supervisor has ended, and short ones
for questions.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jupyter_tasks import exceptions, launch, session
from jupyter_tasks.refs import ObjectRef, current_group
from jupyter_tasks.supervisor import registry
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks.client import Client
    from jupyter_tasks.supervisor.registry import Entry

__all__ = [
    "DEFAULT",
    "NameTakenError",
    "Starting",
    "bring",
    "by_value",
    "check_place",
    "clear",
    "clients",
    "close",
    "elsewhere",
    "entries",
    "find",
    "get_task",
    "kill",
    "line",
    "on_connect",
    "record_of",
    "records",
]

DEFAULT = "default"  # the namespace of those who name none
ANSWER_LIMIT = 5.0  # seconds; it takes 0.001, but its machine may be swapping
END_LIMIT = 5.0  # seconds until a supervisor that does not end is killed
LOOK = 0.005  # seconds between looks

_clients: dict[str, Client] = {}  # by the key of the supervisor
_lock = threading.RLock()
_on_connect: list[Callable[[Client], None]] = []


def on_connect(hook: Callable[[Client], None]) -> None:
    """Has `hook(client)` called for each connection that is kept, also for those that are. For the notebook's layer."""
    with _lock:
        _on_connect.append(hook)
        for client in clients():
            hook(client)


# -- the registry -------------------------------------------------------------------------------------------------


def _directory() -> str:
    from jupyter_core.paths import jupyter_runtime_dir

    return os.path.join(jupyter_runtime_dir(), "jupyter-tasks")


def entries(kind: str | None = None) -> list[Entry]:
    """The detached things of this host that live, oldest first. What dead ones have left is removed."""
    directory = _directory()
    found = []
    for entry in registry.entries(directory):
        if registry.is_here(entry) and (kind is None or entry.kind == kind):
            if registry.is_alive(entry):
                found.append(entry)
            else:
                registry.clean(directory, entry)
    return found


def elsewhere(kind: str | None = None) -> list[Entry]:
    """Those of other hosts that share this directory. Whether they live cannot be seen from here."""
    found = registry.entries(_directory())
    return [entry for entry in found if not registry.is_here(entry) and (kind is None or entry.kind == kind)]


def find(name: str, namespace: str | None = None, kind: str = "task") -> Entry:
    """The detached task (or actor) of this name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    directory = _directory()
    wanted = name, namespace or DEFAULT
    others = []
    died = ""
    for entry in registry.entries(directory):
        if entry.kind != kind:
            continue
        is_it = wanted == (entry.name, entry.namespace)
        if not registry.is_here(entry):
            others.append(f"{entry.shown} on host {entry.hostname}")
        elif registry.is_alive(entry):
            if is_it:
                return entry
            others.append(entry.shown)
        elif registry.clean(directory, entry) and is_it:
            died = " There was one, but its supervisor was killed, or this machine has restarted; its result is lost."
    there = f"There are: {', '.join(others)}." if others else "There are none."
    where = f" in the namespace {namespace!r}" if namespace not in (None, DEFAULT) else ""
    raise ValueError(f"There is no detached {kind} {name!r}{where}.{died} {there}")


# -- connections --------------------------------------------------------------------------------------------------


def clients() -> list[Client]:
    """The connections that are kept and open."""
    with _lock:
        return [client for client in _clients.values() if not client.closed]


def client_of(entry: Entry) -> Client:
    """The kept connection to this supervisor; makes it if need be.

    Raises:
        JupyterTasksError: it does not let us in, or does not answer.
    """
    with _lock:
        _drop_closed()
        client = _clients.get(entry.key)
        if client is None:
            client = _connected(entry)
            _adopt(client, entry)
        return client


@contextlib.contextmanager
def line(entry: Entry) -> Iterator[Client]:
    """A connection for some questions: the kept one, or one that is closed after this `with`.

    Raises: as `client_of`.
    """
    with _lock:
        _drop_closed()
        client = _clients.get(entry.key)
    if client is not None:
        yield client
        return
    client = _connected(entry)
    try:
        yield client
    finally:
        client.close()


def _connected(entry: Entry) -> Client:
    from jupyter_tasks.client import connect

    try:
        return connect(entry.socket, entry.key, timeout=ANSWER_LIMIT)
    except OSError as error:
        if not isinstance(error, TimeoutError) and _wait_until_gone(entry, 1.0):  # it was ending
            raise exceptions.ObjectLostError(f"The detached {entry.kind} {entry.shown} has ended.") from error
        raise exceptions.JupyterTasksError(
            f"The supervisor of the detached {entry.kind} {entry.shown} (process {entry.pid}) does not answer "
            f"({error}). %tasks kill {shlex.quote(entry.name)} ends it."
        ) from error


def _adopt(client: Client, entry: Entry) -> None:
    """Keeps the connection."""
    client.listener = session.print_output
    client.on_lost = lambda: _why_lost(entry)
    _clients[entry.key] = client
    for hook in _on_connect:
        hook(client)


def _why_lost(entry: Entry) -> str:
    """Why a supervisor has ended; also cleans up after one that could not do so itself."""
    _wait_until_gone(entry, 1.0)  # its sockets close a moment before it is gone
    if registry.clean(_directory(), entry):
        return f"that of the detached {entry.kind} {entry.shown}; it was killed"
    return f"that of the detached {entry.kind} {entry.shown}; somebody has killed or cleared it by its name"


def _drop_closed() -> None:
    for key, client in list(_clients.items()):
        if client.closed:
            client.close()
            del _clients[key]


def close() -> None:
    """Ends our connections. What is detached goes on; refs of it raise ObjectLostError."""
    with _lock:
        for client in _clients.values():
            client.close()
        _clients.clear()


def _after_fork() -> None:
    """A forked child has connections of its own when it needs one; `session` forgets all that there are."""
    global _lock
    _lock = threading.RLock()
    _clients.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- starting -----------------------------------------------------------------------------------------------------


def check_place(what: str) -> None:
    """Raises RuntimeError where nothing detached can be started.

    Args:
        what: what was to be started, as "train".
    """
    if context.current_worker() is not None:
        # All that a task starts ends with it, however it was started; so this would, too.
        raise RuntimeError(
            f"{what}: a task cannot start something detached, since all that it starts ends with it. Start it from the "
            "notebook."
        )
    current = session.current()
    if current is not None and not isinstance(current, launch.Session) and not current.client.closed:
        raise RuntimeError(
            f"{what}: in local mode everything runs in this process, and ends with it. Call jt.shutdown() first, to "
            "leave local mode."
        )


class NameTakenError(ValueError):
    """Something detached has this name already.

    Attributes:
        kind: "task" or "actor".
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Starting:
    """`with Starting(name, ...) as starting:` a supervisor that is about to be detached, and the connection to it.

    Before `keep` it belongs to this process: a `with` that is left without it ends it.
    """

    def __init__(
        self, name: str, namespace: str | None = None, *, kind: str = "task", label: str = "", outs: Sequence[str] = ()
    ) -> None:
        """Starts it (0.1 s).

        Args:
            label: what it runs, for those who find the entry.
            outs: names for what the task returns beside its value.

        Raises:
            RuntimeError: not from here; see `check_place`.
            NameTakenError: by something that lives.
            JupyterTasksError: it could not be started.
        """
        import jupyter_tasks

        check_place(name)
        self._name, self._namespace, self._kind = name, namespace or DEFAULT, kind
        self._is_kept = False
        about = {"name": name, "namespace": self._namespace, "kind": kind, "label": label, "outs": list(outs)}
        about |= {"registry": _directory(), "version": jupyter_tasks.__version__}
        self._refuse_if_taken()
        try:
            self.client = launch.start_detached(launch.default_total(), about)
        except exceptions.JupyterTasksError:
            self._refuse_if_taken()  # by another process, in between
            raise
        try:
            self.entry = find(name, namespace, kind)
        except ValueError:
            self.client.close()  # it has died as soon as it was there
            raise
        with _lock:
            _adopt(self.client, self.entry)

    def _refuse_if_taken(self) -> None:
        for entry in entries():
            if (entry.name, entry.namespace) == (self._name, self._namespace):
                word = shlex.quote(entry.name)
                how = f"jt.get_{entry.kind}({entry.name!r}) finds it, %tasks kill {word} ends it"
                raise NameTakenError(
                    f"There is a detached {entry.kind} {entry.shown} already, since "
                    f"{time.strftime('%d %b %H:%M', time.localtime(entry.created))}. {how}; or choose another name.",
                    entry.kind,
                )

    def __enter__(self) -> Starting:
        return self

    def keep(self, refs: Sequence[ObjectRef]) -> None:
        """From now on it outlives this process, and so do the values of these refs of one task.

        Raises:
            ObjectLostError: it has ended meanwhile.
        """
        self.client.request("keep", id=refs[0].id, count=len(refs))
        self._is_kept = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._is_kept:  # or an interrupt came before the answer: so it is told
            end(self.entry)


def by_value(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a task that outlives our session: the values of refs whose values are there in their place.

    Raises:
        ValueError: one is not there yet.
        what became of the task of a ref.
    """

    def value(arg: Any, which: str) -> Any:
        if not isinstance(arg, ObjectRef):
            return arg
        if not arg.is_final:
            raise ValueError(
                f"{name}: {which} is a reference whose value is not there yet, and a detached task may outlive the one "
                f"that makes it. Wait for it first: jt.wait([ref])."
            )
        return arg._client.value(arg)

    return (
        tuple(value(arg, f"argument {i}") for i, arg in enumerate(args)),
        {key: value(arg, f"argument {key!r}") for key, arg in kwargs.items()},
    )


def check_group(name: str) -> None:
    """Raises ValueError inside the block of a TaskGroup."""
    if current_group.get() is not None:
        raise ValueError(
            f"{name}: a detached task cannot belong to a TaskGroup, whose end it would outlive. Call it outside of the "
            "group's block, or without lifetime='detached'."
        )


# -- finding ------------------------------------------------------------------------------------------------------


def get_task(name: str, namespace: str | None = None) -> Any:
    """The ObjectRef of a detached task, from any process of this user on this host. With `num_returns=N` their list.

    Args:
        name: that of `options(lifetime="detached", name=...)`, or the NAME of `%%remote NAME --detach`.
        namespace: the one given with it. Default: "default".

    Raises:
        ValueError: there is none of that name; says which there are.
        JupyterTasksError: its supervisor does not answer.
    """
    entry = find(name, namespace)
    refs = bring(entry)
    return refs if len(refs) > 1 and not entry.outs else refs[0]


def bring(entry: Entry, *, actor: bool = False) -> list[ObjectRef]:
    """The refs of all that the task returns; of a cell, first that of its value, then those of `entry.outs`."""
    client = client_of(entry)
    kept = _kept(client, entry)
    refs = [client.hold(kept["id"] + i, actor=kept["id"] if actor else 0) for i in range(kept["count"])]
    labels = [entry.name, *(f"{out} of {entry.name}" for out in entry.outs)]
    for i, ref in enumerate(refs):
        ref.label = ref.label or (labels[i] if i < len(labels) else entry.name)
    return refs


def _kept(client: Client, entry: Entry) -> dict[str, Any]:
    """What it is for. One that is only just being started is given a moment."""
    end = time.monotonic() + ANSWER_LIMIT
    while True:
        answer = client.request("kept", timeout=ANSWER_LIMIT)
        if answer is not None:
            return dict(answer)
        if time.monotonic() > end:
            raise exceptions.JupyterTasksError(f"The detached {entry.kind} {entry.shown} is still being started.")
        time.sleep(LOOK)


def records(kind: str | None = None) -> list[dict[str, Any]]:
    """What `jt.tasks()` tells of detached tasks and actors: also "detached", "namespace", "outs" and "outputs"."""
    return [record for entry in entries(kind) if (record := record_of(entry)) is not None]


def record_of(entry: Entry) -> dict[str, Any] | None:
    """None: it has ended, or is only just being started. One that does not answer has the state "unreachable"."""
    facts = {"detached": True, "namespace": entry.namespace, "outs": list(entry.outs)}
    try:
        with line(entry) as client:
            answer = client.request("kept", timeout=ANSWER_LIMIT)
    except exceptions.JupyterTasksError as error:
        if not registry.is_alive(entry):
            return None
        silent = {"id": 0, "task_id": f"{entry.pid}-?", "name": entry.name, "kind": entry.kind, "state": "unreachable"}
        return {**silent, "elapsed_s": 0.0, "lingers": False, "kept": False, "why": str(error), **facts}
    return {**answer["record"], "outputs": answer["outputs"], **facts} if answer is not None else None


# -- ending -------------------------------------------------------------------------------------------------------


def kill(name: str, namespace: str | None = None, *, kind: str = "task", reason: str = "") -> None:
    """Ends a detached task at once, with all that it has started, and forgets its result. Returns when all is gone.

    Refs of a task that was running raise ForceCancelledError; values that were not fetched raise ObjectLostError.

    Raises:
        ValueError: there is none of that name.
    """
    end(find(name, namespace, kind), reason=reason)


def clear(name: str, namespace: str | None = None) -> None:
    """Forgets the result of a detached task that is over, and ends what keeps it.

    Raises:
        ValueError: there is none of that name, or it is not over.
    """
    entry = find(name, namespace)
    record = record_of(entry)
    if record is not None and record["state"] not in ("cancelled", "completed", "failed", "crashed"):
        raise ValueError(
            f"The detached task {entry.shown} is {record['state']}. Wait until it is over, or end it with "
            f"%tasks kill {shlex.quote(entry.name)}."
        )
    end(entry)


def end(entry: Entry, *, reason: str = "") -> None:
    """Ends a supervisor with everything below it, whatever state it is in. Returns when all is gone."""
    with contextlib.suppress(exceptions.JupyterTasksError), line(entry) as client:
        client.request("end", timeout=ANSWER_LIMIT, reason=reason)
    # It is gone by now, unless it is stuck: then what it was asked by force, and what it leaves is ours to clean up.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _wait_until_gone(entry):
            break
        registry.send_signal(entry, number)
    _wait_until_gone(entry)
    registry.clean(_directory(), entry)
    with _lock:
        _drop_closed()


def _wait_until_gone(entry: Entry, seconds: float | None = None) -> bool:
    limit = time.monotonic() + (END_LIMIT if seconds is None else seconds)
    while registry.is_alive(entry):
        if time.monotonic() > limit:
            return False
        time.sleep(LOOK)
    return True
