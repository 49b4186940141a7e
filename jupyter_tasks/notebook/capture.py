"""Which names a cell needs from the notebook, found without running it.

The idea: Python's own compiler already knows the scope of every name and every way through a cell, so nothing
here tells `for` from `match`. The cell is compiled; a walk over its bytecode keeps the set of names that are
certainly bound at each instruction; a global name loaded where it is not certainly bound is one the cell
reads. Names that hide in strings (`df.query('a > @lim')`, `%timeit f(x)`, `!ls $d`) are first spelled out in
the syntax tree as ordinary arguments, so that the compiler scopes them like all others.

    source --transform--> tree --_SpellOut--> tree with visible names --compile--> code --_scan--> CellNames
    CellNames.reads, and the functions found behind their values --collect--> {name: value}

It errs on one side: a name too many costs a copy (and `collect` takes only names that exist), a name too few
is a NameError in the worker. The exceptions are said where they are made.

Thread: the kernel's main thread, when a cell is launched; no state is kept between calls. `collect` looks at
the user's live objects and runs none of their code. This module must not know IPython (the transform is
handed in), tasks, pickling, or what a ref is.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import re
import string
import types
import warnings
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from itertools import chain, islice
from textwrap import dedent
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["CellNames", "all_names", "analyse", "code_names", "collect", "names_behind"]

FILENAME = "<cell>"

# How many objects `collect` looks at behind one captured value, breadth first. An honest guess: functions
# kept in a list, a dict or a pipeline are found, and a list of a million rows costs less than a millisecond.
MAX_LOOKED_AT = 1000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Every namespace has its own of these, and the compiler reads and writes them unasked: a class body reads
# `__name__`, a cell that begins with a string assigns `__doc__`. They are never reported and never captured.
MODULE_NAMES = _words(
    "__name__ __doc__ __package__ __loader__ __spec__ __builtin__ __builtins__"
    " __annotations__ __conditional_annotations__ __annotate__"
)

# IPython hides these, yet a cell that reads one by name wants it, also if nothing has been put in it yet.
HISTORY_NAMES = _words("_ __ ___ _i _ii _iii In Out _ih _oh _dh")

# The functions of jupyter_tasks that want the ref itself.
REF_FUNCTIONS = frozenset({"cancel", "kill", "wait", "as_completed"})

# Reasons of `CellNames.dynamic` for which there is no telling which names are meant.
_SEES_ALL = _words("exec eval globals locals vars dir magic")

Transform: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class CellNames:
    """What a cell does with the names of its namespace. Builtins are not told from other names."""

    reads: frozenset[str]
    """Read, or deleted, where the cell itself has not certainly bound them."""
    writes: frozenset[str]
    """May be assigned in the namespace, also by a function through `global`."""
    deletes: frozenset[str]
    """May be deleted from it, also by the end of an `except ... as name`."""
    mutates: frozenset[str]
    """Those of `reads` that are assigned through: `x[0] = 1`, `x.a = 1`, `del x[0]`, `x += 1`. Method calls
    such as `x.append(1)` are not seen: what really changed shows only after the run."""
    dynamic: frozenset[str]
    """Why the rest may be incomplete: 'exec', 'eval', 'globals', 'locals', 'vars', 'dir', 'import *', 'magic'
    (one whose text is not known to be code, or is not constant), 'string' (it should be code and is not)."""
    refs_only: frozenset[str]
    """Those of `reads` that are used only as arguments of cancel, kill, wait or as_completed."""

    @property
    def may_see_all(self) -> bool:
        """Any name of the namespace may be read."""
        return not _SEES_ALL.isdisjoint(self.dynamic)


def analyse(source: str, transform: Transform | None = None) -> CellNames:
    """Find what a cell reads, writes, deletes and mutates.

    Args:
        source: The cell as the user wrote it.
        transform: Turns IPython's syntax into Python, normally `TransformerManager().transform_cell`.

    Raises:
        SyntaxError: The cell is not valid Python; `lineno` counts the lines of `source`.

    It silences the compiler's warnings meanwhile (the worker compiles the cell again and shows them). That
    switch is the whole process's, hence: call it from the main thread.
    """
    with _silence():
        tree = _parse(source, transform)
        code = _compile(tree)
        spelled = _SpellOut(transform)
        tree = spelled.visit(tree)
        code = _compile_spelled(tree, spelled) or code
    found = _names_in(code)
    reads = frozenset(found.reads | spelled.unscoped)
    if (word := source.strip()).isidentifier():
        reads |= {word}  # a macro's name, perhaps, which the transform has replaced by its text
    return CellNames(
        reads=reads,
        writes=frozenset(found.writes | spelled.writes),
        deletes=frozenset(found.deletes | spelled.deletes),
        mutates=frozenset(_mutated(tree) | spelled.mutates) & reads,
        dynamic=frozenset(spelled.dynamic),
        refs_only=frozenset(_only_as_refs(tree)) & reads,
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warning is shown. (`warnings.catch_warnings` has Python forget which ones it has shown once already.)"""
    before, warnings.showwarning = warnings.showwarning, _show_nothing
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_nothing(*_: object, **__: object) -> None:
    pass


