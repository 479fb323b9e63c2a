"""What goes wrong with listeners, clients and connections does so as in the standard package: each case in both."""

import json
import subprocess
import sys

import pytest

# Each case is an expression, with a listener's `used` address, and `folder`, an empty one.
CASES = {
    "no such family": "Listener(family='AF_NONE')",
    "a number as family": "Listener(family=5)",
    "a family of Windows": "Listener(family='AF_PIPE')",
    "an address of Windows": "Listener(r'\\\\.\\pipe\\x')",
    "client of an address of Windows": "Client(r'\\\\.\\pipe\\x')",
    "family and address that don't fit": "Listener('/nowhere/x', 'AF_INET')",
    "path and family of TCP": "Client('/nowhere/x', 'AF_INET')",
    "a number as address": "Listener(5)",
    "a number as address of a client": "Client(5)",
    "a list as address": "Listener(['localhost', 0])",
    "no address for a client": "Client(None)",
    "an empty address": "Client('')",
    "bytes as address": "Client(b'/nowhere/x')",
    "a short tuple": "Listener(('localhost',))",
    "a tuple that is too long": "Listener(('localhost', 0, 0))",
    "a text as port": "Listener(('localhost', 'x'))",
    "a port that is too large": "Listener(('localhost', 70000))",
    "a negative port": "Client(('localhost', -1))",
    "a host that is not": "Client(('no-such-host.invalid', 5))",
    "an address of another machine": "Listener(('192.0.2.1', 0))",
    "no folder": "Listener(folder + '/none/socket')",
    "a file in the way": "Listener(open(folder + '/file', 'w').name)",
    "a folder in the way": "Listener(folder)",
    "a zero within": "Listener(folder + '/a\\0b')",
    "a name that is too long": "Listener(folder + '/' + 'x' * 200)",
    "an abstract name that is too long": "Listener('\\0' + 'x' * 200)",
    "a client of a name that is too long": "Client(folder + '/' + 'x' * 200)",
    "an address in use": "Listener(used)",
    "the port of another listener": "Listener(keep(Listener(('localhost', 0))).address)",
    "an abstract name in use": "Listener(keep(Listener('\\0test' + folder)).address)",
    "a text as backlog": "Listener(backlog='x')",
    "a text as key": "Listener(authkey='text')",
    "a text as key of a client": "Client(used, authkey='text')",
    "a bytearray as key": "Listener(authkey=bytearray(b'key'))",
    "a number as key": "Client(used, authkey=5)",
    "nobody there": "Client(folder + '/nobody')",
    "nobody under an abstract name": "Client('\\0nobody' + folder)",
    "nobody at the port": "Client(closed(Listener(('localhost', 0))))",
    "nobody there any more": "Client(closed(Listener(folder + '/gone')))",
    "a file that is no socket": "Client(open(folder + '/plain', 'w').name)",
    "accepting when closed": "finished(Listener()).accept()",
    "the address of a closed one": "finished(Listener()).address",
    "the last client of a closed one": "finished(Listener()).last_accepted",
    "closing twice": "finished(Listener()).close()",
    "entering when closed": "finished(Listener()).__enter__().accept()",
    "no client so far": "Listener().last_accepted",
    "IPv6": "Listener(('::1', 0), 'AF_INET6').address[0]",
    "a client of IPv6": "Client(keep(Listener(('::1', 0), 'AF_INET6')).address)",
    "a text as key of a challenge": "deliver_challenge(None, 'text')",
    "a text as key of an answer": "answer_challenge(None, 'text')",
    "a text to respond to": "_create_response('text', 'text')",
    "sending nothing": "pair()[0].send()",
    "bytes that are none": "pair()[0].send_bytes(5)",
    "a negative offset": "pair()[0].send_bytes(b'abc', -1)",
    "an offset behind the end": "pair()[0].send_bytes(b'abc', 4)",
    "a negative size": "pair()[0].send_bytes(b'abc', 0, -1)",
    "a size beyond the end": "pair()[0].send_bytes(b'abc', 1, 3)",
    "a negative maximum": "pair()[0].recv_bytes(-1)",
    "sending what can't be pickled": "pair()[0].send(lambda: 1)",
    "receiving from the dead": "ended(pair()).recv()",
    "sending to the dead": "ended(pair()).send(1)",
    "receiving after closing": "finished(pair()[0]).recv()",
    "polling after closing": "finished(pair()[0]).poll()",
    "asking for the number after closing": "finished(pair()[0]).fileno()",
    "no descriptor": "Connection(-1)",
    "a text as descriptor": "Connection('x')",
    "neither direction": "Connection(0, False, False)",
    "waiting for a number that is none": "wait([-1])",
    "waiting for a text": "wait(['x'])",
    "an unknown family's address": "arbitrary_address('AF_NONE')",
    "the type of a number": "address_type(5)",
}

# 3.11 has it under no name.
SINCE_312 = {"a text to respond to"}
PROGRAM = """
import importlib, json, sys

package, folder, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
connection = importlib.import_module(package + ".connection")
globals().update(vars(connection))
kept = []


def keep(listener):
    kept.append(listener)
    return listener


def finished(thing):
    thing.close()
    return thing


def closed(listener):
    address = listener.address
    listener.close()
    return address


def pair():
    kept.append(connection.Pipe())
    return kept[-1]


def ended(two):
    two[1].close()
    return two[0]


used = keep(Listener()).address
outcomes = {}
for name, case in cases.items():
    try:
        value = eval(case)
    except Exception as error:
        outcomes[name] = [type(error).__name__, getattr(error, "errno", None)]
    else:
        # What is made anew each time says nothing.
        outcomes[name] = ["value", value if isinstance(value, (str, int, type(None))) else type(value).__name__]
print(json.dumps(outcomes))
"""


def outcomes(package, folder):
    folder.mkdir()
    command = [sys.executable, "-I", "-c", PROGRAM, package, str(folder), json.dumps(CASES)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    return outcomes("procession", folder / "a"), outcomes("multiprocessing", folder / "b")


@pytest.mark.parametrize("case", CASES)
def test_wrong_use_ends_as_in_the_standard_package(case, both):
    if case in SINCE_312 and sys.version_info < (3, 12):
        pytest.skip("the standard package of this version doesn't have it")
    ours, standard = both
    assert ours[case] == standard[case]
