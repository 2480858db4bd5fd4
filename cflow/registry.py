"""Classes registered by name, and objects rebuilt from their constructor arguments.

A registered class stores every constructor argument as an attribute of the same name (as scikit-learn's estimators
do). Then an object can be saved (:mod:`cflow.io` reads the attributes), rebuilt with one argument changed
(:func:`replace`) and printed. Frozen dataclasses do this automatically.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any
from zlib import crc32

from torch import Tensor, nn

from cflow.arguments import plain
from cflow.storage import bytes_of

__all__ = [
    "configuration", "is_known", "kept", "lookup", "name_of", "outline", "register", "replace", "uncompiled",
    "uncompiled_name",
]  # fmt: skip

_classes: dict[str, type] = {}
_names: dict[type, str] = {}


def register(name: str | type, cls: type | None = None) -> Any:
    """Registers a class under a name, so that :func:`cflow.save` and :func:`cflow.load` can save and rebuild it.

    Saved files contain the name, so keep it when the class moves to another module. With ``@register`` alone, the name
    is the name of the class. The class must store its constructor arguments as attributes of the same names.

    Args:
        name: the name; as a decorator without a name, the class itself.
        cls: the class, if this is not used as a decorator.

    Raises:
        ValueError: if the name belongs to another class, or the constructor takes ``**kwargs``, which cannot be read
            back from attributes.

    Example:
        >>> import torch
        >>> @register("examples.Scale")
        ... class Scale(torch.nn.Module):
        ...     def __init__(self, factor=2.0):
        ...         super().__init__()
        ...         self.factor = factor
        >>> configuration(Scale(3.0))
        {'factor': 3.0}
    """
    if isinstance(name, type):
        name, cls = name.__name__, name
    if cls is None:
        return lambda decorated: register(name, decorated)
    other = _classes.get(name)
    # A notebook cell that runs twice defines the same class again; classes made inside functions may differ.
    same = other is not None and (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
    if other not in (None, cls) and (not same or "<locals>" in cls.__qualname__):
        raise ValueError(
            f"register({name!r}) of {cls.__qualname__}: the name belongs to {other.__module__}.{other.__qualname__}; "
            f"choose another."
        )
    parameters(cls)
    _classes[name], _names[cls] = cls, name
    return cls


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the constructor's parameters by name, without ``self``."""
    if cls.__init__ in (object.__init__, nn.Module.__init__):
        return {}
    found = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for parameter in found.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise ValueError(
                f"{cls.__qualname__}: a constructor with **{parameter.name} cannot be saved; list its arguments."
            )
    return found


def lookup(name: str) -> type:
    """Returns the class with this registered name.

    Raises:
        ValueError: if there is none; the message lists registered names that are close.
    """
    if name not in _classes:
        near = difflib.get_close_matches(name, _classes, 3)
        raise ValueError(
            f"{name!r} is not a registered class; import the module that defines it, with @cflow.register (on a "
            f"command line: cflow --import MODULE)."
            + (f" Registered, with a name like it: {', '.join(near)}." if near else "")
        )
    return _classes[name]


def is_known(cls: type) -> bool:
    """Returns whether a class is registered."""
    return cls in _names


def name_of(cls: type) -> str:
    """Returns the name under which a class is registered.

    Raises:
        ValueError: if the class is not registered.
    """
    if cls not in _names:
        raise ValueError(
            f"{cls.__module__}.{cls.__qualname__} is not registered, so it cannot be loaded again; "
            f"mark the class with @cflow.register."
        )
    return _names[cls]


def configuration(obj: Any) -> dict[str, Any]:
    """Reads an object's constructor arguments from its attributes.

    A ``*args`` parameter is read as the sequence stored under its name. Where a method has the name of an argument, the
    class attribute ``stored_as`` maps the argument to the attribute that stores it.

    Raises:
        ValueError: if a constructor argument is not stored as an attribute.
    """
    missing, stored = object(), getattr(type(obj), "stored_as", {})
    arguments = {key: getattr(obj, stored.get(key, key), missing) for key in parameters(type(obj))}
    lost = [key for key, value in arguments.items() if value is missing]
    if lost:
        raise ValueError(
            f"{type(obj).__qualname__} does not store its constructor argument {lost[0]!r}; "
            f"set self.{lost[0]} in __init__."
        )
    return arguments


def build(cls: type, arguments: dict[str, Any]) -> Any:
    """Calls a constructor with arguments by name; the sequence of a ``*args`` parameter is unpacked."""
    kinds = parameters(cls)
    unknown = [key for key in arguments if key not in kinds]
    if unknown:
        raise ValueError(f"{cls.__qualname__} has no constructor argument {unknown[0]!r}; it takes {', '.join(kinds)}.")
    spread = [key for key, parameter in kinds.items() if parameter.kind is inspect.Parameter.VAR_POSITIONAL]
    if not spread:
        return cls(**arguments)
    before = [arguments[key] for key in list(kinds)[: list(kinds).index(spread[0])]]
    keywords = {key: value for key, value in arguments.items() if kinds[key].kind is inspect.Parameter.KEYWORD_ONLY}
    return cls(*before, *arguments[spread[0]], **keywords)


def uncompiled(obj: Any) -> Any:
    """Returns the module inside the result of ``torch.compile(module)``; returns anything else unchanged."""
    return obj._modules["_orig_mod"] if isinstance(obj, nn.Module) and "_orig_mod" in obj._modules else obj


def uncompiled_name(name: str) -> str:
    """Returns the name that a tensor has without the wrapper of ``torch.compile``."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def kept(obj: Any) -> dict[str, Any]:
    """Reads the attributes that are saved and copied in addition to constructor arguments: the class's ``kept``."""
    return {name: getattr(obj, name) for name in getattr(type(obj), "kept", ())}


def replace(obj: Any, **changes: Any) -> Any:
    """Builds a copy of an object with some constructor arguments changed; the other arguments are shared.

    Modules among the arguments (a field, a base) are the same objects in the copy, parameters included. The attributes
    that a class lists in ``kept`` (a flow's record of training) are copied, too.
    """
    new = build(type(obj), {**configuration(obj), **changes})
    for name, value in kept(obj).items():
        setattr(new, name, value)
    return new


def outline(obj: Any) -> Any:
    """Describes the parts of an object in values that JSON can hold. Use it to compare two objects, not to rebuild one.

    A registered object is described by its name and its arguments, and any other object by its class. A tensor in a
    module's state, which training changes, is described by its shape; any other tensor also by a checksum. The
    attributes in ``kept``, such as a flow's record of training, are omitted.
    """
    return _outline(obj, set())


def _outline(obj: Any, held: set[int]) -> Any:
    obj = plain(uncompiled(obj))
    if isinstance(obj, nn.Module):
        held = held | {id(each) for each in (*obj.parameters(), *obj.buffers())}
    if isinstance(obj, str | int | float | bool | None):
        return obj
    if isinstance(obj, Tensor):
        values = "" if id(obj) in held else f" {crc32(bytes_of(obj)):08x}"
        return f"{obj.dtype}{list(obj.shape)}{values}"
    if isinstance(obj, dict | nn.ModuleDict):
        return {str(key): _outline(value, held) for key, value in obj.items()}
    if isinstance(obj, list | tuple | nn.ModuleList):
        return [_outline(value, held) for value in obj]
    if type(obj) not in _names:
        return getattr(obj, "__qualname__", type(obj).__qualname__)
    return {name_of(type(obj)): {key: _outline(value, held) for key, value in configuration(obj).items()}}
