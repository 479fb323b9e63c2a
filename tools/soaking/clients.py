"""Rounds with processes that use something together, some of which are killed meanwhile."""

import os
import secrets
import time
from queue import Empty

import procession
from procession import shared_memory

from . import ledger
from .accounts import PATIENCE, Lost
from .tasks import numpy, pattern

# Keys of one process: its number times this, and so on.
EACH = 1 << 20


class Clients:
    """The processes of a round. Those that are killed are known; all others have to end well."""

    def __init__(self, rng, context):
        self.rng = rng
        self.context = context
        self.processes = {}
        self.killed = set()

    def start(self, name, function, *args):
        """Start a process under a name."""
        process = self.processes[name] = self.context.Process(target=function, args=args, daemon=True)
        process.start()

    def kill_some(self, moments):
        """Kill up to so many, at random moments."""
        for _ in range(moments):
            time.sleep(self.rng.random() * 0.1)
            name = self.rng.choice(list(self.processes))
            if self.rng.random() < 0.6 and name not in self.killed:
                self.killed.add(name)
                self.processes[name].kill()

    def kills(self, prefix=""):
        """How many were killed of those whose names begin so."""
        return sum(name.startswith(prefix) for name in self.killed)

    def join(self, prefix="", codes=(0,)):
        """Wait for all whose names begin so."""
        end = time.monotonic() + PATIENCE
        for name, process in self.processes.items():
            if name.startswith(prefix):
                process.join(max(0.0, end - time.monotonic()))
                if process.exitcode is None:
                    raise Lost(f"{name} does not end; killed were {sorted(self.killed)}")
                if process.exitcode not in codes and name not in self.killed:
                    raise Lost(f"{name} ended with {process.exitcode}; killed were {sorted(self.killed)}")

    def close(self):
        """Have none left, whatever happened."""
        for process in self.processes.values():
            process.kill()
            process.join()
            process.close()


def _between(what, low, value, high):
    if not low <= value <= high:
        raise Lost(f"{what}: {value}, and it has to be {low} to {high}")


# queues


def _produce(path, queue, number, count, sizes):
    for place in range(count):
        key = number * EACH + place
        ledger.note(path, key, ledger.ASKED)
        queue.put((key, pattern(key, sizes[place % len(sizes)])))
        ledger.note(path, key, ledger.SENT)


def _consume(path, queue, over, joinable):
    last = {}
    while True:
        # Whether more may come is known before it is looked for.
        ending = over.is_set()
        try:
            key, data = queue.get(timeout=0.05)
        except Empty:
            if ending:
                return
            continue
        ledger.note(path, key, ledger.TAKEN)
        if joinable:
            queue.task_done()
        if data != pattern(key, len(data)):
            raise AssertionError(f"item {key} is not what it was")
        producer = key // EACH
        if last.get(producer, -1) >= key:
            raise AssertionError(f"item {key} came after {last[producer]}")
        last[producer] = key


def queue(rng, context, book, tell):
    """Producers and consumers: each item is taken once."""
    joinable = rng.random() < 0.3
    maxsize = rng.choice([0, 0, 1, 50])
    made = (context.JoinableQueue if joinable else context.Queue)(maxsize)
    over = context.Event()
    clients = Clients(rng, context)
    sizes = [rng.choice([64, 64, 64, 1024, 1 << 16, 1 << 20]) for _ in range(16)]
    count = rng.choice([20, 100, 300])
    producers, consumers = rng.randint(1, 3), rng.randint(1, 3)
    moments = rng.choice([0, 2, 6])
    tell(f"{producers} to {consumers}, {count} each, maxsize {maxsize}, joinable {joinable}, up to {moments} kills")
    try:
        for number in range(producers):
            clients.start(f"producer {number}", _produce, book.path, made, number, count, sizes)
        for number in range(consumers):
            clients.start(f"consumer {number}", _consume, book.path, made, over, joinable)
        clients.kill_some(moments)
        if clients.kills("consumer") == consumers:
            # Somebody has to make room.
            clients.start("consumer in the end", _consume, book.path, made, over, joinable)
        clients.join("producer")
        over.set()
        clients.join("consumer")
        if joinable and not clients.kills():
            made.join()
        if not made.empty():
            raise Lost("the queue has items that nobody got")
    finally:
        clients.close()
    made.close()
    made.join_thread()
    asked, sent, taken = (book.counts(what) for what in (ledger.ASKED, ledger.SENT, ledger.TAKEN))
    if twice := [key for key, times in taken.items() if times != 1]:
        raise Lost(f"items were taken more than once: {twice}")
    if strangers := taken.keys() - asked.keys():
        raise Lost(f"items came that nobody put: {strangers}")
    _between("items put and not taken", 0, len(sent.keys() - taken.keys()), clients.kills("consumer"))
    _between("items put half", 0, len(asked.keys() - sent.keys()), clients.kills("producer"))


