"""Clients of managers, and their servers, killed while they hold, wait or answer."""

import os
import pickle
import queue
import random
import signal
import sys
import threading
import time
import warnings

import pytest

import processes
import procession
from procession import managers
from procession.managers import SyncManager

FORK = procession.get_context("fork")
KINDS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"]


@pytest.fixture
def printed(tmp_path):
    """What the server of `manager` has written to its stderr."""
    return (tmp_path / "stderr").read_text


def redirect(path):
    sys.stderr = open(path, "w", buffering=1)
    # As in a program of its own.
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    warnings.resetwarnings()


@pytest.fixture(params=["unix", "tcp"])
def manager(request, tmp_path):
    """A manager whose server is told of its clients by the system, and one whose clients have to say who they are."""
    made = SyncManager(("127.0.0.1", 0) if request.param == "tcp" else None, ctx=FORK)
    made.start(redirect, (tmp_path / "stderr",))
    with made:
        yield made


@pytest.fixture
def nearby():
    with FORK.Manager() as made:
        yield made


def kill(child):
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL


def started(target, *args):
    """A child, once it has told by the event that it is given that it is where it should be."""
    ready = FORK.Semaphore(0)
    child = FORK.Process(target=target, args=(ready, *args))
    child.start()
    assert ready.acquire(timeout=50)
    return child


def hold(ready, lock, times=1):
    for _ in range(times):
        assert lock.acquire()
    ready.release()
    time.sleep(600)


def hold_in_with(ready, lock):
    with lock:
        hold(ready, lock, 0)


def eventually_waits(seconds=0.3):
    """Time for another process to have its call arrive in the server; nothing tells when it has."""
    time.sleep(seconds)


# Holders


@pytest.mark.parametrize("how", [hold, hold_in_with])
@pytest.mark.parametrize("kind", KINDS)
def test_manager_lock_holder_killed(manager, kind, how, printed):
    """Standard package: the thread that served the client is gone, and nobody ever gets the lock again."""
    lock = getattr(manager, kind)()
    child = started(how, lock)
    assert not lock.acquire(False)
    kill(child)
    assert lock.acquire(timeout=50)
    lock.release()
    assert not lock.locked()
    with lock:
        pass
    err = printed()
    assert f"recovered: process {child.pid}" in err
    assert "died while holding it" in err


@pytest.mark.parametrize("kind", ["Lock", "Semaphore", "BoundedSemaphore"])
def test_another_may_release_what_a_client_held_to_its_end(nearby, kind, ctx):
    lock = getattr(nearby, kind)()
    for wait in (0, 0.5):
        child = ctx.Process(target=lock.acquire)
        child.start()
        child.join()
        # Before, or after it was given back.
        eventually_waits(wait)
        lock.release()
        if kind != "Semaphore":
            with pytest.raises((RuntimeError, ValueError), match="release"):
                lock.release()


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_gets_what_a_client_killed_meanwhile_held(manager, kind):
    lock = getattr(manager, kind)()
    child = started(hold, lock)
    threading.Timer(0.3, kill, (child,)).start()
    with lock:
        assert lock.locked()


def test_clients_by_all_start_methods(ctx):
    with ctx.Manager() as manager:
        lock, ready = manager.Lock(), manager.Event()
        child = ctx.Process(target=hold_and_set, args=(ready, lock))
        child.start()
        assert ready.wait(50)
        kill(child)
        assert lock.acquire(timeout=50)


def hold_and_set(ready, lock):
    lock.acquire()
    ready.set()
    time.sleep(600)


def test_a_nested_rlock_is_given_back_whole(manager):
    lock = manager.RLock()
    kill(started(hold, lock, 3))
    assert lock.acquire(timeout=50)
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()


def test_all_permits_of_a_killed_client_are_given_back(manager):
    semaphore = manager.Semaphore(3)
    kill(started(hold, semaphore, 3))
    for _ in range(3):
        assert semaphore.acquire(timeout=50)
    assert not semaphore.acquire(False)


def test_a_client_that_ends_without_releasing_has_died_too(manager, printed):
    lock = manager.Lock()
    child = FORK.Process(target=lock.acquire)
    child.start()
    child.join()
    assert lock.acquire(timeout=50)
    assert f"process {child.pid}" in printed()


