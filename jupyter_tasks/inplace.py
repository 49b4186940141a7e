"""`init(local_mode=True)`: everything runs in place, for a debugger.

There is no supervisor, no process and no thread. `f.remote(x)` runs the function before it returns, in the thread that
calls it, and so breakpoints, pdb, profilers and coverage see it as they see any other call. Values go through the same
pickles as on their way to a worker and back, so that what works here works there, too. The function itself does not:
a debugger must find the user's own code and globals.

    InPlaceClient.submit   arguments to bytes and back, the call, results to bytes: its refs are final when it returns
    ref._body              holds the outcome, which so lives as long as its ref
    outcome.error          the exception as it was raised, with its frames: what `get` raises shows them
    _Actor                 has the instance; it is held by the actor's ref alone, and so goes with the last handle

What only a worker can do is not done: no timeout, grace or memory limit, no cancel of what runs, no slots. Groups are
there: a cancelled one runs no further members.

Thread: any, also several at once; a task belongs to the thread that submits it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import itertools
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeGuard

from jupyter_tasks import several
from jupyter_tasks.client import Client, PackedCall
from jupyter_tasks.engine.cancel import Cancel
from jupyter_tasks.engine.groups import MOST_FAILED, Group
from jupyter_tasks.engine.states import State
from jupyter_tasks.exceptions import ActorDiedError, ObjectLostError
from jupyter_tasks.refs import Dependency, ObjectRef, RefNote
from jupyter_tasks.streams import ObjectRefGenerator
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import CALL_OF, CLIENT_SHIFT, HEADER, HEADER_SIZE, Kind, from_json, show_id, to_json
from jupyter_tasks.worker import actors, context, execution, items

__all__ = ["Here", "InPlaceClient", "Session", "run_coroutine", "values_for_refs"]

HISTORY = 1000  # finished tasks that `%tasks` can still show, as with a supervisor
LOOK_EVERY = 0.005  # seconds between looks at a group whose block is open in another thread
MAX_RETRIES = 3  # for `retry_exceptions`, as with a supervisor

# The id of the task that this code belongs to. Not one variable for all: several threads may run tasks.
_running: contextvars.ContextVar[int] = contextvars.ContextVar("jupyter_tasks_in_place", default=0)
_replaced: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "jupyter_tasks_replaced", default=frozenset()
)


class Session:
    """Stands where the API has a supervisor's session."""

    def __init__(self, total: dict[str, float], arguments: dict[str, Any]) -> None:
        self.client = InPlaceClient(total)
        self.arguments = arguments  # what `init` was given, to tell a repeated call from a different one
        self.here = Here(self.client)

    def end(self) -> None:
        """No task comes any more. Values stay with their refs."""
        self.client.close()

    def clean(self) -> None:
        """There is nothing that could be left."""


class Here:
    """What `get_runtime_context()` asks a worker, asked here."""

    config: Mapping[str, Any] = {"gpus": []}  # no devices are given out

    def __init__(self, client: InPlaceClient) -> None:
        self._client = client

    @property
    def task_id(self) -> int:
        """The running task; 0 outside of one, and in threads that the task has started."""
        return _running.get()

    @property
    def replaced(self) -> frozenset[int]:
        """In a cell: ids of values that took the place of refs."""
        return _replaced.get()

    def task_facts(self) -> context.TaskFacts | None:
        """What the running task may know of itself."""
        task = self._client._live.get(_running.get())
        if task is None:
            return None
        if task.actor is not None:
            return task.actor.facts(task)
        function = self._client._functions[task.fn] if task.fn else None
        options = function.options if function is not None else {}
        return context.task_facts(options, function.call if function is not None else None, task.attempt, task.name)

    @property
    def host(self) -> _Actor | None:
        """The actor that this code runs in."""
        task = self._client._live.get(_running.get())
        return task.actor if task is not None else None

    @property
    def guard(self) -> Here:
        """The one who knows whether the task is to stop."""
        return self

    def is_canceled(self) -> bool:
        """Never: who could ask is the task itself."""
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What became of a task: stands in its ref's `_body`."""

    kind: int  # Kind.RESULT, ERROR or FAILURE
    body: bytes  # as the supervisor would send it
    buffers: Sequence[bytes] = ()
    refs: Mapping[int, ObjectRef] = field(default_factory=dict)  # those inside the value, which must live as long as it
    local: Any = None  # instead of a body, of a thread task: the value itself, in a tuple
    error: BaseException | None = None  # as it was raised here
    trace: TracebackType | None = None  # its frames in the task; raised once more, the error gets those of others, too

    def load(self, *, writable: bool, namespace: dict[str, Any] | None = None) -> Any:
        """A copy of the value."""
        if self.local is not None:
            data, copied = serialize.dumps(self.local[0], root="value")
            return serialize.loads(data, [bytes(buffer.raw()) for buffer in copied])
        buffers = [bytearray(each) for each in self.buffers] if writable else self.buffers
        return serialize.loads(self.body, buffers, namespace=namespace, originals=self.refs or None)


