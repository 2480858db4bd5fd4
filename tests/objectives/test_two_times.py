"""Average velocities: the identities that train them, on a flow whose own are known."""

import subprocess
import sys

import pytest
import torch

import cflow
from cflow import bases, fields, guidance, objectives, paths, solvers, training
from cflow.couplings import Paired, paired
from cflow.fields import Field

METHODS = [objectives.MeanFlow, objectives.Shortcut, objectives.LagrangianSelfDistillation]
RATIO = 3.0


class Known(Field):
    r"""The average velocity of the flow whose pairs are ``x1 = 3 x0``, on a cosine path.

    .. math:: x_t = w(t) x_0, \quad w = 3 \alpha + \sigma, \qquad u(t, x, s) = \frac{w(s) - w(t)}{(s - t)\, w(t)} x
    """

    two_times = True

    def __init__(self, path, wrong=0.0):
        super().__init__((2,))
        self.path, self.wrong = path, torch.nn.Parameter(torch.tensor(wrong))

    def forward(self, t, x, context=None, *, s=None):
        t = self.check(t, x, context, s)
        width = lambda t: RATIO * self.path.alpha(t) + self.path.sigma(t)
        slope = (RATIO * self.path.d_alpha(t) + self.path.d_sigma(t)) / width(t)
        if s is None:
            return fit(slope, x) * x * (1 + self.wrong)
        apart = s - t
        average = (width(s) - width(t)) / (torch.where(apart == 0, 1.0, apart) * width(t))
        return fit(torch.where(apart == 0, slope, average), x) * x * (1 + self.wrong)


def fit(coefficient, x):
    return coefficient if coefficient.dim() == 0 else coefficient[:, None]


@pytest.fixture
def known(float64):
    path = paths.Cosine()
    return lambda wrong=0.0: cflow.ContinuousFlow(Known(path, wrong), bases.Normal(2), path=path)


def pairs(count, generator):
    x0 = torch.randn(count, 2, generator=generator)
    return paired(x0, RATIO * x0)


@pytest.mark.parametrize("method", METHODS)
def test_the_average_velocity_of_a_known_flow_has_no_error(method, known, generator):
    """With straight pairs a draw of the velocity is the velocity, so every identity holds to rounding; of shortcuts, to
    the square of the shortest step, which is Euler's."""
    options = {"steps": 2**20} if method is objectives.Shortcut else {}
    objective = method(Paired(), share=0.5, power=0.0, **options)
    assert objective(known(), pairs(200, generator), generator=generator).max() < (1e-9 if options else 1e-20)
    assert objective(known(0.1), pairs(200, generator), generator=generator).mean() > 1e-3
    assert set(objective.metrics) == {"matched", "stepped"}


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_whole_steps_by_a_known_average_velocity_are_exact(steps, known, generator):
    x0 = torch.randn(50, 2, generator=generator)
    solution = known().transport(x0, 0.0, 1.0, solver=solvers.FlowMap(steps=steps))
    torch.testing.assert_close(solution.y, RATIO * x0)
    assert solution.stats.nfe == steps


@pytest.mark.parametrize("steps", [1, 3])
def test_whole_steps_have_a_density(steps, known, generator):
    """The whole map multiplies by 3 in two dimensions."""
    flow, whole = known(), solvers.FlowMap(steps=steps)
    x, logp = flow.sample_and_log_prob((20,), generator=generator, solver=whole)
    expected = flow.base.log_prob(x / RATIO) - 2 * torch.log(torch.tensor(RATIO))
    torch.testing.assert_close(logp, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow.log_prob(x, solver=whole), expected, rtol=0, atol=1e-12)


