"""What the tests know of processes and descriptors, read from /proc."""

import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    pid: int
    name: str
    state: str  # R, S, D, Z (a zombie), ...
    parent: int
    session: int


def status(pid):
    """None if there is no such process any more."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold any character, a parenthesis too.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Status(pid, name, fields[0], int(fields[1]), int(fields[3]))


def all_processes():
    found = (status(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return {process.pid: process for process in found if process}


def descendants(of=None):
    """The children of a process (this one), their children and so on; zombies are among them."""
    everyone = all_processes()
    found, parents = {}, {of or os.getpid()}
    while parents:
        children = {p.pid: p for p in everyone.values() if p.parent in parents and p.pid not in found}
        found.update(children)
        parents = set(children)
    return found


def of_session(session):
    """The processes of a session, zombies excepted."""
    return {p.pid: p for p in all_processes().values() if p.session == session and p.state != "Z"}


def is_running(pid):
    process = status(pid)
    return process is not None and process.state not in "ZX"


def helpers():
    """The pids of the processes that live as long as the program: fork server and resource tracker."""
    found = set()
    for module, variable, attribute in [
        ("procession.forkserver", "_forkserver", "_forkserver_pid"),
        ("procession.resource_tracker", "_resource_tracker", "_pid"),
    ]:
        pid = getattr(getattr(sys.modules.get(module), variable, None), attribute, None)
        if pid:
            found.add(pid)
    return found


def strays():
    """Descendants that no test should leave behind."""
    helping = helpers()
    return {pid: process for pid, process in descendants().items() if pid not in helping}


def descriptors(pid="self"):
    """What the open descriptors of a process refer to, and how many refer to each."""
    counts = Counter()
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        try:
            counts[os.readlink(f"{folder}/{number}")] += 1
        except FileNotFoundError:
            pass  # the one that listed the folder
    return counts


def eventually(condition, timeout=20, step=0.01):
    """Wait until condition() holds, and return what it returned last: a test asserts it."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(step)
    return answer


def end(pids):
    """Have processes print where they are (faulthandler is on in all of them), then kill and reap them."""
    for number, pause in ((signal.SIGABRT, 0.5), (signal.SIGKILL, 0)):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        time.sleep(pause)
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # a grandchild
