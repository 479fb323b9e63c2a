"""The speed of procession beside that of the standard package, on the same work.

    python benches/side_by_side.py [--only TEXT] [--rounds N] [--quick] [--json FILE] [--list] [--check]

Each measurement runs in a fresh interpreter, where one of the two packages is imported by its name and the other isn't
there at all. The two take turns in every round, so that what else the machine does falls on both. What is printed are
medians over the rounds and their ratio: above 1, procession is faster (or smaller). A workload checks its own result.

Exit status 1 if a measurement failed; with --check also if a target was missed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import WORKLOADS

HERE = Path(__file__).resolve().parent
NOT_SLOWER = 0.95
SCALES = {"ns": 1e9, "us": 1e6, "ms": 1e3}


class Failed(Exception):
    """A measurement that gave no figure; says why."""


def measure(implementation, workload, count, limit):
    """The figure of one measurement, in the workload's unit."""
    command = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), implementation, workload.name, str(count)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        raise Failed(f"no end in {limit} s") from None
    if process.returncode:
        raise Failed((err.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    value = float(out)
    return value if workload.unit == "MB" else value / count * SCALES[workload.unit]


def compare(workload, sides, rounds, quick, limit):
    """The figures of both sides over all rounds, or why there are none."""
    count = workload.quick if quick else workload.count
    figures = {side: [] for side in sides}
    for number in range(rounds):
        # Who comes first changes from round to round.
        for side in list(figures) if number % 2 == 0 else list(figures)[::-1]:
            try:
                figures[side].append(measure(sides[side], workload, count, limit))
            except Failed as failure:
                return {"failed": f"{sides[side]}: {failure}"}
    standard, ours = (statistics.median(figures[side]) for side in ("standard", "ours"))
    ratios = [a / b for a, b in zip(figures["standard"], figures["ours"], strict=True)]
    return {
        "standard": standard,
        "ours": ours,
        "ratio": standard / ours,
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "rounds": figures,
        "count": count,
    }


def verdict(workload, ratio):
    """Whether the target is met. 1 means "not slower", and two runs of the same thing differ by a few per cent."""
    if workload.target is None:
        return "slower" if ratio < NOT_SLOWER else ""
    return "met" if ratio >= (NOT_SLOWER if workload.target == 1 else workload.target) else "missed"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row(workload, result):
    if "failed" in result:
        return f"{workload.title:48} failed: {result['failed']}"
    target = "" if workload.target is None else f">= {workload.target:g}"
    spread = f"{result['lowest_ratio']:.1f}..{result['highest_ratio']:.1f}"
    return (
        f"{workload.title:48} {number(result['standard']):>9} {number(result['ours']):>9} {workload.unit:2} "
        f"{result['ratio']:7.2f} {spread:>13} {target:>7}  {verdict(workload, result['ratio'])}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="workloads with this in their name")
    parser.add_argument("--rounds", type=int, help="rounds of each workload (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="less work, one round")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="of one measurement")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target was missed")
    parser.add_argument("--standard", default="multiprocessing", help="the package to compare with")
    parser.add_argument("--ours", default="procession", help="the package that is measured")
    options = parser.parse_args()

    chosen = [w for w in WORKLOADS.values() if not options.only or any(text in w.name for text in options.only)]
    if options.list:
        for workload in chosen:
            print(f"{workload.name:32} {workload.title}")
        return 0
    rounds = options.rounds or (1 if options.quick else 5)
    sides = {"standard": options.standard, "ours": options.ours}
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}")
    print(f"{'':48} {'standard':>9} {'ours':>9}    {'ratio':>7} {'rounds':>13} {'target':>7}")
    began = time.monotonic()
    results = {}
    for workload in chosen:
        results[workload.name] = result = compare(workload, sides, rounds, options.quick, options.limit)
        print(row(workload, result), flush=True)

    failed = [name for name, result in results.items() if "failed" in result]
    verdicts = [
        verdict(workload, results[workload.name]["ratio"]) for workload in chosen if workload.name not in failed
    ]
    missed = verdicts.count("missed") + verdicts.count("slower")
    print(
        f"{verdicts.count('met')} targets met, {verdicts.count('missed')} missed; {verdicts.count('slower')} of the "
        f"others slower than the standard package; {len(failed)} failed; {time.monotonic() - began:.0f} s"
    )
    if options.json:
        about = {"python": platform.python_version(), "cores": os.cpu_count(), **sides}
        Path(options.json).write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    return 1 if failed or (options.check and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
