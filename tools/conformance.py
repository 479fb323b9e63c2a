"""Run the standard package's own tests on procession, and judge the outcome by docs/conformance.md.

    conformance.py [--part] [--python PYTHON ...] [--tests-from FOLDER] [--suite SUITE] [--start-method METHOD]
                   [--match PATTERN ...] [--jobs N] [--json FILE]

All of them, on the interpreter that runs this and on one of each further version that tools/interpreters.py finds, or
on those that --python names. --part runs some quick classes, on the first of them alone.

The tool that runs the tests is outside this repository, in the folder that SHARED names, and the tests are those that
are installed with the interpreter. Some installations lack test_concurrent_futures: --tests-from, or the variable
TESTS_FROM, names a folder that has it, such as Lib/test of CPython's source, or /usr/lib/python3.11/test of Debian's
libpython3.11-testsuite, which goes with 3.12, too. What is left out is said, and why.

A test counts when the standard package passes it, each time, on the same version. Those that procession does not pass
are listed with their reasons in docs/conformance.md: any other that fails, or does not run, makes the exit status 1,
and so does a version of whose tests less than 98 % pass.
"""

import argparse
import collections
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import interpreters

TOP = Path(__file__).resolve().parents[1]
TOOL = Path(os.environ.get("SHARED", TOP.parent / "shared"), "conformance").resolve()
SUITES = ("mp", "futures", "extra")
METHODS = ("fork", "spawn", "forkserver")
LEAST_SHARE = 0.98

PART = [f"WithProcessesTest{name}." for name in ("Queue", "Lock", "Semaphore", "Event", "Connection", "Process")]
PART += [f"WithProcessesTest{name}." for name in ("Listener", "PicklingConnections", "SharedCTypes", "SharedMemory")]
PART += [f"WithManagerTest{name}." for name in ("Containers", "MyManager", "RemoteManager")]
PART += ["TestSimpleQueue.", "TestWait."]

# Asked of an interpreter: its version, whether it has the package, and which of the tests that it may lack.
ABOUT = """
import importlib.util, json, os, platform, test
has = {name for folder in test.__path__ for name in os.listdir(folder)}
print(json.dumps({
    "version": platform.python_version(),
    "package": importlib.util.find_spec("procession") is not None,
    "tests": "_test_multiprocessing.py" in has,
    "futures": bool(has & {"test_concurrent_futures", "test_concurrent_futures.py"}),
}))
"""


def leave_out(what, why):
    print(f"conformance: left out {what}: {why}", flush=True)


