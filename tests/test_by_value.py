"""Functions and classes that have no name a worker could find them by: they go by value, where cloudpickle is."""

import functools
import os
import subprocess
import sys
import textwrap
import threading

import pytest

import procession
from procession import by_value
from procession import pool as pool_module

pytest.importorskip("cloudpickle")

# What does not depend on how workers are started.
forked = pytest.mark.parametrize("method", ["fork"], indirect=True)


class Named:
    def __init__(self, value):
        self.value = value


def call(function, *args, **kwds):
    return function(*args, **kwds)


def make_adder(n):
    def add(x):
        return x + n

    return add


def raise_local():
    class Local(Exception):
        def __str__(self):
            return "of no name"

    raise Local(3)


@pytest.fixture
def pool(ctx):
    with ctx.Pool(2) as pool:
        yield pool
    pool.join()


def test_lambda_task(pool):
    """Standard package, ProcessPoolExecutor, pebble: the error of pickle. loky: as here. billiard, mpire: hang."""
    offset = 10

    def closure(x, y=0):
        return x + y + offset

    class Local:
        def __call__(self, x):
            return x * 3

        @staticmethod
        def static(x):
            return x * 4

    assert pool.apply(lambda x: x * 2, (3,)) == 6
    assert pool.apply(closure, (1,), {"y": 2}) == 13
    assert pool.apply_async(closure, (1, 2)).get() == 13
    assert pool.map(lambda x: x + offset, range(50)) == [*range(10, 60)]
    assert pool.starmap(closure, [(1, 2), (3, 4)]) == [13, 17]
    assert [*pool.imap(closure, range(20))] == [*range(10, 30)]
    assert [*pool.imap(closure, range(20), chunksize=3)] == [*range(10, 30)]
    assert sorted(pool.imap_unordered(lambda x: -x, range(5))) == [-4, -3, -2, -1, 0]
    assert pool.map(functools.partial(closure, y=1), range(3)) == [11, 12, 13]
    assert pool.map(Local(), range(3)) == [0, 3, 6]
    assert pool.apply(Local.static, (2,)) == 8


@forked
def test_as_they_are_when_they_are_sent(pool):
    seen = []

    def count():
        return len(seen)

    assert pool.apply(count) == 0
    seen.append(1)
    assert pool.apply(count) == 1


def test_arguments_and_results_do(pool):
    assert pool.apply(call, (lambda x: x + 1, 2)) == 3
    assert pool.apply(call, (), {"function": lambda: 7}) == 7
    assert pool.map(call, [lambda: 1, lambda: 2], chunksize=1) == [1, 2]
    assert [*pool.imap(call, [lambda: 1, lambda: 2])] == [1, 2]
    add = pool.apply(make_adder, (5,))
    assert add(2) == 7
    assert [add(1) for add in pool.map(make_adder, range(3))] == [1, 2, 3]


def test_classes_that_have_a_name_stay_one_class(pool):
    assert pool.apply(lambda x: isinstance(x, Named) and x.value, (Named(4),)) == 4
    assert type(pool.apply(lambda x: (Named(x), lambda: x)[0], (5,))) is Named


@forked
def test_classes_that_have_none_come_back_as_themselves(pool):
    class Local:
        pass

    assert type(pool.apply(call, (Local,))) is Local


@forked
def test_exceptions_do(pool):
    with pytest.raises(Exception, match="of no name") as raised:
        pool.apply(raise_local)
    assert type(raised.value).__name__ == "Local"
    assert raised.value.args == (3,)
    assert "in raise_local" in str(raised.value.__cause__)


def test_beginnings_and_ends_do(ctx):
    base = 3

    def begin(extra, scale):
        os.environ["PROCESSION_TEST"] = str(base + extra() * scale)

    def start(state):
        state["base"] = base

    pool = ctx.Pool(
        1,
        begin,
        (lambda: 2, 10),
        worker_init=start,
        worker_exit=lambda state: state["base"] + 1,
        use_worker_state=True,
    )
    assert pool.apply(lambda state: (os.environ["PROCESSION_TEST"], state["base"])) == ("23", 3)
    pool.close()
    pool.join()
    assert pool.get_exit_results() == [4]


