"""Processes killed while they hold or wait, and Ctrl-C in every wait."""

import functools
import os
import random
import signal
import threading
import time
import warnings

import pytest

import processes
import procession


def kill(child):
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL


def started(ctx, target, *args):
    """A child, once it has told by the semaphore that it is given that it is where it should be."""
    ready = ctx.Semaphore(0)
    child = ctx.Process(target=target, args=(ready, *args))
    child.start()
    assert ready.acquire(timeout=50)
    return child


def asleep(child):
    """Wait until a child sleeps in the kernel."""
    assert processes.eventually(lambda: processes.status(child.pid).state == "S")
    time.sleep(0.05)


def hold(ready, lock, times=1):
    for _ in range(times):
        assert lock.acquire()
    ready.release()
    time.sleep(600)


# Holders


ACQUIRE = pytest.mark.parametrize("arguments", [(), (True, 30), (False,)], ids=["forever", "timeout", "at once"])


def recovered(ctx, lock, arguments):
    """What a killed process held is got by who comes next, with a warning that names the dead."""
    child = started(ctx, hold, lock)
    assert not lock.acquire(timeout=0.05)
    kill(child)
    # "At once" looks whether the holder lives every 20 ms.
    time.sleep(0.05)
    with pytest.warns(RuntimeWarning, match=f"process {child.pid} died while holding it"):
        assert lock.acquire(*arguments)
    lock.release()
    assert not lock.locked()
    with lock:
        pass


@ACQUIRE
def test_lock_holder_killed(ctx, arguments):
    """Standard package and billiard: nobody ever gets it again. The peers that have pools alone have no lock."""
    recovered(ctx, ctx.Lock(), arguments)


@ACQUIRE
def test_rlock_holder_killed(ctx, arguments):
    """Standard package and billiard: nobody ever gets it again."""
    recovered(ctx, ctx.RLock(), arguments)


@ACQUIRE
@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_semaphore_holder_killed(ctx, kind, arguments):
    """Standard package and billiard: its permits are gone for ever."""
    recovered(ctx, getattr(ctx, kind)(), arguments)


def test_a_waiter_gets_the_lock_of_a_process_killed_meanwhile(ctx):
    lock = ctx.Lock()
    child = started(ctx, hold, lock)
    threading.Timer(0.3, kill, (child,)).start()
    with pytest.warns(RuntimeWarning, match=f"process {child.pid}"), lock:
        assert lock._is_mine()


def test_a_warning_that_is_an_error_leaves_the_lock_free(ctx):
    lock = ctx.Lock()
    kill(started(ctx, hold, lock))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            lock.acquire()
    assert lock.acquire(False)


def test_a_nested_rlock_is_recovered_whole(ctx):
    lock = ctx.RLock()
    kill(started(ctx, hold, lock, 3))
    with pytest.warns(RuntimeWarning), lock:
        assert lock._count() == 1
    assert not lock.locked()


def test_all_permits_of_a_killed_process_are_given_back(ctx):
    semaphore = ctx.Semaphore(4)
    child = started(ctx, hold, semaphore, 3)
    assert semaphore.acquire()
    kill(child)
    with pytest.warns(RuntimeWarning):
        assert semaphore.acquire(timeout=30)
    assert semaphore.get_value() == 2


def signal_and_hold(ready, items):
    items.release()
    items.release()
    assert items.acquire()
    ready.release()
    time.sleep(600)


def test_a_semaphore_that_signals_gets_no_permits_from_the_dead(ctx):
    items = ctx.Semaphore(0)
    kill(started(ctx, signal_and_hold, items))
    assert items.acquire(timeout=30)
    assert not items.acquire(timeout=0.1)


def hold_condition(ready, condition):
    with condition:
        ready.release()
        time.sleep(600)


def test_condition_holder_killed(ctx):
    """Standard package and billiard: nobody ever gets its lock again, and so nobody can notify."""
    condition = ctx.Condition()
    child = started(ctx, hold_condition, condition)
    kill(child)
    with pytest.warns(RuntimeWarning, match=f"process {child.pid}"), condition:
        condition.notify_all()


# Waiters


def wait_for_condition(ready, condition, done):
    with condition:
        ready.release()
        condition.wait()
    done.release()


def test_condition_waiter_killed(ctx):
    """Standard package and billiard: `notify` waits for the dead to say that it woke up, and keeps the lock."""
    condition, done = ctx.Condition(), ctx.Semaphore(0)
    dead = started(ctx, wait_for_condition, condition, done)
    living = started(ctx, wait_for_condition, condition, done)
    asleep(dead)
    kill(dead)
    with condition:
        condition.notify()
    assert done.acquire(timeout=30)
    living.join()
    with condition:
        condition.notify_all()
    assert not done.acquire(timeout=0.05)


def test_a_notification_of_one_killed_goes_to_another(ctx):
    condition, done = ctx.Condition(), ctx.Semaphore(0)
    dead = started(ctx, wait_for_condition, condition, done)
    asleep(dead)
    os.kill(dead.pid, signal.SIGSTOP)
    living = started(ctx, wait_for_condition, condition, done)
    with condition:
        condition.notify()
    kill(dead)
    assert done.acquire(timeout=30)
    living.join()


def wait_for_event(ready, event):
    ready.release()
    event.wait()


def test_event_waiter_killed(ctx):
    """Standard package and billiard: `set` waits for the dead to say that it woke up."""
    event = ctx.Event()
    child = started(ctx, wait_for_event, event)
    asleep(child)
    kill(child)
    event.set()
    event.clear()
    event.set()
    assert event.wait(1)


