"""Groups in the notebook: their boards, `--group`, and what %tasks says of them. Role: end to end, in a real kernel.

Promises: docs/semantics.md, Groups and Map: one board for all of it, also after its cell has ended; `%tasks cancel
NAME` stops all of it; `--group NAME`.
"""

from __future__ import annotations

import pytest
from conftest import wait_until
from kernels import Cell, Kernel

pytestmark = pytest.mark.slow

FIRST_CELL = """
@jt.remote
def hold(i, word):
    if i == 'bad': raise ValueError('bad item')
    pathlib.Path(f'{word}.in').touch()
    while not pathlib.Path(word).exists(): time.sleep(0.005)
    return i
"""


@pytest.fixture(autouse=True)
def nothing_left(kernel: Kernel) -> None:
    kernel.run("%tasks kill all")
    wait_until(lambda: live_groups(kernel) == "[]", "nothing runs of the test before")
    kernel.run("%tasks clear\n[file.unlink() for file in pathlib.Path().glob('word*')]")


def live_groups(kernel: Kernel) -> str | None:
    return kernel.run("[g['name'] for g in jt.session.current_client().request('groups')]").result


def say(kernel: Kernel, word: str = "word") -> None:
    (kernel.directory / word).touch()


def heard(kernel: Kernel, word: str = "word") -> None:
    wait_until((kernel.directory / f"{word}.in").exists, "a task runs")


def last(cell: Cell) -> str:
    """The board as text."""
    contents = [c for c in cell.of("display_data", "update_display_data") if "text/plain" in c["data"]]
    return str(contents[-1]["data"]["text/plain"])


# -- boards ------------------------------------------------------------------------------------------------------------


def test_a_map_has_one_board_that_lives_on_after_its_cell(kernel: Kernel) -> None:
    """Shown by the cell that called it, updated later; its end stays, with the first error in a line."""
    cell = kernel.run("refs = hold.map(['bad', 1, 2], ['word'] * 3)")
    assert cell.ok, cell.error
    assert cell.boards[0]["state"] == "running"
    kernel.read_until(lambda: "1 of 3 done, 1 failed, 2 running" in last(cell), "figures")
    say(kernel)
    kernel.read_state(cell, "failed")
    kernel.read_until(lambda: cell.boards[-1]["error"], "the error")
    assert "3 of 3 done, 1 failed" in last(cell)
    assert "ValueError: bad item" in last(cell)
    assert len(cell.of("display_data")) == 1
    html = cell.of("update_display_data")[-1]["data"]["text/html"]
    assert '<progress value="3" max="3"' in html


def test_what_is_over_in_a_moment_has_none(kernel: Kernel) -> None:
    """A quick map, and a block of quick tasks."""
    say(kernel)
    kernel.run("jt.get(hold.map([1, 2], ['word'] * 2))")  # workers are there
    cell = kernel.run("jt.get(hold.map([1, 2], ['word'] * 2))")
    assert cell.result == "[1, 2]"
    assert cell.boards == []
    block = kernel.run("with jt.TaskGroup('block'):\n    hold.remote(1, 'word'); hold.map([1, 2], ['word'] * 2)")
    assert block.ok, block.error
    assert block.boards == []


def test_a_block_shows_its_board_while_it_waits(kernel: Kernel) -> None:
    """One for the block, inner maps counted; the cell's own name is the group's."""
    cell = kernel.start(
        "with jt.TaskGroup('block') as block:\n    hold.remote(0, 'word'); hold.map([1, 2], ['word'] * 2)"
    )
    kernel.read_until(lambda: cell.boards and "0 of 3 done" in last(cell), "the board")
    say(kernel)
    kernel.finish(cell)
    assert cell.ok, cell.error
    assert {board["name"] for board in cell.boards} == {"block"}
    assert cell.states[-1] == "completed"


def test_the_board_of_a_lost_session_says_so(kernel: Kernel) -> None:
    """It does not run for ever on the screen; the next session's boards are its own."""
    cell = kernel.run("refs = hold.map([1, 2], ['word'] * 2)")
    heard(kernel)
    kernel.run("jt.shutdown()")
    kernel.read_state(cell, "cancelled")
    kernel.read_until(lambda: "shut down" in cell.boards[-1]["error"], "why")


