"""Pools whose workers, or whose parent, die: exactly what was lost fails, at once, and nothing stays behind."""

import itertools
import os
import signal
import sys
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


@pytest.mark.parametrize(
    ("call", "exitcode", "text"),
    [
        ((kill_myself, ()), -signal.SIGKILL, "killed by SIGKILL"),
        ((os._exit, (0,)), 0, "exited with code 0"),
        ((os._exit, (3,)), 3, "exited with code 3"),
        ((abort, ()), -signal.SIGABRT, "killed by SIGABRT"),
    ],
)
def test_a_death_fails_its_own_task_and_no_other(pool, call, exitcode, text):
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


def test_a_map_fails_with_the_death_of_one_of_its_workers(pool):
    with pytest.raises(WorkerLostError, match="SIGKILL") as raised:
        pool.map(kill_at_three, range(8), chunksize=2)
    assert raised.value.task == 1
    assert pool.map(identity, range(8)) == list(range(8))


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_a_stream_goes_on_after_a_death(pool, name):
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


def test_error_callbacks_hear_of_deaths(pool):
    heard = []
    pool.apply_async(kill_myself, error_callback=heard.append).wait()
    assert [type(error) for error in heard] == [WorkerLostError]


def test_idle_workers_that_die_are_replaced(pool):
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


@pytest.mark.parametrize(("initializer", "arguments"), [(fail_to_begin, ()), (exit_at_once, (7,)), (kill_myself, ())])
def test_workers_that_never_get_ready_do_not_come_for_ever(ctx, initializer, arguments, capfd):
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
    assert capfd.readouterr().err.count("Traceback") <= 6


def test_a_few_early_deaths_are_got_over(ctx, tmp_path):
    with ctx.Pool(1, die_unless, (tmp_path / "begun",)) as pool:
        assert pool.apply(identity, (1,)) == 1
    pool.join()


def test_closing_does_not_wait_for_the_dead(ctx):
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
def test_ctrl_c_ends_the_program_with_one_traceback(program, method, body):
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


def test_workers_end_with_their_parent(program, method):
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
def test_a_callback_may_wait_for_a_task_whose_worker_dies(with_callback):
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
