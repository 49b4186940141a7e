"""The IPython shell that a cell of the notebook runs in.

    worker_shell()         one InteractiveShell per process, made at the first call
    shell.run_cell(...)    messages go to `emit` while the cell runs; its end comes back as a CellOutcome
    shell.reset()          after the task: nothing of the cell stays alive

To code that looks (pandas, rich, plotly, tqdm) it is ipykernel's shell: class name, module, a `kernel`. But
no ipykernel is imported, and there is no session, no comm, no history file and no profile behind it. What the
shell shows leaves as the content of a Jupyter message through `emit`; text goes to sys.stdout and sys.stderr.

**A new `__main__` for every cell.** Functions of an earlier cell (in a leftover thread, in a callback of a
library) go on reading the dict they were made in, so it must not be refilled for somebody else. IPython looks
its namespace up through `user_module` and `user_ns` each time, so each cell can have a fresh module.

**Lines count as in the notebook.** A cell `%%remote train` is compiled with that line in front, as a comment:
line numbers in tracebacks, warnings and inspect.getsource are right. Tracebacks take the `#` away again. The
notebook may give the file name of the cell, and texts of earlier cells: then warnings and tracebacks say what
they say in the kernel.

**Interrupts.** The SIGINT handler that decides whether to raise KeyboardInterrupt belongs to somebody else.
While a cell runs, `_SigintGate` stands before it for three things that only the shell can know: that an event
loop's own code would be hit (then the cell's main task is cancelled, as asyncio.run does), that IPython has
swallowed the interrupt (`!cmd`, %run, %%bash), and that the cell has not begun or is over.

Thread: all of it belongs to the process's main thread, where cells run. Only display() may come from any
thread of the cell, and then so does `emit`. Nothing here starts a thread that outlives a cell.

It must not know tasks, frames, sockets or the notebook. Importing it imports no IPython.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import gc
import importlib
import linecache
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import date
from numbers import Integral, Real
from typing import Any, Literal, NoReturn

__all__ = ["CellOutcome", "Emit", "Shell", "Stdin", "preload", "worker_shell"]

# Called with a message type ("display_data", "update_display_data", "execute_result", "clear_output" or
# "error") and the content of that message, which json can write. "error" is one that was shown but did not
# end the cell (%run and %tb do that); the error that ended it is in the outcome instead. In a cell that is
# waited for it is announced by "ended", {"told": whether nothing is left to show of it}: what follows
# comes from callbacks of `post_execute` and belongs after the error.
Emit = Callable[[str, dict[str, Any]], None]

# Called with the prompt and whether it is a password; returns the line.
Stdin = Callable[[str, bool], str]

_PRELOADED = (
    *("IPython.core.application", "IPython.core.completerlib", "IPython.core.debugger"),
    *("IPython.core.interactiveshell", "IPython.core.logger", "IPython.core.magics.execution"),
    *("IPython.core.magics.osm", "IPython.core.magics.script", "IPython.core.oinspect"),
    *("IPython.utils.timing", "asyncio", "concurrent.futures.thread", "getpass", "hashlib", "pexpect"),
    *("platform", "pygments.formatters.html", "stack_data"),
)
_KEPT_SOURCES = 200  # cells whose source stays in linecache; a guess: functions of old cells may still raise
_THREAD_GRACE = 0.1  # seconds for idle threads of a closed event loop to end, before the cell counts as done
_HERE = __name__.rpartition(".")[0] + "."  # frames of this package's worker side are hidden in tracebacks
_LOOP_MODULES = {"asyncio", "nest_asyncio", "nest_asyncio2", "selectors", "uvloop"}
_NOT_NAMES = {
    *(
        "__annotate__",
        "__annotations__",
        "__conditional_annotations__",
        "__builtin__",
        "__builtins__",
        "__doc__",
        "__loader__",
        "__name__",
        "__package__",
    ),
    *("__spec__", "__warningregistry__", "__file__", "__nonzero__"),  # the last two come from %run
}


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """How a cell ended.

    Attributes:
        value: what the last expression gave, also if a trailing `;` kept it from being shown; None if the
            last statement is no expression, or after an error.
        error: what the cell raised, KeyboardInterrupt, SystemExit and SyntaxError included. Its
            `__traceback__` begins in the cell.
        traceback: the coloured lines that a kernel would send in the `error` message. Empty where a kernel
            sends none: after a UsageError, which is text on stderr.
        ename, evalue: the error's type and text; "" without an error.
        namespace: the cell's names with their values, without IPython's own.
        has_result: whether IPython has stored `value` in `_` and Out. So it has also if nothing could be shown.
        display_failed: whether an error was shown while a result was formatted. The cell goes on then; but
            ipykernel calls its reply an error.
        payloads: pages and next inputs for the front-end, if the cell was waited for.
    """

    value: object
    error: BaseException | None
    traceback: list[str]
    ename: str
    evalue: str
    namespace: dict[str, object]
    has_result: bool = False
    display_failed: bool = False
    payloads: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Run:
    """One cell on its way through IPython. Changed by the main thread only, and by signal handlers in it."""

    emit: Emit
    stdin: Stdin | None
    source: str
    first_line: str
    file_name: str
    silent_result: bool
    show_interrupt: bool
    waited: bool
    nested_loops: str
    # "starting": interrupts wait. "code": they are raised, and an error that is shown may be the cell's.
    # "after" (post_execute, where figures are drawn): they are raised, the code has ended. "over": dropped.
    phase: Literal["starting", "code", "after", "over"] = "starting"
    interrupts: int = 0  # how often the handler behind the gate raised KeyboardInterrupt
    depth: int = 0  # of run_code: 1 in the cell's statements, 2 in those of a `get_ipython().run_cell` in it
    result: Any = None  # IPython's ExecutionResult for the statement at depth 1
    value: object = None  # what the displayhook got in the last statement at depth 1
    has_result: bool = False  # `value` was stored in Out
    display_failed: bool = False
    shown: tuple[BaseException, list[str]] | None = None  # an error that is probably the cell's own
    told: BaseException | None = None  # what `shown` holds, if that was sent already
    exit_filter: Any = None  # in warnings.filters, while IPython ends a statement that has raised SystemExit
    magics: int = 0  # how many line and cell magics are running, nested
    swallowed: KeyboardInterrupt | None = None  # one that IPython only showed; raised when its magic returns
    loop: Any = None  # of an async cell
    main_task: Any = None  # Invariant: not None only while `loop` runs it
    cancelled: bool = False  # main_task was cancelled because of an interrupt


def preload() -> None:
    """Import what cells need of IPython, for a zygote before it forks: starts no thread, makes no shell.

    Without it, making the shell takes 40 ms instead of 10, and the first traceback 60 ms instead of 15.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    from IPython.core.ultratb import AutoFormattedTB

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        AutoFormattedTB(mode="Context").structured_traceback(*sys.exc_info())  # compiles the highlighter


