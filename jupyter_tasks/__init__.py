"""jupyter_tasks: notebook cells and Python functions as background tasks, with a cancel that always works.

    %load_ext jupyter_tasks
    %%remote train -o model        # this cell runs in a worker; `train` and `model` are refs

    import jupyter_tasks as jt
    ref = jt.remote(f).remote(1)
    jt.get(ref); jt.cancel(ref)

Names are loaded when they are first used: importing this package imports neither IPython nor numpy, and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "ActorClass": "jupyter_tasks.actor",
    "ActorHandle": "jupyter_tasks.actor",
    "Executor": "jupyter_tasks.executor",
    "ObjectRef": "jupyter_tasks.refs",
    "ObjectRefGenerator": "jupyter_tasks.streams",
    "RemoteFunction": "jupyter_tasks.functions",
    "TaskGroup": "jupyter_tasks.groups",
    "actor": "jupyter_tasks.actor",
    "as_completed": "jupyter_tasks.api",
    "cancel": "jupyter_tasks.api",
    "exceptions": "jupyter_tasks.exceptions",
    "exit_actor": "jupyter_tasks.actor",
    "get": "jupyter_tasks.api",
    "get_actor": "jupyter_tasks.actor",
    "get_runtime_context": "jupyter_tasks.api",
    "get_task": "jupyter_tasks.detached",
    "init": "jupyter_tasks.session",
    "is_initialized": "jupyter_tasks.session",
    "kill": "jupyter_tasks.actor",
    "list_actors": "jupyter_tasks.actor",
    "method": "jupyter_tasks.actor",
    "progress": "jupyter_tasks.worker.progress",
    "put": "jupyter_tasks.api",
    "register_joblib": "jupyter_tasks.joblib_register",
    "remote": "jupyter_tasks.functions",
    "shutdown": "jupyter_tasks.session",
    "tasks": "jupyter_tasks.api",
    "track": "jupyter_tasks.worker.progress",
    "wait": "jupyter_tasks.api",
}

__all__ = [  # noqa: PLE0604  # the keys of _WHERE are strings
    "__version__",
    "load_ipython_extension",
    "unload_ipython_extension",
    *_WHERE,
]

if TYPE_CHECKING:
    from jupyter_tasks import actor as actor
    from jupyter_tasks import exceptions as exceptions
    from jupyter_tasks.actor import ActorClass as ActorClass
    from jupyter_tasks.actor import ActorHandle as ActorHandle
    from jupyter_tasks.actor import exit_actor as exit_actor
    from jupyter_tasks.actor import get_actor as get_actor
    from jupyter_tasks.actor import kill as kill
    from jupyter_tasks.actor import list_actors as list_actors
    from jupyter_tasks.actor import method as method
    from jupyter_tasks.api import as_completed as as_completed
    from jupyter_tasks.api import cancel as cancel
    from jupyter_tasks.api import get as get
    from jupyter_tasks.api import get_runtime_context as get_runtime_context
    from jupyter_tasks.api import put as put
    from jupyter_tasks.api import tasks as tasks
    from jupyter_tasks.api import wait as wait
    from jupyter_tasks.detached import get_task as get_task
    from jupyter_tasks.executor import Executor as Executor
    from jupyter_tasks.functions import RemoteFunction as RemoteFunction
    from jupyter_tasks.functions import remote as remote
    from jupyter_tasks.groups import TaskGroup as TaskGroup
    from jupyter_tasks.joblib_register import register_joblib as register_joblib
    from jupyter_tasks.refs import ObjectRef as ObjectRef
    from jupyter_tasks.session import init as init
    from jupyter_tasks.session import is_initialized as is_initialized
    from jupyter_tasks.session import shutdown as shutdown
    from jupyter_tasks.streams import ObjectRefGenerator as ObjectRefGenerator
    from jupyter_tasks.worker.progress import progress as progress
    from jupyter_tasks.worker.progress import track as track


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(where)
    value = module if where == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext jupyter_tasks`: registers %%remote and %tasks. Starts nothing yet."""
    from jupyter_tasks.notebook.magics import load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext jupyter_tasks`: ends all tasks and takes the magics away."""
    from jupyter_tasks.notebook.magics import unload

    unload(ipython)
