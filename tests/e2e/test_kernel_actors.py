"""Actors in a real kernel: %%actor, what they print, %tasks, cells that use them (docs/semantics.md, Actors).

Role: end to end, as a user of a notebook meets them.
"""

from __future__ import annotations

import pytest
from kernels import NET, Kernel

pytestmark = pytest.mark.slow

FIRST_CELL = "jt.init(num_cpus=1)\nimport os, time, threading"

COUNTER = (
    "class Counter:\n"
    "    def __init__(self, n=0):\n        self.n = n\n"
    "    def add(self, k=1):\n        print('adds', k)\n        self.n += k\n        return self.n\n"
    "    def pid(self):\n        return os.getpid()"
)
MAKE = f"%%actor counter\n{COUNTER}"


def test_a_cell_that_defines_a_class_makes_an_actor(kernel: Kernel) -> None:
    """In a process of its own; the class is there in the notebook, too, and what else the cell defines."""
    made = kernel.run(f"%%actor counter --args 'start, n=5' \n{COUNTER}")
    assert "NameError: name 'start' is not defined" in made.text("stderr")
    kernel.run("start = 5")
    assert kernel.run(f"%%actor counter --args 'n=start'\nhalf = 0.5\n{COUNTER}").ok
    assert kernel.run("jt.get(counter.add.remote(2)), half, Counter(1).add()").result == "(7, 0.5, 2)"
    assert kernel.run("jt.get(counter.pid.remote()) != os.getpid()").result == "True"


def test_the_options_of_the_magic(kernel: Kernel) -> None:
    made = kernel.run(
        f"%%actor counter --max-concurrency 3 --max-restarts -1 --register c --cpus 0.5 --memory 2GB\n{COUNTER}"
    )
    assert made.ok, made.error
    kernel.run("jt.get(counter.add.remote())")
    kernel.run("(c,) = [a for a in jt.list_actors() if a['name'] == 'c']")
    shown = kernel.run("[c[key] for key in ('name', 'max_concurrency', 'max_restarts', 'state')]")
    assert shown.result == "['c', 3, -1, 'alive']"
    assert kernel.run("jt.get_actor('c') == counter").result == "True"
    assert "--max-restarts" in kernel.run("%actor --help").text()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%actor\nclass A: pass", "needs a NAME"),
        ("%%actor a-b\nclass A: pass", "is not a name"),
        ("%%actor os\nclass A: pass", "holds a module"),
        ("%%actor x\ny = 1", "defines none"),
        ("%%actor x\nclass A: pass\nclass B: pass", "A, B"),
        ("%%actor x --args '1, 2'\nclass A: pass", "A()"),
        ("%%actor x --args '1 2'\nclass A: pass", "between its parentheses"),
        ("%%actor x --max-concurrency -3\nclass A: pass", "--max-concurrency"),
        ("%%actor x --nonsense\nclass A: pass", "unknown option"),
        ("%%actor x --get-if-exists\nclass A: pass", "needs a name"),
    ],
)
def test_what_is_wrong_with_the_line_is_one_sentence_and_starts_nothing(kernel: Kernel, cell: str, says: str) -> None:
    kernel.run("before = len(jt.list_actors()); globals().pop('x', None)")
    failed = kernel.run(cell)
    assert says in failed.error + failed.text("stderr")
    assert kernel.run("len(jt.list_actors()) == before and 'x' not in globals()").result == "True"


def test_an_error_of_the_cell_names_its_lines(kernel: Kernel) -> None:
    """Also of the constructor, which runs elsewhere."""
    failed = kernel.run("%%actor x\nz = 1\n1 / 0\nclass A: pass")
    assert "1 / 0" in failed.error
    assert "ZeroDivisionError" in failed.error
    kernel.run("%%actor x\nclass A:\n    def __init__(self):\n        self.y = {}['nothing']\n    def f(self): pass")
    failed = kernel.run("jt.get(x.f.remote())")
    assert "ActorDiedError" in failed.error
    assert "KeyError" in failed.error
    assert "self.y = {}['nothing']" in failed.error


