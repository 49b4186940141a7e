"""Objects that go to another process and come back as themselves.

`%%remote --wait -o '*'` is to behave like the cell in the kernel. There, `rows.append(1)` changes the very list that
other variables, other lists and other objects hold. So a copy's changes are brought home into the original:

    kernel   sent = {};  serialize.dumps(names, memo=sent)                what left, by its place in the pickle
    worker   memo = {};  serialize.loads(data, memo=memo)                 the copies, by the same places
             received = Received(memo)                                    how each looks before the cell runs
             ... the cell runs ...
             changes = received.changes()                                 what it has done to them
             serialize.dumps([values, changes], known=received.places)    an original travels as its place
    kernel   values, changes = serialize.loads(data, originals=sent); apply(changes)

Pickle numbers the objects of a stream (its memo) in the same order on both sides; that is all the bookkeeping there is.
A container is compared with what it held before, item by item and by identity, which is exact because everything in it
is known as well. Arrays that were mapped are compared by the operating system: it knows which pages were written.

Of an object that only its own C code can look into, and that has no state to set, a changed copy cannot be brought
into the original. It comes home as a new object, and takes the original's place in every name and object that came
along with it. What else holds the original in the notebook keeps it.

Must not import numpy or pandas: it recognises their objects by name. Thread: any, one object in one thread.
"""

from __future__ import annotations

import array
import collections
import copyreg
import datetime
import decimal
import fractions
import io
import itertools
import mmap
import pathlib
import pickle
import re
import sys
import types
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jupyter_tasks.wire import serialize
from jupyter_tasks.wire.serialize import attributes_of

__all__ = ["Change", "Received", "Views", "apply"]


class Change(NamedTuple):
    """What became of one original."""

    original: Any  # travels as its place
    how: str  # a key of _APPLY
    state: Any


_SHORT = 64  # characters: a text that is shorter travels by value; its identity means nothing


def _is_worth_a_place(value: object) -> bool:
    return type(value) not in (str, bytes) or len(value) > _SHORT  # type: ignore[arg-type]


# --- Looking: before and after --------------------------------------------------------------------------------------

_MISSING = object()

# Objects that nobody can change, among those that pickle by more than a name.
_CONSTANT: tuple[type, ...] = (
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.MethodType, types.GenericAlias),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction),
    *(pathlib.PurePath, range, slice, complex, uuid.UUID, re.Pattern, re.Match, property, staticmethod, classmethod),
    *(str, bytes, tuple, frozenset, int, float),
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType),
    *(types.MappingProxyType, type({}.keys()), type({}.values()), type({}.items())),  # cut off from what they show
)


class Received:
    """The copies in the worker, and how they looked when they had arrived.

    Attributes:
        places: where each copy stands, by its id. Valid as long as this object lives: it holds the copies. After
            `changes`, without those that come home as new objects.
        unseen: after `changes`, a line for each copy that could not be compared any more.
    """

    def __init__(self, objects: Mapping[int, Any]) -> None:
        self._objects = [value for value in objects.values() if _is_worth_a_place(value)]
        self.places = {id(value): place for place, value in objects.items() if _is_worth_a_place(value)}
        self.unseen: list[str] = []
        for table in filter(_is_table, self._objects):
            for part in _table_parts(table):  # they go with the table
                self.places.pop(id(part), None)
        for value in self._objects:
            if hasattr(type(value), "__setstate__"):  # it may have made the dict that it was given its own
                self.places.pop(id(_own_dict(value)), None)
        self._known = _Known(self.places)
        own = [value for value in self._objects if id(value) in self.places]
        self._looks = [(value, look) for value in own if (look := _look_at(value, self._known)) is not None]
        self._opaque = [(value, self._known.fingerprint(value)) for value in own if _is_opaque(value)]

    def arrays(self) -> list[Any]:
        """The arrays among the copies, for `Views`."""
        return [value for value in self._objects if _is_array(value) and id(value) in self.places]

    def is_renewed(self, value: object) -> bool:
        """After `changes`: this copy has changed, and comes home as a new object."""
        return id(value) in self._known.renewed

    def changes(self) -> list[Change]:
        """What has become of the copies since."""
        while renewed := [id(value) for value, mark in self._opaque if self._has_changed(value, mark)]:
            self._known.renewed.update(renewed)
            for each in renewed:  # with these gone, others that hold them in their C code look different, too
                del self.places[each]
        found: list[Change] = []
        for value, look in self._looks:
            try:
                change = look()
            except Exception as error:  # of its own pickling code, say
                self.unseen.append(f"a {type(value).__name__} cannot be compared: {type(error).__name__}: {error}")
                continue
            if change is not None:
                found.append(Change(value, *change))
        return found

    def _has_changed(self, value: Any, mark: int) -> bool:
        return id(value) not in self._known.renewed and self._known.fingerprint(value) != mark


