"""Pools of threads: the interface of a pool of processes, without anything being pickled."""

import collections
import functools
import queue

from . import util
from .crew import Feeder
from .outcomes import CallsEngine, Feed
from .pool import Pool

__all__ = ["ThreadPool"]


class _MapFeed(Feed):
    """Hands all of a map to the threads at once: each takes chunk after chunk, as long as there are any.

    So a pool that is terminated after that gives up what no thread has begun, however long the map is.
    """

    def feed(self, count, wait=True):
        """Hand over all there is; returns False."""
        if self._items is None:
            return False
        try:
            chunks = collections.deque(enumerate(self._items))
        except BaseException as error:
            self._outcomes.add(0, False, error)
            self._index = 1
        else:
            self._index = len(chunks)
            self._engine.share(self._outcomes, self._func, chunks)
        self.end()
        return False


def _nothing():
    pass


class _ThreadEngine(CallsEngine):
    """Hands the tasks to threads."""

    map_feed = _MapFeed

    def __init__(self):
        super().__init__()
        self.inbox = queue.SimpleQueue()
        self._threads = 0
        # How many of them are to end before they take another task.
        self._leaving = 0

    def serve(self, initializer, initargs):
        """The life of a worker thread."""
        if initializer is not None:
            initializer(*initargs)
        while not self._leaves() and (task := self.inbox.get()) is not None:
            task()
            # Nothing is kept while waiting.
            task = None

    def _leaves(self):
        if not self._leaving:
            return False
        with self._lock:
            leaves = self._leaving > 0
            self._leaving -= leaves
        return leaves

    def leave(self, count):
        """So many threads are to end when they are through with what they are at."""
        with self._lock:
            self._leaving += count
            self._threads -= count
        for _ in range(count):
            # So that one that waits looks at it.
            self.inbox.put(_nothing)

    def places(self):
        """How many threads there should be."""
        return self._threads

    @staticmethod
    def _do(outcomes, index, func, args, kwds):
        if not outcomes.begin():
            return
        try:
            value = func(*args, **kwds)
        except BaseException as error:
            outcomes.add(index, False, error)
        else:
            outcomes.add(index, True, value)

    def _do_chunks(self, outcomes, func, chunks):
        while chunks and not outcomes.over:
            try:
                index, chunk = chunks.popleft()
            except IndexError:
                # Another thread was faster.
                return
            self._do(outcomes, index, func, (chunk,), {})
            chunk = None

    def hired(self):
        """One more thread is to be told when all is done."""
        with self._lock:
            self._threads += 1

    def submit(self, outcomes, index, func, args, kwds):
        self.inbox.put(functools.partial(self._do, outcomes, index, func, args, kwds))

    def share(self, outcomes, func, chunks):
        """Give the chunks of a map to as many threads as there are."""
        for _ in range(min(len(chunks), self._threads)):
            self.inbox.put(functools.partial(self._do_chunks, outcomes, func, chunks))

    def _stop(self):
        threads, self._threads = self._threads, 0
        for _ in range(threads):
            self.inbox.put(None)


class _Threads:
    """The worker threads of a pool, and the one that feeds them."""

    def __init__(self, workers, engine, start):
        self.workers = workers
        self._engine = engine
        self._start = start
        self._feeder = Feeder()
        self.feed, self.close, self.forget = self._feeder.feed, self._feeder.close, self._feeder.forget

    def fill(self, count):
        """Start threads until there are `count`."""
        self.workers[:] = [worker for worker in self.workers if worker.is_alive()]
        while self._engine.places() < count:
            self._engine.hired()
            self.workers.append(self._start())

    def grow(self, more):
        """Start as many threads more."""
        self.fill(self._engine.places() + more)

    def shrink(self, fewer):
        """Have as many threads end as soon as they are through with what they are at."""
        if fewer >= (places := self._engine.places()):
            raise ValueError(f"a pool of {places} can't have {fewer} workers fewer: one at least has to stay")
        self._engine.leave(fewer)

    def terminate(self):
        """Give up what is under way. A thread can't be ended from outside: each ends with the task it is at."""
        self._feeder.stop()
        self._engine.terminate()

    def join(self):
        """Wait until the threads have ended."""
        for worker in self.workers:
            worker.join()


class ThreadPool(Pool):
    """Worker threads that calls are handed to."""

    _wrap_exception = False

    @staticmethod
    def Process(ctx, *args, **kwds):
        """A thread with the interface of a process object."""
        from .dummy import Process

        return Process(*args, **kwds)

    def __init__(self, processes=None, initializer=None, initargs=()):
        super().__init__(processes, initializer, initargs)

    def _check_terms(self):
        raise TypeError(
            "timeout, soft_timeout, retries and priority are for pools of processes: a thread can't be ended, nor "
            "interrupted, from outside, and does not die; calls are taken by threads in the order in which they come"
        )

    def _set_up(self):
        engine, ctx, make = _ThreadEngine(), self._ctx, self.Process
        initialization = self._initializer, self._initargs

        def start():
            made = make(ctx, target=engine.serve, args=initialization)
            made.name = made.name.replace("Process", "PoolWorker")
            made.daemon = True
            made.start()
            return made

        self._engine = engine
        self._crew = _Threads(self._pool, engine, start)
        self._repopulate_pool()
        self._terminate = util.Finalize(None, self._crew.terminate, exitpriority=15)


# Others look for it where the standard package has it.
ThreadPool.__module__ = Pool.__module__
