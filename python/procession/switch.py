"""The take-over for every program of a virtual environment: `python -m procession enable | disable | status`.

The switch is one file of one line in the environment's site-packages, which each interpreter of the environment runs
when it starts. The line puts a finder in place that waits for somebody to import `multiprocessing`; only then is this
package imported. If it is not there any more, or cannot be imported, the standard package is found as ever.
"""

import os
import site
import sys
import sysconfig

__all__ = ["main"]

# Before most others of its folder, which may import multiprocessing: they are run in the order of their names.
FILE_NAME = "_procession_switch.pth"

# A program that is started with this variable set to one of these words is left out, with all that it starts.
VARIABLE = "PROCESSION_TAKEOVER"
OFF = ("0", "off", "no", "false")

# What is done when somebody imports multiprocessing. As a text, it costs the start of an interpreter nothing.
#
# It is done when the module is loaded, and not when it is looked for: finders are called under a lock of the import
# system, for which another thread may wait while it has that of a module that is imported here.
#
# A child of a program that runs on the standard package, since it was started before the switch was turned on, is told
# by its command line, as ours name this package there.
#
# Another thread may have seen the empty module that stands in the place of multiprocessing when this begins, and keep
# it: so it gets what the right one has. Or it looks for a part of it: that is loaded when it is known what
# multiprocessing is. So the finder stays where it is; to take it out would also shift the list for those who are going
# through it.
_ANSWER = f"""
import sys
if module.__name__ != 'multiprocessing':
    import multiprocessing
    sys.modules.pop(module.__name__, None)
    __import__(module.__name__)
else:
    finder.is_over = True
    sys.modules.pop('multiprocessing', None)
    lines = tuple('from multiprocessing.' + name for name in ('spawn ', 'forkserver ', 'resource_tracker '))
    if not any(word.startswith(lines) for word in sys.orig_argv):
        try:
            from procession.takeover import install
            install()
        except Exception as error:
            import warnings
            warnings.warn('{FILE_NAME} finds no procession to take the place of multiprocessing, or none that works (' +
                repr(error) + '). If it was uninstalled, remove that file from ' + {{folder!r}}, ImportWarning)
    import multiprocessing
    vars(module).update(vars(multiprocessing))
"""

# The line. Interpreters of virtual environments may read the files of the folder twice.
_LINE = (
    "import os, sys; "
    "any(type(finder).__name__ == 'ProcessionSwitch' for finder in sys.meta_path) or "
    f"not sys.flags.ignore_environment and os.environ.get({VARIABLE!r}, '').lower() in {OFF!r} or "
    "sys.meta_path.insert(0, type('ProcessionSwitch', (), {{'is_over': False, "
    "'find_spec': lambda self, name, path=None, target=None: "
    "__import__('_frozen_importlib').ModuleSpec(name, self, is_package=True) "
    "if name == 'multiprocessing' and not self.is_over or not path and name.startswith('multiprocessing.') else None, "
    "'create_module': lambda self, spec: None, "
    "'exec_module': lambda self, module: exec({answer!r}, {{'finder': self, 'module': module}})}})())\n"
)


def main(command, options):
    """Do what the command line says; returns the exit status."""
    if options not in ([], ["--system"]):
        return _complain(f"{command} knows no {' '.join(options)}: only --system")
    environment = _Environment()
    if command == "status":
        return environment.status()
    refusal = environment.refusal(system=bool(options))
    if refusal:
        return _complain(f"cannot {command} the switch: {refusal}")
    try:
        return environment.enable() if command == "enable" else environment.disable()
    except OSError as error:
        return _complain(f"cannot {command} the switch: {error}")


def _remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _complain(text):
    print(f"procession: {text}", file=sys.stderr)
    return 2


class _Environment:
    """The environment of this interpreter."""

    def __init__(self):
        self.is_virtual = sys.prefix != sys.base_prefix
        self.folder = sysconfig.get_path("purelib")
        self.path = os.path.join(self.folder, FILE_NAME)
        kind = "virtual environment" if self.is_virtual else "Python"
        self.name = f"the {kind} at {sys.prefix}"

    def refusal(self, system):
        """Why nothing is to be changed here, if so."""
        if system and self.is_virtual:
            return f"--system is for a Python that is no virtual environment, and this is {self.name}"
        if not system and not self.is_virtual:
            return (
                f"this is {self.name}, not a virtual environment, so that every program on the system that uses it "
                "would be concerned. If this is meant, say --system"
            )
        if self.folder not in site.getsitepackages():
            return f"interpreters of {self.name} do not look for .pth files in {self.folder}"
        if "procession.fallback" in sys.modules:
            return f"procession has no port to this system ({sys.platform})"
        if not sys.executable:
            return "this interpreter does not know its program, so the outcome could not be tried"
        return None

    def enable(self):
        if self._ask("import importlib.util, sys; sys.exit(importlib.util.find_spec('procession') is None)") != 0:
            return _complain(f"cannot enable the switch: procession is not installed in {self.name}")
        content = self.content()
        if self._read() != content:
            # Whole or not at all: an interpreter may start at any time.
            made = f"{self.path}.{os.getpid()}.new"
            try:
                with open(made, "w", encoding="utf-8") as file:
                    file.write(content)
                os.replace(made, self.path)
            except OSError:
                _remove(made)
                raise
        return self.status()

    def disable(self):
        _remove(self.path)
        self.status()
        return 0

    def status(self):
        """Say what is so. 0 if `multiprocessing` is procession here, else 1."""
        effective = self._ask("import multiprocessing, sys; sys.exit(multiprocessing.__name__ != 'procession')") == 0
        content = self._read()
        if content is None:
            print(f"off: in {self.name}, multiprocessing is the standard package")
        elif effective:
            print(f"on: in {self.name}, multiprocessing is procession, by {self.path}")
        else:
            print(f"on, but without effect: in {self.name}, {self.path} is there, but new interpreters do not heed it")
        if content not in (None, self.content()):
            print("The file is that of another version of procession: enable renews it.")
        if content is None and effective:
            print("Nevertheless multiprocessing is procession, by other means: another .pth file, perhaps.")
        word = os.environ.get(VARIABLE, "")
        if content is not None and word.lower() in OFF:
            print(f"Programs that are started with {VARIABLE}={word}, as it is here, are left out.")
        return 0 if effective else 1

    def content(self):
        """What is in the file."""
        return _LINE.format(answer=_ANSWER.format(folder=self.folder))

    def _read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    @staticmethod
    def _ask(program):
        """The exit status of a program in a new interpreter, whatever this one's variables and folder are."""
        import subprocess

        return subprocess.run([sys.executable, "-I", "-c", program], stderr=subprocess.DEVNULL, check=False).returncode
