"""The debugger for the frames of a task that has failed: IPython's, in the worker, with its keyboard in the notebook.

Imports IPython. Main thread; between tasks.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["debug"]


def debug(error: BaseException, ask: Callable[[str, bool], str]) -> None:
    """Post-mortem debugging of the error, in the frame that raised it. Returns when the user has had enough.

    Args:
        ask: gets a prompt, and whether it is for a password; returns the line that was typed.
    """
    from IPython.core.debugger import Pdb

    before = builtins.input
    builtins.input = _asking(ask)
    try:
        debugger = Pdb()
        debugger.reset()
        debugger.interaction(None, _users_part(error.__traceback__))
    finally:
        builtins.input = before


def _asking(ask: Callable[[str, bool], str]) -> Any:
    return lambda prompt="", /: ask(str(prompt), False)


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of ours that lead into the task."""
    while (
        trace is not None
        and trace.tb_next is not None
        and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("jupyter_tasks.worker.")
    ):
        trace = trace.tb_next
    return trace
