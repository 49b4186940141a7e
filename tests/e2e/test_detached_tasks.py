"""Detached tasks outlive the process that starts them, and leave nothing when they are ended. Role: end to end.

Promises: docs/semantics.md, Detached. Each test has a registry of its own. "Another process" is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from others import HERE, below, entry_files, run, start
from words import hear, said, say

import jupyter_tasks as jt
from jupyter_tasks import detached
from jupyter_tasks.client import connect
from jupyter_tasks.supervisor import reaper, registry
from jupyter_tasks.wire.frames import SESSION_MARK


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The registry of this test; in the end all of it is ended, and nothing may be left."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    yield tmp_path / "runtime" / "jupyter-tasks"
    for entry in detached.entries():
        detached.end(entry)
    detached.close()
    assert entry_files(tmp_path / "runtime" / "jupyter-tasks") == []


def until(word: str) -> str:
    """A task that says "in", waits for the word "go", and returns 42."""
    return (
        "@jt.remote\n"
        "def task():\n"
        f"    import sys; sys.path.append({str(HERE)!r})\n"
        "    from words import hear, say\n"
        f"    print('begins', flush=True); say({word!r} + '.in', os.getpid()); hear({word!r} + '.go'); return 42\n"
        "ref = task.options(lifetime='detached', name='long').remote()\n"
    )


def one(kind: str = "task") -> registry.Entry:
    """The only entry."""
    (entry,) = detached.entries(kind)
    return entry


@jt.remote
def add(a: Any, b: Any = 1) -> Any:
    return a + b


@jt.remote
def forever(word: str) -> None:
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    say(word, child.pid)
    time.sleep(1000)


@jt.remote
def fails() -> None:
    print("before the end", flush=True)
    raise LookupError("no such thing")


# -- it outlives who has started it -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["process", "group", "session", "exit"])
def test_it_outlives_the_process_that_started_it(how: str, tmp_path: Path) -> None:
    """SIGKILL of the process, its group or its whole session, and its ordinary end: the task goes on, is found by name
    by another process, and gives it its value; what it prints meanwhile is not lost."""
    word = str(tmp_path / "word")
    last = "" if how == "exit" else "; time.sleep(1000)"
    kernel = start(until(word) + f"hear({word!r} + '.in'); say({word!r} + '.started'){last}\n")
    hear(word + ".started")
    entry = one()
    if how == "process":
        os.kill(kernel.pid, signal.SIGKILL)
    elif how == "group":
        os.killpg(kernel.pid, signal.SIGKILL)
    elif how == "session":
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            with contextlib.suppress(OSError):
                if os.getsid(pid) == kernel.pid:
                    os.kill(pid, signal.SIGKILL)
    kernel.communicate(timeout=30)
    ref = jt.get_task("long")
    assert not ref.is_final
    assert [record["state"] for record in jt.tasks()] == ["running"]
    say(word + ".go")
    assert jt.get(ref, timeout=30) == 42
    with detached.line(entry) as client:
        log = client.request("logs", id=ref.id)
    assert Path(log["path"]).read_text() == "begins\n"
    assert run("print(jt.get(jt.get_task('long')))") == "42\n"


def test_the_end_of_the_session_leaves_it_alone(tmp_path: Path, module_session: None) -> None:
    """jt.shutdown() ends what is below this process's own supervisor, and sweeps by its mark; not this."""
    word = str(tmp_path / "in")
    jt.init(num_cpus=2)
    ref = forever.options(lifetime="detached", name="long").remote(word)
    hear(word)
    own = jt.remote(lambda: 1).remote()
    assert jt.get(own) == 1
    jt.shutdown()
    entry = one()
    assert registry.is_alive(entry)
    assert not ref.is_final
    assert not jt.is_initialized(), "the detached task needs no session of ours"
    assert [record["state"] for record in jt.tasks()] == ["running"]


