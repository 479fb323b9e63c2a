"""Queue, JoinableQueue and SimpleQueue: what goes in comes out, in order, exact and in time."""

import collections
import os
import pickle
import queue
import random
import selectors
import signal
import threading
import time

import numpy
import pytest

import processes
import procession
from procession import connection, queues


@pytest.fixture
def here():
    """A context for queues that stay in this process and its forked children."""
    return procession.get_context("fork")


@pytest.fixture
def q(here):
    return here.Queue()


def forked(function, *args):
    """Run a function in a process made by os.fork, of which the package knows nothing; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """The exit code of a forked process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Objects


class Number(int):
    pass


class Table(dict):
    pass


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and self.x == other.x

    __hash__ = None


OBJECTS = [
    *(None, True, False, 0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**63, -(2**63)),
    *(10**30, -(10**30)),
    *(0.0, -0.0, 1.5, float("inf"), "", "a", "é\u4e00", "\ud800", "x" * 255, "x" * 256, "x" * 70_000),
    *(b"", b"a", b"z" * 255, b"z" * 256, b"z" * 600, b"z" * 70_000, b"z" * 3_000_000, bytearray(b"b" * 200_000)),
    *([], {}, (), [[]], ((),), {"a": {}}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [1, [2, (3, {"four": 5.0})]]),
    *({1: "a", None: b"b", (1, 2): [True]}, list(range(1000)), {"long": "y" * 1000}, {1, 2}, frozenset("ab"), 3 + 4j),
    *(Number(7), Table(a=1), [Number(7)], {"a": Table()}, Point([1]), collections.OrderedDict(a=1), int, len),
]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: f"{type(obj).__name__}-{str(obj)[:12]}")
def test_an_object_comes_out_as_it_went_in(q, obj):
    q.put(obj)
    got = q.get()
    assert got == obj
    assert type(got) is type(obj)
    # Signs of zeros and the order of keys; the order in a set is its own affair.
    if not isinstance(obj, (Point, frozenset)):
        assert repr(got) == repr(obj)
    # What is stored is a pickle that any unpickler reads.
    q.put(obj)
    assert pickle.loads(q._reader.recv_bytes()) == obj


def random_object(chance, depth=0):
    kind = chance.random()
    if depth < 4 and kind < 0.4:
        items = [random_object(chance, depth + 1) for _ in range(chance.choice([0, 1, 2, 3, 4, 9]))]
        if kind < 0.15:
            return {str(chance.random()): item for item in items}
        return items if kind < 0.3 else tuple(items)
    return chance.choice(OBJECTS[:24])


def test_random_plain_data(q):
    chance = random.Random(5)
    for _ in range(1000):
        obj = random_object(chance)
        q.put(obj)
        got = q.get()
        assert got == obj
        assert repr(got) == repr(obj)


def test_shared_and_recursive_containers_stay_so(q):
    shared = [1]
    q.put([shared, shared, (shared,)])
    got = q.get()
    assert got[0] is got[1] is got[2][0]
    recursive = {}
    recursive["self"] = recursive
    q.put(recursive)
    got = q.get()
    assert got["self"] is got


def test_arrays(q):
    array = numpy.arange(100_000.0).reshape(100, 1000)
    for sent in (array, array.T, array[::3], numpy.array(5), numpy.array(["a", None], object)):
        q.put(sent)
        got = q.get()
        assert (got == sent).all()
        assert got.dtype == sent.dtype
        assert got.flags.writeable


def test_what_is_put_is_as_it_was_then(q):
    obj = [1]
    q.put(obj)
    obj.append(2)
    assert q.get() == [1]


class Registered:
    pass


class Copied:
    pass


