"""The fork server: a process that has imported the main module, and of which the children of others are copies.

One socket leads to it, which all processes of the family inherit. What passes over it, and who ends when, is in
PROTOCOL.md of the core's process folder.
"""

import os
import struct
import sys
import threading

from . import _core, popen_fork, process, resource_tracker, spawn, util

__all__ = ["connect_to_new_process", "ensure_running", "get_inherited_fds", "set_forkserver_preload"]

# What a child finds first among the descriptors it is sent; those that its arguments refer to follow.
_FIRST = ("data", "parent sentinel", "fork server", "resource tracker")
# Descriptors in one message; the kernel's limit is 253.
_IN_ONE_MESSAGE = 240
_COUNT = struct.Struct("I")
# What the first byte says, and a number: a pid, an exit code, the number of an error.
_ANSWER = struct.Struct("=cq")
_STARTED, _ENDED, _FAILED = b"s", b"e", b"f"


class ForkServer:
    """The server as its clients see it: the process that started it and all below that."""

    def __init__(self):
        self._forkserver_alive_fd = None
        self._forkserver_pid = None
        # Only whoever started the server can wait for it.
        self._starter = None
        self._inherited_fds = None
        self._preload_modules = ["__main__"]
        self._preload_on_error = "ignore"
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._lock._at_fork_reinit)

    def set_forkserver_preload(self, modules_names, *, on_error="ignore"):
        """Name the modules that the server imports when it starts. "__main__" is the main module.

        If one can't be imported: with "ignore" nothing happens, with "warn" the server prints an ImportWarning to
        stderr, with "fail" it ends with a traceback, so that no process can be started.
        """
        if not all(type(name) is str for name in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn', or 'fail', not {on_error!r}")
        self._preload_modules = modules_names
        self._preload_on_error = on_error

    def get_inherited_fds(self):
        """The descriptors that came with the arguments; None in a process that the server did not start."""
        return self._inherited_fds

    def ensure_running(self):
        """Start the server, here or again, unless it runs."""
        with self._lock:
            if self._forkserver_alive_fd is not None:
                # Nothing ever comes from the server on this socket but its end.
                if not _core.wait_readable(self._forkserver_alive_fd, 0):
                    return
                self._forget()
            self._launch()

    def _forget(self):
        os.close(self._forkserver_alive_fd)
        pid, self._forkserver_alive_fd, self._forkserver_pid = self._forkserver_pid, None, None
        if self._starter == os.getpid():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                # Reaped by somebody who waits for any child.
                pass

    def _launch(self):
        import signal

        ours, servers = _core.message_sockets()
        try:
            handles = {"control": servers, "life": _core.life_sentinel(), "data": self._pickled_for_server()}
            try:
                if spawn._taken_over():
                    handles["takeover"] = 1
                if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []):
                    handles["blocked"] = 1
                arguments = ", ".join(f"{name}={value}" for name, value in handles.items())
                command = spawn.new_interpreter(__name__, "main", arguments)
                passed = [handles[name] for name in ("control", "life", "data")]
                # A Ctrl-C from now on waits until the server ignores it.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
                try:
                    self._forkserver_pid = util.spawnv_passfds(command[0], command, passed)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
            finally:
                os.close(handles["data"])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(servers)
        self._forkserver_alive_fd = ours
        self._starter = os.getpid()

    def _pickled_for_server(self):
        from .popen_spawn_posix import in_memory

        # Other modules are found where this process finds them, too.
        wanted = ["sys_path"]
        if "__main__" in self._preload_modules:
            wanted += ["sys_argv", "orig_dir", "dir", "init_main_from_name", "init_main_from_path"]
        data = spawn.get_preparation_data("ignored")
        main = {key: data[key] for key in wanted if key in data}
        # What this process uses of the package its children will use as well; imported once, it costs none of them.
        prefix = f"{__package__}."
        ours = [name for name in sys.modules if name.startswith(prefix) and not name.endswith(("__main__", "fallback"))]
        wanted = {"ours": ours, "preload": [*self._preload_modules], "on_error": self._preload_on_error}
        return in_memory({**wanted, "main": main})

    def connect_to_new_process(self, fds, data):
        """Have the server start a child that does what the file `data` says, and has the descriptors `fds`.

        Returns its pid, its pidfd and a socket on which the server tells its exit code.
        """
        tracker = resource_tracker._resource_tracker._family_fd()
        # The server may die with the request in its hands. A child that it forked but didn't tell of finds nothing to
        # do and exits, so the next server can be asked.
        for _attempt in range(2):
            self.ensure_running()
            status, childs = _core.message_sockets()
            try:
                _core.send_with_descriptors(self._forkserver_alive_fd, b"+", [childs])
                os.close(childs)
                childs = None
                answer, received = _core.receive_with_descriptors(status, _ANSWER.size)
            except BrokenPipeError:
                answer, received = b"", ()
            except BaseException:
                os.close(status)
                raise
            finally:
                if childs is not None:
                    os.close(childs)
            if not answer:
                os.close(status)
                continue
            kind, number = _ANSWER.unpack(answer)
            if kind == _FAILED:
                os.close(status)
                raise OSError(number, f"the fork server cannot fork: {os.strerror(number)}")
            (pidfd,) = received
            first = data, _core.life_sentinel(), self._forkserver_alive_fd, tracker
            try:
                _send_descriptors(status, [*first, *fds])
            except BrokenPipeError:
                # Started, and killed at once: its exit code says so.
                pass
            except BaseException:
                os.close(pidfd)
                os.close(status)
                raise
            return number, pidfd, status
        raise EOFError(
            "the fork server ended before it had started the process: what it printed to stderr says why; an import of "
            "the main module, or of a preloaded one, that ends the process would do that"
        )

    def _stop(self):
        """End the server; the tests do."""
        with self._lock:
            if self._forkserver_alive_fd is None:
                return
            if self._starter == os.getpid():
                # Children of the server have the socket as well, so that its end alone would not do.
                import signal

                os.kill(self._forkserver_pid, signal.SIGTERM)
            self._forget()


