"""The first place where two settings differ."""

from __future__ import annotations

from typing import Any

__all__ = ["first_difference"]

ABSENT = "nothing"


def first_difference(name: str, now: Any, before: Any) -> tuple[str, Any, Any]:
    """Returns the first value that differs between two outlines: ``(where, now, before)``.

    The place omits names of classes, as in ``flow.field.hidden.1``, unless the classes differ.

    Example:
        >>> now = {"fields.MLP": {"features": 2, "hidden": [64, 32]}}
        >>> first_difference("field", now, {"fields.MLP": {"features": 2, "hidden": [64, 16]}})
        ('field.hidden.1', 32, 16)
        >>> first_difference("field", now, {"fields.UNet": {"channels": 2}})
        ('field', 'fields.MLP', 'fields.UNet')
    """
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        now, before = ({str(i): each for i, each in enumerate(both)} for both in (now, before))
    if not (isinstance(now, dict) and isinstance(before, dict)):
        return name, *(_class(each) or each for each in (now, before))
    classes = _class(now), _class(before)
    if classes != (None, None):
        if classes[0] != classes[1]:
            return name, *(own or each for own, each in zip(classes, (now, before)))
        return first_difference(name, now[classes[0]], before[classes[0]])
    key = next(key for key in (*now, *before) if now.get(key, ABSENT) != before.get(key, ABSENT))
    return first_difference(f"{name}.{key}", now.get(key, ABSENT), before.get(key, ABSENT))


def _class(value: Any) -> str | None:
    """Returns the class in the outline of a registered object."""
    key = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else ""
    return key if key.rpartition(".")[2][:1].isupper() and isinstance(value[key], dict) else None
