"""A cell in place: in the kernel's own shell, with a namespace of its own. For `init(local_mode=True)`.

breakpoint(), %debug, input(), an IDE's breakpoints and the stop button work as in a plain cell, and what the cell
writes and shows appears as of one. Otherwise it is a %%remote cell: it sees the names that were taken along, as copies,
and nothing that it does changes the notebook's.

    launch_in_place   the cell as a task: its refs, and how it ended
    run_in_place      the cell alone

Main thread only.
"""

from __future__ import annotations

import ast
import inspect
import signal
import sys
import threading
import traceback
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_tasks.inplace import InPlaceClient, run_coroutine, values_for_refs
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.wire import identity, serialize

__all__ = ["Outcome", "launch_in_place", "run_in_place"]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How a cell ended.

    Attributes:
        value: what the last expression gave, also if a trailing `;` kept it from being shown.
        error: what the cell raised, KeyboardInterrupt and SystemExit included. Was not shown. Its `__traceback__`
            begins in the cell.
        traceback: the lines that IPython would show for it.
        namespace: the cell's names with their values, without IPython's own.
        globals: the dict that it ran in, which its functions go on reading.
    """

    value: object
    error: BaseException | None
    traceback: list[str]
    namespace: dict[str, Any]
    globals: dict[str, Any]


def launch_in_place(
    ip: Any,
    client: InPlaceClient,
    source: str,
    names: Mapping[str, Any],
    first_line: str,
    execution_count: int,
    *,
    label: str,
    outs: Sequence[str] = (),
    keeps_value: bool = True,
    refs_only: Collection[str] = (),
    at_home: Collection[str] | None = None,
    group: int = 0,
) -> tuple[list[ObjectRef], Outcome]:
    """Runs the cell as a task. Returns its ref and one for each of `outs`, all final, and how it ended.

    Args:
        source, names, first_line, execution_count, refs_only, at_home: see `run_in_place`.
        label: the task's name.
        outs: names that are brought home.
        keeps_value: the cell's ref gets the value of the last expression; otherwise None.
        group: of which it is a member.

    Raises:
        UnserializableError: a name cannot be taken along. Nothing has run.
    """
    packed = _Packed(ip, names, refs_only)
    outcome: Outcome | None = None

    def call() -> tuple[list[Any], dict[str, Any]]:
        nonlocal outcome
        outcome = _run(ip, source, packed, first_line, execution_count, at_home)
        if outcome.error is not None:
            raise outcome.error
        values = [outcome.value if keeps_value else None]
        for name in outs:
            missing = NameError(f"the cell {label!r} did not assign {name!r}")
            values.append(outcome.namespace.get(name, missing))
        return values, outcome.globals

    refs = client.run_cell(label, call, 1 + len(outs), needs=packed.refs.values(), group=group)
    if outcome is None:  # what it needs has failed, or its group was cancelled
        try:
            client.value(refs[0])
        except BaseException as error:
            lines = error._render_traceback_() if hasattr(error, "_render_traceback_") else []
            outcome = Outcome(None, error, lines or [f"{type(error).__name__}: {error}"], {}, {})
    assert outcome is not None
    return refs, outcome


def run_in_place(
    ip: Any,
    source: str,
    names: Mapping[str, Any],
    first_line: str,
    execution_count: int,
    *,
    refs_only: Collection[str] = (),
    at_home: Collection[str] | None = None,
) -> Outcome:
    """Runs a cell to its end. The kernel's namespace, `__main__`, `_` and Out are afterwards what they were.

    Args:
        source: the cell without its first line.
        names: what it reads. Copied by one pickle, as for a worker; a ref is replaced by its value.
        first_line: the line with %%remote, so that lines count as in the notebook.
        execution_count: the N of its In[N].
        refs_only: names whose refs stay refs.
        at_home: the names that it changes in place, for `--wait -o '*'`: then it runs as a plain cell, in the
            notebook's namespace, and only refs are replaced, for as long as it runs (for good if it changes their
            values).

    Raises:
        UnserializableError: a name cannot be taken along. Nothing has run.

    A ref's error, if its task has failed, is the cell's.
    """
    return _run(ip, source, _Packed(ip, names, refs_only), first_line, execution_count, at_home)


class _Packed:
    """The names on their way into the cell: pickled, and not loaded yet."""

    def __init__(self, ip: Any, names: Mapping[str, Any], refs_only: Collection[str]) -> None:
        self.refs = {n: v for n, v in names.items() if isinstance(v, ObjectRef) and n not in refs_only}
        values = {name: value for name, value in names.items() if name not in self.refs}
        views = identity.Views(values.values())
        inside: list[ObjectRef] = []

        def note(value: object) -> Any:
            if type(value) is ObjectRef:
                inside.append(value)
            return views(value)

        self._data, buffers = serialize.dumps(values, namespace=ip.user_ns, root=lambda: values, reducers=note)
        if inside:  # they travel as their places, and arrive as themselves
            places = {id(ref): place for place, ref in enumerate(inside)}
            self._data, buffers = serialize.dumps(
                values, namespace=ip.user_ns, root=lambda: values, reducers=note, known=places
            )
        self._inside = dict(enumerate(inside))
        self._buffers = [bytearray(buffer.raw()) for buffer in buffers]

    def load_into(self, namespace: dict[str, Any]) -> None:
        """Adds the names, but not those of refs."""
        values = serialize.loads(self._data, self._buffers, namespace=namespace, originals=self._inside or None)
        namespace.update(values)

    def resolve_into(self, namespace: dict[str, Any]) -> dict[str, Any]:
        """Puts values in the place of refs; returns them."""
        resolved = {name: _value_of(ref, namespace) for name, ref in self.refs.items()}
        namespace.update(resolved)
        return resolved


def _value_of(ref: ObjectRef, namespace: dict[str, Any]) -> Any:
    if isinstance(ref._client, InPlaceClient):
        return ref._client.value(ref, namespace=namespace)
    return ref._client.value(ref)


def _run(
    ip: Any,
    source: str,
    packed: _Packed,
    first_line: str,
    execution_count: int,
    at_home: Collection[str] | None,
) -> Outcome:
    error: BaseException | None = None
    lines: list[str] = []
    shown = _Shown(ip, source)
    cell = _Cell(ip, source, first_line, execution_count)
    with _Gate() as gate:
        place = _OwnNamespace(ip, cell, packed) if at_home is None else _Home(ip, packed, at_home)
        try:
            try:
                with values_for_refs(map(id, place.enter().values())), shown:
                    gate.open()
                    cell.run(place.namespace)
                    gate.close()
            except BaseException as raised:
                gate.close()
                error = raised.with_traceback(_cells_part(raised, place.namespace))
                lines = cell.lines_of(error)
        finally:
            gate.close()
            place.leave()
    return Outcome(shown.value if error is None else None, error, lines, place.names(), place.namespace)


class _Cell:
    """The cell's code: compiled so that breakpoints, tracebacks and line numbers are those of the notebook's cell."""

    def __init__(self, ip: Any, source: str, first_line: str, execution_count: int) -> None:
        self._ip = ip
        self.source = source
        self.number = execution_count
        self._first_line = first_line.splitlines()[0] if first_line.strip() else ""

    def run(self, namespace: dict[str, Any]) -> None:
        """Raises what the cell raises."""
        codes = self._compile()
        if any(_awaits(code) for code in codes):
            run_coroutine(_run_async(codes, namespace))
        else:
            _run_plain(codes, namespace)

    def _compile(self) -> list[types.CodeType]:
        ip = self._ip
        whole, before = self._whole()
        # IPython takes leading blank lines away; they count.
        before += "\n" * next((i for i, line in enumerate(self.source.splitlines()) if line.strip()), 0)
        text = before + ip.transform_cell(self.source)
        # An IDE finds the cell by a hash of its whole text.
        name = ip.compile.cache(text, self.number, raw_code=whole)
        tree = ip.transform_ast(ip.compile.ast_parse(text, filename=name))
        flags = getattr(ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0) if ip.autoawait else 0
        with ip.compile.extra_flags(flags):
            return [
                ip.compile(ast.Interactive([node]) if shows else ast.Module([node], []), name, _mode(shows))
                for node, shows in _statements(tree.body, ip.ast_node_interactivity)
            ]

    def _whole(self) -> tuple[str, str]:
        """The cell as it stands in the notebook, and what stands before `source` in it, as comments."""
        history = self._ip.history_manager
        raw = history.input_hist_raw[-1].rstrip() if history is not None and history.input_hist_raw else ""
        own = self.source.rstrip()
        if not own or not raw.endswith(own) or len(raw) == len(own):
            raw = f"{self._first_line}\n{self.source}" if self._first_line else self.source
            before = self._first_line + "\n" if self._first_line else ""
        else:
            raw, before = history.input_hist_raw[-1], raw[: -len(own)]
        return raw, "".join(f"#{line}" if line.strip() else line for line in before.splitlines(keepends=True))

    def lines_of(self, error: BaseException) -> list[str]:
        """What IPython would show for it."""
        ip, kind = self._ip, type(error)
        lines: list[str]
        try:
            if isinstance(error, SyntaxError):
                lines = ip.SyntaxTB.structured_traceback(kind, error, [])
            else:
                lines = ip.InteractiveTB.structured_traceback(kind, error, error.__traceback__, tb_offset=0)
        except Exception:  # its text cannot be made, say
            lines = [*traceback.format_tb(error.__traceback__), kind.__name__]
        return [line.replace("#" + self._first_line, self._first_line) if self._first_line else line for line in lines]


def _mode(shows: bool) -> str:
    return "single" if shows else "exec"


def _statements(body: list[Any], interactivity: str) -> list[tuple[Any, bool]]:
    """The statements, and whether each shows its value: by IPython's setting."""
    if interactivity == "last_expr_or_assign" and body:
        target = _assigned_last(body[-1])
        if target is not None:
            body = [*body, ast.fix_missing_locations(ast.Expr(ast.Name(target, ast.Load())))]
    shown = {"all": len(body), "none": 0, "last": 1}.get(interactivity)
    if shown is None:
        shown = 1 if body and isinstance(body[-1], ast.Expr) else 0
    return [(node, i >= len(body) - shown) for i, node in enumerate(body)]


