"""Token flows under the protocol: training, saving, integer events, infilling, errors."""

import copy

import pytest
import torch

import cflow
from cflow import bases, bijections, couplings, ctmc, fields, objectives, training
from cflow.standardised_context import StandardisedContext
from cflow.testing import ExactDenoiser, check_flow, check_objective
from cflow.testing.exact_denoiser import correlated, entropy

SOURCES = {
    "mask": lambda: ctmc.Mask(4, 3),
    "uniform": lambda: ctmc.Uniform(4, 3),
    "marginal": lambda: ctmc.Marginal(4, torch.tensor([0.5, 0.3, 0.2])),
    "mask and uniform": lambda: ctmc.MaskAndUniform(4, 3),
}


def network(source, **options):
    torch.manual_seed(0)
    net = fields.TokenDiT(
        source.event_shape.numel(), source.states, source.vocabulary, width=16, depth=1, heads=2, **options
    )
    torch.nn.init.normal_(net.output.weight, std=0.3)  # not zero, so that the untrained network says something
    return net


def make(source, path=None, **options):
    return ctmc.TokenFlow(network(source, **options), source, path=path)


@pytest.mark.parametrize(("source", "classes"), [*((source, 0) for source in SOURCES), ("mask", 3)])
def test_token_flows_conform(source, classes):
    check_flow(make(SOURCES[source](), classes=classes), torch.tensor(1) if classes else None)


LOSSES = [
    (source, loss)
    for source in SOURCES
    for loss in ("cross-entropy", "kl", "elbo", "score-entropy")
    if (source, loss) != ("mask and uniform", "kl")  # minimal jumps do not exist for a source that moves
]


@pytest.mark.parametrize(("source", "loss"), LOSSES)
@pytest.mark.parametrize("head", ["denoiser", "leave-one-out"])
def test_every_loss_trains(source, loss, head, generator):
    flow = make(SOURCES[source](), ctmc.Mixture(loss=loss, head=head))
    check_objective(objectives.FlowMatching(), flow, torch.randint(3, (6, 4), generator=generator))


@pytest.mark.parametrize("source", ["mask", "uniform", "marginal"])
@pytest.mark.parametrize("loss", ["kl", "elbo", "score-entropy"])
def test_losses_that_are_bounds_average_to_the_bound(source, loss, generator):
    """The mean loss of a perfect denoiser is its bound per token: the entropy, for tight rates."""
    law = correlated(3, 2)
    made = {"mask": ctmc.Mask(2, 3), "uniform": ctmc.Uniform(2, 3)}.get(source)
    made = ctmc.Marginal(2, torch.tensor([0.5, 0.3, 0.2])) if made is None else made
    path = ctmc.Mixture(ctmc.Cosine(), loss=loss)
    flow = ctmc.TokenFlow(ExactDenoiser(law, made, path), made, path=path).double()
    rows = torch.multinomial(law.flatten(), 2500, replacement=True, generator=generator)
    x = flow.denoiser.sequences()[rows]
    values = 2 * objectives.FlowMatching()(flow, x, generator=generator).detach()
    rate = ctmc.MinimalJump() if loss == "kl" else None
    wanted = -flow.log_prob(x, rate=rate, generator=generator).detach().mean()
    error = float(values.std()) / 2500**0.5
    assert abs(float(values.mean() - wanted)) < 7 * error
    if source == "mask" or loss != "kl":
        assert abs(float(values.mean()) - entropy(law)) < 5 * error


