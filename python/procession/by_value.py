"""Functions and classes that a worker can't find by name, by value: through cloudpickle, where that is installed.

pickle writes down a function or a class by its name, and the reader imports it. Lambdas, functions within functions and
what stands in a main module that is no file (a notebook, a prompt, `-c`) are not to be found that way. Pools give to
cloudpickle what pickle refuses, and what of such a main module their workers don't know; it is imported when this
happens first. What it writes, plain pickle reads.
"""

import io
import sys
import types
from _pickle import PicklingError, loads
from collections import ChainMap
from functools import cache

from . import _core, reduction

__all__ = ["ByValue", "Main", "dumps", "portable", "prepare", "stand_in"]

PROTOCOL = 5

# What pickle refuses with.
REFUSALS = (AttributeError, TypeError, PicklingError)

ADVICE = "functions and classes that can't be found by name can be sent if cloudpickle is installed"


class ByValue:
    """Its pickle is read as the object of the pickle that it has."""

    __slots__ = ("pickle",)

    def __init__(self, pickle):
        self.pickle = pickle

    def __reduce__(self):
        return loads, (self.pickle,)


def _named_in_main(obj):
    """Whether it is a function or a class of the main module, going by what it says of itself."""
    return isinstance(obj, (types.FunctionType, type)) and getattr(obj, "__module__", None) == "__main__"


def _found_in(names, obj):
    """Whether it is found by its name, from the names of a module on."""
    first, *rest = obj.__qualname__.split(".")
    found = names.get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found is obj


def _found_in_main(obj):
    return _found_in(vars(sys.modules["__main__"]), obj)


@cache
def _pickler():
    """A class of picklers that write functions and classes by value. ImportError if cloudpickle is not there."""
    import cloudpickle  # type: ignore[import-untyped]

    reduction._know_sockets()

    class Pickler(cloudpickle.Pickler):
        # The reducers of connections and whatever was registered.
        dispatch_table = ChainMap(reduction.ForkingPickler._extra_reducers, cloudpickle.Pickler.dispatch_table)

        def __init__(self, file, knows):
            super().__init__(file, PROTOCOL)
            self._knows = knows

        def reducer_override(self, obj):
            # By name where pickle would do so and the reader finds it: a class is to stay one class.
            return NotImplemented if _named_in_main(obj) and self._knows(obj) else super().reducer_override(obj)

    return Pickler


def _dumps(obj, knows):
    file = io.BytesIO()
    _pickler()(file, knows).dump(obj)
    return file.getvalue()


def stand_in(obj, refusal, knows=_found_in_main):
    """What can be pickled in place of an object that pickle has refused. Raises the refusal if nothing can."""
    try:
        return ByValue(_dumps(obj, knows))
    except ImportError:
        refusal.add_note(ADVICE)
    except Exception as error:
        refusal.add_note(f"cloudpickle can't send it either: {error!r}")
    raise refusal


def dumps(obj):
    """The pickle of an object, of which a part may go by value."""
    try:
        return _core.dumps(obj)
    except REFUSALS as refusal:
        return stand_in(obj, refusal).pickle


def prepare(engine, forks, has_file, initializer, initargs, maxtasks, life):
    """The same of what a worker is started with, as far as it can be sent to it. To be called when a pool is made."""
    to_send = portable
    if not has_file:
        main = Main(forks)
        engine.send_main(main)
        to_send = main.portable
    if not forks:
        initializer = to_send(initializer)
        if isinstance(initargs, (tuple, list)):
            initargs = tuple(map(to_send, initargs))
        if life is not None:
            life = life.sendable(to_send)
    return initializer, initargs, maxtasks, life


def portable(obj):
    """What to pickle in place of a function or a class: mostly itself. Anything else is left as it is."""
    if isinstance(obj, (types.FunctionType, type)):
        try:
            _core.dumps(obj)
        except REFUSALS as refusal:
            return stand_in(obj, refusal)
    return obj


class Main:
    """A main module that is no file: what of it the workers of a pool know.

    Forked ones know what stood there when the pool was made, new interpreters know nothing. What was defined, or
    defined anew, later on goes by value.
    """

    def __init__(self, forks):
        names = vars(sys.modules["__main__"]) if forks else {}
        # Nothing else: a prompt may have large things under other names.
        self._known = {name: value for name, value in names.items() if isinstance(value, (types.FunctionType, type))}

    def _knows(self, obj):
        return _found_in(self._known, obj)

    def stand_in(self, obj, refusal):
        """As the function of this name."""
        return stand_in(obj, refusal, self._knows)

    def dumps(self, obj):
        """The pickle of an object that has something of the main module in it, and that pickle has not refused."""
        file = io.BytesIO()
        watching = _Watching(file, self._knows)
        watching.dump(obj)
        if watching.met_unknown:
            try:
                return _dumps(obj, self._knows)
            except ImportError:
                # By name, then, and a worker may say that it does not find it.
                pass
        return file.getvalue()

    def portable(self, obj):
        """As the function of this name."""
        if _named_in_main(obj) and not self._knows(obj):
            try:
                return ByValue(_dumps(obj, self._knows))
            except ImportError:
                pass
        return portable(obj)


class _Watching(reduction.ForkingPickler):
    """Sees whether something is written down by a name that workers don't know."""

    def __init__(self, file, knows):
        super().__init__(file, PROTOCOL)
        self._knows = knows
        self.met_unknown = False

    def reducer_override(self, obj):
        if _named_in_main(obj) and not self._knows(obj):
            self.met_unknown = True
        return NotImplemented
