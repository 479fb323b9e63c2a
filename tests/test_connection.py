"""Pipes, connections, and their way to other processes."""

import array
import gc
import os
import pickle
import signal
import socket
import threading
import time
import weakref
from pathlib import Path

import pytest

import processes
import procession
from procession import connection, reduction
from procession.connection import Connection, Pipe

GIB = 1 << 30


@pytest.fixture(params=["duplex", "one way", "stream"])
def ends(request):
    """The receiving and the sending end of a connection of each kind."""
    if request.param == "stream":
        receiver, sender = (Connection(sock.detach()) for sock in socket.socketpair())
    else:
        receiver, sender = Pipe(duplex=request.param == "duplex")
    with receiver, sender:
        yield receiver, sender


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


# Objects and bytes


@pytest.mark.parametrize(
    "obj",
    [
        None,
        0,
        -1,
        2**70,
        1.5,
        "",
        "text",
        b"",
        b"x" * 65_531,
        b"x" * 65_532,
        b"x" * 65_533,
        [1, {"a": (2,)}],
        {1, 2},
        range(3),
    ],
    ids=lambda obj: repr(obj)[:20],
)
def test_objects_arrive(ends, obj):
    receiver, sender = ends
    thread = in_thread(sender.send, obj)
    received = receiver.recv()
    thread.join()
    assert received == obj
    assert type(received) is type(obj)


def test_what_the_standard_pickler_cannot_is_sent(ends):
    receiver, sender = ends
    sender.send("text".upper)
    assert receiver.recv()() == "TEXT"


def test_an_object_that_cannot_be_pickled_raises_and_sends_nothing(ends):
    receiver, sender = ends
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        sender.send(lambda: None)
    assert not receiver.poll()
    sender.send(1)
    assert receiver.recv() == 1


@pytest.mark.parametrize("size", [0, 1, 65_531, 65_532, 65_533, 200_000, 20_000_000])
def test_bytes_of_all_sizes_arrive(ends, size):
    receiver, sender = ends
    message = os.urandom(size)
    for receive in (receiver.recv_bytes, lambda: receive_into(receiver, size)):
        thread = in_thread(sender.send_bytes, message)
        received = receive()
        thread.join()
        assert received == message


def receive_into(receiver, size):
    buffer = bytearray(b"?" * (size + 2))
    assert receiver.recv_bytes_into(buffer, 1) == size
    assert buffer[0] == buffer[-1] == ord("?")
    return buffer[1:-1]


def test_messages_stay_in_order_when_sizes_are_mixed(ends):
    receiver, sender = ends
    messages = [bytes([n % 256]) * (n * 997 % 300_000) for n in range(60)]

    def send():
        for message in messages:
            sender.send_bytes(message)

    thread = in_thread(send)
    assert [receiver.recv_bytes() for _ in messages] == messages
    thread.join()


@pytest.mark.parametrize("of", [array.array("i", range(10)), memoryview(b"0123456789" * 4).cast("H")], ids=["i", "H"])
def test_buffers_of_wider_items_are_sent_by_bytes(ends, of):
    receiver, sender = ends
    sender.send_bytes(of, 3, 30)
    assert receiver.recv_bytes() == memoryview(of).tobytes()[3:33]
    sender.send_bytes(memoryview(of).tobytes())
    into = array.array("i", [0] * 10)
    assert receiver.recv_bytes_into(into) == 40
    assert into.tobytes() == memoryview(of).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "offset is negative"),
        ((11,), "buffer length < offset"),
        ((0, -1), "size is negative"),
        ((0, 11), "buffer length < offset \\+ size"),
        ((8, 3), "buffer length < offset \\+ size"),
    ],
)
def test_wrong_parts_of_a_buffer_are_refused(ends, arguments, message):
    _receiver, sender = ends
    with pytest.raises(ValueError, match=message):
        sender.send_bytes(b"0123456789", *arguments)


def test_parts_of_a_buffer(ends):
    receiver, sender = ends
    for arguments, expected in [((), b"0123456789"), ((4,), b"456789"), ((4, 2), b"45"), ((10,), b""), ((0, 0), b"")]:
        sender.send_bytes(b"0123456789", *arguments)
        assert receiver.recv_bytes() == expected


def test_what_has_no_buffer_is_refused(ends):
    receiver, sender = ends
    with pytest.raises(TypeError):
        sender.send_bytes("text")
    with pytest.raises(BufferError):
        sender.send_bytes(memoryview(b"0123")[::2])
    with pytest.raises(TypeError):
        receiver.recv_bytes_into(b"read only")
    with pytest.raises(ValueError, match="negative offset"):
        receiver.recv_bytes_into(bytearray(3), -1)
    with pytest.raises(ValueError, match="offset too large"):
        receiver.recv_bytes_into(bytearray(3), 4)
    with pytest.raises(ValueError, match="negative maxlength"):
        receiver.recv_bytes(-1)


