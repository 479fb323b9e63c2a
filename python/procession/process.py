"""Process objects: what stands for a process that was started, for this one and for its parent."""

import itertools
import os
import sys

from . import _core

__all__ = ["BaseProcess", "active_children", "current_process", "parent_process"]

try:
    ORIGINAL_DIR = os.path.abspath(os.curdir)
except OSError:
    # The directory was removed under us; children then stay where they are started.
    ORIGINAL_DIR = None  # type: ignore[assignment]


def current_process():
    """The object that stands for the calling process."""
    if _standard is not None and _standard._current_process is not _current_process:
        _become_standard_child()
    return _current_process


def parent_process():
    """The object that stands for the process which started this one; None in the main process."""
    current_process()
    return _parent_process


def active_children():
    """The processes started by this one that still run. Those that have ended are reaped.

    Those that were started by the standard package are among them, if the program uses that as well.
    """
    _cleanup()
    return [*_children] if _standard is None else [*_children, *_standard.active_children()]


def _own_children():
    _cleanup()
    return [*_children]


def _cleanup():
    for child in tuple(_children):
        popen = child._popen
        # Another thread may be closing it.
        if popen is not None and popen.poll() is not None:
            _children.discard(child)


class BaseProcess:
    """An activity that runs in a process of its own; the interface is that of threading.Thread.

    Give it a `target` to call, or override `run()`.
    """

    _start_method = None
    _identity = ()
    _parent_pid = None
    _popen = None
    _closed = False

    @staticmethod
    def _Popen(process_obj):
        raise NotImplementedError("a process class belongs to a start method: take the Process of a context")

    def __init__(self, group=None, target=None, name=None, args=(), kwargs=None, *, daemon=None):
        if group is not None:
            raise AssertionError("group must be None: there are no groups of processes")
        creator = current_process()
        self._identity = (*creator._identity, next(_process_counter))
        self._config = dict(creator._config)
        # That of the standard package would have the child import it.
        self._config["authkey"] = AuthenticationString(creator.authkey)
        self._parent_pid = os.getpid()
        self._parent_name = creator.name
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs or ())
        self._name = name or f"{type(self).__name__}-{':'.join(map(str, self._identity))}"
        if daemon is not None:
            self.daemon = daemon
        _known_objects().add(self)

    def run(self):
        """What the child does: calls the target, unless overridden."""
        if self._target:
            self._target(*self._args, **self._kwargs)

    def start(self):
        """Start the child; it calls `run()`."""
        self._check_closed()
        if self._popen is not None:
            raise AssertionError("cannot start a process twice: make a new Process for each run")
        self._check_parent("start")
        _look_beside()
        config = current_process()._config
        if config.get("daemon") and not config.get("pooled"):
            raise AssertionError(
                "daemonic processes are not allowed to have children: they are killed without being asked, and "
                "could not end them. Start this process with daemon=False"
            )
        _cleanup()
        self._popen = self._Popen(self)
        self._sentinel = self._popen.sentinel
        # The target may lead back to this object, which would then not be freed when it is dropped.
        del self._target, self._args, self._kwargs
        _children.add(self)

    def terminate(self):
        """Ask the process to end (SIGTERM)."""
        self._started().terminate()

    def kill(self):
        """End the process at once (SIGKILL)."""
        self._started().kill()

    def interrupt(self):
        """Raise KeyboardInterrupt in the process (SIGINT)."""
        self._started().interrupt()

    def join(self, timeout=None):
        """Wait until the process has ended, at most `timeout` seconds; look at `exitcode` to know which it was."""
        self._check_closed()
        self._check_parent("join")
        if self._popen is None:
            raise AssertionError("can only join a started process: call start() first")
        if self._popen.wait(timeout) is not None:
            _children.discard(self)

    def is_alive(self):
        """Whether the process has been started and not yet ended."""
        self._check_closed()
        if self is _current_process:
            return True
        self._check_parent("test")
        if self._popen is None:
            return False
        alive = self._popen.poll() is None
        if not alive:
            _children.discard(self)
        return alive

    def close(self):
        """Give back what the object holds. The process must have ended."""
        if self._popen is not None:
            if self._popen.poll() is None:
                raise ValueError(
                    "Cannot close a process while it is still running. You should first call join() or terminate()."
                )
            self._popen.close()
            self._popen = None
            del self._sentinel
            _children.discard(self)
        self._closed = True

    @property
    def name(self):
        """Its name, for people."""
        return self._name

    @name.setter
    def name(self, name):
        if not isinstance(name, str):
            raise AssertionError(f"name must be a string, not {name!r}")
        self._name = name

    @property
    def daemon(self):
        """Whether the process is ended with its parent."""
        return self._config.get("daemon", False)

    @daemon.setter
    def daemon(self, daemonic):
        if self._popen is not None:
            raise AssertionError("process has already started: set daemon before start()")
        self._config["daemon"] = daemonic

    @property
    def authkey(self):
        """The key that connections between processes of this family are authenticated with."""
        return self._config["authkey"]

    @authkey.setter
    def authkey(self, authkey):
        self._config["authkey"] = AuthenticationString(authkey)

    @property
    def exitcode(self):
        """None while it runs, -N if signal N ended it, else what it exited with."""
        self._check_closed()
        return None if self._popen is None else self._popen.poll()

    @property
    def ident(self):
        """The pid; None before start()."""
        self._check_closed()
        if self is _current_process:
            return os.getpid()
        return None if self._popen is None else self._popen.pid

    pid = ident

    @property
    def sentinel(self):
        """A descriptor that becomes readable when the process ends: for `connection.wait()`, select, poll, asyncio."""
        self._check_closed()
        try:
            return self._sentinel
        except AttributeError:
            raise ValueError("process not started: it has a sentinel from start() on") from None

    def __repr__(self):
        parts = [type(self).__name__, f"name={self._name!r}"]
        if self._popen is not None:
            parts.append(f"pid={self._popen.pid}")
        parts.append(f"parent={self._parent_pid}")
        parts += self._status()
        if self.daemon:
            parts.append("daemon")
        return f"<{' '.join(parts)}>"

    def _status(self):
        if self is _current_process:
            return ["started"]
        if self._closed:
            return ["closed"]
        if self._parent_pid != os.getpid():
            return ["unknown"]
        if self._popen is None:
            return ["initial"]
        code = self._popen.poll()
        return ["started"] if code is None else ["stopped", f"exitcode={_exitcode_to_name.get(code, code)}"]

    def _check_closed(self):
        if self._closed:
            raise ValueError("process object is closed")

    def _check_parent(self, verb):
        if self._parent_pid != os.getpid():
            raise AssertionError(
                f"can only {verb} a child process: this one belongs to process {self._parent_pid}, and the caller is "
                f"process {os.getpid()}"
            )

    def _started(self):
        self._check_closed()
        if self._popen is None:
            raise AttributeError("the process has not been started: call start() first")
        return self._popen

    def _bootstrap(self, parent_sentinel=None):
        """The life of the child, from its first Python call on. Returns what it is to exit with."""
        from . import context, util

        global _current_process, _parent_process, _process_counter, _children
        code = 1
        try:
            if self._start_method is not None:
                context._force_start_method(self._start_method)
            _process_counter = itertools.count(1)
            _children = set()
            util._close_stdin()
            # What the forked process object of the parent holds is finalized after the hooks below have run.
            parents_own, _current_process = _current_process, self
            _parent_process = _ParentProcess(self._parent_name, self._parent_pid, parent_sentinel)
            _look_beside()
            if _standard is not None:
                from . import beside

                beside.entered()
            # Those of a pool's worker do, daemonic or not, and theirs: so they may have children.
            if self.daemon or self._config.get("pooled"):
                _end_with_parent()
            util._name_log_records()
            threading = sys.modules.get("threading")
            if threading is not None and threading._HAVE_THREAD_NATIVE_ID:
                threading.main_thread()._set_native_id()
            self._after_fork()
            del parents_own
            util.info("child process calling self.run()")
            self.run()
            code = 0
        except SystemExit as exit:
            code = _code_of(exit)
        except BaseException:
            import traceback

            if sys.stderr is not None:
                sys.stderr.write(f"Process {self.name}:\n")
                traceback.print_exc()
        finally:
            if (threading := sys.modules.get("threading")) is not None:
                threading._shutdown()
            # Of what it has taken from queues that are joined.
            _core.hand_on(code != 0)
            util.info("process exiting with exitcode %d", code)
            util._flush_std_streams()
        return code

    @staticmethod
    def _after_fork():
        from . import util

        util._finalizer_registry.clear()
        util._run_after_forkers()


