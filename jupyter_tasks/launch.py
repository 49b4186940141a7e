"""Starts a supervisor for this process. Called by the API, from any thread."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from jupyter_tasks import exceptions
from jupyter_tasks.wire.frames import PROTOCOL, SESSION_MARK, Kind, frame, to_json

if TYPE_CHECKING:
    from jupyter_tasks.client import Client

__all__ = [
    "Session",
    "default_total",
    "detect_cpus",
    "detect_gpus",
    "gpu_names",
    "start",
    "start_detached",
]

KEPT_FAILURES = 2  # failed tasks whose frames are kept for `%tasks debug`: each costs the memory of its worker
SOCKET_PATH_LIMIT = 107  # bytes (sockaddr_un), 103 on macOS

# The working directory is not on the path while we import: a notebook's folder may hold a `select.py`.
_BOOT = "import sys; sys.path[0] = {root!r}; from jupyter_tasks.supervisor.__main__ import main; main({fd})"
# Forked once more, it is nobody's child: no tree of the kernel's is ended with it in it, and no zombie of it is left.
_BOOT_DETACHED = f"import os; os.fork() and os._exit(0); {_BOOT}"


@dataclass
class Session:
    """A supervisor that this process has started, and the connection to it."""

    client: Client
    process: subprocess.Popen[bytes]
    arguments: dict[str, Any]  # what `init` was given, to tell a repeated call from a different one
    directory: str
    log: IO[bytes]  # what the supervisor wrote to stderr: nothing, unless it failed
    mark: str

    def end(self) -> None:
        """Ends the supervisor with everything below it. Returns when all of it is gone."""
        self.client.hang_up()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.client.close()  # not before: a ref must not say "gone" while its task still runs
        self.clean()

    def clean(self) -> None:
        """After the supervisor has ended, in whatever way: sweeps what it can no longer sweep itself."""
        from jupyter_tasks.supervisor.zygote import sweep_marked

        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        if self.process.returncode != 0:
            sweep_marked(self.mark, spare=os.getpid())
        shutil.rmtree(self.directory, ignore_errors=True)
        self.log.close()

    def why(self) -> str:
        """What is known of an unexpected end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.returncode
        with contextlib.suppress(OSError, ValueError):
            last = os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace").strip().splitlines()
            if last:
                return last[-1]
        if code is not None and code < 0:
            return f"killed by signal {-code}"
        return "" if code is None else f"exit code {code}"


def detect_cpus() -> int:
    """How many processors this process may use: affinity and the container's (cgroup) quota decide."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, min(count, quota) if quota is not None else count)


def _cgroup_cpus() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2
            limit, period = file.read().split()
        return None if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1
            quota = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            period_us = int(file.read())
        return None if quota <= 0 else max(1, quota // period_us)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def detect_gpus() -> int:
    """How many GPUs this process may use: those of CUDA_VISIBLE_DEVICES; without it, those of NVIDIA's driver."""
    visible = _visible_gpus()
    if visible is not None:
        return len(visible)
    try:
        # Not /proc/driver/nvidia: a container may see there what it has no device for.
        return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir("/dev"))
    except OSError:
        return 0


def gpu_names(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls so many GPUs: those it names here, or else their numbers.

    Raises:
        ValueError: it names fewer.
    """
    visible = _visible_gpus()
    if visible is None:
        return [str(number) for number in range(count)]
    if len(visible) < count:
        raise ValueError(
            f"num_gpus={count}, but CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} shows {len(visible)}. "
            "Ask for less, or change that variable first."
        )
    return visible[:count]


def _visible_gpus() -> list[str] | None:
    """Numbers, "GPU-..." or "MIG-...", as they stand there; None if nobody has said anything."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    # As CUDA does: the first one that is no device ends the list; people write -1, or nothing, for "none".
    end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:end]


def default_total() -> dict[str, float]:
    """What a session gives out if nobody says otherwise."""
    return {"CPU": float(max(2, detect_cpus())), "GPU": float(detect_gpus())}


