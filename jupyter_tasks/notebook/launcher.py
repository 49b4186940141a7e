"""From a cell to a task and back: captures the names, submits, binds refs, shows the board or waits.

Everything here runs in the notebook's main thread, except the sinks, which the client's event thread calls.
"""

from __future__ import annotations

import _thread
import ast
import contextlib
import functools
import getpass
import importlib
import io
import keyword
import linecache
import queue
import re
import signal
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from IPython.core.error import StdinNotImplementedError, UsageError

from jupyter_tasks import api, exceptions
from jupyter_tasks.client import Client
from jupyter_tasks.notebook import capture
from jupyter_tasks.notebook.board import FINAL_STATES, Board, strip_ansi
from jupyter_tasks.notebook.feed import Feed
from jupyter_tasks.notebook.output import NO_OUTPUT, Place, Router, Screen
from jupyter_tasks.refs import Dependency, ObjectRef
from jupyter_tasks.show import show_bytes
from jupyter_tasks.wire import ambient, identity, serialize, shared
from jupyter_tasks.wire.frames import Kind, show_id

__all__ = ["CellOptions", "Launcher"]

_RESERVED = frozenset({"all"})  # `%tasks cancel all`
MOST_LINE = 200  # characters of an error in the headline
BIG = 1_000_000_000  # bytes; more than that taken along by one cell is said, with the names (SEMANTICS: 1 GB)
MOST_NOTED = 5  # names that one line of a message lists


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


@dataclass(slots=True)
class _Launched:
    """One cell on its way."""

    label: str
    name: str | None  # the NAME that the user gave
    ref: ObjectRef
    returns: list[ObjectRef]  # the ref, then what `-o` brings
    place: Place
    board: Board | None
    bound: dict[str, ObjectRef] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)  # what the bound names held before: values, or refs
    before: dict[str, _Launched] = field(default_factory=dict)  # the launch that had bound such a ref, if it was open
    sent: dict[int, Any] | None = None  # with `-o '*'`: the objects that come home as themselves, by place


