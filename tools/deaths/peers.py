"""The columns of the table: each peer's way to hand a task to a pool, wait for its answer, and end the pool."""

import functools
import signal


class NotOffered(Exception):
    """There is no such thing, or the peer says that it does not do it."""


class Peer:
    """A peer, by its name in the table."""

    name = ""

    @staticmethod
    def mp():
        """The package, if it offers more than pools; else None."""

    def pool(self, workers=2, **options):
        """A pool to be used in a `with` statement, which does not end it: the row does, or the cell's process."""
        raise NotImplementedError


class Pool:
    """What is common to all: `submit()` hands in a task, `outcome()` waits for its answer."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def submit_limited(self, seconds, func, *args):
        """Submit a task that is to be killed after so many seconds."""
        raise NotOffered("no such thing")

    def submit_soft(self, seconds, func, *args):
        """Submit a task in which an exception is to be raised after so many seconds."""
        raise NotOffered("no such thing")

    def submit_retried(self, retries, func, *args):
        """Submit a task that is to be tried again if its worker dies."""
        raise NotOffered("no such thing")

    def submit_called_back(self, callback, func, *args):
        """Submit a task whose result a callback is to get."""
        raise NotImplementedError

    def cancel(self, handle):
        """Cancel a task that runs; whether that was possible."""
        raise NotOffered("no such thing")


# The standard package, and those with the same calls.


class _CallsPool(Pool):
    def __init__(self, mp, workers, initializer=None, initargs=(), lives=None, nested=False):
        self.pool = mp.get_context("fork").Pool(workers, initializer, initargs, lives)

    def submit(self, func, *args):
        return self.pool.apply_async(func, args)

    def submit_called_back(self, callback, func, *args):
        return self.pool.apply_async(func, args, callback=callback)

    def outcome(self, handle, seconds):
        handle.wait(seconds)
        if not handle.ready():
            return None
        try:
            return "value", handle.get(1)
        except BaseException as error:
            return "error", error

    def map(self, func, items):
        return self.pool.map(func, items, chunksize=1)

    def stream(self, func, items, ahead=None):
        return self.pool.imap(func, items)

    def end(self):
        self.pool.close()
        self.pool.join()

    def terminate(self):
        self.pool.terminate()
        self.pool.join()

    def close(self):
        self.pool.close()


class Standard(Peer):
    name = "standard package"

    @staticmethod
    def mp():
        import multiprocessing

        return multiprocessing

    def pool(self, workers=2, **options):
        return _CallsPool(self.mp(), workers, **options)


class _ProcessionPool(_CallsPool):
    def submit_limited(self, seconds, func, *args):
        return self.pool.apply_async(func, args, timeout=seconds)

    def submit_soft(self, seconds, func, *args):
        return self.pool.apply_async(func, args, soft_timeout=seconds)

    def submit_retried(self, retries, func, *args):
        return self.pool.apply_async(func, args, retries=retries)

    def cancel(self, handle):
        return handle.cancel()

    def stream(self, func, items, ahead=None):
        return self.pool.imap(func, items, buffersize=ahead)


class Procession(Peer):
    name = "procession"

    @staticmethod
    def mp():
        import procession

        return procession

    def pool(self, workers=2, **options):
        return _ProcessionPool(self.mp(), workers, **options)


class _BilliardPool(_CallsPool):
    def limited(self):
        """A pool that looks at limits. Its streams fail for want of an attribute, so other rows have one without."""
        import billiard.pool

        self.pool = billiard.pool.Pool(2, context=billiard.get_context("fork"), enable_timeouts=True)
        return self.pool

    def submit_limited(self, seconds, func, *args):
        return self.limited().apply_async(func, args, timeout=seconds)

    def submit_soft(self, seconds, func, *args):
        return self.limited().apply_async(func, args, soft_timeout=seconds)

    def cancel(self, handle):
        for pid in handle.worker_pids():
            self.pool.terminate_job(pid, signal.SIGKILL)
        return True

    def map(self, func, items):
        return self.pool.map(func, items, 1)


class Billiard(Peer):
    name = "billiard"

    @staticmethod
    def mp():
        import billiard

        return billiard

    def pool(self, workers=2, **options):
        return _BilliardPool(self.mp(), workers, **options)


# Executors: futures.


class _FuturesPool(Pool):
    executor = None

    def submit(self, func, *args):
        return self.executor.submit(func, *args)

    def submit_called_back(self, callback, func, *args):
        future = self.executor.submit(func, *args)
        future.add_done_callback(lambda done: callback(done.result()))
        return future

    def outcome(self, handle, seconds):
        from concurrent.futures import wait

        if not wait([handle], seconds).done:
            return None
        try:
            return "value", handle.result(1)
        except BaseException as error:
            return "error", error

    def cancel(self, handle):
        return handle.cancel()

    def map(self, func, items):
        return list(self.executor.map(func, items))

    def stream(self, func, items, ahead=None):
        return self.executor.map(func, items)

    def end(self):
        self.executor.shutdown()

    def close(self):
        self.executor.shutdown(wait=False)

    def terminate(self):
        self.executor.shutdown(wait=True, cancel_futures=True)


class _ExecutorPool(_FuturesPool):
    def __init__(self, workers, initializer=None, initargs=(), lives=None, nested=False):
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # It refuses new workers for tasks together with fork.
        ctx = multiprocessing.get_context("spawn" if lives else "fork")
        self.executor = ProcessPoolExecutor(workers, ctx, initializer, initargs, max_tasks_per_child=lives)

    def terminate(self):
        if hasattr(self.executor, "kill_workers"):
            self.executor.kill_workers()
        else:
            super().terminate()


class Executor(Peer):
    name = "ProcessPoolExecutor"

    def pool(self, workers=2, **options):
        return _ExecutorPool(workers, **options)


class _LokyPool(_FuturesPool):
    def __init__(self, workers, initializer=None, initargs=(), lives=None, nested=False):
        import loky

        if lives is not None:
            raise NotOffered("no such thing")
        # One is asked for again before each use, as it shows how to: another, if the last is broken.
        self.get = functools.partial(loky.get_reusable_executor, workers, initializer=initializer, initargs=initargs)

    @property
    def executor(self):
        return self.get()

    def terminate(self):
        self.executor.shutdown(wait=True, kill_workers=True)


class Loky(Peer):
    name = "loky"

    def pool(self, workers=2, **options):
        return _LokyPool(workers, **options)


class _PebblePool(_FuturesPool):
    def __init__(self, workers, initializer=None, initargs=(), lives=None, nested=False):
        import multiprocessing

        import pebble

        ctx = multiprocessing.get_context("fork")
        self.executor = pebble.ProcessPool(workers, lives or 0, initializer, initargs, ctx)

    def submit(self, func, *args):
        return self.executor.schedule(func, args)

    def submit_limited(self, seconds, func, *args):
        return self.executor.schedule(func, args, timeout=seconds)

    def submit_called_back(self, callback, func, *args):
        future = self.submit(func, *args)
        future.add_done_callback(lambda done: callback(done.result()))
        return future

    def map(self, func, items):
        return list(self.executor.map(func, items).result())

    def stream(self, func, items, ahead=None):
        return self.executor.map(func, items).result()

    def end(self):
        self.executor.close()
        self.executor.join()

    def close(self):
        self.executor.close()

    def terminate(self):
        self.executor.stop()
        self.executor.join()


class Pebble(Peer):
    name = "pebble"

    def pool(self, workers=2, **options):
        return _PebblePool(workers, **options)


class _MpirePool(Pool):
    def __init__(self, workers, initializer=None, initargs=(), lives=None, nested=False):
        import mpire

        # Workers that may have children are not to be daemons there.
        self.executor = mpire.WorkerPool(workers, daemon=not nested, start_method="fork")
        self.worker_init = initializer and functools.partial(initializer, *initargs)
        self.lives = lives

    def submit(self, func, *args, **options):
        return self.executor.apply_async(func, args, worker_init=self.worker_init, **options)

    def submit_limited(self, seconds, func, *args):
        return self.submit(func, *args, task_timeout=seconds)

    def submit_called_back(self, callback, func, *args):
        return self.submit(func, *args, callback=callback)

    outcome = _CallsPool.outcome

    def map(self, func, items):
        return self.executor.map(func, items, chunk_size=1, worker_lifespan=self.lives)

    def stream(self, func, items, ahead=None):
        count = len(items) if hasattr(items, "__len__") else 20_000
        return self.executor.imap(func, items, iterable_len=count, chunk_size=1)

    def end(self):
        self.executor.stop_and_join()

    def close(self):
        self.executor.stop_and_join()

    def terminate(self):
        self.executor.terminate()


class Mpire(Peer):
    name = "mpire"

    def pool(self, workers=2, **options):
        return _MpirePool(workers, **options)


PEERS = {
    "standard": Standard,
    "executor": Executor,
    "loky": Loky,
    "pebble": Pebble,
    "mpire": Mpire,
    "billiard": Billiard,
    "procession": Procession,
}
