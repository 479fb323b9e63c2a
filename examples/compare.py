"""Run star_survey.py on the standard package and, unmodified, on procession; compare answers and times.

    python examples/compare.py [--rounds N] [--method fork|spawn|forkserver] [other options of star_survey.py]

Exit status 1 if the answers differ or a run failed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = str(Path(__file__).resolve().parent / "star_survey.py")
IMPLEMENTATIONS = {"standard": [], "procession": ["-m", "procession"]}


def run(options, arguments):
    """The answer of one run, and the seconds of its stages and of the whole program."""
    began = time.perf_counter()
    command = [sys.executable, *options, PROGRAM, *arguments]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=300)
    whole = time.perf_counter() - began
    printed = json.loads(process.stdout)
    return printed["answer"], {**printed["seconds"], "whole program": whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    answers, seconds = {}, {name: [] for name in IMPLEMENTATIONS}
    print(f"star_survey.py on Python {platform.python_version()}, {options.rounds} rounds in turn", flush=True)
    for number in range(1, options.rounds + 1):
        for name, interpreter_options in IMPLEMENTATIONS.items():
            try:
                answer, stages = run(interpreter_options, arguments)
            except (subprocess.SubprocessError, ValueError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            print(f"  round {number}, {name:10} {stages['whole program']:6.2f} s   {answer['stars']} stars", flush=True)
            answers[json.dumps(answer)] = name
            seconds[name].append(stages)

    print(f"\n{'seconds (medians)':20}{'standard':>12}{'procession':>12}{'ratio':>8}")
    for stage in seconds["standard"][0]:
        standard, ours = (statistics.median(row[stage] for row in seconds[name]) for name in IMPLEMENTATIONS)
        print(f"{stage:20}{standard:12.2f}{ours:12.2f}{standard / ours:8.2f}")
    if len(answers) > 1:
        print("The answers differ:", *answers, sep="\n  ", file=sys.stderr)
        return 1
    print("\nBoth gave the same answer:", next(iter(answers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