class Launcher:
    """One for each shell."""

    def __init__(self, ip: Any, screen: Screen) -> None:
        self._ip = ip
        self._screen = screen
        self._router = Router(screen)
        self._feed = Feed(screen)
        self._client: Client | None = None
        self._open: dict[int, _Launched] = {}
        self._put_back: list[_Launched] = []  # ended without a value; their names get back what they held
        self._preloaded: set[str] = set()
        self._stays: set[str] = set()  # what could not be sent along with cells, and was said
        self._base: ambient.State = {}  # what a worker of this session begins with

    def start(self) -> None:
        """Joins the shell's events. Starts no process."""
        self._ip.events.register("pre_run_cell", self._before_cell)
        self._ip.events.register("post_run_cell", self._after_cell)
        api.on_start(self._connected)

    def stop(self) -> None:
        """Ends the session and leaves the shell."""
        api.shutdown()
        self._feed.stop()
        for name, hook in (("pre_run_cell", self._before_cell), ("post_run_cell", self._after_cell)):
            with contextlib.suppress(ValueError):
                self._ip.events.unregister(name, hook)

    def settle(self) -> None:
        """Everything that has ended is on the screen when this returns."""
        if self._client is not None and not self._client.closed:
            self._client.drain_events()
        self._feed.flush()
        self._screen.flush()

    def _connected(self, client: Client) -> None:
        self._router.reset()
        self._open.clear()
        self._preloaded.clear()
        self._base = ambient.base(self._ip)
        client.namespace = self._ip.user_ns
        client.listener = self._router.listen
        self._client = client
        self._router.cell_begins(client.last_id)

    def _before_cell(self, info: Any = None) -> None:
        if self._client is not None and not self._client.closed:
            self._router.cell_begins(self._client.last_id)
        self._restore_names()

    def _after_cell(self, result: Any = None) -> None:
        if self._feed.busy():
            self.settle()

    # -- launching --------------------------------------------------------------------------------------------

    def launch(self, cell: str, first_line: str, options: CellOptions) -> None:
        """Runs the cell in a worker. Returns at once, or with `wait` when it has ended.

        Raises:
            UsageError: something about the line or the names is wrong; one sentence, nothing was started.
            With `wait`: what the cell raised.
        """
        names = self._analyse(cell, first_line)
        outs = self._outs(options, names)
        self._check_name(options.name, outs)
        keep = names.refs_only | self._kept_refs(options)
        taken = self._captured(options, names)
        label = options.name or f"cell {self._number()}"
        client = self._started()
        try:
            api._check_demand({"num_cpus": options.cpus, "num_gpus": options.gpus}, client.settings["total"], label)
        except ValueError as error:
            raise UsageError(f"%%remote: {error}") from None
        if client.settings.get("local_mode"):
            self._run_in_place(client, cell, first_line, label, outs, options, taken, names, keep)
            return
        wire = self._wire_options(options, outs, label, first_line)
        sent: dict[int, Any] | None = {} if outs == "*" else None
        content: dict[str, Any] = {"source": cell, "mutates": sorted(names.mutates)}
        content["file"] = self._file_of(cell, first_line)
        if (nested := _nested_loops()) is not None:
            content["nested_loops"] = nested
        extra = self._add_ambient(content, taken, options, names)
        payload = self._pack(content, taken, extra, keep, wire, label, sent)
        self._warm(client)
        if options.replace:
            for launched in self._earlier_runs(options.name):
                client.cancel(launched.ref.id, reason="replaced by a new run")
        self._run(client, payload, wire, label, outs, options, sent)

    def _run_in_place(
        self,
        client: Client,
        cell: str,
        first_line: str,
        label: str,
        outs: list[str] | str,
        options: CellOptions,
        taken: dict[str, Any],
        names: capture.CellNames,
        keep: Set[str],
    ) -> None:
        """`init(local_mode=True)`: the cell runs here, and this returns when it is over."""
        from jupyter_tasks.inplace import InPlaceClient
        from jupyter_tasks.notebook.inplace import launch_in_place

        assert isinstance(client, InPlaceClient)
        star = outs == "*"
        for name, value in taken.items():
            if isinstance(value, ObjectRef) and value._client is not client:
                taken[name] = self._value_of_old(name, value)
        try:
            refs, outcome = launch_in_place(
                self._ip,
                client,
                cell,
                taken,
                first_line,
                self._number(),
                label=label,
                outs=[] if star else list(outs),
                keeps_value=bool(options.name),
                refs_only=keep,
                at_home=names.mutates if star else None,
            )
        except exceptions.UnserializableError as error:
            raise UsageError(f"%%remote {label}: {error}") from None
        launched = _Launched(label, options.name, refs[0], refs, self._screen.here(), None)
        self._bind(launched, outs, options)
        if outcome.error is not None:
            if launched.replaced:
                self._put_back.append(launched)
            raise _shown_as(outcome.error, outcome.traceback)

    def _earlier_runs(self, name: str | None, place: Place | None = None) -> list[_Launched]:
        """The open runs of the same NAME, or of the very same cell (front-ends tell a cell's id), oldest first."""
        cell_id = (place or self._screen.here()).cell_id
        return [
            launched
            for launched in self._open.values()
            if (name is not None and launched.name == name) or (cell_id and launched.place.cell_id == cell_id)
        ]

    def _number(self) -> int:
        """The N of this cell's In[N]. (IPython 9 counts `execution_count` up before the cell runs, 8 after it.)"""
        return int(self._ip.displayhook.prompt_count)

    def _analyse(self, cell: str, first_line: str) -> capture.CellNames:
        try:
            return capture.analyse(cell, self._ip.transform_cell)
        except SyntaxError as found:
            error = self._as_the_compiler_says(cell, first_line) or found
            lines = self._ip.SyntaxTB.structured_traceback(type(error), error, [])
            raise _shown_as(_stand_in(type(error).__name__, str(error)), lines) from None

    def _file_of(self, cell: str, first_line: str) -> str:
        """The name that the kernel's own compiler has for this cell's code. Also has it remember the source, so that
        tracebacks, warnings and inspect find the lines, whichever process they are drawn in."""
        text = f"{first_line}\n{_blank_lines(cell)}{self._ip.transform_cell(cell)}"
        return str(self._ip.compile.cache(text, self._number(), raw_code=f"{first_line}\n{cell}"))

    def _as_the_compiler_says(self, cell: str, first_line: str) -> SyntaxError | None:
        """The error of a plain cell with this text: its words, and lines that count as in the notebook."""
        compiler = self._ip.compile
        try:
            name = self._file_of(cell, first_line)
            text = f"#{first_line}\n{_blank_lines(cell)}{self._ip.transform_cell(cell)}"
            with compiler.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
                tree = compiler.ast_parse(text, filename=name)
                for node in tree.body:  # each by itself, as IPython does: the first error is the one
                    compiler(ast.Module([node], []), name, "exec")
        except SyntaxError as error:
            error.__context__ = None  # that analysis has met it, too
            return error
        return None

    def _outs(self, options: CellOptions, names: capture.CellNames) -> list[str] | str:
        if options.outs == "*" and not options.wait:
            return sorted(names.writes - names.deletes)
        return options.outs or []

    def _check_name(self, name: str | None, outs: list[str] | str) -> None:
        if name is None:
            return
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"%%remote: {name!r} is not a name. NAME is a Python identifier, as in %%remote train.")
        if name in _RESERVED:
            raise UsageError(f"%%remote: {name!r} means all tasks in %tasks; choose another name.")
        if name in outs:
            raise UsageError(f"%%remote: {name!r} is both the task's name and a name after -o; choose another.")
        held = self._ip.user_ns.get(name)
        if name in self._ip.user_ns and not isinstance(held, ObjectRef):
            raise UsageError(
                f"%%remote: {name!r} holds a {type(held).__name__}; the task would replace it. "
                f"Choose another name, or del {name} first."
            )

    def _captured(self, options: CellOptions, names: capture.CellNames) -> dict[str, Any]:
        namespace = self._ip.user_ns
        for flag, listed in (("--in", options.ins), ("--only", options.only), ("--refs", options.refs)):
            missing = [name for name in listed or () if name not in namespace]
            if missing:
                raise UsageError(f"%%remote: there is no variable {missing[0]!r} to take along with {flag}.")
        more = {*(options.ins or ()), *(options.refs or ())}
        if options.only is not None:
            return {name: namespace[name] for name in sorted({*options.only, *more})}
        taken = capture.collect(names.reads | more, namespace, getattr(self._ip, "user_ns_hidden", {}))
        return {**{name: namespace[name] for name in sorted(more)}, **taken}

    def _kept_refs(self, options: CellOptions) -> set[str]:
        for name in options.refs or ():
            held = self._ip.user_ns.get(name)
            if name in self._ip.user_ns and not isinstance(held, ObjectRef):
                raise UsageError(
                    f"%%remote: --refs keeps references, but {name!r} holds a {type(held).__name__}; "
                    "leave it out, it is taken along as it is."
                )
        return set(options.refs or ())

    def _wire_options(self, options: CellOptions, outs: list[str] | str, label: str, first_line: str) -> dict[str, Any]:
        star = outs == "*"
        wire: dict[str, Any] = {
            "name": label,
            "kind": "cell",
            "announce": True,
            "execution_count": self._number(),
            "first_line": first_line,
            "wait": options.wait,
            "max_retries": options.retries,
            "value": bool(options.name),
            "num_returns": 2 if star else 1 + len(outs),
        }
        if star:
            wire["star"] = True
        elif outs:
            wire["outs"] = outs
        for key in ("timeout", "grace", "cpus", "gpus", "memory"):
            if getattr(options, key) is not None:
                wire[key] = getattr(options, key)
        return wire

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
                self._stays |= seen  # one that cannot go is left out without a word: nobody has asked for it
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

    def _pack(
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
        deps: list[int] = []
        pins: list[int] = []
        sent: dict[str, Any] = {}
        for name, value in taken.items():
            if isinstance(value, ObjectRef):
                if value._client is not self._client or value._client.closed:
                    value = self._value_of_old(name, value)
                elif name not in keep:
                    deps.append(value.id)
                    value = Dependency(value.id)
                else:
                    pins.append(value.id)
            sent[name] = value
        if deps:
            wire["deps"] = deps
        if pins:
            wire["pins"] = pins
        content["names"] = sent
        content["sources"] = {}  # last: filled while functions are pickled

        def pickled() -> Any:
            reducers = _noting(pins, identity.Views(sent.values()), functools.partial(self._note_source, content))
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
            serialize.dumps(value, namespace=self._ip.user_ns, root=name)
        except exceptions.UnserializableError as error:
            if name not in self._stays:  # once is enough
                self._stays.add(name)
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

    @staticmethod
    def _value_of_old(name: str, ref: ObjectRef) -> Any:
        """A ref of a session that has ended: its value may be in the kernel still."""
        try:
            return ref._client.value(ref) if ref.is_final else api.get(ref, timeout=0)
        except exceptions.JupyterTasksError as error:
            raise UsageError(f"%%remote: {name!r} is a reference without a value: {error}") from None

    def _started(self) -> Client:
        client = api._client()
        if client is not self._client:
            self._connected(client)
        return client

    def _warm(self, client: Client) -> None:
        """Idle workers import what the notebook has imported, so that a cell need not."""
        wanted = _imported(self._ip.user_ns)
        if not wanted <= self._preloaded:
            self._preloaded |= wanted
            client.request("warm", count=1, preload=sorted(wanted))

    def _run(
        self,
        client: Client,
        payload: shared.Payload,
        wire: dict[str, Any],
        label: str,
        outs: list[str] | str,
        options: CellOptions,
        sent: dict[int, Any] | None,
    ) -> None:
        place = self._screen.here()
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # The sink must be there before the task's first word: the id is known beforehand.
        id = client.new_ids(wire["num_returns"])
        board = None if options.wait or options.quiet else Board(show_id(id), label)
        earlier = self._earlier_runs(options.name, place)
        if options.wait:
            self._router.add(id, lambda kind, content, stderr: news.put((kind, content, stderr)))
        elif board is not None:
            board.earlier = [each.ref.task_id for each in earlier]
            self._router.add(id, lambda kind, content, stderr: self._to_board(id, board, place, kind, content, stderr))
            self._feed.add(id, board, place)
        with _StopButton(lambda: news.put(_STOP)) as button:
            submitted = client.submit_packed(Kind.TASK, 0, payload, label, wire, wire["num_returns"], id)
            returns = submitted if isinstance(submitted, list) else [submitted]
            launched = _Launched(label, options.name, returns[0], returns, place, board, sent=sent)
            self._bind(launched, outs, options)
            if options.wait:
                self._wait(client, launched, news, button)
            else:
                self._open[id] = launched
                client.when_final(launched.ref, lambda ref: self._ended(launched))
        if button.presses and not options.wait:
            raise KeyboardInterrupt  # meant for this cell, which has done its work: the task is on its way

    def _bind(self, launched: _Launched, outs: list[str] | str, options: CellOptions) -> None:
        namespace = self._ip.user_ns
        if outs != "*":
            for name, ref in zip(outs, launched.returns[1:], strict=True):
                ref.label = f"{name} of {launched.label}"
                held = namespace.get(name)
                if name in namespace and not _came_to_nothing(held):
                    launched.replaced[name] = held
                    earlier = next((each for each in self._open.values() if each.bound.get(name) is held), None)
                    if earlier is not None:
                        launched.before[name] = earlier
                namespace[name] = launched.bound[name] = ref
        if options.name:
            namespace[options.name] = launched.ref

    # -- a board's task (event thread) ------------------------------------------------------------------------

    def _to_board(self, id: int, board: Board, place: Place, kind: int, content: Any, stderr: bool) -> None:
        if kind == Kind.OUTPUT:
            board.take_text(content)
            if not self._screen.redraws:
                self._screen.stream(place, "stderr" if stderr else "stdout", content)
        elif kind == Kind.DISPLAY and content["type"] not in NO_OUTPUT:
            board.take_display(content["type"], content["content"])
            if not self._screen.redraws:
                self._screen.display(place, content["type"], content["content"])
        elif kind == Kind.PROGRESS:
            board.take_progress(content)
        elif kind == Kind.EVENT:
            board.take_event(content, time.monotonic())
        self._feed.changed(id)

    def _ended(self, launched: _Launched) -> None:
        ref, board = launched.ref, launched.board
        self._open.pop(ref.id, None)
        for other in list(self._open.values()):
            if other.board is not None and ref.task_id in other.board.earlier:
                other.board.earlier.remove(ref.task_id)
                self._feed.changed(other.ref.id)
        if ref._kind != Kind.RESULT:
            error = _error_of(ref)
            if launched.replaced:
                self._put_back.append(launched)
            if board is not None:
                self._tell_error(board, error, launched)
        if board is not None:
            board.settled = True
            self._feed.changed(ref.id)

    def _tell_error(self, board: Board, error: BaseException, launched: _Launched) -> None:
        lines = getattr(error, "__dict__", {}).get("lines")
        hint = self._hint(error)
        if lines:
            board.error = strip_ansi("\n".join([*lines, *hint]))
        elif isinstance(error, exceptions.TaskError):
            board.error = f"{error.type_name}: {error}"
        elif isinstance(error, exceptions.TaskCancelledError):
            board.error_line = str(error).rpartition(": ")[2].rstrip(".")  # the headline says the rest
        else:
            board.error = str(error)
        if isinstance(error, exceptions.TaskError):
            board.error_line = f"{error.type_name}: {str(error).partition(chr(10))[0]}"[:MOST_LINE]
        if isinstance(error, exceptions.ObjectLostError) and board.state not in FINAL_STATES:
            # Its supervisor has gone, and took the worker along: because we wanted so, or not.
            board.state = "cancelled" if "shut down" in str(error) else "crashed"
        for name in launched.replaced:
            board.notes.append(f"{name} gets back the value that it had before")

    def _hint(self, error: BaseException) -> list[str]:
        """What to do about a name that analysis did not find in the cell, and that is there."""
        if not isinstance(error, exceptions.TaskError) or error.type_name not in (
            "NameError",
            "UndefinedVariableError",
        ):
            return []
        found = _NAME_ERROR.search(str(error))
        if found is None or found[1] not in self._ip.user_ns:
            return []
        return [f"{found[1]!r} exists in the kernel: add `--in {found[1]}` to the %%remote line."]

    def _restore_names(self) -> None:
        """A cancelled `df = df.dropna()` must not cost `df`: what `-o` replaced comes back if no value came."""
        while self._put_back:
            launched = self._put_back.pop()
            for name in launched.replaced:
                if self._ip.user_ns.get(name) is launched.bound[name]:
                    self._ip.user_ns[name] = _held_before(launched, name)

    # -- waiting ----------------------------------------------------------------------------------------------

    def _wait(self, client: Client, launched: _Launched, news: queue.SimpleQueue[Any], button: _StopButton) -> None:
        """Blocks like a normal cell: shows what comes, brings names back, raises the cell's error."""
        ref = launched.ref

        def over(_: ObjectRef) -> None:
            news.put(None)
            button.wake()

        client.when_final(ref, over)
        shown = _Shown(self._ip, self._screen, launched.place)
        stops = 0
        while (word := news.get()) is not None:
            if word is not _STOP and word[0] == Kind.DISPLAY and word[1]["type"] == "input_request":
                shown.flush()
                question = word[1]["content"]
                answer = ask_user(self._ip, question["prompt"], is_password=question["password"], button=button)
                if answer is not None:
                    client.request("answer", serial=question["serial"], answer=answer)
                elif not ref.is_final:
                    news.put(_STOP)
                continue
            if word is not _STOP:
                shown.take(*word)
                continue
            stops += 1
            if stops == 2:
                print("The cell does not stop: ending its process.", file=sys.stderr)
            client.cancel(ref.id, force=stops > 1, source="interrupt")
        shown.flush()
        self._router.remove(ref.id)
        if launched.sent is not None:
            _import_quietly(shown.end.get("modules", ()))
            value = self._bring_home(launched.returns[1], launched.sent)
            if shown.end.get("has_result"):
                self._ip.displayhook.update_user_ns(value)
        for payload in shown.end.get("payloads", ()):
            self._ip.payload_manager.write_payload(payload, single=False)
        if ref._kind == Kind.RESULT:
            if shown.end.get("display_failed"):  # a repr has raised: the cell went well, its reply is an error
                self._ip._last_traceback_during_displayhook = True
                self._ip._last_traceback = shown.error_lines
            return
        if launched.replaced:
            self._put_back.append(launched)
        if shown.later:
            _once_after(self._ip, shown.show_later)
        error = _error_of(ref)
        shown_error = _as_in_the_kernel(error, shown.stopped_lines, self._hint(error))
        # With `-o '*'` a handler of the notebook's for such errors has come home, and handles it here.
        handled_here = launched.sent is not None and isinstance(shown_error, self._ip.custom_exceptions)
        if shown.told and not handled_here:
            _print_instead(self._ip, shown_error, [])
        elif _has_group(shown_error):
            _print_instead(self._ip, shown_error, getattr(shown_error, "_render_traceback_", list)())
        raise shown_error

    def debug(self, id: int) -> bool:
        """Opens the frames of a failed task in a debugger, here in this cell. Returns when the user has had enough.

        False: the frames are not kept (any more).
        """
        client = self._started()
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        before = self._router.add(id, lambda kind, content, stderr: news.put((kind, content, stderr)))
        shown = _Shown(self._ip, self._screen, self._screen.here())
        try:
            with _StopButton(lambda: news.put(_STOP)) as button:
                if not client.request("debug", id=id):
                    return False
                while True:
                    word = news.get()
                    if word is _STOP:
                        client.request("debug", id=id, interrupt=True)
                        continue
                    kind, content, _ = word
                    if kind == Kind.DISPLAY and content["type"] == "input_request":
                        shown.flush()
                        question = content["content"]
                        answer = ask_user(self._ip, question["prompt"], is_password=False, button=button)
                        if answer is None:
                            answer = {"interrupted": True}
                        client.request("answer", serial=question["serial"], answer=answer)
                    elif kind == Kind.DISPLAY and content["type"] == "debugged":
                        shown.flush()
                        return True
                    else:
                        shown.take(*word)
        finally:
            self._router.remove(id)
            if before is not None:
                self._router.add(id, before)

    def _bring_home(self, ref: ObjectRef, sent: dict[int, Any]) -> Any:
        """Does to the namespace, and to the objects in it, what the cell has done. Returns the cell's value."""
        if ref._kind != Kind.RESULT:
            return None  # killed or crashed: nothing came
        try:
            home = ref._client.value(ref, sent)
        except Exception as error:  # raised by code of the user's: a class that does something when it is made
            print(f"What the cell changed stays in the worker: {type(error).__name__}: {error}", file=sys.stderr)
            return None
        namespace = self._ip.user_ns
        failed = identity.apply(home["changed"])
        for name in home["deleted"]:
            namespace.pop(name, None)
        namespace.update(home["assigned"])
        notes = home["left_out"] + failed + ambient.apply(home["ambient"], self._ip)
        ambient.set_random_state(home["random"])
        for note in notes[:MOST_NOTED]:
            print(note, file=sys.stderr)
        if len(notes) > MOST_NOTED:
            print(f"... and {len(notes) - MOST_NOTED} more.", file=sys.stderr)
        return home["value"]


def _held_before(launched: _Launched, name: str) -> Any:
    """What the name held before the launch; before an earlier launch, if that has come to nothing, too."""
    value = launched.replaced[name]
    while _came_to_nothing(value):
        earlier = launched.before.get(name)
        if earlier is None or name not in earlier.replaced:
            return launched.bound[name]  # nothing better is known
        launched, value = earlier, earlier.replaced[name]
    return value


def _came_to_nothing(value: object) -> bool:
    return isinstance(value, ObjectRef) and value.is_final and value._kind != Kind.RESULT


_STOP = object()  # among the words of a waited task: the stop button was pressed


class _StopButton:
    """While this is open, a SIGINT calls `press` and raises nothing.

    A KeyboardInterrupt may hit any line: between the submission and the wait it would leave a task that runs on with
    nobody to cancel it, and between the lines that bring names home it would leave half of them.
    """

    def __init__(self, press: Callable[[], None]) -> None:
        self.presses = 0
        self._press = press
        self._before: Any = None
        self.raises = False  # set while somebody is asked, who may press it to say no: there it is a KeyboardInterrupt

    def __enter__(self) -> _StopButton:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _pressed(self, *_: object) -> None:
        if self.raises:
            self.raises = False  # once: where this lands the next press must not follow
            raise KeyboardInterrupt
        self.presses += 1
        self._press()  # SimpleQueue.put: may be called while `get` of the same queue is running

    def wake(self) -> None:
        """Ends a wait for the user, from another thread: what was asked for is not wanted any more."""
        main = threading.main_thread().ident
        if not self.raises or self._before is None or main is None:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, signal.SIGINT)
        else:
            _thread.interrupt_main()


