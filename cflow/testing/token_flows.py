"""Conformance of sources, schedules, rates and samplers of token flows, by enumeration of a small law."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cflow.ctmc import Mixture, Sampler, Source, TokenFlow
from cflow.testing.checks import close, demand
from cflow.testing.exact_denoiser import ExactDenoiser, correlated, entropy

__all__ = ["check_token_flow"]

TIMES = (0.15, 0.5, 0.85)
GRID = 1 << 11


def check_token_flow(
    source: Source, path: Mixture, sampler: Sampler | None = None, *, draws: int = 4000, tolerance: float = 0.05
) -> None:
    r"""Checks source, schedule and rate of a token flow, and a sampler, with a perfect denoiser of a known law.

    The suite checks the schedule and its inverse, the distribution of the source, the conversions between the two
    posteriors, the master equation of the rate (to 1e-10), the rates of the process against their average over the
    data, the law of a step, and the bound: it equals the entropy for a tight rate and is above it for others. With a
    sampler it checks the law of samples, that seeds repeat, that rows do not depend on each other, and that fixed
    tokens never move.

    Args:
        source: the source; at most two positions and four tokens.
        path: the path, with schedule and rate.
        sampler: the sampler. Default: None, no check of samples.
        draws: the number of samples and of draws of the bound.
        tolerance: the largest distance in total variation between samples and law; it contains the error of the
            sampler's steps, and that of a finite number of draws, about ``0.5 sqrt(states / draws)``.

    Raises:
        AssertionError: if a property fails; the message states which.
        ValueError: for a source that is too large.

    Example:
        >>> from cflow import ctmc
        >>> check_token_flow(ctmc.Mask(2, vocabulary=2), ctmc.Mixture(ctmc.Cosine()), ctmc.FirstHitting(), draws=1000)
    """
    count = source.event_shape.numel()
    if len(source.event_shape) != 1 or count > 2 or source.vocabulary > 4:
        raise ValueError("check_token_flow: pass a source of at most two positions and four tokens.")
    source = source.double()
    law = correlated(source.vocabulary, count)
    flow = TokenFlow(ExactDenoiser(law, source, path), source, path=path).double()
    _check_schedule(flow.path.schedule, count)
    _check_source(source)
    # Given data have no probabilities, so nothing of the flow can be enumerated.
    if source.has_density:
        _check_posteriors(flow, law)
        _check_rates(flow.path)
        if hasattr(flow.path.default_rate, "move"):
            _check_step(flow.path)
        _check_bound(flow, law, draws)
    if sampler is not None:
        _check_samples(flow, law, sampler, draws, tolerance)
        _check_infill(flow, sampler)


def _check_schedule(schedule, count: int) -> None:
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64).unsqueeze(1).requires_grad_()
    kappa = schedule.kappa(t)
    demand(bool((kappa > 0).all() and (kappa < 1).all()), "kappa is between 0 and 1 inside")
    ends = schedule.kappa(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    close(ends[0], torch.zeros_like(ends[0]), 1e-12, "kappa is 0 at t = 0")
    close(ends[1], torch.ones_like(ends[1]), 1e-12, "kappa is 1 at t = 1")
    slope = torch.autograd.grad(kappa.sum(), t)[0]
    close(schedule.d_kappa(t).expand_as(kappa).sum(1, keepdim=True), slope, 1e-9, "d_kappa is the derivative of kappa")
    close(schedule.remaining(t), 1 - kappa, 1e-12, "remaining is 1 - kappa")
    close(schedule.time_at(kappa), t.expand_as(kappa), 1e-9, "time_at inverts kappa")


def _check_source(source: Source) -> None:
    x = source.sample((2, 3), generator=torch.Generator().manual_seed(0))
    demand(x.shape == (2, 3, *source.event_shape) and x.dtype == torch.int64, "draws are int64 [*shape, *event]")
    if not source.has_density:
        return
    for t in (0.0, *TIMES):
        when = torch.full((GRID, 1), t, dtype=torch.float64)
        u = ((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID).unsqueeze(1).expand(GRID, *source.event_shape)
        drawn = one_hot(source.draw(u, when), source.states).double().mean(0)
        table = source.probs(when[:1]).expand(1, *source.event_shape, source.states)[0]
        close(drawn, table, 2 / GRID, f"draws of the source have its probabilities at t = {t}")
        close(table.sum(-1), torch.ones_like(table[..., 0]), 1e-12, "probabilities of the source add up to one")
    states = torch.cartesian_prod(*[torch.arange(source.states)] * source.event_shape.numel())
    states = states.reshape(-1, source.event_shape.numel())
    total = source.log_prob(states).exp().sum()
    close(total, torch.ones_like(total), 1e-6, "probabilities of all events add up to one")


def _all_states(source: Source) -> Tensor:
    found = torch.cartesian_prod(*[torch.arange(source.states)] * source.event_shape.numel())
    return found.reshape(-1, source.event_shape.numel())


def _check_posteriors(flow: TokenFlow, law: Tensor) -> None:
    """Checks that each head gives both posteriors."""
    source, states = flow.source, _all_states(flow.source)
    for t in TIMES:
        when = torch.full((len(states),), t, dtype=torch.float64)
        marginal = flow.denoiser.marginal(torch.tensor(t, dtype=torch.float64))[tuple(states.T)]
        possible = marginal > 1e-12
        for kind in ("denoiser", "leave-one-out"):
            exact = ExactDenoiser(law, source, Mixture(flow.path.schedule, head=kind)).double()
            true = exact(when, states).softmax(-1)
            for head in ("denoiser", "leave-one-out"):
                path = Mixture(flow.path.schedule, head=head).bind(source)
                logits = ExactDenoiser(law, source, path).double()(when, states)
                found = path.posterior(logits, states, when).log_probs(kind).exp()
                where = possible.unsqueeze(1).expand(states.shape)
                if source.absorbing and kind != head:
                    where = where & (states == source.mask)
                close(found[where], true[where], 1e-10, f"the {kind} follows from a head {head} at t = {t}")


def _channel(path: Mixture, t: float) -> tuple[Tensor, Tensor]:
    """Returns the probabilities of states given data at one time, and their derivatives, ``[D, K, states]``."""
    source, when = path.source, torch.full((1, 1), t, dtype=torch.float64)
    data = one_hot(torch.arange(source.vocabulary), source.states).double()
    spread = lambda each: each.expand(1, source.event_shape.numel()).reshape(-1, 1, 1)
    kappa, slope = spread(path.schedule.kappa(when)), spread(path.schedule.d_kappa(when))
    table = source.probs(when).expand(1, *source.event_shape, source.states).transpose(0, 1)
    moved = source.d_probs(when).expand(1, *source.event_shape, source.states).transpose(0, 1) if source.moves else 0.0
    return kappa * data + (1 - kappa) * table, slope * (data - table) + (1 - kappa) * moved


def _check_rates(path: Mixture) -> None:
    source, rate = path.source, path.default_rate
    count, generator = source.event_shape.numel(), torch.Generator().manual_seed(0)
    for t in TIMES:
        when = torch.tensor([t], dtype=torch.float64)
        p, slope = _channel(path, t)
        flux = torch.zeros_like(p)
        for x in range(source.states):
            state = torch.full((1, count), x)
            at, table = path.moment(state, when), path.table(state, when)
            averaged = torch.zeros(1, count, source.states, dtype=torch.float64)
            weights = torch.rand(1, count, source.vocabulary, generator=generator, dtype=torch.float64)
            weights = weights / weights.sum(-1, keepdim=True)
            if source.absorbing and x != source.mask:
                weights = one_hot(state, source.vocabulary).double()
            for data in range(source.vocabulary):
                rates = rate.conditional(at, state, torch.full((1, count), data), table)
                demand(bool((rates >= 0).all()), f"rates are not negative at t = {t}")
                averaged += weights[..., data : data + 1] * rates
                flow = p[:, data, x].unsqueeze(1) * rates[0]
                flux[:, data] += flow
                flux[:, data, x] -= flow.sum(-1)
            found = rate.expected(at, state, weights, table)
            close(found, averaged, 1e-10, f"the rates of the process are averages over the data at t = {t}")
        scale = 1 + float(slope.abs().max())
        close(flux, slope, 1e-10 * scale, f"the rates obey the master equation at t = {t}")


def _check_step(path: Mixture) -> None:
    """Checks that steps lead through the marginals given the data, from every start, and that they compose."""
    source = path.source
    u = ((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID).unsqueeze(1).expand(GRID, *source.event_shape)
    for t, s in ((0.0, 0.4), (0.2, 0.7), (0.6, 1.0)):
        before, after = _channel(path, t)[0], _channel(path, s)[0]
        for data in range(source.vocabulary):
            logits = torch.full((GRID, *source.event_shape, source.vocabulary), -1e4, dtype=torch.float64)
            logits[..., data] = 0
            reached = torch.zeros(source.event_shape.numel(), source.states, dtype=torch.float64)
            for x in range(source.states):
                weight = before[:, data, x].unsqueeze(1)
                if not bool((weight > 0).any()):
                    continue
                state = torch.full((GRID, *source.event_shape), x)
                now, then = (torch.full((GRID, 1), each, dtype=torch.float64) for each in (t, s))
                posterior = path.posterior(logits, state, now[:, 0])
                moved = path.default_rate.move(path, posterior, now, then, u)
                reached += weight * one_hot(moved, source.states).double().mean(0)
            close(reached, after[:, data], 6 / GRID * source.states, f"a step from {t} to {s} keeps the marginals")


def _check_bound(flow: TokenFlow, law: Tensor, draws: int) -> None:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.multinomial(law.flatten(), draws, replacement=True, generator=generator)
    x = flow.denoiser.sequences()[chosen]
    with torch.no_grad():
        value = -flow.log_prob(x, generator=generator)
    mean, error = float(value.mean()), float(value.std()) / draws**0.5
    exact = entropy(law)
    # Five standard errors: fails once in two million seeds.
    if flow.path.default_rate.tight or (not flow.path.default_rate.reshuffles(flow.source) and flow.source.absorbing):
        demand(abs(mean - exact) < 5 * error, f"the bound {mean:.4f} +- {error:.4f} equals the entropy {exact:.4f}")
    else:
        demand(mean > exact - 5 * error, f"the bound {mean:.4f} +- {error:.4f} is not below the entropy {exact:.4f}")


def _check_samples(flow: TokenFlow, law: Tensor, sampler: Sampler, draws: int, tolerance: float) -> None:
    draw = lambda count, generator: flow.sample((count,), sampler=sampler, generator=generator)
    x = draw(draws, torch.Generator().manual_seed(2))
    demand(bool(((x >= 0) & (x < flow.source.vocabulary)).all()), "samples are tokens of the data")
    place = (x * flow.source.vocabulary ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)
    found = torch.bincount(place, minlength=law.numel()).double() / draws
    if flow.source.has_density:
        distance = 0.5 * float((found - law.flatten()).abs().sum())
        demand(distance < tolerance, f"samples have the law of the data: total variation {distance:.3f}")
    again = [draw(5, torch.Generator().manual_seed(3)) for _ in range(2)]
    demand(torch.equal(*again), "a seed repeats samples")
    seeds = lambda rows: [torch.Generator().manual_seed(10 + row) for row in rows]
    whole, part = draw(4, seeds(range(4))), draw(2, seeds([2, 3]))
    demand(torch.equal(whole[2:], part), "with a generator for each row, a sample does not depend on the others")


def _check_infill(flow: TokenFlow, sampler: Sampler) -> None:
    x = flow.denoiser.sequences()[:4]
    for fixed in (torch.zeros(x.shape[1:], dtype=torch.bool), torch.arange(x.shape[1]) == 0, torch.ones_like(x) > 0):
        filled = flow.infill(x, fixed, (3,), sampler=sampler, generator=torch.Generator().manual_seed(4))
        demand(filled.shape == (3, *x.shape), "infill returns [*shape, *batch, *event]")
        where = fixed.expand_as(filled)
        demand(torch.equal(filled[where], x.expand_as(filled)[where]), "fixed tokens never move")
        demand(bool(((filled >= 0) & (filled < flow.source.vocabulary)).all()), "infill returns tokens of the data")
