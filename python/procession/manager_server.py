"""The server of a manager: keeps objects, and calls their methods for clients.

MANAGERS.md has the protocol; names in quotes are its scenarios.
"""

import array
import collections
import os
import queue
import sys
import threading
import traceback

from . import _core, connection, process, reduction, util
from .manager_client import Token, Wire, listener_client
from .manager_holders import Clients, guard_of
from .manager_lines import SharedLines, receive_first, refuse_memory, unsendable

__all__ = ["Server"]


def all_methods(obj):
    """The names of everything about an object that can be called."""
    return [name for name in dir(obj) if callable(getattr(obj, name))]


def public_methods(obj):
    """The names of an object's methods that don't begin with an underscore."""
    return [name for name in all_methods(obj) if not name.startswith("_")]


class Server:
    """Keeps the objects, and does with them what clients ask for."""

    # What a client may ask of the server itself.
    public = [
        "shutdown",
        "create",
        "accept_connection",
        "get_methods",
        "debug_info",
        "number_of_objects",
        "dummy",
        "incref",
        "decref",
        "accept_client",
        "identify",
    ]

    def __init__(self, registry, address, authkey, serializer):
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        Listener, _ = listener_client[serializer]
        # XML has no exceptions.
        self._errors_as_text = serializer == "xmlrpclib"
        # Without a key: a connection is authenticated in the thread that serves it, so that none holds up the others.
        self.listener = Listener(address=address, backlog=128)
        self.address = self.listener.address
        self.stop_event = threading.Event()
        # By number: the object, the methods exposed, and what kind of proxy the result of a method gets.
        self.id_to_obj = {"0": (None, (), None)}
        # How often each is referred to by clients, ...
        self.id_to_refcount = {}
        # ... and those that other objects here refer to by proxies, with the number of these.
        self.id_to_local_proxy_obj = {}
        self._local_proxies = collections.Counter()
        # Proxies within the server that went away. A garbage collection in any thread adds to it.
        self._dropped = collections.deque()
        self.mutex = threading.Lock()
        self._constructing = threading.Lock()
        # Who calls on which line, and what does the calls of objects that one can hold or wait for ("Deaths").
        self._clients = Clients(self._release)
        self._holders = {}
        self._guards = {}
        # Objects of another server that was at this address have other numbers.
        self._nonce = os.urandom(4).hex()
        self._shared_lines = SharedLines(self)

    def serve_forever(self):
        """Serve until a client asks for the end, then exit."""
        process.current_process()._manager_server = self
        try:
            threading.Thread(target=self.accepter, daemon=True).start()
            try:
                self.stop_event.wait()
            except (KeyboardInterrupt, SystemExit):
                pass
        finally:
            # Somebody's replacement may not work any more while the process exits.
            if sys.stdout is not sys.__stdout__:
                util.debug("resetting stdout, stderr")
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            sys.exit(0)

    def accepter(self):
        """Give each connection that comes in a thread."""
        while not self.stop_event.is_set():
            try:
                conn = self.listener.accept()
            except OSError:
                # The client gave up, or there are too many descriptors: wait for some to be closed.
                self.stop_event.wait(0.01)
                continue
            threading.Thread(target=self.handle_request, args=(conn,), daemon=True).start()

    def handle_request(self, conn):
        """Serve a new connection."""
        try:
            self._handle_request(conn)
        except SystemExit:
            # A thread that serves a connection ends in this way.
            pass
        finally:
            refuse_memory(conn)
            conn.close()

    def _handle_request(self, conn):
        wire, request = Wire(conn), None
        try:
            _core.authenticate(conn, self.authkey, listener=True, timeout=connection.Listener.patience)
            request = wire.loads(receive_first(conn, wire))
        except Exception:
            message = "#TRACEBACK", traceback.format_exc()
        else:
            message = self._serve_own(conn, request, self.public)
        self._reply(wire, message, "#TRACEBACK")

    def _serve_own(self, conn, request, allowed):
        """Do what is asked of the server itself; returns the message to reply with."""
        try:
            _, name, args, kwds = request
            if name not in allowed:
                raise AssertionError(f"{name!r} unrecognized: the server has {', '.join(allowed)}")
            return "#RETURN", getattr(self, name)(conn, *args, **kwds)
        except _OfAnother as error:
            return _error_message(EOFError(*error.args), self._errors_as_text)
        except Exception:
            return "#TRACEBACK", traceback.format_exc()

    def _reply(self, wire, message, kind_of_failure):
        """Send a message, or say why it can't be sent. Returns whether the client is still there."""
        try:
            data = wire.dumps(message)
        except Exception as error:
            data = wire.dumps(unsendable(message, error, kind_of_failure))
        try:
            wire.send(data)
        except Exception as error:
            util.info("exception in thread serving %r", threading.current_thread().name)
            util.info(" ... message was %r", message)
            util.info(" ... exception was %r", error)
            return False
        return True

    def _own_requests(self):
        """What may be asked of the server itself on a line."""
        return [method for method in self.public if method not in ("accept_connection", "accept_client", "shutdown")]

    def serve_client(self, conn):
        """Serve one thread of a client, until it closes the connection. Then exits the thread."""
        name = threading.current_thread().name
        util.debug("starting server thread to service %r", name)
        wire = Wire(conn)
        receive, loads = wire.receive, wire.loads
        own = self._own_requests()
        # "Popped": it is kept until the client's next call.
        message = None
        while not self.stop_event.is_set():
            try:
                data = receive()
            except (EOFError, OSError, MemoryError) as error:
                util.debug("got %r -- exiting thread serving %r", error, name)
                # The system says so if the other side was closed with a reply unread.
                if isinstance(error, ConnectionResetError):
                    self._take_back(conn)
                sys.exit(0)
            try:
                request = loads(data)
                of_server = request[0] is None
            except Exception:
                request, of_server = None, True
                failure = "#TRACEBACK", traceback.format_exc()
            if not of_server:
                message = self._call(conn, request)
                sent = self._reply(wire, message, "#UNSERIALIZABLE")
            elif request is None:
                sent = self._reply(wire, failure, "#TRACEBACK")
            else:
                sent = self._reply(wire, self._serve_own(conn, request, own), "#TRACEBACK")
            if not sent:
                if not of_server:
                    self._take_back(conn)
                sys.exit(1)
            if self._dropped:
                self._forget_dropped()

    def _call(self, conn, request):
        """Call a method of an object for the line on `conn`; returns the message to reply with.

        Only if `_is_immediate` may another thread do it than the line's own.
        """
        try:
            ident, name, args, kwds = request
            obj, exposed, method_to_typeid = self._entry(ident)
            if name in exposed and (method := getattr(obj, name, None)) is not None:
                guard, holder = self._guards.get(ident), self._holders.get(conn)
                if holder is not None:
                    holder.undo = None
                    if guard is not None and name in guard.calls:
                        method, args = guard.calls[name], (guard, holder, *args)
                try:
                    result = method(*args, **kwds)
                except Exception as error:
                    return _error_message(error, self._errors_as_text)
                typeid = method_to_typeid and method_to_typeid.get(name)
                if not typeid:
                    return "#RETURN", result
                rident, rexposed = self.create(conn, typeid, result)
                return "#PROXY", (rexposed, Token(typeid, self.address, rident))
            fallback = self.fallback_mapping.get(name)
            if fallback is None:
                if name in exposed:
                    raise AttributeError(f"the shared {type(obj).__name__!r} object has no method {name!r}")
                raise AttributeError(f"method {name!r} of {type(obj)!r} object is not in exposed={exposed!r}")
            return "#RETURN", fallback(self, conn, ident, obj, *args, **kwds)
        except _OfAnother as error:
            return _error_message(EOFError(*error.args), self._errors_as_text)
        except Exception:
            return "#TRACEBACK", traceback.format_exc()

    def _take_back(self, conn):
        """Undo what the last call on a line did: nobody learns of it."""
        holder = self._holders.get(conn)
        if holder is not None:
            holder.take_back()

    def _entry(self, ident):
        """What is known of an object: itself, the methods exposed, the kinds of proxies that they return."""
        entry = self.id_to_obj.get(ident)
        if entry is None:
            entry = self.id_to_local_proxy_obj.get(ident)
        if entry is None:
            if str(ident).partition("-")[2] not in ("", self._nonce):
                raise _OfAnother(
                    f"the manager's process that had the object {ident} is gone, and another one listens at its address"
                )
            raise KeyError(f"the manager has no object {ident} any more: its last proxy is gone")
        return entry

    @staticmethod
    def _is_immediate(entry, name, args=()):
        """Whether a call of this method can't wait, ask the server itself, or depend on the thread that does it."""
        immediate = _IMMEDIATE.get(type(entry[0]))
        if immediate is None or name not in immediate:
            return False
        # The items of whatever is assigned to a slice come from anywhere, a proxy perhaps.
        return name != "__setitem__" or not args or not isinstance(args[0], slice)

    def fallback_getvalue(self, conn, ident, obj):
        """The object itself; the client gets a copy."""
        return obj

    def fallback_str(self, conn, ident, obj):
        """The object as text."""
        return str(obj)

    def fallback_repr(self, conn, ident, obj):
        """The object as text for developers."""
        return repr(obj)

    def fallback_locked(self, conn, ident, obj):
        """`locked()` of the locks that have none in this version of Python."""
        lock = getattr(obj, "_lock", obj) if isinstance(obj, threading.Condition) else obj
        if hasattr(lock, "locked"):
            return lock.locked()
        # An RLock lets its owner in.
        if hasattr(lock, "_is_owned") and lock._is_owned():
            return True
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return not taken

    # What all objects have, exposed or not.
    fallback_mapping = {
        "__str__": fallback_str,
        "__repr__": fallback_repr,
        "#GETVALUE": fallback_getvalue,
        "locked": fallback_locked,
    }

    def dummy(self, c):
        """Does nothing, for those who want to know whether there is a server."""

    def debug_info(self, c):
        """The objects as text, with the number of references to each."""
        self._forget_dropped()
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={count}\n    {str(self.id_to_obj[ident][0])[:75]}"
                for ident, count in sorted(self.id_to_refcount.items())
            )

    def number_of_objects(self, c):
        """The number of objects that clients refer to."""
        self._forget_dropped()
        return len(self.id_to_refcount)

    def shutdown(self, c):
        """End the server."""
        util.debug("manager received shutdown message")
        try:
            # The process may be gone before the thread gets to reply.
            c.send(("#RETURN", None))
        except Exception:
            traceback.print_exc()
        finally:
            self.stop_event.set()

    def create(self, c, typeid, /, *args, **kwds):
        """Make an object. Returns its number, which carries a reference, and the names of the exposed methods."""
        callable, exposed, method_to_typeid, _ = self.registry[typeid]
        if callable is None:
            if kwds or len(args) != 1:
                raise ValueError("Without callable, must have one non-keyword argument")
            (obj,) = args
        else:
            # One at a time: many return an object of the server's, and make it when first called.
            with self._constructing:
                obj = callable(*args, **kwds)
        exposed = list(public_methods(obj) if exposed is None else exposed)
        if method_to_typeid is not None:
            if not isinstance(method_to_typeid, dict):
                raise TypeError(f"Method_to_typeid {method_to_typeid!r}: type {type(method_to_typeid)!s}, not dict")
            exposed += method_to_typeid
        # A text, since XML-RPC knows only small integers.
        ident = f"{id(obj):x}-{self._nonce}"
        guard = guard_of(obj)
        util.debug("%r callable returned object with id %r", typeid, ident)
        with self.mutex:
            self.id_to_obj[ident] = obj, set(exposed), method_to_typeid
            if guard is not None:
                self._guards[ident] = guard
            self.id_to_refcount[ident] = self.id_to_refcount.get(ident, 0) + 1
        self._clients.count(self._holders.get(c), c, ident, 1)
        return ident, tuple(exposed)

    def get_methods(self, c, token):
        """The names of the methods of an object that are exposed."""
        return tuple(self._entry(token.id)[1])

    def accept_connection(self, c, name):
        """Serve a thread of a client, on this connection and in this thread."""
        threading.current_thread().name = name
        with self._clients.line(c) as holder:
            self._holders[c] = holder
            try:
                if not self._shared_lines.serve(c):
                    # True says that requests for the server are taken on it too; the standard package's returns None.
                    c.send(("#RETURN", True))
                    self.serve_client(c)
            finally:
                del self._holders[c]

    def accept_client(self, c, identity, name):
        """A client at a distance is there as long as this connection is."""
        with self._clients.presence(identity, name):
            c.send(("#RETURN", True))
            try:
                c.recv_bytes(1)
            except (EOFError, OSError) as error:
                util.debug("client %s has left: %r", name, error)
        sys.exit(0)

    def identify(self, c, identity):
        """Say of which client at a distance a line is. Returns whether that is there."""
        holder = self._holders.get(c)
        return holder is not None and self._clients.identify(holder, identity)

    def incref(self, c, ident):
        """Count one more reference."""
        with self.mutex:
            if ident not in self.id_to_refcount:
                # Only proxies in other objects referred to it, and a client was given one of them.
                self.id_to_obj[ident] = self._entry(ident)
                self.id_to_refcount[ident] = 0
                util.debug("Server re-enabled tracking & INCREF %r", ident)
            self.id_to_refcount[ident] += 1
        self._clients.count(self._holders.get(c), c, ident, 1)

    def decref(self, c, ident):
        """Count one reference less; the object goes with the last."""
        self._clients.count(self._holders.get(c), c, ident, -1)
        self._decref(ident)

    def _release(self, references):
        """Count those of a dead client out."""
        for ident, count in references.items():
            util.debug("%d references to %r were a dead client's", count, ident)
            for _ in range(count):
                try:
                    self._decref(ident)
                except LookupError as error:
                    util.info("... which is gone already: %s", error)

    def _decref(self, ident):
        with self.mutex:
            if ident not in self.id_to_refcount:
                # Either it is there only for proxies in other objects, or it is an error.
                self._entry(ident)
                util.debug("Server DECREF skipping %r", ident)
                return
            self.id_to_refcount[ident] -= 1
            if self.id_to_refcount[ident]:
                return
            del self.id_to_refcount[ident]
            # "Freed under the lock".
            entry = self.id_to_obj.pop(ident)
            guard = self._unguard(ident)
        util.debug("disposing of obj with id %r", ident)
        del entry, guard
        self._forget_dropped()

    def keep(self, proxy):
        """Keep the object of a proxy that is within the server, as long as that proxy is there."""
        ident = proxy._id
        with self.mutex:
            if ident not in self.id_to_local_proxy_obj:
                self.id_to_local_proxy_obj[ident] = self._entry(ident)
            self._local_proxies[ident] += 1
        # "Nested": a collection may call it while this thread has the lock.
        util.Finalize(proxy, self._dropped.append, args=(ident,))

    def _forget_dropped(self):
        # An object that goes may hold the last proxy of another one.
        while self._dropped:
            gone = []
            with self.mutex:
                while self._dropped:
                    ident = self._dropped.popleft()
                    self._local_proxies[ident] -= 1
                    if not self._local_proxies[ident]:
                        del self._local_proxies[ident]
                        gone += self.id_to_local_proxy_obj.pop(ident), self._unguard(ident)
            del gone

    def _unguard(self, ident):
        """Forget the guard of an object that is gone. Returns it: its end is the object's, "Freed under the lock"."""
        if ident in self.id_to_obj or ident in self.id_to_local_proxy_obj:
            return None
        guard = self._guards.pop(ident, None)
        if guard is not None:
            guard.forget()
        return guard


