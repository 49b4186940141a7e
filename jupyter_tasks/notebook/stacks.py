"""What a running task is doing, drawn as a traceback. Pure: faulthandler's text in, lines for people out.

The text comes from the worker's C code (see worker.execution) and knows files and lines only; the source of a cell is
in the notebook, where this runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Frame", "read", "render"]

_THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)(?: \[(?P<name>[^\]]*)\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)')
_OURS = re.compile(r"[/\\]jupyter_tasks[/\\](worker|client|api|supervisor|refs)\b")
# Between our loop and a cell's code: IPython's way of running it.
_WAY_IN = re.compile(r"[/\\]IPython[/\\]core[/\\]|[/\\]asyncio[/\\]|<string>")


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int  # 0: not known
    name: str


def read(text: str) -> list[tuple[str, list[Frame]]]:
    """The threads of faulthandler's text: a name ("main" for the worker's own), and frames, the newest last.

    Threads that are only ours are left out, and so are the frames between our loop and the user's code.
    """
    threads: list[tuple[str, list[Frame]]] = []
    for heading, body in _blocks(text):
        frames = [
            Frame(found["file"], int(found["line"]) if found["line"].isdigit() else 0, found["name"])
            for found in map(_FRAME.fullmatch, body)
            if found
        ][::-1]
        main = any(_OURS.search(frame.file) and frame.name == "serve" for frame in frames)
        own = [frame for frame in frames if not frame.file.endswith(("/threading.py", "\\threading.py"))]
        if not own or (not main and _OURS.search(own[0].file)):
            continue
        shown = _users_part(frames) if main else frames
        threads.append(("main" if main else heading["name"] or heading[2], shown))
    return sorted(threads, key=lambda thread: thread[0] != "main")


def _blocks(text: str) -> list[tuple[re.Match[str], list[str]]]:
    blocks: list[tuple[re.Match[str], list[str]]] = []
    for line in text.splitlines():
        heading = _THREAD.fullmatch(line)
        if heading:
            blocks.append((heading, []))
        elif blocks:
            blocks[-1][1].append(line)
    return blocks


def _users_part(frames: list[Frame]) -> list[Frame]:
    """Without what leads into the user's code, and without our own frames above it (a wait in `jt.get`)."""
    at = 0
    while at < len(frames) and (_OURS.search(frames[at].file) or _WAY_IN.search(frames[at].file)):
        at += 1
    end = len(frames)
    while end > at and _OURS.search(frames[end - 1].file) and frames[end - 1].name not in ("get", "wait"):
        end -= 1
    return frames[at:end]


def render(text: str, cell_of: Callable[[str], str], source: Callable[[str, int], str]) -> str:
    """As tracebacks look: the newest call last, with the source of each line where `source(file, line)` has it.

    Args:
        cell_of: gives the name of the cell that has this file name for its code; "" for other files.
    """
    lines: list[str] = []
    threads = read(text)
    for name, frames in threads:
        if len(threads) > 1:
            lines.append(f"{'Main thread' if name == 'main' else f'Thread {name}'}:")
        for frame in frames:
            where = cell_of(frame.file) or f'File "{frame.file}"'
            number = f", line {frame.line}" if frame.line else ""
            lines.append(f"  {where}{number}, in {frame.name}")
            code = source(frame.file, frame.line).strip() if frame.line else ""
            if code:
                lines.append(f"    {code}")
        if not frames:
            lines.append("  between two steps of the task")
    return "\n".join(lines)
