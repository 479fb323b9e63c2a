"""Connections between threads: a pair of queues."""

from queue import Queue

__all__ = ["Client", "Listener", "Pipe"]

families = [None]


class _Closing:
    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, exc_tb):
        self.close()


class Connection(_Closing):
    """One end: what the other sent comes out of one queue, what is sent goes into the other."""

    def __init__(self, _in, _out):
        self._in, self._out = _in, _out
        # Objects are handed over as they are, bytes among them.
        self.recv_bytes, self.send_bytes = self.recv, self.send = _in.get, _out.put

    def poll(self, timeout=0.0):
        """Whether there is something to receive, waiting at most `timeout` seconds for it, or for ever (None)."""
        arrived = self._in.not_empty
        with arrived:
            return bool(arrived.wait_for(self._in._qsize, timeout))

    def close(self):
        """Nothing: a queue is not closed."""


class Listener(_Closing):
    """Where connections are accepted. Its address is a queue."""

    def __init__(self, address=None, family=None, backlog=1):
        self._backlog_queue = Queue(backlog)

    @property
    def address(self):
        """What to give to `Client()`."""
        return self._backlog_queue

    def accept(self):
        """The connection of the next client."""
        return Connection(*self._backlog_queue.get())

    def close(self):
        """Accept no more."""
        self._backlog_queue = None


def Client(address):
    """A connection to a listener."""
    mine, theirs = Queue(), Queue()
    address.put((theirs, mine))
    return Connection(mine, theirs)


def Pipe(duplex=True):
    """Two connections that lead to each other."""
    one, other = Queue(), Queue()
    return Connection(one, other), Connection(other, one)
