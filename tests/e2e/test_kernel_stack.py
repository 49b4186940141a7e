"""%tasks stack: where a running task is, also in C code. Role: end to end, in a real kernel.

Promise: docs/semantics.md, Cells: `%tasks stack NAME`.
"""

from __future__ import annotations

import pytest
from kernels import Cell, Kernel
from words import hear

pytestmark = pytest.mark.slow


def kill(kernel: Kernel, cell: Cell, name: str) -> None:
    kernel.run(f"%tasks kill {name}")
    kernel.read_state(cell, "cancelled")


# What keeps a thread inside one call: Python code that sleeps, C code that holds the GIL for minutes, a lock.
INSIDE = {
    "sleeping": "import time; time.sleep(600)",
    "in C code": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "waiting": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("how", INSIDE)
def test_the_stack_shows_the_line_that_runs(kernel: Kernel, how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cell, line numbers as in the notebook, the source of each line; nothing of ours and of IPython's."""
    word = kernel.directory / f"in {how}"
    cell = kernel.run(
        f"%%remote deep\n\ndef inner(n):\n    open({str(word)!r}, 'w').close()\n    {INSIDE[how]}\n\n"
        "def outer():\n    inner(1)\nouter()"
    )
    hear(word)
    shown = kernel.run("%tasks stack deep")
    text = shown.text()
    number = cell.reply["execution_count"]
    assert "(deep), running for" in text.splitlines()[0]
    assert f"  Cell In[{number}], line 9, in <module>\n    outer()\n" in text
    assert f"  Cell In[{number}], line 8, in outer\n    inner(1)\n" in text
    assert f"  Cell In[{number}], line 5, in inner\n    import" in text
    assert "jupyter_tasks" not in text
    assert "interactiveshell" not in text
    assert cell.states[-1] == "running"
    kill(kernel, cell, "deep")


def test_the_task_goes_on_as_if_nothing_had_been(kernel: Kernel) -> None:
    """Looking a hundred times changes nothing: no interrupt, no exception, the same value."""
    kernel.run(
        "%%remote looked\nopen('looked', 'w').close()\nn = 0\nwhile not pathlib.Path('seen').exists(): n += 1\n'done'"
    )
    hear(kernel.directory / "looked")
    shown = kernel.run(
        "from IPython.utils.io import capture_output\nwith capture_output() as got:\n"
        "    for _ in range(20): get_ipython().run_line_magic('tasks', 'stack looked')\n"
        "pathlib.Path('seen').touch()\ngot.stdout.count('(looked), running'), jt.get(looked)"
    )
    assert shown.result == "(20, 'done')"


def test_threads_of_the_task_are_shown_too(kernel: Kernel) -> None:
    """Each with its own stack; none of ours, though the task uses jt."""
    cell = kernel.run(
        "%%remote busy\nimport threading, time, jupyter_tasks as jt\njt.get(jt.put(1))\n"
        "def digging(): open('digging', 'w').close(); time.sleep(600)\n"
        "threading.Thread(target=digging, daemon=True).start()\ntime.sleep(600)"
    )
    hear(kernel.directory / "digging")
    text = kernel.run("%tasks stack busy").text()
    headings = [line for line in text.splitlines() if line.endswith(":") and "hread" in line]
    assert len(headings) == 2, text
    assert "in digging" in text
    assert "in <module>" in text
    kill(kernel, cell, "busy")


def test_a_function_of_the_notebook_shows_its_lines(kernel: Kernel) -> None:
    """Also one that was called with .remote(): its source is in the notebook."""
    kernel.run(
        "@jt.remote\ndef far():\n    import time\n    open('far', 'w').close()\n    time.sleep(600)\nref = far.remote()"
    )
    hear(kernel.directory / "far")
    text = kernel.run("%tasks stack far").text()
    assert "line 5, in far\n    time.sleep(600)" in text
    kernel.run("jt.cancel(ref, force=True)")
    got = kernel.run("try: jt.get(ref)\nexcept jt.exceptions.TaskCancelledError: print('gone')")
    assert got.text() == "gone\n"


def test_what_does_not_run_says_so(kernel: Kernel) -> None:
    """Waiting, over, unknown: one line each."""
    gate = kernel.run("%%remote gate\nimport time; time.sleep(600)")
    kernel.read_state(gate, "running")
    kernel.run("%%remote later\ngate")
    assert "(later) is pending: no code of it runs" in kernel.run("%tasks stack later").text()
    kill(kernel, gate, "gate")
    assert "(gate) is over: cancelled." in kernel.run("%tasks stack gate").text()
    assert "nosuch" in kernel.run("%tasks stack nosuch").text("stderr")
