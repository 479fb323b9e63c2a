"""black formats several files by a ProcessPoolExecutor."""

import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number in range(6):
            Path(folder, f"file{number}.py").write_text(f"x   =  {number}\n")
        command = [sys.executable, "-m", "black", "--workers", "2", folder]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode, done.stderr.splitlines()[-1])
        print(*sorted(path.read_text() for path in Path(folder).glob("*.py")))
