"""Values to bytes and back, for code that was written in a notebook.

cloudpickle ships what lives in `__main__` by value. This module adds what a notebook needs on top:

- A function whose globals *are* the notebook's namespace travels without them, and is rebound to the
  loading side's namespace. (cloudpickle sends along the globals the function read; when such a function
  comes back, it would go on reading those old copies: silently wrong.)
- What cloudpickle cannot send or should not: lru_cache, singledispatch and cached_property in `__main__`,
  IPython's shell, open files (refused: it would send their content).
- A class that comes home finds the original and leaves it as it is.
- What cannot be pickled is refused with its path, `x['a'][0]`, and advice.
- Arrays leave the pickle as buffers (protocol 5); `shared` carries those without a copy.

How a namespace crosses: `dumps` writes, in front of the pickle, one call of `_namespace_of_this_load`, and
tells the pickler that the namespace dict is what that call returned (entry 0 of its memo). So a function's
globals and `globals()` inside a value both become "entry 0", and the loading side decides what that is.

Which thread: any; nothing is shared but two weak sets of classes. `loads` may be entered again by the
objects it builds: the namespace of the current load is kept per thread and put back.

This module must not know what a task, a ref or a worker is (refs come in through `reducers`), nor
import numpy, pandas or IPython: it recognises their objects by name.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import functools
import importlib
import io
import itertools
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cloudpickle

from jupyter_tasks.exceptions import JupyterTasksError, UnserializableError

__all__ = ["Culprit", "blame", "dumps", "loads"]

Namespace = dict[str, Any]

# Called first for every object that pickle has no opcode for. Returns a reduce value, or NotImplemented.
Reducers = Callable[[object], object]

# What the user calls the value: one name, or (only asked for when something cannot be sent) the names of
# its parts, such as {parameter: argument}, so that a path begins with a name the user knows.
Root = str | Callable[[], Mapping[str, object]]

PROTOCOL = 5


class _Places(Protocol):
    """Where the other side has an object, by its id here; None: nowhere."""

    def get(self, id: int, /) -> int | None: ...


def dumps(
    value: object,
    *,
    namespace: Namespace | None = None,
    root: Root = "value",
    reducers: Reducers | None = None,
    to: str = "a worker",
    memo: dict[int, Any] | None = None,
    known: _Places | None = None,
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickles `value`; the buffers (arrays) are views of the caller's memory, not copies.

    Args:
        namespace: the notebook's namespace. Functions that live in it travel without globals.
        root: what error messages call the value.
        reducers: a hook for objects only the caller knows.
        to: where the value goes, for error messages.
        memo: gets every object that was pickled but the namespace, by its place in the pickle (see `identity`).
        known: ids of objects that the other side has, with their places there; each travels as its place.

    Raises UnserializableError, which names the culprit, if the value or its own pickling code is at fault.
    MemoryError, KeyboardInterrupt and our own errors raised by `reducers` pass through. A failed dumps
    leaves nothing behind.
    """
    if _is_plain(value) and memo is None and known is None:
        return pickle.dumps(value, PROTOCOL), []
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        pickler = _Pickler(file, buffers.append, namespace, reducers)
        if known is not None:
            places = known.get
            pickler.persistent_id = lambda obj: places(id(obj))
        pickler.dump(value)
        if memo is not None:
            memo.update((place, held) for place, held in pickler.memo.copy().values() if held is not namespace)
    except (MemoryError, JupyterTasksError):
        raise
    except Exception as error:
        raise _refusal(value, root, namespace, reducers, to, error) from error
    return file.getvalue(), buffers  # getvalue gives the BytesIO's own bytes away: no copy


