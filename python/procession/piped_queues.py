"""Queues over pipes, for subclasses that know how the standard package's queues work and change it.

A class that overrides `_start_thread()` or `_feed()`, or whose methods use the locks of a pipe's ends (loky's do, to
pickle in a way of their own), counts on a pipe, and on a thread that feeds objects into it. These are the methods that
such a class gets in place of those of the native queue (see `queues._Shared`).
"""

import collections
import errno
import os
import threading
import time
import weakref

from . import connection, context, util

__all__ = ["PipedQueue", "PipedSimpleQueue", "methods_for"]

# Who overrides one of these, or uses one of these fields, has a queue over a pipe.
HOOKS = frozenset(("_start_thread", "_feed", "_reset", "_after_fork"))
FIELDS = frozenset(("_rlock", "_wlock", "_sem", "_opid", "_buffer", "_notempty", "_send_bytes", "_recv_bytes"))


def methods_for(cls, base):
    """The methods for a subclass of a queue, if it is one that needs a pipe: names and values."""
    own = vars(cls)
    codes = [code for value in own.values() if (code := getattr(value, "__code__", None)) is not None]
    if HOOKS.isdisjoint(own) and not any(FIELDS.intersection(code.co_names) for code in codes):
        return {}
    skipped = {"__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"}
    return {name: value for name, value in vars(base).items() if name not in own and name not in skipped}


def _forking_pickle(obj):
    return context.reduction.ForkingPickler.dumps(obj)


def _unpickle(data):
    return context.reduction.ForkingPickler.loads(data)


