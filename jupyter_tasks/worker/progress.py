"""Progress from inside a task: bars of our own, and every tqdm bar without a change to the user's code.

    for row in track(rows, label="rows"): ...
    with progress(100, "epochs") as bar: bar.update()
    install_tqdm_hook()      from now on tqdm bars report too, whenever tqdm is imported

A bar has a number of its own and reports whole states, never differences, so that a report may be left out: at most one
per bar and interval, the first and the last always. Where they go is said by `set_report`; without it bars only count.
A bar that is made while another of the same thread is open is its child.

What this takes for granted: a report may come from any thread, and from a destructor (tqdm closes its bars in one), so
the callable must not wait for a lock that its own thread may hold. Whatever it raises is dropped, except an interrupt.

Thread: bars may be used from any thread, also several from one bar. `set_report`, `show_tqdm_text` and
`install_tqdm_hook` belong to the thread that runs the tasks, between them. A forked child reports nothing.

It must not know tasks, frames or IPython. Importing it imports no tqdm.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any, TypeVar

__all__ = ["Report", "install_tqdm_hook", "progress", "set_report", "show_tqdm_text", "track"]

T = TypeVar("T")

# {'id': int, 'label': str, 'n': float, 'total': float | None, 'elapsed_s': float, 'rate': float | None (per second),
#  'unit': str, 'done': bool, 'parent': int | None (the id of another bar)}
Report = Callable[[dict[str, Any]], None]

MIN_INTERVAL = 0.1  # seconds between two reports of one bar; the screen takes 10 a second

_report: Report | None = None
_min_interval = MIN_INTERVAL
_text = True  # whether tqdm writes its bars
_session = 0  # counts set_report: bars of an earlier task are nobody's parents
_ids = itertools.count(1)
_here = threading.local()  # of each thread: its open bars, and whether it is in a report


def set_report(report: Report | None, min_interval_s: float = MIN_INTERVAL) -> None:
    """Say where reports go from now on. None: nowhere, and bars only count."""
    global _report, _min_interval, _session
    _report, _min_interval = report, min_interval_s
    _session += 1


def track(
    iterable: Iterable[T], total: float | None = None, label: str = "", unit: str = "it"
) -> Generator[T, None, None]:
    """Yield the items and report how many were taken. `total` is len(iterable) if it has one."""
    if total is None:
        try:
            total = len(iterable)  # type: ignore[arg-type]  # that is the question
        except TypeError:
            pass
    with progress(total, label, unit) as bar:
        for item in iterable:
            yield item
            bar.update()


class progress:
    """A bar that is moved by hand. Closed by `close` or at the end of a `with`; then it stays as it is.

    Args:
        total: how far it goes; None if that is not known.
        label: what stands before it.
        unit: what is counted.
    """

    def __init__(self, total: float | None = None, label: str = "", unit: str = "it") -> None:
        if total is not None and not total >= 0:
            raise ValueError(f"total must not be negative, but is {total!r}.")
        self.n: float = 0
        self.total = total
        self.label = label
        self.unit = unit
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._bar = _Bar()
        self._show()

    def update(self, n: float = 1) -> None:
        """Go on by `n`. Any thread."""
        with self._lock:
            self.n += n
        self._show()

    def set(self, n: float) -> None:
        """Go to `n`."""
        self.n = n
        self._show()

    def close(self) -> None:
        self._show(done=True)

    def __enter__(self) -> progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, done: bool = False) -> None:
        if not self._bar.is_due(done):
            return
        elapsed = time.monotonic() - self._start
        rate = self.n / elapsed if self.n and elapsed else None
        self._bar.send(
            label=str(self.label),
            n=_number(self.n) or 0,
            total=_number(self.total),
            elapsed_s=elapsed,
            rate=_number(rate),
            unit=str(self.unit),
            done=done,
        )


class _Bar:
    """What all kinds of bars share: a number, a parent, and the patience between reports."""

    __slots__ = ("__weakref__", "_done", "_lock", "_next", "id", "parent", "row")

    def __init__(self, row: int = -1) -> None:
        self.id = next(_ids)
        self.row = row  # of a tqdm bar: it is nested only in bars that stand above it; -1 for bars of our own
        self._next = 0.0  # monotonic seconds; no report before, unless it is the last
        self._done = False
        # Held while reporting, so that the last report is not overtaken. Reentrant: an interrupt may leave it held.
        self._lock = threading.RLock()
        others = [bar for ref in _open_bars() if (bar := ref()) is not None and not bar._done]
        above = [bar for bar in others if row < 0 or bar.row < row]
        self.parent = above[-1].id if above else None
        _open_bars()[:] = [weakref.ref(bar) for bar in (*others, self)]

    def is_due(self, done: bool) -> bool:
        return _report is not None and not self._done and (done or time.monotonic() >= self._next)

    def send(self, *, done: bool, **state: Any) -> None:
        report = _report
        if report is None or getattr(_here, "reporting", False):
            return  # a report that makes bars itself (a log handler with tqdm) is not reported
        if not self._lock.acquire(blocking=done):
            return  # another thread is at it, with a state as good as this
        _here.reporting = True
        try:
            if self._done or not self.is_due(done):
                return
            self._done = done
            self._next = time.monotonic() + _min_interval
            report({"id": self.id, **state, "done": done, "parent": self.parent})
        except Exception:
            pass  # the user's loop is worth more than a report
        finally:
            _here.reporting = False
            self._lock.release()


def _open_bars() -> list[weakref.ref[_Bar]]:
    """This thread's open bars, outermost first. Weak: a bar that was dropped unclosed is nobody's parent."""
    if getattr(_here, "session", None) != _session:
        _here.session, _here.bars = _session, []
    bars: list[weakref.ref[_Bar]] = _here.bars
    return bars


def _number(value: Any) -> float | None:
    """As a number that JSON has; numpy's become Python's."""
    if value is None or type(value) is int:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _after_fork() -> None:
    set_report(None)  # the callable writes to a socket that belongs to the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# -- tqdm ----------------------------------------------------------------------------------------------------------


def show_tqdm_text(text: bool) -> None:
    """Whether bars made from now on write to stdout or stderr as well. Bars with a file of their own always do."""
    global _text
    _text = text


def install_tqdm_hook() -> None:
    """Let every tqdm bar of this process report, whether tqdm is imported already or later. Idempotent.

    Covers tqdm.std and all that is built on it: asyncio, auto, contrib, pandas' progress_apply. `tqdm.notebook`, whose
    widgets have no frontend here, is a bar of text too. tqdm's monitor thread is switched off: a worker with a thread
    left counts as busy. So a bar that slows down from very fast to very slow may be late by some iterations.
    """
    if not any(isinstance(finder, _TqdmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TqdmFinder())
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            patch(sys.modules[name])


# Finders and loaders are known by their methods. Their base classes, in importlib.abc, take 8 ms of a cold start.
class _TqdmFinder:
    """Finds the modules of _PATCHES as everybody else would, and patches them after their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "tqdm.notebook":
            return ModuleSpec(fullname, _NotebookLoader())  # type: ignore[arg-type]
        if fullname not in _PATCHES:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _PatchingLoader(spec.loader, _PATCHES[fullname])  # type: ignore[assignment]
                return spec
        return None