def loads(
    data: bytes | memoryview,
    buffers: Iterable[Any] = (),
    *,
    namespace: Namespace | None = None,
    memo: dict[int, Any] | None = None,
    originals: Mapping[int, Any] | None = None,
) -> Any:
    """Builds the value that `dumps` pickled.

    Functions of the sender's namespace are rebound to `namespace`. Without one they get a fresh dict, which
    all functions of this pickle share. Raises whatever the objects' own code raises.

    Args:
        memo: gets every object of the pickle but the namespace, by its place.
        originals: what stands for the places in it (`known`, on the other side).
    """
    if data[:1] != _GLOBAL:  # a pickle that was made without a namespace begins with the opcode PROTO
        return _unpickle(data, buffers, memo, originals)
    outer = _load.namespace
    _load.namespace = namespace
    try:
        return _unpickle(data, buffers, memo, originals)
    finally:
        _load.namespace = outer


def _unpickle(
    data: bytes | memoryview,
    buffers: Iterable[Any],
    memo: dict[int, Any] | None,
    originals: Mapping[int, Any] | None,
) -> Any:
    if memo is None and originals is None:
        return pickle.loads(data, buffers=buffers)
    unpickler = _Unpickler(io.BytesIO(data), buffers=buffers)
    unpickler.originals = originals or {}
    value = unpickler.load()
    if memo is not None:
        # Not the namespace: what becomes of it, name by name, is the caller's business.
        memo.update((place, held) for place, held in unpickler.memo.copy().items() if held is not _load.namespace)
    return value


class _Unpickler(pickle.Unpickler):
    originals: Mapping[int, Any]
    memo: Any

    def persistent_load(self, pid: Any) -> Any:
        return self.originals[pid]


# --- The short cut for plain values -----------------------------------------------------------------------

# Types that hold nothing. No others may be added: plain pickle sends classes and functions by their name,
# and a name in the kernel's `__main__` means nothing in a worker.
_ATOMS = frozenset({int, float, bool, type(None), str, bytes})
_FEW = 8  # items


def _is_plain(value: object) -> bool:
    """Whether plain pickle will do: atoms, a short tuple of them, or `(args, kwargs)` with atoms only."""
    # Costs 0.05 us for an atom, 0.25 us for `((1, "a"), {})`; the Pickler, which it saves, 2.5 us.
    kind = type(value)
    if kind is not tuple:
        return kind in _ATOMS
    items: tuple[object, ...] = value  # type: ignore[assignment]  # `kind is tuple` does not narrow
    if len(items) == 2 and type(items[1]) is dict and not items[1] and type(items[0]) is tuple:
        items = items[0]
    return len(items) <= _FEW and _ATOMS.issuperset(map(type, items))


# --- The namespace of a load ------------------------------------------------------------------------------


class _Load(threading.local):
    namespace: Namespace | None = None


_load = _Load()


def _namespace_of_this_load() -> Namespace:
    """The first thing a pickle with a namespace calls, and calls once."""
    if _load.namespace is not None:
        return _load.namespace
    return {"__name__": "__main__", "__builtins__": builtins}


# Opcodes: GLOBAL module name, EMPTY_TUPLE, REDUCE (call it), MEMOIZE (as entry 0), POP.
_GLOBAL = pickle.GLOBAL
_PREAMBLE = b"".join(
    [
        *(_GLOBAL, __name__.encode(), b"\n", _namespace_of_this_load.__name__.encode(), b"\n"),
        *(pickle.EMPTY_TUPLE, pickle.REDUCE, pickle.MEMOIZE, pickle.POP),
    ]
)


