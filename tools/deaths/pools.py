"""Rows about pools: what becomes of tasks when workers die, and of pools when tasks do what they should not."""

import functools
import itertools
import os
import signal
import tempfile
import threading
import time

from . import tasks
from .answers import GOOD, HANGS, PATIENCE, POOR, eventually, judged, row, told, within

OTHERS = [10, 11, 12]


def fresh(name="mark"):
    """A path where there is nothing yet."""
    return os.path.join(tempfile.mkdtemp(), name)


def one_bad(peer, func, *args, **options):
    """Hand in a bad task and three good ones, then three more; what becomes of them."""
    with peer.pool(2, **options) as pool:
        bad = within(PATIENCE, pool.submit, func, *args)
        if bad is None:
            return HANGS, "handing it in hangs"
        began = time.monotonic()
        kind, handle = bad
        handles = [pool.submit(tasks.sleep_and_return, 0.2, x) for x in OTHERS]
        outcome = pool.outcome(handle, PATIENCE) if kind == "value" else bad
        took = time.monotonic() - began
        others = outcomes(pool, handles)
        verdict, text = judged(outcome, others, OTHERS, took)
        if verdict != GOOD:
            return verdict, text
        return and_later(pool, text)


def outcomes(pool, handles):
    deadline = time.monotonic() + PATIENCE
    return [pool.outcome(handle, max(0.1, deadline - time.monotonic())) for handle in handles]


def and_later(pool, text, so_far=None):
    """Whether the pool is still of use: `text` if so; if not, `so_far` or `text`, and what becomes of later tasks."""
    text, good = (text if so_far is None else so_far), text
    before = f"{text}; " if text else ""
    later = within(PATIENCE, lambda: outcomes(pool, [pool.submit(tasks.identity, x) for x in OTHERS]))
    if later is None or (later[0] == "value" and None in later[1]):
        return HANGS, f"{before}later tasks hang"
    if later != ("value", [("value", x) for x in OTHERS]):
        error = later[1] if later[0] == "error" else next(o[1] for o in later[1] if o[0] == "error")
        return POOR, f"{before}later tasks: {type(error).__name__}"
    return GOOD, good


@row
def task_kills_its_worker(peer):
    return one_bad(peer, tasks.kill_myself)


@row
def task_exits_its_worker(peer):
    return one_bad(peer, tasks.exit_at_once)


@row
def task_raises_base_exception(peer):
    return one_bad(peer, tasks.raise_outside)


@row
def task_raises_keyboard_interrupt(peer):
    return one_bad(peer, tasks.interrupt)


@row
def task_calls_sys_exit(peer):
    return one_bad(peer, tasks.leave)


@row
def exception_wants_other_arguments(peer):
    return one_bad(peer, tasks.raise_two_arguments)


@row
def result_cannot_be_pickled(peer):
    return one_bad(peer, tasks.return_lock)


@row
def result_cannot_be_unpickled(peer):
    return one_bad(peer, tasks.return_unreadable)


@row
def argument_cannot_be_pickled(peer):
    return one_bad(peer, tasks.identity, threading.Lock())


@row
def argument_cannot_be_unpickled(peer):
    return one_bad(peer, tasks.identity, tasks.Unreadable())


@row
def worker_killed_while_taking(peer):
    return one_bad(peer, tasks.identity, tasks.Deadly())


@row
def lambda_task(peer):
    verdict, text = one_bad(peer, lambda: 7)
    return (POOR, text) if verdict == GOOD and text != "its result" else (verdict, text)


@row
def worker_killed_while_it_waits(peer):
    with peer.pool(2) as pool:
        pids = {outcome[1] for outcome in outcomes(pool, [pool.submit(tasks.pid) for _ in range(8)])}
        time.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        return and_later(pool, "replaced", "")


@row
def worker_killed_while_publishing(peer):
    lost = 0
    with peer.pool(2) as pool:
        for delay in (0, 0.002, 0.005, 0.01, 0.02):
            handle = within(PATIENCE, pool.submit, tasks.large_and_deadly, 32 << 20, delay)
            outcome = pool.outcome(handle[1], PATIENCE) if handle and handle[0] == "value" else handle
            if outcome is None:
                return HANGS, "hangs"
            lost += outcome[0] == "error"
            time.sleep(0.1)
            verdict, text = and_later(pool, told(outcome))
            if verdict != GOOD:
                return verdict, text
    return GOOD, f"{lost} of 5 tasks fail"


@row
def worker_killed_at_start(peer):
    with peer.pool(2, initializer=tasks.die_at_first, initargs=(fresh(), 2)) as pool:
        return and_later(pool, "the next ones work", "")


