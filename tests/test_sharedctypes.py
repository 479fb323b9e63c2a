"""ctypes objects in shared memory."""

import ctypes
import os
import pickle
import signal
import threading
import warnings

import pytest

import procession
from procession import sharedctypes


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


def run(ctx, target, *args):
    child = ctx.Process(target=target, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


def double(number, floats, text, point, bare, points):
    number.value *= 2
    with floats:
        for at in range(len(floats)):
            floats[at] *= 2
    text.value = text.value * 2
    point.x, point.y = point.x * 2, point.y * 2
    bare[:] = [item * 2 for item in bare]
    for item in points:
        item.x *= 2


def test_a_child_changes_what_the_parent_made(ctx):
    number = ctx.Value("q", 2**40)
    floats = ctx.Array("d", [0.5, 1.5])
    text = ctx.Array("c", b"ab".ljust(10, b"\0"))
    point = sharedctypes.Value(Point, 1, 2.5, ctx=ctx)
    bare = ctx.RawArray("h", [1, 2, 3])
    points = ctx.RawArray(Point, [(1, 0.0), (2, 0.0)])
    run(ctx, double, number, floats, text, point, bare, points)
    assert number.value == 2**41
    assert list(floats) == [1.0, 3.0]
    assert text.value == b"abab"
    assert text.raw == b"abab".ljust(10, b"\0")
    assert (point.x, point.y) == (2, 5.0)
    assert list(bare) == [2, 4, 6]
    assert [item.x for item in points] == [2, 4]


def count(number, times):
    for _ in range(times):
        with number:
            number.value += 1


def test_the_lock_is_one_for_all_processes(ctx):
    number = ctx.Value("i")
    children = [ctx.Process(target=count, args=(number, 500)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert number.value == 1500


def test_each_access_takes_the_lock():
    array = procession.Array("i", 3)
    entered = []
    with array:
        thread = threading.Thread(target=lambda: (array[0], entered.append(True)))
        thread.start()
        thread.join(0.1)
        assert not entered
    thread.join()
    assert entered


def test_values_begin_as_zero_even_in_used_memory():
    used = sharedctypes.RawArray("B", b"\xff" * 64)
    del used
    assert bytes(sharedctypes.RawArray("B", 64)) == bytes(64)
    assert sharedctypes.RawValue("d").value == 0
    assert bytes(sharedctypes.RawArray("i", 0)) == b""


@pytest.mark.parametrize("code", sorted(sharedctypes.typecode_to_type))
def test_every_typecode(code):
    value = procession.Value(code)
    assert isinstance(value.get_obj(), sharedctypes.typecode_to_type[code])
    assert len(procession.Array(code, 3)) == 3


def test_wrappers_and_their_locks():
    lock = procession.Lock()
    value = procession.Value("i", 5, lock=lock)
    assert value.get_lock() is lock
    assert value.get_obj().value == 5
    assert repr(value) == "<Synchronized wrapper for c_int(5)>"
    assert type(procession.Value("i", lock=False)) is ctypes.c_int
    assert type(procession.Array("i", 1, lock=False)) is ctypes.c_int * 1
    array = procession.Array("i", range(5))
    assert array[1:3] == [1, 2]
    array[1:3] = 8, 9
    assert array[:] == [0, 8, 9, 3, 4]
    assert type(sharedctypes.Value(Point)) is type(sharedctypes.Value(Point))
    assert type(sharedctypes.Value(Point)).__name__ == "SynchronizedPoint"


def test_a_copy_is_independent():
    point = sharedctypes.RawValue(Point, 1, 2.0)
    copied = sharedctypes.copy(point)
    point.x = 9
    assert (copied.x, copied.y) == (1, 2.0)
    wrapped = sharedctypes.synchronized(copied)
    wrapped.x = 3
    assert copied.x == 3


def test_what_is_refused():
    with pytest.raises(AttributeError, match="has no method 'acquire'"):
        procession.Value("i", lock="x")
    with pytest.raises(TypeError, match=r"bad typecode .must be a ctypes type or one of c, u, .* or d.: 'z'"):
        procession.Array("z", 3)
    with pytest.raises(ValueError, match="length"):
        procession.Array("i", -1)
    with pytest.raises(AssertionError, match="already synchronized"):
        sharedctypes.synchronized(procession.Value("i"))
    for obj in (procession.Value("i"), sharedctypes.Value(Point)):
        with pytest.raises(RuntimeError, match="through inheritance"):
            procession.reduction.ForkingPickler.dumps(obj)
    with pytest.raises(RuntimeError, match="through inheritance"):
        procession.reduction.ForkingPickler.dumps(sharedctypes.RawValue("i"))
    with pytest.raises((pickle.PicklingError, TypeError, ValueError)):
        pickle.dumps(ctypes.pointer(ctypes.c_int()))


def take_and_die(value):
    value.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holder_locks_nobody_out(ctx):
    value = ctx.Value("i", 1)
    child = ctx.Process(target=take_and_die, args=(value,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.warns(RuntimeWarning, match=str(child.pid)):
        value.value += 1
    assert value.value == 2


class Pair(ctypes.Structure):
    _fields_ = [("first", Point), ("numbers", ctypes.c_int * 3), ("flags", ctypes.c_ubyte, 3)]


class Either(ctypes.Union):
    _fields_ = [("number", ctypes.c_uint32), ("bytes", ctypes.c_ubyte * 4)]


def change_nested(pair, either, rows):
    with pair:
        pair.first.x += 1
        pair.numbers[2] = 9
        pair.flags = 15
    either.bytes[0] = 255
    rows[1][2] = 5


def test_structures_in_structures_and_arrays_of_arrays(ctx):
    pair = sharedctypes.Value(Pair, (1, 2.5), (1, 2, 3), 5, ctx=ctx)
    either = sharedctypes.Value(Either, ctx=ctx)
    rows = sharedctypes.RawArray(ctypes.c_int * 3, 2)
    assert (pair.first.x, list(pair.numbers), pair.flags) == (1, [1, 2, 3], 5)
    run(ctx, change_nested, pair, either, rows)
    assert (pair.first.x, list(pair.numbers), pair.flags) == (2, [1, 2, 9], 7)
    assert either.number == 255
    assert [list(row) for row in rows] == [[0, 0, 0], [0, 0, 5]]


class Counting:
    """A lock of the program's own."""

    def __init__(self):
        self.lock, self.calls = threading.RLock(), []

    def acquire(self, *args):
        self.calls.append("acquire")
        return self.lock.acquire(*args)

    def release(self):
        self.calls.append("release")
        self.lock.release()

    def __enter__(self):
        self.calls.append("enter")
        return self.lock.__enter__()

    def __exit__(self, *exc_info):
        self.calls.append("exit")
        self.lock.__exit__(*exc_info)


class OwnLock(procession.synchronize.RLock):
    def __init__(self):
        super().__init__(ctx=procession.get_context("fork"))
        self.calls = []

    def acquire(self, *args):
        self.calls.append("acquire")
        return super().acquire(*args)

    def release(self):
        self.calls.append("release")
        super().release()


@pytest.mark.parametrize("make", [Counting, OwnLock])
def test_locks_of_other_kinds_are_called(make):
    lock = make()
    value = procession.Value("i", 1, lock=lock)
    array = procession.Array("i", [1, 2, 3], lock=lock)
    point = sharedctypes.Value(Point, 1, 2.0, lock=lock)
    assert not lock.calls
    for access in (
        lambda: value.value,
        lambda: setattr(value, "value", 2),
        lambda: array[0],
        lambda: array[:],
        lambda: array.__setitem__(0, 1),
        lambda: array.__setitem__(slice(0, 2), [1, 2]),
        lambda: point.x,
        lambda: setattr(point, "y", 1),
    ):
        access()
        assert lock.calls == ["acquire", "release"]
        lock.calls.clear()
    assert len(array) == 3
    assert not lock.calls
    with value as entered:
        assert entered is True
        assert value.value == 2
    value.acquire()
    value.release()
    assert value.get_lock() is array.get_lock() is lock


@pytest.mark.parametrize("make", [procession.RLock, procession.Lock, threading.Lock, procession.Semaphore, Counting])
def test_an_error_in_an_access_gives_the_lock_back(make):
    lock = make()
    value, text = procession.Value("i", lock=lock), procession.Array("c", 3, lock=lock)
    array = procession.Array("i", 3, lock=lock)
    for access, error in (
        (lambda: setattr(value, "value", "text"), TypeError),
        (lambda: setattr(text, "value", b"too long"), ValueError),
        (lambda: array[3], IndexError),
        (lambda: array.__setitem__(slice(0, 2), [1]), ValueError),
        (lambda: array.__setitem__(slice(0, 2), [1, "x"]), TypeError),
    ):
        with pytest.raises(error):
            access()
    acquired = []
    thread = threading.Thread(target=lambda: acquired.append(lock.acquire(True, 5)))
    thread.start()
    thread.join()
    assert acquired == [True]


def test_a_lock_that_is_not_recursive_is_held_for_one_access():
    value = procession.Value("i", lock=procession.Lock())
    assert value.value == 0
    with value:
        assert value.get_obj().value == 0
        assert not value.get_lock().acquire(block=False)
    assert value.acquire(timeout=0)
    value.release()
    with pytest.raises(ValueError, match="released too many times"):
        value.release()


def test_what_was_not_made_by_the_heap_is_wrapped_as_well():
    number = ctypes.c_int(5)
    wrapped = sharedctypes.synchronized(number)
    wrapped.value += 1
    assert (number.value, wrapped.value) == (6, 6)
    array = (ctypes.c_double * 3)(1, 2, 3)
    wrapped = sharedctypes.synchronized(array)
    wrapped[:2] = [5.0, 6.0]
    # This moves it.
    ctypes.resize(array, 1 << 16)
    array[2] = 7
    assert wrapped[:] == [5.0, 6.0, 7.0]
    wrapped[:2] = [8.0, 9.0]
    assert array[:] == [8.0, 9.0, 7.0]


def test_numbers_of_the_other_byte_order():
    other = ctypes.c_int.__ctype_be__
    value = procession.Value(other, 1)
    value.value += 1
    assert value.value == 2
    array = procession.Array(other, [1, 2, 3])
    array[1:] = [7, 8]
    assert array[:] == [1, 7, 8]


def test_wrappers_of_a_programs_own():
    class Named(sharedctypes.SynchronizedBase):
        x = sharedctypes.make_property("x")

        def __init__(self, obj, name):
            super().__init__(obj)
            self.name = name

        def both(self):
            with self:
                return self.x, self._obj.y

    named = Named(sharedctypes.RawValue(Point, 1, 2.5), "name")
    named.x += 1
    assert named.both() == (2, 2.5)
    assert named.name == "name"
    assert sharedctypes.make_property("x") is sharedctypes.make_property("x")
    with pytest.raises(RuntimeError, match="__init__"):
        sharedctypes.Synchronized.__new__(sharedctypes.Synchronized).value  # noqa: B018


class Wider(ctypes.c_int):
    """A number with something of its own."""

    @property
    def value(self):
        return f"<{ctypes.c_int.value.__get__(self)}>"


def test_derived_types_are_asked():
    assert procession.Value(Wider, 5).value == "<5>"


def test_lists_that_change_while_they_are_stored():
    array = procession.Array("d", 4)

    class Shrinking:
        def __float__(self):
            items.clear()
            return 2.0

    items = [1.0, Shrinking(), 3.0, 4.0]
    with pytest.raises(IndexError):
        array[:] = items
    assert array[:] == [1.0, 2.0, 0.0, 0.0]


def slices(array, times):
    for number in range(times):
        array[:] = [number] * len(array)
        found = array[:]
        assert len(set(found)) == 1, found


def test_slices_are_copied_with_the_lock_held(ctx):
    array = ctx.Array("q", 500)
    children = [ctx.Process(target=slices, args=(array, 200)) for _ in range(2)]
    for child in children:
        child.start()
    slices(array, 200)
    for child in children:
        child.join()
        assert child.exitcode == 0


def write_until_killed(array):
    while True:
        array[:] = [7] * len(array)


def test_a_writer_killed_at_any_moment_locks_nobody_out(ctx):
    array = ctx.Array("q", 2000)
    child = ctx.Process(target=write_until_killed, args=(array,))
    child.start()
    while array[-1] != 7:
        pass
    child.kill()
    child.join()
    with warnings.catch_warnings():
        # It may have held the lock.
        warnings.simplefilter("ignore", RuntimeWarning)
        assert array[0] == 7
    array[:] = range(2000)
    assert array[1999] == 1999