def _code_of(exit):
    """The exit code that sys.exit() asked for, as the interpreter itself takes it."""
    if exit.code is None:
        return 0
    if isinstance(exit.code, int):
        return exit.code
    if sys.stderr is not None:
        sys.stderr.write(f"{exit.code}\n")
    return 1


class AuthenticationString(bytes):
    """A key. It can be pickled only while a process is started, so that it isn't sent somewhere by accident."""

    def __reduce__(self):
        from .context import get_spawning_popen

        popen = get_spawning_popen()
        if popen is None:
            raise TypeError("Pickling an AuthenticationString object is disallowed for security reasons")
        if _standard is not None and not type(popen).__module__.startswith(__package__ + "."):
            # A child of the standard package reads it before it knows where to find this one.
            return _standard.AuthenticationString, (bytes(self),)
        return AuthenticationString, (bytes(self),)


class _ParentProcess(BaseProcess):
    """The parent as its child sees it. The sentinel is the reading end of the parent's life pipe."""

    def __init__(self, name, pid, sentinel):
        self._name, self._pid, self._sentinel = name, pid, sentinel
        self._config = {}

    def is_alive(self):
        """Whether the parent still runs."""
        return not self._wait(0)

    def join(self, timeout=None):
        """Wait until the parent has ended, at most `timeout` seconds."""
        self._wait(timeout)

    def _wait(self, timeout):
        if self._sentinel is None:
            raise ValueError("this process was started without a sentinel of its parent")
        return _core.wait_readable(self._sentinel, timeout)

    @property
    def ident(self):
        """The pid of the parent."""
        return self._pid

    pid = ident