class _Task:
    """What `jt.tasks()` tells of one. Entered while it runs; who enters sets the state of its end."""

    def __init__(self, client: InPlaceClient, id: int, name: str, kind: str, fn: int = 0) -> None:
        self.id = id
        self.fn = fn  # 0 for a cell
        self.name = name
        self.kind = kind
        self.state = "running"
        self.attempt = 0
        self.group: _Group | None = None
        self.actor: _Actor | None = None  # while this runs: it is a call of that, or its constructor
        self.method = ""
        self.upstream_failed = False  # so it was not run
        self.submitted = time.time()
        self._client = client
        self._began = time.monotonic()
        self._elapsed: float | None = None
        self._skipped = False

    def __enter__(self) -> _Task:
        self._client._live[self.id] = self
        self._token = _running.set(self.id)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _running.reset(self._token)
        self.actor = None  # records keep no values
        self._elapsed = time.monotonic() - self._began
        if kind is not None:
            self.state = "cancelled"  # what is raised here is an interrupt, on its way to who submitted
        self._client._ended(self)
        if kind is not None:
            self._client._count(self, None)

    def record(self) -> dict[str, Any]:
        """With the same keys as a supervisor's."""
        record: dict[str, Any] = {
            "id": self.id,
            "task_id": show_id(self.id),
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "submitted": self.submitted,
            "waited_s": 0.0,
            "elapsed_s": time.monotonic() - self._began if self._elapsed is None else self._elapsed,
            "attempt": self.attempt,
            "waiting_for": [],
            "lingers": False,
            "kept": False,
        }
        if self.group is not None:
            record["group"] = self.group.name
        if self.state == "cancelled":
            record |= self.why_cancelled()
        return record

    def why_cancelled(self) -> dict[str, Any]:
        """By the stop button while it ran, or with its group before."""
        if self.group is not None and self._skipped:
            return {"source": "group", "rung": "pending", "reason": self.group.why}
        return {"source": "interrupt", "rung": "interrupt", "reason": ""}

    def skip(self) -> list[_Outcome]:
        """Its group was cancelled: it is over before it has begun."""
        self.state, self._skipped = "cancelled", True
        body = {"type": "cancelled", "seconds": 0.0, "task_id": show_id(self.id), "name": self.name}
        return [_Outcome(Kind.FAILURE, to_json(body | self.why_cancelled()))]

    def story(self) -> list[dict[str, Any]]:
        """What a supervisor would tell."""
        chapters = [{"at": self.submitted, "step": "submitted", "state": "pending", "source": "", "reason": ""}]
        if not (self._skipped or self.upstream_failed):
            chapters.append({**chapters[0], "step": "started", "state": "running"})
        if self._elapsed is not None:
            step = {"completed": "returned", "failed": "raised", "crashed": "died", "cancelled": "stopped"}[self.state]
            if self._skipped or self.upstream_failed:
                step = "asked" if self._skipped else f"upstream {self.state}"
            why = self.why_cancelled() if self.state == "cancelled" else {"source": "", "reason": ""}
            at = self.submitted + self._elapsed
            end = {"at": at, "step": step, "state": self.state, "source": why["source"], "reason": why["reason"]}
            chapters.append(end)
        return chapters


class _ActorRecord(_Task):
    """What is told of an actor, all its life and after."""

    def __init__(self, client: InPlaceClient, id: int, label: str, options: dict[str, Any], meta: dict[str, Any]):
        super().__init__(client, id, label, "actor")
        self.settings: dict[str, Any] = options["actor"]
        self.max_restarts: int = options["max_retries"]
        self.meta = meta  # of its class
        self.ready = False

    def record(self) -> dict[str, Any]:
        return {
            **super().record(),
            "class_name": self.meta["name"],
            "registered_name": self.settings["name"],
            "namespace": self.settings["namespace"],
            "life": "dead" if self.state != "running" else "alive" if self.ready else "pending",
            "restarts": 0,
            "max_restarts": self.max_restarts,
            "concurrency": self.settings["concurrency"],
            "asynchronous": self.meta["asynchronous"],
            "waiting_calls": 0,
            "pid": os.getpid() if self.state == "running" else None,
        }

    def end(self, state: str) -> None:
        """It is over."""
        self.state, self.ready, self.actor = state, False, None
        self._elapsed = time.monotonic() - self._began
        self._client._living.pop(self.id, None)
        self._client._ended(self)


class _Actor:
    """An actor. Nobody but its ref holds it, and who runs a call of it."""

    attempt = 0

    def __init__(
        self, record: _ActorRecord, function: execution._Function, options: dict[str, Any], *, shares: bool
    ) -> None:
        self.record = record
        self.id = record.id
        self.label = record.name
        self.settings = record.settings
        self.class_meta = record.meta
        self.function = function  # the class
        self.shares = shares  # arguments and results are the objects themselves
        self.instance: Any = None
        self.death: _Outcome | None = None  # that of all later calls
        self.was_killed = False  # then also of one that runs
        self.leaving = ""  # how, if by itself
        self._options = options

    def method_options(self, head: bytes, options: dict[str, Any] | None, label: str) -> tuple[str, dict[str, Any]]:
        """A method's name, and how this call of it is to be run."""
        method = self.class_meta["methods"][CALL_OF.unpack(head)[0]]
        whole = {
            "max_retries": self.settings["max_task_retries"],
            **method["options"],
            **(options or {}),
            "name": label,
        }
        return method["name"], {key: value for key, value in whole.items() if value is not None}

    def facts(self, task: _Task) -> context.TaskFacts:
        """What its code may know of itself."""
        cls = self.function.call
        return context.TaskFacts(
            name=task.name if task is not self.record else f"{self.label}.__init__",
            function_name=f"{cls.__module__}.{cls.__qualname__}.{task.method}",
            resources=context.task_facts({"cpus": 0, **self._options}, None, 0).resources,
            attempt=task.attempt,
        )

    def end(self, death: _Outcome, state: str) -> bool:
        """From now on every call raises this. False if it had ended before."""
        if self.death is not None:
            return False
        self.death, self.instance = death, None
        self.record.end(state)
        return True


class _Group(Group):
    """A group as the rules know it. Its members are final when they are counted, so it has no live ones."""

    __slots__ = ("errors", "members")

    def __init__(self, id: int, options: dict[str, Any]) -> None:
        auto, fail_fast = options.get("auto", False), options.get("fail_fast", False)
        super().__init__(id, 1, options["name"], auto=auto, fail_fast=fail_fast)
        self.created_at = time.monotonic()
        self.members: deque[_Task] = deque(maxlen=HISTORY)
        self.errors: list[ObjectRef] = []  # of `failed`: what `get` raises is kept as long as the group


class _Notes(dict[int, RefNote]):
    """The living refs, by their ids."""

    def __setitem__(self, key: int, note: RefNote) -> None:
        super().__setitem__(note.id, note)


