"""Guidance of token flows, with perfect denoisers of two classes."""

import pytest
import torch
from torch import nn

from cflow import ctmc, fields, guidance
from cflow.registry import register
from cflow.testing import ExactDenoiser
from cflow.testing.exact_denoiser import correlated

LAWS = [correlated(3, 2, seed) for seed in (0, 1)]
MIXED = 0.5 * (LAWS[0] + LAWS[1])


@register("test.Classes")
class Classes(fields.Field):
    """The exact denoisers of two classes, and of both together for the label of no condition."""

    classes = 2

    def __init__(self, source, path):
        super().__init__((2,), ())
        self.source, self.path = source, path
        self.vocabulary, self.states = source.vocabulary, source.states
        self.each = nn.ModuleList(ExactDenoiser(law, source, path) for law in (*LAWS, MIXED))

    def forward(self, t, x, context=None, *, s=None):
        answers = torch.stack([each(t, x) for each in self.each])
        return answers[context, torch.arange(len(x))]


def make(source, **options):
    path = ctmc.Mixture(rate=ctmc.MinimalJump(), **options)
    return ctmc.TokenFlow(Classes(source, path), source, path=path).double()


def law_of(x):
    return torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).double().reshape(3, 3) / len(x)


def distance(x, law):
    return 0.5 * float((law_of(x) - law).abs().sum())


@pytest.mark.parametrize("kind", [guidance.ClassifierFree, guidance.PredictorFree])
@pytest.mark.parametrize("source", [ctmc.Mask(2, 3), ctmc.Uniform(2, 3)], ids=["mask", "uniform"])
def test_weight_one_is_conditional_and_zero_unconditional(kind, source, generator):
    flow, label = make(source), torch.tensor(1)
    draw = lambda weight: flow.sample(
        (4000,), label, sampler=ctmc.Analytic(32), guidance=kind(weight), generator=generator
    )
    # Noise of 4000 draws on nine states is about 0.02, the error of 32 steps about 0.02.
    assert distance(draw(1.0), LAWS[1]) < 0.06
    assert distance(draw(0.0), MIXED) < 0.06
    assert distance(draw(3.0), LAWS[1]) > 0.1


def test_mixed_rates_are_geometric_means(generator):
    """Rates of PredictorFree are the powers of the two rates, not normalised."""
    flow = make(ctmc.Uniform(2, 3))
    x = torch.tensor([[0, 2], [1, 1]])
    t, label = torch.full((2,), 0.4, dtype=torch.float64), torch.tensor([1, 1])
    rates = [flow.path.rates(flow.predict(t, x, each), x, t) for each in (label, torch.full_like(label, 2))]
    wanted = rates[0] ** 2.5 * rates[1] ** -1.5
    wanted = wanted.nan_to_num(0.0)
    logits = flow._network(label, guidance.PredictorFree(2.5))(t, x)
    path = ctmc.Mixture(rate=ctmc.MinimalJump()).bind(flow.source)
    path.paced = True
    posterior = path.posterior(logits, x, t)
    found = path.rates(logits, x, t) * posterior.pace.unsqueeze(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_pace_is_that_of_the_sum_of_weights():
    """A step reveals a token with the probability of the scaled hazard."""
    flow = make(ctmc.Mask(2, 3))
    x, count = torch.full((20_000, 2), 3), 20_000
    now = torch.full((count,), 0.2, dtype=torch.float64)
    label = torch.ones(count, dtype=torch.long)
    logits = flow._network(label, guidance.PredictorFree(3.0))(now, x)
    path = flow.path.bind(flow.source)
    path.paced = True
    pace = path.posterior(logits, x, now).pace[0]
    moved = path.step(logits, x, torch.tensor(0.2), torch.tensor(0.6), generator=torch.Generator().manual_seed(0))
    expected = 1 - (0.4 / 0.8) ** pace
    found = (moved != 3).double().mean(0)
    assert bool((pace - 1).abs().min() > 0.02)
    assert bool(((found - expected).abs() < 5 * 0.5 / count**0.5).all())


def test_guidance_of_rates_refuses_what_it_cannot_scale():
    flow = make(ctmc.Mask(2, 3))
    with pytest.raises(ValueError, match="changes rates of jumps"):
        flow.sample((2,), torch.tensor(0), sampler=ctmc.FirstHitting(), guidance=guidance.PredictorFree(2.0))
    with pytest.raises(ValueError, match="changes rates of jumps"):
        flow.sample(
            (2,), torch.tensor(0), sampler=ctmc.Analytic(4, rate=ctmc.DetailedBalance(1.0)),
            guidance=guidance.PredictorFree(2.0),
        )  # fmt: skip


class Exact(nn.Module):
    """The exact classifier of noisy states, from the laws of both classes; reads one-hot states."""

    def __init__(self, source, wanted):
        super().__init__()
        path = ctmc.Mixture()
        self.each = [ExactDenoiser(law, source, path).double() for law in LAWS]
        self.wanted = wanted

    def forward(self, t, hot):
        both = []
        for each in self.each:  # all rows have the same time
            table = each.marginal(t[0]).detach()
            both.append(torch.einsum("na,nb,ab->n", hot[:, 0].double(), hot[:, 1].double(), table))
        return torch.log(both[self.wanted] / (both[0] + both[1]) + 1e-300)


@pytest.mark.parametrize("source", [ctmc.Mask(2, 3), ctmc.Uniform(2, 3)], ids=["mask", "uniform"])
def test_exact_guidance_by_a_classifier_gives_the_conditional_law(source, generator):
    path = ctmc.Mixture(rate=ctmc.MinimalJump())
    flow = ctmc.TokenFlow(ExactDenoiser(MIXED, source, path), source, path=path).double()
    guide = guidance.PredictorGuidance(Exact(source, 1), exact=True, scaled=True)
    x = flow.sample((1000,), sampler=ctmc.Analytic(12), guidance=guide, generator=generator)
    # Without guidance the distance is that of the laws, 0.25 and more; noise of 1000 draws is about 0.04.
    assert distance(x, LAWS[1]) < 0.13
    assert 0.5 * float((MIXED - LAWS[1]).abs().sum()) > 0.2


def test_the_expansion_is_exact_for_a_linear_classifier(generator):
    flow = make(ctmc.Mask(2, 3))
    weight = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    linear = lambda t, hot: (weight * hot).sum((1, 2))
    x = torch.tensor([[3, 1], [3, 3]])
    t, label = torch.full((2,), 0.4, dtype=torch.float64), torch.tensor([0, 0])
    answers = [
        flow._network(label, guidance.PredictorGuidance(linear, 1.7, exact=exact))(t, x) for exact in (False, True)
    ]
    torch.testing.assert_close(*answers, rtol=1e-10, atol=1e-10)
