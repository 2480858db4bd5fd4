"""A sampler that redraws some tokens after every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cflow.ctmc.categorical import uniforms
from cflow.ctmc.samplers.sampler import Process, Sampler, require_steps
from cflow.ctmc.samplers.stepping import Analytic, Stepping
from cflow.registry import register
from cflow.shapes import rows

__all__ = ["PredictorCorrector"]

KINDS = ("gibbs", "forward-backward")


@register("ctmc.PredictorCorrector")
@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""Corrects the states after every step of another sampler, at the same time.

    ``"gibbs"`` chooses some tokens and redraws each from its distribution given all others at that time,
    :math:`\kappa_t l + (1 - \kappa_t) p_0` with the leave-one-out posterior l. One token at a time leaves the
    marginal of the path as it is; several at once are an approximation. With a mask source the chosen tokens are hidden
    first, so that the network does not see them.

    ``"forward-backward"`` replaces the chosen tokens by noise of that time around draws of the denoiser's posterior,
    the corrector iteration of Gat et al.

    The corrector draws from the same changed distribution as the predictor (``temperature``, ``top_k``, ``top_p``).

    Args:
        predictor: the sampler that takes the steps, such as ``Euler``. Default: ``Analytic(64)``.
        corrections: the number of corrections after each step.
        share: the share of the tokens that one correction chooses, in (0, 1]; at least one token.
        kind: the corrector.

    Cost: ``1 + corrections`` evaluations of the network per step. After the last step there is no correction.

    Raises:
        ValueError: for an option out of range.
        TypeError: for a predictor that takes no steps.

    Source: Gat et al., 2024, arXiv:2407.15595; Campbell et al., 2022, arXiv:2205.14987.
    """

    predictor: Stepping = field(default_factory=Analytic)
    corrections: int = 1
    share: float = 0.05
    kind: Literal["gibbs", "forward-backward"] = "gibbs"

    def __post_init__(self):
        require_steps(self, "corrections")
        if getattr(type(self.predictor), "states", None) is not Stepping.states:  # others have states of their own
            raise TypeError(
                f"PredictorCorrector(predictor={self.predictor!r:.60}): this sampler has other states between steps; "
                f"pass one such as ctmc.Analytic(64)."
            )
        if not 0 < self.share <= 1 or self.kind not in KINDS:
            raise ValueError(
                f"PredictorCorrector(share={self.share}, kind={self.kind!r}): share is in (0, 1], kind is "
                f"{' or '.join(KINDS)}; change it."
            )

    @property
    def rate(self):
        """The rate of the predictor."""
        return self.predictor.rate

    def needs_probs(self, path: Any) -> bool:
        """Returns whether corrections use the source's probabilities: on a ``path`` from a mask they do not."""
        return not path.source.absorbing or self.predictor.needs_probs(path)

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields time and states of ``process`` after each step with its corrections."""
        x, grid = process.start, self.predictor.grid(process)
        for k in range(self.predictor.steps):
            x = self.predictor.step(process, x, grid, k)
            if k < self.predictor.steps - 1:
                for _ in range(self.corrections):
                    x = self.correct(process, x, grid[k + 1])
            yield grid[k + 1], x

    def correct(self, process: Process, x: Tensor, t: Tensor) -> Tensor:
        """Returns corrected states of a ``process``, for ``x`` at time ``t``."""
        path, source = process.path, process.path.source
        u = uniforms((len(x), 3, *x.shape[1:]), process.generator, x.device)
        order = rows(u[:, 0].masked_fill(~process.movable(), torch.inf)).argsort(1).argsort(1)
        count = max(1, round(self.share * order.shape[1]))
        chosen = (order < count).reshape(x.shape) & process.movable()
        at = path.moment(x, t)
        kappa = at.kappa.expand(x.shape)
        if self.kind == "gibbs":
            seen = x.masked_fill(chosen, source.mask) if source.absorbing else x
            posterior = path.posterior(process.predict(t, seen), seen, t, sharpen=self.predictor.sharpen)
            kind = "leave-one-out"
        else:
            posterior = path.posterior(process.predict(t, x), x, t, sharpen=self.predictor.sharpen)
            kind = "denoiser"
        data = chosen & (u[:, 1] < kappa)
        noise = chosen & ~data
        drawn = x.masked_scatter(data, posterior.draw(data, u[:, 2][data], kind))
        return torch.where(noise, source.draw(u[:, 2], path.spread(t, x)), drawn)
