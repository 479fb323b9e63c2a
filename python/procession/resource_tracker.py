"""A helper process that unlinks named resources whose users are all gone.

Locks, queues and pools of this package have no names: the kernel frees them. What has one is
`shared_memory.SharedMemory`. The helper is started when the first such name is registered, in whichever process of the
family; all others inherit the writing end of its pipe. It ignores SIGINT and SIGTERM, and ends when the last of them is
gone, after unlinking what is registered still.
"""

import os
import sys
import threading
import warnings

__all__ = ["ensure_running", "register", "unregister"]

# SIGINT and SIGTERM. The module `signal` is imported where it is needed: every spawned child imports this one.
_IGNORED_SIGNALS = (2, 15)
# A line of at most this many bytes is written to a pipe in one piece (POSIX, PIPE_BUF).
_LONGEST_LINE = 512


def _unlink_shared_memory(name):
    from .shared_memory import _shm_unlink

    _shm_unlink(name)


def _refuse(name):
    raise RuntimeError("'noop' is for probes: nothing of it is ever registered")


_CLEANUP_FUNCS = {
    "noop": _refuse,
    "shared_memory": _unlink_shared_memory,
}
if sys.version_info >= (3, 13):
    # For tests: a resource that needs no cleaning. Those of older versions make one of each kind, and don't know it.
    _CLEANUP_FUNCS["dummy"] = lambda name: None


class ReentrantCallError(RuntimeError):
    """The tracker was called, by a finalizer mostly, from within a call to it."""


class ResourceTracker:
    """The helper process as its users see it."""

    # The standard package has two formats for its lines, and its tests choose. Here is one, which takes all names.
    _use_simple_format = True

    def __init__(self):
        self._lock = threading.RLock()
        self._entered = False
        self._fd = None
        self._pid = None
        self._exitcode = None

    def _after_fork_in_child(self):
        # Another thread of the parent may have been in a call. Only the parent can wait for the helper, its child.
        self._lock._at_fork_reinit()
        self._entered = False
        self._pid = None

    def getfd(self):
        """The pipe's writing end, for a child to inherit; starts the helper."""
        self.ensure_running()
        return self._fd

    def ensure_running(self):
        """Start the helper, here or again, unless it runs."""
        with self._lock:
            if self._entered:
                raise ReentrantCallError("the resource tracker was called from within a call to it")
            self._entered = True
            try:
                if self._fd is not None and not self._check_alive():
                    self._teardown_dead_process()
                if self._fd is None:
                    self._launch()
            finally:
                self._entered = False

    def _teardown_dead_process(self):
        os.close(self._fd)
        if self._pid is not None:
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
        self._fd = self._pid = self._exitcode = None
        warnings.warn(
            "resource_tracker: process died unexpectedly, relaunching. Names registered with it may leak.",
            stacklevel=4,
        )

    def _launch(self):
        import signal

        from . import spawn, util

        reader, writer = os.pipe()
        try:
            passed = [reader]
            try:
                passed.append(sys.stderr.fileno())
            except Exception:
                pass  # no stderr, or one that is no file: the warnings go nowhere
            program = f"from {__name__} import main; main({reader})"
            executable = spawn.get_executable()
            command = [executable, *util._args_from_interpreter_flags(), "-c", program]
            # Blocked, so that neither signal ends the helper before it ignores them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
            try:
                self._pid = util.spawnv_passfds(executable, command, passed)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._fd = writer

    def _check_alive(self):
        try:
            os.write(self._fd, b"PROBE:0:noop\n")
        except OSError:
            return False
        return True

    def register(self, name, rtype):
        """Have the resource unlinked when nobody is left who could."""
        self._send("REGISTER", name, rtype)

    def unregister(self, name, rtype):
        """Take back what was registered: it is unlinked, or its user sees to it."""
        self._send("UNREGISTER", name, rtype)

    def _send(self, command, name, rtype):
        line = f"{command}:{_escaped(name)}:{rtype}\n".encode("ascii")
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"the name of a tracked resource is too long: {len(line)} bytes with its kind, not {_LONGEST_LINE}"
            )
        try:
            self.ensure_running()
        except ReentrantCallError:
            warnings.warn(f"resource_tracker: called from within a call to it; {rtype} {name!r} may leak", stacklevel=3)
            if self._fd is None:
                return
        os.write(self._fd, line)

    def _stop(self):
        """End the helper and wait for it."""
        with self._lock:
            if self._fd is None:
                return
            os.close(self._fd)
            self._fd = None
            if self._pid is not None:
                _, status = os.waitpid(self._pid, 0)
                self._exitcode = os.waitstatus_to_exitcode(status)
            self._pid = None


def _escaped(name):
    # A name is of any characters, line feeds too.
    return name.encode("unicode_escape").decode("ascii")


_resource_tracker = ResourceTracker()
os.register_at_fork(after_in_child=_resource_tracker._after_fork_in_child)
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd


def main(fd):
    """What the helper process does: keep the names, and unlink those that remain at the end."""
    import signal

    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    # Whoever reads the program's output to its end is not to wait for this process.
    for stream in (sys.stdin, sys.stdout):
        try:
            stream.close()
        except Exception:
            pass
    names = {rtype: set() for rtype in _CLEANUP_FUNCS}
    with open(fd, "rb") as lines:
        for line in lines:
            try:
                _obey(line, names)
            except Exception:
                sys.excepthook(*sys.exc_info())
    leaked = any(names.values())
    for rtype, left in names.items():
        _clean(rtype, left)
    sys.exit(1 if leaked else 0)


def _obey(line, names):
    command, rest = line.strip().split(b":", 1)
    name, rtype = rest.rsplit(b":", 1)
    command, name, rtype = command.decode("ascii"), name.decode("unicode_escape"), rtype.decode("ascii")
    if rtype not in _CLEANUP_FUNCS:
        raise ValueError(f"cannot register {name!r} for automatic cleanup: unknown resource type {rtype!r}")
    # A kind that was added to the table since the start.
    known = names.setdefault(rtype, set())
    if command == "REGISTER":
        known.add(name)
    elif command == "UNREGISTER":
        known.remove(name)
    elif command != "PROBE":
        raise RuntimeError(f"unrecognized command {command!r}")


def _clean(rtype, left):
    if left:
        warnings.warn(
            f"resource_tracker: There appear to be {len(left)} leaked {rtype} objects to clean up at shutdown: "
            f"{', '.join(sorted(left))}",
            stacklevel=2,
        )
    for name in left:
        try:
            _CLEANUP_FUNCS[rtype](name)
        except Exception as error:
            warnings.warn(f"resource_tracker: {name!r}: {error}", stacklevel=2)
