"""The board of a group of tasks: one line and one bar for all of them. Pure: words in, a mime bundle out.

As `Board` it has no clock, thread or IPython. It holds figures and the texts of errors, no values and no refs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jupyter_tasks.groups import show_counts
from jupyter_tasks.notebook.board import BOARD_MIME, FINAL_STATES, bar_html, block_html, note_html
from jupyter_tasks.show import show_seconds

__all__ = ["MOST_ERRORS", "GroupBoard"]

MOST_ERRORS = 3  # that are named; the count says how many there are


@dataclass(slots=True)
class GroupBoard:
    """One group on the screen.

    Invariant: `state` is a word of the supervisor's, never ahead of it.
    """

    group_id: str
    name: str
    state: str = "running"
    record: dict[str, Any] = field(default_factory=dict)  # the last one that was told; empty: nothing has happened yet
    errors: dict[int, str] = field(default_factory=dict)  # of the first members that failed, one line each
    error: str = ""  # why there is no word of the supervisor's any more
    settled: bool = False  # nobody has anything to add
    seen_at: float = 0.0  # the feed's clock, at the last word of the supervisor

    # -- words in ---------------------------------------------------------------------------------------------

    def take_event(self, record: dict[str, Any], now: float) -> None:
        """A group's record."""
        self.record, self.state, self.seen_at = record, record["state"], now

    def take_error(self, id: int, text: str) -> None:
        """What the member `id` has failed with."""
        self.errors[id] = text

    # -- drawing ----------------------------------------------------------------------------------------------

    @property
    def is_final(self) -> bool:
        """All members are."""
        return self.state in FINAL_STATES

    @property
    def is_settled(self) -> bool:
        """Nothing more will change."""
        return self.is_final and self.settled

    @property
    def submitted(self) -> int:
        """Tasks that are, or were, members."""
        return int(self.record.get("submitted", 0))

    @property
    def done(self) -> int:
        """Those that are final, however they ended."""
        return sum(self.record.get("counts", {}).values())

    def seconds(self, now: float) -> float:
        """How long it has gone on, at `now` on the feed's clock."""
        if not self.record:
            return 0.0
        return float(self.record.get("elapsed_s", 0.0)) + (0.0 if self.is_final else now - self.seen_at)

    def headline(self, now: float) -> str:
        """One line of plain text."""
        figures = f": {self._figures()}" if self.record else ""
        return f"[{self.name}] {self.state}{self._details(now)}{figures}"

    def _figures(self) -> str:
        return show_counts(self.record)

    def _details(self, now: float) -> str:
        parts = [f" {'after' if self.is_final else 'for'} {show_seconds(self.seconds(now))}"] if self.record else []
        if self.record.get("source"):
            reason = f": {self.record['reason']}" if self.record.get("reason") else ""
            parts.append(f" (by {self.record['source']}{reason})")
        return "".join(parts)

    def _error_line(self) -> str:
        """The first errors, in the order of their tasks."""
        counts = self.record.get("counts", {})
        more = counts.get("failed", 0) + counts.get("crashed", 0) - len(self.errors)
        texts = [self.errors[id] for id in sorted(self.errors)]
        return "; ".join([*texts, *([f"and {more:,} more"] if texts and more > 0 else [])])

    def bundle(self, now: float) -> dict[str, Any]:
        """The mime bundle: text and HTML for people, JSON for tools."""
        return {"text/plain": self.text(now), "text/html": self.html(now), BOARD_MIME: self.json(now)}

    def json(self, now: float) -> dict[str, Any]:
        """What a tool can read: the same facts."""
        return {
            "version": 1,
            "group_id": self.group_id,
            "name": self.name,
            "state": self.state,
            "elapsed_s": round(self.seconds(now), 3),
            "error": self.error or self._error_line(),
            "submitted": self.submitted,
            "counts": self.record.get("counts", {}),
            "running": self.record.get("running", 0),
        }

    def text(self, now: float) -> str:
        """For terminals, nbconvert to text, and people who read diffs."""
        lines = [self._error_line(), self.error]
        return "\n".join([self.headline(now), *(f"  {line}" for line in lines if line)])

    def html(self, now: float) -> str:
        """A headline, a bar, and a line for errors."""
        parts = [bar_html(self.done, self.submitted, self._figures())] if self.record else []
        parts += [note_html(line) for line in (self._error_line(), self.error) if line]
        return block_html(self.name, self.state, self._details(now), f"group {self.group_id}", parts)
