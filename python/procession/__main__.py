"""python -m procession [script.py | -m module | -c code] arguments...

Runs a program as python itself would, with `multiprocessing` meaning this package in it, in its libraries and in all
its children. `enable`, `disable` and `status` do and undo that for all programs of a virtual environment: see `switch`.
"""

import os
import sys
import types

__all__ = ["main"]

USAGE = """usage: python -m procession script.py [arguments]
       python -m procession -m module [arguments]
       python -m procession -c code [arguments]
       python -m procession enable | disable | status [--system]

Runs the program with procession in place of multiprocessing.

enable has this done for every program of the virtual environment from now on, without a change to the program or to
how it is started; disable takes that back. status says what is so, and exits with 0 if multiprocessing is procession
there, else with 1. A program that is started with PROCESSION_TAKEOVER=off in its environment is left out. --system
is needed where the Python is not that of a virtual environment. A script of such a name is run as ./enable."""


def main(arguments):
    """Run the program that the command line names."""
    from . import install

    match arguments:
        case ["-h" | "--help", *_]:
            print(USAGE)
        case ["enable" | "disable" | "status" as command, *options]:
            from .switch import main

            sys.exit(main(command, options))
        case ["-m", module, *rest]:
            install()
            run_module(module, rest)
        case ["-c", code, *rest]:
            install()
            run_code(code, rest)
        case [script, *rest] if not script.startswith("-"):
            install()
            run_script(script, rest)
        case _:
            sys.exit(USAGE)


def fresh_main():
    """A new main module, without a trace of this one."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return vars(module)


def run_module(name, arguments):
    """As python -m does."""
    import runpy

    sys.argv = ["-m", *arguments]
    fresh_main()
    # What the interpreter itself calls for -m; the public functions leave the main module as it was.
    runpy._run_module_as_main(name)


def run_code(code, arguments):
    """As python -c does."""
    sys.argv = ["-c", *arguments]
    set_first_path("")
    exec(compile(code, "<string>", "exec"), fresh_main())


def run_script(path, arguments):
    """As python does with the name of a script, a folder or an archive."""
    sys.argv = [path, *arguments]
    if not os.path.exists(path):
        print(f"{sys.executable}: can't open file {os.path.abspath(path)!r}: no such file", file=sys.stderr)
        sys.exit(2)
    if os.path.isdir(path) or is_archive(path):
        import runpy

        # Found whatever the flags say: it is the program.
        sys.path.insert(0, path) if sys.flags.safe_path else set_first_path(path)
        fresh_main()
        runpy._run_module_as_main("__main__", alter_argv=False)
        return
    set_first_path(os.path.dirname(os.path.realpath(path)))
    names = fresh_main()
    names.update(__file__=os.path.abspath(path), __cached__=None)
    exec(code_of(path), names)


def set_first_path(entry):
    """The interpreter put the place of `-m` there, unless told not to put any."""
    if not sys.flags.safe_path:
        sys.path[0] = entry


def is_archive(path):
    """Whether a file can be imported from, which is how python looks at it."""
    import zipimport

    try:
        zipimport.zipimporter(path)
    except zipimport.ZipImportError:
        return False
    return True


def code_of(path):
    """The code of a script, compiled already or not."""
    with open(path, "rb") as file:
        source = file.read()
    import importlib.util

    if source[:4] == importlib.util.MAGIC_NUMBER:
        import marshal

        return marshal.loads(source[16:])
    return compile(source, os.path.abspath(path), "exec")


if __name__ == "__main__":
    main(sys.argv[1:])
