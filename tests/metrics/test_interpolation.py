import math

import pytest
import torch

from cflow.metrics import ot_interpolation, wasserstein2


def test_normal_samples_of_unequal_size_meet_the_closed_form(generator):
    """Displacement interpolation of N(m, a^2) and N(n, b^2) is N((1-s) m + s n, ((1-s) a + s b)^2)."""
    x = -1 + 0.5 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    y = 3 + 2.0 * torch.randn(1500, 1, generator=generator, dtype=torch.float64)
    for s in (0.25, 0.6):
        z = ot_interpolation(x, y, s, generator=generator)
        assert z.shape == (2000, 1)
        mean, std = -1 + 4 * s, 0.5 + 1.5 * s
        # Five standard errors of the smaller sample: once in a million seeds.
        assert abs(float(z.mean()) - mean) < 5 * std / math.sqrt(1500)
        assert abs(float(z.std()) - std) < 5 * std / math.sqrt(2 * 1500)


def test_in_the_plane_spreads_are_those_of_the_optimal_map_not_of_chance_pairs(generator):
    x = torch.randn(1000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    y = torch.randn(1000, 2, generator=generator) * torch.tensor([3.0, 1.0]) + torch.tensor([5.0, 0.0])
    z = ot_interpolation(x, y, 0.5, generator=generator)
    assert torch.allclose(z.mean(0), (x.mean(0) + y.mean(0)) / 2, atol=1e-5)
    # (1 + 3) / 2 against sqrt(1 + 9) / 2 = 1.58: five standard errors are 0.22.
    assert torch.allclose(z.std(0), torch.tensor([2.0, 2.0]), atol=0.22)


def test_the_interpolation_is_a_geodesic(generator):
    x = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(120, 3, generator=generator, dtype=torch.float64) + 1
    whole = wasserstein2(x, y)
    for s in (0.3, 0.8):
        z = ot_interpolation(x, y, s, generator=generator)
        assert wasserstein2(x, z) == pytest.approx(s * whole, rel=1e-9)
        assert wasserstein2(z, y) == pytest.approx((1 - s) * whole, rel=1e-9)


def test_ends_are_the_samples(generator):
    x, y = torch.randn(60, 2, generator=generator), torch.randn(25, 2, generator=generator)
    for s, end in ((0.0, x), (1.0, y)):
        for count in (None, 60, 150):
            z = ot_interpolation(x, y, s, count, generator=generator)
            uses = torch.isclose(z[:, None], end, atol=1e-6).all(-1).sum(0)
            assert int(uses.sum()) == (count or 60)
            assert float((uses - len(z) / len(end)).abs().max()) < 4  # each row by its mass, pair by pair to within one
    z = ot_interpolation(x, x + 1, 0.0, generator=generator)
    assert torch.equal(z.sort(0).values, x.sort(0).values)


def test_a_generator_fixes_the_draw():
    x, y = torch.randn(30, 2, dtype=torch.float64), torch.randn(21, 2)
    first, second, other = (
        ot_interpolation(x, y, 0.5, 10, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64


def test_bad_input_is_explained():
    x = torch.randn(10, 2)
    with pytest.raises(ValueError, match="fraction=1.5"):
        ot_interpolation(x, x, 1.5)
    with pytest.raises(ValueError, match="fraction=nan"):
        ot_interpolation(x, x, float("nan"))
    with pytest.raises(ValueError, match="count=0"):
        ot_interpolation(x, x, 0.5, 0)
    with pytest.raises(ValueError, match="different dimensions"):
        ot_interpolation(x, x[:, :1], 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        ot_interpolation(x, x[:0], 0.5)
    with pytest.raises(ValueError, match="NaN"):
        ot_interpolation(x, x / 0, 0.5)
    with pytest.warns(UserWarning, match="numItermax"), pytest.raises(RuntimeError, match="raise iterations"):
        ot_interpolation(torch.randn(200, 2), torch.randn(200, 2), 0.5, iterations=3)
