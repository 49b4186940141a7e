"""Objects that go to another process and come back as themselves.

`%%remote --wait -o '*'` is to behave like the cell in the kernel. There, `rows.append(1)` changes the very list that
other variables, other lists and other objects hold. So a copy's changes are brought home into the original:

    kernel   sent = Sent();  serialize.dumps(names, memo=sent.objects)        what left, by its place in the pickle
    worker   received = {};  serialize.loads(data, memo=received)             the copies, by the same places
             known = Received(received)                                       how each looks before the cell runs
             ... the cell runs ...
             changes = known.changes()                                        what it has done to them
             serialize.dumps([values, changes], known=known.places)           an original travels as its place
    kernel   values, changes = serialize.loads(data, originals=sent.objects); apply(changes)

Pickle numbers the objects of a stream (its memo) in the same order on both sides; that is all the bookkeeping there is.
A container is compared with what it held before, item by item and by identity, which is exact because everything in it
is known as well. Arrays that were mapped are compared by the operating system: it knows which pages were written.

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

__all__ = ["Change", "Received", "Sent", "Views", "apply"]


class Change(NamedTuple):
    """What became of one original."""

    original: Any  # as a place on the way, the object itself when it has arrived
    how: str  # a key of _APPLY
    state: Any


class Sent:
    """What left the kernel, by place. Holds it until the answer is there."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}


_SHORT = 64  # characters: a text that is shorter travels by value; its identity means nothing


def _is_worth_a_place(value: object) -> bool:
    return type(value) not in (str, bytes) or len(value) > _SHORT  # type: ignore[arg-type]


# --- Looking: before and after --------------------------------------------------------------------------------------

_MISSING = object()

# Objects that nobody can change, among those that pickle by more than a name.
_CONSTANT = (
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.MethodType, types.GenericAlias),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction),
    *(pathlib.PurePath, range, slice, complex, uuid.UUID, re.Pattern, property, staticmethod, classmethod),
    *(str, bytes, tuple, frozenset, int, float),
)


class Received:
    """The copies in the worker, and how they looked when they had arrived.

    Attributes:
        places: where each copy stands, by its id. Valid as long as this object lives: it holds the copies.
    """

    def __init__(self, objects: Mapping[int, Any]) -> None:
        self._objects = {place: value for place, value in objects.items() if _is_worth_a_place(value)}
        self.places = {id(value): place for place, value in self._objects.items()}
        self._looks: dict[int, Callable[[], Change | None]] = {}
        self._parts: set[int] = set()  # ids of what belongs to a table, and goes with it
        tables = [value for value in self._objects.values() if _is_table(value)]
        for table in tables:
            self._parts.update(id(part) for part in _table_parts(table))
        for part in self._parts:
            self.places.pop(part, None)
        for place, value in self._objects.items():
            if id(value) in self._parts:
                continue
            look = _look_at(value)
            if look is not None:
                self._looks[place] = look

    def arrays(self) -> list[Any]:
        """The arrays among the copies, for `Views`."""
        return [value for value in self._objects.values() if _is_array(value) and id(value) in self.places]

    def changes(self) -> list[Change]:
        """What has become of the copies since. An object that cannot be looked at any more counts as unchanged."""
        found: list[Change] = []
        for look in self._looks.values():
            try:
                change = look()
            except Exception:
                continue
            if change is not None:
                found.append(change)
        return found


def _look_at(value: Any) -> Callable[[], Change | None] | None:
    """Notes how a value looks; what comes back tells later what has changed. None for what cannot change."""
    kind = type(value)
    for base, look_at in _LOOKS:
        if isinstance(value, base):
            return look_at(value)
    if _is_array(value):
        return _look_at_array(value)
    if _is_table(value):
        return _look_at_table(value)
    if issubclass(kind, type):
        return _look_at_class(value) if value.__module__ == "__main__" else None
    if issubclass(kind, _CONSTANT):
        return None
    looks = [] if kind.__dictoffset__ == 0 and not _slots(kind) else [_look_at_attributes(value)]
    if _holds_more_than_attributes(kind) and (look := _look_at_state(value)) is not None:
        looks.append(look)
    return _all_of(looks) if looks else None


