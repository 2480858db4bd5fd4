import math

import pytest
import torch

from cflow import metrics
from cflow.bijections import Dequantise
from cflow.metrics import bits_per_dim


def test_uniform_images_take_eight_bits():
    # A uniform density on [0, 1]: with the transform's ladj, or with levels, the answer is log2(256).
    u, ladj = Dequantise((3, 4, 4)).encode(torch.zeros(5, 3, 4, 4, dtype=torch.uint8))
    density = torch.zeros(5)
    assert torch.allclose(bits_per_dim(density + ladj, (3, 4, 4)), torch.full((5,), 8.0))
    assert torch.allclose(bits_per_dim(density, (3, 4, 4), levels=256), torch.full((5,), 8.0))
    assert u.shape == (5, 3, 4, 4)


def test_nats_become_bits():
    assert float(bits_per_dim(torch.tensor(-4 * math.log(2)), 2)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="without dimensions"):
        bits_per_dim(torch.zeros(3), (3, 0))
    with pytest.raises(ValueError, match="levels=1"):
        bits_per_dim(torch.zeros(3), 3, levels=1)


def test_bits_and_perplexity_of_tokens():
    """A row of 10 tokens, each with probability 1/2, then each with probability 1/32."""
    rows = -10 * torch.tensor([2.0, 32.0], dtype=torch.float64).log()
    assert metrics.bits_per_token(rows, (2, 5)).tolist() == pytest.approx([1, 5])
    assert metrics.perplexity(rows, 10).tolist() == pytest.approx([2, 32])
    assert float(metrics.perplexity(rows.mean(), 10)) == pytest.approx(8)  # 2 to the mean of 1 and 5 bits
    for name in ("bits_per_token", "perplexity"):
        with pytest.raises(ValueError, match=f"{name}.*without tokens"):
            getattr(metrics, name)(rows, (3, 0))
