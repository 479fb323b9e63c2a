"""Contexts: the whole interface of the package, bound to one way of starting processes."""

import os
import sys
from _thread import _local

from . import process

__all__ = ()


class ProcessError(Exception):
    """What all exceptions of the package derive from."""


class BufferTooShort(ProcessError):
    """A message doesn't fit the buffer given for it; the message is in `args[0]`."""


class TimeoutError(ProcessError):
    """Something did not happen in the time given."""


class AuthenticationError(ProcessError):
    """The other side of a connection doesn't know the key."""


def __getattr__(name):
    # Few programs need the pickler at once, and many third parties expect it here.
    if name == "reduction":
        import importlib

        return globals().setdefault("reduction", importlib.import_module(".reduction", __package__))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class BaseContext:
    """All that the package offers. Whatever starts a process does it by the method of the context."""

    ProcessError = ProcessError
    BufferTooShort = BufferTooShort
    TimeoutError = TimeoutError
    AuthenticationError = AuthenticationError

    current_process = staticmethod(process.current_process)
    parent_process = staticmethod(process.parent_process)
    active_children = staticmethod(process.active_children)

    def cpu_count(self):
        """The number of processors of the system."""
        count = os.cpu_count()
        if count is None:
            raise NotImplementedError("the system does not tell how many processors it has")
        return count

    # Everything below is imported when it is first used, so that a child imports what it needs and no more.

    def Manager(self):
        """A started SyncManager: a process that keeps objects for others."""
        from . import managers

        manager = managers.SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(self, duplex=True):
        """Two connections that lead to each other."""
        from . import connection

        return connection.Pipe(duplex)

    def Lock(self):
        """A lock between processes."""
        from . import synchronize

        return synchronize.Lock(ctx=self.get_context())

    def RLock(self):
        """A lock that its owner may take several times."""
        from . import synchronize

        return synchronize.RLock(ctx=self.get_context())

    def Condition(self, lock=None):
        """A condition variable."""
        from . import synchronize

        return synchronize.Condition(lock, ctx=self.get_context())

    def Semaphore(self, value=1):
        """A semaphore."""
        from . import synchronize

        return synchronize.Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value=1):
        """A semaphore that can't be released above its first value."""
        from . import synchronize

        return synchronize.BoundedSemaphore(value, ctx=self.get_context())

    def Event(self):
        """A flag to wait for."""
        from . import synchronize

        return synchronize.Event(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        """A point that `parties` processes pass together."""
        from . import synchronize

        return synchronize.Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize=0):
        """A queue between processes."""
        from . import queues

        return queues.Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize=0):
        """A queue that knows when all its items have been worked on."""
        from . import queues

        return queues.JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self):
        """A queue with the bare minimum of methods."""
        from . import queues

        return queues.SimpleQueue(ctx=self.get_context())

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, **keywords):
        """A pool of worker processes. The keywords are those that `pool.Pool` has besides the standard package's."""
        from . import pool

        return pool.Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context(), **keywords)

    def RawValue(self, typecode_or_type, *args):
        """A ctypes object in shared memory, without a lock."""
        from . import sharedctypes

        return sharedctypes.RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        """A ctypes array in shared memory, without a lock."""
        from . import sharedctypes

        return sharedctypes.RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        """A ctypes object in shared memory, with a lock."""
        from . import sharedctypes

        return sharedctypes.Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        """A ctypes array in shared memory, with a lock."""
        from . import sharedctypes

        return sharedctypes.Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def freeze_support(self):
        """In the child of a program frozen to an executable: do the child's work and exit. Elsewhere: nothing."""
        if getattr(sys, "frozen", False):
            from . import spawn

            spawn.freeze_support()

    def get_logger(self):
        """The logger of the package."""
        from . import util

        return util.get_logger()

    def log_to_stderr(self, level=None):
        """Have the package's log printed to stderr."""
        from . import util

        return util.log_to_stderr(level)

    def allow_connection_pickling(self):
        """Make connections and sockets known to the pickler."""
        from . import connection  # noqa: F401

    def set_executable(self, executable):
        """Set the interpreter that children are started with."""
        from . import spawn

        spawn.set_executable(executable)

    def set_forkserver_preload(self, module_names, *, on_error="ignore"):
        """Name the modules that the fork server imports once, for all its children.

        `on_error` says what it does if one can't be imported: "ignore" it, "warn" on stderr, or "fail" to start.
        """
        from . import forkserver

        forkserver.set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method=None):
        """The context of a start method; without one, this context."""
        if method is None:
            return self
        found = _concrete_contexts.get(method) if isinstance(method, str) else None
        if found is None:
            raise ValueError(f"cannot find context for {method!r}: there are {', '.join(_concrete_contexts)}")
        found._check_available()
        return found

    def get_start_method(self, allow_none=False):
        """The name of the start method."""
        return self._name

    def set_start_method(self, method, force=False):
        """Only the package itself has a start method that can be set."""
        raise ValueError(
            f"cannot set start method of concrete context: this one is {self._name!r} for good; call "
            "set_start_method() of the package, or get_context() for another"
        )

    @property
    def reducer(self):
        """The module that pickles what is sent to other processes."""
        return globals().get("reduction") or __getattr__("reduction")

    @reducer.setter
    def reducer(self, reduction):
        globals()["reduction"] = reduction

    def _check_available(self):
        pass


