"""A new worker for each task, very often: no task is lost where one worker ends and the next begins.

PROCESSION_LIVES says how often (`make lives`: 100,000 times).
"""

import os

import pytest

import processes
import procession

LIVES = int(os.environ.get("PROCESSION_LIVES", "2000"))


def identity(x):
    return x


def pid(_):
    return os.getpid()


@pytest.mark.once
@pytest.mark.timeout(60 + LIVES / 50)
def test_each_task_its_own_worker():
    """Standard package: races between the end of one worker and the start of the next lose a task now and then.

    ProcessPoolExecutor may hang up to Python 3.15. mpire now and then takes the end of a worker for its death.
    """
    with procession.get_context("fork").Pool(1) as pool:
        pool.apply(identity, (1,))
    pool.join()
    del pool
    before = processes.descriptors()
    pool = procession.get_context("fork").Pool(3, maxtasksperchild=1)
    assert pool.map(identity, range(LIVES), chunksize=1) == list(range(LIVES))
    pids = pool.map(pid, range(30), chunksize=1)
    assert len(set(pids)) == len(pids)
    pool.close()
    pool.join()
    # Those that have ended are forgotten.
    assert len(pool._pool) <= 3
    del pool
    assert processes.eventually(lambda: not processes.strays())
    assert processes.eventually(lambda: not processes.descriptors() - before)
