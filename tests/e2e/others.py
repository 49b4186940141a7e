"""Other processes, as notebooks would be, and what detached things have left. Role: helpers of the tests beside this file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jupyter_tasks.supervisor import reaper, registry

HERE = Path(__file__).parent


def entry_files(folder: Path) -> list[Path]:
    """What is in a registry."""
    return sorted(path for path in folder.glob("*") if path.name != ".lock")


def start(code: str) -> subprocess.Popen[str]:
    """Another process, as a notebook would be: with its own session, and functions that travel by value."""
    preamble = (
        "import os, signal, sys, time\nimport jupyter_tasks as jt\nfrom jupyter_tasks import detached\n"
        f"sys.path.append({str(HERE)!r})\nfrom words import hear, said, say\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(code: str) -> str:
    """What another process prints."""
    return finish(start(code))


def finish(process: subprocess.Popen[str]) -> str:
    """The same of one that was started before."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def below(entry: registry.Entry) -> list[int]:
    """The living processes of this supervisor, itself among them."""
    return [pid for pid in (entry.pid, *reaper.descendants(entry.pid)) if reaper.exists(pid)]
