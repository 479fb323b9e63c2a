"""Taking the place of `multiprocessing`: whoever imports it, or a module of it, gets this package.

The standard package is not touched; it is only no longer found by that name. Children of any start method are taken
over as well, before they import anything of the program.
"""

import importlib
import importlib.machinery
import importlib.util
import sys

from . import process

__all__ = ["install", "is_installed"]

STANDARD = "multiprocessing"


def install():
    """Have `import multiprocessing`, here and in all children, mean this package.

    To be called before anything else imports `multiprocessing`: names that a module has taken from the standard package
    stay what they are, and of the objects made with them not all can be used further. If the standard package has
    processes running, a RuntimeWarning says so.
    """
    if is_installed() or f"{__package__}.fallback" in sys.modules:
        # Or the standard package stands in for this one.
        return
    package = sys.modules[__package__]
    if STANDARD in sys.modules and sys.modules[STANDARD] is package:
        # An alias was made by other means.
        return
    gone = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_standard(name)}
    # What was joined with the standard package stays so (see `beside`); it will not be imported any more.
    sys.meta_path[:] = [_Finder(), *(finder for finder in sys.meta_path if not isinstance(finder, process.Watch))]
    sys.modules[STANDARD] = package
    # Those that the standard package has imported when it is imported itself.
    for name in ("context", "process"):
        sys.modules[f"{STANDARD}.{name}"] = sys.modules[f"{__package__}.{name}"]
    _release_executor(package)
    if gone:
        from . import left_behind

        left_behind.see_to(gone)


def is_installed():
    """Whether `multiprocessing` means this package."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _is_standard(name):
    return name == STANDARD or name.startswith(STANDARD + ".")


def _release_executor(package):
    # ProcessPoolExecutor holds the modules it imported. Its own module is imported anew when it is next asked for,
    # unless it has none as yet: then it is its import that has us come in.
    if getattr(sys.modules.get("concurrent.futures.process"), "mp", package) is not package:
        del sys.modules["concurrent.futures.process"]
        futures = sys.modules.get("concurrent.futures")
        for name in ("process", "ProcessPoolExecutor"):
            vars(futures).pop(name, None)


class _Finder:
    """Finds `multiprocessing.x` as the module x of this package."""

    def find_spec(self, name, path=None, target=None):
        if not _is_standard(name):
            return None
        ours = __package__ + name.removeprefix(STANDARD)
        # Only looked for: finders are called under a lock of the import system, for which another thread may wait while
        # it has the module's.
        try:
            found = importlib.util.find_spec(ours)
        except ModuleNotFoundError:
            # What it would be a part of is no package.
            return None
        return found and importlib.machinery.ModuleSpec(name, _Loader(ours), origin=found.origin)

    def invalidate_caches(self):
        """Nothing is cached here."""


class _Loader:
    """Loads a module of this package, which may be there already."""

    def __init__(self, ours):
        self.ours = ours

    def create_module(self, spec):
        """A placeholder: what is returned here would get a new name and spec."""

    def exec_module(self, placeholder):
        """Put the module where the import system looks for it afterwards."""
        sys.modules[placeholder.__name__] = importlib.import_module(self.ours)
