"""Remote functions: `@remote`, their options, and how a call becomes a task. Any thread."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from jupyter_tasks import launch, session
from jupyter_tasks.refs import ObjectRef

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["Code", "RemoteFunction", "by_name", "check_call", "check_demand", "remote", "send_code"]

T = TypeVar("T")

_OPTIONS = frozenset(
    {
        "executor",
        "interruptible",
        "lifetime",
        "name",
        "namespace",
        "num_cpus",
        "num_gpus",
        "resources",
        "num_returns",
        "generator_backpressure",
        "max_retries",
        "retry_backoff",
        "retry_delay",
        "retry_exceptions",
        "timeout",
        "grace",
        "memory",
    }
)


# Of `remote` on a class; see actor.py.
_OF_ACTORS_ALONE = frozenset(
    {"get_if_exists", "lifetime", "max_concurrency", "max_restarts", "max_task_retries", "namespace"}
)
_RAYS_NAMES = {"_generator_backpressure_num_objects": "generator_backpressure"}


class Code(NamedTuple):
    """The code of a function, or of a class of actors, at a supervisor."""

    client: Client
    fn: int  # what it is called there
    captured: dict[int, ObjectRef]  # refs that the code reads, as they were when it was sent


def send_code(
    client: Client, made_of: Any, extras: dict[str, Any], options: dict[str, Any], *, name: str, owner: object
) -> Code:
    """Sends a function or class. What it needs of its module is taken along as it is now.

    Args:
        extras: what its workers know of it, in the same pickle.
        options: what the supervisor knows of it, too.
        owner: it is forgotten there when this object is gone.

    Raises:
        UnserializableError: it cannot be sent; names the part that cannot.
    """
    from jupyter_tasks.wire import serialize, shared  # cloudpickle takes 10 ms; by now the client has it

    captured: dict[int, ObjectRef] = {}

    def note(value: object) -> Any:
        if type(value) is ObjectRef:
            client.leaves(value)
            captured[value.id] = value
        return NotImplemented

    data, buffers = serialize.dumps((made_of, extras), root=name, reducers=note)
    held = session.current()
    if held is None or isinstance(held, launch.Session) or held.client is not client:
        # Modules that can be imported here now can be imported there.
        options["path"] = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        fn = client.new_function(shared.pack(data, buffers), options, owner)
    else:  # it could be sent, and is not: a debugger wants the function itself
        fn = held.client.learn(made_of, options, extras)
    # As long as `owner` can make tasks; and each task pins them, since a worker may learn the code late.
    return Code(client, fn, captured)


def check_call(signature: inspect.Signature | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises TypeError if these arguments do not fit what is called `name`."""
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None


