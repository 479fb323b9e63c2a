"""What a process and its tree hold: descriptors, processes, memory, files in /dev/shm."""

import ctypes
import gc
import os
import sys
import threading
import time

import procession


def descriptors():
    """The descriptors of this process: number and what it leads to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            # That of the listing itself.
            pass
    return found


def tree(root=None):
    """The descendants of a process, this one by default: pid and command line."""
    found, waiting = {}, [root or os.getpid()]
    while waiting:
        pid = waiting.pop()
        for child in _children(pid):
            found[child] = _read(f"/proc/{child}/cmdline").replace("\0", " ").strip() or "(ended)"
            waiting.append(child)
    return found


def _children(pid):
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


class _Malloc(ctypes.Structure):
    """What mallinfo2(3) tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


class Memory:
    """The memory in use: by this process, as its allocators count it, and by its tree.

    How much an allocator keeps for the next time is another matter: after threads and large objects have come and gone
    it has it in pieces, more and more of them.
    """

    def __init__(self):
        gc.collect()
        tell = ctypes.CDLL(None).mallinfo2
        tell.restype = _Malloc
        told = tell()
        self.kept = _proportional(os.getpid())
        self.figures = {
            "kB of malloc": (told.uordblks + told.hblkhd) // 1024,
            "blocks of Python": sys.getallocatedblocks(),
            "kB of the helper processes": sum(map(_proportional, tree())),
            "mappings of shared memory": _read("/proc/self/maps").count("procession-"),
        }

    def growth_over(self, limits, before):
        """Which figures have grown by more than their limits."""
        return [name for name, value in self.figures.items() if value - before.figures[name] > limits[name]]

    def __str__(self):
        figures = ", ".join(f"{value:,} {name}" for name, value in self.figures.items())
        return f"{figures} (with what the allocators keep: {self.kept:,} kB)"


def _proportional(pid):
    """The kilobytes of a process: private, and its share of what is shared."""
    lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def shared_files():
    """The files in /dev/shm, but for the C library's semaphores."""
    with os.scandir("/dev/shm") as entries:
        return {entry.name for entry in entries if entry.is_file() and not entry.name.startswith("sem.")}


class Before:
    """What there was at one time, to compare with."""

    def __init__(self):
        procession.active_children()
        gc.collect()
        self.descriptors = descriptors()
        self.tree = tree()
        self.threads = set(threading.enumerate())

    def added(self):
        """What has come and not gone since, as text; nothing if all is as it was."""
        procession.active_children()
        gc.collect()
        # A descriptor may lead to something else by now, under the same number or another.
        more = len(descriptors()) - len(self.descriptors)
        fds = sorted(descriptors() - self.descriptors) if more > 0 else []
        processes = {pid: what for pid, what in tree().items() if pid not in self.tree}
        threads = [thread.name for thread in threading.enumerate() if thread not in self.threads]
        found = {"descriptors": fds, "processes": processes, "threads": threads}
        return "; ".join(f"{name}: {what}" for name, what in found.items() if what)

    def wait_until_as_before(self, limit=30):
        """What is still there when nothing changes any more, or after `limit` seconds."""
        end = time.monotonic() + limit
        while (added := self.added()) and time.monotonic() < end:
            time.sleep(0.01)
        return added
