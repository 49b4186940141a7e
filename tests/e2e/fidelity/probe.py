"""What a notebook's kernel looks like from inside, as text that is equal in two kernels that are alike.

Role: helper of test_fidelity. Runs in both kernels, in a silent cell that leaves no name and no history behind. `tell()`
prints one JSON object: each user name with a description of its value, and the ambient things (working directory,
environment, options of libraries, random state, settings of the shell).

Aliasing is told by paths: the first way to an object describes it, every later one says `is rows[0]`. Arrays that share
memory say so. Imports no library that the notebook has not imported itself.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import inspect
import io
import itertools
import json
import locale
import logging
import os
import pathlib
import random
import re
import sys
import threading
import types
import warnings
import weakref
from typing import Any

MOST_NODES = 4000  # objects that one probe looks at
MOST_DEPTH = 9
MOST_ITEMS = 60  # elements of one container
MOST_TEXT = 400  # characters of one repr; longer ones end in a hash

_HIDDEN = {"In", "Out", "exit", "quit", "open", "get_ipython", "__builtins__", "__builtin__"}
_HISTORY = re.compile(r"_(i*|i\d+|\d+|_+|oh|dh|ih|i+)$")
_SIMPLE = (int, float, complex, bool, type(None), type(...), type(NotImplemented), range, slice)
_CALM = (decimal.Decimal, fractions.Fraction, pathlib.PurePath, re.Pattern, re.Match, datetime.date, datetime.time)
_TOOLS = ("IPython", "ipykernel", "traitlets", "zmq", "tornado")
_NOTES = (weakref.WeakKeyDictionary, weakref.WeakSet)  # of libraries, about what they have seen
_SETTINGS = (
    *("ast_node_interactivity", "autocall", "automagic", "autoawait", "xmode"),
    *("show_rewritten_input", "enable_html_pager", "cache_size", "pdb"),
)

_start: dict[str, Any] = {}


def remember() -> None:
    """Called once, before the first cell: what `tell` compares the environment and the tables of the shell with."""
    _start["here"] = os.getcwd()
    _start.update(environ=dict(os.environ), path=list(sys.path), builtins=set(vars(builtins)), shell=_tables())


def tell() -> None:
    """Prints the description."""
    from IPython import get_ipython

    shell = get_ipython()
    sys.stdout.flush()
    names = {
        name: value
        for name, value in shell.user_ns.items()
        if name not in _HIDDEN and not _HISTORY.match(name) and not name.startswith("__")
    }
    describer = _Describer()
    text = json.dumps({"names": describer.names(names), "ambient": _ambient(shell, describer)})
    print(text)
    sys.stdout.flush()


# --- Values ---------------------------------------------------------------------------------------------------------


class _Describer:
    """One walk over the namespace."""

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}
        self._held: list[Any] = []  # so that no id is used twice
        self._memory: list[tuple[int, int, str]] = []  # arrays seen so far: first byte, byte after the last, path
        self._left = MOST_NODES
        self._parts: dict[str, str] = {}

    def names(self, names: dict[str, Any]) -> dict[str, str]:
        told = {}
        for name in sorted(names):
            told[name] = self.describe(names[name], name)
            told.update(self._parts)  # of classes: each attribute by itself, so that a difference is short
            self._parts = {}
        return told

    def describe(self, value: Any, path: str, depth: int = 0) -> str:
        """Never raises: what an object does in its repr is part of it."""
        self._left -= 1
        if self._left < 0 or depth > MOST_DEPTH:
            return f"<{_type_name(type(value))} ...>"
        try:
            return self._describe(value, path, depth)
        except Exception as error:
            return f"<{_type_name(type(value))}: {type(error).__name__}: {error}>"

    def _describe(self, value: Any, path: str, depth: int) -> str:
        kind = type(value)
        if kind in _SIMPLE or (isinstance(value, enum.Enum) and not _is_users(kind)):
            return _short(repr(value))
        if kind in (str, bytes):
            return _short(repr(value))
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if kind.__module__.partition(".")[0] in _TOOLS or kind in _NOTES:
            return _type_name(kind)  # the shell and all that belongs to it
        if kind is tuple or kind is frozenset:
            return self._container(value, path, depth)
        if isinstance(value, type) and not _is_users(value):
            return f"class {_type_name(value)}"
        if kind in (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType):
            return f"builtin {getattr(value, '__qualname__', value)}"
        if kind is types.FunctionType and not _is_users(value):
            return f"function {value.__module__}.{value.__qualname__}"
        if isinstance(value, _CALM) and not _is_users(kind):
            return _short(repr(value))
        if id(value) in self._paths:
            return f"is {self._paths[id(value)]}"
        self._paths[id(value)] = path
        self._held.append(value)
        return self._once(value, kind, path, depth)

    def _once(self, value: Any, kind: type, path: str, depth: int) -> str:
        if isinstance(value, type):
            return self._class(value, path, depth)
        if kind is types.FunctionType:
            return self._function(value, path, depth)
        if kind is types.MethodType:
            return f"method {value.__func__.__qualname__} of {self.describe(value.__self__, path + '.__self__', depth + 1)}"
        if kind is types.CellType:
            return f"cell({self.describe(value.cell_contents, path, depth + 1)})"
        if inspect.isgenerator(value):
            return f"generator {value.__qualname__} {inspect.getgeneratorstate(value)}"
        if inspect.iscoroutine(value) or inspect.isasyncgen(value):
            return f"{kind.__name__} {value.__qualname__}"
        array = getattr(sys.modules.get("numpy"), "ndarray", ())
        if isinstance(value, array) and _is_users(kind):
            return str(self._numpy(value, path, depth))
        for module, describe in (("numpy", self._numpy), ("pandas", self._pandas), ("matplotlib", _figure)):
            if kind.__module__.partition(".")[0] == module:
                told = describe(value, path, depth)
                if told is not None:
                    return str(told)
        if isinstance(value, (list, tuple, set, frozenset, dict, collections.deque)):
            return self._container(value, path, depth) + self._attributes(value, path, depth)
        if isinstance(value, (str, bytes, bytearray, int, float, complex)):
            return f"{_type_name(kind)}({_short(_plain_repr(value))})" + self._attributes(value, path, depth)
        if isinstance(value, enum.Enum):
            return f"{_type_name(kind)}.{value.name}"
        return self._object(value, kind, path, depth)

    def _container(self, value: Any, path: str, depth: int) -> str:
        kind = type(value)
        if isinstance(value, dict):
            # dict's own: a subclass may do anything in `items`. An OrderedDict's order is its own.
            items: Any = collections.OrderedDict.items if isinstance(value, collections.OrderedDict) else dict.items
            pairs = itertools.islice(items(value), MOST_ITEMS)
            inside = [
                f"{self.describe(k, path + '.key', depth + 1)}: {self.describe(v, f'{path}[{_short(repr(k))}]', depth + 1)}"
                for k, v in pairs
            ]
            extra = f", factory {_name_of(value.default_factory)}" if isinstance(value, collections.defaultdict) else ""
        elif isinstance(value, (set, frozenset)):
            inside = sorted(self.describe(item, path + "{}", depth + 1) for item in itertools.islice(value, MOST_ITEMS))
            extra = ""
        else:
            some = itertools.islice(iter(value), MOST_ITEMS)
            inside = [self.describe(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(some)]
            extra = f", maxlen {value.maxlen}" if isinstance(value, collections.deque) else ""
            if len(value) > MOST_ITEMS and all(type(item) in (*_SIMPLE, str) for item in value):
                extra += f", all {_digest(repr(list(value)))}"
        return f"{_type_name(kind)}[{len(value)}{extra}]({', '.join(inside)})"

    def _attributes(self, value: Any, path: str, depth: int) -> str:
        state: dict[str, Any] = {}
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                name = (
                    f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
                )
                if slot not in ("__dict__", "__weakref__") and isinstance(
                    base.__dict__.get(name), types.MemberDescriptorType
                ):
                    try:
                        state[slot] = base.__dict__[name].__get__(value)
                    except AttributeError:
                        pass
        state.update(getattr(value, "__dict__", None) or {})
        if not state:
            return ""
        told = (f"{name}={self.describe(each, f'{path}.{name}', depth + 1)}" for name, each in state.items())
        return f"<{', '.join(itertools.islice(told, MOST_ITEMS))}>"

    def _object(self, value: Any, kind: type, path: str, depth: int) -> str:
        name = _type_name(kind)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return (
                "partial("
                + ", ".join(self.describe(p, f"{path}.part{i}", depth + 1) for i, p in enumerate(parts))
                + ")"
            )
        if hasattr(value, "cache_info"):
            inner = self.describe(value.__wrapped__, path + ".__wrapped__", depth + 1)
            return f"cached {tuple(value.cache_info())} {inner}"
        if isinstance(value, property):
            accessors = [value.fget, value.fset, value.fdel]
            return "property(" + ", ".join(self.describe(p, path, depth + 1) for p in accessors) + ")"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{name}({self.describe(value.__func__, path, depth + 1)})"
        if isinstance(value, BaseException):
            return f"{name}{self.describe(value.args, path + '.args', depth + 1)}{self._attributes(value, path, depth)}"
        if isinstance(value, random.Random):
            return f"{name} {_digest(repr(value.getstate()))}"
        if isinstance(value, (io.StringIO, io.BytesIO)):
            return f"{name}(closed)" if value.closed else f"{name}({_short(repr(value.getvalue()))}, at {value.tell()})"
        if isinstance(value, io.IOBase):
            return f"{name} {getattr(value, 'name', '')} {'closed' if value.closed else f'at {value.tell()}'}"
        if isinstance(value, logging.Logger):
            return f"logger {value.name} {value.level} {[type(each).__name__ for each in value.handlers]}"
        if isinstance(value, threading.Thread):
            return f"thread {'alive' if value.is_alive() else 'ended'}"
        if (
            kind.__name__.endswith("_iterator")
            or kind.__module__ == "itertools"
            or kind in (map, filter, zip, enumerate)
        ):
            reduced = value.__reduce__()
            return f"{name} {self.describe(reduced[1:], path + '.rest', depth + 1)}"
        attributes = self._attributes(value, path, depth)
        if attributes or _is_users(kind):
            return f"{name}{attributes}"
        return _short(f"{name} {_clean(repr(value))}")

    def _function(self, value: Any, path: str, depth: int) -> str:
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=False))
        facts: dict[str, Any] = {
            "module": value.__module__,
            "doc": value.__doc__,
            "signature": _signature(value),
            "line": value.__code__.co_firstlineno,
            "source": _source(value),
            "home": value.__globals__ is sys.modules["__main__"].__dict__,
            "defaults": self.describe((value.__defaults__, value.__kwdefaults__), path + ".defaults", depth + 1),
        }
        if cells:
            facts["closure"] = self.describe({n: _contents(c) for n, c in cells.items()}, path + ".closure", depth + 1)
            shared = [self.describe(cell, f"{path}.{name}", depth + MOST_DEPTH - 1) for name, cell in cells.items()]
            facts["cells"] = [each if each.startswith("is ") else "own" for each in shared]
        if value.__dict__:
            facts["attributes"] = self.describe(dict(value.__dict__), path, depth + 1)
        return f"function {value.__qualname__} {facts}"

    def _class(self, value: type, path: str, depth: int) -> str:
        skipped = {"__dict__", "__weakref__", "__module__", "__dataclass_fields__", "_abc_impl", "__abstractmethods__"}
        skipped |= {"__slotnames__"}  # copyreg's own note
        parts = [f"class {_type_name(value)}", f"bases {[_type_name(base) for base in value.__mro__[1:]]}"]
        parts.append(f"meta {_type_name(type(value))}")
        parts.append(f"source {_source(value)}")
        if inspect.isabstract(value):
            parts.append(f"abstract {sorted(value.__abstractmethods__)}")  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(value):
            parts.append(f"fields {[(f.name, str(f.type)) for f in dataclasses.fields(value)]}")
        for name, each in sorted(vars(value).items()):
            if name not in skipped and not isinstance(each, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                parts.append(name)
                self._parts[f"{path}.{name}"] = self.describe(each, f"{path}.{name}", depth + 1)
        return "; ".join(parts)

    # -- libraries

    def _numpy(self, value: Any, path: str, depth: int) -> str | None:
        numpy = sys.modules["numpy"]
        if isinstance(value, numpy.ma.MaskedArray):
            mask = numpy.ma.getmaskarray(value)
            filled = value.filled()
            data = _digest(
                repr(filled.tolist()) if filled.dtype.hasobject else numpy.ascontiguousarray(filled).tobytes()
            )
            return f"masked {value.dtype} {value.shape} {data} mask {mask.ravel().tolist()[:MOST_ITEMS]} fill {value.fill_value}"
        if isinstance(value, numpy.ndarray):
            flags = "".join(each[0] for each in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE") if value.flags[each])
            if value.dtype.hasobject:
                content = self.describe(value.tolist(), path, depth + 1)
            else:
                small = value.size <= 12
                content = repr(value.tolist()) if small else _digest(numpy.ascontiguousarray(value).tobytes())
            steps = [step for step, n in zip(value.strides, value.shape, strict=True) if n > 1] if value.size else []
            told = f"{_type_name(type(value))} {value.dtype} {value.shape} strides {steps} {flags} {content}"
            return told + self._shares(value, path) + self._attributes(value, path, depth)
        if isinstance(value, numpy.generic):
            return f"{_type_name(type(value))}({value!r})"
        if isinstance(value, numpy.random.Generator):
            return f"Generator {_digest(repr(value.bit_generator.state))}"
        if isinstance(value, numpy.random.RandomState):
            return f"RandomState {_numbers(value.get_state())}"
        return None

    def _shares(self, value: Any, path: str) -> str:
        """Where its bytes are those of an array that was seen before."""
        numpy = sys.modules["numpy"]
        if value.size == 0:
            return ""
        bounds = getattr(numpy.lib, "array_utils", numpy).byte_bounds
        low, high = bounds(value)
        for start, end, other in self._memory:
            if low < end and start < high:
                return f" shares memory with {other} at {low - start:+d}"
        self._memory.append((low, high, path))
        return ""

    def _pandas(self, value: Any, path: str, depth: int) -> str | None:
        pandas = sys.modules["pandas"]
        if isinstance(value, pandas.DataFrame):
            columns = self._pandas(value.columns, path, depth)
            content = [self._column(value.iloc[:, i], path, depth) for i in range(min(value.shape[1], MOST_ITEMS))]
            attributes = f" attrs {value.attrs}" if value.attrs else ""
            return f"{_type_name(type(value))} {value.shape} of {columns} by {self._pandas(value.index, path, depth)} {content}{attributes}"
        if isinstance(value, pandas.Series):
            attributes = f" attrs {value.attrs}" if value.attrs else ""
            return f"Series {value.name!r} {self._column(value, path, depth)} by {self._pandas(value.index, path, depth)}{attributes}"
        if isinstance(value, pandas.Index):
            frequency = f" freq {value.freqstr}" if getattr(value, "freq", None) is not None else ""
            return f"{type(value).__name__} {value.names} {_short(repr(value.tolist()))} {getattr(value, 'dtype', '')}{frequency}"
        if isinstance(value, pandas.api.extensions.ExtensionArray):
            return f"{type(value).__name__} {value.dtype} {_short(repr(value.tolist()))}"
        if type(value).__name__ == "Styler":
            return f"Styler of {self.describe(value.data, path + '.data', depth + 1)}"
        if type(value).__module__.startswith("pandas.core.groupby"):
            return f"{type(value).__name__} of {self.describe(value.obj, path + '.obj', depth + 1)}"
        return _short(_clean(repr(value)))

    def _column(self, column: Any, path: str, depth: int) -> str:
        values = column.tolist()
        if str(column.dtype) == "object":
            return f"{column.dtype} {self.describe(values, path, depth + 1)}"
        extra = f" {list(column.cat.categories)} {column.cat.ordered}" if str(column.dtype) == "category" else ""
        return f"{column.dtype}{extra} {_short(repr(values))}"


def _figure(value: Any, path: str, depth: int) -> str | None:
    """matplotlib's objects are a graph without an end: only what is drawn."""
    name = type(value).__name__
    if name == "Figure":
        return f"Figure {value.get_size_inches().tolist()} {[_figure(axes, path, depth) for axes in value.axes]}"
    if hasattr(value, "lines") and hasattr(value, "get_title"):
        lines = [_digest(repr(line.get_xydata().tolist())) for line in value.lines]
        return f"Axes {value.get_title()!r} {value.get_xlabel()!r} {lines} {len(value.patches)} {len(value.collections)} {len(value.images)}"
    return name


