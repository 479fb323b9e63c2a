"""Calls under way and what comes back of them, for pools whose engine is written in Python.

A pool of threads is one, a pool over queues of a subclass's making the other. What `_core.PoolEngine` does for a pool
of processes, `CallsEngine` does for these.
"""

import collections
import threading
import time

from .crew import report_exception
from .pool import (
    ApplyResult,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
    Pool,
    TimeoutError,
    _cancelled_task,
    _terminated_task,
    mapstar,
    starmapstar,
)

__all__ = ["CallsEngine", "Feed", "Outcomes"]


class Outcomes:
    """What comes back of a call: (index, whether it succeeded, value or exception), and when it is complete."""

    def __init__(self, engine, owner, func, callback=None, error_callback=None):
        self.engine = engine
        # The pool lives until the call is done; the function is named if a worker is lost with it.
        self.owner, self.func = owner, func
        # For engines whose tasks leave the process.
        self.number = None
        self.changed = threading.Condition()
        self.arrived = collections.deque()
        self.count = 0
        # How many tasks can't be called back any more.
        self.begun = 0
        self.total = None
        self.over = self.cancelled = False
        self.given_up = None
        self.callbacks = callback, error_callback
        engine.begun(self)

    def begin(self):
        """A task is about to be begun. False if it is not to be."""
        with self.changed:
            if not self.over:
                self.begun += 1
            return not self.over

    def cancel(self):
        """Do without those that were not begun, and what comes of the others. False if there are none."""
        with self.changed:
            if self.cancelled or self.over or (self.total is not None and self.begun >= self.total):
                return self.cancelled
            self.cancelled = True
            self.given_up = _cancelled_task()
        self._look()
        return True

    def add(self, index, success, value):
        """The outcome of a task."""
        with self.changed:
            if not self.over:
                self.arrived.append((index, success, value))
                self.count += 1
        self._look()

    def seal(self, total):
        """There are so many tasks, and no more will come."""
        with self.changed:
            self.total = total
        self._look()

    def give_up(self):
        """What is still to come never will."""
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
            self.owner = self.func = None
            self.engine.done(self)


class _Result(ApplyResult):
    """The result of a call."""

    def __init__(self, outcomes):
        self._outcomes = outcomes
        self._cancelled = False
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

    def cancel(self):
        """Do without what was not begun: neither a thread nor a queue can be told to give it back.

        False if all of it was begun. Then the call goes on as before.
        """
        outcomes = self._outcomes
        return self._cancelled if outcomes is None else outcomes.cancel()

    def cancelled(self):
        outcomes = self._outcomes
        return self._cancelled if outcomes is None else outcomes.cancelled

    def _complete(self):
        outcomes, self._outcomes = self._outcomes, None
        self._cancelled = outcomes.cancelled
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
    """The result of a map."""

    def _collect(self, arrived):
        for _, success, value in arrived:
            if not success:
                return False, value
        chunks = sorted(arrived, key=lambda outcome: outcome[0])
        return True, [item for _, _, chunk in chunks for item in chunk]


class _Stream(IMapIterator):
    """The results of an imap."""

    def __init__(self, outcomes, chunks):
        self._outcomes = outcomes
        self._index = 0
        self._early = {}
        # What is left of the last chunk, if results come in chunks.
        self._chunk = () if chunks else None

    def __iter__(self):
        return self

    def __next__(self):
        return self.next()

    def _taken(self):
        return self._index

    def cancel(self):
        return self._outcomes.cancel()

    def cancelled(self):
        return self._outcomes.cancelled

    def next(self, timeout=None):
        if self._chunk is None:
            return self._next(timeout)
        while True:
            for item in self._chunk:
                return item
            self._chunk = iter(self._next(timeout))

    def _next(self, timeout):
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
    """The results of an imap_unordered."""

    def _find(self, arrived):
        return arrived.popleft()[1:] if arrived else None


class Feed:
    """Hands the items of an iterable to the workers."""

    def __init__(self, engine, outcomes, func, items):
        self._engine, self._outcomes, self._func = engine, outcomes, func
        self._items = iter(items)
        self._index = 0

    def feed(self, count, wait=True):
        """Hand over `count` items; returns False at the end."""
        if self._items is None:
            return False
        for _ in range(count):
            if self._outcomes.over:
                break
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
        self.end()
        return False

    def is_full(self):
        """Never: see `CallsEngine`."""
        return False

    def submitted(self):
        """How many items were handed over, or chunks of them."""
        return self._index

    def end(self):
        """Hand over no more."""
        if self._items is not None:
            self._items = None
            self._outcomes.seal(self._index)


class CallsEngine:
    """What `_core.PoolEngine` is to a pool of processes: takes calls in and gives results out.

    How a task gets to a worker is `submit()`; how the workers are told to end when all is done is `_stop()`.
    """

    # What hands over the chunks of a map.
    map_feed = Feed

    def __init__(self):
        self._lock = threading.RLock()
        self._under_way = set()
        self._results = {}
        self._open = True
        # Callbacks are called one at a time, as if by one thread.
        self._calling_back = threading.RLock()

    def submit(self, outcomes, index, func, args, kwds):
        """Give a task to the workers."""
        raise NotImplementedError

    def _stop(self):
        """Tell the workers to end. Called with the lock held."""
        raise NotImplementedError

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

    # There are no terms in these pools (see limits.py); `Pool` says so where they are given.
    def apply_async(self, owner, func, args, kwds, callback=None, error_callback=None, terms=None):
        """Has a worker call `func(*args, **kwds)`."""
        result, outcomes = self._begin(_Result, owner, func, callback, error_callback)
        outcomes.seal(1)
        self.submit(outcomes, 0, func, args, kwds)
        return result

    def map_async(self, owner, func, items, chunksize, star, callback=None, error_callback=None, terms=None):
        """Has the workers call `func` for each item, chunks of them at a time."""
        result, outcomes = self._begin(_MapResult, owner, func, callback, error_callback)
        feed = self.map_feed(self, outcomes, starmapstar if star else mapstar, Pool._get_tasks(func, items, chunksize))
        return result, feed

    def is_full(self):
        """Never: objects are handed over as they are, which needs no memory."""
        return False

    def _begin(self, kind, owner, func, callback, error_callback):
        outcomes = Outcomes(self, owner, func, callback, error_callback)
        result = kind(outcomes)
        with self._lock:
            self._results[outcomes] = result
        return result, outcomes

    def stream(self, owner, func, items, chunksize, ordered, terms=None):
        """Has the workers call `func` for each item as the feed is fed: returns the results, and the feed."""
        outcomes = Outcomes(self, owner, func)
        if chunksize > 1:
            func, items = mapstar, Pool._get_tasks(func, items, chunksize)
        return (_Stream if ordered else _UnorderedStream)(outcomes, chunksize > 1), Feed(self, outcomes, func, items)

    def close(self):
        """No more calls; when all is done the workers end."""
        self._open = False
        self._stop_if_done()

    def _stop_if_done(self):
        with self._lock:
            if not self._open and not self._under_way:
                self._stop()

    def terminate(self):
        """What is under way is given up; workers end when they are through with the task they are at."""
        self._open = False
        for outcomes in [*self._under_way]:
            outcomes.give_up()
        self._stop_if_done()
