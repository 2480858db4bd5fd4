"""Inverses of autoregressive layers: level by level, or by fixed-point iteration."""

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
    """Inverts an autoregressive layer level by level; each weight of its network is used once over the whole loop.

    The result is exact, and so are its gradients of all orders. A level consists of the features whose predecessors are
    all known: one feature, if each depends on all before it.

    Cost: at most the arithmetic of one pass of the network, in one step per level.

    Example:
        >>> from cflow.discrete import Affine, Autoregressive
        >>> Autoregressive(Affine(), 64, inverse=Incremental()).cost()
        Cost(encode=1, decode=1)
    """

    def passes(self, levels: int) -> int:
        """Returns the cost of ``decode`` in passes of the network for a layer of ``levels`` levels."""
        return 1

    def decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inverts the :class:`Autoregressive` ``layer`` at ``z`` under ``context``: ``(x, log|det dx/dz|)``."""
        # The small products are computed in place, in the dtype of the weights, also under autocast.
        with without_autocast(z):
            return self._decode(layer, z, context)

    def _decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        network = layer.conditioner
        steps = LevelPass(network, context, z.shape[0])
        # Features are rows, as the units of the network are.
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
    r"""Inverts an autoregressive layer by fixed-point iteration of all features of a block at once.

    .. math:: x^{(k+1)} = g^{-1}\bigl(z; \theta(x^{(k)})\bigr)

    After as many iterations as a block has levels the result is exact for every network, and the iteration ends. It
    ends earlier if no feature changes by more than ``tolerance`` times one plus its size. Several blocks are solved one
    after another (Gauss-Seidel-Jacobi), each starting from the results of those before it.

    Gradients: the iteration runs without a graph, then the same number of iterations again with a graph, starting at
    the solution. They are exact with ``tolerance=0``, and otherwise accurate to about the tolerance.

    Args:
        tolerance: the change at which to stop; 0 runs all iterations and never reads from the device.
        blocks: number of groups of levels that are solved one after another.
        check_every: iterations between two readings of the largest change.

    Cost: one pass of the network per iteration. In arithmetic ``Incremental`` is cheaper for all networks here; use
    ``Jacobi`` for networks so small that the number of steps matters more, or whose features hardly depend on one
    another.

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
            raise ValueError(f"{self}: the tolerance must not be negative, the counts must be positive; pass Jacobi().")

    def passes(self, levels: int) -> int:
        """Returns the cost of ``decode`` in passes of the network for a layer of ``levels`` levels, at most."""
        return levels

    def decode(self, layer, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inverts the :class:`Autoregressive` ``layer`` at ``z`` under ``context``: ``(x, log|det dx/dz|)``."""
        levels = layer.conditioner.levels
        x, taken, bound = torch.zeros_like(z), 0, 1e3 * (1 + z.detach().abs().amax(1, keepdim=True))
        with torch.no_grad():
            for first in range(0, levels, -(-levels // self.blocks)):
                count = min(-(-levels // self.blocks), levels - first)
                for k in range(count):
                    before = x
                    x, ladj = layer.univariate.decode(z, layer.conditioner(x, context))
                    taken += 1
                    # Features that are not yet exact may have overflowed; 0 * inf in masked weights would make the
                    # exact ones NaN.
                    x = torch.where(layer.conditioner.level <= first + k, x, x.nan_to_num(0.0).clamp(-bound, bound))
                    if self._settled(k, count, before, x, layer.conditioner.level < first + count):
                        break
        if torch.is_grad_enabled():
            for _ in range(taken):
                x, ladj = layer.univariate.decode(z, layer.conditioner(x, context))
        return x, ladj.sum(-1)

    def _settled(self, k: int, count: int, before: Tensor, x: Tensor, within: Tensor) -> bool:
        """Returns whether no feature of the block changed; not evaluated where the block ends anyway."""
        if self.tolerance == 0 or (k + 1) % self.check_every or k + 1 == count:
            return False
        moved = ((x - before).abs() > self.tolerance * (1 + x.abs())) & within
        return not bool(moved.any())
