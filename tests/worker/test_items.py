"""How a generator is run to its end, and where an interrupt goes. Role: unit; interrupts come where a test puts them.

Promise: docs/semantics.md, Generators: KeyboardInterrupt is raised in the generator's code, also at its `yield`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from jupyter_tasks.worker import items


class Taken(list[Any]):
    """Takes items; an interrupt comes while it has the one at this place."""

    def __init__(self, interrupted_at: int = -1) -> None:
        self.interrupted_at = interrupted_at

    def take(self, item: Any) -> None:
        self.append(item)
        if len(self) == self.interrupted_at + 1:
            raise KeyboardInterrupt


def test_an_interrupt_between_two_items_is_raised_at_the_yield() -> None:
    def made() -> Iterator[str]:
        try:
            yield "first"
            yield "never"
        except KeyboardInterrupt:
            yield "caught"
        yield "end"

    taken = Taken(interrupted_at=0)
    items.drive(made(), taken.take)
    assert taken == ["first", "caught", "end"]


def test_one_between_two_items_of_an_async_generator_too() -> None:
    async def made() -> AsyncIterator[str]:
        try:
            yield "first"
            yield "never"
        except KeyboardInterrupt:
            yield "caught"
        yield "end"

    taken = Taken(interrupted_at=0)
    items.drive(made(), taken.take)
    assert taken == ["first", "caught", "end"]


def test_one_that_the_generators_code_has_not_seen_is_raised_there() -> None:
    """It came in the frame that calls `next`, before or after the generator's own."""

    class Made:
        gi_frame = object()  # it has not ended
        seen: BaseException | None = None

        def __next__(self) -> str:
            if self.seen is None:
                raise KeyboardInterrupt
            raise StopIteration

        def throw(self, stop: BaseException) -> str:
            self.seen = stop
            return "caught"

    made, taken = Made(), Taken()
    items.drive(made, taken.take)
    assert isinstance(made.seen, KeyboardInterrupt)
    assert taken == ["caught"]


@pytest.mark.parametrize("made", [iter([1, 2]), map(int, "12")])
def test_one_in_an_iterator_that_has_no_code_ends_it(made: Any) -> None:
    taken = Taken(interrupted_at=0)
    with pytest.raises(KeyboardInterrupt):
        items.drive(made, taken.take)
    assert taken == [1]


def test_what_take_raises_closes_the_generator() -> None:
    closed: list[bool] = []

    def made() -> Iterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    def take(item: int) -> None:
        raise ValueError(item)

    with pytest.raises(ValueError, match="1"):
        items.drive(made(), take)
    assert closed
