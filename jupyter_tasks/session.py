"""The session: this process's connection to its supervisor, started when it is first needed. Any thread."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jupyter_tasks import launch
from jupyter_tasks.refs import set_client_source
from jupyter_tasks.wire.frames import Flag, Kind
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks import inplace
    from jupyter_tasks.client import Client

__all__ = ["current", "current_client", "here", "init", "is_initialized", "on_start", "session_id", "shutdown"]

_session: launch.Session | inplace.Session | None = None
_lock = threading.RLock()


def current() -> launch.Session | inplace.Session | None:
    """The session of this process; None in a worker, and before the first use."""
    return _session


def init(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    local_mode: bool = False,
) -> dict[str, Any]:
    """Starts the supervisor of this process; otherwise the first task does it.

    Args:
        num_cpus: how many CPUs tasks may use together. Default: what this process may use (affinity and
            container limits), at least 2.
        num_gpus: how many GPUs. Default: those in CUDA_VISIBLE_DEVICES, or else those of NVIDIA's driver.
        resources: further resources by name, as {"license": 2}.
        local_mode: run everything in place, for a debugger: no process is started, and `remote()` runs the function
            before it returns, in the calling thread. Values are copied and errors raised as otherwise. `timeout`,
            `memory` and `grace` mean nothing then, `cancel` does nothing, and nothing runs at the same time; the
            stop button is a KeyboardInterrupt in the task and in who called it. Holds until `shutdown()`; in a
            worker it changes nothing.

    Returns:
        The settings in force: "total" (resources by name), "pid" of the supervisor, and more; "local_mode": True in
        local mode.

    Raises:
        RuntimeError: it runs already with different settings; call `shutdown()` first. The same again is a no-op.
        ValueError: a number below 0, or more GPUs than CUDA_VISIBLE_DEVICES shows.
    """
    arguments = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": resources}
    for name, amount in {"num_cpus": num_cpus, "num_gpus": num_gpus, **(resources or {})}.items():
        if amount is not None and amount < 0:
            raise ValueError(f"{name} must not be negative, but is {amount}.")
    with _lock:
        if context.current_worker() is not None:
            return current_client().settings
        asked = any(value is not None for value in arguments.values())
        if _session is not None and not _session.client.closed:
            if local_mode and isinstance(_session, launch.Session):
                raise RuntimeError(
                    "jupyter_tasks runs already, with worker processes. To run everything in place, call jt.shutdown() "
                    "first, which ends its tasks, and then jt.init(local_mode=True)."
                )
            if asked and arguments != _session.arguments:
                raise RuntimeError(
                    f"jupyter_tasks runs already, with {_session.client.settings['total']}. "
                    "Call jt.shutdown() first; that ends its tasks."
                )
            return _session.client.settings
        return _start(arguments, local_mode).settings


def _start(arguments: dict[str, Any], local_mode: bool = False) -> Client:
    global _session
    if _session is not None:
        _session.client.close()
        _session.clean()
        _session = None
    total = {
        "CPU": float(arguments["num_cpus"] if arguments["num_cpus"] is not None else max(2, launch.detect_cpus())),
        "GPU": float(arguments["num_gpus"] if arguments["num_gpus"] is not None else launch.detect_gpus()),
        **(arguments["resources"] or {}),
    }
    if local_mode:
        from jupyter_tasks import inplace

        _session = inplace.Session(total, arguments)
    else:
        _session = launch.start(total, arguments)
    _session.client.listener = _print_output
    for hook in _on_start:
        hook(_session.client)
    return _session.client


_on_start: list[Callable[[Client], None]] = []


def on_start(hook: Callable[[Client], None]) -> None:
    """Has `hook(client)` called for each new supervisor, and at once if one runs. For the notebook's layer."""
    with _lock:
        _on_start.append(hook)
        if _session is not None and not _session.client.closed:
            hook(_session.client)


def current_client() -> Client:
    """The connection to use here; starts what is missing."""
    session = _session
    if session is not None and not session.client.closed:
        return session.client
    with _lock:
        if context.current_worker() is not None:
            return context.client_of_worker()
        if _session is not None and not _session.client.closed:
            return _session.client
        nothing = {"num_cpus": None, "num_gpus": None, "resources": None}
        return _start(_session.arguments if _session is not None else nothing)


set_client_source(current_client)


def is_initialized() -> bool:
    """A supervisor runs for this process."""
    return context.current_worker() is not None or (_session is not None and not _session.client.closed)


def shutdown() -> None:
    """Ends the supervisor, all its workers and whatever they started. Open refs raise ObjectLostError.

    Returns when all is gone. The next task starts a new supervisor. Does nothing if none runs.
    """
    global _session
    with _lock:
        if _session is not None:
            session, _session = _session, None
            if session.client.closed:
                session.client.close()
                session.clean()
            else:
                session.end()


atexit.register(shutdown)


def _after_fork() -> None:
    """A forked child has the parent's supervisor no more: it starts one of its own when it needs one."""
    global _session, _lock
    _lock = threading.RLock()
    if _session is not None:
        with contextlib.suppress(Exception):
            _session.client.forget()
    context.forget_client()
    if "jupyter_tasks.client" in sys.modules:
        from jupyter_tasks.client import forget_all

        forget_all()
    if isinstance(_session, launch.Session):
        _session = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _print_output(kind: int, flags: int, id: int, body: bytes) -> None:
    """Outside a notebook, what tasks write appears on this process's own streams."""
    if kind == Kind.OUTPUT:
        stream = sys.stderr if flags & Flag.STDERR else sys.stdout
        stream.write(body.decode(errors="replace"))
        stream.flush()


def here() -> Any:
    """Who runs the task that this code may be in: the worker that this process is, or what stands for one, of a thread
    task and in local mode. None: nobody."""
    call = context.thread_call.get()
    if call is not None:
        return call
    worker = context.current_worker()
    if worker is None and _session is not None and not isinstance(_session, launch.Session):
        return _session.here
    return worker


def session_id() -> str | None:
    """What tells this session from others, here and in its workers; None before it has begun."""
    worker = context.current_worker()
    if worker is not None:
        return str(worker.config["mark"])
    if _session is None or _session.client.closed:
        return None
    return str(_session.client.settings["mark"])
