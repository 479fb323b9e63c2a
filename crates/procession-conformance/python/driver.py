"""The driver of the Python face: see PROTOCOL.md.

    python driver.py PACKAGE METHOD SOCKET

PACKAGE is `procession`, or `multiprocessing` to have the suite itself checked; METHOD a start method.
"""

import importlib
import os
import queue
import re
import socket
import sys
import threading
import warnings


def connect(path, name):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(f"hello {name} {os.getpid()}\n".encode())
    return connection


def serve(connection, answer):
    with connection.makefile("r") as lines:
        for line in lines:
            try:
                result = answer(*line.split())
                answered = "ok" if result is None else f"ok {result}"
            except Known as error:
                answered = f"error {error}"
            connection.sendall(f"{answered}\n".encode())


class Known(Exception):
    """What the suite expects may be raised."""


def raising(call, *known):
    """Call, with exceptions named as the suite names them: pairs of a type and a name."""
    try:
        return call()
    except tuple(kind for kind, _ in known) as error:
        raise Known(next(name for kind, name in known if isinstance(error, kind))) from error


def noticing(call):
    """Call, and say whether there was a warning that a lock was recovered, and from which process."""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        result = call()
    found = [re.search(r"recovered: process (\d+) died", str(warning.message)) for warning in noticed]
    return result, next((f"recovered {match[1]}" for match in found if match), None)


def limit(arguments):
    return float(arguments[0]) if arguments else None


def truth(value):
    return "true" if value else "false"


class Lock:
    """Locks and semaphores."""

    def __init__(self, lock, error):
        self.lock, self.error = lock, error

    def acquire(self, *seconds):
        acquired, recovered = noticing(lambda: self.lock.acquire(timeout=limit(seconds)))
        return recovered or ("held" if acquired else "no")

    def try_(self):
        acquired, recovered = noticing(lambda: self.lock.acquire(block=False))
        return recovered or ("held" if acquired else "no")

    def release(self):
        raising(self.lock.release, (ValueError, "too_many"), (AssertionError, "not_owner"))

    def count(self, counter, times):
        number = objects[counter].number
        for _ in range(int(times)):
            with self.lock:
                number.value += 1

    def value(self):
        return self.lock.get_value()


class Counter:
    def __init__(self, number):
        self.number = number

    def value(self):
        return self.number.value


class Condition:
    def __init__(self, condition):
        self.condition = condition

    def raising(self, call):
        # Each implementation has an exception of its own for it.
        return raising(call, (AssertionError, "not_held"), (RuntimeError, "not_held"), (ValueError, "not_held"))

    def wait(self, *seconds):
        notified, recovered = noticing(lambda: self.raising(lambda: self.condition.wait(limit(seconds))))
        return " ".join(filter(None, ("notified" if notified else "timed_out", recovered)))

    def notify(self, count):
        self.raising(lambda: self.condition.notify(int(count)))

    def notify_all(self):
        self.raising(self.condition.notify_all)


class Event:
    def __init__(self, event):
        self.event = event
        self.set, self.clear = event.set, event.clear

    def is_set(self):
        return truth(self.event.is_set())

    def wait(self, *seconds):
        return truth(self.event.wait(limit(seconds)))


class Action:
    """What the last to arrive at a barrier does: set an event, or fail if it is set."""

    def __init__(self, event):
        self.event = event

    def __call__(self):
        if self.event.is_set():
            raise Known("failed")
        self.event.set()


class Barrier:
    def __init__(self, barrier):
        self.barrier = barrier
        self.abort, self.reset = barrier.abort, barrier.reset

    def wait(self, *seconds):
        return raising(lambda: self.barrier.wait(limit(seconds)), (threading.BrokenBarrierError, "broken"))

    def waiting(self):
        return self.barrier.n_waiting

    def broken(self):
        return truth(self.barrier.broken)


class Queue:
    def __init__(self, messages):
        self.messages = messages

    def put(self, text, *seconds):
        raising(lambda: self.messages.put(expanded(text), timeout=limit(seconds)), (queue.Full, "full"))

    def try_put(self, text):
        raising(lambda: self.messages.put_nowait(expanded(text)), (queue.Full, "full"))

    def get(self, *seconds):
        return shortened(raising(lambda: self.messages.get(timeout=limit(seconds)), (queue.Empty, "empty")))

    def try_get(self):
        return shortened(raising(self.messages.get_nowait, (queue.Empty, "empty")))

    def put_many(self, prefix, count):
        for number in range(int(count)):
            self.messages.put(f"{prefix}{number}")

    def get_many(self, count):
        return " ".join(self.messages.get() for _ in range(int(count)))

    def len(self):
        return self.messages.qsize()

    def done(self):
        raising(self.messages.task_done, (ValueError, "too_many"))

    def join(self):
        self.messages.join()


def expanded(text):
    letter, star, count = text.partition("*")
    return letter * int(count) if star else text


def shortened(text):
    return f"{text[0]}*{len(text)}" if len(text) > 100 and text == text[0] * len(text) else text


WRAPPERS = {
    "lock": lambda lock: Lock(lock, "too_many"),
    "rlock": lambda lock: Lock(lock, "not_owner"),
    "semaphore": lambda semaphore: Lock(semaphore, "too_many"),
    "bounded": lambda semaphore: Lock(semaphore, "too_many"),
    "counter": Counter,
    "condition": Condition,
    "event": Event,
    "barrier": Barrier,
    "queue": Queue,
    "joinable": Queue,
}

# What this process has: the objects of the package by name, with their kinds, and what calls their methods.
shared = {}
objects = {}


def add(name, kind, native):
    shared[name] = kind, native
    objects[name] = WRAPPERS[kind](native)


def make(ctx, kind, name, *arguments):
    makers = {
        "lock": ctx.Lock,
        "rlock": ctx.RLock,
        "semaphore": lambda value: ctx.Semaphore(int(value)),
        "bounded": lambda value: ctx.BoundedSemaphore(int(value)),
        "counter": lambda: ctx.RawValue("Q", 0),
        "condition": lambda lock: ctx.Condition(shared[lock][1]),
        "event": ctx.Event,
        "barrier": lambda parties, *event: ctx.Barrier(int(parties), *(Action(shared[it][1]) for it in event)),
        "queue": lambda *bound: ctx.Queue(*map(int, bound)),
        "joinable": lambda *bound: ctx.JoinableQueue(*map(int, bound)),
    }
    add(name, kind, makers[kind](*arguments))


def call(name, method, *arguments):
    return getattr(objects[name], {"try": "try_"}.get(method, method))(*arguments)


def act(path, name, given):
    """The life of an actor."""
    for other, (kind, native) in given.items():
        add(other, kind, native)
    serve(connect(path, name), call)


def main(package, method, path):
    ctx = importlib.import_module(package).get_context(method)

    def start(name):
        process = ctx.Process(target=act, args=(path, name, dict(shared)), daemon=True)
        process.start()
        processes.append(process)

    def answer(first, *rest):
        if first == "make":
            make(ctx, *rest)
        elif first == "start":
            start(*rest)
        else:
            return call(first, *rest)
        return None

    processes = []
    serve(connect(path, "main"), answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
