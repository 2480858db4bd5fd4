"""A sampler that reveals the tokens first of which the network is surest: a heuristic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cflow.ctmc.categorical import uniforms
from cflow.ctmc.posterior import Sharpen
from cflow.ctmc.samplers.exact import require_mask
from cflow.ctmc.samplers.sampler import Process, Sampler, require_steps
from cflow.registry import register
from cflow.shapes import rows

__all__ = ["Ordered"]

ORDERS = ("confidence", "margin", "entropy", "purity")


@register("ctmc.Ordered")
@dataclass(frozen=True)
class Ordered(Sampler):
    r"""Reveals the surest tokens first, an equal number in each step.

    | ``order``        | a token is sure if                                        |
    |------------------|-----------------------------------------------------------|
    | ``"confidence"`` | the token that was drawn for it is likely                 |
    | ``"margin"``     | its likeliest token is much likelier than the second one  |
    | ``"entropy"``    | the entropy of its posterior is small                     |
    | ``"purity"``     | its likeliest token is likely                             |

    This is a heuristic: samples do not have the flow's distribution. They tend to repeat themselves; compare their
    entropy with that of the data, not only their likelihood under a judge.

    Args:
        steps: the number of steps.
        order: the order, see the table.
        noise: the temperature of Gumbel noise that is added to the logarithm of the score; 0 for none.
        temperature: as in :class:`Stepping`.
        top_k: as in :class:`Stepping`.
        top_p: as in :class:`Stepping`.

    Cost: ``steps`` evaluations of the network; a token is drawn for every hidden position in each.

    Raises:
        ValueError: for an option out of range, or a source other than the mask.

    Source: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, arXiv:2202.04200; Campbell et al., 2024,
    arXiv:2402.04997 (purity).
    """

    steps: int = 64
    order: Literal["confidence", "margin", "entropy", "purity"] = "confidence"
    noise: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        require_steps(self)
        Sharpen(self.temperature, self.top_k, self.top_p)
        if self.order not in ORDERS:
            raise ValueError(f"Ordered(order={self.order!r}): not available; choose one of {', '.join(ORDERS)}.")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"Ordered(noise={self.noise}): a temperature is 0 or more; pass 0.0.")

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields time and states of ``process`` after each step."""
        path, x = process.path, process.start
        require_mask(self, path.source)
        sharpen = Sharpen(self.temperature, self.top_k, self.top_p)
        total = rows(process.movable() & (x == path.source.mask)).sum(1)
        for k in range(self.steps):
            hidden = process.movable() & (x == path.source.mask)
            # The time at which as many tokens are hidden as there are now.
            share = rows(hidden).sum(1).double() / rows(x).shape[1]
            now = rows(path.schedule.time_at(1 - path.spread(share, x))).mean(1)
            posterior = path.posterior(process.predict(now, x), x, now, sharpen=sharpen)
            u = uniforms((len(x), 2, *x.shape[1:]), process.generator, x.device)
            drawn = x.masked_scatter(hidden, posterior.draw(hidden, u[:, 0][hidden], "leave-one-out"))
            score = self._score(posterior, drawn)
            if self.noise:
                score = score - self.noise * torch.log(-torch.log(u[:, 1].clamp(min=1e-300)))
            left = total * (self.steps - 1 - k) // self.steps
            keep = rows(hidden).sum(1) - left
            rank = rows(score.masked_fill(~hidden, -torch.inf)).argsort(1, descending=True).argsort(1)
            shown = (rank < keep.unsqueeze(1)).reshape(x.shape) & hidden
            x = torch.where(shown, drawn, x)
            yield torch.tensor((k + 1) / self.steps, device=x.device), x

    def _score(self, posterior, drawn: Tensor) -> Tensor:
        """Returns how sure each token is ``[B, *event]``, as a logarithm."""
        if self.order == "confidence":
            return posterior.log_prob_of(drawn, "leave-one-out")
        log_p = posterior.log_probs("leave-one-out")
        if self.order == "purity":
            return log_p.amax(-1)
        if self.order == "margin":
            best = log_p.topk(2, -1).values.exp()
            return (best[..., 0] - best[..., 1]).clamp(min=1e-300).log()
        return torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1)
