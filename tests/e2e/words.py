"""Words between a task and its test: the task says "I am in", the test waits for that and then acts.

Role: helpers of the tests beside this file. Standard library only, since workers import it, too.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

NET = 20.0  # seconds; a net against hanging, never a measure


def say(path: str | Path, text: object = "") -> None:
    """Leaves a word. Whoever sees the file sees all of it."""
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w") as file:
        file.write(str(text))
    os.rename(part, path)


def hear(path: str | Path, net: float = NET) -> str:
    """Waits for a word and returns its text."""
    end = time.monotonic() + net
    while True:
        try:
            with open(path) as file:
                return file.read()
        except FileNotFoundError:
            if time.monotonic() > end:
                raise TimeoutError(f"nobody said {os.path.basename(path)!r} within {net:g} s") from None
            time.sleep(0.0005)


def said(path: str | Path) -> bool:
    """The word was said."""
    return os.path.exists(path)


def mark(path: str | Path) -> None:
    """One character more in the file: for counting how often something ran."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b"x")
    os.close(fd)


def marks(path: str | Path) -> int:
    """How often `mark` was called."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def state(pid: int) -> str:
    """One letter as in `ps`; "" for no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text[text.rindex(")") + 2]


def alive(pid: int) -> bool:
    """There is such a process, and it is more than a zombie."""
    return state(pid) not in ("", "Z", "X")


def blocked_in_system(pid: int, net: float = NET) -> None:
    """Waits until the main thread of the process sleeps in a system call: past its last line of Python."""
    end = time.monotonic() + net
    seen = 0
    while seen < 3:  # three looks in a row: a short sleep on the way does not count
        seen = seen + 1 if state(pid) == "S" else 0
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} does not sleep but is {state(pid)!r}")
        time.sleep(0.002)


def computes(pid: int, net: float = NET) -> None:
    """Waits until the process has computed for some hundredths of a second: past its last line of Python before that."""

    def used() -> int:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[11])

    end, before = time.monotonic() + net, used()
    while used() < before + 5:
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} does not compute")
        time.sleep(0.002)


_maps: dict[str, mmap.mmap] = {}


def shared_marks(path: str | Path, size: int = 0) -> mmap.mmap:
    """A file of zeros that several processes write single bytes of. Made by who gives a size."""
    path = str(path)
    if size:
        with open(path, "wb") as file:
            file.truncate(size)
    if path not in _maps:
        with open(path, "r+b") as file:
            _maps[path] = mmap.mmap(file.fileno(), 0)
    return _maps[path]


def forget_marks(path: str | Path) -> None:
    """Closes it in this process."""
    _maps.pop(str(path)).close()
