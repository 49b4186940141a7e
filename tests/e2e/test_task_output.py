"""End to end: what a task writes is captured whole, in order, under the right task, and harms nobody.

Role: descriptors 1 and 2 of the worker, from Python, C and subprocesses, up to the log file and the driver's own streams.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import words
from conftest import Screen, status, wait_until

import jupyter_tasks as jt
from jupyter_tasks.exceptions import ForceCancelledError, WorkerCrashedError
from jupyter_tasks.session import current_client

pytestmark = pytest.mark.usefixtures("session")

NET = 20.0
LONG = 30.0


def log_of(ref: jt.ObjectRef) -> str:
    """All that the task wrote, both streams in one, as the log file has it."""
    answer = current_client().request("logs", id=ref.id)
    return Path(answer["path"]).read_text(errors="replace") if answer else ""


def ran(function: Any, *args: Any, **options: Any) -> jt.ObjectRef:
    ref = jt.remote(function).options(**options).remote(*args)
    jt.get(ref, timeout=NET)
    return ref


def shown(screen: Screen, out: str, err: str = "") -> None:
    """The driver's own streams have shown this by now, or soon."""
    end = time.monotonic() + NET
    while (seen := (screen.out.getvalue(), screen.err.getvalue())) != (out, err):
        if time.monotonic() > end:
            assert seen == (out, err)
        time.sleep(0.005)


def test_print_is_shown_and_kept() -> None:
    with Screen() as screen:
        ref = ran(lambda: print("hello", "wörld", "🐍"))
        assert log_of(ref) == "hello wörld 🐍\n"
        shown(screen, "hello wörld 🐍\n")


def test_both_streams_in_order() -> None:
    with Screen() as screen:

        def task() -> None:
            for i in range(20):
                print(f"out {i}")
                print(f"err {i}", file=sys.stderr)
                os.write(1, b"raw out\n")
                os.write(2, b"raw err\n")

        def expected(kinds: tuple[str, ...]) -> str:
            lines = [(f"out {i}", f"err {i}", "raw out", "raw err") for i in range(20)]
            return "".join(
                f"{line}\n" for group in lines for line, kind in zip(group, "oeoe", strict=True) if kind in kinds
            )

        ref = ran(task)
        text = log_of(ref)
        # Python's streams are in order with each other; what goes round them, straight to a descriptor, keeps its own.
        python = [line for line in text.splitlines() if not line.startswith("raw")]
        assert python == [f"{kind} {i}" for i in range(20) for kind in ("out", "err")]
        shown(screen, expected(("o",)), expected(("e",)))


def test_c_level_and_subprocess_output_is_captured_in_order() -> None:
    with Screen() as screen:

        def task() -> None:
            import ctypes

            print("python")
            libc = ctypes.CDLL(None)
            libc.puts(b"from C")
            libc.fflush(None)
            subprocess.run([sys.executable, "-c", "print('from a subprocess')"], check=True)
            os.system("echo from a shell")
            print("python again")

        ref = ran(task)
        expected = "python\nfrom C\nfrom a subprocess\nfrom a shell\npython again\n"
        assert log_of(ref) == expected
        shown(screen, expected)


def test_text_without_a_newline_and_odd_bytes() -> None:
    def task() -> None:
        print("no newline", end="")
        sys.stdout.write("")
        os.write(1, b"\xff\xfe")
        print("\udcff surrogate")

    ref = ran(task)
    raw = Path(current_client().request("logs", id=ref.id)["path"]).read_bytes()
    assert raw == b"no newline\xff\xfe\\udcff surrogate\n"


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "import ctypes; ctypes.string_at(0)", "os.abort()"]
)
def test_a_sudden_end_loses_no_printed_line(end: str) -> None:
    def task(end: str) -> None:
        import os  # noqa: F401  # for the ending

        for i in range(1000):
            print(f"line {i}")
        print("last words", file=sys.stderr)
        exec(end)

    ref = jt.remote(task).options(max_retries=0).remote(end)
    with pytest.raises(WorkerCrashedError):
        jt.get(ref, timeout=NET)
    printed = "".join(f"line {i}\n" for i in range(1000)) + "last words\n"
    assert log_of(ref).startswith(printed)  # with `-X faulthandler` Python's own last words follow


def test_a_kill_loses_no_printed_line(tmp_path: Path) -> None:
    def task(word: str) -> None:
        print("printed before")
        words.say(word)
        time.sleep(LONG)

    ref = jt.remote(task).remote(str(tmp_path / "in"))
    words.hear(tmp_path / "in")
    jt.cancel(ref, force=True)
    with pytest.raises(ForceCancelledError):
        jt.get(ref, timeout=NET)
    assert log_of(ref) == "printed before\n"