def _assigned_last(node: Any) -> str | None:
    if isinstance(node, ast.Assign):
        target: Any = node.targets[0] if len(node.targets) == 1 else None
    else:
        target = getattr(node, "target", None) if isinstance(node, (ast.AugAssign, ast.AnnAssign)) else None
    return target.id if isinstance(target, ast.Name) else None


def _awaits(code: types.CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _run_plain(codes: list[types.CodeType], namespace: dict[str, Any]) -> None:
    __tracebackhide__ = "__ipython_bottom__"  # IPython's debugger ends its list of frames here
    for code in codes:
        exec(code, namespace)


async def _run_async(codes: list[types.CodeType], namespace: dict[str, Any]) -> None:
    __tracebackhide__ = "__ipython_bottom__"
    for code in codes:
        if _awaits(code):
            await eval(code, namespace)
        else:
            exec(code, namespace)


def _cells_part(error: BaseException, namespace: dict[str, Any]) -> types.TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is not namespace:
        trace = trace.tb_next
    return trace


# -- around the cell --------------------------------------------------------------------------------------------


class _Gate:
    """Lets the stop button through only while the cell's own code runs.

    Elsewhere it would leave the kernel with half a namespace. Pressed before, it is raised as soon as that code begins;
    after, the cell is over.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._behind: Any = None

    def open(self) -> None:
        """The handler that was there is there again, and not called by us: its traceback has none of our frames."""
        if self._behind is not None:
            signal.signal(signal.SIGINT, self._behind)
        if self._pressed:
            raise KeyboardInterrupt

    def close(self) -> None:
        if self._behind is not None:
            signal.signal(signal.SIGINT, self)

    def __enter__(self) -> _Gate:
        if threading.current_thread() is threading.main_thread():
            behind = signal.getsignal(signal.SIGINT)
            if callable(behind):
                self._behind = behind
                self.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self._behind is not None:
            signal.signal(signal.SIGINT, self._behind)

    def __call__(self, signum: int, frame: types.FrameType | None) -> None:
        self._pressed = True


class _Shown:
    """Takes what the last expression gives, and has IPython show it as a cell's."""

    def __init__(self, ip: Any, source: str) -> None:
        self.value: object = None
        self._hook = ip.displayhook
        self._quiet = self._hook.semicolon_at_end_of_expression(source)

    def __enter__(self) -> None:
        self._before = sys.displayhook
        sys.displayhook = self

    def __exit__(self, *_: object) -> None:
        sys.displayhook = self._before

    def __call__(self, value: object) -> None:
        self.value = value
        if not self._quiet:
            self._hook(value)


class _OwnNamespace:
    """A new `__main__` for the shell, and afterwards the old one, with all that IPython has noted in between undone."""

    def __init__(self, ip: Any, cell: _Cell, packed: _Packed) -> None:
        self._ip = ip
        self._cell = cell
        self._packed = packed
        hook = ip.displayhook
        self._before = (ip.user_module, ip.user_ns, ip.ns_table, sys.modules["__main__"], dict(ip.user_ns_hidden))
        self._values = (hook._, hook.__, hook.___, hook.exec_result)
        self._flags = ip.compile.flags
        self._own: dict[str, Any] = {}
        self._noted: dict[str, Any] = {}
        self._module = types.ModuleType("__main__", doc="The cell's namespace.")
        self.namespace: dict[str, Any] = self._module.__dict__

    def enter(self) -> dict[str, Any]:
        """Returns the values that took the place of refs."""
        ip, hook, module = self._ip, self._ip.displayhook, self._module
        ip.user_module, ip.user_ns = ip.prepare_user_module(user_module=module)
        ip.ns_table = {**ip.ns_table, "user_global": module.__dict__, "user_local": module.__dict__}
        sys.modules["__main__"] = module
        ip.init_user_ns()
        hook._, hook.__, hook.___ = "", "", ""
        inputs, outputs = [""] * self._cell.number + [self._cell.source], dict[int, Any]()
        histories = {"_oh": outputs, "Out": outputs, "_ih": inputs, "In": inputs}
        ip.user_ns_hidden.update(histories)
        ip.user_ns.update({**histories, "_": "", "__": "", "___": ""})
        ip.set_completer_frame(None)
        ip.ask_exit = _exit  # `exit` ends the cell, not the kernel
        self._own = dict(self.namespace)
        self._packed.load_into(self.namespace)
        return self._packed.resolve_into(self.namespace)

    def leave(self) -> None:
        """Whatever has happened in between."""
        ip, hook = self._ip, self._ip.displayhook
        self._noted = dict(ip.user_ns_hidden)  # `_12` and its like
        ip.user_module, ip.user_ns, ip.ns_table, sys.modules["__main__"], hidden = self._before
        ip.user_ns_hidden.clear()
        ip.user_ns_hidden.update(hidden)
        hook._, hook.__, hook.___, hook.exec_result = self._values
        ip.compile.flags = self._flags
        ip.set_completer_frame(None)
        vars(ip).pop("ask_exit", None)

    def names(self) -> dict[str, Any]:
        """Without those that stood there before the cell's, or that IPython has added."""
        known = (self._own, self._noted)
        return {
            name: value
            for name, value in self.namespace.items()
            if name not in _NOT_NAMES and not any(name in each and each[name] is value for each in known)
        }


class _Home:
    """The notebook's own namespace, with values in the place of refs."""

    def __init__(self, ip: Any, packed: _Packed, mutates: Collection[str]) -> None:
        self.namespace: dict[str, Any] = ip.user_ns
        self._packed = packed
        self._mutates = mutates
        self._values: dict[str, Any] = {}

    def enter(self) -> dict[str, Any]:
        """Returns the values that took the place of refs."""
        self._values = self._packed.resolve_into(self.namespace)
        return self._values

    def leave(self) -> None:
        """A ref that the cell has only read is a ref again."""
        for name, value in self._values.items():
            if name not in self._mutates and self.namespace.get(name) is value:
                self.namespace[name] = self._packed.refs[name]

    def names(self) -> dict[str, Any]:
        """They are at home already."""
        return {}


_NOT_NAMES = frozenset(
    {
        *vars(types.ModuleType("any")),
        *("__annotate__", "__annotations__", "__conditional_annotations__", "__warningregistry__", "__file__"),
    }
)


def _exit() -> None:
    raise SystemExit
