"""Contract of wire/serialize.py.

Notebook code is written as text and run in a namespace that is `__main__`'s, as in a kernel. The other side
is a real second process that has a `__main__` of its own (fixture `worker`).
"""

from __future__ import annotations

import asyncio
import builtins
import collections
import concurrent.futures
import copyreg
import ctypes
import dataclasses
import enum
import functools
import inspect
import io
import itertools
import logging
import mmap
import multiprocessing
import operator
import os
import pickle
import queue
import select
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from jupyter_tasks.exceptions import ObjectLostError, UnserializableError
from jupyter_tasks.wire import culprit, serialize
from jupyter_tasks.wire.culprit import blame
from jupyter_tasks.wire.serialize import dumps, loads
from jupyter_tasks.wire.shared import Payload, pack, unpack

Namespace = dict[str, Any]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """A kernel's user namespace: the dict of the module `__main__`."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    main.__dict__["__builtins__"] = builtins
    return main.__dict__


def run(source: str, namespace: Namespace) -> Namespace:
    exec(compile(textwrap.dedent(source), "<cell>", "exec", dont_inherit=True), namespace)
    return namespace


def send(sock: socket.socket, payload: Payload) -> None:
    sock.sendall(struct.pack("<Q?", len(payload.head), payload.fd is not None))
    if payload.fd is not None:
        socket.send_fds(sock, [b"."], [payload.fd])
    sock.sendall(payload.head)
    payload.close()


def receive(sock: socket.socket, namespace: Namespace | None) -> Any:
    size, big = struct.unpack("<Q?", sock.recv(9, socket.MSG_WAITALL))
    fd = socket.recv_fds(sock, 1, 1)[1][0] if big else None
    data, buffers = unpack(sock.recv(size, socket.MSG_WAITALL), fd, writable=True)
    if fd is not None:
        os.close(fd)
    return loads(data, buffers, namespace=namespace)


class Worker:
    """Another process with a `__main__` of its own: takes values by name, runs a cell, gives a value back."""

    LOOP = """
import builtins, os, socket, struct, sys, traceback, types
from jupyter_tasks.wire.serialize import dumps, loads
from jupyter_tasks.wire.shared import pack, unpack
main = sys.modules["__main__"] = types.ModuleType("__main__")
ns = main.__dict__
sock = socket.socket(fileno=int(sys.argv[1]))
while sock.recv(1, socket.MSG_PEEK):
    try:
        names, cell, keep = receive(sock, ns)
        if not keep:
            ns.clear()
        ns.update(names, __name__="__main__", __builtins__=builtins, worker_ns=ns)
        exec(cell, ns)
        answer = dumps((True, ns.get("answer")), namespace=ns)
    except Exception:
        answer = dumps((False, traceback.format_exc()))
    send(sock, pack(*answer))
"""
    SOURCE = "\n".join(
        ["from __future__ import annotations", inspect.getsource(send), inspect.getsource(receive), LOOP]
    )

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        command = [sys.executable, "-c", self.SOURCE, str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def run(self, names: Namespace, cell: str, namespace: Namespace | None, keep: bool = False) -> Any:
        """The `answer` that the cell leaves, loaded into `namespace`. `keep`: the worker's names stay."""
        send(self.sock, pack(*dumps((names, textwrap.dedent(cell), keep), namespace=namespace)))
        good, answer = receive(self.sock, namespace)
        assert good, answer
        return answer

    def close(self) -> None:
        self.sock.close()
        assert self.process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def again(value: Any, **namespaces: Namespace | None) -> Any:
    """There and back in this process."""
    return loads(*dumps(value, **namespaces), **namespaces)


# --- Kinds of values: the worker gets each, checks it, and sends it back to be checked again --------------


def cells(text: str) -> dict[str, tuple[str, str]]:
    """`# %% name`, a cell, and its checks (`# ==>`), as name: (cell, check)."""
    found = {}
    for block in text.split("# %% ")[1:]:
        name, _, rest = block.partition("\n")
        cell, *checks = rest.split("# ==> ")
        found[name] = (cell, " and ".join(f"({check.strip()})" for check in checks))
    return found


