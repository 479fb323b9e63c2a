"""Fixtures for all tests.

Each test has a watchdog (pytest-timeout, and faulthandler behind it; see pyproject.toml), and none may leave a process
behind. A test that is about what is left asks for `nothing_left_behind` as well.

With `--sample`, which is for further versions of Python, each test that is there for each start method is run under one
of them, another on each version, and those that are marked `once` are not run.
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

import processes
import procession

METHODS = ["fork", "spawn", "forkserver"]

# Children inherit it: faulthandler prints their tracebacks when `processes.end` aborts them.
os.environ["PYTHONFAULTHANDLER"] = "1"
# Spawned children find the tests' own modules.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))

# What a shell starts in the background ignores Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--sample", action="store_true", help="run each test under one start method, and leave out some")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--sample"):
        return
    methods = defaultdict(dict)
    for item in items:
        if method := _method_of(item):
            methods[_test_of(item)][method] = None
    kept, left_out = [], []
    for item in items:
        method, there = _method_of(item), list(methods[_test_of(item)])
        place = zlib.crc32(repr(_test_of(item)).encode()) + sys.version_info[1]
        wanted = method is None or method == there[place % len(there)]
        (kept if wanted and not item.get_closest_marker("once") else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def _method_of(item):
    return item.callspec.params.get("method") if hasattr(item, "callspec") else None


def _test_of(item):
    return item.path.name, item.originalname


@pytest.fixture(params=METHODS)
def method(request):
    """Each start method in turn."""
    return request.param


@pytest.fixture
def ctx(method):
    """The context of each start method in turn."""
    return procession.get_context(method)


@pytest.fixture(autouse=True)
def no_stray_process():
    """A process that outlives its test fails the test, prints its traceback and is killed."""
    yield
    gc.collect()
    if processes.strays():
        # Reaps those that have just ended and that nobody has joined.
        procession.active_children()
    processes.eventually(lambda: not processes.strays(), timeout=5)
    left = processes.strays()
    if left:
        processes.end(left)
        pytest.fail("left behind: " + ", ".join(map(str, left.values())))


def idle():
    pass


def shared_files():
    # The C library's named semaphores and folders are other programs'.
    with os.scandir("/dev/shm") as entries:
        return {entry.name for entry in entries if entry.is_file() and not entry.name.startswith("sem.")}


@pytest.fixture
def nothing_left_behind(request):
    """After the test no child, zombie, descriptor or file in /dev/shm is there that was not there before."""
    # What the first child of a program brings with it (life pipe, fork server) stays until its end.
    used = request.getfixturevalue("method") if "method" in request.fixturenames else "fork"
    first = procession.get_context(used).Process(target=idle)
    first.start()
    first.join()
    first.close()
    gc.collect()
    open_before = processes.descriptors()
    files_before = shared_files()
    yield
    gc.collect()
    files_after = shared_files() - files_before

    def left():
        gc.collect()
        # Where locks are, when the segment for them is full, another one is begun.
        another = Counter({"/memfd:procession-sync (deleted)": 1})
        return processes.strays(), processes.descriptors() - open_before - another

    def files_left():
        return files_after & shared_files()

    processes.eventually(lambda: not any(left()), timeout=5)
    strays, descriptors = left()
    # Other programs may have files there: the same tests on another version of Python, whose files go with each test.
    processes.eventually(lambda: not files_left(), timeout=30)
    files = files_left()
    assert not strays
    assert not descriptors
    assert not files


@dataclass
class Program:
    """A Python program that runs in a session of its own, so that whatever it started can be found."""

    process: subprocess.Popen

    @property
    def pid(self):
        return self.process.pid

    @property
    def exitcode(self):
        return self.process.returncode

    def running(self):
        """Those of its processes that are alive, itself included."""
        return processes.of_session(self.process.pid)

    def readline(self):
        """The next line that it prints (the test's watchdog ends the wait)."""
        return self.process.stdout.readline().rstrip("\n")

    def finish(self, timeout=50):
        """Wait for the end; returns what it printed to stdout and stderr."""
        try:
            return self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for pid in self.running():
                os.kill(pid, signal.SIGABRT)
            out, err = self.process.communicate()
            pytest.fail(f"hung\n{out}\n{err}")

    def close(self):
        """Kill what still runs; returns it."""
        left = self.running()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        return left


@pytest.fixture
def program(tmp_path):
    """Run a program: `program(source, *arguments, options=("-m", "procession"))` returns a `Program`.

    The source may be indented; it is stored as program.py. A process of it that is alive after the test fails the test.
    """
    started = []

    def start(source, *arguments, options=(), **popen):
        path = tmp_path / f"program{len(started) or ''}.py"
        path.write_text(textwrap.dedent(source))
        command = [sys.executable, *options, str(path), *map(str, arguments)]
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        started.append(Program(subprocess.Popen(command, text=True, start_new_session=True, **popen)))
        return started[-1]

    yield start
    left = {}
    for one in started:
        processes.eventually(lambda one=one: not one.running(), timeout=5)
        left |= one.close()
    assert not left, f"left behind: {left}"
