"""Embeddings of the time and of the condition."""

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
    """Returns whether forward-mode differentiation is active (for any tensor; under vmap a tensor does not show it)."""
    return forward_ad._current_level >= 0


def shared_time(t: Tensor) -> Tensor:
    """Returns a time as ``[1]`` if all samples share it (0-dim, or expanded from one number), otherwise unchanged.

    It reads strides, never values. A time that is differentiated keeps its rows, since equal times may have different
    derivatives.
    """
    if t.dim() == 0:
        return t.unsqueeze(0)
    if torch.compiler.is_compiling() or t.stride(0) != 0 or t.requires_grad:
        return t
    return t[:1]


@register("fields.SinusoidalTime")
class SinusoidalTime(nn.Module):
    r"""Computes sines and cosines of the time, at frequencies that are evenly spaced in logarithm.

    .. math:: e_j(t) = \sin(\omega_j t), \quad e_{j + w/2}(t) = \cos(\omega_j t), \quad
        \omega_j = \omega_{\min} (\omega_{\max} / \omega_{\min})^{j / (w/2 - 1)}

    The computation is in float32 or better for every dtype of the network, since a time in bf16 has only three digits.
    Frequencies are rounded to eight bits once, so a change of dtype does not change them.

    Args:
        width: the number of sines and cosines, an even number of 4 or more.
        lowest: the lowest frequency :math:`\omega_{\min}`, in radians per unit of time.
        highest: the highest frequency :math:`\omega_{\max}`.

    Shapes: ``t`` ``[B]`` -> ``[B, width]``.

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
                f"SinusoidalTime(width={width}): sines and cosines come in pairs; pass an even width of 4 or more."
            )
        if not 0 < lowest < highest:
            raise ValueError(f"SinusoidalTime(lowest={lowest}, highest={highest}): pass 0 < lowest < highest.")
        self.width, self.lowest, self.highest = width, lowest, highest
        ladder = torch.linspace(math.log(lowest), math.log(highest), width // 2, dtype=torch.float64).exp()
        ladder = ladder.to(torch.bfloat16).to(torch.get_default_dtype())
        self.register_buffer("frequencies", ladder.repeat(2), persistent=False)
        # A shift by a quarter turn changes sine to cosine. It is stored as 0 or 1, which every dtype represents.
        self.register_buffer("quarters", torch.arange(width).ge(width // 2).to(ladder), persistent=False)

    def forward(self, t: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Computes the embedding of ``t`` in ``dtype``; default: the dtype of the module's buffers."""
        network = self.frequencies.dtype
        precise = torch.promote_types(torch.promote_types(t.dtype, network), torch.float32)
        with torch.autocast(t.device.type, enabled=False):
            angle = torch.addcmul(
                self.quarters.to(precise) * (math.pi / 2), t.to(precise).unsqueeze(-1), self.frequencies.to(precise)
            )
            return angle.sin().to(network if dtype is None else dtype)


class SpanEmbedding(nn.Module):
    """Embeds the length of the step from ``t`` to ``s``, for fields of two times.

    The result is added to the embedding of ``t``; ``s=None`` means ``s = t``. It starts at zero, so a network of one
    time computes the same values after this part is added (:func:`cflow.fields.two_times`).

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
    r"""Embeds class labels or context vectors, including "no condition", in a vector of ``width``.

    Labels select rows of a table, whose last row, index ``classes``, is for "no condition". A vector passes through
    ``Linear, SiLU, Linear``. A row with an entry below -1e29 means "no condition" and gets a learned embedding instead.
    A NaN in a vector stays a NaN; it never means "no condition".

    Args:
        width: the width of the embedding.
        classes: the number of class labels, if the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none. Exactly one of the two is positive.

    Shapes: labels ``[B]`` (integers) or vectors ``[B, context]`` -> ``[B, width]``. Cost: no host read.

    Raises:
        ValueError: if not exactly one of ``classes`` and ``context`` is positive.
        TypeError: for labels that are not integers.

    Example:
        >>> embedding = ContextEmbedding(16, classes=10)
        >>> embedding(torch.tensor([3, 10])).shape  # class 3, and no condition
        torch.Size([2, 16])
    """

    def __init__(self, width: int, *, classes: int = 0, context: int = 0):
        super().__init__()
        check_condition(type(self).__name__, classes, context)
        if not classes and not context:
            raise ValueError(
                "ContextEmbedding(classes=0, context=0): there is no condition to embed; pass one of the two."
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
        """Returns a context that means "no condition", shaped like ``context``."""
        return null_like(context, self.classes)

    def forward(self, context: Tensor) -> Tensor:
        """Computes the embeddings ``[B, width]`` of ``context``: labels ``[B]``, or vectors ``[B, context]``."""
        if self.classes:
            if context.is_floating_point() or context.is_complex() or context.dtype == torch.bool:
                raise TypeError(
                    f"ContextEmbedding(classes={self.classes}): the context has dtype {context.dtype}, but labels are "
                    f"integers; pass context.long()."
                )
            # Labels of a narrow dtype (uint8 in data sets of images) are valid, but the table needs long ones.
            return self.table(context.long())
        null = is_null(context)
        # The reserved value must not enter the network, where it would overflow and make gradients NaN.
        known = torch.where(null, 0.0, context).to(self.null.dtype)
        return torch.where(null, self.null, self.network(known))


def check_condition(name: str, classes: int, context: int) -> None:
    """Raises if ``classes`` or ``context`` is not a whole number of 0 or more, or both are positive."""
    if not (is_integer(classes, 0, numpy=True) and is_integer(context, 0, numpy=True)) or (classes and context):
        raise ValueError(
            f"{name}(classes={classes!r}, context={context!r}): pass at most one of the two, as a positive integer."
        )
