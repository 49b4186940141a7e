"""How the bytes of a value travel: small ones inside the frame, big ones beside it in a sealed memfd.

A memfd is a file without a name that lives in memory. Its descriptor goes over the unix socket
(SCM_RIGHTS), and whoever receives it maps the same pages: nothing is copied, and nothing is left to
clean up, because the memory is gone with its last descriptor and mapping. It is *sealed* once written, so
no process can change, grow or shrink what another one is reading.

    head = tag 0, pickle                                     small, no buffers: the hot path
    head = tag 1, sizes, pickle, buffers                     small, with buffers
    head = tag 2, sizes          fd = pickle, pad, buffers   big (more than INLINE_LIMIT bytes)

Which thread: any. The functions share nothing; a `Payload` belongs to one owner at a time.

This module must not know what the bytes mean, what a task is, or how a descriptor is sent.
"""

from __future__ import annotations

import functools
import mmap
import os
import pickle
import struct
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

if sys.platform == "linux":
    import fcntl

__all__ = ["HAS_MEMFD", "INLINE_LIMIT", "Payload", "memfd_create", "pack", "unpack"]

INLINE_LIMIT = 100_000  # bytes; up to here a copy through the supervisor is cheaper than a descriptor
ALIGNMENT = 64  # bytes; a cache line, and what numpy and Arrow like best

# How much one write() copies. A signal handler (the stop button) waits for it to end: 6 ms.
WRITE_CHUNK = 16 * 1024 * 1024  # bytes

_PLAIN, _INLINE, _SHARED = b"\x00", b"\x01", b"\x02"
_COUNTS = struct.Struct("<BIQ")  # tag, number of buffers, size of the pickle; then one u64 for each buffer

# From linux/memfd.h and linux/fcntl.h. Not taken from `os` and `fcntl`: see memfd_create.
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 0x1, 0x2
_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE = 0x1, 0x2, 0x4, 0x8
_ALL_SEALS = _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_WRITE
_MEMFD_NAME = "jupyter_tasks"  # what /proc/PID/maps shows


@dataclass(slots=True)
class Payload:
    """One packed value: `head` goes inside the frame, `fd` beside it.

    Whoever holds the Payload owns the descriptor and must see to `close()`, also after sending it (the
    kernel duplicates a sent descriptor). `size` counts all bytes, the shared ones included.
    """

    head: bytes
    fd: int | None
    size: int

    def close(self) -> None:
        """Closes the descriptor; views made by `unpack` stay valid. May be called twice."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


def pack(data: bytes | memoryview, buffers: Sequence[pickle.PickleBuffer] = ()) -> Payload:
    """Packs what `serialize.dumps` returned. The buffers are copied, so they may change afterwards.

    Raises OSError when there is no memory or no descriptor left, and BufferError for a buffer that is not
    contiguous (pickle never makes one: such arrays are pickled in band). Nothing leaks then, or
    when a signal handler raises.
    """
    if not buffers and len(data) <= INLINE_LIMIT:
        head = _PLAIN + data
        return Payload(head, None, len(head))
    parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    inline = not HAS_MEMFD or sum(sizes) <= INLINE_LIMIT
    head = _COUNTS.pack((_INLINE if inline else _SHARED)[0], len(buffers), sizes[0])
    head += struct.pack(f"<{len(buffers)}Q", *sizes[1:])
    if inline:
        head = b"".join([head, *parts])
        return Payload(head, None, len(head))
    offsets, end = _layout(sizes)
    return Payload(head, _sealed_memfd(zip(offsets, parts, strict=True), end), len(head) + end)


def unpack(head: bytes | memoryview, fd: int | None, *, writable: bool) -> tuple[bytes | memoryview, list[memoryview]]:
    """The pickle and its buffers, as `serialize.loads` takes them.

    `writable=False` gives read-only buffers, so arrays come back read-only. `writable=True` gives buffers
    whose writes stay private: of a shared value, only the pages written to are copied.

    Does not take the descriptor: the caller closes it, at once if it likes. A mapping lives as long as any
    of its views. Raises ValueError if `head` and `fd` do not belong together, OSError if the
    mapping fails.
    """
    tag = head[0:1]
    if tag == _PLAIN:
        return head[1:], []
    if tag not in (_INLINE, _SHARED):
        raise ValueError(f"This is not a packed value: it begins with {bytes(tag)!r}.")
    _, count, data_size = _COUNTS.unpack_from(head)
    start = _COUNTS.size + 8 * count
    sizes = [data_size, *struct.unpack_from(f"<{count}Q", head, _COUNTS.size)]
    if tag == _SHARED:
        offsets, end = _layout(sizes)
        if fd is None or os.fstat(fd).st_size < end:  # reading beyond the end would be a SIGBUS
            raise ValueError("The shared part of a value is missing or too short.")
        shared = _map(fd, end, writable)
        views = [shared[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
        return views[0], views[1:]
    whole = memoryview(head)
    if start + sum(sizes) != len(whole):
        raise ValueError(f"A packed value of {start + sum(sizes)} bytes arrived as {len(whole)} bytes.")
    data = whole[start : start + data_size]
    position = start + data_size
    own = bytearray if writable else bytes  # also a copy when read-only: `head` has no alignment, a copy has
    inline: list[memoryview] = []
    for size in sizes[1:]:
        inline.append(memoryview(own(whole[position : position + size])))
        position += size
    return data, inline


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each part begins in the memfd, and where the last one ends."""
    offsets: list[int] = []
    end = 0
    for size in sizes:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + size
    return offsets, end