def test_score_entropy_is_that_of_sedd(generator):
    """The integrand of the bound for the time reversal is SEDD's formula with scores."""
    source = ctmc.Uniform(2, 3)
    path = ctmc.Mixture(head="leave-one-out").bind(source)
    x, x1 = torch.randint(3, (2, 5, 2), generator=generator)
    t = torch.rand(5, generator=generator, dtype=torch.float64)
    logits = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    found = ctmc.losses.nats_per_time(path, logits, x, x1, t, ctmc.TimeReversal())
    kappa = t.reshape(5, 1, 1)
    channel = kappa * torch.nn.functional.one_hot(x1, 3) + (1 - kappa) / 3
    true = channel / channel.gather(-1, x.unsqueeze(-1))
    score = path.score(logits, x, t)
    terms = score - true * score.log() + true * (true.log() - 1)
    noising = 1 / t.reshape(5, 1) / 3  # the noising rate to one token, kappa' / kappa * p_0
    wanted = noising * terms.scatter(-1, x.unsqueeze(-1), 0.0).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_counts_have_no_variance_for_independent_tokens(generator):
    """With the same loss for every token, every draw of the bound is the same number."""
    source = ctmc.Mask(16, 4)
    path = ctmc.Mixture()

    class Constant(fields.Field):
        def forward(self, t, x, context=None, *, s=None):
            return torch.zeros(*x.shape, 4, dtype=torch.float64)

    flow = ctmc.TokenFlow(Constant((16,)), source, path=path)
    value = flow.log_prob(torch.randint(4, (50, 16), generator=generator), generator=generator)
    assert float(value.std()) < 1e-12
    torch.testing.assert_close(value, torch.full_like(value, -16 * torch.tensor(4.0).double().log().item()))


def test_one_step_of_a_mask_flow_costs_the_total_correlation(generator):
    """All tokens are drawn independently, so the law of samples is the product of the marginals, exactly."""
    law = correlated(3, 2)
    source, path = ctmc.Mask(2, 3), ctmc.Mixture()
    flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path).double()
    x = flow.sample((20_000,), sampler=ctmc.Analytic(1), generator=generator)
    found = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).double() / len(x)
    product = law.sum(1, keepdim=True) * law.sum(0, keepdim=True)
    assert 0.5 * float((found - product.flatten()).abs().sum()) < 0.02
    divergence = float((law * (law / product).log()).sum())
    correlation = entropy(law.sum(0)) + entropy(law.sum(1)) - entropy(law)
    assert divergence == pytest.approx(correlation)
    assert divergence > 0.05


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_equal_steps_of_a_mask_flow_have_the_floor_of_theory(steps, generator):
    """Two tokens that determine each other disagree with probability 1 / (2 N)."""
    law = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    source, path = ctmc.Mask(2, 2), ctmc.Mixture()
    flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path)
    x = flow.sample((20_000,), sampler=ctmc.Analytic(steps), generator=generator)
    wrong = 1 / (2 * steps)
    assert abs(float((x[:, 0] != x[:, 1]).double().mean()) - wrong) < 5 * (wrong * (1 - wrong) / 20_000) ** 0.5


def test_first_hitting_reveals_one_token_per_call(generator):
    source = ctmc.Mask(5, 3)
    flow, calls = make(source), []
    flow.denoiser.register_forward_hook(lambda *_: calls.append(1))
    times, states = flow.trajectory((3,), sampler=ctmc.FirstHitting(), generator=generator)
    hidden = (states == source.mask).sum(-1)
    assert len(calls) == 5
    assert hidden[:, 0].tolist() == [5, 4, 3, 2, 1, 0]
    assert bool((times.diff() > 0).all())
    calls.clear()
    flow.sample((3,), sampler=ctmc.FirstHitting(together=2), generator=generator)
    assert len(calls) == 3


def test_every_step_is_one_call_and_a_timeless_network_is_asked_again_only_for_new_states(generator):
    flow, calls = make(ctmc.Mask(4, 3), reads_time=False), []
    flow.denoiser.register_forward_hook(lambda *_: calls.append(1))
    flow.sample((1,), sampler=ctmc.Analytic(200), generator=generator)
    assert len(calls) <= 5
    flow, calls = make(ctmc.Mask(4, 3)), []
    flow.denoiser.register_forward_hook(lambda *_: calls.append(1))
    flow.sample((1,), sampler=ctmc.Analytic(20), generator=generator)
    assert len(calls) == 20


def test_integers_of_every_dtype_are_the_same_data(generator):
    flow = make(ctmc.Mask(4, 3))
    x = torch.randint(3, (5, 4), generator=generator)
    value = lambda each: flow.log_prob(each, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64):
        torch.testing.assert_close(value(x.to(dtype)), value(x), rtol=0, atol=0)