def worker_shell() -> Shell:
    """The one shell of this process. Imports IPython at the first call. Main thread only."""
    global _shell
    if _shell is None:
        try:
            _shell = Shell(_make_ipython())
        except BaseException:
            _forget_instance()  # IPython makes one only: the next cell would not get a shell at all
            raise
    return _shell


def _forget_instance() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    if InteractiveShell.initialized():
        type(InteractiveShell._instance).clear_instance()


_shell: Shell | None = None


class Shell:
    """Runs cells, one at a time. Made by `worker_shell`.

    Attributes:
        ip: the InteractiveShell, which is also what `get_ipython()` gives.
    """

    def __init__(self, ip: Any) -> None:
        self.ip = ip
        traits = ip.trait_values(config=True)
        self._traits = {name: value for name, value in traits.items() if _is_plain(value)}
        self._attributes = set(vars(ip))
        self._builtins = dict(vars(builtins))
        self._display_pub = ip.display_pub
        self._loop_runner = ip.loop_runner
        self._ready = False  # whether `ip.user_ns` is a namespace that no cell has run in

    def fresh_namespace(self) -> dict[str, object]:
        """The dict, already `__main__`'s, in which the next cell will run. The same until that cell has run.

        For what must be built before the cell runs, as functions whose globals are to be the cell's.
        """
        if not self._ready:
            self._renew_namespace()
        namespace: dict[str, object] = self.ip.user_ns
        return namespace

    def run_cell(
        self,
        source: str,
        namespace: Mapping[str, object],
        *,
        emit: Emit,
        execution_count: int,
        first_line: str = "",
        silent_result: bool = False,
        show_interrupt: bool = True,
        stdin: Stdin | None = None,
        file_name: str = "",
        waited: bool = False,
        nested_loops: str = "",
    ) -> CellOutcome:
        """Run a cell to its end. Main thread only.

        Args:
            source: the cell without `first_line`.
            namespace: names put into a new namespace before the run (see `fresh_namespace`).
            emit: gets every message at once, in the thread that displays. It stays in use for threads that
                the cell leaves behind, until `reset`. What it raises reaches the code that displays.
            execution_count: the N of `In[N]`, `Out[N]` and of tracebacks.
            first_line: the cell's first line in the notebook, if that is not part of `source`.
            silent_result: do not show the last expression, and do not compute its representations.
            show_interrupt: format the traceback of a KeyboardInterrupt. That takes 0.1 to 0.3 s below deep
                library code, which a task that is to stop should not take if nobody will see it.
            stdin: answers input() and getpass(); without it they raise at once.
            file_name: what the cell's code is compiled under; without it, IPython's own name.
            waited: somebody shows it as if it had run in the kernel: pages become payloads, a loop is running as
                in the kernel, and the raise of its error is left to them (see `Emit`).
            nested_loops: "nest_asyncio" or "nest_asyncio2", if that has been applied in the kernel. It stays
                applied in this process.

        Raises:
            KeyboardInterrupt: never through the SIGINT handler found at the call; those are outcomes.

        A cell that awaits, or is waited for, runs on an event loop of its own in this thread. When it ends, tasks
        that it leaves behind are cancelled and awaited, and the loop is closed. In others asyncio.run works, and
        what refuses to run in a running loop. Threads and processes that a cell leaves are not touched.
        """
        first_line = first_line.splitlines()[0] if first_line.strip() else ""
        run = _Run(emit, stdin, source, first_line, file_name, silent_result, show_interrupt, waited, nested_loops)
        before = _replaceable_state()
        try:
            with _SigintGate(run):
                try:
                    self._enter(run, namespace, execution_count)
                    run.phase = "code"
                    if run.interrupts:
                        raise KeyboardInterrupt
                    outcome = self._execute(run, source, execution_count)
                except BaseException as failure:
                    run.phase = "after"
                    run.shown = (failure, self._format(failure))
                    outcome = self._outcome_of(run, failure)
                run.phase = "over"
                _stop_script_loop(self.ip)
        finally:
            run.phase = "over"
            _flush()
            _restore_state(before)
            _flush()
        return outcome

    def learn_sources(self, sources: Mapping[str, tuple[int, str]]) -> None:
        """Take texts of earlier cells, `{file name: (number, text)}`, for tracebacks and inspect; the last are kept."""
        for name, (number, text) in list(sources.items())[-_KEPT_SOURCES:]:
            self.ip.compile.learn(name, number, text)

    def join_matplotlib(self) -> None:
        """Figures are shown at the end of cells also if matplotlib was imported before there was a shell."""
        _join_matplotlib(self.ip)

    def reset(self) -> None:
        """Forget the cell: namespace, Out and history, figures, tracebacks, what it registered with IPython.

        To be called when the task's threads have ended too: what they still hold stays alive, and what they
        display is dropped from now on. What the cell changed elsewhere (modules, environment, working
        directory) is not undone. Ends with a full garbage collection: 40 ms with pandas imported, 0.3 ms if
        the imports were followed by gc.freeze().

        Raises:
            Exception: what a step raised that the cell has broken, after all other steps. Do not use the shell again.
        """
        ip = self.ip
        ip._cell = None
        broken: list[Exception] = []
        for step in (
            _close_figures,
            lambda: _stop_script_loop(ip, always=True),
            lambda: _forget_history(ip),
            lambda: _forget_errors(ip),
            lambda: _forget_registrations(ip),
            lambda: _forget_sources(ip),
            _forget_event_loop,
            self._forget_settings,
            lambda: _restore_builtins(self._builtins),
            self._renew_namespace,
            gc.collect,  # a function and its globals are a cycle, and so are figures and most models
        ):
            try:
                step()
            except Exception as error:
                broken.append(error)
        if broken:
            raise broken[0]

    def _forget_settings(self) -> None:
        ip = self.ip
        ip.display_pub = self._display_pub
        ip.clear_main_mod_cache()
        ip.payload_manager.clear_payload()
        ip.compile.reset_compiler_flags()
        for name, value in self._traits.items():
            if getattr(ip, name) != value:
                setattr(ip, name, value)
        for name in vars(ip).keys() - self._attributes:  # as rich.traceback.install puts over methods
            if callable(vars(ip)[name]) and hasattr(type(ip), name):
                delattr(ip, name)

    def _renew_namespace(self) -> None:
        ip = self.ip
        module = types.ModuleType("__main__", doc="The cell's namespace.")
        ip.user_module, ip.user_ns = ip.prepare_user_module(user_module=module)
        ip.ns_table = {
            "user_global": module.__dict__,
            "user_local": module.__dict__,
            "builtin": builtins.__dict__,
        }
        ip.user_ns_hidden.clear()
        ip.init_user_ns()
        ip.user_ns.update({"_": "", "__": "", "___": ""})
        ip.set_completer_frame(None)
        sys.modules["__main__"] = module
        self._ready = True

    def _enter(self, run: _Run, namespace: Mapping[str, object], execution_count: int) -> None:
        ip = self.ip
        for trap in (ip.builtin_trap, ip.display_trap):
            while trap._nested_level > 0:  # an earlier interrupt fell between its __enter__ and its __exit__
                trap.__exit__(None, None, None)
        own = self.fresh_namespace()
        self._ready = False
        if namespace is not own:
            own.update(namespace)
        history = ip.history_manager
        for lines in (history.input_hist_parsed, history.input_hist_raw):
            lines[:] = [""] * execution_count  # so that In[execution_count] is this cell
        ip.execution_count = execution_count
        ip._cell = run
        _take_stdin(ip, run.stdin)
        _join_matplotlib(ip)

    def _execute(self, run: _Run, source: str, execution_count: int) -> CellOutcome:
        ip = self.ip
        failed: Any = None
        try:
            transformed = ip.transform_cell(source)
        except Exception:
            transformed, failed = source, sys.exc_info()
        before = _lines_before(source, run.first_line)
        if failed and isinstance(failed[1], SyntaxError) and failed[1].lineno:
            failed[1].lineno += before.count("\n")
        transformed = before + transformed
        coroutine = ip.run_cell_async(
            source, store_history=True, transformed_cell=transformed, preprocessing_exc_tuple=failed
        )
        is_async = self._should_run_async(run, source, transformed, failed)
        runner = ip.loop_runner if is_async else self._run_in_loop if run.waited else _run_without_loop
        result: Any = None
        try:
            result = runner(coroutine)
        except BaseException as failure:  # not in the cell's code, where IPython catches all, but on the way
            result = _failed_result(failure)
            ip.showtraceback(running_compiled_code=True)
        finally:
            coroutine.close()
        run.phase = "after"
        error = result.error_before_exec or result.error_in_exec
        if run.waited and error is not None:
            run.emit("ended", {"told": _is_told(run, error)})
        ip.events.trigger("post_execute")
        ip.events.trigger("post_run_cell", result)
        return self._outcome_of(run, run.swallowed or error)

    def _run_in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell that awaits nothing, as a step of a loop. Not in a context of its own, though: a kernel keeps what
        such a cell sets in context variables, numpy's print options and the decimal context among them."""
        end: contextvars.Context | None = None

        async def step() -> Any:
            nonlocal end
            try:
                return await coroutine
            finally:
                end = contextvars.copy_context()

        missing = object()
        try:
            return self._loop_runner(step())
        finally:
            for variable, value in end.items() if end is not None else ():
                if variable.get(missing) is not value:
                    variable.set(value)

    def _should_run_async(self, run: _Run, source: str, transformed: str, failed: Any) -> bool:
        """Whether the cell awaits. A kernel compiles a cell that does not twice to find out, and so warns twice."""

        def ask() -> bool:
            return bool(self.ip.should_run_async(source, transformed_cell=transformed, preprocessing_exc_tuple=failed))

        show, warned = warnings.showwarning, False

        def showwarning(*args: Any, **kwargs: Any) -> None:
            nonlocal warned
            warned = True
            show(*args, **kwargs)

        warnings.showwarning = showwarning
        try:
            awaits = ask()
        finally:
            warnings.showwarning = show
        return ask() if warned and run.waited and not awaits else awaits

    def _outcome_of(self, run: _Run, error: BaseException | None) -> CellOutcome:
        namespace = self._names()
        lines: list[str] = []
        if run.shown is not None and run.shown[0] is error:
            lines = run.shown[1]
        elif run.shown is not None:
            # Shown before the code began, by a callback of `pre_run_cell`: a kernel shows it and goes on.
            run.emit("error", _error_content(*run.shown))
        payloads = _jsonable(self.ip.payload_manager.read_payload()) if run.waited else []
        if error is None:
            return CellOutcome(run.value, None, [], "", "", namespace, run.has_result, run.display_failed, payloads)
        for each in _chain(error):
            each.__traceback__ = _shown_part(each.__traceback__)
        if isinstance(error, KeyboardInterrupt) and not lines:
            lines = self._format(error)
        ename, evalue = type(error).__name__, _text(error)
        return CellOutcome(None, error, lines, ename, evalue, namespace, payloads=payloads)

    def _format(self, error: BaseException) -> list[str]:
        tb = _shown_part(error.__traceback__)
        lines: list[str] = self.ip.InteractiveTB.structured_traceback(type(error), error, tb, tb_offset=0)
        return lines

    def _names(self) -> dict[str, object]:
        ip = self.ip
        hook = ip.displayhook
        hidden = {"_": hook._, "__": hook.__, "___": hook.___, **ip.user_ns_hidden}
        missing = object()
        return {
            name: value
            for name, value in list(ip.user_ns.items())
            if name not in _NOT_NAMES and hidden.get(name, missing) is not value
        }


