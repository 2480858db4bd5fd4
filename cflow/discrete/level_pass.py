"""A masked network's pass level by level, in which each weight is used once."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from cflow.discrete.conditioner import walk
from cflow.discrete.masked import MaskedConditioner

__all__ = ["LevelPass"]


class LevelPass:
    """Computes what a :class:`MaskedConditioner` computes, level by level, each weight used once over all levels.

    Called once per level, in order, with the features of the level before as rows ``[n, B]``; gives the raw numbers
    ``[m, B, size]`` of the features of this level.

    Units lie as rows, so that what is known of a layer is a contiguous slice. Levels come in blocks of about the square
    root of their number: what earlier blocks contribute to a block is one product per layer, and only the small rest is
    done level by level, which keeps many thin products from dominating.

    Cost: the arithmetic of one pass at most, in ``levels`` steps of four operations per layer.
    """

    def __init__(self, network: MaskedConditioner, context: Tensor | None, batch: int):
        weights, biases = network.weights(sliced=True), [layer.bias[:, None] for layer in network.layers]
        self.dtype = weights[0].dtype
        if network.context:
            biases[0] = biases[0] + weights[0][:, : network.context] @ context.to(self.dtype).t()
        # Columns of the first layer and rows of the last follow the features' levels.
        weights[0] = weights[0][:, network.context :].index_select(1, network.order)
        for part in (weights, biases):
            by_feature = part[-1].unflatten(0, (network.features, network.size))
            part[-1] = by_feature.index_select(0, network.order).flatten(0, 1)
        # With a graph nothing may be overwritten, so inputs are joined anew; without, they are written where they stay.
        layer = _Joined if torch.is_grad_enabled() else _Written
        given = [[0, *network.feature_counts[:-1]], *network.counts[:-1]]
        self.layers = [
            layer(weight, bias.expand(-1, batch), before, after)
            for weight, bias, before, after in zip(weights, biases, given, network.counts)
        ]
        self.network, self.block = network, max(1, round(network.levels**0.5))

    def __call__(self, level: int, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if level % self.block == 0:
            self.layers[0].add(x, level)
            x = None
            for layer in self.layers:
                layer.begin(level, level + self.block)
        raw = walk(lambda i, piece: self.layers[i](piece, level), x, self.network)
        return raw.unflatten(0, (-1, self.network.size)).transpose(1, 2)


class _Layer:
    """One linear map ``[units, inputs]`` whose inputs and units become known level by level."""

    writes = False  # whether units are computed in place

    def __init__(self, weight: Tensor, bias: Tensor, given: list[int], sizes: list[int]):
        self.weight, self.bias, self.sizes = weight, bias, sizes
        self.inputs, self.units = [0, *accumulate(given)], [0, *accumulate(sizes)]
        self.rows = weight.split(sizes)
        self.bases: tuple[Tensor, ...] = ()  # per level of the block: bias and what earlier blocks contribute
        self.first = 0  # level at which the block begins
        self.closed = self.count = 0  # inputs that belong to earlier blocks, and all that are known

    def begin(self, level: int, end: int) -> None:
        """Multiplies all that is known with the weights of all units of the coming block."""
        known = self.close()
        sizes = self.sizes[level:end]
        first, count = self.units[level], sum(sizes)
        base = self.bias.narrow(0, first, count)
        if len(known):
            weight = self.weight.narrow(0, first, count).narrow(1, 0, len(known))
            base = torch.addmm(base, weight, known)
        elif self.writes:
            base = base.clone()  # of the bias itself, which is not to be written to
        self.first, self.bases, self.closed = level, base.split(sizes), len(known)

    def __call__(self, piece: Tensor | None, level: int) -> Tensor:
        """Takes the inputs that this level adds, and gives its units."""
        if piece is not None:
            self.add(piece, level)
        base, count = self.bases[level - self.first], self.count - self.closed
        if not count or not self.sizes[level]:
            return base
        return self.apply(base, self.rows[level].narrow(1, self.closed, count))


class _Written(_Layer):
    """Keeps its inputs in one tensor, to which new ones are written; of no use to a graph."""

    writes = True

    def __init__(self, weight: Tensor, bias: Tensor, given: list[int], sizes: list[int]):
        super().__init__(weight, bias, given, sizes)
        self.values = bias.new_empty(weight.shape[1], bias.shape[1])
        self.slots = self.values.split([*given, self.values.shape[0] - sum(given)])

    def add(self, piece: Tensor, level: int) -> None:
        self.slots[level].copy_(piece)
        self.count = self.inputs[level + 1]

    def close(self) -> Tensor:
        return self.values.narrow(0, 0, self.count)

    def apply(self, base: Tensor, weight: Tensor) -> Tensor:
        return base.addmm_(weight, self.values.narrow(0, self.closed, weight.shape[1]))


class _Joined(_Layer):
    """Keeps its inputs as pieces, joined whenever they are asked for."""

    def __init__(self, weight: Tensor, bias: Tensor, given: list[int], sizes: list[int]):
        super().__init__(weight, bias, given, sizes)
        self.before, self.pieces = bias[:0], []

    def add(self, piece: Tensor, level: int) -> None:
        self.pieces.append(piece)
        self.count = self.inputs[level + 1]

    def close(self) -> Tensor:
        self.before, self.pieces = torch.cat((self.before, *self.pieces)), []
        return self.before

    def apply(self, base: Tensor, weight: Tensor) -> Tensor:
        return torch.addmm(base, weight, self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces))
