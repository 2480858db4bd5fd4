import numpy as np
import pytest
import scipy.linalg
import torch

from cflow.manifolds import SPD
from cflow.manifolds.eigen import exp_change, log_change, matrix_exp, matrix_log
from cflow.testing import check_manifold


def matrices(generator, count, n, spread=1.0):
    a = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
    return torch.linalg.matrix_exp(spread * (a + a.mT) / 2)


@pytest.mark.parametrize("manifold", [SPD(2), SPD(3), SPD(2, "log-euclidean")], ids=str)
def test_spd_conforms(manifold):
    # Errors are relative to condition numbers, which are some hundreds here.
    check_manifold(manifold, rounding=4096)


def test_functions_are_those_of_scipy(generator):
    p = matrices(generator, 4, 3)
    logs = matrix_log(p)
    for one, other in zip(p, logs):
        assert np.allclose(scipy.linalg.logm(one.numpy()), other.numpy(), atol=1e-12)
    assert torch.allclose(matrix_exp(logs), p, atol=1e-12)
    e = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    e = (e + e.mT) / 2
    for one, direction, found in zip(logs, e, exp_change(logs, e)):
        assert np.allclose(scipy.linalg.expm_frechet(one.numpy(), direction.numpy())[1], found.numpy(), atol=1e-12)
    assert torch.allclose(exp_change(logs, log_change(p, e)), e, atol=1e-12)


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (0.5, 2.0, 2.0), (2.0, 2.0 + 1e-9, 2.01), (0.1, 3.0, 40.0)])
def test_derivatives_at_equal_and_near_eigenvalues(generator, values):
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    p = (q * torch.tensor(values, dtype=torch.float64)) @ q.mT
    p = p.requires_grad_()
    for function in (matrix_log, lambda a: matrix_exp(a / 10)):
        whole = lambda a: function((a + a.mT) / 2)  # noqa: B023
        assert torch.autograd.gradcheck(whole, p, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(whole, p, atol=1e-4)
    # The third derivative of the logarithm of a multiple of p is known: t p has logarithm log t + log p.
    along = lambda t: matrix_log(t * p.detach())[0, 0]
    t = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    value = along(t)
    for _ in range(3):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
    assert torch.allclose(value, 2 / t**3)


def test_affine_invariant_distance(generator):
    spd, p, q = SPD(4), matrices(generator, 3, 4), matrices(generator, 3, 4)
    dist = spd.dist(p, q)
    for one, other, found in zip(p, q, dist):
        roots = scipy.linalg.eigvalsh(other.numpy(), one.numpy())
        assert np.isclose(np.sqrt((np.log(roots) ** 2).sum()), found)
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    assert torch.allclose(spd.dist(a @ p @ a.mT, a @ q @ a.mT), dist)
    assert torch.allclose(spd.dist(torch.linalg.inv(p), torch.linalg.inv(q)), dist)


def test_volumes_in_upper_triangle_coordinates(generator):
    # sqrt(det G) over those is 2^(n(n-1)/4) det(P)^(-(n+1)/2); the frame has off-diagonal entries sqrt(1/2).
    spd, p = SPD(3), matrices(generator, 5, 3)
    assert torch.allclose(spd.log_volume_element(p), -2 * torch.logdet(p))


def test_projection_of_matrices_that_are_not_positive(generator):
    spd = SPD(3)
    a = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    found = spd.project(a)
    assert torch.equal(found, found.mT)
    assert (torch.linalg.eigvalsh(found) > 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert gradient.isfinite().all()
    assert torch.equal(spd.project(torch.zeros(3, 3)), torch.eye(3))


def test_arguments():
    with pytest.raises(ValueError, match="pass 'affine-invariant' or 'log-euclidean'"):
        SPD(2, "euclidean")
    with pytest.raises(ValueError, match="a matrix has a row or more"):
        SPD(0)
