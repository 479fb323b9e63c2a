"""What a new interpreter does to become the child of another: find its main module again, and run a process object."""

import os
import sys

from . import process, util

__all__ = [
    "_main",
    "freeze_support",
    "get_command_line",
    "get_executable",
    "get_preparation_data",
    "import_main_path",
    "set_executable",
]

WINEXE = WINSERVICE = False

# The argument by which a child knows that it is one.
_FORKING = "--multiprocessing-fork"


def set_executable(exe):
    """Set the interpreter that children are started with."""
    global _python_exe
    _python_exe = exe if exe is None else os.fsencode(exe)


def get_executable():
    """The interpreter that children are started with, as bytes."""
    return _python_exe


set_executable(sys.executable)


def __getattr__(name):
    if name == "reduction":
        from .context import reduction

        return globals().setdefault(name, reduction)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_forking(argv):
    """Whether this is the command line of a child."""
    return argv[1:2] == [_FORKING]


def freeze_support():
    """In the child of a frozen program, or in one of its helpers: do the work and exit."""
    if is_forking(sys.argv):
        numbers = _numbers(sys.argv[2:])
        if "parent_sentinel" in numbers:
            spawn_main(**numbers)
            sys.exit()
    _help_frozen()
    # A child or a helper of the standard package, in a program that uses both and asks only us.
    others = sys.modules.get("multiprocessing.spawn")
    if others is not None and others.__name__ != __name__:
        others.freeze_support()


def _numbers(arguments):
    pairs = (argument.strip().split("=") for argument in arguments)
    return {name: None if value == "None" else int(value) for name, value in pairs}


def _help_frozen():
    """Be the fork server or the resource tracker, if the command line is that of one (see `new_interpreter`)."""
    flags = util._args_from_interpreter_flags()
    _executable, *before = sys.argv[: len(flags) + 2]
    if before != [*flags, "-c"]:
        return
    import importlib
    import re

    for name in ("forkserver", "resource_tracker"):
        module = f"{__package__}.{name}"
        match = re.fullmatch(rf"from {module} import main; main\(([\w=, ]+)\)", "".join(sys.argv[len(flags) + 2 :]))
        if match:
            main = importlib.import_module(module).main
            if match[1].isdecimal():
                main(int(match[1]))
            else:
                main(**_numbers(match[1].split(",")))
            sys.exit()


def get_command_line(**kwds):
    """The command line of a child; `kwds` are the arguments of its `spawn_main()`."""
    taken_over = _taken_over()
    if taken_over:
        kwds["takeover"] = 1
    if getattr(sys, "frozen", False):
        return [sys.executable, _FORKING, *(f"{name}={value!r}" for name, value in kwds.items())]
    arguments = ", ".join(f"{name}={value!r}" for name, value in kwds.items())
    return [*new_interpreter(__name__, "spawn_main", arguments, uncollected=True), _FORKING]


def new_interpreter(module, function, arguments, uncollected=False):
    """The command line of an interpreter that calls a function of this package, with arguments as they are written.

    With `uncollected`, the collector doesn't look for garbage in what is imported to get there, now or later: there is
    none, and each look takes the longer the more there is. At the end of a process it looks several times.
    """
    steps = [f"from {module} import {function}"]
    folder = _folder_to_tell()
    if folder is not None:
        # In front, so that it is this very package; and not for longer than it takes.
        steps = ["import sys", f"sys.path.insert(0, {folder!r})", *steps, "del sys.path[0]"]
    if uncollected:
        steps = ["import gc", "gc.disable()", *steps, "import _pickle", "gc.freeze()", "gc.enable()"]
    program = "; ".join([*steps, f"{function}({arguments})"])
    return [get_executable(), *util._args_from_interpreter_flags(), "-c", program]


def _folder_to_tell():
    """The folder that the package is in, unless each new interpreter looks there of itself."""
    if getattr(sys, "frozen", False):
        return None
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    site = sys.modules.get("site")
    if site is not None and not sys.flags.no_site and folder in site.getsitepackages():
        return None
    return folder


def _taken_over():
    """Whether `multiprocessing` means this package here."""
    takeover = sys.modules.get(f"{__package__}.takeover")
    return takeover is not None and takeover.is_installed()


def spawn_main(pipe_handle, parent_pid=None, tracker_fd=None, parent_sentinel=None, takeover=0):
    """Be the child whose work is described in the file `pipe_handle`."""
    if not is_forking(sys.argv):
        raise AssertionError("spawn_main() is for children started by this package only")
    if takeover:
        from .takeover import install

        install()
    if tracker_fd is not None:
        process._family_tracker = tracker_fd
    if parent_sentinel is None:
        parent_sentinel = os.dup(pipe_handle)
    sys.exit(_main(pipe_handle, parent_sentinel))


def _main(fd, parent_sentinel):
    """Read what the parent pickled, first how to prepare, then the process object, and run that."""
    import _pickle

    current = process.current_process()
    with os.fdopen(fd, "rb") as from_parent:
        # The main module is imported now: a process started by it would do the same again, without end.
        current._inheriting = True
        try:
            prepare(_pickle.load(from_parent))
            process_obj = _pickle.load(from_parent)
        finally:
            del current._inheriting
    return process_obj._bootstrap(parent_sentinel)


