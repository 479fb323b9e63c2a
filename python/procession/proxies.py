"""Proxies of the kinds of objects that SyncManager makes."""

import functools
import time
import types
from collections.abc import MutableMapping, MutableSequence, MutableSet

from .manager_client import BaseProxy, MakeProxyType

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "BarrierProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "NamespaceProxy",
    "PoolProxy",
    "SetProxy",
    "ValueProxy",
]


class IteratorProxy(BaseProxy):
    """A proxy of an iterator or a generator."""

    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self):
        return self

    def __next__(self, *args):
        return self._callmethod("__next__", args)

    def send(self, *args):
        """Continue a generator with a value."""
        return self._callmethod("send", args)

    def throw(self, *args):
        """Raise an exception in a generator."""
        return self._callmethod("throw", args)

    def close(self, *args):
        """End a generator."""
        return self._callmethod("close", args)


class AcquirerProxy(BaseProxy):
    """A proxy of a lock or a semaphore."""

    _exposed_: tuple[str, ...] = ("acquire", "release", "locked")

    def acquire(self, blocking=True, timeout=None):
        """Take it; waits at most `timeout` seconds. Returns whether it was taken."""
        return self._callmethod("acquire", (blocking,) if timeout is None else (blocking, timeout))

    def release(self):
        """Give it back."""
        return self._callmethod("release")

    def locked(self):
        """Whether an `acquire()` would have to wait."""
        return self._callmethod("locked")

    def __enter__(self):
        return self.acquire()

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.release()


class ConditionProxy(AcquirerProxy):
    """A proxy of a condition variable."""

    _exposed_ = (*AcquirerProxy._exposed_, "wait", "notify", "notify_all")

    def wait(self, timeout=None):
        """Wait until notified."""
        return self._callmethod("wait", (timeout,))

    def notify(self, n=1):
        """Wake `n` of those that wait."""
        return self._callmethod("notify", (n,))

    def notify_all(self):
        """Wake all that wait."""
        return self._callmethod("notify_all")

    def wait_for(self, predicate, timeout=None):
        """Wait until `predicate()`, which is called in this process, is true; returns its last result."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result


class EventProxy(BaseProxy):
    """A proxy of an event."""

    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self):
        """Whether it is set."""
        return self._callmethod("is_set")

    def set(self):
        """Set it, and wake all that wait."""
        return self._callmethod("set")

    def clear(self):
        """Unset it."""
        return self._callmethod("clear")

    def wait(self, timeout=None):
        """Wait until it is set. Returns whether it is."""
        return self._callmethod("wait", (timeout,))


def _remote_attribute(name, doc):
    return property(lambda self: self._callmethod("__getattribute__", (name,)), doc=doc)


class BarrierProxy(BaseProxy):
    """A proxy of a barrier."""

    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout=None):
        """Wait for the others."""
        return self._callmethod("wait", (timeout,))

    def abort(self):
        """Break it."""
        return self._callmethod("abort")

    def reset(self):
        """Make it as new."""
        return self._callmethod("reset")

    parties = _remote_attribute("parties", "How many pass it together.")
    n_waiting = _remote_attribute("n_waiting", "How many wait now.")
    broken = _remote_attribute("broken", "Whether it is broken.")


class NamespaceProxy(BaseProxy):
    """A proxy of a Namespace: its attributes are the namespace's, but for those that begin with an underscore."""

    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key):
        if key.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {key!r}")
        return self._callmethod("__getattribute__", (key,))

    def __setattr__(self, key, value):
        if key.startswith("_"):
            super().__setattr__(key, value)
        else:
            self._callmethod("__setattr__", (key, value))

    def __delattr__(self, key):
        if key.startswith("_"):
            super().__delattr__(key)
        else:
            self._callmethod("__delattr__", (key,))


class ValueProxy(BaseProxy):
    """A proxy of a Value."""

    _exposed_ = ("get", "set")

    def get(self):
        """The value."""
        return self._callmethod("get")

    def set(self, value):
        """Set the value."""
        return self._callmethod("set", (value,))

    value = property(get, set)

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)


def _names(text):
    return tuple(text.split())


