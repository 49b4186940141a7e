"""Values to bytes and back, for code that was written in a notebook.

cloudpickle ships what lives in `__main__` by value. This module adds what a notebook needs on top:

- A function whose globals *are* the notebook's namespace travels without them, and is rebound to the
  loading side's namespace. (cloudpickle sends along the globals the function read; when such a function
  comes back, it would go on reading those old copies: silently wrong.)
- What cloudpickle cannot send or should not: lru_cache, singledispatch and cached_property in `__main__`,
  IPython's shell, open files (refused: it would send their content), closed ones, matches, generators that have ended.
- A class that comes home finds the original and leaves it as it is. None is made twice: what its metaclass and
  `__init_subclass__` have done when it was written, they do not do again where it arrives.
- An exception travels as it is, without its `__init__`, and with its causes.
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

import abc
import builtins
import contextlib
import copyreg
import enum
import functools
import importlib
import inspect
import io
import os
import pickle
import re
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import cloudpickle
from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_ID as _known_classes

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
        self._by_kind: dict[type, Callable[[Pickler, Any], Any] | None] = {}  # what `_way_for` has said
        self._chains = True  # see _chain_of
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
        try:
            way = self._by_kind[kind]
        except KeyError:
            way = self._by_kind[kind] = _way_for(kind)
        return NotImplemented if way is None else way(self, obj)

    def _reduce_function(self, func: types.FunctionType) -> Any:
        if self._namespace is not None and func.__globals__ is self._namespace:
            return self._reduce_notebook_function(func)
        if is_dispatcher(func):
            return _reduce_singledispatch(func)
        return super().reducer_override(func)

    def _reduce_class(self, cls: type) -> Any:
        return _reduce_class(cls, super().reducer_override(cls))

    def _refuse_part_of_shell(self, part: object) -> Any:
        raise pickle.PicklingError("it belongs to IPython's shell, and each process has its own")

    def _reduce_stream(self, stream: Any) -> Any:
        if stream is sys.stdout or stream is sys.stderr:  # a kernel's are ipykernel's own, with sockets and threads
            return getattr, (sys, "stdout" if stream is sys.stdout else "stderr")
        return NotImplemented

    def _reduce_exception(self, error: BaseException) -> Any:
        if type(error) in self.dispatch_table:
            return NotImplemented
        return _reduce_exception(error, self._chain_of(error))

    def _chain_of(self, error: BaseException) -> dict[str, object]:
        """Cause and context, unless they cannot be sent: they are no reason to refuse the error itself."""
        chain = {name: held for name in _CHAIN if (held := getattr(error, name))}
        if chain and self._chains:
            probe = Pickler(Nowhere(), lambda buffer: None, self._namespace, self._reducers)
            probe._chains = False  # it takes the errors behind these along: else each would double the work
            try:
                probe.dump(chain)
            except MemoryError:
                raise
            except Exception:
                return {}
        return chain

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


class Nowhere:
    """A file that keeps nothing."""

    def write(self, data: object) -> None:
        pass


def _way_for(kind: type) -> Callable[[Pickler, Any], Any] | None:
    """How the objects of a type are reduced, where pickle's own rules and the dispatch table do not do."""
    if kind is types.FunctionType:
        return Pickler._reduce_function
    if issubclass(kind, type):
        return Pickler._reduce_class
    if kind.__name__ in _SHELLS:
        return lambda _, shell: (_this_shell, ())
    if any(cls.__module__ == "IPython.core.magic" for cls in kind.__mro__):
        return Pickler._refuse_part_of_shell
    if kind.__name__ == "_TemporaryFileWrapper" and kind.__module__ == "tempfile":
        return lambda _, file: _reduce_temporary_file(file)
    if kind is type(sys.stdout) or kind is type(sys.stderr):
        return Pickler._reduce_stream
    if issubclass(kind, BaseException):
        return Pickler._reduce_exception if has_only(kind, BaseException) else None
    numpy: Any = sys.modules.get("numpy")
    if issubclass(kind, getattr(numpy, "ndarray", ())):  # numpy may be imported by half, by another thread
        if kind is numpy.ndarray:
            return lambda _, array: _reduce_array(array)
        # (A memmap's attributes are about its file. It has always gone as its numbers.)
        if has_only(kind, numpy.ndarray) and kind.__dictoffset__ and not issubclass(kind, numpy.memmap):
            return lambda _, array: _reduce_subclassed_array(array)
    return None


