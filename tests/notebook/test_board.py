"""The board as a pure thing: words in, text, HTML and JSON out. Role: contract of the notebook layer.

Promises: a board never runs ahead of the supervisor's word; what a task writes is shown as a terminal would; a saved
notebook keeps text and HTML; nothing of the user's can break the HTML.
"""

from __future__ import annotations

import pytest

from jupyter_tasks.notebook.board import BOARD_MIME, LOG_TAIL, MOST_DISPLAYS, Board, LogText, strip_ansi


def written(*pieces: str) -> str:
    text = LogText()
    for piece in pieces:
        text.write(piece)
    return strip_ansi(str(text))


def event(state: str, elapsed: float = 0.0, **more: object) -> dict[str, object]:
    return {"state": state, "elapsed_s": elapsed, "lingers": False, "attempt": 0, "waiting_for": [], **more}


@pytest.mark.parametrize(
    ("log", "text", "expected"),
    [
        ("", "plain\n", "plain\n"),
        ("a\n", "1%\r2%\r3%", "a\n3%"),
        ("a\n10%", "\r9%", "a\n9%%"),  # a shorter line leaves the rest of the longer one, as in a terminal
        ("", "50%\r\nnext", "50%\nnext"),
        ("abc", "\x08\x08X", "aXc"),
        ("line", "\n\r\n", "line\n\n"),
        ("old\nkeep", "\rNEW\nmore", "old\nNEWp\nmore"),
    ],
)
def test_carriage_returns_overwrite_their_line(log: str, text: str, expected: str) -> None:
    """As a terminal does it, so that progress bars of any library take one line."""
    assert written(log, text) == expected


def test_overwriting_does_not_depend_on_where_pieces_are_cut() -> None:
    """Output arrives in arbitrary pieces."""
    whole = "start\n1/3\r2/3\r3/3 done\nabc\x08\x08\x08xyz\rQ\n"
    expected = written(whole)
    assert expected == "start\n3/3 done\nQyz\n"
    for cut in range(len(whole)):
        assert written(whole[:cut], whole[cut:]) == expected, cut


def test_state_is_the_supervisors_word() -> None:
    """Nothing but an event changes it; time goes on only while the task runs."""
    board = Board("7", "train")
    board.take_text("noise")
    board.take_progress({"id": 1, "label": "", "n": 3, "total": 3, "done": True, "parent": None})
    assert board.state == "pending"
    board.take_event(event("running", 1.0), now=100.0)
    assert board.seconds(102.0) == 3.0
    board.take_event(event("completed", 5.0), now=200.0)
    assert board.seconds(999.0) == 5.0
    assert board.headline(999.0) == "[train] completed after 5.00 s"


def test_headline_says_what_it_waits_for() -> None:
    """A pending board names its dependencies, or who holds the slots."""
    board = Board("7", "b")
    board.take_event(event("pending", waiting_for=["load", "4"]), now=0.0)
    assert "waits for load, 4" in board.headline(0.0)
    board.take_event(event("pending", slots_held_by=["train", "load"]), now=0.0)
    assert "slots are held by train, load" in board.headline(0.0)


def test_cancelling_says_who_asked_and_where_on_the_ladder() -> None:
    board = Board("7", "b")
    board.take_event(event("cancelling", 1.0, source="user", rung="interrupt"), now=0.0)
    assert "asked by user, now at interrupt" in board.headline(0.0)


def test_bundle_has_text_html_and_our_mime_type() -> None:
    """So that a viewer without our code shows something true."""
    board = Board("7", "train")
    board.take_event(event("failed", 1.5), now=0.0)
    board.error = "ValueError: <b>"
    bundle = board.bundle(0.0)
    assert bundle[BOARD_MIME]["state"] == "failed"
    assert bundle[BOARD_MIME]["elapsed_s"] == 1.5
    assert bundle["text/plain"].endswith("ValueError: <b>")
    assert "ValueError: &lt;b&gt;" in bundle["text/html"]


def test_what_the_user_writes_cannot_break_the_html() -> None:
    board = Board("7", "<script>alert(1)</script>")
    board.take_text("<script>x</script> & \x1b[31mred\x1b[0m\n")
    board.take_progress(
        {"id": 1, "label": "<i>", "n": 1, "total": 2, "done": False, "parent": None, "unit": "<u>", "rate": 1}
    )
    html = board.html(0.0)
    assert "<script>" not in html
    assert "<i>" not in html
    assert "<u>" not in html
    assert "red" in html
    assert "\x1b" not in html


def test_a_long_log_is_bounded() -> None:
    """The board keeps the end; all of it is in the log."""
    board = Board("7", "b")
    for i in range(10_000):
        board.take_text(f"line {i}\n")
    assert len(str(board.log)) <= LOG_TAIL
    assert "line 9999" in board.text(0.0)
    assert len(board.text(0.0)) < LOG_TAIL + 200
    for shown in (board.text(0.0), board.html(0.0)):
        assert "the end of the output; more of it: %tasks logs 7]" in shown


def test_displays_are_kept_updated_and_bounded() -> None:
    """display, update_display and clear_output as a cell would see them."""
    board = Board("7", "b")
    board.take_display("display_data", {"data": {"text/plain": "one"}, "transient": {"display_id": "d"}})
    board.take_display("display_data", {"data": {"text/html": "<p>two</p>", "text/plain": "two"}})
    board.take_display("update_display_data", {"data": {"text/plain": "ONE"}, "transient": {"display_id": "d"}})
    assert [data["text/plain"] for _, data, _ in board.displays] == ["ONE", "two"]
    assert "<p>two</p>" in board.html(0.0)
    board.take_display("clear_output", {"wait": True})
    assert len(board.displays) == 2
    board.take_text("after")
    assert board.displays == []
    for i in range(MOST_DISPLAYS + 10):
        board.take_display("display_data", {"data": {"text/plain": str(i)}})
    assert len(board.displays) == MOST_DISPLAYS


def test_pictures_are_embedded() -> None:
    """The picture is in the saved notebook itself."""
    board = Board("7", "b")
    board.take_display("display_data", {"data": {"image/png": "aGVsbG8=\n", "text/plain": "<Figure>"}})
    assert 'src="data:image/png;base64,aGVsbG8="' in board.html(0.0)


def test_inner_bars_go_when_they_are_done() -> None:
    """Ten thousand inner loops leave one bar."""
    board = Board("7", "b")
    board.take_progress({"id": 1, "label": "outer", "n": 0, "total": 9, "done": False, "parent": None})
    for i in range(2, 50):
        board.take_progress({"id": i, "label": "inner", "n": 5, "total": 5, "done": False, "parent": 0})
        board.take_progress({"id": i, "label": "inner", "n": 5, "total": 5, "done": True, "parent": 0})
    assert list(board.bars) == [1]