def _with_values(proxytype, names):
    """Have operators take proxies of their own kind on the other side, too: by value.

    (In the server a proxy is no list, dict or set; `d | e` of two proxies is a TypeError in the standard package.)
    """
    for name in names:
        setattr(proxytype, name, _with_value(getattr(proxytype, name), proxytype))


def _with_value(method, proxytype):
    @functools.wraps(method)
    def operator(self, other):
        return method(self, other._getvalue() if isinstance(other, proxytype) else other)

    return operator


BaseListProxy = MakeProxyType(
    "BaseListProxy",
    _names(
        "__add__ __contains__ __delitem__ __getitem__ __imul__ __len__ __mul__ __reversed__ __rmul__ __setitem__ "
        "append clear copy count extend index insert pop remove reverse sort"
    ),
)


class ListProxy(BaseListProxy):  # type: ignore[misc, valid-type]
    """A proxy of a list."""

    def __iadd__(self, items):
        self._callmethod("extend", (items,))
        return self

    def __imul__(self, times):
        self._callmethod("__imul__", (times,))
        return self

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)


_with_values(ListProxy, ["__add__"])
MutableSequence.register(BaseListProxy)

_BaseDictProxy = MakeProxyType(
    "DictProxy",
    _names(
        "__contains__ __delitem__ __getitem__ __ior__ __iter__ __len__ __or__ __reversed__ __ror__ __setitem__ "
        "clear copy fromkeys get items keys pop popitem setdefault update values"
    ),
)
_BaseDictProxy._method_to_typeid_ = {"__iter__": "Iterator"}


class DictProxy(_BaseDictProxy):  # type: ignore[misc, valid-type]
    """A proxy of a dict."""

    def __ior__(self, other):
        self._callmethod("update", (other,))
        return self

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)


_with_values(DictProxy, ["__or__", "__ror__"])
MutableMapping.register(_BaseDictProxy)

_BaseSetProxy = MakeProxyType(
    "_BaseSetProxy",
    _names(
        "__and__ __contains__ __ge__ __gt__ __iand__ __ior__ __isub__ __iter__ __ixor__ __le__ __len__ __lt__ __or__ "
        "__rand__ __ror__ __rsub__ __rxor__ __sub__ __xor__ add clear copy difference difference_update discard "
        "intersection intersection_update isdisjoint issubset issuperset pop remove symmetric_difference "
        "symmetric_difference_update union update"
    ),
)
_BaseSetProxy._method_to_typeid_ = {"__iter__": "Iterator"}


def _in_place(operator, method):
    # The operator itself would send the whole set back.
    def change(self, other):
        if not isinstance(other, (set, frozenset, SetProxy)):
            return NotImplemented
        self._callmethod(method, (other._getvalue() if isinstance(other, SetProxy) else other,))
        return self

    change.__name__ = operator
    return change


class SetProxy(_BaseSetProxy):  # type: ignore[misc, valid-type]
    """A proxy of a set."""

    __ior__ = _in_place("__ior__", "update")
    __iand__ = _in_place("__iand__", "intersection_update")
    __isub__ = _in_place("__isub__", "difference_update")
    __ixor__ = _in_place("__ixor__", "symmetric_difference_update")

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)


_with_values(
    SetProxy,
    _names("__and__ __ge__ __gt__ __le__ __lt__ __or__ __rand__ __ror__ __rsub__ __rxor__ __sub__ __xor__"),
)
MutableSet.register(_BaseSetProxy)

ArrayProxy = MakeProxyType("ArrayProxy", _names("__len__ __getitem__ __setitem__"))

BasePoolProxy = MakeProxyType(
    "PoolProxy",
    _names("apply apply_async close imap imap_unordered join map map_async starmap starmap_async terminate"),
)
BasePoolProxy._method_to_typeid_ = {
    **dict.fromkeys(("apply_async", "map_async", "starmap_async"), "AsyncResult"),
    **dict.fromkeys(("imap", "imap_unordered"), "Iterator"),
}


class PoolProxy(BasePoolProxy):  # type: ignore[misc, valid-type]
    """A proxy of a pool."""

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()