class InPlaceClient(Client):
    """Does itself, and at once, what a `Client` asks a supervisor for. Made by `Session`.

    A Client for those who hold one; of its parts it has those that pack arguments. Nothing is ever sent.
    """

    def __init__(self, total: dict[str, float]) -> None:
        # Not Client's own: that is about a socket and a thread.
        self.client_id = 1
        self.settings = {"local_mode": True, "client_id": 1, "pid": os.getpid(), "total": total, "rungs": []}
        self.settings["mark"] = os.urandom(8).hex()
        self.namespace = None
        self.detached_actor = None
        self.is_buried = False
        self.listener = None
        self.on_lost = None
        self.parent = None
        self.closed = False
        self.failures = 0
        self.last_id = self.client_id << CLIENT_SHIFT
        self._ids = itertools.count(self.last_id + 1)
        self._function_ids = itertools.count(1)
        self._functions: dict[int, execution._Function] = {}
        self.notes = _Notes()
        self._dropped = deque()
        self.dropped = self._dropped.append
        self._live: dict[int, _Task] = {}
        self._history: deque[_Task] = deque(maxlen=HISTORY)
        self._threads = None
        self._living: dict[int, _ActorRecord] = {}  # those that live
        self._held_actors: weakref.WeakKeyDictionary[ObjectRef, _Actor] = weakref.WeakKeyDictionary()
        self._groups: dict[int, _Group] = {}  # those that somebody holds, or that are not final
        self._group_refs: dict[int, weakref.ref[ObjectRef]] = {}
        self._waiters_lock = threading.RLock()
        self._lock = threading.Lock()  # of the history and the groups

    # -- tasks ------------------------------------------------------------------------------------------------

    def learn(self, call: Callable[..., Any], options: dict[str, Any], extras: dict[str, Any]) -> int:
        """A function that tasks may be submitted of; returns the id that they name it by."""
        fn: int = next(self._function_ids)
        self._functions[fn] = execution._Function(call, options, extras.get("retry_exceptions", False))
        return fn

    def submit(
        self,
        fn: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any] | None = None,
        num_returns: int = 1,
        named: Callable[..., Mapping[str, Any]] | None = None,
    ) -> ObjectRef | list[ObjectRef]:
        """Runs a task of this function. Returns its refs, which are final.

        Raises:
            UnserializableError: an argument could not be sent to a worker.
            KeyboardInterrupt: the stop button was pressed, or the task's code has raised it: the task is cancelled.
        """
        __tracebackhide__ = True  # IPython's debugger passes over this frame
        # With options, so that plain arguments are packed as all others are.
        return super().submit(fn, args, kwargs, label, options or {}, num_returns, named)

    def submit_packed(
        self,
        kind: int,
        fn: int,
        payload: shared.Payload,
        label: str,
        options: dict[str, Any] | None,
        num_returns: int = 1,
        id: int | None = None,
        ref: ObjectRef | None = None,
        prefix: bytes = b"",
        made: list[_Outcome] | None = None,
    ) -> ObjectRef | list[ObjectRef]:
        """The same with arguments that are packed already. Of functions only: cells have `run_cell`.

        Args:
            made: gets the items of a generator task.
        """
        __tracebackhide__ = True
        data, buffers = _unpacked(payload)
        options = options or {}
        deps = {ref.id: ref for ref in map(self.hold, options.get("deps", ()))}
        task = _Task(self, self.new_ids(num_returns) if id is None else id, label, "function", fn)
        task.group = self._groups.get(options.get("group", 0))
        with task:
            outcomes = self._broken(task, deps.values())
            if outcomes is None:
                arguments = functools.partial(_arguments, data, buffers, deps)
                outcomes = self._run(task, self._functions[fn], arguments, made)
        refs = self._refs(task, outcomes, num_returns)
        return refs[0] if num_returns <= 1 else refs

    def submit_calls(
        self, fn: int, calls: Iterable[PackedCall], label: str, num_returns: int = 1, group: int = 0
    ) -> list[Any]:
        """Runs them, one after the other."""
        __tracebackhide__ = True
        return [
            self.submit_packed(Kind.TASK, fn, payload, label, {**(options or {}), "group": group}, num_returns)
            for payload, options in calls
        ]

    def submit_stream(
        self,
        fn: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any] | None = None,
        named: Callable[..., Mapping[str, Any]] | None = None,
        *,
        backpressure: bool = False,
    ) -> ObjectRefGenerator:
        """Runs a generator task to its end. Its items are there when it returns."""
        __tracebackhide__ = True
        made: list[_Outcome] = []
        payload, options = self._packed(args, kwargs, named, self.belonging(options))
        id = self.new_ids(1)
        completed = self.submit_packed(Kind.TASK, fn, payload, label, options, id=id, made=made)
        assert isinstance(completed, ObjectRef)
        return self._generator_of(completed, label, made)

    @property
    def threads(self) -> Any:
        """Who runs thread tasks: here it is us, too."""
        return _ThreadsHere(self)

    def submit_here(
        self,
        function: execution._Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
    ) -> ObjectRef | list[ObjectRef] | ObjectRefGenerator:
        """Runs a thread task: arguments and results are the objects themselves."""
        __tracebackhide__ = True
        num_returns = max(1, function.options.get("num_returns", 1))
        made: list[_Outcome] | None = [] if function.options.get("generator") == "streaming" else None
        deps = [arg for arg in (*args, *kwargs.values()) if type(arg) is ObjectRef]
        deps = [self.adopted(ref) for ref in deps]
        fn: int = next(self._function_ids)
        task = _Task(self, self.new_ids(num_returns), label, "function", fn)
        task.group = self._groups.get((self.belonging({}) or {}).get("group", 0))
        self._functions[fn] = function
        with task:
            outcomes = self._broken(task, deps)
            if outcomes is None:
                arguments = functools.partial(self._shared_arguments, args, kwargs)
                outcomes = self._run(task, function, arguments, made, _shared)
        del self._functions[fn]
        refs = self._refs(task, outcomes, num_returns)
        if made is not None:
            return self._generator_of(refs[0], label, made)
        return refs[0] if num_returns <= 1 else refs

    def _shared_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (
            tuple(arg._client.value(arg) if type(arg) is ObjectRef else arg for arg in args),
            {name: arg._client.value(arg) if type(arg) is ObjectRef else arg for name, arg in kwargs.items()},
        )

    def _generator_of(self, completed: ObjectRef, label: str, made: Sequence[_Outcome]) -> ObjectRefGenerator:
        generator = ObjectRefGenerator(self, completed)
        for place, outcome in enumerate(made):
            ref = ObjectRef(self, next(self._ids), f"{label}[{place}]")
            ref._task = completed.id
            self._settle(ref, outcome)
            generator._refs.append((place, ref))
        return generator

    def _run(
        self,
        task: _Task,
        function: execution._Function,
        arguments: Callable[[], Any],
        made: list[_Outcome] | None,
        stored: Callable[[Any, str], _Outcome] | None = None,
        exited: Callable[[_Task, SystemExit], _Outcome] | None = None,
    ) -> list[_Outcome]:
        """All attempts at a function task. Raises only what ends the cell or program that submits, too."""
        __tracebackhide__ = True
        stored = stored or self._stored
        most = function.options.get("max_retries", MAX_RETRIES)
        num_returns = function.options.get("num_returns")
        while True:
            try:
                args, kwargs = arguments()
                value = function.call(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value = run_coroutine(value)
                if made is not None:
                    self._collect(items.checked(value, function.options), made, stored)
                    value = None
                elif "generator" in function.options:
                    value = items.dynamic(items.checked(value, function.options), self.put, run_coroutine)
                elif num_returns is not None and items.is_generator(value):
                    value = items.collect(value, num_returns, run_coroutine)
            except BaseException as error:
                if _is_stop(error):
                    raise
                if isinstance(error, SystemExit):
                    return [(exited or _exited)(task, error)]
                if execution._wants_retry(function.retry_exceptions, error) and (most < 0 or task.attempt < most):
                    task.attempt += 1
                    continue
                return [_raised(task, error)]
            try:
                outcomes = [stored(each, "result") for each in items.results(value, num_returns)]
            except Exception as error:
                return [_raised(task, error)]
            task.state = "completed"
            return outcomes

    @staticmethod
    def _collect(generator: Any, made: list[_Outcome], stored: Callable[[Any, str], _Outcome]) -> None:
        """One attempt at a generator: adds the items that those before it have not made."""
        places = itertools.count()

        def take(item: Any) -> None:
            if (place := next(places)) >= len(made):
                made.append(stored(item, f"item {place}"))

        items.drive(generator, take, run_coroutine)

    def run_cell(
        self,
        label: str,
        call: Callable[[], tuple[Sequence[Any], dict[str, Any]]],
        num_returns: int = 1,
        needs: Iterable[ObjectRef] = (),
        group: int = 0,
    ) -> list[ObjectRef]:
        """A cell as a task. Its refs are final; those of a failed or cancelled one raise what `call` has raised.

        Args:
            call: runs the cell; returns its values, and the namespace that it ran in. Among the values a
                `NameError` stands for a name that the cell was to assign, and has not.
            needs: if one of these has failed, the cell fails in the same way, and is not run.
        """
        __tracebackhide__ = True
        task = _Task(self, self.new_ids(num_returns), label, "cell")
        task.group = self._groups.get(group)
        with task:
            outcomes = self._broken(task, needs)
            if outcomes is None:
                try:
                    values, namespace = call()
                except BaseException as error:
                    outcomes = [_stopped(task, error) if _is_stop(error) else _raised(task, error)]
                else:
                    task.state = "completed"
                    outcomes = [self._kept(task, value, namespace) for value in values]
        return self._refs(task, outcomes, num_returns)

    def _kept(self, task: _Task, value: Any, namespace: dict[str, Any]) -> _Outcome:
        """One value of a cell. One that cannot be sent is an error for who gets it, not for the cell."""
        try:
            if isinstance(value, NameError):
                raise value.with_traceback(None)
            return self._stored(value, "the cell's value", to="the notebook", namespace=namespace)
        except Exception as error:
            return _error_outcome(error)

    def _refs(self, task: _Task, outcomes: list[_Outcome], num_returns: int) -> list[ObjectRef]:
        """The refs of a task that is over. One outcome, of a failure, is for all of them."""
        self._forget_dropped()
        refs = [ObjectRef(self, task.id + i, task.name) for i in range(max(1, num_returns))]
        if len(outcomes) < len(refs):
            outcomes = outcomes * len(refs)
        for ref, outcome in zip(refs, outcomes, strict=True):
            self._settle(ref, outcome)
        self._count(task, refs[0])
        return refs

    def _settle(self, ref: ObjectRef, outcome: _Outcome) -> None:
        ref._body = outcome  # type: ignore[assignment]  # a supervisor's are bytes; nobody but this client looks
        ref._kind = outcome.kind

    @staticmethod
    def _broken(task: _Task, refs: Iterable[ObjectRef]) -> list[_Outcome] | None:
        """The outcome of a task that is not run, since its group was cancelled, or what it needs has failed."""
        if task.group is not None and task.group.cancel is not None:
            return task.skip()
        for ref in refs:
            if ref._kind != Kind.RESULT:
                outcome: Any = ref._body
                cancelled = outcome.kind == Kind.FAILURE and from_json(outcome.body)["type"] == "cancelled"
                task.state = "cancelled" if cancelled else "failed"
                task.upstream_failed = True
                return [outcome]
        return None

    # -- actors -----------------------------------------------------------------------------------------------

    def make_actor(
        self,
        fn: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
        named: Callable[..., Mapping[str, Any]] | None = None,
    ) -> ObjectRef:
        """Makes an instance, here and now. Its ref becomes final when the actor has ended."""
        __tracebackhide__ = True
        payload, whole = self._packed(args, kwargs, named, options)
        data, buffers = _unpacked(payload)
        deps = {ref.id: ref for ref in map(self.hold, (whole or {}).get("deps", ()))}
        arguments = functools.partial(_arguments, data, buffers, deps)
        return self._construct(self._functions[fn], arguments, label, options, deps.values())

    def make_actor_here(
        self,
        function: execution._Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
    ) -> ObjectRef:
        """The same with the objects themselves."""
        __tracebackhide__ = True
        deps = [self.adopted(arg) for arg in (*args, *kwargs.values()) if type(arg) is ObjectRef]
        arguments = functools.partial(self._shared_arguments, args, kwargs)
        return self._construct(function, arguments, label, options, deps, shares=True)

    def _construct(
        self,
        function: execution._Function,
        arguments: Callable[[], Any],
        label: str,
        options: dict[str, Any],
        needs: Iterable[ObjectRef],
        *,
        shares: bool = False,
    ) -> ObjectRef:
        __tracebackhide__ = True
        self._forget_dropped()
        record = _ActorRecord(self, self.new_ids(1), label, options, function.options["class"])
        actor = _Actor(record, function, options, shares=shares)
        ref = ObjectRef(self, record.id, label)
        ref._actor = record.id
        if record.settings["name"] and self._find_actor(record.settings["name"], record.settings["namespace"]):
            return ref  # who asks for it hears that it was not made
        self._held_actors[ref] = actor
        self._live[record.id] = self._living[record.id] = record
        broken = self._broken(record, needs)
        if broken is not None:
            self._end_actor(ref, actor, broken[0], broken[0])
            return ref
        record.actor, record.method = actor, "__init__"
        token = _running.set(record.id)
        try:
            args, kwargs = arguments()
            actor.instance = function.call(*args, **kwargs)
            if actor.leaving:
                raise actors.ActorExit
            record.ready = True
        except BaseException as error:
            if _leaves(error, actor):
                self._left(actor, record, error)
                return ref
            if _is_stop(error):
                self._end_actor(ref, actor, _died(actor, "its constructor was interrupted"), _stopped(record, error))
                raise
            unmade = _unmade(actor, error)
            self._end_actor(ref, actor, unmade, unmade)
        finally:
            _running.reset(token)
            record.actor = None
        return ref

    def _end_actor(self, ref: ObjectRef, actor: _Actor, death: _Outcome, outcome: _Outcome) -> None:
        """It does nothing any more; `outcome` is its own, `death` that of later calls."""
        if outcome.kind == Kind.RESULT:
            state = "completed"
        else:
            cancelled = outcome.kind == Kind.FAILURE and from_json(outcome.body)["type"] == "cancelled"
            state = "cancelled" if cancelled else "failed"
        if actor.end(death, state):
            self._settle(ref, outcome)

    def submit_call(
        self,
        actor: int,
        head: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any] | None = None,
        num_returns: int = 1,
        named: Callable[..., Mapping[str, Any]] | None = None,
        retry: Any = None,
        made: list[_Outcome] | None = None,
    ) -> ObjectRef | list[ObjectRef]:
        """Calls a method. Returns its refs, which are final.

        Args:
            made: gets the items of a generator.
        """
        __tracebackhide__ = True
        held = self._actor_of(actor)
        needs: Iterable[ObjectRef]
        if held.shares:
            needs = [self.adopted(arg) for arg in (*args, *kwargs.values()) if type(arg) is ObjectRef]
            arguments = functools.partial(self._shared_arguments, args, kwargs)
        else:
            payload, whole = self._packed(args, kwargs, named, self.belonging({}))
            data, buffers = _unpacked(payload)
            deps = {ref.id: ref for ref in map(self.hold, (whole or {}).get("deps", ()))}
            needs, arguments = deps.values(), functools.partial(_arguments, data, buffers, deps)
        method, of_call = held.method_options(head, options, label)
        task = _Task(self, self.new_ids(num_returns), label, "call")
        task.actor, task.method = held, method
        task.group = self._groups.get((self.belonging({}) or {}).get("group", 0))
        with task:
            outcomes = self._broken(task, needs) if held.death is None else self._refused(task, held.death)
            if outcomes is None:
                retries = (held.function.retry_exceptions or {}).get(method, False) if retry is None else retry
                function = execution._Function(getattr(held.instance, method), of_call, retries)
                stored = _shared if held.shares else None
                outcomes = self._run(task, function, arguments, made, stored, functools.partial(self._left, held))
            if held.leaving and held.death is None:  # its SystemExit was caught
                outcomes = [self._left(held, task, actors.ActorExit())]
            if held.was_killed and held.death is not None:
                outcomes = self._refused(task, held.death)
        refs = self._refs(task, outcomes, num_returns)
        for ref in refs:
            ref._actor = actor
        return refs[0] if num_returns <= 1 else refs

    def submit_call_stream(
        self,
        actor: int,
        head: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any] | None,
        named: Callable[..., Mapping[str, Any]] | None,
        retry: Any = None,
        *,
        backpressure: bool = False,
    ) -> ObjectRefGenerator:
        """The same for a method that is a generator, to its end."""
        __tracebackhide__ = True
        made: list[_Outcome] = []
        completed = self.submit_call(actor, head, args, kwargs, label, options, 1, named, retry, made)
        assert isinstance(completed, ObjectRef)
        return self._generator_of(completed, label, made)

    def _actor_of(self, id: int) -> _Actor:
        """Also one that has ended."""
        if self.closed:
            raise ObjectLostError("The session of this actor has ended, and the actor with it. Make a new one.")
        held = self._held_actors.get(self.hold(id))
        if held is None:  # asked by one that keeps it not alive: a handle from `current_actor`
            raise ActorDiedError(f"Actor {show_id(id)} has ended: the last handle to it was dropped. Make a new one.")
        return held

    @staticmethod
    def _refused(task: _Task, death: _Outcome) -> list[_Outcome]:
        task.state = "failed"
        return [death]

    def _left(self, actor: _Actor, task: _Task, error: SystemExit) -> _Outcome:
        """Its code has raised this."""
        if not _leaves(error, actor):
            return _raised(task, error)
        death = _died(actor, f"it has left, by {actors.how(error)}")
        self._end_actor(self.hold(actor.id), actor, death, _stored_none())
        if task is not actor.record:
            task.state = "failed"
        return death

    def say(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Of what is said to a supervisor there is one word left: an actor is to end."""
        _, kind, _, _, _, id = HEADER.unpack_from(data)
        assert kind == Kind.ACTOR_CLOSED
        actor = self._held_actors.get(ref := self.hold(id))
        if actor is not None:
            self._end_actor(ref, actor, _died(actor, "terminate() was called"), _stored_none())

    def _kill(self, id: int, reason: str) -> bool:
        actor = self._held_actors.get(ref := self.hold(id))
        if actor is not None and actor.death is None:
            actor.was_killed = True
            how = {"source": "user", "rung": "kill", "reason": reason, "seconds": 0.0, "force": True}
            body = {**how, "type": "cancelled", "task_id": show_id(id), "name": actor.label}
            self._end_actor(ref, actor, _died(actor, "it was killed"), _Outcome(Kind.FAILURE, to_json(body)))
        return True

    def _find_actor(self, name: str, namespace: str) -> dict[str, Any] | None:
        self._forget_dropped()
        for record in list(self._living.values()):
            if (record.settings["name"], record.settings["namespace"]) == (name, namespace):
                return {"id": record.id, "label": record.name, "class": record.meta}
        return None

    # -- values -----------------------------------------------------------------------------------------------

    def put(self, value: Any, *, root: str = "value") -> ObjectRef:
        """Keeps a copy of a value; returns its ref."""
        outcome = self._stored(value, root)
        self._forget_dropped()
        ref = ObjectRef(self, next(self._ids), "put")
        self._settle(ref, outcome)
        return ref

    def _stored(
        self, value: Any, root: str, to: str = "the kernel", namespace: dict[str, Any] | None = None
    ) -> _Outcome:
        found: list[ObjectRef] = []
        refs: dict[int, ObjectRef] = {}

        def note(each: object) -> Any:
            if type(each) is ObjectRef:
                self.leaves(each)
                refs[len(found)] = self.hold(each.id)  # `each` may be an actor's own, which keeps nothing alive
                found.append(each)
            return NotImplemented

        data, buffers = serialize.dumps(value, root=root, to=to, reducers=note, namespace=namespace)
        if refs:  # they travel as their places, and come back as themselves, also when this client is closed
            places = {id(ref): place for place, ref in enumerate(found)}
            data, buffers = serialize.dumps(value, root=root, to=to, known=places, namespace=namespace)
        return _Outcome(Kind.RESULT, data, [bytes(buffer.raw()) for buffer in buffers], refs)

    def value(
        self,
        ref: ObjectRef,
        originals: Mapping[int, Any] | None = None,
        namespace: dict[str, Any] | None = None,
    ) -> Any:
        """What a ref stands for: returns the value, or raises the task's error with the frames of its code.

        Args:
            namespace: what functions of a cell are bound to; default: the notebook's.
        """
        outcome: Any = ref._body
        if outcome.local is not None:
            return outcome.local[0]
        if outcome.kind == Kind.RESULT:
            return outcome.load(writable=True, namespace=namespace or self.namespace)
        error = self._error(outcome.kind, outcome.body, ref)
        if outcome.error is None:
            raise error
        # A debugger that looks at what `get` has raised finds the place where the task's code has raised its own.
        error.__cause__ = outcome.error.with_traceback(outcome.trace)
        raise error.with_traceback(outcome.trace)

    def adopted(self, ref: ObjectRef, *, only_wait: bool = False) -> ObjectRef:
        """The same, after it has waited for the ref of another session: nothing else happens here meanwhile."""
        client = ref._client
        if client is self or client.closed:
            self.leaves(ref)
            return ref
        known, key = several.elsewhere(ref), (self, only_wait)
        if key not in known:
            client.wait([ref])
            there = ObjectRef(self, next(self._ids), ref.label)
            is_value = ref._kind == Kind.RESULT
            value = self._stored(client.value(ref), "value") if is_value else _Outcome(ref._kind, ref._body or b"")
            self._settle(there, value)
            known[key] = there
        return known[key]

    def hold(self, id: int, *, actor: int = 0) -> ObjectRef:
        """The ref with this id, which has arrived inside a value."""
        note = self.notes.get(id)
        ref = note() if note is not None else None
        if ref is None:
            ref = ObjectRef(self, id)
            self._settle(ref, _Outcome(Kind.FAILURE, to_json({"type": "lost", "object_id": show_id(id)})))
        return ref

    def contains(self, id: int, inside: Iterable[int]) -> None:
        """A value holds the refs inside it."""

    def _forget_dropped(self) -> None:
        dropped, notes = self._dropped, self.notes
        while dropped:
            try:
                note = dropped.popleft()
            except IndexError:
                return  # another thread was faster
            is_last = notes.get(note.id) is note
            if is_last:
                notes.pop(note.id, None)
                self._groups.pop(note.id, None)
                if (actor := self._living.get(note.id)) is not None:
                    actor.end("completed")
                self._group_refs.pop(note.id, None)

    # -- waiting, which seldom takes long ----------------------------------------------------------------------

    def wait(
        self, refs: Sequence[Any], count: int | None = None, timeout: float | None = None, *, or_failed: bool = False
    ) -> bool:
        """Every ref of a task that anybody holds is final; one of a group may wait for a block in another thread."""
        end = None if timeout is None else time.monotonic() + timeout
        while sum(bool(ref._kind) for ref in refs) < (len(refs) if count is None else count):
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(LOOK_EVERY)
        return True

    def when_final(self, ref: Any, callback: Callable[[Any], None]) -> bool:
        """Calls `callback(ref)` at once, in this thread; for a group that is open, in the thread that ends it."""
        if not ref._kind:
            ref._callbacks = [*(ref._callbacks or ()), callback]
            return False
        try:
            callback(ref)
        except Exception:
            traceback.print_exc()
        return True

    def cancel(
        self,
        id: int,
        *,
        force: bool = False,
        recursive: bool = True,
        source: str = "user",
        reason: str = "",
        grace: float | None = None,
    ) -> None:
        """A group runs no further members. A task: what has a ref is over, what runs is for the stop button alone."""
        group = self._groups.get(id)
        if group is not None:
            self._cancel_group(group, Cancel(source, reason, time.monotonic(), None))

    def drain_events(self, timeout: float = 2.0) -> None:
        """There are none: what a task writes goes straight to its place."""

    # -- questions --------------------------------------------------------------------------------------------

    def request(self, op: str, timeout: float | None = 30.0, **arguments: Any) -> Any:
        """Answers as a supervisor would.

        Raises:
            NotImplementedError: a question that has no answer without one.
        """
        if op == "tasks":
            return self._tasks(arguments.get("ids"))
        if op == "status":
            return self._status()
        if op == "clear":
            return self._clear(arguments.get("ids"))
        if op == "warm":
            return True
        if op == "logs":
            return None  # what a task wrote is where it wrote it
        if op == "actors":
            return [task.record() for task in self._shown() if isinstance(task, _ActorRecord)]
        if op == "get_actor":
            return self._find_actor(arguments["name"], arguments["namespace"])
        if op == "actor_made":
            return self.hold(arguments["id"]) in self._held_actors
        if op == "kill":
            return self._kill(arguments["id"], arguments["reason"])
        if op == "groups":
            return self._groups_op(arguments.get("id"))
        if op == "story":
            return next((task.story() for task in self._shown() if task.id == arguments["id"]), None)
        raise NotImplementedError(f"{op!r} needs a supervisor, and with local_mode=True there is none.")

    def _tasks(self, wanted: Iterable[int] | None) -> dict[str, Any]:
        shown = self._shown()
        ids = None if wanted is None else set(wanted)
        records = [task.record() for task in shown if ids is None or task.id in ids]
        return {"tasks": records, "live": len(self._live)}

    def _shown(self) -> list[_Task]:
        """Live ones first."""
        self._forget_dropped()
        with self._lock:
            return [*self._live.values(), *self._history]

    def _status(self) -> dict[str, Any]:
        self._forget_dropped()
        total = self.settings["total"]
        return {
            "pid": os.getpid(),
            "local_mode": True,
            "total": total,
            "available": total,
            "live": len(self._live),
            "queued": 0,
            "objects": len(self.notes),
            "history": len(self._history),
            "workers": [],
            "idle": 0,
            "zygote": None,
        }

    def _clear(self, wanted: Iterable[int] | None) -> int:
        ids = None if wanted is None else set(wanted)
        with self._lock:
            before = len(self._history)
            kept = [task for task in self._history if ids is not None and task.id not in ids]
            self._history.clear()
            self._history.extend(kept)
            return before - len(kept)

    def _ended(self, task: _Task) -> None:
        with self._lock:
            self._live.pop(task.id, None)
            self._history.append(task)

    # -- groups -----------------------------------------------------------------------------------------------

    def make_group(self, options: dict[str, Any]) -> ObjectRef:
        """A group of tasks; its ref becomes final with it."""
        self._forget_dropped()
        ref = ObjectRef(self, next(self._ids), options["name"])
        group = _Group(ref.id, options)
        outer = self._groups.get(options.get("parent", 0))
        if outer is not None and not outer.kind:
            group.outer = outer
            outer.live[group.id] = None
        if outer is not None and outer.cancel is not None:  # also if it is over by now: its block may be open
            group.cancel = Cancel("group", outer.cancel.reason, group.created_at, None)
        self._groups[ref.id] = group
        self._group_refs[ref.id] = weakref.ref(ref)
        return ref

    def close_group(self, ref: ObjectRef) -> None:
        """Its block was left: it is final."""
        group = self._groups[ref.id]
        group.closed = True
        self._end_if_over(group)

    def _count(self, task: _Task, ref: ObjectRef | None) -> None:
        """A member has ended; `ref` is None if it was interrupted."""
        state = State(task.state)
        failed = state in (State.FAILED, State.CRASHED)
        for group in _chain(task.group):
            group.submitted += 1
            group.counts[state] = group.counts.get(state, 0) + 1
            group.members.append(task)
            if failed and ref is not None and not task.upstream_failed and len(group.failed) < MOST_FAILED:
                group.failed.append(task.id)
                group.errors.append(ref)
            if failed and group.fail_fast:
                self._cancel_group(group, Cancel("failure", f"{task.name} failed", time.monotonic(), None))
            self._tell_group(group)
        self._end_if_over(task.group)

    def _cancel_group(self, group: _Group, cancel: Cancel) -> None:
        if group.kind:
            return
        if group.cancel is None or (group.cancel.source == "failure" and cancel.source != "failure"):
            group.cancel = cancel
        for inner in [self._groups[id] for id in group.live if id in self._groups]:
            self._cancel_group(inner, Cancel("group", cancel.reason, cancel.asked_at, None))
        self._tell_group(group)
        self._end_if_over(group)

    def _end_if_over(self, group: _Group | None) -> None:
        for each in _chain(group):
            if not each.is_over or any(task.group is each for task in list(self._live.values())):
                return
            each.kind, each.ended_at = Kind.RESULT, time.monotonic()
            if each.outer is not None:
                each.outer.live.pop(each.id, None)
            note = self._group_refs.pop(each.id, None)
            ref = note() if note is not None else None
            if ref is not None:
                ref._body = to_json(each.record())
                ref._kind = Kind.RESULT
            self._tell_group(each)
            if ref is not None:
                self._call_back(ref)

    def _tell_group(self, group: _Group) -> None:
        if self.listener is not None:
            self.listener(Kind.EVENT, 0, group.id, to_json({"group": self._group_record(group)}))

    def _group_record(self, group: _Group) -> dict[str, Any]:
        running = sum(group in _chain(task.group) for task in list(self._live.values()))
        end = group.ended_at if group.ended_at is not None else time.monotonic()
        return {**group.record(), "id": group.id, "running": running, "elapsed_s": end - group.created_at}

    def _groups_op(self, id: int | None) -> Any:
        """One group with its members, or all that are not final."""
        if id is None:
            return [self._group_record(group) for group in list(self._groups.values()) if not group.kind]
        group = self._groups.get(id)
        if group is None:
            return None
        running = [task for task in list(self._live.values()) if group in _chain(task.group)]
        members = [task.record() for task in (*running, *group.members)]
        return {**self._group_record(group), "tasks": members}

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes no more tasks. May be called twice, also by a task."""
        self.closed = True

    hang_up = close

    def forget(self) -> None:
        """A forked child goes on in place; the lock may be held by a thread that did not come along."""
        self._lock = threading.Lock()
        self.settings["pid"] = os.getpid()

    def _send(self, data: bytes, fds: Iterable[int] = ()) -> None:
        raise NotImplementedError("With local_mode=True nothing is sent.")


def _chain(group: _Group | None) -> Iterator[_Group]:
    """The group, and those that it is in, from the inside out."""
    for each in group.chain() if group is not None else ():
        assert isinstance(each, _Group)
        yield each


def _shared(value: Any, _: str) -> _Outcome:
    return _Outcome(Kind.RESULT, b"", local=(value,))


class _ThreadsHere:
    """Stands where a client has its ThreadHost."""

    def __init__(self, client: InPlaceClient) -> None:
        self._client = client

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
        *,
        retry_exceptions: Any = False,
    ) -> ObjectRef | list[ObjectRef] | ObjectRefGenerator:
        """Runs it in this thread."""
        __tracebackhide__ = True
        known = execution._Function(function, options, retry_exceptions)
        return self._client.submit_here(known, args, kwargs, label)

    def make_actor(
        self,
        cls: type,
        retries: dict[str, Any],
        record: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
    ) -> ObjectRef:
        """An actor that shares our objects."""
        __tracebackhide__ = True
        known = execution._Function(cls, {"class": record}, retries)
        return self._client.make_actor_here(known, args, kwargs, label, options)

    def forget_actor(self, id: int) -> None:
        """Its ref is all there is of it."""


