"""Affine paths that predict logits of one-hot tokens: the loss, conversions, and exact posteriors by enumeration."""

import copy
import math

import pytest
import torch
from torch.nn.functional import one_hot

import cflow
from cflow import bases, divergence, fields, guidance, objectives, paths, solvers, training
from cflow.testing import RelaxedTokenField

PATHS = [paths.Linear("logits"), paths.Linear("logits", sigma_min=0.02), paths.Cosine("logits")]
PATHS += [paths.Polynomial(2.0, "logits"), paths.VariancePreserving("logits")]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
PAIRS = torch.tensor([[0.6, 0.0], [0.0, 0.4]], dtype=torch.float64)


def evidence(path):
    def log_q(t, x):
        alpha, sigma = (each[:, None, None] for each in (path.alpha(t), path.sigma(t)))
        return alpha / sigma**2 * x

    return log_q


def flow_of(probs, path, **options):
    field = RelaxedTokenField(probs, evidence(path))
    return cflow.ContinuousFlow(field, bases.Normal(field.event_shape), path=path, **options).double()


def law(count, size, generator):
    probs = torch.rand((size,) * count, generator=generator, dtype=torch.float64)
    return probs / probs.sum()


@every_path
def test_the_optimum_of_the_loss_is_the_posterior(path, generator):
    """The mean loss of the exact posterior is the lowest: a change of its logits in any direction increases it."""
    probs = law(2, 3, generator)
    field = RelaxedTokenField(probs, evidence(path)).double()
    tokens = torch.multinomial(probs.flatten(), 200_000, replacement=True, generator=generator)
    x1 = one_hot(field.words[tokens], 3).double()
    x0 = torch.randn(x1.shape, generator=generator, dtype=torch.float64)
    sample = path.sample(x0, x1, torch.full((len(x1),), 0.3, dtype=torch.float64))
    with torch.no_grad():
        best = field(sample.t, sample.xt)
        change = 0.2 * torch.tanh(sample.xt)
        losses = [path.loss(best + step * change, sample) for step in (-1.0, 0.0, 1.0)]
    # Pairs of losses of the same draws: their difference is many standard errors above zero.
    for other in (losses[0], losses[2]):
        gap = other - losses[1]
        assert gap.mean() > 4 * gap.std() / math.sqrt(len(gap))


@every_path
def test_the_velocity_is_that_of_the_posterior_mean(path, generator):
    probs = law(2, 3, generator)
    field = RelaxedTokenField(probs, evidence(path)).double()
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([path.interval[0], 0.2, 0.5, 0.9, path.interval[1]], dtype=torch.float64)
    mean = field(t, x).softmax(-1)
    plain = copy.copy(path)
    plain.predict = "x1"
    plain.interval = plain._interval()
    assert torch.allclose(path.velocity(field(t, x), x, t), plain.velocity(mean, x, t), rtol=1e-12)
    for ours, theirs in zip(path.ends(field(t, x), x, t), plain.ends(mean, x, t)):
        assert torch.allclose(ours, theirs, rtol=1e-12)
    assert (path.interval, path.score_interval) == (plain.interval, plain.score_interval)
    x1, x0 = path.ends(field(t, x), x, t)
    assert torch.allclose(path.express(x1, x0, t).softmax(-1), mean, atol=1e-14)


def test_the_loss_is_a_mean_over_positions_in_float32(generator):
    path = paths.Linear("logits")
    x1 = one_hot(torch.tensor([[0, 2, 1], [1, 1, 0]]), 4).float()
    sample = path.sample(torch.zeros_like(x1), x1, torch.tensor([0.1, 0.8]))
    logits = torch.randn(x1.shape, generator=generator)
    each = -logits.log_softmax(-1).gather(-1, x1.argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(path.loss(logits, sample), each.mean(1))
    assert path.loss(logits.bfloat16(), sample).dtype == torch.float32
    mask = torch.tensor([[True, True, False], [False, True, True]])
    for shape in ((2, 3, 1), (2, 3, 4)):
        sample.mask = mask[..., None].expand(shape)
        logits[0, 2], logits[1, 0] = 1e3, -1e3  # outside the mask
        expected = torch.stack([each[0, :2].mean(), each[1, 1:].mean()])
        torch.testing.assert_close(path.loss(logits, sample), expected)


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (2, 0.66), (4, 0.63), (8, 0.61), (16, 0.605), (64, 0.60)])
def test_the_pair_toy_has_no_impossible_pair_at_any_number_of_steps(steps, share, generator):
    """Tokens (0, 0) with 60 % and (1, 1) with 40 %: a mask flow in N steps draws 1 / (2 N) impossible pairs."""
    flow = flow_of(PAIRS, paths.Linear("logits"))
    x = flow.sample((100_000,), solver=solvers.Euler(steps=steps), generator=generator)
    pair = x.argmax(-1)
    assert torch.equal(pair[:, 0], pair[:, 1])
    # The standard error of the share is 0.0016; the table has two digits.
    assert abs(float((pair[:, 0] == 0).double().mean()) - share) < 0.012


