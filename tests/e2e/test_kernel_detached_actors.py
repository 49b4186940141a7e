"""Actors that outlive their kernel: `%%actor NAME --detach` and %tasks. Role: end to end, with real kernels.

Promises: docs/semantics.md, Detached.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kernels import Kernel
from words import hear, say

pytestmark = pytest.mark.slow

CELL = (
    "%%actor counter --detach --get-if-exists\n"
    "class Counter:\n"
    "    def __init__(self): self.n = 0\n"
    "    def add(self, by=1):\n"
    "        self.n += by\n"
    "        print('counted to', self.n, flush=True)\n"
    "        return self.n\n"
    "    def until(self):\n"
    "        import os, time\n"
    "        with open('in.part', 'w') as file: file.write(str(os.getpid()))\n"
    "        os.rename('in.part', 'in')\n"
    "        while not os.path.exists('go'): time.sleep(0.01)\n"
)


def test_an_actor_survives_the_sigkill_of_its_kernel(new_kernel: Callable[[], Kernel]) -> None:
    """A new kernel finds it with its state, by name and by the same cell; %tasks knows it; what a call prints appears
    under the cell that called; %tasks kill leaves nothing."""
    first = new_kernel()
    assert first.run(CELL).ok
    assert first.run("jt.get(counter.add.remote())").result == "1"
    first.kill()
    first.close()

    second = new_kernel()
    cell = second.run("found = jt.get_actor('counter')\njt.get(found.add.remote())")
    assert cell.result == "2"
    second.read_until(lambda: "counted to 2" in cell.text(), "its output")
    assert second.run(CELL).ok
    assert second.run("counter == found").result == "True"
    cell = second.run("jt.get(counter.add.remote(5))")
    assert cell.result == "7"
    second.read_until(lambda: "counted to 7" in cell.text(), "its output, under this cell")
    listed = second.run("%tasks").text()
    assert "counter" in listed
    assert "(detached)" in listed
    assert "started" in second.run("%tasks story counter").text()
    assert second.run("ref = counter.until.remote()").ok
    hear(second.directory / "in")
    assert "until" in second.run("%tasks stack counter").text()
    logs = second.run("%tasks logs counter")
    assert logs.ok
    assert logs.text("stderr") == ""
    say(second.directory / "go")
    assert second.run("jt.get(ref)").ok
    before = second.processes()
    own = second.run("jt.remote(lambda: 0)\n[os.getpid()]")
    assert own.ok
    assert "counter" in second.run("%tasks kill counter").text()
    assert second.run("%tasks").text() == "No tasks.\n"
    assert len(second.processes()) < len(before)
    assert "ActorDiedError" in second.run("jt.get(counter.add.remote())").error
    assert "no actor named 'counter'" in second.run("jt.get_actor('counter')").error
    assert second.run(CELL).ok
    assert second.run("jt.get(counter.add.remote())").result == "1", "the name is free, the state is new"


def test_two_kernels_at_once(new_kernel: Callable[[], Kernel]) -> None:
    """Output goes to who called; a kill by the one is heard by the other."""
    first, second = new_kernel(), new_kernel()
    assert first.run(CELL).ok
    assert second.run(CELL).ok
    one = first.run("jt.get(counter.add.remote())")
    two = second.run("jt.get(counter.add.remote())")
    assert (one.result, two.result) == ("1", "2")
    first.read_until(lambda: "counted to 1" in one.text(), "the output of the first")
    second.read_until(lambda: "counted to 2" in two.text(), "the output of the second")
    assert "counted to 2" not in first.run("1").text() + one.text()
    assert first.run("ref = counter.until.remote()").ok
    hear(first.directory / "in")
    assert second.run("%tasks kill counter").ok
    assert "ActorDiedError" in first.run("jt.get(ref)").error
    assert "ActorDiedError" in first.run("jt.get(counter.add.remote())").error


def test_words_and_names(kernel: Kernel) -> None:
    """Help and the Tab key know it; `cancel`, `clear`, `fetch` and `attach` of it say what to do; `all` leaves it alone;
    a taken name says so."""
    assert "--detach" in kernel.run("%actor --help").text()
    assert kernel.run(CELL).ok
    assert kernel.run("jt.get(counter.add.remote())").ok
    for text in ("%tasks kill ", "%tasks logs ", "%tasks stack "):
        kernel.client.complete(text, len(text))
        assert "counter" in kernel.client.get_shell_msg(timeout=60)["content"]["matches"], text
    assert "counter" not in kernel.run("%tasks kill all").text()
    assert "%tasks kill ends it" in kernel.run("%tasks cancel counter").text()
    for verb in ("attach", "clear", "fetch"):
        if verb == "fetch":
            kernel.run("del counter")
        assert "jt.get_actor('counter')" in kernel.run(f"%tasks {verb} counter").text("stderr")
    assert "%tasks kill" not in kernel.run("%tasks clear").text(), "it keeps no result that could be cleared"
    refused = kernel.run(CELL.replace(" --get-if-exists", "")).error
    assert "ActorAlreadyExistsError" in refused
    assert "'counter'" in refused
    assert "thread" in kernel.run("%%actor other --detach --thread\nclass A: pass").error
    assert kernel.run("%tasks kill counter").ok
    assert kernel.run("jt.list_actors()").result == "[]"
