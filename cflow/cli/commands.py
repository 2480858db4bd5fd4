"""The list of commands, and readable help for their options."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

__all__ = ["app", "command", "plain_help"]

app = tyro.extras.SubcommandApp()
NAMES = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}
Target = TypeVar("Target", bound=Callable)


def command(function: Target) -> Target:
    """Adds a function to the commands. Lines of its docstring that belong together are joined, as tyro keeps breaks."""
    function.__doc__ = re.sub(r"\n {12,}(?=\S)", " ", function.__doc__ or "")
    return app.command(plain_help(function))


def plain_help(target: Target) -> Target:
    """Shortens the help of optional arguments: ``--seed INT``, not ``--seed {None}|INT ... (default: None)``.

    The help text of such an argument describes the default itself, where it is of interest.

    Args:
        target: a function or a dataclass, the annotations of which are changed.

    Example:
        >>> def draw(count: int | None = None): ...
        >>> str(plain_help(draw).__annotations__["count"].__metadata__[0].metavar)
        'INT'
    """
    hints = get_type_hints(target, include_extras=True)
    for name, parameter in inspect.signature(target).parameters.items():
        kind, more = hints[name], ()
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
        members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        members = [each for each in members if each is not type(None)]
        metavar = _shown(members[0]) if len(members) == 1 else None
        if metavar is not None:
            hint = "" if parameter.default is None or parameter.default == () else None
            # Before the others, which may choose another name.
            hints[name] = Annotated[(kind, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint), *more)]
    target.__annotations__ = hints
    return target


def _shown(kind: Any) -> str | None:
    """Returns what help shows for a value of this kind; None for kinds that are left to tyro."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        return f"{NAMES[get_args(kind)[0]]} ..." if get_args(kind)[0] in NAMES else None
    return NAMES.get(kind)
