"""A helper process that unlinks named resources whose users are all gone.

Locks, queues and pools of this package have no names: the kernel frees them. What has one is
`shared_memory.SharedMemory`. The helper is started when the first such name is registered, in whichever process of the
family. It ignores SIGINT and SIGTERM, and ends when the last of the family is gone, after unlinking what is registered
still.

The pipe that leads to it is there before: a process makes it when it starts its first child, and the whole family
inherits the writing end. Who needs the helper opens the reading end through /proc and locks it (flock). Who gets the
lock starts the helper and hands it on, and the helper has it for life. So there is one helper at a time, and what was
written to one that was killed is read by the next.
"""

import os
import sys
import threading
import time
import warnings

from . import process

__all__ = ["ensure_running", "register", "unregister"]

_HAVE_SIGMASK = True
# SIGINT and SIGTERM. The module `signal` is imported where it is needed: every spawned child imports this one.
_IGNORED_SIGNALS = (2, 15)
# As long as the name of a file can be, and a slash before it.
_LONGEST_NAME = 256
# A line of at most this many bytes is written to a pipe in one piece (POSIX, PIPE_BUF).
_LONGEST_LINE = 512


def _unlink_shared_memory(name):
    from .shared_memory import _posixshmem

    _posixshmem.shm_unlink(name)


def cleanup_noop(name):
    """What is never called: `noop` is for probes."""
    raise RuntimeError("'noop' is for probes: nothing of it is ever registered")


_CLEANUP_FUNCS = {
    "noop": cleanup_noop,
    "shared_memory": _unlink_shared_memory,
}
if sys.version_info >= (3, 13):
    # For tests: a resource that needs no cleaning. Those of older versions make one of each kind, and don't know it.
    _CLEANUP_FUNCS["dummy"] = lambda name: None


class ReentrantCallError(RuntimeError):
    """The tracker was called, by a finalizer mostly, from within a call to it."""


# The family's pipe can't be opened again by a process that has given up the rights of the one that made it (setuid),
# nor where there is no /proc.
_NOT_OPENED = (FileNotFoundError, PermissionError)


