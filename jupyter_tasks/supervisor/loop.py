"""The supervisor's loop: sockets, timers, signals and child exits in, instructions of the rules out.

One thread. It reads frames from clients, turns them into events, gives each to the scheduler and carries out the
instructions; it never unpickles anything and never waits for anybody. A client that does not read is sent to later.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import heapq
import itertools
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from jupyter_tasks.backends.local import LocalBackend
from jupyter_tasks.backends.threads import ThreadBackend
from jupyter_tasks.engine.actors import Actor, Call
from jupyter_tasks.engine.events import (
    CPU_UNITS,
    ActorClosed,
    ActorKilled,
    Announce,
    Answer,
    CancelAsked,
    ClientGone,
    CloseLease,
    Contains,
    Deliver,
    DeliverValue,
    Drop,
    EndActor,
    Entry,
    Event,
    Fetched,
    GroupClosed,
    GroupKept,
    GroupMade,
    GroupTold,
    Held,
    Instruction,
    Interrupt,
    ItemContains,
    Kill,
    Lease,
    Promise,
    Put,
    Recall,
    Released,
    Retire,
    RoomAsked,
    Run,
    Submitted,
    Taken,
    Task,
    TaskSpec,
    Terminate,
    ThreadsOffered,
    Tick,
    TooMuchMemory,
    Uploaded,
    thread_slots,
)
from jupyter_tasks.engine.groups import Group
from jupyter_tasks.engine.scheduler import HISTORY, Scheduler
from jupyter_tasks.engine.states import FINAL, State
from jupyter_tasks.supervisor import memory, platform
from jupyter_tasks.supervisor.tasklog import TaskLog
from jupyter_tasks.wire.frames import (
    CALL_OF,
    HEADER,
    HEADER_SIZE,
    PROTOCOL,
    Flag,
    Kind,
    frame,
    from_json,
    show_id,
    to_json,
)
from jupyter_tasks.wire.sockets import receive

if TYPE_CHECKING:
    from jupyter_tasks.supervisor.detachment import Detachment

__all__ = ["Supervisor"]

SEND = 1 << 18  # bytes joined to one send
BATCH = 16  # tasks parsed before the first of them may start: a burst must not delay its own beginning
MEMORY_EVERY = 0.01  # seconds between looks at tasks with a limit; a runaway was caught at 508 of 500 MB
TREE_EVERY = 0.2  # seconds between looks for new child processes of those
USAGE_EVERY = 1.0  # seconds between usage figures for the screen
FORGET_AFTER = 0.05  # seconds until a function that was dropped is forgotten
FORGET_EVERY = 1.0  # ... and between looks at those whose tasks have not ended
WAITING_AFTER = 0.05  # seconds after which a board says for what its task waits
WAITING_EVERY = 0.5  # seconds between looks at whether that has changed
HELD_BACK_EVERY = 1.0  # seconds: how late the last lines of too much output are shown
GROUPS_EVERY = 0.1  # seconds between figures of a group whose members come and go
RUNNING_EVERY = 0.5  # seconds between looks at whether other members of a group run than was told
STACK_PAUSE = 0.02  # seconds without a new line after which a stack is complete; it is written in a millisecond
STACK_LIMIT = 3.0  # seconds; a process that hangs in the disk or is stopped handles no signal
MOST_OPEN_LOGS = 50  # descriptors; many tasks write a line or two, few write at the same time
LONGEST_SLEEP = 3600.0  # seconds; epoll takes no more than 24 days, and a grace period may be a year
REST_EVERY = 1.0  # seconds between looks at whether the tasks that a detached one has left are over
END_EVERY = 0.002  # seconds between looks at whether all tasks are killed
END_LIMIT = 2.0  # seconds after which a supervisor that is to end does not wait for that any more
LOST_FRAME_LIMIT = 1 << 28  # bytes of one frame; more is not one of ours

_SPEC_AS_IT_IS = frozenset(
    {"name", "kind", "timeout", "grace", "memory", "max_retries", "num_returns", "retry_delay", "retry_backoff"}
)
_CALL_AT = CALL_OF.unpack_from
_SPEC_FIELDS = _SPEC_AS_IT_IS | {"cpus", "gpus", "resources", "announce", "generator"}


class _Client:
    """One connection: the kernel's, a worker's, or a command line's."""

    __slots__ = ("fds", "id", "inbox", "known", "out", "sock", "worker")

    def __init__(self, sock: socket.socket, id: int) -> None:
        self.sock = sock
        self.id = id
        self.known = False  # it has said a HELLO that we accept
        self.worker = 0  # number of the worker that it is
        self.inbox = b""
        self.fds: deque[int] = deque()
        self.out: deque[tuple[bytes, tuple[int, ...]]] = deque()  # what its socket had no room for


