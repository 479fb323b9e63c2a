"""A pool as others see it that look behind its interface.

Monitors ask how many tasks wait (`pool._taskqueue.qsize()`), whether the threads of a pool live, whether its queues are
empty. Nothing of that is there as such: these are views of the engine.
"""

from .queues import NoLock

__all__ = ["view"]


class _Waiting:
    """Tasks that no worker has taken yet, in place of the queue of those that are still to be sent."""

    def __init__(self, engine):
        self._engine = engine

    def qsize(self):
        """How many there are."""
        return self._engine.waiting()

    def empty(self):
        """Whether there are none."""
        return not self.qsize()


class _Queue(_Waiting):
    """In place of the queues of tasks and results."""

    _rlock = _wlock = NoLock()


class _Results(_Queue):
    def qsize(self):
        """None are waiting: whoever asks for a result reads it."""
        return 0


class _Notifier:
    """In place of the queue by which the thread is told that a worker has ended: it is told by the system."""

    def put(self, obj):
        """Nobody needs to be told."""

    def empty(self):
        """Always."""
        return True


def view(pool, name):
    """What stands for this attribute of the standard package's pool."""
    if name in ("_worker_handler", "_task_handler", "_result_handler"):
        if (thread := getattr(pool._crew, "_thread", None)) is None:
            raise AttributeError(f"{type(pool).__name__!r} object has no attribute {name!r}: it has no such thread")
        return thread
    if name == "_change_notifier":
        return _Notifier()
    if hasattr(pool._engine, "inbox"):
        # A pool of threads has one queue; results need none.
        return pool._engine.inbox if name != "_outqueue" else _Results(pool._engine)
    return {"_taskqueue": _Waiting, "_inqueue": _Queue, "_outqueue": _Results}[name](pool._engine)
