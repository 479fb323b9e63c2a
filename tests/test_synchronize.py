"""Locks, semaphores, conditions, events and barriers, used as they are meant to be."""

import os
import pickle
import threading
import time

import pytest

import processes
import procession
from procession import synchronize

KINDS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore"]


def made(ctx, kind):
    return getattr(ctx, kind)()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def lock(kind):
    return made(procession.get_context("fork"), kind)


def run(ctx, target, *args, count=1):
    """Run a function in children; all of them must end well."""
    children = [ctx.Process(target=target, args=args) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count


# What acquires and releases


def test_acquire_and_release(lock):
    assert lock.acquire() is True
    assert lock.locked() is True
    assert lock.release() is None
    assert lock.locked() is False
    with lock as entered:
        assert entered is True
    assert lock.locked() is False


def test_arguments_of_acquire(lock):
    for arguments, keywords in [
        ((), {}),
        ((True,), {}),
        ((1, None), {}),
        ((), {"block": True}),
        ((), {"timeout": 5}),
        ((False,), {"timeout": "not looked at"}),
        ((True,), {"timeout": 2.5}),
        ((), {"timeout": -1, "block": "yes"}),
    ]:
        assert lock.acquire(*arguments, **keywords) is True
        lock.release()
    for arguments, keywords in [
        ((1, 2, 3), {}),
        ((True,), {"block": True}),
        ((True, 1), {"timeout": 1}),
        ((), {"blocking": True}),
    ]:
        with pytest.raises(TypeError, match=r"acquire\(\)"):
            lock.acquire(*arguments, **keywords)
    with pytest.raises(TypeError, match="release"):
        lock.release(1)


def test_a_held_one_is_not_acquired(lock):
    lock.acquire()
    answers = []

    def others():
        answers.append(lock.acquire(False))
        answers.append(lock.acquire(block=False, timeout=50))
        answers.append(lock.acquire(True, -1))
        began = time.monotonic()
        answers.append(lock.acquire(timeout=0.1))
        answers.append(time.monotonic() - began >= 0.1)

    thread = threading.Thread(target=others)
    thread.start()
    thread.join()
    assert answers == [False, False, False, False, True]
    lock.release()


def test_a_bad_timeout_is_refused_where_there_is_something_to_wait_for():
    lock = procession.Lock()
    with lock:
        with pytest.raises(TypeError, match="timeout"):
            lock.acquire(timeout="soon")
        with pytest.raises(ValueError, match="NaN"):
            lock.acquire(timeout=float("nan"))


def test_a_release_too_many():
    for lock in (procession.Lock(), procession.BoundedSemaphore(2)):
        with pytest.raises(ValueError, match="released too many times"):
            lock.release()
    with pytest.raises(AssertionError, match="not owned"):
        procession.RLock().release()


def test_a_lock_may_be_released_by_another_thread_and_process(ctx):
    lock = ctx.Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert not lock.locked()
    lock.acquire()
    run(ctx, lock.release)
    assert not lock.locked()


def test_an_rlock_belongs_to_its_owner(ctx):
    lock = ctx.RLock()
    assert lock.acquire() and lock.acquire()
    run(ctx, rlock_of_another, lock)
    refused = []

    def other():
        try:
            lock.release()
        except AssertionError as error:
            refused.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == 1
    lock.release()
    assert lock.locked()
    lock.release()
    assert not lock.locked()


def rlock_of_another(lock):
    assert not lock.acquire(False)
    assert not lock._is_mine()
    with pytest.raises(AssertionError):
        lock.release()


class Counter:
    """A number in a file that processes have in common, with nothing that keeps them apart."""

    def __init__(self, path):
        self.path = str(path)
        self.set(0)

    def get(self):
        with open(self.path) as file:
            return int(file.read())

    def set(self, number):
        with open(self.path, "w") as file:
            file.write(str(number))


def count_under(lock, counter, times):
    for _ in range(times):
        with lock:
            counter.set(counter.get() + 1)


def test_processes_exclude_each_other(ctx, kind, tmp_path):
    lock, counter = made(ctx, kind), Counter(tmp_path / "number")
    run(ctx, count_under, lock, counter, 100, count=3)
    assert counter.get() == 300
    assert not lock.locked()


def test_a_semaphore_counts(ctx):
    semaphore = ctx.Semaphore(2)
    run(ctx, semaphore.acquire, count=1)
    assert semaphore.get_value() == 1
    semaphore.release()
    semaphore.release()
    assert semaphore.get_value() == 3
    with semaphore, semaphore, semaphore:
        assert semaphore.locked()
        assert not semaphore.acquire(timeout=0)


def test_values_of_semaphores():
    for factory in (procession.Semaphore, procession.BoundedSemaphore):
        assert factory(0).get_value() == 0
        assert factory(synchronize.SEM_VALUE_MAX).get_value() == synchronize.SEM_VALUE_MAX
        with pytest.raises(OSError, match="-1 permits"):
            factory(-1)
        for value in (synchronize.SEM_VALUE_MAX + 1, 2**80):
            with pytest.raises(OverflowError):
                factory(value)
        with pytest.raises(TypeError):
            factory("one")
    with pytest.raises(ValueError, match="too many times"):
        procession.Semaphore(synchronize.SEM_VALUE_MAX).release()


# Representations


def test_representations_of_locks():
    lock = procession.Lock()
    assert repr(lock) == "<Lock(owner=None)>"
    with lock:
        assert repr(lock) == "<Lock(owner=MainProcess)>"
        assert in_thread(repr, lock) == "<Lock(owner=SomeOtherThread)>"
        assert in_fork(repr, lock) == "<Lock(owner=SomeOtherProcess)>"
    rlock = procession.RLock()
    assert repr(rlock) == "<RLock(None, 0)>"
    with rlock, rlock:
        assert repr(rlock) == "<RLock(MainProcess, 2)>"
        assert in_thread(repr, rlock) == "<RLock(SomeOtherThread, nonzero)>"
        assert in_fork(repr, rlock) == "<RLock(SomeOtherProcess, nonzero)>"
    assert in_thread(lambda: (lock.acquire(), repr(lock), lock.release())[1]) == "<Lock(owner=MainProcess|Ada)>"


def test_representations_of_the_others():
    assert repr(procession.Semaphore(3)) == "<Semaphore(value=3)>"
    assert repr(procession.BoundedSemaphore(3)) == "<BoundedSemaphore(value=3, maxvalue=3)>"
    assert repr(procession.Condition()) == "<Condition(<RLock(None, 0)>, 0)>"
    event = procession.Event()
    assert repr(event) == f"<Event at {id(event):#x} unset>"
    event.set()
    assert repr(event) == f"<Event at {id(event):#x} set>"
    assert "waiters=0/3" in repr(procession.Barrier(3))


def in_thread(function, *args):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function(*args)), name="Ada")
    thread.start()
    thread.join()
    return answers[0]


