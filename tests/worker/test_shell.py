"""Contract of the shell that cells run in, each scenario in a process of its own; and beside a real ipykernel.

A child process makes the shell, runs cells and writes what it saw as JSON. Its streams and its `emit` record into one
list, so that the order of text and messages can be asserted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHILD = r"""
import faulthandler, gc, json, linecache, os, signal, sys, threading, time, weakref
from jupyter_tasks.worker import shell as shell_module

messages = []          # [kind, content], text as ["stdout", text]
seen = {}              # what goes back to the test
answer = sys.__stdout__
faulthandler.dump_traceback_later(50, exit=True)  # a net against hanging

class Recorder:
    encoding = "utf-8"
    def __init__(self, name):
        self.name = name
    def write(self, text):
        # No lock: an interrupt that comes for the word just written could leave it locked.
        if messages and messages[-1][0] == self.name:
            messages[-1][1] += text
        else:
            messages.append([self.name, text])
        return len(text)
    def flush(self):
        pass
    def isatty(self):
        return False

def emit(kind, content):
    json.dumps(content, allow_nan=False)
    messages.append([kind, content])

shell = shell_module.worker_shell()
sys.stdout, sys.stderr = Recorder("stdout"), Recorder("stderr")

def run(source, namespace=None, n=1, **options):
    return shell.run_cell(source, namespace or {}, emit=emit, execution_count=n, **options)

def cell(source, namespace=None, n=1, **options):
    "Run and reset; the story as something json can write."
    messages.clear()
    outcome = run(source, namespace, n, **options)
    story = dict(
        messages=list(messages), value=repr(outcome.value), ename=outcome.ename, evalue=outcome.evalue,
        traceback=outcome.traceback, names=sorted(outcome.namespace), failed=outcome.error is not None,
        has_result=outcome.has_result, display_failed=outcome.display_failed, payloads=outcome.payloads,
    )
    del outcome
    shell.reset()
    return story

def said(word):
    return any(word in content for kind, content in messages if kind in ("stdout", "stderr"))

def asleep():
    # The main thread waits in the kernel, and not for the GIL. A signal that comes between Python's last look
    # for one and the system call is seen only when that call returns; the thread that asks gets the GIL just
    # there, so without this look it would hit that gap often.
    try:
        with open(f"/proc/self/task/{os.getpid()}/wchan") as file:
            where = file.read()
        with open(f"/proc/self/task/{os.getpid()}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return True  # not Linux: take the chance
    return state == "S" and "futex" not in where

def in_select():
    frame = sys._current_frames()[threading.main_thread().ident]
    return frame.f_code.co_name == "select" and frame.f_code.co_filename.endswith("selectors.py") and asleep()

def interrupt_when(ready):
    "SIGINT to this process as soon as ready() is true."
    pause = threading.Event()
    def wait():
        net = time.monotonic() + 30
        while not ready():
            if time.monotonic() > net:
                os._exit(77)
            pause.wait(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=wait, daemon=True).start()
"""


def in_child(script: str, *, prelude: str = "", timeout: float = 60, **env: str | None) -> dict[str, Any]:
    """Run `script` after CHILD in a new process; what it put into `seen`."""
    environment = {key: value for key, value in {**os.environ, **env}.items() if value is not None}
    code = "\n".join([prelude, CHILD, outdented(script), "print(json.dumps(seen), file=answer, flush=True)"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "child.py")  # not -c: Python 3.13 would take its text for the source of "<string>"
        path.write_text(code)
        done = subprocess.run(
            [sys.executable, str(path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def outdented(script: str) -> str:
    """Without the eight columns that a script has in a test; the cells in it (in three quotes) stay as they are."""
    lines, in_cell = [], False
    for line in script.splitlines():
        lines.append(line if in_cell else line.removeprefix(" " * 8))
        in_cell ^= line.count("'''") % 2 == 1
    return "\n".join(lines)


def plain(lines: list[str] | str) -> str:
    """Traceback lines without colours."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def kinds(story: dict[str, Any]) -> list[str]:
    return [kind for kind, _ in story["messages"]]


def text_of(story: dict[str, Any], stream: str = "stdout") -> str:
    return "".join(content for kind, content in story["messages"] if kind == stream)


# -- what it looks like, and what it leaves alone


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_importing_the_module_imports_no_ipython() -> None:
    code = "import sys, jupyter_tasks.worker.shell; print('IPython' in sys.modules, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_it_looks_like_ipykernels_shell_without_ipykernel(home: Path) -> None:
    seen = in_child(
        """
        seen["looks"] = cell('''
        ip = get_ipython()
        import IPython, builtins
        print(type(ip).__name__, type(ip).__module__, "IPKernelApp" in ip.config, "zmq" in str(type(ip)).lower())
        print(IPython.get_ipython() is ip, builtins.get_ipython() is ip, ip.user_ns is globals())
        import sys
        print(sys.modules["__main__"].__dict__ is globals(), __name__)
        print(hasattr(ip.kernel, "shell_streams"), ip.kernel.get_parent(), hasattr(ip.kernel, "comm_manager"))
        print(ip.display_formatter.active_types == ip.display_formatter.format_types)
        ip.kernel.session
        '''.replace("\\n        ", "\\n"))
        seen["modules"] = [name for name in ("ipykernel", "zmq", "jupyter_client", "sqlite3") if name in sys.modules]
        seen["threads"] = threading.active_count()
        """,
        HOME=str(home),
        IPYTHONDIR=None,
    )
    assert text_of(seen["looks"]).splitlines() == [
        "ZMQInteractiveShell ipykernel.zmqshell True True",
        "True True True",
        "True __main__",
        "True {} False",
        "True",
    ]
    assert seen["looks"]["ename"] == "AttributeError"
    assert "kernel.session is not available in a background cell" in seen["looks"]["evalue"]
    assert "ipykernel" not in seen["modules"]
    assert "zmq" not in seen["modules"]
    assert seen["threads"] == 1


def test_nothing_is_written_to_the_home_directory_unless_a_cell_says_so(home: Path) -> None:
    seen = in_child(
        """
        seen["cd"] = cell("%cd .\\n1/0\\n")
        seen["help"] = cell("len?")
        seen["before"] = os.path.exists(os.path.join(os.environ["HOME"], ".ipython"))
        seen["history"] = shell.ip.history_manager.enabled
        seen["store"] = cell("x = 5\\n%store x")
        """,
        HOME=str(home),
        IPYTHONDIR=None,
    )
    assert seen["cd"]["ename"] == "ZeroDivisionError"
    assert kinds(seen["help"]) == ["display_data"]  # a kernel pages it; here it is shown
    assert seen["before"] is False
    assert seen["history"] is False
    if "pickleshare" not in seen["store"]["evalue"]:  # IPython 8 wants that package for %store
        assert seen["store"]["failed"] is False
        assert (home / ".ipython" / "profile_default" / "db").is_dir()  # %store asked for it
    assert not list(home.rglob("history*"))


# -- beside a real kernel

FIRST = "%%remote train -o model"

# Independent cells: a worker's cells share no namespace. Each runs in both, and the stories are compared.
CELLS = {
    "last expression": "x = 6\nx * 7",
    "semicolon": "x = 6\nx * 7;",
    "no expression": "x = 6",
    "comment after semicolon": "5;  # hush",
    "text": "print('a')\nprint('b', end='')",
    "stderr": "import sys\nprint('oops', file=sys.stderr)",
    "table": "import pandas as pd\npd.DataFrame({'a': [1, 2]})",
    "display handles": (
        "from IPython.display import HTML, clear_output, display\n"
        "handle = display(HTML('<b>1</b>'), display_id='here', metadata={'text/html': {'isolated': True}})\n"
        "clear_output(wait=True)\nhandle.update(HTML('<b>2</b>'))\ndisplay('three', 4)"
    ),
    "raw bytes": "display({'image/png': b'\\x89PNG\\r\\n\\x1a\\n123', 'text/plain': 'p'}, raw=True)",
    "image metadata": (
        "from IPython.display import Image\nImage(data=b'\\x89PNG\\r\\n\\x1a\\n' + bytes(30), format='png', width=10)"
    ),
    "json": "from IPython.display import JSON\nJSON({'a': [1, None, 2.5]}, expanded=True)",
    "long list": "list(range(2000))",
    "zero division": "def f(x):\n    y = x\n    return y / 0\n\nf(3)",
    "chain": "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('bad') from e",
    "context": "try:\n    {}['k']\nexcept KeyError:\n    undefined_name",
    "library frames": "import json\njson.loads('{')",
    "recursion": "def f(n):\n    return f(n + 1) if n < 20 else 1 / 0\nf(0)",
    "notes": "e = ValueError('v')\nif hasattr(e, 'add_note'):\n    e.add_note('a note')\nraise e",
    "own traceback": "class E(Exception):\n    def _render_traceback_(self):\n        return ['mine', str(self)]\nraise E('x')",
    "syntax error": "x = 1\nif x\n    pass",
    "indentation error": "if True:\n    x = 1\n  y = 2",
    "return outside": "x = 1\nreturn x",
    "keyboard interrupt": "raise KeyboardInterrupt",
    "system exit": "import sys\nsys.exit(3)",
    "usage error": "%no_such_magic",
    "empty": "   \n\n",
    "shell": "name = 'you'\nprint('before')\n!echo hi {name} $name\nprint('after')\nlines = !echo out\nlines",
    "exit code": "!exit 3\n_exit_code",
    "bash": "%%bash\necho one\necho two",
    "capture": "%%capture out\nprint('hidden')",
    "captured": "%%capture out\nprint('hidden')\n5",
    "time error": "%%time\n1/0",
    "figures": (
        "import matplotlib.pyplot as plt\nplt.figure()\nplt.plot([1, 2])\nplt.show()\nprint('between')\n"
        "plt.figure()\nplt.plot([3])\nplt.figure()\nplt.title('third')\nNone"
    ),
    "figure object": "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nfig",
    "svg": (
        "%config InlineBackend.figure_formats = ['svg']\nimport matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()\n"
        "%config InlineBackend.figure_formats = ['png']"
    ),
    "matplotlib inline": "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1]);",
    "await": "import asyncio\nawait asyncio.sleep(0.001)\nasyncio.get_running_loop().is_running()",
    "async with": (
        "class C:\n    async def __aenter__(self): return 4\n    async def __aexit__(self, *a): pass\n"
        "async with C() as c:\n    print(c)"
    ),
    "async error": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 1 / 0\nawait f()",
    "async cancelled": "import asyncio\nt = asyncio.ensure_future(asyncio.sleep(9))\nt.cancel()\nawait t",
    "repr fails": "class R:\n    def _repr_html_(self): raise ValueError('no html')\n    def __repr__(self): return 'R!'\nR()",
    "nested run_cell": "r = get_ipython().run_cell('1/0')\nr.success",
    "warning": "import warnings\nwarnings.warn('careful')",
    "logging": "import logging\nlogging.getLogger('x').warning('logged')",
    "widget": "import ipywidgets\nipywidgets.IntSlider(value=3)",
    "xmode": "%xmode Minimal\n1/0",
    "xmode back": "%xmode Context",
    "minimal f-string": "f'{1+1}'",
}
# Only as cells that are waited for, which are more like those of a kernel.
WAITED_CELLS = {
    "help": "len?",
    "pages": "text = 'one'\n%page text\nget_ipython().set_next_input('next', replace=True)",
    "is with a literal": "x = 5\nx is 5",
    "awaits and is": "import asyncio\nx = await asyncio.sleep(0, 5)\nx is 5",
    "loop": "import asyncio\nasyncio.get_running_loop().is_running(), asyncio.get_event_loop().is_running()",
    "task": "import asyncio\nasync def f(): pass\ntask = asyncio.create_task(f())\nprint('created')",
    "asyncio.run": "import asyncio\nasync def f(): pass\ncoroutine = f()\nasyncio.run(coroutine)",
    "displays itself": "class D:\n    def _ipython_display_(self): print('me')\nD()",
    "source": "import inspect\ndef f():\n    return 2\nprint(inspect.getsource(f), f.__code__.co_filename)",
    "printed": "import traceback\ntry:\n    1/0\nexcept Exception:\n    traceback.print_exc()",
    "deleted": "x = [1]\n%xdel x\n'x' in globals()",
    "taken by a handler": (
        "def mine(ip, etype, value, tb, tb_offset=None):\n    print('mine', value)\n"
        "get_ipython().set_custom_exc((LookupError,), mine)\n{}['k']"
    ),
    "no handler": "get_ipython().set_custom_exc((), None)",
    "ignored": "class L:\n    def __del__(self): raise ValueError('late')\nx = L()\ndel x",
}
if sys.version_info >= (3, 11):
    WAITED_CELLS["group"] = "try:\n    1/0\nexcept Exception as e:\n    raise ExceptionGroup('all', [e, KeyError('k')])"
MAY_FAIL_DIFFERENTLY = {
    # ipykernel 7 marks the run as failed when one representation fails; the value is there, so the task is not.
    "repr fails",
}
# The fast way (see `essence`) takes the line a frame is at now for the line that raised, and repeats equal frames.
FAST_WAY_IS_WRONG = {"chain", "context", "recursion"}


def without_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if not re.match(r"Cell In|-+>|\s+\[\.\.\. skipping", line)]


