"""Contexts, start methods, and how a child finds its main module again."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

import processes
import procession
from procession import context, forkserver, process, spawn


def test_contexts_have_their_names():
    for name, prefix in [("fork", "Fork"), ("spawn", "Spawn"), ("forkserver", "ForkServer")]:
        ctx = procession.get_context(name)
        assert ctx is procession.get_context(name)
        assert ctx.get_start_method() == name
        assert ctx.get_context() is ctx
        assert type(ctx).__name__ == f"{prefix}Context"
        assert ctx.Process.__name__ == f"{prefix}Process"
        assert ctx.Process._start_method == name


def test_wrong_methods_are_refused_with_the_right_ones():
    for wrong in ("threads", "", 3, ["fork"]):
        with pytest.raises(ValueError, match="fork, spawn, forkserver"):
            procession.get_context(wrong)
    with pytest.raises(ValueError, match="concrete context"):
        procession.get_context("spawn").set_start_method("fork")


def run(source, *options, **env):
    return subprocess.run(
        [sys.executable, *options, "-c", source], capture_output=True, text=True, timeout=50, env={**os.environ, **env}
    )


def test_the_method_is_set_once():
    result = run(
        """
import procession as mp
print(mp.get_start_method(allow_none=True), *mp.get_all_start_methods())
mp.Lock
mp.set_start_method("spawn")
print(mp.get_start_method())
try:
    mp.set_start_method("fork")
except RuntimeError as error:
    print(str(error).partition(" (")[0])
mp.set_start_method("forkserver", force=True)
print(mp.get_start_method())
mp.set_start_method(None, force=True)
print(mp.get_start_method(allow_none=True))
"""
    )
    default = ["fork", "spawn", "forkserver"] if sys.version_info < (3, 14) else ["forkserver", "fork", "spawn"]
    assert result.stdout.splitlines() == [
        " ".join(["None", *default]),
        "spawn",
        "context has already been set",
        "forkserver",
        "None",
    ]


def test_the_package_offers_what_the_default_context_does():
    for name in procession.__all__:
        assert getattr(procession, name) is not None
    assert not [name for name in procession.__all__ if name.startswith("_")]
    assert {"Process", "Queue", "Lock", "Pool", "get_context", "TimeoutError", "cpu_count"} <= set(procession.__all__)
    assert procession.cpu_count() == os.cpu_count()
    assert procession.freeze_support() is None


def test_importing_the_package_imports_little():
    result = run("import procession, sys; print(*sys.modules)")
    heavy = {"socket", "pickle", "re", "logging", "subprocess", "signal", "tempfile", "ctypes"}
    assert not heavy & set(result.stdout.split())


def nested(conn, methods):
    if not methods:
        conn.send([procession.current_process()._identity, procession.get_start_method()])
        return
    child = procession.get_context(methods[0]).Process(target=nested, args=(conn, methods[1:]))
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(child.exitcode)


@pytest.mark.parametrize("inner", ["fork", "spawn", "forkserver"])
def test_children_have_children_of_any_method(ctx, inner):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=nested, args=(sender, [inner, inner]))
    child.start()
    child.join()
    assert child.exitcode == 0
    identity, method = receiver.recv()
    assert identity == (*child._identity, 1, 1)
    assert method == inner


MAIN = """
import sys, {module} as mp
GLOBAL = ["set on import"]
class Thing:
    def __init__(self, n): self.n = n
def child(thing, conn):
    conn.send((thing.n, __name__, sys.argv[1:], GLOBAL, sys.modules["__main__"] is sys.modules[__name__]))
if __name__ == "__main__":
    mp.set_start_method({method!r})
    r, w = mp.Pipe(duplex=False)
    p = mp.Process(target=child, args=(Thing(4), w))
    p.start()
    w.close()
    print(r.recv())
    p.join()
    print(p.exitcode)