def read_exit_code(status):
    """Wait for the exit code of a child that has ended; 255 if the server has gone and nobody knows it."""
    answer, _ = _core.receive_with_descriptors(status, _ANSWER.size)
    return _ANSWER.unpack(answer)[1] if answer else 255


def _send_descriptors(socket, fds):
    for start in range(0, len(fds), _IN_ONE_MESSAGE):
        _core.send_with_descriptors(socket, _COUNT.pack(len(fds)), fds[start : start + _IN_ONE_MESSAGE])


def _receive_descriptors(socket):
    fds = []
    while True:
        message, received = _core.receive_with_descriptors(socket, _COUNT.size)
        if not message:
            # Whoever asked for this process has gone.
            os._exit(1)
        fds += received
        if len(fds) == _COUNT.unpack(message)[0]:
            return fds


# The server itself


def main(control, life, data, takeover=0, blocked=0):
    """Be the fork server."""
    import signal

    # Ctrl-C is for the program; the children get the handler back.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not blocked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # Importing the main module may take its time, in which nobody looks whether the program still runs.
    _core.follow(life)
    if takeover:
        from .takeover import install

        install()
    _preload(data)
    util._close_stdin()
    _core.unfollow()
    _Server(control, life, lambda: signal.signal(signal.SIGINT, handler)).serve()


def _preload(data):
    import _pickle
    import gc

    with os.fdopen(data, "rb") as file:
        wanted = _pickle.load(file)
    current = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(wanted["main"])
    except BaseException as error:
        # The child imports it again, and fails where it is seen.
        _not_preloaded("__main__", error, wanted["on_error"])
    finally:
        del current._inheriting
    for name in (*wanted["ours"], *wanted["preload"]):
        try:
            __import__(name)
        except Exception as error:
            # A hint, no more: whoever needs the module will be told.
            _not_preloaded(name, error, wanted["on_error"])
    # What the imports printed is not to be printed by each child.
    util._flush_std_streams()
    # The collector writes to each object it looks at. Of these it never will, so their pages stay shared.
    gc.collect()
    gc.freeze()