def _all_of(looks: list[Callable[[], Change | None]]) -> Callable[[], Change | None]:
    """Several looks at one object, as at a list's items and at its attributes; the changes become one."""

    if len(looks) == 1:
        return looks[0]

    def look() -> Change | None:
        changes = [change for each in looks if (change := each()) is not None]
        if len(changes) < 2:
            return changes[0] if changes else None
        return Change(changes[0].original, "several", [(change.how, change.state) for change in changes])

    return look


def _same(old: list[Any], new: list[Any]) -> bool:
    return len(old) == len(new) and all(map(_is, old, new))


def _is(a: object, b: object) -> bool:
    return a is b or (type(a) in (int, float, str) and type(a) is type(b) and a == b)


def _look_at_items(how: str, items: Callable[[Any], list[Any]]) -> Callable[[Any], Callable[[], Change | None]]:
    """For containers: `items` lists what is in one."""

    def look_at(value: Any) -> Callable[[], Change | None]:
        before = items(value)

        def look() -> Change | None:
            now = items(value)
            return None if _same(before, now) else Change(value, how, now)

        return _with_attributes(value, look)

    return look_at


def _with_attributes(value: Any, look: Callable[[], Change | None]) -> Callable[[], Change | None]:
    if type(value).__dictoffset__ == 0 and not _slots(type(value)):
        return look
    return _all_of([look, _look_at_attributes(value)])


def _flat(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(items))


def _ordered_set(value: set[Any]) -> list[Any]:
    return sorted(set.__iter__(value), key=id)


def _deque_items(value: collections.deque[Any]) -> list[Any]:
    return [value.maxlen, *value]


def _cell_contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing was assigned to it, or it was deleted
        return []


_LOOKS: list[tuple[type, Callable[[Any], Callable[[], Change | None]]]] = [
    (list, _look_at_items("list", lambda value: list(list.__iter__(value)))),
    (collections.OrderedDict, _look_at_items("dict", lambda value: _flat(collections.OrderedDict.items(value)))),
    (dict, _look_at_items("dict", lambda value: _flat(dict.items(value)))),
    (set, _look_at_items("set", _ordered_set)),
    (collections.deque, _look_at_items("deque", _deque_items)),
    (bytearray, _look_at_items("bytearray", lambda value: [bytes(value)])),
    (array.array, _look_at_items("array.array", lambda value: [value.tobytes()])),
    (types.CellType, _look_at_items("cell", _cell_contents)),
]


def _slots(kind: type) -> list[str]:
    names: list[str] = copyreg._slotnames(kind)  # type: ignore[attr-defined]  # what object.__reduce_ex__ uses
    return names


def _attributes(value: object) -> dict[str, Any]:
    """All that the instance holds by name: its `__dict__`, and its slots."""
    found: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    for name in _slots(type(value)):
        held = getattr(value, name, _MISSING)
        if held is not _MISSING:
            found[name] = held
    return found


def _look_at_attributes(value: object) -> Callable[[], Change | None]:
    before = _attributes(value)

    def look() -> Change | None:
        now = _attributes(value)
        return _difference(value, "attributes", before, now)

    return look


def _difference(value: Any, how: str, before: dict[str, Any], now: dict[str, Any]) -> Change | None:
    assigned = {name: held for name, held in now.items() if not _is(before.get(name, _MISSING), held)}
    deleted = [name for name in before if name not in now]
    return Change(value, how, (assigned, deleted)) if assigned or deleted else None


_OF_CLASSES = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__slotnames__", "_abc_impl"})


def _look_at_class(value: type) -> Callable[[], Change | None]:
    def attributes() -> dict[str, Any]:
        return {name: held for name, held in vars(value).items() if name not in _OF_CLASSES}

    before = attributes()
    return lambda: _difference(value, "class", before, attributes())


def _holds_more_than_attributes(kind: type) -> bool:
    """It was written in C, or derives from such a type: its instances are larger than their names need."""
    names = len(_slots(kind)) + 2  # slots, `__dict__` and `__weakref__`: a pointer each
    return kind.__basicsize__ > object.__basicsize__ + names * object.__basicsize__ // 2


MOST_STATE = 1 << 24  # bytes of an object's own state that are looked at


def _look_at_state(value: Any) -> Callable[[], Change | None] | None:
    """For objects with pickling of their own, such as random generators: their state is what they would send."""

    own: Any = copyreg.dispatch_table.get(type(value))

    def state() -> tuple[Any, bytes | None]:
        reduced = own(value) if own is not None else value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if not isinstance(reduced, tuple) or len(reduced) < 3 or reduced[2] is None:
            return None, None
        return reduced[2], _print_of(reduced[2])

    try:
        before = state()[1]
    except Exception:
        return None
    if before is None:
        return None

    def look() -> Change | None:
        now, mark = state()
        return None if mark is None or mark == before else Change(value, "state", now)

    return look


