"""A cell that waits: the stop button, questions to the user, and outputs made by the kernel's ordinary means.

Main thread.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.error import StdinNotImplementedError

from jupyter_tasks.notebook.output import Place, Screen
from jupyter_tasks.stopbutton import StopButton
from jupyter_tasks.wire.frames import Kind

__all__ = ["STOP", "Shown", "ask_user", "import_quietly", "is_question", "once_after", "print_instead"]

STOP = object()  # among the words of a waited task: the stop button was pressed


def is_question(word: Any) -> bool:
    """A task asks for a line."""
    return bool(word[0] == Kind.DISPLAY and word[1]["type"] == "input_request")


def ask_user(ip: Any, prompt: str, *, is_password: bool, button: StopButton) -> dict[str, Any] | None:
    """Has the front-end ask. Returns the answer for the worker; None if the stop button was pressed instead."""
    kernel = getattr(ip, "kernel", None)
    try:
        try:
            button.raises = True
            if kernel is not None:
                return {"text": kernel.getpass(prompt) if is_password else kernel.raw_input(prompt)}
            return {"text": getpass.getpass(prompt) if is_password else input(prompt)}
        finally:
            button.raises = False
    except KeyboardInterrupt:
        return None
    except EOFError:
        return {}
    except StdinNotImplementedError as error:
        return {"refused": str(error)}


class Shown:
    """The outputs of a waited cell, made by the ordinary means of the kernel: main thread."""

    def __init__(self, ip: Any, screen: Screen, place: Place) -> None:
        self._ip = ip
        self._screen = screen
        self._place = place
        self._last = ""
        self._ended = False
        self.told = False  # the error that ended the cell has been shown already
        self.end: dict[str, Any] = {}  # what there is to say of the cell beside its value or error
        self.later: list[tuple[int, Any, bool]] = []  # what came after the error that ended the cell
        self.error_lines: list[str] = []  # of the error shown last
        self.stopped_lines: list[str] = []

    def show_later(self) -> None:
        """What belongs after the error, which has been shown by now: figures, say."""
        self._ended = False
        for word in self.later:
            self.take(*word)
        self.flush()

    def take(self, kind: int, content: Any, stderr: bool) -> None:
        """One word of the task."""
        if kind == Kind.DISPLAY and content["type"] == "over":
            self.end = content["content"]
        elif kind == Kind.DISPLAY and content["type"] == "ended":
            self._ended = True
            self.told = content["content"].get("told", False)
        elif self._ended and (kind == Kind.OUTPUT or (kind == Kind.DISPLAY and content["type"] != "stopped")):
            self.later.append((kind, content, stderr))
        elif kind == Kind.OUTPUT:
            self._switch("stderr" if stderr else "stdout")
            (sys.stderr if stderr else sys.stdout).write(content)
        elif kind == Kind.DISPLAY:
            self._switch("display")
            self._display(content["type"], content["content"])

    def _display(self, kind: str, content: dict[str, Any]) -> None:
        publisher = self._ip.display_pub
        if kind == "stopped":
            self.stopped_lines = content["traceback"]
        elif kind == "clear_output":
            publisher.clear_output(wait=content.get("wait", False))
        elif kind in ("display_data", "update_display_data"):
            publisher.publish(
                data=content["data"],
                metadata=content.get("metadata", {}),
                transient=content.get("transient", {}),
                update=kind == "update_display_data",
            )
        else:
            if kind == "error":
                self.error_lines = content["traceback"]
            self._screen.display(self._place, kind, content)

    def _switch(self, what: str) -> None:
        if self._last != what:
            self.flush()
            self._last = what

    def flush(self) -> None:
        """What was written so far is sent before anything else."""
        sys.stdout.flush()
        sys.stderr.flush()


def import_quietly(names: Iterable[str]) -> None:
    """What comes home is in these modules. What they print when they are imported was seen when the cell did it."""
    for name in names:
        if name not in sys.modules:
            quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
            with quiet[0], quiet[1], contextlib.suppress(Exception):  # the value that needs it says so
                importlib.import_module(name)


def once_after(ip: Any, show: Callable[[], None]) -> None:
    """Calls it when the running cell is over: in a plain kernel figures are drawn then, too."""

    def shown() -> None:
        ip.events.unregister("post_execute", shown)
        show()

    ip.events.register("post_execute", shown)


def print_instead(ip: Any, error: BaseException, lines: list[str]) -> None:
    """Has IPython print these lines for the error that is about to be raised, this once, and not draw it.

    For exception groups, for which it prints Python's own traceback; and for errors that the worker has told already.
    """
    before = ip.custom_exceptions, ip.CustomTB

    def printed(*_: object, **__: object) -> None:
        ip.custom_exceptions, ip.CustomTB = before
        if lines:
            print("\n".join(lines), file=sys.stderr)

    ip.set_custom_exc((type(error),), printed)