def normal(text: str) -> str:
    """Without what differs by process: colours, addresses, file names of cells, counts of frames, model ids."""
    text = plain(text)
    text = re.sub(r"0x[0-9a-f]+|object at [0-9a-f]+", "0x", text)
    text = re.sub(r"(/\S*ipykernel_\d+/)?\d{5,}\.py|<ipython-input-\d+-\w+>", "CELLFILE", text)
    text = re.sub(r"\(\d+ times\)|frames: \d+|\d+ more times", "N", text)
    text = re.sub(r"[0-9a-f]{32}", "MODEL", text)
    text = re.sub(r"(id|xlink:href)=\"[^\"]*\"|url\([^)]*\)|<dc:date>[^<]*", "ID", text)
    return re.sub(r"(user|sys|total|Wall time)[: ]+[0-9.e+]+ \S+", "TIME", text)


def essence(traceback: list[str]) -> list[str]:
    """A traceback without the lines around the current ones.

    IPython 9 takes a slow and a fast way to format a frame, with less or more of such lines. In a kernel it takes the
    fast one for cells only because it cannot open the file name that ipykernel gives them.
    """
    lines = normal("\n".join(traceback)).replace("#" + FIRST, FIRST).splitlines()
    lines = [re.sub(r"(-+> \d+) +", r"\1 ", line) for line in lines]  # the slow way dedents
    lines = [line for line in lines if not re.match(r" +(\d+ |\d+$|\(\.\.\.\))", line) and line.strip()]
    text = re.sub(r"^File \S*/IPython/core/formatters.*\n-+>.*\n", "", "\n".join(lines), flags=re.M)  # IPython 8
    return text.splitlines()


def normal_story(messages: list[Any]) -> dict[str, Any]:
    """Rich messages in their order, and each stream as one text; pictures as the fact that there is one."""
    story: dict[str, Any] = {"rich": [], "stdout": "", "stderr": ""}
    for kind, content in messages:
        if kind in ("stdout", "stderr"):
            story[kind] += content
            continue
        content = json.loads(normal(json.dumps(content, sort_keys=True)))
        for mime in ("image/png", "image/svg+xml"):
            if mime in content.get("data", {}) and len(content["data"][mime]) > 500:
                content["data"][mime] = "a picture"
        if kind == "error":
            content["traceback"] = essence(content["traceback"])
        story["rich"].append([kind, content])
    return {**story, "stdout": normal(story["stdout"]), "stderr": normal(story["stderr"])}


