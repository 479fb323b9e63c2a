"""nose2 runs unit tests in processes that it talks to over pipes."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = """
import unittest
class Numbers(unittest.TestCase):
    def test_right(self): ...
    def test_wrong(self):
        self.assertEqual(1, {number} % 2)
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            Path(folder, f"test_{number}.py").write_text(TESTS.format(number=number))
        command = [sys.executable, "-m", "nose2", "--plugin", "nose2.plugins.mp", "-N", "2"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode)
        print(*re.findall(r"Ran \d+ tests|FAILED.*", done.stderr))
        print(*sorted(re.findall(r"^FAIL: .*", done.stderr, re.M)), sep="\n")
