"""What Ray's own tests ask of actors, asked of us. Role: end to end.

Each test names the one of Ray's (below python/ray/tests) whose case it takes up; where test_actor_cancel.py and
test_actor_ends.py prove the case already, it is not repeated.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import words
from actors import ASYNC, IN_KERNEL, IN_PROCESSES, KINDS, SYNC, THREADED, AsyncKeeper, Keeper, Kind, heard
from conftest import is_open, raised, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    JupyterTasksError,
    TaskError,
    UnserializableError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 20.0

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_process_kind = pytest.mark.parametrize("kind", IN_PROCESSES, ids=lambda kind: kind.name)


class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def increase(self) -> int:
        self.value += 1
        return self.value

    def pid(self) -> int:
        return os.getpid()


# -- classes and arguments ------------------------------------------------------------------------------------------------


def test_a_class_may_be_made_remote_before_there_is_a_session() -> None:
    """test_actor.py::test_caching_actors: the first actor starts it."""
    jt.shutdown()
    remote = jt.remote(Counter)
    actor = remote.remote()
    assert jt.get(actor.increase.remote(), timeout=NET) == 1


@each_kind
def test_any_kind_of_arguments(kind: Kind) -> None:
    """test_actor.py::test_keyword_args, ::test_variable_number_of_args; refs among them by any way."""

    class Takes:
        def __init__(self, a: Any, b: Any = 1, *rest: Any, c: Any = "c", **more: Any) -> None:
            self.got = (a, b, rest, c, more)

        def got_first(self) -> Any:
            return self.got

        def take(self, a: Any, b: Any = 2, *rest: Any, c: Any = "d", **more: Any) -> Any:
            return a, b, rest, c, more

        async def is_async(self) -> None:
            pass

    if kind is not ASYNC:
        del Takes.is_async
    remote = jt.remote(Takes).options(**kind.options)
    ref = jt.put("ref")
    for args, kwargs, got in (
        ((0,), {}, (0, 1, (), "c", {})),
        ((1, 2), {"c": 3}, (1, 2, (), 3, {})),
        ((1, 2, 3, 4), {}, (1, 2, (3, 4), "c", {})),
        ((), {"b": 5, "a": 6, "d": 7}, (6, 5, (), "c", {"d": 7})),
        ((ref, ref, ref), {"c": ref, "d": ref}, ("ref", "ref", ("ref",), "ref", {"d": "ref"})),
    ):
        actor = remote.remote(*args, **kwargs)
        assert jt.get(actor.got_first.remote(), timeout=NET) == got
    assert jt.get(actor.take.remote(1, ref, 3, d=4), timeout=NET) == (1, "ref", (3,), "d", {"d": 4})
    for args, kwargs in (((), {}), ((1,), {"a": 2})):
        with pytest.raises(TypeError, match="take"):
            actor.take.remote(*args, **kwargs)
        with pytest.raises(TypeError):
            remote.remote(*args, **kwargs)


def test_refs_inside_of_arguments_stay_refs() -> None:
    """As of tasks."""

    class Opens:
        def opens(self, box: list[jt.ObjectRef]) -> Any:
            assert isinstance(box[0], jt.ObjectRef)
            return jt.get(box[0])

    assert jt.get(jt.remote(Opens).remote().opens.remote([jt.put(5)]), timeout=NET) == 5


def test_a_class_without_a_constructor_and_one_without_methods() -> None:
    """test_actor.py::test_no_constructor, ::test_no_args."""

    class Plain:
        def nothing(self) -> None:
            pass

    class Empty:
        pass

    assert jt.get(jt.remote(Plain).remote().nothing.remote(), timeout=NET) is None
    empty = jt.remote(Empty).remote()
    assert jt.wait([empty.terminate()], timeout=NET)[0]


def test_classes_of_the_notebook_as_arguments_state_and_results() -> None:
    """test_actor.py::test_custom_classes."""

    class Box:
        def __init__(self, x: Any) -> None:
            self.x = x

    class Holds:
        def __init__(self, box: Box) -> None:
            self.boxes = [Box(1), box]

        def boxes_and(self, box: Box) -> list[Box]:
            return [*self.boxes, box]

    boxes = jt.get(jt.remote(Holds).remote(Box(2)).boxes_and.remote(Box(3)), timeout=NET)
    assert [box.x for box in boxes] == [1, 2, 3]
    assert all(type(box) is Box for box in boxes)


class Grandparent:
    GRANDPARENT = 2

    def inherited(self, x: int) -> int:
        return self.GRANDPARENT * x

    @staticmethod
    def static(x: int) -> int:
        return x + 1


class Derived(Grandparent):
    X = 3

    def __init__(self, x: int = 0) -> None:
        self.x = x

    @classmethod
    def make(cls, x: int) -> Derived:
        return cls(x + cls.X)

    @property
    def doubled(self) -> int:
        return 2 * self.x

    def through_super(self, x: int) -> int:
        return super().inherited(x)

    def uses(self) -> Any:
        return self.X, Derived.X, self.make(1).x, self.static(1), self.doubled

    def __call__(self, x: int) -> int:
        return x


def test_inherited_static_and_class_methods_and_attributes() -> None:
    """test_actor.py::test_actor_class_attributes, ::test_actor_static_attributes, ::test_inherit_actor_from_class."""
    actor = jt.remote(Derived).remote(4)
    refs = [
        *(actor.inherited.remote(5), actor.through_super.remote(6), actor.static.remote(7), actor.uses.remote()),
        *(actor.__call__.remote(8),),
    ]
    assert jt.get(refs, timeout=NET) == [10, 12, 8, (3, 3, 4, 2, 8), 8]


def test_a_class_of_actors_keeps_the_class_s_own_attributes() -> None:
    """test_actor.py::test_actor_mro, ::test_actor_class_attributes: a factory of the class makes a plain object; and a
    decorated class may read itself by its name, which means the class of actors then."""
    remote = jt.remote(Derived)
    assert remote.X == 3
    assert remote.make(1).uses() == (3, 3, 4, 2, 8)

    @jt.remote
    class Own:
        X = 3

        @classmethod
        def of_class(cls) -> int:
            return Own.X + cls.X

        @staticmethod
        def static() -> int:
            return int(Own.X)

        def reads(self) -> Any:
            return Own.X, Own.of_class(), Own.static()

    assert jt.get(Own.remote().reads.remote(), timeout=NET) == (3, 6, 3)


def test_a_class_of_actors_is_neither_called_nor_inherited_from() -> None:
    """test_actor.py::test_actor_inheritance."""
    remote = jt.remote(Counter)
    with pytest.raises(TypeError, match=r"Counter\.remote\("):
        remote()
    with pytest.raises(TypeError, match="Counter"):

        class Below(remote):  # type: ignore[misc,valid-type]
            pass


def test_a_method_is_called_by_remote_only() -> None:
    """test_actor.py::test_define_actor; a name that is none, and a wrong one, are errors at once."""
    actor = jt.remote(Counter).remote()
    with pytest.raises(TypeError, match=r"increase\.remote\("):
        actor.increase()
    with pytest.raises(AttributeError, match="decrease"):
        _ = actor.decrease
    with pytest.raises(AttributeError):
        _ = actor.value  # state is read by methods
    with pytest.raises((AttributeError, TypeError)):
        actor.value = 5
    assert jt.get(actor.increase.remote(), timeout=NET) == 1


def test_a_handle_shows_its_methods_to_completion_and_help() -> None:
    """test_actor.py::test_actor_autocomplete, and signatures."""

    class Foo:
        def method(self, x: int, y: int = 2) -> None:
            """Does it."""

    remote = jt.remote(Foo)
    assert {"remote", "options", "method"} <= set(dir(remote))
    actor = remote.remote()
    assert "method" in dir(actor)
    assert {"remote", "options"} <= set(dir(actor.method))
    assert str(inspect.signature(actor.method)) in (
        "(x: int, y: int = 2) -> None",
        "(x: 'int', y: 'int' = 2) -> 'None'",
    )
    assert actor.method.__doc__ == "Does it."
    assert "Foo" in repr(actor)


def test_a_class_that_is_defined_again_is_another_one() -> None:
    """test_actor.py::test_actor_name_conflict, ::test_actor_import_counter."""
    refs = []
    for i in range(10):

        class Foo:
            number = i

            def get(self) -> int:
                return self.number

        refs.append(jt.remote(Foo).remote().get.remote())
    assert jt.get(refs, timeout=NET) == list(range(10))


def test_actors_differ_though_random_is_seeded_anew() -> None:
    """test_actor.py::test_random_id_generation."""
    ids = set()
    handles = []
    for _ in range(5):
        random.seed(1234)
        handles.append(jt.remote(Counter).remote())
    for handle in handles:
        ids.add(jt.get(handle.pid.remote(), timeout=NET))
    assert len(ids) == 5
    listed = [actor["actor_id"] for actor in jt.list_actors()]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    "options",
    [{"nobodys": 1}, {"num_cpus": 0, "nobodys": 1}, {"max_retries": 3}, {"num_returns": 2}, {"runtime_env": {}},
     {"concurrency_groups": {"io": 2}}, {"scheduling_strategy": "SPREAD"}],
    ids=lambda options: ",".join(options),
)  # fmt: skip
def test_options_that_actors_have_not(options: dict[str, Any]) -> None:
    """test_actor.py::test_decorator_args: in the decorator and in options()."""
    wrong = list(options)[-1]
    with pytest.raises(TypeError, match=wrong):
        jt.remote(**options)(Counter)
    with pytest.raises(TypeError, match=wrong):
        jt.remote(Counter).options(**options)


@pytest.mark.parametrize(
    "options",
    [{"max_restarts": -2}, {"max_restarts": 1.5}, {"max_task_retries": -2}, {"max_concurrency": 0}, {"num_cpus": -1},
     {"max_concurrency": "many"}, {"lifetime": "for ever"}, {"executor": "greenlet"}],
    ids=str,
)  # fmt: skip
def test_values_of_options_that_are_none(options: dict[str, Any]) -> None:
    """test_actor.py, test_basic.py::test_invalid_arguments."""
    (wrong,) = options
    with pytest.raises((TypeError, ValueError), match=wrong):
        jt.remote(Counter).options(**options).remote()


@pytest.mark.parametrize("option", ["max_restarts", "max_task_retries", "max_concurrency", "get_if_exists"])
def test_options_of_actors_are_none_of_functions(option: str) -> None:
    """And the message says whose they are."""
    with pytest.raises(TypeError, match="actor"):
        jt.remote(**{option: 1})(len)


def test_methods_that_return_several_values() -> None:
    """test_actor.py::test_multiple_return_values, ::test_options_num_returns."""

    class Foo:
        @jt.method(num_returns=2)
        def two(self, values: Any) -> Any:
            return values

        @jt.method(num_returns=0)
        def none(self) -> None:
            pass

        def plain(self) -> Any:
            return 1, 2

    actor = jt.remote(Foo).remote()
    a, b = actor.two.remote([1, 2])
    assert jt.get([a, b], timeout=NET) == [1, 2]
    for ref in actor.two.remote([1, 2, 3]):
        with pytest.raises(ValueError, match=r"Task returned 3 objects, but num_returns=2\."):
            jt.get(ref, timeout=NET)
    assert actor.none.remote() is None
    assert jt.get(actor.plain.remote(), timeout=NET) == (1, 2)
    a, b = actor.plain.options(num_returns=2).remote()
    assert jt.get([a, b], timeout=NET) == [1, 2]
    assert jt.get(actor.two.options(num_returns=1).remote([5]), timeout=NET) == [5]
    with pytest.raises(TypeError, match="nobodys"):
        actor.plain.options(nobodys=1)


def test_a_call_has_a_name() -> None:
    """test_actor.py::test_options_name, test_runtime_context.py::test_get_task_name: Class.method unless given."""

    class Names:
        def name(self) -> str | None:
            return jt.get_runtime_context().get_task_name()

        def function(self) -> str | None:
            return jt.get_runtime_context().get_task_function_name()

    actor = jt.remote(Names).remote()
    assert jt.get(actor.name.remote(), timeout=NET) == "Names.name"
    ref = actor.name.options(name="mine").remote()
    assert jt.get(ref, timeout=NET) == "mine"
    assert [task["name"] for task in jt.tasks() if task["task_id"] == ref.task_id] == ["mine"]
    assert str(jt.get(actor.function.remote(), timeout=NET)).endswith("Names.function")


def test_arguments_and_results_that_cannot_be_sent() -> None:
    """At `.remote()`, with the path; of a result from `get`. The actor goes on."""

    class Locks:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def lock_it(self, *args: Any) -> Any:
            return {"a": [self.lock]}

        def ping(self) -> str:
            return "pong"

    actor = jt.remote(Locks).remote()
    with pytest.raises(UnserializableError, match=r"\['a'\]\[0\]"):
        actor.lock_it.remote({"a": [threading.Lock()]})
    assert isinstance(raised(actor.lock_it.remote()), UnserializableError)
    assert jt.get(actor.ping.remote(), timeout=NET) == "pong"


@each_kind
def test_errors_of_methods_are_errors_of_their_calls(kind: Kind, tmp_path: Path) -> None:
    """As of tasks: a TaskError and its own type, with the lines of the method; the actor goes on."""
    actor = kind.start(tmp_path)
    error = raised(actor.fail.remote("wrong"))
    assert isinstance(error, ValueError)
    assert isinstance(error, TaskError)
    assert "in fail" in str(error.__cause__)
    assert jt.get(actor.log.remote(), timeout=NET) == ["wrong"]


def test_large_arrays_arrive_as_read_only_views() -> None:
    """SEMANTICS 1, arguments: in calls of actors, too; kept as state they stay valid."""
    numpy = pytest.importorskip("numpy")

    class Keeps:
        def keep(self, array: Any) -> bool:
            self.array = array
            return bool(array.flags.writeable)

        def total(self) -> int:
            return int(self.array.sum())

    actor = jt.remote(Keeps).remote()
    assert jt.get(actor.keep.remote(numpy.ones(1_000_000, dtype="int64")), timeout=NET) is False
    made = jt.remote(lambda: numpy.ones(2_000_000, dtype="int64")).remote()
    assert jt.get(actor.total.remote(), timeout=NET) == 1_000_000
    assert jt.get(actor.keep.remote(made), timeout=NET) is False
    del made
    assert jt.get(actor.total.remote(), timeout=NET) == 2_000_000


def test_an_in_kernel_actor_shares_the_kernel_s_objects() -> None:
    """As thread tasks: arguments, results and globals are the objects themselves."""
    lock, rows = threading.Lock(), [1]

    class Shares:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def give(self, to: list[int]) -> Any:
            to.append(os.getpid())
            rows.append(2)
            return self.lock

    actor = jt.remote(Shares).options(executor="thread").remote(lock)
    assert jt.get(actor.give.remote(rows), timeout=NET) is lock
    assert rows == [1, os.getpid(), 2]


def test_an_in_kernel_actor_has_one_thread() -> None:
    """One call at a time, always in the same thread: what is bound to a thread (a database) works."""

    class Bound:
        def __init__(self) -> None:
            self.threads = {threading.get_ident()}

        def look(self) -> set[int]:
            self.threads.add(threading.get_ident())
            return set(self.threads)

    actor = jt.remote(Bound).options(executor="thread").remote()
    seen = jt.get([actor.look.remote() for _ in range(50)], timeout=NET)[-1]
    assert len(seen) == 1
    assert threading.get_ident() not in seen


# -- who calls whom -------------------------------------------------------------------------------------------------------


def test_actors_and_tasks_in_each_other() -> None:
    """test_actor.py::test_remote_function_within_actor, ::test_define_actor_within_actor,
    ::test_use_actor_within_actor, ::test_define_actor_within_remote_function, ::test_use_actor_within_remote_function."""
    offset = 1
    add = jt.remote(lambda x: offset + x)

    class Outer:
        def __init__(self, x: int) -> None:
            self.refs = [add.remote(i) for i in range(3)]
            self.values = jt.get(self.refs)
            self.inner = jt.remote(Counter).remote(x)

        def state(self) -> Any:
            return self.refs, self.values

        def increase(self) -> Any:
            return jt.get(self.inner.increase.remote())

        def defines(self, x: int) -> Any:
            class Inner:
                def get(self) -> int:
                    return x

            return jt.get(jt.remote(Inner).remote().get.remote())

        def gets(self, refs: list[jt.ObjectRef]) -> Any:
            return jt.get(refs)

    def task(x: int) -> Any:
        actor = jt.remote(Outer).remote(x)
        return jt.get([actor.increase.remote() for _ in range(3)])

    actor = jt.remote(Outer).remote(10)
    refs, values = jt.get(actor.state.remote(), timeout=NET)
    assert jt.get(refs, timeout=NET) == values == [1, 2, 3]
    assert jt.get([actor.increase.remote(), actor.increase.remote()], timeout=NET) == [11, 12]
    assert jt.get(actor.defines.remote(5), timeout=NET) == 5
    assert jt.get(actor.gets.remote([add.remote(i) for i in range(3)]), timeout=NET) == [1, 2, 3]
    assert jt.get([jt.remote(task).remote(i) for i in range(3)], timeout=NET) == [
        [i + 1, i + 2, i + 3] for i in range(3)
    ]


def test_many_actors_each_with_its_state() -> None:
    """test_actor.py::test_multiple_actors."""
    handles = [jt.remote(Counter).remote(i) for i in range(5)]
    refs = [handle.increase.remote() for handle in handles for _ in range(50)]
    assert jt.get(refs, timeout=NET) == [i + j for i in range(5) for j in range(1, 51)]
    refs = [handle.increase.remote() for j in range(50) for handle in handles]
    assert jt.get(refs, timeout=NET) == [i + j for j in range(51, 101) for i in range(5)]


def enqueue(queue: Any, key: Any, count: int) -> Any:
    queue = cloudpickle.loads(queue) if isinstance(queue, bytes) else queue
    return jt.get([queue.note.remote((key, i)) for i in range(count)][-1])


def nested(queue: Any, key: int, count: int) -> Any:
    jt.get(jt.remote(enqueue).remote(queue, -key, count))
    return enqueue(queue, key, count)


@pytest.mark.parametrize("how", ["argument", "pickled", "nested"])
def test_calls_of_each_caller_run_in_the_order_in_which_it_made_them(how: str, tmp_path: Path) -> None:
    """test_actor_advanced.py::test_fork_consistency, ::test_pickled_handle_consistency, ::test_nested_fork."""
    queue = SYNC.start(tmp_path)
    sent = cloudpickle.dumps(queue) if how == "pickled" else queue
    task = jt.remote(nested if how == "nested" else enqueue)
    refs = [task.remote(sent, key, 60) for key in range(1, 6)]
    refs += [queue.note.remote((0, i)) for i in range(60)]
    jt.get(refs, timeout=NET)
    log = jt.get(queue.log.remote(), timeout=NET)
    keys = [0, *range(1, 6), *(range(-5, 0) if how == "nested" else ())]
    for key in keys:
        assert [i for of, i in log if of == key] == list(range(60))
    assert len(log) == 60 * len(keys)


def test_a_hundred_tasks_call_one_actor(tmp_path: Path) -> None:
    """test_actor_advanced.py::test_fork: on two CPUs, since a task that waits gives its slot back."""
    queue = SYNC.start(tmp_path)
    jt.get([jt.remote(enqueue).remote(queue, i, 1) for i in range(100)], timeout=NET)
    assert sorted(jt.get(queue.log.remote(), timeout=NET)) == [(i, 0) for i in range(100)]


def test_handles_go_wherever_values_go() -> None:
    """test_actor_advanced.py::test_calling_put_on_actor_handle, ::test_pickling_actor_handle,
    ::test_pickled_actor_handle_call_in_method_twice, test_actor.py::test_wrapped_actor_handle,
    ::test_return_actor_handle_from_actor, ::test_use_actor_twice."""
    counter = jt.remote(Counter).remote()

    class Holds:
        def __init__(self, make: Any) -> None:
            self.actor = make()

        def increase(self) -> int:
            return int(jt.get(self.actor.increase.remote()))

        def given(self, actor: Any) -> int:
            return int(jt.get(actor.increase.remote()))

        def mine(self) -> Any:
            return self.actor

    holds = jt.remote(Holds).remote(lambda: counter)
    by_hand = [
        *(counter, jt.get(jt.put(counter)), jt.get(jt.put({"a": [counter]}))["a"][0]),
        *(pickle.loads(pickle.dumps(counter)), jt.get(holds.mine.remote(), timeout=NET)),
        jt.get(jt.remote(lambda: counter).remote(), timeout=NET),
    ]
    value = 0
    for handle in by_hand:
        value += 1
        assert jt.get(handle.increase.remote(), timeout=NET) == value
    assert jt.get([holds.increase.remote(), holds.increase.remote()], timeout=NET) == [value + 1, value + 2]
    assert jt.get(holds.given.remote(counter), timeout=NET) == value + 3
    assert len({counter, by_hand[1], by_hand[3]}) == 1  # handles of one actor are equal


def test_tasks_do_not_run_in_the_process_of_an_actor() -> None:
    """test_actor_advanced.py::test_remote_functions_not_scheduled_on_actors; and two actors are two processes."""
    pids = jt.get([handle.pid.remote() for handle in [jt.remote(Counter).remote() for _ in range(2)]], timeout=NET)
    assert len(set(pids)) == 2
    assert not set(pids) & set(jt.get([jt.remote(os.getpid).remote() for _ in range(50)], timeout=NET))
    assert os.getpid() not in pids


def test_an_actor_that_waits_for_itself_by_another_one() -> None:
    """Calls of two actors that wait for each other's other calls: async ones do not deadlock."""

    class Ping:
        async def ping(self, other: Any, depth: int) -> int:
            return 0 if depth == 0 else 1 + await other[1].ping.remote([other[1], other[0]], depth - 1)

    a, b = jt.remote(Ping).remote(), jt.remote(Ping).remote()
    assert jt.get(a.ping.remote([a, b], 30), timeout=NET) == 30


