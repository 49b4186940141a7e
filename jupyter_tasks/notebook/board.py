"""The board of one cell: what the launching cell shows of its task. Pure: words in, a mime bundle out.

`Board.take` takes in what the supervisor said, `bundle` draws it. No clock of its own, no thread, no IPython: the
feed calls both. Every bundle carries BOARD_MIME, so that people and tools can tell it from the cell's own outputs.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from jupyter_tasks.show import show_bytes, show_seconds

__all__ = [
    "BOARD_MIME",
    "FINAL_STATES",
    "Board",
    "LogText",
    "bar_html",
    "block_html",
    "next_attempt",
    "note_html",
    "strip_ansi",
]

BOARD_MIME = "application/vnd.jupyter-tasks.board+json"
FINAL_STATES = frozenset({"cancelled", "completed", "failed", "crashed"})
LOG_TAIL = 8_000  # characters that the board shows of the log; `%tasks logs` shows all of it
MOST_DISPLAYS = 50  # rich outputs that a board keeps
MOST_BARS = 8

_ICONS = {
    "pending": "\N{HOURGLASS WITH FLOWING SAND}",
    "running": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "cancelling": "\N{HORIZONTAL ELLIPSIS}",
    "cancelled": "\N{WHITE SQUARE CONTAINING BLACK SMALL SQUARE}",
    "completed": "\N{CHECK MARK}",
    "failed": "\N{BALLOT X}",
    "crashed": "\N{HIGH VOLTAGE SIGN}",
}
_COLOURS = {
    "pending": "#8a8a8a",
    "running": "#1976d2",
    "cancelling": "#b26a00",
    "cancelled": "#8a8a8a",
    "completed": "#2e7d32",
    "failed": "#c62828",
    "crashed": "#c62828",
}
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_CONTROLS = re.compile("(\n|\r|\x08)")
_IMAGES = ("image/png", "image/jpeg", "image/gif")


class LogText:
    r"""Text as a terminal shows it: "\r" goes back to the beginning of the line, "\b" one step.

    Text may come in any pieces. Only the end is kept.
    """

    __slots__ = ("_column", "_dropped", "_head", "_line")

    def __init__(self) -> None:
        self._head = ""  # whole lines
        self._line = ""  # the last one
        self._column = 0  # where the next character goes
        self._dropped = False  # there was more before

    def write(self, text: str) -> None:
        """Appends, or overwrites what stands there."""
        if self._column == len(self._line) and "\r" not in text and "\x08" not in text:
            head, newline, line = text.rpartition("\n")
            if newline:
                self._head, self._line = self._head + self._line + head + newline, line
            else:
                self._line += line
            self._column = len(self._line)
        else:
            for piece in _CONTROLS.split(text):
                self._write_piece(piece)
        if len(self._head) > 2 * LOG_TAIL:
            self._head, self._dropped = self._head[-LOG_TAIL:], True
        if len(self._line) > 2 * LOG_TAIL:
            self._line, self._dropped = self._line[-LOG_TAIL:], True
            self._column = min(self._column, len(self._line))

    def _write_piece(self, piece: str) -> None:
        if piece == "\n":
            self._head, self._line, self._column = self._head + self._line + "\n", "", 0
        elif piece == "\r":
            self._column = 0
        elif piece == "\x08":
            self._column = max(0, self._column - 1)
        else:
            end = self._column + len(piece)
            self._line = self._line[: self._column] + piece + self._line[end:]
            self._column = end

    def clear(self) -> None:
        """Nothing was written."""
        self._head, self._line, self._column, self._dropped = "", "", 0, False

    @property
    def is_cut(self) -> bool:
        """It shows the end of the text only."""
        return self._dropped or len(self._head) + len(self._line) > LOG_TAIL

    def __str__(self) -> str:
        return (self._head + self._line)[-LOG_TAIL:]

    def __bool__(self) -> bool:
        return bool(self._head or self._line)


@dataclass(slots=True)
class Board:
    """One task on the screen.

    Invariant: `state` is a word of the supervisor's, never ahead of it.
    """

    task_id: str
    name: str
    state: str = "pending"
    elapsed_s: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)
    bars: dict[int, dict[str, Any]] = field(default_factory=dict)
    log: LogText = field(default_factory=LogText)
    displays: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    error: str = ""  # the reason of an end without a value
    error_line: str = ""  # the same in one line
    notes: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)  # ids of earlier runs of the same cell that are not over
    clear_next: bool = False
    settled: bool = False  # its value or error has arrived, too
    seen_at: float = 0.0  # the feed's clock, at the last word of the supervisor

    # -- words in ---------------------------------------------------------------------------------------------

    def take_event(self, record: dict[str, Any], now: float) -> None:
        """A record of the supervisor, or usage figures."""
        if "usage" in record:
            self.usage = record["usage"]
        if "state" in record:
            self.record = record
            self.state = record["state"]
            self.elapsed_s = record["elapsed_s"]
            self.seen_at = now
            if self.state in FINAL_STATES:
                self.bars = {key: bar for key, bar in self.bars.items() if self._worth_keeping(bar)}

    def _worth_keeping(self, bar: dict[str, Any]) -> bool:
        return bar.get("parent") is None

    def take_text(self, text: str) -> None:
        """What the task wrote. Carriage returns overwrite their line, as in a terminal."""
        if self.clear_next:
            self.clear_next = False
            self.clear()
        self.log.write(text)

    def take_display(self, kind: str, content: dict[str, Any]) -> None:
        """Rich output of the task: the content of a Jupyter message."""
        if kind == "clear_output":
            if content.get("wait"):
                self.clear_next = True
            else:
                self.clear()
            return
        if self.clear_next and kind != "update_display_data":
            self.clear_next = False
            self.clear()
        if kind == "error":
            self.log.write("\n".join(content.get("traceback", [])) + "\n")
            return
        display_id = content.get("transient", {}).get("display_id")
        data, metadata = content.get("data", {}), content.get("metadata", {})
        if kind == "update_display_data":
            self.displays = [(display_id, data, metadata) if old[0] == display_id else old for old in self.displays]
        else:
            self.displays = [*self.displays, (display_id, data, metadata)][-MOST_DISPLAYS:]

    def clear(self) -> None:
        """clear_output in the task."""
        self.log.clear()
        self.displays = []

    def take_progress(self, bar: dict[str, Any]) -> None:
        """A progress bar moved."""
        if bar["id"] in self.bars or len(self.bars) < MOST_BARS:
            self.bars[bar["id"]] = bar
        if bar.get("done") and bar.get("parent") is not None:
            self.bars.pop(bar["id"], None)

    # -- drawing ----------------------------------------------------------------------------------------------

    @property
    def is_final(self) -> bool:
        """Nothing more will change, unless threads or children of the task are left."""
        return self.state in FINAL_STATES

    @property
    def is_settled(self) -> bool:
        """Nothing more will change."""
        return self.is_final and self.settled and not self.record.get("lingers")

    def seconds(self, now: float) -> float:
        """How long it has run, at `now` on the feed's clock."""
        running = self.state in ("running", "cancelling")
        return self.elapsed_s + (now - self.seen_at if running else 0.0)

    def headline(self, now: float) -> str:
        """One line of plain text: name, state, time and what there is to say."""
        return f"[{self.name}] {self.state}{self._details(now)}"

    def _details(self, now: float) -> str:
        parts = []
        seconds = self.seconds(now)
        if self.state != "pending" and (seconds or self.is_final):
            parts.append(f" {'after' if self.is_final else 'for'} {show_seconds(seconds)}")
        record = self.record
        if self.state == "pending" and record.get("waiting_for"):
            parts.append(f", waits for {', '.join(record['waiting_for'])}")
        elif self.state == "pending" and (rest := next_attempt(record, now - self.seen_at)):
            parts.append(f", {rest}")
        elif self.state == "pending" and record.get("slots_held_by"):
            parts.append(f", the slots are held by {', '.join(record['slots_held_by'])}")
        if record.get("attempt"):
            parts.append(f", attempt {record['attempt'] + 1}")
        if self.state == "cancelling":
            parts.append(f", asked by {record.get('source', 'user')}, now at {record.get('rung', 'ask')}")
        if self.state == "cancelled" and record.get("source"):
            reason = f", {record['reason']}" if record.get("reason") else ""
            how = f"; {self.error_line}" if self.error_line and record.get("rung") != "ask" else ""
            parts.append(f" (by {record['source']}{reason}{how})")
        if self.state == "failed" and self.error_line:
            parts.append(f": {self.error_line}")
        if self.usage:
            cpu, memory, peak = self.usage["cpu_s"], self.usage["memory"], self.usage["peak"]
            if self.is_final and peak:
                parts.append(f", CPU {show_seconds(cpu)}, peak {show_bytes(peak)}")
            elif memory:  # not measured yet otherwise
                parts.append(f", CPU {show_seconds(cpu)}, memory {show_bytes(memory)}")
        if record.get("lingers"):
            parts.append(", threads or processes of it still run")
        if record.get("kept"):
            parts.append(f"; %tasks debug {self.task_id} opens its frames")
        if self.earlier:
            runs = f"an earlier run is still running: %tasks cancel {self.earlier[-1]} stops it"
            others = f" ({len(self.earlier)} of them)" if len(self.earlier) > 1 else ""
            parts.append(f"; {runs}{others}")
        return "".join(parts)

    def bundle(self, now: float) -> dict[str, Any]:
        """The mime bundle: text and HTML for people, JSON for tools."""
        return {
            "text/plain": self.text(now),
            "text/html": self.html(now),
            BOARD_MIME: self.json(now),
        }

    def json(self, now: float) -> dict[str, Any]:
        """What a tool can read: the same facts."""
        return {
            "version": 1,
            "task_id": self.task_id,
            "name": self.name,
            "state": self.state,
            "elapsed_s": round(self.seconds(now), 3),
            "error": self.error or self.error_line,
            "usage": self.usage,
            "progress": list(self.bars.values()),
            "notes": list(self.notes),
        }

    def text(self, now: float) -> str:
        """For terminals, nbconvert to text, and people who read diffs."""
        lines = [self.headline(now)]
        lines += [self._bar_text(bar) for bar in self.bars.values()]
        lines += [f"  {note}" for note in self.notes]
        if self.log:
            lines.append(self._log_text().rstrip("\n"))
        for _, data, _ in self.displays:
            if isinstance(data.get("text/plain"), str):
                lines.append(data["text/plain"])
        if self.error:
            lines.append(self.error)
        return "\n".join(lines)

    def _log_text(self) -> str:
        text = strip_ansi(str(self.log))
        return (
            f"[... the end of the output; more of it: %tasks logs {self.task_id}]\n{text}" if self.log.is_cut else text
        )

    @staticmethod
    def _bar_text(bar: dict[str, Any]) -> str:
        label = f"{bar['label']}: " if bar.get("label") else ""
        total = bar.get("total")
        share = f" ({100 * bar['n'] / total:.0f}%)" if total else ""
        of = f"/{total:g}" if total else ""
        return f"  {label}{bar['n']:g}{of}{share}"

    def html(self, now: float) -> str:
        """One compact block; colours follow the theme where there is one."""
        parts = [self._bar_html(bar) for bar in self.bars.values()]
        parts += [note_html(note) for note in self.notes]
        if self.log:
            parts.append(_pre(self._log_text()))
        parts += [_display_html(data) for _, data, _ in self.displays]
        if self.error:
            # What was asked for is no alarm.
            parts.append(_pre(self.error, colour="inherit" if self.state == "cancelled" else "#c62828", high=True))
        return block_html(self.name, self.state, self._details(now), f"task {self.task_id}", parts)

    def _bar_html(self, bar: dict[str, Any]) -> str:
        rate = bar.get("rate")
        speed = f", {_rate(rate)}{bar.get('unit', 'it')}/s" if rate else ""
        return bar_html(bar["n"], bar.get("total"), self._bar_text(bar).strip() + speed)


