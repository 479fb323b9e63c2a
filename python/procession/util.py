"""Helpers shared by the package: its log, finalizers, hooks after a fork, the exit of a process."""

import atexit
import itertools
import os
import sys
from _thread import _local, allocate_lock
from _weakref import ref

from . import _core, process

__all__ = [
    "SUBDEBUG",
    "SUBWARNING",
    "Finalize",
    "ForkAwareLocal",
    "ForkAwareThreadLock",
    "close_all_fds_except",
    "debug",
    "get_logger",
    "get_temp_dir",
    "info",
    "is_exiting",
    "log_to_stderr",
    "register_after_fork",
    "sub_debug",
    "sub_warning",
]

# Levels of the log, those of `logging` and two between them.
NOTSET, SUBDEBUG, DEBUG, INFO, SUBWARNING = 0, 5, 10, 20, 25

LOGGER_NAME = "multiprocessing"
DEFAULT_LOGGING_FORMAT = "[%(levelname)s/%(processName)s] %(message)s"

_logger = None
_log_to_stderr = False


def _writer_of(level, name):
    def write(msg, *args, stacklevel=1):
        if _logger:
            _logger.log(level, msg, *args, stacklevel=stacklevel + 1)

    write.__name__ = write.__qualname__ = name
    write.__doc__ = f"Write to the package's log at level {level}, if there is one."
    return write


sub_debug = _writer_of(SUBDEBUG, "sub_debug")
debug = _writer_of(DEBUG, "debug")
info = _writer_of(INFO, "info")
sub_warning = _writer_of(SUBWARNING, "sub_warning")
warn = _writer_of(30, "warn")


def get_logger():
    """The logger of the package, made when first asked for."""
    global _logger
    if _logger is None:
        import logging

        logger = logging.getLogger(LOGGER_NAME)
        logger.propagate = False
        logger.addFilter(_name_process)
        # Logging registered its own end just now; ours, which writes to the log, has to come first.
        atexit.unregister(_exit_function)
        atexit.register(_exit_function)
        _logger = logger
    return _logger


def _name_process(record):
    record.processName = process.current_process().name
    return True


def _name_log_records():
    """Have log records name this process: `logging` asks `multiprocessing`, which need not be us, for the name."""
    logging = sys.modules.get("logging")
    asked = sys.modules.get("multiprocessing")
    if logging is None or getattr(asked, "current_process", None) is process.current_process:
        return
    make = logging.getLogRecordFactory()

    def make_record(*args, **kwargs):
        record = make(*args, **kwargs)
        _name_process(record)
        return record

    logging.setLogRecordFactory(make_record)


def log_to_stderr(level=None):
    """Have the log written to stderr; returns the logger."""
    global _log_to_stderr
    import logging

    logger = get_logger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(DEFAULT_LOGGING_FORMAT))
    logger.addHandler(handler)
    if level:
        logger.setLevel(level)
    _log_to_stderr = True
    return logger


