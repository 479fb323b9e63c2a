"""A short soak: see tools/soak.py, which runs for as long as one likes."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parent.parent / "tools" / "soak.py"


@pytest.mark.once
@pytest.mark.timeout(600)
def test_random_work_and_random_deaths_lose_nothing():
    run = subprocess.run([sys.executable, SOAK, "--seconds", "10"], capture_output=True, text=True)
    # It says the seed, and how to do the round again.
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all accounted for" in run.stdout
