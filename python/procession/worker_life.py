"""What a worker of a pool does besides its tasks: where it runs, how it begins and ends, how large it may become."""

import os
import threading
from _operator import index

from . import by_value, pool

__all__ = ["Life"]


class Life:
    """What the keywords of a pool ask of each of its workers."""

    def __init__(self, max_memory_per_child, worker_init, worker_exit, use_worker_state, cpu_ids):
        if max_memory_per_child is not None:
            max_memory_per_child = index(max_memory_per_child)
            if max_memory_per_child < 1:
                raise ValueError("max_memory_per_child must be a positive number of KiB, or None")
        for name, function in (("worker_init", worker_init), ("worker_exit", worker_exit)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a callable")
        # In KiB, as elsewhere.
        self._most_memory = max_memory_per_child and max_memory_per_child << 10
        self._init, self._exit = worker_init, worker_exit
        self._has_state = bool(use_worker_state)
        self._cpus = None if cpu_ids is None else _sets_of(cpu_ids)

    def sendable(self, portable):
        """The same, with functions that a new interpreter can read."""
        self._init, self._exit = portable(self._init), portable(self._exit)
        return self

    def pin(self, place):
        """Have this process, which is the worker of a place, run where it is to."""
        if self._cpus:
            os.sched_setaffinity(0, self._cpus[place % len(self._cpus)])

    def serve(self, worker, maxtasks):
        """All that follows the initializer. Returns how many tasks it was."""
        state = {} if self._has_state else None
        args = (state,) if self._has_state else ()
        if self._init is not None:
            self._init(*args)
        done = worker.serve(maxtasks, state, self._most_memory)
        if self._exit is not None:
            worker.leave(*self._last_words(args))
        return done

    def _last_words(self, args):
        try:
            value = self._exit(*args)
        except BaseException as error:
            return False, pool._failure(error)
        try:
            return True, by_value.dumps(value)
        except Exception as error:
            return False, pool._unencodable_result(error, value)


def _sets_of(cpu_ids):
    """A set of CPUs for each worker. ValueError for such that this process can't use."""
    sets = [_set_of(ids) for ids in cpu_ids]
    if not sets:
        raise ValueError("cpu_ids must name a CPU at least, or be None")
    _try(sets)
    return sets


def _set_of(ids):
    try:
        cpus = {index(ids)} if hasattr(ids, "__index__") else {*map(index, ids)}
    except TypeError as error:
        raise TypeError("cpu_ids must be a list of ints, or of lists of ints: numbers of CPUs") from error
    if not cpus or min(cpus) < 0:
        raise ValueError(f"cpu_ids must name CPUs, counted from 0, for each worker, not {ids!r}")
    return cpus


def _try(sets):
    refused = set()

    def try_each():
        # The affinity is that of the thread, which ends here.
        for ids in sets:
            try:
                os.sched_setaffinity(0, ids)
                refused.update(ids - os.sched_getaffinity(0))
            except (OSError, OverflowError):
                refused.update(ids)

    thread = threading.Thread(target=try_each)
    thread.start()
    thread.join()
    if refused:
        raise ValueError(f"cpu_ids: this process can't use CPU {', '.join(map(str, sorted(refused)))}")
