"""What a cell needs from the notebook: the contract of `jupyter_tasks.notebook.capture`, without a kernel.

Role: unit tests of rules, a string in and sets of names out; the last group closes the circle and runs cells
where all that was not captured for them is gone. They prove of docs/semantics.md, Cells:

- "a `%%remote` cell is a task whose arguments are the names it reads": reads, writes, the flow of a cell;
- **Functions and classes**: "with the names they read, transitively": collect;
- **Names in strings**: "seen in `df.query('a > @lim')`, ..."; and a name that hides `display` is captured;
- **Refs inside**: "names used only as arguments of `jt.cancel` or `jt.wait` stay refs": refs_only.
"""

from __future__ import annotations

import builtins
import functools
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from jupyter_tasks.notebook import capture
from jupyter_tasks.notebook.capture import CellNames, all_names, analyse, code_names, collect

UNINTERESTING = frozenset(dir(builtins)) | {"get_ipython"}


def words(text: str) -> set[str]:
    return set(text.split())


def analyse_cell(source: str) -> CellNames:
    return analyse(textwrap.dedent(source).strip("\n"), TransformerManager().transform_cell)


def cell(source: str, reads: str, writes: str = "", python: tuple[int, int] = (3, 10)) -> Any:
    """A row of a table: a cell, the names it reads apart from builtins, the names it writes."""
    newer = pytest.mark.skipif(sys.version_info < python, reason=f"syntax of Python {python}")
    return pytest.param(source, words(reads), words(writes), id=" ".join(source.split())[:50], marks=newer)


def check(source: str, reads: set[str], writes: set[str]) -> None:
    found = analyse_cell(source)
    assert found.reads - UNINTERESTING == reads
    assert found.writes == writes


# --- The flow of a cell -------------------------------------------------------------------------------------

STATEMENTS = [
    cell("", ""),
    cell("# nothing", ""),
    cell("'a docstring is no name'", ""),
    cell("y = x.shape[0] + 1", "x", "y"),
    cell("x = x + 1", "x", "x"),
    cell("x = load()\nprint(x)", "load", "x"),
    cell("total += 1", "total", "total"),
    cell("total = 0\ntotal += step", "step", "total"),
    cell("a, (b, *c) = a2, seq", "a2 seq", "a b c"),
    cell("a = b = c", "c", "a b"),
    cell("a, b = b, a", "a b", "a b"),
    cell("df['c'] = df.a * coef\nmodel.w.data[0] = 1", "df coef model"),
    cell("x[i:j] = y", "x i j y"),
    cell("x = y = []\nx[0], y.a = p, q", "p q", "x y"),
    cell("print(f\"{a!r:>{w}} {b['q']}\")", "a w b"),
    cell("del big", "big"),
    cell("x = 1\ndel x", "", "x"),
    cell("x = 1\ndel x\nprint(x)", "", "x"),  # a NameError in the notebook too
    cell("del x\nprint(x)", "x"),
    cell("del d[k], o.attr", "d k o"),
    cell("assert ok, message", "ok message"),
    cell("x = 1; x = x + y; z = x", "y", "x z"),
    cell("x: int\ny: List[int] = []", "List", "y"),
    cell("class T: pass\nx: T = 1\ndef f(a: T) -> T: ...", "", "T x f"),
    cell("import os.path as p, sys\np.join(root, 'x'); sys.exit", "root", "p sys"),
    cell("import a.b.c\na.d(e)", "e", "a"),
    cell("from m import a, b as c\na(b)(c)", "b", "a c"),
    cell("from math import *\nprint(sqrt(q))", "sqrt q"),
    cell("global g\ng = h", "h", "g"),
    cell("print(x if c else y)", "x c y"),
    cell("lo < mid < hi and other", "lo mid hi other"),
    cell("print(*args, **kwargs)", "args kwargs"),
]

