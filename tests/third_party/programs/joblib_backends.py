"""joblib over its two kinds of processes, with arrays that it puts into shared files."""

import multiprocessing

import numpy
from joblib import Parallel, delayed, parallel_config


def square(number):
    return number * number


def add_up(array, row):
    return float(array[row].sum()), isinstance(array, numpy.memmap)


def fail(number):
    raise ValueError("on purpose")


def squares(count):
    return Parallel(n_jobs=2)(delayed(square)(number) for number in range(count))


def daemon_and_name(_):
    process = multiprocessing.current_process()
    return process.daemon, process.name.rpartition("-")[0] != "MainProcess"


if __name__ == "__main__":
    big = numpy.ones((4, 200_000))
    for backend in ("loky", "multiprocessing", "threading"):
        with parallel_config(backend=backend, n_jobs=2):
            print(backend, Parallel()(delayed(square)(number) for number in range(100))[-3:])
            print(Parallel(max_nbytes=1000)(delayed(add_up)(big, row) for row in range(4)))
            if backend != "multiprocessing":
                print(sorted(Parallel(return_as="generator_unordered")(delayed(square)(n) for n in range(5))))
            try:
                Parallel()(delayed(fail)(number) for number in range(4))
            except ValueError as error:
                print("error", error)
            try:
                Parallel(timeout=0.5)(delayed(__import__("time").sleep)(5) for _ in range(2))
            except Exception as error:
                print("time is over", type(error).__name__)
    with parallel_config(backend="multiprocessing", n_jobs=2):
        print(Parallel()(delayed(daemon_and_name)(None) for _ in range(2)))
        print(Parallel()(delayed(squares)(number) for number in (2, 3)))
