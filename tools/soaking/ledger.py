"""A file in which every process of a round notes what it did, so that each task can be accounted for."""

import os
import struct
from collections import Counter

# Who, what, and in which process. No record straddles two pages, so a process that is killed writes all of it or none.
_RECORD = struct.Struct("<QII")
BEGUN, DONE, SENT, TAKEN, ASKED = range(1, 6)

_open = {}


def note(path, key, what):
    """Note for `key` that `what` happened. It is there when this returns, whatever becomes of the process."""
    fd = _open.get(path)
    if fd is None:
        # One at a time: workers of pools inside of pools have none of their own.
        _forget()
        fd = _open[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(fd, _RECORD.pack(key, what, os.getpid()))


def _forget():
    for fd in _open.values():
        os.close(fd)
    _open.clear()


class Ledger:
    """The file of one round."""

    def __init__(self, folder, number):
        self.path = os.path.join(folder, f"ledger-{number}")
        with open(self.path, "xb"):
            pass

    def records(self):
        """All records in the order in which they were made: key, what, pid."""
        with open(self.path, "rb") as file:
            return list(_RECORD.iter_unpack(file.read()))

    def counts(self, what):
        """How often `what` was noted for each key."""
        return Counter(key for key, noted, _pid in self.records() if noted == what)

    def remove(self):
        """The end of the round."""
        _forget()
        os.unlink(self.path)