class _Known:
    """What a comparison needs of all the others: which objects are compared by themselves, and which are replaced."""

    def __init__(self, places: dict[int, int]) -> None:
        self.places = places
        self.renewed: set[int] = set()  # ids of copies that come home as new objects: their holders have changed, too

    def fingerprint(self, value: Any) -> int:
        """The same number for the same content, without that of the other copies in it. -1: cannot be pickled."""
        try:
            data, buffers = serialize.dumps(value, known=_AllBut(id(value), self.places))
        except Exception:
            return -1
        mark = zlib.crc32(data)
        for buffer in buffers:
            mark = zlib.crc32(buffer.raw(), mark)
        return mark

    def same(self, old: list[Any], new: list[Any]) -> bool:
        """The same items, none of them replaced."""
        if len(old) != len(new) or not all(map(_is, old, new)):
            return False
        return not self.renewed or self.renewed.isdisjoint(map(id, new))


class _AllBut:
    """A mapping without one of its keys."""

    def __init__(self, key: int, mapping: Mapping[int, int]) -> None:
        self._key = key
        self._mapping = mapping

    def get(self, key: int) -> int | None:
        return None if key == self._key else self._mapping.get(key)


# Tells what has become of an object: (how, state) of the Change, or None.
Look = Callable[[], tuple[str, Any] | None]


def _look_at(value: Any, known: _Known) -> Look | None:
    """Notes how a value looks. None for what cannot change, or cannot be looked at."""
    kind = type(value)
    if kind is list:  # these two come by the hundred thousand
        return _look_at_items("list", list, value, known)
    if kind is dict:
        return _look_at_items("dict", lambda value: _flat(value.items()), value, known)
    if _is_table(value):
        return _look_at_table(value, known)
    if _is_index(value):
        return _look_at_items("index", lambda index: list(index.names), value, known)
    if kind is types.FunctionType and serialize.is_dispatcher(value):
        return _look_at_items("dispatcher", lambda dispatcher: _flat(dispatcher.registry.items()), value, known)
    if issubclass(kind, type):
        return _look_at_class(value, known) if value.__module__ == "__main__" else None
    if issubclass(kind, _CONSTANT) or _is_scalar(value) or _is_iterator(kind):
        return None
    if isinstance(value, BaseException):
        return _look_at_names("attributes", lambda: _parts_of_exception(value), known)
    if isinstance(value, _BUFFERS):
        return _look_at_buffer(value, known)
    looks: list[Look | None] = []
    if _is_array(value):
        looks.append(_look_at_array(value, known))
    for base, how, items in _CONTAINERS:
        if isinstance(value, base):
            looks.append(_look_at_items(how, items, value, known))
            break
    else:
        if _holds_more_than_attributes(kind) and not _is_array(value):
            looks.append(_look_at_state(value, known))
    if kind.__dictoffset__ != 0 or _slots(kind):
        if len(looks) == 0 and isinstance(getattr(kind, "__getstate__", None), types.FunctionType):
            looks.append(_look_at_own_state(value, known))
        else:
            looks.append(_look_at_names("attributes", lambda: attributes_of(value), known))
        if kind.__flags__ & serialize.HEAP_TYPE:
            return _look_at_class_of(value, _all_of([look for look in looks if look is not None]))
    return _all_of([look for look in looks if look is not None])


def _all_of(looks: list[Look]) -> Look | None:
    """Several looks at one object, as at a list's items and at its attributes; the changes become one."""
    if len(looks) < 2:
        return looks[0] if looks else None

    def look() -> tuple[str, Any] | None:
        return _as_one([change for each in looks if (change := each()) is not None])

    return look


def _as_one(changes: list[tuple[str, Any]]) -> tuple[str, Any] | None:
    if len(changes) < 2:
        return changes[0] if changes else None
    return "several", changes


def _look_at_class_of(value: Any, look_at_rest: Look | None) -> Look:
    kind = type(value)

    def look() -> tuple[str, Any] | None:
        change = look_at_rest() if look_at_rest is not None else None
        if type(value) is kind:
            return change
        return _as_one([("class of", type(value)), *([change] if change is not None else [])])

    return look


