"""One cell of the table: `cell.py PEER ROW` prints a verdict and what happened as the last line of its output."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def report(answer):
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(peer, row):
    from deaths import pools, primitives, programs  # noqa: F401 (they fill ROWS)
    from deaths.answers import NONE, ROWS
    from deaths.peers import PEERS, NotOffered

    try:
        answer = ROWS[row](PEERS[peer]())
    except NotOffered as error:
        answer = NONE, str(error)
    report(answer)
    # Without waiting for what hangs: who started this ends it.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
