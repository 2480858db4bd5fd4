"""Weights of losses: what they make of one error, whichever of its forms the network predicts."""

import pytest
import torch

from cflow import objectives, paths

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
SCHEDULES = [paths.Linear, paths.Cosine, paths.VariancePreserving]
each_prediction = pytest.mark.parametrize("predict", ["velocity", "x1", "noise", "score"])


def square_of(path):
    """The loss that an error of one in the expected data is, as this path's prediction: an error of the noise is
    ``alpha / sigma`` times as large, and a score's loss is the noise's."""
    alpha, sigma = path.alpha(T), path.sigma(T)
    size = {
        "x1": torch.ones_like(T),
        "noise": alpha / sigma,
        "score": alpha / sigma,
        "velocity": path.d_alpha(T) - alpha * path.d_sigma(T) / sigma,
    }
    return size[path.predict].square()


@each_prediction
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_caps_the_same_loss_for_every_prediction(schedule, predict, gamma):
    path = schedule(predict)
    snr = (path.alpha(T) / path.sigma(T)).square()
    wanted = snr.clamp(max=gamma)
    assert (snr > gamma).any()
    assert (snr < gamma).any()
    assert torch.allclose(objectives.MinSNR(gamma)(path, T) * square_of(path), wanted, rtol=1e-9)


@each_prediction
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("maximum", [3.0, 1e9])
def test_a_velocity_weight_makes_every_loss_that_of_the_velocity_up_to_its_maximum(schedule, predict, maximum):
    path = schedule(predict)
    ratio = square_of(schedule("velocity")) / square_of(path)
    wanted = torch.ones_like(T) if predict == "velocity" else ratio.clamp(max=maximum)
    assert torch.allclose(objectives.VelocityWeight(maximum)(path, T), wanted, rtol=1e-9)
