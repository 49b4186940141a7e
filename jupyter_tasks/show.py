"""Numbers for people: the same words in errors, boards, tables and on the command line. Pure."""

from __future__ import annotations

__all__ = ["show_bytes", "show_seconds"]


def show_bytes(count: float) -> str:
    """1536 -> "1.5 kB": decimal units, as in `--memory 4GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def show_seconds(seconds: float) -> str:
    """0.532 -> "0.53 s", 75 -> "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