# -- resources ------------------------------------------------------------------------------------------------------------


def test_an_actor_takes_no_cpu_unless_it_says_so(tmp_path: Path) -> None:
    """test_runtime_context.py::test_get_assigned_resources, test_actor_advanced.py: five actors and two tasks at once."""

    class Looks:
        def looks(self) -> Any:
            return jt.get_runtime_context().get_assigned_resources()

    def meets(me: int, place: str) -> None:
        words.say(f"{place}/{me}")
        words.hear(f"{place}/{1 - me}")

    remote = jt.remote(Looks)
    free = [remote.remote() for _ in range(5)]
    assert jt.get([actor.looks.remote() for actor in free], timeout=NET) == [{}] * 5
    jt.get([jt.remote(meets).remote(i, str(tmp_path)) for i in (0, 1)], timeout=NET)
    counted = remote.options(num_cpus=2).remote()
    assert jt.get(counted.looks.remote(), timeout=NET) == {"CPU": 2.0}
    task = jt.remote(abs).remote(-1)
    assert is_open(task, 0.1)
    jt.kill(counted)
    assert jt.get(task, timeout=NET) == 1


@pytest.mark.parametrize("end", ["kill", "drop", "exit", "terminate"])
def test_what_an_actor_holds_is_free_when_it_has_ended(end: str, tmp_path: Path) -> None:
    """test_threaded_actor.py::ensure_cpu_returned: the next one, which waits for it, begins."""
    first = SYNC.start(tmp_path, num_cpus=2)
    jt.get(first.pid.remote(), timeout=NET)
    second = SYNC.start(tmp_path, num_cpus=2)
    waiting = second.note.remote(1)
    assert is_open(waiting, 0.1)
    if end == "kill":
        jt.kill(first)
    elif end == "terminate":
        first.terminate()
    elif end == "exit":
        words.say(tmp_path / "call.go")
        assert isinstance(raised(first.exit.remote("call")), ActorDiedError)
    else:
        del first
    assert jt.get(waiting, timeout=NET) == 1


