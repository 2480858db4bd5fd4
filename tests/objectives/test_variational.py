"""Reverse divergences against Gaussian pairs, whose divergences and gradients are known in closed form."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Beta, MultivariateNormal, kl_divergence
from variational_standins import LOG_Z, NORMAL, Linear, law, mean_gradient, pair, parameters

import cflow
from cflow import bases, bijections, discrete, fields, solvers, training
from cflow.divergence import Hutchinson
from cflow.objectives.variational.importance_weighted import AlphaDivergence, DoublyReparameterised, ForwardKL
from cflow.objectives.variational.reverse_kl import PathDerivative, ReverseKL

F64 = torch.float64
ALL = [
    ReverseKL,
    PathDerivative,
    DoublyReparameterised,
    AlphaDivergence,
    ForwardKL,
    lambda log_joint: ForwardKL(log_joint, path=True),
]
LANDS = [each for each in ALL if each not in (ReverseKL, ForwardKL)]
KINDS = ["discrete", "continuous"]


def nonlinear(kind, steps=6):
    """A flow that is in no simple family of laws, in float64."""
    torch.manual_seed(1)
    if kind == "continuous":
        flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(16,)), bases.Normal(2), solver=solvers.RK4(steps=steps))
    else:
        flow = discrete.PRESETS[kind](2, layers=2, hidden=(16,))
    with torch.no_grad():
        for each in flow.parameters():
            each.add_(0.15 * torch.randn_like(each))
    return flow.double()


def moved(flow, size, generator):
    """The flow, and a frozen copy of what it was before its parameters moved by so much."""
    target = copy.deepcopy(flow).requires_grad_(False)
    with torch.no_grad():
        for each in flow.parameters():
            each.add_(size * torch.randn(each.shape, generator=generator, dtype=F64))
    return flow, target


@pytest.mark.parametrize("objective", [ReverseKL, PathDerivative])
@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_divergence_less_the_log_evidence(kind, objective, generator):
    flow, log_joint = pair(kind)
    with torch.no_grad():
        losses = objective(log_joint, samples=2)(flow, 4000, generator=generator)
        truth = kl_divergence(law(flow), NORMAL) - LOG_Z
    assert losses.shape == (4000,)
    assert abs(losses.mean() - truth) < 4.5 * losses.std() / math.sqrt(4000)  # fails once in 100,000 seeds
    assert losses.std() / math.sqrt(4000) < 0.05


@pytest.mark.parametrize("objective", [ReverseKL, PathDerivative])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_divergence(kind, objective, generator):
    flow, log_joint = pair(kind)
    truth = parameters(torch.autograd.grad(kl_divergence(law(flow), NORMAL), list(flow.parameters())))
    mean, error = mean_gradient(objective(log_joint), flow, 100, 200, generator)
    # Six Student-t values of 99 degrees: one beyond 4.5 in 10,000 seeds.
    assert bool(((mean - truth).abs() < 4.5 * error + 1e-9).all())
    assert error.norm() < 0.05 * truth.norm()


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("kind", ["nsf", "maf", "continuous"])
def test_at_the_target_the_loss_is_known_and_path_gradients_vanish(kind, objective, generator):
    flow, target = moved(nonlinear(kind), 0.0, generator)
    made = objective(lambda x: target.log_prob(x) + LOG_Z)
    losses = made(flow, 64, generator=generator)
    losses.mean().backward()
    # One pass of a continuous flow has the solver's error; two passes have the same as the target.
    loose = 5e-3 if (kind, objective) == ("continuous", ReverseKL) else 1e-10
    known = 0.0 if isinstance(made, ForwardKL) else -LOG_Z
    assert torch.allclose(losses, torch.full_like(losses, known), atol=loose)
    largest = max(float(each.grad.abs().max()) for each in flow.parameters() if each.grad is not None)
    if objective in LANDS:
        assert largest < 1e-10
    else:
        assert largest > 1e-2  # the score: of mean zero, but there


def test_a_finer_solver_lands_better(generator):
    """What is left of a continuous flow's path gradient at an exact target is the solver's error, of fourth order."""
    flow, _ = pair("continuous")
    target = law(flow)
    target = MultivariateNormal(target.loc.detach(), target.covariance_matrix.detach())
    left = []
    for steps in (2, 4, 8):
        flow.solver = solvers.RK4(steps=steps)
        loss = PathDerivative(target.log_prob)(flow, 64, generator=generator.manual_seed(0)).mean()
        left.append(parameters(torch.autograd.grad(loss, list(flow.parameters()))).abs().max())
    assert 10 * left[1] < left[0] < 1e-3
    assert 10 * left[2] < left[1]


@pytest.mark.parametrize("kind", ["realnvp", "continuous"])
def test_near_the_target_the_path_derivative_is_quieter(kind, generator):
    flow, target = moved(nonlinear(kind, steps=3), 0.01, generator)
    spread = {
        objective: mean_gradient(objective(target.log_prob), flow, 20, 16, generator)[1].norm()
        for objective in (ReverseKL, PathDerivative)
    }
    assert spread[PathDerivative] < 0.2 * spread[ReverseKL]


@pytest.mark.parametrize("gradient", [solvers.Backprop(), solvers.Checkpointed()])
@pytest.mark.parametrize("objective", ALL)
def test_every_way_through_the_solver_gives_the_same_gradient(objective, gradient):
    flow = nonlinear("continuous")
    grads = []
    for each in (solvers.Backprop(), gradient):
        flow.solver = solvers.RK4(steps=3, gradient=each)
        loss = objective(lambda x: -0.5 * (x - 1).square().sum(1))(flow, 8, generator=torch.Generator().manual_seed(3))
        grads.append(parameters(torch.autograd.grad(loss.mean(), list(flow.parameters()))))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", [ReverseKL, PathDerivative])
def test_an_estimated_divergence_is_unbiased(objective, generator):
    """With Hutchinson's probes the value and the gradient have the same expectation."""
    flow, log_joint = pair("continuous")
    truth = kl_divergence(law(flow), NORMAL)
    wanted = parameters(torch.autograd.grad(truth, list(flow.parameters())))
    flow.divergence = Hutchinson()
    assert flow.likelihood == "estimate"
    torch.manual_seed(0)
    with torch.no_grad():
        losses = objective(log_joint)(flow, 4000, generator=generator)
    assert abs(losses.mean() - (truth - LOG_Z)) < 4.5 * losses.std() / math.sqrt(4000)  # once in 100,000 seeds
    mean, error = mean_gradient(objective(log_joint), flow, 60, 300, generator)
    assert bool(((mean - wanted).abs() < 4.5 * error + 1e-9).all())  # once in 10,000 seeds


