"""What strangers can do to a program: nothing. What clients with the key can do to others: nothing either."""

import contextlib
import json
import os
import pickle
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

import procession
from procession import AuthenticationError, connection, forkserver, managers, resource_sharer
from procession.connection import Client, Listener

KEY = b"a key that both have"


class Bomb:
    """Whoever unpickles it has a folder more."""

    def __init__(self, trap):
        self.trap = str(trap)

    def __reduce__(self):
        return os.mkdir, (self.trap,)


@pytest.fixture
def trap(tmp_path):
    """A path that is there after the test if anything was unpickled."""
    path = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    yield path
    assert not path.exists(), "what a stranger sent was unpickled"


# How a connection to somebody who doesn't keep to the rules ends.
ENDED = AuthenticationError, EOFError, OSError, MemoryError


# Servers: each at an address, and with an honest client that finds it serving


@contextlib.contextmanager
def a_listener():
    over = threading.Event()
    with Listener(authkey=KEY, backlog=16) as listener:

        def serve():
            while not over.is_set():
                with contextlib.suppress(*ENDED), listener.accept() as conn:
                    conn.send_bytes(conn.recv_bytes())

        def honest():
            with Client(listener.address, authkey=KEY) as conn:
                conn.send("hello")
                assert conn.recv() == "hello"

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.address, honest, KEY
        finally:
            over.set()
            Client(listener.address).close()
            thread.join()


@contextlib.contextmanager
def a_manager(serializer="pickle", address=None):
    manager = managers.SyncManager(address, KEY, serializer)
    manager.start()
    try:

        def honest():
            other = managers.SyncManager(manager.address, KEY, serializer)
            other.connect()
            assert other.list([1]).pop() == 1

        yield manager.address, honest, KEY
    finally:
        manager.shutdown()


@contextlib.contextmanager
def a_sharer():
    reader, writer = os.pipe()
    shared = resource_sharer.DupFd(reader)
    address, _ = shared._id

    def honest():
        fd = resource_sharer.DupFd(writer).detach()
        os.close(fd)

    try:
        yield address, honest, bytes(procession.current_process().authkey)
    finally:
        resource_sharer.stop(timeout=10)
        os.close(reader)
        os.close(writer)


SERVERS = {
    "listener": a_listener,
    "manager": a_manager,
    "manager with XML": lambda: a_manager("xmlrpclib"),
    "manager at an abstract address": lambda: a_manager(address=f"\0procession-{os.getpid()}-{os.urandom(4).hex()}"),
    "manager over TCP": lambda: a_manager(address=("localhost", 0)),
    "resource sharer": a_sharer,
}


@pytest.fixture(params=SERVERS)
def server(request):
    with SERVERS[request.param]() as server:
        yield server
    # Clients in this process have lines open.
    managers.BaseProxy._address_to_local.clear()


def stranger(address):
    sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    sock.connect(address)
    return sock


def frame(data):
    return len(data).to_bytes(4, "big") + data


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pickle_in_the_place_of_a_handshake_is_not_read(server, trap, capfd):
    address, honest, _ = server
    bomb = pickle.dumps(Bomb(trap))
    request = pickle.dumps((None, "dummy", (Bomb(trap),), {}))
    sayings = [
        [bomb],
        [request],
        # As if the key had been shown.
        [b"#WELCOME#", bomb],
        [b"{sha256}" + bytes(32), b"#CHALLENGE#{sha256}" + bytes(40), b"#WELCOME#", request],
        [b"x" * 16, b"#WELCOME#", request],
    ]
    for messages in sayings:
        with stranger(address) as sock, contextlib.suppress(OSError):
            for message in messages:
                sock.sendall(frame(message))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
        honest()