def test_an_actor_that_waits_for_room_may_be_killed(tmp_path: Path) -> None:
    """test_actor_advanced.py::test_kill_pending_actor_with_no_restart_true, ::test_pending_actor_removed_by_owner."""
    first = SYNC.start(tmp_path, num_cpus=2)
    jt.get(first.pid.remote(), timeout=NET)
    pending = [SYNC.start(tmp_path, num_cpus=2) for _ in range(2)]
    refs = [actor.note.remote(1) for actor in pending]
    jt.kill(pending[0])
    assert isinstance(raised(refs[0]), ActorDiedError)
    assert is_open(refs[1])
    del pending, refs
    jt.kill(first)
    assert jt.get(jt.remote(abs).options(num_cpus=2).remote(-1), timeout=NET) == 1


def test_more_than_there_is_is_an_error_at_once() -> None:
    """test_actor_advanced.py::test_actor_resource_demand, where it waits for ever."""
    for options in ({"num_cpus": 80}, {"resources": {"nobodys": 1}}):
        with pytest.raises(ValueError, match=r"there are only|there is no"):
            jt.remote(Counter).options(**options).remote()


@pytest.fixture
def two_gpus() -> Iterator[None]:
    jt.shutdown()
    jt.init(num_cpus=2, num_gpus=2, resources={"license": 1})
    yield
    jt.shutdown()


