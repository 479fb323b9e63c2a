"""Pickling what is sent to other processes."""

import copyreg
import functools
import io
import os
import sys
from _pickle import Pickler, loads
from abc import ABCMeta

from . import context, process

__all__ = ["DupFd", "ForkingPickler", "dump", "recv_handle", "recvfds", "register", "send_handle", "sendfds"]

# Descriptors can be sent over Unix sockets, which all systems with a port have.
HAVE_SEND_HANDLE = True
# And none of them loses any if the receiver doesn't say that they have come.
ACKNOWLEDGE = False


def __getattr__(name):
    # Third parties look for it here; it drags in the regular expressions, which few children need.
    if name == "pickle":
        import pickle

        return globals().setdefault(name, pickle)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ForkingPickler(Pickler):
    """The pickler of the package. It knows some types more than the standard one: those that were registered."""

    _extra_reducers = {}
    _copyreg_dispatch_table = copyreg.dispatch_table

    def __init__(self, *args):
        super().__init__(*args)
        if not _sockets_known:
            _know_sockets()
        self.dispatch_table = {**self._copyreg_dispatch_table, **self._extra_reducers}

    @classmethod
    def register(cls, type, reduce):
        """Have objects of `type` pickled as `reduce(obj)` says."""
        cls._extra_reducers[type] = reduce
        if _lend is not None:
            _lend(type, reduce)

    @classmethod
    def dumps(cls, obj, protocol=None):
        """The pickle of an object, as a buffer."""
        buffer = io.BytesIO()
        cls(buffer, protocol).dump(obj)
        # Not the buffer's own view: collected together with it, that would be an error that nobody can catch.
        return memoryview(buffer.getvalue())

    loads = loads


register = ForkingPickler.register

# Has the standard package know a reducer as well, if that is used beside this one: see `beside`.
_lend = None


def dump(obj, file, protocol=None):
    """Pickle an object to a file."""
    ForkingPickler(file, protocol).dump(obj)


# Descriptors


def sendfds(sock, fds):
    """Send descriptors over a Unix socket. The message is one byte, their number."""
    import socket

    socket.send_fds(sock, [bytes([len(fds) % 256])], fds)


def recvfds(sock, size):
    """Receive at most `size` descriptors that `sendfds()` sent."""
    import array
    import socket

    fds = array.array("i")
    # Closed on exec, as all descriptors are that Python makes. `socket.recv_fds()` does not pass the flag on.
    room = socket.CMSG_SPACE(size * fds.itemsize)
    message, ancillary, _flags, _address = sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
    if not message and not fds:
        raise EOFError("the other side closed the socket")
    if len(message) != 1 or not fds or len(fds) % 256 != message[0]:
        for fd in fds:
            os.close(fd)
        raise RuntimeError("Invalid data received: no descriptors, or not as many as were announced")
    return list(fds)


def send_handle(conn, handle, destination_pid):
    """Send a descriptor over a connection that is a Unix socket (a duplex Pipe is one)."""
    with _socket_of(conn) as sock:
        sendfds(sock, [handle])


def recv_handle(conn):
    """Receive a descriptor over a connection that is a Unix socket."""
    with _socket_of(conn) as sock:
        return recvfds(sock, 1)[0]


def _socket_of(conn):
    import socket

    copy = os.dup(conn.fileno())
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise


def DupFd(fd):
    """What to pickle for a descriptor: its `detach()` gives the receiver's own copy."""
    popen = context.get_spawning_popen()
    if popen is not None:
        if process._standard is not None and fd in getattr(popen, "_fds", ()) and popen.method == "spawn":
            # The standard package starts no child with a descriptor listed twice.
            return popen.DupFd(fd)
        return popen.DupFd(popen.duplicate_for_child(fd))
    from . import resource_sharer

    return resource_sharer.DupFd(fd)


# What the standard pickler can't, or not as needed


def _reduce_method(method):
    owner = method.__self__ if method.__self__ is not None else type(method)
    return getattr, (owner, method.__func__.__name__)


def _reduce_method_descriptor(descriptor):
    return getattr, (descriptor.__objclass__, descriptor.__name__)


def _reduce_partial(partial):
    return _rebuild_partial, (partial.func, partial.args, partial.keywords or {})


def _rebuild_partial(func, args, keywords):
    return functools.partial(func, *args, **keywords)


def _reduce_socket(sock):
    return _rebuild_socket, (DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def _rebuild_socket(dup, family, type, proto):
    import socket

    return socket.socket(family, type, proto, fileno=dup.detach())


def _register_all():
    # Methods of instances, and of built-in types.
    register(type(_register_all.__get__(0)), _reduce_method)
    register(type(list.append), _reduce_method_descriptor)
    register(type(int.__add__), _reduce_method_descriptor)
    register(functools.partial, _reduce_partial)


# Whoever has a socket has imported the module; the others are spared it.
_sockets_known = False


def _know_sockets():
    global _sockets_known
    module = sys.modules.get("socket")
    # The module may be half imported, by another thread.
    if (kind := getattr(module, "socket", None)) is not None:
        ForkingPickler._extra_reducers.setdefault(kind, _reduce_socket)
        _sockets_known = True


_register_all()


class AbstractReducer(metaclass=ABCMeta):  # noqa: B024
    """A base for what takes this module's place as the `reducer` of a context."""

    ForkingPickler = ForkingPickler
    register = register
    dump = dump
    send_handle = send_handle
    recv_handle = recv_handle
    sendfds = sendfds
    recvfds = recvfds
    DupFd = DupFd
    _reduce_method = _reduce_method
    _reduce_method_descriptor = _reduce_method_descriptor
    _rebuild_partial = _rebuild_partial
    _reduce_socket = _reduce_socket
    _rebuild_socket = _rebuild_socket

    def __init__(self, *args):
        _register_all()


if process._standard is not None:
    from . import beside

    beside.join_reducers()
