"""Pools of worker processes, and of threads.

Here are the names and the life of a pool: which workers there are, what replaces them, how it ends. Tasks and results
are the engine's (`_core.PoolEngine`).
"""

import itertools
import os
import signal
import sys
import threading
import warnings
from _operator import index

from . import _core, get_context, process, reduction, util
from ._core import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult  # noqa: F401 (names of this module)
from .context import ProcessError, TimeoutError, assert_spawning  # noqa: F401 (a name of this module)
from .crew import Crew
from .pool_errors import (  # noqa: F401 (names of this module, and what the engine looks for in it)
    ExceptionWithTraceback,
    MaybeEncodingError,
    RemoteTraceback,
    WorkerLostError,
    _cancelled_task,
    _failure,
    _helper_reraises_exception,
    _lost_task,
    _named,
    _portable,
    _terminated_task,
    _undecodable_error,
    _undecodable_result,
    _unencodable_result,
    _without_init,
    rebuild_exc,
)

__all__ = ["Pool", "ThreadPool"]  # noqa: F822 (see __getattr__)

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"

AsyncResult = ApplyResult

# Up to so many items of a ready-made sequence are handed to the workers at once; other iterables by a thread.
AT_ONCE = 4096
# The engine chooses the sizes of chunks.
AUTO = 0


