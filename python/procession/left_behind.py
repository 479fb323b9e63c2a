"""What a program still has of the standard package when this one takes its place.

Its functions import what they need by name when they are called, and get this package: `Pool()` and `Lock()` make ours,
whoever calls them, and a process that is started now is started by us. What is there already goes on in this process
and in forked children: locks, queues, pipes, events, values, proxies, processes that run. New interpreters know the
standard package no more, so nothing of it can be pickled for them but processes, which become ours there. For the
same reason a running pool takes no more tasks.
"""

import warnings

from . import context, process, reduction, resource_tracker

__all__ = ["see_to"]

STANDARD = "multiprocessing"


def see_to(modules):
    """Have the objects that were made by these modules, which are no longer found, go on as far as they can."""
    if f"{STANDARD}.context" in modules:
        _become_ours(modules[f"{STANDARD}.context"], modules[f"{STANDARD}.process"])
        _warn_of_children(modules[f"{STANDARD}.process"])
    if f"{STANDARD}.resource_tracker" in modules:
        _keep_tracker(modules[f"{STANDARD}.resource_tracker"])


def _become_ours(theirs, their_process):
    # By name they would be looked for in our modules, and are not there.
    for name in ("Process", "ForkProcess", "SpawnProcess", "ForkServerProcess"):
        kind = getattr(theirs, name, None)
        if kind is not None:
            reduction.register(kind, _reduce_process)
    ours = process.AuthenticationString
    reduction.register(their_process.AuthenticationString, lambda key: ours(key).__reduce__())


def _reduce_process(obj):
    return _new_process, (type(obj).__name__,), vars(obj)


def _new_process(name):
    kind = getattr(context, name)
    return kind.__new__(kind)


def _warn_of_children(theirs):
    running = sorted(child.name for child in theirs.active_children())
    if running:
        warnings.warn(
            "procession takes the place of multiprocessing while that has processes running "
            f"({', '.join(running)}): if they are of a pool, it takes no more tasks. Call procession.install() before "
            "anything is started",
            RuntimeWarning,
            stacklevel=4,
        )


def _keep_tracker(theirs):
    # It knows the names of their locks, and removes them at the end. Locks of this package have none.
    ours = resource_tracker.unregister

    def unregister(name, rtype):
        """Take back what was registered: it is unlinked, or its user sees to it."""
        (theirs.unregister if rtype == "semaphore" else ours)(name, rtype)

    resource_tracker.unregister = unregister
