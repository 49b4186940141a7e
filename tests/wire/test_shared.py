"""Contract of shared.py: what is packed comes out again, big parts are shared and sealed, nothing leaks."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from jupyter_tasks.wire import shared
from jupyter_tasks.wire.shared import INLINE_LIMIT, Payload, pack, unpack

linux_only = pytest.mark.skipif(not shared.HAS_MEMFD, reason="needs memfd")
BIG = INLINE_LIMIT + 1


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """How many memfds of ours this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:jupyter_tasks" in line for line in maps)


@pytest.fixture(autouse=True)
def leaves_no_descriptor_and_no_mapping() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    before = open_fds()
    yield
    if mappings():
        gc.collect()  # pytest keeps the traceback of an expected error a little longer
    assert open_fds() == before
    assert mappings() == 0


def buffers_of(*arrays: object) -> list[pickle.PickleBuffer]:
    return [pickle.PickleBuffer(array) for array in arrays]


def through(payload: Payload, *, writable: bool) -> tuple[bytes, list[memoryview]]:
    data, views = unpack(payload.head, payload.fd, writable=writable)
    payload.close()
    return bytes(data), views


# --- What goes in comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT - 1, INLINE_LIMIT, BIG])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (7, 0, 65), (BIG, 1, BIG)])
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("has_memfd", [False, True])
def test_every_size_comes_out_as_it_went_in(
    size: int, sizes: tuple[int, ...], writable: bool, has_memfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides of the limit, with and without memfd, read-only and writable."""
    monkeypatch.setattr(shared, "HAS_MEMFD", has_memfd and shared.HAS_MEMFD)
    data = os.urandom(size)
    contents = [os.urandom(n) for n in sizes]
    payload = pack(data, buffers_of(*contents))
    big = size + sum(sizes) > INLINE_LIMIT
    assert (payload.fd is not None) == (big and shared.HAS_MEMFD)
    assert payload.size >= size + sum(sizes)
    got, views = through(payload, writable=writable)
    assert got == data
    assert [bytes(view) for view in views] == contents
    assert all(view.readonly is not writable for view in views)


def test_the_head_may_arrive_as_a_view_of_a_frame() -> None:
    payload = pack(b"pickle", buffers_of(b"one", b"three"))
    frame = b"header" + payload.head
    data, views = unpack(memoryview(frame)[6:], payload.fd, writable=False)
    assert bytes(data) == b"pickle"
    assert [bytes(view) for view in views] == [b"one", b"three"]


def test_data_may_be_a_view() -> None:
    assert bytes(unpack(pack(memoryview(b"abc")).head, None, writable=True)[0]) == b"abc"


def test_small_values_are_one_tag_byte_and_the_pickle() -> None:
    assert pack(b"pickle", []) == Payload(b"\0pickle", None, 7)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("length", [10, 100_000])
def test_multidimensional_arrays_travel_in_either_order(order: str, length: int) -> None:
    array = np.asarray(np.arange(length * 2).reshape(2, length), order=order)
    payload = pack(b"", buffers_of(array))
    _, (view,) = through(payload, writable=True)
    assert np.array_equal(np.frombuffer(view, array.dtype).reshape(array.shape, order=order), array)


@pytest.mark.parametrize("length", [10, 100_000])
def test_buffers_are_aligned(length: int) -> None:
    """numpy and Cython code may count on it, inline as well."""
    payload = pack(b"odd", buffers_of(b"x", np.arange(length), b"y", np.arange(length)))
    for writable in (False, True):
        _, views = unpack(payload.head, payload.fd, writable=writable)
        assert all(np.frombuffer(views[i], int).flags.aligned for i in (1, 3))
    if payload.fd is not None:
        _, views = unpack(payload.head, payload.fd, writable=True)
        assert all(np.frombuffer(view, np.uint8).ctypes.data % 64 == 0 for view in views)
    payload.close()


def test_a_buffer_with_gaps_is_refused_and_pickle_never_makes_one() -> None:
    strided = np.arange(1_000_000)[::2]
    with pytest.raises(BufferError):
        pack(b"", buffers_of(strided))
    made: list[pickle.PickleBuffer] = []
    pickle.dumps(strided, 5, buffer_callback=made.append)
    assert made == []  # pickled in band


def test_what_is_not_a_packed_value_is_refused() -> None:
    with pytest.raises(ValueError, match="not a packed value"):
        unpack(b"\x09abc", None, writable=True)
    with pytest.raises(ValueError, match="not a packed value"):
        unpack(b"", None, writable=True)
    with pytest.raises(ValueError, match="arrived as"):
        unpack(pack(b"abc", buffers_of(b"defg")).head[:-1], None, writable=True)


# --- The shared part --------------------------------------------------------------------------------------


@linux_only
def test_the_receiver_sees_the_same_pages() -> None:
    """Zero-copy: two mappings of one memfd, and an unwritten page of the private one is the shared page."""
    payload = pack(b"", buffers_of(np.zeros(50_000_000, np.uint8)))
    before = private_kb()
    _, views = unpack(payload.head, payload.fd, writable=True)
    array = np.frombuffer(views[0], np.uint8)
    assert array.sum() == 0  # touches every page
    assert private_kb() - before < 5_000  # kB, of 50 MB
    array[:8_000_000] = 1
    assert private_kb() - before > 7_000  # what was written to is ours alone now
    payload.close()


def private_kb() -> int:
    """Memory that is this process's alone; mapped files do not count."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@linux_only
def test_writes_stay_private() -> None:
    payload = pack(b"", buffers_of(bytearray(BIG)))
    _, (mine,) = unpack(payload.head, payload.fd, writable=True)
    _, (other,) = unpack(payload.head, payload.fd, writable=False)
    mine[0] = 7
    assert (mine[0], other[0]) == (7, 0)
    _, (later,) = through(payload, writable=False)
    assert later[0] == 0


@linux_only
def test_read_only_means_read_only() -> None:
    """For the view, for numpy, and for the memory itself."""
    _, (view,) = through(pack(b"", buffers_of(bytearray(BIG))), writable=False)
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(view, np.uint8)[0] = 1


@linux_only
def test_the_memfd_is_sealed_and_closed_on_exec() -> None:
    payload = pack(b"", buffers_of(bytearray(BIG)))
    fd = payload.fd
    assert fd is not None
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 10 * BIG)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, BIG, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, shared._F_ADD_SEALS, 0x8)
    assert not os.get_inheritable(fd)
    payload.close()