"""


def main_module(folder, method, module="procession"):
    path = folder / "some_program.py"
    path.write_text(MAIN.format(method=method, module=module))
    return path


@pytest.mark.parametrize("way", ["script", "module", "relative", "folder", "archive", "package", "compiled"])
def test_the_main_module_is_found_again(way, method, tmp_path):
    path = main_module(tmp_path, method)
    name = "__main__" if method == "fork" else "__mp_main__"
    match way:
        case "script":
            command = [path]
        case "relative":
            command = ["some_program.py"]
        case "module":
            command = ["-m", "some_program"]
        case "folder":
            # A file named __main__ is run as what its path says.
            path.rename(tmp_path / "__main__.py")
            command = [tmp_path]
        case "archive":
            with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
                archive.write(path, "__main__.py")
                archive.write(path, "some_program.py")
            command = [tmp_path / "program.zip"]
        case "package":
            (tmp_path / "package").mkdir()
            (tmp_path / "package" / "__init__.py").touch()
            path.rename(tmp_path / "package" / "entry.py")
            command = ["-m", "package.entry"]
        case "compiled":
            import py_compile

            compiled = tmp_path / "some_program.pyc"
            py_compile.compile(path, compiled)
            path.unlink()
            command = [compiled]
    result = subprocess.run(
        [sys.executable, *command, "word"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    if way in ("folder", "archive") and method != "fork":
        # As in the standard package: their __main__ has no guard, so it isn't run again and its functions not found.
        assert "Error" in result.stderr
        return
    assert result.stderr == ""
    assert result.stdout.splitlines() == [str((4, name, ["word"], ["set on import"], True)), "0"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_guard_is_explained(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        f"import procession\nctx = procession.get_context({method!r})\nprint('once')\n"
        "p = ctx.Process(target=print)\np.start()\np.join()\nprint(p.exitcode)"
    )
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=50)
    assert result.stderr.count("RuntimeError:") == 1
    assert "if __name__ == '__main__':" in result.stderr
    assert result.stdout.splitlines()[-1] == "1"


def report(conn):
    conn.send((os.getppid(), sys.flags.optimize, "json" in sys.modules))


def test_flags_of_the_interpreter_are_handed_on(tmp_path, method):
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import procession as mp, sys
def child(conn):
    conn.send((sys.flags.optimize, sys.flags.bytes_warning, sys.warnoptions))
if __name__ == "__main__":
    ctx = mp.get_context({method!r})
    r, w = ctx.Pipe(duplex=False)
    p = ctx.Process(target=child, args=(w,))
    p.start()
    print(*r.recv())
    p.join()
"""
    )
    options = ["-O", "-b", "-W", "ignore::ImportWarning"]
    result = subprocess.run([sys.executable, *options, path], capture_output=True, text=True, timeout=50)
    assert result.stdout.startswith("1 1 ['ignore::ImportWarning'")


@pytest.fixture
def server():
    """The fork server, started anew."""
    forkserver._forkserver._stop()
    forkserver.ensure_running()
    yield forkserver._forkserver
    forkserver._forkserver._stop()


def test_the_server_imports_the_main_module_once(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        """
import os, sys, procession as mp
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
def child(): pass
if __name__ == "__main__":
    mp.set_start_method("forkserver")
    for _ in range(3):
        p = mp.Process(target=child)
        p.start()
        p.join()
        assert p.exitcode == 0
    from procession.forkserver import _forkserver
    print(os.getpid(), _forkserver._forkserver_pid)
"""
    )
    notes = tmp_path / "notes"
    result = subprocess.run([sys.executable, path, notes], capture_output=True, text=True, timeout=50)
    assert result.stderr == ""
    assert notes.read_text().split() == result.stdout.split()


def test_the_server_preloads_what_is_named(server):
    server._stop()
    procession.set_forkserver_preload(["__main__", "json", "no_such_module_at_all"])
    try:
        receiver, sender = procession.Pipe(duplex=False)
        child = procession.get_context("forkserver").Process(target=report, args=(sender,))
        child.start()
        parent, _, loaded = receiver.recv()
        child.join()
        assert parent == server._forkserver_pid
        assert loaded
    finally:
        procession.set_forkserver_preload(["__main__"])
    with pytest.raises(TypeError, match="list of strings"):
        procession.set_forkserver_preload([1])


PRELOADS = """
    import sys
    import procession as mp

    def child():
        pass

    if __name__ == "__main__":
        mp.set_start_method("forkserver")
        mp.set_forkserver_preload(["no_such_module_at_all"], on_error=sys.argv[1])
        process = mp.Process(target=child)
        try:
            process.start()
            process.join()
            print(process.exitcode)
        except EOFError:
            print("EOFError")
"""


@pytest.mark.parametrize(
    ("on_error", "outcome", "told"),
    [
        ("ignore", "0", ""),
        ("warn", "0", "ImportWarning: Failed to preload"),
        ("fail", "EOFError", "ModuleNotFoundError"),
    ],
)
def test_what_becomes_of_a_preload_that_fails(program, on_error, outcome, told):
    out, err = program(PRELOADS, on_error).finish()
    assert out.strip() == outcome
    assert told in err
    assert ("no_such_module_at_all" in err) == bool(told)


