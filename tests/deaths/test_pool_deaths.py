"""Pools whose workers, or whose parent, die: exactly what was lost fails, at once, and nothing stays behind."""

import itertools
import os
import signal
import sys
import threading
import time

import pytest

import processes
import procession
from procession.pool import WorkerLostError


def identity(x):
    return x


def kill_at_three(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def abort():
    # The fault handler of the tests would print the traceback of each.
    import faulthandler

    faulthandler.disable()
    os.abort()


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def begin_and_sleep(mark):
    mark.touch()
    time.sleep(600)


def fail_to_begin():
    raise RuntimeError("this initializer fails")


def exit_at_once(code):
    os._exit(code)


def die_unless(path):
    """An initializer that works from the third worker on."""
    with open(path, "a") as file:
        file.write(".")
    if os.path.getsize(path) < 3:
        os._exit(1)


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pool(ctx):
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


def fails_alone(pool, call, exitcode, text):
    """The task whose worker dies fails, and says how it died; no other does."""
    lost = pool.apply_async(*call)
    others = [pool.apply_async(identity, (x,)) for x in range(20)]
    with pytest.raises(WorkerLostError, match=text) as raised:
        lost.get()
    assert raised.value.exitcode == exitcode
    assert raised.value.task == 0
    assert raised.value.pid is not None
    assert call[0].__qualname__ in str(raised.value)
    assert [other.get() for other in others] == list(range(20))
    assert processes.eventually(lambda: len([w for w in pool._pool if w.is_alive()]) == 2)


@pytest.mark.parametrize(
    ("call", "exitcode", "text"),
    [
        ((kill_myself, ()), -signal.SIGKILL, "killed by SIGKILL"),
        ((abort, ()), -signal.SIGABRT, "killed by SIGABRT"),
    ],
)
def test_task_kills_its_worker(pool, call, exitcode, text):
    """Standard package: the task is waited for for ever.

    ProcessPoolExecutor, loky and mpire: all tasks fail, and the pool is of no more use. billiard tells after 10 s.
    pebble: as here.
    """
    fails_alone(pool, call, exitcode, text)


@pytest.mark.parametrize("code", [0, 3])
def test_task_exits_its_worker(pool, code):
    """Standard package: the task is waited for for ever; pebble as well. The rest as where it is killed."""
    fails_alone(pool, (os._exit, (code,)), code, f"exited with code {code}")


def test_map_loses_a_worker(pool):
    """Standard package: `map` waits for ever. ProcessPoolExecutor, loky and mpire: the pool is of no more use."""
    with pytest.raises(WorkerLostError, match="SIGKILL") as raised:
        pool.map(kill_at_three, range(8), chunksize=2)
    assert raised.value.task == 1
    assert pool.map(identity, range(8)) == list(range(8))


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_stream_loses_a_worker(pool, name):
    """Standard package: the stream stops there for ever. pebble alone gives the results of the others, too."""
    stream = getattr(pool, name)(kill_at_three, itertools.chain(range(6)))
    got, lost = [], 0
    for _ in range(6):
        try:
            got.append(next(stream))
        except WorkerLostError:
            lost += 1
    assert (sorted(got), lost) == ([0, 1, 2, 4, 5], 1)
    with pytest.raises(StopIteration):
        next(stream)


class DeathOnItsWay(bytes):
    """A large result whose process is killed while it is sent, if the delay is right."""

    def __new__(cls, size, delay):
        made = super().__new__(cls, size)
        made.delay = delay
        return made

    def __reduce__(self):
        threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes, (bytes(self),)


def large_and_deadly(size, delay):
    return DeathOnItsWay(size, delay)


def test_worker_killed_while_publishing():
    """Standard package: half a result is left in the pipe, and no result of anybody comes any more.

    ProcessPoolExecutor, loky and mpire: all tasks fail, and the pool is of no more use.
    """
    size = 16 << 20
    with procession.get_context("fork").Pool(2) as pool:
        for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016):
            lost = pool.apply_async(large_and_deadly, (size, delay))
            others = [pool.apply_async(identity, (x,)) for x in range(20)]
            try:
                assert lost.get() == bytes(size)
            except WorkerLostError as error:
                assert error.exitcode == -signal.SIGKILL
            for x, other in enumerate(others):
                # The timer may strike when the worker has the next task.
                try:
                    assert other.get() == x
                except WorkerLostError as error:
                    assert error.exitcode == -signal.SIGKILL
    pool.join()