KINDS = cells(r"""
# %% none
value = None
# ==> value is None

# %% numbers
value = [1, 2.5, 3j, 10**40, True]
# ==> value == [1, 2.5, 3j, 10**40, True]

# %% text
value = {"a": "é\ud800", "b": b"\0"}
# ==> value == {"a": "é\ud800", "b": b"\0"}

# %% containers
value = ({1, 2}, frozenset("a"), [()])
# ==> value == ({1, 2}, frozenset("a"), [()])

# %% singletons
value = [..., NotImplemented, type(None)]
# ==> value == [..., NotImplemented, type(None)]

# %% cycle
value = []
value.append(value)
# ==> value[0] is value

# %% range and slice
value = [range(3), slice(1, 2)]
# ==> value == [range(3), slice(1, 2)]

# %% date
import datetime
value = datetime.date(2026, 1, 1)
# ==> value.year == 2026

# %% decimal
import decimal
value = decimal.Decimal("1.10")
# ==> str(value) == "1.10"

# %% path
import pathlib
value = pathlib.PurePosixPath("/a")
# ==> value.parts == ("/", "a")

# %% regex
import re
value = re.compile("a(b)")
# ==> value.match("ab")[1] == "b"

# %% module
import os.path as value
# ==> value.join("a", "b") == "a/b"

# %% exception
value = KeyError("k")
# ==> type(value) is KeyError and value.args == ("k",)

# %% counter
import collections
value = collections.Counter("aab")
# ==> value.most_common(1) == [("a", 2)]

# %% deque
import collections
value = collections.deque([1], 2)
# ==> value.maxlen == 2

# %% dict views
value = [{1: 2}.keys(), {1: 2}.values(), {1: 2}.items()]
# ==> list(value[1]) == [2]

# %% builtins
value = [len, str.upper, [].append]
# ==> value[0]("ab") == 2 and value[1]("a") == "A"

# %% function of a library
import json
value = json.dumps
# ==> value([1]) == "[1]"

# %% logger
import logging
value = logging.getLogger("a.b")
# ==> value.name == "a.b"

# %% stdout
import sys
value = sys.stdout
# ==> value.write("") == 0

# %% memoryview
value = memoryview(b"ab")
# ==> bytes(value) == b"ab"

# %% partial of a builtin
import functools
value = functools.partial(int, base=2)
# ==> value("11") == 3

# %% numpy
import numpy as np
value = np.arange(3.0)
# ==> value.sum() == 3 and value.flags.writeable

# %% numpy scalar
import numpy as np
value = np.float32(1.5)
# ==> value == 1.5

# %% numpy, big
import numpy as np
value = np.arange(10**5)
# ==> value[-1] == 10**5 - 1

# %% numpy, strided
import numpy as np
value = np.arange(10)[::-2]
# ==> list(value) == [9, 7, 5, 3, 1]

# %% numpy, objects
import numpy as np
value = np.array([{}, 1], object)
# ==> value[0] == {}

# %% numpy, masked
import numpy as np
value = np.ma.array([1, 2], mask=[0, 1])
# ==> value.sum() == 1

# %% pandas
import pandas as pd
value = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
# ==> value.a.sum() == 3 and list(value.b) == ["x", "y"]

# %% pandas, with dates
import pandas as pd
value = pd.Series([1, 2], pd.date_range("2026-01-01", periods=2))
# ==> value.loc["2026-01-02"] == 2

# %% function
def value(a, b=2, *, c=3):
    return a + b + c
# ==> value(1) == 6

# %% lambda
value = lambda x: x * 2
# ==> value(4) == 8

# %% what belongs to a function
def value(a: int, b: "str" = "") -> float:
    "Doc."
value.note = [1]
# ==> (value.__name__, value.__qualname__, value.__module__) == ("value", "value", "__main__")
# ==> value.__doc__ == "Doc."
# ==> value.__annotations__ == {"a": int, "b": "str", "return": float} and value.note == [1]

# %% every kind of parameter
def value(a, /, b=1, *args, c, d=2, **kw):
    return a, b, args, c, d, kw
# ==> value(1, 2, 3, c=4, z=5) == (1, 2, (3,), 4, 2, {"z": 5})

# %% generator function
def value(n):
    yield from range(n)
# ==> list(value(3)) == [0, 1, 2]

# %% async function
async def value():
    return 5
# ==> __import__("asyncio").run(value()) == 5

# %% async generator function
def outer():
    async def numbers():
        yield 1
    async def collect():
        return [n async for n in numbers()]
    return collect
value = outer()
# ==> __import__("asyncio").run(value()) == [1]

# %% closure
def outer(n):
    def inner(x):
        return x + n
    return inner
value = outer(10)
# ==> value(1) == 11

# %% closure over a name not assigned yet
def outer():
    def inner():
        return late
    if 0:
        late = 1
    return inner
value = outer()
# ==> value.__code__.co_freevars == ("late",) and "empty" in repr(value.__closure__[0])

# %% recursive closure
def outer():
    def fact(n):
        return 1 if n == 0 else n * fact(n - 1)
    return fact
value = outer()
# ==> value(5) == 120 and value.__closure__[0].cell_contents is value

# %% mutually recursive closures
def outer():
    def even(n):
        return n == 0 or odd(n - 1)
    def odd(n):
        return n != 0 and even(n - 1)
    return even
value = outer()
# ==> value(10) and not value(7)

# %% wraps
import functools
def twice(f):
    @functools.wraps(f)
    def g(*args):
        return f(*args) * 2
    return g
@twice
def value(x):
    "Doc."
    return x
# ==> value(3) == 6 and value.__wrapped__(3) == 3
# ==> value.__doc__ == "Doc." and value.__name__ == "value"

# %% contextmanager
import contextlib
@contextlib.contextmanager
def value(x):
    yield x
# ==> value(4).__enter__() == 4

# %% partial
import functools
value = functools.partial(lambda a, b: a - b, b=1)
# ==> value(3) == 2

# %% lru_cache
import functools
@functools.lru_cache(maxsize=7, typed=True)
def value(x):
    "Doc."
    return x + 1
value.note = "kept"
# ==> value.cache_info().currsize == 0 and value(1) == 2
# ==> value.cache_parameters() == {"maxsize": 7, "typed": True}
# ==> value.__doc__ == "Doc." and value.note == "kept"

# %% cache
import functools
@functools.cache
def value(x):
    return x
# ==> value.cache_parameters()["maxsize"] is None

# %% recursive lru_cache
import functools
def outer():
    @functools.lru_cache
    def fib(n):
        "Doc."
        return n if n < 2 else fib(n - 1) + fib(n - 2)
    return fib
value = outer()
# ==> value(50) == 12586269025
# ==> value.__doc__ == "Doc." and value.__name__ == "fib"

# %% singledispatch
import functools
@functools.singledispatch
def value(x):
    "Doc."
    return "any"
@value.register
def _(x: int):
    return "int"
@value.register(list)
def _(x):
    return "list"
# ==> [value(x) for x in ("", 1, True, [])] == ["any", "int", "int", "list"]
# ==> value.__doc__ == "Doc." and value.dispatch(int) is value.registry[int]

# %% recursive singledispatch
import functools
def outer():
    @functools.singledispatch
    def total(x):
        return x
    @total.register(list)
    def _(x):
        return sum(total(i) for i in x)
    return total
value = outer()
# ==> value([1, [2, [3]]]) == 6

# %% class
class value:
    x = 1
    def m(self):
        return self.x
# ==> value().m() == 1

# %% instance
class A:
    def __init__(self):
        self.y = [1]
value = A()
# ==> value.y == [1]

# %% bound method
class A:
    def m(self):
        return self.n
a = A()
a.n = 3
value = a.m
# ==> value() == 3

# %% class hierarchy with super()
class A:
    def m(self):
        return "A"
class B(A):
    def m(self):
        return "B" + super().m()
class C(B):
    def m(self):
        return "C" + super().m()
value = C()
# ==> value.m() == "CBA"

# %% abstract base class
import abc
class A(abc.ABC):
    @abc.abstractmethod
    def m(self): ...
class B(A):
    def m(self):
        return 1
A.register(int)
value = (A, B())
# ==> value[1].m() == 1 and isinstance(value[1], value[0]) and isinstance(1, value[0])

# %% metaclass
class M(type):
    def __len__(cls):
        return 7
class value(metaclass=M):
    pass
# ==> len(value) == 7

# %% slots
class A:
    __slots__ = ("a", "b", "__private")
    def __init__(self):
        self.a, self.__private = 1, 2
class B(A):
    __slots__ = "c"
value = B()
value.c = 3
# ==> (value.a, value._A__private, value.c) == (1, 2, 3) and not hasattr(value, "b")
# ==> not hasattr(value, "__dict__")

# %% dataclass with slots
import dataclasses
@dataclasses.dataclass(slots=True, frozen=True)
class A:
    a: int
    b: int = 2
value = A(1)
# ==> value == type(value)(1) and not hasattr(value, "__dict__")

# %% kinds of methods
class A:
    @property
    def p(self):
        return 1
    @staticmethod
    def s():
        return 2
    @classmethod
    def c(cls):
        return cls
value = A()
# ==> (value.p, value.s()) == (1, 2) and value.c() is type(value)

# %% lru_cache on a method
import functools
class A:
    @functools.lru_cache(3)
    def m(self, x):
        return x * 2
value = A()
# ==> value.m(2) == 4 and type(value).m.cache_parameters()["maxsize"] == 3

# %% cached_property
import functools
class A:
    n = 0
    @functools.cached_property
    def p(self):
        "Doc."
        self.n += 1
        return self.n
value = A()
# ==> (value.p, value.p) == (1, 1) and type(value).p.__doc__ == "Doc."

# %% singledispatchmethod
import functools
class A:
    @functools.singledispatchmethod
    def m(self, x):
        return "any"
    @m.register
    def _(self, x: int):
        return "int"
value = A()
value.m(1)
# ==> (value.m(""), value.m(1)) == ("any", "int")

# %% dataclass
import dataclasses
@dataclasses.dataclass(order=True)
class A:
    a: int
    b: list = dataclasses.field(default_factory=list)
value = A(1)
# ==> value == type(value)(1) < type(value)(2) and repr(value) == "A(a=1, b=[])"
# ==> [f.name for f in __import__("dataclasses").fields(value)] == ["a", "b"]

# %% enum
import enum
class E(enum.Enum):
    A = 1
    B = 2
    def next(self):
        return type(self)(self.value % 2 + 1)
value = (E, E.A)
# ==> value[1] is value[0].A and value[1].next() is value[0].B

# %% namedtuple
import collections
value = collections.namedtuple("P", "x y")(1, 2)
# ==> value.y == 2 and value._replace(x=0) == (0, 2)

# %% NamedTuple
import typing
class P(typing.NamedTuple):
    x: int = 1
    def m(self):
        return self.x
value = P()
# ==> value.m() == 1

# %% generic class
import typing
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    v = 1
value = Box[int]()
# ==> value.v == 1

# %% exception of the notebook
class MyError(ValueError):
    def __init__(self, code):
        super().__init__(code)
        self.code = code
value = MyError(3)
# ==> value.code == 3 and isinstance(value, ValueError)

# %% __reduce__
class A:
    def __init__(self, n):
        self.n = n
    def __reduce__(self):
        return type(self), (self.n,)
value = A(4)
# ==> value.n == 4

# %% exception with an __init__ of its own
class MyError(Exception):
    def __init__(self, stage, *, code=1):
        super().__init__(f"stage {stage} failed")
        self.stage, self.code = stage, code
value = MyError("load", code=7)
# ==> (value.args, value.stage, value.code) == (("stage load failed",), "load", 7)

# %% exception with slots and fields of its base
class MyError(SyntaxError):
    __slots__ = ("note",)
    def __init__(self, note):
        super().__init__("no good", ("cell.py", 3, 1, "x ="))
        self.note = note
value = MyError([1])
# ==> (value.note, value.lineno, value.filename, str(value)) == ([1], 3, "cell.py", "no good (cell.py, line 3)")

# %% exception with its causes
def fail():
    try:
        try:
            {}["a"]
        except KeyError as error:
            raise ValueError("v") from error
    except ValueError:
        raise TypeError("t") from None
try:
    fail()
except TypeError as error:
    value = error
    value.kept = [error.__context__]
# ==> value.__suppress_context__ and value.__cause__ is None and value.kept[0] is value.__context__
# ==> repr(value.__context__.__cause__) == "KeyError('a')"

# %% match
import re
value = [*re.finditer("a(?P<n>b)?", "ab a"), re.compile("x*").fullmatch("xx"), re.search("b", "abab", 0)]
value.append(re.compile("b").search("abab", 2, 4))
# ==> [m.regs for m in value] == [((0, 2), (1, 2)), ((3, 4), (-1, -1)), ((0, 2),), ((1, 2),), ((3, 4),)]
# ==> value[0]["n"] == "b" and value[0].lastgroup == "n" and value[4].pos == 2

# %% generator that has ended
def value(): yield 1
value = value()
list(value)
# ==> list(value) == [] and value.__qualname__ == "value" and value.gi_frame is None

# %% coroutine that has ended
async def value(): return 1
value = value()
try:
    value.send(None)
except StopIteration:
    pass
# ==> value.__name__ == "value" and value.cr_frame is None

# %% async generator that has ended
async def value(): yield 1
async def all_of(it): return [each async for each in it]
value = value()
__import__("asyncio").run(all_of(value))
# ==> value.__name__ == "value" and value.ag_frame is None

# %% iterator that has ended
value = [iter([1]), iter("ab"), iter("é"), iter((1,))]
rest = [list(each) for each in value]
# ==> [each.__reduce__()[2:] for each in value] == [()] * 4 and not any(map(list, value))

# %% context manager as a decorator
import contextlib
@contextlib.contextmanager
def tagged(found):
    found.append("in")
    yield
    found.append("out")
found = []
@tagged(found)
def value(found=found):
    return list(found)
value.found = found
# ==> value()[-1] == "in" and value.found[-1] == "out" and value.__closure__[1].cell_contents.args[0] is value.found

# %% closed buffers
import io
value = [io.StringIO("a"), io.BytesIO(b"a"), io.StringIO("b")]
value[0].close()
value[1].close()
# ==> [type(each).__name__ for each in value] == ["StringIO", "BytesIO", "StringIO"]
# ==> [each.closed for each in value] == [True, True, False] and value[2].getvalue() == "b"

# %% enum with aliases, and members with attributes
import enum
class E(enum.Enum):
    A = 1, "x"
    B = 2, "y"
    C = 1, "x"
    def __init__(self, number, text):
        self.number, self.text = number, text
class F(enum.Flag):
    R, W = 1, 2
    RW = 3
value = (E, E.C, F.RW)
# ==> value[0].A is value[1] is value[0]["C"] and list(value[0].__members__) == ["A", "B", "C"]
# ==> (value[1].number, value[0].B.text) == (1, "y")
# ==> type(value[2])(3) is value[2] is type(value[2])["RW"]

# %% nested classes
class Outer:
    class Inner:
        pass
value = Outer
# ==> (value.Inner.__qualname__, value.Inner.__name__) == ("Outer.Inner", "Inner")

# %% what a class says again
class A:
    x = limit = 1
class B(A):
    __slots__ = ()
    x = A.x
class C:
    __slots__ = ()
value = (B, C)
# ==> "x" in vars(value[0]) and not hasattr(value[1](), "__dict__")

# %% type variable
import typing
value = typing.TypeVar("T", bound=int)
# ==> (value.__module__, value.__bound__) == ("__main__", int)

# %% protocol
import typing
@typing.runtime_checkable
class P(typing.Protocol):
    def size(self): ...
class Bag:
    def size(self): return 0
value = (P, Bag())
# ==> isinstance(value[1], value[0]) and not isinstance(3, value[0])
# ==> {"_is_protocol", "__parameters__"} <= set(vars(value[0]))

# %% array of a class with attributes
import numpy as np
class Tagged(np.ndarray):
    def __array_finalize__(self, obj):
        self.tag = getattr(obj, "tag", None)
value = np.arange(2.0).view(Tagged)
value.tag = "m"
# ==> type(value).__name__ == "Tagged" and value.tag == "m" and value.tolist() == [0.0, 1.0]

# %% subclass of dict
class D(dict):
    pass
value = D(a=1)
value.extra = 2
# ==> value == {"a": 1} and value.extra == 2

# %% an instance that knows itself
class A:
    pass
value = A()
value.me = value
# ==> value.me is value
""")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_to_a_worker_and_comes_back(kind: str, notebook: Namespace, worker: Worker) -> None:
    source, check = KINDS[kind]
    value = run(source, notebook)["value"]
    back = worker.run({"value": value}, f"assert {check}\nanswer = value", notebook)
    assert eval(check, {"value": back})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_also_goes_without_a_namespace(kind: str, notebook: Namespace, worker: Worker) -> None:
    source, check = KINDS[kind]
    value = run(source, notebook)["value"]
    back = worker.run({"value": value}, f"assert {check}\nanswer = value", None)
    assert eval(check, {"value": back})


