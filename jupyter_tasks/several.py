"""More than one session: waiting for refs of several clients, and values that go from one session into another.

A process has a session of its own, and may be connected to others: each has a supervisor, counts its objects by itself
and is reached through a client of its own. A ref belongs to its client.

Waiting. For refs of one client whoever waits reads the socket (`Client.wait`). For those of several nobody could read
two sockets at once and hear an interrupt, so the reader thread of each client reads, and who waits sleeps on a lock.

Values. A task can name only objects of its own session. For a ref of another one an object is made there: it has the
same bytes, or, as long as there are none, it is promised, and brought from here as soon as they are. If this process
ends before, what waits for it fails.

Thread: any. Promised values are brought by the event thread of the client that they come from.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jupyter_tasks.exceptions import ObjectLostError, UnserializableError
from jupyter_tasks.refs import ObjectRef, process
from jupyter_tasks.wire.frames import PACKED_NONE, Flag, Kind, frame, to_json

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = ["adopted", "elsewhere", "sleep", "wait"]

LOOK_EVERY = 0.05  # seconds: how late an end is seen whose word an interrupt in another thread has cut off
CHUNK = 1 << 20  # bytes of a pickle that are looked at at once
NAMES_OF_A_REF = (b"jupyter_tasks.refs", b"_arrived")  # in every pickle that has one in it

_lock = threading.RLock()  # again by a finalizer, in the midst of another's call


# -- waiting ----------------------------------------------------------------------------------------------------------


def wait(
    refs: Sequence[Any], count: int | None = None, timeout: float | None = None, *, or_failed: bool = False
) -> bool:
    """`Client.wait` for refs and generators of any clients."""
    client: Client = refs[0]._client
    for ref in refs:
        if ref._client is not client:
            return _wait_for_several(refs, count, timeout, or_failed=or_failed)
    return client.wait(refs, count, timeout, or_failed=or_failed)


class _Failures:
    """The `failures` of several clients."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients

    @property
    def failures(self) -> int:
        return sum(client.failures for client in self._clients)


def _wait_for_several(refs: Sequence[Any], count: int | None, timeout: float | None, *, or_failed: bool) -> bool:
    from jupyter_tasks.client import _All, _Goal, _Some

    end = None if timeout is None else time.monotonic() + timeout
    clients: list[Client] = list(dict.fromkeys(ref._client for ref in refs))
    goal: _Goal
    if count is not None and count < len(refs):
        goal = _Some(refs, count)
    else:
        goal = _All(_Failures(clients), refs) if or_failed else _Goal(refs)
    if goal.is_reached():
        return True
    with process.on_wait() if process.on_wait is not None else contextlib.nullcontext():
        return sleep(clients, refs, goal.is_reached, end)


def sleep(clients: Sequence[Client], refs: Sequence[Any], is_reached: Callable[[], bool], end: float | None) -> bool:
    """Returns whether it is reached, when that is so or `end` has come. The clients' reader threads read meanwhile.

    Args:
        refs: what wakes it, once final. One that belongs to no client counts as lost with any of them.
        end: on the monotonic clock.
    """
    from jupyter_tasks.client import _end_of

    bell = threading.Lock()
    bell.acquire()
    mine = [ref for ref in refs if not ref._kind]
    try:
        for ref in mine:
            getattr(ref, "_client", clients[0]).add_waiter(ref, bell)
        while True:  # after registering: what came in between is seen here
            for client in clients:
                if client.closed:
                    # Whoever noticed the end may not have told all yet.
                    client._say_lost([_end_of(ref) for ref in mine if not ref._kind and _is_of(ref, client)])
            if is_reached():
                return True
            rest = LOOK_EVERY if end is None else min(LOOK_EVERY, end - time.monotonic())
            if rest <= 0:
                return False
            bell.acquire(timeout=rest)
    finally:
        for ref in mine:
            if ref._waiters is not None and bell in ref._waiters:
                ref._waiters.remove(bell)


def _is_of(ref: Any, client: Client) -> bool:
    return getattr(ref, "_client", client) is client


# -- values -----------------------------------------------------------------------------------------------------------


