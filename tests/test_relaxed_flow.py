"""Continuous flows over tokens: the bound against exact probabilities by enumeration, samples, options and refusals."""

import math

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, bijections, divergence, fields, guidance, objectives, paths, solvers, times, training
from cflow.testing import RelaxedTokenField, check_flow

TIGHT = solvers.Dopri5(rtol=1e-9, atol=1e-9)


def gaussian(path):
    def log_q(t, x):
        alpha, sigma = (each[:, None, None] for each in (path.alpha(t), path.sigma(t)))
        return alpha / sigma**2 * x

    return log_q


def exact_flow(probs, path, **options):
    field = RelaxedTokenField(probs, gaussian(path))
    return cflow.RelaxedFlow(field, bases.Normal(field.event_shape), path=path, solver=TIGHT, **options).double()


def dependent(generator):
    probs = torch.rand(3, 3, generator=generator, dtype=torch.float64) ** 2
    return probs / probs.sum()


@cflow.register("tests.relaxed.Network")
class Network(fields.Field):
    """An MLP on the flattened tokens, with other weights than a new one: its logits are not zero."""

    def __init__(self, positions=2, vocabulary=3, classes=0):
        super().__init__((positions, vocabulary), () if classes else None)
        self.positions, self.vocabulary, self.classes = positions, vocabulary, classes
        self.inner = fields.MLP(positions * vocabulary, hidden=(16, 16), classes=classes)
        with torch.no_grad():
            for parameter in self.inner.parameters():
                seeded = torch.Generator().manual_seed(parameter.numel())
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=seeded))

    def forward(self, t, x, context=None, *, s=None):
        return self.inner(t, x.flatten(1), context).unflatten(1, self.event_shape)

    def null_context(self, context):
        return self.inner.null_context(context)


@pytest.mark.parametrize("path", [paths.Linear("logits"), paths.Cosine("logits")], ids=repr)
def test_every_draw_of_the_bound_of_an_exact_model_is_the_log_probability(path, generator):
    """Near the data, a noisy point determines its tokens, so nothing of their correlation is lost."""
    probs = dependent(generator)
    flow = exact_flow(probs, path, bound_time=0.9)
    x = flow.field.words.repeat(20, 1)
    with torch.no_grad():
        bound = flow.log_prob(x, generator=generator)
    assert (bound - probs.flatten().log().repeat(20)).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 4, 64])
def test_samples_of_the_pair_toy_are_possible_pairs(steps, generator):
    probs = torch.tensor([[0.6, 0.0], [0.0, 0.4]], dtype=torch.float64)
    flow = exact_flow(probs, paths.Linear("logits"), bound_time=0.9)
    pairs = flow.sample((20_000,), solver=solvers.Euler(steps=steps), generator=generator)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    if steps == 64:  # 0.0035 is the standard error; the error of 64 Euler steps is smaller
        assert abs(float((pairs[:, 0] == 0).double().mean()) - 0.6) < 5 * 0.0035


def test_samples_follow_the_model_of_the_bound_at_any_time(generator):
    """With independent tokens the model is exact also where the noisy point leaves its tokens open."""
    one, other = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.2, 0.7]).double()
    flow = exact_flow(one[:, None] * other, paths.Linear("logits"), bound_time=0.3)
    x = flow.sample((20_000,), solver=solvers.RK4(8), temperature=1.0, generator=generator)
    shares = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9) / 20_000
    wanted = flow.field.log_probs.exp()
    assert ((shares - wanted).abs() < 5 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_a_list_of_generators_makes_a_sample_the_same_in_any_batch():
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), solver=solvers.RK4(6))
    seeds = lambda *which: [torch.Generator().manual_seed(each) for each in which]
    for temperature in (0.0, 1.5):
        many = flow.sample((4,), generator=seeds(1, 2, 3, 4), temperature=temperature)
        assert torch.equal(flow.sample((2,), generator=seeds(3, 1), temperature=temperature), many[[2, 0]])
    with pytest.raises(TypeError, match="no such option"):
        flow.encode(many, temperature=1.0)
    with pytest.raises(ValueError, match="0 or more"):
        flow.sample(temperature=-1.0)


@pytest.mark.parametrize("bound_time", [0.2, 0.6])
def test_every_draw_is_exact_at_any_time_for_independent_tokens(bound_time, generator):
    one, other = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.2, 0.7]).double()
    flow = exact_flow(one[:, None] * other, paths.Linear("logits"), bound_time=bound_time)
    x = flow.field.words.repeat(10, 1)
    with torch.no_grad():
        bound = flow.log_prob(x, generator=generator)
    assert (bound - flow.field.log_probs.repeat(10)).abs().max() < 1e-6