def test_event_set_in_a_signal_handler(program):
    """Standard package and billiard: the handler waits for the lock that the interrupted wait holds."""
    started = program(
        """
        import os, signal, procession
        event = procession.Event()
        signal.signal(signal.SIGUSR1, lambda *_: event.set())
        signal.setitimer(signal.ITIMER_REAL, 50)
        print("ready", flush=True)
        print(event.wait(40))
        """
    )
    assert started.readline() == "ready"
    time.sleep(0.1)
    os.kill(started.pid, signal.SIGUSR1)
    assert started.finish() == ("True\n", "")


def arrive(ready, barrier):
    ready.release()
    barrier.wait()


def test_barrier_waiter_killed(ctx):
    """Standard package and billiard: the last to arrive waits for the dead to say that it woke up.

    Here the dead has arrived, as it would have if it had died a moment later.
    """
    barrier = ctx.Barrier(2)
    child = started(ctx, arrive, barrier)
    assert processes.eventually(lambda: barrier.n_waiting == 1)
    kill(child)
    assert barrier.wait(30) == 1
    assert barrier.n_waiting == 0
    # And it is usable again.
    child = started(ctx, arrive, barrier)
    barrier.wait(30)
    child.join()


def stay(semaphore):
    semaphore.release()
    time.sleep(600)


def test_a_process_killed_in_its_action_breaks_the_barrier(ctx):
    acting = ctx.Semaphore(0)
    barrier = ctx.Barrier(2, functools.partial(stay, acting))
    outcome = []

    def wait():
        try:
            barrier.wait(50)
        except threading.BrokenBarrierError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert processes.eventually(lambda: barrier.n_waiting == 1)
    child = started(ctx, arrive, barrier)
    assert acting.acquire(timeout=50)
    kill(child)
    thread.join()
    assert len(outcome) == 1
    assert barrier.broken


# Ctrl-C

WAITS = {
    "Lock": "lock = mp.Lock(); lock.acquire(); wait = lock.acquire",
    "Lock with a timeout": "lock = mp.Lock(); lock.acquire(); wait = lambda: lock.acquire(timeout=600)",
    "RLock": """
        lock = mp.RLock()
        thread = threading.Thread(target=lock.acquire); thread.start(); thread.join()
        wait = lock.__enter__""",
    "Semaphore": "wait = mp.Semaphore(0).acquire",
    "Condition": "condition = mp.Condition(); condition.acquire(); wait = condition.wait",
    "Event": "wait = mp.Event().wait",
    "Barrier": "barrier = mp.Barrier(2); wait = barrier.wait",
}

PROGRAM = """
import threading
import procession as mp

{prepare}
print("ready", flush=True)
try:
    wait()
except KeyboardInterrupt:
    print("interrupted")
{after}
"""

AFTERWARDS = {
    "Condition": "condition.release(); print(condition)",
    "Barrier": "print(barrier.n_waiting, barrier.broken)",
    "Lock": "print(lock)",
}


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_ends_a_wait(program, what):
    import textwrap

    source = PROGRAM.format(prepare=textwrap.dedent(WAITS[what]).strip(), after=AFTERWARDS.get(what, ""))
    child = program(source)
    assert child.readline() == "ready"
    processes.eventually(lambda: processes.status(child.pid).state == "S")
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.finish()
    expected = {
        "Condition": "interrupted\n<Condition(<RLock(None, 0)>, 0)>\n",
        "Barrier": "interrupted\n0 False\n",
        "Lock": "interrupted\n<Lock(owner=MainProcess)>\n",
    }
    assert (out, err) == (expected.get(what, "interrupted\n"), "")


def test_a_signal_that_raises_nothing_ends_no_wait():
    calls = []
    previous = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        began = time.monotonic()
        assert not procession.Semaphore(0).acquire(timeout=0.3)
        assert time.monotonic() - began >= 0.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(calls) > 3


def test_a_wait_lets_other_threads_run():
    lock, steps = procession.Lock(), []
    lock.acquire()

    def release():
        for number in range(10):
            steps.append(number)
            time.sleep(0.001)
        lock.release()

    thread = threading.Thread(target=release)
    thread.start()
    assert lock.acquire()
    assert len(steps) == 10
    thread.join()


# Many deaths


def use_all(semaphore, lock, condition):
    warnings.simplefilter("ignore")
    while True:
        with semaphore, lock:
            pass
        with condition:
            condition.notify()
            condition.wait(0.001)


@pytest.mark.once
def test_no_permit_is_lost_or_made_up_whenever_processes_are_killed():
    # What is tried is the same under every start method; by fork the most can be killed.
    ctx = procession.get_context("fork")
    semaphore, lock, condition = ctx.BoundedSemaphore(3), ctx.Lock(), ctx.Condition()

    def start():
        child = ctx.Process(target=use_all, args=(semaphore, lock, condition))
        child.start()
        return child

    chance = random.Random(5)
    children = [start() for _ in range(5)]
    for _ in range(300):
        time.sleep(chance.random() * 0.01)
        kill(children.pop(chance.randrange(len(children))))
        children.append(start())
    for child in children:
        kill(child)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            assert semaphore.acquire(timeout=30)
        assert not semaphore.acquire(timeout=0.1)
        assert lock.acquire(timeout=30)
        assert condition.acquire(timeout=30)
    for _ in range(3):
        semaphore.release()
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release()
