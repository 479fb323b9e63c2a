"""Waiting for many things at once."""

import os
import selectors
import signal
import socket
import threading
import time

import pytest

import procession
from procession.connection import Listener, Pipe, wait


def test_those_that_are_ready_are_returned_in_order():
    pipes = [Pipe() for _ in range(4)]
    readers = [reader for reader, _ in pipes]
    assert wait(readers, 0) == []
    assert wait(readers, -1) == []
    for number in (3, 1):
        pipes[number][1].send(number)
    assert wait(readers) == [readers[1], readers[3]]
    assert wait(iter(readers), 20) == [readers[1], readers[3]]
    readers[1].recv()
    assert wait(readers, 0) == [readers[3]]


def test_a_mix_of_things(ctx):
    reader, writer = Pipe(duplex=False)
    near, far = socket.socketpair()
    listener = Listener(("localhost", 0))
    child = ctx.Process(target=time.sleep, args=(600,))
    child.start()
    fd, end = os.pipe()
    with near, far, listener:
        things = [reader, near, child.sentinel, fd, listener._listener._socket]
        assert wait(things, 0.01) == []
        writer.send(1)
        assert wait(things) == [reader]
        far.send(b"x")
        assert wait(things) == [reader, near]
        os.write(end, b"x")
        assert wait(things) == [reader, near, fd]
        child.kill()
        child.join()
        assert wait(things) == [reader, near, child.sentinel, fd]
        with socket.create_connection(listener.address):
            assert wait(things) == things
    os.close(fd)
    os.close(end)


def test_the_end_counts():
    reader, writer = Pipe(duplex=False)
    writer.close()
    assert wait([reader]) == [reader]


def test_one_thing_may_be_given_twice():
    one, other = Pipe()
    other.send(1)
    assert wait([one, one]) == [one, one]


def test_nothing_to_wait_for_takes_the_time_nevertheless():
    before = time.monotonic()
    assert wait([], 0.05) == []
    assert time.monotonic() - before >= 0.05


def test_it_takes_no_less_than_the_time():
    one, _other = Pipe()
    before = time.monotonic()
    assert wait([one], 0.1) == []
    assert time.monotonic() - before >= 0.1


def send_later(conn, pause, message):
    time.sleep(pause)
    conn.send(message)
    conn.close()


def test_messages_of_many_children(ctx):
    children, readers = [], []
    for number in range(4):
        reader, writer = ctx.Pipe(duplex=False)
        children.append(ctx.Process(target=send_later, args=(writer, 0.05 * number, number)))
        children[-1].start()
        writer.close()
        readers.append(reader)
    received = []
    while readers:
        for reader in wait(readers):
            try:
                received.append(reader.recv())
            except EOFError:
                readers.remove(reader)
    assert sorted(received) == [0, 1, 2, 3]
    for child in children:
        child.join()


def test_selectors_see_connections():
    one, other = Pipe()
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ)
        assert selector.select(0) == []
        other.send(1)
        [(key, _events)] = selector.select()
        assert key.fileobj is one


@pytest.mark.parametrize("wrong", [None, "text", object(), -1, 1.5])
def test_what_cannot_be_waited_for_is_refused(wrong):
    with pytest.raises(ValueError):
        wait([wrong], 0)


def test_what_is_closed_is_refused():
    one, other = Pipe()
    fd = other.fileno()
    other.close()
    with pytest.raises(OSError, match="handle is closed"):
        wait([one, other], 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait([one, fd], 1)


def test_a_thread_that_waits_holds_up_no_other():
    one, other = Pipe()
    thread = threading.Thread(target=wait, args=([one],))
    thread.start()
    other.send(1)
    thread.join()


def test_signal_handlers_run_and_the_wait_goes_on():
    rung = []
    former = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    one, _other = Pipe()
    try:
        before = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert wait([one], 0.3) == []
        assert time.monotonic() - before >= 0.3
    finally:
        signal.signal(signal.SIGALRM, former)
    assert len(rung) == 1


def test_no_way_to_wait_for_ever_by_overflow():
    one, other = Pipe()
    other.send(1)
    assert wait([one], 1e300) == [one]
    with pytest.raises(TypeError):
        wait([one], "soon")
    assert procession.connection.wait is wait
