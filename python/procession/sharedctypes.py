"""ctypes objects in shared memory, bare or with a lock."""

import ctypes
import weakref

from . import _core, get_context, heap, reduction, synchronize
from .context import assert_spawning

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

# Each class by the letter that `array` and `struct` have for it.
typecode_to_type = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def _type_of(typecode_or_type):
    if not isinstance(typecode_or_type, str):
        return typecode_or_type
    try:
        return typecode_to_type[typecode_or_type]
    except KeyError:
        *codes, last = typecode_to_type
        raise TypeError(
            f"bad typecode (must be a ctypes type or one of {', '.join(codes)} or {last}): {typecode_or_type!r}"
        ) from None


def _new_value(type_):
    return rebuild_ctype(type_, heap.BufferWrapper(ctypes.sizeof(type_)), None)


def _new_zeros(type_):
    obj = _new_value(type_)
    # The heap gives blocks out again as they are.
    ctypes.memset(ctypes.addressof(obj), 0, ctypes.sizeof(obj))
    return obj


def RawValue(typecode_or_type, *args):
    """A ctypes object in shared memory, initialized with `args`."""
    obj = _new_zeros(_type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type, size_or_initializer):
    """A ctypes array in shared memory: of so many zeros, or with these items."""
    item = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_zeros(item * size_or_initializer)
    obj = _new_value(item * len(size_or_initializer))
    obj.__init__(*size_or_initializer)
    return obj


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """A ctypes object in shared memory with a lock: a new RLock, or the one given. With `lock=False` without."""
    return _with_lock(RawValue(typecode_or_type, *args), lock, ctx)


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """A ctypes array in shared memory with a lock: a new RLock, or the one given. With `lock=False` without."""
    return _with_lock(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def _with_lock(obj, lock, ctx):
    if lock is False:
        return obj
    if lock in (True, None):
        ctx = ctx or get_context()
        lock = ctx.RLock()
    elif not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire': a lock is needed, or True or False")
    return synchronized(obj, lock, ctx=ctx)


def copy(obj):
    """A copy of a ctypes object, in shared memory."""
    made = _new_value(type(obj))
    ctypes.pointer(made)[0] = obj
    return made


def synchronized(obj, lock=None, ctx=None):
    """A wrapper that takes a lock for each access to a ctypes object."""
    if isinstance(obj, SynchronizedBase):
        raise AssertionError("object already synchronized")
    ctx = ctx or get_context()
    if isinstance(obj, ctypes._SimpleCData):
        wrapper = Synchronized
    elif isinstance(obj, ctypes.Array):
        wrapper = SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray
    else:
        wrapper = _wrapper_of(type(obj))
    return wrapper(obj, lock, ctx)


def _wrapper_of(structure):
    """The wrapper for a Structure: it has the fields as properties."""
    made = class_cache.get(structure)
    if made is None:
        fields = {field[0]: make_property(field[0]) for field in structure._fields_}
        made = class_cache[structure] = type(f"Synchronized{structure.__name__}", (SynchronizedBase,), fields)
        made._own_methods()
    return made


# Pickling, for children that are being started


def reduce_ctype(obj):
    """How an object is handed to a child: its type, and the block that it is in."""
    assert_spawning(obj)
    type_, lengths = type(obj), []
    # Array types have no names to be found by. (Those that were derived do.)
    while issubclass(type_, ctypes.Array) and type_ is type_._type_ * type_._length_:
        lengths.append(type_._length_)
        type_ = type_._type_
    return rebuild_ctype, (type_, obj._wrapper, lengths[0] if len(lengths) == 1 else lengths or None)


def rebuild_ctype(type_, wrapper, length):
    """The object of a type that is in a block; with a length, an array of that type, with several, of such arrays."""
    if length is not None:
        for count in [length] if isinstance(length, int) else reversed(length):
            type_ = type_ * count
    reduction.register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    # The block is given back with the object.
    obj._wrapper = wrapper
    return obj


# Wrappers

prop_cache: dict[str, object] = {}
class_cache: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()

# The native wrapper reads and writes these itself, by their letter.
_numbers: dict[type, str] = {
    type_: vars(type_)["_type_"] for code, type_ in typecode_to_type.items() if code not in "cu"
}


def _format_of(obj):
    """The letter of an object's items if they are numbers, and lie in memory that stays where it is."""
    type_ = obj._type_ if isinstance(obj, ctypes.Array) else type(obj)
    # Memory of its own `ctypes.resize()` may move.
    return None if getattr(obj, "_b_needsfree_", 1) else _numbers.get(type_)


def make_property(name):
    """A descriptor, for wrappers, of an attribute of the wrapped object: it is read and set with the lock held."""
    made = prop_cache.get(name)
    if made is None:
        made = prop_cache[name] = _core.synchronized_property(name)
    return made


class SynchronizedBase(_core.Synchronized):
    """A ctypes object in shared memory and its lock.

    To hold the lock for longer than one access: `with`, or `acquire()` and `release()`.
    """

    def __init__(self, obj, lock=None, ctx=None):
        if not lock:
            lock = (ctx or get_context()).RLock()
        native = type(lock) in (synchronize.RLock, synchronize.Lock)
        self._create(obj, lock, _format_of(obj), native)

    def __reduce__(self):
        assert_spawning(self)
        return synchronized, (self._obj, self._lock)

    def get_obj(self):
        """The object itself."""
        return self._obj

    def __repr__(self):
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class Synchronized(SynchronizedBase):
    """A number or a character."""

    value = make_property("value")


class SynchronizedArray(_core.SynchronizedArray, SynchronizedBase):
    """An array."""

    def __getslice__(self, start, stop):
        return self[start:stop]

    def __setslice__(self, start, stop, values):
        self[start:stop] = values


class SynchronizedString(SynchronizedArray):
    """An array of characters: the text up to the first null, or all of it."""

    value = make_property("value")
    raw = make_property("raw")


for _class in (SynchronizedBase, Synchronized, SynchronizedArray, SynchronizedString):
    _class._own_methods()
