"""How a network reads the time and the condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from cflow.arguments import is_integer
from cflow.fields.base import is_null, null_like
from cflow.registry import register

__all__ = ["ContextEmbedding", "SinusoidalTime", "SpanEmbedding", "forward_mode", "shared_time"]


def forward_mode() -> bool:
    """Returns whether forward-mode differentiation is under way (for any tensor: a batched one cannot be asked)."""
    return forward_ad._current_level >= 0


def shared_time(t: Tensor) -> Tensor:
    """Gives a time as ``[1]`` where all samples share it (0-dim or expanded from one number), else as it is.

    Looks at strides only, never at values. A time that is being differentiated keeps its rows: their derivatives
    may differ where their values do not.
    """
    if t.dim() == 0:
        return t.unsqueeze(0)
    if torch.compiler.is_compiling() or t.stride(0) != 0 or t.requires_grad:
        return t
    return t[:1]


@register("fields.SinusoidalTime")
class SinusoidalTime(nn.Module):
    r"""Computes sines and cosines of the time, at frequencies spread evenly in logarithm.

    .. math:: e_j(t) = \sin(\omega_j t), \quad e_{j + w/2}(t) = \cos(\omega_j t), \quad
        \omega_j = \omega_{\min} (\omega_{\max} / \omega_{\min})^{j / (w/2 - 1)}

    Computed in float32 or better whatever the dtype of the network: a time in bf16 has three digits, too few for a
    high frequency. Frequencies are rounded to eight bits once, so moving a module between dtypes never changes them.

    Shapes: ``t`` ``[B]`` -> ``[B, width]``, in ``dtype`` (default: the dtype of the module's buffer).

    Cost: two elementwise operations.

    Raises:
        ValueError: if ``width`` is odd or below 4, or the frequencies are not ``0 < lowest < highest``.

    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.5.

    Example:
        >>> SinusoidalTime(8)(torch.tensor([0.0, 1.0])).shape
        torch.Size([2, 8])
    """

    def __init__(self, width: int, *, lowest: float = 1.0, highest: float = 32.0):
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(
                f"SinusoidalTime(width={width}): sines and cosines come in pairs, and at least two frequencies are "
                f"spread between lowest and highest; pass an even width of 4 or more."
            )
        if not 0 < lowest < highest:
            raise ValueError(
                f"SinusoidalTime(lowest={lowest}, highest={highest}): frequencies are spread in logarithm from the "
                f"lowest to the highest; pass 0 < lowest < highest."
            )
        self.width, self.lowest, self.highest = width, lowest, highest
        ladder = torch.linspace(math.log(lowest), math.log(highest), width // 2, dtype=torch.float64).exp()
        ladder = ladder.to(torch.bfloat16).to(torch.get_default_dtype())
        self.register_buffer("frequencies", ladder.repeat(2), persistent=False)
        # A quarter turn makes a cosine of a sine: one operation for both. Applied as a sign, it survives any dtype.
        self.register_buffer("quarters", torch.arange(width).ge(width // 2).to(ladder), persistent=False)

    def forward(self, t: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        network = self.frequencies.dtype
        precise = torch.promote_types(torch.promote_types(t.dtype, network), torch.float32)
        with torch.autocast(t.device.type, enabled=False):
            angle = torch.addcmul(
                self.quarters.to(precise) * (math.pi / 2), t.to(precise).unsqueeze(-1), self.frequencies.to(precise)
            )
            return angle.sin().to(network if dtype is None else dtype)


class SpanEmbedding(nn.Module):
    """Embeds the length of the step from ``t`` to ``s``, for fields of two times; added to the embedding of ``t``.

    A step of no length, ``s = t``, is what ``s=None`` means.

    It starts at zero, as if the step had no length: a network of one time that is given this part and nothing else
    computes what it did, so its weights are the start of a network of two (:func:`cflow.fields.two_times`).

    Shapes: ``t``, ``s`` ``[]`` or ``[B]`` -> ``[1, embedding]`` or ``[B, embedding]``.
    """

    def __init__(self, width: int, embedding: int, *, highest: float):
        super().__init__()
        self.sines = SinusoidalTime(width, highest=highest)
        self.layers = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, t: Tensor, s: Tensor | float | None, *, dtype: torch.dtype | None = None) -> Tensor:
        t = shared_time(t)
        s = t if s is None else shared_time(torch.as_tensor(s, dtype=t.dtype, device=t.device))
        return self.layers(self.sines(s - t, dtype=dtype))


@register("fields.ContextEmbedding")
class ContextEmbedding(nn.Module):
    r"""Embeds class labels or context vectors, "no condition" included, in a vector of ``width``.

    Labels are looked up in a table with one more row, index ``classes``, for "no condition". A vector goes through
    ``Linear, SiLU, Linear``; a row with an entry below -1e29 means "no condition" and gets a learned embedding
    instead. A NaN in a vector stays a NaN: it is never taken for a missing condition.

    Shapes: labels ``[B]`` (integers) or vectors ``[B, context]`` -> ``[B, width]``. Cost: no host read.

    Raises:
        ValueError: unless exactly one of ``classes`` and ``context`` is positive.
        TypeError: for labels that are not integers.

    Example:
        >>> embedding = ContextEmbedding(16, classes=10)
        >>> embedding(torch.tensor([3, 10])).shape  # a three, and no condition
        torch.Size([2, 16])
    """

    def __init__(self, width: int, *, classes: int = 0, context: int = 0):
        super().__init__()
        check_condition(type(self).__name__, classes, context)
        if not classes and not context:
            raise ValueError(
                "ContextEmbedding(classes=0, context=0): there is nothing to embed; "
                "pass the number of classes or the width of the context vector."
            )
        self.width, self.classes, self.context = width, classes, context
        if classes:
            self.table = nn.Embedding(classes + 1, width)
        else:
            self.network = nn.Sequential(nn.Linear(context, width), nn.SiLU(), nn.Linear(width, width))
            self.null = nn.Parameter(torch.zeros(width))

    @property
    def context_shape(self) -> torch.Size:
        """The shape of one context: ``()`` for a label."""
        return torch.Size(() if self.classes else (self.context,))

    def null_context(self, context: Tensor) -> Tensor:
        """Gives a context of the same shape that means "no condition"."""
        return null_like(context, self.classes)

    def forward(self, context: Tensor) -> Tensor:
        if self.classes:
            if context.is_floating_point() or context.is_complex() or context.dtype == torch.bool:
                raise TypeError(
                    f"ContextEmbedding(classes={self.classes}): a label is an index, and a context of dtype "
                    f"{context.dtype} was given; pass integers, for example context.long()."
                )
            # Indices of a narrow dtype (uint8 of an image set's labels) are valid, but the table reads long ones.
            return self.table(context.long())
        null = is_null(context)
        # The reserved value never enters the network: it would overflow there, and NaN its gradient.
        known = torch.where(null, 0.0, context).to(self.null.dtype)
        return torch.where(null, self.null, self.network(known))


def check_condition(name: str, classes: int, context: int) -> None:
    """Refuses what is no number of classes or width of a context, and both at once."""
    if not (is_integer(classes, 0, numpy=True) and is_integer(context, 0, numpy=True)) or (classes and context):
        raise ValueError(
            f"{name}(classes={classes!r}, context={context!r}): the condition is one of a number of class labels, or a "
            f"vector of that width, or nothing; pass at most one of the two, as a positive integer."
        )
