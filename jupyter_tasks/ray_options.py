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


_INSTEAD_IN_ACTORS = {
    "concurrency_group": "Leave it out: max_concurrency is for all methods of an actor. What must not wait for others "
    "can be an actor of its own.",
    "concurrency_groups": "Leave it out: max_concurrency is for all methods of an actor. What must not wait for others "
    "can be an actor of its own.",
    "allow_out_of_order_execution": "Leave it out: with max_concurrency above 1, or async methods, calls do not wait "
    "for each other's arguments.",
    "max_pending_calls": "Leave it out, or count: jt.wait(refs, num_returns=...) before the next call.",
    "max_retries": "Of an actor it is called max_restarts, and of its calls max_task_retries.",
    "tensor_transport": "Leave it out: large values travel through shared memory.",
}


def what_instead(option: str, *, actor: bool = False) -> str | None:
    """A sentence for somebody who knows the option from Ray; None if Ray has none of that name."""
    if actor and option in _INSTEAD_IN_ACTORS:
        return _INSTEAD_IN_ACTORS[option]
    found = _INSTEAD.get(option)
    return None if actor and found == _ACTORS else found
