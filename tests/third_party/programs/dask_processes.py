"""dask's own scheduler of processes."""

import dask
import dask.bag
import dask.config


def remainder(number):
    return number % 7


if __name__ == "__main__":
    bag = dask.bag.from_sequence(range(1000), npartitions=8)
    for method in ("spawn", "forkserver", "fork"):
        with dask.config.set(**{"multiprocessing.context": method}):
            print(method, sorted(bag.map(remainder).frequencies().compute(scheduler="processes", num_workers=2)))
    lazy = [dask.delayed(remainder)(number) for number in range(10)]
    print(dask.compute(*lazy, scheduler="processes", num_workers=2))
