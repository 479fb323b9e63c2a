"""Pools of threads: the interface of a pool of processes, without anything being pickled."""

import collections
import itertools
import queue
import threading
import time

from . import util
from .crew import Feeder, report_exception
from .pool import (
    ApplyResult,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
    Pool,
    TimeoutError,
    _terminated_task,
    mapstar,
    starmapstar,
)

__all__ = ["ThreadPool"]


class _Outcomes:
    """What comes back of a call: (index, whether it succeeded, value or exception), and when it is complete."""

    def __init__(self, engine, callback=None, error_callback=None):
        self.engine = engine
        self.changed = threading.Condition()
        self.arrived = collections.deque()
        self.count = 0
        self.total = None
        self.over = False
        self.given_up = None
        self.callbacks = callback, error_callback
        engine.begun(self)

    def add(self, index, success, value):
        with self.changed:
            if not self.over:
                self.arrived.append((index, success, value))
                self.count += 1
        self._look()

    def seal(self, total):
        with self.changed:
            self.total = total
        self._look()

    def give_up(self):
        with self.changed:
            if not self.over:
                self.given_up = _terminated_task()
                self.callbacks = None, None
        self._look()

    def _look(self):
        with self.changed:
            complete = not self.over and (self.given_up is not None or self.count == self.total)
            self.over = self.over or complete
            self.changed.notify_all()
        if complete:
            self.engine.done(self)


class _Result(ApplyResult):
    """The result of a call by a thread."""

    def __init__(self, outcomes):
        self._outcomes = outcomes
        self._event = threading.Event()

    def ready(self):
        return self._event.is_set()

    def successful(self):
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout=None):
        self._event.wait(timeout)

    def get(self, timeout=None):
        if not self._event.wait(timeout):
            raise TimeoutError
        if self._success:
            return self._value
        raise self._value

    def _complete(self):
        outcomes, self._outcomes = self._outcomes, None
        if outcomes.given_up is not None:
            self._success, self._value = False, outcomes.given_up
        else:
            self._success, self._value = self._collect(outcomes.arrived)
        callback = outcomes.callbacks[not self._success]
        try:
            if callback is not None:
                callback(self._value)
        finally:
            self._event.set()

    def _collect(self, arrived):
        _, success, value = arrived.popleft()
        return success, value


class _MapResult(_Result, MapResult):
    """The result of a map by threads."""

    def _collect(self, arrived):
        for _, success, value in arrived:
            if not success:
                return False, value
        chunks = sorted(arrived, key=lambda outcome: outcome[0])
        return True, [item for _, _, chunk in chunks for item in chunk]


class _Stream(IMapIterator):
    """The results of an imap by threads."""

    def __init__(self, outcomes):
        self._outcomes = outcomes
        self._index = 0
        self._early = {}

    def __iter__(self):
        return self

    def __next__(self):
        return self.next()

    def next(self, timeout=None):
        outcomes = self._outcomes
        deadline = None if timeout is None else time.monotonic() + timeout
        with outcomes.changed:
            while (found := self._find(outcomes.arrived)) is None:
                if outcomes.given_up is not None:
                    error, outcomes.given_up, outcomes.total = outcomes.given_up, None, self._index
                    raise error
                if self._index == outcomes.total:
                    raise StopIteration
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                outcomes.changed.wait(left)
            self._index += 1
        success, value = found
        if success:
            return value
        raise value

    def _find(self, arrived):
        while arrived:
            index, success, value = arrived.popleft()
            self._early[index] = success, value
        return self._early.pop(self._index, None)


class _UnorderedStream(_Stream, IMapUnorderedIterator):
    """The results of an imap_unordered by threads."""

    def _find(self, arrived):
        return arrived.popleft()[1:] if arrived else None


class _Feed:
    """Hands the items of an iterable to the threads."""

    def __init__(self, engine, outcomes, func, items):
        self._engine, self._outcomes, self._func = engine, outcomes, func
        self._items = iter(items)
        self._index = 0

    def feed(self, count, wait=True):
        """Hand over `count` items; returns False at the end."""
        for _ in range(count):
            try:
                item = next(self._items)
            except StopIteration:
                break
            except BaseException as error:
                self._outcomes.add(self._index, False, error)
                self._index += 1
                break
            self._engine.submit(self._outcomes, self._index, self._func, (item,), {})
            self._index += 1
        else:
            return True
        self._items = None
        self._outcomes.seal(self._index)
        return False


