"""Guidance of token flows: of the posterior's logits, and of the rates of jumps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from cflow.guidance.guidance import ClassifierFree, Guidance, Guided
from cflow.registry import register

__all__ = ["PredictorFree", "PredictorGuidance"]


@register("guidance.PredictorFree")
@dataclass(frozen=True)
class PredictorFree(ClassifierFree):
    r"""Mixes the rates of a token flow with and without its condition, geometrically.

    .. math:: R^\gamma(x, j) = R(x, j \mid c)^\gamma \, R(x, j)^{1 - \gamma}

    :class:`ClassifierFree` mixes the same logarithms but normalises the result, so that tokens are revealed at the pace
    of the schedule. Here the pace changes too: tokens on which both disagree are revealed later. A scale of 1 follows
    the condition as learned, 0 omits it. It works for rates that only jump to the data (``ctmc.MinimalJump``, and every
    tight rate of a mask source), with ``ctmc.Analytic``, ``ctmc.Euler`` and ``ctmc.TauLeaping``.

    Args:
        scale: the exponent :math:`\gamma`.
        interval: the first and the last time at which the guidance acts; outside, the condition is used as learned.

    Shapes: as the denoiser's. Cost: one call with twice the batch.

    Raises:
        ValueError: as :class:`ClassifierFree`.

    Source: Nisonoff et al., Unlocking Guidance for Discrete State-Space Diffusion and Flow Models, 2024,
    arXiv:2406.01572.

    Example:
        >>> PredictorFree(2.0)
        PredictorFree(scale=2.0, interval=(0.0, 1.0))
    """

    scales_rates: ClassVar[bool] = True


@register("guidance.PredictorGuidance")
class PredictorGuidance(Guidance, nn.Module):
    r"""Guides a token flow by a classifier of noisy tokens, which may be trained on its own.

    .. math:: R(x, j \mid y) = R(x, j) \, \Big(\frac{p(y \mid x^{i \to j}, t)}{p(y \mid x, t)}\Big)^\gamma

    The classifier is a function ``classifier(t [B], x [B, *event, states]) -> log p(y | x, t) [B]`` of one-hot states,
    the mask state included. Without ``exact`` the logarithm of the ratio is the difference of two entries of its
    gradient (a Taylor expansion).

    Args:
        classifier: the function, or a module.
        scale: the exponent :math:`\gamma`.
        exact: whether every change of every token is evaluated: ``D * states`` calls for each row, in batches.
        scaled: whether the ratios also change how fast tokens jump, as in the formula. Otherwise the posterior is
            normalised, the pace is that of the schedule, and every sampler and rate works; with ``scaled`` those of
            :class:`PredictorFree`.

    Shapes: as the denoiser's. Cost: one call of the denoiser, and one gradient of the classifier or ``D * states``
    calls of it.

    Raises:
        ValueError: if the scale is not finite.
        TypeError: if the classifier cannot be called.

    Source: Nisonoff et al., 2024, arXiv:2406.01572 (there also the Taylor expansion).

    Example:
        >>> guidance = PredictorGuidance(lambda t, x: x[:, :, 1].sum(1), scale=2.0)
        >>> guidance.exact, guidance.scales_rates
        (False, False)
    """

    def __init__(
        self,
        classifier: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        *,
        exact: bool = False,
        scaled: bool = False,
    ):
        super().__init__()
        if not callable(classifier):
            raise TypeError(
                f"PredictorGuidance(classifier={classifier!r:.60}): pass a function (t, one-hot x) -> log p(y) [B]."
            )
        if not -float("inf") < scale < float("inf"):
            raise ValueError(f"PredictorGuidance(scale={scale}): the exponent is a finite number; pass 1.0.")
        self.classifier, self.scale, self.exact, self.scaled = classifier, scale, exact, scaled

    @property
    def scales_rates(self) -> bool:
        """Whether the guidance changes how fast tokens jump."""
        return self.scaled

    def forward(self, field) -> Guided:
        """Returns ``field`` under this guidance."""
        if not hasattr(field, "states"):
            raise TypeError("PredictorGuidance(field): this guides token flows; use another guidance for velocities.")
        return Guided(self, field)

    def velocity(self, field, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Computes the guided logits of ``field`` at states ``x`` and times ``t [B]``, given ``context``."""
        logits = field(t, x, context)
        ratio = self._exact(t, x, field.states) if self.exact else self._expanded(t, x, field.states)
        return logits + self.scale * ratio[..., : logits.shape[-1]].to(logits.dtype)

    def _expanded(self, t: Tensor, x: Tensor, states: int) -> Tensor:
        with torch.enable_grad():
            hot = one_hot(x, states).to(t.dtype).requires_grad_()
            gradient = torch.autograd.grad(self._checked(self.classifier(t, hot), x).sum(), hot)[0]
        return gradient - gradient.gather(-1, x.unsqueeze(-1))

    @torch.no_grad()
    def _exact(self, t: Tensor, x: Tensor, states: int) -> Tensor:
        hot = one_hot(x, states).to(t.dtype)
        before = self._checked(self.classifier(t, hot), x)
        flat = hot.reshape(len(x), -1, states)
        changed = torch.empty_like(flat)
        for place in range(flat.shape[1]):
            for state in range(states):
                other = flat.clone()
                other[:, place] = 0
                other[:, place, state] = 1
                changed[:, place, state] = self.classifier(t, other.reshape(hot.shape)) - before
        return changed.reshape(hot.shape)

    def _checked(self, value: Tensor, x: Tensor) -> Tensor:
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"PredictorGuidance: the classifier returned {list(value.shape)} for {len(x)} rows; return the "
                f"log-probability of the wanted class, [{len(x)}]."
            )
        return value
