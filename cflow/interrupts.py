"""Ctrl-C while the command ``cflow`` imports the package, which takes seconds: the process ends without a traceback.

Importing this module has the effect, so ``cflow/__init__.py`` imports it first. A program that imports the package is
not affected.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

__all__ = ["restore"]


def _is_command() -> bool:
    """Returns whether this process is ``cflow ...`` or ``python -m cflow ...``."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name in ("cflow", "cflow.exe") or sys.orig_argv[1:3] == ["-m", "cflow"]


def restore() -> None:
    """Makes Ctrl-C raise a ``KeyboardInterrupt`` again, where the import of the package has changed that."""
    global _changed
    if _changed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _changed = False


# An ignored signal, as in a background job, stays ignored. Only the main thread may set handlers.
_changed = (
    _is_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _changed:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the shell reports status 130, as for any interrupted program
