"""Why a value cannot be pickled: where in it the culprit sits, and what the user can do.

pickle knows the culprit: it is the last object it was asked to reduce. So one more pickling into nowhere finds it, and
what remains is to find the way to it, by identity, without pickling anything again.

Loaded by `serialize.dumps` when it has failed, and only then. Thread: any.
"""

from __future__ import annotations

import collections
import functools
import itertools
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_tasks.exceptions import UnserializableError
from jupyter_tasks.wire.serialize import (
    ATOMS,
    Namespace,
    Nowhere,
    OpenFileError,
    Pickler,
    Reducers,
    Root,
    attributes_of,
    code_names,
    is_importable,
)

__all__ = ["Culprit", "blame", "refusal"]

SEARCH_LIMIT = 500_000  # objects to look into, about 1 s: a guess at what one waits for in an error message
ITEMS_LIMIT = 5_000_000  # items of one container looked at (numbers and strings take 50 ns each)
DEPTH_LIMIT = 40  # steps of a path; nobody reads a longer one
TRAIL = 64  # objects remembered before the culprit
TRIES = 16  # of those, how many may be pickled again to see whether they fail by themselves


@dataclass(frozen=True, slots=True)
class Culprit:
    """What cannot be sent.

    Attributes:
        path: where it sits, as "x['a'][0]" or "lock (captured by f)".
        type_name: its type, as "_thread.lock".
        reason: completes the sentence "<path> ...".
        advice: what the user can do, a sentence.
        name: what the user calls the value it sits in, as "x".
    """

    path: str
    type_name: str
    reason: str
    advice: str
    name: str


def refusal(
    value: object,
    root: Root,
    namespace: Namespace | None,
    reducers: Reducers | None,
    to: str,
    error: Exception,
) -> UnserializableError:
    try:
        culprit = blame(value, root, namespace=namespace, reducers=reducers)
    except Exception:  # code of the user's objects ran; the search must never hide the error itself
        name = root if isinstance(root, str) else "value"
        reason = f"cannot be pickled ({_text(error)})"
        culprit = Culprit(name, _type_name(value), reason, _general_advice, name)
    subject = "it" if culprit.path == culprit.name else culprit.path
    advice = "Leave it out, or return plain data instead."
    if to == "a worker":
        advice = culprit.advice
    elif to == "the kernel" and culprit.type_name in ("generator", "async_generator"):
        advice = "Return list(...) of it, or use @jt.remote(num_returns='streaming') for its items one by one."
    message = f"Cannot send {culprit.name!r} to {to}: {subject} {culprit.reason}. {advice}"
    return UnserializableError(message, path=culprit.path, type_name=culprit.type_name)


def blame(
    value: object,
    root: Root = "value",
    *,
    namespace: Namespace | None = None,
    reducers: Reducers | None = None,
) -> Culprit:
    """Finds out why `value` cannot be pickled, by pickling it once more (into nowhere).

    The work is bounded by that one pickling, SEARCH_LIMIT objects looked into and TRIES small picklings. May
    raise what the objects' own code raises.
    """
    probe = _Probe(namespace, reducers)
    error = probe.attempt(value)
    trail = [value, *probe.trail]
    starts = {root: value} if isinstance(root, str) else dict(root())
    if error is None or _is_too_deep(error):
        name = root if isinstance(root, str) else next(iter(starts), "value")
        if error is None:
            reason = "could not be pickled, but could when tried again: it is being changed meanwhile"
            return Culprit(name, _type_name(value), reason, "Send a copy of it.", name)
        reason = "is nested too deeply to be pickled"
        return Culprit(name, _type_name(value), reason, "Flatten it, for example into a list.", name)

    places = _search(starts, trail, namespace)
    last = trail[-1]
    hidden: object = None  # a culprit that no name leads to: made while pickling, or inside an extension type
    for suspect in reversed(trail[-TRIES:]):
        if _Probe(namespace, reducers).attempt(suspect) is None:
            continue
        place = places.get(id(suspect))
        if place is not None:
            return _describe(place, suspect if hidden is None else hidden, hidden is not None, error)
        if suspect is last:
            hidden = suspect
    place = places.get(id(value)) or _Place(value, None, "name", root if isinstance(root, str) else "value")
    return _describe(place, value if hidden is None else hidden, hidden is not None, error)


