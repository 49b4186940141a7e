"""Cells that outlive their kernel: `%%remote NAME --detach` and %tasks. Role: end to end, with real kernels.

Promises: docs/semantics.md, Detached. A cell says "in" from inside and goes on at the word "go".
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kernels import FIRST, Kernel
from words import hear, say

pytestmark = pytest.mark.slow

WAITS = (
    "import os, time\n"
    "from IPython.display import HTML, display\n"
    "print('begins', flush=True)\n"
    "display(HTML('<b>a plot</b>'))\n"
    "with open('in.part', 'w') as file: file.write(str(os.getpid()))\n"
    "os.rename('in.part', 'in')\n"
    "while not os.path.exists('go'): time.sleep(0.01)\n"
    "print('went on')\n"
)


def test_a_cell_survives_the_sigkill_of_its_kernel(new_kernel: Callable[[], Kernel]) -> None:
    """A new kernel finds it by its name: lists it, prints its log, shows where it is, shows its board with the outputs of
    the time when nobody was there, and fetches its value and what `-o` names."""
    first = new_kernel()
    cell = first.run(f"%%remote train --detach -o model,acc\n{WAITS}model = {{'w': 3}}; acc = 0.9\n42")
    hear(first.directory / "in")
    first.read_until(lambda: "begins" in str(cell.messages), "its board is live in this kernel")
    assert cell.boards[0]["name"] == "train"
    assert first.run("type(train).__name__, type(model).__name__").result == "('ObjectRef', 'ObjectRef')"
    first.kill()
    first.close()

    second = new_kernel()
    assert "train  running (detached)" in second.run("%tasks").text()
    logs = second.run("%tasks logs train")
    assert logs.text() == "begins\n"
    assert "%tasks attach train" in logs.text("stderr")
    assert "running for" in second.run("%tasks stack train").text()
    assert "started" in second.run("%tasks story train").text()
    assert "train" not in second.run("%who_ls").result
    attached = second.run("%tasks attach train")
    assert attached.boards[-1]["state"] == "running"
    shown = attached.of("display_data", "update_display_data")[-1]["data"]
    assert "begins" in shown["text/html"]
    assert "<b>a plot</b>" in shown["text/html"]
    say(second.directory / "go")
    second.read_state(attached, "completed")
    assert "went on" in attached.of("update_display_data")[-1]["data"]["text/plain"]
    assert second.run("%tasks fetch train\ntrain, model, acc").result == "(42, {'w': 3}, 0.9)"
    assert second.run("%tasks logs train").text() == "begins\nwent on\n"


def test_a_restart_of_the_kernel_leaves_it(new_kernel: Callable[[], Kernel]) -> None:
    """As the button does it; the cell ends while no kernel is there, and everything is there afterwards."""
    kernel = new_kernel()
    assert kernel.run("x = 20").ok
    assert kernel.run(f"%%remote train --detach -o model\n{WAITS}model = x + 1\nmodel * 2").ok
    assert kernel.run("%%remote other\nimport time; time.sleep(1000)").ok
    worker = int(hear(kernel.directory / "in"))
    before = kernel.processes()
    kernel.manager.restart_kernel(now=False)
    say(kernel.directory / "go")
    kernel.client.wait_for_ready(timeout=60)
    assert worker in before
    assert kernel.run(FIRST).ok
    assert kernel.run("%tasks wait train\n%tasks").text().count("completed (detached)") == 1
    shown = kernel.run("%tasks attach train").of("display_data", "update_display_data")[-1]["data"]["text/html"]
    assert "<b>a plot</b>" in shown
    assert "went on" in shown
    assert kernel.run("%tasks fetch model\nmodel").result == "21"
    assert kernel.run("jt.get(jt.get_task('train'))").result == "42"


def test_kill_by_name(new_kernel: Callable[[], Kernel]) -> None:
    """From another kernel than its own: the first one's board says what became of it."""
    first, second = new_kernel(), new_kernel()
    cell = first.run(f"%%remote train --detach\n{WAITS}")
    worker = int(hear(first.directory / "in"))
    assert worker in first.processes()
    killed = second.run("%tasks kill train")
    assert "ended, and its result forgotten" in killed.text()
    assert worker not in first.processes()
    assert second.run("%tasks").text() == "No tasks.\n"
    first.read_state(cell, "cancelled")
    assert "ForceCancelledError" in first.run("jt.get(train)").error
    assert first.run("%%remote train --detach\n7").ok, "the name is free"
    assert first.run("jt.get(train)").result == "7"