def test_functions_that_share_a_variable_go_on_sharing_it(notebook: Namespace, worker: Worker) -> None:
    """cloudpickle alone gives each function a variable of its own."""
    cell = """
        def outer():
            n = 0
            def up():
                nonlocal n
                n += 1
            def now():
                return n
            return up, [now]
        up, (now,) = outer()
        up()
        """
    run(cell, notebook)
    names = {"now": notebook["now"], "up": notebook["up"]}
    up, now = worker.run(names, "up()\nup()\nassert now() == 3\nanswer = [up, now]", notebook)
    up()
    assert (now(), notebook["now"]()) == (4, 1)


# --- Functions are rebound --------------------------------------------------------------------------------


def test_a_notebook_function_reads_the_workers_globals_and_then_the_kernels(
    notebook: Namespace, worker: Worker
) -> None:
    """What plain cloudpickle gets silently wrong: the function would go on reading the old value."""
    run("k = 1\ndef f(): return k", notebook)
    cell = "assert f.__globals__ is worker_ns\nassert f() == 1\nk = 2\nassert f() == 2\nanswer = f"
    f = worker.run({"f": notebook["f"], "k": 1}, cell, notebook)
    assert f.__globals__ is notebook
    assert f() == 1
    notebook["k"] = 3
    assert f() == 3


def test_a_function_takes_no_globals_along(notebook: Namespace, worker: Worker) -> None:
    run("big = 'x' * 100_000\nlock = __import__('threading').Lock()\ndef f(): return big, lock", notebook)
    data, _ = dumps(notebook["f"], namespace=notebook)
    assert len(data) < 1000
    assert worker.run({"f": notebook["f"]}, "answer = 'big' in globals()", notebook) is False


def test_a_function_made_in_a_worker_is_rebound_to_the_kernel(notebook: Namespace, worker: Worker) -> None:
    f = worker.run({}, "k = 1\ndef helper(): return k\ndef f(): return helper()\nanswer = f", notebook)
    assert f.__globals__ is notebook
    with pytest.raises(NameError, match="helper"):
        f()
    run("k = 5\ndef helper(): return k + 1", notebook)
    assert f() == 6


REBOUND = cells("""
# %% method
class A:
    def f(self):
        return k
value = A()

# %% static method
class value:
    @staticmethod
    def f():
        return k

# %% class method
class value:
    @classmethod
    def f(cls):
        return k

# %% property
class A:
    @property
    def f(self):
        return lambda: k
value = A()

# %% nested function
class value: pass
def outer():
    def f():
        return k
    return f
value.f = outer()

# %% function made in an instance
class A:
    def __init__(self):
        self.f = lambda: k
value = A()

# %% default of a parameter
class value: pass
def g(h=lambda: k):
    return h()
value.f = g

# %% wraps, with the name of a builtin
import functools
class value: pass
@functools.wraps(print)
def g():
    return k
value.f = g

# %% lru_cache
import functools
class value: pass
@functools.lru_cache(0)
def g():
    return k
value.f = g

# %% lru_cache on a method
import functools
class A:
    @functools.lru_cache(0)
    def f(self):
        return k
value = A()

# %% cached_property
import functools
class A:
    @functools.cached_property
    def f(self):
        return lambda: k
value = A()

# %% singledispatch
import functools
class value: pass
@functools.singledispatch
def g(x):
    return None
@g.register
def _(x: int):
    return k
value.f = functools.partial(g, 0)

# %% dataclass
import dataclasses
@dataclasses.dataclass
class A:
    x: int = 0
    def f(self):
        return k
value = A()

# %% inherited with super()
class B:
    def f(self):
        return k
class A(B):
    def f(self):
        return super().f()
value = A()

# %% generator function
class value: pass
def g():
    yield k
value.f = lambda g=g: next(g())

# %% async function
class value: pass
async def g():
    return k
value.f = lambda g=g: __import__("asyncio").run(g())
""")


