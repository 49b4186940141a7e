"""Imports point down only, and importing the package is light. Role: the architecture, held.

A module may import what its row names, and its own package. The picture is in docs/architecture.md.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import jupyter_tasks

ROOT = Path(jupyter_tasks.__file__).parent

SYSTEM = {"supervisor.platform", "supervisor.reaper"}  # the operating system, for whoever starts or ends processes
# Longest prefix wins.
ALLOWED: dict[str, set[str]] = {
    "": {"api", "notebook.magics", "exceptions"},  # the front door, lazily
    "exceptions": set(),
    "show": set(),
    "wire": {"exceptions"},
    "engine": {"wire"},
    "supervisor.platform": set(),
    "supervisor.reaper": SYSTEM,
    "supervisor.memory": SYSTEM,
    "supervisor.tasklog": set(),
    "supervisor.registry": SYSTEM | {"supervisor.zygote"},  # zygote: lazily, to end what a dead supervisor has left
    "supervisor.zygote": SYSTEM | {"wire", "worker"},
    "supervisor": {"backends", "engine", "wire"},
    "backends": {"engine", "wire"} | SYSTEM | {"supervisor.zygote"},
    "refs": {"client", "exceptions", "futures", "waiting", "wire"},  # client: as a type only; futures, waiting: lazily
    "waiting": {"client", "exceptions", "refs", "several", "wire"},  # client: as a type only
    "several": {"client", "exceptions", "refs", "wire"},  # client: lazily
    "futures": {"exceptions", "refs", "wire.frames", "worker.context"},
    "streams": {"client", "refs", "wire"},  # client: as a type only
    "client": {"exceptions", "refs", "several", "show", "streams", "threads", "wire"},  # several, threads: lazily
    "threads": {"client", "exceptions", "refs", "streams", "thread_actors", "wire", "worker"},  # thread_actors: lazily
    "thread_actors": {"client", "exceptions", "refs", "threads", "wire", "worker"},  # client: as a type only
    "launch": {"client", "exceptions", "supervisor.zygote", "wire"},
    "worker": {"client", "exceptions", "refs", "streams", "wire"} | SYSTEM,
    "inplace": {"client", "engine", "exceptions", "refs", "several", "streams", "wire", "worker"},
    "session": {"client", "exceptions", "inplace", "launch", "refs", "wire", "worker.context"},
    "ray_options": set(),
    "detached": {"client", "exceptions", "launch", "refs", "session", "supervisor.registry", "worker.context"},
    "functions": {"actor", "client", "detached", "launch", "mapping", "ray_options", "refs", "session", "wire"},
    "mapping": {"client", "exceptions", "groups", "refs", "wire"},
    "groups": {"client", "exceptions", "refs", "session", "stopbutton", "wire", "worker.context"},
    "stopbutton": set(),
    "api": {"actor", "detached", "exceptions", "functions", "refs", "session", "several", "streams", "waiting", "wire"},
    "executor": {"client", "exceptions", "functions", "futures", "refs", "session", "wire"}
    | {"worker.calls", "worker.context"},
    "joblib_register": {"joblib_backend"},  # lazily: it imports joblib
    "joblib_backend": {"executor", "futures", "launch", "refs", "session", "worker"},
    "actor": {
        "client",
        "detached",
        "exceptions",
        "functions",
        "launch",
        "ray_options",
        "refs",
        "session",
        "streams",
        "wire",
    }
    | {"worker.actors", "worker.context"},
    "notebook": {
        "actor",
        "api",
        "client",
        "detached",
        "exceptions",
        "functions",
        "groups",
        "inplace",
        "joblib_register",
    }
    | {"launch", "refs", "session", "show", "stopbutton", "wire"}
    | {"supervisor.registry"},  # as a type only
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """Names below jupyter_tasks that the file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("jupyter_tasks.") for name in found if name.startswith("jupyter_tasks.")}


def rule_for(module: str) -> tuple[str, set[str]]:
    prefixes = [prefix for prefix in ALLOWED if module == prefix or module.startswith(f"{prefix}.")]
    prefix = max(prefixes, key=len) if prefixes else ""
    return prefix, ALLOWED[prefix]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_name)
def test_imports_point_down_only(path: Path) -> None:
    """A lower module that wants a higher one is handed a callable instead."""
    module = module_name(path)
    prefix, allowed = rule_for(module)
    package = module.partition(".")[0] if "." in module else prefix
    for name in imports_of(path):
        own = bool(package) and (name == package or name.startswith(f"{package}."))
        fine = own or any(name == target or name.startswith(f"{target}.") for target in allowed)
        if not module:
            fine = True  # the front door names everything that is public
        assert fine, f"{module} imports {name}; allowed are {sorted(allowed)}"


def test_public_names() -> None:
    """What we would defend for years. A new name here is a decision."""
    assert set(jupyter_tasks.__all__) == {
        "ActorClass", "ActorHandle", "Executor", "ObjectRef", "ObjectRefGenerator", "RemoteFunction", "TaskGroup",
        "__version__", "actor", "as_completed", "cancel", "exceptions", "exit_actor", "get", "get_actor",
        "get_runtime_context", "get_task", "init", "is_initialized", "kill", "list_actors", "load_ipython_extension", "method",
        "progress", "put", "register_joblib", "remote", "shutdown", "tasks", "track", "unload_ipython_extension", "wait",
    }  # fmt: skip
    for name in jupyter_tasks.__all__:
        assert getattr(jupyter_tasks, name) is not None


def test_version_is_the_one_that_is_packaged() -> None:
    """pyproject.toml and the package say the same."""
    text = (ROOT.parent / "pyproject.toml").read_text()
    assert f'version = "{jupyter_tasks.__version__}"' in text


def test_unknown_names_say_so() -> None:
    """A typo is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="no attribute 'gte'"):
        jupyter_tasks.gte  # noqa: B018
