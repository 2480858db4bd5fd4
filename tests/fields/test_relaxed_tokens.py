"""Networks on tokens at vectors: equal to the network at one-hot vectors, and inside a flow."""

import pytest
import torch
from torch.nn.functional import one_hot

import cflow
from cflow import bases, divergence, fields, objectives, solvers


def filled(network, generator):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


NETWORKS = {
    "transformer": lambda **options: fields.TokenDiT(6, 5, 5, width=16, depth=1, heads=2, **options),
    "convolutions": lambda **options: fields.TokenConv(6, 5, 5, width=16, depth=1, kernel=3, **options),
}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@each_network
@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"self_conditioning": True}], ids=str)
def test_it_is_the_network_at_one_hot_vectors(make, options, generator):
    network = filled(make(**options), generator)
    x, t = torch.randint(5, (4, 6), generator=generator), torch.rand(4, generator=generator)
    context = torch.tensor([0, 1, 2, 3]) if "classes" in options else None
    relaxed = fields.RelaxedTokens(network)
    torch.testing.assert_close(relaxed(t, one_hot(x, 5).float(), context), network(t, x, context))
    assert not relaxed.self_conditioned
    assert relaxed.event_shape == (6, 5)


@each_network
def test_a_flow_trains_samples_and_bounds_with_it(make, generator):
    network = fields.RelaxedTokens(filled(make(classes=3), generator))
    flow = cflow.RelaxedFlow(network, bases.Normal((6, 5)), solver=solvers.RK4(2))
    x, labels = torch.randint(5, (4, 6), generator=generator), torch.tensor([0, 1, 2, 0])
    loss = objectives.FlowMatching(condition_dropout=0.5)(flow, x, labels, generator=generator).mean()
    loss.backward()
    assert all(each.grad is not None for each in network.parameters())
    assert flow.sample((2,), labels, generator=generator).shape == (2, 4, 6)
    seeded = lambda: torch.Generator().manual_seed(1)
    exact = flow.log_prob(x, labels, generator=seeded())
    assert exact.isfinite().all()
    other = flow.log_prob(x, (labels + 1) % 3, generator=seeded(), divergence=divergence.Hutchinson())
    assert (exact - other).abs().min() > 1e-4


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match="not a network on tokens"):
        fields.RelaxedTokens(fields.MLP(3))
    with pytest.raises(ValueError, match="6 states for a vocabulary of 5"):
        fields.RelaxedTokens(fields.TokenConv(4, 6, 5, width=8, depth=1))