# ----------------------------------------------------------------------------------------------------------
# The InteractiveShell. IPython's classes are known at run time only; our parts are mixins in front of them.

_IPythonPart: Any = object


def _make_ipython() -> Any:
    from IPython.core import interactiveshell
    from IPython.core.compilerop import CachingCompiler
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from traitlets import Type
    from traitlets.config import Config

    def combine(name: str, module: str, *bases: Any, **attributes: Any) -> Any:
        return types.new_class(name, bases, exec_body=lambda ns: ns.update(attributes, __module__=module))

    hook = combine("ZMQShellDisplayHook", "ipykernel.displayhook", _HookPart, DisplayHook)
    publisher = combine("ZMQDisplayPublisher", "ipykernel.zmqshell", _PublisherPart, DisplayPublisher)
    compiler = combine("CachingCompiler", "IPython.core.compilerop", _CompilerPart, CachingCompiler)
    base: Any = interactiveshell.InteractiveShell
    runner = _LoopRunner()
    shell_class = combine(
        "ZMQInteractiveShell",
        "ipykernel.zmqshell",
        _ShellPart,
        base,
        displayhook_class=Type(hook),
        display_pub_class=Type(publisher),
        loop_runner_map={**base.loop_runner_map, "asyncio": (runner, True)},
    )
    interactiveshell.InteractiveShellABC.register(shell_class)

    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.IPKernelApp.background_cell = True  # "IPKernelApp" in get_ipython().config is how libraries ask
    # matplotlib reads it at its import. The kernel's default, if the kernel's own did not come with the fork.
    if not os.environ.get("MPLBACKEND"):
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

    eager_db = getattr(interactiveshell, "PickleShareDB", None)
    if eager_db is not None:  # IPython 8 makes the database, and its directory, at once
        interactiveshell.PickleShareDB = _Store
    try:
        ip = shell_class.instance(config=config)
    finally:
        if eager_db is not None:
            interactiveshell.PickleShareDB = eager_db
    ip.magics_manager.register_lazy("store", "IPython.extensions.storemagic")  # a kernel loads it at its start
    runner.ip = ip
    ip.loop_runner = runner
    ip.compile = compiler()
    ip.compile.ip = ip
    return ip


