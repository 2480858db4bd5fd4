"""Samplers that take one step after another on a grid of times."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cflow.ctmc.arguments import check_rate, check_schedule
from cflow.ctmc.categorical import invert, uniforms
from cflow.ctmc.posterior import Sharpen
from cflow.ctmc.rates import Rate
from cflow.ctmc.samplers.sampler import Process, Sampler, require_steps
from cflow.ctmc.schedules import Schedule
from cflow.registry import register

__all__ = ["Analytic", "Euler", "Stepping", "TauLeaping"]


@dataclass(frozen=True)
class Stepping(Sampler):
    """Steps from ``t = 0`` to ``t = 1`` with one evaluation of the network each: the base class of such samplers.

    A subclass writes ``advance(process, logits, x, t, s) -> x``.

    Args:
        steps: the number of steps.
        rate: the rate that is simulated. Default: None, that of the path.
        schedule: lays the grid: step k ends where as many tokens are revealed as by this schedule at ``k / steps``.
            Default: None, equal steps in time on the schedule of the path.
        temperature: logits are divided by it; 1 changes nothing, and below 1 likely tokens become more frequent.
        top_k: the number of likeliest tokens that are kept. Default: None, all.
        top_p: the smallest set of likeliest tokens with this probability is kept; 1 keeps all.
        greedy_end: whether the last step takes the likeliest token instead of a draw. It lowers the entropy of samples.

    Raises:
        ValueError: if ``steps`` is not a positive integer, or an option is out of range.
        TypeError: for a rate or a schedule that is not an object of its kind.
    """

    scales: ClassVar[bool] = True
    steps: int = 64
    rate: Rate | None = None
    schedule: Schedule | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    greedy_end: bool = False

    def __post_init__(self):
        require_steps(self)
        check_rate(type(self).__name__, self.rate)
        check_schedule(type(self).__name__, self.schedule)
        self.sharpen  # noqa: B018 - its checks

    @property
    def sharpen(self) -> Sharpen:
        """The change of the distribution that tokens are drawn from."""
        return Sharpen(self.temperature, self.top_k, self.top_p)

    def grid(self, process: Process) -> Tensor:
        """Returns the times of the grid for a ``process``, ``[steps + 1]`` in float64."""
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device=process.start.device)
        if self.schedule is None:
            return times
        if process.path.schedule.by_position or self.schedule.by_position:
            raise ValueError(f"{type(self).__name__}(schedule=...): not available with one schedule for each position.")
        times = process.path.schedule.time_at(self.schedule.kappa(times))
        times[0], times[-1] = 0, 1
        return times

    @abstractmethod
    def advance(self, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the states of a ``process`` at ``s``, given ``x`` at ``t`` and the network's ``logits`` there."""

    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields time and states of ``process`` after each step."""
        x, grid = process.start, self.grid(process)
        for k in range(self.steps):
            x = self.step(process, x, grid, k)
            yield grid[k + 1], x

    def step(self, process: Process, x: Tensor, grid: Tensor, k: int) -> Tensor:
        """Returns the states of a ``process`` after step ``k`` on a ``grid``, given the states ``x`` before it."""
        logits = process.predict(grid[k], x)
        if k == self.steps - 1 and self.greedy_end:
            return likeliest(process, logits, x, grid[k])
        return self.advance(process, logits, x, grid[k], grid[k + 1])


def likeliest(process: Process, logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Returns the likeliest tokens of the data at positions that move."""
    best = process.path.posterior(logits, x, t).best()[0]
    return best if process.free is None else torch.where(process.free, best, x)


