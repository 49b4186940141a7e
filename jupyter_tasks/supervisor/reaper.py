"""Process trees: who is below whom, and how to end a whole tree so that nothing is left.

A tree is stopped first, from the top down and again until nothing new shows up, so that nobody can fork away
while being counted; only then is it killed. Workers are subreapers, so daemons that forked twice and children in
sessions of their own still hang below them. Used by the supervisor's loop only; nothing here waits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from jupyter_tasks.supervisor.platform import IS_LINUX

__all__ = [
    "children_map",
    "descendants",
    "exists",
    "has_children",
    "kill_all",
    "reap",
    "signal_all",
    "started",
    "state_of",
    "stop_and_check",
    "sweep",
]

STOP_LIMIT = 0.05  # seconds to wait for one SIGSTOP to take hold; it takes 0.1 ms unless the process is in the disk


def children_map() -> dict[int, list[int]]:
    """parent -> children, for all processes that we can see."""
    if not IS_LINUX:
        import psutil

        table: dict[int, list[int]] = {}
        for process in psutil.process_iter(["ppid"]):
            table.setdefault(process.info["ppid"] or 0, []).append(process.pid)
        return table
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields:
                table.setdefault(int(fields[1]), []).append(int(name))
    return table


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def state_of(pid: int) -> str:
    """One letter as in `ps` (R, S, D, T, Z ...), or "" if there is no such process."""
    if not IS_LINUX:
        import psutil

        try:
            status = psutil.Process(pid).status()
        except psutil.Error:
            return ""
        return {"stopped": "T", "zombie": "Z", "disk-sleep": "D"}.get(status, "S")
    fields = _stat(pid)
    return fields[0] if fields else ""


def started(pid: int) -> int:
    """When the process was started, in clock ticks since the boot (so setting the clock changes nothing); 0: no such
    process."""
    if not IS_LINUX:
        import psutil

        try:
            return round(psutil.Process(pid).create_time() * 100)
        except psutil.Error:
            return 0
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def exists(pid: int) -> bool:
    """There is such a process, and it is more than a zombie."""
    return state_of(pid) not in ("", "Z")


def descendants(root: int, table: dict[int, list[int]] | None = None) -> list[int]:
    """All processes below `root`, parents first; without `root` itself."""
    table = children_map() if table is None else table
    found: list[int] = []
    todo = [root]
    while todo:
        for child in table.get(todo.pop(), ()):
            found.append(child)
            todo.append(child)
    return found


def has_children(pid: int) -> bool:
    """Whether the process has child processes; where the system does not tell cheaply, looks at all."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                if file.read(1):
                    return True
        return False
    except OSError:
        return bool(descendants(pid))


def signal_all(pids: Iterable[int], number: int) -> None:
    """Sends the signal to each; those that are gone already are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def stop_and_check(pid: int) -> bool:
    """Stops one process, for a look at what it is doing. True if it stands still now.

    A process that hangs in the disk (D) cannot be stopped, but cannot go on with its program either.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    end = time.monotonic() + STOP_LIMIT
    while True:
        state = state_of(pid)
        if state in ("T", "t", "D"):
            return True
        if state in ("", "Z") or time.monotonic() > end:
            return False
        time.sleep(0.00005)  # a stop takes effect at the next return from the system, within about 0.1 ms


def sweep(root: int, *, with_root: bool = True) -> list[int]:
    """Stops everything below `root` until nothing new shows up. Returns all that was found."""
    found: list[int] = [root] if with_root else []
    if with_root:
        signal_all(found, signal.SIGSTOP)
    seen = set(found)
    while True:
        new = [pid for pid in descendants(root) if pid not in seen]
        if not new:
            return found
        signal_all(new, signal.SIGSTOP)
        seen.update(new)
        found.extend(new)


def reap() -> bool:
    """Takes the exit status of every child of ours that has ended. False if there are no children at all."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
        except ChildProcessError:
            return False


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each."""
    signal_all(pids, signal.SIGKILL)
