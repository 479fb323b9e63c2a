"""The standard package at the other end, of each Python version that is found, in real processes."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from procession import connection
from procession.connection import Listener

KEY = b"a key that both have"
WRONG = b"another key"
HERE = Path(__file__).parent
OURS = ("procession", sys.executable)


def standard_peers():
    """The standard package of this interpreter, and of those of other versions that are found, by their version."""
    tool = HERE.parent / "tools" / "interpreters.py"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    # Not the one of the virtual environment, in which the package may have been made to take over.
    found = {version: getattr(sys, "_base_executable", sys.executable)}
    run = subprocess.run([sys.executable, str(tool), version], stdout=subprocess.PIPE, text=True)
    for python in run.stdout.splitlines():
        asked = subprocess.run([python, "-V"], stdout=subprocess.PIPE, text=True)
        found.setdefault(".".join(asked.stdout.split()[-1].split(".")[:2]), python)
    return found


PEERS = standard_peers()
# 3.11 knows only MD5, 3.12 and newer name their digest.
WANTED = sorted({"3.11", "3.13", *PEERS}, key=lambda version: [int(part) for part in version.split(".")])


@pytest.fixture(params=WANTED)
def standard(request):
    """The standard package of a version, as a package and its interpreter."""
    if request.param not in PEERS:
        pytest.skip(
            f"there is no Python {request.param} here (tools/interpreters.py and PYTHONS say where one is looked for)"
        )
    return "multiprocessing", PEERS[request.param]


@pytest.fixture
def start():
    """Start one side: `start(side, role, **options)`."""
    started = []

    def start(side, role, key=KEY, **options):
        package, python = side
        options = json.dumps({"key": key.decode(), **options})
        # Whatever of this environment would lead it to other modules.
        command = [python, "-I", str(HERE / "peer.py"), package, role, options]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


def said(process):
    """The next thing that a side says."""
    line = process.stdout.readline()
    assert line, f"it ended with {process.wait()}"
    answer = json.loads(line)
    return tuple(answer) if isinstance(answer, list) else answer


@pytest.fixture(params=["ours listens", "ours connects"])
def sides(request, standard):
    """Who listens or serves, and who connects: one of them is ours."""
    return (OURS, standard) if request.param == "ours listens" else (standard, OURS)


ADDRESSES = {
    "tcp": lambda tmp_path: ("localhost", 0),
    "unix": lambda tmp_path: str(tmp_path / "socket"),
    "abstract": lambda tmp_path: f"\0procession-{os.getpid()}-{os.urandom(4).hex()}",
}


# Listener and Client


@pytest.mark.parametrize("kind", ADDRESSES)
def test_listeners_and_clients(sides, kind, start, tmp_path):
    listening, connecting = sides
    listener = start(listening, "listen", address=ADDRESSES[kind](tmp_path))
    client = start(connecting, "connect", address=said(listener))
    assert said(client) == "served"
    assert said(listener) == "served"
    assert (client.wait(), listener.wait()) == (0, 0)


def test_another_key_is_refused_by_both(sides, start):
    listening, connecting = sides
    listener = start(listening, "listen", address=("localhost", 0), times=2)
    address = said(listener)
    client = start(connecting, "connect", key=WRONG, address=address)
    assert said(client) == "AuthenticationError"
    assert said(listener) == "AuthenticationError"
    # That was the end of that client only.
    client = start(connecting, "connect", address=address)
    assert said(client) == "served"
    assert said(listener) == "served"


class Overheard:
    """A connection that keeps what goes over it."""

    def __init__(self, conn):
        self.conn, self.sent, self.received = conn, [], []

    def send_bytes(self, data):
        self.sent.append(data)
        self.conn.send_bytes(data)

    def recv_bytes(self, maxlength=None):
        self.received.append(self.conn.recv_bytes(maxlength))
        return self.received[-1]


def knows_names(standard):
    run = subprocess.run([standard[1], "-c", "import sys; print(sys.version_info >= (3, 12))"], capture_output=True)
    return run.stdout.strip() == b"True"


def test_the_digest_is_the_newest_that_both_know(standard, start):
    with Listener(("localhost", 0)) as listener:
        client = start(standard, "connect", address=listener.address)
        with listener.accept() as conn:
            heard = Overheard(conn)
            connection.deliver_challenge(heard, KEY)
            connection.answer_challenge(heard, KEY)
            answer, question, _ = heard.received
            if knows_names(standard):
                assert answer.startswith(b"{sha256}")
                assert question.startswith(b"#CHALLENGE#{sha256}")
                assert heard.sent[-1].startswith(b"{sha256}")
            else:
                # An HMAC with MD5, and no name.
                assert len(answer) == len(heard.sent[-1]) == 16
                assert len(question) == len(b"#CHALLENGE#") + 20
            conn.send(1)
            conn.recv()
            conn.close()
        client.wait()


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_other_digests_that_we_ask_for(standard, digest, start):
    if digest != "md5" and not knows_names(standard):
        pytest.skip("it answers with MD5, whatever it is asked for")
    with Listener(("localhost", 0)) as listener:
        start(standard, "connect", address=listener.address)
        with listener.accept() as conn:
            heard = Overheard(conn)
            connection.deliver_challenge(heard, KEY, digest)
            assert heard.received[0].startswith(b"{%s}" % digest.encode()) or not knows_names(standard)
            connection.answer_challenge(heard, KEY)
    with pytest.raises(ValueError, match="sha1"):
        connection.deliver_challenge(Overheard(None), KEY, "sha1")


# Frames

STREAM_PEER = """
import sys
from multiprocessing.connection import Connection

reader, writer = Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False)
while True:
    try:
        writer.send_bytes(reader.recv_bytes())
    except EOFError:
        break
"""


def test_the_frames_of_a_pipe_are_the_standard_ones(standard):
    (reader, to_us), (to_them, writer) = connection.Pipe(duplex=False), connection.Pipe(duplex=False)
    process = subprocess.Popen(
        [standard[1], "-I", "-c", STREAM_PEER, str(to_them.fileno()), str(to_us.fileno())],
        pass_fds=[to_them.fileno(), to_us.fileno()],
    )
    to_them.close()
    to_us.close()
    for size in (0, 1, 16_384, 16_385, 1_000_000):
        message = os.urandom(size)
        thread = threading.Thread(target=writer.send_bytes, args=(message,))
        thread.start()
        assert reader.recv_bytes() == message
        thread.join()
    writer.close()
    assert process.wait() == 0
    with pytest.raises(EOFError):
        reader.recv()


# Managers


@pytest.mark.parametrize("serializer", ["pickle", "xmlrpclib"])
def test_managers(sides, serializer, start):
    serving, using = sides
    options = {"serializer": serializer}
    server = start(serving, "manage", address=("localhost", 0), **options)
    address = said(server)
    refused = start(using, "use", key=WRONG, address=address, **options)
    assert said(refused) == "AuthenticationError"
    # The second finds everything as the first did, so nothing was left locked or lost.
    for _ in range(2):
        client = start(using, "use", address=address, **options)
        assert said(client) == "done"
        assert client.wait() == 0