class _ShellPart(_IPythonPart):  # type: ignore[misc]  # IPython is untyped
    """What differs from a plain InteractiveShell. `_cell` is the run in progress, None between tasks."""

    _cell: _Run | None = None
    _last_traceback: list[str] | None = None  # ipykernel has it, and nbconvert-like tools look

    # -- what it looks like, and what it must not touch

    def init_ipython_dir(self, ipython_dir: str | None) -> None:
        self.unobserve_all("ipython_dir")  # the observer would make the directory
        self.ipython_dir = os.path.expanduser(os.environ.get("IPYTHONDIR") or os.path.join("~", ".ipython"))

    def init_profile_dir(self, profile_dir: Any) -> None:
        from IPython.core.profiledir import ProfileDir

        profile = ProfileDir()
        profile.unobserve_all()  # the observers would make a directory each, and files in them
        profile.location = os.path.join(self.ipython_dir, "profile_default")
        for name in ("log", "pid", "security", "startup", "static"):
            setattr(profile, f"{name}_dir", os.path.join(profile.location, name))
        self.profile_dir = profile
        self._store = _Store(os.path.join(profile.location, "db"))

    @property
    def db(self) -> Any:
        return self._store

    @db.setter
    def db(self, value: Any) -> None:
        pass  # IPython 8 sets it

    def init_instance_attrs(self) -> None:
        from IPython.core.autocall import ZMQExitAutocall

        super().init_instance_attrs()
        self.kernel = _StandInKernel(self)
        self.exiter = ZMQExitAutocall(self)

    def init_environment(self) -> None:
        # As ipykernel: colours although stdout is no terminal, and no pagers.
        os.environ.update(TERM="xterm-color", CLICOLOR="1", FORCE_COLOR="1", CLICOLOR_FORCE="1")
        os.environ.update(PAGER="cat", GIT_PAGER="cat")

    def init_hooks(self) -> None:
        from IPython.core import page

        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(self._page), 99)

    def _page(self, text: str | dict[str, Any], start: int = 0, *_: Any, **__: Any) -> None:
        """`x?` and %page. Without somebody who waits there is no pager: it is an output."""
        from IPython.core import page

        run = self._cell
        if run is None or not run.waited:
            page.display_page(text, start)
            return
        data = text if isinstance(text, dict) else {"text/plain": text}
        self.payload_manager.write_payload({"source": "page", "data": data, "start": max(0, start)})

    def set_next_input(self, text: str, replace: bool = False) -> None:
        self.payload_manager.write_payload({"source": "set_next_input", "text": text, "replace": replace})

    def init_virtualenv(self) -> None:
        pass  # as ipykernel: sys.path is the kernel's

    def enable_gui(self, gui: str | None = None) -> None:
        if gui not in (None, "inline"):
            from IPython.core.error import UsageError

            raise UsageError(f"A background cell has no event loop for {gui!r}; use %matplotlib inline.")

    def ask_exit(self) -> NoReturn:
        raise SystemExit

    # -- running code

    async def run_code(self, code_obj: Any, result: Any = None, *, async_: bool = False) -> bool:
        run = self._cell
        if run is None:  # a thread that outlived its task
            return bool(await super().run_code(code_obj, result, async_=async_))
        if run.depth == 0 and run.shown is not None and isinstance(run.shown[0], KeyboardInterrupt):
            raise run.shown[0]  # it hit a callback of `pre_run_cell`, and IPython went on
        run.depth += 1
        if run.depth == 1:
            run.result, run.value, run.has_result = result, None, False
        try:
            return bool(await super().run_code(code_obj, result, async_=async_))
        finally:
            run.depth -= 1
            if run.exit_filter is not None:
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(run.exit_filter)  # type: ignore[attr-defined]
                run.exit_filter = None

    # The frame of each override lies between the user's frame and IPython's, hence the depths + 1.

    def run_line_magic(self, magic_name: str, line: str, _stack_depth: int = 1) -> Any:
        with _Magic(self._cell):
            return super().run_line_magic(magic_name, line, _stack_depth + 1)

    def run_cell_magic(self, magic_name: str, line: str, cell: str) -> Any:
        magic = self.find_cell_magic(magic_name)
        is_script = getattr(magic, "__module__", "") == "IPython.core.magics.script"
        with _Magic(self._cell), _Uninterrupted(self._cell if is_script else None):
            return super().run_cell_magic(magic_name, line, cell)

    def system_piped(self, cmd: str) -> None:
        from IPython.utils.process import system

        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        expanded = self.var_expand(cmd, depth=1)
        with _Uninterrupted(self._cell):
            code = system(expanded)
        self.user_ns["_exit_code"] = code
        if code and getattr(self, "system_raise_on_error", False):
            from subprocess import CalledProcessError

            raise CalledProcessError(code, cmd)

    system = system_piped

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        with _Uninterrupted(self._cell):
            return super().getoutput(cmd, split, depth + 1)

    def debugger(self, force: bool = False) -> None:
        run = self._cell
        if not (force or self.call_pdb):
            return
        if run is not None and run.stdin is not None:
            if self._showing and run.waited and run.shown is not None:  # %pdb on: the error stands above the prompt
                run.emit("error", _error_content(*run.shown))
                run.told = run.shown[0]
            super().debugger(force)
        elif self._showing:  # %pdb on: the error itself must still be told
            print("%pdb needs somebody who answers: run the cell with %%remote --wait.", file=sys.stderr)
        else:
            _refuse_stdin("%debug")

    # -- showing errors

    _showing = False

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        run = self._cell
        if exc_tuple is None and run is not None and run.cancelled:
            exc_tuple = _interrupt_for_cancelled(run)
        self._showing = True
        try:
            error = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]
            if isinstance(error, KeyboardInterrupt) and run is not None and not run.show_interrupt:
                self._get_exc_info(exc_tuple)
                self._showtraceback(type(error), error, ["KeyboardInterrupt"])
            elif error is not None and not exception_only and _has_group(error):
                self._showtraceback(type(error), error, self._group_lines(exc_tuple))
            else:
                if exception_only and run is not None and run.waited and run.depth == 1:
                    # IPython will say how to exit from a terminal. Whoever raises SystemExit at home has it said there.
                    warnings.filterwarnings("ignore", "To exit: use ")
                    run.exit_filter = warnings.filters[0]
                # Offset 0: `_get_exc_info` has taken away what IPython wants to skip.
                super().showtraceback(exc_tuple, filename, 0, exception_only, running_compiled_code)
        finally:
            self._showing = False

    def _get_exc_info(self, exc_tuple: Any = None) -> Any:
        etype, value, _ = super()._get_exc_info(exc_tuple)
        tb = sys.last_traceback
        for each in _chain(value):
            each.__traceback__ = _shown_part(each.__traceback__)
        sys.last_traceback = _shown_part(tb)
        return etype, value, sys.last_traceback

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        # IPython 9 formats each error again for a history that is not kept, and fails if str(error) does.
        return _error_content(exception, [])

    def _group_lines(self, exc_tuple: Any) -> list[str]:
        """IPython cannot format exception groups, and prints them to stderr with its own frames instead."""
        run = self._cell
        exactly = traceback.format_exception(*(exc_tuple or sys.exc_info()))  # now: `_get_exc_info` takes frames away
        etype, value, tb = self._get_exc_info(exc_tuple)
        if run is not None and run.waited:
            return "".join(exactly).splitlines()
        text = "".join(traceback.format_exception(etype, value, tb))
        for name, number in self.compile._filename_map.items():
            text = text.replace(f'File "{name}"', f"Cell In[{number}]")
        return text.splitlines()

    def show_usage_error(self, exc: BaseException) -> None:
        run = self._cell
        if run is not None and run.waited and run.phase == "code" and _ends_the_cell(run, exc):
            run.shown = (exc, [])  # whoever raises it has it printed
        else:
            super().show_usage_error(exc)

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        _flush()
        run = self._cell
        lines = [stb] if isinstance(stb, str) else list(stb)
        self._last_traceback = lines
        if run is None:
            return
        if self.displayhook._content is not None:
            run.display_failed = True
        for first_line in self.compile.first_lines():
            lines[:] = [line.replace("#" + first_line, first_line) for line in lines]
        if run.phase == "code" and _ends_the_cell(run, evalue):
            run.shown = (evalue, lines)
        elif isinstance(evalue, KeyboardInterrupt) and (run.magics or run.phase == "after"):
            run.swallowed, run.shown = evalue, (evalue, lines)
        else:
            run.emit("error", _error_content(evalue, lines))


