"""A small smooth network for vectors, such as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from cflow.fields.activations import ACTIVATIONS, value_and_slope
from cflow.fields.base import Field, check_outputs
from cflow.fields.embedding import ContextEmbedding, SinusoidalTime, SpanEmbedding, check_condition, shared_time
from cflow.fields.traces import layers_trace
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["MLP"]


@register("fields.MLP")
class MLP(Field):
    r"""Computes a vector field with a multilayer perceptron; time and context modulate every hidden layer.

    .. math:: h_{l+1} = \operatorname{act}\bigl((1 + \gamma_l) \odot (W_l h_l + b_l) + \beta_l\bigr), \qquad
        (\gamma, \beta) = V \operatorname{SiLU}(\operatorname{embed}(t) + \operatorname{embed}(c))

    The last layer starts at zero, so an untrained field is zero. The network runs in the dtype of its parameters; the
    result has the dtype of ``x``.

    Args:
        features: the number of entries of one sample.
        hidden: the width of every hidden layer.
        context: the width of a continuous context vector; 0 for none.
        classes: the number of class labels, if the context is a label; 0 for none.
        activation: one of silu, gelu, tanh, softplus, mish.
        time_width: the number of sines and cosines that encode the time, and the width of the embedding.
        outputs: how many tensors like ``x`` the network returns; 2 for paths that learn a velocity and a score.
        two_times: whether the field also reads ``s`` and returns average velocities between two times; see
            :func:`cflow.fields.two_times`.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, features]``; context ``[B, context]``, or labels ``[B]``
    -> ``[B, features]``, or ``[B, outputs, features]`` for several outputs.

    Cost: three operations per hidden layer. A time that all samples share (0-dim, or expanded from one number) is
    embedded once. ``MLP(2)`` has 22,370 parameters. The divergence has a closed form (``divergence.Analytic``). With
    one or two hidden layers it costs at most about as much as the field; with more it needs at most ``features``
    tangents.

    Raises:
        ValueError: if a width is not positive, the activation is unknown, or both ``context`` and ``classes`` are set.

    Source: Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, 2018, arXiv:1709.07871.

    Example:
        >>> import torch
        >>> field = MLP(2, hidden=(64, 64), context=3)
        >>> x, context = torch.zeros(5, 2), torch.ones(5, 3)
        >>> field(torch.tensor(0.5), x, context).shape
        torch.Size([5, 2])
        >>> field(torch.rand(5), x, field.null_context(context)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64, 64),
        *,
        context: int = 0,
        classes: int = 0,
        activation: str = "silu",
        time_width: int = 32,
        outputs: int = 1,
        two_times: bool = False,
    ):
        hidden = widths_of("MLP", "hidden", hidden)
        if features < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"MLP(features={features}, hidden={hidden}): sizes must be positive, with at least one hidden layer; "
                f"pass for example MLP(2)."
            )
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"MLP(activation={activation!r}): unknown activation; pass one of {', '.join(ACTIVATIONS)}."
            )
        check_condition("MLP", classes, context)
        check_outputs("MLP", outputs)
        super().__init__((features,), () if classes else (context,) if context else None)
        self.features, self.hidden, self.context, self.classes = features, hidden, context, classes
        self.activation, self.time_width, self.outputs, self.two_times = activation, time_width, outputs, two_times
        self.time = SinusoidalTime(time_width)
        self.time_layer = nn.Linear(time_width, time_width)
        self.span = SpanEmbedding(time_width, time_width, highest=32.0) if two_times else None
        conditional = classes or context
        self.condition = ContextEmbedding(time_width, classes=classes, context=context) if conditional else None
        self.modulation = nn.Linear(time_width, 2 * sum(hidden))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip((self._inputs(), *hidden[:-1]), hidden))
        self.output = nn.Linear(hidden[-1], outputs * features)
        self.act = ACTIVATIONS[activation]()
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        h = self._enter(x).to(self.output.weight.dtype)
        for layer, scale, shift in zip(self.layers, *self._modulation(t, context, s)):
            h = self.act(shift.addcmul(layer(h), scale))
        result = self.output(h).to(x.dtype)
        return result if self.outputs == 1 else rearrange(result, "b (k d) -> b k d", k=self.outputs)

    def _inputs(self) -> int:
        """Returns the width of the first layer's input."""
        return self.features

    def _enter(self, x: Tensor) -> Tensor:
        """Returns the first layer's input for ``x``, in its dtype."""
        return x

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the field and its divergence in closed form, from its weights and the slopes of its activations.

        Raises:
            ValueError: for more than one output.
        """
        if self.outputs != 1:
            raise ValueError(
                f"MLP(outputs={self.outputs}).value_and_divergence: {self.outputs} outputs have no closed form; use "
                f"divergence.Exact() or divergence.Hutchinson()."
            )
        t = self.check(t, x, context)
        h, slopes = x.to(self.output.weight.dtype), []
        scales, shifts = self._modulation(t, context)
        for layer, scale, shift in zip(self.layers, scales, shifts):
            h, slope = value_and_slope(self.activation, shift.addcmul(layer(h), scale))
            slopes.append(slope)
        weights = [layer.weight for layer in (*self.layers, self.output)]
        return self.output(h).to(x.dtype), layers_trace(weights, slopes, scales)

    def _modulation(
        self, t: Tensor, context: Tensor | None, s: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns scales and shifts of every hidden layer; one row for a shared time without a context."""
        embedding = self.time_layer(self.time(shared_time(t), dtype=self.output.weight.dtype))
        if self.span is not None:
            embedding = embedding + self.span(t, s, dtype=embedding.dtype)
        if context is not None:
            embedding = embedding + self.condition(context)
        scales, shifts = self.modulation(nn.functional.silu(embedding)).chunk(2, -1)
        return (1 + scales).split(self.hidden, -1), shifts.split(self.hidden, -1)
