"""Proxies of managers: newer methods on each Python, and life among forks, threads, garbage collections and exits."""

import collections.abc
import copy
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import types
import weakref

import pytest

import processes
import procession
from procession import managers
from procession.managers import BaseManager, SyncManager

FORK = procession.get_context("fork")


@pytest.fixture
def manager():
    with FORK.Manager() as made:
        yield made


def run(ctx, target, *args):
    child = ctx.Process(target=target, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


# Newer methods


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_locked(manager, kind):
    lock = getattr(manager, kind)()
    assert lock.locked() is False
    with lock:
        assert lock.locked() is True
        seen = []
        thread = threading.Thread(target=lambda: seen.append(lock.locked()))
        thread.start()
        thread.join()
        assert seen == [True]
    assert lock.locked() is False


def test_methods_of_lists(manager):
    items = manager.list([3, 1, 2])
    made = items.copy()
    assert (type(made), made) == (list, [3, 1, 2])
    assert items + manager.list([4]) == [3, 1, 2, 4]
    assert copy.copy(items) is not items
    items.clear()
    assert items[:] == []


def test_methods_of_dicts(manager):
    d = manager.dict(a=1, b=2)
    assert d.fromkeys(["x", "y"], 0) == {"x": 0, "y": 0}
    assert list(reversed(d)) == ["b", "a"]
    assert d | {"b": 3} == {"a": 1, "b": 3}
    assert {"b": 3} | d == {"b": 2, "a": 1}
    assert d | manager.dict(c=3) == {"a": 1, "b": 2, "c": 3}
    same = d
    d |= [("c", 4)]
    d |= manager.dict(d=5)
    assert same is d
    assert d.copy() == {"a": 1, "b": 2, "c": 4, "d": 5}
    with pytest.raises(TypeError):
        d | 7
    assert {**d} == d.copy()


def test_operators_of_sets_take_proxies(manager):
    s, t = manager.set("abc"), manager.set("bcd")
    assert s & t == set("bc")
    assert s | t == set("abcd")
    assert s - t == {"a"}
    assert s ^ t == set("ad")
    assert not s <= t
    assert s >= manager.set("a")
    assert {"a", "z"} - s == {"z"}
    assert s.union(t, "z") == set("abcdz")
    s ^= t
    assert s.copy() == set("ad")
    assert sorted(s) == ["a", "d"]
    assert s.pop() in "ad"


def test_abstract_base_classes(manager):
    for proxy, base in [
        (manager.list(), collections.abc.MutableSequence),
        (manager.dict(), collections.abc.MutableMapping),
        (manager.set(), collections.abc.MutableSet),
    ]:
        assert isinstance(proxy, base)
    for kind in (managers.ListProxy, managers.DictProxy, managers.SetProxy, managers.ValueProxy):
        alias = kind[int]
        assert isinstance(alias, types.GenericAlias)
        assert (alias.__origin__, alias.__args__) == (kind, (int,))


def test_a_pool_in_the_manager(manager):
    with manager.Pool(2) as pool:
        assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
        assert pool.starmap_async(pow, [(2, 3)]).get(timeout=50) == [8]
        assert list(pool.imap(abs, range(-3, 0))) == [3, 2, 1]
        assert pool.apply_async(abs, (-1,)).get(timeout=50) == 1
        with pytest.raises(TypeError):
            pool.apply(abs, ("x",))
    with pytest.raises(ValueError, match="not running"):
        pool.apply(abs, (1,))


@pytest.mark.skipif(not hasattr(queue.Queue, "shutdown"), reason="queue.Queue.shutdown is new in 3.13")
def test_a_queue_is_shut_down(manager):
    q = manager.Queue()
    q.put(1)
    q.shutdown()
    with pytest.raises(queue.ShutDown):
        q.put(2)
    assert q.get() == 1
    with pytest.raises(queue.ShutDown):
        q.get()
    waited = manager.Queue()
    seen = queue.SimpleQueue()

    def wait():
        try:
            waited.get()
        except queue.ShutDown as error:
            seen.put(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    waited.shutdown(immediate=True)
    assert isinstance(seen.get(timeout=50), queue.ShutDown)
    thread.join()


def test_an_iterator_is_a_generator(manager):
    class Own(SyncManager):
        pass

    def numbers():
        received = yield 1
        try:
            yield received
        except ValueError:
            yield "caught"

    Own.register("numbers", numbers, managers.IteratorProxy)
    with Own(ctx=FORK) as own:
        it = own.numbers()
        assert iter(it) is it
        assert next(it) == 1
        assert it.send("sent") == "sent"
        assert it.throw(ValueError("x")) == "caught"
        it.close()
        with pytest.raises(StopIteration):
            next(it)


# Nested


def test_nested_proxies_of_each_kind(ctx):
    with ctx.Manager() as manager:
        outer = manager.dict()
        outer["lock"], outer["queue"], outer["event"] = manager.Lock(), manager.Queue(), manager.Event()
        outer["value"], outer["names"] = (
            manager.Value("i", 1),
            manager.Namespace(inner=manager.list([manager.dict(a=1)])),
        )
        outer["self"] = outer
        run(ctx, use_nested, outer)
        assert outer["event"].is_set()
        assert outer["value"].value == 2
        assert outer["queue"].get(timeout=50) == "from child"
        assert outer["names"].inner[0].copy() == {"a": 1, "b": 2}
        assert outer["self"]["self"]["value"].value == 2
        assert not outer["lock"].locked()


def use_nested(outer):
    with outer["lock"]:
        outer["value"].value += 1
    outer["queue"].put("from child")
    outer["event"].set()
    outer["names"].inner[0]["b"] = 2


def test_a_proxy_goes_to_another_manager_and_back(manager):
    with FORK.Manager() as other:
        items = manager.list([1])
        there = other.list([items])
        back = there[0]
        back.append(2)
        assert items[:] == [1, 2]
        assert manager._number_of_objects() == 1
    # The other server held a proxy, and has ended.
    del back
    assert items[:] == [1, 2]


# Forks and threads


def test_forks_while_threads_use_the_manager(manager):
    counts, stop = manager.dict(), threading.Event()

    def use(number):
        while not stop.is_set():
            counts[number] = counts.get(number, 0) + 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    for _ in range(5):
                        counts[f"child {number}"] = counts.get(f"child {number}", 0) + 1
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    seen = counts.copy()
    assert all(seen[f"child {number}"] == 5 for number in range(10))
    assert all(seen[number] > 0 for number in range(3))


def test_started_children_while_threads_make_and_drop_proxies(ctx):
    with ctx.Manager() as manager:
        shared, stop, errors = manager.list(), threading.Event(), []

        def churn():
            try:
                while not stop.is_set():
                    made = manager.list([1])
                    made.append(pickle.loads(pickle.dumps(made))[0])
                    assert made[:] == [1, 1]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(3):
                run(ctx, shared.append, number)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert shared[:] == [0, 1, 2]
        assert manager._number_of_objects() == 1


def make_and_send(manager_address, key, conn):
    client = SyncManager(manager_address, key)
    client.connect()
    made = client.list(["made by the child"])
    conn.send(made)
    conn.recv()


def test_proxies_go_to_other_processes_and_back(ctx):
    with ctx.Manager() as manager:
        ours, theirs = ctx.Pipe()
        key = bytes(manager._authkey)
        child = ctx.Process(target=make_and_send, args=(manager.address, key, theirs))
        child.start()
        received = ours.recv()
        ours.send(None)
        child.join()
        received.append("used by the parent")
        assert received[:] == ["made by the child", "used by the parent"]
        again = pickle.loads(pickle.dumps(received))
        del received
        assert len(again) == 2
        assert manager._number_of_objects() == 1


def grandchild(items, depth):
    items.append(depth)
    if depth:
        child = FORK.Process(target=grandchild, args=(items, depth - 1))
        child.start()
        child.join()
        items.append(-depth)


def test_children_of_children(manager):
    items = manager.list()
    run(FORK, grandchild, items, 2)
    assert items[:] == [2, 1, 0, -1, -2]


# Garbage


def test_proxies_may_be_collected_in_the_middle_of_calls(manager):
    class Cycle:
        def __init__(self):
            self.me, self.proxy = self, manager.list([0])

    before = gc.get_threshold()
    gc.set_threshold(5)
    try:
        items = manager.list()
        for number in range(200):
            Cycle()
            items.append([number])
        assert len(items) == 200
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert manager._number_of_objects() == 1


def test_proxies_have_weak_references(manager):
    items = manager.list()
    reference = weakref.ref(items)
    gone = []
    weakref.finalize(items, lambda: gone.append(manager._number_of_objects()))
    assert reference() is items
    del items
    assert reference() is None
    assert len(gone) == 1
    assert manager._number_of_objects() == 0


def test_proxies_dropped_by_a_thread_that_has_no_line(manager):
    proxies = [manager.list() for _ in range(10)]
    thread = threading.Thread(target=proxies.clear)
    thread.start()
    thread.join()
    assert manager._number_of_objects() == 0


def test_a_proxy_outlives_its_manager_object():
    manager = FORK.Manager()
    items = manager.list([1])
    del manager
    gc.collect()
    # The proxy holds it.
    assert items[:] == [1]
    process = items._manager._process
    del items
    gc.collect()
    assert not process.is_alive()


# The end of programs


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "del manager",
        "manager.shutdown()",
        "manager.shutdown(); manager.shutdown()",
        "sys.exit(0)",
        "import gc; keep = [keep]; keep.append(keep); gc.disable()",
        "import atexit; atexit.register(lambda: print(keep[0][:]))",
        "threading.Thread(target=lambda: (time.sleep(0.2), keep[0].append(2))).start()",
        "sys.modules['kept'] = keep",
        "keep[2].acquire()",
        "iterator = iter(keep[1]); next(iterator)",
        "os.kill(manager._process.pid, 9)",
    ],
)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_programs_end_quietly_with_managers_in_any_state(program, method, ending):
    one = program(
        f"""
        import os, sys, threading, time
        import procession

        if __name__ == "__main__":
            manager = procession.get_context("{method}").Manager()
            keep = [manager.list([1]), manager.dict(a=manager.Queue()), manager.RLock(), manager.Pool(1)]
            keep[0].append(keep[1])
            assert keep[3].apply(abs, (-1,)) == 1
            print("used", flush=True)
            {ending}
        """,
        options=(),
    )
    out, err = one.finish()
    assert err == ""
    assert out.startswith("used\n")
    assert one.exitcode == 0
    assert processes.eventually(lambda: not one.running())