def test_each_line_belongs_to_the_task_that_wrote_it() -> None:
    """Tiny tasks one after another in one packet: the next one may begin only when the last one's words are read."""

    def task(i: int) -> None:
        if i % 3:
            print(f"task {i}", file=sys.stderr if i % 2 else sys.stdout)

    remote = jt.remote(task)
    refs = [remote.remote(i) for i in range(300)]
    jt.get(refs, timeout=NET)
    assert [log_of(ref) for ref in refs] == [f"task {i}\n" if i % 3 else "" for i in range(300)]


def test_output_is_shown_while_the_task_runs(tmp_path: Path) -> None:
    with Screen() as screen:

        def task(go: str) -> None:
            print("early")
            words.hear(go)

        ref = jt.remote(task).remote(str(tmp_path / "go"))
        shown(screen, "early\n")
        words.say(tmp_path / "go")
        jt.get(ref, timeout=NET)


def test_user_code_that_breaks_its_streams_harms_only_itself() -> None:
    def vandal(how: str) -> None:
        if how == "close":
            sys.stdout.close()
            sys.stderr.close()
        elif how == "replace":
            sys.stdout = sys.stderr = None  # type: ignore[assignment]
        elif how == "redirect":
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
        elif how == "descriptors":
            os.close(0)
            os.close(1)
            os.close(2)

    for how in ("close", "replace", "redirect", "descriptors"):
        try:
            jt.get([jt.remote(vandal).remote(how) for _ in range(4)], timeout=NET)
        except jt.exceptions.JupyterTasksError:
            pass  # its own fault
        refs = [jt.remote(lambda i: print(f"still here {i}")).remote(i) for i in range(4)]
        jt.get(refs, timeout=NET)
        assert [log_of(ref) for ref in refs] == [f"still here {i}\n" for i in range(4)], how


def test_stdin_is_empty() -> None:
    assert jt.get(jt.remote(lambda: os.read(0, 10)).remote(), timeout=NET) == b""
    with pytest.raises(EOFError):
        jt.get(jt.remote(lambda: input("? ")).remote(), timeout=NET)


def test_two_hundred_megabytes_do_not_hurt() -> None:
    with Screen() as screen:
        line = "x" * 99

        def task() -> int:
            block = "".join(f"{line}\n" for _ in range(10_000))
            for _ in range(200):
                sys.stdout.write(block)
            print("the end")
            return os.getpid()

        began = time.monotonic()
        ref = jt.remote(task).remote()
        round_trips = []
        quick = jt.remote(abs)
        while not jt.wait([ref], timeout=0)[0]:
            before = time.monotonic()
            assert jt.get(quick.remote(-1), timeout=NET) == 1  # the supervisor has time for others
            round_trips.append(time.monotonic() - before)
            assert time.monotonic() - began < 60
        jt.get(ref, timeout=NET)
        took = time.monotonic() - began
        answer = current_client().request("logs", id=ref.id)
        report = f"200 MB in {took:.1f} s; {len(round_trips)} other tasks meanwhile, the slowest {max(round_trips) * 1000:.0f} ms"
        assert answer["bytes"] == 200_000_000 + len("the end\n")
        assert os.path.getsize(answer["path"]) == answer["bytes"]
        with open(answer["path"], "rb") as file:
            file.seek(-9, os.SEEK_END)
            assert file.read() == b"\nthe end\n"
        wait_until(lambda: "\nthe end\n" in screen.out.getvalue(), "the last line is shown")
        print(report, file=sys.__stdout__)
        seen = screen.out.getvalue(), screen.err.getvalue()
        assert len(seen[0]) < 5_000_000, "a screen cannot take 200 MB"
        assert "bytes not shown here; all of it: %tasks logs" in seen[1]
        os.unlink(answer["path"])


def test_logs_go_with_the_session_and_no_descriptor_stays_for_each() -> None:
    before = status()["fds"]
    refs = [jt.remote(lambda i: print(i)).remote(i) for i in range(200)]
    jt.get(refs, timeout=NET)
    assert status()["fds"] < before + 100, "one open log file for each task that ever wrote"
    directory = current_client().settings["directory"]
    assert len([name for name in os.listdir(directory) if name.endswith(".log")]) >= 200
    refs.clear()
    jt.shutdown()
    assert not os.path.exists(directory)
