"""The standard package beside this one.

A program says `import procession as multiprocessing`, and one of its libraries imports the standard `multiprocessing`:
before, after, or only in a child. What the two packages know of the *process* is then one thing, whichever of them
started it. Nothing here imports the standard package; it is only looked for in `sys.modules`. While it is not there,
this module is not even imported, and a finder (`Watch`, in `process`) waits for it.

Scenarios, each played in tests/test_beside.py:

who       Either package's `current_process()` and `parent_process()` are the same objects: those of the package whose
          child this is, or, in the main process, of the package that was imported first. So names (logging asks the
          standard package for them), `_identity`, authkey, `daemon` and `_inheriting` agree, the children of both are
          numbered by one counter, and no daemonic process of one has children of the other. `active_children()` of
          this package lists the children of both; at the end of a process each package sees to its own.
start     While either package starts a process, both pickle for a child: the slot with the starting `Popen` is one
          object. So locks, queues, values, connections and proxies of one are arguments of children of the other.
names     The resource tracker of the standard package, which removes what has a name, is handed to our children as it
          is to its own: the end of a child takes nothing away from its parent.
reducers  What is registered with one `ForkingPickler` is known to both. Where both have a reducer of their own, each
          keeps it.
forks     In a forked child the after-fork hooks of both run, and neither runs finalizers of the parent. At the end of
          the child the finalizers of both run.
errors    `ProcessError`, `TimeoutError`, `AuthenticationError` and `BufferTooShort` are the same classes in both, those
          of the package that was imported first: `except` of either catches what either raised.
late      The standard package may be imported at any time, in a child too, and has all this before the statement that
          imports it goes on.
gone      After `procession.install()` the standard package is no longer found, but whoever had taken it before still
          uses it. What was joined stays joined.
"""

import os
import sys

from . import context, process

__all__ = [
    "after_fork",
    "at_exit",
    "entered",
    "found",
    "hand_over",
    "join",
    "join_reducers",
    "join_utils",
    "take_over_tracker",
]

STANDARD = "multiprocessing"
ERRORS = ("ProcessError", "BufferTooShort", "TimeoutError", "AuthenticationError")

# The standard package's resource tracker, as the parent handed it over, until the module that uses it is there.
_tracker_fd = None
# The standard `util`, once it is joined.
_util = None
# The process whose inherited hooks and finalizers are dealt with: this one has inherited none of ours.
_settled = os.getpid()
# While the hooks of the standard package run in a child that it did not start.
_in_child_of_ours = False


def join(first=False):
    """Join with the standard package if it is there and this was not done yet. `first`: it was there before us."""
    if process._standard is None:
        standard = _standard("context")
        if standard is None:
            return
        _join_processes(_standard("process"), first)
        _join_starts(standard, first)
        _join_errors(standard, first)
        join_reducers()
    join_utils()
    _pass_tracker_on()


def _standard(name):
    """A module of the standard package, if it is loaded to its end and is not one of ours by another name."""
    module = sys.modules.get(f"{STANDARD}.{name}")
    theirs = getattr(module, "__name__", None) == f"{STANDARD}.{name}"
    return module if theirs and hasattr(module, _LAST[name]) else None


# What each of its modules defines last: it may be half loaded, by another thread or by a circle of imports.
_LAST = {
    "context": "_default_context",
    "process": "_dangling",
    "reduction": "AbstractReducer",
    "resource_tracker": "getfd",
    "util": "_exit_function",
}


# late


def found(watch, name, path, target):
    """How the module `name` of the standard package is loaded, with what is to be done when it is there."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if finder is watch or find is None:
            continue
        spec = find(name, path, target)
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader)
            return spec
    return None


class _Loader:
    """A module's loader, and what follows."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module):
        """Load it, and join with it before anybody sees it."""
        for holder, attribute in ((module, "__loader__"), (getattr(module, "__spec__", None), "loader")):
            if getattr(holder, attribute, None) is self:
                setattr(holder, attribute, self._loader)
        self._loader.exec_module(module)
        join()


# who


def _join_processes(standard, first):
    elder, younger = (standard, process) if first else (process, standard)
    for name in ("_current_process", "_parent_process", "_process_counter"):
        setattr(younger, name, getattr(elder, name))
    process._standard = standard


