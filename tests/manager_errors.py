"""What can go wrong with managers: each case, and what came of it, as lines of JSON, for the package that is named.

A program of test_manager_errors.py.
"""

import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading

mp = importlib.import_module(sys.argv[1])
managers = importlib.import_module(f"{sys.argv[1]}.managers")
connection = importlib.import_module(f"{sys.argv[1]}.connection")
ctx = mp.get_context("fork")
BaseManager, SyncManager = managers.BaseManager, managers.SyncManager

CASES = []


def case(function):
    CASES.append(function)
    return function


class Thing:
    def __init__(self, *args):
        self.args = args

    def get(self):
        return self.args

    def lock(self):
        return threading.Lock()

    def fail(self):
        raise ZeroDivisionError("on purpose")

    def exit(self):
        raise KeyError("missing", 2)

    def _private(self):
        return 1


class ThingProxy(managers.BaseProxy):
    _exposed_ = ("get", "nothing")

    def get(self):
        return self._callmethod("get")


class Manager(SyncManager):
    pass


Manager.register("Thing", Thing)
Manager.register("Proxied", Thing, ThingProxy)
Manager.register("Exposing", Thing, exposed=("_private", "fail"))
Manager.register("Wrong", Thing, method_to_typeid={"get": "NoSuchType"})
Manager.register("NoCallable")
Manager.register("fails", lambda: 1 / 0)


def new(*args, kind=Manager, **kwds):
    return kind(*args, ctx=ctx, **kwds)


def started():
    made = new()
    made.start()
    return made


shared = started()


# The life of a manager


@case
def start_twice():
    started().start()


@case
def start_after_connect():
    other = new(shared.address, shared._authkey)
    other.connect()
    other.start()


@case
def start_after_shutdown():
    one = started()
    one.shutdown()
    one.start()


@case
def enter_after_shutdown():
    one = started()
    one.shutdown()
    with one:
        pass


@case
def shutdown_before_start():
    new().shutdown()


@case
def shutdown_twice():
    one = started()
    return one.shutdown(), one.shutdown()


@case
def shutdown_of_one_that_connected():
    other = new(shared.address, shared._authkey)
    other.connect()
    other.shutdown()


@case
def with_one_that_connected():
    other = new(shared.address, shared._authkey)
    other.connect()
    with other:
        pass


@case
def enter_twice():
    with started() as one:
        with one:
            pass


@case
def join_before_start():
    new().join()


@case
def join_after_shutdown():
    one = started()
    one.shutdown()
    return one.join(), one.join(1)


@case
def create_before_start():
    new().list()


@case
def create_after_shutdown():
    one = started()
    one.shutdown()
    one.list()


@case
def number_of_objects_before_start():
    new()._number_of_objects()


@case
def use_after_shutdown():
    one = started()
    items = one.list()
    one.shutdown()
    items.append(1)


@case
def text_after_shutdown():
    one = started()
    items = one.list()
    one.shutdown()
    return str(items).endswith("; '__str__()' failed>")


@case
def use_after_kill():
    one = started()
    items = one.list()
    len(items)
    os.kill(one._process.pid, signal.SIGKILL)
    one.join()
    items.append(1)


@case
def create_after_kill():
    one = started()
    os.kill(one._process.pid, signal.SIGKILL)
    one.join()
    one.list()


@case
def shutdown_after_kill():
    one = started()
    os.kill(one._process.pid, signal.SIGKILL)
    return one.shutdown()


@case
def killed_while_waiting():
    one = started()
    q = one.Queue()
    threading.Timer(0.3, os.kill, (one._process.pid, signal.SIGKILL)).start()
    q.get()


@case
def get_server_after_start():
    started().get_server()


@case
def initializer_is_no_function():
    new().start(initializer=1)


@case
def initializer_fails():
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    new().start(initializer=lambda: 1 / 0)


@case
def initializer_exits():
    new().start(initializer=os._exit, initargs=(3,))


