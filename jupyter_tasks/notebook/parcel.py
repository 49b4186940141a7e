"""What a cell takes along: the names it needs and what is around it, on their way into one pickle.

Everything here runs in the notebook's main thread, when a cell is launched.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import linecache
import sys
import types
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from jupyter_tasks import api, exceptions
from jupyter_tasks.client import Client
from jupyter_tasks.notebook import capture
from jupyter_tasks.notebook.errors import shown_as, stand_in
from jupyter_tasks.refs import Dependency, ObjectRef
from jupyter_tasks.show import show_bytes
from jupyter_tasks.wire import ambient, identity, serialize, shared
from jupyter_tasks.wire.frames import Kind

__all__ = ["CellOptions", "Packer", "cell_number"]

BIG = 1_000_000_000  # bytes; more than that taken along by one cell is said, with the names (SEMANTICS: 1 GB)


@dataclass(frozen=True, slots=True)
class CellOptions:
    """What stood behind %%remote."""

    name: str | None = None
    ins: list[str] | None = None
    only: list[str] | None = None
    refs: list[str] | None = None
    outs: list[str] | str | None = None
    replace: bool = False
    wait: bool = False
    quiet: bool = False
    timeout: float | None = None
    grace: float | None = None
    retries: int = 0
    cpus: float | None = None
    gpus: float | None = None
    memory: int | None = None
    group: str | None = None


def cell_number(ip: Any) -> int:
    """The N of this cell's In[N]. (IPython 9 counts `execution_count` up before the cell runs, 8 after it.)"""
    return int(ip.displayhook.prompt_count)


