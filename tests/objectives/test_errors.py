"""What the errors of a prediction are, in numbers that one can work out by hand."""

import math

import pytest
import torch

from cflow import objectives

A = torch.tensor([[0.5, -3.0], [0.0, 0.0]])
ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (objectives.Square(), [(0.25 + 9.0) / 2, 0.0]),
        # The square up to delta, beyond it the line 2 delta |d| - delta^2 that continues it.
        (objectives.Huber(), [(0.25 + 2 * 3.0 - 1.0) / 2, 0.0]),
        (objectives.Huber(0.4), [(2 * 0.4 * 0.5 - 0.16 + 2 * 0.4 * 3.0 - 0.16) / 2, 0.0]),
        (objectives.Huber(10.0), [(0.25 + 9.0) / 2, 0.0]),
        (objectives.PseudoHuber(2.0), [math.sqrt(4.625 + 4.0) - 2.0, 0.0]),
    ],
    ids=["square", "huber", "narrow", "wide", "pseudo"],
)
def test_errors_have_their_values(error, wanted):
    assert error(A, ZERO).tolist() == pytest.approx(wanted, abs=1e-6)
    assert error(ZERO, A).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("pixel", [0.0, 0.1, 2.0])
def test_a_feature_error_adds_its_share_of_the_square(pixel):
    network = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[2.0, 1.0]]))
    found = objectives.FeatureError(network, pixel)(A, ZERO)
    assert found.tolist() == pytest.approx([(2 * 0.5 - 3.0) ** 2 + pixel * 4.625, 0.0], abs=1e-6)
