"""Listeners and clients: addresses, the handshake, and peers of the standard package."""

import contextlib
import hmac
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from procession import AuthenticationError, connection, current_process
from procession.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

KEY = b"a key that both have"

ADDRESSES = {
    "tcp": lambda tmp_path: ("localhost", 0),
    "unix": lambda tmp_path: str(tmp_path / "socket"),
    "abstract": lambda tmp_path: f"\0procession-{os.getpid()}-{os.urandom(4).hex()}",
    "any": lambda tmp_path: None,
}


@pytest.fixture(params=ADDRESSES)
def address(request, tmp_path):
    return ADDRESSES[request.param](tmp_path)


def accepting(listener):
    """Accept in a thread; a function that waits for the outcome, a connection or an exception."""
    outcome = []

    def accept():
        try:
            outcome.append(listener.accept())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=accept)
    thread.start()

    def result():
        thread.join()
        return outcome[0]

    return result


# Addresses


@pytest.mark.parametrize("authkey", [None, KEY], ids=["without key", "with key"])
def test_a_client_reaches_its_listener(address, authkey):
    with Listener(address, authkey=authkey) as listener:
        accepted = accepting(listener)
        with Client(listener.address, authkey=authkey) as client, accepted() as server:
            for one, other in ((client, server), (server, client)):
                one.send({"size": 1})
                assert other.recv() == {"size": 1}
                one.send_bytes(b"bytes")
                assert other.recv_bytes() == b"bytes"
            assert not os.get_inheritable(client.fileno())
            assert not os.get_inheritable(server.fileno())


def echo_from(address):
    with Client(address, authkey=bytes(current_process().authkey)) as client:
        client.send(client.recv())


def test_a_child_as_client(ctx, address, nothing_left_behind):
    with Listener(address, authkey=current_process().authkey) as listener:
        child = ctx.Process(target=echo_from, args=(listener.address,))
        child.start()
        with listener.accept() as server:
            server.send(b"x" * 500_000)
            assert server.recv() == b"x" * 500_000
        child.join()
        assert child.exitcode == 0
        child.close()


def test_large_messages_both_ways_over_tcp():
    with Listener(("localhost", 0)) as listener:
        accepted = accepting(listener)
        with Client(listener.address) as client, accepted() as server:
            message = os.urandom(10_000_000)
            thread = threading.Thread(target=client.send_bytes, args=(message,))
            thread.start()
            assert server.recv_bytes() == message
            thread.join()


def test_addresses_of_the_families():
    assert connection.address_type(("localhost", 1)) == "AF_INET"
    assert connection.address_type("/tmp/socket") == "AF_UNIX"
    assert connection.address_type("\0abstract") == "AF_UNIX"
    assert connection.address_type(b"\0abstract") == "AF_UNIX"
    assert connection.address_type(r"\\.\pipe\name") == "AF_PIPE"
    for wrong in (1, b"/tmp/socket", None):
        with pytest.raises((ValueError, TypeError)):
            connection.address_type(wrong)
    assert connection.arbitrary_address("AF_INET") == ("localhost", 0)
    assert connection.arbitrary_address("AF_UNIX") != connection.arbitrary_address("AF_UNIX")
    with pytest.raises(ValueError, match="AF_IPX"):
        connection.arbitrary_address("AF_IPX")


def test_a_family_of_another_system_is_refused():
    for call in (lambda: Listener(family="AF_PIPE"), lambda: Listener(r"\\.\test"), lambda: Client(r"\\.\test")):
        with pytest.raises(ValueError, match="AF_PIPE"):
            call()


def test_the_socket_is_the_owners_only_and_goes_with_the_listener():
    listener = Listener()
    path = Path(listener.address)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert path.parent.stat().st_mode & 0o077 == 0
    listener.close()
    assert not path.exists()
    with pytest.raises(OSError, match="listener is closed"):
        listener.accept()
    listener.close()


def test_a_temporary_folder_with_a_long_name(program, tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    one = program(
        """
        import threading
        from procession.connection import Client, Listener
        with Listener() as listener:
            thread = threading.Thread(target=lambda: Client(listener.address).send("arrived"))
            thread.start()
            print(listener.accept().recv())
            thread.join()
        """,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert one.finish() == ("arrived\n", "")
    assert list(folder.iterdir()) == []


def test_an_address_in_use(tmp_path):
    with Listener(("localhost", 0)) as listener, pytest.raises(OSError):
        Listener(listener.address)
    with Listener(str(tmp_path / "socket")), pytest.raises(OSError):
        Listener(str(tmp_path / "socket"))


def test_nobody_at_the_address(tmp_path):
    with pytest.raises(FileNotFoundError):
        Client(str(tmp_path / "nothing"))
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        with pytest.raises(ConnectionRefusedError):
            Client(unused.getsockname())


def test_last_accepted():
    with Listener(("localhost", 0)) as listener:
        assert listener.last_accepted is None
        accepted = accepting(listener)
        with Client(listener.address), accepted():
            assert listener.last_accepted[0] == "127.0.0.1"


# The handshake


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, b"another"), (b"", KEY), (KEY, KEY + b"x")])
def test_another_key_is_refused_on_both_sides(ours, theirs):
    with Listener(("localhost", 0), authkey=ours) as listener:
        accepted = accepting(listener)
        with pytest.raises(AuthenticationError, match="rejected"):
            Client(listener.address, authkey=theirs)
        assert isinstance(accepted(), AuthenticationError)