@pytest.mark.parametrize("kind", REBOUND)
def test_every_function_in_a_value_is_rebound_both_ways(kind: str, notebook: Namespace, worker: Worker) -> None:
    run("k = 'kernel'\n" + REBOUND[kind][0], notebook)
    cell = "assert value.f() == 'worker', value.f()\nk = 'later'\nassert value.f() == 'later'\nanswer = value"
    back = worker.run({"value": notebook["value"], "k": "worker"}, cell, notebook)
    assert back.f() == "kernel"
    notebook["k"] = "changed"
    assert back.f() == "changed"


def test_mutual_recursion_through_globals(notebook: Namespace, worker: Worker) -> None:
    """All names go in one pickle; functions find each other in the worker's namespace."""
    run("def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)", notebook)
    names = {name: notebook[name] for name in ("even", "odd")}
    assert worker.run(names, "answer = [even(10), odd(10), even is odd.__globals__['even']]", notebook) == [
        *(True, False, True)
    ]


def test_a_function_brings_the_submodules_it_uses(notebook: Namespace, worker: Worker) -> None:
    """`import xml.dom.minidom` binds only `xml`, and a worker that imports `xml` has no `xml.dom.minidom`."""
    run(
        "import xml.dom.minidom\ndef f(): return xml.dom.minidom.parseString('<a/>').firstChild.tagName",
        notebook,
    )
    assert worker.run({"f": notebook["f"], "xml": notebook["xml"]}, "answer = f()", notebook) == "a"
    run("def g():\n    return [xml.dom.minidom for _ in '1']", notebook)
    assert "xml.dom.minidom" in serialize._used_submodules(notebook["g"])


def test_without_a_namespace_functions_of_one_pickle_share_a_fresh_one(notebook: Namespace) -> None:
    cell = """
        def set(v):
            global shared
            shared = v
        def get():
            return shared
        def mk():
            class A: pass
            return A
        """
    run(cell, notebook)
    data, buffers = dumps([notebook["set"], notebook["get"], notebook["mk"]], namespace=notebook)
    set_, get, mk = loads(data, buffers)
    set_(4)
    assert get() == 4
    assert "shared" not in notebook
    assert set_.__globals__ is get.__globals__ is not notebook
    assert mk().__module__ == "__main__"
    assert loads(data)[0].__globals__ is not set_.__globals__


def test_without_a_namespace_on_either_side_globals_travel_as_cloudpickle_does_it(
    notebook: Namespace,
) -> None:
    run("k = 1\ndef f(): return k", notebook)
    f = again(notebook["f"])
    notebook["k"] = 2
    assert f() == 1


def test_the_namespace_itself_becomes_the_other_sides(notebook: Namespace, worker: Worker) -> None:
    run("value = {'g': globals(), 'f': lambda: 1}", notebook)
    cell = "assert value['g'] is worker_ns is value['f'].__globals__\nanswer = [globals(), value]"
    back = worker.run({"value": notebook["value"]}, cell, notebook)
    assert back[0] is notebook
    assert back[1]["g"] is notebook
    assert again(notebook, namespace=notebook) is notebook


def test_functions_of_other_namespaces_keep_their_globals(notebook: Namespace) -> None:
    """A module made at run time, such as %run makes, is not the notebook."""
    other = run("k = 1\ndef f(): return k", {"__name__": "elsewhere"})
    f = again(other["f"], namespace=notebook)
    assert f.__globals__ is not notebook
    assert f() == 1


def test_a_load_inside_a_load_has_its_own_namespace(notebook: Namespace) -> None:
    inner_ns = run("def inner(): return k", {"__name__": "__main__", "k": "inner"})
    inner = dumps(inner_ns["inner"], namespace=inner_ns)
    target: Namespace = {"k": "target"}

    class Nested:
        def __init__(self, with_namespace: bool) -> None:
            self.with_namespace = with_namespace

        def __reduce__(self) -> Any:
            return (lambda n: loads(*inner, namespace=target if n else None)), (self.with_namespace,)

    run("k = 'outer'\ndef f(): return k", notebook)
    value = [notebook["f"], Nested(True), Nested(False), notebook["f"], lambda: 1]
    first, bound, fresh, last, _ = again(value, namespace=notebook)
    assert (first(), last(), bound()) == ("outer", "outer", "target")
    assert first.__globals__ is last.__globals__ is notebook
    assert set(fresh.__globals__) == {"__name__", "__builtins__"}
    assert serialize._load.namespace is None


def test_the_namespace_of_a_failed_load_is_forgotten(notebook: Namespace) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return operator.truediv, (1, 0)

    with pytest.raises(ZeroDivisionError):
        again([Broken()], namespace=notebook)
    assert serialize._load.namespace is None


def test_loads_in_several_threads_do_not_mix(notebook: Namespace) -> None:
    run("def f(): return k", notebook)
    pickled = dumps([notebook["f"]], namespace=notebook)
    barrier = threading.Barrier(4)

    def load_many(n: int) -> bool:
        barrier.wait(timeout=30)
        return all(loads(*pickled, namespace={"k": n})[0]() == n for _ in range(300))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load_many, range(4)))


def test_plain_pickle_can_load_it_too(notebook: Namespace) -> None:
    """Also Python's own unpickler: what dumps writes in front is ordinary pickle."""
    run("def f(): return 1", notebook)
    data, _ = dumps(notebook["f"], namespace=notebook)
    assert pickle.loads(data)() == 1
    assert pickle._loads(data)() == 1  # type: ignore[attr-defined]


def test_annotations_that_cannot_be_evaluated_are_left_out(notebook: Namespace) -> None:
    """From Python 3.14 on they are evaluated when asked for."""
    run("def f(x: 'Missing'): return x", notebook)
    assert again(notebook["f"], namespace=notebook)(2) == 2
    if sys.version_info >= (3, 14):
        run("def g(x: Missing): return x", notebook)
        assert again(notebook["g"], namespace=notebook)(2) == 2


# --- Classes are written once -----------------------------------------------------------------------------


def test_nothing_is_told_again_of_a_class_that_arrives(notebook: Namespace, worker: Worker) -> None:
    """Promise: `--wait -o '*'` is like the cell in the kernel, where a class is written, and told of, once.

    Neither the metaclass's methods nor `__init_subclass__` nor `__set_name__`, which may read names that are not there yet.
    """
    cell = """
        class Registry(type):
            seen = []
            def __new__(meta, name, bases, body, **options):
                meta.seen.append(("new", name))
                return super().__new__(meta, name, bases, body, **options)
            def __init__(cls, name, bases, body, **options):
                Registry.seen.append(("init", name))
            def __setattr__(cls, name, value):
                Registry.seen.append(("set", name))
                super().__setattr__(name, value)
        class Column:
            def __set_name__(self, owner, name):
                Registry.seen.append(("named", name))
                self.name = name
        class Model(metaclass=Registry):
            def __init_subclass__(cls, table, **rest):
                Registry.seen.append(("sub", Model.__name__, table))
                cls.table = table
        class House(Model, table="houses"):
            rooms = Column()
        class Slotted:
            __slots__ = ("x",)
            def __init_subclass__(cls):
                Registry.seen.append(("sub", cls.__name__))
        class Bare(Slotted):
            __slots__ = ("y",)
        class Empty:
            __slots__ = ()
            def __init_subclass__(cls):
                Registry.seen.append(("sub", cls.__name__))
        class Full(Empty): pass
        class Items(Empty, list): pass
        class Told(Full, dict): pass
        """
    names = ("Registry", "House", "Items", "Bare", "Full", "Told")
    give = f"answer = [{', '.join(names)}, House.rooms.name, House.table, list(Registry.seen)]"
    run(cell, notebook)
    seen = list(notebook["Registry"].seen)
    checks = """
        assert House.__mro__[1].__name__ == "Model" and House.__base__ is House.__mro__[1], House.__mro__
        assert type(House) is Registry and [c.__name__ for c in Items.__mro__[1:3]] == ["Empty", "list"]
        assert not hasattr(Bare(), "__dict__") and Full().__dict__ == {} and isinstance(Told(), dict)
        assert all(len(c.__subclasses__()) == 1 for c in (House.__base__, Full))
        """
    back = worker.run({name: notebook[name] for name in names}, textwrap.dedent(checks) + give, notebook)
    assert back == [*(notebook[name] for name in names), "rooms", "houses", seen]
    assert notebook["Registry"].seen == seen
    # The other way: born in the worker.
    *classes, name, table, there = worker.run({}, textwrap.dedent(cell) + give, notebook)
    assert (name, table, there) == ("rooms", "houses", seen)
    assert classes[0].seen == seen
    assert issubclass(classes[2], list)


