"""What holds for every test: it leaves nothing behind. And the session that tests of the Python API share.

Role: the net under all other tests. `leaves_nothing` runs around each test and fails one that leaves a process, a
thread, a descriptor or a temporary directory of ours. `session` gives a running supervisor with two CPUs and asks it
afterwards whether its rules still hold (`check`), whether it is empty, and whether nothing lives below its workers.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import jupyter_tasks as jt
from jupyter_tasks.exceptions import GetTimeoutError, JupyterTasksError
from jupyter_tasks.session import current, current_client
from jupyter_tasks.supervisor import reaper

NET = 10.0  # seconds; a net against hanging, never a measure

# Every process that a test starts, and all below it, inherits this. Other test runs on the machine have another.
RUN_MARK = "JUPYTER_TASKS_TEST_RUN"
os.environ[RUN_MARK] = str(os.getpid())

LINUX = sys.platform.startswith("linux")


def marked_processes() -> set[int]:
    """Every living process that was started, however indirectly, by this test run. Without this process."""
    wanted = f"{RUN_MARK}={os.environ[RUN_MARK]}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                ours = wanted in file.read().split(b"\0")
        except OSError:
            continue
        if ours and reaper.exists(int(name)):
            found.add(int(name))
    return found - {os.getpid()}


def our_threads() -> set[str]:
    """Names of living threads that belong to a client of ours."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("jupyter-tasks-")}


def our_directories() -> set[str]:
    """Temporary directories that sessions have made; those of end to end tests have a TMPDIR of their own."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("jupyter-tasks-")}


def session_fds() -> set[str]:
    """The descriptors that the running session has: its socket, its log, and what its reader thread sleeps on."""
    session = current()
    if session is None or session.client.closed:
        return set()
    client = session.client
    assert client._epoll is not None
    numbers = (client._sock.fileno(), client._epoll.fileno())
    return {str(number) for number in (*numbers, session.log.fileno())}


def service_fds() -> set[str]:
    """multiprocessing starts its resource tracker once for a process and keeps a pipe to it."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    return {str(tracker._resource_tracker._fd)} if tracker is not None else set()


def open_fds() -> set[str]:
    """`number -> target` of each open descriptor of this process, without those that may be there."""
    found = set()
    for name in set(os.listdir("/proc/self/fd")) - session_fds() - service_fds():
        try:
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            pass  # the one that listdir itself had open
    return found


class Screen:
    """`with Screen() as screen`: the program's own streams, which the client's event thread writes to.

    (pytest's capfd must not be polled: it drops what another thread writes between its reading and its truncating.)
    """

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.err = io.StringIO()

    def __enter__(self) -> Screen:
        self._both = contextlib.ExitStack()
        self._both.enter_context(contextlib.redirect_stdout(self.out))
        self._both.enter_context(contextlib.redirect_stderr(self.err))
        return self

    def __exit__(self, *_: object) -> None:
        self._both.close()


def wait_until(condition: Callable[[], Any], what: str, net: float = NET) -> Any:
    """Waits for a word; `net` is only there so that a broken product fails instead of hanging."""
    end = time.monotonic() + net
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {net:g} s in vain for: {what}")
        time.sleep(0.001)
    return value


def raised(ref: jt.ObjectRef) -> BaseException:
    """What `get` raises, which is not that it waited too long."""
    with pytest.raises(JupyterTasksError) as caught:
        jt.get(ref, timeout=NET)
    assert not isinstance(caught.value, GetTimeoutError)
    return caught.value


def is_open(ref: jt.ObjectRef, seconds: float = 0.0) -> bool:
    """It is not final, also not within so many seconds."""
    try:
        jt.get(ref, timeout=seconds)
    except GetTimeoutError:
        return True
    return False


class Gate:
    """What runs in a thread says that it is in, and goes on when it is let."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        self.opened.wait(NET)
        return "through"


def status() -> dict[str, Any]:
    """The running supervisor's own view of itself, after it has checked its invariants."""
    return dict(current_client().request("status", check=True))


def family() -> set[int]:
    """The processes that a living session may have: the supervisor, its zygote and its workers."""
    if current() is None or current().client.closed:
        return set()
    now = status()
    return {now["pid"], now["zygote"], *now["workers"]}


def session_is_up() -> bool:
    return current() is not None and not current().client.closed


def describe(pids: set[int]) -> str:
    lines = []
    for pid in sorted(pids):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")[:150]
        except OSError:
            command = "?"
        lines.append(f"{pid} ({reaper.state_of(pid)}): {command}")
    return "\n".join(lines)


