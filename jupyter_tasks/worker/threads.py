"""How many threads BLAS, OpenMP and their like use: as many as the task has taken processors, or what the kernel has.

Two ways lead there. A library that is not loaded yet reads its environment variable then, and never again. One that is
loaded is told, with threadpoolctl, which is imported only then. Main thread only, before a task begins; knows no tasks.

What the user says wins. OMP_NUM_THREADS in the environment, at the session's start or set by a task, means: leave all
of them alone. The variable of one library means: leave that one alone. So only OMP_NUM_THREADS is set here, to which
the others fall back (and Apple's, which does not): OpenBLAS obeys whoever sets OPENBLAS_NUM_THREADS in a task.

numba is left alone. It reads NUMBA_NUM_THREADS at every compilation, and refuses to compile when that has changed since
its threads began to run.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["KERNELS", "Threads", "wanted"]

KERNELS = 0  # as many as in the kernel
OPENMP = "OMP_NUM_THREADS"
SET = (OPENMP, "VECLIB_MAXIMUM_THREADS")
# Which variable a pool obeys, beside OPENMP; by threadpoolctl's names, and ours for those that it does not know.
OBEYS = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "flexiblas": "FLEXIBLAS_NUM_THREADS",
    "torch": "MKL_NUM_THREADS",
    "numexpr": "NUMEXPR_NUM_THREADS",
}
USERS = ("numpy", "torch", "mkl")  # modules without which nobody has loaded such a library


def wanted(options: Mapping[str, Any], otherwise: int) -> int:
    """The threads for a task with these options: its whole processors, at least one."""
    cpus = options.get("cpus")
    return otherwise if cpus is None else max(1, int(cpus))


class Threads:
    """The one of this process."""

    def __init__(self) -> None:
        self.count = KERNELS  # what holds now
        self._set: dict[str, str] = {}  # variables, as we have left them; what differs is the user's
        self._users = any(name in os.environ for name in SET)  # hands off
        self._originals: dict[str, int] = {}  # pool -> its threads in the kernel, as far as one can tell
        self._pools: list[_Pool] = []
        self._modules = 0  # how many there were when these were looked for

    def limit(self, count: int) -> None:
        """From now on `count` threads, or KERNELS. Costs a comparison if that is so already; never raises."""
        if count == self.count:
            return
        before, self.count = self.count, count
        self._users = self._users or any(os.environ.get(name) != self._set.get(name) for name in SET)
        if self._users:
            return
        if count == KERNELS:
            for name in SET:
                del os.environ[name]
            self._set.clear()
        else:
            self._set = dict.fromkeys(SET, str(count))
            os.environ.update(self._set)
        if any(name in sys.modules for name in USERS):
            try:
                self._tell_pools(count, before)
            except Exception:
                pass  # a library that cannot be told has the threads it has; that must not cost a task

    def _tell_pools(self, count: int, before: int) -> None:
        if len(sys.modules) != self._modules:
            self._pools = list(_find_pools())
            self._modules = len(sys.modules)
        for pool in self._pools:
            if pool.name not in self._originals:
                # New since the last change. Loaded under a limit, it has never had as many as it has in the kernel.
                self._originals[pool.name] = pool.get() if before == KERNELS else _by_default(pool)
            own = OBEYS.get(pool.kind)
            if own is None or own not in os.environ:
                pool.set(count if count != KERNELS else self._originals[pool.name])


class _Pool(NamedTuple):
    """Threads of a library that is loaded."""

    name: str
    kind: str
    get: Callable[[], int]
    set: Callable[[int], object]


def _find_pools() -> Iterator[_Pool]:
    import threadpoolctl  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about two OpenMPs in one process: the user's business, told elsewhere
        found = threadpoolctl.ThreadpoolController().lib_controllers
    for library in found:
        yield _Pool(library.filepath, library.internal_api, library.get_num_threads, library.set_num_threads)
    torch, numexpr = sys.modules.get("torch"), sys.modules.get("numexpr")
    if torch is not None:  # it may have a BLAS of its own inside, which nobody else can see
        yield _Pool("torch", "torch", torch.get_num_threads, torch.set_num_threads)
    if numexpr is not None:
        yield _Pool("numexpr", "numexpr", numexpr.get_num_threads, numexpr.set_num_threads)


def _by_default(pool: _Pool) -> int:
    if pool.kind == "blis":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
