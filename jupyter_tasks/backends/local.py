"""The local backend: worker processes on this machine, forked by the zygote, one lease each.

It owns the workers: their sockets (both ends), shared pages, output pipes, and their process trees from birth to the
last reaped descendant. The supervisor's loop is the only thread in here, and nothing waits longer than stopping a
process takes.

Hitting the right task. The operating system decides who got a packet: what the worker has not read can be taken back
through its own end of the socket. For what it has read, the page tells: tasks run in the order they were given, and
CURRENT is the one begun last. Before a signal that could hurt the wrong task (TERMINATE, KILL), the process is
stopped, and only then is CURRENT looked at.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import socket
import termios
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from jupyter_tasks.backends.abc import Backend, Host
from jupyter_tasks.engine.actors import Actor
from jupyter_tasks.engine.events import (
    EVERYTHING,
    ONE_PACKET,
    ActorExits,
    Capabilities,
    Died,
    End,
    Finished,
    Gone,
    IdleAgain,
    Lease,
    Recalled,
    Started,
    Task,
    UnBlocked,
    WaitBegan,
    Yielded,
)
from jupyter_tasks.supervisor import platform, reaper, zygote
from jupyter_tasks.wire import page as layout
from jupyter_tasks.wire.frames import HEADER, HEADER_SIZE, Flag, Kind, frame, from_json, to_json, with_option
from jupyter_tasks.wire.page import Page
from jupyter_tasks.wire.sockets import receive

__all__ = ["LocalBackend"]

PIPE_CHUNK = 1 << 16  # bytes read from a worker's output at a time
PIPE_TURN = 1 << 20  # bytes read from one pipe before others get their turn
HARVEST_AFTER = 0.005  # seconds: how long the end of a tiny task may stay in a slow packet's ledger
# A signal that lands between the interpreter's last look and a system call is not seen until that call returns. So it
# is sent again until the handler says that it ran: first after AGAIN_FIRST seconds, then less and less often.
AGAIN_FIRST = 0.01
AGAIN_MOST = 0.5
OVERDUE = 0.01  # seconds that a task of a packet may run before what is behind it goes elsewhere; planned is 0.001
GONE_CHECK = 0.002  # seconds between looks at whether a swept tree has gone
START_LIMIT = 60.0  # seconds from the request to the first word; it takes 2 ms, more while the zygote imports
START_FAILURES = 3  # workers in a row that could not be started before a task is told

_GONE = object()  # the place of a lease whose worker is gone
_NOT_OF_TASKS = frozenset(
    {Kind.PRELOAD, Kind.FORGET, Kind.DEBUG, Kind.EXIT, Kind.FORGET_CODE}
)  # what a worker is told beside its tasks
_TASKS = frozenset({Kind.TASK, Kind.CALL})
_END_KINDS = frozenset({Kind.RESULT, Kind.ERROR, Kind.INTERRUPTED})


class _Worker:
    """One worker process, as the supervisor sees it."""

    __slots__ = (
        "backlog",
        "debugged",
        "dying",
        "fd",
        "functions",
        "harvested",
        "kept",
        "killed",
        "lease",
        "left_over",
        "messages",
        "number",
        "page",
        "partial",
        "pid",
        "pipes",
        "sock",
        "status",
        "theirs",
    )

    def __init__(self, number: int, sock: socket.socket, theirs: socket.socket, page: Page) -> None:
        self.number = number
        self.sock = sock
        self.theirs = theirs  # the worker's end: for taking back what it has not read
        self.fd = sock.fileno()
        self.page = page
        self.pid = 0  # 0 until it says HELLO
        self.lease: Lease | None = None
        self.functions: set[int] = set()
        self.backlog: deque[tuple[bytes, tuple[int, ...]]] = deque()  # what the socket had no room for
        self.partial = b""  # half a frame (stream sockets only)
        self.pipes: list[int] = []  # our ends of its stdout and stderr
        self.messages = 0  # messages of ends received: says whether the ledger was sent already
        self.harvested = 0  # bytes of the ledger taken in ahead of their message
        self.killed = False  # we ended it
        self.left_over = False  # threads or children of its last task run
        self.kept = 0  # id of the failed task whose frames it keeps
        self.debugged = False  # somebody looks at them at this moment
        self.status: int | None = None  # as waitpid gives it, once reaped
        self.dying: set[int] = set()  # swept processes that are not reaped yet


class LocalBackend(Backend):
    """See the module's text."""

    def __init__(self, first_zygote: tuple[int, socket.socket] | None = None) -> None:
        """The zygote may run already: its process id, and our end of its socket."""
        self._first_zygote = first_zygote
        self.capabilities = Capabilities(depth=2, packet=32)
        self._workers: dict[int, _Worker] = {}  # by number
        self._by_pid: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._numbers = 0
        self._failures = 0
        self._harvest_planned = False
        self._gone_planned = False
        self._ending: set[_Worker] = set()  # dead or killed, not gone
        self._orphan_sweep_due = False
        self._preload: list[str] = []
        self._unread = array.array("i", [0])
        self._kept: deque[_Worker] = deque()  # with frames of failed tasks, oldest first
        self._stopping = False

    def start(self, host: Host, config: dict[str, Any]) -> None:
        self._host = host
        self._config = config
        self._most_idle = max(2, int(config["total"]["CPU"]))
        self._most_kept: int = config.get("keep", 0)
        self._gpu_names: list[str] = config["gpus"]
        self._zygote_pid, self._zygote = self._first_zygote or zygote.start(config)
        self._seq = self._zygote.type == socket.SOCK_SEQPACKET
        if not self._seq:
            self.capabilities = Capabilities(depth=1, packet=1)
        host.watch(self._zygote.fileno(), self._zygote_says)

    # -- the zygote -------------------------------------------------------------------------------------------

    def _zygote_says(self, _: int) -> None:
        message = b""
        try:
            message = self._zygote.recv(1 << 16)
        except OSError:
            pass
        if message:  # it could not fork
            record = json.loads(message)
            worker = self._workers.get(record["failed"])
            if worker is not None:
                self._could_not_start(worker, record["why"])
            return
        self._host.unwatch(self._zygote.fileno())
        self._zygote.close()
        if self._stopping:
            return
        # Somebody killed it. Those it was asked for and has not forked will never come.
        self._zygote_pid, self._zygote = zygote.start(self._config)
        self._host.watch(self._zygote.fileno(), self._zygote_says)
        for worker in [worker for worker in self._workers.values() if not worker.page.words[layout.PID]]:
            self._could_not_start(worker, "the zygote has ended")

    def _could_not_start(self, worker: _Worker, why: str) -> None:
        self._failures += 1
        lease = worker.lease
        running = 0
        if lease is not None and self._failures >= START_FAILURES and lease.packets:
            running = lease.packets[0][0]
        self._forget(worker)
        if lease is not None:
            self._host.post(Died(lease, running, None, f"no new process ({why})", False))
            self._host.post(Gone(lease))

    # -- workers come and go ----------------------------------------------------------------------------------

    def _new_worker(self, devices: Sequence[int] = ()) -> _Worker:
        self._numbers += 1
        sock, theirs = platform.worker_socketpair()
        for end in (sock, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        sock.setblocking(False)
        page_fd = Page.create()
        worker = _Worker(self._numbers, sock, theirs, Page(page_fd))
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        worker.pipes = [out_read, err_read]
        self._workers[worker.number] = worker
        worker.page.words[layout.KEEP] = self._has_room()
        request = {
            "keep": self._most_kept,
            "number": worker.number,
            "supervisor": os.getpid(),
            "stacks": self._stacks_file(worker),
            "socket": self._config.get("socket"),
            "key": self._config.get("key"),
            "mark": self._config.get("mark"),
            "gpus": [self._gpu_names[device] for device in devices],
        }
        fds = [theirs.fileno(), page_fd, out_write, err_write]
        try:
            socket.send_fds(self._zygote, [to_json(request)], fds)
        except OSError:
            pass  # the zygote has ended: its end-of-file is the next thing we hear, and settles this worker too
        for fd in (page_fd, out_write, err_write):
            os.close(fd)
        self._host.watch(worker.fd, lambda events: self._worker_says(worker, events))
        for i, fd in enumerate(worker.pipes):
            os.set_blocking(fd, False)
            self._host.watch(fd, functools.partial(self._pipe_readable, worker, i))
        self._host.call_at(self._host.now() + START_LIMIT, lambda: self._check_started(worker))
        return worker

    def _stacks_file(self, worker: _Worker) -> str:
        return os.path.join(self._config["directory"], f"{worker.number}.stacks")

    def _check_started(self, worker: _Worker) -> None:
        if worker.number in self._workers and not self._pid(worker):
            self._could_not_start(worker, f"it did not start within {START_LIMIT:g} s")

    def warm_up(self, count: int, preload: list[str]) -> None:
        """Has `count` workers ready, with these modules imported."""
        new = [name for name in preload if name not in self._preload]
        self._preload += new
        while len(self._workers) < count:
            self._idle.append(self._new_worker())
        if new:
            for worker in self._idle:
                self._send(worker, frame(Kind.PRELOAD, 0, to_json(new)), ())

    def _stay_warm(self) -> None:
        """A worker is gone, or kept: another has its modules imported before somebody needs it."""
        if self._preload and not self._idle and not self._stopping:
            worker = self._new_worker()
            self._idle.append(worker)
            self._send(worker, frame(Kind.PRELOAD, 0, to_json(self._preload)), ())

    def _forget(self, worker: _Worker) -> None:
        """The worker is gone: closes all we have of it."""
        self._workers.pop(worker.number, None)
        self._by_pid.pop(worker.pid, None)
        self._ending.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        self._not_kept(worker)
        self._host.unwatch(worker.fd)
        worker.sock.close()
        worker.theirs.close()
        for _, fds in worker.backlog:
            for fd in fds:
                os.close(fd)
        for i in (0, 1):
            if worker.pipes[i] >= 0:
                self._worker_wrote(worker, i)
                self._close_pipe(worker, i)
        worker.page.close()
        with contextlib.suppress(OSError):
            os.unlink(self._stacks_file(worker))
        if worker.lease is not None:
            worker.lease.place = _GONE
            worker.lease = None

    def _close_pipe(self, worker: _Worker, i: int) -> None:
        if worker.pipes[i] >= 0:
            self._host.unwatch(worker.pipes[i])
            os.close(worker.pipes[i])
            worker.pipes[i] = -1

    # -- instructions -----------------------------------------------------------------------------------------

    def run(self, lease: Lease, tasks: Sequence[Task]) -> None:
        worker = lease.place
        if worker is _GONE:
            # The rules have not heard yet that its worker died: Died is in the queue, and these go with it. (With a
            # new worker in its place they ran there, and then once more.)
            return
        if worker is None:
            # With devices always a new one: what has run anything may have looked for GPUs already.
            worker = self._idle.pop() if self._idle and not lease.devices else self._new_worker(lease.devices)
            worker.lease = lease
            lease.place = worker
        assert isinstance(worker, _Worker)
        parts: list[bytes] = []
        for task in tasks:
            if task.fn and task.fn not in worker.functions:
                code, fds = self._host.function_frame(task.fn)
                worker.functions.add(task.fn)
                if fds or len(code) > PIPE_CHUNK:
                    self._send(worker, code, fds)
                else:
                    parts.append(code)
            for id in task.deps:
                value, fds = self._host.object_frame(id)
                self._send(worker, value, fds)
            call = with_option(task.call, "attempt", task.attempt) if task.attempt else task.call
            if task.call_fds:
                # Alone: descriptors travel with the first byte of a message. A packet with one has nothing else.
                self._send(worker, b"".join([*parts, call]), task.call_fds)
                parts = []
            else:
                parts.append(call)
        if parts:
            self._send(worker, b"".join(parts) if len(parts) > 1 else parts[0], ())
        if len(tasks) > 1:
            self._plan_harvest()

    def _send(self, worker: _Worker, data: bytes, fds: tuple[int, ...]) -> None:
        if not worker.backlog:
            try:
                if fds:
                    socket.send_fds(worker.sock, [data], list(fds))
                    return
                sent = worker.sock.send(data)
                if sent == len(data):
                    return
                data = data[sent:]  # stream sockets only
            except BlockingIOError:
                pass
            except OSError:
                return  # it has died; its end is told when it is reaped
        # The descriptors may be closed before there is room: keep our own.
        worker.backlog.append((data, tuple(os.dup(fd) for fd in fds)))
        self._host.watch_writable(worker.fd, True)

    def _send_backlog(self, worker: _Worker) -> None:
        while worker.backlog:
            data, fds = worker.backlog[0]
            try:
                if fds:
                    socket.send_fds(worker.sock, [data], list(fds))
                else:
                    worker.sock.send(data)
            except BlockingIOError:
                return
            except OSError:
                pass
            worker.backlog.popleft()
            for fd in fds:
                os.close(fd)
        self._host.watch_writable(worker.fd, False)

    def close(self, lease: Lease) -> None:
        worker = lease.place
        if isinstance(worker, _Worker):
            lease.place = None
            worker.lease = None
            if worker in self._ending:
                return
            if len(self._idle) < self._most_idle:
                self._idle.append(worker)
            else:
                self._end_tree(worker)  # one of many that tasks with `--cpus 0` had asked for

    def recall(self, lease: Lease, id: int) -> None:
        worker = lease.place
        if not isinstance(worker, _Worker):
            self._host.post(Recalled(lease, ()))
            return
        if lease.actor is not None and not lease.actor.in_order:
            # It is there, and begins at once: what has become of it says STARTED, or INTERRUPTED.
            self._send(worker, frame(Kind.CANCEL, id, flags=Flag.ASKS), ())
            self._host.post(Recalled(lease, ()))
            return
        # Of an actor nothing is taken back: it would be given again behind what the worker reads meanwhile.
        back = [] if lease.actor is not None else self._take_back(worker, most=1 if id == ONE_PACKET else None)
        if id in (ONE_PACKET, EVERYTHING) or id in back:
            self._host.post(Recalled(lease, back))
            return
        # The worker has read it. First the ring, then the look (see wire.page): if it has not begun now, it never
        # will, because the worker looks at the ring after it says what it begins.
        self._ask_to_stop(worker, id)
        platform.fence()
        position = self._position(worker, lease, id)
        if back:
            self._host.post(Recalled(lease, back))
        if position == "unbegun":
            # It stays in the lease's order until the worker has passed it over: then CURRENT names it, and what stands
            # before it in the order has ended. (Crossed off at once, that was taken for unbegun, though it had run.)
            self._host.post(Recalled(lease, [id], True))
        elif position == "running":
            self._host.post(Started(id, worker.page.words[layout.STARTED_NS] / 1e9))

    def _position(self, worker: _Worker, lease: Lease, id: int) -> str:
        """Where the worker is with this task that it has read: "unbegun", "running" or "ended"."""
        words = worker.page.words
        current = words[layout.CURRENT]
        if current == id:
            return "running" if words[layout.BUSY] else "ended"
        order = [given for packet in lease.packets for given in packet]
        if id not in order:
            return "ended"
        # Given in order, run in order. If CURRENT is not among the given, its end is known, and all here are later.
        return "ended" if current in order and order.index(id) < order.index(current) else "unbegun"

    def _take_back(self, worker: _Worker, most: int | None) -> list[int]:
        """Reads from the worker's end what it has not read itself. Returns the tasks, in order."""
        if not self._seq:
            return []
        packets: list[bytes] = []
        while worker.backlog and (most is None or most > 0):
            data, kept = worker.backlog.pop()
            for fd in kept:
                os.close(fd)
            packets.insert(0, data)
        found = 0
        while most is None or found < most:
            try:
                data, fds = receive(worker.theirs, socket.MSG_DONTWAIT)
            except OSError:
                break
            if not data:
                break
            for fd in fds:
                os.close(fd)
            packets.append(data)
            found += not _TASKS.isdisjoint(_kinds(data))
        ids: list[int] = []
        for data in packets:
            at = 0
            while len(data) - at >= HEADER_SIZE:
                size, kind, _, _, fn, id = HEADER.unpack_from(data, at)
                at += HEADER_SIZE + size
                if kind == Kind.FUNCTION:
                    # What is left unread, or read at this moment, may need it: the worker gives back what it
                    # cannot run, and is told the function again.
                    worker.functions.discard(fn)
                elif kind in _TASKS:
                    ids.append(id)
                elif kind in _NOT_OF_TASKS:  # alone in its packet
                    self._send(worker, data, ())
        return ids

    def interrupt(self, task: Task) -> None:
        worker = self._worker_of(task)
        if worker is None:
            return
        if task.actor is not None and not task.actor.in_order:
            self._send(worker, frame(Kind.CANCEL, task.id), ())
            return
        self._ask_to_stop(worker, task.id)
        if task.actor is not None:
            return  # the flag, and nothing else
        pid = self._pid(worker)
        if not pid:
            return
        self._interrupt_again_at(worker, task, AGAIN_FIRST)
        if not reaper.has_children(pid):
            # The guard in the worker makes sure that only this task is hit.
            reaper.signal_all([pid], signal.SIGINT)
            return
        # Children have no guard: the signal goes to the group only while it is certain whose they are.
        if self._stopped_in(worker, pid, task):
            try:
                os.killpg(pid, signal.SIGINT)
            except OSError:
                pass
        reaper.signal_all([pid], signal.SIGCONT)

    @staticmethod
    def _ask_to_stop(worker: _Worker, entry: int) -> None:
        """Writes to the ring; not twice that a task is to stop, or a hundred clicks would push out what was written for
        others. But that one is to be passed over each time: it may have come back to this worker since the last."""
        words = worker.page.words
        count = words[layout.COUNT]
        if not entry & layout.MOVED:
            for i in range(max(words[layout.HANDLED], count - layout.RING), count):
                if words[layout.RING_AT + i % layout.RING] == entry:
                    return
        worker.page.ask_to_stop(entry)

    def _interrupt_again_at(self, worker: _Worker, task: Task, delay: float) -> None:
        def look() -> None:
            if worker.number not in self._workers or worker in self._ending or self._worker_of(task) is not worker:
                return
            words = worker.page.words
            running = words[layout.CURRENT] == task.id and words[layout.BUSY]
            if running and words[layout.HANDLED] < words[layout.COUNT]:
                reaper.signal_all([self._pid(worker)], signal.SIGINT)
                self._interrupt_again_at(worker, task, min(2 * delay, AGAIN_MOST))

        self._host.call_at(self._host.now() + delay, look)

    def terminate(self, task: Task) -> None:
        worker = self._worker_of(task)
        if worker is None or not self._pid(worker):
            return
        if self._stopped_in(worker, worker.pid, task):
            worker.killed = True
            reaper.signal_all([worker.pid, *reaper.descendants(worker.pid)], signal.SIGTERM)
        reaper.signal_all([worker.pid], signal.SIGCONT)

    def kill(self, task: Task) -> None:
        worker = self._worker_of(task)
        if worker is None or not self._pid(worker):
            return
        if self._stopped_in(worker, worker.pid, task):
            self._end_tree(worker)
        else:
            reaper.signal_all([worker.pid], signal.SIGCONT)  # it was over: its end is on the way

    def _stopped_in(self, worker: _Worker, pid: int, task: Task) -> bool:
        """Stops the worker. True if it stands still in this task."""
        if not reaper.stop_and_check(pid):
            return False
        return self._is_in(worker, task)

    def end_actor(self, lease: Lease) -> None:
        worker = lease.place
        if isinstance(worker, _Worker):
            self._send(worker, frame(Kind.EXIT), ())

    def retire(self, lease: Lease) -> None:
        worker = lease.place
        if isinstance(worker, _Worker):
            self._end_tree(worker)
        else:
            self._host.post(Gone(lease))

    def _end_tree(self, worker: _Worker) -> None:
        if worker in self._ending and worker.killed:
            return
        worker.killed = True
        if not self._pid(worker):  # asked to go before it came: its socket's end tells it
            worker.sock.shutdown(socket.SHUT_RDWR)
            return
        found = reaper.sweep(worker.pid)
        worker.dying.update(found)
        reaper.kill_all(found)
        self._ending.add(worker)
        self._plan_gone_check()

    def forget_function(self, fn: int) -> None:
        for worker in self._workers.values():
            if fn in worker.functions:
                worker.functions.discard(fn)
                self._send(worker, frame(Kind.FORGET_CODE, fn=fn), ())

    def _worker_of(self, task: Task) -> _Worker | None:
        place = task.lease.place if task.lease is not None else None
        return place if isinstance(place, _Worker) else None

    # -- what workers say -------------------------------------------------------------------------------------

    def _worker_says(self, worker: _Worker, events: int) -> None:
        if worker.backlog:
            self._send_backlog(worker)
        if not events & ~4:  # writable only
            return
        self._receive(worker)

    def _receive(self, worker: _Worker) -> bool:
        """One message. False if there was none."""
        try:
            data, fds = receive(worker.sock)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if not data:
            # Only after our own shutdown of the socket (we hold both ends); its exit status follows.
            self._host.unwatch(worker.fd)
            return False
        self._take_in(worker, data, fds)
        return True

    def _take_in(self, worker: _Worker, data: bytes, fds: list[int]) -> None:
        if worker.partial:
            data, worker.partial = worker.partial + data, b""
        at = 0
        if data[4] in _END_KINDS:
            worker.messages += 1
            at, worker.harvested = worker.harvested, 0
        ends: list[End] = []
        length = len(data)
        while length - at >= HEADER_SIZE:
            size, kind, flags, nfds, fn, id = HEADER.unpack_from(data, at)
            stop = at + HEADER_SIZE + size
            if stop > length:
                break
            if kind == Kind.YIELD:  # a message of its own
                self._host.post(Yielded(id, fn, data[at + HEADER_SIZE : stop], tuple(fds[:nfds])))
                fds = fds[nfds:]
            elif kind in _END_KINDS:
                mine = tuple(fds[:nfds])
                fds = fds[nfds:]
                ends.append(End(id, kind, flags, data[at:stop], mine))
            else:
                if ends:
                    self._finished(worker, ends)
                    ends = []
                self._other_word(worker, kind, flags, id, data[at + HEADER_SIZE : stop], fds[:nfds])
                fds = fds[nfds:]
            at = stop
        if at < length:
            worker.partial = data[at:]
        if ends:
            self._finished(worker, ends)

    def _finished(self, worker: _Worker, ends: list[End]) -> None:
        if worker.lease is None:
            return
        self._host.hear_out(worker.number)
        self._host.post(Finished(worker.lease, ends))
        last = ends[-1]
        if last.kind != Kind.INTERRUPTED:
            worker.left_over = bool(last.flags & Flag.LINGERS)
            if last.kind == Kind.ERROR and last.flags & Flag.KEPT:
                self._keep(worker, last.id)

    def _other_word(self, worker: _Worker, kind: int, flags: int, id: int, body: bytes, fds: Sequence[int]) -> None:
        lease = worker.lease
        if kind == Kind.HELLO:
            self._pid(worker)
            self._failures = 0
            if worker.killed:
                self._end_tree(worker)
        elif kind == Kind.STARTED:
            self._host.post(Started(id, from_json(body)["started_ns"] / 1e9))
        elif kind == Kind.OUTPUT:
            self._host.wrote(id, body, stderr=bool(flags & Flag.STDERR))
        elif kind in (Kind.DISPLAY, Kind.PROGRESS):
            if worker.debugged and kind == Kind.DISPLAY and from_json(body)["type"] == "debugged":
                worker.debugged = False
            # Text that was written before comes first (the worker has waited for that); order is kept.
            self._host.told(kind, flags, id, body, fds)
        elif lease is None:
            pass
        elif kind == Kind.EXIT:
            self._host.hear_out(worker.number)
            self._host.post(ActorExits(lease, bool(flags & Flag.LEAVES), body.decode()))
        elif kind == Kind.IDLE and id:
            worker.left_over = False
            self._host.changed(id)
        elif kind == Kind.IDLE:
            worker.left_over = False
            self._not_kept(worker)
            self._host.post(IdleAgain(lease))
        elif kind == Kind.BLOCKED:
            self._host.post(WaitBegan(lease))
        elif kind == Kind.UNBLOCKED:
            self._host.post(UnBlocked(lease))
        for fd in fds:
            os.close(fd)

    def _worker_wrote(self, worker: _Worker, i: int) -> None:
        """Reads what the worker wrote; whose it is says the page (the worker waits for us between tasks)."""
        lingering = worker.lease.lingering if worker.lease is not None else None
        read = 0
        while worker.pipes[i] >= 0 and read < PIPE_TURN:
            # First how much there is, then whose: the worker begins no other task before we have read it. (Looked at
            # once for several reads, or before there was something, the next task's words were taken for this one's.)
            fcntl.ioctl(worker.pipes[i], termios.FIONREAD, self._unread, True)
            size = min(self._unread[0], PIPE_CHUNK)
            id = lingering.id if lingering is not None else worker.page.words[layout.CURRENT]
            # Rich output, or an end, that came before this text is taken in before it. What comes after it is not there
            # yet: for that the worker waits until the pipe is empty.
            while worker.status is None and self._receive_quietly(worker):
                pass
            if worker.pipes[i] < 0:
                return
            if not size:
                if self._is_closed(worker.pipes[i]):
                    self._close_pipe(worker, i)
                return
            data = os.read(worker.pipes[i], size)
            read += len(data)
            self._host.wrote(id, data, stderr=i == 1)

    def _is_closed(self, pipe: int) -> bool:
        """Nobody has its other end any more, and it is empty."""
        poll = select.poll()
        poll.register(pipe, 0)
        hung_up = bool(poll.poll(0))
        fcntl.ioctl(pipe, termios.FIONREAD, self._unread, True)
        return hung_up and not self._unread[0]

    def _pipe_readable(self, worker: _Worker, i: int, _: int) -> None:
        self._worker_wrote(worker, i)

    def _receive_quietly(self, worker: _Worker) -> bool:
        return worker.sock.fileno() >= 0 and self._receive(worker)

    def _plan_harvest(self) -> None:
        if not self._harvest_planned:
            self._harvest_planned = True
            self._host.call_at(self._host.now() + HARVEST_AFTER, self._harvest)

    def _harvest(self) -> None:
        """Takes in the ends of tiny tasks that stand in the ledger of a packet which turned out slow."""
        self._harvest_planned = False
        again = False
        for worker in list(self._workers.values()):
            lease = worker.lease
            if lease is not None and not lease.ghosts and any(len(packet) > 1 for packet in lease.packets):
                again = True
                self._read_ledger(worker)
                self._hand_back(worker, lease)
        if again:
            self._plan_harvest()

    def _hand_back(self, worker: _Worker, lease: Lease) -> None:
        """What stands behind a task that takes much longer than packets are made for goes to others.

        It was read, so it cannot be taken back; but it can be told to be passed over. First the ring, then the
        look, as for a cancel: what has not begun by then will not begin here.
        """
        if lease.actor is not None:
            return  # there are no others
        words = worker.page.words
        current = words[layout.CURRENT]
        packet = lease.packets[0]
        if current not in packet[:-1] or not words[layout.BUSY]:
            return
        if time.monotonic_ns() - words[layout.STARTED_NS] < OVERDUE * 1e9:
            return
        behind = packet[packet.index(current) + 1 :]
        for id in behind:
            self._ask_to_stop(worker, id | layout.MOVED)
        platform.fence()
        self._host.post(Recalled(lease, [id for id in behind if self._position(worker, lease, id) == "unbegun"], True))

    def _read_ledger(self, worker: _Worker) -> None:
        word = worker.page.words[layout.LEDGER]
        messages, length = word >> 32, word & 0xFFFFFFFF
        if messages != worker.messages or length <= worker.harvested:
            return  # sent already, the message is on its way; or nothing new
        platform.fence()  # the bytes were written before the word
        data = bytes(worker.page.ledger[worker.harvested : length])
        if worker.page.words[layout.LEDGER] >> 32 != messages:
            return  # it was sent, and perhaps begun anew, while we copied
        ends: list[End] = []
        at = 0
        while at < len(data):
            size, kind, flags, _, _, id = HEADER.unpack_from(data, at)
            stop = at + HEADER_SIZE + size
            ends.append(End(id, kind, flags, data[at:stop]))
            at = stop
        worker.harvested = length
        self._finished(worker, ends)

    # -- processes end ----------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Takes in every exit status there is. Called on SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for worker in self._ending:
                worker.dying.discard(pid)
            dead = self._by_pid.pop(pid, None) or self._unknown(pid)
            if dead is not None:
                self._worker_died(dead, status)
        if self._orphan_sweep_due:
            self._sweep_orphans()
        self._check_gone()

    def _unknown(self, pid: int) -> _Worker | None:
        """A worker that died before its HELLO was read."""
        for worker in self._workers.values():
            if not worker.pid and worker.page.words[layout.PID] == pid:
                worker.pid = pid
                return worker
        return None

    def _pid(self, worker: _Worker) -> int:
        """Its process id; 0 as long as it has not been forked."""
        if not worker.pid:
            worker.pid = int(worker.page.words[layout.PID])
            if worker.pid:
                self._by_pid[worker.pid] = worker
        return worker.pid

    def _worker_died(self, worker: _Worker, status: int) -> None:
        # What it said last, in the socket and then in the ledger, counts: nothing that ended runs again.
        while self._receive_quietly(worker):
            pass
        self._read_ledger(worker)
        for i in (0, 1):
            self._worker_wrote(worker, i)
        self._host.hear_out(worker.number)
        worker.status = status
        self._ending.add(worker)
        self._orphan_sweep_due = True
        lease = worker.lease
        if lease is not None:
            exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            name = _signal_name(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
            # The task it was in, or had just ended: then its end was posted before this and counts.
            running = int(worker.page.words[layout.CURRENT])
            self._host.post(Died(lease, running, exit_code, name, worker.killed))

    def _sweep_orphans(self) -> None:
        """What a dead worker leaves below it has become our child: ends it."""
        self._orphan_sweep_due = False
        table = reaper.children_map()
        # A worker that is being forked is in our session until it has written its id to its page; nothing below
        # a worker is ever in our session. So first the sessions, then the pages: the other way round, one that wrote
        # its id and left our session in between was taken for an orphan, and killed with the task it had begun.
        session = os.getsid(0)
        strangers = [pid for pid in table.get(os.getpid(), []) if _session(pid) != session]
        known = {self._zygote_pid, *(self._pid(worker) for worker in self._workers.values())}
        mine = [pid for pid in strangers if pid not in known]
        found: list[int] = []
        for pid in mine:
            found += reaper.sweep(pid)
        if found:
            reaper.kill_all(found)
            for worker in self._ending:
                worker.dying.update(found)
            self._plan_gone_check()

    def _plan_gone_check(self) -> None:
        if not self._gone_planned:
            self._gone_planned = True
            self._host.call_at(self._host.now() + GONE_CHECK, self._gone_check)

    def _gone_check(self) -> None:
        self._gone_planned = False
        self.reap()
        if self._ending:
            self._plan_gone_check()

    def _check_gone(self) -> None:
        """Tells of those that are dead, and of whose tree nothing is left."""
        for worker in list(self._ending):
            worker.dying = {pid for pid in worker.dying if reaper.exists(pid)}
            if worker.status is not None and not worker.dying and not self._orphan_sweep_due:
                lease = worker.lease
                self._forget(worker)
                if lease is not None:
                    self._host.post(Gone(lease))
                    self._stay_warm()

    # -- looking ----------------------------------------------------------------------------------------------

    def processes(self, task: Task) -> list[int]:
        worker = self._worker_of(task)
        if worker is None or not self._pid(worker):
            return []
        return [worker.pid, *reaper.descendants(worker.pid)]

    def running(self, lease: Lease) -> Collection[int]:
        worker = lease.place
        if not isinstance(worker, _Worker):
            return ()
        if lease.actor is not None and lease.actor.ready and not lease.actor.in_order:
            return [id for id in worker.page.calls.tolist() if id]
        words = worker.page.words
        return (int(words[layout.CURRENT]),) if words[layout.BUSY] else ()

    # -- frames of failed tasks -------------------------------------------------------------------------------

    def _has_room(self) -> int:
        return int(len(self._kept) < self._most_kept)

    def _tell_room(self) -> None:
        room = self._has_room()
        for worker in self._workers.values():
            worker.page.words[layout.KEEP] = room

    def _keep(self, worker: _Worker, id: int) -> None:
        """The newest of cells are kept, and the oldest given up for them; those of functions while there is room."""
        worker.kept = id
        self._kept.append(worker)
        if len(self._kept) > self._most_kept:
            oldest = next((other for other in self._kept if not other.debugged), worker)
            self._send(oldest, frame(Kind.FORGET, oldest.kept), ())
        self._tell_room()
        self._stay_warm()

    def _not_kept(self, worker: _Worker) -> None:
        if worker not in self._kept:
            return
        self._kept.remove(worker)
        if worker.debugged:
            self._host.told(Kind.DISPLAY, 0, worker.kept, to_json({"type": "debugged", "content": {}}), ())
        worker.kept, worker.debugged = 0, False
        self._tell_room()

    def _keeper(self, task: Task) -> _Worker | None:
        worker = self._worker_of(task)
        return worker if worker is not None and worker.kept == task.id else None

    def left_running(self, task: Task) -> bool:
        worker = self._worker_of(task)
        return worker is None or worker.left_over or worker.kept != task.id

    def keeps_frames(self, task: Task) -> bool:
        return self._keeper(task) is not None

    def debug(self, task: Task) -> bool:
        worker = self._keeper(task)
        if worker is None or worker.debugged:
            return False
        worker.debugged = True
        self._send(worker, frame(Kind.DEBUG, task.id), ())
        return True

    def forget_frames(self, task: Task) -> bool:
        worker = self._keeper(task)
        if worker is None or worker.debugged:
            return False
        self._send(worker, frame(Kind.FORGET, task.id), ())
        return not worker.left_over

    def write_stacks(self, task: Task) -> str | None:
        worker = self._worker_of(task)
        if worker is None or not self._is_in(worker, task) or platform.STACK_SIGNAL is None:
            return None
        path = self._stacks_file(worker)
        os.truncate(path, 0)
        reaper.signal_all([worker.pid], platform.STACK_SIGNAL)
        return path

    def _is_in(self, worker: _Worker, task: Task) -> bool:
        if isinstance(task, Actor) or (task.actor is not None and not task.actor.in_order):
            return True  # alone, or with others
        words = worker.page.words
        return bool(words[layout.CURRENT] == task.id and words[layout.BUSY])

    def statistics(self) -> dict[str, Any]:
        """Counts, for `%tasks` and for tests that want to see nothing left."""
        return {
            "workers": sorted(worker.pid for worker in self._workers.values()),
            "idle": len(self._idle),
            "zygote": self._zygote_pid,
        }

    def shutdown(self) -> None:
        self._stopping = True
        # Nobody gets away: stop, look again, kill, until nothing is below us. The zygote goes first, or it would
        # take our end for an accident.
        reaper.signal_all([self._zygote_pid], signal.SIGKILL)
        for _ in range(200):
            found = reaper.sweep(os.getpid(), with_root=False)
            living = [pid for pid in found if reaper.exists(pid)]
            reaper.kill_all(found)
            if not reaper.reap():
                return
            if not living:
                time.sleep(0.0005)


def _kinds(data: bytes) -> list[int]:
    kinds = []
    at = 0
    while len(data) - at >= HEADER_SIZE:
        size = int.from_bytes(data[at : at + 4], "little")
        kinds.append(data[at + 4])
        at += HEADER_SIZE + size
    return kinds


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
