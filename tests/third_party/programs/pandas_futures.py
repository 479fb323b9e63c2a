"""Frames that go to an executor, a pool and a process, and come back."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy
import pandas


def mean(frame):
    return frame.groupby("key").value.mean()


def put(queue, frame):
    queue.put(frame.assign(twice=frame.value * 2))


if __name__ == "__main__":
    frame = pandas.DataFrame({"key": [number % 3 for number in range(9000)], "value": numpy.arange(9000.0)})
    frame["when"] = pandas.date_range("2020-01-01", periods=9000, freq="h", tz="Europe/Paris")
    parts = [frame.iloc[start : start + 3000] for start in range(0, 9000, 3000)]
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            print(method, pandas.concat(executor.map(mean, parts)).tolist())
        with context.Pool(2) as pool:
            print(pandas.concat(pool.map(mean, parts)).tolist())
        queue = context.Queue()
        process = context.Process(target=put, args=(queue, frame))
        process.start()
        back = queue.get()
        process.join()
        print(back.drop(columns="twice").equals(frame), str(back.dtypes.when))
