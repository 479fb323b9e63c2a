"""Large objects: their buffers arrive as memory of the receiver's own, and are given back when it lets them go."""

import array
import gc
import os
import pickle
import signal

import pytest

import procession
from procession.connection import wait
from procession.queues import Full

numpy = pytest.importorskip("numpy")


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def ctx(request):
    return procession.get_context(request.param)


@pytest.fixture
def fork():
    return procession.get_context("fork")


def memory_of(queue):
    """The bytes of memory behind a queue."""
    (ring, _) = queue._share()[1]
    return os.fstat(ring).st_blocks * 512


def triple(requests, answers):
    while (request := requests.get()) is not None:
        request *= 3
        answers.put(request)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_arrays_go_to_another_process_and_come_back_writable(ctx, kind):
    requests, answers = getattr(ctx, kind)(), getattr(ctx, kind)()
    process = ctx.Process(target=triple, args=(requests, answers))
    process.start()
    for length in (10, 5_000, 100_000, 1_000_000):
        numbers = numpy.arange(length, dtype=numpy.float64)
        requests.put(numbers)
        answer = answers.get()
        assert (answer == numbers * 3).all()
        answer[0] = 7
        assert numbers[0] == 0
    requests.put(None)
    process.join()
    assert process.exitcode == 0


def test_what_arrives_is_what_was_put(fork):
    queue = fork.Queue()
    numbers = numpy.arange(60_000, dtype=numpy.int32)
    frozen = numbers.copy()
    frozen.flags.writeable = False
    objects = [
        numbers.reshape(200, 300).T,
        numbers.reshape(300, 10, 20),
        numbers[::2],
        numbers.astype(">f8"),
        numbers.astype("M8[s]"),
        numbers.astype([("a", "i4"), ("b", "f8")], casting="unsafe"),
        numpy.zeros((0, 3)),
    ]
    for obj in objects:
        queue.put(obj)
        got = queue.get()
        assert got.dtype == obj.dtype and got.shape == obj.shape and (got == obj).all() and got.flags.writeable
    queue.put(frozen)
    got = queue.get()
    assert (got == frozen).all() and not got.flags.writeable
    for obj in (b"x" * 3_000_000, bytearray(b"y" * 3_000_000), "z" * 3_000_000, array.array("d", range(300_000))):
        queue.put(obj)
        got = queue.get()
        assert got == obj and type(got) is type(obj)
    mixed = {"small": 1, "arrays": [numbers + n for n in range(3)], "bytes": b"b" * 200_000}
    queue.put(mixed)
    got = queue.get()
    assert got["small"] == 1 and got["bytes"] == mixed["bytes"]
    assert all((a == b).all() for a, b in zip(got["arrays"], mixed["arrays"], strict=True))


def test_one_object_with_very_many_arrays(fork):
    queue = fork.Queue()
    arrays = [numpy.full(9_000, n, dtype=numpy.int64) for n in range(100)]
    queue.put(arrays)
    got = queue.get()
    assert all((a == b).all() for a, b in zip(got, arrays, strict=True))
    got[3][:] = -1
    assert (got[2] == 2).all() and (got[4] == 4).all()


def test_an_array_met_twice_is_one_array(fork):
    queue = fork.Queue()
    numbers = numpy.zeros(50_000)
    queue.put([numbers, numbers])
    one, other = queue.get()
    assert one is other


def test_a_buffer_may_be_put_by_its_own(fork):
    queue = fork.Queue()
    queue.put(pickle.PickleBuffer(bytearray(b"x" * 100_000)))
    got = queue.get()
    assert bytes(got) == b"x" * 100_000
    assert len(got) == 100_000
    assert got[:2] == b"xx"


def test_what_can_not_be_pickled_is_let_go_of(fork):
    for queue in (fork.Queue(), fork.SimpleQueue()):
        contents = bytearray(100_000)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            queue.put((pickle.PickleBuffer(contents), lambda: 0))
        # Nobody has its memory any more.
        contents.append(1)