def code_names(code: types.CodeType) -> frozenset[str]:
    """The global names that a function's code, the code nested in it included, reads.

    Its source is gone, so of the names in strings only those of `query` and `eval` (`@name`) and of magics
    and shell commands (`$name`, `{name}`) are seen.
    """
    return frozenset(_names_in(code).reads | _names_in_constants(code))


# --- Source to code -----------------------------------------------------------------------------------------


def _parse(source: str, transform: Transform | None) -> ast.Module:
    text = transform(source) if transform else source
    # IPython's transform drops the blank lines a cell begins with, and the line numbers would slip.
    dropped = _leading_blank_lines(source) - _leading_blank_lines(text)
    try:
        return ast.parse("\n" * dropped + text, FILENAME)
    except ValueError as error:  # a null byte or a lone surrogate; some versions say SyntaxError themselves
        raise SyntaxError(str(error), (FILENAME, 1, 1, "")) from error


def _leading_blank_lines(text: str) -> int:
    return text[: len(text) - len(text.lstrip())].count("\n")


def _compile(tree: ast.Module) -> types.CodeType:
    code: types.CodeType = compile(tree, FILENAME, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _compile_spelled(tree: ast.Module, spelled: _SpellOut) -> types.CodeType | None:
    """The code of the rewritten tree, or None if it was not changed or cannot be compiled.

    The latter takes an odd cell: a function whose query string holds `@x` above its `global x`. Then all
    names of the tree count as read, whatever their scope.
    """
    if not spelled.changed:
        return None
    try:
        return _compile(ast.fix_missing_locations(tree))
    except SyntaxError:
        spelled.unscoped = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return None


# --- Names in strings, spelled out --------------------------------------------------------------------------

# run: statements that bind names in the namespace, as exec does
# read: statements or an expression whose bindings stay inside, as in timeit
# query: only @name
# template: $name and {expression}, as IPython fills them in
_Kind = Literal["run", "read", "query", "template"]


class _Held(NamedTuple):
    """A string that holds names."""

    kind: _Kind
    text: str


class _Magic(NamedTuple):
    name: str
    line: str
    body: str | None
    """None for a line magic."""


# Magics whose text is code, after their options. The letters are the options that take a value; a magic
# without any has no one-letter options at all: `%time -x` runs `-x`.
CODE_MAGICS: Mapping[str, str] = {
    "capture": "",
    "debug": "b",
    "lprun": "fmDTsu",
    "memit": "rti",
    "mprun": "fT",
    "pdef": "",
    "pdoc": "",
    "pfile": "",
    "pinfo": "",
    "pinfo2": "",
    "prun": "DlsT",
    "psource": "",
    "pyinstrument": "",
    "remote": "",
    "snakeviz": "f",
    "time": "",
    "timeit": "nrpv",
}
# Of those, the ones that run their code in the namespace, so that what it assigns is there afterwards ...
RUNNING_MAGICS = frozenset({"capture", "lprun", "memit", "mprun", "prun", "pyinstrument", "snakeviz", "time"})
# ... and the ones whose code is the body alone, because their line holds other things.
BODY_MAGICS = frozenset({"capture", "remote"})
# Cell magics whose body is another language's, or a file's; IPython fills nothing into it.
FOREIGN_MAGICS = _words(
    "! bash cmd file html javascript js latex markdown perl pypy python python2 python3 ruby script sh svg writefile"
)

# Magics that read no names but those that are filled into their line.
NAMELESS_MAGICS = _words(
    "aimport alias alias_magic autoawait autocall automagic autoreload bookmark cat cd clear colors conda config cp"
    " dhist dirs doctest_mode env gui history ldir less lf lk ll load_ext ls lsmagic lx mamba man matplotlib micromamba"
    " mkdir more mv pip popd pprint precision profile pushd pwd quickref rehashx reload_ext rm rmdir set_env sx system"
    " tasks tb unalias unload_ext uv xmode"
)

NAMESPACE_FUNCTIONS = frozenset({"globals", "locals", "vars", "dir"})
NAMESPACE_ATTRIBUTES = frozenset({"ev", "ex", "magic", "push", "run_cell", "user_global_ns", "user_ns"})
EXPRESSION_FUNCTIONS = frozenset({("ne", "evaluate"), ("numexpr", "evaluate"), ("pandas", "eval"), ("pd", "eval")})

_QUERY_NAME = re.compile(r"(?<!\w)@([^\W\d]\w*)")
_DOLLAR_NAME = re.compile(r"(?<!\$)\$([^\W\d]\w*)")
_LONG_OPTION = re.compile(r"\s*--[\w-]+(?:=\S+)?(?:\s+|$)(?P<letter>)(?P<value>)")
_OPTION = re.compile(r"\s*-(?:-[\w-]+(?:=\S+)?|(?P<letter>[A-Za-z])(?P<value>\S*))(?:\s+|$)")
_WORD = re.compile(r"\s*(\S+)")


class _SpellOut(ast.NodeTransformer):
    """Writes the names that strings hold into the tree, where the compiler will scope them.

    A string becomes extra arguments of the call that it is an argument of: `df.query('a > @lim', lim)`. A
    statement that runs its string in the namespace is replaced by the statements of the string, so that what
    they bind counts as bound below. The tree is only ever compiled, never run.
    """

    def __init__(self, transform: Transform | None) -> None:
        self.changed = False
        self.unscoped: set[str] = set()  # see _compile_spelled
        self.writes: set[str] = set()
        self.deletes: set[str] = set()
        self.mutates: set[str] = set()
        self.dynamic: set[str] = set()
        self._transform = transform
        self._functions = 0  # how many functions we are inside of

    def _visit_function(self, node: ast.AST) -> ast.AST:
        self._functions += 1
        self.generic_visit(node)
        self._functions -= 1
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if any(alias.name == "*" for alias in node.names):
            self.dynamic.add("import *")
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr in NAMESPACE_ATTRIBUTES and _is_get_ipython(node.value):
            self.dynamic.add("magic")
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.stmt]:
        # Inside a function exec cannot make a local variable; in place of it, a statement would.
        if self._functions or not isinstance(node.value, ast.Call):
            return self.generic_visit(node)
        held = _held_strings(node.value)
        tree = self._statements([text for kind, text in held if kind == "run"])
        if tree is None:
            return self.generic_visit(node)
        self._note_reasons(node.value)
        others = [_Held(kind, text) for kind, text in held if kind != "run"]
        loads: list[ast.stmt] = [ast.copy_location(ast.Expr(name), node) for name in self._loads(others)]
        spelled = self.visit(tree)
        self.changed = True
        return loads + (spelled.body or [ast.copy_location(ast.Pass(), node)])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self._note_reasons(node)
        loads = self._loads(_held_strings(node))
        self.generic_visit(node)
        if loads:
            node.args = [*node.args, *loads]
            self.changed = True
        return node

    def _statements(self, texts: list[str]) -> ast.Module | None:
        """The string, if there is one, as statements that may stand in the cell; else None."""
        if not texts:
            return None
        try:
            tree = _parse(texts[0], self._transform)
            _compile(tree)
        except SyntaxError:
            return None
        return tree

    def _note_reasons(self, call: ast.Call) -> None:
        self.dynamic |= _reasons(call)
        self.writes |= _captured_output(call)

    def _loads(self, held: list[_Held]) -> list[ast.expr]:
        names: set[str] = set().union(*map(self._names_held, held))
        return [ast.Name(name, ast.Load()) for name in sorted(names)]

    def _names_held(self, held: _Held) -> frozenset[str]:
        if held.kind == "query":
            return frozenset(_QUERY_NAME.findall(held.text))
        if held.kind == "template":
            return _template_names(held.text)
        try:
            inner = analyse(dedent(held.text), self._transform)
        except SyntaxError:
            self.dynamic.add("string")
            return _template_names(held.text)
        if held.kind == "run" and not self._functions:
            self.writes |= inner.writes
            self.deletes |= inner.deletes
        self.mutates |= inner.mutates
        self.dynamic |= inner.dynamic
        return inner.reads