# locks


def _count(path, lock, counter, number, count):
    for place in range(count):
        key = number * EACH + place
        with lock:
            value = counter.value
            ledger.note(path, key, ledger.ASKED)
            counter.value = value + 1
            ledger.note(path, key, ledger.DONE)


def lock(rng, context, book, tell):
    """Processes that count under a lock: no count is lost, and who dies with the lock holds nobody up."""
    kind = rng.choice(["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
    made = getattr(context, kind)()
    counter = context.RawValue("q", 0)
    clients = Clients(rng, context)
    moments = rng.choice([0, 2, 6])
    tell(f"{kind}, up to {moments} kills")
    try:
        for number in range(rng.randint(2, 4)):
            clients.start(f"client {number}", _count, book.path, made, counter, number, rng.choice([100, 2000]))
        clients.kill_some(moments)
        clients.join()
    finally:
        clients.close()
    asked, done = book.counts(ledger.ASKED), book.counts(ledger.DONE)
    _between("counted", done.total(), counter.value, asked.total())
    _between("counts begun and not ended", 0, asked.total() - done.total(), clients.kills())
    if not made.acquire(timeout=PATIENCE):
        raise Lost("nobody has the lock, and it can't be had")
    made.release()


# managers


def _manage(path, lock, counts, seen, number, count):
    try:
        for place in range(count):
            key = number * EACH + place
            with lock:
                value = counts["value"]
                ledger.note(path, key, ledger.BEGUN)
                counts["value"] = value + 1
                ledger.note(path, key, ledger.DONE)
            ledger.note(path, key, ledger.ASKED)
            seen.append(key)
            ledger.note(path, key, ledger.SENT)
    except (EOFError, OSError):
        # The manager has gone.
        raise SystemExit(7) from None


def manager(rng, context, book, tell):
    """Clients of a manager: every call is made once, and who dies with a lock holds nobody up."""
    clients = Clients(rng, context)
    moments = rng.choice([0, 2, 4])
    end_it = rng.random() < 0.2
    tell(f"up to {moments} kills{', the manager too' if end_it else ''}")
    with context.Manager() as made:
        shared, counts, seen = made.Lock(), made.dict(value=0), made.list()
        try:
            for number in range(rng.randint(1, 3)):
                args = book.path, shared, counts, seen, number, rng.choice([10, 100])
                clients.start(f"client {number}", _manage, *args)
            clients.kill_some(moments)
            if end_it:
                made._process.kill()
            clients.join(codes=(0, 7) if end_it else (0,))
        finally:
            clients.close()
        if end_it:
            return
        total, keys = counts["value"], list(seen)
        if not shared.acquire(timeout=PATIENCE):
            raise Lost("nobody has the manager's lock, and it can't be had")
        shared.release()
    begun, done, asked, sent = (
        book.counts(what) for what in (ledger.BEGUN, ledger.DONE, ledger.ASKED, ledger.SENT)
    )  # fmt: skip
    _between("counted", done.total(), total, begun.total())
    if len(set(keys)) != len(keys):
        raise Lost("a call was made twice")
    if not sent.keys() <= set(keys) <= asked.keys():
        raise Lost("a call was not made, or one that nobody asked for")
    _between("calls begun and not ended", 0, len(asked) - len(sent), clients.kills())


# shared memory


def _fill(path, name, array, number, size):
    memory = shared_memory.SharedMemory(name)
    start = number * size
    memory.buf[start : start + size] = pattern(number, size)
    if array is not None:
        array[number] = number + 1
    ledger.note(path, number, ledger.DONE)
    memory.close()


def memory(rng, context, book, tell):
    """Processes that fill parts of named memory and of a shared array: all that was written is there."""
    count, size = rng.randint(2, 5), rng.choice([64, 4096, 1 << 18])
    clients = Clients(rng, context)
    # A name of its own, as others may make files in /dev/shm at the same time.
    made = shared_memory.SharedMemory(f"soak-{os.getpid()}-{secrets.token_hex(4)}", create=True, size=count * size)
    array = procession.shared_array(count, "i8") if numpy is not None else None
    name = made.name
    tell(f"{count} parts of {size}")
    try:
        for number in range(count):
            clients.start(f"client {number}", _fill, book.path, name, array, number, size)
        clients.kill_some(rng.choice([0, 2]))
        clients.join()
        for number in book.counts(ledger.DONE):
            if bytes(made.buf[number * size : (number + 1) * size]) != pattern(number, size):
                raise Lost(f"what client {number} wrote is not there")
            if array is not None and array[number] != number + 1:
                raise Lost(f"what client {number} wrote into the array is not there")
    finally:
        clients.close()
        made.close()
        made.unlink()
    if os.path.exists(f"/dev/shm/{name}"):
        raise Lost("the memory is there still")