def _unpacked(payload: shared.Payload) -> tuple[bytes | memoryview, list[memoryview]]:
    try:
        return shared.unpack(payload.head, payload.fd, writable=False)
    finally:
        payload.close()


def _arguments(
    data: bytes | memoryview, buffers: list[memoryview], deps: Mapping[int, ObjectRef]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one attempt, of its own: with values in the place of refs, and arrays that are read-only."""
    args, kwargs = serialize.loads(data, buffers)
    if deps:
        args = tuple(_resolved(arg, deps) for arg in args)
        kwargs = {name: _resolved(arg, deps) for name, arg in kwargs.items()}
    return args, kwargs


def _resolved(arg: Any, deps: Mapping[int, ObjectRef]) -> Any:
    if type(arg) is not Dependency:
        return arg
    outcome: Any = deps[arg.id]._body
    return outcome.load(writable=False)


# -- ends that are no values ------------------------------------------------------------------------------------


def _is_stop(error: BaseException) -> bool:
    """The user wants all of it to stop: by the stop button, or by `q` in the debugger."""
    bdb = sys.modules.get("bdb")
    return isinstance(error, KeyboardInterrupt) or (bdb is not None and isinstance(error, bdb.BdbQuit))


def _raised(task: _Task, error: BaseException) -> _Outcome:
    task.state = "failed"
    return _error_outcome(error)


def _error_outcome(error: BaseException) -> _Outcome:
    # As a worker packs it: so `get` raises what it would raise there, also for an error that cannot be sent.
    body = execution._error_body((type(error), error, error.__traceback__))
    return _Outcome(Kind.ERROR, body, error=error, trace=_without_our_frames(error))


def _exited(task: _Task, error: SystemExit) -> _Outcome:
    """`sys.exit` in a function ends its worker; there is none, so it only says so."""
    task.state = "crashed"
    return _failure(task, error, {"type": "crashed", "exit_code": execution._exit_code(error), "signal_name": None})


def _stopped(task: _Task, error: BaseException) -> _Outcome:
    task.state = "cancelled"
    how = {"source": "interrupt", "rung": "interrupt", "reason": "", "seconds": 0.0}
    return _failure(task, error, {"type": "cancelled", **how})


def _leaves(error: BaseException, actor: _Actor) -> TypeGuard[SystemExit]:
    """What has been raised is the end of the actor. In a thread `sys.exit` is not: the process is not its own."""
    return isinstance(error, actors.ActorExit if actor.shares else SystemExit)


def _unmade(actor: _Actor, error: BaseException) -> _Outcome:
    """Its constructor has raised this."""
    body = actors.constructor_failed(actor.id, actor.label, error)[HEADER_SIZE:]
    return _Outcome(Kind.ERROR, body, error=error, trace=_without_our_frames(error))


def _died(actor: _Actor, why: str) -> _Outcome:
    record = {"type": "actor_died", "actor_id": show_id(actor.id), "actor": actor.label, "why": why}
    return _Outcome(Kind.FAILURE, to_json(record))


def _stored_none() -> _Outcome:
    data, _ = serialize.dumps(None, root="result")
    return _Outcome(Kind.RESULT, data)


def _failure(task: _Task, error: BaseException, record: dict[str, Any]) -> _Outcome:
    body = to_json({**record, "task_id": show_id(task.id), "name": task.name})
    return _Outcome(Kind.FAILURE, body, error=error, trace=_without_our_frames(error))


def _without_our_frames(error: BaseException) -> TracebackType | None:
    """A debugger then begins in the user's code, and not in what has called it."""
    return execution._own_frames_dropped(error.__traceback__)


@contextlib.contextmanager
def values_for_refs(ids: Iterable[int]) -> Iterator[None]:
    """In this `with` runs a cell in which the values with these ids took the place of refs: see `get`."""
    token = _replaced.set(frozenset(ids))
    try:
        yield
    finally:
        _replaced.reset(token)


# -- async functions --------------------------------------------------------------------------------------------


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs it to its end in this thread, also below a running event loop (a notebook's), which stands still meanwhile.

    In this thread and not in another, so that a debugger's prompt and the stop button reach it.
    """
    import asyncio

    outer = asyncio._get_running_loop()
    if outer is None:
        return asyncio.run(coroutine)
    task = asyncio.current_task(outer)
    if task is not None:
        asyncio.tasks._leave_task(outer, task)
    asyncio._set_running_loop(None)
    try:
        return asyncio.run(coroutine)
    finally:
        asyncio._set_running_loop(outer)
        asyncio.set_event_loop(outer)  # asyncio.run leaves none
        if task is not None:
            asyncio.tasks._enter_task(outer, task)
