"""Discrete-time flows: couplings, autoregressive layers and what else makes a flow of bijections.

The maps of :mod:`cflow.bijections` with which layers are stacked are shown here as well, the same objects, so that a
flow is written from one import.
"""

from cflow.bijections import (
    ActNorm,
    Arcsinh,
    BatchNorm,
    Bijection,
    Compose,
    Conv1x1,
    Cost,
    Exp,
    Householder,
    Inverse,
    LeakyReLU,
    LowRank,
    LULinear,
    Orthogonal,
    Permute,
    Reversible,
    Sigmoid,
    Softplus,
    Standardise,
    Tanh,
)
from cflow.discrete.autoregressive import Autoregressive
from cflow.discrete.conditioner import Conditioner
from cflow.discrete.coupling import Coupling
from cflow.discrete.elementwise import Elementwise
from cflow.discrete.flow import FlowCost, NormalizingFlow
from cflow.discrete.inverses import Incremental, Jacobi
from cflow.discrete.mixture import MixtureLogistic
from cflow.discrete.monotone import IntegratedNetwork, SigmoidalNetwork
from cflow.discrete.planar_flow import Planar
from cflow.discrete.polynomials import Bernstein, SumOfSquares
from cflow.discrete.presets import (
    PRESETS,
    bpf,
    flowpp,
    gf,
    iaf,
    maf,
    naf,
    nice,
    nsf,
    planar,
    radial,
    realnvp,
    sospf,
    sylvester,
    unaf,
)
from cflow.discrete.radial_flow import Radial
from cflow.discrete.rational_quadratic import RationalQuadratic
from cflow.discrete.splines import CubicSpline, LinearSpline, QuadraticSpline
from cflow.discrete.sylvester_flow import Sylvester
from cflow.discrete.univariate import Additive, Affine, Univariate

__all__ = [
    "PRESETS",
    "ActNorm",
    "Additive",
    "Affine",
    "Arcsinh",
    "Autoregressive",
    "BatchNorm",
    "Bernstein",
    "Bijection",
    "Compose",
    "Conditioner",
    "Conv1x1",
    "Cost",
    "Coupling",
    "CubicSpline",
    "Elementwise",
    "Exp",
    "FlowCost",
    "Householder",
    "Incremental",
    "IntegratedNetwork",
    "Inverse",
    "Jacobi",
    "LULinear",
    "LeakyReLU",
    "LinearSpline",
    "LowRank",
    "MixtureLogistic",
    "NormalizingFlow",
    "Orthogonal",
    "Permute",
    "Planar",
    "QuadraticSpline",
    "Radial",
    "RationalQuadratic",
    "Reversible",
    "Sigmoid",
    "SigmoidalNetwork",
    "Softplus",
    "Standardise",
    "SumOfSquares",
    "Sylvester",
    "Tanh",
    "Univariate",
    "bpf",
    "flowpp",
    "gf",
    "iaf",
    "maf",
    "naf",
    "nice",
    "nsf",
    "planar",
    "radial",
    "realnvp",
    "sospf",
    "sylvester",
    "unaf",
]