def test_a_message_too_long_for_the_buffer_is_handed_over_by_the_exception(ends):
    receiver, sender = ends
    sender.send_bytes(b"0123456789")
    sender.send_bytes(b"next")
    with pytest.raises(procession.BufferTooShort) as raised:
        receiver.recv_bytes_into(bytearray(10), 1)
    assert raised.value.args == (b"0123456789",)
    assert receiver.recv_bytes() == b"next"


def test_a_message_longer_than_allowed_ends_receiving():
    one, other = Pipe()
    other.send_bytes(b"12345")
    with pytest.raises(OSError, match="bad message length"):
        one.recv_bytes(4)
    with pytest.raises(OSError, match="write-only"):
        one.recv_bytes()
    assert not one.readable
    one.send(1)
    assert other.recv() == 1

    reader, writer = Pipe(duplex=False)
    writer.send_bytes(b"12345")
    assert reader.recv_bytes(5) == b"12345"
    writer.send_bytes(b"12345")
    with pytest.raises(OSError, match="bad message length"):
        reader.recv_bytes(4)
    assert reader.closed


@pytest.mark.once
@pytest.mark.timeout(300)
def test_more_than_two_gib():
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if available < 6 * GIB:
        pytest.skip("there is too little memory for a message of more than 2 GiB")
    size = 2 * GIB + 12_345
    receiver, sender = Pipe()
    child = os.fork()
    if child == 0:
        try:
            import mmap

            # Pages that are only read take no memory.
            with mmap.mmap(-1, size) as message:
                message[-3:] = b"end"
                sender.send_bytes(message)
            os._exit(0)
        finally:
            os._exit(1)
    message = receiver.recv_bytes()
    assert len(message) == size
    assert message[-4:] == b"\0end"
    assert os.waitpid(child, 0)[1] == 0


# What a connection is


def test_it_has_a_descriptor_until_it_is_closed(ends):
    for end in ends:
        fd = end.fileno()
        assert end._handle == fd
        assert not os.get_inheritable(fd)
        assert not end.closed
        end.close()
        end.close()
        assert end.closed
        assert end._handle is None
        for call in (end.fileno, end.recv, end.recv_bytes, end.poll, lambda end=end: end.send(1)):
            with pytest.raises(OSError, match="handle is closed"):
                call()
        with pytest.raises(OSError):
            os.fstat(fd)


def test_one_way_means_one_way():
    reader, writer = Pipe(duplex=False)
    assert (reader.readable, reader.writable) == (True, False)
    assert (writer.readable, writer.writable) == (False, True)
    for call in (lambda: reader.send(1), lambda: reader.send_bytes(b"")):
        with pytest.raises(OSError, match="connection is read-only"):
            call()
    for call in (writer.recv, writer.recv_bytes, writer.poll, lambda: writer.recv_bytes_into(bytearray(1))):
        with pytest.raises(OSError, match="connection is write-only"):
            call()


def test_wrong_handles():
    with pytest.raises(ValueError, match="invalid handle"):
        Connection(-1)
    with pytest.raises((TypeError, AttributeError)):
        Connection("3")
    with pytest.raises(ValueError, match="at least one of"):
        Connection(0, False, False)
    stray = Connection(44_977_608)
    try:
        for call in (stray.poll, stray.recv, lambda: stray.send(1)):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
    finally:
        stray._handle = None
    assert stray.closed


def test_the_handle_can_be_taken_and_replaced():
    one, other = Pipe()
    third, fourth = Pipe()
    fd = one._handle
    one._handle = None
    assert one.closed
    one._handle = fd
    one.send(1)
    assert other.recv() == 1
    taken = Connection(third._detach())
    assert third.closed
    taken.send(2)
    assert fourth.recv() == 2


def test_it_closes_its_descriptor_when_it_is_forgotten():
    one, other = Pipe()
    reference = weakref.ref(other)
    fd = other.fileno()
    del other
    gc.collect()
    assert reference() is None
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(EOFError):
        one.recv()


def test_subclasses_may_have_arguments_of_their_own():
    class Named(Connection):
        def __init__(self, name, fd):
            super().__init__(fd)
            self.name = name

    one, other = Pipe()
    named = Named("name", one._detach())
    named.send(named.name)
    assert other.recv() == "name"
    with pytest.raises(RuntimeError, match="__init__"):
        Connection.__new__(Connection).fileno()


def test_the_end_is_an_exception(ends):
    receiver, sender = ends
    sender.send("last")
    sender.close()
    assert receiver.poll()
    assert receiver.recv() == "last"
    for _ in range(2):
        assert receiver.poll()
        with pytest.raises(EOFError):
            receiver.recv()


def test_sending_to_nobody_is_an_exception(ends):
    receiver, sender = ends
    receiver.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            sender.send(1)


