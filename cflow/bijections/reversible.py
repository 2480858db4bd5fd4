"""A chain of bijections that keeps no activations: the backward pass recomputes them from the output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cflow.bijections.compose import Compose, chain
from cflow.bijections.map import Map
from cflow.modes import autocast, autocast_state
from cflow.registry import register

__all__ = ["Reversible"]


@register("bijections.Reversible")
class Reversible(Compose):
    r"""Chains bijections like :class:`Compose`, with memory that does not grow with their number.

    It keeps only the output and the context for the backward pass, which goes from the last bijection to the first: it
    computes the input of each by the inverse, then builds, differentiates and frees the graph of this one bijection.

    The gradients are those of :class:`Compose` at inputs recomputed by the inverse, so they have its rounding errors:
    in float32 about 1e-6 for couplings of moderate scale, more where layers are ill-conditioned.

    Args:
        maps: the bijections, in the order of ``encode``.
        event_shape: as for :class:`Compose`.

    Cost: per layer one pass in each direction and one pass with its graph; memory for the graph of one layer. This
    pays for couplings, whose inverse costs as much as the map; the inverse of an autoregressive layer takes longer.

    Raises:
        RuntimeError: if a gradient is differentiated again (scores of scores, ``vmap(grad)``); use ``Compose``.
        ValueError: as for ``Compose``; for members that draw (the backward pass would draw other numbers) and for
            surjections; in training mode also for members that depend on the batch (``BatchNorm``).

    Source: Gomez et al., The Reversible Residual Network: Backpropagation Without Storing Activations, 2017,
    arXiv:1707.04585; Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039.

    Example:
        >>> from cflow.discrete import Affine, Coupling, Permute
        >>> layers = [b for _ in range(4) for b in (Coupling(Affine(), 6, hidden=(32,)), Permute.reverse(6))]
        >>> z, ladj = Reversible(*layers).encode(torch.randn(8, 6))
        >>> (z.square().sum() - ladj.sum()).backward()
        >>> layers[0].conditioner.layers[0].weight.grad.shape
        torch.Size([32, 3])
    """

    def __init__(self, *maps: Map, event_shape=None):
        for i, each in enumerate(maps):
            if isinstance(each, Map) and (each.draws or each.likelihood in ("bound", "none")):
                raise ValueError(
                    f"{type(self).__name__}: item {i} ({type(each).__name__}) draws random numbers or has no inverse; "
                    f"use Compose."
                )
        super().__init__(*maps, event_shape=event_shape)

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        return self._run(x, context, [(each.encode, each.decode) for each in self.maps])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        return self._run(z, context, [(each.decode, each.encode) for each in reversed(self.maps)])

    def _run(self, value: Tensor, context: Tensor | None, maps: list) -> tuple[Tensor, Tensor]:
        parameters = [each for each in self.parameters() if each.requires_grad]
        inputs = [value, *([] if context is None else [context]), *parameters]
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in inputs):
            return chain(value, context, [(there, False) for there, _ in maps])
        self._refuse_changing()
        # Calls that need a graph must not use copies of weights that autocast made without one.
        torch.clear_autocast_cache()
        result = _Recomputed.apply(maps, value, context, *parameters)
        torch.clear_autocast_cache()
        return result

    def _refuse_changing(self) -> None:
        for each in self.modules():
            if isinstance(each, Map) and each.changes and each.training:
                raise ValueError(
                    f"{type(self).__name__}: {type(each).__name__} depends on the batch in training; use Compose, or "
                    f"ActNorm in its place."
                )


class _Recomputed(torch.autograd.Function):
    """Applies maps without a graph; ``maps`` are pairs of a map and its inverse."""

    @staticmethod
    def forward(ctx, maps: list, value: Tensor, context: Tensor | None, *parameters: Tensor):
        result, ladj = chain(value, context, [(there, False) for there, _ in maps])
        result = result.view_as(result)  # an identity's output is its input
        ctx.maps, ctx.autocast = maps, autocast_state(value.device.type)
        ctx.save_for_backward(result, context, *parameters)
        return result, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, ladj_gradient: Tensor):
        value, context, *parameters = ctx.saved_tensors
        wants_context = context is not None and ctx.needs_input_grad[2]
        if context is not None:
            context = context.detach().requires_grad_(wants_context)
        totals: list[Tensor | None] = [None] * (1 + len(parameters))
        with autocast(ctx.autocast):
            for there, back in reversed(ctx.maps):
                with torch.no_grad():
                    value, _ = back(value, context)
                value = value.detach().requires_grad_()
                with torch.enable_grad():
                    result, ladj = there(value, context)
                wanted = [value, *([context] if wants_context else []), *parameters]
                pairs = [(result, gradient), (ladj, ladj_gradient)]
                pairs = [pair for pair in pairs if pair[0].requires_grad]  # a constant log-determinant does not
                outputs, gradients = zip(*pairs)
                gradient, *others = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
                for i, each in enumerate(others if wants_context else [None, *others]):
                    if each is not None:
                        totals[i] = each if totals[i] is None else totals[i] + each
        return None, gradient, totals[0], *totals[1:]
