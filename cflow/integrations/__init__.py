"""Bridges to other libraries, each imported when it is first asked for: ``cflow.integrations.sbi`` and so on.

None of these libraries comes with cflow; the extras do: ``pip install "cflow[sbi]"``.
"""

from __future__ import annotations

import importlib
import pkgutil

__all__ = sorted(each.name for each in pkgutil.iter_modules(__path__))


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"cflow.integrations.{name}: there is no such bridge; there are {', '.join(__all__)}.")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
