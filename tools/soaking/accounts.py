"""What came of each call, held against what its tasks noted in the ledger."""

from concurrent.futures import CancelledError

import procession
from procession import pool as pools

from . import ledger
from .tasks import Wrong, answer, is_pattern


class Lost(Exception):
    """Something did not happen as it has to; says what."""


# How long anything may take that has to happen, on a machine that is busy with other things.
PATIENCE = 120


class Call:
    """One call of a pool: its tasks, by key, and what came of it."""

    def __init__(self, form, items, options):
        self.form = form
        self.items = items
        self.options = options
        self.handle = None
        self.asked_to_cancel = None
        # What its callbacks were called with; None if it has none.
        self.heard = []
        self.outcome = None
        # Of an iterator: whether its items come out of chunks, whether it takes items only as results are taken, and
        # whether it was left before its end.
        self.by_chunks = self.buffered = self.cut = False

    def __repr__(self):
        items = self.items if len(self.items) < 4 else [*self.items[:3], "..."]
        return f"{self.form} of {[item[:3] for item in items if item != '...']} with {self.options}"

    @property
    def retries(self):
        """How often its tasks may be begun anew."""
        return self.options.get("retries", 0)

    def hear(self, what):
        """The callback: whatever it is called with."""
        self.heard.append(what)

    def settle(self):
        """Wait for what comes of it."""
        if self.outcome is None:
            try:
                self.outcome = "value", self.handle.get(PATIENCE)
            except BaseException as error:
                if type(error) is procession.TimeoutError:
                    raise Lost(f"no answer in {PATIENCE} s: {self}") from None
                self.outcome = "error", error

    def is_right(self, item, value):
        """Whether the value is that of the task."""
        key, kind, number, *_data = item
        if kind == "give":
            return not isinstance(value, int) and is_pattern(value, key, number)
        if not isinstance(value, int):
            return False
        if kind == "softly" and "soft_timeout" in self.options:
            return value in (answer(key), -answer(key))
        return value == answer(key)


def audit(calls, deaths, ended, book):
    """Account for every task of a round in a pool.

    `deaths` is how many workers were killed from outside, `ended` whether the pool was terminated while tasks were
    under way.
    """
    begun, done = book.counts(ledger.BEGUN), book.counts(ledger.DONE)
    known = {item[0] for call in calls for item in call.items}
    if strangers := (begun.keys() | done.keys()) - known:
        raise Lost(f"tasks ran that nobody asked for: {sorted(strangers)}")
    lost = 0
    for call in calls:
        for item in call.items:
            if begun[item[0]] > 1 + call.retries:
                raise Lost(f"task {item[0]} was begun {begun[item[0]]} times: {call}")
        if call.outcome is None:
            raise Lost(f"nothing came of {call}")
        if call.asked_to_cancel and not ended and not call.form.startswith("imap") and not _is_cancelled(call.outcome):
            raise Lost(f"it was cancelled, and yet there is {call.outcome} of {call}")
        kind, what = call.outcome
        if kind == "value":
            _audit_values(call, what, begun, done)
        elif kind == "each":
            lost += _audit_each(call, what, begun, done, deaths, ended)
        else:
            lost += _audit_error(call, call.items, what, deaths, ended)
        if call.heard is not None and len(call.heard) != 1 and not ended:
            raise Lost(f"its callbacks were called {len(call.heard)} times: {call}")
    own = sum(_own_deaths(call, item, begun) for call in calls for item in call.items)
    if lost > deaths + own:
        raise Lost(f"{lost} calls lost a worker, but only {deaths} were killed and {own} ended in their tasks")


def _is_cancelled(outcome):
    kind, what = outcome
    return kind == "error" and isinstance(what, CancelledError)


def _is_terminated(outcome):
    kind, what = outcome
    return kind == "error" and isinstance(what, RuntimeError) and "terminated" in str(what)


def _own_deaths(call, item, begun):
    if item[1] in ("die", "leave"):
        return begun[item[0]]
    return min(begun[item[0]], item[2]) if item[1] == "die_first" else 0


def _audit_values(call, what, begun, done):
    values = [what] if call.form.startswith("apply") else what
    if len(values) != len(call.items):
        raise Lost(f"{len(values)} values for {len(call.items)} tasks: {call}")
    for item, value in zip(call.items, values, strict=True):
        _audit_value(call, item, value, begun, done)


def _audit_value(call, item, value, begun, done):
    if not call.is_right(item, value):
        raise Lost(f"{value!r:.80} is not the value of task {item[:3]}: {call}")
    if not begun[item[0]] or not done[item[0]]:
        raise Lost(f"there is a value of task {item[0]}, which never ended: {call}")


def _audit_each(call, whats, begun, done, deaths, ended):
    """The items of an iterator one by one, values and errors. Returns how many lost their workers."""
    left = {item[0]: item for item in call.items}
    in_order = iter(call.items)
    lost = 0
    if whats and ((call.asked_to_cancel and _is_cancelled(whats[-1])) or (ended and _is_terminated(whats[-1]))):
        # In the place of what has no result, or at the end.
        whats = whats[:-1]
    for kind, what in whats:
        if call.form.startswith("imap_unordered"):
            if kind == "value":
                item = next((item for item in left.values() if call.is_right(item, what)), None)
                if item is None:
                    raise Lost(f"{what!r:.80} is the value of no task that is open: {call}")
                del left[item[0]]
                _audit_value(call, item, what, begun, done)
                continue
            lost += _audit_error(call, call.items, what, deaths, ended)
        else:
            item = next(in_order, None)
            if item is None:
                raise Lost(f"{len(whats)} results for {len(call.items)} tasks, the last {what!r:.200}: {call}")
            del left[item[0]]
            if kind == "value":
                _audit_value(call, item, what, begun, done)
            elif call.by_chunks:
                lost += _audit_error(call, call.items, what, deaths, ended)
            else:
                lost += _audit_error(call, [item], what, deaths, ended)
    if not ended and not call.cut and len(whats) != len(call.items):
        raise Lost(f"{len(whats)} results for {len(call.items)} tasks: {call}")
    return lost


def _audit_error(call, items, error, deaths, ended):
    """Whether an error is one that its tasks can end with. Returns 1 if it is for a lost worker."""
    kinds = {item[1] for item in items}
    if isinstance(error, Wrong):
        if "fail" in kinds:
            return 0
    elif isinstance(error, pools.TimeLimitExceeded):
        if "timeout" in call.options:
            return 0
    elif isinstance(error, pools.SoftTimeLimitExceeded):
        if "soft_timeout" in call.options:
            return 0
    elif isinstance(error, CancelledError):
        if call.asked_to_cancel:
            return 0
    elif isinstance(error, pools.WorkerLostError):
        if deaths or kinds & {"die", "leave", "die_first"}:
            return error.attempts
    elif ended and _is_terminated(("error", error)):
        return 0
    raise Lost(f"{type(error).__name__}: {error} is not what can come of {call}") from error
