"""A real kernel to run cells in, and to look at every message by the cell that it belongs to.

Role: helper of the kernel tests beside this file.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop

import jupyter_tasks

BOARD = "application/vnd.jupyter-tasks.board+json"
NET = 60.0  # seconds; a net against hanging, never a measure
ensure_event_loop()  # jupyter_client makes one at its first call and keeps it: let that be before any test looks
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What a user types first.
FIRST = "%load_ext jupyter_tasks\nimport jupyter_tasks as jt, os, pathlib, sys, time"


def plain(text: str) -> str:
    """Without colours."""
    return _ANSI.sub("", text)


@dataclass
class Cell:
    """One executed cell: its reply and all messages that have it as their parent, also later ones."""

    id: str
    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.reply.get("status") == "ok"

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Contents of the messages of these types, in order."""
        return [m["content"] for m in self.messages if m["msg_type"] in kinds]

    def text(self, name: str = "stdout") -> str:
        return "".join(c["text"] for c in self.of("stream") if c["name"] == name)

    @property
    def own(self) -> list[dict[str, Any]]:
        """Outputs that are not ours: what the cell itself has made."""
        kinds = ("stream", "display_data", "execute_result", "error", "update_display_data")
        return [m for m in self.messages if m["msg_type"] in kinds and BOARD not in m["content"].get("data", {})]

    @property
    def boards(self) -> list[dict[str, Any]]:
        """The board's JSON, first to last."""
        contents = self.of("display_data", "update_display_data")
        return [c["data"][BOARD] for c in contents if BOARD in c["data"]]

    @property
    def states(self) -> list[str]:
        """The states that the board has shown, without repetitions."""
        states: list[str] = []
        for board in self.boards:
            if not states or states[-1] != board["state"]:
                states.append(board["state"])
        return states

    @property
    def result(self) -> str | None:
        results = self.of("execute_result")
        return results[-1]["data"]["text/plain"] if results else None

    @property
    def error(self) -> str:
        """The traceback as people see it, or ""."""
        errors = self.of("error")
        return plain("\n".join(errors[-1]["traceback"])) if errors else ""


class Kernel:
    """A kernel process of the interpreter that runs the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="test",
            language="python",
        )
        directory.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "TMPDIR": str(directory), "IPYTHONDIR": str(directory / "ipython")}
        tested = Path(jupyter_tasks.__file__).parents[1]  # this tree, also where another one is installed
        path = os.pathsep.join(map(str, (Path(__file__).parent, tested)))
        env.update(JUPYTER_RUNTIME_DIR=str(directory / "runtime"), PYTHONPATH=path)
        self.manager.start_kernel(env=env, cwd=str(directory))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=NET)
        self.cells: dict[str, Cell] = {}
        self._displays: dict[str, Cell] = {}  # display id -> the cell that showed it first

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def start(self, code: str, cell_id: str = "") -> Cell:
        """Sends a cell and does not wait. With the id of the cell, as JupyterLab does it."""
        if cell_id:
            content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
            content |= {"allow_stdin": False, "stop_on_error": True}
            message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id})
            self.client.shell_channel.send(message)
            cell = Cell(message["header"]["msg_id"])
        else:
            cell = Cell(self.client.execute(code))
        self.cells[cell.id] = cell
        return cell

    def run(self, code: str) -> Cell:
        """Runs a cell to its end."""
        return self.finish(self.start(code))

    def finish(self, cell: Cell) -> Cell:
        """Waits for the cell's reply and its idle."""
        self.read_until(lambda: any(c["execution_state"] == "idle" for c in cell.of("status")), f"{cell.id} idle")
        while True:
            reply = self.client.get_shell_msg(timeout=NET)
            if reply["parent_header"].get("msg_id") == cell.id:
                cell.reply = reply["content"]
                return cell

    def read_until(self, condition: Any, what: str, net: float = NET) -> None:
        """Reads messages until the word is there."""
        end = time.monotonic() + net
        while not condition():
            rest = end - time.monotonic()
            if rest <= 0:
                raise TimeoutError(f"waited {net:g} s in vain for {what}")
            try:
                message = self.client.get_iopub_msg(timeout=min(rest, 1.0))
            except Exception:  # queue.Empty
                continue
            owner = self._owner(message)
            if owner is not None:
                owner.messages.append(message)

    def _owner(self, message: dict[str, Any]) -> Cell | None:
        """The cell that shows the message: as front-ends do it, an update goes to where its display_id was shown."""
        owner = self.cells.get(message["parent_header"].get("msg_id", ""))
        display_id = message["content"].get("transient", {}).get("display_id")
        if display_id and owner is not None and message["msg_type"] == "display_data":
            self._displays[display_id] = owner
        return self._displays.get(display_id, owner)

    def read_state(self, cell: Cell, *states: str, net: float = NET) -> None:
        """Waits until the cell's board shows one of these states."""
        self.read_until(lambda: cell.states and cell.states[-1] in states, f"board {states}, have {cell.states}", net)

    def interrupt(self) -> None:
        """The stop button: SIGINT to the kernel's process group."""
        self.manager.interrupt_kernel()

    def kill(self) -> None:
        """SIGKILL, as the system would do it."""
        os.kill(self.pid, signal.SIGKILL)
        self.manager.provisioner.process.wait()

    def processes(self) -> set[int]:
        """Every living process that was started, however indirectly, by this kernel; the kernel itself, too."""
        wanted = f"TMPDIR={self.directory}".encode()
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    ours = wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                    state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                except (OSError, IndexError):
                    continue
                if ours and state != "Z":
                    found.add(int(name))
        return found

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()
