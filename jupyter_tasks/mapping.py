"""`f.map` and `f.starmap`: many calls as one group, submitted in bursts.

Items are read and packed, and a burst of them is written at once. So an item that cannot be sent, in the first burst,
leaves nothing submitted; later on what was submitted before is cancelled. Either way the error is raised and names the
item: nothing is left half submitted unsaid.

Which thread: the one that calls. The iterables are its own, and their code may block or raise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jupyter_tasks.client import Client, PackedCall
from jupyter_tasks.exceptions import JupyterTasksError
from jupyter_tasks.groups import TaskGroup
from jupyter_tasks.refs import ObjectRef, current_group
from jupyter_tasks.wire import shared

__all__ = ["submit_all", "submit_each"]

BURST = 500  # calls; of 200, 500, 2000 and 10,000 the quickest by a little
BURST_BYTES = 1 << 20  # what is packed and not submitted yet, descriptors included
BURST_SECONDS = 0.01  # of reading: a slow iterable must not delay the calls whose items it has given

Check = Callable[[tuple[Any, ...], dict[str, Any]], None]


def submit_all(
    client: Client,
    fn: int,
    calls: Iterable[Any],
    common: dict[str, Any],
    name: str,
    options: dict[str, Any] | None,
    num_returns: int,
    *,
    named: Callable[..., Mapping[str, Any]],
    check: Check | None,
) -> list[Any]:
    """Submits `fn` for each of `calls`. Returns for each its ref, or its list of refs.

    Args:
        calls: positional arguments of each call.
        common: keyword arguments of all.
        name: of the tasks and of their group.
        named: gives arguments their names, for error messages.
        check: raises TypeError for arguments that do not fit. Called for each number of arguments once: with the same
            keyword arguments nothing else decides.

    Raises: see `RemoteFunction.map`.
    """
    returned: list[Any] = []
    group: TaskGroup | None = None
    burst: list[PackedCall] = []
    try:
        common = {key: _sent_once(client, key, value) for key, value in common.items()}
        packing = _Packing(client, calls, common, options, named, check)
        while packing.fill(burst):
            if group is None:  # not before there is something to do
                group = TaskGroup(name)
                group.make()
            returned += client.submit_calls(fn, burst, name, num_returns, group.id)
            burst.clear()
            packing.held.clear()
    except BaseException as error:
        for payload, _ in burst:
            payload.close()
        if group is not None:
            group.close(error)
        raise
    if group is not None:
        group.close()
    return returned


def _sent_once(client: Client, name: str, value: Any) -> Any:
    if type(value) is ObjectRef or (type(value) in (int, float, bool, type(None))):
        return value
    if type(value) in (str, bytes) and len(value) < shared.INLINE_LIMIT:
        return value
    return client.put(value, root=name)


class _Packing:
    """The iterable on its way to the wire."""

    def __init__(
        self,
        client: Client,
        calls: Iterable[Any],
        common: dict[str, Any],
        options: dict[str, Any] | None,
        named: Callable[..., Mapping[str, Any]],
        check: Check | None,
    ) -> None:
        self._client = client
        self._options = options
        self._calls: Iterator[Any] = iter(calls)
        self._common = common
        self._named = named
        self._check = check
        self._fitting: set[int] = set()  # numbers of arguments that fit
        self._position = 0
        self.held: list[Any] = []  # arguments of calls that are not submitted: refs that nobody else has must live on

    def fill(self, burst: list[PackedCall]) -> bool:
        """Adds the next calls. False if there are no more."""
        size = 0
        end = time.monotonic() + BURST_SECONDS
        pack, common, named, options = self._client.pack_call, self._common, self._named, self._options
        for args in self._calls:
            try:
                if self._check is not None:
                    args = _arguments(args)
                    if len(args) not in self._fitting:
                        self._check(args, common)
                        self._fitting.add(len(args))
                packed = pack(args, common, named, options)
            except (JupyterTasksError, TypeError, ValueError) as error:
                raise _of_item(error, self._position)  # noqa: B904  # it is the same one
            burst.append(packed)
            self.held.append(args)
            self._position += 1
            size += packed[0].size
            if len(burst) >= BURST or size >= BURST_BYTES or time.monotonic() >= end:
                return True
        return bool(burst)


def submit_each(call: Callable[..., Any], calls: Iterable[Any], common: dict[str, Any], name: str) -> list[Any]:
    """The same one by one, for what does not travel in bursts: generators, and tasks in threads.

    Args:
        call: submits one, and refuses arguments that do not fit.
    """
    returned: list[Any] = []
    group: TaskGroup | None = None
    try:
        for position, item in enumerate(calls):
            if group is None:
                group = TaskGroup(name)
                group.make()
            token = current_group.set(group)
            try:
                returned.append(call(*_arguments(item), **common))
            except (JupyterTasksError, TypeError, ValueError) as error:
                raise _of_item(error, position)  # noqa: B904  # it is the same one
            finally:
                current_group.reset(token)
    except BaseException as error:
        if group is not None:
            group.close(error)
        raise
    if group is not None:
        group.close()
    return returned


def _arguments(item: Any) -> tuple[Any, ...]:
    if not isinstance(item, Iterable):
        raise TypeError(f"{type(item).__name__} is not a tuple of arguments; for single ones there is map.")
    return tuple(item)


def _of_item(error: Exception, position: int) -> Exception:
    error.args = (f"item {position}: {error}",)
    return error
