"""Locks and their family: uncontended, contended, and processes that wait for each other in turn."""

import mmap
import struct
import time

from . import crew, expect, workload

INTEGER = struct.Struct("q")


class Counter:
    """An integer in anonymous shared memory, with nothing that keeps two processes apart."""

    def __init__(self):
        self.memory = mmap.mmap(-1, INTEGER.size)

    def value(self):
        return INTEGER.unpack_from(self.memory)[0]

    def add(self, number):
        INTEGER.pack_into(self.memory, 0, self.value() + number)


def pairs(lock, count):
    """The seconds for so many pairs of acquire and release, called the way that programs call them."""
    began = time.perf_counter()
    for _ in range(count):
        lock.acquire()
        lock.release()
    took = time.perf_counter() - began
    expect(lock.acquire(block=False), True)
    lock.release()
    return took


@workload("Lock: acquire and release, uncontended", count=400_000, unit="ns", target=2)
def lock_uncontended(mp, count):
    return pairs(mp.get_context("fork").Lock(), count)


@workload("RLock: acquire and release, held already", count=400_000, unit="ns")
def rlock_nested(mp, count):
    lock = mp.get_context("fork").RLock()
    with lock:
        return pairs(lock, count)


@workload("RLock: acquire and release, uncontended", count=400_000, unit="ns")
def rlock_uncontended(mp, count):
    return pairs(mp.get_context("fork").RLock(), count)


@workload("Semaphore(4): acquire and release", count=400_000, unit="ns")
def semaphore_uncontended(mp, count):
    return pairs(mp.get_context("fork").Semaphore(4), count)


@workload("Lock: with statement, uncontended", count=400_000, unit="ns", target=2)
def lock_with(mp, count):
    lock = mp.get_context("fork").Lock()
    done = 0
    began = time.perf_counter()
    for _ in range(count):
        with lock:
            done += 1
    took = time.perf_counter() - began
    expect(done, count)
    return took


def add_under(lock, counter, count):
    for _ in range(count):
        with lock:
            counter.add(1)
    return 0


def contended(ctx, lock, count):
    counter = Counter()
    share = count // 4
    took, _ = crew(ctx, [(add_under, (lock, counter, share))] * 4)
    expect(counter.value(), 4 * share)
    return took


@workload("Lock: 4 processes count under it", count=80_000)
def lock_contended(mp, count):
    ctx = mp.get_context("fork")
    return contended(ctx, ctx.Lock(), count)


@workload("Semaphore(1): 4 processes count under it", count=80_000)
def semaphore_contended(mp, count):
    ctx = mp.get_context("fork")
    return contended(ctx, ctx.Semaphore(1), count)


def take_turns(condition, counter, mine, count):
    """Count up whenever the counter's last bit is `mine`."""
    for _ in range(count):
        with condition:
            condition.wait_for(lambda: counter.value() % 2 == mine)
            counter.add(1)
            condition.notify()
    return 0


@workload("Condition: two processes in turn", count=10_000)
def condition_turns(mp, count):
    ctx = mp.get_context("fork")
    condition, counter = ctx.Condition(), Counter()
    share = count // 2
    took, _ = crew(ctx, [(take_turns, (condition, counter, mine, share)) for mine in (0, 1)])
    expect(counter.value(), 2 * share)
    return took


def wait_and_set(own, other, count):
    for _ in range(count):
        own.wait()
        own.clear()
        other.set()
    return 0


@workload("Event: two processes in turn", count=10_000)
def event_turns(mp, count):
    ctx = mp.get_context("fork")
    ping, pong = ctx.Event(), ctx.Event()
    ping.set()
    share = count // 2
    took, _ = crew(ctx, [(wait_and_set, (ping, pong, share)), (wait_and_set, (pong, ping, share))])
    expect((ping.is_set(), pong.is_set()), (True, False))
    return took


def meet(barrier, count):
    return sum(barrier.wait() for _ in range(count))


@workload("Barrier: 4 processes meet", count=2_000)
def barrier_meetings(mp, count):
    ctx = mp.get_context("fork")
    barrier = ctx.Barrier(4)
    took, answers = crew(ctx, [(meet, (barrier, count))] * 4)
    expect(sum(answers), (0 + 1 + 2 + 3) * count)
    return took
