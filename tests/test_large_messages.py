"""Large arrays and other buffers through pipes."""

import os
import pickle
import threading

import numpy as np
import pytest

import procession


class Passed:
    """A class of the user's that hands its buffer to the pickler."""

    def __init__(self, contents):
        self.contents = contents

    def __reduce_ex__(self, protocol):
        return Passed, (pickle.PickleBuffer(self.contents),)


def echo(connection, count):
    for _ in range(count):
        connection.send(connection.recv())


def through_a_pipe(obj, receive=lambda end: end.recv()):
    here, there = procession.Pipe()
    with here, there:
        sender = threading.Thread(target=here.send, args=(obj,), daemon=True)
        sender.start()
        received = receive(there)
        sender.join()
    return received


ARRAYS = [
    np.arange(3_000),
    np.arange(1_000_000, dtype=np.int64),
    np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000),
    np.asfortranarray(np.arange(120_000).reshape(300, 400)),
    np.arange(2_000_000, dtype=np.int64)[::2],
    np.zeros((0, 7)),
    np.arange(100_000, dtype=">i4"),
    np.zeros(20_000, [("a", "i4"), ("b", "f8")]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_an_array_arrives_equal_writable_and_its_own(array):
    received = through_a_pipe(array)
    np.testing.assert_array_equal(received, array)
    assert received.dtype == array.dtype
    assert received.flags.writeable
    assert received.flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous
    assert received.flags.aligned
    before = array.copy()
    received.fill(1)
    np.testing.assert_array_equal(array, before)


def test_between_processes(ctx):
    here, there = ctx.Pipe()
    child = ctx.Process(target=echo, args=(there, 20))
    child.start()
    for number in range(20):
        array = np.full(200_000 + number, number)
        here.send({"array": array, "same": array, "small": np.arange(3), "text": "x" * number})
        back = here.recv()
        np.testing.assert_array_equal(back["array"], array)
        assert back["same"] is back["array"]
        assert back["small"].tolist() == [0, 1, 2]
        assert len(back["text"]) == number
    child.join()
    assert child.exitcode == 0


def test_what_is_read_only_stays_so():
    array = np.arange(100_000)
    array.flags.writeable = False
    received = through_a_pipe([array, np.arange(100_000)])
    assert [one.flags.writeable for one in received] == [False, True]


def test_buffers_of_other_classes():
    received = through_a_pipe(Passed(bytearray(b"ab" * 50_000)))
    assert bytes(received.contents) == b"ab" * 50_000
    assert not memoryview(received.contents).readonly
    assert memoryview(through_a_pipe(Passed(b"c" * 50_000)).contents).readonly


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("length", [10, 1 << 16, 5_000_000])
def test_bytes(kind, length):
    contents = kind(b"q") * length
    received = through_a_pipe((contents, 1))
    assert received == (contents, 1)
    assert type(received[0]) is kind


def test_many_arrays_keep_their_contents():
    arrays = [np.full(20_000 + number, number) for number in range(50)]
    received = through_a_pipe(arrays)
    kept = received[7]
    del received
    np.testing.assert_array_equal(kept, arrays[7])


def test_who_receives_bytes_gets_one_pickle():
    array = np.arange(100_000)
    for receive in (lambda end: end.recv_bytes(), lambda end: into(end, 2_000_000)):
        np.testing.assert_array_equal(pickle.loads(through_a_pipe(array, receive)), array)
    with pytest.raises(procession.BufferTooShort) as error:
        through_a_pipe(array, lambda end: into(end, 1_000))
    np.testing.assert_array_equal(pickle.loads(error.value.args[0]), array)


def make_directory(path):
    os.mkdir(path)


class Mischief:
    def __init__(self, path):
        self.path = path
        self.array = np.arange(100_000)

    def __reduce__(self):
        return make_directory, (self.path,), self.__dict__


def test_who_receives_bytes_unpickles_nothing(tmp_path):
    path = tmp_path / "made"
    message = through_a_pipe(Mischief(str(path)), lambda end: end.recv_bytes())
    assert b"make_directory" in message
    assert not path.exists()


def test_one_pickle_has_all_that_was_apart():
    read_only = np.arange(5_000)
    read_only.flags.writeable = False
    numbers = {number: str(number) for number in range(5_000)}
    array = np.arange(100_000)
    sent = [array, read_only, array, numbers, "x" * 100_000, b"y" * 100_000, pickle.PickleBuffer(b"z" * 50_000)]
    got = pickle.loads(through_a_pipe(sent, lambda end: end.recv_bytes()))
    np.testing.assert_array_equal(got[0], array)
    np.testing.assert_array_equal(got[1], read_only)
    assert got[0].flags.writeable
    assert not got[1].flags.writeable
    assert got[0] is got[2]
    assert got[3:] == [numbers, "x" * 100_000, b"y" * 100_000, b"z" * 50_000]


def into(end, room):
    buffer = bytearray(room)
    length = end.recv_bytes_into(buffer, 10)
    return bytes(buffer[10 : 10 + length])


def test_no_more_bytes_than_allowed():
    def receive(end):
        with pytest.raises(OSError, match="bad message length"):
            end.recv_bytes(1_000)
        assert not end.readable

    through_a_pipe(np.arange(100_000), receive)


def test_an_array_that_can_not_be_pickled_leaves_the_pipe_as_it_was():
    here, there = procession.Pipe()
    with here, there:
        for _ in range(3):
            with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
                here.send([np.arange(100_000), lambda: 0])
        here.send("next")
        assert there.recv() == "next"


def test_pipes_of_one_direction_keep_the_frames_of_the_standard_package():
    reader, writer = procession.Pipe(duplex=False)
    array = np.arange(50_000)
    with reader, writer:
        sender = threading.Thread(target=writer.send, args=(array,), daemon=True)
        sender.start()
        np.testing.assert_array_equal(pickle.loads(reader.recv_bytes()), array)
        sender.join()


def test_arrays_in_a_manager(ctx):
    with ctx.Manager() as manager:
        shared, items, queue = manager.dict(), manager.list(), manager.Queue()
        array = np.arange(300_000)
        shared["array"] = array
        items.extend([array[:10_000], "text", array])
        queue.put(array)
        for received in (shared["array"], items[2], queue.get(), shared.copy()["array"]):
            np.testing.assert_array_equal(received, array)
            received[0] = -1
        array[:] = 0
        assert shared["array"][:3].tolist() == [0, 1, 2]
        assert items[0].tolist() == list(range(10_000))
        child = ctx.Process(target=set_last, args=(shared,))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert shared["array"][-1] == -5
        with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
            shared["function"] = [array, lambda: 0]
        assert len(shared["array"]) == 300_000


def set_last(shared):
    array = shared["array"]
    array[-1] = -5
    shared["array"] = array
