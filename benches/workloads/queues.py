"""Queues: one producer and one consumer, several of each, large messages, round trips."""

import time

from . import crew, expect, workload


def put_integers(queue, first, last):
    put = queue.put
    for number in range(first, last):
        put(number)
    return 0


def get_integers(queue, count):
    get = queue.get
    return sum(get() for _ in range(count))


def stream(mp, queue_type, count):
    ctx = mp.get_context("fork")
    queue = getattr(ctx, queue_type)()
    took, answers = crew(ctx, [(put_integers, (queue, 0, count))], lambda: get_integers(queue, count))
    expect(answers[-1], sum(range(count)))
    return took


@workload("Queue: integers, 1 producer, 1 consumer", count=60_000, target=12)
def queue_integers(mp, count):
    return stream(mp, "Queue", count)


@workload("SimpleQueue: integers", count=60_000)
def simplequeue_integers(mp, count):
    return stream(mp, "SimpleQueue", count)


def record(number):
    return {"id": number, "name": "task", "value": 1.5, "done": False}


def put_records(queue, count):
    for number in range(count):
        queue.put(record(number))
    return 0


def get_records(queue, count):
    wrong = 0
    for number in range(count):
        wrong += queue.get() != record(number)
    return wrong


@workload("Queue: small dicts", count=40_000, target=6)
def queue_dicts(mp, count):
    ctx = mp.get_context("fork")
    queue = ctx.Queue()
    took, answers = crew(ctx, [(put_records, (queue, count))], lambda: get_records(queue, count))
    expect(answers[-1], 0)
    return took


@workload("Queue: integers, 4 producers, 4 consumers", count=40_000, target=6)
def queue_4_producers_4_consumers(mp, count):
    ctx = mp.get_context("fork")
    queue = ctx.Queue()
    share = count // 4
    producers = [(put_integers, (queue, index * share, (index + 1) * share)) for index in range(4)]
    consumers = [(get_integers, (queue, share))] * 4
    took, answers = crew(ctx, producers + consumers)
    expect(sum(answers[4:]), sum(range(4 * share)))
    return took


def put_blobs(queue, blob, count):
    for _ in range(count):
        queue.put(blob)
    return 0


@workload("Queue: bytes of 1 MB", count=300, target=3)
def queue_1mb(mp, count):
    ctx = mp.get_context("fork")
    queue = ctx.Queue()
    blob = bytes(range(256)) * 4096
    took, answers = crew(
        ctx, [(put_blobs, (queue, blob, count))], lambda: sum(queue.get() == blob for _ in range(count))
    )
    expect(answers[-1], count)
    return took


def put_arrays(queue, length, count):
    import numpy

    array = numpy.arange(length, dtype=numpy.float64)
    for _ in range(count):
        queue.put(array)
    return 0


def queue_of_arrays(mp, length, count):
    ctx = mp.get_context("fork")
    queue = ctx.Queue()

    def get_arrays():
        total = 0
        for _ in range(count):
            array = queue.get()
            total += int(array[-1]) + len(array)
            array[-1] = 0
        return total

    took, answers = crew(ctx, [(put_arrays, (queue, length, count))], get_arrays)
    expect(answers[-1], count * (2 * length - 1))
    return took


@workload("Queue: NumPy arrays of 8 MB", count=200, target=8)
def queue_8mb_array(mp, count):
    return queue_of_arrays(mp, 1_000_000, count)


@workload("Queue: NumPy arrays of 100 KB", count=2_000)
def queue_100kb_array(mp, count):
    return queue_of_arrays(mp, 12_500, count)


def answer_each(requests, answers, count):
    for _ in range(count):
        answers.put(requests.get() + 1)
    return 0


@workload("Queue: round trip over two queues", count=5_000)
def queue_round_trip(mp, count):
    ctx = mp.get_context("fork")
    requests, answers = ctx.Queue(), ctx.Queue()

    def ask():
        total = 0
        for number in range(count):
            requests.put(number)
            total += answers.get()
        return total

    took, results = crew(ctx, [(answer_each, (requests, answers, count))], ask)
    expect(results[-1], sum(range(count)) + count)
    return took


@workload("Queue: put, then get, in one process", count=20_000)
def queue_one_process(mp, count):
    queue = mp.get_context("fork").Queue()
    queue.put(0)
    queue.get()
    began = time.perf_counter()
    for number in range(count):
        queue.put(number)
        expect(queue.get(), number)
    return time.perf_counter() - began


def work_off(queue, count):
    for _ in range(count):
        queue.get()
        queue.task_done()
    return 0


@workload("JoinableQueue: put, task_done, join", count=20_000)
def joinablequeue(mp, count):
    ctx = mp.get_context("fork")
    queue = ctx.JoinableQueue()

    def fill():
        for number in range(count):
            queue.put(number)
        queue.join()
        return queue.qsize()

    took, answers = crew(ctx, [(work_off, (queue, count))], fill)
    expect(answers[-1], 0)
    return took
