"""Locks, semaphores, conditions, events and barriers between processes.

The work is done by the native classes of `_core`, on words in shared memory. Here is what the standard package's users
see beside it: names of owners, and how objects get into a process that is being started.
"""

import os
import sys
import threading
import time

from . import _core, context, process, reduction

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

RECURSIVE_MUTEX, SEMAPHORE = range(2)
SEM_VALUE_MAX = _core.Semaphore.SEM_VALUE_MAX

# What every object has stands beside its dictionary, which is then made only where a user sets more: Python 3.13 is
# quicker to find the methods of objects that have none.
_SLOTS = ("__dict__", "__weakref__", "_is_fork_ctx")


class _Shared:
    """What all of them have in common: the context they are made for, and the way into a child."""

    __slots__ = ()

    def _set_context(self, ctx):
        method = (context._default_context if ctx is None else ctx).get_start_method()
        self._is_fork_ctx = method == "fork"
        if method == "spawn":
            # Nothing of ours has a name to track. But programs expect the tracker, if there is one, to be there again
            # once they have made a lock, should it have been killed.
            tracker = sys.modules.get(f"{__package__}.resource_tracker")
            if tracker is not None and tracker._resource_tracker._seen:
                tracker.ensure_running()

    def __getstate__(self):
        context.assert_spawning(self)
        if self._is_fork_ctx:
            raise RuntimeError(
                f"A SemLock created in a fork context is being shared with a process in a {_spawning_method()} "
                f"context: make the {type(self).__name__} and the Process by the same context"
            )
        state, fds = self._share()
        return state, tuple(reduction.DupFd(fd) for fd in fds)

    def __setstate__(self, state):
        state, fds = state
        self._attach(state, tuple(fd.detach() for fd in fds))
        # The child may hand it on to its own children.
        self._is_fork_ctx = False


def _spawning_method():
    return getattr(context.get_spawning_popen(), "method", "spawn")


class _RandomNames:
    """Names that no other process has."""

    def __iter__(self):
        return self

    def __next__(self):
        return os.urandom(6).hex()


class SemLock(_Shared):
    """Base class of locks and semaphores."""

    __slots__ = ()

    name = None
    kind = SEMAPHORE
    maxvalue = 1
    # Of use to those who make named semaphores of their own.
    _rand = _RandomNames()

    @staticmethod
    def _make_name():
        """A name for a semaphore of the system."""
        return f"{process.current_process()._config['semprefix']}-{next(SemLock._rand)}"

    @property
    def _semlock(self):
        """The semaphore behind the object: the object itself."""
        return self

    def _owner(self):
        """Who holds a lock, in words."""
        if self._is_mine():
            name = process.current_process().name
            thread = threading.current_thread().name
            return name if thread == "MainThread" else f"{name}|{thread}"
        if not self.locked():
            return "None"
        return "SomeOtherThread" if self._count() else "SomeOtherProcess"


class Lock(_core.Lock, SemLock):
    """A lock. Any thread of any process may release it."""

    __slots__ = _SLOTS

    def __init__(self, *, ctx):
        self._create()
        self._set_context(ctx)

    def __repr__(self):
        return f"<{type(self).__name__}(owner={self._owner()})>"


class RLock(_core.RLock, SemLock):
    """A lock that its owner, a thread of a process, may acquire again."""

    __slots__ = _SLOTS

    kind = RECURSIVE_MUTEX

    def __init__(self, *, ctx):
        self._create()
        self._set_context(ctx)

    def __repr__(self):
        owner = self._owner()
        count = self._count() if self._is_mine() else 0 if owner == "None" else "nonzero"
        return f"<{type(self).__name__}({owner}, {count})>"


class Semaphore(_core.Semaphore, SemLock):
    """A counter of permits."""

    __slots__ = _SLOTS

    maxvalue = _core.Semaphore.maxvalue

    def __init__(self, value=1, *, ctx):
        self._create(value, SEM_VALUE_MAX)
        self._set_context(ctx)

    def get_value(self):
        """How many permits may be had."""
        return self._get_value()

    def __repr__(self):
        return f"<{type(self).__name__}(value={self._get_value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that can't be released above its first value."""

    def __init__(self, value=1, *, ctx):
        self._create(value, value)
        self._set_context(ctx)

    def __repr__(self):
        return f"<{type(self).__name__}(value={self._get_value()}, maxvalue={self.maxvalue})>"


class _NoSemaphore:
    """In place of the semaphores that the standard package's condition is made of."""

    def get_value(self):
        raise NotImplementedError("a Condition is not made of semaphores: it counts its waiters in their slots")


class Condition(_core.Condition, _Shared):
    """A condition variable: wait, with a lock given up, until others say that something changed."""

    __slots__ = _SLOTS

    _sleeping_count = _woken_count = _wait_semaphore = _NoSemaphore()

    def __init__(self, lock=None, *, ctx):
        self._create(RLock(ctx=ctx) if lock is None else lock)
        self._set_context(ctx)

    def __getstate__(self):
        return self._lock, super().__getstate__()

    def __setstate__(self, state):
        lock, (state, fds) = state
        self._attach(lock, state, tuple(fd.detach() for fd in fds))
        self._is_fork_ctx = False

    def __repr__(self):
        return f"<{type(self).__name__}({self._lock}, {self._waiters()})>"

    def locked(self):
        """Whether somebody holds the lock."""
        return self._lock.locked()

    def wait_for(self, predicate, timeout=None):
        """Wait until `predicate()` is true, at most `timeout` seconds; return its last value."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result


class Event(_core.Event, _Shared):
    """A flag to wait for."""

    __slots__ = _SLOTS

    def __init__(self, *, ctx):
        self._create()
        self._set_context(ctx)

    def __repr__(self):
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


class Barrier(_core.Barrier, _Shared, threading.Barrier):
    """A point that a number of processes pass together.

    It is a threading.Barrier by name only, for those who ask; all of it is in shared memory.
    """

    def __init__(self, parties, action=None, timeout=None, *, ctx):
        self._create(parties)
        self._set_context(ctx)
        self._action, self._timeout = action, timeout

    def __getstate__(self):
        return self._action, self._timeout, super().__getstate__()

    def __setstate__(self, state):
        self._action, self._timeout, state = state
        super().__setstate__(state)

    def wait(self, timeout=None):
        """Wait for all parties; return the place in the order of arrival, 0 to parties - 1.

        The last to arrive calls the action first. If the time is up, the barrier is broken for all.
        """
        return self._pass(self._timeout if timeout is None else timeout, self._action)


for _class in (Lock, RLock, Semaphore, BoundedSemaphore, Condition):
    _class._own_methods()
