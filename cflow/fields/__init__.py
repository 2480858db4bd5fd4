"""Networks for vector fields: ``field(t, x, context=None, *, s=None) -> like x``, and what they are built from."""

from cflow.fields.adapt import Adapted
from cflow.fields.base import NULL, Field
from cflow.fields.embedding import ContextEmbedding, SinusoidalTime
from cflow.fields.mlp import MLP
from cflow.fields.unet import UNet

__all__ = ["MLP", "NULL", "Adapted", "ContextEmbedding", "Field", "SinusoidalTime", "UNet"]
