"""Detached actors outlive the process that makes them, serve several, and leave nothing. Role: end to end.

Promises: docs/semantics.md, Detached. "Another process" is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import actors
import pytest
from conftest import Screen, wait_until
from others import below, entry_files, finish, run, start
from words import hear, say

import jupyter_tasks as jt
from jupyter_tasks import detached
from jupyter_tasks.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    TaskCancelledError,
)
from jupyter_tasks.supervisor import reaper, registry


@pytest.fixture(autouse=True)
def folder(own_house: None) -> Iterator[Path]:
    """The registry of this module, which workers of its session see, too; after each test nothing may be in it."""
    folder = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / "jupyter-tasks"
    yield folder
    for entry in detached.entries():
        detached.end(entry)
    detached.close()
    assert entry_files(folder) == []


@jt.remote
class Counter:
    """Its state is a number."""

    def __init__(self, n: Any = 0) -> None:
        self.n = n

    def add(self, by: int = 1) -> int:
        self.n += by
        return int(self.n)

    def same(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    def plant(self, place: str) -> list[int]:
        return actors.plant_tree(place)

    def child(self) -> int:
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    def until(self, word: str, value: Any = None) -> Any:
        say(word + ".in")
        hear(word)
        return value

    def leave(self) -> None:
        jt.exit_actor()

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def up_to(self, n: int) -> Iterator[int]:
        yield from range(n)

    def hold(self, size: int) -> int:
        self.n = b"x" * size
        return len(self.n)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def boxed(self) -> list[jt.ObjectRef]:
        return [jt.put(7)]

    def me(self) -> Any:
        return jt.get_runtime_context().current_actor


THERE = Counter.options(name="x", lifetime="detached")
MAKES = (
    "@jt.remote\nclass Counter:\n    def __init__(self): self.n = 0\n"
    "    def add(self, by=1): self.n += by; return self.n\n"
    "    def leave(self): jt.exit_actor()\n"
    "there = Counter.options(name='x', lifetime='detached')\n"
)


def one() -> registry.Entry:
    """The only entry."""
    (entry,) = detached.entries("actor")
    return entry


def is_gone(entry: registry.Entry, folder: Path) -> bool:
    return not (below(entry) or entry_files(folder) or os.path.exists(entry.directory))


# -- it outlives who has made it ----------------------------------------------------------------------------------


def test_it_outlives_its_handles_and_the_session(folder: Path, module_session: None) -> None:
    """The last handle goes, then jt.shutdown(): neither is its end, and its handles need no session."""
    jt.init(num_cpus=2)
    actor = THERE.remote(5)
    assert jt.get(actor.add.remote()) == 6
    assert [(each["name"], each["state"], each["lifetime"]) for each in jt.list_actors()] == [
        ("x", "alive", "detached")
    ]
    del actor
    assert jt.get(jt.get_actor("x").add.remote()) == 7
    kept = jt.get_actor("x")
    jt.shutdown()
    assert jt.get(kept.add.remote()) == 8
    assert jt.get(jt.get_actor("x").add.remote()) == 9
    assert not jt.is_initialized(), "finding it starts no session"
    assert kept == jt.get_actor("x")


@pytest.mark.parametrize("how", ["sigkill", "exit"])
def test_it_outlives_the_process_that_made_it(how: str) -> None:
    """With its state."""
    last = "time.sleep(1000)" if how == "sigkill" else ""
    maker = start(MAKES + f"a = there.remote()\nprint(jt.get(a.add.remote(3)), flush=True)\n{last}")
    assert maker.stdout is not None
    assert maker.stdout.readline() == "3\n"
    if how == "sigkill":
        maker.kill()
    maker.communicate(timeout=30)
    assert jt.get(jt.get_actor("x").add.remote()) == 4
    assert run("print(jt.get(jt.get_actor('x').add.remote()))") == "5\n"


def test_calls_of_two_processes_at_once() -> None:
    """No call is lost or done twice; each caller's own come in their order."""
    actor = THERE.remote()
    code = "a = jt.get_actor('x')\nseen = jt.get([a.add.remote() for _ in range(500)])\nprint(seen == sorted(seen))"
    others = [start(code) for _ in range(2)]
    seen = jt.get([actor.add.remote() for _ in range(500)])
    assert seen == sorted(seen)
    assert [finish(other) for other in others] == ["True\n", "True\n"]
    assert jt.get(actor.add.remote(0)) == 1500


