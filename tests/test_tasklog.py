"""The log of a task: everything in the file, as much as a screen can take to the owner. Role: contract.

Promise: a task that prints a gigabyte harms neither kernel nor browser, the full log stays readable, truncation is said.
"""

from __future__ import annotations

from pathlib import Path

from jupyter_tasks.supervisor.tasklog import BURST, RATE, TAIL, TaskLog


def shown(pieces: list[tuple[bytes, bool]]) -> bytes:
    return b"".join(data for data, _ in pieces)


def test_little_output_goes_through_as_it_is(tmp_path: Path) -> None:
    log = TaskLog(str(tmp_path / "1.log"), "1")
    assert log.write(b"one\n", 0.0, stderr=False) == [(b"one\n", False)]
    assert log.write(b"two\n", 0.0, stderr=True) == [(b"two\n", True)]
    assert log.rest() == []
    log.close()
    assert (tmp_path / "1.log").read_bytes() == b"one\ntwo\n"


def test_a_flood_is_held_back_said_and_its_end_shown(tmp_path: Path) -> None:
    """The owner gets BURST, a line that counts what is missing, and the last lines; the file has all."""
    log = TaskLog(str(tmp_path / "1.log"), "1")
    line = b"x" * 63 + b"\n"
    sent = b""
    for i in range(100_000):
        sent += shown(log.write(line, i * 1e-6, stderr=False))
    sent += shown(log.write(b"the end\n", 0.1, stderr=False))
    sent += shown(log.rest())
    log.close()
    assert len(sent) < BURST + RATE + TAIL + 200
    assert b"bytes not shown here; all of it: %tasks logs 1" in sent
    assert sent.endswith(b"the end\n")
    assert (tmp_path / "1.log").stat().st_size == 100_000 * 64 + 8
    missing = int(sent.partition(b"[... ")[2].partition(b" bytes")[0].replace(b",", b""))
    note = sent[sent.index(b"\n[... ") : sent.index(b"1]\n") + 3]
    assert missing + len(sent) - len(note) == log.size


def test_the_budget_refills_with_time(tmp_path: Path) -> None:
    """A task that prints steadily below RATE is never cut."""
    log = TaskLog(str(tmp_path / "1.log"), "1")
    log.write(b"x" * BURST, 0.0, stderr=False)
    for second in range(1, 50):
        assert log.write(b"y" * (RATE // 2), float(second), stderr=False)
    log.close()


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """Output still reaches the owner; the note tells where the log ends."""
    log = TaskLog(str(tmp_path / "no" / "such" / "place.log"), "1")
    assert log.write(b"words\n", 0.0, stderr=False) == [(b"words\n", False)]
    log.write(b"z" * (2 * BURST), 0.0, stderr=False)
    assert b"the log ends after 0 bytes" in shown(log.rest())
