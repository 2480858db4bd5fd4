"""Flows that push all features along few directions: planar, radial, Sylvester."""

from cflow.discrete.pushes.planar import Planar
from cflow.discrete.pushes.radial import Radial
from cflow.discrete.pushes.sylvester import Sylvester

__all__ = ["Planar", "Radial", "Sylvester"]