# -- its end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_outside", [True, False])
def test_kill_leaves_nothing(from_outside: bool, folder: Path, tmp_path: Path) -> None:
    """Its trees of processes, its supervisor, its directory, its entry. Calls of both processes that run, wait or come
    later raise ActorDiedError, and so do generators."""
    actor = THERE.remote()
    tree = jt.get(actor.plant.remote(str(tmp_path)))
    entry = one()
    family = {*tree, *below(entry)}
    word = str(tmp_path / "never")
    running, waiting, items = actor.until.remote(word), actor.add.remote(), actor.up_to.remote(3)
    code = (
        f"a = jt.get_actor('x')\nwaiting = a.add.remote()\nsay({word!r} + '.other')\n"
        "for call in (lambda: waiting, a.add.remote):\n"
        "    try: jt.get(call())\n"
        "    except jt.exceptions.ActorDiedError as error: print('died', flush=True)\n"
    )
    other = start(code)
    hear(word + ".in")
    hear(word + ".other")
    if from_outside:
        run("jt.kill(jt.get_actor('x'))")
    else:
        jt.kill(actor)
    assert not [pid for pid in family if reaper.exists(pid)]
    assert is_gone(entry, folder)
    for ref in (running, waiting, actor.add.remote(), next(actor.up_to.remote(2)), next(items)):
        with pytest.raises(ActorDiedError, match="x"):
            jt.get(ref, timeout=10)
    assert finish(other) == "died\ndied\n"
    assert jt.list_actors() == []
    with pytest.raises(ValueError, match="no actor named 'x'"):
        jt.get_actor("x")
    jt.kill(actor)  # once more: nothing happens
    assert jt.get(THERE.remote(1).add.remote()) == 2, "the name is free"


@pytest.mark.parametrize("how", ["exit_actor", "terminate"])
def test_it_ends_by_itself(how: str, folder: Path) -> None:
    """What was called before is done, and its values arrive, also big ones and many; then nothing is left."""
    actor = THERE.remote()
    before = [actor.same.remote(b"x" * 5_000_000), *(actor.same.remote(b"y" * 50_000) for _ in range(200))]
    entry = one()
    end = actor.leave.remote() if how == "exit_actor" else actor.terminate()
    if how == "exit_actor":
        with pytest.raises(ActorDiedError, match="exit_actor"):
            jt.get(end, timeout=10)
    else:
        assert jt.get(end, timeout=10) is None
    again = THERE.remote(1)
    assert jt.get(again.add.remote()) == 2, "the name is free"
    assert [len(value) for value in jt.get(before, timeout=10)] == [5_000_000, *[50_000] * 200]
    with pytest.raises(ActorDiedError):
        jt.get(actor.add.remote(), timeout=10)
    assert entry.pid in below(entry), "which keeps the values"
    before.clear()
    del end
    jt.kill(again)
    wait_until(lambda: is_gone(entry, folder), "nothing is left")
    with pytest.raises(ActorDiedError):
        jt.get(actor.add.remote(), timeout=10)


def test_an_error_of_the_constructor(folder: Path) -> None:
    """Calls raise ActorDiedError with its traceback, those made before and after; the entry is gone, whether the
    constructor fails before or after it is kept."""

    @jt.remote
    class Fails:
        def __init__(self) -> None:
            raise LookupError("no such thing")

        def add(self) -> None: ...

    for _ in range(5):
        actor = Fails.options(name="x", lifetime="detached").remote()
        call = actor.add.remote()
        with pytest.raises(ActorDiedError, match="no such thing"):
            jt.get(call, timeout=10)
        wait_until(lambda: entry_files(folder) == [], "the name is free")
        with pytest.raises(ActorDiedError, match="no such thing"):
            jt.get(actor.add.remote(), timeout=10)