def test_items_are_averages_over_their_own_samples_and_contexts(generator):
    torch.manual_seed(0)
    flow = discrete.maf(2, context=3, layers=2, hidden=(8,)).double()
    context = torch.randn(5, 3, generator=generator, dtype=F64)
    log_joint = lambda x, c: -0.5 * (x - c[:, :2]).square().sum(1) + c[:, 2]
    for objective in (ReverseKL, PathDerivative):
        made = objective(log_joint, samples=4)
        batch = made.prepare(flow.base, torch.empty(5, 0), context, generator)
        assert batch.z.shape == (5, 4, 2)
        losses = made.loss(flow, batch)
        x, ladj = flow.decode(batch.z, context[:, None])
        by_hand = flow.base.log_prob(batch.z) - ladj
        by_hand = by_hand + 0.5 * (x - context[:, None, :2]).square().sum(2) - context[:, None, 2]
        torch.testing.assert_close(losses, by_hand.mean(1))


@pytest.mark.parametrize("objective", [ReverseKL, PathDerivative])
def test_transforms_onto_the_support_count(objective, generator):
    """A logit-normal towards a Beta law times e^2, by quadrature."""
    flow = (
        discrete.NormalizingFlow(discrete.LULinear(1), bases.Normal(1))
        .double()
        .with_transform(bijections.Logit(1, alpha=0.0))
    )
    beta = Beta(torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64))
    with torch.no_grad():
        losses = objective(lambda x: beta.log_prob(x[:, 0]) + 2)(flow, 20_000, generator=generator)
    grid = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    with torch.no_grad():
        log_q = flow.log_prob(grid[:, None])
    truth = (log_q.exp() * (log_q - beta.log_prob(grid) - 2)).mean()
    assert abs(losses.mean() - truth) < 4.5 * losses.std() / math.sqrt(20_000)  # fails once in 100,000 seeds


@pytest.mark.parametrize("objective", LANDS)
def test_layers_that_watch_their_batch_land_too(objective, generator):
    torch.manual_seed(0)
    layers = [discrete.ActNorm(2), discrete.LULinear(2), discrete.BatchNorm(2), discrete.LULinear(2)]
    flow = discrete.NormalizingFlow(discrete.Compose(*layers), bases.Normal(2)).double()
    target = copy.deepcopy(flow).eval().requires_grad_(False)
    objective(target.log_prob)(flow, 32, generator=generator).mean().backward()
    assert max(float(each.grad.abs().max()) for each in flow.parameters()) < 1e-12
    assert all(part.training for part in flow.modules())
    assert not bool(layers[0].initialised)


