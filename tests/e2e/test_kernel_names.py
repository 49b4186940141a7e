"""Names and references of cells, and cells that are run again while they run. Role: end to end, in a real kernel.

Promises: docs/semantics.md, Cells: names in strings, refs inside, running it again while it runs, %tasks fetch.
"""

from __future__ import annotations

import pytest
from kernels import Cell, Kernel

pytestmark = pytest.mark.slow


# A name that only comes to be at run time: no analysis can see it.
HIDDEN = "globals()[''.join(['li', 'm'])]"
HIDDEN_READ = "eval(''.join(['li', 'm']))"


def test_a_name_that_was_not_seen_is_told_with_what_to_do(kernel: Kernel) -> None:
    """The NameError says that the name exists in the kernel and how to take it along; then it works."""
    kernel.run("lim = 3; data = [1]")
    cell = kernel.run(f"%%remote --wait\n{HIDDEN_READ}")
    assert cell.reply["ename"] == "NameError"
    assert cell.error.splitlines()[-1] == "'lim' exists in the kernel: add `--in lim` to the %%remote line."
    again = kernel.run(f"%%remote --wait --in lim\n{HIDDEN_READ} + len(data)")
    assert again.result == "4"


def test_the_board_tells_it_too(kernel: Kernel) -> None:
    """The same hint in the board's error; none for a name that exists nowhere."""
    cell = kernel.run(f"%%remote\n{HIDDEN_READ}")
    kernel.read_until(lambda: cell.boards[-1]["error"], "the board's error")
    assert "add `--in lim`" in cell.boards[-1]["error"]
    other = kernel.run("%%remote\nnowhere")
    kernel.read_until(lambda: other.boards[-1]["error"], "the board's error")
    assert "--in" not in other.boards[-1]["error"]


def test_refs_keeps_references(kernel: Kernel) -> None:
    """The cell cancels what it also reads; without --refs it would wait for it."""
    kernel.run("%%remote endless\nimport time; time.sleep(600)")
    cell = kernel.run(
        "%%remote --wait --refs endless\n"
        "import jupyter_tasks as jt\n"
        "kind = type(endless).__name__\njt.cancel(endless)\n"
        "try: jt.get(endless)\nexcept jt.exceptions.TaskCancelledError: print(kind, 'cancelled')"
    )
    assert cell.text() == "ObjectRef cancelled\n"


def test_get_of_a_name_that_was_replaced_is_its_value(kernel: Kernel) -> None:
    """Code that works in the notebook works in the cell: alone, in lists, and next to references."""
    kernel.run("%%remote one\n[1]")
    kernel.run("%%remote two\n2")
    kernel.run("holder = {'ref': jt.put('inside')}")
    cell = kernel.run(
        "%%remote --wait\nimport jupyter_tasks as jt\n"
        "print(jt.get(one), jt.get([one, two, holder['ref']]), jt.get(holder['ref']))"
    )
    assert cell.text() == "[1] [[1], 2, 'inside'] inside\n"
    wrong = kernel.run("%%remote --wait\nimport jupyter_tasks as jt\nprint(one); jt.get('text')")
    assert wrong.reply["ename"] == "ValueError"


def test_fetch_puts_values_in_the_place_of_references(kernel: Kernel) -> None:
    """It waits for them, with commas or without."""
    kernel.run("%%remote -o a, b\nimport time; time.sleep(0.2); a = 1; b = [2]")
    cell = kernel.run("%tasks fetch a, b")
    assert cell.ok, cell.error
    assert kernel.run("(a, b)").result == "(1, [2])"


def test_fetch_takes_what_came_and_raises_what_went_wrong(kernel: Kernel) -> None:
    """The name of a failed task keeps its reference, the other has its value."""
    kernel.run("%%remote -o bad\nbad = 1 / 0")
    kernel.run("%%remote -o good\ngood = 5")
    cell = kernel.run("%tasks fetch bad good")
    assert "ZeroDivisionError" in cell.reply["ename"]
    assert kernel.run("(type(bad).__name__, good)").result == "('ObjectRef', 5)"


def earlier(cell: Cell) -> str:
    return str(cell.of("display_data", "update_display_data")[-1]["data"]["text/plain"])