def test_its_value_outlives_every_reference(tmp_path: Path) -> None:
    """Other values are freed with their last ref. This one lives until it is killed or cleared, also a big one."""
    run("jt.remote(lambda: b'x' * 5_000_000).options(lifetime='detached', name='big').remote()")
    for _ in range(2):
        assert run("print(len(jt.get(jt.get_task('big'))))") == "5000000\n"
    ref = jt.get_task("big")
    assert len(jt.get(ref)) == 5_000_000
    del ref
    with detached.line(one()) as client:
        wait_until(lambda: client.request("status", check=True)["objects"] == 1, "only what is kept")
        assert len(jt.get(jt.get_task("big"))) == 5_000_000


def test_a_process_that_dies_before_it_is_kept_takes_it_along(folder: Path) -> None:
    """The name is taken before the task runs; nobody is left with a name that no task stands behind."""
    kernel = start("starting = detached.Starting('half'); print('claimed', flush=True); time.sleep(1000)\n")
    assert kernel.stdout is not None
    assert kernel.stdout.readline() == "claimed\n"
    entry = one()
    kernel.kill()
    kernel.communicate()
    wait_until(lambda: not below(entry), "the supervisor has ended with it")
    assert entry_files(folder) == []
    assert not os.path.exists(entry.directory)


def test_an_error_and_its_output_outlive_it_too() -> None:
    """The error has its class, and the traceback of the task."""
    run(
        "@jt.remote\ndef fails():\n    print('before', flush=True); raise LookupError('no such thing')\n"
        "jt.wait([fails.options(lifetime='detached', name='bad').remote()])\n"
    )
    ref = jt.get_task("bad")
    with pytest.raises(LookupError, match="no such thing") as caught:
        jt.get(ref)
    assert isinstance(caught.value, jt.exceptions.TaskError)
    assert "fails" in str(caught.value.__cause__)


def test_its_ref_is_a_ref_like_others() -> None:
    """It can be awaited, told about and cancelled from a process that has not started it."""
    run("jt.remote(time.sleep).options(lifetime='detached', name='sleeps').remote(1000)")
    ref = jt.get_task("sleeps")
    wait_until(lambda: [chapter["step"] for chapter in ref.story()] == ["submitted", "started"], "it runs")

    async def awaited() -> None:
        await ref

    jt.cancel(ref, reason="enough")
    with pytest.raises(jt.exceptions.TaskCancelledError, match="enough"):
        asyncio.run(awaited())
    assert jt.tasks()[0]["state"] == "cancelled", "a cancelled task keeps its record and its name"
    with pytest.raises(ValueError, match="already"):
        add.options(lifetime="detached", name="sleeps").remote(1)


def test_several_values() -> None:
    """`num_returns` gives a list, wherever it is found."""
    run(
        "refs = jt.remote(lambda: (1, 2)).options(lifetime='detached', name='two', num_returns=2).remote()\nprint(jt.get(refs))"
    )
    assert jt.get(jt.get_task("two")) == [1, 2]


def test_a_finished_one_has_no_workers(folder: Path) -> None:
    """A value needs one process, not four; and the task's own cancel or clear works all the same."""
    ref = add.options(lifetime="detached", name="sum").remote(1)
    assert jt.get(ref) == 2
    entry = one()
    wait_until(lambda: below(entry) == [entry.pid], "workers and zygote have gone")
    jt.cancel(ref)
    assert ref.story()[-1]["step"] == "returned"
    detached.clear("sum")
    assert entry_files(folder) == []


def test_a_task_of_it_may_go_on(tmp_path: Path) -> None:
    """What it has submitted runs on when it is over; workers and zygote are ended after that."""
    word = str(tmp_path / "word")

    @jt.remote
    def parent() -> str:
        jt.remote(lambda: hear(word + ".go")).remote()
        return "over"

    ref = parent.options(lifetime="detached", name="parent").remote()
    assert jt.get(ref) == "over"
    entry = one()
    with detached.line(entry) as client:
        assert client.request("status")["workers"], "the child is not over"
        say(word + ".go")
        wait_until(lambda: below(entry) == [entry.pid], "all is over")


