"""Processes that write one log file, which is rotated."""

import logging
import multiprocessing
import sys
import tempfile
from pathlib import Path

from concurrent_log_handler import ConcurrentRotatingFileHandler

LINES = 200


def write(path, who):
    log = logging.getLogger("shared")
    log.setLevel(logging.INFO)
    log.addHandler(ConcurrentRotatingFileHandler(path, maxBytes=4000, backupCount=50))
    for number in range(LINES):
        log.info("%s wrote line %d", who, number)


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with tempfile.TemporaryDirectory() as folder:
            processes = [context.Process(target=write, args=(f"{folder}/log", name)) for name in "abc"]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            lines = [line for file in Path(folder).glob("log*") for line in file.read_text().splitlines()]
            print(method, len(lines), "lines,", len(set(lines)), "different")
            print("rotated" if len(list(Path(folder).glob("log*"))) > 2 else "not rotated")
    sys.exit()