@case
def states():
    one = new()
    seen = [one._state.value]
    one.start()
    seen.append(one._state.value)
    one.shutdown()
    return [*seen, one._state.value]


# Addresses and keys


@case
def connect_to_nobody_by_tcp():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    new(address, b"key").connect()


@case
def connect_to_nobody_by_path():
    new("/tmp/there-is-no-such-socket", b"key").connect()


@case
def connect_to_an_abstract_name_of_nobody():
    new("\0there-is-no-such-socket", b"key").connect()


@case
def connect_to_a_file():
    with tempfile.NamedTemporaryFile() as file:
        new(file.name, b"key").connect()


@case
def connect_to_a_server_that_ended():
    one = started()
    other = new(one.address, one._authkey)
    one.shutdown()
    other.connect()


@case
def connect_to_a_path_too_long():
    new("/tmp/" + "x" * 200, b"key").connect()


@case
def listen_at_a_path_too_long():
    new("/tmp/" + "x" * 200, b"key").get_server()


@case
def listen_in_a_folder_that_is_not_there():
    new("/tmp/no-such-folder/socket", b"key").get_server()


@case
def listen_at_an_address_in_use():
    new(shared.address, b"key").get_server()


@case
def listen_at_a_number():
    new(7, b"key").get_server()


@case
def connect_without_address():
    new(None, b"key").connect()


@case
def wrong_key():
    new(shared.address, b"wrong").connect()


@case
def wrong_key_for_a_proxy():
    ThingProxy(managers.Token("Thing", shared.address, "0"), "pickle", authkey=b"wrong")


@case
def key_is_text():
    new(authkey="text")


@case
def key_of_server_is_text():
    managers.Server({}, None, "text", "pickle")


@case
def unknown_serializer():
    new(serializer="json")


@case
def address_before_start():
    return new().address


@case
def start_at_an_address_in_use():
    new(shared.address).start()


@case
def start_at_a_path_too_long():
    new("/tmp/" + "x" * 200).start()


def at_a_path(use):
    with tempfile.TemporaryDirectory() as folder:
        return use(folder + "/socket")


@case
def start_again_at_the_path_after_shutdown():
    def use(path):
        with new(path):
            there = os.path.exists(path)
        with new(path) as one:
            return there, one.address == path, one.list([1])[0]

    return at_a_path(use)


@case
def path_is_gone_after_shutdown():
    def use(path):
        with new(path):
            pass
        return os.path.exists(path)

    return at_a_path(use)


@case
def start_again_at_the_path_after_a_kill():
    def use(path):
        one = new(path)
        one.start()
        os.kill(one._process.pid, signal.SIGKILL)
        one.join()
        new(path).start()

    return at_a_path(use)


@case
def start_again_at_the_port_after_a_kill():
    one = new(("127.0.0.1", 0))
    one.start()
    items = one.list([1])
    len(items)
    os.kill(one._process.pid, signal.SIGKILL)
    one.join()
    with new(one.address) as other:
        return other.list([2])[0]


@case
def mode_of_the_socket():
    return oct(os.stat(shared.address).st_mode & 0o077 if shared.address[0] == "/" else 0)


# Types and methods


@case
def unknown_type():
    shared._create("NoSuchType")


@case
def no_such_attribute():
    shared.NoSuchType()


@case
def type_without_callable():
    shared.NoCallable()


@case
def type_without_callable_and_a_value():
    return shared.NoCallable([1]).count(1)


@case
def constructor_fails():
    shared.fails()


@case
def wrong_arguments_for_a_constructor():
    shared.list(1, 2, 3)


@case
def unexposed_method():
    shared.Thing()._callmethod("_private")


@case
def unexposed_method_of_a_dict():
    shared.dict()._callmethod("__class__")


@case
def unknown_method():
    shared.Thing()._callmethod("nothing")


@case
def exposed_method_that_is_not_there():
    shared.Proxied()._callmethod("nothing")


@case
def proxy_without_the_method():
    shared.Proxied().fail()


