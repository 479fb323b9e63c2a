"""The process that unlinks names whose users are gone: when there is one, what it does, and that it is there again."""

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest

import processes
from procession import resource_tracker
from procession.resource_tracker import ReentrantCallError, ResourceTracker
from procession.shared_memory import SharedMemory

GIVEN_PACKAGE = ("-m", "procession")


@pytest.fixture
def tracker():
    """A tracker of its own."""
    made = ResourceTracker()
    yield made
    made._stop()


def lines_of(err):
    return [line for line in err.splitlines() if "resource_tracker" in line or "made by" in line]


def trackers(program):
    """The tracker processes of a running program."""
    found = []
    for pid in program.running():
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                command = file.read()
        except OSError:
            continue
        if "resource_tracker" in command:
            found.append(pid)
    return found


PROGRAM = """
import os, sys
import multiprocessing
from multiprocessing.shared_memory import SharedMemory

def use(lock, value, array, queue, names):
    with lock:
        value.value += 1
    array[0] = 1
    queue.put(1)

def make(lock, value, array, queue, names):
    made = SharedMemory(create=True, size=10)
    made.buf[0] = 7
    names.put(made.name)
    made.close()

def child(ctx, target, *args):
    process = ctx.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0

def pause():
    print("now", flush=True)
    sys.stdin.readline()

if __name__ == "__main__":
    ctx = multiprocessing.get_context(sys.argv[1])
    shared = ctx.Lock(), ctx.Value("i"), ctx.Array("i", 3), ctx.Queue(), ctx.SimpleQueue()
    child(ctx, use, *shared)
    with ctx.Pool(1) as pool:
        pool.map(abs, range(3))
    pause()
    child(ctx, make, *shared)
    # It is still there: the one that made it is of our family.
    memory = SharedMemory(shared[-1].get())
    assert memory.buf[0] == 7
    pause()
    memory.close()
    memory.unlink()
    own = SharedMemory(create=True, size=10)
    own.close()
    own.unlink()
    pause()
"""


def test_it_is_started_for_names_only_and_once_in_a_family(program, method):
    one = program(PROGRAM, method, options=GIVEN_PACKAGE, stdin=-1)
    assert one.readline() == "now"
    assert not trackers(one)
    first = None
    for _ in range(2):
        one.process.stdin.write("\n")
        one.process.stdin.flush()
        assert one.readline() == "now"
        # For a moment the new process is still called as the one that started it.
        assert processes.eventually(lambda: trackers(one))
        found = trackers(one)
        assert len(found) == 1
        assert first in (None, found)
        first = found
    assert one.finish() == ("", "")
    assert one.exitcode == 0


def test_it_is_started_once_by_many_at_a_time(program):
    one = program(
        """
        import sys
        import procession
        from procession import resource_tracker
        from procession.shared_memory import SharedMemory

        def make(barrier, done):
            barrier.wait()
            made = SharedMemory(create=True, size=1)
            done.wait()
            made.close()
            made.unlink()

        if __name__ == "__main__":
            ctx = procession.get_context("fork")
            barrier, done = ctx.Barrier(9), ctx.Event()
            children = [ctx.Process(target=make, args=(barrier, done)) for _ in range(8)]
            for child in children:
                child.start()
            barrier.wait()
            print("now", flush=True)
            sys.stdin.readline()
            done.set()
            for child in children:
                child.join()
        """,
        options=GIVEN_PACKAGE,
        stdin=-1,
    )
    assert one.readline() == "now"
    assert processes.eventually(lambda: trackers(one))
    assert len(trackers(one)) == 1
    assert one.finish() == ("", "")


