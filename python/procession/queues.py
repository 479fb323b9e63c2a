"""Queues between processes.

The work is done by the native class of `_core`, on a ring of messages in shared memory. There is no thread that feeds
a pipe: `put()` pickles and stores the object before it returns. So what a process put is there for the others at once
and stays when the process ends, `qsize()` is exact, and an object that can't be pickled is an error of the very
`put()`.
"""

import types

from . import _core, context, reduction

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]


def __getattr__(name):
    # Few children need these names, and the modules they come from import others.
    if (source := _ELSEWHERE.get(name)) is not None:
        import importlib

        return globals().setdefault(name, getattr(importlib.import_module(*source), name.removeprefix("_")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_ELSEWHERE = {
    "Empty": ("queue",),
    "Full": ("queue",),
    "_ForkingPickler": (".reduction", __package__),
    **dict.fromkeys(("Finalize", "debug", "info", "is_exiting", "register_after_fork"), (".util", __package__)),
}

# What the thread of a queue over a pipe takes for the word to end.
_sentinel = object()


class NoLock:
    """In place of a lock that there is none of. It can be had at any time."""

    def acquire(self, block=True, timeout=None):
        """Nothing is to be waited for."""
        return True

    def release(self):
        """Nothing is to be given back."""

    def __enter__(self):
        return True

    def __exit__(self, *exc_info):
        pass


class _Room:
    """In place of the semaphore of a bounded queue: tells how many objects there is room for."""

    def __init__(self, queue):
        self._queue = queue
        self._semlock = self

    def get_value(self):
        """How many objects could be put."""
        return max(0, self._queue._maxsize - self._queue.qsize())

    _get_value = get_value


class _Shared(_core.Queue):
    """What all of them have in common: the way into a child, and the two ends by name."""

    def _make(self, maxsize, ctx):
        self._create(maxsize)
        self._is_fork_ctx = (context._default_context if ctx is None else ctx).get_start_method() == "fork"

    _is_piped = False

    def __getstate__(self):
        if self._is_piped:
            return self._piped().__getstate__(self)
        context.assert_spawning(self)
        if self._is_fork_ctx:
            method = getattr(context.get_spawning_popen(), "method", "spawn")
            raise RuntimeError(
                "A SemLock created in a fork context is being shared with a process in a "
                f"{method} context: make the {type(self).__name__} and the Process by the same context"
            )
        state, fds = self._share()
        return state, tuple(reduction.DupFd(fd) for fd in fds)

    def __setstate__(self, state):
        if self._is_piped:
            self._piped().__setstate__(self, state)
            return
        state, fds = state
        self._attach(state, tuple(fd.detach() for fd in fds))
        # The child may hand it on to its own children.
        self._is_fork_ctx = False

    def _unpicklable(self, error, obj):
        """Called when `obj` can't be pickled."""
        try:
            raise error
        finally:
            # The error knows this frame: it would keep the object until the garbage is collected.
            del error, obj

    def _piped(self):
        # For a subclass that calls what it overrides.
        from . import piped_queues

        return piped_queues.PipedSimpleQueue if isinstance(self, SimpleQueue) else piped_queues.PipedQueue

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __name__:
            return
        from . import piped_queues

        # If it knows how the standard package's queues work, and changes that, it is such a queue.
        base = piped_queues.PipedSimpleQueue if issubclass(cls, SimpleQueue) else piped_queues.PipedQueue
        for name, method in piped_queues.methods_for(cls, base).items():
            setattr(cls, name, method)

    # The ends of a pipe have locks: a process that is killed with one of them holds up all others, who then release it
    # by hand. There is no such lock.
    _rlock = _wlock = NoLock()

    # Made when they are asked for, and kept: whether an end is closed is remembered by it.

    @property
    def _reader(self):
        return self.__dict__.get("_reader_end") or self.__dict__.setdefault("_reader_end", _Reader(self))

    @_reader.setter
    def _reader(self, end):
        self._reader_end = end

    @property
    def _writer(self):
        return self.__dict__.get("_writer_end") or self.__dict__.setdefault("_writer_end", _Writer(self))

    @_writer.setter
    def _writer(self, end):
        self._writer_end = end

    __class_getitem__: classmethod = classmethod(types.GenericAlias)


class Queue(_Shared):
    """A first-in first-out queue of objects for many producers and consumers.

    `maxsize` bounds the number of objects; `put()` waits while there are so many. Without a bound it never waits.
    """

    # Set by some users to have errors of a closed pipe ignored. There is no pipe.
    _ignore_epipe = False
    # What others look at to see what is still to be sent: all was sent by the `put()`.
    _buffer = ()
    _thread = _jointhread = None
    _joincancelled = True

    def __init__(self, maxsize=0, *, ctx):
        from .synchronize import SEM_VALUE_MAX

        if maxsize > SEM_VALUE_MAX:
            raise OverflowError(f"maxsize must be at most {SEM_VALUE_MAX}; 0 is a queue without a bound")
        self._make(maxsize, ctx)

    @property
    def _maxsize(self):
        from .synchronize import SEM_VALUE_MAX

        return self._bound or SEM_VALUE_MAX

    @property
    def _sem(self):
        return _Room(self)

    def close(self):
        """Put and get nothing more through this object. Others, also in other processes, are not concerned."""
        self._close()

    def join_thread(self):
        """Return at once: there is no thread to wait for. What was put is in the queue."""
        assert self._closed, f"Queue {self!r} not closed: call close() before join_thread()"

    def cancel_join_thread(self):
        """Do nothing: no process waits at its end for its queues to be emptied."""

    def _terminate_broken(self):
        """Give up the queue, as its consumers are gone."""
        self.close()

    def _closed_error(self):
        return ValueError(f"Queue {self!r} is closed")

    def _closed_empty(self):
        # As with the standard package, closing has no effect on a queue that nothing was put on.
        if self._used:
            raise OSError(f"Queue {self!r} is closed")
        return self.qsize() == 0

    def _unpicklable(self, error, obj):
        hook = self._on_queue_feeder_error
        if hook is Queue._on_queue_feeder_error or not isinstance(error, Exception):
            try:
                raise error
            finally:
                # As above.
                del error, obj
        # A class that has a hook of its own counts on it, and on put() returning.
        hook(error, obj)

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """To be overridden by those who want to hear of unpicklable objects from here instead of from `put()`."""
        import traceback

        traceback.print_exception(e)


class JoinableQueue(Queue):
    """A queue that can be waited for until all objects that were put are dealt with."""

    def _make(self, maxsize, ctx):
        super()._make(maxsize, ctx)
        self._keep_holders()

    task_done = _core.Queue._task_done
    join = _core.Queue._join


class SimpleQueue(_Shared):
    """A queue with nothing but `put()`, `get()` and `empty()`; the first two wait without end."""

    def __init__(self, *, ctx):
        self._make(0, ctx)

    def close(self):
        """Put and get nothing more through this object."""
        self._close()
        for end in (self._reader, self._writer):
            end.close()

    def _closed_error(self):
        return OSError(f"the {type(self).__name__} is closed")

    def _closed_empty(self):
        raise self._closed_error()


class _End:
    """One of the two ends of a queue, by the methods of a connection."""

    def __init__(self, queue):
        # An object of its own, as the queue has this one: a cycle would keep its descriptors until it is collected.
        self._queue = _Shared()
        self._queue._same_as(queue)
        self._is_closed = False

    @property
    def closed(self):
        """Whether this end was closed. The queue itself is not concerned."""
        return self._is_closed

    def close(self):
        """Refuse further calls."""
        self._is_closed = True

    def _check(self):
        if self._is_closed:
            raise OSError("handle is closed")
        return self._queue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Reader(_End):
    """The end that objects are taken from."""

    readable, writable = True, False

    def fileno(self):
        """A descriptor that is readable exactly while an object is there. Only to be polled, not to be read from."""
        return self._check()._pollable()

    def poll(self, timeout=0.0):
        """Whether an object is there; waits so many seconds for one, without end if `timeout` is None."""
        return self._check()._poll(timeout)

    def recv(self):
        """Take the oldest object."""
        return self._check().get()

    def recv_bytes(self, maxlength=None):
        """Take the oldest object, as its pickle."""
        pickle = self._check()._get_bytes()
        if maxlength is not None and len(pickle) > maxlength:
            raise OSError(f"bad message length: {len(pickle)} bytes, but at most {maxlength} are wanted")
        return pickle


class _Writer(_End):
    """The end that objects are put on."""

    readable, writable = False, True

    def send(self, obj):
        """Put an object."""
        self._check().put(obj)

    def send_bytes(self, buf, offset=0, size=None):
        """Put an object given as its pickle."""
        view = memoryview(buf).cast("B")
        end = len(view) if size is None else offset + size
        if not 0 <= offset <= end <= len(view):
            raise ValueError("offset and size must lie within the buffer")
        self._check()._put_bytes(view[offset:end])
