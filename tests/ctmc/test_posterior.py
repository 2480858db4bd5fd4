"""Draws from posteriors: chunks, dtypes and the ends of cumulative sums."""

import pytest
import torch

from cflow import ctmc
from cflow.ctmc import posterior as module
from cflow.ctmc.categorical import invert


def test_categories_of_weight_zero_are_never_drawn():
    last = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    weights = torch.tensor([[0.0, 0.1, 0.2, 0.0], [0.3, 0.0, 1e-30, 0.0], [0.0, 0.0, 0.0, 5.0]])
    for u, expected in ((torch.zeros(3, dtype=torch.float64), [1, 0, 3]), (last.expand(3), [2, 0, 3])):
        assert invert(weights, u).tolist() == expected
    assert invert(weights[0], last.expand(2)).tolist() == [2, 2]


@pytest.mark.parametrize("kind", ["denoiser", "leave-one-out"])
@pytest.mark.parametrize("head", ["denoiser", "leave-one-out"])
@pytest.mark.parametrize("source", [ctmc.Mask(5, 4), ctmc.Uniform(5, 4), ctmc.Marginal(5, torch.arange(1.0, 5.0))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_the_probabilities_in_every_chunk(source, head, kind, dtype, generator, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 3 * 4)
    path = ctmc.Mixture(head=head).bind(source)
    x = torch.randint(source.states, (3, 5), generator=generator)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=dtype)
    posterior = path.posterior(logits, x, torch.tensor(0.4, dtype=torch.float64))
    index = torch.tensor([0, 1, 4, 5, 9, 10, 13])
    parts = list(posterior.weights(index, kind))
    assert [part for part, _ in parts] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    weights = torch.cat([each for _, each in parts]).double()
    expected = posterior.log_probs(kind).exp().reshape(-1, 4)[index]
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected, rtol=2e-6, atol=1e-9)
