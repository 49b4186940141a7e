"""Measures one peer, in this process: `python peer.py NAME TASKS`. The last line of stdout is JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WORKERS = 2
ROUND_TRIPS = 1000
STOPS = 15


def noop(x: int) -> int:
    return x


def sleep_with_child(seconds: float, path: str) -> None:
    subprocess.Popen(["sleep", "60"])
    with open(path, "w") as file:
        file.write("in")
    time.sleep(seconds)


def sleep_in(seconds: float, path: str) -> None:
    with open(path, "w") as file:
        file.write("in")
    time.sleep(seconds)


def main(peer: str, tasks: int) -> dict[str, float]:
    return {
        "jupyter_tasks": jupyter_tasks,
        "multiprocessing.Pool": pool,
        "concurrent.futures": futures,
        "loky": loky,
        "pebble": pebble,
    }[peer](tasks)


def common(call: Callable[[int], Any], many: Callable[[int], Any], tasks: int) -> dict[str, float]:
    """Round trips and throughput, warmed up."""
    for i in range(200):
        call(i)
    times = []
    for i in range(ROUND_TRIPS):
        began = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - began)
    times.sort()
    many(2000)
    began = time.perf_counter()
    many(tasks)
    took = time.perf_counter() - began
    return {
        "p50_us": statistics.median(times) * 1e6,
        "p99_us": times[len(times) * 99 // 100] * 1e6,
        "per_s": tasks / took,
        "idle_mb": helper_memory(),
    }


def helper_memory() -> float:
    """PSS of all processes below this one, MB."""
    import psutil

    total = 0
    me = psutil.Process()
    for process in me.children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)
    os.unlink(path)


def jupyter_tasks(tasks: int) -> dict[str, float]:
    began = time.perf_counter()
    import jupyter_tasks as jt
    from jupyter_tasks.exceptions import TaskCancelledError

    jt.init(num_cpus=WORKERS)
    f = jt.remote(noop)
    jt.get(f.remote(0))
    cold = time.perf_counter() - began
    result = common(lambda i: jt.get(f.remote(i)), lambda n: jt.get([f.remote(i) for i in range(n)]), tasks)
    path = f"/tmp/jt-bench-{os.getpid()}"

    def stop(function: Any, **options: Any) -> float:
        times = []
        for _ in range(STOPS):
            ref = function.remote(60, path)
            wait_for(path)
            began = time.perf_counter()
            jt.cancel(ref, **options)
            try:
                jt.get(ref)
            except TaskCancelledError:
                times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e3

    result["soft_cancel_ms"] = stop(jt.remote(sleep_in))
    result["force_kill_ms"] = stop(jt.remote(sleep_with_child), force=True)
    jt.shutdown()
    return {"cold_ms": cold * 1e3, **result}


def pool(tasks: int) -> dict[str, float]:
    began = time.perf_counter()
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        pool.apply(noop, (0,))
        cold = time.perf_counter() - began

        def many(n: int) -> None:
            for result in [pool.apply_async(noop, (i,)) for i in range(n)]:
                result.get()

        return {"cold_ms": cold * 1e3, **common(lambda i: pool.apply(noop, (i,)), many, tasks)}


def futures(tasks: int) -> dict[str, float]:
    began = time.perf_counter()
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as executor:
        executor.submit(noop, 0).result()
        cold = time.perf_counter() - began
        return {"cold_ms": cold * 1e3, **by_executor(executor, tasks)}


def loky(tasks: int) -> dict[str, float]:
    began = time.perf_counter()
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=WORKERS)
    executor.submit(noop, 0).result()
    cold = time.perf_counter() - began
    result = {"cold_ms": cold * 1e3, **by_executor(executor, tasks)}
    executor.shutdown(kill_workers=True)
    return result


def by_executor(executor: Any, tasks: int) -> dict[str, float]:
    def many(n: int) -> None:
        for future in [executor.submit(noop, i) for i in range(n)]:
            future.result()

    return common(lambda i: executor.submit(noop, i).result(), many, tasks)


def pebble(tasks: int) -> dict[str, float]:
    began = time.perf_counter()
    from pebble import ProcessPool

    with ProcessPool(max_workers=WORKERS) as pool:
        pool.schedule(noop, args=(0,)).result()
        cold = time.perf_counter() - began

        def many(n: int) -> None:
            for future in [pool.schedule(noop, args=(i,)) for i in range(n)]:
                future.result()

        result = {"cold_ms": cold * 1e3, **common(lambda i: pool.schedule(noop, args=(i,)).result(), many, tasks)}
        path = f"/tmp/pebble-bench-{os.getpid()}"
        times = []
        for _ in range(STOPS):
            future = pool.schedule(sleep_in, args=(60, path))
            wait_for(path)
            began = time.perf_counter()
            future.cancel()
            pool.schedule(noop, args=(0,)).result()
            times.append(time.perf_counter() - began)
        result["force_kill_ms"] = statistics.median(times) * 1e3
        return result


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
