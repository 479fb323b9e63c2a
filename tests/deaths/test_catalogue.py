"""Each row of the catalogue has a test, and each test of a row says what others do there."""

import ast
from pathlib import Path

from catalogue import ROWS

TESTS = Path(__file__).resolve().parents[1]


def functions():
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.name.removeprefix("test_"), ast.get_docstring(node)


def test_each_row_has_a_test():
    found = [name for name, _ in functions() if name in ROWS]
    assert sorted(found) == sorted(ROWS)


def test_each_names_what_others_do():
    others = ("Standard package", "ProcessPoolExecutor", "The same as", "billiard", "pebble", "mpire")
    silent = [name for name, text in functions() if name in ROWS and not (text or "").startswith(others)]
    assert not silent
