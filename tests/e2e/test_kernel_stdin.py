"""input(), getpass and the debugger in cells. Role: end to end, in a real kernel whose front-end answers.

Promises: docs/semantics.md, Cells: stdin works under --wait; otherwise it raises at once and says what to do.
"""

from __future__ import annotations

import pytest
from kernels import NET, Cell, Kernel

pytestmark = pytest.mark.slow


def asked(kernel: Kernel) -> dict[str, object]:
    """Waits for the kernel's question; returns its content."""
    return dict(kernel.client.get_stdin_msg(timeout=NET)["content"])


def start(kernel: Kernel, code: str) -> Cell:
    cell = Cell(kernel.client.execute(code, allow_stdin=True))
    kernel.cells[cell.id] = cell
    return cell


def test_input_and_getpass_are_answered_in_the_notebook(kernel: Kernel) -> None:
    """The prompt, and that it is a password, come as from a plain cell; the text goes to the cell."""
    cell = start(
        kernel,
        "%%remote --wait -o '*'\nfrom getpass import getpass\nprint('before')\n"
        "name = input('who? ')\nsecret = getpass('pass: ')\nprint('after', name, len(secret))",
    )
    assert asked(kernel) == {"prompt": "who? ", "password": False}
    kernel.client.input("Ada")
    assert asked(kernel) == {"prompt": "pass: ", "password": True}
    kernel.client.input("geheim")
    kernel.finish(cell)
    assert cell.ok, cell.error
    assert cell.text() == "before\nafter Ada 6\n"
    assert kernel.run("name, secret").result == "('Ada', 'geheim')"


def test_the_stop_button_while_it_asks_is_a_keyboard_interrupt_in_the_cell(kernel: Kernel) -> None:
    """As in a plain cell: except and finally run, the cell ends with KeyboardInterrupt."""
    cell = start(
        kernel, "%%remote --wait -o '*'\nseen = []\ntry: input('?')\nexcept KeyboardInterrupt: seen.append(1); raise"
    )
    asked(kernel)
    kernel.interrupt()
    kernel.finish(cell)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert kernel.run("seen").result == "[1]"


def test_a_task_that_ends_while_it_asks_frees_the_notebook(kernel: Kernel) -> None:
    """Its timeout ends the question, too: the kernel does not wait for an answer that nobody needs."""
    cell = start(kernel, "%%remote --wait -t 0.5\ninput('too late? ')")
    asked(kernel)
    kernel.finish(cell)
    assert cell.reply["ename"] == "TaskTimeoutError"
    assert kernel.run("1 + 1").result == "2"


def test_a_front_end_that_cannot_ask_says_so(kernel: Kernel) -> None:
    """As from a plain cell under papermill: the same error, and nothing hangs."""
    replies = []
    for code in ("input('?')", "%%remote --wait\ninput('?')"):
        cell = Cell(kernel.client.execute(code, allow_stdin=False))
        kernel.cells[cell.id] = cell
        replies.append(kernel.finish(cell).reply)
    plain, remote = replies
    assert remote["ename"] == plain["ename"] == "StdinNotImplementedError"
    assert remote["evalue"] == plain["evalue"]


def test_the_debugger_stops_in_the_cell(kernel: Kernel) -> None:
    """breakpoint() under --wait: commands go in, answers come out, and the cell goes on."""
    cell = start(kernel, "%%remote --wait\nx = 41\nbreakpoint()\nprint('x is', x)")
    question = asked(kernel)
    assert "db" in str(question["prompt"])
    for command in ("p x", "x += 1", "c"):
        kernel.client.input(command)
        if command != "c":
            asked(kernel)
    kernel.finish(cell)
    assert cell.ok, cell.error
    assert "41" in cell.text()
    assert "x is 42" in cell.text()


@pytest.mark.parametrize("call", ["input('?')", "breakpoint()", "%debug", "import getpass; getpass.getpass()"])
def test_without_wait_it_raises_at_once_and_says_what_to_do(kernel: Kernel, call: str) -> None:
    """Nobody sits before a board."""
    cell = kernel.run(f"%%remote\n{call}")
    kernel.read_state(cell, "failed")
    kernel.read_until(lambda: cell.boards[-1]["error"], "the board's error")
    assert "run the cell with %%remote --wait" in cell.boards[-1]["error"]
