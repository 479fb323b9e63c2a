"""green runs unit tests in processes of a pool class of its own."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = """
import time, unittest
class Numbers(unittest.TestCase):
    def test_right(self):
        time.sleep(0.01)
    def test_wrong(self):
        self.assertEqual(1, {number} % 2)
    @unittest.skip("so")
    def test_skipped(self): ...
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tests").mkdir()
        Path(folder, "tests/__init__.py").touch()
        for number in range(4):
            Path(folder, f"tests/test_{number}.py").write_text(TESTS.format(number=number))
        command = [sys.executable, "-m", "green", "-s", "2", "tests"]
        environment = os.environ | {"NO_COLOR": "1", "HOME": folder}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        print("exit status", done.returncode, *re.findall(r"^FAILED.*|^OK.*", text, re.M))
        print(*sorted(set(re.findall(r"^(?:Failure|Error) in (\S+)", text, re.M))), sep="\n")
