"""The pools of procession and of its peers behind one interface, and the work that each is given.

A peer is imported when it is its turn, and nothing else is.
"""

import os
import time

WORKERS = max(2, os.cpu_count() or 1)
MEGABYTES = 8


def successor(number):
    return number + 1


def last_of(array):
    return float(array[-1])


def total(array):
    return float(array.sum())


def array_of(number):
    import numpy

    return numpy.full(MEGABYTES * 125_000, float(number))


class Standard:
    """`multiprocessing.Pool`, and whatever has its interface."""

    def __init__(self, workers=WORKERS):
        import multiprocessing

        self.pool = multiprocessing.Pool(workers)

    def call(self, function, argument):
        return self.pool.apply(function, (argument,))

    def submit(self, function, arguments):
        return [result.get() for result in [self.pool.apply_async(function, (one,)) for one in arguments]]

    def map(self, function, arguments, chunk):
        return self.pool.map(function, arguments, chunk)

    def close(self):
        self.pool.close()
        self.pool.join()


class Procession(Standard):
    def __init__(self, workers=WORKERS):
        import procession

        self.pool = procession.Pool(workers)


class Executor:
    """`concurrent.futures.ProcessPoolExecutor`."""

    def __init__(self, workers=WORKERS):
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(workers)

    def call(self, function, argument):
        return self.pool.submit(function, argument).result()

    def submit(self, function, arguments):
        return [future.result() for future in [self.pool.submit(function, one) for one in arguments]]

    def map(self, function, arguments, chunk):
        return list(self.pool.map(function, arguments, chunksize=chunk))

    def close(self):
        self.pool.shutdown()


class Loky(Executor):
    def __init__(self, workers=WORKERS):
        import loky

        self.pool = loky.ProcessPoolExecutor(workers)


class Pebble:
    def __init__(self, workers=WORKERS):
        import pebble

        self.pool = pebble.ProcessPool(workers)

    def call(self, function, argument):
        return self.pool.schedule(function, args=(argument,)).result()

    def submit(self, function, arguments):
        return [future.result() for future in [self.pool.schedule(function, args=(one,)) for one in arguments]]

    def map(self, function, arguments, chunk):
        return list(self.pool.map(function, arguments, chunksize=chunk).result())

    def close(self):
        self.pool.close()
        self.pool.join()


class Mpire:
    def __init__(self, workers=WORKERS):
        import mpire

        self.pool = mpire.WorkerPool(workers, keep_alive=True)

    def call(self, function, argument):
        return self.pool.apply(function, (argument,))

    def submit(self, function, arguments):
        return [result.get() for result in [self.pool.apply_async(function, (one,)) for one in arguments]]

    def map(self, function, arguments, chunk):
        # An array as an element would be taken for the arguments of the call.
        arguments = [(one,) for one in arguments]
        return self.pool.map(function, arguments, chunk_size=chunk, concatenate_numpy_output=False)

    def close(self):
        self.pool.stop_and_join()


class Joblib:
    """`joblib.Parallel` with its default backend. It has no call for one task, and no order but that of its batches."""

    def __init__(self, workers=WORKERS):
        import joblib

        self.delayed, self.kind = joblib.delayed, joblib.Parallel
        # With one worker it would work in this process.
        self.pool = joblib.Parallel(max(2, workers)).__enter__()

    def call(self, function, argument):
        return self.pool([self.delayed(function)(argument)])[0]

    def submit(self, function, arguments):
        return self.map(function, arguments, 1)

    def map(self, function, arguments, chunk):
        self.pool.batch_size = chunk
        return self.pool(self.delayed(function)(one) for one in arguments)

    def close(self):
        self.pool.__exit__(None, None, None)


PEERS = {
    "standard": Standard,
    "executor": Executor,
    "loky": Loky,
    "pebble": Pebble,
    "mpire": Mpire,
    "joblib": Joblib,
    "procession": Procession,
}


class WrongResult(Exception):
    """The work was done wrongly: its time means nothing."""


def timed(peer, count, work, wanted):
    """The seconds for work(pool), once all workers run."""
    pool = PEERS[peer]()
    pool.map(successor, range(WORKERS * 8), 1)
    began = time.perf_counter()
    got = work(pool)
    took = time.perf_counter() - began
    pool.close()
    if got != wanted:
        raise WrongResult(f"got {got!r:.200}, not {wanted!r:.200}")
    return took


def one_by_one(peer, count):
    return timed(peer, count, lambda pool: [pool.call(successor, n) for n in range(count)], list(range(1, count + 1)))


def submitted(peer, count):
    return timed(peer, count, lambda pool: pool.submit(successor, range(count)), list(range(1, count + 1)))


def mapped(peer, count):
    return timed(peer, count, lambda pool: pool.map(successor, range(count), 1), list(range(1, count + 1)))


def mapped_in_chunks(peer, count):
    return timed(peer, count, lambda pool: pool.map(successor, range(count), 1000), list(range(1, count + 1)))


def array_arguments(peer, count):
    # An array for each: joblib, for one, writes an array that it has met before only once, even if it has changed.
    arrays = [array_of(n) for n in range(count)]
    return timed(peer, count, lambda pool: pool.map(last_of, arrays, 1), [float(n) for n in range(count)])


def array_results(peer, count):
    def work(pool):
        return [last_of(array) for array in pool.map(array_of, range(count), 1)]

    return timed(peer, count, work, [float(n) for n in range(count)])


def opened_and_closed(peer, count):
    began = time.perf_counter()
    for _ in range(count):
        pool = PEERS[peer]()
        got = pool.map(successor, range(100), 10)
        pool.close()
        if got != list(range(1, 101)):
            raise WrongResult(got)
    return time.perf_counter() - began


# What is done, how often (and with --quick), and the unit of what is printed for each.
WORK = {
    "one_by_one": (one_by_one, "a task, one call after another", 1_000, 100, "us"),
    "submitted": (submitted, "a task of many submitted at once", 5_000, 300, "us"),
    "mapped": (mapped, "a task of a map, one by one", 5_000, 300, "us"),
    "mapped_in_chunks": (mapped_in_chunks, "a task of a map, chunks of 1000", 200_000, 20_000, "us"),
    "array_arguments": (array_arguments, f"an array of {MEGABYTES} MB as argument", 20, 4, "ms"),
    "array_results": (array_results, f"an array of {MEGABYTES} MB as result", 20, 4, "ms"),
    "opened_and_closed": (opened_and_closed, "a pool: open, 100 tasks, close", 10, 2, "ms"),
}
