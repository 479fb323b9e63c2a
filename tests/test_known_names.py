"""Names behind the interface that other packages are known to read, replace or call."""

import importlib

import pytest

import processes
import procession
from procession import queues

# By module: names, and for classes `Class.name`.
NAMES = {
    "context": """
        BaseContext DefaultContext ForkContext ForkProcess ForkServerContext ForkServerProcess Process SpawnContext
        SpawnProcess _concrete_contexts _default_context _force_start_method _tls assert_spawning get_spawning_popen
        reduction set_spawning_popen BaseContext.get_context BaseContext.reducer BaseContext._check_available
        DefaultContext.set_start_method ForkProcess._Popen ForkProcess._start_method TimeoutError ProcessError""",
    "dummy": """
        Array Barrier BoundedSemaphore Condition DummyProcess Event JoinableQueue Lock Manager Namespace Pipe Pool
        Process Queue RLock Semaphore Value active_children current_process dict freeze_support list shutdown
        DummyProcess.exitcode DummyProcess.start""",
    "dummy.connection": "Client Connection Listener Pipe families Connection.poll Listener.accept Listener.address",
    "forkserver": """
        ForkServer _forkserver connect_to_new_process ensure_running get_inherited_fds main set_forkserver_preload
        ForkServer._stop ForkServer.ensure_running""",
    "pool": """
        ApplyResult AsyncResult CLOSE ExceptionWithTraceback IMapIterator IMapUnorderedIterator INIT MapResult
        MaybeEncodingError Pool RUN RemoteTraceback TERMINATE ThreadPool _helper_reraises_exception mapstar rebuild_exc
        starmapstar worker Pool.Process Pool._get_tasks Pool._map_async Pool._repopulate_pool Pool._setup_queues
        Pool._check_running Pool.__del__ ApplyResult.get ApplyResult.ready ApplyResult.successful ApplyResult.wait
        IMapIterator.next ThreadPool.Process""",
    "popen_fork": "Popen Popen._launch Popen.duplicate_for_child Popen.poll Popen.wait Popen.method",
    "popen_forkserver": "Popen _DupFd Popen.DupFd Popen.method",
    "popen_spawn_posix": "Popen _DupFd Popen.DupFd Popen.method",
    "process": """
        AuthenticationString BaseProcess ORIGINAL_DIR _MainProcess _children _cleanup _current_process _dangling
        _parent_process _process_counter active_children current_process parent_process BaseProcess._bootstrap
        BaseProcess._Popen BaseProcess._after_fork BaseProcess._check_closed BaseProcess.interrupt""",
    "queues": """
        Empty Full Finalize JoinableQueue Queue SimpleQueue _ForkingPickler _sentinel debug info is_exiting
        register_after_fork Queue._on_queue_feeder_error Queue._reader Queue._writer Queue._rlock Queue._wlock
        Queue._sem Queue._maxsize Queue._buffer Queue._thread Queue._jointhread Queue._joincancelled Queue._ignore_epipe
        Queue._close Queue._closed Queue._poll Queue._terminate_broken Queue.cancel_join_thread Queue.join_thread
        SimpleQueue._reader SimpleQueue._writer SimpleQueue._rlock SimpleQueue._wlock SimpleQueue._poll""",
    "spawn": """
        WINEXE _main get_command_line get_executable get_preparation_data import_main_path is_forking freeze_support
        old_main_modules prepare set_executable spawn_main _python_exe WINSERVICE _check_not_importing_main
        _fixup_main_from_name _fixup_main_from_path""",
    "synchronize": """
        Barrier BoundedSemaphore Condition Event Lock RECURSIVE_MUTEX RLock SEMAPHORE SEM_VALUE_MAX SemLock Semaphore
        SemLock._make_name SemLock._rand SemLock._semlock Lock.locked RLock.locked Semaphore.locked
        BoundedSemaphore.locked Condition.locked Lock._semlock Condition._sleeping_count Condition._woken_count
        Condition._wait_semaphore""",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names.split()]
)
def test_it_is_there(module, name):
    found = importlib.import_module(f"procession.{module}")
    for part in name.split("."):
        assert hasattr(found, part), f"procession.{module} has no {name}"
        found = getattr(found, part)


