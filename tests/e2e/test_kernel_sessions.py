"""Names that hold references of another session, in cells. Role: end to end, in a real kernel.

Promises: docs/semantics.md, Several sessions.
"""

from __future__ import annotations

import pytest
from kernels import Cell, Kernel

pytestmark = pytest.mark.slow

FIRST_CELL = """
from jupyter_tasks import launch
import numpy as np
other = launch.start({"CPU": 2.0, "GPU": 0.0}, {})
def until(path, value):
    while not pathlib.Path(path).exists(): time.sleep(0.001)
    if isinstance(value, Exception): raise value
    return value
there = lambda *args: jt.remote(until).submit_to(other.client, args, {})
import atexit
atexit.register(other.end)
"""


def shown(cell: Cell) -> str:
    """The board as text."""
    return str(cell.of("display_data", "update_display_data")[-1]["data"]["text/plain"])


def test_a_name_of_another_session_is_its_value_in_a_cell(kernel: Kernel) -> None:
    """There already, or not yet: the cell is launched at once, and its board says for whom it waits."""
    kernel.run("done = there('/', np.arange(10**6)); open_one = there('go', 5); jt.wait([done])")
    cell = kernel.run("%%remote\nprint(done.sum(), open_one, jt.get(open_one))")
    kernel.read_until(lambda: "waits for until" in shown(cell), "the board says for whom it waits")
    kernel.run("pathlib.Path('go').touch()")
    kernel.read_state(cell, "completed")
    assert "499999500000 5 5" in shown(cell)


def test_its_error_is_the_cell_s(kernel: Kernel) -> None:
    kernel.run("failed = there('/', ValueError('v')); jt.wait([failed])")
    cell = kernel.run("%%remote --wait\nfailed")
    assert cell.reply["ename"] == "ValueError"


def test_what_cannot_be_taken_along_is_said_before_anything_runs(kernel: Kernel) -> None:
    """References inside of what a name holds, or of its value, and those that shall stay references."""
    kernel.run(
        "inner = other.client.put(1)\nheld = [inner]\nnested = other.client.put([inner])\nrefs = inner\nold = None"
    )
    for code, words in {
        "%%remote\nheld": "belongs to another session",
        "%%remote\nnested": "'nested' cannot be taken along: The value of",
        "%%remote --refs refs\nrefs": "'refs' is a reference of another session",
        "%%remote\nimport jupyter_tasks as jt\njt.cancel(refs)": "'refs' is a reference of another session",
    }.items():
        cell = kernel.run(code)
        assert cell.reply["ename"] == "UsageError", code
        assert words in cell.error + cell.text("stderr"), code
    assert kernel.run("%%remote --wait\ninner + 1").result == "2"


def test_a_cell_that_may_read_everything_goes_without_it(kernel: Kernel) -> None:
    """Names that nobody has asked for by name are left out, and the cell runs."""
    kernel.run("held = [other.client.put(1)]; here = 1")
    cell = kernel.run("%%remote --wait -o '*'\nfound = sorted({'held', 'here'} & set(globals()))\nexec('x = here')")
    assert cell.ok, cell.error
    assert kernel.run("found, x").result == "(['here'], 1)"


def test_references_of_a_session_that_has_ended_are_refused_in_lists(kernel: Kernel) -> None:
    """They would name somebody else's values."""
    kernel.run("ended = launch.start({'CPU': 2.0, 'GPU': 0.0}, {}); old = [ended.client.put(1)]; ended.end()")
    cell = kernel.run("%%remote\nold")
    assert "session that has ended" in cell.error + cell.text("stderr")
