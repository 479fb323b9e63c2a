"""A cluster of worker processes with nannies, one of which loses its worker."""

import os
import signal

import dask.config
from distributed import Client, LocalCluster


def square(number):
    return number * number


def own_pid():
    return os.getpid()


if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        dask.config.set({"distributed.worker.multiprocessing-method": method})
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            print(method, client.gather(client.map(square, range(10))))
            print("sum", client.submit(sum, client.map(square, range(100))).result())
            pids = client.run(os.getpid)
            print("worker processes", len(set(pids.values()) - {os.getpid()}))
            os.kill(next(iter(pids.values())), signal.SIGKILL)
            print("after one was killed", client.gather(client.map(square, range(100, 110))))
            client.wait_for_workers(2, timeout=60)
            client.restart(timeout=60)
            print("after a restart", client.gather(client.map(square, range(3))))