def test_a_constructor_that_fails_before_it_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor does not stay for an actor that has ended."""

    @jt.remote
    class Fails:
        def __init__(self) -> None:
            raise LookupError("no such thing")

        def add(self) -> None: ...

    keep = detached.Starting.keep

    def late(self: detached.Starting, refs: Any) -> None:
        jt.wait(refs)
        keep(self, refs)

    monkeypatch.setattr(detached.Starting, "keep", late)
    actor = Fails.options(name="x", lifetime="detached").remote()
    with pytest.raises(ActorDiedError, match="no such thing"):
        jt.get(actor.add.remote(), timeout=10)
    wait_until(lambda: entry_files(folder) == [], "the name is free")


def test_a_crash_ends_it(folder: Path) -> None:
    """Its process is killed, and it has no restarts."""
    actor = THERE.remote()
    assert jt.get(actor.add.remote()) == 1
    entry = one()
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        jt.get(actor.crash.remote(), timeout=10)
    wait_until(lambda: is_gone(entry, folder), "nothing is left")
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        jt.get(actor.add.remote(), timeout=10)


def test_a_restart_keeps_name_and_entry() -> None:
    """With max_restarts; its state is that of its constructor. The first restart is by a crash, the second by kill."""
    actor = THERE.options(max_restarts=2).remote(10)
    assert jt.get(actor.add.remote()) == 11
    entry = one()
    for end in (lambda: jt.get(actor.crash.remote()), lambda: jt.kill(actor, no_restart=False)):
        with contextlib.suppress(ActorUnavailableError):
            end()
        assert one() == entry
        assert run("print(jt.get(jt.get_actor('x').add.remote()))") == "11\n"
        assert jt.get(actor.add.remote()) == 12
    with pytest.raises(ActorDiedError):
        jt.get(actor.crash.remote())


def test_its_supervisor_is_killed(folder: Path, tmp_path: Path) -> None:
    """SIGKILL: calls raise ActorDiedError; the actor's processes, the directory and the entry go; the name is free."""
    actor = THERE.remote()
    child = jt.get(actor.child.remote())
    entry = one()
    family = {child, *below(entry)}
    running = actor.until.remote(str(tmp_path / "never"))
    os.kill(entry.pid, signal.SIGKILL)
    for ref in (running, actor.add.remote()):
        with pytest.raises(ActorDiedError):
            jt.get(ref, timeout=10)
    wait_until(lambda: not [pid for pid in family if reaper.exists(pid)], "nothing is left")
    wait_until(lambda: is_gone(entry, folder), "who has lost it cleans up")
    assert jt.get(THERE.remote(1).add.remote()) == 2


def test_a_stale_entry_is_cleaned_by_who_looks(folder: Path) -> None:
    """Nobody was connected when its supervisor was killed."""
    run(MAKES + "jt.get(there.remote().add.remote())")
    entry = one()
    os.kill(entry.pid, signal.SIGKILL)
    wait_until(lambda: not registry.is_alive(entry), "it is gone")
    with pytest.raises(ValueError, match="no actor named 'x'"):
        jt.get_actor("x")
    wait_until(lambda: is_gone(entry, folder), "nothing is left")


def call_for_ever(actor: Any) -> None:
    while True:
        jt.get([actor.add.remote(), actor.same.remote([1]), *actor.up_to.remote(1)])