BRANCHES = [
    cell("if cond:\n    x = 1\nprint(x)", "cond x", "x"),
    cell("if cond:\n    x = 1\nelse:\n    x = 2\nprint(x)", "cond", "x"),
    cell("if a:\n    x = 1\nelif b:\n    x = 2\nprint(x)", "a b x", "x"),
    cell("if a:\n    x = 1\nelse:\n    raise Bad\nprint(x)", "a Bad", "x"),
    cell("for i in range(n): tot = tot + i", "n tot", "i tot"),
    cell("for i in items:\n    last = i\nprint(last)", "items last", "i last"),
    cell("for x in x: pass", "x", "x"),
    cell("for i in items:\n    print(seen)\n    seen = i", "items seen", "i seen"),
    cell("for i in items:\n    tmp = i\n    print(tmp)\n    del tmp", "items", "i tmp"),
    cell("for d[k] in items: pass", "d k items"),
    cell(
        "for i in items:\n    if i: break\nelse:\n    found = none\nprint(found)",
        "items none found",
        "i found",
    ),
    cell("while go():\n    x = step(x)", "go step x", "x"),
    cell("while True:\n    x = ask()\n    if x: break\nprint(x)", "ask", "x"),
    cell("try:\n    v = risky()\nexcept MyErr as e:\n    print(e)", "risky MyErr", "v e"),
    cell("try:\n    import fast as f\nexcept ImportError:\n    f = None\nprint(f)", "", "f"),
    cell("try:\n    x = f()\nexcept E:\n    pass\nprint(x)", "f E x", "x"),
    cell("try:\n    x = f()\nexcept E:\n    print(x)", "f E x", "x"),
    cell("try:\n    with cm() as c:\n        x = f()\nexcept E:\n    print(x)", "cm f E x", "c x"),
    cell("try:\n    x = f()\nfinally:\n    print(x)", "f x", "x"),
    cell("try:\n    x = f()\nfinally:\n    close(h)\nprint(x)", "f close h", "x"),
    cell("try:\n    x = 1\n    del x\nfinally:\n    print(x)", "x", "x"),
    cell("try: f()\nexcept E as e: pass\nprint(e)", "f E e", "e"),
    cell("try:\n    x = f()\nexcept E:\n    raise\nelse:\n    print(x)", "f E", "x"),
    cell("try:\n    go()\nexcept* Bad as g:\n    show(g, n)", "go Bad show n", "g", python=(3, 11)),
    cell("with open(path) as fh: t = fh.read()\nprint(t)", "path", "fh t"),
    cell("with lock, conn() as (a, b.c): a(x)", "lock conn b x", "a"),
    cell("with suppress(E):\n    x = f()\nprint(x)", "suppress E f x", "x"),
    cell("with pytest.raises(E):\n    raise E\nprint(after)", "pytest E after"),
    cell("with cm():\n    raise E\nprint(after)", "cm E after"),
    cell(
        """
        match cmd:
            case Point(x=0, y=v): r = v
            case [a, *rest] if a > lim: r = rest
            case _: r = None
        print(r)
        """,
        "cmd Point lim",
        "a rest r v",
    ),
    cell(
        """
        match cmd:
            case {"k": w, **others}: print(w, others)
            case Color.RED | 3: pass
            case str() as text: r = text
        print(r)
        """,
        "cmd Color r",
        "w others text r",
    ),
    cell("if (n := len(lst)) > 3: m = n", "lst", "n m"),
    cell("print(n, (n := 5))", "n", "n"),
    cell("print((n := 5), n)", "", "n"),
    cell("ok and (n := f())\nprint(n)", "ok f n", "n"),
    cell("res = await fetch(url)", "fetch url", "res"),
    cell("async with sess as s:\n    async for i in s.items(u): acc.append(i)\nprint(i)", "sess u acc i", "s i"),
    cell("x = [await f(i) async for i in agen(k)]", "f agen k", "x"),
]