def test_boards_hold_no_refs(kernel: Kernel) -> None:
    """When the refs are dropped the supervisor has no object left, failed ones included."""
    cell = kernel.run("refs = hold.map(['bad', 'bad', 1], ['word'] * 3)")
    say(kernel)
    kernel.read_state(cell, "failed")
    kernel.run("del refs\njt.get(hold.remote(1, 'word'))")
    objects = "jt.session.current_client().request('status', check=True)['objects']"
    wait_until(lambda: kernel.run(objects).result == "0", "no object is left")


# -- %tasks ------------------------------------------------------------------------------------------------------------


def test_tasks_lists_groups_and_cancels_one_by_name(kernel: Kernel) -> None:
    """The name is that of the group and of its members: the group is taken, and the line says so."""
    cell = kernel.run("refs = hold.map(range(5), ['word'] * 5)")
    heard(kernel)
    table = kernel.run("%tasks").text()
    assert "GROUP" in table.splitlines()[0]
    assert "group hold (" in table
    assert "0 of 5 done" in table
    said = kernel.run("%tasks cancel hold").text()
    assert said.startswith("Group ")
    assert "all in it asked to stop" in said
    kernel.read_state(cell, "cancelled")
    assert "5 cancelled" in last(cell)
    assert "(by user)" in last(cell)
    assert "group hold" not in kernel.run("%tasks").text()


def test_of_several_groups_the_newest_is_taken(kernel: Kernel) -> None:
    first = kernel.run("older = hold.map([1], ['word'])")
    second = kernel.run("newer = hold.map([1], ['word'])")
    assert "1 other group of this name goes on" in kernel.run("%tasks kill hold").text()
    kernel.read_state(second, "cancelled")
    assert first.states[-1] == "running"
    waiting = kernel.start("%tasks wait hold")
    say(kernel)
    kernel.finish(waiting)
    assert waiting.ok
    kernel.read_state(first, "completed")


def test_cancel_all_takes_groups_and_single_tasks(kernel: Kernel) -> None:
    """Members get one interrupt, not two; none of a group begins."""
    kernel.run("many = hold.map(range(5), ['word'] * 5); one = hold.remote(1, 'word')")
    heard(kernel)
    kernel.run("%tasks cancel all")
    states = "jt.wait([*many, one], num_returns=6); sorted(t['state'] for t in jt.tasks())"
    assert kernel.run(states).result == str(["cancelled"] * 6)


def test_a_tasks_story_can_be_read(kernel: Kernel) -> None:
    """Seconds since the submission, what happened, and who wanted it; the API has the same."""
    cell = kernel.run("%%remote train\ntime.sleep(600)")
    kernel.read_state(cell, "running")
    kernel.run("jt.cancel(train, reason='enough')")
    kernel.read_state(cell, "cancelled")
    lines = kernel.run("%tasks story train").text().splitlines()
    assert lines[0].endswith("(train), cancelled:")
    assert [line.split()[2] for line in lines[1:]] == ["submitted", "started", "asked", "stopped"]
    assert lines[1].split()[0] == "+0.000"
    assert lines[-1].endswith("cancelled  by user: enough")
    assert kernel.run("[c['step'] for c in train.story()]").result == "['submitted', 'started', 'asked', 'stopped']"
    assert "needs the NAME" in kernel.run("%tasks story").text("stderr")


def test_the_next_attempt_is_told(kernel: Kernel) -> None:
    """A task that waits for it is pending, and the table says for how long."""
    kernel.run("@jt.remote(retry_exceptions=True, retry_delay=100)\ndef later(): 1 / 0\nref = later.remote()")
    wait_until(lambda: "pending, next attempt in " in kernel.run("%tasks").text(), "its delay")
    kernel.run("jt.cancel(ref)")


# -- --group -----------------------------------------------------------------------------------------------------------


