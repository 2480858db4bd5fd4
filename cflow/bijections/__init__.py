"""Maps with a log-determinant: data transforms in front of a flow, and layers of a discrete-time flow."""

from cflow.bijections.compose import Compose
from cflow.bijections.convolution import Conv1x1
from cflow.bijections.dequantise import Dequantise
from cflow.bijections.functions import Arcsinh, Exp, LeakyReLU, Sigmoid, Softplus, Tanh
from cflow.bijections.inverse import Inverse
from cflow.bijections.lat_lon import LatLon
from cflow.bijections.logit import Logit
from cflow.bijections.low_rank import LowRank
from cflow.bijections.lu import LULinear
from cflow.bijections.map import Bijection, Cost, Map, Surjection
from cflow.bijections.normalising import ActNorm, BatchNorm
from cflow.bijections.one_hot import OneHot
from cflow.bijections.orthogonal import Householder, Orthogonal
from cflow.bijections.permute import Permute
from cflow.bijections.rescale import Rescale
from cflow.bijections.reshape import Reshape
from cflow.bijections.reversible import Reversible
from cflow.bijections.standardise import Standardise

__all__ = [
    "ActNorm",
    "Arcsinh",
    "BatchNorm",
    "Bijection",
    "Compose",
    "Conv1x1",
    "Cost",
    "Dequantise",
    "Exp",
    "Householder",
    "Inverse",
    "LULinear",
    "LatLon",
    "LeakyReLU",
    "Logit",
    "LowRank",
    "Map",
    "OneHot",
    "Orthogonal",
    "Permute",
    "Rescale",
    "Reshape",
    "Reversible",
    "Sigmoid",
    "Softplus",
    "Standardise",
    "Surjection",
    "Tanh",
]
