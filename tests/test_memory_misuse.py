"""Wrong use of shared memory and shared values leads to the same as in the standard package."""

import difflib
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("memory_misuse.py")


def outcomes(package):
    # What goes to stderr differs: the standard package's tracker complains of names that it doesn't know.
    command = [sys.executable, str(CASES), package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_wrong_use_leads_to_the_same_as_in_the_standard_package():
    standard, ours = outcomes("multiprocessing"), outcomes("procession")
    assert len(standard) > 900
    assert not "\n".join(difflib.unified_diff(standard, ours, "standard", "ours", lineterm="", n=0))
