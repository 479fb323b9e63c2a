"""Programs that were made one executable: they are their own interpreter, and run neither files nor code."""

import os
import subprocess
import sys

import pytest

WORK = """
import os, sys
def job(n):
    import procession
    multiprocessing = sys.modules.get("multiprocessing")
    return n * n, procession.current_process().name.split("-")[0], multiprocessing is procession
def use(lock, queue, name):
    from procession.shared_memory import SharedMemory
    memory = SharedMemory(name, track=True)
    with lock:
        memory.buf[0] += 1
    memory.close()
    queue.put("done")
def run(package):
    from procession.shared_memory import SharedMemory
    for method in ("fork", "spawn", "forkserver"):
        ctx = package.get_context(method)
        with ctx.Pool(2) as pool:
            found = pool.map(job, range(4))
        memory = SharedMemory(create=True, size=1)
        lock, queue = ctx.Lock(), ctx.Queue()
        p = ctx.Process(target=use, args=(lock, queue, memory.name))
        p.start()
        p.join()
        (facts,) = {tuple(facts) for _square, *facts in found}
        print(method, *[square for square, *_ in found], *facts, p.exitcode, queue.get(timeout=20), memory.buf[0])
        memory.close()
        memory.unlink()
"""
PROGRAMS = {
    "beside": """
import procession as multiprocessing
""",
    "takeover": """
import procession
procession.install()
import multiprocessing
""",
    "both": """
import multiprocessing as standard
import procession as multiprocessing
""",
}
MAIN = """
import sys
import work
def standard_child(queue):
    queue.put(standard.current_process() is multiprocessing.current_process())
if __name__ == "__main__":
    multiprocessing.freeze_support()
    if sys.argv[1:2] == ["--version"]:
        sys.exit("1.0")
    work.run(multiprocessing)
    for method in ("spawn", "forkserver") if "standard" in globals() else ():
        for starter, other in ((multiprocessing, standard), (standard, multiprocessing)):
            queue = other.get_context(method).SimpleQueue()
            p = starter.get_context(method).Process(target=standard_child, args=(queue,))
            p.start()
            print(queue.get())
            p.join()
"""


def expected(name):
    lines = []
    for method, worker in (("fork", "Fork"), ("spawn", "Spawn"), ("forkserver", "ForkServer")):
        lines.append((method, "0", "1", "4", "9", f"{worker}PoolWorker", str(name == "takeover"), "0", "done", "1"))
    return lines + [("True",)] * 4 * (name == "both")


def check(name, command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, **options)
    assert result.stderr == ""
    assert [tuple(line.split()) for line in result.stdout.splitlines()] == expected(name)
    assert result.returncode == 0
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=100, **options)
    assert (result.stdout, result.stderr) == ("", "1.0\n")


@pytest.mark.parametrize("name", ["beside", "takeover"])
def test_a_program_that_takes_itself_for_frozen(name, tmp_path):
    # An executable that does with its arguments what a frozen one does: it hands them all to the program.
    executable = tmp_path / "executable"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/program.py "$@"\n')
    executable.chmod(0o755)
    (tmp_path / "work.py").write_text(WORK)
    head = f"import sys\nsys.frozen, sys.executable = True, {str(executable)!r}\n"
    (tmp_path / "program.py").write_text(head + PROGRAMS[name] + MAIN)
    check(name, [str(executable)])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_frozen_by_pyinstaller(name, tmp_path):
    pytest.importorskip("PyInstaller", exc_type=ImportError)
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "program.py").write_text(PROGRAMS[name] + MAIN)
    builder = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "program.py"]
    subprocess.run(builder, cwd=tmp_path, check=True, timeout=500)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    check(name, [str(tmp_path / "dist" / "program" / "program")], env=environ, cwd="/")


def test_the_hook_names_the_modules_that_the_take_over_may_ask_for():
    from importlib.metadata import entry_points

    (hook,) = [point for point in entry_points(group="pyinstaller40") if point.value.startswith("procession.")]
    (folder,) = hook.load()()
    assert os.listdir(folder).count("hook-procession.py") == 1