def test_a_call_when_its_end_is_not_heard_yet(folder: Path) -> None:
    """Calls into the end of the actor raise ActorDiedError from `get`, and nothing else from anywhere."""
    for _ in range(3):
        actor = THERE.remote()
        jt.get(actor.add.remote())
        pid = one().pid
        killer = threading.Timer(0.02, os.kill, [pid, signal.SIGKILL])
        killer.start()
        with pytest.raises(ActorDiedError):
            call_for_ever(actor)
        killer.join()
        wait_until(lambda: entry_files(folder) == [], "it is cleaned")


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", ["actor", "task", "plain"])
def test_a_taken_name(holder: str, session: None) -> None:
    """By a detached actor, a detached task or a plain actor: ActorAlreadyExistsError, and nothing is started."""
    if holder == "actor":
        first = THERE.remote()
    elif holder == "task":
        jt.get(jt.remote(lambda: 1).options(name="x", lifetime="detached").remote())
    else:
        first = Counter.options(name="x").remote()
    with pytest.raises(ActorAlreadyExistsError, match="'x'"):
        THERE.remote()
    if holder == "task":
        with pytest.raises(ActorAlreadyExistsError, match="detached task"):
            THERE.options(get_if_exists=True).remote()
    else:
        assert THERE.options(get_if_exists=True).remote() == first
    assert len(detached.entries()) == (holder != "plain")


def test_a_plain_actor_with_the_name_of_a_detached_one(session: None) -> None:
    """Refused, or that one with get_if_exists; `get_actor` has one answer."""
    first = THERE.remote()
    with pytest.raises(ActorAlreadyExistsError, match="'x'"):
        Counter.options(name="x").remote()
    assert Counter.options(name="x", get_if_exists=True).remote() == first


def test_get_if_exists_of_several_processes(tmp_path: Path) -> None:
    """At the same moment: one makes it, all get the same."""
    code = MAKES + (
        "print('ready', flush=True)\n"
        f"hear({str(tmp_path / 'go')!r})\n"
        "a = there.options(get_if_exists=True).remote()\nprint(jt.get(a.add.remote()))"
    )
    others = [start(code) for _ in range(4)]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    say(tmp_path / "go")
    assert sorted(int(finish(other)) for other in others) == [1, 2, 3, 4]
    assert len(detached.entries()) == 1


def test_get_if_exists_while_it_ends(folder: Path) -> None:
    """Whoever asks for it in the midst of its end gets a living one, or an actor that says that it died; nothing hangs."""
    for _ in range(10):
        actor = THERE.options(get_if_exists=True).remote()
        with contextlib.suppress(ActorDiedError):
            jt.get(actor.add.remote(), timeout=10)
        actor.terminate()
        again = THERE.options(get_if_exists=True).remote()
        with contextlib.suppress(ActorDiedError):
            jt.get(again.add.remote(), timeout=10)
        with contextlib.suppress(ValueError):
            jt.kill(jt.get_actor("x"))


def test_namespaces() -> None:
    """A name is unique within its namespace; the error says which there are."""
    first, second = THERE.remote(1), THERE.options(namespace="other").remote(2)
    assert jt.get([first.add.remote(), second.add.remote()]) == [2, 3]
    assert jt.get_actor("x") == first
    assert jt.get_actor("x", namespace="other") == second
    assert first != second
    with pytest.raises(ValueError, match=r"'y'.*names: x"):
        jt.get_actor("y")
    jt.kill(second)
    assert jt.get(first.add.remote()) == 3


# -- handles and refs ---------------------------------------------------------------------------------------------


def test_handles_travel(session: None) -> None:
    """To tasks and actors of the session and back, by themselves and inside lists; equal to the original, and as good."""
    actor = THERE.remote()

    @jt.remote
    def use(handle: Any) -> Any:
        handle = handle[0] if isinstance(handle, list) else handle
        assert handle == jt.get_actor("x")
        return jt.get(handle.add.remote()), handle, [handle]

    for way, arg in enumerate((actor, [actor])):
        number, back, boxed = jt.get(use.remote(arg))
        assert number == way + 1
        assert back == actor == boxed[0]
        assert hash(back) == hash(actor)
    holder = Counter.remote([actor])
    assert jt.get(holder.same.remote(actor)) == actor
    assert jt.get(jt.put({"a": actor}))["a"] == actor
    assert jt.get(actor.same.remote([actor])) == [actor], "also to itself"
    jt.kill(back)
    with pytest.raises(ActorDiedError):
        jt.get(actor.add.remote())


