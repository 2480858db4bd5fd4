"""Continuous flows: a vector field, a base and a solver."""

from cflow.continuous.flow import ContinuousFlow

__all__ = ["ContinuousFlow"]
