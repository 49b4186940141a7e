"""Ambient state: what a cell reads of its process without naming it. It follows the kernel; after a task it is undone.

    kernel   start = base(ip)                            at the session's start: what a fresh worker has
             sent = difference(start, take(ip))          at each launch; empty if nothing was changed
    worker   before = take(ip);  notes = apply(sent, ip)
             started = take(ip);  ... the cell runs ...
             home = difference(started, take(ip))        with `--wait -o '*'`; the kernel does apply(home, ip)
             restore(before, ip)                         always

A state is plain: `{part: {key: value}}`. Environment, working directory and `sys.path`, which workers inherit, are said
whole. Every other part says only what is not the default, so that `{}` is right for a fresh worker, for a library that
is not imported, and for one that was imported by the cell. One algorithm serves all parts; `_PARTS` is the table.

**Libraries that are not here yet.** Nothing is imported to read or to set its options: they wait, count as set, and are
put in place when the library is imported (`_Finder`).

**Values.** Those of magics, formatters and options may be the notebook's functions, so a difference travels in the
pickle that carries the notebook's names. Categories of warnings go by name: filtering one must not import its library.

Thread: any, but no two of these calls at a time; workers and kernels use their main thread. Must not import IPython,
numpy, pandas or matplotlib, and must not know what a task is.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import locale
import os
import re
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jupyter_tasks.wire.frames import SESSION_MARK

__all__ = [
    "Difference",
    "First",
    "State",
    "apply",
    "base",
    "carried",
    "difference",
    "keep",
    "leave_events_to_the_kernel",
    "leave_out",
    "random_state",
    "reseed",
    "restore",
    "set_random_state",
    "take",
    "those_first",
    "without_other_magics",
]

State = dict[str, dict[Any, Any]]
# For each part that differs: what to set, and what to put back to its default (or remove).
Difference = dict[str, tuple[dict[Any, Any], list[Any]]]

_OMIT = object()  # from a part's `pack`: this value does not travel


def _as_it_is(key: Any, old: Any, new: Any) -> Any:
    return new


@dataclass(frozen=True, slots=True)
class _Part:
    """One kind of ambient state. `read`, `put` and `drop` may raise: the rest goes on, and one sentence says it."""

    name: str
    title: str  # of one key, for notes
    read: Callable[[Any], dict[Any, Any]]
    put: Callable[[Any, Any, Any], object]  # key, value, shell
    drop: Callable[[Any, Any], object] | Mapping[Any, Any]  # key, shell: back to the default; or the defaults
    library: str | None = None  # a module that must be there; until then values wait
    beside: str | None = None  # where this is imported, the library may be: the kernel would have it, too
    shell: bool = False  # only with IPython
    inherited: bool = False  # a worker begins with what the kernel had
    pack: Callable[[Any, Any, Any], Any] = _as_it_is  # what travels; key, old value, new value

    def now(self, ip: Any) -> dict[Any, Any]:
        if self.library is not None and not _is_here(self.library):
            return dict(_waiting.get(self.name, {}))
        return self.read(ip)

    def write(self, changed: Mapping[Any, Any], gone: list[Any], ip: Any, is_here: bool = False) -> list[str]:
        if self.library is not None and not is_here and not _is_here(self.library):
            if self.beside is None or not _is_here(self.beside):
                _wait(self, changed, gone, ip)
                return []
            importlib.import_module(self.library)
        notes = []
        for key in [*gone, *changed]:
            try:
                if key in changed:
                    self.put(key, changed[key], ip)
                elif isinstance(self.drop, Mapping):
                    self.put(key, self.drop[key], ip)
                else:
                    self.drop(key, ip)
            except (Exception, SystemExit) as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
                notes.append(f"{self._of(key)} could not be taken over: {said}.")
        return notes

    def _of(self, key: Any) -> str:
        shown = ".".join(str(getattr(each, "__name__", each)) for each in (key if isinstance(key, tuple) else (key,)))
        return self.title.format(os.fsdecode(key) if isinstance(key, bytes) else shown)


def take(ip: Any = None) -> State:
    """What holds now in this process. `ip` is the InteractiveShell, if there is one.

    Costs 0.05 ms, with numpy, pandas and matplotlib imported 0.1 to 0.2; the first call 1.5. Never raises: a part that
    cannot be read is left out.
    """
    state: State = {}
    for part in _PARTS:
        if part.shell and ip is None:
            continue
        try:
            state[part.name] = part.now(ip)
        except Exception:
            continue  # somebody replaced what it looks at; it cannot follow then
    return state


def base(ip: Any = None) -> State:
    """What a worker begins with, if the session starts now. For the kernel, which keeps it as long as the session."""
    state = take(ip)  # the whole, because it also remembers how tables looked
    state = {part.name: state.get(part.name, {}) if part.inherited else {} for part in _PARTS if part.name in state}
    if type(ip).__name__ == "ZMQInteractiveShell":
        # The worker's shell sets these anew, over what it has inherited. In another shell than ipykernel's they are
        # different without the user's doing.
        state["environ"].update((_raw(name), _raw(value)) for name, value in _SET_BY_THE_SHELL.items())
    return state


def difference(before: State, after: State) -> Difference:
    """What leads from one state to the other. Empty if they are the same.

    To be pickled with `serialize.dumps`, since it may hold functions and classes of the notebook (`carried`). Keys and
    values that make the pickling fail are found by `leave_out`.
    """
    found: Difference = {}
    for part in _PARTS:
        if part.name not in before or part.name not in after:
            continue
        old = before[part.name]
        changed, gone = _steps(old, after[part.name])
        if not (changed or gone):
            continue
        try:
            changed = {key: part.pack(key, old.get(key), value) for key, value in changed.items()}
            gone = [key for key in gone if part.pack(key, old[key], None) is not _OMIT]
        except Exception:
            continue  # a handler of a class that looks different, for one
        changed = {key: value for key, value in changed.items() if value is not _OMIT}
        if changed or gone:
            found[part.name] = changed, gone
    return found


def apply(sent: Difference, ip: Any = None) -> list[str]:
    """Does a difference to this process. Returns a sentence for each thing that could not be done; never raises."""
    notes, _notes_of_first[:] = _notes_of_first[:], []
    for part in _PARTS:
        if part.name in sent and (ip is not None or not part.shell):
            changed, gone = sent[part.name]
            if part.name == "environ" and _kept_variables:
                changed = {name: value for name, value in changed.items() if name not in _kept_variables}
                gone = [name for name in gone if name not in _kept_variables]
            notes += part.write(changed, gone, ip)
    return notes


class First:
    """A part of a difference that must be in place before what travels behind it in the same pickle is unpickled.

    Names may be of modules that only this `sys.path` finds. So it applies itself when it is loaded; what could not be
    done is said by the next `apply`. To be put in front of them.
    """

    def __init__(self, sent: Difference) -> None:
        self._sent = sent

    def __reduce__(self) -> tuple[Any, ...]:
        return _apply_first, (self._sent,)


_notes_of_first: list[str] = []


def _apply_first(sent: Difference) -> None:
    _notes_of_first[:] = apply(sent)


def those_first(sent: Difference) -> tuple[First | None, Difference]:
    """What must be in place before names are unpickled, and the rest."""
    first = {part.name: sent[part.name] for part in _PARTS if part.inherited and part.name in sent}
    return First(first) if first else None, {name: steps for name, steps in sent.items() if name not in first}


_kept_variables: set[Any] = set()


def keep(variable: str) -> None:
    """From now on no other process decides on this environment variable of this one."""
    _kept_variables.add(_raw(variable))


def restore(before: State, ip: Any = None) -> None:
    """Puts this process back to an earlier state of its own. Costs what `take` costs if nothing was changed.

    What cannot be put back stays: a working directory that is gone, an extension that has no way to be unloaded.
    """
    if ip is not None:
        _hear_events_again(ip)
    _heal(ip)
    for part in _PARTS:
        if part.name not in before or (part.shell and ip is None):
            continue
        try:
            # Read only now: an earlier part may have changed it (an extension's settings, filters of an import).
            changed, gone = _steps(part.now(ip), before[part.name] | _KEPT.get(part.name, {}))
            if changed or gone:
                part.write(changed, gone, ip)
        except Exception:
            continue


def carried(sent: Difference) -> list[Any]:
    """Functions, classes and instances of the notebook in a difference: the names they read must come along."""
    held = [each for changed, _ in sent.values() for pair in changed.items() for each in pair]
    inner = [part for each in held for part in (each if isinstance(each, tuple) else (each,))]
    inner += [value for each in inner if type(each) is dict for value in each.values()]  # of an instance of magics
    return [each for each in inner if _is_notebooks(each)]


def without_other_magics(sent: Difference, text: str) -> Difference:
    """The difference without magics, and hooks that only the kernel calls, that the text does not mention: what those
    read may be large."""
    sent = {name: steps for name, steps in sent.items() if name not in _MENTIONED or _MENTIONED[name] in text}
    if "magics" not in sent:
        return sent
    changed, gone = sent["magics"]

    def is_mentioned(key: Any, magic: Any) -> bool:
        names = {key[1]} if key[0] != "class" else {name for table in magic[0].magics.values() for name in table}
        return any(name in text for name in names)

    kept = {key: magic for key, magic in changed.items() if is_mentioned(key, magic)}
    return {name: steps for name, steps in {**sent, "magics": (kept, gone)}.items() if any(steps)}


def leave_out(sent: Difference, goes: Callable[[Any, str], bool]) -> Difference:
    """The difference without what cannot be sent. `goes` gets a value, and what to call it, and tries."""
    left: Difference = {}
    for part in _PARTS:
        if part.name not in sent:
            continue
        changed, gone = sent[part.name]
        left[part.name] = {k: v for k, v in changed.items() if goes((k, v), part._of(k))}, gone
    return {name: steps for name, steps in left.items() if any(steps)}


def _steps(old: dict[Any, Any], new: dict[Any, Any]) -> tuple[dict[Any, Any], list[Any]]:
    try:
        if old == new:
            return {}, []
    except Exception:
        pass  # a value compares as arrays do
    missing = object()
    changed = {key: value for key, value in new.items() if not _same(old.get(key, missing), value)}
    return changed, [key for key in old if key not in new]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:
        return False


# --- Random numbers ---------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The state of `random` and `np.random`, of each that is imported."""
    state: dict[str, Any] = {}
    if _is_here("random"):
        state["random"] = sys.modules["random"].getstate()
    if _is_here("numpy.random"):
        state["numpy"] = sys.modules["numpy.random"].get_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Goes on where `random_state` was called. Imports numpy if the state has it: the next number shall be the same."""
    if "random" in state:
        import random

        random.setstate(state["random"])
    if "numpy" in state:
        importlib.import_module("numpy.random").set_state(state["numpy"])


def reseed() -> None:
    """New entropy. Forked workers would all draw the same numbers; numpy imported later seeds itself."""
    if _is_here("random"):
        sys.modules["random"].seed()
    if _is_here("numpy.random"):
        try:
            # With the entropy given it takes 15 us, without 300.
            sys.modules["numpy.random"].seed(list(memoryview(os.urandom(32)).cast("I")))
        except TypeError:
            pass  # the user has put another generator in its place


# --- Libraries that are not imported yet ------------------------------------------------------------------

_waiting: dict[str, dict[Any, Any]] = {}  # by part, never empty dicts
_waiting_shell: Any = None


def _is_here(name: str) -> bool:
    """Imported to the end: another thread may be in the middle of it."""
    module = sys.modules.get(name)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _wait(part: _Part, changed: Mapping[Any, Any], gone: list[Any], ip: Any) -> None:
    global _waiting_shell
    waiting = {**_waiting.pop(part.name, {}), **changed}
    for key in gone:
        waiting.pop(key, None)
    if waiting:
        _waiting[part.name] = waiting
    _waiting_shell = ip
    _watch()


def _watch() -> None:
    if _waiting and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    elif not _waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder:
    """On `sys.meta_path` while something waits. Finds nothing itself, but hears of the import and calls after it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        parts = [part for part in _PARTS if part.library == name and part.name in _waiting]
        if not parts:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        loader: Any = getattr(spec, "loader", None)
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_set(module: types.ModuleType) -> None:
            del loader.exec_module
            execute(module)
            for part in parts:
                part.write(_waiting.pop(part.name, {}), [], _waiting_shell, is_here=True)
            _watch()

        try:
            loader.exec_module = execute_and_set
        except AttributeError:
            pass  # a loader that is a class, for all modules (built-in, frozen): none of ours
        return spec