def test_a_taken_name_and_replace(new_kernel: Callable[[], Kernel]) -> None:
    """Refused with a sentence that says how to find, end or replace it; --replace ends it first."""
    kernel = new_kernel()
    first = kernel.run(f"%%remote train --detach\n{WAITS}")
    hear(kernel.directory / "in")
    refused = kernel.run("%%remote train --detach\n1").text("stderr")
    for word in ("detached task 'train' already", "jt.get_task('train')", "%tasks kill train", "--replace"):
        assert word in refused
    assert kernel.run("held = open('held', 'w')").ok
    assert "cannot be" in kernel.run("%%remote train --detach --replace\nheld").text("stderr")
    assert first.states[-1] == "running", "what cannot be sent replaces nothing"
    assert kernel.run("%%remote train --detach --replace\n'new'").ok
    assert kernel.run("jt.get(train)").result == "'new'"
    kernel.read_state(first, "cancelled")
    assert "replaced by a new run" in first.of("update_display_data")[-1]["data"]["text/plain"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--detach", "needs a NAME"),
        ("a --detach --wait", "%tasks wait a"),
        ("a --detach --group g", "ends with its kernel"),
        ("a --detach --refs b", "references end with their session"),
        ("a --detach --cpus 1000", "needs 1000 CPU"),
        ("all --detach", "choose another name"),
    ],
)
def test_lines_that_make_no_sense(kernel: Kernel, line: str, words: str) -> None:
    """One sentence; nothing is started."""
    assert words in kernel.run(f"%%remote {line}\n1").text("stderr")
    assert kernel.run("from jupyter_tasks import detached; detached.entries()").result == "[]"


def test_what_it_takes_along(kernel: Kernel) -> None:
    """Names by value, functions, and what is around the cell, as for any cell. A ref of the session whose value is there
    becomes its value; one that is open is refused."""
    assert kernel.run("y = 5\ndef f(a): return a * y\nos.environ['COLOUR'] = 'red'\nref = jt.put([1, 2])").ok
    assert kernel.run("%%remote all_of_it --detach\nimport os\nf(2), os.environ['COLOUR'], os.getcwd(), ref").ok
    assert kernel.run("y = 6; jt.get(all_of_it) == (10, 'red', os.getcwd(), [1, 2])").result == "True"
    assert kernel.run("%%remote slow\nimport time, os\nwhile not os.path.exists('slow-go'): time.sleep(0.01)\n3").ok
    assert "'slow' is a reference without a value" in kernel.run("%%remote d2 --detach\nslow + 1").text("stderr")
    kernel.run("inside = [slow]")
    assert "jt.get(ref)" in kernel.run("%%remote d2 --detach\ninside").text("stderr")
    say(kernel.directory / "slow-go")
    assert kernel.run("jt.get(slow)").result == "3"
    assert kernel.run("%%remote d2 --detach\nslow + 1").ok
    assert kernel.run("%tasks fetch d2\nd2").result == "4"
    asked = kernel.run("%%remote asks --detach\ninput('?')")
    kernel.read_until(lambda: "StdinNotImplementedError" in str(asked.boards[-1]["error"]), "the end of asks")
    for name in ("all_of_it", "d2", "asks"):
        assert f"Forgot the detached task {name}" in kernel.run(f"%tasks clear {name}").text()


def test_the_words_of_tasks(kernel: Kernel) -> None:
    """All know it by name; `all` and a plain clear leave it alone; debug, clear and attach say what they cannot do."""
    assert kernel.run("%%remote long --detach\nimport time\nprint('in', flush=True)\ntime.sleep(1000)").ok
    assert kernel.run("%%remote plain\nimport time; time.sleep(1000)").ok
    kernel.run("while len(jt.get_task('long').story()) < 2: time.sleep(0.01)")
    assert "long" not in kernel.run("%tasks cancel all").text()
    assert "is detached: the frames" in kernel.run("%tasks debug long").text("stderr")
    assert "is running" in kernel.run("%tasks clear long").text("stderr")
    assert "no detached task 'nope'. Detached tasks: long." in kernel.run("%tasks attach nope").text("stderr")
    assert "asked to stop" in kernel.run("%tasks cancel long").text()
    kernel.run("%tasks wait long")
    assert "cancelled (detached)" in kernel.run("%tasks").text()
    assert "long keeps its result: %tasks clear long" in kernel.run("%tasks clear").text()
    assert "TaskCancelledError" in kernel.run("%tasks fetch long").error
    for text in ("%tasks attach ", "%tasks logs ", "%tasks clear "):
        kernel.client.complete(text, len(text))
        assert "long" in kernel.client.get_shell_msg(timeout=60)["content"]["matches"], text
    assert "Forgot the detached task long" in kernel.run("%tasks clear long").text()
    assert "--detach" in kernel.run("%remote --help").text()
    assert "%tasks attach NAME" in kernel.run("%tasks --help").text()