# --- Errors -----------------------------------------------------------------------------------------------


def test_a_cause_that_cannot_be_sent_stays_behind_alone(notebook: Namespace) -> None:
    """Promise: errors come home. What was behind one is no reason to refuse it."""
    try:
        try:
            raise KeyError(LOCK)
        except KeyError as error:
            raise ValueError("v") from error
    except ValueError as error:
        kept = error
    back = again(kept, namespace=notebook)
    assert (back.args, back.__cause__) == (("v",), None)
    end: BaseException = KeyError(0)
    for number in range(30):  # each is tried once for each before it, not twice as often with every step
        error = KeyError(number)
        error.__context__, end = end, error
    assert again(end, namespace=notebook).__context__.__context__.args == (27,)


# --- Identity ---------------------------------------------------------------------------------------------


def test_shared_objects_stay_shared(notebook: Namespace, worker: Worker) -> None:
    array = np.arange(5)
    both = {"a": array, "b": array, "v": [array]}
    back = worker.run({"both": both}, "assert both['a'] is both['b'] is both['v'][0]\nanswer = both", notebook)
    assert back["a"] is back["b"] is back["v"][0]
    run("def f(): pass\nvalue = [f, f, {'k': f}]", notebook)
    one, two, three = again(notebook["value"], namespace=notebook)
    assert one is two is three["k"]


def test_a_class_sent_twice_is_the_same_class(notebook: Namespace, worker: Worker) -> None:
    run("class A:\n    def m(self): return k\na = A()", notebook)
    worker.run({"a": notebook["a"]}, "answer = None", notebook)
    cell = "assert isinstance(a, A) and type(a) is A\nk = 1\nanswer = [a, A, a.m()]"
    worker.run({"A": notebook["A"]}, "first = A", notebook)
    a, cls, value = worker.run({"a": notebook["a"], "A": notebook["A"]}, cell, notebook)
    assert (type(a), cls, value) == (notebook["A"], notebook["A"], 1)


def test_a_class_kept_by_the_worker_follows_the_kernels(notebook: Namespace, worker: Worker) -> None:
    run("class A:\n    x = 1", notebook)
    worker.run({"A": notebook["A"]}, "kept = A()", notebook)
    notebook["A"].x = 2
    notebook["A"].y = lambda self: 3
    cell = "assert type(kept) is A\nanswer = (kept.x, kept.y())"
    assert worker.run({"A": notebook["A"]}, cell, notebook, keep=True) == (2, 3)


def test_a_class_that_comes_home_does_not_undo_what_the_kernel_did_meanwhile(
    notebook: Namespace, worker: Worker
) -> None:
    """1. sent with x = 1  2. the kernel sets x = 2  3. an instance comes back from the worker."""
    cell = """
        import enum
        class A:
            x = 1
            def m(self):
                return "old"
        class E(enum.Enum):
            P = 1
        """
    run(cell, notebook)
    worker.run({"A": notebook["A"], "E": notebook["E"]}, "A.x = 99", notebook)
    run("A.x = 2\nA.m = lambda self: 'new'", notebook)
    a, member = worker.run({}, "answer = [A(), E.P]", notebook, keep=True)
    assert type(a) is notebook["A"]
    assert (a.x, a.m()) == (2, "new")
    assert member is notebook["E"].P


def test_a_class_born_in_a_worker_follows_the_worker(notebook: Namespace, worker: Worker) -> None:
    first = worker.run({}, "class A: x = 1\nanswer = A", notebook)
    second = worker.run({}, "A.x = 2\nanswer = A()", notebook, keep=True)
    assert type(second) is first
    assert first.x == 2


# --- Buffers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (np.arange(1000), 1),
        (np.asfortranarray(np.ones((9, 9))), 1),
        ([np.arange(3), np.arange(4)], 2),
        (np.arange(10)[::2], 0),
        (np.array([1, None], object), 0),
        (pd.Series(np.arange(100.0)), 1),
        (pd.DataFrame(np.ones((10, 3))), 1),
        (pd.DataFrame({"a": np.arange(9), "b": np.arange(9.0)}), 2),
        (b"x" * 1000, 0),
        (bytearray(1000), 0),
        (pickle.PickleBuffer(b"abc"), 1),
    ],
)
def test_arrays_leave_the_pickle_as_buffers(value: Any, count: int) -> None:
    """The buffers are the caller's memory, not a copy, and so are the loaded arrays' (zero-copy)."""
    data, buffers = dumps([value])
    assert len(buffers) == count
    assert len(data) < 3000


def test_neither_side_copies() -> None:
    array = np.arange(20_000)
    data, buffers = dumps({"a": array})
    back = loads(data, buffers)["a"]
    assert back.ctypes.data == array.ctypes.data
    assert np.shares_memory(back, array)


@pytest.mark.parametrize("length", [10, 100_000])
@pytest.mark.parametrize("writable", [False, True])
def test_arrays_are_read_only_or_private_whatever_their_size(length: int, writable: bool) -> None:
    original = np.arange(length)
    frame = pd.DataFrame({"a": original})
    data, buffers = dumps({"array": original, "frame": frame})
    with_fd = pack(data, buffers)
    other = unpack(with_fd.head, with_fd.fd, writable=False)
    back = loads(*unpack(with_fd.head, with_fd.fd, writable=writable))
    with_fd.close()
    assert back["array"].flags.writeable is writable
    assert back["frame"]["a"].sum() == original.sum()
    if writable:
        back["array"][0] = 99
        assert original[0] == 0
        assert loads(*other)["array"][0] == 0
        back["frame"].iloc[0, 0] = 99
    else:
        with pytest.raises(ValueError, match="read-only"):
            back["array"][0] = 99


def test_an_array_that_owns_its_memory_does_so_over_there() -> None:
    """So that it can be resized. Large ones stay mapped, and views are views; see also the two tests above."""
    small, large = np.arange(6), np.arange(100_000)
    data, mapped = unpack((payload := pack(*dumps([small, small[1:], large]))).head, payload.fd, writable=True)
    payload.close()
    one, view, two = loads(data, mapped)
    assert (one.flags.owndata, view.flags.owndata, two.flags.owndata) == (True, False, False)
    one.resize(9, refcheck=False)
    assert one.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0]
    order = loads(*dumps(np.asfortranarray(np.ones((2, 3)))))
    assert order.flags.f_contiguous


def test_a_read_only_array_stays_read_only() -> None:
    array = np.arange(10)
    array.flags.writeable = False
    payload = pack(*dumps([array]))
    assert not loads(*unpack(payload.head, payload.fd, writable=True))[0].flags.writeable


# --- The short cut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        True,
        None,
        "s",
        b"b",
        (),
        (1, "a"),
        ((), {}),
        ((1, 2.5, None), {}),
        ((b"",), {}),
        tuple(range(8)),
    ],
)
def test_plain_values_take_the_short_cut(value: Any) -> None:
    assert serialize._is_plain(value)
    data, buffers = dumps(value, namespace={})
    assert data == pickle.dumps(value, 5)
    assert buffers == []
    assert loads(data) == value


