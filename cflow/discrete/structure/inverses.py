"""How an autoregressive layer is inverted: level by level, or by fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.bijections.matrices import without_autocast
from cflow.discrete.structure.level_pass import LevelPass
from cflow.registry import register

__all__ = ["Incremental", "Jacobi"]


@register("discrete.Incremental")
@dataclass(frozen=True)
class Incremental:
    """Inverts an autoregressive layer level by level, each weight of its network used once over the whole loop.

    Exact, and so are its gradients, to every order. A level holds the features whose predecessors are all known: one
    feature, if each depends on all before it.

    Cost: the arithmetic of one pass of the network at most, in as many steps as there are levels.

    Example:
        >>> from cflow.discrete import Affine, Autoregressive
        >>> Autoregressive(Affine(), 64, inverse=Incremental()).cost()
        Cost(encode=1, decode=1)
    """

    def passes(self, levels: int) -> int:
        return 1

    def decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # The small products are made in place, in one dtype: the weights', also under autocast.
        with without_autocast(z):
            return self._decode(layer, z, context)

    def _decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        network = layer.conditioner
        steps = LevelPass(network, context, z.shape[0])
        # Features lie as rows, as the units of the network do.
        x, found, ladjs, states = z.new_zeros(0, z.shape[0]), [], [], steps.begin()
        for level, part in enumerate(z.t().index_select(0, network.order).split(network.feature_counts)):
            raw, states = steps(states, level, x)
            x, ladj = layer.univariate.decode(part, raw)
            found.append(x)
            ladjs.append(ladj)
        return torch.cat(found).index_select(0, network.back).t(), torch.cat(ladjs).sum(0)


@register("discrete.Jacobi")
@dataclass(frozen=True)
class Jacobi:
    r"""Inverts an autoregressive layer by fixed-point iteration, all features of a block at once.

    .. math:: x^{(k+1)} = g^{-1}\bigl(z; \theta(x^{(k)})\bigr)

    After as many iterations as a block has levels the result is exact whatever the network, and there it ends; it
    ends earlier where no feature moves by more than ``tolerance`` times one plus its size. Several blocks follow each
    other (Gauss-Seidel-Jacobi), each starting from what those before it found.

    Gradients: the iteration runs without a graph, then as many iterations again on the graph from the solution. Exact
    with ``tolerance=0``, and to about the tolerance otherwise.

    Args:
        tolerance: the change at which to stop; 0 runs all iterations and never reads from the device.
        blocks: how many groups of levels to solve one after the other.
        check_every: iterations between two readings of the largest change.

    Cost: one pass of the network per iteration; ``Incremental`` is cheaper for every network here, and this one for
    networks so small that steps cost more than arithmetic, or whose features hardly depend on one another.

    Raises:
        ValueError: if the tolerance is negative, or a count is not positive.

    Source: Song et al., Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving, 2020,
    arXiv:2002.03629; Liu and Qin, Accelerate TarFlow Sampling with GS-Jacobi Iteration, 2025, arXiv:2505.12849.

    Example:
        >>> from cflow.discrete import Affine, Autoregressive
        >>> Autoregressive(Affine(), 64, inverse=Jacobi(tolerance=1e-6)).cost()
        Cost(encode=1, decode=64)
    """

    tolerance: float = 1e-6
    blocks: int = 1
    check_every: int = 1

    def __post_init__(self):
        if not self.tolerance >= 0 or self.blocks < 1 or self.check_every < 1:
            raise ValueError(f"{self}: the tolerance is not negative and the counts are positive; pass Jacobi().")

    def passes(self, levels: int) -> int:
        return levels

    def decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        levels = layer.conditioner.levels
        x, taken, bound = torch.zeros_like(z), 0, 1e3 * (1 + z.detach().abs().amax(1, keepdim=True))
        with torch.no_grad():
            for first in range(0, levels, -(-levels // self.blocks)):
                count = min(-(-levels // self.blocks), levels - first)
                for k in range(count):
                    before = x
                    x, ladj = layer.univariate.decode(z, layer.conditioner(x, context))
                    taken += 1
                    # What is not yet certain may have overflowed, and would reach the certain through masked weights.
                    x = torch.where(layer.conditioner.level <= first + k, x, x.nan_to_num(0.0).clamp(-bound, bound))
                    if self._settled(k, count, before, x, layer.conditioner.level < first + count):
                        break
        if torch.is_grad_enabled():
            for _ in range(taken):
                x, ladj = layer.univariate.decode(z, layer.conditioner(x, context))
        return x, ladj.sum(-1)

    def _settled(self, k: int, count: int, before: Tensor, x: Tensor, within: Tensor) -> bool:
        """Says whether no feature of the block moved; not asked where the block ends anyway."""
        if self.tolerance == 0 or (k + 1) % self.check_every or k + 1 == count:
            return False
        moved = ((x - before).abs() > self.tolerance * (1 + x.abs())) & within
        return not bool(moved.any())