class PipedQueue:
    """A pipe behind a buffer that a thread empties into it."""

    _is_piped = True

    # Fields of the object, where the native queue has methods and properties.
    _maxsize = 0
    _sem = None
    _closed = False
    _close = None
    _thread = _jointhread = None
    _joincancelled = False

    def _make(self, maxsize, ctx):
        if ctx is None:
            ctx = context._default_context.get_context()
        if maxsize <= 0:
            from .synchronize import SEM_VALUE_MAX

            maxsize = SEM_VALUE_MAX
        self._maxsize = maxsize
        self._reader, self._writer = connection.Pipe(duplex=False)
        self._rlock, self._wlock = ctx.Lock(), ctx.Lock()
        self._sem = ctx.BoundedSemaphore(maxsize)
        self._opid = os.getpid()
        self._ignore_epipe = False
        self._reset()
        util.register_after_fork(self, lambda queue: queue._reset(after_fork=True))

    def __getstate__(self):
        context.assert_spawning(self)
        return (
            self._ignore_epipe,
            self._maxsize,
            self._reader,
            self._writer,
            self._rlock,
            self._wlock,
            self._sem,
            self._opid,
        )

    def __setstate__(self, state):
        self._ignore_epipe, self._maxsize, self._reader, self._writer, *rest = state
        self._rlock, self._wlock, self._sem, self._opid = rest
        self._reset()

    def _reset(self, after_fork=False):
        """Begin anew in this process: with an empty buffer and no thread."""
        self._notempty = threading.Condition(threading.Lock())
        self._buffer = collections.deque()
        self._thread = self._jointhread = self._close = None
        self._joincancelled = self._closed = False
        self._send_bytes, self._recv_bytes = self._writer.send_bytes, self._reader.recv_bytes
        self._poll = self._reader.poll

    def put(self, obj, block=True, timeout=None):
        """Put an object into the buffer, from where the thread sends it."""
        self._check()
        if not self._sem.acquire(block, timeout):
            from queue import Full

            raise Full
        with self._notempty:
            if self._thread is None:
                self._start_thread()
            self._buffer.append(obj)
            self._notempty.notify()

    def put_nowait(self, obj):
        """Put an object, or raise queue.Full."""
        self.put(obj, False)

    def put_many(self, iterable, block=True, timeout=None):
        """Put all objects of an iterable."""
        for obj in iterable:
            self.put(obj, block, timeout)

    def get(self, block=True, timeout=None):
        """Take the oldest object that has come through the pipe."""
        from queue import Empty

        self._check()
        end = None if timeout is None else time.monotonic() + timeout
        if not self._rlock.acquire(block, timeout):
            raise Empty
        try:
            left = 0.0 if not block else None if end is None else max(0.0, end - time.monotonic())
            if left is not None and not self._poll(left):
                raise Empty
            data = self._recv_bytes()
            self._sem.release()
        finally:
            self._rlock.release()
        return _unpickle(data)

    def get_nowait(self):
        """Take the oldest object, or raise queue.Empty."""
        return self.get(False)

    def get_many(self, most, block=True, timeout=None):
        """Take the oldest objects, at most so many."""
        from queue import Empty

        taken = [self.get(block, timeout)]
        try:
            while len(taken) < most:
                taken.append(self.get(False))
        except Empty:
            pass
        return taken

    def _check(self):
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def qsize(self):
        """How many objects are in the buffers and the pipe."""
        return self._maxsize - self._sem.get_value()

    def empty(self):
        """Whether nothing is in the pipe."""
        return not self._poll(0.0)

    def full(self):
        """Whether `put()` would wait."""
        return self._sem.get_value() == 0

    def close(self):
        """Put and get nothing more through this object; the thread ends when the buffer is empty."""
        self._closed = True
        close, self._close = self._close, None
        if close is not None:
            close()

    def join_thread(self):
        """Wait until the thread has sent everything."""
        assert self._closed, f"Queue {self!r} not closed: call close() before join_thread()"
        if self._jointhread is not None:
            self._jointhread()

    def cancel_join_thread(self):
        """Have the process not wait at its end for the thread to send everything."""
        self._joincancelled = True
        if self._jointhread is not None:
            self._jointhread.cancel()

    def _terminate_broken(self):
        """Give up the queue, as its consumers are gone: nobody may wait for room in the pipe."""
        self.close()
        self._reader.close()
        self.join_thread()

    def _start_thread(self):
        self._buffer.clear()
        self._thread = threading.Thread(
            target=type(self)._feed,
            args=(
                self._buffer,
                self._notempty,
                self._send_bytes,
                self._wlock,
                self._reader.close,
                self._writer.close,
                self._ignore_epipe,
                self._on_queue_feeder_error,
                self._sem,
            ),
            name="QueueFeederThread",
            daemon=True,
        )
        self._thread.start()
        if not self._joincancelled:
            waited_for = [weakref.ref(self._thread)]
            self._jointhread = util.Finalize(self._thread, self._finalize_join, waited_for, exitpriority=-5)
        self._close = util.Finalize(self, self._finalize_close, [self._buffer, self._notempty], exitpriority=10)

    @staticmethod
    def _finalize_join(twr):
        thread = twr()
        if thread is not None:
            thread.join()

    @staticmethod
    def _finalize_close(buffer, notempty):
        from .queues import _sentinel

        with notempty:
            buffer.append(_sentinel)
            notempty.notify()

    @staticmethod
    def _feed(buffer, notempty, send_bytes, writelock, reader_close, writer_close, ignore_epipe, onerror, queue_sem):
        from .queues import _sentinel

        while True:
            with notempty:
                while not buffer:
                    notempty.wait()
                obj = buffer.popleft()
            if obj is _sentinel:
                reader_close()
                writer_close()
                return
            try:
                data = _forking_pickle(obj)
                with writelock:
                    send_bytes(data)
            except Exception as error:
                if ignore_epipe and getattr(error, "errno", None) == errno.EPIPE:
                    return
                # An object that was not sent takes no room.
                queue_sem.release()
                if util.is_exiting():
                    util.info("error in queue thread: %s", error)
                    return
                onerror(error, obj)
            # Nothing is kept while waiting.
            obj = data = None


class PipedSimpleQueue:
    """A pipe with a lock for each end."""

    _is_piped = True

    _closed = False
    _close = None

    def _make(self, maxsize, ctx):
        if ctx is None:
            ctx = context._default_context.get_context()
        self._reader, self._writer = connection.Pipe(duplex=False)
        self._rlock, self._wlock = ctx.Lock(), ctx.Lock()
        self._poll = self._reader.poll

    def __getstate__(self):
        context.assert_spawning(self)
        return self._reader, self._writer, self._rlock, self._wlock

    def __setstate__(self, state):
        self._reader, self._writer, self._rlock, self._wlock = state
        self._poll = self._reader.poll

    def put(self, obj):
        """Put an object."""
        data = _forking_pickle(obj)
        with self._wlock:
            self._writer.send_bytes(data)

    def get(self):
        """Take the oldest object."""
        with self._rlock:
            data = self._reader.recv_bytes()
        return _unpickle(data)

    def empty(self):
        """Whether nothing is in the pipe."""
        return not self._reader.poll()

    def close(self):
        """Close both ends."""
        self._reader.close()
        self._writer.close()
