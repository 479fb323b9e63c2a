"""A program patched by gevent that starts processes."""

from gevent import monkey

monkey.patch_all()

import multiprocessing  # noqa: E402

import gevent  # noqa: E402


def answer(connection, lock):
    with lock:
        connection.send(connection.recv() + 1)


def square(number):
    gevent.sleep(0.001)
    return number * number


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        here, there = context.Pipe()
        process = context.Process(target=answer, args=(there, context.Lock()))
        process.start()
        here.send(41)
        print(method, here.recv())
        process.join()
        print("exit code", process.exitcode)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=queue.put, args=("queued",))
    process.start()
    print(queue.get())
    process.join()
    print([job.get() for job in [gevent.spawn(square, number) for number in range(5)]])
