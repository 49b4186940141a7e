"""Is a `%%remote --wait -o '*'` cell like a plain one? Hundreds of cells, each run both ways. Role: end to end.

Promise: docs/semantics.md, Cells, `--wait -o '*'`. Each corpus (`fidelity/*.cells`) is run in two kernels, cell by cell:
one gets the cells as they are, the other gets them with `%%remote --wait -o '*'` on top. After each cell everything that
it has sent is compared, and then, by `fidelity/probe.py`, the namespace, which names are the same object, and the ambient
state of the kernel. A difference is told with the cell's title; one that was told before and has not changed is not told
again, so that the first cell is blamed.

A cell begins with a line `# %% title`. Lines that may follow it:

    # answers: Ada | 36            what is typed when the cell asks
    # differs: WHAT, WHAT: ROW     known differences: WHAT is `stdout`, `stderr`, `outputs`, `error`, `reply`, `name x`
                                   or `ambient cwd`; ROW is its row in docs/fidelity.md. If one no longer differs, the
                                   test fails: take it away.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from conftest import wait_until
from kernels import NET, Cell, Kernel, plain

HERE = Path(__file__).parent
CORPORA = sorted((HERE / "fidelity").glob("*.cells"))
TABLE = HERE.parents[1] / "docs" / "fidelity.md"
LEAST = 300  # cells, as the promise says
MOST_SHOWN = 700  # characters of one side of a difference
REMOTE = "%%remote --wait -o '*'"

# Run in both kernels before the first cell, and not compared: what would differ between two plain kernels, too.
BEFORE = """%load_ext jupyter_tasks
__import__("random").seed(0), __import__("numpy").random.seed(0), __import__("fidelity.probe").probe.remember();"""
PROBE = '__import__("fidelity.probe").probe.tell()'


# --- The corpora ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snippet:
    """One cell of a corpus."""

    title: str
    code: str
    answers: tuple[str, ...] = ()
    differs: dict[str, str] = field(default_factory=dict)  # what -> row of the table
    alone: bool = False  # IPython treats a cell of one line in its own way: no line on top of the plain one

    @property
    def as_plain(self) -> str:
        """With a line on top, so that lines count as below `%%remote`. A cell magic must be the first line."""
        return self.code if self.code.startswith("%%") or self.alone else "# plain\n" + self.code

    @property
    def as_remote(self) -> str:
        return f"{REMOTE}\n{self.code}"


def read_corpus(path: Path) -> list[Snippet]:
    _, *parts = re.split(r"^# %% ", path.read_text(), flags=re.MULTILINE)
    return [_snippet(part) for part in parts]


def _snippet(part: str) -> Snippet:
    title, _, code = part.partition("\n")
    answers: tuple[str, ...] = ()
    differs: dict[str, str] = {}
    alone = False
    while mark := re.match(r"# (answers|differs|alone): (.*)\n", code):
        if mark[1] == "alone":
            alone = True
        elif mark[1] == "answers":
            answers = tuple(each.strip() for each in mark[2].split("|"))
        else:
            whats, _, row = mark[2].partition(":")
            differs.update({what.strip(): row.strip() for what in whats.split(",")})
        code = code[mark.end() :]
    return Snippet(title.strip(), code.rstrip("\n"), answers, differs, alone)


def rows_of_the_table() -> list[str]:
    """The first column, without the head of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return [line.split("|")[1].strip() for line in lines[2:]]


# --- Kernels --------------------------------------------------------------------------------------------------------


class Answering(Kernel):
    """A kernel with somebody at the keyboard."""

    answers: list[str]

    def read_until(self, condition: Any, what: str, net: float = NET) -> None:
        end = time.monotonic() + net
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {net:g} s in vain for {what}")
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except Empty:
                self._answer()
                continue
            owner = self._owner(message)
            if owner is not None:
                owner.messages.append(message)

    def _answer(self) -> None:
        try:
            request = self.client.get_stdin_msg(timeout=0)
        except Empty:
            return
        owner = self.cells.get(request["parent_header"].get("msg_id", ""))
        if owner is not None:
            owner.messages.append(request)
        self.client.input(self.answers.pop(0) if self.answers else "")

    def begin(self, snippet: Snippet, code: str) -> Cell:
        self.answers = list(snippet.answers)
        return self.start(code)

    def probe(self) -> Cell:
        cell = Cell(self.client.execute(PROBE, silent=True, store_history=False))
        self.cells[cell.id] = cell
        return cell


