"""Pools whose tasks go through queues that a subclass makes.

A subclass of `Pool` may override `_setup_queues()` to have tasks and results carried by queues of its own (joblib does,
so that large arrays go by file), or `_repopulate_pool()` to start its own kind of worker. Tasks of such a pool do not
go through the engine of `_core` but through `_quick_put()` and `_quick_get()`, as in the standard package: one thread
sends tasks, one takes results in, one watches over the workers.

Queues like these are pipes with locks, and nobody knows what is in them. So that the death of a worker is heard of all
the same, each worker notes what it is doing in a word of shared memory (`Notes`):

| note    | the worker                             | if it dies then                                                 |
|---------|----------------------------------------|-----------------------------------------------------------------|
| UNKNOWN | is not ready, or of another's making   | what was sent may be in its hands                               |
| TAKING  | takes a task                           | a task may have gone with it, not begun, or the queue be cut off |
| RUNNING | runs the task that the note names      | that task is lost, and nothing else                             |
| SENDING | sends the result of that task          | so is this, and the queue may be cut off, unless it is heard of |

A queue that may be cut off in the middle of a message is replaced, and so are all workers (`_renew()`): at once if a
result may be cut off, as that garbles those of others, and otherwise when nobody works although tasks were sent. Tasks
that nobody had begun are sent again; those that were being done are lost, which their callers are told.
"""

import functools
import itertools
import mmap
import os
import queue
import threading
import time
import weakref

from . import connection, pool, process, reduction, util
from .context import assert_spawning
from .crew import GRACE, Feeder, report_exception
from .outcomes import CallsEngine

__all__ = ["set_up"]

UNKNOWN, TAKING, RUNNING, SENDING = range(4)

# How long the result of a worker that died while sending it may take to be heard of, in seconds.
LAST_WORDS = 0.5
# After which time a pool in which nobody works, although tasks were sent, is given new queues, if a worker died that
# may have had one of them.
STALLED = 1.0


class Notes:
    """A word of shared memory for each worker: what it is doing, and the task."""

    PLACES = 4096

    def __init__(self):
        fd = os.memfd_create("procession-notes")
        os.ftruncate(fd, 8 * self.PLACES)
        self._open(fd)

    def _open(self, fd):
        self._fd = fd
        # Written as a whole, as it is aligned: a word is of one moment.
        self.words = memoryview(mmap.mmap(fd, 8 * self.PLACES)).cast("Q")
        util.Finalize(self, os.close, (fd,))

    def __getstate__(self):
        assert_spawning(self)
        return reduction.DupFd(self._fd)

    def __setstate__(self, fd):
        self._open(fd.detach())


def _word(state, job, index):
    return (job & 0xFFFFFFFF) << 32 | (index & 0x3FFFFFFF) << 2 | state


class Place:
    """Where one worker notes what it is doing."""

    def __init__(self, notes, number):
        self.notes, self.number = notes, number

    def note(self, state, job=0, index=0):
        self.notes.words[self.number] = _word(state, job, index)

    @property
    def state(self):
        return self.notes.words[self.number] & 3

    def names(self, key):
        """Whether the note names this task."""
        return self.notes.words[self.number] & ~3 == _word(0, *key)


class _NoPlace:
    """In a worker that was not started by the pool's `Process()`."""

    def note(self, state, job=0, index=0):
        pass


# What is being unpickled. A task's pickle names the task before it holds the function, and a result's before it holds
# the value: if that can't be unpickled, it is known what it is of.
_reading = threading.local()


class _TaskNumber:
    def __init__(self, job, index):
        self.job, self.index = job, index

    def __reduce__(self):
        return _read_task_number, (self.job, self.index)


def _read_task_number(job, index):
    _reading.task = job, index
    return job


def serve(inqueue, outqueue, maxtasks, failure):
    """The work of a worker: takes tasks out of one queue and puts results into the other. Returns how many it was.

    `failure` makes of the exception that a function raised what is sent in its place.
    """
    place = getattr(process.current_process(), "_pool_place", None) or _NoPlace()
    done = 0
    while maxtasks is None or done < maxtasks:
        place.note(TAKING)
        _reading.task = func = None
        try:
            task = inqueue.get()
            if task is None:
                break
            job, index, func, args, kwds = task
            place.note(RUNNING, job, index)
            result = True, func(*args, **kwds)
        except BaseException as error:
            if func is None:
                if _reading.task is None:
                    # The queue was closed, or is cut off.
                    util.debug("worker can't get tasks: %r", error)
                    break
                job, index = _reading.task
            result = False, failure(error, func)
        place.note(SENDING, job, index)
        number = _TaskNumber(job, index)
        try:
            outqueue.put((number, index, result))
        except Exception as error:
            outqueue.put((number, index, (False, pool.MaybeEncodingError(error, result[1]))))
        # Nothing is kept while waiting.
        task = func = args = kwds = result = None
        done += 1
    place.note(TAKING)
    return done