def end_a_thread_that_holds(ready, lock, go):
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    ready.release()
    go.wait()
    lock.release()
    ready.release()
    time.sleep(600)


@pytest.mark.parametrize("kind", ["Lock", "Semaphore", "BoundedSemaphore"])
def test_a_thread_that_ended_still_holds(manager, kind, printed):
    lock, go = getattr(manager, kind)(), FORK.Event()
    ready = FORK.Semaphore(0)
    child = FORK.Process(target=end_a_thread_that_holds, args=(ready, lock, go))
    child.start()
    assert ready.acquire(timeout=50)
    # That is so for good; a while has to do.
    assert not lock.acquire(timeout=1)
    # Another thread of the process releases it.
    go.set()
    assert ready.acquire(timeout=50)
    assert lock.acquire(timeout=50)
    kill(child)
    eventually_waits()
    # What it had released is not released once more.
    assert not lock.acquire(False)
    assert "recovered" not in printed()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_thread_that_ended_held_goes_with_its_process(manager, kind):
    lock = getattr(manager, kind)()
    child = started(end_a_thread_that_holds, lock, FORK.Event())
    assert not lock.acquire(timeout=0.5)
    kill(child)
    assert lock.acquire(timeout=50)


def test_another_process_may_release(manager, printed):
    lock = manager.Lock()
    child = started(hold, lock)
    lock.release()
    assert lock.acquire(timeout=50)
    kill(child)
    eventually_waits()
    assert not lock.acquire(False)
    assert "recovered" not in printed()


def release_and_hold(ready, items):
    items.release()
    items.release()
    assert items.acquire()
    hold(ready, items, 0)


def consume_and_hold(ready, items):
    assert items.acquire()
    hold(ready, items, 0)


def test_a_semaphore_that_signals_gets_no_permits_from_the_dead(manager):
    items = manager.Semaphore(0)
    kill(started(release_and_hold, items))
    assert items.acquire(timeout=50)
    eventually_waits()
    assert not items.acquire(False)
    # Ours was a signal from another process; now one of ours is in the hands of a process that dies.
    items.release()
    items.release()
    kill(started(consume_and_hold, items))
    eventually_waits()
    assert items.acquire(timeout=50)
    assert not items.acquire(False)


def test_a_forked_child_does_not_hold_its_parents_lines_open(nearby):
    lock, ready = nearby.Lock(), FORK.Semaphore(0)
    other = nearby.Lock()
    reader, writer = os.pipe()
    child = FORK.Process(target=fork_and_hold, args=(ready, lock, reader, writer))
    child.start()
    assert ready.acquire(timeout=50)
    kill(child)
    assert lock.acquire(timeout=50)
    assert other.acquire(timeout=50)
    os.close(writer)
    os.close(reader)


def fork_and_hold(ready, lock, reader, writer):
    lock.acquire()
    if os.fork() == 0:
        # It outlives its parent, until the test closes the pipe.
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    ready.release()
    time.sleep(600)


def refer_and_wait(ready, items, address, key):
    client = SyncManager(address, key)
    client.connect()
    kept = [client.list([client.dict()]), pickle.loads(pickle.dumps(items)), items]
    other = threading.Thread(target=lambda: kept.append(client.set({1})))
    other.start()
    other.join()
    pid = os.fork()
    if not pid:
        # As a proxy gets its reference, in a child made in this way, with the first call.
        assert items[:] == []
        os._exit(0)
    os.waitpid(pid, 0)
    ready.release()
    time.sleep(600)


def test_references_of_a_killed_client_are_given_back(nearby):
    items, key = nearby.list(), bytes(nearby._authkey)
    children = [started(refer_and_wait, items, nearby.address, key) for _ in range(2)]
    assert nearby._number_of_objects() == 1 + 2 * 2
    for child in children:
        kill(child)
        assert items[:] == []
    assert processes.eventually(lambda: "refcount=1" in nearby._debug_info())
    assert processes.eventually(lambda: nearby._number_of_objects() == 1)
    items.append(1)
    assert items[:] == [1]


# Waiters


