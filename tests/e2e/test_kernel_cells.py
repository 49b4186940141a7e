"""%%remote and %tasks in a real kernel, message by message. Role: end to end.

Promises: docs/semantics.md, Cells. What a cell prints, shows and raises lands in the cell that launched it and nowhere
else; bad input is one line that names the culprit.
"""

from __future__ import annotations

import pytest
from kernels import BOARD, Kernel
from words import hear

pytestmark = pytest.mark.slow


def test_a_cell_returns_at_once_and_its_output_comes_to_it(kernel: Kernel) -> None:
    """The launching cell is idle while the task runs; text, pictures and result still land in its board."""
    cell = kernel.run(
        "%%remote first\nprint('before')\nimport time, pathlib\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('after'); 6*7"
    )
    assert cell.ok
    kernel.read_state(cell, "running")
    other = kernel.run("print('mine')\npathlib.Path('go').write_text('')\njt.get(first)")
    assert other.result == "42"
    assert other.text() == "mine\n"
    kernel.read_state(cell, "completed")
    last = cell.of("display_data", "update_display_data")[-1]["data"]
    assert "before\nafter" in last["text/plain"]
    assert "42" in last["text/plain"]
    assert "before" in last["text/html"]
    assert not [m for m in other.own if m["msg_type"] == "display_data"]


def test_names_go_in_by_value_and_come_back_as_refs(kernel: Kernel) -> None:
    """A snapshot at launch: later changes on either side are not seen on the other."""
    kernel.run("data = [1, 2]\ndef double(v): return v * scale\nscale = 10")
    cell = kernel.run("%%remote -o out, extra\nout = double(len(data))\ndata.append(3)\nextra = data")
    assert cell.ok, cell.error
    kernel.run("data.append(99); scale = 0")
    got = kernel.run("print(jt.get([out, extra]), data)")
    assert got.text() == "[20, [1, 2, 3]] [1, 2, 99]\n"


def test_cells_form_a_dataflow(kernel: Kernel) -> None:
    """A name bound to a ref is awaited and replaced by its value; so chains of cells need no get."""
    kernel.run("%%remote -o a\nimport time; time.sleep(0.2); a = 5")
    kernel.run("%%remote -o b\nb = a + 1")
    kernel.run("%%remote last\na * b")
    assert kernel.run("jt.get(last)").result == "30"


def test_a_failed_upstream_cell_gives_its_root_cause(kernel: Kernel) -> None:
    """The dependent never runs, and its get raises what went wrong first."""
    kernel.run("%%remote -o broken\nbroken = {}['missing']")
    kernel.run("%%remote never\nopen('ran', 'w').close(); broken")
    got = kernel.run("try: jt.get(never)\nexcept KeyError as e: print('root', e, os.path.exists('ran'))")
    assert got.text() == "root 'missing' False\n"


def test_wait_behaves_like_a_normal_cell(kernel: Kernel) -> None:
    """Ordinary outputs, told apart and in order, none of them ours."""
    cell = kernel.run(
        "%%remote --wait\nimport sys, os\nfrom IPython.display import display, HTML\nprint('one')\n"
        "print('two', file=sys.stderr)\ndisplay(HTML('<b>three</b>'))\nprint('four')\nos.system('echo five')\n6 * 7"
    )
    assert cell.ok
    seen = []
    for message in cell.own:
        content = message["content"]
        seen.append((message["msg_type"], content.get("name", ""), content.get("text", "")))
    assert [kind for kind, *_ in seen] == ["stream", "stream", "display_data", "stream", "execute_result"]
    assert [text for kind, _, text in seen if kind == "stream"] == ["one\n", "two\n", "four\nfive\n"]
    assert cell.result == "42"
    assert not cell.boards