def ask_user(ip: Any, prompt: str, *, is_password: bool, button: _StopButton) -> dict[str, Any] | None:
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


class _Shown:
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


def _import_quietly(names: Iterable[str]) -> None:
    """What comes home is in these modules. What they print when they are imported was seen when the cell did it."""
    for name in names:
        if name not in sys.modules:
            quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
            with quiet[0], quiet[1], contextlib.suppress(Exception):  # the value that needs it says so
                importlib.import_module(name)


def _once_after(ip: Any, show: Callable[[], None]) -> None:
    """Calls it when the running cell is over: in a plain kernel figures are drawn then, too."""

    def shown() -> None:
        ip.events.unregister("post_execute", shown)
        show()

    ip.events.register("post_execute", shown)


def _print_instead(ip: Any, error: BaseException, lines: list[str]) -> None:
    """Has IPython print these lines for the error that is about to be raised, this once, and not draw it.

    For exception groups, for which it prints Python's own traceback; and for errors that the worker has told already.
    """
    before = ip.custom_exceptions, ip.CustomTB

    def printed(*_: object, **__: object) -> None:
        ip.custom_exceptions, ip.CustomTB = before
        if lines:
            print("\n".join(lines), file=sys.stderr)

    ip.set_custom_exc((type(error),), printed)


