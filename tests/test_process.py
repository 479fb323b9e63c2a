"""Process objects under every start method."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

import processes
import procession
from procession import connection, forkserver, process, util


def sleep_long():
    time.sleep(600)


def put_facts(conn, *args, **kwargs):
    current = procession.current_process()
    conn.send(
        {
            "args": args,
            "kwargs": kwargs,
            "name": current.name,
            "pid": os.getpid(),
            "ident": current.ident,
            "daemon": current.daemon,
            "authkey": bytes(current.authkey),
            "identity": current._identity,
            "parent": procession.parent_process().name,
            "parent pid": procession.parent_process().pid,
            "parent alive": procession.parent_process().is_alive(),
            "children": procession.active_children(),
            "stdin": sys.stdin.read(),
        }
    )


def test_the_child_knows_who_it_is(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=put_facts, args=(sender, 1, "two"), kwargs={"three": 3}, name="Ada", daemon=True)
    assert (child.pid, child.exitcode, child.is_alive()) == (None, None, False)
    child.start()
    facts = receiver.recv()
    child.join()
    assert facts["args"] == (1, "two")
    assert facts["kwargs"] == {"three": 3}
    assert facts["name"] == "Ada" == child.name
    assert facts["pid"] == facts["ident"] == child.pid == child.ident
    assert facts["daemon"] is True
    assert facts["authkey"] == procession.current_process().authkey
    assert facts["identity"] == child._identity
    assert (facts["parent"], facts["parent pid"]) == ("MainProcess", os.getpid())
    assert facts["parent alive"]
    assert facts["children"] == []
    assert facts["stdin"] == ""
    assert child.exitcode == 0
    assert not child.is_alive()


def leave_by(how):
    match how:
        case "return":
            return
        case "exit":
            sys.exit()
        case "exit 7":
            sys.exit(7)
        case "exit -1":
            sys.exit(-1)
        case "exit with words":
            sys.exit("these words")
        case "raise":
            raise LookupError("nothing here")
        case "interrupt":
            raise KeyboardInterrupt
        case "_exit 9":
            os._exit(9)
        case "signal":
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize(
    ("how", "code", "printed"),
    [
        ("return", 0, ""),
        ("exit", 0, ""),
        ("exit 7", 7, ""),
        ("exit -1", 255, ""),
        ("exit with words", 1, "these words"),
        ("raise", 1, "LookupError: nothing here"),
        ("interrupt", 1, "KeyboardInterrupt"),
        ("_exit 9", 9, ""),
        ("signal", -signal.SIGUSR1, ""),
    ],
)
def test_exit_codes(ctx, how, code, printed, capfd):
    # A server that is there already prints where its starter printed.
    forkserver._forkserver._stop()
    child = ctx.Process(target=leave_by, args=(how,), name="Leaver")
    child.start()
    child.join()
    assert child.exitcode == code
    error = capfd.readouterr().err
    assert printed in error
    assert ("Process Leaver:" in error) == (how in ("raise", "interrupt"))


def test_the_end_of_a_child_ends_a_wait(ctx):
    child = ctx.Process(target=sleep_long)
    child.start()
    assert child.join(0.05) is None
    assert child.is_alive()
    assert child.exitcode is None
    assert connection.wait([child.sentinel], 0) == []
    child.terminate()
    assert connection.wait([child.sentinel]) == [child.sentinel]
    child.join()
    assert child.exitcode == -signal.SIGTERM
    assert "stopped exitcode=-SIGTERM" in repr(child)


@pytest.mark.parametrize(("method_name", "number"), [("kill", signal.SIGKILL), ("terminate", signal.SIGTERM)])
def test_ending_a_child(ctx, method_name, number):
    child = ctx.Process(target=sleep_long)
    child.start()
    getattr(child, method_name)()
    child.join()
    assert child.exitcode == -number
    # Once more does no harm.
    getattr(child, method_name)()


def report_interrupt(conn):
    try:
        conn.send("ready")
        time.sleep(600)
    except KeyboardInterrupt:
        conn.send("interrupted")


def test_interrupt_raises_in_the_child(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=report_interrupt, args=(sender,))
    child.start()
    assert receiver.recv() == "ready"
    child.interrupt()
    assert receiver.recv() == "interrupted"
    child.join()
    assert child.exitcode == 0


def test_a_stopped_child_lives(ctx):
    child = ctx.Process(target=sleep_long)
    child.start()
    os.kill(child.pid, signal.SIGSTOP)
    assert processes.eventually(lambda: processes.status(child.pid).state == "T")
    assert child.join(0.05) is None
    assert child.is_alive()
    assert child.exitcode is None
    child.kill()
    child.join()


def test_active_children(ctx):
    children = [ctx.Process(target=sleep_long, name=str(number)) for number in range(3)]
    for child in children:
        child.start()
    assert set(children) <= set(procession.active_children())
    for child in children:
        child.kill()
    assert processes.eventually(lambda: not set(children) & set(procession.active_children()))


def test_misuse_raises_at_once(ctx):
    child = ctx.Process(target=sleep_long)
    with pytest.raises(AssertionError, match="start"):
        child.join()
    with pytest.raises(ValueError, match="not started"):
        _ = child.sentinel
    with pytest.raises(AttributeError, match="start"):
        child.terminate()
    child.start()
    with pytest.raises(AssertionError, match="twice"):
        child.start()
    with pytest.raises(AssertionError, match="already started"):
        child.daemon = True
    with pytest.raises(ValueError, match="still running"):
        child.close()
    child.kill()
    child.join()
    child.close()
    child.close()
    for use in (child.start, child.join, child.is_alive, child.kill, lambda: child.pid, lambda: child.sentinel):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "closed" in repr(child)
    with pytest.raises(AssertionError, match="group"):
        ctx.Process(group="a group")
    with pytest.raises(AssertionError, match="string"):
        child.name = 3


def try_what_only_the_parent_may(conn, other):
    for name in ("join", "is_alive", "start"):
        try:
            getattr(other, name)()
        except AssertionError as error:
            conn.send(str(error))
    conn.send(repr(other))


def test_only_the_parent_can_join():
    ctx = procession.get_context("fork")
    receiver, sender = ctx.Pipe(duplex=False)
    first = ctx.Process(target=sleep_long)
    first.start()
    second = ctx.Process(target=try_what_only_the_parent_may, args=(sender, first))
    second.start()
    assert "can only join a child process" in receiver.recv()
    assert "can only test a child process" in receiver.recv()
    assert "twice" in receiver.recv()
    assert "unknown" in receiver.recv()
    second.join()
    first.kill()
    first.join()


def try_to_have_a_child(conn):
    try:
        procession.Process(target=sleep_long).start()
    except AssertionError as error:
        conn.send(str(error))


def test_daemons_have_no_children(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=try_to_have_a_child, args=(sender,), daemon=True)
    child.start()
    assert "daemonic processes are not allowed to have children" in receiver.recv()
    child.join()


class Summer(process.BaseProcess):
    pass


def subclass_of(base):
    class Own(base):
        def __init__(self, conn):
            super().__init__(name="Own")
            self.conn = conn

        def run(self):
            self.conn.send((type(self).__name__, self.name))

    return Own


ForkOwn = subclass_of(procession.get_context("fork").Process)
SpawnOwn = subclass_of(procession.get_context("spawn").Process)
ForkserverOwn = subclass_of(procession.get_context("forkserver").Process)
for _class in (ForkOwn, SpawnOwn, ForkserverOwn):
    _class.__qualname__ = {ForkOwn: "ForkOwn", SpawnOwn: "SpawnOwn"}.get(_class, "ForkserverOwn")


@pytest.mark.parametrize("own", [ForkOwn, SpawnOwn, ForkserverOwn])
def test_run_of_a_subclass_is_what_the_child_does(own):
    receiver, sender = procession.Pipe(duplex=False)
    child = own(sender)
    child.start()
    assert receiver.recv() == ("Own", "Own")
    child.join()
    assert child.exitcode == 0


def test_a_base_process_has_no_start_method():
    with pytest.raises(NotImplementedError, match="context"):
        Summer().start()


def test_threads_join_one_process(ctx):
    """Standard package: one thread gets the status, another finds no such child, and may believe that it is alive."""
    child = ctx.Process(target=leave_by, args=("exit 7",))
    child.start()
    codes = []

    def join():
        child._popen.wait()
        codes.append(child.exitcode)

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [7] * 8


def test_a_child_reaped_by_somebody_else_has_ended():
    child = procession.get_context("fork").Process(target=leave_by, args=("exit 7",))
    child.start()
    assert os.waitpid(child.pid, 0)[1] == 7 << 8
    child.join()
    assert not child.is_alive()
    assert child.exitcode == 255


def test_the_target_is_let_go(ctx):
    class Held:
        def __reduce__(self):
            return print, ()

        def __call__(self):
            pass

    held = Held()
    gone = weakref.ref(held)
    child = ctx.Process(target=held)
    del held
    child.start()
    child.join()
    gc.collect()
    assert gone() is None


def test_neither_descriptor_nor_zombie_is_left(ctx, nothing_left_behind):
    for _ in range(20):
        child = ctx.Process(target=leave_by, args=("return",))
        child.start()
        child.join()


def test_a_child_that_nobody_joins_is_reaped_by_the_next_start(ctx):
    forgotten = ctx.Process(target=leave_by, args=("return",))
    forgotten.start()
    assert connection.wait([forgotten.sentinel])
    child = ctx.Process(target=leave_by, args=("return",))
    child.start()
    child.join()
    assert forgotten not in process._children


def test_sentinels_can_be_selected(ctx):
    import selectors

    child = ctx.Process(target=sleep_long)
    child.start()
    with selectors.DefaultSelector() as selector:
        selector.register(child.sentinel, selectors.EVENT_READ)
        assert selector.select(0.01) == []
        child.kill()
        assert selector.select()
    child.join()


def open_descriptors(conn):
    conn.send(len(os.listdir("/proc/self/fd")))


def test_later_children_have_no_more_descriptors_than_the_first(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    others, counts = [], []
    for _ in range(4):
        child = ctx.Process(target=open_descriptors, args=(sender,))
        child.start()
        counts.append(receiver.recv())
        child.join()
        others.append(ctx.Process(target=sleep_long, daemon=True))
        others[-1].start()
    for other in others:
        other.kill()
        other.join()
    # A forked child has the sentinels of those that its parent has started.
    grown = 1 if ctx.get_start_method() == "fork" else 0
    assert all(after - before <= grown for before, after in itertools.pairwise(counts)), counts


def test_an_unpicklable_target_fails_in_the_parent():
    for method in ("spawn", "forkserver"):
        child = procession.get_context(method).Process(target=lambda: None)
        with pytest.raises(Exception, match=r"lambda|local object"):
            child.start()
        assert child.exitcode is None


def test_a_missing_interpreter_fails_in_the_parent():
    from procession import spawn

    before = spawn.get_executable()
    procession.set_executable("/nowhere/python")
    try:
        with pytest.raises(FileNotFoundError, match="/nowhere/python"):
            procession.get_context("spawn").Process(target=sleep_long).start()
    finally:
        spawn.set_executable(before)


def count_bytes(conn, data):
    conn.send((len(data), data[:1] == data[-1:] == b"x"))


def test_large_arguments(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=count_bytes, args=(sender, b"x" * 50_000_000))
    child.start()
    assert receiver.recv() == (50_000_000, True)
    child.join()


def end_at_once():
    os._exit(0)


def test_large_arguments_for_a_child_that_does_not_read_them():
    class Killer:
        def __reduce__(self):
            return end_at_once, ()

    for method in ("spawn", "forkserver"):
        child = procession.get_context(method).Process(target=leave_by, args=(Killer(), b"x" * 5_000_000))
        child.start()
        child.join()
        assert child.exitcode == 0


def test_a_bare_fork_forgets_the_children():
    child = procession.get_context("fork").Process(target=sleep_long, daemon=True)
    child.start()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = procession.get_context("spawn").Process(target=leave_by, args=("exit 7",))
            mine = procession.active_children() == []
            own.start()
            own.join()
            code = 0 if mine and own.exitcode == 7 else 2
            # What the interpreter does at the end of such a child.
            util._exit_function()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert child.is_alive()
    child.kill()
    child.join()


def test_finalizers_of_the_parent_do_not_run_in_a_child(ctx, tmp_path):
    trace = tmp_path / "trace"
    finalizer = util.Finalize(None, trace.write_text, args=("ran",), exitpriority=5)
    child = ctx.Process(target=leave_by, args=("return",))
    child.start()
    child.join()
    assert not trace.exists()
    assert finalizer.still_active()
    finalizer.cancel()


def register_at_exit(path):
    import atexit

    atexit.register(note, path, "atexit")
    util.Finalize(None, note, args=(path, "finalizer"), exitpriority=3)
    note(path, "run")


def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def test_what_a_child_registers_for_its_exit_runs(ctx, tmp_path):
    child = ctx.Process(target=register_at_exit, args=(str(tmp_path / "notes"),))
    child.start()
    child.join()
    assert (tmp_path / "notes").read_text().split() == ["run", "atexit", "finalizer"]


def end_of_thread(path):
    def late():
        time.sleep(0.1)
        note(path, "thread")

    threading.Thread(target=late).start()


def test_a_child_waits_for_its_threads(ctx, tmp_path):
    child = ctx.Process(target=end_of_thread, args=(str(tmp_path / "notes"),))
    child.start()
    child.join()
    assert (tmp_path / "notes").read_text() == "thread\n"


def test_output_of_the_parent_is_not_printed_twice(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import procession, sys
def child():
    sys.stdout.write("child\\n")
if __name__ == "__main__":
    sys.stdout.write("parent\\n")
    p = procession.get_context({method!r}).Process(target=child)
    p.start()
    p.join()
"""
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50)
    assert (result.stdout, result.stderr) == ("parent\nchild\n", "")