# -- ending it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_outside", [True, False])
def test_kill_leaves_nothing(from_outside: bool, folder: Path, tmp_path: Path) -> None:
    """By name, from any process: its whole tree, its supervisor, its directory with socket and logs, its entry. Who
    waits for it hears that it was killed."""
    word = str(tmp_path / "in")
    ref = forever.options(lifetime="detached", name="long").remote(word)
    child = int(hear(word))
    entry = one()
    assert len(below(entry)) >= 4
    family = {child, *below(entry)}
    if from_outside:
        run("detached.kill('long', reason='enough')")
    else:
        detached.kill("long", reason="enough")
    assert not [pid for pid in family if reaper.exists(pid)]
    assert not os.path.exists(entry.directory)
    assert entry_files(folder) == []
    with pytest.raises(jt.exceptions.ForceCancelledError, match="enough"):
        jt.get(ref, timeout=10)
    assert jt.tasks() == []
    with pytest.raises(ValueError, match="no detached task 'long'"):
        jt.get_task("long")


def test_kill_of_one_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that is stopped, or whose socket is gone, is listed as unreachable, and ended all the same."""
    monkeypatch.setattr(detached, "ANSWER_LIMIT", 0.2)
    monkeypatch.setattr(detached, "END_LIMIT", 0.2)
    run("jt.get(jt.remote(lambda: 1).options(lifetime='detached', name='stuck').remote())")
    entry = one()
    os.kill(entry.pid, signal.SIGSTOP)
    try:
        assert [record["state"] for record in jt.tasks()] == ["unreachable"]
        with pytest.raises(jt.exceptions.JupyterTasksError, match="%tasks kill stuck"):
            jt.get_task("stuck")
        detached.kill("stuck")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    assert not reaper.exists(entry.pid)
    assert entry_files(folder) == []
    assert not os.path.exists(entry.directory)


def test_a_terminated_supervisor_cleans_up(folder: Path, tmp_path: Path) -> None:
    """SIGTERM, as at the shutdown of the machine: everything below it goes, and its entry."""
    word = str(tmp_path / "in")
    ref = forever.options(lifetime="detached", name="long").remote(word)
    child = int(hear(word))
    entry = one()
    family = {child, *below(entry)}
    os.kill(entry.pid, signal.SIGTERM)
    with pytest.raises(jt.exceptions.ObjectLostError, match="'long'; somebody has killed or cleared it"):
        jt.get(ref, timeout=10)
    wait_until(lambda: not [pid for pid in family if reaper.exists(pid)], "nothing is left")
    assert entry_files(folder) == []
    assert not os.path.exists(entry.directory)


def test_a_killed_supervisor_is_cleaned_up_after(folder: Path, tmp_path: Path) -> None:
    """SIGKILL: its value is lost, which `get` says; the workers' processes, the directory and the entry go."""
    word = str(tmp_path / "in")
    ref = forever.options(lifetime="detached", name="long").remote(word)
    child = int(hear(word))
    entry = one()
    family = {child, *below(entry)}
    os.kill(entry.pid, signal.SIGKILL)
    with pytest.raises(jt.exceptions.ObjectLostError, match="'long'; it was killed"):
        jt.get(ref, timeout=10)
    wait_until(lambda: not [pid for pid in family if reaper.exists(pid)], "nothing is left")
    wait_until(lambda: entry_files(folder) == [], "who has lost it cleans up")
    assert not os.path.exists(entry.directory)


def test_clear_takes_only_what_is_over(folder: Path, tmp_path: Path) -> None:
    """It would end a running task, which is what kill is for."""
    word = str(tmp_path / "word")
    run(until(word) + f"hear({word!r} + '.in')")
    with pytest.raises(ValueError, match=r"running.*%tasks kill long"):
        detached.clear("long")
    say(word + ".go")
    jt.wait([jt.get_task("long")])
    detached.clear("long")
    assert entry_files(folder) == []


# -- names --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_says_which_there_are() -> None:
    """Also in which namespace they are."""
    with pytest.raises(ValueError, match=r"no detached task 'a'\. There are none\."):
        jt.get_task("a")
    first = add.options(lifetime="detached", name="a").remote(1)
    second = add.options(lifetime="detached", name="a", namespace="other").remote(2)
    assert jt.get(first) == 2
    assert jt.get(second) == 3
    assert jt.get(jt.get_task("a")) == 2
    assert jt.get(jt.get_task("a", namespace="other")) == 3
    with pytest.raises(ValueError, match=r"There are: 'a', 'a' \(namespace 'other'\)\."):
        jt.get_task("b")
    with pytest.raises(ValueError, match="in the namespace 'third'"):
        jt.get_task("a", namespace="third")


