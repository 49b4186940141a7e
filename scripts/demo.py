"""Runs notebooks/quickstart.ipynb as a person would with Run All, and tells what became of its tasks.

A real kernel, started with the Python that runs this script; no browser, no network. What it leaves is the executed
notebook and a page of it. `make demo` calls it.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 180  # seconds; a net against hanging: the slowest cell needs about 10 on two cores
MOST_TITLE = 58  # characters of a cell's first line


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a cell failed."""
    parser = argparse.ArgumentParser(description="Run the quickstart notebook in a real kernel, headless.")
    parser.add_argument("notebook", nargs="?", type=Path, default=ROOT / "notebooks" / "quickstart.ipynb")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "demo", metavar="DIR", help="where results go")
    args = parser.parse_args(argv)
    try:
        import nbclient  # noqa: F401
        import nbconvert  # noqa: F401
        import nbformat
    except ImportError as error:
        print(f"The demo needs {error.name}. Run `make demo`, or pip install -e '.[demo]'.", file=sys.stderr)
        return 1

    notebook = nbformat.read(args.notebook, as_version=4)
    print(f"Running {_shown(args.notebook)} in a kernel of {sys.executable}\n", flush=True)
    began = time.monotonic()
    tasks, problem = asyncio.run(_run(notebook, args.notebook.parent))
    seconds = time.monotonic() - began

    executed, page = _save(notebook, args.to, args.notebook.stem)
    if problem:
        print(f"\n{problem}\n\nThe demo has failed; what ran until then: {_shown(executed)}", file=sys.stderr)
        return 1
    _print_account(tasks, seconds)
    _print_where(executed, page, args.notebook)
    return 0


# -- running ------------------------------------------------------------------------------------------------------


async def _run(notebook: Any, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Executes the notebook in place. Returns its tasks, and what went wrong ("" for nothing)."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    # Without folders to look into, the kernel is this very Python, whatever "python3" means on the machine.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        # What goes wrong in a cell is in the notebook. The kernel's own log would only tell of unencrypted TCP at the
        # start, and at times of the interrupt with which jupyter_client begins a shutdown.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )
    code_cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    async with client.async_setup_kernel(cleanup_kc=True):
        for count, (i, cell) in enumerate(code_cells, start=1):
            print(f"  {count:>2}/{len(code_cells)}  {_title(cell.source):<{MOST_TITLE}}", end=" ", flush=True)
            began = time.monotonic()
            try:
                await client.async_execute_cell(cell, i, execution_count=count)
            except CellExecutionError as error:
                return [], f"Cell {count} has failed:\n\n{cell.source}\n\n{_plain(error.traceback)}"
            except CellTimeoutError:
                return [], f"Cell {count} did not end within {CELL_TIMEOUT} s:\n\n{cell.source}"
            except DeadKernelError:
                return [], f"The kernel has died in cell {count}:\n\n{cell.source}"
            print(f"{time.monotonic() - began:6.1f} s", flush=True)
        return await _tasks(client.kc), ""


async def _tasks(kernel_client: Any) -> list[dict[str, Any]]:
    """What the supervisor says of the tasks, asked for in the kernel, beside the notebook."""
    question = {"tasks": "__import__('json').dumps(__import__('jupyter_tasks').tasks())"}
    reply = await kernel_client.execute("", silent=True, user_expressions=question, reply=True, timeout=CELL_TIMEOUT)
    answer = reply["content"]["user_expressions"]["tasks"]
    if answer["status"] != "ok":
        return []
    tasks: list[dict[str, Any]] = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
    return sorted(tasks, key=lambda task: int(task["id"]))


def _title(source: str) -> str:
    """The line that says most about a cell: its first one."""
    line = source.strip().partition("\n")[0]
    return line if len(line) <= MOST_TITLE else line[: MOST_TITLE - 3] + "..."


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()


# -- telling ------------------------------------------------------------------------------------------------------


def _save(notebook: Any, folder: Path, name: str) -> tuple[Path, Path]:
    """The executed notebook, and a page that needs nothing from the network."""
    import nbformat
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    nbformat.write(notebook, executed)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    page.write_text(body, encoding="utf-8")
    return executed, page


def _print_account(tasks: list[dict[str, Any]], seconds: float) -> None:
    if not tasks:
        print(f"\nNo cell failed; {seconds:.1f} s.\n")
        return
    width = max(len(task["name"]) for task in tasks)
    print(f"\n  {'TASK':<{width}}  {'STATE':<10}  SECONDS")
    for task in tasks:
        print(f"  {task['name']:<{width}}  {task['state']:<10}  {task['elapsed_s']:7.1f}")
    work = sum(task["elapsed_s"] for task in tasks)
    print(f"\nNo cell failed. {len(tasks)} tasks worked for {work:.1f} s in all; the notebook took {seconds:.1f} s.\n")


def _print_where(executed: Path, page: Path, source: Path) -> None:
    print(f"The executed notebook   {_shown(executed)}")
    print(f"The same as a page      {_shown(page)}  (any browser)")
    print("Run it in JupyterLab    make lab")
    print(f"  or by hand            {_shown(Path(sys.executable))} -m pip install -e '.[demo,lab]'")
    print(f"                        {_shown(Path(sys.executable))} -m jupyter lab {_shown(source)}")


def _shown(path: Path) -> str:
    """As short as it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


if __name__ == "__main__":
    sys.exit(main())