def _error_of(ref: ObjectRef) -> BaseException:
    try:
        ref._client.value(ref)
    except BaseException as error:
        return error
    return exceptions.JupyterTasksError("no error")


def _shown_as(error: BaseException, lines: list[str]) -> BaseException:
    """Has IPython print these lines for the error, instead of our own frames."""
    with contextlib.suppress(Exception):  # one that takes no attributes is shown with our frames
        error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]  # IPython's protocol
    return error


def _stand_in(name: str, text: str) -> BaseException:
    """An exception of the same name, with the same text."""
    kind: type[BaseException] = type(name, (exceptions.TaskError,), {"__module__": "builtins"})
    return kind(text)


def _has_group(error: BaseException | None) -> bool:
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


def _nested_loops() -> str | None:
    """The package that has made event loops of this process nestable, as notebooks do that call asyncio.run."""
    asyncio = sys.modules.get("asyncio")
    marks = {"nest_asyncio2": "_nest_asyncio2", "nest_asyncio": "_nest_patched"}
    return next((package for package, mark in marks.items() if hasattr(asyncio, mark)), None)


def _blank_lines(cell: str) -> str:
    """Those that a cell begins with, and that IPython's transform drops."""
    return "\n" * next((i for i, line in enumerate(cell.splitlines()) if line.strip()), 0)


