"""What a cell finds around it, both ways. Role: end to end, in a real kernel.

Promise: docs/semantics.md, Cells: ambient state follows the kernel at launch; what a task changes of it is undone before
the next; with --wait -o '*' it comes home.
"""

from __future__ import annotations

import pytest
from conftest import wait_until
from kernels import Kernel

pytestmark = pytest.mark.slow


FIRST_CELL = """
import builtins, locale, logging, random, warnings
before_locale = locale.setlocale(locale.LC_ALL)
jt.init(num_cpus=2)
"""


# name -> (how a user changes it, how a cell sees it, how it is put back)
AROUND = {
    "environment": ("os.environ['JT_NEW'] = 'x'", "__import__('os').environ.get('JT_NEW')", "del os.environ['JT_NEW']"),
    "directory": (
        "os.makedirs('sub', exist_ok=True); os.chdir('sub')",
        "__import__('os').path.basename(__import__('os').getcwd())",
        "os.chdir('..')",
    ),
    "module path": ("sys.path.insert(0, '/nowhere')", "__import__('sys').path[0]", "sys.path.remove('/nowhere')"),
    "warnings": (
        "warnings.simplefilter('error', FutureWarning)",
        "[f[0] for f in __import__('warnings').filters if f[2] is FutureWarning]",
        "warnings.resetwarnings(); warnings.simplefilter('default')",
    ),
    "log level": (
        "logging.getLogger().setLevel(7)",
        "__import__('logging').getLogger().level",
        "logging.getLogger().setLevel(30)",
    ),
    "numpy": (
        "import numpy as np; np.set_printoptions(precision=2)",
        "str(__import__('numpy').array([1/3]))",
        "np.set_printoptions(precision=8)",
    ),
    "pandas": (
        "import pandas as pd; pd.set_option('display.max_rows', 7)",
        "__import__('pandas').get_option('display.max_rows')",
        "pd.reset_option('display.max_rows')",
    ),
    "matplotlib": (
        "import matplotlib as mpl; mpl.rcParams['lines.linewidth'] = 9.5",
        "__import__('matplotlib').rcParams['lines.linewidth']",
        "mpl.rcParams['lines.linewidth'] = 1.5",
    ),
    "logger": (
        "logging.getLogger('jt.named').setLevel(7)",
        "__import__('logging').getLogger('jt.named').level",
        "logging.getLogger('jt.named').setLevel(0)",
    ),
    "builtins": (
        "import builtins; builtins.jt_added = 5",
        "getattr(__import__('builtins'), 'jt_added', None)",
        "del builtins.jt_added",
    ),
    "locale": (
        "import locale; was = locale.setlocale(0); locale.setlocale(locale.LC_ALL, 'C' if was != 'C' else 'C.UTF-8')",
        "__import__('locale').setlocale(__import__('locale').LC_ALL)",
        "locale.setlocale(locale.LC_ALL, before_locale)",
    ),
    "precision": (
        "%precision 2",
        "get_ipython().display_formatter.formatters['text/plain'].float_format",
        "%precision",
    ),
}


@pytest.mark.parametrize("what", AROUND)
def test_it_follows_the_kernel_and_is_undone(kernel: Kernel, what: str) -> None:
    """1. set in the notebook: the next cell has it   2. put back: the one after has not   3. set in a cell: it stays there."""
    change, look, back = AROUND[what]
    plain = kernel.run(f"{look}").result
    before = kernel.run(f"%%remote --wait\n{look}").result
    assert before == plain
    kernel.run(change)
    here = kernel.run(look).result
    assert here != before
    assert kernel.run(f"%%remote --wait\n{look}").result == here
    kernel.run(back)
    here = kernel.run(look).result
    assert kernel.run(f"%%remote --wait\n{look}").result == here
    changed = kernel.run(f"%%remote --wait\nimport os, sys, warnings, logging\n{change}\n{look}")
    assert changed.ok, changed.error
    for _ in range(3):  # whichever worker comes
        assert kernel.run(f"%%remote --wait\n{look}").result == here
    assert kernel.run(look).result == here


@pytest.mark.parametrize("what", AROUND)
def test_with_wait_and_star_it_comes_home(kernel: Kernel, what: str) -> None:
    """As if the cell had run here."""
    change, look, back = AROUND[what]
    before = kernel.run(look).result
    cell = kernel.run(f"%%remote --wait -o '*'\nimport os, sys, warnings, logging\n{change}\n{look}")
    assert cell.ok, cell.error
    assert cell.result != before
    assert kernel.run(look).result == cell.result
    kernel.run(back)