def test_actors_with_devices_and_other_resources(two_gpus: None) -> None:
    """Each sees its own, as long as it lives."""

    class Looks:
        def looks(self) -> Any:
            return os.environ["CUDA_VISIBLE_DEVICES"], jt.get_runtime_context().get_accelerator_ids()

    remote = jt.remote(Looks).options(num_gpus=1)
    first, second, third = (remote.remote() for _ in range(3))
    seen = jt.get([first.looks.remote(), second.looks.remote()], timeout=NET)
    assert sorted(visible for visible, _ in seen) == ["0", "1"]
    assert [ids for _, ids in seen] == [{"GPU": [visible]} for visible, _ in seen]
    waiting = third.looks.remote()
    assert is_open(waiting, 0.1)
    jt.kill(first)
    assert jt.get(waiting, timeout=NET)[0] == seen[0][0]
    licensed = [jt.remote(Counter).options(resources={"license": 1}).remote() for _ in range(2)]
    assert jt.get(licensed[0].increase.remote(), timeout=NET) == 1
    assert is_open(licensed[1].increase.remote(), 0.1)


# -- async actors -----------------------------------------------------------------------------------------------------------


class Batcher:
    def __init__(self, size: int) -> None:
        self.size = size
        self.batch: list[int] = []
        self.full = asyncio.Event()

    async def add(self, i: int) -> int:
        self.batch.append(i)
        if len(self.batch) >= self.size:
            self.full.set()
        await self.full.wait()
        return len(self.batch)


