"""Processes that log through loguru's queue."""

import multiprocessing
import tempfile
from pathlib import Path

from loguru import logger


def work(log, name):
    for number in range(50):
        log.info(f"{name} {number}")
    log.complete()


if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with tempfile.TemporaryDirectory() as folder:
            logger.remove()
            logger.add(f"{folder}/log", format="{process.name} {message}", enqueue=True, context=context)
            processes = [context.Process(target=work, args=(logger, name), name=f"worker-{name}") for name in "ab"]
            for process in processes:
                process.start()
            work(logger, "main")
            for process in processes:
                process.join()
            logger.remove()
            lines = Path(folder, "log").read_text().splitlines()
            print(method, len(lines), sorted({line.rpartition(" ")[0] for line in lines}))
