"""The three ways in: `import procession as multiprocessing`, `python -m procession`, `procession.install()`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import procession

# Prints whose modules it got, here and in a child of each method.
WHOSE = """
import sys
import multiprocessing
import multiprocessing.util
from multiprocessing import context, process
from multiprocessing.context import SpawnProcess
def whose():
    import multiprocessing.spawn
    found = {multiprocessing, multiprocessing.util, context, multiprocessing.spawn, sys.modules["multiprocessing"]}
    names = {module.__name__.split(".")[0] for module in found}
    return *names, SpawnProcess.__module__, __name__, *sys.argv[1:]
def child(path):
    with open(path, "a") as file:
        print(*whose(), file=file)
if __name__ == "__main__":
    print(*whose())
    path = sys.argv[1]
    for method in ("fork", "spawn", "forkserver"):
        p = multiprocessing.get_context(method).Process(target=child, args=(path,))
        p.start()
        p.join()
        assert p.exitcode == 0, p
"""


def run(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=50, **options)


@pytest.fixture
def whose(tmp_path):
    (tmp_path / "whose_modules.py").write_text(WHOSE)
    return tmp_path / "whose_modules.py"


@pytest.mark.parametrize("way", ["script", "module", "relative"])
def test_a_program_and_its_children_are_taken_over(whose, way, tmp_path):
    notes = tmp_path / "notes"
    program = {"script": [whose], "module": ["-m", "whose_modules"], "relative": ["whose_modules.py"]}[way]
    result = run("-m", "procession", *program, notes, "word", cwd=tmp_path)
    assert result.stderr == ""
    assert result.stdout == f"procession procession.context __main__ {notes} word\n"
    forked, *others = notes.read_text().splitlines()
    assert forked == result.stdout.strip()
    assert others == [f"procession procession.context __mp_main__ {notes} word"] * 2


def test_without_it_nothing_is_taken_over(whose, tmp_path):
    result = run(whose, tmp_path / "notes")
    assert result.stdout.startswith("multiprocessing multiprocessing.context __main__")
    assert "procession" not in (tmp_path / "notes").read_text().replace(str(tmp_path), "")


def test_install_from_within(whose, tmp_path):
    whose.write_text("import procession\nprocession.install()\nprocession.install()\n" + WHOSE)
    notes = tmp_path / "notes"
    result = run(whose, notes)
    assert result.stderr == ""
    assert result.stdout == f"procession procession.context __main__ {notes}\n"
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["procession"] * 3


def test_install_replaces_what_was_imported_before(tmp_path):
    result = run(
        "-c",
        """
import multiprocessing.process
from concurrent.futures import ProcessPoolExecutor as before
import procession
procession.install()
import multiprocessing.process as process
from concurrent.futures import ProcessPoolExecutor as after
import concurrent.futures.process
print(process.__name__, after is before, concurrent.futures.process.mp.__name__)
""",
    )
    assert (result.stdout, result.stderr) == ("procession.process False procession\n", "")


LEFT_BEHIND = """
import sys, warnings
from multiprocessing import Process, Pool, Lock, get_context, current_process, TimeoutError
import multiprocessing as standard, multiprocessing.queues, multiprocessing.managers, multiprocessing.synchronize
import procession
METHOD = sys.argv[1]
class Worker(Process):
    def run(self):
        child(*self._args)
def child(queue):
    import multiprocessing
    queue.put((multiprocessing.__name__, current_process().name, multiprocessing.current_process().name))
def square(n):
    return n * n
if __name__ == "__main__":
    ctx = get_context(METHOD)
    lock, queue, event, value = ctx.Lock(), ctx.Queue(), ctx.Event(), ctx.Value("i", 1)
    manager = ctx.Manager()
    proxy = manager.list([1])
    running = ctx.Process(target=event.wait, name="running")
    early = ctx.Process(target=child, name="early")
    running.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        procession.install()
    (warning,) = caught
    assert "running" in str(warning.message) and warning.category is RuntimeWarning
    assert warning.filename == __file__, warning
    import multiprocessing
    assert multiprocessing is procession is not standard
    assert current_process() is multiprocessing.current_process()
    assert TimeoutError is multiprocessing.TimeoutError
    # What is there goes on.
    event.set()
    running.join(20)
    assert running.exitcode == 0
    with lock:
        queue.put(value.value)
    assert queue.get() == 1
    proxy.append(2)
    assert proxy[:] == [1, 2]
    # What is started or made now is ours, whatever name it goes by.
    answers = procession.get_context(METHOD).SimpleQueue()
    early._args = answers,
    for p in (early, ctx.Process(target=child, args=(answers,), name="late"),
              Worker(args=(answers,), name="derived"),
              multiprocessing.get_context(METHOD).Process(target=child, args=(answers,), name="ours")):
        p.start()
        ours, *names = answers.get()
        p.join()
        assert (ours, names, p.exitcode) == ("procession", [p.name, p.name], 0), (ours, names, p)
    with Pool(2) as pool:
        assert isinstance(pool, procession.pool.Pool)
        assert pool.map(square, range(3)) == [0, 1, 4]
    assert isinstance(Lock(), procession.synchronize.Lock)
    # New interpreters cannot be given what only the standard package understands.
    p = ctx.Process(target=child, args=(queue,), name="with a queue")
    try:
        p.start()
    except Exception as error:
        assert METHOD != "fork" and "multiprocessing.queues.Queue" in str(error), error
    else:
        assert queue.get()[0] == "procession"
        p.join()
    manager.shutdown()