@pytest.mark.parametrize(
    ("size", "options"),
    [(3, {}), (1000, {}), (4000, {"max_concurrency": 8000})],
    ids=["three", "the default of 1000", "more than the recursion limit"],
)
def test_calls_of_an_async_actor_wait_for_each_other(size: int, options: dict[str, Any]) -> None:
    """test_asyncio.py::test_asyncio_actor, ::test_asyncio_actor_high_concurrency."""
    actor = jt.remote(Batcher).options(**options).remote(size)
    assert jt.get([actor.add.remote(i) for i in range(size)], timeout=60) == [size] * size


def test_no_more_calls_run_at_once_than_max_concurrency_says(tmp_path: Path) -> None:
    """test_asyncio.py::test_asyncio_actor_concurrency: 1, and the default of 1000."""

    class Order:
        def __init__(self) -> None:
            self.history: list[str] = []

        async def work(self) -> None:
            self.history.append("begin")
            await asyncio.sleep(0)
            self.history.append("end")

        async def look(self) -> list[str]:
            return self.history

    actor = jt.remote(Order).options(max_concurrency=1).remote()
    jt.get([actor.work.remote() for _ in range(20)], timeout=NET)
    assert jt.get(actor.look.remote(), timeout=NET) == ["begin", "end"] * 20
    batch = jt.remote(Batcher).remote(1001)
    refs = [batch.add.remote(i) for i in range(1001)]
    assert is_open(refs[0], 0.3)  # a thousand are in, and wait for one that is not let in
    jt.kill(batch)


def test_sync_and_async_methods_run_in_one_thread() -> None:
    """test_asyncio.py::test_asyncio_actor_same_thread, ::test_asyncio_actor_with_large_concurrency: and no others are made."""

    class Threads:
        def __init__(self) -> None:
            self.made_in = threading.get_ident()

        def sync(self) -> Any:
            return threading.get_ident(), threading.active_count()

        async def coroutine(self) -> Any:
            return threading.get_ident(), self.made_in

    actor = jt.remote(Threads).options(max_concurrency=100_000).remote()
    (here, count), (there, made_in) = jt.get([actor.sync.remote(), actor.coroutine.remote()], timeout=NET)
    assert here == there == made_in
    assert count < 10


def test_the_constructor_of_an_async_actor_finds_the_running_loop() -> None:
    """test_actor_failures.py::test_exit_actor_async_actor_nested_task_in_constructor_should_exit: it may start
    coroutines."""

    class Ticks:
        def __init__(self) -> None:
            self.ticked = asyncio.Event()
            self.task = asyncio.get_running_loop().create_task(self.tick())

        async def tick(self) -> None:
            self.ticked.set()

        async def wait(self) -> bool:
            return await self.ticked.wait()

    assert jt.get(jt.remote(Ticks).remote().wait.remote(), timeout=NET) is True


def test_methods_of_async_actors_await_refs() -> None:
    """test_asyncio.py::test_asyncio_actor_async_get; of tasks, of values and of calls, gathered."""

    class Getter:
        async def gets(self, box: list[jt.ObjectRef], counter: Any) -> Any:
            task = jt.remote(lambda: 1).remote()
            return await asyncio.gather(task, box[0], counter.increase.remote(), jt.put(4))

        async def fails(self) -> Any:
            await jt.remote(lambda: 1 / 0).remote()

    actor, counter = jt.remote(Getter).remote(), jt.remote(Counter).remote(2)
    assert jt.get(actor.gets.remote([jt.put(2)], counter), timeout=NET) == [1, 2, 3, 4]
    assert isinstance(raised(actor.fails.remote()), ZeroDivisionError)


def test_calls_are_awaited_in_the_program_too(tmp_path: Path) -> None:
    """test_asyncio.py::test_asyncio_get, ::test_asyncio_double_await: values, errors, ends, twice, after a timeout."""

    async def program() -> None:
        actor = SYNC.start(tmp_path)
        assert await actor.note.remote(2) == 2
        assert await actor.note.remote("x" * 200_000) == "x" * 200_000
        with pytest.raises(ValueError, match="bad"):
            await actor.fail.remote("bad")
        held = actor.hold.remote("call")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(held), 0.05)
        words.say(tmp_path / "call.go")
        assert [await held, await held] == ["call", "call"]
        jt.kill(actor)
        with pytest.raises(ActorDiedError):
            await actor.note.remote(1)

    asyncio.run(program())


def test_what_a_coroutine_knows_of_itself_is_its_own(tmp_path: Path) -> None:
    """test_runtime_context.py::test_async_actor_task_id: fifty calls in one thread, each with its own id and children."""

    class Knows:
        async def knows(self, place: str) -> Any:
            before = jt.get_runtime_context().get_task_id()
            await heard(f"{place}/go")
            return before, jt.get_runtime_context().get_task_id(), jt.get_runtime_context().get_task_name()

    actor = jt.remote(Knows).remote()
    refs = [actor.knows.options(name=f"call{i}").remote(str(tmp_path)) for i in range(50)]
    words.say(tmp_path / "go")
    expected = [(ref.task_id, ref.task_id, f"call{i}") for i, ref in enumerate(refs)]
    assert jt.get(refs, timeout=NET) == expected