SCOPES = [
    cell("def f(a):\n    return a + k + g(a)\nr = f(2)", "k g", "f r"),
    cell("def f():\n    global cnt\n    cnt = cnt + 1\nf()", "cnt", "cnt f"),
    cell("def f():\n    global made\n    made = 1\nf()\nprint(made)", "made", "made f"),
    cell("def f():\n    global made\n    made = 1\n    return made\nf()", "", "made f"),
    cell("def f():\n    global gone\n    del gone\nf()", "gone", "f"),
    cell("k = 1\ndef f(): return k\nf()", "", "k f"),
    cell("def f(): return k\nk = 1\nf()", "", "k f"),
    cell("f = lambda: k\nk = 1\nf()", "", "k f"),
    cell("def f(): return k\ng()\nk = 1\nf()", "g k", "k f"),
    cell("def f(): return k\nf()\nk = 1", "k", "k f"),
    cell("def fact(n): return 1 if n == 0 else n * fact(n - 1)\nfact(nn)", "nn", "fact"),
    cell("@cache\ndef fib(n): return fib(n - 1) + fib(n - 2)\nfib(9)", "cache", "fib"),
    cell("def even(n): return odd(n - 1)\ndef odd(n): return even(n - 1)\neven(9)", "", "even odd"),
    cell("f = lambda q, d=dflt: q + off + d", "dflt off", "f"),
    cell("def f(a, b=dflt, *, c=(kw := 1)) -> None:\n    a = a + b", "dflt", "f kw"),
    cell("def f(x):\n    x = 1\n    y = x\n    return [y for y in z]\nprint(y)", "z y", "f"),
    cell(
        """
        def outer():
            v = 1
            def inner():
                nonlocal v
                v += gl
            inner()
            return v
        """,
        "gl",
        "outer",
    ),
    cell("def gen():\n    yield from src\nlist(gen())", "src", "gen"),
    cell("async def go():\n    async with a as b: return await c(b)\nawait go()", "a c", "go"),
    cell("z = [i * s for i in data if i in keep]", "s data keep", "z"),
    cell("z = {k: v for k, v in pairs}\nprint(k)", "pairs k", "z"),
    cell("z = [y := f(x), y ** 2]", "f x", "y z"),
    cell("z = [(y := i) for i in data]\nprint(y)", "data y", "z y"),
    cell("z = [[a for a in row] for row in rows if row[a0]]", "rows a0", "z"),
    cell("z = {i for i in i}", "i", "z"),
    cell("g = (i for i in src if (lambda: i > thr)())", "src thr", "g"),
    cell("fs = [lambda: i + k for i in xs]", "k xs", "fs"),
    cell(
        """
        @deco(arg)
        class A(B, metaclass=M):
            y: T = q
            def m(self): return super().m() + self.y + zz
        """,
        "deco arg B M T q zz",
        "A",
    ),
    cell("class C:\n    a = 1\n    b = a + ext\n    def m(self): return a", "ext a", "C"),
    cell("class C:\n    a = a\n    b = a", "a", "C"),
    cell("class C:\n    a = 1\n    b = [a for _ in range(a)]", "a", "C"),
    cell("class C:\n    for i in src: pass\nprint(i)", "src i", "C"),
    cell("class C:\n    del a\n    x = 1\n    del x", "", "C"),
    cell("class C:\n    a = 1\n    del a\n    b = a", "a", "C"),
    cell("class C:\n    global made\n    made = 1\nprint(made)", "made", "C made"),
    cell("class Node:\n    def add(self): return Node(self, extra)", "extra", "Node"),
    cell("class C:\n    def load(self): return load(self)", "load", "C"),
    cell("def make():\n    class L:\n        def go(self): return go\n    return L", "go", "make"),
    cell("class A:\n    me = A", "A", "A"),
    cell("def f[T: Bound](x: T) -> list[T]: return f(g(x))", "Bound g", "f", python=(3, 12)),
    cell("class Box[T](Base[T]):\n    def new(self) -> 'Box': return Box(k)", "Base k", "Box", python=(3, 12)),
    cell("type Tree = list[Tree] | Leaf", "Leaf", "Tree", python=(3, 12)),
    cell("class C:\n    N = int\n    def m[T](self, x: N) -> T: ...", "", "C", python=(3, 12)),
    cell("print(f'{names['k']} {', '.join(xs)}')", "names xs", python=(3, 12)),
]

STRINGS = [
    cell("df.query('a > @lim and b in @keep')", "df lim keep"),
    cell("df.query(f'a > @lim and b < {k}')", "df lim k"),
    cell("df.query(expr='a > @lim.value', inplace=True)", "df lim"),
    cell("df.query('a > 1' + ' and b > @lim')", "df lim"),
    cell("df.query(\"mail == 'me@home'\")", "df"),
    cell("lim = 3\ndf.query('a > @lim')", "df", "lim"),
    cell("def f(df, lim): return df.query('a > @lim and b < @top')", "top", "f"),
    cell("r = [df.query('a == @i') for i in ids]", "df ids", "r"),
    cell("def f():\n    df.query('@n > 1')\n    global n", "df n", "f"),
    cell("df.eval('c = a + @k')", "df k"),
    cell("df.query('''a > @lim''').sum()['@b']", "df lim"),
    cell("pd.eval('x + y * 2')", "pd x y"),
    cell("pd.eval('\\n  c = x + y\\n  d = c * z\\n', target=df)", "pd x y z df"),
    cell("pandas.eval('total = x + y', target=df)", "pandas x y df"),
    cell("import numexpr as ne\nne.evaluate('a*b + 1')", "a b", "ne"),
    cell("model.eval()\nsession.query(User)", "model session User"),
    cell("r = eval('p + q')", "p q", "r"),
    cell("exec('out = inp * 2')\nprint(out)", "inp", "out"),
    cell("exec('if c: out = 1')\nprint(out)", "c out", "out"),
    cell("exec('del gone')", "gone"),
    cell("exec('# nothing')", ""),
    cell("def f():\n    exec('out = inp * 2')\n    return out", "inp out", "f"),
    cell("done = exec('out = inp * 2'), out", "inp out", "done out"),
    cell("exec(code_str)", "code_str"),
    cell("eval('no python')", ""),
]

