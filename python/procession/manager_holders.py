"""What clients hold of the locks in a manager's server, and what becomes of it when they die.

Each object that one can hold, or wait for, has a guard, which does the calls that matter: it writes down who holds
what, and waits in slices, between which it looks whether anybody still wants the answer. MANAGERS.md, "Deaths", has
the rules; names in quotes are its scenarios.
"""

import contextlib
import functools
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
import warnings
import weakref

from . import util

__all__ = ["Clients", "guard_of"]

# How long a wait sleeps before it looks whether its client is still there: in seconds, at first and at most.
_FIRST_SLICE, _LONGEST_SLICE = 0.02, 0.5

_lock_type, _rlock_type = type(threading.Lock()), type(threading.RLock())


class Gone(SystemExit):
    """Nobody waits for the answer any more, and nothing was taken: the thread that serves the line ends."""


class _Client:
    """A process with lines to the server.

    `sentinel` is a descriptor that becomes readable at the end of the process, -1 if nobody tells of it.
    """

    __slots__ = ("lines", "name", "references", "sentinel")

    def __init__(self, name, sentinel, counts):
        self.name, self.sentinel, self.lines = name, sentinel, 0
        # How often it refers to which objects, by number. None if that isn't known of it.
        self.references = {} if counts else None

    def is_gone(self):
        return _is_readable(self.sentinel)


def _is_readable(descriptor, milliseconds=0):
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


class Holder:
    """A thread of a client: who calls over one line. It lives in the thread of the server that belongs to the line."""

    __slots__ = ("_poll", "_released", "client", "held", "undo", "was_cut_short")

    def __init__(self, conn, client):
        self.client = client
        # The guards of what it holds.
        self.held = set()
        # "Undelivered": a function and its arguments, to be called if the reply of the last call doesn't arrive.
        self.undo = None
        # The line was closed in the middle of a call.
        self.was_cut_short = False
        self._poll = select.poll()
        # Its own bells may arrive on the line while a call is under way, so only the end is looked for.
        self._poll.register(conn.fileno(), select.POLLRDHUP)
        self._released = -1

    def has_left(self):
        """Whether the other side of the line was closed."""
        return bool(self._poll.poll(0))

    def stay(self):
        """Raises Gone if nobody waits for the reply any more."""
        if self.has_left():
            self.was_cut_short = True
            raise Gone

    def slices(self, timeout):
        """How long to sleep, again and again until `timeout` is over. Raises Gone if nobody waits any more."""
        end = None if timeout is None else time.monotonic() + timeout
        slice = _FIRST_SLICE
        while True:
            left = slice if end is None else min(slice, end - time.monotonic())
            if left <= 0:
                return
            yield left
            self.stay()
            slice = min(2 * slice, _LONGEST_SLICE)

    def take_back(self):
        """Nobody learns of what the last call did: undo it."""
        self.was_cut_short = True
        undo, self.undo = self.undo, None
        if undo is not None:
            undo[0](*undo[1:])

    def let_go(self, guard):
        """It doesn't hold that any more."""
        self.held.discard(guard)
        if not self.held and self._released >= 0:
            with _bells:
                if self._released >= 0:
                    os.eventfd_write(self._released, 1)

    def linger(self):
        """The line has ended: if the process has, too, or once it has, give back what is held."""
        sentinel = -1 if self.client is None else self.client.sentinel
        if self.was_cut_short and not _is_readable(sentinel, 1000):
            # "Call cut short": what belongs to this thread alone nobody could ever release.
            self._recover((guard for guard in list(self.held) if guard.is_thread_bound), "closed its line in a call")
        if not self.held:
            return
        if sentinel < 0:
            # "At a distance".
            names = ", ".join(map(_name, list(self.held)))
            util.info("a thread of a client has left with %s, or the client died: nobody can tell", names)
            return
        self._released = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            poll = select.poll()
            poll.register(sentinel, select.POLLIN)
            poll.register(self._released, select.POLLIN)
            # "Thread ended": others may still release it.
            while self.held and not any(descriptor == sentinel for descriptor, _ in poll.poll()):
                os.eventfd_read(self._released)
            self._recover(list(self.held), "died")
        finally:
            with _bells:
                released, self._released = self._released, -1
            os.close(released)

    def _recover(self, guards, how):
        who = "a client" if self.client is None else self.client.name
        for guard in guards:
            guard.recover(self, f"{who} {how}")