def _held_strings(call: ast.Call) -> list[_Held]:
    """The strings among the arguments of a call that hold names, and how they do."""
    magic = _magic(call)
    if magic is not None:
        return _held_by_magic(magic)
    if isinstance(call.func, ast.Name):
        return _held_by_builtin(call.func.id, call.args)
    if isinstance(call.func, ast.Attribute):
        return _held_by_method(call.func, call)
    return []


def _held_by_builtin(name: str, args: list[ast.expr]) -> list[_Held]:
    text = _text(args[0]) if len(args) == 1 else None
    if text is None or name not in ("exec", "eval"):
        return []
    return [_Held("run" if name == "exec" else "read", text)]


def _held_by_method(func: ast.Attribute, call: ast.Call) -> list[_Held]:
    held: list[_Held] = []
    if isinstance(func.value, ast.Name) and (func.value.id, func.attr) in EXPRESSION_FUNCTIONS:
        text = _text(call.args[0]) if call.args else None
        held += [_Held("read", text)] if text is not None else []
    if func.attr in ("query", "eval"):
        held += [_Held("query", text) for text in _texts_within(call)]
    if func.attr in ("system", "getoutput") and _is_get_ipython(func.value):
        held += [_Held("template", text) for text in map(_text, call.args) if text is not None]
    return held


