"""What the tasks of the rows do: functions that workers find by their names."""

import os
import signal
import threading
import time


def identity(x):
    return x


def pid():
    time.sleep(0.05)
    return os.getpid()


def sleep_and_return(seconds, x):
    time.sleep(seconds)
    return x


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_three(x):
    if x == 3:
        kill_myself()
    return x


def exit_at_once():
    os._exit(0)


def leave():
    raise SystemExit(3)


class Outside(BaseException):
    """Not an Exception."""


def raise_outside():
    raise Outside("x")


def interrupt():
    raise KeyboardInterrupt


class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


def raise_two_arguments():
    raise TwoArguments(7, "seven")


def return_lock():
    return threading.Lock()


class Unreadable:
    """Its pickle can't be read."""

    def __reduce__(self):
        return int, ("not a number",)


def return_unreadable():
    return Unreadable()


class Own:
    """The pid of who reads it."""

    def __reduce__(self):
        return os.getpid, ()


class Deadly:
    """Who reads its pickle is killed."""

    def __reduce__(self):
        return os.kill, (Own(), signal.SIGKILL)


class DeathOnItsWay:
    """A large result whose process is killed a while after it was pickled."""

    def __init__(self, size, delay):
        self.size, self.delay = size, delay

    def __reduce__(self):
        threading.Timer(self.delay, kill_myself).start()
        return bytes, (bytes(self.size),)


def large_and_deadly(size, delay):
    return DeathOnItsWay(size, delay)


def count_up(path):
    """How often it was called with the path."""
    with open(path, "a") as file:
        file.write(".")
        return file.tell()


def die_at_first(path, times):
    if count_up(path) <= times:
        kill_myself()
    return "alive"


def fail_to_begin():
    raise RuntimeError("this initializer fails")


def mark(path):
    open(path, "w").close()


def sleep_long(path=None):
    if path is not None:
        mark(path)
    time.sleep(600)


def ignore_sigterm(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_long(path)


def ignore_all(path=None):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass  # the C library's own
    sleep_long(path)


def catch(path, seconds):
    """What interrupts it, by name."""
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
    except Exception as error:
        return type(error).__name__
    return "nothing"


def nested(peer):
    """The result of a pool inside a task."""
    from deaths.peers import PEERS

    with PEERS[peer]().pool(1) as pool:
        kind, value = pool.outcome(pool.submit(identity, 7), 20)
        if kind == "error":
            raise value
        return value


def child_of_a_task(peer, path):
    """Start a process that nothing ends of itself, and tell its pid."""
    import multiprocessing

    from deaths.peers import PEERS

    mp = PEERS[peer].mp() or multiprocessing
    child = mp.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    with open(path + ".part", "w") as file:
        file.write(str(child.pid))
    os.rename(path + ".part", path)
    time.sleep(600)