class Packer:
    """One for each shell."""

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._client: Client | None = None
        self._base: ambient.State = {}  # what a worker of this session begins with
        self._said: set[str] = set()  # what could not be sent along with cells, and was said
        self._python: dict[str, str] = {}  # of the launch in hand: texts in IPython's syntax, as Python
        self._unasked: set[str] = set()  # names of this cell that nobody has asked for: left out without a word

    def connected(self, client: Client) -> None:
        """A session has begun."""
        self._client = client
        self._base = ambient.base(self._ip)

    def analyse(self, cell: str, first_line: str) -> capture.CellNames:
        """What the cell does with names. Raises what a plain cell would, if it is no valid Python."""
        self._python.clear()
        try:
            return capture.analyse(cell, self._transformed)
        except SyntaxError as found:
            error = self._as_the_compiler_says(cell, first_line) or found
            lines = self._ip.SyntaxTB.structured_traceback(type(error), error, [])
            raise shown_as(stand_in(type(error).__name__, str(error)), lines) from None

    def _transformed(self, text: str) -> str:
        """IPython's syntax as Python. Asked for once in a launch: transformers of the user's may do more than that."""
        if text not in self._python:
            self._python[text] = self._ip.transform_cell(text)
        return self._python[text]

    def _file_of(self, cell: str, first_line: str) -> str:
        """The name that the kernel's own compiler has for this cell's code. Also has it remember the source, so that
        tracebacks, warnings and inspect find the lines, whichever process they are drawn in."""
        text = f"{first_line}\n{_blank_lines(cell)}{self._transformed(cell)}"
        return str(self._ip.compile.cache(text, cell_number(self._ip), raw_code=f"{first_line}\n{cell}"))

    def _as_the_compiler_says(self, cell: str, first_line: str) -> SyntaxError | None:
        """The error of a plain cell with this text: its words, and lines that count as in the notebook."""
        compiler = self._ip.compile
        try:
            name = self._file_of(cell, first_line)
            text = f"#{first_line}\n{_blank_lines(cell)}{self._transformed(cell)}"
            with compiler.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
                tree = compiler.ast_parse(text, filename=name)
                for node in tree.body:  # each by itself, as IPython does: the first error is the one
                    compiler(ast.Module([node], []), name, "exec")
        except SyntaxError as error:
            error.__context__ = None  # that analysis has met it, too
            return error
        return None

    def captured(self, options: CellOptions, names: capture.CellNames) -> dict[str, Any]:
        """The names that the cell takes along, with their values as they are now.

        Raises:
            UsageError: one that an option lists is not there, or one after --refs holds no reference.
        """
        namespace = self._ip.user_ns
        for flag, listed in (("--in", options.ins), ("--only", options.only), ("--refs", options.refs)):
            missing = [name for name in listed or () if name not in namespace]
            if missing:
                raise UsageError(f"%%remote: there is no variable {missing[0]!r} to take along with {flag}.")
        for name in options.refs or ():
            if not isinstance(namespace[name], ObjectRef):
                raise UsageError(
                    f"%%remote: --refs keeps references, but {name!r} holds a {type(namespace[name]).__name__}; "
                    "leave it out, it is taken along as it is."
                )
        more = {*(options.ins or ()), *(options.refs or ())}
        if options.only is not None:
            return {name: namespace[name] for name in sorted({*options.only, *more})}
        taken = capture.collect(names.reads | more, namespace, getattr(self._ip, "user_ns_hidden", {}))
        return {**{name: namespace[name] for name in sorted(more)}, **taken}

    def pack(
        self,
        cell: str,
        first_line: str,
        options: CellOptions,
        names: capture.CellNames,
        taken: dict[str, Any],
        wire: dict[str, Any],
        memo: dict[int, Any] | None,
    ) -> shared.Payload:
        """The cell's text, names and surroundings in one pickle, so that shared objects stay shared.

        Args:
            taken: what `captured` gave; what else is needed is added.
            wire: the task's options; gets the refs that it waits for, and those that must live on.
            memo: see `serialize.dumps`.

        Raises:
            UsageError: a name cannot be sent; says which.
        """
        content: dict[str, Any] = {"source": cell, "mutates": sorted(names.mutates)}
        content["file"] = self._file_of(cell, first_line)
        if (nested := _nested_loops()) is not None:
            content["nested_loops"] = nested
        self._unasked = set()
        extra = self._add_ambient(content, taken, options, names)
        keep = names.refs_only.union(options.refs or ())
        return self._pickled(content, taken, extra, keep, wire, wire["name"], memo)

    def _add_ambient(
        self, content: dict[str, Any], taken: dict[str, Any], options: CellOptions, names: capture.CellNames
    ) -> set[str]:
        """What the cell finds around it: what has changed here since the session began, and names it might look at.

        Returns the names that this, and nothing else in the cell, needs; they are among those taken then.
        """
        moved = ambient.difference(self._base, ambient.take(self._ip))
        moved = ambient.without_other_magics(moved, content["source"])
        extra: set[str] = set()
        first, moved = ambient.those_first(moved)
        if first is not None:
            content["first"] = first
        if moved:
            content["ambient"] = moved
            if options.only is None:
                namespace = self._ip.user_ns
                needed = capture.names_behind(ambient.carried(moved), namespace)
                found = capture.collect(needed, namespace, self._ip.user_ns_hidden)
                extra = found.keys() - taken.keys()
                taken.update((name, found[name]) for name in extra)
        if options.wait and options.outs == "*":
            content["random"] = ambient.random_state()
            if names.may_see_all and options.only is None:
                seen = self._all_there_is() - taken.keys()
                taken.update((name, self._ip.user_ns[name]) for name in seen)
                extra |= seen
                self._unasked = seen
                content.setdefault("ambient", {})
        return extra

    def _all_there_is(self) -> set[str]:
        """The user's names but those whose values are not there yet, for the cell shall not wait for what it may not
        need."""
        namespace = self._ip.user_ns

        def is_there(value: Any) -> bool:
            return not isinstance(value, ObjectRef) or (value._client is self._client and value._kind == Kind.RESULT)

        everything = capture.all_names(namespace, self._ip.user_ns_hidden)
        return {name for name in everything if is_there(namespace[name])}

    def _pickled(
        self,
        content: dict[str, Any],
        taken: dict[str, Any],
        extra: set[str],
        keep: Set[str],
        wire: dict[str, Any],
        label: str,
        memo: dict[int, Any] | None,
    ) -> shared.Payload:
        """Source and names in one pickle, so that shared objects stay shared. Refs in `keep` stay refs."""
        client = self._client
        assert client is not None
        deps: list[int] = []
        pins: list[int] = []
        sent: dict[str, Any] = {}
        for name, value in taken.items():
            if isinstance(value, ObjectRef):
                if value._client.closed:
                    value = self.value_of_old(name, value)
                elif name not in keep:
                    id = self._adopted(name, value).id
                    deps.append(id)
                    value = Dependency(id)
                elif value._client is client:
                    client.leaves(value)
                    pins.append(value.id)
                else:
                    raise UsageError(
                        f"%%remote: {name!r} is a reference of another session, which means nothing in this cell. "
                        "Leave it out of --refs; jt.cancel and jt.wait work with it in the notebook."
                    )
            sent[name] = value
        if deps:
            wire["deps"] = deps
        if pins:
            wire["pins"] = pins
        content["names"] = sent
        content["sources"] = {}  # last: filled while functions are pickled

        def pickled() -> Any:
            reducers = _noting(
                client, pins, identity.Views(sent.values()), functools.partial(self._note_source, content)
            )
            return serialize.dumps(content, namespace=self._ip.user_ns, root=lambda: sent, reducers=reducers, memo=memo)

        try:
            try:
                data, buffers = pickled()
            except exceptions.UnserializableError:
                if "ambient" not in content:
                    raise
                content["ambient"] = ambient.leave_out(content["ambient"], self._goes)
                content["names"] = sent = {k: v for k, v in sent.items() if k not in extra or self._goes(v, k)}
                data, buffers = pickled()
        except exceptions.UnserializableError as error:
            raise UsageError(f"%%remote {label}: {error}") from None
        payload = shared.pack(data, buffers)
        if payload.size > BIG:
            self._warn_of_size(label, payload.size, sent)
        return payload

    def _note_source(self, content: dict[str, Any], function: types.FunctionType) -> None:
        """A function that a cell has made takes the cell's text along, which is in no file."""
        file = function.__code__.co_filename
        if file not in content["sources"] and (number := self._ip.compile._filename_map.get(file)) is not None:
            content["sources"][file] = [number, "".join(linecache.getlines(file))]

    def _goes(self, value: Any, name: str) -> bool:
        try:
            assert self._client is not None
            reducers = _noting(self._client, [], identity.Views([]), lambda _: None)
            serialize.dumps(value, namespace=self._ip.user_ns, root=name, reducers=reducers)
        except exceptions.UnserializableError as error:
            if name not in self._said | self._unasked:  # once is enough
                self._said.add(name)
                print(f"%%remote: {name} stays in the kernel: {error}", file=sys.stderr)
            return False
        return True

    def _warn_of_size(self, label: str, size: int, sent: dict[str, Any]) -> None:
        """Names what is so big. Pickles each name once more: that costs little beside what follows."""
        sizes: dict[str, int] = {}
        for name, value in sent.items():
            with contextlib.suppress(Exception):  # it went well a moment ago, as part of the whole
                data, buffers = serialize.dumps(value, namespace=self._ip.user_ns)
                sizes[name] = len(data) + sum(buffer.raw().nbytes for buffer in buffers)
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        which = ", ".join(f"{name} ({show_bytes(sizes[name])})" for name in biggest)
        print(
            f"%%remote {label} takes along {show_bytes(size)}: {which}. For several cells, send such a value once: "
            f"{biggest[0]} = jt.put({biggest[0]}); what the cell does not need, leave out with --only.",
            file=sys.stderr,
        )

    def _adopted(self, name: str, ref: ObjectRef) -> ObjectRef:
        """What the cell depends on for this name."""
        assert self._client is not None
        try:
            return self._client.adopted(ref)
        except exceptions.UnserializableError as error:
            if ref._client is self._client:
                raise
            raise UsageError(f"%%remote: {name!r} cannot be taken along: {error}") from None

    @staticmethod
    def value_of_old(name: str, ref: ObjectRef) -> Any:
        """A ref of a session that has ended: its value may be in the kernel still."""
        try:
            return ref._client.value(ref) if ref.is_final else api.get(ref, timeout=0)
        except exceptions.JupyterTasksError as error:
            raise UsageError(f"%%remote: {name!r} is a reference without a value: {error}") from None


def _nested_loops() -> str | None:
    """The package that has made event loops of this process nestable, as notebooks do that call asyncio.run."""
    asyncio = sys.modules.get("asyncio")
    marks = {"nest_asyncio2": "_nest_asyncio2", "nest_asyncio": "_nest_patched"}
    return next((package for package, mark in marks.items() if hasattr(asyncio, mark)), None)


def _blank_lines(cell: str) -> str:
    """Those that a cell begins with, and that IPython's transform drops."""
    return "\n" * next((i for i, line in enumerate(cell.splitlines()) if line.strip()), 0)


def _noting(
    client: Client, pins: list[int], views: identity.Views, note_source: Callable[[types.FunctionType], None]
) -> Any:
    def reduce(value: object) -> Any:
        if type(value) is ObjectRef:
            try:
                client.leaves(value)
            except exceptions.ObjectLostError as error:
                raise exceptions.UnserializableError(str(error)) from None
            pins.append(value.id)
            return NotImplemented
        if type(value) is types.FunctionType:
            note_source(value)
            return NotImplemented
        return views(value)

    return reduce
