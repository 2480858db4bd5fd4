"""FFJORD's network: time and condition gate and shift every layer, and the trace has a closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.fields.activations import ACTIVATIONS, value_and_slope
from cflow.fields.base import Field
from cflow.fields.embedding import ContextEmbedding, check_condition, shared_time
from cflow.fields.traces import layers_trace
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["ConcatSquash"]

EMBEDDING = 32  # width of an embedded condition


@register("fields.ConcatSquash")
class ConcatSquash(Field):
    r"""Computes a vector field with concat-squash layers, the network of FFJORD's experiments on tables and toys.

    .. math:: h_{l+1} = \operatorname{act}\bigl(\sigma(g_l) \odot (W_l h_l + b_l) + \beta_l\bigr),
        \qquad v = W_{n+1} (\sigma(g_{n+1}) \odot h_{n+1}) + \beta_{n+1}

    Gates :math:`g` and shifts :math:`\beta` are linear in the time and in the embedded condition. They are computed
    once, as one row, if all samples share the time and there is no condition. The last gate multiplies the input of the
    last layer (in the paper's code, its output), so the trace is one product also when samples have different times or
    conditions. The last layer starts at zero, so an untrained field is zero.

    Args:
        features: the number of entries of one sample.
        hidden: the width of every hidden layer.
        context: the width of a continuous context vector; 0 for none.
        classes: the number of class labels, if the context is a label; 0 for none.
        activation: one of silu, gelu, tanh, softplus, mish.
        autonomous: whether to omit the time. Without a condition too, the network is a plain multilayer perceptron.
        skip: whether to add a linear map of x, which starts at zero.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, features]``; context ``[B, context]``, or labels ``[B]``
    -> ``[B, features]``.

    Cost: three operations per hidden layer. The divergence has a closed form (``divergence.Analytic``). With one or two
    hidden layers it costs at most about as much as the field; with more it needs at most ``features`` tangents.

    Raises:
        ValueError: if a width is not positive, the activation is unknown, or both ``context`` and ``classes`` are set.

    Source: Grathwohl et al., FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, 2018,
    arXiv:1810.01367, appendix B.1, for the network.

    Example:
        >>> from cflow.divergence import Analytic
        >>> field = ConcatSquash(2, hidden=(64, 64))
        >>> v, divergence, _ = Analytic()(field, torch.tensor(0.5), torch.zeros(5, 2), None)
        >>> v.shape, divergence.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64),
        *,
        context: int = 0,
        classes: int = 0,
        activation: str = "tanh",
        autonomous: bool = False,
        skip: bool = False,
    ):
        hidden = widths_of("ConcatSquash", "hidden", hidden)
        if features < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"ConcatSquash(features={features}, hidden={hidden}): sizes must be positive, with at least one hidden "
                f"layer; pass for example ConcatSquash(2)."
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"ConcatSquash(activation={activation!r}): unknown activation; pass one of {', '.join(ACTIVATIONS)}."
            )
        check_condition("ConcatSquash", classes, context)
        super().__init__((features,), () if classes else (context,) if context else None)
        self.features, self.hidden, self.context, self.classes = features, hidden, context, classes
        self.activation, self.autonomous, self.skip = activation, autonomous, skip
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((features, *hidden[:-1]), hidden))
        self.act = ACTIVATIONS[activation]()
        conditional, gated = bool(classes or context), bool(classes or context or not autonomous)
        self.output = nn.Linear(hidden[-1], features, bias=not gated)
        # Gates of the hidden layers and of the last layer's input; shifts of the hidden layers and of its output.
        self.widths = [*hidden, hidden[-1], *hidden, features]
        self.time = None if autonomous else nn.Linear(1, sum(self.widths))
        self.embedding = ContextEmbedding(EMBEDDING, classes=classes, context=context) if conditional else None
        self.condition = nn.Linear(EMBEDDING, sum(self.widths), bias=autonomous) if conditional else None
        self.straight = nn.Linear(features, features, bias=False) if skip else None
        with torch.no_grad():
            for layer in (self.output, self.straight, self.time, self.condition):
                for parameter in () if layer is None else layer.parameters():
                    parameter[-features:] = 0

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        h = x.to(self.output.weight.dtype)
        *layers, last = self._gates(t, context)
        for layer, gate in zip(self.layers, layers):
            h = self.act(_squash(layer(h), gate))
        return self._leave(x, h, last)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the field and its divergence in closed form, from its weights and the slopes of its activations."""
        t = self.check(t, x, context)
        h, slopes = x.to(self.output.weight.dtype), []
        *layers, last = self._gates(t, context)
        for layer, gate in zip(self.layers, layers):
            h, slope = value_and_slope(self.activation, _squash(layer(h), gate))
            slopes.append(slope)
        scales = None if last is None else [gate[0] for gate in layers]
        if last is not None:
            scales[-1] = scales[-1] * last[0]
        trace = layers_trace([layer.weight for layer in (*self.layers, self.output)], slopes, scales)
        if self.straight is not None:
            trace = trace + self.straight.weight.diagonal().to(trace.dtype).sum()
        return self._leave(x, h, last), trace

    def _gates(self, t: Tensor, context: Tensor | None) -> list[tuple[Tensor, Tensor] | None]:
        """Returns gate and shift of every layer, as one row or one per sample; None if there are no gates."""
        condition = None if self.condition is None else self.condition(self.embedding(context))
        if self.time is not None:
            time = self.time(shared_time(t).unsqueeze(-1).to(self.time.weight.dtype))
            condition = time if condition is None else time + condition
        count = len(self.hidden) + 1
        if condition is None:
            return [None] * count
        gates, shifts = condition.tensor_split([sum(self.widths[:count])], -1)
        gates, shifts = gates.sigmoid().split(self.widths[:count], -1), shifts.split(self.widths[count:], -1)
        return list(zip(gates, shifts))

    def _leave(self, x: Tensor, h: Tensor, last: tuple[Tensor, Tensor] | None) -> Tensor:
        """Applies the last layer, whose gate multiplies its input, and adds the linear map of x."""
        v = self.output(h) if last is None else self.output(h * last[0]) + last[1]
        return (v if self.straight is None else v + self.straight(x.to(h.dtype))).to(x.dtype)


def _squash(a: Tensor, gate: tuple[Tensor, Tensor] | None) -> Tensor:
    """Gates and shifts a layer's result."""
    return a if gate is None else gate[1].addcmul(a, gate[0])