@pytest.mark.parametrize("how", ["by its NAME", "by its cell"])
def test_running_it_again_while_it_runs(kernel: Kernel, how: str) -> None:
    """Both run; the new board says so as long as it is true, and how to stop the other."""
    name, id = ("twice", "") if how == "by its NAME" else ("", "cell-1")
    code = f"%%remote {name}\nimport time, pathlib\nwhile not pathlib.Path('enough').exists(): time.sleep(0.01)"
    first = kernel.finish(kernel.start(code, id))
    kernel.read_state(first, "running")
    second = kernel.finish(kernel.start(code, id))
    kernel.read_state(second, "running")
    number = first.boards[0]["task_id"]
    assert f"an earlier run is still running: %tasks cancel {number} stops it" in earlier(second)
    assert "earlier" not in earlier(first)
    kernel.run(f"%tasks cancel {number}")
    kernel.read_state(first, "cancelled")
    kernel.read_until(lambda: "earlier" not in earlier(second), "the board says nothing of a run that is over")
    kernel.run("pathlib.Path('enough').touch()")
    kernel.read_state(second, "completed")
    kernel.run("pathlib.Path('enough').unlink()")


def test_replace_cancels_the_earlier_run_first(kernel: Kernel) -> None:
    """Only runs of the same NAME; the reason stands on the old board."""
    code = "\nimport time\nopen('{}', 'w').close()\ntime.sleep(600)"
    bystander = kernel.run("%%remote bystander" + code.format("in-1"))
    old = kernel.run("%%remote again" + code.format("in-2"))
    kernel.read_state(bystander, "running")
    kernel.read_state(old, "running")
    new = kernel.run("%%remote again --replace\n'new'")
    kernel.read_state(old, "cancelled")
    kernel.read_state(new, "completed")
    assert "replaced by a new run" in earlier(old)
    assert kernel.run("jt.get(again)").result == "'new'"
    assert bystander.states[-1] == "running"
    kernel.run("%tasks cancel bystander")
    kernel.read_state(bystander, "cancelled")


def test_much_data_is_said_with_the_names(kernel: Kernel) -> None:
    """Above a gigabyte the cell says what is so big, and what to do; it runs all the same."""
    kernel.run("import numpy as np; big = np.zeros(130_000_000); small = np.zeros(10)")
    cell = kernel.run("%%remote --wait\nlen(big) + len(small)")
    assert cell.result == "130000010"
    assert "takes along 1.0 GB: big (1.0 GB), small" in cell.text("stderr")
    assert "big = jt.put(big)" in cell.text("stderr")
    kernel.run("del big")


def test_an_edited_module_is_imported_anew(kernel: Kernel) -> None:
    """The same warm worker runs the new text: in cells, and in functions that are defined anew."""
    kernel.run("pathlib.Path('jt_edited.py').write_text('x = 1')")
    look = "%%remote --wait\nimport os, jt_edited\n(os.getpid(), jt_edited.x)"
    first = kernel.run(look).result
    kernel.run("pathlib.Path('jt_edited.py').write_text('x = 22')")
    second = kernel.run(look).result
    assert first is not None
    assert second is not None
    assert first.endswith(", 1)")
    assert second == first.replace(", 1)", ", 22)")
    function = "@jt.remote\ndef look():\n    import jt_edited\n    return jt_edited.x\njt.get([look.remote() for _ in range(4)])"
    assert kernel.run(function).result == "[22, 22, 22, 22]"
    kernel.run("pathlib.Path('jt_edited.py').write_text('x = 333')")
    assert kernel.run(function).result == "[333, 333, 333, 333]"


def test_a_reference_inside_a_value_lives_until_the_cell_has_it(kernel: Kernel) -> None:
    """The kernel drops its own before the cell begins; the cell still finds the value."""
    kernel.run("import gc, jupyter_tasks.session; held = [jt.put('inside')]")
    kernel.run("%%remote slow\nimport os, time\nwhile not os.path.exists('names-go'): time.sleep(0.01)")
    kernel.run("%%remote later\nimport jupyter_tasks as jt\nslow, jt.get(held[0])")
    # Drops are told in their order: when the second is known, the first is.
    ask = "jt.session.current_client().request('status')['objects']"
    dropped = kernel.run(
        f"dropped = jt.put(0); count = {ask}; del held; gc.collect(); del dropped\nwhile {ask} == count: time.sleep(0.01)"
    )
    assert dropped.ok, dropped.error
    kernel.run("pathlib.Path('names-go').touch()")
    assert kernel.run("jt.get(later)").result == "(None, 'inside')"
