"""Managers: a process that keeps Python objects for others, which use them through proxies."""

import array
import os
import queue
import signal
import threading

from . import connection, get_context, process, reduction, resource_tracker, shared_memory, util
from .context import ProcessError
from .manager_client import (
    AutoProxy,
    BaseProxy,
    MakeProxyType,
    ProcessLocalSet,
    RebuildProxy,
    RemoteError,
    Token,
    _Peer,
    _presences,
    convert_to_error,
    dispatch,
    listener_client,
)
from .manager_server import _IMMEDIATE, Server, all_methods, public_methods
from .proxies import (
    AcquirerProxy,
    ArrayProxy,
    BarrierProxy,
    BaseListProxy,
    BasePoolProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    ListProxy,
    NamespaceProxy,
    PoolProxy,
    SetProxy,
    ValueProxy,
)

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

# For those who look the names up here, where the standard package has them.
_ELSEWHERE = (
    BaseListProxy,
    BasePoolProxy,
    MakeProxyType,
    ProcessLocalSet,
    RebuildProxy,
    RemoteError,
    all_methods,
    convert_to_error,
    public_methods,
)
HAS_SHMEM = True


def reduce_array(a):
    """How an `array` is pickled: shorter than it pickles itself."""
    return array.array, (a.typecode, a.tobytes())


def rebuild_as_list(obj):
    """How a view of a dict is pickled."""
    return list, (list(obj),)


reduction.register(array.array, reduce_array)
_nothing: dict = {}
view_types = [type(view) for view in (_nothing.items(), _nothing.keys(), _nothing.values())]
for _view_type in view_types:
    reduction.register(_view_type, rebuild_as_list)


class State:
    """How far a manager is."""

    __slots__ = ["value"]
    INITIAL = 0
    STARTED = 1
    SHUTDOWN = 2