def acquire_and_tell(ready, lock):
    ready.release()
    lock.acquire()
    # Not reached: it is killed before.
    time.sleep(600)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_waiter_does_not_take_the_lock(manager, kind, printed):
    lock = getattr(manager, kind)()
    with lock:
        child = started(acquire_and_tell, lock)
        eventually_waits()
        kill(child)
    assert lock.acquire(timeout=50)
    lock.release()
    eventually_waits()
    assert not lock.locked()
    assert "recovered" not in printed()


def wait_for_condition(ready, condition, done=None):
    with condition:
        ready.release()
        condition.wait()
    done.put(os.getpid())


def test_manager_condition_waiter_killed(manager):
    """Standard package: the thread that serves the dead takes the notification, so nobody else wakes up."""
    condition, done = manager.Condition(), FORK.SimpleQueue()
    dead = [started(wait_for_condition, condition, done) for _ in range(2)]
    living = started(wait_for_condition, condition, done)
    with condition:
        pass
    for child in dead:
        kill(child)
    with condition:
        condition.notify()
    assert done.get() == living.pid
    living.join()
    # Nobody is left behind in it.
    with condition:
        condition.notify_all()
    assert not condition.locked()


def test_a_client_killed_after_it_was_notified_does_not_keep_the_lock(manager):
    condition, done = manager.Condition(), FORK.SimpleQueue()
    dead = started(wait_for_condition, condition, done)
    living = started(wait_for_condition, condition, done)
    with condition:
        condition.notify()
        # It has been chosen, and waits for the lock.
        kill(dead)
    assert done.get() == living.pid
    living.join()


def test_a_killed_waiter_for_an_event_harms_nobody(manager):
    event = manager.Event()
    child = started(lambda ready, event: (ready.release(), event.wait()), event)
    eventually_waits()
    kill(child)
    event.set()
    assert event.wait(50)


def test_a_client_killed_at_a_barrier_has_arrived(manager):
    barrier = manager.Barrier(3)
    child = started(lambda ready, barrier: (ready.release(), barrier.wait()), barrier)
    assert processes.eventually(lambda: barrier.n_waiting == 1)
    kill(child)
    other = threading.Thread(target=barrier.wait)
    other.start()
    barrier.wait(50)
    other.join()
    assert not barrier.broken


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_a_killed_getter_takes_no_item(manager, kind):
    q = getattr(manager, kind)()
    for arguments in [(), (True, 60)]:
        child = started(lambda ready, q, arguments: (ready.release(), q.get(*arguments)), q, arguments)
        eventually_waits()
        kill(child)
        for item in range(3):
            q.put(item)
        eventually_waits()
        assert [q.get(timeout=50) for _ in range(3)] == [0, 1, 2]


def test_a_killed_putter_puts_nothing(manager):
    q = manager.Queue(1)
    q.put("first")
    child = started(lambda ready, q: (ready.release(), q.put("never")), q)
    eventually_waits()
    kill(child)
    # Longer than any slice in which the server sleeps before it looks.
    eventually_waits(1)
    assert q.get() == "first"
    with pytest.raises(queue.Empty):
        q.get(timeout=0.5)


def test_killed_waiters_leave_no_thread_behind(nearby):
    q, event, lock = nearby.Queue(), nearby.Event(), nearby.Lock()
    condition, other = nearby.Condition(), nearby.Queue()

    def threads():
        return len(os.listdir(f"/proc/{nearby._process.pid}/task"))

    assert lock.acquire()
    # With the second line, the server gets one that stays.
    user = threading.Thread(target=q.qsize)
    user.start()
    user.join()
    assert processes.eventually(lambda: threads() <= 4)
    before = threads()
    waits = [
        lambda ready: (ready.release(), q.get()),
        lambda ready: (ready.release(), event.wait()),
        lambda ready: (ready.release(), lock.acquire()),
        lambda ready: (condition.acquire(), ready.release(), condition.wait()),
        lambda ready: (other.put(1), ready.release(), other.join()),
    ]
    children = [started(wait) for wait in waits]
    eventually_waits()
    assert threads() >= before + len(waits)
    for child in children:
        kill(child)
    assert processes.eventually(lambda: threads() <= before)


class Interrupted(Exception):
    pass