def test_children_that_end_give_their_references_back(ctx):
    with ctx.Manager() as manager:
        items = manager.list()
        run(ctx, keep_in_a_global, items)
        assert manager._debug_info().count("refcount=1") == 1
        assert manager._number_of_objects() == 1


def keep_in_a_global(items):
    global kept
    kept = [items, pickle.loads(pickle.dumps(items))]


# Own types


class Registered(BaseManager):
    pass


class Counter:
    made = 0

    def __init__(self, start=0):
        self.value = start

    def increment(self, by=1):
        self.value += by
        return self.value

    def __enter__(self):
        return "entered"

    def __exit__(self, *exc_info):
        self.value = "left"

    def __call__(self, *args, **kwds):
        return args, kwds


CounterProxy = managers.MakeProxyType("CounterProxy", ("increment", "__enter__", "__exit__", "__call__"))
Registered.register("Counter", Counter)
Registered.register("Full", Counter, CounterProxy)
_the_counter = Counter(100)


def the_counter():
    return _the_counter


Registered.register("counter_of_the_server", the_counter)


def test_registered_types_on_a_remote_server(ctx):
    for address in (None, ("127.0.0.1", 0)):
        with Registered(address, b"a key", ctx=ctx) as manager:
            client = Registered(manager.address, b"a key")
            client.connect()
            assert client.counter_of_the_server().increment(by=5) == 105
            assert manager.counter_of_the_server().increment() == 106
            full = client.Full(7)
            with full as entered:
                assert entered == "entered"
            assert full(1, two=2) == ((1,), {"two": 2})
            assert pickle.loads(pickle.dumps(full, 2)).__class__ is CounterProxy
            auto = client.Counter()
            again = managers.AutoProxy(auto._token, "pickle", authkey=b"a key")
            assert again.increment() == 1
            assert auto.increment() == 2
            # A copy of the value, not of the proxy.
            assert copy.deepcopy(auto).value == 2