MAGICS = [
    cell("%timeit -n 3 func(arr)", "func arr"),
    cell("%timeit -n3 -r 2 -q x = func(arr)", "func arr"),
    cell("best = %timeit -o func(arr)", "func arr", "best"),
    cell("%%timeit data = load(p)\nuse(data)", "load p use"),
    cell("%time df = load(p)\ndf.head()", "load p", "df"),
    cell("%time -x", "x"),
    cell("if c:\n    %time x = f()", "c f", "x"),
    cell("def g(n):\n    %time f(n, m)", "f m", "g"),
    cell("r = %time f(a)", "f a", "r"),
    cell("%%time\n!ls $d\nx = y\nprint(x)", "d y", "x"),
    cell("%%time\nreturn_value = [\n    q]\n%time z = q", "q", "return_value z"),
    cell("%%capture --no-stderr cap\nprint(x)", "x", "cap"),
    cell("%prun -s cumtime -l 10 go(a)", "go a"),
    cell("%memit -r 1 go(a)", "go a"),
    cell("%lprun -f mod.func -f other go(a)", "mod other go a"),
    cell("%mprun -fhelper go(a)", "helper go a"),
    cell("obj.method?", "obj"),
    cell("obj.method??", "obj"),
    cell("%who", ""),
    cell("%matplotlib inline\nplt.plot(xs)", "plt xs"),
    cell("%unknown arr -k lim", ""),
    cell("%unknown $arr {lim + 1} $$literal", "arr lim"),
    cell("%%unknown {a}\nselect {b} from $c", "a b c"),
    cell("%%bash\necho $x {y}", ""),
    cell("%%bash -s {x} $y\necho $z", "x y"),
    cell("%%writefile {name}.py\nprint(x)", "name"),
    cell("%cd {base}/sub", "base"),
    cell("!ls {folder}/$name", "folder name"),
    cell("files = !ls $d", "d", "files"),
    cell("!!ls $d.name", "d"),
    cell("!echo {xs[1:n]} {who!r} {[i for i in ys]}", "xs n who ys"),
    cell("!echo {call(lambda: deep)}", "call deep"),
    cell("!echo $$HOME {}", ""),
    cell("!awk '{print $x}' $f", "f"),
    cell("!echo { $a", "a"),
    cell("d = 1\n!ls $d {e}", "e", "d"),
    cell("def f(d):\n    !ls $d $e", "e", "f"),
    cell("%%remote inner -o res\nprint(x)", "x"),
]


@pytest.mark.parametrize(("source", "reads", "writes"), STATEMENTS)
def test_statements(source: str, reads: set[str], writes: set[str]) -> None:
    check(source, reads, writes)


@pytest.mark.parametrize(("source", "reads", "writes"), BRANCHES)
def test_every_way_through_the_cell_counts(source: str, reads: set[str], writes: set[str]) -> None:
    check(source, reads, writes)


@pytest.mark.parametrize(("source", "reads", "writes"), SCOPES)
def test_names_belong_to_their_scopes(source: str, reads: set[str], writes: set[str]) -> None:
    check(source, reads, writes)


@pytest.mark.parametrize(("source", "reads", "writes"), STRINGS)
def test_names_in_strings_are_captured_where_they_can_be_seen(source: str, reads: set[str], writes: set[str]) -> None:
    check(source, reads, writes)


@pytest.mark.parametrize(("source", "reads", "writes"), MAGICS)
def test_names_in_magics_and_shell_commands(source: str, reads: set[str], writes: set[str]) -> None:
    check(source, reads, writes)


def test_future_annotations_are_not_read() -> None:
    assert analyse("from __future__ import annotations\nx: Later = y").reads == {"y"}


def test_without_a_transform_plain_python_is_analysed() -> None:
    assert analyse("x = y").reads == {"y"}
    assert analyse("eval(' y + z')").reads == {"eval", "y", "z"}
    with pytest.raises(SyntaxError):
        analyse("%timeit y")


def test_a_builtin_counts_as_read_because_the_user_may_hide_it() -> None:
    assert {"display", "len"} <= analyse_cell("display(len(x))").reads


def test_a_long_cell() -> None:
    lines = [f"try:\n    v{i} = f{i}(v{i - 1})\nexcept E{i}:\n    v{i} = None" for i in range(1, 51)]
    found = analyse_cell("\n".join(lines))
    assert len("\n".join(lines).splitlines()) == 200
    assert found.reads == {"v0"} | {f"{kind}{i}" for kind in "fE" for i in range(1, 51)}
    assert found.writes == {f"v{i}" for i in range(1, 51)}


# --- The other sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "mutates"),
    [
        ("x[0] = 1", "x"),
        ("x.a.b[k].c = 1", "x"),
        ("x.a = 1; del y[0]; z += w", "x y z"),
        ("x.y[0] += 1", "x"),
        ("for x.a in xs: pass", "x"),
        ("with cm as x[0]: pass", "x"),
        ("x: list = []\nx[0] = 1; x += [2]", ""),
        ("def f(a):\n    a[0] = 1\n    b[0] = 1", "b"),
        ("%time x[0] = 1", "x"),
        ("%timeit x[0] = 1", "x"),
        ("x.append(1); f(y)[0] = 1", ""),
    ],
)
def test_mutated_names_are_those_read_and_assigned_through(source: str, mutates: str) -> None:
    assert analyse_cell(source).mutates == words(mutates)


