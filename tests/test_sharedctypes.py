"""ctypes objects in shared memory."""

import ctypes
import os
import pickle
import signal
import threading

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
