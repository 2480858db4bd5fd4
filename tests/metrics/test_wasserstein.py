import math

import pytest
import scipy.optimize
import scipy.stats
import torch

from cflow.metrics import sliced_wasserstein2, wasserstein1, wasserstein2


def test_shifted_copies_are_the_shift_apart(generator):
    x = torch.randn(200, 3, generator=generator)
    shift = torch.tensor([1.0, -2.0, 2.0])
    assert wasserstein2(x, x[torch.randperm(200, generator=generator)] + shift) == pytest.approx(3.0, rel=1e-5)
    assert wasserstein2(x, x.flip(0)) == 0.0


def test_equals_the_best_assignment(generator):
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(60, 4, generator=generator, dtype=torch.float64) + 1
    cost = torch.cdist(x, y).square().numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    assert wasserstein2(x, y) == pytest.approx(math.sqrt(cost[rows, columns].mean()), rel=1e-10)


def test_unequal_sizes_share_mass(generator):
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 2, generator=generator, dtype=torch.float64) + 1
    expected = wasserstein2(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0))
    assert wasserstein2(x, y) == pytest.approx(expected, rel=1e-10)
    assert wasserstein2(x, y) == pytest.approx(wasserstein2(y, x), rel=1e-10)


def test_first_distance_on_the_line_is_scipys(generator):
    x = torch.randn(70, 1, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(45, 1, generator=generator, dtype=torch.float64) + 0.5
    expected = scipy.stats.wasserstein_distance(x.flatten().numpy(), y.flatten().numpy())
    assert wasserstein1(x, y) == pytest.approx(expected, rel=1e-10)


def test_first_distance_is_the_best_assignment_by_length_and_below_the_second(generator):
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(50, 3, generator=generator, dtype=torch.float64) + 1
    cost = torch.cdist(x, y).numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    assert wasserstein1(x, y) == pytest.approx(cost[rows, columns].mean(), rel=1e-10)
    assert wasserstein1(x, y) < wasserstein2(x, y)
    assert wasserstein1(x, x.flip(0)) == 0.0
    assert wasserstein1(x, x + torch.tensor([1.0, -2.0, 2.0])) == pytest.approx(3.0, rel=1e-10)


def test_far_from_the_origin_nothing_is_lost(generator):
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64) + 1e6
    assert wasserstein2(x, x + 1e-3) == pytest.approx(1e-3 * math.sqrt(2), rel=1e-5)


def test_sliced_in_one_dimension_is_exact(generator):
    x = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    y = 3 * torch.randn(25, 1, generator=generator, dtype=torch.float64) + 1
    sliced = sliced_wasserstein2(x, y, 4, generator=generator)
    assert sliced.value == pytest.approx(wasserstein2(x, y), rel=1e-10)
    assert sliced.standard_error < 1e-6


def test_sliced_shift_has_its_closed_form_and_error_bar():
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    truth = 2.0  # E (theta . s)^2 = |s|^2 / D
    shift = torch.tensor([4.0, 2.0, 0.0, 0.0, 0.0])
    scores = []
    for seed in range(200):
        sliced = sliced_wasserstein2(x, x + shift, 200, generator=torch.Generator().manual_seed(seed))
        scores.append((sliced.value - truth) / sliced.standard_error)
    scores = torch.tensor(scores)
    covered = int((scores.abs() < 1.96).sum())
    assert scipy.stats.binomtest(covered, 200, 0.95).pvalue > 1e-4
    assert abs(float(scores.mean())) < 0.4


@pytest.mark.parametrize("metric", [wasserstein2, sliced_wasserstein2])
def test_bad_samples_are_refused(metric):
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"samples are rows, \[N, D\]"):
        metric(torch.zeros(5), x)
    with pytest.raises(ValueError, match="1 rows have NaN"):
        metric(x, torch.tensor([[0.0, math.nan], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="different dimensions"):
        metric(x, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least 1 samples"):
        metric(x, torch.zeros(0, 2))


def test_an_unfinished_plan_is_an_error(generator):
    x, y = torch.randn(2, 100, 2, generator=generator)
    with pytest.warns(UserWarning, match="numItermax"), pytest.raises(RuntimeError, match="raise iterations"):
        wasserstein2(x, y, iterations=5)
    with pytest.raises(ValueError, match="projections=1"):
        sliced_wasserstein2(x, y, 1)
