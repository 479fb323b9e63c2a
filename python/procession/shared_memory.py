"""Shared memory with a name, that any process can attach to, and a list of plain values kept in it."""

import errno
import functools
import os
import struct
import types
import warnings
from collections.abc import Callable

from . import mapping, resource_tracker

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_O_CREX = os.O_CREAT | os.O_EXCL
_SHM_NAME_PREFIX = "/psm_"
# Some systems allow no more.
_SHM_SAFE_NAME_LENGTH = 14
# Where `shm_open` of the C library has the files.
_DIRECTORY = "/dev/shm"


def _make_filename():
    """A new random name."""
    space = _SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)
    if space < 4:
        raise AssertionError(f"the prefix {_SHM_NAME_PREFIX!r} leaves too little of {_SHM_SAFE_NAME_LENGTH} characters")
    return _SHM_NAME_PREFIX + os.urandom(space // 2).hex()


def _path_of(name):
    if "\0" in name:
        raise ValueError(f"the name {name!r} of shared memory has an embedded null character")
    bare = name.lstrip("/")
    if not bare or "/" in bare:
        raise OSError(errno.EINVAL, "Invalid argument: the name of shared memory is that of a file, not a path", name)
    return f"{_DIRECTORY}/{bare}"


def _shm_open(path, flags, mode=0o777):
    try:
        return os.open(_path_of(path), flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except IsADirectoryError:
        raise OSError(errno.EINVAL, "Invalid argument: the name is that of a folder", path) from None


def _shm_unlink(path):
    os.unlink(_path_of(path))


# Programs that do their own unlinking call the functions of this module.
_posixshmem = types.SimpleNamespace(shm_open=_shm_open, shm_unlink=_shm_unlink)


# From this size on it is worth a look at how much there is at all.
_LARGE = 1 << 20


def _warn_if_too_large(size):
    space = os.statvfs(_DIRECTORY)
    total = space.f_blocks * space.f_frsize
    if size > total:
        warnings.warn(
            f"shared memory of {size} bytes is more than all of {_DIRECTORY} ({total} bytes): "
            "writing more than there is ends the process with SIGBUS",
            RuntimeWarning,
            stacklevel=3,
        )


def _forget(name):
    """Tell the tracker that a name is unlinked, whoever registered it, if there is a tracker who could have it."""
    if resource_tracker._resource_tracker._is_running():
        resource_tracker.unregister(name, "shared_memory")


def _remove(name):
    """Unlink shared memory by the name that its objects show."""
    name = f"/{name}"
    try:
        _shm_unlink(name)
    finally:
        _forget(name)


class SharedMemory:
    """A block of memory under a name; made with `create`, otherwise attached to.

    Each process that has it calls `close()` when it is done, and one of them, any, `unlink()`. If they all end without
    that, the tracker of the process that made it unlinks it. One that attaches leaves it alone, unless it says
    `track=True`; `track=False` keeps the tracker out of it altogether.
    """

    # So that close() and unlink() work on an object whose making failed.
    _name = None
    _fd = -1
    _mmap = None
    _buf = None
    _size = 0
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True
    # Of the class, as close() may be called when the interpreter has already cleared this module.
    _close_descriptor = staticmethod(os.close)

    def __init__(self, name=None, create=False, size=0, *, track=None):
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
            self._flags = os.O_RDWR | _O_CREX
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        # None: not registered here, but by the one that made it.
        self._track = True if create and track is None else track
        if name is None:
            self._open_under_new_name()
        else:
            self._open("/" + name if self._prepend_leading_slash else name)
        try:
            if create:
                os.truncate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mapping.Mapping.of(self._fd, self._size)
            self._buf = memoryview(self._mmap)
            if create and size >= _LARGE:
                _warn_if_too_large(size)
            if self._track:
                resource_tracker.register(self._name, "shared_memory")
        except BaseException:
            self.close()
            # Others' memory stays, even if it is of no use to us.
            if self._flags & os.O_EXCL:
                _shm_unlink(self._name)
            raise

    def _open(self, name):
        self._fd = _shm_open(name, self._flags, self._mode)
        self._name = name

    def _open_under_new_name(self):
        while self._name is None:
            try:
                self._open(_make_filename())
            except FileExistsError:
                continue

    def __del__(self):
        try:
            self.close()
        except OSError:
            pass

    def __reduce__(self):
        return type(self), (self.name, False, self.size)

    def __repr__(self):
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self):
        """The bytes, a memoryview. None when closed."""
        return self._buf

    @property
    def name(self):
        """The name to attach by."""
        return self._name[1:] if self._prepend_leading_slash and self._name.startswith("/") else self._name

    @property
    def size(self):
        """The number of bytes."""
        return self._size

    def close(self):
        """Let go of the memory in this process.

        What others still have of it, views of `buf` and arrays over it, stays valid; the memory is let go of with the
        last of them. The descriptor is closed at once.
        """
        fd, self._fd = self._fd, -1
        mapped, self._mmap, self._buf = self._mmap, None, None
        # Neither is the view released nor the memory unmapped by force: NumPy's arrays use it without an export that
        # would forbid that.
        if hasattr(mapped, "fd"):
            mapped.fd = -1
        if fd >= 0:
            self._close_descriptor(fd)

    def unlink(self):
        """Take the name away. The memory goes when the last process that has it has closed it, or ended."""
        if self._name:
            _shm_unlink(self._name)
            if self._track:
                resource_tracker.unregister(self._name, "shared_memory")
            elif self._track is None:
                _forget(self._name)


_encoding = "utf8"
_WORD = 8
# How each type is stored. The numbers say how it is read back, see `_READERS`.
_PLAIN, _STR, _BYTES, _NONE = range(4)


class ShareableList:
    """A list in shared memory, of int (64 bits), float, bool, str, bytes and None.

    Its length is fixed, and an item of str or bytes can be replaced by one that needs no more bytes than were reserved
    for it, a multiple of 8. Null bytes at the end of an item are lost.
    """

    # In memory are, one after the other: the number of items; where each begins in the data, and the data's length; the
    # data; the struct format of each item; the number by which it is read. These are words of 8 bytes, but for the data
    # and for the last, which are bytes.
    _types_mapping = {int: "q", float: "d", bool: "xxxxxxx?", str: "%ds", bytes: "%ds", type(None): "xxxxxx?x"}
    _alignment = _WORD
    _back_transforms_mapping = {
        _PLAIN: lambda value: value,
        _STR: lambda value: value.rstrip(b"\0").decode(_encoding),
        _BYTES: lambda value: value.rstrip(b"\0"),
        _NONE: lambda value: None,
    }

    def __init__(self, sequence=None, *, name=None):
        if name is not None and sequence is None:
            self.shm = SharedMemory(name)
            try:
                self._read_layout()
            except BaseException:
                self.shm.close()
                raise
            return
        items = list(sequence or ())
        encoded = [_encoded(item) for item in items]
        formats = [self._format_for(item, data) for item, data in zip(items, encoded, strict=True)]
        count = len(items)
        offset, offsets = 0, [0]
        for form in formats:
            offset += int(form[:-1]) if form[-1] == "s" else _WORD
            offsets.append(offset)
        self._set_layout(count, offsets)
        self.shm = SharedMemory(name, create=True, size=self._codes_at + count)
        buf = self.shm.buf
        struct.pack_into(f"{count + 2}q", buf, 0, count, *offsets)
        struct.pack_into("".join(formats), buf, self._data_at, *encoded)
        buf[self._formats_at : self._codes_at] = b"".join([_padded(form) for form in formats])
        buf[self._codes_at : self._codes_at + count] = bytes(map(self._extract_recreation_code, items))

    def _read_layout(self):
        # Whatever has this name may not be a list.
        buf, size = self.shm.buf, self.shm.size
        count = struct.unpack_from("q", buf)[0] if size >= _WORD else -1
        if not 0 <= count <= (size - 2 * _WORD) // (3 * _WORD + 1):
            raise ValueError(f"the shared memory {self.shm.name!r} does not hold a ShareableList")
        self._set_layout(count, list(struct.unpack_from(f"{count + 1}q", buf, _WORD)))
        offsets = self._allocated_offsets
        rising = offsets == sorted(offsets) and offsets[0] == 0
        if not rising or self._codes_at + count > size:
            raise ValueError(f"the shared memory {self.shm.name!r} does not hold a ShareableList")

    def _set_layout(self, count, offsets):
        self._list_len, self._allocated_offsets = count, offsets
        # For good: neither the number of items nor their places ever change.
        self._data_at = self._offset_data_start
        self._formats_at = self._offset_packing_formats
        self._codes_at = self._offset_back_transform_codes

    def _format_for(self, item, encoded):
        form = self._types_mapping.get(type(item))
        if form is None and isinstance(item, (str, bytes)):
            form = self._types_mapping[bytes]
        if form is None:
            raise KeyError(f"a ShareableList holds int, float, bool, str, bytes and None, not {type(item).__name__}")
        if form[0] != "%":
            return form
        # By characters, as the standard package does it; that can be too little for what isn't ASCII.
        words = max(len(item) // _WORD + 1, -(-len(encoded) // _WORD))
        form %= _WORD * words
        if len(form) > _WORD:
            raise AssertionError(f"an item of {len(encoded)} bytes is too long for a ShareableList")
        return form

    @staticmethod
    def _extract_recreation_code(value):
        """The number by which a value is read back."""
        if value is None:
            return _NONE
        return _STR if isinstance(value, str) else _BYTES if isinstance(value, bytes) else _PLAIN

    def _at(self, position):
        """The position counted from the front. Raises IndexError if there is none."""
        found = position + self._list_len if position < 0 else position
        if not 0 <= found < self._list_len:
            raise IndexError("Requested position out of range.")
        return found

    def _get_packing_format(self, position):
        """The struct format of an item."""
        start = self._offset_packing_formats + self._at(position) * _WORD
        return bytes(self.shm.buf[start : start + _WORD]).rstrip(b"\0").decode(_encoding)

    def _get_back_transform(self, position):
        """The function that makes an item of what was unpacked."""
        return self._back_transforms_mapping[self.shm.buf[self._offset_back_transform_codes + self._at(position)]]

    def _set_packing_format_and_transform(self, position, fmt_as_str, value):
        """Set how an item is stored, for a value of the type of this one."""
        position = self._at(position)
        struct.pack_into("8s", self.shm.buf, self._offset_packing_formats + position * _WORD, _encoded(fmt_as_str))
        self.shm.buf[self._offset_back_transform_codes + position] = self._extract_recreation_code(value)

    def __getitem__(self, position):
        at = position + self._list_len if position < 0 else position
        if not 0 <= at < self._list_len:
            raise IndexError("index out of range")
        buf = self.shm.buf
        stored = _reader_at(buf, self._formats_at + at * _WORD)(buf, self._data_at + self._allocated_offsets[at])[0]
        code = buf[self._codes_at + at]
        return stored if code == _PLAIN else self._back_transforms_mapping[code](stored)

    def __iter__(self):
        return map(self.__getitem__, range(self._list_len))

    def __setitem__(self, position, value):
        at = position + self._list_len if position < 0 else position
        if not 0 <= at < self._list_len:
            raise IndexError("assignment index out of range")
        buf = self.shm.buf
        start = self._allocated_offsets[at]
        if isinstance(value, (str, bytes)):
            encoded = _encoded(value)
            room = self._allocated_offsets[at + 1] - start
            if len(encoded) > room:
                raise ValueError("bytes/str item exceeds available storage")
            now = self._get_packing_format(at)
            form = now if now.endswith("s") else self._types_mapping[bytes] % room
        else:
            encoded, form = value, self._format_for(value, value)
        # Packed first: a value that doesn't fit, like an int of more than 64 bits, leaves the item as it was.
        packed = _packer(form)(encoded)
        start += self._data_at
        form_at = self._formats_at + at * _WORD
        buf[form_at : form_at + _WORD] = _padded(form)
        buf[self._codes_at + at] = self._extract_recreation_code(value)
        buf[start : start + len(packed)] = packed

    def __reduce__(self):
        return functools.partial(type(self), name=self.shm.name), ()

    def __len__(self):
        return struct.unpack_from("q", self.shm.buf, 0)[0]

    def __repr__(self):
        return f"{type(self).__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self):
        """The struct format of all items together."""
        return "".join(map(self._get_packing_format, range(self._list_len)))

    @property
    def _format_size_metainfo(self):
        return "q" * (self._list_len + 1)

    @property
    def _format_packing_metainfo(self):
        return "8s" * self._list_len

    @property
    def _format_back_transform_codes(self):
        return "b" * self._list_len

    @property
    def _offset_data_start(self):
        return (self._list_len + 2) * _WORD

    @property
    def _offset_packing_formats(self):
        return self._offset_data_start + self._allocated_offsets[-1]

    @property
    def _offset_back_transform_codes(self):
        return self._offset_packing_formats + self._list_len * _WORD

    def count(self, value):
        """How many items are equal to the value."""
        return sum(value == item for item in self)

    def index(self, value):
        """The first position at which there is an item equal to the value. Raises ValueError if there is none."""
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f"{value!r} not in this container")

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)


def _encoded(item):
    return item.encode(_encoding) if isinstance(item, str) else item


# How to read and write the formats that were met. Those of texts differ with their length, so not all are kept.
_read_format = struct.Struct("8s").unpack_from
_readers: dict[bytes, Callable] = {}


def _reader_at(buf, place):
    """What reads an item whose format is at a place of the buffer."""
    (padded,) = _read_format(buf, place)
    found = _readers.get(padded)
    if found is None:
        found = struct.Struct(padded.rstrip(b"\0")).unpack_from
        if len(_readers) < 1000:
            _readers[padded] = found
    return found


@functools.lru_cache(1000)
def _packer(form):
    return struct.Struct(form).pack


@functools.lru_cache(1000)
def _padded(form):
    """A format as it is stored."""
    return form.encode().ljust(_WORD, b"\0")
