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
import copyreg
import functools
import importlib
import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import cloudpickle

from jupyter_tasks.exceptions import JupyterTasksError

__all__ = ["dumps", "loads"]  # and, for `culprit` and `identity`, what they need of the pickler

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
        pickler = Pickler(file, buffers.append, namespace, reducers)
        if known is not None:
            places = known.get
            pickler.persistent_id = lambda obj: places(id(obj))
        pickler.dump(value)
        if memo is not None:
            memo.update((place, held) for place, held in pickler.memo.copy().values() if held is not namespace)
    except (MemoryError, JupyterTasksError):
        raise
    except Exception as error:
        from jupyter_tasks.wire import culprit

        raise culprit.refusal(value, root, namespace, reducers, to, error) from error
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
ATOMS = frozenset({int, float, bool, type(None), str, bytes})
_FEW = 8  # items


def _is_plain(value: object) -> bool:
    """Whether plain pickle will do: atoms, a short tuple of them, or `(args, kwargs)` with atoms only."""
    # Costs 0.05 us for an atom, 0.25 us for `((1, "a"), {})`; the Pickler, which it saves, 2.5 us.
    kind = type(value)
    if kind is not tuple:
        return kind in ATOMS
    items: tuple[object, ...] = value  # type: ignore[assignment]  # `kind is tuple` does not narrow
    if len(items) == 2 and type(items[1]) is dict and not items[1] and type(items[0]) is tuple:
        items = items[0]
    return len(items) <= _FEW and ATOMS.issuperset(map(type, items))


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


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle publishes no types
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
            if obj.__code__ is _singledispatch_code and not is_importable(obj):
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
    names = list(code_names(func.__code__))
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


def code_names(code: types.CodeType) -> Iterator[str]:
    """Names the code, and code within it, may read as globals; attribute names are among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)


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


def is_importable(obj: Any) -> bool:
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
    if is_importable(cached):
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


class OpenFileError(pickle.PicklingError):
    """cloudpickle would send the content of a file that is open for reading. Nobody asked for that."""


def _reduce_file(file: io.TextIOWrapper) -> Any:
    if file is sys.__stdout__ or file is sys.__stderr__:
        return getattr, (sys, "__stdout__" if file is sys.__stdout__ else "__stderr__")
    raise OpenFileError("An open file cannot be sent to another process.")


# `maps[0]` of cloudpickle's ChainMap holds its own entries; copyreg's, the other part, may change later.
_reducers_by_type: dict[type, Callable[[Any], Any]] = {
    **cloudpickle.Pickler.dispatch_table.maps[0],
    types.MethodType: _reduce_method,
    functools._lru_cache_wrapper: _reduce_lru_cache,
    functools.cached_property: _reduce_cached_property,
    functools.singledispatchmethod: _reduce_singledispatchmethod,
    io.TextIOWrapper: _reduce_file,
}


def attributes_of(obj: object) -> dict[str, Any]:
    """All that an instance holds by name, in `__dict__` and slots; past any `__getattr__` or property of its own."""
    found: dict[str, Any] = {}
    names = list(copyreg._slotnames(type(obj)))  # type: ignore[attr-defined]  # as object.__reduce_ex__ does
    try:
        found.update(object.__getattribute__(obj, "__dict__"))
    except Exception:  # it has none, or a proxy's
        pass
    for name in names:
        try:
            found[name] = object.__getattribute__(obj, name)
        except Exception:  # not assigned
            continue
    return found
