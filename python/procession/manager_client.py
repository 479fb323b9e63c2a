"""The client side of managers: how a server is asked, and the base of the proxies that stand for its objects.

A process has one connection to a server for each of its threads that uses it, opened when first needed. The server
gives each connection a thread of its own, so that to a shared lock the client's threads are told apart. MANAGERS.md has
the protocol; names in quotes are its scenarios.
"""

import os
import sys
import threading

from . import _core, connection, foreign, process, util
from .context import get_spawning_popen

__all__ = ["BaseProxy", "RemoteError", "Token", "dispatch"]

# Of each serializer: what listens and what connects.
listener_client = {
    "pickle": (connection.Listener, connection.Client),
    "xmlrpclib": (connection.XmlListener, connection.XmlClient),
}


# How a server says that it takes the shared memory that was offered to it ("Shared").
SHARED = "shared memory"


class Token:
    """The name of a shared object: of what kind it is, where its server listens, its number there."""

    __slots__ = ("address", "id", "typeid")

    def __init__(self, typeid, address, id):
        self.typeid, self.address, self.id = typeid, address, id

    def __getstate__(self):
        return self.typeid, self.address, self.id

    def __setstate__(self, state):
        self.typeid, self.address, self.id = state

    def __repr__(self):
        return f"{type(self).__name__}(typeid={self.typeid!r}, address={self.address!r}, id={self.id!r})"


class RemoteError(Exception):
    """An error in the server that could not be handed over itself; its argument is the traceback."""

    def __str__(self):
        rule = "-" * 75
        return f"\n{rule}\n{self.args[0]}{rule}"


def convert_to_error(kind, result):
    """The exception that a reply stands for."""
    if kind == "#ERROR":
        return result
    if kind not in ("#TRACEBACK", "#UNSERIALIZABLE"):
        return ValueError(f"Unrecognized message type {kind!r}")
    if not isinstance(result, str):
        raise TypeError(
            f"the server's reply {kind} should come with a text, not with {result!r} of type {type(result)}"
        )
    return RemoteError(result if kind == "#TRACEBACK" else f"Unserializable message: {result}\n")


def dispatch(c, id, methodname, args=(), kwds=None):
    """Ask the server behind connection `c`, and return what it replies. An error there is raised here."""
    request = id, methodname, args, kwds or {}
    if not hasattr(c, "send_bytes"):
        # Whatever sends and receives objects will do, as in the standard package.
        c.send(request)
        return _result_of(*c.recv())
    wire = Wire(c)
    wire.send(wire.dumps(request))
    return _result_of(*wire.loads(wire.receive()))


def _server_gone(error):
    """The error of a connection that came to its end, with words that tell what it means here."""
    text = "the manager's process is gone, or has closed the connection"
    if isinstance(error, OSError):
        return type(error)(error.errno, f"{error.strerror}: {text}")
    return type(error)(text)


def _result_of(kind, result):
    if kind == "#RETURN":
        return result
    try:
        raise convert_to_error(kind, result)
    finally:
        # The exception's traceback leads to this frame, which must not lead back to it.
        del result


class Wire:
    """A connection as four functions: objects become bytes and back apart from the bytes' being sent and received.

    An error in the one leaves the connection as it is; after one in the other it can't be used any more.
    """

    __slots__ = ("dumps", "loads", "receive", "send")

    def __init__(self, connection):
        # XML connections are wrapped ones.
        inner = getattr(connection, "_conn", None)
        if inner is None:
            inner, self.dumps, self.loads = connection, foreign.dumps, foreign.loads
        else:
            self.dumps, self.loads = connection._dumps, connection._loads
        self.send, self.receive = inner.send_bytes, inner.recv_bytes


class _Line(Wire):
    """An open connection to a server, for one thread, on which many requests are answered one after the other."""

    __slots__ = ("busy", "closed", "connection", "for_server", "spare")

    def __init__(self, connection, for_server):
        super().__init__(connection)
        self.connection = connection
        # Whether the server also takes the requests that are for itself on this connection. The standard package's
        # doesn't; it wants a new connection for each.
        self.for_server = for_server
        self.busy = self.closed = self.spare = False

    def exchange(self, request):
        """Send a request; returns the reply, `(kind, result)`."""
        message = self.dumps(request)
        self.busy = True
        try:
            self.send(message)
            reply = self.receive()
        except BaseException as error:
            # "Interrupted": whatever comes next would be the reply to this request.
            self.close()
            if isinstance(error, (EOFError, ConnectionError)):
                raise _server_gone(error) from None
            raise
        # "Popped": the objects in the reply ask the server, and may do it on this line.
        self.busy = False
        return self.loads(reply)

    def close(self):
        self.closed = True
        self.connection.close()