def _is_users(thing: Any) -> bool:
    return getattr(thing, "__module__", None) == "__main__"


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _name_of(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or _clean(repr(thing))


def _plain_repr(value: Any) -> str:
    """Without a __repr__ of the user's."""
    for base in (str, bytearray, bytes, int, float, complex):
        if isinstance(value, base):
            return base.__repr__(value)
    return repr(value)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "<empty>"


def _signature(value: Any) -> str:
    try:
        return _clean(str(inspect.signature(value)))
    except (TypeError, ValueError) as error:
        return type(error).__name__


def _source(value: Any) -> str:
    """Whether `value??` has something to show: its first line, and a digest of all of it."""
    try:
        text = inspect.getsource(value)
    except (OSError, TypeError) as error:
        return f"no source: {type(error).__name__}"
    return f"{text.splitlines()[0].strip()} {_digest(text)}"


def _clean(text: str) -> str:
    text = re.sub(r"ipykernel_\d+/\d+\.py", "<cell>.py", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0x0", text).replace(_start.get("here", "<here>"), "<here>")


def _short(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}... {_digest(text)}"


def _numbers(state: Any) -> str:
    """Of a random state of numpy's. (Its repr depends on the print options.)"""
    return _digest(repr([part.tolist() if hasattr(part, "tolist") else part for part in state]))


def _digest(content: str | bytes) -> str:
    return hashlib.sha1(content.encode() if isinstance(content, str) else content).hexdigest()[:8]


# --- What is no name ------------------------------------------------------------------------------------------------


def _ambient(shell: Any, describer: _Describer) -> dict[str, str]:
    before = _start["environ"]
    told: dict[str, Any] = {
        "cwd": os.getcwd(),
        "environ": {k: os.environ.get(k) for k in sorted({*os.environ, *before}) if os.environ.get(k) != before.get(k)},
        "sys.path": [each for each in sys.path if each not in _start["path"]]
        + [f"no {each}" for each in _start["path"] if each not in sys.path],
        "warnings": [_filter(each) for each in warnings.filters],
        "logging": [logging.getLogger().level, [type(each).__name__ for each in logging.getLogger().handlers]],
        "random": _digest(repr(random.getstate())),
        "decimal": [decimal.getcontext().prec, str(decimal.getcontext().rounding)],
        "recursion limit": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "builtins": sorted(set(vars(builtins)) - _start["builtins"]),
        "_dh": [str(each) for each in shell.user_ns["_dh"]],
        **{f"Out[{n}]": describer.describe(value, f"Out[{n}]") for n, value in shell.user_ns["Out"].items()},
        "In": len(shell.user_ns["In"]),
        "execution count": shell.execution_count,
        "_": describer.describe(shell.user_ns.get("_"), "_"),
        **_settings(shell),
        **_libraries(),
    }
    return {name: value if isinstance(value, str) else _short_all(value) for name, value in told.items()}


def _short_all(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 3000 else f"{text[:3000]}... {_digest(text)}"


def _filter(each: Any) -> str:
    action, message, category, module, line = each
    patterns = [getattr(pattern, "pattern", pattern) for pattern in (message, module)]
    return f"{action}:{patterns[0]}:{category.__name__}:{patterns[1]}:{line}"


def _settings(shell: Any) -> dict[str, Any]:
    formatters = shell.display_formatter.formatters
    plain = formatters["text/plain"]
    told = {f"shell {name}": getattr(shell, name, None) for name in _SETTINGS}
    told["shell precision"] = [plain.float_precision, plain.float_format, plain.pprint, plain.max_width]
    told["shell active types"] = sorted(shell.display_formatter.active_types)
    told["shell exc handlers"] = [each.__name__ for each in shell.custom_exceptions]
    before = _start["shell"]
    for table, entries in _tables().items():
        told[f"shell {table}"] = [sorted(entries - before[table]), sorted(before[table] - entries)]
    inline = sys.modules.get("matplotlib_inline.config")
    told["inline backend"] = [["png"], {}, True]  # the default, also if nothing was drawn in this process
    if inline is not None:
        backend = inline.InlineBackend.instance(parent=shell)
        told["inline backend"] = [sorted(backend.figure_formats), backend.rc, backend.close_figures]
    return told


def _tables() -> dict[str, set[str]]:
    from IPython import get_ipython

    shell = get_ipython()
    tables = {f"{kind} magics": set(magics) for kind, magics in shell.magics_manager.magics.items()}
    tables["aliases"] = {f"{name}={command}" for name, command in shell.alias_manager.aliases}
    tables["extensions"] = set(shell.extension_manager.loaded)
    tables["formatters"] = {
        f"{mime}:{_name_of(kind)}"
        for mime, formatter in shell.display_formatter.formatters.items()
        for kind in (*formatter.type_printers, *formatter.deferred_printers)
        if _is_users(kind) or _is_users(formatter.type_printers.get(kind))
    }
    tables["callbacks"] = {
        f"{event}:{_name_of(each)}" for event, all in shell.events.callbacks.items() for each in all if _is_users(each)
    }
    tables["transformers"] = {
        _name_of(each)
        for each in (*shell.input_transformers_post, *shell.input_transformers_cleanup)
        if _is_users(each)
    } | {type(each).__name__ for each in shell.ast_transformers}
    return tables


def _libraries() -> dict[str, Any]:
    told: dict[str, Any] = {"open figures": [], "pandas options": {}, "rcParams": {}, "sklearn config": "as it was"}
    numpy, pandas, matplotlib = (sys.modules.get(name) for name in ("numpy", "pandas", "matplotlib"))
    if numpy is not None:
        told["np.random"] = _numbers(numpy.random.get_state())
        told["np.printoptions"] = {k: v for k, v in numpy.get_printoptions().items() if k != "formatter"}
        told["np.errstate"] = numpy.geterr()
    if pandas is not None and hasattr(pandas, "options"):
        told["pandas options"] = _pandas_options(pandas)
    if matplotlib is not None and hasattr(matplotlib, "rcParams"):
        default = matplotlib.rcParamsDefault
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told["rcParams"] = {
                key: str(value)
                for key, value in dict.items(matplotlib.rcParams)
                if key not in ("backend", "interactive") and value != default[key]
            }
        pyplot = sys.modules.get("matplotlib.pyplot")
        told["open figures"] = pyplot.get_fignums() if pyplot is not None else []
    sklearn = sys.modules.get("sklearn")
    if sklearn is not None and hasattr(sklearn, "get_config"):
        told["sklearn config"] = sklearn.get_config()
    return told


def _pandas_options(pandas: Any) -> dict[str, str]:
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, entry in pandas._config.config._registered_options.items():
            value = pandas.get_option(key)
            if value is not entry.defval and value != entry.defval:
                told[key] = _clean(repr(value))
    return told