def _ends_the_cell(run: _Run, error: BaseException) -> bool:
    """Whether an error that is shown now is the cell's own; else the code goes on behind it."""
    if run.depth == 0:  # it cannot be compiled, or IPython failed; `_outcome_of` looks again
        return True
    return run.depth == 1 and run.result is not None and run.result.error_in_exec is error


def _is_told(run: _Run, error: BaseException) -> bool:
    """Whether nothing is left to be shown of the error that has ended the cell: a handler of `set_custom_exc` has taken
    it, a debugger was left by `q`, or it was shown before one was opened."""
    is_shown = run.shown is not None and run.shown[0] is error
    return run.told is error or not (is_shown or isinstance(error, KeyboardInterrupt))


def _interrupt_for_cancelled(run: _Run) -> Any:
    """The CancelledError that our own cancel caused, as the KeyboardInterrupt it stands for."""
    from asyncio import CancelledError

    error = sys.exc_info()[1]
    if not isinstance(error, CancelledError):
        return None
    interrupt = KeyboardInterrupt()
    interrupt.__traceback__ = error.__traceback__
    if run.result is not None and run.result.error_in_exec is error:
        run.result.error_in_exec = interrupt
    return KeyboardInterrupt, interrupt, error.__traceback__


class _CompilerPart(_IPythonPart):  # type: ignore[misc]  # IPython is untyped
    """Names cells, and keeps what tracebacks and inspect know of them: the latest, in linecache.

    Invariant: the keys of `_filename_map`, IPython's table of cell numbers, are in the order in which they came.
    """

    ip: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._first_lines: dict[str, str] = {}  # of cells whose text begins with a comment that is none in the notebook

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        run: _Run | None = self.ip._cell if self.ip is not None else None
        is_cell = run is not None and run.depth == 0 and raw_code is run.source  # else one that runs within it
        if run is not None and is_cell and run.file_name:
            name = run.file_name
        else:
            name = str(super().get_code_name(raw_code, transformed_code, number))
        self._filename_map.pop(name, None)
        if run is not None and is_cell and run.first_line:
            self._first_lines[name] = run.first_line
        return name

    def learn(self, name: str, number: int, text: str) -> None:
        first_line = text.partition("\n")[0]
        if first_line.startswith("%%"):  # libraries parse this text; tracebacks will show it without the #
            self._first_lines[name] = first_line
            text = "#" + text
        lines = [line + "\n" for line in text.splitlines()]
        linecache.cache[name] = (len(text), None, lines, name)
        self._filename_map.pop(name, None)
        self._filename_map[name] = number

    def first_lines(self) -> set[str]:
        return set(self._first_lines.values())

    def forget_sources(self) -> None:
        """Bound what tracebacks know of old cells."""
        gone = list(self._filename_map)[:-_KEPT_SOURCES]
        for name in gone:
            linecache.cache.pop(name, None)
            self._filename_map.pop(name, None)
            self._first_lines.pop(name, None)
        stack_data = sys.modules.get("stack_data")
        if gone and stack_data is not None:  # it keeps a syntax tree for each cell that failed
            for cache in ("__source_cache_with_lines", "__executing_cache"):
                stack_data.Source._class_local(cache, {}).clear()


