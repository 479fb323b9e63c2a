"""The workers of a pool, and the threads that attend to it."""

import collections
import sys
import threading
import time
from _pickle import dumps
from _weakref import ref

from . import util

__all__ = ["Crew", "Feeder"]

# How long a worker that is told to end may take before it is killed, in seconds.
GRACE = 5.0
# How many items the feeding thread hands over before it looks around.
HANDFUL = 64


def described(value):
    """Its repr(), whatever that does."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} object, whose repr() raised {type(error).__name__}>"


def report_exception():
    """Have the exception that is being handled reported as one that ends a thread is."""
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class Feeder:
    """A thread that hands the items of iterables to the workers. It is started when there is something to feed.

    What it is given has a method `feed(count)`, which returns True if there is more, False at the end, and None if it
    is to be left alone until it is given again: it is *parked*. A feed that can park has a method `close()`.
    """

    def __init__(self):
        self.over = False
        self._feeds = collections.deque()
        self._parked = set()
        self._changed = threading.Condition(threading.Lock())
        self._thread = None

    def feed(self, feed):
        """Have the thread call `feed.feed(count)`."""
        with self._changed:
            self._parked.discard(feed)
            self._feeds.append(feed)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="PoolFeeder", daemon=True)
                try:
                    thread.start()
                except BaseException:
                    # Too many threads, or the end of the interpreter.
                    self._feeds.pop()
                    raise
                self._thread = thread
            else:
                self._changed.notify()

    def close(self):
        """End those feeds that can be parked: nobody may come for what they are waiting to hand over."""
        with self._changed:
            ending = [feed for feed in (*self._parked, *self._feeds) if hasattr(feed, "close")]
            self._parked.clear()
        for feed in ending:
            feed.close()
        with self._changed:
            self._changed.notify()

    def stop(self):
        """The pool is over: nothing is fed any more."""
        self.over = True
        with self._changed:
            self._changed.notify()

    def forget(self, feed):
        """A parked feed is not needed any more."""
        with self._changed:
            self._parked.discard(feed)
            self._changed.notify()

    def _run(self):
        # All have their turn: one may be without end.
        while (feed := self._next()) is not None:
            try:
                more = feed.feed(HANDFUL)
            except BaseException:
                report_exception()
                more = False
            if not more:
                with self._changed:
                    self._feeds.remove(feed)
                    if more is None and feed not in self._feeds:
                        self._parked.add(feed)
            feed = None

    def _next(self):
        with self._changed:
            while not self.over and not self._feeds and self._parked:
                # Those who take results give it again.
                self._changed.wait()
            if self.over:
                self._feeds.clear()
                self._parked.clear()
            if not self._feeds:
                self._thread = None
                return None
            self._feeds.rotate(-1)
            return self._feeds[-1]


class Crew:
    """The workers of a pool, and the threads that attend to it. They live on when the pool object is gone."""

    def __init__(self, pool, engine, start_process):
        self.engine = engine
        self.workers = pool._pool
        self._start_process = start_process
        self._places = {}
        # Places whose workers are to be killed as soon as it is known who they are.
        self._condemned = set()
        self._lock = threading.RLock()
        self._thread = None
        # What ends the pool at the end of the process, if it is there still.
        self.finalizer = None
        self._feeder = Feeder()
        self.feed, self.forget = self._feeder.feed, self._feeder.forget
        # Those of feeds that wait in between, and must not keep the others waiting.
        self._feeders_apart = []
        self._lock_of_feeders = threading.Lock()

    def feeder_apart(self):
        """A feeder that nobody else uses."""
        feeder = Feeder()
        # It is there as long as it has something to do, or somebody has it.
        with self._lock_of_feeders:
            self._feeders_apart = [*(other for other in self._feeders_apart if other() is not None), ref(feeder)]
        return feeder

    def _feeders(self):
        apart = [feeder() for feeder in self._feeders_apart]
        return [self._feeder, *(feeder for feeder in apart if feeder is not None)]

    def close(self):
        """End what can be ended of what is still to be fed."""
        for feeder in self._feeders():
            feeder.close()

    def fill(self, count):
        """Start workers until there are `count`. Raises what starting one raises."""
        with self._lock:
            started = []
            try:
                while len(self.workers) < count:
                    place = self.engine.hire()
                    if place is None:
                        break
                    self._condemned.discard(place)
                    try:
                        worker = self._start_process(place)
                    except BaseException as error:
                        self.engine.retire(place, dumps(("of the pool", None, None, described(error))))
                        raise
                    self.workers.append(worker)
                    # Processes of others' making may have no sentinel; they are not watched then.
                    sentinel = getattr(worker, "sentinel", None)
                    if isinstance(sentinel, int):
                        self._places[place] = worker
                        started.append((place, sentinel))
                        if place in self._condemned:
                            self._kill(place)
            finally:
                for place, sentinel in started:
                    self.engine.watch(place, sentinel)

    def grow(self, more):
        """Start as many workers more. Raises what starting one raises; those that could be started stay."""
        with self._lock:
            self.engine.grow(more)
            places = self.engine.places()
            try:
                self.fill(places)
            except BaseException:
                self.engine.shrink(min(more, places - len(self.workers)))
                raise

    def shrink(self, fewer):
        """Have as many workers end as soon as they are through with what they are at."""
        self.engine.shrink(fewer)

    def attend(self):
        """Start the thread that calls callbacks and replaces workers."""
        self._thread = threading.Thread(target=self._attend, name="PoolAttendant", daemon=True)
        self._thread.start()

    def _attend(self):
        while (event := self.engine.run()) is not None:
            self._attend_to(event)
            # Nothing is kept while waiting.
            event = None
        # It keeps all of this. Nobody joins a pool that was dropped.
        if self.finalizer is not None:
            self.finalizer.cancel()

    def attend_meanwhile(self):
        """Do what is to be done, in a callback that waits for something."""
        while (event := self.engine.run_now()) is not None:
            self._attend_to(event)

    def _attend_to(self, event):
        try:
            if isinstance(event, int):
                if event >= 0:
                    self._replace(event)
                else:
                    # The task it is at has had its time, or was cancelled. Its end is heard of as any other.
                    self._kill(~event)
            else:
                event._conclude()
        except BaseException:
            # A callback that raises is reported, and the pool goes on.
            report_exception()

    def _kill(self, place):
        # It may be that another thread has started this one and has not noted it yet: whoever comes second kills it.
        self._condemned.add(place)
        if (worker := self._places.get(place)) is not None:
            self._condemned.discard(place)
            worker.kill()

    def _replace(self, place):
        with self._lock:
            worker = self._places.pop(place)
            count = len(self.workers)
            self.workers[:] = [other for other in self.workers if other is not worker]
            worker.join()
            util.debug("worker %s ended with exit code %s", worker.name, worker.exitcode)
            reaction = self.engine.retire(place, dumps((worker.name, worker.pid, worker.exitcode, None)))
            if worker.exitcode and reaction == "replace":
                # Who waits for the lost task hears of it first: a fork keeps the interpreter's lock for milliseconds.
                time.sleep(0.001)
            pause = 0.0
            while reaction == "replace":
                try:
                    self.fill(count)
                    break
                except Exception as error:
                    # For want of memory or processes, most likely.
                    pause = min(pause + 0.1, 1.0)
                    time.sleep(pause)
                    problem = dumps((worker.name, None, None, described(error)))
                    place = self.engine.hire()
                    reaction = "shrink" if place is None else self.engine.retire(place, problem)

    def terminate(self):
        """End it all, whatever is under way. Takes a bounded time."""
        if not self.engine.belongs_here():
            return
        for feeder in self._feeders():
            feeder.stop()
        self.engine.terminate()
        with self._lock:
            workers = [*self.workers]
        for worker in workers:
            if worker.exitcode is None:
                worker.terminate()
        deadline = time.monotonic() + GRACE
        if self._thread is not None and self._thread is not threading.current_thread():
            # It may be in a callback.
            self._thread.join(GRACE)
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.exitcode is None:
                # It ignores SIGTERM, or does not get to it.
                util.info("killing %s, which did not end when told to", worker.name)
                worker.kill()
                worker.join()

    def join(self):
        """Wait until the threads and the workers have ended."""
        self._thread.join()
        for worker in self.workers:
            worker.join()
