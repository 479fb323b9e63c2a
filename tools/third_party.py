"""Run libraries that use multiprocessing on the standard package and on procession, and judge by docs/compatibility.md.

    third_party.py [--only NAME ...] [--beside] [--times] [--list]

What is run is listed in tests/third_party/libraries.toml: tests that a library ships, or a program of ours that uses it
as its documentation shows. All is installed by the pins of tests/third_party/requirements.txt. Two environments see the
same libraries: in one, `multiprocessing` is the standard package; in the other it is procession, for each program and
all that it starts.

A test or program counts when it passes on the standard package. Those that don't pass on procession are listed with
their reasons in docs/compatibility.md: any other makes the exit status 1. With `--beside` the programs say
`import procession as multiprocessing`, and the libraries go on with the standard package.
"""

import argparse
import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "tests/third_party"
PROGRAMS = FOLDER / "programs"
PLACE = TOP / "target/third-party"
PAGE = TOP / "docs/compatibility.md"
# Of one run, unless the list says more.
SECONDS = 180
# A test that passes on the standard package is tried so often on procession: some fail now and then on either.
TRIES = 3
# A program that ends without having passed, or a test that says neither.
ENDED = "ended early"


class Environment:
    """A virtual environment, and what `multiprocessing` means in it."""

    def __init__(self, name):
        self.folder = PLACE / name
        self.python = self.folder / "bin/python"

    def site(self):
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(subprocess.check_output([self.python, "-c", code], text=True).strip())

    def run(self, arguments, folder, seconds, **options):
        """Run Python; returns its exit status, or None if time was over. Nothing that it started is left."""
        variables = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON_COLORS": "0",
            "PY_COLORS": "0",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        started = subprocess.Popen(
            [str(self.python), *arguments],
            cwd=folder,
            env=kept | variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
        try:
            return started.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            try:
                os.killpg(started.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            started.wait()


STANDARD, OURS, BESIDE = Environment("standard"), Environment("procession"), Environment("beside")


def pip(*arguments):
    subprocess.run([STANDARD.python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def prepare(wheel):
    """Make the environments: the libraries are in the standard one, the others look there as well."""
    pins = FOLDER / "requirements.txt"
    installed = PLACE / "standard/installed.txt"
    if not installed.exists() or installed.read_text() != pins.read_text():
        print("installing the libraries", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", STANDARD.folder], check=True)
        pip("install", "--no-deps", "-r", pins)
        installed.write_text(pins.read_text())
    for environment in (OURS, BESIDE):
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", environment.folder], check=True)
        pip("install", "--no-deps", "--target", environment.site(), wheel)
        # Not as a mere folder: libraries have files there that are run at the start, too.
        Path(environment.site(), "libraries.pth").write_text(
            f"import site; site.addsitedir({str(STANDARD.site())!r})\n"
        )
        take_scripts(environment)
    subprocess.run([OURS.python, "-m", "procession", "enable"], check=True, stdout=subprocess.DEVNULL)
    for environment, meant in ((STANDARD, "multiprocessing"), (BESIDE, "multiprocessing"), (OURS, "procession")):
        code = "import multiprocessing.queues; print(multiprocessing.queues.__file__)"
        found = Path(subprocess.check_output([environment.python, "-c", code], text=True))
        assert found.parent.name == meant, f"{environment.folder} takes multiprocessing from {found}"


def take_scripts(environment):
    """Have the libraries' commands run in an environment: each names the interpreter of the one it was installed in."""
    for script in STANDARD.python.parent.iterdir():
        copy = environment.python.parent / script.name
        if script.is_file() and not copy.exists() and script.read_bytes()[:2] == b"#!":
            _, _, rest = script.read_text().partition("\n")
            copy.write_text(f"#!{environment.python}\n{rest}")
            copy.chmod(0o755)


def sources(library, version):
    """The folder of a library's source distribution."""
    folder = PLACE / "sources"
    wanted = f"{library.lower().replace('-', '_')}-{version}"
    if not (folder / wanted).exists():
        with tempfile.TemporaryDirectory() as place:
            pip("download", "--no-deps", "--no-binary", ":all:", "--dest", place, f"{library}=={version}")
            (archive,) = Path(place).iterdir()
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
            folder.mkdir(exist_ok=True)
            (unpacked,) = (path for path in Path(place).iterdir() if path.is_dir())
            shutil.move(unpacked, folder / wanted)
    configurations = [folder / wanted / name for name in ("pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml")]
    if not any(file.exists() and "pytest" in file.read_text() for file in configurations):
        # Else pytest would go up until it found that of this repository.
        configurations[0].write_text("[pytest]\n")
    return folder / wanted


def version_of(library):
    pins = (FOLDER / "requirements.txt").read_text()
    return re.search(rf"^{re.escape(library)}==(\S+)", pins, re.MULTILINE | re.IGNORECASE)[1]


def run_tests(entry, environment, names=()):
    """Run a library's tests with pytest; returns which passed, by the names of all that passed or failed."""
    folder = sources(entry["library"], version_of(entry["library"]))
    report = PLACE / f"reports/{entry['name']}-{environment.folder.name}.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    chosen = [argument for name in names for argument in ("-k", name)]
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "--timeout=60", "--timeout-method=signal"]
    command += [f"--junitxml={report}", *entry.get("arguments", ()), *chosen, *entry["tests"]]
    with open(report.with_suffix(".txt"), "w") as out:
        environment.run(command, folder, entry.get("seconds", SECONDS), stdout=out, stderr=subprocess.STDOUT)
    if not report.exists():
        return {ENDED: False}
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case}
        if "skipped" not in outcomes:
            name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
            results[name] = results.get(name, True) and outcomes.isdisjoint({"failure", "error"})
    return results


def run_program(entry, environment, folder):
    """Run a program of ours; returns its exit status and what it printed."""
    report = PLACE / f"reports/{entry['name']}-{environment.folder.name}.txt"
    report.parent.mkdir(exist_ok=True)
    with open(report, "w") as out, open(report.with_suffix(".err"), "w") as errors:
        status = environment.run(
            [folder / f"{entry['name']}.py"], folder, entry.get("seconds", SECONDS), stdout=out, stderr=errors
        )
    return status, report.read_text()


def with_procession(folder):
    """The programs as a user changes them who imports procession by name."""
    for program in PROGRAMS.glob("*.py"):
        text = re.sub(
            r"^( *)import multiprocessing\b", r"\1import procession as multiprocessing", program.read_text(), flags=re.M
        )
        Path(folder, program.name).write_text(text)


def compare(entry, environment, folder):
    """Run on both; returns how many passed on each, and the names of those that only the standard package passes."""
    if "tests" in entry:
        standard, ours = run_tests(entry, STANDARD), run_tests(entry, environment)
        for _ in range(TRIES - 1):
            again = [name for name, passed in standard.items() if passed and not ours.get(name)]
            if not again or len(again) > 10:
                break
            names = " or ".join(sorted({re.split(r"[.\[]", name)[1] for name in again}))
            retried = run_tests(entry, environment, [names])
            ours |= {name: True for name in again if retried.get(name)}
        counted = {name for name, passed in standard.items() if passed}
        return len(counted), sum(ours.get(name, False) for name in counted), {n for n in counted if not ours.get(n)}
    expected = run_program(entry, STANDARD, PROGRAMS)
    if expected[0] != 0:
        return 0, int(run_program(entry, environment, folder)[0] == 0), set()
    for _ in range(TRIES):
        if run_program(entry, environment, folder) == expected:
            return 1, 1, set()
    return 1, 0, {f"program, {environment.folder.name}"}


def times():
    """Print what tests/third_party/times.py measures in both environments."""
    found = []
    for environment in (STANDARD, OURS):
        report = PLACE / f"reports/times-{environment.folder.name}.txt"
        report.parent.mkdir(exist_ok=True)
        with open(report, "w") as out:
            environment.run([FOLDER / "times.py"], FOLDER, 10 * SECONDS, stdout=out)
        found.append(dict(line.split("\t") for line in report.read_text().splitlines()))
    print("| | standard, ms | procession, ms |\n| --- | --- | --- |")
    for name, standard in found[0].items():
        print(f"| {name} | {standard} | {found[1].get(name, '')} |")


def listed():
    """What docs/compatibility.md says doesn't pass: pairs of patterns, of an entry and of a test."""
    return re.findall(r"^\| `([^`|]+)` \| `([^`|]+)` \| \S", PAGE.read_text(), re.M)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="some entries of the list alone")
    parser.add_argument("--beside", action="store_true", help="the programs, beside the standard package")
    parser.add_argument("--times", action="store_true", help="measure by times.py, and nothing else")
    parser.add_argument("--wheel", type=Path, help="the wheel of procession; the newest of target/wheels by default")
    parser.add_argument("--as-is", action="store_true", help="in the environments as the last run left them")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args()
    entries = tomllib.loads((FOLDER / "libraries.toml").read_text())["run"]
    if options.list:
        for entry in entries:
            print(entry["name"], "-", entry["what"])
        return 0
    if options.only:
        entries = [entry for entry in entries if any(fnmatch.fnmatch(entry["name"], name) for name in options.only)]
    if options.beside:
        entries = [entry for entry in entries if "tests" not in entry and not entry.get("apart")]
    if not entries:
        sys.exit("nothing of that name: see --list")
    PLACE.mkdir(parents=True, exist_ok=True)
    if not options.as_is:
        wheels = sorted((TOP / "target/wheels").glob("*.whl"), key=os.path.getmtime)
        if not options.wheel and not wheels:
            sys.exit("there is no wheel in target/wheels: make third-party builds it")
        prepare(options.wheel or wheels[-1])
    if options.times:
        return times()

    known, unlisted, stale = listed(), [], []
    kind = "beside" if options.beside else "procession"
    print(f"| library | version | what ran | standard | {kind} |\n| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.beside:
            with_procession(folder)
        for entry in entries:
            place = Path(folder) if options.beside else PROGRAMS
            begun = time.monotonic()
            on_standard, on_ours, missing = compare(entry, BESIDE if options.beside else OURS, place)
            library = entry["library"]
            print(f"| {library} | {version_of(library)} | {entry['what']} | {on_standard} | {on_ours} |", flush=True)
            if os.environ.get("VERBOSE"):
                print(f"  {time.monotonic() - begun:.0f} s", flush=True)
            mine = [(name, test) for name, test in known if fnmatch.fnmatchcase(entry["name"], name)]
            unlisted += [
                f"{entry['name']}: {test}"
                for test in sorted(missing)
                if not any(fnmatch.fnmatchcase(test, pattern) for _, pattern in mine)
            ]
            stale += [
                f"{name}: {pattern}"
                for name, pattern in mine
                if not fnmatch.filter(missing, pattern) and options.beside == pattern.endswith(", beside")
            ]
    for title, names in (("not listed, and not passed", unlisted), ("listed, and passed", stale)):
        if names:
            print(f"{title}:", *names, sep="\n  ")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
