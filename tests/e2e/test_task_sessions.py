"""End to end: sessions begin and end, in order and by force, and nothing outlives them (B10).

Role: `init`, `shutdown`, the supervisor's death, forks, and the driver's death. Each test starts its own session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import describe, marked_processes, our_threads, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ObjectLostError
from jupyter_tasks.session import current, current_client

NET = 10.0
LONG = 60
HERE = os.path.dirname(__file__)


@pytest.fixture(autouse=True)
def own_session(module_session: None) -> Iterator[None]:
    """None at the beginning, none at the end."""
    jt.shutdown()
    yield
    jt.shutdown()


def busy(place: str, name: str = "in") -> None:
    words.say(f"{place}/{name}", os.getpid())
    time.sleep(LONG)


def busy_with_tree(place: str, name: str = "in") -> None:
    """A child in a session of its own, and a daemon."""
    program = "import os, sys, time, words; words.say(sys.argv[1], os.getpid()); time.sleep(60)"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(words.__file__)}
    subprocess.Popen([sys.executable, "-c", program, f"{place}/{name}.child"], start_new_session=True, env=env)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            words.say(f"{place}/{name}.daemon", os.getpid())
            time.sleep(LONG)
        os._exit(0)
    os.wait()
    words.hear(f"{place}/{name}.child")
    words.say(f"{place}/{name}", os.getpid())
    time.sleep(LONG)


def busy_in_c_code(place: str, name: str = "in") -> None:
    words.say(f"{place}/{name}", os.getpid())
    sum(range(10**12))


# -- init -----------------------------------------------------------------------------------------------------------


def test_the_first_task_starts_a_session() -> None:
    assert not jt.is_initialized()
    assert jt.get(jt.remote(abs).remote(-1), timeout=NET) == 1
    assert jt.is_initialized()


def test_importing_starts_nothing_and_loads_no_ipython() -> None:
    program = "import sys, threading; import jupyter_tasks as jt; jt.get; jt.remote; "
    program += "print(threading.active_count(), [m for m in ('IPython', 'numpy', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 []\n"


def test_init_twice_with_the_same_settings_is_a_no_op() -> None:
    first = jt.init(num_cpus=2, resources={"license": 3})
    assert first["total"] == {"CPU": 2.0, "GPU": 0.0, "license": 3}
    assert jt.init(num_cpus=2, resources={"license": 3}) == first
    assert jt.init() == first
    assert first["pid"] == status()["pid"]


def test_init_with_other_settings_is_refused_and_says_what_to_do() -> None:
    jt.init(num_cpus=2)
    with pytest.raises(RuntimeError, match=r"jt\.shutdown\(\)"):
        jt.init(num_cpus=3)
    jt.shutdown()
    assert jt.init(num_cpus=3)["total"]["CPU"] == 3


@pytest.mark.parametrize("bad", [{"num_cpus": -1}, {"num_gpus": -2}, {"resources": {"x": -1}}], ids=str)
def test_init_refuses_negative_numbers(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        jt.init(**bad)
    assert not jt.is_initialized()


def test_a_session_with_one_cpu_runs_one_task_at_a_time(tmp_path: Path) -> None:
    jt.init(num_cpus=1)

    def task(path: str) -> int:
        words.mark(f"{path}/in")
        count = words.marks(f"{path}/in") - words.marks(f"{path}/out")
        time.sleep(0.005)
        words.mark(f"{path}/out")
        return count

    assert jt.get([jt.remote(task).remote(str(tmp_path)) for _ in range(10)], timeout=NET) == [1] * 10


def test_fractions_of_a_cpu_run_together(tmp_path: Path) -> None:
    jt.init(num_cpus=1)

    def both(i: int, place: str) -> int:
        words.say(f"{place}/{i}")
        words.hear(f"{place}/{1 - i}")
        return i

    half = jt.remote(both).options(num_cpus=0.5)
    assert jt.get([half.remote(i, str(tmp_path)) for i in (0, 1)], timeout=NET) == [0, 1]


def test_zero_cpus_runs_at_once_and_its_workers_go_again(tmp_path: Path) -> None:
    jt.init(num_cpus=1)
    blocker = jt.remote(busy).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    free = jt.remote(os.getpid).options(num_cpus=0)
    assert len(set(jt.get([free.remote() for _ in range(10)], timeout=NET))) >= 1
    jt.cancel(blocker)
    wait_until(lambda: len(status()["workers"]) <= 4, "no more workers than are of use")


# -- shutdown -----------------------------------------------------------------------------------------------------------


def test_shutdown_ends_everything_and_returns_when_it_is_gone(tmp_path: Path) -> None:
    jt.init(num_cpus=3)
    refs = [jt.remote(f).remote(str(tmp_path), f.__name__) for f in (busy, busy_with_tree, busy_in_c_code)]
    queued = jt.remote(abs).remote(-1)
    pids = [int(words.hear(tmp_path / name)) for name in ("busy", "busy_with_tree", "busy_in_c_code")]
    pids += [int(words.hear(tmp_path / f"busy_with_tree.{name}")) for name in ("child", "daemon")]
    directory = current().client.settings["directory"] if current() else ""
    assert os.path.isdir(directory)
    began = time.monotonic()
    jt.shutdown()
    took = time.monotonic() - began
    assert [pid for pid in pids if words.alive(pid)] == []
    assert marked_processes() == set(), describe(marked_processes())
    assert our_threads() == set()
    assert not os.path.exists(directory)
    print(f"shutdown: {took * 1000:.0f} ms")
    for ref in [*refs, queued]:
        with pytest.raises(ObjectLostError, match="shut down"):
            jt.get(ref, timeout=NET)


def test_shutdown_twice_and_without_a_session_does_nothing() -> None:
    jt.shutdown()
    jt.init(num_cpus=1)
    jt.shutdown()
    jt.shutdown()
    assert not jt.is_initialized()


def test_a_value_that_is_here_survives_the_shutdown() -> None:
    small = jt.remote(abs).remote(-1)
    assert jt.get(small, timeout=NET) == 1
    jt.shutdown()
    assert jt.get(small) == 1


def test_old_refs_and_functions_after_a_restart() -> None:
    double = jt.remote(lambda x: x * 2)
    stored = jt.put(b"x" * 300_000)
    assert jt.get(double.remote(1), timeout=NET) == 2
    jt.shutdown()
    assert jt.get(double.remote(2), timeout=NET) == 4  # the function is sent anew
    with pytest.raises(ObjectLostError):
        jt.get(stored, timeout=NET)
    jt.cancel(stored)
    with pytest.raises(ObjectLostError):
        jt.get(double.remote(stored), timeout=NET)


def test_many_sessions_one_after_another_leave_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for i in range(10):
        jt.init(num_cpus=1 + i % 2)
        assert jt.get(jt.remote(abs).remote(-i), timeout=NET) == i
        jt.shutdown()
    assert set(os.listdir("/proc/self/fd")) == before


# -- the supervisor is killed -----------------------------------------------------------------------------------------------


def test_who_waits_hears_of_the_end_before_whoever_noticed_it_has_told_all(tmp_path: Path) -> None:
    """The race, built: the thread that noticed the end is held up on its way to the open refs."""
    settings = jt.init(num_cpus=1)
    ref = jt.remote(busy).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    client = current_client()
    why = client.on_lost
    assert why is not None
    noticed, go_on = threading.Event(), threading.Event()

    def slow_for_the_first() -> str:
        if not noticed.is_set():
            noticed.set()
            go_on.wait(NET)
        return why()

    client.on_lost = slow_for_the_first
    try:
        os.kill(settings["pid"], signal.SIGKILL)
        assert noticed.wait(NET)
        with pytest.raises(ObjectLostError, match="has ended"):
            jt.get(ref, timeout=NET)
        assert jt.wait([ref], timeout=NET) == ([ref], [])
    finally:
        go_on.set()


def test_a_killed_supervisor_takes_all_along_and_says_so_at_once(tmp_path: Path) -> None:
    settings = jt.init(num_cpus=3)
    value = jt.remote(abs).remote(-5)
    assert jt.get(value, timeout=NET) == 5
    refs = [jt.remote(f).remote(str(tmp_path), f.__name__) for f in (busy, busy_with_tree, busy_in_c_code)]
    big = jt.put(b"x" * 300_000)
    pids = [int(words.hear(tmp_path / name)) for name in ("busy", "busy_with_tree", "busy_in_c_code")]
    pids += [int(words.hear(tmp_path / f"busy_with_tree.{name}")) for name in ("child", "daemon")]
    old = status()
    pids += [*old["workers"], old["zygote"], old["pid"]]
    began = time.monotonic()
    os.kill(settings["pid"], signal.SIGKILL)
    for ref in refs:
        with pytest.raises(ObjectLostError, match=r"SIGKILL|signal 9"):
            jt.get(ref, timeout=NET)
    print(f"open refs raised after {(time.monotonic() - began) * 1000:.0f} ms")
    wait_until(lambda: not any(words.alive(pid) for pid in pids), "workers and their trees are gone")
    print(f"all was gone after {(time.monotonic() - began) * 1000:.0f} ms")
    assert jt.get(value) == 5  # it was in this process
    with pytest.raises(ObjectLostError):
        jt.get(big, timeout=NET)
    assert jt.get(jt.remote(abs).remote(-6), timeout=NET) == 6  # starts a new one
    assert current() is not None
    assert status()["pid"] != old["pid"]
    assert status()["total"] == old["total"]  # with the settings of the first


def test_get_that_waits_while_the_supervisor_is_killed_raises(tmp_path: Path) -> None:
    import threading

    settings = jt.init(num_cpus=1)
    ref = jt.remote(busy).remote(str(tmp_path))

    def kill() -> None:
        words.hear(tmp_path / "in")
        words.blocked_in_system(os.getpid())
        os.kill(settings["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ObjectLostError):
        jt.get(ref, timeout=NET * 2)
    thread.join()


def test_a_killed_zygote_is_replaced(tmp_path: Path) -> None:
    jt.init(num_cpus=2)
    running = jt.remote(busy).remote(str(tmp_path))
    worker = int(words.hear(tmp_path / "in"))
    old = status()["zygote"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: status()["zygote"] != old, "a new zygote")
    assert jt.get([jt.remote(abs).remote(-i) for i in range(10)], timeout=NET) == list(range(10))
    assert words.alive(worker)  # a running task is not harmed
    jt.cancel(running)


def test_killed_idle_workers_are_replaced() -> None:
    jt.init(num_cpus=2)
    for _ in range(5):
        jt.get([jt.remote(time.sleep).remote(0.01) for _ in range(4)], timeout=NET)
        for pid in status()["workers"]:
            os.kill(pid, signal.SIGKILL)
        assert jt.get(jt.remote(abs).remote(-1), timeout=NET) == 1


# -- forks of the user's process -----------------------------------------------------------------------------------------------


def test_a_forked_child_has_a_session_of_its_own_and_does_not_harm_the_parents(tmp_path: Path) -> None:
    jt.init(num_cpus=2)
    pending = jt.remote(busy).remote(str(tmp_path))
    words.hear(tmp_path / "in")
    stored = jt.put(b"x" * 300_000)
    parents = status()["pid"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert not jt.is_initialized()
            assert jt.get(jt.remote(abs).remote(-3), timeout=NET) == 3
            assert status()["pid"] != parents
            for ref in (pending, stored):
                try:
                    jt.get(ref, timeout=NET)
                except ObjectLostError:
                    pass
                else:
                    raise AssertionError("a ref of the parent's was usable in the child")
            jt.cancel(pending)  # nothing happens: it is not the child's
            del pending, stored
            jt.shutdown()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, raw = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(raw) == 0
    assert status()["pid"] == parents
    assert jt.get(stored, timeout=NET) == b"x" * 300_000
    assert jt.get([jt.remote(abs).remote(-i) for i in range(10)], timeout=NET) == list(range(10))
    assert next(t["state"] for t in jt.tasks() if t["task_id"] == pending.task_id) == "running"


def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_session(tmp_path: Path) -> None:
    """It has the kernel's end of the socket open: end-of-file alone would come when the child ends, too.

    Forked by C code, which does not tell Python: a child of `os.fork` closes the socket at once.
    """
    program = f"""
