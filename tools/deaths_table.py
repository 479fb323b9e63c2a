"""Try what tests/deaths/catalogue.py lists on the standard package, its peers and procession: docs/reliability.md.

    deaths_table.py [--only ROW ...] [--peer NAME ...] [--show] [--jobs N]

Each cell of the table is a program (tools/deaths) in an interpreter and a session of its own, with a limit of time;
what it has started is killed after. The peers are installed into target/deaths-venv, by the pins of tools/deaths. What
was found is kept there: with `--only` or `--peer` the rest of the table is as it was found last. `--show` merely prints
it.
Exit status 1: a cell of procession has no answer.
"""

import argparse
import fnmatch
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "tools/deaths"
PLACE = TOP / "target/deaths-venv"
PYTHON = PLACE / "bin/python"
FOUND = PLACE / "found.json"
PAGE = TOP / "docs/reliability.md"
BEGIN, END = "<!-- deaths-table: begin -->", "<!-- deaths-table: end -->"
# Of one cell. Each waits for answers, for 20 s at most, a few times.
SECONDS = 150
MARKS = {"good": "✓", "poor": "~", "hangs": "✗", "none": "-"}

sys.path[:0] = [str(TOP / "tests/deaths"), str(TOP / "tools")]

from catalogue import GROUPS, ROWS  # noqa: E402
from deaths.peers import PEERS  # noqa: E402


def prepare():
    """Make the environment: the peers, and procession as it is built."""
    pins = FOLDER / "requirements.txt"
    installed = PLACE / "installed.txt"

    def pip(*arguments):
        command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *arguments]
        subprocess.run(command, check=True)

    if not installed.exists() or installed.read_text() != pins.read_text():
        print("installing the peers", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
        pip("--no-deps", "-r", pins)
        installed.write_text(pins.read_text())
    (wheel,) = TOP.glob("target/wheels/*.whl")
    pip("--no-deps", "--force-reinstall", wheel)


def of_session(session):
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            yield int(entry)


def end(started):
    """Kill a cell and all that it started, until nothing is left."""
    while left := list(of_session(started.pid)):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if started.poll() is None:
            started.wait()


def answer(peer, row):
    """What a cell says, as a verdict and words."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile("w+") as output:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        started = subprocess.Popen(
            [PYTHON, "-W", "ignore", FOLDER / "cell.py", peer, row],
            cwd=place,
            env=kept | {"TMPDIR": place, "PYTHONPATH": str(TOP / "tools")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            started.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return "hangs", "hangs"
        finally:
            end(started)
        output.seek(0)
        lines = output.read().splitlines()
    for line in reversed(lines):
        try:
            verdict, text = json.loads(line)
            return verdict, text
        except ValueError:
            continue
    last = next((line for line in reversed(lines) if line.strip()), f"exit status {started.returncode}")
    return "poor", f"the program fails: {last.strip()[:80]}"


def versions():
    pins = dict(line.split("==") for line in (FOLDER / "requirements.txt").read_text().split() if "==" in line)
    known = {name.lower(): version for name, version in pins.items()}
    return {name: known.get(name, "") for name in PEERS}


def table(found):
    known = versions()
    titles = [f"{cls.name} {known[name]}".strip() for name, cls in PEERS.items()]
    lines = []
    for group, rows in GROUPS.items():
        lines += [f"### {group}", "", f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
        for row, title in rows.items():
            cells = [found.get(f"{peer} {row}") for peer in PEERS]
            if any(cells):
                texts = [f"{MARKS[cell[0]]} {cell[1]}".replace("|", "/") if cell else "" for cell in cells]
                lines.append(f"| {title} | {' | '.join(texts)} |")
        lines.append("")
    counts = []
    for name, cls in PEERS.items():
        verdicts = [cell[0] for key, cell in found.items() if key.split()[0] == name]
        counts.append(f"{cls.name}: {sum(v == 'good' for v in verdicts)} ✓, {sum(v == 'hangs' for v in verdicts)} ✗")
    said = f"Python {platform.python_version()}, Linux {platform.release().split('-')[0]}. " + "; ".join(counts) + "."
    return "\n".join([said, "", *lines])


def write(text):
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="ROW", help="rows, as the shell's patterns")
    parser.add_argument("--peer", nargs="+", default=["*"], metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--jobs", type=int, default=4, help="cells at a time: they wait more than they work")
    parser.add_argument("--show", action="store_true", help="print the table as it was found last")
    chosen = parser.parse_args()
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if chosen.show:
        print(table(found))
        return 0
    # What a shell starts in the background ignores Ctrl-C, and so would the programs that are interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    cells = [
        (peer, row)
        for row in ROWS
        for peer in PEERS
        if any(fnmatch.fnmatch(row, pattern) for pattern in chosen.only)
        and any(fnmatch.fnmatch(peer, pattern) for pattern in chosen.peer)
    ]
    whole = len(cells) == len(ROWS) * len(PEERS)
    if whole:
        found = {}

    def tried(cell):
        peer, row = cell
        verdict, text = answer(peer, row)
        print(f"{MARKS[verdict]} {peer:12} {row:36} {text}", flush=True)
        found[f"{peer} {row}"] = verdict, text
        return peer, row, verdict

    with ThreadPoolExecutor(chosen.jobs) as jobs:
        answers = list(jobs.map(tried, cells))
    FOUND.write_text(json.dumps(found, indent=0, sort_keys=True))
    if PAGE.exists():
        write(table(found))
        print(f"the table is in {PAGE.relative_to(TOP)}")
    wrong = [row for peer, row, verdict in answers if peer == "procession" and verdict != "good"]
    if wrong:
        print("procession has no good answer in: " + ", ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
