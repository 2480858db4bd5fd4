"""Evaluation of a masked network level by level, in which each weight is used once."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from cflow.discrete.structure.conditioner import walk
from cflow.discrete.structure.masked import MaskedConditioner

__all__ = ["LevelPass"]


class LevelPass:
    """Evaluates a :class:`MaskedConditioner` level by level; each weight is used once over all levels.

    It is called once per level, in order, with the state that the last call returned and the features of the last
    level as rows ``[n, B]``. It returns the raw numbers ``[m, B, size]`` of the features of this level, and the new
    state.

    Units are rows, so that the known part of a layer is a contiguous slice. Levels are grouped into blocks of about the
    square root of their number: the contribution of earlier blocks to a block is one product per layer, and only the
    small rest is computed level by level, which avoids many thin products.

    Cost: at most the arithmetic of one pass, in ``levels`` steps of four operations per layer.
    """

    def __init__(self, network: MaskedConditioner, context: Tensor | None, batch: int):
        weights, biases = network.weights(sliced=True), [layer.bias[:, None] for layer in network.layers]
        self.dtype = weights[0].dtype
        if network.context:
            biases[0] = biases[0] + weights[0][:, : network.context] @ context.to(self.dtype).t()
        # Columns of the first layer and rows of the last are sorted by the levels of the features.
        weights[0] = weights[0][:, network.context :].index_select(1, network.input_order)
        for part in (weights, biases):
            by_feature = part[-1].unflatten(0, (network.features, network.size))
            part[-1] = by_feature.index_select(0, network.order).flatten(0, 1)
        # With a graph, tensors must not be overwritten, so inputs are concatenated; without one they are written in
        # place. A compiler removes in-place writes, and its loops (root finding) do not allow them.
        layer = _Joined if torch.is_grad_enabled() or torch.compiler.is_compiling() else _Written
        given = [[0, *network.input_counts[:-1]], *network.counts[:-1]]
        self.layers = [
            layer(weight, bias.expand(-1, batch), before, after)
            for weight, bias, before, after in zip(weights, biases, given, network.counts)
        ]
        self.network, self.block = network, max(1, round(network.levels**0.5))

    def begin(self) -> list[_State]:
        """Returns the state before the first level."""
        return [_State(layer.bias[:0]) for layer in self.layers]

    def __call__(self, states: list[_State], level: int, x: Tensor) -> tuple[Tensor, list[_State]]:
        if level and self.network.level_circles is not None:  # the network's inputs for the level before
            x = self.network.level_circles[level - 1](x.t()).t()
        x, states = x.to(self.dtype), list(states)
        if level % self.block == 0:
            states[0] = self.layers[0].add(states[0], x, level)
            x = None
            for i, layer in enumerate(self.layers):
                states[i] = layer.begin(states[i], level, level + self.block, layer.inputs[level + (i == 0)])

        def units(i: int, piece: Tensor | None) -> Tensor:
            if piece is not None:
                states[i] = self.layers[i].add(states[i], piece, level)
            return self.layers[i].units(states[i], level)

        raw = walk(units, x, self.network)
        return raw.unflatten(0, (-1, self.network.size)).transpose(1, 2), states


class _State(NamedTuple):
    """The known inputs of a layer, of earlier blocks and of this one, and the contribution of the former to units."""

    known: Tensor
    pieces: tuple[Tensor, ...] = ()
    bases: tuple[Tensor, ...] = ()  # one per level of the block, bias included
    first: int = 0  # the level at which the block begins


class _Layer:
    """One linear map ``[units, inputs]`` whose inputs and units become known level by level."""

    writes = False  # whether units are computed in place

    def __init__(self, weight: Tensor, bias: Tensor, given: list[int], sizes: list[int]):
        self.weight, self.bias, self.given, self.sizes = weight, bias, given, sizes
        self.inputs, self.starts = [0, *accumulate(given)], [0, *accumulate(sizes)]
        self.rows = weight.split(sizes)

    def begin(self, state: _State, level: int, end: int, count: int) -> _State:
        """Multiplies the ``count`` known inputs by the weights of all units of the next block."""
        known, sizes, first = self.join(state, count), self.sizes[level:end], self.starts[level]
        base = self.bias.narrow(0, first, sum(sizes))
        if count:
            weight = self.weight.narrow(0, first, sum(sizes)).narrow(1, 0, count)
            base = torch.addmm(base, weight, known)
        elif self.writes:
            base = base.clone()  # the bias itself must not be written to
        return _State(known, (), base.split(sizes), level)

    def units(self, state: _State, level: int) -> Tensor:
        """Returns the units of a level whose inputs have been added."""
        base, closed = state.bases[level - state.first], state.known.shape[0]
        count = self.inputs[level + 1] - closed
        if not count or not self.sizes[level]:
            return base
        return self.apply(base, self.rows[level].narrow(1, closed, count), state)


class _Written(_Layer):
    """Keeps its inputs in one tensor and writes new ones in place; does not work with a graph."""

    writes = True

    def __init__(self, weight: Tensor, bias: Tensor, given: list[int], sizes: list[int]):
        super().__init__(weight, bias, given, sizes)
        self.values = bias.new_empty(weight.shape[1], bias.shape[1])
        self.slots = self.values.split([*given, self.values.shape[0] - sum(given)])

    def add(self, state: _State, piece: Tensor, level: int) -> _State:
        self.slots[level].copy_(piece)
        return state

    def join(self, state: _State, count: int) -> Tensor:
        return self.values.narrow(0, 0, count)

    def apply(self, base: Tensor, weight: Tensor, state: _State) -> Tensor:
        return base.addmm_(weight, self.values.narrow(0, state.known.shape[0], weight.shape[1]))


class _Joined(_Layer):
    """Keeps its inputs as pieces, which are concatenated when they are read."""

    def add(self, state: _State, piece: Tensor, level: int) -> _State:
        return state._replace(pieces=(*state.pieces, piece))

    def join(self, state: _State, count: int) -> Tensor:
        return torch.cat((state.known, *state.pieces))

    def apply(self, base: Tensor, weight: Tensor, state: _State) -> Tensor:
        return torch.addmm(base, weight, state.pieces[0] if len(state.pieces) == 1 else torch.cat(state.pieces))