def never_ready(peer, initializer):
    with peer.pool(2, initializer=initializer) as pool:
        handle = within(PATIENCE, pool.submit, tasks.identity, 1)
        outcome = pool.outcome(handle[1], PATIENCE) if handle and handle[0] == "value" else handle
        return (HANGS, "hangs") if outcome is None else (GOOD, told(outcome))


@row
def initializer_keeps_dying(peer):
    return never_ready(peer, tasks.kill_myself)


@row
def initializer_keeps_failing(peer):
    return never_ready(peer, tasks.fail_to_begin)


@row
def map_loses_a_worker(peer):
    with peer.pool(2) as pool:
        outcome = within(PATIENCE, pool.map, tasks.kill_at_three, range(8))
        if outcome is None:
            return HANGS, "hangs"
        return and_later(pool, told(outcome))


@row
def stream_loses_a_worker(peer):
    with peer.pool(2) as pool:
        got, errors = [], []

        def take():
            stream = iter(pool.stream(tasks.kill_at_three, range(8), ahead=4))
            for _ in range(8):
                try:
                    got.append(next(stream))
                except StopIteration:
                    return
                except Exception as error:
                    errors.append(error)

        over = within(PATIENCE, take)
        name = type(errors[0]).__name__ if errors else over[1] if over else "nothing"
        if over is None:
            return HANGS, f"hangs after {len(got)} of 7 results"
        if len(got) < 7:
            return POOR, f"{name}, {len(got)} of 7 results"
        return GOOD, f"{name}, and the 7 results"


@row
def callback_raises(peer):
    with peer.pool(2) as pool:
        handle = pool.submit_called_back(lambda value: 1 / 0, tasks.identity, 1)
        outcome = pool.outcome(handle, PATIENCE)
        if outcome is None:
            return HANGS, "hangs"
        return and_later(pool, told(outcome))


@row
def callback_waits_for_a_dead_worker(peer):
    with peer.pool(2) as pool:
        heard = []

        def callback(_):
            heard.append(pool.outcome(pool.submit(tasks.kill_myself), PATIENCE))

        pool.submit_called_back(callback, tasks.identity, 1)
        if not eventually(lambda: heard, PATIENCE + 5) or heard[0] is None:
            return HANGS, "hangs"
        return GOOD, told(heard[0])


@row
def close_after_a_death(peer):
    with peer.pool(2) as pool:
        pool.submit(tasks.kill_myself)
        over = within(PATIENCE, pool.end)
        return (HANGS, "hangs") if over is None else (GOOD, "ends")


@row
def close_in_a_signal_handler(peer):
    with peer.pool(2) as pool:
        handle = pool.submit(tasks.sleep_and_return, 1, 7)
        signal.signal(signal.SIGALRM, lambda *_: pool.close())
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        outcome = pool.outcome(handle, PATIENCE)
        over = within(PATIENCE, pool.end)
        return (GOOD, "ends") if outcome == ("value", 7) and over else (HANGS, "hangs")


def terminated(peer, stuck, *args, then=lambda pid: None):
    path = fresh()
    with peer.pool(2) as pool:
        pids = {outcome[1] for outcome in outcomes(pool, [pool.submit(tasks.pid) for _ in range(8)])}
        pool.submit(stuck, path, *args)
        if not eventually(lambda: os.path.exists(path)):
            return HANGS, "the task is not begun"
        for pid in pids:
            then(pid)
        began = time.monotonic()
        over = within(PATIENCE, pool.terminate)
        took = time.monotonic() - began
        return (HANGS, "hangs") if over is None else (GOOD, f"{took:.0f} s" if took >= 0.5 else "at once")


@row
def terminate_with_a_stuck_worker(peer):
    return terminated(peer, tasks.ignore_sigterm)


@row
def terminate_with_a_stopped_worker(peer):
    return terminated(peer, tasks.sleep_long, then=lambda pid: os.kill(pid, signal.SIGSTOP))


@row
def terminate_while_others_wait(peer):
    path, heard = fresh(), []
    with peer.pool(2) as pool:
        handle = pool.submit(tasks.sleep_long, path)
        if not eventually(lambda: os.path.exists(path)):
            return HANGS, "the task is not begun"
        threading.Thread(target=lambda: heard.append(pool.outcome(handle, 2 * PATIENCE)), daemon=True).start()
        time.sleep(0.2)
        if within(PATIENCE, pool.terminate) is None:
            return HANGS, "terminate hangs"
        if not eventually(lambda: heard) or heard[0] is None:
            return HANGS, "it hangs"
        return GOOD, told(heard[0])