def start(total: dict[str, float], arguments: dict[str, Any]) -> Session:
    """Starts a supervisor and returns the session.

    Raises:
        ValueError: more GPUs than CUDA_VISIBLE_DEVICES shows.
        JupyterTasksError: it could not be started; says what it wrote.
    """
    config = _config(total) | {"keep": KEPT_FAILURES if _is_interactive() else 0}
    log = tempfile.TemporaryFile()  # lives as long as the session
    process, client = _started(config, log, _BOOT)
    session = Session(client, process, arguments, config["directory"], log, config["mark"])
    session.client.on_lost = session.why
    return session


def start_detached(total: dict[str, float], about: dict[str, Any]) -> Client:
    """Starts a supervisor that nobody owns, once it has been told what to keep. Returns the connection to it.

    Args:
        about: what its entry in the registry says of it (see `supervisor.registry`).

    Raises:
        as `start`; also if its name is taken.
    """
    config = _config(total) | {"detached": about}
    # With the socket in a directory for temporary files, not in XDG_RUNTIME_DIR: that goes when the user logs out.
    path = os.path.join(config["directory"], "supervisor.log")
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w+b") as log:
        process, client = _started(config, log, _BOOT_DETACHED)
    process.wait()  # it has forked and gone
    return client


def _config(total: dict[str, float]) -> dict[str, Any]:
    """What a supervisor is told; it gets a directory, a key and a mark of its own."""
    gpus = gpu_names(math.ceil(total["GPU"]))
    directory = _private_directory()
    return {
        "protocol": PROTOCOL,
        "path": [os.path.abspath(entry) if entry == "" else entry for entry in sys.path],
        "preload": _preload(),
        "total": total,
        "gpus": gpus,
        "kernel_pid": os.getpid(),
        "directory": directory,
        "socket": os.path.join(directory, "s"),
        "key": os.urandom(32).hex(),
        "mark": os.urandom(8).hex(),
    }


def _started(config: dict[str, Any], log: IO[bytes], boot: str) -> tuple[subprocess.Popen[bytes], Client]:
    """The process that was started, and the connection."""
    ours, theirs = socket.socketpair()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [
        sys.executable,
        *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]  # as multiprocessing does
        "-c",
        boot.format(root=root, fd=theirs.fileno()),
    ]
    process = subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,  # a kernel interrupt goes to the kernel's process group; we are not in it
        env={**os.environ, SESSION_MARK: config["mark"]},
    )
    theirs.close()
    try:
        ours.sendall(frame(Kind.HELLO, 0, to_json(config)))
        # Only now: while we import the client, the supervisor imports its own modules (20 ms of a cold start).
        from jupyter_tasks.client import START_LIMIT, Client, read_welcome

        ours.settimeout(START_LIMIT)
        welcome = read_welcome(ours)
    except BaseException as error:
        ours.close()
        process.kill()
        process.wait()
        log.seek(0)
        text = log.read().decode(errors="replace").strip()
        log.close()
        shutil.rmtree(config["directory"], ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise exceptions.JupyterTasksError(
            f"The supervisor could not be started: {text or error}. Is the disk full, or the process limit reached?"
        ) from error
    ours.settimeout(None)
    return process, Client(ours, welcome)


def _private_directory() -> str:
    """A new directory of this user alone, with a path short enough for a socket in it."""
    directory = tempfile.mkdtemp(prefix="jupyter-tasks-")  # mode 0700
    if len(os.path.join(directory, "s").encode()) > SOCKET_PATH_LIMIT - 4:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="jupyter-tasks-", dir="/tmp")
    return directory


def _is_interactive() -> bool:
    """There is somebody who could open a debugger: this is IPython, in a notebook or a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython, "get_ipython", lambda: None)() is not None


def _preload() -> list[str]:
    """What the zygote imports besides its own: the shell for cells, if this is a notebook."""
    if "IPython" in sys.modules:
        return ["jupyter_tasks.worker.shell", "jupyter_tasks.worker.cells", "matplotlib_inline.config"]
    return []
