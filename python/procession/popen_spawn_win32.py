"""Starting a child on Windows. There is no port to it yet: the module is here as programs look for its name."""

import os

if os.name == "nt":
    raise ImportError("procession has no port to Windows yet")

__all__ = []