class Side:
    """One of the two kernels, and what is in its texts that no other kernel has."""

    def __init__(self, directory: Path) -> None:
        self.kernel = Answering(directory)
        self.kernel.answers = []
        self._displays: dict[str, str] = {}
        before = self.kernel.run(BEFORE)
        assert before.ok, before.error

    def normal(self, text: str) -> str:
        """Without addresses, times, process ids and random ids."""
        text = plain(text).replace(str(self.kernel.directory), "<here>")
        for pattern, replacement in _NORMAL:
            text = pattern.sub(replacement, text)
        return text

    def display_id(self, id: str) -> str:
        return self._displays.setdefault(id, f"display {len(self._displays)}")


_TIME = r"[\d.]+ ?(?:ns|µs|us|μs|ms|s|min)\b"
_NORMAL = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"0x[0-9a-f]{6,}", "0x0"),
        (r"\bside-[12]\b", "side"),
        (r"/tmp/ipykernel_\d+/\d+\.py", "<cell's file>"),
        (r"<here>/ipykernel_\d+/\d+\.py", "<cell's file>"),
        (rf"CPU times: .*total: {_TIME}", "CPU times: <t>"),
        (rf"Wall time: {_TIME}", "Wall time: <t>"),
        (r"Compiler *: .*", "Compiler: <t>"),
        (rf"{_TIME} ± {_TIME}", "<t> ± <t>"),
        (r"in [\d.]+ seconds", "in <t> seconds"),
        (r"(?m)^ +\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ ", "<profile> "),
        (r"sk-(container|estimator)-id-\d+", r"sk-\1-id"),
        (r"#?T_[0-9a-f]{5,}", "T_0"),
        (r"(?<=tmp)[a-z0-9_]{8}\b", "<random>"),
        (r"\b\d{5,}\.py\b", "<cell>.py"),
        (r"'(?:[0-9a-f]{16}|[0-9a-f]{32})'", "'<random>'"),
        # A cell magic must be the first line, so the plain cell has no comment above it.
        (r"(Cell In\[\d+\], line )1\n-+> 1 (get_ipython)", r"\g<1>2\n----> 2 \g<2>"),
        (r"%%remote --wait -o '\*'", "# plain"),
        (r"(?m)^      1 # plain\n", ""),
    ]
]


# --- What is compared -----------------------------------------------------------------------------------------------


def seen(cell: Cell, side: Side) -> dict[str, str]:
    """What a cell has sent, in comparable parts."""
    error = cell.of("error")
    return {
        "stdout": side.normal(cell.text("stdout")),
        "stderr": side.normal(cell.text("stderr")),
        "outputs": "\n".join(_outputs(cell, side)),
        "error": "\n".join(
            f"{e['ename']}: {side.normal(e['evalue'])}\n" + side.normal("\n".join(e["traceback"])) for e in error
        ),
        "asked": json.dumps([(c["prompt"], c["password"]) for c in cell.of("input_request")]),
        "reply": json.dumps(_reply(cell, side), indent=0),
    }


def _reply(cell: Cell, side: Side) -> dict[str, Any]:
    reply = {key: cell.reply.get(key) for key in ("status", "execution_count", "ename", "payload")}
    reply["evalue"] = side.normal(str(cell.reply.get("evalue")))
    if reply["payload"]:
        reply["payload"] = side.normal(json.dumps(reply["payload"]))
    return reply


def _outputs(cell: Cell, side: Side) -> Iterator[str]:
    """Every message but stream, status and input; between them, in which streams text has come."""
    streams: list[str] = []
    for message in cell.messages:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            streams.append(content["name"])
        if kind in ("status", "execute_input", "stream", "input_request"):
            continue
        yield f"({', '.join(sorted(set(streams)))})" if streams else "()"
        streams = []
        data = {mime: _data(mime, value, side) for mime, value in sorted(content.get("data", {}).items())}
        told = {
            "data": data,
            **{key: content[key] for key in ("metadata", "execution_count", "wait") if key in content},
        }
        if "display_id" in content.get("transient", {}):
            told["display_id"] = side.display_id(content["transient"]["display_id"])
        yield f"{kind} {json.dumps(told, ensure_ascii=False)}"


def _data(mime: str, value: Any, side: Side) -> Any:
    if mime == "image/png":
        raw = base64.b64decode(value)
        width, height = struct.unpack(">II", raw[16:24])
        return f"{width} x {height}, {hashlib.sha1(raw).hexdigest()[:8]}"
    if mime in ("image/jpeg", "application/pdf"):
        return f"{len(value) // 2000} kB"
    if mime == "image/svg+xml":
        value = re.sub(r"<dc:date>.*?</dc:date>|(id|xlink:href|clip-path)=\"[^\"]*\"", "", value)
    return side.normal(value) if isinstance(value, str) else value


def state(cell: Cell, side: Side) -> dict[str, str]:
    """What the probe has told."""
    assert cell.text(), cell.error or cell.text("stderr")
    told = json.loads(cell.text())
    parts = {f"name {name}": value for name, value in told["names"].items()}
    parts.update({f"ambient {name}": value for name, value in told["ambient"].items()})
    return {what: side.normal(value) for what, value in parts.items()}