# -- what the boards of tasks and of groups have in common: plain text in, HTML out -----------------------------------


def block_html(name: str, state: str, details: str, id: str, parts: list[str]) -> str:
    """A headline with the parts (HTML) below it; colours follow the theme where there is one."""
    esc = html.escape
    colour = _COLOURS[state]
    return "".join(
        [
            '<div class="jupyter-tasks-board" style="border-left:3px solid '
            f"{colour};padding:2px 0 2px 10px;margin:2px 0;font-size:var(--jp-ui-font-size1,13px);"
            'color:var(--jp-ui-font-color1,inherit)">',
            f'<div><span style="color:{colour}" aria-hidden="true">{_ICONS[state]}</span> '
            f'<b>{esc(name)}</b> <span style="color:{colour}">{state}</span>'
            f'<span style="opacity:.75">{esc(details)} &middot; {esc(id)}</span></div>',
            *parts,
            "</div>",
        ]
    )


def bar_html(n: float, total: float | None, text: str) -> str:
    """A progress bar with a text beside it; without a total it only says that something goes on."""
    value = f' value="{n:g}" max="{total:g}"' if total else ""
    return (
        f'<div><progress{value} style="width:14em;vertical-align:middle"></progress> '
        f'<span style="opacity:.75">{html.escape(text)}</span></div>'
    )