def adopted(ref: ObjectRef, to: Client, *, only_wait: bool) -> ObjectRef:
    """What stands for this ref of another session in that of `to`. See `Client.adopted`."""
    client = ref._client
    if client.closed:
        to.leaves(ref)  # raises
    known, key = elsewhere(ref), (to, only_wait)
    if key in known:
        return known[key]
    there = ObjectRef(to, to.new_ids(1), ref.label)
    if ref._kind:
        _bring(there, ref, only_wait=only_wait)
    else:
        # In this order: an interrupt in between leaves no promise that nobody keeps. A value that comes before its
        # promise is an object like any other.
        bring = functools.partial(_bring_or_tell, there, only_wait=only_wait)
        heard = client.when_final(ref, bring)
        to.say(frame(Kind.PUT, there.id, ref.label.encode(), flags=Flag.LATER))
        if not heard:
            client.wait([ref])
            bring(ref)
    return known.setdefault(key, there)


def elsewhere(ref: ObjectRef) -> dict[tuple[Client, bool], ObjectRef]:
    """What stands for the ref in other sessions that live, by their clients and `only_wait`. The ref itself has it: so
    it lives as long."""
    with _lock:
        if not hasattr(ref, "_elsewhere"):
            ref._elsewhere = {}
        for key in [key for key in list(ref._elsewhere) if key[0].closed]:
            del ref._elsewhere[key]
        return ref._elsewhere


def _bring_or_tell(there: ObjectRef, ref: ObjectRef, *, only_wait: bool) -> None:
    """Event thread. What hinders the value is the error of what waits for it."""
    try:
        try:
            _bring(there, ref, only_wait=only_wait)
        except ObjectLostError:
            _fail(there, ref._client._lost_record())
        except Exception as error:
            _fail(there, to_json({"type": "unsendable", "message": str(error)}))
    except ObjectLostError:
        pass  # nobody waits any more: that session has ended


def _fail(there: ObjectRef, record: bytes) -> None:
    there._client.say(frame(Kind.PUT, there.id, record, fn=Kind.FAILURE))


def _bring(there: ObjectRef, ref: ObjectRef, *, only_wait: bool) -> None:
    """Gives `there` the outcome of `ref`, which is final.

    Raises:
        ObjectLostError: one of both sessions has ended.
        UnserializableError: the value has refs in it, or it is in this process alone and cannot be sent.
    """
    to, client = there._client, ref._client
    if ref._kind != Kind.RESULT:
        to.say(frame(Kind.PUT, there.id, _error_body(ref), fn=ref._kind))
    elif only_wait:
        to.say(frame(Kind.PUT, there.id, PACKED_NONE))
    elif hasattr(ref, "_local") or client.settings.get("local_mode"):  # there are no bytes yet
        to.put_as(there, client.value(ref), root=ref.label or "value")
    else:
        client.with_bytes(ref, functools.partial(_pass_on, there, ref))


def _pass_on(there: ObjectRef, ref: ObjectRef, body: bytes, fd: int | None) -> None:
    """The same bytes; of shared memory the descriptor."""
    from jupyter_tasks.wire import shared

    data, _ = shared.unpack(body, fd, writable=False)
    if _has_refs(data):
        raise UnserializableError(
            f"The value of {ref!r}, which belongs to another session, has references in it, and these mean nothing in "
            "this one. Make them arguments by themselves, or send what they stand for: jt.get."
        )
    fds = [fd] if fd is not None else []
    there._client.say(frame(Kind.PUT, there.id, body, fds=len(fds)), fds)


def _error_body(ref: ObjectRef) -> Any:
    body: Any = ref._body
    body = getattr(body, "body", body) or b""  # in local mode it is more than bytes
    if ref._kind == Kind.ERROR and _has_refs(body):
        # What is left is the type's name, the text and the traceback.
        return pickle.dumps({**pickle.loads(body), "exception": None}, 5)
    return body


def _has_refs(data: bytes | memoryview) -> bool:
    """Whether a pickle has refs in it; without loading it. A text that has both words of one in it counts as one."""
    overlap = max(map(len, NAMES_OF_A_REF))
    found: set[bytes] = set()
    for at in range(0, len(data), CHUNK):
        chunk = bytes(data[at : at + CHUNK + overlap])
        found.update(name for name in NAMES_OF_A_REF if name in chunk)
    return len(found) == len(NAMES_OF_A_REF)
