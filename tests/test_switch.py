"""`python -m procession enable | disable | status`, in virtual environments made for the purpose."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import procession

PACKAGE = Path(procession.__file__).parent
WHOSE = "import sys, multiprocessing as m; print(m.__name__, m.Process.__module__.split('.')[0])"
OURS, STANDARD = "procession procession\n", "multiprocessing multiprocessing\n"


class Environment:
    """A virtual environment that finds the package as one with an editable installation does."""

    def __init__(self, folder, **options):
        venv.create(folder, symlinks=True, **options)
        self.python = folder / "bin" / "python"
        self.packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        self.install()

    def install(self):
        # Only the package: the folder it is in may have others, and their .pth files are not read.
        (self.packages / "procession.pth").write_text(f"{PACKAGE.parent}\n")

    def uninstall(self):
        (self.packages / "procession.pth").unlink()

    @property
    def switch(self):
        return self.packages / "_procession_switch.pth"

    def run(self, *arguments, **variables):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            env={**environ, **variables},
            capture_output=True,
            text=True,
            timeout=50,
            cwd=self.packages,
        )

    def whose(self, *options, **variables):
        result = self.run(*options, "-c", WHOSE, **variables)
        assert result.stderr == ""
        return result.stdout

    def command(self, *arguments, **variables):
        return self.run("-m", "procession", *arguments, **variables)


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.fixture
def enabled(environment):
    result = environment.command("enable")
    assert (result.returncode, result.stderr) == (0, "")
    return environment


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_the_switch_is_turned_on_and_off(environment):
    before = files(environment.packages)
    off = environment.command("status")
    assert off.returncode == 1
    assert off.stdout.startswith("off: in the virtual environment at ")
    assert environment.whose() == STANDARD
    for _ in range(2):
        on = environment.command("enable")
        assert (on.returncode, on.stderr) == (0, "")
        assert on.stdout.startswith("on: in the virtual environment at ")
        assert str(environment.switch) in on.stdout
        assert environment.whose() == OURS
        content = environment.switch.read_text()
    again = environment.command("status")
    assert (again.returncode, again.stdout) == (0, on.stdout)
    assert content == environment.switch.read_text()
    for _ in range(2):
        result = environment.command("disable")
        assert (result.returncode, result.stdout, result.stderr) == (0, off.stdout, "")
        assert environment.whose() == STANDARD
        assert files(environment.packages) == before


def test_only_the_one_environment_is_concerned(enabled, tmp_path):
    other = Environment(tmp_path / "other")
    assert other.whose() == STANDARD
    assert other.command("status").returncode == 1


def test_nothing_is_imported_before_somebody_imports_multiprocessing(enabled):
    program = "import sys, logging, subprocess; print([n for n in sys.modules if 'procession' in n])"
    assert enabled.run("-c", program).stdout == "[]\n"
    finders = "import sys; print([type(f).__name__ for f in sys.meta_path].count('ProcessionSwitch'))"
    assert enabled.run("-c", finders).stdout == "1\n"


@pytest.mark.parametrize("way", ["package", "module", "from", "submodule", "procession-first", "futures"])
def test_whoever_imports_it_gets_procession(enabled, way):
    statement = {
        "package": "import multiprocessing as m",
        "module": "import multiprocessing.pool; m = multiprocessing",
        "from": "from multiprocessing import Process; import multiprocessing as m; assert Process is m.Process",
        "submodule": "from multiprocessing.util import Finalize; import multiprocessing as m",
        "procession-first": "import procession, multiprocessing as m",
        "futures": "from concurrent.futures.process import mp as m, ProcessPoolExecutor",
    }[way]
    result = enabled.run(
        "-c",
        f"""
{statement}
import procession, procession.queues, multiprocessing.queues, sys
assert m is procession is sys.modules["procession"] is sys.modules["multiprocessing"], m
assert multiprocessing.queues is procession.queues
assert m.Process is procession.context.Process is sys.modules["multiprocessing.context"].Process
p = m.get_context("fork").Process(target=sys.exit, args=(5,))
p.start()
p.join()
print(p.exitcode)
""",
    )
    assert (result.stdout, result.stderr) == ("5\n", "")


def test_children_and_their_children(enabled, method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(f"""
import sys, multiprocessing, subprocess
ASK = "import multiprocessing; print(multiprocessing.__name__)"
from concurrent.futures import ProcessPoolExecutor
def whose(depth=0):
    found = [multiprocessing.__name__, type(multiprocessing.current_process()).__module__.split(".")[0]]
    found.append(subprocess.check_output([sys.executable, "-c", ASK], text=True).strip())
    if depth:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context({method!r})) as executor:
            found += executor.submit(whose, depth - 1).result()
    return found
