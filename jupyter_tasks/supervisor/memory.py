"""How much a task's processes use: private memory for limits, processor time and memory for the screen.

Private memory is RssAnon: pages that exist once more because of this task. Arguments that are mapped from shared
memory do not count, whatever their size. Linux reads /proc; elsewhere psutil's `uss` or `rss` stands in.
Used by the supervisor's loop only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from jupyter_tasks.supervisor.platform import IS_LINUX

__all__ = ["cpu_seconds", "private_memory"]

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def private_memory(pids: Iterable[int]) -> int:
    """Bytes of private memory of these processes together; those that are gone count nothing."""
    if not IS_LINUX:
        return _private_memory_elsewhere(pids)
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                text = file.read()
        except OSError:
            continue
        at = text.find(b"RssAnon:")
        if at >= 0:
            total += int(text[at + 8 : text.index(b"kB", at)]) * 1024
    return total


def _private_memory_elsewhere(pids: Iterable[int]) -> int:
    import psutil

    total = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            try:
                total += process.memory_full_info().uss
            except psutil.AccessDenied:
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor seconds that these processes, and their children that have ended, have used."""
    if not IS_LINUX:
        import psutil

        total = 0.0
        for pid in pids:
            try:
                total += sum(psutil.Process(pid).cpu_times()[:2])
            except psutil.Error:
                continue
        return total
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                text = file.read()
        except OSError:
            continue
        # utime, stime, cutime, cstime: the 12th to 15th field after the name
        ticks += sum(int(field) for field in text[text.rindex(b")") + 2 :].split()[11:15])
    return ticks / _TICKS
