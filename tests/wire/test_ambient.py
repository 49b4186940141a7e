"""Ambient state follows the kernel and is undone after a task (docs/semantics.md, Cells: Ambient state).

Role: contract of `wire.ambient`. What needs a fresh process gets one: "a kernel" is a process with ipykernel's shell, or
a real kernel where it matters what ipykernel does at its start; "a worker" is a process with the worker's own shell.
The difference goes from one to the other as bytes, as it would in a task.

These processes are forks of four that have imported what takes so long (`_Nursery`); where it matters what is not
imported yet, of those without libraries.
"""

from __future__ import annotations

import builtins
import importlib
import json
import locale
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_tasks.wire import ambient, serialize
from jupyter_tasks.wire.frames import SESSION_MARK

COMMON = """
import contextlib, faulthandler, io, json, os, pickle, sys
faulthandler.dump_traceback_later(50, exit=True)  # a net against hanging
from jupyter_tasks.wire import ambient, serialize
seen = {}
"""
KERNEL = """
from ipykernel.zmqshell import ZMQInteractiveShell
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel does
ip = ZMQInteractiveShell.instance()
base = ambient.base(ip)
def cell(code):
    result = ip.run_cell(code, silent=True)
    result.raise_error()
"""
SEND = """
sent = ambient.difference(base, ambient.take(ip))
seen["parts"] = sorted(sent)
with open(sys.argv[1], "wb") as file:
    data, buffers = serialize.dumps(sent, namespace=ip.user_ns)
    file.write(data)
"""
WORKER = """
from jupyter_tasks.worker.shell import worker_shell
shell = worker_shell()
ip = shell.ip
messages = []
def run(code):
    outcome = shell.run_cell(code, {}, emit=lambda kind, content: messages.append((kind, content)), execution_count=1)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value
def shown():
    return [content["data"] for kind, content in messages if kind in ("execute_result", "display_data")]
def receive():
    with open(sys.argv[1], "rb") as file:
        return serialize.loads(file.read(), namespace=shell.fresh_namespace())
def end():
    ambient.restore(before, ip)
    shell.reset()
    messages.clear()
before = ambient.take(ip)
with contextlib.redirect_stdout(io.StringIO()) as told:
    notes = seen["notes"] = ambient.apply(receive(), ip)
"""


# A process that forks one child for each line it reads, and says how that ended.
NURSERY = """
import json, os, sys
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(fd, target)
        os.environ.clear()
        os.environ.update(order["environ"])
        sys.argv[1:] = order["arguments"]
        status = 1
        try:
            exec(order["code"], {"__name__": "__main__"})
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""
LIBRARIES_AHEAD = "import numpy, pandas, matplotlib.pyplot"
AHEAD = {  # what a kernel and a worker import in any case
    "kernel": "import ipykernel.zmqshell, ipykernel.displayhook, jupyter_tasks.wire.ambient, jupyter_tasks.wire.serialize",
    "worker": "import IPython.core.interactiveshell, jupyter_tasks.worker.shell, jupyter_tasks.wire.serialize",
}


class _Nursery:
    """Where kernels, or workers, come from."""

    def __init__(self, ahead: str) -> None:
        environ = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{ahead}\n{NURSERY}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def run(self, code: str, environ: dict[str, str], arguments: list[str], log: Path) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"code": code, "environ": environ, "arguments": arguments, "log": str(log)}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


_nurseries: dict[str, _Nursery] = {}


@pytest.fixture(scope="module", autouse=True)
def nurseries() -> Iterator[None]:
    yield
    while _nurseries:
        _nurseries.popitem()[1].close()


def child(*scripts: str, file: Path | None = None, warm: bool = False, **env: str | None) -> dict[str, Any]:
    """Runs the scripts in one new process; what they put into `seen`. With `warm` it has the libraries imported."""
    environment = {key: value for key, value in {**os.environ, **env}.items() if value is not None}
    ahead = AHEAD["kernel" if KERNEL in scripts else "worker"] + (f"\n{LIBRARIES_AHEAD}" if warm else "")
    if ahead not in _nurseries:
        _nurseries[ahead] = _Nursery(ahead)
    with tempfile.TemporaryDirectory() as directory:
        answer, log = Path(directory, "answer"), Path(directory, "log")
        last = f"with open({str(answer)!r}, 'w') as answer: json.dump(seen, answer)"
        code = "\n".join([COMMON, *map(textwrap.dedent, scripts), last])
        status = _nurseries[ahead].run(code, environment, [str(file)], log)
        assert status == 0, log.read_text()
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


@pytest.fixture
def follow(tmp_path: Path) -> Any:
    """`follow(kernel, worker)`: what a worker sees after the kernel's user has run something."""

    def both(kernel: str, worker: str, warm: str = "") -> dict[str, Any]:
        file = tmp_path / "sent"
        sender = child(KERNEL, kernel, SEND, file=file, warm="kernel" in warm)
        return {**sender, **child(WORKER, worker, file=file, warm="worker" in warm)}

    return both


@pytest.fixture
def undone() -> Iterator[None]:
    """This process as it was, whatever the test does."""
    before = ambient.take()
    yield
    ambient.restore(before)
    assert not ambient.difference(before, ambient.take())


# --- Nothing changed --------------------------------------------------------------------------------------


def test_nothing_changed_is_an_empty_difference() -> None:
    """Proves: semantics.md, Cells: Ambient state (sent only when changed). Also with the libraries imported."""
    seen = child(
        KERNEL,
        """
        seen["fresh"] = list(ambient.difference(base, ambient.take(ip)))
        import numpy, pandas, matplotlib.pyplot, decimal, random
        seen["imported"] = list(ambient.difference(base, ambient.take(ip)))
        import matplotlib_inline.backend_inline
        seen["joined"] = list(ambient.difference(base, ambient.take(ip)))
        seen["base later"] = list(ambient.difference(ambient.base(ip), ambient.take(ip)))
        """,
    )
    assert seen == {"fresh": [], "imported": [], "joined": [], "base later": []}


def test_a_worker_begins_with_what_base_says() -> None:
    """Proves: semantics.md, Cells: Ambient state. A fresh worker's shell differs in nothing from the defaults."""
    seen = child(
        """
        from jupyter_tasks.worker.shell import worker_shell
        ip = worker_shell().ip
        state = ambient.take(ip)
        seen["changed"] = {name: repr(each) for name, each in state.items() if each and name not in ("environ", "cwd", "path")}
        import numpy, pandas, matplotlib.pyplot
        ambient.restore(state, ip)
        seen["after imports"] = list(ambient.difference(state, ambient.take(ip)))
        """
    )
    assert seen == {"changed": {}, "after imports": []}


