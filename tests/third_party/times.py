"""What users of libraries see: the time of many small tasks, and of large arguments, through each of them.

Prints a line per measurement: its name, a tab, the best of several times in milliseconds.
"""

import io
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import numpy
from joblib import Parallel, delayed
from tqdm.contrib.concurrent import process_map

WORKERS = 2
TASKS = 2000
ARRAYS = 16
ROUNDS = 5


def square(number):
    return number * number


def total(array):
    return float(array.sum())


def best(call):
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times) * 1000


def measurements():
    arrays = [numpy.ones(500_000) for _ in range(ARRAYS)]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as executor:
        list(executor.map(square, range(WORKERS)))
        yield f"concurrent.futures: map of {TASKS} small tasks", lambda: list(executor.map(square, range(TASKS)))
        yield f"concurrent.futures: {ARRAYS} arrays of 4 MB", lambda: list(executor.map(total, arrays))
    for backend in ("multiprocessing", "loky"):
        with Parallel(WORKERS, backend=backend, batch_size=1, max_nbytes=None) as parallel:
            parallel(delayed(square)(number) for number in range(WORKERS))
            yield (
                f"joblib, {backend}: {TASKS} small tasks",
                lambda parallel=parallel: parallel(delayed(square)(number) for number in range(TASKS)),
            )
            yield (
                f"joblib, {backend}: {ARRAYS} arrays of 4 MB",
                lambda parallel=parallel: parallel(delayed(total)(array) for array in arrays),
            )
    quiet = io.StringIO()
    yield (
        f"tqdm: process_map of {TASKS} small tasks, workers' start included",
        lambda: process_map(square, range(TASKS), max_workers=WORKERS, chunksize=10, file=quiet),
    )


if __name__ == "__main__":
    for name, call in measurements():
        print(f"{name}\t{best(call):.1f}", flush=True)