# -- threads ------------------------------------------------------------------------------------------------------------------


def test_a_threaded_actor_runs_as_many_calls_as_it_says() -> None:
    """test_threaded_actor.py::test_threaded_actor_basic: four meet at a barrier, the fifth waits."""

    class Meets:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)
            self.lock = threading.Lock()
            self.inside = 0
            self.most = 0

        def meet(self) -> bool:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.barrier.wait(NET)
            with self.lock:
                self.inside -= 1
            return True

        def at_most(self) -> int:
            return self.most

    actor = jt.remote(Meets).options(max_concurrency=4).remote()
    assert all(jt.get([actor.meet.remote() for _ in range(40)], timeout=NET))
    assert jt.get(actor.at_most.remote(), timeout=NET) == 4


def test_threads_of_an_actor_may_submit_and_wait_at_once() -> None:
    """test_threaded_actor.py::test_threaded_actor_api_thread_safe: small and large."""

    class Submits:
        def submit(self, i: int, size: int) -> int:
            return len(jt.get(jt.remote(lambda size: bytes(size)).remote(size + i)))

    actor = jt.remote(Submits).options(max_concurrency=8).remote()
    for size in (0, 200_000):
        refs = [actor.submit.remote(i, size) for i in range(40)]
        assert jt.get(refs, timeout=NET) == [size + i for i in range(40)]


@pytest.mark.parametrize("kind", [SYNC, THREADED, ASYNC], ids=lambda kind: kind.name)
def test_many_callers_make_no_threads_in_the_actor(kind: Kind) -> None:
    """test_actor_bounded_threads.py: as many as before, whoever has called."""

    class Adds:
        def add(self, i: int, j: int) -> int:
            return i + j

        def threads(self) -> int:
            return len(os.listdir("/proc/self/task"))

        async def is_async(self) -> None:
            pass

    if kind is not ASYNC:
        del Adds.is_async
    actor = jt.remote(Adds).options(**kind.options).remote()

    @jt.remote
    def fibonacci(actor: Any, i: int) -> Any:
        if i < 2:
            return 1
        return jt.get(actor.add.remote(fibonacci.remote(actor, i - 1), fibonacci.remote(actor, i - 2)))

    assert jt.get(fibonacci.remote(actor, 2), timeout=NET) == 2
    jt.get([actor.threads.remote() for _ in range(20)], timeout=NET)  # all of its own threads are there
    before = jt.get(actor.threads.remote(), timeout=NET)
    assert jt.get(fibonacci.remote(actor, 7), timeout=60) == 21
    assert jt.get(actor.threads.remote(), timeout=NET) <= before


# -- order --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [THREADED, ASYNC], ids=lambda kind: kind.name)
def test_a_call_that_waits_for_its_argument_does_not_hold_up_others(kind: Kind, tmp_path: Path) -> None:
    """test_actor_out_of_order.py: of threaded and async actors."""
    late = jt.remote(words.hear).remote(str(tmp_path / "go"))
    actor = kind.start(tmp_path)
    waiting, other = actor.note.remote(late), actor.note.remote(2)
    assert jt.get(other, timeout=NET) == 2
    assert is_open(waiting)
    words.say(tmp_path / "go", "late")
    assert jt.get(waiting, timeout=NET) == "late"


@pytest.mark.parametrize("kind", [SYNC, IN_KERNEL], ids=lambda kind: kind.name)
def test_calls_of_a_sync_actor_keep_their_order_though_an_argument_is_late(kind: Kind, tmp_path: Path) -> None:
    """In order for each caller: the second waits for the first's argument, too. Another caller's does not."""
    late = jt.remote(words.hear).remote(str(tmp_path / "go"))
    actor = kind.start(tmp_path)
    first, second = actor.note.remote(late), actor.note.remote("second")
    assert is_open(second, 0.1)
    if kind.own_process:
        other = jt.remote(lambda actor: jt.get(actor.note.remote("other"))).remote(actor)
        assert jt.get(other, timeout=NET) == "other"
    words.say(tmp_path / "go", "late")
    assert jt.get([first, second], timeout=NET) == ["late", "second"]
    expected = ["other", "late", "second"] if kind.own_process else ["late", "second"]
    assert jt.get(actor.log.remote(), timeout=NET) == expected


@each_kind
def test_ten_thousand_calls(kind: Kind, tmp_path: Path) -> None:
    """In order, where one runs at a time; all of them, where several do."""
    actor = kind.start(tmp_path)
    refs = [actor.note.remote(i) for i in range(10_000)]
    assert jt.get(refs, timeout=60) == list(range(10_000))
    log = jt.get(actor.log.remote(), timeout=NET)
    assert (log if kind.at_once == 1 else sorted(log)) == list(range(10_000))


def test_a_call_that_is_run_again_comes_before_those_that_depend_on_it() -> None:
    """test_actor_retry_2.py::test_retry_dependent_task_on_same_actor: no deadlock on the same actor."""

    class Once:
        tries = 0

        @jt.method(max_task_retries=1, retry_exceptions=[ValueError])
        def one(self) -> int:
            self.tries += 1
            if self.tries <= 1:
                raise ValueError("again")
            return self.tries

        def two(self, one: int) -> int:
            return one + 1

    actor = jt.remote(Once).remote()
    assert jt.get(actor.two.remote(actor.one.remote()), timeout=NET) == 3


# -- retries ------------------------------------------------------------------------------------------------------------------


class MyError(Exception):
    pass


def trouble(kind: Kind) -> Any:
    """test_actor_retry_*.py: a class whose methods raise and exit as told, and count their attempts in a file."""

    class Trouble:
        def act(self, path: str, actions: list[str]) -> int:
            number = words.marks(path)
            words.mark(path)
            action = actions[number] if number < len(actions) else "return"
            if action == "raise":
                raise MyError(number)
            if action == "exit":
                os._exit(1)
            return number

        @jt.method(max_task_retries=5, retry_exceptions=[MyError])
        def five(self, path: str, actions: list[str]) -> int:
            return self.act(path, actions)

        @jt.method(retry_exceptions=[MyError])
        def as_the_actor(self, path: str, actions: list[str]) -> int:
            return self.act(path, actions)

    class AsyncTrouble(Trouble):
        @jt.method(max_task_retries=5, retry_exceptions=[MyError])
        async def five(self, path: str, actions: list[str]) -> int:  # type: ignore[override]
            return self.act(path, actions)

        @jt.method(retry_exceptions=[MyError])
        async def as_the_actor(self, path: str, actions: list[str]) -> int:  # type: ignore[override]
            return self.act(path, actions)

    return jt.remote(AsyncTrouble if kind is ASYNC else Trouble).options(**kind.options, max_task_retries=3)