_NO_GUARD = """
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        The start method in use imports the main module of the program in each
        child, and this main module starts processes when it is imported. Put
        what starts them where a child does not run it:

            if __name__ == '__main__':
                freeze_support()
                ...

        (The call of freeze_support() is needed only in programs that are
        made into a single executable.)
        """


def _check_not_importing_main():
    if getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(_NO_GUARD)


def get_preparation_data(name):
    """What a child has to know to be like this process: a dictionary for `prepare()`."""
    from .context import _default_context

    _check_not_importing_main()
    here = process.ORIGINAL_DIR
    data = {
        "name": name,
        # That of the standard package would have the child import it.
        "authkey": process.AuthenticationString(process.current_process().authkey),
        "log_to_stderr": util._log_to_stderr,
        # An empty entry means the current directory, which may be another by the time the child starts.
        "sys_path": [here if entry == "" and here is not None else entry for entry in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": here,
        "dir": os.getcwd(),
        "start_method": _default_context.get_start_method(allow_none=True),
    }
    if util._logger is not None:
        data["log_level"] = util._logger.getEffectiveLevel()
    if _taken_over():
        data["takeover"] = True
    data.update(_main_module_to_import())
    return data


def _main_module_to_import():
    """How a child finds the main module again: by its name, by its path, or not at all."""
    if getattr(sys, "frozen", False):
        # There is no file, and the child is the same program: it has run it as far as freeze_support().
        return {}
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is None:
        return {}
    if process.ORIGINAL_DIR is not None:
        path = os.path.join(process.ORIGINAL_DIR, path)
    return {"init_main_from_path": os.path.normpath(path)}


# Main modules that were replaced: functions of theirs may still be in use.
old_main_modules = []


def prepare(data):
    """Make this process like the one that sent `data`, as far as unpickling needs it."""
    current = process.current_process()
    if data.get("takeover"):
        from .takeover import install

        install()
    if "name" in data:
        current.name = data["name"]
    if "authkey" in data:
        current.authkey = data["authkey"]
    if data.get("log_to_stderr"):
        util.log_to_stderr()
    if "log_level" in data:
        util.get_logger().setLevel(data["log_level"])
    if "sys_path" in data:
        sys.path = data["sys_path"]
    if "sys_argv" in data:
        sys.argv = data["sys_argv"]
    if "dir" in data:
        os.chdir(data["dir"])
    if "orig_dir" in data:
        process.ORIGINAL_DIR = data["orig_dir"]
    if "standard_tracker" in data:
        from . import beside

        beside.take_over_tracker(data["standard_tracker"].detach())
    if "start_method" in data:
        from .context import _default_context

        _default_context.set_start_method(data["start_method"], force=True)
    if "init_main_from_name" in data:
        _fixup_main_from_name(data["init_main_from_name"])
    elif "init_main_from_path" in data:
        _fixup_main_from_path(data["init_main_from_path"])


def import_main_path(main_path):
    """Have the script at `main_path` as the main module."""
    _fixup_main_from_path(main_path)


def _fixup_main_from_name(mod_name):
    # The __main__ of a package or an archive has no guard, as it is never imported otherwise: it is left alone.
    if mod_name == "__main__" or mod_name.endswith(".__main__"):
        return
    # A fork of a process that has it already.
    if getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None) == mod_name:
        return
    import runpy

    module = _new_main()
    vars(module).update(runpy.run_module(mod_name, run_name="__mp_main__", alter_sys=True))
    _replace_main(module)


def _fixup_main_from_path(main_path):
    # IPython's start script has no guard either.
    if os.path.splitext(os.path.basename(main_path))[0] == "ipython":
        return
    if getattr(sys.modules["__main__"], "__file__", None) == main_path:
        return
    if main_path.endswith(".py") and os.path.isfile(main_path):
        module = _run_script(main_path)
    else:
        # A folder, an archive, compiled code, a script of another name.
        import runpy

        module = _new_main()
        vars(module).update(runpy.run_path(main_path, run_name="__mp_main__"))
    _replace_main(module)


def _new_main():
    # types.ModuleType; that module makes one object of each type it names.
    return type(sys)("__mp_main__")


def _run_script(path):
    """The module that running a script makes. runpy does the same, but is slow to import and copies the names."""
    module = _new_main()
    vars(module).update(__file__=path, __cached__=None, __package__="")
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    before = sys.modules.get("__mp_main__"), sys.argv[:1]
    sys.modules["__mp_main__"] = module
    sys.argv[:1] = [path]
    try:
        exec(code, vars(module))
    finally:
        sys.argv[:1] = before[1]
        if before[0] is not None:
            sys.modules["__mp_main__"] = before[0]
        else:
            sys.modules.pop("__mp_main__", None)
    return module


def _replace_main(module):
    old_main_modules.append(sys.modules["__main__"])
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
