"""What libraries do with the package beyond its documentation. Each was found by `make third-party`."""

import signal
import threading

import procession
from procession import context, managers, process


class Inside(process.BaseProcess):
    """A process that is none: it runs its target in a thread, as that of ansible's manager."""

    def __init__(self, *, target, args):
        super().__init__()
        self.work = target, args

    def start(self):
        target, args = self.work
        threading.Thread(target=target, args=args, daemon=True).start()


class InsideContext(context.BaseContext):
    Process = Inside


class Counter:
    def __init__(self):
        self.count = 0

    def add(self, number):
        self.count += number
        return self.count


class InsideManager(managers.BaseManager):
    pass


InsideManager.register("Counter", Counter)


def test_a_manager_serves_from_a_thread_of_its_own_process(monkeypatch):
    # Only the main thread may set a handler.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    manager = InsideManager(ctx=InsideContext())
    manager.start()
    counter = manager.Counter()
    assert [counter.add(2), counter.add(3)] == [2, 5]
    with procession.get_context("fork").Pool(1) as pool:
        assert pool.apply(counter.add, (4,)) == 9
    manager.shutdown()


def test_contexts_that_others_register_are_found_and_no_start_methods(monkeypatch):
    registered = InsideContext()
    registered._name = "inside"
    monkeypatch.setitem(context._concrete_contexts, "inside", registered)
    assert procession.get_context("inside") is registered
    assert sorted(procession.get_all_start_methods()) == ["fork", "forkserver", "spawn"]