def test_registered_reducers_are_honoured_from_when_they_are_registered(q, monkeypatch):
    import copyreg

    from procession.reduction import ForkingPickler

    q.put([Registered(), Copied()])
    assert [type(obj) for obj in q.get()] == [Registered, Copied]
    monkeypatch.setitem(ForkingPickler._extra_reducers, Registered, lambda obj: (str, ("registered",)))
    monkeypatch.setitem(copyreg.dispatch_table, Copied, lambda obj: (str, ("copied",)))
    q.put([Registered(), Copied()])
    assert q.get() == ["registered", "copied"]


class Reentrant:
    def __init__(self, q):
        self.q = q

    def __reduce__(self):
        q, self.q = self.q, None
        q.put(["while pickling", Point(1)])
        return str, ("outer",)


def test_pickling_may_put(q):
    q.put([Reentrant(q)])
    assert q.get() == ["while pickling", Point(1)]
    assert q.get() == ["outer"]


def test_what_cannot_be_pickled_is_an_error_of_put(q):
    before = q.qsize()
    for bad in (lambda: 0, [lambda: 0], threading.Lock()):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            q.put(bad)
    assert q.qsize() == before
    q.put([Point(2)])
    assert q.get() == [Point(2)]


def test_put_keeps_no_reference(q):
    import gc
    import weakref

    obj = Registered()
    ref = weakref.ref(obj)
    q.put([obj])
    del obj
    gc.collect()
    assert ref() is None
    q.get()


class Hooked(queues.Queue):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = []

    def _on_queue_feeder_error(self, e, obj):
        self.errors.append((e, obj))


def test_a_class_with_the_feeder_hook_gets_the_error_instead(here):
    q = Hooked(1, ctx=here)
    bad = threading.Lock()
    q.put(bad)
    ((error, obj),) = q.errors
    assert isinstance(error, TypeError)
    assert obj is bad
    # No room was taken.
    q.put(1, block=False)
    assert q.get() == 1


# Waiting