def _not_preloaded(name, error, on_error):
    util.info("the fork server could not import %s: %r", name, error)
    if on_error == "fail":
        raise error
    if on_error == "warn":
        import warnings

        with warnings.catch_warnings():
            # Asked for, although such warnings are not shown otherwise.
            if not sys.warnoptions:
                warnings.simplefilter("always", ImportWarning)
            warnings.warn(f"Failed to preload module {name!r}: {error!r}", ImportWarning, stacklevel=2)


class _Server:
    """Forks when asked to, and tells who asked how it ended."""

    def __init__(self, control, life, restore_signals):
        import select

        self.control = control
        self.life = life
        self.restore_signals = restore_signals
        self.gone = select.EPOLLHUP
        self.epoll = select.epoll()
        self.epoll.register(control, select.EPOLLIN)
        self.epoll.register(life, select.EPOLLIN)
        # By pidfd: the child, and the socket to tell its end on.
        self.children = {}
        # The sockets whose other side may still wait; known once the starter of this server is gone.
        self.listeners = None

    def serve(self):
        while self.listeners is None or self.listeners:
            for fd, _events in self.epoll.poll():
                if fd == self.control:
                    if not self.accept():
                        return
                elif fd == self.life:
                    self.starter_ended()
                elif fd in self.children:
                    self.child_ended(fd)
                else:
                    self.listener_ended(fd)

    def starter_ended(self):
        """Go on only for the others that wait for a child."""
        self.epoll.unregister(self.life)
        self.listeners = set()
        for _child, status in self.children.values():
            self.watch(status)

    def watch(self, status):
        self.listeners.add(status)
        self.epoll.register(status, self.gone)

    def listener_ended(self, status):
        if status in self.listeners:
            self.listeners.discard(status)
            self.epoll.unregister(status)

    def accept(self):
        """Fork a child. False if nobody is left who could ask for one."""
        message, received = _core.receive_with_descriptors(self.control, 1)
        if not message:
            return False
        (status,) = received
        try:
            pid = os.fork()
        except OSError as error:
            self.tell(status, _FAILED, error.errno)
            os.close(status)
            return True
        if pid == 0:
            popen_fork._run_child(lambda: self.become_child(status))
        child = _core.Child(pid)
        self.tell(status, _STARTED, pid, child.sentinel)
        self.children[child.sentinel] = child, status
        self.epoll.register(child.sentinel)
        if self.listeners is not None:
            self.watch(status)
        return True

    def child_ended(self, pidfd):
        code = self.children[pidfd][0].exit_code()
        if code is None:
            return
        child, status = self.children.pop(pidfd)
        self.epoll.unregister(pidfd)
        child.close()
        if self.listeners is not None:
            self.listener_ended(status)
        self.tell(status, _ENDED, code)
        os.close(status)

    def tell(self, status, kind, number, *descriptors):
        try:
            _core.send_with_descriptors(status, _ANSWER.pack(kind, number), descriptors)
        except (BrokenPipeError, ConnectionResetError):
            # Nobody wants to know any more.
            pass

    def become_child(self, status):
        """The life of a child; returns its exit code."""
        try:
            self.epoll.close()
            os.close(self.control)
            os.close(self.life)
            for child, other in self.children.values():
                child.close()
                os.close(other)
            self.restore_signals()
            data, parent_sentinel = _take_descriptors(status)
            return spawn._main(data, parent_sentinel)
        except SystemExit as exit:
            return process._code_of(exit)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            return 1


def _take_descriptors(status):
    data, parent_sentinel, server, tracker, *inherited = _receive_descriptors(status)
    os.close(status)
    _forkserver._forkserver_alive_fd = server
    _forkserver._forkserver_pid = os.getppid()
    _forkserver._inherited_fds = inherited
    resource_tracker._resource_tracker._fd = tracker
    return data, parent_sentinel


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
