"""Pickles for peers that may be of the standard package: what is ours goes by the names it has there.

A manager's server and its clients don't know which package the other side runs. What they send each other is mostly
plain data, the same for all. Where an object of the package is among it (a proxy, a time-out), it is named as a
part of `multiprocessing`, and whoever runs this package takes that name for its own part.
"""

import importlib
import sys
from _pickle import Unpickler
from io import BytesIO
from types import FunctionType

from . import _core, reduction

__all__ = ["dumps", "loads"]

_OURS, _THEIRS = __package__, "multiprocessing"
# Found in any pickle that names something of the package, and in few others, which take the long way for nothing.
_OUR_MARK, _THEIR_MARK = _OURS.encode(), _THEIRS.encode()
# What the standard package has in one module.
_THERE = {"manager_client": "managers", "manager_server": "managers", "proxies": "managers"}


def dumps(obj):
    """The pickle of an object."""
    data = _core.dumps(obj)
    if _OUR_MARK not in data:
        return data
    buffer = BytesIO()
    _Pickler(buffer, -1).dump(obj)
    return buffer.getvalue()


def loads(data):
    """The object of a pickle."""
    if _THEIR_MARK not in data:
        return _core.loads(data)
    return _Unpickler(BytesIO(data)).load()


class _Module:
    """Pickled, the import of a module: one that may not be there, or is another one here."""

    def __init__(self, name):
        self._name = name

    def __reduce__(self):
        return importlib.import_module, (self._name,)


class _Pickler(reduction.ForkingPickler):
    def reducer_override(self, obj):
        if not isinstance(obj, (type, FunctionType)):
            return NotImplemented
        package, _, module = (obj.__module__ or "").partition(".")
        if package != _OURS or not module or "." in obj.__qualname__:
            return NotImplemented
        return getattr, (_Module(f"{_THEIRS}.{_THERE.get(module, module)}"), obj.__qualname__)


class _Unpickler(Unpickler):
    def find_class(self, module, name):
        if module == importlib.__name__ and name == "import_module":
            return _import
        try:
            return super().find_class(_here(module), name)
        except (ImportError, AttributeError):
            # We have nothing of the kind.
            return super().find_class(module, name)


def _here(module):
    package, _, rest = module.partition(".")
    return module if package != _THEIRS else f"{_OURS}.{rest}" if rest else _OURS


def _import(name):
    name = _here(name)
    return sys.modules.get(name) or importlib.import_module(name)