def test_full_and_empty(here):
    q = here.Queue(2)
    assert q.empty()
    assert not q.full()
    assert q._maxsize == 2
    q.put(1)
    q.put(2, timeout=0)
    assert q.full()
    assert q.qsize() == 2
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    with pytest.raises(queue.Full):
        q.put(3, False)
    with pytest.raises(queue.Full):
        q.put(3, timeout=-1)
    start = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.05)
    assert time.monotonic() - start >= 0.05
    assert [q.get(), q.get_nowait()] == [1, 2]
    with pytest.raises(queues.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(False)
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    assert time.monotonic() - start >= 0.05


def test_timeouts_are_checked(q):
    with pytest.raises(TypeError):
        q.get(timeout="soon")
    with pytest.raises(ValueError, match="NaN"):
        q.get(timeout=float("nan"))
    with pytest.raises(OverflowError):
        procession.Queue(2**40)


@pytest.mark.parametrize("maxsize", [0, -1])
def test_no_bound(here, maxsize):
    q = here.Queue(maxsize)
    q.put_many(range(100_000))
    assert not q.full()
    assert q.qsize() == 100_000


def test_get_waits_for_a_put_and_put_for_a_get(here):
    q = here.Queue(1)
    pid = forked(lambda: [q.put(n) for n in range(200)])
    assert [q.get(timeout=30) for _ in range(200)] == list(range(200))
    assert ended(pid) == 0


def test_a_signal_handler_runs_while_get_waits(q):
    heard = []
    former = signal.signal(signal.SIGALRM, lambda *_: heard.append(q.qsize()) or q.put("from the handler"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert q.get(timeout=30) == "from the handler"
    finally:
        signal.signal(signal.SIGALRM, former)
    assert heard == [0]


@pytest.mark.parametrize("call", ["q.get()", "full.put(1)", "joinable.join()"])
def test_ctrl_c_ends_a_wait(program, call):
    run = program(
        f"""
        import os, procession
        q, full, joinable = procession.Queue(), procession.Queue(1), procession.JoinableQueue()
        full.put(0)
        joinable.put(0)
        print("ready", flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", full.qsize())
        """
    )
    assert run.readline() == "ready"
    time.sleep(0.2)
    os.kill(run.pid, signal.SIGINT)
    out, err = run.finish()
    assert (out, err) == ("interrupted 1\n", "")


def test_threads(here):
    q = here.Queue(10)
    got = []

    def produce(first):
        for number in range(first, first + 3000):
            q.put([number])

    def consume():
        got.extend(q.get()[0] for _ in range(3000))

    threads = [threading.Thread(target=produce, args=(first,)) for first in (0, 3000)]
    threads += [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(6000))


# Many at once


def test_batches(here):
    q = here.Queue()
    q.put_many(iter(range(1000)))
    assert q.get_many(10) == list(range(10))
    assert q.get_many(5000) == list(range(10, 1000))
    with pytest.raises(queue.Empty):
        q.get_many(5, block=False)
    with pytest.raises(queue.Empty):
        q.get_many(5, timeout=0.01)
    with pytest.raises(ValueError, match="positive"):
        q.get_many(0)
    q.put_many([])
    q.put_many([[Point(1)], b"x" * 1_000_000])
    assert q.get_many(5) == [[Point(1)], b"x" * 1_000_000]
    assert q.empty()


def test_a_batch_that_fails_keeps_what_came_before(here):
    q = here.Queue(3)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        q.put_many([1, 2, lambda: 0, 4])
    assert q.get_many(5) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        q.put_many(1 // n for n in (1, 0))
    assert q.get_many(5) == [1]
    with pytest.raises(queue.Full):
        q.put_many(range(5), timeout=0.01)
    assert q.get_many(5) == [0, 1, 2]


def test_batches_wait_for_room(here):
    q = here.Queue(7)
    pid = forked(q.put_many, range(5000))
    got = []
    while len(got) < 5000:
        got += q.get_many(100)
    assert got == list(range(5000))
    assert ended(pid) == 0


# Between processes, by each start method


def echo(source, target):
    for obj in iter(source.get, None):
        target.put(obj)


def test_to_a_child_and_back(ctx):
    source, target = ctx.Queue(3), ctx.SimpleQueue()
    child = ctx.Process(target=echo, args=(source, target))
    child.start()
    for obj in OBJECTS[1:40]:
        source.put(obj)
        assert target.get() == obj
    source.put(None)
    child.join()
    assert child.exitcode == 0
    assert source.empty()
    assert target.empty()


def hand_on(ctx, q):
    grandchild = ctx.Process(target=q.put, args=("from a grandchild",))
    grandchild.start()
    grandchild.join()


def test_a_child_hands_a_queue_on(ctx):
    q = ctx.Queue()
    child = ctx.Process(target=hand_on, args=(ctx, q))
    child.start()
    assert q.get(timeout=40) == "from a grandchild"
    child.join()


def put_both(one, other, holder):
    one.put(1)
    other.put(2)
    holder["q"].put(3)
    assert one.qsize() == 3


def test_a_queue_handed_over_twice_is_one(ctx):
    q = ctx.Queue()
    child = ctx.Process(target=put_both, args=(q, q, {"q": q}))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert q.get_many(5) == [1, 2, 3]


def test_nothing_is_left(ctx, nothing_left_behind):
    q, simple, joinable = ctx.Queue(), ctx.SimpleQueue(), ctx.JoinableQueue(5)
    assert q._reader.poll() is False
    child = ctx.Process(target=put_both, args=(q, simple, {"q": q}))
    child.start()
    child.join()
    child.close()
    joinable.put(q.qsize())


def put_bytes(q, size):
    q.put(bytes(size))


@pytest.mark.once
def test_a_producer_of_a_gigabyte_is_joined_before_anything_is_read(ctx):
    q = ctx.Queue()
    child = ctx.Process(target=put_bytes, args=(q, 1 << 30))
    child.start()
    child.join()
    assert child.exitcode == 0
    got = q.get()
    assert len(got) == 1 << 30
    assert not any(got[:: 1 << 20])


def memory_available():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


@pytest.mark.once
@pytest.mark.timeout(300)
@pytest.mark.skipif(memory_available() < 12 << 30, reason="needs 12 GiB of memory")
def test_a_message_of_three_gibibytes(here):
    q = here.Queue()
    size = 3 << 30

    def check():
        got = q.get()
        assert len(got) == size
        assert got[-1:] == b"\1"

    pid = forked(check)
    q.put(bytes(size - 1) + b"\1")
    assert ended(pid) == 0
    assert q.empty()


def test_many_producers_and_consumers(ctx):
    q, results = ctx.Queue(50), ctx.Queue()
    producers = [ctx.Process(target=produce, args=(q, number, 1000)) for number in range(3)]
    consumers = [ctx.Process(target=consume, args=(q, results)) for _ in range(3)]
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join()
    for _ in consumers:
        q.put(None)
    for process in consumers:
        process.join()
    got = [results.get(timeout=5) for _ in consumers]
    for one in got:
        for number in range(3):
            of_one = [n for producer, n in one if producer == number]
            assert of_one == sorted(of_one)
    assert sorted(item for one in got for item in one) == [(number, n) for number in range(3) for n in range(1000)]


def produce(q, number, count):
    for n in range(count):
        q.put((number, n))


def consume(q, results):
    results.put(list(iter(q.get, None)))


# Forks that the package knows nothing of


def test_os_fork(here):
    q, done = here.Queue(), here.JoinableQueue()
    q.put(0)
    done.put("x")
    pid = forked(lambda: (q.put(q.get() + 1), done.get(), done.task_done()))
    done.join()
    assert ended(pid) == 0
    assert q.get() == 1


def test_fork_while_threads_use_a_queue(here):
    """Standard package: as here."""
    q = here.Queue()
    going = True

    def work():
        while going:
            q.put([Point(1)])
            q.get()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            pid = forked(lambda: [(q.put([Point(n)]), q.get()) for n in range(50)])
            assert ended(pid) == 0
    finally:
        going = False
        for thread in threads:
            thread.join()
    assert q.empty()


# Polling


def test_the_reader_is_readable_exactly_while_something_is_there(q):
    def readable():
        assert connection.wait([q._reader], 0) == ([q._reader] if q.qsize() else [])
        with selectors.DefaultSelector() as selector:
            selector.register(q._reader, selectors.EVENT_READ)
            return bool(selector.select(0))

    assert not readable()
    assert not q._reader.poll()
    q.put_many([1, 2, 3])
    assert readable()
    assert q._reader.poll()
    assert q._reader.recv() == 1
    assert readable()
    q.get_many(2)
    assert not readable()
    q._writer.send("x")
    assert readable()
    pid = forked(q.get)
    assert ended(pid) == 0
    assert not readable()


def test_a_selector_hears_of_each_object(here):
    q = here.Queue(5)
    pid = forked(lambda: [q.put(n) for n in range(2000)])
    with selectors.DefaultSelector() as selector:
        selector.register(q._reader, selectors.EVENT_READ)
        for n in range(2000):
            assert selector.select(30), "not readable with an object in it"
            assert q.get_nowait() == n
        assert not selector.select(0)
    assert ended(pid) == 0


def test_connection_wait_for_queue_and_sentinel(ctx):
    q = ctx.Queue()
    child = ctx.Process(target=put_bytes, args=(q, 10))
    child.start()
    ready = set()
    while len(ready) < 2:
        ready.update(connection.wait([q._reader, child.sentinel]))
    assert ready == {q._reader, child.sentinel}
    assert q._reader.recv() == bytes(10)
    child.join()


def test_poll_with_a_timeout(q):
    start = time.monotonic()
    assert not q._reader.poll(0.05)
    assert time.monotonic() - start >= 0.05
    pid = forked(lambda: (time.sleep(0.1), q.put(1)))
    assert q._reader.poll(None)
    assert ended(pid) == 0


def test_the_ends_are_like_connections(q):
    with q._writer as writer:
        writer.send_bytes(b"__" + pickle.dumps([1]) + b"__", 2, len(pickle.dumps([1])))
        with pytest.raises(ValueError, match="within the buffer"):
            writer.send_bytes(b"abc", 2, 5)
    assert writer.closed
    with pytest.raises(OSError, match="is closed"):
        writer.send(1)
    assert q.get() == [1]
    q.put(5)
    with pytest.raises(OSError, match="bad message length"):
        q._reader.recv_bytes(2)
    q._reader.close()
    with pytest.raises(OSError, match="is closed"):
        q._reader.fileno()


# Closing, joining, pickling


def test_a_closed_queue_refuses(q):
    other = procession.Queue()
    for one in (q, other):
        one.close()
        for call in (lambda one=one: one.put(1), one.get, one.get_nowait, lambda one=one: one.put_many([1])):
            with pytest.raises(ValueError, match="is closed"):
                call()
        one.close()
        one.join_thread()
        one.cancel_join_thread()
        assert one.empty()


def test_empty_of_a_closed_queue_that_was_used(q):
    q.put(1)
    q.close()
    with pytest.raises(OSError, match="is closed"):
        q.empty()


def test_closing_concerns_the_process_only(q):
    q.put(1)
    pid = forked(lambda: (q.close(), q.join_thread()))
    assert ended(pid) == 0
    assert q.get() == 1


def test_simple_queue(here):
    q = here.SimpleQueue()
    assert q.empty()
    q.put([1])
    assert not q.empty()
    assert q.get() == [1]
    q.close()
    assert q._reader.closed
    assert q._writer.closed
    for call in (q.get, lambda: q.put(1), q.empty):
        with pytest.raises(OSError, match="is closed"):
            call()


def test_joinable_queue(here):
    q = here.JoinableQueue()
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.put_many(range(3))
    assert q._unfinished == 3

    def work():
        for _ in range(3):
            q.get()
            q.task_done()

    pid = forked(work)
    q.join()
    assert q._unfinished == 0
    assert ended(pid) == 0
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def test_queues_are_pickled_for_children_only(ctx):
    for q in (ctx.Queue(), ctx.SimpleQueue(), ctx.JoinableQueue()):
        with pytest.raises(RuntimeError, match="through inheritance"):
            pickle.dumps(q)


@pytest.mark.parametrize("other", ["spawn", "forkserver"])
def test_a_queue_of_a_fork_context_is_not_sent(here, other):
    child = procession.get_context(other).Process(target=print, args=(here.Queue(),))
    with pytest.raises(RuntimeError, match="A SemLock created in a fork"):
        child.start()


def test_generic_aliases():
    assert queues.Queue[int].__origin__ is queues.Queue
    assert queues.SimpleQueue[int].__args__ == (int,)


def test_a_subclass_without_its_base_initialized_says_so():
    class Forgetful(queues.Queue):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\).__init__"):
        Forgetful().put(1)


def test_an_idle_queue_costs_little(here):
    before = processes.descriptors()
    qs = [here.Queue() for _ in range(50)]
    assert sum((processes.descriptors() - before).values()) == 100
    # A page for the header of each, and nothing for the rest.
    for fd in (fd for q in qs for fd in q._share()[1][:1]):
        assert os.fstat(fd).st_blocks * 512 <= 8192


def test_a_queue_that_was_polled_goes_with_its_last_reference(here):
    import gc

    before = processes.descriptors()
    gc.disable()
    try:
        q = here.SimpleQueue()
        assert q._reader.fileno() > 2
        q._writer.send(1)
        q.close()
        del q
        assert not processes.descriptors() - before
    finally:
        gc.enable()