@pytest.mark.parametrize(
    ("source", "deletes"),
    [
        ("del a, (b, [c])", "a b c"),
        ("del a[0], b.c", ""),
        ("try: f()\nexcept E as e: pass", "e"),
        ("def f():\n    x = 1\n    del x\n    global g\n    del g", "g"),
        ("class C:\n    x = 1\n    del x", ""),
        ("x = exec('del gone')", "gone"),
    ],
)
def test_deletes(source: str, deletes: str) -> None:
    assert analyse_cell(source).deletes == words(deletes)


@pytest.mark.parametrize(
    ("source", "dynamic"),
    [
        ("x = y + f(z)", []),
        ("exec('x = 1'); eval('y')", []),
        ("exec(code)", ["exec"]),
        ("eval(f'{a} + b')", ["eval"]),
        ("exec('exec(code)')", ["exec"]),
        ("exec('x = 1', {})", ["exec"]),
        ("def f(): exec(code)", ["exec"]),
        ("'{a}'.format(**globals())", ["globals"]),
        ("vars(); locals(); dir()", ["vars", "locals", "dir"]),
        ("vars(x); dir(x)", []),
        ("from m import *", ["import *"]),
        ("def f():\n    %time from m import *", ["import *"]),
        ("eval('no python')", ["string"]),
        ("!ls $d", []),
        ("%timeit f(x)", []),
        ("%%time\nf(x)", []),
        ("%%bash\nls", []),
        ("%run script.py", ["magic"]),
        ("%%sql\nselect x", ["magic"]),
        ("%matplotlib inline\n%cd $d\n%config a = 1", []),
        ("get_ipython().run_line_magic(name, 'x')", ["magic"]),
        ("get_ipython().system(command)", ["magic"]),
        ("os.system(command)", []),
        ("get_ipython().user_ns['x']", ["magic"]),
    ],
)
def test_dynamic_says_why_names_may_be_missing(source: str, dynamic: list[str]) -> None:
    assert analyse_cell(source).dynamic == set(dynamic)


@pytest.mark.parametrize(
    ("source", "sees_all"),
    [
        ("eval(formula)", True),
        ("exec(code)", True),
        ("'x' in globals()", True),
        ("%who_ls", True),
        ("%run -i script.py", True),
        ("eval('y')", False),
        ("from m import *", False),
        ("eval('no python')", False),
        ("%pip install x", False),
        ("x = y", False),
    ],
)
def test_code_that_may_see_all_names(source: str, sees_all: bool) -> None:
    """Proves: semantics.md, Cells, --wait -o '*': such a cell takes them all."""
    assert analyse_cell(source).may_see_all is sees_all


def test_the_name_of_a_macro_is_read() -> None:
    """Proves: semantics.md, Cells, --wait -o '*'. IPython puts the macro's text in the place of a cell that is its name;
    the worker, which does so again, must have the macro."""
    expanded = analyse("mac\n", lambda text: "x = y\n" if text == "mac\n" else text)
    assert expanded.reads == {"mac", "y"}
    assert expanded.writes == {"x"}


@pytest.mark.parametrize(
    ("source", "refs"),
    [
        ("jt.cancel(a)", "a"),
        ("jupyter_tasks.kill(a)\nreallykill(b)", "a"),
        ("ready, rest = jt.wait([a, (b, c)], timeout=t)", "a b c"),
        ("for r in as_completed([a, b]): print(r)", "a b"),
        ("cancel(a)\nwait([a])", "a"),
        ("jt.cancel(a)\nprint(a)", ""),
        ("jt.cancel(a[0]); jt.cancel(b.c); jt.cancel(*d)", ""),
        ("jt.get(a); pool.tasks.cancel(b)", ""),
        ("jt.wait([a]); a += 1", ""),
        ("jt.cancel(a)\n!echo $a", ""),
        ("jt.cancel(a)\ndf.query('x > @a')", ""),
        ("def stop():\n    jt.cancel(a, force=flag)", "a"),
        ("%time jt.cancel(a)", "a"),
        ("a = f.remote()\njt.cancel(a)", ""),
        ("a = jt.wait([a])", "a"),
    ],
)
def test_refs_that_are_only_cancelled_killed_or_waited_for_stay_refs(source: str, refs: str) -> None:
    assert analyse_cell(source).refs_only == words(refs)


# --- Errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\ny = (", 2),
        ("x = 1\n\nif x\n    y", 3),
        ("\n\n  \nx = 1\ny = = 2", 5),
        ("x = 1\nreturn x", 2),
        ("!ls\n%time f(x)\nx = = 1", 3),
        ("\n%matplotlib inline\nbreak", 3),
        ("def f():\n    x = 1\n    nonlocal x", 3),
        ("df.query('@x')\n\nyield x", 3),
    ],
)
def test_a_syntax_error_has_the_line_of_the_cell(source: str, line: int) -> None:
    with pytest.raises(SyntaxError) as caught:
        analyse(source, TransformerManager().transform_cell)
    assert (caught.value.filename, caught.value.lineno) == ("<cell>", line)


