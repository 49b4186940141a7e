"""What stands on the lines of our magics: how words become values, and what is said of those that do not."""

from __future__ import annotations

import argparse
import re
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser, parse_argstring

__all__ = [
    "count",
    "count_or_ever",
    "names",
    "not_negative",
    "outs",
    "parse",
    "parse_size",
    "positive",
    "size",
    "unquoted",
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """ "4GB" -> 4000000000, "512MiB" -> 536870912, "1000" -> 1000 bytes.

    Raises:
        ValueError: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a size; write it like 500MB, 4GB or 2GiB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])


def names(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a variable name")
    return found


def outs(text: str) -> list[str] | str:
    """The same, or "*"."""
    text = text.strip("'\"")
    return "*" if text == "*" else names(text)


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, above=0.0)


def not_negative(text: str) -> float:
    """A number, at least 0."""
    return _number(text, above=None)


def _number(text: str, above: float | None) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if value != value or value < 0 or (above is not None and value <= above):
        raise argparse.ArgumentTypeError(f"{text} must be {'more than 0' if above is not None else 'at least 0'}")
    return value


def size(text: str) -> int:
    """Bytes; see parse_size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A whole number, at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def count_or_ever(text: str) -> int:
    """The same, or -1."""
    return -1 if text == "-1" else count(text)


def unquoted(text: str) -> str:
    """IPython leaves quotes where they are."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def parse(magic: str, function: Any, line: str) -> argparse.Namespace | None:
    """The arguments on a line of `magic` ("%%remote"); None if help was asked for, and shown.

    Raises:
        UsageError: whatever is wrong, in one line.
    """
    parser: MagicArgumentParser = function.parser
    name = magic.lstrip("%")
    line = re.sub(r"\s*,\s+", ",", line)  # `-o a, b` is what people write; it is not a task named b
    try:
        args: argparse.Namespace = parse_argstring(function, line)
    except UsageError as error:
        text = str(error)
        if "unrecognized arguments" in text:
            text = text.replace("unrecognized arguments", "unknown option")
        raise UsageError(f"{magic}: {text.rstrip('.')}. See %{name} --help.") from None
    except ValueError as error:
        raise UsageError(f"{magic}: {error}. See %{name} --help.") from None
    if args.help:
        text = parser.format_help().replace("::\n\n", "")
        text = text.replace(f"  %{name}", f"{magic} [NAME] [options]\n  {magic}")
        print(text.strip())
        return None
    return args
