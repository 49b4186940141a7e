"""End to end: a task's whole process tree goes with it (B9), and what a finished task leaves running is its own.

Role: each test starts a tree whose members leave their process ids in files, then stops the task, and looks at
the very moment when `get` has raised.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import Screen, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ForceCancelledError, TaskCancelledError, TaskTimeoutError

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0
LONG = 60

# Says its process id and then does as asked; run as a program of its own, so that it has nothing of ours.
CHILD = "import os, sys, time; open(sys.argv[1] + '.part', 'w').write(str(os.getpid())); "
CHILD += "os.rename(sys.argv[1] + '.part', sys.argv[1]); "
SLEEP = CHILD + f"time.sleep({LONG})"
DEAF = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; " + SLEEP
BUSY = CHILD + "sum(range(10**12))"


def child(place: str, name: str, program: str = SLEEP, **how: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, f"{place}/{name}"], **how)


def plain_child(place: str) -> None:
    child(place, "child")


def many_children(place: str) -> None:
    for i in range(10):
        child(place, f"child{i}")


def deaf_child(place: str) -> None:
    child(place, "deaf", DEAF)


def busy_child(place: str) -> None:
    child(place, "busy", BUSY)


def own_session(place: str) -> None:
    child(place, "session", DEAF, start_new_session=True)


def shell_with_grandchild(place: str) -> None:
    script = '"$0" -c "$1" "$2" & "$0" -c "$1" "$3"; true'
    subprocess.Popen(["sh", "-c", script, sys.executable, SLEEP, f"{place}/grand1", f"{place}/grand2"])


def daemon(place: str) -> None:
    """Forks twice, in a session of its own: its parent is whoever takes in orphans."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            words.say(f"{place}/daemon", os.getpid())
            time.sleep(LONG)
        os._exit(0)
    os.wait()


def without_environment(place: str) -> None:
    child(place, "bare", DEAF, env={}, start_new_session=True)


TREES: dict[Callable[[str], None], int] = {
    plain_child: 1,
    many_children: 10,
    deaf_child: 1,
    busy_child: 1,
    own_session: 1,
    shell_with_grandchild: 2,
    daemon: 1,
    without_environment: 1,
}


def said_pids(place: Path, count: int) -> list[int]:
    def pids() -> list[int]:
        found = [path for path in place.iterdir() if path.suffix != ".part" and path.name != "in"]
        return [int(path.read_text()) for path in found] if len(found) >= count else []

    return list(wait_until(pids, f"{count} processes of the tree"))


def start_tree(tree: Callable[[str], None], place: Path, **options: Any) -> tuple[jt.ObjectRef, list[int]]:
    def task(place: str) -> None:
        tree(place)
        words.say(f"{place}/in", os.getpid())
        time.sleep(LONG)

    ref = jt.remote(task).options(**options).remote(str(place))
    pids = [int(words.hear(place / "in")), *said_pids(place, TREES[tree])]
    assert all(words.alive(pid) for pid in pids)
    return ref, pids


@pytest.mark.parametrize("force", [False, True], ids=["soft", "force"])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_nothing_is_left_when_get_has_raised(tree: Callable[[str], None], force: bool, tmp_path: Path) -> None:
    ref, (worker, *rest) = start_tree(tree, tmp_path)
    began = time.perf_counter()
    jt.cancel(ref, force=force)
    with pytest.raises(ForceCancelledError if force else TaskCancelledError):
        jt.get(ref, timeout=NET)
    left = [pid for pid in rest if words.alive(pid)]
    print(f"{tree.__name__}, {'force' if force else 'soft'}: {(time.perf_counter() - began) * 1000:.0f} ms")
    assert left == []
    if force:
        assert not words.alive(worker)


def test_nothing_is_left_of_all_trees_together(tmp_path: Path) -> None:
    trees = list(TREES)

    def forest(place: str) -> None:
        for tree in trees:
            tree(place)

    TREES[forest] = sum(TREES.values())
    try:
        for i in range(4):
            place = tmp_path / str(i)
            place.mkdir()
            ref, pids = start_tree(forest, place)
            jt.cancel(ref, force=i % 2 == 1)
            with pytest.raises(TaskCancelledError):
                jt.get(ref, timeout=NET)
            assert [pid for pid in pids[1:] if words.alive(pid)] == []
    finally:
        del TREES[forest]