def about(python):
    asked = subprocess.run([python, "-I", "-c", ABOUT], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return json.loads(asked.stdout) if asked.returncode == 0 else None


def baseline_for(version):
    """What the standard package does on this version, or on the newest other patch of it; None without."""
    exact = TOOL / "baseline" / f"stdlib-{version}.json"
    if exact.exists():
        return exact
    minor = version.rpartition(".")[0]
    found = (TOOL / "baseline").glob(f"stdlib-{minor}.*.json")
    return max(found, key=lambda path: int(path.stem.rpartition(".")[2]), default=None)


def remaining():
    """What docs/conformance.md lists: pattern and start methods of each test."""
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \| \S", (TOP / "docs/conformance.md").read_text(), re.M)
    return [(pattern, {method.strip() for method in methods.split(",")}) for pattern, methods in rows]


def is_listed(test, listed):
    method, _, name = test.partition(":")
    return any(fnmatch.fnmatchcase(name, pattern) and methods & {"all", method} for pattern, methods in listed)


class Outcome:
    """What the tests of one version came to."""

    def __init__(self, version, results, baseline, whole):
        self.version = version
        known = baseline["tests"].items()
        passes = {name: test for name, test in known if test["outcome"] == "passed" and "flaky" not in test}
        # A whole run is to have all tests; what it lacks got lost on the way.
        same = results["python"] == baseline["python"]
        lacking = {name for name in passes if name not in results["tests"]} if whole and same else set()
        if not any(test["suite"] == "futures" for test in results["tests"].values()):
            lacking = {name for name in lacking if passes[name]["suite"] != "futures"}
        counted = (passes.keys() & results["tests"].keys()) | lacking
        # Fixtures of classes have no place in the baseline unless they fail there: their failures count, too.
        failing = set(results["regressions"]) | lacking
        listed = remaining()
        self.unlisted = sorted(name for name in failing if not is_listed(name, listed))
        self.passing = sorted(name for name in counted - failing if is_listed(name, listed))
        self.rows = collections.defaultdict(lambda: [0, 0])
        for name in counted:
            row = self.rows[passes[name]["suite"], name.partition(":")[0]]
            row[0] += 1
            row[1] += name not in failing
        self.counted, self.passed = (sum(row[place] for row in self.rows.values()) for place in (0, 1))
        self.is_enough = not whole or self.passed >= LEAST_SHARE * self.counted

    def table(self):
        """Rows of Markdown, as in docs/conformance.md."""
        order = [(suite, method) for suite in SUITES for method in (*METHODS, "any")]
        for suite, method in (key for key in order if key in self.rows):
            yield (self.version, suite, method, *self.rows[suite, method])
        yield (self.version, "all", "", self.counted, self.passed)


def run_on(python, options):
    """The outcome on one interpreter, the tool's exit status if it could not run, or None with a word why not."""
    facts = about(python)
    if not facts or not facts["tests"]:
        return leave_out(python, "it has no tests of multiprocessing installed")
    version = facts["version"]
    baseline_file = baseline_for(version)
    if not baseline_file:
        return leave_out(f"Python {version}", "there is no baseline of it, what the standard package passes")
    print(f"\nPython {version}", flush=True)

    patterns = options.match or (PART if options.part else [])
    suite = options.suite or ("mp" if patterns else "all")
    if suite in ("all", "futures") and not facts["futures"]:
        if not options.tests_from:
            why = f"{python} has no test_concurrent_futures (make TESTS_FROM=folder, see CONTRIBUTING.md)"
            leave_out(f"futures on Python {version}", why)
            if suite == "futures":
                return None
        elif not any(Path(options.tests_from).glob("test_concurrent_futures*")):
            sys.exit(f"conformance: {options.tests_from} has no test_concurrent_futures")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(f"{options.json}-{version}.json" if options.json else f"{folder}/results.json")
        command = [
            *(sys.executable, str(TOOL / "conformance.py"), "--impl", "procession", "--python", python),
            *("--suite", suite, "--start-method", options.start_method, "--retries", "1", "--jobs", options.jobs),
            *("--timeout", options.timeout, "--baseline", str(baseline_file), "--json", str(file)),
            *(f"--match={pattern}" for pattern in patterns),
        ]
        if not facts["package"]:  # The extension serves all versions, and stands beside the Python files.
            command += ["--path", str(TOP / "python")]
        if options.tests_from:
            command += ["--tests-from", options.tests_from]
        # With cloudpickle, pools send what these tests expect them to refuse.
        hidden = Path(folder, "cloudpickle")
        hidden.mkdir()
        (hidden / "__init__.py").write_text("raise ImportError('not for these tests')\n")
        command += ["--path", folder]
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status not in (0, 1):
            return status
        results = json.loads(file.read_text())
    whole = suite == "all" and not patterns and options.start_method == "all"
    return Outcome(version, results, json.loads(baseline_file.read_text()), whole)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="store_true", help="some quick classes only, on one interpreter")
    parser.add_argument("--python", action="append", help="this interpreter only (repeatable)")
    parser.add_argument("--tests-from", metavar="FOLDER", default=os.environ.get("TESTS_FROM"))
    parser.add_argument("--start-method", default="all")
    parser.add_argument("--suite", choices=SUITES, help="one suite only")
    parser.add_argument("--match", action="append", metavar="PATTERN", help="these tests only (repeatable)")
    parser.add_argument("--timeout", default="60")
    parser.add_argument("--jobs", default="2", help="classes run at once")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE-VERSION.json")
    options = parser.parse_args()
    if not (TOOL / "conformance.py").exists():
        leave_out("all", f"there is no {TOOL}")
        return 0

    pythons = options.python or [sys.executable]
    if not (options.python or options.part):
        pythons += interpreters.found({sys.version_info[:2]}).values()
    outcomes = []
    for python in pythons:
        outcome = run_on(python, options)
        if isinstance(outcome, int):
            return outcome
        if outcome:
            outcomes.append(outcome)

    print("\n| Python | suite | start method | count | pass | of them |\n| --- | --- | --- | --- | --- | --- |")
    for outcome in outcomes:
        for version, suite, method, counted, passed in outcome.table():
            share = 100 * passed / max(1, counted)
            print(f"| {version} | {suite} | {method} | {counted} | {passed} | {share:.1f} % |")
    for outcome in outcomes:
        for title, names in [("listed, and passed", outcome.passing), ("not listed, and not passed", outcome.unlisted)]:
            if names:
                print(f"{outcome.version}, {title}:", *names, sep="\n  ")
        if not outcome.is_enough:
            print(f"{outcome.version}: less than {LEAST_SHARE:.0%} of what the standard package passes")
    return 1 if any(outcome.unlisted or not outcome.is_enough for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
