"""mpire's pool: its kinds of calls, start methods, state, objects and insights."""

import os

from mpire import WorkerPool


def square(number):
    return number * number


def with_shared(shared, number):
    return shared["factor"] * number


def load(state):
    state["seen"] = 0


def with_state(state, number):
    state["seen"] += 1
    return number


def report(state):
    return state["seen"]


def fail(number):
    if number == 3:
        raise ValueError("number three")
    return number


if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn", "threading"):
        with WorkerPool(n_jobs=2, start_method=method, shared_objects={"factor": 3}) as pool:
            print(method, pool.map(with_shared, range(6), chunk_size=2))
        with WorkerPool(n_jobs=2, start_method=method) as pool:
            print(list(pool.imap(square, range(8))), sorted(pool.imap_unordered(square, range(8))))
            print(pool.apply(square, (9,)), pool.apply_async(square, (10,)).get())
        with WorkerPool(n_jobs=2, start_method=method, use_worker_state=True) as pool:
            pool.map(with_state, range(20), worker_init=load, worker_exit=report)
            print("seen", sum(pool.get_exit_results()))
        try:
            with WorkerPool(n_jobs=2, start_method=method) as pool:
                pool.map(fail, range(5))
        except ValueError as error:
            print("error", str(error).splitlines()[-1])
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(square, range(30), worker_lifespan=5)
        print("tasks", sum(pool.get_insights()["n_completed_tasks"]))
    with WorkerPool(n_jobs=2, daemon=False) as pool, open(os.devnull, "w") as nowhere:
        print("progress", pool.map(square, range(4), progress_bar=True, progress_bar_options={"file": nowhere}))
