"""Running a function from the command line; errors are printed in one line that mentions options."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import tyro

from cflow.cli.commands import plain_help
from cflow.training import is_main

__all__ = ["check_typeguard", "in_options", "run_recipe", "warnings_said"]

MISTAKES = (ValueError, TypeError, OSError, FloatingPointError)
CALL = re.compile(r"[\w.]+\((?P<arguments>[^()]*(\([^()]*\)[^()]*)*)\): ")
VALUE = r"(?P<value>\.\.\.|\[\.\.\.\]|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|[^\s,;:)]*[^\s,;:).])"


def run_recipe(main: Callable[[Any], None], options: type, name: str, names: Mapping[str, str] | None = None) -> None:
    """Reads a dataclass of options from the command line and runs a recipe with it.

    An error of the user is printed in one line, with exit status 1, by every process of a run with several. Messages of
    the package mention arguments of Python; here they mention the options with the same names, or those in ``names``.

    Args:
        main: the recipe, which takes the options.
        options: the dataclass, from which tyro builds the command line.
        name: the file of the recipe, with which messages start.
        names: options by the names of arguments, where the names differ.
    """
    flags = {each.name: each.type in (bool, "bool") for each in fields(options)}
    said = lambda text: in_options(str(text), flags, names or {})
    speaker = name if is_main() else f"{name}, process {os.environ['RANK']}"
    try:
        check_typeguard()
        with warnings_said(lambda text: f"{speaker}: {said(text)}"):
            main(tyro.cli(plain_help(options), console_outputs=is_main()))
    except MISTAKES as error:
        sys.exit(f"{speaker}: {said(error)}")
    except KeyboardInterrupt as stop:
        sys.exit(f"{speaker}: {said(stop) or 'interrupted'}" if is_main() else 1)


def in_options(text: str, flags: Mapping[str, bool], names: Mapping[str, str] = {}) -> str:
    """Replaces arguments of Python in a message by options of the command line.

    Args:
        text: a message, such as ``fit(resume=True): pass steps=10``.
        flags: the options, and whether each is a switch; other arguments are not changed.
        names: options by the names of arguments, where the names differ.

    Example:
        >>> in_options("fit(steps=5, resume=True): done already; pass steps >= 9", {"steps": False, "resume": True})
        '--steps 5 --resume: done already; pass --steps >= 9'
        >>> in_options("read_table('a.csv'): choose by columns=...", {"columns": False})
        'a.csv: choose by --columns'
        >>> in_options("columns=['mass', 'log age']", {"columns": False})
        "--columns mass 'log age'"
    """
    options = {name: names.get(name, name) for name in (*flags, *names) if names.get(name, name) in flags}
    if not options:
        return text
    argument = re.compile(rf"(?<![\w-])(?P<name>{'|'.join(options)})(=| (?P<compared>[<>]=?) ){VALUE}")

    def said(match: re.Match) -> str:
        name, value = options[match["name"]], match["value"]
        option = "--" + name.replace("_", "-")
        if flags[name] and value in ("True", "False"):
            return option if value == "True" else option.replace("--", "--no-", 1)
        if match["compared"]:
            return f"{option} {match['compared']} {value}"
        shown = {"True": "yes", "False": "no", "...": "", "[...]": ""}.get(value, value.strip("'"))
        if re.fullmatch(r"\[('[^']*'|\d+)(, ('[^']*'|\d+))*\]", value):  # a list of names or numbers of columns
            shown = shlex.join(map(str, ast.literal_eval(value)))
        return f"{option} {shown}".rstrip()

    call = CALL.match(text)
    if call is not None:
        parts = [each[0] for each in re.finditer(rf"'[^']*'|\w+={VALUE}", call["arguments"])]
        known = all(each[0] == "'" or argument.fullmatch(each) for each in parts)
        if known and ", ".join(parts) == call["arguments"]:
            parts = [each.strip("'") if each[0] == "'" else argument.sub(said, each) for each in parts]
            text = f"{' '.join(parts)}: {text[call.end() :]}"
    # Inside a call, such as Heun(steps=20), an argument stays an argument of Python.
    outside = re.split(r"(\w\([^()]*(?:\([^()]*\)[^()]*)*\))", text)
    return "".join(part if i % 2 else argument.sub(said, part) for i, part in enumerate(outside))


@contextmanager
def warnings_said(say: Callable[[Warning], str]):
    """Prints warnings of the package in one line, without the position in the code, and other warnings unchanged."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        if category is UserWarning:
            print(say(message), file=sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def check_typeguard() -> None:
    """Raises if the installed typeguard is too old for tyro, which reads command lines."""
    found = version("typeguard")
    if int(found.split(".")[0]) < 4:
        raise ValueError(
            f"typeguard {found} is installed, too old for the command line (tyro); pip install 'typeguard>=4.0', if "
            f"needed in a new environment."
        )
