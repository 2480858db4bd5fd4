"""A sampler that hides tokens again, so that errors can be corrected."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cflow.ctmc.categorical import uniforms
from cflow.ctmc.rates import Rate  # noqa: F401 - an annotation that the constructor inherits; the reference reads it
from cflow.ctmc.samplers.exact import require_mask
from cflow.ctmc.samplers.sampler import Process
from cflow.ctmc.samplers.stepping import Stepping, likeliest
from cflow.ctmc.schedules import Schedule  # noqa: F401 - the same
from cflow.registry import register

__all__ = ["Remasking"]

KINDS = ("cap", "rescale")


@register("ctmc.Remasking")
@dataclass(frozen=True)
class Remasking(Stepping):
    r"""Reveals hidden tokens, and hides visible ones again with a probability of one's choice (ReMDM).

    .. math:: \Pr(\text{hide}) = \sigma \le \sigma_{\max} = \min\Big(1, \frac{1 - \kappa_s}{\kappa_t}\Big), \qquad
              \Pr(\text{reveal}) = \frac{\kappa_s - (1 - \sigma) \kappa_t}{1 - \kappa_t}

    so that the marginals stay those of the path. ``"cap"`` uses :math:`\min(\eta, \sigma_{\max})`, ``"rescale"``
    :math:`\eta \, \sigma_{\max}`. ``Analytic(rate=DetailedBalance(eta))`` does the same with a probability that follows
    from a rate.

    Args:
        kind: ``"cap"`` or ``"rescale"``.
        eta: the size of the probability, in [0, 1].
        window: the first and the last time at which tokens are hidden again.
        loop: a time at which the schedule waits while as many steps as ``loop_steps`` only hide and reveal. Default:
            None, no loop.
        loop_steps: the number of steps of the loop, beside ``steps``.
        by_confidence: whether the tokens that were drawn with a small probability are hidden first: the probability of
            each is multiplied by the number of visible tokens times a softmax of its negative confidence. A heuristic.

    The other arguments are those of :class:`Stepping`: ``steps``, ``rate`` (which must be None), ``schedule``,
    ``temperature``, ``top_k``, ``top_p`` and ``greedy_end``.

    Cost: ``steps + loop_steps`` evaluations of the network.

    Raises:
        ValueError: for an option out of range, or a source other than the mask.

    Source: Wang et al., Remasking Discrete Diffusion Models with Inference-Time Scaling, 2025, arXiv:2503.00307.
    """

    scales: ClassVar[bool] = False
    kind: Literal["cap", "rescale"] = "cap"
    eta: float = 0.02
    window: tuple[float, float] = (0.0, 1.0)
    loop: float | None = None
    loop_steps: int = 0
    by_confidence: bool = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "window", tuple(self.window))
        fine = self.kind in KINDS and 0 <= self.eta <= 1 and len(self.window) == 2
        fine = fine and 0 <= self.window[0] <= self.window[1] <= 1 and self.rate is None
        fine = fine and (self.loop is None) == (self.loop_steps == 0) and self.loop_steps >= 0
        if not fine or (self.loop is not None and not 0 < self.loop < 1):
            raise ValueError(
                f"Remasking(kind={self.kind!r}, eta={self.eta}, window={self.window}, loop={self.loop}, "
                f"loop_steps={self.loop_steps}, rate={self.rate}): kind is {' or '.join(KINDS)}, eta in [0, 1], window "
                f"two times, loop a time with loop_steps, rate None."
            )

    def advance(self, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.exchange(process, logits, x, t, s, None)[0]

    def exchange(
        self, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor, confidence: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns states of a ``process`` at ``s``, given ``x`` and ``logits`` at ``t``, and where tokens are revealed.

        With ``confidence``, the probability of each token, unsure tokens are hidden first.
        """
        path = process.path
        before, after = path.schedule.kappa(t), path.schedule.kappa(s)
        most = ((1 - after) / before.clamp(min=1e-300)).clamp(max=1)
        inside = (t >= self.window[0]) & (t <= self.window[1])
        sigma = (most.clamp(max=self.eta) if self.kind == "cap" else self.eta * most) * inside
        reveal = ((after - (1 - sigma) * before) / (1 - before)).clamp(0, 1)
        hidden, movable = x == path.source.mask, process.movable()
        u = uniforms(x.shape, process.generator, x.device)
        shown = hidden & movable & (u < reveal)
        if confidence is not None:
            flat = -confidence.masked_fill(hidden, torch.inf).flatten(1)
            share = torch.softmax(flat, 1).nan_to_num(0.0) * (~hidden).flatten(1).sum(1, keepdim=True)
            sigma = (sigma * share.reshape(x.shape)).clamp(max=1)
        again = ~hidden & movable & (u < sigma)
        posterior = path.posterior(logits, x, t, sharpen=self.sharpen)
        drawn = posterior.draw(shown, (u / reveal)[shown], "leave-one-out")
        return x.masked_scatter(shown, drawn).masked_fill(again, path.source.mask), shown

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields time and states of ``process`` after each step."""
        require_mask(self, process.path.source)
        x, grid = process.start, self.grid(process).tolist()
        pairs = list(itertools.pairwise(grid))
        if self.loop is not None:
            first = next((k for k, (_, s) in enumerate(pairs) if s > self.loop), len(pairs))
            pairs[first:first] = [(pairs[first][0],) * 2] * self.loop_steps
        confidence = torch.full(x.shape, math.inf, dtype=torch.float64, device=x.device) if self.by_confidence else None
        for k, (t, s) in enumerate(pairs):
            now, then = (torch.tensor(each, dtype=torch.float64, device=x.device) for each in (t, s))
            logits = process.predict(now, x)
            if k == len(pairs) - 1 and self.greedy_end:
                x = likeliest(process, logits, x, now)
            else:
                new, shown = self.exchange(process, logits, x, now, then, confidence)
                if confidence is not None:
                    sure = process.path.posterior(logits, x, now).log_prob_of(new, "leave-one-out").exp()
                    confidence = torch.where(shown, sure, confidence)
                x = new
            yield then, x