def __getattr__(name):
    # The tests of the standard package, and few others, come for the first; the others are for those with time limits.
    if name == "ThreadPool":
        from .thread_pool import ThreadPool

        return globals().setdefault(name, ThreadPool)
    if name in ("SoftTimeLimitExceeded", "TimeLimitExceeded"):
        from . import limits

        return globals().setdefault(name, getattr(limits, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mapstar(args):
    """What a worker does with a chunk of a map."""
    func, chunk = args
    return [*map(func, chunk)]


def starmapstar(args):
    """What a worker does with a chunk of a starmap."""
    func, chunk = args
    return [*itertools.starmap(func, chunk)]


# Workers


class _Port:
    """What a worker is handed: inherited by a fork, else pickled along with its descriptors."""

    def __init__(self, port):
        self.port = port

    def __getstate__(self):
        assert_spawning(self)
        state, fds = self.port._share()
        return state, [reduction.DupFd(fd) for fd in fds]

    def __setstate__(self, shared):
        state, fds = shared
        self.port = _core.PoolPort._attach(state, [fd.detach() for fd in fds])


def as_worker(made):
    """Name a process object, and have it end with this process, and all its descendants with it: it may have some."""
    made.name = made.name.replace("Process", "PoolWorker")
    made.daemon = True
    if isinstance(made, process.BaseProcess):
        made._config["pooled"] = True


def _ignore(signum, frame):
    """Ctrl-C in a terminal goes to the workers as well; it is for the parent to say what becomes of them."""


def _prepare_worker():
    # A handler, and not SIG_IGN, which programs that a task starts would inherit.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    current = process.current_process()
    if process.parent_process() is not None and not current.daemon:
        process._end_with_parent()


def _work(port, place, initializer, initargs, maxtasks, life=None):
    """The life of a worker process: does tasks until there are no more."""
    _prepare_worker()
    if life is not None:
        life.pin(place)
    place = port.port.enter(place)
    if initializer is not None:
        initializer(*initargs)
    done = place.serve(maxtasks) if life is None else life.serve(place, maxtasks)
    util.debug("worker exiting after %d tasks", done)


def worker(inqueue, outqueue, initializer=None, initargs=(), maxtasks=None, wrap_exception=False):
    """The life of a worker process of a pool over queues (see pool_over_queues.py).

    Subclasses of `Pool` that override `_repopulate_pool()` have their processes call it.
    """
    if maxtasks is not None and not (isinstance(maxtasks, int) and maxtasks >= 1):
        raise AssertionError(f"Maxtasks {maxtasks!r} is not valid")
    from .pool_over_queues import serve

    _prepare_worker()
    # Each end is to be open only where it is used.
    for queue, end in ((inqueue, "_writer"), (outqueue, "_reader")):
        if hasattr(queue, end):
            getattr(queue, end).close()
    if initializer is not None:
        initializer(*initargs)

    def failure(error, func):
        if not wrap_exception or func is _helper_reraises_exception:
            return error
        return _portable(error)

    done = serve(inqueue, outqueue, maxtasks, failure)
    util.debug("worker exiting after %d tasks", done)


_LOOKED_AT = frozenset(
    "_change_notifier _inqueue _outqueue _result_handler _task_handler _taskqueue _worker_handler".split()
)


def _main_is_file():
    """Whether new interpreters find the main module; else it is a prompt, a notebook, `-c`."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and not os.path.basename(file).startswith("<") and not hasattr(sys, "ps1")


class Pool:
    """Worker processes that calls are handed to."""

    _wrap_exception = True
    # Of one whose arguments are wrong.
    _state = INIT
    _terms = None

    @staticmethod
    def Process(ctx, *args, **kwds):
        """A process object of the pool's context."""
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
        *,
        timeout=None,
        soft_timeout=None,
        retries=0,
        max_memory_per_child=None,
        worker_init=None,
        worker_exit=None,
        use_worker_state=False,
        cpu_ids=None,
    ):
        """A pool of `processes` workers, as in the standard package; beyond that:

        `timeout`, `soft_timeout` and `retries` hold for each task whose call says nothing of them: see `apply_async()`.

        `worker_init()` is called by each worker at its start, and `worker_exit()` when it ends in order; what that
        returns, `get_exit_results()` tells. With `use_worker_state`, both of them and the functions of all tasks get a
        dictionary as their first argument, which the worker keeps. A worker that has more than `max_memory_per_child`
        KiB of memory resident after a task, what it shares with others included, ends in order, and another takes its
        place. `cpu_ids` are the CPUs for each worker: ints, or lists of ints; where there are fewer than workers, they
        are used in turn.
        """
        self._pool = []
        self._state = INIT
        self._ctx = context or get_context()
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            # From 3.13 on, those this process may use.
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and not (isinstance(maxtasksperchild, int) and maxtasksperchild > 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = index(processes)
        # What holds for tasks of calls that say nothing else: see limits.py.
        if timeout is not None or soft_timeout is not None or retries != 0:
            self._terms = self._terms_of(timeout, soft_timeout, retries)
        self._life, self._exit_results = None, []
        life = max_memory_per_child, worker_init, worker_exit, use_worker_state or None, cpu_ids
        if any(asked is not None for asked in life):
            from .worker_life import Life

            self._life = Life(*life)
        self._set_up()
        self._state = RUN

    def _is_over_queues(self):
        cls = type(self)
        return cls._setup_queues is not Pool._setup_queues or cls._repopulate_pool is not Pool._repopulate_pool

    def _set_up(self):
        if self._is_over_queues():
            from . import pool_over_queues

            pool_over_queues.set_up(self)
            return
        self._engine = _core.PoolEngine(self._processes)
        self._crew = Crew(self, self._engine, self._process_starter())
        try:
            self._repopulate_pool()
        except BaseException:
            for worker in self._pool:
                if worker.exitcode is None:
                    worker.terminate()
            for worker in self._pool:
                worker.join()
            raise
        self._crew.attend()
        # The object's own end is `__del__`; this is the end of the process.
        self._terminate = self._crew.finalizer = util.Finalize(None, self._crew.terminate, exitpriority=15)

    def _process_starter(self):
        # Without the pool in it, which would never be collected.
        ctx, make = self._ctx, self.Process
        port = _Port(self._engine.port())
        rest = self._initializer, self._initargs, self._maxtasksperchild, self._life
        forks = ctx.get_start_method() == "fork"
        if not forks or not _main_is_file():
            from . import by_value

            rest = by_value.prepare(self._engine, forks, _main_is_file(), *rest)

        def start(place):
            made = make(ctx, target=_work, args=(port, place, *rest))
            as_worker(made)
            # A Ctrl-C that comes before the worker is ready for it waits until it is.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                made.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            util.debug("added worker")
            return made

        return start

    def _setup_queues(self):
        """Make the queues that carry tasks and results; only for subclasses that override this or `_repopulate_pool()`.

        Who overrides it sets `_inqueue`, `_outqueue`, and two functions, `_quick_put` and `_quick_get`, with which this
        process uses them.
        """
        self._inqueue, self._outqueue = self._ctx.SimpleQueue(), self._ctx.SimpleQueue()
        self._quick_put = self._inqueue._writer.send
        self._quick_get = self._outqueue._reader.recv

    def _repopulate_pool(self):
        """Start workers until there are as many as there should be."""
        self._crew.fill(self._processes)

    def __getattr__(self, name):
        # What others look at to see how a pool is doing.
        if name in _LOOKED_AT and "_crew" in vars(self):
            from .pool_seen import view

            return view(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __del__(self, _warn=warnings.warn, RUN=RUN):
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            # What is under way is finished; then the workers and the thread end by themselves.
            self._engine.close()

    def __repr__(self):
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"

    def __reduce__(self):
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self):
        self._check_running()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()

    def _check_running(self):
        if self._state != RUN:
            raise ValueError("Pool not running")

    @property
    def _cache(self):
        """As long as there are calls under way, and empty otherwise: all that others look for in it."""
        return dict.fromkeys(range(self._engine.jobs()))

    def _terms_of(self, timeout=None, soft_timeout=None, retries=None, priority=0):
        if timeout is soft_timeout is retries is None and priority == 0:
            return self._terms
        self._check_terms()
        from .limits import terms_of

        return terms_of(self._terms, timeout, soft_timeout, retries, priority)

    def _check_terms(self):
        # Whether somebody can keep them.
        if self._is_over_queues():
            raise TypeError(
                f"timeout, soft_timeout, retries and priority are not to be had of a {type(self).__qualname__}: its "
                "tasks go through queues of its own (see procession.pool_over_queues)"
            )

    # The dictionaries in the standard package's signatures are not changed.

    def apply(self, func, args=(), kwds={}, **terms):  # noqa: B006
        """Call `func(*args, **kwds)` in a worker; returns what it returns, raises what it raises."""
        if self._state != RUN:
            raise ValueError("Pool not running")
        terms = self._terms_of(**terms) if terms else self._terms
        return self._engine.apply_async(self, func, args, kwds, None, None, terms).get()

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None, **terms):  # noqa: B006
        """As `apply()`, without waiting: returns an AsyncResult.

        What each call may say of its tasks (`timeout=None, soft_timeout=None, retries=None, priority=0`), a task of a
        map being a chunk: after `timeout` seconds the worker is killed, and the task fails with TimeLimitExceeded;
        after `soft_timeout` seconds SoftTimeLimitExceeded is raised in the task; when its worker dies, it is given to
        another one, `retries` times. None: as the pool has it. An infinite time is no limit. Tasks that wait are taken
        by the largest `priority` first.
        """
        if self._state != RUN:
            raise ValueError("Pool not running")
        terms = self._terms_of(**terms) if terms else self._terms
        return self._engine.apply_async(self, func, args, kwds, callback, error_callback, terms)

    def map(self, func, iterable, chunksize=None, **terms):
        """A list of `func(item)` for each item.

        Workers get `chunksize` items at a time: about a quarter of each worker's share, if it is None. With "auto" it
        is chosen as results come, so that a chunk takes some milliseconds.
        """
        return self._map_async(func, iterable, False, chunksize, **terms).get()

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, **terms):
        """As `map()`, without waiting: returns an AsyncResult."""
        return self._map_async(func, iterable, False, chunksize, callback, error_callback, **terms)

    def starmap(self, func, iterable, chunksize=None, **terms):
        """A list of `func(*item)` for each item."""
        return self._map_async(func, iterable, True, chunksize, **terms).get()

    def starmap_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, **terms):
        """As `starmap()`, without waiting: returns an AsyncResult."""
        return self._map_async(func, iterable, True, chunksize, callback, error_callback, **terms)

    def _map_async(self, func, iterable, star, chunksize=None, callback=None, error_callback=None, **terms):
        self._check_running()
        terms = self._terms_of(**terms) if terms else self._terms
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        if chunksize is None and terms is not None and terms._limited():
            # The limit is meant for what is done for an item.
            chunksize = 1
        if chunksize == "auto":
            chunksize = self._auto() if len(iterable) else 1
        elif chunksize is None:
            # Four chunks for each worker.
            chunksize = -(-len(iterable) // (len(self._pool) * 4 or 1))
        elif chunksize < 1 and len(iterable):
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        if not len(iterable):
            # There is nothing to wait for, hence no callback, as in the standard package.
            iterable, callback, chunksize = (), None, 1
        result, feed = self._engine.map_async(self, func, iterable, chunksize, star, callback, error_callback, terms)
        if chunksize == AUTO:
            self._crew.feeder_apart().feed(feed)
        else:
            self._feed(feed)
        return result

    def _auto(self):
        # What the engine takes for a size that it is to choose.
        if not hasattr(self._crew, "feeder_apart"):
            raise ValueError("chunksize='auto' is for pools of processes that have no queues of their own making")
        return AUTO

    @staticmethod
    def _get_tasks(func, it, size):
        """The tasks of a map: pairs of the function and a chunk of items."""
        it = iter(it)
        while chunk := tuple(itertools.islice(it, size)):
            yield func, chunk

    def _feed(self, feed):
        # At once, up to where the memory for it would be too much.
        while feed.feed(AT_ONCE, False):
            if feed.is_full():
                self._crew.feed(feed)
                break

    def imap(self, func, iterable, chunksize=1, buffersize=None, **terms):
        """An iterator over `func(item)` for each item, in order.

        The items are taken in the background: all of them as fast as they come, or with `buffersize` only so many
        (chunks, if they have more than one item) beyond those whose results were taken out. `chunksize` as for `map()`.
        """
        return self._imap(func, iterable, chunksize, buffersize, True, **terms)

    def imap_unordered(self, func, iterable, chunksize=1, buffersize=None, **terms):
        """As `imap()`, in whatever order the results come."""
        return self._imap(func, iterable, chunksize, buffersize, False, **terms)

    def _imap(self, func, iterable, chunksize, buffersize, ordered, **terms):
        self._check_running()
        terms = self._terms_of(**terms) if terms else self._terms
        if chunksize == "auto":
            chunksize = self._auto()
        elif chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        results, feed = self._engine.stream(self, func, iterable, chunksize, ordered, terms)
        if buffersize is not None:
            from .buffered import buffered

            feeder = self._crew if chunksize != AUTO else self._crew.feeder_apart()
            results = buffered(feeder, results, feed, buffersize, ordered)
        elif chunksize == AUTO:
            self._crew.feeder_apart().feed(feed)
        elif type(iterable) in (list, tuple, range) and len(iterable) <= AT_ONCE:
            self._feed(feed)
        else:
            self._crew.feed(feed)
        return results

    def grow(self, n=1):
        """Have `n` workers more."""
        self._resize("grow", n)

    def shrink(self, n=1):
        """Have `n` workers fewer. As many end as soon as they are through with what they are at; the others go on."""
        self._resize("shrink", n)

    def _resize(self, how, n):
        self._check_running()
        try:
            n = index(n)
        except TypeError:
            raise TypeError(f"the number of workers must be an integer, not {n!r}") from None
        if n < 0:
            raise ValueError(f"the number of workers must be 0 or more, not {n}")
        resize = getattr(self._crew, how, None)
        if resize is None:
            raise TypeError(f"a {type(self).__qualname__} has workers of its own making, whose number stays as it is")
        try:
            resize(n)
        finally:
            self._processes = self._engine.places()

    def close(self):
        """No more calls are taken; when all is done the workers end."""
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._crew.close()
            self._engine.close()

    def get_exit_results(self, return_exceptions=False):
        """What `worker_exit` has returned in each of the workers that ended in order. Call it after `join()`.

        If it raised in one of them, that is raised, unless exceptions are to stand among the results.
        """
        self.join()
        if self._life is not None:
            self._exit_results += self._engine.exit_results()
        if not return_exceptions:
            for succeeded, error in self._exit_results:
                if not succeeded:
                    raise error
        return [told for _, told in self._exit_results]

    def terminate(self):
        """End the workers now, whatever they are doing."""
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()

    def join(self):
        """Wait until the workers have ended. The pool must be closed or terminated."""
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._crew.join()
        self._terminate.cancel()