@dataclass
class Difference:
    number: int
    snippet: Snippet
    what: str
    here: str
    there: str

    def __str__(self) -> str:
        here, there = _around_the_change(self.here, self.there)
        return f"[{self.number}] {self.snippet.title} -- {self.what}\n      plain:  {here}\n      remote: {there}"


def _around_the_change(a: str, b: str) -> tuple[str, str]:
    """Both, cut to where they differ."""
    pairs = enumerate(zip(a, b, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
    start = max(0, same - 100) if max(len(a), len(b)) > MOST_SHOWN else 0
    here, there = (("..." if start else "") + text[start : start + MOST_SHOWN] for text in (a, b))
    return here or "(nothing)", there or "(nothing)"


class Comparison:
    """Both kernels of a corpus, side by side."""

    def __init__(self, plain_side: Side, remote_side: Side) -> None:
        self.sides = (plain_side, remote_side)
        self._states: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self.compare_states(0, Snippet("before the first cell", ""))

    def compare(self, number: int, snippet: Snippet) -> list[Difference]:
        """Runs a cell both ways."""
        here, there = self.sides
        cells = (here.kernel.begin(snippet, snippet.as_plain), there.kernel.begin(snippet, snippet.as_remote))
        facts = [seen(side.kernel.finish(cell), side) for side, cell in zip(self.sides, cells, strict=True)]
        found = [
            Difference(number, snippet, what, facts[0][what], facts[1][what])
            for what in facts[0]
            if facts[0][what] != facts[1][what]
        ]
        return found + self.compare_states(number, snippet)

    def compare_states(self, number: int, snippet: Snippet) -> list[Difference]:
        """What differs now and did not differ in the same way before."""
        cells = [side.kernel.probe() for side in self.sides]
        here, there = (state(side.kernel.finish(cell), side) for side, cell in zip(self.sides, cells, strict=True))
        old_here, old_there = self._states
        self._states = (here, there)
        found = []
        for what in sorted({*here, *there}):
            pair = (here.get(what, ""), there.get(what, ""))
            if pair[0] != pair[1] and pair != (old_here.get(what, ""), old_there.get(what, "")):
                found.append(Difference(number, snippet, what, *pair))
        return found


# --- The tests ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_a_remote_cell_is_like_a_plain_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, outputs, errors, namespace, aliases and ambient state, cell after cell."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # sets of texts are printed in the same order by both
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # with it, ipykernel does not read descriptors 1 and 2
    sides: list[Side] = []
    try:
        for name in ("side-1", "side-2"):  # of the same length: IPython shortens long paths
            sides.append(Side(tmp_path / name))
        comparison = Comparison(*sides)
        problems: list[str] = []
        for number, snippet in enumerate(read_corpus(path), 1):
            differences = comparison.compare(number, snippet)
            problems += [str(each) for each in differences if each.what not in snippet.differs]
            found = {each.what for each in differences}
            problems += [
                f"[{number}] {snippet.title} -- {what} is equal now: take it away from `# differs:`"
                for what in snippet.differs
                if what not in found
            ]
    finally:
        for side in sides:
            side.kernel.close()
    for side in sides:
        wait_until(lambda side=side: not side.kernel.processes(), "nothing of the kernel is left")  # type: ignore[misc]
    assert not problems, f"{len(problems)} differences in {path.name}:\n\n" + "\n\n".join(problems)


def test_there_are_enough_cells_and_no_two_are_the_same() -> None:
    snippets = [(path.stem, each) for path in CORPORA for each in read_corpus(path)]
    assert len(snippets) >= LEAST
    codes: dict[str, str] = {}
    for corpus, each in snippets:
        key = re.sub(r"\s+", " ", each.code)
        assert key not in codes, f"{corpus}: {each.title!r} is the same as {codes[key]}"
        codes[key] = f"{corpus}: {each.title!r}"


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_titles_tell_cells_apart(path: Path) -> None:
    """A difference is told by the title of its cell."""
    titles = [each.title for each in read_corpus(path)]
    assert len(titles) == len(set(titles)), sorted(title for title in set(titles) if titles.count(title) > 1)


def test_each_known_difference_has_its_row_and_each_row_its_cell() -> None:
    """docs/fidelity.md tells users what differs; the marks in the corpora prove it."""
    rows = rows_of_the_table()
    marked = {row for path in CORPORA for each in read_corpus(path) for row in each.differs.values()}
    assert marked - set(rows) == set(), "marks without a row in docs/fidelity.md"
    assert set(rows) - marked == set(), "rows of docs/fidelity.md without a cell that proves them"
    assert len(rows) == len(set(rows))
