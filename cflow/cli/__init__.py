"""The command ``cflow``: sample a trained flow, score data, fit a fast solver, straighten, export and inspect.

For example:

    cflow sample runs/images-digits --num 64 --solver heun --steps 8 --label 3 --output x.png
    cflow bespoke runs/images-digits --steps 6
    cflow sample runs/images-digits --num 64 --solver bespoke
    cflow reflow runs/images-digits --rounds 1 --pairs 10000 --distill 1
    cflow score runs/density-wine wine.csv --output scores.csv
    cflow export runs/images-digits --steps 8 --output digits.pt2
    cflow info runs/images-digits
    cflow --import my_parts sample runs/mine     # first imports my_parts.py, which registers your own classes
    cflow --version

``python -m cflow`` is the same where the command is not on the path. Each command is one file. ``runs.py`` reads the
folder of a run, and ``running.py`` prints errors.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys

import cflow
from cflow.cli import bespoke, export, info, reflow, sample, score
from cflow.cli.commands import app
from cflow.cli.running import MISTAKES, check_typeguard, in_options, run_recipe, warnings_said
from cflow.data.faults import counted
from cflow.interrupts import restore

__all__ = ["counted", "main", "run_recipe"]

DESCRIPTION = (
    "Sample, score, straighten and export trained flows. `cflow COMMAND --help` explains a command; `cflow --version` "
    "shows the version. `cflow --import MODULE COMMAND` first imports a module, such as my_parts.py of the present "
    "folder, which registers classes of a flow."
)
COMMANDS = (sample, score, bespoke, reflow, export, info)  # importing a command adds it to the app


def main(args: list[str] | None = None) -> None:
    """Runs the command line. An error of the user is printed in one line, with exit status 2.

    Args:
        args: the arguments. Default: those of the process.
    """
    restore()
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--version"]:
        print(f"cflow {cflow.__version__}")
        return
    said = lambda text: f"cflow: {in_options(str(text), *_options(args[0] if args else ''))}"
    try:
        while args[:1] == ["--import"]:
            _import(*args[1:2])
            args = args[2:]
        check_typeguard()
        with warnings_said(said):
            app.cli(prog="cflow", description=DESCRIPTION, args=args)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except MISTAKES as error:
        print(said(error), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _import(name: str = "") -> None:
    """Imports a module that registers classes, from the present folder or as every other module."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name.removesuffix(".py"))
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"--import {name}: {error}; pass the name of a module that is installed, or of a file in this folder."
        ) from error


def _options(command: str) -> tuple[dict[str, bool], dict[str, str]]:
    """Returns the options of a command, whether each is a switch, and the options by the names of their arguments."""
    function = next((vars(each)[command] for each in COMMANDS if command in vars(each)), None)
    flags, names = {}, {}
    for name, each in ({} if function is None else inspect.signature(function).parameters).items():
        if each.kind is each.POSITIONAL_ONLY:
            continue
        renamed = re.search(r"name='([\w-]+)'|name=\"([\w-]+)\"", str(each.annotation))
        option = (renamed[1] or renamed[2]) if renamed else name
        flags[option] = each.annotation in (bool, "bool")
        if option != name:
            names[name] = option
    return flags, names
