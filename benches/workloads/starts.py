"""Processes: start and join by each method, the import of the package, and the memory of idle workers."""

import os
import sys
import time

from . import expect, workload


def nothing():
    pass


def start_and_join(mp, method, count):
    ctx = mp.get_context(method)

    def one():
        process = ctx.Process(target=nothing)
        process.start()
        process.join()
        return process.exitcode

    # The fork server starts with the first process.
    codes = [one()]
    began = time.perf_counter()
    codes += [one() for _ in range(count)]
    took = time.perf_counter() - began
    expect(codes, [0] * (count + 1))
    return took


@workload("Process: start and join by fork", count=200, unit="ms", target=1)
def process_fork(mp, count):
    return start_and_join(mp, "fork", count)


@workload("Process: start and join by forkserver", count=60, unit="ms", target=5)
def process_forkserver(mp, count):
    return start_and_join(mp, "forkserver", count)


@workload("Process: start and join by spawn", count=10, quick=3, unit="ms", target=1.8)
def process_spawn(mp, count):
    return start_and_join(mp, "spawn", count)


IMPORT = "import sys, time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def import_time(modules, count):
    """The sum of the seconds of so many imports, each in an interpreter of its own; the median stands for each."""
    import subprocess

    command = [sys.executable, "-c", IMPORT.format(modules)]
    times = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(count + 1)]
    # The first one may have had to write the compiled files.
    return sorted(times[1:])[count // 2] * count


@workload("import of the package", count=7, quick=3, unit="ms", target=1)
def import_package(mp, count):
    return import_time(mp.__name__, count)


@workload("import of queues, pool, synchronize, connection", count=7, quick=3, unit="ms")
def import_all(mp, count):
    modules = ["queues", "pool", "synchronize", "connection"]
    return import_time(", ".join(f"{mp.__name__}.{module}" for module in modules), count)


def memory(pid):
    """The megabytes of a process: its proportional share, and what it alone has."""
    share = private = 0
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, *rest = line.split()
            if name == "Pss:":
                share += int(rest[0])
            elif name in ("Private_Clean:", "Private_Dirty:"):
                private += int(rest[0])
    return share / 1024, private / 1024


def square(number):
    return number * number


def idle_workers(mp, method, column):
    """The most that a pool of 8 idle workers and the process that made it took."""
    most = 0.0
    with mp.get_context(method).Pool(8) as pool:
        workers = [process.pid for process in mp.active_children()]
        expect(len(workers), 8)
        expect(pool.map(square, range(800), chunksize=1), [n * n for n in range(800)])
        for _ in range(5):
            most = max(most, sum(memory(pid)[column] for pid in [os.getpid(), *workers]))
            time.sleep(0.1)
        pool.close()
        pool.join()
    return most


@workload("memory of 8 idle workers, fork: proportional", count=1, unit="MB", target=1)
def memory_fork_pss(mp, count):
    return idle_workers(mp, "fork", 0)


@workload("memory of 8 idle workers, fork: private", count=1, unit="MB", target=1)
def memory_fork_private(mp, count):
    return idle_workers(mp, "fork", 1)


@workload("memory of 8 idle workers, spawn: proportional", count=1, unit="MB", target=1)
def memory_spawn_pss(mp, count):
    return idle_workers(mp, "spawn", 0)
