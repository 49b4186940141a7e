"""The worker: takes packets of tasks from its socket, runs them in the main thread, tells how they ended.

A worker is a guest with little luggage, forked from the zygote. It knows the supervisor's socket, the shared page and
the task in hand; it knows nothing of other tasks. User code runs in frames of its own (`_attempt` and below), and an
interrupt is raised only there (see `interrupt`).

Ends of tiny tasks are gathered and sent once a packet. Until then they stand in the ledger of the shared page, so
that a crash of the next task loses none of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import gc
import inspect
import json
import linecache
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from jupyter_tasks.refs import THREAD_PREFIX, Dependency, ObjectRef
from jupyter_tasks.supervisor import platform, reaper
from jupyter_tasks.wire import page as layout
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import (
    DURATION_SHIFT,
    HEADER,
    HEADER_SIZE,
    PACKED_NONE,
    Flag,
    Kind,
    frame,
    from_json,
    to_json,
)
from jupyter_tasks.wire.page import LEDGER_SIZE, Page
from jupyter_tasks.wire.sockets import MESSAGE_LIMIT, receive
from jupyter_tasks.worker import context, items, modules, progress, threads
from jupyter_tasks.worker.interrupt import Guard
from jupyter_tasks.worker.output import Streams

__all__ = ["start"]

FLUSH_AFTER = 0.001  # seconds after which a packet's ends are not held back any more; a whole packet takes about that
LOOK_AGAIN = 0.05  # seconds between looks at whether what a task left running has ended
MOST_DURATION = 15  # log2 us; the four bits that a header has for it

# Helpers that libraries start once and keep: they belong to the worker, not to the task that happened to be first.
_SERVICE_MARKS = (b"resource_tracker", b"semaphore_tracker", b"multiprocessing.forkserver")


def start(config: dict[str, Any], sock_fd: int, page_fd: int, out_fd: int, err_fd: int) -> None:
    """Turns this freshly forked process into a worker and serves until the supervisor is gone. Never returns."""
    # The page first: as long as a process is in the supervisor's session and in no page, it is taken for new.
    page = Page(page_fd)
    page.words[layout.PID] = os.getpid()
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the guard is there
    if config["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(config["gpus"])
    platform.become_subreaper()
    # First our parent, which only forked us, has to end (about 0.1 ms): told to die with our parent before that, we
    # would die with this one (one worker in seven did).
    for _ in range(10_000):
        if os.getppid() == config["supervisor"]:
            break
        time.sleep(0.0001)
    else:
        os._exit(1)
    platform.die_with_parent(signal.SIGKILL)
    if os.getppid() != config["supervisor"]:
        os._exit(1)  # it had died before we asked, and nobody would send the signal
    platform.prefer_as_oom_victim()
    platform.join_fences()
    sock = socket.socket(fileno=fcntl.fcntl(sock_fd, fcntl.F_DUPFD_CLOEXEC, 210))
    streams = Streams(out_fd, err_fd)  # 200 and 201
    os.closerange(3, 200)
    os.closerange(211, 65536)
    _offer_stacks(config)
    worker = _Worker(config, sock, page, streams)
    context.enter_worker(worker)
    worker.serve()


def _offer_stacks(config: dict[str, Any]) -> None:
    """A signal writes the stacks of all threads to a file: in C, so also while C code runs or the GIL is held."""
    if platform.STACK_SIGNAL is None:
        return
    fd = os.open(config["stacks"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 205)
    os.close(fd)
    faulthandler.register(platform.STACK_SIGNAL, file=kept, all_threads=True, chain=False)


@dataclass(slots=True)
class _Function:
    """Code that arrived, and how it is to be treated."""

    call: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    retry_exceptions: Any = False  # True, or a tuple of types
    threads: int = field(init=False)
    streams: bool = field(init=False)  # a generator whose items go out one by one

    def __post_init__(self) -> None:
        self.threads = threads.wanted(self.options, 1)
        self.streams = self.options.get("generator") == "streaming"


class _Worker:
    """This process, as it sees itself."""

    def __init__(self, config: dict[str, Any], sock: socket.socket, page: Page, streams: Streams) -> None:
        self.config = config
        self.sock = sock
        self.page = page
        self.streams = streams
        own = (_Worker.serve, _Worker._packet, _Worker._task, _Worker._debug, _Worker._flush, _Worker._end)
        own_code = {function.__code__ for function in own} | items.OWN_CODE
        self.guard = Guard(page, own_code)
        self.functions: dict[int, _Function] = {}
        self.threads = threads.Threads()
        self.task_id = 0
        self._task_fn = 0  # of the task in hand, 0 for a cell
        self._task_options: dict[str, Any] = {}  # those that its own frame carries
        self._waits = 0  # of the task in hand, at this moment; several coroutines may wait at once
        self.replaced: frozenset[int] = frozenset()  # in a cell: ids of values that took the place of refs
        self._values: dict[int, tuple[bytes, int | None]] = {}  # what the next task needs: head, descriptor
        self._ends: list[bytes] = []  # frames not sent yet; the ledger holds the same bytes
        self._messages = 0
        self._cleanup: Callable[[], None] | None = None  # forgets the last cell, once its end is told
        self._failure: BaseException | None = None  # what the task in hand raised, if its frames may be kept
        self._kept: tuple[int, BaseException] | None = None  # the failed task that this worker stays with
        self._left_over = False  # a finished task's threads or children still run
        self._condemned = False  # an interrupt has tainted this process: the supervisor is about to end it
        self._given_back = False  # one of both: what was given ahead of time goes back unbegun
        self._send_lock = threading.RLock()  # display and progress may come from threads, and from finalizers in a send
        self._around: _Around | None = None  # what a function task is to leave as it found it
        self._baseline_threads = threading.active_count()
        self.actor: Any = None  # the actors.Host that this worker is the home of

    # -- the loop ---------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Packets in, ends out."""
        self.guard.install()
        progress.install_tqdm_hook()
        self.send(Kind.HELLO, 0, to_json({"pid": os.getpid()}))
        while True:
            if self._left_over and not select.select([self.sock], [], [], LOOK_AGAIN)[0]:
                self._look_again()
                continue
            try:
                # What select has seen, the supervisor may have taken back: then waiting here would be waiting for ever.
                data, fds = receive(self.sock, socket.MSG_DONTWAIT if self._left_over else 0)
            except BlockingIOError:
                continue
            except OSError:
                data, fds = b"", []
            if not data:
                os._exit(0)
            self._packet(data, fds)
            if self.actor is not None:
                self.actor.serve()

    def _packet(self, data: bytes, fds: list[int]) -> None:
        at, end = 0, len(data)
        began = time.perf_counter()
        # Also what comes after: it was given before the supervisor heard how the last task ended.
        self._given_back = self._left_over or self._condemned or self._kept is not None
        while end - at >= HEADER_SIZE:
            size, kind, flags, nfds, fn, id = HEADER.unpack_from(data, at)
            body = data[at + HEADER_SIZE : at + HEADER_SIZE + size]
            at += HEADER_SIZE + size
            fd = fds.pop(0) if nfds else None
            if kind == Kind.TASK:
                self._task(id, fn, flags, body, fd)
                if at < end and time.perf_counter() - began > FLUSH_AFTER:
                    self._flush()
                    began = time.perf_counter()
            elif kind == Kind.CALL:
                self._actor_call(id, flags, body, fd)
                if at < end and time.perf_counter() - began > FLUSH_AFTER:
                    self._flush()
                    began = time.perf_counter()
            elif kind == Kind.EXIT:
                self.actor.leave()
            elif kind == Kind.RESULT:
                self._values[id] = (body, fd)
            elif kind == Kind.FUNCTION:
                self._learn_function(fn, body, fd)
            elif kind == Kind.PRELOAD:
                _preload(from_json(body))
            elif kind == Kind.FORGET_CODE:
                self.functions.pop(fn, None)
            elif kind == Kind.DEBUG:
                self._debug(id)
            elif kind == Kind.FORGET and self._kept is not None and self._kept[0] == id:
                self._kept = None
                if not self._left_over:
                    self._is_idle()
        self._flush()

    def _task(self, id: int, fn: int, flags: int, body: bytes, fd: int | None) -> None:
        guard = self.guard
        if self._given_back or (fn and fn not in self.functions):
            # Its function was in a packet that was taken back between our two reads: the supervisor sends both again.
            self._skip(id, fd)
            return
        if guard.begin(id):
            self._skip(id, fd)
            guard.end()
            return
        guard.tainted = False
        self.task_id = id
        options: dict[str, Any] = {}
        if flags & Flag.OPTIONS:
            length = int.from_bytes(body[:4], "little")
            options = json.loads(body[4 : 4 + length])
            body = body[4 + length :]
            if any(dep not in self._values for dep in options.get("deps", ())):
                self._skip(id, fd)  # they were taken back between two reads, too
                guard.end()
                return
        self._task_fn, self._task_options, self._waits = fn, options, 0
        progress.set_report(self._report_progress)  # bars of an earlier task are nobody's parents
        makes_actor = "actor" in options
        if flags & Flag.ANNOUNCE or makes_actor:
            self._flush()
            self.send(Kind.STARTED, id, to_json({"started_ns": self.page.words[layout.STARTED_NS]}))
        self.streams.install()
        guard.install()
        guard.only_asks = makes_actor
        # Not in user code: an interrupt in the middle would leave it half done.
        count = self.functions[fn].threads if fn else threads.wanted(options, threads.KERNELS)
        if count != self.threads.count:
            self.threads.limit(count)
            self._around = None
        if self._around is None and fn:
            self._around = _Around()
        ends: list[bytes] | None = None
        partly: list[bytes] = []  # what an interrupted cell gives back
        fds: list[int] = []
        began = time.perf_counter()
        try:
            guard.in_user_code = True
            guard.check()
            if makes_actor:
                ends = [self._make_actor(id, fn, options, body, fd)]
            elif fn == 0:
                ends, fds = self._cell(id, options, body, fd)
            else:
                ends, fds = self._attempt(id, fn, options, body, fd)
            guard.in_user_code = False
        except KeyboardInterrupt as stop:
            guard.in_user_code = False
            if isinstance(stop, _Stopped):
                partly, fds = stop.ends, stop.fds
        except BaseException:
            # Nothing of the user's ends here: this is a fault of ours, and must not take the worker's loop along.
            guard.in_user_code = False
            ends = [_error_frame(id, sys.exc_info(), flags=0)]
        finally:
            guard.in_user_code = False
        if self._around is not None and not self._around.is_same():
            self._around.restore()
        took = int((time.perf_counter() - began) * 1e6).bit_length()
        if self._values:
            self._drop_values()
        self.streams.wait_until_read()
        left_over = self.actor is None and self._leaves_something()
        interrupted = ends is None
        if ends is None:
            self._failure = None
            tainted = Flag.TAINTED if left_over or guard.tainted else 0
            ends = [*partly, frame(Kind.INTERRUPTED, id, flags=tainted)]
            if tainted:
                self._condemned = self._given_back = True
        else:
            stays = Flag.LINGERS if left_over else 0
            if self._failure is not None:
                self._kept, self._failure = (id, self._failure), None
                self._given_back = True
                stays |= Flag.KEPT
            ends[-1] = _with_flags(ends[-1], stays | min(took, MOST_DURATION) << DURATION_SHIFT)
            if left_over:
                self._left_over = self._given_back = True
        streams = fn != 0 and self.functions[fn].streams
        self._end(ends, alone=streams or bool(fds))
        guard.end()
        self.task_id = 0
        if fds or flags & Flag.ANNOUNCE or self._given_back or streams or makes_actor:
            self._flush(fds)
        if self._cleanup is not None and not self._left_over and self._kept is None:
            self._clean_up()
        if interrupted and context.has_client():
            gc.collect()  # an interrupt and its frames may hold each other, and refs with them

    def _make_actor(self, id: int, fn: int, options: dict[str, Any], body: bytes, fd: int | None) -> bytes:
        """This worker becomes the home of an actor. Returns how its constructor ended."""
        from jupyter_tasks.worker import actors

        self._around = None  # what it does to its environment is its own
        self.actor = actors.make_host(self, id, options, self.functions[fn])
        try:
            args, kwargs = self._arguments(body, fd)
            self.actor.construct(args, kwargs)
            if self.actor.leaving:
                self.actor.leave()
        except SystemExit as error:
            if code := _exit_code(error):
                os._exit(code)
            self.actor.leaving = actors.how(error)
            self.actor.leave()
        except BaseException as error:
            return actors.constructor_failed(id, options["name"], error)
        return frame(Kind.RESULT, id, PACKED_NONE)

    def _actor_call(self, id: int, flags: int, body: bytes, fd: int | None) -> None:
        """A call of this worker's actor, if that does one at a time."""
        from jupyter_tasks.worker import actors

        guard = self.guard
        if guard.begin(id):
            self._skip(id, fd)
            guard.end()
            return
        call = actors.CallInOrder(self.actor, id, flags, body, fd, self._values)
        self._values = {}
        self.task_id = id
        self._waits = 0
        progress.set_report(self._report_progress)
        if call.announce:
            self._flush()
            self.send(Kind.STARTED, id, to_json({"started_ns": self.page.words[layout.STARTED_NS]}))
        self.streams.install()
        guard.install()
        began = time.perf_counter()
        token = context.thread_call.set(call)
        guard.in_user_code = True  # for `waiting`: nothing is raised in an actor
        try:
            ends, fds = self.actor.run(call)
        except SystemExit as error:
            self._flush()
            if code := _exit_code(error):
                os._exit(code)
            self.actor.leaving = actors.how(error)
            self.actor.leave()
        except BaseException:
            ends, fds = [_error_frame(id, sys.exc_info(), flags=0)], []
        finally:
            guard.in_user_code = False
            context.thread_call.reset(token)
        took = int((time.perf_counter() - began) * 1e6).bit_length()
        self.streams.wait_until_read()
        ends[-1] = _with_flags(ends[-1], min(took, MOST_DURATION) << DURATION_SHIFT)
        streams = call.option("generator") == "streaming"
        self._end(ends, alone=streams or bool(fds))
        guard.end()
        self.task_id = 0
        if fds or call.announce or streams:
            self._flush(fds)

    def _debug(self, id: int) -> None:
        """Opens the frames of the failed task in a debugger, and tells when that is over."""
        from jupyter_tasks.worker import cells, postmortem

        if self._kept is not None and self._kept[0] == id:
            guard = self.guard
            guard.begin(id)
            self.streams.install()
            guard.install()
            try:
                guard.in_user_code = True
                postmortem.debug(self._kept[1], functools.partial(cells.ask, self, id))
                guard.in_user_code = False
            except KeyboardInterrupt:
                pass
            except BaseException:
                guard.in_user_code = False
                traceback.print_exc()
            finally:
                guard.in_user_code = False
            guard.end()
            self.streams.wait_until_read()
        self.send(Kind.DISPLAY, id, to_json({"type": "debugged", "content": {}}))

    def _skip(self, id: int, fd: int | None) -> None:
        """The task is not begun: it was cancelled, or goes back."""
        self._end([frame(Kind.INTERRUPTED, id, flags=Flag.SKIPPED)])
        _close(fd)
        self._drop_values()

    def _drop_values(self) -> None:
        for _, fd in self._values.values():
            _close(fd)
        self._values.clear()

    def _clean_up(self) -> None:
        self.replaced = frozenset()
        cleanup, self._cleanup = self._cleanup, None
        if cleanup is not None:
            try:
                cleanup()
            except Exception:
                traceback.print_exc()

    def _end(self, ends: list[bytes], *, alone: bool = False) -> None:
        """Keeps the frames that say how a task ended; the ledger makes them survive this process.

        Args:
            alone: they go out by themselves, and soon, and not by the ledger: those with descriptors, which would be a
                lie without them, and the end of a generator, which must not overtake its items.
        """
        words, page = self.page.words, self.page
        length = words[layout.LEDGER] & 0xFFFFFFFF
        if alone and self._ends:
            self._flush()
            length = 0
        for end in ends:
            if length + len(end) > LEDGER_SIZE and not alone:
                self._flush()
                length = 0
            self._ends.append(end)
            if len(end) <= LEDGER_SIZE and not alone:
                page.ledger[length : length + len(end)] = end
                length += len(end)
        words[layout.LEDGER] = self._messages << 32 | length

    def _flush(self, fds: list[int] | None = None) -> None:
        if not self._ends:
            return
        message = b"".join(self._ends) if len(self._ends) > 1 else self._ends[0]
        messages = 1
        with self._send_lock:
            if fds:
                messages = len(self._ends)
                self.send_frames_with_fds(self._ends, fds)
                for fd in fds:
                    os.close(fd)
                fds.clear()
            elif len(message) <= MESSAGE_LIMIT // 2:
                self.sock.sendall(message)
            else:
                messages = len(self._ends)
                for end in self._ends:
                    self.sock.sendall(end)
        self._ends.clear()
        self._messages += messages  # the supervisor counts them, too, to tell a ledger that it has heard already
        self.page.words[layout.LEDGER] = self._messages << 32

    def send_frames_with_fds(self, ends: list[bytes], fds: list[int]) -> None:
        """One message a frame: a message carries at most MAX_FDS descriptors, and few frames have any."""
        rest = list(fds)
        for end in ends:
            count = int.from_bytes(end[6:8], sys.byteorder)
            mine, rest = rest[:count], rest[count:]
            socket.send_fds(self.sock, [end], mine)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for other tasks: meanwhile this task's slot is free, so nesting never deadlocks."""
        own = not self.task_id or not self.guard.in_user_code  # a question of ours, which is answered at once
        if own or threading.current_thread() is not threading.main_thread():
            yield
            return
        id = self.task_id
        self._waits += 1
        if self._waits == 1:
            self.send(Kind.BLOCKED, id, b"")
        try:
            yield
        finally:
            if self.task_id == id:  # a coroutine that its task has left behind ends in a later one
                self._waits -= 1
                if not self._waits:
                    self.send(Kind.UNBLOCKED, id, b"")

    def task_facts(self) -> context.TaskFacts | None:
        """What the running task may know of itself; None between tasks. Any thread."""
        fn, options = self._task_fn, self._task_options
        if not self.task_id:
            return None
        if self.actor is not None:
            facts: context.TaskFacts = self.actor.facts(None)
            return facts
        function = self.functions[fn] if fn else None
        held = options if function is None else function.options
        return context.task_facts(held, function.call if function is not None else None, options.get("attempt", 0))

    def _report_progress(self, bar: dict[str, Any]) -> None:
        if self.task_id:
            self.send(Kind.PROGRESS, self.task_id, to_json(bar))

    def send(self, kind: int, id: int, body: bytes, *, flags: int = 0) -> None:
        """Something beside an end: rich output, progress, a request. Any thread of the task."""
        payload = shared.pack(body, []) if len(body) > shared.INLINE_LIMIT else None
        self.streams.switch_to(None)
        with self._send_lock:
            if payload is None:
                self.sock.sendall(frame(kind, id, body, flags=flags))
            else:
                assert payload.fd is not None
                header = frame(kind, id, payload.head, flags=flags, fds=1)
                socket.send_fds(self.sock, [header], [payload.fd])
                payload.close()

    # -- function tasks ---------------------------------------------------------------------------------------

    def _learn_function(self, fn: int, body: bytes, fd: int | None) -> None:
        length = int.from_bytes(body[:4], "little")
        options = json.loads(body[4 : 4 + length])
        self._around = None
        try:
            # Before its pickle imports what it needs.
            self.threads.limit(threads.wanted(options, 1))
            modules.forget_edited()
            path = options.pop("path", [])
            if any(entry not in sys.path for entry in path):
                sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
            data, buffers = shared.unpack(body[4 + length :], fd, writable=False)
            call, extras = serialize.loads(data, buffers)
            for name, text in extras.get("sources", {}).items():
                linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            self.functions[fn] = _Function(call, options, extras.get("retry_exceptions", False))
        except BaseException as error:
            # A module that the worker cannot import, say: each task of the function raises it.
            self.functions[fn] = _Function(_raiser(error), options)
        finally:
            _close(fd)

    def _attempt(
        self, id: int, fn: int, options: dict[str, Any], body: bytes, fd: int | None
    ) -> tuple[list[bytes], list[int]]:
        """Runs one function task. Raises only KeyboardInterrupt."""
        function = self.functions[fn]
        num_returns = options.get("num_returns", function.options.get("num_returns"))
        try:
            args, kwargs = self._arguments(body, fd)
            value = _call(function.call, args, kwargs)
            if inspect.iscoroutine(value):
                import asyncio  # 40 ms that few tasks need

                value = asyncio.run(value)
            if function.streams:
                sender = items.Sender(self, id, function.options.get("backpressure", 0))
                items.drive(items.checked(value, function.options), sender.take)
                value = None
            elif "generator" in function.options:
                put = context.client_of_worker().put
                value = items.dynamic(items.checked(value, function.options), put)
            elif num_returns is not None and items.is_generator(value):
                value = items.collect(value, num_returns)
        except KeyboardInterrupt:
            raise
        except SystemExit as error:
            self._leave(error)
        except BaseException as error:
            flags = Flag.RETRYABLE if _wants_retry(function.retry_exceptions, error) else 0
            if self.page.words[layout.KEEP] and not flags and not self.config["gpus"]:
                self._failure = error
            return [_error_frame(id, sys.exc_info(), flags=flags)], []
        try:
            values = items.results(value, num_returns)
        except (ValueError, TypeError):
            return [_error_frame(id, sys.exc_info(), flags=0)], []
        return self._values_out(id, values)

    def _arguments(self, body: bytes, fd: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            data, buffers = shared.unpack(body, fd, writable=False)
        finally:
            _close(fd)
        args, kwargs = serialize.loads(data, buffers)
        if self._values:
            args = tuple(self._resolve(arg) for arg in args)
            kwargs = {name: self._resolve(arg) for name, arg in kwargs.items()}
        return args, kwargs

    def _resolve(self, arg: Any, *, writable: bool = False, namespace: dict[str, Any] | None = None) -> Any:
        if type(arg) is not Dependency:
            return arg
        head, fd = self._values[arg.id]
        data, buffers = shared.unpack(head, fd, writable=writable)
        return serialize.loads(data, buffers, namespace=namespace)

    def _values_out(self, id: int, values: list[Any]) -> tuple[list[bytes], list[int]]:
        """RESULT frames for all return values, the task's own last. An error in one is an error in all."""
        ends: list[bytes] = []
        fds: list[int] = []
        try:
            for i in reversed(range(len(values))):
                refs: list[ObjectRef] = []
                data, buffers = serialize.dumps(
                    values[i], root="result", to="the kernel", reducers=functools.partial(items.note_ref, None, refs)
                )
                if refs:
                    # Through the client, which tells after this, and not before, that our own refs are gone.
                    refs[0]._client.contains(id + i, [ref.id for ref in refs])
                payload = shared.pack(data, buffers)
                if payload.fd is not None:
                    fds.append(payload.fd)
                ends.append(frame(Kind.RESULT, id + i, payload.head, fds=payload.fd is not None))
        except KeyboardInterrupt:
            _close_all(fds)
            raise
        except BaseException:
            _close_all(fds)
            return [_error_frame(id, sys.exc_info(), flags=0)], []
        return ends, fds

    def _leave(self, error: SystemExit) -> None:
        """sys.exit in a function task ends the process, as it would end a program (docs/semantics.md, Ends)."""
        code = _exit_code(error)
        self._flush()
        os._exit(code)

    # -- cells ------------------------------------------------------------------------------------------------

    def _cell(self, id: int, options: dict[str, Any], body: bytes, fd: int | None) -> tuple[list[bytes], list[int]]:
        """Runs one cell in the shell. Raises only KeyboardInterrupt."""
        try:
            with self.guard.held():  # half a shell would break every later cell of this process
                from jupyter_tasks.worker import cells

                self._around = None  # a cell has more around it, and looks after it itself
                modules.forget_edited()
                namespace = cells.namespace(self)
                self._cleanup = cells.forget  # from here on: what arrives may have changed the directory, and then fail
        except BaseException:
            _close(fd)
            raise
        content = self._content(body, fd, namespace, options)
        outcome = cells.run(self, id, options, content)
        # A worker with GPUs would keep their memory, too.
        may_keep = self.config["keep"] and not self.config["gpus"]
        if may_keep and isinstance(outcome.error, Exception) and outcome.error.__traceback__:
            self._failure = outcome.error
        ends, fds = self._cell_ends(id, options, content, outcome)
        if isinstance(outcome.error, KeyboardInterrupt):
            raise _Stopped(ends, fds)
        return ends, fds

    def _content(
        self, body: bytes, fd: int | None, namespace: dict[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """The cell's source and the names it reads, with values in the place of refs."""
        try:
            data, buffers = shared.unpack(body, fd, writable=True)
        finally:
            _close(fd)
        memo: dict[int, Any] | None = {} if options.get("star") else None
        if memo is not None:  # modules that print when they are imported have done so in the notebook
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
        try:
            arrived = serialize.loads(data, buffers, namespace=namespace, memo=memo)
        finally:
            self.streams.install()
        names = arrived["names"]
        content: dict[str, Any] = {  # another dict: those that arrived are objects that are looked at, too
            **arrived,
            "resolved": {name for name, value in names.items() if type(value) is Dependency},
            "names": {name: self._resolve(value, writable=True, namespace=namespace) for name, value in names.items()},
        }
        self.replaced = frozenset(id(content["names"][name]) for name in content["resolved"])
        if memo is not None:
            from jupyter_tasks.wire import identity
            from jupyter_tasks.worker.shell import worker_shell

            shell = worker_shell().ip  # no copy: what the cell does to it is not done to the kernel's as such
            for place in [place for place, held in memo.items() if held is shell]:
                del memo[place]
            content["received"] = identity.Received(memo)
        return content

    def _cell_ends(
        self, id: int, options: dict[str, Any], content: dict[str, Any], outcome: Any
    ) -> tuple[list[bytes], list[int]]:
        """What the cell gives back: the names asked for first, its value or error last."""
        from jupyter_tasks.worker import cells

        returns: list[tuple[int, Any]] = []
        if options.get("star"):
            returns.append((id + 1, cells.pack_changes(outcome, content)))  # also after an error, or an interrupt
        elif outcome.error is None:
            for i, name in enumerate(options.get("outs", ()), start=1):
                if name in outcome.namespace:
                    returns.append((id + i, outcome.namespace[name]))
                else:
                    returns.append((id + i, NameError(f"the cell {options['name']!r} did not assign {name!r}")))
        if outcome.error is None:
            returns.append((id, outcome.value if options.get("value") else None))
        ends: list[bytes] = []
        fds: list[int] = []
        try:
            for place, value in returns:
                if isinstance(value, NameError) and place != id:
                    ends.append(_error_frame(place, (NameError, value, None), flags=0))
                    continue
                payload = value if isinstance(value, shared.Payload) else cells.pack(value)
                if payload.fd is not None:
                    fds.append(payload.fd)
                ends.append(frame(Kind.RESULT, place, payload.head, fds=payload.fd is not None))
        except BaseException:
            _close_all(fds)
            raise
        if outcome.error is not None and not isinstance(outcome.error, KeyboardInterrupt):
            info = (type(outcome.error), outcome.error, outcome.error.__traceback__)
            own = cells.namespace_of_cell()
            ends.append(_error_frame(id, info, flags=0, lines=outcome.traceback, namespace=own))
        return ends, fds

    # -- what a task leaves behind ----------------------------------------------------------------------------

    def _leaves_something(self) -> bool:
        """Threads or child processes of the task still run."""
        if threading.active_count() > self._baseline_threads and self._threads_run():
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return self._children_run()

    def _threads_run(self) -> bool:
        """Threads that are not this package's own: a task that uses `jt` has a connection, whose threads stay."""
        own = sum(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate())
        return threading.active_count() - own > self._baseline_threads

    def _children_run(self) -> bool:
        """The slow look: children other than services and zombies. Reaps the zombies, whose task is over."""
        children = reaper.descendants(os.getpid())
        running = [pid for pid in children if reaper.exists(pid)]
        if len(running) < len(children):
            reaper.reap()
        return any(not _is_service(pid) for pid in running)

    def _look_again(self) -> None:
        if self._leaves_something():
            return
        self._left_over = False
        if self._kept is None:
            self._is_idle()
        else:
            self.send(Kind.IDLE, self._kept[0], b"")

    def _is_idle(self) -> None:
        self._clean_up()
        self.streams.wait_until_read()
        self.send(Kind.IDLE, 0, b"")


class _Around:
    """Environment, working directory and module path: what a function task changes of them is undone after it.

    The look costs 2 us; the rest of what `ambient` knows is looked at, and put back, if one of these has changed.
    """

    __slots__ = ("_directory", "_environment", "_path", "_state")

    def __init__(self) -> None:
        from jupyter_tasks.wire import ambient

        self._environment = os.environ._data.copy()  # type: ignore[attr-defined]  # the mapping's own way takes 40 us
        self._directory = _directory()
        self._path = sys.path.copy()
        self._state = ambient.take()

    def is_same(self) -> bool:
        return (
            os.environ._data == self._environment  # type: ignore[attr-defined]
            and sys.path == self._path
            and _directory() == self._directory
        )

    def restore(self) -> None:
        from jupyter_tasks.wire import ambient

        ambient.restore(self._state)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it was removed


class _Stopped(KeyboardInterrupt):
    """A cell was interrupted, and gives back what it has done so far."""

    def __init__(self, ends: list[bytes], fds: list[int]) -> None:
        super().__init__()
        self.ends = ends
        self.fds = fds


def _call(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A frame of its own between the worker's try and user code: on 3.13.0 an exception of a signal handler can
    escape a `try` whose loop is in the same frame (49 of 300 did)."""
    return call(*args, **kwargs)


def _raiser(error: BaseException) -> Callable[..., Any]:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fails


def _wants_retry(wanted: Any, error: BaseException) -> bool:
    return wanted is True or (isinstance(wanted, tuple) and isinstance(error, wanted))


def _exit_code(error: SystemExit) -> int:
    """The exit code of a program that ends with this; a text is printed, as it would be."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    return (code or 0) & 0xFF


def _with_flags(end: bytes, flags: int) -> bytes:
    return end[:5] + bytes((end[5] | flags,)) + end[6:]


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


def _preload(names: list[str]) -> None:
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:
            pass  # the task that needs it will say so


def _is_service(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except OSError:
        return False
    return any(mark in command for mark in _SERVICE_MARKS)


def _error_frame(
    id: int,
    info: Any,
    *,
    flags: int,
    lines: list[str] | None = None,
    namespace: dict[str, Any] | None = None,
) -> bytes:
    """What the task raised; always inline, never more than a part of a message. See `_error_body`."""
    return frame(Kind.ERROR, id, _error_body(info, lines=lines, namespace=namespace), flags=flags)


def _error_body(info: Any, *, lines: list[str] | None = None, namespace: dict[str, Any] | None = None) -> bytes:
    """What the task raised, as far as it can be sent.

    Args:
        info: type, error and traceback.
        lines: how the shell draws it, for a cell.
        namespace: the cell's: methods of an error's class that was made there are the notebook's at home.
    """
    kind, error, trace = info
    trace = _own_frames_dropped(trace)
    try:
        text = "".join(traceback.format_exception(kind, error, trace))
    except Exception:
        text = f"{kind.__name__} (its traceback could not be printed)\n"
    record = {
        "type_name": kind.__name__,
        "message": _shortened(_text_of(error)),
        "traceback_text": _shortened(text),
        "lines": lines,
        "exception": None,
    }
    try:
        data, buffers = serialize.dumps(error, root=kind.__name__, namespace=namespace)
        if not buffers and len(data) < shared.INLINE_LIMIT // 2:
            record["exception"] = bytes(data)
            serialize.loads(record["exception"], namespace=namespace)  # what does not load is worth nothing
    except Exception:
        record["exception"] = None
    body = pickle.dumps(record, 5)
    if len(body) > MOST_ERROR:
        body = pickle.dumps({**record, "lines": None, "exception": None}, 5)
    return body


def _own_frames_dropped(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not this package's."""
    own = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        if trace.tb_next is None:
            break
        trace = trace.tb_next
    return trace


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<its text could not be made: {type(failure).__name__}>"


MOST_ERROR = shared.INLINE_LIMIT  # bytes; an ERROR is always inline, and a message must not be cut off
MOST_TRACEBACK = 20_000  # characters; a deep recursion of user code with long lines can be megabytes


def _shortened(text: str) -> str:
    if len(text) <= MOST_TRACEBACK:
        return text
    half = MOST_TRACEBACK // 2
    return f"{text[:half]}\n  [... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
