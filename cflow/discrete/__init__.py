"""Discrete-time flows: bijections, and what makes a flow of them."""

from .autoregressive import Autoregressive
from .bijection import Bijection, Compose, Cost, Inverse
from .conditioner import Conditioner
from .convolution import Conv1x1
from .coupling import Coupling
from .diagonal import Diagonal
from .elementwise import Elementwise
from .flow import FlowCost, NormalizingFlow
from .inverses import Incremental, Jacobi
from .low_rank import LowRank
from .lu import LULinear
from .maps import Arcsinh, Exp, LeakyReLU, Sigmoid, Softplus, Tanh
from .mixture import MixtureLogistic
from .monotone import IntegratedNetwork, SigmoidalNetwork
from .normalisation import ActNorm, BatchNorm
from .orthogonal import Householder, Orthogonal
from .permute import Permute
from .planar_flow import Planar
from .polynomials import Bernstein, SumOfSquares
from .presets import (
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
from .radial_flow import Radial
from .rational_quadratic import RationalQuadratic
from .reversible import Reversible
from .splines import CubicSpline, LinearSpline, QuadraticSpline
from .sylvester_flow import Sylvester
from .univariate import Additive, Affine, Univariate

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
    "Diagonal",
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
