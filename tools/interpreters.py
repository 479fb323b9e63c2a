"""Print the Python interpreters that the tests can use, one path a line, the newest version last.

`PYTHONS` (paths, separated by spaces) names them; without it they are those of pythonX.Y on PATH, and of pyenv's
versions where pyenv is installed. An interpreter counts only when it really runs (the shims of pyenv exist for versions
that are not selected), is CPython 3.11 or newer, and can make a virtual environment. One of each version is enough.

    interpreters.py            all of them
    interpreters.py OTHER      all but those of OTHER's version (3.13, say)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
MINORS = range(OLDEST[1], OLDEST[1] + 8)
PROBE = (
    "import sys, sysconfig, ensurepip, venv; "
    "assert sys.implementation.name == 'cpython' and not sysconfig.get_config_var('Py_GIL_DISABLED'); "
    "print(*sys.version_info[:2], sys.executable)"
)


def probe(python):
    """The version and the real path of an interpreter; None if it does not run or lacks something."""
    command = [python, "-I", "-c", PROBE]
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run.returncode:
        return None
    major, minor, executable = run.stdout.strip().split(maxsplit=2)
    version = int(major), int(minor)
    return (version, executable) if version >= OLDEST else None


def candidates():
    named = os.environ.get("PYTHONS", "").split()
    if named:
        yield from named
        return
    for minor in MINORS:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            found = shutil.which(f"python3.{minor}", path=folder or os.curdir)
            if found:
                yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for minor in MINORS:
        yield from map(str, sorted(root.glob(f"versions/3.{minor}.*/bin/python3.{minor}")))


def found(skipped=()):
    """The interpreters by their version, the newest last, but for the versions skipped."""
    by_version = {}
    for candidate in candidates():
        answer = probe(candidate)
        if answer and answer[0] not in skipped:
            by_version.setdefault(*answer)
    return dict(sorted(by_version.items()))


def main():
    for path in found({tuple(map(int, version.split("."))) for version in sys.argv[1:]}).values():
        print(path)


if __name__ == "__main__":
    main()
