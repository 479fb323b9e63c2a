"""Listener and Client: round trips over sockets, and the time until a connection that both sides trust is there."""

import os

from . import crew, expect, workload

KEY = b"a key that both have"


def answer(address, connection, count):
    with connection.Client(address, authkey=KEY) as conn:
        for _ in range(count):
            conn.send(conn.recv())
    return 0


def call(address, connection, count):
    for _ in range(count):
        with connection.Client(address, authkey=KEY) as conn:
            conn.recv_bytes()
    return count


def listening(mp, family, jobs, here):
    """A listener of the family, in `here(listener)`, and those who connect to it."""
    ctx = mp.get_context("fork")
    # Spawned children of the other workloads import this module as well.
    import tempfile

    connection = __import__(mp.__name__ + ".connection", fromlist=["connection"])
    with tempfile.TemporaryDirectory() as folder:
        address = ("localhost", 0) if family == "AF_INET" else os.path.join(folder, "socket")
        with connection.Listener(address, family, backlog=64, authkey=KEY) as listener:
            members = [(job, (listener.address, connection, count)) for job, count in jobs]
            return crew(ctx, members, lambda: here(listener))


def round_trips(mp, family, count):
    def ask(listener):
        right = 0
        with listener.accept() as conn:
            for number in range(count):
                conn.send(number)
                right += conn.recv() == number
        return right

    took, answers = listening(mp, family, [(answer, count)], ask)
    expect(answers[-1], count)
    return took


@workload("Listener, AF_UNIX: round trip of an integer", count=20_000, target=1.3)
def listener_unix_round_trip(mp, count):
    return round_trips(mp, "AF_UNIX", count)


@workload("Listener, AF_INET: round trip of an integer", count=20_000, target=1.3)
def listener_inet_round_trip(mp, count):
    return round_trips(mp, "AF_INET", count)


def connects(mp, family, count):
    def greet(listener):
        for _ in range(count):
            with listener.accept() as conn:
                conn.send_bytes(b"welcome")
        return count

    took, answers = listening(mp, family, [(call, count)], greet)
    expect(answers, [count, count])
    return took


@workload("Listener, AF_UNIX: connect with an authkey", count=1_000, target=1)
def listener_unix_connect(mp, count):
    return connects(mp, "AF_UNIX", count)


@workload("Listener, AF_INET: connect with an authkey", count=1_000, target=1)
def listener_inet_connect(mp, count):
    return connects(mp, "AF_INET", count)
