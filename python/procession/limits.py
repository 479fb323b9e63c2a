"""What calls say of their tasks: how long they may take, how often they are tried again, and when their turn comes."""

import signal
import sys
import threading
from _operator import index

from . import _core
from .context import TimeoutError
from .pool_errors import _named, _without_init

__all__ = ["SoftTimeLimitExceeded", "TimeLimitExceeded", "terms_of"]

# Priorities are numbers of this many bits.
BITS = 32
# More workers than this are not given to one task.
MOST_RETRIES = 2**32 - 1


class TimeLimitExceeded(TimeoutError):
    """A task took longer than its `timeout`, and its worker was killed.

    `limit` is what the timeout was, `pid` and `worker` tell which process it was, and `task` is the index of the task
    in its call: of the chunk, in a map.
    """

    def __init__(self, message, limit=None, pid=None, worker=None, task=None):
        super().__init__(message)
        self.limit, self.pid, self.worker, self.task = limit, pid, worker, task

    def __reduce__(self):
        return _without_init, (type(self), self.args, vars(self))


class SoftTimeLimitExceeded(Exception):
    """Raised in a task that has been running for its `soft_timeout`. It may catch it, and come to an end."""

    def __init__(self, message="the task has been running for its soft limit"):
        super().__init__(message)


for _error in (TimeLimitExceeded, SoftTimeLimitExceeded):
    # Where they are looked for.
    _error.__module__ = "procession.pool"


def _seconds(value, name):
    try:
        if isinstance(value, (str, bytes, bytearray, bool)):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}") from None
    if not seconds > 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value!r}")
    return seconds


def _priority(value):
    try:
        priority = index(value)
    except TypeError:
        raise TypeError(f"priority must be an integer, not {value!r}") from None
    if not -(2 ** (BITS - 1)) <= priority < 2 ** (BITS - 1):
        raise ValueError(f"priority must be a number of {BITS} bits, not {priority}")
    return priority


def terms_of(defaults, timeout, soft_timeout, retries, priority=0):
    """What a call says of its tasks. What is None is as the `defaults` have it, which may be None themselves.

    An infinite time is no limit, whatever the defaults say. Returns None if there is nothing to say.
    """
    if defaults is None:
        defaults = _core.TaskTerms()
    hard = defaults.timeout if timeout is None else _seconds(timeout, "timeout")
    soft = defaults.soft_timeout if soft_timeout is None else _seconds(soft_timeout, "soft_timeout")
    if retries is None:
        retries = defaults.retries
    else:
        try:
            retries = index(retries)
        except TypeError:
            raise TypeError(f"retries must be an integer, not {retries!r}") from None
        if retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}")
    # The pool's, if it is longer than the timeout of the call, is of no use, which does no harm.
    if soft_timeout is not None and hard is not None and hard <= soft < float("inf"):
        raise ValueError(f"the soft_timeout ({soft:g} s) must be shorter than the timeout ({hard:g} s)")
    priority = _priority(priority)
    if hard is None and soft is None and not retries and not priority:
        return None
    return _core.TaskTerms(hard, soft, min(retries, MOST_RETRIES), priority)


def _overdue_task(how, func, task, limit):
    """The error of a task whose worker was killed since the task had had its time."""
    name, pid, _exitcode, _problem = how
    message = (
        f"task {task} of a call of {_named(func)} took longer than its limit of {limit:g} s, and its worker "
        f"{name} (pid {pid}) was killed; the other tasks are not affected"
    )
    return TimeLimitExceeded(message, limit, pid, name, task)


def _soft_limit_reached(limit):
    return SoftTimeLimitExceeded(f"the task has been running for its soft limit of {limit:g} s")


# The signal that tells a worker that a task has had its soft limit, once it is chosen. A forked child has the same.
_signal = None


def _listen(handler):
    """Has a signal handled that nobody else uses. Returns its number, and whether loops may not notice it."""
    global _signal
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a soft_timeout needs a worker that runs its tasks in the main thread of its process")
    numbers = range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1) if _signal is None else [_signal]
    for number in numbers:
        if number == _signal or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, handler)
            # Whoever has started this process may have blocked it.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            _signal = number
            # As of CPython 3.13: forked by a thread, whose state is not taken for that of the main thread.
            forked_by_thread = type(threading.main_thread()).__name__ != "_MainThread"
            return number, forked_by_thread and sys.version_info >= (3, 13)
    raise RuntimeError("there is no real-time signal left for a soft_timeout: the program uses all of them")
