"""Lines of managers over shared memory: what goes over them, who serves them, and what becomes of them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import procession
from procession import _core, manager_client, managers
from procession.managers import BaseManager, SyncManager


class Slow:
    """A key whose comparison waits for somebody else."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return 1

    def __eq__(self, other):
        time.sleep(0.3)
        return isinstance(other, Slow) and self.number == other.number


class Asking:
    """A key whose comparison asks the server that it is in."""

    def __init__(self, proxy):
        self.proxy = proxy

    def __hash__(self):
        return 1

    def __eq__(self, other):
        self.proxy.append("compared")
        return True


class Failing:
    def __reduce__(self):
        raise ZeroDivisionError("not to be pickled")


@pytest.fixture
def manager():
    with procession.get_context("fork").Manager() as made:
        yield made


def in_threads(*targets):
    errors = []

    def run(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def is_shared(proxy):
    return isinstance(proxy._peer.line(), _core.Line)


def test_local_clients_share_memory_and_others_do_not(manager):
    assert is_shared(manager.dict())
    with SyncManager(("localhost", 0), ctx=procession.get_context("fork")) as remote:
        assert not is_shared(remote.dict())
    xml = SyncManager(serializer="xmlrpclib", ctx=procession.get_context("fork"))
    with xml:
        assert not is_shared(xml.list())


def test_spare_lines_are_plain(manager):
    line = manager.dict()._peer._open(spare=True)
    assert isinstance(line, manager_client._Line)
    line.close()


@pytest.mark.parametrize("size", [0, 1, 4000, 65_000, 65_536, 70_000, 3_000_000])
def test_messages_of_all_sizes(manager, size):
    shared, blob = manager.dict(), os.urandom(size)

    def exchange():
        for _ in range(20):
            shared["blob"] = blob
            assert shared["blob"] == blob

    in_threads(exchange, exchange, exchange)


def test_many_busy_clients_of_all_kinds(manager):
    d, numbers, q, lock = manager.dict(), manager.list(), manager.Queue(), manager.RLock()

    def work(name):
        for number in range(300):
            d[name] = number
            assert d[name] == number
            numbers.append(name)
            q.put(number)
            q.get()
            if number % 50 == 0:
                with lock, lock:
                    d["both"] = name
                    assert d["both"] == name

    in_threads(*[lambda name=name: work(name) for name in "abcdef"])
    assert sorted(numbers) == sorted("abcdef" * 300)
    assert q.empty()


def test_an_owner_of_an_rlock_stays_the_same_thread_among_busy_lines(manager):
    lock, d = manager.RLock(), manager.dict()

    def work():
        for _ in range(30):
            assert lock.acquire()
            for number in range(40):
                d[number] = number
            assert lock.acquire(False)
            lock.release()
            lock.release()

    in_threads(work, work, work)


def test_producers_and_consumers_that_wait(manager):
    q = manager.Queue(2)
    taken = []

    def put():
        for number in range(200):
            q.put(number)

    def get():
        taken.extend([q.get() for _ in range(200)])

    in_threads(put, get, put, get)
    assert sorted(taken) == sorted([*range(200)] * 2)


def keep_busy(shared, until):
    while not until.is_set():
        shared.append(1)
        shared.pop()


def test_a_slow_comparison_does_not_hold_up_the_others(manager):
    slow, quick, end = manager.dict(), manager.list(), threading.Event()
    slow[Slow(1)] = 1
    counted, done_meanwhile = [], []

    def compare():
        for number in range(100):
            quick.append(number)
        assert slow.get(Slow(2)) is None
        done_meanwhile.append(len(counted))
        end.set()

    def others():
        while not end.is_set():
            quick.append(1)
            quick.pop()
            counted.append(1)

    in_threads(compare, others, others)
    # As the comparison takes 0.3 seconds, and nobody waits for its end.
    assert done_meanwhile[0] > 10


def test_a_comparison_may_ask_the_server_itself(manager):
    seen, d, other, end = manager.list(), manager.dict(), manager.list(), threading.Event()
    d[Asking(seen)] = 1

    def compare():
        for _ in range(30):
            assert d[Asking(seen)] == 1
        end.set()

    in_threads(compare, lambda: keep_busy(other, end), lambda: keep_busy(other, end))
    assert set(seen) == {"compared"}


def test_what_cannot_be_pickled_leaves_the_line_as_it_was(manager):
    shared = manager.list()
    line = shared._peer.line()
    with pytest.raises(ZeroDivisionError):
        shared.append(Failing())
    assert shared._peer.line() is line
    shared.append(1)
    assert shared[:] == [1]


def test_an_interrupted_call_closes_its_line(manager):
    class Interrupted(Exception):
        pass

    def interrupt(signum, frame):
        raise Interrupted

    event, shared = manager.Event(), manager.list()
    line = event._peer.line()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            event.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert line.closed
    shared.append(1)
    assert shared[:] == [1]
    assert shared._peer.line() is not line


def test_a_handler_may_call_in_the_middle_of_a_call(manager):
    event, seen = manager.Event(), manager.list()

    def handler(signum, frame):
        seen.append("handled")
        event.set()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert event.wait(30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen[:] == ["handled"]


def test_a_forked_child_leaves_the_lines_of_its_parent_alone(manager):
    shared = manager.dict()
    shared["parent"] = 0
    line = shared._peer.line()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in range(200):
                shared["child"] = number
            try:
                line.exchange((None, "dummy", (), {}))
            except OSError:
                code = 0
        finally:
            os._exit(code)
    for number in range(200):
        shared["parent"] = number
        assert shared["parent"] == number
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert shared.copy() == {"parent": 199, "child": 199}


# Deaths


def killed_under(manager, work, count):
    """Kill the server while threads `work` over and over; returns what each was told, and that all were, soon."""
    started, told = threading.Barrier(count + 1), []

    def run():
        started.wait()
        try:
            while True:
                work()
        except (EOFError, ConnectionError) as error:
            told.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.1)
    os.kill(manager._process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return told


@pytest.mark.parametrize("count", [1, 4])
def test_a_killed_server_is_an_error_of_every_call(manager, count):
    shared = manager.dict(a=1)
    told = killed_under(manager, lambda: shared["a"], count)
    assert len(told) == count
    assert all(str(error) for error in told)


def test_a_killed_server_is_an_error_of_calls_that_wait(manager):
    event = manager.Event()
    assert len(killed_under(manager, event.wait, 3)) == 3


def test_a_server_killed_while_nobody_asks(manager):
    shared = manager.list()
    shared.append(1)
    os.kill(manager._process.pid, signal.SIGKILL)
    manager._process.join()
    for _ in range(2):
        with pytest.raises((EOFError, ConnectionError, FileNotFoundError)):
            shared.append(2)


def resources(manager):
    pid = manager._process.pid
    with open(f"/proc/{pid}/maps") as maps:
        memory = sum("procession line" in mapped for mapped in maps)
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), memory


def use_until_killed(shared, ready):
    threads = [threading.Thread(target=keep_busy, args=(shared, threading.Event())) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.set()
    threads[0].join()


def test_a_killed_client_leaves_nothing_in_the_server(manager):
    ctx = procession.get_context("fork")
    shared = manager.list()
    # So that the attendant is there before anything is counted.
    in_threads(lambda: shared.append(1), lambda: shared.append(1))

    def settled(before=None):
        deadline = time.monotonic() + 30
        while True:
            counts = resources(manager)
            time.sleep(0.1)
            if (counts == before if before else counts == resources(manager)) or time.monotonic() > deadline:
                return counts

    before = settled()
    for _ in range(3):
        ready = ctx.Event()
        child = ctx.Process(target=use_until_killed, args=(shared, ready))
        child.start()
        assert ready.wait(30)
        time.sleep(0.1)
        child.kill()
        child.join()
    assert settled(before) == before
    shared.append("still there")
    assert shared[-1] == "still there"


def test_threads_that_end_leave_nothing_in_the_server(manager):
    shared = manager.list()
    in_threads(lambda: shared.append(1), lambda: shared.append(1))
    time.sleep(0.2)
    before = resources(manager)
    for _ in range(30):
        in_threads(lambda: shared.append(1))
    deadline = time.monotonic() + 30
    while resources(manager) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert resources(manager) == before


def test_an_idle_line_costs_no_time(manager):
    shared = manager.dict()

    def use():
        for number in range(300):
            shared[number % 7] = number

    in_threads(use, use, use)
    use()
    pid = manager._process.pid

    def switches():
        counts = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status") as status:
                counts += [int(line.split()[1]) for line in status if "ctxt_switches" in line]
        return sum(counts)

    time.sleep(0.5)
    before = switches()
    time.sleep(1)
    assert switches() - before < 5


def test_where_descriptors_are_scarce_lines_are_plain():
    script = """
import resource, threading
import procession
def limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
if __name__ == "__main__":
    from procession.managers import SyncManager
    manager = SyncManager(ctx=procession.get_context("fork"))
    manager.start(limit)
    shared, kinds, all_there = manager.dict(), [], threading.Barrier(8)
    def use(number):
        shared[number] = number
        kinds.append(type(shared._peer.line()).__name__)
        all_there.wait()
        assert shared[number] == number
    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(shared), sorted(set(kinds)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "8 ['_Line', '_SharedLine']"


class Other:
    def ask(self, proxy):
        return proxy.copy()


def test_objects_in_the_server_have_lines_over_the_socket():
    class Manager(BaseManager):
        pass

    Manager.register("dict", dict, managers.DictProxy)
    Manager.register("Other", Other)
    with Manager(ctx=procession.get_context("fork")) as made:
        shared, other = made.dict(a=1), made.Other()
        assert other.ask(shared) == {"a": 1}
