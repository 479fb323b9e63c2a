"""The interface of the package, with threads in place of processes."""

import array
import sys
import threading
import weakref
from queue import Queue
from threading import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore

from .connection import Pipe

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "Queue",
    "RLock",
    "Semaphore",
    "active_children",
    "current_process",
    "freeze_support",
]

# A queue between threads counts its tasks anyway.
JoinableQueue = Queue
# What a manager would make, this module has itself.
dict = dict
list = list

current_process = threading.current_thread


class DummyProcess(threading.Thread):
    """A thread with what process objects have beyond threads."""

    def __init__(self, group=None, target=None, name=None, args=(), kwargs=None):
        super().__init__(group, target, name, args, kwargs)
        self._pid = None
        self._children = weakref.WeakKeyDictionary()
        self._start_called = False
        self._parent = current_process()

    def start(self):
        """Start the thread. Only the thread that made it may."""
        caller = current_process()
        if self._parent is not caller:
            raise RuntimeError(f"Parent is {self._parent!r} but current_process is {caller!r}")
        self._start_called = True
        if hasattr(caller, "_children"):
            caller._children[self] = None
        super().start()

    @property
    def exitcode(self):
        """0 when it has ended, None before."""
        return 0 if self._start_called and not self.is_alive() else None


Process = DummyProcess
# The thread that imports this, which is no DummyProcess, has children too.
vars(current_process())["_children"] = weakref.WeakKeyDictionary()


def active_children():
    """The threads started by this one that still run."""
    children = current_process()._children
    for child in [*children]:
        if not child.is_alive():
            children.pop(child, None)
    return [*children]


def freeze_support():
    """Nothing: threads need no support."""


class Namespace:
    """Attributes to share."""

    def __init__(self, /, **kwds):
        vars(self).update(kwds)

    def __repr__(self):
        shown = sorted(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"


def Array(typecode, sequence, lock=True):
    """An array to share."""
    return array.array(typecode, sequence)


class Value:
    """A value to share."""

    def __init__(self, typecode, value, lock=True):
        self._typecode = typecode
        self._value = value

    @property
    def value(self):
        """What it holds."""
        return self._value

    @value.setter
    def value(self, value):
        self._value = value

    def __repr__(self):
        return f"<{type(self).__name__}({self._typecode!r}, {self._value!r})>"


def Manager():
    """What makes shared objects: this module."""
    return sys.modules[__name__]


def shutdown():
    """Nothing: there is no process behind the manager."""


def Pool(processes=None, initializer=None, initargs=()):
    """A pool of threads."""
    from ..pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)