def kernel_family(request: pytest.FixtureRequest) -> set[int]:
    """What a kernel that lives longer than one test may have below it; its own fixture looks after its end."""
    if "kernel" not in request.fixturenames:
        return set()
    pid = request.getfixturevalue("kernel").pid
    return {pid, *reaper.descendants(pid)}


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor or directory of ours behind."""
    if not LINUX:
        yield
        return
    # Looking at every process costs some milliseconds: only where processes are started at all. (Tests of `wire`
    # look at descriptors themselves.)
    starts_processes = "e2e" in request.path.parts
    processes_before = marked_processes() if starts_processes else set()
    threads_before, directories_before, fds_before = our_threads(), our_directories(), open_fds()
    yield
    if starts_processes:
        strangers: set[int] = set()

        def gone() -> bool:
            strangers.clear()
            strangers.update(marked_processes() - family() - processes_before - kernel_family(request))
            return not strangers

        end = time.monotonic() + 2.0  # what was killed a moment ago may still be going
        while not gone():
            if time.monotonic() > end:
                described = describe(strangers)
                reaper.kill_all(strangers)  # the next tests must not suffer
                pytest.fail(f"the test left processes behind:\n{described}")
            time.sleep(0.005)
    if not session_is_up():
        assert our_threads() <= threads_before, "the test left threads behind"
        if starts_processes:
            assert our_directories() <= directories_before, "the test left a directory behind"
    if starts_processes and open_fds() - fds_before:
        gc.collect()
        new = open_fds() - fds_before
        assert not new, f"the test left descriptors open: {sorted(new)}"


@pytest.fixture(scope="module", autouse=True)
def own_house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End to end modules: a temporary directory of their own, and functions that travel as a notebook's do.

    (Sent by reference, as those of a module are, they would make each worker import the test module, and pytest.)
    """
    if "e2e" not in request.path.parts:
        yield
        return
    tmp_path_factory.getbasetemp()  # that one stays where it is
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="jt-") as directory:
        patch.setattr(tempfile, "tempdir", directory)
        patch.setenv("TMPDIR", directory)
        patch.setenv("JUPYTER_RUNTIME_DIR", os.path.join(directory, "runtime"))  # where detached tasks are found
        cloudpickle.register_pickle_by_value(request.module)
        yield
        cloudpickle.unregister_pickle_by_value(request.module)
        left = [name for name in os.listdir(directory) if name.startswith("jupyter-tasks-")]
        assert not left, f"sessions left directories behind: {left}"


@pytest.fixture(scope="module")
def module_session(own_house: None) -> Iterator[None]:
    """Ends what the tests of a module have started, and looks whether anything is left."""
    before = marked_processes()
    yield
    jt.shutdown()
    # At once, without a grace period: when shutdown() returns, all is gone.
    left = marked_processes() - before
    assert not left, f"shutdown() left processes behind:\n{describe(left)}"
    assert not our_threads(), "shutdown() left threads behind"


_passed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if call.when == "call":
        item.stash[_passed] = call.excinfo is None
    return report


@pytest.fixture
def session(request: pytest.FixtureRequest, module_session: None) -> Iterator[None]:
    """A supervisor with two CPUs, shared by the tests of a module; found empty and whole after each test."""
    if not session_is_up():
        jt.init(num_cpus=2)
    yield
    if not session_is_up():
        return  # the test has ended it, on purpose
    if not request.node.stash.get(_passed, False):
        jt.shutdown()  # it failed: its traceback holds refs, and the next test shall start clean
        return
    gc.collect()  # refs that a caught exception's traceback still holds
    problem = ""

    def empty() -> bool:
        nonlocal problem
        now = status()
        problem = f"{now['live']} live tasks, {now['actors']} actors, {now['queued']} queued, {now['objects']} objects"
        return not (now["live"] or now["actors"] or now["queued"] or now["objects"])

    end = time.monotonic() + NET
    while not empty():
        if time.monotonic() > end:
            records = [task for task in jt.tasks() if task["state"] not in ("completed", "failed")][:5]
            jt.shutdown()  # the next test shall start clean
            pytest.fail(f"the test left in the supervisor: {problem}; {records}")
        time.sleep(0.005)
    workers = status()["workers"]
    below = {child for pid in workers for child in reaper.descendants(pid) if reaper.exists(child)}
    if below:
        described = describe(below)
        jt.shutdown()
        pytest.fail(f"the test left processes below a worker:\n{described}")


@pytest.fixture
def new_kernel(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Kernels one after the other, in one directory and with one registry. In the end nothing of them may be left."""
    from kernels import FIRST, Kernel

    kernels: list[Kernel] = []

    def new() -> Kernel:
        kernel = Kernel(tmp_path / "kernel")
        kernels.append(kernel)
        assert kernel.run(FIRST).ok
        return kernel

    yield new
    with contextlib.ExitStack() as stack:
        for kernel in kernels:
            stack.callback(kernel.close)
        kernels[-1].run("from jupyter_tasks import detached\nfor entry in detached.entries(): detached.end(entry)")
    wait_until(lambda: not kernels[-1].processes(), "no survivors")
    left = [path.name for path in (tmp_path / "kernel" / "runtime" / "jupyter-tasks").glob("*.json*")]
    assert left == []
    assert not list((tmp_path / "kernel").glob("jupyter-tasks-*"))


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One kernel for all tests of a module: they may not disturb each other, as cells of a notebook may not.

    With the extension and what tests want everywhere; `FIRST_CELL` of the module is run, too.
    """
    from kernels import Kernel  # beside the end to end tests; others do not need it

    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    imports = "%load_ext jupyter_tasks\nimport jupyter_tasks as jt, os, pathlib, sys, time\n"
    first = kernel.run(imports + getattr(request.module, "FIRST_CELL", ""))
    assert first.ok, first.error
    yield kernel
    kernel.close()
    wait_until(lambda: not kernel.processes(), "nothing of the kernel is left after its shutdown")
