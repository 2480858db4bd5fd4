"""Flows that move points along a few directions: planar, radial, Sylvester."""

from cflow.discrete.pushes.planar import Planar
from cflow.discrete.pushes.radial import Radial
from cflow.discrete.pushes.sylvester import Sylvester

__all__ = ["Planar", "Radial", "Sylvester"]
