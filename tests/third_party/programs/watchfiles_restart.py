"""watchfiles runs a function in a process, and anew after a change."""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from watchfiles import run_process


def write(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('WATCHFILES_CHANGES', '')[:5]}\n")
    time.sleep(60)


def change(folder, runs):
    for wanted in (1, 2):
        while not runs.exists() or len(runs.read_text().splitlines()) < wanted:
            time.sleep(0.05)
        time.sleep(0.5)
        Path(folder, f"watched{wanted}").touch()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        runs = Path(other, "runs")
        threading.Thread(target=change, args=(folder, runs), daemon=True).start()
        changes = []
        timer = threading.Timer(60, lambda: os._exit(3))
        timer.daemon = True
        timer.start()

        def seen(changed):
            changes.append(sorted(kind.name for kind, _ in changed))
            if len(changes) == 2:
                os.kill(os.getpid(), 2)

        try:
            print("reloads", run_process(folder, target=write, args=(runs,), callback=seen) >= 1)
        except KeyboardInterrupt:
            print("interrupted")
        pids = [line.split()[0] for line in runs.read_text().splitlines()]
        print("runs", len(pids) >= 2, "different processes", len(set(pids)) == len(pids), changes[0])
    sys.exit()
