"""Maximum likelihood, for every flow that has a density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cflow.objectives.objective import Objective, check_dropout
from cflow.registry import register

__all__ = ["LikelihoodBatch", "MaximumLikelihood"]


@dataclass
class LikelihoodBatch:
    """Data after the transforms up to the first one that is trained.

    Attributes:
        u: the transformed data ``[B, *event]``.
        ladj: the log-determinant of these transforms, ``[B]`` or a number.
        context: the conditions ``[B, *context_shape]``, or None.
        drop: the items that lose their condition, a bool tensor ``[B]``, or None.
    """

    u: Tensor
    ladj: Tensor | float
    context: Tensor | None = None
    drop: Tensor | None = None


@register("objectives.MaximumLikelihood")
class MaximumLikelihood(Objective):
    r"""Trains a flow by the log-density of the data.

    .. math:: L = -\mathbb E_{x} \log p_\theta(x \mid c)

    The loss is in nats per item, for the data before transforms: it contains the log-determinants of the flow's
    transforms. It is therefore comparable with any other density of the same data, and trains learned transforms. If a
    transform dequantises, the loss is the negative of a lower bound. A continuous flow is trained with its own solver
    and divergence; use :class:`FFJORD` for separate ones in training, and for regularisers that keep solves short.

    Args:
        condition_dropout: the share of items whose context is replaced by "no condition", so that
            ``flow.null_context(context)`` selects the density without condition. One draw per item.

    Shapes: returns ``[B]``. Cost: one ``log_prob`` of the flow.

    Raises:
        ValueError: for a flow without a density, and for ``condition_dropout`` without contexts.

    Example:
        >>> import torch
        >>> from cflow import discrete
        >>> flow = discrete.nsf(2, layers=2)
        >>> MaximumLikelihood()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    teaches = "density"
    draws = False
    prepares_ahead = False  # preparation is a few operations
    trains_transform = True

    def __init__(self, condition_dropout: float = 0.0):
        super().__init__()
        check_dropout(type(self).__name__, condition_dropout)
        self.condition_dropout = condition_dropout

    def preprocess(
        self, flow: Any, x: Tensor, context: Tensor | None = None, generator=None
    ) -> tuple[Tensor, Tensor | float]:
        """Applies the transforms of ``flow`` to ``x`` up to the first one that is trained; the loss applies the others.

        The arguments ``context`` and ``generator`` are passed to the transforms.
        """
        fixed = flow.transform.trained_from
        if fixed == len(flow.transform):
            return flow.preprocess(x, context, generator=generator)
        if fixed:
            return flow.transform[:fixed].encode(x, context, generator=generator)
        return (x if x.is_floating_point() else x.to(flow.dtype)), 0.0

    def prepare(self, base: nn.Module, x: tuple, context: Tensor | None = None, generator=None) -> LikelihoodBatch:
        u, ladj = x
        return LikelihoodBatch(u, ladj, context, self.draw_dropped(len(u), generator, u.device))

    def loss(self, flow: Any, batch: LikelihoodBatch, *, generator=None) -> Tensor:
        """Computes minus the log-density per item, ``[B]``; trained maps that draw use ``generator``."""
        self._check_density(flow)
        u, ladj = self._modelled(flow, batch, generator)
        context = self.dropped(flow, batch.context, batch.drop)
        return -(flow._log_prob(u, context, generator) + ladj)

    def forward(self, flow: Any, x: Tensor, context: Tensor | None = None, *, generator=None) -> Tensor:
        return self.loss(flow, self.make_batch(flow, x, context, generator), generator=generator)

    def _modelled(self, flow: Any, batch: LikelihoodBatch, generator=None) -> tuple[Tensor, Tensor | float]:
        """Applies the trained transforms to a batch, with gradients."""
        fixed = flow.transform.trained_from
        if fixed == len(flow.transform):
            return batch.u, batch.ladj
        u, ladj = flow.transform[fixed:].encode(batch.u, batch.context, generator=generator)
        return u, batch.ladj + ladj

    def _check_density(self, flow: Any) -> None:
        if flow.trained_by and flow.trained_by[-1].teaches == "steps":
            raise ValueError(
                f"{type(self).__name__}: a flow trained to few steps ({flow.trained_by[-1].objective}) has no density; "
                f"call flow.record(objective) first to train it again."
            )
        if flow.likelihood == "none":
            raise ValueError(
                f"{type(self).__name__}: this {type(flow).__qualname__} has no density (likelihood 'none'); use a base "
                f"such as bases.Normal, or flow matching."
            )
