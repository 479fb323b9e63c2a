"""Every task of a pool ends in an answer, whatever it raises or returns, and whatever can't be pickled or read."""

import os
import pickle
import signal
import sys
import threading

import pytest

import processes
import procession
from procession.pool import MaybeEncodingError, ThreadPool, WorkerLostError


def square(x):
    return x * x


class TwoArguments(Exception):
    """Can be pickled; its pickle can't be read the usual way."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


class Undecodable:
    """Its pickle can't be read."""

    def __reduce__(self):
        return int, ("not a number",)


class Outside(BaseException):
    """Not an Exception."""


class Deadly:
    """Who reads its pickle is killed."""

    def __reduce__(self):
        return os.kill, (Own(), signal.SIGKILL)


class Own:
    """The pid of who reads it."""

    def __reduce__(self):
        return os.getpid, ()


def raise_two_arguments():
    raise TwoArguments(7, "seven")


def raise_unpicklable():
    raise Unpicklable("x")


def raise_this(error):
    raise error


def return_lock():
    return threading.Lock()


def undecodable():
    return Undecodable()


@pytest.fixture(params=["processes", "threads"])
def any_pool(request):
    with procession.get_context("fork").Pool(2) if request.param == "processes" else ThreadPool(2) as pool:
        yield pool
    pool.join()


@pytest.fixture
def pool(ctx):
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


def comes_back(pool, error):
    with pytest.raises(type(error)) as raised:
        pool.apply(raise_this, (error,))
    assert raised.value.args == error.args
    assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("error", [Outside("x"), GeneratorExit()])
def test_task_raises_base_exception(any_pool, error):
    """Standard package: the worker ends, and the task is waited for for ever; mpire as well."""
    comes_back(any_pool, error)


def test_task_raises_keyboard_interrupt(any_pool):
    """Standard package: the worker ends, and the task is waited for for ever."""
    comes_back(any_pool, KeyboardInterrupt())


def test_task_calls_sys_exit(any_pool):
    """Standard package: the worker ends, and the task is waited for for ever. The others give the SystemExit back."""
    comes_back(any_pool, SystemExit(3))


def test_exception_wants_other_arguments(pool):
    """Standard package: the thread that reads results ends, and all tasks hang.

    ProcessPoolExecutor, loky and pebble: the pool is of no more use. mpire gives the exception back, as we do.
    """
    with pytest.raises(TwoArguments, match="7: seven") as raised:
        pool.apply(raise_two_arguments)
    assert raised.value.code == 7
    with pytest.raises(Unpicklable, match="x"):
        pool.apply(raise_unpicklable)
    assert pool.apply(square, (3,)) == 9


def test_result_cannot_be_pickled(pool):
    """Standard package: MaybeEncodingError, as here. mpire hangs, pebble loses the worker."""
    with pytest.raises(MaybeEncodingError, match="lock"):
        pool.apply(return_lock)
    assert pool.apply(square, (3,)) == 9


def test_result_cannot_be_unpickled(pool):
    """Standard package: the thread that reads results ends, and all tasks hang."""
    with pytest.raises(MaybeEncodingError, match="can't be unpickled") as raised:
        pool.apply(undecodable)
    assert isinstance(raised.value.__cause__, ValueError)
    assert pool.apply(square, (3,)) == 9


def test_argument_cannot_be_pickled(pool):
    """Standard package: the error is that of the task, as here."""
    errors = []
    with pytest.raises(TypeError, match="lock"):
        pool.apply(square, (threading.Lock(),))
    result = pool.apply_async(square, (threading.Lock(),), error_callback=errors.append)
    result.wait()
    assert isinstance(errors[0], TypeError)
    with pytest.raises(TypeError):
        list(pool.imap(square, [1, threading.Lock()]))
    assert pool.map(square, [1]) == [1]


def test_functions_that_cannot_be_pickled():
    lock = threading.Lock()
    with procession.get_context("fork").Pool(2) as pool:
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            # With cloudpickle it could be sent, were it not for the lock.
            pool.map(lambda x: lock, range(100), chunksize=1)
        assert pool.map(square, [1]) == [1]
    pool.join()


def test_argument_cannot_be_unpickled(pool):
    """Standard package: the worker ends with the error, and the task is waited for for ever."""
    for _ in range(3):
        with pytest.raises(ValueError, match="not a number"):
            pool.apply(square, (Undecodable(),))
    with pytest.raises(ValueError, match="not a number"):
        pool.map(square, [1, Undecodable(), 3], chunksize=1)
    assert pool.apply(square, (3,)) == 9


def test_a_function_the_worker_cannot_find(monkeypatch):
    """Standard package: the worker ends with the error, and the task is waited for for ever."""

    def late():
        pass

    late.__qualname__ = "late"
    with procession.get_context("fork").Pool(2) as pool:
        monkeypatch.setattr(sys.modules[__name__], "late", late, raising=False)
        with pytest.raises(AttributeError, match="late"):
            pool.apply(late)
        assert pool.apply(square, (3,)) == 9
    pool.join()


def test_worker_killed_while_taking(pool):
    """Standard package: the task is waited for for ever. ProcessPoolExecutor, loky and mpire: the whole pool fails."""
    lost = pool.apply_async(square, (Deadly(),))
    others = [pool.apply_async(square, (x,)) for x in range(20)]
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        lost.get()
    assert [other.get() for other in others] == [x * x for x in range(20)]


def test_callback_raises(any_pool, monkeypatch):
    """Standard package: the thread that reads results ends, and all tasks hang."""
    reported = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    result = any_pool.apply_async(square, (3,), callback=lambda value: 1 / 0)
    assert result.get() == 9
    failed = any_pool.apply_async(raise_this, (LookupError(),), error_callback=lambda error: 1 / 0)
    with pytest.raises(LookupError):
        failed.get()
    assert any_pool.apply(square, (4,)) == 16
    assert processes.eventually(lambda: [report.exc_type for report in reported] == [ZeroDivisionError] * 2)