@case
def auto_proxy_without_the_method():
    shared.Thing()._private()


@case
def exposed_private_method():
    return shared.Exposing()._private(), hasattr(shared.Exposing(), "get")


@case
def method_fails():
    shared.Thing().fail()


@case
def method_fails_with_two_arguments():
    shared.Thing().exit()


@case
def wrong_arguments_for_a_method():
    shared.Thing().get(1, 2)


@case
def method_of_unknown_type_of_proxy():
    return shared.Wrong(1).get()


@case
def result_cannot_be_pickled():
    shared.Thing().lock()


@case
def argument_cannot_be_pickled():
    shared.list().append(lambda: None)


@case
def type_id_is_no_text():
    Manager.register("X", Thing, method_to_typeid={"get": 1})


@case
def method_name_is_no_text():
    Manager.register("X", Thing, method_to_typeid={1: "list"})


@case
def method_to_typeid_is_no_dict():
    Manager.register("X", Thing, method_to_typeid=["get"])


@case
def proxytype_is_no_type():
    Manager.register("Nonsense", Thing, proxytype=7)
    shared.Nonsense()


@case
def exposed_is_a_text():
    Manager.register("Chars", Thing, exposed="get")
    with new() as one:
        return one.Chars()._exposed_


@case
def create_method_false():
    Manager.register("Quiet", Thing, create_method=False)
    return hasattr(Manager, "Quiet"), "Quiet" in Manager._registry, "Quiet" in SyncManager._registry


@case
def proxy_type_with_a_bad_name():
    managers.MakeProxyType("P", ["not a name"])


# Requests


def request(*request):
    conn = connection.Client(shared.address, authkey=bytes(shared._authkey))
    try:
        conn.send(request)
        return conn.recv()
    finally:
        conn.close()


@case
def unknown_request():
    return managers.dispatch(connection.Client(shared.address, authkey=bytes(shared._authkey)), None, "serve_forever")


@case
def request_of_two():
    kind, text = request(None, "dummy")
    return kind, type(text).__name__


@case
def request_that_is_a_number():
    kind, text = request(None, 7, (), {})
    return kind, type(text).__name__


@case
def wrong_number_of_arguments():
    kind, text = request(None, "incref", (1, 2, 3), {})
    return kind, type(text).__name__


@case
def incref_of_nothing():
    kind, text = request(None, "incref", ("nothing",), {})
    return kind, type(text).__name__


@case
def decref_of_nothing():
    kind, text = request(None, "decref", ("nothing",), {})
    return kind, type(text).__name__


@case
def object_that_is_gone():
    token = shared.list()._token
    ThingProxy(token, "pickle", authkey=shared._authkey)


@case
def method_of_an_object_that_is_not_there():
    proxy = shared.Thing()
    proxy._id = "nothing"
    try:
        proxy.get()
    finally:
        proxy._id = proxy._token.id


@case
def error_of_unknown_kind():
    return repr(managers.convert_to_error("#WHAT", "text"))


@case
def traceback_that_is_no_text():
    managers.convert_to_error("#TRACEBACK", 7)


@case
def remote_error_as_text():
    return str(managers.RemoteError("traceback\n"))


# Objects


def attempts(*functions):
    seen = []
    for function in functions:
        try:
            seen.append(repr(function()))
        except Exception as error:
            seen.append(type(error).__name__)
    return seen


@case
def bad_list():
    items = shared.list([1])
    return attempts(
        lambda: items[5],
        lambda: items["x"],
        lambda: items.pop(9),
        lambda: items.remove(9),
        lambda: items.index(9),
        lambda: items.insert("x", 1),
        lambda: items + 1,
        lambda: items * "x",
        lambda: items.sort(key=1),
        lambda: items.extend(7),
        lambda: items.__delitem__(7),
        lambda: items.__setitem__(7, 1),
        lambda: items.append(),
        lambda: iter(items),
        lambda: hash(items) == hash(items),
        lambda: items == [1],
        lambda: items._getvalue() == [1],
        lambda: [*items],
        lambda: items.nothing,
        lambda: items < [1],
    )[:13]


