"""Orders that concern what is under way in a pool: calls are cancelled, come before others; workers come and go."""

import functools
import itertools
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

import processes
import procession
import procession.connection
from procession.pool import MapResult, Pool, ThreadPool

# Longer than any of this takes. What is to be cancelled or killed sleeps so long.
LONG = 300


def wait_until(condition):
    """Ends with the test's watchdog if it never comes true."""
    while not condition():
        time.sleep(0.005)


class Files:
    """What tasks have been begun, as files, and a word for those that wait for it."""

    def __init__(self, folder):
        self.folder = os.fspath(folder)

    def path(self, name):
        return os.path.join(self.folder, str(name))

    def note(self, name):
        with open(self.path(name), "x"):
            pass

    def begun(self):
        return sorted(int(name) for name in os.listdir(self.folder) if name.isdecimal())

    def wait(self, name):
        wait_until(lambda: os.path.exists(self.path(name)))


def identity(value):
    return value


def begin(files, number):
    files.note(number)
    return number


def begin_and_stay(files, number):
    files.note(number)
    time.sleep(LONG)


def wait_for(files, name):
    files.note("waiting")
    files.wait(name)
    return name


def stay_at_zero(files, number):
    files.note(number)
    if number == 0:
        time.sleep(LONG)
    return number


def pid_of_worker(_):
    return os.getpid()


def held_back(pool, files):
    """A call that keeps the only worker of a pool until `files.note("go")`."""
    result = pool.apply_async(wait_for, (files, "go"))
    files.wait("waiting")
    return result


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(params=["fork", "spawn"])
def pool(request):
    with procession.get_context(request.param).Pool(1) as pool:
        yield pool


@pytest.fixture
def one():
    with procession.Pool(1) as pool:
        yield pool


# Cancelled


def test_what_waits_is_never_begun(pool, files):
    held = held_back(pool, files)
    results = [pool.apply_async(begin, (files, number)) for number in range(6)]
    errors = []
    results.append(pool.apply_async(begin, (files, 6), error_callback=errors.append))
    for number in (1, 3, 6):
        assert results[number].cancel() is True
        assert results[number].cancelled() is True
    files.note("go")
    assert held.get() == "go"
    assert held.cancel() is False
    assert held.cancelled() is False
    for number in (0, 2, 4, 5):
        assert results[number].get() == number
        assert not results[number].cancelled()
    for number in (1, 3, 6):
        with pytest.raises(CancelledError):
            results[number].get()
        assert results[number].ready()
        assert results[number].successful() is False
        assert results[number].cancel() is True
    assert files.begun() == [0, 2, 4, 5]
    assert [type(error) for error in errors] == [CancelledError]


def test_cancel_a_running_task(pool, files):
    """billiard, pebble: as here. ProcessPoolExecutor, loky: refused. The others have no such thing."""
    before = pool.apply(pid_of_worker, (0,))
    result = pool.apply_async(begin_and_stay, (files, 0))
    later = [pool.apply_async(begin, (files, number)) for number in range(1, 5)]
    files.wait(0)
    assert result.cancel() is True
    with pytest.raises(CancelledError):
        result.get()
    assert [result.get() for result in later] == [1, 2, 3, 4]
    wait_until(lambda: not processes.is_running(before))
    assert pool.apply(pid_of_worker, (0,)) != before


def test_cancel_takes_no_other_task():
    """pebble: as here, since 5.2; before, a task that the killed worker had taken meanwhile was lost."""
    with procession.Pool(2) as pool:
        kept, given_up = [], []
        for number in range(400):
            result = pool.apply_async(identity, (number,))
            if number % 2:
                kept.append((number, result))
            else:
                given_up.append((number, result, result.cancel()))
        assert [result.get() for _, result in kept] == [number for number, _ in kept]
        for number, result, cancelled in given_up:
            if cancelled:
                with pytest.raises(CancelledError):
                    result.get()
            else:
                assert result.get() == number


def test_thousands_are_cancelled_one_by_one(one, files):
    held = held_back(one, files)
    results = [one.apply_async(identity, (number,)) for number in range(5000)]
    assert all(result.cancel() for result in results[::2])
    files.note("go")
    assert held.get() == "go"
    assert [result.get() for result in results[1::2]] == list(range(1, 5000, 2))
    assert all(result.cancelled() for result in results[::2])


