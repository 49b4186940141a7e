"""Groups in the notebook: a board for each that has a block or is a map, and the groups that `--group` names.

Which thread: a group may be made in any; what the supervisor says of it comes in the client's event thread. The rest is
the main thread's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jupyter_tasks import exceptions, groups
from jupyter_tasks.client import Client
from jupyter_tasks.groups import TaskGroup
from jupyter_tasks.notebook.board import FINAL_STATES
from jupyter_tasks.notebook.errors import error_of
from jupyter_tasks.notebook.feed import Feed
from jupyter_tasks.notebook.groupboard import MOST_ERRORS, GroupBoard
from jupyter_tasks.notebook.output import Place, Router
from jupyter_tasks.refs import ObjectRef
from jupyter_tasks.wire.frames import Kind, show_id

__all__ = ["Groups"]

BOARD_AFTER = 0.5  # seconds; a group that is over by then needs no board
MOMENT = 0.05  # seconds that a cell's end waits for a group it has made: a map of tiny tasks needs no board either
MOST_LINE = 100  # characters of one error


class Groups:
    """One for each shell."""

    def __init__(self, ip: Any, router: Router, feed: Feed) -> None:
        self._ip = ip
        self._router = router
        self._feed = feed
        self._stopped = False
        self._new: list[ObjectRef] = []  # made by the running cell

    def start(self) -> None:
        """From now on groups have boards."""
        groups.on_made(self._made)

    def stop(self) -> None:
        """No further ones."""
        self._stopped = True

    # -- boards -----------------------------------------------------------------------------------------------

    def _made(self, group: TaskGroup) -> None:
        """Any thread. An inner group's figures are in those of the outer one; members by `--group` have own boards."""
        ref = group.ref
        place = self._router.place_of(ref.id)
        if self._stopped or group.auto or not group.is_outermost or place is None:
            return
        board = GroupBoard(ref.task_id, group.name)
        shown = _Shown(ref, board, self._feed, self._router)
        self._router.add(ref.id, shown.take)
        self._feed.add(ref.id, board, Place(place.parent), after=BOARD_AFTER)
        self._new.append(ref)
        ref._client.when_final(ref, shown.ended)

    def cell_ends(self) -> None:
        """Before what has changed is shown: gives groups of this cell a moment to be over."""
        new, self._new = self._new, []
        open_ones = [ref for ref in new if not ref.is_final]
        if open_ones and not open_ones[0]._client.closed:
            open_ones[0]._client.wait(open_ones, None, MOMENT)

    # -- --group ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def of_cell(self, name: str | None, client: Client) -> Iterator[int]:
        """The id of the group that this variable holds, for a cell that is launched in this `with`; 0 for no name.

        A new group, bound to the variable, if there is none or it is over.
        """
        if name is None:
            yield 0
            return
        held = self._ip.user_ns.get(name)
        if isinstance(held, TaskGroup) and held.id and held.ref._client is client and not held.is_left:
            if not held.auto and held.state not in FINAL_STATES:  # its block is open in another thread
                yield held.id
                return
            with held.open_for_more() as is_open:
                if is_open:
                    yield held.id
                    return
        group = held if isinstance(held, TaskGroup) and not held.id else TaskGroup(name)
        group.make(auto=True)
        self._ip.user_ns[name] = group
        yield group.id


class _Shown:
    """Keeps the board of one group. It holds the group's ref: with it the errors of members stay to be looked at."""

    def __init__(self, ref: ObjectRef, board: GroupBoard, feed: Feed, router: Router) -> None:
        self._ref = ref
        self._board = board
        self._feed = feed
        self._router = router
        self._asked: set[int] = set()  # failed members whose errors are on their way, or there

    def take(self, kind: int, content: Any, stderr: bool) -> None:
        """What the supervisor says of the group."""
        if kind == Kind.EVENT and "group" in content:
            self._board.take_event(content["group"], time.monotonic())
            self._ask(content["group"]["failed"])
            self._feed.changed(self._ref.id)

    def _ask(self, failed: Sequence[int]) -> None:
        client = self._ref._client
        for id in failed[:MOST_ERRORS]:
            if id not in self._asked and not client.closed:
                self._asked.add(id)
                client.when_final(client.hold(id), self._failed)

    def _failed(self, member: ObjectRef) -> None:
        error = error_of(member)
        name = error.type_name if isinstance(error, exceptions.TaskError) else type(error).__name__
        text = f"{name}: {error}".partition("\n")[0]
        self._board.take_error(member.id, f"task {show_id(member.id)}: {text}"[:MOST_LINE])
        self._settle()

    def ended(self, ref: ObjectRef) -> None:
        """The group is over, or nobody tells of it any more."""
        if ref._kind != Kind.RESULT:
            self._board.state = "cancelled"  # all tasks were ended with the session
            self._board.error = str(error_of(ref))
        self._settle()

    def _settle(self) -> None:
        self._board.settled = self._ref.is_final and len(self._board.errors) == len(self._asked)
        if self._board.settled:
            self._router.remove(self._ref.id)  # and with this object the ref goes
        self._feed.changed(self._ref.id)
