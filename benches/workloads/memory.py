"""Shared values, arrays and memory by name."""

import time

from . import expect, workload


def timed(count, function):
    """The seconds for so many calls."""
    began = time.perf_counter()
    for _ in range(count):
        function()
    return time.perf_counter() - began


@workload("Value: add 1 under its lock", count=200_000, unit="ns", target=2)
def value_increment(mp, count):
    value = mp.get_context("fork").Value("i", 0)
    began = time.perf_counter()
    for _ in range(count):
        with value.get_lock():
            value.value += 1
    took = time.perf_counter() - began
    expect(value.value, count)
    return took


@workload("Value: read", count=400_000, unit="ns")
def value_read(mp, count):
    value = mp.get_context("fork").Value("q", 2**40)
    total = 0
    began = time.perf_counter()
    for _ in range(count):
        total += value.value
    took = time.perf_counter() - began
    expect(total, count * 2**40)
    return took


@workload("Value: write", count=400_000, unit="ns")
def value_write(mp, count):
    value = mp.get_context("fork").Value("d", 0)
    began = time.perf_counter()
    for number in range(count):
        value.value = number
    took = time.perf_counter() - began
    expect(value.value, count - 1.0)
    return took


@workload("Array: read one item", count=300_000, unit="ns")
def array_item(mp, count):
    array = mp.get_context("fork").Array("i", range(100))
    total = 0
    began = time.perf_counter()
    for _ in range(count):
        total += array[7]
    took = time.perf_counter() - began
    expect(total, count * 7)
    return took


@workload("Array: write one item", count=300_000, unit="ns")
def array_set_item(mp, count):
    array = mp.get_context("fork").Array("i", 100)
    began = time.perf_counter()
    for number in range(count):
        array[7] = number
    took = time.perf_counter() - began
    expect(array[7], count - 1)
    return took


@workload("Array: read a slice of 1000", count=20_000, target=1)
def array_read(mp, count):
    array = mp.get_context("fork").Array("i", range(2000))
    took = timed(count, lambda: array[500:1500])
    expect(array[500:1500], list(range(500, 1500)))
    return took


@workload("Array: write a slice of 1000", count=20_000, target=1)
def array_write(mp, count):
    array = mp.get_context("fork").Array("i", 2000)
    numbers = list(range(1000))
    began = time.perf_counter()
    for _ in range(count):
        array[500:1500] = numbers
    took = time.perf_counter() - began
    expect(array[:], [0] * 500 + numbers + [0] * 500)
    return took


@workload("Array of characters: read all of 1 MB", count=2_000, target=1)
def array_read_bytes(mp, count):
    array = mp.get_context("fork").Array("c", 1_000_000)
    array[-1] = b"x"
    took = timed(count, lambda: array.raw)
    expect(array.raw, bytes(999_999) + b"x")
    return took


@workload("RawArray: read a slice of 1000", count=20_000, target=1)
def raw_array_read(mp, count):
    array = mp.get_context("fork").RawArray("d", range(2000))
    took = timed(count, lambda: array[500:1500])
    expect(array[500:1500], [float(number) for number in range(500, 1500)])
    return took


@workload("RawArray: write a slice of 1000", count=20_000, target=1)
def raw_array_write(mp, count):
    array = mp.get_context("fork").RawArray("d", 2000)
    numbers = [float(number) for number in range(1000)]
    began = time.perf_counter()
    for _ in range(count):
        array[:1000] = numbers
    took = time.perf_counter() - began
    expect(array[998:1002], [998.0, 999.0, 0.0, 0.0])
    return took


@workload("RawArray: copy 1 MB in and out as bytes", count=2_000, target=1)
def raw_array_bytes(mp, count):
    array = mp.get_context("fork").RawArray("c", 1_000_000)
    content = b"0123456789" * 100_000
    began = time.perf_counter()
    for _ in range(count):
        array.raw = content
        back = array.raw
    took = time.perf_counter() - began
    expect(back, content)
    return took


@workload("Value: make and drop", count=10_000)
def value_creation(mp, count):
    ctx = mp.get_context("fork")
    return timed(count, lambda: ctx.Value("i", 1))


@workload("RawValue: make and drop", count=20_000)
def raw_value_creation(mp, count):
    ctx = mp.get_context("fork")
    return timed(count, lambda: ctx.RawValue("i", 1))


@workload("Array of 1000: make and drop", count=10_000)
def array_creation(mp, count):
    ctx = mp.get_context("fork")
    return timed(count, lambda: ctx.Array("i", 1000))


@workload("1000 Values kept: make", count=2_000)
def values_kept(mp, count):
    ctx = mp.get_context("fork")
    began = time.perf_counter()
    kept = [ctx.Value("i", number) for number in range(count)]
    took = time.perf_counter() - began
    expect(kept[-1].value, count - 1)
    return took


def shared_memory(mp):
    """The module of the implementation."""
    import importlib

    return importlib.import_module(f"{mp.__name__}.shared_memory")


def tracked(module):
    """Have the implementation start what it starts with the first memory."""
    first = module.SharedMemory(create=True, size=1)
    first.close()
    first.unlink()


@workload("SharedMemory: create, close, unlink", count=5_000)
def shared_memory_creation(mp, count):
    module = shared_memory(mp)
    tracked(module)

    def once():
        made = module.SharedMemory(create=True, size=4096)
        made.close()
        made.unlink()

    return timed(count, once)


@workload("SharedMemory: attach, close", count=10_000)
def shared_memory_attaching(mp, count):
    module = shared_memory(mp)
    made = module.SharedMemory(create=True, size=4096)
    try:
        return timed(count, lambda: module.SharedMemory(made.name).close())
    finally:
        made.close()
        made.unlink()


@workload("ShareableList: read all of 100 items", count=500)
def shareable_list_read(mp, count):
    items = shared_memory(mp).ShareableList([*range(50), *map(str, range(50))])
    try:
        took = timed(count, lambda: list(items))
        expect(list(items), [*range(50), *map(str, range(50))])
        return took
    finally:
        items.shm.close()
        items.shm.unlink()


@workload("ShareableList: write an item", count=50_000)
def shareable_list_write(mp, count):
    items = shared_memory(mp).ShareableList(range(100))
    try:
        began = time.perf_counter()
        for number in range(count):
            items[42] = number
        took = time.perf_counter() - began
        expect(items[42], count - 1)
        return took
    finally:
        items.shm.close()
        items.shm.unlink()


@workload("ShareableList: make from 100 items, close, unlink", count=1_000)
def shareable_list_creation(mp, count):
    module = shared_memory(mp)
    tracked(module)

    def once():
        made = module.ShareableList(range(100))
        made.shm.close()
        made.shm.unlink()

    return timed(count, once)