def test_poll(ends):
    receiver, sender = ends
    assert receiver.poll() is False
    assert receiver.poll(-1) is False
    before = time.monotonic()
    assert receiver.poll(0.05) is False
    assert time.monotonic() - before >= 0.05
    timer = threading.Timer(0.05, sender.send, [1])
    timer.start()
    assert receiver.poll(None) is True
    assert receiver.poll(20) is True
    timer.join()


@pytest.mark.parametrize("wrong", ["soon", float("nan"), [1]])
def test_wrong_timeouts_are_refused(wrong):
    one, _other = Pipe()
    with pytest.raises((TypeError, ValueError)):
        one.poll(wrong)


def test_threads_may_share_an_end_for_small_messages():
    one, other = Pipe()
    numbers = range(500)

    def send(letter):
        for number in numbers:
            one.send((letter, number))

    threads = [in_thread(send, letter) for letter in "abc"]
    received = [other.recv() for _ in range(3 * len(numbers))]
    for thread in threads:
        thread.join()
    for letter in "abc":
        assert [number for of, number in received if of == letter] == list(numbers)


def test_receiving_does_not_hold_up_other_threads():
    one, other = Pipe()
    thread = in_thread(one.recv)
    assert processes.eventually(thread.is_alive)
    other.send(1)
    thread.join()


def test_closing_during_a_call_of_another_thread():
    one, other = Pipe()
    received = []
    thread = in_thread(lambda: received.append(one.recv()))
    # Asleep in the kernel.
    task = f"/proc/self/task/{thread.native_id}/stat"
    assert processes.eventually(lambda: " S " in Path(task).read_text())
    fd = one.fileno()
    one.close()
    assert one.closed
    # The number is not free for another file before the call has ended.
    os.fstat(fd)
    other.send("the last one")
    thread.join()
    assert received == ["the last one"]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_forked_child_does_not_wait_for_calls_of_the_parents_threads():
    one, other = Pipe()
    thread = in_thread(one.recv)
    task = f"/proc/self/task/{thread.native_id}/stat"
    assert processes.eventually(lambda: " S " in Path(task).read_text())
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = one.fileno()
            one.close()
            try:
                os.fstat(fd)
            except OSError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    other.send(1)
    thread.join()


# Processes


def echo(conn):
    while (message := conn.recv()) is not None:
        conn.send(message)


def test_a_child_answers(ctx, nothing_left_behind):
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=echo, args=(theirs,))
    child.start()
    theirs.close()
    for message in [1, "text", b"x" * 1_000_000, list(range(1000))]:
        ours.send(message)
        assert ours.recv() == message
    ours.send(None)
    with pytest.raises(EOFError):
        ours.recv()
    child.join()
    assert child.exitcode == 0
    child.close()
    ours.close()


def send_forever(conn, message):
    while True:
        conn.send_bytes(message)


@pytest.mark.parametrize("duplex", [True, False])
def test_a_sender_killed_in_the_middle_of_a_message(ctx, duplex):
    receiver, sender = ctx.Pipe(duplex)
    child = ctx.Process(target=send_forever, args=(sender, b"x" * 30_000_000))
    child.start()
    sender.close()
    # A part of a message fills the buffer, and nobody takes it.
    assert receiver.poll(None)
    time.sleep(0.05)
    child.kill()
    child.join()
    with pytest.raises(OSError, match="got end of file during message"):
        receiver.recv_bytes()
    with pytest.raises(EOFError):
        receiver.recv_bytes()


def receive_forever(conn):
    while True:
        conn.recv_bytes()


def test_a_receiver_killed_in_the_middle_of_a_message(ctx):
    receiver, sender = ctx.Pipe()
    child = ctx.Process(target=receive_forever, args=(receiver,))
    child.start()
    receiver.close()
    timer = threading.Timer(0.2, child.kill)
    timer.start()
    with pytest.raises(OSError):
        while True:
            sender.send_bytes(b"x" * 1_000_000)
    child.join()
    timer.join()


def hand_on(conn):
    one, other = Pipe()
    conn.send(other)
    one.send("from the child")
    conn.send_bytes(one.recv_bytes())


def test_connections_are_sent_over_connections(ctx):
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=hand_on, args=(theirs,))
    child.start()
    other = ours.recv()
    assert other.recv() == "from the child"
    other.send_bytes(b"from the parent")
    assert ours.recv_bytes() == b"from the parent"
    child.join()


def take_two(conn):
    reader, sock = conn.recv()
    conn.send((reader.readable, reader.writable, reader.recv(), sock.recv(100)))


def test_one_way_connections_and_sockets_are_sent_too(ctx):
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=take_two, args=(theirs,))
    child.start()
    reader, writer = Pipe(duplex=False)
    writer.send("through the pipe")
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"through the socket")
        ours.send((reader, far))
        assert ours.recv() == (True, False, "through the pipe", b"through the socket")
    child.join()
    procession.resource_sharer.stop(timeout=20)


