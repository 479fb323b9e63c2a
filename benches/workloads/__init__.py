"""The measured work. Each workload is written against the standard package's API and is handed the implementation.

A workload returns the seconds that its operations took, and nothing else that happened: processes are started and ready
before the clock starts. It checks its own result, and raises `WrongResult` where it is not what it has to be.

These modules import little: what they import, each spawned child imports as well.
"""

import os
import time


class WrongResult(Exception):
    """The work was done, and done wrongly: its time means nothing."""


class Workload:
    """A function run(mp, count), and how much of it is done and what is made of the answer."""

    def __init__(self, run, title, count, quick, unit, target):
        self.run, self.title = run, title
        self.name = run.__name__
        self.count, self.quick = count, quick  # operations; with --quick
        self.unit = unit  # of what is printed: "ns", "us" and "ms" per operation, "MB" as it is
        self.target = target  # the least ratio aimed at; None: not to be slower


WORKLOADS = {}


def workload(title, *, count, quick=None, unit="us", target=None):
    """Register a function as a workload, under its own name."""

    def register(function):
        made = Workload(function, title, count, quick or max(1, count // 10), unit, target)
        WORKLOADS[made.name] = made
        return function

    return register


def expect(got, wanted):
    if got != wanted:
        raise WrongResult(f"got {got!r:.200}, not {wanted!r:.200}")


def _member(index, ready, go, report, function, arguments):
    os.write(ready, b".")
    os.read(go, 1)
    answer = function(*arguments)
    os.write(report, b"%d %d\n" % (index, answer))


def crew(ctx, jobs, here=None):
    """Run `jobs`, pairs of a function and its arguments, in a process each, all started at one signal.

    `here`, if given, runs in this process meanwhile. Returns the seconds from the signal to the last answer, and the
    answers (integers): those of the jobs, and that of `here` at the end. The signals go over plain pipes, so that
    no more of the implementation is measured than the jobs use.
    """
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    report_r, report_w = os.pipe()
    members = [
        ctx.Process(target=_member, args=(index, ready_w, go_r, report_w, *job)) for index, job in enumerate(jobs)
    ]
    for member in members:
        member.start()
    for inherited in (ready_w, go_r, report_w):
        os.close(inherited)
    with open(ready_r, "rb") as ready, open(report_r) as report:
        expect(len(ready.read(len(jobs))), len(jobs))
        began = time.perf_counter()
        os.write(go_w, b"." * len(jobs))
        own = [here()] if here else []
        lines = [report.readline() for _ in jobs]
        took = time.perf_counter() - began
    os.close(go_w)
    for member in members:
        member.join()
    expect([member.exitcode for member in members], [0] * len(members))
    answers = dict(map(int, line.split()) for line in lines)
    return took, [answers[index] for index in range(len(jobs))] + own