def test_memory_is_used_again_and_given_back(fork):
    queue = fork.Queue()
    numbers = numpy.arange(500_000, dtype=numpy.float64)
    for _ in range(30):
        queue.put(numbers)
        assert queue.get()[-1] == 499_999
    gc.collect()
    assert memory_of(queue) < 20_000_000
    for _ in range(25):
        queue.put(numbers)
    kept = [queue.get() for _ in range(25)]
    for number, got in enumerate(kept):
        got[0] = number
    assert [got[0] for got in kept] == list(range(25))
    assert memory_of(queue) >= 100_000_000
    del got, kept
    gc.collect()
    assert memory_of(queue) < 80_000_000


def test_batches_and_pickles(fork):
    queue = fork.Queue()
    numbers = numpy.arange(30_000)
    queue.put_many([1, numbers, "two", numbers])
    one, first, two, second = queue.get_many(9)
    assert (one, two) == (1, "two") and (first == numbers).all() and (second == numbers).all()
    queue.put(numbers)
    assert (pickle.loads(queue._reader.recv_bytes()) == numbers).all()
    queue._writer.send_bytes(pickle.dumps(numbers))
    assert (queue.get() == numbers).all()
    queue._writer.send_bytes(b"\x01prcbk is not a pickle")
    assert queue._reader.recv_bytes() == b"\x01prcbk is not a pickle"


def test_a_full_queue_is_full_for_large_objects_too(fork):
    queue = fork.Queue(1)
    numbers = numpy.arange(30_000)
    queue.put(numbers)
    for block, timeout in ((False, None), (True, 0), (True, 0.05)):
        with pytest.raises(Full):
            queue.put(numbers, block, timeout)
    assert (queue.get() == numbers).all()
    queue.put(numbers, timeout=30)
    assert queue.qsize() == 1 and (queue.get() == numbers).all()


def test_a_polled_queue_announces_large_objects(fork):
    queue = fork.Queue()
    assert not wait([queue._reader], 0)
    numbers = numpy.arange(30_000)
    for _ in range(3):
        queue.put(numbers)
        assert wait([queue._reader], 30)
        assert (queue.get() == numbers).all()
        assert not wait([queue._reader], 0)


def write_in_child(numbers, other, report):
    ok = (numbers == 5).all()
    numbers[:] = 6
    other.put(numpy.full(100_000, 9.0))
    other.get()
    report.put(bool(ok and (numbers == 6).all()))


def test_after_a_fork_each_process_has_its_own(fork):
    queue, report = fork.Queue(), fork.Queue()
    queue.put(numpy.zeros(100_000))
    numbers = queue.get()
    numbers[:] = 5
    process = fork.Process(target=write_in_child, args=(numbers, queue, report))
    process.start()
    assert report.get(timeout=60)
    process.join()
    # Neither the child nor what went through the queue since has touched it.
    queue.put(numpy.full(100_000, 8.0))
    kept = queue.get()
    assert (numbers == 5).all() and (kept == 8).all()


def hold_and_wait(queue, report):
    held = [queue.get() for _ in range(5)]
    report.put(sum(int(array[0]) for array in held))
    signal.pause()


def test_what_a_killed_process_held_is_used_again(fork):
    queue, report = fork.Queue(), fork.Queue()
    numbers = numpy.ones(400_000)
    for _ in range(3):
        for _ in range(5):
            queue.put(numbers)
        process = fork.Process(target=hold_and_wait, args=(queue, report))
        process.start()
        assert report.get(timeout=60) == 5
        process.kill()
        process.join()
    # Whoever needs more memory than there is finds what the dead have left.
    for length in range(400_000, 10_000_000, 400_000):
        queue.put(numpy.zeros(length))
        queue.get()
        if memory_of(queue) < 40_000_000:
            break
    assert memory_of(queue) < 90_000_000


def put_and_stop(queue):
    queue.put(numpy.full(200_000, 3.0))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_put_stays_when_its_putter_is_killed(fork):
    queue = fork.Queue()
    process = fork.Process(target=put_and_stop, args=(queue,))
    process.start()
    process.join()
    assert (queue.get(timeout=60) == 3).all()


def limit_files_and_put():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    queue = procession.get_context("fork").Queue()
    numbers = numpy.arange(200_000)
    queue.put([numbers, b"x" * 2_000_000])
    got, text = queue.get()
    assert (got == numbers).all() and got.flags.writeable and text == b"x" * 2_000_000


def test_where_there_is_no_room_for_blocks_all_goes_in_the_message(fork):
    process = fork.Process(target=limit_files_and_put)
    process.start()
    process.join()
    assert process.exitcode == 0