def test_keys_are_bytes():
    for call in (lambda: Listener(authkey="text"), lambda: Client("/nowhere", authkey="text")):
        with pytest.raises((TypeError, FileNotFoundError)):
            call()
    for challenge in (deliver_challenge, answer_challenge):
        with pytest.raises(ValueError, match="must be bytes"):
            challenge(None, "text")


class Peer:
    """The other side of a handshake, as a list of what it says. Keeps what is said to it."""

    def __init__(self, *says):
        self.says = list(says)
        self.heard = []

    def recv_bytes(self, maxlength):
        assert maxlength <= 256
        said = self.says.pop(0)
        return said(self.heard[-1]) if callable(said) else said

    def send_bytes(self, message):
        self.heard.append(message)


def answer_in(digest, prefix=True, key=KEY):
    name = b"{%s}" % digest.encode() if prefix else b""
    return lambda question: name + hmac.digest(key, question.removeprefix(b"#CHALLENGE#"), digest)


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_each_digest_is_taken_for_an_answer(digest):
    peer = Peer(answer_in(digest))
    deliver_challenge(peer, KEY)
    question, verdict = peer.heard
    assert question.startswith(b"#CHALLENGE#{sha256}")
    assert len(question) == len(b"#CHALLENGE#{sha256}") + 40
    assert verdict == b"#WELCOME#"


def test_an_old_client_answers_without_a_name():
    peer = Peer(answer_in("md5", prefix=False))
    deliver_challenge(peer, KEY)
    assert peer.heard[-1] == b"#WELCOME#"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{sha256}",
        b"{sha256",
        b"{sha1}" + b"x" * 20,
        b"{sha256}" + b"x" * 31,
        b"{sha256}" + b"x" * 32,
        b"x" * 16,
        b"x" * 20,
        b"\xff" * 256,
        lambda question: question,
        answer_in("sha256", key=b"another"),
        answer_in("sha256", prefix=False),
        answer_in("sha512"),
    ],
)
def test_wrong_answers_are_refused(answer):
    peer = Peer(answer)
    with pytest.raises(AuthenticationError):
        deliver_challenge(peer, KEY)
    assert peer.heard[-1] == b"#FAILURE#"


def test_an_old_listener_is_answered_in_its_way():
    message = os.urandom(20)
    peer = Peer(b"#CHALLENGE#" + message, b"#WELCOME#")
    answer_challenge(peer, KEY)
    assert peer.heard == [hmac.digest(KEY, message, "md5")]


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_a_question_is_answered_in_its_digest(digest):
    message = b"{%s}" % digest.encode() + os.urandom(40)
    peer = Peer(b"#CHALLENGE#" + message, b"#WELCOME#")
    answer_challenge(peer, KEY)
    assert peer.heard == [b"{%s}" % digest.encode() + hmac.digest(KEY, message, digest)]


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"#CHALLENGE#",
        b"#CHALLENGE#" + b"x" * 19,
        b"#CHALLENGE#" + b"x" * 40,
        b"#CHALLENGE#{sha1}" + b"x" * 40,
        b"#WELCOME#",
    ],
)
def test_what_is_no_question_is_not_answered(question):
    peer = Peer(question, b"#WELCOME#")
    with pytest.raises(AuthenticationError):
        answer_challenge(peer, KEY)
    assert peer.heard == []


def test_nothing_is_unpickled_before_the_handshake_is_over(tmp_path):
    trap = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    with Listener(("localhost", 0), authkey=KEY) as listener:
        accepted = accepting(listener)
        with Client(listener.address) as stranger:
            stranger.send(Bomb())
            assert isinstance(accepted(), AuthenticationError)
        # The end of that client only.
        accepted = accepting(listener)
        with Client(listener.address, authkey=KEY) as client, accepted() as server:
            client.send("welcome")
            assert server.recv() == "welcome"
    assert not trap.exists()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\0\0\1\1" + b"x" * 257, b"\xff" * 12, b"", b"\0"])
def test_garbage_ends_that_connection_only(garbage):
    with Listener(("localhost", 0), authkey=KEY) as listener:
        accepted = accepting(listener)
        with socket.create_connection(listener.address) as stranger:
            # Both sides may be the first to give up.
            with contextlib.suppress(OSError):
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
            assert isinstance(accepted(), (OSError, EOFError, AuthenticationError))
        accepted = accepting(listener)
        with Client(listener.address, authkey=KEY), accepted() as server:
            assert isinstance(server, Connection)


def test_xml_connections():
    with connection.XmlListener(("localhost", 0), authkey=KEY) as listener:
        accepted = accepting(listener)
        client = connection.XmlClient(listener.address, authkey=KEY)
        server = accepted()
        for message in (1, "text", [1, {"a": None}]):
            client.send(message)
            assert server.recv() == message
        client.close()
        server.close()