def test_tokens_outside_the_vocabulary_are_named():
    flow = make(ctmc.Mask(4, 3))
    with pytest.raises(ValueError, match=r"token 7 \(row 1, position 2\)"):
        flow.log_prob(torch.tensor([[0, 1, 2, 0], [0, 1, 7, 0]]))
    with pytest.raises(ValueError, match=r"token 0.5 \(row 0, position 3, and 1 more\)"):
        flow.log_prob(torch.tensor([[0, 1, 2, 0.5], [0, 1, 2, 1.5]]))
    with pytest.raises(TypeError, match="bool"):
        flow.log_prob(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="token 3"):
        training.fit(flow, objectives.FlowMatching(), torch.full((8, 4), 3), steps=1, batch_size=8)


def test_the_support_is_that_of_the_tokens():
    support = make(ctmc.Mask(4, 3))().support
    assert support.check(torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0]])).tolist() == [True, False]


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_dtypes_train_the_same_weights_and_a_killed_run_resumes_to_the_bit(source, tmp_path, generator):
    data = torch.randint(3, (64, 4), generator=generator)

    def trained(rows, steps, out=None, **options):
        flow = make(SOURCES[source]())
        training.fit(
            flow, objectives.FlowMatching(), rows, steps=steps, batch_size=16, out=out, checkpoint_every=3, **options
        )
        return flow.state_dict()

    whole = trained(data, 9)
    for dtype in (torch.uint8, torch.int32):
        other = trained(data.to(dtype), 9)
        assert all(torch.equal(whole[name], other[name]) for name in whole)

    def stop(step, flow, row):
        if step == 7:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        trained(data, 9, tmp_path, callbacks=(stop,))
    resumed = trained(data, 9, tmp_path, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_saving_keeps_path_sampler_and_source(tmp_path):
    source = ctmc.Marginal(4, torch.tensor([0.5, 0.3, 0.2]))
    path = ctmc.Mixture(ctmc.Polynomial((1.0, 2.0, 1.0, 0.5)), rate=ctmc.DetailedBalance(2.0), loss="elbo")
    flow = ctmc.TokenFlow(network(source), source, path=path, sampler=ctmc.Analytic(8, temperature=0.9))
    loaded = cflow.load(cflow.save(flow, tmp_path / "flow"))
    assert loaded.path == flow.path
    assert loaded.sampler == flow.sampler
    assert loaded.path.source is loaded.source
    assert copy.deepcopy(flow).path.source is not flow.source
    draw = lambda each: each.sample((3,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(flow), draw(loaded))


def test_infilling_of_a_mask_flow_draws_the_conditional_law(generator):
    law = correlated(3, 2)
    source, path = ctmc.Mask(2, 3), ctmc.Mixture()
    flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path).double()
    x = flow.infill(torch.tensor([1, -5]), torch.tensor([True, False]), (6000,), generator=generator)
    assert bool((x[:, 0] == 1).all())
    found = torch.bincount(x[:, 1], minlength=3).double() / len(x)
    assert float((found - law[1] / law[1].sum()).abs().max()) < 0.04


def test_infilling_refuses_what_it_cannot_read():
    flow = make(ctmc.Mask(4, 3))
    with pytest.raises(TypeError, match="bool"):
        flow.infill(torch.zeros(4, dtype=torch.long), torch.ones(4))
    with pytest.raises(ValueError, match="token 9"):
        flow.infill(torch.full((4,), 9), torch.ones(4, dtype=torch.bool))
    x = flow.infill(torch.full((2, 4), 9), torch.zeros(4, dtype=torch.bool), (3,))
    assert x.shape == (3, 2, 4)


def test_pairs_train_a_flow_from_data_to_data(generator):
    rows = torch.randint(2, (64, 4), generator=generator)
    source = ctmc.Given(rows, 3)
    flow = make(source)
    assert flow.likelihood == "none"
    pairs = torch.stack((rows, rows + 1), 1)
    training.fit(flow, objectives.FlowMatching(couplings.Paired()), pairs, steps=3, batch_size=16)
    assert flow.sample((2,), sampler=ctmc.Analytic(4)).shape == (2, 4)
    with pytest.raises(ValueError, match="no density"):
        flow.log_prob(rows)
    with pytest.raises(ValueError, match="no probabilities"):
        ctmc.TokenFlow(network(source), source, path=ctmc.Mixture(head="leave-one-out"))


def test_given_starts_are_where_samples_start(generator):
    source = ctmc.Given(torch.zeros(1, 4, dtype=torch.long), 3)
    flow = make(source)

    class Stay(fields.Field):
        def forward(self, t, x, context=None, *, s=None):
            return 50.0 * torch.nn.functional.one_hot(x, 3).double()

    stays = ctmc.TokenFlow(Stay((4,)), source)
    start = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    assert torch.equal(stays.sample((2,), start=start, generator=generator), start)
    assert torch.equal(stays.sample((3,), start=start[0]), start[0].expand(3, 4))
    with pytest.raises(ValueError, match="one for all, or 3"):
        flow.sample((3,), start=start)
    with pytest.raises(ValueError, match="token 7"):
        flow.sample((1,), start=torch.full((4,), 7))


def test_a_schedule_of_the_wrong_direction_is_refused():
    class Backwards(ctmc.Schedule):
        def kappa(self, t):
            return 1 - t

        def d_kappa(self, t):
            return -torch.ones_like(t)

    with pytest.raises(ValueError, match="from 0 \\(source\\) to 1"):
        make(ctmc.Mask(4, 3), ctmc.Mixture(Backwards()))


def test_a_coupling_leaves_only_minimal_jumps(generator):
    source = ctmc.Uniform(4, 3)
    flow = make(source)
    pairs = torch.randint(3, (64, 2, 4), generator=generator)
    training.fit(flow, objectives.FlowMatching(couplings.Paired()), pairs, steps=1, batch_size=16)
    assert flow.likelihood == "none"
    with pytest.raises(ValueError, match="independent of the data"):
        flow.sample((2,), sampler=ctmc.Analytic(4, rate=ctmc.TimeReversal()))
    assert flow.sample((2,), sampler=ctmc.Analytic(4)).shape == (2, 4)
    # The leave-one-out posterior of a network follows from the source's probabilities.
    other = make(source, ctmc.Mixture(head="leave-one-out"))
    other.record(objectives.FlowMatching(couplings.Paired()))
    with pytest.raises(ValueError, match="head='denoiser'"):
        other.sample((2,))


def test_self_conditioning_gives_the_network_its_earlier_logits(generator):
    source = ctmc.Mask(4, 3)
    flow, seen = make(source, self_conditioning=True), []
    flow.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("previous")), with_kwargs=True
    )
    flow.sample((2,), sampler=ctmc.Analytic(3), generator=generator)
    assert [each is not None for each in seen] == [False, True, True]
    data = torch.randint(3, (16, 4), generator=generator)
    twice = []
    for _ in range(24):
        seen.clear()
        objectives.FlowMatching()(flow, data, generator=generator)
        twice.append(len(seen) == 2)
    assert 4 < sum(twice) < 20  # a coin: outside once in a thousand seeds


