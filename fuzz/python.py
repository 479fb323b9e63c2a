"""Send garbage to the servers of the Python package, and see that they go on serving others.

    python fuzz/python.py [--seconds 600] [--target NAME] [--seed NUMBER] [--cases NUMBER]

Each server is a process of its own. A case is made from its seed alone, so `--target NAME --seed NUMBER --cases 1`
plays it again; cases count up from the seed. Strangers have no key: nothing that they send may be unpickled. Clients
have it, and may harm nobody but themselves. A finding is printed with the seeds of the cases since all was well, and
the exit status is 1.
"""

import argparse
import contextlib
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import procession
from procession import connection, managers, resource_sharer

KEY = b"the key of the fuzz targets"
TRAP = os.path.join(tempfile.gettempdir(), f"procession-fuzz-trap-{os.getpid()}")
BATCH = 50


class Bomb:
    """Whoever unpickles it has a folder more."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.makedirs, (self.trap, 0o700, True)


class Finding(Exception):
    pass


# Servers


def serve_listener():
    with connection.Listener(authkey=KEY, backlog=64) as listener:
        print(listener.address, flush=True)
        while True:
            try:
                with listener.accept() as conn:
                    while conn.poll(1):
                        conn.send(conn.recv_bytes())
            except (procession.AuthenticationError, EOFError, OSError):
                pass


class Manager(managers.SyncManager):
    pass


THINGS = {"list": [], "dict": {}}
Manager.register("things", callable=lambda: THINGS, proxytype=managers.DictProxy)


def serve_manager(serializer="pickle"):
    server = Manager(authkey=KEY, serializer=serializer).get_server()
    print(server.address, flush=True)
    server.serve_forever()


def serve_descriptors():
    process = procession.current_process()
    process.authkey = KEY
    reader, writer = os.pipe()
    address, _ = resource_sharer.DupFd(reader)._id
    print(address, flush=True)
    while True:
        # What an honest client fetches.
        sys.stdin.readline()
        print(resource_sharer.DupFd(writer)._id[1], flush=True)


# What is sent


def value(rng, depth=3):
    """Some plain value."""
    kinds = [
        lambda: None,
        lambda: rng.choice([True, False, -1, 0, 1, 2**31, -(2**63), 2**64, 10**30, 1e308]),
        lambda: rng.choice(["", "0", "#GETVALUE", "keys", "things", "__class__", "\0", "\ud800", "x" * 1000]),
        lambda: rng.randbytes(rng.choice([0, 1, 16, 300])),
        lambda: tuple(value(rng, depth - 1) for _ in range(rng.randrange(5))),
        lambda: [value(rng, depth - 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(["a", 1, None]): value(rng, depth - 1) for _ in range(rng.randrange(3))},
        lambda: managers.Token(
            rng.choice(["list", "nothing", None]), rng.choice(["/nowhere", ("localhost", 1), 5]), "7"
        ),
        lambda: rng.choice([len, int, Exception, ValueError("x"), managers.Namespace(a=1)]),
    ]
    return rng.choice(kinds[: len(kinds) if depth else 4])()


NAMES = [
    "accept_connection", "create", "debug_info", "decref", "dummy", "get_methods", "incref", "number_of_objects",
    "serve_client", "__init__", "", "x" * 500, None, 5,
]  # fmt: skip
METHODS = ["append", "keys", "__getitem__", "__len__", "update", "#GETVALUE", "__str__", "_private", "pop", None, 3]
TYPES = ["list", "dict", "things", "Queue", "Lock", "Namespace", "Value", "Array", "Iterator", "nothing", None]


def request(rng, idents):
    """What could be asked of a manager."""
    shape = rng.randrange(10)
    if shape == 0:
        return value(rng)
    if shape < 5:
        name = rng.choice(NAMES)
        args = (rng.choice(TYPES),) if name == "create" else ()
        args += tuple(value(rng) for _ in range(rng.randrange(3)))
        if name in ("incref", "decref") and rng.random() < 0.7:
            args = (rng.choice(idents),)
        return None, name, args, rng.choice([{}, {}, {"a": 1}, None, 5])
    ident = rng.choice([*idents, "0", "f" * 5000, 0, None, -1])
    return ident, rng.choice(METHODS), rng.choice([(), (value(rng),), 5]), rng.choice([{}, {"key": 1}, None])


def damaged(rng, data):
    """Bytes that are not quite these."""
    how = rng.randrange(6)
    if how == 0:
        return data
    if how == 1:
        return data[: rng.randrange(len(data) + 1)]
    if how == 2:
        return data + rng.randbytes(rng.randrange(1, 50))
    if how == 3:
        return rng.randbytes(rng.choice([0, 1, 3, 4, 20, 256, 257, 5000]))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def pickled(obj):
    try:
        return pickle.dumps(obj, 4)
    except Exception:
        return pickle.dumps(None)


def framed(rng, data):
    """A message, mostly with its right length."""
    length = len(data)
    odd = rng.randrange(20)
    if odd == 0:
        return rng.choice([2**31 - 1, 2**20, length + 1, max(0, length - 1)]).to_bytes(4, "big") + data
    if odd == 1:
        return rng.choice([b"\xff\xff\xff\xfe", b"\x80\0\0\0", b"\xff" * 12]) + data
    if odd == 2:
        return b"\xff" * 4 + rng.choice([length, 2**62, 2**63, 2**40]).to_bytes(8, "big") + data
    return length.to_bytes(4, "big") + data


def stranger(rng, address):
    """Somebody without the key."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        # Waits where there is no room, which it doesn't with a limit.
        sock.connect(address)
        sock.settimeout(10)
        for _ in range(rng.randrange(5)):
            said = rng.choice([
                lambda: pickle.dumps(Bomb(TRAP)),
                lambda: b"#CHALLENGE#" + rng.choice([b"", b"{sha256}", b"{md5}", b"{sha1}"]) + rng.randbytes(40),
                lambda: b"#WELCOME#",
                lambda: rng.choice([b"{sha256}", b"{md5}", b""]) + rng.randbytes(rng.choice([16, 32, 48])),
                lambda: pickle.dumps((None, "create", ("list",), {})),
            ])()  # fmt: skip
            sock.sendall(framed(rng, damaged(rng, said)))
            if rng.random() < 0.3:
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    sock.recv(rng.choice([1, 100, 5000]))
        if rng.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)