# Held to ring at a thread that lingers, which may be just about to leave.
_bells = threading.Lock()


def _name(guard):
    name = type(guard.obj).__name__
    return "Lock" if name == "lock" else name


class Clients:
    """The processes that have lines to the server."""

    def __init__(self, release):
        """`release` is called with the references of a client that is dead."""
        self._mutex = threading.Lock()
        self._release = release
        # By pid, or by what a client at a distance calls itself.
        self._known = {}

    @contextlib.contextmanager
    def line(self, conn):
        """For as long as the line on `conn` is there: its Holder."""
        holder = Holder(conn, self._local(conn))
        try:
            yield holder
        finally:
            conn.close()
            if holder.held:
                holder.linger()
            self._leave(holder.client)

    def _local(self, conn):
        """The process at the other end of a Unix socket; it waits for our answer, so its pid is its own."""
        pid = _peer_of(conn)
        if not pid:
            return None
        with self._mutex:
            client = self._known.get(pid)
            if client is None or client.is_gone():
                try:
                    sentinel = os.pidfd_open(pid)
                except OSError as error:
                    util.info("can't watch process %d: %s", pid, error)
                    return None
                client = self._known[pid] = _Client(f"process {pid}", sentinel, True)
            client.lines += 1
            return client

    @contextlib.contextmanager
    def presence(self, identity, name):
        """For as long as a client at a distance keeps its connection for that: it is there."""
        sentinel = os.eventfd(0, os.EFD_CLOEXEC)
        # Its requests that come on a connection of their own couldn't be told from another's.
        client = _Client(name, sentinel, False)
        client.lines += 1
        with self._mutex:
            self._known[identity] = client
        try:
            yield
        finally:
            with self._mutex:
                if self._known.get(identity) is client:
                    del self._known[identity]
            os.eventfd_write(sentinel, 1)
            self._leave(client)

    def identify(self, holder, identity):
        """A line says of which client at a distance it is. Returns whether that is known."""
        with self._mutex:
            client = self._known.get(identity)
            if client is None or holder.client is not None:
                return False
            client.lines += 1
            holder.client = client
            return True

    def count(self, holder, conn, ident, change):
        """A client has a reference more or less than before; `holder` is None if `conn` is no line.

        One that isn't known as yet, as it has no line, is not counted: what is noted may be too little, never too much.
        """
        if holder is None:
            # The server's own process may ask without a connection.
            client = self._known.get(_peer_of(conn)) if hasattr(conn, "fileno") else None
            if client is not None and client.is_gone():
                # Another process has its pid by now.
                client = None
        else:
            client = holder.client
        if client is None or client.references is None:
            return
        with self._mutex:
            count = client.references.get(ident, 0) + change
            if count > 0:
                client.references[ident] = count
            else:
                client.references.pop(ident, None)

    def _leave(self, client):
        if client is None:
            return
        with self._mutex:
            client.lines -= 1
            if client.lines:
                return
            stays = bool(client.references)
            if stays:
                # It may have more to do with us: this thread waits for its end.
                client.lines = 1
            else:
                for key in [key for key, known in self._known.items() if known is client]:
                    del self._known[key]
            sentinel = client.sentinel
            client.sentinel = sentinel if stays else -1
        if not stays:
            os.close(sentinel)
            return
        poll = select.poll()
        poll.register(sentinel, select.POLLIN)
        poll.poll()
        with self._mutex:
            references, client.references = client.references, {}
        self._release(references)
        self._leave(client)


