"""What a detached task has shown is kept for screens that come later, in bounds. Role: the journal alone."""

from __future__ import annotations

from typing import Any

from jupyter_tasks.supervisor.detachment import MOST_OUTPUTS, MOST_RICH, MOST_TEXT, Journal
from jupyter_tasks.wire.frames import HEADER, HEADER_SIZE, Kind, from_json, to_json

ID = 7


def rich(data: str, display_id: str = "", type: str = "display_data") -> bytes:
    transient = {"display_id": display_id} if display_id else {}
    return to_json({"type": type, "content": {"data": {"text/html": data}, "metadata": {}, "transient": transient}})


def clear(*, wait: bool) -> bytes:
    return to_json({"type": "clear_output", "content": {"wait": wait}})


def shown(journal: Journal) -> list[Any]:
    """What would be sent: text as str, rich output as its HTML in a list, progress as a dict."""
    words: list[Any] = []
    for frame in journal.frames(ID):
        _, kind, _, _, _, id = HEADER.unpack_from(frame)
        assert id == ID
        body = frame[HEADER_SIZE:]
        if kind == Kind.OUTPUT:
            words.append(body.decode())
        elif kind == Kind.DISPLAY:
            words.append([from_json(body)["content"]["data"]["text/html"]])
        else:
            words.append(from_json(body))
    return words


def test_text_and_outputs_keep_their_order() -> None:
    """A screen that comes later shows the same as one that was there."""
    journal = Journal()
    journal.take_text(b"one", stderr=False)
    journal.take(Kind.DISPLAY, rich("plot"))
    journal.take_text(b"two", stderr=True)
    assert shown(journal) == ["one", ["plot"], "two"]
    assert journal.outputs == 1


def test_of_long_text_the_end_is_kept() -> None:
    """A task may print for days; of one long write the end stays, too."""
    journal = Journal()
    journal.take(Kind.DISPLAY, rich("plot"))
    for i in range(3 * MOST_TEXT // 10):
        journal.take_text(f"{i:9}\n".encode(), stderr=False)
    words = shown(journal)
    text = "".join(word for word in words if isinstance(word, str))
    assert len(text) <= MOST_TEXT
    assert text.endswith(f"{3 * MOST_TEXT // 10 - 1:9}\n")
    assert ["plot"] in words, "text does not displace outputs"
    journal.take_text(b"x" * (2 * MOST_TEXT) + b"end", stderr=False)
    text = "".join(word for word in shown(journal) if isinstance(word, str))
    assert len(text) == MOST_TEXT
    assert text.endswith("xend")


def test_the_last_outputs_are_kept() -> None:
    """As many as a board shows, and no more bytes than a supervisor should hold."""
    journal = Journal()
    for i in range(MOST_OUTPUTS + 3):
        journal.take(Kind.DISPLAY, rich(str(i)))
    assert shown(journal) == [[str(i)] for i in range(3, MOST_OUTPUTS + 3)]
    journal.take(Kind.DISPLAY, rich("y" * (MOST_RICH // 2)))
    journal.take(Kind.DISPLAY, rich("z" * (MOST_RICH // 2)))
    assert [word[0][0] for word in shown(journal)] == ["z"]
    assert journal.outputs == 1


def test_an_updated_output_is_one() -> None:
    """A plot that is drawn anew ten times a second takes the place of itself."""
    journal = Journal()
    journal.take(Kind.DISPLAY, rich("0", "plot"))
    journal.take_text(b"text", stderr=False)
    for i in range(1, 1000):
        journal.take(Kind.DISPLAY, rich(str(i), "plot", "update_display_data"))
    assert shown(journal) == [["999"], "text"]
    journal.take(Kind.DISPLAY, rich("nobody has it", "other", "update_display_data"))
    assert shown(journal) == [["999"], "text"]


def test_clear_output_clears() -> None:
    """At once, or with `wait` when something new comes."""
    journal = Journal()
    journal.take_text(b"old", stderr=False)
    journal.take(Kind.DISPLAY, clear(wait=True))
    assert shown(journal) == ["old"]
    journal.take(Kind.DISPLAY, rich("new"))
    assert shown(journal) == [["new"]]
    journal.take(Kind.DISPLAY, clear(wait=False))
    assert shown(journal) == []
    assert journal.outputs == 0


def test_bars_are_kept_as_they_are_now() -> None:
    """Of each bar the last word; inner ones that are done are gone."""
    journal = Journal()
    for n in range(5):
        journal.take(Kind.PROGRESS, to_json({"id": 1, "n": n, "parent": None}))
        journal.take(Kind.PROGRESS, to_json({"id": 2, "n": n, "parent": 1, "done": n == 4}))
    assert shown(journal) == [{"id": 1, "n": 4, "parent": None}]


def test_words_that_show_nothing_are_not_kept() -> None:
    """The end of a cell, say, is told to who waits for it."""
    journal = Journal()
    journal.take(Kind.DISPLAY, to_json({"type": "over", "content": {}}))
    assert shown(journal) == []
