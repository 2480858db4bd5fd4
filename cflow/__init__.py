"""cflow: continuous flows and flow matching in PyTorch.

A :class:`Flow` is a module that carries a simple distribution to the data's. What it is made of decides how it samples
and what its likelihood means; an objective decides how it is trained; the two never know each other's insides.

Time runs from the base (``t = 0``) to the data (``t = 1``); shapes are ``[*batch, *event]``; log-densities are in nats.
"""

import importlib
from typing import TYPE_CHECKING

from cflow import (
    bases,
    bijections,
    couplings,
    data,
    discrete,
    divergence,
    fields,
    guidance,
    integrations,
    metrics,
    objectives,
    paths,
    plot,
    solvers,
    times,
    training,
)
from cflow.continuous import ContinuousFlow
from cflow.distribution import FlowDistribution
from cflow.flow import BaseFlow, Flow
from cflow.invertible_flow import BaseInvertibleFlow, InvertibleFlow
from cflow.io import load, save
from cflow.record import TrainingEntry
from cflow.registry import register
from cflow.standardised_context import StandardisedContext

if TYPE_CHECKING:
    from cflow import cli, density, testing

__version__ = "0.1.0"

__all__ = [
    "BaseFlow",
    "BaseInvertibleFlow",
    "ContinuousFlow",
    "Flow",
    "FlowDistribution",
    "InvertibleFlow",
    "StandardisedContext",
    "TrainingEntry",
    "bases",
    "bijections",
    "cli",
    "couplings",
    "data",
    "density",
    "discrete",
    "divergence",
    "fields",
    "guidance",
    "integrations",
    "load",
    "metrics",
    "objectives",
    "paths",
    "plot",
    "register",
    "save",
    "solvers",
    "testing",
    "times",
    "training",
]

# Loaded when first asked for: scikit-learn takes longer to import than all the rest.
_LAZY = ("cli", "density", "testing")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"cflow.{name}")
    raise AttributeError(f"module 'cflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
