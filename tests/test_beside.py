"""The standard package in the same program: the scenarios that python/procession/beside.py names."""

import pytest

# Each program is run with either package imported first, and with its children started in each way by each package.
ORDERS = {"standard-first": "import multiprocessing, procession", "ours-first": "import procession, multiprocessing"}
STARTERS = ["procession", "multiprocessing"]

COMMON = """
import logging, os, sys
{order}
import multiprocessing.connection, multiprocessing.util, procession.connection, procession.util
starter, other = {starter}, {other}
ctx, other_ctx = starter.get_context({method!r}), other.get_context({method!r})
"""


@pytest.fixture(params=ORDERS)
def order(request):
    return ORDERS[request.param]


@pytest.fixture(params=STARTERS)
def starter(request):
    return request.param


@pytest.fixture
def beside(program, order, starter, method):
    """Run a program in which `starter` is the package that starts children, and `other` the other one."""

    def run(source):
        (other,) = set(STARTERS) - {starter}
        head = COMMON.format(order=order, starter=starter, other=other, method=method)
        one = program(head + source)
        out, err = one.finish()
        assert err == ""
        assert one.exitcode == 0
        return out

    return run


def test_who_a_process_is_does_not_depend_on_who_is_asked(beside):
    out = beside("""
logging.basicConfig(format="%(processName)s %(message)s", stream=sys.stdout)
def facts():
    one, two = starter.current_process(), other.current_process()
    assert one is two
    assert starter.parent_process() is other.parent_process()
    assert starter.current_process() is logging.sys.modules["multiprocessing"].current_process()
    return one.name, one._identity, bytes(one.authkey), one.daemon, one.pid == os.getpid()
def child(queue, seen):
    logging.warning("hello")
    queue.put([facts(), starter.parent_process().name, starter.parent_process().pid,
               other.parent_process().is_alive(), other.active_children(), starter.active_children()])
    seen.get()
if __name__ == "__main__":
    key = starter.current_process().authkey
    assert facts() == ("MainProcess", (), key, False, True)
    other.Process()
    queue, seen = ctx.SimpleQueue(), ctx.SimpleQueue()
    p = ctx.Process(target=child, args=(queue, seen), name="Ada", daemon=True)
    p.start()
    assert p in procession.active_children()
    seen.put(None)
    found = queue.get()
    p.join()
    assert p.exitcode == 0
    # The second process of the program, whoever made the first.
    assert found[0] == ("Ada", (2,), key, True, True), found
    assert found[1:] == ["MainProcess", os.getpid(), True, [], []], found
    logging.warning("goodbye")
""")
    assert out == "Ada hello\nMainProcess goodbye\n"


def test_daemonic_processes_have_no_children_of_either_package(beside):
    beside("""
def child(queue):
    try:
        other.get_context("fork").Process(target=print).start()
    except AssertionError as error:
        queue.put(str(error))
if __name__ == "__main__":
    queue = ctx.SimpleQueue()
    p = ctx.Process(target=child, args=(queue,), daemon=True)
    p.start()
    assert "daemonic processes are not allowed to have children" in queue.get()
    p.join()
""")


def test_a_child_without_a_guard_is_told_by_either_package(program, order):
    # A new interpreter imports the main module, which starts a process of the other package.
    for starter, other in (STARTERS, STARTERS[::-1]):
        one = program(f"""
import sys
{order}
if __name__ == "__main__":
    p = {starter}.get_context("spawn").Process(target=print)
    p.start()
    p.join()
    sys.exit(p.exitcode)
{other}.get_context("spawn").Process(target=print).start()
""")
        _out, err = one.finish()
        assert one.exitcode == 1
        assert "finished its bootstrapping phase" in err