SERVER = """
import sys
from procession.managers import SyncManager

server = SyncManager(eval(sys.argv[1]), b"secret").get_server()
print(repr(server.address), flush=True)
server.serve_forever()
"""
CLIENT = """
import os, queue, signal, sys
from procession.managers import SyncManager

manager = SyncManager(eval(sys.argv[1]), b"secret")
manager.connect()
d, lock, q, condition = manager.dict(a=1), manager.Lock(), manager.Queue(), manager.Condition()
d["b"] = manager.list([1])
d["b"].append(2)
assert d["b"][:] == [1, 2]
with lock:
    assert lock.locked()
try:
    q.get(timeout=0.05)
except queue.Empty:
    pass
with condition:
    assert not condition.wait(0.05)
pid = os.fork()
if pid == 0:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
assert lock.acquire(timeout=50)
with manager.Pool(1) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
print(sorted(d), manager.set({1}) | {2}, list(reversed(d)))
"""


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
@pytest.mark.parametrize("sides", ["other serves", "other calls"])
def test_interpreters_of_two_versions(program, address, sides):
    """Of whatever other version with our package `PROCESSION_OTHER_PYTHON` is, or else of this one."""
    other = os.environ.get("PROCESSION_OTHER_PYTHON", sys.executable)
    pythons = (other, sys.executable) if sides == "other serves" else (sys.executable, other)
    with subprocess.Popen(
        [pythons[0], "-c", SERVER, repr(address)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as server:
        try:
            found = server.stdout.readline().strip()
            command = [pythons[1], "-c", CLIENT, found]
            done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
            assert done.stdout == "['a', 'b'] {1, 2} ['b', 'a']\n", done.stderr
        finally:
            server.send_signal(signal.SIGKILL)
