"""Thread tasks in a real kernel (docs/semantics.md, Thread tasks). Role: end to end."""

from __future__ import annotations

import pytest
from kernels import Kernel

pytestmark = pytest.mark.slow

FIRST_CELL = "jt.init(num_cpus=1)\nimport threading"


def test_what_a_thread_prints_appears_under_the_cell_that_called_it(kernel: Kernel) -> None:
    """Also when other cells have run since."""
    first = kernel.run(
        "go = threading.Event()\n@jt.remote(executor='thread')\n"
        "def prints():\n    go.wait(30); print('from the thread'); return 1\nref = prints.remote()"
    )
    second = kernel.run("print('another cell')")
    third = kernel.run("go.set(); jt.get(ref)")
    kernel.read_until(lambda: "from the thread" in first.text(), "the thread's word")
    assert third.result == "1"
    assert "thread" not in second.text() + third.text()


def test_a_thread_task_shares_the_notebook_s_objects(kernel: Kernel) -> None:
    """It changes them, and sees what later cells do."""
    kernel.run("rows = []\n@jt.remote(executor='thread')\ndef appends(x):\n    rows.append(x); return rows")
    assert kernel.run("jt.get(appends.remote(1)) is rows, rows").result == "(True, [1])"


def test_a_running_thread_task_is_stopped_as_far_as_a_thread_can_be(kernel: Kernel) -> None:
    """%tasks says that it cannot be killed; it is cancelling until its function ends."""
    kernel.run(
        "go = threading.Event(); entered = threading.Event()\n@jt.remote(executor='thread')\n"
        "def waits():\n    entered.set(); go.wait(30); return 'late'\nref = waits.remote(); entered.wait(30)"
    )
    killed = kernel.run("%tasks kill waits")
    assert "a thread cannot be killed" in killed.text()
    kernel.run("while jt.tasks()[0]['state'] != 'cancelling': pass")
    assert "cancelling (a thread: it ends by itself)" in kernel.run("%tasks").text()
    kernel.run("go.set()")
    assert "TaskCancelledError" in kernel.run("jt.get(ref)").error
    assert "cannot be killed" not in kernel.run("%tasks").text()


def test_a_cell_reads_the_value_of_a_thread_task(kernel: Kernel) -> None:
    """Its name holds a ref, which is awaited and sent."""
    kernel.run("@jt.remote(executor='thread')\ndef makes():\n    return {'a': [1, 2]}\nmade = makes.remote()")
    assert kernel.run("%%remote --wait\nmade['a']").result == "[1, 2]"


COLLECTOR = """
rows = []
@jt.remote(executor='thread')
class Collector:
    def add(self, x):
        rows.append(x)
        print('took', x)
        return len(rows)
collector = Collector.remote()
"""


def test_an_actor_in_the_notebook_is_called_from_a_cell_in_a_worker(kernel: Kernel) -> None:
    """It changes the notebook's list in place. What such a call prints appears under the cell that made the actor."""
    made = kernel.run(COLLECTOR)
    assert made.ok, made.error
    cell = kernel.run("%%remote --wait\njt.get([collector.add.remote(i) for i in range(3)])")
    assert cell.result == "[1, 2, 3]"
    assert kernel.run("rows").result == "[0, 1, 2]"
    kernel.read_until(lambda: "took 2" in made.text(), "its words")
    assert "took" not in cell.text()


def test_what_an_actor_s_call_prints_appears_under_the_cell_that_called_it(kernel: Kernel) -> None:
    made = kernel.run(COLLECTOR)
    first = kernel.run("ref = collector.add.remote('first'); jt.get(ref)")
    second = kernel.run("jt.get(collector.add.remote('second'))")
    kernel.read_until(lambda: "took first" in first.text() and "took second" in second.text(), "its words")
    assert "took second" not in first.text()
    assert "took" not in made.text()


def test_an_actor_in_the_notebook_is_killed_as_far_as_a_thread_can_be(kernel: Kernel) -> None:
    """The cell with kill returns at once; %tasks says why the actor is still there."""
    kernel.run(
        "go = threading.Event(); entered = threading.Event()\n@jt.remote(executor='thread')\n"
        "class Waits:\n    def waits(self):\n        entered.set(); go.wait(30)\n"
        "waits = Waits.remote(); ref = waits.waits.remote(); entered.wait(30); jt.kill(waits)"
    )
    assert "cancelling (a thread: it ends by itself)" in kernel.run("%tasks").text()
    kernel.run("go.set()")
    assert "ActorDiedError" in kernel.run("jt.get(ref)").error
