"""Plain data, which the package writes and reads itself: as pickles that any unpickler reads."""

import pickle
import subprocess
import sys

import pytest

from procession import _core

NUMBERS = [1, 300, 70_000, -5, 2**40, -(2**63), 2**63 - 1, 1.5, float("inf"), None, True, False]


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 63, 64, 65, 1000])
def test_long_lists_of_numbers_are_written_as_pickles(kind, length):
    numbers = kind((NUMBERS * 100)[:length])
    strange = [numbers, kind([*numbers, "text"]), kind([2**80, *numbers]), kind([[], *numbers, 2**64]), {1: numbers}]
    for obj in (*strange, strange):
        data = bytes(_core.dumps(obj))
        for loads in (pickle.loads, _core.loads):
            loaded = loads(data)
            assert loaded == obj
            assert repr(loaded) == repr(obj)
    # What is met twice is one object afterwards.
    first, second = _core.loads(_core.dumps([numbers, numbers]))
    assert (first is second) or kind is tuple


def test_what_only_looks_like_a_list_of_numbers_is_refused():
    for damaged in (
        b"\x80\x04](K.",
        b"\x80\x04](K\x01e",
        b"\x80\x04](\x8a\x07\x01e.",
        b"\x80\x04(K\x01e.",
        b"\x80\x04(G\x00t.",
    ):
        with pytest.raises((pickle.UnpicklingError, EOFError, IndexError)):
            _core.loads(damaged)


def test_lack_of_memory_is_an_error():
    # In a process of its own, whose memory is bounded.
    program = """
import resource
import procession
numbers = [1.5] * 12_000_000
queue = procession.get_context("fork").SimpleQueue()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
try:
    queue.put(numbers)
except MemoryError:
    print("MemoryError")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (result.returncode, result.stdout) == (0, "MemoryError\n"), result.stderr
