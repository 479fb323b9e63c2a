"""Descriptors and other things for other processes: what the modules have, and what becomes of what is malformed."""

import json
import os
import socket
import subprocess
import sys

import pytest

import processes
import procession
from procession import connection, reduction, resource_sharer

# What the standard package's modules have and ours need not: modules they import, and the insides of their transport.
LEFT_OUT = {
    "connection": {
        # Its own parts of the handshake: ours is in the core.
        "_ALLOWED_DIGESTS", "_LEGACY_LENGTHS", "_MAX_DIGEST_LEN", "_MD5ONLY_MESSAGE_LENGTH", "_MD5_DIGEST_LEN",
        "_get_digest_name_and_payload",
        # Windows, and time-outs that only pipes of Windows have.
        "_check_timeout", "_init_timeout", "_mmap_counter", "_winapi",
        "_WaitSelector", "_multiprocessing", "errno", "io", "itertools", "selectors", "socket", "struct", "sys",
        "tempfile", "time",
        "Connection._bad_message_length", "Connection._check_closed", "Connection._check_readable",
        "Connection._check_writable", "Connection._close", "Connection._poll", "Connection._read", "Connection._recv",
        "Connection._recv_bytes", "Connection._send", "Connection._send_bytes", "Connection._write",
    },
    "reduction": {"_C", "array", "pickle", "socket"},
    "resource_sharer": {"_ResourceSharer._afterfork", "signal", "socket", "sys"},
}  # fmt: skip

NAMES = """
import importlib, json, sys

found = {}
for name in ("connection", "reduction", "resource_sharer"):
    module = importlib.import_module(f"{sys.argv[1]}.{name}")
    found[name] = [name for name in dir(module) if not name.startswith("__")]
    for part in found[name][:]:
        kind = getattr(module, part)
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            found[name] += [f"{part}.{name}" for name in dir(kind) if not name.startswith("__")]
print(json.dumps(found))
"""


def names(package):
    run = subprocess.run([sys.executable, "-I", "-c", NAMES, package], stdout=subprocess.PIPE, check=True, timeout=50)
    return json.loads(run.stdout)


def test_every_name_is_there_or_left_out_on_purpose():
    ours, standard = names("procession"), names("multiprocessing")
    for module, left_out in LEFT_OUT.items():
        missing = set(standard[module]) - set(ours[module])
        # The base class is the class itself here.
        missing = {name.replace("_ConnectionBase.", "Connection.") for name in missing}
        assert {name for name in missing - left_out if name.split(".")[0] not in left_out} == set(), module


# Descriptors


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def works(fd, writer):
    """Whether a descriptor is the reading end of the pipe."""
    os.write(writer, b"x")
    with open(fd, "rb") as file:
        return file.read(1) == b"x"


def test_a_handle_goes_over_a_pipe(pipe, nothing_left_behind):
    reader, writer = pipe
    one, other = connection.Pipe()
    with one, other:
        assert reduction.HAVE_SEND_HANDLE
        reduction.send_handle(one, reader, os.getpid())
        received = reduction.recv_handle(other)
        assert not os.get_inheritable(received)
        assert works(received, writer)


def test_several_descriptors_at_once(pipe, nothing_left_behind):
    reader, writer = pipe
    one, other = socket.socketpair()
    with one, other:
        reduction.sendfds(one, [reader, writer, reader])
        received = reduction.recvfds(other, 3)
        assert len(received) == 3
        assert works(received[0], received[1])
        os.close(received[1])
        os.close(received[2])


def test_what_is_no_descriptor(pipe, nothing_left_behind):
    reader, writer = pipe
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        with pytest.raises(RuntimeError):
            reduction.recvfds(other, 1)
        # Another number than is announced: those that came are closed.
        socket.send_fds(one, [b"\x05"], [reader, writer])
        with pytest.raises(RuntimeError):
            reduction.recvfds(other, 2)
        one.close()
        with pytest.raises(EOFError):
            reduction.recvfds(other, 1)
    reading, writing = connection.Pipe(duplex=False)
    with reading, writing, pytest.raises(OSError, match="socket"):
        reduction.send_handle(writing, reader, os.getpid())


def fetch(dup, answer):
    fd = dup.detach()
    answer.send_bytes(os.read(fd, 1))
    os.close(fd)


def test_a_descriptor_for_a_child(ctx, pipe):
    reader, writer = pipe
    here, there = ctx.Pipe()
    with here, there:
        # Not one that is being started: it asks this process.
        child = ctx.Process(target=fetch, args=(resource_sharer.DupFd(reader), there))
        child.start()
        os.write(writer, b"y")
        assert here.recv_bytes() == b"y"
        child.join()
    resource_sharer.stop()


def test_the_sharer_lets_go_of_what_nobody_fetched(pipe, nothing_left_behind):
    reader, _ = pipe
    assert resource_sharer._resource_sharer._address is None
    kept = [resource_sharer.DupFd(reader) for _ in range(3)]
    one = kept[0].detach()
    os.close(one)
    with pytest.raises((EOFError, OSError)):
        kept[0].detach()
    resource_sharer.stop(timeout=10)
    # It starts again when it is needed.
    again = resource_sharer.DupFd(reader).detach()
    os.close(again)
    resource_sharer.stop(timeout=10)
    resource_sharer.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_number_that_the_sharer_does_not_have(pipe, capfd):
    address, number = resource_sharer.DupFd(pipe[0])._id
    with resource_sharer._resource_sharer.get_connection((address, number + 1)) as conn, pytest.raises(EOFError):
        reduction.recv_handle(conn)
    resource_sharer.stop()


# Pickling


class Thing:
    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value


def test_a_reducer_that_was_registered():
    reduction.register(Thing, lambda thing: (Thing, (thing.value + 1,)))
    try:
        data = reduction.ForkingPickler.dumps(Thing(1))
        assert reduction.ForkingPickler.loads(data).value == 2
        one, other = connection.Pipe()
        with one, other:
            one.send(Thing(5))
            assert other.recv().value == 6
    finally:
        del reduction.ForkingPickler._extra_reducers[Thing]


def test_methods_and_partials():
    import functools
    import io

    for obj, result in [(Thing(3).method, 3), ([1, 2].__len__, 2), (functools.partial(int, "11", base=2), 3)]:
        file = io.BytesIO()
        reduction.dump(obj, file)
        assert reduction.ForkingPickler.loads(file.getvalue())() == result
    assert reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(list.append)) is list.append


def test_the_reducer_of_a_context_can_be_another():
    class Reducer(reduction.AbstractReducer):
        pass

    ctx = procession.get_context("spawn")
    before = ctx.reducer
    try:
        ctx.reducer = Reducer()
        assert ctx.reducer.ForkingPickler is reduction.ForkingPickler
        assert isinstance(ctx.reducer, Reducer)
    finally:
        ctx.reducer = before


# Malformed states


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Event", "Queue", "Barrier"])
@pytest.mark.parametrize("state", [b"", b"x" * 8, b"x" * 24, b"x" * 1000])
def test_descriptors_of_a_malformed_state_are_closed(kind, state, pipe, nothing_left_behind):
    from procession import _core

    # In the place of the memory that was to be there.
    count = 2 if kind == "Queue" else 1
    descriptors = tuple(os.dup(pipe[0]) for _ in range(count))
    native = getattr(_core, kind)
    before = processes.descriptors()
    with pytest.raises((ValueError, OSError)):
        native.__new__(native)._attach(state, descriptors)
    assert sum(before.values()) - sum(processes.descriptors().values()) == count
