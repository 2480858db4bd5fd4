"""Samplers without a step size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.ctmc.categorical import uniforms
from cflow.ctmc.posterior import Sharpen
from cflow.ctmc.samplers.sampler import Process, Sampler, require_steps
from cflow.registry import register
from cflow.shapes import rows

__all__ = ["FirstHitting", "Thinning"]


@register("ctmc.FirstHitting")
@dataclass(frozen=True)
class FirstHitting(Sampler):
    r"""Reveals the hidden tokens one by one, each at its own random time: exact, with a mask source.

    The time of each token follows from a uniform number, :math:`\kappa_{t_i} = u_i`; the tokens are revealed in the
    order of their times, each given those before. So no two tokens are drawn independently by accident, and the
    result does not depend on a number of steps. It is the any-order autoregressive model.

    Args:
        together: the number of tokens that are revealed by each evaluation of the network; 1 is exact. More are drawn
            independently of each other, at the time of the first.
        temperature: as in :class:`Stepping`.
        top_k: as in :class:`Stepping`.
        top_p: as in :class:`Stepping`.

    Cost: one evaluation of the network per hidden token of the row with most of them, divided by ``together``.

    Raises:
        ValueError: for a source other than the mask.

    Source: Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic Masked Models, 2024, arXiv:2409.02908.

    Example:
        >>> FirstHitting()
        FirstHitting(together=1, temperature=1.0, top_k=None, top_p=1.0)
    """

    together: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        require_steps(self, "together")
        Sharpen(self.temperature, self.top_k, self.top_p)

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the times of the rows of ``process``, and their states, after each evaluation of the network."""
        source, schedule, x = process.path.source, process.path.schedule, process.start
        require_mask(self, source)
        sharpen = Sharpen(self.temperature, self.top_k, self.top_p)
        quantile, u = (uniforms(x.shape, process.generator, x.device) for _ in range(2))
        hidden = rows(process.movable() & (x == source.mask))
        times = rows(schedule.time_at(quantile)).masked_fill(~hidden, torch.inf)
        when, order = times.sort(1)
        most = int(hidden.sum(1).max()) if len(x) else 0
        for start in range(0, most, self.together):
            now = when[:, start].clamp(max=1.0)
            here = torch.zeros_like(hidden).scatter(1, order[:, start : start + self.together], True) & hidden
            where = here.reshape(x.shape)
            logits = process.predict(now, x)
            drawn = process.path.posterior(logits, x, now, sharpen=sharpen).draw(where, u[where], "leave-one-out")
            x = x.masked_scatter(where, drawn)
            yield now, x
        if most == 0:
            yield torch.ones((), device=x.device), x


def require_mask(sampler: Sampler, source) -> None:
    """Raises unless a visible token is known to be of the data."""
    if not source.absorbing:
        raise ValueError(
            f"{type(sampler).__name__} with {type(source).__name__}: it reveals hidden tokens; use a ctmc.Mask source, "
            f"or ctmc.Analytic."
        )


@register("ctmc.Thinning")
@dataclass(frozen=True)
class Thinning(Sampler):
    r"""Simulates minimal jumps exactly, for every source: the reference for other samplers.

    In the time :math:`\tau = -\log(1 - \kappa)` each token may jump at rate one at most. Candidates come at the rate D
    of all tokens; each chooses a token, calls the network at that time, and sets the token to a draw of its posterior,
    which often changes nothing. At :math:`\kappa = 1 - \epsilon` all tokens are drawn from the posterior.

    Args:
        epsilon: where the simulation ends.

    Cost: about :math:`D \log(1 / \epsilon)` evaluations of the network: expensive.

    Raises:
        ValueError: if ``epsilon`` is not in (0, 1), or the schedule differs between positions.

    Source: Lewis and Shedler, Simulation of Nonhomogeneous Poisson Processes by Thinning, 1979.
    """

    epsilon: float = 1e-3

    def __post_init__(self):
        if not 0 < self.epsilon < 1:
            raise ValueError(f"Thinning(epsilon={self.epsilon}): it is in (0, 1); pass 1e-3.")

    def needs_probs(self, path: Any) -> bool:
        """Returns False: minimal jumps on a ``path`` use no probabilities of the source."""
        return False

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the times of the rows of ``process``, and their states, after each candidate."""
        path, x = process.path, process.start
        if path.schedule.by_position:
            raise ValueError("Thinning: not available with one schedule for each position; use ctmc.FirstHitting.")
        free, size = process.movable(), rows(x).shape[1]
        tau, last = torch.zeros(len(x), dtype=torch.float64, device=x.device), -math.log(self.epsilon)
        while bool((tau < last).any()):
            wait, place, u = uniforms((len(x), 3), process.generator, x.device).unbind(1)
            tau = tau - torch.log1p(-wait) / size
            alive = tau < last
            now = path.schedule.time_at(-torch.expm1(-tau.clamp(max=last)))
            where = torch.zeros_like(rows(free)).scatter(1, (place * size).long().unsqueeze(1), True)
            where = where.reshape(x.shape) & free & alive.reshape(-1, *(1,) * (x.dim() - 1))
            if path.source.absorbing:
                where = where & (x == path.source.mask)
            draws = u.reshape(-1, *(1,) * (x.dim() - 1)).expand(x.shape)[where]
            x = x.masked_scatter(where, path.posterior(process.predict(now, x), x, now).draw(where, draws, "denoiser"))
            yield now, x
        end = path.schedule.time_at(torch.tensor(1 - self.epsilon, dtype=torch.float64, device=x.device))
        u = uniforms(x.shape, process.generator, x.device)
        where = free & (x == path.source.mask) if path.source.absorbing else free
        x = x.masked_scatter(where, path.posterior(process.predict(end, x), x, end).draw(where, u[where], "denoiser"))
        yield torch.ones((), device=x.device), x