@each_process_kind
def test_methods_are_retried_as_they_say(kind: Kind, tmp_path: Path) -> None:
    """test_actor_retry_1.py: the method's number goes before the actor's, and the call's before both."""
    actor = trouble(kind).remote()
    cases: list[tuple[Any, int, int, bool]] = [
        (actor.five, 5, 6, True),
        (actor.five, 6, 6, False),
        (actor.five.options(retry_exceptions=False), 5, 1, False),
        (actor.five.options(max_task_retries=10), 10, 11, True),
        (actor.five.options(max_task_retries=10), 11, 11, False),
        (actor.five.options(max_task_retries=0), 1, 1, False),
        (actor.as_the_actor, 3, 4, True),
        (actor.as_the_actor, 4, 4, False),
        (actor.as_the_actor.options(retry_exceptions=True), 3, 4, True),
        (actor.as_the_actor.options(retry_exceptions=[KeyError]), 1, 1, False),
        (actor.five.options(max_task_retries=-1), 20, 21, True),
    ]
    for number, (method, raises, runs, good) in enumerate(cases):
        path = str(tmp_path / f"case{number}")
        ref = method.remote(path, ["raise"] * raises)
        if good:
            assert jt.get(ref, timeout=NET) == raises
        else:
            assert isinstance(raised(ref), MyError)
        assert words.marks(path) == runs, number


@pytest.mark.parametrize("times", [-1, 2])
@pytest.mark.parametrize("actions", ["exit exit", "exit raise", "raise exit", "raise raise"])
@each_process_kind
def test_methods_that_raise_and_exit_are_run_again(kind: Kind, actions: str, times: int, tmp_path: Path) -> None:
    """test_actor_retry_2.py::test_method_raise_and_exit: errors and crashes count together."""
    actor = trouble(kind).options(max_restarts=times).remote()
    ref = actor.as_the_actor.options(max_task_retries=times).remote(str(tmp_path / "ran"), actions.split())
    assert jt.get(ref, timeout=NET) == 2
    assert words.marks(tmp_path / "ran") == 3


@pytest.mark.parametrize(
    ("actions", "error"),
    [
        ("raise raise raise", MyError),
        ("exit raise raise", MyError),
        ("raise exit raise", MyError),
        ("raise raise exit", ActorUnavailableError),  # it restarts, but the call may not be run again
        ("raise exit exit", ActorDiedError),  # it may not restart again
    ],
)
@each_process_kind
def test_methods_that_raise_and_exit_too_often(
    kind: Kind, actions: str, error: type[Exception], tmp_path: Path
) -> None:
    """test_actor_retry_2.py::test_method_raise_and_exit_no_over_retry."""
    actor = trouble(kind).options(max_restarts=1).remote()
    ref = actor.as_the_actor.options(max_task_retries=2).remote(str(tmp_path / "ran"), actions.split())
    assert isinstance(raised(ref), error)
    assert words.marks(tmp_path / "ran") == 3


@each_kind
def test_an_error_that_is_retried_runs_in_the_same_instance(kind: Kind, tmp_path: Path) -> None:
    """Its state is kept: retry_exceptions restarts nothing."""

    class Tries(kind.cls):  # type: ignore[name-defined,misc]
        def tries(self) -> int:
            self.began.append("try")
            if len(self.began) < 3:
                raise MyError
            return jt.get_runtime_context().get_attempt_number()

    actor = jt.remote(Tries).options(**kind.options).remote(str(tmp_path))
    ref = actor.tries.options(max_task_retries=2, retry_exceptions=[MyError]).remote()
    assert jt.get(ref, timeout=NET) == 2
    assert jt.get(actor.log.remote(), timeout=NET) == ["try"] * 3


# -- generators -----------------------------------------------------------------------------------------------------------------


class Generates:
    def items(self, count: int) -> Any:
        yield from range(count)

    def fails_after(self, count: int, path: str, good: int) -> Any:
        words.mark(path)
        yield from range(count)
        if words.marks(path) <= good:
            raise MyError
        yield "end"


class AsyncGenerates:
    async def items(self, count: int) -> Any:
        for i in range(count):
            await asyncio.sleep(0)
            yield i

    async def fails_after(self, count: int, path: str, good: int) -> Any:
        words.mark(path)
        for i in range(count):
            yield i
        if words.marks(path) <= good:
            raise MyError
        yield "end"


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Generates, {}), (Generates, {"max_concurrency": 3}), (AsyncGenerates, {}), (Generates, {"executor": "thread"})],
    ids=["sync", "threaded", "async", "in-kernel"],
)
def test_methods_that_generate(cls: type, options: dict[str, Any], tmp_path: Path) -> None:
    """test_actor_retry_2.py::test_generator_method_*: items come one by one; an error is the last; retries begin anew."""
    actor = jt.remote(cls).options(**options).remote()
    assert [jt.get(ref, timeout=NET) for ref in actor.items.remote(5)] == list(range(5))
    one, two = actor.items.options(num_returns=2).remote(2)
    assert jt.get([one, two], timeout=NET) == [0, 1]
    failing = actor.fails_after.remote(2, str(tmp_path / "no retry"), 99)
    assert [jt.get(next(failing), timeout=NET) for _ in range(2)] == [0, 1]
    assert isinstance(raised(next(failing)), MyError)
    with pytest.raises(StopIteration):
        next(failing)
    assert words.marks(tmp_path / "no retry") == 1
    again = actor.fails_after.options(max_task_retries=3, retry_exceptions=[MyError])
    values = [jt.get(ref, timeout=NET) for ref in again.remote(2, str(tmp_path / "retry"), 3)]
    assert values == [0, 1, "end"]
    assert words.marks(tmp_path / "retry") == 4
    refs = list(again.remote(2, str(tmp_path / "too often"), 99))
    assert jt.get(refs[:-1], timeout=NET) == [0, 1]
    assert isinstance(raised(refs[-1]), MyError)
    assert words.marks(tmp_path / "too often") == 4