GARBAGE = {
    "nothing": b"",
    "another protocol": b"GET / HTTP/1.0\r\n\r\n",
    "half a header": b"\0\0",
    "a negative length": b"\x80\0\0\0",
    "2 GiB": b"\x7f\xff\xff\xff" + b"x" * 100,
    "a length without memory for it": b"\xff\xff\xff\xff" + (1 << 48).to_bytes(8, "big") + b"x" * 100,
    "a length beyond all address spaces": b"\xff\xff\xff\xff" + (1 << 60).to_bytes(8, "big") + b"x" * 100,
    "more than there is": b"\xff" * 12,
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("has_key", [False, True], ids=["stranger", "client"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_garbage_ends_its_connection_only(server, garbage, has_key, capfd):
    address, honest, key = server
    sock = socket.socket(fileno=Client(address, authkey=key)._detach()) if has_key else stranger(address)
    with sock, contextlib.suppress(OSError):
        sock.sendall(GARBAGE[garbage])
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(20)
        while sock.recv(1000):
            pass
    honest()


def test_silent_clients_of_a_manager_hold_up_nobody():
    with a_manager() as (address, honest, _), contextlib.ExitStack() as open_ones:
        for number in range(20):
            sock = open_ones.enter_context(stranger(address))
            # Nothing, half a header, half a message, half a handshake.
            sock.sendall([b"", b"\0\0", b"\0\0\0\x10123", frame(b"x" * 16)][number % 4])
            honest()


def test_a_silent_client_of_a_listener_is_sent_away():
    with Listener(authkey=KEY, backlog=4) as listener:
        assert listener.patience == 20
        listener.patience = 0.2
        with stranger(listener.address), pytest.raises(AuthenticationError, match="in time"):
            listener.accept()
        # It is one of many errors of one client: others are served.
        with stranger(listener.address):
            threading.Thread(target=lambda: Client(listener.address, authkey=KEY).close()).start()
            with pytest.raises(AuthenticationError):
                listener.accept()
            listener.accept().close()


def test_a_slow_client_of_a_listener_has_its_time():
    with Listener(authkey=KEY) as listener:
        listener.patience = 20

        def slow():
            with Client(listener.address) as conn:
                time.sleep(0.3)
                connection.answer_challenge(conn, KEY)
                time.sleep(0.3)
                connection.deliver_challenge(conn, KEY)
                conn.send("here")

        thread = threading.Thread(target=slow)
        thread.start()
        with listener.accept() as conn:
            assert conn.recv() == "here"
        thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_client_ends_the_resource_sharer(capfd):
    with a_sharer() as (address, honest, key):
        for request in (None, 5, (1,), ("x", 1), (10**30, 1), (-1, None)):
            with Client(address, authkey=key) as conn:
                conn.send(request)
            honest()


def test_the_fork_server_is_out_of_reach():
    procession.set_start_method("forkserver", force=True)
    try:
        process = procession.get_context("forkserver").Process(target=int)
        process.start()
        process.join()
        pid = forkserver._forkserver._forkserver_pid
        # It has no socket that anybody could connect to: neither in the file system nor under an abstract name.
        inodes = {
            os.readlink(f"/proc/{pid}/fd/{number}").removeprefix("socket:[").removesuffix("]")
            for number in os.listdir(f"/proc/{pid}/fd")
            if os.path.exists(f"/proc/{pid}/fd/{number}")
        }
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[6] in inodes:
                listens, named = int(fields[3], 16) & 0x10000, len(fields) > 7
                assert not (listens or named), line
    finally:
        procession.set_start_method(None, force=True)


# Owner only


PRIVATE = """
import json, os, stat, sys, tempfile

os.umask(0)
import procession
from procession import connection, managers, resource_sharer, shared_memory, util

def body(queue, event):
    queue.put("here")
    event.wait()

if __name__ == "__main__":
    before = set(os.listdir("/dev/shm"))
    ctx = procession.get_context(sys.argv[1])
    queue, event = ctx.Queue(), ctx.Event()
    child = ctx.Process(target=body, args=(queue, event))
    child.start()
    queue.get()
    listener = connection.Listener()
    manager = ctx.Manager()
    shared = manager.list([1])
    reader, writer = os.pipe()
    descriptor = resource_sharer.DupFd(reader)
    memory = shared_memory.SharedMemory(create=True, size=10)
    numbers = ctx.Array("i", 100_000)
    pool = ctx.Pool(1)
    pool.apply(abs, (-1,))
    found = {}
    for folder, folders, files in os.walk(tempfile.gettempdir()):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[path] = stat.S_IMODE(os.lstat(path).st_mode)
    for name in set(os.listdir("/dev/shm")) - before:
        if not name.startswith(("sem.", "joblib")):
            found["/dev/shm/" + name] = stat.S_IMODE(os.lstat("/dev/shm/" + name).st_mode)
    print(json.dumps([listener.address, manager.address, descriptor._id[0], memory.name, found]), flush=True)
    pool.terminate()
    pool.join()
    memory.close()
    memory.unlink()
    resource_sharer.stop()
    manager.shutdown()
    listener.close()
    event.set()
    child.join()
"""


def test_what_is_made_is_the_owners_only(method, program, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    running = program(PRIVATE, method, env={**os.environ, "TMPDIR": str(folder)})
    out, err = running.finish()
    assert running.exitcode == 0, err
    *sockets, memory, found = json.loads(out)
    assert {*sockets, f"/dev/shm/{memory}"} <= set(found)
    open_to_others = {path: oct(mode) for path, mode in found.items() if mode & 0o077}
    assert not open_to_others
    # And all of it goes.
    assert list(folder.iterdir()) == []


def test_at_an_address_of_the_programs_its_umask_says_who_may_connect(tmp_path):
    for umask in (0o077, 0o027):
        before = os.umask(umask)
        try:
            with Listener(str(tmp_path / "socket")) as listener:
                assert stat.S_IMODE(os.stat(listener.address).st_mode) == 0o777 & ~umask
        finally:
            os.umask(before)


# Others' files


def test_a_link_is_not_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "socket"
    link.symlink_to(target)
    with pytest.raises(OSError, match="in use"):
        Listener(str(link))
    assert link.is_symlink()
    assert not target.exists()


def test_only_its_own_file_is_removed(tmp_path):
    path = tmp_path / "socket"
    first = Listener(str(path))
    path.unlink()
    # A server that was started anew before the old one has ended.
    with Listener(str(path)) as second:
        first.close()
        thread = threading.Thread(target=lambda: Client(second.address).close())
        thread.start()
        second.accept().close()
        thread.join()
    assert not path.exists()


def test_the_folder_for_sockets_is_new():
    # What somebody else may have put there under a name that can be guessed is not used.
    one, other = connection.arbitrary_address("AF_UNIX"), connection.arbitrary_address("AF_UNIX")
    assert one != other
    status = os.lstat(os.path.dirname(one))
    assert stat.S_ISDIR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.geteuid()