def test_text_and_rich_output_keep_their_order(kernel: Kernel) -> None:
    """Though they come on different ways: each of a hundred changes between text, displays and clear_output."""
    cell = kernel.run(
        "%%remote --wait\nfrom IPython.display import display, clear_output\n"
        "for i in range(100):\n    print(i)\n    display(i) if i % 3 else clear_output()"
    )
    seen = []
    for message in cell.messages:
        content, kind = message["content"], message["msg_type"]
        if kind == "stream":
            seen += [("text", int(line)) for line in content["text"].split()]
        elif kind == "display_data":
            seen.append(("shown", int(content["data"]["text/plain"])))
        elif kind == "clear_output":
            seen.append(("cleared", -1))
    expected = []
    for i in range(100):
        expected += [("text", i), ("shown", i) if i % 3 else ("cleared", -1)]
    assert seen == expected


def test_wait_raises_the_cells_error_with_its_lines(kernel: Kernel) -> None:
    """Type, text and line numbers are those of the cell in the notebook; no frame of ours."""
    cell = kernel.run("%%remote --wait\nx = 1\nraise ValueError('boom')")
    assert not cell.ok
    assert cell.reply["ename"] == "ValueError"
    assert cell.reply["evalue"] == "boom"
    assert "line 3" in cell.error
    assert "----> 3 raise ValueError('boom')" in cell.error
    assert "jupyter_tasks" not in cell.error


def test_wait_star_is_like_running_the_cell_here(kernel: Kernel) -> None:
    """All assigned names are plain values afterwards; `_` and Out too; deleted names are gone."""
    kernel.run("keep = 1; gone = 2")
    cell = kernel.run(
        "%%remote --wait -o '*'\nimport math\nfound = [math.pi]\ndef area(r): return math.pi * r * r\n"
        "del gone\nkeep += 1\nfound"
    )
    assert cell.ok, cell.error
    got = kernel.run("print(keep, found == _, round(area(1), 2), 'gone' in globals(), type(math).__name__)")
    assert got.text() == "2 True 3.14 False module\n"


def test_star_brings_names_back_after_an_error(kernel: Kernel) -> None:
    """What was assigned before the error is there, as after a plain cell."""
    cell = kernel.run("%%remote --wait -o '*'\nhalf = 'done'\n1 / 0")
    assert cell.reply["ename"] == "ZeroDivisionError"
    assert kernel.run("half").result == "'done'"