class _Probe(Pickler):
    """Pickles into nowhere and remembers what it was asked to reduce last."""

    def __init__(self, namespace: Namespace | None, reducers: Reducers | None) -> None:
        super().__init__(Nowhere(), lambda buffer: None, namespace, reducers)
        self.trail: collections.deque[object] = collections.deque(maxlen=TRAIL)

    def reducer_override(self, obj: Any) -> Any:
        self.trail.append(obj)
        return super().reducer_override(obj)

    def attempt(self, value: object) -> Exception | None:
        try:
            self.dump(value)
        except MemoryError:
            raise
        except Exception as error:
            return error
        return None


@dataclass(slots=True)
class _Place:
    """Where an object was met: one step from the place before."""

    obj: object
    before: _Place | None
    kind: str  # see _path
    key: object
    depth: int = 0


def _search(starts: Mapping[str, object], wanted: Sequence[object], namespace: Namespace | None) -> dict[int, _Place]:
    """Where the wanted objects are, by id: breadth first, so by the shortest path. Pickles nothing.

    Stops when the last of `wanted` is found.
    """
    ids = {id(obj) for obj in wanted}
    found: dict[int, _Place] = {}
    seen: set[int] = set()
    queue: list[_Place] = []  # also keeps every object seen alive, so that no id is used twice

    def meet(place: _Place) -> bool:
        """Notes the place; whether it is the one looked for."""
        seen.add(id(place.obj))
        queue.append(place)
        if id(place.obj) in ids:
            found[id(place.obj)] = place
        return place.obj is wanted[-1]

    for name, obj in starts.items():
        if meet(_Place(obj, None, "name", name)):
            return found
    for place in queue:  # grows while we walk it
        if place.depth == DEPTH_LIMIT:
            break
        try:
            for kind, key, child in _parts(place.obj, namespace):
                if type(child) in ATOMS or id(child) in seen:
                    continue
                if meet(_Place(child, place, kind, key, place.depth + 1)) or len(queue) >= SEARCH_LIMIT:
                    return found
        except Exception:  # the object's own code, such as a `__class__` or `items` that raises: look elsewhere
            continue
    return found


_Part = tuple[str, object, object]  # kind, key, child


def _parts(obj: Any, namespace: Namespace | None) -> Iterator[_Part]:
    """What pickle would go on to: the things an object holds, with how one gets to them."""
    if isinstance(obj, (dict, types.MappingProxyType)):
        yield from (("item", key, child) for key, child in _first(obj.items()))
        yield from (("key", None, key) for key in _first(obj))
    elif isinstance(obj, tuple) and hasattr(obj, "_fields"):
        yield from (("attribute", name, child) for name, child in zip(obj._fields, obj, strict=False))
    elif isinstance(obj, (list, tuple, collections.deque)):
        yield from (("item", index, child) for index, child in enumerate(_first(obj)))
    elif isinstance(obj, (set, frozenset)):
        yield from (("element", None, child) for child in _first(obj))
    elif isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj, namespace)
        return
    elif isinstance(obj, type):
        if not is_importable(obj):
            yield from (("attribute", name, child) for name, child in list(vars(obj).items()))
            yield from (("class", None, base) for base in obj.__bases__)
        return
    elif isinstance(obj, types.ModuleType):
        if obj.__name__ not in sys.modules:
            yield from (("attribute", name, child) for name, child in list(vars(obj).items()))
        return
    elif type(obj).__module__.partition(".")[0] in ("numpy", "pandas"):
        yield from _parts_of_table(obj)
    for cls in type(obj).__mro__:
        for name in _PARTS_BY_TYPE.get(cls, ()):
            child = getattr(obj, name, None)
            if child is not None:
                yield "attribute", name, child
    if type(obj) not in _PLAIN_CONTAINERS:
        yield from (("attribute", name, child) for name, child in attributes_of(obj).items())
        yield "class", None, type(obj)


def _first(items: Collection[Any]) -> list[Any]:
    """A copy, as another thread may change the container meanwhile; of a huge one, not all."""
    return list(itertools.islice(items, ITEMS_LIMIT))


