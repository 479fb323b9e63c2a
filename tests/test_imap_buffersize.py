"""imap with a buffersize: no more is taken from the iterable than there is room for."""

import gc
import itertools
import threading
import time

import pytest

import processes
import procession
from procession.pool import ThreadPool


def identity(x):
    return x


def fail_at_three(x):
    if x == 3:
        raise procession.TimeoutError("three")
    return x


class Counted:
    """An endless iterable that counts what is taken from it."""

    def __init__(self, limit=None):
        self.taken = 0
        self._limit = limit

    def __iter__(self):
        for number in itertools.count() if self._limit is None else range(self._limit):
            self.taken += 1
            yield number


@pytest.fixture(params=["processes", "threads"])
def pool(request):
    with procession.Pool(2) if request.param == "processes" else ThreadPool(2) as pool:
        yield pool


@pytest.fixture(params=["imap", "imap_unordered"])
def imap(request, pool):
    return getattr(pool, request.param)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_endless_iterable(imap, size):
    """Standard package, ProcessPoolExecutor, loky, pebble: take items until there is no more memory. mpire: as here."""
    items = Counted()
    results = imap(identity, items, buffersize=size)
    for taken_out in range(5):
        assert processes.eventually(lambda expected=size + taken_out: items.taken == expected)
        time.sleep(0.02)
        assert items.taken == size + taken_out
        next(results)


def test_all_results_come(pool, imap):
    assert sorted(imap(identity, range(1000), buffersize=4)) == list(range(1000))
    assert list(pool.imap(identity, iter(range(100)), 7, buffersize=2)) == list(range(100))
    assert list(imap(identity, [], buffersize=1)) == []
    # By place as well, as in the standard package.
    assert sorted(imap(identity, range(10), 1, 3)) == list(range(10))


def test_chunks_count_as_one(pool):
    items = Counted()
    results = pool.imap(identity, items, chunksize=10, buffersize=2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert processes.eventually(lambda: items.taken == 30)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_sizes_that_make_no_sense(imap, size, error):
    with pytest.raises(error, match="buffersize must be"):
        imap(identity, range(3), buffersize=size)


def test_a_result_that_is_an_error_makes_room(pool):
    results = pool.imap(fail_at_three, range(10), buffersize=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(procession.TimeoutError, match="three"):
        next(results)
    assert list(results) == list(range(4, 10))


def test_a_timeout_makes_none(pool):
    items = Counted()
    results = pool.imap(time.sleep, (0.3 for _ in items), buffersize=1)
    with pytest.raises(procession.TimeoutError):
        results.next(timeout=0.01)
    assert items.taken == 1
    assert results.next(timeout=20) is None


def test_an_iterable_that_raises(pool):
    def failing():
        yield 1
        raise ValueError("no more")

    results = pool.imap(identity, failing(), buffersize=2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="no more"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_streams_have_their_turn(pool):
    first = pool.imap(identity, itertools.count(), buffersize=2)
    second = pool.imap(identity, itertools.count(100), buffersize=2)
    assert [(next(first), next(second)) for _ in range(20)] == [(x, 100 + x) for x in range(20)]
    assert pool.map(identity, iter(range(50))) == list(range(50))


def test_closing_ends_what_nobody_takes_out(pool):
    items = Counted()
    results = pool.imap(identity, items, buffersize=2)
    assert next(results) == 0
    assert processes.eventually(lambda: items.taken == 3)
    pool.close()
    pool.join()
    assert list(results) == [1, 2]


def test_terminating_ends_it(pool):
    results = pool.imap(time.sleep, itertools.repeat(0.3), buffersize=2)
    pool.terminate()
    with pytest.raises(RuntimeError, match="terminated"):
        list(results)
    pool.join()


def test_an_iterator_that_is_dropped_keeps_nobody(pool):
    results = pool.imap(identity, Counted(), buffersize=2)
    next(results)
    del results
    gc.collect()
    assert processes.eventually(lambda: not pool._cache)
    assert processes.eventually(lambda: not any("Feeder" in thread.name for thread in threading.enumerate()))
    pool.close()
    pool.join()


def test_without_it_all_is_taken(pool):
    items = Counted(300)
    results = pool.imap(identity, items)
    assert processes.eventually(lambda: items.taken == 300)
    assert list(results) == list(range(300))
