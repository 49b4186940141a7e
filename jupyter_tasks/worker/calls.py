"""What the calls of an executor, and of joblib, need where they run.

An executor's initializer runs once in each worker, before the first of its calls there. Workers are everybody's, so
what it has changed around it (environment, directory, module path) is undone after the call as after any other, and
done again before the next. Globals that it has set are put into those of functions that came in another pickle, as
functions of a notebook do: each pickle makes globals of its own.

Thread: the main thread, in which tasks run. It must not import concurrent.futures, which costs a worker 10 ms.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from jupyter_tasks.exceptions import JupyterTasksError
from jupyter_tasks.wire import ambient
from jupyter_tasks.worker import context

__all__ = ["Carried", "Fixed", "InitializerFailed", "Placeholder", "Setup", "run_batch"]

_done: dict[str, _Done] = {}  # what initializers have done in this process, by their executors' keys


class InitializerFailed(JupyterTasksError):
    """The initializer of an executor has raised; its calls raise this one on their way to the executor.

    Attributes:
        key: the executor's.
    """

    key: str = ""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class _Done:
    """What one initializer has left: names in its globals, and changes of what is around."""

    def __init__(self, module: str, names: Mapping[str, Any], around: ambient.Difference) -> None:
        self.module = module
        self.names = names
        self.around = around


class Setup:
    """An initializer with its arguments, on its way to the workers."""

    def __init__(self, key: str, initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> None:
        self.key = key
        self.initializer = initializer
        self.initargs = initargs

    def prepare(self, function: Any) -> None:
        """Before each call: the initializer has run here, and `function` sees what it has set.

        Raises:
            InitializerFailed: it has raised. (A KeyboardInterrupt is a cancel of the call: the next one begins anew.)
        """
        done = _done.get(self.key)
        if done is None:
            done = _done[self.key] = self._run()
        elif done.around and context.current_worker() is not None:  # in place nothing of it was undone
            ambient.apply(done.around)
        own = _globals_of(function)
        if done.names and own is not None and own.get("__name__") == done.module:
            own.update(done.names)

    def _run(self) -> _Done:
        own = _globals_of(self.initializer)
        before = dict(own) if own is not None else {}
        around = ambient.take()
        try:
            self.initializer(*self.initargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            name = getattr(self.initializer, "__name__", type(self.initializer).__name__)
            what = traceback.format_exception_only(type(error), error)[-1].strip()
            raise InitializerFailed(f"The initializer {name}() of the executor raised {what}", self.key) from error
        names = {} if own is None else {k: v for k, v in own.items() if k not in before or before[k] is not v}
        module = "" if own is None else str(own.get("__name__"))
        return _Done(module, names, ambient.difference(around, ambient.take()))


def _globals_of(function: Any) -> dict[str, Any] | None:
    """The globals that came with a function by value; None for those of a module, which all share."""
    while isinstance(function, (functools.partial, MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if not isinstance(function, FunctionType):
        return None
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    return None if module is not None and vars(module) is function.__globals__ else function.__globals__


class Fixed:
    """Runs a function that the worker has been sent once."""

    def __init__(self, function: Callable[..., Any], width: int, setup: Setup | None) -> None:
        self.__wrapped__ = function  # under this name `inspect` finds its source
        self.width = width
        self.setup = setup

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _run(self.setup, self.__wrapped__, self.width, args, kwargs)


class Carried:
    """Runs a function that comes along with each call."""

    def __init__(self, setup: Setup | None) -> None:
        self.setup = setup

    def __call__(self, function: Callable[..., Any], width: int, /, *args: Any, **kwargs: Any) -> Any:
        return _run(self.setup, function, width, args, kwargs)


def _run(
    setup: Setup | None, function: Callable[..., Any], width: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if setup is not None:
        setup.prepare(function)
    if not width:
        return function(*args, **kwargs)
    return [function(*args[i : i + width]) for i in range(0, len(args), width)]


class Placeholder:
    """Stands in a joblib batch for a large argument, which the task has as one of its own."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place


def run_batch(batch: Any, /, *values: Any) -> Any:
    """Runs joblib's BatchedCalls with `values` in the place of placeholders."""

    def filled(value: Any) -> Any:
        return values[value.place] if type(value) is Placeholder else value

    items: Sequence[Any] = batch.items
    batch.items = [
        (function, tuple(map(filled, args)), {name: filled(value) for name, value in kwargs.items()})
        for function, args, kwargs in items
    ]
    return batch()
