"""The registry: a file for each detached task or actor, by which any process of this user finds it again.

An entry says who serves it and how to get in (socket and key), and what tells its supervisor from a later process with
the same number: when that process was started, on which host, since which boot. On a shared home directory an entry of
another host looks dead from here, so it is shown and never touched. A supervisor writes its own entry when it begins
and removes it when it ends; of one that was killed, whoever comes by next cleans up.

The directory is 0700 and each file 0600: the key lets its reader run code as this user. Any process, any thread. Knows
neither clients nor sockets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from jupyter_tasks.supervisor import reaper

__all__ = [
    "DIRECTORY_PREFIX",
    "Entry",
    "boot_id",
    "claim",
    "clean",
    "entries",
    "is_alive",
    "is_here",
    "leave",
    "send_signal",
]

DIRECTORY_PREFIX = "jupyter-tasks-"  # of a session's own directory; nothing else is ever removed
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One detached thing. Written as JSON; fields that an older version does not know are passed over by it."""

    name: str
    namespace: str
    kind: str  # "task" or "actor"
    label: str  # what it is: the function or class
    socket: str
    key: str
    mark: str  # in the environment of its supervisor and of all below it
    directory: str
    pid: int
    started: int  # clock ticks between the boot and the start of that process: no other one with its pid has the same
    hostname: str
    boot_id: str
    protocol: int
    version: str  # of jupyter_tasks
    python: str
    created: float  # seconds since the epoch
    outs: list[str] = field(default_factory=list)  # of a cell: the names that its further values are for

    @property
    def shown(self) -> str:
        """How people call it."""
        return repr(self.name) if self.namespace == "default" else f"{self.name!r} (namespace {self.namespace!r})"


def boot_id() -> str:
    """Changes with each boot of this machine; "" where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_here(entry: Entry) -> bool:
    """It was started on this host, perhaps before its last boot."""
    return entry.hostname == socket.gethostname()


def is_alive(entry: Entry) -> bool:
    """Of an entry of this host: its supervisor runs, and is no zombie and no later process with its number."""
    if entry.boot_id != boot_id() or not reaper.exists(entry.pid):
        return False
    return reaper.started(entry.pid) == entry.started


def entries(directory: str) -> list[Entry]:
    """All there are, oldest first, also dead ones and those of other hosts."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name.endswith(_SUFFIX) and (entry := _read(os.path.join(directory, name))) is not None:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.created)


def _read(path: str) -> Entry | None:
    """None: it is gone, is not one of ours, or belongs to somebody else, who could make us talk to his supervisor."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            record = json.load(file)
        known = {each.name for each in dataclasses.fields(Entry)}
        return Entry(**{key: value for key, value in record.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _path(directory: str, name: str, namespace: str, hostname: str) -> str:
    """A name may be any text, and each host has its own."""
    digest = hashlib.sha256("\0".join((hostname, namespace, name)).encode()).hexdigest()
    return os.path.join(directory, digest[:40] + _SUFFIX)


def _path_of(directory: str, entry: Entry) -> str:
    return _path(directory, entry.name, entry.namespace, entry.hostname)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """One process at a time looks and writes. Short: nobody waits for anything while holding it."""
    import fcntl

    fd = os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: only a race could give a name twice
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def claim(directory: str, entry: Entry) -> Entry | None:
    """Writes the entry if its name is free on this host; a dead one of that name is cleaned away.

    Returns:
        The entry that has the name already; None: it is ours now.
    """
    os.makedirs(directory, 0o700, exist_ok=True)
    os.chmod(directory, 0o700)  # also one that another umask has made
    path = _path_of(directory, entry)
    with _locked(directory):
        held = _read(path)
        if held is not None:
            if is_alive(held):
                return held
            _remove(path, held)
        part = f"{path}.{entry.pid}"  # whoever reads the entry sees all of it
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(dataclasses.asdict(entry), file)
        os.replace(part, path)
    return None


def leave(directory: str, entry: Entry) -> None:
    """Removes the entry, if it is still this one. Called by its supervisor as the last it does."""
    path = _path_of(directory, entry)
    with contextlib.suppress(OSError), _locked(directory):
        held = _read(path)
        if held is not None and held.key == entry.key:
            os.unlink(path)


def clean(directory: str, entry: Entry) -> bool:
    """Removes what a supervisor that died has left: processes, directory and entry. False if there is nothing to do."""
    if not is_here(entry) or is_alive(entry):
        return False
    path = _path_of(directory, entry)
    with contextlib.suppress(OSError), _locked(directory):
        held = _read(path)
        if held is not None and held.key == entry.key:
            _remove(path, held)
            return True
    return False


def _remove(path: str, entry: Entry) -> None:
    """With the lock held; the entry is dead. The file goes last: who is interrupted before leaves it to the next."""
    from jupyter_tasks.supervisor.zygote import sweep_marked

    if entry.boot_id == boot_id():
        sweep_marked(entry.mark)
    if os.path.basename(entry.directory).startswith(DIRECTORY_PREFIX):
        shutil.rmtree(entry.directory, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def send_signal(entry: Entry, number: int) -> bool:
    """Signals the supervisor, and surely no other process that has got its number. False: it is gone."""
    try:
        pidfd = os.pidfd_open(entry.pid)
    except (AttributeError, OSError):
        if is_alive(entry):
            reaper.signal_all([entry.pid], number)
            return True
        return False
    try:
        if not is_alive(entry):
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)
