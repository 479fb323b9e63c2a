"""The programs of this repository that use the package as anybody would: the main job, and the measured work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
SMALL_SKY = ["--side", "256", "--stars", "200"]

sys.path.insert(0, str(TOP / "benches"))
from measure import WORKLOADS  # noqa: E402 (found by the line above)


def survey(*options):
    command = [sys.executable, *options, *SMALL_SKY]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=50)
    return json.loads(run.stdout)["answer"]


def test_the_survey_finds_on_procession_what_it_finds_on_the_standard_package(method):
    program = str(TOP / "examples" / "star_survey.py")
    ours = survey("-m", "procession", program, "--method", method)
    assert ours["stars"] > 100
    assert ours == survey(program, "--method", method)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_measured_work_is_right(name):
    # A workload checks its own result.
    count = 1 if WORKLOADS[name].unit in ("ms", "MB") else 40
    command = [sys.executable, str(TOP / "benches" / "measure.py"), "procession", name, str(count)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0