def test_a_map_is_cancelled_as_a_whole(files):
    with procession.Pool(2) as pool:
        result = pool.map_async(functools.partial(begin_and_stay, files), range(100), chunksize=1)
        assert isinstance(result, MapResult)
        files.wait(0)
        assert result.cancel()
        with pytest.raises(CancelledError):
            result.get()
        assert pool.map(identity, range(10)) == list(range(10))
        assert len(files.begun()) <= 2


def test_a_stream_gives_what_is_there_and_ends(files):
    with procession.Pool(2) as pool:
        for make, chunksize in itertools.product((pool.imap, pool.imap_unordered), (1, 3)):
            taken = []

            def endless(taken=taken):
                for number in itertools.count():
                    taken.append(number)
                    yield number

            results = make(identity, endless(), chunksize)
            first = [next(results) for _ in range(10)]
            assert sorted(first) == first or make == pool.imap_unordered
            assert results.cancel() is True
            assert results.cancelled()
            with pytest.raises(CancelledError):
                for _ in range(10**9):
                    next(results)
            assert list(results) == []
            # It is told to the thread that takes the items, which ends.
            assert pool.apply(identity, (1,)) == 1
            wait_until(lambda pool=pool: not pool._engine.jobs())


def test_a_stream_that_waits_for_a_result_is_cancelled_by_another_thread(files):
    with procession.Pool(1) as pool:
        results = pool.imap(functools.partial(stay_at_zero, files), range(5))
        threading.Timer(0.2, lambda: (files.wait(0), results.cancel())).start()
        with pytest.raises(CancelledError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)
        assert pool.apply(identity, (2,)) == 2
        assert 4 not in files.begun()


def test_a_stream_with_a_buffer_is_cancelled():
    with procession.Pool(1) as pool:
        results = pool.imap(identity, itertools.count(), buffersize=3)
        assert [next(results) for _ in range(5)] == list(range(5))
        assert results.cancel()
        assert results.cancelled()
        with pytest.raises(CancelledError):
            for _ in range(100):
                next(results)
        wait_until(lambda: not pool._engine.jobs())


def test_a_stream_in_chunks_can_be_waited_for_with_a_timeout(files):
    with procession.Pool(1) as pool:
        results = pool.imap(functools.partial(stay_at_zero, files), [1, 2, 3, 0, 4], 2)
        assert [results.next(LONG) for _ in range(2)] == [1, 2]
        with pytest.raises(procession.TimeoutError):
            results.next(0.05)
        results.cancel()


def test_what_is_not_pickled_yet_is_cancelled(one, files):
    held = held_back(one, files)
    large = bytes(3 << 20)
    results = [one.apply_async(len, (large,)) for _ in range(8)]
    assert results[7].cancel()
    assert results[1].cancel()
    files.note("go")
    assert held.get() == "go"
    assert [result.get() for number, result in enumerate(results) if number not in (1, 7)] == [3 << 20] * 6
    assert results[7].cancelled()


def test_after_all_is_cancelled_there_is_room(one, files):
    held = held_back(one, files)
    results = [one.apply_async(len, (bytes(3 << 20),)) for _ in range(6)]
    assert all(result.cancel() for result in results)
    last = one.apply_async(identity, (1,))
    files.note("go")
    assert held.get() == "go"
    assert last.get() == 1


def test_a_closed_pool_ends_when_what_is_left_is_cancelled(files):
    pool = procession.Pool(2)
    results = [pool.apply_async(begin_and_stay, (files, number)) for number in range(5)]
    files.wait(0)
    pool.close()
    assert all(result.cancel() for result in results)
    pool.join()


def test_in_a_forked_child_nothing_is_cancelled(one, files):
    result = held_back(one, files)

    def child(results):
        try:
            result.cancel()
        except RuntimeError as error:
            results.put(str(error))

    results = procession.get_context("fork").Queue()
    process = procession.get_context("fork").Process(target=child, args=(results,))
    process.start()
    assert "belongs to the process that made it" in results.get(timeout=LONG)
    process.join()
    files.note("go")
    assert result.get() == "go"


