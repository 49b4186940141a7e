"""The joblib backend "jupyter_tasks": batches of joblib calls are calls of an `Executor`.

    Parallel -> start_call: an executor for this call -> submit(batch) -> ... -> terminate
    a batch is over -> the event thread -> `_told`, one thread a call, where joblib takes results and sends more batches

joblib reads the user's iterable in its callbacks. It may be a generator that waits for other tasks, so it must not be
read in the event thread, which brings their results.

Thread: joblib calls `submit` from the caller's thread and from `_told`, under its own lock; all else from the caller's.
It imports joblib: only `register_joblib` imports it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from joblib._parallel_backends import FallbackToBackend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, SequentialBackend, ThreadingBackend

from jupyter_tasks import launch, session
from jupyter_tasks.executor import Executor
from jupyter_tasks.futures import slot_given_up
from jupyter_tasks.refs import THREAD_PREFIX, ObjectRef
from jupyter_tasks.worker import calls, context
from jupyter_tasks.worker.progress import progress

__all__ = ["TasksBackend"]

GRACE = 1.0  # seconds from the interrupt to SIGTERM when a call is aborted: nothing of it shall go on
MAX_NBYTES = 1_000_000  # bytes; joblib's default for arrays that are shared and not sent


class TasksBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """Made by joblib for a `parallel_config` or a Parallel, and by itself for each Parallel of a `parallel_config`.

    (They would all share the first one, also when one is a generator that feeds the other: see `configure`.)
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any):
        if inner_max_num_threads is not None:
            raise ValueError(
                "The backend 'jupyter_tasks' gives BLAS and OpenMP as many threads as a call has CPUs; say num_cpus "
                "instead of inner_max_num_threads."
            )
        super().__init__(nesting_level=nesting_level)
        self._given = options
        self._options = {"grace": GRACE, **options}
        Executor(**self._options)  # an option that makes no sense is an error now
        self.parallel: Any = None  # whose this one is
        self._executor: Executor | None = None  # of the call that is under way
        self._told: ThreadPoolExecutor | None = None
        self._bar: progress | None = None
        self._large: dict[int, tuple[Any, ObjectRef]] = {}  # large arguments of this call, by identity
        self._max_nbytes: float | None = MAX_NBYTES

    # -- how many -----------------------------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time: never more than the session has CPUs for."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        most = self._most()
        return max(1, min(n_jobs if n_jobs > 0 else most + 1 + n_jobs, most))

    def _most(self) -> int:
        inside = context.current_worker() is not None
        if inside and not self.in_main_thread():
            return 1  # a wait in another thread does not free the task's slot: all could wait for each other
        if not session.is_initialized():
            cpus = float(max(2, launch.detect_cpus()))  # asking starts nothing
        else:
            settings = session.current_client().settings
            if settings.get("local_mode"):
                return 1
            cpus = settings["total"]["CPU"]
        each = self._options.get("num_cpus", 1)
        return int(cpus / each) if each else int(cpus)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **kwargs: Any) -> int:
        """Before a call, by the Parallel that makes it. One job is no task."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self.parallel is not parallel:
            own = TasksBackend(nesting_level=self.nesting_level, **self._given)
            own.parallel = parallel
            raise FallbackToBackend(own)
        self._n_jobs = n_jobs
        self._max_nbytes = kwargs.get("max_nbytes", MAX_NBYTES)
        return n_jobs

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """For calls of Parallel inside of our tasks: threads where a task has several CPUs, otherwise none."""
        level = (self.nesting_level or 0) + 1
        cpus = int(self._options.get("num_cpus", 1))
        if cpus > 1 and level == 1:
            return ThreadingBackend(nesting_level=level), cpus
        return SequentialBackend(nesting_level=level), None

    # -- one call of Parallel -----------------------------------------------------------------------------------------

    def start_call(self) -> None:
        """An executor of its own for each call: what is left of an aborted one finds its own closed."""
        # Where the slots are the limit, the next batches may wait where they are sooner begun.
        unlimited = self._options.get("num_cpus", 1) and self._n_jobs == self._most()
        self._executor = Executor(None if unlimited else self._n_jobs, **self._options)
        self._told = ThreadPoolExecutor(1, f"{THREAD_PREFIX}joblib")

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Future[Any]:
        executor, told = self._executor, self._told
        assert executor is not None
        assert told is not None
        label = _label(func)
        if self._bar is None:
            self._bar = progress(getattr(self.parallel, "n_tasks", None), label)
        batch, values = self._split(func)
        try:
            future = executor._submit(calls.run_batch, (batch, *values), {}, label)
        except RuntimeError:  # the call was aborted while this batch was made
            future = Future()
            future.cancel()
            return future
        if callback is not None:
            future.add_done_callback(lambda future: _tell(told, callback, future))
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch; raises what `jt.get` would."""
        return out.result()

    def batch_completed(self, batch_size: int, duration: float) -> None:
        super().batch_completed(batch_size, duration)
        bar, parallel = self._bar, self.parallel
        if bar is not None and parallel is not None:
            if parallel._original_iterator is None:
                bar.total = parallel.n_dispatched_tasks  # all are known now
            bar.update(batch_size)

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Around the wait for results: inside a task its slot is free for them."""
        with slot_given_up():
            yield

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """An error, the stop button, a closed generator: what waits never runs, what runs is stopped."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor._cancel_all()

    def stop_call(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        if self._told is not None:
            self._told.shutdown(wait=False)
        self._executor = self._told = self._bar = None
        self._large = {}

    def terminate(self) -> None:
        self.reset_batch_stats()

    # -- large arguments ----------------------------------------------------------------------------------------------

    def _split(self, batch: Any) -> tuple[Any, list[ObjectRef]]:
        """The batch without its large arguments, and these."""
        places: dict[int, calls.Placeholder] = {}
        refs: list[ObjectRef] = []

        def shared(value: Any) -> Any:
            if self._max_nbytes is None or _nbytes(value) <= self._max_nbytes:
                return value
            if id(value) not in self._large:
                self._large[id(value)] = value, session.current_client().put(value)
            if id(value) not in places:
                places[id(value)] = calls.Placeholder(len(refs))
                refs.append(self._large[id(value)][1])
            return places[id(value)]

        items = [
            (function, tuple(map(shared, args)), {name: shared(value) for name, value in kwargs.items()})
            for function, args, kwargs in batch.items
        ]
        if refs:
            batch = copy.copy(batch)
            batch.items = items
        return batch, refs


def _tell(told: ThreadPoolExecutor, callback: Callable[[Any], None], future: Future[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the call is over, and nobody listens any more
        told.submit(callback, future)


def _label(batch: Any) -> str:
    """What the screen shows: the function, and the estimator that it is called with."""
    function, args, _ = batch.items[0]
    name = str(getattr(function, "__name__", type(function).__name__))
    return f"{name} {type(args[0]).__name__}" if args and hasattr(args[0], "get_params") else name


def _nbytes(value: Any) -> float:
    """How large an array or table is; 0 for all else."""
    try:
        if isinstance(size := getattr(value, "nbytes", None), int):
            return size
        kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        if kind in ("pandas.DataFrame", "pandas.Series"):
            usage = value.memory_usage()
            return float(usage.sum() if hasattr(usage, "sum") else usage)
        if kind.startswith("scipy."):
            return float(value.data.nbytes)  # a sparse matrix
    except Exception:
        pass  # whatever else it is, it travels with its batch
    return 0
