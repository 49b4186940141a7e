"""Receiving bytes together with file descriptors, in one place.

`socket.recv_fds` ignores its `flags` (CPython, up to 3.14), and leaves what it receives open in programs that are
started meanwhile; so this is our own.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

from jupyter_tasks.wire.frames import MAX_FDS

__all__ = ["ANCILLARY", "MESSAGE_LIMIT", "RECEIVE_FLAGS", "descriptors", "receive", "receive_exactly"]

MESSAGE_LIMIT = 1 << 18  # bytes; no message between supervisor and worker is longer

_ITEM = array.array("i").itemsize
ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _ITEM)
RECEIVE_FLAGS: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # macOS has none: `descriptors` does it afterwards


_buffer = bytearray(MESSAGE_LIMIT)
_view = memoryview(_buffer)


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Up to MESSAGE_LIMIT bytes and the descriptors that came with them; b"" at the end of the connection.

    One buffer for all calls: a fresh one of this size costs 18 us a call (measured), the copy of a small message
    0.1 us. So it is for processes where one thread receives: supervisor, zygote, worker.
    """
    count, ancillary, _, _ = sock.recvmsg_into([_buffer], ANCILLARY, RECEIVE_FLAGS | flags)
    return bytes(_view[:count]), descriptors(ancillary) if ancillary else []


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes, from a socket that waits.

    Raises:
        ConnectionError: the other side ended before.
    """
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("it ended before it answered")
        data += more
    return data


def descriptors(ancillary: Any) -> list[int]:
    """The descriptors in what `recvmsg` returned beside the bytes; not inherited by other programs."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _ITEM])
    if not RECEIVE_FLAGS:
        for fd in fds:
            os.set_inheritable(fd, False)
    return fds.tolist()