def test_a_board_moves_when_it_is_attached_again(kernel: Kernel) -> None:
    """The earlier one says so, and is not left running for ever in the saved notebook."""
    first = kernel.run("%%remote moves --detach\nimport os, time\nwhile not os.path.exists('m'): time.sleep(0.01)")
    kernel.read_state(first, "running")
    second = kernel.run("%tasks attach moves")
    assert first.boards[-1]["notes"] == ["its board goes on in a later cell"]
    say(kernel.directory / "m")
    kernel.read_state(second, "completed")
    assert first.states[-1] == "running"
    assert kernel.run("%tasks kill moves").ok


def test_the_death_of_its_supervisor(kernel: Kernel) -> None:
    """The board says that it has crashed, `get` why; the name is free, and a name that no variable can have is said."""
    cell = kernel.run("%%remote dies --detach\nimport time; time.sleep(1000)")
    kernel.read_state(cell, "running")
    assert kernel.run("from jupyter_tasks import detached; os.kill(detached.find('dies').pid, 9)").ok
    kernel.read_state(cell, "crashed")
    assert "detached task 'dies'; it was killed" in kernel.run("jt.get(dies)").error
    assert kernel.run("del dies; jt.tasks()").result == "[]"
    assert "no detached task of this name" in kernel.run("%tasks fetch dies").text("stderr")
    code = "jt.get(jt.remote(lambda: 1).options(lifetime='detached', name='two words', namespace='n').remote())"
    assert kernel.run(code).result == "1"
    assert "completed (detached, namespace n)" in kernel.run("%tasks").text()
    assert "%tasks clear 'two words'" in kernel.run("%tasks clear").text()
    assert "jt.get_task('two words')" in kernel.run("%tasks fetch 'two words'").text("stderr")
    assert kernel.run("%tasks clear 'two words'").text() == "Forgot the detached task two words, and its result.\n"


def test_fetch_keeps_what_a_name_holds(kernel: Kernel) -> None:
    """A value of the new kernel's is not overwritten by what `-o` names; a line says so."""
    assert kernel.run("%%remote t --detach -o a,b\na = 1; b = 2\n3").ok
    kernel.run("%tasks wait t\ndel t, a\nb = 'mine'")
    fetched = kernel.run("%tasks fetch t\nt, a, b")
    assert fetched.result == "(3, 1, 'mine')"
    assert "b holds a str and keeps it" in fetched.text()
    assert kernel.run("del b\n%tasks fetch b\nb").result == "2"
    assert kernel.run("del t, a, b\n%tasks fetch t b a\nt, a, b").result == "(3, 1, 2)", "in any order, and twice"
    assert kernel.run("%tasks kill t").ok


def test_functions_print_under_the_cell_that_called_them(kernel: Kernel) -> None:
    """As those of the session do, also later."""
    code = (
        "@jt.remote(num_returns=2)\ndef f(x):\n    print('from afar'); return x, x * k\n"
        "k = 3\nrefs = f.options(lifetime='detached', name='fn').remote(2)"
    )
    cell = kernel.run(code)
    assert kernel.run("jt.get(refs)").result == "[2, 6]"
    kernel.read_until(lambda: "from afar" in cell.text(), "its output")
    assert kernel.run("%tasks fetch fn\nfn").result == "[2, 6]"
    assert kernel.run("%tasks kill fn").ok


def test_the_session_may_end_and_begin_anew(kernel: Kernel) -> None:
    """jt.shutdown() ends the session's tasks; the board of a detached one goes on."""
    cell = kernel.run(
        "%%remote long --detach\nimport os, time\nwhile not os.path.exists('on'): time.sleep(0.01)\n'done'"
    )
    kernel.read_state(cell, "running")
    assert kernel.run("jt.shutdown()").ok
    assert kernel.run("%%remote again\n1").ok
    assert kernel.run("jt.get(again)").result == "1"
    say(kernel.directory / "on")
    kernel.read_state(cell, "completed")
    assert kernel.run("jt.get(long)").result == "'done'"
    assert kernel.run("%tasks kill long").ok


def test_local_mode_refuses(kernel: Kernel) -> None:
    """Nothing outlives a kernel in which everything runs."""
    kernel.run("jt.shutdown(); jt.init(local_mode=True)")
    assert "local mode" in kernel.run("%%remote local --detach\n1").text("stderr")
    kernel.run("jt.shutdown()")
