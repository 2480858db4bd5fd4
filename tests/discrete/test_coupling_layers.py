"""Couplings and elementwise layers, beyond what the conformance suite asks of every bijection."""

import pytest
import torch
from torch import nn

from cflow import discrete


@pytest.mark.parametrize("mask", [None, [True, False, False, True], [True, True, False, False]])
def test_what_the_mask_does_not_name_stays_and_chooses(mask, generator):
    torch.manual_seed(0)
    layer = discrete.Coupling(discrete.Affine(), 4, mask=mask, hidden=(16,), activation="tanh")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    moves = torch.tensor([False, False, True, True] if mask is None else mask)
    x = torch.randn(4, generator=generator)
    assert torch.equal(layer.encode(x[None])[0][0][~moves], x[~moves])
    jacobian = torch.autograd.functional.jacobian(lambda x: layer.encode(x[None])[0][0], x)
    wanted = torch.eye(4).bool() | (moves[:, None] & ~moves[None])
    assert ((jacobian != 0) == wanted).all()


def test_layers_start_at_the_identity(generator):
    x, context = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    for layer in (
        discrete.Coupling(discrete.Affine(), 3, context=2),
        discrete.Autoregressive(discrete.Affine(), 3, context=2),
        discrete.Elementwise(discrete.Affine(), 3, context=2),
    ):
        z, ladj = layer.encode(x, context)
        assert torch.equal(z, x)
        assert torch.equal(ladj, torch.zeros(5))


def test_a_network_of_ones_own(generator):
    class Own(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.layer = nn.Linear(2, outputs)

        def forward(self, x, context=None):
            return self.layer(x)

    x = torch.randn(4, 4, generator=generator)
    layer = discrete.Coupling(discrete.Affine(), 4, network=Own(4))
    assert torch.allclose(layer.decode(layer.encode(x)[0])[0], x, atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \[4, 3\] for 2 features"):
        discrete.Coupling(discrete.Affine(), 4, network=Own(3)).encode(x)


@pytest.mark.parametrize("mask", [[True] * 3, [False] * 3, [True, False]])
def test_masks_that_make_no_coupling_are_refused(mask):
    with pytest.raises(ValueError, match="one truth value per feature"):
        discrete.Coupling(discrete.Affine(), 3, mask=mask)
    with pytest.raises(ValueError, match="Elementwise"):
        discrete.Coupling(discrete.Affine(), 1)


def test_the_scale_of_an_affine_map_is_clamped():
    raw = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    _, ladj = discrete.Affine(clamp=3.0).encode(torch.ones(2), raw)
    assert ladj.tolist() == [3.0, -3.0]
    _, ladj = discrete.Affine(clamp=torch.inf).encode(torch.ones(1), torch.tensor([[7.0, 0.0]]))
    assert ladj.tolist() == [7.0]
    with pytest.raises(ValueError, match="clamp must be positive"):
        discrete.Affine(clamp=0.0)