def test_steps_both_ways(known, generator):
    flow, options = known(), {"share": 0.5, "both_ways": True}
    pair = pairs(400, generator)
    batch = objectives.MeanFlow(Paired(), **options).prepare(flow.base, pair, None, generator)
    back, far = batch.s < batch.t, batch.s != batch.t
    assert far.sum() == 200
    assert 70 < back.sum() < 130  # fails once in 10,000 seeds
    for objective in (method(Paired(), **options) for method in METHODS if method is not objectives.Shortcut):
        assert objective.loss(flow, batch).max() < 1e-20
    shortcut = objectives.Shortcut(Paired(), steps=2**20, **options)
    assert shortcut(flow, pair, generator=generator).max() < 1e-9
    flow.record(objectives.MeanFlow(both_ways=True))
    assert flow.trained_by[-1].both_ways
    assert flow.log_prob(pair[:, 1], solver=solvers.FlowMap(steps=1)).isfinite().all()


def test_a_flow_of_two_times_is_an_ordinary_flow_too(known, generator):
    flow, x = known(), torch.randn(20, 2, generator=generator)
    expected = flow.base.log_prob(x) - 2 * torch.log(torch.tensor(RATIO))
    torch.testing.assert_close(flow.log_prob(RATIO * x), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(flow.transport(x, 0.0, 1.0).y, RATIO * x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_rows_with_and_without_a_step_are_as_many_as_asked_for(method, known, generator):
    batch = method(share=0.25).prepare(bases.Normal(2), torch.randn(4000, 2, generator=generator), None, generator)
    assert ((batch.s >= batch.t) & (batch.t >= 0) & (batch.s <= 1)).all()
    steps = (batch.s > batch.t).double()
    assert steps.sum() == 1000
    assert all(abs(float(part.sum()) - 10) <= 1 for part in steps.split(40))  # in every stretch


def test_shortcuts_begin_on_their_own_grid(generator):
    batch = objectives.Shortcut(share=1.0, steps=8).prepare(
        bases.Normal(2), torch.zeros(3000, 2, dtype=torch.float64), None, generator
    )
    length = batch.s - batch.t
    assert set(length.tolist()) == {1.0, 0.5, 0.25}
    assert ((batch.t / length) % 1 == 0).all()


def test_only_the_shortest_shortcut_is_made_of_two_velocities(known, generator):
    """A longer one is made of two shortcuts of half its length, which the known flow has exactly."""
    objective = objectives.Shortcut(Paired(), share=1.0, steps=8)
    batch = objective.prepare(bases.Normal(2), pairs(400, generator), None, generator)
    errors, shortest = objective.loss(known(), batch), batch.s - batch.t == 0.25
    assert 50 < shortest.sum() < 350
    assert errors[~shortest].max() < 1e-20
    assert errors[shortest].min() > 1e-9


def test_the_target_of_mean_flow_passes_no_gradient(known, generator):
    """A field that is wrong by the factor 1 + w misses its own target by w v; the gradient is along u alone."""
    flow, right = known(0.3), known()
    objective = objectives.MeanFlow(Paired(), share=1.0, power=0.0)
    batch = objective.prepare(flow.base, pairs(200, generator), None, generator)
    objective.loss(flow, batch).mean().backward()
    sample = flow.path.sample(batch.x0, batch.x1, batch.t)
    u = right.predict(batch.t, sample.xt, s=batch.s)
    torch.testing.assert_close(flow.field.wrong.grad, (2 * 0.3 * sample.target * u).mean().detach())


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_adaptive_weight_scales_the_gradient_and_has_none(power, known, generator):
    slopes, errors, pair = [], [], pairs(1, generator)
    for each in (0.0, power):
        flow, objective = known(0.3), objectives.MeanFlow(Paired(), power=each)
        error = objective.loss(flow, objective.prepare(flow.base, pair, None, torch.Generator().manual_seed(1)))
        error.sum().backward()
        slopes.append(flow.field.wrong.grad)
        errors.append(error.detach().sum())
    torch.testing.assert_close(slopes[1], slopes[0] / (errors[0] + 1e-3) ** power)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_large_errors_weigh_less_under_the_adaptive_weight(power, known, generator):
    objective = objectives.MeanFlow(Paired(), power=power)
    errors = objective(known(0.3), pairs(100, generator), generator=generator)
    assert bool((errors < 1).all()) == bool(power)


def test_velocities_are_means_unless_they_are_told_to_be_modes(generator):
    """Two unequal points: the mean velocity at the start is 0.4, and a weight by the draw prefers the nearer one."""
    x = torch.where(torch.rand(4000, 1, generator=generator) < 0.7, 1.0, -1.0)
    found = {}
    for power in (0.0, 1.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            field = fields.MLP(1, hidden=(32, 32), two_times=True)
        flow = cflow.ContinuousFlow(field, bases.Normal(1), path=paths.Linear())
        options = {"steps": 400, "batch_size": 256, "lr": 5e-3, "seed": 0, "ema": None}
        training.fit(flow, objectives.MeanFlow(power=power), x, **options)
        found[power] = float(flow.eval().velocity(0.0, torch.zeros(1, 1)).detach())
    assert objectives.MeanFlow().power == 0
    assert abs(found[0.0] - 0.4) < 0.2
    assert found[1.0] > 0.7


def test_guidance_inside_training(generator, float64):
    """Where the network's velocity without a condition is zero, what is matched is the draw times the guidance."""
    field = fields.MLP(2, hidden=(8,), classes=2, two_times=True)
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), context_shape=())
    x, labels = torch.randn(400, 2, generator=generator), torch.arange(400) % 2
    options = {"condition_dropout": 0.5, "share": 0.5}
    draw = lambda objective: objective(flow, x, labels, generator=torch.Generator().manual_seed(5))
    plain = draw(objectives.LagrangianSelfDistillation(**options))
    guided = draw(objectives.LagrangianSelfDistillation(**options, guidance=3.0))
    batch = objectives.LagrangianSelfDistillation(**options).prepare(
        flow.base, x, labels, torch.Generator().manual_seed(5)
    )
    matched = batch.s == batch.t  # steps of a field that stands still have no error
    expected = torch.where(batch.drop, plain, 9.0 * plain)
    torch.testing.assert_close(guided[matched], expected[matched])


@pytest.mark.parametrize("method", METHODS)
def test_one_step_after_training(method, generator):
    """Two points from a normal: one Euler step of a velocity lands in the middle, a whole step at one of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(1, hidden=(64, 64), two_times=True)
    flow = cflow.ContinuousFlow(field, bases.Normal(1), path=paths.Linear())
    x = torch.randint(2, (2000, 1), generator=generator) * 2.0 - 1
    steps = 800 if method is objectives.MeanFlow else 400  # of which the derivatives make noise
    training.fit(flow, method(share=0.5), x, steps=steps, batch_size=256, lr=5e-3, seed=0, ema=None)
    flow.eval()
    ends = lambda solver: flow.sample((1000,), solver=solver, generator=torch.Generator().manual_seed(0))
    apart = lambda solver: float((ends(solver).abs() - 1).abs().mean())
    assert apart(solvers.FlowMap(steps=1)) < 0.25


@pytest.mark.parametrize("make", [guidance.ClassifierFree, guidance.CFGZeroStar])
def test_average_velocities_are_guided_like_velocities(make, generator, float64):
    field = fields.MLP(2, hidden=(8,), classes=2, two_times=True)
    with torch.no_grad():
        for each in field.parameters():
            each.add_(0.3 * torch.randn(each.shape, generator=generator))
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), context_shape=())
    x, labels = torch.randn(4, 2, generator=generator), torch.tensor([0, 1, 1, 0])
    guide = make(2.0) if make is guidance.ClassifierFree else make(2.0, zero_until=0)
    guided = flow.velocity_field(guide)
    assert guided.two_times
    t, s = torch.full((4,), 0.1), torch.full((4,), 0.7)
    c, u = (field(t, x, each, s=s) for each in (labels, field.null_context(labels)))
    if make is guidance.ClassifierFree:
        torch.testing.assert_close(guided(t, x, labels, s=s), u + 2 * (c - u))
    assert (guided(t, x, labels, s=s) - guided(t, x, labels)).norm() > 1e-3
    assert flow.sample((3,), labels, solver=solvers.FlowMap(steps=2), guidance=guide).shape == (3, 4, 2)
    if make is guidance.CFGZeroStar:
        with pytest.raises(ValueError, match="would not move samples; pass zero_until=0"):
            flow.sample((3,), labels, solver=solvers.FlowMap(steps=2), guidance=make(2.0))


@pytest.mark.parametrize("path", [paths.Linear(), paths.VariancePreserving()])
def test_a_whole_step_is_asked_for_whole_on_every_path(path, generator):
    """Also on one whose interval stops short of the end: without a second time the field is asked there alone."""

    class Spy(fields.MLP):
        def forward(self, t, x, context=None, *, s=None):
            (asked if s is not None else crossed).append((float(t[0]), None if s is None else float(s[0])))
            return super().forward(t, x, context, s=s)

    asked, crossed = [], []
    flow = cflow.ContinuousFlow(Spy(2, two_times=True), bases.Normal(2), path=path)
    high = flow.interval[1]
    assert (high < 1) == isinstance(path, paths.VariancePreserving)
    flow.transport(torch.randn(3, 2, generator=generator), 0.0, 1.0, solver=solvers.FlowMap(steps=2))
    assert asked == [pytest.approx((0, high / 2)), pytest.approx((high / 2, high))]
    assert crossed == ([] if high == 1 else [(pytest.approx(high), None)])


def test_few_rows_take_steps_too_and_every_row_its_share(generator):
    flow = cflow.ContinuousFlow(fields.MLP(1, two_times=True), bases.Normal(1), path=paths.Linear())
    for count in (1, 3, 8):
        objective, taken = objectives.MeanFlow(share=0.25), torch.zeros(count)
        for _ in range(2000):
            batch = objective.prepare(flow.base, torch.zeros(count, 1), None, generator)
            far = batch.s > batch.t
            assert abs(int(far.sum()) - 0.25 * count) < 1
            taken += far
        # Five standard errors of a share of 2000 draws.
        assert ((taken / 2000 - 0.25).abs() < 5 * (0.25 * 0.75 / 2000) ** 0.5).all()


def test_what_cannot_be_is_refused(generator):
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    x = torch.randn(8, 2, generator=generator)
    for method in METHODS:
        with pytest.raises(ValueError, match=r"has one time.*fields.two_times"):
            method()(flow, x)
        with pytest.raises(ValueError, match="share=0"):
            method(share=0.0)
        with pytest.raises(ValueError, match="condition_dropout"):
            method(guidance=2.0)
        with pytest.raises(ValueError, match="power=-1"):
            method(power=-1.0)
    field = fields.MLP(2, two_times=True)
    predicts = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear("x1"))
    with pytest.raises(ValueError, match="does not predict the velocity"):
        objectives.MeanFlow()(predicts, x)
    with pytest.raises(ValueError, match="power of two"):
        objectives.Shortcut(steps=12)
    with pytest.raises(ValueError, match="has one time"):
        flow.sample((2,), solver=solvers.FlowMap(steps=1))
    double = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear())
    with pytest.raises(ValueError, match="no other integrals, and kinetic"):
        double.transport(x, 0.0, 1.0, quadratures=("kinetic",), solver=solvers.FlowMap(steps=1))
    double.record(objectives.MeanFlow())
    with pytest.raises(ValueError, match="towards the data only"):
        double.log_prob(x, solver=solvers.FlowMap(steps=1))
    with pytest.raises(ValueError, match="already"):
        fields.two_times(field)
    with pytest.raises(TypeError, match="no option two_times"):
        fields.two_times(fields.ConcatSquash(2))
    with pytest.raises(ValueError, match="pass a weak flow with two times"):
        guidance.AutoGuidance(fields.MLP(2), 2.0)(field)


def test_a_first_derivative_in_forward_mode_prints_nothing():
    # torch 2.14 warns of its own use of torch.jit.script when it loads its rules, once in a process.
    code = "import torch, cflow; from cflow.divergence.forward_mode import jvp; one = torch.ones(())\n"
    code += "print(*jvp(torch.tanh, (0 * one,), (one,)))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.stdout == "tensor(0.) tensor(1.)\n"
    assert "jit" not in done.stderr, done.stderr
