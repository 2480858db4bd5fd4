"""What is learned in the transforms of a flow: trained by likelihoods, refused where it would collapse."""

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, bijections, discrete, fields, objectives, paths, solvers, training


def learned(features=2, **options):
    return bijections.Standardise(features, learned=True, **options)


def discrete_flow(*transform):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = discrete.NormalizingFlow(discrete.Coupling(discrete.Affine(), 2, hidden=(8,)), bases.Normal(2))
    return flow.with_transform(*transform)


def continuous_flow(*transform):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = cflow.ContinuousFlow(
            fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(), solver=solvers.RK4(4)
        )
    return flow.with_transform(*transform)


def far(count=256):
    return 5 + 3 * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


FFJORD = objectives.FFJORD(solver=solvers.RK4(2, gradient=solvers.Checkpointed()))


@pytest.mark.parametrize(
    ("make", "objective"),
    [(discrete_flow, objectives.MaximumLikelihood()), (continuous_flow, objectives.MaximumLikelihood()),
     (continuous_flow, FFJORD)],
    ids=["discrete", "continuous", "FFJORD"],
)  # fmt: skip
def test_likelihoods_train_what_is_learned_in_a_transform(make, objective):
    flow = make(learned(loc=torch.zeros(2))).requires_grad_(False)
    flow.transform.requires_grad_(True)
    run = training.fit(flow, objective, far(), steps=150, batch_size=256, lr=0.1, ema=None)
    mean, deviation = far().mean(0), far().std(0)
    u, _ = flow.preprocess(far())
    if make is discrete_flow:  # starts at the identity: the layer alone has the answer in closed form
        torch.testing.assert_close(flow.transform[0].log_scale.exp(), 1 / deviation, rtol=0.05, atol=0)
        torch.testing.assert_close(flow.transform[0].shift, -mean / deviation, rtol=0.05, atol=0)
    assert u.mean(0).abs().max() < 0.5
    assert run.final_loss < run.history[0]["loss"] - 0.5


@pytest.mark.parametrize("objective", ["ReverseKL", "PathDerivative", "DoublyReparameterised", "ForwardKL"])
def test_variational_objectives_train_it_too(objective):
    target = lambda x: -0.5 * ((x - 2) / 0.5).square().sum(1)
    flow = discrete_flow(bijections.Inverse(learned()))
    flow.bijection.requires_grad_(False)
    training.fit(flow, getattr(objectives, objective)(target, samples=8), steps=300, batch_size=64, lr=0.03, ema=None)
    drawn = flow.sample((4000,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), torch.full((2,), 2.0), rtol=0, atol=0.15)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 0.5), rtol=0.25, atol=0)


MATCHING = {
    "FlowMatching": objectives.FlowMatching(),
    "RectifiedFlow": objectives.RectifiedFlow(),
    "MultiMarginal": objectives.MultiMarginal((0.0, 1.0)),
    "ConsistencyFlowMatching": objectives.ConsistencyFlowMatching(),
    "Reflow": objectives.Reflow(),
    "Distillation": objectives.Distillation(1),
}


@pytest.mark.parametrize("name", MATCHING)
def test_matching_refuses_a_transform_that_would_shrink_the_data_to_a_point(name):
    flow, objective = continuous_flow(learned()), MATCHING[name]
    flow.path = None if name == "MultiMarginal" else flow.path
    x = far() if objective.samples_per_item is None else torch.stack([far(), far()], 1)
    message = r"transform.maps.0.log_scale.*requires_grad_\(False\).*MaximumLikelihood"
    with pytest.raises(ValueError, match=message):
        objective(flow, x)
    with pytest.raises(ValueError, match=message):
        training.fit(flow, objective, x, steps=1, batch_size=64)
    flow.transform.requires_grad_(False)
    before = flow.transform.state_dict()
    assert objective(flow, x).isfinite().all()
    training.fit(flow, objective, x, steps=2, batch_size=64)
    assert all(torch.equal(before[key], value) for key, value in flow.transform.state_dict().items())


@pytest.mark.parametrize("place", ["in front", "inside"])
@pytest.mark.parametrize("turned", [False, True])
def test_fit_initialises_what_measures_its_first_batch(place, turned):
    norm = bijections.ActNorm(2)
    layer = bijections.Inverse(norm) if turned else norm
    flow = discrete_flow(layer)
    if place == "inside":
        flow = discrete.NormalizingFlow(discrete.Compose(layer, flow.bijection), flow.base)
    flow.sample((5,))  # in training mode: samples are nothing to measure
    assert not norm.initialised
    training.fit(flow, objectives.MaximumLikelihood(), far(), steps=1, batch_size=256, lr=1e-9, ema=None)
    assert norm.initialised
    u, _ = layer.eval().encode(far())
    torch.testing.assert_close(u.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(2), rtol=1e-4, atol=0)