_finder: Any = _Finder()


class _Remembered:
    """A view of tables that seldom change, made anew only when they have: comparing 100 entries takes 1 us."""

    def __init__(self, view: Callable[..., Any]) -> None:
        self._view = view
        self._seen: tuple[list[Any], Any] | None = None  # replaced whole: an interrupt must not leave half of it

    def __call__(self, *tables: Any) -> Any:
        seen = self._seen
        if seen is None or len(tables) != len(seen[0]) or any(map(_differ, seen[0], tables)):
            copies = [_copy(table) for table in tables]
            self._seen = seen = (copies, self._view(*copies))
        return seen[1]


def _differ(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except Exception:
        return True


def _copy(value: Any) -> Any:
    """So that a change in place is seen, and does not reach the snapshot."""
    if type(value) is dict:
        return {key: _copy(each) for key, each in value.items()}
    return value.copy() if type(value) in (list, set) else value


# --- The process ------------------------------------------------------------------------------------------

# As ipykernel, the worker's shell sets them when it is made.
# fmt: off
_SET_BY_THE_SHELL = {
    "TERM": "xterm-color", "CLICOLOR": "1", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1",
    "PAGER": "cat", "GIT_PAGER": "cat",
}
# fmt: on


def _raw(text: str) -> Any:
    return os.fsencode(text) if os.supports_bytes_environ else text


def _read_environ(ip: Any) -> dict[Any, Any]:
    held = getattr(os.environ, "_data", None)  # decoding all of it would take 40 us
    return dict(held) if held is not None else dict(os.environ)


def _put_environ(name: Any, value: Any, ip: Any) -> None:
    os.environ[os.fsdecode(name)] = os.fsdecode(value)
    _follow_time_zone(name)


def _drop_environ(name: Any, ip: Any) -> None:
    os.environ.pop(os.fsdecode(name), None)
    _follow_time_zone(name)


def _follow_time_zone(name: Any) -> None:
    if os.fsdecode(name) == "TZ" and hasattr(time, "tzset"):
        time.tzset()  # who sets the variable says this, too


def _pack_environ(name: Any, old: Any, new: Any) -> Any:
    return _OMIT if os.fsdecode(name) == SESSION_MARK else new  # each process keeps its own


def _read_cwd(ip: Any) -> dict[Any, Any]:
    try:
        return {"cwd": os.getcwd()}
    except OSError:
        return {}  # it was deleted


def _put_cwd(key: Any, value: str, ip: Any) -> None:
    os.chdir(value)


def _stay(key: Any, ip: Any) -> None:
    """The kernel's directory was deleted, or nobody knows where the earlier one was."""


def _read_dhist(ip: Any) -> dict[Any, Any]:
    visited = ip.user_ns.get("_dh") or ()  # where %cd has been, for `%cd -`
    return {"_dh": tuple(visited)} if len(visited) > 1 else {}


def _put_dhist(key: Any, value: Any, ip: Any) -> None:
    ip.user_ns["_dh"][:] = value


def _drop_dhist(key: Any, ip: Any) -> None:
    ip.user_ns["_dh"][:] = _read_cwd(ip).values()


def _read_path(ip: Any) -> dict[Any, Any]:
    # A worker has got an absolute path in the place of "", which is the working directory at that time.
    return {"path": (tuple(sys.path), _read_cwd(ip).get("cwd") if "" in sys.path else None, None)}


def _pack_path(key: Any, old: Any, new: Any) -> Any:
    return (*new[:2], old[0]) if old and new else new


def _put_path(key: Any, value: Any, ip: Any) -> None:
    entries, _, was = value
    back: dict[Any, Any] = {}
    if was is not None and len(was) == len(sys.path):  # from a worker: "" comes home as ""
        back = {theirs: own for theirs, own in zip(was, sys.path, strict=True) if own == ""}
    sys.path[:] = [back.get(entry, entry) for entry in entries]


_INTERPRETER = {"recursionlimit": 1000, "int_max_str_digits": 4300}  # the latter is not in every Python 3.10


def _read_interpreter(ip: Any) -> dict[Any, Any]:
    now = {name: getattr(sys, f"get{name}", None) or getattr(sys, f"get_{name}", None) for name in _INTERPRETER}
    return {name: value for name, get in now.items() if get is not None and (value := get()) != _INTERPRETER[name]}


def _put_interpreter(name: Any, value: Any, ip: Any) -> None:
    put = getattr(sys, f"set{name}", None) or getattr(sys, f"set_{name}")
    put(value)


# --- Warnings ---------------------------------------------------------------------------------------------


class _ByName(type):
    """The category of a filter whose library is not imported: stands for the class of that place."""

    place: tuple[str, str]

    def __subclasscheck__(cls, other: type) -> bool:
        return any((each.__module__, each.__qualname__) == cls.place for each in other.__mro__)


def _plain_filter(entry: Any) -> Any:
    action, message, category, module, line = entry
    return action, _plain_pattern(message), _plain_category(category), _plain_pattern(module), line


def _plain_pattern(pattern: Any) -> Any:
    return (pattern.pattern, pattern.flags) if isinstance(pattern, re.Pattern) else pattern


def _plain_category(category: Any) -> Any:
    if isinstance(category, _ByName):
        return category.place
    place = category.__module__, category.__qualname__
    return place if _class_at(*place) is category else category


def _class_at(module: str, name: str) -> Any:
    if module == "__main__":  # that of the other process is another one
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _real_filter(entry: Any) -> Any:
    action, message, category, module, line = entry
    if isinstance(category, tuple):
        found = _class_at(*category)
        category = found if isinstance(found, type) else _ByName(category[1], (), {"place": category})
    return action, _real_pattern(message), category, _real_pattern(module), line


def _real_pattern(pattern: Any) -> Any:
    return re.compile(*pattern) if isinstance(pattern, tuple) else pattern


# Python's own, without -W.
_FIRST_FILTERS: list[Any] = [
    ("default", None, DeprecationWarning, "__main__", 0),
    *(("ignore", None, kind, None, 0) for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning)),
    ("ignore", None, ResourceWarning, None, 0),
]
_FIRST_PLAIN = tuple(map(_plain_filter, _FIRST_FILTERS))
_NUMPYS = ("ndarray", "ufunc", "dtype")
_TEXT = re.compile("", re.IGNORECASE).flags
# Added by ipykernel, IPython and numpy when they are imported or start: nobody's wish, and in the worker likewise.
_FAMILIAR = {
    ("ignore", (".*Trio's signal handling code might have collided.*", _TEXT), ("builtins", "RuntimeWarning"), None, 0),
    ("error", None, ("IPython.core.completer", "ProvisionalCompleterWarning"), None, 0),
    ("default", None, ("builtins", "DeprecationWarning"), ("__main__", re.compile("").flags), 0),
    *(("ignore", (f"numpy.{it} size changed", _TEXT), ("builtins", "Warning"), None, 0) for it in _NUMPYS),
    ("always", None, ("numpy.exceptions", "RankWarning"), None, 0),
    ("always", None, ("numpy", "RankWarning"), None, 0),
}  # fmt: skip


