"""Starts a supervisor: `main(fd)` with the descriptor of the kernel's socket. Never run by hand."""

from __future__ import annotations

import os
import socket
from typing import NoReturn

from jupyter_tasks.supervisor import platform, zygote
from jupyter_tasks.wire.frames import HEADER, HEADER_SIZE, Kind, from_json
from jupyter_tasks.wire.sockets import receive_exactly

__all__ = ["main"]


def main(fd: int) -> NoReturn:
    """Reads the settings from the kernel and serves it until it is gone."""
    os.set_inheritable(fd, False)
    kernel = socket.socket(fileno=fd)
    platform.raise_fd_limit()
    platform.become_subreaper()
    try:
        size, kind, *_ = HEADER.unpack(receive_exactly(kernel, HEADER_SIZE))
        if kind != Kind.HELLO:
            raise SystemExit("The first word was not HELLO; a supervisor is started by jupyter_tasks only.")
        config = from_json(receive_exactly(kernel, size))
    except ConnectionError:
        raise SystemExit("The kernel has gone.") from None
    first_zygote = zygote.start(config)
    # Only now: while we import the supervisor's modules, the zygote imports the workers' (20 ms of a cold start).
    from jupyter_tasks.backends.local import LocalBackend
    from jupyter_tasks.supervisor.loop import Supervisor

    Supervisor(kernel, config, LocalBackend(first_zygote)).run()