def test_matching_takes_a_frozen_act_norm_that_measures():
    norm = bijections.ActNorm(2).requires_grad_(False)
    flow = continuous_flow(norm)
    training.fit(flow, objectives.FlowMatching(), far(), steps=3, batch_size=256, prefetch=3)
    torch.testing.assert_close(norm.loc, far().mean(0), rtol=1e-4, atol=1e-4)


def dequantised():
    """Draws ahead of what is learned, and noise within."""
    return discrete_flow(bijections.Dequantise(2, 16), learned(), bijections.Logit(2, 0.2))


def levels(count=120):
    return torch.randint(16, (count, 2), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def narrow():
    """The learned map outermost, on whole numbers."""
    return discrete_flow(learned(loc=8.0, scale=4.0))


@pytest.mark.parametrize("make", [dequantised, narrow])
def test_a_run_with_a_learned_transform_resumes_to_the_bit(make, tmp_path):
    options = {"batch_size": 30, "lr": 1e-3, "checkpoint_every": 4, "schedule": training.Constant()}
    whole, cut = make(), make()
    start = [each.clone() for each in whole.transform.parameters()]
    training.fit(whole, objectives.MaximumLikelihood(), levels(), steps=8, **options)
    training.fit(cut, objectives.MaximumLikelihood(), levels(), steps=4, out=tmp_path, **options)
    again = make()
    training.fit(again, objectives.MaximumLikelihood(), levels(), steps=8, out=tmp_path, resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert not any(torch.equal(a, b) for a, b in zip(start, whole.transform.parameters()))


@pytest.mark.parametrize("make", [dequantised, narrow])
def test_pieces_pools_and_workers_change_nothing(make):
    found = []
    for options in ({}, {"accumulate": 3}, {"prefetch": 3, "workers": 2}, {"pool": 2}):
        flow = make().double()
        fixed = {"steps": 4, "batch_size": 30, "ema": None}
        run = training.fit(flow, objectives.MaximumLikelihood(), levels(), **fixed, **options)
        found.append((flow, run))
    wanted = nn.utils.parameters_to_vector(found[0][0].parameters())
    for flow, _ in found[1:3]:
        torch.testing.assert_close(nn.utils.parameters_to_vector(flow.parameters()), wanted, rtol=1e-9, atol=1e-12)
    if make is narrow:  # without draws a pool is the same batches
        torch.testing.assert_close(nn.utils.parameters_to_vector(found[3][0].parameters()), wanted)


def test_a_call_by_hand_is_that_of_log_prob(generator):
    x = levels()
    for flow in (dequantised(), narrow()):
        loss = objectives.MaximumLikelihood()(flow, x, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(-loss, flow.log_prob(x, generator=torch.Generator().manual_seed(3)))
        loss.mean().backward()
        assert all(each.grad is not None and each.grad.any() for each in flow.transform.parameters())


def test_a_learned_transform_may_change_the_shape_and_read_the_context(generator):
    class Scaled(bijections.Bijection):
        def __init__(self):
            super().__init__((2, 1), (), latent_shape=2)
            self.table = nn.Parameter(torch.zeros(3))

        def encode(self, x, context=None, *, generator=None):
            x, context = self.accept(x, context, "encode")
            s = self.table[context]
            return x.squeeze(2) * s.exp()[:, None], 2 * s

        def decode(self, z, context=None, *, generator=None):
            z, context = self.accept(z, context, "decode")
            s = self.table[context]
            return (z * (-s).exp()[:, None]).unsqueeze(2), -2 * s

    field = fields.MLP(2, hidden=(8,), classes=3)
    flow = cflow.ContinuousFlow(field, bases.Normal(2), solver=solvers.RK4(2), context_shape=())
    flow.field.requires_grad_(False)  # starts at a velocity of zero
    flow = flow.with_transform(Scaled())
    labels = torch.randint(3, (300,), generator=generator)
    x = torch.randn(300, 2, 1, generator=generator) * torch.tensor([0.2, 1.0, 5.0])[labels][:, None, None]
    training.fit(flow, FFJORD, (x, labels), steps=120, batch_size=100, lr=0.1, ema=None, seed=1)
    wanted = -torch.tensor([0.2, 1.0, 5.0]).log()
    torch.testing.assert_close(flow.transform[0].table, wanted, rtol=0, atol=0.15)