# --- The pickler ------------------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle publishes no types
    """cloudpickle's pickler with the additions listed at the top of this module."""

    def __init__(
        self,
        file: Any,
        buffer_callback: Callable[[pickle.PickleBuffer], object],
        namespace: Namespace | None,
        reducers: Reducers | None,
    ) -> None:
        # A dict of our own (0.5 us) in place of cloudpickle's ChainMap: pickle asks it once for each
        # instance, and a miss in a ChainMap costs 1 us. 1e5 instances: 66 ms instead of 143 ms.
        self.dispatch_table = {**copyreg.dispatch_table, **_reducers_by_type}
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self._namespace = namespace
        self._reducers = reducers
        if namespace is not None:
            self.dispatch_table[types.CellType] = self._reduce_cell
            # Ids of the cells that a function brought along. Its function, in the memo, keeps each alive.
            self._cells: set[int] = set()
            file.write(_PREAMBLE)
            self.memo = {id(namespace): (0, namespace)}

    def reducer_override(self, obj: Any) -> Any:
        """pickle calls this for everything but atoms and plain containers, before any other rule."""
        if self._reducers is not None:
            reduced = self._reducers(obj)
            if reduced is not NotImplemented:
                return reduced
        kind = type(obj)
        if kind is types.FunctionType:
            if self._namespace is not None and obj.__globals__ is self._namespace:
                return self._reduce_notebook_function(obj)
            if obj.__code__ is _singledispatch_code and not _is_importable(obj):
                return _reduce_singledispatch(obj)
            return super().reducer_override(obj)
        if issubclass(kind, type):
            return _reduce_class(obj, super().reducer_override(obj))
        if kind.__name__ in _SHELLS:
            return _this_shell, ()
        if obj is sys.stdout or obj is sys.stderr:  # a kernel's are ipykernel's own, with sockets and threads
            return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
        return NotImplemented

    def _reduce_notebook_function(self, func: types.FunctionType) -> tuple[Any, ...]:
        # As in cloudpickle, the function is made first and filled afterwards, so that it may refer to itself.
        # Unlike there, its cells travel as objects: functions that share a `nonlocal` go on sharing it.
        # A cell is made empty; the first function that brings it along also brings its contents.
        contents: list[tuple[types.CellType, object]] = []
        for cell in func.__closure__ or ():
            if id(cell) not in self._cells:
                self._cells.add(id(cell))
                try:
                    contents.append((cell, cell.cell_contents))
                except ValueError:  # not assigned yet
                    pass
        try:
            annotations = func.__annotations__
        except Exception:  # from 3.14 on they are evaluated here: a missing name is no reason to refuse
            annotations = {}
        attributes = {
            "__qualname__": func.__qualname__,
            "__module__": func.__module__,
            "__doc__": func.__doc__,
            "__defaults__": func.__defaults__,
            "__kwdefaults__": func.__kwdefaults__,
            "__annotations__": annotations,
        }
        made = (func.__code__, self._namespace, func.__name__, func.__closure__)
        state = (contents, attributes, func.__dict__, _used_submodules(func))
        return _make_function, made, state, None, None, _fill_function

    def _reduce_cell(self, cell: types.CellType) -> Any:
        if id(cell) in self._cells:
            return types.CellType, ()
        return _reducers_by_type[types.CellType](cell)


