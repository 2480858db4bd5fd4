"""Bridge matching: minimisers, antithetic noise, reproducibility, learned Gaussian bridges."""

import copy

import pytest
import torch

import cflow
from cflow import bases, couplings, fields, objectives, paths, training
from cflow.objectives import BridgeMatching
from cflow.testing import GaussianBridgeField


def bridge_flow(predict="score", **options):
    path = paths.BrownianBridge(0.8, predict)
    field = GaussianBridgeField(path).double()
    return cflow.ContinuousFlow(field, bases.Normal(1, *field.source), path=path, **options).double(), field


@pytest.mark.parametrize("predict", paths.Interpolant.predictions)
def test_the_closed_form_minimises_the_loss(predict, generator):
    flow, field = bridge_flow(predict)
    data = field.target[0] + field.target[1] * torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    batch = BridgeMatching().make_batch(flow, data, generator=generator)
    # Inside, where the velocity's own target has a bounded variance.
    batch.t = 0.05 + 0.9 * batch.t
    best = BridgeMatching().loss(flow, batch)

    class Off(torch.nn.Module):
        def __init__(self, factor, shift):
            super().__init__()
            self.factor, self.shift = factor, shift

        def forward(self, t, x, context=None, *, s=None):
            return self.factor * field(t, x) + self.shift

    for factor, shift in ((1.1, 0.0), (0.9, 0.0), (1.0, 0.1), (1.0, -0.1)):
        other = cflow.ContinuousFlow(Off(factor, shift), flow.base, path=flow.path).double()
        gain = best - BridgeMatching().loss(other, batch)
        # The same draws on both sides: the difference is negative by many standard errors.
        assert float(gain.mean()) < -4 * float(gain.std()) / 100_000**0.5


def test_antithetic_noise_takes_variance_out_of_a_velocitys_loss(generator):
    flow, field = bridge_flow("velocity")
    data = field.target[0] + field.target[1] * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    batch = BridgeMatching().make_batch(flow, data, generator=generator)
    gradients = {}
    for antithetic in (False, True):
        shift = torch.zeros(4000, 1, dtype=torch.float64, requires_grad=True)

        class Shifted(torch.nn.Module):
            def forward(self, t, x, context=None, *, s=None, shift=shift):
                return field(t, x) + (shift if len(x) == 4000 else torch.cat((shift, shift)))

        shifted = cflow.ContinuousFlow(Shifted(), flow.base, path=flow.path).double()
        loss = BridgeMatching(antithetic=antithetic).loss(shifted, copy.copy(batch))
        (gradients[antithetic],) = torch.autograd.grad(loss.sum(), shift)
    assert gradients[True].var() < 0.5 * gradients[False].var()
    assert abs(float((gradients[True] - gradients[False]).mean())) < 5 * float(gradients[False].std()) / 4000**0.5


def test_a_generator_fixes_every_draw():
    flow, _ = bridge_flow()
    x = torch.randn(16, 1, dtype=torch.float64)
    objective = BridgeMatching(couplings.OptimalTransport())
    losses = [objective(flow, x, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*losses)


def test_conditions_are_dropped_for_both_signs_of_the_noise(generator):
    field = fields.MLP(2, classes=3, outputs=2)
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.BrownianBridge(), context_shape=())
    objective = BridgeMatching(condition_dropout=0.5, antithetic=True)
    x, labels = torch.randn(12, 2, generator=generator), torch.arange(12) % 3
    assert objective(flow, x, labels, generator=generator).shape == (12,)


def test_fit_learns_velocity_and_score_of_a_gaussian_bridge(generator):
    flow, field = bridge_flow()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = fields.MLP(1, hidden=(64, 64), outputs=2)
    trained = cflow.ContinuousFlow(network, bases.Normal(1, *field.source), path=flow.path)
    data = field.target[0] + field.target[1] * torch.randn(20_000, 1, generator=generator)
    training.fit(trained, BridgeMatching(), data, steps=1500, batch_size=512, lr=3e-3, seed=1)
    x = torch.linspace(-0.8, 0.8, 20)[:, None]  # within two deviations at all three times
    for t in (0.25, 0.5, 0.75):
        assert torch.allclose(trained.velocity(t, x), flow.velocity(t, x).float(), atol=0.15)
        assert torch.allclose(trained.score(t, x), flow.score(t, x).float(), atol=0.2)


def test_flow_matching_trains_every_path_as_it_stands():
    """Noise is drawn ahead of the step by the path itself; bridge matching overrides the loss alone."""
    flow, _ = bridge_flow()
    x = torch.randn(16, 1, dtype=torch.float64)
    draw = lambda objective: objective(flow, x, generator=torch.Generator().manual_seed(4))
    assert torch.equal(draw(objectives.FlowMatching()), draw(BridgeMatching()))
    batch = objectives.FlowMatching().make_batch(flow, x, generator=torch.Generator().manual_seed(4))
    assert batch.noise.shape == x.shape


def test_paths_and_objectives_that_do_not_go_together_are_refused():
    affine = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    bridge = cflow.ContinuousFlow(fields.MLP(2, outputs=2), bases.Normal(2), path=paths.BrownianBridge())
    with pytest.raises(ValueError, match=r"BridgeMatching: .*objectives.FlowMatching"):
        BridgeMatching()(affine, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"ConsistencyFlowMatching: .*objectives.BridgeMatching"):
        objectives.ConsistencyFlowMatching()(bridge, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the flow has no path; build it"):
        BridgeMatching()(cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2)), torch.zeros(3, 2))
    for weight in (objectives.MinSNR(), objectives.VelocityWeight()):
        with pytest.raises(ValueError, match="this weight needs an affine path"):
            BridgeMatching(weight=weight)(bridge, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"returned shape \[3, 1\] for 3 items"):
        objectives.FlowMatching(weight=lambda path, t: t[:, None])(affine, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"BridgeMatching\(condition_dropout=2\)"):
        BridgeMatching(condition_dropout=2)