def take_descriptor(conn):
    fd = reduction.recv_handle(conn)
    os.write(fd, b"written by the child")
    os.close(fd)


def test_descriptors_are_sent_over_a_pipe(ctx):
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=take_descriptor, args=(theirs,))
    child.start()
    reader, writer = os.pipe()
    reduction.send_handle(ours, writer, child.pid)
    os.close(writer)
    assert os.read(reader, 100) == b"written by the child"
    os.close(reader)
    child.join()


def test_a_fork_has_the_connection_too():
    one, other = Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            one.close()
            other.send("from the child")
        finally:
            os._exit(0)
    other.close()
    assert one.recv() == "from the child"
    with pytest.raises(EOFError):
        one.recv()
    os.waitpid(pid, 0)


def test_pickling_leaves_nothing_behind(nothing_left_behind, method):
    one, _other = Pipe()
    for _ in range(3):
        pickle.dumps([reduction.DupFd(one.fileno()) for _ in range(3)])
    procession.resource_sharer.stop(timeout=20)


# Signals


def test_a_signal_handler_runs_while_a_message_is_waited_for():
    one, other = Pipe()
    former = signal.signal(signal.SIGALRM, lambda *_: other.send("sent by the handler"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert one.recv() == "sent by the handler"
    finally:
        signal.signal(signal.SIGALRM, former)


class Alarm(Exception):
    pass


def ring(*_):
    raise Alarm


@pytest.mark.parametrize("waits", ["recv", "poll", "wait", "send", "large send", "large recv"])
def test_an_exception_of_a_signal_handler_ends_any_wait(waits, ends):
    receiver, sender = ends
    if waits == "send":
        fill(sender, receiver)
    elif waits == "large recv":
        # The beginning of a message of which the rest does not come.
        os.write(sender.fileno(), b"\0\0\1\0begin")
    calls = {
        "recv": receiver.recv,
        "poll": lambda: receiver.poll(None),
        "wait": lambda: connection.wait([receiver]),
        "send": lambda: sender.send_bytes(b"x" * 1000),
        "large send": lambda: sender.send_bytes(bytes(10_000_000)),
        "large recv": receiver.recv,
    }
    former = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            calls[waits]()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    if waits.startswith("large"):
        with pytest.raises(OSError, match="out of step"):
            sender.send(1) if waits == "large send" else receiver.recv()
    elif waits in ("recv", "poll", "wait"):
        sender.send("still in step")
        assert receiver.recv() == "still in step"


def fill(sender, receiver):
    """Send until there is room for nothing more."""
    os.set_blocking(sender.fileno(), False)
    try:
        while True:
            os.write(sender.fileno(), b"\0\0\0\1x" * 200)
    except BlockingIOError:
        pass
    finally:
        os.set_blocking(sender.fileno(), True)


def test_ctrl_c_ends_a_receiver(program):
    one = program(
        """
        from procession import Pipe
        one, other = Pipe()
        print("waiting", flush=True)
        try:
            one.recv()
        except KeyboardInterrupt:
            print("interrupted", one.poll(), flush=True)
            raise
        """,
    )
    assert one.readline() == "waiting"
    time.sleep(0.2)
    os.kill(one.pid, signal.SIGINT)
    out, err = one.finish()
    assert out == "interrupted False\n"
    assert err.count("Traceback") == 1
    assert one.exitcode == -signal.SIGINT


# What others send


@pytest.mark.parametrize(
    "sent",
    [b"\xff\xff\xff\xfe", b"\xff" * 12, b"\xff\xff\xff\xff" + b"\x7f" + b"\xff" * 7],
    ids=["negative", "negative 64", "more than memory"],
)
def test_absurd_lengths_are_refused(sent):
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours.detach()) as conn:
        theirs.sendall(sent + b"garbage")
        with pytest.raises((OSError, MemoryError)):
            conn.recv()
        with pytest.raises(OSError):
            conn.recv()


def test_a_pickle_that_is_none_is_an_error_of_that_message_only(ends):
    receiver, sender = ends
    sender.send_bytes(b"no pickle")
    sender.send("next")
    with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError)):
        receiver.recv()
    assert receiver.recv() == "next"


def test_connections_between_threads_wait_as_others_do():
    from procession.dummy import Pipe

    one, other = Pipe()
    for timeout in (0, 0.01, -1):
        assert not one.poll(timeout)
    timer = threading.Timer(0.05, other.send, (["object"],))
    timer.start()
    assert one.poll(None)
    assert one.recv() == ["object"]
    timer.join()
    one.send_bytes(b"bytes")
    assert other.poll()
    assert other.recv_bytes() == b"bytes"