@pytest.mark.parametrize("source", ["x = 1\0", "x = '\ud800'"])
def test_text_that_cannot_be_source_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError):  # Python says ValueError, depending on its version
        analyse(source)


def test_the_compilers_warnings_are_left_to_the_worker(recwarn: pytest.WarningsRecorder) -> None:
    source = "x is 1\n'\\d'\n(1)(2)"
    assert analyse(source).reads == {"x"}
    assert not recwarn.list
    with pytest.warns(SyntaxWarning):  # what was silenced
        compile(source, "<cell>", "exec")


# --- code_names ---------------------------------------------------------------------------------------------


def notebook(source: str, **values: object) -> dict[str, Any]:
    """A namespace as the notebook's, in which the source has run."""
    namespace: dict[str, Any] = {"__name__": "__main__", **values}
    exec(textwrap.dedent(source), namespace)
    return namespace


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a): return a + k", "k"),
        ("def f(): return [lambda: (i, k) for i in src]", "k src"),
        (
            "def f():\n    class C(Base):\n        y = q\n        def m(self): return zz\n    return C",
            "Base q zz",
        ),
        ("def f():\n    global k\n    k = 1\n    return k", ""),
        ("def f(n): return f(n - 1)", "f"),
        ("def f(df, a): return df.query('x > @lim')", "lim"),
        ("def f(): return '@lim {lim} $lim'", ""),
        ("def f():\n    def g(): get_ipython().system('ls $d {e}')\n    return g", "get_ipython d e"),
    ],
)
def test_code_names(source: str, names: str) -> None:
    assert code_names(notebook(source)["f"].__code__) == words(names)


# --- collect ------------------------------------------------------------------------------------------------


def collected(names: str, namespace: Mapping[str, object], hidden: Mapping[str, object] | None = None) -> str:
    values = collect(words(names), namespace, hidden or {})
    assert all(values[name] is namespace[name] for name in values)
    return " ".join(values)


def test_collect_takes_what_exists_in_sorted_order() -> None:
    assert collected("z print a missing", {"a": 1, "b": 2, "z": 3}) == "a z"


def test_a_name_that_hides_a_builtin_is_captured() -> None:
    namespace = notebook("list = [1]\ndef display(x): return x")
    assert collect(analyse("display(list)").reads, namespace).keys() == {"display", "list"}
    assert collect(analyse("display(list)").reads, notebook("")) == {}


NOT_BOUND_YET = """
    def make():
        def f(): return late, k
        return f
        late = 1
    k = 1
    f = make()
"""
PARTIAL = """
    from functools import partial
    def g(*args): return k
    f = partial(g, lambda: m, key=lambda: n)
    k = m = n = 1
    del g
"""
HELD_BY_CLOSURE = """
    def make(n):
        def f(): return n() + k
        return f
    k = m = 1
    f = make(lambda: m)
"""


@pytest.mark.parametrize(
    ("source", "name", "captured"),
    [
        ("def f(): return g() + k\ndef g(): return m\nk = m = 1\nother = 2", "f", "f g k m"),
        ("def even(n): return odd(n - k)\ndef odd(n): return even(n)\nk = 1", "even", "even k odd"),
        ("def f(): return missing + len([])", "f", "f"),
        ("def g(): return k\ndef f(a=g): return a\nk = 1\ndel g", "f", "f k"),
        ("def g(): return k\ndef f(*, a=g): return a\nk = 1\ndel g", "f", "f k"),
        (HELD_BY_CLOSURE, "f", "f k m"),
        (NOT_BOUND_YET, "f", "f k"),
        ("def f(): return x\nx = 1\nf.extra = lambda: y\ny = 2", "f", "f x y"),
        ("fs = [1, (2, {'a': lambda: k})]\nk = 1", "fs", "fs k"),
        ("fs = {lambda: k}\nk = 1", "fs", "fs k"),
        ("fs = {}\nfs[lambda: k] = 1\nk = 1", "fs", "fs k"),
        ("from collections import deque\nfs = deque([lambda: k])\nk = 1", "fs", "fs k"),
        ("fs = []\nfs.append(fs)\nfs.append(lambda: k)\nk = 1", "fs", "fs k"),
        ("from types import SimpleNamespace\no = SimpleNamespace(f=lambda: k)\nk = 1", "o", "k o"),
        (PARTIAL, "f", "f k m n"),
    ],
)
def test_names_that_functions_read_are_captured_transitively(source: str, name: str, captured: str) -> None:
    assert collected(name, notebook(source)) == captured


