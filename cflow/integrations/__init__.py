"""Adapters for other libraries, each imported on first use: ``cflow.integrations.sbi`` and so on.

These libraries are not installed with cflow. The extras install them: ``pip install "cflow[sbi]"``.
"""

from __future__ import annotations

import importlib
import pkgutil

__all__ = sorted(each.name for each in pkgutil.iter_modules(__path__))


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"cflow.integrations.{name}: no such adapter; choose from {', '.join(__all__)}.")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