def test_a_handle_of_itself(session: None) -> None:
    """What the actor gives of itself is a handle like others: it may be sent on, and kill ends all."""
    actor = THERE.remote()
    me = jt.get(actor.me.remote())
    assert me == actor
    assert jt.get(jt.remote(lambda handle: jt.get(handle.add.remote())).remote(me)) == 1
    entry = one()
    jt.kill(me)
    assert not below(entry)


def test_a_handle_of_a_dead_one(session: None) -> None:
    """A task that is given it raises ActorDiedError, as one that is given a ref of something lost; `get` of a value with
    one, too."""
    actor = THERE.remote()
    jt.get(actor.add.remote())
    value = jt.put([actor])
    jt.kill(actor)
    use = jt.remote(lambda handle: 1)
    for ref in (use.remote(actor), use.remote([actor]), value):
        with pytest.raises(ActorDiedError, match="'x' has ended"):
            jt.get(ref, timeout=10)


def test_refs_of_the_session_as_arguments(session: None, tmp_path: Path) -> None:
    """At the top level, final or not; of a task that fails: its error. Inside others they are refused with a hint."""
    actor = THERE.remote()
    word = str(tmp_path / "go")
    there, late = jt.put(20), jt.remote(lambda: (hear(word) and 0) or 22).remote()
    first = actor.add.remote(there)
    second = actor.same.remote(late)
    say(word)
    assert jt.get([first, second], timeout=10) == [20, 22]
    failed = jt.remote(lambda: 1 / 0).remote()
    with pytest.raises(ZeroDivisionError):
        jt.get(actor.add.remote(failed), timeout=10)
    with pytest.raises((jt.exceptions.UnserializableError, ValueError), match=r"jt\.get"):
        actor.same.remote([there])
    assert jt.get(jt.remote(lambda a, b: a + b).remote(first, there), timeout=10) == 40, "and the other way"
    again = Counter.options(name="y", lifetime="detached").remote(there)
    assert jt.get(again.add.remote()) == 21, "an argument of the constructor that is there"


def test_values_with_refs_in_them() -> None:
    """A ref that the actor returns inside a value works in each process that has got it."""
    actor = THERE.remote()
    (inner,) = jt.get(actor.boxed.remote())
    assert jt.get(inner) == 7
    assert jt.get(actor.same.remote(inner)) == 7
    assert jt.get(jt.get(actor.same.remote([inner]))[0]) == 7


def test_only_own_calls_are_cancelled(tmp_path: Path) -> None:
    """A cancel of a call that waits or runs; the actor and the calls of others go on."""
    actor = THERE.remote()
    word = str(tmp_path / "go")
    running = actor.until.remote(word, "done")
    hear(word + ".in")
    other = start(
        "a = jt.get_actor('x')\nref = a.add.remote(100)\njt.cancel(ref)\n"
        "try: jt.get(ref)\nexcept jt.exceptions.TaskCancelledError: print('cancelled')"
    )
    assert finish(other) == "cancelled\n"
    assert not running.is_final
    mine = actor.add.remote(10)
    jt.cancel(mine)
    with pytest.raises(TaskCancelledError):
        jt.get(mine, timeout=10)
    say(word)
    assert jt.get(running, timeout=10) == "done"
    assert jt.get(actor.add.remote()) == 1


# -- kinds of actors ----------------------------------------------------------------------------------------------