def _sealed_memfd(parts: Iterator[tuple[int, memoryview]], size: int) -> int:
    """A new memfd with each part at its offset, sealed."""
    # write() and not a copy into a mapping. For 256 MB, best of 4, twice, on 2 cores with Linux 6.18:
    # pwrite 2.6 GB/s (64 kB, 1 MB, 16 MB and 1 GB at a time alike), pwritev 2.6, fallocate first 2.4, mapping
    # 1.5, mapping with MAP_POPULATE 1.3. And write() lets other threads of the kernel run meanwhile.
    fd = memfd_create()
    try:
        os.ftruncate(fd, size)
        for offset, part in parts:
            while part:
                written = os.pwrite(fd, part[:WRITE_CHUNK], offset)
                part, offset = part[written:], offset + written
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    except BaseException:  # KeyboardInterrupt too: a big value takes long to write
        os.close(fd)
        raise
    return fd


# --- What the operating system offers ---------------------------------------------------------------------


@functools.cache
def _libc() -> Any:
    """The C library, for what `os` and `mmap` of some Pythons lack. ctypes is loaded only where needed."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [*(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]  # more arguments than these may follow
    return libc


def _os_error() -> OSError:
    import ctypes

    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def memfd_create() -> int:
    """A new memfd that can be sealed; the caller owns the descriptor."""
    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    if hasattr(os, "memfd_create"):
        return os.memfd_create(_MEMFD_NAME, flags)
    # Pythons that were built against an old C library (conda-forge, uv until 2026) lack os.memfd_create, and
    # fcntl.F_ADD_SEALS with it, whatever the machine they run on can do.
    fd: int = _libc().memfd_create(_MEMFD_NAME.encode(), flags)
    if fd < 0:
        raise _os_error()
    return fd


def _map(fd: int, size: int, writable: bool) -> memoryview:
    """The first `size` bytes of `fd`, privately mapped. Keeps no descriptor; unmapped with its last view."""
    # MAP_PRIVATE for reading too: before Linux 6.7 a write-sealed memfd refuses any MAP_SHARED.
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=prot, trackfd=False))
    # Before 3.13 an mmap object keeps a duplicate of its descriptor. A notebook that holds a thousand results
    # would run into the usual limit of 1024, so we map without it.
    return _map_without_descriptor(fd, size, prot)


class _Mapping(weakref.ref[Any]):
    """Unmaps when the last view is gone, in C code alone: a KeyboardInterrupt that came during a callback in Python
    (weakref.finalize) would be printed and dropped, and the memory stay mapped."""

    __slots__ = ()

    _as_parameter_ = 0  # the callback is munmap, which gets this as a third argument and does not look at it


_mappings: dict[int, _Mapping] = {}  # a callback comes only while its weak reference lives
_mappings_limit = 64  # look for dead ones at so many


def _map_without_descriptor(fd: int, size: int, prot: int) -> memoryview:
    import ctypes

    libc = _libc()
    failed = ctypes.c_void_p(-1).value  # MAP_FAILED
    mapped: list[int] = []
    try:
        # No byte code between the system call and the keeping of its result, nor between the last two lines.
        mapped.extend(map(libc.mmap, (None,), (size,), (prot,), (mmap.MAP_PRIVATE,), (fd,), (0,)))
        if mapped[0] == failed:
            raise _os_error()
        memory = (ctypes.c_char * size).from_address(mapped[0])
        view = memoryview(memory).cast("B")
        mapping = _Mapping(memory, functools.partial(libc.munmap, mapped[0], size))
        key = id(mapping)
        _mappings[key] = mapping
        mapped = []
    except BaseException:
        if mapped and mapped[0] != failed:
            libc.munmap(mapped[0], size)
        raise
    if len(_mappings) > _mappings_limit:
        _forget_dead()
    return view if prot & mmap.PROT_WRITE else view.toreadonly()


def _forget_dead() -> None:
    global _mappings_limit
    for key, mapping in list(_mappings.items()):
        if mapping() is None:
            _mappings.pop(key, None)
    _mappings_limit = 64 + 2 * len(_mappings)


def _has_memfd() -> bool:
    if sys.platform != "linux":
        return False
    return hasattr(os, "memfd_create") or hasattr(_libc(), "memfd_create")


# The one fallback: without memfd (macOS, Windows) every value stays inline, whatever its size. Frames
# there carry bytes only; multiprocess shared memory, with its explicit unlink, comes with those ports.
HAS_MEMFD = _has_memfd()
