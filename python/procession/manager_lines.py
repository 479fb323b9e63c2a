"""The server's side of lines over shared memory.

Each has a thread of its own, and while several are busy one more thread, the attendant, does for them what can't wait.
MANAGERS.md has the protocol; names in quotes are its scenarios.
"""

import itertools
import os
import queue
import resource
import sys
import threading
import traceback

from . import _core, util
from .manager_client import SHARED

__all__ = ["SharedLines", "receive_first", "refuse_memory", "unsendable"]

# What may be asked of the server itself and can't wait.
_IMMEDIATE = frozenset(("dummy", "get_methods", "incref", "number_of_objects"))


def receive_first(conn, wire):
    """The first message of a connection. The shared memory that comes with it is noted down in the connection."""
    if not isinstance(conn, _core.Connection):
        return wire.receive()
    data, conn._offered = _core.receive_offer(conn)
    return data


def refuse_memory(conn):
    """Let go of the shared memory that a client has offered, if it has and nobody took it."""
    memory, conn._offered = getattr(conn, "_offered", None), None
    if memory is not None:
        os.close(memory)


class SharedLines:
    """The lines of a server that go over shared memory."""

    def __init__(self, server):
        self._server = server
        self._attendance = _core.Attendance()
        self._count = itertools.count(1)

    def serve(self, conn):
        """Serve a thread of a client that has offered shared memory, until it ends. False if there is none of use."""
        memory, conn._offered = getattr(conn, "_offered", None), None
        if memory is None:
            return False
        line = None
        try:
            line = self._line(conn, memory)
            if line is None:
                return False
            util.debug("starting server thread to service %r over shared memory", threading.current_thread().name)
            if next(self._count) == 2:
                self._start_attendant()
            conn.send(("#RETURN", SHARED))
            line.serve(self._attendance)
        finally:
            # Its memory goes now, and not when an exception is forgotten.
            line = None
        sys.exit(0)

    def _line(self, conn, memory):
        # A line has two descriptors then. Where they get scarce, one has to do.
        if memory >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            os.close(memory)
            return None
        link = _Link(self._server, conn)
        try:
            return _core.ServedLine(conn, memory, link)
        except OSError as error:
            util.debug("the shared memory of a client is of no use: %s", error)
            return None

    def _start_attendant(self):
        try:
            threading.Thread(target=self._attendance.run, name="manager-attendant", daemon=True).start()
        except RuntimeError as error:
            # Each line is served by its own thread.
            util.info("no attendant: %s", error)


class _Link:
    """What a line asks the server for."""

    def __init__(self, server, conn):
        self._server, self._conn = server, conn
        self._own = server._own_requests()
        # "Popped": it is kept until the client's next call.
        self._message = None

    def answer(self, request, attended):
        """The message to reply with; None if it may have to wait but is not to, and False at the server's end."""
        server = self._server
        if server.stop_event.is_set():
            return False
        try:
            ident, name, args, _ = request
        except (TypeError, ValueError) as error:
            return self.failed(error)
        if ident is None:
            if attended and not self._is_immediate(name, args):
                return None
            message = server._serve_own(self._conn, request, self._own)
        else:
            message = self._call(request) if attended else server._call(self._conn, request)
            if message is None:
                return None
            self._message = message
        if server._dropped:
            server._forget_dropped()
        return message

    def _is_immediate(self, name, args):
        server = self._server
        if name == "decref" and len(args) == 1:
            # An object that goes may take its time.
            entry = server.id_to_obj.get(args[0])
            return entry is not None and server._is_immediate(entry, "__len__")
        return name in _IMMEDIATE

    def _call(self, request):
        """The message for a call that doesn't wait; None if it would."""
        server, (ident, name, args, kwds) = self._server, request
        entry = server.id_to_obj.get(ident)
        if entry is None:
            return None
        if server._is_immediate(entry, name, args):
            return server._call(self._conn, request)
        if kwds or type(entry[0]) is not queue.Queue or type(entry[0].maxsize) is not int:
            return None
        args = _without_waiting(entry[0], name, args)
        if args is None:
            return None
        message = server._call(self._conn, (ident, name, args, kwds))
        # Another thread was quicker.
        waits = message[0] == "#ERROR" and type(message[1]) in (queue.Empty, queue.Full)
        return None if waits else message

    def failed(self, error):
        """The message for a request that can't be unpickled, or is none."""
        return "#TRACEBACK", "".join(traceback.format_exception(_raised(error)))

    def unsendable(self, message, error):
        """The message in the place of one that can't be pickled."""
        error = _raised(error)
        return unsendable(message, error, "#UNSERIALIZABLE" if message is self._message else "#TRACEBACK")

    def undelivered(self):
        """The client has ended before it had the last reply."""
        self._server._take_back(self._conn)


def _raised(error):
    """The exception as if it was raised here: one of native code has no traceback."""
    try:
        raise error
    except Exception:
        return error


def _without_waiting(obj, name, args):
    """The arguments with which a queue's method doesn't wait; None if the client is to wait, or they are wrong."""
    if name == "get" and not args and obj.queue:
        return (False,)
    if name == "put" and len(args) == 1 and not 0 < obj.maxsize <= len(obj.queue):
        return args[0], False
    # Or with what says how long to wait.
    if name == "get" and len(args) in (1, 2) and obj.queue and _is_right(*args):
        return (False,)
    if name == "put" and len(args) in (2, 3) and not 0 < obj.maxsize <= len(obj.queue) and _is_right(*args[1:]):
        return args[0], False
    return None


def _is_right(block, timeout=None):
    return not block or timeout is None or (isinstance(timeout, int | float) and timeout >= 0)


def unsendable(message, error, kind):
    """The message in the place of one that can't be sent."""
    text = "".join(traceback.format_exception(error))
    if message[0] == "#ERROR":
        text = f"{''.join(traceback.format_exception(message[1]))}\nThe exception can't be sent:\n\n{text}"
    return kind, text
