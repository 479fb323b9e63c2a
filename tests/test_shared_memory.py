"""Shared memory by name, and lists in it."""

import gc
import mmap
import os
import pickle
import signal
import struct

import pytest

import processes
from procession import shared_memory
from procession.shared_memory import ShareableList, SharedMemory


@pytest.fixture
def memory():
    """4096 bytes."""
    made = SharedMemory(create=True, size=4096)
    yield made
    made.close()
    try:
        made.unlink()
    except FileNotFoundError:
        pass


def fill(memory):
    memory.buf[:5] = b"hello"
    memory.close()


def fill_by_name(name):
    fill(SharedMemory(name))


def change(items):
    items[0] += 1
    items[1] = "changed"
    items.shm.close()


def test_a_child_writes_and_the_parent_reads(ctx, memory, nothing_left_behind):
    for target, arg in ((fill, memory), (fill_by_name, memory.name)):
        memory.buf[:5] = bytes(5)
        child = ctx.Process(target=target, args=(arg,))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert bytes(memory.buf[:5]) == b"hello"
        child.close()


def test_a_child_that_attached_leaves_the_memory_alone(program, memory):
    one = program(
        "import sys; from procession.shared_memory import SharedMemory; SharedMemory(sys.argv[1]).close()",
        memory.name,
        options=(),
    )
    assert one.finish() == ("", "")
    SharedMemory(memory.name).close()