def _peer_of(conn):
    """The pid of the process at the other end of a Unix socket; 0 if it has none here, and for other sockets."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        if sock.family == socket.AF_UNIX:
            return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        _keep_alive(sock)
        return 0


def _keep_alive(sock):
    """Have the system look whether a machine that says nothing is still there. It is given up after two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# Guards


class _Guard:
    """Does calls of one object. `calls` names the methods: each takes the Holder and the arguments."""

    calls: dict = {}
    # What else of the object's class has to be as we know it.
    hooks: tuple = ()
    # Whether only the thread that took it can give it back.
    is_thread_bound = False

    def __init__(self, obj):
        self.obj = obj

    @classmethod
    def fits(cls, obj):
        """Whether this knows how the object works: its class may have methods of its own in the place of these."""
        kind = type(obj)
        known = next(base for base in kind.__mro__ if base.__module__ in ("_thread", "queue", "threading"))
        return all(getattr(kind, name, None) is getattr(known, name, None) for name in (*cls.calls, *cls.hooks))

    def forget(self):
        """The object is no longer known."""


class _Held(_Guard):
    """Of what can be held, by threads of clients so and so often each."""

    def __init__(self, obj):
        super().__init__(obj)
        self.holders = {}
        self._mutex = threading.Lock()
        # "Released late": how much was given back that somebody may yet release.
        self._given_back = 0
        self._settling = threading.Lock()

    def forget(self):
        with self._mutex:
            holders, self.holders = self.holders, {}
        for holder in holders:
            holder.let_go(self)

    def acquire(self, holder, /, *args, **kwds):
        obj, limit = self.obj, None
        if args or kwds:
            limit = _limit_of(_acquire_limit, args, kwds)
        if limit is _DIRECTLY:
            taken = obj.acquire(*args, **kwds)
        else:
            taken = obj.acquire(False)
            if not taken:
                taken = any(obj.acquire(True, slice) for slice in holder.slices(limit))
                # Over TCP nothing tells afterwards that the reply was not read.
                if taken:
                    try:
                        holder.stay()
                    except Gone:
                        obj.release()
                        raise
        if taken:
            self._enter(holder)
            holder.undo = self._undo, holder
        return taken

    def _enter(self, holder, count=1):
        if count:
            with self._mutex:
                self.holders[holder] = self.holders.get(holder, 0) + count
                holder.held.add(self)

    def _strike(self, holder, count=1):
        """Count less for a holder. Returns how much, which is no more than there was."""
        with self._mutex:
            had = self.holders.get(holder, 0)
            if had > count:
                self.holders[holder] = had - count
                return count
            if had:
                del self.holders[holder]
        if had:
            holder.let_go(self)
        return had

    def _undo(self, holder):
        if self._strike(holder):
            self._give_back(1)

    def recover(self, holder, how):
        """A client has died: give back what one of its threads held. `how` says it in words."""
        with self._settling:
            count = self._strike(holder, self.holders.get(holder, 0))
            if count and self.is_recoverable():
                # Before it goes on with it somebody may want to know.
                _warn(
                    f"{_name(self)} of a manager recovered: {how} while holding it; "
                    "what it protects may be half changed"
                )
                self._give_back(count)
                self._given_back += count

    def is_recoverable(self):
        """Whether what a dead client held is to be given back."""
        return True

    def _release_by_anybody(self, *args, **kwds):
        with self._settling:
            try:
                return self.obj.release(*args, **kwds)
            except (RuntimeError, ValueError):
                if args or kwds or not self._given_back:
                    raise
                self._given_back -= 1
                return None

    def _give_back(self, count):
        try:
            for _ in range(count):
                self.obj.release()
        except (RuntimeError, ValueError) as error:
            util.info("could not give back %r: %s", self.obj, error)


_DIRECTLY = object()


def _limit_of(limit, args, kwds):
    """How long a call is to wait; `_DIRECTLY` if it doesn't wait, or is to be refused by the object itself."""
    try:
        return limit(*args, **kwds)
    except TypeError:
        return _DIRECTLY


