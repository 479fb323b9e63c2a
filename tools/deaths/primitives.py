"""Rows about locks, queues, pipes and managers: those who hold them or wait in them are killed."""

import os
import signal
import threading
import time

from .answers import GOOD, HANGS, NONE, PATIENCE, POOR, eventually, primitive, told, within


def context(mp):
    return mp.get_context("fork")


def state(pid):
    """R, S, ...: what the system says of a process."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def started(ctx, target):
    """A child, once target(ready) has called ready()."""
    reader, writer = os.pipe()
    child = ctx.Process(target=target, args=(lambda: os.write(writer, b"."),))
    child.daemon = True
    child.start()
    os.read(reader, 1)
    return child


def asleep(child):
    """Wait until a child that is ready sleeps in what it waits for."""
    eventually(lambda: state(child.pid) == "S")
    time.sleep(0.2)
    eventually(lambda: state(child.pid) == "S")


def kill(child):
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def holding(take):
    def hold(ready):
        take()
        ready()
        time.sleep(600)

    return hold


def waiting(wait, before=lambda: None):
    def sleep(ready):
        before()
        ready()
        wait()

    return sleep


def offered(mp, name):
    return hasattr(context(mp), name) or hasattr(mp, name)


def holder_killed(mp, kind):
    ctx = context(mp)
    lock = getattr(ctx, kind)()
    kill(started(ctx, holding(lock.acquire)))
    got = within(PATIENCE, lambda: lock.acquire(True, 5))
    return (GOOD, "recovered, with a warning") if got == ("value", True) else (HANGS, "never free again")


@primitive
def lock_holder_killed(mp):
    return holder_killed(mp, "Lock")


@primitive
def rlock_holder_killed(mp):
    return holder_killed(mp, "RLock")


@primitive
def semaphore_holder_killed(mp):
    return holder_killed(mp, "Semaphore")


@primitive
def condition_holder_killed(mp):
    return holder_killed(mp, "Condition")


@primitive
def condition_waiter_killed(mp):
    ctx = context(mp)
    condition = ctx.Condition()
    dead = started(ctx, waiting(condition.wait, condition.acquire))
    asleep(dead)
    living = started(ctx, waiting(condition.wait, condition.acquire))
    asleep(living)
    kill(dead)

    def notify():
        with condition:
            condition.notify_all()

    if within(PATIENCE, notify) is None:
        return HANGS, "hangs"
    living.join(PATIENCE)
    return (HANGS, "the living does not wake up") if living.is_alive() else (GOOD, "the living wakes up")


@primitive
def event_waiter_killed(mp):
    ctx = context(mp)
    event = ctx.Event()
    child = started(ctx, waiting(event.wait))
    asleep(child)
    kill(child)
    return (HANGS, "hangs") if within(PATIENCE, event.set) is None else (GOOD, "sets it")


@primitive
def event_set_in_a_signal_handler(mp):
    event = context(mp).Event()
    done = threading.Event()
    answer = []

    # Nobody could tell of a hang of the main thread but another thread.
    def watch():
        if not done.wait(PATIENCE):
            print_and_leave((HANGS, "hangs"))

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGALRM, lambda *_: event.set())
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    answer.append(event.wait(PATIENCE - 1))
    done.set()
    return (GOOD, "sets it") if answer == [True] else (HANGS, "is not woken up")


def print_and_leave(answer):
    from .cell import report

    report(answer)
    os._exit(0)


@primitive
def barrier_waiter_killed(mp):
    ctx = context(mp)
    barrier = ctx.Barrier(2)
    child = started(ctx, waiting(barrier.wait))
    eventually(lambda: barrier.n_waiting == 1)
    asleep(child)
    kill(child)
    over = within(PATIENCE, lambda: barrier.wait(5))
    if over is None:
        return HANGS, "hangs, past its timeout"
    return (GOOD, "passes" if over[0] == "value" else told(over))


def getter_killed(mp, kind):
    ctx = context(mp)
    q = getattr(ctx, kind)()
    child = started(ctx, waiting(q.get))
    asleep(child)
    kill(child)
    q.put("item")
    got = within(PATIENCE, q.get)
    return (GOOD, "the next gets the item") if got == ("value", "item") else (HANGS, "no one gets anything")


@primitive
def queue_getter_killed(mp):
    return getter_killed(mp, "Queue")


@primitive
def simple_queue_getter_killed(mp):
    return getter_killed(mp, "SimpleQueue")


@primitive
def queue_putter_killed(mp):
    ctx = context(mp)
    q = ctx.Queue()

    def put(ready):
        q.put(bytes(8 << 20))
        ready()
        q.put(bytes(8 << 20))
        time.sleep(600)

    child = started(ctx, put)
    time.sleep(0.5)
    kill(child)
    count = 0
    while True:
        got = within(PATIENCE, lambda: q.get(timeout=2))
        if got is None:
            return HANGS, "hangs, past its timeout"
        if got[0] == "error":
            break
        count += 1
    q.put("after")
    if within(PATIENCE, lambda: q.get(timeout=5)) != ("value", "after"):
        return HANGS, f"{told(got)}; of no more use"
    return GOOD, f"{count} whole messages, then {told(got)}"


@primitive
def queue_put_then_killed(mp):
    ctx = context(mp)
    q = ctx.Queue()

    def put(ready):
        q.put(bytes(8 << 20))
        ready()
        os.kill(os.getpid(), signal.SIGKILL)

    started(ctx, put).join()
    got = within(PATIENCE, lambda: q.get(timeout=2))
    if got is None:
        return HANGS, "lost; `get` hangs, past its timeout"
    return (GOOD, "it is there") if got[0] == "value" else (POOR, "lost")


@primitive
def joinable_queue_consumer_killed(mp):
    ctx = context(mp)
    q = ctx.JoinableQueue()
    q.put("item")
    kill(started(ctx, holding(q.get)))
    over = within(PATIENCE, q.join)
    return (HANGS, "waits for ever") if over is None else (GOOD, "ends, with a warning")


@primitive
def queue_joined_before_it_is_drained(mp):
    ctx = context(mp)
    q = ctx.Queue()
    child = ctx.Process(target=q.put, args=(bytes(1 << 20),))
    child.start()
    child.join(PATIENCE)
    return (HANGS, "hangs") if child.is_alive() else (GOOD, "ends")


@primitive
def pipe_writer_killed(mp):
    ctx = context(mp)
    reader, writer = ctx.Pipe(False)

    def send(ready):
        reader.close()
        ready()
        while True:
            writer.send_bytes(bytes(8 << 20))

    child = started(ctx, send)
    writer.close()
    asleep(child)
    kill(child)
    outcome = None
    for _ in range(3):
        outcome = within(PATIENCE, reader.recv_bytes)
        if outcome is None or outcome[0] == "error":
            break
    return (HANGS, "hangs") if outcome is None else (GOOD, told(outcome))


def manager_of(mp):
    if not hasattr(context(mp), "Manager"):
        return None
    got = within(PATIENCE, context(mp).Manager)
    return got[1] if got and got[0] == "value" else None


@primitive
def manager_lock_holder_killed(mp):
    if (manager := manager_of(mp)) is None:
        return NONE, "none that starts"
    lock = manager.Lock()
    kill(started(context(mp), holding(lock.acquire)))
    got = within(PATIENCE, lambda: lock.acquire(True, 5))
    return (GOOD, "recovered") if got == ("value", True) else (HANGS, "never free again")


@primitive
def manager_condition_waiter_killed(mp):
    if (manager := manager_of(mp)) is None:
        return NONE, "none that starts"
    ctx, condition = context(mp), manager.Condition()
    dead = started(ctx, waiting(condition.wait, condition.acquire))
    time.sleep(0.5)
    living = started(ctx, waiting(condition.wait, condition.acquire))
    time.sleep(0.5)
    kill(dead)
    time.sleep(0.5)

    def notify():
        with condition:
            condition.notify()

    if within(PATIENCE, notify) is None:
        return HANGS, "hangs"
    living.join(PATIENCE)
    return (HANGS, "the dead takes it, the living waits") if living.is_alive() else (GOOD, "the living wakes up")


@primitive
def manager_server_killed(mp):
    if (manager := manager_of(mp)) is None:
        return NONE, "none that starts"
    q = manager.Queue()
    threading.Timer(0.5, lambda: os.kill(manager._process.pid, signal.SIGKILL)).start()
    outcome = within(PATIENCE, q.get)
    return (HANGS, "hangs") if outcome is None else (GOOD, told(outcome))
