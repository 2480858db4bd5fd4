import math

import pytest
import torch

from cflow import metrics
from cflow.metrics import Estimate

OF_TWO_SAMPLES = (
    metrics.classifier_two_sample,
    metrics.energy_distance,
    metrics.frechet_distance,
    metrics.mmd,
    metrics.nearest_distances,
    metrics.sliced_wasserstein2,
    metrics.wasserstein1,
    metrics.wasserstein2,
    lambda x, y: metrics.ot_interpolation(x, y, 0.5),
)


@pytest.mark.parametrize("metric", OF_TWO_SAMPLES)
def test_samples_that_have_no_distance_are_refused_by_every_metric(metric):
    x = torch.randn(20, 2, dtype=torch.float64)
    for bad, message in (
        (x[:, :0], r"of shape \[20, 0\].*D of 1 or more"),
        (x[:, 0], r"of shape \[20\].*rows"),
        (x[:, :, None], "flatten"),
        (x[:0], "at least"),
        (torch.where(x > 0, x, math.nan), "NaN or infinite"),
        (x / 0.0, "NaN or infinite"),
        (1e200 * x, "overflow float64"),
    ):
        for pair in ((x, bad), (bad, x), (bad, bad)):
            with pytest.raises(ValueError, match=f"{message}|different dimensions"):
                metric(*pair)
        with pytest.raises(ValueError, match=message):
            metric(bad, bad)
    for bad in (x.numpy(), x.tolist()):
        with pytest.raises(TypeError, match=r"samples are tensors .*torch.as_tensor\("):
            metric(x, bad)


def test_is_a_number_with_an_error_bar():
    estimate = Estimate(1.23456, 0.0123)
    assert float(estimate) == 1.23456
    assert str(estimate) == "1.235 ± 0.012"
    with pytest.raises(AttributeError):
        estimate.value = 2.0