class ResourceTracker:
    """The helper process as its users see it."""

    # Whether lines are in the format of Python 3.12 and before wherever a name allows it: a derived class may have
    # a helper of its own that knows no other.
    _use_simple_format = False

    def __init__(self):
        self._lock = threading.RLock()
        # Whether a call is under way in the thread that has the lock.
        self._entered = False
        # What finalizers wanted to have written during such a call.
        self._reentrant_messages = []
        # What this process has registered, and how: a helper that takes the place of a killed one is told of it.
        self._registered = {}
        self._many = 1000
        # The writing end; that alone does not say that the helper runs.
        self._fd = None
        # Whether it was found to run.
        self._seen = False
        self._pid = None
        self._exitcode = None
        self._waitpid_timed_out = False
        # Whether this process is the one that the family began with.
        self._is_ancestor = True
        self._has_family_pipe = type(self)._launch is ResourceTracker._launch
        self._use_simple_format = not self._has_family_pipe

    def __del__(self):
        # So that no zombie is left, for which the last of the family waits. Not for long: there may be a forked child.
        self._stop(use_blocking_lock=False, wait_timeout=1 if self._is_ancestor else 0)

    def _after_fork_in_child(self):
        # The helper is our parent's child. Its pipe we share, so that what we register lives as long as our family.
        self._lock._at_fork_reinit()
        self._entered = False
        self._reentrant_messages.clear()
        self._registered.clear()
        self._pid = self._exitcode = None

    def _reentrant_call_error(self):
        raise ReentrantCallError("Reentrant call into the multiprocessing resource tracker")

    def getfd(self):
        """The pipe's writing end, for a child to inherit; starts the helper."""
        self.ensure_running()
        return self._fd

    def _family_fd(self):
        """The pipe's writing end, for a child to inherit. The helper is not started for that."""
        with self._lock:
            if self._fd is None:
                reader, self._fd = os.pipe()
                os.close(reader)
            return self._fd

    def _is_running(self):
        """Whether there is a helper, started by whomever of the family."""
        if self._fd is None or self._seen:
            return self._fd is not None and self._check_alive()
        try:
            reader = self._claim()
        except _NOT_OPENED:
            return self._is_read()
        if reader is not None:
            os.close(reader)
        return reader is None

    def ensure_running(self):
        """Start the helper, here or again, unless it runs."""
        self._ensure_running_and_write()

    def _ensure_running_and_write(self, msg=None):
        """Write a line (a probe if there is none) to the helper, which is started if it doesn't run."""
        with self._lock:
            if self._entered:
                if msg is None:
                    self._reentrant_call_error()
                self._reentrant_messages.append(msg)
                return
            self._entered = True
            try:
                self._deliver(msg)
                while self._reentrant_messages:
                    self._write(self._reentrant_messages.pop(0))
            finally:
                self._entered = False

    def _deliver(self, msg):
        first = self._make_probe_message() if msg is None else msg
        if self._seen and self._fd is not None:
            try:
                self._write(first)
                return
            except OSError:
                pass
        lines = [first]
        launched = 0
        while True:
            # Not by writing: where nobody reads as yet that would be a SIGPIPE, which some programs let end them.
            if self._fd is None or (self._has_family_pipe and not self._seen):
                self._launch()
                launched += 1
            try:
                for line in lines:
                    self._write(line)
            except OSError:
                # A helper that can't be started at all is no reason to try for ever.
                if launched == 3:
                    raise
                if self._seen or not self._has_family_pipe:
                    self._teardown_dead_process()
                    self._forget_what_is_gone()
                    known = [*self._registered.values()]
                    lines = [*known, *(line for line in lines if line not in known)]
            else:
                self._seen = True
                return

    def _teardown_dead_process(self):
        if not self._has_family_pipe:
            os.close(self._fd)
            self._fd = None
        if self._pid is not None:
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
        self._seen = False
        self._pid = self._exitcode = None
        warnings.warn(
            "resource_tracker: process died unexpectedly, relaunching. "
            "Names that other processes registered with it may leak.",
            stacklevel=5,
        )

    def _claim(self):
        """The pipe's reading end, locked. None if somebody has the lock, which is the helper or who starts it."""
        from fcntl import LOCK_EX, LOCK_NB, flock

        reader = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flock(reader, LOCK_EX | LOCK_NB)
        except BaseException as error:
            os.close(reader)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return reader

    def _is_read(self):
        """Whether there is somebody to read the pipe, found out by writing."""
        import signal

        # It is ignored by Python, but programs may have changed that.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
        try:
            alive = self._check_alive()
            if not alive and signal.SIGPIPE in signal.sigpending():
                signal.sigwait([signal.SIGPIPE])
            return alive
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _renew(self):
        """The reading end of a new pipe, in the place of one that nobody reads; None if somebody does."""
        if self._is_read():
            return None
        reader, writer = os.pipe()
        os.dup2(writer, self._fd, inheritable=False)
        os.close(writer)
        return reader

    def _launch(self):
        import signal

        from . import spawn, util

        self._is_ancestor = process.parent_process() is None
        self._family_fd()
        try:
            reader = self._claim()
        except _NOT_OPENED:
            reader = self._renew()
        if reader is None:
            return
        try:
            passed = [reader]
            try:
                passed.append(sys.stderr.fileno())
            except Exception:
                pass  # no stderr, or one that is no file: the warnings go nowhere
            command = spawn.new_interpreter(__name__, "main", reader)
            # Blocked, so that neither signal ends the helper before it ignores them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
            try:
                self._pid = util.spawnv_passfds(command[0], command, passed)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            os.close(reader)

    def _make_probe_message(self):
        return b"PROBE:0:noop\n"

    def _check_alive(self):
        """Whether there is somebody to read the pipe."""
        try:
            os.write(self._fd, self._make_probe_message())
        except OSError:
            return False
        return True

    def register(self, name, rtype):
        """Have the resource unlinked when nobody is left who could."""
        self._send("REGISTER", name, rtype)

    def unregister(self, name, rtype):
        """Take back what was registered: it is unlinked, or its user sees to it. Nothing happens if it was not."""
        self._send("UNREGISTER", name, rtype)

    def _write(self, msg):
        written = os.write(self._fd, msg)
        if written != len(msg):
            raise AssertionError(f"{written} bytes written of {len(msg)}")

    def _send(self, cmd, name, rtype):
        msg = self._line(cmd, name, rtype)
        # Before it is written: if that launches a new helper, all that is known is told.
        if cmd == "REGISTER":
            self._registered[name, rtype] = msg
            if len(self._registered) > self._many:
                self._forget_what_is_gone()
        elif cmd == "UNREGISTER":
            self._registered.pop((name, rtype), None)
        self._ensure_running_and_write(msg)

    def _forget_what_is_gone(self):
        # Others may have unlinked what we registered.
        self._registered = {key: line for key, line in self._registered.items() if _is_there(*key)}
        self._many = max(1000, 2 * len(self._registered))

    def _line(self, cmd, name, rtype):
        raw = name.encode("utf-8", "surrogateescape")
        if len(raw) > (_LONGEST_LINE if self._use_simple_format else _LONGEST_NAME):
            raise ValueError(f"the name of a tracked resource is too long: {len(raw)} bytes, not {_LONGEST_NAME}")
        # What is quickest to write and to read, wherever a name allows it; else as the standard package does it.
        if name.isascii() and name.isprintable():
            text = f"{cmd}:{name}:{rtype}"
        else:
            text = _json({"cmd": cmd, "rtype": rtype, "base64_name": _armoured(raw)})
        if cmd == "REGISTER" and not self._use_simple_format:
            line = b"%b\t%b\n" % (text.encode("ascii"), _maker(_LONGEST_LINE - len(text) - 2))
        else:
            line = f"{text}\n".encode("ascii")
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"msg too long: {len(line)} bytes for a tracked resource, not {_LONGEST_LINE}")
        return line

    def _stop(self, use_blocking_lock=True, wait_timeout=None):
        """End the helper and wait for it; with a timeout only so long."""
        if use_blocking_lock:
            with self._lock:
                if self._has_family_pipe and self._pid is None and self._fd is not None and not self._is_running():
                    # Nobody of the family had a name to register, so that nothing can have leaked.
                    self._exitcode = 0
                    return
                self._stop_locked(wait_timeout=wait_timeout)
        elif self._lock.acquire(blocking=False):
            try:
                self._stop_locked(wait_timeout=wait_timeout)
            finally:
                self._lock.release()

    # The defaults keep what is needed when the interpreter has already cleared this module.
    def _stop_locked(
        self,
        close=os.close,
        waitpid=os.waitpid,
        waitstatus_to_exitcode=os.waitstatus_to_exitcode,
        monotonic=time.monotonic,
        sleep=time.sleep,
        WNOHANG=os.WNOHANG,
        wait_timeout=None,
    ):
        if self._entered:
            self._reentrant_call_error()
        # That of another process goes on as long as there is one of them.
        if self._fd is None or self._pid is None:
            return
        pid, fd = self._pid, self._fd
        self._fd = self._pid = self._exitcode = None
        self._seen = False
        self._registered.clear()
        close(fd)
        deadline = None if wait_timeout is None else monotonic() + wait_timeout
        try:
            while True:
                ended, status = waitpid(pid, 0 if deadline is None else WNOHANG)
                if ended:
                    break
                if monotonic() >= deadline:
                    self._waitpid_timed_out = True
                    return
                sleep(0.002)
        except ChildProcessError:
            return
        self._exitcode = waitstatus_to_exitcode(status)