def test_a_call_cut_short_takes_nothing(nearby):
    """As of a client that died: nobody learns what it took."""

    def interrupt(signum, frame):
        raise Interrupted

    q, lock = nearby.Queue(), nearby.Lock()
    lock.acquire()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for wait in (q.get, lock.acquire):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    # Without regard to whether the server has noticed by now.
    q.put("not lost")
    assert q.get(timeout=50) == "not lost"
    lock.release()
    assert lock.acquire(timeout=50)


def test_an_rlock_is_not_lost_when_a_call_of_its_owner_is_cut_short(manager, printed):
    """The new line of the thread is another owner, so nobody could release it."""

    def interrupt(signum, frame):
        raise Interrupted

    q, lock, condition = manager.Queue(), manager.RLock(), manager.Condition()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        lock.acquire()
        condition.acquire()
        with pytest.raises(Interrupted):
            q.get()
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(RuntimeError):
        lock.release()
    assert lock.acquire(timeout=50)
    assert condition.acquire(timeout=50)
    assert printed().count(f"process {os.getpid()}") == 2
    assert printed().count("closed its line in a call while holding it") == 2


# Servers


def test_a_reply_that_nobody_read_is_taken_back(nearby):
    """The client is stopped with the reply in its socket, and then killed."""
    q = nearby.Queue()
    child = started(lambda ready, q: (ready.release(), q.get()), q)
    eventually_waits()
    os.kill(child.pid, signal.SIGSTOP)
    q.put("item")
    assert processes.eventually(q.empty)
    kill(child)
    assert q.get(timeout=50) == "item"


def call_and_tell(ready, results, call):
    ready.release()
    try:
        call()
    except Exception as error:
        results.put((type(error), str(error)))


@pytest.mark.parametrize("what", ["get", "acquire", "wait for event", "wait for condition", "barrier"])
def test_manager_server_killed(manager, what):
    """Standard package: EOFError or ConnectionResetError as well, without a word of what is gone."""
    q, lock, event, condition, barrier = (
        manager.Queue(),
        manager.Lock(),
        manager.Event(),
        manager.Condition(),
        manager.Barrier(2),
    )
    lock.acquire()
    condition.acquire()
    call = {
        "get": q.get,
        "acquire": lambda: lock.acquire(),
        "wait for event": event.wait,
        "wait for condition": condition.wait,
        "barrier": barrier.wait,
    }[what]
    results = queue.SimpleQueue()
    ready = threading.Semaphore(0)
    caller = threading.Thread(target=call_and_tell, args=(ready, results, call))
    if what == "wait for condition":
        condition.release()

        def call():
            condition.acquire()
            condition.wait()

        caller = threading.Thread(target=call_and_tell, args=(ready, results, call))
    caller.start()
    ready.acquire()
    eventually_waits()
    os.kill(manager._process.pid, signal.SIGKILL)
    kind, text = results.get(timeout=50)
    caller.join()
    assert issubclass(kind, (EOFError, ConnectionError))
    assert "manager's process is gone" in text
    for again in (q.get, manager.list, lambda: manager.connect()):
        with pytest.raises((EOFError, ConnectionError, FileNotFoundError), match="manager's process"):
            again()


def test_proxies_of_a_server_that_is_gone_do_not_reach_the_next_one():
    first = SyncManager(("127.0.0.1", 0), ctx=FORK)
    first.start()
    old = [first.list([number]) for number in range(20)]
    address = first.address
    os.kill(first._process.pid, signal.SIGKILL)
    first.join()
    with SyncManager(address, ctx=FORK) as second:
        new = [second.list([number + 100]) for number in range(20)]
        for proxy in old:
            # The line of this thread may be to either by now.
            with pytest.raises(EOFError, match="manager's process"):
                proxy.append("astray")
        del old, proxy
        assert [list(proxy) for proxy in new] == [[number + 100] for number in range(20)]
    first.shutdown()


class Counted(threading.Semaphore):
    """Nobody but itself knows what its methods mean."""

    def acquire(self, permits):
        for _ in range(permits):
            super().acquire()
        return f"{permits} acquired"


class Named(queue.Queue):
    """Works as any other queue."""

    def name(self):
        return "named"