def test_a_taken_name_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The error says how to find it and how to end it."""
    word = str(tmp_path / "ran")
    jt.get(add.options(lifetime="detached", name="a/b ü").remote(1))
    with pytest.raises(ValueError, match=r"detached task 'a/b ü' already, since .*jt.get_task.*%tasks kill"):
        jt.remote(lambda: say(word)).options(lifetime="detached", name="a/b ü").remote()
    assert not said(word)
    assert len(detached.entries()) == 1


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_want_a_name_one_gets_it(stale: bool, folder: Path, tmp_path: Path) -> None:
    """Also when all of them find a dead entry in their way. Nobody's task runs twice.

    1. The registry is locked. 2. Three processes start a task of one name; none has seen another. 3. All of their
    supervisors wait for the lock. 4. They get it, one after the other.
    """
    if stale:
        leftover(folder)
    else:
        folder.mkdir(parents=True)
    ran = tmp_path / "ran"
    code = (
        "@jt.remote\ndef task():\n"
        f"    import sys; sys.path.append({str(HERE)!r}); from words import mark; mark({str(ran)!r})\n"
        "detached.Starting._refuse_if_taken = lambda self: None\n"
        "try: jt.get(task.options(lifetime='detached', name='old').remote()); print('mine')\n"
        "except jt.exceptions.JupyterTasksError as error: print('taken' if 'is taken by' in str(error) else error)\n"
    )
    with registry._locked(str(folder)):
        processes = [start(code) for _ in range(3)]
        wait_until(lambda: waiting_for_lock(folder / ".lock") == 3, "all wait for the lock")
        assert len(entry_files(folder)) == stale
    words = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert words == ["mine", "taken", "taken"]
    assert ran.read_text() == "x"
    assert len(entry_files(folder)) == 1


def waiting_for_lock(path: Path) -> int:
    """How many processes wait for a lock on this file: the system marks them with an arrow."""
    inode = f":{os.stat(path).st_ino} "
    return sum("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


# -- who may talk to it -------------------------------------------------------------------------------------------


def test_only_this_user_can_reach_it(folder: Path) -> None:
    """Directories 0700, entry, socket and logs 0600; and who has the socket but not the key is refused."""
    jt.get(fails_quietly())
    entry = one()
    modes = {path: stat.S_IMODE(os.stat(path).st_mode) for path in (folder, entry.directory)}
    assert set(modes.values()) == {0o700}
    files = [*entry_files(folder), *Path(entry.directory).iterdir()]
    assert len(files) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_ISSOCK(os.stat(entry.socket).st_mode)
    for key in ("", entry.key[:-1] + "x"):
        with pytest.raises(jt.exceptions.JupyterTasksError, match="key is wrong"):
            connect(entry.socket, key)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(entry.socket)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        assert stranger.recv(1) == b"", "who does not say HELLO is sent away"
    assert jt.get(jt.get_task("ok")) == 2, "and the others do not suffer"


def fails_quietly() -> Any:
    @jt.remote
    def prints(a: int) -> int:
        print("a log")
        return a + 1

    return prints.options(lifetime="detached", name="ok").remote(1)


def test_an_entry_of_somebody_else_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from its supervisor would be unpickled here."""
    jt.get(add.options(lifetime="detached", name="a").remote(1))
    entry = one()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert detached.entries() == []
    monkeypatch.undo()
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder.parent)
    detached.end(entry)


# -- stale entries ------------------------------------------------------------------------------------------------


