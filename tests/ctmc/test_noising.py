"""Points of the bound of any source: the number of tokens of the source first, then the time."""

import itertools

import pytest
import torch

from cflow import ctmc
from cflow.ctmc.noising import number_weight, replace
from cflow.testing import ExactDenoiser
from cflow.testing.exact_denoiser import correlated

SOURCES = {
    "uniform": ctmc.Uniform(3, 2),
    "impossible token": ctmc.Marginal(3, torch.tensor([1.0, 0.0])),
    "mask": ctmc.Mask(3, 2),
}


def bound_path(source, rate=None):
    return ctmc.Mixture(ctmc.Cosine(), loss="elbo", rate=rate or ctmc.DetailedBalance(1.0)).bind(source)


def density(path, x, x1, left):
    """Computes the density of states and the share of the source, from the rule by which they are drawn."""
    size, same = x.shape[1], x == x1
    own = path.source.probs_of(x).expand(x.shape)
    none = (size + 1) * (1 - left) ** size / (2 * (1 - (1 - left) ** (size + 1)).sqrt())
    total = none * same.all(1)
    for count in range(1, size + 1):
        # The law of the count-th smallest of as many uniform numbers as positions; each set of positions is as likely.
        at = count * left ** (count - 1) * (1 - left) ** (size - count)
        for way in itertools.combinations(range(size), count):
            here = torch.zeros(size, dtype=torch.bool).scatter(0, torch.tensor(way), True)
            chance = torch.where(here, own, same.double()).prod(1)
            total = total + chance * at
    return total / (size + 1)


@pytest.mark.parametrize("source", SOURCES)
def test_the_weight_is_the_inverse_density_of_the_points(source):
    path = bound_path(SOURCES[source])
    states = torch.tensor(list(itertools.product(range(path.source.states), repeat=3)))
    x1 = torch.tensor([[0, 1, 1]]).expand(len(states), 3)
    for left in (1e-6, 0.03, 0.4, 0.97):
        share = torch.full((len(states),), left, dtype=torch.float64)
        t = path.schedule.time_at(1 - share)
        given = (1 - left) * (states == x1) + left * path.source.probs_of(states)
        found = number_weight(path, states, x1, t, None) * path.schedule.d_kappa(t)
        possible = given.prod(1) > 0
        wanted = given.prod(1)[possible] / density(path, states, x1, share)[possible]
        torch.testing.assert_close(found[possible], wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("source", SOURCES)
def test_weighted_points_have_uniform_times(source, generator):
    """Averages of functions of time are their integrals, also where some positions do not count."""
    path, count = bound_path(SOURCES[source]), 20_000
    counted = (torch.arange(3) < 2).expand(count, 3)
    x1 = torch.tensor([[0, 1, 1]]).expand(count, 3)
    for mask in (None, counted):
        level = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        sample = path.sample(path.source.sample((count,), generator=generator), x1, level, mask=mask)
        weight = number_weight(path, sample.xt, x1, sample.t, mask)
        for power in (0, 1, 3):
            value = weight * sample.t**power
            assert abs(float(value.mean()) - 1 / (power + 1)) < 5 * float(value.std()) / count**0.5


def test_mirrored_points_replace_the_other_tokens(generator):
    path = bound_path(SOURCES["uniform"])
    u, level = torch.rand(2, 50, 3, generator=generator, dtype=torch.float64)
    hidden, _ = replace(path, u, level[:, 0], None)
    other, _ = replace(path, *reversed(path.mirror(level[:, 0], u)), None)
    assert torch.equal(hidden, ~other)


@pytest.mark.parametrize("rate", [ctmc.TimeReversal(), ctmc.MinimalJump(), ctmc.DetailedBalance(1.0)])
def test_no_draw_of_the_bound_is_large(rate, generator):
    """With times alone, one token that is noisy close to the data has a weight of some hundreds."""
    law, source, path = correlated(3, 2), ctmc.Uniform(2, 3), ctmc.Mixture(ctmc.Cosine())
    flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path)
    x = flow.denoiser.sequences()[torch.multinomial(law.flatten(), 10_000, replacement=True, generator=generator)]
    value = flow.log_prob(x, rate=rate, generator=generator).detach()
    assert float(value.std()) < 3.5
    assert float(value.min()) > -60