@register("ctmc.Analytic")
@dataclass(frozen=True)
class Analytic(Stepping):
    r"""Takes steps that are exact for a posterior that stays as it is during the step. The default.

    No step is too long, no probability is cut off, and the last step is like the others. With a mask source a step
    reveals each hidden token with probability :math:`(\kappa_s - \kappa_t) / (1 - \kappa_t)`. Tokens of one step are
    drawn independently of each other: with N equal steps and a mask source, two tokens that determine each other
    disagree with probability ``1 / (2 N)``, for every network.

    The arguments are those of :class:`Stepping`: ``steps``, ``rate``, ``schedule``, ``temperature``, ``top_k``,
    ``top_p`` and ``greedy_end``. The rate must have steps in closed form: ``MinimalJump``, ``TimeReversal``,
    ``DetailedBalance`` or ``Corrector``.

    Cost: ``steps`` evaluations of the network. Logits are read only where a token may change.

    Example:
        >>> Analytic(steps=8, temperature=0.9)
        Analytic(steps=8, rate=None, schedule=None, temperature=0.9, top_k=None, top_p=1.0, greedy_end=False)
    """

    def advance(self, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return process.path.step(
            logits, x, t, s, mask=process.free, generator=process.generator, rate=self.rate, sharpen=self.sharpen
        )


@register("ctmc.Euler")
@dataclass(frozen=True)
class Euler(Stepping):
    r"""Takes Euler steps with rates that are constant during the step.

    .. math:: \Pr(\text{jump}) = 1 - e^{-h \lambda}, \qquad \lambda = \sum_{j \ne x} R_t(x, j)

    and the new state is drawn in proportion to the rates. Every rate has such steps. They are less accurate than those
    of :class:`Analytic`: the rates of the last step would be infinite, so it draws all tokens from the posterior.

    Args:
        linear: whether the probability of a jump is ``min(1, h * lambda)`` instead.

    The other arguments are those of :class:`Stepping`: ``steps``, ``rate``, ``schedule``, ``temperature``, ``top_k``,
    ``top_p`` and ``greedy_end``.

    Cost: ``steps`` evaluations of the network, and tensors of ``[B, *event, states]``.

    Source: Campbell et al., 2024, arXiv:2402.04997 (linear); Gat et al., 2024, arXiv:2407.15595.
    """

    linear: bool = False

    def advance(self, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        u = uniforms(x.shape, process.generator, x.device)
        if float(s) >= 1:
            moving = _movable(process, x)
            drawn = process.path.posterior(logits, x, t, sharpen=self.sharpen).draw(moving, u[moving], "denoiser")
            return x.masked_scatter(moving, drawn)
        rates = _rates(self, process, logits, x, t, s)
        total = rates.sum(-1)
        jump = self.probability((s - t) * total)
        if process.free is not None:
            jump = jump.masked_fill(~process.free, 0)
        jumps = u < jump
        return x.masked_scatter(jumps, _targets(rates, jumps, u / jump))

    def probability(self, expected: Tensor) -> Tensor:
        """Computes the probability of a jump from the ``expected`` number of jumps."""
        return expected.clamp(max=1) if self.linear else -torch.expm1(-expected)


@register("ctmc.TauLeaping")
@dataclass(frozen=True)
class TauLeaping(Euler):
    r"""Draws Poisson numbers of jumps and keeps the step of a token only if it jumps exactly once.

    .. math:: \Pr(\text{jump}) = h \lambda \, e^{-h \lambda}

    Tokens have no order, so two jumps of one token in a step cannot be added. For comparison with the literature;
    :class:`Analytic` is better.

    The arguments are those of :class:`Stepping`: ``steps``, ``rate``, ``schedule``, ``temperature``, ``top_k``,
    ``top_p`` and ``greedy_end``; ``linear`` is not read and must be False.

    Source: Campbell et al., A Continuous Time Framework for Discrete Denoising Models, 2022, arXiv:2205.14987.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.linear:
            raise ValueError("TauLeaping(linear=True): not available; use ctmc.Euler(linear=True).")

    def probability(self, expected: Tensor) -> Tensor:
        return expected * torch.exp(-expected)


def _movable(process: Process, x: Tensor) -> Tensor:
    """Returns the positions that the last step draws: those that move, except tokens that are carried over."""
    moving = process.movable()
    path = process.path
    return moving & (x == path.source.mask) if path.source.absorbing and path.carry_over else moving


def _rates(sampler: Stepping, process: Process, logits: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    path = process.path
    rate = path.checked(sampler.rate, path.sampling_rate)
    posterior = path.posterior(logits, x, t, sharpen=sampler.sharpen)
    p, pace = posterior.log_probs("denoiser").exp(), posterior.pace
    at = path.moment(x, t)
    # A slope that is infinite at t = 0 is replaced by its average over the step.
    average = (path.schedule.kappa(path.spread(s, x)) - at.kappa) / (s - t)
    at = replace(at, d_kappa=torch.where(at.d_kappa == torch.inf, average, at.d_kappa))
    rates = rate.expected(at, x, p, path.table(x, t))
    return rates if pace is None else rates * pace.unsqueeze(-1)


def _targets(rates: Tensor, jumps: Tensor, u: Tensor) -> Tensor:
    return invert(rates[jumps], u[jumps])