def test_importing_the_module_is_light() -> None:
    """Proves: architecture.md, the direction of imports: it is imported everywhere, so it brings no library."""
    code = "import sys, jupyter_tasks.wire.ambient; print([n for n in ('IPython', 'numpy', 'pandas', 'matplotlib') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_neither_take_nor_apply_imports_a_library() -> None:
    """Proves: semantics.md, Cells: Ambient state. Options of what is not imported wait for its import."""
    seen = child(
        """
        before = ambient.take()
        sent = {
            "pandas": ({"display.max_rows": 7}, []), "numpy": ({"precision": 3}, []),
            "rcParams": ({"lines.linewidth": 9.0}, []), "backend": ({"backend": "svg"}, []),
        }
        seen["notes"] = ambient.apply(sent)
        seen["started"] = not ambient.difference(ambient.take(), ambient.take())
        seen["held"] = ambient.take()["pandas"]
        seen["imported"] = [name for name in ("numpy", "pandas", "matplotlib") if name in sys.modules]
        import pandas, numpy, matplotlib
        seen["pandas"] = pandas.get_option("display.max_rows")
        seen["numpy"] = numpy.get_printoptions()["precision"]
        seen["rc"] = [matplotlib.rcParams["lines.linewidth"], matplotlib.rcParams["backend"].lower()]
        seen["finders"] = [type(each).__module__ for each in sys.meta_path if type(each).__module__.startswith("jupyter")]
        ambient.restore(before)
        seen["restored"] = [pandas.get_option("display.max_rows"), numpy.get_printoptions()["precision"], matplotlib.rcParams["lines.linewidth"]]
        """
    )
    assert seen == {
        "notes": [], "started": True, "held": {"display.max_rows": 7}, "imported": [], "pandas": 7, "numpy": 3,
        "rc": [9.0, "svg"], "finders": [], "restored": [60, 8, 1.5],
    }  # fmt: skip


def test_what_waits_is_forgotten_with_the_task() -> None:
    """Proves: semantics.md, Cells: Ambient state. The next cell imports a library as it is."""
    seen = child(
        """
        before = ambient.take()
        ambient.apply({"pandas": ({"display.max_rows": 7}, []), "numpy": ({"precision": 3}, [])})
        ambient.restore(before)
        seen["finders"] = [type(each).__module__ for each in sys.meta_path if type(each).__module__.startswith("jupyter")]
        import numpy
        seen["numpy"] = numpy.get_printoptions()["precision"]
        """
    )
    assert seen == {"finders": [], "numpy": 8}


# --- The process ------------------------------------------------------------------------------------------


