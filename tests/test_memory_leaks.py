"""After thousands of shared objects there are no more descriptors, mappings, files and no more memory than before."""

import ctypes
import gc
import os
import threading

import pytest

import processes
import procession
from procession import heap, sharedctypes
from procession.shared_memory import ShareableList, SharedMemory

PAGE = os.sysconf("SC_PAGESIZE")


def resident():
    """The bytes of memory that this process has, shared ones too."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def mappings():
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line or "/dev/shm/" in line for line in file)


def state():
    gc.collect()
    return processes.descriptors().total(), mappings()


def make_memory():
    made = SharedMemory(create=True, size=100_000)
    made.buf[:] = bytes(100_000)
    SharedMemory(made.name).close()
    made.close()
    made.unlink()


def make_memory_and_forget_to_close():
    made = SharedMemory(create=True, size=100_000)
    made.buf[:] = bytes(100_000)
    made.unlink()


def make_memory_with_views():
    made = SharedMemory(create=True, size=100_000)
    view = made.buf[100:]
    made.close()
    view[:] = bytes(len(view))
    made.unlink()


def make_list():
    made = ShareableList([1, "text", None] * 10)
    made.shm.close()
    made.shm.unlink()


def make_value():
    procession.Value("i", 1).value += 1


def make_array():
    made = procession.Array("d", 10_000)
    made[:] = [1.0] * 10_000


def make_raw():
    sharedctypes.copy(sharedctypes.RawArray("B", 100_000))


def make_cycle():
    made = procession.Array("B", 1000)
    made.itself = made


WORK = [
    make_memory,
    make_memory_and_forget_to_close,
    make_memory_with_views,
    make_list,
    make_value,
    make_array,
    make_raw,
    make_cycle,
]


def repeat(work, times):
    """How descriptors and mappings changed, and by how many bytes the memory grew."""
    # The heap keeps what it once needed, up to some MB, for later blocks.
    for _ in range(times // 2):
        work()
    before, bytes_before = state(), resident()
    for _ in range(times):
        work()
    gc.collect()
    return [after - was for after, was in zip(state(), before, strict=True)], resident() - bytes_before


@pytest.mark.parametrize("work", WORK)
def test_what_was_made_is_given_back(work):
    changed, grown = repeat(work, 1000)
    assert changed == [0, 0]
    # A thousandth of what was made.
    assert grown < 4 << 20


def repeat_all_and_tell(conn, given):
    conn.send([(work.__name__, *repeat(work, 200)) for work in WORK if work is not make_cycle])
    conn.recv()


def test_what_a_child_made_is_given_back(ctx):
    ours, theirs = ctx.Pipe()
    # It has something of its parent's as well.
    child = ctx.Process(target=repeat_all_and_tell, args=(theirs, [ctx.Value("i"), ctx.RawArray("d", 1000)]))
    child.start()
    for name, changed, grown in ours.recv():
        assert changed == [0, 0], name
        assert grown < 4 << 20, name
    ours.send(None)
    child.join()
    assert child.exitcode == 0
    child.close()
    ours.close()
    theirs.close()


def change(value, array):
    value.value += 1
    array[-1] += 1


def test_children_leave_nothing_of_what_they_were_given(ctx):
    def give():
        value, array = ctx.Value("i"), ctx.Array("d", 10_000)
        child = ctx.Process(target=change, args=(value, array))
        child.start()
        child.join()
        assert (value.value, array[-1]) == (1, 1.0)
        child.close()

    give()
    before = state()
    for _ in range(5):
        give()
    assert state() == before


def test_a_large_block_is_given_back_to_the_system():
    size = 64 << 20
    ctypes.memset(sharedctypes.RawArray("B", size), 1, size)
    gc.collect()
    before, bytes_before = state(), resident()
    made = sharedctypes.RawArray("B", size)
    ctypes.memset(made, 1, size)
    assert resident() - bytes_before > size // 2
    assert state()[0] == before[0] + 1
    del made
    assert state() == before
    assert resident() - bytes_before < size // 8


def test_blocks_are_used_again():
    arenas = len(heap.BufferWrapper._heap._arenas)
    for size in range(1, 3000):
        sharedctypes.RawArray("B", size)
    assert len(heap.BufferWrapper._heap._arenas) <= arenas + 1


class Link:
    pass


def test_blocks_that_the_collector_frees_at_any_moment():
    """A collection within the heap, or in another thread meanwhile, must neither block nor lose a block."""
    own = heap.Heap()
    blocks = []

    class Block:
        def __init__(self):
            self.block = own.malloc(100)
            self.itself = self

        def __del__(self):
            own.free(self.block)
            blocks.append(self.block)

    def work():
        for _ in range(3000):
            Block()

    thresholds = gc.get_threshold()
    gc.set_threshold(3)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    own.free(own.malloc(1))
    assert len(blocks) == 9000
    assert own._n_mallocs == own._n_frees == 9001
    assert not own._pending_free_blocks
    assert not any(own._allocated_blocks.values())


def allocate_and_tell(conn, array):
    before = heap.BufferWrapper._heap._arenas[:]
    own = sharedctypes.RawArray("B", 100)
    array[0] = 7
    own[:] = b"y" * 100
    conn.send(bytes(array[:]) == b"\x07" + b"x" * 99 and own._wrapper._state[0][0] not in before)
    # Neither the parent's block nor its heap is given back from here.
    del array
    gc.collect()
    conn.send(True)


def test_a_forked_child_has_blocks_of_its_own():
    ctx = procession.get_context("fork")
    array = sharedctypes.RawArray("B", b"x" * 100)
    state = array._wrapper._state
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=allocate_and_tell, args=(theirs, array))
    child.start()
    assert ours.recv()
    assert ours.recv()
    child.join()
    assert bytes(array[:]) == b"\x07" + b"x" * 99
    assert state[0][1:] in heap.BufferWrapper._heap._allocated_blocks[state[0][0]]
    child.close()