@forked
def test_what_nobody_can_send_is_refused_as_ever(pool):
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        pool.apply(print, (lock,))
    with pytest.raises(Exception, match="lambda") as raised:
        pool.apply(lambda: lock)
    assert "lock" in raised.value.__notes__[0]
    with pytest.raises(pool_module.MaybeEncodingError, match="lock"):
        pool.apply(threading.Lock)
    assert pool.apply(abs, (-1,)) == 1


@pytest.fixture
def without_cloudpickle(monkeypatch):
    by_value._pickler.cache_clear()
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    yield
    by_value._pickler.cache_clear()


@pytest.mark.parametrize("method", ["fork"], indirect=True)
def test_without_cloudpickle_the_error_names_it(without_cloudpickle, pool):
    for call_it in (
        lambda: pool.apply(lambda: 1),
        lambda: pool.map(lambda x: x, [1]),
        lambda: pool.apply(call, (lambda: 1,)),
    ):
        with pytest.raises(Exception, match=r"(?i)can't (pickle|get)|lambda") as raised:
            call_it()
        assert "cloudpickle" in raised.value.__notes__[0]
    with pytest.raises(pool_module.MaybeEncodingError):
        pool.apply(make_adder, (1,))


def run(source, *arguments):
    """Has an interpreter run it as `-c`."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_main_module_that_is_no_file(method):
    out = run(
        """
        import sys
        import procession

        class Point:
            def __init__(self, x):
                self.x = x

        def shift(point):
            return Point(point.x + 1)

        def begin(state):
            state["offset"] = 100

        with procession.get_context(sys.argv[1]).Pool(2, worker_init=begin, use_worker_state=True) as pool:
            # Defined when there are workers already, and then anew.
            def later(state, point):
                return isinstance(point, Point), shift(point).x + state["offset"]
            print(pool.map(later, [Point(1), Point(2)]))
            def later(state, point):
                return "anew"
            print(pool.apply(later, (Point(3),)))
            print(type(pool.apply(lambda state, x: Point(x), (3,))) is Point)
            def shift(point):
                return Point(point.x + 2)
            print(pool.apply(lambda state, point: shift(point).x, (Point(1),)))
        """,
        method,
    )
    assert out == "[(True, 102), (True, 103)]\nanew\nTrue\n3\n"


def test_what_forked_workers_know_is_left_to_them():
    out = run(
        """
        import sys
        import procession

        def begin(value):
            global known
            known = value

        def ask(_):
            return known

        class Own:
            pass

        def same(own):
            return type(own) is Own

        with procession.get_context("fork").Pool(2, begin, (7,)) as pool:
            print(pool.map(ask, range(3)), pool.apply(same, (Own(),)), type(pool.apply(Own)) is Own)
        print("cloudpickle" in sys.modules)
        """
    )
    assert out == "[7, 7, 7] True True\nFalse\n"


def test_it_is_not_imported_without_need(program, method):
    running = program(
        """
        import sys
        import procession

        def loaded(x):
            return "cloudpickle" in sys.modules

        if __name__ == "__main__":
            with procession.get_context(sys.argv[1]).Pool(1, print, worker_init=int) as pool:
                print(pool.map(loaded, [1]), loaded(1))
        """,
        method,
    )
    assert running.finish()[0].split() == ["[False]", "False"]


@forked
def test_only_pools_do_so(ctx):
    queue = ctx.SimpleQueue()
    with pytest.raises(Exception, match=r"(?i)pickle|lambda"):
        queue.put(lambda: 1)
    assert procession.Pool


def test_a_prompt(method):
    typed = f"""
        import procession
        pool = procession.get_context({method!r}).Pool(1)
        class Point: pass

        def shift(x): return x + 1

        print(pool.map(shift, [1, 2]))
        def shift(x): return x + 2

        print(pool.map(shift, [1, 2]))
        def same(point): return isinstance(point, Point), Point()

        seen, point = pool.apply(same, (Point(),))
        print(seen, isinstance(point, Point))
        pool.terminate()
        pool.join()
    """
    prompt = subprocess.run(
        [sys.executable, "-q", "-i"], input=textwrap.dedent(typed), capture_output=True, text=True, timeout=100
    )
    assert prompt.stdout == "[2, 3]\n[3, 4]\nTrue True\n", prompt.stderr