def test_generators() -> None:
    """Items come as they are made, to whoever calls, also in an event loop."""
    actor = THERE.remote()
    assert [jt.get(ref) for ref in actor.up_to.remote(5)] == list(range(5))
    assert run("print([jt.get(ref) for ref in jt.get_actor('x').up_to.remote(3)])") == "[0, 1, 2]\n"

    async def collect() -> list[int]:
        return [await ref async for ref in actor.up_to.remote(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_async_and_threaded_ones(tmp_path: Path) -> None:
    """Calls of several processes run at the same time."""

    @jt.remote
    class Meeting:
        def __init__(self) -> None:
            self.there = 0

        async def meet(self) -> int:
            self.there += 1
            while self.there < 2:
                await asyncio.sleep(0.001)
            return self.there

        async def items(self) -> AsyncIterator[int]:
            yield 1

    @jt.remote
    class Threads:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def meet(self) -> int:
            self.barrier.wait(30)
            return 2

    for cls, options in ((Meeting, {}), (Threads, {"max_concurrency": 2})):
        actor = cls.options(name=cls.__name__, lifetime="detached", **options).remote()
        mine = actor.meet.remote()
        assert run(f"print(jt.get(jt.get_actor({cls.__name__!r}).meet.remote(), timeout=30))") == "2\n"
        assert jt.get(mine, timeout=10) == 2
    assert [jt.get(ref) for ref in jt.get_actor("Meeting").items.remote()] == [1]


def test_memory(folder: Path) -> None:
    """Its limit holds, without any session of ours."""
    actor = THERE.options(memory=400_000_000).remote()
    assert jt.get(actor.hold.remote(1_000_000)) == 1_000_000
    with pytest.raises((ActorDiedError, OutOfMemoryError), match="limit"):
        jt.get(actor.hold.remote(800_000_000), timeout=20)
    wait_until(lambda: entry_files(folder) == [], "it has ended")


def test_its_output_goes_to_who_called() -> None:
    """Of two processes, each sees what its own calls print."""
    with Screen() as screen:
        actor = THERE.remote()
        jt.get(actor.say.remote("mine"))
        wait_until(lambda: "mine" in screen.out.getvalue(), "its output")
        out = run("a = jt.get_actor('x')\njt.get(a.say.remote('theirs'))\na._jt_ref._client.drain_events()")
    assert "theirs" in out
    assert "mine" not in out
    assert "theirs" not in screen.out.getvalue()


# -- where it cannot be -------------------------------------------------------------------------------------------


def test_not_from_inside_a_task(session: None) -> None:
    """All that a task starts ends with it."""

    @jt.remote
    def inner() -> None:
        THERE.remote()

    with pytest.raises(RuntimeError, match="cannot start something detached"):
        jt.get(inner.remote())
    assert detached.entries() == []


def test_not_in_local_mode(module_session: None) -> None:
    """Everything ends with the process there."""
    jt.shutdown()
    jt.init(local_mode=True)
    try:
        with pytest.raises(RuntimeError, match="local mode"):
            THERE.remote()
    finally:
        jt.shutdown()
    assert detached.entries() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lifetime": "forever", "name": "x"}, "None or 'detached'"),
        ({"lifetime": "detached"}, "needs a name"),
        ({"lifetime": "detached", "name": "x", "executor": "thread"}, "executor='process'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    """Said when they are given."""
    with pytest.raises(ValueError, match=words):
        Counter.options(**options)


def test_demands_and_open_refs_are_refused_at_once(session: None, tmp_path: Path, folder: Path) -> None:
    """Before anything is started."""
    word = str(tmp_path / "go")
    late = jt.remote(lambda: hear(word)).remote()
    with pytest.raises(ValueError, match="not there yet"):
        THERE.remote(late)
    with pytest.raises(ValueError, match="there are only"):
        THERE.options(num_cpus=10_000).remote()
    with pytest.raises(TypeError, match="Counter"):
        THERE.remote(1, 2, 3)
    with pytest.raises(jt.exceptions.UnserializableError, match="n"):
        THERE.remote(open(os.devnull))
    assert entry_files(folder) == []
    say(word)
    jt.get(late)
