"""Continuous flows: a vector field, a base and a solver; divergences for densities, guidance for fields."""

from cflow.continuous import divergence, guidance
from cflow.continuous.flow import ContinuousFlow

__all__ = ["ContinuousFlow", "divergence", "guidance"]
