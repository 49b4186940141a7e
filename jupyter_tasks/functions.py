"""Remote functions: `@remote`, their options, and how a call becomes a task. Any thread."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from jupyter_tasks import launch, session

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["RemoteFunction", "check_demand", "remote"]

T = TypeVar("T")

_OPTIONS = frozenset(
    {
        "name",
        "num_cpus",
        "num_gpus",
        "resources",
        "num_returns",
        "max_retries",
        "retry_backoff",
        "retry_delay",
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
        self._check(args, kwargs)
        known = self._known
        client = known[0] if known is not None else session.current_client()
        if known is None or client.closed:
            client = session.current_client()
            known = self._register(client)
        num_returns = self._num_returns
        ref = client.submit(known[1], args, kwargs, self._name, self._extra, max(1, num_returns), self._named)
        return None if num_returns == 0 else ref

    def map(self, iterable: Iterable[Any], /, *more: Iterable[Any], **common: Any) -> list[Any]:
        """Submits a call for each item, or with several iterables for each tuple of their items. Returns the refs.

        They run as a group of this function's name, so there is one progress for all of them, and `%tasks cancel NAME`
        stops all. `jt.get(refs)` waits for the values, in the order of the items. Refs among the items are awaited.

        Args:
            iterable, more: read one after the other, in this thread; the shortest ends it, as with `zip`. The first
                calls run while later items are read.
            common: keyword arguments of all calls. Each is sent once.

        Raises:
            TypeError: the arguments do not fit the function, or something is not iterable.
            UnserializableError: "item 17: ...".
            whatever reading an iterable raises, and KeyboardInterrupt.
            With any of these what the call had submitted by then is cancelled.
        """
        for i, each in enumerate((iterable, *more), start=1):
            if not isinstance(each, Iterable) and not hasattr(each, "__getitem__"):
                raise TypeError(
                    f"{self._name}.map() calls the function for each item of its arguments, and argument {i} has none: "
                    f"it is {_a(each)}. An argument that all calls share is given by its name: "
                    f"{self._name}.map(xs, y=1)."
                )
        self._check((None,) * (1 + len(more)), common)
        return self._submit_all(zip(iterable, *more, strict=False), common, check=False)

    def starmap(self, tuples: Iterable[Iterable[Any]], /, **common: Any) -> list[Any]:
        """The same with the arguments of each call as a tuple: `f.starmap([(1, 2), (3, 4)])`. See `map`."""
        return self._submit_all(tuples, common, check=True)

    def _submit_all(self, calls: Iterable[Any], common: dict[str, Any], *, check: bool) -> list[Any]:
        from jupyter_tasks.mapping import submit_all

        client, fn = self._register(session.current_client())
        returns = max(1, self._num_returns)
        refs = submit_all(
            *(client, fn, calls, common, self._name, self._extra, returns),
            named=self._named,
            check=self._check if check else None,
        )
        return refs if self._num_returns else [None] * len(refs)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self._name}(): {error}") from None

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
            check_demand(self._options, client.settings["total"], self._name)
            extras: dict[str, Any] = {"sources": _sources(self._function)}
            retry = self._options.get("retry_exceptions", False)
            if retry:
                extras["retry_exceptions"] = True if retry is True else tuple(retry)
            from jupyter_tasks.wire import serialize, shared  # cloudpickle takes 10 ms; by now the client has it

            data, buffers = serialize.dumps((self._function, extras), root=self._name)
            options = _wire_options(self._options, self._name)
            held = session.current()
            if held is None or isinstance(held, launch.Session) or held.client is not client:
                # Modules that can be imported here now can be imported there.
                options["path"] = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
                fn = client.new_function(shared.pack(data, buffers), options)
            else:  # it could be sent, and is not: a debugger wants the function itself
                fn = held.client.learn(self._function, options, extras)
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
        retry_delay: seconds before it is run again. Default 0.
        retry_backoff: how many times longer each further delay is, up to 5 minutes. Default 2.
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
    for key in ("timeout", "grace", "max_retries", "retry_delay", "retry_backoff"):
        if options.get(key) is not None:
            wire[key] = options[key]
    if options.get("memory") is not None:
        wire["memory"] = int(options["memory"])
    if options.get("num_returns") is not None:
        wire["num_returns"] = options["num_returns"]
    return wire


def check_demand(options: dict[str, Any], total: dict[str, float], name: str) -> None:
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


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


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
