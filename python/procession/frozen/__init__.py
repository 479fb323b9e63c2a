"""What PyInstaller, which makes one executable of a program, has to be told of this package.

It finds this module by the entry point `pyinstaller40`. What the executable itself needs is `freeze_support()`.
"""

import os

__all__ = ["hook_dirs"]


def hook_dirs():
    """The folder in which PyInstaller looks for what it is to do."""
    return [os.path.join(os.path.dirname(__file__), "hooks")]
