"""Managers: objects in a process of their own, used through proxies."""

import array
import copy
import gc
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import MutableMapping, MutableSequence, MutableSet

import pytest

import processes
import procession
from procession import managers
from procession.managers import BaseManager, BaseProxy, MakeProxyType, RemoteError, SyncManager


@pytest.fixture
def manager(ctx):
    with ctx.Manager() as made:
        yield made


@pytest.fixture
def forked():
    """A manager by fork, where the start method is of no matter."""
    with procession.get_context("fork").Manager() as made:
        yield made


def run(ctx, target, *args):
    child = ctx.Process(target=target, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


# What children do


def use_all(d, numbers, unique, q, event, value, floats, namespace, condition, barrier):
    d["child"] = os.getpid()
    assert sorted(d) == ["child", "parent"]
    numbers.append(4)
    numbers += [5]
    unique |= {3}
    assert q.get() == "from parent"
    q.put("from child")
    event.set()
    value.value += 1
    floats[0] = 2.5
    namespace.y = namespace.x + 1
    with condition:
        condition.notify_all()
    assert barrier.parties == 1
    barrier.wait()


def test_objects_of_all_kinds_are_shared_with_a_child(ctx, manager):
    d, numbers, unique, q = manager.dict(parent=1), manager.list([1, 2]), manager.set([1]), manager.Queue()
    event, value, floats = manager.Event(), manager.Value("i", 3), manager.Array("d", [0.5, 1.0])
    namespace, condition, barrier = manager.Namespace(x=1), manager.Condition(), manager.Barrier(1)
    q.put("from parent")
    run(ctx, use_all, d, numbers, unique, q, event, value, floats, namespace, condition, barrier)
    assert d["parent"] == 1
    assert d["child"] != os.getpid()
    assert numbers[:] == [1, 2, 4, 5]
    assert unique.copy() == {1, 3}
    assert q.get() == "from child"
    assert event.is_set()
    assert value.get() == 4
    assert list(floats) == [2.5, 1.0]
    assert namespace.y == 2


def count(lock, value):
    for _ in range(50):
        with lock:
            value.value += 1


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_locks_exclude_other_processes(forked, kind):
    ctx = procession.get_context("fork")
    lock, value = getattr(forked, kind)(), forked.Value("i", 0)
    children = [ctx.Process(target=count, args=(lock, value)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert value.value == 150
    assert not lock.locked()
    with lock:
        assert lock.locked()
    # Only a plain semaphore may be released more often than it was taken.
    if kind == "Semaphore":
        lock.release()
    else:
        with pytest.raises((RuntimeError, ValueError)):
            lock.release()


def test_rlock_belongs_to_a_thread_of_a_client(forked):
    lock = forked.RLock()
    with lock, lock:
        results = []
        thread = threading.Thread(target=lambda: results.append(lock.acquire(False)))
        thread.start()
        thread.join()
        assert results == [False]
    assert lock.acquire(False)
    # An argument that can't be sent changes nothing: the connection, to which the lock belongs, stays.
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        forked.Namespace().function = lambda: None
    lock.release()


def test_waiting_with_timeouts(forked):
    event, lock, q, condition = forked.Event(), forked.Lock(), forked.Queue(), forked.Condition()
    assert not event.wait(0.01)
    assert lock.acquire(timeout=1)
    assert not lock.acquire(True, 0.01)
    assert not lock.acquire(False)
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    with condition:
        assert not condition.wait(0.01)
        assert not condition.wait_for(lambda: False, timeout=0.05)
        assert condition.wait_for(lambda: "it is") == "it is"


def test_a_thread_wakes_another(forked):
    condition, done = forked.Condition(), forked.list()

    def other():
        with condition:
            done.append(1)
            condition.notify()

    with condition:
        thread = threading.Thread(target=other)
        thread.start()
        assert condition.wait_for(lambda: len(done) == 1, timeout=30)
    thread.join()


def test_list_proxy_is_a_list(forked):
    numbers = forked.list([3, 1, 2])
    assert isinstance(numbers, MutableSequence)
    assert numbers + [4] == [3, 1, 2, 4]  # noqa: RUF005
    assert numbers * 2 == 2 * numbers == [3, 1, 2, 3, 1, 2]
    numbers.sort(reverse=True)
    numbers.reverse()
    assert list(numbers) == [1, 2, 3]
    assert list(reversed(numbers)) == [3, 2, 1]
    same = numbers
    numbers += [4]
    numbers *= 2
    assert same is numbers
    assert len(numbers) == 8
    del numbers[1:]
    numbers.insert(0, 0)
    numbers.extend([5])
    assert numbers.pop() == 5
    assert (numbers.index(1), numbers.count(0), 1 in numbers, 9 in numbers) == (1, 1, True, False)
    assert numbers.copy() == [0, 1]
    assert str(numbers) == "[0, 1]"
    assert repr(numbers).startswith("<ListProxy object, typeid 'list' at 0x")
    assert copy.deepcopy(numbers) == numbers._getvalue() == [0, 1]
    numbers.clear()
    assert len(numbers) == 0
    with pytest.raises(IndexError):
        numbers[0]
    assert managers.ListProxy[int].__origin__ is managers.ListProxy


def test_dict_proxy_is_a_dict(forked):
    d = forked.dict({"a": 1}, b=2)
    assert isinstance(d, MutableMapping)
    assert [*d] == ["a", "b"]
    # All of it at once, as with the standard package.
    assert type(reversed(d)) is type(iter([]))
    assert [*reversed(d)] == ["b", "a"]
    assert d | {"c": 3} == {"a": 1, "b": 2, "c": 3}
    same = d
    d |= {"c": 3}
    assert same is d
    assert (d.keys(), d.values(), d.items()) == (["a", "b", "c"], [1, 2, 3], [("a", 1), ("b", 2), ("c", 3)])
    assert (d.get("x"), d.setdefault("x", 9), d.pop("x"), d.popitem()) == (None, 9, 9, ("c", 3))
    with pytest.raises(KeyError, match="missing"):
        d["missing"]
    del d["a"]
    d.update(z=26)
    assert d.copy() == {"b": 2, "z": 26}
    assert "z" in d
    assert len(d) == 2


def test_set_proxy_is_a_set(forked):
    s, other = forked.set({1, 2}), forked.set({2, 3})
    assert isinstance(s, MutableSet)
    assert sorted(s) == [1, 2]
    assert s | {9} == {9} | s._getvalue() == {1, 2, 9}
    assert (s & {1}, s - {1}, s ^ {1, 5}) == ({1}, {2}, {2, 5})
    assert s <= {1, 2, 3}
    assert not s > {7}
    assert s.union([7]) == {1, 2, 7}
    same = s
    s |= {4}
    s |= other
    assert s.copy() == {1, 2, 3, 4}
    s &= {1, 2, 3}
    s -= {1}
    s ^= {8}
    assert same is s
    assert s.copy() == {2, 3, 8}
    with pytest.raises(TypeError):
        s |= [1]
    s.discard(100)
    s.remove(8)
    with pytest.raises(KeyError):
        s.remove(8)
    assert s.isdisjoint({5})


def test_namespace_and_value(forked):
    namespace = forked.Namespace(x=1)
    namespace._private = 2
    assert namespace._private == 2
    assert str(namespace) == "Namespace(x=1)"
    del namespace.x
    with pytest.raises(AttributeError, match="x"):
        print(namespace.x)
    with pytest.raises(AttributeError, match="_other"):
        print(namespace._other)
    value = forked.Value("i", 3)
    assert str(value) == "Value('i', 3)"
    assert managers.ValueProxy[int].__origin__ is managers.ValueProxy


def test_a_pool_in_the_manager(forked):
    with forked.Pool(2) as pool:
        assert pool.apply(abs, (-1,)) == 1
        result = pool.map_async(abs, [-1, -2])
        assert result.get(timeout=30) == [1, 2]
        assert sorted(pool.imap_unordered(abs, [-3, -4])) == [3, 4]


# Custom types


class Calculator:
    def __init__(self, start=0):
        self.total = start

    def add(self, number):
        self.total += number
        return self.total

    def fail(self):
        raise TwoArguments(1, 2)

    def numbers(self):
        yield from range(3)

    def unpicklable(self):
        return lambda: None

    def remote_list(self):
        return [1, 2]

    def _hidden(self):
        return "hidden"


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__("cannot be unpickled")


class MyManager(BaseManager):
    pass


class CalculatorProxy(BaseProxy):
    _exposed_ = ("add", "_hidden")

    def add(self, number):
        return self._callmethod("add", (number,))

    def hidden(self):
        return self._callmethod("_hidden")


MyManager.register("Auto", Calculator)
MyManager.register("Custom", Calculator, proxytype=CalculatorProxy)
MyManager.register("Chosen", Calculator, exposed=("add", "_hidden"))
MyManager.register("Calculator", Calculator, method_to_typeid={"remote_list": "list", "numbers": "iterator"})
MyManager.register("list", list, managers.ListProxy)
MyManager.register("iterator", proxytype=managers.IteratorProxy, create_method=False)


@pytest.fixture
def mine(ctx):
    with MyManager(ctx=ctx) as made:
        yield made


def test_registered_types(mine):
    auto, custom, chosen = mine.Auto(1), mine.Custom(start=2), mine.Chosen()
    assert (auto.add(1), custom.add(1), chosen.add(1)) == (2, 3, 1)
    assert not hasattr(auto, "_hidden")
    assert custom.hidden() == chosen._hidden() == "hidden"
    with pytest.raises(RemoteError, match="not in exposed"):
        auto._callmethod("_hidden")
    with pytest.raises(RemoteError, match="Unserializable message"):
        auto.unpicklable()
    with pytest.raises(RemoteError, match="cannot be unpickled"):
        auto.fail()
    assert auto.add(1) == 3
    again = pickle.loads(pickle.dumps(auto))
    assert again.add(1) == 4
    assert not hasattr(mine, "iterator")
    with pytest.raises(RemoteError, match="Error"):
        mine.Auto(no_such="argument")


def test_methods_that_return_proxies(mine):
    calculator = mine.Calculator()
    numbers = calculator.remote_list()
    numbers.append(3)
    assert isinstance(numbers, managers.ListProxy)
    assert list(numbers) == [1, 2, 3]
    assert list(calculator.numbers()) == [0, 1, 2]


def iterate(d, pool):
    assert [*d] == [1, 2]
    pool.apply_async(abs, (-1,))


def test_children_get_proxies_from_methods_too(ctx, manager):
    run(ctx, iterate, manager.dict({1: 1, 2: 2}), manager.Pool(1))


def test_registration_is_checked():
    with pytest.raises(AssertionError, match="not a string"):
        MyManager.register("bad", list, method_to_typeid={"a": 1})
    assert "bad" not in SyncManager._registry
    assert MakeProxyType("P", ("a", "b")) is MakeProxyType("P", ["a", "b"])


# Nested objects and references


def test_nested_objects(ctx, manager):
    outer = manager.list([manager.dict() for _ in range(2)])
    outer[0]["a"] = 1
    outer[1]["inner"] = manager.list([1])
    run(ctx, reach_in, outer)
    assert outer[0].copy() == {"a": 1, "child": True}
    assert list(outer[1]["inner"]) == [1, 2]


def reach_in(outer):
    outer[0]["child"] = True
    outer[1]["inner"].append(2)


def test_objects_go_with_their_last_reference(manager):
    start = manager._number_of_objects()
    assert start == 0
    a = manager.list()
    b = pickle.loads(pickle.dumps(a))
    assert manager._number_of_objects() == 1
    del a
    b.append(1)
    assert list(b) == [1]
    assert "refcount=1" in manager._debug_info()
    del b
    assert manager._number_of_objects() == 0


def test_a_nested_object_lives_as_long_as_the_one_that_holds_it(forked):
    inner, outer = forked.list([1]), forked.list()
    outer.append(inner)
    del inner
    assert forked._number_of_objects() == 1
    popped = outer.pop()
    assert list(popped) == [1]
    assert forked._number_of_objects() == 2
    outer.append(popped)
    del popped
    again = outer[0]
    del outer
    assert list(again) == [1]
    assert forked._number_of_objects() == 1
    del again
    assert forked._number_of_objects() == 0


class Spy:
    def count(self):
        server = procession.current_process()._manager_server
        server._forget_dropped()
        return len(server.id_to_obj), len(server.id_to_local_proxy_obj)


class SpyManager(SyncManager):
    pass


SpyManager.register("Spy", Spy)


def test_the_server_forgets_nested_objects(ctx):
    with SpyManager(ctx=ctx) as manager:
        spy = manager.Spy()
        before = spy.count()
        outer = manager.list([manager.list([manager.dict()]) for _ in range(10)])
        assert spy.count()[1] == before[1] + 20
        del outer
        gc.collect()
        assert spy.count() == before


def hold(proxy, conn):
    conn.send(proxy[0])
    conn.recv()
    assert proxy[0] == 1


def test_a_child_holds_a_reference(ctx, manager):
    numbers = manager.list([1])
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=hold, args=(numbers, theirs))
    child.start()
    assert ours.recv() == 1
    del numbers
    assert manager._number_of_objects() == 1
    ours.send(None)
    child.join()
    assert child.exitcode == 0
    assert manager._number_of_objects() == 0


# Forks, threads, signals


def test_proxies_after_a_bare_fork(forked):
    d = forked.dict()
    d["parent"] = 0
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for _ in range(20):
                    d[number] = d.get(number, 0) + 1
                code = 0
            finally:
                os._exit(code)
        for _ in range(20):
            d["parent"] += 1
        assert os.waitpid(pid, 0)[1] == 0
    assert d.copy() == {"parent": 60, 0: 20, 1: 20, 2: 20}


def test_each_thread_has_its_connection(forked):
    q = forked.Queue()
    threads = [threading.Thread(target=lambda n=n: [q.put(n) for _ in range(20)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(q.get() for _ in range(80)) == sorted([0, 1, 2, 3] * 20)


class Interrupted(Exception):
    pass


def test_an_interrupted_call_does_not_mix_up_the_answers(forked):
    def interrupt(signum, frame):
        raise Interrupted

    q, d = forked.Queue(), forked.dict(a=1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            q.get()
    finally:
        signal.signal(signal.SIGALRM, before)
    # The server still waits for an item on behalf of the interrupted call.
    q.put("lost")
    assert d["a"] == 1
    q.put("found")
    assert q.get(timeout=30) in ("lost", "found")


def test_a_signal_handler_may_use_proxies_in_the_middle_of_a_call(forked):
    q, d = forked.Queue(), forked.dict()

    def handle(signum, frame):
        d["handled"] = True
        q.put("from the handler")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert q.get() == "from the handler"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert d["handled"]


def test_errors_are_freed_at_once(forked):
    import weakref

    q = forked.Queue()
    gc.disable()
    try:
        try:
            q.get_nowait()
        except queue.Empty as error:
            reference = weakref.ref(error)
        assert reference() is None
    finally:
        gc.enable()


# The life of a manager


def test_life(ctx):
    manager = SyncManager(ctx=ctx)
    with pytest.raises(AssertionError, match="not yet started"):
        manager.list()
    manager.start()
    process = manager._process
    assert process.name.startswith("SyncManager-")
    with pytest.raises(procession.ProcessError, match="Already started"):
        manager.start()
    with pytest.raises(procession.ProcessError, match="Already started"):
        manager.get_server()
    d = manager.dict(a=1)
    with manager:
        assert d["a"] == 1
    assert process.exitcode == 0
    manager.shutdown()
    manager.join()
    with pytest.raises(procession.ProcessError, match="shut down"):
        manager.start()
    with pytest.raises(procession.ProcessError, match="shut down"), manager:
        pass
    with pytest.raises((OSError, EOFError)):
        d["a"]
    assert "failed" in str(d)


def test_shutdown_leaves_nothing(ctx, nothing_left_behind):
    with ctx.Manager() as manager:
        d = manager.dict({number: number for number in range(100)})
        assert len(d) == 100


def test_dropping_a_manager_ends_it(ctx):
    process = None
    manager = ctx.Manager()
    process = manager._process
    assert process.is_alive()
    del manager
    gc.collect()
    assert not process.is_alive()


class Stubborn(BaseManager):
    pass


def ignore_the_end():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    procession.managers.Server.shutdown = lambda self, c: None


def ignore_the_request():
    procession.managers.Server.shutdown = lambda self, c: None


@pytest.mark.parametrize(
    ("initializer", "code"), [(ignore_the_end, -signal.SIGKILL), (ignore_the_request, -signal.SIGTERM)]
)
def test_a_server_that_does_not_end_is_made_to(ctx, initializer, code):
    manager = Stubborn(ctx=ctx, shutdown_timeout=0.2)
    manager.start(initializer)
    manager.shutdown()
    assert manager._process.exitcode == code


def fail():
    raise ValueError("as planned")


def test_a_server_that_cannot_start(ctx, method, capfd):
    manager = SyncManager(ctx=ctx)
    with pytest.raises(EOFError, match="exit code 1"):
        manager.start(fail)
    # The fork server has the stderr that was there when it was started.
    if method != "forkserver":
        assert "as planned" in capfd.readouterr().err
    with pytest.raises(TypeError, match="callable"):
        SyncManager(ctx=ctx).start("no function")


def prepare(address):
    os.environ["PREPARED"] = address


class Environment:
    def get(self, name):
        return os.environ.get(name)


MyManager.register("Environment", Environment)


def test_the_initializer_runs_in_the_server(ctx):
    manager = MyManager(ctx=ctx)
    manager.start(prepare, ("yes",))
    with manager:
        assert manager.Environment().get("PREPARED") == "yes"
    assert "PREPARED" not in os.environ


def test_a_killed_server_is_an_error(ctx):
    manager = ctx.Manager()
    q = manager.Queue()
    os.kill(manager._process.pid, signal.SIGKILL)
    manager.join()
    with pytest.raises((OSError, EOFError)):
        q.get()
    with pytest.raises((OSError, EOFError)):
        manager.list()
    manager.shutdown()


def test_a_killed_parent_takes_the_server_along(program):
    one = program(
        """
        import sys, time
        import procession

        if __name__ == "__main__":
            manager = procession.get_context(sys.argv[1]).Manager()
            numbers = manager.list([1])
            print(len(numbers), flush=True)
            time.sleep(600)
        """,
        "fork",
        options=(),
    )
    assert one.readline() == "1"
    os.kill(one.pid, signal.SIGKILL)
    assert processes.eventually(lambda: not one.running())


def test_ctrl_c_ends_the_client_and_not_the_server(program):
    one = program(
        """
        import os, signal
        import procession

        if __name__ == "__main__":
            with procession.Manager() as manager:
                q = manager.Queue()
                print("waiting", flush=True)
                try:
                    q.get()
                except KeyboardInterrupt:
                    print("interrupted", manager.list([1]))
        """,
        options=(),
    )
    assert one.readline() == "waiting"
    time.sleep(0.2)
    os.killpg(one.pid, signal.SIGINT)
    out, err = one.finish()
    assert (out, err) == ("interrupted [1]\n", "")
    assert one.exitcode == 0


# Servers elsewhere

KEY = b"secret"


class QueueManager(BaseManager):
    pass


class QueueClient(BaseManager):
    pass


QueueClient.register("get_queue")


def serve(conn, address, serializer):
    q = queue.Queue()
    QueueManager.register("get_queue", callable=lambda: q)
    server = QueueManager(address=address, authkey=KEY, serializer=serializer).get_server()
    conn.send(server.address)
    server.serve_forever()


@pytest.mark.parametrize("address", [None, ("localhost", 0)], ids=["unix", "tcp"])
@pytest.mark.parametrize("serializer", ["pickle", "xmlrpclib"])
def test_clients_that_connect(ctx, address, serializer):
    ours, theirs = ctx.Pipe(duplex=False)
    child = ctx.Process(target=serve, args=(theirs, address, serializer))
    child.start()
    try:
        found = ours.recv()
        first, second = (QueueClient(found, KEY, serializer) for _ in range(2))
        with pytest.raises(AssertionError, match="not yet started"):
            first.get_queue()
        first.connect()
        second.connect()
        sent = ["text", 1, 1.5, None, [1, "two"], True]
        first.get_queue().put(sent)
        q = second.get_queue()
        assert q.get() == sent
        assert q.empty()
        with pytest.raises(RemoteError if serializer == "xmlrpclib" else queue.Empty):
            q.get_nowait()
        # An address alone is not enough.
        with pytest.raises(procession.AuthenticationError):
            QueueClient(found, b"wrong", serializer).connect()
        # A request that nobody expects is answered, not obeyed.
        conn = first._Client(found, authkey=KEY)
        with pytest.raises(RemoteError, match="unrecognized"):
            managers.dispatch(conn, None, "serve_forever")
        conn.close()
        conn = first._Client(found, authkey=KEY)
        managers.dispatch(conn, None, "shutdown")
        conn.close()
        child.join()
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


SERVER = """
import importlib, sys

managers = importlib.import_module(f"{sys.argv[1]}.managers")
server = managers.SyncManager(("localhost", 0), b"secret").get_server()
print(server.address[1], flush=True)
server.serve_forever()
"""

CLIENT = """
import gc, importlib, sys

managers = importlib.import_module(f"{sys.argv[1]}.managers")
manager = managers.SyncManager(("localhost", int(sys.argv[2])), b"secret")
manager.connect()
d, numbers = manager.dict(a=1), manager.list([1, 2])
d["c"] = 3
print(d.copy(), sorted(d), numbers[-1])
try:
    d["missing"]
except KeyError as error:
    print(error)
del d, numbers
# Older versions of the standard package have a cycle around each error.
gc.collect()
print(manager._number_of_objects())
"""


@pytest.mark.parametrize(("server", "client"), [("multiprocessing", "procession"), ("procession", "multiprocessing")])
def test_the_standard_package_on_the_other_side(program, server, client):
    serving = program(SERVER, server, options=())
    port = serving.readline()
    out, err = program(CLIENT, client, port, options=()).finish()
    assert err == ""
    assert out.splitlines() == ["{'a': 1, 'c': 3} ['a', 'c'] 2", "'missing'", "0"]
    serving.close()


def test_a_manager_at_the_same_address_again(ctx):
    first = SyncManager(("localhost", 0), KEY, ctx=ctx)
    first.start()
    old = first.list([1])
    address = first.address
    assert address[1] != 0
    client = SyncManager(address, KEY)
    client.connect()
    assert list(client.list([3])) == [3]
    first.shutdown()
    with pytest.raises((OSError, EOFError)):
        client.list()
    second = SyncManager(address, KEY, ctx=ctx)
    second.start()
    with second:
        assert list(client.list([2])) == [2]
    assert old._id


def test_unknown_serializers_and_keys():
    with pytest.raises(KeyError):
        SyncManager(serializer="none")
    with pytest.raises(TypeError, match="not bytes"):
        managers.Server({}, None, "text", "pickle")


def test_a_server_may_be_asked_by_its_own_process():
    server = SyncManager(authkey=KEY).get_server()
    ident, exposed = server.create(None, "list", [1, 2])
    assert "append" in exposed
    assert server.number_of_objects(None) == 1
    server.incref(None, ident)
    server.decref(None, ident)
    server.decref(None, ident)
    assert server.number_of_objects(None) == 0
    server.listener.close()


def test_garbage_on_a_connection_is_answered(forked):
    proxy = forked.list()
    # A line over the socket; what goes through shared memory is unpickled in the same way.
    line = proxy._peer._open(spare=True)
    for data in (
        b"no pickle",
        pickle.dumps(7),
        pickle.dumps(()),
        pickle.dumps(("0", "x", (), {})),
        pickle.dumps((1, 2)),
    ):
        line.send(data)
        assert line.loads(line.receive())[0] == "#TRACEBACK"
    line.send(pickle.dumps((proxy._id, "append", (1,), {})))
    assert line.loads(line.receive()) == ("#RETURN", None)
    assert list(proxy) == [1]


def test_pickling_of_arrays_and_views():
    dumps, loads = procession.reduction.ForkingPickler.dumps, procession.reduction.ForkingPickler.loads
    assert loads(dumps(array.array("d", [1.5]))) == array.array("d", [1.5])
    assert loads(dumps([{1: 2}.keys(), {1: 2}.values(), {1: 2}.items()])) == [[1], [2], [(1, 2)]]


def test_tokens():
    token = managers.Token("list", "/tmp/x", "ab")
    assert repr(token) == "Token(typeid='list', address='/tmp/x', id='ab')"
    again = pickle.loads(pickle.dumps(token))
    assert (again.typeid, again.address, again.id) == ("list", "/tmp/x", "ab")
    assert isinstance(managers.convert_to_error("#ERROR", KeyError(1)), KeyError)
    assert isinstance(managers.convert_to_error("#OTHER", ""), ValueError)
    with pytest.raises(TypeError):
        managers.convert_to_error("#TRACEBACK", 1)


# Shared memory


def work(segment, items):
    segment.buf[0] = 7
    items[0] = "seven"


def test_shared_memory_goes_with_its_manager(ctx, nothing_left_behind):
    with managers.SharedMemoryManager(ctx=ctx) as manager:
        segment, items = manager.SharedMemory(100), manager.ShareableList(["item"])
        run(ctx, work, segment, items)
        assert segment.buf[0] == 7
        assert items[0] == "seven"
        gone = manager.SharedMemory(1)
        gone.unlink()
        gone.close()
        names = [segment.name, items.shm.name]
        assert all(os.path.exists(f"/dev/shm/{name}") for name in names)
    assert not any(os.path.exists(f"/dev/shm/{name}") for name in names)
    segment.close()
    items.shm.close()
    procession.resource_tracker._resource_tracker._stop()


def test_shared_memory_manager_has_to_be_started():
    manager = managers.SharedMemoryManager()
    with pytest.raises(ValueError, match="start"):
        manager.SharedMemory(10)
    with pytest.raises(ValueError, match="start"):
        manager.ShareableList([])
