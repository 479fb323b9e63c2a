"""The tasks that a soak gives to pools. What a task does is in its plan, and what it did in the ledger."""

import os
import signal
import time

import procession
from procession import pool

from . import ledger

try:
    import numpy
except ImportError:
    numpy = None


class Wrong(Exception):
    """What a task raises that is to fail."""


def answer(key):
    """What the task of a key returns, if it returns something small."""
    return key * 3 + 1


def pattern(key, size):
    """The content of a large argument or result."""
    return bytes((key + n) % 256 for n in range(64)) * (size // 64)


def as_array(data):
    """The same bytes as an array that can be written to, or a bytearray without NumPy."""
    return bytearray(data) if numpy is None else numpy.frombuffer(data, dtype="u1").copy()


def is_pattern(data, key, size):
    """Whether a large argument or result has come as it was, and whether it is the receiver's own to write to."""
    writable = not isinstance(data, bytes)
    if bytes(memoryview(data).cast("B")) != pattern(key, size):
        return False
    if writable:
        first, data[0] = data[0], 7
        writable, data[0] = data[0] == 7, first
    return writable or isinstance(data, bytes)


class Task:
    """The function of all tasks; `path` is the ledger's. Called with a plan (see `plans.py`) and maybe data."""

    def __init__(self, path):
        self.path = path

    def __call__(self, key, kind, number=0, data=None):
        ledger.note(self.path, key, ledger.BEGUN)
        result = getattr(self, kind)(key, number, data)
        ledger.note(self.path, key, ledger.DONE)
        return result

    def of_item(self, item):
        """The same for a map, which passes one argument."""
        return self(*item)

    def value(self, key, number, data):
        """Return at once."""
        return answer(key)

    def rest(self, key, number, data):
        """Take so many milliseconds."""
        time.sleep(number / 1000)
        return answer(key)

    def work(self, key, number, data):
        """Compute so many milliseconds."""
        end = time.monotonic() + number / 1000
        while time.monotonic() < end:
            sum(range(100))
        return answer(key)

    def fail(self, key, number, data):
        """Raise an exception."""
        raise Wrong(key)

    def leave(self, key, number, data):
        """End the worker without a word."""
        os._exit(number)

    def die(self, key, number, data):
        """Have the worker killed."""
        os.kill(os.getpid(), signal.SIGKILL)

    def die_first(self, key, number, data):
        """Have so many workers killed, one after the other, then return."""
        if ledger_count(self.path, key) <= number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(key)

    def softly(self, key, number, data):
        """Take a second, or until the soft time limit, and say so."""
        try:
            time.sleep(1)
        except pool.SoftTimeLimitExceeded:
            return -answer(key)
        return answer(key)

    def hang(self, key, number, data):
        """Take longer than anybody waits: only a time limit or a cancel ends it."""
        while True:
            time.sleep(60)

    def take(self, key, number, data):
        """Look at a large argument."""
        if not is_pattern(data, key, number):
            raise AssertionError("a large argument is not what it was")
        return answer(key)

    def give(self, key, number, data):
        """Return a large result."""
        return pattern(key, number) if key % 2 else as_array(pattern(key, number))

    def nested(self, key, number, data):
        """Have a pool inside of the pool."""
        with procession.get_context("fork").Pool(1) as inner:
            return inner.apply(answer, (key,))


def ledger_count(path, key):
    """How often the task has begun so far."""
    with open(path, "rb") as file:
        records = ledger._RECORD.iter_unpack(file.read())
        return sum(noted == key and what == ledger.BEGUN for noted, what, _pid in records)
