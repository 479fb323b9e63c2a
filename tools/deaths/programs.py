"""Rows about whole programs: how they end, what they leave, and their helpers."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from . import tasks
from .answers import GOOD, HANGS, PATIENCE, POOR, eventually, primitive, row, within

TOOLS = Path(__file__).resolve().parents[1]

PRELUDE = """
import os, signal, sys, time
sys.path.insert(0, {tools!r})
from deaths import tasks
from deaths.peers import PEERS
peer, mark = PEERS[{name!r}](), {mark!r}
mp = peer.mp()

def until_marked():
    while not os.path.exists(mark):
        time.sleep(0.01)
"""


def name_of(peer):
    from .peers import PEERS

    return next(name for name, cls in PEERS.items() if type(peer) is cls)


class Program:
    """A program with a peer, in a process group of its own; `mark` is a file by which it tells how far it is."""

    def __init__(self, peer, source):
        self.mark = os.path.join(tempfile.mkdtemp(), "mark")
        start = PRELUDE.format(tools=str(TOOLS), name=name_of(peer), mark=self.mark)
        path = os.path.join(os.path.dirname(self.mark), "program.py")
        Path(path).write_text(start + source)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def marked(self):
        return eventually(lambda: os.path.exists(self.mark))

    def others(self):
        """The processes of its group other than itself that still run."""
        found = set()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid != int(entry) and fields[0] not in "ZX":
                found.add(int(entry))
        return found

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


BUSY = """
if __name__ == "__main__":
    pool = peer.pool(2, **{options})
    {submit}
    until_marked()
    {then}
"""


def ends(program, seconds=PATIENCE):
    """How a program that was told to end does."""
    try:
        began = time.monotonic()
        if not program.marked():
            return HANGS, "the task is not begun"
        if program.process.wait(seconds) is None:
            return HANGS, "hangs"
        took = time.monotonic() - began
        return GOOD, f"{took:.0f} s" if took >= 1 else "at once"
    except subprocess.TimeoutExpired:
        return HANGS, "waits for it"
    finally:
        program.close()


@row
def exit_with_a_busy_pool(peer):
    return ends(Program(peer, BUSY.format(options={}, submit="pool.submit(tasks.ignore_sigterm, mark)", then="")))


def staying(left):
    return f"{len(left)} process{'es stay' if len(left) != 1 else ' stays'}"


@row
def program_killed_with_busy_workers(peer):
    then = "os.kill(os.getpid(), signal.SIGKILL)"
    program = Program(peer, BUSY.format(options={}, submit="pool.submit(tasks.sleep_long, mark)", then=then))
    try:
        program.process.wait(PATIENCE * 2)
        # Those that keep files in order may take their time.
        eventually(lambda: not program.others(), 10)
        left = program.others()
        return (POOR, staying(left)) if left else (GOOD, "all end")
    finally:
        program.close()


@row
def ctrl_c(peer):
    submit = "handle = pool.submit(tasks.sleep_long, mark)"
    program = Program(peer, BUSY.format(options={}, submit=submit, then="pool.outcome(handle, 600)"))
    try:
        if not program.marked():
            return HANGS, "the task is not begun"
        time.sleep(0.5)
        os.killpg(program.process.pid, signal.SIGINT)
        try:
            error = program.process.communicate(timeout=PATIENCE)[1]
        except subprocess.TimeoutExpired:
            left = program.others()
            return HANGS, "does not end" if program.process.poll() is None else staying(left)
        eventually(lambda: not program.others(), 10)
        if left := program.others():
            return POOR, staying(left)
        count = error.count("Traceback (most")
        return (GOOD if count == 1 else POOR), f"{count} traceback{'' if count == 1 else 's'}"
    finally:
        program.close()


@row
def tree_dies_with_its_root(peer):
    submit = f"handle = pool.submit(tasks.child_of_a_task, {name_of(peer)!r}, mark)"
    source = BUSY.format(options={"nested": True}, submit=submit, then="time.sleep(600)")
    # A task that may have no child fails before the mark.
    program = Program(peer, source.replace("    until_marked()\n", ""))
    try:
        if not eventually(lambda: os.path.exists(program.mark), 10):
            return POOR, "it may have none"
        pid = int(Path(program.mark).read_text())
        program.process.kill()
        program.process.wait()
        gone = eventually(lambda: pid not in program.others(), 10)
        return (GOOD, "ends") if gone else (POOR, "goes on")
    finally:
        program.close()


DAEMON = """
if __name__ == "__main__":
    child = mp.get_context("fork").Process(target=tasks.ignore_sigterm, args=(mark,))
    child.daemon = True
    child.start()
    until_marked()
