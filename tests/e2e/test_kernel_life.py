"""A kernel that ends, in every way it can, leaves no process of ours. Role: end to end.

Promises: docs/semantics.md, B9 and B10. The trees are the worst that tests know: a shell with a grandchild, a child in a
session of its own, a daemon that forked twice, and a worker inside C code that holds the GIL.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from kernels import Kernel
from words import hear

pytestmark = pytest.mark.slow

# Each task says "in" from inside, with its tree already standing.
TREES = """
%load_ext jupyter_tasks
import jupyter_tasks as jt, pathlib
jt.init(num_cpus=3)
"""
DAEMON = (
    "%%remote daemon\n"
    "import os, subprocess, sys, time\n"
    "subprocess.Popen(['sh', '-c', 'sleep 1000 & sleep 1001'])\n"
    "subprocess.Popen(['sleep', '1002'], start_new_session=True)\n"
    "if not os.fork():\n"
    "    os.setsid()\n"
    "    if os.fork(): os._exit(0)\n"
    "    open('daemon-pid', 'w').write(str(os.getpid()))\n"
    "    time.sleep(1000)\n"
    "while not os.path.exists('daemon-pid'): time.sleep(0.01)\n"
    "open('in-daemon', 'w').close()\n"
    "time.sleep(1000)\n"
)
SHELL = "%%remote shell\nopen('in-shell', 'w').close()\n!sh -c 'sleep 1003; sleep 1004'\n"
STUCK = "%%remote stuck\nimport subprocess\nsubprocess.Popen(['sleep', '1005'])\nopen('in-stuck', 'w').close(); sum(range(10**12))"


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel with three busy process trees."""
    kernel = Kernel(tmp_path / "kernel")
    try:
        assert kernel.run(TREES).ok
        for code, word in ((DAEMON, "in-daemon"), (SHELL, "in-shell"), (STUCK, "in-stuck")):
            assert kernel.run(code).ok
            hear(kernel.directory / word)
        wait_until(lambda: count(kernel, "sleep") >= 5, "all children of the three trees")
        yield kernel
    finally:
        kernel.close()


def count(kernel: Kernel, name: str) -> int:
    """How many of the kernel's processes run this program."""
    found = 0
    for pid in kernel.processes():
        try:
            found += Path(f"/proc/{pid}/comm").read_text().strip() == name
        except OSError:
            continue
    return found


def test_sigkill_of_the_kernel_leaves_nothing(busy: Kernel) -> None:
    """Nobody can clean up in the kernel any more: the supervisor does, also the worker that holds the GIL."""
    before = busy.processes()
    assert len(before) >= 12
    busy.kill()
    wait_until(lambda: not busy.processes(), "no survivors")


def test_shutdown_of_the_kernel_leaves_nothing(busy: Kernel) -> None:
    """The ordinary end, as when a notebook is shut down."""
    busy.manager.shutdown_kernel(now=False)
    wait_until(lambda: not busy.processes(), "no survivors")


def test_restart_of_the_kernel_leaves_nothing_and_works_again(busy: Kernel) -> None:
    """The new kernel starts with no tasks, and a supervisor of its own."""
    before = busy.processes()
    busy.manager.restart_kernel(now=False)
    busy.client.wait_for_ready(timeout=60)
    wait_until(lambda: not (busy.processes() & before), "nothing of the first kernel")
    busy.run("%load_ext jupyter_tasks\nimport jupyter_tasks as jt")
    busy.run("%%remote fresh\n'works'")
    assert busy.run("jt.get(fresh)").result == "'works'"


def test_crash_of_the_kernel_leaves_nothing(busy: Kernel) -> None:
    """A segmentation fault in the kernel itself."""
    busy.start("import ctypes; ctypes.string_at(0)")
    wait_until(lambda: not busy.processes(), "no survivors")


def test_sigkill_of_a_kernel_with_a_forked_child_leaves_nothing_of_ours(busy: Kernel) -> None:
    """A forked child holds the kernel's end of the socket open: end-of-file alone would come too late."""
    busy.run(
        "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(5); os._exit(0)\nopen('child', 'w').write(str(pid))"
    )
    child = int(hear(busy.directory / "child"))
    busy.kill()
    wait_until(lambda: busy.processes() <= {child}, "no survivors but the user's own child", net=3.0)
    os.kill(child, 9)


def test_unload_ends_everything(busy: Kernel) -> None:
    """%unload_ext takes the magics away and leaves no process."""
    busy.run("%unload_ext jupyter_tasks")
    wait_until(lambda: busy.processes() == {busy.pid}, "only the kernel")
    assert "not found" in busy.run("%%remote\n1").text("stderr")


def test_a_plain_ipython_terminal_works(tmp_path: Path) -> None:
    """In a terminal: a line for each change of state, the output, and nothing left at the end."""
    script = (
        "%load_ext jupyter_tasks\n"
        "import jupyter_tasks as jt\n"
        "get_ipython().run_cell_magic('remote', 'first', 'print(\"from the worker\"); 6 * 7')\n"
        "print(f'value {jt.get(first)}')\n"
        "get_ipython().run_cell_magic('remote', '--wait', 'print(\"waited\")')\n"
        "%tasks\n"
    )
    env = {**os.environ, "IPYTHONDIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        check=False,
    )
    for word in ("[first] running", "from the worker", "value 42", "waited", "completed"):
        assert word in done.stdout, done.stdout + done.stderr


def test_importing_the_package_is_light() -> None:
    """`import jupyter_tasks` imports neither IPython nor numpy, and starts nothing."""
    code = (
        "import sys, threading, jupyter_tasks\n"
        "heavy = {'IPython', 'numpy', 'zmq', 'cloudpickle', 'ipykernel', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert threading.active_count() == 1\nassert 'get' in dir(jupyter_tasks)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