@pytest.mark.parametrize(
    "value",
    [
        len,
        int,
        lambda: 1,
        object(),
        (int,),
        ((lambda: 1,), {}),
        ((1,), {"k": len}),
        ((1,), {"k": 1}),
        ([],),
        (1, {}),
        ((), {}, 1),
        (((),), {}),
        tuple(range(9)),
        enum.IntEnum("E", "A").A,  # type: ignore[attr-defined]
        collections.namedtuple("P", "x")(1),
        type("MyInt", (int,), {})(3),
        type("MyStr", (str,), {})("s"),
        (type("MyInt", (int,), {})(3),),
        [1],
    ],
)
def test_what_may_hold_code_never_takes_it(value: Any) -> None:
    """Plain pickle sends functions and classes by name, and a worker's `__main__` does not know the name."""
    assert not serialize._is_plain(value)


# --- IPython, streams, hooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ZMQInteractiveShell", "TerminalInteractiveShell", "InteractiveShell"])
def test_a_shell_becomes_the_loading_sides_shell(
    name: str, notebook: Namespace, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is recognised by name; the worker here has no IPython, so it gets None, as get_ipython() gives."""

    def get_ipython(self: Any) -> Any:
        return self

    def run_line_magic(self: Any) -> Any:
        return self

    members = {"lock": threading.Lock(), "get_ipython": get_ipython, "run_line_magic": run_line_magic}
    shell, here = type(name, (), members)(), type(name, (), members)()
    value = {"shell": shell, "get_ipython": shell.get_ipython}
    assert worker.run({"v": value}, "answer = [v['shell'], v['get_ipython']()]", notebook) == [None, None]
    with pytest.raises(AssertionError, match="there is no IPython shell here"):
        worker.run({"v": shell.run_line_magic}, "", notebook)

    ipython = types.ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(ipython, "get_ipython", lambda: here, raising=False)
    back = again({**value, "magic": shell.run_line_magic}, namespace=notebook)
    assert back["shell"] is back["get_ipython"]() is back["magic"]() is here


def test_standard_streams_become_the_loading_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's stdout is an object of ipykernel's with a lock and sockets."""
    stream = type("OutStream", (), {"lock": threading.Lock()})()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    pickled = dumps([sys.stdout, sys.stderr, sys.__stdout__])
    monkeypatch.setattr(sys, "stdout", "other")
    assert loads(*pickled) == ["other", sys.stderr, sys.__stdout__]


def test_the_hook_is_asked_first_and_may_pass() -> None:
    class Ref:
        lock = threading.Lock()

    asked = []

    def reducers(obj: object) -> object:
        asked.append(obj)
        return (complex, (1, 2)) if isinstance(obj, Ref) else NotImplemented

    value = {"ref": [Ref()], "f": len, "c": Ref}
    with pytest.raises(UnserializableError, match=r"value\['c'\].lock is a _thread.lock"):
        dumps(value, reducers=reducers)
    del value["c"]
    assert loads(*dumps(value, reducers=reducers)) == {"ref": [1 + 2j], "f": len}
    assert len in asked


def test_errors_of_ours_from_the_hook_pass_through() -> None:
    def reducers(obj: object) -> object:
        raise ObjectLostError("gone")

    with pytest.raises(ObjectLostError, match="gone"):
        dumps([len], reducers=reducers)


def test_copyreg_is_followed_also_when_it_changes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        lock = threading.Lock()

    monkeypatch.setitem(copyreg.dispatch_table, Foreign, lambda _: (complex, (1, 2)))
    assert again([Foreign()]) == [1 + 2j]


def test_modules_registered_by_value_are_sent_by_value(notebook: Namespace, worker: Worker) -> None:
    """Also their cached functions, which cloudpickle alone would send by name."""
    module = types.ModuleType("local_module")
    sys.modules["local_module"] = module
    try:
        run("import functools\nn = 5\n@functools.cache\ndef f(): return n", module.__dict__)
        cloudpickle.register_pickle_by_value(module)
        assert worker.run({"f": module.f}, "answer = f()", notebook) == 5
        cloudpickle.unregister_pickle_by_value(module)
        assert again(module.f) is module.f
    finally:
        del sys.modules["local_module"]


def test_the_parts_of_cloudpickle_and_pickle_that_we_build_on() -> None:
    """If this fails after an upgrade, read _Pickler.__init__ and _reduce_class again."""
    assert types.CellType in cloudpickle.Pickler.dispatch_table.maps[0]
    pickler = cloudpickle.Pickler(io.BytesIO(), 5)

    class Local:
        pass

    make, arguments, state, listitems, dictitems, fill = pickler.reducer_override(Local)
    assert (listitems, dictitems) == (None, None)
    cls = make(*arguments)
    assert cls is Local  # its tracker knows it
    assert isinstance(state, tuple)
    assert callable(fill)
    key: dict[str, int] = {}
    pickler.memo = {id(key): (0, key)}
    assert list(pickler.memo.copy().values()) == [(0, key)]


# --- What cannot be sent ----------------------------------------------------------------------------------

LOCK = threading.Lock()


class Plain:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


class Slotted:
    __slots__ = ("__private", "public")

    def __init__(self, public: Any, private: Any) -> None:
        self.public = public
        self.__private = private


@dataclasses.dataclass
class Record:
    field: Any


class HasLock:
    guard = LOCK


class RaisesInGetState:
    def __getstate__(self) -> Any:
        raise ValueError("the connection is closed\nsecond line")


class RaisesInReduce:
    def __reduce__(self) -> Any:
        raise KeyError("no such thing")


class MakesALock:
    def __reduce__(self) -> Any:
        return (Plain, (threading.Lock(),))


class EndlessGetState:
    def __getstate__(self) -> Any:
        return self.__getstate__()


class Proxy:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no application context")

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'Proxy' object")


for _class in (HasLock, Plain, Slotted, Record, MakesALock):
    _class.__module__ = "__main__"  # as if written in a cell

Point = collections.namedtuple("Point", "x y")


def captures(value: Any) -> Callable[[], Any]:
    def f() -> Any:
        return value

    return f


def with_default(a: int, b: Any = LOCK) -> None: ...
def with_keyword_default(*, cfg: Any = {"k": LOCK}) -> None: ...  # noqa: B006
def reads_global() -> Any:
    return LOCK


for _function in (with_default, with_keyword_default, reads_global):
    _function.__module__ = "__main__"

CULPRITS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # what to send, the path, the type
    "root": (lambda: LOCK, "x", "_thread.lock"),
    "dict_list": (lambda: {"a": [LOCK]}, "x['a'][0]", "_thread.lock"),
    "tuples": (lambda: [1, (2, {3: LOCK})], "x[1][1][3]", "_thread.lock"),
    "key": (lambda: {"a": {LOCK: 1}}, "a key of x['a']", "_thread.lock"),
    "set": (lambda: [{LOCK}], "an element of x[0]", "_thread.lock"),
    "below_set": (lambda: {Point(1, LOCK)}, "(an element of x).y", "_thread.lock"),
    "namedtuple": (lambda: Point(1, LOCK), "x.y", "_thread.lock"),
    "deque": (lambda: collections.deque([0, LOCK]), "x[1]", "_thread.lock"),
    "proxy_dict": (lambda: types.MappingProxyType({"a": LOCK}), "x['a']", "_thread.lock"),
    "attributes": (lambda: Plain(opt={"guard": [LOCK]}), "x.opt['guard'][0]", "_thread.lock"),
    "slots": (lambda: Slotted(LOCK, 1), "x.public", "_thread.lock"),
    "private_slot": (lambda: Slotted(1, LOCK), "x._Slotted__private", "_thread.lock"),
    "dataclass": (lambda: Record(LOCK), "x.field", "_thread.lock"),
    "exception": (lambda: ValueError("a", LOCK), "x.args[1]", "_thread.lock"),
    "class_attribute": (lambda: [HasLock()], "HasLock.guard", "_thread.lock"),
    "class": (lambda: HasLock, "x.guard", "_thread.lock"),
    "partial_args": (lambda: functools.partial(print, LOCK), "x.args[0]", "_thread.lock"),
    "partial_keywords": (lambda: functools.partial(print, sep=LOCK), "x.keywords['sep']", "_thread.lock"),
    "partial_func": (lambda: functools.partial(captures(LOCK)), "value (captured by f)", "_thread.lock"),
    "method": (lambda: Plain(a=LOCK).__init__, "x.__self__.a", "_thread.lock"),
    "builtin_method": (lambda: LOCK.acquire, "x.__self__", "_thread.lock"),
    "captured": (lambda: captures(LOCK), "value (captured by f)", "_thread.lock"),
    "captured_deep": (lambda: [captures({"k": [LOCK]})], "value['k'][0] (captured by f)", "_thread.lock"),
    "captured_twice": (lambda: captures(captures(LOCK)), "value (captured by f)", "_thread.lock"),
    "default": (lambda: with_default, "b (default of with_default)", "_thread.lock"),
    "keyword_default": (
        lambda: with_keyword_default,
        "cfg['k'] (default of with_keyword_default)",
        "_thread.lock",
    ),
    "global": (lambda: {"f": reads_global}, "LOCK (global used by reads_global)", "_thread.lock"),
    "lru_cache": (lambda: functools.lru_cache(captures(LOCK)), "value (captured by f)", "_thread.lock"),
    "property": (lambda: property(captures(LOCK)), "value (captured by f)", "_thread.lock"),
    "default_factory": (
        lambda: collections.defaultdict(captures(LOCK)),
        "value (captured by f)",
        "_thread.lock",
    ),
    "cycle": (lambda: (lambda a: a.append([a, LOCK]) or a)([]), "x[0][1]", "_thread.lock"),
    "shortest": (lambda: {"deep": [[[LOCK]]], "near": LOCK}, "x['near']", "_thread.lock"),
    "numpy": (lambda: {"a": np.array([1, LOCK], object)}, "x['a'][1]", "_thread.lock"),
    "numpy_2d": (lambda: np.array([[1, 2], [3, LOCK]], object), "x.flat[3]", "_thread.lock"),
    "series": (lambda: pd.Series([1, LOCK]), "x.iloc[1]", "_thread.lock"),
    "dataframe": (lambda: [pd.DataFrame({"a": [1, 2], "b": [1, LOCK]})], "x[0]['b'].iloc[1]", "_thread.lock"),
    "rlock": (lambda: [threading.RLock()], "x[0]", "_thread.RLock"),
    "event": (threading.Event, "x._cond._lock", "_thread.lock"),
    "generator": (lambda: [i for i in [(j for j in ())]], "x[0]", "generator"),  # noqa: C416
    "frame": (sys._getframe, "x", "frame"),
    "weakref": (lambda: [weakref.ref(Plain)], "x[0]", f"{'' if sys.version_info < (3, 11) else 'weakref.'}"),
    "pointer": (lambda: ctypes.c_char_p(b"a"), "x", "ctypes.c_char_p"),
    "queue": (lambda: [queue.Queue()], "x[0].mutex", "_thread.lock"),
    "future": (concurrent.futures.Future, "x._condition._lock", "_thread.RLock"),
    "handler": (lambda: logging.StreamHandler(io.StringIO()), "x.lock", "_thread.RLock"),
    "local": (threading.local, "x", "_thread._local"),
    # the object's own code is at fault
    "getstate": (lambda: {"c": RaisesInGetState()}, "x['c']", f"{__name__}.RaisesInGetState"),
    "reduce": (lambda: [RaisesInReduce()], "x[0]", f"{__name__}.RaisesInReduce"),
    "endless": (lambda: [EndlessGetState()], "x[0]", f"{__name__}.EndlessGetState"),
    "proxy": (lambda: [Proxy()], "x[0]", f"{__name__}.Proxy"),
    # no name leads to the culprit
    "made_while_pickling": (lambda: {"z": [MakesALock()]}, "x['z'][0]", "_thread.lock"),
    "iterator": (lambda: [iter([LOCK])], "x[0]", "_thread.lock"),
}  # fmt: skip


