"""The memory that a large array takes as the argument of one task, beside the standard package and its peers.

    python tools/memory_table.py --python VENV/bin/python [--megabytes N] [--rounds N] [--only PEER] [--write FILE]

Each entrant is a fresh interpreter. It makes the array, starts a pool of one worker, passes the array to one task,
which reads all of it, and gets a number back. Meanwhile the memory of all processes of its session is looked at, as
often as that goes: what is not shared memory as the kernel divides it among those who have it (PSS), and of shared
memory what the files hold that they have open, or if there are none, what they have mapped. The peak, less what
there was before the array was made, is divided by the array's size: 1 is the array itself, 2 one copy of it.

--write puts the table between the markers of a Markdown file.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- memory: begin -->", "<!-- memory: end -->"
SHARED = "procession, shared_array"
PEERS = ["standard", "executor", "loky", "pebble", "mpire", "joblib", "procession", SHARED]
# The program says when to begin, and waits for the word.
PROGRAM = """
import sys
import numpy
import peer_pools

if __name__ == "__main__":
    peer, megabytes = sys.argv[1], int(sys.argv[2])
    kind, _, shared = peer.partition(", ")
    pool = peer_pools.PEERS[kind](1)
    pool.map(peer_pools.successor, [1, 2], 1)
    print("ready", flush=True)
    sys.stdin.readline()
    if shared:
        from procession import shared_array
        array = shared_array(megabytes * 131072)
        array.fill(1)
    else:
        array = numpy.ones(megabytes * 131072)
    got = pool.call(peer_pools.total, array)
    assert got == len(array), got
    pool.close()
    print("done", flush=True)
"""


def processes_of(session):
    """The pids of a session's processes."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
            except OSError:
                pass


def memory_of(pid):
    """Bytes that are no shared memory, and bytes that are."""
    fields = dict(re.findall(r"^(Pss\w*): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    kib = {name: int(value) for name, value in fields.items()}
    return (kib["Pss_Anon"] + kib["Pss_File"]) << 10, kib["Pss_Shmem"] << 10


def open_files_of(pid):
    """Files in memory that a process has open, and their bytes."""
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            name = os.readlink(entry.path)
            if name.startswith(("/memfd:", "/dev/shm/")):
                status = os.stat(entry.path)
                yield (status.st_dev, status.st_ino), status.st_blocks * 512
        except OSError:
            pass


def memory_of_all(session):
    """The bytes that the processes of a session have together."""
    private = mapped = 0
    files = {}
    for pid in processes_of(session):
        try:
            own, shared = memory_of(pid)
            private, mapped = private + own, mapped + shared
            files.update(open_files_of(pid))
        except OSError:
            # It has just ended.
            pass
    # What is mapped is counted twice in part, as a page may come to be shared between two looks.
    return private + (sum(files.values()) or mapped)


def measure(python, peer, megabytes):
    """The peak, in multiples of the array; and the number of looks."""
    path = [str(ROOT / "benches")] + [str(ROOT / "python")] * peer.startswith("procession")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    process = subprocess.Popen(
        [python, "-W", "ignore", "-c", PROGRAM, peer, str(megabytes)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{peer} has failed")
        before = peak = memory_of_all(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        looks = 0
        while process.poll() is None:
            peak = max(peak, memory_of_all(process.pid))
            looks += 1
        if process.stdout.readline() != "done\n":
            raise SystemExit(f"{peer} has failed")
    finally:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait()
    return (peak - before) / (megabytes << 20), looks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter of the environment that has the peers")
    parser.add_argument("--megabytes", type=int, default=1024, help="the size of the array")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=PEERS, help="these entrants")
    parser.add_argument("--write", metavar="FILE", help="put the table between the markers of this file")
    options = parser.parse_args()
    lines = [
        f"Peak for an array of {options.megabytes} MiB, in arrays (1: the array alone; medians of {options.rounds}).",
        "",
    ]
    lines += ["| package | peak | copies besides the array |", "| --- | ---: | ---: |"]
    for peer in options.only or PEERS:
        found = [measure(options.python, peer, options.megabytes) for _ in range(options.rounds)]
        peak = statistics.median(peak for peak, _ in found)
        lines.append(f"| {peer} | {peak:.2f} | {peak - 1:.2f} |")
        print(
            f"{peer:12} {peak:6.2f}   ({', '.join(f'{peak:.2f} in {looks} looks' for peak, looks in found)})",
            flush=True,
        )
    print("", *lines, sep="\n")
    if options.write:
        file = Path(options.write)
        before, rest = file.read_text().split(BEGIN)
        file.write_text("\n\n".join([before + BEGIN, "\n".join(lines), END + rest.split(END)[1]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
