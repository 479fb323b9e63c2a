"""The errors of pools, and how what a task raised comes back.

These are names of `procession.pool`, where the standard package has some of them, and where the engine looks.
"""

import signal
import traceback
from _pickle import dumps

from . import _core, reduction
from .context import ProcessError
from .crew import described

__all__ = [
    "ExceptionWithTraceback",
    "MaybeEncodingError",
    "RemoteTraceback",
    "WorkerLostError",
    "_cancelled_task",
    "_failure",
    "_helper_reraises_exception",
    "_lost_task",
    "_named",
    "_portable",
    "_terminated_task",
    "_undecodable_error",
    "_undecodable_result",
    "_unencodable_result",
    "_without_init",
    "rebuild_exc",
]


class RemoteTraceback(Exception):
    """The traceback of a worker, as the cause of the exception that it raised there."""

    def __init__(self, tb):
        self.tb = tb

    def __str__(self):
        return self.tb


class ExceptionWithTraceback:
    """An exception on its way to another process, where the traceback of this one becomes its cause."""

    def __init__(self, exc, tb):
        self.exc = exc
        self.tb = _quoted("".join(traceback.format_exception(type(exc), exc, tb)))

    def __reduce__(self):
        return rebuild_exc, (self.exc, self.tb)


def rebuild_exc(exc, tb):
    """The exception of an `ExceptionWithTraceback`."""
    exc.__cause__ = RemoteTraceback(tb)
    return exc


class MaybeEncodingError(Exception):
    """A result, or what a task raised, can't be sent: `exc` and `value` tell why and what, as text."""

    def __init__(self, exc, value):
        self.exc = described(exc)
        self.value = described(value)
        super().__init__(self.exc, self.value)

    def __str__(self):
        return f"Error sending result: '{self.value}'. Reason: '{self.exc}'"

    def __repr__(self):
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self):
        return _without_init, (type(self), self.args, vars(self))


class WorkerLostError(ProcessError):
    """A worker ended, and a task with it.

    `exitcode` is what it ended with (-N: signal N), `pid` and `worker` tell which process it was, and `task` is the
    index of the task in its call: of the chunk, in a map. `attempts` is how many workers ended with it, one after
    another: more than one if it has `retries`.
    """

    def __init__(self, message, exitcode=None, pid=None, worker=None, task=None, attempts=1):
        super().__init__(message)
        self.exitcode, self.pid, self.worker, self.task, self.attempts = exitcode, pid, worker, task, attempts

    def __reduce__(self):
        return _without_init, (type(self), self.args, vars(self))


def _quoted(text):
    return f'\n"""\n{text}"""'


def _without_init(cls, args, attributes):
    """An exception made anew without its `__init__`, which may want other arguments than the exception has."""
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(attributes)
    return error


class _Bare:
    """Stands for an exception in a pickle that is to be made anew without `__init__`."""

    def __init__(self, error):
        self._parts = type(error), error.args, vars(error)

    def __reduce__(self):
        return _without_init, self._parts


def _survives(pickle, error):
    return type(_core.reread(bytes(pickle))) is type(error)


def _failure(error):
    """What a worker sends for a task that raised: the length of the traceback, the traceback, the exception."""
    text = _quoted("".join(traceback.format_exception(error))).encode(errors="replace")
    reason = None
    for form in (error, _Bare(error)):
        try:
            pickle = reduction.ForkingPickler.dumps(form)
            # The receiver's answer is not ours to see: whatever fails there is to fail here.
            if _survives(pickle, error):
                break
        except Exception as problem:
            reason = reason or problem
    else:
        pickle = _failure_by_value(error, reason) or dumps(MaybeEncodingError(reason, error))
    return len(text).to_bytes(4, "little") + text + bytes(pickle)


def _failure_by_value(error, reason):
    """The pickle of an exception that has something in it which pickle refuses; None if there can be none."""
    from . import by_value

    try:
        pickle = by_value.stand_in(_Bare(error), reason).pickle
        return pickle if _survives(pickle, error) else None
    except Exception:
        return None


def _unencodable_result(error, value):
    """What a worker sends for a result that it can't send."""
    return bytes(4) + dumps(MaybeEncodingError(error, value))


def _undecodable_result(error):
    failed = MaybeEncodingError(error, "a result that can't be unpickled in the process that asked for it")
    failed.__cause__ = error
    return failed


def _undecodable_error(error, text):
    failed = MaybeEncodingError(error, "an exception that can't be unpickled in the process that asked for the result")
    failed.__cause__ = RemoteTraceback(text)
    return failed


def _named(func):
    return getattr(func, "__qualname__", None) or type(func).__name__


def _lost_task(how, func, task, taken, attempts=1):
    """The error of a task whose worker is gone (`taken`), or that no worker is there to take."""
    name, pid, exitcode, problem = how
    worker = f"worker {name}" + (f" (pid {pid})" if pid is not None else "")
    if problem:
        end = f"{worker} could not be started: {problem}"
    elif exitcode is None:
        end = f"{worker} ended"
    elif exitcode < 0:
        end = f"{worker} was killed by {_signal_name(-exitcode)}"
    else:
        end = f"{worker} exited with code {exitcode}"
    if taken:
        again = f", which {attempts} workers have died of, so it is not tried again" if attempts > 1 else ""
        message = f"{end} while it ran task {task} of a call of {_named(func)}{again}; the other tasks are not affected"
    else:
        message = (
            f"{end} before it was ready for tasks, as others before it, and the pool gave up: see their output for the "
            "reason (an initializer that fails, a main module that can't be imported)"
        )
    return WorkerLostError(message, exitcode, pid, name, task, attempts)


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _terminated_task():
    return RuntimeError("the pool was terminated before the task was done")


def _cancelled_task():
    # Who cancels has asked for it; nobody else is to pay for the import.
    from concurrent.futures import CancelledError

    return CancelledError("the call was cancelled")


def _helper_reraises_exception(ex):
    """Raises what it is given: a task that fails."""
    raise ex


def _portable(error):
    """What to pickle in place of an exception that a task raised, so that it can be read, and has the traceback."""
    sent = ExceptionWithTraceback(error, error.__traceback__)
    reason = None
    for sent.exc in (error, _Bare(error)):
        try:
            if _survives(reduction.ForkingPickler.dumps(sent), error):
                return sent
        except Exception as problem:
            reason = reason or problem
    return MaybeEncodingError(reason, error)


# As others know them.
for _known in (ExceptionWithTraceback, MaybeEncodingError, RemoteTraceback, WorkerLostError, rebuild_exc):
    _known.__module__ = f"{__package__}.pool"