def test_segment_of_a_killed_program(program):
    """Standard package: the same."""
    one = program(
        """
        import os, signal
        from procession.shared_memory import SharedMemory
        print(SharedMemory(create=True, size=10).name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        options=(),
    )
    name = one.readline()
    _, err = one.finish()
    assert "1 leaked shared_memory objects" in err
    assert one.exitcode == -signal.SIGKILL
    assert processes.eventually(lambda: not os.path.exists(f"/dev/shm/{name}"))


def test_the_tracker_takes_names_of_any_characters(program):
    name = f"a:name\n\\of éß letters {os.getpid()}\n"
    code = "import sys; from procession.shared_memory import SharedMemory; memory = SharedMemory(sys.argv[1], True, 1)"
    assert program(f"{code}; memory.close(); memory.unlink()", name, options=()).finish() == ("", "")
    _, err = program(code, name, options=()).finish()
    assert "1 leaked shared_memory objects" in err
    assert "Traceback" not in err
    assert processes.eventually(lambda: not os.path.exists(f"/dev/shm/{name}"))


def test_a_child_forked_while_a_thread_talks_to_the_tracker(program):
    one = program(
        """
        import os, threading
        from procession.resource_tracker import _resource_tracker
        from procession.shared_memory import SharedMemory

        _resource_tracker.ensure_running()
        held, over = threading.Event(), threading.Event()

        def hold():
            with _resource_tracker._lock:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        if (child := os.fork()) == 0:
            memory = SharedMemory(create=True, size=1)
            memory.close()
            memory.unlink()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        thread.join()
        """,
        options=("-W", "ignore::DeprecationWarning"),
    )
    assert one.finish() == ("7\n", "")


def test_untracked_memory_survives_its_maker(program):
    one = program(
        "from procession.shared_memory import SharedMemory; print(SharedMemory(create=True, size=9, track=False).name)",
        options=(),
    )
    name, err = one.finish()
    assert err == ""
    left = SharedMemory(name.strip())
    assert left.size == 9
    left.close()
    left.unlink()


def test_whoever_unlinks_the_tracker_hears_of_it(program):
    one = program(
        """
        import procession
        from procession.shared_memory import SharedMemory

        def unlink(name):
            memory = SharedMemory(name)
            memory.close()
            memory.unlink()

        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                memory = SharedMemory(create=True, size=1)
                child = procession.get_context(method).Process(target=unlink, args=(memory.name,))
                child.start()
                child.join()
                memory.close()
                print(child.exitcode)
        """,
        options=(),
    )
    assert one.finish() == ("0\n0\n0\n", "")


def test_name_size_and_repr(memory):
    assert memory.size == 4096
    assert len(memory.buf) == 4096
    assert memory._name == f"/{memory.name}"
    assert repr(memory) == f"SharedMemory({memory.name!r}, size=4096)"
    again = pickle.loads(pickle.dumps(memory))
    assert (again.name, again.size) == (memory.name, memory.size)
    again.close()
    assert again.buf is None
    again.close()


def test_names_that_are_taken_or_wrong(memory, monkeypatch):
    with pytest.raises(FileExistsError):
        SharedMemory(memory.name, create=True, size=1)
    names = iter([memory._name, "/procession_second"])
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: next(names))
    second = SharedMemory(create=True, size=1)
    assert second.name == "procession_second"
    second.close()
    second.unlink()
    with pytest.raises(FileNotFoundError):
        second.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory("procession_second")
    for name, error in (("", OSError), ("a/b", OSError), ("a\0b", ValueError)):
        with pytest.raises(error, match=r"name of shared memory|name '/a"):
            SharedMemory(name, create=True, size=1)


@pytest.mark.parametrize("arguments", [{"create": True, "size": -1}, {"create": True, "size": 0}, {}])
def test_sizes_and_arguments_that_are_wrong(arguments):
    with pytest.raises(ValueError, match=r"must be|can only be"):
        SharedMemory(**arguments)


def test_too_large_a_size_leaves_nothing(nothing_left_behind):
    with pytest.raises((OSError, OverflowError)):
        SharedMemory("procession_huge", create=True, size=1 << 62)
    assert not os.path.exists("/dev/shm/procession_huge")


def test_an_empty_file_is_refused_and_stays(nothing_left_behind):
    path = "/dev/shm/procession_empty"
    with open(path, "wb"):
        pass
    try:
        with pytest.raises(ValueError, match="empty"):
            SharedMemory("procession_empty")
        assert os.path.exists(path)
    finally:
        os.unlink(path)


def is_mapped(name):
    with open("/proc/self/maps") as maps:
        return f"/dev/shm/{name}" in maps.read()


def test_close_with_views_keeps_them_valid_and_leaks_nothing(nothing_left_behind):
    before = processes.descriptors()
    made = SharedMemory(create=True, size=10)
    whole, view = made.buf, made.buf[2:4]
    made.close()
    assert made.buf is None
    # Neither the object's descriptor nor any that the mapping might have.
    assert not processes.descriptors() - before
    view[:] = b"ab"
    again = SharedMemory(made.name)
    assert bytes(again.buf[:5]) == b"\0\0ab\0"
    again.close()
    made.unlink()
    made.close()
    del made, again
    assert bytes(view) == b"ab"
    assert len(whole) == 10
    del whole
    assert bytes(view) == b"ab"


def test_the_mapping_goes_with_the_last_view(memory):
    again = SharedMemory(memory.name)
    memory.close()
    view = again.buf.cast("i")
    again.close()
    assert is_mapped(memory.name)
    view[0] = 7
    del view
    assert not is_mapped(memory.name)


def test_arrays_over_closed_memory_stay_valid(memory):
    numpy = pytest.importorskip("numpy")
    # NumPy takes the address and no export: where the memory is unmapped by close(), the next line is the last.
    array = numpy.ndarray((1024,), dtype="i4", buffer=memory.buf)
    array[:] = 7
    memory.close()
    assert array.sum() == 7 * 1024
    assert is_mapped(memory.name)
    del array
    assert not is_mapped(memory.name)


def test_an_array_outlives_the_object(nothing_left_behind):
    numpy = pytest.importorskip("numpy")

    def make():
        made = SharedMemory(create=True, size=4096)
        array = numpy.ndarray((1024,), dtype="i4", buffer=made.buf)
        made.unlink()
        return array

    array = make()
    gc.collect()
    array[:] = 1
    assert array.sum() == 1024


def test_what_is_open_at_the_end_of_the_program_says_nothing(program, memory):
    one = program(
        """
        import sys
        from procession.shared_memory import SharedMemory

        class Kept:
            def __init__(self):
                self.memory, self.itself = SharedMemory(sys.argv[1]), self

        kept = Kept()
        kept.view = kept.memory.buf[1:]
        # The last of all modules to go.
        sys.kept = kept, sys.modules
        """,
        memory.name,
        options=(),
    )
    assert one.finish() == ("", "")


def test_the_mapping_is_an_mmap(memory):
    assert isinstance(memory._mmap, mmap.mmap)
    assert memory._mmap.size() == len(memory._mmap) == 4096
    memory._mmap.write(b"written")
    memory._mmap.flush()
    memory._mmap.madvise(mmap.MADV_WILLNEED)
    assert bytes(memory.buf[:7]) == b"written"
    os.truncate(memory._fd, 8192)
    assert memory._mmap.size() == 8192
    # What programs do that want to be rid of the standard package's errors at the end.
    memory._mmap = memory._buf = None
    memory.close()


ITEMS = [1, -(2**63), 2.5, True, False, None, "text", "größer", b"bytes", "", b""]


@pytest.fixture
def items():
    made = ShareableList(ITEMS)
    yield made
    made.shm.close()
    made.shm.unlink()


def test_list_holds_what_it_was_given(items):
    assert list(items) == ITEMS
    assert len(items) == len(ITEMS)
    assert [type(item) for item in items] == [type(item) for item in ITEMS]
    assert items[-1] == b""
    assert items.count("text") == 1
    assert items.index(2.5) == 2
    with pytest.raises(ValueError, match="not in this container"):
        items.index("absent")
    with pytest.raises(IndexError, match="index out of range"):
        items[len(ITEMS)]
    with pytest.raises(IndexError, match="assignment index out of range"):
        items[-len(ITEMS) - 1] = 1
    assert items.format == "qqdxxxxxxx?xxxxxxx?xxxxxx?x8s8s8s8s8s"
    longer = ShareableList(["ééééé", "12345678"])
    assert list(longer) == ["ééééé", "12345678"]
    assert longer.format == "16s16s"
    longer.shm.close()
    longer.shm.unlink()
    assert ShareableList[int].__origin__ is ShareableList


def test_list_items_change_type_within_their_space(items):
    items[0] = 2.5
    items[2] = "8 letter"
    items[7] = b"8 bytes!"
    assert items[0] == 2.5
    assert items[2] == "8 letter"
    assert items[7] == b"8 bytes!"
    items[7] = None
    assert items[7] is None
    items[7] = "again 8!"
    assert items[7] == "again 8!"


@pytest.mark.parametrize(
    ("value", "error"), [(2**63, struct.error), ("nine char", ValueError), ([], KeyError), ("ééééé", ValueError)]
)
def test_list_items_that_do_not_fit_change_nothing(items, value, error):
    with pytest.raises(error):
        items[0] = value
    assert list(items) == ITEMS


def test_list_goes_to_children(ctx, nothing_left_behind):
    shared = ShareableList([1, "the text"])
    child = ctx.Process(target=change, args=(shared,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert list(shared) == [2, "changed"]
    child.close()
    again = pickle.loads(pickle.dumps(shared))
    again[0] = 7
    assert shared[0] == 7
    again.shm.close()
    shared.shm.close()
    shared.shm.unlink()


@pytest.mark.parametrize(
    "content",
    [struct.pack("q", -1), struct.pack("q", 100), struct.pack("qqq", 1, 8, 0), struct.pack("qqq", 1, 0, 2**40)],
)
def test_other_memory_is_no_list(memory, content):
    memory.buf[: len(content)] = content
    if content == struct.pack("q", 100):
        memory.buf[8:16] = b"\xff" * 8
    with pytest.raises(ValueError, match="does not hold a ShareableList"):
        ShareableList(name=memory.name)
