"""The end of a task without a value, as the notebook shows it: the error that the cell would have raised here.

Pure, but for IPython's protocol `_render_traceback_`, by which an error brings the lines to print for it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from jupyter_tasks import exceptions
from jupyter_tasks.refs import ObjectRef

__all__ = ["as_in_the_kernel", "error_of", "has_group", "hint_for", "shown_as", "stand_in"]

_NAME_ERRORS = frozenset({"NameError", "UndefinedVariableError"})
_NAME_ERROR = re.compile(r"(?:name|variable) '(\w+)' is not defined")


def error_of(ref: ObjectRef) -> BaseException:
    try:
        ref._client.value(ref)
    except BaseException as error:
        return error
    return exceptions.JupyterTasksError("no error")


def shown_as(error: BaseException, lines: list[str]) -> BaseException:
    """Has IPython print these lines for the error, instead of our own frames."""
    with contextlib.suppress(Exception):  # one that takes no attributes is shown with our frames
        error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]  # IPython's protocol
    return error


def stand_in(name: str, text: str) -> BaseException:
    """An exception of the same name, with the same text."""
    kind: type[BaseException] = type(name, (exceptions.TaskError,), {"__module__": "builtins"})
    return kind(text)


def has_group(error: BaseException | None) -> bool:
    while error is not None:
        # By name: Python 3.10 has groups only as a backport.
        if any(base.__name__ == "BaseExceptionGroup" for base in type(error).__mro__):
            return True
        error = error.__context__
    return False


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


def as_in_the_kernel(error: BaseException, stopped_lines: list[str], hint: list[str]) -> BaseException:
    """The error as the cell would have raised it here: the same type, text and traceback."""
    if isinstance(error, exceptions.TaskError):
        lines = [*(error.__dict__.get("lines") or error.traceback_text.splitlines()), *hint]
        cause = error.cause
        if cause is None:  # it could not be sent
            return shown_as(stand_in(error.type_name, str(error).partition(": ")[2]), lines)
        # IPython draws these itself, with our frames above them.
        if isinstance(cause, SyntaxError):
            return shown_as(stand_in(error.type_name, _text_of(cause)), lines)
        return shown_as(cause, lines)
    if isinstance(error, exceptions.TaskCancelledError) and error.source in ("interrupt", "task"):
        return shown_as(KeyboardInterrupt(), stopped_lines or [f"KeyboardInterrupt: {error}"])
    return shown_as(error, [f"{type(error).__name__}: {error}"])


def hint_for(error: BaseException, namespace: Mapping[str, Any]) -> list[str]:
    """What to do about a name that analysis did not find in the cell, and that is there."""
    if not isinstance(error, exceptions.TaskError):
        return []
    # pandas says it in the same words: "UndefinedVariableError: local variable 'x' is not defined".
    found = _NAME_ERROR.search(str(error)) if error.type_name in _NAME_ERRORS else None
    if found is None or found[1] not in namespace:
        return []
    return [f"{found[1]!r} exists in the kernel: add `--in {found[1]}` to the %%remote line."]
