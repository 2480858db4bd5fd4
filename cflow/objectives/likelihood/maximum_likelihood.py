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
    """Data carried through the transforms up to the first that is trained, ``u``, with the contribution ``ladj``.

    ``drop [B]`` marks the items whose condition is left out.
    """

    u: Tensor
    ladj: Tensor | float
    context: Tensor | None = None
    drop: Tensor | None = None


@register("objectives.MaximumLikelihood")
class MaximumLikelihood(Objective):
    r"""Trains a flow by the log-density of the data.

    .. math:: L = -\mathbb E_{x} \log p_\theta(x \mid c)

    The loss is in nats per item, of the data as measured: the log-determinants of the flow's transforms are part of
    it, so it compares with any other density of the same data, and what is learned in the transforms is trained. Where
    a transform dequantises, the loss is the negative of a lower bound. A continuous flow is solved as it is evaluated,
    by its own solver and divergence: for other ones in training, and for what keeps solves short, take :class:`FFJORD`.

    Args:
        condition_dropout: the share of items whose context is replaced by "no condition", so that
            ``flow.null_context(context)`` asks for the density without one. One draw per item.

    Shapes: returns ``[B]``. Cost: one ``log_prob`` of the flow.

    Raises:
        ValueError: for a flow without a density, and for a dropout of contexts where there are none.

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
        """Carries data through the transforms up to the first that training changes; the loss goes on from there."""
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
        self._check_density(flow)
        u, ladj = self._modelled(flow, batch, generator)
        context = self.dropped(flow, batch.context, batch.drop)
        return -(flow._log_prob(u, context, generator) + ladj)

    def forward(self, flow: Any, x: Tensor, context: Tensor | None = None, *, generator=None) -> Tensor:
        return self.loss(flow, self.make_batch(flow, x, context, generator), generator=generator)

    def _modelled(self, flow: Any, batch: LikelihoodBatch, generator=None) -> tuple[Tensor, Tensor | float]:
        """Carries a batch through the transforms that training changes, with gradients."""
        fixed = flow.transform.trained_from
        if fixed == len(flow.transform):
            return batch.u, batch.ladj
        u, ladj = flow.transform[fixed:].encode(batch.u, batch.context, generator=generator)
        return u, batch.ladj + ladj

    def _check_density(self, flow: Any) -> None:
        if flow.trained_by and flow.trained_by[-1].teaches == "steps":
            raise ValueError(
                f"{type(self).__name__}: this flow was trained to few steps ({flow.trained_by[-1].objective}), which "
                f"have no density; say that it is trained as a flow from now on: flow.record(objective)."
            )
        if flow.likelihood == "none":
            raise ValueError(
                f"{type(self).__name__}: this {type(flow).__qualname__} has no density to maximise (its likelihood is "
                f"'none'); give it a base with a density, such as bases.Normal, or train it by flow matching."
            )
