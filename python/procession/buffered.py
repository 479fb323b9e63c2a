"""imap with a `buffersize`: items are taken from the iterable only as far as results are taken out."""

import threading

from ._core import IMapIterator, IMapUnorderedIterator

__all__ = ["Window", "buffered"]


class Window:
    """Feeds a stream, but at most `size` items beyond those whose results were taken out."""

    def __init__(self, feed, results, size):
        self._feed, self._results, self._size = feed, results, size
        self._lock = threading.Lock()
        self._is_parked = self._is_feeding = self._is_closed = False

    def _room(self):
        return self._size + self._results._taken() - self._feed.submitted()

    def feed(self, count):
        """Hand over items, at most `count`. False at the end; None if there is no room, until `reopens()`."""
        with self._lock:
            room = self._room()
            self._is_parked = room <= 0 and not self._is_closed
            if self._is_closed:
                return False
            if self._is_parked:
                return None
            self._is_feeding = True
        more = False
        try:
            # The iterable may take its time, or never come back.
            more = self._feed.feed(min(count, room))
        finally:
            with self._lock:
                self._is_feeding = False
                closed = self._is_closed
            if closed:
                self._feed.end()
        return more and not closed

    def reopens(self):
        """Whether it is to be fed again, as there is room since. Says so once."""
        with self._lock:
            reopens = self._is_parked and self._room() > 0
            if reopens:
                self._is_parked = False
            return reopens

    def close(self):
        """Hand over nothing more."""
        with self._lock:
            self._is_closed = True
            if self._is_feeding:
                return
        self._feed.end()


class _Buffered(IMapIterator):
    """The results of an imap with a `buffersize`."""

    def __init__(self, results, window, crew):
        self._results, self._window, self._crew = results, window, crew

    def __iter__(self):
        return self

    def __next__(self):
        return self.next()

    def next(self, timeout=None):
        """The next result. `TimeoutError` if it does not come within `timeout` seconds."""
        try:
            return self._results.next(timeout)
        finally:
            if self._window.reopens():
                self._crew.feed(self._window)

    def cancel(self):
        """As of every imap: do without what is still to come."""
        cancelled = self._results.cancel()
        if cancelled:
            self._window.close()
            self._crew.forget(self._window)
        return cancelled

    def cancelled(self):
        """Whether it was cancelled before all results were there."""
        return self._results.cancelled()

    def __del__(self):
        # Nobody will take the rest.
        self._window.close()
        self._crew.forget(self._window)


class _BufferedUnordered(_Buffered, IMapUnorderedIterator):
    """The results of an imap_unordered with a `buffersize`."""


def buffered(crew, results, feed, size, ordered):
    """The iterator over the results of a stream that is fed so far ahead of what is taken out."""
    window = Window(feed, results, size)
    iterator = (_Buffered if ordered else _BufferedUnordered)(results, window, crew)
    crew.feed(window)
    return iterator