def _held_by_magic(magic: _Magic) -> list[_Held]:
    if magic.name not in CODE_MAGICS:
        body = "" if magic.body is None or magic.name in FOREIGN_MAGICS else magic.body
        return [_Held("template", magic.line), _Held("template", body)]
    if magic.name in BODY_MAGICS:
        held, code = [_Held("template", magic.line)], magic.body or ""
    else:
        functions, line = _split_options(magic.line, CODE_MAGICS[magic.name])
        held, code = [_Held("read", text) for text in functions], f"{line}\n{magic.body or ''}"
    return [*held, _Held("run" if magic.name in RUNNING_MAGICS else "read", code)]


def _split_options(line: str, takes_value: str) -> tuple[list[str], str]:
    """The values of the -f options, which name functions, and what follows the options."""
    functions = []
    while option := (_OPTION if takes_value else _LONG_OPTION).match(line):
        line = line[option.end() :]
        letter, value = option["letter"], option["value"]
        if letter and letter in takes_value and not value and (word := _WORD.match(line)):
            value, line = word[1], line[word.end() :]
        if letter == "f":
            functions.append(value)
    return functions, line


def _reasons(call: ast.Call) -> set[str]:
    """Why the names of this call cannot all be seen."""
    magic = _magic(call)
    if magic is not None:
        known = magic.name in CODE_MAGICS or magic.name in FOREIGN_MAGICS or magic.name in NAMELESS_MAGICS
        return set() if known else {"magic"}
    func, args = call.func, call.args
    if isinstance(func, ast.Name):
        unseen_code = func.id in ("exec", "eval") and not _held_by_builtin(func.id, args)
        whole_namespace = func.id in NAMESPACE_FUNCTIONS and not args
        return {func.id} if unseen_code or whole_namespace else set()
    if isinstance(func, ast.Attribute):
        computed_magic = func.attr in ("run_line_magic", "run_cell_magic")
        computed_shell = func.attr in ("system", "getoutput") and _is_get_ipython(func.value)
        return {"magic"} if computed_magic or (computed_shell and None in map(_text, args)) else set()
    return set()


def _captured_output(call: ast.Call) -> set[str]:
    """The name that `%%capture name` binds."""
    magic = _magic(call)
    if magic is None or magic.name != "capture":
        return set()
    return {word for word in magic.line.split() if word.isidentifier()}


