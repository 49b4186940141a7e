"""Speed side by side: every peer in a process of its own, the same work, two workers, one after another in one run.

    make bench                  all of it, a table and build/bench/results.json
    python benchmarks/run.py --peers jupyter_tasks,multiprocessing.Pool --rounds 1

Figures are medians over rounds; peers take turns within a round, so that a noisy minute hits all of them. Absolute
numbers drift with the machine, ratios hold.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
PEERS = ["jupyter_tasks", "multiprocessing.Pool", "concurrent.futures", "loky", "pebble"]
FIGURES = {
    "cold_ms": "cold start to first result, ms",
    "p50_us": "no-op round trip p50, us",
    "p99_us": "no-op round trip p99, us",
    "per_s": "20,000 no-ops, tasks/s",
    "idle_mb": "memory of all helper processes (PSS), MB",
    "soft_cancel_ms": "soft cancel of a sleep p50, ms",
    "force_kill_ms": "force kill of a worker with a child p50, ms",
}
HIGHER_IS_BETTER = {"per_s"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default=",".join(PEERS), help=f"comma-separated; default: {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each peer is measured (default 5)")
    parser.add_argument("--tasks", type=int, default=20_000, help="no-ops for the throughput (default 20000)")
    args = parser.parse_args()
    peers = args.peers.split(",")
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for round_number in range(args.rounds):
        for peer in peers:
            print(f"round {round_number + 1} of {args.rounds}: {peer} ...", file=sys.stderr, flush=True)
            result = measure(peer, args.tasks)
            if result is not None:
                runs[peer].append(result)
    medians = {peer: median(results) for peer, results in runs.items() if results}
    print(table(medians))
    target = HERE.parent / "build" / "bench"
    target.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "system": platform.platform()}
    (target / "results.json").write_text(json.dumps({"machine": machine, "medians": medians, "runs": runs}, indent=1))
    print(f"\nAll figures: {target / 'results.json'}")
    return 0


def measure(peer: str, tasks: int) -> dict[str, float] | None:
    command = [sys.executable, str(HERE / "peer.py"), peer, str(tasks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    if done.returncode:
        print(f"  {peer} failed", file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(results: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in results) for key in FIGURES if all(key in r for r in results)}


def table(medians: dict[str, dict[str, Any]]) -> str:
    """One row a figure, one column a peer, and how we stand against the best of the others."""
    width = max(len(text) for text in FIGURES.values()) + 2
    lines = ["".ljust(width) + "".join(peer.rjust(22) for peer in medians) + "vs best peer".rjust(15)]
    for key, text in FIGURES.items():
        cells = [f"{m[key]:,.1f}" if key in m else "-" for m in medians.values()]
        others = [m[key] for peer, m in medians.items() if peer != "jupyter_tasks" and key in m]
        ours = medians.get("jupyter_tasks", {}).get(key)
        best = (max if key in HIGHER_IS_BETTER else min)(others) if others else None
        ratio = f"{ours / best:.2f}x" if ours is not None and best else "-"
        lines.append(text.ljust(width) + "".join(cell.rjust(22) for cell in cells) + ratio.rjust(15))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
