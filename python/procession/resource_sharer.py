"""Descriptors for processes that are not children being started: fetched from the process that pickled them.

What is pickled is an address and a number. The receiver connects there, with the family's authkey, and is sent the
descriptor. A thread that serves the requests is started when the first descriptor is pickled in this way.
"""

import os
import threading

from . import process, reduction, util

__all__ = ["DupFd", "stop"]


class DupFd:
    """A descriptor, pickled. Of all processes that unpickle it, one gets it."""

    def __init__(self, fd):
        copy = os.dup(fd)
        self._id = _resource_sharer.register(
            lambda conn, pid: reduction.send_handle(conn, copy, pid), lambda: os.close(copy)
        )

    def detach(self):
        """The receiver's own descriptor. To be called once."""
        with _resource_sharer.get_connection(self._id) as conn:
            return reduction.recv_handle(conn)


class _ResourceSharer:
    """Keeps resources until they are fetched."""

    def __init__(self):
        self._lock = threading.Lock()
        self._reset()
        util.register_after_fork(self, type(self)._after_fork)

    def _reset(self):
        self._kept = {}
        self._numbers = 0
        self._listener = self._address = self._thread = None
        # Set when the thread is to end. A client's word is not enough: what is kept here would never be fetched.
        self._over = threading.Event()

    def register(self, send, close):
        """Keep a resource; returns what identifies it. `send(conn, pid)` hands it over, and `close()` lets go of it."""
        with self._lock:
            if self._address is None:
                self._start()
            self._numbers += 1
            self._kept[self._numbers] = (send, close)
            return self._address, self._numbers

    @staticmethod
    def get_connection(ident):
        """A connection on which the resource comes next."""
        from .connection import Client

        address, number = ident
        conn = Client(address, authkey=process.current_process().authkey)
        conn.send((number, os.getpid()))
        return conn

    def stop(self, timeout=None):
        """Stop the thread, and let go of what was not fetched."""
        from .connection import Client

        with self._lock:
            if self._address is None:
                return
            self._over.set()
            with Client(self._address, authkey=process.current_process().authkey) as conn:
                conn.send(None)
            self._thread.join(timeout)
            if self._thread.is_alive():
                util.sub_warning("the thread that shares resources did not stop when asked to")
            self._listener.close()
            self._let_go()

    def _let_go(self):
        kept = self._kept
        self._reset()
        for _send, close in kept.values():
            close()

    def _after_fork(self):
        # The thread is the parent's, and so are the file of the socket and whatever held the lock.
        self._lock = threading.Lock()
        if self._listener is not None:
            self._listener.close()
        self._let_go()

    def _start(self):
        from .connection import Listener

        util.debug("starting the thread that shares resources")
        self._listener = Listener(authkey=process.current_process().authkey, backlog=128)
        self._address = self._listener.address
        self._thread = threading.Thread(
            target=self._serve, args=(self._listener, self._kept, self._over), name="resource sharer", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _serve(listener, kept, over):
        import signal

        # Signals are for the program's own threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                with listener.accept() as conn:
                    request = conn.recv()
                    if over.is_set():
                        return
                    number, pid = request
                    send, close = kept.pop(number)
                    try:
                        send(conn, pid)
                    finally:
                        close()
            except Exception:
                if listener._listener is None:
                    return  # closed: the thread was not quick enough to stop
                # One request has failed; the others are not to suffer from it.
                if not util.is_exiting():
                    import sys

                    sys.excepthook(*sys.exc_info())


_resource_sharer = _ResourceSharer()
stop = _resource_sharer.stop
