"""Tasks of doit in two processes."""

import os
import sys
import tempfile

from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain


def write(name):
    with open(name, "w") as file:
        file.write(str(os.getpid()))


def fails():
    return False


def task_write():
    for name in "abcd":
        yield {"name": name, "actions": [(write, [name])], "targets": [name]}


def task_after():
    return {"actions": ["cat a b c d > all"], "file_dep": list("abcd"), "targets": ["all"]}


def task_fails():
    return {"actions": [fails]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        loader = ModuleTaskLoader(sys.modules["__main__"])
        print(
            "status",
            DoitMain(loader).run(["run", "-n", "2", "--verbosity", "0", "--output-file", "log", "write", "after"]),
        )
        print("other processes:", all(open(name).read() != str(os.getpid()) for name in "abcd"), os.path.exists("all"))
        print("status", DoitMain(loader).run(["run", "-n", "2", "--verbosity", "0", "--output-file", "log", "fails"]))
