"""Names of the notebook's variables that a `%%remote` line is to bind."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Mapping
from typing import Any

from IPython.core.error import UsageError

__all__ = ["check_name"]

_RESERVED = frozenset({"all"})  # `%tasks cancel all`


def check_name(
    name: str,
    namespace: Mapping[str, Any],
    taken: Collection[str],
    holds: type,
    *,
    of: str,
    option: str,
    example: str,
    magic: str = "%%remote",
) -> None:
    """Raises UsageError if this name cannot be bound.

    Args:
        taken: the other names that the cell binds.
        holds: what the name may hold already, and is replaced.
        of: what it is the name of, as "task".
        option: what stands before the name on the line, if anything.
    """
    shown = f"{option} {name!r}".strip()
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{magic}: {shown} is not a name. It is a Python identifier, as in {example}.")
    if name in _RESERVED:
        raise UsageError(f"{magic}: {shown} means all tasks in %tasks; choose another name.")
    if name in taken:
        raise UsageError(f"{magic}: {name!r} is both the {of}'s name and one after -o or NAME; choose another.")
    if name in namespace and not isinstance(namespace[name], holds):
        raise UsageError(
            f"{magic}: {name!r} holds a {type(namespace[name]).__name__}; the {of} would replace it. "
            f"Choose another name, or del {name} first."
        )
