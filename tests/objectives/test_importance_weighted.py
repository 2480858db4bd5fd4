"""Objectives of several weighted samples: bounds, gradients by two independent ways, and forward divergences."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence
from variational_standins import LOG_Z, NORMAL, law, mean_gradient, pair, parameters

import cflow
from cflow import discrete, training
from cflow.objectives.variational.importance_weighted import AlphaDivergence, DoublyReparameterised, ForwardKL
from cflow.objectives.variational.reverse_kl import PathDerivative, ReverseKL

F64 = torch.float64


class Plain(nn.Module):
    """The bound of K samples with its plain reparameterised gradient, by autograd alone."""

    def __init__(self, log_joint, alpha, samples):
        super().__init__()
        self.log_joint, self.order, self.samples = log_joint, 1 - alpha, samples

    def forward(self, flow, count, generator):
        x, log_q = flow.rsample_and_log_prob((count, self.samples), generator=generator)
        log_weights = self.log_joint(x.flatten(0, 1)).reshape(log_q.shape) - log_q
        return -((self.order * log_weights).logsumexp(1) - math.log(self.samples)) / self.order


def differences(one, other, flow, batches, size):
    """Gradients of two losses on the same draws: the mean difference, its standard error, and the mean of the first."""
    both = []
    for seed in range(batches):
        draw = lambda loss, seed=seed: loss(flow, size, generator=torch.Generator().manual_seed(seed)).mean()
        both.append([parameters(torch.autograd.grad(draw(loss), list(flow.parameters()))) for loss in (one, other)])
    both = torch.stack([torch.stack(pair) for pair in both])
    apart = both[:, 0] - both[:, 1]
    return apart.mean(0), apart.std(0) / math.sqrt(batches), both[:, 0].mean(0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -0.5])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_values_and_mean_gradients_are_those_of_the_plain_bound(kind, alpha, generator):
    flow, log_joint = pair(kind)
    objective, plain = AlphaDivergence(log_joint, alpha, samples=3), Plain(log_joint, alpha, 3)
    losses = [each(flow, 64, generator=generator.manual_seed(5)) for each in (objective, plain)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-3 if kind == "continuous" else 1e-9)
    batches, size = (100, 400) if kind == "discrete" else (40, 200)
    apart, error, mean = differences(objective, plain, flow, batches, size)
    # Six Student-t values of 39 degrees or more: one beyond 5 in 10,000 seeds. The solver's error is below 1e-3.
    assert bool((apart.abs() < 5 * error + (1e-3 if kind == "continuous" else 1e-9)).all())
    assert error.norm() < 0.1 * mean.norm()


def test_the_doubly_reparameterised_bound_is_alpha_zero(generator):
    flow, log_joint = pair("discrete")
    results = []
    for objective in (AlphaDivergence(log_joint, 0.0, 5), DoublyReparameterised(log_joint, 5)):
        loss = objective(flow, 32, generator=generator.manual_seed(0))
        results.append((loss, *torch.autograd.grad(loss.mean(), list(flow.parameters()))))
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_bounds_are_ordered(generator):
    """-log Z <= L_IWAE <= L_alpha <= L_reverse, and more samples tighten the bound."""
    flow, log_joint = pair("discrete")
    objectives = [
        DoublyReparameterised(log_joint, 64),
        DoublyReparameterised(log_joint, 4),
        AlphaDivergence(log_joint, 0.5, 4),
        AlphaDivergence(log_joint, 0.999, 4),
        PathDerivative(log_joint, 4),
    ]
    with torch.no_grad():
        values = [each(flow, 8000, generator=generator.manual_seed(0)).mean() for each in objectives]
    assert -LOG_Z - 0.02 < values[0] < values[1] - 0.02
    assert values[1] < values[2] - 0.02
    assert values[2] < values[3] - 0.02
    assert abs(values[3] - values[4]) < 0.02
    # For many samples the Rényi divergence of two Gaussians is known: D_1/2 = -2 log of the Bhattacharyya coefficient.
    with torch.no_grad():
        many = AlphaDivergence(log_joint, 0.5, 4000)(flow, 40, generator=generator)
        one = law(flow)
        apart = one.loc - NORMAL.loc
        middle = (one.covariance_matrix + NORMAL.covariance_matrix) / 2
        dets = one.covariance_matrix.logdet() + NORMAL.covariance_matrix.logdet()
        distance = apart @ torch.linalg.solve(middle, apart) / 8 + 0.5 * (middle.logdet() - dets / 2)
    # Forty values of standard deviation below 0.05.
    assert abs(many.mean() - (2 * distance - LOG_Z)) < 4.5 * many.std() / math.sqrt(40) + 1e-3


def test_parameters_of_the_target_get_the_gradient_of_the_bound(generator):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([0.3, -0.2], dtype=F64))

        def forward(self, x):
            return NORMAL.log_prob(x - self.shift)

    flow, _ = pair("discrete")
    grads = []
    for alpha in (0.0, 0.5):
        model = Model()
        for objective in (AlphaDivergence(model, alpha, 6), Plain(model, alpha, 6)):
            loss = objective(flow, 50, generator=generator.manual_seed(2)).mean()
            grads.append(torch.autograd.grad(loss, model.shift)[0])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[2], grads[3])
    assert not torch.allclose(grads[0], grads[2])


def test_samples_outside_the_support_have_no_say(generator):
    """A target on a half-plane: of value -inf, and of gradient NaN, on the other one."""
    flow, _ = pair("discrete")

    def half(x):
        return torch.where(x[:, 0] > 0, NORMAL.log_prob(x) + x[:, 0].clamp(min=-1).sqrt(), -torch.inf)

    for objective in (DoublyReparameterised(half, 16), ForwardKL(half, 16), ForwardKL(half, 16, path=True)):
        loss = objective(flow, 64, generator=generator)
        loss.mean().backward()
        assert bool(loss.isfinite().all())
        assert all(bool(each.grad.isfinite().all()) for each in flow.parameters())
        assert 1 < float(objective.metrics["effective_samples"]) < 16


@pytest.mark.parametrize("path", [False, True])
def test_with_many_samples_it_is_the_forward_divergence(path, generator):
    flow, log_joint = pair("discrete")
    truth = kl_divergence(NORMAL, law(flow))
    wanted = parameters(torch.autograd.grad(truth, list(flow.parameters())))
    objective = ForwardKL(log_joint, 20_000, path=path)
    with torch.no_grad():
        values = objective(flow, 20, generator=generator)
    # Self-normalised: a bias of order 1 / K, a thousandth here.
    assert abs(values.mean() - truth) < 4.5 * values.std() / math.sqrt(20) + 2e-3  # fails once in 10,000 seeds
    mean, error = mean_gradient(objective, flow, 20, 2, generator)
    assert bool(((mean - wanted).abs() < 6 * error + 2e-3).all())  # Student-t of 19 degrees: once in 10,000 seeds
    assert error.norm() < 0.1 * wanted.norm()


def test_both_forward_gradients_have_one_expectation(generator):
    flow, log_joint = pair("discrete")
    apart, error, mean = differences(
        ForwardKL(log_joint, 4), ForwardKL(log_joint, 4, path=True), flow, batches=100, size=400
    )
    assert bool((apart.abs() < 5 * error).all())  # fails once in 10,000 seeds
    assert error.norm() < 0.1 * mean.norm()


def test_forward_values_lie_between_zero_and_the_logarithm_of_samples(generator):
    flow, _ = pair("discrete")
    for distance in (0.0, 3.0, 300.0):
        values = ForwardKL(lambda x, far=distance: -(x - far).square().sum(1), 8)(flow, 100, generator=generator)
        assert bool(((values > -1e-12) & (values < math.log(8) + 1e-12)).all())


def test_a_black_box_will_do_for_the_forward_divergence():
    def simulator(x):
        return torch.as_tensor(NORMAL.log_prob(x.detach()).numpy())

    flow, _ = pair("discrete")
    training.fit(flow, ForwardKL(simulator, 64), steps=150, batch_size=16, lr=5e-2, seed=0, ema=training.EMA(0.95))
    with torch.no_grad():
        assert float(kl_divergence(NORMAL, law(flow))) < 0.01
    for objective in (ForwardKL(simulator, path=True), ReverseKL(simulator)):
        with pytest.raises(ValueError, match="without a gradient"):
            objective(flow, 8)


def test_the_forward_divergence_covers_both_modes():
    """Two far modes: from the same start the reverse divergence settles on one, the forward one covers both."""
    modes = torch.tensor([-5.0, 5.0], dtype=F64)
    log_joint = lambda x: torch.logsumexp(-0.5 * (x - modes).square(), 1)
    scales = {}
    for name, objective in (("forward", ForwardKL(log_joint, 64)), ("reverse", PathDerivative(log_joint))):
        flow = discrete.NormalizingFlow(discrete.LULinear(1), cflow.bases.Normal(1)).double()
        with torch.no_grad():
            flow.bijection.weight.fill_(-1.5)  # wide: a scale of 4.5
            flow.bijection.shift.fill_(-0.8)  # and nearer to one of them
        training.fit(flow, objective, steps=200, batch_size=32, lr=5e-2, seed=0, ema=training.EMA(0.95))
        scales[name] = float(torch.exp(-flow.bijection.weight.detach()))
    assert scales["forward"] == pytest.approx(math.sqrt(26), abs=0.2)  # the moments of the mixture
    assert scales["reverse"] < 2


def test_training_by_weighted_samples_reaches_the_gaussian():
    for objective in (DoublyReparameterised, AlphaDivergence, lambda target: ForwardKL(target, 32, path=True)):
        flow, log_joint = pair("discrete")
        run = training.fit(flow, objective(log_joint), steps=120, batch_size=16, lr=5e-2, seed=0, ema=None)
        with torch.no_grad():
            assert float(kl_divergence(law(flow), NORMAL)) < 3e-3
        assert run.steps == 120


def test_arguments_are_checked():
    target = lambda x: -x.square().sum(1)
    for alpha in (1, 1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"alpha={alpha}"):
            AlphaDivergence(target, alpha)
    for objective in (AlphaDivergence, DoublyReparameterised, ForwardKL):
        with pytest.raises(ValueError, match=r"samples=1\): an item needs at least 2"):
            objective(target, samples=1)

    class Model(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, 0]

    with pytest.raises(ValueError, match=r"cannot train the parameters.*DoublyReparameterised"):
        ForwardKL(Model(2, 1))(discrete.maf(2, layers=1), 4)
    ForwardKL(Model(2, 1).requires_grad_(False))(discrete.maf(2, layers=1), 4)