class _Print(io.BytesIO):
    """Takes so many bytes and no more."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MOST_STATE:
            raise OverflowError
        return super().write(data)


def _print_of(state: Any) -> bytes | None:
    """Bytes that are the same for the same state; None if there are too many."""
    from jupyter_tasks.wire import serialize

    data, buffers = serialize.dumps(state)
    if len(data) + sum(buffer.raw().nbytes for buffer in buffers) > MOST_STATE:
        return None
    return b"".join([data, *(bytes(buffer.raw()) for buffer in buffers)])


# --- Arrays ---------------------------------------------------------------------------------------------------------


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _look_at_array(value: Any) -> Callable[[], Change | None] | None:
    shape = (value.shape, value.dtype)
    content = _content_of(value)
    if content is None:
        return None

    def look() -> Change | None:
        if (value.shape, value.dtype) == shape and not content():
            return None
        return Change(value, "array", _Content(value))

    return look


class _Content:
    """An array's content, to be sent although the array itself travels as its place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._value.__reduce_ex__(protocol)


def _content_of(value: Any) -> Callable[[], bool] | None:
    """Notes an array's content; tells later whether it was written to."""
    if value.dtype.hasobject:
        before = value.ravel().tolist()
        return lambda: not _same(before, value.ravel().tolist())
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
        found = [(_start(value), value) for value in owners if _is_array(value) and _can_own(value)]
        # Of two with the same memory the larger owns; of two of the same size the first.
        self._owners = sorted(found, key=lambda item: -item[1].nbytes)

    def __call__(self, value: Any) -> Any:
        if not self._owners or not _is_array(value) or value.base is None or value.dtype.hasobject:
            return NotImplemented
        low, high = _bounds(value)
        for start, owner in self._owners:
            if owner is value:
                return NotImplemented
            if start <= low and high <= start + owner.nbytes:
                offset = _start(value) - start
                return _make_view, (owner, offset, value.shape, value.strides, value.dtype, value.flags.writeable)
        return NotImplemented


def _make_view(owner: Any, offset: int, shape: Any, strides: Any, dtype: Any, writeable: bool) -> Any:
    view = sys.modules["numpy"].ndarray(shape, dtype, owner, offset, strides)
    if not writeable:
        view.flags.writeable = False
    return view


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


def _look_at_table(table: Any) -> Callable[[], Change | None]:
    def parts() -> list[Any]:
        manager = table._mgr
        placements = [block.mgr_locs.as_array.tolist() for block in manager.blocks]
        return [*(block.values for block in manager.blocks), *manager.axes, repr(placements)]

    before = parts()
    attributes = {"attrs": dict(table.attrs), "name": getattr(table, "_name", None)}
    contents = [content for part in before if (content := _content_of_part(part)) is not None]

    def look() -> Change | None:
        now = parts()
        same = _same(before, now) and attributes == {"attrs": dict(table.attrs), "name": getattr(table, "_name", None)}
        if same and not any(content() for content in contents):
            return None
        return Change(table, "table", table.copy(deep=False))

    return look


def _content_of_part(part: Any) -> Callable[[], bool] | None:
    if _is_array(part):
        return _content_of(part)
    inner = getattr(part, "_ndarray", None)  # dates, categories
    if inner is not None and _is_array(inner):
        return _content_of(inner)
    arrow = getattr(part, "_pa_array", None)
    if arrow is not None:  # never written to, only replaced
        return lambda: getattr(part, "_pa_array", None) is not arrow
    if hasattr(part, "_data") and hasattr(part, "_mask"):  # masked integers and the like
        looks = [look for each in (part._data, part._mask) if (look := _content_of(each)) is not None]
        return lambda: any(look() for look in looks)
    return None


# --- Applying: in the kernel ----------------------------------------------------------------------------------------


def apply(changes: list[Change]) -> list[str]:
    """Brings the changes home into the originals. Returns what could not be: a line for each."""
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
    original.extend(items[1:])


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
        original[...] = new
    finally:
        if not writeable:
            original.flags.writeable = False


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
    "state": _apply_state,
    "array": _apply_array,
    "table": _apply_table,
}
