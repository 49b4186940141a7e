"""From a cell to a task and back: submits what `parcel` has packed, binds refs, shows the board or waits.

Everything here runs in the notebook's main thread, except the sinks, which the client's event thread calls.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import sysconfig
import time
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from jupyter_tasks import detached, exceptions, launch, session
from jupyter_tasks.client import Client
from jupyter_tasks.functions import check_demand
from jupyter_tasks.groups import TaskGroup
from jupyter_tasks.notebook import capture
from jupyter_tasks.notebook.board import FINAL_STATES, Board, strip_ansi
from jupyter_tasks.notebook.errors import as_in_the_kernel, error_of, has_group, hint_for, shown_as
from jupyter_tasks.notebook.feed import Feed
from jupyter_tasks.notebook.grouping import Groups
from jupyter_tasks.notebook.names import check_name
from jupyter_tasks.notebook.output import NO_OUTPUT, Place, Router, Screen
from jupyter_tasks.notebook.parcel import CellOptions, Packer, cell_number
from jupyter_tasks.notebook.waiting import (
    STOP,
    Shown,
    ask_user,
    import_quietly,
    is_question,
    once_after,
    print_instead,
)
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.stopbutton import StopButton
from jupyter_tasks.wire import ambient, identity, shared
from jupyter_tasks.wire.frames import Kind, show_id

if TYPE_CHECKING:
    from jupyter_tasks.supervisor.registry import Entry

__all__ = ["Launcher"]

MOST_LINE = 200  # characters of an error in the headline
MOST_NOTED = 5  # names that one line of a message lists
LOOK_AGAIN = 0.5  # seconds between looks, while somebody debugs, at whether the supervisor is still there


class _Nowhere:
    """Stands for the session of a detached cell while it is packed, when there is none yet: refs mean nothing there."""

    closed = False

    @staticmethod
    def leaves(ref: ObjectRef) -> None:
        raise exceptions.ObjectLostError(
            f"{ref!r} is inside a value that a detached task takes along, and that task outlives the session that "
            "keeps what it stands for. Take jt.get(ref) along instead."
        )


_NOWHERE: Any = _Nowhere()


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
        self._groups = Groups(ip, self._router, self._feed)
        self._client: Client | None = None
        self._open: dict[int, _Launched] = {}
        self._put_back: list[_Launched] = []  # ended without a value; their names get back what they held
        self._preloaded: set[str] = set()
        self._packer = Packer(ip)
        self._routers: dict[int, Router] = {}  # of connections to detached tasks, by the connection's identity

    def start(self) -> None:
        """Joins the shell's events. Starts no process."""
        self._ip.events.register("pre_run_cell", self._before_cell)
        self._ip.events.register("post_run_cell", self._after_cell)
        session.on_start(self._connected)
        detached.on_connect(self._attached)
        self._groups.start()

    def stop(self) -> None:
        """Ends the session and leaves the shell."""
        self._groups.stop()
        session.shutdown()
        detached.close()
        self._feed.stop()
        for name, hook in (("pre_run_cell", self._before_cell), ("post_run_cell", self._after_cell)):
            with contextlib.suppress(ValueError):
                self._ip.events.unregister(name, hook)

    def settle(self) -> None:
        """Everything that has ended is on the screen when this returns."""
        if self._client is not None and not self._client.closed:
            self._client.drain_events()
        for client in detached.clients():
            client.drain_events()
        self._feed.flush()
        self._screen.flush()

    def _connected(self, client: Client) -> None:
        self._router.reset()
        self._open = {id: each for id, each in self._open.items() if not each.ref._client.closed}
        self._preloaded.clear()
        self._packer.connected(client)
        client.namespace = self._ip.user_ns
        client.listener = self._router.listen
        self._client = client
        self._router.cell_begins(client.last_id)

    def _attached(self, client: Client) -> None:
        """A connection to a detached task; what a function prints there appears under the cell that runs now."""
        router = Router(self._screen)
        router.cell_begins(0)
        client.namespace = self._ip.user_ns
        client.listener = router.listen
        open_ones = {id(client), *map(id, detached.clients())}
        self._routers = {key: old for key, old in self._routers.items() if key in open_ones}
        self._routers[id(client)] = router

    def _before_cell(self, info: Any = None) -> None:
        if self._client is not None and not self._client.closed:
            self._router.cell_begins(self._client.last_id)
        for client in detached.clients():
            if client.detached_actor is not None:  # its calls are this cell's; a task is that of the cell that found it
                self._routers[id(client)].cell_begins(client.last_id)
        self._restore_names()

    def _after_cell(self, result: Any = None) -> None:
        self._groups.cell_ends()
        if self._feed.busy():
            self.settle()

    # -- launching --------------------------------------------------------------------------------------------

    def launch(self, cell: str, first_line: str, options: CellOptions) -> None:
        """Runs the cell in a worker. Returns at once, or with `wait` when it has ended.

        Raises:
            UsageError: something about the line or the names is wrong; one sentence, nothing was started.
            With `wait`: what the cell raised.
        """
        # A detached one begins with what is around it now, not with what was there when the session began.
        packer = Packer(self._ip) if options.detach else self._packer
        names = packer.analyse(cell, first_line)
        outs = self._outs(options, names)
        namespace = self._ip.user_ns
        if options.name is not None:
            check_name(options.name, namespace, outs, ObjectRef, of="task", option="NAME", example="%%remote train")
        if options.group is not None:
            others = [options.name or "", *outs]
            sweep = "--group sweep"
            check_name(options.group, namespace, others, TaskGroup, of="group", option="--group", example=sweep)
        taken = packer.captured(options, names)
        label = options.name or f"cell {cell_number(self._ip)}"
        if options.detach:
            self._launch_detached(packer, cell, first_line, list(outs), options, taken, names)
            return
        client = self._started()
        try:
            check_demand({"num_cpus": options.cpus, "num_gpus": options.gpus}, client.settings["total"], label)
        except ValueError as error:
            raise UsageError(f"%%remote: {error}") from None
        if client.settings.get("local_mode"):
            self._run_in_place(client, cell, first_line, label, outs, options, taken, names)
            return
        wire = self._wire_options(options, outs, label, first_line)
        sent: dict[int, Any] | None = {} if outs == "*" else None
        payload = packer.pack(cell, first_line, options, names, taken, wire, sent)
        self._warm(client)
        if options.replace:
            for launched in self._earlier_runs(options.name):
                client.cancel(launched.ref.id, reason="replaced by a new run")
        with self._groups.of_cell(options.group, client) as wire["group"]:
            self._run(client, self._router, payload, wire, label, outs, options, sent)

    def _launch_detached(
        self,
        packer: Packer,
        cell: str,
        first_line: str,
        outs: list[str],
        options: CellOptions,
        taken: dict[str, Any],
        names: capture.CellNames,
    ) -> None:
        """With a supervisor of its own."""
        label = options.name
        assert label is not None, "the magic has seen to that"
        try:
            detached.check_place(f"%%remote {label} --detach")
            check_demand({"num_cpus": options.cpus, "num_gpus": options.gpus}, launch.default_total(), label)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"%%remote: {error}") from None
        taken = {name: self._value_of(name, value) for name, value in taken.items()}
        wire = self._wire_options(options, outs, label, first_line)
        packer.connected(_NOWHERE)
        payload = packer.pack(cell, first_line, options, names, taken, wire, None)
        try:
            if options.replace:
                with contextlib.suppress(ValueError):  # there is none
                    detached.kill(label, reason="replaced by a new run")
            with detached.Starting(label, label="cell", outs=outs) as starting:
                router = self._routers[id(starting.client)]
                self._run(starting.client, router, payload, wire, label, outs, options, None, starting)
        except detached.NameTakenError as error:
            raise UsageError(f"%%remote: {error} --replace ends it, and takes its name.") from None
        finally:
            payload.close()

    @staticmethod
    def _value_of(name: str, value: Any) -> Any:
        """For a cell that outlives the session: a ref is there for its value."""
        return Packer.value_of_old(name, value) if isinstance(value, ObjectRef) else value

    def attach(self, entry: Entry) -> None:
        """Shows the board of a detached task in the cell that runs now: what it has shown so far, and what comes."""
        ref, *more = detached.bring(entry)
        earlier = self._open.get(ref.id)
        if earlier is not None and earlier.board is not None:
            earlier.board.notes.append("its board goes on in a later cell")
            self._feed.changed(ref.id)
            self._feed.flush()
        client, place = ref._client, self._screen.here()
        board = Board(ref.task_id, entry.name)
        self._watch(self._routers[id(client)], ref.id, board, place)
        client.request("attach", id=ref.id)
        self._open[ref.id] = launched = _Launched(entry.name, entry.name, ref, [ref, *more], place, board)
        client.when_final(ref, lambda _: self._ended(launched))
        self.settle()

    def _watch(self, router: Router, id: int, board: Board, place: Place) -> None:
        """What this task says goes to the board, which is shown at the place."""
        router.add(id, lambda kind, content, stderr: self._to_board(id, board, place, kind, content, stderr))
        self._feed.add(id, board, place)

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
    ) -> None:
        """`init(local_mode=True)`: the cell runs here, and this returns when it is over."""
        from jupyter_tasks.inplace import InPlaceClient
        from jupyter_tasks.notebook.inplace import launch_in_place

        assert isinstance(client, InPlaceClient)
        star = outs == "*"
        for name, value in taken.items():
            if isinstance(value, ObjectRef) and value._client is not client:
                taken[name] = self._packer.value_of_old(name, value)
        try:
            with self._groups.of_cell(options.group, client) as group:
                refs, outcome = launch_in_place(
                    self._ip,
                    client,
                    cell,
                    taken,
                    first_line,
                    cell_number(self._ip),
                    label=label,
                    outs=[] if star else list(outs),
                    keeps_value=bool(options.name),
                    refs_only=names.refs_only.union(options.refs or ()),
                    at_home=names.mutates if star else None,
                    group=group,
                )
        except exceptions.UnserializableError as error:
            raise UsageError(f"%%remote {label}: {error}") from None
        launched = _Launched(label, options.name, refs[0], refs, self._screen.here(), None)
        self._bind(launched, outs, options)
        if outcome.error is not None:
            if launched.replaced:
                self._put_back.append(launched)
            raise shown_as(outcome.error, outcome.traceback)

    def _earlier_runs(self, name: str | None, place: Place | None = None) -> list[_Launched]:
        """The open runs of the same NAME, or of the very same cell (front-ends tell a cell's id), oldest first."""
        cell_id = (place or self._screen.here()).cell_id
        return [
            launched
            for launched in self._open.values()
            if (name is not None and launched.name == name) or (cell_id and launched.place.cell_id == cell_id)
        ]

    def _outs(self, options: CellOptions, names: capture.CellNames) -> list[str] | str:
        if options.outs == "*" and not options.wait:
            return sorted(names.writes - names.deletes)
        return options.outs or []

    def _wire_options(self, options: CellOptions, outs: list[str] | str, label: str, first_line: str) -> dict[str, Any]:
        star = outs == "*"
        wire: dict[str, Any] = {
            "name": label,
            "kind": "cell",
            "announce": True,
            "execution_count": cell_number(self._ip),
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

    def _started(self) -> Client:
        client = session.current_client()
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
        router: Router,
        payload: shared.Payload,
        wire: dict[str, Any],
        label: str,
        outs: list[str] | str,
        options: CellOptions,
        sent: dict[int, Any] | None,
        starting: detached.Starting | None = None,
    ) -> None:
        place = self._screen.here()
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # The sink must be there before the task's first word: the id is known beforehand.
        id = client.new_ids(wire["num_returns"])
        board = None if options.wait or options.quiet else Board(show_id(id), label)
        if options.wait:
            router.add(id, lambda kind, content, stderr: news.put((kind, content, stderr)))
        elif board is not None:
            board.earlier = [each.ref.task_id for each in self._earlier_runs(options.name, place)]
            self._watch(router, id, board, place)
        with StopButton(lambda: news.put(STOP)) as button:
            submitted = client.submit_packed(Kind.TASK, 0, payload, label, wire, wire["num_returns"], id)
            returns = submitted if isinstance(submitted, list) else [submitted]
            if starting is not None:
                starting.keep(returns)
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
            error = error_of(ref)
            if launched.replaced:
                self._put_back.append(launched)
            if board is not None:
                self._tell_error(board, error, launched)
        if board is not None:
            board.settled = True
            self._feed.changed(ref.id)

    def _tell_error(self, board: Board, error: BaseException, launched: _Launched) -> None:
        lines = getattr(error, "__dict__", {}).get("lines")
        hint = hint_for(error, self._ip.user_ns)
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

    def _restore_names(self) -> None:
        """A cancelled `df = df.dropna()` must not cost `df`: what `-o` replaced comes back if no value came."""
        while self._put_back:
            launched = self._put_back.pop()
            for name in launched.replaced:
                if self._ip.user_ns.get(name) is launched.bound[name]:
                    self._ip.user_ns[name] = _held_before(launched, name)

    # -- waiting ----------------------------------------------------------------------------------------------

    def _wait(self, client: Client, launched: _Launched, news: queue.SimpleQueue[Any], button: StopButton) -> None:
        """Blocks like a normal cell: shows what comes, brings names back, raises the cell's error."""
        ref = launched.ref

        def over(_: ObjectRef) -> None:
            news.put(None)
            button.wake()

        client.when_final(ref, over)
        shown = Shown(self._ip, self._screen, launched.place)
        stops = 0
        while (word := news.get()) is not None:
            if word is STOP:
                stops += 1
                if stops == 2:
                    print("The cell does not stop: ending its process.", file=sys.stderr)
                client.cancel(ref.id, force=stops > 1, source="interrupt")
            elif is_question(word):
                if not self._ask(client, word[1]["content"], shown, button) and not ref.is_final:
                    news.put(STOP)
            else:
                shown.take(*word)
        shown.flush()
        self._router.remove(ref.id)
        if launched.sent is not None:
            import_quietly(shown.end.get("modules", ()))
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
            once_after(self._ip, shown.show_later)
        error = error_of(ref)
        shown_error = as_in_the_kernel(error, shown.stopped_lines, hint_for(error, self._ip.user_ns))
        # With `-o '*'` a handler of the notebook's for such errors has come home, and handles it here.
        handled_here = launched.sent is not None and isinstance(shown_error, self._ip.custom_exceptions)
        if shown.told and not handled_here:
            print_instead(self._ip, shown_error, [])
        elif has_group(shown_error):
            print_instead(self._ip, shown_error, getattr(shown_error, "_render_traceback_", list)())
        raise shown_error

    def _ask(
        self,
        client: Client,
        question: dict[str, Any],
        shown: Shown,
        button: StopButton,
        otherwise: dict[str, Any] | None = None,
    ) -> bool:
        """Has the user answer a task. False if the stop button was pressed instead; the task is told `otherwise`."""
        shown.flush()
        answer = ask_user(self._ip, question["prompt"], is_password=question["password"], button=button)
        said = otherwise if answer is None else answer
        if said is not None:
            client.request("answer", serial=question["serial"], answer=said)
        return answer is not None

    def debug(self, id: int) -> bool:
        """Opens the frames of a failed task in a debugger, here in this cell. Returns when the user has had enough.

        False: the frames are not kept (any more).
        """
        client = self._started()
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        before = self._router.add(id, lambda kind, content, stderr: news.put((kind, content, stderr)))
        shown = Shown(self._ip, self._screen, self._screen.here())
        try:
            with StopButton(lambda: news.put(STOP)) as button:
                if not client.request("debug", id=id):
                    return False
                while not client.closed:
                    with contextlib.suppress(queue.Empty):
                        word = news.get(timeout=LOOK_AGAIN)
                        if word is STOP:
                            client.request("debug", id=id, interrupt=True)
                        elif is_question(word):
                            self._ask(client, word[1]["content"], shown, button, otherwise={"interrupted": True})
                        elif word[0] == Kind.DISPLAY and word[1]["type"] == "debugged":
                            break
                        else:
                            shown.take(*word)
                shown.flush()
                return True
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
