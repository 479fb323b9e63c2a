"""What happens when shared memory and shared values are used wrongly: memory_misuse.py PACKAGE prints it, case by case.

Each case is a line: its name, and the type of the error or, if there was none, what came of it. Run on this package and
on the standard one, it prints the same lines.
"""

import ctypes
import importlib
import os
import sys
import warnings

package = importlib.import_module(sys.argv[1])
shared_memory, sharedctypes, heap = (
    importlib.import_module(f"{sys.argv[1]}.{name}") for name in ("shared_memory", "sharedctypes", "heap")
)
SharedMemory, ShareableList = shared_memory.SharedMemory, shared_memory.ShareableList
NAME = f"misuse{os.getpid()}"
LEFT_ALONE = f"/dev/shm/{NAME}.alone"


def wrong(call, *args, **kwargs):
    """The error of a call, or its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            return type(error).__name__
        if isinstance(result, SharedMemory):
            result.close()
            result.unlink()
        elif isinstance(result, ShareableList):
            result.shm.close()
            result.shm.unlink()
        return type(result).__name__


def created(name=None, size=1):
    return wrong(SharedMemory, name, create=True, size=size)


def sizes():
    for size in (0, -1, -(2**70), 1.5, 0.5, "1", None, b"1", [], 2**62, 2**63, 2**70, float("nan"), float("inf"), True):
        yield f"size {size!r}", created(size=size)
    yield "size of what is attached to", wrong(SharedMemory, NAME, size=-1)


def names():
    chosen = (
        "",
        "/",
        "//",
        "a/b",
        "/a/b",
        "nul\0",
        "\0",
        ".",
        "..",
        "x" * 254,
        "x" * 255,
        "x" * 256,
        "x" * 5000,
        "é" * 128,
    )
    if sys.version_info < (3, 13):
        # Older ones cut the name short.
        chosen = [name for name in chosen if "\0" not in name]
    for name in (*chosen, 1, b"bytes", None, [], "\ud800"):
        text = f"{name!r:.20}"
        yield f"create {text}", created(name)
        yield f"attach {text}", wrong(SharedMemory, name)
    yield "create what exists", created(NAME)
    yield "attach to what does not exist", wrong(SharedMemory, f"{NAME}absent")
    yield "neither", wrong(SharedMemory)


def lifetime():
    memory = SharedMemory(create=True, size=1)
    memory.close()
    yield "close twice", wrong(memory.close)
    yield "read when closed", wrong(lambda: memory.buf[0])
    yield "write beyond", wrong(exec, "memory.buf[1] = 0", {"memory": SharedMemory(memory.name)})
    yield "write too large", wrong(exec, "memory.buf[0] = 256", {"memory": SharedMemory(memory.name)})
    memory.unlink()
    yield "unlink twice", wrong(memory.unlink)
    if sys.version_info >= (3, 13):
        memory._name += "\0"
        yield "unlink a name with a null", wrong(memory.unlink)
    open(LEFT_ALONE, "w").close()
    yield "attach to what is empty", wrong(SharedMemory, os.path.basename(LEFT_ALONE))
    yield "and it is still there", os.path.exists(LEFT_ALONE)
    os.unlink(LEFT_ALONE)
    os.mkdir(LEFT_ALONE)
    yield "attach to a folder", wrong(SharedMemory, os.path.basename(LEFT_ALONE))
    os.rmdir(LEFT_ALONE)


def lists():
    for item in ([], {}, object(), 1j, 2**63, -(2**63) - 1, "x" * 10**8, bytearray(1), (1,), int):
        yield f"list of {item!r:.12}", wrong(ShareableList, [item])
    for argument in (5, None, "text", b"bytes", (), {1: 2}, [1]):
        yield f"list from {argument!r:.12}", wrong(ShareableList, argument)
    yield "list that does not exist", wrong(ShareableList, name=f"{NAME}absent")
    yield "list under a taken name", wrong(ShareableList, [1], name=NAME)
    items = ShareableList([1, "text", b"bytes", None, 2.5, True])
    # (At -7 the standard package reads and writes what is not an item.)
    for index in (6, 10**10, "0", None, 1.0, slice(0, 2)):
        yield f"item {index!r}", wrong(items.__getitem__, index)
        yield f"set item {index!r}", wrong(items.__setitem__, index, 1)
    for index, value in ((1, "eight!!!"), (1, "nine char"), (0, "x" * 8), (0, "x" * 9), (0, []), (0, 1j)):
        yield f"set {index} to {value!r}", wrong(items.__setitem__, index, value)
    yield "index of what is not there", wrong(items.index, "absent")
    yield "format", items.format
    # The standard package has changed the item's format by then.
    yield "set to what is too large", wrong(items.__setitem__, 0, 2**63)
    yield "delete", wrong(exec, "del items[0]", {"items": items})
    items.shm.close()
    items.shm.unlink()


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))


def values():
    for code in (
        "z",
        "",
        "ii",
        "i ",
        "\0",
        "x",
        "U",
        "F",
        None,
        5,
        object,
        list,
        int,
        [],
        ctypes.c_int(1),
        ctypes.Structure,
    ):
        yield f"Value of {code!r:.14}", wrong(package.Value, code)
        yield f"RawValue of {code!r:.14}", wrong(package.RawValue, code)
        yield f"Array of {code!r:.14}", wrong(package.Array, code, 2)
    yield "Value of text", wrong(package.Value, "i", "1")
    yield "Value of too many", wrong(package.Value, "i", 1, 2)
    yield "Value of float", wrong(package.Value, "i", 1.5)
    yield "Value too large", package.Value("b", 300).value
    yield "float too large", wrong(package.Value, "d", 10**400)
    for lock in ("x", 0, 1, None, True, False, [], package.Lock(), package.RLock(), package.Semaphore()):
        yield f"lock {type(lock).__name__} {lock in ('x', 0, 1)}", wrong(package.Value, "i", 1, lock=lock)
        yield f"array's lock {type(lock).__name__} {lock in ('x', 0, 1)}", wrong(package.Array, "i", 1, lock=lock)
    for size in (-1, 1.5, None, "ab", b"ab", 0, True, [1, "x"], [[1]], {3: 4}, range(3), 2**62, 2**70):
        yield f"Array of size {size!r:.12}", wrong(package.Array, "i", size)
        yield f"RawArray of size {size!r:.12}", wrong(package.RawArray, "i", size)
        yield f"Array of c {size!r:.12}", wrong(package.Array, "c", size)


def accesses():
    for make in (package.Array, package.RawArray):
        array = make("h", range(5))
        for index in (5, -6, "0", None, 1.0, 2**70, (0, 1)):
            yield f"{make.__name__}[{index!r}]", wrong(array.__getitem__, index)
            yield f"{make.__name__}[{index!r}] = 1", wrong(array.__setitem__, index, 1)
        pairs = [7, 8], [2**20, -1], [1, "x"], ["x", 1], [1.5, 2], (1, 2), b"ab", range(2), [True, False]
        for limits in ((), (1, 3), (None, None, 2), (3, 1), (-3, None), (-100, 100)):
            chosen = slice(*limits) if limits else slice(None)
            yield f"{make.__name__}[{limits}]", array[chosen]
            for new in (*pairs, [7, 8, 9], [1, 2, 3, 4, 5], [], None, 5):
                yield f"{make.__name__}[{limits}] = {new!r}", wrong(array.__setitem__, chosen, new)
                yield "then", array[:]
        yield "slice of texts", wrong(array.__getitem__, slice("a", "b"))
        yield "slice without step", wrong(array.__getitem__, slice(None, None, 0))
        yield "delete", wrong(exec, "del array[0]", {"array": array})
    for code in "cubBhHiIlLqQfd":
        value = package.Value(code)
        numbers = 1, -1, 2**80, -(2**80), 1.5, float("inf"), float("nan"), 1e300, 10**400, 1j
        for new in (*numbers, True, "x", "xy", b"x", b"xy", None, []):
            yield f"Value({code!r}).value = {new!r:.16}", wrong(setattr, value, "value", new)
            yield "then", repr(value.value)
        yield "delete value", wrong(delattr, value, "value")
        yield "no such attribute", wrong(getattr, value, "absent")
    point = sharedctypes.Value(Point, 1, 2.5)
    for field, new in (("x", "text"), ("x", 2**40), ("y", 3), ("y", None), ("x", 1.5)):
        yield f"{field} = {new!r}", wrong(setattr, point, field, new)
        yield "then", (point.x, point.y)
    text = package.Array("c", b"abc")
    for name, new in (
        ("value", b"abcd"),
        ("value", "abc"),
        ("value", b""),
        ("raw", b"abcd"),
        ("raw", b"x"),
        ("raw", 5),
    ):
        yield f"{name} = {new!r}", wrong(setattr, text, name, new)
        yield "then", (text.value, text.raw)


def wrappers():
    value = package.Value("i")
    yield "synchronized twice", wrong(sharedctypes.synchronized, value)
    yield "synchronized number", wrong(sharedctypes.synchronized, 5)
    yield "copy of number", wrong(sharedctypes.copy, 5)
    yield "copy of value", wrong(sharedctypes.copy, value)
    yield "release", wrong(value.release)
    yield "pickle", wrong(package.reduction.ForkingPickler.dumps, value)
    yield "pickle raw", wrong(package.reduction.ForkingPickler.dumps, value.get_obj())
    yield "pickle array", wrong(package.reduction.ForkingPickler.dumps, package.Array("i", 3))
    for size in (-1, "1", None, 1.5, 2**63 - 1, 2**63, 2**70):
        yield f"block of {size!r}", wrong(heap.BufferWrapper, size)


def main():
    there = SharedMemory(NAME, create=True, size=16)
    for cases in (sizes, names, lifetime, lists, values, accesses, wrappers):
        for name, came in cases():
            print(f"{cases.__name__}: {name}: {came}")
    there.close()
    there.unlink()


if __name__ == "__main__":
    main()