class _SharedLine(_core.Line):
    """A line whose requests and replies go through shared memory, for a server on this machine."""

    __slots__ = ("connection",)

    for_server, spare = True, False

    @classmethod
    def offer(cls, connection, request):
        """Send the first request of a connection, and with it shared memory. None if there is none to have."""
        try:
            return cls(connection, _core.dumps(request))
        except OSError as error:
            util.debug("no shared memory for a line: %s", error)
            return None

    def __init__(self, connection, message):
        super().__init__(connection, message)
        self.connection = connection


class ProcessLocalSet(set):
    """A set that is empty in a forked child."""

    def __init__(self):
        util.register_after_fork(self, set.clear)

    def __reduce__(self):
        return type(self), ()


class _Peer:
    """What the clients in this process know of one server."""

    __slots__ = ("Client", "address", "authkey", "references", "tls")

    def __init__(self, address, authkey, Client):
        self.address, self.authkey, self.Client = address, authkey, Client
        with BaseProxy._mutex:
            known = BaseProxy._address_to_local.get(address)
            if known is None:
                known = BaseProxy._address_to_local[address] = util.ForkAwareLocal(), ProcessLocalSet()
        # The line of each thread, and the references that this process holds to the server's objects.
        self.tls, self.references = known

    def line(self):
        """This thread's line, opened if need be.

        While it is busy a spare one, to be closed after use ("In the middle").
        """
        line = getattr(self.tls, "line", None)
        if line is None or line.closed:
            self.tls.line = line = self._open()
        elif line.busy:
            return self._open(spare=True)
        return line

    def _open(self, spare=False):
        util.debug("making connection to manager")
        name, thread = process.current_process().name, threading.current_thread()
        if thread is not threading.main_thread():
            name += f"|{thread.name}"
        request = None, "accept_connection", (name,), {}
        conn = self.connect()
        try:
            line = None if spare or not self._is_near() else _SharedLine.offer(conn, request)
            if line is None:
                conn.send(request)
            accepted = _result_of(*conn.recv())
            if line is None or accepted != SHARED:
                line = _Line(conn, accepted)
                line.spare = spare
            if line.for_server and _is_at_a_distance(self.address):
                self._identify(line)
            return line
        except BaseException as error:
            conn.close()
            if isinstance(error, (EOFError, ConnectionError)):
                raise _server_gone(error) from None
            raise

    def _is_near(self):
        """Whether the server is on this machine, but not in this very process, whose attendant may be the caller."""
        if self.Client is not connection.Client or _is_at_a_distance(self.address):
            return False
        server = getattr(process.current_process(), "_manager_server", None)
        return server is None or server.address != self.address

    def connect(self):
        """A new connection to the server, for one request of its own."""
        try:
            return self.Client(self.address, authkey=self.authkey)
        except (ConnectionError, FileNotFoundError) as error:
            if error.errno is None:
                raise
            text = f"{error.strerror}: no manager's process listens at {self.address!r} (any more)"
            raise type(error)(error.errno, text) from None
        except EOFError:
            raise EOFError(f"the manager's process at {self.address!r} ended while it was being connected to") from None

    def _identify(self, line):
        """Tell the server which process the line is of: there is no other way to know it ("At a distance")."""
        with _presences_lock:
            identity, conn = _presences.get(self.address, (None, None))
            if identity is None or conn.poll() or not self._is_known(line, identity):
                identity = f"{os.getpid()}-{os.urandom(8).hex()}"
                conn = self.connect()
                try:
                    name = f"process {os.getpid()} on {os.uname().nodename}"
                    dispatch(conn, None, "accept_client", (identity, name))
                except BaseException:
                    conn.close()
                    raise
                _presences[self.address] = identity, conn
                self._is_known(line, identity)

    def _is_known(self, line, identity):
        return _result_of(*line.exchange((None, "identify", (identity,), {})))

    def hang_up(self):
        """Close this thread's line, unless it is in use."""
        line = getattr(self.tls, "line", None)
        if line is not None and not line.busy:
            del self.tls.line
            line.close()

    def ask(self, methodname, args=(), kwds=None, keep=False):
        """Call a method of the server itself. If this thread has no line, one is opened only if told to `keep` it."""
        line = getattr(self.tls, "line", None)
        if line is None or line.closed:
            line = self.line() if keep else None
        if line is not None and line.for_server and not line.busy:
            try:
                reply = line.exchange((None, methodname, args, kwds or {}))
            except (EOFError, OSError):
                # "Server gone": perhaps there is a new one.
                util.debug("connection to manager was lost, making another")
            else:
                return _result_of(*reply)
        conn = self.connect()
        try:
            return dispatch(conn, None, methodname, args, kwds)
        except (EOFError, ConnectionError) as error:
            raise _server_gone(error) from None
        finally:
            conn.close()


