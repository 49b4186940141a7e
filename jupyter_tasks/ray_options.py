"""Options that Ray has and this package has not: what to do instead. Imported only to say so."""

from __future__ import annotations

__all__ = ["what_instead"]

_NO_NODES = "Leave it out: all tasks run on this machine."
_ACTORS = "It is an option of Ray's actors, not of its tasks; leave it out here."
_INSTEAD = {
    "accelerator_type": f"{_NO_NODES} num_gpus says how many GPUs a task gets.",
    "concurrency_groups": _ACTORS,
    "enable_task_events": "Leave it out: jt.tasks() and %tasks always list all tasks.",
    "fallback_strategy": _NO_NODES,
    "get_if_exists": _ACTORS,
    "label_selector": f"{_NO_NODES} What must be counted can be a resource: resources={{'license': 1}}.",
    "max_calls": "Leave it out, or call os._exit(0) in a task whose process must not be used again.",
    "max_concurrency": _ACTORS,
    "max_pending_calls": _ACTORS,
    "max_restarts": _ACTORS,
    "max_task_retries": _ACTORS,
    "num_return_vals": "It is called num_returns.",
    "object_store_memory": "Leave it out: values lie in shared memory, and there is no store to give a size. "
    "A task's own memory is limited by memory=.",
    "placement_group": f"{_NO_NODES} A task that takes several CPUs or GPUs gets them together: num_cpus=4.",
    "placement_group_bundle_index": f"{_NO_NODES} A task that takes several CPUs or GPUs gets them together.",
    "placement_group_capture_child_tasks": f"{_NO_NODES} A task that takes several CPUs or GPUs gets them together.",
    "runtime_env": "Leave it out: tasks see the notebook's packages, modules, directory and environment. "
    "Other variables can be set in the function, with os.environ; that is undone after the task.",
    "scheduling_strategy": _NO_NODES,
}


def what_instead(option: str) -> str | None:
    """A sentence for somebody who knows the option from Ray; None if Ray has none of that name."""
    return _INSTEAD.get(option)
