"""Samplers of token flows: what they refuse, and options that two parts read."""

import pytest
import torch

from cflow import couplings, ctmc, fields, guidance, objectives


class Fixed(fields.Field):
    """Returns the same logits everywhere, for two classes and no condition."""

    classes = 2

    def __init__(self, shape, logits, context_shape=None):
        super().__init__(shape, context_shape)
        self.logits = torch.nn.Parameter(logits)

    def forward(self, t, x, context=None, *, s=None):
        return self.logits.expand(*x.shape, -1)

    def null_context(self, context):
        return torch.full_like(context, 2)


def make(source, path=None, logits=None, **options):
    logits = torch.linspace(0, 0.5, source.vocabulary) if logits is None else logits
    return ctmc.TokenFlow(Fixed(source.event_shape, logits, **options), source, path=path)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_ordered_reveals_all_tokens_with_one_schedule_for_each_position(shape, count, generator):
    exponent = torch.tensor([1.0, 2.0, 3.0, 0.5]).reshape(shape)
    flow = make(ctmc.Mask(shape, 3), ctmc.Mixture(ctmc.Polynomial(exponent)))
    x = flow.sample((count,), sampler=ctmc.Ordered(3), generator=generator)
    assert x.shape == (count, *shape)
    assert bool((x < 3).all())


def test_exponents_by_position_may_be_lists_and_are_checked():
    assert ctmc.Polynomial([[1, 2.0], [0.5, 3]]) == ctmc.Polynomial(((1, 2.0), (0.5, 3)))
    for wrong in ("a", ((1.0, 2.0), (3.0,)), (1.0, -1.0), ()):
        with pytest.raises(ValueError, match="exponents are positive numbers"):
            ctmc.Polynomial(wrong)


def test_a_moving_source_takes_one_schedule_for_each_position_of_an_image(generator):
    path = ctmc.Mixture(ctmc.Polynomial(((1.0, 2.0), (1.5, 1.0))))
    flow = make(ctmc.MaskAndUniform((2, 2), 3, share=0.1), path)
    assert flow.sample((3,), sampler=ctmc.Analytic(4), generator=generator).shape == (3, 2, 2)


def test_a_moving_source_draws_in_closed_form_what_its_table_says(generator):
    source = ctmc.MaskAndUniform((2, 3), 5, share=0.4)
    t = torch.rand(50, 1, 1, generator=generator, dtype=torch.float64)
    u = torch.rand(50, 2, 3, generator=generator, dtype=torch.float64)
    x = source.draw(u, t)
    assert torch.equal(x, ctmc.Source.draw(source, u, t))
    torch.testing.assert_close(source.probs_of(x, t), ctmc.Source.probs_of(source, x, t), rtol=1e-14, atol=0)


def test_a_coupling_leaves_only_samplers_that_need_no_probabilities(generator):
    flow = make(ctmc.Uniform(4, 3))
    flow.record(objectives.FlowMatching(couplings.Paired()))
    flow.record(objectives.FlowMatching())
    minimal = ctmc.Analytic(4, rate=ctmc.MinimalJump())
    for sampler in (ctmc.Analytic(4, rate=ctmc.TimeReversal()), ctmc.PredictorCorrector(minimal)):
        with pytest.raises(ValueError, match=r"trained with couplings.Paired"):
            flow.sample((2,), sampler=sampler)
    for sampler in (minimal, ctmc.Euler(4, rate=ctmc.MinimalJump()), ctmc.Thinning(0.5)):
        assert flow.sample((2,), sampler=sampler, generator=generator).shape == (2, 4)
    given = make(ctmc.Given(torch.zeros(2, 4, dtype=torch.long), 3))
    with pytest.raises(ValueError, match="not a flow from Given"):
        given.sample((2,), sampler=ctmc.PredictorCorrector(minimal))


