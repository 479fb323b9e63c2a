"""Systems that procession has no port to: there the standard package stands in for it, and says so."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings

__all__ = ["stand_in"]

STANDARD = "multiprocessing"


def stand_in(package, reason):
    """Have the standard package's names in `package`, and its submodules below it. Returns the public names."""
    warnings.warn(
        f"{package} has no port to this system ({sys.platform}): the standard {STANDARD} is used instead ({reason})",
        RuntimeWarning,
        stacklevel=3,
    )
    standard = importlib.import_module(STANDARD)
    module = sys.modules[package]
    for name in standard.__all__:
        setattr(module, name, getattr(standard, name))
    sys.meta_path.insert(0, _Finder(package))
    return list(standard.__all__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `package.x` in the standard package; the modules of this package that run programs are left."""

    def __init__(self, package):
        self.prefix = package + "."

    def find_spec(self, name, path=None, target=None):
        part = name.removeprefix(self.prefix)
        if part == name or part.startswith(("takeover", "fallback", "__main__")):
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(f"{STANDARD}.{part}"))


class _Loader(importlib.abc.Loader):
    def __init__(self, name):
        self.name = name

    def exec_module(self, module):
        # The import system returns what it finds under the name afterwards.
        sys.modules[module.__name__] = importlib.import_module(self.name)
