"""Makes "jupyter_tasks" a backend of joblib. Imports joblib when it is asked to, and not before. Any thread."""

from __future__ import annotations

__all__ = ["register_joblib"]

OLDEST = (1, 3)  # the first joblib with `parallel_config` and results that are fetched in callbacks


def register_joblib() -> None:
    """Makes `joblib.parallel_config(backend="jupyter_tasks")` run joblib's calls as tasks. May be called again.

    What uses joblib (scikit-learn, say) then runs in this session's workers. `n_jobs=-1`, also the default, is all of
    its CPUs; more than these are never used. Large arrays among the arguments are sent once for each call of Parallel.
    The stop button, an error and a closed generator stop what runs. Options of `jt.Executor` (num_cpus, num_gpus,
    memory, timeout, grace, max_retries) may be given to `parallel_config`. `%load_ext jupyter_tasks` registers it, too,
    if joblib is imported already.

    Raises:
        ImportError: there is no joblib, or one that is too old.
    """
    try:
        import joblib
    except ImportError as error:
        raise ImportError("register_joblib() needs joblib, which is not installed; `pip install joblib`.") from error
    if tuple(int(part) for part in joblib.__version__.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ImportError(
            f"register_joblib() needs joblib {wanted} or later, but {joblib.__version__} is installed; "
            f'`pip install "joblib>={wanted}"`.'
        )
    from jupyter_tasks.joblib_backend import TasksBackend

    joblib.register_parallel_backend("jupyter_tasks", TasksBackend)