LOCK_FIELDS = "_is_mine _count _get_value _is_zero acquire release handle kind maxvalue name".split()


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
def test_what_is_behind_a_lock(kind):
    lock = getattr(procession, kind)()
    assert all(hasattr(lock._semlock, field) for field in LOCK_FIELDS)
    assert not lock.locked()
    with lock:
        assert lock.locked()
    assert not lock.locked()


def test_a_condition_is_locked_if_its_lock_is():
    condition = procession.Condition()
    assert not condition.locked()
    with condition:
        assert condition.locked()


def test_fields_of_a_queue():
    queue = procession.Queue(3)
    queue.put(1)
    assert queue._sem.get_value() == queue._sem._semlock._get_value() == 2
    with queue._rlock, queue._wlock:
        assert queue.get() == 1
    assert not queue._buffer
    assert queue._thread is None


class CountingQueue(queues.Queue):
    """Has more to hand over than the queue, as many such classes have."""

    def __init__(self):
        super().__init__(ctx=procession.get_context("spawn"))
        self.label = "counted"

    def __getstate__(self):
        return super().__getstate__(), self.label

    def __setstate__(self, state):
        state, self.label = state
        super().__setstate__(state)


class LockedQueue(queues.Queue):
    """Hands over what the standard package's queue is made of, as loky's does."""

    def __init__(self):
        super().__init__(2, ctx=procession.get_context("spawn"))

    def __getstate__(self):
        procession.context.assert_spawning(self)
        parts = (self._ignore_epipe, self._maxsize, self._reader, self._writer)
        return *parts, self._rlock, self._wlock, self._sem, self._opid

    def __setstate__(self, state):
        self._ignore_epipe, self._maxsize, self._reader, self._writer, *rest = state
        self._rlock, self._wlock, self._sem, self._opid = rest
        self._reset()


class FedQueue(LockedQueue):
    """Has a thread of its own making feed the pipe."""

    def _start_thread(self):
        self.started = True
        super()._start_thread()


class LockedSimpleQueue(queues.SimpleQueue):
    def __init__(self):
        super().__init__(ctx=procession.get_context("spawn"))

    def put(self, obj):
        with self._wlock:
            self._writer.send(("sent", obj))


def echo(queue, back):
    back.put((queue.get(), getattr(queue, "label", None)))


@pytest.mark.parametrize("kind", [CountingQueue, LockedQueue, FedQueue, LockedSimpleQueue])
def test_queues_that_change_how_queues_work(kind):
    queue, back = kind(), procession.get_context("spawn").SimpleQueue()
    child = procession.get_context("spawn").Process(target=echo, args=(queue, back))
    child.start()
    queue.put(["an object"])
    got, label = back.get()
    child.join()
    assert got == (("sent", ["an object"]) if kind is LockedSimpleQueue else ["an object"])
    assert label == ("counted" if kind is CountingQueue else None)
    assert queue.empty()
    if kind is not LockedSimpleQueue:
        queue.put(1)
        assert queue.get(timeout=20) == 1
        with pytest.raises(queues.Empty):
            queue.get(timeout=0.01)
        queue.close()
        queue.join_thread()
        with pytest.raises(ValueError, match="closed"):
            queue.put(1)
    if kind is FedQueue:
        assert queue.started
        assert processes.eventually(lambda: not queue._thread.is_alive())


def test_a_queue_over_a_pipe_is_bounded():
    queue = LockedQueue()
    queue.put(1)
    queue.put(2)
    with pytest.raises(queues.Full):
        queue.put(3, timeout=0.01)
    assert queue.qsize() == 2
    assert queue.full()
    assert queue.get_many(5) in ([1], [1, 2])


def test_what_cannot_be_pickled_is_told_by_the_thread_of_a_queue_over_a_pipe():
    told = []

    class Telling(LockedQueue):
        def _on_queue_feeder_error(self, e, obj):
            told.append((e, obj))

    queue = Telling()
    unpicklable = lambda: None  # noqa: E731
    queue.put(unpicklable)
    assert processes.eventually(lambda: told)
    assert told[0][1] is unpicklable
    queue.put(2)
    assert queue.get() == 2