class Process(process.BaseProcess):
    """A process started by the method that is set for the package."""

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork():
        return _default_context.get_context().Process._after_fork()


class DefaultContext(BaseContext):
    """What the package itself offers: its start method can be set, once."""

    Process = Process

    def __init__(self, context):
        self._default_context = context
        self._actual_context = None

    def get_context(self, method=None):
        """The context of a start method; without one, that which is set. This settles the choice."""
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(self, method, force=False):
        """Set how processes are started. It can be done once, before anything was started, or with `force`."""
        if not force and self._actual_context is not None:
            raise RuntimeError(
                f"context has already been set (to {self._actual_context._name!r}): call set_start_method() once, "
                "first thing in the main module, or use get_context() for a second method"
            )
        self._actual_context = None if method is None and force else self.get_context(method)

    def get_start_method(self, allow_none=False):
        """The name of the start method. If none is set: None with `allow_none`, else the default, which settles it."""
        if self._actual_context is None and allow_none:
            return None
        return self.get_context()._name

    def get_all_start_methods(self):
        """The names of the start methods, the default first."""
        default = self._default_context._name
        return [default, *(name for name in _METHODS if name != default)]


class ForkProcess(process.BaseProcess):
    """A process that is a copy of its parent."""

    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj):
        from . import popen_fork

        return popen_fork.Popen(process_obj)


class SpawnProcess(process.BaseProcess):
    """A process that is a new interpreter."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj):
        from . import popen_spawn_posix

        return popen_spawn_posix.Popen(process_obj)

    @staticmethod
    def _after_fork():
        """A new interpreter has nothing to be made anew."""


class ForkServerProcess(process.BaseProcess):
    """A process that is a copy of a server kept for that."""

    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj):
        from . import popen_forkserver

        return popen_forkserver.Popen(process_obj)


class ForkContext(BaseContext):
    """Children are copies of their parent."""

    _name = "fork"
    Process = ForkProcess


class SpawnContext(BaseContext):
    """Children are new interpreters."""

    _name = "spawn"
    Process = SpawnProcess


class ForkServerContext(BaseContext):
    """Children are copies of a server that has imported the main module and little else."""

    _name = "forkserver"
    Process = ForkServerProcess


_concrete_contexts = {context._name: context for context in (ForkContext(), SpawnContext(), ForkServerContext())}
# Those of the package. Others register contexts of their own in the table.
_METHODS = tuple(_concrete_contexts)
_default_context = DefaultContext(_concrete_contexts["fork" if sys.version_info < (3, 14) else "forkserver"])


def _force_start_method(method):
    _default_context._actual_context = _concrete_contexts[method]


# The process that this thread is starting, while it pickles what the child is to get.
# `threading.local` under its own name, as `threading` is not imported by children that have no use for it.
_tls = _local()


def get_spawning_popen():
    """The start that goes on in this thread; None if there is none."""
    return getattr(_tls, "spawning_popen", None)


def set_spawning_popen(popen):
    """Say that this thread starts a process, or with None that it no longer does."""
    _tls.spawning_popen = popen


def assert_spawning(obj):
    """Refuse to pickle `obj` unless it is handed to a process that is being started."""
    if get_spawning_popen() is None:
        raise RuntimeError(
            f"{type(obj).__name__} objects should only be shared between processes through inheritance: pass them in "
            "the args of a Process or in the initargs of a Pool"
        )