@_Remembered
def _changed_filters(filters: list[Any]) -> dict[Any, Any]:
    plain = tuple(map(_plain_filter, filters))
    if tuple(each for each in plain if each not in _FAMILIAR) == _FIRST_PLAIN and not sys.warnoptions:
        return {}
    return {"filters": plain}


def _read_warnings(ip: Any) -> dict[Any, Any]:
    seen: dict[Any, Any] = _changed_filters(warnings.filters)
    return seen


def _put_warnings(key: Any, value: Any, ip: Any) -> None:
    """The familiar filters of this process stay where they are: before the next one that both sides have. If there is
    none, all were reset, and so are these."""
    wanted = list(value)
    behind = None
    for entry in reversed([_plain_filter(each) for each in warnings.filters]):
        if entry in _FAMILIAR and entry not in value and behind is not None:
            wanted.insert(wanted.index(behind), entry)
        if entry in wanted:
            behind = entry
    _set_filters([_real_filter(entry) for entry in wanted])


def _drop_warnings(key: Any, ip: Any) -> None:
    kept = [entry for entry in warnings.filters if _plain_filter(entry) in _FAMILIAR]
    _set_filters(kept + _FIRST_FILTERS)


def _set_filters(entries: list[Any]) -> None:
    warnings.resetwarnings()  # tells the modules' registries of what was shown once that filters have changed
    filters: Any = warnings.filters
    filters[:] = entries