"""


def test_install_with_objects_of_the_standard_package_in_use(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(LEFT_BEHIND)
    result = run(path, method)
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode == 0


@pytest.mark.parametrize("way", ["beside", "install"])
@pytest.mark.parametrize("where", ["folder", "relative"])
def test_children_find_a_package_that_the_program_found_by_itself(way, where, tmp_path):
    # By a folder that it put into sys.path: a new interpreter does not look there.
    package = Path(procession.__file__).parent
    (tmp_path / "folder with 'quotes'; and more").mkdir()
    (tmp_path / "folder with 'quotes'; and more" / "procession").symlink_to(package)
    folder = str(tmp_path) + "/" if where == "folder" else ""
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import sys, os
sys.path.append({folder!r} + "folder with 'quotes'; and more")
import procession
if {way!r} == "install":
    procession.install()
import procession.shared_memory
def child(name):
    memory = procession.shared_memory.SharedMemory(name, track=True)
    memory.buf[0] += 1
    memory.close()
    if sys.argv[1:]:
        print(procession.__file__, sys.path.index(sys.path[-1]) > 0, flush=True)
    else:
        sys.argv.append("grandchild")
        p = procession.Process(target=child, args=(name,))
        p.start()
        p.join()
    if {way!r} == "install":
        import multiprocessing
        assert multiprocessing is procession
if __name__ == "__main__":
    memory = procession.shared_memory.SharedMemory(create=True, size=1)
    os.chdir("/")
    for count, method in enumerate(["spawn", "forkserver"], 1):
        procession.set_start_method(method, force=True)
        p = procession.Process(target=child, args=(memory.name,))
        p.start()
        p.join()
        assert p.exitcode == 0
        assert memory.buf[0] == 2 * count
    memory.close()
    memory.unlink()
"""
    )
    # A base interpreter, which has no procession of its own.
    base = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([base, path], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50)
    assert result.stderr == ""
    found = str(tmp_path / "folder with 'quotes'; and more" / "procession" / "__init__.py")
    assert result.stdout == f"{found} True\n" * 2
    assert result.returncode == 0


def test_what_does_not_exist_is_not_found():
    result = run("-m", "procession", "-c", "import multiprocessing.nonsense")
    assert "ModuleNotFoundError: No module named 'multiprocessing.nonsense'" in result.stderr
    assert result.returncode == 1


def test_code_on_the_command_line():
    result = run(
        "-m", "procession", "-c", "import sys, multiprocessing as m; print(m.__name__, *sys.argv, __name__)", "a"
    )
    assert result.stdout == "procession -c a __main__\n"


SURROUNDINGS = """
import sys, os
main = sys.modules["__main__"]
print(sorted(set(vars(main)) - {"sys", "os", "main"} - {"__annotations__"}), main.__spec__ is None, main.__package__)
print(__name__, sys.argv, sys.path[0], os.path.basename(main.__file__))
"""


@pytest.mark.parametrize("way", ["script", "module", "folder", "archive"])
def test_a_program_finds_what_python_would_give_it(way, tmp_path):
    import zipfile

    (tmp_path / "surroundings.py").write_text(SURROUNDINGS)
    match way:
        case "script":
            program = [tmp_path / "surroundings.py"]
        case "module":
            program = ["-m", "surroundings"]
        case "folder":
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "__main__.py").write_text(SURROUNDINGS)
            program = [tmp_path / "folder"]
        case "archive":
            with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
                archive.writestr("__main__.py", SURROUNDINGS)
            program = [tmp_path / "program.zip"]
    expected = run(*program, "-x", "word", cwd=tmp_path)
    result = run("-m", "procession", *program, "-x", "word", cwd=tmp_path)
    assert result.stderr == expected.stderr == ""
    # Python's own script has a loader; nobody can load it again by the one it has.
    assert result.stdout == expected.stdout