@pytest.fixture(scope="module")
def kernel_stories(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """Every cell of CELLS in a real ipykernel, twice: as it is, and with a comment in the place of the magic line."""
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    env["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))
    manager, client = start_new_kernel(kernel_name="python3", env=env)
    stories: dict[Any, dict[str, Any]] = {}  # by name, or by (name, "numbered")
    try:
        for name, source in {**CELLS, **WAITED_CELLS}.items():
            stories[name] = kernel_cell(client, source)
            if not source.startswith("%%"):
                stories[name, "numbered"] = kernel_cell(client, f"#{FIRST}\n{source}")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return stories


def kernel_cell(client: Any, source: str) -> dict[str, Any]:
    messages: list[Any] = []

    def hear(message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            messages.append([content["name"], content["text"]])
        elif kind in ("execute_result", "display_data", "update_display_data", "clear_output", "error"):
            messages.append([kind, content])

    reply = client.execute_interactive(source, output_hook=hear, allow_stdin=False, timeout=60)["content"]
    if reply["status"] == "error":
        own = ["error", {key: reply[key] for key in ("ename", "evalue", "traceback")}]
        messages = [message for message in messages if message != own]  # the outcome has it
    return {
        "messages": messages,
        "n": reply["execution_count"],
        "failed": reply["status"] == "error",
        "ename": reply.get("ename", ""),
        "evalue": reply.get("evalue", ""),
        "traceback": reply.get("traceback", []),
        "payloads": reply["payload"],
    }


@pytest.fixture(scope="module")
def worker_stories(kernel_stories: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The same cells in a worker's shell, under the same numbers."""
    plan = [
        [name, source, kernel_stories[name]["n"], kernel_stories.get((name, "numbered"), {}).get("n")]
        for name, source in {**CELLS, **WAITED_CELLS}.items()
    ]
    return in_child(
        f"""
        import ipywidgets, matplotlib.pyplot, pandas
        gc.freeze()  # resets are faster so; a worker does it after its imports
        for name, source, n, numbered in json.loads({json.dumps(json.dumps(plan))}):
            if name in {list(CELLS)}:
                seen[name] = cell(source, n=n)
                if numbered is not None:
                    seen[name + " numbered"] = cell(source, n=numbered, first_line={FIRST!r})
            first_line = "" if numbered is None else {FIRST!r}
            file_name = "/tmp/ipykernel_1/" + str(123456 + n) + ".py"
            seen[name + " waited"] = cell(source, n=numbered or n, first_line=first_line, file_name=file_name, waited=True)
        """,
        MPLBACKEND=None,
    )


@pytest.mark.parametrize("numbered", [False, True], ids=["plain", "numbered"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_looks_as_in_a_kernel(
    kernel_stories: dict[Any, Any], worker_stories: dict[str, Any], name: str, numbered: bool
) -> None:
    if numbered and (name, "numbered") not in kernel_stories:
        pytest.skip("a cell magic must be the first line in a kernel")
    kernel = kernel_stories[(name, "numbered") if numbered else name]
    worker = worker_stories[f"{name} numbered" if numbered else name]
    assert normal_story(worker["messages"]) == normal_story(kernel["messages"])
    if name in MAY_FAIL_DIFFERENTLY:
        return
    assert worker["failed"] == kernel["failed"]
    assert (worker["ename"], normal(worker["evalue"])) == (kernel["ename"], normal(kernel["evalue"]))
    ours, theirs = essence(worker["traceback"]), essence(kernel["traceback"])
    if name in FAST_WAY_IS_WRONG:
        ours, theirs = without_lines(ours), without_lines(theirs)
    assert ours == theirs
    has_colours = any("\x1b[" in line for line in kernel["traceback"])
    assert any("\x1b[" in line for line in worker["traceback"]) == has_colours


@pytest.mark.parametrize("name", {**CELLS, **WAITED_CELLS})
def test_a_cell_that_is_waited_for_looks_exactly_as_in_a_kernel(
    kernel_stories: dict[Any, Any], worker_stories: dict[str, Any], name: str
) -> None:
    """Promise: semantics.md, `--wait -o '*'`. Tracebacks with all lines and colours; pages and what the reply says, too."""
    kernel = kernel_stories.get((name, "numbered"), kernel_stories[name])
    worker = worker_stories[f"{name} waited"]
    told = [content["told"] for kind, content in worker["messages"] if kind == "ended"]
    assert len(told) == (1 if worker["failed"] else 0)
    ours = normal_story([each for each in worker["messages"] if each[0] != "ended"])
    theirs = normal_story(kernel["messages"])
    if worker["ename"] == "UsageError":
        ours["stderr"] += f"UsageError: {worker['evalue']}\n"  # by whoever raises it in the kernel
    elif worker["ename"] == "SystemExit":
        theirs["stderr"] = ""  # "To exit: use ...", once in a process: by whoever raises it
    elif worker["ename"] == "ExceptionGroup":
        ours["stderr"] += normal("\n".join(worker["traceback"]) + "\n")
    assert ours == theirs
    assert (worker["failed"] or worker["display_failed"]) == kernel["failed"]
    if worker["display_failed"]:
        assert kernel["evalue"] == "None"
        return
    assert (worker["ename"], normal(worker["evalue"])) == (kernel["ename"], normal(kernel["evalue"]))
    if worker["ename"] != "ExceptionGroup":
        lines = "\n".join(kernel["traceback"]).replace("#" + FIRST, FIRST)
        assert normal("\n".join(worker["traceback"])) == normal(lines)
    assert worker["payloads"] == kernel["payloads"]
    assert told == ([name == "taken by a handler"] if worker["failed"] else [])


@pytest.fixture(scope="module")
def waited() -> dict[str, Any]:
    return in_child(
        """
        FILE = "/tmp/ipykernel_1/5.py"
        def waited(name, source, **options):
            seen[name] = cell(source, waited=True, file_name=FILE, first_line="%%remote --wait", n=5, **options)

        waited("figure", "import matplotlib.pyplot as plt\\nplt.plot([1])\\n1/0")
        waited("figure without an error", "import matplotlib.pyplot as plt\\nplt.plot([1]);")
        waited("usage", "%no_such")
        waited("caught usage", "from IPython.core.error import UsageError\\nget_ipython().run_cell('%no_such');")
        waited("exit", "raise SystemExit(3)")
        waited("warnings after exit", "import warnings\\nwarnings.warn('To exit: use this')")
        waited("nested", "def f(): pass\\nget_ipython().run_cell('def g(): pass')\\nf.__code__.co_filename, g.__code__.co_filename")
        for name, source in {
            "stored": "5", "semicolon": "5;", "none": "None", "not the last": "5\\nx = 6",
            "assigned": "x = 5", "error": "5\\n1/0",
            "itself": "class D:\\n    def _ipython_display_(self): pass\\nD()",
            "bad repr": "class R:\\n    def _repr_html_(self): 1/0\\n    def __repr__(self): return 'R'\\nR()",
        }.items():
            waited(name, source)
        answers = iter(["p x", "q"])
        def stdin(prompt, password):
            messages.append(["asked", prompt])
            return next(answers)
        waited("pdb", "%pdb on\\nx = 41 + 1\\n1/0", stdin=stdin)
        waited("page", "%page text", namespace={"text": "one"})
        seen["page for nobody"] = cell("%page text", {"text": "one"})
        seen["next for nobody"] = cell("get_ipython().set_next_input('x')")

        OLD = "/tmp/ipykernel_1/4.py"
        namespace = shell.fresh_namespace()
        exec(compile("\\n\\ndef old():\\n    return 1 / 0", OLD, "exec"), namespace)
        shell.learn_sources({OLD: [4, "%%remote first\\n# made\\ndef old():\\n    return 1 / 0"]})
        waited("learned", "import inspect\\nprint(inspect.getsource(old))\\nold()", namespace=namespace)
        shell.learn_sources({f"/tmp/ipykernel_1/{i}.py": [i, "x\\ny"] for i in range(10, 500)})
        shell.learn_sources({OLD: [4, "kept"]})
        seen["known"] = [len([name for name in linecache.cache if "ipykernel_1" in name]), OLD in linecache.cache]
        shell.reset()
        seen["known after"] = [len(shell.ip.compile._filename_map), OLD in linecache.cache]
        """,
        MPLBACKEND=None,
    )


def test_outputs_of_post_execute_come_after_the_word_that_the_cell_has_failed(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: a plain cell shows the error, then the figure."""
    assert kinds(waited["figure"]) == ["ended", "display_data"]
    assert kinds(waited["figure without an error"]) == ["display_data"]


def test_who_raises_the_error_of_a_waited_cell_prints_it(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: what a plain cell prints once is printed once."""
    assert kinds(waited["usage"]) == ["ended"]
    assert text_of(waited["caught usage"], "stderr") == "UsageError: Line magic function `%no_such` not found.\n"
    assert kinds(waited["exit"]) == ["ended"]
    assert plain(waited["exit"]["traceback"]).splitlines()[-1] == "SystemExit: 3"
    assert "To exit: use this" in text_of(waited["warnings after exit"], "stderr")  # the filter has gone


def test_a_cell_is_compiled_under_the_name_that_it_is_given(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: warnings, tracebacks and inspect say what they say in the kernel."""
    name, nested = eval(waited["nested"]["value"])
    assert name == "/tmp/ipykernel_1/5.py"
    assert nested.startswith("<ipython-input-")


def test_a_result_is_what_ipython_stores(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: `_` and Out are as after a plain cell."""
    stored = ["stored", "semicolon", "none", "not the last", "assigned", "error", "itself", "bad repr"]
    assert [name for name in stored if waited[name]["has_result"]] == ["stored", "itself", "bad repr"]
    assert [name for name in stored if waited[name]["display_failed"]] == ["bad repr"]
    assert waited["bad repr"]["failed"] is False


def test_pdb_opens_below_the_error_which_is_then_told(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait`: who waits is asked, and sees the error before."""
    assert [kind for kind in kinds(waited["pdb"]) if kind != "stdout"] == ["error", "asked", "asked", "ended"]
    assert "42\n" in text_of(waited["pdb"])
    assert waited["pdb"]["messages"][-1] == ["ended", {"told": True}]


def test_pages_are_payloads_if_somebody_waits_and_else_outputs(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: `x?` opens the pager; a board shows it."""
    assert waited["page"]["payloads"] == [{"source": "page", "data": {"text/plain": "'one'"}, "start": 0}]
    assert kinds(waited["page"]) == []
    assert kinds(waited["page for nobody"]) == ["display_data"]
    assert waited["page for nobody"]["payloads"] == waited["next for nobody"]["payloads"] == []


def test_functions_of_earlier_cells_are_shown_with_their_lines(waited: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: tracebacks through functions that travel are those of the kernel."""
    text = plain(waited["learned"]["traceback"])
    assert "Cell In[4], line 4, in old()\n      3 def old():\n----> 4     return 1 / 0" in text
    assert text_of(waited["learned"]) == "def old():\n    return 1 / 0\n\n"
    assert "#%%" not in text


def test_texts_of_earlier_cells_are_bounded_and_the_last_are_kept(waited: dict[str, Any]) -> None:
    assert waited["known"][1] is waited["known after"][1] is True
    assert waited["known after"][0] <= 200


# -- lines and frames


@pytest.fixture(scope="module")
def errors() -> dict[str, Any]:
    return in_child(
        """
        import importlib.util
        for name, source in {
            "second line": "1/0",
            "after blank lines": "\\n\\n1/0",
            "syntax": "x = 1\\nx = = 2",
            "compiled": "exec('x = = 2')",
            "source": "import inspect\\nclass C:\\n    a = 1\\ndef f():\\n    return 2\\n"
                      "print(inspect.getsource(f), f.__code__.co_firstlineno)",
            "warning": "import warnings\\n\\nwarnings.warn('w')",
            "printed": "import traceback\\ntry:\\n    1/0\\nexcept Exception:\\n    traceback.print_exc()",
            "usage": "%no_such",
            "exit": "print(1)\\nexit()\\nprint(2)",
            "quit word": "quit",
            "group": "try:\\n    1/0\\nexcept Exception as e:\\n    raise group('all', [e, KeyError('k')])",
            "tb": "try:\\n    1/0\\nexcept Exception:\\n    get_ipython().showtraceback()\\n%tb\\nprint('went on')",
            "unprintable": "class E(Exception):\\n    def __str__(self): raise ValueError\\nraise E",
            "custom": "def mine(ip, etype, value, tb, tb_offset=None):\\n    print('mine', value)\\n"
                      "get_ipython().set_custom_exc((KeyError,), mine)\\n{}['k']",
            "custom is gone": "{}['k']",
        }.items():
            try:
                group = ExceptionGroup
            except NameError:
                group = __import__("exceptiongroup").ExceptionGroup
            seen[name] = cell(source, {"group": group}, n=7, first_line="%%remote train -o model")

        outcome = run("def f():\\n    1/0\\nf()", first_line="%%remote")
        seen["frames"] = []
        tb = outcome.error.__traceback__
        while tb is not None:
            seen["frames"].append([tb.tb_frame.f_code.co_name, tb.tb_lineno])
            tb = tb.tb_next
        """
    )


def test_line_one_is_the_magic_line(errors: dict[str, Any]) -> None:
    assert plain(errors["second line"]["traceback"]).splitlines()[2:5] == [
        "Cell In[7], line 2",
        "      1 %%remote train -o model",
        "----> 2 1/0",
    ]
    assert "Cell In[7], line 4\n" in plain(errors["after blank lines"]["traceback"])
    assert plain(errors["syntax"]["traceback"]).startswith("  Cell In[7], line 3\n    x = = 2\n")
    assert re.search(r"<ipython-input-7-\w+>:4: UserWarning: w\n", text_of(errors["warning"], "stderr"))
    assert re.search(r'File "<ipython-input-7-\w+>", line 4, in <module>', text_of(errors["printed"], "stderr"))


def test_the_source_of_functions_can_be_inspected(errors: dict[str, Any]) -> None:
    assert text_of(errors["source"]) == "def f():\n    return 2\n 5\n"


def test_tracebacks_hold_no_frames_of_ipython_or_ours(errors: dict[str, Any]) -> None:
    assert errors["frames"] == [["<module>", 4], ["f", 3]]
    for name, story in errors.items():
        if name != "frames":
            assert "interactiveshell" not in plain(story["traceback"]), name
            assert "jupyter_tasks" not in plain(story["traceback"]), name
    assert plain(errors["compiled"]["traceback"]).count("Cell In[7], line 2") == 1


def test_a_usage_error_is_text_on_stderr(errors: dict[str, Any]) -> None:
    assert errors["usage"]["ename"] == "UsageError"
    assert errors["usage"]["traceback"] == []
    assert "`%no_such` not found" in text_of(errors["usage"], "stderr")


def test_exit_and_quit_end_the_cell_with_system_exit(errors: dict[str, Any]) -> None:
    assert [errors[name]["ename"] for name in ("exit", "quit word")] == ["SystemExit"] * 2
    assert text_of(errors["exit"]) == "1\n"


def test_an_exception_group_has_its_whole_tree_as_traceback(errors: dict[str, Any]) -> None:
    text = plain(errors["group"]["traceback"])
    assert errors["group"]["ename"] == "ExceptionGroup"
    assert "Cell In[7], line 5, in <module>" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "KeyError: 'k'" in text
    assert text_of(errors["group"], "stderr") == ""


def test_an_error_that_is_only_shown_is_a_message_and_the_cell_goes_on(errors: dict[str, Any]) -> None:
    assert kinds(errors["tb"]) == ["error", "error", "stdout"]
    assert errors["tb"]["failed"] is False
    assert "line 3" in plain(errors["tb"]["messages"][0][1]["traceback"])


def test_errors_that_resist_are_told_all_the_same(errors: dict[str, Any]) -> None:
    assert errors["unprintable"]["ename"] == "E"
    assert errors["unprintable"]["evalue"] == "<unprintable E>"


def test_custom_exception_handlers_work_in_their_cell_only(errors: dict[str, Any]) -> None:
    assert text_of(errors["custom"]) == "mine 'k'\n"
    assert errors["custom"]["ename"] == errors["custom is gone"]["ename"] == "KeyError"
    assert text_of(errors["custom is gone"]) == ""
    assert "line 2" in plain(errors["custom is gone"]["traceback"])


# -- values, names and order


@pytest.fixture(scope="module")
def basics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("basics")
    (folder / "good.py").write_text("y = x0 + 1\n")
    (folder / "bad.py").write_text("print('in')\n1/0\n")
    (folder / "ext.py").write_text(
        "def load_ipython_extension(ip):\n"
        "    ip.register_magic_function(lambda line: 'magic ' + line, magic_name='extmagic')\n"
    )
    return in_child(
        f"""
        os.chdir({str(folder)!r})
        sys.path.insert(0, {str(folder)!r})
        seen["value"] = cell("x + 1", {{"x": 41}})
        seen["semicolon"] = cell("x + 1;", {{"x": 41}})
        seen["silent"] = cell("class R:\\n    def __repr__(self): print('repr!'); return 'R'\\n    def f(self): pass\\nx = R()\\n7", silent_result=True)
        seen["silent out"] = cell("7", silent_result=True)
        seen["assignment"] = cell("5\\nx = 6")
        seen["none"] = cell("5\\nNone")
        seen["all"] = cell("get_ipython().ast_node_interactivity = 'all'")
        seen["all is gone"] = cell("1\\n2")
        seen["names"] = cell("a = 1\\n_b = 2\\nc: int = 3\\ndef f(): pass\\ndel z\\n!true\\na", {{"x": 0, "z": 1}})
        seen["names after an error"] = cell("a = 1\\n1/0")
        seen["shadow"] = cell("print(display, quit)", {{"display": 5, "quit": 6}})
        seen["out"] = cell("get_ipython().run_cell('3*3', store_history=True)\\nprint(_, list(Out.values()), In[11][:3], _ih[11][:3])", n=11)
        seen["out is gone"] = cell("print(repr(_), Out, In[5])", n=5)
        seen["order"] = cell("print('a'); display(1); print('b'); display(2); import sys; print('c', file=sys.stderr); 3")
        seen["pwd"] = cell("%env JT_X=1\\n!echo $JT_X\\n%run good.py\\ny", {{"x0": 1}})
        seen["run -i"] = cell("%run -i good.py\\ny", {{"x0": 1}})
        seen["run bad"] = cell("%run bad.py\\nprint('on')")
        seen["writefile"] = cell("%%writefile new.txt\\nhello")
        seen["ext"] = cell("%load_ext ext\\n%extmagic 5")
        seen["ext stays"] = cell("%extmagic 6")
        seen["timeit"] = cell("%timeit -n1 -r1 pass")
        seen["local"] = cell("def f():\\n    word = 'local'\\n    !echo {{word}}\\n    out = !echo {{word}}\\n    return out\\nf()")
        seen["events"] = cell('''
ip = get_ipython()
ip.events.register("pre_run_cell", lambda info: print("pre", info.raw_cell))
ip.events.register("post_run_cell", lambda result: print("post", result.success, result.result))
9''')
        seen["events are gone"] = cell("1")
        fresh = shell.fresh_namespace()
        fresh["f"] = eval("lambda: later", fresh)
        seen["fresh"] = cell("later = 8\\nf()", fresh)
        seen["json"] = cell('''
import datetime
class N(dict): pass
display({{"application/json": {{1: float("nan"), "d": datetime.date(2026, 1, 2), "t": (1, b"ab", True), "s": N(x=1)}}}}, raw=True)''')
        """
    )


def test_the_value_is_the_last_expression_and_a_semicolon_only_hides_it(basics: dict[str, Any]) -> None:
    assert basics["value"]["value"] == basics["semicolon"]["value"] == "42"
    assert kinds(basics["value"]) == ["execute_result"]
    assert kinds(basics["semicolon"]) == []
    assert basics["assignment"]["value"] == basics["none"]["value"] == "None"
    assert kinds(basics["assignment"]) == []


def test_a_silent_result_is_not_even_formatted(basics: dict[str, Any]) -> None:
    assert (basics["silent"]["value"], basics["silent"]["messages"]) == ("7", [])
    assert (basics["silent out"]["value"], basics["silent out"]["messages"]) == ("7", [])


def test_settings_of_the_shell_do_not_survive_the_cell(basics: dict[str, Any]) -> None:
    assert kinds(basics["all is gone"]) == ["execute_result"]


def test_the_namespace_comes_back_without_ipythons_own_names(basics: dict[str, Any]) -> None:
    assert basics["names"]["names"] == ["_b", "_exit_code", "a", "c", "f", "x"]
    assert basics["names after an error"]["names"] == ["a"]


def test_given_names_hide_ipythons(basics: dict[str, Any]) -> None:
    assert text_of(basics["shadow"]) == "5 6\n"
    assert basics["shadow"]["names"] == ["display", "quit"]


def test_in_out_and_underscores_are_numbered_as_the_cell(basics: dict[str, Any]) -> None:
    assert text_of(basics["out"]) == "9 [9] get get\n"
    assert text_of(basics["out is gone"]) == "'' {} print(repr(_), Out, In[5])\n"


def test_text_and_messages_keep_their_order(basics: dict[str, Any]) -> None:
    assert kinds(basics["order"]) == [*("stdout", "display_data", "stdout", "display_data", "stderr", "execute_result")]


def test_magics_work(basics: dict[str, Any]) -> None:
    assert text_of(basics["pwd"]).splitlines()[:2] == ["env: JT_X=1", "1"]
    assert "x0" in basics["pwd"]["messages"][-1][1]["evalue"]  # %run has a namespace of its own
    assert basics["run -i"]["value"] == "2"
    assert text_of(basics["writefile"]) == "Writing new.txt\n"
    assert "per loop" in text_of(basics["timeit"])
    assert text_of(basics["local"]) == "local\r\n"
    assert basics["local"]["value"] == "['local']"


def test_an_error_in_a_script_of_run_is_shown_and_the_cell_goes_on_as_in_a_kernel(
    basics: dict[str, Any],
) -> None:
    assert kinds(basics["run bad"]) == ["stdout", "error", "stdout"]
    assert basics["run bad"]["failed"] is False


def test_extensions_stay_loaded(basics: dict[str, Any]) -> None:
    assert [basics[name]["value"] for name in ("ext", "ext stays")] == ["'magic 5'", "'magic 6'"]


def test_run_cell_events_fire_with_ipythons_result_and_end_with_their_cell(basics: dict[str, Any]) -> None:
    assert text_of(basics["events"]).splitlines() == ["post True 9"]
    assert text_of(basics["events are gone"]) == ""


def test_functions_can_be_built_in_the_fresh_namespace(basics: dict[str, Any]) -> None:
    assert basics["fresh"]["value"] == "8"


def test_contents_can_always_be_written_as_json(basics: dict[str, Any]) -> None:
    ((kind, content),) = basics["json"]["messages"]
    assert kind == "display_data"
    assert content["data"]["application/json"] == {
        "1": "nan",
        "d": "2026-01-02",
        "t": [1, "YWI=", True],
        "s": {"x": 1},
    }


def test_a_shell_command_prints_as_it_runs(tmp_path: Path) -> None:
    """The command waits for a file that is made only when its first word has been seen."""
    seen = in_child(
        f"""
        flag = {str(tmp_path / "flag")!r}
        plain_write = Recorder.write
        def write(self, text):
            if "first" in text:
                open(flag, "w").close()
            return plain_write(self, text)
        Recorder.write = write
        seen["story"] = cell("print('zero')\\n!echo first; while [ ! -e {{flag}} ]; do sleep 0.01; done; echo second\\nprint('end')",
                             {{"flag": flag}})
        """,
        timeout=30,
    )
    assert text_of(seen["story"]).split() == ["zero", "first", "second", "end"]


def test_figures_are_shown_although_pyplot_was_imported_before_the_shell() -> None:
    pytest.importorskip("matplotlib")
    seen = in_child(
        """
        seen["first"] = cell("import matplotlib.pyplot as plt\\nplt.plot([1])\\nprint('x')\\nNone")
        seen["again"] = cell("import matplotlib.pyplot as plt\\nprint(plt.get_fignums())\\nplt.plot([1]);")
        """,
        prelude="import os\nos.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'\n"
        "import matplotlib.pyplot as plt\nplt.figure()\nplt.close('all')",
    )
    assert kinds(seen["first"]) == ["stdout", "display_data"]
    assert kinds(seen["again"]) == ["stdout", "display_data"]
    assert text_of(seen["again"]) == "[]\n"


# -- async


@pytest.fixture(scope="module")
def asynchronous() -> dict[str, Any]:
    return in_child(
        """
        seen["leftover"] = cell('''
import asyncio
async def forever():
    try:
        await asyncio.sleep(60)
    finally:
        print("ended")
task = asyncio.create_task(forever())
await asyncio.sleep(0)
"done"''')
        seen["leftover fails"] = cell('''
import asyncio
async def fails():
    try:
        await asyncio.sleep(60)
    finally:
        1/0
task = asyncio.create_task(fails())
await asyncio.sleep(0)''')
        seen["asyncio.run"] = cell("import asyncio\\nasync def f(): return 5\\nasyncio.run(f())")
        seen["get_event_loop"] = cell('''
import asyncio, warnings
warnings.simplefilter("ignore")
asyncio.new_event_loop().run_until_complete(asyncio.sleep(0))''')
        seen["async for"] = cell('''
async def g():
    for i in range(3):
        yield i
[i async for i in g()]''')
        seen["generator is closed"] = cell('''
async def g():
    try:
        yield 1
    finally:
        print("closed")
async for i in g():
    break''')
        seen["to_thread"] = cell('''
import asyncio, threading
await asyncio.to_thread(lambda: threading.current_thread() is threading.main_thread())''')
        seen["threads"] = threading.active_count()
        seen["nested"] = cell("import asyncio\\nawait asyncio.sleep(0)\\nget_ipython().run_cell('await asyncio.sleep(0)').success")
        seen["autoawait"] = cell("%autoawait")
        seen["off"] = cell("%autoawait False")
        seen["on again"] = cell("import asyncio\\nawait asyncio.sleep(0, 3)")
        seen["waited task"] = cell('''
import asyncio
async def forever():
    try:
        await asyncio.sleep(60)
    finally:
        print("ended")
task = asyncio.create_task(forever());''', waited=True)
        in_loop = "import asyncio\\nasync def f(): return 5\\nasyncio.run(f()), asyncio.get_running_loop().is_running()"
        seen["waited asyncio.run"] = cell(in_loop, waited=True)
        import contextvars
        variable = contextvars.ContextVar("variable", default=1)
        cell("variable.set(2)", {"variable": variable}, waited=True)
        seen["after a cell"] = variable.get()
        cell("import asyncio\\nawait asyncio.sleep(0)\\nvariable.set(3)", {"variable": variable}, waited=True)
        seen["after one that awaits"] = variable.get()
        seen["nested loops"] = None
        for package in ("nest_asyncio", "nest_asyncio2"):
            try:
                __import__(package)
            except ImportError:
                continue
            seen["nested loops"] = cell(in_loop, waited=True, nested_loops=package)
            break
        """
    )


def test_tasks_left_behind_are_cancelled_at_the_end_of_the_cell(asynchronous: dict[str, Any]) -> None:
    assert asynchronous["leftover"]["value"] == "'done'"
    assert text_of(asynchronous["leftover"]) == "ended\n"
    assert asynchronous["leftover fails"]["failed"] is False


def test_a_waited_cell_runs_in_a_loop_and_can_nest_others_if_the_kernel_can(asynchronous: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: the kernel's loop is running while a cell runs, await or not."""
    assert text_of(asynchronous["waited task"]) == "ended\n"
    assert asynchronous["waited asyncio.run"]["ename"] == "RuntimeError"
    if asynchronous["nested loops"] is not None:
        assert asynchronous["nested loops"]["value"] == "(5, True)"


def test_context_variables_keep_what_a_cell_sets_as_in_a_kernel(asynchronous: dict[str, Any]) -> None:
    """Promise: semantics.md, `--wait -o '*'`: numpy's print options, which are one, come home."""
    assert asynchronous["after a cell"] == 2
    assert asynchronous["after one that awaits"] == 2


def test_asyncio_run_works_in_a_cell_without_await(asynchronous: dict[str, Any]) -> None:
    assert asynchronous["asyncio.run"]["value"] == "5"
    assert asynchronous["get_event_loop"]["failed"] is False


def test_async_generators_and_threads_work_and_leave_nothing(asynchronous: dict[str, Any]) -> None:
    assert asynchronous["async for"]["value"] == "[0, 1, 2]"
    assert text_of(asynchronous["generator is closed"]) == "closed\n"
    assert asynchronous["to_thread"]["value"] == "False"
    assert asynchronous["threads"] == 1


def test_autoawait_is_as_in_a_kernel_and_comes_back(asynchronous: dict[str, Any]) -> None:
    assert asynchronous["nested"]["value"] == "False"
    assert "`asyncio`" in text_of(asynchronous["autoawait"])
    assert asynchronous["on again"]["value"] == "3"


# -- interrupts: a real SIGINT, sent as soon as the cell has said the word or its loop sleeps


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = tmp_path_factory.mktemp("interrupted") / "script.py"
    script.write_text("import time\nprint('IN')\ntime.sleep(60)\n")
    return in_child(
        f"""
        in_word = lambda: said("IN") and asleep()
        in_sleep = lambda: said("IN") and in_select()  # before the word, a loop selects too
        def interrupted(name, source, *ready, **options):
            messages.clear()
            for each in ready or [in_word]:
                interrupt_when(each)
            seen[name] = cell(source, **options)
            assert not any(thread.name == "asyncio_0" for thread in threading.enumerate())

        interrupted("sync", '''
import time
try:
    print("IN")
    time.sleep(60)
finally:
    print("finally")''', first_line="%%remote")
        interrupted("waited", "import time\\nprint('IN')\\ntime.sleep(60)", first_line="%%remote", waited=True)
        interrupted("waited wins", "import time\\ntry:\\n    print('IN')\\n    time.sleep(60)\\nexcept KeyboardInterrupt:\\n    pass\\n'won'", waited=True)
        interrupted("waited shell", "!echo IN; sleep 60\\nprint('not here')", waited=True)
        interrupted("busy", "print('IN')\\nwhile True: pass", lambda: said("IN"))
        interrupted("wins", "import time\\ntry:\\n    print('IN')\\n    time.sleep(60)\\nexcept KeyboardInterrupt:\\n    pass\\n'won'")
        interrupted("other error", "import time\\ntry:\\n    print('IN')\\n    time.sleep(60)\\nexcept KeyboardInterrupt:\\n    1/0")
        interrupted("async", '''
import asyncio
async def inner():
    try:
        print("IN")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled")
        raise
    finally:
        await asyncio.sleep(0)
        print("finally")
await inner()''', in_sleep, first_line="%%remote")
        interrupted("async wins", '''
import asyncio
try:
    print("IN")
    await asyncio.sleep(60)
except asyncio.CancelledError:
    await asyncio.sleep(0)
'won' ''', in_sleep)
        interrupted("async again", '''
import asyncio
async def stubborn():
    try:
        print("IN")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("SECOND")
    await asyncio.sleep(60)
await stubborn()''', in_sleep, lambda: said("SECOND") and in_select())
        interrupted("async busy", "import asyncio\\nasync def spin():\\n    print('IN')\\n    while True: pass\\nawait asyncio.gather(spin(), asyncio.sleep(60))", lambda: said("IN"))
        interrupted("async blocked", "import asyncio, time\\nawait asyncio.sleep(0)\\nprint('IN')\\ntime.sleep(60)")
        interrupted("async leftover", '''
import asyncio
async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("NO")
task = asyncio.create_task(stubborn())
await asyncio.sleep(0)''', lambda: said("NO") and in_select())
        interrupted("asyncio.run", '''
import asyncio
async def main():
    try:
        print("IN")
        await asyncio.sleep(60)
    finally:
        print("finally")
asyncio.run(main())''', in_sleep)
        interrupted("shell", "!echo IN; sleep 60\\nprint('not here')")
        interrupted("assigned", "print('IN')\\nx = !sleep 60\\nprint('not here')")
        interrupted("bash", "%%bash\\necho IN\\nexec sleep 60", lambda: said("IN"))
        interrupted("run", "%run {script}\\nprint('not here')")
        interrupted("time", "%%time\\nimport time\\nprint('IN')\\ntime.sleep(60)")
        interrupted("capture", "from IPython.utils.capture import capture_output\\nimport time, sys\\nwith capture_output():\\n    print('IN', file=sys.__stderr__)\\n    time.sleep(60)",
                    lambda: type(shell.ip.display_pub).__name__ == "CapturingDisplayPublisher" and asleep())
        interrupted("figure", '''
import matplotlib.pyplot as plt, time
class Slow(plt.Figure):
    def draw(self, *args, **kwargs):
        print("IN")
        time.sleep(60)
plt.figure(FigureClass=Slow)
'value' ''')
        seen["after"] = cell("print('fine')\\ndisplay(1)\\n2")
        seen["handler"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        seen["threads"] = [thread.name for thread in threading.enumerate()]
        """,
        timeout=100,
    )


def test_an_interrupt_ends_a_sync_cell_and_its_finally_runs(interrupted: dict[str, Any]) -> None:
    story = interrupted["sync"]
    assert story["ename"] == "KeyboardInterrupt"
    assert text_of(story) == "IN\nfinally\n"
    assert "Cell In[1], line" in plain(story["traceback"])
    assert interrupted["busy"]["ename"] == "KeyboardInterrupt"


def test_an_interrupt_ends_a_waited_cell_which_is_a_step_of_a_loop(interrupted: dict[str, Any]) -> None:
    """Promise: semantics.md, the stop button: code that blocks the loop is interrupted in the line where it is."""
    story = interrupted["waited"]
    assert story["ename"] == "KeyboardInterrupt"
    assert re.search(r"Cell In\[1\], line .*\n(.*\n)*-+> \d+ time.sleep", plain(story["traceback"]))
    assert "base_events" not in plain(story["traceback"])
    assert interrupted["waited wins"]["value"] == "'won'"
    assert interrupted["waited shell"]["ename"] == "KeyboardInterrupt"
    assert "not here" not in text_of(interrupted["waited shell"])


def test_a_cell_that_catches_the_interrupt_wins(interrupted: dict[str, Any]) -> None:
    assert interrupted["wins"]["value"] == interrupted["async wins"]["value"] == "'won'"
    assert interrupted["other error"]["ename"] == "ZeroDivisionError"
    assert "KeyboardInterrupt" in plain(interrupted["other error"]["traceback"])


def test_an_interrupt_cancels_the_main_task_as_asyncio_run_does(interrupted: dict[str, Any]) -> None:
    story = interrupted["async"]
    assert text_of(story) == "IN\ncancelled\nfinally\n"
    assert story["ename"] == "KeyboardInterrupt"
    text = plain(story["traceback"])
    assert "Cell In[1], line 14" in text
    assert "in inner()" in text
    assert text_of(interrupted["asyncio.run"]) == "IN\nfinally\n"
    assert interrupted["asyncio.run"]["ename"] == "KeyboardInterrupt"


def test_every_interrupt_is_delivered(interrupted: dict[str, Any]) -> None:
    assert text_of(interrupted["async again"]) == "IN\nSECOND\n"
    assert interrupted["async again"]["ename"] == "KeyboardInterrupt"
    assert interrupted["async leftover"]["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("name", ["async busy", "async blocked"])
def test_a_coroutine_that_never_awaits_is_interrupted_too(interrupted: dict[str, Any], name: str) -> None:
    assert interrupted[name]["ename"] == "KeyboardInterrupt"
    text = plain(interrupted[name]["traceback"])
    assert "Cell In[1]" in text
    assert "base_events" not in text  # the loop is ours, not the user's


@pytest.mark.parametrize("name", ["shell", "assigned", "bash", "run", "time", "capture", "figure"])
def test_an_interrupt_that_ipython_swallows_ends_the_cell(interrupted: dict[str, Any], name: str) -> None:
    assert interrupted[name]["ename"] == "KeyboardInterrupt"
    assert "KeyboardInterrupt" in plain(interrupted[name]["traceback"])
    assert "not here" not in text_of(interrupted[name])
    assert "error" not in kinds(interrupted[name])


def test_the_next_cell_is_not_touched_by_interrupts(interrupted: dict[str, Any]) -> None:
    assert kinds(interrupted["after"]) == ["stdout", "display_data", "execute_result"]
    assert interrupted["handler"] is True
    assert interrupted["threads"] == ["MainThread"]


def test_an_interrupt_before_the_code_begins_ends_the_cell_and_one_after_its_end_is_dropped() -> None:
    """The races, built: 1. SIGINT while the namespace is filled; 2. SIGINT while streams are restored."""
    seen = in_child(
        """
        def at(owner, name):
            original = getattr(owner, name)
            def wrapped(*args):
                setattr(owner, name, original)
                os.kill(os.getpid(), signal.SIGINT)
                return original(*args)
            setattr(owner, name, wrapped)
        at(shell_module, "_take_stdin")
        seen["before"] = cell("print('ran')")
        at(shell_module, "_stop_script_loop")
        seen["after"] = cell("5")
        at(shell.ip.events, "trigger")
        seen["pre_execute"] = cell("print('ran')")
        """
    )
    assert seen["before"]["ename"] == "KeyboardInterrupt"
    assert text_of(seen["before"]) == ""
    assert seen["after"]["value"] == "5"
    assert seen["pre_execute"]["ename"] == "KeyboardInterrupt"


def test_a_shell_that_could_not_be_made_is_made_anew() -> None:
    """IPython makes one instance only: an interrupt just after it was one cell's, and then that of all to come."""
    seen = in_child(
        """
        from jupyter_tasks.worker import shell
        made = shell._shell
        type(made.ip).clear_instance()
        shell._shell = None
        begin = shell.Shell.__init__
        def interrupted(self, ip):
            raise KeyboardInterrupt
        shell.Shell.__init__ = interrupted
        try:
            shell.worker_shell()
        except KeyboardInterrupt:
            seen["first"] = "interrupted"
        shell.Shell.__init__ = begin
        seen["second"] = shell.worker_shell().ip is not made.ip
        """
    )
    assert seen["first"] == "interrupted"
    assert seen["second"] is True


# -- stdin


def test_asking_for_input_fails_at_once_or_is_answered() -> None:
    seen = in_child(
        """
        for name, source in {
            "input": "input('name? ')",
            "getpass": "import getpass\\ngetpass.getpass()",
            "breakpoint": "breakpoint()",
            "pdb": "import pdb\\npdb.set_trace()\\nx = 1",
            "debug": "try:\\n    1/0\\nexcept Exception:\\n    get_ipython().showtraceback()\\n%debug",
            "pdb magic": "%pdb on\\n1/0",
            "reset": "x = 1\\n%reset\\n'x' in globals()",
        }.items():
            seen[name] = cell(source)
        def stdin(prompt, password):
            return f"{prompt}{password}"
        seen["answered"] = cell("import getpass\\n[input('a? '), getpass.getpass('b? ')]", stdin=stdin)
        answers = iter(["x + 1", "c"])
        seen["debugged"] = cell("x = 41\\nbreakpoint()\\nx = 2", stdin=lambda prompt, password: next(answers))
        seen["restored"] = input.__module__
        """
    )
    for name, what in [
        *[("input", "input()"), ("getpass", "getpass()"), ("breakpoint", "breakpoint()"), ("debug", "%debug")]
    ]:
        assert seen[name]["ename"] == "StdinNotImplementedError"
        assert seen[name]["evalue"].startswith(f"{what} needs somebody who answers: run the cell with %%remote --wait")
    assert seen["pdb"]["failed"] is True
    assert seen["pdb magic"]["ename"] == "ZeroDivisionError"
    assert "%pdb needs somebody who answers" in text_of(seen["pdb magic"], "stderr")
    assert seen["reset"]["failed"] is False  # IPython takes it for a yes
    assert seen["answered"]["value"] == "['a? False', 'b? True']"
    assert "42" in text_of(seen["debugged"])
    assert seen["restored"] == "builtins"


# -- after the cell


@pytest.fixture(scope="module")
def afterwards() -> dict[str, Any]:
    return in_child(
        """
        class Thing:
            pass
        seen["alive"] = {}
        import matplotlib.pyplot
        gc.freeze()  # resets are faster so; a worker does it after its imports
        def dies(name, source, **options):
            "The thing is in the namespace of the cell; is it gone after the reset?"
            thing = Thing()
            watch = weakref.ref(thing)
            run(source, {"thing": thing}, first_line="%%remote", **options)
            del thing
            shell.reset()
            seen["alive"][name] = watch() is not None

        dies("name", "x = thing")
        dies("function", "def f(): return thing")
        dies("class", "class C:\\n    t = thing")
        dies("result", "thing")
        dies("several results", "get_ipython().run_cell('thing', store_history=True)\\nget_ipython().last_execution_result")
        dies("error", "def f(x):\\n    1/0\\nf(thing)")
        dies("chained error", "try:\\n    try:\\n        1/0\\n    finally:\\n        thing.x\\nexcept Exception as e:\\n    keep = e\\nraise KeyError(thing)")
        dies("syntax error at run time", "def f(x):\\n    exec('x = = 1')\\nf(thing)")
        dies("shown error", "def f(x):\\n    1/0\\ntry:\\n    f(thing)\\nexcept Exception:\\n    get_ipython().showtraceback()\\n%tb")
        dies("verbose error", "%xmode Verbose\\ndef f(x):\\n    1/0\\nf(thing)")
        dies("cycle", "thing.me = thing")
        dies("async", "import asyncio\\nasync def f(x): await asyncio.sleep(60)\\nt = asyncio.create_task(f(thing))\\nawait asyncio.sleep(0)")
        dies("async error", "import asyncio\\nasync def f(x):\\n    1/0\\nawait f(thing)")
        dies("loop", "import asyncio\\nloop = asyncio.new_event_loop()\\nasyncio.set_event_loop(loop)\\nloop.call_later(60, print, thing)")
        dies("figure", "import matplotlib.pyplot as plt\\nf = plt.figure()\\nf.thing = thing\\nget_ipython().events.callbacks['post_execute'].clear()")
        dies("event", "get_ipython().events.register('post_execute', lambda: thing)")
        dies("magic", "from IPython.core.magic import register_line_magic\\n@register_line_magic\\ndef m(line): return thing")
        dies("magics class", "from IPython.core.magic import Magics, magics_class, line_magic\\n@magics_class\\nclass M(Magics):\\n    @line_magic\\n    def mm(self, line): return thing\\nget_ipython().register_magics(M)")
        dies("formatter", "class T: pass\\nget_ipython().display_formatter.formatters['text/plain'].for_type(T, lambda o, p, c: thing)")
        dies("formatter of a library type", "get_ipython().display_formatter.formatters['text/plain'].for_type(int, lambda o, p, c: thing)")
        dies("transformer", "import ast\\nclass T(ast.NodeTransformer):\\n    keep = thing\\nget_ipython().ast_transformers.append(T())")
        dies("custom handler", "get_ipython().set_custom_exc((KeyError,), lambda *a, **k: thing)")
        dies("patched shell", "get_ipython().showtraceback = lambda *a, **k: thing")
        dies("builtins", "import builtins\\nbuiltins.left = thing\\nbuiltins.print = lambda *a: thing")
        dies("displayhook", "import sys\\nsys.displayhook = lambda x: thing\\nsys.excepthook = lambda *a: thing")
        dies("streams", "import sys, io\\nclass S(io.StringIO):\\n    t = thing\\nsys.stdout = sys.stderr = S()\\nprint(1)")
        dies("display publisher", "class P:\\n    t = thing\\nget_ipython().display_pub = P()")
        dies("run", "%%capture out\\nprint(thing)\\ndisplay(thing)")
        dies("bash", "%%bash --out text\\necho 1")
        dies("interrupt", "import os, signal\\ndef f(x):\\n    os.kill(os.getpid(), signal.SIGINT)\\nf(thing)")
        dies("exit", "exit()")

        seen["fine"] = cell("print('p', end='')\\ndisplay(2)\\n5")
        seen["fine error"] = cell("1/0")
        seen["gone magic"] = cell("%m")
        seen["threads"] = threading.active_count()
        seen["main"] = sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("_"))

        run("from __future__ import annotations\\nimport asyncio\\nloop = None")
        shell.reset()
        seen["future"] = cell("def f(x: 1 + 1): pass\\nf.__annotations__['x']")

        outcome = run("value = 1\\ndef f(): return value\\n")
        f = outcome.namespace["f"]
        del outcome
        shell.reset()
        run("value = 2\\ndef g(): return value")
        seen["old function"] = f()

        for i in range(220):
            run(f"def f{i}(): return 1/0", n=i)
            shell.reset()
        cells = [name for name in linecache.cache if name.startswith("<ipython-input-")]
        seen["sources"] = [len(cells), len(shell.ip.compile._filename_map)]

        ready, go, done = threading.Event(), threading.Event(), threading.Event()
        messages.clear()
        run('''
import threading
def later():
    ready.set()
    go.wait()
    display("while the cell is the last one")
    done.set()
threading.Thread(target=later).start()
ready.wait();''', dict(ready=ready, go=go, done=done))
        go.set(); done.wait()
        seen["thread"] = list(messages)
        messages.clear()
        ready.clear(); go.clear(); done.clear()
        run('''
import threading
def later():
    ready.set()
    go.wait()
    display("after the reset")
    done.set()
threading.Thread(target=later).start()
ready.wait();''', dict(ready=ready, go=go, done=done))
        shell.reset()
        go.set(); done.wait()
        seen["late thread"] = list(messages)

        run("%%bash --bg --proc p\\nsleep 60")
        seen["bg"] = threading.active_count() > 1
        shell.reset()
        seen["bg after"] = [thread.name for thread in threading.enumerate() if "waitpid" not in thread.name]

        try:
            dies("broken reset", "get_ipython().compile = None")
        except AttributeError as error:
            seen["broken"] = [str(error), "thing" in shell.fresh_namespace()]
        """,
        timeout=100,
    )


def test_nothing_of_the_cell_is_alive_after_the_reset(afterwards: dict[str, Any]) -> None:
    assert [name for name, alive in afterwards["alive"].items() if alive] == []
    assert len(afterwards["alive"]) > 25
    assert afterwards["main"] == ["In", "Out", "exit", "get_ipython", "open", "quit"]


def test_a_cell_cannot_break_the_next_one(afterwards: dict[str, Any]) -> None:
    assert kinds(afterwards["fine"]) == ["stdout", "display_data", "execute_result"]
    assert "Traceback" in plain(afterwards["fine error"]["traceback"])
    assert afterwards["gone magic"]["ename"] == "UsageError"
    assert afterwards["future"]["value"] == "2"
    assert afterwards["threads"] == 1


def test_a_reset_that_fails_says_so_after_it_has_done_what_it_can(afterwards: dict[str, Any]) -> None:
    assert "NoneType" in afterwards["broken"][0]
    assert afterwards["broken"][1] is False


def test_functions_of_an_earlier_cell_keep_their_globals(afterwards: dict[str, Any]) -> None:
    assert afterwards["old function"] == 1


def test_sources_of_old_cells_are_bounded(afterwards: dict[str, Any]) -> None:
    assert max(afterwards["sources"]) <= 201


def test_a_thread_left_behind_still_displays_until_the_reset(afterwards: dict[str, Any]) -> None:
    ((kind, content),) = afterwards["thread"]
    assert kind == "display_data"
    assert "last one" in content["data"]["text/plain"]
    assert afterwards["late thread"] == []


def test_the_thread_behind_script_magics_ends_unless_a_process_needs_it(afterwards: dict[str, Any]) -> None:
    assert afterwards["bg"] is True
    assert afterwards["bg after"] == ["MainThread"]