@pytest.mark.parametrize("case", CULPRITS)
def test_the_culprit_is_named(case: str) -> None:
    make, path, type_name = CULPRITS[case]
    value = make()
    with pytest.raises(UnserializableError) as caught:
        dumps(value, root="x")
    error = caught.value
    assert error.path == path
    assert error.type_name.startswith(type_name)
    assert error.__cause__ is not None
    subject = "it" if path == "x" else path
    assert str(error).startswith(f"Cannot send 'x' to a worker: {subject} ")
    assert str(error).endswith(".")


def test_the_message_is_a_sentence_with_advice() -> None:
    with pytest.raises(UnserializableError) as caught:
        dumps({"a": [LOCK]}, root="x")
    assert str(caught.value) == (
        "Cannot send 'x' to a worker: x['a'][0] is a _thread.lock, which cannot be pickled. "
        "Leave it out or create it inside the task."
    )
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Closes what a test opened."""
    opened: list[Any] = []

    def keep(thing: Any) -> Any:
        opened.append(thing)
        return thing

    yield keep
    for thing in reversed(opened):
        if hasattr(thing, "close"):
            thing.close()


HINTS: dict[str, tuple[Callable[[], Any], str]] = {
    "file": (
        lambda: open(os.devnull),
        f"is an open file ('{os.devnull}'), which cannot be sent. Pass its path and open it inside the task.",
    ),
    "binary_file": (lambda: open(os.devnull, "rb"), "which cannot be sent. Pass its path and open it"),
    "written_file": (lambda: open(os.devnull, "w"), "is an open file"),
    "temporary_file": (tempfile.NamedTemporaryFile, "tempfile._TemporaryFileWrapper): pass its path"),
    "mmap": (lambda: mmap.mmap(-1, 10), "Pass its path and open it inside the task."),
    "socket": (socket.socket, "is a socket.socket, which cannot be pickled. Connect inside the task."),
    "sqlite": (lambda: sqlite3.connect(":memory:"), "Pass the path or URL and connect inside the task."),
    "generator": (lambda: (i for i in ()), "Pass a list of its items, or create it inside the task."),
    "thread": (threading.Thread, "It belongs to x[0] (a threading.Thread): start it inside the task."),
    "event_loop": (asyncio.new_event_loop, "start it inside the task."),
    "select": (select.epoll, "Connect inside the task."),
    "mp_queue": (
        multiprocessing.Queue,
        "whose __getstate__ raised RuntimeError: Queue objects should only be",
    ),
}


@pytest.mark.parametrize("case", HINTS)
def test_common_culprits_get_their_own_advice(case: str, closing: Callable[[Any], Any]) -> None:
    make, words = HINTS[case]
    with pytest.raises(UnserializableError) as caught:
        dumps([closing(make())], root="x")
    assert words in str(caught.value)


def test_advice_looks_at_the_outermost_thing_we_know() -> None:
    """A queue inside an executor is about the executor."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(UnserializableError) as caught:
        dumps({"pool": pool}, root="x")
    assert "It belongs to x['pool'] (a concurrent.futures.thread.ThreadPoolExecutor): start it" in str(caught.value)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    with pytest.raises(UnserializableError, match=r"\(a subprocess.Popen\): start it inside the task\."):
        dumps([process], root="x")


def test_a_cursor_and_a_coroutine_and_a_future() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(UnserializableError, match=r"is a sqlite3.Cursor, .* connect inside the task"):
        dumps([connection.cursor()])
    connection.close()

    async def work() -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        for awaitable in (task, asyncio.get_running_loop().create_future()):
            with pytest.raises(UnserializableError, match="Await it first and pass its result"):
                dumps([awaitable])
        coroutine = asyncio.sleep(0)
        with pytest.raises(UnserializableError, match=r"is a coroutine, .* Await it first"):
            dumps([coroutine])
        await coroutine
        await task

    asyncio.run(work())


def test_an_open_file_is_never_sent_as_its_content(tmp_path: Any) -> None:
    """cloudpickle would do that, silently."""
    path = tmp_path / "data.txt"
    path.write_text("secret")
    with open(path) as file:
        assert b"secret" in cloudpickle.dumps(file)
        with pytest.raises(UnserializableError, match="is an open file") as caught:
            dumps({"f": file}, root="cfg")
    assert caught.value.path == "cfg['f']"


