"""Connections: pipes, listeners and their clients, and waiting for many things at once.

On the wire they are what the standard package's connections are, so that either can be at the other end of a socket.
"""

import os

from . import _core, reduction, util
from ._core import Connection, _create_response, _verify_challenge, answer_challenge, deliver_challenge  # noqa: F401
from .context import AuthenticationError, BufferTooShort  # noqa: F401 (looked for here)

__all__ = ["Client", "Listener", "Pipe", "wait"]

default_family = "AF_UNIX"
families = ["AF_INET", "AF_UNIX"]

# What others look for as the common base of connections.
_ConnectionBase = Connection

# These too are looked for here. Nothing in this package is done by halves of this size, or given up after so long.
BUFSIZE = 8192
CONNECTION_TIMEOUT = 20.0
_ForkingPickler = reduction.ForkingPickler


# Pipes, and waiting


def Pipe(duplex=True):
    """Two connections that lead to each other; if not duplex, the first only receives and the second only sends."""
    if duplex:
        one, other = _core.pipe()
        return Connection(one), Connection(other)
    reader, writer = _core.one_way_pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


def wait(object_list, timeout=None):
    """Wait until something can be received from at least one of the objects; return a list of those.

    They are connections, sockets, sentinels and other descriptors, and whatever has a `fileno()`. What has ended
    counts: receiving from it tells so. The list is empty if `timeout` seconds have passed.
    """
    objects = list(object_list)
    ready = _core.wait([_descriptor_of(obj) for obj in objects], timeout)
    return [objects[place] for place in ready]


def _descriptor_of(obj):
    if isinstance(obj, int):
        descriptor = obj
    else:
        try:
            descriptor = int(obj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"can't wait for {obj!r}: it is neither a descriptor nor has it a fileno()") from None
    if descriptor < 0:
        raise ValueError(f"Invalid file descriptor: {descriptor}")
    return descriptor


# Addresses


def arbitrary_address(family):
    """A free address of the family."""
    if family == "AF_INET":
        return ("localhost", 0)
    if family == "AF_UNIX":
        name = "sock-" + os.urandom(6).hex()
        path = os.path.join(util.get_temp_dir(), name)
        # The system takes no longer ones. TMPDIR may be anywhere, /tmp is never far.
        return path if len(os.fsencode(path)) < util._SUN_PATH_MAX else os.path.join(_short_temp_dir(), name)
    raise ValueError(f"unrecognized family: {family!r} (it can be {' or '.join(families)})")


def _short_temp_dir():
    import tempfile

    made = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
    # After the sockets in it, which are removed with priority 0.
    util.Finalize(None, os.rmdir, args=(made,), exitpriority=-100)
    return made


def _validate_family(family):
    """ValueError for a family that this system doesn't have."""
    if family == "AF_PIPE":
        raise ValueError(f"Family {family} is not recognized: it is Windows' own.")


def address_type(address):
    """The family that an address is of."""
    if type(address) is tuple:
        return "AF_INET"
    if isinstance(address, str) and address.startswith(r"\\"):
        return "AF_PIPE"
    if isinstance(address, str) or util.is_abstract_socket_namespace(address):
        return "AF_UNIX"
    raise ValueError(f"address type of {address!r} unrecognized")


# Listeners and clients


class Listener:
    """Takes connections at an address. With an authkey, only from clients that have it too."""

    # A client that has not shown its key after so many seconds is sent away: it would keep out all others. None: never.
    patience = 20

    def __init__(self, address=None, family=None, backlog=1, authkey=None):
        family = family or (address_type(address) if address else default_family)
        _validate_family(family)
        _check_authkey(authkey)
        # Where the program says nothing, nobody else is meant to connect. Elsewhere its umask says who may.
        mode = None if address or family != "AF_UNIX" else 0o600
        self._listener = SocketListener(address or arbitrary_address(family), family, backlog, mode)
        self._authkey = authkey

    def accept(self):
        """Wait for a client; return the connection to it. AuthenticationError if it hasn't the key."""
        if self._listener is None:
            raise OSError("listener is closed")
        conn = self._listener.accept()
        if self._authkey is not None:
            with _closed_on_failure(conn):
                _core.authenticate(conn, self._authkey, listener=True, timeout=self.patience)
        return conn

    def close(self):
        """Take no more connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    @property
    def address(self):
        """Where it listens: what a `Client` needs."""
        return self._listener._address

    @property
    def last_accepted(self):
        """The address of the last client, if it has one."""
        return self._listener._last_accepted

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def Client(address, family=None, authkey=None):
    """A connection to the `Listener` at an address. AuthenticationError if it hasn't the same key."""
    family = family or address_type(address)
    _validate_family(family)
    _check_authkey(authkey)
    conn = SocketClient(address)
    if authkey is not None:
        with _closed_on_failure(conn):
            _core.authenticate(conn, authkey, listener=False)
    return conn


