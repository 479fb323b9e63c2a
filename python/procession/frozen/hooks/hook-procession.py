"""Run by PyInstaller where a program imports procession: which modules go into the executable."""

from PyInstaller.utils.hooks import collect_submodules

# The take-over imports modules by names that are put together at run time.
hiddenimports = collect_submodules("procession", filter=lambda name: name != "procession.frozen")
