"""sphinx reads and writes in processes."""

import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        Path(source, "conf.py").write_text("project = 'p'\n")
        names = [f"page{number}" for number in range(12)]
        for name in names:
            Path(source, f"{name}.rst").write_text(f"{name}\n=======\n\nSee :doc:`page1`.\n")
        contents = "Contents\n========\n\n.. toctree::\n\n" + "".join(f"   {name}\n" for name in names)
        Path(source, "index.rst").write_text(contents)
        command = [sys.executable, "-m", "sphinx", "-j", "2", "-q", "-W", str(source), f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode, done.stderr)
        print(*sorted(path.name for path in Path(folder, "out").glob("*.html")))
