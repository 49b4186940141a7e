"""End to end, with real processes: values in and out, what arrives how, and the errors of bad calls.

Promises: docs/semantics.md, Values.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ObjectLostError, UnserializableError
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")

NET = 20.0
BIG = 300_000  # bytes; more than travels inside a frame


def double(x: Any) -> Any:
    return x * 2


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [0, -1.5, "text", b"bytes", None, True, (1, [2, {3: "x"}]), {"a": {1, 2}}, range(5), 10**100, ValueError("v")],
    ids=repr,
)
def test_a_value_goes_there_and_comes_back(value: Any) -> None:
    back = jt.get(jt.remote(lambda x: x).remote(value), timeout=NET)
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_it_ran_in_another_process() -> None:
    assert jt.get(jt.remote(os.getpid).remote(), timeout=NET) in status()["workers"]


@pytest.mark.parametrize("size", [10, 99_990, 100_010, 131_072, 262_144, 5_000_000])
def test_bytes_of_any_size_cross_both_ways(size: int) -> None:
    data = os.urandom(size)
    assert jt.get(jt.remote(lambda x: x[::-1]).remote(data), timeout=NET) == data[::-1]


def test_functions_closures_and_classes_travel_by_value() -> None:
    offset = 10

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, x: int) -> int:
            return x + self.n + offset

    def outer(f: Callable[[int], int], adder: Adder) -> Callable[[], int]:
        return lambda: f(1) + adder.add(1)

    back = jt.get(jt.remote(outer).remote(lambda x: x + offset, Adder(100)), timeout=NET)
    assert back() == 11 + 111


def test_a_function_with_a_big_closure_travels() -> None:
    table = os.urandom(BIG)
    assert jt.get(jt.remote(lambda i: table[i]).remote(5), timeout=NET) == table[5]
    refs = [jt.remote(lambda i: table[i]).remote(i) for i in range(20)]  # a function of its own each
    assert jt.get(refs, timeout=NET) == list(table[:20])


def test_many_functions_with_big_closures_on_both_workers() -> None:
    tables = [os.urandom(BIG) for _ in range(4)]

    def make(table: bytes) -> Any:
        return jt.remote(lambda i: table[i])

    functions = [make(table) for table in tables]
    refs = [functions[i % 4].remote(i) for i in range(80)]
    assert jt.get(refs, timeout=NET) == [tables[i % 4][i] for i in range(80)]


def test_coroutine_functions_are_run() -> None:
    async def task(x: int) -> int:
        import asyncio

        await asyncio.sleep(0.001)
        return x + 1

    assert jt.get(jt.remote(task).remote(1), timeout=NET) == 2


def test_keyword_arguments_and_defaults() -> None:
    def task(a: int, b: int = 2, *rest: int, key: str = "k", **more: int) -> Any:
        return a, b, rest, key, more

    remote = jt.remote(task)
    assert jt.get(remote.remote(1), timeout=NET) == (1, 2, (), "k", {})
    assert jt.get(remote.remote(1, 3, 4, key="x", z=5), timeout=NET) == (1, 3, (4,), "x", {"z": 5})


def test_a_large_array_arrives_read_only_and_its_result_is_writeable() -> None:
    np = pytest.importorskip("numpy")

    def task(array: Any) -> Any:
        try:
            array[0] = 1.0
        except ValueError as error:
            return str(error), array * 2
        return "it was written to", array

    for array in (np.arange(100_000, dtype=float), jt.put(np.arange(100_000, dtype=float))):
        text, result = jt.get(jt.remote(task).remote(array), timeout=NET)
        assert "read-only" in text
        result[0] = 5.0
        assert result[1] == 2.0
        assert result[0] == 5.0


def test_writes_to_a_result_stay_private() -> None:
    np = pytest.importorskip("numpy")
    ref = jt.remote(np.zeros).remote(100_000)
    one, other = jt.get(ref, timeout=NET), jt.get(ref, timeout=NET)
    one[:] = 1
    assert other.sum() == 0


# -- refs as arguments -----------------------------------------------------------------------------------------------


def test_top_level_refs_become_values_and_nested_refs_stay_refs() -> None:
    def task(value: int, nested: list[Any], *, key: int) -> Any:
        return value, type(nested[0]).__name__, jt.get(nested[0]), key

    one, two, three = (jt.remote(double).remote(i) for i in (1, 2, 3))
    assert jt.get(jt.remote(task).remote(one, [two], key=three), timeout=NET) == (2, "ObjectRef", 4, 6)


def test_big_values_are_passed_on_from_task_to_task() -> None:
    def make() -> bytes:
        return b"x" * BIG

    ref = jt.remote(make).remote()
    for _ in range(5):
        ref = jt.remote(lambda data: data + b"y").remote(ref)
    assert jt.get(ref, timeout=NET) == b"x" * BIG + b"yyyyy"


def test_put_is_stored_once_and_read_by_many() -> None:
    ref = jt.put(b"z" * BIG)
    assert jt.get([jt.remote(len).remote(ref) for _ in range(30)], timeout=NET) == [BIG] * 30
    assert jt.get(ref) == b"z" * BIG


def test_a_worker_keeps_no_descriptor_of_big_arguments() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    first = max(jt.get([jt.remote(descriptors).remote() for _ in range(8)], timeout=NET))
    big = [jt.put(os.urandom(BIG)) for _ in range(5)]
    jt.get([jt.remote(lambda *all: len(all)).remote(*big) for _ in range(40)], timeout=NET)
    assert max(jt.get([jt.remote(descriptors).remote() for _ in range(8)], timeout=NET)) <= first


def test_three_hundred_tasks_with_big_arguments() -> None:
    """More descriptors than one message may carry, more packets than a socket holds."""
    data = [bytes([i % 256]) * (BIG // 2) for i in range(300)]
    refs = [jt.remote(lambda x: (x[0], len(x))).remote(item) for item in data]
    assert jt.get(refs, timeout=60) == [(i % 256, BIG // 2) for i in range(300)]


def test_three_hundred_big_results() -> None:
    refs = [jt.remote(lambda i: bytes([i % 256]) * (BIG // 2)).remote(i) for i in range(300)]
    assert [(x[0], len(x)) for x in jt.get(refs, timeout=60)] == [(i % 256, BIG // 2) for i in range(300)]


def test_a_task_with_many_dependencies() -> None:
    refs = [jt.remote(double).remote(i) for i in range(500)]
    assert jt.get(jt.remote(lambda *values: sum(values)).remote(*refs), timeout=NET) == sum(range(500)) * 2


def test_a_task_with_very_many_refs_inside_its_arguments() -> None:
    """Their ids alone fill more than one message to a worker."""
    refs = [jt.put(i) for i in range(20_000)]
    assert jt.get(jt.remote(lambda refs: len(refs)).remote(refs), timeout=60) == 20_000


def test_too_many_refs_at_the_top_level_are_refused_and_a_list_of_them_is_not() -> None:
    refs = [jt.put(i) for i in range(5001)]
    with pytest.raises(ValueError, match="Put them in a list"):
        jt.remote(lambda *values: 0).remote(*refs)
    assert jt.get(jt.remote(lambda *values: sum(values)).remote(*refs[:5000]), timeout=60) == sum(range(5000))


def test_many_medium_arguments_fill_the_sockets() -> None:
    """60 MB are on their way to two workers that are busy: nothing may be lost or stand still."""
    blob = os.urandom(60_000)
    refs = [jt.remote(lambda x, i: (len(x), i)).remote(blob, i) for i in range(1000)]
    assert jt.get(refs, timeout=60) == [(60_000, i) for i in range(1000)]


# -- num_returns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tuple, list, dict.fromkeys, "".join], ids=["tuple", "list", "dict", "str"])
def test_num_returns_takes_any_sized_iterable(make: Any) -> None:
    refs = jt.remote(lambda: make(["a", "b", "c"])).options(num_returns=3).remote()
    assert len(refs) == 3
    assert jt.get(refs, timeout=NET) == ["a", "b", "c"]


def test_num_returns_zero_gives_none_and_the_task_runs(tmp_path: Path) -> None:
    assert jt.remote(words.say).options(num_returns=0).remote(str(tmp_path / "ran")) is None
    words.hear(tmp_path / "ran")


def test_num_returns_one_is_the_value_itself() -> None:
    assert jt.get(jt.remote(lambda: (1, 2)).options(num_returns=1).remote(), timeout=NET) == (1, 2)


def test_a_wrong_number_of_values_is_an_error_of_each_ref() -> None:
    refs = jt.remote(lambda: (1, 2, 3)).options(num_returns=2).remote()
    for ref in refs:
        with pytest.raises(ValueError, match=r"^Task returned 3 objects, but num_returns=2\.$"):
            jt.get(ref, timeout=NET)


def test_a_value_without_a_length_is_an_error_of_each_ref() -> None:
    refs = jt.remote(lambda: 5).options(num_returns=2).remote()
    for ref in refs:
        with pytest.raises(TypeError, match="Task returned int"):
            jt.get(ref, timeout=NET)


def test_an_exception_is_an_error_of_each_ref() -> None:
    def task() -> None:
        raise KeyError("k")

    for ref in jt.remote(task).options(num_returns=3).remote():
        with pytest.raises(KeyError):
            jt.get(ref, timeout=NET)


def test_big_and_small_values_mixed() -> None:
    values = [b"a" * BIG, 1, b"b" * BIG, None]
    refs = jt.remote(lambda: [b"a" * BIG, 1, b"b" * BIG, None]).options(num_returns=4).remote()
    assert jt.get(refs, timeout=NET) == values
    for ref, value in zip(refs, values, strict=True):
        assert jt.get(ref) == value


def test_each_return_value_can_be_an_argument() -> None:
    one, two = jt.remote(lambda: (b"x" * BIG, 2)).options(num_returns=2).remote()
    assert jt.get([jt.remote(len).remote(one), jt.remote(double).remote(two)], timeout=NET) == [BIG, 4]


def test_ids_of_one_task_are_consecutive_whatever_other_threads_take_meanwhile() -> None:
    """The race, built: the counter behaves as if another thread had taken an id in between, again and again."""

    def taken_in_between(first: int) -> Iterator[int]:
        for i in itertools.count(first):
            if i % 3:
                yield i

    client = current_client()
    pair = jt.remote(lambda i: (i, -i)).options(num_returns=2)
    client._ids = taken_in_between(next(client._ids))  # type: ignore[assignment]
    try:
        pairs = [pair.remote(i) for i in range(20)]
    finally:
        client._ids = itertools.count(next(client._ids))
    assert [jt.get(refs, timeout=NET) for refs in pairs] == [[i, -i] for i in range(20)]


# -- bad calls ------------------------------------------------------------------------------------------------------------


def test_a_remote_function_cannot_be_called_directly() -> None:
    with pytest.raises(TypeError, match=r"cannot be called directly\. Use double\.remote"):
        jt.remote(double)(1)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"y": 2}), ((1,), {"x": 1})])
def test_a_wrong_call_is_a_type_error_at_once(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match=r"double\(\): "):
        jt.remote(double).remote(*args, **kwargs)
    assert status()["live"] == 0


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), r"x"),
        ({"a": [threading.Lock()]}, r"x\['a'\]\[0\]"),
        ([1, (2, {"k": threading.Lock()})], r"x\[1\]\[1\]\['k'\]"),
    ],
    ids=["itself", "nested", "deeper"],
)
def test_an_argument_that_cannot_be_sent_is_named_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(UnserializableError, match=path) as caught:
        jt.remote(double).remote(value)
    assert isinstance(caught.value, TypeError)
    assert status()["live"] == 0


def test_a_result_that_cannot_be_sent_fails_the_task() -> None:
    def task() -> Any:
        return {"model": threading.Lock()}

    with pytest.raises(UnserializableError, match=r"\['model'\]"):
        jt.get(jt.remote(task).remote(), timeout=NET)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_cpu": 1}, TypeError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": "2"}, ValueError),
        ({"num_cpus": float("nan")}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -5}, ValueError),
        ({"memory": 0}, ValueError),
        ({"max_retries": 1.5}, ValueError),
        ({"max_retries": True}, ValueError),
        ({"num_returns": -1}, ValueError),
        ({"grace": -0.1}, ValueError),
        ({"resources": {"license": -1}}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": ["license"]}, TypeError),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        jt.remote(**options)
    with pytest.raises(error):
        jt.remote(double).options(**options)


def test_more_than_there_is_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="needs 3 CPU, but there are only 2") as caught:
        jt.remote(double).options(num_cpus=3).remote(1)
    assert "jt.init()" in str(caught.value)
    with pytest.raises(ValueError, match="license"):
        jt.remote(double).options(resources={"license": 1}).remote(1)


@pytest.mark.parametrize("bad", [5, "name", None, [1]])
def test_remote_wants_a_function(bad: Any) -> None:
    with pytest.raises(TypeError):
        jt.remote(bad)


def test_put_refuses_a_ref() -> None:
    with pytest.raises(TypeError, match="stands for a stored value already"):
        jt.put(jt.put(1))


def test_a_function_that_cannot_be_imported_there_fails_each_task(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def f(x):\n    return x\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    (tmp_path / "only_here.py").unlink()
    remote = jt.remote(only_here.f)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="only_here"):
            jt.get(remote.remote(1), timeout=NET)


# -- a value's life -----------------------------------------------------------------------------------------------------------


def objects() -> int:
    return int(status()["objects"])


def test_a_value_is_freed_when_its_last_ref_goes() -> None:
    fds = status()["fds"]
    refs = [jt.put(os.urandom(BIG)) for _ in range(20)]
    refs += [jt.remote(os.urandom).remote(BIG) for _ in range(20)]
    jt.wait(refs, num_returns=40, timeout=NET)
    assert (objects(), status()["fds"]) == (40, fds + 40)
    del refs[:39]
    wait_until(lambda: objects() == 1, "39 values are freed")
    assert status()["fds"] == fds + 1
    refs.clear()
    wait_until(lambda: objects() == 0, "the last one, too")
    assert status()["fds"] == fds


def test_an_argument_lives_as_long_as_its_task_needs_it(tmp_path: Path) -> None:
    def task(place: str, nested: list[Any]) -> int:
        words.say(f"{place}/in")
        words.hear(f"{place}/go")
        return len(jt.get(nested[0]))

    value = jt.put(b"x" * BIG)
    ref = jt.remote(task).remote(str(tmp_path), [value])
    del value
    words.hear(tmp_path / "in")
    gc.collect()
    jt.get([jt.remote(abs).remote(-1) for _ in range(100)], timeout=NET)  # time for every word to arrive
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == BIG


def test_a_task_whose_refs_are_all_dropped_runs_to_its_end(tmp_path: Path) -> None:
    def task(place: str) -> None:
        words.say(f"{place}/in")
        words.hear(f"{place}/go")
        words.say(f"{place}/done")

    jt.remote(task).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    gc.collect()
    words.say(tmp_path / "go")
    words.hear(tmp_path / "done")
    wait_until(lambda: objects() == 0, "its value is freed at once")


def test_a_value_inside_a_value_lives_as_long_as_that() -> None:
    """A task that returns refs: what they stand for lives while the returned list does."""

    def outer() -> list[Any]:
        return [jt.put(b"inner" * 100_000), jt.remote(double).remote(21)]

    ref = jt.remote(outer).remote()
    jt.wait([ref], timeout=NET)
    time.sleep(0.5)  # more than twice as long as the worker takes to tell that its own refs are gone
    inner = jt.get(ref, timeout=NET)
    del ref
    assert jt.get(inner[0], timeout=NET) == b"inner" * 100_000
    assert jt.get(inner[1], timeout=NET) == 42
    del inner
    wait_until(lambda: objects() == 0, "all is freed")


def test_a_ref_that_comes_home_is_the_same_value() -> None:
    """It is still waited for here, under the same id; both must get their value."""

    def wrap(refs: list[Any]) -> list[Any]:
        return refs

    def slow(word: str) -> bytes:
        words.hear(word)
        return b"x" * BIG

    import tempfile

    with tempfile.TemporaryDirectory() as place:
        ref = jt.remote(slow).remote(f"{place}/go")
        (home,) = jt.get(jt.remote(wrap).remote([ref]), timeout=NET)
        (again,) = jt.get(jt.remote(wrap).remote([ref]), timeout=NET)
        words.say(f"{place}/go")
        for one in (ref, home, again):
            assert jt.get(one, timeout=NET) == b"x" * BIG
        (late,) = jt.get(jt.remote(wrap).remote([ref]), timeout=NET)
        assert jt.get(late, timeout=NET) == b"x" * BIG


def test_a_put_value_keeps_what_is_inside() -> None:
    outer = jt.put([jt.put(b"x" * BIG)])
    time.sleep(0.5)
    assert jt.get(jt.get(outer)[0], timeout=NET) == b"x" * BIG


def test_a_ref_that_was_dropped_everywhere_says_so() -> None:
    import pickle

    ref = jt.put(1)
    frozen = pickle.dumps(ref)  # as plain bytes, which nobody counts
    del ref
    wait_until(lambda: objects() == 0, "the value is freed")
    with pytest.raises(ObjectLostError, match="every ref to it was dropped"):
        jt.get(pickle.loads(frozen), timeout=NET)


def test_nested_tasks_do_not_deadlock() -> None:
    """Each level waits for the one below; a task that waits gives its slot back."""

    def nested(depth: int) -> int:
        return depth if depth == 0 else depth + jt.get(jt.remote(nested).remote(depth - 1))

    assert jt.get(jt.remote(nested).remote(8), timeout=60) == 36


def test_a_tree_of_nested_tasks() -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        one, two = jt.remote(fib).remote(n - 1), jt.remote(fib).remote(n - 2)
        return jt.get(one) + jt.get(two)

    assert jt.get(jt.remote(fib).remote(6), timeout=60) == 8
