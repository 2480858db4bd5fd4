"""Networks for vector fields, called as ``field(t, x, context=None, *, s=None) -> like x``, and their parts.

Networks on tokens read integers and return logits; :class:`RelaxedTokens` evaluates them at vectors.
"""

from cflow.fields.adapt import Adapted
from cflow.fields.base import NULL, Field
from cflow.fields.concat_squash import ConcatSquash
from cflow.fields.contract import FieldContract, as_field
from cflow.fields.dit import DiT
from cflow.fields.embedding import ContextEmbedding, SinusoidalTime
from cflow.fields.end_time import EndTime
from cflow.fields.mlp import MLP
from cflow.fields.mmdit import MMDiT
from cflow.fields.periodic_mlp import PeriodicMLP
from cflow.fields.potential import Potential
from cflow.fields.second_time import two_times
from cflow.fields.tokens.relaxed_tokens import RelaxedTokens
from cflow.fields.tokens.token_conv import TokenConv
from cflow.fields.tokens.token_dit import TokenDiT
from cflow.fields.unet import UNet
from cflow.fields.wrapper import FieldWrapper

__all__ = [
    "MLP",
    "NULL",
    "Adapted",
    "ConcatSquash",
    "ContextEmbedding",
    "DiT",
    "EndTime",
    "Field",
    "FieldContract",
    "FieldWrapper",
    "MMDiT",
    "PeriodicMLP",
    "Potential",
    "RelaxedTokens",
    "SinusoidalTime",
    "TokenConv",
    "TokenDiT",
    "UNet",
    "as_field",
    "two_times",
]
