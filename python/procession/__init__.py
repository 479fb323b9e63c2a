"""Python's multiprocessing, built new in Rust: the same names, the same behaviour.

In one's own program: `import procession as multiprocessing`. For a program as it is, its libraries and its children:
`python -m procession script.py`, or `procession.install()` from within.
"""

import sys

try:
    from . import _core  # noqa: F401
except ImportError as error:
    if sys.platform.startswith("linux") and isinstance(error, ModuleNotFoundError):
        # Not a missing port, but a broken installation.
        raise
    from . import fallback

    __all__ = fallback.stand_in(__name__, error)  # noqa: PLE0605 (a list, as below)
else:
    from . import context, process

    if "multiprocessing" in sys.modules:
        from . import beside

        beside.join(first=True)
    sys.meta_path.insert(0, process.Watch())

    # Everything public of the default context is a name of the package. The reducer alone is not looked up: that would
    # import the pickler.
    __all__ = [name for name in dir(context._default_context) if not name.startswith("_")]
    globals().update({name: getattr(context._default_context, name) for name in __all__ if name != "reducer"})

    SUBDEBUG, SUBWARNING = 5, 25

    # A main module is also known by this name: objects of it that a child pickles are found in the parent.
    if "__main__" in sys.modules:
        sys.modules["__mp_main__"] = sys.modules["__main__"]


def __getattr__(name):
    if name == "install":
        from .takeover import install

        return install
    if name == "shared_array":
        from .arrays import shared_array

        return globals().setdefault(name, shared_array)
    if name == "reducer" and name in __all__:
        return context._default_context.reducer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
