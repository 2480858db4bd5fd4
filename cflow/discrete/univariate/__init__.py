"""Families of monotone functions of one variable, the parts of couplings and autoregressive layers."""

from cflow.discrete.univariate.family import Additive, Affine, Univariate
from cflow.discrete.univariate.mixture import MixtureLogistic
from cflow.discrete.univariate.monotone import IntegratedNetwork, SigmoidalNetwork
from cflow.discrete.univariate.polynomials import Bernstein, SumOfSquares
from cflow.discrete.univariate.rational_quadratic import RationalQuadratic
from cflow.discrete.univariate.splines import CubicSpline, LinearSpline, QuadraticSpline

__all__ = [
    "Additive",
    "Affine",
    "Bernstein",
    "CubicSpline",
    "IntegratedNetwork",
    "LinearSpline",
    "MixtureLogistic",
    "QuadraticSpline",
    "RationalQuadratic",
    "SigmoidalNetwork",
    "SumOfSquares",
    "Univariate",
]
