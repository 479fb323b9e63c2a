"""Starting a child as a new interpreter. What it is to do is handed over in a file in memory."""

import os

from . import _core, popen_fork, process, resource_tracker, spawn, util
from .context import reduction, set_spawning_popen

__all__ = ["Popen"]


class _DupFd:
    """A descriptor on its way to the child, where it has the same number."""

    def __init__(self, fd):
        self.fd = fd

    def detach(self):
        return self.fd


class Popen(popen_fork.Popen):
    """A child that is a new interpreter."""

    method = "spawn"
    DupFd = _DupFd

    def __init__(self, process_obj):
        self._fds = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        """Have the child inherit a descriptor; it keeps its number."""
        if fd not in self._fds:
            self._fds.append(fd)
        return fd

    def _launch(self, process_obj):
        handles = {
            "tracker_fd": resource_tracker._resource_tracker._family_fd(),
            "pipe_handle": pickled_for_child(self, process_obj),
            "parent_sentinel": _core.life_sentinel(),
        }
        try:
            for fd in handles.values():
                self.duplicate_for_child(fd)
            command = spawn.get_command_line(**handles)
            self.pid = util.spawnv_passfds(spawn.get_executable(), command, self._fds)
        finally:
            os.close(handles["pipe_handle"])
        self._adopt(_core.Child(self.pid))


def pickled_for_child(popen, process_obj):
    """A file in memory that holds what a new interpreter needs to run a process object.

    The child reads it when it gets to it: however large, and whatever becomes of the child, the parent doesn't wait.
    """
    preparation = spawn.get_preparation_data(process_obj._name)
    set_spawning_popen(popen)
    try:
        if process._standard is not None:
            from . import beside

            beside.hand_over(preparation, popen)
        return in_memory(preparation, process_obj)
    finally:
        set_spawning_popen(None)


def in_memory(*objects):
    """A file in memory with the pickles of these objects, one after the other. Returns its descriptor."""
    fd = os.memfd_create("procession-start")
    try:
        with open(fd, "wb", closefd=False) as file:
            for obj in objects:
                reduction.dump(obj, file)
        # The child shares the position.
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
