"""The user's own modules in a warm worker: one that was edited since it was imported is imported anew.

A notebook's `utils.py` is edited all day, and a worker that has imported it once would go on running the old text. So
before a cell, and before a new function, files that have changed are looked for; their modules, and those that have
something of them, leave sys.modules. Modules of the Python installation are not looked at.

Main thread, between tasks. Knows nothing of tasks.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from types import ModuleType

__all__ = ["forget_edited"]

_Stamp = tuple[int, int]  # st_mtime_ns, st_size

_looked_at: set[str] = set()  # names of modules that were there at the last look
_stamps: dict[str, tuple[ModuleType, object, str, _Stamp]] = {}  # the user's own, with their spec: a reload renews it
_last_look = 0  # time.time_ns()


def forget_edited() -> list[str]:
    """Takes out of sys.modules what was edited, and what was made of it. Returns the names.

    A module that was imported since the last look and edited since then counts as edited: which came first cannot be
    known. Costs one `stat` for each module of the user's (2 us), and a walk over the new names. The first look only
    takes note of what is there: what a worker is forked with is none of the user's.
    """
    global _last_look
    now = time.time_ns()
    if not _last_look:
        _last_look = now
        _looked_at.update(sys.modules)
        return []
    reloaded = any(module.__spec__ is not spec for module, spec, _, _ in _stamps.values())
    edited = {name for name, known in _stamps.items() if _is_edited(name, *known)}
    if reloaded or len(sys.modules) != len(_looked_at) or not sys.modules.keys() <= _looked_at:
        edited |= _note_new_ones()
    _last_look = now
    if not edited:
        return []
    edited = _with_those_that_use(edited)
    for name in edited:
        module = sys.modules.pop(name, None)
        _stamps.pop(name, None)
        _looked_at.discard(name)
        parent, _, child = name.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None and getattr(holder, child, None) is module:
            delattr(holder, child)  # `from package import module` would find it there
    importlib.invalidate_caches()
    return sorted(edited)


def _is_edited(name: str, module: ModuleType, spec: object, path: str, stamp: _Stamp) -> bool:
    return sys.modules.get(name) is module and module.__spec__ is spec and _stamp(path) not in (stamp, None)


def _note_new_ones() -> set[str]:
    edited = set()
    for name, module in list(sys.modules.items()):
        known = _stamps.get(name)
        if name in _looked_at and (known is None or (known[0] is module and known[1] is module.__spec__)):
            continue
        path = _own_file(module)
        stamp = _stamp(path) if path else None
        if path and stamp is not None:
            _stamps[name] = (module, module.__spec__, path, stamp)
            if stamp[0] > _last_look:
                edited.add(name)
    _looked_at.clear()
    _looked_at.update(sys.modules)
    return edited


def _own_file(module: object) -> str | None:
    """The file of a module of the user's: a .py file outside of the installation."""
    if type(module) is not ModuleType or module.__name__ == "__main__":
        return None
    path = module.__dict__.get("__file__")
    if not isinstance(path, str) or not path.endswith(".py"):
        return None
    path = os.path.abspath(path)
    return None if path.startswith(_not_the_users()) else path


@functools.cache
def _not_the_users() -> tuple[str, ...]:
    """Where Python, installed packages and this one are."""
    import sysconfig  # 2 ms that a cold start can do without

    paths = sysconfig.get_paths()
    installed = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return tuple(path + os.sep for path in (*installed, ours))


def _stamp(path: str) -> _Stamp | None:
    """None: the file is not there (any more), or not to be seen now; then the module stays."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _with_those_that_use(edited: set[str]) -> set[str]:
    """Also the user's modules that hold an edited module, or a function or class of one: they have the old one."""
    found = set(edited)
    more = True
    while more:
        more = False
        for name, (module, *_) in _stamps.items():
            if name not in found and _uses(module, found):
                found.add(name)
                more = True
    return found


def _uses(module: ModuleType, names: set[str]) -> bool:
    for value in list(vars(module).values()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(type(value), "__module__", None)
        if home in names or (callable(value) and getattr(value, "__module__", None) in names):
            return True
    return False
