"""What becomes of its processes when a program is killed."""

import os
import signal

import pytest

import processes

PROGRAM = """
import os, sys, time
import procession as mp

def nap(what):
    mp.current_process()._what = what
    with open(os.path.join(sys.argv[2], f"{os.getpid()} {what}"), "w"):
        pass
    time.sleep(600)

def outlive(folder):
    open(os.path.join(folder, f"outlives-{os.getpid()}"), "w").close()
    mp.parent_process().join()
    with open(os.path.join(folder, "outlived"), "w") as file:
        file.write(str(mp.parent_process().is_alive()))
    time.sleep(600)

def family(method):
    mp.get_context(method).Process(target=nap, args=("grandchild",), daemon=True).start()
    nap("child")

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    for number in range(3):
        ctx.Process(target=nap, args=("daemon",), daemon=True).start()
"""


def ends_in(program, tmp_path, method, body, expected):
    """Run the program with `body`, wait for the processes it names, and kill it."""
    source = PROGRAM + "".join(f"    {line}\n" for line in body.splitlines()) + "    time.sleep(600)\n"
    notes = tmp_path / "notes"
    notes.mkdir()
    running = program(source, method, notes)
    assert processes.eventually(lambda: len(os.listdir(notes)) >= expected), running.running()
    before = set(os.listdir("/dev/shm"))
    os.kill(running.pid, signal.SIGKILL)
    return running, notes, before


def test_daemons_and_helpers_end_with_the_program(program, tmp_path, method):
    running, _, before = ends_in(program, tmp_path, method, "", 3)
    assert processes.eventually(lambda: not running.running()), running.running()
    # Other programs' files are there too, and go.
    new = set(os.listdir("/dev/shm")) - before
    assert processes.eventually(lambda: not new & set(os.listdir("/dev/shm")), timeout=30)


def test_an_ordinary_child_goes_on_and_nothing_else_does(program, tmp_path, method):
    running, notes, _ = ends_in(
        program, tmp_path, method, "ctx.Process(target=outlive, args=(sys.argv[2],)).start()", 4
    )
    outlived = notes / "outlived"
    assert processes.eventually(lambda: outlived.exists() and outlived.read_text() == "False")
    # Neither a daemon, nor the fork server. The tracker of named resources serves the child as well.
    ours = [pid for pid in running.running() if not is_tracker(pid)]
    assert processes.eventually(lambda: len([p for p in running.running() if not is_tracker(p)]) == 1), ours
    (child,) = [pid for pid in running.running() if not is_tracker(pid)]
    os.kill(child, signal.SIGKILL)
    assert processes.eventually(lambda: not running.running()), running.running()


def is_tracker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker" in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_grandchildren_end_when_the_child_between_does(program, tmp_path, method):
    source = (
        PROGRAM
        + """
    child = ctx.Process(target=family, args=(sys.argv[1],))
    child.start()
    while len(os.listdir(sys.argv[2])) < 5: time.sleep(0.01)
    child.kill()
    child.join()
    print(child.exitcode, flush=True)
    time.sleep(600)
"""
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    running = program(source, method, notes)
    assert running.readline() == "-9"
    (name,) = [name for name in os.listdir(notes) if name.endswith("grandchild")]
    grandchild = int(name.split()[0])
    assert processes.eventually(lambda: not processes.is_running(grandchild))
    os.kill(running.pid, signal.SIGKILL)
    assert processes.eventually(lambda: not running.running()), running.running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
def test_other_deaths_are_no_different(program, tmp_path, number):
    source = PROGRAM + f"    signal_number = {int(number)}\n    time.sleep(600)\n"
    notes = tmp_path / "notes"
    notes.mkdir()
    running = program(source, "fork", notes)
    assert processes.eventually(lambda: len(os.listdir(notes)) >= 3)
    os.kill(running.pid, number)
    running.finish()
    assert processes.eventually(lambda: not running.running()), running.running()
    assert running.exitcode == -number


def test_leaving_without_a_word_ends_the_daemons_as_well(program, tmp_path, method):
    source = PROGRAM + "    while len(os.listdir(sys.argv[2])) < 3: time.sleep(0.01)\n    os._exit(0)\n"
    notes = tmp_path / "notes"
    notes.mkdir()
    running = program(source, method, notes)
    running.process.wait()
    assert processes.eventually(lambda: not running.running()), running.running()


def test_a_child_forked_without_us_does_not_keep_the_daemons(program, tmp_path):
    body = """\
if os.fork() == 0:
    nap("forked")"""
    running, notes, _ = ends_in(program, tmp_path, "fork", body, 4)
    (name,) = [name for name in os.listdir(notes) if name.endswith("forked")]
    forked = int(name.split()[0])
    assert processes.eventually(lambda: set(running.running()) == {forked}), running.running()
    os.kill(forked, signal.SIGKILL)
    assert processes.eventually(lambda: not running.running())


def test_daemons_survive_the_thread_that_started_them(program, tmp_path, method):
    # PR_SET_PDEATHSIG, the usual way, would kill them.
    source = """
import sys, threading, time
import procession as mp

def nap(): time.sleep(600)

if __name__ == "__main__":
    daemon = mp.get_context(sys.argv[1]).Process(target=nap, daemon=True)
    thread = threading.Thread(target=daemon.start)
    thread.start()
    thread.join()
    daemon.join(0.3)
    print(daemon.is_alive(), flush=True)
"""
    running = program(source, method)
    out, error = running.finish()
    assert (out, error) == ("True\n", "")


def test_a_killed_program_in_the_middle_of_starting(program, tmp_path, method):
    source = """
import os, signal, sys, threading, time
import procession as mp

def nap(): time.sleep(600)

def start():
    while True:
        mp.get_context(sys.argv[1]).Process(target=nap, daemon=True).start()

if __name__ == "__main__":
    threading.Thread(target=start, daemon=True).start()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    running = program(source, method)
    running.process.wait()
    assert processes.eventually(lambda: not running.running()), running.running()
    assert running.exitcode == -signal.SIGKILL