def client(rng, address, dumps, loads):
    """Somebody who has the key, and nothing sensible to ask."""
    conn = connection.Client(address, authkey=KEY)
    with conn:
        idents = ["1", "7f0000000000"]
        if rng.random() < 0.7:
            conn.send_bytes(dumps((None, "accept_connection", ("line",), {})))
            conn.recv_bytes()
        for _ in range(rng.randrange(1, 6)):
            asked = request(rng, idents)
            # That would be the end of it.
            data = dumps(asked)
            data = damaged(rng, data) if rng.random() < 0.4 else data
            if b"shutdown" in data:
                continue
            os.write(conn.fileno(), framed(rng, data))
            if conn.poll(rng.choice([0, 0.002, 0.02])):
                # The server is not what is in question here.
                with contextlib.suppress(Exception):
                    _, (ident, _) = loads(conn.recv_bytes())
                    idents.append(ident)


def client_of_descriptors(rng, address):
    with connection.Client(address, authkey=KEY) as conn:
        data = pickled(rng.choice([(value(rng), value(rng)), value(rng), (2**70, os.getpid()), (0, 0)]) or 0)
        os.write(conn.fileno(), framed(rng, damaged(rng, data)))


def dumps_xml(obj):
    try:
        return connection._xml_dumps(obj)
    except Exception:
        return b"<params></params>"


# Honest ones


def ask_listener(server):
    with connection.Client(server.address, authkey=KEY) as conn:
        conn.send("hello")
        assert pickle.loads(conn.recv()) == "hello"


def ask_manager(server):
    manager = Manager(server.address, KEY, serializer=server.serializer)
    manager.connect()
    numbers = manager.list()
    numbers.append(5)
    assert numbers[0] == 5
    assert manager.things().__len__() is not None


def ask_for_descriptor(server):
    server.process.stdin.write("\n")
    server.process.stdin.flush()
    number = int(server.process.stdout.readline())
    procession.current_process().authkey = KEY
    conn = resource_sharer._resource_sharer.get_connection((server.address, number))
    with conn:
        os.close(procession.reduction.recv_handle(conn))


TARGETS = {
    "listener": (serve_listener, ask_listener, [stranger]),
    "manager": (
        serve_manager,
        ask_manager,
        [stranger, lambda rng, address: client(rng, address, pickled, pickle.loads)],
    ),
    "manager-xml": (
        lambda: serve_manager("xmlrpclib"),
        ask_manager,
        [stranger, lambda rng, address: client(rng, address, dumps_xml, connection._xml_loads)],
    ),
    "sharer": (serve_descriptors, ask_for_descriptor, [stranger, client_of_descriptors]),
}


def too_long(*_):
    raise Finding("an honest client has waited for 30 seconds")


class Server:
    def __init__(self, target):
        self.target = target
        self.serializer = "xmlrpclib" if target.endswith("xml") else "pickle"
        command = [sys.executable, __file__, "--serve", target]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.address = self.process.stdout.readline().strip()

    def check(self):
        """Whether it serves others, has let go of what was closed, and unpickled nothing for strangers."""
        if self.process.poll() is not None:
            raise Finding(f"the server ended with {self.process.returncode}")
        if os.path.exists(TRAP):
            raise Finding("it unpickled what a stranger sent")
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(30)
        try:
            TARGETS[self.target][1](self)
        except Exception as error:
            raise error if isinstance(error, Finding) else Finding(f"an honest client was told {error!r}") from error
        finally:
            signal.alarm(0)
        deadline = time.monotonic() + 20
        while (many := self.status("Threads")) > 20 or (large := self.status("VmRSS")) > 2_000_000:
            if time.monotonic() > deadline:
                raise Finding(f"it has {many} threads, {large} kB" if many <= 20 else f"it has {many} threads")
            time.sleep(0.05)

    def status(self, field):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split(f"{field}:")[1].split()[0])

    def close(self):
        self.process.kill()
        self.process.wait()


def play(server, seed):
    """One case. That the server closes the connection is its right."""
    rng = random.Random(seed)
    act = rng.choice(TARGETS[server.target][2])
    with contextlib.suppress(OSError, EOFError):
        act(rng, server.address)


def run(target, seed, cases, seconds):
    server = Server(target)
    began, played = time.monotonic(), 0
    try:
        server.check()
        while played < cases and time.monotonic() - began < seconds:
            first = seed + played
            for number in range(first, min(first + BATCH, seed + cases)):
                play(server, number)
                played += 1
            try:
                server.check()
            except Finding as finding:
                print(f"{target}: {finding}; one of the seeds {first} to {seed + played - 1}", flush=True)
                return False
    finally:
        server.close()
    print(f"{target}: {played:,} cases from seed {seed} in {time.monotonic() - began:.0f} s, nothing found", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="of each target")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9) * 1000)
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--serve", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        # A peer may announce any length. What isn't there can't be had.
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        TARGETS[options.serve][0]()
        return 0
    targets = options.target or list(TARGETS)
    # All of them, whatever one has found.
    found = [target for target in targets if not run(target, options.seed, options.cases, options.seconds)]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
