"""One measurement, in this interpreter: measure.py IMPLEMENTATION WORKLOAD COUNT. Prints the seconds (or the MB)."""

import importlib
import sys

from workloads import WORKLOADS, deaths, listeners, locks, managers, memory, pipes, pools, queues, starts  # noqa: F401 (each registers its own)

if __name__ == "__main__":
    implementation, name, count = sys.argv[1:]
    print(WORKLOADS[name].run(importlib.import_module(implementation), int(count)))
