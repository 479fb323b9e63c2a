"""Pools whose class makes the queues of tasks and results, or starts the workers, by itself."""

import copyreg
import io
import itertools
import os
import pickle
import signal
import sys
import threading
import time

import pytest

import processes
import procession
from procession import pool as pools
from procession.pool import MaybeEncodingError, WorkerLostError


def square(x):
    return x * x


def kill_at_three(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def begin_and_sleep(mark):
    mark.touch()
    time.sleep(600)


def pid_of(_):
    time.sleep(0.01)
    return os.getpid()


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__("of two arguments")
        self.both = one, two


def raise_two_arguments():
    raise TwoArguments(1, 2)


# The memory that locks are made in is there before tests count descriptors.
LOCK = procession.Lock()


class Unreadable:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self):
        return int, ("not a number",)


def unreadable(_=None):
    return Unreadable()


def exit_at_once():
    os._exit(3)


class Marked:
    """To be pickled by a reducer of its own."""

    def __init__(self, by="nobody"):
        self.by = by

    def __reduce__(self):
        raise TypeError("only the reducer of the queue can pickle this")


def mark_of(marked):
    return marked.by, Marked("worker")


class LockedPipe:
    """What joblib has for a queue: a pipe with two locks, and a pickler with reducers."""

    def __init__(self, ctx, name=None):
        self._reader, self._writer = ctx.Pipe(duplex=False)
        self._rlock, self._wlock = ctx.Lock(), ctx.Lock()
        self.name = name

    def get(self):
        with self._rlock:
            return self._reader.recv()

    def put(self, obj):
        with self._wlock:
            self.send(obj)

    def reduce(self, marked):
        return Marked, (f"{self.name}, {marked.by}",)

    def send(self, obj):
        file = io.BytesIO()
        pickler = pickle.Pickler(file, -1)
        pickler.dispatch_table = {
            **copyreg.dispatch_table,
            Marked: lambda marked: (Marked, (f"{self.name}, {marked.by}",)),
        }
        pickler.dump(obj)
        self._writer.send_bytes(file.getvalue())


class OverPipes(pools.Pool):
    def _setup_queues(self):
        self._inqueue, self._outqueue = LockedPipe(self._ctx, "there"), LockedPipe(self._ctx, "back")
        self._quick_put, self._quick_get = self._inqueue.send, self._outqueue._reader.recv


class OverQueues(pools.Pool):
    def _setup_queues(self):
        self._inqueue, self._outqueue = self._ctx.SimpleQueue(), self._ctx.SimpleQueue()
        self._quick_put, self._quick_get = self._inqueue._writer.send, self._outqueue._reader.recv


def own_worker(*args):
    pools.worker(*args)


class OwnWorkers(pools.Pool):
    """As torch does it."""

    def _repopulate_pool(self):
        for _ in range(self._processes - len(self._pool)):
            args = self._inqueue, self._outqueue, self._initializer, self._initargs, self._maxtasksperchild
            worker = self.Process(self._ctx, target=own_worker, args=(*args, self._wrap_exception))
            self._pool.append(worker)
            worker.name = worker.name.replace("Process", "OwnWorker")
            worker.daemon = True
            worker.start()


def take_by_hand(inqueue, outqueue):
    """A worker that knows nothing of this package's."""
    while (task := inqueue.get()) is not None:
        job, index, func, args, kwds = task
        outqueue.put((job, index, (True, func(*args, **kwds))))


class StrangeWorkers(OverQueues):
    def _repopulate_pool(self):
        while len(self._pool) < self._processes:
            self._pool.append(self._ctx.Process(target=take_by_hand, args=(self._inqueue, self._outqueue), daemon=True))
            self._pool[-1].start()


KINDS = [OverPipes, OverQueues, OwnWorkers, StrangeWorkers]