def leftover(folder: Path, **changes: Any) -> registry.Entry:
    """The entry and directory of a supervisor that has died, and is not what `changes` say."""
    jt.get(add.options(lifetime="detached", name="old").remote(1))
    entry = one()
    (path,) = entry_files(folder)
    os.kill(entry.pid, signal.SIGSTOP)  # it shall not clean up
    os.kill(entry.pid, signal.SIGKILL)
    wait_until(lambda: not reaper.exists(entry.pid), "it is dead")
    detached.close()
    if not path.exists():  # our connection has noticed, and cleaned up
        path.write_text(json.dumps(dataclasses.asdict(entry)))
        path.chmod(0o600)
    Path(entry.directory).mkdir(0o700, exist_ok=True)
    changed = dataclasses.replace(entry, **changes)
    path = path.rename(registry._path_of(str(folder), changed))
    path.write_text(json.dumps(dataclasses.asdict(changed)))
    return changed


def zombie() -> subprocess.Popen[bytes]:
    """A process that has ended and whose parent has not looked."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: reaper.state_of(process.pid) == "Z", "it is a zombie")
    return process


@pytest.mark.parametrize("sort", ["dead", "reused", "other boot", "zombie"])
@pytest.mark.parametrize("by", ["list", "find", "start"])
def test_stale_entries_are_cleaned(sort: str, by: str, folder: Path) -> None:
    """Whoever comes by next: listing, looking for it, or wanting its name. A process that has got the number of the dead
    supervisor is left alone."""
    stranger = (
        zombie() if sort == "zombie" else subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    )
    try:
        changes: dict[str, Any] = {}
        if sort != "dead":
            changes["pid"] = stranger.pid
        if sort in ("zombie", "other boot"):
            changes["started"] = reaper.started(stranger.pid)
        if sort == "other boot":
            changes["boot_id"] = "of another boot"
        entry = leftover(folder, **changes)
        assert not registry.is_alive(entry)
        if by == "list":
            assert jt.tasks() == []
        elif by == "find":
            with pytest.raises(ValueError, match=r"There was one, but .*its result is lost\. There are none\."):
                jt.get_task("old")
        else:
            assert jt.get(add.options(lifetime="detached", name="old").remote(10)) == 11
        assert not os.path.exists(entry.directory)
        assert len(entry_files(folder)) == (1 if by == "start" else 0)
        if sort != "zombie":
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_processes_that_a_dead_supervisor_has_left_are_ended(folder: Path) -> None:
    """Supervisor and zygote killed at once: whoever cleans up finds the rest by the mark in their environment."""
    entry = leftover(folder)
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        env={**os.environ, SESSION_MARK: entry.mark},
        start_new_session=True,
    )
    wait_until(lambda: entry.mark in Path(f"/proc/{left.pid}/environ").read_text(), "it runs")
    assert detached.entries() == []
    assert left.wait(10) == -signal.SIGKILL


def test_entries_of_other_hosts_are_shown_and_never_touched(folder: Path) -> None:
    """On a shared home directory they look dead from here."""
    entry = leftover(folder, hostname="elsewhere")
    assert jt.tasks() == []
    assert detached.entries() == []
    assert [each.hostname for each in detached.elsewhere()] == ["elsewhere"]
    with pytest.raises(ValueError, match="There are: 'old' on host elsewhere"):
        jt.get_task("old")
    assert not registry.clean(str(folder), entry)
    assert jt.get(add.options(lifetime="detached", name="old").remote(1)) == 2, "each host has its names"
    detached.clear("old")
    assert os.path.exists(entry.directory)
    (path,) = entry_files(folder)
    path.unlink()
    os.rmdir(entry.directory)


def test_what_is_no_entry_does_not_disturb(folder: Path) -> None:
    """Half a file, another's file, or an entry of a later version with fields that we do not know."""
    jt.get(add.options(lifetime="detached", name="a").remote(1))
    (path,) = entry_files(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "green"}))
    for name, text in (("half.json", '{"name": "x"'), ("list.json", "[1]"), ("some.json", '{"name": "x"}')):
        (folder / name).write_text(text)
    assert [record["name"] for record in jt.tasks()] == ["a"]
    for name in ("half.json", "list.json", "some.json"):
        (folder / name).unlink()


def test_a_directory_that_is_not_ours_is_never_removed(folder: Path, tmp_path: Path) -> None:
    """Whatever an entry says."""
    precious = tmp_path / "precious"
    precious.mkdir()
    real = leftover(folder)
    leftover_dir = real.directory
    (path,) = entry_files(folder)
    path.write_text(json.dumps({**dataclasses.asdict(real), "directory": str(precious)}))
    assert detached.entries() == []
    assert precious.exists()
    os.rmdir(leftover_dir)