def has_only(kind: type, base: Any) -> bool:
    """Its pickling is that of `base`: no class in between has any of its own."""
    names = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)


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
    """cloudpickle's way, if by value (make, arguments, state, None, None, fill), with makers of our own."""
    if not isinstance(reduced, tuple) or len(reduced) != 6:
        return reduced
    if cls not in _copies:
        _born_here.add(cls)
    _, arguments, (attributes, _), _, _, _ = reduced
    if issubclass(cls, enum.Enum):
        return _reduce_enum(cls, arguments, attributes)
    meta, name, bases, kwargs, id, _ = arguments
    kwargs = {**kwargs, "__qualname__": cls.__qualname__}
    if meta is type and "__orig_bases__" in vars(cls):  # Generic looks at it when the class is made
        bases, kwargs["__orig_bases__"] = cls.__bases__, vars(cls)["__orig_bases__"]
    for attribute, value in vars(cls).items():  # what a base has, too, cloudpickle takes away
        if attribute not in attributes and attribute not in _MADE_ANEW and not isinstance(value, _OF_SLOTS):
            attributes[attribute] = value
    slots = vars(cls).get("__slots__")
    if isinstance(slots, (str, tuple, list, dict)):
        # Else a copy has a `__dict__` where the original has slots, and its instances cannot come home.
        kwargs["__slots__"] = slots
        for slot in (slots,) if isinstance(slots, str) else slots:
            attributes.pop(_mangled(cls, slot), None)
    return _make_class, (meta, name, bases, kwargs, id), attributes, None, None, _fill_class


_MADE_ANEW = ("__dict__", "__weakref__", "__module__", "__annotate_func__", "_abc_impl")
_OF_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _mangled(cls: type, name: str) -> str:
    is_private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if is_private else name


def _make_class(meta: type, name: str, bases: tuple[Any, ...], kwargs: dict[str, Any], id: str) -> type:
    known: type | None = _known_classes.get(id)
    if known is not None:
        return known
    body = {sys.intern(key): value for key, value in kwargs.items()}
    cls: type = cloudpickle.cloudpickle._lookup_class_or_track(id, _bare_class(meta, name, bases, body))
    _copies.add(cls)
    return cls


def _bare_class(meta: type, name: str, bases: tuple[Any, ...], body: dict[str, Any]) -> type:
    """As `class` makes it, but nothing of the notebook's own is told of it: it was told of the original."""
    written, bases = bases, types.resolve_bases(bases)
    teller: Any = next(cls for cls in meta.__mro__ if is_importable(cls))  # `type`, if no library's
    if teller is meta:
        quiet = _quiet(bases)
        if quiet is None:
            return types.new_class(name, written, {"metaclass": meta}, lambda namespace: namespace.update(body))
    namespace = {**teller.__prepare__(name, bases), **body}
    if bases is not written:
        namespace["__orig_bases__"] = written
    for extra in _quiet(bases) or [()]:
        cls: type = teller.__new__(meta, name, (*extra, *bases), dict(namespace))
        teller.__init__(cls, name, bases, namespace)
        if not extra:
            return cls
        try:
            type.__setattr__(cls, "__bases__", bases or (object,))
        except TypeError:  # "object layout differs": another one fits
            continue
        return cls
    raise AssertionError("the last one has no extra base")


def _quiet(bases: tuple[Any, ...]) -> list[tuple[type, ...]] | None:
    """Bases that keep a notebook's `__init_subclass__` from being called; the first that has the layout will do.

    None if there is nothing to keep from it.
    """
    if all(is_importable(cls) for base in bases for cls in base.__mro__ if "__init_subclass__" in vars(cls)):
        return None
    if any(base.__dictoffset__ for base in bases):
        return [(_Quiet,), (_QuietSlots,), ()]
    return [(_QuietSlots,), (_Quiet,), ()]


