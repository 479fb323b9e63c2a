"""dramatiq's command with two worker processes, which do without a broker."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APPLICATION = """
import os
import dramatiq
from dramatiq.brokers.stub import StubBroker

broker = StubBroker()
dramatiq.set_broker(broker)

@dramatiq.actor
def note(folder):
    open(os.path.join(folder, f"pid-{os.getpid()}"), "w").close()

note.send(os.environ["FOLDER"])
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "application.py").write_text(APPLICATION)
        command = [sys.executable, "-m", "dramatiq", "application", "--processes", "2", "--threads", "1"]
        environment = os.environ | {"FOLDER": folder}
        with open(f"{folder}/log", "w") as log:
            server = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + 60
        while len(list(Path(folder).glob("pid-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        pids = {int(path.name[4:]) for path in Path(folder).glob("pid-*")}
        print(len(pids), "workers have done a task; others than the command:", server.pid not in pids)
        server.send_signal(signal.SIGTERM)
        print("exit status", server.wait(60))
        print("booted", Path(folder, "log").read_text().count("Worker process is ready for action"))
