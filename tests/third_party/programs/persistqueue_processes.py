"""Processes at one queue on the disk."""

import multiprocessing
import tempfile

import persistqueue


def put(path, name):
    queue = persistqueue.SQLiteQueue(path, auto_commit=True)
    for number in range(20):
        queue.put((name, number))


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with tempfile.TemporaryDirectory() as folder:
            processes = [context.Process(target=put, args=(folder, name)) for name in "ab"]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            queue = persistqueue.SQLiteQueue(folder, auto_commit=True)
            got = [queue.get(timeout=5) for _ in range(queue.size)]
            print(method, len(got), [number for name, number in got if name == "a"] == list(range(20)))