@pytest.mark.parametrize("target", [paths.Cosine("logits"), paths.Linear(), paths.Cosine("x1")])
def test_the_schedule_can_be_changed_after_training(target, generator):
    flow = flow_of(law(2, 3, generator), paths.Linear("logits"), solver=solvers.Dopri5(rtol=1e-8, atol=1e-8))
    x0 = torch.randn(20, 2, 3, generator=generator, dtype=torch.float64)
    # The paths are one curve at other times, so the same base sample leads to the same tokens.
    with torch.no_grad():
        ends = [each.transport(x0, 0.0, 0.99).y for each in (flow, flow.with_path(paths.Linear("x1")))]
        assert torch.allclose(*ends, atol=1e-6)
        other = flow.with_path(target)
        there = 0.99 if isinstance(target, paths.Linear) else 2 / math.pi * math.atan(99.0)  # the same alpha / sigma
        moved = other.transport(x0, 0.0, there).y / path_norm(target, there)
        assert torch.allclose(moved, ends[0] / path_norm(flow.path, 0.99), atol=1e-5)


def path_norm(path, t):
    return path.norm(torch.tensor(t, dtype=torch.float64))


def test_divergences_of_the_velocity(generator):
    """Exact equals a Jacobian by autograd, Hutchinson is unbiased, and there is no closed form through a softmax."""
    path = paths.Linear("logits")
    flow = flow_of(law(2, 2, generator), path)
    x, t = torch.randn(1, 2, 2, generator=generator, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    velocity = flow.velocity_field()
    jacobian = torch.autograd.functional.jacobian(lambda row: velocity(t, row), x).reshape(4, 4)
    _, trace, _ = divergence.Exact()(velocity, t, x, None, None)
    assert torch.allclose(trace, jacobian.trace())
    many = divergence.Hutchinson(probes=4096)
    _, estimate, _ = many(velocity, t, x, many.begin(x, generator), None)
    error = (jacobian + jacobian.T).fill_diagonal_(0).square().sum().sqrt() / math.sqrt(2 * 4096)
    # Five standard errors: with signs, only the part of the Jacobian off its diagonal has variance.
    assert abs((estimate - trace).item()) < 5 * error.item() + 1e-9
    network = cflow.ContinuousFlow(fields.MLP(4), bases.Normal(4), path=path)
    with pytest.raises(TypeError, match="not a weighted sum"):
        network.log_prob(torch.zeros(4), divergence=divergence.Analytic())


def test_scores_and_schedule_aware_solvers_agree_with_the_posterior(generator):
    path = paths.Linear("logits")
    probs = law(2, 2, generator)
    flow = flow_of(probs, path)
    t, x = torch.tensor(0.4, dtype=torch.float64), torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    words = one_hot(flow.field.words, 2).double()
    point = x.clone().requires_grad_()
    distance = (point[:, None] - 0.4 * words).square().sum((2, 3))
    log_p = torch.logsumexp(probs.flatten().log() - distance / (2 * 0.6**2), 1)
    (score,) = torch.autograd.grad(log_p.sum(), point)
    assert torch.allclose(flow.score(t, x), score, atol=1e-10)
    x0 = torch.randn(50, 2, 2, generator=generator, dtype=torch.float64)
    exact = flow.transport(x0, 0.0, 1.0, solver=solvers.Dopri5(rtol=1e-9, atol=1e-9)).y.argmax(-1)
    for solver in (solvers.DPMSolverPP2M(64), solvers.UniPC(64), solvers.Heun(64)):
        assert (flow.transport(x0, 0.0, 1.0, solver=solver).y.argmax(-1) == exact).double().mean() > 0.95


def test_guidance_acts_on_the_velocity(generator):
    path = paths.Linear("logits")
    field = fields.MLP(3, classes=4)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    flow = cflow.ContinuousFlow(field, bases.Normal(3), path=path)
    x, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    with_label = flow.velocity(0.5, x, labels)
    without = flow.velocity_field()(torch.tensor(0.5), x, field.null_context(labels))
    guided = flow.velocity(0.5, x, labels, guidance=guidance.ClassifierFree(3.0))
    assert torch.allclose(guided, without + 3 * (with_label - without), atol=1e-4)


def few_step(make):
    flow = cflow.ContinuousFlow(fields.MLP(3, two_times=True), bases.Normal(3), path=paths.Linear("logits"))
    return make()(flow, torch.zeros(4, 3))


REFUSED = {
    "mean flow": (lambda: few_step(objectives.MeanFlow), "does not predict the velocity"),
    "consistency": (lambda: few_step(objectives.ConsistencyFlowMatching), "does not predict the velocity"),
    "rectified": (lambda: few_step(objectives.RectifiedFlow), "with_path"),
    "weight": (
        lambda: objectives.MinSNR()(paths.Linear("logits"), torch.tensor([0.5])),
        "for squared errors, and the loss of logits is a cross-entropy",
    ),
    "velocity weight": (
        lambda: objectives.VelocityWeight()(paths.Linear("logits"), torch.tensor([0.5])),
        "for squared errors",
    ),
    "interpolant": (lambda: paths.Interpolant(paths.Linear("logits")), "omit predict"),
    "to logits": (
        lambda: flow_of(PAIRS, paths.Linear("logits")).with_path(paths.Linear()).with_path(paths.Cosine("logits")),
        "not trained to logits",
    ),
    "numbers": (
        lambda: cflow.ContinuousFlow(torch.nn.Identity(), bases.Normal(()), path=paths.Linear("logits")),
        "over the last dimension",
    ),
    "one token": (
        lambda: cflow.ContinuousFlow(fields.MLP(1), bases.Normal(1), path=paths.Linear("logits")),
        r"\[\*positions, vocabulary\]",
    ),
    "distil": (
        lambda: training.reflow(flow_of(PAIRS, paths.Linear("logits")), torch.zeros(4, 2, 2, 2)),
        "velocities or x1 can continue",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_another_prediction_says_so(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
