"""Django's test runner in two processes, with a database for each."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = """
SECRET_KEY = "no secret"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
USE_TZ = True
"""
TESTS = """
from django.contrib.auth.models import User
from django.test import TestCase

class Users{number}(TestCase):
    def test_created(self):
        User.objects.create(username="somebody")
        self.assertEqual(User.objects.count(), 1)

    def test_nobody(self):
        self.assertEqual(User.objects.count(), 0)

    def test_wrong(self):
        self.assertEqual({number} % 2, 0)

    def test_parts(self):
        for part in range(4):
            with self.subTest(part=part):
                self.assertNotEqual(part, {number})
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings.py").write_text(SETTINGS)
        Path(folder, "shop").mkdir()
        Path(folder, "shop/__init__.py").touch()
        for number in range(4):
            Path(folder, f"shop/test_{number}.py").write_text(TESTS.format(number=number))
        for options in (["--parallel", "2"], ["--parallel", "2", "--failfast"], ["--parallel", "2", "--shuffle", "5"]):
            command = [sys.executable, "-m", "django", "test", *options]
            environment = os.environ | {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": folder}
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            print(options, "exit status", done.returncode)
            if "--failfast" in options:
                continue
            print(*re.findall(r"Ran \d+ tests|FAILED.*", done.stderr))
            print(*sorted(re.findall(r"^FAIL: \S+ \S+", done.stderr, re.M)), sep="\n")
            print(len(re.findall("Cloning|Destroying test database for alias", done.stderr)), "about databases")