ARGUMENTS = """
def work(
    lock, rlock, semaphore, condition, event, barrier, queue, joinable, simple, value, array, conn, shared, manager_list
):
    with lock, rlock, semaphore, condition:
        value.value += 1
        array[1] += 1
        shared[0] = 7
        manager_list.append(os.getpid())
    conn.send(["over the connection", conn.recv()])
    queue.put("over the queue")
    simple.put(joinable.get())
    joinable.task_done()
    event.set()
    barrier.wait()
def arguments(package, ctx):
    ours, theirs = package.Pipe()
    made = [ctx.Lock(), ctx.RLock(), ctx.Semaphore(2), ctx.Condition(), ctx.Event(), ctx.Barrier(2), ctx.Queue(),
            ctx.JoinableQueue(), ctx.SimpleQueue(), ctx.Value("i", 1), ctx.Array("d", [1, 2, 3]), theirs,
            ctx.RawArray("i", 2)]
    return made, ours
def check(made, ours, pid, manager_list):
    queue, joinable, simple, value, array = made[6:11]
    made[5].wait()
    assert made[4].wait(1)
    joinable.join()
    assert ours.recv() == ["over the connection", "hello"]
    assert (simple.get(), queue.get()) == ("joinable", "over the queue")
    assert (value.value, array[:], made[12][:]) == (2, [1, 3, 3], [7, 0])
    assert manager_list[:] == [pid]
    assert procession.connection.wait([ours, queue._reader, 0], 0) in ([], [0])
    assert multiprocessing.connection.wait([ours, queue._reader], 0) == []
"""


def test_each_package_s_objects_are_arguments_of_the_other_s_children(beside):
    beside(
        ARGUMENTS
        + """
if __name__ == "__main__":
    with other_ctx.Manager() as manager:
        manager_list = manager.list()
        made, ours = arguments(other, other_ctx)
        p = ctx.Process(target=work, args=(*made, manager_list))
        p.start()
        ours.send("hello")
        made[7].put("joinable")
        check(made, ours, p.pid, manager_list)
        assert other.connection.wait([p.sentinel], 20) == [p.sentinel]
        p.join()
        assert p.exitcode == 0
"""
    )


def test_objects_come_to_workers_of_the_other_s_pool(beside):
    beside("""
def initialize(*made):
    globals()["lock"], globals()["queue"], globals()["value"] = made
def task(n):
    with lock, value:
        value.value += n
    queue.put(n)
    return multiprocessing.current_process().name == procession.current_process().name
if __name__ == "__main__":
    made = other_ctx.Lock(), other_ctx.Queue(), other_ctx.Value("i", 0)
    with ctx.Pool(2, initialize, made) as pool:
        assert pool.map(task, range(10)) == [True] * 10
        assert sorted(made[1].get() for _ in range(10)) == list(range(10))
    assert made[2].value == 45
""")


def test_what_is_not_for_a_child_is_refused_as_ever(beside):
    beside("""
import pickle
if __name__ == "__main__":
    for made in (other_ctx.Lock(), other_ctx.Queue(), ctx.Lock()):
        try:
            pickle.dumps(made)
        except RuntimeError as error:
            assert "through inheritance" in str(error)
        else:
            raise AssertionError(made)
""")


def test_reducers_registered_with_either_are_known_to_both(beside):
    beside("""
import multiprocessing.reduction, procession.reduction
class Early: pass
class Late: pass
class Both: pass
class Again: pass
def rebuild(text): return text
def reduce_as(text): return lambda obj: (rebuild, (text,))
def child(objects, queue):
    queue.put(objects)
if __name__ == "__main__":
    other.reduction.register(Early, reduce_as("early"))
    other.reduction.ForkingPickler.register(Both, reduce_as("other"))
    starter.reduction.ForkingPickler.register(Both, reduce_as("starter"))
    other.reduction.register(Again, reduce_as("first"))
    # Picklers that are kept from here on hear of what is registered later.
    for package in (starter, other):
        queue = package.get_context("fork").SimpleQueue()
        queue.put([Early()])
        assert queue.get() == ["early"]
    other.reduction.register(Late, reduce_as("late"))
    other.reduction.register(Again, reduce_as("second"))
    queue = ctx.SimpleQueue()
    p = ctx.Process(target=child, args=([], queue))
    p.start()
    p.join()
    queue.get()
    queue.put([Early(), Late(), Both(), Again()])
    assert queue.get() == ["early", "late", "starter", "second"]
    p = ctx.Process(target=child, args=([Early(), Late(), Both()], queue))
    p.start()
    expected = ["early", "late", "starter"]
    if ctx.get_start_method() == "fork":
        queue.get()  # as they are: nothing was pickled on the way there, and the class is the child's
    else:
        assert queue.get() == expected
    p.join()
""")