def test_there_are_three_things_to_do_about_preloads_that_fail():
    with pytest.raises(ValueError, match="on_error must be 'ignore', 'warn', or 'fail', not 'panic'"):
        procession.set_forkserver_preload(["json"], on_error="panic")


def say_whether_preloaded(sender):
    sender.send("only_on_our_path" in sys.modules)


def test_the_server_finds_what_it_preloads_where_its_starter_does(server, tmp_path, monkeypatch):
    (tmp_path / "only_on_our_path.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    server._stop()
    procession.set_forkserver_preload(["only_on_our_path"])
    try:
        receiver, sender = procession.Pipe(duplex=False)
        child = procession.get_context("forkserver").Process(target=say_whether_preloaded, args=(sender,))
        child.start()
        assert receiver.recv()
        child.join()
    finally:
        procession.set_forkserver_preload(["__main__"])
        server._stop()


def test_a_process_of_another_context_leaves_the_start_method_open(program):
    one = program(
        """
        import procession
        if __name__ == "__main__":
            for method in procession.get_all_start_methods():
                child = procession.get_context(method).Process()
                child.start()
                child.join()
                print(child.exitcode, procession.get_start_method(allow_none=True))
            procession.set_start_method("spawn")
        """,
        options=(),
    )
    assert one.finish() == ("0 None\n" * 3, "")


def sleep_long():
    time.sleep(600)


def test_fork_server_killed(server):
    """Standard package: the same."""
    ctx = procession.get_context("forkserver")
    child = ctx.Process(target=sleep_long)
    child.start()
    first = server._forkserver_pid
    os.kill(first, signal.SIGKILL)
    assert processes.eventually(lambda: not processes.is_running(first))
    assert child.is_alive()
    second = ctx.Process(target=print)
    second.start()
    second.join()
    assert second.exitcode == 0
    assert server._forkserver_pid != first
    child.kill()
    child.join()
    # Who could have told has gone.
    assert child.exitcode == 255


def test_the_server_ignores_ctrl_c(server):
    os.kill(server._forkserver_pid, signal.SIGINT)
    child = procession.get_context("forkserver").Process(target=print)
    before = server._forkserver_pid
    child.start()
    child.join()
    assert child.exitcode == 0
    assert server._forkserver_pid == before


def count_descriptors(conn, *others):
    conn.send([os.fstat(other.fileno()).st_ino for other in others])


def test_more_descriptors_than_one_message_takes(server):
    ctx = procession.get_context("forkserver")
    receiver, sender = ctx.Pipe(duplex=False)
    pipes = [ctx.Pipe(duplex=False) for _ in range(150)]
    ends = [end for pipe in pipes for end in pipe]
    child = ctx.Process(target=count_descriptors, args=(sender, *ends))
    child.start()
    assert receiver.recv() == [os.fstat(end.fileno()).st_ino for end in ends]
    child.join()


def test_a_server_that_cannot_start_is_an_error_not_a_hang(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        """
import os, sys, procession as mp
if __name__ != "__main__":
    os._exit(3)
p = mp.get_context("forkserver").Process(target=print)
try:
    p.start()
except EOFError as error:
    print("EOFError:", error)
"""
    )
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=50)
    assert "EOFError: the fork server ended" in result.stdout


def test_starting_processes_from_many_threads(ctx):
    import threading

    codes = []

    def start():
        child = ctx.Process(target=sys.exit, args=(3,))
        child.start()
        child.join()
        codes.append(child.exitcode)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [3] * 6


def test_sharing_outside_of_a_start_is_refused():
    with pytest.raises(RuntimeError, match="through inheritance"):
        context.assert_spawning(object())
    assert context.get_spawning_popen() is None


def test_preparation_data_names_what_third_parties_look_for():
    data = spawn.get_preparation_data("a name")
    assert data["name"] == "a name"
    assert {"sys_path", "sys_argv", "orig_dir", "dir", "authkey", "start_method", "log_to_stderr"} <= set(data)
    assert "" not in data["sys_path"]
    process.current_process()._inheriting = True
    try:
        with pytest.raises(RuntimeError, match="bootstrapping phase"):
            spawn.get_preparation_data("a name")
    finally:
        del process.current_process()._inheriting


def test_command_lines_have_the_shape_that_frozen_programs_look_for():
    command = spawn.get_command_line(pipe_handle=7)
    assert command[0] == spawn.get_executable()
    assert command[-3] == "-c"
    assert command[-1] == "--multiprocessing-fork"
    assert "spawn_main(pipe_handle=7" in command[-2]
    assert spawn.is_forking([command[0], "--multiprocessing-fork", "pipe_handle=7"])
    assert not spawn.is_forking(["program"])