class _HookPart(_IPythonPart):  # type: ignore[misc]  # IPython is untyped
    """sys.displayhook while a cell runs: the last expression becomes an `execute_result`."""

    _content: dict[str, Any] | None = None

    def __call__(self, result: object = None) -> None:
        run: _Run | None = self.shell._cell
        if run is not None and run.depth == 1:
            run.value = result
            if run.silent_result and result is not None:
                self.check_for_underscore()
                self.update_user_ns(result)
                self.fill_exec_result(result)
                return
        super().__call__(result)

    def update_user_ns(self, result: object) -> None:
        super().update_user_ns(result)
        run: _Run | None = self.shell._cell
        if run is not None and run.depth == 1:
            run.has_result = True

    def start_displayhook(self) -> None:
        self._content = {"data": {}, "metadata": {}}

    def write_output_prompt(self) -> None:
        if self._content is not None:
            self._content["execution_count"] = self.prompt_count

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        if self._content is not None:
            self._content.update(data=_jsonable(format_dict), metadata=_jsonable(md_dict or {}))

    def finish_displayhook(self) -> None:
        _flush()
        run: _Run | None = self.shell._cell
        content, self._content = self._content, None
        if run is not None and content is not None and content["data"]:
            run.emit("execute_result", content)


class _PublisherPart(_IPythonPart):  # type: ignore[misc]  # IPython is untyped
    """display(), in any thread of the cell."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *_: Any,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **__: Any,
    ) -> None:
        self._validate_data(data, metadata)
        content = {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        self._emit("update_display_data" if update else "display_data", _jsonable(content))

    def clear_output(self, wait: bool = False) -> None:
        self._emit("clear_output", {"wait": bool(wait)})

    def _emit(self, kind: str, content: dict[str, Any]) -> None:
        _flush()
        run: _Run | None = self.shell._cell
        if run is not None:  # else a thread that outlived its task
            run.emit(kind, content)


class _StandInKernel:
    """`get_ipython().kernel`, for code that only asks whether there is one and what it is working on."""

    implementation = "ipython"
    eventloop = None
    shell_streams: tuple[Any, ...] = ()
    _parent_header: dict[str, Any] = {}

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def get_parent(self, channel: str | None = None) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"get_ipython().kernel.{name} is not available in a background cell, which runs in a worker "
            "process without a Jupyter kernel; run the cell without %%remote."
        )


class _Store(MutableMapping[str, Any]):
    """`get_ipython().db`: the profile's database, opened when %store or %bookmark ask for it.

    %cd writes its directories here each time; those stay in memory, so that a cell writes to the home
    directory only if it says so.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._directories: list[str] = []
        self._opened: Any = None

    @property
    def _files(self) -> Any:
        if self._opened is None:
            try:
                from IPython.external.pickleshare import PickleShareDB
            except ImportError:
                from pickleshare import PickleShareDB  # type: ignore[import-not-found,no-redef,unused-ignore]
            self._opened = PickleShareDB(self._root)
        return self._opened

    def __getitem__(self, key: str) -> Any:
        return self._directories if key == "dhist" else self._files[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "dhist":
            self._directories = value
        else:
            self._files[key] = value

    def __delitem__(self, key: str) -> None:
        del self._files[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def keys(self, *pattern: str) -> Any:  # PickleShareDB takes a glob here
        return self._files.keys(*pattern)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._files, name)


# ----------------------------------------------------------------------------------------------------------
# Interrupts


class _SigintGate:
    """The SIGINT handler while a cell runs: the one found before decides whether to raise, this one where.

    An interrupt is dropped once the cell is over: its outcome came first.
    """

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._behind: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            behind = signal.getsignal(signal.SIGINT)
            if callable(behind):
                self._behind = behind
                signal.signal(signal.SIGINT, self)

    def __exit__(self, *exc_info: object) -> None:
        if self._behind is not None:
            signal.signal(signal.SIGINT, self._behind)  # also if the cell has set another

    def __call__(self, signum: int, frame: types.FrameType | None) -> None:
        run = self._run
        try:
            self._behind(signum, frame)
        except KeyboardInterrupt:
            if run.phase == "over":
                return
            run.interrupts += 1
            if run.phase == "starting":
                return  # `run_cell` raises it when the phase is "code"
            if run.main_task is not None and _is_only_loop(frame):
                # Raised here, it could take a handle out of the loop that nobody would run any more. As
                # asyncio.run: cancel the main task, and wake the loop if it is in select().
                run.cancelled = True
                run.main_task.cancel()
                run.loop.call_soon_threadsafe(_nothing)
                return
            raise


def _is_only_loop(frame: types.FrameType | None) -> bool:
    """Whether only an event loop's own code runs, from our runner to `frame`: no step of the user's code."""
    while frame is not None and frame.f_code is not _LoopRunner._drive.__code__:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LOOP_MODULES:
            return False
        frame = frame.f_back
    return True


class _Uninterrupted:
    """Around calls that take an interrupt for themselves, to end their process, and go on: raise it after.

    Only for calls that run no code of the user, which may catch it and win.
    """

    def __init__(self, run: _Run | None) -> None:
        self._run = run
        self._before = run.interrupts if run is not None else 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, etype: type[BaseException] | None, *_: object) -> None:
        came = self._run is not None and self._run.interrupts > self._before
        if came and not (etype is not None and issubclass(etype, KeyboardInterrupt)):
            raise KeyboardInterrupt from None


