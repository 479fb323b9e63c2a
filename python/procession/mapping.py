"""Files in memory, mapped."""

import mmap
import os
import sys

from . import _core

__all__ = ["Mapping"]

# Python 3.13 maps a file without a descriptor of its own; before, it is put in the place of memory without a file.
# Private and without reserve, so that it counts for nothing until the file is there.
_CAN_MAP_ALONE = sys.version_info >= (3, 13)
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _core.MAP_NORESERVE


class Mapping(mmap.mmap):
    """A mapped file.

    An `mmap.mmap` that maps a file has a descriptor of its own, which stays open as long as there is a view of the
    memory. This one uses the descriptor of whoever made it, who sets `fd` to -1 before closing it.
    """

    fd = -1

    @classmethod
    def of(cls, fd, size):
        """Map so many bytes of a file. They stay mapped until the last view of them is gone."""
        if size == 0:
            raise ValueError("cannot map an empty file: whoever makes the shared memory has not sized it as yet")
        if _CAN_MAP_ALONE:
            made = cls(fd, size, trackfd=False)
        else:
            made = cls(-1, size, flags=_FLAGS)
            _core.map_file(made, fd)
        made.fd = fd
        return made

    def size(self):
        """The size of the file, which others may have changed; once that is closed, of the mapping."""
        return os.fstat(self.fd).st_size if self.fd >= 0 else len(self)
