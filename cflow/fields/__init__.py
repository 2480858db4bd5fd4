"""Networks for vector fields: ``field(t, x, context=None, *, s=None) -> like x``, and what they are built from."""

from cflow.fields.adapt import Adapted
from cflow.fields.base import NULL, Field
from cflow.fields.concat_squash import ConcatSquash
from cflow.fields.dit import DiT
from cflow.fields.embedding import ContextEmbedding, SinusoidalTime
from cflow.fields.end_time import EndTime
from cflow.fields.mlp import MLP
from cflow.fields.mmdit import MMDiT
from cflow.fields.potential import Potential
from cflow.fields.second_time import two_times
from cflow.fields.unet import UNet

__all__ = [
    "MLP",
    "NULL",
    "Adapted",
    "ConcatSquash",
    "ContextEmbedding",
    "DiT",
    "EndTime",
    "Field",
    "MMDiT",
    "Potential",
    "SinusoidalTime",
    "UNet",
    "two_times",
]
