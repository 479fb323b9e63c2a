"""Time limits of a pool's tasks, and tasks that are tried again when their workers die."""

import hashlib
import itertools
import math
import os
import pickle
import signal
import time

import pytest

import processes
import procession
from procession.pool import Pool, SoftTimeLimitExceeded, ThreadPool, TimeLimitExceeded, WorkerLostError

# For tasks that take longer than that in any case.
SHORT = 0.2
# Long enough for a task to begin in it, and for one that is quick to be done, whatever else the machine does.
ENOUGH = 1
AMPLE = 45


def identity(x):
    return x


def sleep_if(x, slow):
    if x == slow:
        time.sleep(600)
    return x


def pair(x, y):
    time.sleep(600 if x == 1 else 0)
    return x + y


def slow_at_one(x):
    return sleep_if(x, 1)


def say_pid_and_sleep(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    os.rename(path, path + ".done")
    time.sleep(600)


def catch_soft_limit():
    try:
        time.sleep(600)
    except SoftTimeLimitExceeded as error:
        return "caught", str(error)


def catch_in_a_loop():
    count = 0
    try:
        while True:
            count += 1
    except SoftTimeLimitExceeded:
        return count


def catch_twice():
    """How often it is raised."""
    count = 0
    for seconds in (600, 1.5 * ENOUGH):
        try:
            time.sleep(seconds)
        except SoftTimeLimitExceeded:
            count += 1
    return count


def wait_in_a_lock():
    lock = procession.Lock()
    lock.acquire()
    lock.acquire()


def spin_for(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def block_and_sleep():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)


def handled_signals():
    return [n for n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if signal.getsignal(n) is not signal.SIG_DFL]


def die_until(path, lives):
    """Dies as often as that, and notes each time."""
    with open(path, "a") as file:
        file.write(".")
    if os.path.getsize(path) <= lives:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.path.getsize(path)


def die_once_for(item):
    path, number = item
    return die_until(f"{path}-{number}", number % 2), number


def fail(path):
    with open(path, "a") as file:
        file.write(".")
    raise LookupError("it is an answer")


def inner_soft_limit():
    with procession.get_context("fork").Pool(1) as pool:
        return pool.apply(catch_soft_limit, soft_timeout=ENOUGH)


@pytest.fixture
def pool(ctx):
    # Their initializer has the workers import this module before they begin.
    with ctx.Pool(2, identity, (1,)) as pool:
        yield pool
    pool.join()


@pytest.fixture
def forked():
    with procession.get_context("fork").Pool(2) as pool:
        yield pool
    pool.join()


def test_time_limit(pool, tmp_path):
    """billiard, pebble, mpire: the task fails as well. The others have no such thing."""
    path = str(tmp_path / "pid")
    slow = pool.apply_async(say_pid_and_sleep, (path,), timeout=ENOUGH)
    others = [pool.apply_async(identity, (x,), timeout=AMPLE) for x in range(20)]
    with pytest.raises(TimeLimitExceeded, match="say_pid_and_sleep took longer than its limit of 1 s") as raised:
        slow.get()
    error = raised.value
    assert isinstance(error, procession.TimeoutError)
    assert (error.limit, error.task) == (1.0, 0)
    assert f"pid {error.pid}" in str(error)
    assert error.worker in str(error)
    if os.path.exists(path + ".done"):
        # It has come so far as to begin.
        with open(path + ".done") as file:
            assert int(file.read()) == error.pid
    assert processes.eventually(lambda: not processes.is_running(error.pid))
    assert [other.get() for other in others] == list(range(20))
    assert processes.eventually(lambda: len([w for w in pool._pool if w.is_alive()]) == 2)


def test_the_time_counts_from_when_a_worker_takes_the_task():
    with procession.get_context("fork").Pool(1) as pool:
        before = pool.apply_async(time.sleep, (1.5 * ENOUGH,))
        waiting = [pool.apply_async(identity, (x,), timeout=ENOUGH) for x in range(3)]
        assert [result.get() for result in waiting] == [0, 1, 2]
        assert before.get() is None
    pool.join()


def test_the_limit_of_each_form_of_call():
    with procession.get_context("fork").Pool(8) as pool:
        for call in (
            lambda: pool.apply(time.sleep, (600,), timeout=SHORT),
            lambda: pool.map(time.sleep, [600], timeout=SHORT),
            lambda: pool.starmap(time.sleep, [(600,)], timeout=SHORT),
        ):
            with pytest.raises(TimeLimitExceeded, match="sleep"):
                call()
        results = [
            pool.map_async(slow_at_one, range(4), timeout=ENOUGH),
            pool.starmap_async(pair, [(0, 0), (1, 1)], timeout=ENOUGH),
        ]
        streams = [
            stream(slow_at_one, itertools.chain(range(5)), timeout=ENOUGH, **more)
            for stream in (pool.imap, pool.imap_unordered)
            for more in ({}, {"buffersize": 2})
        ]
        for result in results:
            with pytest.raises(TimeLimitExceeded, match="task 1 "):
                result.get()
        for stream in streams:
            got, late = [], 0
            for _ in range(5):
                try:
                    got.append(next(stream))
                except TimeLimitExceeded:
                    late += 1
            assert (sorted(got), late) == ([0, 2, 3, 4], 1)
    pool.join()


def test_a_map_with_a_limit_has_a_task_for_each_item(forked):
    in_chunks = forked.map_async(slow_at_one, range(100), chunksize=50, timeout=ENOUGH)
    with pytest.raises(TimeLimitExceeded) as raised:
        forked.map(slow_at_one, range(100), timeout=ENOUGH)
    assert raised.value.task == 1
    with pytest.raises(TimeLimitExceeded) as raised:
        in_chunks.get()
    assert raised.value.task == 0


def test_callbacks_and_many_limits_at_a_time(forked):
    heard = []
    slow = [
        forked.apply_async(time.sleep, (600,), timeout=limit, error_callback=heard.append)
        for limit in (0.3, 0.1, 0.2, 1e-9)
    ]
    for result in slow:
        with pytest.raises(TimeLimitExceeded):
            result.get()
    assert sorted(error.limit for error in heard) == [0.001, 0.1, 0.2, 0.3]
    assert forked.apply(identity, (1,), timeout=1e15) == 1


def test_a_limit_is_kept_while_a_callback_waits():
    got = []

    def wait_for_other(_):
        try:
            pool.apply_async(time.sleep, (600,), timeout=SHORT).get()
        except TimeLimitExceeded as error:
            got.append(error.limit)

    with procession.get_context("fork").Pool(2) as pool:
        pool.apply_async(identity, (1,), callback=wait_for_other).wait()
    pool.join()
    assert got == [SHORT]


def test_time_limit_ignores_signals(forked):
    """billiard: as here. pebble: three seconds late. mpire: later tasks hang."""
    with pytest.raises(TimeLimitExceeded):
        forked.apply(block_and_sleep, timeout=SHORT)
    # No step of Python's is made in there.
    with pytest.raises(TimeLimitExceeded):
        forked.apply(hashlib.pbkdf2_hmac, ("sha256", b"", b"", 10**9), timeout=SHORT, soft_timeout=SHORT / 2)
    assert forked.apply(identity, (1,)) == 1


def test_the_limits_of_the_pool_are_for_calls_without():
    with procession.get_context("fork").Pool(2, timeout=SHORT, retries=1) as pool:
        with pytest.raises(TimeLimitExceeded):
            pool.apply(time.sleep, (600,))
        assert pool.apply(time.sleep, (2 * SHORT,), timeout=AMPLE) is None
        assert pool.apply(time.sleep, (2 * SHORT,), timeout=math.inf) is None
        with pytest.raises(WorkerLostError) as raised:
            pool.apply(os._exit, (1,), timeout=AMPLE)
        assert raised.value.attempts == 2
        with pytest.raises(WorkerLostError) as raised:
            pool.apply(os._exit, (1,), retries=0, timeout=AMPLE)
        assert raised.value.attempts == 1
    pool.join()
    with procession.Pool(1, soft_timeout=ENOUGH) as pool:
        assert pool.apply(catch_soft_limit)[0] == "caught"
        with pytest.raises(SoftTimeLimitExceeded):
            pool.map(time.sleep, [600])
    pool.join()


def test_soft_time_limit(pool):
    """billiard: as here, about a second late. The others have no such thing."""
    caught = pool.apply_async(catch_soft_limit, soft_timeout=ENOUGH)
    with pytest.raises(SoftTimeLimitExceeded, match="soft limit") as raised:
        pool.apply(slow_at_one, (1,), soft_timeout=ENOUGH)
    assert "in slow_at_one" in str(raised.value.__cause__)
    assert caught.get() == ("caught", "the task has been running for its soft limit of 1 s")
    assert pool.apply(identity, (5,), soft_timeout=AMPLE) == 5


def test_a_soft_limit_reaches_whatever_the_task_does(forked):
    assert forked.apply(catch_in_a_loop, soft_timeout=ENOUGH) > 0
    with pytest.raises(SoftTimeLimitExceeded):
        forked.apply(wait_in_a_lock, soft_timeout=SHORT)
    # While the worker unpickles, and in the midst of a chunk.
    with pytest.raises(SoftTimeLimitExceeded):
        forked.apply(identity, (_SlowToLoad(),), soft_timeout=SHORT)
    with pytest.raises(SoftTimeLimitExceeded):
        forked.map(time.sleep, [0, 600, 0], chunksize=3, soft_timeout=SHORT)


def test_a_soft_limit_reaches_a_loop_in_a_worker_that_took_the_place_of_another():
    # Its process is forked by another thread than the main one.
    with procession.get_context("fork").Pool(1) as pool:
        with pytest.raises(WorkerLostError):
            pool.apply(os._exit, (1,))
        for _ in range(2):
            assert pool.apply(catch_in_a_loop, soft_timeout=ENOUGH) > 0
            assert pool.apply(identity, (1,), soft_timeout=AMPLE) == 1
        with pytest.raises(SoftTimeLimitExceeded, match="soft limit"):
            pool.apply(spin_for, (600,), soft_timeout=SHORT)
        with pytest.raises(SoftTimeLimitExceeded):
            pool.apply(time.sleep, (600,), soft_timeout=SHORT)
        assert pool.apply(catch_twice, soft_timeout=ENOUGH) == 1
    pool.join()


class _SlowToLoad:
    def __reduce__(self):
        return time.sleep, (600,)


def test_a_soft_limit_is_raised_once_and_the_hard_one_comes_all_the_same():
    with procession.get_context("fork").Pool(3) as pool:
        once = pool.apply_async(catch_twice, soft_timeout=ENOUGH)
        caught = pool.apply_async(catch_soft_limit, soft_timeout=ENOUGH, timeout=AMPLE)
        with pytest.raises(TimeLimitExceeded):
            pool.apply(catch_and_sleep, soft_timeout=ENOUGH, timeout=2 * ENOUGH)
        assert caught.get()[0] == "caught"
        assert once.get() == 1
    pool.join()


def catch_and_sleep():
    catch_soft_limit()
    time.sleep(600)


def test_a_soft_limit_never_hits_another_task():
    """Tasks end at about the time of their limit, on the same worker: it is raised in those tasks or nowhere."""
    ctx = procession.get_context("fork")
    with ctx.Pool(1) as pool:
        pids = set()
        for round in range(100):
            limit = 0.004
            late = pool.apply_async(spin_for, (limit + (round % 30 - 15) * 0.0002,), soft_timeout=limit)
            after = [pool.apply_async(os.getpid), pool.apply_async(spin_for, (0.001,), soft_timeout=AMPLE)]
            try:
                late.get()
            except SoftTimeLimitExceeded:
                pass
            pids.add(after[0].get())
            assert after[1].get() is None
        assert len(pids) == 1, "the worker was hit outside of a task"
    pool.join()


def test_a_signal_is_chosen_when_it_is_needed(forked):
    assert forked.map(_no_signals, range(10)) == [True] * 10
    with procession.get_context("fork").Pool(1, _take_signal) as pool:
        taken = pool.apply(handled_signals)
        assert taken == [signal.SIGRTMAX - 1]
        assert pool.apply(catch_soft_limit, soft_timeout=ENOUGH)[0] == "caught"
        assert len(pool.apply(handled_signals)) == 2
        assert pool.apply(signal.getsignal, (taken[0],)) is signal.SIG_IGN
    pool.join()


def _no_signals(_):
    return not handled_signals()


def _take_signal():
    signal.signal(signal.SIGRTMAX - 1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(signal.SIGRTMIN, signal.SIGRTMAX))


def test_a_soft_limit_in_a_pool_within_a_pool():
    with procession.get_context("fork").Pool(1) as pool:
        inner = pool.apply_async(inner_soft_limit, soft_timeout=AMPLE)
        assert pool.apply(catch_soft_limit, soft_timeout=ENOUGH)[0] == inner.get()[0] == "caught"
    pool.join()


def test_retry_succeeds(pool, tmp_path):
    """Standard package and its peers: no such thing."""
    assert pool.apply(die_until, (str(tmp_path / "attempts"), 2), retries=2) == 3


def test_task_kills_worker_after_worker(pool, tmp_path):
    """Standard package and its peers: no such thing."""
    path = str(tmp_path / "attempts")
    others = [pool.apply_async(identity, (x,)) for x in range(20)]
    with pytest.raises(
        WorkerLostError, match="SIGKILL while it ran task 0 of a call of die_until, which 3 workers"
    ) as raised:
        pool.apply(die_until, (path, 9), retries=2)
    assert raised.value.attempts == 3
    assert os.path.getsize(path) == 3
    assert [other.get() for other in others] == list(range(20))


def test_retries_of_maps_and_streams(forked, tmp_path):
    items = [(str(tmp_path / "map"), number) for number in range(8)]
    assert forked.map(die_once_for, items, chunksize=1, retries=1) == [(1 + number % 2, number) for number in range(8)]
    for name in ("imap", "imap_unordered"):
        items = [(str(tmp_path / name), number) for number in range(8)]
        results = getattr(forked, name)(die_once_for, iter(items), retries=1, buffersize=3)
        assert sorted(number for _, number in results) == list(range(8))


def test_what_a_task_raises_and_time_limits_are_answers(forked, tmp_path):
    path = str(tmp_path / "attempts")
    with pytest.raises(LookupError):
        forked.apply(fail, (path,), retries=5)
    assert os.path.getsize(path) == 1
    with pytest.raises(TimeLimitExceeded):
        forked.apply(die_until_slow, (path + "2",), retries=5, timeout=SHORT)
    assert os.path.getsize(path + "2") <= 1


def die_until_slow(path):
    die_until(path, 0)
    time.sleep(600)


def test_what_nobody_waits_for_is_tried_again_too(tmp_path):
    path = str(tmp_path / "attempts")
    pool = procession.get_context("fork").Pool(2)
    pool.apply_async(die_until, (path, 3), retries=3)
    pool.close()
    pool.join()
    assert os.path.getsize(path) == 4


def test_arguments_are_those_of_the_call_whatever_became_of_them(forked, tmp_path):
    path = str(tmp_path / "attempts")
    argument = [path, 1]
    result = forked.apply_async(die_until, argument, retries=1)
    argument.clear()
    assert result.get() == 2


def test_deaths_all_the_time_lose_nothing_that_is_retried():
    """Again and again, with whatever the worker is at: all tasks are done."""
    with procession.get_context("fork").Pool(3) as pool:
        for round in range(30):
            results = [pool.apply_async(identity, (x,), retries=10) for x in range(40)]
            victim = pool._pool[round % len(pool._pool)]
            time.sleep(round % 7 * 0.0002)
            if victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
            assert [result.get() for result in results] == list(range(40))
    pool.join()


def test_wrong_values_are_refused_at_the_call(forked):
    for name in ("timeout", "soft_timeout"):
        for value in (0, -1, math.nan):
            with pytest.raises(ValueError, match=name):
                forked.apply(identity, (1,), **{name: value})
            with pytest.raises(ValueError, match=name):
                Pool(1, **{name: value})
        for value in ("1", b"1", True, object()):
            with pytest.raises(TypeError, match=name):
                forked.map(identity, [1], **{name: value})
    with pytest.raises(ValueError, match="retries"):
        forked.imap(identity, [1], retries=-1)
    for value in (1.0, "1"):
        with pytest.raises(TypeError, match="retries"):
            forked.imap_unordered(identity, [1], retries=value)
    for hard, soft in ((1, 1), (1, 2)):
        with pytest.raises(ValueError, match="shorter"):
            forked.apply_async(identity, (1,), timeout=hard, soft_timeout=soft)
    with pytest.raises(TypeError, match="time_out"):
        forked.starmap(identity, [(1,)], time_out=3)
    assert forked.apply(identity, (1,), timeout=AMPLE, soft_timeout=math.inf) == 1
    # An int that is one by its `__index__`.
    assert forked.apply(identity, (1,), timeout=_Number(), retries=_Number()) == 1


class _Number:
    def __index__(self):
        return AMPLE


def test_pools_that_can_have_no_limits_say_so():
    with pytest.raises(TypeError, match="timeout"):
        ThreadPool(1, timeout=3)
    with ThreadPool(1) as threads:
        assert threads.apply(identity, (1,), timeout=None, retries=None) == 1
        for keyword in ({"timeout": 3}, {"soft_timeout": 3}, {"retries": 1}):
            for name in ("apply", "apply_async"):
                with pytest.raises(TypeError, match="a thread can't"):
                    getattr(threads, name)(identity, (1,), **keyword)
            for name in ("map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered"):
                with pytest.raises(TypeError, match="a thread can't"):
                    getattr(threads, name)(identity, [1], **keyword)
    with pytest.raises(TypeError, match="queues of its own"):
        _OverQueues(1, timeout=3)
    with _OverQueues(1) as pool:
        assert pool.apply(identity, (1,), soft_timeout=None) == 1
        with pytest.raises(TypeError, match="queues of its own"):
            pool.apply(identity, (1,), retries=3)
    pool.join()


class _OverQueues(Pool):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, context=procession.get_context("fork"), **kwargs)

    def _setup_queues(self):
        super()._setup_queues()


def test_the_errors_pass_through_pickle():
    late = TimeLimitExceeded("too late", 1.5, 7, "W-1", 3)
    copy = pickle.loads(pickle.dumps(late))
    assert (type(copy), copy.args, vars(copy)) == (TimeLimitExceeded, ("too late",), vars(late))
    assert type(pickle.loads(pickle.dumps(SoftTimeLimitExceeded("x")))) is SoftTimeLimitExceeded
    assert TimeLimitExceeded.__module__ == "procession.pool"
    lost = pickle.loads(pickle.dumps(WorkerLostError("gone", -9, 7, "W-1", 3, 2)))
    assert (lost.exitcode, lost.attempts) == (-9, 2)


def test_limits_leave_nothing(ctx, method, nothing_left_behind):
    with ctx.Pool(2, identity, (1,), timeout=AMPLE, soft_timeout=AMPLE - 1, retries=2) as pool:
        assert pool.map(identity, range(10)) == list(range(10))
        with pytest.raises(TimeLimitExceeded):
            # The soft limit of the pool is of no use then.
            pool.apply(time.sleep, (600,), timeout=SHORT)
        assert pool.apply(catch_soft_limit, soft_timeout=ENOUGH)[0] == "caught"
    pool.join()
