"""Promises about cells that no other test of a real kernel looks at. Role: end to end.

Promises: docs/semantics.md, Cells (functions and classes, -o, endings, slots).
"""

from __future__ import annotations

import pytest
from kernels import Kernel

pytestmark = pytest.mark.slow


FIRST_CELL = "jt.init(num_cpus=1)"


def test_functions_read_the_names_of_where_they_are(kernel: Kernel) -> None:
    """In the cell its own; at home the notebook's as they are then: also decorated ones, methods and closures."""
    kernel.run(
        "import functools\nscale = 1\ndef plain(): return scale\n"
        "@functools.lru_cache\ndef cached(x): return scale * x\n"
        "@functools.singledispatch\ndef kind(x): return ('any', scale)\n"
        "@kind.register\ndef _(x: int): return ('int', scale)\n"
        "class Box:\n    def get(self): return scale"
    )
    cell = kernel.run(
        "%%remote --wait -o made, box\nscale = 10\ndef made(): return plain() + scale\nbox = Box()\n"
        "plain(), cached(2), kind(''), kind(1), Box().get()"
    )
    assert cell.result == "(10, 20, ('any', 10), ('int', 10), 10)"
    kernel.run("scale = 100\n%tasks fetch made box")
    assert kernel.run("made(), box.get(), type(box) is Box, plain()").result == "(200, 100, True, 100)"


def test_objects_that_are_shared_stay_shared(kernel: Kernel) -> None:
    """On the way in and on the way home: one object under two names is one."""
    kernel.run("one = [1]; two = {'one': one}")
    kernel.run("%%remote --wait -o '*'\nassert two['one'] is one\nthree = [0]; four = (three, three)")
    assert kernel.run("four[0] is three, four[1] is three, two['one'] is one").result == "(True, True, True)"


def test_a_name_that_hides_display_is_taken_along(kernel: Kernel) -> None:
    kernel.run("def display(x): print('mine', x)")
    assert kernel.run("%%remote --wait\ndisplay(3)").text() == "mine 3\n"
    kernel.run("del display")


def test_the_last_launch_wins_a_name(kernel: Kernel) -> None:
    """Two cells assign it; whichever ends last, the name is that of the one launched last."""
    kernel.run("%%remote -o who\ntime.sleep(0.3); who = 'first'")
    kernel.run("%%remote -o who --cpus 0\nwho = 'second'")
    assert kernel.run("jt.get(who)").result == "'second'"


def test_a_name_that_was_never_assigned_says_so(kernel: Kernel) -> None:
    """Its ref raises a NameError; the value that the name held before is not put back: the cell went well."""
    kernel.run("%%remote -o never\nif False: never = 1")
    cell = kernel.run("jt.get(never)")
    assert "NameError" in cell.error
    assert "did not assign 'never'" in cell.error


def test_attributes_of_a_reference_say_what_to_do(kernel: Kernel) -> None:
    kernel.run("%%remote -o frame\nframe = 'text'")
    cell = kernel.run("frame.upper()")
    assert cell.reply["ename"] == "AttributeError"
    assert "jt.get(ref)" in cell.reply["evalue"]


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "exit()", "quit()", "import sys; sys.exit('bye')"])
def test_exit_ends_the_cell_and_nothing_else(kernel: Kernel, end: str) -> None:
    """Failed with SystemExit, as in the kernel; the worker and the notebook go on."""
    cell = kernel.run(f"%%remote ended -o out\nout = 1\n{end}")
    kernel.read_state(cell, "failed")
    got = kernel.run("try: jt.get(ended)\nexcept SystemExit as error: print('SystemExit')")
    assert got.text() == "SystemExit\n"
    assert kernel.run("%%remote --wait\n1 + 1").result == "2"


def test_cells_go_before_functions_that_wait(kernel: Kernel) -> None:
    """The slot is taken, functions wait for it, then a cell comes: only what the worker was given already is before it."""
    kernel.run("%%remote gate\nwhile not pathlib.Path('open').exists(): time.sleep(0.005)")
    kernel.run(
        "@jt.remote\ndef mark(word):\n    import time\n    return word, time.monotonic()\n"
        "waiting = [mark.remote(i) for i in range(3)]"
    )
    kernel.run("%%remote cell\ntime.monotonic()")
    kernel.run("pathlib.Path('open').touch()")
    assert kernel.run("jt.get(cell) < sorted(when for _, when in jt.get(waiting))[1]").result == "True"


def test_magics_of_the_shell_are_there(kernel: Kernel) -> None:
    """Out, In, _, get_ipython(), `;` and display hooks as in ipykernel."""
    kernel.run("if '_' in globals(): del _")
    kernel.run("12345")
    cell = kernel.run("%%remote --wait\nget_ipython().__class__.__name__, 'remote' in In[-1], _, 12345 in Out.values()")
    assert cell.result == "('ZMQInteractiveShell', True, 12345, True)"
    assert kernel.run("%%remote --wait\n1 + 1;").result is None
    shown = kernel.run("%%remote --wait\nclass Shown:\n    def _repr_html_(self): return '<i>x</i>'\nShown()")
    assert shown.of("execute_result")[0]["data"]["text/html"] == "<i>x</i>"
