"""Rounds with a pool: random calls, and random kills, cancels, limits and changes of size meanwhile."""

import functools
import gc
import math
import time

import procession

from .accounts import PATIENCE, Call, Lost, audit
from .tasks import Task, as_array, pattern

SIZES = [1 << 10, 1 << 16, 1 << 18, 1 << 20, 1 << 22]

FORMS = {
    "apply": 1, "apply_async": 3, "map": 1, "map_async": 1, "starmap": 1, "starmap_async": 1, "imap": 1,
    "imap_unordered": 1,
}  # fmt: skip


def run(rng, context, book, tell):
    """One round; raises `Lost` if anything is not accounted for."""
    _Round(rng, context, book, tell).run()


class _Round:
    def __init__(self, rng, context, book, tell):
        self.rng, self.context, self.book, self.tell = rng, context, book, tell
        self.task = Task(book.path)
        self.calls = []
        self.keys = iter(range(1 << 40))
        self.deaths = 0
        self.kills_in_a_row = 0
        self.large = 8
        self.processes = rng.randint(1, 4)
        self.ending = rng.choices(["close", "terminate", "with", "drop"], [6, 2, 2, 1])[0]

    def run(self):
        options = self.options = self._pool_options()
        self.tell(f"{options}, ending by {self.ending}")
        self.pool = self.context.Pool(self.processes, **options)
        try:
            for _ in range(self.rng.choice([5, 20, 60])):
                self._event()
            self._end()
        except BaseException:
            self.pool.terminate()
            raise
        audit(self.calls, self.deaths, self.ended, self.book)
        # The calls hold the pool, and it holds descriptors.
        self.calls.clear()
        self.pool = None

    def _pool_options(self):
        options = {}
        quick = self.context.get_start_method() == "fork"
        if self.rng.random() < 0.3:
            options["maxtasksperchild"] = self.rng.choice([1, 3, 20] if quick else [20, 100])
        if quick and self.rng.random() < 0.1:
            # A worker ends after each task, as it has more memory than that.
            options["max_memory_per_child"] = 1000
        if self.rng.random() < 0.2:
            options["initializer"] = math.sqrt
            options["initargs"] = (2.0,)
        return options

    @property
    def short_lived(self):
        """Whether most tasks have a worker of their own."""
        return self.options.get("maxtasksperchild", 9) < 9 or "max_memory_per_child" in self.options

    def _event(self):
        events = {
            self._submit: 70, self._kill: 8, self._cancel: 8, self._resize: 4, self._settle_one: 5, self._pause: 5,
        }  # fmt: skip
        self.rng.choices(list(events), events.values())[0]()

    # calls

    def _submit(self):
        form = self.rng.choices(list(FORMS), FORMS.values())[0]
        if form in ("apply", "map", "starmap") and self._may_hang():
            form += "_async"
        options = self._options()
        waits = form in ("apply", "map", "starmap")
        count = 1 if form.startswith("apply") else self.rng.choice([1, 5, 40] if self.short_lived else [1, 5, 40, 300])
        items = [self._item(options, waits, few=count < 40) for _ in range(count)]
        self._start(Call(form, items, options))

    def _options(self):
        options = {}
        if self.rng.random() < 0.15:
            options["timeout"] = self.rng.choice([0.05, 0.2, 0.5, 30.0])
        if self.rng.random() < 0.1:
            # It has to be the shorter one.
            options["soft_timeout"] = min(self.rng.choice([0.02, 0.1, 30.0]), options.get("timeout", 99) / 2)
        if self.rng.random() < 0.2:
            options["retries"] = self.rng.choice([1, 3])
        if self.rng.random() < 0.2:
            options["priority"] = self.rng.randint(-3, 3)
        return options

    def _item(self, options, waits, few):
        """What a task is to do: key, kind, a number and maybe data."""
        key = next(self.keys)
        kinds = {"value": 60, "rest": 10, "work": 5}
        if few:
            kinds |= {"rest": 20, "work": 10, "fail": 5, "die": 2, "leave": 2, "die_first": 3}
            kinds |= {"softly": 2, "nested": 1} if few else {}
            if self.large:
                kinds |= {"take": 6, "give": 6}
            if options.get("timeout", 30) < 1 or (self.ending in ("terminate", "with") and not waits):
                kinds["hang"] = 2
        kind = self.rng.choices(list(kinds), kinds.values())[0]
        if kind in ("take", "give"):
            self.large -= 1
            size = self.rng.choice(SIZES)
            if kind == "give":
                return key, kind, size
            data = pattern(key, size)
            return key, kind, size, self.rng.choice([bytes, as_array])(data)
        numbers = {"rest": self.rng.randint(0, 30), "work": self.rng.randint(0, 10), "leave": self.rng.randint(0, 3)}
        if kind == "die_first":
            return key, kind, self.rng.randint(1, 3)
        return key, kind, numbers.get(kind, 0)

    def _start(self, call):
        form, items, options = call.form, call.items, dict(call.options)
        self.calls.append(call)
        if form.startswith("apply"):
            function, arguments = self.task, items[0]
        elif form.startswith("starmap"):
            function, arguments = self.task, items
        else:
            function, arguments = self.task.of_item, items
        if not form.startswith("apply"):
            options["chunksize"] = self.rng.choice([1, 1, 7, "auto"])
        if form.startswith("imap"):
            if self.rng.random() < 0.3:
                call.buffered = True
                options["buffersize"] = self.rng.randint(1, 20)
            if self.rng.random() < 0.5:
                arguments = iter(arguments)
            call.heard = None
            call.by_chunks = options["chunksize"] != 1
            call.handle = getattr(self.pool, form)(function, arguments, **options)
            return
        if form.endswith("_async"):
            hear = {"callback": call.hear, "error_callback": call.hear}
            call.handle = getattr(self.pool, form)(function, arguments, **options, **hear)
            return
        call.heard = None
        try:
            call.outcome = "value", getattr(self.pool, form)(function, arguments, **options)
        except Exception as error:
            call.outcome = "error", error

    # what comes between

    def _kill(self):
        if self.kills_in_a_row == self.processes:
            # A pool of which every worker dies before it was ready is broken, as it ought to be.
            self._make_sure_of_progress()
        # As many numbers are drawn as always, however many workers are there.
        which, softly = self.rng.random(), self.rng.random() < 0.3
        workers = [worker for worker in list(self.pool._pool) if worker.is_alive()]
        if workers:
            worker = workers[int(which * len(workers))]
            self.deaths += 1
            self.kills_in_a_row += 1
            (worker.terminate if softly else worker.kill)()

    def _make_sure_of_progress(self):
        if self._may_hang():
            # There may be no worker left for it.
            return
        probe = Call("apply_async", [(next(self.keys), "value", 0)], {"retries": 3})
        self._start(probe)
        probe.settle()
        self.kills_in_a_row = 0

    def _may_hang(self):
        """Whether a task is there that holds its worker until the end of the pool."""
        return any(
            item[1] == "hang" and call.options.get("timeout", 30) >= 1 for call in self.calls for item in call.items
        )

    def _open(self):
        return [call for call in self.calls if call.outcome is None]

    def _cancel(self):
        if calls := self._open():
            call = self.rng.choice(calls)
            call.asked_to_cancel = bool(call.handle.cancel()) or call.asked_to_cancel

    def _resize(self):
        if self.rng.random() < 0.5 and self.processes < 6:
            self.pool.grow()
            self.processes += 1
        elif self.processes > 1:
            self.pool.shrink()
            self.processes -= 1

    def _settle_one(self):
        calls = self._open()
        if calls and not self._may_hang():
            self._settle(self.rng.choice(calls))

    def _settle(self, call):
        if call.form.startswith("imap"):
            call.outcome = "each", list(self._each(call))
        else:
            call.settle()
        if call.outcome[0] == "value":
            self.kills_in_a_row = 0

    def _each(self, call):
        get = call.handle.__next__ if call.by_chunks else functools.partial(call.handle.next, PATIENCE)
        while True:
            try:
                yield "value", get()
            except StopIteration:
                return
            except Exception as error:
                if type(error) is procession.TimeoutError:
                    raise Lost(f"no answer in {PATIENCE} s: {call}") from None
                yield "error", error
                if call.by_chunks or call.asked_to_cancel or (self.ended and isinstance(error, RuntimeError)):
                    # There are no more, or none that are of interest.
                    call.cut = True
                    return

    def _pause(self):
        time.sleep(self.rng.random() * 0.05)

    # the end

    ended = False

    def _end(self):
        if self.ending in ("terminate", "with"):
            if self.rng.random() < 0.5:
                self._pause()
            self.ended = True
            if self.ending == "terminate":
                self.pool.terminate()
            else:
                with self.pool:
                    pass
            self.pool.join()
        elif self.ending == "close":
            for call in self._open():
                # Such streams end where they are: nobody might come for the rest.
                call.cut = call.cut or call.buffered
            self.pool.close()
            if self.rng.random() < 0.5:
                self.pool.join()
        for call in self._open():
            self._settle(call)
        if self.ending == "close":
            self.pool.join()
        elif self.ending == "drop":
            self.pool = None
            gc.collect()