def test_a_descriptor_goes_by_the_reducer_of_the_other_package(beside):
    # As tensors of torch go.
    beside("""
import multiprocessing.reduction, procession.reduction
class Tensor:
    def __init__(self, fd): self.fd = fd
def rebuild(dup): return Tensor(dup.detach())
def reduce(tensor): return rebuild, (other.reduction.DupFd(tensor.fd),)
other.reduction.ForkingPickler.register(Tensor, reduce)
def child(tensor, queue):
    os.write(tensor.fd, b"argument ")
    os.write(queue.get().fd, b"message")
    os._exit(0)
if __name__ == "__main__":
    reader, writer = os.pipe()
    queue = ctx.Queue()
    p = ctx.Process(target=child, args=(Tensor(writer), queue))
    p.start()
    queue.put(Tensor(writer))
    p.join()
    os.close(writer)
    assert os.read(reader, 100) == b"argument message"
""")


def test_hooks_and_finalizers_of_both_run_in_a_child(beside):
    out = beside("""
def say(*words): print(*words, flush=True)
class Anchor: pass
anchor = Anchor()
def child():
    say("child", starter.util.is_exiting(), other.util.is_exiting())
    other.util.Finalize(None, say, args=("end of other",), exitpriority=1)
    starter.util.Finalize(None, say, args=("end of starter",), exitpriority=1)
if __name__ == "__main__":
    forked = ctx.get_start_method() == "fork"
    if forked:
        other.util.register_after_fork(anchor, lambda _: say("hook of other"))
        starter.util.register_after_fork(anchor, lambda _: say("hook of starter"))
    other.util.Finalize(None, say, args=("end of the parent",), exitpriority=1)
    p = ctx.Process(target=child)
    p.start()
    p.join()
    assert p.exitcode == 0
""")
    *lines, last = out.splitlines()
    assert last == "end of the parent"
    hooks = sorted(line for line in lines if line.startswith("hook"))
    assert hooks in ([], ["hook of other", "hook of starter"])
    assert [line for line in lines if not line.startswith(("hook", "end"))] == ["child False False"]
    assert sorted(line for line in lines if line.startswith("end")) == ["end of other", "end of starter"]


def test_a_bare_fork_is_nobody_s_child(program, order):
    one = program(f"""
import os
{order}
import multiprocessing.util, procession.util, time
if __name__ == "__main__":
    for package in (multiprocessing, procession):
        p = package.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        p.start()
        assert p in procession.active_children()
        pid = os.fork()
        if pid == 0:
            assert procession.current_process() is multiprocessing.current_process()
            assert procession.active_children() == [] or package is multiprocessing
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        p.terminate()
        p.join()
""")
    assert one.finish() == ("", "")
    assert one.exitcode == 0


