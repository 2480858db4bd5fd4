"""cflow: continuous flows and flow matching in PyTorch.

A :class:`Flow` is a module that transforms a simple distribution (the base) into the distribution of the data. The
parts of a flow decide how it samples and what its likelihood means. An objective decides how it is trained. A flow and
an objective do not depend on each other's internals.

Time runs from the base (``t = 0``) to the data (``t = 1``). Shapes are ``[*batch, *event]``. Log-densities are in nats.
"""

import importlib
from typing import TYPE_CHECKING

import cflow.interrupts  # noqa: F401 - first, for Ctrl-C while the rest is imported
from cflow import (
    bases,
    bijections,
    couplings,
    ctmc,
    data,
    discrete,
    divergence,
    fields,
    guidance,
    integrations,
    manifolds,
    metrics,
    objectives,
    paths,
    plot,
    solvers,
    times,
    training,
)
from cflow.continuous import ContinuousFlow, RelaxedFlow
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
    "RelaxedFlow",
    "StandardisedContext",
    "TrainingEntry",
    "bases",
    "bijections",
    "cli",
    "couplings",
    "ctmc",
    "data",
    "density",
    "discrete",
    "divergence",
    "fields",
    "guidance",
    "integrations",
    "load",
    "manifolds",
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

# Imported on first use: scikit-learn takes longer to import than everything else.
_LAZY = ("cli", "density", "testing")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"cflow.{name}")
    raise AttributeError(f"module 'cflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
