"""A process is killed in the midst of a put or a get: the others go on, nothing is lost, doubled or torn."""

import os
import queue
import random
import signal
import threading
import time

import pytest

import processes
import procession
from procession import connection

# Of one byte each, so that a torn message shows. Small ones, some of several pages, and one that the window can't hold.
SIZES = [20, 300, 9000, 120_000, 5_000_000]


def stamped(producer, number):
    return bytes([producer, number % 251]) * (SIZES[number % len(SIZES)] // 2)


def put_for_ever(q, producer, start):
    start.wait()
    number = 0
    while True:
        q.put(stamped(producer, number))
        number += 1


def check(message):
    """The producer of a message, and the number it bears."""
    assert message == message[:2] * (len(message) // 2), "a message is torn"
    return message[0], message[1]


def take_for_ever(q, start):
    start.wait()
    while True:
        check(q.get())


def killed(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_queue_putter_killed(ctx):
    """Standard package and billiard: half a message is left, `get` waits for the rest of it, past its timeout."""
    chance = random.Random(1)
    q, start = ctx.Queue(20), ctx.Event()
    victims = [ctx.Process(target=put_for_ever, args=(q, number, start)) for number in range(6)]
    for victim in victims:
        victim.start()
    start.set()
    expected = dict.fromkeys(range(6), 0)

    def drain(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                producer, number = check(q.get(timeout=0.05))
            except queue.Empty:
                continue
            assert number == expected[producer] % 251, "a message is lost or doubled"
            expected[producer] += 1

    # All have begun.
    while not all(expected.values()):
        drain(0.05)
    for victim in victims:
        drain(chance.uniform(0, 0.1))
        killed(victim)
        drain(0.02)
    while not q.empty():
        drain(0.02)
    # The next producer finds everything in order.
    q.put("after")
    assert q.get(timeout=10) == "after"
    assert q.qsize() == 0


@pytest.mark.once
def test_consumers_are_killed_in_the_midst_of_messages(ctx):
    chance = random.Random(2)
    q, start = ctx.Queue(), ctx.Event()
    start.set()
    put = 0
    for _ in range(6):
        victim = ctx.Process(target=take_for_ever, args=(q, start))
        victim.start()
        q.put(stamped(7, put))
        put += 1
        # It is at work.
        assert processes.eventually(q.empty)
        end = time.monotonic() + chance.uniform(0.01, 0.1)
        while time.monotonic() < end:
            q.put(stamped(7, put))
            put += 1
        killed(victim)
    # What is left is a run of the last messages put, whole and in order.
    left = q.qsize()
    assert left <= put
    for number in range(put - left, put):
        assert check(q.get(timeout=10)) == (7, number % 251)
    with pytest.raises(queue.Empty):
        q.get_nowait()


def sleep_in_get(q):
    q.get()


def sleep_in_put(q):
    q.put("never")


def test_queue_getter_killed(ctx):
    """Standard package and billiard: it had the readers' lock, and nobody else can get anything any more."""
    consumers_killed(ctx, ctx.Queue())


def test_simple_queue_getter_killed(ctx):
    """Standard package and billiard: it had the readers' lock, and nobody else can get anything any more."""
    consumers_killed(ctx, ctx.SimpleQueue())


def consumers_killed(ctx, q):
    victims = [ctx.Process(target=sleep_in_get, args=(q,)) for _ in range(3)]
    for victim in victims:
        victim.start()
    assert processes.eventually(lambda: all(processes.status(victim.pid).state == "S" for victim in victims))
    for victim in victims:
        killed(victim)
    for n in range(100):
        q.put(n)
    survivor = ctx.Process(target=echo_until_none, args=(q, results := ctx.Queue()))
    survivor.start()
    q.put(None)
    assert results.get(timeout=30) == list(range(100))
    survivor.join()


def echo_until_none(q, results):
    results.put(list(iter(q.get, None)))


def test_waiting_producers_are_killed(ctx):
    q = ctx.Queue(1)
    q.put(0)
    victims = [ctx.Process(target=sleep_in_put, args=(q,)) for _ in range(3)]
    for victim in victims:
        victim.start()
    assert processes.eventually(lambda: all(processes.status(victim.pid).state == "S" for victim in victims))
    for victim in victims:
        killed(victim)
    for n in range(20):
        assert q.get(timeout=10) == n
        q.put(n + 1, timeout=10)
    assert q.qsize() == 1


def put_and_die(q):
    q.put(b"x" * 5_000_000)
    q.put("last")
    os.kill(os.getpid(), signal.SIGKILL)


def test_queue_put_then_killed(ctx):
    """Standard package and billiard: what a thread had not yet written to the pipe goes with the process."""
    q = ctx.Queue()
    child = ctx.Process(target=put_and_die, args=(q,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert q.qsize() == 2
    assert len(q.get()) == 5_000_000
    assert q.get() == "last"


def put_much(q):
    q.put(bytes(1 << 20))
    q.put("last")


def test_queue_joined_before_it_is_drained(ctx):
    """Standard package and billiard: the child waits for somebody to take what is in its queue, and `join` for it."""
    q = ctx.Queue()
    child = ctx.Process(target=put_much, args=(q,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (len(q.get()), q.get()) == (1 << 20, "last")


def send_for_ever(conn, other_end):
    # Whoever else has this end open keeps the reader waiting.
    other_end.close()
    while True:
        conn.send_bytes(bytes(1 << 20))


@pytest.mark.parametrize("duplex", [True, False])
def test_pipe_writer_killed(ctx, duplex):
    """Standard package: the reader gets EOFError or OSError, as here."""
    for _ in range(3):
        ours, theirs = ctx.Pipe(duplex)
        child = ctx.Process(target=send_for_ever, args=(theirs, ours))
        child.start()
        theirs.close()
        assert len(ours.recv_bytes()) == 1 << 20
        # It waits for the rest of a message to be read.
        assert processes.eventually(lambda pid=child.pid: processes.status(pid).state == "S")
        killed(child)
        with pytest.raises((EOFError, OSError)):
            for _ in range(3):
                ours.recv_bytes()
        ours.close()


def take_and_die(q):
    q.get()
    q.task_done()
    q.get()
    os.kill(os.getpid(), signal.SIGKILL)


def join_without(q, child):
    """Join a queue of which one object is lost with a child, and one is not dealt with yet."""
    joined = []
    thread = threading.Thread(target=lambda: joined.append(q.join()), daemon=True)
    with pytest.warns(RuntimeWarning, match=f"ended with 1 of the queue's objects in its hands.*{child.pid}"):
        thread.start()
        assert processes.eventually(lambda: q._unfinished == 1)
        assert not joined
        q.task_done()
        thread.join()
    assert joined


def test_joinable_queue_consumer_killed(ctx):
    """Standard package and billiard: `join` waits for ever for what it had taken."""
    q = ctx.JoinableQueue()
    q.put_many(range(3))
    child = ctx.Process(target=take_and_die, args=(q,))
    child.start()
    child.join()
    assert q._unfinished == 2
    # What the living have in their hands is waited for.
    q.get()
    join_without(q, child)
    # Whoever makes up for the dead after all is heard, once.
    q.task_done()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def take_and_end(q, there):
    there.send(q.get())


def fail_with_one(q):
    q.get()
    raise SystemExit(3)


def test_what_a_process_that_ends_in_order_has_taken_may_be_dealt_with_by_others(ctx):
    """As in the standard package. Whoever fails, however, has lost it."""
    q = ctx.JoinableQueue()
    here, there = ctx.Pipe()
    q.put_many(range(2))
    child = ctx.Process(target=take_and_end, args=(q, there))
    child.start()
    assert here.recv() == 0
    child.join()
    child = ctx.Process(target=fail_with_one, args=(q,))
    child.start()
    child.join()
    assert child.exitcode == 3
    join_without(q, child)


def deal_with(q, go):
    go.acquire()
    q.task_done()


def test_what_another_process_deals_with_is_not_made_up_for_twice(ctx):
    q, go = ctx.JoinableQueue(), ctx.Semaphore(0)
    q.put("taken here, dealt with there")
    q.put("left")
    other = ctx.Process(target=deal_with, args=(q, go))
    other.start()
    q.get()
    go.release()
    other.join()
    assert q._unfinished == 1
    q.get()
    q.task_done()
    q.join()


def put_and_pause(q):
    for n in range(3):
        q.put(n)
    time.sleep(600)


def test_a_poller_sees_what_a_killed_producer_left():
    ctx = procession.get_context("fork")
    q = ctx.Queue()
    assert not q._reader.poll()
    fd = q._reader.fileno()
    child = ctx.Process(target=put_and_pause, args=(q,))
    child.start()
    got = []
    while len(got) < 3:
        assert connection.wait([fd], 30)
        got.append(q.get_nowait())
    killed(child)
    assert got == [0, 1, 2]
    assert connection.wait([fd], 0) == []


def test_memory_that_is_lacking_is_an_error(program):
    run = program(
        """
        import resource, procession
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
        q = procession.Queue()
        count = 0
        try:
            while True:
                q.put(b"x" * 1_000_000)
                count += 1
        except MemoryError as error:
            print("MemoryError", q.qsize() == count > 50, "maxsize" in str(error))
        for _ in range(count):
            q.get()
        q.put("again")
        print(q.get(), q.empty())
        """
    )
    out, err = run.finish()
    assert (out, err) == ("MemoryError True True\nagain True\n", "")