def _chunks(func, items, size):
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield func, chunk


class _ThreadEngine:
    """What `_core.PoolEngine` is to a pool of processes: takes calls in and gives results out."""

    def __init__(self):
        self._inbox = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._under_way = set()
        self._results = {}
        self._open = True
        self._threads = 0
        # Callbacks are called one at a time, as if by one thread.
        self._calling_back = threading.RLock()

    def serve(self, initializer, initargs):
        """The life of a worker thread."""
        if initializer is not None:
            initializer(*initargs)
        while (task := self._inbox.get()) is not None:
            self._do(*task)
            # Nothing is kept while waiting.
            task = None

    @staticmethod
    def _do(outcomes, index, func, args, kwds):
        if outcomes.over:
            return
        try:
            value = func(*args, **kwds)
        except BaseException as error:
            outcomes.add(index, False, error)
        else:
            outcomes.add(index, True, value)

    def hired(self):
        """One more thread is to be told when all is done."""
        with self._lock:
            self._threads += 1

    def begun(self, outcomes):
        """A call is under way."""
        with self._lock:
            self._under_way.add(outcomes)

    def done(self, outcomes):
        """A call is complete."""
        with self._lock:
            result = self._results.pop(outcomes, None)
        if result is not None:
            with self._calling_back:
                try:
                    result._complete()
                except BaseException:
                    report_exception()
        with self._lock:
            self._under_way.discard(outcomes)
        self._stop_if_done()

    def jobs(self):
        """How many calls are under way."""
        return len(self._under_way)

    def submit(self, outcomes, index, func, args, kwds):
        """Gives a task to the threads."""
        self._inbox.put((outcomes, index, func, args, kwds))

    def apply_async(self, owner, func, args, kwds, callback=None, error_callback=None):
        """Has a thread call `func(*args, **kwds)`."""
        result, outcomes = self._begin(_Result, callback, error_callback)
        outcomes.seal(1)
        self.submit(outcomes, 0, func, args, kwds)
        return result

    def map_async(self, owner, func, items, chunksize, star, callback=None, error_callback=None):
        """Has the threads call `func` for each item, chunks of them at a time."""
        result, outcomes = self._begin(_MapResult, callback, error_callback)
        feed = _Feed(self, outcomes, starmapstar if star else mapstar, _chunks(func, items, chunksize))
        return result, feed

    def is_full(self):
        """Never: objects are handed over as they are, which needs no memory."""
        return False

    def _begin(self, kind, callback, error_callback):
        outcomes = _Outcomes(self, callback, error_callback)
        result = kind(outcomes)
        with self._lock:
            self._results[outcomes] = result
        return result, outcomes

    def stream(self, owner, func, items, chunksize, ordered):
        """Has the threads call `func` for each item as the feed is fed: returns the results, and the feed."""
        outcomes = _Outcomes(self)
        if chunksize > 1:
            func, items = mapstar, _chunks(func, items, chunksize)
        return (_Stream if ordered else _UnorderedStream)(outcomes), _Feed(self, outcomes, func, items)

    def close(self):
        """No more calls; when all is done the threads end."""
        self._open = False
        self._stop_if_done()

    def _stop_if_done(self):
        with self._lock:
            if self._open or self._under_way:
                return
            threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._inbox.put(None)

    def terminate(self):
        """What is under way is given up; threads end when they are through with the task they are at."""
        self._open = False
        for outcomes in [*self._under_way]:
            outcomes.give_up()
        self._stop_if_done()


class _Threads:
    """The worker threads of a pool, and the one that feeds them."""

    def __init__(self, workers, engine, start):
        self.workers = workers
        self._engine = engine
        self._start = start
        self._feeder = Feeder()
        self.feed = self._feeder.feed

    def fill(self, count):
        """Start threads until there are `count`."""
        while len(self.workers) < count:
            self._engine.hired()
            self.workers.append(self._start())

    def terminate(self):
        """Give up what is under way. A thread can't be ended from outside: each ends with the task it is at."""
        self._feeder.over = True
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