class _Magic:
    """Around a magic: an interrupt that the magic only *showed* (%run, %%time) is raised when it returns."""

    def __init__(self, run: _Run | None) -> None:
        self._run = run

    def __enter__(self) -> None:
        if self._run is not None:
            self._run.magics += 1
            self._run.swallowed = None

    def __exit__(self, etype: type[BaseException] | None, *_: object) -> None:
        if self._run is None:
            return
        self._run.magics -= 1
        swallowed, self._run.swallowed = self._run.swallowed, None
        if etype is None and swallowed is not None:
            raise swallowed


class _LoopRunner:
    """IPython's `loop_runner`: runs an async cell on an event loop of its own, in this thread.

    As asyncio.run, except: the interrupt comes through `_SigintGate`, and threads of `asyncio.to_thread` that
    still run are not waited for (a cancelled cell would wait for the very thing that was cancelled).
    """

    def __init__(self) -> None:
        self.ip: Any = None

    def __str__(self) -> str:
        return "asyncio"  # %autoawait prints it

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if asyncio._get_running_loop() is not None:  # get_ipython().run_cell in an async cell
            raise RuntimeError("This event loop is already running")
        logger = logging.getLogger("asyncio")
        disabled, logger.disabled = logger.disabled, True  # a kernel has made its loop, and said so, long ago
        try:
            loop = asyncio.new_event_loop()
        finally:
            logger.disabled = disabled
        threads: list[threading.Thread] = []
        loop.set_default_executor(
            ThreadPoolExecutor(
                thread_name_prefix="asyncio", initializer=lambda: threads.append(threading.current_thread())
            )
        )
        try:
            asyncio.set_event_loop(loop)
            if self.ip._cell.nested_loops:
                importlib.import_module(self.ip._cell.nested_loops).apply(loop)
            return self._drive(loop, loop.create_task(coroutine))
        finally:
            try:
                _cancel_all_tasks(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                loop.close()
                _join(threads)

    def _drive(self, loop: Any, main: Any) -> Any:
        from asyncio import CancelledError

        run: _Run = self.ip._cell
        run.loop, run.main_task = loop, main
        try:
            while True:
                try:
                    return loop.run_until_complete(main)
                except KeyboardInterrupt as interrupt:
                    # From a step of the user's code: of the main task, then it is done, or of another.
                    interrupt.__traceback__ = _shown_part(interrupt.__traceback__, "asyncio.")
                    if main.done():
                        raise
                    run.cancelled = True
                    main.cancel()
        except CancelledError:
            if run.cancelled:  # before its first step; later ones are caught by IPython within
                raise KeyboardInterrupt from None
            raise
        finally:
            run.main_task = None


def _cancel_all_tasks(loop: Any) -> None:
    """Cancel what the cell has left, and wait for it. An interrupt ends the waiting."""
    import asyncio

    tasks = asyncio.all_tasks(loop)
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            message = "unhandled exception in a task that was cancelled at the end of the cell"
            loop.call_exception_handler({"message": message, "exception": task.exception(), "task": task})


def _run_without_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run IPython's coroutine for a cell that awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("The cell awaits something, but %autoawait is off.")


def _failed_result(error: BaseException) -> Any:
    from IPython.core.interactiveshell import ExecutionResult

    result = ExecutionResult(None)
    result.error_in_exec = error
    return result


def _nothing() -> None:
    pass


def _join(threads: Iterable[threading.Thread]) -> None:
    end = time.monotonic() + _THREAD_GRACE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


# ----------------------------------------------------------------------------------------------------------
# Lines, tracebacks and messages


def _lines_before(source: str, first_line: str) -> str:
    """What to put before the transformed source, so that its lines are numbered as in the notebook."""
    blank = 0  # IPython takes leading blank lines away
    for line in source.splitlines():
        if line.strip():
            break
        blank += 1
    return (f"#{first_line}\n" if first_line else "") + "\n" * blank


def _shown_part(tb: types.TracebackType | None, leading: str = "IPython.core.") -> types.TracebackType | None:
    """`tb` without the frames that lead into the cell, and without ours (signal handlers, wrappers)."""
    kept: list[types.TracebackType] = []
    while tb is not None:
        module = tb.tb_frame.f_globals.get("__name__", "")
        leads_in = not kept and module.startswith(leading)
        if not leads_in and not module.startswith(_HERE):
            kept.append(tb)
        tb = tb.tb_next
    shown: types.TracebackType | None = None
    for each in reversed(kept):
        shown = types.TracebackType(shown, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return shown


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all its causes and contexts, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def _has_group(error: BaseException) -> bool:
    # By name: Python 3.10 has groups only as a backport.
    return any(base.__name__ == "BaseExceptionGroup" for each in _chain(error) for base in type(each).__mro__)


def _error_content(error: BaseException, lines: list[str]) -> dict[str, Any]:
    return {"ename": type(error).__name__, "evalue": _text(error), "traceback": lines}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


def _jsonable(value: Any) -> Any:
    """A copy that json can write, by the rules of Jupyter's messages: bytes as base64, dates as ISO text."""
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else repr(number)  # JSON has no nan
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode("ascii")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Iterable):
        return [_jsonable(each) for each in (value.tolist() if hasattr(value, "tolist") else value)]
    raise TypeError(f"{value!r} cannot be displayed: it cannot be written as JSON.")


# ----------------------------------------------------------------------------------------------------------
# Around a cell: what is replaced for it, and what is forgotten after it

_REPLACEABLE = ("stdin", "stdout", "stderr", "displayhook", "excepthook", "breakpointhook")


def _replaceable_state() -> list[tuple[Any, str, Any]]:
    import getpass

    state: list[tuple[Any, str, Any]] = [(sys, name, getattr(sys, name)) for name in _REPLACEABLE]
    return [*state, (builtins, "input", builtins.input), (getpass, "getpass", getpass.getpass)]


def _restore_state(state: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in state:
        setattr(owner, name, value)


def _take_stdin(ip: Any, stdin: Stdin | None) -> None:
    import getpass

    def ask(what: str, prompt: object, is_password: bool) -> str:
        if stdin is None:
            _refuse_stdin(what)
        _flush()
        return stdin(str(prompt), is_password)

    builtins.input = lambda prompt="", /: ask("input()", prompt, False)
    getpass.getpass = lambda prompt="Password: ", stream=None, **_: ask("getpass()", prompt, True)
    if stdin is None:
        sys.breakpointhook = lambda *_, **__: _refuse_stdin("breakpoint()")


def _refuse_stdin(what: str) -> NoReturn:
    from IPython.core.error import StdinNotImplementedError

    raise StdinNotImplementedError(
        f"{what} needs somebody who answers: run the cell with %%remote --wait"
        + (", or pass the value in." if what in ("input()", "getpass()") else ".")
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # the cell has replaced or closed it


def _join_matplotlib(ip: Any) -> None:
    """Show figures at the end of cells also if matplotlib was imported before there was a shell."""
    inline = sys.modules.get("matplotlib_inline.backend_inline")
    if inline is not None and inline.flush_figures not in ip.events.callbacks["post_execute"]:
        inline._enable_matplotlib_integration()  # does nothing with another backend


def _close_figures() -> None:
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is not None:
        helpers.Gcf.destroy_all()
    inline = sys.modules.get("matplotlib_inline.backend_inline")
    if inline is not None:
        inline.show._to_draw, inline.show._draw_called = [], False


def _stop_script_loop(ip: Any, always: bool = False) -> None:
    """End the thread that %%bash and its like leave behind, unless a process of theirs (--bg) needs it."""
    scripts: Any = dict.get(ip.magics_manager.registry, "ScriptMagics")  # IPython 9's own [] would import it
    loop = getattr(scripts, "event_loop", None)
    if loop is None or (not always and any(process.returncode is None for process in scripts.bg_processes)):
        return
    if hasattr(scripts, "stop_event_loop"):
        scripts.stop_event_loop()
        return
    scripts.event_loop = None  # before IPython 9.15 nobody ever stops it
    owners = [each for each in threading.enumerate() if getattr(each, "_target", None) == loop.run_forever]
    loop.call_soon_threadsafe(loop.stop)
    for thread in owners:
        thread.join()
    loop.close()


def _forget_history(ip: Any) -> None:
    history, hook = ip.history_manager, ip.displayhook
    for kept in ("output_hist", "output_hist_reprs", "db_input_cache", "db_output_cache"):
        getattr(history, kept).clear()
    for kept in ("outputs", "exceptions"):  # came with IPython 9
        getattr(history, kept, {}).clear()
    history.input_hist_parsed[:], history.input_hist_raw[:] = [""], [""]
    history._i00 = history._i = history._ii = history._iii = ""
    hook._, hook.__, hook.___ = "", "", ""
    hook.exec_result = None
    hook._content = None


def _forget_errors(ip: Any) -> None:
    from IPython.core.interactiveshell import ExecutionResult

    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    ip.last_execution_result, ip.last_execution_succeeded = ExecutionResult(None), True  # %xdel wants one
    ip._last_traceback = None
    ip.InteractiveTB.tb = ip.InteractiveTB.pdb = None
    ip.InteractiveTB.set_mode(ip.xmode)
    ip.SyntaxTB.last_syntax_error = None
    ip.call_pdb = ip.pdb
    ip.set_custom_exc((), None)


def _forget_registrations(ip: Any) -> None:
    """Take out of IPython's tables what was defined in the cell. What libraries registered stays."""
    transformers = ip.input_transformer_manager
    lists = [ip.ast_transformers, ip.input_transformers_post, ip.configurables]
    lists += [transformers.cleanup_transforms, transformers.line_transforms, transformers.token_transformers]
    lists += ip.events.callbacks.values()
    for each in lists:
        each[:] = [entry for entry in each if not _is_from_cell(entry)]
    magics = ip.magics_manager
    tables = [*magics.magics.values(), magics.registry, vars(magics.user_magics)]
    for formatter in ip.display_formatter.formatters.values():
        tables += [formatter.type_printers, formatter.singleton_printers, formatter.deferred_printers]
    for table in tables:
        for key, value in list(table.items()):
            if _is_from_cell(key) or _is_from_cell(value):
                del table[key]


def _is_from_cell(thing: Any) -> bool:
    """Whether it was defined in a cell, so in `__main__`: a function, method, partial, class or instance."""
    if isinstance(thing, tuple):  # (module, name) of a type that was not imported yet
        return "__main__" in thing
    if str(type(thing).__module__).startswith("IPython."):
        return False  # and reading an attribute of IPython 9's lazy magics would import them
    related = (thing, type(thing), getattr(thing, "func", None), type(getattr(thing, "__self__", None)))
    return any(getattr(each, "__module__", None) == "__main__" for each in related)


def _forget_sources(ip: Any) -> None:
    ip.compile.forget_sources()


def _forget_event_loop() -> None:
    """A loop that the cell has set keeps its tasks alive; and one that was set to None is not made again."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return
    if sys.version_info >= (3, 14):
        asyncio.set_event_loop(None)
    else:
        asyncio.set_event_loop_policy(None)


def _restore_builtins(before: dict[str, Any]) -> None:
    """Put back what the cell replaced, take away what it added; functions and classes of libraries stay."""
    now = vars(builtins)
    for name, value in list(now.items()):
        if name not in before and (not isinstance(value, _LIBRARY_THINGS) or _is_from_cell(value)):
            del now[name]
    for name, value in before.items():
        if now.get(name) is not value:
            now[name] = value


_LIBRARY_THINGS = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def _is_plain(value: object) -> bool:
    """Whether a configurable trait of the shell can be put back by assigning this value."""
    return isinstance(value, str | int | float | _LoopRunner)