# --- Logging ----------------------------------------------------------------------------------------------


def _read_logging(ip: Any) -> dict[Any, Any]:
    manager = sys.modules["logging"].root.manager
    found: dict[Any, Any] = {"disable": manager.disable} if manager.disable else {}
    loggers = [
        ("root", manager.root),
        *(item for item in manager.loggerDict.items() if item[0] not in _KERNELS_LOGGERS),
    ]
    for name, logger in loggers:
        now = getattr(logger, "level", 0), getattr(logger, "propagate", True), getattr(logger, "handlers", None)
        if now != (0, True, []) and now[2] is not None:  # the last: a placeholder
            if now[0] != (30 if name == "root" else 0):
                found["level", name] = now[0]
            if not now[1]:
                found["propagate", name] = False
            if now[2] and any(type(handler).__name__ != "NullHandler" for handler in now[2]):
                found["handlers", name] = tuple(now[2])
    return found


_KERNELS_LOGGERS = {"tornado", "traitlets", "IPKernelApp"}


def _put_logging(key: Any, value: Any, ip: Any) -> None:
    logging = sys.modules["logging"]
    if key == "disable":
        logging.disable(value)
        return
    what, name = key
    logger = logging.root if name == "root" else logging.getLogger(name)
    if what == "level":
        logger.setLevel(value)
    elif what == "propagate":
        logger.propagate = value
    elif value and isinstance(value[0], tuple):
        mine = [handler for handler in logger.handlers if _plain_handler(handler) is None]
        logger.handlers[:] = [*mine, *map(_real_handler, value)]
    else:
        logger.handlers[:] = value


def _drop_logging(key: Any, ip: Any) -> None:
    default = {"level": 30 if key[1] == "root" else 0, "propagate": True, "handlers": ()}
    _put_logging(key, 0 if key == "disable" else default[key[0]], ip)


def _pack_logging(key: Any, old: Any, new: Any) -> Any:
    """Handlers as `logging.basicConfig` makes them are made again; files, sockets and the like stay where they are."""
    if key[0] != "handlers":
        return new
    plain_old, plain_new = (tuple(filter(None, map(_plain_handler, handlers or ()))) for handlers in (old, new))
    return _OMIT if plain_new == plain_old or not plain_new else plain_new


def _plain_handler(handler: Any) -> Any:
    logging = sys.modules["logging"]
    formatter = handler.formatter
    if type(handler) is not logging.StreamHandler or type(formatter) not in (logging.Formatter, type(None)):
        return None
    stream = next((name for name in ("stderr", "stdout") if handler.stream is getattr(sys, name)), None)
    if stream is None:
        return None
    if formatter is None:
        return stream, handler.level, None
    styles = {kind[0]: letter for letter, kind in logging._STYLES.items()}
    return stream, handler.level, (formatter._fmt, formatter.datefmt, styles.get(type(formatter._style), "%"))


def _real_handler(plain: Any) -> Any:
    logging = sys.modules["logging"]
    stream, level, form = plain
    handler = logging.StreamHandler(getattr(sys, stream))
    handler.setLevel(level)
    if form is not None:
        handler.setFormatter(logging.Formatter(*form))
    return handler


# --- decimal, numpy, pandas, matplotlib -------------------------------------------------------------------

# fmt: off
_DECIMAL: dict[str, Any] = {
    "prec": 28, "rounding": "ROUND_HALF_EVEN", "Emin": -999999, "Emax": 999999, "capitals": 1, "clamp": 0,
    "traps": frozenset({"InvalidOperation", "DivisionByZero", "Overflow"}),
}
# fmt: on


def _read_decimal(ip: Any) -> dict[Any, Any]:
    context = sys.modules["decimal"].getcontext()
    now = {name: getattr(context, name) for name in _DECIMAL}
    now["traps"] = frozenset(signal.__name__ for signal, on in now["traps"].items() if on)
    return {name: value for name, value in now.items() if value != _DECIMAL[name]}


def _put_decimal(key: Any, value: Any, ip: Any) -> None:
    context = sys.modules["decimal"].getcontext()
    if key != "traps":
        setattr(context, key, value)
        return
    for signal in context.traps:
        context.traps[signal] = signal.__name__ in value


