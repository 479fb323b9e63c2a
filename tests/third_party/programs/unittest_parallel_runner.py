"""unittest-parallel runs unit tests by a pool, and measures their coverage in its workers."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = """
import unittest
import code_under_test
class Numbers(unittest.TestCase):
    def test_right(self):
        self.assertEqual(code_under_test.twice({number}), {number} * 2)
    def test_wrong(self):
        self.assertEqual(1, {number} % 2)
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "code_under_test.py").write_text("def twice(number):\n    return 2 * number\n")
        for number in range(4):
            Path(folder, f"test_{number}.py").write_text(TESTS.format(number=number))
        command = [sys.executable, "-m", "unittest_parallel", "-j", "2", "--coverage", "-t", ".", "-s", "."]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        text = done.stdout + done.stderr
        print("exit status", done.returncode)
        print(*re.findall(r"Ran \d+ tests|FAILED.*", text))
        print(*re.findall(r"code_under_test\S* .*\d%", text))
