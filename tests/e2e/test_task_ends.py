"""End to end: the other ways in which a task ends: its timeout, its memory limit, a crash, an error; and retries.

Promises: docs/semantics.md, Ends and Errors.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import words

import jupyter_tasks as jt
from jupyter_tasks.exceptions import (
    JupyterTasksError,
    OutOfMemoryError,
    TaskCancelledError,
    TaskError,
    TaskTimeoutError,
    WorkerCrashedError,
)

pytestmark = pytest.mark.usefixtures("session")

NET = 10.0
LONG = 30.0
MB = 10**6


def raised(ref: jt.ObjectRef) -> BaseException:
    with pytest.raises(JupyterTasksError) as caught:
        jt.get(ref, timeout=NET)
    return caught.value


def record_of(ref: jt.ObjectRef) -> dict[str, Any]:
    return next(task for task in jt.tasks() if task["task_id"] == ref.task_id)


# -- timeout ------------------------------------------------------------------------------------------------------------


def test_a_timeout_is_a_failure_and_a_timeout_error() -> None:
    ref = jt.remote(time.sleep).options(timeout=0.2).remote(LONG)
    began = time.monotonic()
    error = raised(ref)
    took = time.monotonic() - began
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, TaskCancelledError)
    assert (error.timeout, error.rung, error.name) == (0.2, "interrupt", "sleep")
    assert 0.2 <= took < NET
    assert record_of(ref)["state"] == "failed"


def test_a_timeout_is_not_retried(tmp_path: Path) -> None:
    def task(path: str) -> None:
        words.mark(path)
        time.sleep(LONG)

    ref = jt.remote(task).options(timeout=0.1, max_retries=5, retry_exceptions=True).remote(str(tmp_path / "ran"))
    assert isinstance(raised(ref), TaskTimeoutError)
    jt.get([jt.remote(abs).remote(-1) for _ in range(8)])
    assert words.marks(tmp_path / "ran") == 1


def test_a_timeout_lets_the_task_clean_up_and_then_ends_it(tmp_path: Path) -> None:
    def task(place: str) -> None:
        for i in range(100):
            try:
                time.sleep(LONG)
            except KeyboardInterrupt:
                words.say(f"{place}/caught{i}", jt.get_runtime_context().is_canceled())

    ref = jt.remote(task).options(timeout=0.1, grace=0.2).remote(str(tmp_path))
    error = raised(ref)
    assert isinstance(error, TaskTimeoutError)
    assert error.rung == "terminate"
    assert words.hear(tmp_path / "caught0", 0) == "True"


def test_a_value_in_spite_of_the_timeout_counts() -> None:
    def task() -> str:
        try:
            time.sleep(LONG)
        except KeyboardInterrupt:
            pass
        return "what there is"

    assert jt.get(jt.remote(task).options(timeout=0.1).remote(), timeout=NET) == "what there is"


def test_waiting_for_a_slot_does_not_count(tmp_path: Path) -> None:
    def busy(word: str, go: str) -> None:
        words.say(word)
        words.hear(go)

    refs = [jt.remote(busy).remote(str(tmp_path / f"in{i}"), str(tmp_path / "go")) for i in (0, 1)]
    for i in (0, 1):
        words.hear(tmp_path / f"in{i}")
    ref = jt.remote(lambda: "in time").options(timeout=1.0).remote()
    time.sleep(1.1)
    words.say(tmp_path / "go")
    assert jt.get(ref, timeout=NET) == "in time"
    jt.get(refs)


def test_a_timeout_ends_c_code_too() -> None:
    ref = jt.remote(sum).options(timeout=0.1, grace=0.1).remote(range(10**11))
    error = raised(ref)
    assert isinstance(error, TaskTimeoutError)
    assert error.rung in ("terminate", "kill")


# -- memory -------------------------------------------------------------------------------------------------------------------


def test_too_much_memory_says_how_much_and_is_not_retried(tmp_path: Path) -> None:
    def task(path: str) -> None:
        words.mark(path)
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1)) * (2 * MB))
            time.sleep(0.001)

    ref = jt.remote(task).options(memory=80 * MB, max_retries=5).remote(str(tmp_path / "ran"))
    error = raised(ref)
    assert isinstance(error, OutOfMemoryError)
    assert error.limit == 80 * MB
    assert error.limit < error.used < 3 * error.limit
    assert f"used {error.used / MB:.1f} MB of limit 80.0 MB" in str(error)
    assert record_of(ref)["state"] == "crashed"
    assert words.marks(tmp_path / "ran") == 1


def test_the_memory_of_children_counts(tmp_path: Path) -> None:
    def task(place: str) -> None:
        import subprocess

        program = "import sys, time; x = bytearray(150 * 10**6); open(sys.argv[1], 'w').close(); time.sleep(30)"
        subprocess.run([sys.executable, "-c", program, f"{place}/in"], check=False)

    ref = jt.remote(task).options(memory=100 * MB).remote(str(tmp_path))
    assert isinstance(raised(ref), OutOfMemoryError)


def test_shared_arguments_do_not_count() -> None:
    np = pytest.importorskip("numpy")

    def task(array: Any) -> float:
        total = float(array.sum())
        time.sleep(0.2)  # twenty looks at its memory
        return total

    array = np.ones(25 * MB)  # 200 MB
    assert jt.get(jt.remote(task).options(memory=150 * MB).remote(array), timeout=NET) == 25 * MB


# -- crashes -----------------------------------------------------------------------------------------------------------------


def leave_with_exit() -> NoReturn:
    sys.exit(3)


def leave_with_text() -> NoReturn:
    sys.exit("a reason")


def leave_quietly() -> NoReturn:
    sys.exit()


def leave_at_once() -> NoReturn:
    os._exit(4)


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def killed_from_outside() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def too_deep() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize(
    ("crash", "exit_code", "signal_name"),
    [
        (leave_with_exit, 3, None),
        (leave_with_text, 1, None),
        (leave_quietly, 0, None),
        (leave_at_once, 4, None),
        (segfault, None, "SIGSEGV"),
        (abort, None, "SIGABRT"),
        (killed_from_outside, None, "SIGKILL"),
        (too_deep, None, "SIGBUS"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_crash_says_how_and_harms_nobody_else(
    crash: Callable[[], None], exit_code: int | None, signal_name: str | None
) -> None:
    others = [jt.remote(abs).remote(-i) for i in range(30)]
    ref = jt.remote(crash).options(max_retries=0).remote()
    others += [jt.remote(abs).remote(-i) for i in range(30)]
    error = raised(ref)
    assert type(error) is WorkerCrashedError
    assert (error.exit_code, error.signal_name) == (exit_code, signal_name)
    assert (signal_name or f"exit code {exit_code}") in str(error)
    assert error.name == crash.__name__
    assert record_of(ref)["state"] == "crashed"
    assert jt.get(others, timeout=NET) == [*range(30), *range(30)]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_crash_is_retried_as_often_as_allowed(max_retries: int, tmp_path: Path) -> None:
    def task(path: str) -> NoReturn:
        words.mark(path)
        os._exit(1)

    ref = jt.remote(task).options(max_retries=max_retries).remote(str(tmp_path / "ran"))
    assert isinstance(raised(ref), WorkerCrashedError)
    assert words.marks(tmp_path / "ran") == 1 + max_retries


def test_crashes_are_retried_three_times_by_default_and_errors_never(tmp_path: Path) -> None:
    def crash(path: str) -> NoReturn:
        words.mark(path)
        os._exit(1)

    def fail(path: str) -> NoReturn:
        words.mark(path)
        raise ValueError("no")

    assert isinstance(raised(jt.remote(crash).remote(str(tmp_path / "crashes"))), WorkerCrashedError)
    assert isinstance(raised(jt.remote(fail).remote(str(tmp_path / "errors"))), ValueError)
    assert words.marks(tmp_path / "crashes") == 4
    assert words.marks(tmp_path / "errors") == 1


def test_a_retry_that_works_is_a_value(tmp_path: Path) -> None:
    def task(path: str) -> str:
        words.mark(path)
        if words.marks(path) < 3:
            os._exit(1)
        return "third time lucky"

    ref = jt.remote(task).remote(str(tmp_path / "ran"))
    assert jt.get(ref, timeout=NET) == "third time lucky"
    assert record_of(ref)["attempt"] == 2


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [(True, 3), ([ValueError], 3), ((KeyError, ValueError), 3), ([Exception], 3), ([KeyError], 1), (False, 1)],
)
def test_errors_are_retried_when_asked_for(wanted: Any, runs: int, tmp_path: Path) -> None:
    def task(path: str) -> NoReturn:
        words.mark(path)
        raise ValueError("no")

    ref = jt.remote(task).options(max_retries=2, retry_exceptions=wanted).remote(str(tmp_path / "ran"))
    assert isinstance(raised(ref), ValueError)
    assert words.marks(tmp_path / "ran") == runs


def test_big_arguments_survive_a_retry(tmp_path: Path) -> None:
    def task(path: str, data: bytes, other: bytes) -> int:
        words.mark(path)
        if words.marks(path) < 2:
            os._exit(1)
        return len(data) + len(other)

    ref = jt.remote(task).remote(str(tmp_path / "ran"), b"x" * 300_000, jt.put(b"y" * 200_000))
    assert jt.get(ref, timeout=NET) == 500_000


# -- errors -------------------------------------------------------------------------------------------------------------------


class OwnError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class StubbornError(Exception):
    """Cannot be unpickled: its __init__ wants more than its args hold."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")

    def __reduce__(self) -> Any:
        return StubbornError, (1,)