def test_cells_of_one_name_are_one_group_while_it_lives(kernel: Kernel) -> None:
    """NAME is bound to a TaskGroup, which works; when it is over, the next cell makes a new one."""
    first = kernel.run("%%remote a --group sweep\nwhile not pathlib.Path('word').exists(): time.sleep(0.005)")
    second = kernel.run("%%remote b --group sweep\ntime.sleep(600)")
    assert first.ok, first.error
    look = kernel.run("first = sweep; type(sweep).__name__, sweep.state, [t['name'] for t in sweep.tasks]")
    assert look.result == "('TaskGroup', 'running', ['a', 'b'])"
    kernel.read_state(first, "running")
    kernel.read_state(second, "running")
    assert kernel.run("sweep.cancel(reason='enough'); sweep.wait(), sweep.state").result == "(True, 'cancelled')"
    kernel.read_state(first, "cancelled")
    kernel.read_state(second, "cancelled")
    assert kernel.run("%%remote --wait --group sweep\n40 + 2").result == "42"
    assert kernel.run("sweep is first, sweep.wait(), sweep.state").result == "(False, True, 'completed')"
    assert len(first.of("display_data")) == 1  # the board of the cell, and none beside it
    kernel.run("del sweep, first")


def test_a_group_of_your_own_is_used_with_its_options(kernel: Kernel) -> None:
    """Made, not entered: `fail_fast` and hooks work for its cells."""
    kernel.run(
        "said = []; mine = jt.TaskGroup('any name', fail_fast=True, on_cancellation=[lambda g: said.append(g.name)])"
    )
    kernel.run("%%remote a --group mine\ntime.sleep(600)")
    kernel.run("%%remote b --group mine\n1 / 0")
    assert kernel.run("mine.wait(), mine.state").result == "(True, 'failed')"
    wait_until(lambda: kernel.run("said").result == "['any name']", "the hook was called")
    kernel.run("del mine")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--group number", "'number' holds a int"),
        ("--group not-a-name", "is not a name"),
        ("--group all", "means all tasks"),
        ("both --group both", "both the group's name and"),
        ("-o both --group both", "both the group's name and"),
    ],
)
def test_names_that_cannot_be_a_group(kernel: Kernel, line: str, why: str) -> None:
    """One sentence, and nothing was started."""
    kernel.run("number = 3")
    cell = kernel.run(f"%%remote {line}\nboth = 1")
    assert why in cell.text("stderr")
    assert kernel.run("number, jt.tasks()").result == "(3, [])"


def test_tab_and_help_know_it(kernel: Kernel) -> None:
    """Names of groups after --group, names of tasks and groups after the words of %tasks."""
    kernel.run("%%remote a --group sweep\ntime.sleep(600)")

    def offered(text: str) -> list[str]:
        kernel.client.complete(text, len(text))
        return list(kernel.client.get_shell_msg(timeout=60)["content"]["matches"])

    assert offered("%%remote b --group sw") == ["sweep"]
    assert offered("%tasks cancel sw") == ["sweep"]
    assert offered("%tasks sto") == ["story"]
    assert "--group NAME" in kernel.run("%remote --help").text()
    kernel.run("del sweep")


def test_local_mode_has_groups_in_the_notebook(kernel: Kernel) -> None:
    """A cell in place is a member, too; a cancelled group runs no more of them."""
    kernel.run("jt.shutdown(); jt.init(local_mode=True)")
    try:
        assert kernel.run("%%remote a --group place\n40 + 2").ok
        assert kernel.run("place.state, jt.get(a)").result == "('completed', 42)"
        kernel.run("stopped = jt.TaskGroup('stopped'); stopped.cancel()")
        cell = kernel.run("%%remote b --group stopped\nran = True")
        assert "TaskCancelledError" in cell.error
        assert kernel.run("stopped.state").result == "'cancelled'"
        slow = kernel.run("jt.get(jt.remote(time.sleep).map([0.4, 0.4]))")
        assert slow.states[-1] == "completed"
        assert "2 of 2 done" in last(slow)
    finally:
        kernel.run("jt.shutdown()\ndel place, stopped")