def test_exit_codes_and_errors_pass_through(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import sys\nsys.exit(int(sys.argv[1]))")
    assert run("-m", "procession", path, "7").returncode == 7
    path.write_text("1 / 0")
    result = run("-m", "procession", path)
    assert result.returncode == 1
    assert f'File "{path}", line 1' in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_wrong_command_lines():
    for arguments in ([], ["-m"], ["-c"], ["--nonsense"]):
        result = run("-m", "procession", *arguments)
        assert result.returncode == 1
        assert "usage: python -m procession" in result.stderr
    assert "usage: python -m procession" in run("-m", "procession", "--help").stdout
    result = run("-m", "procession", "no_such_file.py")
    assert "can't open file" in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_process_pool_executor_runs_on_procession(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import concurrent.futures, multiprocessing, sys
def double(n):
    return n * 2, multiprocessing.current_process().__class__.__module__
if __name__ == "__main__":
    ctx = multiprocessing.get_context({method!r})
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=ctx) as pool:
        print(list(pool.map(double, range(3))))
    standard = [name for name, module in sys.modules.items()
                if name.startswith("multiprocessing") and not module.__name__.startswith("procession")]
    print(standard)
"""
    )
    result = run("-m", "procession", path)
    assert result.stderr == ""
    expected = [(n * 2, "procession.context") for n in range(3)]
    assert result.stdout == f"{expected}\n[]\n"


def test_log_records_name_the_process(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        """
import logging, multiprocessing
logging.basicConfig(format="%(processName)s %(message)s")
def child():
    logging.warning("hello")
if __name__ == "__main__":
    p = multiprocessing.get_context("spawn").Process(target=child, name="Ada")
    p.start()
    p.join()
    logging.warning("goodbye")
"""
    )
    result = run("-m", "procession", path)
    assert result.stderr == "Ada hello\nMainProcess goodbye\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_log_records_name_the_process_without_a_takeover(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import logging, procession
logging.basicConfig(format="%(processName)s %(message)s")
def grandchild():
    logging.warning("hello")
def child():
    logging.warning("hello")
    p = procession.get_context({method!r}).Process(target=grandchild, name="Bea")
    p.start()
    p.join()
if __name__ == "__main__":
    p = procession.get_context({method!r}).Process(target=child, name="Ada")
    p.start()
    p.join()
    logging.warning("goodbye")
"""
    )
    result = run(path)
    assert result.stderr == "Ada hello\nBea hello\nMainProcess goodbye\n"


def test_the_package_itself_never_imports_the_standard_one():
    # Not when imported, and not in a child: the import of one's own program needs no takeover.
    result = run(
        "-c",
        """
import procession, sys
standard = ("multiprocessing", "_multiprocessing", "_posixshmem")
def left(): return sorted(n for n in sys.modules if n.split(".")[0] in standard)
assert left() == [], left()
p = procession.get_context("fork").Process(target=sys.exit, args=(0,))
p.start()
p.join()
assert left() == [], left()
""",
    )
    assert result.stderr == ""


def test_install_is_no_name_of_the_standard_package():
    assert "install" not in procession.__all__
    assert callable(procession.install)


def test_a_system_without_a_port_falls_back_and_says_so(tmp_path):
    # As it is where the native part was not built: another platform, and no module _core.
    path = tmp_path / "program.py"
    path.write_text(
        """
import sys
sys.platform = "someos"
sys.modules["procession._core"] = None
import procession
from procession.context import BaseContext
import procession.queues
print(procession.Process.__module__, BaseContext.__module__, procession.queues.__name__)
procession.set_start_method
"""
    )
    result = run(path)
    assert result.stdout == "multiprocessing.context multiprocessing.context multiprocessing.queues\n"
    assert (
        "RuntimeWarning: procession has no port to this system (someos): the standard multiprocessing" in result.stderr
    )


IMPORTS_AT_ONCE = """
import sys, threading
sys.setswitchinterval(1e-6)
names = "multiprocessing.managers procession.managers multiprocessing.pool procession.pool".split()
start, failed = threading.Barrier(len(names)), []
def load(name):
    start.wait()
    try:
        __import__(name)
    except BaseException as error:
        failed.append((name, error))
threads = [threading.Thread(target=load, args=(name,), daemon=True) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
print(failed, [thread.name for thread in threads if thread.is_alive()])
import multiprocessing, procession
print(multiprocessing is procession, sys.modules["multiprocessing.pool"] is sys.modules["procession.pool"])
"""


def test_threads_may_import_at_once():
    for _ in range(3):
        result = run("-m", "procession", "-c", IMPORTS_AT_ONCE)
        assert (result.stdout, result.stderr) == ("[] []\nTrue True\n", "")