def in_fork(function, *args):
    """What a function answers in a child made by a bare os.fork()."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, str(function(*args)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


# Into other processes


ALL = [*KINDS, "Condition", "Event"]


@pytest.mark.parametrize("kind", ALL)
def test_pickled_only_for_a_child(kind):
    with pytest.raises(RuntimeError, match="should only be shared between processes through inheritance"):
        pickle.dumps(made(procession.get_context("spawn"), kind))
    with pytest.raises(RuntimeError, match="through inheritance"):
        pickle.dumps(procession.get_context("spawn").Barrier(2))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_of_a_fork_context_not_for_another(kind, method):
    child = procession.get_context(method).Process(target=repr, args=(made(procession.get_context("fork"), kind),))
    with pytest.raises(RuntimeError, match="A SemLock created in a fork context"):
        child.start()


def hand_on(method, depth, lock, condition, event, barrier, semaphore):
    if depth:
        ctx = procession.get_context(method)
        run(ctx, hand_on, method, depth - 1, lock, condition, event, barrier, semaphore)
    else:
        with lock, condition:
            condition.notify()
        event.set()
        barrier.wait(30)
        semaphore.release()


def test_a_child_hands_them_on(ctx, method):
    lock, condition, event, semaphore = ctx.Lock(), ctx.Condition(ctx.Lock()), ctx.Event(), ctx.Semaphore(0)
    barrier = ctx.Barrier(2, None, 30)
    child = ctx.Process(target=hand_on, args=(method, 2, lock, condition, event, barrier, semaphore))
    with condition:
        child.start()
        assert condition.wait(30)
    assert event.wait(30)
    barrier.wait()
    assert semaphore.acquire(timeout=30)
    child.join()
    assert child.exitcode == 0


def test_usable_after_a_bare_fork():
    lock, condition = procession.Lock(), procession.Condition()
    event, barrier = procession.Event(), procession.Barrier(2)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with lock:
                event.set()
            barrier.wait(30)
            with condition:
                condition.notify_all()
            code = 0
        finally:
            os._exit(code)
    with condition:
        assert event.wait(30)
        barrier.wait(30)
        assert condition.wait(30)
    assert os.waitpid(pid, 0)[1] == 0
    assert lock.acquire(timeout=30)


def test_subclasses_with_an_init_of_their_own():
    class Named(synchronize.Lock):
        def __init__(self, name, *, ctx=None):
            super().__init__(ctx=ctx)
            self.label = name

    class Forgotten(synchronize.Event):
        def __init__(self):
            pass

    lock = Named("mine", ctx=procession.get_context("fork"))
    with lock:
        assert lock.label == "mine"
        assert repr(lock) == "<Named(owner=MainProcess)>"
    with pytest.raises(RuntimeError, match="super"):
        Forgotten().set()
    with pytest.raises(RuntimeError, match="twice"):
        synchronize.Lock.__init__(lock, ctx=None)


def test_what_others_look_for():
    lock, rlock, semaphore = procession.Lock(), procession.RLock(), procession.BoundedSemaphore(3)
    assert all(isinstance(one, synchronize.SemLock) for one in (lock, rlock, semaphore))
    assert [one._semlock.kind for one in (lock, rlock, semaphore)] == [1, 0, 1]
    assert [one._semlock.maxvalue for one in (lock, rlock, semaphore)] == [1, 1, 3]
    assert [one._semlock._get_value() for one in (lock, rlock, semaphore)] == [1, 1, 3]
    assert [one._semlock.name for one in (lock, rlock, semaphore)] == [None] * 3
    with lock, rlock, rlock, semaphore:
        assert [one._semlock._count() for one in (lock, rlock, semaphore)] == [1, 2, 1]
        assert all(one._semlock._is_mine() for one in (lock, rlock, semaphore))
        assert [one._semlock._is_zero() for one in (lock, rlock, semaphore)] == [True, True, False]
    condition = procession.Condition()
    for name in ("_sleeping_count", "_woken_count", "_wait_semaphore"):
        with pytest.raises(NotImplementedError):
            getattr(condition, name).get_value()
    assert synchronize.Lock(ctx=None).acquire()


def test_objects_cost_no_descriptor_each():
    procession.Lock()
    before = len(os.listdir("/proc/self/fd"))
    many = [made(procession, kind) for kind in ALL for _ in range(50)]
    # Segments hold many objects each.
    assert len(os.listdir("/proc/self/fd")) - before < len(many) / 8


# Conditions


def test_wait_and_notify_need_the_lock():
    for lock in (procession.Lock(), procession.RLock()):
        condition = procession.Condition(lock)
        for call in (condition.wait, condition.notify, condition.notify_all):
            with pytest.raises(AssertionError, match="acquired"):
                call()


def test_a_wait_that_times_out_holds_the_lock_again():
    condition = procession.Condition()
    with condition, condition:
        assert condition.wait(0.01) is False
        assert condition.wait(timeout=-1) is False
        assert condition.wait_for(lambda: 0, 0.01) == 0
        assert repr(condition) == "<Condition(<RLock(MainProcess, 2)>, 0)>"
    assert not condition._lock.locked()


def wait_once(condition, ready, done):
    with condition:
        ready.release()
        assert condition.wait(50)
    done.release()


def test_notify_wakes_as_many_as_asked(ctx):
    condition, ready, done = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    children = [ctx.Process(target=wait_once, args=(condition, ready, done)) for _ in range(3)]
    for child in children:
        child.start()
        ready.acquire()
    with condition:
        condition.notify(0)
        condition.notify(-1)
        condition.notify()
    assert done.acquire(timeout=50)
    assert not done.acquire(timeout=0.1)
    with condition:
        condition.notify(5)
    assert done.acquire(timeout=50)
    assert done.acquire(timeout=50)
    with condition:
        condition.notify_all()
        assert not condition.wait(0.01)
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_wait_for():
    condition, found = procession.Condition(), []

    def seek():
        with condition:
            found.append(condition.wait_for(lambda: len(found) or None, 50))

    thread = threading.Thread(target=seek)
    thread.start()
    assert processes.eventually(lambda: condition._waiters() == 1)
    with condition:
        condition.notify()
    assert processes.eventually(lambda: condition._waiters() == 1)
    found.append("something")
    with condition:
        condition.notify()
    thread.join()
    assert found == ["something", 1]


# Events


def test_an_event():
    event = procession.Event()
    assert (event.is_set(), event.wait(0), event.wait(0.01)) == (False, False, False)
    event.set()
    event.set()
    assert (event.is_set(), event.wait(), event.wait(timeout=0)) == (True, True, True)
    event.clear()
    event.clear()
    assert not event.is_set()


def wait_for_event(event, ready):
    ready.release()
    assert event.wait(50)


def test_an_event_cleared_at_once_wakes_all_who_waited(ctx):
    event, ready = ctx.Event(), ctx.Semaphore(0)
    children = [ctx.Process(target=wait_for_event, args=(event, ready)) for _ in range(3)]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    for child in children:
        assert processes.eventually(lambda pid=child.pid: processes.status(pid).state == "S")
    time.sleep(0.1)
    event.set()
    event.clear()
    for child in children:
        child.join()
        assert child.exitcode == 0


# Barriers


def test_a_barrier_is_a_threading_one_to_those_who_ask():
    barrier = procession.Barrier(3, timeout=5)
    assert isinstance(barrier, threading.Barrier)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    for parties in (0, -1):
        with pytest.raises(ValueError, match="parties"):
            procession.Barrier(parties)


def meet(barrier, places, rounds):
    for _ in range(rounds):
        place = barrier.wait(50)
        places[place].release()


def test_all_pass_together(ctx):
    barrier, places = ctx.Barrier(3), [ctx.Semaphore(0) for _ in range(3)]
    run(ctx, meet, barrier, places, 30, count=3)
    assert [place.get_value() for place in places] == [30, 30, 30]


def note(semaphore):
    semaphore.release()


def test_one_calls_the_action(ctx):
    import functools

    called = ctx.Semaphore(0)
    barrier, places = ctx.Barrier(2, functools.partial(note, called)), [ctx.Semaphore(0) for _ in range(2)]
    run(ctx, meet, barrier, places, 10, count=2)
    assert called.get_value() == 10


def broken_outcome(barrier, ready, outcome):
    ready.release()
    try:
        barrier.wait(50)
    except threading.BrokenBarrierError:
        outcome.release()


@pytest.mark.parametrize("how", ["abort", "reset", "timeout", "action"])
def test_a_broken_barrier_turns_all_away(ctx, how):
    barrier, ready, outcome = ctx.Barrier(2 if how == "action" else 3, fail), ctx.Semaphore(0), ctx.Semaphore(0)
    child = ctx.Process(target=broken_outcome, args=(barrier, ready, outcome))
    child.start()
    ready.acquire()
    assert processes.eventually(lambda: barrier.n_waiting == 1)
    if how == "timeout":
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(0.01)
    elif how == "action":
        with pytest.raises(ZeroDivisionError):
            barrier.wait()
    else:
        getattr(barrier, how)()
    assert outcome.acquire(timeout=50)
    assert barrier.broken is (how != "reset")
    child.join()
    barrier.reset()
    assert (barrier.broken, barrier.n_waiting) == (False, 0)


def fail():
    raise ZeroDivisionError


class OtherLock:
    """A lock of another make, with what the standard package's conditions ask of one."""

    def __init__(self):
        self._lock = threading.RLock()
        self._semlock = self
        self.depth = 0

    def acquire(self, block=True, timeout=None):
        acquired = self._lock.acquire(block, -1 if timeout is None else timeout)
        self.depth += acquired
        return acquired

    def release(self):
        self.depth -= 1
        self._lock.release()

    def _is_mine(self):
        return self._lock._is_owned()

    def _count(self):
        return self.depth