def test_weights_get_the_time_of_the_points(generator):
    seen = []

    class Weight:
        def __call__(self, path, t):
            seen.append(t)
            return torch.ones_like(t)

    flow, times = make(ctmc.Mask(4, 3)), []
    flow.denoiser.register_forward_pre_hook(lambda module, args: times.append(args[0]))
    objectives.FlowMatching(weight=Weight())(flow, torch.randint(3, (8, 4), generator=generator), generator=generator)
    assert torch.equal(seen[0], times[0])


def test_wrong_parts_are_refused():
    source = ctmc.Mask(4, 3)
    with pytest.raises(TypeError, match="not a source"):
        ctmc.TokenFlow(network(source), cflow.bases.Normal(4))
    with pytest.raises(ValueError, match="vocabulary"):
        ctmc.TokenFlow(network(source), ctmc.Mask(4, 5))
    with pytest.raises(TypeError, match="path of tokens"):
        ctmc.TokenFlow(network(source), source, path=cflow.paths.Linear())
    with pytest.raises(TypeError, match="not a sampler"):
        make(source).sample((2,), sampler=ctmc.Analytic)
    with pytest.raises(TypeError, match="sampler=ctmc.Analytic"):
        make(source).sample((2,), steps=3)
    with pytest.raises(ValueError, match="not available"):
        ctmc.Mixture(loss="mse")
    with pytest.raises(ValueError, match="one exponent for each position"):
        make(source, ctmc.Mixture(ctmc.Polynomial((1.0, 2.0))))
    with pytest.raises(ValueError, match="no closed form"):
        make(ctmc.Uniform(4, 3)).sample((1,), sampler=ctmc.Analytic(2, rate=ctmc.CampbellRate()))