LEAK = """
import os, signal, sys
from procession.shared_memory import SharedMemory

def made(size):
    return SharedMemory(create=True, size=size)

memories = [made(4096), made(10000)]
print(*(memory.name for memory in memories), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["forgotten", "killed"])
def test_one_warning_says_what_leaked(program, end):
    one = program(LEAK, end, options=())
    out, err = one.finish()
    names = out.split()
    warned = lines_of(err)
    assert len(warned) == 3
    assert (
        "resource_tracker: There appear to be 2 leaked shared_memory objects to clean up at shutdown: {'/" in warned[0]
    )
    for name, size, line in zip(
        names, (4096, 10000), sorted(warned[1:], key=lambda line: "10000" in line), strict=True
    ):
        assert line.strip() == f"'/{name}': {size} bytes, made by process {one.pid} at {one.process.args[-2]}:6"
    assert not any(os.path.exists(f"/dev/shm/{name}") for name in names)


def test_the_whole_family_killed(program):
    one = program(
        """
        import os, sys, time
        import procession
        from procession.shared_memory import SharedMemory

        def make(queue):
            queue.put(SharedMemory(create=True, size=10).name)
            time.sleep(600)

        if __name__ == "__main__":
            own = SharedMemory(create=True, size=10)
            names = [own.name]
            for method in procession.get_all_start_methods():
                ctx = procession.get_context(method)
                queue = ctx.SimpleQueue()
                ctx.Process(target=make, args=(queue,)).start()
                names.append(queue.get())
            print(*names, flush=True)
            time.sleep(600)
        """,
        options=(),
    )
    names = one.readline().split()
    assert len(names) == 4
    assert all(os.path.exists(f"/dev/shm/{name}") for name in names)
    assert processes.eventually(lambda: trackers(one))
    (tracker,) = trackers(one)
    victims = [pid for pid in one.running() if pid != tracker]
    for pid in (victims[0], *victims[1:]):
        os.kill(pid, signal.SIGKILL)
    _, err = one.finish()
    assert "There appear to be 4 leaked shared_memory objects" in err
    assert processes.eventually(lambda: not any(os.path.exists(f"/dev/shm/{name}") for name in names))


def test_those_who_attach_leave_it_alone(program):
    memory = SharedMemory(create=True, size=10)
    try:
        for end in ("", "; import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
            source = f"import sys; from procession.shared_memory import SharedMemory; SharedMemory(sys.argv[1]){end}"
            one = program(source, memory.name, options=())
            assert one.finish() == ("", "")
            SharedMemory(memory.name).close()
        # Unless they ask for it.
        source = "import sys; from procession.shared_memory import SharedMemory; SharedMemory(sys.argv[1], track=True)"
        _, err = program(source, memory.name, options=()).finish()
        assert "1 leaked" in err
        assert not os.path.exists(f"/dev/shm/{memory.name}")
    finally:
        memory.close()
        with pytest.raises(FileNotFoundError):
            memory.unlink()


def test_register_is_looked_up_in_the_module(monkeypatch):
    called = []
    monkeypatch.setattr(resource_tracker, "register", lambda name, rtype: called.append((name, rtype)))
    made = SharedMemory(create=True, size=1)
    attached = SharedMemory(made.name)
    assert called == [(made._name, "shared_memory")]
    monkeypatch.undo()
    attached.close()
    made.close()
    made.unlink()


def test_tracker_killed(tracker, recwarn):
    """Standard package: the same."""
    tracker.register("first", "shared_memory")
    read, written = os.pipe()
    os.close(read)
    for signum, dies in ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGKILL, True)):
        pid = tracker._pid
        os.kill(pid, signum)
        if dies:
            assert processes.eventually(lambda pid=pid: not processes.is_running(pid))
        else:
            assert tracker._check_alive()
        recwarn.clear()
        tracker.register("second", "shared_memory")
        assert ("process died unexpectedly" in "".join(str(w.message) for w in recwarn)) == dies
        assert tracker._check_alive()
        assert (tracker._pid != pid) == dies
        # Reaped.
        assert not dies or processes.status(pid) is None
    tracker.unregister("first", "shared_memory")
    tracker.unregister("second", "shared_memory")
    tracker._stop()
    assert tracker._exitcode == 0
    os.close(written)


def test_one_that_takes_the_place_of_another_knows_what_was_registered(program):
    one = program(
        """
        import os, signal
        from procession import resource_tracker
        from procession.shared_memory import SharedMemory

        made = [SharedMemory(create=True, size=size) for size in (10, 20, 30)]
        made[1].unlink()
        pid = resource_tracker._resource_tracker._pid
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        resource_tracker.ensure_running()
        print(made[0].name, made[2].name)
        """,
        options=(),
    )
    out, err = one.finish()
    assert "process died unexpectedly" in err
    assert "There appear to be 2 leaked" in err
    assert not any(os.path.exists(f"/dev/shm/{name}") for name in out.split())


@pytest.mark.parametrize("simple", [True, False])
def test_names_in_both_formats(tracker, simple, capfd):
    tracker._use_simple_format = simple
    names = ["plain", "with:colon", "with\nline", "größer", "\udcff", "a b'c\"d", "x" * 255]
    kind = "dummy" if sys.version_info >= (3, 13) else "shared_memory"
    for name in names:
        tracker.register(name, kind)
    for name in names:
        tracker.unregister(name, kind)
        # Once more does no harm.
        tracker.unregister(name, kind)
    tracker._stop()
    assert tracker._exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the kind 'dummy' is of Python 3.13")
def test_exit_codes(tracker, capfd):
    tracker.register("kept", "dummy")
    tracker._stop()
    assert tracker._exitcode == 1
    tracker.register("absent", "shared_memory")
    tracker._stop()
    assert tracker._exitcode == 2
    tracker._send("REGISTER", "name", "no_such_kind")
    tracker._stop()
    assert tracker._exitcode == 3
    assert "unknown resource type 'no_such_kind'" in capfd.readouterr().err


def test_one_that_nobody_needed_has_found_nothing_leaked(program):
    one = program(
        """
        import procession
        from procession.resource_tracker import _resource_tracker

        if __name__ == "__main__":
            _resource_tracker._stop()
            print(_resource_tracker._exitcode)
            child = procession.get_context("spawn").Process()
            child.start()
            child.join()
            _resource_tracker._stop()
            print(_resource_tracker._pid, _resource_tracker._exitcode)
        """,
        options=(),
    )
    assert one.finish() == ("None\nNone 0\n", "")


def test_lines_are_decoded_as_they_were_written(tracker):
    for cmd, name in (("REGISTER", "/psm_1"), ("UNREGISTER", "a:b\n"), ("REGISTER", "\udc80é")):
        assert resource_tracker._decode_message(tracker._line(cmd, name, "shared_memory")) == (
            cmd,
            "shared_memory",
            name,
        )
        assert len(tracker._line(cmd, "x" * 256, "shared_memory")) <= 512
    # However long the file's name is, it is cut, and what is cut can be read.
    here = {"tracker": tracker, "__name__": "elsewhere"}
    exec(compile("line = tracker._line('REGISTER', 'name', 'shared_memory')", "ü\n" * 400 + "end.py", "exec"), here)
    assert len(here["line"]) <= 512
    assert resource_tracker._fields_of(here["line"])[3].endswith("ü?end.py:1")
    assert resource_tracker._decode_message(b"PROBE:0:noop\n") == ("PROBE", "noop", "0")
    for wrong in (
        b"{}\n",
        b"{\n",
        b'{"cmd":"PROBE","rtype":"noop","base64_name":"?"}\n',
        b'{"cmd":1,"rtype":"noop"}\n',
    ):
        with pytest.raises(ValueError, match="malformed resource_tracker"):
            resource_tracker._decode_message(wrong)
    for too_long in ("x" * 257, "é" * 130):
        with pytest.raises(ValueError, match="too long"):
            tracker.register(too_long, "shared_memory")
    assert tracker._pid is None


def test_what_a_finalizer_wants_during_a_call_is_written_after_it(tracker):
    written = []
    write = tracker._write

    def write_and_call_again(msg):
        write(msg)
        if not written:
            written.append(msg)
            with pytest.raises(ReentrantCallError):
                tracker.ensure_running()
            tracker.unregister("one", "shared_memory")
        else:
            written.append(msg)

    tracker._write = write_and_call_again
    tracker.register("one", "shared_memory")
    assert [resource_tracker._decode_message(line)[0] for line in written] == ["REGISTER", "UNREGISTER"]
    del tracker._write
    tracker._stop()
    assert tracker._exitcode == 0


def test_a_derived_class_with_a_helper_of_its_own(tmp_path):
    """As those of other packages were: with `_launch` replaced, and lines in the simple format."""

    class Own(ResourceTracker):
        def _launch(self):
            reader, self._fd = os.pipe()
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._fd)
                with open(reader) as lines, open(tmp_path / "lines", "a") as copy:
                    copy.writelines(lines)
                os._exit(5)
            os.close(reader)

        def maybe_unlink(self, name, rtype):
            self._send("MAYBE_UNLINK", name, rtype)

    with warnings.catch_warnings():
        # Forked with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        own = Own()
        own.register("a", "folder")
        own.maybe_unlink("a", "folder")
        own._stop()
    assert own._exitcode == 5
    assert (tmp_path / "lines").read_text() == "REGISTER:a:folder\nMAYBE_UNLINK:a:folder\n"


def test_many_trackers_leave_nothing(nothing_left_behind):
    for _ in range(5):
        made = ResourceTracker()
        made.ensure_running()
        pid = made._pid
        del made
        gc.collect()
        assert processes.status(pid) is None


def test_threads_register_at_once(tracker):
    def work(number):
        for index in range(50):
            tracker.register(f"{number}.{index}", "shared_memory")
            tracker.unregister(f"{number}.{index}", "shared_memory")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not tracker._registered
    tracker._stop()
    assert tracker._exitcode == 0


WITHOUT_RIGHTS = """
import sys
import procession
from procession import resource_tracker
from procession.shared_memory import SharedMemory

def refuse():
    raise PermissionError(13, "another user's")

def use():
    # As after setuid(): the descriptor is there, its file can't be opened any more.
    resource_tracker._resource_tracker._claim = refuse
    made = SharedMemory(create=True, size=10)
    made.close()
    made.unlink()

if __name__ == "__main__":
    first = SharedMemory(create=True, size=10) if sys.argv[1] == "running" else None
    for method in ("fork", "spawn", "forkserver"):
        child = procession.get_context(method).Process(target=use)
        child.start()
        child.join()
        print(child.exitcode)
    use()
    if first:
        first.close()
        first.unlink()
"""


@pytest.mark.parametrize("helper", ["running", "needed"])
def test_a_process_that_has_given_up_its_rights(tmp_path, helper):
    script = tmp_path / "without_rights.py"
    script.write_text(WITHOUT_RIGHTS)
    result = subprocess.run([sys.executable, script, helper], capture_output=True, text=True, timeout=50)
    assert (result.stdout, result.stderr, result.returncode) == ("0\n0\n0\n", "", 0)
