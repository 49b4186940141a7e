"""Contract of the bars that report from inside a task: our own, in this process; tqdm's, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_tasks.worker import progress as module
from jupyter_tasks.worker.progress import progress, set_report, track

Reports = list[dict[str, Any]]


@pytest.fixture
def reports() -> Iterator[Reports]:
    """Every report, none held back."""
    heard: Reports = []
    set_report(heard.append, min_interval_s=0)
    yield heard
    set_report(None)


def told(reports: Reports, *names: str) -> list[Any]:
    return [tuple(report[name] for name in names) for report in reports]


# -- our own bars


def test_track_yields_the_items_and_reports_how_many_were_taken(reports: Reports) -> None:
    assert list(track("abc", label="letters", unit="letter")) == ["a", "b", "c"]
    assert told(reports, "n", "total", "done") == [
        *((n, 3, False) for n in (0, 1, 2, 3)),
        (3, 3, True),
    ]
    last = reports[-1]
    assert (last["label"], last["unit"], last["parent"]) == ("letters", "letter", None)
    assert last["elapsed_s"] >= 0
    assert last["rate"] > 0
    json.dumps(reports, allow_nan=False)


def test_the_total_is_the_length_if_there_is_one(reports: Reports) -> None:
    list(track(iter("ab")))
    list(track(iter("ab"), total=5))
    assert {total for (total,) in told(reports, "total")} == {None, 5}


def test_a_loop_that_ends_early_closes_its_bar(reports: Reports) -> None:
    for item in track("abc"):
        if item == "b":
            break
    assert told(reports, "n", "done")[-1] == (1, True)

    def stop() -> None:
        for _ in track("abc"):
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert reports[-1]["done"]


def test_without_a_report_bars_only_count() -> None:
    set_report(None)
    assert list(track("abc")) == ["a", "b", "c"]
    with progress(3) as bar:
        bar.update(2)
    assert bar.n == 2


def test_a_bar_is_moved_by_hand_and_stays_when_it_is_closed(reports: Reports) -> None:
    bar = progress(10, "epochs")
    bar.update()
    bar.update(2)
    bar.set(7)
    bar.close()
    bar.close()
    bar.update()
    assert told(reports, "n", "done") == [(0, False), (1, False), (3, False), (7, False), (7, True)]
    with pytest.raises(ValueError, match="must not be negative"):
        progress(-1)


def test_a_bar_made_in_another_is_its_child(reports: Reports) -> None:
    with progress(1, "outer"):
        for _ in track("a", label="middle"):
            with progress(1, "inner"):
                pass
    with progress(1, "next"):
        pass
    ids = {report["label"]: report["id"] for report in reports}
    assert {report["label"]: report["parent"] for report in reports} == {
        "outer": None,
        "middle": ids["outer"],
        "inner": ids["middle"],
        "next": None,
    }


def test_a_bar_that_was_dropped_unclosed_is_nobodys_parent(reports: Reports) -> None:
    progress(1, "dropped")
    progress(1, "other")
    assert {report["parent"] for report in reports} == {None}


def test_bars_of_another_thread_or_an_earlier_task_are_no_parents(reports: Reports) -> None:
    outer = progress(1, "outer")
    thread = threading.Thread(target=lambda: progress(1, "thread").close())
    thread.start()
    thread.join()
    set_report(reports.append)
    progress(1, "next task").close()
    outer.close()
    assert {report["label"]: report["parent"] for report in reports} == {
        "outer": None,
        "thread": None,
        "next task": None,
    }


def test_at_most_one_report_per_bar_and_interval_except_the_first_and_the_last(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    set_report(reports.append, min_interval_s=1)
    bar, other = progress(100), progress(100)
    for _ in range(40):
        now += 0.125
        bar.update()
    other.update()
    bar.close()
    mine = [report for report in reports if report["id"] == reports[0]["id"]]
    assert [round(report["elapsed_s"], 1) for report in mine] == [0, 1, 2, 3, 4, 5, 5]
    assert told(mine, "n", "done")[-1] == (40, True)
    assert len(reports) == len(mine) + 2


def test_a_report_that_fails_does_not_break_the_loop() -> None:
    def fail(_: dict[str, Any]) -> None:
        raise OSError("gone")

    set_report(fail, min_interval_s=0)
    try:
        assert list(track("abc")) == ["a", "b", "c"]
    finally:
        set_report(None)


def test_an_interrupt_in_a_report_reaches_the_loop_and_the_bar_goes_on(reports: Reports) -> None:
    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    bar = progress(3)
    set_report(interrupt, min_interval_s=0)
    with pytest.raises(KeyboardInterrupt):
        bar.update()
    set_report(reports.append, min_interval_s=0)
    bar.update()
    bar.close()
    assert told(reports, "n", "done") == [(0, False), (2, False), (2, True)]


def test_a_report_that_makes_bars_itself_is_not_reported(reports: Reports) -> None:
    def report(content: dict[str, Any]) -> None:
        reports.append(content)
        list(track("abc", label="inside"))

    set_report(report, min_interval_s=0)
    progress(1, "outside").close()
    assert {report["label"] for report in reports} == {"outside"}


def test_many_threads_may_move_one_bar_and_nothing_follows_its_last_report() -> None:
    heard: Reports = []
    set_report(heard.append, min_interval_s=0)
    try:
        bar = progress(4000)
        threads = [threading.Thread(target=lambda: [bar.update() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bar.close()
        bar.update()
    finally:
        set_report(None)
    assert bar.n == 4001
    assert heard[-1]["done"]
    assert heard[-1]["n"] == 4000
    assert sum(report["done"] for report in heard) == 1


def test_numbers_are_numbers_of_json(reports: Reports) -> None:
    np = pytest.importorskip("numpy")
    bar = progress(np.int64(5))
    bar.update(np.float32(1.5))
    bar.total = float("inf")
    bar.close()
    json.dumps(reports, allow_nan=False)
    assert told(reports, "n", "total")[-1] == (1.5, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reports_nothing(reports: Reports) -> None:
    """Its report would go to a socket that belongs to its parent."""
    code = """
