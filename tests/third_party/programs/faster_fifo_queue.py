"""faster-fifo's queue between processes: it pickles by the package's reducers."""

import multiprocessing
import queue

import faster_fifo
import faster_fifo_reduction  # noqa: F401


def produce(fifo, event):
    for number in range(1000):
        fifo.put((number, "x" * (number % 50)))
    event.set()


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        fifo, event = faster_fifo.Queue(1000 * 1000), context.Event()
        process = context.Process(target=produce, args=(fifo, event))
        process.start()
        got = []
        while len(got) < 1000:
            got += fifo.get_many(timeout=20)
        process.join()
        print(method, event.is_set(), got == [(number, "x" * (number % 50)) for number in range(1000)])
        try:
            fifo.get_nowait()
        except queue.Empty:
            print("empty")
        carried = multiprocessing.Lock()
        fifo.put({"no": "lock"})
        print(fifo.get(), carried.acquire())