def test_environment_there_and_back(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state (os.environ). Added, changed and removed names; nothing else is said."""
    os.environ.update(AMBIENT_CHANGED="1", AMBIENT_GONE="1")
    before = ambient.take()
    os.environ.update(AMBIENT_CHANGED="2", AMBIENT_NEW="ü")
    del os.environ["AMBIENT_GONE"]
    sent = ambient.difference(before, ambient.take())
    assert list(sent) == ["environ"]
    assert {os.fsdecode(key): os.fsdecode(value) for key, value in sent["environ"][0].items()} == {
        "AMBIENT_CHANGED": "2", "AMBIENT_NEW": "ü",
    }  # fmt: skip
    ambient.restore(before)
    assert (os.environ["AMBIENT_CHANGED"], os.environ["AMBIENT_GONE"]) == ("1", "1")
    assert "AMBIENT_NEW" not in os.environ
    assert ambient.apply(sent) == []
    assert (os.environ["AMBIENT_CHANGED"], os.environ["AMBIENT_NEW"]) == ("2", "ü")
    assert "AMBIENT_GONE" not in os.environ
    assert subprocess.check_output(["printenv", "AMBIENT_NEW"]).decode().strip() == "ü"  # and children see it


def test_the_mark_of_the_session_stays(undone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves: semantics.md, Better than Ray, B9: what a task leaves is found by this mark. It is never sent or taken away."""
    monkeypatch.setenv(SESSION_MARK, "worker")
    worker = ambient.take()
    monkeypatch.delenv(SESSION_MARK)
    kernel = ambient.take()
    assert ambient.difference(worker, kernel) == ambient.difference(kernel, worker) == {}
    ambient.restore(worker)  # the cell said os.environ.clear()
    assert os.environ[SESSION_MARK] == "worker"


def test_what_the_shells_set_is_not_sent_but_the_user_wins() -> None:
    """Proves: semantics.md, Cells: Ambient state (os.environ). The worker's shell sets some names over the inherited ones."""
    seen = child(
        KERNEL,
        """
        seen["untouched"] = list(ambient.difference(ambient.base(ip), ambient.take(ip)))
        os.environ["PAGER"] = "less"
        del os.environ["FORCE_COLOR"]
        changed, gone = ambient.difference(ambient.base(ip), ambient.take(ip))["environ"]  # a session that starts now
        seen["early"] = [{os.fsdecode(k): os.fsdecode(v) for k, v in changed.items()}, [os.fsdecode(k) for k in gone]]
        os.environ["MPLBACKEND"] = "agg"
        seen["late"] = sorted(os.fsdecode(key) for key in ambient.difference(base, ambient.take(ip))["environ"][0])
        """,
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    )
    assert seen == {"untouched": [], "early": [{"PAGER": "less"}, ["FORCE_COLOR"]], "late": ["MPLBACKEND", "PAGER"]}


def test_working_directory_and_path(undone: None, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state (cwd, sys.path). The order counts; "" means the kernel's directory."""
    before = ambient.take()
    os.chdir(tmp_path)
    sys.path.reverse()
    sent = ambient.difference(before, ambient.take())
    wanted = list(sys.path)
    assert sorted(sent) == ["cwd", "path"]
    ambient.restore(before)
    assert os.getcwd() == before["cwd"]["cwd"]
    assert tuple(sys.path) == before["path"]["path"][0]
    assert ambient.apply(sent) == []
    assert (os.getcwd(), sys.path) == (str(tmp_path), wanted)


def test_a_path_with_the_working_directory_follows_it_and_comes_home_as_it_was(undone: None, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state (sys.path). Workers begin with an absolute path in the place of ""."""
    kernel = ["", "/a"]
    worker = [os.getcwd(), "/a"]
    sys.path[:] = kernel
    base = ambient.take()
    os.chdir(tmp_path)
    there = ambient.difference(base, ambient.take())
    assert "path" in there  # the list is the same, but "" means something else now
    sys.path[:] = worker
    ambient.apply(there)
    assert sys.path == kernel
    # A cell of a kernel that has changed nothing:
    sys.path[:] = worker
    started = ambient.take()
    sys.path.append("/b")
    home = ambient.difference(started, ambient.take())
    sys.path[:] = kernel
    ambient.apply(home)
    assert sys.path == ["", "/a", "/b"]


def test_a_directory_that_is_not_there_is_one_note(undone: None, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state. The culprit is named, and the rest is done."""
    gone = str(tmp_path / "gone")
    notes = ambient.apply({"cwd": ({"cwd": gone}, []), "environ": ({b"AMBIENT_NEW": b"1"}, [])})
    assert len(notes) == 1
    assert notes[0].startswith("The working directory could not be taken over: FileNotFoundError")
    assert gone in notes[0]
    assert os.environ["AMBIENT_NEW"] == "1"


def test_a_deleted_working_directory_breaks_nothing(undone: None, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state. Neither that of the cell nor that of the kernel."""
    home = os.getcwd()
    before = ambient.take()
    (tmp_path / "cell").mkdir()
    os.chdir(tmp_path / "cell")
    (tmp_path / "cell").rmdir()
    lost = ambient.take()
    assert ambient.apply(ambient.difference(before, lost)) == []
    ambient.restore(lost)
    ambient.restore(before)
    assert os.getcwd() == home


def test_settings_of_the_interpreter(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state. A cell with a deep recursion runs as in the kernel."""
    before = ambient.take()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 500)
    sent = ambient.difference(before, ambient.take())
    ambient.restore(before)
    assert sys.getrecursionlimit() == limit
    ambient.apply(sent)
    assert sys.getrecursionlimit() == limit + 500


# --- Warnings and logging ---------------------------------------------------------------------------------


def test_filters_of_warnings(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state (warnings filters). In their order, and undone afterwards."""
    seen = follow(
        """
        import warnings, sqlite3.dbapi2, email.errors, numpy, pandas
        cell("class Mine(UserWarning): pass")
        warnings.filterwarnings("ignore", category=pandas.errors.PerformanceWarning)
        warnings.filterwarnings("error", message="no .*", category=RuntimeWarning, module="there")
        warnings.filterwarnings("error", category=ip.user_ns["Mine"])
        """,
        """
        import warnings
        seen["first"] = [list(map(str, entry[:1])) + [entry[2].__name__] for entry in warnings.filters[:3]]
        seen["imported"] = "pandas" in sys.modules
        import pandas
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.PerformanceWarning, append=True)
            warnings.warn("hidden", pandas.errors.PerformanceWarning)
        try:
            warnings.warn_explicit("no way", RuntimeWarning, "there.py", 1, "there")
        except RuntimeWarning:
            seen["raised"] = True
        ambient.restore(before, ip)
        seen["left"] = ambient.difference(before, ambient.take(ip)) != {}
        warnings.warn_explicit("no way", RuntimeWarning, "there.py", 1, "there")
        """,
        warm="kernel",
    )
    assert seen == {
        "parts": ["warnings"], "notes": [], "first": [["error", "Mine"], ["error", "RuntimeWarning"], ["ignore", "PerformanceWarning"]],
        "imported": False, "raised": True, "left": False,
    }  # fmt: skip


def test_changed_filters_count_for_what_was_shown_before() -> None:
    """Proves: semantics.md, Cells: Ambient state (warnings filters). A warning shown once is an error after "error"."""
    seen = child(
        """
        import warnings
        def warn():
            warnings.warn("once", UserWarning)
        warn()
        ambient.apply({"warnings": ({"filters": (("error", None, ("builtins", "UserWarning"), None, 0),)}, [])})
        try:
            warn()
        except UserWarning:
            seen["raised"] = True
        """
    )
    assert seen == {"raised": True}


def test_root_logger(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state (root log level), with the handler that makes the lines visible."""
    seen = follow(
        "import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s:%(message)s'); logging.disable(5)",
        """
        import io, logging
        seen["level"] = [logging.root.level, logging.root.manager.disable]
        seen["before"] = sys.stderr is logging.root.handlers[0].stream
        logging.root.handlers[0].stream = text = io.StringIO()
        logging.info("told")
        seen["text"] = text.getvalue()
        logging.root.addHandler(logging.FileHandler(os.devnull, delay=True))
        ambient.restore(before, ip)
        seen["after"] = [logging.root.level, logging.root.manager.disable, len(logging.root.handlers)]
        """,
    )
    assert seen == {
        "parts": ["logging"], "notes": [], "level": [20, 5], "before": True, "text": "INFO:told\n", "after": [30, 0, 0],
    }  # fmt: skip


def test_the_kernels_own_filters_keep_their_places(undone: None) -> None:
    """Proves: semantics.md, Cells: --wait -o '*' (warnings filters). What ipykernel has added and a worker has not stays;
    but it goes with the others when the cell resets them all."""
    trio = ("ignore", re.compile(".*Trio's signal handling code might have collided.*", re.I), RuntimeWarning, None, 0)
    mine = ("ignore", re.compile("mine", re.I), Warning, None, 0)
    filters: Any = warnings.filters
    common = [each for each in filters if each != trio]
    before = ambient.take()
    filters[:] = [mine, *common]
    home = ambient.difference({**before, "warnings": {}}, ambient.take())
    filters[:] = [trio, *common]
    ambient.apply(home)
    assert filters == [mine, trio, *common]
    filters[:] = [("ignore", None, Warning, None, 0)]
    reset = ambient.difference({**before, "warnings": {}}, ambient.take())
    filters[:] = [trio, *common]
    ambient.apply(reset)
    assert filters == [("ignore", None, Warning, None, 0)]


def test_named_loggers(undone: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves: semantics.md, Cells: Ambient state. Level, propagation, and a handler that writes to stderr."""
    before = ambient.take()
    logger = logging.getLogger("ambient.test")
    logger.setLevel("INFO")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler())
    logging.getLogger("ambient.library").addHandler(logging.NullHandler())  # as libraries do: nobody's wish
    sent = ambient.difference(before, ambient.take())
    assert list(sent) == ["logging"]
    sent = pickle.loads(pickle.dumps(sent))
    ambient.restore(before)
    assert (logger.level, logger.propagate, logger.handlers) == (0, True, [])
    assert ambient.apply(sent) == []
    logger.info("told once")
    assert capsys.readouterr().err == "told once\n"


# --- Names that Python shares -----------------------------------------------------------------------------


def test_builtins_of_the_notebook(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state (builtins). Added ones, and one that covers Python's own."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def shout(text): return text.upper()\ndef ascii(text): return 'mine'", namespace)
    before = ambient.take()
    vars(builtins).update(shout=namespace["shout"], ascii=namespace["ascii"], level=3)
    sent = ambient.difference(before, ambient.take())
    assert {name: set(changed) for name, (changed, _) in sent.items()} == {"builtins": {"shout", "ascii", "level"}}
    assert len(ambient.carried(sent)) == 2
    ambient.restore(before)
    assert (hasattr(builtins, "shout"), hasattr(builtins, "level"), ascii("ü")) == (False, False, "'\\xfc'")
    ambient.apply(sent)
    assert eval("shout('a'), ascii('ü'), level") == ("A", "mine", 3)


def test_the_locale(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state (locale)."""
    before = ambient.take()
    first = locale.setlocale(locale.LC_ALL)
    other = "C" if first != "C" else "C.UTF-8"
    locale.setlocale(locale.LC_ALL, other)
    sent = ambient.difference(before, ambient.take())
    assert list(sent) == ["locale"]
    ambient.restore(before)
    assert locale.setlocale(locale.LC_ALL) == first
    ambient.apply(sent)
    assert locale.setlocale(locale.LC_ALL) == other


def test_the_time_zone(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state (os.environ). TZ is followed by `time.tzset`, there and back."""
    ambient.apply({"environ": ({b"TZ": b"UTC"}, [])})
    before = ambient.take()
    ambient.apply({"environ": ({b"TZ": b"Asia/Tokyo"}, [])})
    assert time.localtime(0).tm_hour == 9
    ambient.restore(before)
    assert time.localtime(0).tm_hour == 0


def test_path_and_directory_are_there_before_the_names(undone: None, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state (cwd, sys.path). A name may be a module that is found only with them; what
    could not be done is said with the rest."""
    (tmp_path / "ambient_lib").mkdir()
    (tmp_path / "ambient_lib" / "ambient_own.py").write_text("VALUE = 1\n")
    before = ambient.take()
    os.chdir(tmp_path)
    sys.path.insert(0, "ambient_lib")
    os.environ["AMBIENT_NEW"] = "1"
    sys.setrecursionlimit(sys.getrecursionlimit() + 7)
    sent = ambient.difference(before, ambient.take())
    sent["cwd"] = {**sent["cwd"][0], "other": "/not/there"}, sent["cwd"][1]
    first, rest = ambient.those_first(sent)
    assert list(rest) == ["interpreter"]
    data, _ = serialize.dumps({"first": first, "names": importlib.import_module("ambient_own")})
    del sys.modules["ambient_own"]
    ambient.restore(before)
    try:
        assert serialize.loads(data)["names"].VALUE == 1
    finally:
        sys.modules.pop("ambient_own", None)
    assert os.environ["AMBIENT_NEW"] == "1"
    assert [note[:45] for note in ambient.apply(rest)] == ["The working directory could not be taken over"]
    assert ambient.apply(rest) == []
    assert ambient.those_first({}) == (None, {})


def test_a_variable_that_is_kept(undone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves: semantics.md, Slots: the devices that a task has been given are not those that the kernel sees."""
    monkeypatch.setattr(ambient, "_kept_variables", set())
    monkeypatch.setenv("AMBIENT_DEVICES", "0")
    before = ambient.take()
    ambient.keep("AMBIENT_DEVICES")
    ambient.apply({"environ": ({b"AMBIENT_DEVICES": b"5", b"AMBIENT_NEW": b"1"}, [])})
    ambient.apply({"environ": ({}, [b"AMBIENT_DEVICES"])})
    assert (os.environ["AMBIENT_DEVICES"], os.environ["AMBIENT_NEW"]) == ("0", "1")
    os.environ["AMBIENT_DEVICES"] = "7"  # by the cell
    ambient.restore(before)
    assert os.environ["AMBIENT_DEVICES"] == "0"


# --- Libraries --------------------------------------------------------------------------------------------

LIBRARIES = [
    ("import numpy as np", "np.set_printoptions(precision=3, suppress=True); np.seterr(all='raise')",
     "[np.get_printoptions()['precision'], np.get_printoptions()['suppress'], np.geterr()['under']]",
     [3, True, "raise"], [8, False, "ignore"], ["numpy"]),
    ("import pandas as pd", "pd.set_option('display.max_rows', 7, 'display.float_format', '{:.1f}'.format)",
     "[pd.options.display.max_rows, str(pd.Series([1/3])).split()[1]]", [7, "0.3"], [60, "0.333333"], ["pandas"]),
    ("import matplotlib as mpl", "mpl.rcParams['lines.linewidth'] = 4; mpl.rcParams['font.sans-serif'].insert(0, 'Mine'); mpl.rc('axes', grid=True)",
     "[mpl.rcParams['lines.linewidth'], mpl.rcParams['font.sans-serif'][0], mpl.rcParams['axes.grid']]",
     [4.0, "Mine", True], [1.5, "DejaVu Sans", False], ["rcParams"]),
    ("import decimal", "decimal.getcontext().prec = 5; decimal.getcontext().traps[decimal.FloatOperation] = True",
     "[decimal.getcontext().prec, bool(decimal.getcontext().traps[decimal.FloatOperation])]",
     [5, True], [28, False], ["decimal"]),
]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "in the cell"])
@pytest.mark.parametrize(
    ("module", "change", "look", "there", "default", "parts"), LIBRARIES, ids=[row[5][0] for row in LIBRARIES]
)
def test_options_of_libraries(
    tmp_path: Path,
    module: str,
    change: str,
    look: str,
    there: list[Any],
    default: list[Any],
    parts: list[str],
    when: str,
) -> None:
    """Proves: semantics.md, Cells: Ambient state (print options, rcParams). Also if the cell is what imports the library."""
    file = tmp_path / "sent"
    sent = child(KERNEL, f"cell({module!r})\nambient.take()\ncell({change!r})", SEND, file=file, warm=True)
    first = module if when == "before" else ""
    seen = child(
        first,
        WORKER,
        f"""
{module}
seen["there"] = {look}
{change.replace("mpl.rcParams['font.sans-serif'].insert(0, 'Mine')", "mpl.rcParams['font.sans-serif'].append('x')")}
ambient.restore(before, ip)
seen["default"] = {look}
seen["left"] = list(ambient.difference(before, ambient.take(ip)))
""",
        file=file,
        warm=when == "before",
    )
    assert sent["parts"] == parts
    assert seen["there"] == there
    assert seen["default"] == default
    assert seen["left"] == seen["notes"] == []


def test_a_library_imported_by_the_cell_is_put_back_to_its_defaults() -> None:
    """Proves: semantics.md, Cells: Ambient state. Where the kernel has said nothing, the next cell finds the defaults."""
    seen = child(
        """
        before = ambient.take()
        import numpy, pandas, matplotlib, matplotlib.pyplot as plt
        numpy.set_printoptions(precision=2); pandas.options.display.max_columns = 3
        plt.style.use("ggplot"); matplotlib.use("pdf")
        ambient.restore(before)
        seen["numpy"] = numpy.get_printoptions()["precision"]
        seen["pandas"] = pandas.options.display.max_columns
        seen["rc"] = matplotlib.rcParams["axes.grid"]
        seen["backend"] = matplotlib.rcParams._get("backend")
        seen["left"] = list(ambient.difference(before, ambient.take()))
        """,
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    )
    assert seen.pop("pandas") in (0, 20)
    assert seen == {"numpy": 8, "rc": False, "backend": "module://matplotlib_inline.backend_inline", "left": []}


@pytest.mark.parametrize(("backend", "parts"), [("agg", ["backend"]), ("webagg", [])])
def test_backends_that_only_draw_follow(tmp_path: Path, backend: str, parts: list[str]) -> None:
    """Proves: semantics.md, Cells: Ambient state (rcParams). Those that need a window or a browser stay in the kernel."""
    seen = child(
        KERNEL,
        f"import matplotlib; matplotlib.rcParams['backend'] = {backend!r}",
        SEND,
        file=tmp_path / "sent",
        warm=True,
    )
    assert seen["parts"] == parts


def test_plots_as_in_the_kernel(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state. %config InlineBackend, rcParams and plt.ioff() hold in a worker's figures."""
    seen = follow(
        """
        import matplotlib.pyplot as plt, matplotlib_inline.backend_inline
        ip.run_line_magic("config", "InlineBackend.figure_formats = ['svg']")
        plt.rcParams["figure.figsize"] = [2.0, 1.0]
        """,
        """
        seen["imported"] = "matplotlib" in sys.modules
        run("import matplotlib.pyplot as plt\\nplt.plot([1, 2]);")
        seen["mimes"] = [sorted(data) for data in shown() if "image/svg+xml" in data or "image/png" in data]
        seen["size"] = 'width="1' in shown()[-1].get("image/svg+xml", "")
        end()
        run("import matplotlib.pyplot as plt\\nplt.plot([1, 2]);")
        seen["after"] = [sorted(data) for data in shown() if "image/svg+xml" in data or "image/png" in data]
        """,
        warm="kernel",
    )
    assert seen == {
        "parts": ["inline", "rcParams"], "notes": [], "imported": False, "mimes": [["image/svg+xml", "text/plain"]], "size": True,
        "after": [["image/png", "text/plain"]],
    }  # fmt: skip


def test_plots_only_when_asked(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state. After plt.ioff() a cell draws what it displays, and no more."""
    seen = follow(
        "import matplotlib.pyplot as plt, matplotlib_inline.backend_inline; plt.ioff()",
        """
        run("import matplotlib.pyplot as plt\\nplt.plot([1, 2]);")
        seen["drawn"] = len(shown())
        end()
        run("import matplotlib.pyplot as plt\\nplt.plot([1, 2]);")
        seen["after"] = len(shown())
        """,
        warm="kernel, worker",
    )
    assert seen == {"parts": ["interactive"], "notes": [], "drawn": 0, "after": 1}


def test_formats_of_plots_are_set_where_plots_are_known(follow: Any) -> None:
    """Proves: semantics.md, Cells: --wait -o '*'. A kernel that has pyplot, and has drawn nothing yet, asks the backend."""
    seen = child(
        KERNEL,
        """
        import matplotlib.pyplot
        ambient.apply({"inline": ({"figure_formats": {"svg"}}, [])}, ip)
        from matplotlib_inline.config import InlineBackend
        seen["formats"] = list(InlineBackend.instance(parent=ip).figure_formats)
        seen["waiting"] = list(ambient._waiting)
        """,
        warm=True,
    )
    assert seen == {"formats": ["svg"], "waiting": []}


def test_settings_of_scikit_learn(undone: None) -> None:
    """Proves: semantics.md, Cells: Ambient state. `set_config`, there and back."""
    sklearn = pytest.importorskip("sklearn")
    before = ambient.take()
    default = sklearn.get_config()
    sklearn.set_config(display="text", transform_output="pandas")
    sent = ambient.difference(before, ambient.take())
    assert sent["sklearn"] == ({"display": "text", "transform_output": "pandas"}, [])
    ambient.restore(before)
    assert sklearn.get_config() == default
    ambient.apply(sent)
    assert sklearn.get_config() == {**default, "display": "text", "transform_output": "pandas"}


class _Bokeh:
    """As bokeh.io.state's State."""

    notebook_type: str | None = None

    def output_notebook(self, kind: str) -> None:
        self.notebook_type = kind

    def reset(self) -> None:
        self.notebook_type = None


class _Registry:
    """As altair's registries of renderers, themes and data transformers."""

    def __init__(self) -> None:
        self.enable("default")

    def enable(self, active: str, **options: Any) -> None:
        self.active, self.options = active, options


def _stand_ins() -> dict[str, types.ModuleType]:
    """What `ambient` looks at of libraries that are not installed here."""
    made: dict[str, Any] = {
        name: types.ModuleType(name)
        for name in ("bokeh.io.state", "plotly.io._renderers", "plotly.io._templates", "altair", "polars.config")
    }
    state = _Bokeh()
    made["bokeh.io.state"].curstate = lambda: state
    made["plotly.io._renderers"].renderers = types.SimpleNamespace(default="browser")
    templates = type("Templates", (dict,), {"default": "plotly"})
    made["plotly.io._templates"].templates = templates(plotly=1, plotly_dark=1)
    vars(made["altair"]).update(renderers=_Registry(), data_transformers=_Registry(), themes=_Registry())
    config = types.SimpleNamespace(precision=None)
    made["polars.config"].Config = types.SimpleNamespace(set_float_precision=lambda n: setattr(config, "precision", n))
    made["polars.config"]._POLARS_CFG_DIRECT_VARS = {"set_float_precision": lambda: config.precision}
    return made


LIBRARIES_NOT_HERE = {
    "bokeh": ("m['bokeh.io.state'].curstate().output_notebook('jupyter')", "m['bokeh.io.state'].curstate().notebook_type"),
    "renderer": ("m['plotly.io._renderers'].renderers.default = 'notebook'", "m['plotly.io._renderers'].renderers.default"),
    "template": ("m['plotly.io._templates'].templates.default = 'plotly_dark'", "m['plotly.io._templates'].templates.default"),
    "altair": ("m['altair'].renderers.enable('svg', ppi=2)", "(m['altair'].renderers.active, m['altair'].renderers.options)"),
    "polars": ("m['polars.config'].Config.set_float_precision(3)", "m['polars.config']._POLARS_CFG_DIRECT_VARS['set_float_precision']()"),
}  # fmt: skip


@pytest.mark.parametrize("part", LIBRARIES_NOT_HERE)
def test_libraries_of_plots_and_tables(undone: None, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Proves: semantics.md, Cells: Ambient state. With stand-ins: what is read is put in place there, and taken back."""
    change, look = LIBRARIES_NOT_HERE[part]
    kernel, worker = _stand_ins(), _stand_ins()
    with monkeypatch.context() as patch:
        for name, module in kernel.items():
            patch.setitem(sys.modules, name, module)
        before = ambient.take()
        exec(change, {"m": kernel})
        sent = ambient.difference(before, ambient.take())
        assert list(sent) == [part]
        for name, module in worker.items():
            patch.setitem(sys.modules, name, module)
        first, there = eval(look, {"m": worker}), ambient.take()
        assert ambient.apply(pickle.loads(pickle.dumps(sent))) == []
        assert eval(look, {"m": worker}) == eval(look, {"m": kernel}) != first
        ambient.restore(there)
        assert eval(look, {"m": worker}) == first


# --- The shell --------------------------------------------------------------------------------------------

SETTINGS = [
    ("%precision 3", "3.14159", "3.142", "3.14159"),
    ("%pprint", "list(range(60))", repr(list(range(60))), "[0,\n 1,\n"),
    ("get_ipython().display_formatter.formatters['text/plain'].max_width = 300", "list(range(60))", repr(list(range(60))), "[0,\n 1,\n"),
    ("get_ipython().ast_node_interactivity = 'all'", "1\n2", "1", "2"),
    ("%config InteractiveShell.ast_node_interactivity = 'all'", "1\n2", "1", "2"),
    ("from IPython.core.interactiveshell import InteractiveShell as S; S.ast_node_interactivity = 'all'", "1\n2", "1", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "code", "there", "after"), SETTINGS, ids=[row[0][:24] for row in SETTINGS])
def test_settings_of_the_shell(follow: Any, setting: str, code: str, there: str, after: str) -> None:
    """Proves: semantics.md, Cells: Ambient state. A cell shows its values as the kernel would; later ones do not."""
    seen = follow(
        f"cell({setting!r})",
        f"""
        run({code!r})
        seen["there"] = shown()[0]["text/plain"]
        end()
        run({code!r})
        seen["after"] = shown()[0]["text/plain"]
        """,
    )
    assert seen["parts"] == ["settings"]
    assert seen["there"] == there
    assert seen["after"].startswith(after)
    assert seen["notes"] == []


def test_a_class_attribute_that_replaces_a_trait_is_undone() -> None:
    """Proves: semantics.md, Cells: Ambient state. The usual idiom works in each cell, and only in that cell."""
    file = Path(os.devnull)
    idiom = (
        "from IPython.core.interactiveshell import InteractiveShell\nInteractiveShell.ast_node_interactivity = 'all'"
    )
    seen = child(
        WORKER.partition("before =")[0],
        f"""
        for number in range(2):
            before = ambient.take(ip)
            run({idiom!r})
            seen[f"home {{number}}"] = list(ambient.difference(before, ambient.take(ip))["settings"][0].values())
            shell.reset() if number else None  # in either order
            end()
            run("1\\n2")
            seen[f"after {{number}}"] = [data["text/plain"] for data in shown()]
            end()
        """,
        file=file,
    )
    assert seen == {"home 0": ["all"], "after 0": ["2"], "home 1": ["all"], "after 1": ["2"]}


def test_tracebacks_autoawait_and_aliases(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state (%xmode, %autoawait, %alias, %automagic)."""
    seen = follow(
        """
        for line in ("xmode Plain", "autoawait False", "alias hello echo hi %s", "automagic 0", "unalias ll"):
            ip.run_line_magic(*line.split(" ", 1))
        """,
        """
        seen["set"] = [ip.InteractiveTB.mode, ip.autoawait, ip.magics_manager.auto_magic, ip.alias_manager.is_alias("ll")]
        seen["alias"] = ip.alias_manager.retrieve_alias("hello")
        end()
        seen["after"] = [ip.InteractiveTB.mode, ip.autoawait, ip.magics_manager.auto_magic, ip.alias_manager.is_alias("ll")]
        seen["gone"] = not ip.alias_manager.is_alias("hello")
        seen["left"] = list(ambient.difference(before, ambient.take(ip)))
        """,
    )
    assert seen == {
        "parts": ["aliases", "settings"], "notes": [], "set": ["Plain", False, False, False], "alias": "echo hi %s",
        "after": ["Context", True, True, True], "gone": True, "left": [],
    }  # fmt: skip


MAGICS = """
from IPython.core.magic import register_line_magic, register_cell_magic, Magics, magics_class, line_magic, cell_magic
factor = 10
@register_line_magic
def tenfold(line):
    return int(line) * factor
@register_cell_magic
def upper(line, cell):
    return cell.upper()
@register_line_magic
def time(line):
    return "mine"
@magics_class
class Counting(Magics):
    @line_magic
    def count(self, line):
        return len(line), self.shell is get_ipython()
    @cell_magic("lines")
    def count_lines(self, line, cell):
        return len(cell.splitlines())
get_ipython().register_magics(Counting)
"""


def test_magics_of_the_notebook(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state. Functions read the cell's names; classes are made for the worker's shell."""
    seen = follow(
        f"cell({MAGICS!r})",
        """
        seen["values"] = [run("factor = 100\\n%tenfold 4"), run("%%upper\\nabc"), run("%count abc"), run("%%lines\\na\\nb"), run("%time")]
        end()
        seen["left"] = list(ambient.difference(before, ambient.take(ip)))
        seen["gone"] = [name for name in ("tenfold", "count") if ip.find_line_magic(name)]
        seen["configurables"] = [type(each).__name__ for each in ip.configurables if type(each).__name__ == "Counting"]
        seen["covered"] = run("%time")
        """,
    )
    assert seen["parts"] == ["magics"]
    # Each run has its own namespace: the later ones are bound to an older one, which is fine here.
    assert seen["values"][1:] == ["ABC\n", [3, True], 2, "mine"]
    assert seen["values"][0] in (400, 40)
    assert (seen["left"], seen["gone"], seen["configurables"], seen["notes"], seen["covered"]) == ([], [], [], [], None)


def test_where_cd_has_been(follow: Any, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state (cwd). `%cd -` goes back in a cell, and the list comes home."""
    (tmp_path / "sub").mkdir()
    seen = follow(
        f"""
        os.chdir({str(tmp_path)!r})
        ip.run_line_magic("cd", "-q sub")
        """,
        """
        started = ambient.take(ip)
        visited = len(ip.user_ns["_dh"])
        run("%cd -q -")
        seen["back"] = os.getcwd() != started["cwd"]["cwd"]
        home = ambient.difference(started, ambient.take(ip))["dhist"][0]["_dh"]
        seen["home"] = [len(home) - visited, str(home[-1]) == os.getcwd()]
        end()
        seen["left"] = list(ambient.difference(before, ambient.take(ip)))
        """,
    )
    assert {"cwd", "dhist"} <= set(seen.pop("parts"))
    assert seen == {"notes": [], "back": True, "home": [1, True], "left": []}


STATEFUL = """
from IPython.core.magic import Magics, magics_class, line_magic
@magics_class
class Ticking(Magics):
    count, seen = 0, None
    @line_magic
    def tick(self, line):
        self.count += 1
        self.seen = [*(self.seen or []), line]
        return self.count
get_ipython().register_magics(Ticking)
ip = get_ipython()
ip.run_line_magic("tick", "here")
"""


def test_a_magics_object_keeps_its_state(follow: Any, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: --wait -o '*'. Its counter goes on in the worker, and comes home into the same object."""
    seen = follow(
        f"cell({STATEFUL!r})",
        """
        started = ambient.take(ip)
        seen["there"] = run("%tick there")
        changes, gone = ambient.difference(started, ambient.take(ip))["magics"]
        seen["home"] = [changes["class", "Ticking"][1], gone]
        own = ip.magics_manager.registry["Ticking"]
        cls = type(own)
        ambient.apply({"magics": ({("class", "Ticking"): (cls, {"count": 9})}, [])}, ip)
        seen["same"] = [own is ip.magics_manager.registry["Ticking"], own.count, own.seen, run("%tick x")]
        """,
    )
    assert seen == {
        "parts": ["magics"], "notes": [], "there": 2, "home": [{"count": 2, "seen": ["here", "there"]}, []],
        "same": [True, 9, None, 10],
    }  # fmt: skip


HOOKS = """
import ast
ran = []
def after(*_): ran.append(1)
def hallo(lines): return [line.replace("HALLO", "HALLO + 'hello'") for line in lines]
def later(lines): return [line.replace("SPAETER", "'later'") for line in lines]
class Doubler(ast.NodeTransformer):
    def visit_Constant(self, node):
        import ast
        return ast.copy_location(ast.Constant(node.value * 2), node) if type(node.value) is int else node
def handler(shell, etype, value, tb, tb_offset=None): ran.append(2)
ip = get_ipython()
ip.events.register("post_run_cell", after)
ip.input_transformers_cleanup.append(hallo)
ip.input_transformers_post.append(later)
ip.ast_transformers.append(Doubler())
ip.set_custom_exc((LookupError,), handler)
"""


def test_hooks_of_the_notebook(follow: Any) -> None:
    """Proves: semantics.md, Cells: --wait -o '*'. A cell finds them and may take them away. The kernel calls those that
    it calls anyway: events, the transformers that saw the text, the handler of errors; the others work in the cell."""
    seen = follow(
        f"cell({HOOKS!r})",
        """
        started = ambient.take(ip)
        # Its text has been transformed in the kernel; that of the inner cell has not.
        seen["values"] = run("HALLO = 'oh '\\ninner = get_ipython().run_cell('HALLO').result\\ninner, 21, SPAETER")
        own = ip.events.callbacks["post_run_cell"][0]
        seen["callback"] = [own == own.function, own.function.__globals__.get("ran")]
        seen["handler"] = ip.CustomTB(KeyError, KeyError(), None)
        ip.events.unregister("post_run_cell", own.function)
        ip.input_transformers_cleanup.pop()
        ip.ast_transformers.clear()
        ip.set_custom_exc((), None)
        home = ambient.difference(started, ambient.take(ip))
        seen["home"] = {part: [len(changed), [str(key[0]) if part != "custom_exc" else key for key in gone]]
                        for part, (changed, gone) in home.items()}
        ambient.apply({part: ({key: started[part][key] for key in gone}, []) for part, (_, gone) in home.items()}, ip)
        seen["again"] = not ambient.difference(started, ambient.take(ip))
        end()
        seen["left"] = list(ambient.difference(before, ambient.take(ip)))
        """,
    )
    assert seen == {
        "parts": ["custom_exc", "events", "transformers"], "notes": [], "values": ["oh hello", 42, "later"],
        "callback": [True, None], "handler": [],
        "home": {"events": [0, ["post_run_cell"]], "transformers": [0, ["cleanup", "ast"]], "custom_exc": [0, ["handler"]]},
        "again": True, "left": [],
    }  # fmt: skip


def test_callbacks_that_a_cell_registers_are_called_by_the_kernel() -> None:
    """Proves: semantics.md, Cells: --wait -o '*'. Once per cell, and not by the worker, too; other cells call theirs."""
    seen = child(
        WORKER.partition("before =")[0],
        """
        code = '''
        ran = []
        def after(*_): ran.append(1)
        def handler(*_, **__): ran.append(2)
        get_ipython().events.register("post_run_cell", after)
        get_ipython().set_custom_exc((LookupError,), handler)
        {}["missing"]
        '''
        for star in (True, False):
            before = ambient.take(ip)
            if star:
                ambient.leave_events_to_the_kernel(ip)
            try:
                run(textwrap.dedent(code))
            except KeyError:
                pass
            seen[f"ran {star}"] = ip.user_ns["ran"]
            seen[f"home {star}"] = sorted(ambient.difference(before, ambient.take(ip)))
            end()
            seen[f"left {star}"] = list(ambient.difference(before, ambient.take(ip)))
        """.replace("textwrap.dedent", "__import__('textwrap').dedent"),
    )
    assert seen == {
        "ran True": [], "home True": ["custom_exc", "events"], "left True": [],
        "ran False": [2, 1], "home False": ["custom_exc", "events"], "left False": [],
    }  # fmt: skip


def test_hooks_go_only_where_they_may_be_looked_at() -> None:
    """Proves: semantics.md, Cells: Ambient state. What a callback reads may be large."""
    sent: Any = {
        "events": ({("post_run_cell", print): True}, []),
        "custom_exc": ({"handler": 1}, []),
        "cwd": ({"cwd": "/"}, []),
    }
    assert list(ambient.without_other_magics(sent, "x = 1")) == ["cwd"]
    assert list(ambient.without_other_magics(sent, "ip.events.unregister(f)")) == ["events", "cwd"]
    assert list(ambient.without_other_magics(sent, "ip.set_custom_exc((), None)")) == ["custom_exc", "cwd"]


FORMATTERS = """
class Point:
    pass
html = get_ipython().display_formatter.formatters["text/html"]
html.for_type(Point, lambda point: "<b>point</b>")
html.for_type(dict, lambda held: f"<i>{len(held)}</i>")
html.for_type_by_name("fractions", "Fraction", lambda one: f"<u>{one}</u>")
get_ipython().display_formatter.formatters["text/plain"].for_type(list, lambda held, printer, cycle: printer.text("a list"))
"""


def test_formatters_of_the_notebook(follow: Any) -> None:
    """Proves: semantics.md, Cells: Ambient state. For the notebook's classes and for others; what they covered comes back."""
    seen = follow(
        f"cell({FORMATTERS!r})",
        """
        seen["imported"] = "fractions" in sys.modules
        for code in ("{1: 2}", "from fractions import Fraction\\nFraction(1, 2)", "[1]"):
            run(code)
        seen["html"] = [data.get("text/html") for data in shown()]
        seen["plain"] = shown()[-1]["text/plain"]
        end()
        for code in ("{1: 2}", "from fractions import Fraction\\nFraction(1, 2)", "list(range(60))"):
            run(code)
        seen["after"] = [data.get("text/html") for data in shown()] + [shown()[-1]["text/plain"][:4]]
        seen["left"] = list(ambient.difference(before, ambient.take(ip)))
        """,
    )
    assert seen == {
        "parts": ["formatters"], "notes": [], "imported": seen["imported"], "html": ["<i>1</i>", "<u>1/2</u>", None], "plain": "a list",
        "after": [None, None, None, "[0,\n"], "left": [],
    }  # fmt: skip


def test_extensions(follow: Any, tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state. They are loaded with their settings; one that fails is a note, once."""
    (tmp_path / "ambient_good.py").write_text(
        "from IPython.core.magic import Magics, magics_class, line_magic\n"
        "from traitlets import Bool\n"
        "@magics_class\n"
        "class GoodMagics(Magics):\n"
        "    loud = Bool(False).tag(config=True)\n"
        "    @line_magic\n"
        "    def good(self, line): return self.loud\n"
        "def load_ipython_extension(ip):\n    print('loaded')\n    ip.register_magics(GoodMagics)\n"
    )
    (tmp_path / "ambient_bad.py").write_text(
        "def load_ipython_extension(ip):\n    if 'Kernel' in type(ip.kernel).__name__: raise OSError('no browser here')\n"
    )
    seen = follow(
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        ip.extension_manager.load_extension("storemagic")
        ip.extension_manager.load_extension("ambient_good")
        ip.extension_manager.load_extension("ambient_bad")
        ip.run_line_magic("config", "GoodMagics.loud = True")
        """,
        """
        seen["printed"] = told.getvalue()
        seen["loud"] = run("%good")
        end()
        seen["kept"] = "ambient_good" in ip.extension_manager.loaded  # for the kernel's next cell
        seen["quiet"] = run("%good")
        before = ambient.take(ip)
        seen["again"] = ambient.apply(receive(), ip)
        """,
    )
    assert seen["parts"] == ["extensions", "path", "settings"]
    assert seen["printed"] == ""  # but where the user loaded it
    assert seen["notes"] == ["The extension ambient_bad could not be taken over: OSError: no browser here."]
    assert (seen["loud"], seen["kept"], seen["quiet"], seen["again"]) == (True, True, False, [])


def test_an_extension_that_the_cell_loads_is_unloaded(tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: Ambient state. The next cell can load it again."""
    (tmp_path / "ambient_mine.py").write_text("def load_ipython_extension(ip): print('loaded')\n")
    seen = child(
        WORKER.partition("before =")[0],
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        before = ambient.take(ip)
        run("%load_ext ambient_mine")
        seen["home"] = list(ambient.difference(before, ambient.take(ip)))
        end()
        seen["loaded"] = list(ip.extension_manager.loaded)
        """,
    )
    assert seen == {"home": ["extensions"], "loaded": []}


# --- Coming home ------------------------------------------------------------------------------------------


CHANGES = """
import os, warnings, numpy, pandas
pandas.reset_option("display.max_rows")
os.environ["NEW"] = "1"
warnings.simplefilter("ignore")
%precision 2
%alias hello echo hi
from IPython.core.magic import register_line_magic
@register_line_magic
def mine(line):
    return 42
"""


def test_what_the_cell_changed_comes_home(tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: --wait -o '*'. Only what the cell changed; what it put back to the default, too."""
    sent, home = tmp_path / "sent", tmp_path / "home"
    child(
        KERNEL,
        "import numpy, pandas; numpy.set_printoptions(precision=3); pandas.options.display.max_rows = 5; os.environ['KEPT'] = '1'",
        SEND,
        file=sent,
        warm=True,
    )
    child(
        WORKER,
        f"""
        started = ambient.take(ip)
        run({CHANGES!r})
        with open({str(home)!r}, "wb") as file:
            changes = ambient.difference(started, ambient.take(ip))
            file.write(serialize.dumps(changes, namespace=ip.user_ns)[0])
        seen["parts"] = sorted(changes)
        """,
        file=sent,
        warm=True,
    )
    seen = child(
        KERNEL,
        """
        import numpy, pandas, warnings
        pandas.options.display.max_rows = 5
        with open(sys.argv[1], "rb") as file:
            home = serialize.loads(file.read(), namespace=ip.user_ns)
        seen["parts"] = sorted(home)
        seen["notes"] = ambient.apply(home, ip)
        seen["now"] = [pandas.options.display.max_rows, os.environ["NEW"], "KEPT" in os.environ, numpy.get_printoptions()["precision"], warnings.filters[0][0]]
        seen["magic"] = ip.run_line_magic("mine", "")
        """,
        file=home,
        warm=True,
    )
    assert seen["parts"] == ["aliases", "environ", "magics", "numpy", "pandas", "settings", "warnings"]
    assert seen["now"] == [60, "1", False, 2, "ignore"]
    assert (seen["notes"], seen["magic"]) == ([], 42)


def test_random_numbers_go_on_or_are_new() -> None:
    """Proves: semantics.md, Cells: --wait -o '*' (random, np.random), and that otherwise each task is seeded anew."""
    seen = child(
        """
        import random
        state = ambient.random_state()
        seen["without numpy"] = list(state)
        import numpy.random
        state = ambient.random_state()
        drawn = lambda: [random.random(), float(numpy.random.rand())]
        first = drawn()
        ambient.set_random_state(pickle.loads(pickle.dumps(state)))
        seen["same"] = drawn() == first
        ambient.set_random_state(state)
        ambient.reseed()
        other = drawn()
        seen["new"] = other[0] != first[0] and other[1] != first[1]
        read, write = os.pipe()
        for _ in range(2):
            if not os.fork():
                ambient.reseed()
                os.write(write, json.dumps(drawn()).encode() + b"\\n")
                os._exit(0)
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        one, two = map(json.loads, os.read(read, 10000).splitlines())
        seen["forks"] = one[0] != two[0] and one[1] != two[1]
        """
    )
    assert seen == {"without numpy": ["random"], "same": True, "new": True, "forks": True}


def test_the_state_of_numpy_is_set_although_it_was_not_imported(tmp_path: Path) -> None:
    """Proves: semantics.md, Cells: --wait -o '*' (np.random). The next number is the kernel's next number."""
    file = tmp_path / "state"
    one = child(
        "import numpy.random; open(sys.argv[1], 'wb').write(pickle.dumps(ambient.random_state())); seen['next'] = float(numpy.random.rand())",
        file=file,
    )
    other = child(
        "ambient.set_random_state(pickle.loads(open(sys.argv[1], 'rb').read())); import numpy; seen['next'] = float(numpy.random.rand())",
        file=file,
    )
    assert one == other


# --- What cannot be sent, or read -------------------------------------------------------------------------


UNSENDABLE = """
import threading
def make(held):
    def guarded(line):
        with held:
            return line
    return guarded
get_ipython().register_magic_function(make(threading.Lock()), "line", "guarded")
def free(line):
    return helper(line)
get_ipython().register_magic_function(free, "line", "free")
"""


def test_what_cannot_be_sent_is_left_out_by_name() -> None:
    """Proves: semantics.md, Cells: Ambient state. One magic that cannot be sent stops no cell; the others go."""
    seen = child(
        KERNEL,
        f"UNSENDABLE = {UNSENDABLE!r}",
        """
        from jupyter_tasks.exceptions import UnserializableError
        cell(UNSENDABLE)
        sent = ambient.difference(base, ambient.take(ip))
        tried = []
        def goes(value, name):
            try:
                serialize.dumps(value, namespace=ip.user_ns)
            except UnserializableError:
                tried.append(name)
                return False
            return True
        left = ambient.leave_out(sent, goes)
        seen["left out"] = tried
        seen["left"] = [list(key) for key in left["magics"][0]]
        seen["carried"] = [each.__name__ for each in ambient.carried(left)]
        """,
    )
    assert seen == {"left out": ["The magic line.guarded"], "left": [["line", "free"]], "carried": ["free"]}


def test_a_part_that_cannot_be_read_stops_nothing(undone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves: semantics.md, Cells: Ambient state. Whatever the user did to a library: the rest follows."""
    before = ambient.take()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "decimal", type(sys)("decimal"))
        state = ambient.take()
        os.environ["AMBIENT_NEW"] = "1"
        assert "decimal" not in state
        assert list(ambient.difference(before, ambient.take())) == ["environ"]
        ambient.restore(before)
    assert "AMBIENT_NEW" not in os.environ


# --- A real kernel ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_kernel_says_what_its_user_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves: semantics.md, Cells: Ambient state. Nothing of what ipykernel does at its start; all that the user does, also before."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "e2e"))
    from kernels import Kernel

    kernel = Kernel(tmp_path / "kernel")
    try:
        look = "print(sorted(ambient.difference(ambient.base(get_ipython()), ambient.take(get_ipython()))))"
        assert kernel.run(f"from jupyter_tasks.wire import ambient\n{look}").text() == "[]\n"
        kernel.run("import numpy as np, pandas as pd, matplotlib.pyplot as plt\nplt.plot([1, 2]);")
        assert kernel.run(look).text() == "[]\n"
        kernel.run(
            "np.set_printoptions(precision=3); pd.options.display.max_rows = 5; plt.rcParams['lines.linewidth'] = 3"
        )
        kernel.run(
            "%precision 2\n%config InlineBackend.figure_formats = ['svg']\nimport warnings; warnings.simplefilter('ignore')"
        )
        kernel.run(
            "import logging; logging.basicConfig(level=logging.INFO)\n%alias hello echo hi\n%load_ext autoreload\nplt.ioff()"
        )
        parts = "['aliases', 'extensions', 'inline', 'interactive', 'logging', 'numpy', 'pandas', 'rcParams', 'settings', 'warnings']"
        assert kernel.run(look).text() == parts + "\n"
    finally:
        kernel.close()


def test_taking_and_restoring_is_cheap() -> None:
    """Proves: architecture.md, Measured: a trivial cell takes 0.3 ms in its shell; this must not double it."""
    seen = child(
        """
        import time, numpy, pandas, matplotlib.pyplot
        from jupyter_tasks.worker.shell import worker_shell
        ip = worker_shell().ip
        before = ambient.take(ip)
        ambient.restore(before, ip)
        def best(step):
            times = []
            for _ in range(50):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            return min(times)
        seen["take"] = best(lambda: ambient.take(ip))
        seen["restore"] = best(lambda: ambient.restore(before, ip))
        """,
        warm=True,
    )
    assert seen["take"] < 0.0006  # seconds; measured 0.07 to 0.2. Room for a slow machine
    assert seen["restore"] < 0.0012
