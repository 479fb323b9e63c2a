"""Pools: what they return, raise, keep and give back, as long as nobody dies."""

import functools
import gc
import itertools
import operator
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref

import pytest

import processes
import procession
from procession import pool as pool_module
from procession.pool import (
    AsyncResult,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
    MaybeEncodingError,
    RemoteTraceback,
    ThreadPool,
)


def square(x):
    return x * x


def add(a, b=0, *, c=0):
    return a + b + c


def pid_of(_):
    time.sleep(0.01)
    return os.getpid()


def fail(text):
    raise ValueError(text)


def fail_at_three(x):
    if x == 3:
        raise ValueError("three")
    return x


def fail_slowly_at_zero(x):
    time.sleep(0.3 if x == 0 else 0)
    raise ValueError(x)


class Argument(list):
    """A list that can be referred to weakly."""


class Counter:
    def __init__(self):
        self.count = 0

    def more(self, by):
        return self.count + by


class FailsToLoad:
    """Can be pickled, and not unpickled."""

    def __reduce__(self):
        return fail, ("not to be had",)


def fails_to_load_at_zero(x):
    time.sleep(x / 20)
    return x or FailsToLoad()


def numbers_that_fail(count):
    yield from range(count)
    raise LookupError("no more numbers")


def started_with(value):
    global kept
    kept = value


def what_was_kept():
    return kept


@pytest.fixture(params=["processes", "threads"])
def any_pool(request):
    with procession.get_context("fork").Pool(2) if request.param == "processes" else ThreadPool(2) as pool:
        yield pool
    pool.join()


@pytest.fixture
def pool():
    with procession.get_context("fork").Pool(2) as pool:
        yield pool
    pool.join()


# What calls return


def test_every_way_to_call(ctx):
    with ctx.Pool(2) as pool:
        assert pool.apply(add, (1, 2), {"c": 3}) == 6
        assert pool.apply(add, [1]) == 1
        assert pool.apply_async(square, (5,)).get() == 25
        assert pool.map(square, range(100)) == [x * x for x in range(100)]
        assert pool.map(square, iter(range(10)), chunksize=3) == [x * x for x in range(10)]
        assert pool.map_async(square, {3: 0, 4: 0}).get() == [9, 16]
        assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
        assert pool.starmap_async(operator.mul, zip([2, 3], [4, 5], strict=True), chunksize=1).get() == [8, 15]
        assert list(pool.imap(square, range(50), chunksize=7)) == [x * x for x in range(50)]
        assert sorted(pool.imap_unordered(square, itertools.chain(range(50)))) == [x * x for x in range(50)]
    pool.join()


def test_threads_give_the_same(any_pool):
    assert any_pool.apply(add, (1, 2), {"c": 3}) == 6
    assert any_pool.map(square, range(1000), chunksize=1) == [x * x for x in range(1000)]
    assert any_pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert list(any_pool.imap(square, iter(range(100)))) == [x * x for x in range(100)]
    assert sorted(any_pool.imap_unordered(square, range(100), 9)) == [x * x for x in range(100)]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_no_item_is_lost_between_chunks(any_pool, size):
    for chunksize in (None, 1, 3, 100):
        assert any_pool.map(square, range(size), chunksize) == [x * x for x in range(size)]
    for chunksize in (1, 3, 100):
        assert list(any_pool.imap(square, range(size), chunksize)) == [x * x for x in range(size)]


def test_functions_with_a_state_go_with_each_task(pool):
    counter = Counter()
    assert pool.apply(counter.more, (1,)) == 1
    counter.count = 10
    assert pool.apply(counter.more, (1,)) == 11
    assert pool.map(functools.partial(add, 5), [1, 2]) == [6, 7]
    assert pool.map(str.upper, ["a", "b"]) == ["A", "B"]
    assert pool.map(Counter, []) == []


def test_large_arguments_and_results(pool):
    blob = os.urandom(3_000_000)
    assert pool.map(bytes, [blob, blob[:1_500_000]], chunksize=1) == [blob, blob[:1_500_000]]


