"""The queues of procession and of its peers on the grid that faster-fifo publishes its figures for.

Producers put tuples of five integers; consumers take them, one by one or up to 100 at a time. What is measured is, as
there, the time from the start of the first process until the last has ended. Consumers end when nothing is left after
the producers' end. All messages have to have arrived.
"""

import os
import time
from queue import Empty, Full

GRID = [(1, 1, 200_000), (1, 10, 200_000), (10, 1, 100_000), (3, 20, 100_000), (20, 3, 50_000), (20, 20, 50_000)]
MANY = 100


def standard():
    import multiprocessing

    return multiprocessing.Queue(100_000), lambda queue: [queue.get(timeout=0.001)], multiprocessing


def faster_fifo():
    import multiprocessing

    from faster_fifo import Queue

    return Queue(100_000), lambda queue: [queue.get(timeout=0.001)], multiprocessing


def faster_fifo_many():
    queue, _, package = faster_fifo()
    return queue, lambda queue: queue.get_many(timeout=0.001, max_messages_to_get=MANY), package


def procession():
    import procession as package

    return package.Queue(100_000), lambda queue: [queue.get(timeout=0.001)], package


def procession_many():
    queue, _, package = procession()
    return queue, lambda queue: queue.get_many(MANY, timeout=0.001), package


PEERS = {
    "standard": standard,
    "faster-fifo": faster_fifo,
    "procession": procession,
    "faster-fifo, get_many": faster_fifo_many,
    "procession, get_many": procession_many,
}


def produce(queue, count):
    for number in range(count):
        while True:
            try:
                queue.put((number,) * 5, timeout=0.01)
                break
            except Full:
                pass


def consume(queue, take, over, report):
    taken = 0
    while True:
        try:
            taken += len(take(queue))
        except Empty:
            if over.value and queue.empty():
                break
    os.write(report, b"%d\n" % taken)


def measure(peer, producers, consumers, count):
    """The seconds for so many producers, of so many messages each, and so many consumers."""
    queue, take, package = PEERS[peer]()
    context = package.get_context("fork")
    over = context.RawValue("b", 0)
    reader, report = os.pipe()
    feeding = [context.Process(target=produce, args=(queue, count)) for _ in range(producers)]
    eating = [context.Process(target=consume, args=(queue, take, over, report)) for _ in range(consumers)]
    began = time.perf_counter()
    for process in feeding + eating:
        process.start()
    for process in feeding:
        process.join()
    over.value = 1
    for process in eating:
        process.join()
    took = time.perf_counter() - began
    os.close(report)
    with open(reader) as lines:
        taken = sum(map(int, lines))
    queue.close()
    if taken != producers * count:
        raise ValueError(f"{taken} of {producers * count} messages have arrived")
    return took
