"""%tasks debug: the frames of a failed task in pdb, in the notebook. Role: end to end, in a real kernel.

Promise: docs/semantics.md, Cells: post-mortem. The frames are kept in the worker until they are cleared, those of the
last two failures; the debugger's keyboard and screen are the notebook's.
"""

from __future__ import annotations

import os
import signal

import pytest
from conftest import wait_until
from kernels import NET, Cell, Kernel, plain
from words import hear

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_kept(kernel: Kernel) -> None:
    kernel.run("%tasks clear")
    wait_until(lambda: kept(kernel) == "[]", "nothing is kept of the test before")


def debug(kernel: Kernel, name: str, *commands: str) -> str:
    """A whole session; returns what it has shown."""
    cell = start(kernel, name)
    for command in commands:
        assert "db> " in str(kernel.client.get_stdin_msg(timeout=NET)["content"]["prompt"])
        kernel.client.input(command)
    kernel.finish(cell)
    assert cell.ok, cell.error
    return plain(cell.text())


def start(kernel: Kernel, name: str) -> Cell:
    cell = Cell(kernel.client.execute(f"%tasks debug {name}", allow_stdin=True))
    kernel.cells[cell.id] = cell
    return cell


def fail(kernel: Kernel, name: str, value: object) -> Cell:
    cell = kernel.run(f"%%remote {name}\ndef inner(x):\n    secret = x * 2\n    return 1 / 0\ninner({value!r})")
    kernel.read_state(cell, "failed")
    return cell


def kept(kernel: Kernel) -> str | None:
    return kernel.run("sorted(t['name'] for t in jt.tasks() if t['kept'])").result


def test_the_frames_of_a_failed_cell_open_in_the_debugger(kernel: Kernel) -> None:
    """Locals, the way up, and code in the frame; the prompt is the front-end's; and it can be opened again."""
    cell = fail(kernel, "broken", 21)
    kernel.read_until(lambda: "%tasks debug" in cell.of("update_display_data")[-1]["data"]["text/plain"], "the hint")
    text = debug(kernel, "broken", "p secret", "u", "p x if 'x' in dir() else 'outside'", "w", "q")
    assert "42" in text
    assert "outside" in text
    assert "return 1 / 0" in text
    assert "jupyter_tasks" not in text
    assert "42" in debug(kernel, "broken", "p secret", "q")
    assert "kept for %tasks debug" in kernel.run("%tasks").text()


def test_other_work_goes_on_meanwhile(kernel: Kernel) -> None:
    """The slot of a kept task is free."""
    fail(kernel, "broken", 1)
    fail(kernel, "broken_too", 1)
    kernel.run("%%remote fine\n40 + 2")
    assert kernel.run("jt.get(fine)").result == "42"


def test_only_the_last_failures_are_kept(kernel: Kernel) -> None:
    """Two; the oldest goes for the newest, and what is gone is told with what to do."""
    for name in ("first", "second", "third"):
        fail(kernel, name, 1)
    wait_until(lambda: kept(kernel) == "['second', 'third']", "the oldest is forgotten")
    gone = kernel.run("%tasks debug first").text("stderr")
    assert "not kept" in gone
    assert "second, third" in gone


def test_clear_lets_them_go(kernel: Kernel) -> None:
    """The worker forgets, and is used again."""
    fail(kernel, "broken", 1)
    workers = kernel.run("jt.session.current_client().request('status')['workers']").result
    kernel.run("%tasks clear")
    idle = "jt.session.current_client().request('status')['idle'] == len(jt.session.current_client().request('status')['workers'])"
    wait_until(lambda: kernel.run(idle).result == "True", "its worker is idle again")
    assert kernel.run("jt.session.current_client().request('status')['workers']").result == workers
    assert kernel.run("jt.tasks()").result == "[]"


def test_functions_are_kept_while_there_is_room(kernel: Kernel) -> None:
    """The first failure of many, not each: thousands of failing calls must not cost a worker each."""
    kernel.run(
        "@jt.remote\ndef half(x):\n    rest = x % 2\n    if rest: raise ValueError(x)\n    return x // 2\n"
        "refs = [half.remote(i) for i in range(1000)]\njt.wait(refs, num_returns=1000)"
    )
    assert kept(kernel) == "['half', 'half']"
    number = kernel.run("next(t['task_id'] for t in jt.tasks() if t['kept'])").result
    text = debug(kernel, str(number).strip("'"), "p rest", "q")
    assert "raise ValueError(x)" in text
    assert "\n1\n" in text