def test_more_results_than_fit_the_window(pool):
    blob = bytes(100_000)
    results = [pool.apply_async(bytes, (blob,)) for _ in range(50)]
    assert all(result.get() == blob for result in results)


def test_tasks_are_spread_over_the_workers(pool):
    assert len(set(pool.map(pid_of, range(20), chunksize=1))) == 2


def test_results_of_many_calls_from_many_threads(pool):
    wrong = []

    def call(base):
        for x in range(base, base + 200):
            if pool.apply(square, (x,)) != x * x:
                wrong.append(x)

    threads = [threading.Thread(target=call, args=(base * 1000,)) for base in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_initializer_runs_in_each_worker(ctx):
    with ctx.Pool(2, started_with, ("this",)) as pool:
        assert {pool.apply(what_was_kept) for _ in range(10)} == {"this"}
    pool.join()


def test_workers_are_replaced_after_their_tasks(ctx):
    with ctx.Pool(2, maxtasksperchild=2) as pool:
        pids = pool.map(pid_of, range(12), chunksize=1)
        assert all(pids.count(pid) <= 2 for pid in pids)
        assert pool.apply(square, (3,)) == 9
    pool.join()


# Results to be waited for


def test_results_tell_how_far_they_are(any_pool):
    slow = any_pool.apply_async(time.sleep, (0.3,))
    assert isinstance(slow, AsyncResult)
    assert not slow.ready()
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    with pytest.raises(procession.TimeoutError):
        slow.get(timeout=0.01)
    slow.wait(0.01)
    slow.wait()
    assert slow.ready()
    assert slow.successful()
    failed = any_pool.map_async(fail, ["x"])
    assert isinstance(failed, MapResult)
    failed.wait()
    assert not failed.successful()


def test_a_result_can_be_had_again(any_pool):
    result = any_pool.apply_async(list, ("ab",))
    assert result.get() is result.get()
    failed = any_pool.apply_async(fail, ("x",))
    errors = []
    for _ in range(2):
        with pytest.raises(ValueError) as raised:
            failed.get()
        errors.append(raised.value)
    assert errors[0] is errors[1]


def test_ready_comes_without_waiting(any_pool):
    result = any_pool.apply_async(square, (3,))
    assert processes.eventually(result.ready)


def test_streams_end_and_time_out(any_pool):
    for imap, kind in ((any_pool.imap, IMapIterator), (any_pool.imap_unordered, IMapUnorderedIterator)):
        stream = imap(time.sleep, [0.2])
        assert isinstance(stream, kind)
        assert iter(stream) is stream
        with pytest.raises(procession.TimeoutError):
            stream.next(timeout=0.01)
        assert stream.next() is None
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(stream)


def test_generic_alias():
    assert AsyncResult[int].__origin__ is AsyncResult


def test_a_stream_does_not_wait_for_its_items(pool):
    more = threading.Event()

    def items():
        yield 1
        more.wait()
        yield 2

    stream = pool.imap(square, items())
    assert next(stream) == 1
    more.set()
    assert list(stream) == [4]


def test_streams_take_turns(pool):
    endless = pool.imap(square, itertools.count())
    assert list(pool.imap(square, iter(range(10)))) == [x * x for x in range(10)]
    assert next(endless) == 0


def test_what_was_handed_to_imap_is_done_though_nobody_looks(tmp_path):
    pool = procession.get_context("fork").Pool(2)
    pool.imap(os.mkdir, (tmp_path / str(n) for n in range(30)))
    pool.close()
    pool.join()
    assert len(os.listdir(tmp_path)) == 30


# Callbacks


def test_callbacks_run_in_order_before_the_result_is_ready(any_pool):
    got, errors = [], []
    results = [any_pool.apply_async(square, (x,), callback=got.append) for x in range(20)]
    for result in results:
        result.wait()
    assert sorted(got) == [x * x for x in range(20)]
    result = any_pool.map_async(square, [1, 2], callback=got.append, error_callback=errors.append)
    assert result.get() == [1, 4]
    assert got[-1] == [1, 4]
    failed = any_pool.apply_async(fail, ("x",), callback=got.append, error_callback=errors.append)
    failed.wait()
    assert [str(error) for error in errors] == ["x"]
    assert len(got) == 21


def test_the_result_of_a_call_nobody_keeps_is_called_back(any_pool):
    got = []
    any_pool.apply_async(square, (3,), callback=got.append)
    gc.collect()
    assert processes.eventually(lambda: got == [9])


def test_an_empty_map_is_done_at_once_without_a_callback(any_pool):
    got = []
    result = any_pool.map_async(square, [], callback=got.append)
    assert result.ready()
    assert result.get() == []
    assert any_pool.apply(square, (3,)) == 9
    assert got == []


def test_a_callback_may_call_the_pool(pool):
    got = []
    pool.apply_async(square, (3,), callback=lambda value: got.append(pool.apply(square, (value,)))).wait()
    assert got == [81]


# Errors


def test_errors_come_back_with_their_traceback(ctx):
    with ctx.Pool(1) as pool:
        with pytest.raises(ValueError, match="boom") as raised:
            pool.apply(fail, ("boom",))
        assert type(raised.value.__cause__) is RemoteTraceback
        assert "raise ValueError(text)" in str(raised.value.__cause__)
        with pytest.raises(ValueError, match="three"):
            pool.map(fail_at_three, range(10), chunksize=2)
    pool.join()


def test_a_map_fails_with_its_first_failure_when_all_is_in(any_pool):
    began = time.monotonic()
    with pytest.raises(ValueError, match="1"):
        any_pool.map(fail_slowly_at_zero, [0, 1], chunksize=1)
    assert time.monotonic() - began >= 0.3


def test_a_stream_goes_on_after_a_failure(any_pool):
    stream = any_pool.imap(fail_at_three, range(6))
    got = []
    while True:
        try:
            got.append(next(stream))
        except ValueError:
            got.append("failed")
        except StopIteration:
            break
    assert got == [0, 1, 2, "failed", 4, 5]


def test_errors_of_iterables_reach_the_consumer_in_their_place(any_pool):
    stream = any_pool.imap(square, numbers_that_fail(3))
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(LookupError) as raised:
        next(stream)
    assert raised.value.__cause__ is None
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(LookupError):
        list(any_pool.imap_unordered(square, numbers_that_fail(10), chunksize=4))
    with pytest.raises(LookupError):
        any_pool.map(square, numbers_that_fail(3))


def test_wrong_arguments():
    for count in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            procession.Pool(count)
    with pytest.raises(TypeError, match="callable"):
        procession.Pool(1, initializer=5)
    for most in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild"):
            procession.Pool(1, maxtasksperchild=most)


def test_wrong_calls(any_pool):
    for chunksize in (0, -2):
        with pytest.raises(ValueError, match="Chunksize"):
            any_pool.imap(square, [1], chunksize)
        with pytest.raises(ValueError, match="Chunksize"):
            any_pool.map(square, [1], chunksize)
    with pytest.raises(TypeError):
        any_pool.map(square, 5)
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pickle.dumps(any_pool)
    with pytest.raises(ValueError, match="still running"):
        any_pool.join()
    with pytest.raises(TypeError):
        any_pool.apply_async(square, (1,)).get("soon")


# The life of a pool


def test_a_closed_pool_finishes_and_takes_no_more(ctx):
    pool = ctx.Pool(2)
    results = [pool.apply_async(pid_of, (0,)) for _ in range(10)]
    assert "state=RUN" in repr(pool)
    pool.close()
    assert "state=CLOSE" in repr(pool)
    for call in (pool.map, pool.imap, pool.imap_unordered, pool.map_async, pool.starmap):
        with pytest.raises(ValueError, match="not running"):
            call(square, [1])
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    pool.join()
    assert all(result.ready() for result in results)
    assert all(worker.exitcode == 0 for worker in pool._pool)


def test_terminate_is_quick_and_can_be_repeated(pool):
    pool.map_async(time.sleep, [60] * 1000, chunksize=1)
    for _ in range(2):
        pool.terminate()
    pool.join()
    pool.join()
    assert all(worker.exitcode is not None for worker in pool._pool)


def test_a_result_that_cannot_be_unpickled_fails_the_map_that_has_others_to_come():
    with procession.get_context("fork").Pool(1) as pool:
        # The results are unpickled as they come.
        with pytest.raises(MaybeEncodingError, match="not to be had"):
            pool.map(fails_to_load_at_zero, range(4), chunksize=1)
        pool.close()
        pool.join()


def test_terminating_ends_a_map_that_failed_while_its_items_were_still_taken():
    def items():
        yield from range(5)
        fed.set()
        go_on.wait()

    fed, go_on = threading.Event(), threading.Event()
    with procession.get_context("fork").Pool(1) as pool:
        result, feed = pool._engine.map_async(pool, fail_at_three, items(), 1, False, None, None)
        feeding = threading.Thread(target=feed.feed, args=(9,))
        feeding.start()
        assert fed.wait(50)
        # It comes after the others.
        assert pool.apply(square, (2,)) == 4
        pool.terminate()
        with pytest.raises(ValueError, match="three"):
            result.get(50)
        go_on.set()
        feeding.join()


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_a_forgotten_pool_finishes_what_is_under_way_and_goes():
    pool = procession.get_context("fork").Pool(2)
    results = [pool.apply_async(pid_of, (0,)) for _ in range(10)]
    workers, gone = list(pool._pool), weakref.ref(pool)
    del pool
    assert {result.get() for result in results} <= {worker.pid for worker in workers}
    del results
    gc.collect()
    assert gone() is None
    assert processes.eventually(lambda: not any(worker.is_alive() for worker in workers))


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_forgotten_pool_leaves_nothing():
    pool = procession.get_context("fork").Pool(2)
    assert pool.apply(abs, (-1,)) == 1
    del pool
    gc.collect()


def test_a_forgotten_pool_is_warned_of():
    pool = procession.get_context("fork").Pool(1)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
        gc.collect()


def test_arguments_and_results_are_not_kept(pool):
    argument = Argument([1])
    kept = weakref.ref(argument)
    pool.map(len, [argument])
    del argument
    assert kept() is None
    result = pool.apply_async(set, ([1, 2],))
    value = weakref.ref(result.get())
    del result
    gc.collect()
    assert value() is None


def test_calls_under_way_are_counted(pool):
    results = [pool.apply_async(time.sleep, (0.1,)) for _ in range(3)]
    assert len(pool._cache) == 3
    for result in results:
        result.wait()
    assert not pool._cache


def test_a_pool_can_be_filled_up(pool):
    pool._processes = 4
    pool._repopulate_pool()
    assert len(pool._pool) == 4
    assert len(set(pool.map(pid_of, range(40), chunksize=1))) > 2


def test_workers_are_named_daemons(ctx, method):
    with ctx.Pool(1) as pool:
        [worker] = pool._pool
        assert worker.daemon
        assert "PoolWorker-" in worker.name
    pool.join()


def test_the_size_without_an_argument():
    count = getattr(os, "process_cpu_count", os.cpu_count)()
    with procession.Pool() as pool:
        assert len(pool._pool) == count
    pool.join()


def test_a_pool_is_of_no_use_in_a_forked_child(pool):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                pool.apply(square, (1,))
            except RuntimeError as error:
                code = 0 if "process that made it" in str(error) else 2
            pool.terminate()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.apply(square, (2,)) == 4


def test_programs_a_task_starts_can_be_interrupted(pool):
    probe = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert pool.apply(subprocess.check_output, ([sys.executable, "-c", probe],)) == b"True\n"


def test_errors_can_be_pickled():
    for error in (MaybeEncodingError(ValueError("x"), [1]), pool_module.WorkerLostError("x", -9, 5, "w", 3)):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)
    wrapped = pool_module.ExceptionWithTraceback(ValueError("x"), None)
    again = pickle.loads(pickle.dumps(wrapped))
    assert isinstance(again, ValueError)
    assert "ValueError: x" in str(again.__cause__)