_PLAIN_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})

_PARTS_BY_TYPE: dict[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    functools._lru_cache_wrapper: ("__wrapped__",),
    types.MethodType: ("__func__", "__self__"),
    types.BuiltinMethodType: ("__self__",),
    types.CellType: ("cell_contents",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    collections.defaultdict: ("default_factory",),
    BaseException: ("args",),
}


def _parts_of_function(func: types.FunctionType, namespace: Namespace | None) -> Iterator[_Part]:
    if is_importable(func):
        return
    code = func.__code__
    for name, cell in zip(code.co_freevars, func.__closure__ or (), strict=False):
        try:
            yield "captured", (name, func), cell.cell_contents
        except ValueError:  # not assigned yet
            pass
    positional = code.co_varnames[: code.co_argcount]
    defaults = func.__defaults__ or ()
    for name, child in zip(positional[len(positional) - len(defaults) :], defaults, strict=False):
        yield "default", (name, func), child
    for name, child in (func.__kwdefaults__ or {}).items():
        yield "default", (name, func), child
    yield from (("attribute", name, child) for name, child in list(vars(func).items()))
    if func.__globals__ is not namespace:  # else they stay behind
        for name in code_names(code):
            if name in func.__globals__:
                yield "global", (name, func), func.__globals__[name]


def _parts_of_table(obj: Any) -> Iterator[_Part]:
    """The Python objects in an object array, a Series or the columns of a DataFrame."""
    name = type(obj).__name__
    if name == "DataFrame":
        yield from (("item", label, column) for label, column in obj.items())
    elif name == "Series" and obj.dtype == object:
        yield from (("cell", index, child) for index, child in enumerate(obj.tolist()))
    elif name == "ndarray" and obj.dtype.hasobject and obj.dtype.names is None:
        kind = "item" if obj.ndim == 1 else "flat"
        yield from ((kind, index, child) for index, child in enumerate(obj.ravel().tolist()))


def _steps(place: _Place) -> list[_Place]:
    """From the name the user knows to the place."""
    steps = [place]
    while (before := steps[-1].before) is not None:
        steps.append(before)
    return steps[::-1]


def _path(place: _Place) -> str:
    """The place in words a Python user reads: `x['a'][0]`, `lock (captured by f)`."""
    path = note = ""
    for step in _steps(place):
        key = step.key
        if step.kind == "name":
            path = str(key)
        elif step.kind == "attribute":
            path = f"{path}.{key}"
        elif step.kind == "item":
            path = f"{path}[{_short_repr(key)}]"
        elif step.kind == "cell":
            path = f"{path}.iloc[{key}]"
        elif step.kind == "flat":
            path = f"{path}.flat[{key}]"
        elif step.kind == "key":
            path = f"(a key of {path})"
        elif step.kind == "element":
            path = f"(an element of {path})"
        elif step.kind == "class":
            path, note = _own_name(step.obj), ""
        else:  # what a function brings along has a name of its own
            assert isinstance(key, tuple)
            verb = {"captured": "captured by", "global": "global used by", "default": "default of"}[step.kind]
            path, note = key[0], f" ({verb} {_own_name(key[1])})"
    if place.kind in ("key", "element"):
        path = path[1:-1]
    return path + note


def _own_name(obj: Any) -> str:
    return str(obj.__qualname__).rpartition("<locals>.")[2]


def _short_repr(key: object) -> str:
    try:
        text = repr(key)
    except Exception:  # the user's own code
        text = f"<{_type_name(key)}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(place: _Place, culprit: object, inside: bool, error: Exception) -> Culprit:
    """In words. `inside`: no name leads to the culprit itself, it is somewhere in what is at the place."""
    type_name, text = _type_name(culprit), _text(error)
    hook = _raised_by_own_code(error)
    if isinstance(error, OpenFileError):
        name = getattr(culprit, "name", None)
        what = "an open file" + (f" ({name!r})" if isinstance(name, str) else "") + ", which cannot be sent"
    elif text.startswith(("cannot pickle ", "can't pickle ")):
        what = f"{_article(type_name)}, which cannot be pickled"
    elif hook is not None:
        what = f"{_article(type_name)}, whose {hook} raised {type(error).__name__}: {text}"
    else:
        what = f"{_article(type_name)}, which cannot be pickled ({text})"
    reason = f"(of type {_type_name(place.obj)}) holds {what}" if inside else f"is {what}"
    steps = _steps(place)
    return Culprit(_path(place), type_name, reason, _advice(steps, culprit), str(steps[0].key))


def _type_name(obj: object) -> str:
    return _full_name(type(obj))


def _full_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _article(noun: str) -> str:
    return f"{'an' if noun.lstrip('_')[:1].lower() in 'aeiou' else 'a'} {noun}"


def _text(error: BaseException) -> str:
    try:
        lines = str(error).splitlines()
    except Exception:  # the user's own code
        lines = []
    return (lines[0][:200] if lines else "") or type(error).__name__


def _is_too_deep(error: Exception) -> bool:
    """cloudpickle turns RecursionError into PicklingError; an endless `__getstate__` is another matter."""
    cause = error.__cause__ or error
    return isinstance(cause, RecursionError) and _raised_by_own_code(cause) is None


_PICKLE_HOOKS = frozenset({"__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"})


def _raised_by_own_code(error: BaseException) -> str | None:
    """The pickling method of the object's own class that raised the error, if one did."""
    hook: str | None = None
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_name
        if name in _PICKLE_HOOKS:
            hook = name
        traceback = traceback.tb_next
    return hook


_general_advice = "Leave it out or create it inside the task."

# By a type's full name, or the beginning of it (then with a dot at the end); the type's bases count too.
_ADVICE = {
    "pass its path and open it inside the task": (
        "_io. io. tempfile. h5py. netCDF4. zipfile. gzip. tarfile. mmap.mmap multiprocessing.shared_memory."
    ),
    "pass the path or URL and connect inside the task": (
        "sqlite3. sqlalchemy.engine. sqlalchemy.orm.session. psycopg. psycopg2. pymysql. mysql. MySQLdb. "
        "pyodbc. pymongo. redis. duckdb. _duckdb. oracledb. cx_Oracle. asyncpg."
    ),
    "connect inside the task": (
        "socket. _socket. ssl. _ssl. select. zmq. http.client. paramiko. grpc. aiohttp. smtplib. asyncio.streams."
    ),
    "pass a list of its items, or create it inside the task": (
        "generator async_generator itertools. map filter zip enumerate _csv."
    ),
    "pass the refs that it hands out, as in [f.remote(ref) for ref in generator]": (
        "jupyter_tasks.streams.ObjectRefGenerator"
    ),
    "await it first and pass its result": ("coroutine _asyncio.Future _asyncio.Task asyncio.futures. asyncio.tasks."),
    "call its result() first and pass that": "concurrent.futures._base.Future",
    "start it inside the task": (
        "threading.Thread threading.Timer concurrent.futures. multiprocessing. multiprocess. subprocess. asyncio."
    ),
    "pass its items as a list": "queue. _queue.",
    "create the bar inside the task, where it is shown as usual": "tqdm.",
    "pass the object itself, or a plain dict": "weakref weakref. _weakref. weakproxy weakcallableproxy",
    "pass its text, as traceback.format_exc() gives it": "frame traceback",
    "pass plain bytes or numbers and rebuild it inside the task": "_ctypes. ctypes.",
}
_ADVICE_BY_NAME = {name: advice for advice, names in _ADVICE.items() for name in names.split()}


def _advice(steps: Sequence[_Place], culprit: object) -> str:
    """For the outermost thing we know: a queue inside an executor is about the executor."""
    for step in steps:
        advice = _advice_for(step.obj)
        if advice is not None and step.obj is not culprit:
            return f"It belongs to {_path(step)} ({_article(_type_name(step.obj))}): {advice}."
    advice = _advice_for(culprit)
    return f"{advice[0].upper()}{advice[1:]}." if advice is not None else _general_advice


def _advice_for(obj: object) -> str | None:
    for cls in type(obj).__mro__[:-1]:
        name = _full_name(cls)
        for known, advice in _ADVICE_BY_NAME.items():
            if name == known or (known.endswith(".") and name.startswith(known)):
                return advice
    return None