# Priorities


def order_of(files, names):
    """In which order these were begun."""
    return sorted(names, key=lambda name: os.stat(files.path(name)).st_mtime_ns)


def append(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def numbers_in(path):
    with open(path) as file:
        return [int(line) for line in file]


def test_larger_priorities_are_taken_first(pool, files):
    held = held_back(pool, files)
    path = files.path("order")
    priorities = [0, 5, -1, 5, 0, 7, -1, 2**31 - 1, -(2**31)]
    results = [
        pool.apply_async(append, (path, number), priority=priority) for number, priority in enumerate(priorities)
    ]
    files.note("go")
    assert held.get() == "go"
    assert [result.get() for result in results] == list(range(len(priorities)))
    # Equal ones in the order in which they came: the sort is stable.
    assert numbers_in(path) == sorted(range(len(priorities)), key=lambda number: -priorities[number])


def test_maps_and_streams_have_priorities(one, files):
    held = held_back(one, files)
    path = files.path("order")
    call = functools.partial(append, path)
    results = [
        one.map_async(call, range(4), chunksize=2),
        one.map_async(call, range(10, 14), chunksize=1, priority=1),
        one.imap(call, range(20, 24), priority=3),
        one.imap_unordered(call, range(30, 34), chunksize=2, priority=-1),
        one.starmap_async(call, [(40,), (41,)], 2, priority=2),
    ]
    # A generator is taken by a thread.
    generator = one.imap(call, (number for number in range(50, 54)), priority=4)
    wait_until(lambda: one._taskqueue.qsize() == 2 + 4 + 4 + 2 + 1 + 4)
    files.note("go")
    assert held.get() == "go"
    for result in (*results, generator):
        list(result.get() if isinstance(result, MapResult) else result)
    expected = [*range(50, 54), *range(20, 24), 40, 41, *range(10, 14), *range(4), *range(30, 34)]
    assert numbers_in(path) == expected


def test_what_is_urgent_does_not_wait_for_what_is_large(one, files):
    held = held_back(one, files)
    path = files.path("order")
    large = [one.apply_async(len, (bytes(3 << 20),)) for _ in range(8)]
    urgent = one.apply_async(append, (path, 1), priority=1)
    last = one.apply_async(append, (path, 2), priority=-1)
    files.note("go")
    assert held.get() == "go"
    assert urgent.get() == 1
    assert [result.get() for result in large] == [3 << 20] * 8
    assert last.get() == 2
    assert numbers_in(path) == [1, 2]


def test_many_with_priorities_are_all_done():
    with procession.Pool(2) as pool:
        results = [pool.apply_async(identity, (number,), priority=number % 7 - 3) for number in range(3000)]
        results[100].cancel()
        assert [result.get() for result in results if not result.cancelled()] == [
            number for number, result in enumerate(results) if not result.cancelled()
        ]
        assert pool.map(identity, range(1000), priority=3, chunksize=1) == list(range(1000))
        assert pool.apply(identity, (5,), priority=-2) == 5


def test_retries_keep_their_priority(files):
    with procession.Pool(1) as pool:
        held = held_back(pool, files)
        path = files.path("order")
        dying = pool.apply_async(die_at_first, (files, path), retries=1, priority=2)
        later = [pool.apply_async(append, (path, number), priority=1) for number in range(3)]
        files.note("go")
        assert held.get() == "go"
        assert dying.get() == "done"
        assert [result.get() for result in later] == [0, 1, 2]
        assert sorted(numbers_in(path)) == [0, 1, 2, 99]


def die_at_first(files, path):
    try:
        files.note("died")
    except FileExistsError:
        append(path, 99)
        return "done"
    os._exit(3)


@pytest.mark.parametrize(
    ("priority", "error"), [("1", TypeError), (1.5, TypeError), (None, TypeError), (2**31, ValueError)]
)
def test_wrong_priorities_are_refused_at_the_call(one, priority, error):
    for call in (one.apply, one.apply_async):
        with pytest.raises(error, match="priority"):
            call(identity, (1,), priority=priority)
    for call in (one.map, one.map_async, one.starmap, one.starmap_async, one.imap, one.imap_unordered):
        with pytest.raises(error, match="priority"):
            call(identity, [1], priority=priority)


# Workers come and go


def pids(pool):
    return {worker.pid for worker in pool._pool}


def test_a_pool_grows(pool):
    before = pids(pool)
    pool.grow(2)
    assert before < pids(pool)
    assert len(pids(pool)) == pool._processes == 3
    pool.grow()
    pool.grow(0)
    assert len(pool._pool) == pool._processes == 4
    assert pool.map(identity, range(100), chunksize=1) == list(range(100))


def test_workers_leave_when_they_are_through(files):
    with procession.Pool(3) as pool:
        held = [pool.apply_async(wait_for_go, (files, number)) for number in range(3)]
        for number in range(3):
            files.wait(number)
        waiting = [pool.apply_async(identity, (number,)) for number in range(50)]
        pool.shrink(2)
        assert pool._processes == 1
        files.note("go")
        assert [result.get() for result in held] == [0, 1, 2]
        assert [result.get() for result in waiting] == list(range(50))
        wait_until(lambda: len(pool._pool) == 1)
        assert set(pool.map(pid_of_worker, range(20), chunksize=1)) == pids(pool)


def wait_for_go(files, number):
    files.note(number)
    files.wait("go")
    return number


def test_idle_workers_leave_at_once():
    with procession.Pool(4) as pool:
        all_of_them = [*pool._pool]
        pool.shrink(3)
        wait_until(lambda: len(pool._pool) == 1)
        assert sorted(worker.exitcode for worker in all_of_them if worker not in pool._pool) == [0, 0, 0]
        assert pool.map(identity, range(10)) == list(range(10))
        pool.grow(2)
        assert len(pool._pool) == 3
        assert pool.map(identity, range(10), chunksize=1) == list(range(10))


def test_a_worker_that_dies_while_others_leave_is_made_good(files):
    with procession.Pool(3) as pool:
        pool.shrink(2)
        for worker in [*pool._pool]:
            worker.kill()
        assert pool.map(identity, range(20), chunksize=1, retries=5) == list(range(20))
        wait_until(lambda: len(pool._pool) == 1)


def test_a_worker_that_comes_when_all_have_left_does_what_waits():
    with procession.Pool(3) as pool:
        assert pool.map(identity, range(6)) == list(range(6))
        workers = [*pool._pool]
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        results = [pool.apply_async(identity, (number,), priority=2) for number in range(3)]
        pool.shrink()
        # The word to leave that was meant for one of three is one too many then.
        workers[0].kill()
        wait_until(lambda: len(pool._pool) == 2)
        pool.shrink()
        for worker in workers[1:]:
            os.kill(worker.pid, signal.SIGCONT)
        pool.close()
        # Nobody waits for a result, which would have the parent look.
        pool.join()
        assert [result.get() for result in results] == [0, 1, 2]


def test_a_worker_more_does_what_waits_while_the_others_are_at_work(pool, files):
    [worker] = pool._pool
    assert pool.apply(pid_of_worker, (0,)) == worker.pid
    os.kill(worker.pid, signal.SIGSTOP)
    held = pool.apply_async(wait_for, (files, "go"), priority=3)
    waiting = pool.map_async(functools.partial(begin, files), range(20), chunksize=1, priority=2)
    os.kill(worker.pid, signal.SIGCONT)
    files.wait("waiting")
    pool.grow()
    # Nobody waits for a result, which would have the parent look.
    wait_until(lambda: len(files.begun()) == 20)
    files.note("go")
    assert waiting.get() == list(range(20))
    assert held.get() == "go"


def test_a_pool_that_shrinks_and_is_closed_ends():
    pool = procession.Pool(3)
    results = [pool.apply_async(identity, (number,)) for number in range(100)]
    pool.shrink(2)
    pool.close()
    pool.join()
    assert [result.get() for result in results] == list(range(100))
    for resize in (pool.grow, pool.shrink):
        with pytest.raises(ValueError, match="not running"):
            resize()


def test_one_worker_stays(one):
    for n in (1, 2, 100):
        with pytest.raises(ValueError, match="one at least has to stay"):
            one.shrink(n)
    assert one.apply(identity, (1,)) == 1


@pytest.mark.parametrize(("n", "error"), [("1", TypeError), (None, TypeError), (1.0, TypeError), (-1, ValueError)])
def test_wrong_numbers_of_workers_are_refused(one, n, error):
    for resize in (one.grow, one.shrink):
        with pytest.raises(error, match="number of workers"):
            resize(n)


# Pools of another kind


def test_threads_come_and_go(files):
    with ThreadPool(1) as pool:
        held = pool.apply_async(wait_for_go, (files, 0))
        files.wait(0)
        pool.grow(2)
        assert pool.map(identity, range(10), chunksize=1) == list(range(10))
        pool.shrink(2)
        assert pool._processes == 1
        files.note("go")
        assert held.get() == 0
        assert pool.map(identity, range(10), chunksize=1) == list(range(10))
        wait_until(lambda: sum(worker.is_alive() for worker in pool._pool) == 1)
        with pytest.raises(ValueError, match="one at least has to stay"):
            pool.shrink()
        with pytest.raises(TypeError, match="priority"):
            pool.apply(identity, (1,), priority=1)


def test_threads_do_not_begin_what_is_cancelled(files):
    with ThreadPool(1) as pool:
        held = pool.apply_async(wait_for_go, (files, 0))
        files.wait(0)
        assert held.cancel() is False
        errors = queue.SimpleQueue()
        waiting = pool.apply_async(begin, (files, 1), error_callback=errors.put)
        stream = pool.imap(functools.partial(begin, files), range(10, 20), 2)
        some = pool.map_async(functools.partial(begin, files), range(20, 30), 2)
        for result in (waiting, stream, some):
            assert not result.cancelled()
            assert result.cancel() is True
            assert result.cancelled()
            assert result.cancel() is True
        assert isinstance(errors.get(timeout=LONG), CancelledError)
        for take in (waiting.get, some.get, lambda: next(stream)):
            with pytest.raises(CancelledError):
                take()
        assert list(stream) == []
        files.note("go")
        assert held.get() == 0
        assert pool.apply(identity, (1,)) == 1
        assert files.begun() == [0]
        assert list(pool.imap(identity, range(10), 3)) == list(range(10))


class OverQueues(Pool):
    def _setup_queues(self):
        super()._setup_queues()


def test_pools_over_queues_say_what_they_do_not_do():
    with OverQueues(1, context=procession.get_context("fork")) as pool:
        with pytest.raises(TypeError, match="priority"):
            pool.apply(identity, (1,), priority=1)
        for resize in (pool.grow, pool.shrink):
            with pytest.raises(TypeError, match="workers of its own making"):
                resize()
        result = pool.apply_async(identity, (1,))
        assert result.get() == 1
        assert result.cancel() is False
        assert list(pool.imap(identity, range(10), 3)) == list(range(10))


@pytest.mark.parametrize("order", ["overdue", "cancelled"])
def test_a_new_worker_is_killed_while_others_are_started(order, tmp_path):
    files = Files(tmp_path)
    with Pool(1) as pool:
        pool.apply_async(begin_and_stay, (files, 0))
        files.wait(0)
        stuck = pool.apply_async(begin_and_stay, (files, 1), timeout=0.05 if order == "overdue" else None)
        start, started = pool._crew._start_process, []

        def starting(place):
            worker = start(place)
            started.append(worker)
            if len(started) == 1:
                files.wait(1)
                if order == "cancelled":
                    assert stuck.cancel()
                # The thread that is to kill it looks for it already, most likely.
                time.sleep(0.2)
            else:
                procession.connection.wait([started[0].sentinel])
            return worker

        pool._crew._start_process = starting
        pool.grow(2)
        with pytest.raises(procession.TimeoutError if order == "overdue" else CancelledError):
            stuck.get()
        assert started[0].exitcode == -signal.SIGKILL


def test_threads_that_feed_are_all_known_to_the_pool():
    pool = Pool(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        kept = []
        starters = [
            threading.Thread(target=lambda: kept.extend(pool._crew.feeder_apart() for _ in range(200)))
            for _ in range(4)
        ]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
    finally:
        sys.setswitchinterval(interval)
    assert {*kept} <= {*pool._crew._feeders()}
    pool.close()
    pool.join()