"""


@row
def exit_with_a_stuck_child(peer):
    return ends(Program(peer, DAEMON)) if peer.mp() else ("none", "no such thing")


@primitive
def fork_server_killed(mp):
    if "forkserver" not in mp.get_all_start_methods():
        return "none", "no such thing"
    ctx = mp.get_context("forkserver")
    from importlib import import_module

    first = ctx.Process(target=tasks.identity, args=(1,))
    first.start()
    first.join()
    server = import_module(mp.__name__ + ".forkserver")._forkserver
    if not hasattr(server, "_forkserver_pid"):
        return "none", "nobody can tell its pid"
    os.kill(server._forkserver_pid, signal.SIGKILL)
    time.sleep(0.3)

    def again():
        second = ctx.Process(target=tasks.identity, args=(1,))
        second.start()
        second.join()
        return second.exitcode

    over = within(PATIENCE, again)
    if over is None:
        return HANGS, "hangs"
    return (GOOD, "works") if over == ("value", 0) else (POOR, f"fails: {over[1]!r}")


@primitive
def tracker_killed(mp):
    from importlib import import_module

    try:
        shared_memory = import_module(mp.__name__ + ".shared_memory")
        tracker = import_module(mp.__name__ + ".resource_tracker")._resource_tracker
    except ImportError:
        return "none", "no such thing"
    first = shared_memory.SharedMemory(create=True, size=10)
    first.close()
    first.unlink()
    os.kill(tracker._pid, signal.SIGKILL)
    time.sleep(0.3)

    def again():
        second = shared_memory.SharedMemory(create=True, size=10)
        second.close()
        second.unlink()

    over = within(PATIENCE, again)
    return (HANGS, "hangs") if over is None else (GOOD, "works") if over[0] == "value" else (POOR, repr(over[1]))


SEGMENT = """
from importlib import import_module
if __name__ == "__main__":
    memory = import_module(mp.__name__ + ".shared_memory").SharedMemory(create=True, size=10)
    with open(mark + ".part", "w") as file:
        file.write(memory.name)
    os.rename(mark + ".part", mark)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@row
def segment_of_a_killed_program(peer):
    if peer.mp() is None:
        return "none", "no such thing"
    program = Program(peer, SEGMENT)
    try:
        if not eventually(lambda: os.path.exists(program.mark), 5):
            return "none", "no such thing"
        name = "/dev/shm/" + Path(program.mark).read_text().lstrip("/")
        gone = eventually(lambda: not os.path.exists(name), 10)
        return (GOOD, "removed") if gone else (POOR, "stays")
    finally:
        program.close()


@primitive
def fork_while_threads_use_a_queue(mp):
    q = mp.get_context("fork").Queue()
    ends = threading.Event()

    def use():
        while not ends.is_set():
            q.put(b"x" * 1000)
            q.get()

    for _ in range(4):
        threading.Thread(target=use, daemon=True).start()

    def child():
        for _ in range(20):
            q.put(b"x" * 1000)
            q.get(timeout=10)

    ctx = mp.get_context("fork")
    for round in range(100):
        forked = ctx.Process(target=child)
        forked.start()
        forked.join(PATIENCE)
        if forked.is_alive():
            return HANGS, f"child {round + 1} hangs"
    return GOOD, "100 children do"


@primitive
def threads_join_one_process(mp):
    ctx = mp.get_context("fork")
    wrong = []
    for _ in range(50):
        child = ctx.Process(target=time.sleep, args=(0.01,))
        child.start()

        def join(child=child):
            child.join()
            if child.is_alive() or child.exitcode != 0:
                wrong.append(child)

        threads = [threading.Thread(target=join, daemon=True) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                return HANGS, "hangs"
    return (POOR, f"{len(wrong)} of 1,000 do not") if wrong else (GOOD, "each does")
