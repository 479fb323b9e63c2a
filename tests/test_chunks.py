"""Chunks: of a size that is chosen by how long items take, and of numbers, which are pickled as they come."""

import functools
import itertools
import threading
import time
from concurrent.futures import CancelledError

import pytest

import procession
from procession.pool import ThreadPool

# What does not depend on how workers are started.
forked = pytest.mark.parametrize("method", ["fork"], indirect=True)


def identity(x):
    return x


def add(x, y):
    return x + y


def nap(x):
    time.sleep(0.02)
    return x


def fail_at_100(x):
    if x == 100:
        raise ValueError("one hundred")
    return x


@pytest.fixture
def pool(ctx):
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


def test_maps(pool):
    for count in (0, 1, 2, 3, 50, 20_000):
        check_maps(pool, range(count))


def check_maps(pool, items):
    assert pool.map(identity, items, chunksize="auto") == [*items]
    assert pool.map_async(identity, iter(items), "auto").get() == [*items]
    assert pool.starmap(add, zip(items, items, strict=True), chunksize="auto") == [2 * x for x in items]
    assert [*pool.imap(identity, items, chunksize="auto")] == [*items]
    assert sorted(pool.imap_unordered(identity, iter(items), chunksize="auto")) == [*items]


def handed_over(pool, *args):
    """What a map does, and how many chunks it took."""
    engine, feeds = pool._engine, []

    class Watched:
        def __getattr__(self, name):
            return getattr(engine, name)

        def map_async(self, *args):
            result, feed = engine.map_async(*args)
            feeds.append(feed)
            return result, feed

    pool._engine = Watched()
    try:
        result = pool.map(*args)
    finally:
        pool._engine = engine
    return result, feeds[0].submitted()


@forked
def test_quick_items_go_together_and_slow_ones_alone(pool):
    result, chunks = handed_over(pool, identity, range(20_000), "auto")
    assert result == [*range(20_000)]
    assert chunks < 2_000
    result, chunks = handed_over(pool, nap, range(16), "auto")
    assert result == [*range(16)]
    assert chunks == 16


@forked
def test_an_iterable_without_end(pool):
    taken = threading.Event()

    def numbers():
        for number in itertools.count():
            if taken.is_set():
                return
            yield number

    results = pool.imap(identity, numbers(), chunksize="auto")
    assert [*itertools.islice(results, 5_000)] == [*range(5_000)]
    taken.set()
    # What is left ends, and in order.
    assert [*itertools.islice(results, 10)] == [*range(5_000, 5_010)]


@forked
def test_with_a_buffersize_no_more_is_taken_than_there_is_room(pool):
    drawn = 0

    def numbers():
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn - 1

    results = pool.imap(nap, numbers(), chunksize="auto", buffersize=3)
    assert [next(results) for _ in range(6)] == [*range(6)]
    # Each is a chunk of its own.
    assert drawn <= 6 + 3
    assert pool.apply(identity, (1,)) == 1


@forked
def test_items_that_come_slowly_are_not_waited_for(pool):
    answered = threading.Event()

    def numbers():
        yield from range(1_200)
        # Comes only when the results of all before have been seen.
        assert answered.wait(60)
        yield 1_200

    results = pool.imap(identity, slow_at_the_end(numbers()), chunksize="auto")
    assert [next(results) for _ in range(1_000)] == [*range(1_000)]
    answered.set()
    assert [*results] == [*range(1_000, 1_201)]


def slow_at_the_end(items):
    for number, item in enumerate(items):
        if number > 900:
            time.sleep(0.002)
        yield item


@forked
def test_errors_are_told(pool):
    with pytest.raises(ValueError, match="one hundred"):
        pool.map(fail_at_100, range(1_000), chunksize="auto")

    def items():
        yield from range(10)
        raise KeyError("no more")

    results = pool.imap(identity, items(), chunksize="auto")
    seen = []
    with pytest.raises(KeyError, match="no more"):
        seen.extend(results)
    assert pool.apply(identity, (2,)) == 2


