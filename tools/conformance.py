"""Run the standard package's own tests on procession, and judge the outcome by docs/conformance.md.

    conformance.py [--part] [--python PYTHON] [--start-method METHOD] [--match PATTERN ...] [--json FILE]

The tool that runs them is outside this repository, in the folder that SHARED names, and the tests are those installed
with the interpreter; what is missing is said. A test counts when the standard package passes it. Those that procession
does not pass are listed with their reasons in docs/conformance.md: any other that fails makes the exit status 1, and so
does less than nine tenths of what the standard package passes.
"""

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
TOOL = Path(os.environ.get("SHARED", TOP.parent / "shared"), "conformance").resolve()
LEAST_SHARE = 0.9

# The classes of what there is so far, processes and threads (the managers' variants come with the managers).
VARIANTS = ("WithProcessesTest", "WithThreadsTest")
PAIRED = ("Process", "Queue", "Lock", "Semaphore", "Condition", "Event", "Barrier", "Connection", "Poll", "Pool")
MATCH = [
    *(f"{variant}{name}." for variant in VARIANTS for name in PAIRED),
    *(f"{VARIANTS[0]}{name}." for name in ("SubclassingProcess", "PoolWorkerErrors", "PoolWorkerLifetime", "AtExit")),
    *("TestSimpleQueue.", "TestWait.", "TestPoolNotLeakOnFailure.", "TestStartMethod.", "TestInvalidHandle."),
    *("TestCloseFds.", "TestFlags.", "TestNoForkBomb.", "TestIgnoreEINTR.", "TestStdinBadfiledescriptor."),
]
PART = [f"WithProcessesTest{name}." for name in ("Queue", "Lock", "Semaphore", "Event", "Connection", "Process")]
PART += ["TestSimpleQueue.", "TestWait."]


def leave_out(why):
    print(f"conformance left out: {why}")
    sys.exit(0)


def remaining():
    """What docs/conformance.md lists: pattern and start methods of each test."""
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \| \S", (TOP / "docs/conformance.md").read_text(), re.M)
    return [(pattern, {method.strip() for method in methods.split(",")}) for pattern, methods in rows]


def is_listed(test, listed):
    method, _, name = test.partition(":")
    return any(fnmatch.fnmatchcase(name, pattern) and methods & {"all", method} for pattern, methods in listed)


def baseline_for(python):
    """The tests that the standard package passes on a version as near as there is one; None without."""
    code = "import platform, test._test_multiprocessing; print(platform.python_version())"
    asked = subprocess.run([python, "-I", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if asked.returncode:
        leave_out(f"{python} has no tests of multiprocessing installed")
    minor = asked.stdout.strip().rpartition(".")[0]
    found = sorted((TOOL / "baseline").glob(f"stdlib-{minor}.*.json"))
    return found[-1] if found else leave_out(f"there is no baseline of Python {minor}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="store_true", help="the quick classes only, and no futures")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--start-method", default="all")
    parser.add_argument("--suite", choices=["mp", "futures"], help="one suite only")
    parser.add_argument("--match", action="append", help="other tests than those of this version")
    parser.add_argument("--timeout", default="60")
    parser.add_argument("--json", metavar="FILE", help="write the results of each suite to FILE-SUITE.json")
    options = parser.parse_args()
    if not (TOOL / "conformance.py").exists():
        leave_out(f"there is no {TOOL}")
    baseline_file = baseline_for(options.python)
    baseline = json.loads(baseline_file.read_text())["tests"]

    suites = {"mp": options.match or (PART if options.part else MATCH)}
    if not options.part and not options.match:
        suites["futures"] = []
    if options.suite:
        suites = {options.suite: suites.get(options.suite, options.match or [])}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for suite, patterns in suites.items():
            file = Path(f"{options.json}-{suite}.json" if options.json else f"{folder}/{suite}.json")
            command = [
                *(sys.executable, str(TOOL / "conformance.py"), "--impl", "procession", "--python", options.python),
                *("--suite", suite, "--start-method", options.start_method, "--retries", "1"),
                *("--timeout", options.timeout, "--baseline", str(baseline_file), "--json", str(file)),
                *(f"--match={pattern}" for pattern in patterns),
            ]
            status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
            if status not in (0, 1):
                return status
            results |= json.loads(file.read_text())["tests"]

    counted = {name for name in results if baseline.get(name, {}).get("outcome") == "passed"}
    failing = {name for name in counted if results[name]["outcome"] != "passed" and "flaky" not in baseline[name]}
    listed = remaining()
    unlisted = sorted(name for name in failing if not is_listed(name, listed))
    passing = sorted(name for name in counted - failing if is_listed(name, listed))
    share = 1 - len(failing) / max(1, len(counted))
    print(f"\n{len(counted) - len(failing)} of {len(counted)} that the standard package passes: {share:.1%}")
    for title, names in [("listed, and passed", passing), ("not listed, and not passed", unlisted)]:
        if names:
            print(f"{title}:", *names, sep="\n  ")
    return 1 if unlisted or share < LEAST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