def _magic(call: ast.Call) -> _Magic | None:
    """What IPython's transform makes of `%name line` and of `%%name line`, read back."""
    if not isinstance(call.func, ast.Attribute):
        return None
    texts = [_text(arg) for arg in call.args]
    match call.func.attr, texts:
        case "run_line_magic", [str(name), str(line), *_]:
            return _Magic(name, line, None)
        case "run_cell_magic", [str(name), str(line), str(body)]:
            return _Magic(name, line, body)
    return None


def _is_get_ipython(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_ipython"


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _texts_within(call: ast.Call) -> list[str]:
    """All strings in the arguments, also those that an expression or an f-string puts together."""
    arguments = chain(call.args, (keyword.value for keyword in call.keywords))
    nodes = chain.from_iterable(map(ast.walk, arguments))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _template_names(text: str) -> frozenset[str]:
    """The names in `$name` and `{expression}`, which IPython fills into shell commands and magics' lines."""
    names = {found[1] for found in _DOLLAR_NAME.finditer(text) if not _in_single_quotes(text, found.end())}
    for expression in _template_fields(text):
        try:
            names |= analyse(expression.strip()).reads
        except SyntaxError:  # as in awk '{print $1}'
            continue
    return frozenset(names)


def _in_single_quotes(text: str, position: int) -> bool:
    return text.count("'", position) % 2 == 1


def _template_fields(text: str) -> list[str]:
    try:
        fields = [(field, spec) for _, field, spec, _ in string.Formatter().parse(text) if field]
    except ValueError:  # unbalanced braces: IPython leaves such a text alone
        return []
    # A colon is part of the expression, a slice: IPython knows no format specifications here.
    return [f"{field}:{spec}" if spec else field for field, spec in fields]


def _names_in_constants(code: types.CodeType) -> set[str]:
    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    nested = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    names: set[str] = set().union(*map(_names_in_constants, nested))
    if not {"query", "eval"}.isdisjoint(code.co_names):
        names.update(*map(_QUERY_NAME.findall, texts))
    if "get_ipython" in code.co_names:
        names.update(*map(_template_names, texts))
    return names


# --- What the tree alone says -------------------------------------------------------------------------------


def _mutated(tree: ast.Module) -> set[str]:
    """The names that are assigned through, whatever their scope."""
    roots: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            roots.add(_root(node))
        elif isinstance(node, ast.AugAssign):
            roots.add(_root(node.target))
    return {name for name in roots if name is not None}


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _only_as_refs(tree: ast.Module) -> set[str]:
    """The names whose every use is as an argument of a function that wants refs."""
    nodes = list(ast.walk(tree))
    uses = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    uses.update(
        node.target.id for node in nodes if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    )
    calls = (node for node in nodes if isinstance(node, ast.Call) and _wants_refs(node.func))
    as_refs = Counter(chain.from_iterable(_displayed_names(arg) for call in calls for arg in call.args))
    return {name for name, count in as_refs.items() if count == uses[name]}


def _wants_refs(func: ast.expr) -> bool:
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        return func.attr in REF_FUNCTIONS
    return isinstance(func, ast.Name) and func.id in REF_FUNCTIONS


def _displayed_names(node: ast.expr) -> Iterator[str]:
    """`a` of `a`, `[a]`, `(a, [a])`."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from _displayed_names(element)


# --- What the bytecode says ---------------------------------------------------------------------------------

_STORES = frozenset({"STORE_NAME", "STORE_GLOBAL"})
_DELETES = frozenset({"DELETE_NAME", "DELETE_GLOBAL"})
_BINDINGS = _STORES | _DELETES
_OF_A_CLASS = frozenset({"STORE_NAME", "DELETE_NAME"})  # in a class body these touch the class alone

# Instructions after which the next one in the list does not run. To miss one here adds a way through the code
# that does not exist, and so at worst a name too many.
_NO_WAY_ON = _words(
    "RETURN_VALUE RETURN_CONST RAISE_VARARGS RERAISE INTERPRETER_EXIT"
    " JUMP_FORWARD JUMP_ABSOLUTE JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT"
)
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)

# Instructions that cannot call a function of the cell: the rest of a `def`, plain assignments, imports.
_CALM = _words(
    "BUILD_TUPLE COPY DUP_TOP EXTENDED_ARG IMPORT_FROM IMPORT_NAME LOAD_CONST LOAD_NAME LOAD_SMALL_INT"
    " MAKE_FUNCTION NOP NOT_TAKEN POP_TOP SET_FUNCTION_ATTRIBUTE STORE_GLOBAL STORE_NAME"
)

# Context managers that end an exception are rare, and assuming one at each `with` would capture, when the
# cell is run again, the old `data` of `with open(p) as f: data = f.read()`, however large. So only code that
# mentions one of these may go on after the `with` without what its body binds.
SWALLOWERS = _words("suppress raises assertRaises move_on_after move_on_at CancelScope")

_GENERIC = "<generic parameters of "  # how 3.12 and later name the scope of `[T]`

_Names: TypeAlias = frozenset[str]


@dataclass(slots=True)
class _Found:
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Around:
    """What a nested piece of code can count on."""

    bound: _Names = frozenset()
    """Global names that are certainly bound when it runs."""
    later: _Names = frozenset()
    """Global names that are certainly bound before a function made in it can be called."""
    class_names: _Names = frozenset()
    """Names of the class body round it; only annotations and type parameters see those."""
    nested: bool = False


def _names_in(code: types.CodeType) -> _Found:
    found = _Found()
    _scan(code, _Around(), found)
    for names in (found.reads, found.writes, found.deletes):
        names.difference_update(MODULE_NAMES)
    return found


def _scan(code: types.CodeType, around: _Around, found: _Found) -> None:
    """Add to `found` what the code, and the code nested in it, does with global names."""
    in_function = bool(code.co_flags & CO_OPTIMIZED)
    in_class = around.nested and not in_function
    in_module = not around.nested and not in_function
    flow = _Flow(code, around.bound, in_class)
    for index, instruction in enumerate(flow.instructions):
        bound = flow.bound_before[index]
        name, value = instruction.opname, instruction.argval
        if bound is None or (in_class and name in _OF_A_CLASS):  # no way leads here, or to no global name
            continue
        global_bound = around.bound if in_class else bound
        if name in _STORES:
            found.writes.add(value)
        elif name in _DELETES:
            found.deletes.add(value)
            found.reads.update({value} - global_bound)
        elif name == "LOAD_NAME":
            found.reads.update({value} - bound)
        elif name == "LOAD_GLOBAL":
            found.reads.update({value} - global_bound)
        elif name == "LOAD_FROM_DICT_OR_GLOBALS":
            found.reads.update({value} - bound - around.class_names)
        elif isinstance(value, types.CodeType):
            soon = flow.bound_soon(index) if in_module else frozenset()
            class_names = bound if in_class else around.class_names
            _scan(value, _inside(value, global_bound, around.later | soon, class_names), found)


def _inside(code: types.CodeType, bound: _Names, later: _Names, class_names: _Names) -> _Around:
    if _runs_later(code):
        bound |= later
    return _Around(bound, later, class_names, nested=True)


def _runs_later(code: types.CodeType) -> bool:
    """Whether it is a function's code. Class bodies, comprehensions and type parameter scopes run at once."""
    return bool(code.co_flags & CO_OPTIMIZED) and (code.co_name == "<lambda>" or code.co_name[0] != "<")


class _Flow:
    """The names that are certainly bound before each instruction of one piece of code.

    A forward analysis: each instruction hands its names on to those that may run next; where ways meet, only
    the names common to all of them stay. Sets only shrink, so it ends.

    Bound means: the notebook's value cannot be seen any more. So a deleted name counts as bound; to read it
    is a NameError in the notebook too. Not so in a class body, where the global name shows again.
    """

    def __init__(self, code: types.CodeType, bound: _Names, in_class: bool) -> None:
        bytecode = dis.Bytecode(code)
        self.instructions = list(bytecode)
        # 3.11 and later keep the handlers in a table; 3.10 jumps to them with SETUP_FINALLY and SETUP_WITH.
        self._handlers = list(getattr(bytecode, "exception_entries", ()))
        self._index = {instruction.offset: i for i, instruction in enumerate(self.instructions)}
        self._in_class = in_class
        self._swallows = not SWALLOWERS.isdisjoint(code.co_names)
        self._everything = bound.union(i.argval for i in self.instructions if i.opname in _BINDINGS)
        self.bound_before: list[_Names | None] = [None] * len(self.instructions)
        self._work: list[int] = []
        self._run(bound)

    def bound_soon(self, index: int) -> _Names:
        """The names bound before the function or class whose code is loaded at `index` can be called.

        Those are the stores that follow with nothing in between that could call it, and its own name: a
        decorator that calls what it is given is rare, and functions that call themselves are not.
        """
        own = self.instructions[index].argval.co_name.removeprefix(_GENERIC).removesuffix(">")
        if own == "__annotate__":
            return self._everything  # 3.14 makes it as the cell begins, but it is called after its end, if ever
        following = islice(self.instructions, index + 1, None)
        names = {own}
        for instruction in following:
            if instruction.opname not in _CALM:
                break
            if instruction.opname in _STORES:
                names.add(instruction.argval)
        return frozenset(names)

    def _run(self, bound: _Names) -> None:
        handlers = self._handlers_of_each()
        self._reach(0, bound)
        while self._work:
            index = self._work.pop()
            before = self.bound_before[index]
            assert before is not None  # _reach set it
            for handler in handlers[index]:
                self._reach(handler, before)
            after = self._after(index, before)
            for successor in self._successors(index):
                self._reach(successor, after)

    def _reach(self, index: int, bound: _Names) -> None:
        known = self.bound_before[index]
        if known is None:
            new = bound
        elif known <= bound:
            return
        else:
            new = known & bound
        self.bound_before[index] = new
        self._work.append(index)

    def _after(self, index: int, before: _Names) -> _Names:
        instruction = self.instructions[index]
        name = instruction.argval
        if instruction.opname == "DELETE_NAME" and self._in_class:
            return before - {name}
        if instruction.opname in _BINDINGS:
            return before if name in before else before | {name}
        if instruction.opname == "WITH_EXCEPT_START" and not self._swallows:
            return self._everything  # so that this way takes no names away where it meets the others
        return before

    def _successors(self, index: int) -> Iterator[int]:
        instruction = self.instructions[index]
        # END_ASYNC_FOR of 3.14 counts as a jump, for tracing only; hence the look at the index.
        if instruction.opcode in _JUMPS and instruction.argval in self._index:
            yield self._index[instruction.argval]
        if instruction.opname not in _NO_WAY_ON and index + 1 < len(self.instructions):
            yield index + 1

    def _handlers_of_each(self) -> list[list[int]]:
        handlers: list[list[int]] = [[] for _ in self.instructions]
        offsets = list(self._index)
        for entry in self._handlers:
            target = self._index[entry.target]
            for index in range(bisect_left(offsets, entry.start), bisect_left(offsets, entry.end)):
                handlers[index].append(target)
        return handlers


# --- Names to values ----------------------------------------------------------------------------------------

# Nothing of the notebook is behind these.
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), types.ModuleType, types.CodeType)