@case
def bad_dict():
    d = shared.dict(a=1)
    return attempts(
        lambda: d["x"],
        lambda: d[[]],
        lambda: d.pop("x"),
        lambda: d.update(7),
        lambda: d.__delitem__("x"),
        lambda: d.get([]),
        lambda: d.setdefault([]),
        lambda: (d.clear(), d.popitem()),
        lambda: d.nothing,
        lambda: d.copy(1),
        lambda: d == {},
        lambda: d["x":1],
    )


@case
def bad_namespace():
    names = shared.Namespace(x=1)
    return attempts(
        lambda: names.y,
        lambda: names._y,
        lambda: delattr(names, "y"),
        lambda: names.x,
        lambda: str(names),
        lambda: delattr(names, "_y"),
        lambda: setattr(names, "_z", 1),
        lambda: names._z,
    )


@case
def bad_value():
    value = shared.Value("i", 1)
    return attempts(
        lambda: value.get(1),
        lambda: value.set(),
        lambda: setattr(value, "value", "text"),
        lambda: value.value,
        lambda: shared.Value("i"),
        lambda: value.typecode,
    )


@case
def bad_array():
    numbers = shared.Array("i", [1, 2])
    return attempts(
        lambda: numbers[5],
        lambda: numbers.__setitem__(0, "x"),
        lambda: numbers.__setitem__(0, 1 << 40),
        lambda: shared.Array("?", []),
        lambda: shared.Array("i", 5),
        lambda: numbers[0:1],
        lambda: len(numbers),
        lambda: numbers.append(1),
        lambda: list(numbers),
    )


@case
def bad_lock():
    lock, semaphore, bounded, rlock = shared.Lock(), shared.Semaphore(1), shared.BoundedSemaphore(1), shared.RLock()
    return attempts(
        lock.release,
        rlock.release,
        semaphore.release,
        bounded.release,
        lambda: lock.acquire(False, 1),
        lambda: lock.acquire(True, -5),
        lambda: lock.acquire(True, "x"),
        lambda: rlock.acquire(False, 1),
        lambda: rlock.acquire(True, -5),
        lambda: semaphore.acquire(False, 1),
        lambda: semaphore.acquire(True, -1),
        lambda: shared.Semaphore(-1),
        lambda: shared.BoundedSemaphore("x"),
        lambda: lock.acquire(),
        lambda: lock.acquire(True, 0),
        lambda: lock.acquire(True, 0.01),
        lambda: lock.acquire(False),
        lambda: lock.acquire(1, 2, 3),
        lambda: lock.nothing,
    )


@case
def bad_condition():
    condition = shared.Condition()
    seen = attempts(
        condition.notify,
        condition.notify_all,
        condition.wait,
        lambda: condition.wait(0),
        condition.release,
        lambda: shared.Condition(7),
    )
    with condition:
        return seen + attempts(
            lambda: condition.wait(0),
            lambda: condition.wait(-1),
            lambda: condition.wait(0.01),
            lambda: condition.wait("x"),
            lambda: condition.notify("x"),
            lambda: condition.notify(0),
            lambda: condition.wait_for(7),
            lambda: condition.wait_for(lambda: 0, 0.01),
        )


@case
def bad_condition_after_bad_waits():
    condition = shared.Condition()
    with condition:
        attempts(lambda: condition.wait("x"))
    return condition.acquire(), condition.release()


@case
def condition_with_a_lock():
    lock = shared.Lock()
    condition = shared.Condition(lock)
    with condition:
        return lock.acquire(False), condition.wait(0.01)


@case
def bad_event():
    event = shared.Event()
    return attempts(
        lambda: event.wait(0),
        lambda: event.wait(-1),
        lambda: event.wait("x"),
        lambda: event.wait(0.01),
        event.is_set,
        event.set,
        lambda: event.wait("x"),
        event.wait,
        event.clear,
    )


