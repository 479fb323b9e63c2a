"""pylint looks at files by an executor."""

import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        names = [f"file{number}.py" for number in range(4)]
        for name in names:
            Path(folder, name).write_text('"""A module."""\n\nimport os\n')
        command = [sys.executable, "-m", "pylint", "--jobs", "2", "--rcfile=/dev/null", "--score=n", *names]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode, done.stderr)
        print(*sorted(line for line in done.stdout.splitlines() if "import" in line), sep="\n")
