"""Processes that count in one cache, take from one deque and respect its locks."""

import multiprocessing
import tempfile

import diskcache


def count(cache, times):
    for _ in range(times):
        cache.incr("count")
        with diskcache.Lock(cache, "lock"):
            cache["guarded"] = cache.get("guarded", 0) + 1


def take(deque, queue):
    taken = 0
    while True:
        try:
            deque.popleft()
        except IndexError:
            break
        taken += 1
    queue.put(taken)


if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with tempfile.TemporaryDirectory() as folder, diskcache.Cache(folder) as cache:
            cache["count"] = 0
            processes = [context.Process(target=count, args=(cache, 50)) for _ in range(3)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            print(method, cache["count"], cache["guarded"])
        with tempfile.TemporaryDirectory() as folder:
            deque, queue = diskcache.Deque(range(100), directory=folder), context.Queue()
            processes = [context.Process(target=take, args=(deque, queue)) for _ in range(2)]
            for process in processes:
                process.start()
            print("taken", queue.get() + queue.get())
            for process in processes:
                process.join()