DECORATED = {
    "functools.wraps": """
        import functools
        def deco(f):
            @functools.wraps(f)
            def wrapper(*args): return log(f(*args))
            return wrapper
        def log(x): return level
        level = 1
        @deco
        def work(): return k
        k = 2
        del deco
    """,
    "__wrapped__ alone": """
        def log(x): return level
        level = 1
        def work(): return log
        def inner(): return k
        work.__wrapped__ = inner
        k = 2
        del inner
    """,
}


@pytest.mark.parametrize("source", DECORATED.values(), ids=DECORATED.keys())
def test_both_sides_of_a_decorator_are_looked_at(source: str) -> None:
    assert collected("work", notebook(source)) == "k level log work"


def test_a_decorator_that_belongs_to_a_library_is_looked_through() -> None:
    library: dict[str, Any] = {}
    exec("def deco(f):\n    def wrapper(*args): return helper(f(*args))\n    return wrapper", library)
    namespace = notebook("@deco\ndef work(): return k\nk = helper = 1", deco=library["deco"])
    assert namespace["work"].__globals__ is library
    assert collected("work", namespace) == "k work"


def test_the_factory_of_a_defaultdict() -> None:
    namespace = notebook("from collections import defaultdict\ntree = lambda: defaultdict(tree)\nroot = tree()")
    assert collected("root", namespace) == "defaultdict root tree"


def test_what_is_behind_the_shell_is_not_looked_at() -> None:
    """Proves: semantics.md, Cells. `ip = get_ipython()` takes along no name but `ip`."""
    namespace = notebook("def work(): return k\nk = 1\nclass Shell: pass\nip = Shell()")
    namespace["ip"].table = [namespace["work"]]
    assert collected("ip", namespace) == "ip k"
    namespace["ip"].user_ns = namespace
    assert collected("ip", namespace) == "ip"
    del namespace["ip"].user_ns
    namespace["ip"].user_module = type("Module", (), {})()
    namespace["ip"].user_module.__dict__ = namespace
    assert collected("ip", namespace) == "ip"


def test_all_names_are_the_users_own() -> None:
    """Proves: semantics.md, Cells, --wait -o '*'. Not IPython's, and not the history, which may be large."""
    hidden: dict[str, object] = {"get_ipython": 1, "quit": 2, "_5": 3}
    namespace = {**hidden, "quit": "mine", "x": 1, "_y": 2, "Out": {}, "_": 3, "__name__": "__main__"}
    assert all_names(namespace, hidden) == {"quit", "x", "_y"}


@pytest.mark.parametrize("decorator", [functools.lru_cache(None), functools.singledispatch, staticmethod])
def test_functions_behind_objects_of_c(decorator: Any) -> None:
    namespace = notebook("@deco\ndef f(x): return k\nk = 1", deco=decorator)
    assert collected("f", namespace) == "f k"


CLASSES = """
    class Base:
        limit = default
        def run(self): return k_base
    class Model(Base, metaclass=type):
        def fit(self): return k_fit
        @property
        def prop(self): return k_prop
        @prop.setter
        def prop(self, value): k_setter
        @classmethod
        def make(cls): return k_class
        @staticmethod
        def tool(): return k_static
        @functools.cached_property
        def lazy(self): return k_lazy
        class Inner:
            def m(self): return k_inner
    model = Model()
    model.hook = lambda: k_hook
    fit = model.fit
"""
OF_THE_CLASS = "k_base k_class k_fit k_inner k_lazy k_prop k_setter k_static"


@pytest.fixture
def classes() -> dict[str, Any]:
    names = dict.fromkeys([*OF_THE_CLASS.split(), "k_hook", "default", "unused"], 0)
    return notebook(CLASSES, functools=functools, **names)


def test_a_class_brings_what_its_methods_and_its_bases_read(classes: dict[str, Any]) -> None:
    assert collected("Model", classes) == f"Model {OF_THE_CLASS}"


def test_an_instance_brings_its_class_and_its_attributes(classes: dict[str, Any]) -> None:
    assert words(collected("model", classes)) == words(f"model k_hook {OF_THE_CLASS}")


def test_a_bound_method_brings_its_instance(classes: dict[str, Any]) -> None:
    assert words(collected("fit", classes)) == words(f"fit k_hook {OF_THE_CLASS}")


def test_an_instance_that_is_a_container_too() -> None:
    namespace = notebook("class Bag(dict):\n    def m(self): return k\nbag = Bag(f=lambda: m)\nk = m = 1")
    assert collected("bag", namespace) == "bag k m"


def test_a_metaclass_is_looked_at() -> None:
    namespace = notebook("class M(type):\n    def m(cls): return k\nclass C(metaclass=M): pass\nk = 1")
    assert collected("C", namespace) == "C k"


