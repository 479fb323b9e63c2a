"""The speed of procession beside that of other packages, on the same work.

    python benches/peers.py --python VENV/bin/python [--only TEXT] [--rounds N] [--quick] [--json FILE] [--write FILE]

VENV has the packages of `peers-requirements.txt` and not procession, which is taken from this checkout (`make
bench-peers` sees to both). Each measurement is a fresh interpreter. All entrants of a row take turns in every round, in
an order that is turned around from round to round, so that what else the machine does falls on all. Figures are
medians. A row is won if procession is ahead of each peer; rows that are not are named at the end.

--write puts the tables between the markers of a Markdown file. Exit status 1 if an entrant failed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import peer_pools
import peer_queues

HERE = Path(__file__).resolve().parent
OURS = "procession"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
SCALES = {"s": 1, "ms": 1e3, "us": 1e6}

POOL = """
import sys
import peer_pools
if __name__ == "__main__":
    work, peer, count = sys.argv[1:]
    print(peer_pools.WORK[work][0](peer, int(count)))
"""
QUEUE = """
import sys
import peer_queues
if __name__ == "__main__":
    peer, *numbers = sys.argv[1:]
    print(peer_queues.measure(peer, *map(int, numbers)))
"""


class Failed(Exception):
    """A measurement that gave no figure; says why."""


class Row:
    """One kind of work: a program with arguments for each entrant, how often it does its work, and the unit."""

    def __init__(self, name, title, program, entrants, count, unit, groups=None):
        self.name, self.title, self.program, self.entrants = name, title, program, entrants
        self.count, self.unit = count, unit
        # Entrants that are compared with each other; all, unless it is said.
        self.groups = groups or [list(entrants)]
        self.figures = {entrant: [] for entrant in entrants}
        self.failed = {}

    def measure(self, python, entrant, limit):
        command = [python, "-W", "ignore", "-c", self.program, *map(str, self.entrants[entrant])]
        path = [str(HERE)] + [str(HERE.parent / "python")] * entrant.startswith(OURS)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=environment,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end in {limit:.0f} s") from None
        finally:
            end_session(process.pid)
        if process.returncode:
            raise Failed((err.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
        return float(out) / self.count * SCALES[self.unit]

    def round(self, python, limit, backwards):
        order = [entrant for entrant in self.entrants if entrant not in self.failed]
        for entrant in order[::-1] if backwards else order:
            try:
                self.figures[entrant].append(self.measure(python, entrant, limit))
            except Failed as failure:
                self.failed[entrant] = str(failure)

    def median(self, entrant):
        return statistics.median(self.figures[entrant]) if entrant not in self.failed else None

    def verdicts(self):
        """For each group our entrant, the best of the others, and how many times as long that takes."""
        for group in self.groups:
            ours = next(entrant for entrant in group if entrant.startswith(OURS))
            medians = {entrant: self.median(entrant) for entrant in group if self.median(entrant) is not None}
            mine = medians.pop(ours, None)
            if mine is None or not medians:
                yield ours, None, None
            else:
                best = min(medians, key=medians.get)
                yield ours, best, medians[best] / mine


def end_session(leader):
    """Kill what a measurement has left running."""
    try:
        os.killpg(leader, 9)
    except ProcessLookupError:
        pass


def rows(quick):
    for producers, consumers, count in peer_queues.GRID:
        count = count // 50 if quick else count
        entrants = {name: (name, producers, consumers, count) for name in peer_queues.PEERS}
        many = [name for name in entrants if name.endswith("get_many")]
        yield Row(
            f"queue_{producers}_{consumers}", f"{producers} producers of {count:,}, {consumers} consumers", QUEUE,
            entrants, 1, "s", [[name for name in entrants if name not in many], many],
        )  # fmt: skip
    for name, (_, title, count, few, unit) in peer_pools.WORK.items():
        count = few if quick else count
        yield Row(name, title, POOL, {peer: (name, peer, count) for peer in peer_pools.PEERS}, count, unit)


def number(value):
    return "failed" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(title, chosen):
    """Rows of the same entrants as a table in Markdown."""
    entrants = list(chosen[0].entrants)
    yield f"| {title} | | {' | '.join(entrants)} | best other / procession |"
    yield f"| --- | --- | {'---: | ' * (len(entrants) + 1)}".rstrip()
    for row in chosen:
        cells = " | ".join(number(row.median(entrant)) for entrant in entrants)
        ratios = ", ".join(f"{ratio:.1f} ({best})" if ratio else "-" for _, best, ratio in row.verdicts())
        yield f"| {row.title} | {row.unit} | {cells} | {ratios} |"


def report(done, rounds):
    queues = [row for row in done if row.name.startswith("queue_")]
    pools = [row for row in done if row not in queues]
    yield f"CPython {platform.python_version()}, {os.cpu_count()} cores, medians of {rounds}."
    for title, chosen in (("queues", queues), (f"pools of {peer_pools.WORKERS} workers", pools)):
        if chosen:
            yield ""
            yield from table(title, chosen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter of the environment that has the peers")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows with this in their name")
    parser.add_argument("--rounds", type=int, help="rounds of each row (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="less work, one round")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="of one measurement")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--write", metavar="FILE", help="put the tables between the markers of this file")
    options = parser.parse_args()

    rounds = options.rounds or (1 if options.quick else 5)
    done = [row for row in rows(options.quick) if not options.only or any(text in row.name for text in options.only)]
    for row in done:
        for turn in range(rounds):
            row.round(options.python, options.limit, backwards=turn % 2)
        print(f"{row.title} ({row.unit})", flush=True)
        for entrant in row.entrants:
            print(f"    {entrant:24} {number(row.median(entrant)):>10}  {row.failed.get(entrant, '')}", flush=True)
    lines = list(report(done, rounds))
    print("", *lines, sep="\n")
    behind = [
        f"{row.title}: {ours} behind {best}, {ratio:.2f}"
        for row in done
        for ours, best, ratio in row.verdicts()
        if ratio is not None and ratio < 1
    ]
    print("", *(behind or ["ahead in every row"]), sep="\n")
    failed = [(row.name, entrant, why) for row in done for entrant, why in row.failed.items()]
    if options.json:
        figures = {row.name: {"unit": row.unit, "count": row.count, "figures": row.figures} for row in done}
        Path(options.json).write_text(json.dumps({"rows": figures, "failed": failed}, indent=1) + "\n")
    if options.write:
        write(Path(options.write), "\n".join(lines))
    return 1 if failed else 0


def write(file, text):
    """Put the text between the markers."""
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