# fmt: off
_NUMPY: dict[str, Any] = {
    "edgeitems": 3, "threshold": 1000, "floatmode": "maxprec", "precision": 8, "suppress": False, "linewidth": 75,
    "nanstr": "nan", "infstr": "inf", "sign": "-", "formatter": None, "legacy": False, "override_repr": None,
    "errors": {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
}
# fmt: on


def _read_numpy(ip: Any) -> dict[Any, Any]:
    numpy = sys.modules["numpy"]
    now = {**numpy.get_printoptions(), "errors": numpy.geterr()}
    return {name: _copy(value) for name, value in now.items() if name in _NUMPY and value != _NUMPY[name]}


def _put_numpy(name: Any, value: Any, ip: Any) -> None:
    numpy = sys.modules["numpy"]
    if name == "errors":
        numpy.seterr(**value)
    else:  # all of them: set_printoptions puts those that are not said back to None
        numpy.set_printoptions(**{**numpy.get_printoptions(), name: value})


def _read_pandas(ip: Any) -> dict[Any, Any]:
    # What `pandas.get_option` reads, too; that takes 5 us for each of them.
    return dict(_changed_options(sys.modules["pandas._config.config"]._global_config))


@_Remembered
def _changed_options(config: dict[str, Any]) -> dict[Any, Any]:
    known = sys.modules["pandas._config.config"]._registered_options
    found: dict[Any, Any] = {}
    groups: list[tuple[str, dict[str, Any]]] = [("", config)]
    for prefix, group in groups:
        for name, value in group.items():
            key = prefix + name
            if key not in known:
                groups.append((f"{key}.", value))
            elif not _same(value, known[key].defval):
                found[key] = value
    return found


def _put_pandas(key: Any, value: Any, ip: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecated option has warned where it was set
        sys.modules["pandas"].set_option(key, value)


def _drop_pandas(key: Any, ip: Any) -> None:
    known = sys.modules["pandas._config.config"]._registered_options
    _put_pandas(key, known[key].defval, ip)


_OWN_RC = ("backend", "backend_fallback", "interactive")  # parts of their own; the second goes with the first
_first_rc: dict[str, Any] = {}  # what the import gave


def _first() -> dict[str, Any]:
    if not _first_rc:
        matplotlib = sys.modules["matplotlib"]
        # A copy: its lists are those of rcParams itself, and `rcParams["font.sans-serif"].insert(0, ...)` changes both.
        _first_rc.update(_copy(dict(dict.items(matplotlib.rcParamsOrig))))
    return _first_rc


def _read_rc(ip: Any) -> dict[Any, Any]:
    # Past rcParams' own ways to read: they find a backend for those who ask.
    return dict(_changed_rc(dict(dict.items(sys.modules["matplotlib"].rcParams))))


@_Remembered
def _changed_rc(now: dict[str, Any]) -> dict[Any, Any]:
    first = _first()
    return {key: value for key, value in now.items() if key not in _OWN_RC and not _same(value, first.get(key))}


def _put_rc(key: Any, value: Any, ip: Any) -> None:
    rc = sys.modules["matplotlib"].rcParams
    if not dict.__contains__(rc, key):
        raise KeyError(f"matplotlib has no rcParams[{key!r}]")
    dict.__setitem__(rc, key, _copy(value))  # it was checked where it was set


def _drop_rc(key: Any, ip: Any) -> None:
    _put_rc(key, _first()[key], ip)


_INLINE_MODULE = "matplotlib_inline.backend_inline"
_FILE_BACKENDS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}  # they need no window and no widget


def _read_backend(ip: Any) -> dict[Any, Any]:
    name = dict.get(sys.modules["matplotlib"].rcParams, "backend")
    if not isinstance(name, str) or name in ("inline", f"module://{_INLINE_MODULE}"):  # or nobody has asked for one yet
        return {}
    return {"backend": name}


def _put_backend(key: Any, value: Any, ip: Any) -> None:
    sys.modules["matplotlib"].use(value)


def _drop_backend(key: Any, ip: Any) -> None:
    sys.modules["matplotlib"].use(os.environ.get("MPLBACKEND") or f"module://{_INLINE_MODULE}")


def _pack_backend(key: Any, old: Any, new: Any) -> Any:
    return new if (new or old).lower() in _FILE_BACKENDS else _OMIT


def _read_interactive(ip: Any) -> dict[Any, Any]:
    # The inline backend turns it on when it joins the shell; then it is off only after plt.ioff().
    on = dict.get(sys.modules["matplotlib"].rcParams, "interactive")
    return {} if on or not _has_joined(ip) else {"interactive": False}


def _put_interactive(key: Any, value: Any, ip: Any) -> None:
    if not _has_joined(ip):
        sys.modules[_INLINE_MODULE]._enable_matplotlib_integration()
    sys.modules["matplotlib"].interactive(value)


def _has_joined(ip: Any) -> bool:
    flush = sys.modules[_INLINE_MODULE].flush_figures
    return flush in ip.events.callbacks["post_execute"]


# fmt: off
_INLINE: dict[str, Any] = {
    "close_figures": True, "figure_formats": {"png"}, "print_figure_kwargs": {"bbox_inches": "tight"}, "rc": {},
}
# fmt: on


def _read_inline(ip: Any) -> dict[Any, Any]:
    cls = sys.modules["matplotlib_inline.config"].InlineBackend
    if not cls.initialized():
        configured = ip.config.get("InlineBackend", {})  # of the profile
        return {name: value for name, value in _copy(dict(configured)).items() if name in _INLINE and _is_plain(value)}
    if (cls, "rc") not in _descriptors:
        _remember_traits(cls, _INLINE)
    return _deviating(cls.instance(), _INLINE)


def _put_inline(name: Any, value: Any, ip: Any) -> None:
    setattr(sys.modules["matplotlib_inline.config"].InlineBackend.instance(parent=ip), name, _copy(value))


# --- Settings of IPython ----------------------------------------------------------------------------------

# fmt: off
_SHELL = {
    "ast_node_interactivity": "last_expr", "autoawait": True, "autocall": 0, "colors": "neutral",
    "object_info_string_level": 0, "show_rewritten_input": True, "sphinxify_docstring": False,
}
_PLAIN_TEXT: dict[str, Any] = {
    "float_precision": "", "max_seq_length": 1000, "max_width": 79, "newline": "\n", "pprint": True, "verbose": False,
}
# fmt: on
_NOT_OTHERS = ("IPython.", "ipykernel.", "comm.", "traitlets.", "matplotlib_inline.", "jupyter_tasks.", "__main__.")

_defaults: dict[type, dict[str, Any]] = {}
_descriptors: dict[tuple[type, str], Any] = {}  # traits, by the class that has them


def _configured(ip: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The objects whose settings count, and the defaults of these."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "InteractiveShell": (ip, _shell_defaults(ip)),
        "MagicsManager": (ip.magics_manager, {"auto_magic": True}),
        "InteractiveTB": (ip.InteractiveTB, {"mode": "Context"}),
    }
    for mime, formatter in ip.display_formatter.formatters.items():
        found[mime] = formatter, _PLAIN_TEXT if mime == "text/plain" else {"enabled": True}
    for each in ip.configurables:  # of extensions, such as SqlMagic
        cls = type(each)
        if hasattr(cls, "trait_defaults") and not f"{cls.__module__}.".startswith(_NOT_OTHERS):
            if cls not in _defaults:
                _defaults[cls] = {name: each.trait_defaults(name) for name in each.trait_names(config=True)}
            found[cls.__name__] = each, _defaults[cls]
    return found


def _shell_defaults(ip: Any) -> dict[str, Any]:
    cls = type(ip)
    if cls not in _defaults:
        # Not all versions have all of them, and some spell the colours differently. A class attribute that the user
        # has assigned has replaced the trait: then ours is the default.
        _defaults[cls] = {
            name: getattr(getattr(cls, name), "default_value", default)
            for name, default in _SHELL.items()
            if hasattr(cls, name)
        }
        _remember_traits(cls, _SHELL)
        for formatter in ip.display_formatter.formatters.values():
            _remember_traits(type(formatter), {**_PLAIN_TEXT, "enabled": True})
    return _defaults[cls]


def _remember_traits(cls: type, names: Mapping[str, Any]) -> None:
    for owner in cls.__mro__:
        for name in names.keys() & vars(owner).keys():
            if hasattr(vars(owner)[name], "default_value"):
                _descriptors.setdefault((owner, name), vars(owner)[name])


def _heal(ip: Any) -> None:
    """`InteractiveShell.ast_node_interactivity = 'all'` replaces the trait: puts it back into its class."""
    for (owner, name), descriptor in _descriptors.items():
        if vars(owner).get(name) is not descriptor:
            setattr(owner, name, descriptor)
            if isinstance(ip, owner):
                vars(ip).pop(name, None)  # assigned while there was no trait; it would win over the class next time


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None | list | dict | set | tuple)