class _QuietSlots:
    __slots__ = ()

    @classmethod
    def __init_subclass__(cls, **kwargs: object) -> None:
        pass


class _Quiet:
    @classmethod
    def __init_subclass__(cls, **kwargs: object) -> None:
        pass


def _fill_class(cls: type, attributes: dict[str, Any]) -> None:
    if cls not in _copies:
        return
    registered = attributes.pop("_abc_impl", ())
    # Past a `__setattr__` of the metaclass, which was asked when the class was written. (The enums' own refuses.)
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
    if "__firstlineno__" in attributes:  # from 3.13 on; setting `__module__` takes it away
        type.__setattr__(cls, "__firstlineno__", attributes["__firstlineno__"])
    for subclass in registered:
        abc.ABCMeta.register(cls, subclass)  # type: ignore[arg-type]  # it has `_abc_impl`, so it is an ABCMeta's


_OF_ENUMS = ("_generate_next_value_", "_member_names_", "_member_map_", "_member_type_", "_value2member_map_")
_OF_MEMBERS = ("_value_", "_name_", "__objclass__", "_sort_order_")


def _reduce_enum(cls: Any, arguments: tuple[Any, ...], attributes: dict[str, Any]) -> tuple[Any, ...]:
    bases, name, qualname, _, module, id, _ = arguments
    members = {each: member.value for each, member in cls.__members__.items()}  # with aliases
    for each in (*_OF_ENUMS, *members):
        attributes.pop(each, None)
    notes = {
        each: {key: held for key, held in vars(member).items() if key not in _OF_MEMBERS}
        for each, member in cls.__members__.items()
        if hasattr(member, "__dict__")
    }
    state = (attributes, {each: note for each, note in notes.items() if note})
    return _make_enum, (bases, name, qualname, members, module, id), state, None, None, _fill_enum


def _make_enum(bases: tuple[Any, ...], name: str, qualname: str, members: dict[str, Any], module: str, id: str) -> type:
    known: type | None = _known_classes.get(id)
    if known is not None:
        return known
    cls: type = cloudpickle.cloudpickle._make_skeleton_enum(bases, name, qualname, members, module, id, None)
    _copies.add(cls)
    return cls