import os
from jupyter_tasks.worker import progress
read, write = os.pipe()
progress.set_report(lambda report: os.write(write, b"."), 0)
pid = os.fork()
if pid == 0:
    list(progress.track("abc"))
    os._exit(0)
os.waitpid(pid, 0)
os.write(write, b"end")
print(os.read(read, 100).decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "end\n"


# -- tqdm

CHILD = """
import io, json, pathlib, sys, threading, warnings
answer_file = pathlib.Path(sys.argv[1])
warnings.simplefilter("error")
from jupyter_tasks.worker import progress as module
reports, seen = [], {}
def bars():
    "Each bar's reports since the last call, by label."
    story = {}
    for report in reports:
        json.dumps(report, allow_nan=False)
        story.setdefault(report["label"], []).append([report["n"], report["total"], report["done"]])
    reports.clear()
    return story
def hook(min_interval_s=0):
    module.install_tqdm_hook()
    module.set_report(reports.append, min_interval_s)
"""


def in_child(script: str) -> dict[str, Any]:
    """Run `script` after CHILD in a new process: what it put into `seen`, and its text as seen["out"], ["err"]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "child.py")
        path.write_text(CHILD + textwrap.dedent(script) + "\nanswer_file.write_text(json.dumps(seen))\n")
        answer = Path(folder, "seen.json")
        done = subprocess.run(
            [sys.executable, str(path), str(answer)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return {**json.loads(answer.read_text()), "out": done.stdout.decode(), "err": done.stderr.decode()}


def test_tqdm_reports_whether_it_is_imported_before_or_after_the_hook() -> None:
    for before, after in [("import tqdm", ""), ("", "import tqdm")]:
        seen = in_child(
            f"""
            {before or "pass"}
            hook()
            hook()
            {after or "pass"}
            for _ in tqdm.tqdm("abc", desc="letters", mininterval=0):
                pass
            seen["bars"] = bars()
            seen["monitor"] = tqdm.tqdm.monitor_interval
            seen["threads"] = threading.active_count()
            """
        )
        assert seen["bars"]["letters"][0] == [0, 3, False]
        assert seen["bars"]["letters"][-1] == [3, 3, True]
        assert [1, 3, False] in seen["bars"]["letters"]
        assert (seen["monitor"], seen["threads"]) == (0, 1)
        assert "letters: 100%" in seen["err"]


def test_importing_the_module_or_installing_the_hook_imports_no_tqdm() -> None:
    seen = in_child('hook()\nseen["tqdm"] = "tqdm" in sys.modules')
    assert seen["tqdm"] is False


def test_a_running_monitor_thread_is_ended_by_the_hook() -> None:
    seen = in_child(
        """
        from tqdm import tqdm
        list(tqdm("abc"))
        seen["before"] = threading.active_count()
        hook()
        list(tqdm("abc"))
        seen["after"] = threading.active_count()
        """
    )
    assert (seen["before"], seen["after"]) == (2, 1)


def test_all_kinds_of_tqdm_report() -> None:
    seen = in_child(
        """
        hook()
        from tqdm import tqdm, trange
        for _ in trange(2, desc="trange"): pass
        bar = tqdm(total=5, desc="manual"); bar.update(2); bar.n = 4; bar.refresh()
        bar.set_description("renamed"); bar.close()
        seen["std"] = bars()

        import tqdm.auto, tqdm.asyncio, tqdm.contrib, asyncio
        for _ in tqdm.auto.tqdm("ab", desc="auto"): pass
        for _ in tqdm.auto.trange(2, desc="auto trange"): pass
        list(tqdm.contrib.tenumerate("ab", desc="tenumerate"))
        async def items():
            yield 1
            yield 2
        async def main():
            async for _ in tqdm.asyncio.tqdm(items(), desc="async"): pass
            await tqdm.asyncio.tqdm.gather(asyncio.sleep(0), desc="gather")
        asyncio.run(main())
        from tqdm.contrib.concurrent import thread_map
        seen["mapped"] = thread_map(str, range(3), max_workers=2, desc="thread_map")
        seen["contrib"] = bars()

        import tqdm.autonotebook, tqdm.notebook
        for _ in tqdm.autonotebook.tqdm("ab", desc="autonotebook"): pass
        for _ in tqdm.notebook.tqdm("ab", desc="notebook", ncols="100%", display=True, colour="green"): pass
        for _ in tqdm.notebook.tnrange(2, desc="tnrange"): pass
        bar = tqdm.notebook.tqdm_notebook(total=2, desc="by hand")
        bar.update(); bar.reset(total=3); bar.disp(bar_style="danger"); bar.close()
        seen["notebook"] = bars()
        seen["ipywidgets"] = "ipywidgets" in sys.modules

        try:
            import pandas
        except ImportError:
            seen["pandas"] = None
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tqdm.tqdm.pandas(desc="pandas")
            pandas.DataFrame({"a": [1, 2, 3]}).progress_apply(lambda row: row, axis=1)
            pandas.Series([1, 2]).progress_map(str)
            seen["pandas"] = bars()
        seen["threads"] = threading.active_count()
        """
    )
    assert seen["std"]["trange"][-1] == [2, 2, True]
    assert seen["std"]["renamed"][-1] == [4, 5, True]
    assert [4, 5, False] in seen["std"]["manual"]
    assert seen["mapped"] == ["0", "1", "2"]
    assert {name: states[-1] for name, states in seen["contrib"].items()} == {
        "auto": [2, 2, True],
        "auto trange": [2, 2, True],
        "tenumerate": [2, 2, True],
        "async": [2, None, True],
        "gather": [1, 1, True],
        "thread_map": [3, 3, True],
    }
    assert {name: states[-1] for name, states in seen["notebook"].items()} == {
        "autonotebook": [2, 2, True],
        "notebook": [2, 2, True],
        "tnrange": [2, 2, True],
        "by hand": [0, 3, True],
    }
    assert seen["ipywidgets"] is False
    assert seen["threads"] == 1
    if seen["pandas"] is not None:
        assert seen["pandas"]["pandas"][-1] == [2, 2, True]
        assert [3, 3, True] in seen["pandas"]["pandas"]


def test_notebook_bars_made_of_a_module_imported_before_the_hook_report_too() -> None:
    pytest.importorskip("ipywidgets")
    seen = in_child(
        """
        warnings.simplefilter("ignore")
        import tqdm.notebook
        class Mine(tqdm.notebook.tqdm):
            pass
        hook()
        hook()
        for _ in Mine("ab", desc="mine"): pass
        for _ in tqdm.notebook.tqdm("ab", desc="real"): pass
        seen["bars"] = bars()
        """
    )
    assert {name: states[-1] for name, states in seen["bars"].items()} == {
        "mine": [2, 2, True],
        "real": [2, 2, True],
    }
    assert "mine: 100%" in seen["out"]


def test_nested_bars_say_what_they_are_nested_in() -> None:
    seen = in_child(
        """
        hook()
        from tqdm import tqdm
        for _ in module.track("a", label="ours"):
            for _ in tqdm("ab", desc="outer"):
                for _ in tqdm("a", desc="inner", leave=False):
                    pass
            for _ in tqdm("a", desc="after"): pass
        seen["parents"] = sorted({(report["label"], next((other["label"] for other in reports
                                  if other["id"] == report["parent"]), None)) for report in reports}, key=str)
        seen["ids"] = len({report["id"] for report in reports})
        """
    )
    assert sorted(map(tuple, seen["parents"])) == [
        ("after", "ours"),
        ("inner", "outer"),
        ("ours", None),
        ("outer", "ours"),
    ]
    assert seen["ids"] == 5


def test_rate_unit_scale_and_start_are_tqdms() -> None:
    seen = in_child(
        """
        hook()
        from tqdm import tqdm
        bar = tqdm(total=10, desc="scaled", unit="B", unit_scale=1024, initial=4, mininterval=0)
        bar.update(3)
        bar.close()
        seen["last"] = reports[-1]
        reports.clear()
        bar = tqdm(total=2048, desc="metric", unit_scale=True)
        bar.update(1024)
        bar.close()
        seen["metric"] = bars()
        """
    )
    last = seen["last"]
    assert (last["n"], last["total"], last["unit"]) == (7 * 1024, 10 * 1024, "B")
    assert last["rate"] == pytest.approx(3 * 1024 / last["elapsed_s"], rel=0.5)
    assert seen["metric"]["metric"][-1] == [1024, 2048, True]


def test_text_is_tqdms_own_or_none_at_all_and_files_of_the_user_keep_it() -> None:
    script = """
        import tqdm, tqdm.notebook
        def use(where, **kwargs):
            options = dict(bar_format="{desc}{n}/{total}", mininterval=0, miniters=1, **kwargs)
            for _ in tqdm.tqdm("ab", desc=f"{where} outer", **options):
                tqdm.tqdm.write("written", file=kwargs.get("file", sys.stderr))
                for _ in tqdm.tqdm("a", desc="inner", leave=False, **options):
                    pass
            bar = tqdm.tqdm(total=2, desc="manual", **options)
            bar.update(); bar.clear(); bar.reset(); bar.set_postfix(a=1); bar.close()
        own = io.StringIO()
        """
    plain = in_child(script + 'use("err"); use("file", file=own); seen["own"] = own.getvalue()')
    shown = in_child(
        "hook()\n" + textwrap.dedent(script) + 'use("err"); use("file", file=own); seen["own"] = own.getvalue()'
    )
    hidden = in_child(
        "hook()\nmodule.show_tqdm_text(False)\n"
        + textwrap.dedent(script)
        + 'use("err"); use("out", file=sys.stdout); use("file", file=own); seen["own"] = own.getvalue()\n'
        + 'list(tqdm.tqdm("ab", "positional", None, True, sys.stderr)); list(tqdm.notebook.tqdm("ab"))\n'
        + 'seen["bars"] = sorted(bars())'
    )
    assert shown["err"] == plain["err"]
    assert shown["own"] == plain["own"] == hidden["own"]
    assert "err outer" in plain["err"]
    assert hidden["err"] == "written\n" * 2
    assert hidden["out"] == "written\n" * 2
    assert {"err outer", "out outer", "file outer", "inner", "manual", "positional"} <= set(hidden["bars"])


def test_disabled_and_delayed_bars_report_as_little_as_they_show() -> None:
    seen = in_child(
        """
        hook()
        from tqdm import tqdm
        list(tqdm("abc", desc="disabled", disable=True))
        list(tqdm("abc", desc="no terminal", disable=None))
        list(tqdm("abc", desc="delayed", delay=60))
        seen["bars"] = bars()
        """
    )
    assert seen["bars"] == {}


def test_the_interval_holds_for_tqdm_too_and_first_and_last_are_told() -> None:
    seen = in_child(
        """
        hook(min_interval_s=3600)
        from tqdm import tqdm
        list(tqdm(range(1000), desc="many", mininterval=0, miniters=1))
        seen["bars"] = bars()
        """
    )
    assert seen["bars"]["many"] == [[0, 1000, False], [1000, 1000, True]]


def test_a_failing_report_or_a_strange_bar_does_not_break_the_loop() -> None:
    seen = in_child(
        """
        hook()
        from tqdm import tqdm
        def fail(report):
            raise OSError
        module.set_report(fail, 0)
        seen["failing"] = list(tqdm("abc"))
        module.set_report(reports.append, 0)
        class Strange(tqdm):
            @property
            def format_dict(self):
                raise ValueError
            def display(self, *args, **kwargs):
                pass
        seen["strange"] = list(Strange("abc"))
        def interrupted():
            for _ in tqdm("abc", desc="cut"):
                raise KeyboardInterrupt
        try:
            interrupted()
        except KeyboardInterrupt:
            pass
        seen["cut"] = bars()["cut"][-1]
        import inspect
        seen["source"] = inspect.getsource(sys.modules["tqdm.std"])[:3]
        """
    )
    assert seen["failing"] == seen["strange"] == ["a", "b", "c"]
    assert seen["cut"] == [0, 3, True]
    assert seen["source"] == '"""'


def test_processes_that_a_task_forks_keep_their_bars_to_themselves() -> None:
    seen = in_child(
        """
        hook()
        warnings.simplefilter("ignore")
        import multiprocessing, os
        from tqdm import tqdm
        def work(i):
            list(tqdm("abc", desc="child"))
            return i
        if hasattr(os, "fork"):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                seen["done"] = list(tqdm(pool.imap(work, range(2)), total=2, desc="parent"))
        seen["bars"] = sorted(bars())
        """
    )
    assert seen["bars"] in (["parent"], [])