class _Channel:
    """The queues of a pool, from one renewal to the next."""

    def __init__(self, owner):
        self.inqueue, self.outqueue = owner._inqueue, owner._outqueue
        self.quick_put, self.quick_get = owner._quick_put, owner._quick_get

    def cut(self):
        """Have the threads that wait at its ends go on. No worker may be left."""
        # Who reads from a pipe is told when the last end to write to it is closed, and the other way round.
        for end, others in ((self.inqueue, "_reader"), (self.outqueue, "_writer")):
            end = getattr(end, others, None)
            if isinstance(getattr(end, "conn", end), connection.Connection):
                end.close()
        if not isinstance(getattr(end, "conn", end), connection.Connection):
            self.outqueue.put(None)


class QueuesEngine(CallsEngine):
    """Hands the tasks to the workers through the queues of a pool."""

    def __init__(self, owner):
        super().__init__()
        self._owner = weakref.ref(owner)
        self.workers = owner._pool
        self._processes = owner._processes
        self.channel = _Channel(owner)
        self._notifier = owner._change_notifier
        # What the sending thread has not come to yet. None: it is to end; _STOP: a word for a worker to end.
        self.waiting = queue.SimpleQueue()
        # What was sent, and is not heard of yet: outcomes and message, by number of the call and index.
        self.sent = {}
        self._numbers = itertools.count(1)
        self._notes = Notes()
        self._free_places = [*range(Notes.PLACES)][::-1]
        # Held while workers come and go.
        self.staff = threading.RLock()
        self._stopping = self.over = False
        # How many workers ended before they were ready, since the last result; how the last did, if it is too many.
        self._failed_starts = 0
        self._hopeless = None
        # Whether a worker died that may have had a task nobody knows of; since when nobody works although there are
        # tasks.
        self._suspicious = False
        self._idle_since = None
        # Whether the receiving thread can't go on with its channel.
        self._cut_off = False

    def wake(self):
        """Have the watching thread look at things."""
        self._notifier.put(None)

    # Tasks

    def submit(self, outcomes, index, func, args, kwds):
        if outcomes.number is None:
            outcomes.number = next(self._numbers)
        self.waiting.put((outcomes, index, func, args, kwds))

    def send(self):
        """The life of the thread that sends tasks."""
        while (task := self.waiting.get()) is not None:
            if task is _STOP:
                self._send_stop()
            else:
                self._send(*task)
            # Nothing is kept while waiting.
            task = None

    def _send_stop(self):
        try:
            self.channel.quick_put(None)
        except OSError as error:
            util.debug("the pool's queue is closed: %r", error)

    def _send(self, outcomes, index, func, args, kwds):
        # What was sent can't be called back.
        if not outcomes.begin():
            return
        key, message = (outcomes.number, index), (outcomes.number, index, func, args, kwds)
        with self._lock:
            channel, hopeless = self.channel, self._hopeless
            if hopeless is None:
                self.sent[key] = outcomes, message
        if hopeless is not None:
            outcomes.add(index, False, pool._lost_task(hopeless, func, index, False))
            return
        try:
            channel.quick_put((_TaskNumber(*key), *message[1:]))
        except Exception as error:
            with self._lock:
                # After a renewal it is sent again, or was lost.
                mine = self.channel is channel and self.sent.pop(key, None)
            if mine:
                outcomes.add(index, False, error)

    # Results

    def receive(self):
        """The life of the thread that takes in results."""
        while not self.over:
            channel = self.channel
            _reading.task = None
            try:
                message = channel.quick_get()
            except Exception as error:
                if _reading.task is not None:
                    self._hear(_reading.task, (False, pool._undecodable_result(error)))
                elif not self.over and self.channel is channel:
                    # Whatever it was, the next message is not to be found.
                    util.debug("the pool's queue of results can't be read: %r", error)
                    self._await_renewal(channel)
                continue
            if message is not None:
                job, index, result = message
                self._hear((job, index), result)
            # Nothing is kept while waiting.
            message = result = None

    def _await_renewal(self, channel):
        self._cut_off = True
        self.wake()
        while self.channel is channel and not self.over:
            time.sleep(0.01)

    def _hear(self, key, result):
        with self._lock:
            outcomes, _ = self.sent.pop(key, (None, None))
            self._failed_starts = 0
        if outcomes is not None:
            outcomes.add(key[1], *result)

    # Workers

    def place_for_worker(self):
        """Where a worker that is about to be started notes what it does."""
        with self._lock:
            place = Place(self._notes, self._free_places.pop())
        place.note(UNKNOWN)
        return place

    def watch(self):
        """The life of the thread that watches over the workers."""
        while not self.over:
            sentinels = [worker.sentinel for worker in [*self.workers]]
            connection.wait([self._notifier._reader, *sentinels], 0.1 if self._suspicious else None)
            while not self._notifier.empty():
                self._notifier.get()
            try:
                with self.staff:
                    self._look_after_workers()
            except Exception:
                # A callback that raises is reported where it is called: this is for want of memory or processes.
                report_exception()
                time.sleep(0.1)
                self.wake()

    def _look_after_workers(self):
        if self.over:
            return
        ended = [worker for worker in self.workers if worker.exitcode is not None]
        for worker in ended:
            if worker in self.workers:
                worker.join()
                util.debug("worker %s ended with exit code %s", worker.name, worker.exitcode)
                self.workers.remove(worker)
                self._mourn(worker)
        if self._stopping:
            if not self.workers:
                self.end()
            for _ in ended:
                # It may have been killed with a word to stop in its hands that was meant for another.
                self.waiting.put(_STOP)
            return
        if self._cut_off or self._is_stalled():
            self._renew()
        if len(self.workers) < self._processes and self._hopeless is None:
            self.repopulate()

    def repopulate(self):
        """Start workers until there are as many as there should be."""
        if (owner := self._owner()) is not None:
            owner._repopulate_pool()

    def _mourn(self, worker):
        place = getattr(worker, "_pool_place", None)
        state = place.state if place is not None else UNKNOWN
        if state == UNKNOWN:
            self._failed_starts += 1
            if self._failed_starts > self._processes + 3:
                self._despair(worker)
            # A worker of another's making takes tasks without a note.
            self._suspicious = bool(self.sent)
        elif state == TAKING:
            self._suspicious = self._suspicious or bool(self.sent)
        else:
            key = next((key for key in [*self.sent] if place.names(key)), None)
            if key is not None and not (state == SENDING and self._comes_after_all(key)):
                self._lose(key, worker)
                if state == SENDING:
                    self._renew()
        self._let_go(worker)

    def _let_go(self, worker):
        if (place := getattr(worker, "_pool_place", None)) is not None:
            with self._lock:
                self._free_places.append(place.number)

    def _comes_after_all(self, key):
        deadline = time.monotonic() + LAST_WORDS
        while key in self.sent and time.monotonic() < deadline:
            time.sleep(0.005)
        return key not in self.sent

    def _lose(self, key, worker, taken=True):
        with self._lock:
            outcomes, message = self.sent.pop(key, (None, None))
        if outcomes is not None:
            how = worker.name, worker.pid, worker.exitcode, None
            outcomes.add(key[1], False, pool._lost_task(how, outcomes.func or message[2], key[1], taken))

    def _despair(self, worker):
        """Workers end before they are ready, one after the other: there is no sense in starting more."""
        self._hopeless = worker.name, worker.pid, worker.exitcode, None
        for key in [*self.sent]:
            self._lose(key, worker, taken=False)

    def _is_stalled(self):
        if not self._suspicious:
            return False
        with self._lock:
            places = [getattr(worker, "_pool_place", None) for worker in self.workers]
            self._suspicious = bool(self.sent)
        if not self._suspicious or any(place is not None and place.state != TAKING for place in places):
            self._idle_since = None
            return False
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        return now - self._idle_since > STALLED

    def _renew(self):
        """Make new queues and new workers. What is running is lost; what nobody had begun is sent again."""
        util.debug("the pool's queues may be cut off: making new ones")
        owner = self._owner()
        workers, self.workers[:] = [*self.workers], []
        end_workers(workers, told=False)
        with self._lock:
            sent = [*self.sent]
        for worker in workers:
            place = getattr(worker, "_pool_place", None)
            for key in sent:
                # Of one of another's making nobody knows what it had begun.
                if place is None or (place.state in (RUNNING, SENDING) and place.names(key)):
                    self._lose(key, worker)
            self._let_go(worker)
        if owner is None:
            return
        owner._setup_queues()
        with self._lock:
            old, self.channel = self.channel, _Channel(owner)
            again, self.sent = self.sent, {}
            self._suspicious = self._cut_off = False
            self._idle_since = None
        old.cut()
        self.repopulate()
        for outcomes, (_, index, func, args, kwds) in again.values():
            self.waiting.put((outcomes, index, func, args, kwds))

    # The end

    def _stop(self):
        if not self._stopping:
            self._stopping = True
            for _ in range(len(self.workers) or self._processes):
                self.waiting.put(_STOP)
            self.wake()

    def end(self):
        """All is over, and no worker is left: have the threads end."""
        self.over = True
        self.waiting.put(None)
        self.channel.cut()
        self.wake()


