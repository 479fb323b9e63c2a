"""What workers of a pool do besides tasks: their own beginning and end, a state, a limit of memory, a place to run."""

import os
import signal
import threading
import time

import pytest

import processes
import procession
from procession.pool import MaybeEncodingError, ThreadPool, WorkerLostError

# What does not depend on how workers are started.
forked = pytest.mark.parametrize("method", ["fork"], indirect=True)


def square(x):
    return x * x


def begin():
    global begun
    begun = os.getpid()


def has_begun(_):
    return begun == os.getpid()


def begin_with(state):
    state["begun"] = os.getpid()


def count(state, *args, **kwds):
    assert state["begun"] == os.getpid()
    return args, kwds


def add(state, x):
    state["sum"] = state.get("sum", 0) + x
    return x


def sum_of(state):
    return os.getpid(), state.get("sum", 0)


def farewell():
    return os.getpid()


def note_and_sleep(note):
    note.write_text("here")
    time.sleep(600)


def fail():
    raise ValueError("so long")


def fail_to_begin():
    raise ValueError("this can't begin")


def leave():
    raise SystemExit(3)


def lock():
    return threading.Lock()


def resident():
    """In KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


def grow_beyond(limit):
    """Keep memory, written to, for good."""
    while resident() <= limit:
        kept.append(b"x" * (8 << 20))
    return os.getpid()


kept = []


def affinity(_=None):
    time.sleep(0.01)
    return os.getpid(), os.sched_getaffinity(0)


def finish(pool):
    pool.close()
    pool.join()


def test_workers_begin_and_end(ctx):
    pool = ctx.Pool(2, worker_init=begin, worker_exit=farewell)
    pids = {worker.pid for worker in pool._pool}
    assert all(pool.map(has_begun, range(20)))
    finish(pool)
    told = pool.get_exit_results()
    assert set(told) == pids
    assert len(told) == 2
    # And tells it again.
    assert pool.get_exit_results() == told


def test_workers_have_a_state(ctx):
    pool = ctx.Pool(2, worker_init=begin_with, worker_exit=sum_of, use_worker_state=True)
    assert pool.apply(count, (1, 2), {"three": 3}) == ((1, 2), {"three": 3})
    assert pool.apply_async(count, kwds={"four": 4}).get() == ((), {"four": 4})
    assert pool.map(add, range(10)) == [*range(10)]
    assert pool.starmap(add, [(10,), (11,)]) == [10, 11]
    assert [*pool.imap(add, range(12, 15))] == [12, 13, 14]
    assert [*pool.imap(add, range(15, 20), chunksize=2)] == [*range(15, 20)]
    assert sorted(pool.imap_unordered(add, range(20, 25))) == [*range(20, 25)]
    finish(pool)
    told = pool.get_exit_results()
    assert len(dict(told)) == 2
    assert sum(total for _, total in told) == sum(range(25))


@forked
def test_a_state_without_anything_else(ctx):
    with ctx.Pool(1, use_worker_state=True) as pool:
        assert pool.map(add, [1, 2]) == [1, 2]
        assert pool.apply(sum_of)[1] == 3


@forked
def test_a_worker_that_was_replaced_has_told_as_well(ctx):
    pool = ctx.Pool(2, maxtasksperchild=5, worker_exit=sum_of, use_worker_state=True)
    assert sorted(pool.imap_unordered(add, range(15))) == [*range(15)]
    finish(pool)
    told = pool.get_exit_results()
    assert len(told) >= 3
    assert sum(total for _, total in told) == sum(range(15))
    assert len({pid for pid, _ in told}) == len(told)


@forked
def test_those_that_are_not_needed_any_more_end_in_order(ctx):
    pool = ctx.Pool(3, worker_exit=farewell)
    pids = {worker.pid for worker in pool._pool}
    pool.shrink(2)
    assert processes.eventually(lambda: len(pool._pool) == 1)
    finish(pool)
    assert {*pool.get_exit_results()} == pids


@forked
def test_what_the_end_raises_stands_in_its_place(ctx):
    pool = ctx.Pool(2, worker_exit=fail)
    assert pool.apply(square, (3,)) == 9
    finish(pool)
    with pytest.raises(ValueError, match="so long") as raised:
        pool.get_exit_results()
    assert "in fail" in str(raised.value.__cause__)
    assert [type(told) for told in pool.get_exit_results(return_exceptions=True)] == [ValueError] * 2


@pytest.mark.parametrize(("end", "error"), [(leave, SystemExit), (lock, MaybeEncodingError)])
def test_the_end_may_go_wrong_in_any_way(end, error):
    pool = procession.Pool(1, worker_exit=end)
    finish(pool)
    with pytest.raises(error):
        pool.get_exit_results()


@forked
def test_there_is_no_end_for_those_that_are_ended(ctx, tmp_path):
    pool = ctx.Pool(1, worker_exit=farewell)
    result = pool.apply_async(note_and_sleep, (tmp_path / "note",))
    assert processes.eventually((tmp_path / "note").exists)
    [worker] = pool._pool
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get()
    finish(pool)
    told = pool.get_exit_results()
    assert len(told) == 1
    assert pid not in told

    with ctx.Pool(1, worker_exit=farewell) as pool:
        pool.apply(square, (2,))
    pool.join()
    assert pool.get_exit_results() == []


@forked
def test_results_of_ends_are_there_when_all_have_ended(ctx):
    with ctx.Pool(1, worker_exit=farewell) as pool:
        with pytest.raises(ValueError, match="still running"):
            pool.get_exit_results()
    pool.join()
    plain = ctx.Pool(1)
    finish(plain)
    assert plain.get_exit_results() == []


def test_a_beginning_that_fails_breaks_the_pool(capfd):
    with procession.Pool(2, worker_init=fail_to_begin) as pool:
        with pytest.raises(WorkerLostError, match="gave up"):
            pool.apply(square, (2,))
    pool.join()
    assert "this can't begin" in capfd.readouterr().err


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


@forked
def test_an_end_that_dies_keeps_nobody_waiting(ctx):
    pool = ctx.Pool(2, worker_exit=kill_myself)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
    finish(pool)
    assert pool.get_exit_results() == []


# Memory


@forked
def test_a_worker_that_has_grown_is_replaced(ctx):
    # A forked one has what this process has.
    limit = resident() + (64 << 10)
    pool = ctx.Pool(1, max_memory_per_child=limit, worker_exit=farewell)
    first = pool.apply(os.getpid)
    assert pool.apply(os.getpid) == first
    # The task that makes it too large is done as any other.
    assert pool.apply(grow_beyond, (limit,)) == first
    assert pool.apply(os.getpid) != first
    finish(pool)
    told = pool.get_exit_results()
    assert told[0] == first
    assert len(told) == 2


@forked
def test_one_that_is_too_large_from_the_beginning_does_one_task(ctx):
    with ctx.Pool(1, max_memory_per_child=1) as pool:
        pids = [pool.apply(os.getpid) for _ in range(3)]
        assert len(set(pids)) == 3
        assert pool.map(square, range(4), chunksize=2) == [0, 1, 4, 9]
    pool.join()


# Places to run


def test_workers_run_on_their_cpus(ctx):
    cpus = sorted(os.sched_getaffinity(0))
    sets = [{cpus[0]}, {cpus[-1]}]
    with ctx.Pool(2, cpu_ids=[cpus[0], [cpus[-1]]]) as pool:
        places = {worker.pid: place for place, worker in pool._crew._places.items()}
        found = pool.map(affinity, range(40), chunksize=1)
        assert all(where == sets[places[pid]] for pid, where in found)
    pool.join()
    # This process runs where it did.
    assert sorted(os.sched_getaffinity(0)) == cpus


@forked
def test_cpus_are_used_in_turn_and_by_those_that_replace_others(ctx):
    cpus = sorted(os.sched_getaffinity(0))
    with ctx.Pool(3, cpu_ids=[[cpu] for cpu in cpus[:2]], maxtasksperchild=2) as pool:
        for pid, where in pool.imap_unordered(affinity, range(10)):
            assert len(where) == 1, pid
            assert where <= {*cpus[:2]}
    pool.join()


# What can't be


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"worker_init": 3}, TypeError, "worker_init"),
        ({"worker_exit": "x"}, TypeError, "worker_exit"),
        ({"max_memory_per_child": 0}, ValueError, "max_memory_per_child"),
        ({"max_memory_per_child": 1.5}, TypeError, "float"),
        ({"cpu_ids": []}, ValueError, "cpu_ids"),
        ({"cpu_ids": [[]]}, ValueError, "cpu_ids"),
        ({"cpu_ids": [-1]}, ValueError, "cpu_ids"),
        ({"cpu_ids": [0.5]}, TypeError, "cpu_ids"),
        ({"cpu_ids": [["0"]]}, TypeError, "cpu_ids"),
        ({"cpu_ids": [100_000]}, ValueError, "can't use CPU 100000"),
        ({"cpu_ids": [1 << 80]}, ValueError, "can't use CPU"),
    ],
)
def test_wrong_values_are_refused_at_once(keywords, error, text):
    with pytest.raises(error, match=text):
        procession.Pool(1, **keywords)


@pytest.mark.parametrize(
    "keyword", ["max_memory_per_child", "worker_init", "worker_exit", "use_worker_state", "cpu_ids"]
)
def test_pools_of_threads_have_none_of_it(keyword):
    with pytest.raises(TypeError, match=keyword):
        ThreadPool(1, **{keyword: None})


class OwnQueues(procession.pool.Pool):
    def _setup_queues(self):
        super()._setup_queues()


def test_nor_have_pools_with_queues_of_their_own():
    with pytest.raises(TypeError, match="OwnQueues has queues or workers of its own"):
        OwnQueues(1, worker_init=begin)
