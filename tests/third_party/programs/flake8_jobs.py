"""flake8 looks at files by a pool."""

import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number in range(8):
            Path(folder, f"file{number}.py").write_text("import os\n" * (number + 1))
        command = [sys.executable, "-m", "flake8", "--jobs", "2", "--isolated", "."]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode, done.stderr)
        print(*sorted(done.stdout.splitlines()), sep="\n")