def test_classes_of_modules_are_not_looked_into() -> None:
    namespace = notebook("class C:\n    __module__ = 'library'\n    def m(self): return k\nc = C()\nk = 1")
    assert collected("C c", namespace) == "C c"


def test_functions_of_other_namespaces_bring_no_names() -> None:
    other = notebook("def f(): return k\nk = 1")
    assert collected("f", {"f": other["f"], "k": 2}) == "f"


def test_no_code_of_the_user_runs() -> None:
    # A list that cannot be iterated, a proxy that claims another class, attributes made on demand.
    source = """
        def fail(*args): raise AssertionError("user code ran")
        class Rude(list):
            __iter__ = __len__ = __bool__ = __hash__ = __eq__ = __getattr__ = __getattribute__ = fail
            __class__ = property(fail)
        class RudeDict(dict):
            __iter__ = keys = values = items = fail
        rude = Rude([lambda: k])
        rude_dict = RudeDict(f=lambda: m)
        k = m = 1
    """
    assert list(collect(["rude", "rude_dict"], notebook(source))) == ["k", "m", "rude", "rude_dict"]


def test_the_look_behind_a_value_is_bounded_and_breadth_first() -> None:
    source = """
        near = [[lambda: k], list(range(5000))]
        far = [list(range(600)), list(range(600)), [lambda: m]]
        behind = [*range(5000), lambda: n]
        k = m = n = 1
    """
    assert collected("near far behind", notebook(source)) == "behind far k near"


def test_an_object_that_is_met_again_costs_nothing() -> None:
    namespace = notebook("row = list(range(400))\nfs = [row, row, row, [lambda: k]]\nk = 1")
    assert collected("fs", namespace) == "fs k"


def test_a_container_that_a_thread_changes_meanwhile_is_looked_at_as_far_as_possible() -> None:
    def changing() -> Any:
        shared = {"a": 1, "b": 2}
        for value in shared.values():
            yield value
            shared["c"] = 3

    assert capture._first(10, changing()) == [1]


# --- collect: what the kernel put into the namespace --------------------------------------------------------


def test_hidden_names_are_left_out_unless_the_user_replaced_them() -> None:
    kernels_open, kernels_exit = object(), object()
    hidden = {"open": kernels_open, "exit": kernels_exit}
    namespace = {"open": kernels_open, "exit": "mine", "x": 1}
    assert collected("open exit x", namespace, hidden) == "exit x"


def test_history_is_captured_when_it_is_read_by_name() -> None:
    history: dict[str, object] = {"_": "", "Out": {}, "In": [""], "_i": "", "_3": 7}
    hidden = {name: history[name] for name in ("_", "Out", "In", "_i")}
    assert collected("_ Out In _3", history, hidden) == "In Out _ _3"
    assert collect(analyse("for _ in range(3): x = 1").reads, history, hidden) == {}


def test_the_names_every_module_has_are_never_captured() -> None:
    namespace = notebook("class C: pass\ndef f(): return __name__, __builtins__")
    assert collected("f C __name__ __builtins__", namespace) == "C f"
    found = analyse("'doc'\nclass C: x: int\nif __name__ == '__main__': y: int = 1")
    assert (found.reads - UNINTERESTING, found.writes) == (set(), {"C", "y"})


# --- The circle: a cell runs where only what was captured is left -------------------------------------------

NOTEBOOK = """
    scale, offset, big = 3, 10, list(range(5))
    def shift(x): return x + offset
    def work(x): return shift(x) * scale
    class Model:
        def __init__(self, n): self.n = n
        def fit(self, xs): return [work(x) + self.n for x in xs]
    model = Model(100)
    list = tuple
"""


@pytest.mark.parametrize(
    "source",
    [
        "result = work(2)",
        "result = [work(i) for i in big]",
        "result = model.fit(big)",
        "result = Model(1).fit([scale])",
        "result = list(big)",
        "def local(x): return later(x)\ndef later(x): return work(x)\nresult = local(1)",
        "class Sub(Model):\n    def fit(self, xs): return scale, super().fit(xs)\nresult = Sub(1).fit(big)",
        "scale = scale + 1\nresult = work(2)",
        "def bump():\n    global offset\n    offset += 1\nbump()\nresult = work(0)",
        "exec('y = work(3)')\nresult = eval('y + scale')",
        "try:\n    result = missing\nexcept NameError:\n    result = work(1)",
        "for big in big: pass\nresult = big",
        "match big:\n    case [first, *_]: result = first, scale",
    ],
)
def test_a_cell_does_the_same_in_what_was_captured_for_it(source: str) -> None:
    whole, remains = notebook(NOTEBOOK), notebook(NOTEBOOK)
    captured = collect(analyse(source).reads, remains)
    for name in remains.keys() - captured.keys() - {"__name__", "__builtins__"}:
        del remains[name]
    exec(source, whole)
    exec(source, remains)
    assert remains["result"] == whole["result"]
