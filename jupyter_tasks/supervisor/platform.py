"""What the operating system can do for us, one function a concern, with the reason beside each difference.

Linux is what runs here and is tested. The other branches are designed, not yet run (docs/architecture.md says
which): they keep imports working and say what is missing instead of failing in the middle of something.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from typing import Any

__all__ = [
    "IS_LINUX",
    "STACK_SIGNAL",
    "become_subreaper",
    "die_with_parent",
    "fence",
    "join_fences",
    "new_poll",
    "prefer_as_oom_victim",
    "raise_fd_limit",
    "watch_process",
    "worker_socketpair",
]

IS_LINUX = sys.platform.startswith("linux")

# Has a worker write its stacks to a file, in C: see worker.execution. A real-time signal, which nobody else uses;
# macOS has none of those. None: Windows, where a stack of a running task is not to be had.
STACK_SIGNAL: int | None = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGUSR2", None)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if IS_LINUX else None


def become_subreaper() -> bool:
    """Orphans below this process become its children. False where that does not exist (macOS: psutil sweeps)."""
    return _libc is not None and _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def die_with_parent(signal_number: int) -> bool:
    """The kernel sends us this signal when our parent *process* ends (it is forgotten on reparenting)."""
    return _libc is not None and _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) == 0


# membarrier(2): the numbers are those of linux/membarrier.h and of the system call tables.
_MEMBARRIER_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_MEMBARRIER = _MEMBARRIER_NUMBERS.get(os.uname().machine) if IS_LINUX else None
_GLOBAL_EXPEDITED, _REGISTER_GLOBAL_EXPEDITED = 1 << 1, 1 << 2
_FENCE_PAUSE = 0.0001  # seconds; a processor's store buffer is empty after less than a thousandth of it


def join_fences() -> None:
    """A worker, at its start: takes part in the supervisor's fences."""
    if _MEMBARRIER is not None and _libc is not None:
        _libc.syscall(_MEMBARRIER, _REGISTER_GLOBAL_EXPEDITED, 0, 0)


def fence() -> None:
    """What we have written to a worker's page is seen by what it reads from now on, and the other way round.

    Processors let a read overtake an earlier write: so worker ("I begin 7", then: is 7 to stop?) and supervisor ("7 is
    to stop", then: has 7 begun?) could both miss each other, once in some ten thousand cancels, and a task was called
    cancelled that ran. A barrier on the worker's side would cost every task; this one costs only a cancel (2 us).
    """
    if _MEMBARRIER is None or _libc is None or _libc.syscall(_MEMBARRIER, _GLOBAL_EXPEDITED, 0, 0) != 0:
        time.sleep(_FENCE_PAUSE)


def watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where that does not exist.

    End-of-file on a socket is not enough: a forked child of the kernel keeps the kernel's end open (3.8 s late,
    measured). macOS would use kqueue's NOTE_EXIT here.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def new_poll() -> Any:
    """An object with register, modify, unregister and poll(milliseconds or None), level triggered."""
    return select.epoll() if hasattr(select, "epoll") else select.poll()


def worker_socketpair() -> tuple[socket.socket, socket.socket]:
    """Our end and the worker's end; their `type` tells whether message boundaries are kept.

    With boundaries (SEQPACKET) a packet that the worker has not read can be taken back through its own end, and
    the operating system decides who got it. macOS has none: streams, nothing given ahead of time.
    """
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return socket.socketpair()


def raise_fd_limit() -> None:
    """Shared memory is a descriptor a value: take as many as the system lets us."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, ValueError, OSError):
        pass


def prefer_as_oom_victim() -> None:
    """When the machine runs out of memory, the worker goes and the kernel with its 20 GB of state stays."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # of 1000: before any ordinary process, after those that asked for it
    except OSError:
        pass