def __getattr__(name):
    if name == "_args_from_interpreter_flags":
        # `subprocess` is much to import; a child that starts no process does not need it.
        from subprocess import _args_from_interpreter_flags

        return globals().setdefault(name, _args_from_interpreter_flags)
    if name == "_afterfork_registry":
        return _hooks()
    if name == "MAXFD":
        return globals().setdefault(name, os.sysconf("SC_OPEN_MAX"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Sockets without a file


def _platform_supports_abstract_sockets():
    return sys.platform in ("linux", "android")


abstract_sockets_supported = _platform_supports_abstract_sockets()


def is_abstract_socket_namespace(address):
    """Whether the address of a Unix socket is a name without a file."""
    if not address:
        return False
    if not isinstance(address, (str, bytes)):
        raise TypeError(f"address type of {address!r} unrecognized: it must be str or bytes")
    return address[:1] in ("\0", b"\0")


# How long the address of a Unix socket can be, with the zero at its end.
_SUN_PATH_MAX = 108 if sys.platform == "linux" else 104


def get_temp_dir():
    """A directory for temporary files of this family of processes, removed at the end of the one that made it."""
    config = process.current_process()._config
    if config.get("tempdir") is None:
        import shutil
        import tempfile

        made = tempfile.mkdtemp(prefix="pymp-")
        info("created temp directory %s", made)
        Finalize(None, _remove_temp_dir, args=(shutil.rmtree, made), exitpriority=-100)
        config["tempdir"] = made
    return config["tempdir"]


def _remove_temp_dir(rmtree, tempdir):
    rmtree(tempdir)
    current = process.current_process()
    # The interpreter may be taking its modules apart.
    if current is not None:
        current._config["tempdir"] = None


# Hooks that make objects anew in a forked child

_afterfork_counter = itertools.count()


def register_after_fork(obj, func):
    """Have `func(obj)` called in each child that inherits `obj` by fork, in the order of registration."""
    _hooks()[next(_afterfork_counter), id(obj), func] = obj


def _hooks():
    # Made when first needed, as most children have no use for it.
    try:
        return globals()["_afterfork_registry"]
    except KeyError:
        from weakref import WeakValueDictionary

        return globals().setdefault("_afterfork_registry", WeakValueDictionary())


def _run_after_forkers():
    _run_own_after_forkers()
    if process._standard is not None:
        from . import beside

        beside.after_fork()


def _run_own_after_forkers():
    registry = globals().get("_afterfork_registry", {})
    for key in sorted(registry, key=lambda key: key[0]):
        obj = registry.get(key)
        if obj is None:
            continue
        try:
            key[2](obj)
        except Exception as error:
            info("after forker raised exception %s", error)


# Finalizers

_finalizer_registry = {}
_finalizer_counter = itertools.count()


class Finalize:
    """Calls `callback` once: when `obj` is freed, when asked, or at the end of the process.

    At the end only those with a priority are called, the highest first, and of equals the youngest first. A forked
    child does not run what its parent registered.
    """

    def __init__(self, obj, callback, args=(), kwargs=None, exitpriority=None):
        if exitpriority is not None and not isinstance(exitpriority, int):
            raise TypeError(f"Exitpriority ({exitpriority!r}) must be None or int, not {type(exitpriority)!s}")
        if obj is not None:
            self._weakref = ref(obj, self)
        elif exitpriority is None:
            raise ValueError("Without object, exitpriority cannot be None")
        else:
            self._weakref = None
        self._callback, self._args, self._kwargs = callback, args, kwargs or {}
        self._key = exitpriority, next(_finalizer_counter)
        self._pid = os.getpid()
        _finalizer_registry[self._key] = self

    # The defaults keep what is needed when the interpreter has already cleared this module.
    def __call__(self, wr=None, _finalizer_registry=_finalizer_registry, sub_debug=sub_debug, getpid=os.getpid):
        """Call the callback, unless that was done or cancelled before. Returns what it returns."""
        if self._take(_finalizer_registry) is None:
            sub_debug("finalizer no longer registered")
            return None
        callback, args, kwargs, pid = self._callback, self._args, self._kwargs, self._pid
        self._clear()
        if pid != getpid():
            sub_debug("finalizer ignored because different process")
            return None
        sub_debug("finalizer calling %s with args %s and kwargs %s", callback, args, kwargs)
        return callback(*args, **kwargs)

    def cancel(self):
        """Never call the callback."""
        if self._take(_finalizer_registry) is not None:
            self._clear()

    def _take(self, registry):
        # One step of the dictionary: a collection may run us in the middle of anything.
        return registry.pop(self._key, None)

    def _clear(self):
        self._weakref = self._callback = self._args = self._kwargs = self._key = None

    def still_active(self):
        """Whether the callback is still to be called."""
        return self._key in _finalizer_registry

    def __repr__(self):
        name = type(self).__name__
        if self._weakref is None or self._weakref() is None:
            return f"<{name} object, dead>"
        parts = [f"callback={getattr(self._callback, '__name__', self._callback)}"]
        if self._args:
            parts.append(f"args={self._args}")
        if self._kwargs:
            parts.append(f"kwargs={self._kwargs}")
        if self._key[0] is not None:
            parts.append(f"exitpriority={self._key[0]}")
        return f"<{name} object, {', '.join(parts)}>"


def _run_finalizers(minpriority=None):
    """Call the finalizers that have a priority, of at least `minpriority` if that is given."""
    # The module may have been cleared by the interpreter; and a collection may change the registry under us, so it is
    # copied by one call, and each finalizer looked up anew.
    registry = _finalizer_registry
    if registry is None:
        return
    due = [key for key in list(registry) if key[0] is not None and (minpriority is None or key[0] >= minpriority)]
    for key in sorted(due, reverse=True):
        finalizer = registry.get(key)
        if finalizer is None:
            continue
        sub_debug("calling %s", finalizer)
        try:
            finalizer()
        except Exception:
            import traceback

            traceback.print_exc()
    if minpriority is None:
        registry.clear()


# The end of the process

_exiting = False


def is_exiting():
    """Whether the process is about to end."""
    return _exiting or _exiting is None


# So many seconds a daemon has at the end of its parent to end by SIGTERM.
DAEMONS_GRACE = 10.0


def _end_daemons(daemons, info):
    """Have them end, those at last that don't react to SIGTERM or are stopped: nobody waits for them for ever."""
    import time

    for child in daemons:
        info("calling terminate() for daemon %s", child.name)
        child._popen.terminate()
    deadline = time.monotonic() + DAEMONS_GRACE
    for child in daemons:
        child.join(max(0, deadline - time.monotonic()))
    for child in daemons:
        if child._popen.poll() is None:
            info("calling kill() for daemon %s", child.name)
            child._popen.kill()


def _exit_function(
    info=info,
    debug=debug,
    _run_finalizers=_run_finalizers,
    active_children=process._own_children,
    current_process=process.current_process,
):
    """Ends the daemonic children, waits for the others and calls the finalizers. Once in a process."""
    global _exiting
    if _exiting:
        return
    _exiting = True
    info("process shutting down")
    debug('running all "atexit" finalizers with priority >= 0')
    _run_finalizers(0)
    # None if somebody replaced sys.modules and the interpreter cleared the module behind these functions.
    if current_process() is not None:
        if daemons := [child for child in active_children() if child.daemon]:
            _end_daemons(daemons, info)
        for child in active_children():
            info("calling join() for process %s", child.name)
            child.join()
    debug('running the remaining "atexit" finalizers')
    _run_finalizers()


atexit.register(_exit_function)


def _register_others_exit():
    # What the standard package registered went with all that the parent had registered.
    if process._standard is not None:
        from . import beside

        if (exit := beside.at_exit()) is not None:
            atexit.register(exit)


if process._standard is not None:
    from . import beside

    beside.join_utils()


# What knows of forks


class ForkAwareThreadLock:
    """A lock between threads that is free in a forked child."""

    def __init__(self):
        self._lock = allocate_lock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        register_after_fork(self, type(self)._at_fork_reinit)

    def _at_fork_reinit(self):
        self._lock._at_fork_reinit()

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *exc_info):
        return self._lock.__exit__(*exc_info)


def _clear_local(local):
    vars(local).clear()


class ForkAwareLocal(_local):
    """Attributes local to a thread, gone in a forked child."""

    def __init__(self):
        register_after_fork(self, _clear_local)

    def __reduce__(self):
        return type(self), ()


# Descriptors and streams


def close_all_fds_except(fds):
    """Close all descriptors but these."""
    limit = os.sysconf("SC_OPEN_MAX")
    keep = sorted(fds)
    if keep and keep[-1] >= limit:
        raise AssertionError(f"fd too large: {keep[-1]}")
    for low, high in zip([-1, *keep], [*keep, limit], strict=True):
        os.closerange(low + 1, high)


def close_fds(*fds):
    """Close each of these descriptors."""
    for fd in fds:
        os.close(fd)


_empty_stdin = None


def _close_stdin():
    """Children don't read the terminal of their parent: their stdin is empty."""
    global _empty_stdin
    # A child of the fork server has that of the server.
    if sys.stdin is None or sys.stdin is _empty_stdin:
        return
    try:
        sys.stdin.close()
    except (OSError, ValueError):
        pass
    # Descriptor 0 itself is left to the programs that the child may run.
    try:
        null = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return
    try:
        sys.stdin = _empty_stdin = open(null, encoding="utf-8", closefd=False)
    except (OSError, ValueError):
        os.close(null)


def _flush_std_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            # None, or closed.
            pass


def spawnv_passfds(path, args, passfds):
    """Start a program that gets only these descriptors and stdin, stdout and stderr. Returns its pid."""
    return _core.spawnv_passfds(os.fsencode(path), [os.fsencode(arg) for arg in args], sorted(map(int, passfds)))


def _cleanup_tests():
    """What CPython's tests call when they are done: ends the helpers and runs the finalizers."""
    from test import support  # type: ignore[import-not-found]

    from . import forkserver, resource_tracker

    process._cleanup()
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()
    _run_finalizers()
    support.gc_collect()
    support.reap_children()
