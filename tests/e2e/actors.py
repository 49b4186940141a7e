"""Actors that the tests of actors share: one class in all kinds. Role: helpers of the tests beside this file.

Workers import it, too: nothing of pytest here. A Keeper's state is what must survive whatever is done to its calls.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import words

import jupyter_tasks as jt

LONG = 60.0  # seconds that something would go on if nobody stopped it


class Keeper:
    """Notes which calls began, in which order, and which of them were asked to stop."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.began: list[Any] = []
        self.asked: dict[str, bool] = {}

    def hold(self, name: str) -> str:
        """Is in until the test says NAME.go; if it says "asked" there, until the flag is here, too."""
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        if words.hear(f"{self.place}/{name}.go", LONG) == "asked":
            self.wait_for_flag()
        self.asked[name] = jt.get_runtime_context().is_canceled()
        return name

    def until_asked(self, name: str) -> str:
        """Is in until it is asked to stop."""
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        self.wait_for_flag()
        self.asked[name] = True
        return name

    def wait_for_flag(self) -> None:
        end = time.monotonic() + LONG
        while not jt.get_runtime_context().is_canceled():
            if time.monotonic() > end:
                raise TimeoutError("nobody asked it to stop")
            time.sleep(0.001)

    def note(self, item: Any) -> Any:
        self.began.append(item)
        return item

    def fail(self, item: Any) -> None:
        self.began.append(item)
        raise ValueError(item)

    def log(self) -> list[Any]:
        return list(self.began)

    def were_asked(self) -> dict[str, bool]:
        return dict(self.asked)

    def pid(self) -> int:
        return os.getpid()

    def exit(self, name: str) -> None:
        """Leaves by exit_actor(); what comes after it must not run, what is in `finally` must."""
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        try:
            words.hear(f"{self.place}/{name}.go", LONG)
            jt.exit_actor()
            words.say(f"{self.place}/after exit_actor")
        finally:
            words.say(f"{self.place}/finally")


class AsyncKeeper(Keeper):
    """The same with coroutines: a call is asked to stop by a CancelledError at its await."""

    async def hold(self, name: str) -> str:  # type: ignore[override]
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        self.asked[name] = False
        try:
            await heard(f"{self.place}/{name}.go")
        except asyncio.CancelledError:
            self.asked[name] = True
            raise
        return name

    async def until_asked(self, name: str) -> str:  # type: ignore[override]
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            self.asked[name] = True
            raise
        return name

    async def exit(self, name: str) -> None:  # type: ignore[override]
        self.began.append(name)
        words.say(f"{self.place}/{name}", os.getpid())
        try:
            await heard(f"{self.place}/{name}.go")
            jt.exit_actor()
            words.say(f"{self.place}/after exit_actor")
        finally:
            words.say(f"{self.place}/finally")


async def heard(path: str | Path) -> None:
    """Waits for a word in an event loop."""
    end = time.monotonic() + LONG
    while not words.said(path):
        if time.monotonic() > end:
            raise TimeoutError(f"nobody said {os.path.basename(path)!r}")
        await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Kind:
    """A kind of actor, and how to start one."""

    name: str
    cls: type
    options: dict[str, Any] = field(default_factory=dict)
    at_once: int = 1  # so many calls run at the same time
    own_process: bool = True

    def start(self, place: Path, **options: Any) -> Any:
        """The handle of a new actor."""
        return jt.remote(self.cls).options(**{**self.options, **options}).remote(str(place))

    def fill(self, actor: Any, place: Path) -> list[jt.ObjectRef]:
        """Calls that occupy the actor until `let_go`; all are in."""
        refs = [actor.hold.remote(f"hold{i}") for i in range(self.at_once)]
        for i in range(self.at_once):
            words.hear(place / f"hold{i}")
        return refs

    def let_go(self, place: Path, asked: str = "") -> None:
        """The calls of `fill` end; that of the name `asked` not before its flag is there."""
        for name in self.holders():
            words.say(place / f"{name}.go", "asked" if name == asked else "")

    def holders(self) -> list[str]:
        return [f"hold{i}" for i in range(self.at_once)]


SYNC = Kind("sync", Keeper)
THREADED = Kind("threaded", Keeper, {"max_concurrency": 3}, at_once=3)
ASYNC = Kind("async", AsyncKeeper, {"max_concurrency": 3}, at_once=3)
IN_KERNEL = Kind("in-kernel", Keeper, {"executor": "thread"}, own_process=False)
KINDS = (SYNC, THREADED, ASYNC, IN_KERNEL)
IN_PROCESSES = (SYNC, THREADED, ASYNC)
WITH_FLAG = (SYNC, THREADED, IN_KERNEL)


# -- processes that an actor starts ------------------------------------------------------------------------------------

_CHILD = "import os, sys, time, signal; open(sys.argv[1] + '.part', 'w').write(str(os.getpid())); "
_CHILD += "os.rename(sys.argv[1] + '.part', sys.argv[1]); "
_DEAF = "import signal; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; "
_SLEEP = f"time.sleep({LONG})"
TREE = ("plain", "deaf", "grandchild", "daemon")


def plant_tree(place: str | Path) -> list[int]:
    """Starts a child, a deaf one in a session of its own, a grandchild and a daemon; returns their process ids."""

    def child(name: str, program: str, **how: Any) -> None:
        subprocess.Popen([sys.executable, "-c", program, f"{place}/{name}"], **how)

    child("plain", _CHILD + _SLEEP)
    child("deaf", _DEAF + _CHILD + _SLEEP, env={}, start_new_session=True)
    subprocess.Popen(["sh", "-c", '"$0" -c "$1" "$2" & true', sys.executable, _CHILD + _SLEEP, f"{place}/grandchild"])
    if (pid := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            words.say(f"{place}/daemon", os.getpid())
            time.sleep(LONG)
        os._exit(0)
    os.waitpid(pid, 0)
    return [int(words.hear(f"{place}/{name}")) for name in TREE]
