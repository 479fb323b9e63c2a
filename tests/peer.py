"""One side of a conversation, on either package: peer.py PACKAGE ROLE OPTIONS, the options as JSON.

It is run by interpreters that have no procession, too. What it prints is a line of JSON each time.
"""

import importlib
import json
import queue
import sys
import threading

PACKAGE, ROLE, OPTIONS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
mp = importlib.import_module(PACKAGE)
managers = importlib.import_module(PACKAGE + ".managers")
connection = importlib.import_module(PACKAGE + ".connection")

KEY = OPTIONS["key"].encode()
# What proxies use that come in messages.
mp.current_process().authkey = KEY


def say(value):
    # Abstract addresses are bytes.
    print(json.dumps(value, default=bytes.decode), flush=True)


def address_of(text):
    """Addresses go through JSON, which knows neither tuples nor bytes."""
    return tuple(text) if isinstance(text, list) else text


# Listener and Client


def echo(conn):
    while (message := conn.recv()) is not None:
        conn.send(message)
        conn.send_bytes(conn.recv_bytes())


def converse(conn):
    import os

    for message in [1, "text", {"a": [1, 2.5, None]}, b"x" * 100_000, ("y" * 70_000, 2**80)]:
        conn.send(message)
        assert conn.recv() == message
        data = os.urandom(70_000)
        conn.send_bytes(data)
        assert conn.recv_bytes() == data
    conn.send(None)


def listen():
    with connection.Listener(address_of(OPTIONS["address"]), OPTIONS.get("family"), authkey=KEY) as listener:
        say(listener.address)
        for _ in range(OPTIONS.get("times", 1)):
            try:
                with listener.accept() as conn:
                    echo(conn)
            except (mp.AuthenticationError, EOFError, OSError) as error:
                say(type(error).__name__)
            else:
                say("served")


def connect():
    try:
        with connection.Client(address_of(OPTIONS["address"]), OPTIONS.get("family"), authkey=KEY) as conn:
            converse(conn)
    except (mp.AuthenticationError, EOFError, OSError) as error:
        say(type(error).__name__)
    else:
        say("served")


# Managers


class Refusal(Exception):
    pass


class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, number=1):
        self.value += number
        return self.value

    def refuse(self, reason):
        raise Refusal(reason)

    def late(self):
        raise mp.TimeoutError("late")

    def unsendable(self):
        return lambda: 1

    def _private(self):
        return "never seen"


JOBS = queue.Queue()
GUARD = threading.Lock()


class Manager(managers.SyncManager):
    pass


Manager.register("Counter", Counter)
Manager.register("jobs", callable=lambda: JOBS)
Manager.register("guard", callable=lambda: GUARD, proxytype=managers.AcquirerProxy)


def manager():
    return Manager(address_of(OPTIONS["address"]), KEY, serializer=OPTIONS["serializer"])


def manage():
    server = manager().get_server()
    say(server.address)
    server.serve_forever()


def raises(kind, call, *args, text=""):
    try:
        call(*args)
    except kind as error:
        assert text in str(error), f"{error!r} says nothing of {text}"
    else:
        raise AssertionError(f"{call} did not raise")


def use():
    """Everything of a manager that the serializer knows."""
    try:
        client = manager()
        client.connect()
    except mp.AuthenticationError:
        say("AuthenticationError")
        return
    use_plain(client)
    if OPTIONS["serializer"] == "pickle":
        use_objects(client)
    say("done")


def use_plain(client):
    counter = client.Counter(5)
    assert counter.add() == 6
    assert counter.add(10) == 16
    assert "Counter" in str(counter)
    assert not hasattr(counter, "_private")

    numbers = client.list([1, 2, 3])
    numbers.append(4)
    assert numbers.pop(0) == 1
    assert list(numbers) == [2, 3, 4] if OPTIONS["serializer"] == "pickle" else numbers[0] == 2
    assert len(numbers) == 3
    names = client.dict()
    names["a"] = "b"
    names.update({"c": [1, {"d": "e"}]})
    assert names["c"] == [1, {"d": "e"}]
    assert sorted(names.keys() if OPTIONS["serializer"] == "pickle" else names._getvalue()) == ["a", "c"]

    jobs = client.jobs()
    jobs.put("job")
    assert jobs.qsize() == 1
    assert client.jobs().get() == "job"
    guard = client.guard()
    assert guard.acquire()
    # Another thread is another owner.
    taken = []
    thread = threading.Thread(target=lambda: taken.append(client.guard().acquire(False)))
    thread.start()
    thread.join()
    assert taken == [False]
    guard.release()
    with guard:
        pass


def use_objects(client):
    counter = client.Counter()
    raises(Refusal, counter.refuse, "no", text="no")
    raises(mp.TimeoutError, counter.late, text="late")
    raises(managers.RemoteError, counter.unsendable, text="lambda")
    raises(managers.RemoteError, counter._callmethod, "_private", text="not in exposed")
    raises(managers.RemoteError, client._create, "Nothing", text="Nothing")
    raises(KeyError, client.dict().__getitem__, "missing", text="missing")
    raises(queue.Empty, client.Queue().get, False)

    # Nested: the inner object lives as long as the outer one keeps it, whoever has proxies.
    outer = client.dict()
    inner = client.list([1])
    outer["inner"] = inner
    del inner
    outer["inner"].append(2)
    assert list(outer["inner"]) == [1, 2]
    # In what is sent and received, too.
    pairs = client.list([("number", client.Value("i", 7)), ("space", client.Namespace(x=1))])
    (_, value), (_, space) = pairs[0], pairs[1]
    value.value += 1
    assert pairs[0][1].value == 8
    assert value.get() == 8
    space.y = [2]
    assert (space.x, space.y) == (1, [2])
    assert list(client.Array("i", [1, 2, 3])[1:]) == [2, 3]

    # Proxies as the results of methods.
    assert list(iter(client.dict(a=1))) == ["a"]
    with client.Pool(2) as pool:
        assert pool.map(abs, [-1, 2, -3]) == [1, 2, 3]
        assert pool.apply_async(divmod, (7, 2)).get(30) == (3, 1)
        assert list(pool.imap(abs, [-5])) == [5]
        raises(ZeroDivisionError, pool.apply, divmod, (1, 0))
        pool.terminate()

    for lock in (client.Lock(), client.RLock(), client.Semaphore(2), client.BoundedSemaphore(1)):
        assert lock.acquire()
        lock.release()
    event = client.Event()
    assert not event.wait(0.01)
    event.set()
    assert event.wait() and event.is_set()
    condition = client.Condition()
    with condition:
        assert not condition.wait(0.01)
        condition.notify_all()
    barrier = client.Barrier(2)
    other = threading.Thread(target=barrier.wait)
    other.start()
    assert barrier.wait() in (0, 1)
    other.join()
    joinable = client.JoinableQueue()
    joinable.put(1)
    joinable.get()
    joinable.task_done()
    joinable.join()
    assert client._number_of_objects() > 0
    assert "refcount" in client._debug_info()


if __name__ == "__main__":
    globals()[ROLE]()