def test_a_draw_lacks_the_correlation_of_the_tokens_given_the_noisy_point(generator):
    """bound = log p(x1) - log p(x1 | z) + log of the product of the marginals of p(x1 | z), for every z."""
    path, probs = paths.Linear("logits"), dependent(generator)
    flow = exact_flow(probs, path, bound_time=0.3)
    x = flow.field.words.repeat(50, 1)
    with torch.no_grad():
        bound = flow.log_prob(x, generator=torch.Generator().manual_seed(4))
        noise = flow.base.sample((len(x),), generator=torch.Generator().manual_seed(4))
        t = torch.full((len(x),), 0.3, dtype=torch.float64)
        z = path.sample(noise, nn.functional.one_hot(x, 3).double(), t).xt
        evidence = flow.field.evidence(t, z)
        joint = flow.field.log_probs + evidence[:, 0, flow.field.words[:, 0]] + evidence[:, 1, flow.field.words[:, 1]]
        joint = joint.log_softmax(1)
        own = torch.arange(9).repeat(50)
        product = flow.field(t, z).log_softmax(-1).gather(-1, x[..., None]).sum((1, 2))
        lost = joint[torch.arange(len(x)), own] - product
    assert (bound - (flow.field.log_probs[own] - lost)).abs().max() < 1e-6
    assert lost.abs().max() > 0.05  # at this time it matters


def test_the_bound_of_an_imperfect_network_is_below_the_probability_of_its_model(generator):
    """The model draws z by the flow up to the time of the bound, then tokens from the network's posterior."""
    flow = cflow.RelaxedFlow(Network(1, 2), bases.Normal((1, 2)), bound_time=0.7, solver=solvers.RK4(20)).double()
    x = torch.tensor([0, 1]).expand(4000, 2)[..., None]
    with torch.no_grad():
        z = flow.transport(flow.base.sample((40_000,), generator=generator), 0.0, 0.7).y
        posterior = flow.predict(torch.full((40_000,), 0.7, dtype=torch.float64), z).softmax(-1)[:, 0]
        draws = flow.log_prob(x, generator=generator)
    bound, error = draws.mean(0), draws.std(0) / 4000**0.5
    model, spread = posterior.mean(0).log(), posterior.std(0) / 200 / posterior.mean(0)
    assert flow.likelihood == "bound"
    assert (bound < model + 4 * (error + spread)).all()
    assert (model - bound > 10 * (error + spread)).any()  # not tight: the network is not exact
    assert bound.exp().sum() < 1


def test_the_estimate_of_the_divergence_does_not_change_the_mean(generator):
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), solver=solvers.RK4(12)).double()
    x = torch.tensor([[0, 2]]).expand(400, 2)
    with torch.no_grad():
        exact = flow.log_prob(x, generator=torch.Generator().manual_seed(1))
        rough = flow.log_prob(x, generator=torch.Generator().manual_seed(1), divergence=divergence.Hutchinson())
        coarse = flow.log_prob(x, generator=torch.Generator().manual_seed(1), solver=solvers.Euler(2))
    gap = rough - exact  # the same noisy points: the probes are drawn after them
    assert gap.std() > 1e-3
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / 20
    assert (coarse - exact).abs().max() > 1e-3


def test_guidance_and_context_reach_the_ode(generator):
    flow = cflow.RelaxedFlow(Network(classes=3), bases.Normal((2, 3)), solver=solvers.RK4(8))
    x, seeded = torch.tensor([[0, 2], [1, 1]]), lambda: torch.Generator().manual_seed(2)
    plain = flow.log_prob(x, torch.tensor([0, 1]), generator=seeded())
    other = flow.log_prob(x, torch.tensor([2, 1]), generator=seeded())
    guided = flow.log_prob(x, torch.tensor([0, 1]), generator=seeded(), guidance=guidance.ClassifierFree(2.0))
    assert plain[0] != other[0]
    assert torch.allclose(plain[1], other[1], atol=1e-5)
    assert (plain - guided).abs().min() > 1e-4


def test_it_conforms():
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), solver=solvers.RK4(6))
    check_flow(flow)
    check_flow(cflow.RelaxedFlow(Network(classes=3), bases.Normal((2, 3)), solver=solvers.RK4(6)), torch.tensor(1))


