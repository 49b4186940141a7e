"""faulthandler's text as a traceback. Role: unit, for what no kernel here can show: other Pythons, threads of ours.

Promise: docs/semantics.md, Cells: `%tasks stack NAME`.
"""

from __future__ import annotations

from jupyter_tasks.notebook import stacks

# As Python 3.14 writes it, with names; the newest frame first. One thread is a client's, one a library's.
TEXT = """\
Thread 0x00007f01 [Thread-1 (work)] (most recent call first):
  File "/home/a/lib.py", line 7 in work
  File "/usr/lib/python3/threading.py", line 982 in run

Thread 0x00007f02 [jupyter-tasks-] (most recent call first):
  File "/x/jupyter_tasks/client.py", line 690 in _read_on
  File "/usr/lib/python3/threading.py", line 982 in run

Current thread 0x00007f03 [python] (most recent call first):
  File "/x/jupyter_tasks/client.py", line 388 in _wait
  File "/x/jupyter_tasks/api.py", line 425 in get
  File "/k/1.py", line 3 in <module>
  File "/y/IPython/core/interactiveshell.py", line 3805 in run_code
  File "/x/jupyter_tasks/worker/shell.py", line 600 in run_cell
  File "/x/jupyter_tasks/worker/execution.py", line 170 in serve
"""


def test_the_users_frames_are_shown_the_newest_last() -> None:
    """The main thread first; a wait in `jt.get` shows the call, not what is below; threads of ours are nobody's."""
    main, other = stacks.read(TEXT)
    assert main == (
        "main",
        [stacks.Frame("/k/1.py", 3, "<module>"), stacks.Frame("/x/jupyter_tasks/api.py", 425, "get")],
    )
    assert other[0] == "Thread-1 (work)"
    assert other[1][-1] == stacks.Frame("/home/a/lib.py", 7, "work")


def test_cells_are_called_by_their_numbers() -> None:
    text = stacks.render(TEXT, lambda file: "Cell In[5]" if file == "/k/1.py" else "", lambda file, line: "x = 1\n")
    assert text.splitlines()[:3] == ["Main thread:", "  Cell In[5], line 3, in <module>", "    x = 1"]
    assert '  File "/home/a/lib.py", line 7, in work' in text


def test_a_task_between_two_steps_says_so() -> None:
    """Its worker is in our loop, or in IPython's."""
    text = TEXT.replace('  File "/k/1.py", line 3 in <module>\n', "").replace("api.py", "client.py")
    assert "between two steps of the task" in stacks.render(text, lambda _: "", lambda _, __: "")