def _check_authkey(authkey):
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError(f"authkey should be a byte string, not {type(authkey).__name__}")


class _closed_on_failure:
    """A peer that is refused sees the end of the connection at once, and not when the exception is forgotten."""

    def __init__(self, conn):
        self._conn = conn

    def __enter__(self):
        pass

    def __exit__(self, kind, *rest):
        if kind is not None:
            self._conn.close()


class SocketListener:
    """A socket that listens. The file of a Unix socket gets the mode, less what the umask takes away."""

    def __init__(self, address, family, backlog=1, mode=None):
        import socket

        self._family = family
        self._last_accepted = None
        self._unlink = None
        self._socket = socket.socket(getattr(socket, family))
        try:
            self._socket.setblocking(True)
            # A server that was started anew gets its port at once.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if mode is not None:
                # The file gets the mode of the socket, from the start.
                os.fchmod(self._socket.fileno(), mode)
            self._socket.bind(address)
            self._socket.listen(backlog)
            self._address = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise
        if family == "AF_UNIX" and not util.is_abstract_socket_namespace(address):
            self._unlink = util.Finalize(self, _unlink, args=(address, _identity(address)), exitpriority=0)

    def accept(self):
        """Wait for a client; return the connection to it."""
        sock, self._last_accepted = self._socket.accept()
        sock.setblocking(True)
        return _connection_of(sock)

    def close(self):
        """Close the socket, and remove its file."""
        unlink, self._unlink = self._unlink, None
        try:
            self._socket.close()
        finally:
            if unlink is not None:
                unlink()


def _identity(path):
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _unlink(path, identity):
    """Remove a file, unless another has taken its place: the socket of a server that was started anew, perhaps."""
    if _identity(path) in (identity, None):
        os.unlink(path)


def SocketClient(address):
    """A connection to the socket that listens at an address."""
    import socket

    sock = socket.socket(getattr(socket, address_type(address)))
    try:
        sock.setblocking(True)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return _connection_of(sock)


def _connection_of(sock):
    import socket

    if sock.family != socket.AF_UNIX:
        # A message is given to the system whole, so nothing is gained by its waiting for more.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(sock.detach())


# Authentication
#
# What is said, and what peers of Python 3.11 and older say instead, is in CONNECTION.md of the core, "Handshake".

_CHALLENGE = CHALLENGE = b"#CHALLENGE#"
_WELCOME = WELCOME = b"#WELCOME#"
_FAILURE = FAILURE = b"#FAILURE#"

# So many random bytes are in a challenge.
MESSAGE_LENGTH = 40


# Objects as XML


class ConnectionWrapper:
    """A connection whose objects become bytes, and back, by functions given."""

    def __init__(self, conn, dumps, loads):
        self._conn = conn
        self._dumps = dumps
        self._loads = loads
        self.fileno, self.close, self.poll = conn.fileno, conn.close, conn.poll
        self.send_bytes, self.recv_bytes = conn.send_bytes, conn.recv_bytes

    def send(self, obj):
        """Send an object."""
        self._conn.send_bytes(self._dumps(obj))

    def recv(self):
        """Receive an object."""
        return self._loads(self._conn.recv_bytes())


def _xml_dumps(obj):
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), allow_none=True).encode("utf-8")


def _xml_loads(text):
    import xmlrpc.client

    parameters, _method = xmlrpc.client.loads(text.decode("utf-8"))
    return parameters[0]


class XmlListener(Listener):
    """A listener for connections whose objects are sent as XML."""

    def accept(self):
        """Wait for a client; return the connection to it."""
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(*args, **kwds):
    """A connection to an `XmlListener`."""
    return ConnectionWrapper(Client(*args, **kwds), _xml_dumps, _xml_loads)


# Connections to other processes


def reduce_connection(conn):
    """How a connection is pickled: the receiver gets a descriptor of its own."""
    return rebuild_connection, (reduction.DupFd(conn.fileno()), conn.readable, conn.writable)


def rebuild_connection(dup, readable, writable):
    """The connection that was pickled."""
    return Connection(dup.detach(), readable, writable)


reduction.register(Connection, reduce_connection)
