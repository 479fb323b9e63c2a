"""cythonize two modules at once."""

import os
import tempfile
from pathlib import Path

from Cython.Build import cythonize

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in ("one", "two", "three"):
            Path(f"{name}.pyx").write_text("def twice(int number):\n    return 2 * number\n")
        modules = cythonize(["one.pyx", "two.pyx", "three.pyx"], nthreads=2, quiet=True, language_level=3)
        print(sorted(module.name for module in modules))
        print(sorted(path.name for path in Path().glob("*.c")))