def test_generators_of_an_async_actor_run_at_the_same_time(tmp_path: Path) -> None:
    """Two that wait for each other's items."""

    class Turns:
        def __init__(self) -> None:
            self.turn = 0

        async def takes(self, me: int) -> Any:
            for i in range(me, 10, 2):
                while self.turn != i:
                    await asyncio.sleep(0)
                self.turn += 1
                yield i

    actor = jt.remote(Turns).remote()
    first, second = actor.takes.remote(0), actor.takes.remote(1)
    taken = [jt.get(next(generator), timeout=NET) for _ in range(5) for generator in (first, second)]
    assert taken == list(range(10))


def test_a_generator_call_of_an_actor_that_dies(tmp_path: Path) -> None:
    """What was made is handed out, then one ref that raises ActorDiedError, then StopIteration."""

    class Dies:
        def items(self) -> Any:
            yield 1
            yield 2
            os._exit(1)

    items = jt.remote(Dies).remote().items.remote()
    refs = list(items)
    assert isinstance(raised(refs[-1]), ActorDiedError)
    assert jt.get(refs[:-1], timeout=NET) == [1, 2][: len(refs) - 1]


# -- what a call knows of itself ------------------------------------------------------------------------------------------------


@each_kind
def test_what_a_call_knows_of_its_actor(kind: Kind, tmp_path: Path) -> None:
    """test_runtime_context.py::test_ids, ::test_current_actor, ::test_was_current_actor_reconstructed."""

    class Knows(kind.cls):  # type: ignore[name-defined,misc]
        def knows(self) -> Any:
            context = jt.get_runtime_context()
            return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

        def calls_itself(self) -> Any:
            return [jt.get_runtime_context().current_actor.note.remote("itself")]

    remote = jt.remote(Knows).options(**kind.options)
    named, unnamed = remote.options(name="me").remote(str(tmp_path)), remote.remote(str(tmp_path))
    listed = {actor["actor_id"]: actor for actor in jt.list_actors()}
    actor_id, name, reconstructed = jt.get(named.knows.remote(), timeout=NET)
    assert (listed[actor_id]["name"], name, reconstructed) == ("me", "me", False)
    other_id, name, reconstructed = jt.get(unnamed.knows.remote(), timeout=NET)
    assert (name, reconstructed) == ("", False)
    assert other_id != actor_id
    (ref,) = jt.get(named.calls_itself.remote(), timeout=NET)
    assert jt.get(ref, timeout=NET) == "itself"
    assert jt.get(named.log.remote(), timeout=NET) == ["itself"]


def test_outside_of_actors_there_is_none() -> None:
    """In the program, in a task; and `current_actor` is an error there."""

    def look() -> Any:
        context = jt.get_runtime_context()
        return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

    def current() -> Any:
        return jt.get_runtime_context().current_actor

    assert look() == jt.get(jt.remote(look).remote(), timeout=NET) == (None, None, False)
    with pytest.raises(RuntimeError, match="actor"):
        current()
    with pytest.raises(RuntimeError, match="actor"):
        jt.get(jt.remote(current).remote(), timeout=NET)


def test_state_outside_of_the_object_is_the_actor_s_too(tmp_path: Path) -> None:
    """Globals, environment, directory and modules stay as its calls leave them, and reach nobody else."""

    class Changes:
        def change(self, place: str) -> None:
            os.environ["OF_AN_ACTOR"] = "yes"
            os.chdir(place)
            sys.path.insert(0, place)

        def look(self) -> Any:
            return os.environ.get("OF_AN_ACTOR"), os.getcwd(), sys.path[0]

    def look() -> Any:
        return os.environ.get("OF_AN_ACTOR"), os.getcwd() == str(tmp_path), sys.path[0] == str(tmp_path)

    actor, other = jt.remote(Changes).remote(), jt.remote(Changes).remote()
    jt.get(actor.change.remote(str(tmp_path)), timeout=NET)
    assert jt.get(actor.look.remote(), timeout=NET) == ("yes", str(tmp_path), str(tmp_path))
    assert jt.get(other.look.remote(), timeout=NET)[0] is None
    assert jt.get([jt.remote(look).remote() for _ in range(4)], timeout=NET) == [(None, False, False)] * 4


def test_threads_and_processes_that_a_call_has_started_go_on(tmp_path: Path) -> None:
    """They are the actor's state: no later call waits for them, and nothing of them is swept before its end."""

    class Starts(Keeper):
        def start(self) -> int:
            threading.Thread(target=self.work, daemon=True).start()
            return os.getpid()

        def work(self) -> None:
            words.hear(f"{self.place}/go", 60)
            self.began.append("by a thread")
            words.say(f"{self.place}/worked")

    actor = jt.remote(Starts).remote(str(tmp_path))
    pid = jt.get(actor.start.remote(), timeout=NET)
    assert jt.get(actor.note.remote(1), timeout=NET) == 1
    words.say(tmp_path / "go")
    words.hear(tmp_path / "worked")
    assert jt.get(actor.log.remote(), timeout=NET) == [1, "by a thread"]
    assert jt.get(actor.pid.remote(), timeout=NET) == pid


def test_a_session_that_ends_takes_its_actors_along(tmp_path: Path) -> None:
    """`jt.shutdown()`: nothing is left, calls raise, and the name is free in the next session."""
    handles = [kind.start(tmp_path, name=kind.name) for kind in KINDS]
    pids = set(jt.get([handle.pid.remote() for handle in handles], timeout=NET)) - {os.getpid()}
    running = handles[0].hold.remote("call")
    words.hear(tmp_path / "call")
    jt.shutdown()
    assert not any(words.alive(pid) for pid in pids)
    with pytest.raises(JupyterTasksError):
        jt.get(running, timeout=NET)
    jt.init(num_cpus=2)
    with pytest.raises(JupyterTasksError):
        jt.get(handles[0].note.remote(1), timeout=NET)
    again = SYNC.start(tmp_path, name=SYNC.name)
    assert jt.get(again.log.remote(), timeout=NET) == []


def test_three_hundred_actors_one_after_the_other(tmp_path: Path) -> None:
    """test_actor.py::test_actor_creation_latency: and no process too many is there in between."""
    for i in range(300):
        actor = jt.remote(Counter).remote(i)
        assert jt.get(actor.increase.remote(), timeout=NET) == i + 1
        del actor
    wait_until(lambda: len(status()["workers"]) <= 12, "the processes of the dead ones have ended")


def test_async_keepers_are_async() -> None:
    """A net for the tests beside this one: that their kinds are what they are called."""
    assert inspect.iscoroutinefunction(AsyncKeeper.hold)
    assert not inspect.iscoroutinefunction(Keeper.hold)
    assert ASYNC.cls is AsyncKeeper
