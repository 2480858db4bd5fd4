"""Continuous flows: a vector field, a base and a solver; with vectors of tokens inside, flows over tokens."""

from cflow.continuous.flow import ContinuousFlow
from cflow.continuous.relaxed import RelaxedFlow

__all__ = ["ContinuousFlow", "RelaxedFlow"]