class _PatchingLoader:
    """Another loader, and then the patch."""

    def __init__(self, loader: Any, patch: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:  # get_source and others, for linecache and inspect
        return getattr(self._loader, name)


class _NotebookLoader:
    """Makes `tqdm.notebook` without ipywidgets, which takes a while to import and has nobody to show widgets to."""

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual empty one."""

    def exec_module(self, module: ModuleType) -> None:
        from tqdm import std

        bar = _text_instead_of_widgets(std.tqdm)

        def trange(*args: Any, **kwargs: Any) -> Any:
            return bar(range(*args), **kwargs)

        module.__dict__.update(
            tqdm=bar,
            tqdm_notebook=bar,
            trange=trange,
            tnrange=trange,
            IProgress=object,  # not None: tqdm.autonotebook warns about that
            HBox=object,
            WARN_NOIPYW="",
            __all__=["tqdm_notebook", "tnrange", "tqdm", "trange"],
        )


def _patch_std(module: ModuleType) -> None:
    """Put a report behind each of tqdm's own refreshes."""
    bar: Any = module.tqdm
    bar.monitor_interval = 0
    if bar.monitor is not None:
        bar.monitor.exit()
        bar.monitor = None
    if "_jupyter_tasks_bar" in vars(bar):
        return
    bar._jupyter_tasks_bar = None
    plain_init, plain_refresh, plain_close = bar.__init__, bar.refresh, bar.close

    @functools.wraps(plain_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _text:
            args, kwargs = _muted(args, kwargs)
        plain_init(self, *args, **kwargs)
        _report_tqdm(self)  # not every subclass refreshes in its __init__

    @functools.wraps(plain_refresh)
    def refresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        shown = plain_refresh(self, *args, **kwargs)
        _report_tqdm(self)
        return shown

    @functools.wraps(plain_close)
    def close(self: Any) -> None:
        was_open = not getattr(self, "disable", True)
        plain_close(self)
        if was_open:
            _report_tqdm(self, done=True)

    bar.__init__, bar.refresh, bar.close = init, refresh, close


def _report_tqdm(bar: Any, done: bool = False) -> None:
    if _report is None or (getattr(bar, "disable", True) and not done):
        return
    if bar._jupyter_tasks_bar is None:
        if done or (bar.delay > 0 and time.time() < getattr(bar, "start_t", math.inf) + bar.delay):
            return  # `delay=`: a short loop shows nothing, so it reports nothing
        bar._jupyter_tasks_bar = _Bar(abs(bar.pos))
    own: _Bar = bar._jupyter_tasks_bar
    if not own.is_due(done):
        return
    try:
        state = bar.format_dict
        scale = state["unit_scale"] if type(state["unit_scale"]) in (int, float) else 1
        elapsed = _number(state["elapsed"]) or 0
        moved = state["n"] - state["initial"]
        rate = state["rate"] or (moved / elapsed if moved and elapsed else None)
        own.send(
            label=str(state["prefix"] or "").removesuffix(": "),
            n=_number(state["n"] * scale) or 0,
            total=None if state["total"] is None else _number(state["total"] * scale),
            elapsed_s=elapsed,
            rate=None if rate is None else _number(rate * scale),
            unit=str(state["unit"]),
            done=done,
        )
    except Exception:
        pass  # a subclass with a state of its own kind; it still shows its text


def _muted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of tqdm(iterable, desc, total, leave, file, ...) with a file that goes nowhere."""
    place = 4
    file = args[place] if len(args) > place else kwargs.get("file")
    if not any(file is each for each in (None, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
        return args, kwargs
    if len(args) > place:
        return (*args[:place], _Nowhere(), *args[place + 1 :]), kwargs
    return args, {**kwargs, "file": _Nowhere()}


class _Nowhere(io.TextIOBase):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


def _text_instead_of_widgets(base: Any) -> Any:
    """tqdm.notebook's class with its arguments, but a plain bar."""

    class tqdm_notebook(base):  # type: ignore[misc]  # tqdm is untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("display", None)
            if isinstance(kwargs.get("ncols"), str):  # "100%", "50px"
                del kwargs["ncols"]
            if len(args) <= 4 and kwargs.get("file") in (None, sys.stderr):
                kwargs["file"] = sys.stdout  # as the real one: stderr is red in a notebook
            kwargs["disable"] = bool(kwargs.get("disable", False))
            base.__init__(self, *args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None, **_: Any) -> Any:
            return base.display(self, msg, pos)

        disp = display

    return tqdm_notebook


def _patch_notebook(module: ModuleType) -> None:
    """Turn the class of a `tqdm.notebook` that was imported before the hook into a plain bar, subclasses included."""
    real: Any = module.tqdm_notebook
    base = real.__mro__[1]
    plain = _text_instead_of_widgets(base)
    if "container" not in real.display.__code__.co_names:
        return  # ours already
    for name in ("__init__", "__iter__", "clear", "close", "colour", "display", "reset", "status_printer", "update"):
        if name in vars(real):
            delattr(real, name)
    real.__init__, real.display, real.disp = plain.__init__, plain.display, plain.disp


_PATCHES: dict[str, Callable[[ModuleType], None]] = {"tqdm.std": _patch_std, "tqdm.notebook": _patch_notebook}