def _make_function(
    code: types.CodeType, namespace: Namespace, name: str, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    return types.FunctionType(code, namespace, name, None, closure)


def _fill_function(func: types.FunctionType, state: tuple[Any, ...]) -> None:
    contents, attributes, members, submodules = state
    for cell, value in contents:
        cell.cell_contents = value
    for name, value in attributes.items():
        setattr(func, name, value)
    func.__dict__.update(members)
    for name in submodules:
        importlib.import_module(name)


def _used_submodules(func: types.FunctionType) -> list[str]:
    """Submodules the function reaches through a package, which the worker may not have imported.

    `import concurrent.futures` binds only `concurrent`; the name says nothing of the submodule.
    """
    names = list(_code_names(func.__code__))
    found: list[str] = []
    packages = [module for name in names if isinstance(module := func.__globals__.get(name), types.ModuleType)]
    prefixes = [package.__name__ for package in packages if hasattr(package, "__path__")]
    for prefix in prefixes:  # grows while we walk it
        for name in names:
            submodule = f"{prefix}.{name}"
            if submodule in sys.modules and submodule not in found:
                found.append(submodule)
                prefixes.append(submodule)
    return found


def _code_names(code: types.CodeType) -> Iterator[str]:
    """Names the code, and code within it, may read as globals; attribute names are among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_names(constant)


# --- Classes ----------------------------------------------------------------------------------------------

# cloudpickle gives each class it sends by value an id, by which a class that arrives twice is the same class.
# But it also gives a class that comes *home* the attributes it left with, and so undoes what the kernel has
# changed since. The process in which a class was born owns it; copies elsewhere follow.
_born_here: weakref.WeakSet[type] = weakref.WeakSet()
_copies: weakref.WeakSet[type] = weakref.WeakSet()


def _reduce_class(cls: type, reduced: Any) -> Any:
    """cloudpickle's way, if by value (make, arguments, state, None, None, fill), with our steps around it."""
    if not isinstance(reduced, tuple) or len(reduced) != 6:
        return reduced
    if cls not in _copies:
        _born_here.add(cls)
    make, arguments, state, _, _, fill = reduced
    slots = vars(cls).get("__slots__")
    if slots and isinstance(slots, (str, tuple, list, dict)) and make.__name__ == "_make_skeleton_class":
        # Else a copy has a `__dict__` where the original has slots, and its instances cannot come home.
        arguments = (*arguments[:3], {**arguments[3], "__slots__": slots}, *arguments[4:])
    return _make_class, (make, arguments), (fill, state), None, None, _fill_class


def _make_class(make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    cls = make(*arguments)
    if cls not in _born_here:
        _copies.add(cls)
    return cls


def _fill_class(cls: type, state: tuple[Callable[[type, Any], object], Any]) -> None:
    fill, attributes = state
    if cls in _copies:
        fill(cls, attributes)


# --- Reducers of single types -----------------------------------------------------------------------------

_SHELLS = frozenset({"ZMQInteractiveShell", "TerminalInteractiveShell", "InteractiveShell"})
_any_dispatcher: Any = functools.singledispatch(lambda _: None)
_singledispatch_code = _any_dispatcher.__code__  # all dispatchers share it


def _is_importable(obj: Any) -> bool:
    """Whether the other side finds `obj` by its module and name. Never true for what is in `__main__`."""
    name = getattr(obj, "__module__", None)
    if not isinstance(name, str) or name == "__main__" or name not in sys.modules:
        return False
    by_value = cloudpickle.list_registry_pickle_by_value()
    if any(name == registered or name.startswith(registered + ".") for registered in by_value):
        return False
    found: Any = sys.modules[name]
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _this_shell() -> Any:
    """The shell of the process that loads: a shell is never sent. None where IPython is not running."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _method_of_this_shell(name: str) -> Callable[..., Any]:
    shell = _this_shell()
    if shell is not None:
        method: Callable[..., Any] = getattr(shell, name)
        return method
    if name == "get_ipython":  # what this name is in a notebook
        return _this_shell
    raise AttributeError(f"This value needs IPython's {name}(), and there is no IPython shell here.")


def _reduce_method(method: types.MethodType) -> tuple[Any, ...]:
    if type(method.__self__).__name__ in _SHELLS:
        return _method_of_this_shell, (method.__name__,)
    return types.MethodType, (method.__func__, method.__self__)


def _reduce_lru_cache(cached: Any) -> str | tuple[Any, ...]:
    """With its parameters, without its contents."""
    if _is_importable(cached):
        return str(cached.__qualname__)
    parameters = cached.cache_parameters()
    remade = ("__wrapped__", "cache_parameters", "__annotate__")
    members = {k: v for k, v in vars(cached).items() if k not in remade}
    return _make_lru_cache, (cached.__wrapped__, parameters["maxsize"], parameters["typed"]), members


def _make_lru_cache(func: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(func)


def _reduce_cached_property(prop: functools.cached_property[Any]) -> tuple[Any, ...]:
    """Before 3.12 it holds a lock."""
    members = {k: v for k, v in vars(prop).items() if k not in ("func", "lock")}
    return type(prop), (prop.func,), members


def _reduce_singledispatch(dispatcher: Any) -> tuple[Any, ...]:
    implementations = dict(dispatcher.registry)
    base = implementations.pop(object)
    own = ("registry", "dispatch", "register", "_clear_cache")
    members = {k: v for k, v in vars(dispatcher).items() if k not in own}
    attributes = {k: getattr(dispatcher, k) for k in functools.WRAPPER_ASSIGNMENTS[:4]}  # module, names, doc
    state = (list(implementations.items()), {**attributes, **members})
    return functools.singledispatch, (base,), state, None, None, _fill_singledispatch


def _fill_singledispatch(dispatcher: Any, state: tuple[list[tuple[type, Any]], dict[str, Any]]) -> None:
    implementations, attributes = state
    for cls, implementation in implementations:
        dispatcher.register(cls, implementation)
    for name, value in attributes.items():
        setattr(dispatcher, name, value)


def _reduce_singledispatchmethod(method: functools.singledispatchmethod[Any]) -> tuple[Any, ...]:
    """Some Pythons keep a weak cache in it."""
    return _make_singledispatchmethod, (method.func, method.dispatcher)


def _make_singledispatchmethod(func: Any, dispatcher: Any) -> functools.singledispatchmethod[Any]:
    method = functools.singledispatchmethod(func)
    method.dispatcher = dispatcher
    return method


class _OpenFileError(pickle.PicklingError):
    """cloudpickle would send the content of a file that is open for reading. Nobody asked for that."""


def _reduce_file(file: io.TextIOWrapper) -> Any:
    if file is sys.__stdout__ or file is sys.__stderr__:
        return getattr, (sys, "__stdout__" if file is sys.__stdout__ else "__stderr__")
    raise _OpenFileError("An open file cannot be sent to another process.")


# `maps[0]` of cloudpickle's ChainMap holds its own entries; copyreg's, the other part, may change later.
_reducers_by_type: dict[type, Callable[[Any], Any]] = {
    **cloudpickle.Pickler.dispatch_table.maps[0],
    types.MethodType: _reduce_method,
    functools._lru_cache_wrapper: _reduce_lru_cache,
    functools.cached_property: _reduce_cached_property,
    functools.singledispatchmethod: _reduce_singledispatchmethod,
    io.TextIOWrapper: _reduce_file,
}


# --- Naming the culprit -----------------------------------------------------------------------------------
#
# pickle knows the culprit: it is the last object it was asked to reduce. So one more pickling into nowhere
# finds it, and what remains is to find the way to it, by identity, without pickling anything again.

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


def _refusal(
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
    advice = culprit.advice if to == "a worker" else "Leave it out, or return plain data instead."
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


class _Nowhere:
    def write(self, data: object) -> None:
        pass


class _Probe(_Pickler):
    """Pickles into nowhere and remembers what it was asked to reduce last."""

    def __init__(self, namespace: Namespace | None, reducers: Reducers | None) -> None:
        super().__init__(_Nowhere(), lambda buffer: None, namespace, reducers)
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
                if type(child) in _ATOMS or id(child) in seen:
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
        if not _is_importable(obj):
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
        yield from (("attribute", name, child) for name, child in _attributes(obj))
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
    if _is_importable(func):
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
        for name in _code_names(code):
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


def _attributes(obj: object) -> Iterator[tuple[str, object]]:
    """From `__dict__` and `__slots__`, past any `__getattr__` or property of the object."""
    try:
        yield from list(object.__getattribute__(obj, "__dict__").items())
    except Exception:  # it has none, or a proxy's
        pass
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            try:
                child = object.__getattribute__(obj, mangled)
            except Exception:  # not assigned
                continue
            yield name, child


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
    if isinstance(error, _OpenFileError):
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
    "await it first and pass its result": ("coroutine _asyncio.Future _asyncio.Task asyncio.futures. asyncio.tasks."),
    "call its result() first and pass that": "concurrent.futures._base.Future",
    "start it inside the task": (
        "threading.Thread threading.Timer concurrent.futures. multiprocessing. multiprocess. subprocess. asyncio."
    ),
    "pass its items as a list, or share them through an actor": "queue. _queue.",
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
