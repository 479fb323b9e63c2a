"""Arrays that several processes have at once."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import processes
import procession


def fill(array, value):
    array[...] = value


def add_to_views(views):
    for number, view in enumerate(views):
        view += number + 1


def passed_on(array):
    array[0] += 1
    return array[1:]


def made_here(value):
    array = procession.shared_array(1000, np.int64)
    array[:] = value
    return array


def killed_at_first(mark, array):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return total(array)


def total(array):
    return float(array.sum())


def put_and_end(queue):
    array = procession.shared_array((2, 3))
    array[:] = 7
    queue.put(array)


def put_and_be_killed(queue):
    put_and_end(queue)
    os.kill(os.getpid(), 9)


def echo(connection):
    connection.send(connection.recv())


def test_a_child_writes_into_the_parents_array(ctx):
    array = procession.shared_array((3, 4), np.int32)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.int32
    assert not array.any()
    child = ctx.Process(target=fill, args=(array[1], 5))
    child.start()
    child.join()
    assert child.exitcode == 0
    np.testing.assert_array_equal(array, [[0] * 4, [5] * 4, [0] * 4])


def test_views_of_one_array_are_views_of_one_array_there(ctx):
    array = procession.shared_array((4, 6), np.int64)
    record = procession.shared_array(3, [("a", "i4"), ("b", "f8")])
    views = [array[::2], array.T[1:3], array[::-1, ::-3], array.reshape(-1)[5:], record["b"], array[2:2]]
    expected, expected_record = np.zeros((4, 6), np.int64), np.zeros(3, record.dtype)
    add_to_views(
        [
            expected[::2], expected.T[1:3], expected[::-1, ::-3], expected.reshape(-1)[5:], expected_record["b"],
            expected[2:2],
        ]
    )  # fmt: skip
    child = ctx.Process(target=add_to_views, args=(views,))
    child.start()
    child.join()
    assert child.exitcode == 0
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(record, expected_record)


def test_a_pool_gets_and_returns_it_without_copies(ctx):
    array = procession.shared_array(10, np.int64)
    # One worker: two that add to the same item at a time would lose something.
    with ctx.Pool(1) as pool:
        rests = pool.map(passed_on, [array] * 6, chunksize=2)
        assert array[0] == 6
        for rest in rests:
            rest[0] += 1
        assert array[1] == 6
        made = pool.map(made_here, range(5))
    assert [int(array.sum()) for array in made] == [number * 1000 for number in range(5)]


def test_it_outlives_the_worker_that_made_it(ctx):
    with ctx.Pool(1, maxtasksperchild=1) as pool:
        results = [pool.apply_async(made_here, (number,)) for number in range(3)]
        assert [int(result.get()[0]) for result in results] == [0, 1, 2]


def test_a_result_is_there_when_its_worker_has_long_ended(ctx):
    pool = ctx.Pool(2)
    results = [pool.apply_async(made_here, (number,)) for number in range(3)]
    mapped = pool.map_async(made_here, range(3, 6), chunksize=2)
    pool.close()
    pool.join()
    assert [int(array.sum()) for array in (*(result.get() for result in results), *mapped.get())] == [
        number * 1000 for number in range(6)
    ]


def test_a_task_that_is_tried_again_still_finds_its_array(tmp_path, nothing_left_behind):
    ctx = procession.get_context("fork")
    with ctx.Pool(1) as pool:
        before = processes.descriptors()
        array = procession.shared_array(100)
        array[:] = 2
        result = pool.apply_async(killed_at_first, (tmp_path / "mark", array), retries=1)
        del array
        assert result.get() == 200
        del result
        assert processes.descriptors() == before


def fail_with(value):
    raise ValueError(made_here(value))


def test_an_array_in_an_exception(ctx):
    with ctx.Pool(1, maxtasksperchild=1) as pool:
        failed = [pool.apply_async(fail_with, (number,)) for number in range(2)]
        for number, result in enumerate(failed):
            with pytest.raises(ValueError) as info:
                result.get()
            assert info.value.args[0].sum() == 1000 * number


def adds_sum_of(array):
    return lambda n: n + array.sum()


def test_an_array_in_a_closure_is_lent_as_well():
    ctx = procession.get_context("fork")
    array, queue = procession.shared_array(5), ctx.Queue()
    array[:] = 1
    with ctx.Pool(2) as pool:
        assert pool.map(adds_sum_of(array), range(40), chunksize=1) == [n + 5 for n in range(40)]
    # What was read forty times is not taken for what was sent forty times.
    queue.put(array)
    del array
    assert queue.get().sum() == 5


def test_what_is_fed_to_a_pool_that_has_ended_is_not_kept(nothing_left_behind):
    asked, go = threading.Event(), threading.Event()

    def arrays():
        for _ in range(10):
            yield procession.shared_array(1000)
            asked.set()
            go.wait()

    pool = procession.get_context("fork").Pool(1)
    before = processes.descriptors()
    results = pool.imap_unordered(total, arrays())
    asked.wait()
    pool.terminate()
    go.set()
    pool.join()
    assert processes.eventually(lambda: not (processes.descriptors() - before))
    del results


@pytest.mark.parametrize("function", [total, lambda array: total(array)], ids=["by name", "by value"])
def test_a_pool_keeps_arrays_until_their_task_is_done(function, nothing_left_behind):
    with procession.get_context("fork").Pool(2) as pool:
        assert pool.apply(function, (procession.shared_array(3),)) == 0
        before = processes.descriptors()
        assert pool.map(function, [procession.shared_array(1000) for _ in range(20)]) == [0] * 20
        refused = pool.apply_async(function, (procession.shared_array(3), threading.Lock()))
        refused.wait()
        assert not refused.successful()
        del refused
        gc.collect()
        results = pool.imap(made_here, range(20))
        assert next(results).sum() == 0
        del results
        pool.apply(total, (np.zeros(1),))
        assert processes.descriptors() == before


def test_a_producer_ends_when_its_array_has_been_fetched(ctx):
    queue = ctx.Queue()
    producer = ctx.Process(target=put_and_end, args=(queue,))
    producer.start()
    np.testing.assert_array_equal(queue.get(), np.full((2, 3), 7))
    producer.join()
    assert producer.exitcode == 0


def test_the_array_of_a_dead_sender_is_an_error():
    ctx = procession.get_context("fork")
    queue = ctx.Queue()
    producer = ctx.Process(target=put_and_be_killed, args=(queue,))
    producer.start()
    producer.join()
    with pytest.raises(FileNotFoundError, match=f"process {producer.pid}"):
        queue.get()


def test_it_is_kept_for_its_receiver_when_the_sender_has_dropped_it(nothing_left_behind):
    queue = procession.get_context("fork").Queue()
    before = processes.descriptors()
    array = procession.shared_array(5)
    array[:] = 3
    queue.put(array)
    queue.put(array)
    del array
    received = queue.get()
    assert received.sum() == 15
    del received
    assert queue.get().sum() == 15
    assert processes.descriptors() == before


def test_it_is_not_kept_for_what_was_not_sent(nothing_left_behind):
    queue = procession.get_context("fork").Queue(1)
    queue.put("full")
    before = processes.descriptors()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        queue.put((procession.shared_array(5), lambda: 0))
    with pytest.raises(procession.queues.Full):
        queue.put(procession.shared_array(5), timeout=0.01)
    with pytest.raises(procession.queues.Full):
        queue.put_many([procession.shared_array(5) for _ in range(3)], timeout=0.01)
    assert queue.get() == "full"
    with pytest.raises(procession.queues.Full):
        queue.put_many([procession.shared_array(5) for _ in range(3)], timeout=0.01)
    assert queue.get().sum() == 0
    assert processes.descriptors() == before


def test_through_a_pipe(ctx):
    here, there = ctx.Pipe()
    child = ctx.Process(target=echo, args=(there,))
    child.start()
    array = procession.shared_array(3)
    here.send({"a": array, "b": array[1:]})
    back = here.recv()
    array[:] = [1, 2, 3]
    assert back["a"].tolist() == [1, 2, 3]
    assert back["b"].tolist() == [2, 3]
    child.join()


def test_through_a_manager():
    with procession.Manager() as manager:
        array = procession.shared_array(4)
        kept = manager.dict(array=array)
        array[2] = 8
        assert kept["array"].tolist() == [0, 0, 8, 0]


def test_a_view_that_is_read_only_stays_so():
    queue = procession.get_context("fork").SimpleQueue()
    array = procession.shared_array(3)
    view = array[:]
    view.flags.writeable = False
    queue.put(view)
    received = queue.get()
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1
    array[0] = 4
    assert received[0] == 4


def test_what_is_computed_from_it_is_an_ordinary_array():
    array = procession.shared_array((3, 3))
    ordinary = [
        array + 1, array.copy(), copy.copy(array), copy.deepcopy(array), array[[0, 1]], array[array > 0],
        pickle.loads(pickle.dumps(array)), pickle.loads(pickle.dumps(array[1], 2)), array.sum(axis=0), np.sqrt(array),
    ]  # fmt: skip
    assert [type(one) for one in ordinary] == [np.ndarray] * len(ordinary)
    assert not any(np.shares_memory(array, one) for one in ordinary)
    assert isinstance(array.sum(), float)
    assert isinstance(array[0, 0], float)
    array += 1
    assert type(array) is type(array[1:]) is not np.ndarray
    np.add(array, 1, out=array)
    assert array.sum() == 18
    queue = procession.get_context("fork").SimpleQueue()
    queue.put(array.astype(np.int8))
    assert queue.get().sum() == 18


def test_numpys_functions_that_return_views_return_shared_ones():
    array = procession.shared_array((1, 4))
    queue = procession.get_context("fork").SimpleQueue()
    for view in (array.squeeze(), np.squeeze(array), array.swapaxes(0, 1), np.ravel(array), np.flip(array)):
        queue.put(view)
        received = queue.get()
        received += 1
    assert array.tolist() == [[5] * 4]


def test_shapes_and_orders():
    assert procession.shared_array(()).shape == ()
    assert procession.shared_array(0).shape == (0,)
    assert procession.shared_array([2, 3], order="F").flags.f_contiguous
    queue = procession.get_context("fork").SimpleQueue()
    for array in (
        procession.shared_array(()),
        procession.shared_array((0, 3)),
        procession.shared_array((2, 3), order="F"),
    ):
        queue.put(array)
        received = queue.get()
        assert (received.shape, received.strides) == (array.shape, array.strides)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((3, object), TypeError), ((-1,), ValueError), ((1 << 62,), MemoryError), (("x",), (TypeError, ValueError))],
)
def test_what_can_not_be(arguments, error):
    with pytest.raises(error):
        procession.shared_array(*arguments)


def test_a_view_beyond_the_memory_is_sent_as_a_copy():
    queue = procession.get_context("fork").SimpleQueue()
    array = procession.shared_array(1000)
    array[:] = 1
    elsewhere = np.ones(3).view(type(array))
    queue.put(elsewhere)
    received = queue.get()
    received[:] = 2
    assert elsewhere.sum() == 3


def test_numpy_is_imported_by_those_who_have_arrays_alone():
    program = "import sys, procession, procession.reduction; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