def test_the_stop_button_interrupts_the_debugger(kernel: Kernel) -> None:
    """While it asks: the prompt comes again. While it computes: the computation ends, the debugger does not."""
    fail(kernel, "broken", 1)
    cell = start(kernel, "broken")
    kernel.client.get_stdin_msg(timeout=NET)
    kernel.interrupt()
    kernel.client.get_stdin_msg(timeout=NET)
    kernel.client.input("__import__('pathlib').Path('in').touch(); __import__('time').sleep(600)")
    wait_until(lambda: (kernel.directory / "in").exists(), "the debugger computes")
    kernel.interrupt()
    kernel.client.get_stdin_msg(timeout=NET)
    kernel.client.input("q")
    kernel.finish(cell)
    assert cell.ok, cell.error
    assert "KeyboardInterrupt" in plain(cell.text() + cell.text("stderr"))


def test_a_worker_that_dies_ends_the_debugging(kernel: Kernel) -> None:
    """The cell does not hang, and the notebook is told."""
    fail(kernel, "broken", 1)
    cell = start(kernel, "broken")
    kernel.client.get_stdin_msg(timeout=NET)
    kernel.client.input("__import__('os')._exit(1)")
    kernel.finish(cell)
    assert kernel.run("1 + 1").result == "2"
    assert kept(kernel) == "[]"


def test_a_supervisor_that_dies_ends_the_debugging(kernel: Kernel) -> None:
    """With all its workers: the kernel is free again, and the next cell starts a new session."""
    fail(kernel, "broken", 1)
    supervisor = int(str(kernel.run("jt.session.current_client().request('status')['pid']").result))
    cell = start(kernel, "broken")
    kernel.client.get_stdin_msg(timeout=NET)
    kernel.client.input("__import__('pathlib').Path('computes').touch(); __import__('time').sleep(600)")
    hear(kernel.directory / "computes")
    os.kill(supervisor, signal.SIGKILL)
    kernel.finish(cell)
    assert kernel.run("%%remote --wait\n40 + 2").result == "42"


def test_what_cannot_be_debugged_says_why(kernel: Kernel) -> None:
    """Running, ended well, unknown."""
    running = kernel.run("%%remote running\nwhile not pathlib.Path('end').exists(): time.sleep(0.01)")
    kernel.read_state(running, "running")
    assert "%tasks stack" in kernel.run("%tasks debug running").text("stderr")
    kernel.run("pathlib.Path('end').touch()")
    kernel.read_state(running, "completed")
    assert "has not raised an error" in kernel.run("%tasks debug running").text("stderr")
    assert "'nosuch'" in kernel.run("%tasks debug nosuch").text("stderr")


def test_a_cell_that_also_left_threads_tells_both_truths(kernel: Kernel) -> None:
    """Left something running, as long as it does; then the frames are still kept."""
    cell = kernel.run(
        "%%remote both\nimport threading, time, pathlib\n"
        "def stay():\n    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "threading.Thread(target=stay).start()\n1 / 0"
    )
    kernel.read_state(cell, "failed")
    now = "[(t['lingers'], t['kept']) for t in jt.tasks() if t['name'] == 'both']"
    assert kernel.run(now).result == "[(True, True)]"
    kernel.run("pathlib.Path('go').touch()")
    wait_until(lambda: kernel.run(now).result == "[(False, True)]", "the thread has ended, the frames are kept")
    assert "stay" in debug(kernel, "both", "p stay", "q")


@pytest.mark.parametrize("end", ["fails", "is killed"])
def test_the_next_worker_is_warm(kernel: Kernel, end: str) -> None:
    """What the notebook has imported is imported in the worker that comes after one that is kept, or gone."""
    kernel.run("import sys, pandas, os")
    first = kernel.run("%%remote --wait\nimport pandas, os\nos.getpid()").result
    lost = kernel.run("%%remote lost\n1 / 0" if end == "fails" else "%%remote lost\ntime.sleep(600)")
    if end == "is killed":
        kernel.read_state(lost, "running")
        kernel.run("%tasks kill lost")
    kernel.read_state(lost, "failed", "cancelled")
    wait_until(
        lambda: kernel.run("jt.session.current_client().request('status')['idle']").result != "0",
        "another worker is there",
    )
    seen = kernel.run("%%remote --wait\nos.getpid(), 'pandas' in sys.modules").result
    assert seen is not None
    assert seen.endswith("True)")
    assert first is not None