def test_the_options_of_a_predictor_hold_with_corrections(generator):
    flow = make(ctmc.Mask(6, 3))
    predictor = ctmc.Analytic(1, greedy_end=True)
    assert bool((flow.sample((20,), sampler=ctmc.PredictorCorrector(predictor), generator=generator) == 2).all())
    cold = ctmc.PredictorCorrector(ctmc.Analytic(4, top_k=1), share=1.0)
    for kind in ("gibbs", "forward-backward"):
        cold = ctmc.PredictorCorrector(ctmc.Analytic(4, top_k=1), share=1.0, kind=kind)
        assert bool((flow.sample((20,), sampler=cold, generator=generator) == 2).all())
    with pytest.raises(TypeError, match="other states between steps"):
        ctmc.PredictorCorrector(ctmc.Remasking(4))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("source", [ctmc.Mask(4, 3), ctmc.Uniform(4, 3)], ids=["mask", "uniform"])
def test_impossible_tokens_stay_impossible_under_guidance(source, scale, generator):
    path = ctmc.Mixture(rate=ctmc.MinimalJump())
    flow = make(source, path, torch.tensor([0.0, -torch.inf, 1.0]), context_shape=())
    label, one = torch.tensor([0, 1]), lambda t, hot: hot[..., 0].sum(1)
    for guide in (
        guidance.ClassifierFree(scale),
        guidance.PredictorFree(scale),
        guidance.PredictorGuidance(one, scale),
        guidance.PredictorGuidance(one, scale, exact=True, scaled=True),
    ):
        x = flow.sample((20,), label, sampler=ctmc.Analytic(4), guidance=guide, generator=generator)
        assert set(x.unique().tolist()) == {0, 2}, guide


def test_guidance_of_rates_has_a_posterior_and_no_bound():
    for head in ("denoiser", "leave-one-out"):
        path = ctmc.Mixture(head=head, rate=ctmc.MinimalJump())
        flow = make(ctmc.Uniform(4, 3), path, context_shape=())
        x, label = torch.tensor([[0, 1, 2, 0]]), torch.tensor([1])
        found = flow.posterior(0.4, x, label, guidance=guidance.PredictorFree(1.0))
        torch.testing.assert_close(found, flow.posterior(0.4, x, label))
        with pytest.raises(ValueError, match="how fast tokens jump"):
            flow.log_prob(x, label, guidance=guidance.PredictorFree(2.0))


def test_guidance_of_velocities_refuses_tokens():
    flow = make(ctmc.Mask(4, 3), context_shape=())
    with pytest.raises(TypeError, match="this guides velocities"):
        flow.sample((2,), torch.tensor(0), guidance=guidance.CFGZeroStar(2.0))


def test_parts_of_a_wrong_kind_are_named():
    flow, x = make(ctmc.Mask(4, 3)), torch.zeros(4, dtype=torch.long)
    for call in (
        lambda: ctmc.Analytic(rate=ctmc.MinimalJump),
        lambda: ctmc.Mixture(rate="minimal"),
        lambda: flow.log_prob(x, rate="minimal"),
    ):
        with pytest.raises(TypeError, match="not a rate; pass an object such as ctmc.TimeReversal"):
            call()
    with pytest.raises(TypeError, match="not a schedule"):
        ctmc.Euler(schedule="cosine")
    with pytest.raises(TypeError, match="not an alphabet"):
        ctmc.TokenFlow(flow.denoiser, flow.source, alphabet="abc")
    with pytest.raises(ValueError, match="does not broadcast"):
        flow.infill(x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="pass a torch.Tensor"):
        flow.infill([0, 1, 2, 0], torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="choose one of denoiser, leave-one-out"):
        flow.posterior(0.5, x, head="loo")
    for wrong in (lambda: ctmc.Remasking(eta=2.0), lambda: ctmc.PredictorCorrector(share=0)):
        with pytest.raises(ValueError, match="eta|share") as caught:
            wrong()
        assert len(str(caught.value)) < 210