def note_html(text: str) -> str:
    """A line that is no headline."""
    return f'<div style="opacity:.75">{html.escape(text)}</div>'


def _rate(rate: float) -> str:
    """60412 -> "60.4k "."""
    for unit in (" ", "k ", "M "):
        if rate < 1000:
            return f"{rate:.3g}{unit}"
        rate /= 1000
    return f"{rate:.3g}G "


def _pre(text: str, colour: str = "inherit", *, high: bool = False) -> str:
    limit = "" if high else "max-height:24em;overflow:auto;"
    return (
        f'<pre style="{limit}margin:2px 0;white-space:pre-wrap;color:{colour};'
        'font-family:var(--jp-code-font-family,monospace)">'
        f"{html.escape(text.rstrip())}</pre>"
    )


def _display_html(data: dict[str, Any]) -> str:
    """The richest form that plain HTML can carry."""
    for kind in ("text/html", "image/svg+xml"):
        if isinstance(data.get(kind), str):
            return f"<div>{data[kind]}</div>"
    for kind in _IMAGES:
        if isinstance(data.get(kind), str):
            return f'<div><img src="data:{kind};base64,{data[kind].strip()}" style="max-width:100%"></div>'
    for kind in ("text/markdown", "text/latex", "text/plain"):
        if isinstance(data.get(kind), str):
            return _pre(data[kind])
    return _pre(json.dumps(data)[:LOG_TAIL])


def next_attempt(record: dict[str, Any], since: float = 0.0) -> str:
    """ "next attempt in 3 s" of a task that is retried later, "" for others. `since`: seconds the record is old."""
    rest = record.get("retry_in_s")
    return "" if rest is None else f"next attempt in {max(0, math.ceil(rest - since))} s"


def strip_ansi(text: str) -> str:
    """Without colour codes."""
    return _ANSI.sub("", text)