# By address: what this process calls itself there, and the connection that is there as long as the process is.
_presences = {}
# A signal handler may need a line while its thread is opening one.
_presences_lock = threading.RLock()


def _is_at_a_distance(address):
    """Whether the server can't see which process it is that connects."""
    return connection.address_type(address) != "AF_UNIX"


# Grows with each fork. In a child, a proxy with the parent's number has to get a reference of its own.
_generation = 0


class BaseProxy:
    """The base of all proxies: what stands for an object that lives in a manager's server.

    It holds a reference to the object. A child process that inherits it gets a reference, and connections, of its own.
    """

    _address_to_local = {}
    _mutex = util.ForkAwareThreadLock()
    # Gives the reference back; None if there is none.
    _close = None

    def __init__(self, token, serializer, manager=None, authkey=None, exposed=None, incref=True, manager_owned=False):
        self._token, self._id = token, token.id
        self._manager, self._serializer = manager, serializer
        # What the manager's types are called; unlike the manager it is known in children, too.
        self._registry = None if manager is None else manager._registry
        # Whether the proxy is within the server, in another of its objects. It then holds no reference from outside.
        self._owned_by_manager = manager_owned
        if authkey is None:
            authkey = process.current_process().authkey if manager is None else manager._authkey
        self._authkey = process.AuthenticationString(authkey)
        self._Client = listener_client[serializer][1]
        self._peer = _Peer(token.address, self._authkey, self._Client)
        self._generation = _generation
        if incref:
            self._incref()
        util.register_after_fork(self, BaseProxy._after_fork)

    def _connect(self):
        """Open this thread's connection."""
        self._peer.line()

    def _callmethod(self, methodname, args=(), kwds=None):
        """Call a method of the object; returns a copy of the result, or a proxy if the method is known to give one."""
        if self._generation != _generation:
            self._after_fork()
        line = self._peer.line()
        try:
            kind, result = line.exchange((self._id, methodname, args, kwds or {}))
        finally:
            if line.spare:
                line.close()
        if kind != "#PROXY":
            try:
                return _result_of(kind, result)
            finally:
                del result
        exposed, token = result
        # The server may know itself under another address than we do.
        token.address = self._token.address
        proxy = self._proxytype(token.typeid)(
            token, self._serializer, manager=self._manager, authkey=self._authkey, exposed=exposed
        )
        # The reference that the server kept for us until the proxy had its own.
        self._peer.ask("decref", (token.id,))
        return proxy

    def _proxytype(self, typeid):
        registry = self._registry
        if registry is None:
            # Unpickled: its manager is in another process. Most managers have the standard types.
            from .managers import SyncManager

            registry = SyncManager._registry
        return registry[typeid][-1] if typeid in registry else AutoProxy

    def _getvalue(self):
        """A copy of the object."""
        return self._callmethod("#GETVALUE")

    def _incref(self):
        if self._owned_by_manager:
            util.debug("owned_by_manager skipped INCREF of %r", self._id)
            return
        self._peer.ask("incref", (self._id,), keep=True)
        util.debug("INCREF %r", self._id)
        self._hold()

    def _hold(self):
        """See to it that the reference is given back."""
        reference = self._id, object()
        self._peer.references.add(reference)
        state = self._manager._state if self._manager else None
        self._close = util.Finalize(self, BaseProxy._decref, args=(reference, self._peer, state), exitpriority=10)

    @staticmethod
    def _decref(reference, peer, state):
        """Give the reference back, unless the manager has been shut down."""
        peer.references.discard(reference)
        if state is None or state.value == state.STARTED:
            util.debug("DECREF %r", reference[0])
            try:
                peer.ask("decref", reference[:1])
            except Exception as error:
                util.debug("... decref failed %s", error)
        else:
            util.debug("DECREF %r -- manager already shutdown", reference[0])
        if not peer.references:
            util.debug("thread %r has no more proxies so closing conn", threading.current_thread().name)
            peer.hang_up()

    def _after_fork(self):
        self._manager = None
        if self._generation == _generation and self._close is not None:
            # Unpickled in this very process, a child of the fork server, which then cleared the finalizers.
            self._hold()
            return
        self._generation = _generation
        try:
            self._incref()
        except Exception as error:
            # Many have a proxy that is of no use to them: of a manager that has been shut down, perhaps.
            util.info("incref failed: %s", error)

    def __reduce__(self):
        kwds = {}
        if get_spawning_popen() is not None:
            kwds["authkey"] = self._authkey
        kind = type(self)
        if getattr(self, "_isauto", False):
            kind, kwds["exposed"] = AutoProxy, self._exposed_
        return RebuildProxy, (kind, self._token, self._serializer, kwds)

    def __deepcopy__(self, memo):
        return self._getvalue()

    def __repr__(self):
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self):
        """The `repr` of the object, or if it can't be asked, of the proxy."""
        try:
            return self._callmethod("__repr__")
        except Exception:
            return f"{repr(self)[:-1]}; '__str__()' failed>"


