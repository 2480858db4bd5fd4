"""Masked networks: which unit may depend on which feature, and the evaluation for all features at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cflow.discrete.structure.circles import Circles
from cflow.discrete.structure.conditioner import ACTIVATIONS, check_hidden, walk, widths

__all__ = ["MaskedConditioner", "levels_of"]


def levels_of(adjacency: Tensor) -> Tensor:
    """Returns the level of each feature: 0 if it depends on none, otherwise one more than the highest it depends on.

    Raises:
        ValueError: if features depend on themselves, directly or through others.

    Example:
        >>> levels_of(torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool))
        tensor([0, 1, 1])
    """
    level = torch.full((len(adjacency),), -1, dtype=torch.long, device="cpu")
    for count in range(len(adjacency) + 1):
        if bool((level >= 0).all()):
            return level
        free = (level < 0) & ~(adjacency & (level < 0)).any(1)
        level[free] = count
    stuck = (level < 0).nonzero().flatten().tolist()
    raise ValueError(
        f"adjacency: the features {stuck} depend on one another in a cycle; remove one of these dependences."
    )


class MaskedConditioner(nn.Module):
    r"""Computes the raw numbers of each feature from the features it may depend on, in one pass (MADE).

    Every hidden unit has a set of features on which it may depend; the weight from unit a to unit b is kept if the set
    of a is within that of b. Units are sorted by the level of their set, so that a level needs one slice of every
    layer.

    Args:
        adjacency: ``[features, features]``; row i is true for the features on which feature i depends.
        size: raw numbers per feature.
        context: width of the context, on which every unit may depend; 0 for none.
        hidden, activation, residual: see :class:`Conditioner`; with ``residual`` this is ResMADE.
        periods: see :class:`Circles`. Default: no circular features.

    Shapes: ``x [B, features]``, ``context [B, context]`` -> ``[B, features, size]``.

    Source: Germain et al., MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv:1502.03509; Nash and
    Durkan, Autoregressive Energy Machines, 2019, arXiv:1904.05626 (ResMADE).
    """

    fixed_buffers = True

    def __init__(
        self,
        adjacency: Tensor,
        size: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        residual: bool = False,
        periods: Sequence[float | None] | None = None,
    ):
        super().__init__()
        hidden = check_hidden("Autoregressive", hidden, activation, residual)
        adjacency = adjacency.detach().to("cpu", torch.bool)
        self.features, self.size, self.context, self.residual = len(adjacency), size, context, residual
        self.act = ACTIVATIONS[activation]()
        level = levels_of(adjacency)
        kinds, kind_levels = _kinds(adjacency, level, bool(context))
        periods = [None] * self.features if periods is None else list(periods)
        self.circles = Circles(periods)
        # The feature of each input of the network: a circular one has two inputs.
        source = torch.arange(self.features, device="cpu").repeat_interleave(
            torch.tensor(self.circles.counts, dtype=torch.long, device="cpu")
        )
        shapes = widths(context + self.circles.width, self.features * size, hidden, residual)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in shapes)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        # The features on which each unit of every layer's input and output may depend, and the level of that set.
        chosen = [_spread(len(kinds), width) for _, width in shapes[:-1]]
        owner = torch.arange(self.features, device="cpu").repeat_interleave(size)
        sets = [
            torch.eye(self.features, device="cpu").bool()[source],
            *(kinds[each] for each in chosen),
            adjacency[owner],
        ]
        levels = [*(kind_levels[each] for each in chosen), level[owner]]
        for i, layer in enumerate(self.layers):
            mask = (~sets[i + 1]).float() @ sets[i].t().float() == 0  # whether one set is within the other
            mask = nn.functional.pad(mask, (context if i == 0 else 0, 0), value=True)
            self.register_buffer(f"mask{i}", mask.to(layer.weight), persistent=False)
        # For the evaluation level by level: the features sorted by level, and the number of units of each level.
        self.levels = int(level.max()) + 1
        self.nested = bool((adjacency == (level[:, None] > level)).all())
        self.counts = [torch.bincount(each, minlength=self.levels).tolist() for each in levels]
        self.feature_counts = torch.bincount(level, minlength=self.levels).tolist()
        self.input_counts = torch.bincount(level[source], minlength=self.levels).tolist()
        order, inputs = level.argsort(stable=True), level[source].argsort(stable=True)
        self.level_circles = None
        if any(each is not None for each in periods):
            parts = order.split(self.feature_counts)
            self.level_circles = nn.ModuleList(Circles([periods[i] for i in part.tolist()]) for part in parts)
        buffers = {"level": level, "order": order, "back": order.argsort(), "input_order": inputs}
        for name, value in buffers.items():
            self.register_buffer(name, value.to(self.layers[0].weight.device), persistent=False)

    def weights(self, sliced: bool = False) -> list[Tensor]:
        """Returns the masked weight of every layer.

        In an evaluation level by level (``sliced``), where each level depends on all levels before, the mask is not
        needed: masked weights are not read.
        """
        if sliced and self.nested:
            return [layer.weight for layer in self.layers]
        return [layer.weight * getattr(self, f"mask{i}") for i, layer in enumerate(self.layers)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        weights = self.weights()
        x = self.circles(x)
        value = (x if context is None else torch.cat((context, x), -1)).to(weights[0].dtype)
        layer = lambda i, value: linear(value, weights[i], self.layers[i].bias)
        return walk(layer, value, self).unflatten(1, (self.features, self.size))


def _kinds(adjacency: Tensor, level: Tensor, context: bool) -> tuple[Tensor, Tensor]:
    """Returns the sets of features on which hidden units may depend, sorted by level: the rows of the adjacency.

    Without a context the empty set is dropped, since its units would be constant.
    """
    kinds = adjacency.unique(dim=0)
    levels = torch.where(kinds, level + 1, 0).amax(1) if len(level) else level
    if not context and len(kinds) > 1:
        kinds, levels = kinds[levels > 0], levels[levels > 0]
    order = levels.argsort(stable=True)
    return kinds[order], levels[order]


def _spread(kinds: int, width: int) -> Tensor:
    """Spreads ``width`` units over the kinds, evenly and in order."""
    return (torch.arange(width, device="cpu") * kinds).div(width, rounding_mode="floor")