def entered():
    """This process is a child of ours that begins: for the standard package, too."""
    standard = process._standard
    for name in ("_current_process", "_parent_process", "_process_counter"):
        setattr(standard, name, getattr(process, name))
    # The children of the parent.
    standard._children = set()


# start


def _join_starts(standard, first):
    # Local to the thread, with one attribute, of the same name in both.
    if first:
        context._tls = standard._tls
    else:
        standard._tls = context._tls


def _join_errors(standard, first):
    for ours, theirs in ((context, standard), (context.BaseContext, standard.BaseContext), _packages()):
        elder, younger = (theirs, ours) if first else (ours, theirs)
        for name in ERRORS:
            setattr(younger, name, getattr(elder, name))


def _packages():
    return sys.modules[__package__], sys.modules[STANDARD]


# names


def hand_over(preparation, popen):
    """Have a child that is being started get the standard package's tracker, if the program may use that."""
    tracker = _standard("resource_tracker")
    if tracker is not None:
        preparation["standard_tracker"] = popen.DupFd(popen.duplicate_for_child(tracker.getfd()))


def take_over_tracker(fd):
    """Use the tracker that the parent handed over. The standard package may come later."""
    global _tracker_fd
    _tracker_fd = fd
    _pass_tracker_on()


def _pass_tracker_on():
    global _tracker_fd
    tracker = _standard("resource_tracker")
    if _tracker_fd is not None and tracker is not None:
        tracker._resource_tracker._fd, _tracker_fd = _tracker_fd, None


# reducers


class _Heard(dict):
    """The standard package's reducers: what is registered there is registered here as well."""

    def __setitem__(self, kind, reduce):
        super().__setitem__(kind, reduce)
        _lend(kind, reduce, _ours().ForkingPickler._extra_reducers)


# Reducers that a table has from the other package. One of its own takes their place.
_lent = {}


def _lend(kind, reduce, table):
    if kind not in table or _lent.get((id(table), kind)) is table[kind]:
        dict.__setitem__(table, kind, reduce)
        _lent[id(table), kind] = reduce


def _ours():
    return sys.modules[f"{__package__}.reduction"]


def join_reducers():
    """Have each package know what is registered with the other, now and later."""
    ours, theirs = sys.modules.get(f"{__package__}.reduction"), _standard("reduction")
    if ours is None or theirs is None or not hasattr(ours, "AbstractReducer"):
        return
    here, there = ours.ForkingPickler, theirs.ForkingPickler
    there._extra_reducers = _Heard(there._extra_reducers)
    for source, table in ((there, here), (here, there)):
        for kind, reduce in list(source._extra_reducers.items()):
            _lend(kind, reduce, table._extra_reducers)
    ours._lend = lambda kind, reduce: _lend(kind, reduce, there._extra_reducers)


# forks


class _Anchor:
    """The hook of the standard package lives as long as the object that it is for."""


_anchor = _Anchor()


def join_utils():
    """Have the standard package's children run our hooks and finalizers."""
    global _util
    theirs = _standard("util")
    if _util is not None or theirs is None:
        return
    _util = theirs
    theirs.register_after_fork(_anchor, lambda _anchor: _standard_forked())
    if process._standard._parent_process is not None and type(process._current_process).__module__ != process.__name__:
        # In a child of the standard package already.
        _end_with_standard()


def _standard_forked():
    """A child of the standard package begins."""
    global _settled
    if _in_child_of_ours:
        return
    process.current_process()
    if _settled != os.getpid() and (ours := sys.modules.get(f"{__package__}.util")) is not None:
        ours._finalizer_registry.clear()
        ours._run_own_after_forkers()
    _settled = os.getpid()
    _end_with_standard()


def _end_with_standard():
    # Before Python 3.13 its forked children do not run what is registered with atexit.
    _util.Finalize(None, _exit, exitpriority=0)


def _exit():
    if (ours := sys.modules.get(f"{__package__}.util")) is not None:
        ours._exit_function()


def after_fork():
    """A forked child of ours begins: what the standard package does in its own."""
    global _settled, _in_child_of_ours
    _settled = os.getpid()
    if _util is not None:
        _in_child_of_ours = True
        _util._finalizer_registry.clear()
        _util._run_after_forkers()
        _in_child_of_ours = False


def at_exit():
    """What the standard package does at the end of a process; None if it has nothing to do."""
    return None if _util is None else _util._exit_function