def _is(a: object, b: object) -> bool:
    return a is b or (type(a) in (int, str, bytes) and type(a) is type(b) and a == b)


def _look_at_items(how: str, items: Callable[[Any], list[Any]], value: Any, known: _Known) -> Look:
    """For containers: `items` lists what is in one."""
    before = items(value)

    def look() -> tuple[str, Any] | None:
        now = items(value)
        return None if known.same(before, now) else (how, now)

    return look


def _flat(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(items))


def _ordered_set(value: set[Any]) -> list[Any]:
    return sorted(set.__iter__(value), key=id)


def _cell_contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing was assigned to it, or it was deleted
        return []


_CONTAINERS: list[tuple[type, str, Callable[[Any], list[Any]]]] = [
    (list, "list", lambda value: list(list.__iter__(value))),
    (collections.OrderedDict, "dict", lambda value: _flat(collections.OrderedDict.items(value))),
    (dict, "dict", lambda value: _flat(dict.items(value))),
    (set, "set", _ordered_set),
    (collections.deque, "deque", list),
    (bytearray, "bytearray", lambda value: [bytes(value)]),
    (array.array, "array.array", lambda value: [value.tobytes()]),
    (types.CellType, "cell", _cell_contents),
]


def _own_dict(value: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except Exception:  # it has none
        return None
    return found


def _slots(kind: type) -> list[str]:
    names: list[str] = copyreg._slotnames(kind)  # type: ignore[attr-defined]  # what object.__reduce_ex__ uses
    return names


_OF_CLASSES = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__slotnames__", "_abc_impl"})


def _look_at_class(value: type, known: _Known) -> Look:
    def names() -> dict[str, Any]:
        return {name: held for name, held in vars(value).items() if name not in _OF_CLASSES}

    return _look_at_names("class", names, known)


def _look_at_names(how: str, names: Callable[[], dict[str, Any]], known: _Known) -> Look:
    before = names()

    def look() -> tuple[str, Any] | None:
        now = names()
        assigned = {
            name: held
            for name, held in now.items()
            if not _is(before.get(name, _MISSING), held) or id(held) in known.renewed
        }
        deleted = [name for name in before if name not in now]
        return (how, (assigned, deleted)) if assigned or deleted else None

    return look


_POINTER = tuple.__itemsize__  # bytes


def _holds_more_than_attributes(kind: type) -> bool:
    """It was written in C, or derives from such a type: its instances are larger than their names need."""
    if kind is types.FunctionType:
        return False
    # Since 3.11 `__dict__` stands before the object, since 3.12 the weak references, too: their offset is negative.
    names = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ > object.__basicsize__ + names * _POINTER


def _state_of(value: Any) -> Any:
    """What its own pickling code gives as its state; None if it gives none."""
    own: Any = copyreg.dispatch_table.get(type(value))
    reduced = own(value) if own is not None else value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    return reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None


def _look_at_own_state(value: Any, known: _Known) -> Look:
    """For objects whose class says what of them travels: attributes as they are, and what it makes for the way."""

    def parts() -> tuple[dict[str, Any], Any]:
        """Attributes that the state holds as they are or leaves out; the rest of the state."""
        held = attributes_of(value)
        try:
            state = value.__getstate__()
        except Exception:
            return held, None
        if not isinstance(state, dict):
            return {}, state
        made = {name: each for name, each in state.items() if held.get(name, _MISSING) is not each}
        return {name: each for name, each in held.items() if name not in made}, made

    attributes, made = parts()
    mark = known.fingerprint(made) if made else None
    look_at_attributes = _look_at_names("attributes", lambda: attributes, known)

    def look() -> tuple[str, Any] | None:
        nonlocal attributes, made
        attributes, made = parts()
        changes = []
        if (known.fingerprint(made) if made else None) != mark:
            changes.append(("state", value.__getstate__()))
        if (change := look_at_attributes()) is not None:
            assigned, deleted = change[1]
            # What cannot be sent was left out for that reason.
            goes = {name: each for name, each in assigned.items() if known.fingerprint(each) != -1}
            if goes or deleted:
                changes.append(("attributes", (goes, deleted)))
        return _as_one(changes)

    return look


def _parts_of_exception(error: BaseException) -> dict[str, Any]:
    """Its own pickling gives less."""
    named = (
        "args",
        "__cause__",
        "__context__",
        "__suppress_context__",
    )  # in this order: a cause suppresses the context
    return {**attributes_of(error), **{name: getattr(error, name) for name in named}}


_BUFFERS = (io.StringIO, io.BytesIO)


def _look_at_buffer(value: Any, known: _Known) -> Look | None:
    if value.closed:
        return None
    look_at_state = _look_at_state(value, known)

    def look() -> tuple[str, Any] | None:
        if value.closed:
            return "closed", None
        return look_at_state() if look_at_state is not None else None

    return look


def _is_iterator(kind: type) -> bool:
    """One of Python's own. Its state is not all of it: it holds another iterator, say, or has come to its end.

    Not those of `tee`: they share what they have read, and their state says so.
    """
    return kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__") and kind.__name__ != "_tee"


def _look_at_state(value: Any, known: _Known) -> Look | None:
    """For objects with pickling of their own, such as random generators: their state is what they would send."""
    try:
        state = _state_of(value)
    except Exception:
        return None  # opaque
    if state is None:
        return None
    before = known.fingerprint(state)

    def look() -> tuple[str, Any] | None:
        now = _state_of(value)
        return None if known.fingerprint(now) == before else ("state", now)

    return look


_TRANSPARENT = frozenset({list, dict, set, tuple, str, bytes, types.FunctionType, types.CellType})


def _is_opaque(value: Any) -> bool:
    """Only its own code can look into it, and it has no state to set: as iterators, or tensors."""
    kind = type(value)
    if kind in _TRANSPARENT:
        return False
    others = (type, BaseException, *_BUFFERS, *(base for base, _, _ in _CONTAINERS))
    if issubclass(kind, (*others, *_CONSTANT)) or _is_scalar(value):
        return False
    if _is_iterator(kind):
        return True
    if _is_array(value):
        return not _is_plain_array(value)  # masked arrays hold more than their numbers
    if _is_table(value) or _is_index(value) or not _holds_more_than_attributes(kind):
        return False
    try:
        return _state_of(value) is None
    except Exception:
        return True


# --- Arrays ---------------------------------------------------------------------------------------------------------


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_scalar(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.dtype))


