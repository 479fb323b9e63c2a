"""Pools come to an end in bounded time, whatever their workers are at."""

import os
import signal
import threading
import time

import pytest

import processes
import procession
from procession import crew
from procession.pool import ThreadPool


def ignore_all_signals(mark):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGABRT, signal.SIGSEGV}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass  # the C library's own
    mark.touch()
    time.sleep(600)


def mark_and_sleep(mark):
    mark.touch()
    time.sleep(600)


def square(x):
    return x * x


@pytest.fixture
def little_grace(monkeypatch):
    """The time that workers have to end after SIGTERM."""
    monkeypatch.setattr(crew, "GRACE", 0.2)


def test_terminate_with_a_stuck_worker(ctx, tmp_path, little_grace):
    """Standard package: `terminate` waits for ever for a worker that does not react to SIGTERM."""
    pool = ctx.Pool(2)
    result = pool.apply_async(ignore_all_signals, (tmp_path / "mark",))
    assert processes.eventually((tmp_path / "mark").exists)
    pool.terminate()
    pool.join()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get()


def test_terminate_with_a_stopped_worker(ctx, tmp_path, little_grace):
    """Standard package: `terminate` waits until somebody continues it."""
    pool = ctx.Pool(2)
    result = pool.apply_async(mark_and_sleep, (tmp_path / "mark",))
    assert processes.eventually((tmp_path / "mark").exists)
    for worker in pool._pool:
        os.kill(worker.pid, signal.SIGSTOP)
    pool.terminate()
    pool.join()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get()


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_terminate_while_others_wait(kind):
    """Standard package: who waits for a result waits for ever."""
    pool = procession.get_context("fork").Pool(2) if kind == "processes" else ThreadPool(2)
    results = [pool.apply_async(time.sleep, (0.5,)) for _ in range(8)]
    stream = pool.imap(time.sleep, [0.5] * 8)
    waiting = threading.Thread(target=results[-1].wait)
    waiting.start()
    pool.terminate()
    waiting.join()
    with pytest.raises(RuntimeError, match="terminated"):
        results[-1].get()
    with pytest.raises(RuntimeError, match="terminated"):
        list(stream)
    with pytest.raises(ValueError, match="not running"):
        with pool:
            pass
    pool.join()


CLOSING = """
    import os, signal, sys, time
    import procession as multiprocessing

    def work(mark):
        os.kill(os.getppid(), signal.SIGUSR1)
        time.sleep(0.5)
        return "done"

    if __name__ == "__main__":
        pool = multiprocessing.get_context("fork").Pool(2)

        def end(*_):
            pool.{how}()

        signal.signal(signal.SIGUSR1, end)
        result = pool.apply_async(work, (sys.argv[1],))
        try:
            print(result.get())
        except RuntimeError as error:
            print("terminated" in str(error))
        pool.join()
        print("joined")
"""


@pytest.mark.parametrize(("how", "answer"), [("close", "done"), ("terminate", "True")])
def test_close_in_a_signal_handler(program, tmp_path, how, answer):
    """Standard package: `close` may wait for a lock that the interrupted code holds; `terminate` leaves who waits."""
    assert program(CLOSING.format(how=how), tmp_path / "mark").finish() == (f"{answer}\njoined\n", "")


BUSY = """
    import os, signal, sys, time
    import procession as multiprocessing

    def work(mark):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(mark, "w").close()
        time.sleep(600)

    if __name__ == "__main__":
        from procession import crew

        crew.GRACE = 0.5
        pool = multiprocessing.get_context(sys.argv[1]).Pool(2)
        result = pool.apply_async(work, (sys.argv[2],))
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        print("leaving", flush=True)
"""


def test_exit_with_a_busy_pool(program, method, tmp_path):
    """Standard package: the program waits for ever; ProcessPoolExecutor, loky and pebble: for the end of the task."""
    running = program(BUSY, method, tmp_path / "mark", options=("-W", "ignore"))
    assert running.finish() == ("leaving\n", "")
    assert running.exitcode == 0


DAEMON = """
    import os, signal, sys, time
    import procession as multiprocessing

    def work(mark):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(mark, "w").close()
        time.sleep(600)

    if __name__ == "__main__":
        from procession import util

        util.DAEMONS_GRACE = 0.5
        multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[2],), daemon=True).start()
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        print("leaving", flush=True)
"""


def test_exit_with_a_stuck_child(program, method, tmp_path):
    """Standard package: the program sends it SIGTERM and waits for its end, for ever."""
    running = program(DAEMON, method, tmp_path / "mark")
    assert running.finish() == ("leaving\n", "")
    assert running.exitcode == 0