def test_a_condition_takes_any_lock():
    lock = OtherLock()
    condition = procession.Condition(lock)
    ready = []

    def get_ready():
        with condition:
            ready.append(True)
            condition.notify()

    with condition:
        assert lock.depth == 1
        condition.acquire()
        assert not condition.wait(timeout=0.01)
        assert lock.depth == 2
        thread = threading.Thread(target=get_ready)
        thread.start()
        assert condition.wait_for(lambda: ready, timeout=30)
        assert lock.depth == 2
        condition.release()
        assert not condition.acquire(False) or condition.release() is None
    thread.join()
    with pytest.raises(AssertionError):
        condition.notify()


def test_a_condition_over_a_semaphore():
    condition = procession.Condition(procession.Semaphore(1))
    with condition:
        assert not condition.wait(timeout=0.01)
        assert not condition.acquire(False)
    assert condition.acquire(timeout=1)
    condition.release()


def test_locks_that_lack_what_a_condition_needs():
    with pytest.raises(TypeError, match=r"acquire\(\) and release\(\)"):
        procession.Condition(object())
    condition = procession.Condition(threading.Lock())
    with condition, pytest.raises(AttributeError, match="_semlock"):
        condition.wait(1)


def test_what_a_condition_hears_from_its_lock_is_raised():
    class Failing(OtherLock):
        def acquire(self, block=True, timeout=None):
            raise OSError("out of order")

    with pytest.raises(OSError, match="out of order"):
        procession.Condition(Failing()).acquire()