def test_the_estimate_of_the_bound_is_nearer_than_one_draw(generator):
    law = correlated(3, 2)
    source, path = ctmc.Mask(2, 3), ctmc.Mixture()
    flow = ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path).double()
    x = flow.denoiser.sequences()
    value, error = flow.log_prob_estimate(x, draws=128, generator=generator)
    assert bool(((value - law.flatten().log()).abs() < 5 * error + 1e-9).all())
    pairs, _ = flow.log_prob_estimate(x, draws=64, antithetic=True, generator=generator)
    assert bool(((pairs - law.flatten().log()).abs() < 5 * error + 1e-9).all())


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_mirrored_noise_has_the_same_mean_and_less_variance(source, generator):
    law = correlated(3, 2)
    made = {"mask": ctmc.Mask(2, 3), "uniform": ctmc.Uniform(2, 3)}[source]
    path = ctmc.Mixture(ctmc.Cosine(), loss="elbo")
    flow = ctmc.TokenFlow(ExactDenoiser(law, made, path), made, path=path).double()
    rows = torch.multinomial(law.flatten(), 2000, replacement=True, generator=generator)
    x = flow.denoiser.sequences()[rows]
    values = 2 * objectives.FlowMatching(antithetic=True)(flow, x, generator=generator).detach()
    assert abs(float(values.mean()) - entropy(law)) < 5 * float(values.std()) / 2000**0.5
    one = flow.log_prob(x, generator=generator).detach()
    two = flow.log_prob(x, antithetic=True, generator=generator).detach()
    assert abs(float(two.mean()) + entropy(law)) < 5 * float(two.std()) / 2000**0.5
    assert float(two.std()) < float(one.std())
    source, x1 = ctmc.Mask(8, 3), torch.randint(3, (50, 8), generator=generator)
    bound = ctmc.Mixture().bind(source)
    t, u = torch.rand(50, generator=generator), bound.draw(x1, generator)
    hidden = [
        bound.sample(source.sample((50,)), x1, *where[:1], noise=where[1]).xt == source.mask
        for where in ((t, u), bound.mirror(t, u))
    ]
    assert bool(((hidden[0].int() + hidden[1].int()) >= 1).all())
    assert ((hidden[0].sum(1) + hidden[1].sum(1)) == 9).all()


class Padded(fields.Field):
    """A network on rows of several lengths, with constant logits; the context marks the tokens that are present."""

    def __init__(self):
        super().__init__((4,), {"mask": (4,)})
        self.logits = torch.nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))

    def forward(self, t, x, context=None, *, s=None):
        return self.logits.expand(*x.shape, 3)


@pytest.mark.parametrize("source", ["mask", "uniform", "mask and uniform"])
def test_only_marked_positions_count(source, generator):
    flow = ctmc.TokenFlow(Padded(), SOURCES[source](), path=ctmc.Mixture(head="leave-one-out"))
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [False] * 4])
    x = torch.randint(3, (3, 4), generator=generator)
    other = torch.where(mask, x, 2 - x)
    draw = lambda each: flow.log_prob(each, {"mask": mask}, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(x), draw(other))
    assert float(draw(x)[2].detach()) == 0
    loss = objectives.FlowMatching()
    values = [loss(flow, each, {"mask": mask}, generator=torch.Generator().manual_seed(0)) for each in (x, other)]
    assert torch.equal(*values)
    samples = flow.sample((50,), {"mask": mask}, generator=generator)
    assert bool((samples[:, ~mask] == 0).all())
    assert bool((samples[:, mask] > 0).any())
    if source == "mask":  # tokens are independent, so the bound of each row is exact
        nats = flow.denoiser.logits.log_softmax(0)[x]
        torch.testing.assert_close(
            flow.log_prob_estimate(x, {"mask": mask}, draws=400, generator=generator)[0],
            (nats * mask).sum(1), rtol=0.05, atol=0.05,
        )  # fmt: skip