if __name__ == "__main__":
    print(*whose(2))
""")
    result = enabled.run(path)
    assert result.stderr == ""
    assert set(result.stdout.split()) == {"procession"}
    assert len(result.stdout.split()) == 9


def test_the_options_of_the_interpreter(enabled):
    # -I and -E: the environment's own packages are there as ever. -S: nothing of them is, and no switch.
    assert enabled.whose("-I") == enabled.whose("-E") == enabled.whose("-s") == OURS
    assert enabled.whose("-S") == STANDARD


@pytest.mark.parametrize("options", [["-I"], ["-E"], ["-S"]])
def test_the_options_hold_for_children(enabled, options, tmp_path):
    path = tmp_path / "program.py"
    path.write_text("""
import multiprocessing, sys
def child():
    print(multiprocessing.__name__, flush=True)
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        p = multiprocessing.get_context(method).Process(target=child)
        p.start()
        p.join()
""")
    result = enabled.run(*options, path)
    expected = STANDARD if options == ["-S"] else OURS
    assert (result.stdout, result.stderr) == (f"{expected.split()[0]}\n" * 3, "")


def test_a_program_can_be_left_out(enabled):
    for word in ("off", "OFF", "0", "no", "false"):
        assert enabled.whose(PROCESSION_TAKEOVER=word) == STANDARD
    for word in ("", "on", "1"):
        assert enabled.whose(PROCESSION_TAKEOVER=word) == OURS
    # As the interpreter heeds none of its own variables either.
    assert enabled.whose("-E", PROCESSION_TAKEOVER="off") == OURS
    result = enabled.command("status", PROCESSION_TAKEOVER="off")
    assert result.returncode == 0
    assert "PROCESSION_TAKEOVER=off" in result.stdout
    # What a program asks for itself is not what the variable is about.
    result = enabled.command("-c", WHOSE, PROCESSION_TAKEOVER="off")
    assert result.stdout == OURS


def test_a_program_that_is_left_out_does_not_import_procession(enabled):
    program = "import sys, multiprocessing; print('procession' in sys.modules)"
    assert enabled.run("-c", program, PROCESSION_TAKEOVER="off").stdout == "False\n"


def test_children_of_programs_on_the_standard_package_are_left_out(enabled):
    # They were started before the switch was turned on, and their children are sent what the standard package sends.
    for line in ("spawn import spawn_main", "forkserver import main", "resource_tracker import main"):
        program = f"from multiprocessing.{line}; import multiprocessing, sys; "
        program += "print(multiprocessing.__name__, 'procession' in sys.modules)"
        assert enabled.run("-c", program).stdout == "multiprocessing False\n"


def test_threads_may_import_at_once(enabled):
    program = """
import sys, threading
sys.setswitchinterval(1e-6)
names = "multiprocessing procession concurrent.futures.process multiprocessing.pool logging".split()
start = threading.Barrier(len(names))
def load(name):
    start.wait()
    __import__(name)
