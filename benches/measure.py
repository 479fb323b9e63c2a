"""One measurement, in this interpreter: measure.py IMPLEMENTATION WORKLOAD COUNT. Prints the seconds (or the MB)."""

import importlib
import sys

from workloads import load

if __name__ == "__main__":
    implementation, name, count = sys.argv[1:]
    print(load()[name].run(importlib.import_module(implementation), int(count)))