class Unsendable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no way")


def fail_with(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        KeyError("k"),
        FileNotFoundError(2, "No such file", "/nowhere"),
        StopIteration(5),
        ZeroDivisionError("z"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        OSError("plain"),
        AssertionError(),
        Exception("e", 1, [2]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_an_instance_of_its_own_type_and_of_task_error(error: Exception) -> None:
    def task() -> NoReturn:
        raise error

    caught = raised(jt.remote(task).remote())
    assert isinstance(caught, type(error))
    assert isinstance(caught, TaskError)
    assert str(caught) == str(error)
    assert caught.cause is not None
    assert caught.cause.args == error.args
    assert caught.type_name == type(error).__name__
    assert "in task" in caught.traceback_text
    assert "raise error" in caught.traceback_text


def test_an_os_error_keeps_its_file_name() -> None:
    def task() -> None:
        open("/nowhere")

    caught = raised(jt.remote(task).remote())
    assert isinstance(caught, FileNotFoundError)
    assert (caught.errno, caught.filename) == (2, "/nowhere")


def test_an_own_exception_keeps_its_attributes() -> None:
    def task() -> NoReturn:
        error = OwnError.__new__(OwnError, "text")
        error.args = ("text",)
        error.code = 7
        error.add_note("a note") if hasattr(error, "add_note") else None
        raise error

    caught = raised(jt.remote(task).remote())
    assert isinstance(caught, TaskError)
    assert caught.type_name == "OwnError"
    assert "text" in str(caught)


@pytest.mark.parametrize("kind", ["does not load", "cannot be sent", "local class with a lock"])
def test_an_exception_that_cannot_cross_keeps_its_name_text_and_traceback(kind: str) -> None:
    def task(kind: str) -> NoReturn:
        import threading

        if kind == "does not load":
            raise StubbornError(1, 2)
        if kind == "cannot be sent":
            raise Unsendable("some text")
        error = ValueError("some text")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    caught = raised(jt.remote(task).remote(kind))
    assert type(caught) is TaskError
    expected = {"does not load": "StubbornError: 1 and 2", "cannot be sent": "Unsendable: some text"}
    assert str(caught) == expected.get(kind, "ValueError: some text")
    assert caught.type_name == str(caught).split(":")[0]
    assert "in task" in caught.traceback_text


def test_a_failing_str_does_no_harm() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("mute")

    def task() -> NoReturn:
        raise Mute

    caught = raised(jt.remote(task).remote())
    assert isinstance(caught, TaskError)
    assert caught.type_name == "Mute"


def test_the_workers_traceback_is_printed_above_the_error() -> None:
    import traceback

    def inner() -> NoReturn:
        raise ValueError("deep down")

    def task() -> None:
        inner()

    caught = raised(jt.remote(task).remote())
    text = "".join(traceback.format_exception(caught))
    assert "in inner" in text
    assert 'raise ValueError("deep down")' in text
    assert "execution.py" not in text  # our own frames say nothing about the task
    assert text.index("in inner") < text.rindex("deep down")


def test_a_task_error_crosses_tasks_and_stays_what_it_is() -> None:
    def first() -> NoReturn:
        raise KeyError("root")

    def second(x: object) -> object:
        return x

    caught = raised(jt.remote(second).remote(jt.remote(second).remote(jt.remote(first).remote())))
    assert isinstance(caught, KeyError)
    assert caught.name == "first" or "in first" in caught.traceback_text
    again = pickle.loads(pickle.dumps(caught))
    assert isinstance(again, KeyError)
    assert str(again) == str(caught)


def test_a_cancelled_dependency_stays_a_cancel(tmp_path: Path) -> None:
    def first(word: str) -> None:
        words.say(word)
        time.sleep(LONG)

    def second(x: object) -> object:
        return x

    root = jt.remote(first).remote(str(tmp_path / "in"))
    leaf = jt.remote(second).remote(jt.remote(second).remote(root))
    words.hear(tmp_path / "in")
    jt.cancel(root, reason="the root")
    for ref in (root, leaf):
        error = raised(ref)
        assert type(error) is TaskCancelledError
        assert (error.reason, error.name) == ("the root", "first")
    assert record_of(leaf)["state"] == "cancelled"


def test_a_crashed_dependency_keeps_its_root_cause() -> None:
    def second(x: object) -> object:
        return x

    error = raised(jt.remote(second).remote(jt.remote(leave_at_once).options(max_retries=0).remote()))
    assert type(error) is WorkerCrashedError
    assert (error.exit_code, error.name) == (4, "leave_at_once")


def test_an_error_with_a_very_long_text_arrives() -> None:
    caught = raised(jt.remote(fail_with).remote(ValueError("x" * 1_000_000)))
    assert isinstance(caught, TaskError)
    assert "xxx" in str(caught)


def test_endless_recursion_is_an_ordinary_error() -> None:
    def task(n: int = 0) -> int:
        return task(n + 1)

    assert isinstance(raised(jt.remote(task).remote()), RecursionError)