def _armoured(raw):
    """Bytes as text of letters, digits, - and _."""
    from binascii import b2a_base64

    return b2a_base64(raw, newline=False).decode("ascii").replace("+", "-").replace("/", "_")


def _unarmoured(text):
    from binascii import a2b_base64

    return a2b_base64(text.replace("-", "+").replace("_", "/"), strict_mode=True).decode("utf-8", "surrogateescape")


def _json(fields):
    if fields["rtype"].isidentifier() and fields["rtype"].isascii():
        # Nothing in it needs an escape, and `json` is much to import.
        return "{" + ",".join([f'"{key}":"{value}"' for key, value in fields.items()]) + "}"
    import json

    return json.dumps(fields, separators=(",", ":"))


def _is_there(name, rtype):
    """Whether a resource may still be there, as far as can be told."""
    if rtype != "shared_memory":
        return True
    from .shared_memory import _path_of

    try:
        return os.path.lexists(_path_of(name))
    except (OSError, ValueError):
        return False


def _maker(room):
    """Who registers something, in words: this process, and where in the program that is. At most so many bytes."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame = frame.f_back
    if frame is None:
        return b"process %d" % os.getpid()
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}".encode("utf-8", "surrogateescape")
    # The end of it tells more than the beginning.
    return b"process %d at %b" % (os.getpid(), where.replace(b"\n", b"?")[-max(room - 30, 1) :])


def __getattr__(name):
    # Where the standard package's users find them; a spawned child needs none of them.
    if name in ("signal", "spawn", "util"):
        from importlib import import_module

        return globals().setdefault(name, import_module(name if name == "signal" else f"{__package__}.{name}"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_resource_tracker = ResourceTracker()
# A child that was spawned has it from its parent.
_resource_tracker._fd = process._family_tracker
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd

os.register_at_fork(after_in_child=_resource_tracker._after_fork_in_child)


def _decode_message(line):
    """Command, kind and name of a line in either format."""
    return _fields_of(line)[:3]


def _fields_of(line):
    """Command, kind and name of a line, and who made what it registers."""
    # The maker is behind a tab.
    text, _, maker = line.rstrip(b"\n").decode("utf-8", "surrogateescape").partition("\t")
    if text[:1] != "{":
        command, rest = text.split(":", 1)
        name, rtype = rest.rsplit(":", 1)
        return command, rtype, name, maker
    import json

    try:
        fields = json.loads(text)
        name = _unarmoured(fields.get("base64_name", ""))
    except Exception as error:
        raise ValueError(f"malformed resource_tracker message: {line!r}") from error
    command, rtype = fields.get("cmd"), fields.get("rtype")
    if not isinstance(command, str) or not isinstance(rtype, str):
        raise ValueError(f"malformed resource_tracker fields: {fields!r}")
    return command, rtype, name, maker


def main(fd):
    """What the helper process does: keep the names, and unlink those that remain at the end.

    The exit status is 0 if there were none, 1 if there were, 2 if one could not be unlinked, 3 if a line made no sense.
    """
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
    # Of each kind the names, each with who made it.
    names = {rtype: {} for rtype in _CLEANUP_FUNCS}
    code = 0
    with open(fd, "rb") as lines:
        for line in lines:
            try:
                _obey(*_fields_of(line), names)
            except Exception:
                code = 3
                sys.excepthook(*sys.exc_info())
    for rtype, left in names.items():
        if left:
            code = _clean(rtype, left)
    sys.exit(code)


def _obey(command, rtype, name, maker, names):
    if rtype not in _CLEANUP_FUNCS:
        raise ValueError(f"cannot register {name!r} for automatic cleanup: unknown resource type {rtype!r}")
    # A kind may have been added to the table since the start.
    known = names.setdefault(rtype, {})
    if command == "REGISTER":
        known[name] = maker
    elif command == "UNREGISTER":
        known.pop(name, None)
    elif command != "PROBE":
        raise RuntimeError(f"unrecognized command {command!r}")


def _clean(rtype, left):
    """Unlink what is left of a kind; returns the exit status that it leads to."""
    if rtype != "dummy":
        text = (
            f"resource_tracker: There appear to be {len(left)} leaked {rtype} objects to clean up at shutdown: "
            f"{set(left)}"
        )
        details = (f"  {name!r}: {_size_of(rtype, name)}, made by {maker}" for name, maker in left.items() if maker)
        warnings.warn("\n".join([text, *details]), stacklevel=2)
    code = 1
    for name in left:
        try:
            _CLEANUP_FUNCS[rtype](name)
        except Exception as error:
            code = 2
            warnings.warn(f"resource_tracker: {name!r}: {error}", stacklevel=2)
    return code


def _size_of(rtype, name):
    if rtype != "shared_memory":
        return "of unknown size"
    from .shared_memory import _path_of

    try:
        return f"{os.stat(_path_of(name)).st_size} bytes"
    except (OSError, ValueError):
        return "gone by now"