_ABSENT = object()


def collect(
    names: Iterable[str],
    namespace: Mapping[str, object],
    hidden: Mapping[str, object] = types.MappingProxyType({}),
) -> dict[str, object]:
    """The values of the names, and of the names that the functions and classes behind those values read.

    A name that is not in the namespace is left out: it is a builtin, or the cell makes it. Functions count if
    their globals are this very namespace, classes if they belong to `__main__`; both are found also behind
    decorators, closures, partials, methods, containers and the attributes of instances (`MAX_LOOKED_AT`
    objects per value).

    Args:
        names: Normally `CellNames.reads`.
        namespace: The notebook's namespace; the functions' `__globals__`.
        hidden: IPython's `user_ns_hidden`. A name that still has its hidden value is the kernel's, not the
            user's, and is left out, except for the history (`_`, `Out`, ...), which is what it is read for.

    Returns:
        A new dict, sorted by name.
    """
    values: dict[str, object] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in values or not _is_users(name, namespace, hidden):
            continue
        values[name] = namespace[name]
        waiting.extend(_names_behind(values[name], namespace))
    return dict(sorted(values.items()))


def all_names(namespace: Mapping[str, object], hidden: Mapping[str, object]) -> set[str]:
    """The user's names, without the history."""
    return {name for name in list(namespace) if name not in HISTORY_NAMES and _is_users(name, namespace, hidden)}