def test_errors_are_the_same_classes(beside):
    beside("""
def child(queue):
    queue.put([getattr(starter, name) is getattr(other, name) is getattr(other.context, name) for name in names])
names = ["ProcessError", "TimeoutError", "AuthenticationError", "BufferTooShort"]
if __name__ == "__main__":
    queue = ctx.SimpleQueue()
    p = ctx.Process(target=child, args=(queue,))
    p.start()
    assert queue.get() == [True] * 4
    p.join()
    import multiprocessing.pool, procession.pool, time
    for package in (starter, other):
        with package.pool.ThreadPool(1) as pool:
            for error in (multiprocessing.TimeoutError, procession.context.ProcessError):
                try:
                    pool.apply_async(time.sleep, (0.2,)).get(timeout=0.01)
                except error:
                    pass
""")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_standard_package_comes_last_and_only_in_a_child(program, method):
    one = program(f"""
import logging, os, sys
import procession
logging.basicConfig(format="%(processName)s %(message)s", stream=sys.stdout)
class Early: pass
class Timeout(procession.TimeoutError): pass
def reduce(obj): return str, ("early",)
def end(): print("finalizer", flush=True)
def grandchild(queue, lock, early):
    with lock:
        logging.warning("from the grandchild")
    import multiprocessing, procession
    assert multiprocessing.current_process() is procession.current_process()
    queue.put((procession.current_process()._identity, early))
def child(queue, key):
    assert "multiprocessing" not in sys.modules
    import procession.reduction, procession.util
    procession.reduction.register(Early, reduce)
    logging.warning("before")
    from multiprocessing import current_process, TimeoutError, parent_process
    import multiprocessing.util, multiprocessing.reduction
    assert current_process() is procession.current_process()
    assert parent_process().pid == os.getppid() or {method!r} == "forkserver"
    assert current_process().authkey == key and type(current_process().name) is str
    assert TimeoutError is procession.TimeoutError and issubclass(Timeout, TimeoutError)
    pickler = multiprocessing.reduction.ForkingPickler
    assert pickler.loads(pickler.dumps(Early())) == "early"
    logging.warning("after")
    multiprocessing.util.Finalize(None, end, exitpriority=1)
    ctx = multiprocessing.get_context({method!r})
    theirs = ctx.SimpleQueue()
    p = ctx.Process(target=grandchild, args=(theirs, procession.get_context({method!r}).Lock(), 1), name="Bea")
    p.start()
    queue.put(theirs.get())
    p.join()
    assert p.exitcode == 0
if __name__ == "__main__":
    ctx = procession.get_context({method!r})
    queue = ctx.Queue()
    p = ctx.Process(target=child, args=(queue, bytes(procession.current_process().authkey)), name="Ada")
    p.start()
    assert queue.get() == ((1, 1), 1)
    p.join()
    assert p.exitcode == 0
    assert "multiprocessing" not in sys.modules
""")
    out, err = one.finish()
    assert err == ""
    assert out == "Ada before\nAda after\nBea from the grandchild\nfinalizer\n"
    assert one.exitcode == 0


def test_the_end_of_a_child_takes_no_named_memory_away(program, method):
    # A child that attaches registers with the tracker it has: one of its own would clean up at its end.
    one = program(f"""
import procession, sys
from multiprocessing import shared_memory
def child(name):
    from multiprocessing.shared_memory import SharedMemory
    memory = SharedMemory(name=name)
    memory.buf[0] += 1
    memory.close()
if __name__ == "__main__":
    memory = shared_memory.SharedMemory(create=True, size=10)
    ctx = procession.get_context({method!r})
    for count in (1, 2):
        p = ctx.Process(target=child, args=(memory.name,))
        p.start()
        p.join()
        assert p.exitcode == 0
        assert memory.buf[0] == count
    again = shared_memory.SharedMemory(name=memory.name)
    again.close()
    memory.close()
    memory.unlink()
""")
    assert one.finish() == ("", "")
    assert one.exitcode == 0


def test_the_standard_executor_runs_in_our_context(program, order, method):
    one = program(f"""
{order}
from concurrent.futures import ProcessPoolExecutor
def double(n):
    return n * 2, multiprocessing.current_process().__class__.__module__
if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=procession.get_context({method!r})) as executor:
        assert list(executor.map(double, range(20))) == [(n * 2, "procession.context") for n in range(20)]
""")
    assert one.finish() == ("", "")
    assert one.exitcode == 0


def test_a_queue_takes_log_records_to_a_listener_of_the_standard_library(program):
    # Where logging.config looks for the standard package's Queue by its class, a JoinableQueue passes for its methods.
    one = program("""
import logging, logging.config, logging.handlers, procession, sys
if __name__ == "__main__":
    queue = procession.JoinableQueue()
    if sys.version_info >= (3, 13):
        logging.config.dictConfig({"version": 1, "root": {"handlers": ["queue"]},
            "handlers": {"queue": {"class": "logging.handlers.QueueHandler", "queue": queue}}})
    else:
        logging.getLogger().addHandler(logging.handlers.QueueHandler(queue))
    logging.warning("hello")
    assert queue.get().processName == "MainProcess"
""")
    assert one.finish() == ("", "")


def test_nothing_is_paid_while_the_standard_package_is_not_there(program):
    one = program("""
import procession, procession.util, procession.reduction, sys
from procession import process
p = procession.Process(target=print)
p.start()
p.join()
assert "procession.beside" not in sys.modules and "multiprocessing" not in sys.modules
import procession.managers, procession.pool
assert "procession.beside" not in sys.modules and "multiprocessing" not in sys.modules
""")
    _out, err = one.finish()
    assert err == ""
    assert one.exitcode == 0