class Custom(SyncManager):
    pass


Custom.register("Counted", Counted)
Custom.register("Named", Named)


def test_subclasses_with_methods_of_their_own():
    with Custom(ctx=FORK) as manager:
        counted, named = manager.Counted(3), manager.Named()
        assert counted.acquire(2) == "2 acquired"
        kill(started(lambda ready: (counted.acquire(permits=1), hold(ready, None, 0))))
        eventually_waits()
        # What it means to have acquired so much is the class's own affair.
        counted.release()
        assert counted.acquire(1) == "1 acquired"
        child = started(lambda ready: (ready.release(), named.get()))
        eventually_waits()
        kill(child)
        named.put(1)
        eventually_waits()
        assert (named.get(timeout=50), named.name()) == (1, "named")


# Clients of the standard package

STANDARD = """
import sys
from multiprocessing.managers import AcquirerProxy, BaseManager

class Manager(BaseManager):
    pass

Manager.register("the_lock", proxytype=AcquirerProxy)
Manager.register("the_queue")
manager = Manager(eval(sys.argv[1]), b"secret")
manager.connect()
lock, q = manager.the_lock(), manager.the_queue()
if sys.argv[2] == "hold":
    lock.acquire()
lock.locked() if hasattr(lock, "locked") else q.qsize()
print("ready", flush=True)
lock.acquire() if sys.argv[2] != "get" else q.get()
"""


class Serving(SyncManager):
    pass


THE_LOCK, THE_QUEUE = threading.Lock(), queue.Queue()


def the_lock():
    return THE_LOCK


def the_queue():
    return THE_QUEUE


Serving.register("the_lock", the_lock, managers.AcquirerProxy)
Serving.register("the_queue", the_queue)


@pytest.mark.parametrize("what", ["hold", "wait", "get"])
@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_a_killed_client_of_the_standard_package(program, address, what):
    with Serving(address, b"secret", ctx=FORK) as manager:
        lock, q = manager.the_lock(), manager.the_queue()
        if what == "wait":
            lock.acquire()
        client = program(STANDARD, repr(manager.address), what, options=())
        assert client.readline() == "ready"
        eventually_waits()
        os.kill(client.pid, signal.SIGKILL)
        client.process.wait()
        if what == "get":
            q.put("item")
            eventually_waits()
            assert q.get(timeout=50) == "item"
        elif what == "wait":
            lock.release()
            assert lock.acquire(timeout=50)
        elif address is None:
            assert lock.acquire(timeout=50)
        else:
            # Nobody can tell whether it was a thread that ended: it stays held, until somebody who knows releases it.
            assert not lock.acquire(timeout=1)
            lock.release()
            assert lock.acquire(timeout=50)


# All at once


def use_everything(lock, rlock, semaphore, condition, q, done):
    turn = 0
    while True:
        turn += 1
        with lock, semaphore:
            pass
        with rlock, rlock, semaphore:
            q.put((os.getpid(), turn))
        with condition:
            condition.notify()
            condition.wait(0.01)
        try:
            done.append(q.get(timeout=0.01))
        except queue.Empty:
            pass


@pytest.mark.once
def test_clients_killed_at_any_moment_leave_everything_in_order(manager):
    lock, rlock, semaphore, condition = manager.Lock(), manager.RLock(), manager.Semaphore(2), manager.Condition()
    q, done = manager.Queue(), manager.list()

    def start():
        child = FORK.Process(target=use_everything, args=(lock, rlock, semaphore, condition, q, done))
        child.start()
        return child

    random.seed(1)
    children = [start() for _ in range(4)]
    for _ in range(25):
        time.sleep(random.uniform(0, 0.1))
        victim = children.pop(0)
        kill(victim)
        children.append(start())
    for child in children:
        kill(child)
    for one in (lock, rlock, condition):
        assert one.acquire(timeout=50)
        one.release()
    for _ in range(2):
        assert semaphore.acquire(timeout=50)
    assert not semaphore.acquire(False)
    seen = done[:]
    # None twice; those in the hands of the dead are lost.
    assert len(seen) == len(set(seen)) > 0
    with pytest.raises(queue.Empty):
        while True:
            item = q.get(timeout=1)
            assert item not in seen