class BaseManager:
    """Starts a server process or connects to one, and makes objects there. `register()` says which kinds there are."""

    _registry = {}
    _Server = Server
    _process = None

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, *, shutdown_timeout=1.0):
        self._address = address
        self._authkey = process.AuthenticationString(process.current_process().authkey if authkey is None else authkey)
        self._state = State()
        self._state.value = State.INITIAL
        self._serializer = serializer
        self._Listener, self._Client = listener_client[serializer]
        self._ctx = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout

    @property
    def address(self):
        """Where the server listens."""
        return self._address

    def _check_state(self, wanted):
        state = self._state.value
        if state == wanted:
            return
        if state == State.INITIAL:
            raise ProcessError("the manager has no server yet: call start() or connect()")
        if state == State.STARTED:
            raise ProcessError("Already started server")
        if state == State.SHUTDOWN:
            raise ProcessError("Manager has shut down: make a new one")
        raise ProcessError(f"Unknown state {state!r}")

    def get_server(self):
        """A server for this process to run: it has `serve_forever()` and an `address`."""
        self._check_state(State.INITIAL)
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self):
        """Use the server that listens at the address already."""
        peer = self._peer()
        conn = peer.connect()
        try:
            dispatch(conn, None, "dummy")
        finally:
            conn.close()
        self._state.value = State.STARTED

    def start(self, initializer=None, initargs=()):
        """Start the server, in a process that first calls `initializer(*initargs)`."""
        self._check_state(State.INITIAL)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = connection.Pipe(duplex=False)
        with reader, writer:
            self._process = self._ctx.Process(
                target=type(self)._run_server,
                args=(
                    self._registry,
                    self._address,
                    self._authkey,
                    self._serializer,
                    writer,
                    initializer,
                    initargs,
                ),
            )
            self._process.name = f"{type(self).__name__}-{':'.join(map(str, self._process._identity))}"
            self._process.start()
            # The processes of a context that is not ours, perhaps threads of this one, may have no sentinel. Such a one
            # has this very `writer`, and closes it itself.
            sentinel = getattr(self._process, "_sentinel", None)
            if sentinel is None:
                connection.wait([reader])
            else:
                writer.close()
                # The pipe alone would not tell of its end: another child started just now may have it too.
                connection.wait([reader, sentinel])
            try:
                if not reader.poll():
                    raise EOFError
                self._address = reader.recv()
            except EOFError:
                self._process.join()
                raise EOFError(
                    f"the manager's process ended with exit code {self._process.exitcode} before it could serve; "
                    "it has printed why"
                ) from None
        self._state.value = State.STARTED
        self.shutdown = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(self._process, self._address, self._authkey, self._state, self._Client, self._shutdown_timeout),
            exitpriority=0,
        )

    @classmethod
    def _run_server(cls, registry, address, authkey, serializer, writer, initializer=None, initargs=()):
        """What the server's process does."""
        # Ctrl-C reaches all processes of a terminal. This one is ended by its manager.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Nobody could end it any more if its manager is killed. In another thread it is not a process of its own.
        if threading.current_thread() is threading.main_thread():
            process._end_with_parent()
        with writer:
            if initializer is not None:
                initializer(*initargs)
            server = cls._Server(registry, address, authkey, serializer)
            writer.send(server.address)
        util.info("manager serving at %r", server.address)
        server.serve_forever()

    def _peer(self):
        return _Peer(self._address, self._authkey, self._Client)

    def _create(self, typeid, /, *args, **kwds):
        """Make an object in the server. Returns its token, which carries a reference, and the names of its methods."""
        if self._state.value != State.STARTED:
            raise AssertionError(
                "server not yet started: call start() or connect(), and use the manager until shutdown()"
            )
        ident, exposed = self._peer().ask("create", (typeid, *args), kwds, keep=True)
        return Token(typeid, self._address, ident), exposed

    def join(self, timeout=None):
        """Wait for the end of the server's process, if this manager started one."""
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def _debug_info(self):
        """The server's objects as text."""
        return self._peer().ask("debug_info")

    def _number_of_objects(self):
        """How many objects the server has."""
        return self._peer().ask("number_of_objects")

    def __enter__(self):
        if self._state.value == State.INITIAL:
            self.start()
        self._check_state(State.STARTED)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.shutdown()

    @staticmethod
    def _finalize_manager(process, address, authkey, state, _Client, shutdown_timeout):
        """End the server's process: ask it to end, then have it terminated, then killed."""
        if process.is_alive():
            util.info("sending shutdown message to manager")
            try:
                conn = _Client(address, authkey=authkey)
                try:
                    dispatch(conn, None, "shutdown")
                finally:
                    conn.close()
            except Exception as error:
                util.info("... which failed: %s", error)
            for end in (process.terminate, process.kill):
                process.join(timeout=shutdown_timeout)
                if not process.is_alive():
                    break
                util.info("manager still alive, trying to `%s()` it", end.__name__)
                end()
            else:
                process.join()
        state.value = State.SHUTDOWN
        _Peer(address, authkey, _Client).hang_up()
        BaseProxy._address_to_local.pop(address, None)
        _presences.pop(address, None)

    @classmethod
    def register(cls, typeid, callable=None, proxytype=None, exposed=None, method_to_typeid=None, create_method=True):
        """Make a kind of objects known.

        `callable` makes one. `exposed` names the methods that clients may call, `method_to_typeid` the kinds of those
        whose result stays in the server, with a proxy for the client; both default to what `proxytype` says. With
        `create_method`, the manager gets a method by the name of the kind.
        """
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        if proxytype is None:
            proxytype = AutoProxy
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        if method_to_typeid:
            for name in (name for pair in method_to_typeid.items() for name in pair):
                if type(name) is not str:
                    raise AssertionError(f"{name!r} is not a string, but method_to_typeid is from names to names")
        cls._registry[typeid] = callable, exposed, method_to_typeid, proxytype
        if create_method:
            setattr(cls, typeid, _maker(typeid, proxytype))


def _maker(typeid, proxytype):
    def make(self, /, *args, **kwds):
        util.debug("requesting creation of a shared %r object", typeid)
        token, exposed = self._create(typeid, *args, **kwds)
        try:
            return proxytype(token, self._serializer, manager=self, authkey=self._authkey, exposed=exposed)
        finally:
            # The reference that came with the token; the proxy has its own.
            self._peer().ask("decref", (token.id,))

    make.__name__ = typeid
    make.__doc__ = f"Make a shared object of the kind {typeid!r}; returns its proxy."
    return make


class Namespace:
    """An object for attributes."""

    def __init__(self, /, **kwds):
        self.__dict__.update(kwds)

    def __repr__(self):
        public = sorted(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(public)})"


class Value:
    """An object with a value. Its type code is only shown."""

    def __init__(self, typecode, value, lock=True):
        self._typecode = typecode
        self._value = value

    def get(self):
        """The value."""
        return self._value

    def set(self, value):
        """Set the value."""
        self._value = value

    def __repr__(self):
        return f"{type(self).__name__}({self._typecode!r}, {self._value!r})"

    value = property(get, set)


_IMMEDIATE[Namespace] = frozenset(("__getattribute__", "__setattr__", "__delattr__"))
_IMMEDIATE[Value] = frozenset(("get", "set"))


def Array(typecode, sequence, lock=True):
    """An `array`."""
    return array.array(typecode, sequence)