@linux_only
def test_views_outlive_the_descriptor_and_hold_no_other() -> None:
    """A notebook with a thousand results must not run out of descriptors."""
    before = open_fds()
    payload = pack(b"data" * 30_000, buffers_of(b"abc" * 50_000))
    data, views = unpack(payload.head, payload.fd, writable=False)
    payload.close()
    assert open_fds() == before
    gc.collect()
    assert bytes(data) == b"data" * 30_000
    del data
    assert bytes(views[0]) == b"abc" * 50_000


@linux_only
def test_the_mapping_ends_with_its_last_view() -> None:
    payload = pack(b"", buffers_of(np.arange(BIG)))
    before = mappings()
    data, views = unpack(payload.head, payload.fd, writable=True)
    payload.close()
    assert mappings() == before + 1
    tail = np.frombuffer(views[0], int)[-10:]
    del data, views
    assert mappings() == before + 1  # ten numbers hold the whole
    assert tail[-1] == BIG - 1
    del tail
    assert mappings() == before


@linux_only
def test_another_process_maps_what_we_sent() -> None:
    """Over a unix socket, as the supervisor does it; the other side's writes do not come back."""
    child = """
import socket, sys
from jupyter_tasks.wire.shared import unpack
sock = socket.socket(fileno=int(sys.argv[1]))
head, fds, _, _ = socket.recv_fds(sock, 4096, 1)
data, views = unpack(head, fds[0], writable=True)
view = views[0]
total = sum(view[::1000])
view[0] = 99
sock.sendall(bytes(data[:4]) + total.to_bytes(8, "little") + bytes(view[:1]))
"""
    ours, theirs = socket.socketpair()
    payload = pack(b"head" * 10, buffers_of(b"\x01" * 200_000))
    assert payload.fd is not None
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-c", child, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        socket.send_fds(ours, [payload.head], [payload.fd])
        assert ours.recv(100, socket.MSG_WAITALL) == b"head" + (200).to_bytes(8, "little") + b"\x63"
        assert process.wait(timeout=60) == 0
    _, (view,) = through(payload, writable=False)
    assert view[0] == 1


# --- Nothing leaks (the fixture above counts) -------------------------------------------------------------


@linux_only
def test_close_may_be_called_twice() -> None:
    payload = pack(bytes(BIG))
    payload.close()
    payload.close()
    assert payload.fd is None


@linux_only
@pytest.mark.parametrize("failing", ["ftruncate", "pwrite"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_write_closes_the_memfd(failing: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        pack(bytes(BIG))


@linux_only
def test_a_failed_seal_closes_the_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_F_ADD_SEALS", 99_999)
    with pytest.raises(OSError, match="Invalid argument"):
        pack(bytes(BIG))


@linux_only
def test_a_write_that_takes_less_than_asked_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: pwrite(fd, part[:40_001], at))
    content = os.urandom(BIG)
    _, (view,) = through(pack(b"", buffers_of(content)), writable=False)
    assert bytes(view) == content


@linux_only
def test_the_shared_part_must_be_there_and_whole() -> None:
    """A mapping beyond the end of a file would end the process with SIGBUS."""
    payload, small = pack(bytes(10 * BIG)), pack(bytes(BIG))
    with pytest.raises(ValueError, match="missing or too short"):
        unpack(payload.head, None, writable=False)
    with pytest.raises(ValueError, match="missing or too short"):
        unpack(payload.head, small.fd, writable=False)
    payload.close()
    small.close()


@linux_only
def test_a_mapping_that_fails_raises() -> None:
    read_end, write_end = os.pipe()  # has no pages to map
    try:
        with pytest.raises(OSError):  # noqa: PT011  # ENODEV by ctypes, or from fstat by mmap
            shared._map(read_end, BIG, True)
    finally:
        os.close(read_end)
        os.close(write_end)


@linux_only
def test_it_works_on_pythons_without_memfd_create(monkeypatch: pytest.MonkeyPatch) -> None:
    """conda-forge's and many of uv's are built so; the C library of the machine has it all the same."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert shared._has_memfd()
    payload = pack(bytes(BIG))
    assert payload.fd is not None
    assert not os.get_inheritable(payload.fd)
    with pytest.raises(PermissionError):
        os.pwrite(payload.fd, b"x", 0)
    assert through(payload, writable=False)[0] == bytes(BIG)


@linux_only
def test_a_refused_memfd_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(shared, "_MFD_CLOEXEC", 0xFFFF)
    with pytest.raises(OSError, match="Invalid argument"):
        pack(bytes(BIG))