def _deviating(owner: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, default in defaults.items():
        value = getattr(owner, name)
        if value is not default and value != default and _is_plain(value):
            found[name] = _copy(value)
    return found


def _read_settings(ip: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for label, (owner, defaults) in _configured(ip).items():
        for name, value in _deviating(owner, defaults).items():
            found[label, name] = value
    return found


def _put_settings(key: Any, value: Any, ip: Any) -> None:
    label, name = key
    owner, _ = _configured(ip).get(label, (None, None))
    if owner is None:
        return  # of an extension that could not be loaded, which was said
    if label == "InteractiveTB":
        owner.set_mode(value)
        return
    numpy = sys.modules.get("numpy") if name == "float_precision" else None
    precision = numpy.get_printoptions()["precision"] if numpy is not None else None
    setattr(owner, name, _copy(value))
    if numpy is not None:
        _put_numpy("precision", precision, ip)  # %precision sets it along; it is said by the part of numpy


def _drop_settings(key: Any, ip: Any) -> None:
    label, name = key
    _put_settings(key, _configured(ip)[label][1][name], ip)


# --- What was registered with IPython ---------------------------------------------------------------------

_OWN_EXTENSIONS = {"jupyter_tasks", "storemagic", "IPython.extensions.storemagic"}
_brought: dict[Any, Any] = {}  # extensions that were loaded for the kernel: they stay, for its next cell
_KEPT = {"extensions": _brought}
_failed: set[str] = set()  # they have been said once


def _read_extensions(ip: Any) -> dict[Any, Any]:
    return {name: True for name in ip.extension_manager.loaded if name not in _OWN_EXTENSIONS}


def _put_extension(name: Any, value: Any, ip: Any) -> None:
    if name in _failed:
        return
    try:
        with _unheard():
            ip.extension_manager.load_extension(name)
    except BaseException:
        _failed.add(name)
        raise
    _brought[name] = True


def _drop_extension(name: Any, ip: Any) -> None:
    _brought.pop(name, None)
    try:
        with _unheard():
            ip.extension_manager.unload_extension(name)
    finally:
        ip.extension_manager.loaded.discard(name)  # it has no way to be unloaded: the next %load_ext does its work


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What it prints was printed where the user loaded it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _is_notebooks(thing: Any) -> bool:
    """Whether it is a function, class or instance that was written in the notebook, or a method or partial of one."""
    if str(type(thing).__module__).startswith("IPython."):
        return False  # reading an attribute of IPython 9's lazy magics would import them
    related = (thing, type(thing), getattr(thing, "func", None), type(getattr(thing, "__self__", None)))
    return any(getattr(each, "__module__", None) == "__main__" for each in related)


_first_tables: dict[str, dict[Any, Any]] = {}  # how the shell's tables looked when they were first seen


def _first_entry(table: str, key: Any) -> Any:
    """What an entry of the notebook's has covered."""
    entry = _first_tables.get(table, {}).get(key)
    return None if entry is None or _is_notebooks(entry) else entry


@_Remembered
def _notebooks_magics(lines: dict[str, Any], cells: dict[str, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for kind, table in (("line", lines), ("cell", cells)):
        _first_tables.setdefault(kind, table)
        for name, entry in table.items():
            if _is_notebooks(entry):
                owner = type(getattr(entry, "__self__", None))
                if getattr(owner, "registered", False):  # it is a class of magics, to be made anew for the other shell
                    found["class", owner.__name__] = owner
                else:
                    found[kind, name] = entry
    return found


def _read_magics(ip: Any) -> dict[Any, Any]:
    tables = ip.magics_manager.magics
    found: dict[Any, Any] = dict(_notebooks_magics(tables["line"], tables["cell"]))
    for key, cls in found.items():
        if key[0] == "class":
            instance = dict.get(ip.magics_manager.registry, key[1])
            found[key] = cls, {name: each for name, each in vars(instance).items() if name not in _OF_ALL_MAGICS}
    return found


_OF_ALL_MAGICS = {
    *("shell", "magics", "options_table", "_load_config", "_trait_values", "_trait_notifiers", "_trait_validators"),
    *("_cross_validation_lock", "_obj_ref", "registered"),
}


def _put_magic(key: Any, value: Any, ip: Any) -> None:
    kind, name = key
    if kind != "class":
        ip.register_magic_function(value, kind, name)
        return
    cls, state = value
    registry = ip.magics_manager.registry
    if type(dict.get(registry, name)) is not cls:
        ip.register_magics(cls)
    held = vars(dict.get(registry, name))
    for gone in held.keys() - state.keys() - _OF_ALL_MAGICS:
        del held[gone]
    held.update(state)


def _drop_magic(key: Any, ip: Any) -> None:
    manager = ip.magics_manager
    if key[0] == "class":
        owner = dict.get(manager.registry, key[1])
        found = [(kind, name) for kind, table in manager.magics.items() for name, entry in table.items()
                 if type(entry) is types.MethodType and entry.__self__ is owner]  # fmt: skip
        manager.registry.pop(key[1], None)
        ip.configurables[:] = [each for each in ip.configurables if each is not owner]
    else:
        found = [key]
    for kind, name in found:
        manager.magics[kind].pop(name, None)
        covered = _first_entry(kind, name)
        if covered is not None:
            manager.magics[kind][name] = covered


@_Remembered
def _changed_aliases(lines: dict[str, Any], defaults: list[tuple[str, str]]) -> dict[Any, Any]:
    now = {name: entry.cmd for name, entry in lines.items() if type(entry).__name__ == "Alias"}
    first = dict(defaults)
    # Without colours IPython itself leaves --color out. %rehashx makes one of each program, thousands, by its own name.
    kept = {
        n: c for n, c in now.items() if c != n and c.replace(" --color", "") != first.get(n, "").replace(" --color", "")
    }
    return kept | {name: None for name in first if name not in now}


def _read_aliases(ip: Any) -> dict[Any, Any]:
    return dict(_changed_aliases(ip.magics_manager.magics["line"], ip.alias_manager.default_aliases))


def _put_alias(name: Any, value: Any, ip: Any) -> None:
    manager = ip.alias_manager
    if manager.is_alias(name):
        manager.undefine_alias(name)
    if value is not None:
        manager.define_alias(name, value)


def _drop_alias(name: Any, ip: Any) -> None:
    _put_alias(name, dict(ip.alias_manager.default_aliases).get(name), ip)


@_Remembered
def _printers(*tables: dict[Any, Any]) -> dict[Any, Any]:
    """The formatters of the notebook's functions or types, in tables of printers by type, two for each mime type."""
    found: dict[Any, Any] = {}
    for number, table in enumerate(tables):
        _first_tables.setdefault(f"printers {number}", table)
        for kind, printer in table.items():
            place = kind if isinstance(kind, tuple) else (kind.__module__, kind.__name__)
            own = place[0] == "__main__" and kind is not place
            if own or _is_notebooks(printer):
                found[(number // 2, kind) if own else (number // 2, *place)] = printer
    return found


def _printer_tables(ip: Any) -> list[dict[Any, Any]]:
    formatters = ip.display_formatter.formatters.values()
    return [table for each in formatters for table in (each.type_printers, each.deferred_printers)]


def _read_formatters(ip: Any) -> dict[Any, Any]:
    mimes = list(ip.display_formatter.formatters)
    return {(mimes[key[0]], *key[1:]): printer for key, printer in _printers(*_printer_tables(ip)).items()}


def _put_formatter(key: Any, value: Any, ip: Any) -> None:
    mime, *kind = key
    formatter = ip.display_formatter.formatters[mime]
    cls = kind[0] if len(kind) == 1 else _class_at(*kind)
    if isinstance(cls, type):
        formatter.for_type(cls, value)
    else:  # when an object of that type is shown for the first time
        formatter.for_type_by_name(*kind, value)


def _drop_formatter(key: Any, ip: Any) -> None:
    mime, *kind = key
    number = 2 * list(ip.display_formatter.formatters).index(mime)
    formatter = ip.display_formatter.formatters[mime]
    cls = kind[0] if len(kind) == 1 else _class_at(*kind)
    for place, table in ((cls, formatter.type_printers), (tuple(kind), formatter.deferred_printers)):
        table.pop(place, None)
        covered = _first_entry(f"printers {number}", place)
        if covered is not None:
            table[place] = covered
        number += 1


# --- Hooks of the notebook: events, transformers, a handler for errors ------------------------------------

# A worker has them so that a cell can look at them and take them away; the kernel calls them. It triggers the events of
# the %%remote cell itself, hands over a text that is transformed already, and shows the error in its own way.
_MENTIONED = {"events": "events", "custom_exc": "custom_exc"}  # most cells do not look at them


class _Silent:
    """Stands for such a hook in a worker: equal to it, but does nothing when it is called."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __eq__(self, other: object) -> bool:
        return bool(self.function == (other.function if isinstance(other, _Silent) else other))

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None


class _Later(_Silent):
    """A transformer of a text that was transformed before it came: only what follows is new."""

    _has_begun = False

    def __call__(self, lines: Any) -> Any:
        begun, self._has_begun = self._has_begun, True
        return self.function(lines) if begun else lines


class _SilentList(list[Any]):
    """Callbacks that the cell registers while it runs: the kernel will call them, at this very cell's end."""

    def append(self, each: Any) -> None:
        super().append(_Silent(each) if _is_notebooks(each) else each)


def leave_events_to_the_kernel(ip: Any) -> None:
    """For a cell that ends in the kernel like one of its own. `restore` undoes it."""
    callbacks = ip.events.callbacks
    callbacks.update({event: _SilentList(each) for event, each in callbacks.items()})
    register = ip.set_custom_exc
    ip.set_custom_exc = lambda kinds, handler: register(kinds, _Silent(handler) if _is_notebooks(handler) else handler)


def _hear_events_again(ip: Any) -> None:
    callbacks = ip.events.callbacks
    callbacks.update({event: list(each) for event, each in callbacks.items() if type(each) is _SilentList})
    vars(ip).pop("set_custom_exc", None)


def _own_hooks(hooks: list[Any]) -> list[Any]:
    found = [each.function if isinstance(each, _Silent) else each for each in hooks]
    return [each for each in found if _is_notebooks(each) and type(each).__hash__ is not None]


def _read_events(ip: Any) -> dict[Any, Any]:
    callbacks = ip.events.callbacks
    return {(event, each): True for event, hooks in callbacks.items() if hooks for each in _own_hooks(hooks)}


def _put_event(key: Any, value: Any, ip: Any) -> None:
    event, function = key
    if function not in ip.events.callbacks[event]:
        list.append(ip.events.callbacks[event], _Silent(function) if _is_worker(ip) else function)


def _drop_event(key: Any, ip: Any) -> None:
    event, function = key
    ip.events.callbacks[event].remove(function)


def _is_worker(ip: Any) -> bool:
    return type(ip).__mro__[1].__module__.startswith("jupyter_tasks.")


def _transformers(ip: Any) -> dict[str, list[Any]]:
    manager = ip.input_transformer_manager
    return {
        "cleanup": manager.cleanup_transforms,
        "line": manager.line_transforms,
        "post": ip.input_transformers_post,
        "ast": ip.ast_transformers,
    }


def _read_transformers(ip: Any) -> dict[Any, Any]:
    return {(kind, each): True for kind, hooks in _transformers(ip).items() for each in _own_hooks(hooks)}


def _put_transformer(key: Any, value: Any, ip: Any) -> None:
    kind, transformer = key
    hooks = _transformers(ip)[kind]
    if transformer not in hooks:
        hooks.append(_Later(transformer) if kind in ("cleanup", "line") and _is_worker(ip) else transformer)


def _drop_transformer(key: Any, ip: Any) -> None:
    kind, transformer = key
    _transformers(ip)[kind].remove(transformer)


def _read_custom_exc(ip: Any) -> dict[Any, Any]:
    if not ip.custom_exceptions:
        return {}
    wrapped = ip.CustomTB.__func__  # set_custom_exc has put it round the handler
    cells = dict(zip(wrapped.__code__.co_freevars, wrapped.__closure__ or (), strict=True))
    handler = cells["handler"].cell_contents
    handler = handler.function if isinstance(handler, _Silent) else handler
    return {"handler": (handler, tuple(ip.custom_exceptions))} if _is_notebooks(handler) else {}


def _put_custom_exc(key: Any, value: Any, ip: Any) -> None:
    handler, kinds = value
    ip.set_custom_exc(kinds, _Silent(handler) if _is_worker(ip) else handler)


def _drop_custom_exc(key: Any, ip: Any) -> None:
    ip.set_custom_exc((), None)


# --- Names that Python shares: builtins, locale -----------------------------------------------------------

_first_builtins: dict[str, Any] = {}


def _read_builtins(ip: Any) -> dict[Any, Any]:
    now = vars(builtins)
    if not _first_builtins:
        _first_builtins.update((name, value) for name, value in now.items() if not _is_notebooks_builtin(name, value))
    if now == _first_builtins:
        return {}
    return {
        name: value
        for name, value in now.items()
        if _first_builtins.get(name, _OMIT) is not value and _is_notebooks_builtin(name, value)
    }


def _is_notebooks_builtin(name: str, value: Any) -> bool:
    if name.startswith("_"):
        return False
    is_value = _is_plain(value) or isinstance(value, types.ModuleType)
    return _is_notebooks(value) or (is_value and name not in ("None", "True", "False"))


def _put_builtin(name: Any, value: Any, ip: Any) -> None:
    setattr(builtins, name, value)


def _drop_builtin(name: Any, ip: Any) -> None:
    if name in _first_builtins:
        setattr(builtins, name, _first_builtins[name])
    elif hasattr(builtins, name):
        delattr(builtins, name)


_FIRST_LOCALE = locale.setlocale(locale.LC_ALL)  # a worker's begins with the same, from the same environment


def _read_locale(ip: Any) -> dict[Any, Any]:
    now = locale.setlocale(locale.LC_ALL)
    return {} if now == _FIRST_LOCALE else {"LC_ALL": now}


def _put_locale(key: Any, value: str, ip: Any) -> None:
    locale.setlocale(locale.LC_ALL, value)


# --- Settings of other libraries --------------------------------------------------------------------------


def _read_sklearn(ip: Any) -> dict[Any, Any]:
    config = sys.modules["sklearn._config"]
    first = config._global_config  # what each thread begins with
    return {name: value for name, value in config.get_config().items() if not _same(value, first.get(name))}


def _put_sklearn(name: Any, value: Any, ip: Any) -> None:
    sys.modules["sklearn._config"].set_config(**{name: value})


def _drop_sklearn(name: Any, ip: Any) -> None:
    _put_sklearn(name, sys.modules["sklearn._config"]._global_config[name], ip)


def _read_bokeh(ip: Any) -> dict[Any, Any]:
    kind = sys.modules["bokeh.io.state"].curstate().notebook_type
    return {} if kind is None else {"output_notebook": kind}


def _put_bokeh(key: Any, value: Any, ip: Any) -> None:
    sys.modules["bokeh.io.state"].curstate().output_notebook(value)  # else show() opens a file in a browser


def _drop_bokeh(key: Any, ip: Any) -> None:
    sys.modules["bokeh.io.state"].curstate().reset()


def _read_renderer(ip: Any) -> dict[Any, Any]:
    # Always said: plotly looks for its default in what is round the kernel, which may not be round a worker.
    return {"default": sys.modules["plotly.io._renderers"].renderers.default}


def _put_renderer(key: Any, value: Any, ip: Any) -> None:
    sys.modules["plotly.io._renderers"].renderers.default = value


def _read_templates(ip: Any) -> dict[Any, Any]:
    name = sys.modules["plotly.io._templates"].templates.default
    return {} if name == "plotly" or not isinstance(name, str | None) else {"default": name}


def _put_template(key: Any, value: Any, ip: Any) -> None:
    templates = sys.modules["plotly.io._templates"].templates
    if value is None or all(name in templates for name in value.split("+")):  # not one of the user's own making
        templates.default = value


def _altair() -> dict[str, Any]:
    altair = vars(sys.modules["altair"])
    themes = altair.get("themes") or altair["theme"]  # the latter since 5.5, a module with the same names
    return {"renderers": altair["renderers"], "data_transformers": altair["data_transformers"], "themes": themes}


def _read_altair(ip: Any) -> dict[Any, Any]:
    now = {name: (registry.active, dict(registry.options)) for name, registry in _altair().items()}
    return {name: value for name, value in now.items() if value not in (("default", {}), ("", {}))}


def _put_altair(name: Any, value: Any, ip: Any) -> None:
    active, options = value
    _altair()[name].enable(active, **options)


def _drop_altair(name: Any, ip: Any) -> None:
    _put_altair(name, ("default", {}), ip)


# Most of polars' options are environment variables; these are not.
# fmt: off
_POLARS: dict[str, Any] = {
    "set_fmt_float": "mixed", "set_float_precision": None, "set_thousands_separator": "",
    "set_decimal_separator": ".", "set_trim_decimal_zeros": False,
}
# fmt: on


def _read_polars(ip: Any) -> dict[Any, Any]:
    now = {name: get() for name, get in sys.modules["polars.config"]._POLARS_CFG_DIRECT_VARS.items()}
    return {name: value for name, value in now.items() if name in _POLARS and value != _POLARS[name]}


def _put_polars(name: Any, value: Any, ip: Any) -> None:
    getattr(sys.modules["polars.config"].Config, name)(value)


# --- The table --------------------------------------------------------------------------------------------

# In the order in which they are applied: an extension is imported with the path and the directory of the notebook, its
# settings come after it, and the filters last, for an import may add some.
# fmt: off
_PARTS = (
    _Part("environ", "os.environ[{!r}]", _read_environ, _put_environ, _drop_environ,
          inherited=True, pack=_pack_environ),
    _Part("cwd", "The working directory", _read_cwd, _put_cwd, _stay, inherited=True),
    _Part("dhist", "{}", _read_dhist, _put_dhist, _drop_dhist, shell=True),
    _Part("path", "sys.path", _read_path, _put_path, _stay, inherited=True, pack=_pack_path),
    _Part("interpreter", "sys.{}", _read_interpreter, _put_interpreter, _INTERPRETER),
    _Part("locale", "The locale", _read_locale, _put_locale, {"LC_ALL": _FIRST_LOCALE}),
    _Part("builtins", "builtins.{}", _read_builtins, _put_builtin, _drop_builtin),
    _Part("extensions", "The extension {}", _read_extensions, _put_extension, _drop_extension, shell=True),
    _Part("settings", "{}", _read_settings, _put_settings, _drop_settings, shell=True),
    _Part("inline", "InlineBackend.{}", _read_inline, _put_inline, _INLINE, "matplotlib_inline.config",
          "matplotlib.pyplot", shell=True),
    _Part("aliases", "The alias {}", _read_aliases, _put_alias, _drop_alias, shell=True),
    _Part("magics", "The magic {}", _read_magics, _put_magic, _drop_magic, shell=True),
    _Part("formatters", "The formatter {}", _read_formatters, _put_formatter, _drop_formatter, shell=True),
    _Part("events", "The callback {}", _read_events, _put_event, _drop_event, shell=True),
    _Part("transformers", "The transformer {}", _read_transformers, _put_transformer, _drop_transformer, shell=True),
    _Part("custom_exc", "The {} of set_custom_exc", _read_custom_exc, _put_custom_exc, _drop_custom_exc, shell=True),
    _Part("decimal", "decimal.getcontext().{}", _read_decimal, _put_decimal, _DECIMAL, "decimal"),
    _Part("numpy", "The option {} of numpy", _read_numpy, _put_numpy, _NUMPY, "numpy"),
    _Part("pandas", "The option {} of pandas", _read_pandas, _put_pandas, _drop_pandas, "pandas"),
    _Part("rcParams", "rcParams[{!r}]", _read_rc, _put_rc, _drop_rc, "matplotlib"),
    _Part("backend", "matplotlib's {}", _read_backend, _put_backend, _drop_backend, "matplotlib", pack=_pack_backend),
    _Part("interactive", "plt.ioff()", _read_interactive, _put_interactive, {"interactive": True},
          _INLINE_MODULE, shell=True),
    _Part("sklearn", "The setting {} of scikit-learn", _read_sklearn, _put_sklearn, _drop_sklearn, "sklearn"),
    _Part("bokeh", "bokeh's {}", _read_bokeh, _put_bokeh, _drop_bokeh, "bokeh.io.state"),
    _Part("renderer", "plotly's renderer", _read_renderer, _put_renderer, _stay, "plotly.io._renderers"),
    _Part("template", "plotly's template", _read_templates, _put_template, {"default": "plotly"},
          "plotly.io._templates"),
    _Part("altair", "altair's {}", _read_altair, _put_altair, _drop_altair, "altair"),
    _Part("polars", "The option {} of polars", _read_polars, _put_polars, _POLARS, "polars.config"),
    _Part("logging", "The logging {}", _read_logging, _put_logging, _drop_logging, "logging", pack=_pack_logging),
    _Part("warnings", "The filters of warnings", _read_warnings, _put_warnings, _drop_warnings),
)
# fmt: on