@row
def each_task_its_own_worker(peer):
    with peer.pool(2, lives=1) as pool:
        outcome = within(3 * PATIENCE, pool.map, tasks.identity, range(60))
        if outcome is None:
            return HANGS, "hangs"
        return (GOOD, "all done") if outcome == ("value", list(range(60))) else (POOR, told(outcome))


@row
def endless_iterable(peer):
    taken = itertools.count()
    last = 0

    def items():
        nonlocal last
        for last in taken:
            if last >= 20_000:
                return
            yield last

    with peer.pool(2) as pool:
        first = within(PATIENCE, lambda: next(iter(pool.stream(tasks.identity, items(), ahead=4))))
        time.sleep(1)
        if first is None:
            return POOR, f"{last}, and no result yet"
        return (GOOD if last < 100 else POOR), f"{last}"


# Limits, cancelling, retries, nesting


def limited(submit, seconds, func, *args):
    began = time.monotonic()
    handle = submit(seconds, func, *args)

    def judge(pool):
        outcome = pool.outcome(handle, PATIENCE)
        took = time.monotonic() - began
        if outcome is None:
            return HANGS, "hangs"
        return and_later(pool, f"{told(outcome)} after {took:.1f} s")

    return judge


@row
def time_limit(peer):
    with peer.pool(2) as pool:
        return limited(pool.submit_limited, 1, tasks.sleep_long)(pool)


@row
def time_limit_ignores_signals(peer):
    with peer.pool(2) as pool:
        return limited(pool.submit_limited, 1, tasks.ignore_all)(pool)


@row
def soft_time_limit(peer):
    with peer.pool(2) as pool:
        handle = pool.submit_soft(1, tasks.catch, fresh(), 10)
        outcome = pool.outcome(handle, PATIENCE)
        if outcome is None:
            return HANGS, "hangs"
        caught = outcome == ("value", "SoftTimeLimitExceeded")
        return and_later(pool, outcome[1]) if caught else (POOR, f"{told(outcome)}: {outcome[1]}")


def cancelled(pool, handle):
    if not pool.cancel(handle):
        return POOR, "refused"
    outcome = pool.outcome(handle, PATIENCE)
    return (HANGS, "hangs") if outcome is None else (GOOD, told(outcome))


@row
def cancel_a_running_task(peer):
    path = fresh()
    with peer.pool(2) as pool:
        handle = pool.submit(tasks.sleep_long, path)
        if not eventually(lambda: os.path.exists(path)):
            return HANGS, "the task is not begun"
        verdict, text = cancelled(pool, handle)
        return and_later(pool, text) if verdict == GOOD else (verdict, text)


@row
def cancel_takes_no_other_task(peer):
    lost, total = 0, 0
    with peer.pool(2) as pool:
        for _ in range(50):
            path = fresh()
            handle = pool.submit(tasks.sleep_long, path)
            others = [pool.submit(tasks.identity, x) for x in OTHERS]
            if not eventually(lambda path=path: os.path.exists(path)):
                return HANGS, "a later task is not begun"
            verdict, text = cancelled(pool, handle)
            if verdict != GOOD:
                return verdict, text
            got = [pool.outcome(other, PATIENCE) for other in others]
            total += len(got)
            if None in got:
                return HANGS, "one of the others hangs"
            lost += sum(outcome[0] == "error" for outcome in got)
    return (GOOD if lost == 0 else POOR), f"{total - lost} of {total} finish"


@row
def task_kills_worker_after_worker(peer):
    path = fresh()
    with peer.pool(2) as pool:
        handle = pool.submit_retried(2, tasks.die_at_first, path, 100)
        outcome = pool.outcome(handle, PATIENCE)
        if outcome is None:
            return HANGS, "hangs"
        return and_later(pool, f"{told(outcome)} after {os.path.getsize(path)} attempts")


@row
def retry_succeeds(peer):
    with peer.pool(2) as pool:
        outcome = pool.outcome(pool.submit_retried(2, tasks.die_at_first, fresh(), 1), PATIENCE)
        if outcome is None:
            return HANGS, "hangs"
        return and_later(pool, told(outcome)) if outcome[0] == "value" else (POOR, told(outcome))


@row
def pool_in_a_task(peer):
    from .peers import PEERS

    (name,) = (name for name, cls in PEERS.items() if type(peer) is cls)
    with peer.pool(2, nested=True) as pool:
        outcome = pool.outcome(pool.submit(functools.partial(tasks.nested, name)), 2 * PATIENCE)
        if outcome is None:
            return HANGS, "hangs"
        return (GOOD, "works") if outcome == ("value", 7) else (POOR, told(outcome))
