"""viztracer follows a program into its processes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import multiprocessing, sys

def traced(number):
    return number * number

def nothing():
    traced(1)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        pool.map(traced, range(20), chunksize=1)
        pool.close()
        pool.join()
    process = context.Process(target=nothing)
    process.start()
    process.join()
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program.py").write_text(PROGRAM)
        for method in ("fork", "spawn"):
            command = [sys.executable, "-m", "viztracer", "--quiet", "-o", "trace.json", "program.py", method]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
            calls = [event for event in events if event["name"].startswith("traced ")]
            print(method, done.returncode, len(calls), "calls, several processes:", len({c["pid"] for c in calls}) >= 2)