def _forget_parents_lines():
    # "Forked". Only this thread is left in the child, so only its lines are there.
    global _generation
    _generation += 1
    BaseProxy._mutex._at_fork_reinit()
    for tls, references in BaseProxy._address_to_local.values():
        tls.__dict__.clear()
        references.clear()
    _presences_lock._at_fork_reinit()
    _presences.clear()


os.register_at_fork(after_in_child=_forget_parents_lines)


def RebuildProxy(func, token, serializer, kwds):
    """The proxy that was pickled, made by `func`. Within the object's own server it holds the object from inside."""
    current = process.current_process()
    server = getattr(current, "_manager_server", None)
    if server is not None and server.address == token.address:
        # "Nested".
        util.debug("Rebuild a proxy owned by manager, token=%r", token)
        proxy = func(token, serializer, manager_owned=True, **kwds)
        server.keep(proxy)
        return proxy
    incref = kwds.pop("incref", True)
    if not (incref and getattr(current, "_inheriting", False)):
        return func(token, serializer, incref=incref, **kwds)
    # A child that is given a proxy has to come up even if it can't reach the manager.
    proxy = func(token, serializer, incref=False, **kwds)
    proxy._after_fork()
    return proxy


_proxy_types = {}


def _forwarder(name):
    def method(self, /, *args, **kwds):
        return self._callmethod(name, args, kwds)

    method.__name__ = name
    method.__doc__ = f"Call `{name}` of the shared object."
    return method


def MakeProxyType(name, exposed, _cache=_proxy_types):
    """A type of proxies with the methods named in `exposed`."""
    exposed = tuple(exposed)
    # Its proxies can be pickled if it is stored under its name where it was made.
    module = sys._getframe(1).f_globals.get("__name__", __name__)
    made = _cache.get((module, name, exposed))
    if made is None:
        members = {"_exposed_": exposed, "__module__": module}
        for method in exposed:
            members[method] = _forwarder(method)
            members[method].__qualname__ = f"{name}.{method}"
        made = _cache[module, name, exposed] = type(name, (BaseProxy,), members)
    return made


def AutoProxy(token, serializer, manager=None, authkey=None, exposed=None, incref=True, manager_owned=False):
    """A proxy with all the public methods of the object, which the server is asked for if they aren't given."""
    if authkey is None:
        authkey = process.current_process().authkey if manager is None else manager._authkey
    if exposed is None:
        exposed = _Peer(token.address, authkey, listener_client[serializer][1]).ask("get_methods", (token,))
    made = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = made(token, serializer, manager=manager, authkey=authkey, incref=incref, manager_owned=manager_owned)
    proxy._isauto = True
    return proxy