# -- where it cannot be started, and what it takes along ----------------------------------------------------------


def test_not_from_inside_a_task(session: None) -> None:
    """All that a task starts is ended with it; the error says where to start it."""

    @jt.remote
    def inner() -> None:
        jt.remote(lambda: 1).options(lifetime="detached", name="x").remote()

    with pytest.raises(RuntimeError, match="Start it from the notebook"):
        jt.get(inner.remote())
    assert detached.entries() == []


def test_a_task_can_find_one(session: None) -> None:
    """Its value is there for tasks, too."""
    jt.shutdown()  # the next session's workers look where this test does
    jt.init(num_cpus=2)
    jt.get(add.options(lifetime="detached", name="a").remote(1))
    assert jt.get(jt.remote(lambda: jt.get(jt.get_task("a"))).remote()) == 2


def test_not_in_local_mode() -> None:
    """Nothing outlives a process in which everything runs."""
    jt.shutdown()
    jt.init(local_mode=True)
    try:
        with pytest.raises(RuntimeError, match=r"jt\.shutdown\(\) first"):
            add.options(lifetime="detached", name="x").remote(1)
    finally:
        jt.shutdown()


def test_not_in_a_group(session: None) -> None:
    """A group would end before its member."""
    with jt.TaskGroup("g"), pytest.raises(ValueError, match="TaskGroup"):
        add.options(lifetime="detached", name="x").remote(1)
    assert detached.entries() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lifetime": "forever", "name": "x"}, "None or 'detached'"),
        ({"lifetime": "detached"}, "needs a name"),
        ({"lifetime": "detached", "name": ""}, "needs a name"),
        ({"lifetime": "detached", "name": "x", "namespace": 3}, "needs a namespace"),
        ({"lifetime": "detached", "name": "x", "executor": "thread"}, "a thread ends with this process"),
        ({"namespace": "x"}, "namespace is for lifetime='detached'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    """Said when they are given, before anything is started."""
    with pytest.raises(ValueError, match=words):
        add.options(**options)


def test_not_for_generators_and_maps() -> None:
    """Items belong to who takes them; a map has one name for many tasks."""
    with pytest.raises(ValueError, match="not for generators"):
        jt.remote(lambda: (yield 1)).options(lifetime="detached", name="x")
    with pytest.raises(ValueError, match="a name of its own"):
        add.options(lifetime="detached", name="x").map([1, 2])
    with pytest.raises(ValueError, match="there are only"):
        add.options(lifetime="detached", name="x", num_cpus=10_000).remote(1)
    assert detached.entries() == []


def test_references_among_its_arguments(session: None, tmp_path: Path, folder: Path) -> None:
    """A value that is there is taken along. One that is not, or is hidden inside another value, is refused, and the name
    is free again."""
    word = str(tmp_path / "go")
    there, open_one = jt.put([1]), jt.remote(lambda: hear(word)).remote()
    long = add.options(lifetime="detached", name="long")
    with pytest.raises(ValueError, match="argument 1 is a reference whose value is not there yet"):
        long.remote([2], open_one)
    with pytest.raises((ValueError, jt.exceptions.UnserializableError), match=r"jt\.get"):
        long.remote([2], [there])
    with pytest.raises(jt.exceptions.UnserializableError, match="b"):
        long.remote(1, b=open(os.devnull))
    assert detached.entries() == []
    assert entry_files(folder) == []
    say(word)
    jt.get(open_one)
    assert jt.get(long.remote([2], there)) == [2, 1]
    jt.shutdown()
    assert jt.get(jt.get_task("long")) == [2, 1]


def test_it_has_the_surroundings_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directory, environment and path are as they were when it was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOUR", "green")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mine_only.py").write_text("x = 5")

    @jt.remote
    def look() -> Any:
        import mine_only  # type: ignore[import-not-found]

        return os.getcwd(), os.environ["COLOUR"], mine_only.x

    assert jt.get(look.options(lifetime="detached", name="look").remote()) == (str(tmp_path), "green", 5)
