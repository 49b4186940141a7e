"""The client: one connection to a supervisor, for the kernel, a worker or the command line.

Threads. Any thread may submit, wait and cancel. One of them at a time reads the socket: whoever waits and
finds nobody reading reads for all ("leader"; an own reader thread in between would cost 30-45 us a round trip).
Others wait on a lock of their own. While nobody waits, the reader thread sleeps on the socket and reads what
comes. User code (unpickling, callbacks, screen) never runs while leading; callbacks and events go to the event
thread.

A KeyboardInterrupt may hit any line of `wait` and `_send` in the main thread. Nothing may be lost then: bytes are kept
by the very call that received them (`list.extend(map(...))` has no byte code in between), parsing may be repeated,
and a frame that was sent in part is finished by the next one who sends.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import pickle
import queue
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_tasks import exceptions
from jupyter_tasks.refs import THREAD_PREFIX, CodeNote, Dependency, ObjectRef, arriving, current_group, process
from jupyter_tasks.show import show_bytes
from jupyter_tasks.streams import EndWaiter, GeneratorNote, ObjectRefGenerator
from jupyter_tasks.wire import serialize, shared
from jupyter_tasks.wire.frames import (
    ALL_TAKEN,
    CLIENT_SHIFT,
    FUNCTION_SHIFT,
    HEADER,
    HEADER_SIZE,
    ITEM_OF,
    PROTOCOL,
    Flag,
    Kind,
    frame,
    from_json,
    show_id,
    to_json,
)
from jupyter_tasks.wire.sockets import ANCILLARY, RECEIVE_FLAGS, descriptors, receive_exactly

if TYPE_CHECKING:
    from jupyter_tasks.threads import ThreadHost

__all__ = ["START_LIMIT", "Client", "Listener", "PackedCall", "connect", "forget_all", "read_welcome"]

T = TypeVar("T")

RECEIVE = 1 << 16  # bytes asked for at once; with 1 << 18 a call costs 18 us more (a fresh buffer each)
START_LIMIT = 30.0  # seconds; it takes 0.05, but a network file system on a busy node may take ten
READER_NAP = 0.05  # seconds: how late dropped refs are told, and so their values freed
BURST_BYTES = 1 << 18  # of tasks that go in one write: what a socket's buffer takes at once, about
MOST_DEPENDENCIES = 5000  # their ids must fit into one message to a worker, with room to spare
MOST_POLL = 1e6  # seconds; poll takes milliseconds in an int
LEAST_WITH_REF = 40  # bytes of a value; the names that a ref has in a pickle are 26
STALE_LEADER = 2.0  # seconds that bytes lie unread after which the lock counts as left behind by an interrupt

# kind, flags, task id, body: what a task wrote, showed or did. Called in the event thread.
Listener = Callable[[int, int, int, bytes], None]

PackedCall = tuple[shared.Payload, dict[str, Any] | None]  # arguments, and options with what they refer to

_CLOSE = -1  # for the event thread: close this descriptor
_FOR_THREADS = frozenset({Kind.TASK, Kind.CALL, Kind.CANCEL, Kind.EXIT})
_open: set[Client] = set()  # the clients of this process that are not closed
_SIMPLE = frozenset({int, float, bool, str, bytes, type(None)})


class _Inbox:
    """Received bytes. `state` is replaced whole, in one store, so an interrupt leaves either the old or the new."""

    __slots__ = ("raw", "state")

    def __init__(self, offset: int) -> None:
        self.raw: list[Any] = []  # what recvmsg returned, only ever extended
        # bytes, position in them, descriptors, how many of `raw` are in it, offset of the bytes in the whole stream
        self.state: tuple[bytes, int, tuple[int, ...], int, int] = (b"", 0, (), 0, offset)

    def has_more(self) -> bool:
        """There are bytes that are not parsed; perhaps whole frames."""
        return bool(self.raw) or self.state[1] < len(self.state[0])


class _Slot:
    """An answer that is awaited: of a request, or of a fetch. Has the fields of a ref that waiting needs."""

    __slots__ = ("_body", "_fd", "_given_up", "_kind", "_waiters")

    def __init__(self) -> None:
        self._kind = 0
        self._given_up = False  # nobody waits any more: the event thread closes what comes
        self._body: bytes | None = b""
        self._fd: int | None = None
        self._waiters: list[Any] | None = None


class _Goal:
    """All of these refs are final. Looks at each only once: it is asked after every few results of thousands."""

    __slots__ = ("_at", "refs")

    def __init__(self, refs: Sequence[Any]) -> None:
        self.refs = refs
        self._at = 0

    def is_reached(self) -> bool:
        refs, at = self.refs, self._at
        end = len(refs)
        while at < end and refs[at]._kind:
            at += 1
        self._at = at
        return at == end


class _All(_Goal):
    """All are final, or one has failed."""

    __slots__ = ("_client", "_failures")

    def __init__(self, client: Any, refs: Sequence[Any]) -> None:
        super().__init__(refs)
        self._client = client  # or what has the `failures` of several
        self._failures = -1

    def is_reached(self) -> bool:
        failures = self._client.failures
        if failures != self._failures:
            if any(ref._kind and ref._kind != Kind.RESULT for ref in self.refs):
                return True
            self._failures = failures
        return super().is_reached()


class _Some(_Goal):
    """So many of them are final."""

    __slots__ = ("_count",)

    def __init__(self, refs: Sequence[Any], count: int) -> None:
        super().__init__(refs)
        self._count = count

    def is_reached(self) -> bool:
        count = 0
        for ref in self.refs:
            if ref._kind:
                count += 1
        return count >= self._count


class Client:
    """One connection. Built by `jupyter_tasks.api`."""

    def __init__(self, sock: socket.socket, welcome: dict[str, Any]) -> None:
        self.client_id: int = welcome["client_id"]
        self.settings: dict[str, Any] = welcome
        self.namespace: dict[str, Any] | None = None  # the notebook's, for functions that come back
        self.listener: Listener | None = None
        self.on_lost: Callable[[], str] | None = None  # says more about a supervisor that has ended
        # Of one that is there for a detached actor alone: its id, its entry in the registry, and the answer that comes
        # when it has ended: what calls raise then.
        self.detached_actor: tuple[int, Any] | None = None
        self._epitaph = _Slot()
        self.is_buried = False  # that actor has ended, and its supervisor with it
        self.parent: Callable[[], int] | None = None  # id of the task that submits, 0 for none
        self.closed = False
        self.failures = 0  # grows with each ref that fails; whoever waits for many looks at them when it has grown
        self._closing = False
        self._shut_down = False  # the end is what we want
        self._sock = sock
        self._recvmsg = sock.recvmsg
        self.last_id = self.client_id << CLIENT_SHIFT  # of the task submitted last
        self._ids = itertools.count((self.client_id << CLIENT_SHIFT) + 1)
        self._function_ids = itertools.count((self.client_id << FUNCTION_SHIFT) + 1)
        self._request_ids = itertools.count(1)
        self._pending: dict[int, ObjectRef] = {}
        # Refs of actors, which become final only with their actors: waiting must not be what keeps these alive.
        self._actors: weakref.WeakValueDictionary[int, ObjectRef] = weakref.WeakValueDictionary()
        self._replies: dict[int, _Slot] = {}
        self._hold_lock = threading.Lock()
        self._waiters_lock = threading.RLock()  # again by a finalizer, in the midst of another's call
        self._fetches: dict[int, _Slot] = {}  # by serial number: each has an answer, and a descriptor, of its own
        # One for each ref that lives, and each function, by the note's identity.
        self.notes: dict[int, Any] = {}
        self._streams: dict[int, GeneratorNote] = {}  # one for each generator whose task is not over, by its id
        # Notes of refs, and generators, that are gone; only the reader thread takes them out.
        self._dropped: deque[Any] = deque()
        self.dropped = self._dropped.append
        self._inbox = _Inbox(0)
        self._read_lock = threading.RLock()
        self._reading_since = 0.0
        self._unread = (0.0, 0.0)  # reader thread: a leader's `_reading_since`, and since when bytes lie there for it
        self._send_lock = threading.Lock()
        self._sending: tuple[memoryview, list[int], list[int]] | None = None
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last_event = -1  # key of the frame that the event thread took last
        self._fds_taken = -1  # key of the last frame whose descriptors have an owner
        self._event_thread: threading.Thread | None = None
        self._threads: ThreadHost | None = None
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        self._reader = threading.Thread(target=self._read_on, name=f"{THREAD_PREFIX}reader", daemon=True)
        self._reader.start()
        _open.add(self)

    # -- submitting -------------------------------------------------------------------------------------------

    def new_function(self, payload: shared.Payload, options: dict[str, Any], owner: object) -> int:
        """Sends a function's code once; returns the id that tasks name it by. It is freed when `owner` is gone."""
        fn: int = next(self._function_ids)
        text = to_json(options)
        body = len(text).to_bytes(4, "little") + text + payload.head
        self.send_payload(Kind.FUNCTION, 0, body, payload, fn=fn)
        note = CodeNote(owner, self.dropped)
        note.fn = fn
        self.notes[id(note)] = note
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
        """A task of this function. Returns its ref, or a list of refs for several return values.

        Args:
            named: gives arguments their names, for error messages.

        Raises:
            UnserializableError: an argument cannot be sent.
        """
        bare = options is None
        if self.parent is not None or current_group.get() is not None:
            options = self.belonging(options)
        plain = options is None and not kwargs and num_returns == 1
        if plain:
            for arg in args:
                if type(arg) not in _SIMPLE:
                    plain = False
                    break
        if plain:
            body = b"\0" + pickle.dumps((args, kwargs), 5)
            if len(body) <= shared.INLINE_LIMIT:
                id = self.last_id = next(self._ids)
                ref = ObjectRef(self, id, label)
                self._pending[id] = ref
                self._send(HEADER.pack(len(body), Kind.TASK, 0, 0, fn, id) + body)
                return ref
        payload, options = self._packed(args, kwargs, named, options)
        if bare:
            options = _plain_member(options)
        return self.submit_packed(Kind.TASK, fn, payload, label, options, num_returns)

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
        """The same for a generator function."""
        payload, options = self._packed(args, kwargs, named, self.belonging(options))
        generator = self.new_stream(self.new_ids(1), label, backpressure=backpressure)
        # With options, if only empty ones: a generator shares its packet with no other task.
        self.submit_packed(Kind.TASK, fn, payload, label, options or {}, ref=generator.completed())
        return generator

    def new_stream(self, id: int, label: str, *, backpressure: bool) -> ObjectRefGenerator:
        """What a generator task that is submitted next hands out its items by."""
        completed = ObjectRef(self, id, label)
        generator = ObjectRefGenerator(self, completed, backpressure=backpressure)
        note = GeneratorNote(generator, self.dropped)
        note.id = id
        self._streams[id] = note
        self.add_waiter(completed, EndWaiter(note))
        self.when_final(completed, self._stream_over)
        return generator

    @property
    def threads(self) -> ThreadHost:
        """Who runs thread tasks here."""
        with self._hold_lock:
            if self._threads is None:
                from jupyter_tasks.threads import ThreadHost

                self._threads = ThreadHost(self)
            return self._threads

    def belonging(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        """A task's options, and to which task and group it belongs: by where this is called."""
        if self.parent is not None and (parent := self.parent()):
            options = {**(options or {}), "parent": parent}
        if (group := current_group.get()) is not None:
            options = {**(options or {}), "group": group.id_for(self)}
        return options

    def _packed(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        named: Callable[..., Mapping[str, Any]] | None,
        options: dict[str, Any] | None,
        *more: Any,
    ) -> tuple[shared.Payload, dict[str, Any] | None]:
        """Arguments, and more, ready for the wire; what they refer to is among the options."""
        payload, deps, pins = self.pack_arguments(args, kwargs, named, *more)
        if deps or pins:
            if len(deps) > MOST_DEPENDENCIES:
                payload.close()
                raise ValueError(
                    f"A task takes at most {MOST_DEPENDENCIES:,} refs as arguments, not {len(deps):,}. Put them in a "
                    "list, and call jt.get(list) in the task."
                )
            options = {**(options or {})}
            if deps:
                options["deps"] = deps
            if pins:
                options["pins"] = [*options.get("pins", ()), *pins]
        return payload, options

    def pack_call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        named: Callable[..., Mapping[str, Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> PackedCall:
        """One call for `submit_calls`. Its payload is the caller's to close until it is submitted.

        Raises:
            UnserializableError: an argument cannot be sent.
        """
        if not kwargs and all(type(arg) in _SIMPLE for arg in args):
            head = b"\0" + pickle.dumps((args, kwargs), 5)
            if len(head) <= shared.INLINE_LIMIT:
                return shared.Payload(head, None, len(head)), options
        return self._packed(args, kwargs, named, options)

    def submit_calls(
        self, fn: int, calls: Iterable[PackedCall], label: str, num_returns: int = 1, group: int = 0
    ) -> list[Any]:
        """Many tasks of this function in few writes. Returns for each what `submit` would.

        An error or interrupt on the way leaves some of them submitted, with nobody who knows their refs.

        Args:
            group: that they are made members of.
        """
        belonging = {**(self.belonging(None) or {}), **({"group": group} if group else {})}
        same: dict[str, Any] | None = None  # options of the call before: most have the very same
        head, flags = _options_head(_plain_member(belonging or None))
        results: list[Any] = []
        refs: list[ObjectRef] = []
        frames: list[bytes] = []
        size = 0
        try:
            for payload, options in calls:
                id = self.new_ids(num_returns)
                own = [ObjectRef(self, id + i, label) for i in range(num_returns)]
                refs += own
                results.append(own if num_returns > 1 else own[0])
                for ref in own:
                    self._pending[ref.id] = ref
                if options is not same:
                    whole = _plain_member(belonging or None) if options is None else {**options, **belonging}
                    (head, flags), same = _options_head(whole), options
                if payload.fd is None:
                    body = head + payload.head
                    frames.append(HEADER.pack(len(body), Kind.TASK, flags, 0, fn, id) + body)
                    size += len(body)
                if frames and (payload.fd is not None or size > BURST_BYTES):
                    self._send(b"".join(frames))
                    frames, size = [], 0
                if payload.fd is not None:
                    self.send_payload(Kind.TASK, id, head + payload.head, payload, fn=fn, flags=flags)
            if frames:
                self._send(b"".join(frames))
        except BaseException:
            for ref in refs:
                self._pending.pop(ref.id, None)
            raise
        return results

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
    ) -> ObjectRef | list[ObjectRef]:
        """The same with arguments that are packed already; `id` is one that `new_ids` gave, `ref` was made with one.

        Args:
            prefix: stands before the arguments.
        """
        if ref is not None:
            id, refs = ref.id, [ref]
        else:
            if id is None:
                id = self.new_ids(num_returns)
            refs = [ObjectRef(self, id + i, label) for i in range(max(1, num_returns))]
        flags = 0
        body = prefix + payload.head
        if options is not None:
            head, flags = _options_head(options)
            body = head + body
        for ref in refs:
            self._pending[ref.id] = ref
        self.send_payload(kind, id, body, payload, fn=fn, flags=flags)
        return refs[0] if num_returns <= 1 else refs

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
    ) -> ObjectRef | list[ObjectRef]:
        """A call of an actor's method. As `submit`.

        Args:
            head: which method, as on the wire.
            retry: exception types for which this call is run again.
        """
        if self._threads is not None and actor in self._threads.actors:
            refs = self._threads.submit_call(actor, head, args, kwargs, label, options, num_returns, retry)
            assert not isinstance(refs, ObjectRefGenerator)
            return refs
        if self.parent is not None or current_group.get() is not None:
            options = self.belonging(options)
        if options is None and not kwargs and num_returns == 1 and all(type(arg) in _SIMPLE for arg in args):
            body = head + b"\0" + pickle.dumps((args, kwargs), 5)
            if len(body) <= shared.INLINE_LIMIT:
                id = self.last_id = next(self._ids)
                ref = ObjectRef(self, id, label)
                ref._actor = actor
                self._pending[id] = ref
                self._send(HEADER.pack(len(body), Kind.CALL, 0, 0, actor, id) + body)
                return ref
        payload, options = self._packed(args, kwargs, named, options, *(() if retry is None else (retry,)))
        refs = self.submit_packed(Kind.CALL, actor, payload, label, options, num_returns, prefix=head)
        for ref in refs if isinstance(refs, list) else [refs]:
            ref._actor = actor
        return refs

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
        """The same for a method that is a generator."""
        if self._threads is not None and actor in self._threads.actors:
            made = self._threads.submit_call(
                *(actor, head, args, kwargs, label, options, 1, retry), backpressure=backpressure, streams=True
            )
            assert isinstance(made, ObjectRefGenerator)
            return made
        more = () if retry is None else (retry,)
        payload, options = self._packed(args, kwargs, named, self.belonging(options), *more)
        generator = self.new_stream(self.new_ids(1), label, backpressure=backpressure)
        completed = generator.completed()
        completed._actor = actor
        self.submit_packed(Kind.CALL, actor, payload, label, options or {}, ref=completed, prefix=head)
        return generator

    def is_for_actor(self, id: int, entry: Any) -> None:
        """This supervisor is there for this detached actor, and ends with it."""
        if self.detached_actor is None:
            self.detached_actor = id, entry
            request = next(self._request_ids)
            self._replies[request] = self._epitaph
            with contextlib.suppress(exceptions.ObjectLostError):  # it has ended already
                self._send(frame(Kind.REQUEST, request, to_json({"op": "epitaph"})))

    def dead_call(self, actor: int, label: str) -> ObjectRef:
        """What a call is when `is_buried`."""
        ref = ObjectRef(self, next(self._ids), label)
        ref._actor = actor
        ref._body, ref._kind = self._death()
        return ref

    def make_actor(
        self,
        fn: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str,
        options: dict[str, Any],
        named: Callable[..., Mapping[str, Any]] | None = None,
    ) -> ObjectRef:
        """An actor of this class. Its ref becomes final when the actor has ended."""
        payload, whole = self._packed(args, kwargs, named, self.belonging(options))
        return self.submit_actor(self.new_ids(1), fn, payload, label, whole)

    def submit_actor(
        self, id: int, fn: int, payload: shared.Payload, label: str, options: dict[str, Any] | None
    ) -> ObjectRef:
        """The same with arguments that are packed already; `id` is one that `new_ids` gave."""
        head, flags = _options_head(options)
        ref = ObjectRef(self, id, label)
        ref._actor = ref.id
        self._actors[ref.id] = ref
        self.send_payload(Kind.TASK, ref.id, head + payload.head, payload, fn=fn, flags=flags)
        return ref

    def holds_actor(self, id: int) -> bool:
        """There is a handle of it here."""
        return id in self._actors

    def new_ids(self, count: int) -> int:
        """The first of `count` ids in a row, as a task's return values have them."""
        first: int = next(self._ids)
        last = first
        while last - first + 1 < count:
            id = next(self._ids)
            if id != last + 1:
                first = id  # another thread took one in between: begin anew after it
            last = id
        self.last_id = last
        return first

    def pack_arguments(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        named: Callable[..., Mapping[str, Any]] | None = None,
        *more: Any,
    ) -> tuple[shared.Payload, list[int], list[int]]:
        """Arguments ready for the wire, the refs to wait for, and the refs inside them that must live on."""
        deps: list[int] = []
        args = tuple(self._as_dependency(arg, deps) for arg in args)
        kwargs = {name: self._as_dependency(arg, deps) for name, arg in kwargs.items()}
        pins: list[int] = []
        root = "argument" if named is None else (lambda: named(args, kwargs))
        data, buffers = serialize.dumps((args, kwargs, *more), root=root, reducers=_note_refs(self, pins))
        return shared.pack(data, buffers), deps, pins

    def _as_dependency(self, arg: Any, deps: list[int]) -> Any:
        if type(arg) is not ObjectRef:
            return arg
        id = self.adopted(arg).id
        deps.append(id)
        return Dependency(id)

    def adopted(self, ref: ObjectRef, *, only_wait: bool = False) -> ObjectRef:
        """What a task of this session depends on when it is given this ref: that, or what stands for one of another
        session here. It lives as long as the ref.

        Args:
            only_wait: the value is not needed, only that it is there.

        Raises:
            ObjectLostError: its session has ended.
            UnserializableError: its value is there, and cannot be sent; or has refs in it.
        """
        if ref._client is self:
            self.leaves(ref)
            return ref
        from jupyter_tasks.several import adopted

        return adopted(ref, self, only_wait=only_wait)

    def leaves(self, ref: ObjectRef) -> None:
        """This ref is about to be sent: whoever gets it must find its value.

        Raises:
            ObjectLostError: it belongs to a session that has ended.
            UnserializableError: it belongs to another session; or its value is in this process alone, and cannot be
                sent.
        """
        if ref._client is not self:
            # Each session counts its objects anew: a ref of another one would silently name somebody else's value.
            if not ref._client.closed:
                raise exceptions.UnserializableError(
                    f"{ref!r} belongs to another session, so it cannot be inside of a value that goes to this one. "
                    "Make it an argument by itself, or send its value: jt.get(ref)."
                )
            raise exceptions.ObjectLostError(
                f"{ref!r} belongs to a session that has ended, and its value with it. Run its task again."
            )
        if self._threads is not None:
            self._threads.share(ref)

    def put(self, value: Any, *, root: str = "value") -> ObjectRef:
        """Stores a value at the supervisor; returns its ref. `root` names the value in errors."""
        ref = ObjectRef(self, next(self._ids), "put")
        self.put_as(ref, value, root=root)
        ref._body = None
        ref._kind = Kind.RESULT
        return ref

    def put_as(self, ref: ObjectRef, value: Any, *, root: str = "value") -> None:
        """Stores what this ref stands for."""
        pins: list[int] = []
        data, buffers = serialize.dumps(value, root=root, reducers=_note_refs(self, pins))
        payload = shared.pack(data, buffers)
        self.send_payload(Kind.PUT, ref.id, payload.head, payload)
        if pins:
            self.contains(ref.id, pins)

    def contains(self, id: int, inside: Iterable[int]) -> None:
        """What these refs stand for must live as long as the object `id`, whose value has them in it."""
        self._send(frame(Kind.HOLD, id, array.array("Q", inside).tobytes()))

    def make_group(self, options: dict[str, Any]) -> ObjectRef:
        """A group of tasks; its ref becomes final with it, and its value is never looked at."""
        if self.parent is not None:
            options = {**options, "task": self.parent()}
        ref = ObjectRef(self, next(self._ids), options["name"])
        self._pending[ref.id] = ref
        self._send(frame(Kind.GROUP, ref.id, to_json(options)))
        return ref

    def close_group(self, ref: ObjectRef) -> None:
        """Its block was left: it becomes final when its members are."""
        self._send(frame(Kind.GROUP, ref.id))

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
        """Posts the wish; what comes of it is the supervisor's word. Returns at once, from any thread."""
        wish = {"force": force, "recursive": recursive, "source": source, "reason": reason, "grace": grace}
        self._send(frame(Kind.CANCEL, id, to_json(wish)))

    def taken(self, id: int, count: int) -> None:
        """Of the items of this generator task so many were taken, counted from its first."""
        with contextlib.suppress(exceptions.ObjectLostError):
            self._send(frame(Kind.TAKEN, id, fn=count))

    def hold(self, id: int, *, actor: int = 0) -> ObjectRef:
        """A ref that has arrived inside a value; of a call of `actor`, or of that itself."""
        if self.closed:
            lost = ObjectRef(self, id)
            if actor:
                lost._actor = actor
            self._say_lost([lost])
            return lost
        with self._hold_lock:
            ref = self._pending.get(id) or self._actors.get(id)
            if ref is not None:
                return ref  # we wait for it already, with this one
            ref = ObjectRef(self, id)
            if actor:
                ref._actor = actor
            if actor == id:
                self._actors[id] = ref
            else:
                self._pending[id] = ref
        try:
            self._send(frame(Kind.HOLD, 0, array.array("Q", [id]).tobytes()) + frame(Kind.FETCH, id))
        except BaseException:  # KeyboardInterrupt: nobody may find it here and wait for an answer that nobody asked for
            self._pending.pop(id, None)
            raise
        return ref

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(
        self, refs: Sequence[Any], count: int | None = None, timeout: float | None = None, *, or_failed: bool = False
    ) -> bool:
        """Blocks until `count` (default: all) of the refs are final. Returns whether it came to that.

        Args:
            refs: refs, generators or slots of this client, each once.
            timeout: seconds; None waits for ever, 0 looks once.
            or_failed: it is enough that one of them has failed (only where all are awaited).

        A KeyboardInterrupt gets through at once and loses nothing.
        """
        goal: _Goal
        if count is not None and count < len(refs):
            goal = _Some(refs, count)
        else:
            goal = _All(self, refs) if or_failed else _Goal(refs)
        if goal.is_reached():
            return True
        end = None if timeout is None else time.monotonic() + timeout
        if process.on_wait is None:
            return self._wait(goal, end)
        with process.on_wait():
            return self._wait(goal, end)

    def _wait(self, goal: _Goal, end: float | None) -> bool:
        while True:
            try:
                if not self._read_lock.acquire(blocking=False):
                    self._follow(goal, end)
                else:
                    self._lead(goal, end)
            finally:
                # Not `with`: an interrupt between getting the lock and noting so must not keep it. And twice, since
                # an interrupt may hit the first one before it has done anything (measured: in 1 of 40,000).
                try:
                    self._let_go()
                finally:
                    self._let_go()
            if self.closed:
                # Whoever noticed the end may not have told all yet.
                self._say_lost([_end_of(ref) for ref in goal.refs if not ref._kind])
            if goal.is_reached():
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def _let_go(self) -> None:
        """Gives the read lock back if this thread has it, however often."""
        lock = self._read_lock
        while lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition does
            try:
                self._rearm()
            finally:
                lock.release()

    def _lead(self, goal: _Goal, end: float | None) -> None:
        """Reads the socket until enough is there. The caller holds the lock."""
        if self._inbox.has_more():
            self._parse()  # an interrupt may have left whole frames here
        if goal.is_reached() or self.closed:
            return
        if self._epoll is not None:
            self._epoll.modify(self._sock.fileno(), 0)  # the reader thread sleeps on while we read
        while end is None or self._readable(end - time.monotonic()):
            self._read()
            if goal.is_reached() or self.closed:
                return

    def _follow(self, goal: _Goal, end: float | None) -> None:
        """Waits while another thread reads."""
        lock = threading.Lock()
        lock.acquire()
        mine = [ref for ref in goal.refs if not ref._kind]
        try:
            for ref in mine:
                self.add_waiter(ref, lock)
            while not goal.is_reached() and not self.closed:  # after registering: what came in between is seen here
                # Look now and then all the same: the leader may have left with nobody to follow.
                rest = READER_NAP if end is None else min(READER_NAP, end - time.monotonic())
                if rest <= 0:
                    return
                if not lock.acquire(timeout=rest) and self._epoll is None:
                    return
        finally:
            for ref in mine:
                waiters = ref._waiters
                if waiters is not None and lock in waiters:
                    waiters.remove(lock)

    def add_waiter(self, ref: Any, waiter: Any) -> None:
        """Has `waiter.release()` called once the ref is final, perhaps more than once, by whoever reads the socket.

        Who adds looks afterwards whether it is final already. Any thread.
        """
        if ref._waiters is None:
            with self._waiters_lock:  # two threads at once must not make two lists
                if ref._waiters is None:
                    ref._waiters = []
        ref._waiters.append(waiter)

    def _rearm(self) -> None:
        self._reading_since = 0.0
        if self._epoll is not None and not self.closed:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def _readable(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(min(max(0, timeout), MOST_POLL) * 1000))  # whoever waits looks at the clock again

    def _read(self) -> None:
        """One receive and what it brought. Only by the holder of the lock."""
        inbox = self._inbox
        self._reading_since = time.monotonic()
        try:
            # No byte code between the system call and the keeping of its bytes.
            inbox.raw.extend(map(self._recvmsg, (RECEIVE,), (ANCILLARY,), (RECEIVE_FLAGS,)))
        except (ConnectionError, OSError):
            self._lost()
            return
        if not inbox.raw[-1][0]:
            self._lost()
            return
        self._parse()

    def _parse(self) -> None:
        """Handles every whole frame. May be interrupted anywhere and done again: each step is idempotent."""
        inbox = self._inbox
        data, at, fds, taken, offset = inbox.state
        if len(inbox.raw) > taken:
            news = inbox.raw[taken:]
            for item in news:
                if item[1]:
                    fds = fds + tuple(descriptors(item[1]))
            joined = b"".join([data[at:], *(item[0] for item in news)])
            offset, data, at, taken = offset + at, joined, 0, 0
            inbox = _Inbox(offset)  # a new one each time, or a long stream of half frames would fill the memory
            inbox.state = (data, at, fds, taken, offset)
            self._inbox = inbox
        end = len(data)
        unpack = HEADER.unpack_from
        pending = self._pending
        while end - at >= HEADER_SIZE:
            size, kind, flags, nfds, fn, id = unpack(data, at)
            stop = at + HEADER_SIZE + size
            if stop > end:
                break
            if kind == Kind.RESULT and not nfds and not fn and id in pending:
                ref = pending[id]
                ref._body = None if flags & Flag.BIG else data[at + HEADER_SIZE : stop]
                self._final(ref, kind)
                pending.pop(id, None)
            else:
                self._handle(offset + at, kind, flags, fn, id, data[at + HEADER_SIZE : stop], fds[:nfds])
                fds = fds[nfds:]
            at = stop
            inbox.state = (data, at, fds, taken, offset)
        if at == end and taken == len(inbox.raw):
            self._inbox = _Inbox(offset + at)

    def _handle(self, key: int, kind: int, flags: int, fn: int, id: int, body: bytes, fds: tuple[int, ...]) -> None:
        """The frames that are not the hot path.

        `key` is the frame's place in the stream: it tells a frame that an interrupt made us come by once more.
        """
        if kind in (Kind.RESULT, Kind.ERROR, Kind.FAILURE):
            slot = self._fetches.get(fn) if fn else None
            if slot is not None:
                if key > self._fds_taken:
                    slot._body, slot._fd = body, fds[0] if fds else None
                    self._fds_taken = key
                self._final(slot, kind)
                if slot._given_up:
                    self._events.put((None, slot))
            elif fds and key > self._fds_taken:
                self._fds_taken = key
                self._tell(key, _CLOSE, 0, 0, fds[0], b"")  # an answer to `hold`: the bytes are fetched when wanted
            ref = self._pending.get(id) or self._actors.get(id)
            if ref is not None:
                if flags & Flag.BIG or fds:
                    ref._body = None
                else:
                    ref._body = body
                self._final(ref, kind)
                self._pending.pop(id, None)
        elif kind == Kind.REPLY:
            slot = self._replies.get(id)
            if slot is not None:
                slot._body = body
                self._final(slot, kind)
                self._replies.pop(id, None)
        elif kind == Kind.ITEM:
            self._tell(key, kind, flags, fn, id, body)
            task, place = ITEM_OF.unpack_from(body)
            generator = self._generator(task)
            if generator is not None:
                generator._arrived = max(generator._arrived, place + 1)
                self._wake(generator)
        else:
            self._tell(key, kind, flags, fn, id, body, fds)

    def _tell(self, key: int, kind: int, flags: int, fn: int, id: int, body: bytes, fds: Sequence[int] = ()) -> None:
        self._events.put((key, kind, flags, fn, id, body, fds))
        self._need_events()

    def _final(self, ref: Any, kind: int) -> None:
        ref._kind = kind
        if kind != Kind.RESULT:
            self.failures += 1  # after the kind: who sees the new count finds the failure
        self._wake(ref)

    def _wake(self, ref: Any) -> None:
        waiters = ref._waiters
        if waiters:
            for lock in list(waiters):
                with contextlib.suppress(RuntimeError):
                    lock.release()
        if getattr(ref, "_callbacks", None):
            self._events.put((None, ref))

    # -- values -----------------------------------------------------------------------------------------------

    def value(self, ref: ObjectRef, originals: Mapping[int, Any] | None = None) -> Any:
        """What a final ref stands for: returns the value, or raises the task's error.

        Args:
            originals: objects of ours that the value names by their places (see wire.identity).
        """
        body = ref._body
        if ref._kind == Kind.RESULT and body is not None and len(body) < LEAST_WITH_REF:
            data, buffers = shared.unpack(body, None, writable=True)
            return serialize.loads(data, buffers, namespace=self.namespace, originals=originals)
        outer = arriving.client
        try:
            arriving.client = self
            if ref._kind != Kind.RESULT:
                raise self._error(ref._kind, ref._body or b"", ref)
            if ref._body is None and hasattr(ref, "_local"):  # of a thread task: the object itself
                return ref._local
            data, buffers = self.with_bytes(ref, _unpacked)
            return serialize.loads(data, buffers, namespace=self.namespace, originals=originals)
        finally:
            arriving.client = outer

    def with_bytes(self, ref: ObjectRef, use: Callable[[bytes, int | None], T]) -> T:
        """Returns `use(body, descriptor)` of a final value as it travels; the descriptor is open meanwhile."""
        return use(ref._body, None) if ref._body is not None else self._fetch(ref, use)

    def _fetch(self, ref: ObjectRef, use: Callable[[bytes, int | None], T]) -> T:
        """The same for a big value, whose bytes are brought first. Blocks."""
        self._need_events()
        slot = _Slot()
        serial = next(self._request_ids)
        try:
            self._fetches[serial] = slot
            self._send(frame(Kind.FETCH, ref.id, fn=serial))
            self.wait([slot])
            if slot._kind != Kind.RESULT:
                raise self._error(slot._kind or Kind.FAILURE, slot._body or self._lost_record(), ref)
            return use(slot._body or b"", slot._fd)
        finally:
            # An interrupt may be why we are here: the answer may have come, or be on its way, or half taken in. So
            # one thread, which no interrupt reaches, closes every descriptor.
            slot._given_up = True
            self._events.put((None, slot))

    def _error(self, kind: int, body: bytes, ref: ObjectRef) -> BaseException:
        if kind == Kind.ERROR:
            original = ref._local if hasattr(ref, "_local") else None  # of a thread task: the error itself
            return _task_error(body, ref.task_id, ref.label, self.namespace, original)
        return failure_error(from_json(body))

    def when_final(self, ref: Any, callback: Callable[[Any], None]) -> bool:
        """Calls `callback(ref)` in the event thread once the ref is final (a generator: has a ref to take, or is over).

        False if that thread has ended, with the connection.
        """
        self._need_events()
        with self._waiters_lock:  # before the event thread takes them, or behind: then it comes once more
            if ref._callbacks is None:
                ref._callbacks = []
            ref._callbacks.append(callback)
        if ref._kind:
            self._events.put((None, ref))
        return self._event_thread is not None and self._event_thread.is_alive()

    # -- questions --------------------------------------------------------------------------------------------

    def request(self, op: str, timeout: float | None = 30.0, **arguments: Any) -> Any:
        """Asks the supervisor; returns its JSON answer.

        Raises:
            ObjectLostError: it has ended, or did not answer within `timeout` seconds.
        """
        id = next(self._request_ids)
        slot = _Slot()
        try:
            self._replies[id] = slot
            self._send(frame(Kind.REQUEST, id, to_json({"op": op, **arguments})))
            self.wait([slot], timeout=timeout)
        finally:
            self._replies.pop(id, None)  # an interrupt may have ended the waiting
        if not slot._kind:
            raise exceptions.ObjectLostError(f"The supervisor did not answer {op!r} within {timeout} s.")
        if slot._kind == Kind.FAILURE:
            raise failure_error(from_json(slot._body or b"{}"))
        return from_json(slot._body or b"null")

    def pending(self, id: int) -> ObjectRef | None:
        """The ref with this id, if it is not final yet."""
        return self._pending.get(id)

    def say(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Sends a frame, and these descriptors with it, which stay the caller's.

        Raises:
            ObjectLostError: the supervisor has gone.
        """
        self._send(data, fds)

    # -- sending ----------------------------------------------------------------------------------------------

    def send_payload(
        self, kind: int, id: int, body: bytes, payload: shared.Payload, *, fn: int = 0, flags: int = 0
    ) -> None:
        fds = [payload.fd] if payload.fd is not None else []
        try:
            self._send(frame(kind, id, body, fn=fn, flags=flags, fds=len(fds)), fds)
        finally:
            payload.close()

    def _send(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Sends whole frames, in order. An interrupt may leave a rest, which the next call sends first."""
        if self.closed:
            raise exceptions.ObjectLostError(
                "The supervisor of this session has ended; call the function again to start a new one."
            )
        with self._send_lock:
            if self._sending is not None:
                self._send_rest()
            sent: list[int] = []
            self._sending = (memoryview(data), [os.dup(fd) for fd in fds] if fds else [], sent)
            if not fds:
                # The usual case: all of it at once. No byte code between the system call and the note of its result.
                try:
                    sent.extend(map(self._sock.send, (data,)))
                except OSError:
                    pass  # `_send_rest` meets it again
                if sent and sent[0] == len(data):
                    self._sending = None
                    return
            self._send_rest()

    def _send_rest(self) -> None:
        sending = self._sending
        assert sending is not None
        data, fds, sent = sending
        try:
            while (at := sum(sent)) < len(data):
                if at == 0 and fds:
                    anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent.extend(map(self._sock.sendmsg, ([data],), (anc,)))
                else:
                    sent.extend(map(self._sock.send, (data[at:],)))
        except (BrokenPipeError, ConnectionError):
            pass  # the reader sees the end of the connection and says so to every ref
        self._sending = None
        for fd in fds:
            os.close(fd)

    def _release_frame(self) -> bytes:
        """Reader thread only, where no KeyboardInterrupt can come between taking a note and telling it."""
        ids = array.array("Q")
        nobody_takes = b""
        dropped, notes = self._dropped, self.notes
        for _ in range(len(dropped)):
            note = dropped.popleft()
            if isinstance(note, GeneratorNote):
                self._streams.pop(note.id, None)
                nobody_takes += frame(Kind.TAKEN, note.id, fn=ALL_TAKEN)
                continue
            notes.pop(id(note), None)
            if isinstance(note, CodeNote):
                nobody_takes += frame(Kind.FORGET_CODE, fn=note.fn)
            else:
                ids.append(note.id)
        return frame(Kind.RELEASE, 0, ids.tobytes()) + nobody_takes

    # -- threads ----------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """The reader thread: reads while nobody leads, tells dropped refs, mends what interrupts left."""
        poll = None
        if self._epoll is None:
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLIN)
        while not self.closed:
            try:
                events = poll.poll(READER_NAP * 1000) if poll else self._epoll.poll(READER_NAP)  # type: ignore[union-attr]
            except (OSError, ValueError):
                return
            if events:
                self._read_what_is_there()
            if self._dropped or self._sending is not None:
                self._tell_dropped()
            self._mend()

    def _read_what_is_there(self) -> None:
        if not self._read_lock.acquire(blocking=False):
            return
        try:
            while not self.closed and self._readable(0):
                self._read()
        finally:
            self._rearm()
            self._read_lock.release()

    def _tell_dropped(self) -> None:
        with contextlib.suppress(exceptions.ObjectLostError), self._send_lock:
            if self._sending is not None:
                self._send_rest()
            if self._dropped:
                self._sending = (memoryview(self._release_frame()), [], [])
                self._send_rest()

    def _mend(self) -> None:
        """A leader that an interrupt threw out in the one unguarded place has left its lock: make a new one."""
        if self._read_lock.acquire(blocking=False):
            if self._inbox.has_more():
                self._parse()
            self._rearm()
            self._read_lock.release()
        elif self._leader_is_gone():
            self._read_lock = threading.RLock()
            self._rearm()

    def _leader_is_gone(self) -> bool:
        """Bytes lie unread for STALE_LEADER seconds, though somebody has the lock.

        One look is not enough: a leader that has waited for long is only just being woken by what we see. Whoever took
        these bytes from under it would leave it waiting for ever.
        """
        since = self._reading_since
        if not since or not self._readable(0):
            self._unread = (0.0, 0.0)
            return False
        now = time.monotonic()
        if self._unread[0] != since:
            self._unread = (since, now)
        return now - self._unread[1] > STALE_LEADER

    def _need_events(self) -> None:
        if self._event_thread is None and not self._closing:
            self._event_thread = threading.Thread(target=self._tell_events, name=f"{THREAD_PREFIX}events", daemon=True)
            self._event_thread.start()

    def drain_events(self, timeout: float = 2.0) -> None:
        """Returns when the event thread has taken in all that has arrived so far (at most `timeout` seconds)."""
        if self._event_thread is None or threading.current_thread() is self._event_thread:
            return
        done = threading.Event()
        self._events.put((None, done))
        done.wait(timeout)

    def until_told(self) -> bool:
        """The same also in the event thread, where a callback may wait for what stands behind it. False if that thread
        has ended, with the connection."""
        thread = self._event_thread
        if thread is None or not thread.is_alive():
            return False
        if threading.current_thread() is not thread:
            self.drain_events()
            return True
        with contextlib.suppress(queue.Empty):
            while self._tell_one(self._events.get_nowait()):
                pass
        return True

    def _tell_events(self) -> None:
        while self._tell_one(self._events.get()):
            pass  # while nothing happens, nothing is held: a ref here would keep its value alive

    def _tell_one(self, event: Any) -> bool:
        """One of the things that are for the event thread. False for the last."""
        if event is None:
            self._events.put(None)  # a callback may have taken it, and the thread itself must see it
            return False
        if event[0] is None:
            if isinstance(event[1], threading.Event):
                event[1].set()
            elif isinstance(event[1], _Slot):
                self._close_given_up(event[1])
            else:
                self._call_back(event[1])
            return True
        key, kind, flags, fn, id, body, fds = event
        if key <= self._last_event:
            return True
        self._last_event = key
        if kind == _CLOSE:
            os.close(id)
            return True
        if kind == Kind.ITEM:
            self._add_item(flags, id, body)
            return True
        if kind in _FOR_THREADS:
            self.threads.hear(kind, flags, fn, id, body, fds[0] if fds else None)
            return True
        if fds:
            data, _ = shared.unpack(body, fds[0], writable=False)
            body = bytes(data)
            os.close(fds[0])
        if self.listener is not None:
            try:
                self.listener(kind, flags, id, body)
            except Exception:
                import traceback

                traceback.print_exc()
        return True

    # -- generators -------------------------------------------------------------------------------------------

    def _generator(self, id: int) -> ObjectRefGenerator | None:
        """The one of this task, while somebody holds it and the task is not over."""
        note = self._streams.get(id)
        return note() if note is not None else None

    def _add_item(self, flags: int, id: int, body: bytes) -> None:
        """Event thread. One of a generator that is gone is released in the usual way: with its ref."""
        task, place = ITEM_OF.unpack_from(body)
        generator = self._generator(task)
        ref = ObjectRef(self, id, f"{generator.label}[{place}]" if generator is not None else "")
        ref._task = task
        ref._body = None if flags & Flag.BIG else body[ITEM_OF.size :]
        if self._threads is not None:
            self._threads.item_made(task, place, ref)
        ref._kind = Kind.RESULT
        if generator is not None:
            generator._refs.append((place, ref))
            generator._made += 1

    def _stream_over(self, completed: ObjectRef) -> None:
        """Event thread; behind all of its items."""
        self._streams.pop(completed.id, None)

    def _close_given_up(self, slot: _Slot) -> None:
        if slot._kind:  # otherwise its answer comes by here
            fd, slot._fd = slot._fd, None
            if fd is not None:
                os.close(fd)
            for serial in [serial for serial, other in list(self._fetches.items()) if other is slot]:
                self._fetches.pop(serial, None)

    def _call_back(self, ref: Any) -> None:
        with self._waiters_lock:
            callbacks, ref._callbacks = ref._callbacks, None
        for callback in callbacks or ():
            try:
                callback(ref)
            except BaseException:  # also a SystemExit: this thread is not the callback's to end
                import traceback

                traceback.print_exc()

    # -- the end ----------------------------------------------------------------------------------------------

    def _lost(self) -> None:
        """The supervisor has gone: every open ref says so at once."""
        if self.detached_actor is not None and not self._closing:
            self.is_buried = True
        self.closed = True
        fetches = [slot for slot in list(self._fetches.values()) if not slot._kind]
        actors = [ref for ref in list(self._actors.values()) if not ref._kind]
        self._say_lost([*list(self._pending.values()), *actors, *list(self._replies.values()), *fetches])
        for table in (self._pending, self._replies, self._fetches):
            table.clear()
        if self._threads is not None:
            self._threads.lost()

    def _say_lost(self, open_ones: Iterable[Any]) -> None:
        """Any thread, once `closed` is set. Two at the same time write the same."""
        record = self._lost_record()
        death = self._death() if self.is_buried else (record, Kind.FAILURE)
        for ref in open_ones:
            is_call = hasattr(ref, "_actor") and ref._actor != ref.id
            ref._body, kind = death if is_call else (record, Kind.FAILURE)
            self._final(ref, kind)

    def _lost_record(self) -> bytes:
        wanted = self._closing or self._shut_down
        why = self.on_lost() if self.on_lost is not None and not wanted else ""
        if self.is_buried:
            return self._death_record()
        return to_json({"type": "gone", "shutdown": wanted, "why": why})

    def _death(self) -> tuple[bytes, int]:
        """The outcome of calls when `is_buried`, and its kind."""
        if self._epitaph._kind != Kind.REPLY:
            return self._death_record(), Kind.FAILURE
        answer = from_json(self._epitaph._body or b"")
        return answer["body"].encode("latin-1"), answer["kind"]

    def _death_record(self) -> bytes:
        """When it was not heard how the actor has ended."""
        assert self.detached_actor is not None
        id, entry = self.detached_actor
        facts = {"actor_id": show_id(id), "actor": entry.name}
        return to_json({"type": "actor_died", **facts, "why": "its supervisor has ended"})

    def hang_up(self) -> None:
        """Tells the supervisor to end. Its own end of the connection closes when all below it is gone."""
        self._shut_down = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends the connection; open refs raise ObjectLostError. May be called twice."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._lost()
        self._events.put(None)
        if threading.current_thread() is not self._reader:
            self._reader.join(5)
        if self._event_thread is not None and threading.current_thread() is not self._event_thread:
            self._event_thread.join(5)
        self.forget()

    def forget(self) -> None:
        """Closes the descriptors and nothing else: also what a forked child does with its parent's client."""
        self.closed = self._closing = True
        _open.discard(self)
        record = to_json({"type": "gone", "why": "it belongs to the process that this one was forked from"})
        for ref in list(self._pending.values()):
            # Only in a forked child are any left. Nobody waits for them here: its other threads did not come along.
            ref._body, ref._kind = record, Kind.FAILURE
        if self._epoll is not None:
            self._epoll.close()
        self._sock.close()


def forget_all() -> None:
    """In a forked child: none of the connections is its own."""
    for client in list(_open):
        with contextlib.suppress(Exception):
            client.forget()


def connect(path: str, key: str, worker: int = 0, timeout: float = START_LIMIT) -> Client:
    """Connects to a supervisor that runs.

    Args:
        worker: the number of the worker that this process is.
        timeout: seconds that it may take to answer.

    Raises:
        JupyterTasksError: it refuses us, in its own words.
        OSError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
        sock.sendall(frame(Kind.HELLO, 0, to_json({"protocol": PROTOCOL, "key": key, "worker": worker})))
        welcome = read_welcome(sock)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return Client(sock, welcome)


def read_welcome(sock: socket.socket) -> dict[str, Any]:
    """A supervisor's first word: its settings.

    Raises:
        JupyterTasksError: it refuses us.
        ConnectionError: it ended before it answered.
    """
    header = receive_exactly(sock, HEADER_SIZE)
    size, kind, *_ = HEADER.unpack(header)
    welcome = from_json(receive_exactly(sock, size))
    if kind != Kind.HELLO or "refused" in welcome:
        raise exceptions.JupyterTasksError(welcome.get("refused", "This is not a supervisor of jupyter_tasks."))
    return dict(welcome)


def _plain_member(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a task that has no options of its own: a member of a group, and nothing else, may share a packet, too."""
    return {**options, "plain": True} if options is not None and options.keys() == {"group"} else options


def _options_head(options: dict[str, Any] | None) -> tuple[bytes, int]:
    """How a TASK's body begins, and its flags."""
    if options is None:
        return b"", 0
    text = to_json(options)
    return len(text).to_bytes(4, "little") + text, Flag.OPTIONS | (Flag.ANNOUNCE if options.get("announce") else 0)


def _note_refs(client: Client, pins: list[int]) -> Callable[[object], Any]:
    """A hook for the pickler that notes the refs inside a value: they must live as long as it."""

    def reduce(value: object) -> Any:
        if type(value) is ObjectRef:
            client.leaves(value)
            pins.append(value.id)
        return NotImplemented

    return reduce


def _unpacked(body: bytes, fd: int | None) -> tuple[bytes | memoryview, list[memoryview]]:
    return shared.unpack(body, fd, writable=True)


def _end_of(ref: Any) -> Any:
    """What becomes final when the supervisor is lost, for one who waits for this."""
    return ref.completed() if isinstance(ref, ObjectRefGenerator) else ref


# -- foreign words become ours, here and only here -----------------------------------------------------------


def _task_error(
    body: bytes, task_id: str, name: str, namespace: dict[str, Any] | None, original: BaseException | None
) -> exceptions.JupyterTasksError:
    """An ERROR's body becomes what `get` raises."""
    record = pickle.loads(body)
    cause = original
    if cause is None and record["exception"] is not None:
        try:
            cause = serialize.loads(record["exception"], namespace=namespace)
        except Exception:
            cause = None  # its class is not to be had here: type name, text and traceback remain
    if isinstance(cause, exceptions.JupyterTasksError) and not isinstance(cause, exceptions.TaskError):
        cause.__cause__ = exceptions.RemoteTraceback(record["traceback_text"])
        return cause  # our own error, raised by a `get` inside the task: it stays what it is
    message = f"{record['type_name']}: {record['message']}" if cause is None else ""
    error = exceptions.task_error(
        cause if isinstance(cause, BaseException) else None,
        message,
        task_id=task_id,
        name=name,
        type_name=record["type_name"],
        traceback_text=record["traceback_text"],
    )
    error.__cause__ = exceptions.RemoteTraceback(record["traceback_text"])
    error.__dict__["lines"] = record.get("lines")
    return error


def failure_error(record: dict[str, Any]) -> exceptions.JupyterTasksError:
    """A FAILURE's record becomes what `get` raises; every message ends with what to do, if there is something."""
    kind = record.get("type")
    facts: dict[str, Any] = {k: record[k] for k in ("task_id", "name") if k in record}
    who = f"Task {facts.get('task_id', '?')} ({facts.get('name', '?')})"
    if kind == "cancelled":
        return _cancelled(record, who, facts)
    if kind == "timeout":
        message = f"{who} ran longer than its timeout of {record['timeout']:g} s and was stopped ({record['rung']})."
        return exceptions.TaskTimeoutError(message, timeout=record["timeout"], rung=record["rung"], **facts)
    if kind == "memory":
        used, limit = record["used"], record["limit"]
        message = (
            f"{who} used {show_bytes(used)} of limit {show_bytes(limit)} and was killed. Give it a higher `memory=`."
        )
        return exceptions.OutOfMemoryError(message, used=used, limit=limit, **facts)
    if kind == "crashed":
        how = record.get("signal_name") or f"exit code {record.get('exit_code')}"
        message = f"The worker of {who.lower()} ended: {how}."
        if record.get("why"):
            message = f"{message} {record['why']}"
        return exceptions.WorkerCrashedError(
            message, exit_code=record.get("exit_code"), signal_name=record.get("signal_name"), **facts
        )
    if kind == "actor_died":
        who = f"Actor {record['actor_id']} ({record['actor']})"
        facts = {"actor_id": record["actor_id"], "name": record["actor"]}
        return exceptions.ActorDiedError(f"{who} has ended: {record['why']}. Make a new one.", **facts)
    if kind == "actor_unavailable":
        who = f"Actor {record['actor_id']} ({record['actor']})"
        what = "ended while this call ran" if record["began"] else "ended before this call began"
        message = (
            f"{who} {what} ({record['why']}), and is made again. Call it again; with max_task_retries that is done "
            "for you."
        )
        facts = {"actor_id": record["actor_id"], "name": record["actor"], "began": record["began"]}
        return exceptions.ActorUnavailableError(message, **facts)
    if kind == "lost":
        return exceptions.ObjectLostError(
            f"Object {record.get('object_id')} is gone: every ref to it was dropped before it was used."
        )
    if kind == "unsendable":
        return exceptions.UnserializableError(record["message"])
    if kind == "unkept":
        return exceptions.ObjectLostError(
            f"The process that was to bring the value of {record['name']} from another session has ended before it was "
            "there. Get it there, and run the task again with it."
        )
    if record.get("shutdown"):
        return exceptions.ObjectLostError("The session was shut down; call the function again to start a new one.")
    why = f" ({record['why']})" if record.get("why") else ""
    return exceptions.ObjectLostError(
        f"The supervisor that held this value has ended{why}. Run the task again; that starts a new one."
    )


def _cancelled(record: dict[str, Any], who: str, facts: dict[str, Any]) -> exceptions.TaskCancelledError:
    source, rung, seconds = record["source"], record["rung"], record["seconds"]
    reason = f": {record['reason']}" if record["reason"] else ""
    if source == "task":
        message = f"{who} raised a KeyboardInterrupt, or a CancelledError, of its own."
    elif rung == "pending":
        message = f"{who} was cancelled before it started (by {source}{reason})."
    else:
        how = {
            "ask": "its function ended after it was asked to stop,",
            "interrupt": "interrupted",
            "terminate": "ended by SIGTERM",
            "kill": "killed",
        }[rung]
        message = f"{who} was cancelled (by {source}{reason}): {how} after {seconds:.2f} s."
    cls = exceptions.ForceCancelledError if record.get("force") else exceptions.TaskCancelledError
    return cls(message, source=source, reason=record["reason"], rung=rung, seconds=seconds, **facts)