threads = [threading.Thread(target=load, args=(name,), daemon=True) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
import multiprocessing
print([thread.name for thread in threads if thread.is_alive()], multiprocessing.__name__)
"""
    for _ in range(3):
        result = enabled.run("-c", program)
        assert (result.stdout, result.stderr) == ("[] procession\n", "")


def test_uninstalling_leaves_the_standard_package(enabled):
    enabled.uninstall()
    assert enabled.whose() == STANDARD
    result = enabled.run("-W", "always::ImportWarning", "-c", WHOSE)
    assert result.stdout == STANDARD
    assert result.stderr.count("ImportWarning: _procession_switch.pth finds no procession") == 1
    assert str(enabled.packages) in result.stderr
    enabled.install()
    assert enabled.whose() == OURS


def test_a_broken_installation_leaves_the_standard_package(enabled, tmp_path):
    enabled.uninstall()
    broken = tmp_path / "broken" / "procession"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("from . import _core\n")
    (enabled.packages / "procession.pth").write_text(f"{broken.parent}\n")
    assert enabled.whose() == STANDARD
    (broken / "__init__.py").write_text("raise AttributeError('half of another version')\n")
    assert enabled.whose() == STANDARD


def test_status_tells_of_a_switch_without_effect(enabled):
    enabled.uninstall()
    result = enabled.run("-m", "procession", "status", PYTHONPATH=str(PACKAGE.parent))
    assert result.returncode == 1
    assert result.stdout.startswith("on, but without effect: in the virtual environment at ")
    result = enabled.run("-m", "procession", "enable", PYTHONPATH=str(PACKAGE.parent))
    assert result.returncode == 2
    assert "procession is not installed in the virtual environment at " in result.stderr


def test_a_switch_of_another_version_is_renewed(enabled):
    content = enabled.switch.read_text()
    enabled.switch.write_text(content.replace("os, sys", "os, sys, io"))
    assert "enable renews it" in enabled.command("status").stdout
    assert "renews" not in enabled.command("enable").stdout
    assert enabled.switch.read_text() == content


def test_an_environment_that_sees_the_system_s_packages(tmp_path):
    environment = Environment(tmp_path / "environment", system_site_packages=True)
    assert environment.command("enable").returncode == 0
    assert environment.whose() == OURS
    assert environment.command("disable").returncode == 0
    assert environment.whose() == STANDARD


def test_only_virtual_environments_unless_told(tmp_path):
    base = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    for command in ("enable", "disable"):
        result = subprocess.run(
            [base, "-m", "procession", command],
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert result.returncode == 2
        assert result.stderr.startswith(f"procession: cannot {command} the switch: this is the Python at ")
        assert "--system" in result.stderr
    environment = Environment(tmp_path / "environment")
    result = environment.command("enable", "--system")
    assert result.returncode == 2
    assert "--system is for a Python that is no virtual environment" in result.stderr
    assert not environment.switch.exists()


def test_wrong_options(environment):
    for command in ("enable", "disable", "status"):
        result = environment.command(command, "--nonsense")
        assert result.returncode == 2
        assert "--nonsense" in result.stderr


def test_a_folder_that_cannot_be_written_to(environment, monkeypatch, capsys):
    # Permissions do not stop root, who may be running this.
    from procession import switch

    monkeypatch.setattr(switch._Environment, "refusal", lambda self, system: None)
    monkeypatch.setattr(switch._Environment, "content", lambda self: "nothing")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(environment.switch))

    monkeypatch.setattr(switch.os, "replace", refuse)
    monkeypatch.setattr(switch.sysconfig, "get_path", lambda name: str(environment.packages))
    assert switch.main("enable", []) == 2
    assert "cannot enable the switch: [Errno 13] Permission denied" in capsys.readouterr().err
    assert files(environment.packages) == [str(environment.packages / "procession.pth")]


def test_a_script_of_the_name_of_a_command(environment):
    (environment.packages / "enable").write_text("print('a script')")
    assert environment.command("./enable").stdout == "a script\n"
