"""Blocks of shared memory for `sharedctypes`: cut from anonymous files, best fit first, merged again when freed."""

import bisect
import mmap
import os
import sys
import threading
import weakref

from . import mapping, reduction, util

__all__ = ["BufferWrapper"]


class Arena:
    """An anonymous file in memory, mapped; it goes with the last process that has it."""

    def __init__(self, size, fd=-1):
        self.size = size
        if fd == -1:
            fd = os.memfd_create("procession-heap", os.MFD_CLOEXEC)
            os.truncate(fd, size)
        self.fd = fd
        self.buffer = mapping.Mapping.of(fd, size)
        util.Finalize(self, _close, args=(fd, weakref.ref(self.buffer)))


def _close(fd, buffer):
    # Views of the memory may outlive the arena.
    mapped = buffer()
    if mapped is not None:
        mapped.fd = -1
    os.close(fd)


def rebuild_arena(size, descriptor):
    """The arena that a process was sent, in that process."""
    return Arena(size, descriptor.detach())


def reduce_arena(arena):
    """How an arena is sent: its size and its descriptor."""
    return rebuild_arena, (arena.size, reduction.DupFd(arena.fd))


reduction.register(Arena, reduce_arena)


class Heap:
    """Gives out blocks `(arena, start, stop)`.

    Freed neighbours are merged; of the free blocks that are large enough the smallest is taken. A forked child begins
    with an empty heap: what it inherited belongs to its parent.
    """

    _alignment = 8
    # An arena at least this large is given back when nothing in it is used.
    _DISCARD_FREE_SPACE_LARGER_THAN = 1 << 22
    # Each new arena is twice as large as the one before, up to this size.
    _DOUBLE_ARENA_SIZE_UNTIL = 1 << 22

    def __init__(self, size=mmap.PAGESIZE):
        self._first_size = size
        self._reset()

    def _reset(self):
        self._lastpid = os.getpid()
        self._lock = threading.Lock()
        self._size = self._first_size
        self._arenas = []
        self._allocated_blocks = {}
        # The free blocks: by length (with the lengths in order), and by both of their ends.
        self._lengths = []
        self._len_to_seq = {}
        self._start_to_block = {}
        self._stop_to_block = {}
        self._pending_free_blocks = []
        self._n_mallocs = 0
        self._n_frees = 0

    def malloc(self, size):
        """A block of `size` bytes, rounded up to the alignment."""
        _check_size(size)
        if self._lastpid != os.getpid():
            self._reset()
        rounded = (max(size, 1) + self._alignment - 1) & -self._alignment
        with self._lock:
            self._n_mallocs += 1
            self._free_pending_blocks()
            arena, start, end = self._take_free(rounded) or self._new_arena(rounded)
            stop = start + rounded
            if stop != end:
                self._put_free(arena, stop, end)
            self._allocated_blocks.setdefault(arena, set()).add((start, stop))
        return arena, start, stop

    def free(self, block):
        """Gives a block back. A garbage collection may call it at any moment, even while this thread is in `malloc`."""
        if self._lastpid != os.getpid():
            raise ValueError(f"the block is of process {self._lastpid}, this is {os.getpid()}")
        self._pending_free_blocks.append(block)
        # Whoever has the lock, the next call frees it.
        if self._lock.acquire(blocking=False):
            try:
                self._free_pending_blocks()
            finally:
                self._lock.release()

    def _free_pending_blocks(self):
        while self._pending_free_blocks:
            arena, start, stop = self._pending_free_blocks.pop()
            self._n_frees += 1
            used = self._allocated_blocks[arena]
            used.remove((start, stop))
            # Merged with the free neighbours on either side.
            if (arena, start) in self._stop_to_block:
                start = self._drop_free(self._stop_to_block[arena, start])[1]
            if (arena, stop) in self._start_to_block:
                stop = self._drop_free(self._start_to_block[arena, stop])[2]
            if not used:
                del self._allocated_blocks[arena]
                if arena.size >= self._DISCARD_FREE_SPACE_LARGER_THAN:
                    self._arenas.remove(arena)
                    continue
            self._put_free(arena, start, stop)

    def _new_arena(self, size):
        length = -(-max(self._size, size) // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._size < self._DOUBLE_ARENA_SIZE_UNTIL:
            self._size *= 2
        util.info("a new arena of %d bytes", length)
        arena = Arena(length)
        self._arenas.append(arena)
        return arena, 0, length

    def _take_free(self, size):
        at = bisect.bisect_left(self._lengths, size)
        if at == len(self._lengths):
            return None
        return self._drop_free(self._len_to_seq[self._lengths[at]][-1])

    def _put_free(self, arena, start, stop):
        block, length = (arena, start, stop), stop - start
        if length not in self._len_to_seq:
            self._len_to_seq[length] = []
            bisect.insort(self._lengths, length)
        self._len_to_seq[length].append(block)
        self._start_to_block[arena, start] = self._stop_to_block[arena, stop] = block

    def _drop_free(self, block):
        arena, start, stop = block
        del self._start_to_block[arena, start], self._stop_to_block[arena, stop]
        length = stop - start
        same = self._len_to_seq[length]
        same.remove(block)
        if not same:
            del self._len_to_seq[length]
            self._lengths.remove(length)
        return block


class BufferWrapper:
    """A block from the heap, given back when the wrapper goes; a child may inherit it."""

    _heap = Heap()

    def __init__(self, size):
        block = self._heap.malloc(size)
        self._state = block, size
        util.Finalize(self, self._heap.free, args=(block,))

    def create_memoryview(self):
        """The block's bytes, writable."""
        (arena, start, _), size = self._state
        return memoryview(arena.buffer)[start : start + size]


def _check_size(size):
    if size < 0:
        raise ValueError(f"a block can't have {size} bytes")
    if size >= sys.maxsize:
        raise OverflowError(f"a block can't have {size} bytes")