def test_random_numbers_go_on_where_they_were(kernel: Kernel) -> None:
    """With --wait -o '*': the same numbers as without %%remote, here and there."""
    kernel.run("import numpy as np")
    draw = "(random.random(), float(np.random.rand()))"
    seed = "random.seed(1); np.random.seed(1)"
    kernel.run(seed)
    plain = [kernel.run(draw).result for _ in range(3)]
    kernel.run(seed)
    mixed = [
        kernel.run(draw).result,
        kernel.run(f"%%remote --wait -o '*'\n{draw}").result,
        kernel.run(draw).result,
    ]
    assert mixed == plain


def test_other_cells_are_seeded_differently(kernel: Kernel) -> None:
    """Also after a cell of the same worker has set a seed."""
    kernel.run("random.seed(1); np.random.seed(1)")
    draw = "%%remote --wait\nimport random, numpy as np\nx = random.random(), np.random.rand()\nrandom.seed(5); np.random.seed(5)\nx"
    drawn = {kernel.run(draw).result for _ in range(6)}
    assert len(drawn) == 6


def test_magics_formatters_and_extensions_of_the_notebook_follow(kernel: Kernel) -> None:
    """Those of the user's own making, with the names that they read."""
    kernel.run(
        "from IPython.core.magic import register_line_magic\nprefix = '>> '\n"
        "@register_line_magic\ndef shout(line): return prefix + line.upper()\n"
        "class Money:\n    def __init__(self, n): self.n = n\n"
        "get_ipython().display_formatter.formatters['text/html'].for_type(Money, lambda m: f'<b>{m.n}</b>')"
    )
    assert kernel.run("%%remote --wait\n%shout hello").result == "'>> HELLO'"
    cell = kernel.run("%%remote --wait\nMoney(3)")
    assert cell.of("execute_result")[0]["data"]["text/html"] == "<b>3</b>"
    pathlib = "import pathlib; pathlib.Path('jt_ext.py').write_text('def load_ipython_extension(ip): ip.user_ns[\"x\"] = 1; ip.register_magic_function(lambda line: line * 2, magic_name=\"twice\")')"
    kernel.run(pathlib)
    assert kernel.run("%load_ext jt_ext\n%twice ab").result == "'abab'"
    assert kernel.run("%%remote --wait\n%twice cd").result == "'cdcd'"


def test_what_cannot_go_is_said_and_refuses_no_cell(kernel: Kernel) -> None:
    """A magic that holds a lock; a directory that is not there any more."""
    kernel.run(
        "from IPython.core.magic import register_line_magic\nimport threading\nlock = threading.Lock()\n@register_line_magic\ndef locked(line): return lock\n"
        "os.makedirs('gone', exist_ok=True); os.chdir('gone')"
    )
    kernel.run("pathlib.Path('../gone').rmdir()")
    cell = kernel.run("%%remote --wait\n# not locked\n1 + 1")
    assert cell.result == "2", cell.text("stderr")
    assert "lock stays in the kernel: Cannot send 'lock'" in cell.text("stderr")
    assert "lock" not in kernel.run("%%remote --wait\n# not locked\n1 + 1").text("stderr")
    kernel.run(f"os.chdir({str(kernel.directory)!r}); del get_ipython().magics_manager.magics['line']['locked']")


STAR = "%%remote --wait -o '*'\n"


def test_code_that_may_see_all_names_gets_them(kernel: Kernel) -> None:
    """With --wait -o '*'. 1. a text that is in a name, and a magic that lists names   2. what cannot be sent is left out
    without a word   3. nothing is waited for   4. other cells take what they read."""
    kernel.run(
        "width, formula = 7, 'width * 6'\nheld = open(os.devnull)\n"
        f"word = {str(kernel.directory / 'go')!r}\n"
        "@jt.remote\ndef wait():\n    import os, time\n    while not os.path.exists(word): time.sleep(0.01)\n"
        "unready = wait.remote()"
    )
    assert kernel.run("%%remote --wait\neval(formula)").error  # says what to do
    cell = kernel.run(
        f"{STAR}listed = %who_ls\neval(formula), 'width' in listed, 'unready' in listed, 'held' in globals()"
    )
    assert (cell.result, cell.text("stderr")) == ("(42, True, False, False)", "")
    assert kernel.run("(held.closed, jt.wait([unready], timeout=0)[0], width)").result == "(False, [], 7)"
    assert kernel.run(f"{STAR}'held' in dir(), len(formula)").result == "(False, 9)"
    assert kernel.run(f"{STAR}len(formula), 'width' in vars(__import__('__main__'))").result == "(9, False)"
    kernel.run("pathlib.Path(word).touch(); jt.get(unready)")
    assert kernel.run(f"{STAR}'unready' in globals()").result == "True"
    kernel.run("held.close(); del held, unready, wait")