class _MainProcess(BaseProcess):
    """The process that the user started."""

    _name = "MainProcess"

    def __init__(self):
        # All processes of the family inherit it.
        self._config = {"authkey": AuthenticationString(os.urandom(32)), "semprefix": "/mp"}

    def close(self):
        """Does nothing: the main process is not closed."""


def _end_with_parent():
    """From now on the kernel kills this process when its parent ends, however that happens."""
    if _parent_process is not None and _parent_process._sentinel is not None:
        try:
            _core.follow(_parent_process._sentinel)
        except OSError as error:
            # No /proc, or no descriptor left: the process then ends only if its parent has the time to see to it.
            from . import util

            util.info("this process cannot follow its parent: %s", error)


# The writing end of the pipe to the resource tracker, as this process was started with it: few ever import that.
_family_tracker = None

# The standard package's module of this name, if that package is used beside this one: see `beside`.
_standard = None


def _become_standard_child():
    # It has started this process, by fork or before it came to know us.
    global _current_process, _parent_process, _process_counter
    _current_process = _standard._current_process
    _parent_process = _standard._parent_process
    _process_counter = _standard._process_counter


class Watch:
    """A finder that waits for the standard package to be imported, and finds nothing itself."""

    names = ("multiprocessing", "multiprocessing.util", "multiprocessing.resource_tracker")

    def find_spec(self, name, path=None, target=None):
        if name not in self.names:
            return None
        from . import beside

        return beside.found(self, name, path, target)


def _look_beside():
    # For the case that the finder was not asked.
    other = sys.modules.get("multiprocessing")
    if _standard is None and other is not None and other is not sys.modules[__package__]:
        from . import beside

        beside.join()


_parent_process = None
_current_process = _MainProcess()
_process_counter = itertools.count(1)
_children = set()


def _known_objects():
    # Made when first needed, as children that start no process have no use for it.
    try:
        return globals()["_dangling"]
    except KeyError:
        from _weakrefset import WeakSet

        return globals().setdefault("_dangling", WeakSet())


def __getattr__(name):
    if name == "_dangling":
        return _known_objects()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _forget_children():
    # After a bare os.fork() the children are the parent's: this process can't wait for them and mustn't end them.
    global _children
    _children = set()


os.register_at_fork(after_in_child=_forget_children)


class _ExitcodeNames(dict):
    """The names of the signals that end processes, by exit code. Filled when first asked: `signal` imports much."""

    def get(self, code, default=None):
        if not self:
            import signal

            self.update((-number, f"-{name}") for name, number in vars(signal).items() if _names_signal(name))
        return super().get(code, default)


def _names_signal(name):
    return name.startswith("SIG") and "_" not in name


_exitcode_to_name = _ExitcodeNames()