def test_a_timeout_takes_the_tree_along(tmp_path: Path) -> None:
    def task(place: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        own_session(place)
        daemon(place)
        time.sleep(LONG)

    ref = jt.remote(task).options(timeout=0.3, grace=0.1).remote(str(tmp_path))
    pids = said_pids(tmp_path, 2)
    with pytest.raises(TaskTimeoutError):
        jt.get(ref, timeout=NET)
    assert [pid for pid in pids if words.alive(pid)] == []


def test_a_crash_takes_the_tree_along(tmp_path: Path) -> None:
    def task(place: str) -> None:
        own_session(place)
        daemon(place)
        words.hear(f"{place}/go")
        os._exit(3)

    ref = jt.remote(task).options(max_retries=0).remote(str(tmp_path))
    pids = said_pids(tmp_path, 2)
    words.say(tmp_path / "go")
    with pytest.raises(jt.exceptions.WorkerCrashedError):
        jt.get(ref, timeout=NET)
    assert [pid for pid in pids if words.alive(pid)] == []


def test_a_fork_bomb_that_keeps_forking_is_caught(tmp_path: Path) -> None:
    """Stopped from the top down and looked at again until nothing new shows up."""

    def task(place: str) -> None:
        words.say(f"{place}/in", os.getpid())
        while True:  # each child lives for a moment and leaves another one, in its own session
            if os.fork() == 0:
                words.mark(f"{place}/forks")
                os.setsid()
                time.sleep(0.01)
                if os.fork() == 0:
                    time.sleep(0.05)
                os._exit(0)
            time.sleep(0.002)

    ref = jt.remote(task).remote(str(tmp_path))
    worker = int(words.hear(tmp_path / "in"))
    wait_until(lambda: words.marks(tmp_path / "forks") > 10, "the bomb goes off")
    jt.cancel(ref, force=True)
    with pytest.raises(ForceCancelledError):
        jt.get(ref, timeout=NET)
    assert not words.alive(worker)
    # leaves_nothing looks for the rest, at once


# -- what a completed task leaves running -------------------------------------------------------------------------------------


def record_of(ref: jt.ObjectRef) -> dict[str, Any]:
    return next(task for task in jt.tasks() if task["task_id"] == ref.task_id)


def leaves_a_child(place: str) -> int:
    child(place, "child")
    words.hear(f"{place}/child")
    return os.getpid()


def test_a_task_that_leaves_a_child_has_its_value_at_once_and_lingers(tmp_path: Path) -> None:
    ref = jt.remote(leaves_a_child).remote(str(tmp_path))
    worker = jt.get(ref, timeout=NET)
    pid = int(words.hear(tmp_path / "child"))
    assert words.alive(pid)
    record = record_of(ref)
    assert (record["state"], record["lingers"]) == ("completed", True)
    # Its worker is kept for it; its slot is not.
    both = [jt.remote(time.sleep).remote(0.05) for _ in range(2)]
    jt.get(both, timeout=NET)
    assert worker not in jt.get([jt.remote(os.getpid).remote() for _ in range(10)], timeout=NET)
    jt.cancel(ref)
    wait_until(lambda: not words.alive(pid), "cancel ends what the task left running")
    wait_until(lambda: not record_of(ref)["lingers"], "the record says so")
    assert record_of(ref)["state"] == "completed"
    assert jt.get(ref) == worker


def test_the_worker_is_used_again_when_it_has_ended_by_itself(tmp_path: Path) -> None:
    ref = jt.remote(leaves_a_child).remote(str(tmp_path))
    worker = jt.get(ref, timeout=NET)
    assert record_of(ref)["lingers"]
    os.kill(int(words.hear(tmp_path / "child")), signal.SIGKILL)
    wait_until(lambda: not record_of(ref)["lingers"], "the child has ended")
    assert worker in status()["workers"]

    def used() -> bool:
        return worker in jt.get([jt.remote(os.getpid).remote() for _ in range(4)], timeout=NET)

    wait_until(used, "the worker runs tasks again")


def test_a_thread_left_by_a_task_is_its_own(tmp_path: Path) -> None:
    def task(place: str) -> str:
        def go_on() -> None:
            words.hear(f"{place}/go")

        threading.Thread(target=go_on, daemon=True).start()
        return "value"

    ref = jt.remote(task).remote(str(tmp_path))
    assert jt.get(ref, timeout=NET) == "value"
    assert record_of(ref)["lingers"]
    words.say(tmp_path / "go")
    wait_until(lambda: not record_of(ref)["lingers"], "the thread has ended")


def test_cancel_ends_a_thread_that_a_task_left(tmp_path: Path) -> None:
    def task(place: str) -> int:
        threading.Thread(target=time.sleep, args=(LONG,), daemon=True).start()
        return os.getpid()

    ref = jt.remote(task).remote(str(tmp_path))
    worker = jt.get(ref, timeout=NET)
    jt.cancel(ref)
    wait_until(lambda: not words.alive(worker), "the process of the thread has ended")
    assert jt.get(jt.remote(abs).remote(-1), timeout=NET) == 1


def test_what_it_writes_later_is_still_its_output(tmp_path: Path) -> None:
    with Screen() as screen:

        def task(place: str) -> None:
            def go_on() -> None:
                words.hear(f"{place}/go")
                print("from the thread")

            threading.Thread(target=go_on).start()

        def other() -> None:
            print("from another task")

        ref = jt.remote(task).remote(str(tmp_path))
        jt.get(ref, timeout=NET)
        jt.get(jt.remote(other).remote(), timeout=NET)
        words.say(tmp_path / "go")
        wait_until(lambda: not record_of(ref)["lingers"], "the thread has ended")
        log = Path(log_of(ref)["path"]).read_text()
        assert log == "from the thread\n"
        wait_until(lambda: "from the thread" in screen.out.getvalue(), "it is shown, too")


def log_of(ref: jt.ObjectRef) -> dict[str, Any]:
    from jupyter_tasks.session import current_client

    return dict(current_client().request("logs", id=ref.id))


def test_tasks_given_ahead_to_a_lingering_worker_run_elsewhere(tmp_path: Path) -> None:
    """1. x waits behind the task in the same worker   2. the task ends and leaves a child   3. x must not wait for it."""
    refs = []
    for i in range(6):
        place = tmp_path / str(i)
        place.mkdir()
        refs.append(jt.remote(leaves_a_child).remote(str(place)))
        refs.append(jt.remote(abs).remote(-i))
    values = jt.get(refs, timeout=NET)
    assert values[1::2] == list(range(6))
    assert len(set(values[::2])) == 6  # each in a process of its own: nothing ran beside what another had left
    lingering = [record["task_id"] for record in jt.tasks() if record["lingers"]]
    assert sorted(lingering) == sorted(ref.task_id for ref in refs[::2])
    for ref in refs[::2]:
        jt.cancel(ref)
    wait_until(lambda: not any(record["lingers"] for record in jt.tasks()), "all have ended")


def test_short_lived_leftovers_lose_no_task(tmp_path: Path) -> None:
    """The worker may have read its next packet before the supervisor hears that something lingers."""

    def leaves_a_moment(i: int) -> int:
        threading.Thread(target=time.sleep, args=(0.001,)).start()
        return i

    leave = jt.remote(leaves_a_moment)
    plain = jt.remote(abs)
    refs = []
    for i in range(150):
        refs += [leave.remote(i), plain.remote(-i), plain.remote(-i)]
    assert jt.get(refs, timeout=60) == [value for i in range(150) for value in (i, i, i)]
    wait_until(lambda: not any(record["lingers"] for record in jt.tasks()), "all have ended")


def test_an_interrupted_task_with_threads_left_replaces_the_worker(tmp_path: Path) -> None:
    def task(place: str) -> None:
        threading.Thread(target=time.sleep, args=(LONG,), daemon=True).start()
        words.say(f"{place}/in", os.getpid())
        time.sleep(LONG)

    ref = jt.remote(task).remote(str(tmp_path))
    worker = int(words.hear(tmp_path / "in"))
    words.blocked_in_system(worker)
    jt.cancel(ref)
    with pytest.raises(TaskCancelledError) as caught:
        jt.get(ref, timeout=NET)
    assert caught.value.rung == "interrupt"
    assert not words.alive(worker)


def test_a_task_that_uses_jt_itself_leaves_nothing_running() -> None:
    """Its worker keeps a connection, whose threads are not the task's; it is used again."""

    def task(i: int) -> tuple[int, int]:
        return os.getpid(), int(jt.get(jt.remote(abs).remote(jt.get(jt.put(-i)))))

    remote = jt.remote(task)
    seen = set()
    for i in range(12):
        pid, value = jt.get(remote.remote(i), timeout=NET)
        assert value == i
        seen.add(pid)
    assert not any(record["lingers"] for record in jt.tasks())
    assert len(seen) <= 4
    assert len(status()["workers"]) <= 4


def test_helpers_that_libraries_keep_do_not_linger(tmp_path: Path) -> None:
    """multiprocessing's resource tracker belongs to the process, not to the task that happened to need it first."""

    def task() -> int:
        from multiprocessing import shared_memory

        memory = shared_memory.SharedMemory(create=True, size=100)
        memory.close()
        memory.unlink()
        return os.getpid()

    ref = jt.remote(task).remote()
    jt.get(ref, timeout=NET)
    assert not record_of(ref)["lingers"]
    jt.shutdown()  # the tracker stays as long as its worker: `session` would take it for a leftover