def names_behind(values: Iterable[object], namespace: Mapping[str, object]) -> set[str]:
    """The names of this namespace that the functions and classes behind these values read."""
    return set().union(*(_names_behind(value, namespace) for value in values))


def _is_users(name: str, namespace: Mapping[str, object], hidden: Mapping[str, object]) -> bool:
    if name not in namespace or name in MODULE_NAMES:
        return False
    return name in HISTORY_NAMES or hidden.get(name, _ABSENT) is not namespace[name]


def _names_behind(value: object, namespace: Mapping[str, object]) -> set[str]:
    """The global names read by the functions of this namespace that can be reached from the value."""
    names: set[str] = set()
    left = MAX_LOOKED_AT
    waiting = deque([value])
    seen: dict[int, object] = {}  # by id, as many values have no hash; holds them, so that an id stays one's own
    while waiting:
        item = waiting.popleft()
        if id(item) in seen or issubclass(type(item), _LEAVES):
            continue
        seen[id(item)] = item
        if type(item) is types.FunctionType and item.__globals__ is namespace:
            names |= code_names(item.__code__)
        if _is_shell(item, namespace):
            continue  # it has all of the notebook behind it, and is never sent
        parts = _first(left, _parts(item))
        left -= len(parts)
        waiting.extend(parts)
    return names


