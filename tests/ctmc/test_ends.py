"""Token flows at the ends of time, where rates are infinite."""

import pytest
import torch

from cflow import ctmc
from cflow.testing import ExactDenoiser
from cflow.testing.exact_denoiser import correlated

SCHEDULES = {
    "linear": ctmc.Linear(),
    "cosine": ctmc.Cosine(),
    "root": ctmc.Polynomial(0.5),
    "late": ctmc.Polynomial(8.0),
    "log-linear": ctmc.LogLinear(1e-2),
    "by position": ctmc.Polynomial((0.3, 5.0)),
}
RATES = [ctmc.MinimalJump(), ctmc.DetailedBalance(1.0), ctmc.Corrector(1.0), ctmc.TimeReversal(), ctmc.CampbellRate()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bounds_are_finite_at_both_ends_in_float32(schedule):
    """Times in float32 round to 1, where the minimal jumps are infinite."""
    level = torch.tensor([0.0, 1e-8, 1e-4, 1 - 1e-4, 1 - 1e-5, 1 - 6e-8, 1.0])
    x1 = torch.tensor([[0, 1]]).expand(7, 2)
    sources = [ctmc.Mask(2, 3), ctmc.Marginal(2, torch.tensor([0.7, 0.3, 0.0])), ctmc.MaskAndUniform(2, 3, share=0.1)]
    tried = 0
    for source in sources:
        for rate in RATES:
            try:
                path = ctmc.Mixture(SCHEDULES[schedule], rate=rate, loss="elbo").bind(source)
            except ValueError:
                continue
            sample = path.sample(source.sample((7,), generator=torch.Generator().manual_seed(0)), x1, level)
            logits = torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.0, 0.5]]).repeat(7, 1, 1).requires_grad_()
            loss = path.loss(logits, sample)
            loss.sum().backward()
            assert bool(loss.isfinite().all()), (source, rate, loss)
            assert bool(logits.grad.isfinite().all()), (source, rate)
            tried += 1
    assert tried >= 9


def test_draws_of_the_bound_are_limited_where_a_position_starts_steeply(generator):
    """Early draws are at most a small multiple of the bound, though the slope of the first schedule is infinite."""
    source = ctmc.Mask(2, 3)
    path = ctmc.Mixture(ctmc.Polynomial((0.3, 3.0)), loss="elbo").bind(source)
    x1 = torch.zeros(20_000, 2, dtype=torch.long)
    draw = lambda level: path.loss(
        torch.zeros(20_000, 2, 3, dtype=torch.float64),
        path.sample(source.sample((20_000,)), x1, level, generator=generator),
    )
    assert float(draw(torch.logspace(-7, -2, 20_000, dtype=torch.float64)).max()) < 5
    value = draw((torch.arange(20_000) + torch.rand(20_000, generator=generator, dtype=torch.float64)) / 20_000)
    assert abs(float(value.mean()) - float(torch.tensor(3.0).log())) < 5 * float(value.std()) / 20_000**0.5


@pytest.mark.parametrize("sampler", [ctmc.Euler(32), ctmc.Euler(32, linear=True), ctmc.TauLeaping(64)])
def test_euler_steps_start_where_the_schedule_has_an_infinite_slope(sampler, generator):
    law = correlated(3, 2)
    for source in (ctmc.Mask(2, 3), ctmc.Uniform(2, 3)):
        path = ctmc.Mixture(ctmc.Polynomial(0.7))
        flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path).double()
        x = flow.sample((4000,), sampler=sampler, generator=generator)
        found = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).double() / len(x)
        # Noise of 4000 draws on nine states is about 0.02, the rest is the error of the steps.
        assert 0.5 * float((found - law.flatten()).abs().sum()) < 0.08
