"""%%remote and %tasks (%%actor is in actorcell.py). Thin: parse, ask the launcher or the API, done."""

from __future__ import annotations

import argparse
import contextlib
import linecache
import shlex
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_tasks import api, detached, session
from jupyter_tasks.exceptions import JupyterTasksError
from jupyter_tasks.groups import TaskGroup, show_counts
from jupyter_tasks.joblib_register import register_joblib
from jupyter_tasks.notebook import arguments, stacks
from jupyter_tasks.notebook.actorcell import ActorMagics
from jupyter_tasks.notebook.board import next_attempt
from jupyter_tasks.notebook.launcher import Launcher
from jupyter_tasks.notebook.output import KernelScreen, TerminalScreen
from jupyter_tasks.notebook.parcel import CellOptions
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.show import show_bytes, show_seconds

if TYPE_CHECKING:
    from jupyter_tasks.client import Client
    from jupyter_tasks.supervisor.registry import Entry

__all__ = ["load", "unload"]


@magics_class
class TasksMagics(Magics):  # type: ignore[misc]  # IPython is untyped
    """The two magics of jupyter_tasks."""

    def __init__(self, shell: Any, launcher: Launcher) -> None:
        super().__init__(shell)
        self._launcher = launcher

    @magic_arguments()
    @argument("name", nargs="?", help="bind the task's reference to this name; also what the board shows")
    @argument("-i", "--in", dest="ins", type=arguments.names, metavar="A,B", help="take these names along, too")
    @argument("--only", type=arguments.names, metavar="A,B", help="take only these names along")
    @argument("--refs", type=arguments.names, metavar="A,B", help="these references stay references in the cell")
    @argument(
        "-o",
        "--out",
        type=arguments.outs,
        metavar="A,B",
        help="bring these names back, as references bound at once; '*' with --wait: all assigned names, as values",
    )
    @argument("-w", "--wait", action="store_true", help="block like a normal cell; the stop button cancels it")
    @argument("-t", "--timeout", type=arguments.positive, metavar="S", help="stop the cell after S seconds")
    @argument(
        "--grace", type=arguments.not_negative, metavar="S", help="after a cancel, end the process after S seconds"
    )
    @argument(
        "--retries", type=arguments.count, metavar="N", help="run it again after a crash, at most N times (default 0)"
    )
    @argument("--cpus", type=arguments.not_negative, metavar="N", help="slots it takes (default 1; 0: runs at once)")
    @argument("--gpus", type=arguments.not_negative, metavar="N", help="GPUs it takes (default 0)")
    @argument("--memory", type=arguments.size, metavar="SIZE", help="limit of its private memory, as 4GB")
    @argument(
        "--group", metavar="NAME", help="make it a member of this TaskGroup; a new one if there is none, or it is over"
    )
    @argument(
        "--detach", action="store_true", help="outlive this kernel; any later one finds it by NAME (%%tasks --help)"
    )
    @argument("--replace", action="store_true", help="first cancel an earlier run of this cell that still runs")
    @argument("-q", "--quiet", action="store_true", help="show no board")
    @argument("-h", "--help", action="store_true", help="show this text")
    @line_cell_magic
    def remote(self, line: str, cell: str | None = None) -> Any:
        """Run this cell in a background worker.

        The names it reads are taken along by value; its output appears here while it runs. `jt.get(NAME)` waits for
        its last expression, `%tasks cancel NAME` stops it.
        """
        args = arguments.parse("%%remote", TasksMagics.remote, line)
        if args is None:
            return
        if cell is None:
            raise UsageError("%%remote stands on top of a cell, with two %: %%remote NAME. See %remote --help.")
        if args.detach:
            _check_detach(args)
        options = CellOptions(
            name=args.name,
            ins=args.ins,
            only=args.only,
            refs=args.refs,
            outs=args.out,
            replace=args.replace,
            wait=args.wait,
            quiet=args.quiet,
            timeout=args.timeout,
            grace=args.grace,
            retries=args.retries or 0,
            cpus=args.cpus,
            gpus=args.gpus,
            memory=args.memory,
            group=args.group,
            detach=args.detach,
        )
        self._launcher.launch(cell, f"%%remote {line}".rstrip(), options)

    @line_magic
    def tasks(self, line: str) -> Any:
        """List tasks and stop them.

        %tasks                      list them
        %tasks cancel NAME|ID|all   ask to stop (KeyboardInterrupt in the task); also a group, with all in it
        %tasks kill NAME|ID|all     end the processes at once
        %tasks wait NAME|ID|all     block until they are over
        %tasks logs NAME|ID         all that a task has printed
        %tasks stack NAME|ID|all    where a running task is at this moment, also in C code
        %tasks story NAME|ID        what has happened to a task
        %tasks debug NAME|ID        open the frames of a failed task in the debugger
        %tasks fetch A B            put the values of these references in their place (waits for them)
        %tasks clear                forget finished tasks, and the frames kept for the debugger

        Detached tasks (%%remote NAME --detach) outlive the kernel. All of this but debug knows them by NAME, in any
        kernel of yours on this machine; `all` leaves them alone. Of detached actors (%%actor NAME --detach) list, kill,
        wait, logs, stack and story do. Besides:

        %tasks attach NAME          show its board here: what it has shown so far, and what comes
        %tasks fetch NAME           bind its value to NAME, and what its -o names to those
        %tasks kill NAME            end it and forget its result
        %tasks clear NAME           forget the result of one that is over
        """
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"%tasks: {error}.") from None
        if not words or words[0] == "list":
            print(_table(sorted(api.tasks(), key=lambda record: int(record["id"]))))
            for entry in detached.elsewhere():
                where = f"on host {entry.hostname}; it can be reached from there only"
                print(f"detached {entry.kind} {entry.shown} is {where}")
            for group in _live_groups():
                print(f"group {group['name']} ({group['group_id']}): {group['state']}, {show_counts(group)}")
            return
        verb, names = words[0], words[1:]
        if verb in ("-h", "--help", "help"):
            print(self.tasks.__doc__)
        elif verb == "clear" and names:
            self._clear(names)
        elif verb == "clear":
            count = session.current_client().request("clear") if session.is_initialized() else 0
            print(f"Forgot {count} finished task{'' if count == 1 else 's'}.")
            for record in detached.records("task"):
                if record["state"] in _FINAL:
                    word = shlex.quote(record["name"])
                    print(f"The detached task {record['name']} keeps its result: %tasks clear {word}.")
        elif verb == "fetch":
            self._fetch(names)
        elif verb in _VERBS:
            if not names:
                raise UsageError(
                    f"%tasks {verb} needs the NAME or ID of a task{'' if verb in _OF_ONE else ', or all'}."
                )
            getattr(self, f"_{verb}")(names)
        else:
            raise UsageError(f"%tasks: unknown word {verb!r}. Use {', '.join(_VERBS)}, fetch or clear; %tasks --help.")

    def complete(self, shell: Any, event: Any) -> list[str]:
        """Names for the Tab key, after `--group` and after the words of %tasks. Empty: IPython looks further."""
        words = event.text_until_cursor.split("\n")[-1].split()
        if not event.text_until_cursor.endswith((" ", "\t")):
            words = words[:-1]
        if not words:
            return []
        if words[0] == "%%remote":
            known = {name for name, value in shell.user_ns.items() if isinstance(value, TaskGroup)}
            return sorted(known) if words[-1] == "--group" else []
        if len(words) == 1:
            return sorted([*_VERBS, "fetch", "clear", "list"])
        if words[1] == "fetch":
            refs = {name for name, value in shell.user_ns.items() if isinstance(value, ObjectRef)}
            far = {name for entry in detached.entries("task") for name in (entry.name, *entry.outs)}
            return sorted(refs | far)
        if words[1] in ("attach", "clear"):
            return sorted(entry.name for entry in detached.entries("task"))
        if words[1] not in _VERBS:
            return []
        groups = {group["name"] for group in _live_groups()} if words[1] in ("cancel", "kill", "wait") else set()
        return sorted({record["name"] for record in api.tasks()} | groups)

    def _find(self, names: list[str], *, live: bool) -> list[dict[str, Any]]:
        """The tasks meant by names, ids or "all"."""
        records = api.tasks()
        found: list[dict[str, Any]] = []
        for name in names:
            if name == "all":
                found += [record for record in records if _is_live(record) and not record.get("detached")]
                continue
            matches = [record for record in records if name in (record["task_id"], record["name"])]
            if not matches:
                known = ", ".join(dict.fromkeys(record["name"] for record in records[:20])) or "none"
                raise UsageError(f"There is no task {name!r}. Tasks: {known}.")
            alive = [record for record in matches if _is_live(record)]
            if live and len(alive) > 1:
                others = len(alive) - 1
                print(f"{name}: takes the newest; {others} other{'s' if others > 1 else ''} of this name run on.")
            found.append((alive or matches)[-1])
        return found

    def _take_groups(self, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """The live groups among the names, and the names that are left: those of tasks.

        A group goes before a task of its name: the members of a map have the group's name.
        """
        groups = _live_groups()
        found: list[dict[str, Any]] = []
        rest = []
        for name in names:
            matches = [group for group in groups if name in (group["group_id"], group["name"])]
            if not matches:
                rest.append(name)
                continue
            found.append(matches[-1])
            if len(matches) > 1:
                others = len(matches) - 1
                go_on = "other group of this name goes on" if others == 1 else "other groups of this name go on"
                print(f"{name}: takes the newest; {others} {go_on}.")
        return found, rest

    def _cancel(self, names: list[str]) -> None:
        self._stop_all(names, force=False)

    def _kill(self, names: list[str]) -> None:
        self._stop_all(names, force=True)

    def _stop_all(self, names: list[str], *, force: bool) -> None:
        how = "end at once" if force else "stop"
        groups, names = self._take_groups(names)
        if "all" in names:  # members are told by their groups
            groups = _live_groups()
        for group in groups:
            session.current_client().cancel(group["id"], force=force)
            print(f"Group {group['group_id']} ({group['name']}, {show_counts(group)}): all in it asked to {how}.")
        for record in self._find(names, live=True) if names else []:
            who = f"Task {record['task_id']} ({record['name']})"
            if force and record.get("detached"):
                detached.kill(record["name"], record["namespace"], kind=_kind_of(record))
                print(f"{who}: ended, and its result forgotten.")
            elif not _is_live(record):
                print(f"{who} is over: {record['state']}.")
            elif record["kind"] == "actor" and not force:
                print(
                    f"{who} is an actor: %tasks kill ends it, and its handle's terminate() lets it do its calls first."
                )
            elif not ("all" in names and record.get("group") and record["state"] not in _FINAL):
                with _line(record) as client:
                    client.cancel(record["id"], force=force)
                if force and record.get("executor") == "thread":
                    print(f"{who}: asked to stop; a thread cannot be killed.")
                else:
                    print(f"{who}: asked to {how}.")

    def _wait(self, names: list[str]) -> None:
        """Blocks until the tasks are over; a KeyboardInterrupt ends the waiting, not the tasks."""
        groups, names = self._take_groups(names)
        open_groups = {group["id"] for group in groups}
        tasks = self._find(names, live=False) if names else []
        for record in tasks:
            if record.get("detached"):
                entry = detached.find(record["name"], record["namespace"], _kind_of(record))
                ref, *_ = detached.bring(entry, actor=entry.kind == "actor")
                ref._client.wait([ref])
        open_ids = {record["id"] for record in tasks if _is_live(record) and not record.get("detached")}
        if open_ids or open_groups:
            self._wait_here(session.current_client(), open_ids, open_groups)
        self._launcher.settle()

    def _wait_here(self, client: Client, open_ids: set[int], open_groups: set[int]) -> None:
        """The same for those of this session."""
        pause = 0.01
        while open_ids or open_groups:
            if open_ids:
                answer = client.request("tasks", ids=sorted(open_ids))["tasks"]
                open_ids = {record["id"] for record in answer if record["state"] not in _FINAL}
            if open_groups:
                open_groups &= {group["id"] for group in _live_groups()}
            if open_ids or open_groups:
                time.sleep(pause)
                pause = min(pause * 1.5, 0.2)

    def _story(self, names: list[str]) -> None:
        for record in self._find(names, live=False):
            with _line(record) as client:
                chapters = client.request("story", id=record["id"]) or []
            print(f"Task {record['task_id']} ({record['name']}), {record['state']}{_remark(record)}:")
            for chapter in chapters:
                source = f"  by {chapter['source']}" if chapter["source"] else ""
                reason = f": {chapter['reason']}" if chapter["reason"] else ""
                since = f"+{chapter['at'] - chapters[0]['at']:.3f} s"
                print(f"  {since:>12}  {chapter['step']:<18}  {chapter['state']}{source}{reason}")

    def _fetch(self, names: list[str]) -> None:
        """A name whose task failed keeps its reference; the first such error is raised when the others are there."""
        namespace = self.shell.user_ns
        names = [part for name in names for part in name.split(",") if part]
        if not names:
            raise UsageError("%tasks fetch needs the names of variables that hold references, as in %tasks fetch a b.")
        together: list[dict[str, Any]] = []  # one task stands behind these: the first of them that fails speaks for all
        for name in names:
            if name not in namespace:
                together.append(self._bind_detached(name))
            elif isinstance(namespace[name], ObjectRef):
                together.append({name: namespace[name]})
            else:
                held = type(namespace[name]).__name__
                raise UsageError(f"%tasks fetch: {name!r} holds a {held}, not a reference; its value is there already.")
        failed: list[tuple[str, BaseException]] = []
        for of_one in together:
            for name, ref in of_one.items():
                try:
                    namespace[name] = api.get(ref)
                except JupyterTasksError as error:
                    failed.append((name, error))
                    break
        self._launcher.settle()
        for name, failure in failed[1:]:
            print(f"{name}: {type(failure).__name__}: {failure}", file=sys.stderr)
        if failed:
            raise failed[0][1]

    def _bind_detached(self, name: str) -> dict[str, Any]:
        """Binds refs of the detached task that is called so, or has this name after its `-o`. Returns them by name."""
        namespace = self.shell.user_ns
        entries = detached.entries("task")
        entry = next((each for each in reversed(entries) if name == each.name), None)
        source = entry or next((each for each in reversed(entries) if name in each.outs), None)
        if source is None:
            _refuse_actor(name, "fetch")
            raise UsageError(f"%tasks fetch: there is no variable {name!r}, and no detached task of this name.")
        if not name.isidentifier():
            raise UsageError(
                f"%tasks fetch: no variable can be called {name!r}; use x = jt.get(jt.get_task({name!r}))."
            )
        refs = detached.bring(source)
        found: dict[str, Any] = dict(zip(source.outs, refs[1:], strict=False))  # a function has none, and many values
        if entry is None:
            found = {name: found[name]}
        for out in [out for out in found if not isinstance(namespace.get(out, refs[0]), ObjectRef)]:
            held = type(namespace[out]).__name__
            print(f"{out} holds a {held} and keeps it; to have that of {name}: del {out}, then %tasks fetch {out}.")
            del found[out]
        if entry is not None:
            found = {name: refs if len(refs) > 1 and not source.outs else refs[0], **found}
        namespace.update(found)
        return found

    def _attach(self, names: list[str]) -> None:
        for name in names:
            self._launcher.attach(self._detached(name, "attach"))

    def _clear(self, names: list[str]) -> None:
        for name in names:
            entry = self._detached(name, "clear")
            try:
                detached.clear(entry.name, entry.namespace)
            except ValueError as error:
                raise UsageError(f"%tasks clear: {error}") from None
            print(f"Forgot the detached task {name}, and its result.")

    @staticmethod
    def _detached(name: str, verb: str) -> Entry:
        found = [entry for entry in detached.entries("task") if entry.name == name]
        if not found:
            _refuse_actor(name, verb)
            known = ", ".join(entry.name for entry in detached.entries("task")) or "none"
            raise UsageError(f"%tasks {verb}: there is no detached task {name!r}. Detached tasks: {known}.")
        return found[-1]

    def _logs(self, names: list[str]) -> None:
        for record in self._find(names, live=False):
            with _line(record) as client:
                log = client.request("logs", id=record["id"])
            if outputs := record.get("outputs"):
                what = "an output that is no text" if outputs == 1 else f"{outputs} outputs that are no text"
                print(f"[{what}: %tasks attach {record['name']} shows it all]", file=sys.stderr)
            if log is None:
                print(f"Task {record['task_id']} ({record['name']}) has printed nothing.")
                continue
            with open(log["path"], errors="replace") as file:
                text = file.read(MOST_LOG)
                rest = file.read(1)
            print(text, end="" if text.endswith("\n") else "\n")
            if rest:
                shown, whole = show_bytes(MOST_LOG), show_bytes(log["bytes"])
                print(f"[... the first {shown} of {whole}; the whole log is in {log['path']}]")

    @staticmethod
    def _need_workers(verb: str) -> None:
        if session.is_initialized() and session.current_client().settings.get("local_mode"):
            raise UsageError(f"%tasks {verb}: in local mode tasks run here, in the kernel; use %debug after jt.get.")

    def _debug(self, names: list[str]) -> None:
        self._need_workers("debug")
        if len(names) != 1 or names == ["all"]:
            raise UsageError("%tasks debug opens one task: %tasks debug NAME.")
        matches = [record for record in api.tasks() if names[0] in (record["task_id"], record["name"])]
        (record,) = [record for record in matches if record["kept"]][-1:] or self._find(names, live=False)
        who = f"Task {record['task_id']} ({record['name']})"
        if record["kept"]:
            print(f"{who}: the frame that raised. Type `u` to go up, `p NAME` to look, `q` to leave, `h` for help.")
            if self._launcher.debug(record["id"]):
                return
            raise UsageError(f"%tasks debug: the frames of {who} are gone, or somebody else looks at them.")
        if record.get("detached"):
            raise UsageError(f"{who} is detached: the frames of such tasks are not kept.")
        if record["state"] not in _FINAL:
            raise UsageError(f"{who} is {record['state']}; %tasks stack {record['task_id']} shows where it is.")
        if record["state"] != "failed":
            raise UsageError(f"{who} has not raised an error: {record['state']}.")
        kept = ", ".join(other["name"] for other in api.tasks() if other["kept"])
        now = f"Kept are those of: {kept}; %tasks clear lets them go" if kept else "Run it again to keep them"
        raise UsageError(f"The frames of {who} are not kept: only those of the last failures are. {now}.")

    def _stack(self, names: list[str]) -> None:
        self._need_workers("stack")
        for record in self._find(names, live=True):
            who = f"Task {record['task_id']} ({record['name']})"
            if record["state"] in _FINAL:
                print(f"{who} is over: {record['state']}.")
                continue
            with _line(record) as client:
                answer = client.request("stack", id=record["id"])
                again = client.request("tasks", ids=[record["id"]])["tasks"] if answer is None else []
            if answer is None:
                state = again[0]["state"] if again else "forgotten"
                print(f"{who} is {state}: no code of it runs at this moment.")
            elif not answer["text"]:
                print(f"{who} does not answer: its process is stopped, or waits for a disk that does not answer.")
            else:
                print(f"{who}, {record['state']} for {show_seconds(record['elapsed_s'])}, is here:")
                print(stacks.render(answer["text"], self._cell_of, linecache.getline))

    def _cell_of(self, file: str) -> str:
        known = self.shell.compile.format_code_name(file)
        return " ".join(known) if known else ""


_VERBS = ("cancel", "kill", "wait", "logs", "story", "stack", "debug", "attach")
_OF_ONE = ("logs", "story", "debug", "attach")  # for them there is no "all"
MOST_LOG = 1_000_000  # characters that `%tasks logs` prints; a browser suffers from more
_FINAL = frozenset({"cancelled", "completed", "failed", "crashed"})


def _kind_of(record: dict[str, Any]) -> str:
    return "actor" if record["kind"] == "actor" else "task"


def _refuse_actor(name: str, verb: str) -> None:
    """Raises UsageError if this is the name of a detached actor."""
    if any(entry.name == name for entry in detached.entries("actor")):
        raise UsageError(
            f"%tasks {verb}: {name} is a detached actor, not a task. jt.get_actor({name!r}) finds it, "
            f"%tasks kill {shlex.quote(name)} ends it."
        )


def _live_groups() -> list[dict[str, Any]]:
    """The records of groups that are not over, oldest first."""
    if not session.is_initialized():
        return []
    return list(session.current_client().request("groups"))


@contextlib.contextmanager
def _line(record: dict[str, Any]) -> Iterator[Client]:
    """The connection to who serves this task."""
    if not record.get("detached"):
        yield session.current_client()
        return
    try:
        entry = detached.find(record["name"], record["namespace"], _kind_of(record))
    except ValueError as error:  # it has ended in between
        raise UsageError(f"%tasks: {error}") from None
    with detached.line(entry) as client:
        yield client


def _check_detach(args: argparse.Namespace) -> None:
    """What else is asked for makes sense for a cell that outlives the kernel."""
    if args.name is None:
        raise UsageError("%%remote --detach needs a NAME, by which the cell is found again: %%remote NAME --detach.")
    if args.wait:
        raise UsageError(
            "%%remote: --wait and --detach exclude each other; a cell that outlives the kernel is waited for with "
            f"%tasks wait {args.name}."
        )
    if args.refs:
        raise UsageError("%%remote: --refs and --detach exclude each other; references end with their session.")
    if args.group is not None:
        raise UsageError("%%remote: --group and --detach exclude each other; a group ends with its kernel.")


def _is_live(record: dict[str, Any]) -> bool:
    return record["state"] not in _FINAL or record["lingers"]


def _remark(record: dict[str, Any]) -> str:
    if record.get("detached"):
        where = f", namespace {record['namespace']}" if record["namespace"] != detached.DEFAULT else ""
        return f" (detached{where}{', left something running' if record['lingers'] else ''})"
    if rest := next_attempt(record):
        return f", {rest}"
    if record["state"] == "cancelling" and record.get("executor") == "thread":
        return " (a thread: it ends by itself)"
    if record["lingers"]:
        return " (left something running)"
    return " (kept for %tasks debug)" if record["kept"] else ""


def _table(records: list[dict[str, Any]]) -> str:
    if not records:
        return "No tasks."
    grouped = any(record.get("group") for record in records)
    rows = [("ID", "NAME", "STATE", "ELAPSED", "CPU", "MEMORY", *(("GROUP",) if grouped else ()))]
    for record in records:
        usage = record.get("usage")
        if usage and not usage["peak"]:
            usage = None  # it was over before anybody measured
        rows.append(
            (
                record["task_id"],
                record["name"],
                record["state"] + _remark(record),
                show_seconds(record["elapsed_s"]) if record["elapsed_s"] else "-",
                show_seconds(usage["cpu_s"]) if usage else "-",
                show_bytes(usage["memory"] if _is_live(record) else usage["peak"]) if usage else "-",
                *((record.get("group", "-"),) if grouped else ()),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


_COMPLETED = ("%%remote", "%tasks")  # lines in which the Tab key knows names
_loaded: dict[int, tuple[Launcher, Any]] = {}


def load(ip: Any) -> None:
    """Registers the magics with this shell; twice is once."""
    if id(ip) in _loaded:
        return
    screen = KernelScreen(ip) if hasattr(ip, "kernel") else TerminalScreen()
    launcher = Launcher(ip, screen)
    magics = TasksMagics(ip, launcher)
    ip.register_magics(magics)
    ip.register_magics(ActorMagics(ip))
    for line in _COMPLETED:
        ip.set_hook("complete_command", magics.complete, str_key=line)
    _loaded[id(ip)] = (launcher, ip)
    launcher.start()
    if "joblib" in sys.modules:  # who imports it later calls `jt.register_joblib()`
        with contextlib.suppress(ImportError):  # it is too old, which only who wants the backend needs to hear
            register_joblib()


def unload(ip: Any) -> None:
    """Ends all tasks and takes the magics away."""
    entry = _loaded.pop(id(ip), None)
    if entry is None:
        return
    entry[0].stop()
    for kind, name in (
        *(("cell", "remote"), ("line", "remote"), ("line", "tasks")),
        *(("cell", "actor"), ("line", "actor")),
    ):
        ip.magics_manager.magics[kind].pop(name, None)
    for line in _COMPLETED:
        ip.strdispatchers["complete_command"].strs.pop(line, None)