def _is_shell(item: object, namespace: Mapping[str, object]) -> bool:
    held = _instance_dict(item)  # which of the two it has depends on IPython's version
    return held.get("user_ns") is namespace or _instance_dict(held.get("user_module")) is namespace


def _first(count: int, items: Iterable[object]) -> list[object]:
    taken: list[object] = []
    try:
        for item in islice(items, count):
            taken.append(item)
    except RuntimeError:
        # A thread of the user's changed a dict, a set or a deque while we looked. What came before it stays.
        pass
    return taken


def _parts(item: object) -> Iterator[object]:
    """The objects one step behind this one, found without running code of the user's.

    The type is asked with `type` and not with isinstance, which a proxy (a lazy import, a mock) would answer
    for the object it stands for, perhaps by making it.
    """
    kind = type(item)
    if issubclass(kind, type):
        return _class_parts(item)
    own_class = (kind,) if _is_notebook_class(kind) else ()
    return chain(_callable_parts(item, kind), _elements(item, kind), _attributes(item), own_class)


def _callable_parts(item: Any, kind: type) -> Iterator[object]:
    if kind is types.FunctionType:
        yield from map(_cell_contents, item.__closure__ or ())
        yield from item.__defaults__ or ()
        yield from (item.__kwdefaults__ or {}).values()
    elif kind is types.MethodType:
        yield from (item.__func__, item.__self__)
    elif issubclass(kind, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif issubclass(kind, classmethod | staticmethod):
        yield item.__func__
    elif issubclass(kind, property):
        yield from (item.fget, item.fset, item.fdel)


def _cell_contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _elements(item: Any, kind: type) -> Iterator[object]:
    if issubclass(kind, dict):
        factory = (item.default_factory,) if kind is defaultdict else ()
        return chain(factory, dict.values(item), dict.__iter__(item))
    for container in (list, tuple, set, frozenset, deque):
        if issubclass(kind, container):
            return container.__iter__(item)
    return iter(())


def _attributes(item: object) -> Iterator[object]:
    """The values of the instance's `__dict__`; a decorated function's `__wrapped__` is one of them."""
    return iter(dict.values(_instance_dict(item)))


def _instance_dict(item: object) -> dict[str, object]:
    try:
        attributes = object.__getattribute__(item, "__dict__")
    except AttributeError:
        return {}
    return attributes if issubclass(type(attributes), dict) else {}


def _class_parts(cls: Any) -> Iterator[object]:
    if not _is_notebook_class(cls):
        return iter(())
    return chain(_class_dict(cls).values(), cls.__bases__, (type(cls),))


def _is_notebook_class(cls: type) -> bool:
    return _class_dict(cls).get("__module__") == "__main__"


def _class_dict(cls: type) -> Mapping[str, object]:
    attributes: Mapping[str, object] = type.__getattribute__(cls, "__dict__")
    return attributes