def test_what_a_call_prints_appears_under_the_cell_that_called(kernel: Kernel) -> None:
    """Of each kind; also when several run at a time, and when other cells have run since."""
    kernel.run(MAKE)
    first = kernel.run("jt.get(counter.add.remote(1))")
    second = kernel.run("jt.get(counter.add.remote(2))")
    assert (first.text(), second.text()) == ("adds 1\n", "adds 2\n")
    kernel.run(
        "%%actor both --max-concurrency 2\nclass Both:\n    def __init__(self):\n"
        "        self.go = threading.Event()\n"
        "    def waits(self):\n        print('in'); self.go.wait(30); print('out')\n"
        "    def goes(self):\n        print('now'); self.go.set()"
    )
    waiting = kernel.run("ref = both.waits.remote()")
    kernel.read_until(lambda: "in" in waiting.text(), "it is in")
    going = kernel.run("jt.get(both.goes.remote()); jt.get(ref)")
    kernel.read_until(lambda: "out" in waiting.text(), "the first cell's call has ended")
    assert going.text() == "now\n"


def test_tasks_lists_actors_and_stops_them(kernel: Kernel) -> None:
    kernel.run(MAKE)
    kernel.run("jt.get(counter.add.remote())")
    listed = kernel.run("%tasks").text()
    assert "Counter" in listed
    assert "Counter.add" in listed
    assert "is an actor" in kernel.run("%tasks cancel Counter").text()
    pid = kernel.run("pid = jt.get(counter.pid.remote())\npid").result
    kernel.run("%tasks kill Counter")
    kernel.run("%tasks wait Counter")
    assert kernel.run("os.path.exists(f'/proc/{pid}')").result == "False", pid
    assert "ActorDiedError" in kernel.run("jt.get(counter.add.remote())").error


def test_del_and_a_new_actor_of_the_same_name_end_the_old_one(kernel: Kernel) -> None:
    """When its calls are done."""
    kernel.run(MAKE)
    first = kernel.run("pid = jt.get(counter.pid.remote()); slow = counter.add.remote(10); 0")
    assert first.ok
    assert kernel.run(MAKE).ok
    assert kernel.run("jt.get(slow), jt.get(counter.add.remote())").result == "(10, 1)"
    gone = "while any(a['pid'] == pid for a in jt.list_actors()): time.sleep(0.001)"
    assert kernel.run(gone).ok
    kernel.run("pid = jt.get(counter.pid.remote())\ndel counter")
    assert kernel.run(gone).ok


def test_a_cell_in_a_worker_calls_an_actor_by_its_handle(kernel: Kernel) -> None:
    """The handle is captured; the cell may also make actors, and hand them back."""
    kernel.run(MAKE)
    assert kernel.run("%%remote --wait\n[jt.get(counter.add.remote()) for _ in range(3)]").result == "[1, 2, 3]"
    assert kernel.run("jt.get(counter.add.remote())").result == "4"
    made = kernel.run("%%remote made -o other\nother = jt.remote(Counter).remote(40)\njt.get(other.add.remote())")
    assert made.ok, made.error
    assert kernel.run("jt.get(made), jt.get(jt.get(other).add.remote())").result == "(41, 42)"


def test_an_interrupt_of_the_notebook_leaves_the_actor_alone(kernel: Kernel) -> None:
    long = "while not os.path.exists('go'): time.sleep(0.001)\n        return 'whole'"
    kernel.run(f"{MAKE}\n    def long(self):\n        {long}")
    kernel.run("ref = counter.long.remote()")
    waiting = kernel.start("print('waits'); jt.get(ref)")
    kernel.read_until(lambda: "waits" in waiting.text(), "it waits")
    kernel.interrupt()
    kernel.finish(waiting)
    assert "KeyboardInterrupt" in waiting.error
    kernel.run("open('go', 'w').close()")
    assert kernel.run("jt.get(ref), jt.get(counter.add.remote())").result == "('whole', 1)"


def test_names_are_completed(kernel: Kernel) -> None:
    """Methods of a handle."""
    kernel.run(MAKE)
    kernel.client.complete("counter.a", 9)
    assert kernel.client.get_shell_msg(timeout=NET)["content"]["matches"] == ["add"]
    assert kernel.run("[name for name in dir(counter) if '__' not in name]").result == "['add', 'pid', 'terminate']"