def test_an_error_in_the_background_shows_on_the_board_and_in_get(kernel: Kernel) -> None:
    """The board has the cell's traceback; get raises both TaskError and the error's own type."""
    cell = kernel.run("%%remote bad\nraise LookupError('not there')")
    got = kernel.run(
        "try: jt.get(bad)\nexcept LookupError as e: print(isinstance(e, jt.exceptions.TaskError), e, e.type_name)"
    )
    assert got.text() == "True not there LookupError\n"
    kernel.read_state(cell, "failed")
    kernel.read_until(lambda: cell.boards[-1]["error"], "the board's error")
    assert "----> 2 raise LookupError('not there')" in cell.boards[-1]["error"]
    shown = kernel.run("jt.get(bad)")
    assert "----> 2 raise LookupError" in shown.error
    assert "api.py" not in shown.error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("%%remote --nope\n1", ["--nope", "--help"]),
        ("%%remote -t soon\n1", ["soon", "number"]),
        ("%%remote -t 0\n1", ["more than 0"]),
        ("%%remote --cpus -1\n1", ["-1"]),
        ("%%remote --cpus 1000\n1", ["1000", "CPU"]),
        ("%%remote --gpus 1000\n1", ["1000", "GPU"]),
        ("%%remote --grace -1\n1", ["-1"]),
        ("%%remote --memory much\n1", ["much", "4GB"]),
        ("%%remote --retries x\n1", ["'x'", "whole number"]),
        ("%%remote -i nosuch\n1", ["'nosuch'", "--in"]),
        ("%%remote --only nosuch\n1", ["'nosuch'", "--only"]),
        ("%%remote --refs nosuch\n1", ["'nosuch'", "--refs"]),
        ("%%remote --refs held\n1", ["'held'", "--refs", "dict"]),
        ("%%remote -o 1a\n1", ["'1a'"]),
        ("%%remote 1a\n1", ["'1a'", "identifier"]),
        ("%%remote class\n1", ["'class'"]),
        ("%%remote all\n1", ["'all'"]),
        ("%%remote sys\n1", ["'sys'", "module"]),
        ("%%remote z -o z\nz = 1", ["'z'", "-o"]),
        ("%%remote\nheld['a']", ["held['a'][0]", "_thread.lock"]),
        ("%tasks cancel nosuch", ["'nosuch'"]),
        ("%tasks fly", ["'fly'"]),
        ("%tasks cancel", ["NAME"]),
        ("%tasks fetch", ["%tasks fetch a b"]),
        ("%tasks fetch nosuch", ["'nosuch'"]),
        ("%tasks fetch held", ["'held'", "dict"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_culprit(kernel: Kernel, code: str, words: list[str]) -> None:
    """No traceback of ours, nothing launched, and the notebook stops there as after any error."""
    kernel.run("import threading; held = {'a': [threading.Lock()]}")
    before = kernel.run("len(jt.tasks())").result
    cell = kernel.run(code)
    assert cell.reply["status"] == "error"
    text = cell.text("stderr")
    assert text.startswith("UsageError: ")
    assert text.count("\n") == 1
    for word in words:
        assert word in text
    assert kernel.run("len(jt.tasks())").result == before


def test_a_name_that_holds_a_generator_is_refused_with_what_to_do(kernel: Kernel) -> None:
    """Its items belong to the notebook. Taken from it, they are refs as any."""
    kernel.run("def numbers():\n    yield from range(3)\nstream = jt.remote(numbers).remote()")
    text = kernel.run("%%remote\nlist(stream)").text("stderr")
    assert text.startswith("UsageError: %%remote cell ")
    assert text.count("\n") == 1
    assert "Cannot send 'stream' to a worker" in text
    assert "Pass the refs that it hands out" in text
    assert kernel.run("first = next(stream)").ok
    assert kernel.run("%%remote --wait -o value\nvalue = first + 10").ok
    assert kernel.run("jt.get(value)").result == "10"


def test_a_cell_reads_generators_that_it_makes(kernel: Kernel) -> None:
    kernel.run("def numbers():\n    yield from range(3)")
    cell = kernel.run("%%remote --wait -o total\ntotal = sum(jt.get(ref) for ref in jt.remote(numbers).remote())")
    assert cell.ok, cell.error
    assert kernel.run("jt.get(total)").result == "3"


def test_a_syntax_error_shows_the_cell_and_launches_nothing(kernel: Kernel) -> None:
    """As in the kernel, with the notebook's line numbers."""
    cell = kernel.run("%%remote\nx = 1\ny = (")
    assert cell.reply["ename"] == "SyntaxError"
    assert f"Cell In[{cell.reply['execution_count']}], line 3" in cell.error
    assert "magics.py" not in cell.error


def test_help_is_shown_by_the_magic(kernel: Kernel) -> None:
    """%%remote --help and %%remote? list every option."""
    text = kernel.run("%%remote --help\n1").text()
    page = kernel.run("%%remote?").reply["payload"][0]["data"]["text/plain"]
    for word in (
        "--in",
        "--only",
        "--refs",
        "--out",
        "--wait",
        "--timeout",
        "--grace",
        "--retries",
        "--cpus",
        "--gpus",
        "--memory",
        "--replace",
        "--quiet",
    ):
        assert word in text
        assert word in page


def test_only_takes_along_these_names_only(kernel: Kernel) -> None:
    """Instead of those that the cell reads; a space after the comma is no other argument."""
    kernel.run("here = 1; there = 2")
    assert kernel.run("%%remote --wait --only here, there\nprint(here, there)").text() == "1 2\n"
    cell = kernel.run("%%remote -w --only here\nprint(here, there)")
    assert cell.reply["ename"] == "NameError"
    assert "there" in cell.reply["evalue"]


def test_star_without_wait_binds_references(kernel: Kernel) -> None:
    """All names that the cell assigns, at launch."""
    kernel.run("%%remote -o '*'\none = 1\nfor two in range(3): pass")
    assert kernel.run("print(type(one).__name__, jt.get([one, two]))").text() == "ObjectRef [1, 2]\n"


def test_quiet_shows_what_comes_without_a_board(kernel: Kernel) -> None:
    """Text and the result are plain outputs of the launching cell."""
    cell = kernel.run("%%remote hushed -q\nprint('words'); 6 * 7")
    assert kernel.run("jt.get(hushed)").result == "42"
    kernel.read_until(lambda: cell.text() == "words\n" and cell.result == "42", "its plain output")
    assert not cell.boards


def test_a_timeout_stops_the_cell(kernel: Kernel) -> None:
    """By an interrupt, so `finally` runs; and it is a failure, not a cancel."""
    cell = kernel.run("%%remote late -t 0.2\nimport time\ntry: time.sleep(60)\nfinally: print('tidy')")
    kernel.read_state(cell, "failed")
    got = kernel.run("try: jt.get(late)\nexcept TimeoutError as e: print(type(e).__name__, e.rung)")
    assert got.text() == "TaskTimeoutError interrupt\n"


def test_grace_ends_a_cell_that_goes_on(kernel: Kernel) -> None:
    """So many seconds after the cancel its process is ended, unasked."""
    cell = kernel.run(
        "%%remote deaf --grace 0.1\nimport time\nwhile True:\n"
        "    try: open('deaf', 'w').close(); time.sleep(60)\n    except KeyboardInterrupt: pass"
    )
    hear(kernel.directory / "deaf")
    kernel.run("jt.cancel(deaf)")
    kernel.read_state(cell, "cancelled")
    got = kernel.run("try: jt.get(deaf)\nexcept jt.exceptions.ForceCancelledError as e: print(e.rung)")
    assert got.text() == "terminate\n"


def test_memory_is_a_limit_of_the_cell(kernel: Kernel) -> None:
    """The worker dies, the kernel does not, and the error names the limit."""
    cell = kernel.run("%%remote greedy --memory 300MB\nhoard = b'x' * 600_000_000\nimport time; time.sleep(60)")
    kernel.read_state(cell, "crashed")
    got = kernel.run(
        "try: jt.get(greedy)\nexcept jt.exceptions.OutOfMemoryError as e: print(e.limit, e.used > e.limit)"
    )
    assert got.text() == "300000000 True\n"


def test_retries_run_a_crashed_cell_again(kernel: Kernel) -> None:
    """Only if asked for: a cell has side effects."""
    kernel.run(
        "%%remote shaky --retries 1\nimport os, pathlib\nif not pathlib.Path('crashed').exists():\n"
        "    pathlib.Path('crashed').touch(); os._exit(3)\n'second time'"
    )
    assert kernel.run("jt.get(shaky)").result == "'second time'"
    kernel.run("%%remote once\nimport os\nos._exit(3)")
    got = kernel.run("try: jt.get(once)\nexcept jt.exceptions.WorkerCrashedError as e: print(e.exit_code)")
    assert got.text() == "3\n"


def test_cpus_are_slots_and_zero_needs_none(kernel: Kernel) -> None:
    """A cell that takes all slots keeps the others waiting, but not one that takes none."""
    slots = kernel.run("print(int(jt.init()['total']['CPU']))").text().strip()
    cell = kernel.run(
        f"%%remote whole --cpus {slots}\nimport time, pathlib\n"
        "while not pathlib.Path('room').exists(): time.sleep(0.01)"
    )
    kernel.read_state(cell, "running")
    kernel.run("%%remote queued\n'after'")
    kernel.run("%%remote light --cpus 0\n'at once'")
    assert kernel.run("print(jt.get(light), queued.is_final)").text() == "at once False\n"
    assert kernel.run("open('room', 'w').close(); jt.get(queued)").result == "'after'"


def test_gpus_are_counted(kernel: Kernel) -> None:
    """Of one GPU the second cell gets nothing before the first has ended; cells without one do not wait."""
    kernel.run("jt.shutdown(); jt.init(num_cpus=3, num_gpus=1)")
    cell = kernel.run(
        "%%remote mine --gpus 1\nimport time, pathlib\nwhile not pathlib.Path('cool').exists(): time.sleep(0.01)"
    )
    kernel.read_state(cell, "running")
    kernel.run("%%remote yours --gpus 1\n'now me'")
    kernel.run("%%remote nobodys\n'at once'")
    assert kernel.run("print(jt.get(nobodys), yours.is_final)").text() == "at once False\n"
    assert kernel.run("open('cool', 'w').close(); jt.get(yours)").result == "'now me'"
    kernel.run("jt.shutdown()")


def test_the_worker_has_a_real_shell(kernel: Kernel) -> None:
    """Magics, shell commands, top-level await, matplotlib inline."""
    cell = kernel.run(
        "%%remote --wait\nimport asyncio\nawait asyncio.sleep(0)\nx = !echo from-shell\nprint(x)\n%env JT_TEST=1\n"
        "!echo $JT_TEST\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    )
    assert cell.ok, cell.error
    text = cell.text()
    assert "['from-shell']" in text
    assert "env: JT_TEST=1" in text
    assert "image/png" in cell.of("display_data")[-1]["data"]


def test_cancel_by_name_and_the_word_on_the_board(kernel: Kernel) -> None:
    """%tasks cancel NAME stops it; the board says who and how long; get raises TaskCancelledError."""
    cell = kernel.run(
        "%%remote long\nimport time\ntry: open('long', 'w').close(); time.sleep(60)\nfinally: print('cleaned up')"
    )
    hear(kernel.directory / "long")
    kernel.read_state(cell, "running")
    assert "asked to stop" in kernel.run("%tasks cancel long").text()
    kernel.read_state(cell, "cancelled")
    got = kernel.run("try: jt.get(long)\nexcept jt.exceptions.TaskCancelledError as e: print(e.rung, e.source, e.name)")
    assert got.text() == "interrupt user long\n"
    kernel.read_until(
        lambda: "cleaned up" in cell.of("update_display_data")[-1]["data"]["text/plain"], "its last words"
    )


def test_kill_ends_a_cell_in_c_code(kernel: Kernel) -> None:
    """A soft cancel of a C call stays `cancelling` and says so; kill ends it at once."""
    cell = kernel.run("%%remote stuck\nopen('in', 'w').close(); sum(range(10**12))")
    kernel.read_state(cell, "running")
    hear(kernel.directory / "in")
    kernel.run("jt.cancel(stuck)")
    kernel.read_state(cell, "cancelling")
    kernel.run("%tasks kill stuck")
    kernel.read_state(cell, "cancelled")
    got = kernel.run("try: jt.get(stuck)\nexcept jt.exceptions.ForceCancelledError as e: print(e.rung)")
    assert got.text() == "kill\n"


def test_stop_button_cancels_the_cell_that_waits(kernel: Kernel) -> None:
    """A kernel interrupt during --wait stops the task, and the cell ends with KeyboardInterrupt."""
    cell = kernel.start(
        "%%remote --wait\nimport time\ntry:\n    open('waiting', 'w').close(); time.sleep(60)\nfinally: print('tidy')"
    )
    hear(kernel.directory / "waiting")
    kernel.interrupt()
    kernel.finish(cell)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert cell.text() == "tidy\n"
    assert kernel.run("t = jt.tasks()[-1]; print(t['state'], t['source'])").text() == "cancelled interrupt\n"


def test_a_second_press_of_the_stop_button_kills_the_cell(kernel: Kernel) -> None:
    """And the notebook is told before."""
    cell = kernel.start(
        "%%remote --wait\nimport time\nwhile True:\n    try: open('waits', 'w').close(); time.sleep(60)\n"
        "    except KeyboardInterrupt: open('asked', 'w').close()"
    )
    hear(kernel.directory / "waits")
    kernel.interrupt()
    hear(kernel.directory / "asked")
    kernel.interrupt()
    kernel.finish(cell)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert "ending its process" in cell.text("stderr")
    assert kernel.run("t = jt.tasks()[-1]; print(t['state'], t['rung'])").text() == "cancelled kill\n"


def test_stop_button_at_the_moment_of_the_launch(kernel: Kernel) -> None:
    """The race, built: the signal comes when the task is submitted and nobody waits for it yet. Nothing runs unseen."""
    kernel.run(
        "import jupyter_tasks.session as session, os, signal\nclient = session.current_client(); submit = client.submit_packed\n"
        "def pressed(*args):\n    ref = submit(*args); os.kill(os.getpid(), signal.SIGINT); return ref"
    )
    kernel.run("client.submit_packed = pressed")
    waited = kernel.run("%%remote --wait\nimport time; time.sleep(60)")
    launched = kernel.run("%%remote seen -o late\nimport time; time.sleep(60); late = 1")
    kernel.run("client.submit_packed = submit")
    assert waited.reply["ename"] == launched.reply["ename"] == "KeyboardInterrupt"
    live = "[t['name'] for t in jt.tasks() if t['state'] in ('pending', 'running', 'cancelling')]"
    assert kernel.run(live).result == "['seen']"
    kernel.run("jt.cancel(late)")
    kernel.read_state(launched, "cancelled")


def test_stop_button_leaves_background_tasks_alone(kernel: Kernel) -> None:
    """Interrupting a plain get ends the waiting, not the task; workers never get the signal."""
    kernel.run(
        "%%remote steady\nimport time, pathlib\nwhile not pathlib.Path('stop').exists(): time.sleep(0.01)\n'done'"
    )
    waiting = kernel.start("open('getting', 'w').close(); jt.get(steady)")
    hear(kernel.directory / "getting")
    kernel.interrupt()
    kernel.finish(waiting)
    assert waiting.reply["ename"] == "KeyboardInterrupt"
    assert kernel.run("open('stop', 'w').close(); jt.get(steady)").result == "'done'"


def test_output_of_function_tasks_lands_in_the_cell_that_called_them(kernel: Kernel) -> None:
    """Also when it comes after that cell, and while another one runs."""
    cell = kernel.run(
        "@jt.remote\ndef chatty():\n    import time, pathlib\n    while not pathlib.Path('talk').exists(): time.sleep(0.01)\n"
        "    print('a word')\nref = chatty.remote()"
    )
    other = kernel.run("open('talk', 'w').close(); jt.get(ref)")
    kernel.read_until(lambda: cell.text() == "a word\n", "the word in its own cell")
    assert other.text() == ""


def test_a_chatty_task_harms_nobody(kernel: Kernel) -> None:
    """100 MB of output: the kernel gets about one, says that there is more, and the log has all of it."""
    cell = kernel.run("%%remote loud\nline = 'x' * 99\nfor i in range(1_000_000): print(line)\nprint('the end')")
    assert kernel.run("1 + 1").result == "2"
    kernel.read_state(cell, "completed", net=170)
    sizes = sum(len(str(c)) for c in cell.of("update_display_data"))
    assert sizes < 20_000_000
    text = cell.of("update_display_data")[-1]["data"]["text/plain"]
    assert "the end" in text
    assert "the end of the output; more of it: %tasks logs" in text
    log = kernel.run("i = [t for t in jt.tasks() if t['name'] == 'loud'][0]; print(i['log_bytes'])").text()
    assert int(log) == 1_000_000 * 100 + len("the end\n")
    shown = kernel.run("%tasks logs loud").text()
    assert "the first 1.0 MB of 100.0 MB" in shown


def test_tqdm_and_track_become_bars(kernel: Kernel) -> None:
    """Unchanged tqdm and jt.track report their progress to the board."""
    cell = kernel.run(
        "%%remote bars\nfrom tqdm import tqdm\nimport jupyter_tasks as jt, time, pathlib\n"
        "for i in tqdm(range(20), desc='outer'):\n    time.sleep(0.02)\n"
        "for i in jt.track(range(5), label='mine'): time.sleep(0.02)\n"
        "while not pathlib.Path('seen').exists(): time.sleep(0.01)"
    )

    def labels() -> set[str]:
        return {bar["label"] for board in cell.boards for bar in board["progress"]}

    kernel.read_until(lambda: {"outer", "mine"} <= labels(), "both bars")
    bars = {bar["label"]: bar for board in cell.boards for bar in board["progress"]}
    assert bars["outer"]["total"] == 20
    kernel.run("open('seen', 'w').close(); jt.get(bars)")


def test_tasks_lists_everything_and_clears(kernel: Kernel) -> None:
    """A table with id, name, state, times and memory; clear forgets what is over."""
    kernel.run("%%remote listed\nimport time; time.sleep(60)")
    text = kernel.run("%tasks").text()
    assert text.splitlines()[0].split() == ["ID", "NAME", "STATE", "ELAPSED", "CPU", "MEMORY"]
    assert any("listed" in line for line in text.splitlines())
    kernel.run("%tasks kill listed\n%tasks wait listed")
    assert "Forgot" in kernel.run("%tasks clear").text()
    assert kernel.run("%tasks").text() == "No tasks.\n"


def test_verbs_take_several_names_ids_and_all(kernel: Kernel) -> None:
    """%tasks cancel a b; an id as in the list; all that live."""
    for name in ("left", "right", "middle"):
        kernel.run(f"%%remote {name} --cpus 0\nimport time; time.sleep(60)")
    text = kernel.run(
        "get_ipython().run_line_magic('tasks', f'cancel left {right.task_id}')\n%tasks wait left right"
    ).text()
    assert text.count("asked to stop") == 2
    assert "asked to end at once" in kernel.run("%tasks kill all\n%tasks wait all").text()
    got = kernel.run("print(*[t['state'] for t in jt.tasks() if t['name'] in ('left', 'right', 'middle')])")
    assert got.text() == "cancelled cancelled cancelled\n"


def test_a_cancelled_cell_gives_the_name_its_old_value_back(kernel: Kernel) -> None:
    """`df = df.dropna()` with -o df, cancelled, must not cost df."""
    kernel.run("df = 'precious'")
    cell = kernel.run("%%remote wipe -o df\nimport time; time.sleep(60); df = None")
    kernel.read_state(cell, "running")
    kernel.run("jt.cancel(wipe)\n%tasks wait wipe")
    assert kernel.run("df").result == "'precious'"
    assert any("df" in note for note in cell.boards[-1]["notes"])


def test_launched_again_and_both_cancelled_the_old_value_is_back(kernel: Kernel) -> None:
    """The second launch found a ref that came to nothing, too; what counts is what was there before both."""
    kernel.run("df = 'precious'")
    for name in ("one", "two"):
        cell = kernel.run(f"%%remote {name} -o df\nimport time; time.sleep(60); df = None")
        kernel.read_state(cell, "running")
    for name in ("one", "two"):
        kernel.run(f"jt.cancel({name})\n%tasks wait {name}")
    assert kernel.run("df").result == "'precious'"


def test_a_ref_is_given_back_like_a_value(kernel: Kernel) -> None:
    """The cancelled second step of a dataflow does not cost the result of the first; a failed one is not given back."""
    kernel.run("%%remote -o data\ndata = 'loaded'")
    kernel.run("jt.get(data)")
    cell = kernel.run("%%remote second -o data\nimport time; time.sleep(60); data = None")
    kernel.read_state(cell, "running")
    kernel.run("jt.cancel(second)\n%tasks wait second")
    assert kernel.run("jt.get(data)").result == "'loaded'"
    for _ in range(2):
        kernel.run("%%remote failing -o fresh\n1/0; fresh = 1")
        kernel.run("jt.wait([failing])")
    assert "ZeroDivisionError" in kernel.run("jt.get(fresh)").reply["ename"]


def test_a_waiting_board_says_for_whom(kernel: Kernel) -> None:
    """For a task, or for the slots and who holds them."""
    holders = [kernel.run(f"%%remote holder{i}\nimport time; time.sleep(60)") for i in (1, 2)]
    for cell in holders:
        kernel.read_state(cell, "running")
    waiting = kernel.run("%%remote patient -o late\nlate = 1")
    after = kernel.run("%%remote\nlate + 1")
    for cell, words in ((waiting, "the slots are held by holder1, holder2"), (after, "waits for patient")):
        kernel.read_until(lambda: words in cell.of("update_display_data")[-1]["data"]["text/plain"], words)  # noqa: B023
    kernel.run("jt.cancel(holder1)\njt.cancel(holder2)")
    kernel.read_state(after, "completed")


def test_star_changes_the_notebooks_own_objects(kernel: Kernel) -> None:
    """Other names, other objects and views see what the cell did; what it did before an error or a stop counts, too."""
    kernel.run(
        "import numpy as np, pandas as pd\nrows = [1]; alias = rows; box = {'rows': rows}\n"
        "a = np.zeros(100_000); view = a[:3]\ndf = pd.DataFrame({'x': [1, 2]}); same = df\n"
        "class Model: fitted = None\nmodel = Model()\ndef grow(): rows.append('grown')"
    )
    cell = kernel.run(
        "%%remote --wait -o '*'\nrows.append(2); box['more'] = rows; grow()\na[1] = 5\ndf['y'] = df.x * 2\n"
        "model.fitted = rows; mine = box"
    )
    assert cell.ok
    assert cell.text() == ""
    assert kernel.run("rows, alias is rows, box['more'] is rows").result == "([1, 2, 'grown'], True, True)"
    assert kernel.run("view[1] == 5, same is df, list(same.y)").result == "(np.True_, True, [2, 4])"
    assert kernel.run("model.fitted is rows, mine is box, type(model) is Model").result == "(True, True, True)"
    kernel.run("import itertools; numbers = itertools.count(5); holder = {'it': numbers}")
    assert kernel.run("%%remote --wait -o '*'\nnext(numbers); next(holder['it'])").result == "6"
    assert kernel.run("next(numbers), numbers is holder['it']").result == "(7, True)"
    assert kernel.run("%%remote --wait -o '*'\nrows.append('before'); 1/0").reply["ename"] == "ZeroDivisionError"
    stopped = kernel.start(
        "%%remote --wait -o '*'\nimport time\nrows.clear(); new = 'half'\nopen('star', 'w').close(); time.sleep(60)"
    )
    hear(kernel.directory / "star")
    kernel.interrupt()
    kernel.finish(stopped)
    assert stopped.reply["ename"] == "KeyboardInterrupt"
    assert kernel.run("alias, box, new").result == "([], {'rows': [], 'more': []}, 'half')"


def test_saved_output_keeps_the_final_state(kernel: Kernel) -> None:
    """Every board update carries text and HTML beside our own mime type: what a saved notebook shows."""
    cell = kernel.run("%%remote kept\nprint('words')")
    kernel.run("jt.get(kept)")
    kernel.read_state(cell, "completed")
    for content in cell.of("display_data", "update_display_data"):
        assert {"text/plain", "text/html", BOARD} <= content["data"].keys()


def test_a_dead_supervisor_is_noticed_and_replaced(kernel: Kernel) -> None:
    """Open refs and boards say so at once; the next cell starts a new one."""
    cell = kernel.run("%%remote orphan\nimport time; time.sleep(60)")
    kernel.read_state(cell, "running")
    kernel.run(
        "import jupyter_tasks.session as session, signal\nos.kill(session.current_client().settings['pid'], signal.SIGKILL)"
    )
    got = kernel.run("try: jt.get(orphan)\nexcept jt.exceptions.ObjectLostError as e: print('lost:', e)")
    assert got.text().startswith("lost: The supervisor")
    kernel.read_state(cell, "crashed")
    kernel.run("%%remote again\n'alive'")
    assert kernel.run("jt.get(again)").result == "'alive'"
