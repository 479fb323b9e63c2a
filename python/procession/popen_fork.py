"""Starting a child by fork: it is a copy of this process."""

import atexit
import os
import signal
import sys

from . import _core, util

__all__ = ["Popen"]


class Popen:
    """A child that was started: its pid, its sentinel and, when it has ended, its exit code."""

    method = "fork"

    def __init__(self, process_obj):
        # What is buffered would be written by the child as well.
        util._flush_std_streams()
        self.returncode = None
        self.finalizer = None
        self._launch(process_obj)

    def duplicate_for_child(self, fd):
        """The number under which the child finds a descriptor of ours: a copy of us has the same ones."""
        return fd

    def poll(self, flag=os.WNOHANG):
        """The exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self._child.exit_code()
            if self.returncode is None and flag == 0:
                return self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end, at most `timeout` seconds; returns the exit code, None if it still runs."""
        if self.returncode is None and self._child.wait(timeout):
            return self.poll()
        return self.returncode

    def terminate(self):
        """Send SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self):
        """Send SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def interrupt(self):
        """Send SIGINT."""
        self._send_signal(signal.SIGINT)

    def _send_signal(self, sig):
        if self.returncode is None:
            try:
                self._child.send_signal(sig)
            except ProcessLookupError:
                pass
            except OSError:
                # Not allowed: a process that changed its user, unless it is just ending.
                if self.wait(timeout=0.1) is None:
                    raise

    def _launch(self, process_obj):
        parent_sentinel = _core.life_sentinel()
        # So that parent and child have one tracker, whichever needs it first. Who hasn't imported it has no use for it.
        tracker = sys.modules.get(f"{__package__}.resource_tracker")
        if tracker is not None:
            tracker._resource_tracker._family_fd()
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(lambda: process_obj._bootstrap(parent_sentinel=parent_sentinel))
        self._adopt(_core.Child(self.pid))

    def _adopt(self, child):
        self._child = child
        self.sentinel = child.sentinel

    def close(self):
        """Close the sentinel."""
        self._child.close()


def _run_child(life):
    """All that a forked child does: `life()` returns the exit code. Does not return."""
    code = 1
    try:
        # Only what the child itself registers is to run at its end.
        atexit._clear()
        atexit.register(util._exit_function)
        util._register_others_exit()
        code = life()
    finally:
        atexit._run_exitfuncs()
        # Whatever the handlers wrote, too, has to be out: the interpreter is not shut down.
        util._flush_std_streams()
        os._exit(code & 0xFF)