def _acquire_limit(blocking=True, timeout=None):
    if not blocking:
        return _DIRECTLY
    if timeout is None or timeout == -1:
        return None
    return timeout if timeout > 0 else _DIRECTLY


def _warn(text):
    util.sub_warning(text)
    try:
        # Each time, and not once for a text.
        warnings.warn_explicit(text, RuntimeWarning, "procession.managers", 0)
    except RuntimeWarning:
        # Where warnings are errors. This is nobody's but the dead client's.
        print(f"RuntimeWarning: {text}", file=sys.stderr, flush=True)


class _LockGuard(_Held):
    """Of a Lock, which any thread may release."""

    def _enter(self, holder, count=1):
        before, self.holders = self.holders, {holder: 1}
        holder.held.add(self)
        for other in before:
            if other is not holder:
                other.let_go(self)

    def release(self, holder, /, *args, **kwds):
        owner = holder if holder in self.holders else next(iter(self.holders), holder)
        struck = self._strike(owner)
        try:
            return self._release_by_anybody(*args, **kwds)
        except BaseException:
            if struck:
                self._enter(owner)
            raise

    calls = {"acquire": _Held.acquire, "release": release}
    calls |= {"acquire_lock": _Held.acquire, "release_lock": release}


class _SemaphoreGuard(_Held):
    """Of a semaphore. Permits of a dead client come back as long as every client releases what it acquired."""

    def __init__(self, obj):
        super().__init__(obj)
        # "Signals": somebody has released what it had not acquired.
        self._signalling = False

    def release(self, holder, /, *args, **kwds):
        result = self._release_by_anybody(*args, **kwds)
        left = args[0] if args else kwds.get("n", 1)
        # A process is one holder, whichever of its threads acquires and releases.
        client = holder.client
        others = [] if client is None else [other for other in tuple(self.holders) if other.client is client]
        for other in (holder, *others):
            left -= self._strike(other, left) if left else 0
        self._signalling |= left > 0
        return result

    def is_recoverable(self):
        return not self._signalling

    calls = {"acquire": _Held.acquire, "release": release}


class _RLockGuard(_Held):
    """Of an RLock. It belongs to a thread of the server, so only that one calls what is here."""

    is_thread_bound = True

    def release(self, holder, /, *args, **kwds):
        result = self.obj.release(*args, **kwds)
        self._strike(holder)
        return result

    calls = {"acquire": _Held.acquire, "release": release}
    calls |= {"acquire_lock": _Held.acquire, "release_lock": release}


class _ConditionGuard(_Guard):
    """Of a condition. Its lock has a guard of its own."""

    def __init__(self, obj):
        super().__init__(obj)
        # It may also be a proxy of a lock in this very server.
        self.lock = guard_of(obj._lock) or _LockGuard(obj)

    def acquire(self, holder, /, *args, **kwds):
        return self.lock.calls["acquire"](self.lock, holder, *args, **kwds)

    def release(self, holder, /, *args, **kwds):
        return self.lock.calls["release"](self.lock, holder, *args, **kwds)

    def wait(self, holder, /, timeout=None):
        lock = self.lock
        depth = lock.holders.get(holder, 0)
        lock._strike(holder, depth)
        try:
            notified = _wait(self.obj, holder, timeout)
        except Gone:
            # Nobody is going to release it for this thread.
            self._release(depth)
            raise
        except BaseException:
            lock._enter(holder, depth)
            raise
        lock._enter(holder, depth)
        holder.undo = self._abandon, holder, depth, notified
        return notified

    def _abandon(self, holder, depth, notified):
        # "Undelivered".
        if notified:
            self.obj.notify()
        self.lock._strike(holder, depth)
        self._release(depth)

    def _release(self, depth):
        for _ in range(depth):
            self.obj.release()

    calls = {"acquire": acquire, "release": release, "wait": wait}