@pytest.fixture(params=KINDS[:3], ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("nothing_left_behind")
def test_it_does_what_a_pool_does(ctx, kind):
    called = []
    with kind(2, context=ctx) as pool:
        assert pool.apply(square, (3,)) == 9
        assert pool.map(square, range(50)) == [x * x for x in range(50)]
        assert pool.starmap(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
        assert list(pool.imap(square, iter(range(50)), chunksize=7)) == [x * x for x in range(50)]
        assert sorted(pool.imap_unordered(square, range(50))) == [x * x for x in range(50)]
        assert pool.apply_async(square, (4,), callback=called.append).get() == 16
        with pytest.raises(AttributeError):
            pool.apply(lambda: None)
        pool.close()
        pool.join()
        with pytest.raises(ValueError, match="not running"):
            pool.apply(square, (1,))
    assert called == [16]


def test_tasks_and_results_go_through_its_queues(ctx):
    with OverPipes(1, context=ctx) as pool:
        seen, sent_back = pool.apply(mark_of, (Marked("parent"),))
    assert seen == "there, parent"
    assert sent_back.by == "back, worker"


def test_workers_are_those_that_it_starts():
    with OwnWorkers(2) as pool:
        assert all("OwnWorker" in worker.name for worker in pool._pool)
        assert set(pool.map(pid_of, range(20), chunksize=1)) <= {worker.pid for worker in pool._pool}


def test_workers_are_replaced(kind):
    with kind(2, maxtasksperchild=1) as pool:
        assert len(set(pool.map(pid_of, range(6), chunksize=1))) == 6
        pool.close()
        pool.join()


def test_the_task_of_a_killed_worker_is_lost_and_no_other(ctx, kind):
    with kind(2, context=ctx) as pool:
        results = [pool.apply_async(kill_at_three, (x,)) for x in range(8)]
        with pytest.raises(WorkerLostError, match="SIGKILL while it ran task 0 of a call of kill_at_three"):
            results[3].get()
        assert [result.get() for result in results if result is not results[3]] == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.filterwarnings("ignore:lock recovered:RuntimeWarning")
def test_idle_workers_may_be_killed(kind):
    with kind(2) as pool:
        assert pool.apply(square, (2,)) == 4
        for _ in range(3):
            os.kill(pool._pool[0].pid, signal.SIGKILL)
            # Also if a task goes with it that it had not begun.
            assert pool.map(square, range(20)) == [x * x for x in range(20)]


def send_and_stop(outqueue, mark):
    # A frame of which the rest never comes.
    outqueue._wlock.acquire()
    os.write(outqueue._writer.fileno(), (1000).to_bytes(4, "big") + b"beginning")
    mark.touch()
    time.sleep(600)


def die_while_sending(mark, state):
    """As a worker that is killed in the midst of a long result."""
    place = procession.current_process()._pool_place
    word = place.notes.words[place.number]
    place.note(state, word >> 32, (word & 0xFFFFFFFF) >> 2)
    send_and_stop(OUTQUEUE[0], mark)


# Of the pool of a test, for the workers that are forked then.
OUTQUEUE = []


def test_a_result_cut_off_ends_nobodys_wait(tmp_path):
    from procession.pool_over_queues import SENDING

    mark = tmp_path / "mark"
    with OverPipes(2, context=procession.get_context("fork")) as pool:
        # Workers that are forked from here on know the queue.
        OUTQUEUE[:] = [pool._outqueue]
        for worker in [*pool._pool]:
            os.kill(worker.pid, signal.SIGKILL)
        old = {worker.pid for worker in pool._pool}
        assert processes.eventually(lambda: not old & {worker.pid for worker in pool._pool} and len(pool._pool) == 2)
        result = pool.apply_async(die_while_sending, (mark, SENDING))
        assert processes.eventually(mark.exists)
        for worker in [*pool._pool]:
            if (worker._pool_place.notes.words[worker._pool_place.number] & 3) == SENDING:
                os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            result.get()
        # With new queues.
        assert pool.map(square, range(20)) == [x * x for x in range(20)]
    OUTQUEUE.clear()


def test_strange_workers_may_be_killed(tmp_path):
    mark = tmp_path / "mark"
    with StrangeWorkers(1) as pool:
        result = pool.apply_async(begin_and_sleep, (mark,))
        assert processes.eventually(mark.exists)
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            result.get()
        assert pool.apply(square, (5,)) == 25


def test_whatever_a_task_raises_comes_back(kind):
    with kind(1) as pool:
        with pytest.raises(TwoArguments) as raised:
            pool.apply(raise_two_arguments)
        assert raised.value.both == (1, 2)
        assert "raise TwoArguments(1, 2)" in str(raised.value.__cause__)
        with pytest.raises(SystemExit):
            pool.apply(sys.exit, (3,))
        with pytest.raises(MaybeEncodingError):
            pool.apply(threading.Lock)
        with pytest.raises(MaybeEncodingError, match="not a number"):
            pool.apply(unreadable)
        with pytest.raises(ValueError, match="not a number"):
            pool.apply(square, (Unreadable(),))
        assert pool.apply(square, (2,)) == 4


def test_workers_that_never_get_ready_are_not_started_for_ever(kind):
    with kind(2, initializer=exit_at_once) as pool:
        with pytest.raises(WorkerLostError, match="exited with code 3 before it was ready"):
            pool.apply(square, (2,))
        with pytest.raises(WorkerLostError):
            pool.apply(square, (2,))


@pytest.mark.usefixtures("nothing_left_behind")
def test_terminating_gives_up_what_is_under_way(method, kind, tmp_path):
    mark = tmp_path / "mark"
    pool = kind(2, context=procession.get_context(method))
    running, waiting = pool.apply_async(begin_and_sleep, (mark,)), pool.map_async(begin_and_sleep, [mark] * 50, 1)
    assert processes.eventually(mark.exists)
    pool.terminate()
    pool.join()
    for result in (running, waiting):
        with pytest.raises(RuntimeError, match="terminated"):
            result.get()


def test_large_tasks_do_not_block_the_caller(kind):
    # More than the pipes take; results come while tasks are sent.
    with kind(1) as pool:
        results = [pool.apply_async(bytes, (500_000,)) for _ in range(8)]
        results += [pool.apply_async(len, (bytes(500_000),)) for _ in range(8)]
        assert [len(result.get()) for result in results[:8]] == [500_000] * 8
        assert [result.get() for result in results[8:]] == [500_000] * 8


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_forgotten_pool_finishes_and_goes(kind):
    pool = kind(2)
    result = pool.map_async(square, range(100))
    with pytest.warns(ResourceWarning):
        del pool
        assert result.get() == [x * x for x in range(100)]
        assert processes.eventually(lambda: not processes.strays())


def test_failing_to_start_workers_leaves_none():
    class Failing(OverQueues):
        def _repopulate_pool(self):
            super()._repopulate_pool()
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        Failing(2)


def test_endless_iterables_with_a_buffersize(kind):
    with kind(2) as pool:
        results = pool.imap(square, itertools.count(), buffersize=3)
        assert [next(results) for _ in range(10)] == [x * x for x in range(10)]


def test_its_threads_and_queues_can_be_looked_at(kind):
    with kind(2) as pool:
        assert pool.apply(square, (2,)) == 4
        for thread in (pool._worker_handler, pool._task_handler, pool._result_handler):
            assert thread.is_alive()
        assert pool._taskqueue.empty()
        assert not pool._cache


def test_a_plain_pool_can_be_looked_at(tmp_path):
    threads = threading.active_count()
    with procession.Pool(1) as pool:
        result = pool.map_async(begin_and_sleep, [tmp_path / "mark"] * 5, 1)
        assert processes.eventually((tmp_path / "mark").exists)
        assert pool._taskqueue.qsize() == 4
        assert not pool._inqueue.empty()
        assert pool._outqueue.empty()
        assert len(pool._cache) == 1
        for thread in (pool._worker_handler, pool._task_handler, pool._result_handler):
            assert thread.is_alive()
        assert threading.active_count() - threads <= 2
        with pool._inqueue._rlock:
            pass
        with pytest.raises(AttributeError):
            pool._no_such_thing  # noqa: B018
        assert not result.ready()
