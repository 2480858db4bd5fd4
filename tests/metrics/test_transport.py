import math

import pytest
import torch

from cflow.metrics import normalised_path_energy, path_energy, straightness, transport_cost, wasserstein2


def test_straight_paths_at_constant_speed(generator):
    x0, x1 = torch.randn(2, 50, 2, 3, generator=generator, dtype=torch.float64)
    times = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0], dtype=torch.float64)
    path = torch.stack([(1 - t) * x0 + t * x1 for t in times])
    assert straightness(path, times).value < 1e-25
    assert torch.allclose(path_energy(path, times), (x1 - x0).flatten(1).square().sum(1))


def test_circles_have_their_closed_form():
    # A half circle of radius r at constant speed: energy (pi r)^2; the displacement 2 r has mean velocity, so the
    # straightness is (pi r)^2 - (2 r)^2.
    times = torch.linspace(0, 1, 4001, dtype=torch.float64)
    radius = torch.tensor([1.0, 2.0], dtype=torch.float64)
    angle = math.pi * times
    path = torch.stack([angle.cos(), angle.sin()], -1)[:, None] * radius[:, None]
    assert torch.allclose(path_energy(path, times), (math.pi * radius) ** 2, rtol=1e-6)
    each = (math.pi**2 - 4) * radius**2
    found = straightness(path, times)
    assert found.value == pytest.approx(float(each.mean()), rel=1e-6)
    assert found.standard_error == pytest.approx(float(each.std()) / math.sqrt(2), rel=1e-6)
    assert straightness(path, 5 * times).value == pytest.approx(found.value, rel=1e-9)


def test_path_energy_is_zero_for_optimal_transport_and_grows(generator):
    x0 = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimal = torch.full((300,), 25.0)
    assert normalised_path_energy(optimal, x0, x0 + shift).value == pytest.approx(0.0, abs=1e-9)
    longer = normalised_path_energy(optimal * torch.tensor([1.0, 2.0]).repeat(150), x0, x0 + shift)
    assert longer.value == pytest.approx(0.5, abs=1e-9)
    assert longer.standard_error == pytest.approx(0.5 / math.sqrt(299), rel=1e-6)


def test_bad_input_is_refused():
    path = torch.zeros(3, 4, 2)
    with pytest.raises(ValueError, match="not one state per time"):
        path_energy(path, torch.linspace(0, 1, 4))
    with pytest.raises(ValueError, match="not one state per time"):
        straightness(path[:1], torch.zeros(1))
    with pytest.raises(ValueError, match="increase strictly"):
        straightness(path, torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"straightness\(times=\[0.5, 0.5, 0.5\]"):
        straightness(path, torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"path_energy\(trajectory, times\), \[B\]"):
        normalised_path_energy(path, path[0], path[0] + 1)
    with pytest.raises(ValueError, match="the same samples"):
        normalised_path_energy(torch.ones(4), path[0], path[0])


def test_transport_cost_is_the_mean_of_the_rows_and_bounded_by_w2(generator):
    x0, x1 = torch.randn(2, 400, 2, generator=generator, dtype=torch.float64)
    x1 = 0.5 * x1 + 3
    rows = (x1 - x0).square().sum(1)
    found = transport_cost(x0, x1)
    assert found.value == pytest.approx(float(rows.mean()), rel=1e-12)
    assert found.standard_error == pytest.approx(float(rows.std()) / 20, rel=1e-12)
    assert transport_cost(x0, x1, power=1.0).value == pytest.approx(float(rows.sqrt().mean()), rel=1e-12)
    assert found.value > wasserstein2(x0, x1) ** 2
    image = torch.zeros(3, 1, 2, 2)
    assert transport_cost(image, image + 1).value == 4.0
    with pytest.raises(ValueError, match="two ends of one path"):
        transport_cost(x0, x1[:5])
    with pytest.raises(ValueError, match="B of 1 or more"):
        transport_cost(x0[:0], x1[:0])
    with pytest.raises(ValueError, match="power=0.5"):
        transport_cost(x0, x1, power=0.5)
