"""The network that computes the raw numbers of univariate functions from features and a context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cflow.fields import mlp
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["Conditioner", "check_hidden", "walk"]

# Those of the papers. Choose a smooth one for densities whose second derivatives matter.
ACTIVATIONS = {**mlp.ACTIVATIONS, "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU}


@register("discrete.Conditioner")
class Conditioner(nn.Module):
    r"""Computes raw numbers from features and a context, by a multilayer perceptron or a residual network.

    .. math:: h_0 = W_0 [x, c] + b_0, \quad h_l = W_l \operatorname{act}(h_{l-1}) + b_l, \qquad \text{or with residual:}
        \quad h_l = h_{l-1} + V_l \operatorname{act}(W_l \operatorname{act}(h_{l-1}))

    The last layer starts at zero, so all raw numbers start at zero: for most families, the function is then the
    identity.

    Args:
        features: number of input features; may be 0 if there is a context.
        outputs: number of raw numbers.
        context: width of the context; 0 for none.
        hidden: width of every hidden layer; a residual network has equal widths, and one block for each after the
            first.
        activation: one of relu, silu, gelu, tanh, softplus, mish, elu, leaky_relu.
        residual: whether hidden layers are residual blocks of two layers.

    Shapes: ``x [B, features]``, ``context [B, context]`` -> ``[B, outputs]``.

    Raises:
        ValueError: if there are neither features nor a context, a width is not positive, a residual network has several
            widths, or the activation is unknown.

    Example:
        >>> Conditioner(2, 6, context=3)(torch.zeros(5, 2), torch.ones(5, 3)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        residual: bool = False,
    ):
        super().__init__()
        hidden = check_hidden("Conditioner", hidden, activation, residual)
        self.features, self.outputs, self.context, self.hidden = features, outputs, context, hidden
        self.activation, self.residual = activation, residual
        if features + context < 1:
            raise ValueError(
                f"Conditioner(features={features}, context={context}): the network has no inputs; pass features or a "
                "context, or use discrete.Elementwise."
            )
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in widths(features + context, outputs, hidden, residual))
        self.act = ACTIVATIONS[activation]()
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns the raw numbers ``[B, outputs]`` for ``x [B, features]`` and ``context [B, context]``."""
        value = x if context is None else torch.cat((x, context), -1)
        value = value.to(self.layers[-1].bias.dtype)
        layers = self.layers
        return walk(lambda i, value: linear(value, layers[i].weight, layers[i].bias), value, self)


def widths(inputs: int, outputs: int, hidden: tuple[int, ...], residual: bool) -> list[tuple[int, int]]:
    """Returns the numbers of inputs and outputs of every linear layer."""
    if residual:
        hidden = (hidden[0], *(width for width in hidden[1:] for _ in range(2)))
    return list(zip((inputs, *hidden), (*hidden, outputs)))


def walk(layer: Callable[[int, Tensor], Tensor], value: Tensor, network) -> Tensor:
    """Evaluates a network: ``layer(i, value)`` applies the i-th linear map, all else acts entry by entry.

    So the same code evaluates whole batches and, in an incremental inverse, the units of one level.
    """
    last = len(network.layers) - 1
    value = layer(0, value)
    if network.residual:
        for i in range(1, last, 2):
            value = value + layer(i + 1, network.act(layer(i, network.act(value))))
        return layer(last, value)
    for i in range(1, last + 1):
        value = layer(i, network.act(value))
    return value


def check_hidden(owner: str, hidden: Sequence[int], activation: str, residual: bool) -> tuple[int, ...]:
    """Returns the widths as a tuple; raises if they cannot form a network."""
    hidden = widths_of(owner, "hidden", hidden)
    if not hidden or min(hidden) < 1:
        raise ValueError(f"{owner}(hidden={hidden}): hidden layers must have positive width; pass (64, 64).")
    if residual and (len(set(hidden)) > 1 or len(hidden) < 2):
        raise ValueError(
            f"{owner}(hidden={hidden}, residual=True): a residual network has two or more layers of one width; pass "
            f"for example {(hidden[0],) * max(2, len(hidden))}."
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{owner}(activation={activation!r}): unknown activation; pass one of {', '.join(ACTIVATIONS)}."
        )
    return hidden
