"""Pools: single calls, many small tasks in each of the ways to hand them in, opening and closing."""

import os
import time

from . import expect, workload

WORKERS = max(2, os.cpu_count() or 1)


def successor(number):
    return number + 1


def length(blob):
    return len(blob)


def timed(mp, work, wanted):
    """The seconds that work(pool) takes on a pool whose workers all run."""
    with mp.get_context("fork").Pool(WORKERS) as pool:
        pool.map(successor, range(WORKERS * 8), chunksize=1)
        began = time.perf_counter()
        got = work(pool)
        took = time.perf_counter() - began
        expect(got, wanted)
        pool.close()
        pool.join()
    return took


@workload("Pool.apply", count=3_000, target=8)
def pool_apply(mp, count):
    return timed(mp, lambda pool: [pool.apply(successor, (n,)) for n in range(count)], list(range(1, count + 1)))


@workload("Pool.apply_async: 10,000, then get each", count=10_000, target=10)
def pool_apply_async(mp, count):
    def work(pool):
        results = [pool.apply_async(successor, (n,)) for n in range(count)]
        return [result.get() for result in results]

    return timed(mp, work, list(range(1, count + 1)))


@workload("Pool.map, chunksize 1", count=10_000, target=12)
def pool_map_chunksize_1(mp, count):
    return timed(mp, lambda pool: pool.map(successor, range(count), chunksize=1), list(range(1, count + 1)))


@workload("Pool.map, default chunks", count=400_000, target=1.5)
def pool_map(mp, count):
    return timed(mp, lambda pool: pool.map(successor, range(count)), list(range(1, count + 1)))


@workload("Pool.imap", count=10_000, target=12)
def pool_imap(mp, count):
    return timed(mp, lambda pool: list(pool.imap(successor, range(count))), list(range(1, count + 1)))


@workload("Pool.imap_unordered", count=10_000, target=12)
def pool_imap_unordered(mp, count):
    return timed(mp, lambda pool: sorted(pool.imap_unordered(successor, range(count))), list(range(1, count + 1)))


@workload("Pool.starmap, default chunks", count=200_000)
def pool_starmap(mp, count):
    return timed(mp, lambda pool: pool.starmap(pow, [(n, 2) for n in range(count)]), [n * n for n in range(count)])


@workload("Pool.map, arguments of 1 MB", count=200)
def pool_map_1mb(mp, count):
    blob = bytes(1 << 20)
    return timed(mp, lambda pool: pool.map(length, [blob] * count, chunksize=1), [len(blob)] * count)


def last_item(array):
    return float(array[-1])


def zeros(length):
    import numpy

    return numpy.zeros(length)


@workload("Pool.map, NumPy arguments of 8 MB", count=60, target=8)
def pool_array_arguments(mp, count):
    import numpy

    arrays = [numpy.full(1_000_000, float(number)) for number in range(4)]
    work = [arrays[number % 4] for number in range(count)]
    wanted = [float(number % 4) for number in range(count)]
    return timed(mp, lambda pool: pool.map(last_item, work, chunksize=1), wanted)


@workload("Pool.imap, NumPy results of 8 MB", count=200, target=12)
def pool_array_results(mp, count):
    def work(pool):
        return [float(array[-1]) for array in pool.imap(zeros, [1_000_000] * count)]

    return timed(mp, work, [0.0] * count)


@workload("Pool.map, NumPy results of 8 MB, all kept", count=30)
def pool_array_results_kept(mp, count):
    return timed(mp, lambda pool: sum(len(array) for array in pool.map(zeros, [1_000_000] * count, 1)), 10**6 * count)


@workload("Pool: open, map 100, close, join", count=20, unit="ms", target=1.5)
def pool_open_close(mp, count):
    ctx = mp.get_context("fork")
    wanted = list(range(1, 101))
    began = time.perf_counter()
    for _ in range(count):
        with ctx.Pool(WORKERS) as pool:
            expect(pool.map(successor, range(100)), wanted)
            pool.close()
            pool.join()
    return time.perf_counter() - began
