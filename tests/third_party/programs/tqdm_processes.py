"""tqdm's process_map, and bars of several processes under one lock."""

import io
import multiprocessing
import sys

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map


def square(number):
    return number * number


def bar(position):
    out = io.StringIO()
    for _ in tqdm(range(100), position=position, file=out, mininterval=0):
        pass
    return "100/100" in out.getvalue()


if __name__ == "__main__":
    quiet = io.StringIO()
    print(process_map(square, range(20), max_workers=2, chunksize=3, file=quiet))
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        tqdm.set_lock(context.RLock())
        with context.Pool(2, initializer=tqdm.set_lock, initargs=(tqdm.get_lock(),)) as pool:
            print(method, list(tqdm(pool.imap(bar, range(4)), total=4, file=quiet)))
    sys.stdout.flush()
