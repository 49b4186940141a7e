"""End to end: `scripts/demo.py`, which `make demo` calls, and the quickstart that it runs in a real kernel.

Role: the first thing that a new user does. The quickstart runs once; each test then looks at a part of what it left,
as a person would: the cells, the boards in them, the account on the terminal, and the page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "notebooks" / "quickstart.ipynb"
BOARD = "application/vnd.jupyter-tasks.board+json"
NET = 160  # seconds; a net against hanging: it takes about 20 on two cores

# Every task of the quickstart, and what must become of it. `accuracy` is a map. A cell with --wait has no name.
ENDS = {
    "forest": "completed",
    "svm": "completed",
    "boosting": "completed",
    "report": "completed",
    "curve": "completed",
    "interval": "completed",
    "accuracy": "completed",
    "search": "cancelled",
    "stuck": "cancelled",
    "broken": "failed",
}


def run_demo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=NET,
        check=False,
    )


class Ran:
    """What a run of the quickstart left behind."""

    def __init__(self, folder: Path, process: subprocess.CompletedProcess[str]) -> None:
        self.process = process
        self.folder = folder
        executed = folder / "quickstart.ipynb"
        assert executed.exists(), process.stdout + process.stderr
        notebook = nbformat.read(executed, as_version=4)
        self.cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}

    def bundles(self, cell: str) -> list[dict[str, Any]]:
        """The rich outputs of a cell."""
        return [output.data for output in self.cells[cell].outputs if "data" in output]

    def text(self, cell: str) -> str:
        """What the cell printed."""
        return "".join(output.text for output in self.cells[cell].outputs if output.output_type == "stream")

    def board(self, cell: str) -> dict[str, Any]:
        """The only output of a cell that runs in the background."""
        (bundle,) = self.bundles(cell)
        return bundle


@pytest.fixture(scope="module")
def ran(own_house: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("demo")
    return Ran(folder, run_demo("--to", folder))


# -- as it lies in the repository ---------------------------------------------------------------------------------


def test_the_quickstart_is_saved_without_outputs() -> None:
    notebook = json.loads(QUICKSTART.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    nbformat.validate(notebook)
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), cell["id"]
        assert cell.get("execution_count") is None, cell["id"]


# -- after a run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_cell_fails(ran: Ran) -> None:
    failed = {id: cell.outputs for id, cell in ran.cells.items() for o in cell.outputs if o.output_type == "error"}
    assert not failed
    assert ran.process.returncode == 0, ran.process.stderr
    assert all(cell.execution_count for cell in ran.cells.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state"), ENDS.items())
def test_the_board_shows_how_its_task_ended(ran: Ran, name: str, state: str) -> None:
    board = ran.board(name)
    assert (board[BOARD]["name"], board[BOARD]["state"]) == (name, state)
    assert f"[{name}] {state}" in board["text/plain"]
    assert state in board["text/html"]


@pytest.mark.slow
def test_the_kernel_was_free_while_models_were_trained(ran: Ran) -> None:
    assert ran.bundles("one-plus-one")[0]["text/plain"] == "2"
    states = dict(re.findall(r"^\d+ +(\w+) +(\w+)", ran.text("overview"), re.MULTILINE))
    assert states.keys() == {"forest", "svm", "boosting"}
    assert not set(states.values()) & {"failed", "crashed", "cancelled"}
    assert "completed" not in states["forest"]  # it takes seconds, and the kernel has reached this cell


@pytest.mark.slow
def test_a_cell_got_the_values_of_others_and_brought_a_name_back(ran: Ran) -> None:
    assert re.search(r"svm +0\.99", ran.board("report")["text/plain"])
    read, truth = (re.search(r"\[.*\]", line)[0] for line in ran.text("use-best").splitlines())  # type: ignore[index]
    assert read == truth


@pytest.mark.slow
def test_a_plot_of_the_worker_is_on_the_board_and_one_in_a_waited_cell(ran: Ran) -> None:
    assert '<img src="data:image/png;base64,' in ran.board("report")["text/html"]
    assert any("image/png" in bundle for bundle in ran.bundles("map"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "label", "total"), [("curve", "learning curve", 10), ("interval", "bootstrap", 50_000)]
)
def test_progress_is_a_full_bar(ran: Ran, name: str, label: str, total: int) -> None:
    (bar,) = ran.board(name)[BOARD]["progress"]
    assert (bar["label"], bar["n"], bar["total"]) == (label, total, total)
    assert "<progress" in ran.board(name)["text/html"]


@pytest.mark.slow
def test_the_graceful_cancel_let_the_cell_clean_up(ran: Ran) -> None:
    assert "cleaning up" in ran.board("search")["text/plain"]
    assert "interrupted" in ran.board("search")[BOARD]["error"]
    assert "score" in ran.bundles("cancel-search")[-1]["text/plain"]  # of the file that `finally` wrote


@pytest.mark.slow
def test_the_call_of_c_was_cancelling_until_it_was_killed(ran: Ran) -> None:
    assert "still there: True" in ran.text("cancel-stuck")
    assert re.search(r"stuck +cancelling", ran.text("cancel-stuck"))
    assert "ForceCancelledError" in ran.text("kill-stuck")


@pytest.mark.slow
def test_the_failed_cell_shows_its_own_lines_and_its_error_can_be_caught(ran: Ran) -> None:
    assert "exam(best, left_halves)" in ran.board("broken")[BOARD]["error"]
    assert "caught: X has 32 features" in ran.text("catch")


@pytest.mark.slow
def test_the_names_of_a_waited_cell_are_values_in_the_kernel(ran: Ran) -> None:
    assert ran.bundles("plane")[0]["text/plain"] == "(1797, 2)"


@pytest.mark.slow
def test_the_account_names_each_task_with_its_state_and_time(ran: Ran) -> None:
    told = dict(re.findall(r"^  (\w+) +(\w+) +\d+\.\d$", ran.process.stdout, re.MULTILINE))
    assert {name: told.get(name) for name in ENDS} == ENDS
    assert re.search(r"^  cell \d+ +completed +\d+\.\d$", ran.process.stdout, re.MULTILINE)
    assert "make lab" in ran.process.stdout


@pytest.mark.slow
def test_the_page_is_there_and_loads_nothing_from_elsewhere(ran: Ran) -> None:
    page = (ran.folder / "quickstart.html").read_text()
    assert page.count('class="jupyter-tasks-board"') == len(ENDS)  # one of them for all calls of the map
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?https?:", page)


# -- the README ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_snippets_of_the_readme_run(tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    cells = [nbformat.v4.new_code_cell(snippet.strip()) for snippet in [*snippets, "%tasks wait all"]]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "readme.ipynb")

    process = run_demo(tmp_path / "readme.ipynb", "--to", tmp_path)

    assert process.returncode == 0, process.stderr
    told = re.findall(r"^  (\w+) +(\w+) +\d+\.\d$", process.stdout, re.MULTILINE)
    assert told.count(("Model", "cancelled")) == 1  # an actor, which the README kills
    told.remove(("Model", "cancelled"))
    assert told == [("train", "completed"), ("exam", "completed")] + 110 * [("area", "completed")]


# -- when it goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_cell_is_shown_and_the_exit_code_is_1(tmp_path: Path) -> None:
    """With a kernel "python3" on the machine that is not ours: it must not matter."""
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "not ours", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    cells = [nbformat.v4.new_code_cell("import sys\nsys.executable"), nbformat.v4.new_code_cell("1 / 0  # here")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")

    process = run_demo(tmp_path / "wrong.ipynb", "--to", tmp_path / "out", JUPYTER_DATA_DIR=str(tmp_path))

    assert process.returncode == 1
    assert "Cell 2 has failed" in process.stderr
    assert "1 / 0  # here" in process.stderr
    assert "ZeroDivisionError: division by zero" in process.stderr
    executed = nbformat.read(tmp_path / "out" / "wrong.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].data["text/plain"] == repr(sys.executable)