class _OfAnother(LookupError):
    """The object was another server's, which had this address before."""


def _names(text):
    return frozenset(text.split())


# By type of the object: the methods that neither wait, nor call functions or iterate over things of a client's, nor
# depend on the thread. (Comparing and hashing may run code of others too, but that is not known to take time.)
_IMMEDIATE = {
    list: _names(
        "__contains__ __delitem__ __getitem__ __len__ __setitem__ "
        "append clear copy count index insert pop remove reverse"
    ),
    dict: _names(
        "__contains__ __delitem__ __getitem__ __len__ __setitem__ "
        "clear copy get items keys pop popitem setdefault values"
    ),
    set: _names("__contains__ __len__ add clear copy discard pop remove"),
    array.array: _names("__getitem__ __len__ __setitem__"),
    threading.Event: _names("clear is_set set"),
    type(threading.Lock()): _names("locked release"),
    threading.Semaphore: _names("release"),
    threading.BoundedSemaphore: _names("release"),
    **dict.fromkeys((queue.Queue, queue.LifoQueue), _names("empty full get_nowait put_nowait qsize task_done")),
}


def _error_message(error, as_text):
    """The message for an exception: itself, if the client can have it."""
    kind = type(error)
    if as_text:
        return "#TRACEBACK", "".join(traceback.format_exception(error))
    if kind.__init__ is not Exception.__init__ and kind.__module__ != "builtins":
        # Many with an `__init__` of their own can be pickled and not unpickled.
        try:
            reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(error))
        except Exception:
            return "#TRACEBACK", "".join(traceback.format_exception(error))
    return "#ERROR", error