def Pool(*args, **kwds):
    """A pool of processes, children of the server."""
    from .pool import Pool

    return Pool(*args, **kwds)


class SyncManager(BaseManager):
    """A manager of what threads work with - locks, events, queues - and of lists, dicts, sets and namespaces.

    `Manager()` returns one with its server started.
    """


for _typeid, _callable, _proxytype in (
    ("Queue", queue.Queue, None),
    ("JoinableQueue", queue.Queue, None),
    ("Event", threading.Event, EventProxy),
    ("Lock", threading.Lock, AcquirerProxy),
    ("RLock", threading.RLock, AcquirerProxy),
    ("Semaphore", threading.Semaphore, AcquirerProxy),
    ("BoundedSemaphore", threading.BoundedSemaphore, AcquirerProxy),
    ("Condition", threading.Condition, ConditionProxy),
    ("Barrier", threading.Barrier, BarrierProxy),
    ("Pool", Pool, PoolProxy),
    ("list", list, ListProxy),
    ("dict", dict, DictProxy),
    ("set", set, SetProxy),
    ("Value", Value, ValueProxy),
    ("Array", Array, ArrayProxy),
    ("Namespace", Namespace, NamespaceProxy),
):
    SyncManager.register(_typeid, _callable, _proxytype)
# What methods of a pool, and iter(), return.
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)


class _SharedMemoryTracker:
    """The names of the shared memory that a server is to remove."""

    def __init__(self, name, segment_names=()):
        self.shared_memory_context_name = name
        self.segment_names = list(segment_names)

    def register_segment(self, segment_name):
        """Have this one removed at the end."""
        util.debug("Register segment %r", segment_name)
        self.segment_names.append(segment_name)

    def destroy_segment(self, segment_name):
        """Remove this one now."""
        util.debug("Destroy segment %r", segment_name)
        self.segment_names.remove(segment_name)
        try:
            shared_memory._remove(segment_name)
        except FileNotFoundError:
            util.debug("... which somebody else has unlinked")

    def unlink(self):
        """Remove all."""
        for segment_name in tuple(self.segment_names):
            self.destroy_segment(segment_name)

    def __del__(self):
        self.unlink()

    def __getstate__(self):
        return self.shared_memory_context_name, self.segment_names

    def __setstate__(self, state):
        self.__init__(*state)


class SharedMemoryServer(Server):
    """A server that also keeps account of shared memory, and removes it at its end."""

    public = [*Server.public, "track_segment", "release_segment", "list_segments"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        address = self.address
        if isinstance(address, bytes):
            address = os.fsdecode(address)
        self.shared_memory_context = _SharedMemoryTracker(f"shm_{address}_{os.getpid()}")
        util.debug("SharedMemoryServer started by pid %d", os.getpid())

    def create(self, c, typeid, /, *args, **kwargs):
        """Make an object; one that works with shared memory itself is given the account."""
        if hasattr(self.registry[typeid][-1], "_shared_memory_proxy"):
            kwargs["shared_memory_context"] = self.shared_memory_context
        return super().create(c, typeid, *args, **kwargs)

    def shutdown(self, c):
        """Remove the shared memory and end the server."""
        try:
            self.shared_memory_context.unlink()
        finally:
            super().shutdown(c)

    def track_segment(self, c, segment_name):
        """Take this one into account."""
        self.shared_memory_context.register_segment(segment_name)

    def release_segment(self, c, segment_name):
        """Remove this one now."""
        self.shared_memory_context.destroy_segment(segment_name)

    def list_segments(self, c):
        """The names of all."""
        return self.shared_memory_context.segment_names


class SharedMemoryManager(BaseManager):
    """A manager that makes shared memory and lists in it, which go with the manager."""

    _Server = SharedMemoryServer

    def __init__(self, *args, **kwargs):
        # Before the server is started, so that the two have the same tracker: what one registers the other unlinks.
        resource_tracker.ensure_running()
        super().__init__(*args, **kwargs)

    def SharedMemory(self, size):
        """New shared memory of `size` bytes."""
        self._check_started()
        return self._tracked(shared_memory.SharedMemory(None, create=True, size=size))

    def ShareableList(self, sequence):
        """A new list in shared memory, with these values."""
        self._check_started()
        made = shared_memory.ShareableList(sequence)
        self._tracked(made.shm)
        return made

    def _check_started(self):
        if self._state.value == State.INITIAL:
            # What the standard package raises, without meaning to: it asks None for the server's address.
            raise ValueError("the manager has no server yet: call start() or connect()")

    def _tracked(self, segment):
        try:
            self._peer().ask("track_segment", (segment.name,))
        except BaseException:
            segment.close()
            segment.unlink()
            raise
        return segment