def memory_of_task_rings():
    """What the shared memory takes that this process has for tasks, in bytes."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{number}"
        try:
            if "memfd:procession-tasks" in os.readlink(path):
                total += os.stat(path).st_blocks * 512
        except FileNotFoundError:
            pass  # the descriptor of the folder
    return total


@pytest.mark.parametrize("way", ["apply_async", "map_async", "imap"])
def test_tasks_wait_in_little_memory(way):
    """However many large tasks are handed in, only some are pickled before workers take them; and all are done."""
    blob, count = bytes(1 << 20), 100
    with procession.get_context("fork").Pool(1) as pool:
        # The worker is busy meanwhile.
        blocked = pool.apply_async(time.sleep, (0.5,))
        if way == "apply_async":
            results = [pool.apply_async(len, (blob,)) for _ in range(count)]
        elif way == "map_async":
            results = pool.map_async(len, [blob] * count, chunksize=1)
        else:
            results = pool.imap(len, (blob for _ in range(count)))
        time.sleep(0.1)
        assert not blocked.ready()
        assert 4 << 20 < memory_of_task_rings() < 20 << 20
        if way == "apply_async":
            got = [result.get() for result in results]
        else:
            got = results.get() if way == "map_async" else list(results)
        assert got == [1 << 20] * count
        pool.close()
        pool.join()


class FailingItems:
    """Says that it has items, and fails to give one."""

    def __len__(self):
        return 1

    def __iter__(self):
        raise LookupError("none")


def test_failed_calls_are_collected(pool):
    """An exception knows the frames it came through, these the result, and that the exception."""

    def call(submit):
        result = submit()
        result.wait()
        try:
            result.get()
        except Exception as error:
            kept = error  # noqa: F841
        return weakref.ref(result)

    references = sys.getrefcount(pool)
    gone = [
        call(lambda: pool.map_async(square, FailingItems())),
        call(lambda: pool.apply_async(fail, ("x",))),
        call(lambda: pool.apply_async(square, (threading.Lock(),), callback=lambda value: pool)),
    ]
    stream = pool.imap(square, FailingItems())
    with pytest.raises(LookupError):
        next(stream)
    del stream
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert sys.getrefcount(pool) == references


class AsksForItself:
    """Asks for the result that it is a part of, when it is unpickled."""

    result = None

    def __init__(self, name):
        self.name = name

    def __setstate__(self, state):
        if AsksForItself.result is not None:
            AsksForItself.result.get()


def make_asking(name):
    return AsksForItself(name)


def test_a_result_that_asks_for_itself_is_an_error():
    with procession.Pool(1) as pool:
        AsksForItself.result = pool.apply_async(make_asking, ("x",))
        try:
            with pytest.raises(MaybeEncodingError, match="unpickled by the caller itself"):
                AsksForItself.result.get()
        finally:
            AsksForItself.result = None


@pytest.mark.parametrize("kind", [procession.Pool, procession.pool.ThreadPool])
def test_numbers_of_workers_are_integers(kind):
    with pytest.raises(TypeError, match="float"):
        kind(1.5)


def test_threads_of_a_terminated_pool_begin_nothing_of_a_map_handed_over():
    busy, over, begun = threading.Semaphore(0), threading.Event(), []

    def hold():
        busy.release()
        over.wait()

    pool = ThreadPool(2)
    held = [pool.apply_async(hold) for _ in range(2)]
    for _ in held:
        assert busy.acquire(timeout=50)
    result = pool.map_async(begun.append, range(1000), chunksize=1)
    pool.terminate()
    over.set()
    pool.join()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get(timeout=50)
    assert begun == []


class Counted:
    """Has a length, and items of which the last is an error."""

    def __len__(self):
        return 3

    def __iter__(self):
        yield from (1, 2)
        raise KeyError("third")


def test_items_that_fail_fail_the_map(any_pool):
    with pytest.raises(KeyError, match="third"):
        any_pool.map(abs, Counted(), chunksize=1)
    assert any_pool.map(abs, range(-1000, 0), chunksize=1) == [*range(1000, 0, -1)]
