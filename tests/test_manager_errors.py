"""What goes wrong with managers goes wrong as in the standard package: the same calls, with both, side by side."""

import json
import pathlib

PROGRAM = pathlib.Path(__file__).with_name("manager_errors.py").read_text()

WHY = ["raised", "RemoteError", "AttributeError"]
# Where ours is different.
DIFFERENT = {
    # There is no process to wait for, and the standard package looks for it all the same.
    "join_before_start": ["returned", "None"],
    # Both raise RemoteError. The standard package's text ends with its vain look for a substitute of the method.
    "unexposed_method": WHY,
    "unexposed_method_of_a_dict": WHY,
    "unknown_method": WHY,
    "exposed_method_that_is_not_there": WHY,
    # The standard package's thread goes on with the connection to the dead server.
    "start_again_at_the_port_after_a_kill": ["returned", "2"],
    # The socket's file is its owner's only; the standard package leaves that to the folder.
    "mode_of_the_socket": ["returned", "'0o0'"],
    # The standard package makes methods from text.
    "proxy_type_with_a_bad_name": ["returned", "None"],
}


def outcomes(program, package):
    out, err = program(PROGRAM, package, options=()).finish()
    seen = dict(map(json.loads, out.splitlines()))
    assert "bad_iterator" in seen, err
    return seen


def test_errors_are_those_of_the_standard_package(program):
    theirs, ours = outcomes(program, "multiprocessing"), outcomes(program, "procession")
    assert len(theirs) > 90
    expected = theirs | DIFFERENT
    wrong = {name: (expected[name], ours[name]) for name in expected if expected[name] != ours[name]}
    assert not wrong, json.dumps(wrong, indent=1)
