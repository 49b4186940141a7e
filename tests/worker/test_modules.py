"""Modules of the user's that were edited. Role: unit.

Promise: docs/semantics.md, Cells: a module that was edited since a worker has imported it is imported anew.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_tasks.worker import modules


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path, as a notebook's is; nothing of it stays in this process."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    modules.forget_edited()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    modules.forget_edited()


def edit(path: Path, text: str) -> None:
    """Writes, with a time stamp that differs: file systems are coarse, editors and people are slow."""
    old = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(max(old + 10_000_000, 10**18), max(old + 10_000_000, 10**18)))
    importlib.invalidate_caches()


def test_an_edited_module_is_imported_anew(place: Path) -> None:
    edit(place / "jt_utils.py", "x = 1")
    import jt_utils  # type: ignore[import-not-found]

    assert modules.forget_edited() == []
    assert sys.modules["jt_utils"] is jt_utils
    edit(place / "jt_utils.py", "x = 2")
    assert modules.forget_edited() == ["jt_utils"]
    assert importlib.import_module("jt_utils").x == 2
    assert modules.forget_edited() == []


def test_what_was_made_of_it_goes_too_and_nothing_else(place: Path) -> None:
    edit(place / "jt_base.py", "def f(): return 1\nclass C: pass")
    edit(place / "jt_module.py", "import jt_base")
    edit(place / "jt_function.py", "from jt_base import f")
    edit(place / "jt_instance.py", "import jt_base as _b\nc = _b.C()\ndel _b")
    edit(place / "jt_far.py", "from jt_function import f as g")
    edit(place / "jt_stranger.py", "x = 1")
    for name in ("module", "function", "instance", "far", "stranger"):
        importlib.import_module(f"jt_{name}")
    modules.forget_edited()
    edit(place / "jt_base.py", "def f(): return 2\nclass C: pass")
    assert modules.forget_edited() == ["jt_base", "jt_far", "jt_function", "jt_instance", "jt_module"]
    assert importlib.import_module("jt_far").g() == 2
    assert "jt_stranger" in sys.modules


def test_a_package_shows_its_new_module(place: Path) -> None:
    """`from package import module` looks at the package first, which had the old one."""
    (place / "jt_package").mkdir()
    edit(place / "jt_package" / "__init__.py", "")
    edit(place / "jt_package" / "part.py", "x = 1")
    importlib.import_module("jt_package.part")
    modules.forget_edited()
    edit(place / "jt_package" / "part.py", "x = 2")
    assert "jt_package.part" in modules.forget_edited()
    names: dict[str, object] = {}
    exec("from jt_package import part", names)
    assert names["part"].x == 2  # type: ignore[attr-defined]


def test_edited_while_it_was_being_used_counts_as_edited(place: Path) -> None:
    """Imported and edited between two looks: nobody knows which came first."""
    (place / "jt_quick.py").write_text("x = 1")
    importlib.import_module("jt_quick")
    (place / "jt_quick.py").write_text("x = 22")
    assert modules.forget_edited() == ["jt_quick"]


def test_what_was_reloaded_is_not_edited(place: Path) -> None:
    """The user has done it already: the module stays the one that other names hold."""
    edit(place / "jt_again.py", "x = 1")
    module = importlib.import_module("jt_again")
    modules.forget_edited()
    edit(place / "jt_again.py", "x = 2")
    importlib.reload(module)
    assert modules.forget_edited() == []
    assert sys.modules["jt_again"] is module
    edit(place / "jt_again.py", "x = 3")
    assert modules.forget_edited() == ["jt_again"]


def test_a_file_that_is_gone_leaves_its_module(place: Path) -> None:
    """As in the kernel: what is imported works on."""
    edit(place / "jt_gone.py", "x = 1")
    importlib.import_module("jt_gone")
    modules.forget_edited()
    (place / "jt_gone.py").unlink()
    assert modules.forget_edited() == []
    assert "jt_gone" in sys.modules


def test_the_installation_is_not_looked_at(place: Path) -> None:
    """Its files do not change, and there are thousands of them."""
    edit(place / "jt_own.py", "import colorsys")
    sys.modules.pop("colorsys", None)
    importlib.import_module("jt_own")
    modules.forget_edited()
    assert "jt_own" in modules._stamps
    assert "colorsys" not in modules._stamps
