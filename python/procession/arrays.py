"""NumPy arrays in shared memory: any process that is given one has the same array, not a copy."""

import math
import sys

import numpy as np

from . import _core, context, process, reduction, util

__all__ = ["SharedArray", "shared_array"]

# A process that ends waits so long, at most, for others to fetch what it has sent them.
PATIENCE = 5.0


def shared_array(shape, dtype=float, order="C"):
    """A new array of zeros in shared memory.

    It passes to any other process of this user on this machine without being copied: as an argument of a Process, by a
    Pool, Queue, Pipe or Manager. The same is true of what shares its memory: slices, transposed and reshaped arrays and
    views of fields. What is computed from it, and what `copy()` returns, is an ordinary array.

    The memory is given back when no process has it any more. A pool keeps the arguments of a task until that is done,
    and the results of its workers until you have them. What has been put on a queue or sent through a pipe is kept for
    the receiver as long as the sender lives, and a sender that ends in order waits five seconds for those who fetch
    it: take what a child has put on a queue before you join it.
    """
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"an array of {dtype} can't be shared: its items are references to objects of one process")
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    if any(length < 0 for length in shape):
        raise ValueError("negative dimensions are not allowed")
    size = math.prod(shape) * dtype.itemsize
    if size > sys.maxsize:
        raise MemoryError(f"there is not enough memory for a shared array of {size} bytes")
    return np.ndarray.__new__(SharedArray, shape, dtype, _core.ArrayMemory(size), 0, None, order)


class SharedArray(np.ndarray):
    """An array whose memory all processes share that have it. `shared_array()` makes them."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        # Results of NumPy's functions have memory of their own; what is written into a shared array is shared, and so
        # is a view of one, as that of `squeeze()`.
        if array is self:
            return array
        if _memory_of(array) is not None:
            return array.view(SharedArray)
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, index):
        return _plain_unless_shared(super().__getitem__(index))

    def copy(self, order="C"):
        """An ordinary array with the same contents."""
        return np.array(self, order=order)

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy("K")

    def __reduce_ex__(self, protocol):
        # What is pickled for a file, or for any other than a process, are the contents.
        return np.asarray(self).__reduce_ex__(protocol)

    def __reduce__(self):
        return np.asarray(self).__reduce__()


def _plain_unless_shared(result):
    # Of a list of places or a mask, NumPy makes a copy.
    if isinstance(result, SharedArray) and _memory_of(result) is None:
        return np.asarray(result)
    return result


def _memory_of(array):
    """The shared memory that an array is in; None if it is elsewhere."""
    base = array
    while base is not None and not isinstance(base, _core.ArrayMemory):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def _reduce_array(array):
    memory = _memory_of(array)
    if memory is None or not _within(array, memory):
        return array.__reduce__()
    offset = array.__array_interface__["data"][0] - memory.address
    layout = array.shape, array.dtype, offset, array.strides, array.flags.writeable
    return rebuild_array, (memory, *layout)


def _within(array, memory):
    # Strides may have been made up (`as_strided`).
    if not array.size:
        return True
    low = high = array.__array_interface__["data"][0] - memory.address
    for length, stride in zip(array.shape, array.strides, strict=True):
        step = (length - 1) * stride
        low, high = low + min(step, 0), high + max(step, 0)
    return low >= 0 and high + array.itemsize <= len(memory)


def rebuild_array(memory, shape, dtype, offset, strides, writeable):
    """The array that another process has sent."""
    array = np.ndarray.__new__(SharedArray, shape, dtype, memory, offset, strides)
    array.flags.writeable = writeable
    return array


# The memory itself. Several arrays of one message that are in the same memory bring it once.


def _reduce_memory(memory):
    if context.get_spawning_popen() is not None:
        return attach_memory, (reduction.DupFd(memory.fileno()),)
    _linger_at_exit()
    return _core.ArrayMemory.fetch, memory.send()


def attach_memory(descriptor):
    """The memory that a child was given at its start."""
    return _core.ArrayMemory.attach(descriptor.detach())


_lingers_in = None


def _linger_at_exit():
    global _lingers_in
    # The first process of all has no one left to wait for when its children have ended.
    parent = process.parent_process()
    if parent is not None and _lingers_in != process.current_process().pid:
        _lingers_in = process.current_process().pid
        util.Finalize(None, _linger, exitpriority=-50)


def _linger():
    if not _core.ArrayMemory.linger(PATIENCE):
        util.sub_warning("a shared array that was sent has not been fetched: its receiver will not find it")


reduction.register(SharedArray, _reduce_array)
reduction.register(_core.ArrayMemory, _reduce_memory)
