import pytest
import torch

from cflow.couplings.costs import squared_distances


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(0,), (1,), (7,), (2, 3)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_distances_are_right_with_and_without_their_means(dtype, event, offset, generator):
    x0 = torch.randn(5, *event, generator=generator, dtype=dtype) + offset
    x1 = 3 * torch.randn(8, *event, generator=generator, dtype=dtype) - 4 + offset
    found = squared_distances("test", x0, x1)
    flat0, flat1 = x0.flatten(1).double(), x1.flatten(1).double()
    exact = (flat0[:, None] - flat1).square().sum(2)
    centred = ((flat0 - flat0.mean(0))[:, None] - (flat1 - flat1.mean(0))).square().sum(2)
    accuracy = 1e-4 if dtype is torch.float32 else 1e-9  # float32 holds coordinates near 1000 to 6e-5
    tolerance = {"rtol": accuracy, "atol": accuracy * (1 + 10 * (offset > 0))}
    torch.testing.assert_close(found.total(), exact, **tolerance)
    torch.testing.assert_close(found.cost, centred, **tolerance)
    assert found.spread0 + found.spread1 == pytest.approx(float(centred.mean()), rel=1e-4, abs=1e-9)


def test_an_outlier_takes_no_digits_from_the_rest(generator):
    x0, x1 = torch.randn(2, 50, 4, generator=generator)
    x1[7] = 1e6
    exact = (x0.double()[:, None] - x1.double()).square().sum(2)
    torch.testing.assert_close(squared_distances("test", x0, x1).total(), exact, rtol=1e-6, atol=1e-3)