class _Class:
    """What is known of a class that actors are made of."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta  # as its handles have it
        self._specs: dict[tuple[str, int, bool], list[TaskSpec]] = {}

    def specs(self, label: str, retries: int, thread: bool) -> list[TaskSpec]:
        """How calls of its methods are run, for an actor with this name and `max_task_retries`."""
        key = (label, retries, thread)
        if key not in self._specs:
            base = TaskSpec(kind="call", demand=(), max_retries=retries, thread=thread)
            self._specs[key] = [
                _spec({**method["options"], "name": f"{label}.{method['name']}"}, base)
                for method in self.meta["methods"]
            ]
        return self._specs[key]


class Supervisor:
    """See the module's text. `run` never returns."""

    def __init__(self, kernel: socket.socket, config: dict[str, Any], backend: LocalBackend) -> None:
        self._config = config
        self._dir: str = config["directory"]
        self._poll = platform.new_poll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._events: deque[Event] = deque()
        self._functions: dict[int, tuple[bytes, tuple[int, ...], TaskSpec]] = {}
        self._unwanted: set[int] = set()  # functions that are to be forgotten when no task of theirs is left
        self._classes: dict[int, _Class] = {}  # by the function that makes an instance
        self._clients: dict[int, _Client] = {}
        self._detachment = _detachment(config) if "detached" in config else None
        # 1: the kernel. A detached one's are its own: one process may know many, and ids tell their tasks apart.
        self._client_ids = itertools.count(1 if self._detachment is None else os.getpid())
        self._worker_clients: dict[int, _Client] = {}  # by the worker's number
        self._running_told: dict[int, int] = {}  # live groups: how many members run, as was told last
        self._changed_groups: dict[int, Group] = {}  # whose figures are not told yet
        self._last_options: tuple[bytes, dict[str, Any]] = (b"", {})
        self._logs: dict[int, TaskLog] = {}
        self._open_logs: deque[TaskLog] = deque()
        self._held_back: set[int] = set()
        self._limited: dict[int, tuple[Task, list[int], float]] = {}
        self._usage: dict[int, dict[str, float]] = {}  # watched running tasks: processor seconds, memory, peak
        self._cpu_before: dict[int, float] = {}
        self._usage_planned = False
        self._waiting: dict[int, Any] = {}  # watched tasks that have not begun, and what was last told of why
        self._signals = self._take_signals()
        self._backend = backend
        self._backend.start(self, config)
        self._threads = ThreadBackend(self, self._say)
        total = {name: round(amount * CPU_UNITS) for name, amount in config["total"].items()}
        self._scheduler = Scheduler(total, self._backend.capabilities)
        self._do: dict[type, Callable[[Any], None]] = {
            Run: self._run,
            CloseLease: lambda i: self._backend.close(i.lease),
            Recall: lambda i: self._backend_of(i.lease).recall(i.lease, i.id),
            Interrupt: lambda i: (self._threads if i.task.spec.thread else self._backend).interrupt(i.task),
            Terminate: lambda i: self._backend.terminate(i.task),
            Kill: lambda i: self._backend.kill(i.task),
            Retire: lambda i: self._backend_of(i.lease).retire(i.lease),
            EndActor: lambda i: self._backend_of(i.lease).end_actor(i.lease),
            Deliver: self._deliver,
            DeliverValue: self._deliver_value,
            Announce: self._announce,
            GroupTold: self._group_told,
            Drop: lambda i: _close_all(i.fds),
            Answer: self._answer,
        }
        self._ask: dict[str, Callable[[dict[str, Any]], Any]] = {
            "tasks": self._tasks_op,
            "logs": self._logs_op,
            "clear": self._clear_op,
            "status": self._status_op,
            "warm": self._warm_op,
            "answer": self._answer_op,
            "debug": self._debug_op,
            "story": self._story_op,
            "groups": self._groups_op,
            "item_contains": self._item_contains_op,
            "actors": self._actors_op,
            "get_actor": self._get_actor_op,
            "actor_made": lambda question: isinstance(self._scheduler.objects.get(question["id"]), Actor),
            "keep": self._keep_op,
            "kept": self._kept_op,
            "end": self._end_op,
        }
        self._ask_later: dict[str, Callable[[_Client, int, dict[str, Any]], None]] = {
            "input": self._pass_on,
            "stack": self._stack,
            "room": self._room_asked,
            "kill": self._kill,
            "attach": self._attach,
            "epitaph": self._epitaph_asked,
        }
        self._mourners: list[tuple[int, int]] = []  # client and request: to be told how a detached actor ends
        self._questions: dict[int, tuple[int, int, int]] = {}  # input() of tasks: client and request, task
        self._listen()
        self._kernel = self._new_client(kernel)
        self._kernel.known = True
        refusal = self._detachment.claim() if self._detachment is not None else ""
        if refusal:
            self._send(self._kernel, frame(Kind.HELLO, 0, to_json({"refused": refusal})))
            self.shutdown()
        self._welcome(self._kernel)
        if self._detachment is not None:
            return
        pidfd = platform.watch_process(config["kernel_pid"])
        if pidfd is not None:
            self.watch(pidfd, lambda _: self.shutdown())

    def _take_signals(self) -> int:
        """SIGCHLD wakes the loop through a pipe; SIGTERM ends us in order; a stop button is none of our business."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.watch(read, self._signalled)
        return read

    def _signalled(self, _: int) -> None:
        numbers = os.read(self._signals, 4096)
        if signal.SIGTERM in numbers:
            self.shutdown()
        self._backend.reap()

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Serves until the kernel is gone."""
        self._pump()
        while True:
            for fd, events in self._poll.poll(self._patience()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback(events)
                if self._events:
                    self._pump()
            self._call_due()
            if self._events:
                self._pump()

    def _patience(self) -> float | None:
        """How long poll may sleep: seconds for epoll, milliseconds for poll; None: for ever."""
        when = self._calls[0][0] if self._calls else None
        timer = self._scheduler.next_timer()
        if timer is not None and (when is None or timer < when):
            when = timer
        if when is None:
            return None
        rest = min(max(0.0, when - time.monotonic()), LONGEST_SLEEP)
        return rest if hasattr(select, "epoll") else rest * 1000

    def _call_due(self) -> None:
        now = time.monotonic()
        while self._calls and self._calls[0][0] <= now:
            heapq.heappop(self._calls)[2]()
        timer = self._scheduler.next_timer()
        if timer is not None and timer <= now:
            self._events.append(Tick())

    def _pump(self) -> None:
        """Every event through the rules, and what follows from it."""
        events, handle, do = self._events, self._scheduler.handle, self._do
        while events:
            instructions: Sequence[Instruction] = handle(events.popleft(), time.monotonic())
            for instruction in instructions:
                do[type(instruction)](instruction)

    # -- what the backend is offered (backends.abc.Host) ------------------------------------------------------

    def post(self, event: Event) -> None:
        """See Host."""
        self._events.append(event)

    def watch(self, fd: int, callback: Callable[[int], object]) -> None:
        """See Host."""
        self._callbacks[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        """See Host."""
        if fd in self._callbacks:
            self._poll.modify(fd, select.POLLIN | select.POLLOUT if wanted else select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """See Host."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """See Host."""
        self._count += 1
        heapq.heappush(self._calls, (when, self._count, callback))

    def now(self) -> float:
        """See Host."""
        return time.monotonic()

    def function_frame(self, fn: int) -> tuple[bytes, tuple[int, ...]]:
        """See Host."""
        code, fds, _ = self._functions[fn]
        return code, fds

    def object_frame(self, id: int) -> tuple[bytes, tuple[int, ...]]:
        """See Host."""
        entry = self._scheduler.objects[id]
        return entry.frame, entry.fds

    def hear_out(self, worker: int) -> None:
        """See Host."""
        client = self._worker_clients.get(worker)
        while client is not None and client.id in self._clients and self._client_says(client, select.POLLIN):
            pass

    def told(self, kind: int, flags: int, id: int, body: bytes, fds: Sequence[int]) -> None:
        """See Host."""
        task = self._scheduler.find(id)
        if task is None:
            return
        if self._detachment is not None and task.owner == self._kernel.id:
            self._detachment.note(kind, body, fds)
        for client in self._hearers(task):
            self._send(client, frame(kind, id, body, flags=flags, fds=len(fds)), tuple(fds))

    def _hearers(self, task: Task) -> Iterator[_Client]:
        """Whoever is told of the task: its owner, and of a detached one those that have attached."""
        ids = {task.owner}
        if self._detachment is not None and task.owner == self._kernel.id:
            ids |= self._detachment.listeners
        for id in ids:
            if id in self._clients:
                yield self._clients[id]

    def changed(self, id: int) -> None:
        """See Host."""
        task = self._scheduler.find(id)
        if task is not None and task.spec.watched:
            self._announce(Announce(task))

    def wrote(self, id: int, data: bytes, *, stderr: bool) -> None:
        """See Host."""
        log = self._logs.get(id)
        if log is None:
            path = os.path.join(self._dir, f"{show_id(id)}.log")
            log = self._logs[id] = TaskLog(path, show_id(id))
            if len(self._logs) > HISTORY:
                self._forget_old_logs()
        if not log.is_open:
            self._open_logs.append(log)
            if len(self._open_logs) > MOST_OPEN_LOGS:
                self._open_logs.popleft().close()  # opened again when its task writes again
        pieces = log.write(data, time.monotonic(), stderr=stderr)
        self._show(id, pieces)
        if not pieces and not self._held_back:
            self.call_at(time.monotonic() + HELD_BACK_EVERY, self._show_held_back)
        if not pieces:
            self._held_back.add(id)

    # -- output -----------------------------------------------------------------------------------------------

    def _show(self, id: int, pieces: Sequence[tuple[bytes, bool]]) -> None:
        if not pieces:
            return
        task = self._scheduler.find(id)
        if task is None:
            return
        hearers = list(self._hearers(task))
        for data, stderr in pieces:
            if self._detachment is not None and task.owner == self._kernel.id:
                self._detachment.journal.take_text(data, stderr=stderr)
            for client in hearers:
                self._send(client, frame(Kind.OUTPUT, id, data, flags=Flag.STDERR if stderr else 0))

    def _show_rest(self, id: int) -> None:
        """The task has ended: what was held back comes before the word that says so."""
        if id in self._held_back:
            self._held_back.discard(id)
            self._show(id, self._logs[id].rest())

    def _show_held_back(self) -> None:
        ids, self._held_back = self._held_back, set()
        for id in ids:
            if id in self._logs:
                self._show(id, self._logs[id].rest())

    def _forget_old_logs(self) -> None:
        for id in list(self._logs)[: HISTORY // 4]:
            if id not in self._scheduler.live:
                self._logs.pop(id).remove()

    # -- clients ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Where workers, the command line and a restarted kernel find us: in a directory of this user alone."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(self._config["socket"])
        os.chmod(self._config["socket"], 0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self.watch(self._listener.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:
            return
        self._new_client(sock)

    def _new_client(self, sock: socket.socket) -> _Client:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        client = _Client(sock, next(self._client_ids))
        self._clients[client.id] = client
        self.watch(sock.fileno(), functools.partial(self._client_says, client))
        return client

    def _welcome(self, client: _Client) -> None:
        welcome = {
            "client_id": client.id,
            "pid": os.getpid(),
            "protocol": PROTOCOL,
            "total": self._config["total"],
            "socket": self._config["socket"],
            "directory": self._dir,
            "mark": self._config.get("mark", ""),
            "rungs": sorted(self._backend.capabilities.rungs),
        }
        self._send(client, frame(Kind.HELLO, 0, to_json(welcome)))

    def _client_says(self, client: _Client, events: int) -> bool:
        """Takes in what there is. False if there was nothing."""
        if events & select.POLLOUT:
            self._send_waiting(client)
        if not events & ~select.POLLOUT:
            return False
        try:
            data, fds = receive(client.sock)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if not data:
            self._client_gone(client)
            return False
        client.fds.extend(fds)
        try:
            self._take_in(client, client.inbox + data if client.inbox else data)
        except (ValueError, KeyError, TypeError) as error:
            # Not one of our frames: whoever this is, the others must not suffer.
            print(f"jupyter_tasks: client {client.id} dropped: {error!r}", file=sys.stderr, flush=True)
            self._client_gone(client)
        return True

    def _client_gone(self, client: _Client) -> None:
        detachment = self._detachment
        if client is self._kernel and (detachment is None or detachment.kept is None):
            self.shutdown()
        if detachment is not None:
            detachment.listeners.discard(client.id)
        if self._clients.pop(client.id, None) is None:
            return
        self._worker_clients.pop(client.worker, None)
        self.unwatch(client.sock.fileno())
        client.sock.close()
        _close_all(client.fds)
        for _, fds in client.out:
            _close_all(fds)
        if client.known:
            self._threads.client_gone(client.id)
            self._questions = {serial: asked for serial, asked in self._questions.items() if asked[0] != client.id}
            self._events.append(ClientGone(client.id))

    def _take_in(self, client: _Client, data: bytes) -> None:
        at, end = 0, len(data)
        tasks: list[Task] = []
        unpack = HEADER.unpack_from
        functions = self._functions
        owner = client.id
        while end - at >= HEADER_SIZE:
            size, kind, flags, nfds, fn, id = unpack(data, at)
            stop = at + HEADER_SIZE + size
            if stop > end:
                if size > LOST_FRAME_LIMIT:
                    raise ValueError(f"a frame of {size} bytes")
                break
            if kind == Kind.TASK and client.known:
                if not flags and not nfds:
                    spec = functions[fn][2]
                    tasks.append(Task(id, owner, fn, spec, data[at:stop], True))
                else:
                    task = self._task(client, data[at:stop], flags, nfds, fn, id)
                    if isinstance(task, Actor):  # what comes next may be calls of it
                        self._events.append(Submitted([*tasks, task]))
                        tasks = []
                        self._pump()
                    elif task is not None:
                        tasks.append(task)
                if len(tasks) >= BATCH:
                    self._events.append(Submitted(tasks))
                    tasks = []
                    self._pump()
            elif kind == Kind.CALL and client.known:
                tasks.append(self._call(client, data[at:stop], flags, nfds, fn, id))
                if len(tasks) >= BATCH:
                    self._events.append(Submitted(tasks))
                    tasks = []
                    self._pump()
            else:
                if tasks:
                    self._events.append(Submitted(tasks))
                    tasks = []
                self._other_word(client, kind, flags, nfds, fn, id, data[at:stop])
            at = stop
        if tasks:
            self._events.append(Submitted(tasks))
        client.inbox = data[at:] if at < end else b""

    def _task(self, client: _Client, call: bytes, flags: int, nfds: int, fn: int, id: int) -> Task | None:
        """A task with options or shared memory; None: an actor whose name is taken."""
        options: dict[str, Any] = {}
        if flags & Flag.OPTIONS:
            options, rest = self._split(call)
            if "plain" in options and not nfds:  # its group is for us alone: the worker gets a task like any other
                task = Task(id, client.id, fn, self._functions[fn][2], frame(Kind.TASK, id, call[rest:], fn=fn), True)
                task.group_id = options["group"]
                return task
            if "pins" in options:
                call = _without_pins(call, options, rest)
            if "actor" in options:
                return self._actor(client, call, fn, id, options, nfds)
        base = self._functions[fn][2] if fn else _FUNCTION if "threads" in options else _CELL
        spec = _spec(options, base) if not _SPEC_FIELDS.isdisjoint(options) else base
        if "threads" in options:
            slot = thread_slots(client.id)
            if slot not in self._scheduler.total:
                self._events.append(ThreadsOffered(client.id, options["threads"]))
            changes = {"thread": True, "interruptible": options.get("interruptible", False)}
            spec = dataclasses.replace(spec, demand=tuple(sorted((*spec.demand, (slot, CPU_UNITS)))), **changes)
        task = Task(id, client.id, fn, spec, call, False)
        self._belongs(client, task, options, nfds)
        if spec.watched:
            if not self._waiting:
                self.call_at(time.monotonic() + WAITING_AFTER, self._tell_waiting)
            self._waiting[id] = None
        return task

    @staticmethod
    def _belongs(client: _Client, task: Task, options: dict[str, Any], nfds: int) -> None:
        task.deps = tuple(options.get("deps", ()))
        task.pins = tuple(options.get("pins", ()))
        task.parent = options.get("parent", 0)
        task.group_id = options.get("group", 0)
        task.call_fds = tuple(client.fds.popleft() for _ in range(nfds))

    def _call(self, client: _Client, call: bytes, flags: int, nfds: int, fn: int, id: int) -> Task:
        """A call of an actor's method."""
        actor = self._scheduler.objects.get(fn)
        if not isinstance(actor, Actor):  # everybody who can call one holds it: one that is no more ever was
            task = Task(id, client.id, 0, _FUNCTION, call, False)
            task.deps = (fn,)
            task.call_fds = tuple(client.fds.popleft() for _ in range(nfds))
            return task
        if not flags:
            task = Call(id, client.id, actor, _CALL_AT(call, HEADER_SIZE)[0], call, not nfds)
            if nfds:
                task.call_fds = tuple(client.fds.popleft() for _ in range(nfds))
            return task
        options, rest = self._split(call)
        method = _CALL_AT(call, rest)[0]
        base = actor.methods[method]
        spec = _spec(options, base) if not _SPEC_FIELDS.isdisjoint(options) else base
        if "pins" in options:
            call = _without_pins(call, options, rest)
        task = Call(id, client.id, actor, method, call, False, spec)
        self._belongs(client, task, options, nfds)
        return task

    def _actor(
        self, client: _Client, call: bytes, fn: int, id: int, options: dict[str, Any], nfds: int
    ) -> Actor | None:
        """An actor that is to be made; None if its name is taken: its client asks for that."""
        of, facts = self._classes[fn], options["actor"]
        label = options["name"]
        spec = dataclasses.replace(_spec(options, _ACTOR), thread="threads" in options)
        actor = Actor(
            *(id, client.id, fn, spec, call),
            class_name=of.meta["name"],
            methods=of.specs(label, facts["max_task_retries"], spec.thread),
            concurrency=facts["concurrency"],
            asynchronous=of.meta["asynchronous"],
            name=facts["name"],
            namespace=facts["namespace"],
        )
        self._belongs(client, actor, options, nfds)
        if self._scheduler.actors.take_name(actor):
            return actor
        _close_all(actor.call_fds)
        return None

    def _split(self, call: bytes) -> tuple[dict[str, Any], int]:
        """The options of a TASK or CALL, and where the rest of it begins."""
        start = HEADER_SIZE + 4
        rest = start + int.from_bytes(call[HEADER_SIZE:start], "little")
        return self._options_in(call[start:rest]), rest

    def _options_in(self, text: bytes) -> dict[str, Any]:
        """The options of a task; nobody changes them. Those of a burst are all the same."""
        if text != self._last_options[0]:
            self._last_options = text, from_json(text)
        return self._last_options[1]

    def _other_word(self, client: _Client, kind: int, flags: int, nfds: int, fn: int, id: int, whole: bytes) -> None:
        body = whole[HEADER_SIZE:]
        fds = tuple(client.fds.popleft() for _ in range(nfds))
        if not client.known:
            if kind != Kind.HELLO:
                raise ValueError("it did not say HELLO first")
            self._hello(client, from_json(body))
        elif kind == Kind.CANCEL:
            self._events.append(CancelAsked(id, **from_json(body)))
        elif kind == Kind.RELEASE:
            self._events.append(Released(client.id, array.array("Q", body)))
        elif kind == Kind.HOLD:
            ids = array.array("Q", body)
            self._events.append(Contains(id, ids) if id else Held(client.id, ids))
        elif kind == Kind.FETCH:
            self._events.append(Fetched(client.id, id, fn))
        elif kind == Kind.TAKEN:
            self._events.append(Taken(client.id, id, fn))
        elif kind == Kind.FUNCTION:
            length = int.from_bytes(body[:4], "little")
            options = from_json(body[4 : 4 + length])
            self._functions[fn] = (whole, fds, _spec(options, _FUNCTION))
            if "class" in options:
                self._classes[fn] = _Class(options["class"])
        elif kind == Kind.PUT:
            if flags & Flag.LATER:
                self._events.append(Put(Promise(id, client.id, body.decode())))
                return
            entry = Entry(id, client.id)
            entry.kind = fn or Kind.RESULT
            entry.frame = frame(entry.kind, id, body, fds=len(fds))
            entry.fds = fds
            self._events.append(Put(entry))
        elif kind in _SAID_BY_HOSTS:
            if self._threads.heard(client.id, kind, flags, fn, id, whole, fds):
                return
            if kind == Kind.RESULT:
                self._events.append(Uploaded(client.id, id, whole, fds))
            else:
                _close_all(fds)  # of a task that is over
        elif kind == Kind.FORGET_CODE:
            if not self._unwanted:
                self.call_at(time.monotonic() + FORGET_AFTER, self._forget_code)
            self._unwanted.add(fn)
        elif kind == Kind.ACTOR_CLOSED:
            self._events.append(ActorClosed(id))
        elif kind == Kind.EXIT:
            self._threads.actor_exits(client.id, id, flags, body.decode())
        elif kind == Kind.GROUP:
            self._events.append(self._group(client, id, from_json(body)) if body else GroupClosed(id))
        elif kind == Kind.GROUP_COMPLETE:
            self._events.append(GroupKept(id, False))
        elif kind == Kind.REQUEST:
            self._pump()  # an answer must not be older than what the same client said before
            question = from_json(body)
            if question["op"] in self._ask_later:
                self._ask_later[question["op"]](client, id, question)
                return
            answer = self._ask[question["op"]](question)
            self._send(client, frame(Kind.REPLY, id, to_json(answer)))

    def _forget_code(self) -> None:
        """Of functions that nobody can make tasks of, and that no task needs: they may hold refs, and so values."""
        needed = {task.fn for task in self._scheduler.live.values()}
        for fn in self._unwanted - needed:
            _, fds, _ = self._functions.pop(fn, (b"", (), _FUNCTION))
            _close_all(fds)
            self._classes.pop(fn, None)
            self._scheduler.forget_function(fn)
            self._backend.forget_function(fn)
        self._unwanted &= needed
        if self._unwanted:
            self.call_at(time.monotonic() + FORGET_EVERY, self._forget_code)

    def _group(self, client: _Client, id: int, options: dict[str, Any]) -> GroupMade:
        if not self._running_told:
            self.call_at(time.monotonic() + RUNNING_EVERY, self._tell_running)
        self._running_told[id] = 0
        group = Group(
            *(id, client.id, options["name"]),
            grace=options.get("grace"),
            fail_fast=options.get("fail_fast", False),
            auto=options.get("auto", False),
        )
        return GroupMade(group, options.get("task", 0), options.get("parent", 0))

    def _hello(self, client: _Client, hello: dict[str, Any]) -> None:
        """A connection through the listening socket: who knows the key, and speaks as we do, is let in."""
        import hmac  # 4 ms that a cold start can do without

        key = str(hello.get("key", ""))
        if not hmac.compare_digest(key.encode(), self._config["key"].encode()):
            refusal = "The key is wrong: this supervisor belongs to another session."
        elif hello.get("protocol") != PROTOCOL:
            refusal = (
                f"The supervisor speaks protocol {PROTOCOL}, you speak {hello.get('protocol')}: restart the kernel, "
                "so that both run the same version of jupyter_tasks."
            )
        else:
            client.known = True
            if hello.get("worker"):
                client.worker = hello["worker"]
                self._worker_clients[client.worker] = client
            self._welcome(client)
            return
        self._send(client, frame(Kind.HELLO, 0, to_json({"refused": refusal})))
        raise ValueError(refusal)

    def _send(self, client: _Client, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Sends, or keeps for later what there is no room for; never waits."""
        if not client.out:
            sent = self._try_to_send(client, data, fds)
            if sent == len(data):
                return
            data = data[sent:]
            if sent:
                fds = ()  # descriptors go with the first byte
            self.watch_writable(client.sock.fileno(), True)
        client.out.append((data, tuple(os.dup(fd) for fd in fds)))

    @staticmethod
    def _try_to_send(client: _Client, data: bytes, fds: tuple[int, ...]) -> int:
        """How many bytes have gone; all of them for one that is gone itself: its end-of-file is on the way."""
        try:
            return socket.send_fds(client.sock, [data], list(fds)) if fds else client.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _send_waiting(self, client: _Client) -> None:
        while client.out:
            data, fds = self._next_out(client)
            sent = self._try_to_send(client, data, fds)
            if sent:
                _close_all(fds)
                fds = ()
            if sent < len(data):
                client.out[0] = (data[sent:], fds)
                return
            client.out.popleft()
        self.watch_writable(client.sock.fileno(), False)

    @staticmethod
    def _next_out(client: _Client) -> tuple[bytes, tuple[int, ...]]:
        """The next piece; many small ones without descriptors become one."""
        data, fds = client.out[0]
        if fds or len(client.out) == 1 or len(data) > SEND:
            return data, fds
        parts = []
        size = 0
        while client.out and not client.out[0][1] and size < SEND:
            part, _ = client.out.popleft()
            parts.append(part)
            size += len(part)
        data = b"".join(parts)
        client.out.appendleft((data, ()))
        return data, ()

    # -- instructions -----------------------------------------------------------------------------------------

    def _deliver(self, instruction: Deliver) -> None:
        client = self._clients.get(instruction.client)
        if self._held_back:
            for outcome in instruction.frames:
                id = int.from_bytes(outcome[HEADER_SIZE - 8 : HEADER_SIZE], sys.byteorder)
                self._show_rest(id)
        if client is not None:
            frames = instruction.frames
            self._send(client, b"".join(frames) if len(frames) > 1 else frames[0])

    def _deliver_value(self, instruction: DeliverValue) -> None:
        client = self._clients.get(instruction.client)
        if client is not None:
            outcome = instruction.frame
            if instruction.serial:
                size, kind, flags, nfds, _, id = HEADER.unpack_from(outcome)
                outcome = HEADER.pack(size, kind, flags, nfds, instruction.serial, id) + outcome[HEADER_SIZE:]
            self._send(client, outcome, instruction.fds)

    def _answer(self, instruction: Answer) -> None:
        self._say(instruction.client, frame(Kind.REPLY, instruction.serial, to_json(instruction.value)))

    def _announce(self, instruction: Announce) -> None:
        task = instruction.task
        if task.state is State.RUNNING:
            self._running(task)
        elif task.state in FINAL:
            self._ended(task)
            self._show_rest(task.id)
            if task.owner == self._kernel.id:
                self._plan_rest(0.0)
            if self._detachment is not None and isinstance(task, Actor) and self._detachment.is_for(task.id):
                self._actor_over()
        for client in self._hearers(task):
            self._send(client, frame(Kind.EVENT, task.id, to_json(self._record(task))))

    def _run(self, instruction: Run) -> None:
        lease, tasks = instruction
        if tasks[0].spec.thread:
            self._threads.run(lease, tasks)
        else:
            self._backend.run(lease, tasks)

    def _backend_of(self, lease: Lease) -> LocalBackend | ThreadBackend:
        return self._threads if lease.place is self._threads else self._backend

    def _say(self, client: int, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """To a client, if it is still there."""
        if client in self._clients:
            self._send(self._clients[client], data, fds)

    def _group_told(self, instruction: GroupTold) -> None:
        group = instruction.group
        if instruction.at_once:
            self._changed_groups.pop(group.id, None)
            self._tell_group(group)
            return
        if not self._changed_groups:
            self.call_at(time.monotonic() + GROUPS_EVERY, self._tell_groups)
        self._changed_groups[group.id] = group

    def _tell_groups(self) -> None:
        changed, self._changed_groups = self._changed_groups, {}
        for group in changed.values():
            self._tell_group(group)

    def _tell_running(self) -> None:
        """Members say nothing when they begin, so a group of long ones would tell old figures until one ends."""
        for id, told in list(self._running_told.items()):
            group = self._scheduler.groups.get(id)
            if group is None:
                del self._running_told[id]
            elif self._group_record(group)["running"] != told:
                self._tell_group(group)
        if self._running_told:
            self.call_at(time.monotonic() + RUNNING_EVERY, self._tell_running)

    def _tell_group(self, group: Group) -> None:
        client = self._clients.get(group.owner)
        record = self._group_record(group)
        if group.id in self._running_told:
            self._running_told[group.id] = record["running"]
        if client is not None:
            self._send(client, frame(Kind.EVENT, group.id, to_json({"group": record})))

    def _group_record(self, group: Group) -> dict[str, Any]:
        """What people are told of a group: its members by their states, those of inner groups included."""
        record = {"id": group.id, **group.record()}
        running = 0
        for lease in self._scheduler.leases.values():
            for id in self._backend_of(lease).running(lease):
                task = self._scheduler.live.get(id)
                running += task is not None and _is_in(task, group)
        record["running"] = running
        end = group.ended_at if group.ended_at is not None else time.monotonic()
        record["elapsed_s"] = end - group.created_at
        return record

    # -- usage and limits -------------------------------------------------------------------------------------

    def _running(self, task: Task) -> None:
        pids = self._backend.processes(task)
        self._cpu_before[task.id] = memory.cpu_seconds(pids)
        self._usage[task.id] = {"cpu_s": 0.0, "memory": 0, "peak": 0}
        if not self._usage_planned:
            self._usage_planned = True
            self.call_at(time.monotonic() + USAGE_EVERY, self._tell_usage)
        if task.spec.memory is not None:
            if not self._limited:
                self.call_at(time.monotonic() + MEMORY_EVERY, self._look_at_memory)
            self._limited[task.id] = (task, pids, time.monotonic())

    def _ended(self, task: Task) -> None:
        self._limited.pop(task.id, None)
        self._cpu_before.pop(task.id, None)
        if self._questions:
            self._questions = {serial: asked for serial, asked in self._questions.items() if asked[2] != task.id}

    def _look_at_memory(self) -> None:
        now = time.monotonic()
        for id, (task, pids, looked_at) in list(self._limited.items()):
            if id not in self._scheduler.live or task.lease is None:
                self._limited.pop(id, None)
                continue
            if now - looked_at > TREE_EVERY or not pids:
                pids = self._backend.processes(task)
                self._limited[id] = (task, pids, now)
            used = memory.private_memory(pids)
            usage = self._usage.get(id)
            if usage is not None:
                usage["peak"] = max(usage["peak"], used)
            if task.spec.memory is not None and used > task.spec.memory:
                self._events.append(TooMuchMemory(id, used))
        if self._limited:
            self.call_at(now + MEMORY_EVERY, self._look_at_memory)

    def _tell_usage(self) -> None:
        self._usage_planned = False
        for id in list(self._usage):
            task = self._scheduler.live.get(id)
            if task is None or task.lease is None:
                continue
            self._sample(task)
            for client in self._hearers(task):
                self._send(client, frame(Kind.EVENT, id, to_json({"usage": self._usage[id]})))
        if any(id in self._scheduler.live for id in self._usage):
            self._usage_planned = True
            self.call_at(time.monotonic() + USAGE_EVERY, self._tell_usage)

    def _tell_waiting(self) -> None:
        """To who watches a task that waits: for what, whenever that has changed."""
        for id, told in list(self._waiting.items()):
            task = self._scheduler.live.get(id)
            if task is None or task.state is not State.PENDING:
                del self._waiting[id]
                continue
            record = self._record(task)
            why = record["waiting_for"], record.get("slots_held_by")
            if why != told:
                self._waiting[id] = why
                for client in self._hearers(task):
                    self._send(client, frame(Kind.EVENT, id, to_json(record)))
        if self._waiting:
            self.call_at(time.monotonic() + WAITING_EVERY, self._tell_waiting)

    def _sample(self, task: Task) -> None:
        pids = self._backend.processes(task)
        usage = self._usage[task.id]
        cpu = memory.cpu_seconds(pids) - self._cpu_before.get(task.id, 0.0)
        usage["cpu_s"] = max(usage["cpu_s"], cpu)
        usage["memory"] = memory.private_memory(pids)
        usage["peak"] = max(usage["peak"], usage["memory"])

    # -- questions --------------------------------------------------------------------------------------------

    def _record(self, task: Task) -> dict[str, Any]:
        """What people are told of a task. Times are seconds; clocks are the epoch's."""
        now, wall = time.monotonic(), time.time()
        state, started = task.state, task.started_at
        lease = task.lease
        if state is State.PENDING and lease is not None and task.id in self._backend_of(lease).running(lease):
            state = State.RUNNING  # it said nothing at its start, since nobody watches it
        end = task.ended_at if task.ended_at is not None else now
        record: dict[str, Any] = {
            "id": task.id,
            "task_id": show_id(task.id),
            "name": task.spec.name,
            "kind": task.spec.kind,
            "state": state.value,
            "submitted": wall - (now - task.submitted_at),
            "waited_s": (started if started is not None else end) - task.submitted_at,
            "elapsed_s": end - started if started is not None else 0.0,
            "attempt": task.attempt,
            "waiting_for": self._open_dependencies(task) if task.waiting else [],
            "lingers": False,
            "kept": False,
        }
        if task.state in FINAL and task.lease is not None:
            record["lingers"] = self._backend.left_running(task)
            record["kept"] = self._backend.keeps_frames(task)
        if task.spec.thread:
            record["executor"] = "thread"  # screens say that it cannot be killed
        if isinstance(task, Actor):
            pids = self._backend.processes(task)
            record |= {**task.record(), "pid": pids[0] if pids else None}
        elif task.actor is not None:
            record["actor"] = task.actor.spec.name
        if task.group is not None:
            record["group"] = task.group.name
        if task.retry_at is not None:
            record["retry_in_s"] = max(0.0, task.retry_at - now)
        if task.cancel is not None:
            record |= {"source": task.cancel.source, "rung": task.cancel.rung.name.lower()}
            record |= {"reason": task.cancel.reason}
        if task.spec.timeout is not None:
            record["timeout"] = task.spec.timeout
        if task.id in self._usage:
            record["usage"] = self._usage[task.id]
        if task.id in self._logs:
            record["log_bytes"] = self._logs[task.id].size
        if state is State.PENDING and not task.waiting:
            record["slots_held_by"] = list(self._slot_holders())
        return record

    def _open_dependencies(self, task: Task) -> list[str]:
        """The tasks by their names; a value that has none by its id."""
        found = []
        for id in task.deps:
            entry = self._scheduler.objects.get(id)
            if entry is not None and not entry.kind:
                source = self._scheduler.task_of(id)
                name = entry.name if isinstance(entry, Promise) else show_id(id)
                found.append(source.spec.name if source is not None else name)
        return list(dict.fromkeys(found))

    def _slot_holders(self) -> Iterator[str]:
        for lease in self._scheduler.leases.values():
            if not lease.demand or not (lease.holds or lease.keeps):
                continue
            if lease.actor is not None:
                yield lease.actor.spec.name
                continue
            for id in self._backend_of(lease).running(lease):
                if id in self._scheduler.live:
                    yield self._scheduler.live[id].spec.name

    def _tasks_op(self, question: dict[str, Any]) -> Any:
        wanted = question.get("ids")
        tasks: Sequence[Task]
        if wanted is None:
            tasks = self._scheduler.tasks(question.get("limit", HISTORY))
        else:
            tasks = [task for id in wanted if (task := self._scheduler.find(id)) is not None]
        for task in tasks:
            if task.id in self._usage and task.state not in FINAL:
                self._sample(task)
        return {
            "tasks": [self._record(task) for task in tasks],
            "live": len(self._scheduler.live),
        }

    def _groups_op(self, question: dict[str, Any]) -> Any:
        """One group with its members, or all that are not final."""
        scheduler = self._scheduler
        if "id" not in question:
            return [self._group_record(group) for group in scheduler.groups.values()]
        group = scheduler.objects.get(question["id"])
        if not isinstance(group, Group):
            return None
        if question.get("keep"):
            self._events.append(GroupKept(group.id, True))
            self._pump()
            return not group.kind
        members = [self._record(task) for task in scheduler.tasks() if _is_in(task, group)]
        return {**self._group_record(group), "tasks": members}

    def _story_op(self, question: dict[str, Any]) -> Any:
        """What happened to a task, in order; None for one that nobody remembers. Times are the epoch's."""
        chapters = self._scheduler.story(question["id"])
        past = time.time() - time.monotonic()
        return chapters and [{**chapter._asdict(), "at": chapter.at + past} for chapter in chapters]

    def _logs_op(self, question: dict[str, Any]) -> Any:
        log = self._logs.get(question["id"])
        return {"path": log.path, "bytes": log.size} if log is not None else None

    def _clear_op(self, question: dict[str, Any]) -> Any:
        kept_only = set()
        for task in self._scheduler.tasks():
            if task.state in FINAL and task.lease is not None and self._backend.forget_frames(task):
                kept_only.add(task.id)
        cleared = self._scheduler.clear(question.get("ids"), kept_only)
        kept = {task.id for task in self._scheduler.tasks()}
        for id in [id for id in self._logs if id not in kept]:
            self._logs.pop(id).remove()
        self._usage = {id: usage for id, usage in self._usage.items() if id in kept}
        return cleared

    def _status_op(self, question: dict[str, Any]) -> Any:
        if question.get("check"):
            self._scheduler.check()
        units = self._scheduler.available
        actors = sum(isinstance(task, Actor) for task in self._scheduler.live.values())
        return {
            "pid": os.getpid(),
            "total": self._config["total"],
            "available": {name: amount / CPU_UNITS for name, amount in units.items()},
            "live": len(self._scheduler.live) - actors,
            "actors": actors,
            "queued": self._scheduler.queued,
            "objects": len(self._scheduler.objects),
            "history": len(self._scheduler.history) + len(self._scheduler.past_calls),
            "fds": len(os.listdir("/proc/self/fd")) if platform.IS_LINUX else -1,
            **self._backend.statistics(),
        }

    def _warm_op(self, question: dict[str, Any]) -> Any:
        self._backend.warm_up(int(question.get("count", 0)), list(question.get("preload", ())))
        return True

    def _item_contains_op(self, question: dict[str, Any]) -> Any:
        """Asked before the worker tells the item: on another socket, which would not wait for this word."""
        self._events.append(ItemContains(question["task"], question["place"], question["inside"]))
        self._pump()
        return True

    def _actors_op(self, question: dict[str, Any]) -> Any:
        """All actors that are remembered."""
        return [self._record(task) for task in self._scheduler.tasks() if isinstance(task, Actor)]

    def _get_actor_op(self, question: dict[str, Any]) -> Any:
        """The living actor of this name, or None; and what its handles need."""
        actor = self._scheduler.actors.find(question["name"], question["namespace"])
        if actor is None:
            return None
        meta = self._classes[actor.fn].meta
        return {"id": actor.id, "label": actor.spec.name, "class": meta}

    def _kill(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """Answered when it is done."""
        event = ActorKilled(question["id"], question["no_restart"], question["reason"], client.id, request)
        self._events.append(event)

    def _room_asked(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """The rules answer, when there is room."""
        self._events.append(RoomAsked(client.id, request, question["task"], question["made"]))

    def _stack(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """What a running task is doing: its worker writes it, we read it when no more comes."""
        task = self._scheduler.live.get(question["id"])
        path = self._backend.write_stacks(task) if task is not None else None
        if path is None:
            self._send(client, frame(Kind.REPLY, request, to_json(None)))
            return
        patience = time.monotonic() + STACK_LIMIT

        def look(seen: bytes) -> None:
            answer = None
            with contextlib.suppress(OSError), open(path, "rb") as file:  # or its worker has gone meanwhile
                text = file.read()
                if not (text and text == seen) and time.monotonic() < patience:
                    self.call_at(time.monotonic() + STACK_PAUSE, lambda: look(text))
                    return
                answer = {"text": text.decode(errors="replace")}
            self._send(client, frame(Kind.REPLY, request, to_json(answer)))

        look(b"")

    def _pass_on(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """A task asks for a line: whoever launched it has the keyboard. The answer comes by `_answer_op`."""
        id = question["task"]
        task = self._scheduler.find(id)
        if task is None or task.owner not in self._clients:
            refusal = {"refused": "Nobody is there who could answer: the notebook has gone."}
            self._send(client, frame(Kind.REPLY, request, to_json(refusal)))
            return
        self._count += 1
        self._questions[self._count] = (client.id, request, id)
        content = {"serial": self._count, "prompt": question["prompt"], "password": question["password"]}
        self.told(Kind.DISPLAY, 0, id, to_json({"type": "input_request", "content": content}), ())

    def _debug_op(self, question: dict[str, Any]) -> Any:
        task = self._scheduler.find(question["id"])
        if task is None:
            return False
        if question.get("interrupt"):
            self._backend.interrupt(task)
            return True
        return self._backend.debug(task)

    def _answer_op(self, question: dict[str, Any]) -> Any:
        asker, request, _ = self._questions.pop(question["serial"], (0, 0, 0))
        client = self._clients.get(asker)
        if client is not None:
            self._send(client, frame(Kind.REPLY, request, to_json(question["answer"])))
        return client is not None

    # -- detached ---------------------------------------------------------------------------------------------

    def _keep_op(self, question: dict[str, Any]) -> Any:
        """From now on we end when we are told to, and the values of this task live as long as we do."""
        assert self._detachment is not None, "this supervisor belongs to a kernel"
        first, count = question["id"], question["count"]
        self._detachment.kept = first, count
        self._events.append(Held(0, range(first, first + count)))  # 0: a client that never goes
        self._pump()
        kept = self._scheduler.objects[first]
        if isinstance(kept, Actor) and kept.state in FINAL:  # it was faster
            self._actor_over()
        return True

    def _kept_op(self, question: dict[str, Any]) -> Any:
        """What this supervisor is for; None if it does not know yet."""
        detachment = self._detachment
        if detachment is None or detachment.kept is None:
            return None
        first, count = detachment.kept
        task = self._scheduler.objects[first]
        record = self._record(task) if isinstance(task, Task) else None
        return {"id": first, "count": count, "outputs": detachment.journal.outputs, "record": record}

    def _attach(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """What the task has shown so far, and from now on all that it shows."""
        detachment = self._detachment
        task = self._scheduler.objects.get(question["id"])
        if detachment is not None and isinstance(task, Task):
            self._show_rest(task.id)
            for word in detachment.journal.frames(task.id):
                self._send(client, word)
            self._send(client, frame(Kind.EVENT, task.id, to_json(self._record(task))))
            detachment.listeners.add(client.id)
        self._send(client, frame(Kind.REPLY, request, to_json(None)))

    def _kill_all(self, reason: str) -> None:
        for task in self._scheduler.live.values():
            if isinstance(task, Actor):
                self._events.append(ActorKilled(task.id, reason=reason))
            elif task.actor is None:  # calls end with their actor
                self._events.append(CancelAsked(task.id, force=True, reason=reason))

    def _actor_over(self) -> None:
        """A detached actor has ended: its name is free. We stay for the values that it has returned, while they are
        held."""
        assert self._detachment is not None
        self._detachment.leave()
        for client, request in self._mourners:
            self._say(client, frame(Kind.REPLY, request, to_json(self._epitaph())))
        self._mourners.clear()
        self._kill_all("its actor has ended")
        pause = END_EVERY

        def look() -> None:
            nonlocal pause
            if not (self._scheduler.live or self._has_values() or any(each.out for each in self._clients.values())):
                self.shutdown()
            pause = min(2 * pause, REST_EVERY)
            self.call_at(time.monotonic() + pause, look)

        self.call_at(time.monotonic(), look)

    def _epitaph_asked(self, client: _Client, request: int, question: dict[str, Any]) -> None:
        """Answered when the detached actor has ended: with what calls raise from then on, also when we have gone."""
        if (epitaph := self._epitaph()) is not None:
            self._send(client, frame(Kind.REPLY, request, to_json(epitaph)))
        else:
            self._mourners.append((client.id, request))

    def _epitaph(self) -> dict[str, Any] | None:
        assert self._detachment is not None
        actor = self._scheduler.objects.get(self._detachment.kept[0]) if self._detachment.kept is not None else None
        if not isinstance(actor, Actor) or actor.state not in FINAL:
            return None
        death = self._scheduler.actors.death_of(actor)
        return {"kind": death[4], "body": death[HEADER_SIZE:].decode("latin-1")}

    def _has_values(self) -> bool:
        """Somebody holds one, or a value that has it inside; beside the actor's own."""
        assert self._detachment is not None
        return any(
            entry.kind == Kind.RESULT and not self._detachment.is_for(entry.id)
            for entry in self._scheduler.objects.values()
        )

    def _end_op(self, question: dict[str, Any]) -> Any:
        """Ends us, the task before: those who wait for it hear what became of it."""
        assert self._detachment is not None, "this supervisor ends with its kernel"
        self._kill_all(question["reason"])
        limit = time.monotonic() + END_LIMIT

        def look() -> None:
            now = time.monotonic()
            if not self._scheduler.live or now > limit:
                self.shutdown()
            self.call_at(now + END_EVERY, look)

        self.call_at(time.monotonic(), look)

    def _plan_rest(self, pause: float) -> None:
        if self._detachment is not None and self._detachment.entry.kind == "task":
            self.call_at(time.monotonic() + pause, self._rest)

    def _rest(self) -> None:
        """A detached task is over: its value needs no workers, unless what it has submitted still runs."""
        if self._scheduler.live:
            self._plan_rest(REST_EVERY)
        else:
            self._backend.rest()

    # -- the end ----------------------------------------------------------------------------------------------

    def shutdown(self) -> NoReturn:
        """Ends every process we ever started, then us."""
        import shutil  # 3 ms of a cold start

        try:
            self._backend.shutdown()
            shutil.rmtree(self._dir, ignore_errors=True)
            if self._detachment is not None:
                self._detachment.leave()
        finally:
            os._exit(0)


def _detachment(config: dict[str, Any]) -> Detachment:
    from jupyter_tasks.supervisor.detachment import Detachment  # its imports are nothing to a kernel's cold start

    return Detachment(config)


def _is_in(task: Task, group: Group) -> bool:
    """A member, or one of an inner group."""
    return task.group is not None and any(each is group for each in task.group.chain())


def _close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)


# What a client says of the thread tasks that it runs.
_SAID_BY_HOSTS = frozenset(
    {Kind.STARTED, Kind.RESULT, Kind.ERROR, Kind.INTERRUPTED, Kind.BLOCKED, Kind.UNBLOCKED, Kind.YIELD}
)
_FUNCTION = TaskSpec()
_ACTOR = TaskSpec(name="actor", kind="actor", demand=(), max_retries=0)
_CELL = TaskSpec(name="cell", kind="cell", max_retries=0, watched=True)


def _without_pins(call: bytes, options: dict[str, Any], rest: int) -> bytes:
    """They are for us alone. Thousands of ids would not fit into a message to the worker."""
    _, kind, flags, nfds, fn, id = HEADER.unpack_from(call)
    text = to_json({key: value for key, value in options.items() if key != "pins"})
    return frame(kind, id, len(text).to_bytes(4, "little") + text + call[rest:], flags=flags, fn=fn, fds=nfds)


def _spec(options: dict[str, Any], base: TaskSpec) -> TaskSpec:
    """The options of a frame, on top of what holds without them."""
    changes: dict[str, Any] = {key: options[key] for key in options.keys() & _SPEC_AS_IT_IS}
    if options.get("generator") == "streaming":
        changes |= {"streams": True, "backpressure": options.get("backpressure", 0)}
    if "announce" in options:
        changes["watched"] = bool(options["announce"])
    if {"cpus", "gpus", "resources"} & options.keys():
        held = dict(base.demand)
        amounts = {"CPU": options.get("cpus"), "GPU": options.get("gpus"), **options.get("resources", {})}
        for name, amount in amounts.items():
            if amount is not None:
                held[name] = round(amount * CPU_UNITS)
        changes["demand"] = tuple(sorted((name, amount) for name, amount in held.items() if amount))
    return dataclasses.replace(base, **changes) if changes else base
