"""Managers: dicts, lists and queues in a server's process."""

import time

from . import crew, expect, workload


def set_and_get(shared, key, count):
    for number in range(count):
        shared[key] = number
        if shared[key] != number:
            return -1
    return count


def dict_clients(mp, clients, count):
    ctx = mp.get_context("fork")
    share = count // clients // 2
    with ctx.Manager() as manager:
        shared = manager.dict()
        took, answers = crew(ctx, [(set_and_get, (shared, f"key {index}", share)) for index in range(clients)])
        expect(answers, [share] * clients)
        expect(dict(shared), {f"key {index}": share - 1 for index in range(clients)})
    return took


@workload("Manager dict: set and get, 1 client", count=20_000, target=4)
def manager_dict(mp, count):
    return dict_clients(mp, 1, count)


@workload("Manager dict: set and get, 4 clients", count=20_000, target=4)
def manager_dict_4_clients(mp, count):
    return dict_clients(mp, 4, count)


@workload("Manager list: append", count=10_000, target=4)
def manager_list_append(mp, count):
    with mp.get_context("fork").Manager() as manager:
        shared = manager.list()
        append = shared.append
        began = time.perf_counter()
        for number in range(count):
            append(number)
        took = time.perf_counter() - began
        expect(shared[:], list(range(count)))
    return took


@workload("Manager Queue: put and get", count=10_000, target=4)
def manager_queue(mp, count):
    with mp.get_context("fork").Manager() as manager:
        queue = manager.Queue()
        put, get = queue.put, queue.get
        began = time.perf_counter()
        for number in range(count // 2):
            put(number)
            expect(get(), number)
        return time.perf_counter() - began


def take_lock(lock, count):
    for _ in range(count):
        with lock:
            pass
    return count


@workload("Manager Lock: acquire and release, 4 clients", count=8_000)
def manager_lock_4_clients(mp, count):
    ctx = mp.get_context("fork")
    with ctx.Manager() as manager:
        lock = manager.Lock()
        took, answers = crew(ctx, [(take_lock, (lock, count // 4))] * 4)
        expect(answers, [count // 4] * 4)
    return took


def set_blobs(shared, blob, count):
    return sum(shared.update(key=blob) is None and shared["key"] == blob for _ in range(count))


@workload("Manager dict: set and get of 1 MB", count=200)
def manager_dict_1mb(mp, count):
    ctx = mp.get_context("fork")
    blob = bytes(range(256)) * 4096
    with ctx.Manager() as manager:
        took, answers = crew(ctx, [(set_blobs, (manager.dict(), blob, count // 2))])
        expect(answers, [count // 2])
    return took


@workload("Manager: threads of a client that use a dict once", count=300)
def manager_short_threads(mp, count):
    import threading

    with mp.get_context("fork").Manager() as manager:
        shared = manager.dict()
        began = time.perf_counter()
        for number in range(count):
            thread = threading.Thread(target=shared.__setitem__, args=("key", number))
            thread.start()
            thread.join()
        took = time.perf_counter() - began
        expect(shared["key"], count - 1)
    return took


@workload("Manager dict: set and get an 8 MB NumPy array", count=20, unit="ms", target=4)
def manager_dict_array(mp, count):
    import numpy

    array = numpy.arange(1_000_000.0)
    with mp.get_context("fork").Manager() as manager:
        shared = manager.dict(key=0)
        began = time.perf_counter()
        for number in range(count):
            array[0] = number
            shared["key"] = array
            expect(shared["key"][0], number)
        return time.perf_counter() - began
