"""Random work, random deaths: every task has to be accounted for, and nothing may be left behind.

    python tools/soak.py [--seconds N] [--seed N] [--only NAME] [--method NAME] [--round N] [--alone] [--verbose]

Rounds follow each other until the time is up. Each takes a start method and one kind of work (a pool; queues; locks; a
manager; shared memory), does random things with it and kills random processes meanwhile, and then holds what came out
against what every process has noted in a file. In between, descriptors, processes and threads have to be what they were
before the round, and at the end memory and /dev/shm what they were at the start.

What a round does follows from the seed and its number, so `--seed S --round N` does it again. When which process
gets to run does not follow from it: to see a failure again may take some tries (`--round N --seconds 60`).

Exit status 1 if something was lost, or nothing came for too long.
"""

import argparse
import faulthandler
import os
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter

from soaking import clients, pools, resources
from soaking.accounts import Lost
from soaking.ledger import Ledger

import procession
from procession.shared_memory import SharedMemory

METHODS = ["fork", "spawn", "forkserver"]
KINDS = {
    "pool": (pools.run, 10), "queue": (clients.queue, 2), "lock": (clients.lock, 2), "manager": (clients.manager, 1),
    "memory": (clients.memory, 1),
}  # fmt: skip
# Of one round, on a machine that is busy with other things.
ROUND_LIMIT = 300
# What may have been added in the end: tables and caches that were filled later than others.
MEMORY_LIMITS = {
    "kB of malloc": 2_000,
    "blocks of Python": 10_000,
    "kB of the helper processes": 4_000,
    "mappings of shared memory": 3,
}


def nothing():
    """What the first child of each start method does."""


def _warm_up():
    # What comes with the first use and stays: a life pipe, the fork server, the resource tracker, memory for locks.
    for method in METHODS:
        first = procession.get_context(method).Process(target=nothing)
        first.start()
        first.join()
        first.close()
    procession.Value("q")
    memory = SharedMemory(create=True, size=1)
    memory.close()
    memory.unlink()


class Soak:
    """The rounds, and what is compared in between."""

    def __init__(self, options, folder):
        self.options = options
        self.folder = folder
        self.about = "the start"
        self.began = None
        self.done = Counter()

    def run(self):
        """Rounds until the time is up; returns the exit status."""
        threading.Thread(target=self._watch, name="soak watchdog", daemon=True).start()
        _warm_up()
        files, before = resources.shared_files(), resources.Before()
        memory = None
        end = time.monotonic() + self.options.seconds
        told = time.monotonic()
        number = self.options.round or 0
        while True:
            try:
                self._round(number)
                if added := before.wait_until_as_before():
                    raise Lost(f"left behind: {added}")
            except BaseException:
                self._report_failure(number)
                traceback.print_exc()
                if isinstance(sys.exception(), KeyboardInterrupt):
                    raise
                return 1
            if sum(self.done.values()) == 40:
                memory = resources.Memory()
            if time.monotonic() > end:
                break
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{sum(self.done.values())} rounds so far", flush=True)
            if self.options.round is None:
                number += 1
        return self._compare(files, memory)

    def _round(self, number):
        rng = random.Random(f"{self.options.seed}/{number}")
        method = rng.choice(METHODS)
        name = rng.choices(list(KINDS), [weight for _run, weight in KINDS.values()])[0]
        method, name = self.options.method or method, self.options.only or name
        self.about, self.began = f"round {number}: {name} by {method}", time.monotonic()
        self._tell("")
        book = Ledger(self.folder, sum(self.done.values()))
        KINDS[name][0](rng, procession.get_context(method), book, self._tell)
        book.remove()
        self.began = None
        self.done[name, method] += 1

    def _tell(self, text):
        if text:
            self.about = f"{self.about}, {text}"
        if self.options.verbose:
            print(f"{time.monotonic() - self.began:7.3f} {self.about}", flush=True)

    def _report_failure(self, number):
        print(f"FAILED in {self.about}\nagain: --seed {self.options.seed} --round {number}", flush=True)

    def _watch(self):
        while True:
            time.sleep(1)
            began = self.began
            if began is not None and time.monotonic() - began > ROUND_LIMIT:
                print(f"NO END of {self.about}\nseed {self.options.seed}", flush=True)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)

    def _compare(self, files, memory):
        total = sum(self.done.values())
        for (name, method), count in sorted(self.done.items()):
            print(f"{count:6} rounds of {name} by {method}")
        status = 0
        if memory is not None:
            now = resources.Memory()
            print(f"memory in use after 40 rounds: {memory}\nmemory in use after {total}: {now}")
            if grown := now.growth_over(MEMORY_LIMITS, memory):
                print(f"grown: {grown}")
                status = 1
        # Other programs may have files there, and leave some, unless this is the only one.
        left = resources.shared_files() - files
        end = time.monotonic() + 30
        while left and time.monotonic() < end:
            time.sleep(0.1)
            left &= resources.shared_files()
        if left:
            print(f"new in /dev/shm: {sorted(left)}")
            status |= self.options.alone or any(name.startswith(f"soak-{os.getpid()}-") for name in left)
        print(f"{'FAILED' if status else 'all accounted for'}: {total} rounds, seed {self.options.seed}", flush=True)
        return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the seed of a former run")
    parser.add_argument("--round", type=int, metavar="N", help="this round only, again and again")
    parser.add_argument("--only", choices=KINDS, help="one kind of round")
    parser.add_argument("--method", choices=METHODS, help="one start method")
    parser.add_argument("--alone", action="store_true", help="nothing else makes files in /dev/shm meanwhile")
    parser.add_argument("--verbose", action="store_true", help="say what each round is")
    options = parser.parse_args()
    # A lock whose holder was killed warns whoever gets it, and forks beside threads warn from Python 3.12 on.
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.simplefilter("ignore")
    faulthandler.enable()
    print(f"seed {options.seed}, Python {sys.version.split()[0]}", flush=True)
    folder = tempfile.mkdtemp(prefix="procession-soak-")
    try:
        return Soak(options, folder).run()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