_STOP = object()


def end_workers(workers, told=True):
    """End workers: they are told to, if there is time for it, and killed."""
    for worker in workers:
        if worker.exitcode is None:
            worker.terminate() if told else worker.kill()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.exitcode is None:
            util.info("killing %s, which did not end when told to", worker.name)
            worker.kill()
            worker.join()


class _Staff:
    """The workers and threads of such a pool."""

    def __init__(self, owner, engine):
        self._engine = engine
        self._owner = weakref.ref(owner)
        self._pid = os.getpid()
        # The end of the process; the object's own is `__del__`.
        self.end = util.Finalize(None, self.terminate, exitpriority=15)
        self._feeder = Feeder()
        self.feed, self.close, self.forget = self._feeder.feed, self._feeder.close, self._feeder.forget
        lives = {"PoolWatcher": self._watch, "PoolSender": engine.send, "PoolReceiver": engine.receive}
        self.threads = [threading.Thread(target=life, name=name, daemon=True) for name, life in lives.items()]

    def _watch(self):
        self._engine.watch()
        self.end.cancel()

    def fill(self, count):
        """Start workers of the usual kind until there are `count`."""
        owner = self._owner()
        while len(self._engine.workers) < count:
            rest = owner._initializer, owner._initargs, owner._maxtasksperchild, owner._wrap_exception
            made = owner.Process(owner._ctx, target=pool.worker, args=(owner._inqueue, owner._outqueue, *rest))
            pool.as_worker(made)
            made.start()
            self._engine.workers.append(made)

    def terminate(self):
        """End it all, whatever is under way. Takes a bounded time."""
        engine = self._engine
        if self._pid != os.getpid() or engine.over:
            return
        self._feeder.stop()
        engine.terminate()
        engine.over = True
        engine.wake()
        # The watching thread may be in a callback.
        held = engine.staff.acquire(timeout=GRACE)
        try:
            end_workers([*engine.workers])
        finally:
            if held:
                engine.staff.release()
        engine.end()
        deadline = time.monotonic() + GRACE
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def join(self):
        """Wait until the threads and the workers have ended."""
        for thread in self.threads:
            thread.join()
        for worker in self._engine.workers:
            worker.join()


def _with_place(make, engine, *args, **kwds):
    """In place of the pool's `Process()`: a process that knows where to note what it does."""
    made = make(*args, **kwds)
    made._pool_place = engine.place_for_worker()
    return made


def set_up(owner):
    """Has a pool work over the queues that its class makes."""
    if owner._life is not None:
        raise TypeError(
            f"{type(owner).__name__} has queues or workers of its own making: max_memory_per_child, worker_init, "
            "worker_exit, use_worker_state and cpu_ids are not to be had"
        )
    owner._setup_queues()
    owner._change_notifier = owner._ctx.SimpleQueue()
    engine = QueuesEngine(owner)
    owner.Process = functools.partial(_with_place, owner.Process, engine)
    owner._engine = engine
    owner._crew = staff = _Staff(owner, engine)
    owner._taskqueue = engine.waiting
    owner._worker_handler, owner._task_handler, owner._result_handler = staff.threads
    try:
        owner._repopulate_pool()
    except BaseException:
        staff.end.cancel()
        end_workers(owner._pool)
        raise
    for thread in staff.threads:
        thread.start()
    owner._terminate = staff.end
