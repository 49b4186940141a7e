"""The zygote: a child of the supervisor that has imported what workers need, and forks them.

It has one thread and makes nothing but processes. A worker is forked twice, so that its parent is the supervisor
(the nearest subreaper), which gets its exit status from the system itself. Forking the supervisor instead would grow
slow with its heap (28 ms at a million queued payloads; here 2 ms).

When the supervisor dies without having cleaned up (SIGKILL), the workers die with it (PDEATHSIG), and the zygote, as
the last of the family, ends what those have left: every process of this session carries its mark in the
environment. Then it ends itself.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from jupyter_tasks.supervisor import platform, reaper
from jupyter_tasks.wire.frames import SESSION_MARK
from jupyter_tasks.wire.sockets import receive

__all__ = ["main", "start", "sweep_marked"]


def start(config: dict[str, Any]) -> tuple[int, socket.socket]:
    """Forks a zygote; returns its process id and our end of its socket.

    The supervisor does this before it imports its own modules: so both import at the same time.
    """
    ours, theirs = platform.worker_socketpair()
    pid = os.fork()
    if not pid:
        try:
            kept = os.dup2(theirs.fileno(), 199, inheritable=False)
            os.closerange(3, 199)
            os.closerange(200, 65536)
            main(socket.socket(fileno=kept), config)
        finally:
            os._exit(1)
    theirs.close()
    return pid, ours


def main(sock: socket.socket, config: dict[str, Any]) -> None:
    """Serves fork requests until the supervisor is gone. Never returns."""
    signal.set_wakeup_fd(-1)  # the supervisor's, inherited
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.path[:] = config["path"]
    from jupyter_tasks.worker import execution

    preload = list(config["preload"])
    gc.collect()
    gc.freeze()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        if preload and not poll.poll(0):
            _prepare(preload.pop(0))
            gc.collect()
            gc.freeze()
            continue
        # Four descriptors: the worker's socket, page, stdout and stderr.
        message, fds = receive(sock)
        if not message:
            sweep_marked(os.environ.get(SESSION_MARK, ""), spare=os.getpid())
            os._exit(0)
        try:
            _fork_twice(sock, message, fds, execution)
        except OSError as error:  # no more processes or memory: the supervisor tells the task
            sock.send(json.dumps({"failed": json.loads(message)["number"], "why": str(error)}).encode())
        for fd in fds:
            os.close(fd)


def _prepare(name: str) -> None:
    """Imports a module and, if it has one, calls its `preload`: what every worker would have to do again."""
    try:
        prepare = getattr(importlib.import_module(name), "preload", None)
        if prepare is not None:
            prepare()
    except Exception:
        pass  # the task that needs it will say so, in its own traceback


def _fork_twice(sock: socket.socket, message: bytes, fds: list[int], execution: Any) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork():
            os._exit(0)
        sock.close()
        execution.start(json.loads(message), *fds)
    finally:
        os._exit(1)


def sweep_marked(mark: str, *, spare: int = 0) -> int:
    """Ends every process of this user whose environment carries the mark. Returns how many.

    The last resort where no tree is left to walk: those that worked below a dead supervisor.
    """
    if not mark or not os.path.isdir("/proc/self"):
        return 0
    wanted = f"{SESSION_MARK}={mark}".encode()
    ended: set[int] = set()
    for _ in range(100):  # rounds of 5 ms; what hangs in the disk has its SIGKILL and goes when it can
        found = [pid for pid in _marked(wanted) if pid not in (spare, os.getpid())]
        if not found:
            break
        reaper.signal_all(found, signal.SIGSTOP)
        reaper.kill_all(found)
        ended.update(found)
        time.sleep(0.005)
    return len(ended)


def _marked(wanted: bytes) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0") and reaper.exists(int(name)):
                    found.append(int(name))
        except OSError:
            continue
    return found