def by_name(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that fit, by their names."""
    if signature is not None:
        return dict(signature.bind(*args, **kwargs).arguments)
    return {**{f"argument {i}": arg for i, arg in enumerate(args)}, **kwargs}


class RemoteFunction(Generic[T]):
    """A function that runs in a worker: call `.remote(...)`, get an ObjectRef at once. Made by `@remote`."""

    def __init__(self, function: Callable[..., T], options: dict[str, Any]) -> None:
        if not callable(function):
            raise TypeError(f"@jt.remote needs a function, not {type(function).__name__}.")
        self._function = function
        self._options = _checked(options)
        self._name = str(self._options.get("name") or getattr(function, "__name__", type(function).__name__))
        num_returns = self._options.get("num_returns")
        if num_returns is None and _makes_items(function):
            num_returns = "streaming"
        self._generator: str | None = num_returns if isinstance(num_returns, str) else None
        self._num_returns = 1 if num_returns is None or self._generator else num_returns
        self._backpressure = self._options.get("generator_backpressure")
        if self._backpressure is not None and self._generator != "streaming":
            raise ValueError(
                f"generator_backpressure is for generator functions with num_returns='streaming', and {self._name} "
                f"{f'has num_returns={num_returns!r}' if num_returns is not None else 'is none: use yield'}."
            )
        self._thread = self._options.get("executor") == "thread"
        _check_executor(self._options, self._name)
        self._is_detached = _is_detached(self._options, self._name, self._generator)
        self._signature = _signature(function)
        self._lock = threading.Lock()
        self._known: Code | None = None  # in the session of this process
        self._sent: dict[Client, Code] = {}  # wherever else, and there
        self._extra: dict[str, Any] | None = None  # options each task carries, None for none
        if any(self._options.get(key) is not None for key in ("timeout", "memory")):
            self._extra = {"announce": True}
        functools.update_wrapper(self, function)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submits a call. Returns its ObjectRef at once (a list for num_returns=N, None for 0).

        For a generator function it returns an ObjectRefGenerator, which hands out a ref for each item as it is made.

        Refs among the arguments are awaited and replaced by their values; refs inside lists, dicts or objects
        stay refs. Large arrays arrive as read-only views, without a copy.

        Raises:
            TypeError: the arguments do not fit the function.
            UnserializableError: an argument cannot be sent; names it.
            ValueError: it needs more of a resource than there is; of a detached task, its name is taken, or an argument
                is a reference whose value is not there yet.
            RuntimeError: a detached task cannot be started from here: in a task, or in local mode.
        """
        self._check(args, kwargs)
        if self._thread:
            return self._in_thread(session.current_client(), args, kwargs)
        if self._is_detached:
            return self._detached(args, kwargs)
        code = self._known
        if code is None or code.client.closed:
            code = self._known = self._register(session.current_client())
        return self._submit(code, args, kwargs)

    def submit_to(self, client: Client, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same in the session of this client, whichever that is."""
        self._check(args, kwargs)
        if self._thread:
            return self._in_thread(client, args, kwargs)
        return self._submit(self._register(client), args, kwargs)

    def _submit(self, code: Code, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        client, fn, _ = code
        extra = self._with_captured(code)
        if self._generator == "streaming":
            return client.submit_stream(
                fn, args, kwargs, self._name, extra, self._named, backpressure=bool(self._backpressure)
            )
        num_returns = self._num_returns
        ref = client.submit(fn, args, kwargs, self._name, extra, max(1, num_returns), self._named)
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
        from jupyter_tasks.mapping import submit_all, submit_each

        if self._is_detached:
            raise ValueError(
                f"{self._name}: with lifetime='detached' each task needs a name of its own; map() and starmap() have "
                "one for all. Put the loop into a function, and call that one."
            )
        if self._thread or self._generator == "streaming":
            return submit_each(self.remote, calls, common, self._name)
        code = self._register(session.current_client())
        refs = submit_all(
            *(code.client, code.fn, calls, common, self._name, self._with_captured(code), max(1, self._num_returns)),
            named=self._named,
            check=self._check if check else None,
        )
        return refs if self._num_returns else [None] * len(refs)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_call(self._signature, self._name, args, kwargs)

    def _with_captured(self, code: Code) -> dict[str, Any] | None:
        if not code.captured:
            return self._extra
        return {**(self._extra or {}), "pins": list(code.captured)}

    def _in_thread(self, client: Client, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_demand(self._options, client.settings["total"], self._name)
        options = {"cpus": 0, **self._code_options()}
        retry = _retry_types(self._options)
        ref = client.threads.submit(self._function, args, kwargs, self._name, options, retry_exceptions=retry)
        return None if self._num_returns == 0 else ref

    def _detached(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submits to a supervisor of this task's own."""
        from jupyter_tasks import detached

        detached.check_place(self._name)
        detached.check_group(self._name)
        check_demand(self._options, launch.default_total(), self._name)
        args, kwargs = detached.by_value(args, kwargs, self._name)
        function = f"{getattr(self, '__module__', '')}.{getattr(self, '__qualname__', self._name)}".lstrip(".")
        with detached.Starting(self._name, self._options.get("namespace"), label=function) as starting:
            client = starting.client
            fn = self._register(client).fn
            ref = client.submit(
                *(fn, args, kwargs, self._name, {"announce": True}, max(1, self._num_returns)), named=self._named
            )
            starting.keep(ref if isinstance(ref, list) else [ref])
        return None if self._num_returns == 0 else ref

    def _code_options(self) -> dict[str, Any]:
        """The options as the supervisor and the worker want them."""
        options = _wire_options(self._options, self._name)
        if self._generator is not None:
            options["generator"] = self._generator
            options["backpressure"] = self._backpressure or 0
        return options

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by the names that the function gives them."""
        return by_name(self._signature, args, kwargs)

    def options(self, **options: Any) -> RemoteFunction[T]:
        """The same function with other options; see `remote` for their meaning."""
        return RemoteFunction(self._function, {**self._options, **options})

    def _register(self, client: Client) -> Code:
        """Sends the code, once for each supervisor. What it needs of its module is taken along as it is now."""
        with self._lock:
            if client in self._sent:
                return self._sent[client]
            self._sent = {each: code for each, code in self._sent.items() if not each.closed}
            check_demand(self._options, client.settings["total"], self._name)
            extras: dict[str, Any] = {"sources": _sources(self._function)}
            if retry := _retry_types(self._options):
                extras["retry_exceptions"] = retry
            code = self._sent[client] = send_code(
                client, self._function, extras, self._code_options(), name=self._name, owner=self
            )
            return code

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
        lifetime: "detached": the task has a supervisor of its own, with as many CPUs as a session, and outlives this
            process; any later one finds it with `get_task(name)`. Its result lives until it is killed or cleared
            (`%tasks kill NAME`, `%tasks clear NAME`). Needs a `name` that no other has.
        namespace: with lifetime="detached": names need to be unique within it only. Default: "default".
        num_cpus, num_gpus: what a task takes while it runs. Default 1 and 0; fractions are fine, of GPUs up to 1. A
            task with GPUs sees them in CUDA_VISIBLE_DEVICES, without it that variable is untouched. BLAS and OpenMP
            get `num_cpus` threads, unless OMP_NUM_THREADS and the like are set.
        resources: the same for other resources, by name.
        executor: "process" (default), or "thread": it runs in this process, and arguments and results are the objects
            themselves. It takes no CPU unless `num_cpus` says so. A thread cannot be killed: a cancel sets the flag
            that `get_runtime_context().is_canceled()` reads, `force` and `grace` do nothing more, and `get` raises
            when the function has ended.
        interruptible: with executor="thread": a cancel and a timeout also raise KeyboardInterrupt in the function,
            between two of its lines, so not while a system call or C code lasts, and perhaps in a `finally`.
        num_returns: how many refs `remote()` returns; the function then returns, or yields, that many values.
            "streaming", the default for generator functions (also async ones): an ObjectRefGenerator, which hands out a
            ref for each item while the task goes on. "dynamic": one ref, to a sequence of refs of all items. A further
            attempt of a task that streams makes its items anew; those that were made already are kept.
        generator_backpressure: the task waits while so many items are made and not yet taken by `next`; its slot is
            free then. Default: it never waits. Also under Ray's name `_generator_backpressure_num_objects`.
        max_retries: how often a task is run again when its worker crashes; -1 for as often as it takes. Default 3.
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
        return _made_remote(args[0], {})
    if args:
        raise TypeError("Use @jt.remote or @jt.remote(option=value); options are given by name.")
    if not options.keys() & _OF_ACTORS_ALONE:  # a decorator does not know yet what it will decorate
        _checked(options)
    return lambda made: _made_remote(made, options)


def _made_remote(made: Any, options: dict[str, Any]) -> Any:
    if not inspect.isclass(made):
        return RemoteFunction(made, options)
    from jupyter_tasks.actor import ActorClass

    return ActorClass(made, options)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    options = {_RAYS_NAMES.get(name, name): value for name, value in options.items()}
    for name, value in options.items():
        if name not in _OPTIONS:
            from jupyter_tasks.ray_options import what_instead

            instead = what_instead(name)
            why = f"jupyter_tasks has no option {name!r}. {instead}" if instead else f"Unknown option {name!r}."
            raise TypeError(f"{why} Options are: {', '.join(sorted(_OPTIONS))}.")
        if name == "retry_exceptions":
            _check_retry_exceptions(value)
        if name == "resources":
            _check_resources(value)
        if value is None or name in ("executor", "lifetime", "name", "namespace", "resources", "retry_exceptions"):
            continue
        if name == "interruptible":
            if not isinstance(value, bool):
                raise ValueError(f"interruptible must be True or False, but is {value!r}.")
            continue
        if name == "max_retries" and value == -1 and not isinstance(value, float):
            continue  # as often as it takes
        if name == "num_returns" and isinstance(value, str):
            if value not in ("streaming", "dynamic"):
                raise ValueError(f"num_returns must be a whole number, 'streaming' or 'dynamic', but is {value!r}.")
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != value:
            raise ValueError(f"{name} must be a number that is not negative, but is {value!r}.")
        if name in ("num_returns", "max_retries", "generator_backpressure") and not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, but is {value!r}.")
        if name in ("timeout", "memory", "generator_backpressure") and value == 0:
            raise ValueError(f"{name} must be more than 0; leave it out for no limit.")
    return dict(options)


def _check_executor(options: dict[str, Any], name: str) -> None:
    executor = options.get("executor", "process")
    if executor not in ("process", "thread"):
        raise ValueError(f"executor must be 'process' or 'thread', but is {executor!r}.")
    if executor == "process":
        if options.get("interruptible") is not None:
            raise ValueError(f"{name}: interruptible is for executor='thread'; processes always are.")
        return
    for option in ("memory", "num_gpus"):
        if options.get(option):
            raise ValueError(
                f"{name}: {option} is for executor='process'; a thread shares the memory and devices of its process."
            )


def _is_detached(options: dict[str, Any], name: str, generator: str | None) -> bool:
    """The task outlives this process. Raises ValueError where that cannot be."""
    lifetime, namespace = options.get("lifetime"), options.get("namespace")
    if lifetime not in (None, "detached"):
        raise ValueError(f"{name}: lifetime must be None or 'detached', but is {lifetime!r}.")
    if lifetime is None:
        if namespace is not None:
            raise ValueError(f"{name}: namespace is for lifetime='detached'; other tasks are not found by name.")
        return False
    for what, value in (("name", options.get("name")), ("namespace", namespace or "default")):
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"{name}: lifetime='detached' needs a {what}, a text by which the task is found again: "
                f".options(lifetime='detached', {what}='nightly')."
            )
    if options.get("executor") == "thread":
        raise ValueError(f"{name}: lifetime='detached' is for executor='process'; a thread ends with this process.")
    if generator is not None:
        raise ValueError(
            f"{name}: lifetime='detached' is not for generators, whose items belong to who takes them. Return a list."
        )
    return True


def _retry_types(options: dict[str, Any]) -> Any:
    """For which errors a task is run again: True, False or a tuple of types."""
    retry = options.get("retry_exceptions", False)
    return retry if isinstance(retry, bool) else tuple(retry or ())


def _check_resources(wanted: Any) -> None:
    """A negative amount would give, not take."""
    if wanted is None:
        return
    if not isinstance(wanted, dict) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"resources must be a dict of names and amounts, but is {wanted!r}.")
    for name, amount in wanted.items():
        if name in ("CPU", "GPU") or name.startswith("thread:"):
            raise ValueError(f"resources must not hold {name!r}; use num_{name.lower()}s.")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0:
            raise ValueError(f"resources[{name!r}] must be a number that is not negative, but is {amount!r}.")


def _check_retry_exceptions(wanted: Any) -> None:
    """A worker can do nothing with anything else, and would notice late."""
    if wanted is None or isinstance(wanted, bool):
        return
    types = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    if types is not wanted or not all(isinstance(each, type) and issubclass(each, BaseException) for each in types):
        raise TypeError(f"retry_exceptions must be True, False or a list of exception types, but is {wanted!r}.")


def _wire_options(options: dict[str, Any], name: str) -> dict[str, Any]:
    wire: dict[str, Any] = {"name": name}
    for ours, theirs in (("num_cpus", "cpus"), ("num_gpus", "gpus"), ("resources", "resources")):
        if options.get(ours) is not None:
            wire[theirs] = options[ours]
    for key in ("timeout", "grace", "max_retries", "retry_delay", "retry_backoff", "interruptible"):
        if options.get(key) is not None:
            wire[key] = options[key]
    if options.get("memory") is not None:
        wire["memory"] = int(options["memory"])
    if isinstance(options.get("num_returns"), int):
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


def _makes_items(function: Callable[..., Any]) -> bool:
    call = (
        function if inspect.isroutine(function) or isinstance(function, functools.partial) else type(function).__call__
    )
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)


def _sources(function: Callable[..., Any]) -> dict[str, str]:
    """The source of a function that lives in no file, so that a traceback in the worker can show its lines."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or os.path.exists(code.co_filename):
        return {}
    lines = linecache.getlines(code.co_filename)
    return {code.co_filename: "".join(lines)} if lines else {}
