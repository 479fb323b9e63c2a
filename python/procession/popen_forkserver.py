"""Starting a child by asking the fork server for it."""

import os
import threading

from . import _core, forkserver, popen_fork, util
from .popen_spawn_posix import pickled_for_child

__all__ = ["Popen"]


class _DupFd:
    """A descriptor on its way to the child: its place in the list that the child is sent."""

    def __init__(self, ind):
        self.ind = ind

    def detach(self):
        return forkserver.get_inherited_fds()[self.ind]


class Popen(popen_fork.Popen):
    """A child of the fork server. How it ended, only the server is told, and passes on."""

    method = "forkserver"
    DupFd = _DupFd

    def __init__(self, process_obj):
        self._fds = []
        self._reading = threading.Lock()
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        """Have the child get a descriptor; returns its place in the list."""
        if fd not in self._fds:
            self._fds.append(fd)
        return self._fds.index(fd)

    def _launch(self, process_obj):
        data = pickled_for_child(self, process_obj)
        try:
            self.pid, pidfd, self._status = forkserver.connect_to_new_process(self._fds, data)
        finally:
            os.close(data)
        self.finalizer = util.Finalize(self, os.close, (self._status,))
        self._adopt(_core.Child(self.pid, pidfd))

    def poll(self, flag=os.WNOHANG):
        """The exit code, None while it runs."""
        if self.returncode is None and self._child.wait(None if flag == 0 else 0):
            # The code comes once, to the first that reads.
            with self._reading:
                if self.returncode is None:
                    self.returncode = forkserver.read_exit_code(self._status)
                    self.finalizer()
        return self.returncode

    def close(self):
        """Close the sentinel."""
        self.finalizer()
        super().close()