def test_it_is_saved_with_its_maps(tmp_path, generator):
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), path=paths.Cosine("logits"), bound_time=0.8)
    flow = flow.with_transform(bijections.Permute([1, 0]))
    again = cflow.load(cflow.save(flow, tmp_path / "flow"))
    x = torch.tensor([[0.0, 2.0]])
    seeded = lambda: torch.Generator().manual_seed(3)
    assert again.bound_time == 0.8
    assert [type(each).__name__ for each in again.transform.members()] == ["Permute", "OneHot"]
    assert torch.equal(flow.log_prob(x, generator=seeded()), again.log_prob(x, generator=seeded()))


def test_another_schedule_ends_at_the_same_noise(generator):
    probs = dependent(generator)
    flow = exact_flow(probs, paths.Linear("logits"))
    other = flow.with_path(paths.Cosine("logits"))
    ends = [torch.tensor(each.end_time, dtype=torch.float64) for each in (flow, other)]
    ratios = [each.path.alpha(end) / each.path.sigma(end) for each, end in zip((flow, other), ends)]
    torch.testing.assert_close(*ratios)
    assert other.bound_time is None
    x = flow.field.words.repeat(3, 1)
    with torch.no_grad():
        bounds = [each.log_prob(x, generator=torch.Generator().manual_seed(1)) for each in (flow, other)]
    torch.testing.assert_close(*bounds, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="predicts logits"):
        flow.with_path(paths.Linear())


def test_gradients_reach_the_network_and_tokens_of_any_dtype_agree(generator):
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), solver=solvers.RK4(4))
    x = torch.tensor([[0, 2], [1, 1]])
    values = [flow.log_prob(x.to(dtype), generator=torch.Generator().manual_seed(1))
              for dtype in (torch.uint8, torch.int32, torch.int64, torch.float32)]  # fmt: skip
    assert all(torch.equal(values[0], each) for each in values)
    values[0].sum().backward()
    reached = [name for name, each in flow.field.named_parameters() if each.grad is not None and each.grad.any()]
    assert len(reached) == len(list(flow.field.parameters()))
    assert flow.log_prob(x[:0]).shape == (0,)


def test_a_few_steps_of_training_improve_the_bound(generator):
    """Pairs (0, 0) and (1, 1) of three tokens: after a short run, impossible pairs are rare."""
    torch.manual_seed(0)
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), solver=solvers.RK4(10))
    data = torch.randint(2, (512, 1), generator=generator).expand(512, 2).to(torch.uint8)
    with torch.no_grad():
        before, _ = flow.log_prob_estimate(data[:64], draws=4, generator=generator)
    training.fit(
        flow, objectives.FlowMatching(times=times.Stratified(times.ArgmaxClock(3))), data, steps=400, batch_size=256,
        lr=5e-3, seed=0,
    )  # fmt: skip
    flow.eval()
    with torch.no_grad():
        after, _ = flow.log_prob_estimate(data[:64], draws=4, generator=generator)
        pairs = flow.sample((500,), generator=generator)
    assert after.mean() > before.mean() + 1
    assert abs(float(after.mean()) + math.log(2)) < 0.1  # the entropy of the pairs
    assert (pairs[:, 0] == pairs[:, 1]).double().mean() > 0.95


REFUSED = {
    "prediction": (
        lambda: cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), path=paths.Linear("x1")),
        "predicts logits",
    ),
    "time": (lambda: cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), bound_time=1.0), "well conditioned in"),
    "no tokens": (
        lambda: cflow.RelaxedFlow(Network(), bases.Normal((2, 3)), transform=[bijections.Standardise((2, 3))]),
        "the data must be tokens",
    ),
    "numbers": (lambda: cflow.RelaxedFlow(Network(), bases.Normal(())), "over the last dimension"),
    "likelihood of a point": (
        lambda: objectives.FFJORD()(cflow.RelaxedFlow(Network(), bases.Normal((2, 3))), torch.zeros(2, 2).long()),
        "not that of its data",
    ),
    "few steps": (lambda: _distilled().log_prob(torch.zeros(1, 2).long()), "trained to few steps"),
}


def _distilled():
    flow = cflow.RelaxedFlow(Network(), bases.Normal((2, 3)))
    flow.record(objectives.Distillation(1))
    return flow


@pytest.mark.parametrize("name", REFUSED)
def test_bad_use_says_what_to_do(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
