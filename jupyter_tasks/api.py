"""The user's verbs. Thin: each looks at its arguments, and asks the client.

May be used from any thread, from the notebook, from a plain program and from inside tasks. The first use starts a
supervisor for this process (0.05 to 0.1 s); inside a worker it connects to the one that is there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from jupyter_tasks import exceptions, launch
from jupyter_tasks.refs import ObjectRef, set_client_source
from jupyter_tasks.wire.frames import Flag, Kind
from jupyter_tasks.worker import context

if TYPE_CHECKING:
    from jupyter_tasks import inplace
    from jupyter_tasks.client import Client

__all__ = [
    "RemoteFunction",
    "cancel",
    "get",
    "get_runtime_context",
    "init",
    "is_initialized",
    "put",
    "remote",
    "shutdown",
    "tasks",
    "wait",
]

T = TypeVar("T")

_session: launch.Session | inplace.Session | None = None
_lock = threading.RLock()


# -- the session --------------------------------------------------------------------------------------------------


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
            return _client().settings
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


def _client() -> Client:
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


set_client_source(_client)


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
    for client in (_session.client if _session is not None else None, context.forget_client()):
        if client is not None:
            with contextlib.suppress(Exception):
                client.forget()
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


# -- functions ----------------------------------------------------------------------------------------------------

_OPTIONS = frozenset(
    {
        "name",
        "num_cpus",
        "num_gpus",
        "resources",
        "num_returns",
        "max_retries",
        "retry_exceptions",
        "timeout",
        "grace",
        "memory",
    }
)


class RemoteFunction(Generic[T]):
    """A function that runs in a worker: call `.remote(...)`, get an ObjectRef at once. Made by `@remote`."""

    def __init__(self, function: Callable[..., T], options: dict[str, Any]) -> None:
        if not callable(function):
            raise TypeError(f"@jt.remote needs a function, not {type(function).__name__}.")
        if inspect.isclass(function):
            raise TypeError(
                f"@jt.remote makes functions remote; {function.__name__} is a class, and actors are not there yet. "
                f"For an instance made in a worker, put the call into a function."
            )
        self._function = function
        self._options = _checked(options)
        self._name = str(self._options.get("name") or getattr(function, "__name__", type(function).__name__))
        self._num_returns = self._options.get("num_returns", 1)
        self._signature = _signature(function)
        self._lock = threading.Lock()
        self._known: tuple[Client, int] | None = None  # for this client, the code has this id
        self._extra: dict[str, Any] | None = None  # options each task carries, None for none
        if any(self._options.get(key) is not None for key in ("timeout", "memory")):
            self._extra = {"announce": True}
        functools.update_wrapper(self, function)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submits a call. Returns its ObjectRef at once (a list for num_returns=N, None for 0).

        Refs among the arguments are awaited and replaced by their values; refs inside lists, dicts or objects
        stay refs. Large arrays arrive as read-only views, without a copy.

        Raises:
            TypeError: the arguments do not fit the function.
            UnserializableError: an argument cannot be sent; names it.
            ValueError: it needs more of a resource than there is.
        """
        signature = self._signature
        if signature is not None:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self._name}(): {error}") from None
        known = self._known
        client = known[0] if known is not None else _client()
        if known is None or client.closed:
            client = _client()
            known = self._register(client)
        num_returns = self._num_returns
        ref = client.submit(known[1], args, kwargs, self._name, self._extra, max(1, num_returns), self._named)
        return None if num_returns == 0 else ref

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by the names that the function gives them."""
        if self._signature is not None:
            return dict(self._signature.bind(*args, **kwargs).arguments)
        return {**{f"argument {i}": arg for i, arg in enumerate(args)}, **kwargs}

    def options(self, **options: Any) -> RemoteFunction[T]:
        """The same function with other options; see `remote` for their meaning."""
        return RemoteFunction(self._function, {**self._options, **options})

    def _register(self, client: Client) -> tuple[Client, int]:
        """Sends the code, once for each supervisor. What it needs of its module is taken along as it is now."""
        with self._lock:
            if self._known is not None and self._known[0] is client:
                return self._known
            _check_demand(self._options, client.settings["total"], self._name)
            extras: dict[str, Any] = {"sources": _sources(self._function)}
            retry = self._options.get("retry_exceptions", False)
            if retry:
                extras["retry_exceptions"] = True if retry is True else tuple(retry)
            from jupyter_tasks.wire import serialize, shared  # cloudpickle takes 10 ms; by now the client has it

            data, buffers = serialize.dumps((self._function, extras), root=self._name)
            options = _wire_options(self._options, self._name)
            session = _session
            if session is None or isinstance(session, launch.Session) or session.client is not client:
                # Modules that can be imported here now can be imported there.
                options["path"] = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
                fn = client.new_function(shared.pack(data, buffers), options)
            else:  # it could be sent, and is not: a debugger wants the function itself
                fn = session.client.learn(self._function, options, extras)
            self._known = (client, fn)
            return self._known

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"A remote function cannot be called directly. Use {self._name}.remote(...), "
            f"or {self._name}._function(...) to run it here."
        )

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)


@overload
def remote(function: Callable[..., T], /) -> RemoteFunction[T]: ...


@overload
def remote(**options: Any) -> Callable[[Callable[..., T]], RemoteFunction[T]]: ...


def remote(*args: Any, **options: Any) -> Any:
    """Makes a function remote: `@jt.remote` or `@jt.remote(num_cpus=2, timeout=60)`.

    Args:
        name: what the screen shows. Default: the function's name.
        num_cpus, num_gpus: what a task takes while it runs. Default 1 and 0; fractions are fine, of GPUs up to 1. A
            task with GPUs sees them in CUDA_VISIBLE_DEVICES, without it that variable is untouched. BLAS and OpenMP
            get `num_cpus` threads, unless OMP_NUM_THREADS and the like are set.
        resources: the same for other resources, by name.
        num_returns: how many refs `remote()` returns; the function then returns that many values.
        max_retries: how often a task is run again when its worker crashes. Default 3.
        retry_exceptions: True, or a list of exception types for which it is run again, too.
        timeout: seconds a run may take; then it is interrupted, and after `grace` seconds ended.
        grace: seconds between the interrupt and the end of the process. Default: 5 for a timeout, and for a
            cancel: never.
        memory: bytes of private memory that the task's processes may use together.

    Raises:
        TypeError: an unknown option.
        ValueError: a value that makes no sense.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return RemoteFunction(args[0], {})
    if args:
        raise TypeError("Use @jt.remote or @jt.remote(option=value); options are given by name.")
    _checked(options)
    return lambda function: RemoteFunction(function, options)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise TypeError(f"Unknown option {name!r}. Options are: {', '.join(sorted(_OPTIONS))}.")
        if value is None or name in ("name", "resources", "retry_exceptions"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != value:
            raise ValueError(f"{name} must be a number that is not negative, but is {value!r}.")
        if name in ("num_returns", "max_retries") and not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, but is {value!r}.")
        if name in ("timeout", "memory") and value == 0:
            raise ValueError(f"{name} must be more than 0; leave it out for no limit.")
    return dict(options)


def _wire_options(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The options as the supervisor wants them."""
    wire: dict[str, Any] = {"name": name}
    for ours, theirs in (("num_cpus", "cpus"), ("num_gpus", "gpus"), ("resources", "resources")):
        if options.get(ours) is not None:
            wire[theirs] = options[ours]
    for key in ("timeout", "grace", "max_retries"):
        if options.get(key) is not None:
            wire[key] = options[key]
    if options.get("memory") is not None:
        wire["memory"] = int(options["memory"])
    if options.get("num_returns") is not None:
        wire["num_returns"] = options["num_returns"]
    return wire


def _check_demand(options: dict[str, Any], total: dict[str, float], name: str) -> None:
    """A demand that can never be met is an error now, not a task that waits for ever."""
    wanted = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), **(options.get("resources") or {})}
    for resource, amount in wanted.items():
        if amount is not None and amount > total.get(resource, 0):
            raise ValueError(
                f"{name} needs {amount:g} {resource}, but there are only {total.get(resource, 0):g}. "
                f"Ask for less, or call jt.shutdown() and jt.init() with more."
            )
    gpus = wanted["GPU"]
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{name} needs {gpus:g} GPUs; ask for whole ones, or for a part of one.")


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature to check calls against; None where any call may fit (and checking would cost for nothing)."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None
    return signature


def _sources(function: Callable[..., Any]) -> dict[str, str]:
    """The source of a function that lives in no file, so that a traceback in the worker can show its lines."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or os.path.exists(code.co_filename):
        return {}
    lines = linecache.getlines(code.co_filename)
    return {code.co_filename: "".join(lines)} if lines else {}


# -- values -------------------------------------------------------------------------------------------------------


@overload
def get(refs: ObjectRef, *, timeout: float | None = ..., cancel_on_interrupt: bool = ...) -> Any: ...


@overload
def get(refs: Sequence[ObjectRef], *, timeout: float | None = ..., cancel_on_interrupt: bool = ...) -> list[Any]: ...


def get(refs: Any, *, timeout: float | None = None, cancel_on_interrupt: bool = False) -> Any:
    """Waits for a ref, or a list of refs, and returns the value or the list of values.

    Args:
        timeout: seconds; 0 looks once.
        cancel_on_interrupt: a KeyboardInterrupt (the stop button) while waiting also cancels the tasks waited for.
            Otherwise they go on.

    Raises:
        GetTimeoutError: not there within `timeout`. The task goes on.
        TaskCancelledError, TaskError (also an instance of what the task raised), WorkerCrashedError,
        TaskTimeoutError, OutOfMemoryError, ObjectLostError: what became of the task. A list raises for its first ref
        that failed, without waiting for the others.
        TypeError: something else than a ref was given. (In a cell, a name that holds a ref in the notebook holds its
            value already; such a value is returned as it is.)
    """
    try:
        if isinstance(refs, ObjectRef):
            return _get_list([refs], timeout, cancel_on_interrupt)[0]
        worker = _here()
        if worker is not None and worker.replaced:
            return _get_replaced(refs, worker.replaced, timeout, cancel_on_interrupt)
        if not isinstance(refs, (list, tuple)):
            raise TypeError(f"get() takes an ObjectRef or a list of them, not {type(refs).__name__}.")
        for i, ref in enumerate(refs):
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"get() takes an ObjectRef or a list of them; item {i} is {type(ref).__name__}.")
        return _get_list(list(refs), timeout, cancel_on_interrupt)
    except exceptions.JupyterTasksError as error:
        # Our own frames say nothing about the task. Those of an error that was raised in place do.
        frames = error.__cause__.__traceback__ if error.__cause__ is not None else None
        raise error.with_traceback(frames) from error.__cause__


def _get_replaced(refs: Any, replaced: frozenset[int], timeout: float | None, cancel_on_interrupt: bool) -> Any:
    """In a cell, whose names hold values where the notebook's hold refs: `get` of such a value is the value."""
    if id(refs) in replaced:
        return refs
    several = isinstance(refs, (list, tuple))
    for i, ref in enumerate(refs if several else [refs]):
        if not isinstance(ref, ObjectRef) and id(ref) not in replaced:
            what = f"item {i} is" if several else "not"
            raise TypeError(f"get() takes an ObjectRef or a list of them; {what} {type(ref).__name__}.")
    got = iter(_get_list([ref for ref in refs if isinstance(ref, ObjectRef)], timeout, cancel_on_interrupt))
    return [next(got) if isinstance(ref, ObjectRef) else ref for ref in refs]


def _get_list(refs: list[ObjectRef], timeout: float | None, cancel_on_interrupt: bool) -> list[Any]:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, but is {timeout}.")
    if not refs:
        return []
    try:
        _wait_for_all(refs, timeout)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            for ref in refs:
                if not ref.is_final:
                    ref._client.cancel(ref.id, source="interrupt")
        raise
    return [ref._client.value(ref) for ref in refs]


def _wait_for_all(refs: list[ObjectRef], timeout: float | None) -> None:
    """Until all are there, or one has failed (then its error is raised)."""
    open_refs = [ref for ref in refs if not ref._kind]
    if len(refs) > 1:
        open_refs = list(dict.fromkeys(open_refs))
        _raise_failed(refs)
    # Only one session is open at a time, so only its refs are.
    if open_refs and not open_refs[0]._client.wait(open_refs, None, timeout, or_failed=len(open_refs) > 1):
        raise _timed_out([ref for ref in open_refs if not ref._kind], timeout)
    _raise_failed(open_refs)


def _raise_failed(refs: Iterable[ObjectRef]) -> None:
    for ref in refs:
        if ref._kind and ref._kind != Kind.RESULT:
            ref._client.value(ref)


def _timed_out(refs: list[ObjectRef], timeout: float | None) -> exceptions.GetTimeoutError:
    which = refs[0].task_id if refs else "?"
    more = f" and {len(refs) - 1} more" if len(refs) > 1 else ""
    return exceptions.GetTimeoutError(
        f"Task {which}{more} did not finish within {timeout:g} s. It goes on; call get again, or cancel it."
    )


def wait(
    refs: Sequence[ObjectRef], *, num_returns: int = 1, timeout: float | None = None
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Waits until `num_returns` of the refs are final, or `timeout` seconds have passed.

    Returns:
        (ready, not_ready): at most `num_returns` ready ones, both in the order given. Failed and cancelled tasks
        count as ready.

    Raises:
        TypeError: not a list of refs.
        ValueError: duplicates, `num_returns` out of range, a negative timeout.
    """
    if isinstance(refs, ObjectRef):
        raise TypeError("wait() takes a list of ObjectRefs; put the ref in a list.")
    refs = list(refs)
    for i, ref in enumerate(refs):
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"wait() takes a list of ObjectRefs; item {i} is {type(ref).__name__}.")
    if len(set(refs)) != len(refs):
        raise ValueError("wait() was given a ref twice.")
    if not refs:
        return [], []
    if isinstance(num_returns, bool) or not isinstance(num_returns, int) or not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns must be between 1 and {len(refs)}, but is {num_returns!r}.")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, but is {timeout}.")
    open_refs = [ref for ref in refs if not ref._kind]
    wanted = num_returns - (len(refs) - len(open_refs))
    if wanted > 0:
        open_refs[0]._client.wait(open_refs, wanted, timeout)
    ready = [ref for ref in refs if ref.is_final][:num_returns]
    taken = set(ready)
    return ready, [ref for ref in refs if ref not in taken]


def put(value: Any) -> ObjectRef:
    """Stores a value once, for any number of tasks. Returns its ref.

    Raises:
        TypeError: the value is a ref already.
        UnserializableError: it cannot be sent; names the part that cannot.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put() was given an ObjectRef; it stands for a stored value already.")
    return _client().put(value)


def cancel(
    ref: ObjectRef,
    *,
    force: bool = False,
    recursive: bool = True,
    grace: float | None = None,
    reason: str = "",
) -> None:
    """Asks a task to stop. Returns at once; `get(ref)` says how it ended.

    A task that has not started never does. One that runs gets a KeyboardInterrupt in its main thread; with `grace`, its
    process is ended after that many seconds. With `force` the process and all it started are killed at once: no
    except, finally or atexit of it runs. A task that is over is left alone. May be called again.

    Args:
        recursive: also the tasks that it has submitted.
        reason: shown on the screen and in the error.

    Raises:
        TypeError: not a ref.
        ValueError: a negative `grace`.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel() takes an ObjectRef, not {type(ref).__name__}. For actors there is jt.kill(actor).")
    if grace is not None and grace < 0:
        raise ValueError(f"grace must not be negative, but is {grace}.")
    # Also for a final ref: threads or children of its task may still run. Of a session that has ended nothing does.
    if not ref._client.closed:
        ref._client.cancel(ref.id, force=force, recursive=recursive, grace=grace, reason=reason)


def tasks() -> list[dict[str, Any]]:
    """The tasks of this session, live ones first: dicts with "task_id", "name", "state", "elapsed_s" and more."""
    if not is_initialized():
        return []
    records: list[dict[str, Any]] = _client().request("tasks")["tasks"]
    return records


# -- inside a task ------------------------------------------------------------------------------------------------


class RuntimeContext:
    """Where this code runs. Got by `get_runtime_context()`."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def get_task_id(self) -> str | None:
        """The running task's id as `%tasks` shows it; None outside a task."""
        from jupyter_tasks.wire.frames import show_id

        return show_id(self._worker.task_id) if self._worker is not None and self._worker.task_id else None

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The devices given to this task, as they stand in its CUDA_VISIBLE_DEVICES: {"GPU": ["0"]}."""
        return {"GPU": list(self._worker.config["gpus"]) if self._worker is not None else []}

    def is_canceled(self) -> bool:
        """The running task was asked to stop. For loops that want to stop at a good place; about 0.2 us."""
        return self._worker is not None and self._worker.guard.is_canceled()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs: the task's id, and whether it was asked to stop."""
    return RuntimeContext(_here())


def _here() -> Any:
    """Who runs tasks in this process: the worker that it is, or what stands for one in local mode. None: nobody."""
    worker = context.current_worker()
    if worker is None and _session is not None and not isinstance(_session, launch.Session):
        return _session.here
    return worker