@case
def bad_barrier():
    barrier = shared.Barrier(2)
    return attempts(
        lambda: shared.Barrier(),
        lambda: barrier.wait(0.01),
        lambda: barrier.broken,
        barrier.wait,
        barrier.reset,
        lambda: barrier.broken,
        lambda: barrier.n_waiting,
        lambda: barrier.parties,
        barrier.abort,
        barrier.wait,
    )


@case
def bad_queue():
    q, bounded = shared.Queue(), shared.JoinableQueue(1)
    bounded.put(1)
    return attempts(
        lambda: q.get(False),
        q.get_nowait,
        lambda: q.get(True, 0),
        lambda: q.get(True, 0.01),
        lambda: q.get(True, -1),
        lambda: q.get(timeout="x"),
        lambda: q.get(1, 2, 3),
        lambda: bounded.put(2, False),
        lambda: bounded.put_nowait(2),
        lambda: bounded.put(2, True, 0.01),
        lambda: bounded.put(2, timeout=-1),
        lambda: bounded.put(),
        bounded.full,
        bounded.task_done,
        bounded.task_done,
        bounded.join,
        lambda: shared.Queue("x").put(1),
        bounded.qsize,
        bounded.get,
        bounded.empty,
        lambda: q.mutex,
    )


@case
def bad_pool():
    pool = shared.Pool(1)
    seen = attempts(
        lambda: shared.Pool(0),
        lambda: pool.apply(abs, ("x",)),
        lambda: pool.map(abs, 7),
        lambda: pool.map(abs, [-1]),
        lambda: pool.apply_async(abs, ("x",)).get(),
        lambda: pool.join(),
        lambda: pool.imap(abs, [-1, "x"]).next(),
        lambda: list(pool.imap(abs, [-1, -2])),
    )
    pool.terminate()
    pool.join()
    return seen + attempts(lambda: pool.apply(abs, (1,)))


@case
def bad_iterator():
    generator = shared.dict({1: 2, 3: 4})
    it = iter(generator)
    return attempts(
        lambda: next(it), lambda: generator.__setitem__(5, 6), lambda: next(it), lambda: list(iter(generator))
    )


# Shared memory


memory = new(kind=managers.SharedMemoryManager)
memory.start()


@case
def shared_memory_before_start():
    new(kind=managers.SharedMemoryManager).SharedMemory(10)


@case
def shareable_list_before_start():
    new(kind=managers.SharedMemoryManager).ShareableList([1])


@case
def bad_shared_memory():
    segment, items = memory.SharedMemory(10), memory.ShareableList([1, "text", None])
    seen = attempts(
        lambda: memory.SharedMemory(0),
        lambda: memory.SharedMemory(-1),
        lambda: memory.SharedMemory("x"),
        lambda: memory.SharedMemory(),
        lambda: memory.ShareableList(7),
        lambda: memory.ShareableList([object()]),
        lambda: items[7],
        lambda: items.__setitem__(0, "much too long" * 100),
        lambda: segment.size >= 10,
        lambda: (segment.close(), items.shm.close()),
        lambda: segment.unlink(),
        lambda: segment.unlink(),
    )
    return seen, memory._debug_info()


@case
def shared_memory_after_shutdown():
    one = new(kind=managers.SharedMemoryManager)
    one.start()
    one.shutdown()
    one.SharedMemory(10)


@case
def shared_memory_manager_makes_no_lists():
    memory.list()


for function in CASES:
    try:
        outcome = ["returned", repr(function())]
    except Exception as error:
        outcome = ["raised", type(error).__name__]
        if isinstance(error, OSError) and error.errno is not None:
            outcome.append(error.errno)
        if isinstance(error, managers.RemoteError):
            outcome.append(str(error).rstrip("- \n").splitlines()[-1].partition(":")[0])
    print(json.dumps([function.__name__, outcome]), flush=True)
shared.shutdown()
memory.shutdown()