def test_a_module_of_the_notebook_is_found_both_ways(kernel: Kernel) -> None:
    """In a relative entry of sys.path: 1. set in a cell, whose module comes home   2. set in the notebook, whose module
    goes there; what it prints when it is imported was printed here."""
    assert kernel.run(
        "os.makedirs('own', exist_ok=True); pathlib.Path('own/jt_mod.py').write_text('print(\"loud\")\\nx = 5')"
    ).ok
    cell = kernel.run(f"{STAR}import sys\nsys.path.insert(0, 'own')\nimport jt_mod\njt_mod.x")
    assert cell.result == "5"
    assert kernel.run("jt_mod.x, sys.path[0]").result == "(5, 'own')"
    kernel.run("sys.path.remove('own'); pathlib.Path('own/jt_other.py').write_text('print(\"loud\")\\ny = 6')")
    kernel.run("sys.path.append('own')\nimport jt_other")
    cell = kernel.run(f"{STAR}jt_other.y")
    assert (cell.result, cell.text()) == ("6", "")
    kernel.run("sys.path.remove('own'); del jt_mod, jt_other")


def test_hooks_work_once(kernel: Kernel) -> None:
    """With --wait -o '*'. 1. a callback that a cell registers is called at its end, and at that of each later cell, once
    2. a handler of errors likewise   3. a transformer of the text is applied once   4. all of them can be taken away."""
    kernel.run("ran, ip = [], get_ipython()")
    setup = (
        "def after(*_): ran.append('after')\n"
        "def handler(*_, **__): ran.append('handler')\n"
        "def longer(lines): return [line.replace('HALLO', 'HALLO + 1') for line in lines]\n"
        "ip.events.register('post_run_cell', after)\nip.set_custom_exc((LookupError,), handler)\n"
        "ip.input_transformers_cleanup.append(longer)\n{}['x']"
    )
    cell = kernel.run(STAR + setup)
    assert not cell.of("error"), cell.error
    assert cell.text("stderr") == ""
    assert kernel.run(f"{STAR}x = 1").ok
    assert kernel.run("ran").result == "['handler', 'after', 'after']"
    kernel.run("globals()['HAL' + 'LO'] = 1")
    away = "ip.events.unregister('post_run_cell', after)\nip.set_custom_exc((), None)\nip.input_transformers_cleanup.remove(longer)"
    assert kernel.run("HALLO").result == kernel.run(f"{STAR}HALLO").result == "2"
    assert kernel.run(STAR + away).ok
    assert (
        kernel.run("len(ran), ip.custom_exceptions, longer in ip.input_transformers_cleanup").result == "(7, (), False)"
    )


def test_a_function_leaves_its_worker_as_it_found_it(kernel: Kernel) -> None:
    """Environment, directory and module path; also when it raises, and when it is cancelled."""
    kernel.run(
        "@jt.remote\ndef change(how):\n"
        "    import os, sys, time\n"
        "    os.environ['JT_LEFT'] = '1'; os.chdir('/'); sys.path.append('/left')\n"
        "    if how == 'raise': raise ValueError\n"
        "    if how == 'hang': open(word, 'w').close(); time.sleep(600)\n"
        f"word = {str(kernel.directory / 'word')!r}\n"
        "@jt.remote\ndef look():\n    import os, sys\n    return os.environ.get('JT_LEFT'), os.getcwd() == '/', '/left' in sys.path\n"
        "refs = [change.remote('raise'), change.remote('return')]\njt.wait(refs, num_returns=2)"
    )
    clean = "[(None, False, False)]"
    assert kernel.run("list(set(jt.get([look.remote() for _ in range(8)])))").result == clean
    kernel.run("ref = change.remote('hang')")
    wait_until(lambda: (kernel.directory / "word").exists(), "it hangs")
    kernel.run("jt.cancel(ref); jt.wait([ref])")
    assert kernel.run("list(set(jt.get([look.remote() for _ in range(8)])))").result == clean


def test_a_function_finds_modules_where_the_notebook_does(kernel: Kernel) -> None:
    """sys.path as it is when the function is first called."""
    kernel.run(
        "os.makedirs('lib', exist_ok=True); pathlib.Path('lib/jt_late.py').write_text('x = 5'); sys.path.append('lib')\n"
        "@jt.remote\ndef late():\n    import jt_late\n    return jt_late.x"
    )
    assert kernel.run("jt.get(late.remote())").result == "5"
