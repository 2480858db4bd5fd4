import pytest
import scipy.linalg
import torch

from cflow.metrics import frechet_distance


def samples_with(mean, covariance, count, generator):
    """Makes samples whose mean and covariance are exactly these."""
    x = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_commuting_covariances_have_a_closed_form(generator):
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    shift = torch.tensor([1.0, 0.0, 2.0]).double()
    x = samples_with(shift * 0, a.diag(), 50, generator)
    y = samples_with(shift, b.diag(), 70, generator)
    expected = 5.0 + float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)


def test_general_covariances_agree_with_the_matrix_root(generator):
    factors = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    one, two = (f @ f.T + 0.1 * torch.eye(6, dtype=torch.float64) for f in factors)
    x = samples_with(torch.zeros(6).double(), one, 30, generator)
    y = samples_with(torch.ones(6).double(), two, 30, generator)
    root = torch.from_numpy(scipy.linalg.sqrtm((one @ two).numpy()).real)
    expected = 6 + float(one.trace() + two.trace() - 2 * root.trace())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_equal_and_degenerate_features(generator):
    x = torch.randn(100, 4, generator=generator)
    assert frechet_distance(x, x) < 1e-10
    x[:, 3] = x[:, 0]  # a singular covariance
    assert frechet_distance(x, x + 1) == pytest.approx(4.0, rel=1e-5)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="needs more samples"):
        frechet_distance(torch.randn(8, 8), torch.randn(100, 8))
