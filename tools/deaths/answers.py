"""What rows find out, in the words of the table."""

import functools
import threading
import time

# So long an answer is waited for. Billiard needs 11 s to tell that a worker is dead.
PATIENCE = 20

GOOD, POOR, HANGS, NONE = "good", "poor", "hangs", "none"

# The names of the catalogue, and what tries them.
ROWS = {}


def row(function):
    """A row of the table: tries it on a peer, and returns a verdict and what happened."""
    ROWS[function.__name__] = function
    return function


def primitive(function):
    """A row about something that only those have that offer more than pools."""

    @functools.wraps(function)
    def tried(peer):
        mp = peer.mp()
        return (NONE, "no such thing") if mp is None else function(mp)

    return row(tried)


def within(seconds, function, *args):
    """Call a function in a thread that may hang: its result or exception, None if it does not come in time."""
    outcome = []

    def run():
        try:
            outcome.append(("value", function(*args)))
        except BaseException as error:
            outcome.append(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else None


def told(outcome):
    """An outcome in few words."""
    if outcome is None:
        return "nothing"
    kind, value = outcome
    if kind == "value":
        return "its result"
    # Billiard's is around the one that matters.
    inner = getattr(value, "exc", None)
    return type(inner if isinstance(inner, BaseException) else value).__name__


def timed(text, seconds):
    """What was told, and when, if that was long after: longer than workers need to start on a busy machine."""
    return f"{text} after {seconds:.0f} s" if seconds >= 6 else text


def eventually(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def judged(bad, others, wanted, seconds):
    """The verdict on a pool of which one task is bad and the others are to give their results."""
    good = sum(outcome == ("value", value) for outcome, value in zip(others, wanted, strict=True))
    none = sum(outcome is None for outcome in others)
    if bad is None:
        rest = (
            "the others finish"
            if good == len(others)
            else "all others too"
            if none == len(others)
            else "some others too"
        )
        return HANGS, f"hangs; {rest}" if good == len(others) else f"hangs, {rest}"
    if good == len(others):
        return GOOD, timed(told(bad), seconds)
    if none:
        return HANGS, f"{told(bad)}, but {none} of {len(others)} others hang"
    return POOR, f"{told(bad)}, also for {len(others) - good} of {len(others)} others"
