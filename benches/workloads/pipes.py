"""Pipes: round trips and streams, of small messages and large ones."""

from . import crew, expect, workload

MEGABYTE = bytes(range(256)) * 4096


def echo(connection, count):
    for _ in range(count):
        connection.send(connection.recv())
    return 0


@workload("Pipe(): round trip of an integer", count=20_000, target=1.3)
def pipe_round_trip(mp, count):
    ctx = mp.get_context("fork")
    here, there = ctx.Pipe()

    def ask():
        right = 0
        for number in range(count):
            here.send(number)
            right += here.recv() == number
        return right

    took, answers = crew(ctx, [(echo, (there, count))], ask)
    expect(answers[-1], count)
    return took


def send_integers(connection, count):
    for number in range(count):
        connection.send(number)
    return 0


def stream(mp, duplex, count):
    ctx = mp.get_context("fork")
    reader, writer = ctx.Pipe(duplex)
    took, answers = crew(ctx, [(send_integers, (writer, count))], lambda: sum(reader.recv() for _ in range(count)))
    expect(answers[-1], sum(range(count)))
    return took


@workload("Pipe(duplex=False): integers one way", count=60_000)
def pipe_one_way(mp, count):
    return stream(mp, False, count)


@workload("Pipe(): integers one way", count=60_000)
def pipe_duplex_one_way(mp, count):
    return stream(mp, True, count)


def send_blobs(connection, count):
    for _ in range(count):
        connection.send_bytes(MEGABYTE)
    return 0


@workload("Pipe(): bytes of 1 MB one way", count=300)
def pipe_1mb(mp, count):
    ctx = mp.get_context("fork")
    reader, writer = ctx.Pipe()
    took, answers = crew(
        ctx, [(send_blobs, (writer, count))], lambda: sum(reader.recv_bytes() == MEGABYTE for _ in range(count))
    )
    expect(answers[-1], count)
    return took


@workload("Pipe(): round trip of an 8 MB NumPy array", count=40, unit="ms", target=3)
def pipe_array(mp, count):
    import numpy

    ctx = mp.get_context("fork")
    here, there = ctx.Pipe()
    array = numpy.arange(1_000_000.0)

    def ask():
        right = 0
        for _ in range(count):
            here.send(array)
            right += here.recv()[-1] == array[-1]
        return right

    took, answers = crew(ctx, [(echo, (there, count))], ask)
    expect(answers[-1], count)
    return took
