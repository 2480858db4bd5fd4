"""The clock of one-hot tokens against SciPy's quadrature and against noisy tokens."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from cflow.times import ArgmaxClock, quantile_grid

VOCABULARIES = (2, 3, 27, 1000, 50_000)
every_vocabulary = pytest.mark.parametrize("vocabulary", VOCABULARIES)


def revealed(t, vocabulary):
    """The probability that the largest entry is right, scaled to go from 0 to 1, and its slope: adaptive quadrature."""
    shift, others, options = t / (1 - t), vocabulary - 1, {"epsabs": 1e-14, "epsrel": 1e-13, "limit": 500}
    points = {"points": [-4, -2, 0, 2, 4]}
    value = lambda z: -np.expm1(others * special.log_ndtr(z + shift)) * stats.norm.pdf(z)
    slope = lambda z: (
        np.exp((others - 1) * special.log_ndtr(z + shift)) * stats.norm.pdf(z + shift) * stats.norm.pdf(z) * others
    )
    hidden, rate = (integrate.quad(each, -12, 12, **options, **points)[0] for each in (value, slope))
    scale = vocabulary / others
    return 1 - scale * hidden, scale * rate / (1 - t) ** 2


@every_vocabulary
def test_times_and_density_are_those_of_the_integral(vocabulary):
    clock = ArgmaxClock(vocabulary)
    t = torch.linspace(0.005, 0.85, 61, dtype=torch.float64)
    alpha, slope = torch.tensor([revealed(float(each), vocabulary) for each in t], dtype=torch.float64).T
    # An error of the time times the slope is the error of the probability.
    assert ((clock.icdf(alpha) - t) * slope).abs().max() < 1e-8
    assert ((clock.density(t) - slope) / slope).abs().max() < 3e-4
    assert ((clock.density(t) - slope).abs().max() / slope.max()) < 1e-6


@pytest.mark.parametrize("vocabulary", [3, 1000])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_largest_entry_is_right_as_often_as_the_clock_says(vocabulary, share, generator):
    t = ArgmaxClock(vocabulary).icdf(torch.tensor(share))
    noise = torch.randn(20_000, vocabulary, generator=generator)
    x = (1 - t) * noise + t * torch.nn.functional.one_hot(torch.tensor(0), vocabulary)
    right, expected = (x.argmax(1) == 0).float().mean(), 1 / vocabulary + share * (1 - 1 / vocabulary)
    assert abs(float(right) - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)


@every_vocabulary
def test_the_grid_of_a_sampler_reveals_equal_shares(vocabulary):
    grid = quantile_grid(8, ArgmaxClock(vocabulary))
    shares = [revealed(t, vocabulary)[0] for t in grid[1:-1]]
    assert np.allclose(shares, np.arange(1, 8) / 8, atol=1e-8)


def test_draws_in_float32_stay_inside_and_the_ends_are_exact():
    clock = ArgmaxClock(50_000)
    u = torch.tensor([0.0, 1e-30, 1 - 2**-24, 1.0])
    t = clock.icdf(u)
    assert t[0] == 0
    assert t[-1] == 1
    assert ((t[1:-1] >= 0) & (t[1:-1] < 0.95)).all()
    assert clock.log_density(torch.tensor([0.0, 0.5, 0.9])).isfinite().all()


@pytest.mark.parametrize("vocabulary", [1, 2.0, True])
def test_a_vocabulary_is_counted(vocabulary):
    with pytest.raises(ValueError, match="two tokens or more"):
        ArgmaxClock(vocabulary)