def test_rare_tokens_are_drawn():
    """A law with a tail of 1e-8 is drawn exactly: Gumbel noise in float32 would never reach it."""
    u = torch.tensor([0.0, 0.5e-8, 2e-8, 1 - 0.5e-8, 1 - 1e-16], dtype=torch.float64)
    weights = torch.tensor([1e-8, 1 - 2e-8, 1e-8], dtype=torch.float64)
    assert ctmc.categorical.invert(weights, u).tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("source", SOURCES)
def test_draws_have_the_probabilities_of_their_time(source):
    """Equally spaced numbers, so each state has its share of them, up to one at each end of its intervals."""
    source = SOURCES[source]()
    count = 600
    u = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None].expand(count, 4)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        states = source.draw(u, time.expand(count, 1))
        probs = source.probs(time.reshape(1, 1)) if source.moves else source.probs()
        for column in states.T:
            shares = torch.bincount(column, minlength=source.states) / count
            assert torch.allclose(shares.double(), probs.flatten(), atol=2.01 / count)


class Own(torch.nn.Module):
    """Logits from a table; :func:`called` gives it a way to be called."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 3)


def called(forward):
    return type("Called", (Own,), {"forward": forward})()


@pytest.mark.parametrize(
    ("forward", "shown"),
    [
        (lambda self, x: self.table(x), "forward(x)"),
        (lambda self, x, t: self.table(x), "forward(x, t)"),
        (lambda self, t, x: self.table(x), "forward(t, x)"),
        (lambda self, x, t, context=None: self.table(x), "forward(x, t, context=None)"),
        (lambda self, t, x, context, lengths: self.table(x), "forward(t, x, context, lengths)"),
    ],
)
def test_a_denoiser_that_is_called_in_another_way_is_refused(forward, shown):
    with pytest.raises(TypeError) as error:
        ctmc.TokenFlow(called(forward), ctmc.Mask(4, 3))
    assert f"{shown} is not one of (t, x, context); wrap it: fields.Adapted(" in str(error.value)


def test_a_denoiser_may_have_other_arguments(generator):
    for forward in (
        lambda self, time, tokens, condition=None, *, previous=None: self.table(tokens),
        lambda self, *arguments: self.table(arguments[1]),
    ):
        assert ctmc.TokenFlow(called(forward), ctmc.Mask(4, 3)).sample((2,), generator=generator).shape == (2, 4)


def test_an_adapted_network_without_time_is_evaluated_less_often(generator):
    class Counted(Own):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.table(x)

    calls = {}
    for reads_time in (True, False):
        field = fields.Adapted(Counted(), lambda net, t, x, c: net(x), event_shape=4, reads_time=reads_time)
        flow = ctmc.TokenFlow(field, ctmc.Mask(4, 3))
        flow.sample((), sampler=ctmc.Analytic(steps=50), generator=generator)
        calls[reads_time] = field.network.calls
    assert calls[True] == 50
    assert calls[False] <= 5  # four tokens, each revealed once


def test_labels_in_the_place_of_the_shape_are_refused():
    flow, x = make(ctmc.Mask(4, 3), classes=3), torch.zeros(2, 4, dtype=torch.int64)
    labels = torch.tensor([0, 1])
    for call in (lambda: flow.infill(x, x > 0, labels), lambda: flow.sample(labels)):
        with pytest.raises(ValueError, match=r"shape tensor of shape \[2\]: .* passed by name: context=..."):
            call()


def test_a_flow_with_a_standardised_context_fills_gaps(generator):
    source = ctmc.Mask(4, 3)
    flow = ctmc.TokenFlow(network(source, context=2), source)
    units = bijections.Standardise(2, loc=torch.tensor([290.0, -5.0]), scale=torch.tensor([8.0, 0.5]))
    outer = StandardisedContext(flow, units)
    x, fixed = torch.randint(3, (5, 4), generator=generator), torch.tensor([True, False, False, True])
    seen = torch.randn(5, 2, generator=generator)
    given = seen * units.scale + units.loc
    expected = flow.infill(x, fixed, (3,), seen, generator=torch.Generator().manual_seed(1))
    found = outer.infill(x, fixed, (3,), given, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)
    assert outer.sampler is flow.sampler
    with pytest.raises(ValueError, match=r"flow.infill\(\): the context is missing"):
        outer.infill(x, fixed)
    with pytest.raises(TypeError, match="flow.infill: a ContinuousFlow draws whole samples"):
        cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2)).infill(x, fixed)
