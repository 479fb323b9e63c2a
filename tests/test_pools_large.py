"""Large arguments and results of pools: memory of the worker's, and of the parent's, own."""

import gc
import os
import signal

import pytest

import procession
from procession.pool import WorkerLostError

numpy = pytest.importorskip("numpy")


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def ctx(request):
    return procession.get_context(request.param)


@pytest.fixture
def fork():
    return procession.get_context("fork")


def scale(numbers, by=2):
    numbers *= by
    return numbers


def total(numbers):
    return float(numbers.sum())


def zeros_and(number):
    made = numpy.zeros(150_000)
    made[-1] = number
    return made


def many(number):
    return {"arrays": [numpy.full(10_000, number + n) for n in range(40)], "bytes": b"b" * 1_500_000}


def test_arrays_go_to_workers_and_come_back_writable(ctx):
    with ctx.Pool(2) as pool:
        for length in (10, 5_000, 100_000, 800_000):
            numbers = numpy.arange(length, dtype=numpy.float64)
            results = [
                pool.apply(scale, (numbers,)),
                pool.apply_async(scale, (numbers,), {"by": 3}).get(60),
                *pool.map(scale, [numbers] * 3, chunksize=1),
                *pool.imap(scale, [numbers] * 3),
                *pool.starmap(scale, [(numbers, 4)]),
            ]
            assert [result[-1] / numbers[-1] for result in results] == [2, 3, 2, 2, 2, 2, 2, 2, 4]
            for result in results:
                result[0] = 7
            assert numbers[0] == 0
        assert sorted(made[-1] for made in pool.imap_unordered(zeros_and, range(20))) == list(range(20))
        made = pool.apply(many, (5,))
        assert made["bytes"] == b"b" * 1_500_000
        assert all((array == 5 + n).all() for n, array in enumerate(made["arrays"]))


def test_many_results_may_be_kept(fork):
    with fork.Pool(2) as pool:
        kept = pool.map(zeros_and, range(100), chunksize=1)
        # Another process that has them: none sees what the other writes.
        with fork.Pool(1) as other:
            assert other.apply(total, (kept[3],)) == 3
            kept[3][-1] = 4
            assert other.apply(total, (kept[3],)) == 4
        assert [made[-1] for made in kept] == [0, 1, 2, 4, *range(4, 100)]


def test_with_retries(fork):
    numbers = numpy.arange(100_000, dtype=numpy.float64)
    with fork.Pool(2) as pool:
        calls = [pool.apply_async(scale, (numbers, by), retries=by % 2) for by in range(10)]
        assert [call.get(60)[-1] for call in calls] == [99_999 * by for by in range(10)]


def die_with(numbers):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_with_a_large_argument_harms_no_other(fork):
    numbers = numpy.arange(300_000, dtype=numpy.float64)
    with fork.Pool(2) as pool:
        for _ in range(4):
            lost = pool.apply_async(die_with, (numbers,))
            assert pool.map(total, [numbers] * 6, chunksize=1) == [float(numbers.sum())] * 6
            with pytest.raises(WorkerLostError):
                lost.get(60)


def once_killed(path, numbers):
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return numbers * 2


def test_a_large_argument_is_there_again_when_its_task_is_retried(fork, tmp_path):
    numbers = numpy.arange(300_000, dtype=numpy.float64)
    with fork.Pool(1) as pool:
        doubled = pool.apply_async(once_killed, (str(tmp_path / "killed"), numbers), retries=1).get(60)
    assert (doubled == numbers * 2).all()


def test_results_outlive_their_pool(fork):
    with fork.Pool(2) as pool:
        kept = pool.map(zeros_and, range(4), chunksize=1)
        pool.close()
        pool.join()
    del pool
    gc.collect()
    kept[0][0] = 1
    assert [made[-1] for made in kept] == [0, 1, 2, 3]