def _wait(condition, holder, timeout):
    """Wait for a condition whose lock this thread has. Raises Gone, after passing a notification on, if nobody waits.

    The condition's own `wait` can't be done in slices: it leaves the queue before it has the lock again, so what
    is notified in between would be lost.
    """
    if not condition._is_owned():
        raise RuntimeError("cannot wait on un-acquired lock")
    bell = threading.Lock()
    bell.acquire()
    condition._waiters.append(bell)
    saved = condition._release_save()
    notified = False
    try:
        if timeout is None or timeout > 0:
            notified = any(bell.acquire(True, slice) for slice in holder.slices(timeout))
        else:
            notified = bell.acquire(False)
    except Gone:
        pass
    finally:
        condition._acquire_restore(saved)
        if not notified:
            try:
                condition._waiters.remove(bell)
            except ValueError:
                # It was notified while it waited for the lock.
                notified = True
    try:
        holder.stay()
    except Gone:
        if notified:
            condition.notify()
        raise
    return notified


class _EventGuard(_Guard):
    """Of an event."""

    def wait(self, holder, /, timeout=None):
        with self.obj._cond:
            return self.obj.is_set() or _wait(self.obj._cond, holder, timeout)

    calls = {"wait": wait}


class _QueueGuard(_Guard):
    """Of a queue: no item goes to a client that is gone."""

    hooks = ("_get", "_put")

    def get(self, holder, /, *args, **kwds):
        item = self._in_slices(self.obj.get, queue.Empty, self._put_back, holder, args, kwds)
        holder.undo = self._put_back, item
        return item

    def get_nowait(self, holder, /, *args, **kwds):
        item = self.obj.get_nowait(*args, **kwds)
        holder.undo = self._put_back, item
        return item

    def put(self, holder, /, item, *args, **kwds):
        return self._in_slices(functools.partial(self.obj.put, item), queue.Full, None, holder, args, kwds)

    def _in_slices(self, method, not_yet, undo, holder, args, kwds):
        limit = None
        if args or kwds:
            limit = _limit_of(_queue_limit, args, kwds)
            if limit is _DIRECTLY:
                return method(*args, **kwds)
        try:
            return method(False)
        except not_yet:
            pass
        for slice in holder.slices(limit):
            try:
                result = method(True, slice)
            except not_yet:
                continue
            try:
                holder.stay()
            except Gone:
                if undo is not None:
                    undo(result)
                raise
            return result
        raise not_yet

    def _put_back(self, item):
        obj = self.obj
        with obj.not_empty:
            # Other queues keep their items in an order of their own.
            if type(obj)._put is queue.Queue._put and type(obj)._get is queue.Queue._get:
                obj.queue.appendleft(item)
            else:
                obj._put(item)
            obj.not_empty.notify()

    def join(self, holder, /):
        with self.obj.all_tasks_done:
            while self.obj.unfinished_tasks:
                _wait(self.obj.all_tasks_done, holder, None)

    calls = {"get": get, "get_nowait": get_nowait, "put": put, "join": join}


def _queue_limit(block=True, timeout=None):
    if not block:
        return _DIRECTLY
    return timeout if timeout is None or timeout > 0 else _DIRECTLY


_guards: "weakref.WeakValueDictionary[int, _Guard]" = weakref.WeakValueDictionary()
_kinds = (
    (_lock_type, _LockGuard),
    (_rlock_type, _RLockGuard),
    (threading._RLock, _RLockGuard),
    (threading.Semaphore, _SemaphoreGuard),
    (threading.Condition, _ConditionGuard),
    (threading.Event, _EventGuard),
    (queue.Queue, _QueueGuard),
)
_making = threading.RLock()


def guard_of(obj):
    """The guard of an object, the same each time; None for those that can't be held and don't make anyone wait."""
    guard = next((guard for kind, guard in _kinds if isinstance(obj, kind)), None)
    if guard is None or not guard.fits(obj):
        return None
    with _making:
        known = _guards.get(id(obj))
        if known is None:
            known = _guards[id(obj)] = guard(obj)
        return known