def _fill_enum(cls: Any, state: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    attributes, notes = state
    _fill_class(cls, attributes)
    if cls in _copies:
        for name, note in notes.items():
            cls.__members__[name].__dict__.update(note)


def _reduce_typevar(var: typing.TypeVar) -> Any:
    reduced = cloudpickle.cloudpickle._typevar_reduce(var)
    return (_make_typevar, (*reduced, var.__module__)) if reduced[0] is not getattr else reduced


def _make_typevar(make: Callable[..., Any], arguments: tuple[Any, ...], module: str) -> Any:
    var = make(*arguments)
    var.__module__ = module  # it takes that of its maker
    return var


# --- Exceptions -------------------------------------------------------------------------------------------

_CHAIN = ("__cause__", "__context__", "__suppress_context__")  # in this order: a cause suppresses the context
HEAP_TYPE = 1 << 9  # a flag of classes that were not compiled in


def _reduce_exception(error: BaseException, chain: dict[str, object]) -> Any:
    """Without its own `__init__`: `args` are what that has given to Exception's, not what it takes.

    The traceback stays: it holds the frames.
    """
    kind = type(error)
    initialized = isinstance(kind.__init__, types.FunctionType) or isinstance(kind.__new__, types.FunctionType)
    if not initialized and not chain:
        return NotImplemented
    make = (_make_exception, (kind, error.args)) if initialized else (kind, error.args)
    members = vars(error)
    slots = {name: held for name, held in attributes_of(error).items() if name not in members}
    return (*make, (members, {**slots, **chain}), None, None, _fill_exception)


def _make_exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    native: Any = next(cls for cls in kind.__mro__ if not cls.__flags__ & HEAP_TYPE)
    error: BaseException = native.__new__(kind, *args)
    try:
        native.__init__(error, *args)  # a SyntaxError's fields, say
    except TypeError:  # its own has not given it what it wants either
        error.args = args
    return error


def _fill_exception(error: BaseException, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    members, others = state
    vars(error).update(members)
    for name, value in others.items():
        object.__setattr__(error, name, value)


# --- Arrays -----------------------------------------------------------------------------------------------

_SMALL = 100_000  # bytes; as much as `shared` copies anyhow


def _reduce_array(value: Any) -> Any:
    """A small array with memory of its own gets its own over there, so that it can be resized."""
    if value.nbytes >= _SMALL or value.base is not None or value.dtype.hasobject:
        return NotImplemented
    make, arguments, *rest = value.__reduce_ex__(PROTOCOL)
    if rest or not arguments or type(arguments[0]) is not pickle.PickleBuffer:
        return NotImplemented
    return _make_small_array, (make, *arguments)


def _make_small_array(make: Callable[..., Any], *arguments: Any) -> Any:
    array = make(*arguments)
    return array.copy("K") if array.flags.writeable else array


def _reduce_subclassed_array(value: Any) -> Any:
    """With its attributes."""
    attributes = vars(value)
    if not attributes:
        return NotImplemented
    make, arguments, state = value.__reduce__()
    return make, arguments, (state, attributes), None, None, _fill_subclassed_array


def _fill_subclassed_array(array: Any, state: tuple[Any, dict[str, Any]]) -> None:
    content, attributes = state
    array.__setstate__(content)
    vars(array).update(attributes)


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


def is_dispatcher(func: types.FunctionType) -> bool:
    """A notebook's function with `@singledispatch`."""
    return func.__code__ is _singledispatch_code and not is_importable(func)


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


def _reduce_file(file: Any) -> Any:
    """A closed file, as `with open(...) as f` leaves it, becomes a closed one with the same name and mode."""
    if file is sys.__stdout__ or file is sys.__stderr__:
        return getattr, (sys, "__stdout__" if file is sys.__stdout__ else "__stderr__")
    if not _is_closed(file):
        raise OpenFileError("An open file cannot be sent to another process.")
    layers: list[tuple[type, tuple[Any, ...]]] = []
    if type(file) is io.TextIOWrapper:
        how = (file.encoding, file.errors, None, file.line_buffering, file.write_through)
        layers.append((io.TextIOWrapper, how))
        inner: Any = file.buffer
    else:
        inner = file
    if type(inner) in _BUFFERED:
        layers.append((type(inner), ()))
        inner = inner.raw
    if type(inner) is not io.FileIO:
        raise OpenFileError("An open file cannot be sent to another process.")
    attributes = {} if inner is file else getattr(file, "__dict__", {})  # `mode`, of a text file
    return _make_closed_file, (inner.name, inner.mode, layers[::-1], attributes)


_BUFFERED = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)


def _is_closed(file: Any) -> bool:
    try:
        return bool(file.closed)
    except ValueError:  # detached from what it wrapped
        return False


def _make_closed_file(name: Any, mode: str, layers: list[tuple[Any, tuple[Any, ...]]], attributes: Any) -> Any:
    # An own descriptor of nothing: with it no mode opens, creates or truncates anything.
    file: Any = io.FileIO(os.open(os.devnull, os.O_RDWR), mode)
    file.name = name
    for kind, arguments in layers:
        file = kind(file, *arguments)
    vars(file).update(attributes)
    file.close()
    return file


def _reduce_temporary_file(file: Any) -> Any:
    """A closed one. Without its attributes it cannot be asked for anything, not even by pickle."""
    if not file.file.closed:
        return NotImplemented
    return _make_temporary_file, (type(file), file.file, file.name)


def _make_temporary_file(kind: Any, file: Any, name: str) -> Any:
    return kind(file, name, delete=False)


def _reduce_buffer(buffer: Any) -> Any:
    """A closed one cannot tell its state."""
    if not buffer.closed:
        return buffer.__reduce_ex__(PROTOCOL)
    return _make_closed_buffer, (type(buffer),), dict(vars(buffer)) or None


def _make_closed_buffer(kind: Any) -> Any:
    buffer = kind()
    buffer.close()
    return buffer


_ITERATORS: list[Any] = [iter([]), iter(()), iter(""), iter("é"), reversed([])]  # one of each type


def _reduce_iterator(iterator: Any) -> Any:
    """One that has come to its end stays there."""
    make, arguments, *position = iterator.__reduce__()
    if not position:
        return _make_exhausted, (make, *arguments)
    return make, arguments, (*arguments, *position), None, None, _set_position


def _set_position(iterator: Any, state: tuple[Any, int]) -> None:
    """Also behind the end of a list that comes home shorter, and grows when the changes are applied."""
    items, position = state
    lacking = position + 1 - len(items) if isinstance(items, list) else 0
    if lacking > 0:
        list.extend(items, [None] * lacking)
    iterator.__setstate__(position)
    if lacking > 0:
        list.__delitem__(items, slice(-lacking, None))


def _make_exhausted(make: Callable[..., Any], *arguments: Any) -> Any:
    iterator = make(*arguments)
    for _ in iterator:
        pass
    return iterator


def _reduce_match(match: re.Match[Any]) -> tuple[Any, ...]:
    """By searching again, which finds the same: a match of `finditer` from where it begins."""
    for way, start in (("match", match.pos), ("search", match.pos), ("fullmatch", match.pos), ("match", match.start())):
        arguments = (match.re, way, match.string, start, match.endpos)
        if (found := _make_match(*arguments)) is not None and found.regs == match.regs:
            return _make_match, arguments
    raise pickle.PicklingError("cannot pickle 're.Match' object")


def _make_match(pattern: Any, way: str, string: Any, start: int, end: int) -> Any:
    return getattr(pattern, way)(string, start, end)


def _reduce_generator(kind: str, running: Any) -> tuple[Any, ...]:
    """One that has ended is empty wherever it is."""
    if _frame_of(running) is not None:
        raise TypeError(f"cannot pickle {type(running).__name__!r} object")  # as pickle says it
    return _make_ended, (kind, running.__name__, running.__qualname__)


def _frame_of(running: Any) -> Any:
    return getattr(running, {"generator": "gi_frame", "coroutine": "cr_frame"}.get(type(running).__name__, "ag_frame"))


def _make_ended(kind: str, name: str, qualname: str) -> Any:
    ended: Any = _ENDED[kind]()
    ended.__name__, ended.__qualname__ = name, qualname
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        (ended.__anext__() if kind == "async_generator" else ended).send(None)
    return ended


def _generator() -> Iterator[None]:
    return
    yield


async def _coroutine() -> None:
    pass


async def _async_generator() -> typing.AsyncIterator[None]:
    return
    yield


_ENDED: dict[str, Callable[[], Any]] = {
    "generator": _generator,
    "coroutine": _coroutine,
    "async_generator": _async_generator,
}


def _reduce_context(manager: Any) -> Any:
    """One that was not entered is made again. `@tagged("b")` keeps such a one, and makes others from it itself."""
    begun = inspect.getgeneratorstate(manager.gen) != inspect.GEN_CREATED if inspect.isgenerator(manager.gen) else True
    if begun or not hasattr(manager, "func"):
        return manager.__reduce_ex__(PROTOCOL)
    return type(manager), (manager.func, manager.args, manager.kwds)


# `maps[0]` of cloudpickle's ChainMap holds its own entries; copyreg's, the other part, may change later.
_reducers_by_type: dict[type, Callable[[Any], Any]] = {
    **cloudpickle.Pickler.dispatch_table.maps[0],
    types.MethodType: _reduce_method,
    functools._lru_cache_wrapper: _reduce_lru_cache,
    functools.cached_property: _reduce_cached_property,
    functools.singledispatchmethod: _reduce_singledispatchmethod,
    typing.TypeVar: _reduce_typevar,
    re.Match: _reduce_match,
    **dict.fromkeys(map(type, _ITERATORS), _reduce_iterator),
    types.GeneratorType: functools.partial(_reduce_generator, "generator"),
    types.CoroutineType: functools.partial(_reduce_generator, "coroutine"),
    types.AsyncGeneratorType: functools.partial(_reduce_generator, "async_generator"),
    contextlib._GeneratorContextManager: _reduce_context,
    **dict.fromkeys((io.TextIOWrapper, io.FileIO, *_BUFFERED), _reduce_file),
    **dict.fromkeys((io.StringIO, io.BytesIO), _reduce_buffer),
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