def test_atexit_order_and_daemons(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import procession, sys, time, atexit
def nap(seconds):
    time.sleep(seconds)
    print("ordinary child ended", flush=True)
if __name__ == "__main__":
    atexit.register(print, "last", flush=True)
    ctx = procession.get_context({method!r})
    daemon = ctx.Process(target=nap, args=(600,), daemon=True)
    daemon.start()
    ctx.Process(target=nap, args=(0.3,)).start()
    print("main ended", flush=True)
"""
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50)
    # What the package does at exit was registered by the first start, so it comes before what the program did earlier.
    assert result.stdout.splitlines() == ["main ended", "ordinary child ended", "last"]
    assert result.stderr == ""
    assert result.returncode == 0


def test_keys_are_not_pickled_by_accident():
    import pickle

    with pytest.raises(TypeError, match="security"):
        pickle.dumps(procession.current_process().authkey)


def test_the_parent_is_not_confused_by_the_end_of_its_sentinel_descriptor():
    # A program that closes all descriptors, as one that makes itself a daemon does, can still start processes.
    program = """
import os, procession
def nothing(): pass
ctx = procession.get_context("fork")
p = ctx.Process(target=nothing); p.start(); p.join()
os.closerange(3, 256)
p = ctx.Process(target=nothing); p.start(); p.join()
print(p.exitcode)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (result.stdout, result.stderr) == ("0\n", "")