@forked
def test_several_at_a_time(pool):
    maps = [pool.map_async(identity, range(n, n + 3_000), "auto") for n in range(4)]
    streams = [pool.imap(nap, range(5), chunksize="auto") for _ in range(2)]
    assert [result.get() for result in maps] == [[*range(n, n + 3_000)] for n in range(4)]
    assert [[*stream] for stream in streams] == [[*range(5)]] * 2


@forked
def test_a_pool_that_ends_meanwhile(ctx):
    with ctx.Pool(2) as pool:
        result = pool.map_async(time.sleep, [600] * 50, "auto")
        stream = pool.imap(time.sleep, itertools.repeat(600), chunksize="auto")
    pool.join()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get()
    with pytest.raises(RuntimeError, match="terminated"):
        next(stream)


@forked
def test_a_call_that_is_cancelled(pool):
    result = pool.map_async(time.sleep, [600] * 50, "auto")
    stream = pool.imap(time.sleep, itertools.repeat(600), chunksize="auto")
    assert result.cancel()
    assert stream.cancel()
    with pytest.raises(CancelledError):
        result.get()
    with pytest.raises(CancelledError):
        next(stream)
    assert pool.map(identity, range(500), chunksize="auto") == [*range(500)]


@forked
def test_with_priorities(pool):
    results = [pool.map_async(identity, range(500), "auto", priority=priority) for priority in (0, 2, -1)]
    assert [result.get() for result in results] == [[*range(500)]] * 3


@forked
def test_closed_it_does_what_it_was_given(ctx):
    pool = ctx.Pool(2)
    seen = []
    pool.map_async(nap, range(12), "auto", seen.append)
    pool.close()
    pool.join()
    assert seen == [[*range(12)]]


def fail_to_begin():
    raise RuntimeError("never ready")


def test_a_pool_that_never_gets_ready():
    with procession.Pool(1, fail_to_begin) as pool:
        with pytest.raises(procession.pool.WorkerLostError, match="gave up"):
            pool.map(identity, range(100), chunksize="auto")
    pool.join()


class OwnQueues(procession.pool.Pool):
    def _setup_queues(self):
        super()._setup_queues()


@pytest.mark.parametrize("kind", [ThreadPool, OwnQueues])
def test_others_refuse_it(kind):
    with kind(1) as pool:
        for call in (pool.map, pool.imap, pool.imap_unordered):
            with pytest.raises(ValueError, match="chunksize='auto'"):
                call(identity, [1], chunksize="auto")
        assert pool.map(identity, [1]) == [1]
    pool.join()


@forked
@pytest.mark.parametrize("wrong", ["car", 0, -1])
def test_anything_else_is_refused(pool, wrong):
    for call in (pool.map, pool.imap):
        with pytest.raises((ValueError, TypeError)):
            call(identity, [1], chunksize=wrong)


@pytest.mark.parametrize("chunksize", [1, 7, 50, "auto", None])
def test_chunks_of_numbers_that_something_else_ends(chunksize):
    shared = [1]
    items = [*range(40), 2.5, None, True, *range(200), shared, shared, 2**70, "text", -1]
    with procession.get_context("fork").Pool(2) as pool:
        for work in (items, range(300), [1.5] * 300, [], [None], iter(items)):
            wanted = items if not isinstance(work, (list, range)) else list(work)
            assert pool.map(identity, work, chunksize) == wanted
        assert list(pool.imap(identity, items, chunksize or 1)) == items
        # With a function that goes with each task.
        assert pool.map(functools.partial(pow, 2), range(100), chunksize) == [2**n for n in range(100)]
        # An iterable that fails has no results, however far it came.
        with pytest.raises(ZeroDivisionError):
            list(pool.imap(identity, (1 // (30 - n) for n in range(50)), 50))