_NAME_ERRORS = frozenset({"NameError", "UndefinedVariableError"})
_NAME_ERROR = re.compile(r"(?:name|variable) '(\w+)' is not defined")


def _as_in_the_kernel(error: BaseException, stopped_lines: list[str], hint: list[str]) -> BaseException:
    """The error as the cell would have raised it here: the same type, text and traceback."""
    if isinstance(error, exceptions.TaskError):
        lines = [*(error.__dict__.get("lines") or error.traceback_text.splitlines()), *hint]
        cause = error.cause
        if cause is None:  # it could not be sent
            return _shown_as(_stand_in(error.type_name, str(error).partition(": ")[2]), lines)
        # IPython draws these itself, with our frames above them.
        if isinstance(cause, SyntaxError):
            return _shown_as(_stand_in(error.type_name, _text_of(cause)), lines)
        return _shown_as(cause, lines)
    if isinstance(error, exceptions.TaskCancelledError) and error.source in ("interrupt", "task"):
        return _shown_as(KeyboardInterrupt(), stopped_lines or [f"KeyboardInterrupt: {error}"])
    return _shown_as(error, [f"{type(error).__name__}: {error}"])


def _noting(pins: list[int], views: identity.Views, note_source: Callable[[types.FunctionType], None]) -> Any:
    def reduce(value: object) -> Any:
        if type(value) is ObjectRef:
            pins.append(value.id)
            return NotImplemented
        if type(value) is types.FunctionType:
            note_source(value)
            return NotImplemented
        return views(value)

    return reduce


def _imported(namespace: dict[str, Any]) -> set[str]:
    """Installed packages that the notebook has imported by name: what a worker may well import ahead of time.

    Not the user's own files: they may be edited, and importing them may have effects.
    """
    homes = tuple({sysconfig.get_paths()[key] for key in ("purelib", "platlib")})
    found = set()
    for value in list(namespace.values()):
        if isinstance(value, types.ModuleType):
            path = getattr(value, "__file__", None) or ""
            if path.startswith(homes) and not value.__name__.startswith("jupyter_tasks"):
                found.add(value.__name__)
    return found