import ctypes, os, sys, time
sys.path.insert(0, {HERE!r})
import words
import jupyter_tasks as jt
pid = jt.init(num_cpus=1)["pid"]
jt.get(jt.remote(abs).remote(-1))
if ctypes.CDLL(None).fork() == 0:
    words.hear({str(tmp_path)!r} + "/go", 60)
    os._exit(0)
words.say({str(tmp_path)!r} + "/pid", pid)
os.kill(os.getpid(), 9)
"""
    driver = subprocess.Popen([sys.executable, "-c", program])
    supervisor = int(words.hear(tmp_path / "pid"))
    driver.wait()
    try:
        wait_until(lambda: not words.alive(supervisor), "the supervisor has ended with its kernel")
    finally:
        words.say(tmp_path / "go")


# -- the driver's end --------------------------------------------------------------------------------------------------------------

DRIVER = """
import os, sys, time
sys.path.insert(0, {here!r})
import words
from test_driver_tasks import {tasks}
import jupyter_tasks as jt
place = {place!r}
jt.init(num_cpus=4)
refs = [jt.remote(f).remote(place, f.__name__) for f in ({tasks},)]
words.say(place + "/driver", os.getpid())
{end}
"""

TASKS = ("busy", "busy_with_tree", "busy_in_c_code")
MEMBERS = (*TASKS, "busy_with_tree.child", "busy_with_tree.daemon")


def driver(place: Path, end: str) -> subprocess.Popen[str]:
    """A program that starts three busy trees and then does as told."""
    module = place / "test_driver_tasks.py"
    source = Path(__file__).read_text()
    wanted = "import os, subprocess, sys, time, words\nLONG = 60\n" + "\n\n".join(
        source[source.index(f"def {name}(") :].split("\n\n\n")[0] for name in TASKS
    )
    module.write_text(wanted)
    program = DRIVER.format(here=HERE, tasks=", ".join(TASKS), place=str(place), end=end)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{place}:{HERE}"},
    )


def all_of_them(place: Path) -> list[int]:
    return [int(words.hear(place / name)) for name in MEMBERS]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_killed_driver_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    """B10: three busy trees, one of them in C code that holds its GIL: 0 survivors."""
    process = driver(tmp_path, "time.sleep(60)")
    pids = all_of_them(tmp_path)
    ours = marked_processes()
    assert set(pids) <= ours
    began = time.monotonic()
    os.kill(int(words.hear(tmp_path / "driver")), number)
    process.communicate()
    wait_until(lambda: not any(words.alive(pid) for pid in pids), "all trees are gone")
    print(f"{number.name}: all trees were gone after {(time.monotonic() - began) * 1000:.0f} ms")
    wait_until(lambda: not marked_processes(), "supervisor and zygote, too")


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError",
        "jt.shutdown()",
        "os._exit(0)",
        "os.kill(os.getpid(), 2); time.sleep(60)",
    ],
    ids=["end of program", "exit", "exception", "shutdown", "os._exit", "interrupt"],
)
def test_a_driver_that_ends_by_itself_leaves_no_process(end: str, tmp_path: Path) -> None:
    wait = f"[words.hear(place + '/' + name) for name in {MEMBERS!r}]\n"
    process = driver(tmp_path, wait + end)
    output, _ = process.communicate(timeout=60)
    pids = [int((tmp_path / name).read_text()) for name in MEMBERS]
    wait_until(lambda: not any(words.alive(pid) for pid in pids), "all trees are gone")
    wait_until(lambda: not marked_processes(), "supervisor and zygote, too")
    assert "Exception ignored" not in output
    assert "Traceback" not in output or end in ("raise RuntimeError", "os.kill(os.getpid(), 2); time.sleep(60)")


def test_a_stopped_driver_does_not_stop_its_tasks(tmp_path: Path) -> None:
    """The supervisor does not depend on the kernel's being awake: a timeout comes even while it is stopped."""
    program = f"""
import os, sys, time
sys.path.insert(0, {HERE!r})
import words
import jupyter_tasks as jt

def task(place):
    words.say(place + "/in", os.getpid())
    try:
        time.sleep(60)
    finally:
        words.say(place + "/out")

jt.init(num_cpus=1)
ref = jt.remote(task).options(timeout=0.5).remote({str(tmp_path)!r})
words.say({str(tmp_path)!r} + "/driver", os.getpid())
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": HERE})
    words.hear(tmp_path / "in")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        words.hear(tmp_path / "out")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_until(lambda: not marked_processes(), "all is gone")


# -- refs of an earlier session -------------------------------------------------------------------------------------------------------


def test_a_ref_of_an_earlier_session_is_never_taken_for_another_value() -> None:
    """Each session counts from 1 again: the number alone would name a wrong value."""
    old = jt.put("old")
    jt.shutdown()
    new = jt.put("new")
    assert old.id == new.id
    identity = jt.remote(lambda x: x)
    with pytest.raises(ObjectLostError):
        identity.remote(old)
    with pytest.raises(ObjectLostError):
        identity.remote([old])
    with pytest.raises(ObjectLostError):
        jt.put({"nested": old})
    with pytest.raises(ObjectLostError):
        jt.get(old)
    del old
    assert jt.get(jt.remote(lambda x: x).remote(new), timeout=NET) == "new"
    assert jt.get(new) == "new"


def test_refs_of_both_sessions_in_one_get() -> None:
    old = jt.remote(abs).remote(-1)
    assert jt.get(old, timeout=NET) == 1
    jt.shutdown()
    new = jt.remote(time.sleep).remote(0.1)
    assert jt.wait([old, new], num_returns=2, timeout=NET) == ([old, new], [])
    new = jt.remote(time.sleep).remote(0.1)
    assert jt.get([old, new], timeout=NET) == [1, None]