@pytest.mark.parametrize("mode", ["r", "w", "a", "r+", "w+", "x", "rb", "wb", "ab", "r+b"])
def test_a_closed_file_travels_as_its_name_and_mode(mode: str, tmp_path: Any) -> None:
    """Promise: `with open(...) as f` leaves the same in `f`. Nothing is opened, created or emptied over there."""
    path = tmp_path / "data.txt"
    if "x" not in mode:
        path.write_text("text")
    with open(path, mode) as file:
        pass
    path.write_text("kept")
    back = again([file, file])
    assert back[0] is back[1]
    assert (repr(back[0]), back[0].closed, back[0].mode, type(back[0])) == (repr(file), True, file.mode, type(file))
    with pytest.raises(ValueError, match="closed file"):
        back[0].fileno()
    assert path.read_text() == "kept"
    path.unlink()
    again(file)
    assert not path.exists()


def test_closed_temporary_files_travel_too() -> None:
    """pickle asks a copy for `__setstate__`; without its attributes it answers with a KeyError."""
    with tempfile.NamedTemporaryFile("w+") as named, tempfile.TemporaryFile() as unnamed:
        pass
    one, two = again([named, unnamed])
    assert (one.name, one.closed, two.closed) == (named.name, True, True)


def test_what_belongs_to_a_shell_is_refused_with_the_reason() -> None:
    """IPython's lazy magics would answer pickle's questions without an end."""
    part = type("LazyMagic", (), {"__module__": "IPython.core.magic"})()
    with pytest.raises(UnserializableError, match="belongs to IPython's shell, and each process has its own"):
        dumps({"cd": part})


def test_a_generator_half_run_is_refused() -> None:
    running = (i for i in range(3))
    for _ in range(2):
        with pytest.raises(UnserializableError, match="is a generator, which cannot be pickled"):
            dumps([running])
        next(running)


def test_an_error_of_the_objects_own_code_is_told_as_such() -> None:
    with pytest.raises(UnserializableError) as caught:
        dumps([RaisesInGetState()], root="x")
    assert "whose __getstate__ raised ValueError: the connection is closed. " in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_too_deep_a_nesting_is_told_as_such() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(UnserializableError, match="'x' to a worker: it is nested too deeply"):
        dumps(deep, root="x")


def test_parts_may_have_names_of_their_own() -> None:
    """A call's arguments and a cell's names: the path begins with what the user wrote."""
    arguments = {"data": 1, "cfg": {"k": [LOCK]}}
    with pytest.raises(UnserializableError) as caught:
        dumps(((1,), {"cfg": arguments["cfg"]}), root=lambda: arguments)
    assert caught.value.path == "cfg['k'][0]"
    assert str(caught.value).startswith("Cannot send 'cfg' to a worker: cfg['k'][0] is a _thread.lock")


def test_names_are_asked_for_only_when_something_fails() -> None:
    def never() -> dict[str, object]:
        raise AssertionError

    assert loads(*dumps([1], root=never)) == [1]


def test_results_are_told_in_other_words() -> None:
    with pytest.raises(UnserializableError) as caught:
        dumps({"m": LOCK}, root="result", to="the kernel")
    assert str(caught.value) == (
        "Cannot send 'result' to the kernel: result['m'] is a _thread.lock, which cannot be pickled. "
        "Leave it out, or return plain data instead."
    )


def test_a_global_that_stays_behind_is_not_blamed(notebook: Namespace) -> None:
    run("import threading\nlock = threading.Lock()\ndef f(): return lock\nvalue = [f, {'k': lock}]", notebook)
    with pytest.raises(UnserializableError) as caught:
        dumps(notebook["value"], root="v", namespace=notebook)
    assert caught.value.path == "v[1]['k']"
    run("def f(): return lock\nvalue = [f]", notebook)
    assert dumps(notebook["value"], namespace=notebook)
    with pytest.raises(UnserializableError, match=r"lock \(global used by f\)"):
        dumps(notebook["value"])


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_these_pass_through_unchanged(error: BaseException) -> None:
    class Raises:
        def __reduce__(self) -> Any:
            raise error

    with pytest.raises(type(error)) as caught:
        dumps([Raises()])
    assert caught.value is error


def test_hostile_objects_do_not_stop_the_search() -> None:
    """A repr, a `__dict__` and a `__class__` that raise, as proxies have them."""

    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError

        @property
        def __class__(self) -> Any:  # type: ignore[override]
            raise RuntimeError

        def __reduce__(self) -> Any:
            return int, ()

    with pytest.raises(UnserializableError) as caught:
        dumps([Hostile(), {Hostile(): LOCK}], root="x")
    assert caught.value.path.startswith("x[1][<test_serialize.test_hostile_objects")
    assert caught.value.type_name == "_thread.lock"


def test_an_error_in_the_search_does_not_hide_the_error() -> None:
    def names() -> dict[str, object]:
        raise RuntimeError("no names")

    with pytest.raises(UnserializableError, match=r"cannot pickle '_thread.lock' object"):
        dumps([LOCK], root=names)


def test_a_value_that_pickles_at_the_second_try() -> None:
    class Once:
        tries = 0

        def __reduce__(self) -> Any:
            type(self).tries += 1
            if self.tries == 1:
                raise RuntimeError("dictionary changed size during iteration")
            return int, ()

    with pytest.raises(UnserializableError, match="being changed meanwhile"):
        dumps([Once()])


# --- The search is bounded: by counts, not by a clock -----------------------------------------------------


def reduced_by(action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many objects picklers were asked to reduce meanwhile."""
    count = itertools.count()
    override = serialize.Pickler.reducer_override

    def counting(self: Any, obj: Any) -> Any:
        next(count)
        return override(self, obj)

    monkeypatch.setattr(serialize.Pickler, "reducer_override", counting)
    action()
    monkeypatch.undo()
    return next(count)


@pytest.mark.parametrize("position", [0, 50_000, 99_999])
def test_a_culprit_in_a_long_list_is_found_without_pickling_each_item(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items: list[Any] = [Plain(n=n) for n in range(100_000)]
    items[position] = {"deep": [LOCK]}

    def send() -> None:
        with pytest.raises(UnserializableError) as caught:
            dumps(items, root="x")
        assert caught.value.path == f"x[{position}]['deep'][0]"

    assert reduced_by(send, monkeypatch) <= 2 * position + 100  # once in dumps, once to find the culprit


def test_a_huge_value_is_searched_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "SEARCH_LIMIT", 1000)
    items: list[Any] = [[n] for n in range(5000)]
    items.append([LOCK])
    with pytest.raises(UnserializableError) as caught:
        dumps(items, root="x")
    assert str(caught.value).startswith("Cannot send 'x' to a worker: it (of type list) holds a _thread.lock")
    monkeypatch.setattr(culprit, "ITEMS_LIMIT", 3)
    assert blame([1, 2, 3, LOCK], "x").path == "x"


def test_a_long_chain_is_followed_up_to_a_limit() -> None:
    chain = last = Plain()
    for _ in range(100):
        last.next = last = Plain()
    last.lock = LOCK
    culprit = blame(chain, "x")
    assert culprit.type_name == "_thread.lock"
    assert len(culprit.path) < 300


def test_arrays_are_not_copied_to_find_a_culprit() -> None:
    """A value of many GB is blamed without its buffers being touched."""
    array = np.frombuffer(mmap.mmap(-1, 1 << 30), np.uint8)  # 1 GB that nobody has touched
    before = resident_kb()
    assert blame([array, LOCK], "x").path == "x[1]"
    assert resident_kb() - before < 100_000


def resident_kb() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_a_failed_dumps_keeps_nothing_alive() -> None:
    class Thing:
        pass

    thing = Thing()
    watch = weakref.ref(thing)
    try:
        dumps([thing, LOCK])
    except UnserializableError:
        pass
    del thing
    # The traceback is gone with the except block; what remains would be a leak of ours.
    import gc

    gc.collect()
    assert watch() is None


def test_dumps_is_cheap_for_tiny_values() -> None:
    """A net against an accident (an import, a search) on the hot path, not a measure: really 1 us."""
    start = time.perf_counter()
    for _ in range(2000):
        loads(*dumps(((1, "a"), {})))
    assert time.perf_counter() - start < 0.5