def test_error_callbacks_hear_of_deaths(pool):
    heard = []
    pool.apply_async(kill_myself, error_callback=heard.append).wait()
    assert [type(error) for error in heard] == [WorkerLostError]


def test_worker_killed_while_it_waits(pool):
    """Standard package: one of them had the lock of the queue of tasks, so that no other gets any more, for ever."""
    pool.map(identity, range(8), chunksize=1)
    former = [worker.pid for worker in pool._pool]
    for pid in former:
        os.kill(pid, signal.SIGKILL)
    assert processes.eventually(lambda: len({w.pid for w in pool._pool if w.is_alive()} - set(former)) == 2)
    assert pool.map(identity, range(8), chunksize=1) == list(range(8))


def test_deaths_while_others_wait_for_their_results():
    """Again and again, with whatever the worker is at: all tasks come to an end, and only deaths fail them."""
    with procession.get_context("fork").Pool(3) as pool:
        for round in range(60):
            results = [pool.apply_async(identity, (x,)) for x in range(40)]
            victim = pool._pool[round % len(pool._pool)]
            time.sleep(round % 7 * 0.0002)
            if victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
            lost = 0
            for x, result in enumerate(results):
                try:
                    assert result.get() == x
                except WorkerLostError:
                    lost += 1
            assert lost <= 1
    pool.join()


def test_the_task_fails_while_a_callback_is_awaited():
    got = []
    with procession.get_context("fork").Pool(1) as pool:
        pool.apply_async(identity, (1,), callback=got.append)
        lost = pool.apply_async(kill_myself)
        pool.apply_async(identity, (2,), callback=got.append).wait()
        with pytest.raises(WorkerLostError):
            lost.get()
    pool.join()
    assert got == [1, 2]


def given_up(ctx, initializer, arguments):
    """The pool fails all calls, and starts no more workers."""
    with ctx.Pool(2, initializer, arguments) as pool:
        for call in (
            lambda: pool.apply(identity, (1,)),
            lambda: pool.map(identity, range(10)),
            lambda: list(pool.imap(identity, itertools.chain(range(3)))),
        ):
            with pytest.raises(WorkerLostError, match="before it was ready"):
                call()
        pool.close()
        pool.join()


@pytest.mark.parametrize(("initializer", "arguments"), [(exit_at_once, (7,)), (kill_myself, ())])
def test_initializer_keeps_dying(ctx, initializer, arguments):
    """Standard package: new workers are started for ever, and the call waits for ever."""
    given_up(ctx, initializer, arguments)


def test_initializer_keeps_failing(ctx, capfd):
    """Standard package: new workers are started for ever, each prints a traceback, and the call waits for ever."""
    given_up(ctx, fail_to_begin, ())
    assert capfd.readouterr().err.count("Traceback") <= 6


def test_worker_killed_at_start(ctx, tmp_path):
    """ProcessPoolExecutor and loky: the pool is broken. The standard package gets over it, too."""
    with ctx.Pool(1, die_unless, (tmp_path / "begun",)) as pool:
        assert pool.apply(identity, (1,)) == 1
    pool.join()


def test_close_after_a_death(ctx):
    """Standard package: `join` waits for the result of the dead, for ever."""
    pool = ctx.Pool(2)
    results = [pool.apply_async(pid_after, (0.1,)) for _ in range(6)]
    results.append(pool.apply_async(kill_myself))
    pool.close()
    pool.join()
    assert all(result.ready() for result in results)


def test_a_worker_killed_while_the_pool_waits_for_all_to_end(ctx, tmp_path):
    pool = ctx.Pool(2)
    result = pool.apply_async(begin_and_sleep, (tmp_path / "begun",))
    pool.close()
    assert processes.eventually((tmp_path / "begun").exists)
    for worker in [*pool._pool]:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get()
    pool.join()


@pytest.mark.once
def test_two_hundred_pools_leave_nothing(nothing_left_behind):
    ctx = procession.get_context("fork")
    for _ in range(200):
        with ctx.Pool(1) as pool:
            assert pool.apply(identity, (3,)) == 3
        pool.join()