def test_parameters_of_the_target_learn_the_evidence(generator):
    """A model x ~ N(0, 1), c | x ~ N(x + theta, 1) whose marginal is N(theta, 2): both parts by one objective."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, x, c):
            normal = lambda value: -0.5 * value.square().sum(1) - 0.5 * math.log(2 * math.pi)
            return normal(x) + normal(c - x - self.theta)

    contexts = 1.5 + math.sqrt(2) * torch.randn(2000, 1, generator=generator, dtype=F64)
    torch.manual_seed(0)
    layer = discrete.Elementwise(discrete.Affine(), 1, context=1, hidden=(8,), activation="tanh")
    flow = discrete.NormalizingFlow(layer, bases.Normal(1)).double()
    model = Model()
    # Where q is the posterior, the gradient is that of the evidence: by finite data, the mean of the contexts.
    training.fit(
        flow, PathDerivative(model), contexts, steps=200, batch_size=250, lr=3e-2, seed=0, ema=training.EMA(0.95)
    )
    assert abs(model.theta.item() - float(contexts.mean())) < 0.05
    c = torch.tensor([[0.0], [2.0]], dtype=F64)
    x = flow.sample((5000,), c, generator=generator)
    assert x.mean(0)[:, 0].tolist() == pytest.approx(((c - model.theta.item()) / 2).flatten().tolist(), abs=0.06)
    assert x.std(0)[:, 0].tolist() == pytest.approx([math.sqrt(0.5)] * 2, abs=0.05)
    # The bound is tight: the loss is minus the log-evidence of each context.
    evidence = torch.distributions.Normal(model.theta.item(), math.sqrt(2)).log_prob(c[:, 0])
    with torch.no_grad():
        losses = PathDerivative(model, samples=500)(flow, context=c, generator=generator)
    assert losses.tolist() == pytest.approx((-evidence).tolist(), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_the_gaussian(kind):
    flow, log_joint = pair(kind)
    before = kl_divergence(law(flow), NORMAL).item()
    run = training.fit(flow, PathDerivative(log_joint), steps=100, batch_size=32, lr=5e-2, seed=0, ema=None)
    assert before > 0.5
    assert kl_divergence(law(flow), NORMAL).item() < 1e-3
    assert run.final_loss == pytest.approx(-LOG_Z, abs=0.01)


def flow_of(base, *transforms):
    return discrete.NormalizingFlow(discrete.LULinear(2), base).with_transform(*transforms)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (flow_of(bases.Empirical(torch.randn(8, 2))), "likelihood 'none'.*no density.*bases.Normal"),
        (flow_of(bases.Normal(2), bijections.Dequantise(2)), "likelihood 'bound'.*omit them"),
        (flow_of(bases.Normal(2, loc=nn.Parameter(torch.zeros(2)))), "is trainable.*Elementwise"),
    ],
)
@pytest.mark.parametrize("objective", ALL)
def test_flows_that_cannot_be_used_are_refused(objective, flow, message):
    with pytest.raises(ValueError, match=message):
        objective(lambda x: -x.square().sum(1))(flow, 8)


@pytest.mark.parametrize("objective", [each for each in ALL if each not in (ReverseKL, PathDerivative)])
def test_weights_of_an_estimated_density_are_refused(objective):
    flow = cflow.ContinuousFlow(Linear(2), bases.Normal(2), divergence=Hutchinson())
    with pytest.raises(ValueError, match=r"likelihood 'estimate'.*exact density.*divergence=Exact\(\)"):
        objective(lambda x: -x.square().sum(1))(flow, 8)


def test_a_flow_that_is_no_bijection_is_refused():
    class Other(cflow.BaseFlow):
        likelihood = "exact"

        def __init__(self):
            super().__init__(2)
            self.base = bases.Normal(2)

    with pytest.raises(TypeError, match="a .*Other is not invertible"):
        ReverseKL(lambda x: x.sum(1))(Other(), 8)
    other = Other()
    del other.base
    with pytest.raises(TypeError, match="the flow has no base"):
        ReverseKL(lambda x: x.sum(1)).prepare(None, torch.empty(3, 0))


@pytest.mark.parametrize(
    ("log_joint", "message"),
    [
        (lambda x: x.sum(), r"returned shape \[\] for x of shape \[8, 2\].*\[8\]"),
        (lambda x: x, r"returned shape \[8, 2\]"),
        (lambda x: 1.0, "returned a float"),
        (lambda x: x.detach().sum(1), "without a gradient.*ForwardKL"),
    ],
)
@pytest.mark.parametrize("objective", [ReverseKL, PathDerivative, lambda target: AlphaDivergence(target, samples=2)])
def test_targets_that_cannot_be_used_are_refused(objective, log_joint, message):
    made = objective(log_joint)
    with pytest.raises(ValueError, match=message):
        made(discrete.maf(2, layers=1), 8 // made.samples)


def test_arguments_are_checked():
    flow = discrete.maf(2, layers=1)
    for wrong in (None, "normal", nn.Linear):
        with pytest.raises(TypeError, match="ReverseKL"):
            ReverseKL(wrong)
    for wrong, kind in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(kind, match=f"samples={wrong}"):
            ReverseKL(lambda x: x.sum(1), samples=wrong)
    with pytest.raises(ValueError, match="the number of items is not given"):
        ReverseKL(lambda x: x.sum(1))(flow)
    with pytest.raises(ValueError, match=r"\[4, 5\] items"):
        ReverseKL(lambda x: x.sum(1))(flow, 4, torch.zeros(5, 3))