def _look_at_array(value: Any, known: _Known) -> Look | None:
    if not _is_plain_array(value):
        return None  # opaque
    shape = (value.shape, value.dtype)
    content = _content_of(value, known)
    if content is None:
        return None

    def look() -> tuple[str, Any] | None:
        if (value.shape, value.dtype) == shape and not content():
            return None
        return "array", _Content(value)

    return look


class _Content:
    """An array's content, to be sent although the array itself travels as its place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._value.view(sys.modules["numpy"].ndarray).__reduce_ex__(protocol)


def _content_of(value: Any, known: _Known) -> Callable[[], bool] | None:
    """Notes an array's content; tells later whether it was written to."""
    if value.dtype.hasobject:
        before = value.ravel().tolist()
        return lambda: not known.same(before, value.ravel().tolist())
    pages = _Pages.of(value)
    if pages is not None:
        return pages.written
    if not value.flags.writeable:
        return None
    mark = _checksum(value)
    return lambda: _checksum(value) != mark


def _checksum(value: Any) -> int:
    contiguous = value if value.flags.c_contiguous else value.copy()
    return zlib.crc32(memoryview(contiguous.reshape(-1).view("u1")))


class _Pages:
    """The memory below an array that was mapped privately: the system knows which of its pages were written to.

    A page of a private mapping belongs to the file until it is written; then it is a page of ours. /proc/self/pagemap
    says which (bit 61: file page; 62: swapped, so ours; 63: present), readable without privileges. 8 bytes for 4 kB.
    """

    SIZE = mmap.PAGESIZE

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._last = last

    @classmethod
    def of(cls, value: Any) -> _Pages | None:
        """None if the memory is ordinary, or the system does not tell."""
        if not sys.platform.startswith("linux") or value.nbytes < 4 * cls.SIZE or not value.flags.c_contiguous:
            return None
        start = value.__array_interface__["data"][0]
        pages = cls(start // cls.SIZE, (start + value.nbytes - 1) // cls.SIZE)
        try:
            return None if pages.written() else pages  # a page of our own already: not mapped, or shared with others
        except OSError:
            return None

    def written(self) -> bool:
        """Some page has become ours."""
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(self._first * 8)
            rest = (self._last - self._first + 1) * 8
            while rest > 0:
                data = file.read(min(rest, 1 << 20))
                if not data:
                    raise OSError("pagemap ended")
                rest -= len(data)
                if _any_own(data):
                    return True
        return False


def _any_own(entries: bytes) -> bool:
    """Of 8 bytes a page: one is swapped, or present and not the file's."""
    tops = entries[7::8] if sys.byteorder == "little" else entries[0::8]
    return any(top & 0x40 or (top & 0xA0) == 0x80 for top in set(tops))


class Views:
    """A reducer: an array that lies within another one that travels, too, stays a view of it.

    By default pickle sends each array with a copy of its content, and writing to one is not seen in the other.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        found = [(_start(value), value) for value in owners if _is_plain_array(value) and _can_own(value)]
        # Of two with the same memory the larger owns; of two of the same size the first.
        self._owners = sorted(found, key=lambda item: -item[1].nbytes)

    def __call__(self, value: Any) -> Any:
        if not self._owners or not _is_plain_array(value) or value.base is None or value.dtype.hasobject:
            return NotImplemented
        low, high = _bounds(value)
        for start, owner in self._owners:
            if owner is value:
                return NotImplemented
            if start <= low and high <= start + owner.nbytes:
                place = (_start(value) - start, value.shape, value.strides, value.dtype, value.flags.writeable)
                attributes = getattr(value, "__dict__", None) or None  # of a subclass
                return _make_view, (owner, *place, type(value)), attributes, None, None, _fill_view
        return NotImplemented


def _is_plain_array(value: object) -> bool:
    """Its numbers and attributes are all there is: of a subclass, too, unless it has pickling of its own."""
    return _is_array(value) and serialize.has_only(type(value), sys.modules["numpy"].ndarray)


def _make_view(owner: Any, offset: int, shape: Any, strides: Any, dtype: Any, writeable: bool, kind: type) -> Any:
    array = sys.modules["numpy"].ndarray
    view = array(shape, dtype, owner, offset, strides)
    if kind is not array:
        view = view.view(kind)
    if not writeable:
        view.flags.writeable = False
    return view


def _fill_view(view: Any, attributes: dict[str, Any]) -> None:
    vars(view).update(attributes)


def _can_own(value: Any) -> bool:
    return bool(value.flags.c_contiguous and value.nbytes and not value.dtype.hasobject)


def _start(value: Any) -> int:
    address: int = value.__array_interface__["data"][0]
    return address


def _bounds(value: Any) -> tuple[int, int]:
    """First byte and the one after the last."""
    low = high = _start(value)
    for length, stride in zip(value.shape, value.strides, strict=True):
        if length == 0:
            return low, low
        low, high = min(low, low + (length - 1) * stride), max(high, high + (length - 1) * stride)
    return low, high + value.itemsize


# --- Tables (pandas) ------------------------------------------------------------------------------------------------


def _is_table(value: object) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series))


def _table_parts(table: Any) -> list[Any]:
    """What it is made of. That goes with the table: in the kernel others may share the arrays, copy-on-write."""
    parts: list[Any] = [table._mgr]
    for block in table._mgr.blocks:
        values = block.values
        inner = (getattr(values, name, None) for name in _INNER_ARRAYS)
        parts += [block, values, *(each for each in inner if each is not None)]
    return parts


_INNER_ARRAYS = ("_ndarray", "_data", "_mask", "_codes", "_left", "_right", "_sp_values")


def _is_index(value: object) -> bool:
    """Nothing of it can change but its names; it keeps caches among its attributes."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Index)


def _look_at_table(table: Any, known: _Known) -> Look:
    def parts() -> list[Any]:
        manager = table._mgr
        placements = [block.mgr_locs.as_array.tolist() for block in manager.blocks]
        return [*(block.values for block in manager.blocks), *manager.axes, repr(placements)]

    def labels() -> tuple[dict[Any, Any], Any]:
        return dict(table.attrs), getattr(table, "_name", None)

    before, labelled = parts(), labels()
    contents = [content for part in before if (content := _content_of_part(part, known)) is not None]

    def look() -> tuple[str, Any] | None:
        if known.same(before, parts()) and labels() == labelled and not any(content() for content in contents):
            return None
        return "table", table.copy(deep=False)

    return look


def _content_of_part(part: Any, known: _Known) -> Callable[[], bool] | None:
    if _is_array(part):
        return _content_of(part, known)
    inner = getattr(part, "_ndarray", None)  # dates, categories
    if inner is not None and _is_array(inner):
        return _content_of(inner, known)
    arrow = getattr(part, "_pa_array", None)
    if arrow is not None:  # never written to, only replaced
        return lambda: getattr(part, "_pa_array", None) is not arrow
    if hasattr(part, "_data") and hasattr(part, "_mask"):  # masked integers and the like
        looks = [look for each in (part._data, part._mask) if (look := _content_of(each, known)) is not None]
        return lambda: any(look() for look in looks)
    return None


# --- Applying: in the kernel ----------------------------------------------------------------------------------------


def apply(changes: list[Change]) -> list[str]:
    """Brings the changes home into the originals. Returns what could not be brought: a line for each."""
    failed: list[str] = []
    for original, how, state in changes:
        try:
            _APPLY[how](original, state)
        except Exception as error:
            failed.append(f"a {type(original).__name__} stays as it was: {type(error).__name__}: {error}")
    return failed


def _apply_several(original: Any, parts: list[tuple[str, Any]]) -> None:
    for how, state in parts:
        _APPLY[how](original, state)


def _apply_list(original: list[Any], items: list[Any]) -> None:
    list.__setitem__(original, slice(None), items)


def _apply_dict(original: dict[Any, Any], flat: list[Any]) -> None:
    # A subclass may do more in its own methods than to store; an OrderedDict keeps a second list of its keys.
    cls = collections.OrderedDict if isinstance(original, collections.OrderedDict) else dict
    cls.clear(original)
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        cls.__setitem__(original, key, value)


def _apply_set(original: set[Any], items: list[Any]) -> None:
    set.clear(original)
    set.update(original, items)


def _apply_deque(original: collections.deque[Any], items: list[Any]) -> None:
    original.clear()
    original.extend(items)


def _apply_bytes(original: bytearray, items: list[bytes]) -> None:
    original[:] = items[0]


def _apply_array_array(original: array.array[Any], items: list[bytes]) -> None:
    del original[:]
    original.frombytes(items[0])


def _apply_cell(original: types.CellType, contents: list[Any]) -> None:
    if contents:
        original.cell_contents = contents[0]
    else:
        del original.cell_contents


def _apply_attributes(original: Any, state: tuple[dict[str, Any], list[str]]) -> None:
    assigned, deleted = state
    for name in deleted:
        object.__delattr__(original, name)
    for name, value in assigned.items():
        object.__setattr__(original, name, value)  # as pickle does it: also for frozen dataclasses


def _apply_dispatcher(original: Any, flat: list[Any]) -> None:
    for cls, implementation in zip(flat[::2], flat[1::2], strict=True):
        if original.registry.get(cls) is not implementation:
            original.register(cls, implementation)


def _apply_class_of(original: Any, cls: type) -> None:
    object.__setattr__(original, "__class__", cls)


def _apply_closed(original: Any, _: None) -> None:
    original.close()


def _apply_class(original: type, state: tuple[dict[str, Any], list[str]]) -> None:
    assigned, deleted = state
    for name in deleted:
        delattr(original, name)
    for name, value in assigned.items():
        setattr(original, name, value)


def _apply_state(original: Any, state: Any) -> None:
    set_state = getattr(original, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    members, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    original.__dict__.update(members or {})
    for name, value in (slots or {}).items():
        object.__setattr__(original, name, value)


def _apply_array(original: Any, new: Any) -> None:
    if original.dtype != new.dtype or original.shape != new.shape:
        original.resize(new.shape, refcheck=False)  # what `resize` and `shape =` do to it in place
    writeable = original.flags.writeable
    if not writeable:
        original.flags.writeable = True
    try:
        sys.modules["numpy"].ndarray.__setitem__(original, ..., new)
    finally:
        if not writeable:
            original.flags.writeable = False


def _apply_index(original: Any, names: list[Any]) -> None:
    original.names = names


def _apply_table(original: Any, new: Any) -> None:
    original._update_inplace(new)
    original.attrs = new.attrs
    if hasattr(original, "_name"):
        original._name = new._name


_APPLY: dict[str, Callable[[Any, Any], None]] = {
    "several": _apply_several,
    "list": _apply_list,
    "dict": _apply_dict,
    "set": _apply_set,
    "deque": _apply_deque,
    "bytearray": _apply_bytes,
    "array.array": _apply_array_array,
    "cell": _apply_cell,
    "attributes": _apply_attributes,
    "class": _apply_class,
    "class of": _apply_class_of,
    "closed": _apply_closed,
    "dispatcher": _apply_dispatcher,
    "state": _apply_state,
    "array": _apply_array,
    "index": _apply_index,
    "table": _apply_table,
}
