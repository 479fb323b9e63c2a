"""Deaths: how long after a worker was killed its task fails."""

import os
import time

from . import WrongResult, workload

# Not from `signal`: spawned children import this module too, and it would take them as long as half of the package.
SIGKILL = 9


def tell_and_sleep(writer):
    os.write(writer, b"%d\n" % os.getpid())
    time.sleep(600)


def seconds_to_the_error(submit, reader, writer, error):
    """Have a task of submit(...) killed in which it sleeps; returns the time until waiting for it raises `error`."""
    get = submit(tell_and_sleep, writer)
    pid = int(os.read(reader, 100))
    # It sleeps, and so does what waits for it.
    time.sleep(0.02)
    began = time.perf_counter()
    os.kill(pid, SIGKILL)
    try:
        get()
    except error:
        return time.perf_counter() - began
    raise WrongResult("the task has a result")


def through_executors(pipe, count):
    """The standard package's pool would not answer. Its executor does, and each can be used once."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    def one():
        with ProcessPoolExecutor(2, get_context("fork")) as executor:
            return seconds_to_the_error(lambda *task: executor.submit(*task).result, *pipe, BrokenProcessPool)

    return sum(one() for _ in range(count))


def through_pool(mp, pipe, count):
    def submit(function, *arguments):
        return pool.apply_async(function, arguments).get

    with mp.get_context("fork").Pool(2) as pool:
        took = sum(seconds_to_the_error(submit, *pipe, mp.ProcessError) for _ in range(count))
        pool.close()
        pool.join()
    return took


@workload("Worker killed: until its task fails", count=40, unit="ms")
def death_to_error(mp, count):
    # The workers of both are forks, and inherit it.
    pipe = os.pipe()
    if mp.__name__ == "multiprocessing":
        return through_executors(pipe, count)
    return through_pool(mp, pipe, count)
