"""Pools and processes that tasks make work as anywhere, and end with the worker, as that ends with the program."""

import os
import signal
import time

import pytest

import processes
import procession
from procession.pool import WorkerLostError


def square(x):
    return x * x


def sum_of_squares(method, n):
    with procession.get_context(method).Pool(2) as pool:
        return sum(pool.map(square, range(n)))


def tower(method, levels):
    """The pids of one worker within another."""
    if not levels:
        return [os.getpid()]
    with procession.get_context(method).Pool(1) as pool:
        return [os.getpid(), *pool.apply(tower, (method, levels - 1))]


def put_name(queue):
    queue.put((procession.current_process().name, procession.parent_process().pid))


def child_of(method):
    ctx = procession.get_context(method)
    queue = ctx.SimpleQueue()
    child = ctx.Process(target=put_name, args=(queue,), name="Ada")
    child.start()
    name, parent = queue.get()
    child.join()
    return name, parent == os.getpid(), child.exitcode


def sleep_after(note):
    note.with_suffix(".new").write_text(f"{procession.parent_process().pid} {os.getpid()}")
    note.with_suffix(".new").rename(note)
    time.sleep(600)


def grandchild_of(method, note):
    """A child, which is to have a pool, whose worker sleeps."""
    child = procession.get_context(method).Process(target=nap_in_pool, args=(method, note), daemon=False)
    child.start()
    time.sleep(600)


def nap_in_pool(method, note):
    with procession.get_context(method).Pool(1) as pool:
        pool.apply(sleep_after, (note,))


def pids_in(note):
    assert processes.eventually(note.exists), "the innermost process never came"
    return map(int, note.read_text().split())


@pytest.fixture
def pool(ctx):
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


def test_pool_in_a_task(pool, method):
    """Standard package and billiard: AssertionError. ProcessPoolExecutor, loky, pebble: as here."""
    assert pool.starmap(sum_of_squares, [(method, 4), (method, 5), (method, 6)]) == [14, 30, 55]


def test_and_the_tasks_of_that_another(pool, method):
    pids = pool.apply(tower, (method, 3))
    assert len(set(pids)) == 4
    assert processes.eventually(lambda: not any(map(processes.is_running, pids[1:])))


def test_a_task_may_have_children(pool, method):
    assert pool.apply(child_of, (method,)) == ("Ada", True, 0)


def test_the_tree_ends_with_a_worker_that_is_killed(pool, method, tmp_path):
    note = tmp_path / "note"
    result = pool.apply_async(nap_in_pool, (method, note))
    worker, innermost = pids_in(note)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get()
    assert processes.eventually(lambda: not processes.is_running(innermost))
    # And the pool goes on.
    assert pool.apply(sum_of_squares, (method, 3)) == 5


def test_the_tree_ends_with_a_pool_that_is_terminated(ctx, method, tmp_path):
    note = tmp_path / "note"
    with ctx.Pool(1) as pool:
        pool.apply_async(grandchild_of, (method, note))
        _, innermost = pids_in(note)
    pool.join()
    assert processes.eventually(lambda: not processes.is_running(innermost))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_tree_dies_with_its_root(program, tmp_path, method, number):
    """Standard package: a busy worker ends its task first; so does what it has started."""
    running = program(
        """
        import os, sys, time
        import procession

        def sleep(note):
            with open(note + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(note + ".new", note)
            time.sleep(600)

        def level(method, number, note):
            ctx = procession.get_context(method)
            if number == 0:
                # An ordinary child, which nobody would wait for either.
                ctx.Process(target=sleep, args=(note + ".child",), daemon=False).start()
                sleep(note)
            with ctx.Pool(1) as pool:
                pool.apply(level, (method, number - 1, note))

        if __name__ == "__main__":
            level(sys.argv[1], 3, sys.argv[2])
        """,
        method,
        tmp_path / "note",
    )
    innermost = [*pids_in(tmp_path / "note"), *pids_in(tmp_path / "note.child")]
    os.kill(running.pid, number)
    running.finish()
    assert running.exitcode == -number
    assert processes.eventually(lambda: not any(map(processes.is_running, innermost)))
    assert processes.eventually(lambda: not running.running()), running.running()


def try_to_have_a_child(conn):
    try:
        procession.Pool(1)
    except AssertionError as error:
        conn.send(str(error))


def test_other_daemons_still_have_no_children(ctx):
    receiver, sender = ctx.Pipe(duplex=False)
    child = ctx.Process(target=try_to_have_a_child, args=(sender,), daemon=True)
    child.start()
    assert "daemonic processes are not allowed to have children" in receiver.recv()
    child.join()