def test_pools_of_each_method_leave_nothing(ctx, method, nothing_left_behind):
    for end in ("close", "terminate"):
        pool = ctx.Pool(2)
        assert pool.map(identity, range(10)) == list(range(10))
        getattr(pool, end)()
        pool.join()
        del pool


CTRL_C = """
    import sys
    import time
    import procession as multiprocessing

    def work(x):
        # In one piece, as both workers write to the same pipe.
        sys.stdout.write("at work\\n")
        sys.stdout.flush()
        time.sleep(60)

    if __name__ == "__main__":
        ctx = multiprocessing.get_context(sys.argv[1])
        {body}
"""
WITH = """with ctx.Pool(2) as pool:
            pool.map(work, range(10))"""
WITHOUT = """pool = ctx.Pool(2)
        results = [pool.apply_async(work, (x,)) for x in range(10)]
        pool.close()
        pool.join()"""
STREAM = """pool = ctx.Pool(2)
        for _ in pool.imap_unordered(work, iter(range(10))):
            pass"""


@pytest.mark.parametrize("body", [WITH, WITHOUT, STREAM], ids=["with", "without", "stream"])
def test_ctrl_c(program, method, body):
    """Standard package: a traceback for each worker, and programs that wait in `join` need another Ctrl-C or two."""
    running = program(CTRL_C.format(body=body), method)
    assert running.readline() == "at work"
    assert running.readline() == "at work"
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.finish()
    assert running.exitcode == -signal.SIGINT
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt"), err


PARENT = """
    import sys
    import time
    import procession as multiprocessing

    def work(x):
        # In one piece, as both workers write to the same pipe.
        sys.stdout.write("at work\\n")
        sys.stdout.flush()
        time.sleep(60)

    if __name__ == "__main__":
        pool = multiprocessing.get_context(sys.argv[1]).Pool(2)
        pool.map(work, range(10))
"""


def test_program_killed_with_busy_workers(program, method):
    """Standard package and ProcessPoolExecutor: they finish their tasks first, if those ever end."""
    running = program(PARENT, method)
    assert running.readline() == "at work"
    assert running.readline() == "at work"
    os.kill(running.pid, signal.SIGKILL)
    assert processes.eventually(lambda: not running.running())
    running.finish()


def test_the_missing_guard_is_an_error_and_no_hang(program):
    source = """
        import procession as multiprocessing

        def work(x):
            return x

        pool = multiprocessing.get_context("spawn").Pool(2)
        try:
            print(pool.map(work, range(3)))
        except multiprocessing.pool.WorkerLostError as error:
            print("lost:", error)
        pool.terminate()
    """
    out, err = program(source).finish()
    assert out.startswith("lost: ")
    assert "before it was ready" in out
    assert "freeze_support" in err


def test_a_program_that_forgets_its_pool_ends(program, method):
    source = """
        import sys
        import procession as multiprocessing

        def work(x):
            return x

        if __name__ == "__main__":
            pool = multiprocessing.get_context(sys.argv[1]).Pool(2)
            print(pool.map(work, range(3)))
    """
    running = program(source, method, options=("-W", "ignore"))
    out, err = running.finish()
    assert (out, err, running.exitcode) == ("[0, 1, 2]\n", "", 0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="only later versions refuse to start what can't be joined")
def test_results_at_the_very_end_of_a_program(program):
    source = """
        import atexit
        import procession as multiprocessing

        def work(x):
            return x

        if __name__ == "__main__":
            pool = multiprocessing.get_context("fork").Pool(1)
            atexit.register(lambda: print(pool.apply(work, (5,))))
    """
    out, err = program(source, options=("-W", "ignore")).finish()
    assert out == "5\n", err


@pytest.mark.parametrize("with_callback", [False, True])
def test_callback_waits_for_a_dead_worker(with_callback):
    """Standard package: a callback that waits for any result of its pool waits for ever."""
    heard = []

    def wait_for_other(_):
        other = pool.apply_async(kill_at_three, (3,), error_callback=heard.append if with_callback else None)
        try:
            other.get()
        except WorkerLostError as error:
            heard.append(error)

    with procession.Pool(2) as pool:
        pool.apply_async(identity, (1,), callback=wait_for_other).get()
        assert len(heard) == (2 if with_callback else 1)
        assert all(isinstance(error, WorkerLostError) for error in heard)
        assert pool.map(identity, range(10)) == list(range(10))
